//! Role-based access control: roles and bindings compiled once per change of any of them.

use super::Attributes;
use crate::authn::User;
use crate::cache::{Cache, Kind, Object};
use apimachinery::selector::LabelSelector;
use arc_swap::ArcSwapOption;
use serde::Deserialize;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;

pub(crate) const GROUP: &str = "rbac.authorization.k8s.io";

/// One rule of a role.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Rule {
    pub(crate) verbs: Vec<String>,
    pub(crate) api_groups: Vec<String>,
    pub(crate) resources: Vec<String>,
    pub(crate) resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    pub(crate) non_resource_urls: Vec<String>,
}

fn has(list: &[String], item: &str) -> bool {
    list.iter().any(|x| x == "*" || x == item)
}

impl Rule {
    pub(crate) fn allows(&self, a: &Attributes<'_>) -> bool {
        if !has(&self.verbs, a.verb) {
            return false;
        }
        if !a.resource_request {
            return self.non_resource_urls.iter().any(|url| {
                url == "*"
                    || url == a.path
                    || url.strip_suffix('*').is_some_and(|p| a.path.starts_with(p))
            });
        }
        has(&self.api_groups, a.group)
            && self.covers_resource(a.resource, a.subresource)
            && (self.resource_names.is_empty() || self.resource_names.iter().any(|n| n == a.name))
    }

    fn covers_resource(&self, resource: &str, subresource: &str) -> bool {
        self.resources.iter().any(|r| {
            r == "*"
                || match r.split_once('/') {
                    None => subresource.is_empty() && r == resource,
                    Some(("*", sub)) => sub == subresource,
                    Some((res, sub)) => res == resource && sub == subresource,
                }
        })
    }

    /// Whether one of `owned` covers every part of this rule.
    pub(crate) fn covered_by(&self, owned: &[Rule]) -> bool {
        let star = |list: &[String], item: &str| list.iter().any(|x| x == "*" || x == item);
        for verb in &self.verbs {
            for url in &self.non_resource_urls {
                let ok = owned.iter().any(|o| {
                    star(&o.verbs, verb)
                        && o.non_resource_urls.iter().any(|u| {
                            u == "*"
                                || u == url
                                || u.strip_suffix('*').is_some_and(|p| url.starts_with(p))
                        })
                });
                if !ok {
                    return false;
                }
            }
            for group in &self.api_groups {
                for resource in &self.resources {
                    let (res, sub) = resource.split_once('/').unwrap_or((resource, ""));
                    let names: Vec<Option<&String>> = if self.resource_names.is_empty() {
                        vec![None]
                    } else {
                        self.resource_names.iter().map(Some).collect()
                    };
                    for name in names {
                        let ok = owned.iter().any(|o| {
                            star(&o.verbs, verb)
                                && star(&o.api_groups, group)
                                && (o.resources.contains(resource) || o.covers_resource(res, sub))
                                && (o.resource_names.is_empty()
                                    || name.is_some_and(|n| o.resource_names.contains(n)))
                        });
                        if !ok {
                            return false;
                        }
                    }
                }
            }
        }
        true
    }
}

/// Reads `rules` of a role.
pub(crate) fn rules_of(role: &Value) -> Vec<Rule> {
    role.get("rules")
        .filter(|r| !r.is_null())
        .and_then(|r| Vec::<Rule>::deserialize(r).ok())
        .unwrap_or_default()
}

/// Rules granted in one namespace or everywhere.
#[derive(Debug)]
struct Grant {
    /// Empty: everywhere.
    namespace: String,
    rules: Arc<Vec<Rule>>,
}

/// All bindings, by subject.
#[derive(Debug, Default)]
struct Compiled {
    revisions: [u64; 4],
    users: HashMap<String, Vec<Arc<Grant>>>,
    groups: HashMap<String, Vec<Arc<Grant>>>,
    /// Rules by role: (namespace, empty for cluster roles; name).
    roles: HashMap<(String, String), Arc<Vec<Rule>>>,
}

/// Answers what callers may do.
pub(crate) struct Authorizer {
    kinds: Option<[Arc<Kind>; 4]>,
    compiled: ArcSwapOption<Compiled>,
}

impl std::fmt::Debug for Authorizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authorizer")
    }
}

