//! Static pods: those that files on the machine describe, run whether or not an API server can be
//! asked. For each there is a mirror pod in the API, which shows it and by which it is not ruled.
//!
//! Names, annotations and rules are the kubelet's. Files are looked at every second; one that is
//! wrong changes nothing, and the pod that it was goes on. What is in the files is [`read`]; what
//! follows from it, and from the mirrors that the API server tells of, is [`Follower::settle`].

use crate::agent::Agent;
use crate::pod::{Desired, Uid};
use crate::publish::Published;
use images::Digest;
use k8s_openapi::api::core::v1::{Node, Pod, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::Notify;

/// Between looks at the directory.
const LOOK: Duration = Duration::from_secs(1);
/// Larger files are refused: no pod is that large.
const FILE_MAX: u64 = 1 << 20;
const HASH: &str = "kubernetes.io/config.hash";
const MIRROR: &str = "kubernetes.io/config.mirror";
const SEEN: &str = "kubernetes.io/config.seen";
const SOURCE: &str = "kubernetes.io/config.source";

/// Why a file is no static pod.
#[derive(Debug, thiserror::Error)]
enum StaticPodError {
    #[error("{0}")]
    Read(#[from] std::io::Error),
    #[error("it is larger than {FILE_MAX} bytes")]
    Large,
    #[error("{0}")]
    Parse(String),
    #[error("it is {0:?}, not a \"v1 Pod\"")]
    Kind(String),
    #[error("{0}")]
    Invalid(String),
    #[error("it refers to a {0}: static pods run without an API server to ask")]
    Refers(&'static str),
}

/// A mirror pod as the API server last told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mirror {
    uid: String,
    /// The static pod that it shows, by its hash.
    of: String,
    deleting: bool,
}

/// By namespace and name.
type Key = (String, String);

/// The mirror pods of this node.
#[derive(Default)]
pub(crate) struct Mirrors {
    /// Held for look-ups only.
    known: Mutex<BTreeMap<Key, Mirror>>,
    changed: Notify,
}

/// Whether a pod of the API only shows one that a file describes.
pub(crate) fn is_mirror(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.is_some_and(|a| a.contains_key(MIRROR))
}

fn key_of(pod: &Pod) -> Key {
    let meta = &pod.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    (text(&meta.namespace), text(&meta.name))
}

impl Mirrors {
    /// The API server has this mirror now.
    pub(crate) fn told(&self, agent: &Agent, pod: &Pod) {
        let annotations = pod.metadata.annotations.as_ref();
        let mirror = Mirror {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            of: annotations
                .and_then(|a| a.get(MIRROR))
                .cloned()
                .unwrap_or_default(),
            deleting: pod.metadata.deletion_timestamp.is_some(),
        };
        let shown = Uid::from(mirror.of.as_str());
        let before = self.known.lock().insert(key_of(pod), mirror.clone());
        if let Some(slot) = agent.slot(&shown) {
            let mut record = slot.lock();
            let record = &mut *record;
            if before.as_ref().is_some_and(|b| b.uid == mirror.uid) {
                record.published.overruled(pod, &record.conditions);
            } else {
                record.published = Published::seed(pod.status.as_ref());
            }
            agent.queue.add(shown);
        }
        if before.as_ref() != Some(&mirror) {
            self.changed.notify_one();
        }
    }

    /// The API server has it no longer.
    pub(crate) fn gone(&self, pod: &Pod) {
        let mut known = self.known.lock();
        let key = key_of(pod);
        if known.get(&key).map(|m| &m.uid) == pod.metadata.uid.as_ref() {
            known.remove(&key);
            self.changed.notify_one();
        }
    }

    /// The API server has none but these.
    pub(crate) fn retain(&self, pods: &HashSet<Key>) {
        self.known.lock().retain(|key, _| pods.contains(key));
        self.changed.notify_one();
    }

    /// The UID of the mirror that a static pod's status is told by, once there is one.
    pub(crate) fn uid_of(&self, desired: &Desired) -> Option<String> {
        let key = (desired.namespace.to_string(), desired.name.to_string());
        let known = self.known.lock();
        let mirror = known.get(&key)?;
        (*mirror.of == *desired.uid.0 && !mirror.deleting).then(|| mirror.uid.clone())
    }
}

/// The names by which a listing's mirrors are kept.
pub(crate) fn keys<'p>(pods: impl Iterator<Item = &'p Arc<Pod>>) -> HashSet<Key> {
    pods.filter(|pod| is_mirror(pod))
        .map(|p| key_of(p))
        .collect()
}

/// By what a file is seen to have changed.
type Stamp = (SystemTime, u64);

/// What was found in a file that has a pod in it, now or before.
struct File {
    stamp: Stamp,
    pod: Option<Arc<Pod>>,
}

/// The directory, and what is in it.
pub(crate) struct Follower {
    agent: Arc<Agent>,
    dir: PathBuf,
    files: BTreeMap<PathBuf, File>,
    /// Whether the directory could be read last time.
    readable: bool,
}

impl Follower {
    /// Looks for the first time: so that nothing of an earlier run is taken for nobody's.
    pub(crate) fn start(agent: Arc<Agent>, dir: PathBuf) -> Self {
        let mut follower = Self {
            agent,
            dir,
            files: BTreeMap::new(),
            readable: true,
        };
        follower.look();
        follower.run_pods();
        follower
    }

    /// Never returns.
    pub(crate) async fn follow(mut self) {
        let agent = self.agent.clone();
        let mut pods_known = agent.pods_known.subscribe();
        loop {
            // Mirrors are not judged before it is known which there are.
            if *pods_known.borrow_and_update() {
                self.settle().await;
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => self.look(),
                () = agent.mirrors.changed.notified() => {}
            }
            self.run_pods();
        }
    }

    /// Reads what has changed on disk.
    fn look(&mut self) {
        let found = match list(&self.dir) {
            Ok(found) => found,
            Err(error) => {
                if std::mem::replace(&mut self.readable, false) {
                    tracing::warn!(directory = %self.dir.display(), %error, "static pods not read");
                }
                return;
            }
        };
        self.readable = true;
        self.files.retain(|path, _| found.contains_key(path));
        for (path, stamp) in found {
            let before = self.files.get(&path);
            if before.is_some_and(|file| file.stamp == stamp) {
                continue;
            }
            let pod = match read(
                &path,
                stamp.1,
                &self.agent.fixed.name,
                self.agent.clock.now(),
            ) {
                Ok(pod) => Some(Arc::new(pod)),
                Err(error) => {
                    tracing::warn!(file = %path.display(), "no static pod in it: {error}");
                    before.and_then(|file| file.pod.clone())
                }
            };
            self.files.insert(path, File { stamp, pod });
        }
    }

    /// What is to run; of two files with one name the first.
    fn wanted(&self) -> BTreeMap<Key, &Arc<Pod>> {
        let mut wanted = BTreeMap::new();
        for pod in self.files.values().filter_map(|file| file.pod.as_ref()) {
            wanted.entry(key_of(pod)).or_insert(pod);
        }
        wanted
    }

    /// Ends pods whose files have gone or changed, and begins those that are new once nothing
    /// of their name is left.
    fn run_pods(&self) {
        let wanted = self.wanted();
        let uid = |pod: &Pod| Uid::from(pod.metadata.uid.as_deref().unwrap_or_default());
        let slots = self.agent.slots();
        let mut left = HashSet::new();
        for slot in slots {
            let (is_static, key) = {
                let record = slot.lock();
                let desired = &record.desired;
                let key = (desired.namespace.to_string(), desired.name.to_string());
                (desired.is_static, key)
            };
            if !is_static {
                continue;
            }
            if wanted.get(&key).is_none_or(|pod| uid(pod) != slot.uid) {
                self.agent.gone(&slot.uid);
            }
            left.insert(key);
        }
        for (key, pod) in wanted {
            if !left.contains(&key) {
                self.agent.run_static(pod.clone());
            }
        }
    }

    /// Makes mirrors that are missing and deletes those that show nothing.
    async fn settle(&self) {
        let known = self.agent.mirrors.known.lock().clone();
        let wanted = self.wanted();
        for (key @ (namespace, name), mirror) in &known {
            let shows = wanted
                .get(key)
                .is_some_and(|pod| pod.metadata.uid.as_ref() == Some(&mirror.of));
            if shows && !mirror.deleting {
                continue;
            }
            let pods = Api::<Pod>::namespaced(self.agent.client.clone(), namespace);
            let now = DeleteParams {
                grace_period_seconds: Some(0),
                ..DeleteParams::default()
            }
            .preconditions(Preconditions {
                uid: Some(mirror.uid.clone()),
                resource_version: None,
            });
            match pods.delete(name, &now).await {
                Err(e) if !client::is_not_found(&e) && !client::is_conflict(&e) => {
                    tracing::debug!(pod = name, error = %e, "mirror pod not deleted, trying again");
                }
                _ => {}
            }
        }
        for (key, pod) in wanted.iter().filter(|(key, _)| !known.contains_key(*key)) {
            if let Err(error) = self.show(pod).await
                && !client::is_already_exists(&error)
            {
                tracing::debug!(pod = key.1, %error, "mirror pod not made, trying again");
            }
        }
    }

    /// Makes the mirror of a pod, which goes with the Node.
    async fn show(&self, pod: &Pod) -> Result<(), kube::Error> {
        let nodes = Api::<Node>::all(self.agent.client.clone());
        let node = nodes.get(&self.agent.fixed.name).await?;
        let mut mirror = pod.clone();
        let meta = &mut mirror.metadata;
        let hash = meta.uid.take().unwrap_or_default();
        let annotations = meta.annotations.get_or_insert_default();
        annotations.insert(MIRROR.into(), hash);
        let owner = kube::Resource::controller_owner_ref(&node, &());
        meta.owner_references = owner.map(|mut owner| {
            owner.block_owner_deletion = None;
            vec![owner]
        });
        let namespace = meta.namespace.clone().unwrap_or_default();
        let pods = Api::<Pod>::namespaced(self.agent.client.clone(), &namespace);
        pods.create(&PostParams::default(), &mirror).await.map(drop)
    }
}

/// The files of a directory, without hidden ones.
fn list(dir: &Path) -> std::io::Result<BTreeMap<PathBuf, Stamp>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        // By the link's target: directories of ConfigMaps are links.
        let Ok(meta) = std::fs::metadata(entry.path()) else {
            continue;
        };
        if meta.is_file() {
            found.insert(entry.path(), (meta.modified()?, meta.len()));
        }
    }
    Ok(found)
}

