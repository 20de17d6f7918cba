//! Discovery, aggregated and legacy, and OpenAPI v3. All of it is made from the resource
//! table when it is asked for; OpenAPI documents are kept compressed.

use crate::http::negotiate::{self, Accepted, Shape};
use crate::http::request::Query;
use crate::http::respond::{self, Body};
use crate::server_state::Core;
use api::Resource;
use apimachinery::Status;
use apimachinery::openapi::{ResourcePaths, v3_document_described};
use apimachinery::schema::Schema;
use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH};
use http::{HeaderMap, Response};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::io::{Read as _, Write as _};

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// OpenAPI documents made so far, gzipped; as many as there are group-versions.
#[derive(Debug, Default)]
pub(crate) struct OpenApi {
    documents: Mutex<HashMap<String, Bytes>>,
}

/// Answers a discovery or OpenAPI path; others are 404.
pub(crate) fn answer(
    core: &Core,
    path: &str,
    query: &Query,
    headers: &HeaderMap,
) -> Result<Response<Body>, Status> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let shapes = [Shape::Discovery];
    let missing = || respond::text(404, "404 page not found\n");
    match parts.as_slice() {
        ["api"] | ["apis"] => {
            let accepted = negotiate::accept(headers, &shapes)?;
            let core_group = parts[0] == "api";
            if accepted.shape == Shape::Discovery {
                return Ok(tagged(headers, AGGREGATED, &aggregated(core_group)));
            }
            let body = if core_group {
                api_versions()
            } else {
                group_list()
            };
            Ok(respond::value(200, accepted, &body))
        }
        ["api", version] => Ok(resource_list("", version)
            .map_or_else(missing, |v| respond::value(200, Accepted::JSON, &v))),
        ["apis", group] => {
            Ok(group_object(group)
                .map_or_else(missing, |v| respond::value(200, Accepted::JSON, &v)))
        }
        ["apis", group, version] => Ok(resource_list(group, version)
            .map_or_else(missing, |v| respond::value(200, Accepted::JSON, &v))),
        ["openapi", "v3"] => Ok(respond::value(200, Accepted::JSON, &openapi_index())),
        ["openapi", "v3", "api", version] => openapi(core, "", version, query, headers),
        ["openapi", "v3", "apis", group, version] => openapi(core, group, version, query, headers),
        _ => Ok(missing()),
    }
}

/// Every path of the root, roughly as upstream lists them.
pub(crate) fn root() -> Value {
    let mut paths: Vec<String> = vec!["/api".into(), "/apis".into()];
    for (group, version) in group_versions() {
        if group.is_empty() {
            paths.push(format!("/api/{version}"));
        } else {
            paths.push(format!("/apis/{group}"));
            paths.push(format!("/apis/{group}/{version}"));
        }
    }
    for p in [
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ] {
        paths.push(p.to_owned());
    }
    paths.sort();
    paths.dedup();
    json!({"paths": paths})
}

/// OpenID discovery of the token issuer.
pub(crate) fn openid(core: &Core) -> Value {
    json!({
        "issuer": core.issuer,
        "jwks_uri": format!("{}/openid/v1/jwks", core.issuer.trim_end_matches('/')),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    })
}

/// Group-versions in the table's order.
fn group_versions() -> Vec<(&'static str, &'static str)> {
    let mut all: Vec<(&str, &str)> = Vec::new();
    for r in api::resources() {
        if !all.contains(&(r.group, r.version)) {
            all.push((r.group, r.version));
        }
    }
    all
}

fn groups() -> Vec<&'static str> {
    let mut all: Vec<&str> = Vec::new();
    for (group, _) in group_versions() {
        if !group.is_empty() && !all.contains(&group) {
            all.push(group);
        }
    }
    all
}

fn rows(group: &str, version: &str) -> impl Iterator<Item = &'static Resource> {
    api::resources()
        .iter()
        .filter(move |r| r.group == group && r.version == version)
}

