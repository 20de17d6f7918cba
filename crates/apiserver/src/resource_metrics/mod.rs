//! `metrics.k8s.io`: what nodes and pods use, as upstream's metrics-server answers it.
//!
//! Nothing is stored and nobody is asked before somebody asks: a request makes the kubelets
//! tell their `/stats/summary`, unless they did less than [`RESOLUTION`] ago. Use of CPU is
//! the difference of two readings; a first request takes both. [`sample`] reads kubelets.
//! An APIService with a Service takes this API's place (`aggregation`).

mod sample;

use crate::cache::{Kind, Object, encode};
use crate::http::request::Query;
use crate::http::respond::Body;
use crate::registry::Call;
use crate::registry::list::{Filter, Page};
use crate::registry::render::View;
use crate::row::Row;
use crate::server_state::{Core, rfc3339};
use api::Resource;
use apimachinery::Status;
use apimachinery::openapi::CustomKind;
use apimachinery::schema::{Field, List, ListKind, Scalar, Schema, Struct, Type, TypeId};
use bytes::Bytes;
use http::Response;
use sample::{Look, Use};
use serde_json::{Value, json};
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::sync::Mutex;

/// The API's group.
pub(crate) const GROUP: &str = "metrics.k8s.io";

/// Readings are this old at most, as metrics-server's by default.
const RESOLUTION: Duration = Duration::from_secs(15);
/// An older reading says too little of now.
const READING_AGE_MAX: Duration = Duration::from_secs(150);
/// Between the two readings of a first request.
const FIRST_WINDOW: Duration = Duration::from_secs(1);

/// The last two readings of all nodes: bounded by what runs.
#[derive(Default)]
pub(crate) struct Readings(Mutex<Option<Two>>);

#[derive(Clone)]
struct Two {
    before: Arc<Look>,
    last: Arc<Look>,
}

impl Readings {
    /// Two readings, the later one of now. Who comes meanwhile waits for the same.
    async fn now(&self, core: &Arc<Core>) -> Two {
        let mut kept = self.0.lock().await;
        if let Some(two) = &*kept
            && two.last.at.elapsed() < RESOLUTION
        {
            return two.clone();
        }
        let recent = |look: &Arc<Look>| look.at.elapsed() < READING_AGE_MAX;
        let before = match kept.take().map(|two| two.last).filter(recent) {
            Some(before) => before,
            None => {
                let first = Arc::new(sample::look(core).await);
                tokio::time::sleep(FIRST_WINDOW).await;
                first
            }
        };
        let last = Arc::new(sample::look(core).await);
        let two = Two { before, last };
        *kept = Some(two.clone());
        two
    }
}

/// Answers a get or list.
pub(crate) async fn answer(
    call: &Call<'_>,
    query: &Query,
    verb: &str,
    view: &View,
) -> Result<Response<Body>, Status> {
    let core = call.core;
    let kind = core
        .cache
        .named("", call.row.plural())
        .ok_or_else(|| Status::internal("no such kind"))?;
    if verb == "get" {
        let none = || Status::not_found(GROUP, call.row.plural(), call.name);
        let object = kind.get(call.namespace, call.name).ok_or_else(none)?;
        let two = core.resource_metrics.now(core).await;
        let made = metrics(call.row, &two, &object).ok_or_else(none)?;
        return view.answer(200, &made);
    }
    let filter = Filter::parse(call.row, call.namespace, query)?;
    let chosen = chosen(&kind, &filter);
    let two = core.resource_metrics.now(core).await;
    let objects = chosen
        .iter()
        .filter_map(|o| metrics(call.row, &two, o))
        .collect();
    let page = Page {
        objects,
        revision: 0,
        next: None,
        remaining: None,
    };
    view.answer_list(page).await
}

fn chosen(kind: &Kind, filter: &Filter) -> Vec<Arc<Object>> {
    let mut all = kind.all();
    all.retain(|o| filter.matches(o));
    all
}

