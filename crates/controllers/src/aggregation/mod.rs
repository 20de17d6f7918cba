//! Aggregated ClusterRoles: those with an `aggregationRule` show the rules of the roles that
//! it selects. The API server grants by the selection itself; this is for those who read.
//!
//! Upstream: "Aggregated ClusterRoles" in "Using RBAC Authorization".

use crate::context::{Context, named};
use crate::error::Error;
use client::k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use client::{Informer, ObjectKey, Outcome, labels};
use kube::api::{Api, PostParams};
use std::sync::Arc;

const NAME: &str = "clusterrole-aggregation-controller";
const WORKERS: usize = 1;

struct Controller {
    context: Context,
    roles: Informer<ClusterRole>,
}

pub(crate) fn start(context: &Context) {
    let roles = context.informers.get::<ClusterRole>();
    let queue = context.queue();
    {
        let (all, queue) = (roles.clone(), queue.clone());
        context.follow(&roles, move |old, new| {
            let shown = |r: &Arc<ClusterRole>| (r.rules.clone(), r.metadata.labels.clone());
            let same = old.map(shown) == new.map(shown)
                && old.map(|r| &r.aggregation_rule) == new.map(|r| &r.aggregation_rule);
            if same {
                return;
            }
            for role in all.select(|r| r.aggregation_rule.is_some()) {
                queue.add(ObjectKey::of(&*role));
            }
        });
    }
    let ready = vec![roles.ready()];
    let controller = Arc::new(Controller {
        context: context.clone(),
        roles,
    });
    context.work(NAME, queue, WORKERS, ready, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> Result<Outcome, Error> {
        let Some(role) = self.roles.get_key(&key) else {
            return Ok(Outcome::Done);
        };
        let Some(rules) = gathered(&role, &self.roles.list()) else {
            return Ok(Outcome::Done);
        };
        let mut changed = (*role).clone();
        changed.rules = Some(rules);
        let api: Api<ClusterRole> = Api::all(self.context.client.clone());
        match api
            .replace(&key.name, &PostParams::default(), &changed)
            .await
        {
            Ok(_) => Ok(Outcome::Done),
            Err(error) if client::is_not_found(&error) => Ok(Outcome::Done),
            Err(source) => Err(Error::Update {
                what: named::<ClusterRole>(&key),
                source,
            }),
        }
    }
}

/// The rules that a role should have; none when it has them, or gathers nothing.
fn gathered(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Option<Vec<PolicyRule>> {
    let rule = role.aggregation_rule.as_ref()?;
    let selectors: Vec<_> = rule
        .cluster_role_selectors
        .iter()
        .flatten()
        .filter_map(|s| labels::parse(s).ok())
        .collect();
    let mut rules: Vec<PolicyRule> = Vec::new();
    for other in all.iter().filter(|o| o.metadata.name != role.metadata.name) {
        let has = other.metadata.labels.as_ref();
        if !selectors.iter().any(|s| labels::matches(s, has)) {
            continue;
        }
        for rule in other.rules.iter().flatten() {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    (role.rules.as_deref().unwrap_or_default() != rules).then_some(rules)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::object;
    use serde_json::{Value, json};

    fn role(name: &str, labels: Value, more: Value) -> Arc<ClusterRole> {
        let mut role = json!({"metadata": {"name": name, "labels": labels}});
        crate::fixture::merge(&mut role, more);
        Arc::new(object(role))
    }

    #[test]
    fn a_role_shows_the_rules_of_those_that_it_selects() {
        let rules = |resource: &str| json!({"rules": [{"verbs": ["get"], "resources": [resource], "apiGroups": [""]}]});
        let rule = json!({"aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"view": "true"}}]}});
        let all = [
            role("a", json!({"view": "true"}), rules("pods")),
            role("b", json!({"view": "false"}), rules("secrets")),
            role("c", json!({"view": "true"}), rules("services")),
            role("d", json!({"view": "true"}), rules("pods")),
            role("view", json!({"view": "true"}), rule.clone()),
        ];
        let gathered_rules = gathered(&all[4], &all).unwrap_or_default();
        let resources: Vec<_> = gathered_rules
            .iter()
            .flat_map(|r| r.resources.clone().unwrap_or_default())
            .collect();
        assert_eq!(resources, ["pods", "services"]);
        let mut whole = (*all[4]).clone();
        whole.rules = Some(gathered_rules);
        assert_eq!(gathered(&whole, &all), None);
        assert_eq!(gathered(&all[0], &all), None);
    }
}
