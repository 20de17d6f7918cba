//! What garbage collection takes and what it leaves.

use crate::fake::{Fake, big_wasm};
use crate::{HELLO, store};
use images::{GcPolicy, PullOptions};
use std::collections::HashSet;
use std::time::{Duration, SystemTime};

/// A policy that takes all it may, as if a day had passed.
fn all(in_use: &[String]) -> GcPolicy {
    GcPolicy {
        in_use: in_use.iter().cloned().collect::<HashSet<_>>(),
        high_percent: 0,
        low_percent: 0,
        min_age: Duration::from_secs(60),
        now: SystemTime::now() + Duration::from_secs(86_400),
    }
}

#[tokio::test]
async fn unused_images_go_and_used_ones_stay() {
    let (fake, (_dir, store)) = (Fake::start().await, store());
    let mut images = Vec::new();
    for tag in ["1", "2", "3"] {
        fake.artifact(tag, big_wasm(1000 + tag.len() * images.len()));
        let name = fake.name(&format!("app:{tag}"));
        images.push(store.pull(&name, PullOptions::default()).await.unwrap());
    }
    // By image id, as pods name what they use.
    let report = store.gc(all(&[images[0].id()])).await.unwrap();
    let mut removed = report.removed.clone();
    removed.sort();
    assert_eq!(
        removed,
        [images[1].reference.clone(), images[2].reference.clone()]
    );
    assert!(report.freed_bytes > 2000, "{report:?}");
    assert_eq!(
        store.get(&images[0].reference, None).unwrap().as_ref(),
        Some(&images[0])
    );
    assert_eq!(store.get(&images[1].reference, None).unwrap(), None);
    // What went can be had again.
    store
        .pull(&images[1].reference, PullOptions::default())
        .await
        .unwrap();
}

#[tokio::test]
async fn what_was_just_used_stays() {
    let (fake, (_dir, store)) = (Fake::start().await, store());
    fake.artifact("1", HELLO);
    store
        .pull(&fake.name("app:1"), PullOptions::default())
        .await
        .unwrap();
    let policy = GcPolicy {
        now: SystemTime::now(),
        ..all(&[])
    };
    let report = store.gc(policy).await.unwrap();
    assert_eq!((report.removed.len(), report.freed_bytes), (0, 0));
}

#[tokio::test]
async fn a_tag_that_moved_leaves_what_pods_still_run() {
    let (fake, (_dir, store)) = (Fake::start().await, store());
    let name = fake.name("app:1");
    fake.artifact("1", HELLO);
    let always = PullOptions {
        policy: images::Policy::Always,
        ..PullOptions::default()
    };
    let old = store.pull(&name, always.clone()).await.unwrap();
    fake.artifact("1", big_wasm(500));
    let new = store.pull(&name, always).await.unwrap();
    store.gc(all(&[old.id(), new.id()])).await.unwrap();
    let by_digest = name.at(old.digest.clone());
    assert!(store.get(&by_digest, None).unwrap().is_some());
    let report = store.gc(all(&[new.id()])).await.unwrap();
    assert_eq!(report.removed, std::slice::from_ref(&by_digest));
    assert_eq!(store.get(&by_digest, None).unwrap(), None);
    assert!(store.get(&name, None).unwrap().is_some());
}

#[tokio::test]
async fn removing_a_name_leaves_what_pods_still_run() {
    let (fake, (_dir, store)) = (Fake::start().await, store());
    let name = fake.name("app:1");
    fake.artifact("1", HELLO);
    let pull = || store.pull(&name, PullOptions::default());
    let image = pull().await.unwrap();
    let bytes = || async { store.usage().await.unwrap().bytes };
    let full = bytes().await;
    assert!(store.remove(&name, all(&[image.id()])).await.unwrap());
    assert_eq!(store.get(&name, None).unwrap(), None);
    assert!(full - bytes().await < HELLO.len() as u64);
    let again = pull().await.unwrap();
    assert_eq!(again.kind, image.kind);
    assert!(store.remove(&name, all(&[])).await.unwrap());
    assert!(bytes().await < 2000);
}

#[tokio::test]
async fn removing_a_name_leaves_what_others_share() {
    let (fake, (_dir, store)) = (Fake::start().await, store());
    fake.artifact("1", HELLO);
    fake.artifact("2", HELLO);
    for tag in ["app:1", "app:2"] {
        store
            .pull(&fake.name(tag), PullOptions::default())
            .await
            .unwrap();
    }
    assert!(
        store
            .remove(&fake.name("app:1"), GcPolicy::default())
            .await
            .unwrap()
    );
    assert!(
        !store
            .remove(&fake.name("app:1"), GcPolicy::default())
            .await
            .unwrap()
    );
    store
        .gc(GcPolicy {
            high_percent: 100,
            ..all(&[])
        })
        .await
        .unwrap();
    assert_eq!(store.get(&fake.name("app:1"), None).unwrap(), None);
    assert!(store.get(&fake.name("app:2"), None).unwrap().is_some());
    let usage = store.usage().await.unwrap();
    assert_eq!(usage.images, 1);
    assert!(usage.bytes >= HELLO.len() as u64 && usage.capacity_bytes > usage.available_bytes);
    store
        .remove(&fake.name("app:2"), GcPolicy::default())
        .await
        .unwrap();
    store
        .gc(GcPolicy {
            high_percent: 100,
            ..all(&[])
        })
        .await
        .unwrap();
    assert!(store.usage().await.unwrap().bytes < 2000);
}
