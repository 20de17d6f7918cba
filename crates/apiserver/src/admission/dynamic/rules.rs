//! Which writes a policy or webhook is asked about.
//!
//! The reference is `k8s.io/apiserver/pkg/admission/plugin/webhook/predicates` and
//! `…/plugin/policy/matching`.

use super::request::Subject;
use crate::row::Row;
use apimachinery::selector::LabelSelector;
use serde_json::Value;

/// `matchConstraints`, or what a webhook states of the same.
#[derive(Debug, Default)]
pub(super) struct Match {
    rules: Vec<Rule>,
    exclude: Vec<Rule>,
    namespaces: Option<LabelSelector>,
    objects: Option<LabelSelector>,
    equivalent: bool,
    /// A binding without rules matches whatever its policy does.
    pub(super) any: bool,
}

#[derive(Debug)]
struct Rule {
    groups: Vec<String>,
    versions: Vec<String>,
    operations: Vec<String>,
    resources: Vec<String>,
    names: Vec<String>,
    scope: String,
}

impl Match {
    /// From `matchConstraints`, `matchResources`, or a webhook (`rules`).
    pub(super) fn parse(v: &Value) -> Self {
        let rules = |key: &str| -> Vec<Rule> {
            v[key]
                .as_array()
                .into_iter()
                .flatten()
                .map(Rule::parse)
                .collect()
        };
        let selector = |key: &str| {
            let some = v[key].as_object().is_some_and(|s| !s.is_empty());
            some.then(|| LabelSelector::from_object(&v[key]).ok())
                .flatten()
        };
        let key = if v["rules"].is_array() {
            "rules"
        } else {
            "resourceRules"
        };
        Self {
            rules: rules(key),
            exclude: rules("excludeResourceRules"),
            namespaces: selector("namespaceSelector"),
            objects: selector("objectSelector"),
            equivalent: v["matchPolicy"] != "Exact",
            any: false,
        }
    }

    /// The version that it asks for, when it is asked at all.
    pub(super) fn matches(&self, s: &Subject<'_>) -> Option<Row> {
        let row = self.row(s)?;
        (self.in_namespace(s) && self.of_object(s)).then_some(row)
    }

    fn row(&self, s: &Subject<'_>) -> Option<Row> {
        if self.exclude.iter().any(|r| r.matches(s, &s.row)) {
            return None;
        }
        if (self.any && self.rules.is_empty()) || self.rules.iter().any(|r| r.matches(s, &s.row)) {
            return Some(s.row.clone());
        }
        if !self.equivalent {
            return None;
        }
        let others = equivalents(s);
        if others
            .iter()
            .any(|row| self.exclude.iter().any(|r| r.matches(s, row)))
        {
            return None;
        }
        let found = self
            .rules
            .iter()
            .find_map(|r| others.iter().find(|row| r.matches(s, row)));
        found.cloned()
    }

    fn in_namespace(&self, s: &Subject<'_>) -> bool {
        let Some(selector) = &self.namespaces else {
            return true;
        };
        if s.is_namespace() {
            let own = if s.object.is_null() {
                &s.old
            } else {
                &s.object
            };
            return selector.matches_value(&own["metadata"]["labels"]);
        }
        if s.namespace().is_empty() {
            return true;
        }
        selector.matches_value(&s.namespace_object()["metadata"]["labels"])
    }

    fn of_object(&self, s: &Subject<'_>) -> bool {
        let Some(selector) = &self.objects else {
            return true;
        };
        [&s.object, &s.old]
            .iter()
            .any(|v| !v.is_null() && selector.matches_value(&v["metadata"]["labels"]))
    }
}

impl Rule {
    fn parse(v: &Value) -> Self {
        let texts = |key: &str| -> Vec<String> {
            let all = v[key].as_array().into_iter().flatten();
            all.filter_map(|t| t.as_str().map(str::to_owned)).collect()
        };
        Self {
            groups: texts("apiGroups"),
            versions: texts("apiVersions"),
            operations: texts("operations"),
            resources: texts("resources"),
            names: texts("resourceNames"),
            scope: v["scope"].as_str().unwrap_or("*").to_owned(),
        }
    }

    fn matches(&self, s: &Subject<'_>, row: &Row) -> bool {
        let has = |list: &[String], one: &str| list.iter().any(|t| t == "*" || t == one);
        let subresource = s.call.subresource;
        let resource = self.resources.iter().any(|r| {
            let (name, sub) = r.split_once('/').unwrap_or((r, ""));
            (name == "*" || name == row.plural()) && (sub == "*" || sub == subresource)
        });
        let scope = match self.scope.as_str() {
            "Namespaced" => row.namespaced(),
            "Cluster" => !row.namespaced(),
            _ => true,
        };
        resource
            && scope
            && has(&self.groups, row.group())
            && has(&self.versions, row.version())
            && has(&self.operations, s.operation.name())
            && (self.names.is_empty() || self.names.iter().any(|n| n == s.call.name))
    }
}

/// Other served versions of the same objects.
fn equivalents(s: &Subject<'_>) -> Vec<Row> {
    match &s.row {
        Row::Builtin(_) => {
            let stored = s.row.stored_row();
            api::resources()
                .iter()
                .filter(|r| {
                    r.plural == s.row.plural()
                        && (r.group, r.version) != (s.row.group(), s.row.version())
                })
                .map(Row::Builtin)
                .filter(|r| {
                    let other = r.stored_row();
                    other.group() == stored.group() && other.version() == stored.version()
                })
                .collect()
        }
        Row::Custom(c) => {
            let definition = s
                .call
                .core
                .cache
                .definitions
                .get(&c.names.group, &c.names.plural);
            definition
                .into_iter()
                .flat_map(|d| d.all_served().collect::<Vec<_>>())
                .filter(|o| o.version != c.version)
                .map(Row::Custom)
                .collect()
        }
    }
}
