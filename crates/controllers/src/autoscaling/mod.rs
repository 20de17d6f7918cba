//! HorizontalPodAutoscalers: size what they name by what its pods use.
//!
//! Every autoscaler is looked at when it changes and every quarter of a minute. What pods use
//! comes from `metrics.k8s.io`, whoever serves it, and other metrics from the extension servers
//! that [`custom`] asks. [`usage`] says what a metric asks for, [`plan`] what is done of it; both
//! are pure.
//!
//! Objects are handled as JSON: few there are, and typed they would cost more of the program
//! than all that happens here. The reference is `pkg/controller/podautoscaler`.

mod custom;
mod plan;
mod target;
#[cfg(test)]
mod tests;
mod usage;

use crate::context::Context;
use crate::error::Error;
use apimachinery::quantity::{Format, Quantity};
use client::k8s_openapi::api::core::v1::{ObjectReference, Pod};
use client::metadata::watch_metadata;
use client::{EventRecorder, Informer, ObjectKey};
use futures::StreamExt as _;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, PostParams};
use plan::{Bounds, Memory};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use target::Target;
use usage::Tolerances;

const NAME: &str = "horizontal-pod-autoscaler";
/// How often each is looked at, as upstream.
const EVERY: Duration = Duration::from_secs(15);
/// Changes that come together are one.
const SETTLES: Duration = Duration::from_millis(100);

struct Controller {
    context: Context,
    pods: Informer<Pod>,
    recorder: EventRecorder,
    autoscalers: Api<DynamicObject>,
}

fn resource(group: &str, version: &str, kind: &str, plural: &str) -> ApiResource {
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: format!("{group}/{version}"),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}

fn own_resource() -> ApiResource {
    let (kind, plural) = ("HorizontalPodAutoscaler", "horizontalpodautoscalers");
    resource("autoscaling", "v2", kind, plural)
}

pub(crate) fn start(context: &Context) {
    let pods = context.informers.get::<Pod>();
    let controller = Controller {
        context: context.clone(),
        pods,
        recorder: context.recorder(NAME),
        autoscalers: Api::all_with(context.client.clone(), &own_resource()),
    };
    context.scope.spawn_cancellable(controller.run());
}

impl Controller {
    /// Looks at all, one after the other: metrics are shared by all who ask at a time.
    async fn run(self) {
        self.pods.ready().await;
        let changes = watch_metadata(self.context.client.clone(), &own_resource());
        let mut changes = std::pin::pin!(changes);
        let mut memories: HashMap<ObjectKey, Memory> = HashMap::new();
        // Versions of the specifications that were looked at.
        let mut seen: HashMap<ObjectKey, Value> = HashMap::new();
        let mut due = tokio::time::Instant::now();
        loop {
            let any = !seen.is_empty();
            tokio::select! {
                change = changes.next() => if change.is_none() { return },
                () = tokio::time::sleep_until(due), if any => {}
            }
            tokio::time::sleep(SETTLES).await;
            let all = match self.autoscalers.list(&ListParams::default()).await {
                Ok(all) => all.items,
                Err(error) => {
                    tracing::warn!(%error, "listing autoscalers");
                    continue;
                }
            };
            let regular = tokio::time::Instant::now() >= due;
            if regular {
                due = tokio::time::Instant::now() + EVERY;
            }
            let keys: Vec<ObjectKey> = all.iter().map(ObjectKey::of).collect();
            memories.retain(|key, _| keys.contains(key));
            seen.retain(|key, _| keys.contains(key));
            for (key, object) in keys.into_iter().zip(all) {
                let spec = object.data["spec"].clone();
                // Own writes of the status wake this too.
                if !regular && seen.get(&key) == Some(&spec) {
                    continue;
                }
                seen.insert(key.clone(), spec);
                if object.metadata.deletion_timestamp.is_some() {
                    continue;
                }
                let memory = memories.entry(key.clone()).or_default();
                if let Err(error) = self.reconcile(&key, object, memory).await {
                    let error = client::queue::chain(&error);
                    tracing::warn!(error, autoscaler = %key, "autoscaling");
                }
            }
        }
    }

