//! Strategic merge patch: a merge patch in which the schema says which lists
//! are merged by which key, and directives say the rest.
//!
//! Follows `k8s.io/apimachinery/pkg/util/strategicpatch`. Start with
//! [`strategic_merge_patch`]; [`Merge::object`] is the recursion.

use super::order::{ItemKey, normalize};
use crate::schema::{Field, Schema, Type, TypeId};
use crate::status::Status;
use serde_json::{Map, Value};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";

/// Applies a strategic merge patch with its directives (`$patch`, `$retainKeys`,
/// `$setElementOrder/…`, `$deleteFromPrimitiveList/…`).
///
/// # Errors
/// 400 for a directive that is malformed or does not fit the schema; `target` is then half
/// patched and must not be used.
pub fn strategic_merge_patch(
    schema: &Schema,
    ty: TypeId,
    target: &mut Value,
    patch: &Value,
) -> Result<(), Status> {
    let Some(patch) = patch.as_object() else {
        return Err(Status::bad_request("the patch must be an object"));
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    Merge { schema }
        .object(Some(ty), target, patch)
        .map_err(Status::bad_request)
}

struct Merge<'a> {
    schema: &'a Schema,
}

/// What the schema says of one field.
#[derive(Clone, Copy)]
struct FieldRule<'a> {
    ty: Option<TypeId>,
    field: Option<&'a Field>,
}

