//! Metrics of type Pods, Object and External: what the extension servers of
//! `custom.metrics.k8s.io` and `external.metrics.k8s.io` say, and the size that it asks for.
//!
//! The reference is `pkg/controller/podautoscaler` (`horizontal.go`, `replica_calculator.go`,
//! `metrics/client.go`) and `k8s.io/metrics/pkg/client`.

use super::target::{mapped, said};
use super::usage::{self, Reading, Readings, Tolerances};
use super::{Failed, Found, quantity};
use apimachinery::quantity::Quantity;
use apimachinery::selector::LabelSelector;
use client::k8s_openapi::api::core::v1::Pod;
use jiff::{SignedDuration, Timestamp};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

const CUSTOM: &str = "custom.metrics.k8s.io";
const EXTERNAL: &str = "external.metrics.k8s.io";
/// Versions that are understood.
const VERSIONS: [&str; 2] = ["v1beta2", "v1beta1"];
/// Of a reading that names no window.
const WINDOW_SECONDS: i64 = 60;

/// What a metric is read for.
pub(super) struct Look<'a> {
    pub(super) client: &'a kube::Client,
    pub(super) namespace: &'a str,
    /// Of the target's scale: the size that is asked for, that there is, and the pods.
    pub(super) current: i64,
    pub(super) present: i64,
    pub(super) pod_selector: &'a str,
    pub(super) pods: &'a [&'a Pod],
    pub(super) tolerances: Tolerances,
    pub(super) now: Timestamp,
}

/// What is wanted, in thousandths.
enum Target {
    Value(i64),
    Average(i64),
}

impl Target {
    fn of(source: &Value) -> Option<Self> {
        let milli = |key: &str| {
            let value = Quantity::from_json(&source["target"][key])?;
            Some(value.milli_value()).filter(|m| *m > 0)
        };
        let value = milli("value").map(Self::Value);
        value.or_else(|| milli("averageValue").map(Self::Average))
    }
}

