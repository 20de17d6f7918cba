//! What lies on the disk after a crash or an accident: torn logs, other files, locks.

use crate::{create, delete, open, update};
use std::path::Path;
use store::{Durability, EmbeddedStore, Error, RangeRequest, Revision, Store as _, Write};

/// What a crash at this moment would leave: the files as they are, without the lock.
fn crash_copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().expect("a temporary folder");
    for name in ["state.db", "state.db-wal"] {
        std::fs::copy(from.join(name), to.path().join(name)).expect("copy");
    }
    to
}

#[tokio::test]
async fn garbage_or_nothing_after_the_last_commit_loses_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = open(folder.path());
    let mut sizes = Vec::new();
    for n in 0..40 {
        create(&store, &format!("/k/{n:02}"), &format!("{n} ").repeat(400)).await;
        let wal = folder.path().join("state.db-wal");
        sizes.push(wal.metadata().expect("the log is there").len());
    }
    // Cut within what was written after the 21st acknowledged write, and garbage put behind.
    for (cut, garbage) in [
        (sizes[20], 0),
        (sizes[20] + 1, 0),
        (sizes[20] + 5_000, 0),
        (sizes[20], 30_000),
        (sizes[21] - 1, 100),
        (sizes[39], 70_000),
    ] {
        let copy = crash_copy(folder.path());
        let wal = copy.path().join("state.db-wal");
        let mut bytes = std::fs::read(&wal).expect("read");
        bytes.truncate(usize::try_from(cut).expect("fits"));
        bytes.extend((0..garbage).map(|n: u32| (n * 7 + 3) as u8));
        std::fs::write(&wal, bytes).expect("write");
        let acknowledged = sizes.iter().filter(|size| **size <= cut).count();
        let reopened = open(copy.path());
        let range = reopened
            .range(RangeRequest::default())
            .await
            .expect("range");
        assert!(range.records.len() >= acknowledged, "cut {cut}");
        let made = create(&reopened, "/after", "1").await;
        assert!(made.modified.0 > acknowledged as u64);
    }
}

#[tokio::test]
async fn the_newest_revision_survives_its_row() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = open(folder.path());
    let a = create(&store, "/a", "1").await;
    let b = create(&store, "/b", "1").await;
    let b = delete(&store, "/b", b.modified).await;
    store.compact(b.modified).await.expect("compact");
    // Each removal rides along with a write; this one's own row is then the newest.
    let a = update(&store, "/a", "2", a.modified).await;
    let a = delete(&store, "/a", a.modified).await;
    store.compact(a.modified).await.expect("compact");
    drop(store);
    let store = open(folder.path());
    assert_eq!(store.revision().await.expect("revision"), a.modified);
    let again = create(&store, "/a", "3").await;
    assert!(again.modified > a.modified);
}

/// A power cut takes lazy writes; who saw them is told to list again, and no revision
/// is given a second time.
#[tokio::test]
async fn lost_lazy_writes_leave_a_gap() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = open(folder.path());
    let durable = create(&store, "/durable", "1").await;
    let mut last = durable.clone();
    let mut kept = durable.modified;
    for n in 0..1500 {
        let write = Write::Create { value: "1".into() };
        let key = format!("/lazy/{n:04}");
        last = store
            .write(&key, write, Durability::Lazy)
            .await
            .expect("write");
        if n == 0 {
            // The first reserves revisions, for which it is synced.
            kept = last.modified;
        }
    }
    let seen = last.modified;
    let copy = crash_copy(folder.path());
    let store = open(copy.path());
    let newest = store.revision().await.expect("revision");
    assert!(newest > seen, "{newest:?} after {seen:?}");
    let there = store.count("/lazy/").await.expect("count") as u64;
    kept = Revision(kept.0 + there - 1);
    assert!(there < 1500 && kept < seen);
    for lost in [kept.0 + 1, seen.0, newest.0 - 1] {
        let result = store.watch("/", Some(Revision(lost))).await.map(|_| ());
        assert!(
            matches!(result, Err(Error::Compacted(at)) if at == newest),
            "{lost}"
        );
    }
    for known in [durable.modified, kept, newest] {
        assert!(store.watch("/", Some(known)).await.is_ok(), "{known:?}");
    }
    let made = create(&store, "/after", "1").await;
    assert!(made.modified > newest);
    // It is remembered, and a second crash makes it one longer gap.
    let copy = crash_copy(copy.path());
    let store = open(copy.path());
    let result = store.get("/after", Some(seen)).await;
    assert!(matches!(result, Err(Error::Compacted(_))));
    let there = store.get("/after", None).await.expect("get");
    assert_eq!(there, Some(made));
}

#[test]
fn a_second_opener_is_told_so() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = open(folder.path());
    let second = EmbeddedStore::open(&folder.path().join("state.db"));
    let error = second.expect_err("it is open already");
    assert!(matches!(error, Error::Locked(_)), "{error:?}");
    assert!(error.to_string().contains("another process has it open"));
    drop(store);
    open(folder.path());
}

/// A file system of a few megabytes; unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// Needs root; nothing without.
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"])
            .arg(folder.path())
            .output();
        mount
            .is_ok_and(|m| m.status.success())
            .then_some(Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmount = std::process::Command::new("umount")
            .arg(self.0.path())
            .status();
        assert!(unmount.is_ok_and(|status| status.success()));
    }
}

#[tokio::test]
#[allow(clippy::print_stderr, reason = "a skipped test says so")]
async fn a_full_disk_is_survived() {
    let Some(disk) = SmallDisk::mount() else {
        eprintln!("skipped: mounting a small file system needs root");
        return;
    };
    let folder = disk.0.path();
    let filler = folder.join("filler");
    std::fs::write(&filler, vec![1; 2 << 20]).expect("write");
    let store = open(folder);
    let noise: Vec<u8> = (0..20_000).map(|_| rand::random()).collect();
    let put = async |n: usize, durability| {
        let write = Write::Create {
            value: noise.clone().into(),
        };
        store.write(&format!("/{n:04}"), write, durability).await
    };
    let mut made = Vec::new();
    let error = loop {
        match put(made.len(), Durability::Sync).await {
            Ok(record) => made.push(record),
            Err(error) => break error,
        }
    };
    assert!(
        matches!(&error, Error::Disk(e) if e.kind() == std::io::ErrorKind::StorageFull),
        "{error:?}"
    );
    // It goes on refusing, and reading.
    assert!(put(made.len(), Durability::Sync).await.is_err());
    let range = store.range(RangeRequest::default()).await.expect("range");
    assert_eq!(range.records, made);
    std::fs::remove_file(&filler).expect("remove");
    for durability in [Durability::Sync, Durability::Lazy] {
        made.push(put(made.len(), durability).await.expect("there is room"));
    }
    drop(store);
    let store = open(folder);
    let range = store.range(RangeRequest::default()).await.expect("range");
    assert_eq!(range.records, made);
    drop(store);
}

#[test]
fn files_of_others_are_refused_and_left_alone() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("state.db");
    let text = "Dear diary, ".repeat(1000);
    std::fs::write(&path, &text).expect("write");
    let error = EmbeddedStore::open(&path).expect_err("not a database");
    assert!(matches!(error, Error::Corrupt(_)), "{error:?}");
    assert_eq!(std::fs::read_to_string(&path).expect("read"), text);
}

#[test]
fn files_are_the_owners_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let _store = open(folder.path());
    for entry in std::fs::read_dir(folder.path()).expect("list") {
        let entry = entry.expect("entry");
        let mode = entry.metadata().expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{:?}", entry.path());
    }
}
