//! One definition and its versions, parsed from its object; schemas are compiled when a
//! request first needs them, for most definitions on a server are never written to.

use super::column::Column;
use crate::cache::Object;
use crate::webhook::Endpoint;
use apimachinery::structural::{self, Compiled, Rules};
use apimachinery::{FieldError, Status};
use serde_json::Value;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, OnceLock};

/// Names that are accepted for a resource.
#[derive(Debug)]
pub(crate) struct Names {
    pub(crate) group: Box<str>,
    pub(crate) plural: Box<str>,
    pub(crate) singular: Box<str>,
    pub(crate) kind: Box<str>,
    pub(crate) list_kind: Box<str>,
    pub(crate) short_names: Box<[Box<str>]>,
    pub(crate) categories: Box<[Box<str>]>,
    pub(crate) namespaced: bool,
    /// Version that objects are stored in.
    pub(crate) storage: Box<str>,
}

/// A definition.
#[derive(Debug)]
pub(crate) struct Definition {
    /// `plural.group`.
    pub(crate) name: Box<str>,
    pub(crate) names: Arc<Names>,
    pub(crate) established: bool,
    /// Its names are its own.
    pub(super) accepted: bool,
    pub(crate) deleting: bool,
    versions: Box<[Arc<Custom>]>,
}

/// One version of a custom resource.
#[derive(Debug)]
pub(crate) struct Custom {
    pub(crate) names: Arc<Names>,
    pub(crate) version: Box<str>,
    pub(crate) served: bool,
    /// Has `/status`.
    pub(crate) status: bool,
    pub(crate) scale: Option<ScalePaths>,
    pub(crate) columns: Box<[Column]>,
    /// Paths without the leading dot.
    pub(crate) selectable: Box<[Box<str>]>,
    pub(crate) deprecation: Option<Box<str>>,
    /// Nothing is created any more.
    pub(crate) deleting: bool,
    /// Objects of this revision or an older one were written under another schema.
    pub(crate) since: u64,
    /// Who turns objects into other versions, if not the server.
    pub(crate) conversion: Option<Arc<Endpoint>>,
    /// Index in `spec.versions` of the definition.
    index: usize,
    /// The definition.
    source: Arc<Object>,
    shape: Arc<Shape>,
}

/// Where `/scale` finds things, without a leading dot.
#[derive(Debug)]
pub(crate) struct ScalePaths {
    pub(crate) spec_replicas: Box<str>,
    pub(crate) status_replicas: Box<str>,
    pub(crate) selector: Option<Box<str>>,
}

/// The compiled schema; kept over changes of the definition that do not concern it.
#[derive(Debug)]
struct Shape {
    hash: u64,
    since: u64,
    compiled: OnceLock<Compiled>,
    rules: OnceLock<Rules>,
}

impl Definition {
    /// Reads a definition; `before` is the one that it replaces.
    pub(super) fn parse(
        value: &Value,
        object: &Arc<Object>,
        before: Option<&Definition>,
    ) -> Option<Self> {
        let (spec, status) = (&value["spec"], &value["status"]);
        let list = spec["versions"].as_array()?;
        let storage = list.iter().find(|v| v["storage"] == true)?["name"].as_str()?;
        // Until names are accepted, those that are asked for.
        let accepted = &status["acceptedNames"];
        let names = if accepted["plural"].as_str().is_some_and(|p| !p.is_empty()) {
            accepted
        } else {
            &spec["names"]
        };
        let text =
            |v: &Value| -> Option<Box<str>> { v.as_str().filter(|s| !s.is_empty()).map(Box::from) };
        let kind = text(&names["kind"])?;
        let names = Arc::new(Names {
            group: text(&spec["group"])?,
            plural: text(&spec["names"]["plural"])?,
            singular: text(&names["singular"]).unwrap_or_else(|| kind.to_lowercase().into()),
            list_kind: text(&names["listKind"]).unwrap_or_else(|| format!("{kind}List").into()),
            kind,
            short_names: texts(&names["shortNames"]),
            categories: texts(&names["categories"]),
            namespaced: spec["scope"] == "Namespaced",
            storage: storage.into(),
        });
        let deleting = !value["metadata"]["deletionTimestamp"].is_null();
        let conversion = &spec["conversion"];
        let conversion = (conversion["strategy"] == "Webhook")
            .then(|| Arc::new(Endpoint::parse(&conversion["webhook"]["clientConfig"])));
        let versions = list
            .iter()
            .enumerate()
            .filter_map(|(i, v)| {
                let old = before.and_then(|b| b.versions.iter().find(|o| v["name"] == *o.version));
                let mut made = Custom::parse(v, i, &names, object, deleting, old)?;
                made.conversion = conversion.clone();
                Some(Arc::new(made))
            })
            .collect();
        Some(Self {
            name: value["metadata"]["name"].as_str()?.into(),
            established: is_true(status, "Established"),
            accepted: is_true(status, "NamesAccepted"),
            deleting,
            names,
            versions,
        })
    }

    /// A version that is served.
    pub(super) fn served(&self, version: &str) -> Option<Arc<Custom>> {
        self.all_served().find(|c| *c.version == *version)
    }

