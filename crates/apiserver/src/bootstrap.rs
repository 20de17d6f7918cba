//! What every cluster has: namespaces, default roles, priority classes, the `kubernetes` Service.
//! Written when missing; what users changed stays as it is. Default roles and bindings of an
//! earlier version get what they lack.

use crate::authn::request_header::RequestHeaders;
use crate::authz::policy;
use crate::authz::reconcile::{Reconciled, concerns, reconcile};
use crate::config::ServiceCidr;
use crate::registry::Call;
use crate::registry::create::{Tracking, create};
use crate::registry::delete::{DeleteOptions, delete};
use crate::registry::update::{Part, modify};
use crate::row::Row;
use crate::server_state::Core;
use api::constants;
use apimachinery::Status;
use base64::Engine as _;
use futures::StreamExt as _;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Objects written at once; the store commits them in one go.
const TOGETHER: usize = 64;
/// Tries where another server starts over the same store, and the pause between them.
const TRIES: usize = 10;
const RETRY: Duration = Duration::from_millis(200);

/// Makes what is missing.
pub(crate) async fn run(
    core: &Arc<Core>,
    cidr: ServiceCidr,
    port: u16,
    advertise: Option<SocketAddr>,
    client_ca: &str,
) -> Result<(), Status> {
    for _ in 1..TRIES {
        match write(core, cidr, port, advertise, client_ca).await {
            Err(error) if core.peers.is_some() => {
                // Another server starts too, and was between two steps.
                tracing::debug!(%error, "writing bootstrap objects");
                tokio::time::sleep(RETRY).await;
            }
            done => return done,
        }
    }
    write(core, cidr, port, advertise, client_ca).await
}

