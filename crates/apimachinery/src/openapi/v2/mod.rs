//! The OpenAPI v2 document (Swagger 2.0) of everything that is served, put together from the
//! v3 documents of its group-versions, one after another: [`Document`]. What others serve is
//! merged into it ([`part()`]).
//!
//! It says less than they do: no `oneOf`, `anyOf`, `not` or `nullable`; what could be null or
//! has unknown fields is published without a type, as upstream does, so that clients which
//! check objects by it refuse none that is valid (`ToStructuralOpenAPIV2` of
//! `k8s.io/apiextensions-apiserver`).

mod part;

pub use part::part;

use super::gnostic;
use serde_json::{Map, Value, json};
use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

/// How the document is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// JSON.
    Json,
    /// Messages of `openapi.v2` (gnostic), which Go clients ask for.
    Protobuf,
}

/// A document that grows by a group-version at a time: only its text is kept.
#[derive(Debug)]
pub struct Document {
    format: Format,
    paths: Vec<u8>,
    definitions: Vec<u8>,
    /// Names of definitions that are there, with the hash of each: versions share some.
    defined: HashMap<String, u64>,
    /// Paths that are there.
    routed: HashSet<String>,
}

const METHODS: [&str; 7] = ["get", "put", "post", "delete", "options", "head", "patch"];
const V3_REFERENCE: &str = "#/components/schemas/";

impl Document {
    /// Without any path.
    #[must_use]
    pub fn new(format: Format) -> Self {
        Self {
            format,
            paths: Vec::new(),
            definitions: Vec::new(),
            defined: HashMap::new(),
            routed: HashSet::new(),
        }
    }

    /// Adds all that a v3 document has.
    pub fn add(&mut self, mut v3: Value) {
        if let Value::Object(paths) = v3["paths"].take() {
            for (path, item) in paths {
                self.path(path, &path_item(item));
            }
        }
        if let Value::Object(schemas) = v3["components"]["schemas"].take() {
            for (name, mut definition) in schemas {
                if !self.defined.contains_key(&name) {
                    schema(&mut definition);
                    self.definition(name, &definition);
                }
            }
        }
    }

    /// Merges a [`part()`] of another v2 document. A definition that has another's name and
    /// differs gets a name of its own; a path that is there already stays.
    pub fn merge(&mut self, mut part: Value) {
        let new = part::renamed(&mut part, |name, definition| {
            let known = self.defined.get(name)?;
            Some(*known == hash(definition))
        });
        for (name, definition, own) in new {
            self.definition_as(name, &definition, own);
        }
        if let Value::Object(paths) = part["paths"].take() {
            for (path, item) in paths {
                self.path(path, &item);
            }
        }
    }

    fn path(&mut self, path: String, item: &Value) {
        if self.routed.contains(&path) {
            return;
        }
        match self.format {
            Format::Json => member(&mut self.paths, &path, item),
            Format::Protobuf => gnostic::path(&mut self.paths, &path, item),
        }
        self.routed.insert(path);
    }

    fn definition(&mut self, name: String, definition: &Value) {
        self.definition_as(name, definition, hash(definition));
    }

    /// The same with the hash of what it was before its references were renamed.
    fn definition_as(&mut self, name: String, definition: &Value, own: u64) {
        match self.format {
            Format::Json => member(&mut self.definitions, &name, definition),
            Format::Protobuf => gnostic::definition(&mut self.definitions, &name, definition),
        }
        self.defined.insert(name, own);
    }

    /// The whole document; `version` is the API's own.
    #[must_use]
    pub fn finish(self, version: &str) -> Vec<u8> {
        let head = json!({
            "swagger": "2.0",
            "info": {"title": "Kubernetes", "version": version},
            "securityDefinitions": {"BearerToken": {
                "type": "apiKey", "name": "authorization", "in": "header",
                "description": "Bearer Token authentication",
            }},
            "security": [{"BearerToken": []}],
        });
        match self.format {
            Format::Json => {
                let mut out = head.to_string().into_bytes();
                out.pop();
                for (name, members) in [("paths", self.paths), ("definitions", self.definitions)] {
                    out.extend_from_slice(format!(",\"{name}\":{{").as_bytes());
                    out.extend(members);
                    out.push(b'}');
                }
                out.push(b'}');
                out
            }
            // Parts of a message may stand one after another: readers put them together.
            Format::Protobuf => {
                let mut out = gnostic::head(&head);
                out.extend(self.paths);
                out.extend(self.definitions);
                out
            }
        }
    }
}