impl Look<'_> {
    /// What a metric of type Pods asks for.
    pub(super) async fn pods(&self, metric: &Value) -> Result<Found, Failed> {
        let source = &metric["pods"];
        let name = name_of(source);
        let failed = |why: String| {
            let why = format!("failed to get pods metric value: {why}");
            ("FailedGetPodsMetric", why)
        };
        let Some(Target::Average(wanted)) = Target::of(source) else {
            return Err(failed("no average value target was set".to_owned()));
        };
        let of_metric = |why: String| failed(format!("unable to get metric {name}: {why}"));
        let path = format!("pods/*/{}", encoded(name));
        let query = [
            ("labelSelector", self.pod_selector.to_owned()),
            ("metricLabelSelector", selector_of(source)),
        ];
        let items = self.custom(&path, &query).await.map_err(of_metric)?;
        let readings = readings(&items, self.now);
        if readings.is_empty() {
            let why = "no metrics returned from custom metrics API";
            return Err(of_metric(why.to_owned()));
        }
        let asked = usage::Asked {
            resource: "",
            container: None,
            target: usage::Target::Average(wanted),
            tolerances: self.tolerances,
        };
        let found = usage::propose(asked, self.current, self.pods, &readings, self.now);
        let found = found.map_err(failed)?;
        Ok(Found {
            replicas: found.replicas,
            name: format!("pods metric {name}"),
            shown: json!({"type": "Pods", "pods": {"metric": source["metric"],
                "current": {"averageValue": quantity("", found.average)}}}),
        })
    }

    /// What a metric of type Object asks for.
    pub(super) async fn object(&self, metric: &Value) -> Result<Found, Failed> {
        let source = &metric["object"];
        let name = name_of(source);
        let object = &source["describedObject"];
        let text = |key: &str| object[key].as_str().unwrap_or_default();
        let reason = "FailedGetObjectMetric";
        let failed = |why: String| (reason, format!("failed to get object metric value: {why}"));
        let Some(target) = Target::of(source) else {
            return Err(failed("invalid object metric source: neither a value target nor an average value target was set".to_owned()));
        };
        let (kind, of) = (text("kind"), text("name"));
        let used = self.used(object, name, &selector_of(source)).await;
        let used = used.map_err(|why| {
            let on = format!("{kind} {}/{of}", self.namespace);
            failed(format!("unable to get metric {name}: {why} on {on}"))
        })?;
        let (replicas, current) = self.size(&target, used).map_err(failed)?;
        let words = match target {
            Target::Value(_) => format!("{kind} metric {name}"),
            Target::Average(_) => described("external metric", source),
        };
        Ok(Found {
            replicas,
            name: words,
            shown: json!({"type": "Object", "object": {"metric": source["metric"],
                "describedObject": object, "current": current}}),
        })
    }

    /// What a metric of type External asks for.
    pub(super) async fn external(&self, metric: &Value) -> Result<Found, Failed> {
        let source = &metric["external"];
        let name = name_of(source);
        let reason = "FailedGetExternalMetric";
        let Some(target) = Target::of(source) else {
            return Err((reason, "invalid external metric source: neither a value target nor an average value target was set".to_owned()));
        };
        let failed = |why: String| {
            let why = match target {
                Target::Value(_) => format!("failed to get external metric {name}: {why}"),
                Target::Average(_) => format!("failed to get {name} external metric: {why}"),
            };
            (reason, why)
        };
        let query = [("labelSelector", selector_of(source))];
        let path = format!(
            "/apis/{EXTERNAL}/v1beta1/namespaces/{}/{}",
            self.namespace,
            encoded(name)
        );
        let list = get(self.client, &path, &query).await;
        let all = list.and_then(|list| {
            let items = list["items"].as_array().cloned().unwrap_or_default();
            let each: Option<Vec<i64>> = items.iter().map(value_of).collect();
            each.filter(|e| !e.is_empty())
                .ok_or_else(|| "no metrics returned from external metrics API".to_owned())
        });
        let all = all.map_err(|why| {
            let selector = shown_selector(&source["metric"]["selector"]);
            let of = format!("{}/{name}/{selector}", self.namespace);
            failed(format!("unable to get external metric {of}: {why}"))
        })?;
        let used = all.into_iter().fold(0, i64::saturating_add);
        let (replicas, current) = self.size(&target, used).map_err(failed)?;
        Ok(Found {
            replicas,
            name: described("external metric", source),
            shown: json!({"type": "External", "external": {"metric": source["metric"],
                "current": current}}),
        })
    }

    /// The size that a value asks for, and how it is shown.
    fn size(&self, target: &Target, used: i64) -> Result<(i64, Value), String> {
        match target {
            Target::Value(wanted) => {
                let ratio = used as f64 / *wanted as f64;
                let replicas = usage::by_ratio(self.current, ratio, self.tolerances, self.pods)?;
                Ok((replicas, json!({"value": quantity("", used)})))
            }
            Target::Average(wanted) => {
                let (replicas, average) =
                    usage::by_average(self.present, used, *wanted, self.tolerances);
                Ok((replicas, json!({"averageValue": quantity("", average)})))
            }
        }
    }

    /// What one object's metric is.
    async fn used(&self, object: &Value, metric: &str, selector: &str) -> Result<i64, String> {
        let text = |key: &str| object[key].as_str().unwrap_or_default();
        let (kind, name) = (text("kind"), encoded(text("name")));
        let path = if kind == "Namespace" && !text("apiVersion").contains('/') {
            // Nobody names another namespace than his own.
            format!("metrics/{}", encoded(metric))
        } else {
            let resource = mapped(self.client, text("apiVersion"), kind).await?;
            let of = match resource.group.as_str() {
                "" => resource.plural,
                group => format!("{}.{group}", resource.plural),
            };
            format!("{of}/{name}/{}", encoded(metric))
        };
        let query = [("metricLabelSelector", selector.to_owned())];
        let items = self.custom(&path, &query).await?;
        let wrong = |n: usize| {
            format!(
                "unable to fetch metrics from custom metrics API: the custom metrics API server returned {n} results when we asked for exactly one"
            )
        };
        match items.as_slice() {
            [one] => value_of(one).ok_or_else(|| wrong(0)),
            other => Err(wrong(other.len())),
        }
    }

    /// Asks for custom metrics of this namespace.
    async fn custom(&self, path: &str, query: &[(&str, String)]) -> Result<Vec<Value>, String> {
        let failed =
            |why: String| format!("unable to fetch metrics from custom metrics API: {why}");
        let none = || failed(format!("no custom metrics API ({CUSTOM}) registered"));
        let group = get(self.client, &format!("/apis/{CUSTOM}"), &[]).await;
        let group = group.map_err(|_| none())?;
        let served = group["versions"].as_array();
        let mut known = VERSIONS.into_iter();
        let version = known.find(|version| {
            let mut served = served.into_iter().flatten();
            served.any(|v| v["version"] == *version)
        });
        let version = version.ok_or_else(none)?;
        let path = format!(
            "/apis/{CUSTOM}/{version}/namespaces/{}/{path}",
            self.namespace
        );
        let list = get(self.client, &path, query).await.map_err(failed)?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }
}

