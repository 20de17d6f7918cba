//! The kustomization file: its fields, and those that are refused by name.

use super::{BuildError, documents};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Names of the file, in the order in which they are looked for.
pub const FILE_NAMES: &[&str] = &["kustomization.yaml", "kustomization.yml", "Kustomization"];

/// Fields that kustomize has and this build has not.
const UNSUPPORTED: &[&str] = &[
    "configurations",
    "crds",
    "generators",
    "helmChartInflationGenerator",
    "helmCharts",
    "helmGlobals",
    "openapi",
    "transformers",
    "validators",
    "vars",
];

/// What a kustomization file says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct File {
    /// Where it lies.
    #[serde(skip)]
    pub(crate) path: String,
    api_version: Option<String>,
    kind: Option<String>,
    #[serde(rename = "metadata")]
    _metadata: Option<Value>,
    /// The order of the output means nothing to who applies it.
    #[serde(rename = "sortOptions")]
    _sort_options: Option<Value>,
    /// Only adds notes to the output.
    #[serde(rename = "buildMetadata")]
    _build_metadata: Option<Vec<String>>,
    pub(crate) resources: Vec<String>,
    /// An older word for folders among `resources`.
    bases: Vec<String>,
    pub(crate) components: Vec<String>,
    pub(crate) namespace: Option<String>,
    pub(crate) name_prefix: Option<String>,
    pub(crate) name_suffix: Option<String>,
    pub(crate) labels: Vec<Labels>,
    pub(crate) common_labels: BTreeMap<String, String>,
    pub(crate) common_annotations: BTreeMap<String, String>,
    pub(crate) images: Vec<Image>,
    #[serde(rename = "imageTags")]
    image_tags: Vec<Image>,
    pub(crate) replicas: Vec<Replicas>,
    pub(crate) patches: Vec<Patch>,
    pub(crate) patches_strategic_merge: Vec<String>,
    #[serde(rename = "patchesJson6902")]
    pub(crate) patches_json6902: Vec<Patch>,
    pub(crate) replacements: Vec<ReplacementOrPath>,
    pub(crate) config_map_generator: Vec<Generator>,
    pub(crate) secret_generator: Vec<Generator>,
    pub(crate) generator_options: Option<GeneratorOptions>,
}

/// One entry of `labels`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Labels {
    pub(crate) pairs: BTreeMap<String, String>,
    pub(crate) include_selectors: bool,
    pub(crate) include_templates: bool,
    pub(crate) fields: Vec<FieldSpec>,
}

/// Where to write, in kinds that match.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct FieldSpec {
    pub(crate) group: Option<String>,
    pub(crate) version: Option<String>,
    pub(crate) kind: Option<String>,
    pub(crate) path: String,
    pub(crate) create: bool,
}

/// One entry of `images`.
#[derive(Clone, Debug, Default, Deserialize, serde::Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Image {
    /// The image as objects name it, without tag and digest.
    pub name: String,
    /// The name to put in its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_name: Option<String>,
    /// The tag to put.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_tag: Option<String>,
    /// What to append to the tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag_suffix: Option<String>,
    /// The digest to put.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// One entry of `replicas`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Replicas {
    pub(crate) name: String,
    pub(crate) count: i64,
}

/// One entry of `patches` or `patchesJson6902`.
#[derive(Clone, Debug, Default, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Patch {
    /// A file with the patch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The patch itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patch: Option<String>,
    /// What it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<Selector>,
    /// `allowNameChange` and `allowKindChange`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, bool>,
}

/// Picks objects; group, version, kind, name and namespace are regular expressions.
#[derive(Clone, Debug, Default, Deserialize, serde::Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Selector {
    /// API group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// API version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Label selector.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_selector: Option<String>,
    /// Selector of annotations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub annotation_selector: Option<String>,
}

