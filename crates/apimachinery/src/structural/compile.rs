//! From `openAPIV3Schema` to a [`Schema`].
//!
//! It takes what [`check`](fn@super::check) accepts; what that refuses compiles to something
//! harmless. Descriptions are left where they are.

use super::{OBJECT_META, ROOT_FIELDS, builtin};
use crate::schema::{
    Field, Format, JsonType, List, ListKind, Pattern, Rule, Scalar, Schema, Struct, Type, TypeId,
};
use serde_json::{Map, Number, Value};
use std::collections::HashMap;

/// A compiled schema and the type of its objects.
#[derive(Debug)]
pub struct Compiled {
    /// Lies over the built-in schema.
    pub schema: Schema,
    /// The object's type.
    pub root: TypeId,
}

/// Compiles the schema of one version; `name` is the OpenAPI name of its type, such as
/// `io.example.v1.CronTab`.
pub fn compile(open_api: &Value, name: &str) -> Compiled {
    let mut compiler = Compiler {
        schema: Schema::over(builtin()),
        plain: HashMap::new(),
    };
    let root = compiler.root(open_api, name);
    compiler.schema.shrink();
    Compiled {
        schema: compiler.schema,
        root,
    }
}

struct Compiler {
    schema: Schema,
    /// Types without parts and rules, by form: they are shared.
    plain: HashMap<&'static str, TypeId>,
}

impl Compiler {
    fn root(&mut self, node: &Value, name: &str) -> TypeId {
        let mut fields = self.fields(node);
        let metadata = &node["properties"]["metadata"];
        self.root_fields(&mut fields);
        let ty = self.schema.add(Type::Struct(Struct {
            name: name.into(),
            fields: sorted(fields),
            atomic: false,
            preserve_unknown: flag(node, "x-kubernetes-preserve-unknown-fields"),
        }));
        let mut rules = rules_of(node, false);
        // What a definition may say of metadata: patterns of its names.
        let of_metadata: Vec<Rule> = metadata["properties"]
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(k, _)| matches!(k.as_str(), "name" | "generateName"))
            .map(|(k, v)| Rule::Property(k.as_str().into(), rules_of(v, false).into()))
            .collect();
        if !of_metadata.is_empty() {
            rules.push(Rule::Property("metadata".into(), of_metadata.into()));
        }
        self.schema.add_rules(ty, rules);
        ty
    }

    /// The fields that every object has.
    fn root_fields(&mut self, fields: &mut Vec<Field>) {
        fields.retain(|f| !ROOT_FIELDS.contains(&&*f.name));
        let string = self.plain("string", Type::Scalar(Scalar::String));
        let meta = builtin().by_name(OBJECT_META);
        for (name, ty) in [
            ("apiVersion", Some(string)),
            ("kind", Some(string)),
            ("metadata", meta),
        ] {
            fields.push(Field {
                name: name.into(),
                ty: ty.unwrap_or(string),
                ..Field::default()
            });
        }
    }

    fn fields(&mut self, node: &Value) -> Vec<Field> {
        let properties = node["properties"].as_object();
        let mut out = Vec::with_capacity(properties.map_or(0, Map::len));
        for (name, property) in properties.into_iter().flatten() {
            out.push(Field {
                name: name.as_str().into(),
                ty: self.node(property),
                atomic: property["x-kubernetes-map-type"] == "atomic",
                default: property.get("default").filter(|d| !d.is_null()).cloned(),
                ..Field::default()
            });
        }
        out
    }

    fn node(&mut self, node: &Value) -> TypeId {
        let mut rules = rules_of(node, false);
        let (form, ty) = self.form(node, &mut rules);
        match form {
            Some(form) if rules.is_empty() => self.plain(form, ty),
            _ => {
                let id = self.schema.add(ty);
                self.schema.add_rules(id, rules);
                id
            }
        }
    }

    /// The type of a node; with a name when it has no parts.
    fn form(&mut self, node: &Value, rules: &mut Vec<Rule>) -> (Option<&'static str>, Type) {
        let scalar = |name, s| (Some(name), Type::Scalar(s));
        if flag(node, "x-kubernetes-int-or-string") {
            return scalar("int-or-string", Scalar::IntOrString);
        }
        match JsonType::parse(text(node, "type")) {
            Some(JsonType::String) => scalar("string", Scalar::String),
            Some(JsonType::Integer) => scalar("integer", Scalar::Int64),
            Some(JsonType::Number) => scalar("number", Scalar::Double),
            Some(JsonType::Boolean) => scalar("boolean", Scalar::Bool),
            Some(JsonType::Array) => (None, self.list(node, rules)),
            Some(JsonType::Object) => (None, self.object(node, rules)),
            None => (Some("any"), Type::Any),
        }
    }

    fn object(&mut self, node: &Value, rules: &mut Vec<Rule>) -> Type {
        let embedded = flag(node, "x-kubernetes-embedded-resource");
        match &node["additionalProperties"] {
            values @ Value::Object(_) => return Type::Map(self.node(values)),
            Value::Bool(true) => return Type::Map(self.plain("any", Type::Any)),
            _ => {}
        }
        let mut fields = self.fields(node);
        if embedded {
            self.root_fields(&mut fields);
            rules.push(Rule::Embedded);
        }
        Type::Struct(Struct {
            name: "".into(),
            fields: sorted(fields),
            atomic: node["x-kubernetes-map-type"] == "atomic",
            preserve_unknown: flag(node, "x-kubernetes-preserve-unknown-fields"),
        })
    }

    fn list(&mut self, node: &Value, rules: &mut Vec<Rule>) -> Type {
        let item = self.node(&node["items"]);
        let keys = || -> Box<[Box<str>]> {
            texts(&node["x-kubernetes-list-map-keys"])
                .map(Box::from)
                .collect()
        };
        let kind = match text(node, "x-kubernetes-list-type") {
            "set" => {
                rules.push(Rule::UniqueItems);
                ListKind::Set
            }
            "map" => {
                rules.push(Rule::UniqueKeys(keys()));
                ListKind::Map(keys())
            }
            _ => ListKind::Atomic,
        };
        Type::List(List {
            item,
            kind,
            patch_merge_key: None,
        })
    }

    fn plain(&mut self, form: &'static str, ty: Type) -> TypeId {
        match self.plain.get(form) {
            Some(id) => *id,
            None => {
                let id = self.schema.add(ty);
                self.plain.insert(form, id);
                id
            }
        }
    }
}