fn read(path: &Path, size: u64, node: &str, now: jiff::Timestamp) -> Result<Pod, StaticPodError> {
    if size > FILE_MAX {
        return Err(StaticPodError::Large);
    }
    parse(&std::fs::read_to_string(path)?, path, node, now)
}

/// The pod that a file describes, with its defaults and as this node's.
fn parse(text: &str, path: &Path, node: &str, now: jiff::Timestamp) -> Result<Pod, StaticPodError> {
    let written: Value =
        serde_saphyr::from_str(text).map_err(|e| StaticPodError::Parse(e.to_string()))?;
    let [version, kind] = ["apiVersion", "kind"].map(|field| written[field].as_str());
    if (version, kind) != (Some("v1"), Some("Pod")) {
        let said = [version, kind].map(Option::unwrap_or_default).join(" ");
        return Err(StaticPodError::Kind(said.trim().to_owned()));
    }
    let digest = Digest::sha256(format!("{node}\n{}\n{written}", path.display()).as_bytes());
    let hash: String = digest.hex().chars().take(32).collect();
    // First, so that what follows is about a pod, whatever was written.
    let mut pod: Pod = as_text(&written)?;
    let meta = std::mem::take(&mut pod.metadata);
    let mut annotations = meta.annotations.unwrap_or_default();
    annotations.insert(HASH.into(), hash.clone());
    annotations.insert(SOURCE.into(), "file".into());
    annotations.insert(SEEN.into(), now.to_string());
    // The rest of the metadata is the API server's to say.
    pod.metadata = ObjectMeta {
        name: Some(format!("{}-{node}", meta.name.unwrap_or_default())),
        namespace: Some(
            meta.namespace
                .filter(|n| !n.is_empty())
                .unwrap_or_else(|| "default".into()),
        ),
        uid: Some(hash),
        labels: meta.labels,
        annotations: Some(annotations),
        ..ObjectMeta::default()
    };
    pod.status = None;
    let spec = pod.spec.get_or_insert_default();
    spec.node_name = Some(node.into());
    // No taint drives it away: it was not scheduled here.
    spec.tolerations.get_or_insert_default().push(Toleration {
        operator: Some("Exists".into()),
        effect: Some("NoExecute".into()),
        ..Toleration::default()
    });
    let pod = completed(&pod)?;
    match refers(&pod) {
        Some(what) => Err(StaticPodError::Refers(what)),
        None => Ok(pod),
    }
}

