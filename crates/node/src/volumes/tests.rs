//! Volumes in a temporary directory.

use super::*;
use crate::objects::{Kind, ObjectData};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

fn pod(volumes: Value) -> core::Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": "u1", "labels": {"app": "web"}},
        "spec": {"containers": [], "volumes": volumes},
    }))
    .unwrap()
}

fn objects(pairs: &[(&str, &str)]) -> PodObjects {
    let data = |pairs: &[(&str, &str)]| {
        Arc::new(ObjectData {
            data: pairs
                .iter()
                .map(|(k, v)| ((*k).into(), v.as_bytes().to_vec()))
                .collect(),
            type_: None,
        })
    };
    let mut objects = PodObjects::default();
    objects.insert(Kind::ConfigMap, "conf", data(pairs));
    objects.insert(Kind::Secret, "key", data(&[("token", "t0p")]));
    objects
}

async fn set(dir: &Path, pod: &core::Pod, objects: &PodObjects) -> Result<(), String> {
    let allocatable = BTreeMap::new();
    let client = crate::fakes::FakeApi::default().client();
    let sources = Sources {
        facts: Facts {
            pod,
            pod_ip: None,
            node_ip: [127, 0, 0, 1].into(),
            node_name: "n1",
            allocatable: &allocatable,
        },
        objects,
        client: &client.clone(),
        tokens: &Tokens::new(client, None, client::Clock::system()),
    };
    set_up(dir, &sources)
        .await
        .map(drop)
        .map_err(|e| e.to_string())
}

fn read(dir: &Path, path: &str) -> Option<String> {
    std::fs::read_to_string(dir.join("volumes").join(path)).ok()
}

