//! Built-in admission: limits, quotas, pod security, runtime classes, storage classes.

use super::{PODS, default_account, pod};
use anyhow::Result;
use serde_json::{Value, json};
use testkit::{Answer, TestApi};

async fn post(api: &TestApi, path: &str, object: Value) -> Result<Answer> {
    api.call("POST", path, Some(&object)).await
}

async fn made(api: &TestApi, path: &str, object: Value) -> Result<Value> {
    let answer = post(api, path, object).await?;
    anyhow::ensure!(answer.code == 201, "{path}: {}", answer.text);
    Ok(answer.json)
}

fn message(answer: &Answer) -> &str {
    answer.json["message"].as_str().unwrap_or_default()
}

fn warnings(answer: &Answer) -> Vec<String> {
    let all = answer.headers.get_all("warning").iter();
    all.filter_map(|w| w.to_str().ok())
        .map(|w| w.trim_start_matches("299 - ").replace("\\\"", "\""))
        .collect()
}

/// Upstream: "Limit Ranges".
#[tokio::test]
async fn limit_ranges_fill_in_and_bound_pods() -> Result<()> {
    let api = TestApi::start().await?;
    default_account(&api).await?;
    let range = json!({"metadata": {"name": "limits"}, "spec": {"limits": [
        {"type": "Container", "max": {"cpu": "1"}, "defaultRequest": {"cpu": "100m"}}]}});
    made(&api, "/api/v1/namespaces/default/limitranges", range).await?;
    let filled = made(&api, PODS, pod("a", None)).await?;
    assert_eq!(
        filled["spec"]["containers"][0]["resources"],
        json!({"limits": {"cpu": "1"}, "requests": {"cpu": "100m"}})
    );
    let mut large = pod("b", None);
    large["spec"]["containers"][0]["resources"]["limits"]["cpu"] = "2".into();
    let refused = post(&api, PODS, large).await?;
    assert_eq!(refused.code, 403);
    assert_eq!(
        message(&refused),
        "pods \"b\" is forbidden: maximum cpu usage per Container is 1, but limit is 2"
    );
    api.close().await
}

/// Upstream: "Resource Quotas": what is over is refused with what was asked, used and left.
#[tokio::test]
async fn quotas_are_charged_and_exceeded_only_once() -> Result<()> {
    let api = TestApi::start().await?;
    default_account(&api).await?;
    let quotas = "/api/v1/namespaces/default/resourcequotas";
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {
        "pods": "2", "requests.cpu": "1", "count/configmaps": "1"}}});
    made(&api, quotas, quota).await?;
    let refused = post(&api, PODS, pod("a", None)).await?;
    assert_eq!(
        message(&refused),
        "pods \"a\" is forbidden: failed quota: q: must specify requests.cpu for: c"
    );
    let sized = |name: &str, cpu: &str| {
        let mut pod = pod(name, None);
        pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] = cpu.into();
        pod
    };
    made(&api, PODS, sized("a", "600m")).await?;
    let refused = post(&api, PODS, sized("b", "500m")).await?;
    assert_eq!(refused.code, 403);
    assert_eq!(
        message(&refused),
        "pods \"b\" is forbidden: exceeded quota: q, requested: requests.cpu=500m, used: requests.cpu=600m, limited: requests.cpu=1"
    );
    // Many at once never share what is left: one of these fits.
    let all = (0..8).map(|n| post(&api, PODS, sized(&format!("c{n}"), "400m")));
    let codes = futures::future::try_join_all(all).await?;
    let fit = codes.iter().filter(|a| a.code == 201).count();
    assert_eq!(
        fit,
        1,
        "{:?}",
        codes.iter().map(message).collect::<Vec<_>>()
    );
    let status = api.call("GET", &format!("{quotas}/q"), None).await?.json;
    assert_eq!(
        status["status"]["used"],
        json!({"pods": "2", "requests.cpu": "1", "count/configmaps": "0"})
    );
    let map = |name: &str| json!({"metadata": {"name": name}});
    let maps = "/api/v1/namespaces/default/configmaps";
    made(&api, maps, map("a")).await?;
    let dry = post(&api, &format!("{maps}?dryRun=All"), map("b")).await?;
    assert_eq!(
        message(&dry),
        "configmaps \"b\" is forbidden: exceeded quota: q, requested: count/configmaps=1, used: count/configmaps=1, limited: count/configmaps=1"
    );
    api.close().await
}

