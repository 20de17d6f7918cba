//! Discovery, aggregated and legacy, and OpenAPI v3 and [`v2`]. All of it is made from the resource
//! table and the definitions of custom resources when it is asked for; OpenAPI documents are kept compressed.

mod v2;

use crate::aggregation::Remote;
use crate::http::negotiate::{self, Accepted, Encoding, Offer, Shape};
use crate::http::request::Query;
use crate::http::respond::{self, Body};
use crate::row::Row;
use crate::server_state::Core;
use apimachinery::Status;
use apimachinery::openapi::{CustomKind, ResourcePaths, v3_document_custom};
use apimachinery::schema::Schema;
use bytes::Bytes;
use http::header::{CONTENT_ENCODING, ETAG, HeaderValue, IF_NONE_MATCH};
use http::{HeaderMap, Response};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::io::{self, Read as _};
use std::sync::Arc;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
/// The same in CBOR.
const AGGREGATED_CBOR: &str =
    "application/cbor;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
/// The same in protobuf.
const AGGREGATED_PROTOBUF: &str =
    "application/vnd.kubernetes.protobuf;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// OpenAPI documents that are kept; when there are more, all are made anew.
const DOCUMENTS_MAX: usize = 128;

/// OpenAPI documents made so far by group-version, gzipped, with the hash of what they were
/// made of.
#[derive(Debug, Default)]
pub(crate) struct OpenApi {
    documents: Mutex<HashMap<String, (String, Bytes)>>,
}

/// What packs a document while it is written.
type Packer = flate2::write::GzEncoder<Vec<u8>>;

impl OpenApi {
    /// The packed document of a name made of what has this hash: as it was kept, or as `write`
    /// writes it.
    fn packed(
        &self,
        name: &str,
        hash: &str,
        write: impl FnOnce(&mut Packer) -> io::Result<()>,
    ) -> Result<Bytes, Status> {
        if let Some((made_of, done)) = self.documents.lock().get(name)
            && made_of == hash
        {
            return Ok(done.clone());
        }
        let mut packer = Packer::new(Vec::new(), flate2::Compression::default());
        write(&mut packer).map_err(Status::internal)?;
        let packed = Bytes::from(packer.finish().map_err(Status::internal)?);
        let mut documents = self.documents.lock();
        if documents.len() >= DOCUMENTS_MAX {
            documents.clear();
        }
        documents.insert(name.to_owned(), (hash.to_owned(), packed.clone()));
        Ok(packed)
    }
}

/// Answers a discovery or OpenAPI path; others are 404.
pub(crate) fn answer(
    core: &Core,
    path: &str,
    query: &Query,
    headers: &HeaderMap,
) -> Result<Response<Body>, Status> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let served = Served::now(core);
    let missing = || respond::text(404, "404 page not found\n");
    let accept = |shapes| {
        let messages = true;
        let stream = false;
        negotiate::accept(
            headers,
            Offer {
                shapes,
                messages,
                stream,
            },
        )
    };
    let object = |found: Option<Value>| match found {
        Some(v) => Ok(respond::value(200, accept(&[])?, &v)),
        None => Ok(missing()),
    };
    match parts.as_slice() {
        ["api"] | ["apis"] => {
            let accepted = accept(&[Shape::Discovery])?;
            let core_group = parts[0] == "api";
            if accepted.shape == Shape::Discovery {
                return tagged(headers, accepted, &aggregated(&served, core_group));
            }
            let body = if core_group {
                api_versions()
            } else {
                group_list(&served)
            };
            Ok(respond::value(200, accepted, &body))
        }
        ["api", version] => object(resource_list(&served, "", version)),
        ["apis", group] => object(group_object(&served, group)),
        ["apis", group, version] => object(resource_list(&served, group, version)),
        ["openapi", "v2"] => v2::answer(core, headers),
        ["openapi", "v3"] => Ok(respond::value(200, Accepted::JSON, &openapi_index(&served))),
        ["openapi", "v3", "api", version] => openapi(core, "", version, query, headers),
        ["openapi", "v3", "apis", group, version] => openapi(core, group, version, query, headers),
        _ => Ok(missing()),
    }
}

