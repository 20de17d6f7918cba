//! The API server as its clients see it.

mod access;
mod admission;
mod aggregation;
mod audit;
mod cbor;
mod crds;
mod crud;
mod deletion;
mod devices;
mod discovery;
mod encryption;
mod events;
mod flow;
mod helm;
mod kubectl;
mod kubelet;
mod list;
mod nodes;
mod oidc;
mod patch;
mod pod_certificates;
mod policies;
mod protobuf;
mod request_header;
mod resource_metrics;
mod services;
mod shared;
mod subresources;
mod warnings;
mod watch;
mod webhooks;

use serde_json::{Value, json};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const SERVICES: &str = "/api/v1/namespaces/default/services";

/// Every kind that can be listed, with the path of all its objects.
fn listed() -> impl Iterator<Item = (&'static api::Resource, String)> {
    let listed = api::resources()
        .iter()
        .filter(|r| r.verbs.contains(&"list"));
    listed.map(|row| {
        let path = if row.group.is_empty() {
            format!("/api/{}/{}", row.version, row.plural)
        } else {
            format!("/apis/{}/{}/{}", row.group, row.version, row.plural)
        };
        (row, path)
    })
}

/// A request for a certificate, signed by a new key.
fn signing_request() -> anyhow::Result<String> {
    use base64::Engine as _;
    let key = rcgen::KeyPair::generate()?;
    let request = rcgen::CertificateParams::default().serialize_request(&key)?;
    Ok(base64::engine::general_purpose::STANDARD.encode(request.pem()?))
}

/// A ConfigMap with one label.
fn config_map(name: &str, label: &str) -> Value {
    json!({"kind": "ConfigMap", "apiVersion": "v1",
        "metadata": {"name": name, "labels": {"l": label}}, "data": {"k": "v"}})
}

/// A pod of one container, perhaps on a node.
fn pod(name: &str, node: Option<&str>) -> Value {
    let mut pod = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "example.com/c:1"}]}});
    if let Some(node) = node {
        pod["spec"]["nodeName"] = node.into();
    }
    pod
}

/// A deployment.
fn deployment(name: &str) -> Value {
    json!({"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": name},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": "example.com/c:1"}]}}}})
}

/// Pods need their namespace's account, which a controller makes in a whole site.
async fn default_account(api: &testkit::TestApi) -> anyhow::Result<()> {
    let path = "/api/v1/namespaces/default/serviceaccounts";
    let made = api
        .call(
            "POST",
            path,
            Some(&json!({"metadata": {"name": "default"}})),
        )
        .await?;
    anyhow::ensure!(made.code == 201, "{}", made.text);
    Ok(())
}
