//! What the node must run, kept on disk so that it boots with no API server: its pods,
//! and the ConfigMaps and Secrets that they use.
//!
//! One file of lines, each with its own checksum: changes are appended in batches, each
//! batch synced once, and the file is written anew when most of it is out of date. A torn
//! or damaged line is left out with a warning; it never keeps the node from starting.
//! Start with [`Checkpoint::open`].

use crate::objects::{Kind, ObjectData, PodObjects};
use crate::pod::Uid;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Version of the format; files of others are left alone and not read.
const VERSION: u32 = 1;
/// Changes gather this long before they are written together.
const GATHER: Duration = Duration::from_millis(300);
/// The file is written anew when it has this many lines more than twice what is needed.
const STALE_LINES_MAX: usize = 1000;

/// A line of the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Line {
    /// The first.
    Version(u32),
    /// A pod as the API server had it.
    Pod(Box<Pod>),
    /// What a pod's reference stands for.
    Object(Entry),
    /// The pod is no more.
    Removed(String),
}

/// An object that pods of a namespace use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) object: Arc<ObjectData>,
}

/// What a checkpoint held.
#[derive(Debug, Default)]
pub(crate) struct Restored {
    pub(crate) pods: Vec<Arc<Pod>>,
    pub(crate) objects: Vec<Entry>,
}

/// The checkpoint.
pub(crate) struct Checkpoint {
    path: PathBuf,
    /// Held for gathering, never while writing.
    pending: Mutex<Pending>,
    wake: Notify,
}

#[derive(Default)]
struct Pending {
    /// By pod; none for one that is no more.
    pods: HashMap<String, Option<Arc<Pod>>>,
    objects: HashMap<(Kind, String, String), Arc<ObjectData>>,
}

/// What the file holds, kept by the writer to write it anew; shared with the agent's own.
#[derive(Default)]
struct Kept {
    pods: BTreeMap<String, Arc<Pod>>,
    objects: BTreeMap<(Kind, String, String), Arc<ObjectData>>,
    lines: usize,
}

impl Checkpoint {
    /// Reads the checkpoint in `dir`, if there is one, and goes on writing it in `scope`;
    /// what is pending is written when the scope is cancelled.
    pub(crate) fn open(dir: &Path, scope: &lifecycle::Scope) -> (Arc<Self>, Restored) {
        let path = dir.join("checkpoint");
        let kept = read(&path);
        let restored = Restored {
            pods: kept.pods.values().cloned().collect(),
            objects: kept
                .objects
                .iter()
                .map(|((kind, namespace, name), object)| Entry {
                    kind: *kind,
                    namespace: namespace.clone(),
                    name: name.clone(),
                    object: object.clone(),
                })
                .collect(),
        };
        let checkpoint = Arc::new(Self {
            path,
            pending: Mutex::default(),
            wake: Notify::new(),
        });
        let writer = checkpoint.clone();
        let token = scope.token().clone();
        scope.spawn(async move { writer.keep(kept, token).await });
        (checkpoint, restored)
    }

    /// The pod is to be run.
    pub(crate) fn put_pod(&self, pod: &Arc<Pod>) {
        self.pending.lock().pods.insert(key(pod), Some(pod.clone()));
        self.wake.notify_one();
    }

    /// What the pod's references stand for now.
    pub(crate) fn put_objects(&self, pod: &Pod, objects: &PodObjects) {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let mut pending = self.pending.lock();
        for ((kind, name), object) in objects.iter() {
            let key = (*kind, namespace.clone(), name.clone());
            pending.objects.insert(key, object.clone());
        }
        drop(pending);
        self.wake.notify_one();
    }

    /// The pod is no more.
    pub(crate) fn remove_pod(&self, uid: &Uid) {
        self.pending.lock().pods.insert(uid.0.to_string(), None);
        self.wake.notify_one();
    }

