//! One extension server behind a Service, and what is passed on to it.

use crate::authn::User;
use crate::handler::Incoming;
use crate::http::respond::{Body, BoxError};
use crate::https;
use crate::kubelet::{hop_by_hop, pass_on, unreachable, upgrade};
use crate::server_state::Core;
use crate::serving::Identity;
use crate::webhook;
use apimachinery::{Status, openapi};
use arc_swap::ArcSwapOption;
use base64::Engine as _;
use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty};
use hyper::upgrade::OnUpgrade;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::io::{self, BufReader, Write as _};
use std::sync::Arc;
use std::time::Duration;

/// Bytes of a discovery document of an extension server; a longer one is an error.
const DISCOVERY_BYTES_MAX: usize = 10 << 20;
/// How long an extension server may take to say what it has.
const DISCOVERY_TIMEOUT: Duration = Duration::from_secs(5);

/// An extension server as one APIService names it.
pub(crate) struct Remote {
    pub(crate) group: Box<str>,
    pub(crate) version: Box<str>,
    pub(crate) group_priority: i64,
    /// The spec that this was made of.
    pub(super) spec: Value,
    pub(super) service: webhook::Service,
    server_name: ServerName<'static>,
    tls: Arc<ClientConfig>,
    client: https::Client,
    /// What it last said that it has; none while it is not available.
    pub(super) told: ArcSwapOption<Told>,
    /// The same, kept while it is away.
    pub(super) stale: ArcSwapOption<Told>,
}

/// What an extension server has.
#[derive(Debug, PartialEq)]
pub(crate) struct Told {
    /// As aggregated discovery has it.
    pub(crate) resources: Vec<Value>,
    /// Hash of its OpenAPI v3 document, if it has one.
    pub(crate) openapi: Option<String>,
    /// Of its OpenAPI v2 document, if it has one.
    pub(crate) v2: Option<Arc<Part>>,
}

/// What an OpenAPI v2 document has of this group-version, packed.
#[derive(Debug, PartialEq)]
pub(crate) struct Part {
    /// By which the server knows the document, if it names it.
    tag: Option<HeaderValue>,
    pub(crate) hash: String,
    /// Gzipped.
    packed: Bytes,
}

impl Part {
    /// Packs what a document has of the paths that start so.
    fn pack(document: Value, prefix: &str, tag: Option<HeaderValue>) -> Result<Self, io::Error> {
        let part = openapi::v2::part(document, prefix).to_string();
        let hash = hex::encode(Sha256::digest(&part));
        let mut packer = GzEncoder::new(Vec::new(), Compression::default());
        packer.write_all(part.as_bytes())?;
        let packed = packer.finish()?.into();
        Ok(Self { tag, hash, packed })
    }

    pub(crate) fn unpack(&self) -> Result<Value, io::Error> {
        Ok(serde_json::from_reader(BufReader::new(GzDecoder::new(
            &*self.packed,
        )))?)
    }
}

impl Remote {
    /// Reads an APIService; `None` for one that is local, an error text for a `caBundle` that
    /// is none.
    pub(super) fn parse(
        object: &Value,
        identity: Option<Arc<Identity>>,
    ) -> Result<Option<Self>, String> {
        let spec = &object["spec"];
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let Some(service) = webhook::Service::parse(&spec["service"]) else {
            return Ok(None);
        };
        let name = format!("{}.{}.svc", service.name, service.namespace);
        let server_name = ServerName::try_from(name).map_err(|e| e.to_string())?;
        let ca = base64::engine::general_purpose::STANDARD
            .decode(text(&spec["caBundle"]))
            .map_err(|e| format!("caBundle: {e}"))?;
        let anybody = spec["insecureSkipTLSVerify"] == true;
        let tls = https::trusting(&ca, anybody, identity).map_err(|e| format!("caBundle: {e}"))?;
        Ok(Some(Self {
            group: text(&spec["group"]).into(),
            version: text(&spec["version"]).into(),
            group_priority: spec["groupPriorityMinimum"].as_i64().unwrap_or(0),
            spec: spec.clone(),
            service,
            client: https::client(tls.clone(), Some(server_name.clone())),
            server_name,
            tls: Arc::new(tls),
            told: ArcSwapOption::empty(),
            stale: ArcSwapOption::empty(),
        }))
    }

    /// What it has, and whether that is what it says now.
    pub(crate) fn resources(&self) -> (Option<Arc<Told>>, bool) {
        match self.told.load_full() {
            Some(told) => (Some(told), true),
            None => (self.stale.load_full(), false),
        }
    }

    /// `https://ADDRESS:PORT` of an endpoint.
    fn base(&self, core: &Core) -> Result<String, webhook::Error> {
        let (host, port) = webhook::endpoint(core, &self.service)?;
        Ok(if host.contains(':') {
            format!("https://[{host}]:{port}")
        } else {
            format!("https://{host}:{port}")
        })
    }