/// Upstream: "Pod Security Admission".
#[tokio::test]
async fn pods_keep_to_the_level_of_their_namespace() -> Result<()> {
    let api = TestApi::start().await?;
    default_account(&api).await?;
    let mut host = pod("host", None);
    host["spec"]["hostPID"] = true.into();
    made(&api, PODS, host.clone()).await?;
    let namespace = "/api/v1/namespaces/default";
    let labels = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "baseline",
        "pod-security.kubernetes.io/warn": "restricted"}}});
    let patch = async |body: Value| {
        let headers = [("content-type", "application/merge-patch+json")];
        let body = body.to_string().into_bytes();
        api.send("PATCH", namespace, &headers, body).await
    };
    let labelled = patch(labels).await?;
    assert_eq!(labelled.code, 200, "{}", labelled.text);
    let told = warnings(&labelled);
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].contains("violate the new PodSecurity enforce level \"baseline:latest\""));
    assert!(told[1].contains("host: host namespaces"));
    host["metadata"]["name"] = "other".into();
    let refused = post(&api, PODS, host).await?;
    assert_eq!(refused.code, 403);
    assert_eq!(
        message(&refused),
        "pods \"other\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostPID=true)"
    );
    let plain = post(&api, PODS, pod("plain", None)).await?;
    assert_eq!(plain.code, 201, "{}", plain.text);
    assert!(warnings(&plain)[0].contains("would violate PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false (container \"c\" must"));
    let deployment = post(&api, super::DEPLOYMENTS, super::deployment("d")).await?;
    assert_eq!(deployment.code, 201);
    assert!(warnings(&deployment)[0].contains("would violate PodSecurity"));
    let bad =
        patch(json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "x"}}})).await?;
    assert_eq!(bad.code, 422);
    api.close().await
}

/// Upstream: "Runtime Class", "Default StorageClass".
#[tokio::test]
async fn classes_fill_in_pods_and_claims() -> Result<()> {
    let api = TestApi::start().await?;
    default_account(&api).await?;
    let mut small = pod("a", None);
    small["spec"]["runtimeClassName"] = "vm".into();
    let refused = post(&api, PODS, small.clone()).await?;
    assert_eq!(
        message(&refused),
        "pods \"a\" is forbidden: pod rejected: RuntimeClass \"vm\" not found"
    );
    let class = json!({"metadata": {"name": "vm"}, "handler": "vm",
        "overhead": {"podFixed": {"memory": "100Mi"}}, "scheduling": {"nodeSelector": {"kvm": "yes"}}});
    made(&api, "/apis/node.k8s.io/v1/runtimeclasses", class).await?;
    let filled = made(&api, PODS, small).await?;
    assert_eq!(filled["spec"]["overhead"], json!({"memory": "100Mi"}));
    assert_eq!(filled["spec"]["nodeSelector"], json!({"kvm": "yes"}));
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    let claim = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}})
    };
    let own = made(&api, claims, claim("own")).await?;
    assert_eq!(own["spec"]["storageClassName"], "local-path");
    let protection = json!(["kubernetes.io/pvc-protection"]);
    assert_eq!(own["metadata"]["finalizers"], protection);
    let class = json!({"metadata": {"name": "local", "annotations":
        {"storageclass.kubernetes.io/is-default-class": "true"}}, "provisioner": "p"});
    made(&api, "/apis/storage.k8s.io/v1/storageclasses", class).await?;
    let some = made(&api, claims, claim("some")).await?;
    assert_eq!(some["spec"]["storageClassName"], "local");
    api.close().await
}

