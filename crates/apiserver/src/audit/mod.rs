//! The audit log: who asked for what and what came of it, as upstream's `audit.k8s.io/v1`
//! events, a line of JSON each.
//!
//! [`policy`] decides what is recorded, [`sink`] writes. A request has a [`Record`] from its
//! arrival on, which makes an event at each stage that the policy wants. Without a policy
//! there are no records. Of connections that change their protocol the end is not awaited.

mod policy;
mod sink;

pub use sink::Log;

use crate::authn::User;
use crate::http::request::RequestInfo;
use crate::http::respond::{self, Body};
use crate::server::Error;
use crate::server_state::Core;
use http::header::{HeaderName, HeaderValue, USER_AGENT};
use http::{HeaderMap, Response};
use parking_lot::Mutex;
use policy::{Decision, Level, Policy, Stage};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use serde_json::{Map, Value, json};
use sink::Sink;
use std::net::IpAddr;
use std::sync::Arc;

/// Name of a request in the log, in its answer too.
const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

/// What to record and where.
#[derive(Clone, Debug)]
pub struct Config {
    /// Text of the policy file (`audit.k8s.io/v1`, `Policy`).
    pub policy: String,
    /// Where to write.
    pub log: Log,
}

/// The audit log.
pub(crate) struct Audit {
    policy: Policy,
    sink: Sink,
    events: Counter,
}

impl Audit {
    pub(crate) fn open(config: Config, registry: &mut Registry) -> Result<Self, Error> {
        let policy = Policy::parse(&config.policy).map_err(Error::AuditPolicy)?;
        let (events, lost) = (Counter::default(), Counter::default());
        registry.register("apiserver_audit_event", "Audit events made", events.clone());
        registry.register(
            "apiserver_audit_error",
            "Audit events that were not written",
            lost.clone(),
        );
        let sink = Sink::open(config.log, lost).map_err(Error::AuditLog)?;
        Ok(Self {
            policy,
            sink,
            events,
        })
    }

    /// Writes what is pending.
    pub(crate) async fn close(&self) {
        self.sink.close().await;
    }
}

/// What is recorded of one request.
pub(crate) struct Record {
    core: Arc<Core>,
    /// Guards one request's facts, for single changes.
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    decision: Decision,
    /// What all its events have.
    event: Value,
    annotations: Map<String, Value>,
    request: Option<Value>,
    /// What he tried who could not say who he is.
    refused: Option<&'static str>,
    /// All stages have been told of.
    done: bool,
}

