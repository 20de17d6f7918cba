//! What an autoscaler sizes, by its `/scale`, and what the metrics API says of its pods.

use super::resource;
use super::usage::{Reading, Readings};
use apimachinery::quantity::Quantity;
use apimachinery::selector::LabelSelector;
use client::k8s_openapi::api::autoscaling::v1::Scale;
use jiff::{SignedDuration, Timestamp};
use kube::api::{Api, ApiResource, DynamicObject, ListParams, PostParams};
use kube::core::GroupVersionKind;
use serde_json::Value;

/// The thing to be sized.
pub(super) struct Target {
    resource: ApiResource,
    namespace: String,
    name: String,
    scale: Scale,
}

impl Target {
    /// Reads its scale; the error is in words.
    pub(super) async fn find(
        client: &kube::Client,
        namespace: &str,
        reference: &Value,
    ) -> Result<Self, String> {
        let text = |key: &str| reference[key].as_str().unwrap_or_default();
        let (kind, name) = (text("kind"), text("name"));
        let resource = mapped(client, text("apiVersion"), kind).await?;
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
        let scale = api.get_scale(name).await.map_err(said)?;
        Ok(Self {
            resource,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            scale,
        })
    }

    pub(super) fn replicas(&self) -> i64 {
        let spec = self.scale.spec.as_ref();
        spec.and_then(|s| s.replicas).unwrap_or(0).into()
    }

    /// How many there are.
    pub(super) fn present(&self) -> i64 {
        let status = self.scale.status.as_ref();
        status.map_or(0, |s| s.replicas).into()
    }

    pub(super) fn selector_text(&self) -> &str {
        let status = self.scale.status.as_ref();
        status
            .and_then(|s| s.selector.as_deref())
            .unwrap_or_default()
    }

    /// Which pods are its; `None` without a selector.
    pub(super) fn selector(&self) -> Option<LabelSelector> {
        let text = Some(self.selector_text()).filter(|t| !t.is_empty())?;
        LabelSelector::parse(text).ok()
    }

    /// Writes another size, unless it was changed meanwhile.
    pub(super) async fn resize(self, client: &kube::Client, replicas: i64) -> Result<(), String> {
        let Self {
            resource,
            namespace,
            name,
            mut scale,
        } = self;
        scale.spec.get_or_insert_default().replicas = i32::try_from(replicas).ok();
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &namespace, &resource);
        let written = api
            .replace_scale(&name, &PostParams::default(), &scale)
            .await;
        written.map(drop).map_err(said)
    }
}

/// The resource of a kind; the error is in words.
pub(super) async fn mapped(
    client: &kube::Client,
    api_version: &str,
    kind: &str,
) -> Result<ApiResource, String> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    if let Some(row) = api::find_kind(group, version, kind) {
        return Ok(ApiResource {
            api_version: api_version.to_owned(),
            ..resource(group, version, kind, row.plural)
        });
    }
    let wanted = GroupVersionKind::gvk(group, version, kind);
    let found = kube::discovery::pinned_kind(client, &wanted).await;
    let none = |_| format!("no matches for kind {kind:?} in group {group:?}");
    Ok(found.map_err(none)?.0)
}

/// What the server said, without what this client makes of it.
pub(super) fn said(error: kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// `PodMetrics`.
pub(super) type Used = Vec<Value>;

/// Asks the metrics API.
pub(super) async fn read(
    client: &kube::Client,
    namespace: &str,
    selector: &str,
) -> Result<Used, String> {
    let metrics = resource("metrics.k8s.io", "v1beta1", "PodMetrics", "pods");
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &metrics);
    let list = api
        .list(&ListParams::default().labels(selector))
        .await
        .map_err(said)?;
    let with_name = |o: DynamicObject| {
        let mut data = o.data;
        data["name"] = o.metadata.name.unwrap_or_default().into();
        data
    };
    Ok(list.items.into_iter().map(with_name).collect())
}

/// Use of one resource by pod, summed over containers; `None` when nothing is known.
pub(super) fn of_resource(used: &Used, name: &str, only: Option<&str>) -> Option<Readings> {
    let mut all = Readings::new();
    for pod in used {
        let containers = pod["containers"].as_array().into_iter().flatten();
        let chosen = containers.filter(|c| only.is_none_or(|only| c["name"] == only));
        let each: Option<Vec<i64>> = chosen
            .map(|c| Quantity::from_json(&c["usage"][name]).map(Quantity::milli_value))
            .collect();
        let (Some(each), Some(at)) = (each.filter(|e| !e.is_empty()), time(pod)) else {
            continue;
        };
        let seconds = pod["window"].as_str().unwrap_or_default();
        let seconds = seconds.trim_end_matches('s').parse().unwrap_or(60);
        let reading = Reading {
            milli: each.iter().sum(),
            at,
            window: SignedDuration::from_secs(seconds),
        };
        all.insert(pod["name"].as_str()?.to_owned(), reading);
    }
    (!all.is_empty()).then_some(all)
}

fn time(pod: &Value) -> Option<Timestamp> {
    pod["timestamp"].as_str()?.parse().ok()
}
