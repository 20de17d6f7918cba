//! Walking to fields by a path such as `spec/template/metadata/labels`, through lists.

use super::file::FieldSpec;
use super::resource::Resource;
use serde_json::{Map, Value};

/// A field of a kind, as the built-in tables have it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spec {
    /// Empty for any.
    pub(crate) group: &'static str,
    /// Empty for any.
    pub(crate) kind: &'static str,
    pub(crate) path: &'static str,
    /// Whether the field is made where it is absent.
    pub(crate) create: bool,
}

impl Spec {
    pub(crate) const fn new(kind: &'static str, path: &'static str, create: bool) -> Self {
        Self {
            group: "",
            kind,
            path,
            create,
        }
    }

    pub(crate) const fn of(mut self, group: &'static str) -> Self {
        self.group = group;
        self
    }

    pub(crate) fn fits(&self, resource: &Resource) -> bool {
        (self.kind.is_empty() || self.kind == resource.kind())
            && (self.group.is_empty() || self.group == resource.group())
    }
}

impl FieldSpec {
    pub(crate) fn fits(&self, resource: &Resource) -> bool {
        let is = |want: &Option<String>, have: &str| want.as_deref().is_none_or(|w| w == have);
        is(&self.group, resource.group())
            && is(&self.version, resource.version())
            && is(&self.kind, resource.kind())
    }
}

/// The parts of a path; `\/` is a slash inside a part.
pub(crate) fn parts(path: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = path.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                if let (Some(next), Some(last)) = (chars.next(), parts.last_mut()) {
                    last.push(next);
                }
            }
            '/' => parts.push(String::new()),
            c => {
                if let Some(last) = parts.last_mut() {
                    last.push(c);
                }
            }
        }
    }
    for part in &mut parts {
        if let Some(plain) = part.strip_suffix("[]") {
            *part = plain.to_owned();
        }
    }
    parts.retain(|p| !p.is_empty());
    parts
}

/// Calls `f` with each value at the path; lists on the way stand for all of their items.
/// Absent fields are made as `made` says, if it does.
pub(crate) fn each(
    value: &mut Value,
    path: &[String],
    made: Option<&Value>,
    f: &mut dyn FnMut(&mut Value),
) {
    if let Value::Array(items) = value
        && !path.is_empty()
    {
        for item in items {
            each(item, path, made, f);
        }
        return;
    }
    let Some((first, rest)) = path.split_first() else {
        f(value);
        return;
    };
    if value.is_null() && made.is_some() {
        *value = Value::Object(Map::new());
    }
    let Value::Object(map) = value else { return };
    let absent = map.get(first).is_none_or(Value::is_null);
    match made {
        Some(made) if absent => {
            let new = if rest.is_empty() {
                made.clone()
            } else {
                Value::Object(Map::new())
            };
            map.insert(first.clone(), new);
        }
        None if absent => return,
        _ => {}
    }
    if let Some(inner) = map.get_mut(first) {
        each(inner, rest, made, f);
    }
}

/// Puts pairs into the maps at the path.
pub(crate) fn put_pairs<'a>(
    value: &mut Value,
    path: &str,
    create: bool,
    pairs: impl Iterator<Item = (&'a String, &'a String)> + Clone,
) {
    let empty = Value::Object(Map::new());
    each(value, &parts(path), create.then_some(&empty), &mut |at| {
        if at.is_null() {
            *at = Value::Object(Map::new());
        }
        if let Value::Object(map) = at {
            for (k, v) in pairs.clone() {
                map.insert(k.clone(), Value::String(v.clone()));
            }
        }
    });
}
