//! From what the metrics ask for to what is done: bounds, rates, stabilization. Pure.
//!
//! The reference is `pkg/controller/podautoscaler/horizontal.go` and the documentation
//! "Horizontal Pod Autoscaling", "Configurable scaling behavior".

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

/// Without `behavior`, how long the highest recommendation holds.
const DOWNSCALE_STABILIZATION_SECONDS: i64 = 300;
/// Without `behavior`, how many replicas any size may grow to at once.
const SCALE_UP_MIN: i64 = 4;
/// Longest window and period that validation lets through.
const REMEMBERED: SignedDuration = SignedDuration::from_secs(3600);

/// What is remembered of an autoscaler: as much as an hour has.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    recommended: Vec<(Timestamp, i64)>,
    /// Replicas added and removed.
    added: Vec<(Timestamp, i64)>,
    removed: Vec<(Timestamp, i64)>,
}

impl Memory {
    /// The size at first sight is a recommendation too.
    pub(super) fn begin(&mut self, now: Timestamp, replicas: i64) {
        if self.recommended.is_empty() {
            self.recommended.push((now, replicas));
        }
    }

    /// Notes a change of size.
    pub(super) fn scaled(&mut self, now: Timestamp, from: i64, to: i64) {
        if to > from {
            self.added.push((now, to - from));
        } else {
            self.removed.push((now, from - to));
        }
        for list in [&mut self.added, &mut self.removed] {
            list.retain(|(at, _)| *at + REMEMBERED > now);
        }
    }
}

/// Reason and message of a condition.
pub(super) type Why = (&'static str, &'static str);

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sized {
    pub(super) replicas: i64,
    /// Of `AbleToScale`.
    pub(super) able: Why,
    /// Of `ScalingLimited`, which it is when `limited`.
    pub(super) limit: Why,
    pub(super) limited: bool,
}

const WITHIN: Why = (
    "DesiredWithinRange",
    "the desired count is within the acceptable range",
);
const TOO_FEW: Why = (
    "TooFewReplicas",
    "the desired replica count is less than the minimum replica count",
);
const TOO_MANY: Why = (
    "TooManyReplicas",
    "the desired replica count is more than the maximum replica count",
);
const UP_LIMIT: Why = (
    "ScaleUpLimit",
    "the desired replica count is increasing faster than the maximum scale rate",
);
const DOWN_LIMIT: Why = (
    "ScaleDownLimit",
    "the desired replica count is decreasing faster than the maximum scale rate",
);
const READY: Why = ("ReadyForNewScale", "recommended size matches current size");
const DOWN_STABILIZED: Why = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const UP_STABILIZED: Why = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);

/// Sizes between which an autoscaler keeps its target.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) min: i64,
    pub(super) max: i64,
}

/// The size to take, given what the metrics ask for.
pub(super) fn size(
    memory: &mut Memory,
    behavior: &Value,
    (current, wanted): (i64, i64),
    bounds: Bounds,
    now: Timestamp,
) -> Sized {
    memory.recommended.retain(|(at, _)| *at + REMEMBERED > now);
    let stabilized = if behavior.is_object() {
        let window = |side: &str, default| {
            let seconds = behavior[side]["stabilizationWindowSeconds"].as_i64();
            SignedDuration::from_secs(seconds.unwrap_or(default))
        };
        let up = window("scaleUp", 0);
        let down = window("scaleDown", DOWNSCALE_STABILIZATION_SECONDS);
        stabilize(memory, (current, wanted), up, down, now)
    } else {
        let window = SignedDuration::from_secs(DOWNSCALE_STABILIZATION_SECONDS);
        let recent = memory
            .recommended
            .iter()
            .filter(|(at, _)| *at + window > now);
        recent.map(|(_, n)| *n).fold(wanted, i64::max)
    };
    memory.recommended.push((now, wanted));
    let able = if stabilized == wanted {
        READY
    } else if behavior.is_object() && wanted >= current {
        UP_STABILIZED
    } else {
        DOWN_STABILIZED
    };
    let (replicas, limit) = if behavior.is_object() {
        rated(memory, behavior, (current, stabilized), bounds, now)
    } else {
        doubled(current, stabilized, bounds)
    };
    Sized {
        replicas,
        able,
        limit,
        limited: replicas != stabilized,
    }
}