impl Record {
    /// Of a request that has arrived; `None` when nothing is recorded.
    pub(crate) fn begin(
        core: &Arc<Core>,
        uri: &http::Uri,
        headers: &HeaderMap,
        info: &RequestInfo,
        from: Option<IpAddr>,
    ) -> Option<Self> {
        core.audit.as_ref()?;
        let text = |name: &HeaderName| headers.get(name).and_then(|v| v.to_str().ok());
        let id = text(&AUDIT_ID).filter(|id| !id.is_empty() && id.len() <= 64);
        let id = id.map_or_else(|| core.uid(), str::to_owned);
        let mut event = json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1", "auditID": id,
            "requestURI": uri.path_and_query().map_or("/", |p| p.as_str()),
            "verb": info.verb, "sourceIPs": sources(headers, from),
            "requestReceivedTimestamp": micro(core.clock.now()),
        });
        if let Some(agent) = text(&USER_AGENT) {
            event["userAgent"] = agent.into();
        }
        if info.is_resource {
            let mut of = Map::new();
            for (key, value) in [
                ("resource", &info.resource),
                ("namespace", &info.namespace),
                ("name", &info.name),
                ("apiGroup", &info.group),
                ("apiVersion", &info.version),
                ("subresource", &info.subresource),
            ] {
                if !value.is_empty() {
                    of.insert(key.to_owned(), value.as_str().into());
                }
            }
            event["objectRef"] = of.into();
        }
        let known = Known {
            event,
            ..Known::default()
        };
        Some(Self {
            core: core.clone(),
            known: Mutex::new(known),
        })
    }

    /// Who asks is known: the policy decides.
    pub(crate) fn known(&self, info: &RequestInfo, user: &User) {
        let Some(audit) = &self.core.audit else {
            return;
        };
        let mut known = self.known.lock();
        known.decision = audit.policy.decide(info, user);
        if known.decision.level == Level::None {
            return;
        }
        known.event["level"] = known.decision.level.name().into();
        known.event["user"] = shown(user);
        self.tell(&known, Stage::RequestReceived, &json!({}));
    }

    /// Nobody knows who asks: what he sent was refused. Rules that name users are not his. One
    /// event tells of it, as upstream's does (`endpoints/filters/authn_audit.go`).
    pub(crate) fn refused(&self, info: &RequestInfo) {
        let Some(audit) = &self.core.audit else {
            return;
        };
        let mut known = self.known.lock();
        known.decision = audit.policy.decide(info, &User::default());
        known.event["level"] = known.decision.level.name().into();
        known.event["user"] = json!({});
        // A certificate that is not believed makes no connection.
        known.refused = Some("Authentication failed, attempted: bearer");
    }

    /// He acts as somebody else.
    pub(crate) fn acting(&self, user: &User) {
        self.known.lock().event["impersonatedUser"] = shown(user);
    }

    /// Whether he may.
    pub(crate) fn decided(&self, allowed: bool) {
        let decision = if allowed { "allow" } else { "forbid" };
        self.annotate("authorization.k8s.io/decision", decision);
        self.annotate("authorization.k8s.io/reason", "");
    }

    pub(crate) fn annotate(&self, key: &str, value: &str) {
        let mut known = self.known.lock();
        known.annotations.insert(key.to_owned(), value.into());
    }

    /// What was sent.
    pub(crate) fn sent(&self, value: &Value) {
        let mut known = self.known.lock();
        if known.decision.level == Level::None {
            return;
        }
        let meta = &value["metadata"];
        for (key, at) in [
            ("name", "name"),
            ("namespace", "namespace"),
            ("uid", "uid"),
            ("resourceVersion", "resourceVersion"),
        ] {
            let of = &mut known.event["objectRef"];
            if of.is_object() && of[key].is_null() && meta[at].is_string() {
                of[key] = meta[at].clone();
            }
        }
        if known.decision.level >= Level::Request {
            let mut value = value.clone();
            if known.decision.omit_managed_fields {
                omit_managed_fields(&mut value);
            }
            known.request = Some(value);
        }
    }

    /// The answer is there. Of one that streams the end is told when its body ends.
    pub(crate) fn finish(self, mut response: Response<Body>, long: bool) -> Response<Body> {
        let code = response.status().as_u16();
        {
            let mut known = self.known.lock();
            let id = known.event["auditID"].as_str().unwrap_or_default();
            if let Ok(id) = HeaderValue::from_str(id) {
                response.headers_mut().insert(AUDIT_ID, id);
            }
            if known.decision.level == Level::None {
                known.done = true;
                return response;
            }
            if let Some(message) = known.refused {
                let status = json!({"metadata": {}, "code": code, "message": message});
                known.event["responseStatus"] = status;
                known.done = true;
                self.tell(&known, Stage::ResponseStarted, &json!({}));
                return response;
            }
            let wanted = code >= 400 || known.decision.level == Level::RequestResponse;
            let body = (wanted && !long)
                .then(|| {
                    response.body_mut().make();
                    respond::read(&response)
                })
                .flatten();
            let mut status = json!({"metadata": {}, "code": code});
            if let Some(told) = body
                .as_ref()
                .filter(|b| b["kind"] == "Status" && code >= 400)
            {
                for key in ["status", "reason", "message", "details"] {
                    if let Some(v) = told.get(key) {
                        status[key] = v.clone();
                    }
                }
            }
            known.event["responseStatus"] = status;
            let mut more = json!({});
            if known.decision.level == Level::RequestResponse
                && let Some(mut body) = body
            {
                if known.decision.omit_managed_fields {
                    omit_managed_fields(&mut body);
                }
                more["responseObject"] = body;
            }
            if !long {
                known.done = true;
                self.tell(&known, Stage::ResponseComplete, &more);
                return response;
            }
            self.tell(&known, Stage::ResponseStarted, &more);
        }
        // Dropped with the body.
        response.map(|body| body.with(self))
    }

    fn tell(&self, known: &Known, stage: Stage, more: &Value) {
        let Some(audit) = self
            .core
            .audit
            .as_ref()
            .filter(|_| known.decision.wants(stage))
        else {
            return;
        };
        let mut event = known.event.clone();
        event["stage"] = stage.name().into();
        event["stageTimestamp"] = micro(self.core.clock.now()).into();
        if !known.annotations.is_empty() && stage != Stage::RequestReceived {
            event["annotations"] = known.annotations.clone().into();
        }
        if let Some(request) = known
            .request
            .as_ref()
            .filter(|_| stage != Stage::RequestReceived)
        {
            event["requestObject"] = request.clone();
        }
        for (key, value) in more.as_object().into_iter().flatten() {
            event[key] = value.clone();
        }
        if let Ok(mut line) = serde_json::to_vec(&event) {
            line.push(b'\n');
            audit.events.inc();
            audit.sink.put(line);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let known = self.known.lock();
        if known.done {
            return;
        }
        if std::thread::panicking() {
            let code = json!({"responseStatus": {"metadata": {}, "status": "Failure",
                "reason": "InternalError", "code": 500}});
            self.tell(&known, Stage::Panic, &code);
        } else {
            // The stream has ended, or the client went before the answer was there.
            self.tell(&known, Stage::ResponseComplete, &json!({}));
        }
    }
}

/// Where a request came from: what proxies say, then who called.
fn sources(headers: &HeaderMap, from: Option<IpAddr>) -> Vec<String> {
    /// Proxies that are believed to be named; further ones are left out.
    const SOURCES_MAX: usize = 16;
    let told = headers.get_all("x-forwarded-for").iter();
    let told = told
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','));
    let mut all: Vec<String> = told
        .filter_map(|a| a.trim().parse::<IpAddr>().ok())
        .map(|a| a.to_string())
        .take(SOURCES_MAX)
        .collect();
    // From this process, as upstream's loopback clients.
    let own = from.map_or_else(|| "::1".to_owned(), |a| a.to_string());
    if all.last() != Some(&own) {
        all.push(own);
    }
    all
}

fn shown(user: &User) -> Value {
    let mut v = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        v["uid"] = user.uid.as_str().into();
    }
    if !user.extra.is_empty() {
        v["extra"] = json!(user.extra);
    }
    v
}

fn omit_managed_fields(value: &mut Value) {
    if let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("managedFields");
    }
    for item in value
        .get_mut("items")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        omit_managed_fields(item);
    }
}

fn micro(t: jiff::Timestamp) -> String {
    t.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}
