//! Rules of `metadata` that hold for every kind.

use apimachinery::{FieldError, names};
use serde_json::{Map, Value};

/// Annotations in all, as upstream bounds them.
const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;

/// The metadata object of an object that has one.
pub(crate) fn of_mut(object: &mut Value) -> &mut Map<String, Value> {
    if !object["metadata"].is_object() {
        object["metadata"] = Value::Object(Map::new());
    }
    match &mut object["metadata"] {
        Value::Object(m) => m,
        _ => unreachable!("it was made an object above"),
    }
}

/// A text of metadata, empty when absent.
pub(crate) fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object["metadata"][key].as_str().unwrap_or_default()
}

/// Finalizers.
pub(crate) fn finalizers(object: &Value) -> Vec<&str> {
    object["metadata"]["finalizers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

/// Whether deletion has begun.
pub(crate) fn deleting(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}

/// Checks labels, annotations, finalizers and owner references.
pub(crate) fn validate(object: &Value) -> Vec<FieldError> {
    let meta = &object["metadata"];
    let mut errors = Vec::new();
    for (key, value) in meta["labels"].as_object().into_iter().flatten() {
        let shown = Value::String(key.clone());
        if let Err(e) = names::qualified_name(key) {
            errors.push(FieldError::invalid("metadata.labels", &shown, e));
        }
        if let Some(Err(e)) = value.as_str().map(names::label_value) {
            errors.push(FieldError::invalid("metadata.labels", value, e));
        }
    }
    let mut size = 0;
    for (key, value) in meta["annotations"].as_object().into_iter().flatten() {
        size += key.len() + value.as_str().map_or(0, str::len);
        if let Err(e) = names::qualified_name(&key.to_lowercase()) {
            errors.push(FieldError::invalid(
                "metadata.annotations",
                &Value::String(key.clone()),
                e,
            ));
        }
    }
    if size > ANNOTATIONS_BYTES_MAX {
        errors.push(FieldError {
            field: "metadata.annotations".to_owned(),
            reason: "FieldValueTooLong",
            message: format!("Too long: may not be more than {ANNOTATIONS_BYTES_MAX} bytes"),
        });
    }
    for (i, f) in meta["finalizers"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        if let Some(Err(e)) = f.as_str().map(names::qualified_name) {
            errors.push(FieldError::invalid(
                format!("metadata.finalizers[{i}]"),
                f,
                e,
            ));
        }
    }
    owner_references(meta, &mut errors);
    errors
}

fn owner_references(meta: &Value, errors: &mut Vec<FieldError>) {
    let mut controllers = 0;
    for (i, owner) in meta["ownerReferences"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        for key in ["apiVersion", "kind", "name", "uid"] {
            if owner[key].as_str().unwrap_or_default().is_empty() {
                errors.push(FieldError::invalid(
                    format!("metadata.ownerReferences[{i}].{key}"),
                    &owner[key],
                    "must not be empty",
                ));
            }
        }
        controllers += usize::from(owner["controller"] == true);
    }
    if controllers > 1 {
        errors.push(FieldError::invalid(
            "metadata.ownerReferences",
            &meta["ownerReferences"],
            "Only one reference can have Controller set to true",
        ));
    }
}

/// Puts into `new` what clients may not change, from `old`.
pub(crate) fn carry(new: &mut Value, old: &Value) {
    const FIXED: &[&str] = &[
        "name",
        "namespace",
        "generateName",
        "uid",
        "creationTimestamp",
        "generation",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
    ];
    let old = &old["metadata"];
    let new = of_mut(new);
    for key in FIXED {
        match old.get(*key) {
            Some(v) if !v.is_null() => {
                new.insert((*key).to_owned(), v.clone());
            }
            _ => {
                new.remove(*key);
            }
        }
    }
}

/// Drops empty lists and maps of metadata, as encoding upstream's types does.
pub(crate) fn tidy(object: &mut Value) {
    let meta = of_mut(object);
    meta.retain(|_, v| match v {
        Value::Null => false,
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
        Value::String(s) => !s.is_empty(),
        _ => true,
    });
}

/// Finalizers that `new` adds although `old` is being deleted.
pub(crate) fn late_finalizers(new: &Value, old: &Value) -> Option<FieldError> {
    if !deleting(old) {
        return None;
    }
    let had = finalizers(old);
    let added: Vec<&str> = finalizers(new)
        .into_iter()
        .filter(|f| !had.contains(f))
        .collect();
    (!added.is_empty()).then(|| {
        FieldError::forbidden(
            "metadata.finalizers",
            format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                added.iter().map(|f| format!("{f:?}")).collect::<Vec<_>>().join(", ")
            ),
        )
    })
}
