//! The types as all sources together describe them.

use super::goreflect::{Go, GoField, GoStructs};
use super::jsonschema::{Definition, Definitions, Kind};
use super::prost::{self, Message, Messages};
use super::supplement;
use anyhow::{Context as _, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};

/// Numbers of scalars in the table: the order of `apimachinery::schema::Scalar`.
pub(crate) const SCALARS: &[&str] = &[
    "string",
    "bool",
    "int32",
    "int64",
    "double",
    "bytes",
    "quantity",
    "intorstring",
    "time",
    "microtime",
    "duration",
];

/// A type.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Ty {
    /// Index in [`SCALARS`].
    Scalar(usize),
    /// Any JSON; in protobuf a message with the text as bytes.
    Any,
    /// Any JSON; in protobuf one of the unions of `JSONSchemaProps`.
    Union(String),
    /// A struct by OpenAPI name.
    Ref(String),
    Map(Box<Ty>),
    List {
        item: Box<Ty>,
        kind: ListKind,
        merge_key: Option<String>,
    },
}

/// How server-side apply treats a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum ListKind {
    #[default]
    Atomic,
    Set,
    Map(Vec<String>),
}

/// A field.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub(crate) ty: Ty,
    pub(crate) number: u32,
    /// Numbers of the messages around it that JSON has inline, outermost first.
    pub(crate) inline: Vec<u32>,
    pub(crate) required: bool,
    pub(crate) omit_zero: bool,
    pub(crate) atomic: bool,
    pub(crate) merge: bool,
    pub(crate) retain_keys: bool,
    pub(crate) default: Option<serde_json::Value>,
    pub(crate) description: String,
}

/// A struct.
#[derive(Clone, Debug)]
pub(crate) struct Struct {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) atomic: bool,
    pub(crate) fields: BTreeMap<String, Field>,
}

/// Everything that the table holds.
#[derive(Default)]
pub(crate) struct Model {
    pub(crate) structs: BTreeMap<String, Struct>,
    /// Kinds and the type of their objects; group `*` stands for every group and version.
    pub(crate) kinds: BTreeMap<Kind, String>,
}

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";
const EXTENSIONS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.";

/// Joins the sources.
pub(crate) fn build(defs: &Definitions, go: &GoStructs, pb: &Messages) -> Result<Model> {
    let sources = Sources { defs, go, pb };
    let mut model = Model::default();
    sources.kinds(&mut model);
    let mut todo: Vec<String> = model.kinds.values().cloned().collect();
    todo.extend(supplement::EXTRA.iter().map(|s| (*s).to_owned()));
    while let Some(name) = todo.pop() {
        if model.structs.contains_key(&name) {
            continue;
        }
        let def = sources
            .type_named(&name)
            .with_context(|| format!("describe {name}"))?;
        for field in def.fields.values() {
            refs(&field.ty, &mut todo);
        }
        model.structs.insert(name, def);
    }
    Ok(model)
}

fn refs(ty: &Ty, out: &mut Vec<String>) {
    match ty {
        Ty::Ref(name) => out.push(name.clone()),
        Ty::Map(item) | Ty::List { item, .. } => refs(item, out),
        Ty::Union(_) => out.push(format!("{EXTENSIONS}JSONSchemaProps")),
        Ty::Scalar(_) | Ty::Any => {}
    }
}

fn scalar(name: &str) -> Ty {
    Ty::Scalar(
        SCALARS
            .iter()
            .position(|s| *s == name)
            .expect("a scalar of the list"),
    )
}

/// Types that are more than their structure.
fn special(openapi: &str) -> Option<Ty> {
    let short = openapi.rsplit('.').next()?;
    Some(match openapi {
        "io.k8s.apimachinery.pkg.api.resource.Quantity" => scalar("quantity"),
        "io.k8s.apimachinery.pkg.util.intstr.IntOrString" => scalar("intorstring"),
        "io.k8s.apimachinery.pkg.runtime.RawExtension" => Ty::Any,
        _ if openapi.strip_prefix(META) == Some(short) => match short {
            "Time" => scalar("time"),
            "MicroTime" => scalar("microtime"),
            "Duration" => scalar("duration"),
            "FieldsV1" | "Patch" => Ty::Any,
            _ => return None,
        },
        _ if openapi.strip_prefix(EXTENSIONS) == Some(short) => match short {
            "JSON" => Ty::Any,
            "JSONSchemaPropsOrArray" | "JSONSchemaPropsOrBool" | "JSONSchemaPropsOrStringArray" => {
                Ty::Union(openapi.to_owned())
            }
            _ => return None,
        },
        _ => return None,
    })
}

