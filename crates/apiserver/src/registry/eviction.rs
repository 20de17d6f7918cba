//! `pods/eviction`: a deletion that PodDisruptionBudgets may refuse.
//!
//! A grant is taken off the budget's `disruptionsAllowed` by a write that fails if another
//! came between, so that two evictions never share one. Upstream: "API-initiated Eviction",
//! "Unhealthy Pod Eviction Policy".

use super::create::Tracking;
use super::delete::{self, DeleteOptions};
use super::subresource::set_condition;
use super::update::{Part, modify};
use super::{Call, meta};
use crate::row::Row;
use crate::server_state::Core;
use apimachinery::Status;
use apimachinery::selector::LabelSelector;
use serde_json::{Value, json};

/// Evictions under way that a budget's status remembers, as upstream.
const DISRUPTED_MAX: usize = 2000;
/// How long to wait for a controller that has not seen a budget's change.
const RETRY_S: u64 = 10;

/// Evicts a pod.
pub(crate) async fn evict(call: &Call<'_>, eviction: &Value) -> Result<Value, Status> {
    let name = meta::text(eviction, "name");
    if !name.is_empty() && name != call.name {
        return Err(Status::bad_request(
            "name in URL does not match name in Eviction object",
        ));
    }
    let mut options = DeleteOptions::from_value(&eviction["deleteOptions"])?;
    options.dry_run |= call.dry_run;
    let pod = call.view(&*call.current().await?);
    let finished = matches!(
        pod["status"]["phase"].as_str(),
        Some("Succeeded" | "Failed" | "Pending")
    );
    if !finished && !meta::deleting(&pod) {
        ask_budgets(call, &pod, options.dry_run).await?;
    }
    // A stated version would no longer be the pod's.
    if !options.dry_run && options.resource_version.is_none() && !meta::deleting(&pod) {
        mark(call).await?;
    }
    delete::delete(call, &options).await?;
    Ok(
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
    )
}

/// Lets the pod's owner see why it goes: a Job may overlook that failure.
async fn mark(call: &Call<'_>) -> Result<(), Status> {
    let user = Core::own_user();
    let own = Call {
        subresource: "status",
        user: &user,
        manager: "apiserver",
        ..*call
    };
    let condition = json!({
        "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting", "lastTransitionTime": call.core.timestamp(),
    });
    let marked = |old: &Value| {
        let mut new = old.clone();
        set_condition(&mut new, condition.clone());
        Ok(new)
    };
    modify(&own, Part::Status, Tracking::Update, &marked)
        .await
        .map(drop)
}

async fn ask_budgets(call: &Call<'_>, pod: &Value, dry_run: bool) -> Result<(), Status> {
    let Some(kind) = call.core.cache.named("policy", "poddisruptionbudgets") else {
        return Ok(());
    };
    let of_namespace = kind
        .all()
        .into_iter()
        .filter(|o| o.namespace() == call.namespace);
    let budgets: Vec<_> = of_namespace.filter(|o| covers(&o.value(), pod)).collect();
    let [budget] = &budgets[..] else {
        return match budgets.len() {
            0 => Ok(()),
            _ => Err(Status::new(
                500,
                "InternalError",
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            )),
        };
    };
    let row = Row::builtin("policy", "v1", "poddisruptionbudgets")
        .ok_or_else(|| Status::internal("no disruption budgets"))?;
    let user = Core::own_user();
    let own = Call {
        row: &row,
        name: budget.name(),
        subresource: "status",
        user: &user,
        manager: "apiserver",
        dry_run,
        ..*call
    };
    let now = call.core.timestamp();
    let grant = |old: &Value| grant(old, pod, &now);
    modify(&own, Part::Status, Tracking::Update, &grant)
        .await
        .map(drop)
}

