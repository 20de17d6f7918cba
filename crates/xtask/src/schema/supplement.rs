//! What no published source states, checked by hand against the upstream type definitions.

/// Scalars of the two groups that the Go program does not carry whose Go field is a pointer:
/// a zero on the wire is a value there, not absence.
pub(crate) const POINTERS: &[(&str, &[&str])] = &[
    (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionVersion",
        &["deprecationWarning"],
    ),
    (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceSubresourceScale",
        &["labelSelectorPath"],
    ),
    (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps",
        &[
            "$ref",
            "maxItems",
            "maxLength",
            "maxProperties",
            "maximum",
            "minItems",
            "minLength",
            "minProperties",
            "minimum",
            "multipleOf",
            "x-kubernetes-list-type",
            "x-kubernetes-map-type",
            "x-kubernetes-preserve-unknown-fields",
        ],
    ),
    (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.ServiceReference",
        &["path", "port"],
    ),
    (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.ValidationRule",
        &["optionalOldSelf", "reason"],
    ),
    (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.WebhookClientConfig",
        &["url"],
    ),
    (
        "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.ServiceReference",
        &["port"],
    ),
];

/// Kinds without a published JSON schema: (type, group, version). The kind is the type's name.
pub(crate) const KINDS: &[(&str, &str, &str)] = &[
    (
        "io.k8s.api.admission.v1.AdmissionReview",
        "admission.k8s.io",
        "v1",
    ),
    (
        "io.k8s.api.apidiscovery.v2.APIGroupDiscoveryList",
        "apidiscovery.k8s.io",
        "v2",
    ),
    ("io.k8s.api.core.v1.NodeProxyOptions", "", "v1"),
    ("io.k8s.api.core.v1.PodAttachOptions", "", "v1"),
    ("io.k8s.api.core.v1.PodExecOptions", "", "v1"),
    ("io.k8s.api.core.v1.PodLogOptions", "", "v1"),
    ("io.k8s.api.core.v1.PodPortForwardOptions", "", "v1"),
    ("io.k8s.api.core.v1.PodProxyOptions", "", "v1"),
    ("io.k8s.api.core.v1.RangeAllocation", "", "v1"),
    ("io.k8s.api.core.v1.SerializedReference", "", "v1"),
    ("io.k8s.api.core.v1.ServiceProxyOptions", "", "v1"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.List", "", "v1"),
    (
        "io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadata",
        "meta.k8s.io",
        "v1",
    ),
    (
        "io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadataList",
        "meta.k8s.io",
        "v1",
    ),
    (
        "io.k8s.apimachinery.pkg.apis.meta.v1.Table",
        "meta.k8s.io",
        "v1",
    ),
];

/// Kinds that exist in every group and version.
pub(crate) const EVERYWHERE: &[&str] = &[
    "io.k8s.apimachinery.pkg.apis.meta.v1.CreateOptions",
    "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
    "io.k8s.apimachinery.pkg.apis.meta.v1.GetOptions",
    "io.k8s.apimachinery.pkg.apis.meta.v1.ListOptions",
    "io.k8s.apimachinery.pkg.apis.meta.v1.PatchOptions",
    "io.k8s.apimachinery.pkg.apis.meta.v1.UpdateOptions",
    "io.k8s.apimachinery.pkg.apis.meta.v1.WatchEvent",
];

/// Types that are neither kinds nor reached from one.
pub(crate) const EXTRA: &[&str] = &[
    "io.k8s.apimachinery.pkg.apis.meta.v1.APIGroup",
    "io.k8s.apimachinery.pkg.apis.meta.v1.APIGroupList",
    "io.k8s.apimachinery.pkg.apis.meta.v1.APIResourceList",
    "io.k8s.apimachinery.pkg.apis.meta.v1.APIVersions",
    "io.k8s.apimachinery.pkg.version.Info",
];
