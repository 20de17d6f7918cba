//! Server-side apply: field sets, ownership, merge, conflicts.
//!
//! Follows KEP-555 and the behaviour of `sigs.k8s.io/structured-merge-diff`.
//! `metadata.managedFields` lives in the objects that are passed in and out.
//! It knows no kinds: fields that a request may not set (`status` through the main
//! resource, all but `status` through `/status`) are for the caller to leave out of
//! the configuration and to restore in the result.
//!
//! Start with [`apply`] and [`update`]; `walk` holds the rules by type, `fieldset`
//! the sets, `managers` the bookkeeping.

mod fieldset;
mod managers;
mod walk;

pub use managers::UPDATE_MANAGERS_MAX;

use crate::schema::{Schema, TypeId};
use crate::status::Status;
use fieldset::{Node, Set, field};
use managers::{Entry, Operation};
use serde_json::{Value, json};
use walk::{Place, Walker, without_nulls};

/// Who writes, and when.
#[derive(Clone, Debug)]
pub struct Manager<'a> {
    /// `fieldManager`.
    pub name: &'a str,
    /// `apiVersion` of the request.
    pub api_version: &'a str,
    /// Subresource written through, empty for none.
    pub subresource: &'a str,
    /// RFC 3339 time of the request, seconds.
    pub time: &'a str,
}

/// Fields of `metadata` that nobody owns.
const UNOWNED_METADATA: &[&str] = &[
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "managedFields",
    "selfLink",
    "clusterName",
];

/// Manager of what was there before the first apply, when nobody owned anything.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// Applies `config` on behalf of a manager. `live` is the stored object (`None`: it is created).
/// Returns the merged object with its `managedFields`; equal to `live` when nothing changed.
///
/// # Errors
/// 409 `Conflict` with one cause a field (reason `FieldManagerConflict`) unless `force`;
/// 400 for a config that can't be keyed.
pub fn apply(
    schema: &Schema,
    ty: TypeId,
    live: Option<&Value>,
    config: &Value,
    manager: &Manager<'_>,
    force: bool,
) -> Result<Value, Status> {
    let walker = Walker { schema };
    let root = walker.root(ty);
    let stated = walker
        .field_set(root, config, false)
        .map_err(|e| unkeyable(config, &e))?;
    let mut own = stated.clone();
    strip(&mut own);

    let Some(live) = live else {
        return Ok(created(config, own, manager));
    };

    let listed = &live["metadata"]["managedFields"];
    // What can't be read is nobody's.
    let mut entries = managers::read(listed).unwrap_or_default();
    if entries.is_empty() {
        entries.push(before_first_apply(walker, root, live, manager));
    }
    let at = entries
        .iter()
        .position(|e| e.is_of(manager, Operation::Apply));
    let last = match at {
        Some(at) => std::mem::take(&mut entries[at].set),
        None => Set::default(),
    };

    let mut merged = live.clone();
    managers::take(&mut merged);
    walker.merge(root, &mut merged, &mergeable(config));
    let mut kept: Vec<&Set> = vec![&stated];
    kept.extend(entries.iter().map(|e| &e.set));
    let abandoned = guarded(walker.abandoned(root, &last, &kept));
    walker.remove(root, &mut merged, &abandoned, &kept);

    let mut difference = walker.compare(root, live, &merged);
    strip(&mut difference.changed);
    strip(&mut difference.removed);

    let conflicts: Vec<(usize, Set)> = entries
        .iter()
        .enumerate()
        .map(|(i, e)| (i, e.set.intersection(&difference.changed)))
        .filter(|(_, s)| !s.is_empty())
        .collect();
    if !force && !conflicts.is_empty() {
        return Err(conflict(&entries, &conflicts));
    }
    let mut reshuffled = false;
    for (i, lost) in &conflicts {
        reshuffled |= entries[*i].set.subtract(lost);
    }
    for e in &mut entries {
        reshuffled |= e.set.subtract(&difference.removed);
    }

    let touched = !difference.changed.is_empty() || !difference.removed.is_empty();
    let same_claims = own == last;
    if !touched && !reshuffled && same_claims && (at.is_some() || own.is_empty()) {
        return Ok(live.clone());
    }
    let at = at.unwrap_or_else(|| {
        entries.push(Entry::new(manager, Operation::Apply));
        entries.len() - 1
    });
    let entry = &mut entries[at];
    entry.set = own;
    entry.api_version = manager.api_version.to_owned();
    entry.time = Some(manager.time.to_owned());
    managers::write(&mut merged, entries);
    Ok(merged)
}