/// An absent selector covers nothing, an empty one all.
fn covers(budget: &Value, pod: &Value) -> bool {
    let selector = &budget["spec"]["selector"];
    !selector.is_null()
        && LabelSelector::from_object(selector)
            .is_ok_and(|s| s.matches(|k| pod["metadata"]["labels"][k].as_str()))
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    conditions
        .into_iter()
        .any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// A budget less one pod; or why not.
fn grant(budget: &Value, pod: &Value, now: &str) -> Result<Value, Status> {
    let status = &budget["status"];
    let number = |key: &str| status[key].as_i64().unwrap_or(0);
    // A pod that does not serve may go where that is asked for, or where enough others do.
    if !is_ready(pod) {
        let always = budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow";
        let enough =
            number("currentHealthy") >= number("desiredHealthy") && number("desiredHealthy") > 0;
        if always || enough {
            return Ok(budget.clone());
        }
    }
    let generation = budget["metadata"]["generation"].as_i64().unwrap_or(0);
    let unseen = number("observedGeneration") < generation;
    let disrupted = status["disruptedPods"].as_object();
    if disrupted.is_some_and(|d| d.len() > DISRUPTED_MAX)
        || unseen
        || number("disruptionsAllowed") <= 0
    {
        let name = meta::text(budget, "name");
        let why = if unseen {
            format!("The disruption budget {name} is still being processed by the server.")
        } else {
            format!(
                "The disruption budget {name} needs {} healthy pods and has {} currently",
                number("desiredHealthy"),
                number("currentHealthy")
            )
        };
        let mut details = json!({"causes": [{"reason": "DisruptionBudget", "message": why}]});
        if unseen {
            details["retryAfterSeconds"] = RETRY_S.into();
        }
        let text = "Cannot evict pod as it would violate the pod's disruption budget.";
        return Err(Status::new(429, "TooManyRequests", text).with_details(details));
    }
    let mut new = budget.clone();
    new["status"]["disruptionsAllowed"] = (number("disruptionsAllowed") - 1).into();
    if !new["status"]["disruptedPods"].is_object() {
        new["status"]["disruptedPods"] = json!({});
    }
    new["status"]["disruptedPods"][meta::text(pod, "name")] = now.into();
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(ready: &str) -> Value {
        json!({"metadata": {"name": "p", "labels": {"app": "web"}},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}})
    }

    fn budget(allowed: i64, healthy: i64, policy: &str) -> Value {
        json!({"metadata": {"name": "b", "generation": 1},
            "spec": {"selector": {"matchLabels": {"app": "web"}}, "unhealthyPodEvictionPolicy": policy},
            "status": {"observedGeneration": 1, "disruptionsAllowed": allowed,
                "currentHealthy": healthy, "desiredHealthy": 2}})
    }

    /// Upstream: "API-initiated Eviction", "Unhealthy Pod Eviction Policy".
    #[test]
    fn a_budget_grants_what_it_allows() {
        let policy = "IfHealthyBudget";
        let granted = grant(&budget(1, 3, policy), &pod("True"), "now").unwrap();
        assert_eq!(granted["status"]["disruptionsAllowed"], 0);
        assert_eq!(granted["status"]["disruptedPods"], json!({"p": "now"}));
        let refused = grant(&granted, &pod("True"), "now").unwrap_err();
        assert_eq!(refused.code, 429);
        assert_eq!(
            refused.details.unwrap_or_default()["causes"][0]["message"],
            "The disruption budget b needs 2 healthy pods and has 3 currently"
        );
        // Pods that don't serve.
        assert!(grant(&budget(0, 2, policy), &pod("False"), "now").is_ok());
        assert!(grant(&budget(0, 1, policy), &pod("False"), "now").is_err());
        assert!(grant(&budget(0, 1, "AlwaysAllow"), &pod("False"), "now").is_ok());
        let mut changed = budget(1, 3, policy);
        changed["metadata"]["generation"] = 2.into();
        let refused = grant(&changed, &pod("True"), "now").unwrap_err();
        assert_eq!(refused.details.unwrap_or_default()["retryAfterSeconds"], 10);
    }

    #[test]
    fn an_absent_selector_covers_nothing_and_an_empty_one_all() {
        assert!(covers(&budget(0, 0, ""), &pod("True")));
        assert!(!covers(&json!({"spec": {}}), &pod("True")));
        assert!(covers(&json!({"spec": {"selector": {}}}), &pod("True")));
    }
}
