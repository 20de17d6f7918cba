//! The semantics of trait `Store`, one test each, over any implementation.

use crate::{Fixture, create, delete, update};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use store::{Durability, Error, Event, EventKind, RangeRequest, Revision, Store, WatchItem, Write};

type Items = BoxStream<'static, Result<WatchItem, Error>>;

/// Reads until `count` events have come; progress in between must not run ahead of them.
async fn events(items: &mut Items, count: usize) -> Vec<Event> {
    let mut all: Vec<Event> = Vec::new();
    while all.len() < count {
        match items
            .next()
            .await
            .expect("the watch goes on")
            .expect("it is well")
        {
            WatchItem::Events(events) => all.extend(events.iter().cloned()),
            WatchItem::Progress(_) => {}
        }
    }
    assert_eq!(all.len(), count, "{all:?}");
    assert!(
        all.windows(2)
            .all(|w| w[0].record.modified < w[1].record.modified)
    );
    all
}

fn summary(events: &[Event]) -> Vec<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    events
        .iter()
        .map(|event| {
            let kind = match event.kind {
                EventKind::Created => "+",
                EventKind::Updated => "~",
                EventKind::Deleted => "-",
            };
            let previous = event.previous.as_deref().map(text).unwrap_or_default();
            let value = text(&event.record.value);
            format!("{kind}{} {previous}>{value}", event.record.key)
        })
        .collect()
}

async fn keys(store: &dyn Store, request: RangeRequest) -> (Vec<String>, usize) {
    let range = store.range(request).await.expect("range");
    let keys = range.records.iter().map(|r| r.key.to_string()).collect();
    (keys, range.remaining)
}

fn prefix(prefix: &str) -> RangeRequest {
    RangeRequest {
        prefix: prefix.into(),
        ..RangeRequest::default()
    }
}

pub(crate) async fn writes_compare(store: &dyn Store) {
    let made = create(store, "/a", "1").await;
    assert_eq!((made.created, made.modified), (made.modified, made.created));
    let write = Write::Create { value: "2".into() };
    let again = store.write("/a", write, Durability::Sync).await;
    assert!(matches!(again, Err(Error::Exists(at)) if at == made.modified));

    let updated = update(store, "/a", "2", made.modified).await;
    assert_eq!(updated.created, made.created);
    assert!(updated.modified > made.modified);
    for write in [
        Write::Update {
            value: "3".into(),
            expected: made.modified,
        },
        Write::Delete {
            expected: made.modified,
        },
    ] {
        match store.write("/a", write, Durability::Sync).await {
            Err(Error::Conflict(Some(there))) => assert_eq!(there, updated),
            other => panic!("{other:?}"),
        }
    }
    let absent = Write::Delete {
        expected: Revision(1),
    };
    let absent = store.write("/none", absent, Durability::Sync).await;
    assert!(matches!(absent, Err(Error::Conflict(None))));

    let deleted = delete(store, "/a", updated.modified).await;
    assert_eq!(&deleted.value[..], b"2");
    assert!(deleted.modified > updated.modified);
    assert_eq!(store.get("/a", None).await.expect("get"), None);
    let again = create(store, "/a", "4").await;
    assert_eq!(again.created, again.modified);
    assert_eq!(store.get("/a", None).await.expect("get"), Some(again));
}

pub(crate) async fn reads_the_past(store: &dyn Store) {
    let a1 = create(store, "/p/a", "1").await;
    let b1 = create(store, "/p/b", "1").await;
    let a2 = update(store, "/p/a", "2", a1.modified).await;
    let b2 = delete(store, "/p/b", b1.modified).await;
    let at = |at: Revision| async move { store.get("/p/a", Some(at)).await.expect("get") };
    assert_eq!(at(a1.modified).await, Some(a1.clone()));
    assert_eq!(at(b2.modified).await, Some(a2.clone()));
    let past = RangeRequest {
        at: Some(b1.modified),
        ..prefix("/p/")
    };
    let past = store.range(past).await.expect("range");
    assert_eq!(past.records, [a1, b1.clone()]);
    assert_eq!(past.revision, b1.modified);
    assert_eq!(store.count("/p/").await.expect("count"), 1);

    let newest = store.revision().await.expect("revision");
    assert_eq!(newest, b2.modified);
    let future = Some(Revision(newest.0 + 1));
    assert!(matches!(
        store.get("/p/a", future).await,
        Err(Error::Future(at)) if at == newest
    ));
    assert!(matches!(
        store.watch("/", future).await,
        Err(Error::Future(_))
    ));
}

