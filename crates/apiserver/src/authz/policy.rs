//! The default roles and bindings, as upstream's bootstrap policy grants them.
//!
//! Written in a short form: `verbs | groups | resources`, lists separated by commas, the
//! core group as `core`; or `verbs | urls` for paths.

use serde_json::{Value, json};

const READ: &str = "get,list,watch";
const WRITE: &str = "create,delete,deletecollection,patch,update";
const API: &str = "rbac.authorization.k8s.io/v1";

/// Cluster-wide roles and bindings.
pub(crate) fn objects() -> Vec<Value> {
    let mut all = Vec::new();
    for (name, rules) in ROLES {
        all.push(cluster_role(name, &json!({}), rules));
    }
    all.extend(aggregated());
    for (name, rules) in CONTROLLERS {
        let name = format!("system:controller:{name}");
        all.push(cluster_role(&name, &json!({}), rules));
        let account = name.trim_start_matches("system:controller:").to_owned();
        all.push(binding(
            &name,
            &name,
            &json!([{"kind": "ServiceAccount", "name": account, "namespace": "kube-system"}]),
        ));
    }
    for (name, role, kind, subjects) in BINDINGS {
        let subjects: Vec<Value> = subjects
            .iter()
            .map(|s| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": s}))
            .collect();
        all.push(binding(name, role, &json!(subjects)));
    }
    all
}

/// Roles and bindings in system namespaces.
pub(crate) fn namespaced() -> Vec<Value> {
    let meta = |name: &str, namespace: &str| {
        json!({
            "name": name, "namespace": namespace,
            "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
            "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
        })
    };
    let mut cluster_info = rules_of(&["get | core | configmaps"]);
    cluster_info[0]["resourceNames"] = json!(["cluster-info"]);
    let info = "salp:cluster-info";
    let name = "extension-apiserver-authentication-reader";
    let mut rule = rules_of(&["get,list,watch | core | configmaps"]);
    rule[0]["resourceNames"] = json!(["extension-apiserver-authentication"]);
    vec![
        json!({"kind": "Role", "apiVersion": API, "metadata": meta(info, "kube-public"), "rules": cluster_info}),
        json!({
            "kind": "RoleBinding", "apiVersion": API, "metadata": meta(info, "kube-public"),
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": info},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:anonymous"}],
        }),
        json!({"kind": "Role", "apiVersion": API, "metadata": meta(name, "kube-system"), "rules": rule}),
        json!({
            "kind": "RoleBinding", "apiVersion": API,
            "metadata": meta(&format!("system::{name}"), "kube-system"),
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [
                {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:kube-controller-manager"},
                {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:kube-scheduler"},
            ],
        }),
    ]
}

fn cluster_role(name: &str, labels: &Value, rules: &[&str]) -> Value {
    let mut labels = labels.clone();
    labels["kubernetes.io/bootstrapping"] = "rbac-defaults".into();
    json!({
        "kind": "ClusterRole", "apiVersion": API,
        "metadata": {
            "name": name, "labels": labels,
            "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
        },
        "rules": rules_of(rules),
    })
}

fn binding(name: &str, role: &str, subjects: &Value) -> Value {
    json!({
        "kind": "ClusterRoleBinding", "apiVersion": API,
        "metadata": {
            "name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
            "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
        },
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": subjects,
    })
}

fn rules_of(short: &[&str]) -> Value {
    let list = |text: &str| -> Vec<String> {
        text.split(',')
            .map(str::trim)
            .filter(|s| !s.is_empty())
            .map(|s| {
                if s == "core" {
                    String::new()
                } else {
                    s.to_owned()
                }
            })
            .collect()
    };
    short
        .iter()
        .map(|rule| {
            let verbs = |v: &str| match v.trim() {
                "read" => list(READ),
                "write" => list(WRITE),
                "all" => list(&format!("{READ},{WRITE}")),
                other => list(other),
            };
            match rule.split('|').collect::<Vec<_>>().as_slice() {
                [v, groups, resources] => json!({
                    "verbs": verbs(v), "apiGroups": list(groups), "resources": list(resources),
                }),
                [v, urls] => json!({"verbs": verbs(v), "nonResourceURLs": list(urls)}),
                _ => Value::Null,
            }
        })
        .collect()
}

/// admin, edit and view gather whatever is labelled for them.
fn aggregated() -> Vec<Value> {
    let mut all = Vec::new();
    for (name, own_label, rules) in [
        ("system:aggregate-to-admin", "admin", ADMIN),
        ("system:aggregate-to-edit", "edit", EDIT),
        ("system:aggregate-to-view", "view", VIEW),
    ] {
        let label = format!("rbac.authorization.k8s.io/aggregate-to-{own_label}");
        all.push(cluster_role(name, &json!({label: "true"}), rules));
    }
    let everybody: serde_json::Map<String, Value> = ["admin", "edit", "view"]
        .iter()
        .map(|r| format!("rbac.authorization.k8s.io/aggregate-to-{r}"))
        .map(|label| (label, "true".into()))
        .collect();
    all.push(cluster_role(
        "system:aggregated-metrics-reader",
        &everybody.into(),
        METRICS_READER,
    ));
    for (name, gathers_into) in [
        ("admin", None),
        ("edit", Some("admin")),
        ("view", Some("edit")),
    ] {
        let mut labels = json!({});
        if let Some(parent) = gathers_into {
            labels[format!("rbac.authorization.k8s.io/aggregate-to-{parent}")] = "true".into();
        }
        let mut role = cluster_role(name, &labels, &[]);
        let label = format!("rbac.authorization.k8s.io/aggregate-to-{name}");
        role["aggregationRule"] =
            json!({"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]});
        all.push(role);
    }
    all
}

/// Whoever may create this gets a node's certificate without being asked for more.
const NODE_CLIENT: &str = "system:certificates.k8s.io:certificatesigningrequests:nodeclient";
const SELF_NODE_CLIENT: &str =
    "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient";
/// The same for a certificate to serve with, which upstream leaves to people.
const SELF_NODE_SERVER: &str = "salp:certificatesigningrequests:selfnodeserver";

const BINDINGS: &[(&str, &str, &str, &[&str])] = &[
    (
        "cluster-admin",
        "cluster-admin",
        "Group",
        &["system:masters"],
    ),
    (
        "system:basic-user",
        "system:basic-user",
        "Group",
        &["system:authenticated"],
    ),
    (
        "system:discovery",
        "system:discovery",
        "Group",
        &["system:authenticated"],
    ),
    (
        "system:public-info-viewer",
        "system:public-info-viewer",
        "Group",
        &["system:authenticated", "system:unauthenticated"],
    ),
    (
        "system:monitoring",
        "system:monitoring",
        "Group",
        &["system:monitoring"],
    ),
    // Nodes are a group like another: what each may read of its pods' is `authz::node`'s, and
    // NodeRestriction keeps each to its own objects.
    ("system:node", "system:node", "Group", &["system:nodes"]),
    // A node that has joined serves Services with its own certificate.
    (
        "salp:node-proxier",
        "system:node-proxier",
        "Group",
        &["system:nodes"],
    ),
    (
        "salp:node-bootstrapper",
        "system:node-bootstrapper",
        "Group",
        &["system:bootstrappers"],
    ),
    (
        "salp:node-autoapprove-bootstrap",
        NODE_CLIENT,
        "Group",
        &["system:bootstrappers"],
    ),
    (
        "salp:node-autoapprove-rotation",
        SELF_NODE_CLIENT,
        "Group",
        &["system:nodes"],
    ),
    (
        "salp:node-autoapprove-serving",
        SELF_NODE_SERVER,
        "Group",
        &["system:nodes"],
    ),
    (
        "system:node-proxier",
        "system:node-proxier",
        "User",
        &["system:kube-proxy"],
    ),
    (
        "system:kube-scheduler",
        "system:kube-scheduler",
        "User",
        &["system:kube-scheduler"],
    ),
    (
        "system:kube-controller-manager",
        "system:kube-controller-manager",
        "User",
        &["system:kube-controller-manager"],
    ),
    (
        "system:salp-sleep",
        "system:salp-sleep",
        "User",
        &["system:salp-sleep"],
    ),
    (
        "system:salp-sites",
        "system:salp-sites",
        "User",
        &["system:salp-sites"],
    ),
    (
        "system:salp-fleet",
        "system:salp-fleet",
        "User",
        &["system:salp-fleet"],
    ),
    (
        "system:salp-fleet-exec",
        "system:salp-fleet-exec",
        "User",
        &["system:salp-fleet-exec"],
    ),
    (
        "system:service-account-issuer-discovery",
        "system:service-account-issuer-discovery",
        "Group",
        &["system:serviceaccounts"],
    ),
    (
        "system:volume-scheduler",
        "system:volume-scheduler",
        "User",
        &["system:kube-scheduler"],
    ),
];

const ROLES: &[(&str, &[&str])] = &[
    ("cluster-admin", &["* | * | *", "* | *"]),
    (
        "system:discovery",
        &[
            "get | /api,/api/*,/apis,/apis/*,/healthz,/livez,/openapi,/openapi/*,/readyz,/version,/version/",
        ],
    ),
    (
        "system:basic-user",
        &[
            "create | authorization.k8s.io | selfsubjectaccessreviews,selfsubjectrulesreviews",
            "create | authentication.k8s.io | selfsubjectreviews",
        ],
    ),
    (
        "system:public-info-viewer",
        &["get | /healthz,/livez,/readyz,/version,/version/"],
    ),
    (
        "system:monitoring",
        &["get | /healthz,/healthz/*,/livez,/livez/*,/metrics,/metrics/slis,/readyz,/readyz/*"],
    ),
    (
        "system:heapster",
        &[
            "read | core | events,namespaces,nodes,pods",
            "read | extensions | deployments",
        ],
    ),
    (
        "system:service-account-issuer-discovery",
        &[
            "get | /.well-known/openid-configuration,/.well-known/openid-configuration/,/openid/v1/jwks,/openid/v1/jwks/",
        ],
    ),
    (
        "system:auth-delegator",
        &[
            "create | authentication.k8s.io | tokenreviews",
            "create | authorization.k8s.io | subjectaccessreviews",
        ],
    ),
    (
        "system:kubelet-api-admin",
        &[
            "read,proxy | core | nodes",
            "* | core | nodes/log,nodes/metrics,nodes/proxy,nodes/stats,nodes/healthz,nodes/pods,nodes/configz",
        ],
    ),
    (
        NODE_CLIENT,
        &["create | certificates.k8s.io | certificatesigningrequests/nodeclient"],
    ),
    (
        SELF_NODE_CLIENT,
        &["create | certificates.k8s.io | certificatesigningrequests/selfnodeclient"],
    ),
    (
        SELF_NODE_SERVER,
        &["create | certificates.k8s.io | certificatesigningrequests/selfnodeserver"],
    ),
    (
        "system:node-bootstrapper",
        &["create,get,list,watch | certificates.k8s.io | certificatesigningrequests"],
    ),
    (
        "system:node-problem-detector",
        &[
            "get | core | nodes",
            "patch | core | nodes/status",
            "create,patch,update | core,events.k8s.io | events",
        ],
    ),
    (
        "system:node-proxier",
        &[
            "list,watch | core | services,endpoints",
            "get,list,watch | core | nodes",
            "create,patch,update | core,events.k8s.io | events",
            "list,watch | discovery.k8s.io | endpointslices",
            "list,watch | networking.k8s.io | servicecidrs",
        ],
    ),
    (
        "system:node",
        &[
            "create | authentication.k8s.io | tokenreviews",
            "create | authorization.k8s.io | subjectaccessreviews,localsubjectaccessreviews",
            "read | core | services,namespaces",
            "create,get,list,watch,update,patch,delete | core | nodes",
            "patch,update | core | nodes/status",
            "create,patch,update | core,events.k8s.io | events",
            "get,list,watch,create,delete | core | pods",
            "patch,update | core | pods/status",
            "create | core | pods/eviction",
            // What its pods name (Secrets, ConfigMaps, claims) is `authz::node`'s.
            "get,list,watch | core | endpoints",
            "create,get,list,watch | certificates.k8s.io | certificatesigningrequests",
            "get,create,update,patch,delete | coordination.k8s.io | leases",
            "get | storage.k8s.io | volumeattachments",
            "create | core | serviceaccounts/token",
            "get,list,watch | core | serviceaccounts",
            "get,list,watch | storage.k8s.io | csidrivers",
            "get,create,update,patch,delete | storage.k8s.io | csinodes",
            "read | node.k8s.io | runtimeclasses",
            "read | discovery.k8s.io | endpointslices",
            "get | resource.k8s.io | resourceclaims",
            "get,list,watch,create,update,patch,delete,deletecollection | resource.k8s.io | resourceslices",
        ],
    ),
    (
        // A node agent where it scales Deployments to zero and back.
        "system:salp-sleep",
        &[
            "patch | apps | deployments,replicasets",
            "create | core | pods",
            // For pods that stand by, which the server does not know yet.
            "create | core | serviceaccounts/token",
        ],
    ),
    (
        // Who answers other sites; `sites::fleet::allowed` says what may be asked at all.
        "system:salp-fleet",
        &[
            "get,list | core | pods,nodes",
            // Of a node's proxy only what its pods use is asked.
            "get | core | pods/log,nodes/proxy",
            "list | apps | deployments",
            "list | metrics.k8s.io | pods,nodes",
        ],
    ),
    (
        // Who runs programs for other sites, where the owner lets them.
        "system:salp-fleet-exec",
        &["create,get | core | pods/exec", "get | core | pods"],
    ),
    (
        // What makes the objects of Services of several sites.
        "system:salp-sites",
        &[
            "create,get,patch | apiextensions.k8s.io | customresourcedefinitions",
            "* | multicluster.x-k8s.io | serviceexports,serviceexports/status,serviceimports,serviceimports/status",
            "create,get,list,watch,patch,delete | core | services",
            "create,get,list,watch,patch,delete | discovery.k8s.io | endpointslices",
            "read | core | namespaces",
            "read | apps | deployments",
        ],
    ),
    (
        "system:kube-scheduler",
        &[
            "create,patch,update | core,events.k8s.io | events",
            "create,get,list,watch,update,patch | coordination.k8s.io | leases",
            "read | core | nodes,namespaces",
            "get,list,watch,delete | core | pods",
            "create | core | pods/binding,bindings",
            "patch,update | core | pods/status",
            "read | core | replicationcontrollers,services,persistentvolumeclaims,persistentvolumes",
            "read | apps | replicasets,statefulsets",
            "read | policy | poddisruptionbudgets",
            "read | scheduling.k8s.io | priorityclasses",
            "create | authentication.k8s.io | tokenreviews",
            "create | authorization.k8s.io | subjectaccessreviews",
            "read | storage.k8s.io | csinodes,csidrivers,csistoragecapacities,storageclasses,volumeattachments",
            "get,list,watch,patch,update | resource.k8s.io | resourceclaims,resourceclaims/status,deviceclasses,resourceslices",
            "patch,update | core | persistentvolumeclaims,persistentvolumes",
        ],
    ),
    (
        "system:volume-scheduler",
        &[
            "get,list,patch,update,watch | core | persistentvolumes",
            "read | storage.k8s.io | storageclasses",
            "get,list,patch,update,watch | core | persistentvolumeclaims",
        ],
    ),
    (
        "system:kube-controller-manager",
        &[
            // Salp's controllers share one identity; upstream splits it into accounts, which
            // are below for those who run upstream's manager with its own credentials.
            "create,patch,update | core,events.k8s.io | events",
            "create,get,list,watch,update,patch | coordination.k8s.io | leases",
            "create,get,list,watch,update,patch,delete | core | secrets,serviceaccounts",
            "create | core | serviceaccounts/token",
            "create | authentication.k8s.io | tokenreviews",
            "create | authorization.k8s.io | subjectaccessreviews",
            "read | * | *",
            "all | core | pods,configmaps,endpoints,namespaces,nodes,persistentvolumes,persistentvolumeclaims,replicationcontrollers,resourcequotas",
            "patch,update | core | pods/status,nodes/status,namespaces/status,namespaces/finalize,replicationcontrollers/status,services/status,resourcequotas/status,persistentvolumes/status,persistentvolumeclaims/status,pods/finalizers",
            "create | core | pods/eviction",
            "all | apps | deployments,replicasets,statefulsets,daemonsets,controllerrevisions",
            "patch,update | apps | deployments/status,replicasets/status,statefulsets/status,daemonsets/status,deployments/finalizers,replicasets/finalizers,statefulsets/finalizers,daemonsets/finalizers",
            "get,patch,update | * | */scale",
            "all | batch | jobs,cronjobs",
            "patch,update | batch | jobs/status,cronjobs/status,jobs/finalizers,cronjobs/finalizers",
            "all | discovery.k8s.io | endpointslices",
            "patch,update | autoscaling | horizontalpodautoscalers/status",
            "patch,update | policy | poddisruptionbudgets/status",
            "patch,update,delete | certificates.k8s.io | certificatesigningrequests,certificatesigningrequests/status,certificatesigningrequests/approval",
            // Garbage collection and namespace deletion touch whatever there is.
            "delete,deletecollection,patch,update | * | *",
            // Aggregated roles get rules that nobody in particular has.
            "escalate | rbac.authorization.k8s.io | clusterroles",
        ],
    ),
];

const CONTROLLERS: &[(&str, &[&str])] = &[
    (
        "deployment-controller",
        &[
            "get,list,update,watch | apps | deployments",
            "update | apps | deployments/status,deployments/finalizers",
            "create,delete,get,list,patch,update,watch | apps | replicasets",
            "get,list,update,watch | core | pods",
            "create,patch,update | core,events.k8s.io | events",
        ],
    ),
    (
        "replicaset-controller",
        &[
            "get,list,update,watch | apps | replicasets",
            "update | apps | replicasets/status,replicasets/finalizers",
            "create,delete,list,patch,watch | core | pods",
            "create,patch,update | core,events.k8s.io | events",
        ],
    ),
    (
        "job-controller",
        &[
            "get,list,patch,update,watch | batch | jobs",
            "update | batch | jobs/status,jobs/finalizers",
            "create,delete,list,patch,watch | core | pods",
            "create,patch,update | core,events.k8s.io | events",
        ],
    ),
    (
        "endpointslice-controller",
        &[
            "read | core | services,pods,nodes",
            "create,delete,get,list,update | discovery.k8s.io | endpointslices",
            "update | core | services/finalizers",
            "create,patch,update | core,events.k8s.io | events",
        ],
    ),
    (
        "namespace-controller",
        &[
            "delete,get,list,watch | core | namespaces",
            "update | core | namespaces/finalize,namespaces/status",
            "delete,deletecollection,get,list | * | *",
        ],
    ),
    (
        "generic-garbage-collector",
        &[
            "delete,get,list,patch,update,watch | * | *",
            "create,patch,update | core,events.k8s.io | events",
        ],
    ),
    (
        "service-account-controller",
        &[
            "create,get,list,watch | core | serviceaccounts",
            "create,patch,update | core,events.k8s.io | events",
        ],
    ),
    (
        "root-ca-cert-publisher",
        &[
            "create,update | core | configmaps",
            "create,patch,update | core,events.k8s.io | events",
        ],
    ),
    (
        "node-controller",
        &[
            "get,list,update,delete,patch,watch | core | nodes",
            "patch,update | core | nodes/status",
            "patch,update | core | pods/status",
            "list,delete,get,watch | core | pods",
            "create,patch,update | core,events.k8s.io | events",
        ],
    ),
    (
        "daemon-set-controller",
        &[
            "read | apps | daemonsets",
            "update | apps | daemonsets/status,daemonsets/finalizers",
            "read | core | nodes",
            "create,delete,list,patch,watch | core | pods",
            "create | core | pods/binding",
            "create,delete,get,list,patch,update,watch | apps | controllerrevisions",
            "create,patch,update | core,events.k8s.io | events",
        ],
    ),
    (
        "statefulset-controller",
        &[
            "read | core | pods",
            "read | apps | statefulsets",
            "update | apps | statefulsets/status,statefulsets/finalizers",
            "create,delete,get,patch,update | core | pods",
            "create,delete,get,list,patch,update,watch | apps | controllerrevisions",
            "create,get,delete | core | persistentvolumeclaims",
            "create,patch,update | core,events.k8s.io | events",
        ],
    ),
    (
        "cronjob-controller",
        &[
            "get,list,update,watch | batch | cronjobs",
            "create,delete,get,list,patch,update,watch | batch | jobs",
            "update | batch | cronjobs/status,cronjobs/finalizers",
            "delete,list | core | pods",
            "create,patch,update | core,events.k8s.io | events",
        ],
    ),
    (
        "ttl-after-finished-controller",
        &[
            "delete,get,list,watch | batch | jobs",
            "create,patch,update | core,events.k8s.io | events",
        ],
    ),
    (
        "clusterrole-aggregation-controller",
        &["escalate,get,list,patch,update,watch | rbac.authorization.k8s.io | clusterroles"],
    ),
    (
        "disruption-controller",
        &[
            "read | apps | deployments,replicasets,statefulsets",
            "read | core | pods,replicationcontrollers",
            "read | policy | poddisruptionbudgets",
            "update | policy | poddisruptionbudgets/status",
            "get | * | */scale",
            "create,patch,update | core,events.k8s.io | events",
        ],
    ),
    (
        "horizontal-pod-autoscaler",
        &[
            "read | autoscaling | horizontalpodautoscalers",
            "update | autoscaling | horizontalpodautoscalers/status",
            "get,update | * | */scale",
            "list | core | pods",
            "get,list | metrics.k8s.io | pods",
            "get,list | custom.metrics.k8s.io,external.metrics.k8s.io | *",
            "create,patch,update | core,events.k8s.io | events",
        ],
    ),
    (
        "resourcequota-controller",
        &[
            "list,watch | * | *",
            "update | core | resourcequotas/status",
            "create,patch,update | core,events.k8s.io | events",
        ],
    ),
    (
        "pod-garbage-collector",
        &[
            "delete,list,watch | core | pods",
            "get,list,watch | core | nodes",
            "patch | core | pods/status",
        ],
    ),
    (
        "certificate-controller",
        &[
            "delete,get,list,watch | certificates.k8s.io | certificatesigningrequests",
            "update | certificates.k8s.io | certificatesigningrequests/approval,certificatesigningrequests/status",
            "create,patch,update | core,events.k8s.io | events",
        ],
    ),
    (
        "expand-controller",
        &[
            "get,list,patch,update,watch | core | persistentvolumes",
            "update | core | persistentvolumeclaims/status",
        ],
    ),
    (
        "persistent-volume-binder",
        &[
            "all | core | persistentvolumes,persistentvolumeclaims",
            "update | core | persistentvolumes/status,persistentvolumeclaims/status",
            "read | storage.k8s.io | storageclasses",
            "create,patch,update | core,events.k8s.io | events",
        ],
    ),
];

const ADMIN: &[&str] = &[
    "create | authorization.k8s.io | localsubjectaccessreviews",
    "all | rbac.authorization.k8s.io | rolebindings,roles",
];

const EDIT: &[&str] = &[
    "read | core | pods/attach,pods/exec,pods/portforward,pods/proxy,secrets,services/proxy",
    "impersonate | core | serviceaccounts",
    "write | core | pods,pods/attach,pods/exec,pods/portforward,pods/proxy",
    "create | core | pods/eviction",
    "write | core | configmaps,events,persistentvolumeclaims,replicationcontrollers,replicationcontrollers/scale,secrets,serviceaccounts,services,services/proxy",
    "create | core | serviceaccounts/token",
    "write | apps | daemonsets,deployments,deployments/rollback,deployments/scale,replicasets,replicasets/scale,statefulsets,statefulsets/scale",
    "write | autoscaling | horizontalpodautoscalers",
    "write | batch | cronjobs,jobs",
    "write | policy | poddisruptionbudgets",
    "write | networking.k8s.io | ingresses,networkpolicies",
    "all | coordination.k8s.io | leases",
    "write | resource.k8s.io | resourceclaims,resourceclaimtemplates",
];

const VIEW: &[&str] = &[
    "read | core | configmaps,endpoints,persistentvolumeclaims,persistentvolumeclaims/status,pods,replicationcontrollers,replicationcontrollers/scale,serviceaccounts,services,services/status",
    "read | core | bindings,events,limitranges,namespaces/status,pods/log,pods/status,replicationcontrollers/status,resourcequotas,resourcequotas/status",
    "read | core | namespaces",
    "read | discovery.k8s.io | endpointslices",
    "read | events.k8s.io | events",
    "read | apps | controllerrevisions,daemonsets,daemonsets/status,deployments,deployments/scale,deployments/status,replicasets,replicasets/scale,replicasets/status,statefulsets,statefulsets/scale,statefulsets/status",
    "read | autoscaling | horizontalpodautoscalers,horizontalpodautoscalers/status",
    "read | batch | cronjobs,cronjobs/status,jobs,jobs/status",
    "read | policy | poddisruptionbudgets,poddisruptionbudgets/status",
    "read | networking.k8s.io | ingresses,ingresses/status,networkpolicies",
    "read | resource.k8s.io | resourceclaims,resourceclaims/status,resourceclaimtemplates",
];

/// What upstream's metrics-server brings for its own API, which is this server's here.
const METRICS_READER: &[&str] = &["read | metrics.k8s.io | pods,nodes"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_is_whole_and_every_binding_has_its_role() {
        let all = objects();
        let roles: Vec<&str> = all
            .iter()
            .filter(|o| o["kind"] == "ClusterRole")
            .filter_map(|o| o["metadata"]["name"].as_str())
            .collect();
        for o in &all {
            for rule in o["rules"].as_array().into_iter().flatten() {
                assert!(
                    rule["verbs"].as_array().is_some_and(|v| !v.is_empty()),
                    "{o}"
                );
            }
            if o["kind"] == "ClusterRoleBinding" {
                assert!(
                    roles.contains(&o["roleRef"]["name"].as_str().unwrap()),
                    "{o}"
                );
            }
        }
    }
}
