//! The two kinds of the Multi-Cluster Services API (KEP-1645, v1beta1) and the names that go
//! with them.

use k8s_openapi::api::core::v1::SessionAffinityConfig;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// The API group.
pub const GROUP: &str = "multicluster.x-k8s.io";
/// Its version.
pub const VERSION: &str = "v1beta1";
/// Label of a slice: the exported Service.
pub const SERVICE_LABEL: &str = "multicluster.kubernetes.io/service-name";
/// Label of a slice: the site that the endpoints are of.
pub const CLUSTER_LABEL: &str = "multicluster.kubernetes.io/source-cluster";
/// Annotation of a Service: its site's share of requests among sites as near; 0 for none
/// unless nobody else has any.
pub const WEIGHT_ANNOTATION: &str = "salp.dev/site-weight";

/// Makes a Service known to all sites.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceExport {
    /// Name and namespace are those of the Service.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What goes with it.
    #[serde(default)]
    pub spec: ServiceExportSpec,
    /// What has become of it.
    #[serde(default)]
    pub status: ServiceExportStatus,
}

/// What goes with an export.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceExportSpec {
    /// Labels of the imports.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub exported_labels: BTreeMap<String, String>,
    /// Annotations of the imports.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub exported_annotations: BTreeMap<String, String>,
}

/// What has become of an export.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceExportStatus {
    /// Valid, Ready, Conflict.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// A Service that sites export.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceImport {
    /// Name and namespace are those of the exports.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What the exports come to.
    #[serde(default)]
    pub spec: ServiceImportSpec,
    /// Who exports it.
    #[serde(default)]
    pub status: ServiceImportStatus,
}

/// What the exports come to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceImportSpec {
    /// Its ports.
    #[serde(default)]
    pub ports: Vec<Port>,
    /// Its addresses here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<String>,
    /// Whether it has addresses.
    #[serde(rename = "type", default)]
    pub type_: ImportType,
    /// As a Service has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_affinity: Option<String>,
    /// As a Service has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_affinity_config: Option<SessionAffinityConfig>,
    /// As a Service has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub internal_traffic_policy: Option<String>,
    /// As a Service has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic_distribution: Option<String>,
}

/// Whether an import has an address of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImportType {
    /// It has.
    #[default]
    ClusterSetIP,
    /// Its pods are addressed directly.
    Headless,
}

/// A port of an export or import.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// May be empty when it is the only one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// TCP, UDP or SCTP.
    #[serde(default = "tcp")]
    pub protocol: String,
    /// As a Service has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
    /// The number.
    pub port: i32,
}

pub(crate) fn tcp() -> String {
    "TCP".to_owned()
}

/// Who exports a Service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceImportStatus {
    /// Whether there are slices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint_slice_objects: Option<String>,
    /// The sites.
    #[serde(default)]
    pub clusters: Vec<ClusterStatus>,
    /// Ready, Reachable.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// A site that exports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Its name.
    pub cluster: String,
}

macro_rules! resource {
    ($type:ty, $kind:literal, $plural:literal) => {
        impl kube::Resource for $type {
            type DynamicType = ();
            type Scope = k8s_openapi::NamespaceResourceScope;

            fn kind(_: &()) -> Cow<'_, str> {
                $kind.into()
            }

            fn group(_: &()) -> Cow<'_, str> {
                GROUP.into()
            }

            fn version(_: &()) -> Cow<'_, str> {
                VERSION.into()
            }

            fn plural(_: &()) -> Cow<'_, str> {
                $plural.into()
            }

            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

resource!(ServiceExport, "ServiceExport", "serviceexports");
resource!(ServiceImport, "ServiceImport", "serviceimports");
