//! How many replicas a metric asks for, from what the pods use: pure.
//!
//! The reference is `pkg/controller/podautoscaler/replica_calculator.go` and the documentation
//! "Horizontal Pod Autoscaling", "Algorithm details". Amounts are in thousandths.

use client::k8s_openapi::api::core::v1::Pod;
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

/// How long after its start a pod's use of CPU counts only once it is ready.
const CPU_INITIALIZATION: SignedDuration = SignedDuration::from_secs(300);
/// How soon after its start a pod must have become unready to count as never having been ready.
const INITIAL_READINESS: SignedDuration = SignedDuration::from_secs(30);
/// Ratios this near to 1 change nothing.
pub(super) const TOLERANCE: f64 = 0.1;

/// What a pod uses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    pub(super) milli: i64,
    pub(super) at: Timestamp,
    pub(super) window: SignedDuration,
}

/// By pod.
pub(super) type Readings = BTreeMap<String, Reading>;

/// How near is near enough, up and down.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tolerances {
    pub(super) up: f64,
    pub(super) down: f64,
}

impl Tolerances {
    fn hold(self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

/// What is wanted of a resource.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target {
    /// Percent of what the pods request.
    Utilization(i64),
    /// Thousandths a pod.
    Average(i64),
}

/// What a metric is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) resource: &'a str,
    /// Only this container of each pod.
    pub(super) container: Option<&'a str>,
    pub(super) target: Target,
    pub(super) tolerances: Tolerances,
}

/// What a metric says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Proposal {
    pub(super) replicas: i64,
    /// Percent of requests.
    pub(super) utilization: Option<i64>,
    /// Thousandths a pod.
    pub(super) average: i64,
}

/// Pods by what their readings are worth.
#[derive(Debug, Default)]
struct Groups<'p> {
    ready: i64,
    unready: BTreeSet<&'p str>,
    missing: BTreeSet<&'p str>,
    ignored: BTreeSet<&'p str>,
}

/// The replicas that a metric asks for.
///
/// # Errors
/// Upstream's words for what is missing.
pub(super) fn propose(
    asked: Asked<'_>,
    current: i64,
    pods: &[&Pod],
    readings: &Readings,
    now: Timestamp,
) -> Result<Proposal, String> {
    if pods.is_empty() {
        return Err("no pods returned by selector while calculating replica count".to_owned());
    }
    let groups = group(pods, readings, asked.resource, now);
    let mut used: BTreeMap<&str, i64> = readings
        .iter()
        .filter(|(name, _)| {
            !groups.ignored.contains(name.as_str()) && !groups.unready.contains(name.as_str())
        })
        .map(|(name, r)| (name.as_str(), r.milli))
        .collect();
    if used.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".to_owned());
    }
    let requests = match asked.target {
        Target::Utilization(_) => requests(pods, asked.resource, asked.container)?,
        Target::Average(_) => BTreeMap::new(),
    };
    let first = ratio(asked.target, &used, &requests)?;
    let proposal = |replicas| Proposal {
        replicas,
        utilization: first.utilization,
        average: first.average,
    };
    let up_with_unready = !groups.unready.is_empty() && first.ratio > 1.0;
    if !up_with_unready && groups.missing.is_empty() {
        if asked.tolerances.hold(first.ratio) {
            return Ok(proposal(current));
        }
        return Ok(proposal(ceil(first.ratio * groups.ready as f64)));
    }
    // What is not known is taken to speak against the change.
    for name in &groups.missing {
        let assumed = match (first.ratio < 1.0, asked.target) {
            (true, Target::Utilization(percent)) => {
                requests.get(name).copied().unwrap_or(0) * percent.max(100) / 100
            }
            (true, Target::Average(milli)) => milli,
            (false, _) => 0,
        };
        if first.ratio != 1.0 {
            used.insert(name, assumed);
        }
    }
    if up_with_unready {
        used.extend(groups.unready.iter().map(|name| (*name, 0)));
    }
    let second = ratio(asked.target, &used, &requests)?.ratio;
    let turned = (first.ratio < 1.0 && second > 1.0) || (first.ratio > 1.0 && second < 1.0);
    if asked.tolerances.hold(second) || turned {
        return Ok(proposal(current));
    }
    let replicas = ceil(second * used.len() as f64);
    if (second < 1.0 && replicas > current) || (second > 1.0 && replicas < current) {
        return Ok(proposal(current));
    }
    Ok(proposal(replicas))
}

/// The replicas that a value for all of them asks for, by its ratio to what is wanted.
///
/// # Errors
/// Upstream's words for what is missing.
pub(super) fn by_ratio(
    current: i64,
    ratio: f64,
    tolerances: Tolerances,
    pods: &[&Pod],
) -> Result<i64, String> {
    if current == 0 {
        return Ok(ceil(ratio));
    }
    if tolerances.hold(ratio) {
        return Ok(current);
    }
    if pods.is_empty() {
        let why = "no pods returned by selector while calculating replica count";
        return Err(format!("unable to calculate ready pods: {why}"));
    }
    let ready = pods.iter().filter(|p| is_ready(p)).count();
    Ok(ceil(ratio * ready as f64))
}