/// Of what a definition says; not of whose it is, which every server says of its own.
fn hash(definition: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut rest = definition.clone();
    if let Some(rest) = rest.as_object_mut() {
        rest.remove("x-kubernetes-group-version-kind");
    }
    rest.hash(&mut hasher);
    hasher.finish()
}

fn member(out: &mut Vec<u8>, name: &str, value: &Value) {
    if !out.is_empty() {
        out.push(b',');
    }
    let text = format!("{}:{value}", Value::from(name));
    out.extend_from_slice(text.as_bytes());
}

fn path_item(mut item: Value) -> Value {
    parameters(&mut item);
    for method in METHODS {
        if let Some(operation) = item.get_mut(method) {
            parameters(operation);
            body_and_answers(operation);
        }
    }
    item
}

/// A parameter's schema stands in the parameter itself.
fn parameters(of: &mut Value) {
    for parameter in of["parameters"].as_array_mut().into_iter().flatten() {
        if let Some(Value::Object(schema)) =
            parameter.as_object_mut().and_then(|p| p.remove("schema"))
        {
            for (key, value) in schema {
                parameter[key] = value;
            }
        }
    }
    if of["parameters"].is_null()
        && let Some(of) = of.as_object_mut()
    {
        of.remove("parameters");
    }
}

fn body_and_answers(operation: &mut Value) {
    operation["schemes"] = json!(["https"]);
    operation["produces"] = json!(["application/json", "application/yaml"]);
    operation["consumes"] = json!(["*/*"]);
    let body = operation
        .as_object_mut()
        .and_then(|o| o.remove("requestBody"));
    if let Some(mut body) = body
        && let Value::Object(content) = body["content"].take()
    {
        operation["consumes"] = content.keys().map(|k| Value::from(&**k)).collect();
        let mut shape = content
            .into_iter()
            .next()
            .map(|(_, mut media)| media["schema"].take())
            .unwrap_or_default();
        schema(&mut shape);
        let mut parameter = json!({"in": "body", "name": "body", "schema": shape});
        if body["required"] == true {
            parameter["required"] = true.into();
        }
        match operation["parameters"].as_array_mut() {
            Some(all) => all.push(parameter),
            None => operation["parameters"] = json!([parameter]),
        }
    }
    let answers = operation["responses"].as_object_mut();
    for answer in answers.into_iter().flat_map(Map::values_mut) {
        let content = answer.as_object_mut().and_then(|a| a.remove("content"));
        if let Some(mut content) = content {
            let mut shape = content["application/json"]["schema"].take();
            schema(&mut shape);
            answer["schema"] = shape;
        }
    }
}

/// A schema as v2 has it, with all that it contains.
fn schema(value: &mut Value) {
    let Some(object) = value.as_object_mut() else {
        return;
    };
    // Beside a reference v2 may have a description.
    if let Some(Value::Array(all)) = object.get_mut("allOf")
        && let [one] = all.as_mut_slice()
        && one.get("$ref").is_some()
    {
        let reference = one["$ref"].take();
        object.remove("allOf");
        object.insert("$ref".to_owned(), reference);
    }
    if let Some(Value::String(reference)) = object.get_mut("$ref") {
        *reference = reference.replacen(V3_REFERENCE, "#/definitions/", 1);
    }
    let alternatives = object.remove("oneOf");
    object.remove("anyOf");
    object.remove("not");
    let mut alternatives = alternatives.iter().flat_map(|a| a.as_array()).flatten();
    if alternatives.any(|a| a["type"] == "string") {
        // Quantities and such, which may be numbers too.
        object.insert("type".to_owned(), "string".into());
    }
    let null = object.remove("nullable") == Some(Value::Bool(true));
    let unknown = object.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
    if null || unknown {
        for key in ["type", "items", "properties"] {
            object.remove(key);
        }
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = object.get_mut(key) {
            schema(inner);
        }
    }
    if let Some(Value::Array(all)) = object.get_mut("allOf") {
        all.iter_mut().for_each(schema);
    }
    if let Some(Value::Object(properties)) = object.get_mut("properties") {
        properties.values_mut().for_each(schema);
    }
}
