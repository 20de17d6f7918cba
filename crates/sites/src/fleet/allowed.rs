//! What other sites may ask, and how much of it this site's owner lets them know.

use std::collections::BTreeSet;
use std::fmt;

/// What is answered to other sites.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Answered {
    /// Pods of all namespaces, and nodes.
    #[default]
    All,
    /// Pods of these namespaces, and nodes.
    Namespaces(BTreeSet<String>),
    /// Nothing.
    Nothing,
}

/// A question that may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked<'a> {
    /// The fleet's own list of processes; its query.
    Processes(&'a str),
    /// A path of the API, about one namespace.
    Namespace(&'a str),
    /// One about all namespaces.
    Everything,
    /// One about nodes, which are in none.
    Nodes,
    /// A program to run in a pod of this namespace.
    Exec(&'a str),
}

/// Where the list of processes is asked for.
pub const PROCESSES: &str = "/salp/v1/processes";

/// Reads a question; none if it may not be asked: only pods and what they use, their logs,
/// nodes, and Deployments, some of which sleep.
pub(crate) fn read(path_and_query: &str) -> Option<Asked<'_>> {
    let (path, query) = path_and_query
        .split_once('?')
        .unwrap_or((path_and_query, ""));
    // An encoded slash or dot would be another path for the API server.
    if path.contains('%') || path.contains("..") || path.contains("//") {
        return None;
    }
    if path == PROCESSES {
        return Some(Asked::Processes(query));
    }
    // A watch has no end; who wants changes asks again.
    let watches = query.split('&').any(|part| {
        let key = part.split('=').next().unwrap_or_default();
        // An encoded letter would be another key for the API server.
        key.contains('%') || key.starts_with("watch")
    });
    let parts: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
    let asked = match parts.as_slice() {
        ["api", "v1", "namespaces", ns, "pods", _, "log"] => return Some(Asked::Namespace(ns)),
        ["api", "v1", "namespaces", ns, "pods", _, "exec"] => return Some(Asked::Exec(ns)),
        ["api", "v1", "nodes", _, "proxy", "stats", "salp"] => return Some(Asked::Everything),
        ["api", "v1", "pods"]
        | ["apis", "apps", "v1", "deployments"]
        | ["apis", "metrics.k8s.io", "v1beta1", "pods"] => Asked::Everything,
        ["api", "v1", "nodes"]
        | ["api", "v1", "nodes", _]
        | ["apis", "metrics.k8s.io", "v1beta1", "nodes"] => Asked::Nodes,
        ["api", "v1", "namespaces", ns, "pods"]
        | ["api", "v1", "namespaces", ns, "pods", _]
        | ["apis", "apps", "v1", "namespaces", ns, "deployments"] => Asked::Namespace(ns),
        _ => return None,
    };
    (!watches).then_some(asked)
}

impl Answered {
    /// Whether a question is answered.
    ///
    /// # Errors
    /// What who asks is told, if it is not.
    pub(crate) fn permits(&self, asked: Asked<'_>) -> Result<(), String> {
        match (self, asked) {
            // That is consented to by itself.
            (_, Asked::Exec(_)) => Err("runs no programs for others".to_owned()),
            (Self::All, _) => Ok(()),
            (Self::Nothing, _) => Err(self.to_string()),
            (Self::Namespaces(_), Asked::Nodes | Asked::Processes(_)) => Ok(()),
            (Self::Namespaces(some), Asked::Namespace(ns)) if some.contains(ns) => Ok(()),
            (Self::Namespaces(_), _) => Err(self.to_string()),
        }
    }
}

impl Answered {
    /// Whether a program may be run in a pod of a namespace, where this says what is run for
    /// other sites.
    ///
    /// # Errors
    /// What who asks is told, if it may not.
    pub(crate) fn permits_exec(&self, namespace: &str) -> Result<(), String> {
        match self {
            Self::All => Ok(()),
            Self::Nothing => {
                Err("runs no programs for other sites; start it with --lattice-exec".to_owned())
            }
            Self::Namespaces(some) if some.contains(namespace) => Ok(()),
            Self::Namespaces(some) => {
                let some: Vec<&str> = some.iter().map(String::as_str).collect();
                let some = some.join(", ");
                Err(format!("runs programs for other sites only in {some}"))
            }
        }
    }
}

impl fmt::Display for Answered {
    /// As who asks is told.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("answers questions"),
            Self::Nothing => f.write_str("does not answer questions"),
            Self::Namespaces(some) => {
                let some: Vec<&str> = some.iter().map(String::as_str).collect();
                let word = if some.len() == 1 {
                    "namespace"
                } else {
                    "namespaces"
                };
                write!(f, "answers only about {word} {}", some.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_nodes_and_logs_may_be_asked_for_and_nothing_else() {
        for (path, want) in [
            ("/api/v1/pods", Asked::Everything),
            ("/api/v1/pods?labelSelector=app%3Dtill", Asked::Everything),
            ("/api/v1/nodes", Asked::Nodes),
            ("/api/v1/namespaces/shop/pods", Asked::Namespace("shop")),
            (
                "/api/v1/namespaces/shop/pods/till-0/log?follow=true",
                Asked::Namespace("shop"),
            ),
            ("/apis/metrics.k8s.io/v1beta1/pods", Asked::Everything),
            ("/api/v1/nodes/till/proxy/stats/salp", Asked::Everything),
            (
                "/apis/apps/v1/namespaces/shop/deployments",
                Asked::Namespace("shop"),
            ),
            (
                "/api/v1/namespaces/shop/pods/till-0/exec?command=%2Fbin%2Fls",
                Asked::Exec("shop"),
            ),
            (
                "/salp/v1/processes?namespace=shop",
                Asked::Processes("namespace=shop"),
            ),
        ] {
            assert_eq!(read(path), Some(want), "{path}");
        }
        for path in [
            "/api/v1/secrets",
            "/api/v1/namespaces/shop/secrets",
            "/api/v1/namespaces/shop/pods/till-0/attach",
            "/api/v1/namespaces/shop/pods/till-0/portforward",
            "/api/v1/pods?watch=true",
            "/api/v1/pods?%77atch=true",
            "/api/v1/nodes/till/proxy/exec/shop/till-0/main",
            "/apis/apps/v1/namespaces/shop/deployments/till/scale",
            "/api/v1/namespaces/shop/pods/../secrets",
            "/api/v1/namespaces/shop%2fsecrets/pods",
            "/api/v1//pods",
            "/salp/v1/processes/",
            "api/v1/pods",
            "/",
            "",
        ] {
            assert_eq!(read(path), None, "{path}");
        }
    }

    #[test]
    fn an_owner_limits_what_others_know() {
        let some = Answered::Namespaces(["shop".to_owned()].into());
        for (answered, path, permitted) in [
            (&Answered::All, "/api/v1/pods", true),
            (&Answered::Nothing, "/api/v1/nodes", false),
            (&Answered::Nothing, PROCESSES, false),
            (&some, "/api/v1/pods", false),
            (&some, "/api/v1/namespaces/shop/pods", true),
            (&some, "/api/v1/namespaces/other/pods/x/log", false),
            // It names the pods of all namespaces.
            (&some, "/api/v1/nodes/till/proxy/stats/salp", false),
            (&some, "/api/v1/nodes", true),
            // It is filtered.
            (&some, PROCESSES, true),
        ] {
            let asked = read(path).expect("may be asked");
            assert_eq!(answered.permits(asked).is_ok(), permitted, "{path}");
        }
        assert_eq!(some.to_string(), "answers only about namespace shop");
        // Who may read may not run.
        for answered in [&Answered::All, &some] {
            assert!(answered.permits(Asked::Exec("shop")).is_err());
        }
        assert!(Answered::All.permits_exec("shop").is_ok());
        assert!(some.permits_exec("shop").is_ok());
        assert!(some.permits_exec("other").is_err());
        assert!(Answered::Nothing.permits_exec("shop").is_err());
    }
}