/// `k8s.io/api/core/v1.Pod` as OpenAPI writes it.
fn openapi_name(go: &str) -> String {
    go.replacen("k8s.io/", "io.k8s.", 1).replace('/', ".")
}

/// The reverse of [`openapi_name`].
fn go_name(openapi: &str) -> Option<String> {
    let (package, name) = openapi.strip_prefix("io.k8s.")?.rsplit_once('.')?;
    Some(format!("k8s.io/{}.{name}", package.replace('.', "/")))
}

struct Sources<'a> {
    defs: &'a Definitions,
    go: &'a GoStructs,
    pb: &'a Messages,
}

impl Sources<'_> {
    fn kinds(&self, model: &mut Model) {
        let everywhere: BTreeSet<&str> = supplement::EVERYWHERE.iter().copied().collect();
        for (name, def) in self.defs {
            // Alpha versions are off by default upstream and change without notice.
            for kind in def.kinds.iter().filter(|k| !k.version.contains("alpha")) {
                if !everywhere.contains(name.as_str()) {
                    model.kinds.insert(kind.clone(), name.clone());
                }
            }
        }
        let short = |name: &str| name.rsplit('.').next().unwrap_or(name).to_owned();
        for (name, group, version) in supplement::KINDS {
            let kind = Kind {
                group: (*group).to_owned(),
                version: (*version).to_owned(),
                kind: short(name),
            };
            model.kinds.insert(kind, (*name).to_owned());
        }
        for name in everywhere {
            let kind = Kind {
                group: "*".to_owned(),
                version: "*".to_owned(),
                kind: short(name),
            };
            model.kinds.insert(kind, name.to_owned());
        }
    }

    fn type_named(&self, name: &str) -> Result<Struct> {
        let def = self.defs.get(name);
        let message = self.pb.get(&prost::key(name));
        let go = go_name(name).and_then(|n| Some((self.go.get(&n)?, n)));
        let mut out = match (go, def) {
            (Some((_, go)), def) => {
                let mut fields = BTreeMap::new();
                self.go_fields(&go, &[], &mut fields)?;
                if let Some(def) = def {
                    let theirs: BTreeSet<&String> = def.properties.keys().collect();
                    let ours: BTreeSet<&String> = fields.keys().collect();
                    ensure!(
                        theirs == ours,
                        "the JSON schema has the fields {theirs:?}, the program {ours:?}"
                    );
                }
                Struct {
                    name: name.to_owned(),
                    description: String::new(),
                    atomic: false,
                    fields,
                }
            }
            (None, Some(def)) => self.json_struct(name, def, message)?,
            (None, None) => bail!("no source describes it"),
        };
        if let Some(def) = def {
            overlay(&mut out, def)?;
        }
        self.bindings(&mut out, message)?;
        Ok(out)
    }

    /// Second opinion on numbers, and defaults.
    fn bindings(&self, out: &mut Struct, message: Option<&Message>) -> Result<()> {
        for (name, field) in &mut out.fields {
            let Some(theirs) = message.and_then(|m| m.get(&prost::plain(name))) else {
                continue;
            };
            if field.inline.is_empty() && field.number != 0 {
                ensure!(
                    field.number == theirs.number,
                    "field {name} has number {} in the program and {} in the bindings",
                    field.number,
                    theirs.number
                );
            }
            field.default.clone_from(&theirs.default);
        }
        Ok(())
    }

    fn go_fields(
        &self,
        name: &str,
        inline: &[u32],
        out: &mut BTreeMap<String, Field>,
    ) -> Result<()> {
        let fields = self
            .go
            .get(name)
            .with_context(|| format!("the program has no {name}"))?;
        for field in fields {
            let json = field.tag("json").unwrap_or("");
            let mut options = json.split(',');
            let json_name = options.next().unwrap_or("");
            let options: Vec<&str> = options.collect();
            if json_name == "-" {
                continue;
            }
            let number = protobuf_number(field)?;
            if json_name.is_empty() {
                ensure!(field.embedded, "field {} has no JSON name", field.name);
                let Go::Struct(inner) = strip(&field.ty) else {
                    bail!("embedded {} is no struct", field.name)
                };
                self.go_fields(inner, &[inline, &[number]].concat(), out)?;
                continue;
            }
            let pointer = matches!(field.ty, Go::Pointer(_));
            let ty = go_type(&field.ty).with_context(|| format!("type of {name}.{json_name}"))?;
            let struct_like = matches!(ty, Ty::Ref(_) | Ty::Any | Ty::Union(_))
                || [
                    scalar("quantity"),
                    scalar("time"),
                    scalar("microtime"),
                    scalar("duration"),
                ]
                .contains(&ty);
            let omit_zero = !pointer
                && (options.contains(&"omitzero")
                    || options.contains(&"omitempty") && !struct_like);
            let strategy = field.tag("patchStrategy").unwrap_or("");
            let merge_key = field.tag("patchMergeKey").map(str::to_owned);
            out.insert(
                json_name.to_owned(),
                Field {
                    ty: with_merge_key(ty, merge_key),
                    // An embedded struct without a number of its own (TypeMeta) is not sent.
                    number: if inline.contains(&0) { 0 } else { number },
                    inline: inline.iter().copied().filter(|n| *n != 0).collect(),
                    required: false,
                    omit_zero,
                    atomic: false,
                    merge: strategy.contains("merge"),
                    retain_keys: strategy.contains("retainKeys"),
                    default: None,
                    description: String::new(),
                },
            );
        }
        Ok(())
    }

    /// A type of the groups that the program does not carry.
    fn json_struct(
        &self,
        name: &str,
        def: &Definition,
        message: Option<&Message>,
    ) -> Result<Struct> {
        let pointers = supplement::POINTERS
            .iter()
            .find(|(n, _)| *n == name)
            .map_or(&[][..], |(_, p)| p);
        let mut fields = BTreeMap::new();
        for (key, property) in &def.properties {
            let type_meta = !def.kinds.is_empty() && (key == "apiVersion" || key == "kind");
            let number = match message.and_then(|m| m.get(&prost::plain(key))) {
                Some(field) => field.number,
                None if type_meta => 0,
                None => bail!("no protobuf number of {key}"),
            };
            let ty = json_type(property)?;
            let required = def.required.contains(key);
            let omit_zero = !required
                && !pointers.contains(&key.as_str())
                && !matches!(ty, Ty::Ref(_) | Ty::Any | Ty::Union(_));
            fields.insert(
                key.clone(),
                Field {
                    ty: with_merge_key(ty, property.patch_merge_key.clone()),
                    number,
                    inline: Vec::new(),
                    required,
                    omit_zero,
                    atomic: false,
                    merge: property
                        .patch_strategy
                        .as_ref()
                        .is_some_and(|s| s.contains("merge")),
                    retain_keys: false,
                    default: None,
                    description: String::new(),
                },
            );
        }
        for pointer in pointers {
            ensure!(
                fields.contains_key(*pointer),
                "the supplement names {pointer}, which is no field"
            );
        }
        Ok(Struct {
            name: name.to_owned(),
            description: String::new(),
            atomic: false,
            fields,
        })
    }
}

