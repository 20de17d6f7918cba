//! One object at one revision: its stored bytes and the few words of it that lists and
//! watches choose by. Never a parsed tree: that is ten times as large.
//!
//! Stored bytes start `{"kind":…,"apiVersion":…,"metadata":{` and hold no resourceVersion:
//! it is the store's revision, spliced in on the way out.

use crate::row::Row;
use api::Resource;
use apimachinery::json_path::JsonPath;
use bytes::Bytes;
use parking_lot::Mutex;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

const METADATA: &[u8] = b"\"metadata\":{";

/// A stored object.
#[derive(Debug)]
pub(crate) struct Object {
    /// `namespace/name`, or `name`.
    pub(crate) key: Arc<str>,
    /// Its resourceVersion.
    pub(crate) revision: u64,
    /// Revision at which the bytes were written: lower for what a deletion shows.
    pub(crate) written: u64,
    /// As stored.
    pub(crate) bytes: Bytes,
    /// Where the first field of metadata starts.
    splice: usize,
    labels: Box<[(Box<str>, Box<str>)]>,
    /// Values of the row's selectable fields, in its order.
    fields: Box<[Box<str>]>,
    /// What a conversion webhook has made of it: a version and the object in it, the last that
    /// was asked for. Goes with the object.
    converted: Mutex<Option<(Box<str>, Bytes)>>,
}

impl Object {
    /// Reads what is needed from stored bytes; `None` when they are no object.
    pub(crate) fn parse(
        table: Option<&'static Resource>,
        key: Arc<str>,
        bytes: Bytes,
        revision: u64,
    ) -> Option<Self> {
        let splice = find(&bytes, METADATA)? + METADATA.len();
        let paths: Vec<(&str, &str)> = match table {
            Some(row) => row.selectable.iter().map(|s| field_path(row, s)).collect(),
            None => Vec::new(),
        };
        let mut picked = Picked {
            labels: BTreeMap::new(),
            fields: paths.iter().map(|(_, absent)| (*absent).into()).collect(),
        };
        let mut json = serde_json::Deserializer::from_slice(&bytes);
        Pick {
            path: String::new(),
            paths: &paths,
            out: &mut picked,
        }
        .deserialize(&mut json)
        .ok()?;
        Some(Self {
            key,
            revision,
            written: revision,
            bytes,
            splice,
            labels: picked
                .labels
                .into_iter()
                .map(|(k, v)| (k.into_boxed_str(), v.into_boxed_str()))
                .collect(),
            fields: picked.fields.into_boxed_slice(),
            converted: Mutex::default(),
        })
    }

    /// An object that this process has just encoded.
    pub(crate) fn made(row: &Row, key: Arc<str>, bytes: Bytes, revision: u64) -> Self {
        let table = match row.stored_row() {
            Row::Builtin(table) => Some(table),
            Row::Custom(_) => None,
        };
        Self::parse(table, key.clone(), bytes.clone(), revision).unwrap_or(Self {
            key,
            revision,
            written: revision,
            splice: bytes.len(),
            bytes,
            labels: Box::default(),
            fields: Box::default(),
            converted: Mutex::default(),
        })
    }

    /// The same object under a later revision (that of its deletion).
    pub(crate) fn at(&self, revision: u64) -> Self {
        Self {
            key: self.key.clone(),
            revision,
            written: self.written,
            bytes: self.bytes.clone(),
            splice: self.splice,
            labels: self.labels.clone(),
            fields: self.fields.clone(),
            converted: Mutex::new(self.converted.lock().clone()),
        }
    }

    /// Namespace, empty for cluster-scoped objects.
    pub(crate) fn namespace(&self) -> &str {
        self.key.split_once('/').map_or("", |(ns, _)| ns)
    }

    /// Name.
    pub(crate) fn name(&self) -> &str {
        self.key.split_once('/').map_or(&self.key, |(_, name)| name)
    }

