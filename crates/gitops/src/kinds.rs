//! The kinds, as far as they are read here: Flux's `source.toolkit.fluxcd.io/v1` and
//! `kustomize.toolkit.fluxcd.io/v1`. Their definitions lie in `crds/`.
//!
//! Fields that are known but not done are in the definitions too, and refused in a condition
//! that names them.

use crate::kustomize::{Image, Patch};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::NamespaceResourceScope;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

/// Group of sources.
pub const SOURCE_GROUP: &str = "source.toolkit.fluxcd.io";
/// Group of Kustomizations.
pub const KUSTOMIZE_GROUP: &str = "kustomize.toolkit.fluxcd.io";
/// Annotation that asks for a reconcile now; its value is any token.
pub const REQUESTED_AT: &str = "reconcile.fluxcd.io/requestedAt";

/// Definitions of the kinds, as YAML.
pub fn crds() -> &'static [&'static str] {
    &[
        include_str!("../crds/gitrepositories.yaml"),
        include_str!("../crds/ocirepositories.yaml"),
        include_str!("../crds/kustomizations.yaml"),
    ]
}

/// What is common to the kinds.
pub trait Followed: client::informer::Kind {
    /// Whether it is told to rest.
    fn suspended(&self) -> bool;
    /// Its status as it stands.
    fn raw_status(&self) -> &Value;
}

macro_rules! kind {
    ($(#[$about:meta])* $name:ident, $spec:ident, $group:expr, $plural:literal) => {
        $(#[$about])*
        #[derive(Clone, Debug, Default, Deserialize, Serialize)]
        pub struct $name {
            /// Name, labels and the rest.
            pub metadata: ObjectMeta,
            /// What is wanted.
            #[serde(default)]
            pub spec: $spec,
            /// What was found, as it is written.
            #[serde(default)]
            pub status: Value,
        }

        impl kube::Resource for $name {
            type DynamicType = ();
            type Scope = NamespaceResourceScope;
            fn kind(_: &()) -> Cow<'_, str> {
                stringify!($name).into()
            }
            fn group(_: &()) -> Cow<'_, str> {
                $group.into()
            }
            fn version(_: &()) -> Cow<'_, str> {
                "v1".into()
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

        impl Followed for $name {
            fn suspended(&self) -> bool {
                self.spec.suspend
            }
            fn raw_status(&self) -> &Value {
                &self.status
            }
        }
    };
}

kind!(
    /// A Git repository to follow.
    GitRepository,
    GitRepositorySpec,
    SOURCE_GROUP,
    "gitrepositories"
);
kind!(
    /// An OCI artifact to follow.
    OCIRepository,
    OciRepositorySpec,
    SOURCE_GROUP,
    "ocirepositories"
);
kind!(
    /// A folder of a source that is built and applied.
    Kustomization,
    KustomizationSpec,
    KUSTOMIZE_GROUP,
    "kustomizations"
);

/// What a GitRepository asks for.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GitRepositorySpec {
    /// `https://`, `ssh://`, `user@host:path`, or a path of this machine.
    pub url: String,
    /// How often it is looked at.
    pub interval: GoDuration,
    /// How long one look may take.
    pub timeout: Option<GoDuration>,
    /// Which revision; branch `master` when not stated.
    #[serde(rename = "ref")]
    pub reference: Option<GitReference>,
    /// Secret with credentials.
    pub secret_ref: Option<LocalReference>,
    /// Whose signatures a commit must bear.
    pub verify: Option<GitVerification>,
    /// Files to leave out, as in `.gitignore`.
    pub ignore: Option<String>,
    /// Rest.
    pub suspend: bool,
    /// Refused when set.
    pub recurse_submodules: bool,
    /// Refused when set.
    pub include: Vec<Value>,
    /// Refused when set.
    pub proxy_secret_ref: Option<LocalReference>,
}

/// A revision: the most exact field counts.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct GitReference {
    /// Branch.
    pub branch: Option<String>,
    /// Tag.
    pub tag: Option<String>,
    /// The greatest tag in this range.
    pub semver: Option<String>,
    /// Full name, such as `refs/pull/1/head`.
    pub name: Option<String>,
    /// Commit, found on `branch` where that is stated.
    pub commit: Option<String>,
}

/// Whose signatures count.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GitVerification {
    /// `HEAD`, `Tag` or `TagAndHEAD`.
    pub mode: Option<String>,
    /// Secret with public keys.
    pub secret_ref: LocalReference,
}

/// What an OCIRepository asks for.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OciRepositorySpec {
    /// `oci://HOST/PATH`.
    pub url: String,
    /// How often it is looked at.
    pub interval: GoDuration,
    /// How long one look may take.
    pub timeout: Option<GoDuration>,
    /// Which revision; tag `latest` when not stated.
    #[serde(rename = "ref")]
    pub reference: Option<OciReference>,
    /// Which layer; the first when not stated.
    pub layer_selector: Option<LayerSelector>,
    /// Secret of type `kubernetes.io/dockerconfigjson`.
    pub secret_ref: Option<LocalReference>,
    /// Files to leave out, as in `.gitignore`.
    pub ignore: Option<String>,
    /// Plain HTTP.
    pub insecure: bool,
    /// Rest.
    pub suspend: bool,
    /// Refused when set.
    pub verify: Option<Value>,
}

