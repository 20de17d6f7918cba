//! Manifests, indexes and image configurations as registries serve them, and the choice of a
//! platform. Pure: bytes in, checked structures out; unknown fields are ignored because the
//! raw bytes are what is kept.

use crate::Digest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// A manifest's bytes at most; what registries themselves allow.
pub(crate) const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// Layers of an image, or manifests of an index, at most.
const ENTRIES_MAX: usize = 2048;

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// The CNCF Wasm artifact's configuration.
pub(crate) const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";
/// The CNCF Wasm artifact's layer.
pub(crate) const WASM_LAYER: &str = "application/wasm";
/// Spin's locked application.
pub(crate) const SPIN_APPLICATION: &str = "application/vnd.fermyon.spin.application.v1+config";
/// Spin's static files.
pub(crate) const SPIN_DATA: &str = "application/vnd.wasm.content.layer.v1+data";
/// Spin's static files, bundled.
pub(crate) const SPIN_BUNDLE: &str = "application/vnd.wasm.content.bundle.v1.tar+gzip";

/// All that a registry may answer with.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// A reference to content by digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length, bytes.
    pub size: u64,
    /// What it runs on, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Annotations.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "null_is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
}

/// What an image runs on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`, `wasip2`, `wasi`, …
    #[serde(default)]
    pub os: String,
    /// `amd64`, `wasm`, …
    #[serde(default)]
    pub architecture: String,
    /// `v7`, `v8`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// This machine as a container platform.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: None,
        }
    }

    /// Whether it names WebAssembly in one of the spellings in use.
    pub fn is_wasm(&self) -> bool {
        matches!(self.architecture.as_str(), "wasm" | "wasm32" | "wasm64")
            || matches!(self.os.as_str(), "wasi" | "wasip1" | "wasip2" | "wasip3")
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// What a registry has under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Document {
    /// One image or artifact.
    Manifest(Manifest),
    /// One image for several platforms.
    Index(Vec<Descriptor>),
}

/// An image or artifact.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) layers: Vec<Descriptor>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

/// Why a manifest can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or not of a manifest's shape.
    #[error("parse manifest: {0}")]
    Parse(#[from] serde_json::Error),
    /// A kind that is not supported, such as the first schema.
    #[error("read manifest: media type {0:?} is not supported")]
    MediaType(String),
    /// Both an index and a manifest, or neither: readers would disagree about it.
    #[error("read manifest: it is not clearly a manifest or an index")]
    Ambiguous,
    /// More entries than any honest image has.
    #[error("read manifest: {0} entries are too many")]
    TooMany(usize),
    /// Nothing in the index runs here.
    #[error("no match for platform in manifest: it offers {0}")]
    NoPlatform(String),
}

impl Document {
    /// Parses what a registry served. `content_type` counts only where the document itself
    /// does not state a media type.
    pub(crate) fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Probe<'a> {
            #[serde(borrow, default)]
            media_type: Option<std::borrow::Cow<'a, str>>,
            #[serde(borrow, default)]
            manifests: Option<&'a serde_json::value::RawValue>,
            #[serde(borrow, default)]
            layers: Option<&'a serde_json::value::RawValue>,
            #[serde(borrow, default)]
            config: Option<&'a serde_json::value::RawValue>,
            #[serde(borrow, default)]
            fs_layers: Option<&'a serde_json::value::RawValue>,
        }
        #[derive(Deserialize)]
        struct Index {
            manifests: Vec<Descriptor>,
        }

        let probe: Probe<'_> = serde_json::from_slice(bytes)?;
        let is_index = probe.manifests.is_some();
        let is_manifest = probe.layers.is_some() || probe.config.is_some();
        let stated = probe.media_type.as_deref().or(content_type.filter(|t| {
            // Static file servers say these of anything.
            !matches!(
                *t,
                "application/json" | "application/octet-stream" | "text/plain"
            )
        }));
        if probe.fs_layers.is_some() {
            return Err(ManifestError::MediaType("manifest schema 1".to_owned()));
        }
        match stated.map(|t| t.split(';').next().unwrap_or(t).trim()) {
            _ if is_index == is_manifest => return Err(ManifestError::Ambiguous),
            Some(OCI_INDEX | DOCKER_LIST) if !is_index => return Err(ManifestError::Ambiguous),
            Some(OCI_MANIFEST | DOCKER_MANIFEST) if !is_manifest => {
                return Err(ManifestError::Ambiguous);
            }
            Some(OCI_INDEX | DOCKER_LIST | OCI_MANIFEST | DOCKER_MANIFEST) | None => {}
            Some(other) => return Err(ManifestError::MediaType(other.chars().take(160).collect())),
        }
        let (document, entries) = if is_index {
            let index: Index = serde_json::from_slice(bytes)?;
            let entries = index.manifests.len();
            (Self::Index(index.manifests), entries)
        } else {
            let manifest: Manifest = serde_json::from_slice(bytes)?;
            let entries = manifest.layers.len();
            (Self::Manifest(manifest), entries)
        };
        if entries > ENTRIES_MAX {
            return Err(ManifestError::TooMany(entries));
        }
        Ok(document)
    }
}

