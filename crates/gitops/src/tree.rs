//! A set of files in memory: what a revision of a source holds.
//!
//! Paths are relative, with `/`, without `.` and `..`; [`join`] makes them so and refuses
//! to leave the root. Nothing here touches a disk.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Most files of one revision; more are refused.
pub const FILES_MAX: usize = 20_000;
/// Most bytes of all files of one revision; more are refused.
pub const BYTES_MAX: usize = 64 << 20;

/// Files by their path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    files: BTreeMap<String, Arc<[u8]>>,
    bytes: usize,
}

/// A revision with too many files or bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "hold files: more than {FILES_MAX} files or {} MiB; leave some out with spec.ignore",
    BYTES_MAX >> 20
)]
pub struct TooLarge;

impl Tree {
    /// Adds a file; one of the same path is replaced.
    ///
    /// # Errors
    /// Beyond [`FILES_MAX`] or [`BYTES_MAX`].
    pub fn insert(&mut self, path: impl Into<String>, bytes: &[u8]) -> Result<(), TooLarge> {
        if self.files.len() >= FILES_MAX || self.bytes.saturating_add(bytes.len()) > BYTES_MAX {
            return Err(TooLarge);
        }
        self.bytes += bytes.len();
        if let Some(old) = self.files.insert(path.into(), bytes.into()) {
            self.bytes -= old.len();
        }
        Ok(())
    }

    /// The content of a file.
    pub fn get(&self, path: &str) -> Option<&[u8]> {
        self.files.get(path).map(|b| &**b)
    }

    /// Whether some file lies in this folder; the root is the empty path.
    pub fn is_dir(&self, path: &str) -> bool {
        path.is_empty() || self.below(path).next().is_some()
    }

    /// All files below a folder, by path.
    pub fn below<'a>(&'a self, dir: &str) -> impl Iterator<Item = (&'a str, &'a [u8])> + use<'a> {
        let prefix = if dir.is_empty() {
            String::new()
        } else {
            format!("{dir}/")
        };
        self.files
            .range(prefix.clone()..)
            .take_while(move |(path, _)| path.starts_with(&prefix))
            .map(|(path, bytes)| (path.as_str(), &**bytes))
    }

    /// All files, by path.
    pub fn files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.files.iter().map(|(p, b)| (p.as_str(), &**b))
    }

    /// How many files there are.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there is no file.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }
}

/// A path as seen from a folder, made plain; `None` when it leads out of the root or is
/// absolute.
pub fn join(dir: &str, path: &str) -> Option<String> {
    if path.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = dir.split('/').filter(|p| !p.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// The folder of a file.
pub fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside_the_root() {
        for (dir, path, joined) in [
            ("", "a", Some("a")),
            ("a/b", "../c", Some("a/c")),
            ("a", "./b//c/.", Some("a/b/c")),
            ("a", "..", Some("")),
            ("a", "../..", None),
            ("a", "b/../../../c", None),
            ("", "/etc", None),
        ] {
            assert_eq!(join(dir, path).as_deref(), joined, "{dir} {path}");
        }
    }

    #[test]
    fn folders_end_where_their_name_ends() {
        let mut tree = Tree::default();
        for path in ["a/b", "a-b/c", "a/c/d", "ab"] {
            tree.insert(path, b"x").unwrap();
        }
        let below: Vec<_> = tree.below("a").map(|(p, _)| p).collect();
        assert_eq!(below, ["a/b", "a/c/d"]);
        assert!(tree.is_dir("a/c") && !tree.is_dir("a/b") && tree.is_dir(""));
    }

    #[test]
    fn too_many_bytes_are_refused() {
        let mut tree = Tree::default();
        let half = vec![0; BYTES_MAX / 2];
        tree.insert("a", &half).unwrap();
        tree.insert("b", &half).unwrap();
        assert_eq!(tree.insert("c", b"x"), Err(TooLarge));
    }
}