async fn get(client: &kube::Client, path: &str, query: &[(&str, String)]) -> Result<Value, String> {
    let query: Vec<String> = query
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| format!("{key}={}", encoded(value)))
        .collect();
    let uri = match query.as_slice() {
        [] => path.to_owned(),
        some => format!("{path}?{}", some.join("&")),
    };
    let request = http::Request::get(uri)
        .body(Vec::new())
        .map_err(|e| e.to_string())?;
    client.request(request).await.map_err(said)
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

fn name_of(source: &Value) -> &str {
    source["metric"]["name"].as_str().unwrap_or_default()
}

/// The selector of a metric as a query has it.
fn selector_of(source: &Value) -> String {
    let selector = LabelSelector::from_object(&source["metric"]["selector"]);
    selector.map_or_else(|_| String::new(), |s| s.to_string())
}

/// A metric's value in thousandths.
fn value_of(item: &Value) -> Option<i64> {
    Quantity::from_json(&item["value"]).map(Quantity::milli_value)
}

fn readings(items: &[Value], now: Timestamp) -> Readings {
    let each = items.iter().filter_map(|item| {
        let seconds = item["windowSeconds"].as_i64().or(item["window"].as_i64());
        let reading = Reading {
            milli: value_of(item)?,
            at: item["timestamp"]
                .as_str()
                .and_then(|t| t.parse().ok())
                .unwrap_or(now),
            window: SignedDuration::from_secs(seconds.unwrap_or(WINDOW_SECONDS)),
        };
        let name = item["describedObject"]["name"].as_str()?;
        Some((name.to_owned(), reading))
    });
    each.collect()
}

fn described(what: &str, source: &Value) -> String {
    let selector = shown_selector(&source["metric"]["selector"]);
    format!("{what} {}({selector})", name_of(source))
}

/// A selector as Go prints it, which upstream's words have.
fn shown_selector(selector: &Value) -> String {
    if !selector.is_object() {
        return "nil".to_owned();
    }
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let labels = selector["matchLabels"].as_object().into_iter().flatten();
    let labels: String = labels.map(|(k, v)| format!("{k}: {},", text(v))).collect();
    let rules = selector["matchExpressions"]
        .as_array()
        .into_iter()
        .flatten();
    let rules: String = rules
        .map(|rule| {
            let values = rule["values"].as_array().into_iter().flatten();
            let values: Vec<String> = values.map(text).collect();
            format!(
                "LabelSelectorRequirement{{Key:{},Operator:{},Values:[{}],}},",
                text(&rule["key"]),
                text(&rule["operator"]),
                values.join(" ")
            )
        })
        .collect();
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{labels}}},MatchExpressions:[]LabelSelectorRequirement{{{rules}}},}}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_shown_as_go_shows_them() {
        assert_eq!(shown_selector(&Value::Null), "nil");
        let selector = json!({"matchLabels": {"queue": "worker"},
            "matchExpressions": [{"key": "tier", "operator": "In", "values": ["a", "b"]}]});
        assert_eq!(
            shown_selector(&selector),
            "&LabelSelector{MatchLabels:map[string]string{queue: worker,},MatchExpressions:[]LabelSelectorRequirement{LabelSelectorRequirement{Key:tier,Operator:In,Values:[a b],},},}"
        );
    }

    #[test]
    fn readings_are_of_both_versions() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let items = [
            json!({"describedObject": {"name": "a"}, "value": "1500m", "windowSeconds": 30, "timestamp": "2026-01-01T00:00:00Z"}),
            json!({"describedObject": {"name": "b"}, "value": "2", "window": 20}),
            json!({"describedObject": {"name": "c"}, "value": "3"}),
            json!({"describedObject": {"name": "d"}}),
        ];
        let read = readings(&items, now);
        let seen: Vec<(&str, i64, i64)> = read
            .iter()
            .map(|(name, r)| (name.as_str(), r.milli, r.window.as_secs()))
            .collect();
        assert_eq!(seen, [("a", 1500, 30), ("b", 2000, 20), ("c", 3000, 60)]);
        assert!(read["a"].at < now && read["b"].at == now);
    }
}