pub(crate) async fn pages_in_order(store: &dyn Store) {
    for key in ["/q/c", "/q/a", "/qq", "/q/b", "/q", "/q/a/x"] {
        create(store, key, "v").await;
    }
    let first = RangeRequest {
        limit: 2,
        ..prefix("/q/")
    };
    let first = keys(store, first).await;
    assert_eq!(first, (vec!["/q/a".into(), "/q/a/x".into()], 2));
    let rest = RangeRequest {
        limit: 2,
        after: Some("/q/a/x".into()),
        ..prefix("/q/")
    };
    let rest = keys(store, rest).await;
    assert_eq!(rest, (vec!["/q/b".into(), "/q/c".into()], 0));
    assert_eq!(keys(store, prefix("/nothing")).await, (vec![], 0));
}

pub(crate) async fn reads_more_than_a_page(store: &dyn Store) {
    for n in 0..2_101 {
        let write = Write::Create { value: "v".into() };
        let key = format!("/many/{n:04}");
        store
            .write(&key, write, Durability::Lazy)
            .await
            .expect("create");
    }
    let (all, remaining) = keys(store, prefix("/many/")).await;
    assert_eq!((all.len(), remaining), (2_101, 0));
    assert!(all.is_sorted());
    let limited = RangeRequest {
        limit: 1_500,
        ..prefix("/many/")
    };
    let (some, remaining) = keys(store, limited).await;
    assert_eq!((some.as_slice(), remaining), (&all[..1_500], 601));
}

pub(crate) async fn watches_from_the_past_into_the_future(store: &dyn Store) {
    let start = store.revision().await.expect("revision");
    let a = create(store, "/w/a", "1").await;
    create(store, "/other", "1").await;
    let a = update(store, "/w/a", "2", a.modified).await;
    let mut from_start = store.watch("/w/", Some(start)).await.expect("watch");
    let mut from_here = store.watch("/w/", None).await.expect("watch");
    let mut from_middle = store.watch("/w/", Some(a.created)).await.expect("watch");
    delete(store, "/w/a", a.modified).await;
    create(store, "/w/b", "3").await;
    let all = ["+/w/a >1", "~/w/a 1>2", "-/w/a 2>", "+/w/b >3"];
    assert_eq!(summary(&events(&mut from_start, 4).await), all);
    assert_eq!(summary(&events(&mut from_middle, 3).await), all[1..]);
    assert_eq!(summary(&events(&mut from_here, 2).await), all[2..]);
}

pub(crate) async fn tells_progress(store: &dyn Store) {
    let mut items = store.watch("/quiet/", None).await.expect("watch");
    let other = create(store, "/loud", "1").await;
    loop {
        match items.next().await.expect("it goes on").expect("it is well") {
            WatchItem::Progress(at) if at >= other.modified => break,
            WatchItem::Progress(_) => {}
            WatchItem::Events(events) => panic!("{events:?}"),
        }
    }
}

pub(crate) async fn compacts(store: &dyn Store) {
    let a1 = create(store, "/k/a", "1").await;
    let b1 = create(store, "/k/b", "1").await;
    let a2 = update(store, "/k/a", "2", a1.modified).await;
    let b2 = delete(store, "/k/b", b1.modified).await;
    let a3 = update(store, "/k/a", "3", a2.modified).await;
    store.compact(b2.modified).await.expect("compact");
    store.compact(b2.modified).await.expect("compact again");
    store.compact(a1.modified).await.expect("compact below");

    let below = Some(a2.modified);
    for result in [
        store.get("/k/a", below).await.map(|_| ()),
        store.watch("/k/", below).await.map(|_| ()),
        store
            .range(RangeRequest {
                at: below,
                ..prefix("/k/")
            })
            .await
            .map(|_| ()),
    ] {
        assert!(matches!(result, Err(Error::Compacted(at)) if at == b2.modified));
    }
    let there = store.get("/k/a", Some(b2.modified)).await.expect("get");
    assert_eq!(there, Some(a2));
    assert_eq!(
        store.get("/k/a", None).await.expect("get"),
        Some(a3.clone())
    );
    let mut items = store.watch("/k/", Some(b2.modified)).await.expect("watch");
    assert_eq!(summary(&events(&mut items, 1).await), ["~/k/a 2>3"]);
    let future = Revision(a3.modified.0 + 1);
    assert!(matches!(store.compact(future).await, Err(Error::Future(_))));
}

pub(crate) async fn lazy_writes_are_like_others(store: &dyn Store) {
    let start = store.revision().await.expect("revision");
    let mut live = store.watch("/l/", None).await.expect("watch");
    let mut expected = None;
    for value in ["1", "2", "3"] {
        let value = value.into();
        let write = match expected {
            None => Write::Create { value },
            Some(expected) => Write::Update { value, expected },
        };
        let made = store.write("/l/a", write, Durability::Lazy).await;
        expected = Some(made.expect("write").modified);
    }
    let mut replayed = store.watch("/l/", Some(start)).await.expect("watch");
    let all = ["+/l/a >1", "~/l/a 1>2", "~/l/a 2>3"];
    assert_eq!(summary(&events(&mut live, 3).await), all);
    assert_eq!(summary(&events(&mut replayed, 3).await), all);
    let at = Some(Revision(expected.expect("written").0 - 1));
    let there = store.get("/l/a", at).await.expect("get").expect("is there");
    assert_eq!(&there.value[..], b"2");
    let durable = create(store, "/l/b", "1").await;
    assert!(Some(durable.modified) > expected);
    let range = store.range(prefix("/l/")).await.expect("range");
    assert_eq!(range.records.len(), 2);
}

