//! The store against a naive model, with random writes, compactions and restarts.

use crate::Fixture;
use futures::StreamExt as _;
use proptest::prelude::*;
use std::collections::BTreeMap;
use store::{Durability, Error, Event, RangeRequest, Revision, Store as _, WatchItem, Write};

#[derive(Clone, Debug)]
enum Step {
    /// A write to a key; `stale` makes it expect a wrong revision.
    Put {
        key: u8,
        size: usize,
        stale: bool,
        lazy: bool,
    },
    Delete {
        key: u8,
        stale: bool,
        lazy: bool,
    },
    /// Compaction so far before the newest.
    Compact {
        before: u64,
    },
    Reopen,
    /// A look at a past state, so far before the newest.
    Look {
        before: u64,
        limit: usize,
    },
    /// A watch begun there must show the rest.
    Watch {
        before: u64,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let flag = |percent: u32| prop::bool::weighted(f64::from(percent) / 100.0);
    let step = prop_oneof![
        8 => (0u8..6, 0usize..600, flag(10), flag(30))
            .prop_map(|(key, size, stale, lazy)| Step::Put { key, size, stale, lazy }),
        3 => (0u8..6, flag(10), flag(30))
            .prop_map(|(key, stale, lazy)| Step::Delete { key, stale, lazy }),
        1 => (0u64..20).prop_map(|before| Step::Compact { before }),
        1 => Just(Step::Reopen),
        3 => (0u64..20, 0usize..4).prop_map(|(before, limit)| Step::Look { before, limit }),
        1 => (0u64..20).prop_map(|before| Step::Watch { before }),
    ];
    prop::collection::vec(step, 1..60)
}

/// The state after each revision: value, created and modified by key.
type Keys = BTreeMap<String, (Vec<u8>, u64, u64)>;

struct Model {
    states: Vec<Keys>,
    compacted: u64,
}

impl Model {
    fn newest(&self) -> u64 {
        self.states.len() as u64 - 1
    }

    fn past(&self, before: u64) -> u64 {
        self.newest().saturating_sub(before)
    }

    fn now(&self) -> &Keys {
        self.states.last().expect("never empty")
    }

    fn at(&self, revision: u64) -> &Keys {
        &self.states[usize::try_from(revision).expect("fits")]
    }
}

async fn write(fixture: &Fixture, model: &mut Model, step: &Step) {
    let (key, size, stale, lazy) = match *step {
        Step::Put {
            key,
            size,
            stale,
            lazy,
        } => (key, Some(size), stale, lazy),
        Step::Delete { key, stale, lazy } => (key, None, stale, lazy),
        _ => unreachable!("writes only"),
    };
    let key = format!("/{}/{key}", key % 2);
    let revision = model.newest() + 1;
    let there = model.now().get(&key).cloned();
    let value = size.map(|size| format!("{revision} ").into_bytes().repeat(size));
    let expected = there.as_ref().map_or(1, |(_, _, modified)| *modified) + u64::from(stale);
    let expected = Revision(expected);
    let write = match (&there, &value) {
        (None, Some(value)) if !stale => Write::Create {
            value: value.clone().into(),
        },
        (_, Some(value)) => Write::Update {
            value: value.clone().into(),
            expected,
        },
        (_, None) => Write::Delete { expected },
    };
    let durability = if lazy {
        Durability::Lazy
    } else {
        Durability::Sync
    };
    let result = fixture.store().write(&key, write.clone(), durability).await;
    let mut next = model.now().clone();
    match (write, there) {
        (Write::Create { .. }, _) => {
            next.insert(key, (value.unwrap_or_default(), revision, revision));
        }
        (_, None) => {
            assert!(matches!(result, Err(Error::Conflict(None))), "{result:?}");
            return;
        }
        (_, Some((value, _, modified))) if stale => {
            let Err(Error::Conflict(Some(record))) = result else {
                panic!("{result:?}");
            };
            assert_eq!(
                (&record.value[..], record.modified.0),
                (&value[..], modified)
            );
            return;
        }
        (Write::Delete { .. }, Some(_)) => {
            next.remove(&key);
        }
        (Write::Update { .. }, Some((_, created, _))) => {
            next.insert(key, (value.unwrap_or_default(), created, revision));
        }
    }
    assert_eq!(result.expect("write").modified.0, revision);
    model.states.push(next);
}

async fn look(fixture: &Fixture, model: &Model, at: u64, limit: usize) {
    let request = RangeRequest {
        prefix: "/1/".into(),
        at: Some(Revision(at)),
        limit,
        ..RangeRequest::default()
    };
    let result = fixture.store().range(request).await;
    if at < model.compacted {
        assert!(matches!(result, Err(Error::Compacted(_))), "{result:?}");
        return;
    }
    let range = result.expect("range");
    let records = range.records.iter().map(|record| {
        let value = (record.value.to_vec(), record.created.0, record.modified.0);
        (record.key.to_string(), value)
    });
    let mut all = model.at(at).clone();
    all.retain(|key, _| key.starts_with("/1/"));
    let shown = if limit == 0 {
        all.len()
    } else {
        limit.min(all.len())
    };
    assert_eq!(range.remaining, all.len() - shown);
    assert!(records.eq(all.into_iter().take(shown)));
}

async fn watch(fixture: &Fixture, model: &Model, from: u64) {
    let result = fixture.store().watch("/", Some(Revision(from))).await;
    if from < model.compacted {
        assert!(matches!(result, Err(Error::Compacted(_))));
        return;
    }
    let mut items = result.expect("watch");
    let mut keys = model.at(from).clone();
    let mut reached = from;
    loop {
        match items.next().await.expect("goes on").expect("is well") {
            WatchItem::Events(events) => {
                for event in events.iter() {
                    reached += 1;
                    assert_eq!(event.record.modified.0, reached);
                    apply(&mut keys, event);
                    assert_eq!(&keys, model.at(reached));
                }
            }
            WatchItem::Progress(at) => {
                assert_eq!((at.0, reached), (model.newest(), model.newest()));
                return;
            }
        }
    }
}

fn apply(keys: &mut Keys, event: &Event) {
    let record = &event.record;
    let old = match event.kind {
        store::EventKind::Deleted => keys.remove(&*record.key),
        _ => {
            let value = (record.value.to_vec(), record.created.0, record.modified.0);
            keys.insert(record.key.to_string(), value)
        }
    };
    assert_eq!(
        event.previous.as_deref(),
        old.as_ref().map(|(value, _, _)| &value[..])
    );
}

async fn run(steps: Vec<Step>) {
    let mut fixture = Fixture::new();
    let mut model = Model {
        states: vec![Keys::new()],
        compacted: 0,
    };
    for step in steps {
        match step {
            Step::Put { .. } | Step::Delete { .. } => write(&fixture, &mut model, &step).await,
            Step::Compact { before } => {
                let at = model.past(before);
                fixture
                    .store()
                    .compact(Revision(at))
                    .await
                    .expect("compact");
                model.compacted = model.compacted.max(at);
            }
            Step::Reopen => fixture.reopen(),
            Step::Look { before, limit } => look(&fixture, &model, model.past(before), limit).await,
            Step::Watch { before } => watch(&fixture, &model, model.past(before)).await,
        }
    }
    look(&fixture, &model, model.newest(), 0).await;
    let count = fixture.store().count("/").await.expect("count");
    assert_eq!(count, model.now().len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn store_is_the_model(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(run(steps));
    }
}