/// A pod with its defaults, if it is valid.
fn completed(pod: &Pod) -> Result<Pod, StaticPodError> {
    let mut value: Value = as_text(pod)?;
    if let Some(row) = api::find("", "v1", "pods") {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        (row.validate_name)(name).map_err(StaticPodError::Invalid)?;
        (row.default)(&mut value);
        if let Some(first) = (row.validate)(&value).first() {
            return Err(StaticPodError::Invalid(first.to_string()));
        }
    }
    as_text(&value)
}

/// One form of a pod from another, by its text: what reads a pod from there is in the program
/// anyway ([`client::kinds`]), and what reads it from another form is as large again.
fn as_text<T: DeserializeOwned>(from: &impl Serialize) -> Result<T, StaticPodError> {
    let wrong = |error: serde_json::Error| StaticPodError::Parse(error.to_string());
    let text = serde_json::to_string(from).map_err(wrong)?;
    serde_json::from_str(&text).map_err(wrong)
}

/// What of the API a pod can't do without.
fn refers(pod: &Pod) -> Option<&'static str> {
    let spec = pod.spec.as_ref()?;
    let account = spec.service_account_name.as_deref().unwrap_or_default();
    let mut volumes = spec.volumes.iter().flatten();
    if !account.is_empty() {
        return Some("ServiceAccount");
    }
    if volumes.any(|volume| volume.projected.is_some()) {
        return Some("projected volume");
    }
    if client::volumes::claims_of(pod).next().is_some() {
        return Some("PersistentVolumeClaim");
    }
    let mut objects = crate::objects::references(pod).into_iter();
    objects.next().map(|(kind, _)| kind.title())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::Rig;
    use proptest::prelude::*;
    use serde_json::json;

    const WEB: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, labels: {app: web}}\nspec:\n  containers:\n  - {name: c, image: 'hello:1'}\n";

    fn parsed(text: &str) -> Result<Pod, String> {
        let now = "2026-01-02T03:04:05Z".parse().unwrap();
        parse(text, Path::new("/etc/pods/web.yaml"), "edge-1", now).map_err(|e| e.to_string())
    }

    #[test]
    fn a_file_s_pod_is_this_node_s() {
        let pod = parsed(WEB).unwrap();
        let meta = &pod.metadata;
        assert_eq!(meta.name.as_deref(), Some("web-edge-1"));
        assert_eq!(meta.namespace.as_deref(), Some("default"));
        let annotations = meta.annotations.as_ref().unwrap();
        assert_eq!(Some(&annotations[HASH]), meta.uid.as_ref());
        assert_eq!(annotations[HASH].len(), 32);
        assert_eq!(annotations[SOURCE], "file");
        let spec = pod.spec.as_ref().unwrap();
        assert_eq!(spec.node_name.as_deref(), Some("edge-1"));
        assert_eq!(spec.restart_policy.as_deref(), Some("Always"));
        let tolerations = serde_json::to_value(&spec.tolerations).unwrap();
        assert_eq!(
            tolerations,
            json!([{"operator": "Exists", "effect": "NoExecute"}])
        );
        // Whatever is written, another pod has another identity.
        let other = parsed(&WEB.replace("hello:1", "hello:2")).unwrap();
        assert_ne!(other.metadata.uid, meta.uid);
    }

    #[test]
    fn what_can_t_run_alone_is_refused() {
        for (text, why) in [
            ("", "it is \"\", not a \"v1 Pod\""),
            ("- a\n", "it is \"\", not a \"v1 Pod\""),
            (
                "apiVersion: v1\nkind: Service\n",
                "it is \"v1 Service\", not a \"v1 Pod\"",
            ),
            (
                "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\n",
                "spec.containers: Required value",
            ),
            (
                "apiVersion: v1\nkind: Pod\nmetadata: {name: We_b}\n",
                "RFC 1123",
            ),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        for (part, whole) in [
            (
                "annotations",
                "apiVersion: v1\nkind: Pod\nmetadata: {name: web, annotations: none}\n",
            ),
            (
                "spec",
                "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: none\n",
            ),
            ("a list", "a: ["),
        ] {
            assert!(parsed(whole).is_err(), "{part}");
        }
        let with = |spec: &str| parsed(&format!("{WEB}  {spec}\n")).unwrap_err();
        let secret = with("volumes: [{name: v, secret: {secretName: s}}]");
        assert!(secret.starts_with("it refers to a Secret"), "{secret}");
        let claim = with("volumes: [{name: v, persistentVolumeClaim: {claimName: s}}]");
        assert!(
            claim.starts_with("it refers to a PersistentVolumeClaim"),
            "{claim}"
        );
        let account = with("serviceAccountName: boss");
        assert!(
            account.starts_with("it refers to a ServiceAccount"),
            "{account}"
        );
    }

    fn anything() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-z/=:.-]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 12, 3, |inner| {
            let key = prop_oneof![
                "[a-z]{1,4}",
                Just("name".to_owned()),
                Just("image".to_owned())
            ];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::hash_map(key, inner, 0..3)
                    .prop_map(|map| map.into_iter().collect()),
            ]
        })
    }

    proptest! {
        /// Whatever stands in one place of a file, the pod is this node's or there is none.
        #[test]
        fn a_file_with_anything_in_it_is_a_pod_of_this_node_or_none(
            part in prop::sample::select(vec!["/metadata", "/metadata/name", "/metadata/namespace",
                "/metadata/labels", "/metadata/annotations", "/metadata/uid", "/spec",
                "/spec/containers", "/spec/containers/0", "/spec/tolerations", "/spec/nodeName",
                "/spec/volumes", "/status", "/kind"]),
            what in anything(),
        ) {
            let mut file = json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "web", "namespace": "shop", "labels": {}, "annotations": {}, "uid": "u"},
                "spec": {"containers": [{"name": "c", "image": "i:1"}], "tolerations": [],
                    "nodeName": "other", "volumes": []}, "status": {}});
            *file.pointer_mut(part).unwrap() = what;
            if let Ok(pod) = parsed(&file.to_string()) {
                let meta = &pod.metadata;
                prop_assert!(meta.name.as_deref().is_some_and(|name| name.ends_with("-edge-1")));
                prop_assert_eq!(meta.uid.as_ref(), meta.annotations.as_ref().and_then(|a| a.get(HASH)));
                let spec = pod.spec.unwrap();
                prop_assert_eq!(spec.node_name.as_deref(), Some("edge-1"));
                prop_assert_eq!(pod.status, None);
            }
        }
    }

    /// The mirror that the last write made, as the API server tells of it.
    fn mirror(rig: &Rig, uid: &str) -> Pod {
        let writes = rig.api.writes.lock();
        let made = writes
            .iter()
            .rev()
            .find(|(to, _)| to == "POST /api/v1/namespaces/default/pods");
        let mut body = made.expect("a mirror").1.clone();
        body["metadata"]["uid"] = uid.into();
        serde_json::from_value(body).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_static_pod_runs_is_mirrored_and_goes_with_its_file() {
        let rig = Rig::new().await;
        rig.api.nodes.lock().insert(
            "n1".into(),
            json!({"metadata": {"name": "n1", "uid": "of n1"}}),
        );
        let dir = rig.dir.path().join("manifests");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("web.yaml"), WEB).unwrap();
        std::fs::write(dir.join("broken.yaml"), "kind: [").unwrap();
        std::fs::write(dir.join(".hidden"), WEB.replace("web", "hidden")).unwrap();
        let follower = Follower::start(rig.agent.clone(), dir.clone());
        // Nobody has told of the API's pods yet.
        rig.until("it runs", |rig| rig.runtime.told().contains("start"))
            .await;
        assert_eq!(rig.agent.slots().len(), 1);
        rig.scope.spawn_cancellable(follower.follow());
        rig.agent.pods_known.send_replace(true);
        let made = "POST /api/v1/namespaces/default/pods";
        rig.until("its mirror", |rig| rig.api.wrote(made)).await;
        let shown = mirror(&rig, "m1");
        assert!(is_mirror(&shown));
        let owner = &shown.metadata.owner_references.as_ref().unwrap()[0];
        assert_eq!((owner.kind.as_str(), owner.uid.as_str()), ("Node", "of n1"));

        // Its status is the mirror's.
        assert!(
            !rig.api
                .wrote("PATCH /api/v1/namespaces/default/pods/web-n1/status")
        );
        rig.agent.mirrors.told(&rig.agent, &shown);
        rig.until("its status", |rig| {
            rig.api.status("web-n1")["phase"] == "Running"
        })
        .await;

        // A mirror that is deleted comes again, and the pod does not end.
        rig.agent.mirrors.gone(&shown);
        rig.api.writes.lock().clear();
        rig.until("its mirror again", |rig| rig.api.wrote(made))
            .await;
        assert!(!rig.runtime.told().contains("stop"));
        rig.agent.mirrors.told(&rig.agent, &mirror(&rig, "m2"));

        // A file that was spoilt changes nothing; one that is gone ends its pod.
        std::fs::write(dir.join("web.yaml"), "kind: [").unwrap();
        tokio::time::sleep(LOOK * 3).await;
        assert_eq!(rig.agent.slots().len(), 1);
        assert!(!rig.runtime.told().contains("stop"));
        std::fs::remove_file(dir.join("web.yaml")).unwrap();
        rig.until("it ends", |rig| rig.agent.slots().is_empty())
            .await;
        rig.until("its mirror goes", |rig| {
            rig.api
                .wrote("DELETE /api/v1/namespaces/default/pods/web-n1")
        })
        .await;
    }
}
