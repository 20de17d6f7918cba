//! `wasi:keyvalue` 0.2.0-draft: a pod's own store, in memory.
//!
//! All containers and instances of a pod share it, so that what one request keeps the next one
//! finds; it is gone with the pod. For more than that there are volumes and other services.

use crate::state::ComponentState;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Lift, Linker, Lower, Resource, ResourceType};

/// Keys and values of a pod together; what is past it is refused with an error.
const BYTES_MAX: usize = 16 << 20;

/// What a key costs besides its bytes and its value's, about.
const ENTRY_BYTES: usize = 64;

/// Keys that one `list-keys` gives; the cursor goes on.
const KEYS_LISTED_MAX: usize = 1000;

/// A pod's store. Empty at first.
#[derive(Debug, Default)]
pub struct KeyValue(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// By bucket and key.
    values: BTreeMap<(String, String), Vec<u8>>,
    bytes: usize,
}

impl Inner {
    fn set(&mut self, bucket: &str, key: String, value: Vec<u8>) -> Result<(), Error> {
        let cost = ENTRY_BYTES + bucket.len() + key.len();
        let old = self.get(bucket, &key).map_or(0, |old| cost + old.len());
        let bytes = self.bytes - old + cost + value.len();
        if bytes > BYTES_MAX {
            return Err(Error::Other(format!(
                "the pod's store is full: it holds {BYTES_MAX} bytes at most"
            )));
        }
        self.bytes = bytes;
        self.values.insert((bucket.to_owned(), key), value);
        Ok(())
    }

    fn get(&self, bucket: &str, key: &str) -> Option<&Vec<u8>> {
        self.values.get(&(bucket.to_owned(), key.to_owned()))
    }

    fn delete(&mut self, bucket: &str, key: String) {
        if let Some(value) = self.values.remove(&(bucket.to_owned(), key.clone())) {
            self.bytes -= ENTRY_BYTES + bucket.len() + key.len() + value.len();
        }
    }
}

/// `wasi:keyvalue/store.error`.
#[derive(Clone, Debug, PartialEq, Eq, ComponentType, Lift, Lower)]
#[component(variant)]
enum Error {
    #[component(name = "no-such-store")]
    NoSuchStore,
    #[component(name = "access-denied")]
    AccessDenied,
    #[component(name = "other")]
    Other(String),
}

#[derive(ComponentType, Lower)]
#[component(record)]
struct KeyResponse {
    keys: Vec<String>,
    cursor: Option<u64>,
}

/// An open bucket: its name.
struct Bucket(String);

type Store<'a> = StoreContextMut<'a, ComponentState>;
type Said<T> = wasmtime::Result<(Result<T, Error>,)>;
type Pair = (String, Vec<u8>);

/// Runs with the pod's store locked and the bucket's name.
fn with<T>(
    store: &Store<'_>,
    bucket: &Resource<Bucket>,
    work: impl FnOnce(&mut Inner, &str) -> Result<T, Error>,
) -> Said<T> {
    let state = store.data();
    let bucket = state.table.get(bucket)?;
    Ok((work(&mut state.egress.around.store.0.lock(), &bucket.0),))
}

pub(crate) fn link(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    let mut store = linker.instance("wasi:keyvalue/store@0.2.0-draft")?;
    store.resource(
        "bucket",
        ResourceType::host::<Bucket>(),
        |mut store, rep| {
            let table = &mut store.data_mut().table;
            table.delete(Resource::<Bucket>::new_own(rep))?;
            Ok(())
        },
    )?;
    store.func_wrap("open", |mut store: Store<'_>, (name,): (String,)| {
        let bucket = store.data_mut().table.push(Bucket(name))?;
        Ok((Ok::<_, Error>(bucket),))
    })?;
    store.func_wrap(
        "[method]bucket.get",
        |store: Store<'_>, (bucket, key): (Resource<Bucket>, String)| {
            with(&store, &bucket, |kv, name| Ok(kv.get(name, &key).cloned()))
        },
    )?;
    store.func_wrap(
        "[method]bucket.set",
        |store: Store<'_>, (bucket, key, value): (Resource<Bucket>, String, Vec<u8>)| {
            with(&store, &bucket, |kv, name| kv.set(name, key, value))
        },
    )?;
    store.func_wrap(
        "[method]bucket.delete",
        |store: Store<'_>, (bucket, key): (Resource<Bucket>, String)| {
            with(&store, &bucket, |kv, name| {
                kv.delete(name, key);
                Ok(())
            })
        },
    )?;
    store.func_wrap(
        "[method]bucket.exists",
        |store: Store<'_>, (bucket, key): (Resource<Bucket>, String)| {
            with(&store, &bucket, |kv, name| Ok(kv.get(name, &key).is_some()))
        },
    )?;
    store.func_wrap(
        "[method]bucket.list-keys",
        |store: Store<'_>, (bucket, cursor): (Resource<Bucket>, Option<u64>)| {
            with(&store, &bucket, |kv, name| Ok(list(kv, name, cursor)))
        },
    )?;
    let mut atomics = linker.instance("wasi:keyvalue/atomics@0.2.0-draft")?;
    atomics.func_wrap(
        "increment",
        |store: Store<'_>, (bucket, key, delta): (Resource<Bucket>, String, u64)| {
            with(&store, &bucket, |kv, name| increment(kv, name, key, delta))
        },
    )?;
    link_batch(linker)
}