fn gv(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

/// A subresource: name, group-version-kind, verbs.
type Sub = (
    &'static str,
    (&'static str, &'static str, &'static str),
    &'static [&'static str],
);

/// Subresources with their kinds and verbs, status and scale among them.
fn subresources(r: &Resource) -> Vec<Sub> {
    let mut all: Vec<_> = r
        .subresources
        .iter()
        .map(|s| (s.name, s.gvk, s.verbs))
        .collect();
    const UPDATABLE: &[&str] = &["get", "patch", "update"];
    if r.scale.is_some() && all.iter().all(|(n, _, _)| *n != "scale") {
        all.push(("scale", ("autoscaling", "v1", "Scale"), UPDATABLE));
    }
    if r.status && all.iter().all(|(n, _, _)| *n != "status") {
        all.push(("status", (r.group, r.version, r.kind), UPDATABLE));
    }
    all
}

fn aggregated(core_group: bool) -> Value {
    let names = if core_group { vec![""] } else { groups() };
    let items: Vec<Value> = names
        .into_iter()
        .map(|group| {
            let versions: Vec<Value> = group_versions()
                .into_iter()
                .filter(|(g, _)| *g == group)
                .map(|(_, version)| {
                    let resources: Vec<Value> = rows(group, version).map(aggregated_row).collect();
                    json!({"version": version, "resources": resources, "freshness": "Current"})
                })
                .collect();
            let meta = if group.is_empty() {
                json!({"creationTimestamp": null})
            } else {
                json!({"name": group, "creationTimestamp": null})
            };
            json!({"metadata": meta, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn aggregated_row(r: &'static Resource) -> Value {
    let mut out = json!({
        "resource": r.plural,
        "responseKind": {"group": r.group, "version": r.version, "kind": r.kind},
        "scope": if r.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": r.singular,
        "verbs": r.verbs,
    });
    if !r.short_names.is_empty() {
        out["shortNames"] = json!(r.short_names);
    }
    if !r.categories.is_empty() {
        out["categories"] = json!(r.categories);
    }
    let subs: Vec<Value> = subresources(r)
        .into_iter()
        .map(|(name, (g, v, k), verbs)| {
            json!({"subresource": name, "responseKind": {"group": g, "version": v, "kind": k}, "verbs": verbs})
        })
        .collect();
    if !subs.is_empty() {
        out["subresources"] = subs.into();
    }
    out
}

fn api_versions() -> Value {
    json!({
        "kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": ""}],
    })
}

fn group_list() -> Value {
    let list: Vec<Value> = groups().into_iter().map(group_body).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": list})
}

fn group_body(group: &str) -> Value {
    let versions: Vec<Value> = group_versions()
        .into_iter()
        .filter(|(g, _)| *g == group)
        .map(|(g, v)| json!({"groupVersion": gv(g, v), "version": v}))
        .collect();
    json!({"name": group, "versions": versions, "preferredVersion": versions.first()})
}

fn group_object(group: &str) -> Option<Value> {
    groups().contains(&group).then(|| {
        let mut v = group_body(group);
        v["kind"] = "APIGroup".into();
        v["apiVersion"] = "v1".into();
        v
    })
}

fn resource_list(group: &str, version: &str) -> Option<Value> {
    let mut list = Vec::new();
    for r in rows(group, version) {
        let mut row = json!({
            "name": r.plural, "singularName": r.singular, "namespaced": r.namespaced,
            "kind": r.kind, "verbs": r.verbs,
        });
        if !r.short_names.is_empty() {
            row["shortNames"] = json!(r.short_names);
        }
        if !r.categories.is_empty() {
            row["categories"] = json!(r.categories);
        }
        if r.stored {
            let hash = Sha256::digest(format!("{group}/{version}/{}", r.plural));
            row["storageVersionHash"] = base64_of(&hash[..8]).into();
        }
        list.push(row);
        for (name, (g, v, k), verbs) in subresources(r) {
            let mut sub = json!({
                "name": format!("{}/{name}", r.plural), "singularName": "",
                "namespaced": r.namespaced, "kind": k, "verbs": verbs,
            });
            if (g, v) != (r.group, r.version) {
                sub["group"] = g.into();
                sub["version"] = v.into();
            }
            list.push(sub);
        }
    }
    (!list.is_empty()).then(|| {
        json!({
            "kind": "APIResourceList", "apiVersion": "v1",
            "groupVersion": gv(group, version), "resources": list,
        })
    })
}

fn base64_of(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// A body with an entity tag of its content.
fn tagged(headers: &HeaderMap, media: &'static str, value: &Value) -> Response<Body> {
    let body = respond::to_json(value);
    let tag = format!("\"{}\"", hex::encode_upper(Sha256::digest(&body)));
    let known = headers
        .get(IF_NONE_MATCH)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.split(',').any(|t| t.trim() == tag));
    let mut response = if known {
        respond::bytes(304, media, Bytes::new())
    } else {
        respond::bytes(200, media, body)
    };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}

/// A document depends on this program and the table only.
fn document_hash(group: &str, version: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(env!("CARGO_PKG_VERSION"));
    hash.update(api::constants::KUBERNETES_VERSION);
    hash.update(gv(group, version));
    for r in rows(group, version) {
        hash.update(r.plural);
    }
    hex::encode_upper(hash.finalize())
}

fn openapi_index() -> Value {
    let mut paths = serde_json::Map::new();
    for (group, version) in group_versions() {
        let path = if group.is_empty() {
            format!("api/{version}")
        } else {
            format!("apis/{group}/{version}")
        };
        let url = format!("/openapi/v3/{path}?hash={}", document_hash(group, version));
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

fn openapi(
    core: &Core,
    group: &str,
    version: &str,
    query: &Query,
    headers: &HeaderMap,
) -> Result<Response<Body>, Status> {
    if rows(group, version).next().is_none() {
        return Ok(respond::text(404, "404 page not found\n"));
    }
    let hash = document_hash(group, version);
    let tag = format!("\"{hash}\"");
    let known = headers
        .get(IF_NONE_MATCH)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.split(',').any(|t| t.trim() == tag));
    let mut response = if known {
        respond::bytes(304, "application/json", Bytes::new())
    } else {
        let packed = document(core, group, version)?;
        if negotiate::takes_gzip(headers) {
            let mut r = respond::bytes(200, "application/json", packed);
            r.headers_mut()
                .insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            r
        } else {
            let mut plain = Vec::new();
            flate2::read::GzDecoder::new(&*packed)
                .read_to_end(&mut plain)
                .map_err(Status::internal)?;
            respond::bytes(200, "application/json", plain)
        }
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(ETAG, tag);
    }
    if query.get("hash") == Some(&hash) {
        headers.insert(
            http::header::CACHE_CONTROL,
            HeaderValue::from_static("public, immutable"),
        );
    }
    Ok(response)
}

fn document(core: &Core, group: &str, version: &str) -> Result<Bytes, Status> {
    let name = gv(group, version);
    if let Some(done) = core.openapi.documents.lock().get(&name) {
        return Ok(done.clone());
    }
    let subs: Vec<Vec<_>> = rows(group, version)
        .map(|r| {
            subresources(r)
                .into_iter()
                .map(|(n, gvk, _)| (n, gvk))
                .collect()
        })
        .collect();
    let paths: Vec<ResourcePaths<'_>> = rows(group, version)
        .zip(&subs)
        .map(|(r, subs)| ResourcePaths {
            plural: r.plural,
            kind: r.kind,
            namespaced: r.namespaced,
            verbs: r.verbs,
            subresources: subs,
        })
        .collect();
    let docs = Schema::descriptions();
    let value = v3_document_described(Schema::builtin(), &docs, group, version, &paths);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    serde_json::to_writer(&mut encoder, &value).map_err(Status::internal)?;
    encoder.flush().map_err(Status::internal)?;
    let packed = Bytes::from(encoder.finish().map_err(Status::internal)?);
    core.openapi.documents.lock().insert(name, packed.clone());
    Ok(packed)
}