    async fn keep(self: Arc<Self>, mut kept: Kept, token: tokio_util::sync::CancellationToken) {
        // Whatever was found is written anew first: a torn end must not be appended to.
        let mut file = None;
        loop {
            let last = token
                .run_until_cancelled(self.wake.notified())
                .await
                .is_none();
            if !last {
                token.run_until_cancelled(tokio::time::sleep(GATHER)).await;
            }
            let pending = std::mem::take(&mut *self.pending.lock());
            if !(pending.pods.is_empty() && pending.objects.is_empty()) {
                let path = self.path.clone();
                let open = file.take();
                let written = tokio::task::spawn_blocking(move || {
                    let result = write(&path, &mut kept, open, pending);
                    (kept, result)
                })
                .await;
                let Ok((given_back, result)) = written else {
                    return;
                };
                kept = given_back;
                match result {
                    Ok(open) => file = Some(open),
                    Err(error) => {
                        tracing::warn!(path = %self.path.display(), %error, "checkpoint not written");
                    }
                }
            }
            if last {
                return;
            }
        }
    }
}

/// By what the agent knows the pod.
fn key(pod: &Pod) -> String {
    crate::pod::uid_of(pod).map_or_else(String::new, |uid| uid.to_string())
}

/// Appends what changed, or writes the file anew; synced when it returns.
fn write(path: &Path, kept: &mut Kept, open: Option<File>, pending: Pending) -> io::Result<File> {
    let mut text = Vec::new();
    let mut lines = 0;
    for (key, object) in pending.objects {
        if kept.objects.get(&key) == Some(&object) {
            continue;
        }
        let (kind, namespace, name) = key.clone();
        kept.objects.insert(key, object.clone());
        lines += 1;
        push(
            &mut text,
            &Line::Object(Entry {
                kind,
                namespace,
                name,
                object,
            }),
        )?;
    }
    for (uid, pod) in pending.pods {
        lines += 1;
        match pod {
            Some(pod) => {
                push(&mut text, &Line::Pod(Box::new((*pod).clone())))?;
                kept.pods.insert(uid, pod);
            }
            None => {
                kept.pods.remove(&uid);
                push(&mut text, &Line::Removed(uid))?;
            }
        }
    }
    kept.lines += lines;
    let needed = kept.pods.len() + kept.objects.len();
    match open {
        Some(mut file) if kept.lines <= 2 * needed + STALE_LINES_MAX => {
            file.write_all(&text)?;
            file.sync_data()?;
            Ok(file)
        }
        _ => write_anew(path, kept),
    }
}

fn write_anew(path: &Path, kept: &mut Kept) -> io::Result<File> {
    let used: std::collections::BTreeSet<_> = kept
        .pods
        .values()
        .flat_map(|pod| {
            let namespace = pod.metadata.namespace.clone().unwrap_or_default();
            crate::objects::references(pod)
                .into_iter()
                .map(move |(kind, name)| (kind, namespace.clone(), name))
        })
        .collect();
    kept.objects.retain(|key, _| used.contains(key));
    let mut text = Vec::new();
    push(&mut text, &Line::Version(VERSION))?;
    for ((kind, namespace, name), object) in &kept.objects {
        push(
            &mut text,
            &Line::Object(Entry {
                kind: *kind,
                namespace: namespace.clone(),
                name: name.clone(),
                object: object.clone(),
            }),
        )?;
    }
    for pod in kept.pods.values() {
        push(&mut text, &Line::Pod(Box::new((**pod).clone())))?;
    }
    let new = path.with_extension("new");
    let mut file = File::options()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(&text)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    if let Some(dir) = path.parent() {
        File::open(dir)?.sync_all()?;
    }
    kept.lines = kept.pods.len() + kept.objects.len();
    Ok(file)
}

/// `<crc of the rest, hex> <json>\n`
fn push(text: &mut Vec<u8>, line: &Line) -> io::Result<()> {
    let json = serde_json::to_vec(line)?;
    write!(text, "{:08x} ", crc32(&json))?;
    text.extend_from_slice(&json);
    text.push(b'\n');
    Ok(())
}

