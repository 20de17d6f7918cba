//! Reading and writing inside objects by path, without clones.

use serde_json::{Map, Value};

static NULL: Value = Value::Null;

/// The value at a dotted path of fields, `null` when any is missing.
pub(crate) fn at<'a>(v: &'a Value, path: &str) -> &'a Value {
    let mut v = v;
    for part in path.split('.') {
        match v.get(part) {
            Some(next) => v = next,
            None => return &NULL,
        }
    }
    v
}

/// The string there, empty when there is none.
pub(crate) fn text<'a>(v: &'a Value, path: &str) -> &'a str {
    at(v, path).as_str().unwrap_or_default()
}

/// The integer there, 0 when there is none.
pub(crate) fn int(v: &Value, path: &str) -> i64 {
    at(v, path).as_i64().unwrap_or_default()
}

/// The list there, empty when there is none.
pub(crate) fn list<'a>(v: &'a Value, path: &str) -> &'a [Value] {
    at(v, path).as_array().map_or(&[], Vec::as_slice)
}

/// Whether there is nothing there: missing, `null`, `""`, `[]` or `{}`.
pub(crate) fn is_empty(v: &Value) -> bool {
    match v {
        Value::Null => true,
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        _ => false,
    }
}

/// The object at `name`, if it is one.
pub(crate) fn object_mut<'a>(v: &'a mut Value, name: &str) -> Option<&'a mut Value> {
    v.get_mut(name).filter(|v| v.is_object())
}

/// The objects in the list at `name`.
pub(crate) fn items_mut<'a>(v: &'a mut Value, name: &str) -> impl Iterator<Item = &'a mut Value> {
    v.get_mut(name)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
        .filter(|v| v.is_object())
}

/// Sets a field that is missing or `null`; `v` must be an object, else nothing happens.
pub(crate) fn default(v: &mut Value, name: &str, value: impl Into<Value>) {
    if let Some(map) = v.as_object_mut()
        && map.get(name).is_none_or(Value::is_null)
    {
        map.insert(name.to_owned(), value.into());
    }
}

/// Sets a string field that is missing or empty.
pub(crate) fn default_text(v: &mut Value, name: &str, value: &str) {
    if let Some(map) = v.as_object_mut()
        && map.get(name).is_none_or(|v| v.is_null() || v == "")
    {
        map.insert(name.to_owned(), value.into());
    }
}

/// The object at `name`, made when it is missing. `None` when `v` or the field is something else.
pub(crate) fn object_entry<'a>(v: &'a mut Value, name: &str) -> Option<&'a mut Value> {
    let map = v.as_object_mut()?;
    if map.get(name).is_none_or(Value::is_null) {
        map.insert(name.to_owned(), Value::Object(Map::new()));
    }
    map.get_mut(name).filter(|v| v.is_object())
}

/// Drops a field.
pub(crate) fn remove(v: &mut Value, name: &str) {
    if let Some(map) = v.as_object_mut() {
        map.remove(name);
    }
}