    /// Asks it what it has; the error is what `FailedDiscoveryCheck` says.
    pub(super) async fn ask(&self, core: &Core) -> Result<Told, String> {
        let path = format!("/apis/{}/{}", self.group, self.version);
        let base = self.base(core).map_err(|e| e.to_string())?;
        let url = format!("{base}{path}");
        let failed = |e: String| format!("failing or missing response from {url}: {e}");
        let list = self.get(&url).await.map_err(failed)?;
        let url = format!("{base}/openapi/v3");
        let (index, v2) = tokio::join!(self.get(&url), self.v2(&base));
        let index = index.ok();
        let document = path.trim_start_matches('/');
        let openapi = index
            .as_ref()
            .and_then(|i| i["paths"][document]["serverRelativeURL"].as_str())
            .map(|url| {
                let hash = url.split_once("hash=").map_or("", |(_, hash)| hash);
                hash.to_owned()
            });
        Ok(Told {
            resources: aggregated(&self.group, &self.version, &list),
            openapi,
            v2,
        })
    }

    /// What its OpenAPI v2 document has of this group-version; what is known if it has not
    /// changed, or is not to be had.
    async fn v2(&self, base: &str) -> Option<Arc<Part>> {
        let known = self.resources().0.and_then(|t| t.v2.clone());
        match self.changed_v2(base, known.as_deref()).await {
            Ok(Some(part)) => Some(Arc::new(part)),
            Ok(None) => known,
            Err(error) => {
                tracing::debug!(error, group = &*self.group, "no OpenAPI v2 document");
                known
            }
        }
    }

    async fn changed_v2(&self, base: &str, known: Option<&Part>) -> Result<Option<Part>, String> {
        let mut request = request(&format!("{base}/openapi/v2"))?;
        if let Some(tag) = known.and_then(|k| k.tag.clone()) {
            request.headers_mut().insert(header::IF_NONE_MATCH, tag);
        }
        let (max, timeout) = (DISCOVERY_BYTES_MAX, DISCOVERY_TIMEOUT);
        let answer = https::answer(&self.client, request, max, timeout).await?;
        if answer.status() == StatusCode::NOT_MODIFIED {
            return Ok(None);
        }
        let tag = answer.headers().get(header::ETAG).cloned();
        let document = serde_json::from_slice(answer.body()).map_err(|e| e.to_string())?;
        let prefix = format!("/apis/{}/{}/", self.group, self.version);
        let part = Part::pack(document, &prefix, tag).map_err(|e| e.to_string())?;
        Ok(Some(part))
    }

    async fn get(&self, url: &str) -> Result<Value, String> {
        let (max, timeout) = (DISCOVERY_BYTES_MAX, DISCOVERY_TIMEOUT);
        https::json(&self.client, request(url)?, max, timeout).await
    }
}

/// Asks for a document in this server's own name.
fn request(url: &str) -> Result<Request<Incoming>, String> {
    let body = Empty::new()
        .map_err(|e| -> BoxError { match e {} })
        .boxed_unsync();
    let mut request = Request::new(body);
    *request.uri_mut() = url.parse().map_err(|_| "not a URL".to_owned())?;
    let user = User::new("system:kube-aggregator", &["system:masters"]);
    identify(request.headers_mut(), &user);
    request
        .headers_mut()
        .insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    Ok(request)
}

/// Passes a request on in its user's name.
pub(crate) async fn forward(
    core: &Arc<Core>,
    remote: &Remote,
    mut parts: Parts,
    body: Incoming,
    upgrade: Option<OnUpgrade>,
    user: &User,
) -> Result<Response<Body>, Status> {
    let away = || Status::new(503, "ServiceUnavailable", "service unavailable");
    if remote.told.load().is_none() {
        return Err(away());
    }
    let base = remote.base(core).map_err(|_| away())?;
    let path = parts.uri.path_and_query().map_or("/", |p| p.as_str());
    let uri: Uri = format!("{base}{path}").parse().map_err(Status::internal)?;
    let host = uri.authority().map(ToString::to_string).unwrap_or_default();
    identify(&mut parts.headers, user);
    if parts.headers.contains_key(header::UPGRADE) {
        let way = upgrade::Way {
            uri: &uri,
            tls: &remote.tls,
            server_name: Some(remote.server_name.clone()),
        };
        return upgrade::join(core, way, &parts.method, &parts.headers, body, upgrade).await;
    }
    let mut request = Request::new(body);
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = uri;
    for (name, value) in &parts.headers {
        if !hop_by_hop(name) || *name == header::ACCEPT_ENCODING {
            request.headers_mut().append(name, value.clone());
        }
    }
    let response = remote
        .client
        .request(request)
        .await
        .map_err(|e| unreachable(&host, &e))?;
    Ok(pass_on(core, response))
}

const USER: HeaderName = HeaderName::from_static("x-remote-user");
const UID: HeaderName = HeaderName::from_static("x-remote-uid");
const GROUPS: HeaderName = HeaderName::from_static("x-remote-group");
const EXTRA: &str = "x-remote-extra-";

