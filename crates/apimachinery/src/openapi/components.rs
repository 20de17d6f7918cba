//! Component schemas: the types that paths refer to, and all that these refer to.

use super::CustomKind;
use crate::gvk::{GroupVersion, GroupVersionKind};
use crate::schema::{Descriptions, Field, ListKind, Scalar, Schema, Struct, Type, TypeId, Union};
use serde_json::{Map, Value, json};
use std::collections::{BTreeSet, HashMap};

/// Package of the types that every group shares.
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// Collects what is referred to.
pub(super) struct Components<'a> {
    schema: &'a Schema,
    docs: Option<&'a Descriptions>,
    kinds: HashMap<TypeId, Vec<&'a GroupVersionKind>>,
    gv: &'a GroupVersion,
    wanted: Vec<TypeId>,
    /// Types of scalars and bodies that are components of their own.
    named: BTreeSet<&'static str>,
    done: Map<String, Value>,
    /// Names of custom kinds' schemas, which are done.
    custom: HashMap<GroupVersionKind, String>,
}

impl<'a> Components<'a> {
    pub(super) fn new(
        schema: &'a Schema,
        docs: Option<&'a Descriptions>,
        gv: &'a GroupVersion,
    ) -> Self {
        let mut kinds: HashMap<TypeId, Vec<&GroupVersionKind>> = HashMap::new();
        for (gvk, id) in schema.kinds() {
            kinds.entry(id).or_default().push(gvk);
        }
        Self {
            schema,
            docs,
            kinds,
            gv,
            wanted: Vec::new(),
            named: BTreeSet::new(),
            done: Map::new(),
            custom: HashMap::new(),
        }
    }

    /// Adds a custom kind and its list.
    pub(super) fn define(&mut self, custom: CustomKind) {
        let CustomKind {
            kind,
            list_kind,
            name,
            mut schema,
        } = custom;
        if !schema.is_object() {
            schema = json!({"type": "object"});
        }
        let meta = |c: &mut Self, name: &str| match c.schema.by_name(&format!("{META}.{name}")) {
            Some(id) => c.reference(id),
            None => json!({"type": "object"}),
        };
        let told = |gv: &GroupVersion, kind: &str| json!([{"group": gv.group, "kind": kind, "version": gv.version}]);
        let (object_meta, list_meta) = (meta(self, "ObjectMeta"), meta(self, "ListMeta"));
        let text = |what: &str| json!({"type": "string", "description": what});
        let version = text("The version of the schema that this object is written in.");
        let kind_text = text("The kind of object.");
        if !schema["properties"].is_object() {
            schema["properties"] = json!({});
        }
        schema["properties"]["apiVersion"] = version.clone();
        schema["properties"]["kind"] = kind_text.clone();
        schema["properties"]["metadata"] = json!({
            "allOf": [object_meta], "description": "Metadata that every object has.",
        });
        schema["x-kubernetes-group-version-kind"] = told(self.gv, &kind);
        let list_name = match name.rsplit_once('.') {
            Some((package, _)) => format!("{package}.{list_kind}"),
            None => list_kind.clone(),
        };
        let list = json!({
            "type": "object", "required": ["items"],
            "description": format!("A list of {kind} objects."),
            "properties": {
                "apiVersion": version, "kind": kind_text, "metadata": list_meta,
                "items": {"type": "array", "items": {"$ref": format!("#/components/schemas/{name}")}},
            },
            "x-kubernetes-group-version-kind": told(self.gv, &list_kind),
        });
        self.custom
            .insert(self.gv.kind(format!("{kind}List")), list_name.clone());
        self.custom.insert(self.gv.kind(kind), name.clone());
        self.done.insert(name, schema);
        self.done.insert(list_name, list);
    }

    /// A reference to a kind's schema; any object if the schema does not know the kind.
    pub(super) fn kind(&mut self, gvk: &GroupVersionKind) -> Value {
        if let Some(name) = self.custom.get(gvk) {
            return json!({"$ref": format!("#/components/schemas/{name}")});
        }
        match self.schema.kind(gvk) {
            Some(id) => self.reference(id),
            None => json!({"type": "object"}),
        }
    }

