//! `replacements`: a value of one object put into fields of others.

use super::file::{File, ReplacementOptions, ReplacementOrPath, ReplacementTarget, Selector};
use super::patch::{Matcher, select};
use super::resource::{Resource, Resources};
use super::{BuildError, documents, inside};
use crate::tree::Tree;
use serde_json::{Map, Value};

pub(crate) fn run(
    tree: &Tree,
    dir: &str,
    file: &File,
    resources: &mut Resources,
) -> Result<(), BuildError> {
    let fail = |why: String| BuildError::Transform {
        path: file.path.clone(),
        why: format!("replacements: {why}"),
    };
    for entry in &file.replacements {
        let Some(named) = &entry.path else {
            replace(entry, resources).map_err(fail)?;
            continue;
        };
        let path = inside(dir, file, named)?;
        let bytes = tree
            .get(&path)
            .ok_or_else(|| fail(format!("no file {path}")))?;
        for document in documents(&path, bytes)? {
            let entries = match document {
                Value::Array(list) => list,
                one => vec![one],
            };
            for entry in entries {
                let entry: ReplacementOrPath =
                    serde_json::from_value(entry).map_err(|e| fail(e.to_string()))?;
                replace(&entry, resources).map_err(fail)?;
            }
        }
    }
    Ok(())
}

fn replace(entry: &ReplacementOrPath, resources: &mut Resources) -> Result<(), String> {
    let value = source(entry, resources)?;
    for target in &entry.targets {
        put(target, &value, resources)?;
    }
    Ok(())
}

fn source(entry: &ReplacementOrPath, resources: &Resources) -> Result<Value, String> {
    let source = match (&entry.source, &entry.source_value) {
        (Some(source), None) => source,
        (None, Some(text)) => return Ok(Value::String(text.clone())),
        _ => return Err("an entry has either source or sourceValue".to_owned()),
    };
    refuse_encoding(&source.options)?;
    // The names of a source are plain, not patterns.
    let quoted = |text: &Option<String>| text.as_deref().map(regex::escape);
    let selector = Selector {
        group: quoted(&source.group),
        version: quoted(&source.version),
        kind: quoted(&source.kind),
        name: quoted(&source.name),
        namespace: quoted(&source.namespace),
        ..Selector::default()
    };
    let found = select(&selector, resources)?;
    let resource = match found.as_slice() {
        [one] => &resources.list[*one],
        [] => return Err("nothing found for the source".to_owned()),
        _ => return Err("more than one object found for the source".to_owned()),
    };
    let path = source.field_path.as_deref().unwrap_or("metadata.name");
    let mut whole = resource.value.clone();
    let mut found = None;
    walk(&mut whole, &split(path), None, &mut |at| {
        found.get_or_insert_with(|| at.clone());
    });
    let value = found.ok_or_else(|| format!("field {path} of {} is absent", resource.id()))?;
    let Some(delimiter) = source
        .options
        .delimiter
        .as_deref()
        .filter(|d| !d.is_empty())
    else {
        return Ok(value);
    };
    let text = scalar(&value).ok_or_else(|| format!("field {path} is no text"))?;
    let at = usize::try_from(source.options.index).unwrap_or(usize::MAX);
    text.split(delimiter)
        .nth(at)
        .map(|part| Value::String(part.to_owned()))
        .ok_or_else(|| format!("field {path} has no part {}", source.options.index))
}

fn put(target: &ReplacementTarget, value: &Value, resources: &mut Resources) -> Result<(), String> {
    refuse_encoding(&target.options)?;
    let Some(selector) = &target.select else {
        return Err("a target needs select".to_owned());
    };
    let rejects: Vec<Matcher> = target
        .reject
        .iter()
        .map(Matcher::new)
        .collect::<Result<_, _>>()?;
    let default = ["metadata.name".to_owned()];
    let paths = if target.field_paths.is_empty() {
        &default[..]
    } else {
        &target.field_paths
    };
    for at in select(selector, resources)? {
        let resource = &mut resources.list[at];
        if rejects.iter().any(|r| r.fits(resource)) {
            continue;
        }
        resource.remember();
        for path in paths {
            put_at(resource, path, value, &target.options)?;
        }
    }
    Ok(())
}