async fn write(
    core: &Arc<Core>,
    cidr: ServiceCidr,
    port: u16,
    advertise: Option<SocketAddr>,
    client_ca: &str,
) -> Result<(), Status> {
    let mut first: Vec<Value> = ["default", "kube-system", "kube-public", "kube-node-lease"]
        .iter()
        .map(|n| json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": n}}))
        .collect();
    first.extend(policy::objects());
    first.extend(priority_classes());
    first.push(storage_class());
    first.extend(crate::flow::objects());
    ensure_all(core, first).await?;
    let mut second = policy::namespaced();
    second.push(service(cidr, port, advertise));
    let authentication = authentication(client_ca, core.authn.request_headers.as_deref());
    second.push(authentication.clone());
    if let Some(address) = advertise {
        second.push(cluster_info(address, client_ca));
    }
    ensure_all(core, second).await?;
    renew_authentication(core, &authentication).await?;
    if let Some(address) = advertise {
        service_ports(core, port, address.port()).await?;
    }
    // Where there may be others, `peers` tells of all of them.
    if let Some(address) = advertise.filter(|_| core.peers.is_none()) {
        endpoint(core, address).await?;
        keep_cluster_info(core, &[address], client_ca).await?;
    }
    Ok(())
}

async fn ensure_all(core: &Arc<Core>, objects: Vec<Value>) -> Result<(), Status> {
    let mut done = futures::stream::iter(objects.into_iter().map(|o| ensure(core, o)))
        .buffer_unordered(TOGETHER);
    while let Some(result) = done.next().await {
        result?;
    }
    // The next step's admission reads what this one wrote.
    core.fresh().await
}

fn row_of(object: &Value) -> Option<Row> {
    let (group, version) = match object["apiVersion"].as_str()?.split_once('/') {
        Some((g, v)) => (g, v),
        None => ("", object["apiVersion"].as_str()?),
    };
    api::find_kind(group, version, object["kind"].as_str()?).map(Row::Builtin)
}

async fn ensure(core: &Arc<Core>, object: Value) -> Result<(), Status> {
    let Some(row) = row_of(&object) else {
        return Err(Status::internal(format!(
            "no kind {} {}",
            object["apiVersion"], object["kind"]
        )));
    };
    let text = |k: &str| {
        object["metadata"][k]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let (namespace, name) = (text("namespace"), text("name"));
    let user = Core::own_user();
    let call = Call::own(core, &row, &namespace, &name, &user);
    if let Some(existing) = core.kind(&row)?.get(&namespace, &name) {
        if !concerns(&object) {
            return Ok(());
        }
        match reconcile(&existing.value(), &object) {
            Reconciled::Keep => return Ok(()),
            Reconciled::Update(_) => return update(&call, &object).await,
            Reconciled::Replace => {
                tracing::warn!(name, "default binding names another role: made anew");
                delete(&call, &DeleteOptions::default()).await?;
            }
        }
    }
    match create(&call, object, Tracking::Update).await {
        Ok(_) => Ok(()),
        Err(s) if s.reason == "AlreadyExists" => Ok(()),
        Err(s) => Err(s),
    }
}

/// Adds what a default role or binding lacks.
async fn update(call: &Call<'_>, wanted: &Value) -> Result<(), Status> {
    tracing::info!(
        name = call.name,
        "default role or binding brought up to date"
    );
    let added = |old: &Value| {
        Ok(match reconcile(old, wanted) {
            Reconciled::Update(new) => new,
            Reconciled::Keep | Reconciled::Replace => old.clone(),
        })
    };
    modify(call, Part::Main, Tracking::Update, &added)
        .await
        .map(drop)
}

fn priority_classes() -> Vec<Value> {
    [
        ("system-cluster-critical", 2_000_000_000i64, "cluster"),
        ("system-node-critical", 2_000_001_000, "node"),
    ]
    .iter()
    .map(|(name, value, whose)| {
        json!({
            "kind": "PriorityClass", "apiVersion": "scheduling.k8s.io/v1",
            "metadata": {"name": name}, "value": value,
            "description": format!("Used for pods that are critical to the {whose}."),
        })
    })
    .collect()
}

/// Directories of the node where a claim's first pod runs, for claims that ask for nothing else.
fn storage_class() -> Value {
    json!({
        "kind": "StorageClass", "apiVersion": "storage.k8s.io/v1",
        "metadata": {
            "name": constants::LOCAL_PATH_CLASS,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": constants::LOCAL_PATH_PROVISIONER,
        "reclaimPolicy": "Delete", "volumeBindingMode": "WaitForFirstConsumer",
        // A directory has room for what its disk has room for: it grows by saying so.
        "allowVolumeExpansion": true,
    })
}

/// The Service through which pods reach this server.
fn service(cidr: ServiceCidr, port: u16, advertise: Option<SocketAddr>) -> Value {
    let target = advertise.map_or(6443, |a| a.port());
    json!({
        "kind": "Service", "apiVersion": "v1",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"},
        },
        "spec": {
            "type": "ClusterIP", "clusterIP": cidr.at(1).to_string(),
            "sessionAffinity": "None",
            "ports": [{"name": "https", "protocol": "TCP", "port": port, "targetPort": target}],
        },
    })
}

/// How extension servers check the certificates of clients, and of those who call through
/// this one or another proxy and say in whose name.
fn authentication(client_ca: &str, proxies: Option<&RequestHeaders>) -> Value {
    let mut data = json!({"client-ca-file": client_ca});
    for (key, value) in proxies.map_or_else(Vec::new, RequestHeaders::published) {
        data[key] = value;
    }
    json!({
        "kind": "ConfigMap", "apiVersion": "v1",
        "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
        "data": data,
    })
}

/// Authorities change with their files.
async fn renew_authentication(core: &Arc<Core>, wanted: &Value) -> Result<(), Status> {
    let Some(row) = Row::builtin("", "v1", "configmaps") else {
        return Ok(());
    };
    let user = Core::own_user();
    let name = "extension-apiserver-authentication";
    let call = Call::own(core, &row, "kube-system", name, &user);
    modify(&call, Part::Main, Tracking::Update, &|old| {
        let mut new = old.clone();
        for (key, value) in wanted["data"].as_object().into_iter().flatten() {
            new["data"][key] = value.clone();
        }
        Ok(new)
    })
    .await
    .map(drop)
}

/// What a machine that wants to join reads before it can trust anybody: where the server is,
/// and the CA, which the machine holds against the hash that it was told. The site's CA signs
/// both clients and servers.
fn cluster_info(address: SocketAddr, ca: &str) -> Value {
    let ca = base64::engine::general_purpose::STANDARD.encode(ca);
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: \"\"\n  cluster:\n    server: https://{address}\n    certificate-authority-data: {ca}\ncontexts: []\nusers: []\ncurrent-context: \"\"\n"
    );
    json!({
        "kind": "ConfigMap", "apiVersion": "v1",
        "metadata": {"name": "cluster-info", "namespace": "kube-public"},
        "data": {"kubeconfig": kubeconfig},
    })
}

/// Lets `cluster-info` name a server that lives: the one it names, or the first of these.
pub(crate) async fn keep_cluster_info(
    core: &Arc<Core>,
    alive: &[SocketAddr],
    ca: &str,
) -> Result<(), Status> {
    let Some(row) = Row::builtin("", "v1", "configmaps") else {
        return Ok(());
    };
    let text = |address: &SocketAddr| cluster_info(*address, ca)["data"]["kubeconfig"].clone();
    let named = |map: &Value| alive.iter().any(|a| text(a) == map["data"]["kubeconfig"]);
    let there = core.peek("", "configmaps", "kube-public", "cluster-info");
    let (Some(there), Some(first)) = (there, alive.first()) else {
        return Ok(());
    };
    if named(&there.value()) {
        return Ok(());
    }
    let user = Core::own_user();
    let call = Call::own(core, &row, "kube-public", "cluster-info", &user);
    modify(&call, Part::Main, Tracking::Update, &|old| {
        let mut new = old.clone();
        if !named(old) {
            new["data"]["kubeconfig"] = text(first);
        }
        Ok(new)
    })
    .await
    .map(drop)
}

/// Keeps the endpoint at the address that is served now.
async fn endpoint(core: &Arc<Core>, address: SocketAddr) -> Result<(), Status> {
    let slice = json!({
        "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"},
        },
        "addressType": if address.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{"addresses": [address.ip().to_string()], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "protocol": "TCP", "port": address.port()}],
    });
    keep(core, &slice, &["endpoints", "ports"]).await?;
    keep_endpoints(core, &[address]).await
}