fn strip(ty: &Go) -> &Go {
    match ty {
        Go::Pointer(inner) => strip(inner),
        other => other,
    }
}

fn with_merge_key(ty: Ty, key: Option<String>) -> Ty {
    match ty {
        Ty::List { item, kind, .. } => Ty::List {
            item,
            kind,
            merge_key: key,
        },
        other => other,
    }
}

fn list(item: Ty) -> Ty {
    Ty::List {
        item: Box::new(item),
        kind: ListKind::Atomic,
        merge_key: None,
    }
}

fn protobuf_number(field: &GoField) -> Result<u32> {
    match field.tag("protobuf") {
        None | Some("-") => Ok(0),
        Some(tag) => tag
            .split(',')
            .nth(1)
            .and_then(|n| n.parse().ok())
            .with_context(|| format!("read the protobuf tag of {}", field.name)),
    }
}

fn go_type(ty: &Go) -> Result<Ty> {
    Ok(match strip(ty) {
        Go::Bool => scalar("bool"),
        Go::Int32 => scalar("int32"),
        Go::Int64 => scalar("int64"),
        Go::Double => scalar("double"),
        Go::String => scalar("string"),
        Go::Interface => Ty::Any,
        Go::Slice(item) if **item == Go::Byte => scalar("bytes"),
        Go::Slice(item) => list(go_type(item)?),
        Go::Map(value) => Ty::Map(Box::new(go_type(value)?)),
        Go::Struct(name) => {
            let name = openapi_name(name);
            special(&name).unwrap_or(Ty::Ref(name))
        }
        other => bail!("no object has a {other:?}"),
    })
}

