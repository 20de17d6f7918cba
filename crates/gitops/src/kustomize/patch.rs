//! Patches: strategic merges and JSON patches, for objects that a selector picks or that the
//! patch itself names.
//!
//! The merge differs from the API server's in one thing that kustomize does: items of a
//! merged list that the patch has come first, in the patch's order.

use super::file::{File, Patch, Selector};
use super::resource::{Id, Resource, Resources};
use super::{BuildError, documents, inside};
use crate::tree::Tree;
use apimachinery::gvk::GroupVersionKind;
use apimachinery::schema::{List, ListKind, Schema, Type, TypeId};
use apimachinery::selector::LabelSelector;
use serde_json::{Map, Value};

const DIRECTIVE: &str = "$patch";

/// `patchesStrategicMerge`, then `patches`.
pub(crate) fn run(
    tree: &Tree,
    dir: &str,
    file: &File,
    resources: &mut Resources,
) -> Result<(), BuildError> {
    for named in &file.patches_strategic_merge {
        let inline = named.contains('\n') || named.trim_start().starts_with('{');
        let patch = Patch {
            path: (!inline).then(|| named.clone()),
            patch: inline.then(|| named.clone()),
            ..Patch::default()
        };
        apply(tree, dir, file, &patch, resources)?;
    }
    for patch in &file.patches {
        apply(tree, dir, file, patch, resources)?;
    }
    Ok(())
}

/// `patchesJson6902`.
pub(crate) fn run_json6902(
    tree: &Tree,
    dir: &str,
    file: &File,
    resources: &mut Resources,
) -> Result<(), BuildError> {
    for patch in &file.patches_json6902 {
        if patch.target.is_none() {
            return Err(fail(file, "patchesJson6902 needs a target"));
        }
        apply(tree, dir, file, patch, resources)?;
    }
    Ok(())
}

/// Indexes of the objects that a selector picks.
pub(crate) fn select(selector: &Selector, resources: &Resources) -> Result<Vec<usize>, String> {
    let matcher = Matcher::new(selector)?;
    let all = resources.list.iter().enumerate();
    Ok(all
        .filter(|(_, r)| matcher.fits(r))
        .map(|(i, _)| i)
        .collect())
}

fn fail(file: &File, why: impl Into<String>) -> BuildError {
    BuildError::Patch {
        path: file.path.clone(),
        why: why.into(),
    }
}

fn apply(
    tree: &Tree,
    dir: &str,
    file: &File,
    patch: &Patch,
    resources: &mut Resources,
) -> Result<(), BuildError> {
    let (path, bytes) = match (&patch.path, &patch.patch) {
        (Some(named), None) => {
            let path = inside(dir, file, named)?;
            let bytes = tree.get(&path).ok_or_else(|| BuildError::Read {
                path: path.clone(),
                why: "no such file".to_owned(),
            })?;
            (path, bytes)
        }
        (None, Some(text)) => (file.path.clone(), text.as_bytes()),
        _ => return Err(fail(file, "a patch has either path or patch")),
    };
    let parsed = documents(&path, bytes)?;
    let option = |name: &str| patch.options.get(name).copied().unwrap_or(false);
    let options = Options {
        rename: option("allowNameChange"),
        rekind: option("allowKindChange"),
    };
    for document in &parsed {
        match (document, &patch.target) {
            (Value::Array(_), Some(target)) => {
                for at in select(target, resources).map_err(|why| fail(file, why))? {
                    json_patch(&mut resources.list[at], document).map_err(|why| fail(file, why))?;
                }
            }
            (Value::Array(_), None) => {
                return Err(fail(file, "a JSON patch needs a target"));
            }
            (Value::Object(_), Some(target)) => {
                let picked = select(target, resources).map_err(|why| fail(file, why))?;
                merge_into(resources, &picked, document, options);
            }
            (Value::Object(_), None) => {
                let id = Resource::new(document.clone()).id();
                let picked: Vec<usize> = resources.called(&id).collect();
                match picked.as_slice() {
                    [_] => merge_into(resources, &picked, document, options),
                    [] => return Err(fail(file, format!("no matches for {id}"))),
                    _ => return Err(fail(file, format!("more than one match for {id}"))),
                }
            }
            _ => return Err(fail(file, "a patch is a list of operations or an object")),
        }
    }
    Ok(())
}