    /// A label's value.
    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        self.labels
            .iter()
            .find(|(k, _)| &**k == key)
            .map(|(_, v)| &**v)
    }

    /// A selectable field's value, empty when absent.
    pub(crate) fn field(&self, row: &Row, path: &str) -> Cow<'_, str> {
        match (path, row) {
            ("metadata.name", _) => self.name().into(),
            ("metadata.namespace", _) => self.namespace().into(),
            (_, Row::Builtin(row)) => row
                .selectable
                .iter()
                .position(|s| *s == path)
                .and_then(|i| self.fields.get(i))
                .map_or("", |v| v)
                .into(),
            // Read when asked for: which fields there are changes with the definition.
            (_, Row::Custom(_)) => {
                let value = self.value();
                let found = JsonPath::parse(path).ok();
                match found.as_ref().and_then(|p| p.first(&value)) {
                    Some(Value::String(s)) => s.clone().into(),
                    Some(v @ (Value::Bool(_) | Value::Number(_))) => v.to_string().into(),
                    _ => "".into(),
                }
            }
        }
    }

    /// Appends the object as JSON with its resourceVersion.
    pub(crate) fn write_json(&self, out: &mut Vec<u8>) {
        self.write_from(0, out);
    }

    /// The same without `kind` and `apiVersion`, as upstream puts items in lists.
    pub(crate) fn write_item(&self, out: &mut Vec<u8>) {
        out.push(b'{');
        self.write_from(self.splice - METADATA.len(), out);
    }

    fn write_from(&self, start: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.bytes[start..self.splice]);
        // Revision 0 is an object that was not written (dry run).
        if self.revision > 0 {
            write_version(self.revision, out);
            // Metadata always has a name, so a field follows.
            out.push(b',');
        }
        out.extend_from_slice(&self.bytes[self.splice..]);
    }

    /// Appends it as PartialObjectMetadata of a version of `meta.k8s.io`.
    pub(crate) fn write_metadata(&self, version: &str, out: &mut Vec<u8>) {
        #[derive(serde::Deserialize)]
        struct Meta<'a> {
            #[serde(borrow)]
            metadata: &'a serde_json::value::RawValue,
        }
        out.extend_from_slice(b"{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"");
        out.extend_from_slice(version.as_bytes());
        out.extend_from_slice(b"\",\"metadata\":{");
        write_version(self.revision, out);
        if let Ok(m) = serde_json::from_slice::<Meta<'_>>(&self.bytes) {
            out.push(b',');
            out.extend_from_slice(&m.metadata.get().as_bytes()[1..]);
        } else {
            out.push(b'}');
        }
        out.push(b'}');
    }

    /// Parsed, with its resourceVersion.
    pub(crate) fn value(&self) -> Value {
        self.parsed(&self.bytes)
    }

    /// The same in a version that a webhook has converted it to.
    pub(crate) fn converted(&self, version: &str) -> Option<Value> {
        let converted = self.converted.lock();
        let (_, bytes) = converted.as_ref().filter(|(v, _)| **v == *version)?;
        Some(self.parsed(bytes))
    }

    /// Whether a webhook has converted it to a version.
    pub(crate) fn is_converted(&self, version: &str) -> bool {
        let converted = self.converted.lock();
        converted.as_ref().is_some_and(|(v, _)| **v == *version)
    }

    /// Keeps what a webhook has made of it.
    pub(crate) fn keep_converted(&self, version: &str, value: &Value) {
        *self.converted.lock() = Some((version.into(), encode(value).into()));
    }

    /// `apiVersion` of the bytes, which start with `kind` and it.
    pub(crate) fn stored_api_version(&self) -> &str {
        const LEAD: &[u8] = b"\"apiVersion\":\"";
        let head = &self.bytes[..self.splice.min(self.bytes.len())];
        let start = find(head, LEAD).map_or(head.len(), |i| i + LEAD.len());
        let rest = &head[start..];
        let end = rest.iter().position(|b| *b == b'"').unwrap_or(0);
        std::str::from_utf8(&rest[..end]).unwrap_or_default()
    }

    fn parsed(&self, bytes: &[u8]) -> Value {
        let mut v: Value = serde_json::from_slice(bytes).unwrap_or_default();
        if let Some(m) = v.get_mut("metadata").and_then(Value::as_object_mut) {
            m.insert(
                "resourceVersion".to_owned(),
                Value::String(self.revision.to_string()),
            );
        }
        v
    }
}

fn write_version(revision: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"\"resourceVersion\":\"");
    out.extend_from_slice(revision.to_string().as_bytes());
    out.push(b'"');
}