/// One entry of `replacements`, or the file that holds some.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ReplacementOrPath {
    pub(crate) path: Option<String>,
    pub(crate) source: Option<ReplacementSource>,
    #[serde(rename = "sourceValue")]
    pub(crate) source_value: Option<String>,
    pub(crate) targets: Vec<ReplacementTarget>,
}

/// Where a replacement takes its value.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct ReplacementSource {
    pub(crate) group: Option<String>,
    pub(crate) version: Option<String>,
    pub(crate) kind: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) namespace: Option<String>,
    pub(crate) field_path: Option<String>,
    pub(crate) options: ReplacementOptions,
}

/// Where a replacement puts its value.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct ReplacementTarget {
    pub(crate) select: Option<Selector>,
    pub(crate) reject: Vec<Selector>,
    pub(crate) field_paths: Vec<String>,
    pub(crate) options: ReplacementOptions,
}

/// Parts of a value, and whether a field is made.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ReplacementOptions {
    pub(crate) delimiter: Option<String>,
    pub(crate) index: i64,
    pub(crate) create: bool,
    /// How bytes are coded; refused.
    pub(crate) encoding: Option<String>,
}

/// One entry of `configMapGenerator` or `secretGenerator`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Generator {
    pub(crate) name: String,
    pub(crate) namespace: Option<String>,
    pub(crate) behavior: Option<String>,
    #[serde(rename = "type")]
    pub(crate) secret_type: Option<String>,
    pub(crate) literals: Vec<String>,
    pub(crate) files: Vec<String>,
    pub(crate) envs: Vec<String>,
    pub(crate) env: Option<String>,
    pub(crate) options: Option<GeneratorOptions>,
}

/// `generatorOptions`, and `options` of one generator.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct GeneratorOptions {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) disable_name_suffix_hash: bool,
    pub(crate) immutable: bool,
}

impl File {
    pub(crate) fn parse(path: &str, bytes: &[u8]) -> Result<Self, BuildError> {
        let fail = |why: &str| BuildError::Read {
            path: path.to_owned(),
            why: why.to_owned(),
        };
        let mut all = documents(path, bytes)?;
        match (all.pop(), all.is_empty()) {
            (Some(value), true) => Self::from_value(path, value),
            (None, _) => Err(fail("it is empty")),
            (Some(_), false) => Err(fail("it has more than one document")),
        }
    }

    pub(crate) fn from_value(path: &str, value: Value) -> Result<Self, BuildError> {
        let fail = |why: String| BuildError::Read {
            path: path.to_owned(),
            why,
        };
        let Value::Object(mut fields) = value else {
            return Err(fail("it is no map".to_owned()));
        };
        drop_nulls(&mut fields);
        for field in UNSUPPORTED {
            if fields.remove(*field).is_some_and(|v| !is_empty(&v)) {
                return Err(BuildError::Unsupported {
                    path: path.to_owned(),
                    field: (*field).to_owned(),
                });
            }
        }
        let mut file: Self =
            serde_json::from_value(Value::Object(fields)).map_err(|e| fail(e.to_string()))?;
        path.clone_into(&mut file.path);
        file.resources.append(&mut file.bases);
        file.images.append(&mut file.image_tags);
        let kind = file.kind.as_deref().unwrap_or("Kustomization");
        if !matches!(kind, "Kustomization" | "Component") {
            return Err(fail(format!(
                "kind should be Kustomization or Component, not {kind}"
            )));
        }
        let version = file.api_version.as_deref();
        if version.is_some_and(|v| !v.starts_with("kustomize.config.k8s.io/")) {
            return Err(fail(format!(
                "apiVersion should be kustomize.config.k8s.io/v1beta1, not {}",
                version.unwrap_or_default()
            )));
        }
        Ok(file)
    }

    pub(crate) fn is_component(&self) -> bool {
        self.kind.as_deref() == Some("Component")
    }
}

/// A field without a value is as good as absent, as YAML files often have it.
fn drop_nulls(fields: &mut Map<String, Value>) {
    fields.retain(|_, value| !value.is_null());
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}