impl<'a> Merge<'a> {
    fn rule(&self, ty: Option<TypeId>, name: &str) -> FieldRule<'a> {
        match ty.map(|t| self.schema.get(t)) {
            Some(Type::Struct(s)) => {
                let field = s.field(name);
                FieldRule {
                    ty: field.map(|f| f.ty),
                    field,
                }
            }
            Some(Type::Map(value)) => FieldRule {
                ty: Some(*value),
                field: None,
            },
            _ => FieldRule {
                ty: None,
                field: None,
            },
        }
    }

    /// Whether a list field is merged, by which key, and what its items are.
    fn list_rule(&self, rule: FieldRule<'a>) -> (bool, Option<&'a str>, Option<TypeId>) {
        let merged = rule.field.is_some_and(|f| f.patch.merge);
        match rule.ty.map(|t| self.schema.get(t)) {
            Some(Type::List(l)) => (merged, l.patch_merge_key.as_deref(), Some(l.item)),
            _ => (false, None, None),
        }
    }

    fn object(
        &self,
        ty: Option<TypeId>,
        target: &mut Value,
        patch: &Map<String, Value>,
    ) -> Result<(), String> {
        if let Some(directive) = patch.get(PATCH) {
            match directive.as_str() {
                Some("replace") => {
                    let mut whole = patch.clone();
                    whole.remove(PATCH);
                    *target = plain(&Value::Object(whole)).unwrap_or_default();
                    return Ok(());
                }
                Some("delete") => {
                    *target = Value::Object(Map::new());
                    return Ok(());
                }
                Some("merge") => {}
                _ => {
                    return Err(format!(
                        "unknown patch type: {} in map: {}",
                        text(directive),
                        Value::Object(patch.clone())
                    ));
                }
            }
        }
        let Value::Object(target) = target else {
            return Err("a patch of an object met another value".to_owned());
        };
        if let Some(keys) = patch.get(RETAIN_KEYS) {
            retain(target, patch, keys)?;
        }
        let ordered = self.ordered_lists(ty, target, patch)?;
        for (key, value) in patch {
            if key == PATCH || key == RETAIN_KEYS || key.starts_with(SET_ORDER) {
                continue;
            }
            if let Some(list) = key.strip_prefix(DELETE_FROM) {
                delete_from(target, list, value)?;
            } else if !ordered.contains(&key.as_str()) {
                self.field(ty, target, key, value)?;
            }
        }
        Ok(())
    }

    fn field(
        &self,
        ty: Option<TypeId>,
        target: &mut Map<String, Value>,
        key: &str,
        value: &Value,
    ) -> Result<(), String> {
        if value.is_null() {
            target.remove(key);
            return Ok(());
        }
        let rule = self.rule(ty, key);
        match (target.get_mut(key), value) {
            (Some(old @ Value::Object(_)), Value::Object(patch)) => {
                self.object(rule.ty, old, patch)
            }
            (Some(Value::Array(old)), Value::Array(patch)) => {
                let merged = self.list(rule, key, std::mem::take(old), patch)?;
                *old = merged;
                Ok(())
            }
            _ => {
                match plain(value) {
                    Some(v) => target.insert(key.to_owned(), v),
                    None => target.remove(key),
                };
                Ok(())
            }
        }
    }

    /// Merges a list that is in both, and orders it.
    fn list(
        &self,
        rule: FieldRule<'a>,
        name: &str,
        old: Vec<Value>,
        patch: &[Value],
    ) -> Result<Vec<Value>, String> {
        let (merged, key, item) = self.list_rule(rule);
        if !merged {
            return Ok(patch.iter().filter_map(plain).collect());
        }
        if old.is_empty() && patch.is_empty() {
            return Ok(old);
        }
        let of_maps = old.iter().chain(patch).any(Value::is_object);
        if !of_maps {
            let server = old.clone();
            let mut all = old;
            for v in patch {
                if !all.contains(v) {
                    all.push(v.clone());
                }
            }
            return Ok(normalize(all, patch, &server, ItemKey(None)));
        }
        let Some(key) = key else {
            return Err(format!("cannot merge lists without merge key for {name}"));
        };
        let (old, patch) = special_items(old, patch, key)?;
        let server: Vec<Value> = keys_only(&old, key);
        let mut all = old;
        for v in &patch {
            let Some(patch_map) = v.as_object() else {
                return Err(format!("expected a map in the list {name}, got {v}"));
            };
            if !patch_map.contains_key(key) {
                return Err(no_merge_key(v, key));
            }
            match ItemKey(Some(key)).position(&all, v) {
                Some(at) => self.object(item, &mut all[at], patch_map)?,
                None => all.extend(plain(v)),
            }
        }
        let wanted = keys_only(&patch, key);
        Ok(normalize(all, &wanted, &server, ItemKey(Some(key))))
    }

    /// Handles the fields that `$setElementOrder` speaks of; returns their names.
    fn ordered_lists<'p>(
        &self,
        ty: Option<TypeId>,
        target: &mut Map<String, Value>,
        patch: &'p Map<String, Value>,
    ) -> Result<Vec<&'p str>, String> {
        let mut done = Vec::new();
        for (key, order) in patch {
            let Some(name) = key.strip_prefix(SET_ORDER) else {
                continue;
            };
            let Some(order) = order.as_array() else {
                return Err(format!("invalid argument type: {key} must be a list"));
            };
            let given = match patch.get(name) {
                None => None,
                Some(Value::Array(a)) => Some(&a[..]),
                // An explicit null deletes the list.
                Some(Value::Null) => continue,
                Some(_) => return Err(format!("invalid argument type: {name} must be a list")),
            };
            let rule = self.rule(ty, name);
            let (merged, merge_key, _) = self.list_rule(rule);
            let item_key = ItemKey(merge_key);
            if let Some(given) = given {
                check_order(name, given, order, item_key)?;
            }
            let old = match target.get_mut(name) {
                Some(Value::Array(a)) => std::mem::take(a),
                Some(Value::Null) | None => Vec::new(),
                Some(_) => return Err(format!("invalid argument type: {name} must be a list")),
            };
            if !target.contains_key(name) && given.is_none() {
                continue;
            }
            let server = match merge_key {
                Some(k) => keys_only(&old, k),
                None => old.clone(),
            };
            let list = match given {
                None => old,
                Some(given) => {
                    done.push(name);
                    self.list(rule, name, old, given)?
                }
            };
            let list = if merged {
                normalize(list, order, &server, item_key)
            } else {
                list
            };
            target.insert(name.to_owned(), Value::Array(list));
        }
        Ok(done)
    }
}

