//! Rows of the groups that configure a cluster: access, storage, admission,
//! extension, scheduling, nodes, devices, flow control.

use super::*;
use crate::defaults::cluster as config;
use crate::strategy;
use crate::{validate, warnings};

pub(super) const API_REGISTRATION: &[Resource] = &[Resource {
    type_name: "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIService",
    categories: super::API_EXTENSIONS,
    ..row!(
        "",
        "apiregistration.k8s.io",
        "v1",
        "APIService",
        "apiservice",
        "apiservices"
    )
    .validates(validate::aggregation::api_service, no_update_errors)
    .prints(columns::cluster::API_SERVICE, columns::cluster::api_service)
    .defaults(config::api_service)
    .prepares(strategy::empty_status, unchanged_update)
    .named(crate::names::any)
}
.cluster()
.with_status()];

/// What nodes and pods use, answered from readings and stored nowhere.
pub(super) const METRICS: &[Resource] = &[
    Resource {
        stored: false,
        verbs: GET_LIST,
        namespaced: false,
        type_name: "io.k8s.metrics.pkg.apis.metrics.v1beta1.NodeMetrics",
        ..row!(
            "metrics",
            "metrics.k8s.io",
            "v1beta1",
            "NodeMetrics",
            "nodemetrics",
            "nodes"
        )
        .prints(columns::cluster::METRICS, columns::cluster::node_metrics)
    },
    Resource {
        stored: false,
        verbs: GET_LIST,
        type_name: "io.k8s.metrics.pkg.apis.metrics.v1beta1.PodMetrics",
        ..row!(
            "metrics",
            "metrics.k8s.io",
            "v1beta1",
            "PodMetrics",
            "podmetrics",
            "pods"
        )
        .prints(columns::cluster::METRICS, columns::cluster::pod_metrics)
    },
];

pub(super) const API_EXTENSIONS: &[Resource] = &[Resource {
    type_name: "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition",
    categories: super::API_EXTENSIONS,
    ..row!(
        "",
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
        "customresourcedefinition",
        "customresourcedefinitions"
    )
    .validates(
        validate::definition::definition,
        validate::definition::definition_update,
    )
    .prints(columns::cluster::CREATED_AT, columns::cluster::created_at)
    .defaults(config::custom_resource_definition)
    .prepares(strategy::crd_create, strategy::crd_update)
}
.cluster()
.short(&["crd", "crds"])
.with_status()
.with_generation()];

pub(super) const AUTHENTICATION: &[Resource] = &[
    row!(
        "authentication",
        "authentication.k8s.io",
        "v1",
        "SelfSubjectReview",
        "selfsubjectreview",
        "selfsubjectreviews"
    )
    .cluster()
    .review(),
    row!(
        "authentication",
        "authentication.k8s.io",
        "v1",
        "TokenReview",
        "tokenreview",
        "tokenreviews"
    )
    .cluster()
    .review(),
];

pub(super) const AUTHORIZATION: &[Resource] = &[
    row!(
        "authorization",
        "authorization.k8s.io",
        "v1",
        "LocalSubjectAccessReview",
        "localsubjectaccessreview",
        "localsubjectaccessreviews"
    )
    .review(),
    row!(
        "authorization",
        "authorization.k8s.io",
        "v1",
        "SelfSubjectAccessReview",
        "selfsubjectaccessreview",
        "selfsubjectaccessreviews"
    )
    .cluster()
    .review(),
    row!(
        "authorization",
        "authorization.k8s.io",
        "v1",
        "SelfSubjectRulesReview",
        "selfsubjectrulesreview",
        "selfsubjectrulesreviews"
    )
    .cluster()
    .review(),
    row!(
        "authorization",
        "authorization.k8s.io",
        "v1",
        "SubjectAccessReview",
        "subjectaccessreview",
        "subjectaccessreviews"
    )
    .cluster()
    .review(),
];

