//! Protobuf field numbers and `+default=` markers, read from the source text of generated
//! bindings. The text is regular enough that a line reader suffices; what it can't read
//! fails the agreement check of [`super::model`].

use anyhow::Result;
use std::collections::BTreeMap;
use std::path::Path;

/// A message's fields by [`plain`] name.
pub(crate) type Message = BTreeMap<String, ProstField>;
/// Messages by OpenAPI package and [`plain`] name: `io.k8s.api.core.v1.podspec`.
pub(crate) type Messages = BTreeMap<String, Message>;

/// What the bindings say of a field.
#[derive(Clone, Debug)]
pub(crate) struct ProstField {
    pub(crate) number: u32,
    pub(crate) default: Option<serde_json::Value>,
}

/// A name without case and punctuation: Rust, Go, protobuf and JSON spell names differently.
pub(crate) fn plain(name: &str) -> String {
    name.trim_start_matches("r#")
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .map(|c| c.to_ascii_lowercase())
        .collect()
}

/// The key of a type in [`Messages`], from its OpenAPI name.
pub(crate) fn key(openapi: &str) -> String {
    match openapi.rsplit_once('.') {
        Some((package, name)) => format!("{package}.{}", plain(name)),
        None => plain(openapi),
    }
}

/// Reads all `mod.rs` below a source directory.
pub(crate) fn read(src: &Path) -> Result<Messages> {
    let mut out = Messages::new();
    walk(src, "io.k8s", &mut out)?;
    Ok(out)
}

fn walk(dir: &Path, package: &str, out: &mut Messages) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            walk(&path, &format!("{package}.{}", name.replace('_', "-")), out)?;
        } else if name == "mod.rs" {
            parse(&std::fs::read_to_string(&path)?, package, out);
        }
    }
    Ok(())
}

fn parse(text: &str, package: &str, out: &mut Messages) {
    let mut message: Option<String> = None;
    let mut number = None;
    let mut default = None;
    for line in text.lines().map(str::trim) {
        if let Some(value) = line.strip_prefix("/// +default=") {
            default = serde_json::from_str(value).ok();
        } else if let Some(rest) = line.strip_prefix("pub struct ") {
            let name = rest.trim_end_matches(['{', '}', ' ']);
            let key = format!("{package}.{}", plain(name));
            out.entry(key.clone()).or_default();
            message = Some(key);
            default = None;
        } else if let Some((_, tail)) = line.split_once("tag = \"") {
            number = tail.split('"').next().and_then(|n| n.parse().ok());
        } else if let Some(rest) = line.strip_prefix("pub ")
            && let (Some(message), Some(number)) = (&message, number.take())
        {
            let name = rest.split(':').next().unwrap_or(rest);
            out.entry(message.clone()).or_default().insert(
                plain(name),
                ProstField {
                    number,
                    default: default.take(),
                },
            );
        }
    }
}
