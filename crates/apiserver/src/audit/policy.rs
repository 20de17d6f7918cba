//! The audit policy file: which requests are recorded, and how much of each. The reference is
//! `k8s.io/apiserver/pkg/audit/policy` and the documentation "Auditing".

use crate::authn::User;
use crate::http::request::RequestInfo;
use serde_json::Value;

/// How much is recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    #[default]
    None,
    Metadata,
    Request,
    RequestResponse,
}

impl Level {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "None" => Self::None,
            "Metadata" => Self::Metadata,
            "Request" => Self::Request,
            "RequestResponse" => Self::RequestResponse,
            _ => return None,
        })
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Metadata => "Metadata",
            Self::Request => "Request",
            Self::RequestResponse => "RequestResponse",
        }
    }
}

/// When a record is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    RequestReceived,
    ResponseStarted,
    ResponseComplete,
    Panic,
}

impl Stage {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::RequestReceived => "RequestReceived",
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
            Self::Panic => "Panic",
        }
    }
}

/// What a request is recorded as.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Decision {
    pub(super) level: Level,
    pub(super) omitted: Vec<String>,
    pub(super) omit_managed_fields: bool,
}

impl Decision {
    pub(super) fn wants(&self, stage: Stage) -> bool {
        self.level > Level::None && self.omitted.iter().all(|s| s != stage.name())
    }
}

/// A policy.
#[derive(Debug)]
pub(super) struct Policy {
    rules: Vec<Rule>,
}

#[derive(Debug, Default)]
struct Rule {
    decision: Decision,
    users: Vec<String>,
    groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<Resources>,
    namespaces: Vec<String>,
    urls: Vec<String>,
}

#[derive(Debug)]
struct Resources {
    group: String,
    resources: Vec<String>,
    names: Vec<String>,
}

fn texts(v: &Value) -> Vec<String> {
    let all = v.as_array().into_iter().flatten();
    all.filter_map(|t| t.as_str().map(str::to_owned)).collect()
}

impl Policy {
    /// Reads a file's text.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let v: Value = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
        if v["apiVersion"] != "audit.k8s.io/v1" || v["kind"] != "Policy" {
            return Err("want kind Policy of audit.k8s.io/v1".to_owned());
        }
        let known = [
            "apiVersion",
            "kind",
            "metadata",
            "rules",
            "omitStages",
            "omitManagedFields",
        ];
        unknown("", &v, &known)?;
        let everywhere = stages("omitStages", &v["omitStages"])?;
        let managed = v["omitManagedFields"].as_bool().unwrap_or(false);
        let rules = v["rules"].as_array().map_or(&[][..], Vec::as_slice);
        if rules.is_empty() {
            return Err("loaded illegal policy with 0 rules".to_owned());
        }
        let rules = rules
            .iter()
            .enumerate()
            .map(|(i, r)| rule(&format!("rules[{i}]"), r, &everywhere, managed))
            .collect::<Result<_, _>>()?;
        Ok(Self { rules })
    }

    /// The first rule that a request fits decides; one that fits none is not recorded.
    pub(super) fn decide(&self, info: &RequestInfo, user: &User) -> Decision {
        let found = self.rules.iter().find(|r| r.fits(info, user));
        found.map(|r| r.decision.clone()).unwrap_or_default()
    }
}

fn unknown(path: &str, v: &Value, known: &[&str]) -> Result<(), String> {
    let mut keys = v.as_object().into_iter().flat_map(|m| m.keys());
    match keys.find(|k| !known.contains(&k.as_str())) {
        Some(key) => Err(format!("unknown field \"{path}{key}\"")),
        None => Ok(()),
    }
}

fn stages(path: &str, v: &Value) -> Result<Vec<String>, String> {
    const ALL: [Stage; 4] = [
        Stage::Panic,
        Stage::RequestReceived,
        Stage::ResponseComplete,
        Stage::ResponseStarted,
    ];
    let named = texts(v);
    match named.iter().find(|n| ALL.iter().all(|s| s.name() != **n)) {
        Some(bad) => Err(format!("{path}: Invalid value: {bad:?}: no such stage")),
        None => Ok(named),
    }
}

fn rule(path: &str, v: &Value, everywhere: &[String], managed: bool) -> Result<Rule, String> {
    let known = [
        "level",
        "users",
        "userGroups",
        "verbs",
        "resources",
        "namespaces",
        "nonResourceURLs",
        "omitStages",
        "omitManagedFields",
    ];
    unknown(&format!("{path}."), v, &known)?;
    let level = v["level"].as_str().unwrap_or_default();
    let level = Level::parse(level).ok_or_else(|| {
        format!("{path}.level: Unsupported value: {level:?}: supported values: \"Metadata\", \"None\", \"Request\", \"RequestResponse\"")
    })?;
    let mut omitted = stages(&format!("{path}.omitStages"), &v["omitStages"])?;
    omitted.extend_from_slice(everywhere);
    let resources = v["resources"].as_array().into_iter().flatten();
    let resources = resources.map(|r| Resources {
        group: r["group"].as_str().unwrap_or_default().to_owned(),
        resources: texts(&r["resources"]),
        names: texts(&r["resourceNames"]),
    });
    let rule = Rule {
        decision: Decision {
            level,
            omitted,
            omit_managed_fields: v["omitManagedFields"].as_bool().unwrap_or(managed),
        },
        users: texts(&v["users"]),
        groups: texts(&v["userGroups"]),
        verbs: texts(&v["verbs"]),
        resources: resources.collect(),
        namespaces: texts(&v["namespaces"]),
        urls: texts(&v["nonResourceURLs"]),
    };
    let of_resources = !rule.resources.is_empty() || !rule.namespaces.is_empty();
    if !rule.urls.is_empty() && of_resources {
        return Err(format!(
            "{path}.nonResourceURLs: Invalid value: rules cannot apply to both regular resources and non-resource URLs"
        ));
    }
    for url in &rule.urls {
        let plain = url.trim_end_matches('*');
        if url != "*"
            && (!url.starts_with('/') || plain.contains('*') || url.len() > plain.len() + 1)
        {
            return Err(format!(
                "{path}.nonResourceURLs: Invalid value: {url:?}: must start with / and may end in one *"
            ));
        }
    }
    for r in &rule.resources {
        if !r.names.is_empty() && r.resources.is_empty() {
            return Err(format!(
                "{path}.resources.resourceNames: Invalid value: using resourceNames requires at least one resource"
            ));
        }
    }
    Ok(rule)
}

