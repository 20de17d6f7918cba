//! Rows of apps, batch, autoscaling, policy, networking and discovery.

use super::*;
use crate::defaults::{network, workloads};
use crate::strategy;

pub(super) const APPS: &[Resource] = &[
    row!(
        "apps",
        "apps",
        "v1",
        "ControllerRevision",
        "controllerrevision",
        "controllerrevisions"
    ),
    row!("apps", "apps", "v1", "DaemonSet", "daemonset", "daemonsets")
        .defaults(workloads::daemon_set)
        .prepares(strategy::empty_status, unchanged_update)
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
    .defaults(workloads::replica_set)
    .prepares(strategy::empty_status, unchanged_update)
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
    .defaults(workloads::stateful_set)
    .prepares(strategy::empty_status, unchanged_update)
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
    .defaults(workloads::autoscaler_v2)
    .prepares(strategy::empty_status, unchanged_update)
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
        .defaults(workloads::autoscaler_v1)
        .prepares(strategy::empty_status, unchanged_update)
    }
    .short(&["hpa"])
    .in_all()
    .with_status(),
];

pub(super) const BATCH: &[Resource] = &[
    row!("batch", "batch", "v1", "CronJob", "cronjob", "cronjobs")
        .defaults(workloads::cron_job)
        .prepares(strategy::empty_status, unchanged_update)
        .short(&["cj"])
        .in_all()
        .with_status()
        .with_generation(),
    row!("batch", "batch", "v1", "Job", "job", "jobs")
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
.prepares(strategy::empty_status, unchanged_update)
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
.defaults(network::endpoint_slice)
.with_generation()];
