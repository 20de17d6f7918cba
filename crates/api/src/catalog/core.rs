//! Rows of the core group and of events.k8s.io.

use super::*;
use crate::defaults::{cluster as config, network, pod, workloads};
use crate::strategy;
use crate::{validate, warnings};

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
        .prints(
            columns::cluster::COMPONENT_STATUS,
            columns::cluster::component_status,
        )
        .deprecated("v1 ComponentStatus is deprecated in v1.19+")
    }
    .cluster()
    .short(&["cs"]),
    row!("core", "", "v1", "ConfigMap", "configmap", "configmaps")
        .validates(
            validate::cluster::config_map,
            validate::cluster::config_map_update,
        )
        .prints(columns::cluster::CONFIG_MAP, columns::cluster::config_map)
        .short(&["cm"]),
    row!("core", "", "v1", "Endpoints", "endpoints", "endpoints")
        .validates(validate::addresses::endpoints, no_update_errors)
        .deprecated("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice")
        .prints(columns::network::ENDPOINTS, columns::network::endpoints)
        .defaults(network::endpoints)
        .short(&["ep"]),
    row!("core", "", "v1", "Event", "event", "events")
        .validates(validate::events::event, no_update_errors)
        .prints(columns::cluster::EVENT, columns::cluster::event)
        .without_name_column()
        .short(&["ev"])
        .selectable(EVENT_FIELDS),
    row!("core", "", "v1", "LimitRange", "limitrange", "limitranges")
        .validates(validate::cluster::limit_range, no_update_errors)
        .prints(columns::cluster::CREATED_AT, columns::cluster::created_at)
        .defaults(config::limit_range)
        .short(&["limits"]),
    Resource {
        // A collection of namespaces can't be deleted at once.
        verbs: &[
            "create", "delete", "get", "list", "patch", "update", "watch",
        ],
        ..row!("core", "", "v1", "Namespace", "namespace", "namespaces")
            .validates(validate::cluster::namespace, no_update_errors)
            .prints(columns::cluster::NAMESPACE, columns::cluster::namespace)
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
        .validates(validate::cluster::node, validate::cluster::node_update)
        .prints(columns::cluster::NODE, columns::cluster::node)
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
    .validates(validate::cluster::claim, validate::cluster::claim_update)
    .warns(warnings::claim)
    .prints(columns::storage::CLAIM, columns::storage::claim)
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
    .validates(validate::cluster::volume, validate::cluster::volume_update)
    .warns(warnings::volume)
    .prints(columns::storage::VOLUME, columns::storage::volume)
    .defaults(config::persistent_volume)
    .prepares(strategy::pending_create, unchanged_update)
    .cluster()
    .short(&["pv"])
    .with_status(),
    row!("core", "", "v1", "Pod", "pod", "pods")
        .validates(validate::pod::pod, validate::pod::pod_update)
        .warns(warnings::pod)
        .prints(columns::pod::POD, columns::pod::pod)
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
    .prints(
        columns::workloads::POD_TEMPLATE,
        columns::workloads::pod_template,
    )
    .defaults(pod::pod_template)
    .validates(validate::workloads::pod_template, no_update_errors)
    .warns(warnings::pod_template)
    .with_generation(),
    row!(
        "core",
        "",
        "v1",
        "ReplicationController",
        "replicationcontroller",
        "replicationcontrollers"
    )
    .prints(
        columns::workloads::REPLICA_SET,
        columns::workloads::replication_controller,
    )
    .defaults(workloads::replication_controller)
    .validates(
        validate::workloads::replication_controller,
        no_update_errors,
    )
    .warns(warnings::replicated)
    .prepares(strategy::replica_set_create, unchanged_update)
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
    .validates(
        validate::cluster::resource_quota,
        validate::cluster::resource_quota_update,
    )
    .prints(
        columns::cluster::RESOURCE_QUOTA,
        columns::cluster::resource_quota,
    )
    .defaults(config::resource_quota)
    .prepares(strategy::empty_status, unchanged_update)
    .short(&["quota"])
    .with_status(),
    row!("core", "", "v1", "Secret", "secret", "secrets")
        .validates(validate::cluster::secret, validate::cluster::secret_update)
        .prints(columns::cluster::SECRET, columns::cluster::secret)
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
    .prints(
        columns::cluster::SERVICE_ACCOUNT,
        columns::cluster::service_account,
    )
    .warns(warnings::service_account)
    .short(&["sa"])
    .subresources(&[sub(
        "token",
        ("authentication.k8s.io", "v1", "TokenRequest"),
        CREATE,
    )]),
    row!("core", "", "v1", "Service", "service", "services")
        .validates(
            validate::network::service,
            validate::network::service_update,
        )
        .warns(warnings::service)
        .prints(columns::network::SERVICE, columns::network::service)
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
        .validates(validate::events::event, validate::events::new_event_update)
        .validates_create(validate::events::new_event)
        .prints(columns::cluster::EVENT, columns::cluster::event)
        .without_name_column()
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