pub(super) const CERTIFICATES: &[Resource] = &[
    row!(
        "certificates",
        "certificates.k8s.io",
        "v1",
        "CertificateSigningRequest",
        "certificatesigningrequest",
        "certificatesigningrequests"
    )
    .validates_create(validate::certificates::signing_request)
    .validates_status(validate::certificates::signing_status)
    .prints(
        columns::cluster::SIGNING_REQUEST,
        columns::cluster::signing_request,
    )
    .prepares(strategy::empty_status, unchanged_update)
    .cluster()
    .short(&["csr"])
    .with_status()
    .subresources(&[sub(
        "approval",
        ("certificates.k8s.io", "v1", "CertificateSigningRequest"),
        GET_PATCH_UPDATE,
    )])
    .selectable(&["spec.signerName"]),
    row!(
        "certificates",
        "certificates.k8s.io",
        "v1",
        "ClusterTrustBundle",
        "clustertrustbundle",
        "clustertrustbundles"
    )
    .validates(
        validate::certificates::trust_bundle,
        validate::certificates::trust_bundle_update,
    )
    .prints(
        columns::cluster::TRUST_BUNDLE,
        columns::cluster::trust_bundle,
    )
    .cluster()
    .selectable(&["spec.signerName"])
    .named(names::any),
    row!(
        "certificates",
        "certificates.k8s.io",
        "v1",
        "PodCertificateRequest",
        "podcertificaterequest",
        "podcertificaterequests"
    )
    .validates(no_errors, validate::spec_update)
    .validates_create(validate::pod_certificates::request)
    .validates_status(validate::pod_certificates::request_status)
    .defaults(config::pod_certificate_request)
    .prepares(strategy::empty_status, unchanged_update)
    .with_status()
    .selectable(&["spec.signerName", "spec.podName", "spec.nodeName"]),
];

pub(super) const RBAC: &[Resource] = &[
    row!(
        "rbac",
        "rbac.authorization.k8s.io",
        "v1",
        "ClusterRoleBinding",
        "clusterrolebinding",
        "clusterrolebindings"
    )
    .validates(
        validate::cluster::role_binding,
        validate::cluster::role_binding_update,
    )
    .prints(
        columns::cluster::ROLE_BINDING,
        columns::cluster::role_binding,
    )
    .defaults(config::role_binding)
    .cluster()
    .named(names::path_segment),
    row!(
        "rbac",
        "rbac.authorization.k8s.io",
        "v1",
        "ClusterRole",
        "clusterrole",
        "clusterroles"
    )
    .validates(validate::cluster::role, no_update_errors)
    .prints(columns::cluster::CREATED_AT, columns::cluster::created_at)
    .cluster()
    .named(names::path_segment),
    row!(
        "rbac",
        "rbac.authorization.k8s.io",
        "v1",
        "RoleBinding",
        "rolebinding",
        "rolebindings"
    )
    .validates(
        validate::cluster::role_binding,
        validate::cluster::role_binding_update,
    )
    .prints(
        columns::cluster::ROLE_BINDING,
        columns::cluster::role_binding,
    )
    .defaults(config::role_binding)
    .named(names::path_segment),
    row!(
        "rbac",
        "rbac.authorization.k8s.io",
        "v1",
        "Role",
        "role",
        "roles"
    )
    .validates(validate::cluster::role, no_update_errors)
    .prints(columns::cluster::CREATED_AT, columns::cluster::created_at)
    .named(names::path_segment),
];

pub(super) const STORAGE: &[Resource] = &[
    row!(
        "storage",
        "storage.k8s.io",
        "v1",
        "CSIDriver",
        "csidriver",
        "csidrivers"
    )
    .validates(
        validate::storage::csi_driver,
        validate::storage::csi_driver_update,
    )
    .prints(columns::storage::DRIVER, columns::storage::driver)
    .defaults(config::csi_driver)
    .cluster()
    .with_generation(),
    row!(
        "storage",
        "storage.k8s.io",
        "v1",
        "CSINode",
        "csinode",
        "csinodes"
    )
    .validates(
        validate::storage::csi_node,
        validate::storage::csi_node_update,
    )
    .prints(columns::storage::CSI_NODE, columns::storage::csi_node)
    .cluster(),
    row!(
        "storage",
        "storage.k8s.io",
        "v1",
        "CSIStorageCapacity",
        "csistoragecapacity",
        "csistoragecapacities"
    )
    .validates(
        validate::storage::csi_capacity,
        validate::storage::csi_capacity_update,
    )
    .prints(
        columns::storage::STORAGE_CAPACITY,
        columns::storage::storage_capacity,
    ),
    row!(
        "storage",
        "storage.k8s.io",
        "v1",
        "StorageClass",
        "storageclass",
        "storageclasses"
    )
    .validates(
        validate::cluster::storage_class,
        validate::cluster::storage_class_update,
    )
    .warns(warnings::storage_class)
    .prints(
        columns::storage::STORAGE_CLASS,
        columns::storage::storage_class,
    )
    .defaults(config::storage_class)
    .cluster()
    .short(&["sc"]),
    row!(
        "storage",
        "storage.k8s.io",
        "v1",
        "VolumeAttachment",
        "volumeattachment",
        "volumeattachments"
    )
    .validates(validate::storage::attachment, validate::spec_update)
    .prints(columns::storage::ATTACHMENT, columns::storage::attachment)
    .cluster()
    .with_status(),
    row!(
        "storage",
        "storage.k8s.io",
        "v1",
        "VolumeAttributesClass",
        "volumeattributesclass",
        "volumeattributesclasses"
    )
    .validates(
        validate::storage::attributes_class,
        validate::storage::attributes_class_update,
    )
    .prints(
        columns::storage::ATTRIBUTES_CLASS,
        columns::storage::attributes_class,
    )
    .cluster()
    .short(&["vac"]),
];

