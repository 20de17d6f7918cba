//! Which OCI runtimes a machine has, and which is used where a pod names none.

use std::path::{Path, PathBuf};

/// The names that runtimes are known by; a RuntimeClass's handler is one of them. The first that
/// is there is used where a pod names none: crun starts in a third of runc's time, but refuses
/// machines with both versions of control groups.
const NAMES: &[&str] = &["crun", "runc", "runsc", "youki", "kata-runtime"];

/// Those that are on this machine, by name: in the directories given, then where systems have them.
pub fn find(path: &str) -> Vec<(String, PathBuf)> {
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
    let found = NAMES.iter().filter_map(|name| {
        let mut places = dirs.iter().map(|dir| dir.join(name));
        let program = places.find(|place| place.is_file())?;
        Some(((*name).to_owned(), program))
    });
    found.collect()
}

/// The one that is used where a pod names none.
pub(crate) fn preferred(
    runtimes: &[(String, PathBuf)],
    unified: bool,
) -> Option<&(String, PathBuf)> {
    let order: &[&str] = if unified {
        &["crun", "runc"]
    } else {
        &["runc", "crun"]
    };
    let named = |name: &&str| runtimes.iter().find(|(known, _)| known == name);
    order.iter().find_map(named).or_else(|| runtimes.first())
}

/// What is told where there is none.
pub(crate) fn none_found(handler: Option<&str>) -> String {
    match handler {
        Some(handler) => format!("no OCI runtime {handler:?} is on this machine: install it"),
        None => "no OCI runtime is on this machine: install crun or runc".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crun_is_preferred_where_it_works() {
        let all: Vec<_> = ["runsc", "runc", "crun"]
            .map(|name| (name.to_owned(), PathBuf::from(name)))
            .into();
        let name = |list: &[(String, PathBuf)], unified| {
            preferred(list, unified).map(|(name, _)| name.clone())
        };
        assert_eq!(name(&all, true).as_deref(), Some("crun"));
        assert_eq!(name(&all, false).as_deref(), Some("runc"));
        assert_eq!(name(&all[..1], true).as_deref(), Some("runsc"));
        assert_eq!(name(&[], true), None);
    }

    #[test]
    fn runtimes_are_found_by_name() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("crun"), "").unwrap();
        let found = find(dir.path().to_str().unwrap());
        assert_eq!(found[0], ("crun".to_owned(), dir.path().join("crun")));
    }
}