fn json_patch(resource: &mut Resource, patch: &Value) -> Result<(), String> {
    resource.remember();
    let id = resource.id();
    apimachinery::patch::json_patch(&mut resource.value, patch).map_err(|status| {
        let cause = status
            .to_value()
            .pointer("/details/causes/0/message")
            .and_then(Value::as_str)
            .map(str::to_owned);
        format!("{id}: {}", cause.unwrap_or(status.message))
    })
}

#[derive(Clone, Copy)]
struct Options {
    rename: bool,
    rekind: bool,
}

/// Merges a patch into some objects; `$patch: delete` takes them away.
fn merge_into(resources: &mut Resources, picked: &[usize], patch: &Value, options: Options) {
    if patch[DIRECTIVE] == "delete" {
        let mut at = 0;
        resources.list.retain(|_| {
            at += 1;
            !picked.contains(&(at - 1))
        });
        return;
    }
    for at in picked {
        if let Some(resource) = resources.list.get_mut(*at) {
            merge_one(resource, patch, options);
        }
    }
}

fn merge_one(resource: &mut Resource, patch: &Value, options: Options) {
    let before: Id = resource.id();
    if options.rename || options.rekind {
        resource.remember();
    }
    let namespace = resource.value["metadata"].get("namespace").cloned();
    let api_version = resource.value["apiVersion"].clone();
    let schema = Schema::builtin();
    let kind = GroupVersionKind::new(&*before.group, &*before.version, &*before.kind);
    merge(schema, schema.kind(&kind), &mut resource.value, patch);
    if !options.rekind {
        resource.value["kind"] = Value::String(before.kind);
        resource.value["apiVersion"] = api_version;
    }
    if let Some(meta) = resource.value["metadata"].as_object_mut() {
        if !options.rename {
            meta.insert("name".to_owned(), Value::String(before.name));
        }
        match namespace {
            Some(namespace) => meta.insert("namespace".to_owned(), namespace),
            None => meta.remove("namespace"),
        };
    }
}

/// What the schema says of a field: its type, and the keys by which it is merged if it is a
/// list of that sort.
fn rule(schema: &Schema, ty: Option<TypeId>, field: &str) -> (Option<TypeId>, Option<Vec<String>>) {
    match ty.map(|t| schema.get(t)) {
        Some(Type::Struct(s)) => match s.field(field) {
            Some(f) => {
                let keys = match schema.get(f.ty) {
                    Type::List(list) if f.patch.merge => Some(merge_keys(list)),
                    _ => None,
                };
                (Some(f.ty), keys)
            }
            None => (None, None),
        },
        Some(Type::Map(inner)) => (Some(*inner), None),
        _ => (None, None),
    }
}

fn merge_keys(list: &List) -> Vec<String> {
    match (&list.kind, &list.patch_merge_key) {
        (ListKind::Map(keys), _) => keys.iter().map(ToString::to_string).collect(),
        (_, Some(key)) => vec![key.to_string()],
        _ => Vec::new(),
    }
}

fn merge(schema: &Schema, ty: Option<TypeId>, target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    match patch.get(DIRECTIVE).and_then(Value::as_str) {
        Some("replace") => {
            *target = plain(&Value::Object(patch.clone()));
            return;
        }
        Some("delete") => {
            *target = Value::Null;
            return;
        }
        _ => {}
    }
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(map) = target else { return };
    for (field, value) in patch {
        if field == DIRECTIVE {
            continue;
        }
        if value.is_null() || value[DIRECTIVE] == "delete" {
            map.remove(field);
            continue;
        }
        let (ty, keys) = rule(schema, ty, field);
        match (value, map.get_mut(field)) {
            (Value::Object(_), Some(known @ Value::Object(_))) => merge(schema, ty, known, value),
            (Value::Array(new), Some(Value::Array(known))) if keys.is_some() => {
                let item = match ty.map(|t| schema.get(t)) {
                    Some(Type::List(list)) => Some(list.item),
                    _ => None,
                };
                merge_list(schema, item, &keys.unwrap_or_default(), known, new);
            }
            (value, _) => {
                map.insert(field.clone(), plain(value));
            }
        }
    }
}

