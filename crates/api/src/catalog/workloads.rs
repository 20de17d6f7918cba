//! Rows of apps, batch, autoscaling, policy, networking and discovery.

use super::*;

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
    }
    .short(&["hpa"])
    .in_all()
    .with_status(),
];

pub(super) const BATCH: &[Resource] = &[
    row!("batch", "batch", "v1", "CronJob", "cronjob", "cronjobs")
        .short(&["cj"])
        .in_all()
        .with_status()
        .with_generation(),
    row!("batch", "batch", "v1", "Job", "job", "jobs")
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
.with_generation()];
