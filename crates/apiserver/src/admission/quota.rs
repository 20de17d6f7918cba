//! ResourceQuota: what a new or grown object uses is charged to the quotas of its namespace
//! before it is written, and refused when one is exceeded.
//!
//! The charge is a write of the quota's status that fails if another came between, so two
//! requests never share what is left. What is charged and then not written the controller
//! gives back when it counts anew. Upstream: "Resource Quotas".

use super::Operation;
use crate::authn::User;
use crate::registry::create::Tracking;
use crate::registry::update::{Part, modify};
use crate::registry::{Call, meta};
use crate::row::Row;
use crate::server_state::Core;
use api::quota::{
    Amounts, add, amounts_of_list, counted_kind, covers, list_of_amounts, text_of, unstated, usage,
};
use apimachinery::Status;
use serde_json::{Value, json};

/// Charges what a write uses.
pub(super) async fn validate(
    call: &Call<'_>,
    operation: Operation,
    new: &Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    if !call.row.namespaced() || !is_charged(call, operation) {
        return Ok(());
    }
    let Some(kind) = call.core.cache.named("", "resourcequotas") else {
        return Ok(());
    };
    if kind.len() == 0 {
        return Ok(());
    }
    let of_namespace = kind.all().into_iter();
    for quota in of_namespace.filter(|o| o.namespace() == call.namespace) {
        let value = quota.value();
        let delta = delta(call, &value, new, old);
        if operation == Operation::Create && is_pod(call) && covers_kind(call, &value, new) {
            let hard = amounts_of_list(&value["spec"]["hard"]);
            if let Some(missing) = unstated(&hard, new) {
                let name = quota.name();
                return Err(call.forbidden(format!("failed quota: {name}: {missing}")));
            }
        }
        if !delta.is_empty() {
            charge(call, quota.name(), &delta).await?;
        }
    }
    Ok(())
}

fn is_pod(call: &Call<'_>) -> bool {
    call.row.group().is_empty() && call.row.known() == "pods"
}

/// New objects; and of those that can grow, grown ones.
fn is_charged(call: &Call<'_>, operation: Operation) -> bool {
    matches!(
        (operation, call.row.known(), call.subresource),
        (Operation::Create, _, "")
            | (Operation::Update, "pods", "resize")
            | (Operation::Update, "services" | "persistentvolumeclaims", "")
    )
}

fn covers_kind(call: &Call<'_>, quota: &Value, object: &Value) -> bool {
    covers(quota, call.row.group(), call.row.plural(), object)
}

/// What a write adds to the use of what a quota bounds.
fn delta(call: &Call<'_>, quota: &Value, new: &Value, old: Option<&Value>) -> Amounts {
    let of = |object: &Value| {
        if covers_kind(call, quota, object) {
            usage(call.row.group(), call.row.plural(), object)
        } else {
            Amounts::new()
        }
    };
    let before = old.map(of).unwrap_or_default();
    let mut more = of(new);
    for (name, q) in &mut more {
        q.nano -= before.get(name).map_or(0, |b| b.nano);
    }
    let hard = &quota["spec"]["hard"];
    more.retain(|name, q| q.nano > 0 && !hard[name].is_null());
    more
}

async fn charge(call: &Call<'_>, name: &str, delta: &Amounts) -> Result<(), Status> {
    let row = Row::builtin("", "v1", "resourcequotas")
        .ok_or_else(|| Status::internal("no resource quotas"))?;
    let user: User = Core::own_user();
    let own = Call {
        row: &row,
        name,
        subresource: "status",
        user: &user,
        manager: "apiserver",
        ..*call
    };
    let book_it = |quota: &Value| {
        let used = used_of(call, quota);
        let (after, refusal) = book(quota, &used, delta);
        match refusal {
            Some(text) => Err(call.forbidden(text)),
            None => Ok(after),
        }
    };
    let charged = modify(&own, Part::Status, Tracking::Update, &book_it);
    match Box::pin(charged).await {
        Ok(_) => Ok(()),
        // The quota has gone meanwhile.
        Err(s) if s.code == 404 && s.reason == "NotFound" => Ok(()),
        Err(s) => Err(s),
    }
}

/// What a quota's namespace uses: as its status says, else counted here and now (a quota
/// that was just made).
fn used_of(call: &Call<'_>, quota: &Value) -> Amounts {
    let mut used = amounts_of_list(&quota["status"]["used"]);
    let hard = amounts_of_list(&quota["spec"]["hard"]);
    for name in hard.keys() {
        if used.contains_key(name) {
            continue;
        }
        let mut sum = Amounts::from([(name.clone(), <_>::default())]);
        if let Some((group, plural)) = counted_kind(name) {
            let kind = call.core.cache.named(group, plural);
            let all = kind.into_iter().flat_map(|k| k.all());
            for object in all.filter(|o| o.namespace() == call.namespace) {
                let value = object.value();
                if !covers(quota, group, plural, &value) {
                    continue;
                }
                let mut one = usage(group, plural, &value);
                one.retain(|n, _| n == name);
                add(&mut sum, &one);
            }
        }
        used.extend(sum);
    }
    used
}

/// A quota with more used, and why it must not be.
fn book(quota: &Value, used: &Amounts, delta: &Amounts) -> (Value, Option<String>) {
    let hard = amounts_of_list(&quota["spec"]["hard"]);
    let mut after = used.clone();
    add(&mut after, delta);
    let exceeded: Vec<&String> = delta
        .keys()
        .filter(|name| after.get(*name) > hard.get(*name))
        .collect();
    let mut changed = quota.clone();
    changed["status"] = json!({
        "hard": quota["spec"]["hard"], "used": list_of_amounts(&after),
    });
    if exceeded.is_empty() {
        return (changed, None);
    }
    let list = |amounts: &Amounts| {
        let of = |name: &&String| {
            let q = amounts.get(*name).copied().unwrap_or_default();
            format!("{name}={}", text_of(name, q))
        };
        exceeded.iter().map(of).collect::<Vec<_>>().join(",")
    };
    let text = format!(
        "exceeded quota: {}, requested: {}, used: {}, limited: {}",
        meta::text(quota, "name"),
        list(delta),
        list(used),
        list(&hard),
    );
    (changed, Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_used_and_no_more() {
        let quota = json!({"metadata": {"name": "q"}, "spec": {"hard":
            {"pods": "2", "requests.cpu": "1", "requests.memory": "1Gi"}}});
        let amounts = |v: Value| amounts_of_list(&v);
        let used = amounts(json!({"pods": "1", "requests.cpu": "600m", "requests.memory": "0"}));
        let small = amounts(json!({"pods": "1", "requests.cpu": "400m"}));
        let (after, refusal) = book(&quota, &used, &small);
        assert_eq!(refusal, None);
        assert_eq!(
            after["status"]["used"],
            json!({"pods": "2", "requests.cpu": "1", "requests.memory": "0"})
        );
        let large = amounts(json!({"pods": "2", "requests.cpu": "500m", "requests.memory": "1Gi"}));
        assert_eq!(
            book(&quota, &used, &large).1.as_deref(),
            Some(
                "exceeded quota: q, requested: pods=2,requests.cpu=500m, used: pods=1,requests.cpu=600m, limited: pods=2,requests.cpu=1"
            )
        );
    }
}