/// Stored bytes of an object: fixed order at the start, no resourceVersion.
pub(crate) fn encode(object: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    let empty = Map::new();
    let top = object.as_object().unwrap_or(&empty);
    let put = |out: &mut Vec<u8>, lead: &[u8], key: &str, v: &Value| {
        out.extend_from_slice(lead);
        // Strings and values of serde_json always encode into memory.
        let _ = serde_json::to_writer(&mut *out, key);
        out.push(b':');
        let _ = serde_json::to_writer(&mut *out, v);
    };
    put(
        &mut out,
        b"{",
        "kind",
        top.get("kind").unwrap_or(&Value::Null),
    );
    put(
        &mut out,
        b",",
        "apiVersion",
        top.get("apiVersion").unwrap_or(&Value::Null),
    );
    out.extend_from_slice(b",\"metadata\":");
    let metadata = top
        .get("metadata")
        .and_then(Value::as_object)
        .unwrap_or(&empty);
    let mut lead: &[u8] = b"{";
    for (k, v) in metadata.iter().filter(|(k, _)| *k != "resourceVersion") {
        put(&mut out, lead, k, v);
        lead = b",";
    }
    if lead == b"{" {
        out.push(b'{');
    }
    out.push(b'}');
    for (k, v) in top
        .iter()
        .filter(|(k, _)| !matches!(k.as_str(), "kind" | "apiVersion" | "metadata"))
    {
        put(&mut out, b",", k, v);
    }
    out.push(b'}');
    // They are kept for as long as the object is: what a large one has grown by too much, too.
    out.shrink_to_fit();
    out
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

/// Where a selectable field lives and what it is when absent; a few are named otherwise.
fn field_path(row: &Resource, selectable: &'static str) -> (&'static str, &'static str) {
    match (row.plural, selectable) {
        ("jobs", "status.successful") => ("status.succeeded", "0"),
        ("events", "source") => ("source.component", ""),
        ("nodes", "spec.unschedulable") => ("spec.unschedulable", "false"),
        ("pods", "spec.hostNetwork") => ("spec.hostNetwork", "false"),
        ("replicasets" | "replicationcontrollers", "status.replicas") => ("status.replicas", "0"),
        _ => (selectable, ""),
    }
}

struct Picked {
    labels: BTreeMap<String, String>,
    fields: Vec<Box<str>>,
}

/// Walks an object and keeps only labels and the wanted paths.
struct Pick<'a> {
    path: String,
    paths: &'a [(&'a str, &'a str)],
    out: &'a mut Picked,
}

impl<'de> DeserializeSeed<'de> for Pick<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Pick<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            let base = self.path.len();
            if base > 0 {
                self.path.push('.');
            }
            self.path.push_str(&key);
            if self.path == "metadata.labels" {
                self.out.labels = map
                    .next_value::<Option<BTreeMap<String, String>>>()?
                    .unwrap_or_default();
            } else if let Some(i) = self.paths.iter().position(|(p, _)| *p == self.path) {
                let text = match map.next_value::<Value>()? {
                    Value::String(s) => Some(s),
                    Value::Null | Value::Array(_) | Value::Object(_) => None,
                    other => Some(other.to_string()),
                };
                if let Some(text) = text {
                    self.out.fields[i] = text.into_boxed_str();
                }
            } else if self.leads_on() {
                let path = std::mem::take(&mut self.path);
                map.next_value_seed(Pick {
                    path: path.clone(),
                    paths: self.paths,
                    out: self.out,
                })?;
                self.path = path;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
            self.path.truncate(base);
        }
        Ok(())
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
}

impl Pick<'_> {
    /// Whether a wanted path goes below the current one.
    fn leads_on(&self) -> bool {
        self.path == "metadata"
            || self.paths.iter().any(|(p, _)| {
                p.strip_prefix(&*self.path)
                    .is_some_and(|rest| rest.starts_with('.'))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn stored_bytes_take_no_more_room_than_they_need() {
        for length in [0, 2_000, 17_000, 40_000] {
            let object = json!({
                "kind": "ConfigMap", "apiVersion": "v1",
                "metadata": {"name": "a"}, "data": {"text": "x".repeat(length)},
            });
            let made = encode(&object);
            let held = made.capacity();
            assert_eq!((held, made.len() > length), (made.len(), true));
        }
    }
}