fn link_batch(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    let mut batch = linker.instance("wasi:keyvalue/batch@0.2.0-draft")?;
    batch.func_wrap(
        "get-many",
        |store: Store<'_>, (bucket, keys): (Resource<Bucket>, Vec<String>)| {
            with(&store, &bucket, |kv, name| {
                let find = |key: String| {
                    let value = kv.get(name, &key).cloned();
                    value.map(|value| (key, value))
                };
                Ok(keys.into_iter().map(find).collect::<Vec<Option<Pair>>>())
            })
        },
    )?;
    batch.func_wrap(
        "set-many",
        |store: Store<'_>, (bucket, pairs): (Resource<Bucket>, Vec<Pair>)| {
            with(&store, &bucket, |kv, name| {
                let mut pairs = pairs.into_iter();
                pairs.try_for_each(|(key, value)| kv.set(name, key, value))
            })
        },
    )?;
    batch.func_wrap(
        "delete-many",
        |store: Store<'_>, (bucket, keys): (Resource<Bucket>, Vec<String>)| {
            with(&store, &bucket, |kv, name| {
                keys.into_iter().for_each(|key| kv.delete(name, key));
                Ok(())
            })
        },
    )
}

/// The cursor counts keys, which are sorted.
fn list(kv: &Inner, bucket: &str, cursor: Option<u64>) -> KeyResponse {
    let skip = usize::try_from(cursor.unwrap_or(0)).unwrap_or(usize::MAX);
    let all = kv
        .values
        .range((bucket.to_owned(), String::new())..)
        .take_while(|((of, _), _)| of == bucket)
        .skip(skip);
    let mut keys: Vec<String> = all
        .take(KEYS_LISTED_MAX + 1)
        .map(|((_, key), _)| key.clone())
        .collect();
    let more = keys.len() > KEYS_LISTED_MAX;
    keys.truncate(KEYS_LISTED_MAX);
    KeyResponse {
        keys,
        cursor: more.then(|| (skip + KEYS_LISTED_MAX) as u64),
    }
}

/// Numbers are kept as decimal text, so that `get` shows them.
fn increment(kv: &mut Inner, bucket: &str, key: String, delta: u64) -> Result<u64, Error> {
    let now = match kv.get(bucket, &key) {
        None => 0,
        Some(text) => std::str::from_utf8(text)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
            .ok_or_else(|| Error::Other(format!("the value of {key:?} is no number")))?,
    };
    let next = now
        .checked_add(delta)
        .ok_or_else(|| Error::Other(format!("the value of {key:?} would be too large")))?;
    kv.set(bucket, key, next.to_string().into_bytes())?;
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_is_bounded_and_counts_what_it_holds() {
        let mut kv = Inner::default();
        let set = |kv: &mut Inner, key: &str, bytes| kv.set("", key.into(), vec![0; bytes]);
        assert_eq!(set(&mut kv, "a", 10 << 20), Ok(()));
        assert!(matches!(set(&mut kv, "b", 7 << 20), Err(Error::Other(_))));
        assert_eq!(set(&mut kv, "a", 1 << 20), Ok(()), "in place of the old");
        assert_eq!(set(&mut kv, "b", 7 << 20), Ok(()));
        kv.delete("", "a".into());
        kv.delete("", "b".into());
        kv.delete("", "b".into());
        assert_eq!(kv.bytes, 0);
    }

    #[test]
    fn keys_are_listed_by_pages_and_bucket() {
        let mut kv = Inner::default();
        for n in 0..1500 {
            kv.set("many", format!("{n:04}"), Vec::new()).unwrap();
        }
        kv.set("mine", "own".into(), Vec::new()).unwrap();
        let first = list(&kv, "many", None);
        assert_eq!((first.keys.len(), first.cursor), (1000, Some(1000)));
        let rest = list(&kv, "many", first.cursor);
        assert_eq!((rest.keys.len(), rest.cursor), (500, None));
        assert_eq!(list(&kv, "mine", Some(u64::MAX)).keys, Vec::<String>::new());
        assert_eq!(list(&kv, "mine", None).keys, ["own"]);
    }

    #[test]
    fn increments() {
        let mut kv = Inner::default();
        assert_eq!(increment(&mut kv, "", "n".into(), 2), Ok(2));
        assert_eq!(increment(&mut kv, "", "n".into(), 3), Ok(5));
        assert_eq!(kv.get("", "n"), Some(&b"5".to_vec()));
        assert!(increment(&mut kv, "", "n".into(), u64::MAX).is_err());
        kv.set("", "t".into(), b"text".to_vec()).unwrap();
        assert!(increment(&mut kv, "", "t".into(), 1).is_err());
    }
}
