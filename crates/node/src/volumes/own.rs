//! Volumes that belong to a group: `fsGroup`, as upstream's `SetVolumeOwnership` has it.

use k8s_openapi::api::core::v1 as core;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, lchown};
use std::path::Path;

/// What the group may do with files that pods write, and with those they only read.
const WRITES: u32 = 0o660;
const READS: u32 = 0o440;
/// Of directories on top: they are passed through, and what is made in them is the group's.
const PASSES: u32 = 0o2110;

/// Whose volumes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) gid: u32,
    /// What is right at the top is taken to be right below (`OnRootMismatch`).
    pub(super) on_mismatch: bool,
}

impl Group {
    /// That of a pod's volumes; only root gives files away.
    pub(super) fn of(pod: &core::Pod) -> Option<Self> {
        let security = pod.spec.as_ref()?.security_context.as_ref()?;
        let gid = u32::try_from(security.fs_group?).ok()?;
        rustix::process::geteuid().is_root().then_some(Self {
            gid,
            on_mismatch: security.fs_group_change_policy.as_deref() == Some("OnRootMismatch"),
        })
    }

    /// Gives what pods write to the group.
    pub(super) fn own(self, dir: &Path) -> io::Result<()> {
        let meta = std::fs::metadata(dir)?;
        let wanted = WRITES | PASSES;
        let fits = meta.gid() == self.gid && meta.mode() & wanted == wanted;
        if self.on_mismatch && fits {
            return Ok(());
        }
        self.give(dir, WRITES)
    }

    /// Gives what pods only read to the group.
    pub(super) fn own_read_only(self, dir: &Path) -> io::Result<()> {
        self.give(dir, READS)
    }

    /// What a file's mode becomes.
    pub(super) fn mode_of_read_only(mode: u32) -> u32 {
        mode | READS
    }

    fn give(self, top: &Path, mask: u32) -> io::Result<()> {
        let mut todo = vec![top.to_path_buf()];
        while let Some(path) = todo.pop() {
            let meta = std::fs::symlink_metadata(&path)?;
            lchown(&path, None, Some(self.gid))?;
            if meta.is_symlink() {
                continue;
            }
            let more = if meta.is_dir() { mask | PASSES } else { mask };
            // After its owner, for a new owner takes the group's bit away.
            let mode = (meta.mode() | more) & 0o7777;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
            if meta.is_dir() {
                for entry in std::fs::read_dir(&path)? {
                    todo.push(entry?.path());
                }
            }
        }
        // What the top is a link to is the volume.
        chown(top, None, Some(self.gid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_become_the_group_s() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("v");
        std::fs::create_dir_all(root.join("deep")).unwrap();
        std::fs::write(root.join("deep/file"), "x").unwrap();
        std::fs::set_permissions(
            root.join("deep/file"),
            std::fs::Permissions::from_mode(0o600),
        )
        .unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.join("link")).unwrap();
        let before = std::fs::metadata("/etc/passwd").unwrap().gid();
        let mut group = Group {
            gid: 4242,
            on_mismatch: true,
        };
        group.own(&root).unwrap();
        let seen = |path: &str| {
            let meta = std::fs::symlink_metadata(root.join(path)).unwrap();
            (meta.gid(), meta.mode() & 0o7777)
        };
        assert_eq!(seen("deep"), (4242, 0o2775));
        assert_eq!(seen("deep/file"), (4242, 0o660));
        assert_eq!(seen("link").0, 4242);
        assert_eq!(std::fs::metadata("/etc/passwd").unwrap().gid(), before);
        // Its top fits: what is below is left alone.
        lchown(root.join("deep/file"), None, Some(1)).unwrap();
        group.own(&root).unwrap();
        assert_eq!(seen("deep/file").0, 1);
        group.on_mismatch = false;
        group.own(&root).unwrap();
        assert_eq!(seen("deep/file").0, 4242);
    }
}
