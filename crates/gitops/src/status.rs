//! Conditions as Flux prints them.

use serde_json::{Map, Value, json};

/// Reasons of conditions and events.
pub mod reason {
    /// All is well.
    pub const SUCCEEDED: &str = "ReconciliationSucceeded";
    /// Under way.
    pub const PROGRESSING: &str = "Progressing";
    /// The source's revision is kept.
    pub const SUCCEEDED_SOURCE: &str = "Succeeded";
    /// The source has no revision, or it can't be read.
    pub const ARTIFACT_FAILED: &str = "ArtifactFailed";
    /// The build failed.
    pub const BUILD_FAILED: &str = "BuildFailed";
    /// The server refused.
    pub const RECONCILIATION_FAILED: &str = "ReconciliationFailed";
    /// Deleting failed.
    pub const PRUNE_FAILED: &str = "PruneFailed";
    /// Objects did not get healthy.
    pub const HEALTH_FAILED: &str = "HealthCheckFailed";
    /// Another one is not ready.
    pub const DEPENDENCY: &str = "DependencyNotReady";
    /// The repository can't be fetched.
    pub const GIT_FAILED: &str = "GitOperationFailed";
    /// The artifact can't be fetched.
    pub const OCI_FAILED: &str = "OCIArtifactPullFailed";
    /// Credentials are missing or refused.
    pub const AUTHENTICATION_FAILED: &str = "AuthenticationFailed";
    /// A signature is missing or not valid.
    pub const VERIFICATION: &str = "VerificationError";
    /// A signature is valid.
    pub const VERIFIED: &str = "Succeeded";
    /// A field of the spec can't be followed.
    pub const INVALID_SPEC: &str = "InvalidSpec";
    /// The archive can't be kept.
    pub const STORAGE: &str = "StorageOperationFailed";
}

/// Conditions of an object, with the time when each last turned.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conditions(Vec<Value>);

impl Conditions {
    /// Those of a status.
    pub fn of(status: &Value) -> Self {
        Self(status["conditions"].as_array().cloned().unwrap_or_default())
    }

    /// Status and message of a condition.
    pub fn get(&self, kind: &str) -> Option<(&str, &str)> {
        let found = self.0.iter().find(|c| c["type"] == kind)?;
        Some((
            found["status"].as_str().unwrap_or_default(),
            found["message"].as_str().unwrap_or_default(),
        ))
    }

    /// Whether a condition is `True`.
    pub fn is_true(&self, kind: &str) -> bool {
        self.get(kind).is_some_and(|(status, _)| status == "True")
    }

    /// States a condition.
    pub fn set(
        &mut self,
        kind: &str,
        status: &str,
        (reason, message): (&str, &str),
        generation: i64,
        now: &str,
    ) {
        let known = self.0.iter().position(|c| c["type"] == kind);
        let since = known
            .and_then(|at| self.0.get(at))
            .filter(|c| c["status"] == status)
            .and_then(|c| c["lastTransitionTime"].as_str())
            .unwrap_or(now)
            .to_owned();
        let new = json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "observedGeneration": generation, "lastTransitionTime": since,
        });
        match known.and_then(|at| self.0.get_mut(at)) {
            Some(old) => *old = new,
            None => self.0.push(new),
        }
        self.0.sort_by_key(|c| match c["type"].as_str() {
            Some("Reconciling") => 0,
            Some("Stalled") => 1,
            Some("Ready") => 2,
            _ => 3,
        });
    }

    /// Takes a condition away.
    pub fn remove(&mut self, kind: &str) {
        self.0.retain(|c| c["type"] != kind);
    }

    /// States that it is ready, and nothing else.
    pub fn ready(&mut self, reason: &str, message: &str, generation: i64, now: &str) {
        self.remove("Reconciling");
        self.remove("Stalled");
        self.set("Ready", "True", (reason, message), generation, now);
    }

    /// States that it failed; `stalled` when only a change of the spec helps.
    pub fn failed(
        &mut self,
        (reason, message): (&str, &str),
        stalled: bool,
        generation: i64,
        now: &str,
    ) {
        if stalled {
            self.remove("Reconciling");
            self.set("Stalled", "True", (reason, message), generation, now);
        } else {
            self.remove("Stalled");
            self.set(
                "Reconciling",
                "True",
                ("ProgressingWithRetry", message),
                generation,
                now,
            );
        }
        self.set("Ready", "False", (reason, message), generation, now);
    }

    /// States that it is under way.
    pub fn progressing(&mut self, message: &str, generation: i64, now: &str) {
        self.remove("Stalled");
        let said = (reason::PROGRESSING, message);
        self.set("Reconciling", "True", said, generation, now);
        self.set("Ready", "Unknown", said, generation, now);
    }

    /// As the status has them.
    pub fn into_value(self) -> Value {
        Value::Array(self.0)
    }
}

/// A merge patch that makes `old` into `new`: what is gone is nulled. Lists are replaced.
pub fn difference(old: &Value, new: &Value) -> Option<Value> {
    if old == new {
        return None;
    }
    let (Value::Object(old), Value::Object(new)) = (old, new) else {
        return Some(new.clone());
    };
    let mut patch = Map::new();
    for (key, value) in new {
        match old.get(key) {
            Some(known) => {
                if let Some(inner) = difference(known, value) {
                    patch.insert(key.clone(), inner);
                }
            }
            None => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    for key in old.keys().filter(|k| !new.contains_key(*k)) {
        patch.insert(key.clone(), Value::Null);
    }
    Some(Value::Object(patch))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn shown(conditions: &Conditions) -> String {
        conditions
            .0
            .iter()
            .map(|c| {
                format!(
                    "{}={} {} since {}\n",
                    c["type"].as_str().unwrap(),
                    c["status"].as_str().unwrap(),
                    c["reason"].as_str().unwrap(),
                    c["lastTransitionTime"].as_str().unwrap()
                )
            })
            .collect()
    }

    #[test]
    fn a_condition_keeps_the_time_at_which_it_turned() {
        let mut c = Conditions::default();
        let mut text = String::new();
        c.progressing("new revision", 1, "t1");
        text += &shown(&c);
        c.failed((reason::BUILD_FAILED, "x"), false, 1, "t2");
        c.failed((reason::BUILD_FAILED, "y"), false, 1, "t3");
        text += &shown(&c);
        c.ready(reason::SUCCEEDED, "ok", 1, "t4");
        text += &shown(&c);
        c.failed((reason::INVALID_SPEC, "z"), true, 2, "t5");
        text += &shown(&c);
        expect![[r#"
            Reconciling=True Progressing since t1
            Ready=Unknown Progressing since t1
            Reconciling=True ProgressingWithRetry since t1
            Ready=False BuildFailed since t2
            Ready=True ReconciliationSucceeded since t4
            Stalled=True InvalidSpec since t5
            Ready=False InvalidSpec since t5
        "#]]
        .assert_eq(&text);
    }

    #[test]
    fn a_difference_patches_the_old_into_the_new() {
        let old = json!({"a": 1, "b": {"c": [1], "d": 2}, "gone": 1});
        let new = json!({"a": 1, "b": {"c": [2], "d": 2}, "e": {"f": 1}});
        let patch = difference(&old, &new).unwrap();
        assert_eq!(patch, json!({"b": {"c": [2]}, "e": {"f": 1}, "gone": null}));
        let mut patched = old;
        apimachinery::patch::merge_patch(&mut patched, &patch);
        assert_eq!(difference(&patched, &new), None);
    }
}