fn put_at(
    resource: &mut Resource,
    path: &str,
    value: &Value,
    options: &ReplacementOptions,
) -> Result<(), String> {
    let id = resource.id();
    let made = Value::Null;
    let mut count = 0_usize;
    let mut failure = None;
    walk(
        &mut resource.value,
        &split(path),
        options.create.then_some(&made),
        &mut |at| {
            count += 1;
            match placed(at, value, options) {
                Ok(new) => *at = new,
                Err(why) => failure = Some(why),
            }
        },
    );
    if let Some(why) = failure {
        return Err(format!("field {path} of {id}: {why}"));
    }
    if count == 0 {
        return Err(format!("field {path} of {id} is absent"));
    }
    Ok(())
}

/// What stands at a place after the replacement.
fn placed(old: &Value, value: &Value, options: &ReplacementOptions) -> Result<Value, String> {
    if let Some(delimiter) = options.delimiter.as_deref().filter(|d| !d.is_empty()) {
        let (Some(text), Some(new)) = (scalar(old), scalar(value)) else {
            return Err("delimiter needs text".to_owned());
        };
        let mut parts: Vec<&str> = text.split(delimiter).collect();
        match usize::try_from(options.index) {
            Err(_) => parts.insert(0, &new),
            Ok(at) => match parts.get_mut(at) {
                Some(part) => *part = &new,
                None => parts.push(&new),
            },
        }
        return Ok(Value::String(parts.join(delimiter)));
    }
    // A text stays a text.
    match (old, scalar(value)) {
        (Value::String(_), Some(text)) => Ok(Value::String(text)),
        _ => Ok(value.clone()),
    }
}

fn refuse_encoding(options: &ReplacementOptions) -> Result<(), String> {
    match options.encoding.as_deref() {
        None | Some("") => Ok(()),
        Some(other) => Err(format!("encoding {other} is not supported")),
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(s) => Some(s.clone()),
        Value::Number(n) => Some(n.to_string()),
        Value::Bool(b) => Some(b.to_string()),
        _ => None,
    }
}

/// The steps of `spec.containers.[name=a].image`; `\.` is a dot inside a step, and so is
/// one in brackets.
fn split(path: &str) -> Vec<String> {
    let mut steps = vec![String::new()];
    let mut in_brackets = false;
    let mut chars = path.chars();
    while let Some(c) = chars.next() {
        let Some(last) = steps.last_mut() else { break };
        match c {
            '\\' => last.extend(chars.next()),
            '[' => {
                in_brackets = true;
                last.push(c);
            }
            ']' => {
                in_brackets = false;
                last.push(c);
            }
            '.' if !in_brackets => steps.push(String::new()),
            c => last.push(c),
        }
    }
    steps.retain(|s| !s.is_empty());
    steps
}

/// Calls `f` at each place that the steps lead to.
fn walk(value: &mut Value, steps: &[String], made: Option<&Value>, f: &mut dyn FnMut(&mut Value)) {
    let Some((step, rest)) = steps.split_first() else {
        f(value);
        return;
    };
    let keyed = step
        .strip_prefix('[')
        .and_then(|s| s.strip_suffix(']'))
        .and_then(|s| s.split_once('='));
    match value {
        Value::Array(list) => {
            if step == "*" {
                list.iter_mut().for_each(|item| walk(item, rest, made, f));
            } else if let Some((key, wanted)) = keyed {
                for item in list {
                    if scalar(&item[key]).as_deref() == Some(wanted) {
                        walk(item, rest, made, f);
                    }
                }
            } else if let Some(item) = step.parse().ok().and_then(|at: usize| list.get_mut(at)) {
                walk(item, rest, made, f);
            }
        }
        Value::Object(map) => {
            if !map.contains_key(step) {
                if made.is_none() {
                    return;
                }
                let new = if rest.is_empty() {
                    Value::Null
                } else {
                    Value::Object(Map::new())
                };
                map.insert(step.clone(), new);
            }
            if let Some(inner) = map.get_mut(step) {
                walk(inner, rest, made, f);
            }
        }
        _ => {}
    }
}
