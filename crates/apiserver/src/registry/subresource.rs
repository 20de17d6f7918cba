//! Subresources that change objects in their own way: scale, binding,
//! finalize, ephemeral containers, resize, approval, tokens.

use super::create::Tracking;
use super::patch::Patch;
use super::update::{Part, modify};
use super::{Call, Input, meta, patch};
use crate::cache::Object;
use crate::http::negotiate::unsupported_media;
use crate::row::ScalePaths;
use apimachinery::{FieldError, Status};
use serde_json::{Value, json};
use std::sync::Arc;

/// The part of an object that an updatable subresource covers.
pub(crate) fn part(call: &Call<'_>) -> Option<Part> {
    Some(match (call.row.known(), call.subresource) {
        (_, "") => Part::Main,
        (_, "status") if call.row.status() => Part::Status,
        ("pods", "ephemeralcontainers") => Part::Only(|new, asked| {
            copy(new, asked, &["spec", "ephemeralContainers"]);
        }),
        ("pods", "resize") => Part::Only(copy_resources),
        ("namespaces", "finalize") => Part::Only(|new, asked| {
            copy(new, asked, &["spec", "finalizers"]);
            copy(new, asked, &["status"]);
        }),
        ("certificatesigningrequests", "approval") => Part::Only(copy_approval),
        _ => return None,
    })
}

fn copy(new: &mut Value, asked: &Value, path: &[&str]) {
    let Some((last, parents)) = path.split_last() else {
        return;
    };
    let from = parents.iter().fold(asked, |v, k| &v[*k]).get(*last);
    let mut to = new;
    for key in parents {
        if !to[*key].is_object() {
            to[*key] = json!({});
        }
        to = &mut to[*key];
    }
    let Some(to) = to.as_object_mut() else { return };
    match from {
        Some(v) => to.insert((*last).to_owned(), v.clone()),
        None => to.remove(*last),
    };
}

fn copy_resources(new: &mut Value, asked: &Value) {
    for list in ["containers", "initContainers"] {
        let containers = new["spec"].get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let twin = asked["spec"][list]
                .as_array()
                .into_iter()
                .flatten()
                .find(|c| c["name"] == container["name"]);
            if let Some(twin) = twin {
                copy(container, twin, &["resources"]);
                copy(container, twin, &["resizePolicy"]);
            }
        }
    }
}