    async fn reconcile(
        &self,
        key: &ObjectKey,
        mut object: DynamicObject,
        memory: &mut Memory,
    ) -> Result<(), Error> {
        let before = object.data["status"].clone();
        let mut round = Round {
            status: if before.is_object() {
                before.clone()
            } else {
                json!({})
            },
            now: self.context.clock.now(),
            controller: self,
            about: reference(&object),
        };
        round.look(key, &object, memory).await;
        let Round { status, .. } = round;
        if status == before {
            return Ok(());
        }
        object.data["status"] = status;
        object.types = Some(kube::core::TypeMeta {
            api_version: "autoscaling/v2".to_owned(),
            kind: "HorizontalPodAutoscaler".to_owned(),
        });
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.context.client.clone(), &key.namespace, &own_resource());
        match api
            .replace_status(&key.name, &PostParams::default(), &object)
            .await
        {
            Ok(_) => Ok(()),
            // What was changed meanwhile is looked at again.
            Err(error) if client::is_not_found(&error) || client::is_conflict(&error) => Ok(()),
            Err(source) => Err(Error::Update {
                what: format!("status of HorizontalPodAutoscaler {key}"),
                source,
            }),
        }
    }
}

fn reference(object: &DynamicObject) -> ObjectReference {
    let meta = &object.metadata;
    ObjectReference {
        api_version: Some("autoscaling/v2".to_owned()),
        kind: Some("HorizontalPodAutoscaler".to_owned()),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        ..ObjectReference::default()
    }
}

/// One look at one autoscaler.
struct Round<'a> {
    status: Value,
    now: jiff::Timestamp,
    controller: &'a Controller,
    about: ObjectReference,
}

/// What a metric asks for, its name, and its present value as `currentMetrics` has it.
struct Found {
    replicas: i64,
    name: String,
    shown: Value,
}

