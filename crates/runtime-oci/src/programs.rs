//! Which OCI runtimes a machine has, beside the one that is built in.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// An OCI runtime of this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// What the handler of a RuntimeClass calls it.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// What it is given whatever is asked of it: `--platform=ptrace`.
    pub args: Vec<String>,
}

/// What a machine's owner says of a runtime.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Stated {
    /// Where it is; nothing for one that is found by its name.
    pub path: Option<PathBuf>,
    /// See [`Program::args`].
    pub args: Vec<String>,
}

/// What the handler of a RuntimeClass calls the built-in runtime, which runs pods that name none.
pub const BUILT_IN: &str = "salp";

/// This program, in a supervisor's configuration.
pub const SELF: &str = "/proc/self/exe";

/// The built-in runtime: this program with these arguments.
pub fn built_in<'a>(args: impl IntoIterator<Item = &'a str>) -> Program {
    Program {
        name: BUILT_IN.to_owned(),
        path: SELF.into(),
        args: args.into_iter().map(str::to_owned).collect(),
    }
}

/// The names that others are known by; a RuntimeClass's handler is one of them.
const NAMES: &[&str] = &["crun", "runc", "runsc", "youki", "kata-runtime"];

/// Those that are on this machine: in the directories given, then where systems have them, and
/// those that its owner tells of, by name.
///
/// # Errors
/// The name of one that its owner tells of and that is not there.
pub fn find(path: &str, stated: &BTreeMap<String, Stated>) -> Result<Vec<Program>, String> {
    let dirs: Vec<&Path> = path
        .split(':')
        .filter(|dir| !dir.is_empty())
        .chain([
            "/usr/local/sbin",
            "/usr/local/bin",
            "/usr/sbin",
            "/usr/bin",
            "/sbin",
            "/bin",
        ])
        .map(Path::new)
        .collect();
    let unstated = NAMES.iter().filter(|name| !stated.contains_key(**name));
    let unstated = unstated.map(|name| (*name, Stated::default()));
    let stated_ones = stated.iter().map(|(name, s)| (name.as_str(), s.clone()));
    let mut found = Vec::new();
    for (name, Stated { path, args }) in stated_ones.chain(unstated) {
        let place = match path {
            Some(path) => Some(path).filter(|path| path.is_file()),
            None => {
                let mut places = dirs.iter().map(|dir| dir.join(name));
                places.find(|place| place.is_file())
            }
        };
        match place {
            Some(path) => found.push(Program {
                name: name.to_owned(),
                path,
                args,
            }),
            None if stated.contains_key(name) => return Err(name.to_owned()),
            None => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtimes_are_found_by_name_or_where_they_are_said_to_be() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["crun", "runsc"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let path = dir.path().to_str().unwrap();
        let of = |stated: &[(&str, Option<PathBuf>)]| {
            let stated = stated.iter().map(|(name, path)| {
                let (path, args) = (path.clone(), vec!["--x".to_owned()]);
                ((*name).to_owned(), Stated { path, args })
            });
            find(path, &stated.collect())
        };
        let shown = |found: &[Program], name: &str| {
            let found = found.iter().filter(|p| p.name == name);
            let all = found.map(|p| (p.path.strip_prefix(path).unwrap().to_owned(), p.args.len()));
            all.collect::<Vec<_>>()
        };
        let found = of(&[]).unwrap();
        assert_eq!(shown(&found, "crun"), [("crun".into(), 0)]);
        let found = of(&[("runsc", None), ("gvisor", Some(dir.path().join("runsc")))]).unwrap();
        assert_eq!(shown(&found, "crun"), [("crun".into(), 0)]);
        assert_eq!(shown(&found, "runsc"), [("runsc".into(), 1)]);
        assert_eq!(shown(&found, "gvisor"), [("runsc".into(), 1)]);
        assert_eq!(of(&[("gvisor", None)]), Err("gvisor".to_owned()));
        let nowhere = Some(dir.path().join("none"));
        assert_eq!(of(&[("crun", nowhere)]), Err("crun".to_owned()));
    }
}