/// A revision: the most exact field counts.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct OciReference {
    /// Digest of the manifest.
    pub digest: Option<String>,
    /// The greatest tag in this range.
    pub semver: Option<String>,
    /// Tag.
    pub tag: Option<String>,
}

/// Which layer of an artifact.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LayerSelector {
    /// The first of this type.
    pub media_type: Option<String>,
    /// `extract` or `copy`; only the first is done.
    pub operation: Option<String>,
}

/// What a Kustomization asks for.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KustomizationSpec {
    /// Where the files come from.
    pub source_ref: SourceReference,
    /// How often it is applied again.
    pub interval: GoDuration,
    /// How soon after a failure; `interval` when not stated.
    pub retry_interval: Option<GoDuration>,
    /// How long a reconcile may take; `interval` when not stated.
    pub timeout: Option<GoDuration>,
    /// Folder of the source.
    pub path: String,
    /// Delete what is no longer there.
    pub prune: bool,
    /// Wait for all objects.
    pub wait: bool,
    /// Wait for these.
    pub health_checks: Vec<ObjectReference>,
    /// Kustomizations that must be ready before.
    pub depends_on: Vec<DependencyReference>,
    /// Rest.
    pub suspend: bool,
    /// Namespace of all objects.
    pub target_namespace: Option<String>,
    /// Put before names.
    pub name_prefix: Option<String>,
    /// Put after names.
    pub name_suffix: Option<String>,
    /// Labels and annotations of all objects.
    pub common_metadata: Option<CommonMetadata>,
    /// Images to change.
    pub images: Vec<Image>,
    /// Patches.
    pub patches: Vec<Patch>,
    /// Components.
    pub components: Vec<String>,
    /// Variables.
    pub post_build: Option<PostBuild>,
    /// Create anew what can't be changed.
    pub force: bool,
    /// Act as this account.
    pub service_account_name: Option<String>,
    /// `MirrorPrune`, `Delete`, `WaitForTermination` or `Orphan`.
    pub deletion_policy: Option<String>,
    /// Refused when set.
    pub decryption: Option<Value>,
    /// Refused when set.
    pub kube_config: Option<Value>,
    /// Refused when set.
    pub health_check_exprs: Vec<Value>,
}

/// Names a source.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(default)]
pub struct SourceReference {
    /// `GitRepository` or `OCIRepository`.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Namespace; the Kustomization's when not stated.
    pub namespace: Option<String>,
}

/// Names an object of the same namespace.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct LocalReference {
    /// Name.
    pub name: String,
}

/// Names a Kustomization.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct DependencyReference {
    /// Name.
    pub name: String,
    /// Namespace; the same when not stated.
    pub namespace: Option<String>,
}

/// Names any object.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectReference {
    /// API version.
    pub api_version: Option<String>,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: Option<String>,
}

/// Labels and annotations of all objects.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct CommonMetadata {
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
}

/// Variables of a build.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PostBuild {
    /// Stated here; they count most.
    pub substitute: BTreeMap<String, String>,
    /// ConfigMaps and Secrets; later ones count more.
    pub substitute_from: Vec<SubstituteReference>,
}

/// Names a ConfigMap or Secret with variables.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct SubstituteReference {
    /// `ConfigMap` or `Secret`.
    pub kind: String,
    /// Name.
    pub name: String,
    /// May be absent.
    pub optional: bool,
}

/// A duration as Go writes it: `1h2m3.5s`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GoDuration(pub Duration);

impl GoDuration {
    /// Reads one.
    pub fn parse(text: &str) -> Option<Self> {
        let mut rest = text.trim();
        let mut sum = 0.0_f64;
        if rest.is_empty() {
            return None;
        }
        while !rest.is_empty() {
            let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
            let number: f64 = rest[..end].parse().ok()?;
            let unit_end = rest[end..]
                .find(|c: char| c.is_ascii_digit() || c == '.')
                .map_or(rest.len(), |at| end + at);
            let unit = match &rest[end..unit_end] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
            sum += number * unit;
            rest = &rest[unit_end..];
        }
        Duration::try_from_secs_f64(sum).ok().map(Self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text)
            .ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no duration")))
    }
}

impl Serialize for GoDuration {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{}s", self.0.as_secs_f64()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_go() {
        for (text, ms) in [
            ("1h2m3s", Some(3_723_000)),
            ("90s", Some(90_000)),
            ("1.5m", Some(90_000)),
            ("250ms", Some(250)),
            ("0s", Some(0)),
            ("", None),
            ("5", None),
            ("5x", None),
            ("-1s", None),
        ] {
            let parsed = GoDuration::parse(text).map(|d| d.0.as_millis());
            assert_eq!(parsed, ms, "{text}");
        }
    }

    #[test]
    fn definitions_define_the_kinds() {
        let names: Vec<String> = crds()
            .iter()
            .flat_map(|text| serde_saphyr::from_multiple::<Value>(text).unwrap())
            .map(|crd| {
                assert_eq!(crd["kind"], "CustomResourceDefinition");
                assert_eq!(crd["spec"]["versions"][0]["storage"], true);
                crd["metadata"]["name"].as_str().unwrap().to_owned()
            })
            .collect();
        assert_eq!(
            names,
            [
                "gitrepositories.source.toolkit.fluxcd.io",
                "ocirepositories.source.toolkit.fluxcd.io",
                "kustomizations.kustomize.toolkit.fluxcd.io",
            ]
        );
    }
}
