//! `kill -9` at random moments: what was acknowledged is there, and no revision comes twice.
//!
//! The test binary runs itself as the writer, which prints what the store acknowledged.

use crate::open;
use rand::{RngExt as _, SeedableRng as _};
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;
use store::{Durability, Error, RangeRequest, Revision, Store as _, Write};

const FOLDER: &str = "SALP_TEST_STORE_FOLDER";
const ROUNDS: u64 = 12;
const WRITERS: usize = 4;

/// Not a test of its own: the writer that is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writer_child() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let store = std::sync::Arc::new(open(folder.as_ref()));
    let scope = lifecycle::Scope::new();
    for writer in 0..WRITERS {
        let store = store.clone();
        scope.spawn(async move {
            for round in 0.. {
                let key = format!("/{writer}/{}", round % 17);
                // The last writer is a lazy one.
                let durability = match writer + 1 == WRITERS {
                    true => Durability::Lazy,
                    false => Durability::Sync,
                };
                write_once(&store, &key, round, durability).await;
                if round % 20 == 19 && writer == 0 {
                    let at = store.revision().await.expect("revision");
                    store
                        .compact(Revision(at.0.saturating_sub(50)))
                        .await
                        .expect("compact");
                }
            }
        });
    }
    std::future::pending::<()>().await;
}

async fn write_once(store: &store::EmbeddedStore, key: &str, round: u64, durability: Durability) {
    let there = store.get(key, None).await.expect("get");
    let value = format!("{key} in round {round} ").repeat(1 + (round % 90) as usize);
    let value = bytes::Bytes::from(value);
    let write = match there {
        None => Write::Create { value },
        Some(record) if round % 5 == 4 => Write::Delete {
            expected: record.modified,
        },
        Some(record) => Write::Update {
            value,
            expected: record.modified,
        },
    };
    let deleted = matches!(write, Write::Delete { .. });
    let made = store.write(key, write, durability).await.expect("write");
    let length = if deleted { 0 } else { made.value.len() };
    let line = format!("ack {} {key} {length}\n", made.modified.0);
    // One call a line, so that none is cut in two by another writer.
    std::io::stdout().write_all(line.as_bytes()).expect("print");
}

/// Runs the writer and kills it; its acknowledgements by revision.
fn run_and_kill(folder: &std::path::Path, acks_max: usize) -> BTreeMap<u64, (String, usize)> {
    let mut child = Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", "crash::writer_child", "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the writer starts");
    let stdout = child.stdout.take().expect("piped");
    let mut acks = BTreeMap::new();
    let mut killed = false;
    for line in BufReader::new(stdout).lines() {
        let line = line.expect("text");
        let Some(ack) = line.find("ack ").map(|at| &line[at + 4..]) else {
            continue;
        };
        let mut words = ack.split(' ');
        let mut word = || words.next().expect("three words");
        let (revision, key, length) = (word(), word(), word());
        let revision = revision.parse().expect("a number");
        let there = acks.insert(
            revision,
            (key.to_owned(), length.parse().expect("a number")),
        );
        assert!(there.is_none(), "revision {revision} was given twice");
        if acks.len() >= acks_max && !killed {
            // What it still prints was acknowledged as well.
            child.kill().expect("kill");
            killed = true;
        }
    }
    child.wait().expect("it ends");
    acks
}

#[tokio::test]
async fn kill_9_loses_no_acknowledged_write() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let seed = rand::random();
    let mut random = rand::rngs::SmallRng::seed_from_u64(seed);
    let mut all = BTreeMap::new();
    for round in 0..ROUNDS {
        let before = all.keys().next_back().copied().unwrap_or(0);
        let acks = run_and_kill(folder.path(), random.random_range(1..400));
        let first = acks.keys().next().copied().expect("some writes");
        assert!(
            first > before,
            "seed {seed} round {round}: {first} after {before}"
        );
        all.extend(acks);
        check(folder.path(), &all, &format!("seed {seed} round {round}")).await;
    }
}

/// Every acknowledged durable write is the newest of its key, or something newer is.
async fn check(folder: &std::path::Path, acks: &BTreeMap<u64, (String, usize)>, context: &str) {
    let store = open(folder);
    let range = store.range(RangeRequest::default()).await.expect("range");
    let there: BTreeMap<&str, _> = range.records.iter().map(|r| (&*r.key, r)).collect();
    let lazy = format!("/{}/", WRITERS - 1);
    let newest: BTreeMap<&str, (u64, usize)> = acks
        .iter()
        .filter(|(_, (key, _))| !key.starts_with(&lazy))
        .map(|(revision, (key, length))| (key.as_str(), (*revision, *length)))
        .collect();
    for (key, (revision, length)) in newest {
        match there.get(key) {
            Some(record) if record.modified.0 == revision => {
                assert_eq!(record.value.len(), length, "{context} {key}");
            }
            // Written, but killed before it could say so.
            Some(record) => assert!(record.modified.0 > revision, "{context} {key}"),
            None if length == 0 => {}
            None => {
                let deleted = store.watch(key, Some(Revision(revision))).await;
                assert!(
                    deleted.is_ok() || matches!(deleted, Err(Error::Compacted(_))),
                    "{context} {key}: lost"
                );
            }
        }
    }
    let last = acks.keys().next_back().copied().unwrap_or(0);
    let revision = store.revision().await.expect("revision");
    assert!(revision.0 >= last, "{context}: {revision:?} after {last}");
    // An orderly close would hide what only a crash leaves.
    let closing = tokio::time::timeout(Duration::from_secs(60), store.close());
    closing.await.expect("in time").expect("close");
}