/// Keeps the `Endpoints` of the `kubernetes` Service, for clients that still read those.
pub(crate) async fn keep_endpoints(core: &Arc<Core>, servers: &[SocketAddr]) -> Result<(), Status> {
    let mut by_port: BTreeMap<u16, Vec<Value>> = BTreeMap::new();
    for server in servers {
        let address = json!({"ip": server.ip().to_string()});
        by_port.entry(server.port()).or_default().push(address);
    }
    let subsets = by_port.into_iter().map(|(port, addresses)| {
        let port = json!({"name": "https", "protocol": "TCP", "port": port});
        json!({"addresses": addresses, "ports": [port]})
    });
    let subsets: Value = subsets.collect();
    let endpoints = json!({
        "kind": "Endpoints", "apiVersion": "v1",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": subsets,
    });
    keep(core, &endpoints, &["subsets"]).await
}

/// Makes an object, or keeps these fields of the one that is there; one that goes meanwhile is
/// made with the next try.
pub(crate) async fn keep(core: &Arc<Core>, wanted: &Value, fields: &[&str]) -> Result<(), Status> {
    let Some(row) = row_of(wanted) else {
        return Err(Status::internal(format!("no kind {}", wanted["kind"])));
    };
    let text = |key: &str| wanted["metadata"][key].as_str().unwrap_or_default();
    let (namespace, name) = (text("namespace"), text("name"));
    let user = Core::own_user();
    let call = Call::own(core, &row, namespace, name, &user);
    let Some(there) = core.kind(&row)?.get(namespace, name) else {
        return match create(&call, wanted.clone(), Tracking::Update).await {
            Err(s) if s.reason != "AlreadyExists" => Err(s),
            _ => Ok(()),
        };
    };
    let value = there.value();
    if fields.iter().all(|key| value[*key] == wanted[*key]) {
        return Ok(());
    }
    let changed = |old: &Value| {
        let mut new = old.clone();
        for key in fields {
            new[*key] = wanted[*key].clone();
        }
        Ok(new)
    };
    match modify(&call, Part::Main, Tracking::Update, &changed).await {
        Err(s) if s.code != 404 => Err(s),
        _ => Ok(()),
    }
}

/// Keeps the Service at the ports that are served now.
async fn service_ports(core: &Arc<Core>, port: u16, target: u16) -> Result<(), Status> {
    let Some(row) = Row::builtin("", "v1", "services") else {
        return Ok(());
    };
    let user = Core::own_user();
    let call = Call::own(core, &row, "default", "kubernetes", &user);
    modify(&call, Part::Main, Tracking::Update, &|old| {
        let mut new = old.clone();
        new["spec"]["ports"][0]["port"] = port.into();
        new["spec"]["ports"][0]["targetPort"] = target.into();
        Ok(new)
    })
    .await
    .map(drop)
}