pub(super) const ADMISSION_REGISTRATION: &[Resource] = &[
    extension(
        row!(
            "admissionregistration",
            "admissionregistration.k8s.io",
            "v1",
            "MutatingAdmissionPolicy",
            "mutatingadmissionpolicy",
            "mutatingadmissionpolicies"
        )
        .validates(
            validate::admission::mutating_policy,
            validate::admission::no_update_rule,
        )
        .prints(
            columns::cluster::MUTATING_POLICY,
            columns::cluster::mutating_policy,
        )
        .defaults(config::admission_policy),
    ),
    extension(
        row!(
            "admissionregistration",
            "admissionregistration.k8s.io",
            "v1",
            "MutatingAdmissionPolicyBinding",
            "mutatingadmissionpolicybinding",
            "mutatingadmissionpolicybindings"
        )
        .validates(
            validate::admission::mutating_binding,
            validate::admission::no_update_rule,
        )
        .prints(
            columns::cluster::POLICY_BINDING,
            columns::cluster::policy_binding,
        )
        .defaults(config::admission_policy_binding),
    ),
    extension(
        row!(
            "admissionregistration",
            "admissionregistration.k8s.io",
            "v1",
            "MutatingWebhookConfiguration",
            "mutatingwebhookconfiguration",
            "mutatingwebhookconfigurations"
        )
        .validates(
            validate::admission::webhooks,
            validate::admission::no_update_rule,
        )
        .prints(columns::workloads::WEBHOOKS, columns::workloads::webhooks)
        .defaults(config::webhooks),
    ),
    extension(
        row!(
            "admissionregistration",
            "admissionregistration.k8s.io",
            "v1",
            "ValidatingAdmissionPolicy",
            "validatingadmissionpolicy",
            "validatingadmissionpolicies"
        )
        .validates(
            validate::admission::validating_policy,
            validate::admission::no_update_rule,
        )
        .prints(
            columns::cluster::ADMISSION_POLICY,
            columns::cluster::admission_policy,
        )
        .defaults(config::admission_policy),
    )
    .with_status(),
    extension(
        row!(
            "admissionregistration",
            "admissionregistration.k8s.io",
            "v1",
            "ValidatingAdmissionPolicyBinding",
            "validatingadmissionpolicybinding",
            "validatingadmissionpolicybindings"
        )
        .validates(
            validate::admission::validating_binding,
            validate::admission::no_update_rule,
        )
        .prints(
            columns::cluster::POLICY_BINDING,
            columns::cluster::policy_binding,
        )
        .defaults(config::admission_policy_binding),
    ),
    extension(
        row!(
            "admissionregistration",
            "admissionregistration.k8s.io",
            "v1",
            "ValidatingWebhookConfiguration",
            "validatingwebhookconfiguration",
            "validatingwebhookconfigurations"
        )
        .validates(
            validate::admission::webhooks,
            validate::admission::no_update_rule,
        )
        .prints(columns::workloads::WEBHOOKS, columns::workloads::webhooks)
        .defaults(config::webhooks),
    ),
];

const fn extension(mut row: Resource) -> Resource {
    row.categories = super::API_EXTENSIONS;
    row.cluster().with_generation()
}