#[tokio::test]
async fn config_maps_and_secrets_become_files_and_follow_changes() {
    let dir = tempfile::tempdir().unwrap();
    let pod = pod(json!([
        {"name": "v", "configMap": {"name": "conf"}},
        {"name": "s", "secret": {"secretName": "key", "defaultMode": 256,
            "items": [{"key": "token", "path": "deep/er/t"}]}},
        {"name": "gone", "configMap": {"name": "absent", "optional": true}},
    ]));
    set(dir.path(), &pod, &objects(&[("a", "1"), ("b", "2")]))
        .await
        .unwrap();
    assert_eq!(
        read(dir.path(), "kubernetes.io~configmap/v/a").as_deref(),
        Some("1")
    );
    let secret = "kubernetes.io~secret/s/deep/er/t";
    assert_eq!(read(dir.path(), secret).as_deref(), Some("t0p"));
    let mode = std::fs::metadata(dir.path().join("volumes").join(secret))
        .unwrap()
        .permissions();
    assert_eq!(mode.mode() & 0o777, 0o400);
    let parent = std::fs::metadata(dir.path().join("volumes/kubernetes.io~secret")).unwrap();
    assert_eq!(parent.permissions().mode() & 0o777, 0o700);

    let data =
        || std::fs::read_link(dir.path().join("volumes/kubernetes.io~configmap/v/..data")).unwrap();
    let first = data();
    set(dir.path(), &pod, &objects(&[("a", "1"), ("b", "2")]))
        .await
        .unwrap();
    assert_eq!(data(), first, "what did not change is not written");
    set(dir.path(), &pod, &objects(&[("a", "9"), ("c", "3")]))
        .await
        .unwrap();
    assert_ne!(data(), first);
    assert_eq!(
        read(dir.path(), "kubernetes.io~configmap/v/a").as_deref(),
        Some("9")
    );
    assert_eq!(read(dir.path(), "kubernetes.io~configmap/v/b"), None);
    let names: Vec<_> = std::fs::read_dir(dir.path().join("volumes/kubernetes.io~configmap/v"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(
        names.len(),
        4,
        "{names:?}: two links, ..data and one version"
    );
}

#[tokio::test]
async fn projected_and_downward_files() {
    let dir = tempfile::tempdir().unwrap();
    let pod = pod(json!([{"name": "p", "projected": {"sources": [
        {"configMap": {"name": "conf", "items": [{"key": "a", "path": "a.txt"}]}},
        {"secret": {"name": "key"}},
        {"downwardAPI": {"items": [
            {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
            {"path": "ns", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
    ]}}]));
    set(dir.path(), &pod, &objects(&[("a", "1")]))
        .await
        .unwrap();
    let file = |name: &str| read(dir.path(), &format!("kubernetes.io~projected/p/{name}"));
    assert_eq!(file("a.txt").as_deref(), Some("1"));
    assert_eq!(file("token").as_deref(), Some("t0p"));
    assert_eq!(file("labels").as_deref(), Some("app=\"web\""));
    assert_eq!(file("ns").as_deref(), Some("shop"));
}

#[tokio::test]
async fn what_can_not_be_had_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    for (volume, expected) in [
        (
            json!({"configMap": {"name": "nope"}}),
            "configmap \"nope\" not found",
        ),
        (
            json!({"secret": {"secretName": "key", "items": [{"key": "x", "path": "x"}]}}),
            "references non-existent secret key: x",
        ),
        (
            json!({"configMap": {"name": "conf", "items": [{"key": "a", "path": "../a"}]}}),
            "../a is no path inside the volume",
        ),
        (
            json!({"nfs": {"server": "x", "path": "/"}}),
            "volumes of this type are not supported on this node",
        ),
        (
            json!({"hostPath": {"path": "/no/such", "type": "Directory"}}),
            "hostPath type check failed: /no/such is not a Directory",
        ),
    ] {
        let mut volume = volume;
        volume["name"] = json!("v");
        let error = set(dir.path(), &pod(json!([volume])), &objects(&[("a", "1")]))
            .await
            .unwrap_err();
        assert_eq!(
            error,
            format!("MountVolume.SetUp failed for volume \"v\" : {expected}")
        );
    }
}

#[tokio::test]
async fn mounts_say_where_and_whether_to_write() {
    let dir = tempfile::tempdir().unwrap();
    let host = dir.path().join("host");
    std::fs::create_dir(&host).unwrap();
    let pod = pod(json!([
        {"name": "e", "emptyDir": {}},
        {"name": "v", "configMap": {"name": "conf"}},
        {"name": "h", "hostPath": {"path": host, "type": "DirectoryOrCreate"}},
    ]));
    set(dir.path(), &pod, &objects(&[("a", "1")]))
        .await
        .unwrap();
    let container = |mounts: Value| -> core::Container {
        serde_json::from_value(json!({"name": "c", "volumeMounts": mounts})).unwrap()
    };
    let env = [("WHO".to_string(), "you".to_string())];
    let found = mounts(
        dir.path(),
        &pod,
        &container(json!([
            {"name": "e", "mountPath": "/data", "subPathExpr": "of-$(WHO)"},
            {"name": "v", "mountPath": "/conf"},
            {"name": "v", "mountPath": "/one", "subPath": "a"},
            {"name": "h", "mountPath": "/host", "readOnly": true},
        ])),
        &env,
    )
    .unwrap();
    let seen: Vec<_> = found
        .iter()
        .map(|m| (m.guest_path.as_str(), m.read_only))
        .collect();
    assert_eq!(
        seen,
        [
            ("/data", false),
            ("/conf", true),
            ("/one", true),
            ("/host", true)
        ]
    );
    assert!(
        found[0]
            .host_path
            .ends_with("kubernetes.io~empty-dir/e/of-you")
    );
    assert!(found[0].host_path.is_dir());
    assert_eq!(std::fs::read_to_string(&found[2].host_path).unwrap(), "1");
    assert_eq!(found[3].host_path, host);

    // An image has what it has.
    let image: core::Volume =
        serde_json::from_value(json!({"name": "i", "image": {"reference": "r:1"}})).unwrap();
    let mut with_image = pod.clone();
    with_image.spec.as_mut().unwrap().volumes = Some(vec![image]);
    let mounting = container(json!([{"name": "i", "mountPath": "/i"}]));
    let missing = missing_images(dir.path(), &with_image, &mounting);
    link_image(&missing[0].0, &host).unwrap();
    assert!(missing_images(dir.path(), &with_image, &mounting).is_empty());
    let image = |sub: &str| {
        let mount = json!([{"name": "i", "mountPath": "/i", "subPath": sub}]);
        mounts(dir.path(), &with_image, &container(mount), &env)
    };
    let shown = &image(".").unwrap()[0];
    assert!(shown.read_only && shown.data_only && shown.host_path == host);
    assert_eq!(
        image("no").unwrap_err().to_string(),
        "ImageVolumeMountFailed: sub path \"no\" does not exist in image volume \"r:1\""
    );
    assert!(!host.join("no").exists());

    std::os::unix::fs::symlink("/etc", host.join("out")).unwrap();
    for sub in ["../x", "out", "out/y", "/abs"] {
        let wanted = container(json!([{"name": "h", "mountPath": "/x", "subPath": sub}]));
        let error = mounts(dir.path(), &pod, &wanted, &env).unwrap_err();
        assert!(matches!(error, VolumeError::Path(_)), "{sub}: {error}");
    }
}
