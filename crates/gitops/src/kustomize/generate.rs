//! `configMapGenerator` and `secretGenerator`, and the suffixes of generated names.
//!
//! The suffix must be kustomize's to the letter: it is made from the object as Go's JSON
//! encoder writes it, with an empty name.

use super::file::{File, Generator, GeneratorOptions};
use super::resource::{Id, Resource, Resources};
use super::{BuildError, inside};
use crate::tree::Tree;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

/// Where kustomize breaks base64 text; the breaks take part in the suffix.
const BASE64_LINE: usize = 70;

/// Adds what a layer generates.
pub(crate) fn run(
    tree: &Tree,
    dir: &str,
    file: &File,
    into: &mut Resources,
) -> Result<(), BuildError> {
    let maps = file.config_map_generator.iter().map(|g| (g, "ConfigMap"));
    let secrets = file.secret_generator.iter().map(|g| (g, "Secret"));
    for (generator, kind) in maps.chain(secrets) {
        let made = Source { tree, dir, file }.object(generator, kind)?;
        absorb(file, generator, made, into)?;
    }
    Ok(())
}

/// Appends the suffix to all names that are due for it.
pub(crate) fn add_hashes(resources: &mut Resources) {
    for resource in &mut resources.list {
        if resource.wants_hash {
            resource.remember();
            let name = format!("{}-{}", resource.name(), suffix(&resource.value));
            resource.set_name(&name);
        }
        unfold(&mut resource.value);
    }
}

/// Ten characters by the content of a ConfigMap or Secret.
fn suffix(value: &Value) -> String {
    let is_secret = value["kind"] == "Secret";
    let mut content = Map::new();
    content.insert("kind".into(), value["kind"].clone());
    content.insert("name".into(), json!(""));
    if is_secret {
        let kind = value.get("type").cloned().unwrap_or_else(|| json!(""));
        content.insert("type".into(), kind);
    }
    let data = value.get("data").filter(|d| !d.is_null()).cloned();
    content.insert("data".into(), data.unwrap_or_else(|| json!("")));
    let other = if is_secret {
        "stringData"
    } else {
        "binaryData"
    };
    if let Some(map) = value.get(other).filter(|v| v.is_object()) {
        content.insert(other.into(), map.clone());
    }
    let digest = hex::encode(Sha256::digest(go_json(&Value::Object(content))));
    digest
        .chars()
        .take(10)
        .map(|c| match c {
            '0' => 'g',
            '1' => 'h',
            '3' => 'k',
            'a' => 'm',
            'e' => 't',
            c => c,
        })
        .collect()
}

/// JSON with sorted keys and the escapes that Go's encoder adds.
fn go_json(value: &Value) -> String {
    let mut text = String::new();
    for c in serde_json::to_string(value).unwrap_or_default().chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                text.push_str(&format!("\\u{:04x}", c as u32));
            }
            c => text.push(c),
        }
    }
    text
}

/// Takes the breaks out of base64 text: they are of no use once the suffix is made.
fn unfold(value: &mut Value) {
    let field = match value["kind"].as_str() {
        Some("Secret") => "data",
        Some("ConfigMap") => "binaryData",
        _ => return,
    };
    let Some(data) = value.get_mut(field).and_then(Value::as_object_mut) else {
        return;
    };
    for text in data.values_mut() {
        if let Value::String(text) = text
            && text.contains('\n')
        {
            text.retain(|c| !c.is_ascii_whitespace());
        }
    }
}

/// Puts a generated object beside the others, or into the one that it changes.
fn absorb(
    file: &File,
    generator: &Generator,
    mut made: Resource,
    into: &mut Resources,
) -> Result<(), BuildError> {
    let fail = |why: String| BuildError::Generate {
        path: file.path.clone(),
        name: generator.name.clone(),
        why,
    };
    let id: Id = made.id();
    let behavior = generator.behavior.as_deref().unwrap_or("create");
    let known: Vec<usize> = into.called(&id).collect();
    let at = match (behavior, known.as_slice()) {
        ("create" | "", []) => return into.add(made, &file.path),
        ("create" | "", _) => {
            return Err(BuildError::Duplicate {
                path: file.path.clone(),
                id: id.to_string(),
            });
        }
        ("merge" | "replace", [at]) => *at,
        ("merge" | "replace", []) => {
            return Err(fail(format!(
                "{id} does not exist; cannot merge or replace"
            )));
        }
        ("merge" | "replace", _) => return Err(fail(format!("{id} is not the only one"))),
        (other, _) => {
            return Err(fail(format!(
                "behavior should be create, merge or replace, not {other}"
            )));
        }
    };
    let Some(old) = into.list.get_mut(at) else {
        return Ok(());
    };
    for field in ["labels", "annotations"] {
        let mut merged = old.value["metadata"][field]
            .as_object()
            .cloned()
            .unwrap_or_default();
        if let Some(new) = made.value["metadata"][field].as_object() {
            merged.extend(new.clone());
        }
        if !merged.is_empty() {
            made.value["metadata"][field] = Value::Object(merged);
        }
    }
    if behavior == "merge" {
        for field in ["data", "binaryData"] {
            let Some(mut merged) = old.value.get(field).and_then(Value::as_object).cloned() else {
                continue;
            };
            if let Some(new) = made.value.get(field).and_then(Value::as_object) {
                merged.extend(new.clone());
            }
            made.value[field] = Value::Object(merged);
        }
    }
    made.value["metadata"]["name"] = old.value["metadata"]["name"].clone();
    if let Some(namespace) = old.value["metadata"].get("namespace") {
        made.value["metadata"]["namespace"] = namespace.clone();
    }
    old.value = made.value;
    old.wants_hash = made.wants_hash;
    Ok(())
}

