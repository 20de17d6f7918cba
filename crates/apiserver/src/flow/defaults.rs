//! The priority levels and flow schemas that every cluster has, as upstream's
//! `pkg/apis/flowcontrol/bootstrap` states them.

use serde_json::{Value, json};

const VERSION: &str = "flowcontrol.apiserver.k8s.io/v1";

/// Name, shares, lendable percent, queues and hand size (none: what is too much is refused).
type Level = (&'static str, u32, u32, Option<(u32, u32)>);

const LEVELS: &[Level] = &[
    ("catch-all", 5, 0, None),
    ("global-default", 20, 50, Some((128, 6))),
    ("leader-election", 10, 0, Some((16, 4))),
    ("node-high", 40, 25, Some((64, 6))),
    ("system", 30, 33, Some((64, 6))),
    ("workload-high", 40, 50, Some((128, 6))),
    ("workload-low", 100, 90, Some((128, 6))),
];

/// Requests that wait in one queue.
const QUEUE_LENGTH: u32 = 50;

/// All of them, levels first.
pub(crate) fn objects() -> Vec<Value> {
    let mut all = vec![level(
        "exempt",
        json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}}),
    )];
    all.extend(LEVELS.iter().map(|(name, shares, lendable, queues)| {
        let response = match queues {
            None => json!({"type": "Reject"}),
            Some((queues, hand)) => json!({"type": "Queue", "queuing": {
                "queues": queues, "handSize": hand, "queueLengthLimit": QUEUE_LENGTH}}),
        };
        let limited = json!({"nominalConcurrencyShares": shares, "lendablePercent": lendable,
            "limitResponse": response});
        level(name, json!({"type": "Limited", "limited": limited}))
    }));
    all.extend(schemas());
    all
}

fn meta(name: &str) -> Value {
    json!({"name": name, "annotations": {"apf.kubernetes.io/autoupdate-spec": "true"}})
}

fn level(name: &str, spec: Value) -> Value {
    json!({"kind": "PriorityLevelConfiguration", "apiVersion": VERSION,
        "metadata": meta(name), "spec": spec})
}

fn user(name: &str) -> Value {
    json!({"kind": "User", "user": {"name": name}})
}

fn group(name: &str) -> Value {
    json!({"kind": "Group", "group": {"name": name}})
}

fn account(name: &str) -> Value {
    json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": "kube-system", "name": name}})
}

/// Everything there is.
fn everything(subjects: Vec<Value>) -> Value {
    json!([{
        "subjects": subjects,
        "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"],
            "namespaces": ["*"], "clusterScope": true}],
        "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
    }])
}

fn resources(verbs: &[&str], of_group: &str, resources: &[&str], namespaces: &[&str]) -> Value {
    json!({"verbs": verbs, "apiGroups": [of_group], "resources": resources, "namespaces": namespaces})
}

fn schemas() -> Vec<Value> {
    const LOCK: &[&str] = &["get", "create", "update"];
    let (manager, scheduler) = (
        || user("system:kube-controller-manager"),
        || user("system:kube-scheduler"),
    );
    let everybody = || {
        vec![
            group("system:unauthenticated"),
            group("system:authenticated"),
        ]
    };
    let leases = |namespaces| resources(LOCK, "coordination.k8s.io", &["leases"], namespaces);
    let schema = |name: &str, level: &str, precedence: u32, by: &str, rules: Value| {
        let mut spec = json!({"priorityLevelConfiguration": {"name": level},
            "matchingPrecedence": precedence, "rules": rules});
        if !by.is_empty() {
            spec["distinguisherMethod"] = json!({"type": by});
        }
        json!({"kind": "FlowSchema", "apiVersion": VERSION, "metadata": meta(name), "spec": spec})
    };
    let nodes = json!({"verbs": ["*"], "apiGroups": [""], "resources": ["nodes", "nodes/status"],
        "namespaces": ["*"], "clusterScope": true});
    vec![
        schema(
            "exempt",
            "exempt",
            1,
            "",
            everything(vec![group("system:masters")]),
        ),
        schema(
            "probes",
            "exempt",
            2,
            "",
            json!([{"subjects": everybody(), "nonResourceRules": [
                {"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]}]}]),
        ),
        schema(
            "system-leader-election",
            "leader-election",
            100,
            "ByUser",
            json!([{"subjects": [manager(), scheduler(), account("*")],
                "resourceRules": [leases(&["kube-system"])]}]),
        ),
        schema(
            "endpoint-controller",
            "workload-high",
            150,
            "ByUser",
            json!([{"subjects": [manager(), account("endpoint-controller"), account("endpointslicemirroring-controller")],
                "resourceRules": [resources(LOCK, "", &["endpoints"], &["*"])]}]),
        ),
        schema(
            "workload-leader-election",
            "leader-election",
            200,
            "ByUser",
            json!([{"subjects": [account("*")], "resourceRules": [leases(&["*"])]}]),
        ),
        schema(
            "system-node-high",
            "node-high",
            400,
            "ByUser",
            json!([{"subjects": [group("system:nodes")],
                "resourceRules": [nodes, resources(&["*"], "coordination.k8s.io", &["leases"], &["*"])]}]),
        ),
        schema(
            "system-nodes",
            "system",
            500,
            "ByUser",
            everything(vec![group("system:nodes")]),
        ),
        schema(
            "kube-controller-manager",
            "workload-high",
            800,
            "ByNamespace",
            everything(vec![manager()]),
        ),
        schema(
            "kube-scheduler",
            "workload-high",
            800,
            "ByNamespace",
            everything(vec![scheduler()]),
        ),
        schema(
            "kube-system-service-accounts",
            "workload-high",
            900,
            "ByNamespace",
            everything(vec![account("*")]),
        ),
        schema(
            "service-accounts",
            "workload-low",
            9000,
            "ByUser",
            everything(vec![group("system:serviceaccounts")]),
        ),
        schema(
            "global-default",
            "global-default",
            9900,
            "ByUser",
            everything(everybody()),
        ),
        schema(
            "catch-all",
            "catch-all",
            10_000,
            "ByUser",
            everything(everybody()),
        ),
    ]
}