fn merge_list(
    schema: &Schema,
    item: Option<TypeId>,
    keys: &[String],
    known: &mut Vec<Value>,
    patch: &[Value],
) {
    if patch.iter().any(|v| v[DIRECTIVE] == "replace") {
        let rest = patch.iter().filter(|v| v[DIRECTIVE] != "replace");
        *known = rest.map(plain).collect();
        return;
    }
    let mut merged: Vec<Value> = Vec::with_capacity(known.len() + patch.len());
    for new in patch {
        let at = known.iter().position(|old| same_item(keys, old, new));
        if new[DIRECTIVE] == "delete" {
            if let Some(at) = at {
                known.remove(at);
            }
            continue;
        }
        match at {
            Some(at) => {
                let mut old = known.remove(at);
                merge(schema, item, &mut old, new);
                merged.push(old);
            }
            None => {
                let twice = merged.iter_mut().find(|old| same_item(keys, old, new));
                match twice {
                    Some(old) => merge(schema, item, old, new),
                    None => merged.push(plain(new)),
                }
            }
        }
    }
    merged.append(known);
    *known = merged;
}

/// Whether a patch's item means this one: equal in all keys that it has.
fn same_item(keys: &[String], old: &Value, new: &Value) -> bool {
    if keys.is_empty() {
        return old == new;
    }
    let mut any = false;
    for key in keys {
        match (old.get(key), new.get(key)) {
            (_, None) => {}
            (Some(a), Some(b)) if a == b => any = true,
            _ => return false,
        }
    }
    any
}

/// A patch's value without directives and nulls.
fn plain(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.iter()
                .filter(|(k, v)| *k != DIRECTIVE && !v.is_null() && v[DIRECTIVE] != "delete")
                .map(|(k, v)| (k.clone(), plain(v)))
                .collect(),
        ),
        Value::Array(list) => Value::Array(
            list.iter()
                .filter(|v| v[DIRECTIVE] != "delete" && v[DIRECTIVE] != "replace")
                .map(plain)
                .collect(),
        ),
        other => other.clone(),
    }
}

/// A selector ready to match.
pub(crate) struct Matcher {
    parts: [Option<regex::Regex>; 5],
    labels: Option<LabelSelector>,
    annotations: Option<LabelSelector>,
}

impl Matcher {
    pub(crate) fn new(selector: &Selector) -> Result<Self, String> {
        let pattern = |text: &Option<String>| -> Result<Option<regex::Regex>, String> {
            match text.as_deref().filter(|t| !t.is_empty()) {
                None => Ok(None),
                Some(text) => regex::RegexBuilder::new(&format!("^(?:{text})$"))
                    .size_limit(1 << 20)
                    .build()
                    .map(Some)
                    .map_err(|e| format!("target {text:?}: {e}")),
            }
        };
        let labels = |text: &Option<String>| -> Result<Option<LabelSelector>, String> {
            match text.as_deref().filter(|t| !t.is_empty()) {
                None => Ok(None),
                Some(text) => LabelSelector::parse(text).map(Some).map_err(|s| s.message),
            }
        };
        Ok(Self {
            parts: [
                pattern(&selector.group)?,
                pattern(&selector.version)?,
                pattern(&selector.kind)?,
                pattern(&selector.name)?,
                pattern(&selector.namespace)?,
            ],
            labels: labels(&selector.label_selector)?,
            annotations: labels(&selector.annotation_selector)?,
        })
    }

    /// Whether an object is or was one of those meant.
    pub(crate) fn fits(&self, resource: &Resource) -> bool {
        let meta = &resource.value["metadata"];
        let ok = |selector: &Option<LabelSelector>, field: &str| {
            selector
                .as_ref()
                .is_none_or(|s| s.matches_value(&meta[field]))
        };
        ok(&self.labels, "labels")
            && ok(&self.annotations, "annotations")
            && resource.ids().any(|id| {
                let namespace = super::resource::effective(&id.namespace).to_owned();
                let texts = [&id.group, &id.version, &id.kind, &id.name, &namespace];
                self.parts.iter().zip(texts).enumerate().all(|(i, (p, t))| {
                    p.as_ref()
                        .is_none_or(|p| p.is_match(t) || (i == 4 && p.is_match(&id.namespace)))
                })
            })
    }
}