/// The index's entry to run: the wanted platform, else WebAssembly, else this machine's.
pub(crate) fn pick<'a>(
    entries: &'a [Descriptor],
    wanted: Option<&Platform>,
) -> Result<&'a Descriptor, ManifestError> {
    let rank = |entry: &Descriptor| -> Option<u8> {
        let Some(platform) = &entry.platform else {
            // An entry without platform is a candidate of last resort, if it is an image.
            return (wanted.is_none() && is_image(&entry.media_type)).then_some(9);
        };
        if let Some(wanted) = wanted {
            let same = platform.os == wanted.os
                && platform.architecture == wanted.architecture
                && (wanted.variant.is_none() || wanted.variant == platform.variant);
            return same.then_some(0);
        }
        if platform.is_wasm() {
            return Some(match platform.os.as_str() {
                "wasip2" => 0,
                "wasip1" | "wasi" => 1,
                _ => 2,
            });
        }
        let host = Platform::host();
        let same = platform.os == host.os && platform.architecture == host.architecture;
        same.then_some(3)
    };
    entries
        .iter()
        .filter_map(|entry| Some((rank(entry)?, entry)))
        // The first of equals, as other clients pick.
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, entry)| entry)
        .ok_or_else(|| {
            let offers: Vec<_> = entries
                .iter()
                .filter_map(|entry| entry.platform.as_ref())
                .take(16)
                .map(Platform::to_string)
                .collect();
            ManifestError::NoPlatform(if offers.is_empty() {
                "none".to_owned()
            } else {
                offers.join(", ")
            })
        })
}

fn is_image(media_type: &str) -> bool {
    matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST | "")
}

/// Whether a configuration of this type is an image's (and not an artifact's own).
pub(crate) fn is_image_config(media_type: &str) -> bool {
    matches!(media_type, OCI_CONFIG | DOCKER_CONFIG | "")
}

/// Whether layers of this type are one Wasm file.
pub(crate) fn is_wasm_layer(media_type: &str) -> bool {
    matches!(
        media_type,
        WASM_LAYER
            | "application/vnd.wasm.content.layer.v1+wasm"
            | "application/vnd.module.wasm.content.layer.v1+wasm"
            | "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm"
            | "application/vnd.bytecodealliance.component.layer.v0+wasm"
    )
}

/// Whether layers of this type are archives of files.
pub(crate) fn is_tar_layer(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.oci.image.layer.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.diff.tar")
}

/// What an image's configuration says about running it. Empty for plain artifacts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// `ENTRYPOINT`.
    pub entrypoint: Vec<String>,
    /// `CMD`.
    pub cmd: Vec<String>,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// `WORKDIR`.
    pub working_dir: Option<String>,
    /// `USER`.
    pub user: Option<String>,
    /// `STOPSIGNAL`.
    pub stop_signal: Option<String>,
    /// `EXPOSE`: `8080/tcp`.
    pub exposed_ports: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// What it was made for.
    pub platform: Option<Platform>,
}