/// The metrics of a node or pod; none while there are none.
fn metrics(row: &Row, two: &Two, of: &Object) -> Option<Arc<Object>> {
    let value = of.value();
    let mut made = json!({
        "kind": row.kind(), "apiVersion": row.api_version(),
        "metadata": {"name": of.name(), "creationTimestamp": rfc3339(two.last.time)},
        "timestamp": rfc3339(two.last.time),
    });
    if value["metadata"]["labels"].is_object() {
        made["metadata"]["labels"] = value["metadata"]["labels"].clone();
    }
    let whole = |d: Duration| Duration::from_secs((d.as_secs_f64().round() as u64).max(1));
    let window = if row.kind() == "NodeMetrics" {
        let (before, last) = (
            two.before.nodes.get(of.name()),
            two.last.nodes.get(of.name())?,
        );
        let window = last.at - before.map_or(last.at, |b| b.at);
        made["usage"] = usage(before.map(|b| &b.own), &last.own, window, two)?;
        window
    } else {
        made["metadata"]["namespace"] = of.namespace().into();
        let uid = value["metadata"]["uid"].as_str()?;
        let node = value["spec"]["nodeName"].as_str()?;
        let (before, last) = (two.before.nodes.get(node), two.last.nodes.get(node)?);
        let window = last.at - before.map_or(last.at, |b| b.at);
        let earlier = before.and_then(|b| b.pods.get(uid));
        let mut containers = Vec::new();
        for (name, used) in last.pods.get(uid)? {
            let earlier = earlier.and_then(|e| e.iter().find(|(n, _)| n == name));
            // As metrics-server: a pod is told of when all of it is known.
            let usage = usage(earlier.map(|(_, u)| u), used, window, two)?;
            containers.push(json!({"name": name, "usage": usage}));
        }
        made["containers"] = containers.into();
        window
    };
    made["window"] = format!("{}s", whole(window).as_secs()).into();
    let bytes = Bytes::from(encode(&made));
    Some(Arc::new(Object::made(row, of.key.clone(), bytes, 0)))
}

/// CPU and memory in use.
fn usage(before: Option<&Use>, last: &Use, window: Duration, two: &Two) -> Option<Value> {
    let nano_cores = match before.filter(|b| b.started == last.started && !window.is_zero()) {
        Some(b) => {
            let used = last.cpu_ns.checked_sub(b.cpu_ns)?;
            (used as f64 / window.as_secs_f64()) as u64
        }
        // Started since: its whole life is the window.
        None => {
            let began: jiff::Timestamp = last.started.parse().ok()?;
            let lived = two.last.time.duration_since(began).as_secs_f64();
            (last.cpu_ns as f64 / lived.max(1.0)) as u64
        }
    };
    Some(json!({
        "cpu": format!("{nano_cores}n"), "memory": format!("{}Ki", last.memory_bytes / 1024),
    }))
}

/// The types of this group, which no generated schema has, by upstream's `generated.proto`.
pub(crate) fn schema() -> &'static Schema {
    static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
        let mut all = Schema::over(Schema::builtin());
        let meta = all.by_name("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta");
        let meta = meta.unwrap_or_default();
        let [text, time, window, amount] = [
            Scalar::String,
            Scalar::Time,
            Scalar::Duration,
            Scalar::Quantity,
        ]
        .map(|scalar| all.add(Type::Scalar(scalar)));
        let usage = all.add(Type::Map(amount));
        let container = [("name", text, 1), ("usage", usage, 2)];
        let container = add(&mut all, "ContainerMetrics", &container);
        let containers = all.add(Type::List(List {
            item: container,
            kind: ListKind::Atomic,
            patch_merge_key: None,
        }));
        let what = [("containers", containers), ("usage", usage)];
        for (kind, (name, ty)) in ["PodMetrics", "NodeMetrics"].into_iter().zip(what) {
            let mut fields = [
                ("metadata", meta, 1),
                ("timestamp", time, 2),
                ("window", window, 3),
                (name, ty, 4),
            ];
            fields.sort_unstable();
            add(&mut all, kind, &fields);
        }
        all
    });
    &SCHEMA
}

/// Adds a struct with fields in order of their names.
fn add(all: &mut Schema, kind: &str, fields: &[(&str, TypeId, u32)]) -> TypeId {
    let fields = fields.iter().map(|(name, ty, number)| Field {
        name: (*name).into(),
        ty: *ty,
        number: *number,
        ..Field::default()
    });
    all.add(Type::Struct(Struct {
        name: format!("io.k8s.metrics.pkg.apis.metrics.v1beta1.{kind}").into(),
        fields: fields.collect(),
        atomic: false,
        preserve_unknown: false,
    }))
}

/// The schema of a kind of this group, which is in no generated one.
pub(crate) fn open_api(row: &Resource) -> Option<CustomKind> {
    if row.group != GROUP {
        return None;
    }
    let text = |what: &str| json!({"type": "string", "description": what});
    let usage = json!({
        "type": "object", "description": "What is in use, by resource.",
        "additionalProperties": {"type": "string"},
    });
    let mut properties = json!({
        "timestamp": text("When the window ended."), "window": text("Length of the window that use of CPU is of."),
    });
    if row.kind == "NodeMetrics" {
        properties["usage"] = usage;
    } else {
        properties["containers"] = json!({"type": "array", "description": "What each container uses.",
            "items": {"type": "object", "properties": {"name": text("Name of the container."), "usage": usage}}});
    }
    Some(CustomKind {
        kind: row.kind.to_owned(),
        list_kind: format!("{}List", row.kind),
        name: row.type_name.to_owned(),
        schema: json!({"type": "object", "description": "What is in use.", "properties": properties}),
    })
}