    /// Whether a definition defines the kind.
    pub(super) fn is_custom(&self, gvk: &GroupVersionKind) -> bool {
        self.custom.contains_key(gvk)
    }

    /// A reference to the schema of PATCH bodies.
    pub(super) fn patch(&mut self) -> Value {
        self.named("io.k8s.apimachinery.pkg.apis.meta.v1.Patch")
    }

    /// All schemas that were referred to, and those that they refer to.
    pub(super) fn finish(mut self) -> Map<String, Value> {
        while let Some(id) = self.wanted.pop() {
            let Type::Struct(def) = self.schema.get(id) else {
                continue;
            };
            if self.done.contains_key(&*def.name) {
                continue;
            }
            // A place first, so that a type that contains itself comes to an end.
            self.done.insert(def.name.to_string(), Value::Null);
            let value = self.describe_struct(id, def);
            self.done.insert(def.name.to_string(), value);
        }
        for name in std::mem::take(&mut self.named) {
            self.done.insert(name.to_owned(), named_schema(name));
        }
        self.done
    }

    fn reference(&mut self, id: TypeId) -> Value {
        match self.schema.get(id) {
            Type::Struct(def) => {
                self.wanted.push(id);
                json!({"$ref": format!("#/components/schemas/{}", def.name)})
            }
            _ => self.inline(id),
        }
    }

    fn named(&mut self, name: &'static str) -> Value {
        self.named.insert(name);
        json!({"$ref": format!("#/components/schemas/{name}")})
    }

    fn describe_struct(&mut self, id: TypeId, def: &Struct) -> Value {
        let mut out = Map::new();
        out.insert("type".to_owned(), "object".into());
        if let Some(docs) = self.docs {
            describe(&mut out, docs.of(&def.name));
        }
        let mut required = Vec::new();
        let mut properties = Map::new();
        for (i, field) in def.fields.iter().enumerate() {
            if field.required {
                required.push(Value::String(field.name.to_string()));
            }
            let description = self.docs.map_or("", |d| d.of_field(&def.name, i));
            properties.insert(field.name.to_string(), self.property(field, description));
        }
        if !properties.is_empty() {
            out.insert("properties".to_owned(), properties.into());
        }
        if !required.is_empty() {
            out.insert("required".to_owned(), required.into());
        }
        if def.atomic {
            out.insert("x-kubernetes-map-type".to_owned(), "atomic".into());
        }
        if def.preserve_unknown {
            out.insert(
                "x-kubernetes-preserve-unknown-fields".to_owned(),
                true.into(),
            );
        }
        let kinds = self.kinds_of(id, def);
        if !kinds.is_empty() {
            out.insert("x-kubernetes-group-version-kind".to_owned(), kinds.into());
        }
        Value::Object(out)
    }

    fn kinds_of(&self, id: TypeId, def: &Struct) -> Vec<Value> {
        let own = |group: &str, version: &str, kind: &str| json!({"group": group, "kind": kind, "version": version});
        if let Some(kinds) = self.kinds.get(&id) {
            return kinds
                .iter()
                .map(|k| own(&k.group, &k.version, &k.kind))
                .collect();
        }
        // Kinds of every group are shown as of this one.
        let everywhere = self.gv.kind(def.short_name());
        if def.name.starts_with(META) && self.schema.kind(&everywhere) == Some(id) {
            return vec![own(&self.gv.group, &self.gv.version, &everywhere.kind)];
        }
        Vec::new()
    }