/// Says who asks, in place of whatever the client said about that.
fn identify(headers: &mut HeaderMap, user: &User) {
    let told: Vec<HeaderName> = headers
        .keys()
        .filter(|k| k.as_str().starts_with("x-remote-") || k.as_str().starts_with("impersonate-"))
        .cloned()
        .collect();
    for name in told {
        headers.remove(name);
    }
    headers.remove(header::AUTHORIZATION);
    let value = |text: &str| HeaderValue::from_bytes(text.as_bytes());
    if let Ok(name) = value(&user.name) {
        headers.insert(USER, name);
    }
    if let Ok(uid) = value(&user.uid)
        && !uid.is_empty()
    {
        headers.insert(UID, uid);
    }
    for group in user.groups.iter().filter_map(|g| value(g).ok()) {
        headers.append(GROUPS, group);
    }
    for (key, values) in &user.extra {
        // Keys are not of header names' characters: escaped, as upstream does.
        let key = percent_encoding::utf8_percent_encode(key, NOT_IN_NAMES).to_string();
        let Ok(name) = HeaderName::try_from(format!("{EXTRA}{}", key.to_lowercase())) else {
            continue;
        };
        for v in values.iter().filter_map(|v| value(v).ok()) {
            headers.append(name.clone(), v);
        }
    }
}

/// What header names can't hold, and what would be read as an escape.
const NOT_IN_NAMES: &percent_encoding::AsciiSet = &percent_encoding::CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'%')
    .add(b'(')
    .add(b')')
    .add(b',')
    .add(b'/')
    .add(b':')
    .add(b';')
    .add(b'<')
    .add(b'=')
    .add(b'>')
    .add(b'?')
    .add(b'@')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'{')
    .add(b'}');

/// An `APIResourceList` in the form of aggregated discovery.
fn aggregated(group: &str, version: &str, list: &Value) -> Vec<Value> {
    let all = || list["resources"].as_array().into_iter().flatten();
    let kind_of = |r: &Value| {
        let or = |key: &str, own: &str| {
            let text = r[key].as_str().filter(|t| !t.is_empty());
            text.unwrap_or(own).to_owned()
        };
        json!({"group": or("group", group), "version": or("version", version), "kind": r["kind"]})
    };
    let mut out = Vec::new();
    for r in all() {
        let Some(name) = r["name"].as_str().filter(|n| !n.contains('/')) else {
            continue;
        };
        let mut made = json!({
            "resource": name, "responseKind": kind_of(r), "verbs": r["verbs"],
            "scope": if r["namespaced"] == true { "Namespaced" } else { "Cluster" },
            "singularResource": r["singularName"],
        });
        for key in ["shortNames", "categories"] {
            if r[key].is_array() {
                made[key] = r[key].clone();
            }
        }
        let subs: Vec<Value> = all()
            .filter_map(|s| {
                let sub = s["name"].as_str()?.strip_prefix(name)?.strip_prefix('/')?;
                Some(json!({"subresource": sub, "responseKind": kind_of(s), "verbs": s["verbs"]}))
            })
            .collect();
        if !subs.is_empty() {
            made["subresources"] = subs.into();
        }
        out.push(made);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_is_told_and_nothing_that_the_client_claims() {
        let mut headers = HeaderMap::new();
        for (k, v) in [
            ("authorization", "Bearer x"),
            ("x-remote-user", "root"),
            ("x-remote-group", "system:masters"),
            ("x-remote-extra-scope", "all"),
            ("impersonate-user", "eve"),
        ] {
            headers.insert(k, HeaderValue::from_static(v));
        }
        let mut user = User::new("anna", &["shop"]);
        let key = "authentication.kubernetes.io/pod-name".to_owned();
        user.extra.insert(key, vec!["p".to_owned()]);
        identify(&mut headers, &user);
        let mut told: Vec<String> = headers
            .iter()
            .map(|(k, v)| format!("{k}: {}", v.to_str().unwrap_or_default()))
            .collect();
        told.sort();
        assert_eq!(
            told,
            [
                "x-remote-extra-authentication.kubernetes.io%2fpod-name: p",
                "x-remote-group: shop",
                "x-remote-group: system:authenticated",
                "x-remote-user: anna",
            ]
        );
    }

    #[test]
    fn a_list_of_resources_becomes_aggregated_discovery() {
        let list = json!({"resources": [
            {"name": "fish", "singularName": "fish", "namespaced": true, "kind": "Fish", "verbs": ["get"], "shortNames": ["f"]},
            {"name": "fish/scale", "singularName": "", "namespaced": true, "group": "autoscaling", "version": "v1", "kind": "Scale", "verbs": ["get"]},
        ]});
        assert_eq!(
            Value::from(aggregated("sea.example.com", "v1", &list)),
            json!([{
                "resource": "fish", "scope": "Namespaced", "singularResource": "fish",
                "responseKind": {"group": "sea.example.com", "version": "v1", "kind": "Fish"},
                "verbs": ["get"], "shortNames": ["f"],
                "subresources": [{"subresource": "scale", "verbs": ["get"],
                    "responseKind": {"group": "autoscaling", "version": "v1", "kind": "Scale"}}],
            }])
        );
    }
}