/// Deletes and replacements in a list of maps: what is left of the old items and of the patch.
fn special_items(
    mut old: Vec<Value>,
    patch: &[Value],
    key: &str,
) -> Result<(Vec<Value>, Vec<Value>), String> {
    let mut rest = Vec::with_capacity(patch.len());
    let mut replace = false;
    for v in patch {
        match v.get(PATCH).map(|d| d.as_str()) {
            None => rest.push(v.clone()),
            Some(Some("delete")) => {
                let wanted = v.get(key).ok_or_else(|| no_merge_key(v, key))?;
                old.retain(|item| item.get(key) != Some(wanted));
            }
            Some(Some("replace")) => replace = true,
            Some(Some("merge")) => {
                return Err("merging lists cannot yet be specified in the patch".to_owned());
            }
            Some(_) => {
                return Err(format!(
                    "unknown patch type: {} in map: {v}",
                    text(&v[PATCH])
                ));
            }
        }
    }
    if replace {
        return Ok((rest.iter().filter_map(plain).collect(), Vec::new()));
    }
    Ok((old, rest))
}

fn keys_only(list: &[Value], key: &str) -> Vec<Value> {
    list.iter()
        .map(|v| {
            let mut m = Map::new();
            if let Some(k) = v.get(key) {
                m.insert(key.to_owned(), k.clone());
            }
            Value::Object(m)
        })
        .collect()
}

/// Drops every field that `$retainKeys` does not name.
fn retain(
    target: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    keys: &Value,
) -> Result<(), String> {
    const BAD: &str = "$retainKeys directive is malformed: it must be a list of the patch's keys";
    let keys = keys.as_array().ok_or(BAD)?;
    let named = |k: &str| keys.iter().any(|n| n == k);
    if patch.keys().any(|k| !k.starts_with('$') && !named(k)) {
        return Err(BAD.to_owned());
    }
    target.retain(|k, _| named(k));
    Ok(())
}

fn delete_from(target: &mut Map<String, Value>, list: &str, gone: &Value) -> Result<(), String> {
    let Some(gone) = gone.as_array() else {
        return Err(format!(
            "invalid argument type: {DELETE_FROM}{list} must be a list"
        ));
    };
    if let Some(Value::Array(old)) = target.get_mut(list) {
        old.retain(|v| !gone.contains(v));
    }
    Ok(())
}

/// The patch's items must stand in the order that it asks for.
fn check_order(
    name: &str,
    given: &[Value],
    order: &[Value],
    key: ItemKey<'_>,
) -> Result<(), String> {
    let mut last = None;
    for item in given {
        if item.get(PATCH).is_some() {
            continue;
        }
        let at = key.position(order, item);
        if at.is_none() || at < last {
            return Err(format!(
                "the order in patch list:\n{}\n doesn't match {SET_ORDER}{name} list:\n{}",
                Value::from(given),
                Value::from(order)
            ));
        }
        last = at;
    }
    Ok(())
}

/// A patch's value as new content: without directives and nulls. `None` when it says "delete".
fn plain(v: &Value) -> Option<Value> {
    match v {
        Value::Null => None,
        Value::Object(m) => {
            if m.get(PATCH).is_some_and(|d| d == "delete") {
                return None;
            }
            let directive = |k: &str| {
                k == PATCH
                    || k == RETAIN_KEYS
                    || k.starts_with(SET_ORDER)
                    || k.starts_with(DELETE_FROM)
            };
            let fields = m
                .iter()
                .filter(|(k, _)| !directive(k))
                .filter_map(|(k, v)| Some((k.clone(), plain(v)?)))
                .collect();
            Some(Value::Object(fields))
        }
        Value::Array(a) => Some(Value::Array(
            a.iter()
                .filter(|v| !v.get(PATCH).is_some_and(|d| d == "replace"))
                .filter_map(plain)
                .collect(),
        )),
        other => Some(other.clone()),
    }
}

fn no_merge_key(item: &Value, key: &str) -> String {
    format!("map: {item} does not contain declared merge key: {key}")
}

