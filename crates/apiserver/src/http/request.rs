//! What a request asks for: verb, group, version, resource, namespace, name, and its query.
//! Follows upstream's RequestInfo, which authorization and audit depend on.

use apimachinery::Status;
use http::Method;

/// A request's target, from method, path and query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RequestInfo {
    /// Whether it is below `/api/V` or `/apis/G/V`.
    pub(crate) is_resource: bool,
    /// Kubernetes verb, or the lower-case method when not a resource.
    pub(crate) verb: &'static str,
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) namespace: String,
    pub(crate) resource: String,
    pub(crate) subresource: String,
    pub(crate) name: String,
    /// Path after a subresource such as `proxy`, with its leading slash.
    pub(crate) tail: String,
    /// The whole path.
    pub(crate) path: String,
}

impl RequestInfo {
    /// Reads method, decoded path and query.
    pub(crate) fn parse(method: &Method, path: &str, query: &Query) -> Self {
        let mut info = Self {
            verb: plain_verb(method),
            path: path.to_owned(),
            ..Self::default()
        };
        let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let prefix = parts.first().copied().unwrap_or_default();
        let fixed = match prefix {
            "api" => 2,
            "apis" => 3,
            _ => return info,
        };
        if parts.len() <= fixed {
            return info;
        }
        info.is_resource = true;
        if prefix == "apis" {
            info.group = parts[1].to_owned();
        }
        info.version = parts[fixed - 1].to_owned();
        parts.drain(..fixed);
        info.verb = match *method {
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "get",
        };
        let mut legacy_watch = false;
        if parts[0] == "watch" && parts.len() > 1 {
            legacy_watch = true;
            parts.remove(0);
        }
        if parts[0] == "namespaces" {
            if parts.len() > 1 {
                info.namespace = parts[1].to_owned();
            }
            if parts.len() > 2 && !matches!(parts[2], "status" | "finalize") {
                parts.drain(..2);
            }
        }
        info.resource = parts[0].to_owned();
        info.name = parts.get(1).copied().unwrap_or_default().to_owned();
        info.subresource = parts.get(2).copied().unwrap_or_default().to_owned();
        if parts.len() > 3 {
            info.tail = format!("/{}", parts[3..].join("/"));
            if path.ends_with('/') {
                info.tail.push('/');
            }
        }
        let watching = legacy_watch || query.flag("watch");
        if info.name.is_empty() {
            match info.verb {
                "get" if watching => info.verb = "watch",
                "get" => info.verb = "list",
                "delete" => info.verb = "deletecollection",
                _ => {}
            }
            // A selector for one name is a request for that object to authorization.
            if matches!(info.verb, "list" | "watch" | "deletecollection")
                && let Some(selector) = query.get("fieldSelector")
                && let Some(name) = selector.strip_prefix("metadata.name=")
                && !name.contains([',', '='])
            {
                info.name = name.to_owned();
            }
        } else if legacy_watch && info.verb == "get" {
            info.verb = "watch";
        }
        info
    }
}

fn plain_verb(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::HEAD => "head",
        Method::OPTIONS => "options",
        _ => "other",
    }
}