pub(crate) async fn drops_slow_watchers(store: &dyn Store) {
    let mut slow = store.watch("/s/", None).await.expect("watch");
    let mut at = create(store, "/s/a", "0").await.modified;
    // More than any store should hold for a watcher that does not read.
    for round in 0..5_000 {
        let write = Write::Update {
            value: round.to_string().into(),
            expected: at,
        };
        let made = store.write("/s/a", write, Durability::Lazy).await;
        at = made.expect("update").modified;
    }
    let mut told = 0;
    let error = loop {
        match slow.next().await.expect("an error comes before the end") {
            Ok(WatchItem::Events(events)) => told += events.len(),
            Ok(WatchItem::Progress(_)) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Slow), "{error:?}");
    assert!(told < 5_000);
    assert!(slow.next().await.is_none());
}

pub(crate) async fn keeps_all_sizes(store: &dyn Store) {
    let noise: Vec<u8> = (0..1_500_000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    for size in [0, 1, 127, 128, 5_000, 9_000, noise.len()] {
        for (kind, value) in [("noise", noise[..size].to_vec()), ("same", vec![7; size])] {
            let key = format!("/z/{kind}/{size}");
            let write = Write::Create {
                value: value.into(),
            };
            store
                .write(&key, write, Durability::Sync)
                .await
                .expect("create");
        }
    }
    let range = store.range(prefix("/z/")).await.expect("range");
    assert_eq!(range.records.len(), 14);
    for record in range.records {
        let size: usize = record
            .key
            .rsplit('/')
            .next()
            .and_then(|s| s.parse().ok())
            .expect("size");
        let same = record.key.contains("same") && record.value.iter().all(|b| *b == 7);
        assert!(record.value.len() == size && (same || record.value[..] == noise[..size]));
    }
}

pub(crate) async fn is_closed_for_all(store: &dyn Store) {
    let a = create(store, "/a", "1").await;
    let mut items = store.watch("/", None).await.expect("watch");
    store.close().await.expect("close");
    store.close().await.expect("close again");
    let write = Write::Delete {
        expected: a.modified,
    };
    assert!(matches!(
        store.write("/a", write, Durability::Sync).await,
        Err(Error::Closed)
    ));
    assert!(matches!(store.get("/a", None).await, Err(Error::Closed)));
    assert!(matches!(store.revision().await, Err(Error::Closed)));
    assert!(matches!(store.watch("/", None).await, Err(Error::Closed)));
    while let Some(item) = items.next().await {
        assert!(
            matches!(item, Ok(WatchItem::Progress(_)) | Err(Error::Closed)),
            "{item:?}"
        );
    }
}

macro_rules! every_store {
    ($($name:ident)*) => {
        mod embedded {
            $(
                #[tokio::test]
                async fn $name() {
                    let fixture = super::Fixture::new();
                    super::$name(fixture.store()).await;
                }
            )*
        }

        mod etcd {
            $(
                #[tokio::test]
                async fn $name() {
                    let etcd = testkit::Etcd::start(1).expect("etcd starts");
                    let store = store::EtcdStore::connect(&etcd.config()).await;
                    super::$name(&store.expect("the store connects")).await;
                }
            )*
        }
    };
}

every_store! {
    writes_compare
    reads_the_past
    pages_in_order
    reads_more_than_a_page
    watches_from_the_past_into_the_future
    tells_progress
    compacts
    lazy_writes_are_like_others
    drops_slow_watchers
    keeps_all_sizes
    is_closed_for_all
}

/// Values not in memory any more come from the file, past ones too.
#[tokio::test]
async fn reopened_store_is_the_same() {
    let mut fixture = Fixture::new();
    let start = fixture.store().revision().await.expect("revision");
    let a1 = create(fixture.store(), "/a", "1").await;
    let a2 = update(fixture.store(), "/a", "2", a1.modified).await;
    let b = create(fixture.store(), "/b", &"long ".repeat(1000)).await;
    fixture.reopen();
    let store = fixture.store();
    assert_eq!(store.revision().await.expect("revision"), b.modified);
    assert_eq!(store.get("/b", None).await.expect("get"), Some(b.clone()));
    let past = store.get("/a", Some(a1.modified)).await.expect("get");
    assert_eq!(past, Some(a1));
    let range = store.range(prefix("/")).await.expect("range");
    assert_eq!(range.records, [a2, b]);
    let mut items = store.watch("/a", Some(start)).await.expect("watch");
    assert_eq!(summary(&events(&mut items, 2).await), ["+/a >1", "~/a 1>2"]);
}
