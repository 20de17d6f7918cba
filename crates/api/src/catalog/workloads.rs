//! Rows of apps, batch, autoscaling, policy, networking and discovery.

use super::*;
use crate::defaults::{network, workloads};
use crate::strategy;
use crate::{validate, warnings};

pub(super) const APPS: &[Resource] = &[
    row!(
        "apps",
        "apps",
        "v1",
        "ControllerRevision",
        "controllerrevision",
        "controllerrevisions"
    )
    .validates(
        validate::workloads::controller_revision,
        validate::workloads::controller_revision_update,
    )
    .prints(
        columns::workloads::CONTROLLER_REVISION,
        columns::workloads::controller_revision,
    ),
    row!("apps", "apps", "v1", "DaemonSet", "daemonset", "daemonsets")
        .validates(
            validate::workloads::daemon_set,
            validate::workloads::selector_stays,
        )
        .warns(warnings::daemon_set)
        .prints(
            columns::workloads::DAEMON_SET,
            columns::workloads::daemon_set,
        )
        .defaults(workloads::daemon_set)
        .prepares(strategy::daemon_set_create, unchanged_update)
        .short(&["ds"])
        .in_all()
        .with_status()
        .with_generation(),
    row!(
        "apps",
        "apps",
        "v1",
        "Deployment",
        "deployment",
        "deployments"
    )
    .validates(
        validate::workloads::deployment,
        validate::workloads::selector_stays,
    )
    .warns(warnings::replicated)
    .prints(
        columns::workloads::DEPLOYMENT,
        columns::workloads::deployment,
    )
    .defaults(workloads::deployment)
    .prepares(strategy::empty_status, unchanged_update)
    .short(&["deploy"])
    .in_all()
    .with_status()
    .with_scale()
    .with_generation(),
    row!(
        "apps",
        "apps",
        "v1",
        "ReplicaSet",
        "replicaset",
        "replicasets"
    )
    .validates(
        validate::workloads::replica_set,
        validate::workloads::selector_stays,
    )
    .warns(warnings::replicated)
    .prints(
        columns::workloads::REPLICA_SET,
        columns::workloads::replica_set,
    )
    .defaults(workloads::replica_set)
    .prepares(strategy::replica_set_create, unchanged_update)
    .short(&["rs"])
    .in_all()
    .with_status()
    .with_scale()
    .with_generation()
    .selectable(&["status.replicas"]),
    row!(
        "apps",
        "apps",
        "v1",
        "StatefulSet",
        "statefulset",
        "statefulsets"
    )
    .validates(
        validate::workloads::stateful_set,
        validate::workloads::stateful_set_update,
    )
    .warns(warnings::stateful_set)
    .prints(
        columns::workloads::STATEFUL_SET,
        columns::workloads::stateful_set,
    )
    .defaults(workloads::stateful_set)
    .prepares(strategy::stateful_set_create, unchanged_update)
    .short(&["sts"])
    .in_all()
    .with_status()
    .with_scale()
    .with_generation()
    .named(names::label),
];

pub(super) const AUTOSCALING: &[Resource] = &[
    row!(
        "autoscaling",
        "autoscaling",
        "v2",
        "HorizontalPodAutoscaler",
        "horizontalpodautoscaler",
        "horizontalpodautoscalers"
    )
    .validates(validate::workloads::autoscaler, no_update_errors)
    .prints(
        columns::workloads::AUTOSCALER,
        columns::workloads::autoscaler,
    )
    .defaults(workloads::autoscaler_v2)
    .prepares(strategy::autoscaler_create, unchanged_update)
    .short(&["hpa"])
    .in_all()
    .with_status(),
    Resource {
        stored_as: Some(("autoscaling", "v2")),
        ..row!(
            "autoscaling",
            "autoscaling",
            "v1",
            "HorizontalPodAutoscaler",
            "horizontalpodautoscaler",
            "horizontalpodautoscalers"
        )
        .validates(validate::workloads::autoscaler, no_update_errors)
        .prints(
            columns::workloads::AUTOSCALER,
            columns::workloads::autoscaler,
        )
        .defaults(workloads::autoscaler_v1)
        .prepares(strategy::autoscaler_v1_create, unchanged_update)
    }
    .short(&["hpa"])
    .in_all()
    .with_status(),
];

