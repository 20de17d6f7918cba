//! Durable writes a second by 1, 8 and 32 writers, bytes written for each, and how fast
//! a store with state opens and is read. `cargo bench -p store`.
//!
//! Values are made like API objects: 2 KB of JSON with much in common.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::{Durability, EmbeddedStore, RangeRequest, Store as _, Write};

const RUN: Duration = Duration::from_secs(2);
const OBJECTS: usize = 10_000;

#[allow(clippy::print_stdout, reason = "a bench prints its figures")]
fn main() {
    let folder = tempfile::tempdir_in(".").expect("a folder on a real disk");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    for writers in [1, 8, 32] {
        let path = folder.path().join(format!("w{writers}.db"));
        let before = written_bytes();
        let count = runtime.block_on(write_for(&path, writers, RUN));
        let bytes = (written_bytes() - before) / count.max(1);
        let rate = count as f64 / RUN.as_secs_f64();
        println!("{writers:2} writers: {rate:7.0} durable writes/s, {bytes} bytes written each");
    }
    let path = folder.path().join("start.db");
    runtime.block_on(fill(&path));
    let start = Instant::now();
    let store = EmbeddedStore::open(&path).expect("open");
    let opened = start.elapsed();
    let range = runtime.block_on(store.range(RangeRequest::default()));
    let count = range.expect("range").records.len();
    println!(
        "{count} objects: open {:.1} ms, read all {:.1} ms",
        opened.as_secs_f64() * 1e3,
        (start.elapsed() - opened).as_secs_f64() * 1e3
    );
}

fn value(n: usize) -> bytes::Bytes {
    let mut json = format!("{{\"kind\":\"Pod\",\"metadata\":{{\"name\":\"web-{n}\",\"uid\":\"");
    let mut state = n as u64 + 1;
    while json.len() < 2048 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        json.push_str(&format!(
            "{state:x}\",\"lastTransitionTime\":\"2026-01-01T00:00:00Z\",\"f:status\":\""
        ));
    }
    json.into()
}

async fn write_for(path: &Path, writers: usize, time: Duration) -> u64 {
    let store = Arc::new(EmbeddedStore::open(path).expect("open"));
    let scope = lifecycle::Scope::new();
    let end = Instant::now() + time;
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let store = store.clone();
            scope.spawn(async move {
                let mut count = 0;
                while Instant::now() < end {
                    let write = Write::Create {
                        value: value(count),
                    };
                    let key = format!("/registry/pods/ns-{writer}/web-{count}");
                    store
                        .write(&key, write, Durability::Sync)
                        .await
                        .expect("write");
                    count += 1;
                }
                count as u64
            })
        })
        .collect();
    let mut total = 0;
    for task in tasks {
        total += task.await.expect("a writer");
    }
    store.close().await.expect("close");
    total
}

async fn fill(path: &Path) {
    let store = EmbeddedStore::open(path).expect("open");
    for n in 0..OBJECTS {
        let write = Write::Create { value: value(n) };
        let key = format!("/registry/pods/default/web-{n}");
        store
            .write(&key, write, Durability::Lazy)
            .await
            .expect("write");
    }
    store.close().await.expect("close");
}

/// What this process has sent to the disk.
fn written_bytes() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = io
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes: "));
    line.and_then(|bytes| bytes.parse().ok()).unwrap_or(0)
}
