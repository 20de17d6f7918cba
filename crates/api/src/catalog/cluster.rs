//! Rows of the groups that configure a cluster: access, storage, admission,
//! extension, scheduling, nodes, devices, flow control.

use super::*;
use crate::defaults::cluster as config;
use crate::strategy;

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
    .defaults(config::api_service)
    .prepares(strategy::empty_status, unchanged_update)
}
.cluster()
.with_status()];

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
    .cluster(),
    row!(
        "storage",
        "storage.k8s.io",
        "v1",
        "CSIStorageCapacity",
        "csistoragecapacity",
        "csistoragecapacities"
    ),
    row!(
        "storage",
        "storage.k8s.io",
        "v1",
        "StorageClass",
        "storageclass",
        "storageclasses"
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
)];

pub(super) const NODE: &[Resource] = &[row!(
    "node",
    "node.k8s.io",
    "v1",
    "RuntimeClass",
    "runtimeclass",
    "runtimeclasses"
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
    .defaults(config::resource_claim),
    row!(
        "resource",
        "resource.k8s.io",
        "v1",
        "ResourceSlice",
        "resourceslice",
        "resourceslices"
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
    .defaults(config::priority_level)
    .prepares(strategy::empty_status, unchanged_update)
    .cluster()
    .with_status()
    .with_generation(),
];
