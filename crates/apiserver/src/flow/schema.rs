//! Flow schemas and priority levels, parsed; which schema a request is of.

use crate::authn::User;
use crate::cache::Object;
use crate::http::request::RequestInfo;
use http::HeaderValue;
use serde_json::Value;
use std::sync::Arc;

/// A flow schema.
#[derive(Debug)]
pub(super) struct Schema {
    pub(super) name: Arc<str>,
    pub(super) uid: Option<HeaderValue>,
    pub(super) level: Arc<str>,
    pub(super) precedence: i64,
    by: By,
    rules: Vec<Rule>,
}

/// What tells flows of a schema apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Nothing,
    User,
    Namespace,
}

#[derive(Debug)]
struct Rule {
    subjects: Vec<Subject>,
    resources: Vec<Resources>,
    urls: Vec<(Vec<String>, Vec<String>)>,
}

#[derive(Debug)]
enum Subject {
    User(String),
    Group(String),
    Account(String, String),
}

#[derive(Debug)]
struct Resources {
    verbs: Vec<String>,
    groups: Vec<String>,
    resources: Vec<String>,
    namespaces: Vec<String>,
    cluster_scope: bool,
}

fn list(v: &Value) -> impl Iterator<Item = &Value> {
    v.as_array().into_iter().flatten()
}

fn texts(v: &Value) -> Vec<String> {
    list(v)
        .filter_map(|t| t.as_str().map(str::to_owned))
        .collect()
}

fn has(all: &[String], one: &str) -> bool {
    all.iter().any(|a| a == "*" || a == one)
}

impl Schema {
    pub(super) fn parse(object: &Object) -> Self {
        let v = object.value();
        let spec = &v["spec"];
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let rules = list(&spec["rules"]).map(|r| Rule {
            subjects: list(&r["subjects"])
                .filter_map(|s| {
                    Some(match s["kind"].as_str()? {
                        "User" => Subject::User(text(&s["user"]["name"])),
                        "Group" => Subject::Group(text(&s["group"]["name"])),
                        "ServiceAccount" => {
                            let s = &s["serviceAccount"];
                            Subject::Account(text(&s["namespace"]), text(&s["name"]))
                        }
                        _ => return None,
                    })
                })
                .collect(),
            resources: list(&r["resourceRules"])
                .map(|r| Resources {
                    verbs: texts(&r["verbs"]),
                    groups: texts(&r["apiGroups"]),
                    resources: texts(&r["resources"]),
                    namespaces: texts(&r["namespaces"]),
                    cluster_scope: r["clusterScope"] == true,
                })
                .collect(),
            urls: list(&r["nonResourceRules"])
                .map(|r| (texts(&r["verbs"]), texts(&r["nonResourceURLs"])))
                .collect(),
        });
        Self {
            name: object.name().into(),
            uid: uid(&v),
            level: text(&spec["priorityLevelConfiguration"]["name"]).into(),
            precedence: spec["matchingPrecedence"].as_i64().unwrap_or(1000),
            by: match spec["distinguisherMethod"]["type"].as_str() {
                Some("ByUser") => By::User,
                Some("ByNamespace") => By::Namespace,
                _ => By::Nothing,
            },
            rules: rules.collect(),
        }
    }

    pub(super) fn fits(&self, info: &RequestInfo, user: &User) -> bool {
        self.rules.iter().any(|r| {
            r.subjects.iter().any(|s| s.is(user))
                && if info.is_resource {
                    r.resources.iter().any(|r| r.fits(info))
                } else {
                    let fits = |url: &String| match url.strip_suffix('*') {
                        Some(start) => info.path.starts_with(start),
                        None => *url == info.path,
                    };
                    r.urls
                        .iter()
                        .any(|(verbs, urls)| has(verbs, info.verb) && urls.iter().any(fits))
                }
        })
    }

    /// What tells a request's flow apart within the schema.
    pub(super) fn flow<'r>(&self, info: &'r RequestInfo, user: &'r User) -> &'r str {
        match self.by {
            By::Nothing => "",
            By::User => &user.name,
            By::Namespace => &info.namespace,
        }
    }
}

/// A uid as a header has it.
pub(super) fn uid(v: &Value) -> Option<HeaderValue> {
    HeaderValue::from_str(v["metadata"]["uid"].as_str()?).ok()
}

impl Subject {
    fn is(&self, user: &User) -> bool {
        match self {
            Self::User(name) => name == "*" || *name == user.name,
            Self::Group(name) => name == "*" || user.in_group(name),
            Self::Account(namespace, name) => user
                .name
                .strip_prefix("system:serviceaccount:")
                .and_then(|rest| rest.split_once(':'))
                .is_some_and(|(ns, n)| ns == namespace && (name == "*" || name == n)),
        }
    }
}

impl Resources {
    fn fits(&self, info: &RequestInfo) -> bool {
        let full;
        let resource = if info.subresource.is_empty() {
            info.resource.as_str()
        } else {
            full = format!("{}/{}", info.resource, info.subresource);
            &full
        };
        has(&self.verbs, info.verb)
            && has(&self.groups, &info.group)
            && has(&self.resources, resource)
            && if info.namespace.is_empty() {
                self.cluster_scope
            } else {
                has(&self.namespaces, &info.namespace)
            }
    }
}