impl Authorizer {
    /// Over the four RBAC kinds of a cache.
    pub(crate) fn new(cache: &Cache) -> Self {
        let kind = |plural| cache.named(GROUP, plural);
        let kinds = (|| {
            Some([
                kind("clusterroles")?,
                kind("roles")?,
                kind("clusterrolebindings")?,
                kind("rolebindings")?,
            ])
        })();
        Self {
            kinds,
            compiled: ArcSwapOption::empty(),
        }
    }

    /// Whether a caller may.
    pub(crate) fn allowed(&self, user: &User, a: &Attributes<'_>) -> bool {
        if user.in_group("system:masters") {
            return true;
        }
        let compiled = self.compiled();
        compiled
            .grants(user)
            .filter(|g| {
                g.namespace.is_empty() || (a.resource_request && g.namespace == a.namespace)
            })
            .any(|g| g.rules.iter().any(|r| r.allows(a)))
    }

    /// Every rule that a caller has in a namespace.
    pub(crate) fn rules(&self, user: &User, namespace: &str) -> Vec<Rule> {
        if user.in_group("system:masters") {
            let all = || vec!["*".to_owned()];
            return vec![
                Rule {
                    verbs: all(),
                    api_groups: all(),
                    resources: all(),
                    ..Rule::default()
                },
                Rule {
                    verbs: all(),
                    non_resource_urls: all(),
                    ..Rule::default()
                },
            ];
        }
        self.compiled()
            .grants(user)
            .filter(|g| g.namespace.is_empty() || g.namespace == namespace)
            .flat_map(|g| g.rules.iter().cloned())
            .collect()
    }

    /// The rules of a role (cluster role if the namespace is empty).
    pub(crate) fn role(&self, namespace: &str, name: &str) -> Option<Arc<Vec<Rule>>> {
        self.compiled()
            .roles
            .get(&(namespace.to_owned(), name.to_owned()))
            .cloned()
    }

    fn compiled(&self) -> Arc<Compiled> {
        let Some(kinds) = &self.kinds else {
            return Arc::default();
        };
        let revisions = kinds.each_ref().map(|k| k.revision());
        if let Some(c) = &*self.compiled.load()
            && c.revisions == revisions
        {
            return c.clone();
        }
        let fresh = Arc::new(compile(kinds, revisions));
        self.compiled.store(Some(fresh.clone()));
        fresh
    }
}

impl Compiled {
    fn grants<'a>(&'a self, user: &'a User) -> impl Iterator<Item = &'a Arc<Grant>> {
        let by_group = user
            .groups
            .iter()
            .filter_map(|g| self.groups.get(g))
            .flatten();
        self.users
            .get(&user.name)
            .into_iter()
            .flatten()
            .chain(by_group)
    }
}

fn compile(
    [cluster_roles, roles, cluster_bindings, bindings]: &[Arc<Kind>; 4],
    revisions: [u64; 4],
) -> Compiled {
    let mut out = Compiled {
        revisions,
        ..Compiled::default()
    };
    let plain: Vec<(Arc<Object>, Value)> = cluster_roles
        .all()
        .into_iter()
        .map(|o| {
            let v = o.value();
            (o, v)
        })
        .collect();
    for (object, role) in &plain {
        let mut rules = own_rules(role);
        // Aggregation is resolved here, so that it never lags behind.
        if let Some(selectors) = role["aggregationRule"]["clusterRoleSelectors"].as_array() {
            for selector in selectors
                .iter()
                .filter_map(|s| LabelSelector::from_object(s).ok())
            {
                for (other, value) in &plain {
                    if other.name() != object.name() && selector.matches(|k| other.label(k)) {
                        rules.extend(rules_of_aggregated(value, &plain, 0));
                    }
                }
            }
        }
        out.roles
            .insert((String::new(), object.name().to_owned()), Arc::new(rules));
    }
    for o in roles.all() {
        let rules = Arc::new(rules_of(&o.value()));
        out.roles
            .insert((o.namespace().to_owned(), o.name().to_owned()), rules);
    }
    for object in cluster_bindings.all().into_iter().chain(bindings.all()) {
        bind(&mut out, object.namespace(), &object.value());
    }
    out
}

