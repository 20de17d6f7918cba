//! What a new version adds to the default roles and bindings of a site that an earlier one made,
//! as upstream's server does at each start: what is missing is added, what users added stays,
//! and what they marked `autoupdate: "false"` is left alone.
//! Pure; what the defaults are is in `policy`, who writes is `bootstrap`.

use super::rbac::{self, rules_of};
use serde_json::Value;

const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// What to do with an object that is there.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Reconciled {
    /// It lacks nothing, or its owner wants no updates.
    Keep,
    /// Write this instead.
    Update(Value),
    /// A binding of another role. A binding can't be given another: it is made anew.
    Replace,
}

/// Whether an object is of the kinds that are kept up to date.
pub(crate) fn concerns(object: &Value) -> bool {
    let group = object["apiVersion"]
        .as_str()
        .and_then(|v| v.split_once('/'));
    group.is_some_and(|(group, _)| group == rbac::GROUP)
}

/// What becomes of `existing` where `wanted` is the default.
pub(crate) fn reconcile(existing: &Value, wanted: &Value) -> Reconciled {
    if existing["metadata"]["annotations"][AUTOUPDATE] == "false" {
        return Reconciled::Keep;
    }
    if existing["roleRef"] != wanted["roleRef"] {
        return Reconciled::Replace;
    }
    let mut new = existing.clone();
    let mut changed = false;
    for field in ["labels", "annotations"] {
        for (key, value) in wanted["metadata"][field].as_object().into_iter().flatten() {
            if existing["metadata"][field][key].is_null() {
                new["metadata"][field][key] = value.clone();
                changed = true;
            }
        }
    }
    for (at, missing) in missing(existing, wanted) {
        if missing.is_empty() {
            continue;
        }
        changed = true;
        let all = at.iter().fold(&mut new, |v, field| &mut v[*field]);
        match all.as_array_mut() {
            Some(all) => all.extend(missing),
            None => *all = missing.into(),
        }
    }
    if changed {
        Reconciled::Update(new)
    } else {
        Reconciled::Keep
    }
}

/// What lists lack, by where they are.
fn missing(existing: &Value, wanted: &Value) -> [(&'static [&'static str], Vec<Value>); 3] {
    const SELECTORS: &[&str] = &["aggregationRule", "clusterRoleSelectors"];
    let owned = rules_of(existing);
    let rules = list(wanted, &["rules"]).iter().zip(rules_of(wanted));
    let rules = rules.filter(|(_, rule)| !rule.covered_by(&owned));
    let selectors = list(existing, SELECTORS);
    let selectors = list(wanted, SELECTORS)
        .iter()
        .filter(|selector| !selectors.contains(selector));
    let subjects = list(existing, &["subjects"]);
    let subjects = list(wanted, &["subjects"])
        .iter()
        .filter(|subject| !subjects.iter().any(|known| who(known) == who(subject)));
    [
        (&["rules"], rules.map(|(raw, _)| raw.clone()).collect()),
        (SELECTORS, selectors.cloned().collect()),
        (&["subjects"], subjects.cloned().collect()),
    ]
}

fn list<'a>(of: &'a Value, at: &[&str]) -> &'a [Value] {
    let found = at.iter().fold(of, |v, field| &v[*field]);
    found.as_array().map_or(&[], Vec::as_slice)
}

/// Who a subject is; its API group is defaulted by its kind.
fn who(subject: &Value) -> [&Value; 3] {
    ["kind", "namespace", "name"].map(|field| &subject[field])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn role(verbs: &[&str]) -> Value {
        json!({"kind": "ClusterRole", "metadata": {"name": "r", "labels": {"l": "default"},
                "annotations": {AUTOUPDATE: "true"}},
            "rules": [{"verbs": verbs, "apiGroups": [""], "resources": ["pods"]}]})
    }

    fn binding(subjects: &[&str]) -> Value {
        let subjects: Vec<Value> = subjects
            .iter()
            .map(|s| json!({"kind": "Group", "name": s}))
            .collect();
        json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "r"},
            "subjects": subjects})
    }

    fn updated(existing: &Value, wanted: &Value) -> Value {
        let Reconciled::Update(new) = reconcile(existing, wanted) else {
            panic!("kept {existing}");
        };
        // Once is enough.
        assert_eq!(reconcile(&new, wanted), Reconciled::Keep, "{new}");
        new
    }

    #[test]
    fn missing_rules_are_added_and_others_stay() {
        assert_eq!(
            reconcile(&role(&["get"]), &role(&["get"])),
            Reconciled::Keep
        );
        assert_eq!(reconcile(&role(&["*"]), &role(&["get"])), Reconciled::Keep);
        let new = updated(&role(&["delete"]), &role(&["get", "list"]));
        let verbs: Vec<_> = list(&new, &["rules"]).iter().map(|r| &r["verbs"]).collect();
        assert_eq!(verbs, [&json!(["delete"]), &json!(["get", "list"])]);
        let mut none = role(&[]);
        none["rules"] = Value::Null;
        assert_eq!(
            updated(&none, &role(&["get"]))["rules"],
            role(&["get"])["rules"]
        );
    }

    #[test]
    fn users_decide_about_labels_and_updates() {
        let mut own = role(&["get"]);
        own["metadata"]["labels"] = json!({"l": "own"});
        own["metadata"]["annotations"] = Value::Null;
        let new = updated(&own, &role(&["get"]));
        assert_eq!(new["metadata"]["labels"]["l"], "own");
        assert_eq!(new["metadata"]["annotations"][AUTOUPDATE], "true");
        own["metadata"]["annotations"] = json!({AUTOUPDATE: "false"});
        assert_eq!(reconcile(&own, &role(&["list"])), Reconciled::Keep);
    }

    #[test]
    fn bindings_get_missing_subjects_and_never_another_role() {
        let new = updated(&binding(&["own"]), &binding(&["default"]));
        assert_eq!(new["subjects"], binding(&["own", "default"])["subjects"]);
        let mut defaulted = binding(&["default"]);
        defaulted["subjects"][0]["apiGroup"] = rbac::GROUP.into();
        assert_eq!(
            reconcile(&defaulted, &binding(&["default"])),
            Reconciled::Keep
        );
        let mut other = binding(&["default"]);
        other["roleRef"]["name"] = "other".into();
        assert_eq!(
            reconcile(&other, &binding(&["default"])),
            Reconciled::Replace
        );
    }

    #[test]
    fn gathering_roles_get_missing_selectors() {
        let gathers = |labels: &[&str]| {
            let selectors: Vec<Value> = labels
                .iter()
                .map(|l| json!({"matchLabels": {*l: "true"}}))
                .collect();
            json!({"metadata": {"name": "admin"}, "rules": [],
                "aggregationRule": {"clusterRoleSelectors": selectors}})
        };
        assert_eq!(
            updated(&gathers(&["own"]), &gathers(&["a"]))["aggregationRule"],
            gathers(&["own", "a"])["aggregationRule"]
        );
    }
}