/// Approval may set the conditions Approved and Denied only.
fn copy_approval(new: &mut Value, asked: &Value) {
    let approval = |c: &&Value| matches!(c["type"].as_str(), Some("Approved" | "Denied"));
    let mut conditions: Vec<Value> = new["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|c| !approval(c))
        .cloned()
        .collect();
    conditions.extend(
        asked["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(approval)
            .cloned(),
    );
    if !new["status"].is_object() {
        new["status"] = json!({});
    }
    new["status"]["conditions"] = conditions.into();
}

const SCALE_VERSION: &str = "autoscaling/v1";

/// The `autoscaling/v1` Scale of an object.
pub(crate) fn scale_of(scale: ScalePaths<'_>, object: &Value) -> Value {
    let at = |path: &str| {
        path.trim_start_matches('.')
            .split('.')
            .fold(object, |v, k| &v[k])
    };
    let m = &object["metadata"];
    let mut meta = json!({});
    for key in [
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
    ] {
        if !m[key].is_null() {
            meta[key] = m[key].clone();
        }
    }
    let managers = scale_managers(scale, m);
    if !managers.is_empty() {
        meta["managedFields"] = managers.into();
    }
    let selector = match scale.selector {
        None => selector_text(&object["spec"]["selector"]),
        Some("") => String::new(),
        Some(path) => at(path).as_str().unwrap_or_default().to_owned(),
    };
    let mut status = json!({"replicas": at(scale.status_replicas).as_i64().unwrap_or(0)});
    if !selector.is_empty() {
        status["selector"] = selector.into();
    }
    json!({
        "kind": "Scale", "apiVersion": SCALE_VERSION, "metadata": meta,
        "spec": {"replicas": at(scale.spec_replicas).as_i64().unwrap_or(0)}, "status": status,
    })
}

/// A selector object (or a plain map) in query form.
fn selector_text(selector: &Value) -> String {
    let Some(map) = selector.as_object() else {
        return String::new();
    };
    let structured = map.contains_key("matchLabels") || map.contains_key("matchExpressions");
    let mut out: Vec<String> = Vec::new();
    let labels = if structured {
        selector["matchLabels"].as_object()
    } else {
        Some(map)
    };
    for (k, v) in labels.into_iter().flatten() {
        out.push(format!("{k}={}", v.as_str().unwrap_or_default()));
    }
    for e in selector["matchExpressions"]
        .as_array()
        .into_iter()
        .flatten()
    {
        let key = e["key"].as_str().unwrap_or_default();
        let mut values: Vec<&str> = e["values"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        values.sort_unstable();
        let values = values.join(",");
        out.push(match e["operator"].as_str().unwrap_or_default() {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    out.sort();
    out.join(",")
}

/// Who owns the replicas of an object, as managers of its Scale.
fn scale_managers(scale: ScalePaths<'_>, metadata: &Value) -> Vec<Value> {
    let owns = |entry: &&Value| {
        let keys = scale.spec_replicas.trim_start_matches('.').split('.');
        let path = keys.fold(&entry["fieldsV1"], |v, k| &v[format!("f:{k}")]);
        path.is_object()
    };
    let entries = metadata["managedFields"].as_array().into_iter().flatten();
    entries
        .filter(owns)
        .map(|entry| {
            let mut entry = entry.clone();
            entry["apiVersion"] = SCALE_VERSION.into();
            entry["fieldsV1"] = json!({"f:spec": {"f:replicas": {}}});
            entry
        })
        .collect()
}

/// Writes replicas through `/scale`, by PUT or PATCH of a Scale.
pub(crate) async fn write_scale(
    call: &Call<'_>,
    scale: ScalePaths<'_>,
    input: Option<&Input>,
    patch: Option<&Patch>,
) -> Result<Value, Status> {
    if let Some(patch) = patch.filter(|p| p.is_apply()) {
        return apply_scale(call, scale, patch).await;
    }
    let sent = match input {
        None => None,
        Some(input) => Some(decode_scale(input)?),
    };
    let object = modify(call, Part::Main, Tracking::Update, &|old| {
        let current = scale_of(scale, old);
        let wanted = match (&sent, patch) {
            (Some(s), _) => s.clone(),
            (None, Some(p)) => patch_scale(&current, p)?,
            (None, None) => return Err(Status::bad_request("a body is required")),
        };
        let uid = meta::text(&wanted, "uid");
        let (name, current_uid) = (meta::text(&wanted, "name"), meta::text(old, "uid"));
        if name != call.name {
            return Err(misnamed(call, name));
        }
        let mut new = old.clone();
        *replicas_of(scale, &mut new) = replicas(call, &wanted)?.into();
        if !uid.is_empty() && uid != current_uid {
            let (group, plural) = (call.row.group(), format!("{}/scale", call.row.plural()));
            let detail = format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {current_uid}"
            );
            return Err(Status::conflict(group, &plural, call.name, detail));
        }
        let version = &wanted["metadata"]["resourceVersion"];
        if version.as_str().is_some_and(|v| !v.is_empty()) {
            new["metadata"]["resourceVersion"] = version.clone();
        }
        Ok(new)
    })
    .await?;
    Ok(scale_of(scale, &call.view(&object)))
}

/// The applier owns the replicas of the object.
async fn apply_scale(
    call: &Call<'_>,
    scale: ScalePaths<'_>,
    patch: &Patch,
) -> Result<Value, Status> {
    let applied = decode_scale(&patch.input)?;
    let mut config = json!({
        "kind": call.row.kind(), "apiVersion": call.api_version(), "metadata": {},
    });
    // Labels and annotations are not the Scale's.
    for key in ["name", "uid", "resourceVersion", "managedFields"] {
        if let Some(value) = applied["metadata"].get(key) {
            config["metadata"][key] = value.clone();
        }
    }
    if !applied["spec"]["replicas"].is_null() {
        *replicas_of(scale, &mut config) = replicas(call, &applied)?.into();
    }
    let (object, _) = patch::merge(call, Part::Main, &config, patch.force).await?;
    Ok(scale_of(scale, &call.view(&object)))
}

/// Where an object says how many there are to be.
fn replicas_of<'v>(scale: ScalePaths<'_>, object: &'v mut Value) -> &'v mut Value {
    let keys = scale.spec_replicas.trim_start_matches('.').split('.');
    keys.fold(object, |v, k| &mut v[k])
}

/// A Scale of another name than its object's, or of none.
fn misnamed(call: &Call<'_>, name: &str) -> Status {
    if name.is_empty() {
        let error = FieldError::required("metadata.name", "name or generateName is required");
        return Status::invalid("autoscaling", "Scale", call.name, &[error]);
    }
    Status::bad_request(format!(
        "the name of the object ({name}) does not match the name on the URL ({})",
        call.name
    ))
}

/// How many a Scale wants.
fn replicas(call: &Call<'_>, scale: &Value) -> Result<i64, Status> {
    let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
    if replicas < 0 {
        let error = FieldError::invalid(
            "spec.replicas",
            &replicas.into(),
            "must be greater than or equal to 0",
        );
        return Err(Status::invalid("autoscaling", "Scale", call.name, &[error]));
    }
    Ok(replicas)
}

fn decode_scale(input: &Input) -> Result<Value, Status> {
    let schema = apimachinery::schema::Schema::builtin();
    let ty = schema
        .by_name("io.k8s.api.autoscaling.v1.Scale")
        .ok_or_else(|| Status::internal("no schema for Scale"))?;
    Ok(
        apimachinery::decode::decode(schema, ty, input.media, &input.bytes, input.validation)?
            .value,
    )
}

fn patch_scale(current: &Value, p: &Patch) -> Result<Value, Status> {
    if !patch::TYPES.contains(&&*p.media) {
        return Err(unsupported_media(&patch::TYPES, &p.media));
    }
    let document = p.document()?;
    let mut new = current.clone();
    match p.media.as_str() {
        "application/json-patch+json" => apimachinery::patch::json_patch(&mut new, &document)?,
        _ => apimachinery::patch::merge_patch(&mut new, &document),
    }
    Ok(new)
}

/// `pods/binding`: puts a pod on a node.
pub(crate) async fn bind(call: &Call<'_>, binding: &Value) -> Result<(), Status> {
    let target = binding["target"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let kind = binding["target"]["kind"].as_str().unwrap_or_default();
    if target.is_empty() {
        let error = FieldError::required("target.name", "");
        return Err(Status::invalid("", "Binding", call.name, &[error]));
    }
    if !kind.is_empty() && kind != "Node" {
        let error = FieldError::not_supported("target.kind", &json!(kind), &["Node"]);
        return Err(Status::invalid("", "Binding", call.name, &[error]));
    }
    let name = meta::text(binding, "name");
    if !name.is_empty() && name != call.name {
        return Err(Status::bad_request(
            "name in URL does not match name in Binding object",
        ));
    }
    let now = call.core.timestamp();
    let refused = |detail: String| Status::conflict("", "pods/binding", call.name, detail);
    let write = |new: &mut Value, asked: &Value| *new = asked.clone();
    modify(call, Part::Only(write), Tracking::Kept, &|old| {
        if meta::deleting(old) {
            return Err(refused(format!(
                "pod {} is being deleted, cannot be assigned to a host",
                call.name
            )));
        }
        let on = old["spec"]["nodeName"].as_str().unwrap_or_default();
        if !on.is_empty() {
            return Err(refused(format!("pod {} is already assigned to node {on:?}", call.name)));
        }
        if old["spec"]["schedulingGates"].as_array().is_some_and(|g| !g.is_empty()) {
            return Err(refused(format!(
                "pod {} has non-empty .spec.schedulingGates",
                call.name
            )));
        }
        let mut new = old.clone();
        new["spec"]["nodeName"] = target.clone().into();
        for (k, v) in binding["metadata"]["annotations"].as_object().into_iter().flatten() {
            if !new["metadata"]["annotations"].is_object() {
                new["metadata"]["annotations"] = json!({});
            }
            new["metadata"]["annotations"][k] = v.clone();
        }
        set_condition(&mut new, json!({
            "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now,
        }));
        Ok(new)
    })
    .await
    .map(drop)
}

pub(super) fn set_condition(pod: &mut Value, condition: Value) {
    if !pod["status"].is_object() {
        pod["status"] = json!({});
    }
    if !pod["status"]["conditions"].is_array() {
        pod["status"]["conditions"] = json!([]);
    }
    let Some(list) = pod["status"]["conditions"].as_array_mut() else {
        return;
    };
    match list.iter_mut().find(|c| c["type"] == condition["type"]) {
        Some(c) if c["status"] == condition["status"] => {}
        Some(c) => *c = condition,
        None => list.push(condition),
    }
}

/// Runs a patch against a subresource of [`part`].
pub(crate) async fn patch_part(
    call: &Call<'_>,
    p: &Patch,
    warnings: &mut Vec<String>,
) -> Result<Arc<Object>, Status> {
    let part = part(call)
        .ok_or_else(|| Status::method_not_allowed(call.row.group(), call.row.plural(), "patch"))?;
    Ok(patch::run(call, part, p, warnings).await?.0)
}