/// Upstream: `TestValidatePersistentVolumeClaimUpdate` (`pkg/apis/core/validation`), and
/// `plugin/pkg/admission/storage/persistentvolume/resize/admission_test.go`.
#[tokio::test]
async fn claims_grow_where_their_class_lets_them() -> Result<()> {
    let api = TestApi::start().await?;
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    let classes = "/apis/storage.k8s.io/v1/storageclasses";
    for (name, grows) in [("grows", true), ("stays", false)] {
        let class = json!({"metadata": {"name": name}, "provisioner": "p",
            "allowVolumeExpansion": grows});
        made(&api, classes, class).await?;
    }
    let claim = |name: &str, class: &str| {
        json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"],
            "storageClassName": class, "resources": {"requests": {"storage": "1Gi"}}}})
    };
    let media = [("content-type", "application/merge-patch+json")];
    let patch = async |path: &str, body: Value| {
        api.send("PATCH", path, &media, body.to_string().into_bytes())
            .await
    };
    let size = async |name: &str, size: &str| {
        let body = json!({"spec": {"resources": {"requests": {"storage": size}}}});
        patch(&format!("{claims}/{name}"), body).await
    };
    for (name, class) in [("a", "grows"), ("b", "stays"), ("c", "")] {
        made(&api, claims, claim(name, class)).await?;
        let unbound = size(name, "2Gi").await?;
        assert_eq!(unbound.code, 422, "{}", unbound.text);
        let frozen = "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        assert!(message(&unbound).contains(frozen), "{}", unbound.text);
        // The same in other words is no change.
        assert_eq!(size(name, "1024Mi").await?.code, 200);
        let bound = json!({"status": {"phase": "Bound", "capacity": {"storage": "1Gi"}}});
        let told = patch(&format!("{claims}/{name}/status"), bound).await?;
        assert_eq!(told.code, 200, "{}", told.text);
    }
    for name in ["b", "c"] {
        let refused = size(name, "2Gi").await?;
        assert_eq!(refused.code, 403);
        let want = format!(
            "persistentvolumeclaims {name:?} is forbidden: only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize"
        );
        assert_eq!(message(&refused), want);
    }
    let grown = size("a", "3Gi").await?;
    assert_eq!(grown.code, 200, "{}", grown.text);
    // Back, where growing has failed; not below what there is.
    assert_eq!(size("a", "2Gi").await?.code, 200);
    let small = size("a", "1Gi").await?;
    assert_eq!(small.code, 422);
    let want =
        "spec.resources.requests.storage: Forbidden: field can not be less than status.capacity";
    assert!(message(&small).contains(want), "{}", small.text);
    let limits = json!({"spec": {"resources": {"limits": {"storage": "9Gi"}}}});
    assert_eq!(patch(&format!("{claims}/a"), limits).await?.code, 422);
    let own = api
        .call("GET", &format!("{classes}/local-path"), None)
        .await?;
    assert_eq!(own.json["allowVolumeExpansion"], true);

    let mut modes = claim("d", "grows");
    modes["spec"]["accessModes"] = json!(["ReadWriteOncePod", "ReadWriteMany"]);
    let refused = post(&api, claims, modes.clone()).await?;
    assert!(
        message(&refused).contains(
            "spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes"
        ),
        "{}",
        refused.text
    );
    modes["spec"]["accessModes"] = json!(["Mine"]);
    let refused = post(&api, claims, modes.clone()).await?;
    let want = "spec.accessModes: Unsupported value: \"Mine\": supported values: \"ReadOnlyMany\", \"ReadWriteMany\", \"ReadWriteOnce\", \"ReadWriteOncePod\"";
    assert!(message(&refused).contains(want), "{}", refused.text);
    modes["spec"]["accessModes"] = json!(["ReadWriteOncePod"]);
    made(&api, claims, modes).await?;
    api.close().await
}