struct Source<'a> {
    tree: &'a Tree,
    dir: &'a str,
    file: &'a File,
}

impl Source<'_> {
    fn object(&self, generator: &Generator, kind: &str) -> Result<Resource, BuildError> {
        let none = GeneratorOptions::default();
        let all = self.file.generator_options.as_ref().unwrap_or(&none);
        let own = generator.options.as_ref().unwrap_or(&none);
        let mut meta = Map::new();
        meta.insert("name".into(), json!(generator.name));
        if let Some(namespace) = &generator.namespace {
            meta.insert("namespace".into(), json!(namespace));
        }
        for (field, all, own) in [
            ("labels", &all.labels, &own.labels),
            ("annotations", &all.annotations, &own.annotations),
        ] {
            let mut merged = all.clone();
            merged.extend(own.clone());
            if !merged.is_empty() {
                meta.insert(field.into(), json!(merged));
            }
        }
        let mut value = json!({"apiVersion": "v1", "kind": kind, "metadata": meta});
        if kind == "Secret" {
            value["type"] = json!(generator.secret_type.as_deref().unwrap_or("Opaque"));
            value["data"] = json!({});
        }
        for (key, bytes) in self.pairs(generator)? {
            let (field, text) = match (kind, std::str::from_utf8(&bytes)) {
                ("ConfigMap", Ok(text)) => ("data", text.to_owned()),
                ("ConfigMap", Err(_)) => ("binaryData", folded(&bytes)),
                _ => ("data", folded(&bytes)),
            };
            if value["data"].get(&key).is_some() || value["binaryData"].get(&key).is_some() {
                return Err(self.fail(generator, format!("key {key} is there twice")));
            }
            value[field][&key] = Value::String(text);
        }
        if let Some(map) = value.as_object_mut() {
            // Looking into absent fields has made them.
            map.retain(|_, v| !v.is_null());
        }
        if all.immutable || own.immutable {
            value["immutable"] = json!(true);
        }
        let mut resource = Resource::new(value);
        resource.wants_hash = !(all.disable_name_suffix_hash || own.disable_name_suffix_hash);
        Ok(resource)
    }

    fn fail(&self, generator: &Generator, why: String) -> BuildError {
        BuildError::Generate {
            path: self.file.path.clone(),
            name: generator.name.clone(),
            why,
        }
    }

    fn read(&self, generator: &Generator, named: &str) -> Result<&[u8], BuildError> {
        let path = inside(self.dir, self.file, named)?;
        self.tree
            .get(&path)
            .ok_or_else(|| self.fail(generator, format!("no file {path}")))
    }

    /// Keys and values of all sources of a generator.
    fn pairs(&self, generator: &Generator) -> Result<Vec<(String, Vec<u8>)>, BuildError> {
        let mut pairs = Vec::new();
        for named in generator.envs.iter().chain(&generator.env) {
            let bytes = self.read(generator, named)?;
            let text = std::str::from_utf8(bytes)
                .map_err(|e| self.fail(generator, format!("file {named}: {e}")))?;
            for line in text.trim_start_matches('\u{feff}').lines() {
                let line = line.trim_start();
                if line.is_empty() || line.starts_with('#') {
                    continue;
                }
                // A line without a value would take it from the environment of who builds.
                let (key, value) = line.split_once('=').ok_or_else(|| {
                    self.fail(generator, format!("file {named}: no = in line {line:?}"))
                })?;
                pairs.push((key.to_owned(), value.as_bytes().to_vec()));
            }
        }
        for literal in &generator.literals {
            let (key, value) = literal
                .split_once('=')
                .filter(|(key, _)| !key.is_empty())
                .ok_or_else(|| {
                    self.fail(
                        generator,
                        format!("invalid literal source {literal}, expected key=value"),
                    )
                })?;
            pairs.push((key.to_owned(), unquoted(value).as_bytes().to_vec()));
        }
        for named in &generator.files {
            let (key, path) = match named.split_once('=') {
                Some((key, path)) => (key, path),
                None => (named.rsplit('/').next().unwrap_or(named), named.as_str()),
            };
            pairs.push((key.to_owned(), self.read(generator, path)?.to_vec()));
        }
        Ok(pairs)
    }
}

/// Without quotes around it, where both ends have the same.
fn unquoted(text: &str) -> &str {
    for quote in ['"', '\''] {
        if let Some(inner) = text
            .strip_prefix(quote)
            .and_then(|rest| rest.strip_suffix(quote))
        {
            return inner;
        }
    }
    text
}

fn folded(bytes: &[u8]) -> String {
    let plain = BASE64.encode(bytes);
    if plain.len() <= BASE64_LINE {
        return plain;
    }
    let mut text = String::with_capacity(plain.len() + plain.len() / BASE64_LINE + 1);
    for (i, c) in plain.chars().enumerate() {
        if i > 0 && i % BASE64_LINE == 0 {
            text.push('\n');
        }
        text.push(c);
    }
    text.push('\n');
    text
}