fn json_type(def: &Definition) -> Result<Ty> {
    if let Some(name) = def.target() {
        return Ok(special(name).unwrap_or_else(|| Ty::Ref(name.to_owned())));
    }
    Ok(match (def.type_name(), def.format.as_deref()) {
        ("string", Some("byte")) => scalar("bytes"),
        ("string", _) => scalar("string"),
        ("boolean", _) => scalar("bool"),
        ("integer", Some("int32")) => scalar("int32"),
        ("integer", _) => scalar("int64"),
        ("number", _) => scalar("double"),
        ("array", _) => list(json_type(
            def.items.as_ref().context("array without items")?,
        )?),
        ("object", _) => match &def.additional {
            Some(value) => Ty::Map(Box::new(json_type(value)?)),
            None => Ty::Any,
        },
        other => bail!("unknown JSON type {other:?}"),
    })
}

/// Adds what only the JSON schemas say.
fn overlay(out: &mut Struct, def: &Definition) -> Result<()> {
    out.description.clone_from(&def.description);
    out.atomic = def.map_type.as_deref() == Some("atomic");
    for (name, field) in &mut out.fields {
        let property = &def.properties[name];
        let strategy = property.patch_strategy.as_deref().unwrap_or("");
        ensure!(
            (field.merge, field.retain_keys)
                == (strategy.contains("merge"), strategy.contains("retainKeys")),
            "the sources disagree on how {name} is patched"
        );
        let described = json_type(property).with_context(|| format!("type of {name}"))?;
        if let Ty::List {
            item,
            kind,
            merge_key,
        } = &mut field.ty
        {
            ensure!(
                *merge_key == property.patch_merge_key,
                "the sources disagree on the merge key of {name}"
            );
            ensure!(
                described == list((**item).clone()),
                "the sources disagree on the type of {name}: {item:?}, {described:?}"
            );
            *kind = list_kind(property, field.merge)?;
        } else {
            ensure!(
                described == field.ty,
                "the sources disagree on the type of {name}: {:?}, {described:?}",
                field.ty
            );
        }
        field.required = def.required.contains(name);
        field.atomic = property.map_type.as_deref() == Some("atomic");
        field.description.clone_from(&property.description);
    }
    Ok(())
}

/// Without a list type the patch strategy decides, as upstream's apply has it.
fn list_kind(property: &Definition, merge: bool) -> Result<ListKind> {
    Ok(match property.list_type.as_deref() {
        Some("atomic") => ListKind::Atomic,
        Some("set") => ListKind::Set,
        Some("map") => ListKind::Map(property.list_map_keys.clone()),
        Some(other) => bail!("unknown list type {other}"),
        None if merge => match &property.patch_merge_key {
            Some(key) => ListKind::Map(vec![key.clone()]),
            None => ListKind::Set,
        },
        None => ListKind::Atomic,
    })
}
