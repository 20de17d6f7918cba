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
    let csr = json!({"metadata": {"generateName": "c-"}, "spec": {"request": super::signing_request()?,
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

/// A node removes the directories of volumes that were given up, and then the volumes: only its
/// own, and only such.
#[tokio::test]
async fn a_node_deletes_its_volumes_that_were_given_up() -> Result<()> {
    let api = TestApi::start().await?;
    let volumes = "/api/v1/persistentvolumes";
    let given_up = |name: &str, node: &str| {
        json!({
            "metadata": {"name": name, "annotations": {
                "pv.kubernetes.io/provisioned-by": "salp.dev/local-path"}},
            "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
                "hostPath": {"path": "/x"}, "persistentVolumeReclaimPolicy": "Delete",
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}}},
        })
    };
    let mut kept = given_up("kept", "n1");
    kept["spec"]["persistentVolumeReclaimPolicy"] = "Retain".into();
    let mut by_hand = given_up("by-hand", "n1");
    by_hand["metadata"]["annotations"] = json!({});
    for (volume, phase, code) in [
        (given_up("mine", "n1"), "Released", 200),
        (given_up("bound", "n1"), "Bound", 403),
        (given_up("theirs", "n2"), "Released", 403),
        (kept, "Released", 403),
        (by_hand, "Released", 403),
    ] {
        let made = api.call("POST", volumes, Some(&volume)).await?;
        assert_eq!(made.code, 201, "{}", made.text);
        let path = format!(
            "{volumes}/{}",
            volume["metadata"]["name"].as_str().unwrap_or("")
        );
        let status = json!({"status": {"phase": phase}}).to_string().into_bytes();
        let merge = [("content-type", "application/merge-patch+json")];
        let said = api
            .send("PATCH", &format!("{path}/status"), &merge, status)
            .await?;
        assert_eq!(said.code, 200, "{}", said.text);
        let deleted = as_node(&api, "DELETE", &path, &json!({})).await?;
        assert_eq!(deleted.code, code, "{path}: {}", deleted.text);
    }
    api.close().await
}

/// What a node may read goes with the pods that it has, by the rules that upstream has for it.
///
/// In process only: the watch cache must be small, which no flag makes it.
#[tokio::test]
async fn a_node_reads_what_its_pods_name() -> Result<()> {
    // So few events are kept that some are missed: then all pods are looked at.
    let api = TestApi::start_with(|config| config.limits.events_max = 4).await?;
    super::default_account(&api).await?;
    let core = "/api/v1/namespaces/default";
    for name in ["mine", "theirs", "later"] {
        let named = json!({"metadata": {"name": name}});
        for kind in ["secrets", "configmaps"] {
            let path = format!("{core}/{kind}");
            let made = api.call("POST", &path, Some(&named)).await?;
            assert_eq!(made.code, 201, "{}", made.text);
        }
        let claim = json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"],
            "volumeName": name, "resources": {"requests": {"storage": "1Gi"}}}});
        let path = format!("{core}/persistentvolumeclaims");
        let made = api.call("POST", &path, Some(&claim)).await?;
        assert_eq!(made.code, 201, "{}", made.text);
        let volume = json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"],
            "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/x"},
            "claimRef": {"namespace": "default", "name": name}}});
        let path = "/api/v1/persistentvolumes";
        let made = api.call("POST", path, Some(&volume)).await?;
        assert_eq!(made.code, 201, "{}", made.text);
    }
    let pod = |name: &str, node: &str| {
        let mut pod = super::pod(name, Some(node));
        pod["spec"]["volumes"] = json!([
            {"name": "s", "secret": {"secretName": name}},
            {"name": "m", "configMap": {"name": name}},
            {"name": "c", "persistentVolumeClaim": {"claimName": name}}]);
        pod
    };
    let make = async |name: &str, node: &str| {
        let made = api
            .call("POST", super::PODS, Some(&pod(name, node)))
            .await?;
        anyhow::ensure!(made.code == 201, "{}", made.text);
        anyhow::Ok(())
    };
    make("mine", "n1").await?;
    make("theirs", "n2").await?;
    // Over the network: the agent in the server's process is believed.
    let kubeconfig = api.kubeconfig("system:node:n1", &["system:nodes"])?;
    let node = client::connect::from_kubeconfig(&kubeconfig).await?;
    let code = async |method: &str, path: &str, body: &Value| {
        let request = http::Request::builder().method(method).uri(path);
        let request = request.header("content-type", "application/merge-patch+json");
        match node
            .request::<Value>(request.body(body.to_string().into_bytes())?)
            .await
        {
            Ok(_) => Ok(200),
            Err(client::kube::Error::Api(status)) => Ok(status.code),
            Err(error) => Err(anyhow::Error::new(error)),
        }
    };
    let reads = async |name: &str| {
        let mut codes = Vec::new();
        for path in [
            format!("{core}/secrets/{name}"),
            format!("{core}/configmaps/{name}"),
            format!("{core}/persistentvolumeclaims/{name}"),
            format!("/api/v1/persistentvolumes/{name}"),
        ] {
            codes.push(code("GET", &path, &Value::Null).await?);
        }
        anyhow::Ok(codes)
    };
    assert_eq!(reads("mine").await?, [200; 4]);
    assert_eq!(reads("theirs").await?, [403; 4]);
    assert_eq!(reads("later").await?, [403; 4]);
    // Its status alone is its node's, and of that only what tells its size.
    for (name, patch, want) in [
        (
            "mine",
            json!({"status": {"capacity": {"storage": "2Gi"}}}),
            200,
        ),
        ("mine", json!({"status": {"phase": "Lost"}}), 403),
        (
            "theirs",
            json!({"status": {"capacity": {"storage": "2Gi"}}}),
            403,
        ),
    ] {
        let path = format!("{core}/persistentvolumeclaims/{name}/status");
        assert_eq!(code("PATCH", &path, &patch).await?, want, "{name} {patch}");
    }
    for path in ["/api/v1/persistentvolumes", "/api/v1/secrets"] {
        assert_eq!(code("GET", path, &Value::Null).await?, 403, "{path}");
    }
    make("later", "n1").await?;
    assert_eq!(reads("later").await?, [200; 4]);
    // More changes than the cache remembers.
    for i in 0..10 {
        make(&format!("filler-{i}"), "n2").await?;
    }
    for name in ["mine", "later"] {
        let path = format!("{}/{name}", super::PODS);
        let now = json!({"gracePeriodSeconds": 0});
        let gone = api.call("DELETE", &path, Some(&now)).await?;
        assert_eq!(gone.code, 200, "{}", gone.text);
        assert_eq!(api.call("GET", &path, None).await?.code, 404);
    }
    assert_eq!(reads("mine").await?, [403; 4]);
    assert_eq!(reads("later").await?, [403; 4]);
    api.close().await
}