fn read(path: &Path) -> Kept {
    let mut kept = Kept::default();
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return kept,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "checkpoint not read");
            return kept;
        }
    };
    let mut damaged = 0;
    for (number, raw) in bytes
        .split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .enumerate()
    {
        match parse(raw) {
            Some(Line::Version(VERSION)) => {}
            Some(Line::Version(other)) => {
                tracing::warn!(path = %path.display(), version = other, "checkpoint is of another version, left out");
                return Kept::default();
            }
            Some(_) if number == 0 => damaged += 1,
            Some(Line::Pod(pod)) => {
                kept.pods.insert(key(&pod), Arc::from(pod));
            }
            Some(Line::Object(e)) => {
                kept.objects.insert((e.kind, e.namespace, e.name), e.object);
            }
            Some(Line::Removed(uid)) => {
                kept.pods.remove(&uid);
            }
            None => damaged += 1,
        }
    }
    if damaged > 0 {
        tracing::warn!(path = %path.display(), damaged, "checkpoint has damaged lines, left out");
    }
    kept
}

fn parse(raw: &[u8]) -> Option<Line> {
    let (sum, json) = raw.split_at_checked(8)?;
    let json = json.strip_prefix(b" ")?;
    let sum = u32::from_str_radix(std::str::from_utf8(sum).ok()?, 16).ok()?;
    if sum != crc32(json) {
        return None;
    }
    serde_json::from_str(std::str::from_utf8(json).ok()?).ok()
}

/// CRC-32 as in IEEE 802.3; enough to tell a torn line.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(uid: &str) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": uid, "namespace": "default", "uid": uid},
                "spec": {"containers": [{"name": "c",
                    "envFrom": [{"secretRef": {"name": "key"}}]}]},
            }))
            .unwrap(),
        )
    }

    fn objects() -> PodObjects {
        let mut objects = PodObjects::default();
        let data = ObjectData {
            data: BTreeMap::from([("token".into(), vec![0, 255])]),
            type_: None,
        };
        objects.insert(Kind::Secret, "key", Arc::new(data));
        objects
    }

    fn uids(restored: &Restored) -> Vec<&str> {
        restored
            .pods
            .iter()
            .filter_map(|p| p.metadata.uid.as_deref())
            .collect()
    }

    async fn session(dir: &Path, work: impl FnOnce(&Checkpoint)) -> Restored {
        let scope = lifecycle::Scope::new();
        let (checkpoint, restored) = Checkpoint::open(dir, &scope);
        work(&checkpoint);
        scope.close().await;
        restored
    }

    #[tokio::test]
    async fn what_is_put_is_there_after_a_restart() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let none = session(dir.path(), |c| {
            c.put_pod(&pod("a"));
            c.put_pod(&pod("b"));
            c.put_objects(&pod("a"), &objects());
        })
        .await;
        assert!(none.pods.is_empty());
        let both = session(dir.path(), |c| c.remove_pod(&Uid::from("a"))).await;
        assert_eq!(uids(&both), ["a", "b"]);
        assert_eq!(both.objects[0].object.data["token"], [0, 255]);
        let one = session(dir.path(), |_| {}).await;
        assert_eq!(uids(&one), ["b"]);
        let mode = std::fs::metadata(dir.path().join("checkpoint"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_torn_end_costs_only_itself() {
        let dir = tempfile::tempdir().unwrap();
        session(dir.path(), |c| {
            c.put_pod(&pod("a"));
        })
        .await;
        let path = dir.path().join("checkpoint");
        let whole = std::fs::read(&path).unwrap();
        let mut line = Vec::new();
        push(&mut line, &Line::Pod(Box::new((*pod("b")).clone()))).unwrap();
        for cut in 0..line.len() {
            let torn = [&whole[..], &line[..cut]].concat();
            std::fs::write(&path, torn).unwrap();
            let restored = read(&path);
            let expected: &[&str] = if cut + 1 == line.len() {
                &["a", "b"]
            } else {
                &["a"]
            };
            assert_eq!(
                restored.pods.keys().collect::<Vec<_>>(),
                expected,
                "cut at {cut}"
            );
        }
        std::fs::write(&path, b"garbage\n\xff\xfe").unwrap();
        let restored = session(dir.path(), |c| c.put_pod(&pod("c"))).await;
        assert!(restored.pods.is_empty());
        assert_eq!(uids(&session(dir.path(), |_| {}).await), ["c"]);
    }

    #[test]
    fn the_checksum_is_the_usual_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}