/// The rules of one node; inside a logical keyword also those of its parts.
pub(super) fn rules_of(node: &Value, nested: bool) -> Vec<Rule> {
    let mut out = Vec::new();
    let Some(map) = node.as_object() else {
        return out;
    };
    let exclusive = |name: &str| map.get(name).and_then(Value::as_bool).unwrap_or(false);
    for (keyword, v) in map {
        let number = || v.as_number().cloned();
        let count = || v.as_u64();
        let all = || -> Option<Box<[Box<[Rule]>]>> {
            let list = v.as_array()?;
            Some(list.iter().map(|n| rules_of(n, true).into()).collect())
        };
        let rule = match keyword.as_str() {
            "nullable" if v == true => Some(Rule::Nullable),
            "format" => v.as_str().and_then(Format::parse).map(Rule::Format),
            "enum" => v.as_array().map(|a| Rule::Enum(a.clone().into())),
            "pattern" => v.as_str().map(|p| Rule::Pattern(Box::new(Pattern::new(p)))),
            "maxLength" => count().map(Rule::MaxLength),
            "minLength" => count().map(Rule::MinLength),
            "maximum" => number().map(|n| Rule::Maximum(n, exclusive("exclusiveMaximum"))),
            "minimum" => number().map(|n| Rule::Minimum(n, exclusive("exclusiveMinimum"))),
            "multipleOf" => number().map(Rule::MultipleOf),
            "maxItems" => count().map(Rule::MaxItems),
            "minItems" => count().map(Rule::MinItems),
            "uniqueItems" if v == true => Some(Rule::UniqueItems),
            "maxProperties" => count().map(Rule::MaxProperties),
            "minProperties" => count().map(Rule::MinProperties),
            "required" => {
                let names: Box<[Box<str>]> = texts(v).map(Box::from).collect();
                (!names.is_empty()).then_some(Rule::Required(names))
            }
            "allOf" => all().map(Rule::AllOf),
            "anyOf" => all().map(Rule::AnyOf),
            "oneOf" => all().map(Rule::OneOf),
            "not" => v.is_object().then(|| Rule::Not(rules_of(v, true).into())),
            "type" if nested => v.as_str().and_then(JsonType::parse).map(Rule::Type),
            "items" if nested => v.is_object().then(|| Rule::Items(rules_of(v, true).into())),
            "additionalProperties" if nested => v
                .is_object()
                .then(|| Rule::Values(rules_of(v, true).into())),
            "properties" if nested => {
                for (name, property) in v.as_object().into_iter().flatten() {
                    let rules = rules_of(property, true).into();
                    out.push(Rule::Property(name.as_str().into(), rules));
                }
                None
            }
            _ => None,
        };
        out.extend(rule);
    }
    out.extend(format_bounds(node));
    out
}

/// `format: int32` bounds an integer.
fn format_bounds(node: &Value) -> Vec<Rule> {
    if text(node, "format") == "int32" && text(node, "type") == "integer" {
        vec![
            Rule::Minimum(Number::from(i32::MIN), false),
            Rule::Maximum(Number::from(i32::MAX), false),
        ]
    } else {
        Vec::new()
    }
}

fn sorted(mut fields: Vec<Field>) -> Box<[Field]> {
    fields.sort_by(|a, b| a.name.cmp(&b.name));
    fields.dedup_by(|a, b| a.name == b.name);
    fields.into()
}

fn flag(node: &Value, name: &str) -> bool {
    node[name].as_bool().unwrap_or(false)
}

fn text<'v>(node: &'v Value, name: &str) -> &'v str {
    node[name].as_str().unwrap_or_default()
}

fn texts(v: &Value) -> impl Iterator<Item = &str> {
    v.as_array().into_iter().flatten().filter_map(Value::as_str)
}