pub(super) const SCHEDULING: &[Resource] = &[row!(
    "scheduling",
    "scheduling.k8s.io",
    "v1",
    "PriorityClass",
    "priorityclass",
    "priorityclasses"
)
.validates(
    validate::cluster::priority_class,
    validate::cluster::priority_class_update,
)
.prints(
    columns::cluster::PRIORITY_CLASS,
    columns::cluster::priority_class,
)
.defaults(config::priority_class)
.cluster()
.short(&["pc"])];

pub(super) const COORDINATION: &[Resource] = &[row!(
    "coordination",
    "coordination.k8s.io",
    "v1",
    "Lease",
    "lease",
    "leases"
)
.validates(validate::cluster::lease, no_update_errors)
.prints(columns::network::LEASE, columns::network::lease)];

pub(super) const NODE: &[Resource] = &[row!(
    "node",
    "node.k8s.io",
    "v1",
    "RuntimeClass",
    "runtimeclass",
    "runtimeclasses"
)
.validates(
    validate::cluster::runtime_class,
    validate::cluster::runtime_class_update,
)
.prints(
    columns::cluster::RUNTIME_CLASS,
    columns::cluster::runtime_class,
)
.cluster()];

pub(super) const RESOURCE: &[Resource] = &[
    row!(
        "resource",
        "resource.k8s.io",
        "v1",
        "DeviceClass",
        "deviceclass",
        "deviceclasses"
    )
    .validates(validate::claims::class, no_update_errors)
    .cluster()
    .with_generation(),
    row!(
        "resource",
        "resource.k8s.io",
        "v1",
        "DeviceTaintRule",
        "devicetaintrule",
        "devicetaintrules"
    )
    .defaults(config::device_taint_rule)
    .validates(validate::slices::taint_rule, no_update_errors)
    .validates_status(validate::slices::taint_rule_status)
    .prepares(strategy::empty_status, unchanged_update)
    .cluster()
    .with_status()
    .with_generation(),
    row!(
        "resource",
        "resource.k8s.io",
        "v1",
        "ResourceClaim",
        "resourceclaim",
        "resourceclaims"
    )
    .validates(no_errors, validate::spec_update)
    .validates_create(validate::claims::claim)
    .validates_status(validate::claim_status::claim_status)
    .prints(
        columns::storage::RESOURCE_CLAIM,
        columns::storage::resource_claim,
    )
    .defaults(config::resource_claim)
    .prepares(strategy::empty_status, unchanged_update)
    .with_status(),
    row!(
        "resource",
        "resource.k8s.io",
        "v1",
        "ResourceClaimTemplate",
        "resourceclaimtemplate",
        "resourceclaimtemplates"
    )
    .validates(no_errors, validate::spec_update)
    .validates_create(validate::claims::template)
    .defaults(config::resource_claim),
    row!(
        "resource",
        "resource.k8s.io",
        "v1",
        "ResourceSlice",
        "resourceslice",
        "resourceslices"
    )
    .defaults(config::resource_slice)
    .validates(validate::slices::slice, validate::slices::slice_update)
    .prints(
        columns::storage::RESOURCE_SLICE,
        columns::storage::resource_slice,
    )
    .cluster()
    .with_generation()
    .selectable(&["spec.nodeName", "spec.driver"]),
];

pub(super) const FLOW_CONTROL: &[Resource] = &[
    row!(
        "flowcontrol",
        "flowcontrol.apiserver.k8s.io",
        "v1",
        "FlowSchema",
        "flowschema",
        "flowschemas"
    )
    .validates(validate::flow::schema, no_update_errors)
    .prints(columns::network::FLOW_SCHEMA, columns::network::flow_schema)
    .defaults(config::flow_schema)
    .prepares(strategy::empty_status, unchanged_update)
    .cluster()
    .with_status()
    .with_generation(),
    row!(
        "flowcontrol",
        "flowcontrol.apiserver.k8s.io",
        "v1",
        "PriorityLevelConfiguration",
        "prioritylevelconfiguration",
        "prioritylevelconfigurations"
    )
    .validates(validate::flow::level, no_update_errors)
    .prints(
        columns::network::PRIORITY_LEVEL,
        columns::network::priority_level,
    )
    .defaults(config::priority_level)
    .prepares(strategy::empty_status, unchanged_update)
    .cluster()
    .with_status()
    .with_generation(),
];
