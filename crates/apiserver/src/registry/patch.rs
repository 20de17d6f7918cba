//! The four kinds of PATCH.

use super::create::{Tracking, create};
use super::update::{Part, modify};
use super::{Call, Input, meta};
use crate::cache::Object;
use crate::http::negotiate::unsupported_media;
use crate::row::Row;
use apimachinery::apply::{self, Manager};
use apimachinery::decode::{self, MediaType};
use apimachinery::{Status, cbor, patch};
use parking_lot::Mutex;
use serde_json::Value;
use std::sync::Arc;

/// A patch as it came.
#[derive(Clone, Debug)]
pub(crate) struct Patch {
    /// `Content-Type` without parameters.
    pub(crate) media: String,
    pub(crate) input: Input,
    /// `force` of server-side apply.
    pub(crate) force: bool,
}

const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// Server-side apply of a body in CBOR.
pub(crate) const APPLY_CBOR: &str = "application/apply-patch+cbor";
/// Server-side apply of a body in YAML, or JSON, which is YAML.
pub(crate) const APPLY_YAML: &str = "application/apply-patch+yaml";

/// All types of patches.
pub(crate) const TYPES: [&str; 5] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    STRATEGIC,
    APPLY_YAML,
    APPLY_CBOR,
];

impl Patch {
    /// Whether it is one of server-side apply.
    pub(crate) fn is_apply(&self) -> bool {
        [APPLY_YAML, APPLY_CBOR].contains(&&*self.media)
    }

    /// Its body, of a patch that is no object of its kind.
    pub(crate) fn document(&self) -> Result<Value, Status> {
        let bytes = &self.input.bytes;
        let parsed = match self.input.media {
            MediaType::Yaml => serde_saphyr::from_slice(bytes).map_err(|e| e.to_string()),
            MediaType::Cbor => cbor::read(bytes).map_err(|e| e.to_string()),
            _ => serde_json::from_slice(bytes).map_err(|e| e.to_string()),
        };
        parsed.map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))
    }
}

/// Patches an object; the object and whether it was made by it.
pub(crate) async fn run(
    call: &Call<'_>,
    part: Part,
    patch: &Patch,
    warnings: &mut Vec<String>,
) -> Result<(Arc<Object>, bool), Status> {
    if patch.is_apply() {
        return apply(call, part, patch, warnings).await;
    }
    // Definitions state no patch strategies.
    let custom = matches!(call.row, Row::Custom(_));
    let known: Vec<&str> = TYPES
        .into_iter()
        .filter(|t| !custom || *t != STRATEGIC)
        .collect();
    if !known.contains(&patch.media.as_str()) {
        return Err(unsupported_media(&known, &patch.media));
    }
    if patch.force {
        return Err(Status::new(
            422,
            "Invalid",
            "PatchOptions.meta.k8s.io \"\" is invalid: force: Forbidden: may not be specified for non-apply patch",
        ));
    }
    let document = patch.document()?;
    let told = Mutex::new(Vec::new());
    let object = modify(call, part, Tracking::Update, &|old| {
        let mut found = Vec::new();
        let new = patched(call, patch, &document, old, &mut found)?;
        *told.lock() = found;
        Ok(new)
    })
    .await?;
    warnings.extend(told.into_inner());
    Ok((object, false))
}

fn patched(
    call: &Call<'_>,
    patch: &Patch,
    document: &Value,
    old: &Value,
    warnings: &mut Vec<String>,
) -> Result<Value, Status> {
    let (schema, ty) = call.row.schema()?;
    let mut new = old.clone();
    match patch.media.as_str() {
        "application/json-patch+json" => patch::json_patch(&mut new, document)?,
        "application/merge-patch+json" => {
            if !document.is_object() {
                return Err(Status::bad_request("the patch must be an object"));
            }
            patch::merge_patch(&mut new, document);
        }
        _ => patch::strategic_merge_patch(schema, ty, &mut new, document)?,
    }
    let decoded = decode::conform(schema, ty, new, patch.input.validation)?;
    warnings.extend(decoded.warnings);
    let mut new = decoded.value;
    new["kind"] = call.row.kind().into();
    new["apiVersion"] = call.api_version().into();
    let name = meta::text(&new, "name");
    if name != call.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.name
        )));
    }
    Ok(new)
}

async fn apply(
    call: &Call<'_>,
    part: Part,
    patch: &Patch,
    warnings: &mut Vec<String>,
) -> Result<(Arc<Object>, bool), Status> {
    let config = call.decode(&patch.input, warnings)?;
    merge(call, part, &config, patch.force).await
}

/// Applies what a manager wants of an object; the object and whether it was made by it.
pub(super) async fn merge(
    call: &Call<'_>,
    part: Part,
    config: &Value,
    force: bool,
) -> Result<(Arc<Object>, bool), Status> {
    if call.manager.is_empty() {
        return Err(Status::new(
            422,
            "Invalid",
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
        ));
    }
    if !config["metadata"]["managedFields"].is_null() {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let name = meta::text(config, "name");
    if !name.is_empty() && name != call.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.name
        )));
    }
    let (schema, ty) = call.row.schema()?;
    let (version, time) = (call.api_version(), call.core.timestamp());
    let manager = Manager {
        name: call.manager,
        api_version: &version,
        subresource: call.subresource,
        time: &time,
    };
    // A uid in the config says that the object must be there.
    let must_exist = !meta::text(config, "uid").is_empty() || !call.subresource.is_empty();
    const TRIES: usize = 4;
    for _ in 0..TRIES {
        let there = call.current().await;
        match there {
            Err(s) if s.code == 404 && !must_exist => {
                let mut made = apply::apply(schema, ty, None, config, &manager, force)?;
                meta::of_mut(&mut made).insert("name".to_owned(), call.name.into());
                meta::of_mut(&mut made).remove("resourceVersion");
                match create(call, made, Tracking::Applied).await {
                    Err(s) if s.reason == "AlreadyExists" => {}
                    done => return done.map(|o| (o, true)),
                }
            }
            Err(s) => return Err(s),
            Ok(_) => {
                let done = modify(call, part, Tracking::Applied, &|old| {
                    let mut merged = apply::apply(schema, ty, Some(old), config, &manager, force)?;
                    if let Some(v) = config["metadata"].get("resourceVersion") {
                        merged["metadata"]["resourceVersion"] = v.clone();
                    }
                    Ok(merged)
                })
                .await;
                match done {
                    Err(s) if s.code == 404 && !must_exist => {}
                    done => return done.map(|o| (o, false)),
                }
            }
        }
    }
    Err(Status::modified(
        call.row.group(),
        call.row.plural(),
        call.name,
    ))
}