/// Every path of the root, roughly as upstream lists them.
pub(crate) fn root(core: &Core) -> Value {
    let mut paths: Vec<String> = vec!["/api".into(), "/apis".into()];
    for (group, version) in Served::now(core).group_versions() {
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
        "/openapi/v2",
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

/// Groups and versions that this server answers itself, and whether they are of definitions.
pub(crate) fn local_versions(core: &Core) -> Vec<(String, String, bool)> {
    let served = Served::local(core);
    let builtin = |g: &str, v: &str| {
        let mut all = api::resources().iter();
        all.any(|r| r.group == g && r.version == v)
    };
    let all = served.group_versions().into_iter();
    all.map(|(g, v)| (g.to_owned(), v.to_owned(), !builtin(g, v)))
        .collect()
}

/// Everything that is served: the table in its order, then custom resources; and what
/// extension servers serve.
struct Served(Vec<Row>, Vec<Arc<Remote>>);

impl Served {
    fn now(core: &Core) -> Self {
        let mut served = Self::local(core);
        served.1 = core.aggregator.all();
        if !served.1.is_empty() {
            // An extension server may take the place of what is built in.
            let remotes = &served.1;
            served.0.retain(|r| {
                let of = |m: &Arc<Remote>| (&*m.group, &*m.version) == (r.group(), r.version());
                !remotes.iter().any(of)
            });
        }
        served
    }

    fn local(core: &Core) -> Self {
        let mut rows: Vec<Row> = api::resources().iter().map(Row::Builtin).collect();
        rows.extend(core.cache.definitions.rows());
        Self(rows, Vec::new())
    }

    /// `groupPriorityMinimum` of a group that is not built in.
    fn priority(&self, group: &str) -> i64 {
        const CUSTOM: i64 = 1000;
        let remotes = self.1.iter().filter(|m| *m.group == *group);
        remotes.map(|m| m.group_priority).max().unwrap_or(CUSTOM)
    }

    /// Group-versions in the table's order; those of a group of custom resources in the
    /// order of their priority.
    fn group_versions(&self) -> Vec<(&str, &str)> {
        let mut seen = std::collections::HashSet::new();
        let mut all: Vec<(&str, &str)> = Vec::new();
        let mut custom = 0;
        for r in &self.0 {
            let gv = (r.group(), r.version());
            if seen.insert(gv) {
                custom += usize::from(matches!(r, Row::Builtin(_)));
                all.push(gv);
            }
        }
        for m in &self.1 {
            let gv = (&*m.group, &*m.version);
            if seen.insert(gv) {
                all.push(gv);
            }
        }
        all[custom..].sort_by(|a, b| {
            let group = || self.priority(b.0).cmp(&self.priority(a.0));
            let name = || a.0.cmp(b.0);
            let version = || by_priority(a.1, b.1);
            group().then_with(name).then_with(version)
        });
        all
    }

    fn groups(&self) -> Vec<&str> {
        let mut all: Vec<&str> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        for (group, _) in self.group_versions() {
            if !group.is_empty() && seen.insert(group) {
                all.push(group);
            }
        }
        all
    }

    /// Rows by group and version.
    fn by_version(&self) -> HashMap<(&str, &str), Vec<&Row>> {
        let mut out: HashMap<_, Vec<&Row>> = HashMap::new();
        for r in &self.0 {
            out.entry((r.group(), r.version())).or_default().push(r);
        }
        out
    }

    fn rows(&self, group: &str, version: &str) -> Vec<&Row> {
        let rows = self.0.iter();
        rows.filter(|r| r.group() == group && r.version() == version)
            .collect()
    }
}

fn gv(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

/// A subresource: name, group-version-kind, verbs.
type Sub<'r> = (
    &'static str,
    (&'r str, &'r str, &'r str),
    &'static [&'static str],
);

/// Subresources with their kinds and verbs, status and scale among them.
fn subresources(r: &Row) -> Vec<Sub<'_>> {
    let mut all: Vec<Sub<'_>> = r
        .subresources()
        .iter()
        .map(|s| (s.name, s.gvk, s.verbs))
        .collect();
    const UPDATABLE: &[&str] = &["get", "patch", "update"];
    if r.scale().is_some() && all.iter().all(|(n, _, _)| *n != "scale") {
        all.push(("scale", ("autoscaling", "v1", "Scale"), UPDATABLE));
    }
    if r.status() && all.iter().all(|(n, _, _)| *n != "status") {
        all.push(("status", (r.group(), r.version(), r.kind()), UPDATABLE));
    }
    all
}

fn aggregated(served: &Served, core_group: bool) -> Value {
    let names = if core_group {
        vec![""]
    } else {
        served.groups()
    };
    let mut versions: HashMap<&str, Vec<Value>> = HashMap::new();
    let rows = served.by_version();
    for (group, version) in served.group_versions() {
        let rows = rows.get(&(group, version));
        let remote = |m: &&Arc<Remote>| (&*m.group, &*m.version) == (group, version);
        let (resources, fresh) = match served.1.iter().find(remote) {
            Some(remote) => {
                let (told, fresh) = remote.resources();
                (told.map_or_else(Vec::new, |t| t.resources.clone()), fresh)
            }
            None => {
                let rows = rows.into_iter().flatten();
                (rows.map(|r| aggregated_row(r)).collect(), true)
            }
        };
        let freshness = if fresh { "Current" } else { "Stale" };
        versions
            .entry(group)
            .or_default()
            .push(json!({"version": version, "resources": resources, "freshness": freshness}));
    }
    let items: Vec<Value> = names
        .into_iter()
        .map(|group| {
            let meta = if group.is_empty() {
                json!({"creationTimestamp": null})
            } else {
                json!({"name": group, "creationTimestamp": null})
            };
            json!({"metadata": meta, "versions": versions.remove(group).unwrap_or_default()})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn aggregated_row(r: &Row) -> Value {
    let mut out = json!({
        "resource": r.plural(),
        "responseKind": {"group": r.group(), "version": r.version(), "kind": r.kind()},
        "scope": if r.namespaced() { "Namespaced" } else { "Cluster" },
        "singularResource": r.singular(),
        "verbs": r.verbs(),
    });
    if !r.short_names().is_empty() {
        out["shortNames"] = json!(r.short_names());
    }
    if !r.categories().is_empty() {
        out["categories"] = json!(r.categories());
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

fn group_list(served: &Served) -> Value {
    let groups = served.groups();
    let list: Vec<Value> = groups.iter().map(|g| group_body(served, g)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": list})
}

fn group_body(served: &Served, group: &str) -> Value {
    let versions: Vec<Value> = served
        .group_versions()
        .into_iter()
        .filter(|(g, _)| *g == group)
        .map(|(g, v)| json!({"groupVersion": gv(g, v), "version": v}))
        .collect();
    json!({"name": group, "versions": versions, "preferredVersion": versions.first()})
}

fn group_object(served: &Served, group: &str) -> Option<Value> {
    served.groups().contains(&group).then(|| {
        let mut v = group_body(served, group);
        v["kind"] = "APIGroup".into();
        v["apiVersion"] = "v1".into();
        v
    })
}

fn resource_list(served: &Served, group: &str, version: &str) -> Option<Value> {
    let mut list = Vec::new();
    for r in served.rows(group, version) {
        let mut row = json!({
            "name": r.plural(), "singularName": r.singular(), "namespaced": r.namespaced(),
            "kind": r.kind(), "verbs": r.verbs(),
        });
        if !r.short_names().is_empty() {
            row["shortNames"] = json!(r.short_names());
        }
        if !r.categories().is_empty() {
            row["categories"] = json!(r.categories());
        }
        if r.stored() {
            let hash = Sha256::digest(format!("{group}/{version}/{}", r.plural()));
            row["storageVersionHash"] = base64_of(&hash[..8]).into();
        }
        list.push(row);
        for (name, (g, v, k), verbs) in subresources(r) {
            let mut sub = json!({
                "name": format!("{}/{name}", r.plural()), "singularName": "",
                "namespaced": r.namespaced(), "kind": k, "verbs": verbs,
            });
            if (g, v) != (r.group(), r.version()) {
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

/// Aggregated discovery with an entity tag of its content.
fn tagged(
    headers: &HeaderMap,
    accepted: Accepted,
    value: &Value,
) -> Result<Response<Body>, Status> {
    let json = respond::to_json(value);
    let hash = hex::encode_upper(Sha256::digest(&json));
    let messages = match accepted.encoding {
        Encoding::Protobuf => respond::to_protobuf(value),
        _ => None,
    };
    let (media, body) = match (accepted.encoding, messages) {
        (_, Some(body)) => (AGGREGATED_PROTOBUF, body),
        (Encoding::Cbor, _) => (AGGREGATED_CBOR, respond::to_cbor(value)),
        _ => (AGGREGATED, json),
    };
    unless_known(headers, media, &hash, || {
        Ok(respond::bytes(200, media, body))
    })
}

/// An answer with a hash as its entity tag; 304 for a client that has what carries it.
fn unless_known(
    headers: &HeaderMap,
    media: &'static str,
    hash: &str,
    answer: impl FnOnce() -> Result<Response<Body>, Status>,
) -> Result<Response<Body>, Status> {
    let tag = format!("\"{hash}\"");
    let known = headers
        .get(IF_NONE_MATCH)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.split(',').any(|t| t.trim() == tag));
    let mut response = if known {
        respond::bytes(304, media, Bytes::new())
    } else {
        answer()?
    };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(ETAG, tag);
    }
    Ok(response)
}

/// A packed document, unpacked for a client that does not take it as it is.
fn document(
    headers: &HeaderMap,
    media: &'static str,
    hash: &str,
    packed: impl FnOnce() -> Result<Bytes, Status>,
) -> Result<Response<Body>, Status> {
    unless_known(headers, media, hash, || {
        let packed = packed()?;
        if negotiate::takes_gzip(headers) {
            let mut response = respond::bytes(200, media, packed);
            let gzip = HeaderValue::from_static("gzip");
            response.headers_mut().insert(CONTENT_ENCODING, gzip);
            return Ok(response);
        }
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&*packed)
            .read_to_end(&mut plain)
            .map_err(Status::internal)?;
        Ok(respond::bytes(200, media, plain))
    })
}

/// A document depends on this program, the table and the definitions.
fn document_hash(group: &str, version: &str, rows: &[&Row]) -> String {
    let mut hash = Sha256::new();
    hash.update(env!("CARGO_PKG_VERSION"));
    hash.update(api::constants::KUBERNETES_VERSION);
    hash.update(gv(group, version));
    for r in rows {
        hash.update(r.plural());
        if let Row::Custom(c) = r {
            hash.update(c.fingerprint());
        }
    }
    hex::encode_upper(hash.finalize())
}

fn openapi_index(served: &Served) -> Value {
    let mut paths = serde_json::Map::new();
    let rows = served.by_version();
    for (group, version) in served.group_versions() {
        let path = if group.is_empty() {
            format!("api/{version}")
        } else {
            format!("apis/{group}/{version}")
        };
        let remote = |m: &&Arc<Remote>| (&*m.group, &*m.version) == (group, version);
        let hash = if let Some(remote) = served.1.iter().find(remote) {
            let Some(hash) = remote.resources().0.and_then(|t| t.openapi.clone()) else {
                continue;
            };
            hash
        } else {
            let rows = rows.get(&(group, version)).map_or(&[][..], Vec::as_slice);
            document_hash(group, version, rows)
        };
        let url = format!("/openapi/v3/{path}?hash={hash}");
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
    let served = Served::now(core);
    let rows = served.rows(group, version);
    if rows.is_empty() {
        return Ok(respond::text(404, "404 page not found\n"));
    }
    let hash = document_hash(group, version, &rows);
    let mut response = document(headers, "application/json", &hash, || {
        core.openapi.packed(&gv(group, version), &hash, |packer| {
            let value = document_value(group, version, &rows);
            serde_json::to_writer(packer, &value).map_err(io::Error::from)
        })
    })?;
    if query.get("hash") == Some(&hash) {
        response.headers_mut().insert(
            http::header::CACHE_CONTROL,
            HeaderValue::from_static("public, immutable"),
        );
    }
    Ok(response)
}

/// The v3 document of a group-version.
fn document_value(group: &str, version: &str, rows: &[&Row]) -> Value {
    let subs: Vec<Vec<_>> = rows
        .iter()
        .map(|r| {
            subresources(r)
                .into_iter()
                .map(|(n, gvk, _)| (n, gvk))
                .collect()
        })
        .collect();
    let paths: Vec<ResourcePaths<'_>> = rows
        .iter()
        .zip(&subs)
        .map(|(r, subs)| ResourcePaths {
            plural: r.plural(),
            kind: r.kind(),
            namespaced: r.namespaced(),
            verbs: r.verbs(),
            subresources: subs,
        })
        .collect();
    let custom: Vec<CustomKind> = rows
        .iter()
        .filter_map(|r| match r {
            Row::Custom(c) => Some(CustomKind {
                kind: c.names.kind.to_string(),
                list_kind: c.names.list_kind.to_string(),
                name: c.type_name(),
                schema: c.open_api(),
            }),
            // Of no schema that is generated.
            Row::Builtin(r) => crate::resource_metrics::open_api(r),
        })
        .collect();
    let docs = Schema::descriptions();
    v3_document_custom(Schema::builtin(), &docs, group, version, &paths, custom)
}

/// The order of versions in a group: stable ones first, then beta, then alpha, higher numbers
/// first; then all that are named otherwise, by name.
fn by_priority(a: &str, b: &str) -> std::cmp::Ordering {
    match (priority(a), priority(b)) {
        (Some(a), Some(b)) => b.cmp(&a),
        (Some(_), None) => std::cmp::Ordering::Less,
        (None, Some(_)) => std::cmp::Ordering::Greater,
        (None, None) => a.cmp(b),
    }
}

/// Stability, major and minor of `v1`, `v2beta3`, `v1alpha1`.
fn priority(version: &str) -> Option<(u8, u64, u64)> {
    let rest = version.strip_prefix('v')?;
    for (word, stability) in [("beta", 1), ("alpha", 0)] {
        if let Some((major, minor)) = rest.split_once(word) {
            return Some((stability, major.parse().ok()?, minor.parse().ok()?));
        }
    }
    Some((2, rest.parse().ok()?, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_in_order_of_priority() {
        let mut all = vec![
            "foo10",
            "v11alpha2",
            "v2",
            "v12alpha1",
            "foo1",
            "v10beta3",
            "v3beta1",
            "v11beta2",
            "v10",
            "v1",
        ];
        all.sort_by(|a, b| by_priority(a, b));
        assert_eq!(
            all,
            [
                "v10",
                "v2",
                "v1",
                "v11beta2",
                "v10beta3",
                "v3beta1",
                "v12alpha1",
                "v11alpha2",
                "foo1",
                "foo10"
            ]
        );
    }
}