pub(super) const BATCH: &[Resource] = &[
    row!("batch", "batch", "v1", "CronJob", "cronjob", "cronjobs")
        .validates(validate::workloads::cron_job, no_update_errors)
        .warns(warnings::cron_job)
        .prints(columns::workloads::CRON_JOB, columns::workloads::cron_job)
        .defaults(workloads::cron_job)
        .prepares(strategy::empty_status, unchanged_update)
        .short(&["cj"])
        .in_all()
        .with_status()
        .with_generation(),
    row!("batch", "batch", "v1", "Job", "job", "jobs")
        .validates(validate::workloads::job, validate::workloads::job_update)
        .warns(warnings::job)
        .prints(columns::workloads::JOB, columns::workloads::job)
        .defaults(workloads::job)
        .prepares(strategy::job_create, unchanged_update)
        .in_all()
        .with_status()
        .with_generation()
        .selectable(&["status.successful"]),
];

pub(super) const NETWORKING: &[Resource] = &[
    row!(
        "networking",
        "networking.k8s.io",
        "v1",
        "IngressClass",
        "ingressclass",
        "ingressclasses"
    )
    .validates(
        validate::network::ingress_class,
        validate::network::ingress_class_update,
    )
    .prints(
        columns::network::INGRESS_CLASS,
        columns::network::ingress_class,
    )
    .defaults(network::ingress_class)
    .cluster()
    .with_generation(),
    row!(
        "networking",
        "networking.k8s.io",
        "v1",
        "Ingress",
        "ingress",
        "ingresses"
    )
    .validates(validate::network::ingress, no_update_errors)
    .warns(warnings::ingress)
    .prints(columns::network::INGRESS, columns::network::ingress)
    .prepares(strategy::load_balancer_status, unchanged_update)
    .short(&["ing"])
    .with_status()
    .with_generation(),
    row!(
        "networking",
        "networking.k8s.io",
        "v1",
        "IPAddress",
        "ipaddress",
        "ipaddresses"
    )
    .validates(
        validate::addresses::ip_address,
        validate::addresses::ip_address_update,
    )
    .prints(columns::network::IP_ADDRESS, columns::network::ip_address)
    .cluster()
    .short(&["ip"])
    .named(names::any),
    row!(
        "networking",
        "networking.k8s.io",
        "v1",
        "NetworkPolicy",
        "networkpolicy",
        "networkpolicies"
    )
    .validates(validate::network::network_policy, no_update_errors)
    .prints(
        columns::network::NETWORK_POLICY,
        columns::network::network_policy,
    )
    .defaults(network::network_policy)
    .short(&["netpol"])
    .with_generation(),
    row!(
        "networking",
        "networking.k8s.io",
        "v1",
        "ServiceCIDR",
        "servicecidr",
        "servicecidrs"
    )
    .validates(
        validate::addresses::service_cidr,
        validate::addresses::service_cidr_update,
    )
    .prints(
        columns::network::SERVICE_CIDR,
        columns::network::service_cidr,
    )
    .cluster()
    .with_status(),
];

pub(super) const POLICY: &[Resource] = &[row!(
    "policy",
    "policy",
    "v1",
    "PodDisruptionBudget",
    "poddisruptionbudget",
    "poddisruptionbudgets"
)
.validates(validate::workloads::disruption_budget, no_update_errors)
.prints(
    columns::workloads::DISRUPTION_BUDGET,
    columns::workloads::disruption_budget,
)
.prepares(strategy::disruption_budget_create, unchanged_update)
.short(&["pdb"])
.with_status()
.with_generation()];

pub(super) const DISCOVERY: &[Resource] = &[row!(
    "discovery",
    "discovery.k8s.io",
    "v1",
    "EndpointSlice",
    "endpointslice",
    "endpointslices"
)
.validates(
    validate::network::endpoint_slice,
    validate::network::endpoint_slice_update,
)
.prints(
    columns::network::ENDPOINT_SLICE,
    columns::network::endpoint_slice,
)
.defaults(network::endpoint_slice)
.with_generation()];