/// Updates `managedFields` of `new` after a create, update or patch by `manager`:
/// it owns (operation `Update`) what it changed against `live`; removed fields are dropped
/// from all. A write that changes nothing keeps `live`'s managedFields and their times.
///
/// Call it after defaulting and admission and before the server sets fields of its own.
///
/// # Errors
/// None at present: managedFields that a client sent malformed are replaced by `live`'s.
pub fn update(
    schema: &Schema,
    ty: TypeId,
    live: Option<&Value>,
    new: &mut Value,
    manager: &Manager<'_>,
) -> Result<(), Status> {
    let nothing = json!({});
    let before = live.unwrap_or(&nothing);
    let kept = &before["metadata"]["managedFields"];
    let sent = managers::take(new);
    let walker = Walker { schema };
    let root = walker.root(ty);
    let mut difference = walker.compare(root, before, new);
    strip(&mut difference.changed);
    strip(&mut difference.removed);

    let untouched = difference.changed.is_empty() && difference.removed.is_empty();
    let ignored = !manager.subresource.is_empty() || sent.is_null() || sent == *kept;
    if ignored && untouched {
        managers::put(new, kept.clone());
        return Ok(());
    }
    let mut entries = if ignored {
        managers::read(kept).unwrap_or_default()
    } else if is_reset(&sent) {
        Vec::new()
    } else {
        match managers::read(&sent) {
            Ok(entries) if !entries.is_empty() => entries,
            _ => managers::read(kept).unwrap_or_default(),
        }
    };
    for e in &mut entries {
        e.set.subtract(&difference.removed);
        if !e.is_of(manager, Operation::Update) {
            e.set.subtract(&difference.changed);
        }
    }
    if !difference.changed.is_empty() {
        let at = entries
            .iter()
            .position(|e| e.is_of(manager, Operation::Update))
            .unwrap_or_else(|| {
                entries.push(Entry::new(manager, Operation::Update));
                entries.len() - 1
            });
        entries[at].set.unite(&difference.changed);
        entries[at].time = Some(manager.time.to_owned());
    }
    managers::bound(&mut entries);
    managers::write(new, entries);
    Ok(())
}

/// A configuration as a new object that its applier owns.
fn created(config: &Value, own: Set, manager: &Manager<'_>) -> Value {
    let mut object = without_nulls(config);
    managers::take(&mut object);
    let mut entry = Entry::new(manager, Operation::Apply);
    entry.set = own;
    entry.time = Some(manager.time.to_owned());
    managers::write(&mut object, vec![entry]);
    object
}

/// One empty entry is how a client says: forget who owns what.
fn is_reset(sent: &Value) -> bool {
    match sent.as_array().map(Vec::as_slice) {
        Some([one]) => one.as_object().is_some_and(serde_json::Map::is_empty),
        _ => false,
    }
}

/// Takes out what nobody owns.
fn strip(set: &mut Set) {
    set.0.remove("f:apiVersion");
    set.0.remove("f:kind");
    if let Some(metadata) = set.0.get_mut("f:metadata") {
        metadata.member = false;
        for name in UNOWNED_METADATA {
            metadata.children.0.remove(&field(name));
        }
        if metadata.children.is_empty() {
            set.0.remove("f:metadata");
        }
    }
}

/// Abandoned fields without those that a server needs whoever owns them.
fn guarded(mut set: Set) -> Set {
    if set.0.get("f:metadata").is_some_and(|n: &Node| n.member) {
        set.0.remove("f:metadata");
    }
    strip(&mut set);
    set
}

/// A configuration without the fields that identify an object rather than describe it.
fn mergeable(config: &Value) -> Value {
    let mut out = config.clone();
    if let Some(top) = out.as_object_mut() {
        top.remove("apiVersion");
        top.remove("kind");
        if let Some(metadata) = top.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.retain(|k, _| !UNOWNED_METADATA.contains(&k.as_str()));
        }
    }
    out
}

fn before_first_apply(
    walker: Walker<'_>,
    root: Place,
    live: &Value,
    manager: &Manager<'_>,
) -> Entry {
    let before = Manager {
        name: BEFORE_FIRST_APPLY,
        subresource: "",
        ..manager.clone()
    };
    let mut entry = Entry::new(&before, Operation::Update);
    entry.set = walker.field_set(root, live, true).unwrap_or_default();
    strip(&mut entry.set);
    entry
}

fn unkeyable(config: &Value, detail: &str) -> Status {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let metadata = &config["metadata"];
    Status::bad_request(format!(
        "failed to create typed patch object ({}/{}; {}, Kind={}): {detail}",
        text(&metadata["namespace"]),
        text(&metadata["name"]),
        text(&config["apiVersion"]),
        text(&config["kind"]),
    ))
}

fn conflict(entries: &[Entry], conflicts: &[(usize, Set)]) -> Status {
    let mut by_manager: Vec<(String, Vec<String>)> = conflicts
        .iter()
        .map(|(i, set)| (entries[*i].shown(), set.paths()))
        .collect();
    by_manager.sort();
    let causes: Vec<Value> = by_manager
        .iter()
        .flat_map(|(who, paths)| paths.iter().map(move |p| (who, p)))
        .map(|(who, path)| {
            json!({
                "reason": "FieldManagerConflict",
                "message": format!("conflict with {who}"),
                "field": path,
            })
        })
        .collect();
    let message = match &by_manager[..] {
        [(who, paths)] if paths.len() == 1 => {
            format!(
                "Apply failed with 1 conflict: conflict with {who}: {}",
                paths[0]
            )
        }
        all => {
            let mut lines = Vec::new();
            for (who, paths) in all {
                lines.push(format!("conflicts with {who}:"));
                lines.extend(paths.iter().map(|p| format!("- {p}")));
            }
            format!(
                "Apply failed with {} conflicts: {}",
                causes.len(),
                lines.join("\n")
            )
        }
    };
    Status::new(409, "Conflict", message).with_details(json!({"causes": causes}))
}

#[cfg(test)]
mod tests;
