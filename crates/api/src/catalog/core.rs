//! Rows of the core group and of events.k8s.io.

use super::*;
use crate::defaults::{cluster as config, network, pod, workloads};
use crate::strategy;

pub(super) const CORE: &[Resource] = &[
    Resource {
        namespaced: true,
        verbs: CREATE,
        stored: false,
        ..row!("core", "", "v1", "Binding", "binding", "bindings")
    },
    Resource {
        verbs: &["get", "list"],
        stored: false,
        ..row!(
            "core",
            "",
            "v1",
            "ComponentStatus",
            "componentstatus",
            "componentstatuses"
        )
    }
    .cluster()
    .short(&["cs"]),
    row!("core", "", "v1", "ConfigMap", "configmap", "configmaps").short(&["cm"]),
    row!("core", "", "v1", "Endpoints", "endpoints", "endpoints")
        .defaults(network::endpoints)
        .short(&["ep"]),
    row!("core", "", "v1", "Event", "event", "events")
        .short(&["ev"])
        .selectable(EVENT_FIELDS),
    row!("core", "", "v1", "LimitRange", "limitrange", "limitranges")
        .defaults(config::limit_range)
        .short(&["limits"]),
    Resource {
        // A collection of namespaces can't be deleted at once.
        verbs: &[
            "create", "delete", "get", "list", "patch", "update", "watch",
        ],
        ..row!("core", "", "v1", "Namespace", "namespace", "namespaces")
            .defaults(config::namespace)
            .prepares(strategy::namespace_create, strategy::namespace_update)
    }
    .cluster()
    .short(&["ns"])
    .with_status()
    .subresources(&[sub("finalize", ("", "v1", "Namespace"), UPDATE)])
    .selectable(&["status.phase", "name"])
    .named(names::label),
    row!("core", "", "v1", "Node", "node", "nodes")
        .defaults(config::node)
        .keeps_status_on_create()
        .cluster()
        .short(&["no"])
        .with_status()
        .subresources(&[sub("proxy", ("", "v1", "NodeProxyOptions"), PROXY)])
        .selectable(&["spec.unschedulable"]),
    row!(
        "core",
        "",
        "v1",
        "PersistentVolumeClaim",
        "persistentvolumeclaim",
        "persistentvolumeclaims"
    )
    .defaults(config::persistent_volume_claim)
    .prepares(strategy::pending_create, unchanged_update)
    .short(&["pvc"])
    .with_status(),
    row!(
        "core",
        "",
        "v1",
        "PersistentVolume",
        "persistentvolume",
        "persistentvolumes"
    )
    .defaults(config::persistent_volume)
    .prepares(strategy::pending_create, unchanged_update)
    .cluster()
    .short(&["pv"])
    .with_status(),
    row!("core", "", "v1", "Pod", "pod", "pods")
        .defaults(pod::pod)
        .prepares(strategy::pod_create, unchanged_update)
        .short(&["po"])
        .in_all()
        .with_status()
        .with_generation()
        .subresources(&[
            sub("attach", ("", "v1", "PodAttachOptions"), CREATE_GET),
            sub("binding", ("", "v1", "Binding"), CREATE),
            sub("ephemeralcontainers", ("", "v1", "Pod"), GET_PATCH_UPDATE),
            sub("eviction", ("policy", "v1", "Eviction"), CREATE),
            sub("exec", ("", "v1", "PodExecOptions"), CREATE_GET),
            sub("log", ("", "v1", "Pod"), GET),
            sub(
                "portforward",
                ("", "v1", "PodPortForwardOptions"),
                CREATE_GET,
            ),
            sub("proxy", ("", "v1", "PodProxyOptions"), PROXY),
            sub("resize", ("", "v1", "Pod"), GET_PATCH_UPDATE),
        ])
        .selectable(&[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ]),
    row!(
        "core",
        "",
        "v1",
        "PodTemplate",
        "podtemplate",
        "podtemplates"
    )
    .defaults(pod::pod_template)
    .with_generation(),
    row!(
        "core",
        "",
        "v1",
        "ReplicationController",
        "replicationcontroller",
        "replicationcontrollers"
    )
    .defaults(workloads::replication_controller)
    .prepares(strategy::empty_status, unchanged_update)
    .short(&["rc"])
    .in_all()
    .with_status()
    .with_scale()
    .with_generation()
    .selectable(&["status.replicas"]),
    row!(
        "core",
        "",
        "v1",
        "ResourceQuota",
        "resourcequota",
        "resourcequotas"
    )
    .defaults(config::resource_quota)
    .prepares(strategy::empty_status, unchanged_update)
    .short(&["quota"])
    .with_status(),
    row!("core", "", "v1", "Secret", "secret", "secrets")
        .defaults(config::secret)
        .selectable(&["type"]),
    row!(
        "core",
        "",
        "v1",
        "ServiceAccount",
        "serviceaccount",
        "serviceaccounts"
    )
    .short(&["sa"])
    .subresources(&[sub(
        "token",
        ("authentication.k8s.io", "v1", "TokenRequest"),
        CREATE,
    )]),
    row!("core", "", "v1", "Service", "service", "services")
        .defaults(network::service)
        .prepares(strategy::service_create, strategy::service_update)
        .short(&["svc"])
        .in_all()
        .with_status()
        .subresources(&[sub("proxy", ("", "v1", "ServiceProxyOptions"), PROXY)])
        .selectable(&["spec.clusterIP", "spec.type"])
        .named(names::service),
];

const EVENT_FIELDS: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
];

pub(super) const EVENTS: &[Resource] = &[Resource {
    stored_as: Some(("", "v1")),
    ..row!("events", "events.k8s.io", "v1", "Event", "event", "events")
}
.short(&["ev"])
.selectable(&[
    "regarding.kind",
    "regarding.namespace",
    "regarding.name",
    "regarding.uid",
    "regarding.apiVersion",
    "regarding.resourceVersion",
    "regarding.fieldPath",
    "reason",
    "reportingController",
    "type",
])];