impl Rule {
    fn fits(&self, info: &RequestInfo, user: &User) -> bool {
        let one_of =
            |list: &[String], text: &str| list.is_empty() || list.iter().any(|t| t == text);
        if !one_of(&self.users, &user.name) || !one_of(&self.verbs, info.verb) {
            return false;
        }
        if !self.groups.is_empty() && !self.groups.iter().any(|g| user.in_group(g)) {
            return false;
        }
        if !self.resources.is_empty() || !self.namespaces.is_empty() {
            return info.is_resource
                && one_of(&self.namespaces, &info.namespace)
                && (self.resources.is_empty() || self.resources.iter().any(|r| r.fits(info)));
        }
        if !self.urls.is_empty() {
            let fits = |url: &String| match url.strip_suffix('*') {
                Some(start) => info.path.starts_with(start),
                None => *url == info.path,
            };
            return !info.is_resource && self.urls.iter().any(fits);
        }
        true
    }
}

impl Resources {
    fn fits(&self, info: &RequestInfo) -> bool {
        if self.group != info.group {
            return false;
        }
        if !self.names.is_empty() && !self.names.contains(&info.name) {
            return false;
        }
        let sub = info.subresource.as_str();
        let fits = |wanted: &String| match wanted.split_once('/') {
            _ if wanted == "*" => true,
            Some(("*", s)) => s == sub,
            Some((r, "*")) => r == info.resource,
            Some((r, s)) => r == info.resource && s == sub,
            None => *wanted == info.resource && sub.is_empty(),
        };
        self.resources.is_empty() || self.resources.iter().any(fits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::request::Query;
    use http::Method;

    const POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  users: ["system:kube-proxy"]
  verbs: ["watch"]
  resources: [{group: "", resources: ["endpoints", "services"]}]
- level: None
  userGroups: ["system:nodes"]
- level: None
  nonResourceURLs: ["/healthz*", "/version"]
- level: Request
  namespaces: ["kube-system"]
  resources: [{group: "", resources: ["configmaps"], resourceNames: ["special"]}]
- level: Metadata
  omitManagedFields: true
  resources: [{group: "", resources: ["secrets", "pods/*"]}, {group: "batch"}]
- level: RequestResponse
  omitStages: [ResponseStarted]
  resources: [{group: "apps", resources: ["*"]}]
"#;

    #[test]
    fn the_first_rule_that_fits_decides() {
        let policy = Policy::parse(POLICY).unwrap();
        let level = |user: &str, groups: &[&str], method: Method, path: &str, query: &str| {
            let info = RequestInfo::parse(&method, path, &Query::parse(query));
            policy.decide(&info, &User::new(user, groups)).level.name()
        };
        let get = Method::GET;
        let deployments = "/apis/apps/v1/namespaces/a/deployments";
        for (user, groups, path, query, want) in [
            (
                "system:kube-proxy",
                &[][..],
                "/api/v1/services",
                "watch=1",
                "None",
            ),
            ("x", &["system:nodes"], "/api/v1/secrets", "", "None"),
            ("x", &[], "/healthz/ping", "", "None"),
            ("x", &[], "/metrics", "", "None"),
            (
                "x",
                &[],
                "/api/v1/namespaces/kube-system/configmaps/special",
                "",
                "Request",
            ),
            (
                "x",
                &[],
                "/api/v1/namespaces/kube-system/configmaps/other",
                "",
                "None",
            ),
            ("x", &[], "/api/v1/namespaces/a/secrets/s", "", "Metadata"),
            ("x", &[], "/api/v1/namespaces/a/pods/p/log", "", "Metadata"),
            ("x", &[], "/apis/batch/v1/jobs", "", "Metadata"),
            ("x", &[], deployments, "", "RequestResponse"),
        ] {
            assert_eq!(
                level(user, groups, get.clone(), path, query),
                want,
                "{path}"
            );
        }
        let info = RequestInfo::parse(&get, deployments, &Query::parse(""));
        let decision = policy.decide(&info, &User::anonymous());
        assert!(!decision.wants(Stage::RequestReceived) && !decision.wants(Stage::ResponseStarted));
        assert!(decision.wants(Stage::ResponseComplete) && !decision.omit_managed_fields);
    }

    #[test]
    fn what_is_no_policy_is_told() {
        for (text, want) in [
            ("kind: Policy", "want kind Policy"),
            ("apiVersion: audit.k8s.io/v1\nkind: Policy", "0 rules"),
            (
                "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Much}]",
                "rules[0].level: Unsupported value: \"Much\"",
            ),
            (
                "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: None, omitStages: [Late]}]",
                "rules[0].omitStages",
            ),
            (
                "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{levle: None}]",
                "unknown field \"rules[0].levle\"",
            ),
            (
                "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: None, namespaces: [a], nonResourceURLs: ['/']}]",
                "both",
            ),
        ] {
            let error = Policy::parse(text).unwrap_err();
            assert!(error.contains(want), "{error}");
        }
    }
}
