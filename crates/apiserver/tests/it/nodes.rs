//! How machines become nodes: bootstrap tokens, requests for certificates, and what a node
//! may write.

use anyhow::Result;
use serde_json::{Value, json};
use testkit::{Answer, TestApi};

const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

fn bootstrap_token(secret: &str) -> Value {
    json!({"type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": "bootstrap-token-abcdef", "namespace": "kube-system"},
        "stringData": {"token-id": "abcdef", "token-secret": secret,
            "usage-bootstrap-authentication": "true"}})
}

async fn as_node(api: &TestApi, method: &str, path: &str, body: &Value) -> Result<Answer> {
    let user = ("system:node:n1", &["system:nodes"][..]);
    let kind = match method {
        "PATCH" => "application/merge-patch+json",
        _ => "application/json",
    };
    let headers = [("content-type", kind)];
    api.send_as(user, method, path, &headers, body.to_string().into_bytes())
        .await
}

#[tokio::test]
async fn a_machine_finds_the_ca_and_asks_with_a_token() -> Result<()> {
    let api = TestApi::start().await?;
    let nobody = ("system:anonymous", &["system:unauthenticated"][..]);
    let info = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
    let found = api.send_as(nobody, "GET", info, &[], Vec::new()).await?;
    assert_eq!(found.code, 200, "{}", found.text);
    assert!(
        found.json["data"]["kubeconfig"]
            .to_string()
            .contains("certificate-authority-data")
    );
    let other = "/api/v1/namespaces/kube-public/configmaps";
    let list = api.send_as(nobody, "GET", other, &[], Vec::new()).await?;
    assert_eq!(list.code, 403, "{}", list.text);

    let secrets = "/api/v1/namespaces/kube-system/secrets";
    let token = bootstrap_token("0123456789abcdef");
    let made = api.call("POST", secrets, Some(&token)).await?;
    assert_eq!(made.code, 201, "{}", made.text);
    let review = |token: &str| json!({"spec": {"token": token}});
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    let unknown = api
        .call("POST", path, Some(&review("abcdef.0123456789abcdee")))
        .await?;
    assert_ne!(
        unknown.json["status"]["authenticated"], true,
        "{}",
        unknown.text
    );

    let user = ("system:bootstrap:abcdef", &["system:bootstrappers"][..]);
    let csr = json!({"metadata": {"generateName": "c-"}, "spec": {"request": "aGk=",
        "signerName": "kubernetes.io/kube-apiserver-client-kubelet", "usages": ["client auth"],
        "username": "system:admin", "groups": ["system:masters"]}});
    let headers = [("content-type", "application/json")];
    let asked = api
        .send_as(user, "POST", CSRS, &headers, csr.to_string().into_bytes())
        .await?;
    assert_eq!(asked.code, 201, "{}", asked.text);
    // Who asks is what the server knows, not what the client says.
    assert_eq!(asked.json["spec"]["username"], "system:bootstrap:abcdef");
    assert!(!asked.json["spec"]["groups"].to_string().contains("masters"));
    let pods = api
        .send_as(user, "GET", "/api/v1/pods", &[], Vec::new())
        .await?;
    assert_eq!(pods.code, 403, "{}", pods.text);
    api.close().await
}

#[tokio::test]
async fn a_node_writes_what_is_its_own() -> Result<()> {
    let api = TestApi::start().await?;
    super::default_account(&api).await?;
    let node = |name: &str| json!({"metadata": {"name": name}});
    let own = as_node(&api, "POST", "/api/v1/nodes", &node("n1")).await?;
    assert_eq!(own.code, 201, "{}", own.text);
    let other = as_node(&api, "POST", "/api/v1/nodes", &node("n2")).await?;
    assert_eq!(other.code, 403, "{}", other.text);
    let taint = json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}});
    let tainted = as_node(&api, "PATCH", "/api/v1/nodes/n1", &taint).await?;
    assert_eq!(tainted.code, 403, "{}", tainted.text);
    let cordon = json!({"spec": {"unschedulable": true}});
    let cordoned = as_node(&api, "PATCH", "/api/v1/nodes/n1", &cordon).await?;
    assert_eq!(cordoned.code, 200, "{}", cordoned.text);
    let label = json!({"metadata": {"labels": {"node-restriction.kubernetes.io/zone": "a"}}});
    let labelled = as_node(&api, "PATCH", "/api/v1/nodes/n1", &label).await?;
    assert_eq!(labelled.code, 403, "{}", labelled.text);

    for patch in [
        json!({"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}}),
        json!({"spec": {"podCIDR": "0.0.0.0/0"}}),
    ] {
        let refused = as_node(&api, "PATCH", "/api/v1/nodes/n1", &patch).await?;
        assert_eq!(refused.code, 403, "{patch}: {}", refused.text);
    }

    for (name, on) in [("mine", "n1"), ("theirs", "n2")] {
        api.call("POST", super::PODS, Some(&super::pod(name, Some(on))))
            .await?;
    }
    let running = json!({"status": {"phase": "Running"}});
    let path = |name: &str, sub: &str| format!("{}/{name}{sub}", super::PODS);
    let mine = as_node(&api, "PATCH", &path("mine", "/status"), &running).await?;
    assert_eq!(mine.code, 200, "{}", mine.text);
    let theirs = as_node(&api, "PATCH", &path("theirs", "/status"), &running).await?;
    assert_eq!(theirs.code, 403, "{}", theirs.text);
    let deleted = as_node(&api, "DELETE", &path("theirs", ""), &json!({})).await?;
    assert_eq!(deleted.code, 403, "{}", deleted.text);
    let made = as_node(&api, "POST", super::PODS, &super::pod("new", Some("n1"))).await?;
    assert_eq!(made.code, 403, "{}", made.text);
    // Through the status no pod gets behind a Service, or to another owner (as upstream, which
    // refuses the one and leaves out the other).
    let owner = json!({"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u"});
    for meta in [
        json!({"labels": {"app": "db"}}),
        json!({"annotations": {"kubernetes.io/config.mirror": "x"}}),
    ] {
        let patch = json!({"metadata": meta, "status": {"phase": "Running"}});
        let refused = as_node(&api, "PATCH", &path("mine", "/status"), &patch).await?;
        assert_eq!(refused.code, 403, "{patch}: {}", refused.text);
    }
    let patch = json!({"metadata": {"ownerReferences": [owner]}, "status": {"phase": "Running"}});
    let kept = as_node(&api, "PATCH", &path("mine", "/status"), &patch).await?;
    assert_eq!(kept.json["metadata"]["ownerReferences"], Value::Null);
    // A pod of its own making gives it nothing to read.
    let mut mirror = super::pod("mirror", Some("n1"));
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    mirror["spec"]["imagePullSecrets"] = json!([{"name": "key"}]);
    let made = as_node(&api, "POST", super::PODS, &mirror).await?;
    assert_eq!(made.code, 403, "{}", made.text);
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    let lease = as_node(&api, "POST", leases, &node("n2")).await?;
    assert_eq!(lease.code, 403, "{}", lease.text);
    let lease = as_node(&api, "POST", leases, &node("n1")).await?;
    assert_eq!(lease.code, 201, "{}", lease.text);
    api.close().await
}