/// Reason and words of a metric's failure.
type Failed = (&'static str, String);

/// A size with the name of the metric that asked for it.
struct Wanted {
    replicas: i64,
    metric: String,
}

impl Round<'_> {
    fn condition(&mut self, kind: &str, is: bool, reason: &str, message: &str) {
        let is = if is { "True" } else { "False" };
        if !self.status["conditions"].is_array() {
            self.status["conditions"] = json!([]);
        }
        let Some(list) = self.status["conditions"].as_array_mut() else {
            return;
        };
        let now = self.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let made = json!({"type": kind, "status": is, "lastTransitionTime": now,
            "reason": reason, "message": message});
        match list.iter_mut().find(|c| c["type"] == kind) {
            Some(c) => {
                let since = c["lastTransitionTime"].clone();
                let same = c["status"] == is;
                *c = made;
                if same {
                    c["lastTransitionTime"] = since;
                }
            }
            None => list.push(made),
        }
    }

    fn event(&self, warning: bool, reason: &str, message: &str) {
        let kind = if warning {
            client::EventType::Warning
        } else {
            client::EventType::Normal
        };
        let about = self.about.clone();
        self.controller
            .recorder
            .record(about, kind, reason, message);
    }

    async fn look(&mut self, key: &ObjectKey, object: &DynamicObject, memory: &mut Memory) {
        let spec = &object.data["spec"];
        if let Some(generation) = object.metadata.generation {
            self.status["observedGeneration"] = generation.into();
        }
        let client = &self.controller.context.client;
        let target = match Target::find(client, &key.namespace, &spec["scaleTargetRef"]).await {
            Ok(target) => target,
            Err(why) => {
                let message = format!(
                    "the HPA controller was unable to get the target's current scale: {why}"
                );
                self.condition("AbleToScale", false, "FailedGetScale", &message);
                self.event(true, "FailedGetScale", &why);
                return;
            }
        };
        let able = "the HPA controller was able to get the target's current scale";
        self.condition("AbleToScale", true, "SucceededGetScale", able);
        let current = target.replicas();
        let bounds = Bounds {
            min: spec["minReplicas"].as_i64().unwrap_or(1),
            max: spec["maxReplicas"].as_i64().unwrap_or(1),
        };
        memory.begin(self.now, current);
        let (wanted, reason) = if current == 0 && bounds.min != 0 {
            let message = "scaling is disabled since the replica count of the target is zero";
            self.condition("ScalingActive", false, "ScalingDisabled", message);
            (0, String::new())
        } else if current > bounds.max {
            let reason = "Current number of replicas above Spec.MaxReplicas";
            (bounds.max, reason.to_owned())
        } else if current < bounds.min {
            let reason = "Current number of replicas below Spec.MinReplicas";
            (bounds.min, reason.to_owned())
        } else {
            let Some(asked) = self.ask(&key.namespace, spec, &target).await else {
                self.status["currentReplicas"] = current.into();
                if self.status["desiredReplicas"].is_null() {
                    self.status["desiredReplicas"] = 0.into();
                }
                return;
            };
            let sized = plan::size(
                memory,
                &spec["behavior"],
                (current, asked.replicas),
                bounds,
                self.now,
            );
            self.condition("AbleToScale", true, sized.able.0, sized.able.1);
            let limit = sized.limit;
            self.condition("ScalingLimited", sized.limited, limit.0, limit.1);
            let reason = if asked.replicas > current {
                format!("{} above target", asked.metric)
            } else {
                "All metrics below target".to_owned()
            };
            (sized.replicas, reason)
        };
        let done = wanted == current
            || self
                .rescale(target, (current, wanted), &reason, memory)
                .await;
        self.status["currentReplicas"] = current.into();
        self.status["desiredReplicas"] = if done { wanted } else { current }.into();
    }

    async fn rescale(
        &mut self,
        target: Target,
        (current, wanted): (i64, i64),
        reason: &str,
        memory: &mut Memory,
    ) -> bool {
        let client = &self.controller.context.client;
        if let Err(why) = target.resize(client, wanted).await {
            let message =
                format!("the HPA controller was unable to update the target scale: {why}");
            self.condition("AbleToScale", false, "FailedUpdateScale", &message);
            let message = format!("New size: {wanted}; reason: {reason}; error: {why}");
            self.event(true, "FailedRescale", &message);
            return false;
        }
        let message = format!("the HPA controller was able to update the target scale to {wanted}");
        self.condition("AbleToScale", true, "SucceededRescale", &message);
        let message = format!("New size: {wanted}; reason: {reason}");
        self.event(false, "SuccessfulRescale", &message);
        memory.scaled(self.now, current, wanted);
        self.status["lastScaleTime"] = self.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into();
        true
    }

    /// The size that the metrics ask for; `None` when they say too little.
    async fn ask(&mut self, namespace: &str, spec: &Value, target: &Target) -> Option<Wanted> {
        let Some(selector) = target.selector() else {
            let why = "the HPA target's scale is missing a selector";
            self.condition("ScalingActive", false, "InvalidSelector", why);
            self.event(true, "SelectorRequired", why);
            return None;
        };
        let pods: Vec<Arc<Pod>> = self.controller.pods.select_namespace(namespace, |pod| {
            let labels = pod.metadata.labels.as_ref();
            selector.matches(|k| labels?.get(k).map(String::as_str))
        });
        let pods: Vec<&Pod> = pods.iter().map(|p| &**p).collect();
        let metrics = spec["metrics"].as_array().map_or(&[][..], Vec::as_slice);
        let (mut best, mut shown, mut failed) = (None::<Wanted>, Vec::new(), Vec::new());
        let current = target.replicas();
        let client = &self.controller.context.client;
        let by_use = |m: &Value| m["type"] == "Resource" || m["type"] == "ContainerResource";
        let readings = if metrics.iter().any(by_use) {
            target::read(client, namespace, target.selector_text()).await
        } else {
            Ok(Vec::new())
        };
        let tolerance = |side: &str| {
            let stated = Quantity::from_json(&spec["behavior"][side]["tolerance"]);
            stated.map_or(usage::TOLERANCE, |q| q.nano as f64 / 1e9)
        };
        let look = custom::Look {
            client,
            namespace,
            current,
            present: target.present(),
            pod_selector: target.selector_text(),
            pods: &pods,
            tolerances: Tolerances {
                up: tolerance("scaleUp"),
                down: tolerance("scaleDown"),
            },
            now: self.now,
        };
        for metric in metrics {
            let found = match metric["type"].as_str().unwrap_or_default() {
                "Pods" => look.pods(metric).await,
                "Object" => look.object(metric).await,
                "External" => look.external(metric).await,
                _ => of_use(metric, &look, &readings),
            };
            match found {
                Ok(found) => {
                    shown.push(found.shown);
                    if best.as_ref().is_none_or(|b| found.replicas > b.replicas) {
                        best = Some(Wanted {
                            replicas: found.replicas,
                            metric: found.name,
                        });
                    }
                }
                Err((reason, why)) => {
                    shown.push(json!({"type": ""}));
                    self.event(true, reason, &why);
                    failed.push((reason, why));
                }
            }
        }
        self.status["currentMetrics"] = shown.into();
        // What some metrics say may make it larger, but not smaller, while others say nothing.
        let unsure = best.as_ref().is_none_or(|b| b.replicas < current);
        if let Some((reason, why)) = failed.first().filter(|_| unsure) {
            let message = format!("the HPA was unable to compute the replica count: {why}");
            self.condition("ScalingActive", false, reason, &message);
            let message = format!(
                "invalid metrics ({} invalid out of {}), first error is: {why}",
                failed.len(),
                metrics.len()
            );
            self.event(true, "FailedComputeMetricsReplicas", &message);
            return None;
        }
        let best = best?;
        let message = format!(
            "the HPA was able to successfully calculate a replica count from {}",
            best.metric
        );
        self.condition("ScalingActive", true, "ValidMetricFound", &message);
        Some(best)
    }
}

