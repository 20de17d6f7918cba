//! Asks webhooks: `MutatingWebhookConfiguration` and `ValidatingWebhookConfiguration`.
//!
//! The reference is `k8s.io/apiserver/pkg/admission/plugin/webhook`.

use super::configured;
use super::policy::{Condition, Given, list};
use super::request::Subject;
use super::rules::Match;
use crate::admission::Operation;
use crate::cache::Object;
use crate::convert;
use crate::registry::Call;
use crate::webhook::Endpoint;
use apimachinery::Status;
use apimachinery::review::{Answer, denial};
use futures::StreamExt as _;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

/// Validating webhooks that one request asks at a time.
const AT_ONCE: usize = 16;

/// One webhook of a configuration.
#[derive(Debug)]
pub(super) struct Hook {
    name: String,
    endpoint: Endpoint,
    matches: Match,
    conditions: Vec<Condition>,
    /// A call that fails refuses; else it is passed over.
    fails: bool,
    timeout: Duration,
    /// A dry run must not change anything elsewhere.
    dry_runs: bool,
    reinvoked: bool,
    speaks_v1: bool,
}

impl Hook {
    pub(super) fn parse(object: &Object) -> Vec<Self> {
        let v = object.value();
        let each = list(&v["webhooks"]).map(|w| {
            let seconds = w["timeoutSeconds"].as_u64().unwrap_or(10).clamp(1, 30);
            Self {
                name: w["name"].as_str().unwrap_or_default().to_owned(),
                endpoint: Endpoint::parse(&w["clientConfig"]),
                matches: Match::parse(w),
                conditions: Condition::all(&w["matchConditions"], false),
                fails: w["failurePolicy"] != "Ignore",
                timeout: Duration::from_secs(seconds),
                dry_runs: matches!(w["sideEffects"].as_str(), Some("None" | "NoneOnDryRun")),
                reinvoked: w["reinvocationPolicy"] == "IfNeeded",
                speaks_v1: list(&w["admissionReviewVersions"]).any(|v| v == "v1"),
            }
        });
        each.collect()
    }

    /// What it is asked about, if it is asked.
    async fn asked<'s>(&self, s: &'s Subject<'s>) -> Result<Option<Subject<'s>>, Status> {
        let Some(row) = self.matches.matches(s) else {
            return Ok(None);
        };
        let s = s.in_version(&row).await?;
        if !self.conditions.is_empty() {
            let given = Given::new(&s);
            let held = Condition::hold(&self.conditions, &given.activation(&s, None));
            match held {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(_) if !self.fails => return Ok(None),
                Err(e) => return Err(s.call.forbidden(e)),
            }
        }
        if s.call.dry_run && !self.dry_runs {
            return Err(Status::bad_request(format!(
                "admission webhook {:?} does not support dry run",
                self.name
            )));
        }
        Ok(Some(s))
    }

    /// Calls it; `None` when the call has failed and that is to be passed over.
    async fn call(&self, s: &Subject<'_>) -> Result<Option<Answer>, Status> {
        let uid = s.call.core.uid();
        let mut request = s.request(&uid);
        request["object"] = (*s.object).clone();
        request["oldObject"] = (*s.old).clone();
        let review = json!({
            "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": request,
        });
        let core = s.call.core;
        let answer = if self.speaks_v1 {
            let sent = core
                .dynamic
                .webhooks
                .post(core, &self.endpoint, &review, self.timeout);
            match sent.await {
                Ok(v) => Answer::read(&v, &uid),
                Err(e) => Err(format!(
                    "failed to call webhook: Post \"{}?timeout={}s\": {e}",
                    self.endpoint.shown(),
                    self.timeout.as_secs()
                )),
            }
        } else {
            Err("webhook does not accept v1 AdmissionReview".to_owned())
        };
        self.told(answer)
    }

    /// An answer, or its lack as the failure policy takes it.
    fn told<T>(&self, answer: Result<T, String>) -> Result<Option<T>, Status> {
        match answer {
            Ok(a) => Ok(Some(a)),
            Err(e) if self.fails => Err(Status::internal(format!(
                "failed calling webhook {:?}: {e}",
                self.name
            ))),
            Err(e) => {
                tracing::warn!(
                    webhook = self.name,
                    error = e,
                    "a webhook that may fail has"
                );
                Ok(None)
            }
        }
    }