/// The replicas that a value asks for of which each is to have a share, and the share that each
/// has, in thousandths.
pub(super) fn by_average(
    present: i64,
    used: i64,
    wanted: i64,
    tolerances: Tolerances,
) -> (i64, i64) {
    let all = wanted as f64 * present as f64;
    let replicas = if tolerances.hold(used as f64 / all) {
        present
    } else {
        ceil(used as f64 / wanted as f64)
    };
    let average = match present {
        0 => used,
        n => ceil(used as f64 / n as f64),
    };
    (replicas, average)
}

fn is_ready(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let running = status.is_some_and(|s| s.phase.as_deref() == Some("Running"));
    let conditions = status.and_then(|s| s.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    running && conditions.any(|c| c.type_ == "Ready" && c.status == "True")
}

fn ceil(n: f64) -> i64 {
    n.ceil() as i64
}

struct Ratio {
    ratio: f64,
    utilization: Option<i64>,
    average: i64,
}

fn ratio(
    target: Target,
    used: &BTreeMap<&str, i64>,
    requests: &BTreeMap<&str, i64>,
) -> Result<Ratio, String> {
    match target {
        Target::Utilization(percent) => {
            let known = used
                .iter()
                .filter_map(|(name, used)| Some((*used, *requests.get(name)?)));
            let (mut total, mut requested, mut count) = (0, 0, 0);
            for (used, request) in known {
                (total, requested, count) = (total + used, requested + request, count + 1);
            }
            if requested == 0 {
                return Err("no metrics returned matched known pods".to_owned());
            }
            let utilization = total * 100 / requested;
            Ok(Ratio {
                ratio: utilization as f64 / percent as f64,
                utilization: Some(utilization),
                average: total / count,
            })
        }
        Target::Average(milli) => {
            let average = used.values().sum::<i64>() / used.len() as i64;
            Ok(Ratio {
                ratio: average as f64 / milli as f64,
                utilization: None,
                average,
            })
        }
    }
}

fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

fn group<'p>(pods: &[&'p Pod], readings: &Readings, resource: &str, now: Timestamp) -> Groups<'p> {
    let mut groups = Groups::default();
    for pod in pods {
        let status = pod.status.as_ref();
        let phase = status.and_then(|s| s.phase.as_deref()).unwrap_or_default();
        let name = name(pod);
        if pod.metadata.deletion_timestamp.is_some() || phase == "Failed" {
            groups.ignored.insert(name);
        } else if phase == "Pending" {
            groups.unready.insert(name);
        } else if let Some(reading) = readings.get(name) {
            if resource == "cpu" && is_unready(pod, reading, now) {
                groups.unready.insert(name);
            } else {
                groups.ready += 1;
            }
        } else {
            groups.missing.insert(name);
        }
    }
    groups
}

/// Whether what a pod uses of the CPU says nothing yet: it is starting.
fn is_unready(pod: &Pod, reading: &Reading, now: Timestamp) -> bool {
    let Some(status) = &pod.status else {
        return true;
    };
    let conditions = status.conditions.iter().flatten();
    let ready = conditions.into_iter().find(|c| c.type_ == "Ready");
    let (Some(ready), Some(started)) = (ready, status.start_time.as_ref()) else {
        return true;
    };
    let since = ready.last_transition_time.as_ref().map(|t| t.0);
    if started.0 + CPU_INITIALIZATION > now {
        // A window that began before it was ready holds its start.
        return ready.status == "False" || since.is_some_and(|s| reading.at < s + reading.window);
    }
    ready.status == "False" && since.is_none_or(|s| started.0 + INITIAL_READINESS > s)
}

/// What pods request, in thousandths.
fn requests<'p>(
    pods: &[&'p Pod],
    resource: &str,
    only: Option<&str>,
) -> Result<BTreeMap<&'p str, i64>, String> {
    let mut all = BTreeMap::new();
    for pod in pods {
        let spec = pod.spec.as_ref();
        let sidecars = spec
            .and_then(|s| s.init_containers.as_ref())
            .into_iter()
            .flatten()
            .filter(|c| c.restart_policy.as_deref() == Some("Always"));
        let containers = spec.map_or(&[][..], |s| &s.containers).iter();
        let mut sum = 0;
        for c in containers.chain(sidecars) {
            if only.is_some_and(|only| only != c.name) {
                continue;
            }
            let asked = c.resources.as_ref().and_then(|r| r.requests.as_ref());
            let milli = asked
                .and_then(|r| r.get(resource))
                .and_then(|q| q.0.parse::<apimachinery::quantity::Quantity>().ok())
                .map(apimachinery::quantity::Quantity::milli_value);
            sum += milli.ok_or_else(|| {
                format!(
                    "missing request for {resource} in container {} of Pod {}",
                    c.name,
                    name(pod)
                )
            })?;
        }
        all.insert(name(pod), sum);
    }
    Ok(all)
}