    fn property(&mut self, field: &Field, description: &str) -> Value {
        let mut schema = match self.inline(field.ty) {
            // Beside a $ref nothing counts.
            reference if reference.get("$ref").is_some() => {
                let plain = description.is_empty() && !field.patch.retain_keys && !field.atomic;
                if plain {
                    return reference;
                }
                json!({"allOf": [reference]})
            }
            other => other,
        };
        let Some(out) = schema.as_object_mut() else {
            return schema;
        };
        describe(out, description);
        if let Some(default) = &field.default {
            out.insert("default".to_owned(), default.clone());
        }
        if !field.values.is_empty() {
            let values: Vec<Value> = field.values.iter().map(|v| (&**v).into()).collect();
            out.insert("enum".to_owned(), values.into());
        }
        let strategy = match (field.patch.merge, field.patch.retain_keys) {
            (true, true) => "merge,retainKeys",
            (true, false) => "merge",
            (false, true) => "retainKeys",
            (false, false) => "",
        };
        if !strategy.is_empty() {
            out.insert("x-kubernetes-patch-strategy".to_owned(), strategy.into());
        }
        if field.atomic {
            out.insert("x-kubernetes-map-type".to_owned(), "atomic".into());
        }
        schema
    }

    /// The schema of a type where it is used: a reference for what has a name.
    fn inline(&mut self, id: TypeId) -> Value {
        match self.schema.get(id) {
            Type::Struct(_) => self.reference(id),
            Type::Map(value) => {
                json!({"type": "object", "additionalProperties": self.inline(*value)})
            }
            Type::Any => match self.schema.union(id) {
                None => json!({}),
                Some(union) => self.union(union),
            },
            Type::List(list) => {
                let mut out = json!({"type": "array", "items": self.inline(list.item)});
                let kind = match &list.kind {
                    ListKind::Atomic => "atomic",
                    ListKind::Set => "set",
                    ListKind::Map(keys) => {
                        out["x-kubernetes-list-map-keys"] =
                            keys.iter().map(|k| Value::from(&**k)).collect();
                        "map"
                    }
                };
                out["x-kubernetes-list-type"] = kind.into();
                if let Some(key) = &list.patch_merge_key {
                    out["x-kubernetes-patch-merge-key"] = (&**key).into();
                }
                out
            }
            Type::Scalar(s) => match s {
                Scalar::String => json!({"type": "string"}),
                Scalar::Bool => json!({"type": "boolean"}),
                Scalar::Int32 => json!({"type": "integer", "format": "int32"}),
                Scalar::Int64 => json!({"type": "integer", "format": "int64"}),
                Scalar::Double => json!({"type": "number", "format": "double"}),
                Scalar::Bytes => json!({"type": "string", "format": "byte"}),
                Scalar::Quantity => self.named("io.k8s.apimachinery.pkg.api.resource.Quantity"),
                Scalar::IntOrString => {
                    self.named("io.k8s.apimachinery.pkg.util.intstr.IntOrString")
                }
                Scalar::Time => self.named("io.k8s.apimachinery.pkg.apis.meta.v1.Time"),
                Scalar::MicroTime => self.named("io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime"),
                Scalar::Duration => self.named("io.k8s.apimachinery.pkg.apis.meta.v1.Duration"),
            },
        }
    }

    fn union(&mut self, union: Union) -> Value {
        let name = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";
        let Some(props) = self.schema.by_name(name) else {
            return json!({});
        };
        let props = self.reference(props);
        let other = match union {
            Union::SchemaOrArray => json!({"type": "array", "items": props}),
            Union::SchemaOrBool => json!({"type": "boolean"}),
            Union::SchemaOrStrings => json!({"type": "array", "items": {"type": "string"}}),
        };
        json!({"oneOf": [props, other]})
    }
}

fn describe(out: &mut Map<String, Value>, text: &str) {
    if !text.is_empty() {
        out.insert("description".to_owned(), text.into());
    }
}

fn named_schema(name: &str) -> Value {
    match name.rsplit('.').next() {
        Some("Quantity") => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        Some("IntOrString") => {
            json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
        }
        Some("Time" | "MicroTime") => json!({"type": "string", "format": "date-time"}),
        Some("Patch") => json!({
            "type": "object", "description": "The body of a PATCH request, by its media type.",
        }),
        _ => json!({"type": "string"}),
    }
}
