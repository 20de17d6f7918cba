//! What is told of levels and flows, under upstream's names (`apiserver_flowcontrol_…`).
//! A request is one seat: seats and requests are the same numbers.

use super::book::Share;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Labels of a level: as many as there are objects.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Level {
    priority_level: String,
}

/// Labels of a schema and its level: as many as there are objects.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) struct Labels {
    pub(super) priority_level: Arc<str>,
    pub(super) flow_schema: Arc<str>,
}

/// The same with one more.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Rejected {
    #[prometheus(flatten)]
    of: Labels,
    reason: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Waited {
    #[prometheus(flatten)]
    of: Labels,
    execute: bool,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Executed {
    #[prometheus(flatten)]
    of: Labels,
    r#type: &'static str,
}

impl Executed {
    fn regular(of: &Labels) -> Self {
        Self {
            of: of.clone(),
            r#type: "regular",
        }
    }
}

const REASONS: [&str; 4] = ["queue-full", "concurrency-limit", "time-out", "cancelled"];

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// All of it. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    rejected: Family<Rejected, Counter>,
    dispatched: Family<Labels, Counter>,
    queued: Family<Labels, Gauge>,
    executing: Family<Labels, Gauge>,
    queue_length: Histograms<Labels>,
    waited: Histograms<Waited>,
    executed: Histograms<Executed>,
    nominal: Family<Level, Gauge>,
    lower: Family<Level, Gauge>,
    upper: Family<Level, Gauge>,
    current: Family<Level, Gauge>,
}

fn durations() -> Histogram {
    Histogram::new([
        0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0,
    ])
}

fn lengths() -> Histogram {
    Histogram::new([0.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0])
}

fn histograms<L: Clone + Debug + Eq + Hash>(make: fn() -> Histogram) -> Histograms<L> {
    Family::new_with_constructor(make)
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let made = Self {
            rejected: Family::default(),
            dispatched: Family::default(),
            queued: Family::default(),
            executing: Family::default(),
            queue_length: histograms(lengths),
            waited: histograms(durations),
            executed: histograms(durations),
            nominal: Family::default(),
            lower: Family::default(),
            upper: Family::default(),
            current: Family::default(),
        };
        let registry = registry.sub_registry_with_prefix("apiserver_flowcontrol");
        let m = made.clone();
        let requests = "Requests refused by priority and fairness";
        registry.register("rejected_requests", requests, m.rejected);
        let requests = "Requests executed by priority and fairness";
        registry.register("dispatched_requests", requests, m.dispatched);
        for (name, gauge, help) in [
            ("current_inqueue_requests", &m.queued, "Requests in queues"),
            (
                "current_inqueue_seats",
                &m.queued,
                "Seats of requests in queues",
            ),
            (
                "current_executing_requests",
                &m.executing,
                "Requests being executed",
            ),
            (
                "current_executing_seats",
                &m.executing,
                "Seats of requests being executed",
            ),
        ] {
            registry.register(name, help, gauge.clone());
        }
        for (name, gauge, help) in [
            ("nominal_limit_seats", m.nominal, "Seats of a level's share"),
            ("lower_limit_seats", m.lower, "Seats that are never lent"),
            (
                "upper_limit_seats",
                m.upper,
                "Seats with all that may be borrowed",
            ),
            (
                "current_limit_seats",
                m.current,
                "Seats that a level may have now",
            ),
        ] {
            registry.register(name, help, gauge);
        }
        registry.register(
            "request_queue_length_after_enqueue",
            "Length of its queue, as each request that is put into one sees it",
            m.queue_length,
        );
        registry.register(
            "request_wait_duration_seconds",
            "Time that requests waited in queues",
            m.waited,
        );
        registry.register(
            "request_execution_seconds",
            "Time that requests were executed",
            m.executed,
        );
        made
    }

    /// Tells of these levels, and of no schemas but these; a level has its share or is exempt.
    /// Seats that are borrowed come and go with each request: what a level may have now is what
    /// it may borrow at most.
    pub(super) fn set(
        &self,
        seats: usize,
        shares: &[Share],
        exempt: &[String],
        gone: &BTreeSet<Labels>,
    ) {
        for labels in gone {
            self.forget(labels);
        }
        for family in [&self.nominal, &self.lower, &self.upper, &self.current] {
            family.clear();
        }
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let shares = shares.iter().map(|s| {
            let upper = s
                .nominal
                .saturating_add(s.borrows)
                .min(seats.max(s.nominal));
            (
                &s.name,
                s.nominal,
                s.nominal - s.lendable.min(s.nominal),
                upper,
            )
        });
        let exempt = exempt.iter().map(|name| (name, 0, 0, seats));
        for (name, nominal, lower, upper) in shares.chain(exempt) {
            let level = Level {
                priority_level: name.clone(),
            };
            self.nominal.get_or_create(&level).set(number(nominal));
            self.lower.get_or_create(&level).set(number(lower));
            self.upper.get_or_create(&level).set(number(upper));
            self.current.get_or_create(&level).set(number(upper));
        }
    }

    fn forget(&self, labels: &Labels) {
        self.dispatched.remove(labels);
        self.queued.remove(labels);
        self.executing.remove(labels);
        self.queue_length.remove(labels);
        let of = || labels.clone();
        for reason in REASONS {
            self.rejected.remove(&Rejected { of: of(), reason });
        }
        for execute in [true, false] {
            self.waited.remove(&Waited { of: of(), execute });
        }
        self.executed.remove(&Executed::regular(labels));
    }

    pub(super) fn rejected(&self, labels: &Labels, reason: &'static str) {
        let of = labels.clone();
        self.rejected.get_or_create(&Rejected { of, reason }).inc();
    }

    fn waited(&self, labels: &Labels, execute: bool, time: Duration) {
        let of = labels.clone();
        let waited = self.waited.get_or_create(&Waited { of, execute });
        waited.observe(time.as_secs_f64());
    }
}

