//! ServiceAccount: every pod has one, that exists, and finds its token, the root CA and its
//! namespace mounted.

use crate::registry::Call;
use apimachinery::Status;
use serde_json::{Value, json};
use std::time::Duration;

const MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Seconds that the mounted token is good for, as upstream asks (an hour and a week's grace).
const TOKEN_SECONDS: i64 = 3607;
/// How long a pod's creation waits for the account of a namespace that was just made.
const ACCOUNT_WAIT: Duration = Duration::from_secs(3);

pub(super) async fn mutate(call: &Call<'_>, pod: &mut Value) -> Result<(), Status> {
    // Mirror pods speak for no account.
    if !pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_null() {
        return Ok(());
    }
    let spec = &mut pod["spec"];
    let stated = ["serviceAccountName", "serviceAccount"]
        .iter()
        .find_map(|k| spec[*k].as_str().filter(|s| !s.is_empty()))
        .unwrap_or("default")
        .to_owned();
    spec["serviceAccountName"] = stated.as_str().into();
    spec["serviceAccount"] = stated.as_str().into();
    let account = account(call, &stated).await?;
    let automount = spec["automountServiceAccountToken"]
        .as_bool()
        .or_else(|| account["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    if automount {
        mount(call, pod);
    }
    let spec = &mut pod["spec"];
    if spec["imagePullSecrets"]
        .as_array()
        .is_none_or(Vec::is_empty)
        && account["imagePullSecrets"]
            .as_array()
            .is_some_and(|s| !s.is_empty())
    {
        spec["imagePullSecrets"] = account["imagePullSecrets"].clone();
    }
    Ok(())
}

async fn account(call: &Call<'_>, name: &str) -> Result<Value, Status> {
    let find = || call.core.peek("", "serviceaccounts", call.namespace, name);
    if let Some(found) = find() {
        return Ok(found.value());
    }
    let missing = || {
        call.forbidden(format!(
            "error looking up service account {}/{name}: serviceaccount {name:?} not found",
            call.namespace
        ))
    };
    call.core.fresh().await?;
    if let Some(found) = find() {
        return Ok(found.value());
    }
    if name != "default" {
        return Err(missing());
    }
    // The controller makes the default account a moment after its namespace.
    let kind = call
        .core
        .cache
        .named("", "serviceaccounts")
        .ok_or_else(missing)?;
    let mut changes = kind.subscribe();
    let wait = async {
        loop {
            if let Some(found) = find() {
                return Some(found.value());
            }
            changes.changed().await.ok()?;
        }
    };
    tokio::time::timeout(ACCOUNT_WAIT, wait)
        .await
        .ok()
        .flatten()
        .ok_or_else(missing)
}

fn mount(call: &Call<'_>, pod: &mut Value) {
    let spec = &mut pod["spec"];
    let existing = spec["volumes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|v| v["name"].as_str())
        .find(|n| n.starts_with("kube-api-access-"))
        .map(str::to_owned);
    let volume = existing
        .clone()
        .unwrap_or_else(|| format!("kube-api-access-{}", call.core.suffix()));
    let mut used = false;
    for list in ["initContainers", "containers"] {
        let list = spec.get_mut(list).and_then(Value::as_array_mut);
        for container in list.into_iter().flatten() {
            let has = container["volumeMounts"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|m| m["mountPath"] == MOUNT);
            if has {
                continue;
            }
            if !container["volumeMounts"].is_array() {
                container["volumeMounts"] = json!([]);
            }
            if let Some(mounts) = container["volumeMounts"].as_array_mut() {
                mounts.push(json!({"name": volume, "readOnly": true, "mountPath": MOUNT}));
                used = true;
            }
        }
    }
    if !used || existing.is_some() {
        return;
    }
    if !spec["volumes"].is_array() {
        spec["volumes"] = json!([]);
    }
    if let Some(volumes) = spec["volumes"].as_array_mut() {
        volumes.push(json!({
            "name": volume,
            "projected": {
                "defaultMode": 420,
                "sources": [
                    {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
                    {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                    {"downwardAPI": {"items": [{
                        "path": "namespace",
                        "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
                    }]}},
                ],
            },
        }));
    }
}
