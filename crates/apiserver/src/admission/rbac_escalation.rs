//! Nobody grants more than he has: roles and bindings are checked against their writer.

use crate::authz::{Attributes, Rule, rbac::rules_of};
use crate::registry::Call;
use apimachinery::Status;
use serde_json::Value;

pub(super) fn validate(call: &Call<'_>, new: &Value, old: Option<&Value>) -> Result<(), Status> {
    if call.row.group() != "rbac.authorization.k8s.io" || call.user.in_group("system:masters") {
        return Ok(());
    }
    let may = |verb: &str, resource: &str, namespace: &str, name: &str| {
        call.core.authz.allowed(
            call.user,
            &Attributes {
                verb,
                resource_request: true,
                group: "rbac.authorization.k8s.io",
                resource,
                namespace,
                name,
                ..Attributes::default()
            },
        )
    };
    match call.row.known() {
        "roles" | "clusterroles" => {
            let same = old.is_some_and(|o| {
                o["rules"] == new["rules"] && o["aggregationRule"] == new["aggregationRule"]
            });
            if same || may("escalate", call.row.plural(), call.namespace, call.name) {
                return Ok(());
            }
            covered(call, &rules_of(new))?;
            if !new["aggregationRule"].is_null() {
                // What it will gather can't be known: only who has everything may.
                let everything = Rule {
                    verbs: vec!["*".to_owned()],
                    api_groups: vec!["*".to_owned()],
                    resources: vec!["*".to_owned()],
                    ..Rule::default()
                };
                covered(call, &[everything])?;
            }
            Ok(())
        }
        _ => {
            let same = old.is_some_and(|o| {
                o["roleRef"] == new["roleRef"] && o["subjects"] == new["subjects"]
            });
            let name = new["roleRef"]["name"].as_str().unwrap_or_default();
            let local = new["roleRef"]["kind"] == "Role";
            let resource = if local { "roles" } else { "clusterroles" };
            if same || may("bind", resource, call.namespace, name) {
                return Ok(());
            }
            let home = if local { call.namespace } else { "" };
            let rules =
                call.core.authz.role(home, name).ok_or_else(|| {
                    Status::not_found("rbac.authorization.k8s.io", resource, name)
                })?;
            covered(call, &rules)
        }
    }
}

fn covered(call: &Call<'_>, asked: &[Rule]) -> Result<(), Status> {
    let own = call.core.authz.rules(call.user, call.namespace);
    let lacking: Vec<String> = asked
        .iter()
        .filter(|r| !r.covered_by(&own))
        .map(show)
        .collect();
    if lacking.is_empty() {
        return Ok(());
    }
    Err(call.forbidden(format!(
        "user {:?} (groups={:?}) is attempting to grant RBAC permissions not currently held:\n{}",
        call.user.name,
        call.user.groups,
        lacking.join("\n")
    )))
}

fn show(r: &Rule) -> String {
    let parts = [
        ("APIGroups", &r.api_groups),
        ("Resources", &r.resources),
        ("ResourceNames", &r.resource_names),
        ("NonResourceURLs", &r.non_resource_urls),
        ("Verbs", &r.verbs),
    ];
    let shown: Vec<String> = parts
        .iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(name, list)| format!("{name}:{list:?}"))
        .collect();
    format!("{{{}}}", shown.join(", "))
}