/// A request that waits in a queue or is executed, until it is dropped.
#[derive(Debug)]
pub(super) struct Told {
    metrics: Arc<Metrics>,
    labels: Labels,
    since: Instant,
    executes: bool,
}

impl Told {
    /// It is put into a queue, and sees so many there with it.
    pub(super) fn queued(metrics: Arc<Metrics>, labels: Labels, length: usize) -> Self {
        metrics.queued.get_or_create(&labels).inc();
        let seen = metrics.queue_length.get_or_create(&labels);
        seen.observe(length as f64);
        drop(seen);
        Self {
            metrics,
            labels,
            since: Instant::now(),
            executes: false,
        }
    }

    /// It is executed at once. Where it could have had to wait that counts as a wait of no time.
    pub(super) fn executed(metrics: Arc<Metrics>, labels: Labels, exempt: bool) -> Self {
        if !exempt {
            metrics.waited(&labels, true, Duration::ZERO);
        }
        let mut told = Self {
            metrics,
            labels,
            since: Instant::now(),
            executes: false,
        };
        told.begin();
        told
    }

    /// It is executed after it waited.
    pub(super) fn dispatched(mut self) -> Self {
        self.metrics.queued.get_or_create(&self.labels).dec();
        let time = self.since.elapsed();
        self.metrics.waited(&self.labels, true, time);
        self.begin();
        self
    }

    fn begin(&mut self) {
        self.metrics.dispatched.get_or_create(&self.labels).inc();
        self.metrics.executing.get_or_create(&self.labels).inc();
        self.executes = true;
        self.since = Instant::now();
    }

    /// It waits no more, and is not executed.
    pub(super) fn refused(&self, reason: &'static str) {
        self.metrics.rejected(&self.labels, reason);
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        let (m, labels) = (&self.metrics, &self.labels);
        if !self.executes {
            m.queued.get_or_create(labels).dec();
            m.waited(labels, false, self.since.elapsed());
            return;
        }
        m.executing.get_or_create(labels).dec();
        let executed = m.executed.get_or_create(&Executed::regular(labels));
        executed.observe(self.since.elapsed().as_secs_f64());
    }
}