/// Decoded query parameters in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Decodes `a=b&c=d`.
    pub(crate) fn parse(raw: &str) -> Self {
        Self {
            pairs: url::form_urlencoded::parse(raw.as_bytes())
                .map(|(k, v)| (k.into_owned(), v.into_owned()))
                .collect(),
        }
    }

    /// The first value that is not empty.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.pairs
            .iter()
            .find(|(k, v)| k == key && !v.is_empty())
            .map(|(_, v)| v.as_str())
    }

    /// Every value of a key.
    pub(crate) fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs
            .iter()
            .filter(move |(k, _)| k == key)
            .map(|(_, v)| v.as_str())
    }

    /// The parameters in query form.
    pub(crate) fn encode(&self) -> String {
        url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(&self.pairs)
            .finish()
    }

    /// A boolean as upstream reads it: there and not `0` or `false`.
    pub(crate) fn flag(&self, key: &str) -> bool {
        self.pairs
            .iter()
            .find(|(k, _)| k == key)
            .is_some_and(|(_, v)| v != "0" && !v.eq_ignore_ascii_case("false"))
    }

    /// A number.
    pub(crate) fn number<T: std::str::FromStr>(&self, key: &str) -> Result<Option<T>, Status> {
        self.get(key)
            .map(|v| {
                v.parse().map_err(|_| {
                    Status::bad_request(format!("invalid value {v:?} for parameter {key:?}"))
                })
            })
            .transpose()
    }

    /// `dryRun=All`; anything else is refused.
    pub(crate) fn dry_run(&self) -> Result<bool, Status> {
        let mut dry = false;
        for value in self.all("dryRun") {
            match value {
                "All" => dry = true,
                "" => {}
                other => {
                    return Err(Status::new(
                        422,
                        "Invalid",
                        format!("dryRun: Unsupported value: {other:?}: supported values: \"All\""),
                    ));
                }
            }
        }
        Ok(dry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(method: Method, path: &str, query: &str) -> String {
        let i = RequestInfo::parse(&method, path, &Query::parse(query));
        format!(
            "{} {} {} {} ns={} res={} name={} sub={} tail={}",
            i.is_resource,
            i.verb,
            i.group,
            i.version,
            i.namespace,
            i.resource,
            i.name,
            i.subresource,
            i.tail
        )
    }

    #[test]
    fn paths_as_upstream_reads_them() {
        let table = [
            (
                Method::GET,
                "/api/v1/pods",
                "",
                "true list  v1 ns= res=pods name= sub= tail=",
            ),
            (
                Method::GET,
                "/api/v1/pods",
                "watch=1",
                "true watch  v1 ns= res=pods name= sub= tail=",
            ),
            (
                Method::GET,
                "/api/v1/namespaces",
                "",
                "true list  v1 ns= res=namespaces name= sub= tail=",
            ),
            (
                Method::GET,
                "/api/v1/namespaces/a",
                "",
                "true get  v1 ns=a res=namespaces name=a sub= tail=",
            ),
            (
                Method::PUT,
                "/api/v1/namespaces/a/finalize",
                "",
                "true update  v1 ns=a res=namespaces name=a sub=finalize tail=",
            ),
            (
                Method::DELETE,
                "/apis/apps/v1/namespaces/a/deployments",
                "",
                "true deletecollection apps v1 ns=a res=deployments name= sub= tail=",
            ),
            (
                Method::PATCH,
                "/apis/apps/v1/namespaces/a/deployments/d/scale",
                "",
                "true patch apps v1 ns=a res=deployments name=d sub=scale tail=",
            ),
            (
                Method::GET,
                "/api/v1/nodes/n/proxy/a/b",
                "",
                "true get  v1 ns= res=nodes name=n sub=proxy tail=/a/b",
            ),
            (
                Method::GET,
                "/api/v1/namespaces/a/pods",
                "fieldSelector=metadata.name%3Dx&watch=true",
                "true watch  v1 ns=a res=pods name=x sub= tail=",
            ),
            (
                Method::GET,
                "/api/v1/watch/namespaces/a/pods",
                "",
                "true watch  v1 ns=a res=pods name= sub= tail=",
            ),
            (
                Method::GET,
                "/api/v1",
                "",
                "false get   ns= res= name= sub= tail=",
            ),
            (
                Method::GET,
                "/healthz",
                "",
                "false get   ns= res= name= sub= tail=",
            ),
        ];
        for (method, path, query, want) in table {
            assert_eq!(info(method, path, query), want, "{path}?{query}");
        }
    }

    #[test]
    fn flags_and_dry_run() {
        let q = Query::parse("watch&a=false&b=0&c=true&dryRun=All");
        assert!(q.flag("watch") && q.flag("c"));
        assert!(!q.flag("a") && !q.flag("b") && !q.flag("d"));
        assert_eq!(q.dry_run(), Ok(true));
        assert!(Query::parse("dryRun=Some").dry_run().is_err());
    }
}
