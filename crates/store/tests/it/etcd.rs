//! The store in etcd while members of the cluster die.

use crate::update;
use futures::StreamExt as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use store::{
    Durability, Error, EtcdStore, RangeRequest, Revision, Snapshot, Store, WatchItem, Write,
};
use testkit::{Etcd, Pki};

/// Writers at once.
const WRITERS: usize = 4;
/// Acknowledged writes between two faults.
const BETWEEN: usize = 100;

/// Overwrites a key of its own until `enough`; the values that were acknowledged, in order.
async fn writer(store: &EtcdStore, key: &str, done: &AtomicUsize, enough: usize) -> Vec<String> {
    let mut acknowledged = Vec::new();
    let mut at: Option<Revision> = None;
    while done.load(Ordering::Relaxed) < enough {
        let value = acknowledged.len().to_string();
        let write = match at {
            None => Write::Create {
                value: value.clone().into(),
            },
            Some(expected) => Write::Update {
                value: value.clone().into(),
                expected,
            },
        };
        let made = store.write(key, write, Durability::Sync).await;
        at = Some(made.expect("a write waits, and is not lost").modified);
        acknowledged.push(value);
        done.fetch_add(1, Ordering::Relaxed);
    }
    acknowledged
}

/// Waits for so many acknowledged writes.
async fn reached(done: &AtomicUsize, count: usize) {
    while done.load(Ordering::Relaxed) < count {
        tokio::task::yield_now().await;
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_write_is_lost_with_any_member() {
    let mut etcd = Etcd::start(3).expect("etcd starts");
    let store = EtcdStore::connect(&etcd.config()).await.expect("connects");
    let mut seen = store.watch("/w/", None).await.expect("watch");
    let done = AtomicUsize::new(0);
    let enough = BETWEEN * 4;
    let writers = async {
        let keys: Vec<String> = (0..WRITERS).map(|n| format!("/w/{n}")).collect();
        let writers = keys.iter().map(|key| writer(&store, key, &done, enough));
        futures::future::join_all(writers).await
    };
    let faults = async {
        // One of them leads; whichever it is, it dies once.
        for member in 0..3 {
            reached(&done, BETWEEN * (member + 1)).await;
            etcd.kill(member);
            reached(&done, BETWEEN * (member + 1) + BETWEEN / 2).await;
            etcd.restart(member).expect("it starts again");
        }
    };
    let (acknowledged, ()) = tokio::join!(writers, faults);
    for (n, values) in acknowledged.iter().enumerate() {
        let key = format!("/w/{n}");
        let there = store.get(&key, None).await.expect("get").expect("is there");
        assert_eq!(there.value, values.last().expect("some").as_bytes());
    }
    // What was seen until the first fault, and from there on again, is each write once.
    let mut last = Revision(0);
    let mut told: Vec<Vec<String>> = vec![Vec::new(); WRITERS];
    let newest = store.revision().await.expect("revision");
    while last < newest {
        match seen.next().await {
            Some(Ok(WatchItem::Events(events))) => {
                for event in events.iter() {
                    assert!(event.record.modified > last);
                    last = event.record.modified;
                    let n: usize = event.record.key["/w/".len()..].parse().expect("a number");
                    told[n].push(String::from_utf8_lossy(&event.record.value).into_owned());
                }
            }
            Some(Ok(WatchItem::Progress(at))) => last = last.max(at),
            Some(Err(Error::Unavailable(_))) | None => {
                seen = store.watch("/w/", Some(last)).await.expect("watch again");
            }
            Some(Err(error)) => panic!("{error:?}"),
        }
    }
    assert_eq!(told, acknowledged);
}

#[tokio::test]
async fn without_a_quorum_a_write_fails_and_says_so() {
    let mut etcd = Etcd::start(1).expect("etcd starts");
    let store = EtcdStore::connect(&etcd.config()).await.expect("connects");
    let made = crate::create(&store, "/a", "1").await;
    etcd.kill(0);
    let write = Write::Update {
        value: "2".into(),
        expected: made.modified,
    };
    let failed = store.write("/a", write, Durability::Sync).await;
    assert!(matches!(failed, Err(Error::Unavailable(_))), "{failed:?}");
    etcd.restart(0).expect("it starts again");
    update(&store, "/a", "3", made.modified).await;
}

#[tokio::test]
async fn members_and_clients_prove_themselves() {
    let pki = Pki::new().expect("keys");
    let etcd = Etcd::start_tls(&pki).expect("etcd starts");
    let config = etcd.config();
    let store = EtcdStore::connect(&config).await.expect("connects");
    crate::create(&store, "/a", "1").await;
    let nobody = store::etcd::Config {
        identity: None,
        ..config.clone()
    };
    let refused = EtcdStore::connect(&nobody).await;
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    let stranger = store::etcd::Config {
        ca_pem: Some(Pki::new().expect("keys").ca_cert),
        ..config
    };
    let refused = EtcdStore::connect(&stranger).await;
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
}

#[tokio::test]
async fn a_store_moves_to_etcd_and_back() {
    let first = crate::Fixture::new();
    let mut at = crate::create(first.store(), "/a", "1").await.modified;
    for n in 0..100 {
        at = update(first.store(), "/a", &n.to_string(), at)
            .await
            .modified;
    }
    crate::create(first.store(), "/b/c", &"long ".repeat(1000)).await;
    let before = Snapshot::of(first.store()).await.expect("snapshot");

    let etcd = Etcd::start(1).expect("etcd starts");
    let second = EtcdStore::connect(&etcd.config()).await.expect("connects");
    before.put_into(&second, |_| ()).await.expect("it is empty");
    let there = Snapshot::of(&second).await.expect("snapshot");
    assert_eq!(there.records, before.records);
    assert!(there.revision > before.revision);
    let again = before.put_into(&second, |_| ()).await;
    assert!(matches!(again, Err(Error::Exists(_))), "{again:?}");

    let third = crate::Fixture::new();
    let copied = there.put_into(third.store(), |_| ()).await;
    copied.expect("it is empty");
    let back = Snapshot::of(third.store()).await.expect("snapshot");
    assert_eq!(back.records, before.records);
    assert!(back.revision > there.revision);
}

#[tokio::test]
async fn two_prefixes_are_two_stores() {
    let etcd = Etcd::start(1).expect("etcd starts");
    let with = |prefix: &str| store::etcd::Config {
        prefix: prefix.to_owned(),
        ..etcd.config()
    };
    let whole = EtcdStore::connect(&etcd.config()).await.expect("connects");
    let a = EtcdStore::connect(&with("/a")).await.expect("connects");
    let b = EtcdStore::connect(&with("/b")).await.expect("connects");
    let mut seen = b.watch("/k/", None).await.expect("watch");
    let all = || RangeRequest {
        prefix: "/k/".to_owned(),
        ..RangeRequest::default()
    };
    for n in 0..3 {
        crate::create(&a, &format!("/k/{n}"), "a").await;
    }
    let made = crate::create(&b, "/k/1", "b").await;
    assert_eq!(&*made.key, "/k/1");
    assert_eq!(b.get("/k/1", None).await.expect("get"), Some(made.clone()));
    assert_eq!(b.get("/k/0", None).await.expect("get"), None);
    let found = b.range(all()).await.expect("range").records;
    assert_eq!(found, std::slice::from_ref(&made));
    assert_eq!(a.count("/k/").await.expect("count"), 3);
    let page = a
        .range(RangeRequest {
            after: Some("/k/0".to_owned()),
            limit: 1,
            ..all()
        })
        .await
        .expect("range");
    assert_eq!((&*page.records[0].key, page.remaining), ("/k/1", 1));
    // Of others a watch hears only that time goes on.
    loop {
        match seen.next().await.expect("an item").expect("an item") {
            WatchItem::Progress(_) => {}
            WatchItem::Events(events) => {
                assert_eq!(events[0].record, made);
                break;
            }
        }
    }
    crate::delete(&b, "/k/1", made.modified).await;
    assert_eq!(whole.count("/a/k/").await.expect("count"), 3);
    assert_eq!(whole.count("").await.expect("count"), 3);
}