impl ImageConfig {
    /// Parses an image configuration; artifact configurations give an empty one.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct Raw {
            os: Option<String>,
            architecture: Option<String>,
            variant: Option<String>,
            config: Option<Run>,
        }
        #[derive(Deserialize, Default)]
        #[serde(default, rename_all = "PascalCase")]
        struct Run {
            entrypoint: Option<Vec<String>>,
            cmd: Option<Vec<String>>,
            env: Option<Vec<String>>,
            working_dir: Option<String>,
            user: Option<String>,
            stop_signal: Option<String>,
            exposed_ports: Option<BTreeMap<String, serde::de::IgnoredAny>>,
            labels: Option<BTreeMap<String, String>>,
        }
        let raw: Raw = serde_json::from_slice(bytes)?;
        let run = raw.config.unwrap_or_default();
        let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
        Ok(Self {
            entrypoint: run.entrypoint.unwrap_or_default(),
            cmd: run.cmd.unwrap_or_default(),
            env: run.env.unwrap_or_default(),
            working_dir: filled(run.working_dir),
            user: filled(run.user),
            stop_signal: filled(run.stop_signal),
            exposed_ports: run.exposed_ports.unwrap_or_default().into_keys().collect(),
            labels: run.labels.unwrap_or_default(),
            platform: filled(raw.architecture).map(|architecture| Platform {
                os: raw.os.unwrap_or_default(),
                architecture,
                variant: raw.variant,
            }),
        })
    }
}

/// Go writers say `null` for an empty list or map.
fn null_is_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(os: &str, architecture: &str) -> Descriptor {
        Descriptor {
            media_type: OCI_MANIFEST.to_owned(),
            digest: Digest::sha256(format!("{os}/{architecture}").as_bytes()),
            size: 1,
            platform: Some(Platform {
                os: os.to_owned(),
                architecture: architecture.to_owned(),
                variant: None,
            }),
            annotations: BTreeMap::new(),
        }
    }

    #[test]
    fn picks_wasm_first_then_this_machine() {
        let host = Platform::host();
        let index = [
            entry("unknown", "unknown"),
            entry(&host.os, &host.architecture),
            entry("wasi", "wasm32"),
            entry("wasip2", "wasm"),
        ];
        assert_eq!(pick(&index, None).unwrap(), &index[3]);
        assert_eq!(pick(&index[..3], None).unwrap(), &index[2]);
        assert_eq!(pick(&index[..2], None).unwrap(), &index[1]);
        assert_eq!(pick(&index, Some(&host)).unwrap(), &index[1]);
        assert_eq!(
            pick(&index[..1], None).unwrap_err().to_string(),
            "no match for platform in manifest: it offers unknown/unknown"
        );
        let mut bare = entry("", "");
        bare.platform = None;
        assert_eq!(pick(&[bare.clone()], None).unwrap(), &bare);
        assert!(pick(&[bare], Some(&host)).is_err());
    }

    #[test]
    fn a_document_that_is_two_things_is_refused() {
        let digest = Digest::sha256(b"");
        let config = format!(r#""config":{{"digest":"{digest}","size":2}}"#);
        let parse = |text: &str| Document::parse(text.as_bytes(), None);
        assert!(parse(&format!("{{{config},\"layers\":null}}")).is_ok());
        for bad in [
            "{}".to_owned(),
            "[]".to_owned(),
            format!(r#"{{{config},"manifests":[]}}"#),
            format!(r#"{{{config},"mediaType":"{OCI_INDEX}"}}"#),
            format!(r#"{{"manifests":[],"mediaType":"{OCI_MANIFEST}"}}"#),
            r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(),
            format!(r#"{{{config},"mediaType":"text/html"}}"#),
            r#"{"manifests":[{"digest":"sha256:x","size":1}]}"#.to_owned(),
            format!(r#"{{"manifests":[{{"digest":"{digest}","size":-1}}]}}"#),
        ] {
            assert!(parse(&bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = Document::parse(&bytes, Some("x"));
            let _ = ImageConfig::parse(&bytes);
        }

        #[test]
        fn never_panics_on_json(
            text in r#"\{("(manifests|layers|config|mediaType|os|architecture)":(null|\[\]|\{\}|1|"x"|\[\{"digest":"sha256:"\}\]),?){0,4}\}"#
        ) {
            let _ = Document::parse(text.as_bytes(), None);
            let _ = ImageConfig::parse(text.as_bytes());
        }
    }
}