    /// All versions that are served.
    pub(crate) fn all_served(&self) -> impl Iterator<Item = Arc<Custom>> {
        let versions = self
            .versions
            .iter()
            .filter(|c| self.established && c.served);
        versions.cloned()
    }

    /// The version that objects are stored in, served or not.
    pub(super) fn stored(&self) -> Option<Arc<Custom>> {
        let mut versions = self.versions.iter();
        versions.find(|c| c.version == self.names.storage).cloned()
    }
}

impl Custom {
    fn parse(
        v: &Value,
        index: usize,
        names: &Arc<Names>,
        source: &Arc<Object>,
        deleting: bool,
        before: Option<&Arc<Custom>>,
    ) -> Option<Self> {
        let version: Box<str> = v["name"].as_str()?.into();
        let mut hasher = DefaultHasher::new();
        v["schema"].to_string().hash(&mut hasher);
        names.kind.hash(&mut hasher);
        names.storage.hash(&mut hasher);
        let hash = hasher.finish();
        let shape = match before.map(|b| &b.shape).filter(|s| s.hash == hash) {
            Some(same) => same.clone(),
            None => Arc::new(Shape {
                hash,
                since: source.revision,
                compiled: OnceLock::new(),
                rules: OnceLock::new(),
            }),
        };
        let path = |v: &Value| -> Option<Box<str>> {
            let text = v.as_str()?.trim_start_matches('.');
            (!text.is_empty()).then(|| text.into())
        };
        let subresources = &v["subresources"];
        let scale = subresources["scale"].as_object().and_then(|s| {
            Some(ScalePaths {
                spec_replicas: path(s.get("specReplicasPath")?)?,
                status_replicas: path(s.get("statusReplicasPath")?)?,
                selector: s.get("labelSelectorPath").and_then(path),
            })
        });
        let deprecation = (v["deprecated"] == true).then(|| {
            v["deprecationWarning"].as_str().map_or_else(
                || format!("{}/{version} {} is deprecated", names.group, names.kind).into(),
                Box::from,
            )
        });
        Some(Self {
            names: names.clone(),
            served: v["served"] == true,
            status: subresources["status"].is_object(),
            scale,
            columns: Column::of_version(v),
            selectable: v["selectableFields"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|f| path(&f["jsonPath"]))
                .collect(),
            deprecation,
            deleting,
            since: shape.since,
            conversion: None,
            index,
            source: source.clone(),
            shape,
            version,
        })
    }

    /// Differs whenever what is published of this version does.
    pub(crate) fn fingerprint(&self) -> String {
        let scale = self.scale.is_some();
        format!("{:x} {} {scale}", self.shape.hash, self.status)
    }

    /// Whether objects are stored in this very version.
    pub(crate) fn is_stored(&self) -> bool {
        self.version == self.names.storage
    }

    /// `apiVersion` of stored objects.
    pub(crate) fn stored_api_version(&self) -> String {
        format!("{}/{}", self.names.group, self.names.storage)
    }

    /// `openAPIV3Schema` of this version, parsed anew at each call.
    pub(crate) fn open_api(&self) -> Value {
        let mut value = self.source.value();
        value["spec"]["versions"][self.index]["schema"]["openAPIV3Schema"].take()
    }

    /// Name of the type in OpenAPI: the group from right to left, version and kind.
    pub(crate) fn type_name(&self) -> String {
        let mut parts: Vec<&str> = self.names.group.split('.').rev().collect();
        parts.extend([&*self.version, &*self.names.kind]);
        parts.join(".")
    }

    /// The schema, compiled at the first call.
    pub(crate) fn compiled(&self) -> Result<&Compiled, Status> {
        if let Some(done) = self.shape.compiled.get() {
            return Ok(done);
        }
        let open_api = self.open_api();
        if !open_api.is_object() {
            return Err(Status::internal(format!(
                "version {} of {}.{} has no schema",
                self.version, self.names.plural, self.names.group
            )));
        }
        let compile = || structural::compile(&open_api, &self.type_name());
        Ok(self.shape.compiled.get_or_init(compile))
    }

    /// Fills defaults in.
    pub(crate) fn default(&self, value: &mut Value) {
        if let Ok(c) = self.compiled() {
            structural::default(&c.schema, c.root, value);
        }
    }

    /// Checks an object, against the one that it replaces if any. Rules are asked when the
    /// object has the form that they reckon with.
    pub(crate) fn validate(&self, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let Ok(c) = self.compiled() else {
            return Vec::new();
        };
        let mut errors = structural::validate(&c.schema, c.root, new, old);
        let rules = (self.shape.rules).get_or_init(|| Rules::compile(&self.open_api()));
        if rules.is_empty() {
            return errors;
        }
        if errors.iter().any(|e| e.reason != "FieldValueInvalid") {
            let text = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
            errors.push(FieldError::invalid("<nil>", &Value::Null, text));
        } else {
            errors.extend(rules.validate(new, old));
        }
        errors
    }
}

/// Whether a condition is `True`.
pub(super) fn is_true(status: &Value, kind: &str) -> bool {
    status["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|c| c["type"] == kind && c["status"] == "True")
}

fn texts(v: &Value) -> Box<[Box<str>]> {
    v.as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(Box::from)
        .collect()
}
