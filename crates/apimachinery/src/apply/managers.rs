//! `metadata.managedFields`: reading, writing and bounding its entries.

use super::Manager;
use super::fieldset::Set;
use serde_json::{Map, Value, json};

/// Most `Update` entries of an object; the oldest are then merged into one, `ancient-changes`.
pub const UPDATE_MANAGERS_MAX: usize = 10;

const ANCIENT: &str = "ancient-changes";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    Apply,
    Update,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// One entry.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) manager: String,
    pub(super) operation: Operation,
    pub(super) api_version: String,
    pub(super) subresource: String,
    pub(super) time: Option<String>,
    pub(super) set: Set,
}

impl Entry {
    pub(super) fn new(manager: &Manager<'_>, operation: Operation) -> Self {
        Self {
            manager: manager.name.to_owned(),
            operation,
            api_version: manager.api_version.to_owned(),
            subresource: manager.subresource.to_owned(),
            time: None,
            set: Set::default(),
        }
    }

    /// Whether this is the entry of a manager. An applier keeps its entry across versions.
    pub(super) fn is_of(&self, manager: &Manager<'_>, operation: Operation) -> bool {
        self.operation == operation
            && self.manager == manager.name
            && self.subresource == manager.subresource
            && (operation == Operation::Apply || self.api_version == manager.api_version)
    }

    /// As conflicts name it: `"kubectl" using apps/v1`.
    pub(super) fn shown(&self) -> String {
        let mut out = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            out.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == Operation::Update {
            out.push_str(&format!(" using {}", self.api_version));
        }
        out
    }

    fn read(v: &Value) -> Result<Self, String> {
        let text = |name: &str| {
            v.get(name)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let operation = match &*text("operation") {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            other => return Err(format!("managedFields: unknown operation {other:?}")),
        };
        Ok(Self {
            manager: text("manager"),
            operation,
            api_version: text("apiVersion"),
            subresource: text("subresource"),
            time: Some(text("time")).filter(|t| !t.is_empty()),
            set: match v.get("fieldsV1") {
                None | Some(Value::Null) => Set::default(),
                Some(fields) => Set::from_value(fields)?,
            },
        })
    }

    fn write(&self) -> Value {
        let mut out = Map::new();
        let mut put = |name: &str, v: Value| out.insert(name.to_owned(), v);
        put("manager", self.manager.as_str().into());
        put("operation", self.operation.name().into());
        put("apiVersion", self.api_version.as_str().into());
        if let Some(time) = &self.time {
            put("time", time.as_str().into());
        }
        put("fieldsType", "FieldsV1".into());
        put("fieldsV1", self.set.to_value());
        if !self.subresource.is_empty() {
            put("subresource", self.subresource.as_str().into());
        }
        Value::Object(out)
    }
}

/// Reads the list; `null` is an empty one.
pub(super) fn read(list: &Value) -> Result<Vec<Entry>, String> {
    match list {
        Value::Null => Ok(Vec::new()),
        Value::Array(a) => a.iter().map(Entry::read).collect(),
        other => Err(format!("managedFields must be a list, got {other}")),
    }
}

/// Puts the entries into an object's metadata, in upstream's order.
pub(super) fn write(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|e| !e.set.is_empty());
    let key = |e: &Entry| {
        let name = e.manager.clone();
        (
            e.operation,
            e.time.clone(),
            name,
            e.api_version.clone(),
            e.subresource.clone(),
        )
    };
    entries.sort_by_cached_key(key);
    put(
        object,
        Value::Array(entries.iter().map(Entry::write).collect()),
    );
}

/// Sets `metadata.managedFields`, or drops it when there is nothing to say.
pub(super) fn put(object: &mut Value, list: Value) {
    let Some(object) = object.as_object_mut() else {
        return;
    };
    let nothing = list.is_null() || list.as_array().is_some_and(Vec::is_empty);
    let metadata = object.entry("metadata").or_insert_with(|| json!({}));
    if let Some(metadata) = metadata.as_object_mut() {
        if nothing {
            metadata.remove("managedFields");
        } else {
            metadata.insert("managedFields".to_owned(), list);
        }
    }
}

/// Takes `metadata.managedFields` out of an object.
pub(super) fn take(object: &mut Value) -> Value {
    object
        .get_mut("metadata")
        .and_then(Value::as_object_mut)
        .and_then(|m| m.remove("managedFields"))
        .unwrap_or_default()
}

/// Merges the oldest `Update` entries when there are too many.
pub(super) fn bound(entries: &mut Vec<Entry>) {
    let updates = |entries: &[Entry]| {
        let is_update = |e: &&Entry| e.operation == Operation::Update && !e.set.is_empty();
        entries.iter().filter(is_update).count()
    };
    while updates(entries) > UPDATE_MANAGERS_MAX {
        let mut by_age: Vec<usize> = (0..entries.len())
            .filter(|&i| entries[i].operation == Operation::Update)
            .collect();
        by_age.sort_by(|&a, &b| entries[a].time.cmp(&entries[b].time));
        let (first, second) = (by_age[0], by_age[1]);
        let newer = entries[second].clone();
        let older = &mut entries[first];
        older.set.unite(&newer.set);
        older.manager = ANCIENT.to_owned();
        older.subresource.clear();
        older.time = newer.time;
        entries.remove(second);
    }
}