/// Rules that a role does not have from others: of an aggregated one those that it shows are
/// copies, perhaps old ones.
fn own_rules(role: &Value) -> Vec<Rule> {
    if role["aggregationRule"].is_object() {
        Vec::new()
    } else {
        rules_of(role)
    }
}

/// Rules of a role that is aggregated, which may aggregate others (view → edit → admin).
fn rules_of_aggregated(role: &Value, all: &[(Arc<Object>, Value)], depth: usize) -> Vec<Rule> {
    const DEPTH_MAX: usize = 4;
    let mut rules = own_rules(role);
    if depth < DEPTH_MAX
        && let Some(selectors) = role["aggregationRule"]["clusterRoleSelectors"].as_array()
    {
        for selector in selectors
            .iter()
            .filter_map(|s| LabelSelector::from_object(s).ok())
        {
            for (other, value) in all {
                if Some(other.name()) != role["metadata"]["name"].as_str()
                    && selector.matches(|k| other.label(k))
                {
                    rules.extend(rules_of_aggregated(value, all, depth + 1));
                }
            }
        }
    }
    rules
}

fn bind(out: &mut Compiled, namespace: &str, binding: &Value) {
    let reference = &binding["roleRef"];
    let name = reference["name"].as_str().unwrap_or_default().to_owned();
    let home = if reference["kind"] == "Role" {
        namespace
    } else {
        ""
    };
    let Some(rules) = out.roles.get(&(home.to_owned(), name)).cloned() else {
        return;
    };
    let grant = Arc::new(Grant {
        namespace: namespace.to_owned(),
        rules,
    });
    for subject in binding["subjects"].as_array().into_iter().flatten() {
        let name = subject["name"].as_str().unwrap_or_default();
        match subject["kind"].as_str().unwrap_or_default() {
            "User" => out
                .users
                .entry(name.to_owned())
                .or_default()
                .push(grant.clone()),
            "Group" => out
                .groups
                .entry(name.to_owned())
                .or_default()
                .push(grant.clone()),
            "ServiceAccount" => {
                let ns = subject["namespace"].as_str().unwrap_or(namespace);
                let user = format!("system:serviceaccount:{ns}:{name}");
                out.users.entry(user).or_default().push(grant.clone());
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(verbs: &str, groups: &str, resources: &str, names: &str) -> Rule {
        let split = |s: &str| {
            s.split(',')
                .filter(|x| !x.is_empty())
                .map(|x| {
                    if x == "core" {
                        String::new()
                    } else {
                        x.to_owned()
                    }
                })
                .collect()
        };
        Rule {
            verbs: split(verbs),
            api_groups: split(groups),
            resources: split(resources),
            resource_names: split(names),
            non_resource_urls: Vec::new(),
        }
    }

    #[test]
    fn rules_allow_what_they_name() {
        let ask = |verb, group, resource, subresource, name| Attributes {
            verb,
            group,
            resource,
            subresource,
            name,
            resource_request: true,
            ..Attributes::default()
        };
        let r = rule("get,list", "core", "pods,*/scale", "");
        assert!(r.allows(&ask("get", "", "pods", "", "x")));
        assert!(!r.allows(&ask("get", "", "pods", "log", "x")));
        assert!(r.allows(&ask("get", "", "deployments", "scale", "x")));
        assert!(!r.allows(&ask("delete", "", "pods", "", "x")));
        assert!(!r.allows(&ask("get", "apps", "pods", "", "x")));
        let named = rule("*", "*", "*", "a");
        assert!(named.allows(&ask("get", "x", "y", "z", "a")));
        assert!(!named.allows(&ask("list", "x", "y", "", "")));
    }

    #[test]
    fn nobody_grants_more_than_he_has() {
        let own = [
            rule("get,list", "core", "pods,pods/log", ""),
            rule("update", "apps", "*", "a"),
        ];
        for (asked, ok) in [
            (rule("get", "core", "pods", ""), true),
            (rule("get,list", "core", "pods,pods/log", "x"), true),
            (rule("get,delete", "core", "pods", ""), false),
            (rule("*", "core", "pods", ""), false),
            (rule("update", "apps", "deployments", "a"), true),
            (rule("update", "apps", "deployments", ""), false),
            (rule("update", "apps", "deployments", "a,b"), false),
        ] {
            assert_eq!(asked.covered_by(&own), ok, "{asked:?}");
        }
    }
}