    /// Warnings are passed on; a refusal is one.
    fn heed(&self, call: &Call<'_>, answer: &Answer) -> Result<(), Status> {
        for text in &answer.warnings {
            call.warnings.tell(text.clone());
        }
        for (key, value) in &answer.annotations {
            call.warnings.note(format!("{}/{key}", self.name), value);
        }
        if answer.allowed {
            Ok(())
        } else {
            Err(denial(&self.name, &answer.status))
        }
    }
}

/// What mutating webhooks did.
#[derive(Default)]
pub(super) struct Done {
    pub(super) changed: bool,
    /// Those that want to be asked again, since others have changed the object after them.
    pub(super) again: BTreeSet<(String, usize)>,
}

/// Asks mutating webhooks one after the other, or those of a first round once more.
pub(super) async fn mutate(
    call: &Call<'_>,
    operation: Operation,
    new: &mut Value,
    old: Option<&Value>,
    only: Option<&BTreeSet<(String, usize)>>,
) -> Result<Done, Status> {
    let mut done = Done::default();
    let Some(kind) = configured(call, "mutatingwebhookconfigurations") else {
        return Ok(done);
    };
    let all = call.core.dynamic.mutating_hooks.get(&kind, Hook::parse);
    let mut ran = BTreeSet::new();
    let (round, mut index) = (usize::from(only.is_some()), 0);
    for one in all.iter() {
        for (i, hook) in one.made.iter().enumerate() {
            let id = (one.name.to_string(), i);
            if only.is_some_and(|o| !o.contains(&id)) {
                continue;
            }
            let before = new.clone();
            let subject = Subject::new(call, operation, &before, old);
            let Some(asked) = Box::pin(hook.asked(&subject)).await? else {
                continue;
            };
            let answer = Box::pin(hook.call(&asked)).await?;
            let Some(answer) = answer else { continue };
            hook.heed(call, &answer)?;
            if let Some(patch) = answer
                .patch
                .as_ref()
                .filter(|_| operation != Operation::Delete)
            {
                let mut object = (*asked.object).clone();
                let patched =
                    apimachinery::patch::json_patch(&mut object, patch).map_err(|e| e.message);
                if hook.told(patched)?.is_some() {
                    let back = convert::into(call.core, &asked.row, call.row, &object);
                    *new = Box::pin(back).await?;
                }
            }
            if call.core.audit.is_some() {
                let told = json!({"configuration": &*one.name, "webhook": hook.name,
                    "mutated": *new != before});
                let key = format!("mutation.webhook.admission.k8s.io/round_{round}_index_{index}");
                call.warnings.note(key, told.to_string());
            }
            index += 1;
            if *new != before {
                done.changed = true;
                done.again.append(&mut ran);
            }
            if hook.reinvoked {
                ran.insert(id);
            }
        }
    }
    Ok(done)
}

/// Asks validating webhooks, several at a time; the first refusal in order counts.
pub(super) async fn validate(
    call: &Call<'_>,
    operation: Operation,
    new: &Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    let Some(kind) = configured(call, "validatingwebhookconfigurations") else {
        return Ok(());
    };
    let all = call.core.dynamic.validating_hooks.get(&kind, Hook::parse);
    let subject = Subject::new(call, operation, new, old);
    let mut asked = Vec::new();
    for hook in all.iter().flat_map(|one| one.made.iter()) {
        if let Some(s) = Box::pin(hook.asked(&subject)).await? {
            asked.push((hook, s));
        }
    }
    let mut calls = Vec::with_capacity(asked.len());
    for (hook, s) in &asked {
        calls.push(async move {
            match hook.call(s).await? {
                Some(answer) => hook.heed(s.call, &answer),
                None => Ok(()),
            }
        });
    }
    let mut answers = futures::stream::iter(calls).buffered(AT_ONCE);
    while let Some(answer) = Box::pin(answers.next()).await {
        answer?;
    }
    Ok(())
}