fn text(v: &Value) -> String {
    v.as_str().map_or_else(|| v.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gvk::GroupVersionKind;
    use proptest::prelude::*;
    use serde_json::json;

    fn patched(kind: &str, target: &Value, patch: &Value) -> Result<Value, String> {
        let schema = Schema::builtin();
        let group = if kind == "Deployment" { "apps" } else { "" };
        let ty = schema
            .kind(&GroupVersionKind::new(group, "v1", kind))
            .expect("built in");
        let mut v = target.clone();
        strategic_merge_patch(schema, ty, &mut v, patch)
            .map(|()| v)
            .map_err(|s| s.message)
    }

    fn pod(spec: Value) -> Value {
        json!({"spec": spec})
    }

    #[track_caller]
    fn check(before: Value, patch: Value, after: Value) {
        assert_eq!(patched("Pod", &pod(before), &pod(patch)), Ok(pod(after)));
    }

    #[test]
    fn merges_lists_by_key() {
        check(
            json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]}),
            json!({"containers": [{"name": "b", "image": "2"}, {"name": "c", "image": "1"}]}),
            json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "2"}, {"name": "c", "image": "1"}]}),
        );
        // The patch's order counts for what it names.
        check(
            json!({"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}),
            json!({"containers": [{"name": "c"}, {"name": "a"}]}),
            json!({"containers": [{"name": "b"}, {"name": "c"}, {"name": "a"}]}),
        );
        // Nested lists, another key.
        check(
            json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "name": "x"}]}]}),
            json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "name": "y"}, {"containerPort": 81}]}]}),
            json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "name": "y"}, {"containerPort": 81}]}]}),
        );
    }

    #[test]
    fn replaces_lists_that_have_no_key() {
        check(
            json!({"containers": [{"name": "a", "args": ["1", "2"]}], "tolerations": [{"key": "a"}]}),
            json!({"containers": [{"name": "a", "args": ["3"]}], "tolerations": [{"key": "b"}]}),
            json!({"containers": [{"name": "a", "args": ["3"]}], "tolerations": [{"key": "b"}]}),
        );
    }

    #[test]
    fn nulls_delete() {
        check(
            json!({"nodeName": "n", "nodeSelector": {"a": "1", "b": "2"}}),
            json!({"nodeName": null, "nodeSelector": {"a": null}}),
            json!({"nodeSelector": {"b": "2"}}),
        );
        check(
            json!({}),
            json!({"nodeSelector": {"a": null}}),
            json!({"nodeSelector": {}}),
        );
    }

    #[test]
    fn patch_directives() {
        check(
            json!({"containers": [{"name": "a"}, {"name": "b"}]}),
            json!({"containers": [{"name": "a", "$patch": "delete"}]}),
            json!({"containers": [{"name": "b"}]}),
        );
        check(
            json!({"containers": [{"name": "a"}, {"name": "b"}]}),
            json!({"containers": [{"$patch": "replace"}, {"name": "c"}]}),
            json!({"containers": [{"name": "c"}]}),
        );
        check(
            json!({"nodeSelector": {"a": "1"}}),
            json!({"nodeSelector": {"$patch": "replace", "b": "2"}}),
            json!({"nodeSelector": {"b": "2"}}),
        );
        check(
            json!({"securityContext": {"runAsUser": 1}}),
            json!({"securityContext": {"$patch": "delete"}}),
            json!({"securityContext": {}}),
        );
        // What is new carries no directives over.
        check(
            json!({}),
            json!({"containers": [{"name": "a", "$setElementOrder/ports": [], "ports": [{"containerPort": 1, "$patch": "delete"}]}]}),
            json!({"containers": [{"name": "a", "ports": []}]}),
        );
    }

    #[test]
    fn retain_keys() {
        let before = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
        let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
        assert_eq!(
            patched("Deployment", &before, &patch),
            Ok(json!({"spec": {"strategy": {"type": "Recreate"}}}))
        );
        let wrong = json!({"spec": {"strategy": {"$retainKeys": ["x"], "type": "Recreate"}}});
        assert!(patched("Deployment", &before, &wrong).is_err());
    }

    #[test]
    fn element_order() {
        check(
            json!({"containers": [{"name": "a"}, {"name": "s"}, {"name": "b"}]}),
            json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}),
            json!({"containers": [{"name": "s"}, {"name": "b"}, {"name": "a"}]}),
        );
        check(
            json!({"containers": [{"name": "a"}, {"name": "b"}]}),
            json!({
                "$setElementOrder/containers": [{"name": "c"}, {"name": "a"}, {"name": "b"}],
                "containers": [{"name": "c", "image": "1"}, {"name": "b", "image": "2"}],
            }),
            json!({"containers": [{"name": "c", "image": "1"}, {"name": "a"}, {"name": "b", "image": "2"}]}),
        );
        let wrong = json!({
            "$setElementOrder/containers": [{"name": "a"}, {"name": "b"}],
            "containers": [{"name": "b"}, {"name": "a"}],
        });
        assert!(patched("Pod", &pod(json!({})), &pod(wrong)).is_err());
    }

    #[test]
    fn primitive_lists() {
        let before = json!({"metadata": {"finalizers": ["a", "b"]}});
        let patch = json!({"metadata": {
            "$deleteFromPrimitiveList/finalizers": ["a"],
            "$setElementOrder/finalizers": ["b", "c"],
            "finalizers": ["c"],
        }});
        assert_eq!(
            patched("Pod", &before, &patch),
            Ok(json!({"metadata": {"finalizers": ["b", "c"]}}))
        );
    }

    #[test]
    fn refuses_what_does_not_fit() {
        for (patch, want) in [
            (
                json!({"containers": [{"image": "x"}]}),
                "map: {\"image\":\"x\"} does not contain declared merge key: name",
            ),
            (
                json!({"nodeSelector": {"$patch": "sing"}}),
                "unknown patch type: sing in map: {\"$patch\":\"sing\"}",
            ),
        ] {
            let before = pod(json!({"containers": [{"name": "a"}], "nodeSelector": {}}));
            assert_eq!(patched("Pod", &before, &pod(patch)), Err(want.to_owned()));
        }
    }

    fn containers() -> impl Strategy<Value = Value> {
        prop::collection::btree_map("[a-d]", ("[x-z]", prop::option::of(1..3u8)), 0..4)
            .prop_shuffled()
    }

    trait Shuffled {
        fn prop_shuffled(self) -> BoxedStrategy<Value>;
    }

    impl<S> Shuffled for S
    where
        S: Strategy<Value = std::collections::BTreeMap<String, (String, Option<u8>)>> + 'static,
    {
        fn prop_shuffled(self) -> BoxedStrategy<Value> {
            self.prop_map(|m| {
                m.into_iter()
                    .map(|(name, (image, port))| match port {
                        Some(p) => {
                            json!({"name": name, "image": image, "ports": [{"containerPort": p}]})
                        }
                        None => json!({"name": name, "image": image}),
                    })
                    .collect::<Vec<_>>()
            })
            .prop_shuffle()
            .prop_map(|list| json!({"spec": {"containers": list}}))
            .boxed()
        }
    }

    proptest! {
        #[test]
        fn a_patch_applied_twice_is_applied_once(a in containers(), b in containers()) {
            let once = patched("Pod", &a, &b).expect("applies");
            let twice = patched("Pod", &once, &b).expect("applies");
            prop_assert_eq!(&once, &twice);
            // Everything that the patch says holds, and nothing that was there is lost.
            for wanted in b["spec"]["containers"].as_array().expect("a list") {
                let found = once["spec"]["containers"].as_array().expect("a list").iter()
                    .find(|c| c["name"] == wanted["name"]).expect("is there");
                prop_assert_eq!(&found["image"], &wanted["image"]);
            }
            for old in a["spec"]["containers"].as_array().expect("a list") {
                prop_assert!(once["spec"]["containers"].as_array().expect("a list").iter()
                    .any(|c| c["name"] == old["name"]));
            }
        }
    }
}
