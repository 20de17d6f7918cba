//! Metrics under upstream's names.

use crate::row::Row;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::time::Duration;

/// Labels of a request; all are bounded: verbs and resources come from the tables.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct RequestLabels {
    verb: &'static str,
    group: &'static str,
    version: &'static str,
    resource: &'static str,
    subresource: &'static str,
    code: u16,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct VerbLabels {
    verb: &'static str,
    resource: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct KindLabels {
    resource: String,
}

/// All metrics of the API server.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    durations: Family<VerbLabels, Histogram, fn() -> Histogram>,
    rejected: Counter,
    objects: Family<KindLabels, Gauge>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::default();
        let requests = Family::default();
        // Upstream's buckets, thinned.
        let make: fn() -> Histogram =
            || Histogram::new([0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0]);
        let durations = Family::new_with_constructor(make);
        let rejected = Counter::default();
        let objects = Family::default();
        registry.register(
            "apiserver_request",
            "Requests by verb, resource and code",
            requests.clone(),
        );
        registry.register(
            "apiserver_request_duration_seconds",
            "Time to answer, watches aside",
            durations.clone(),
        );
        registry.register(
            "apiserver_rejected_requests",
            "Requests answered 429 because too many were under way",
            rejected.clone(),
        );
        registry.register(
            "apiserver_storage_objects",
            "Objects in the cache",
            objects.clone(),
        );
        Self {
            registry,
            requests,
            durations,
            rejected,
            objects,
        }
    }

    /// Counts an answered request; `row` is none for paths that are no resource.
    pub(crate) fn request(
        &self,
        verb: &'static str,
        row: Option<&Row>,
        subresource: &str,
        code: u16,
        took: Option<Duration>,
    ) {
        // Custom resources are one: who makes definitions must not make labels.
        const CUSTOM: (&str, &str, &str) = ("", "", "custom");
        let table = match row {
            Some(Row::Builtin(r)) => Some(*r),
            _ => None,
        };
        let own = table.map_or(&[][..], |r| r.subresources);
        let subresource = row
            .and_then(|_| {
                own.iter()
                    .map(|s| s.name)
                    .chain(["status", "scale"])
                    .find(|s| *s == subresource)
            })
            .unwrap_or_default();
        let (group, version, resource) = match row {
            None => ("", "", ""),
            Some(Row::Builtin(r)) => (r.group, r.version, r.plural),
            Some(Row::Custom(_)) => CUSTOM,
        };
        self.requests
            .get_or_create(&RequestLabels {
                verb,
                group,
                version,
                resource,
                subresource,
                code,
            })
            .inc();
        if let Some(took) = took {
            self.durations
                .get_or_create(&VerbLabels { verb, resource })
                .observe(took.as_secs_f64());
        }
    }

    /// Where other parts tell of theirs, before the first request.
    pub(crate) fn registry(&mut self) -> &mut Registry {
        &mut self.registry
    }

    pub(crate) fn rejected(&self) {
        self.rejected.inc();
    }

    /// The text format.
    pub(crate) fn render(&self, cache: &crate::cache::Cache) -> String {
        // Kinds that are gone are not told of.
        self.objects.clear();
        for kind in cache.kinds() {
            let resource = if kind.group.is_empty() {
                kind.plural.to_string()
            } else {
                format!("{}.{}", kind.plural, kind.group)
            };
            self.objects
                .get_or_create(&KindLabels { resource })
                .set(i64::try_from(kind.len()).unwrap_or(i64::MAX));
        }
        let mut out = String::new();
        // Writing to a String can't fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }
}