/// Neither up beyond the lowest recommendation of its window, nor down below the highest.
fn stabilize(
    memory: &Memory,
    (current, wanted): (i64, i64),
    up: SignedDuration,
    down: SignedDuration,
    now: Timestamp,
) -> i64 {
    let within = |window: SignedDuration| {
        let recent = memory.recommended.iter();
        recent
            .filter(move |(at, _)| *at + window > now)
            .map(|(_, n)| *n)
    };
    let least = within(up).fold(wanted, i64::min);
    let most = within(down).fold(wanted, i64::max);
    current.max(least).min(most)
}

/// Without `behavior`: at most twice as many.
fn doubled(current: i64, wanted: i64, bounds: Bounds) -> (i64, Why) {
    let fast = (2 * current).max(SCALE_UP_MIN);
    let (allowed, why) = if bounds.max > fast {
        (fast, UP_LIMIT)
    } else {
        (bounds.max, TOO_MANY)
    };
    if wanted < bounds.min {
        (bounds.min, TOO_FEW)
    } else if wanted > allowed {
        (allowed, why)
    } else {
        (wanted, WITHIN)
    }
}

/// As the policies of `behavior` let.
fn rated(
    memory: &Memory,
    behavior: &Value,
    (current, wanted): (i64, i64),
    bounds: Bounds,
    now: Timestamp,
) -> (i64, Why) {
    if wanted > current {
        let fast = up_limit(memory, &behavior["scaleUp"], current, now).max(current);
        let (allowed, why) = if bounds.max > fast {
            (fast, UP_LIMIT)
        } else {
            (bounds.max, TOO_MANY)
        };
        if wanted > allowed {
            return (allowed, why);
        }
    } else if wanted < current {
        let fast = down_limit(memory, &behavior["scaleDown"], current, now).min(current);
        let (allowed, why) = if bounds.min < fast {
            (fast, DOWN_LIMIT)
        } else {
            (bounds.min, TOO_FEW)
        };
        if wanted < allowed {
            return (allowed, why);
        }
    }
    (wanted, WITHIN)
}

/// Where the size was when a policy's period began, and the policy.
fn policies(
    memory: &Memory,
    rules: &Value,
    default: &'static [(&'static str, i64)],
    current: i64,
    now: Timestamp,
) -> Vec<(i64, bool, i64)> {
    let changed = |list: &[(Timestamp, i64)], seconds: i64| -> i64 {
        let period = SignedDuration::from_secs(seconds);
        let recent = list.iter().filter(|(at, _)| *at + period > now);
        recent.map(|(_, n)| n).sum()
    };
    let from =
        |seconds| current - changed(&memory.added, seconds) + changed(&memory.removed, seconds);
    // Where only the other direction has rules, this one has the defaults.
    let Some(stated) = rules["policies"].as_array() else {
        const PERIOD_SECONDS: i64 = 15;
        let all = default.iter();
        return all
            .map(|(kind, value)| (from(PERIOD_SECONDS), *kind == "Percent", *value))
            .collect();
    };
    stated
        .iter()
        .map(|p| {
            let seconds = p["periodSeconds"].as_i64().unwrap_or(0);
            let value = p["value"].as_i64().unwrap_or(0);
            (from(seconds), p["type"] == "Percent", value)
        })
        .collect()
}

fn up_limit(memory: &Memory, rules: &Value, current: i64, now: Timestamp) -> i64 {
    if rules["selectPolicy"] == "Disabled" {
        return current;
    }
    let all = policies(
        memory,
        rules,
        &[("Pods", 4), ("Percent", 100)],
        current,
        now,
    );
    let reached = all.into_iter().map(|(from, percent, value)| {
        if percent {
            (from as f64 * (1.0 + value as f64 / 100.0)).ceil() as i64
        } else {
            from + value
        }
    });
    let chosen = match rules["selectPolicy"].as_str() {
        Some("Min") => reached.min(),
        _ => reached.max(),
    };
    chosen.unwrap_or(current)
}

fn down_limit(memory: &Memory, rules: &Value, current: i64, now: Timestamp) -> i64 {
    if rules["selectPolicy"] == "Disabled" {
        return current;
    }
    let all = policies(memory, rules, &[("Percent", 100)], current, now);
    let reached = all.into_iter().map(|(from, percent, value)| {
        if percent {
            (from as f64 * (1.0 - value as f64 / 100.0)) as i64
        } else {
            from - value
        }
    });
    // The policy of the largest change is that of the lowest size.
    let chosen = match rules["selectPolicy"].as_str() {
        Some("Min") => reached.max(),
        _ => reached.min(),
    };
    chosen.unwrap_or(current)
}