/// What a metric of the pods' use of a resource asks for.
fn of_use(
    metric: &Value,
    look: &custom::Look<'_>,
    readings: &Result<target::Used, String>,
) -> Result<Found, Failed> {
    let kind = metric["type"].as_str().unwrap_or_default();
    let (field, reason, of) = match kind {
        "Resource" => ("resource", "FailedGetResourceMetric", "resource"),
        "ContainerResource" => (
            "containerResource",
            "FailedGetContainerResourceMetric",
            "container resource",
        ),
        other => {
            let why = format!("unknown metric source type {other:?}");
            return Err(("InvalidMetricSourceType", why));
        }
    };
    let source = &metric[field];
    let name = source["name"].as_str().unwrap_or_default();
    let (target, value_name) = match source["target"]["averageUtilization"].as_i64() {
        Some(percent) => (usage::Target::Utilization(percent), "utilization"),
        None => {
            let value = Quantity::from_json(&source["target"]["averageValue"]);
            let milli = value.map(Quantity::milli_value);
            let why = || {
                (
                    reason,
                    format!(
                        "invalid resource metric source: neither an average utilization target nor an average value (usage) target was set for {name}"
                    ),
                )
            };
            (
                usage::Target::Average(milli.filter(|m| *m > 0).ok_or_else(why)?),
                "usage",
            )
        }
    };
    let asked = usage::Asked {
        resource: name,
        container: source["container"].as_str(),
        target,
        tolerances: look.tolerances,
    };
    let failed = |why: String| (reason, format!("failed to get {name} {value_name}: {why}"));
    let used = readings.as_ref().map_err(|e| {
        let why = "unable to get metrics for resource";
        failed(format!(
            "{why} {name}: unable to fetch metrics from resource metrics API: {e}"
        ))
    })?;
    let readings = target::of_resource(used, name, asked.container).ok_or_else(|| {
        let why = "no metrics returned from resource metrics API";
        failed(format!("unable to get metrics for resource {name}: {why}"))
    })?;
    let proposal = usage::propose(asked, look.current, look.pods, &readings, look.now);
    let proposal = proposal.map_err(failed)?;
    let mut shown = json!({"averageValue": quantity(name, proposal.average)});
    let mut words = format!("{name} {of}");
    if let Some(percent) = proposal.utilization {
        shown["averageUtilization"] = percent.into();
        words.push_str(" utilization (percentage of request)");
    }
    let mut of_now = json!({"name": name, "current": shown});
    if let Some(container) = asked.container {
        of_now["container"] = container.into();
    }
    Ok(Found {
        replicas: proposal.replicas,
        name: words,
        shown: json!({"type": kind, field: of_now}),
    })
}

fn quantity(resource: &str, milli: i64) -> String {
    let format = if resource == "memory" {
        Format::BinarySi
    } else {
        Format::DecimalSi
    };
    Quantity::from_milli(milli).text(format)
}