/// By what a node writes it gets no more than is its own.
#[tokio::test]
async fn a_node_is_held_to_itself() -> Result<()> {
    let api = TestApi::start().await?;
    let node = json!({"metadata": {"name": "n1"}});
    let made = as_node(&api, "POST", "/api/v1/nodes", &node).await?;
    let uid = made.json["metadata"]["uid"].clone();
    let owner = |uid: &Value| json!([{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": uid, "controller": true}]);
    for (owners, code) in [
        (Value::Null, 403),
        (owner(&json!("other")), 403),
        (owner(&uid), 201),
    ] {
        let mut mirror = super::pod("mirror", Some("n1"));
        mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
        mirror["metadata"]["ownerReferences"] = owners;
        let made = as_node(&api, "POST", super::PODS, &mirror).await?;
        assert_eq!(made.code, code, "{}", made.text);
    }
    let slices = "/apis/resource.k8s.io/v1/resourceslices";
    let slice = |name: &str, node: &str| {
        json!({"metadata": {"name": name}, "spec": {"driver": "d.example.com", "nodeName": node,
            "pool": {"name": node, "generation": 1, "resourceSliceCount": 1}}})
    };
    let theirs = as_node(&api, "POST", slices, &slice("a", "n2")).await?;
    assert_eq!(theirs.code, 403, "{}", theirs.text);
    let mine = as_node(&api, "POST", slices, &slice("a", "n1")).await?;
    assert_eq!(mine.code, 201, "{}", mine.text);
    let made = api.call("POST", slices, Some(&slice("b", "n2"))).await?;
    assert_eq!(made.code, 201, "{}", made.text);
    for (name, code) in [("a", 200), ("b", 403)] {
        let path = format!("{slices}/{name}");
        let deleted = as_node(&api, "DELETE", &path, &json!({})).await?;
        assert_eq!(deleted.code, code, "{}", deleted.text);
    }
    let request = json!({"metadata": {"generateName": "c-"}, "spec": {"request": super::signing_request()?,
        "signerName": "kubernetes.io/kubelet-serving", "usages": ["server auth"]}});
    let asked = as_node(&api, "POST", CSRS, &request).await?;
    assert_eq!(asked.code, 403, "{}", asked.text);

    // A taint that it was given is not shed by leaving and coming again.
    let tainted = json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}});
    let headers = [("content-type", "application/merge-patch+json")];
    let path = "/api/v1/nodes/n1";
    api.send("PATCH", path, &headers, tainted.to_string().into())
        .await?;
    let deleted = as_node(&api, "DELETE", path, &json!({})).await?;
    assert_eq!(deleted.code, 403, "{}", deleted.text);
    let free = json!({"spec": {"taints": null}});
    api.send("PATCH", path, &headers, free.to_string().into())
        .await?;
    let deleted = as_node(&api, "DELETE", path, &json!({})).await?;
    assert_eq!(deleted.code, 200, "{}", deleted.text);
    api.close().await
}
