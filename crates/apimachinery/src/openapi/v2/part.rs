//! What a v2 document from outside has of one group-version: [`part()`] takes it out,
//! [`Document::merge`](super::Document::merge) puts it into another document.
//!
//! The reference is `k8s.io/kube-openapi/pkg/aggregator`.

use super::{METHODS, hash};
use serde_json::{Map, Value, json};
use std::collections::HashMap;

const DEFINITION: &str = "#/definitions/";
const PARAMETER: &str = "#/parameters/";

/// The paths of a document that start so, and the definitions that they use, directly or not.
/// Parameters that the document names once stand where they are used.
#[must_use]
pub fn part(mut document: Value, prefix: &str) -> Value {
    if !document.is_object() {
        document = Value::Null;
    }
    let mut paths = match document["paths"].take() {
        Value::Object(paths) => paths,
        _ => Map::new(),
    };
    paths.retain(|path, item| path.starts_with(prefix) && item.is_object());
    let named = document["parameters"].take();
    for item in paths.values_mut() {
        inline(item, &named);
        for method in METHODS {
            if let Some(operation) = item.get_mut(method) {
                inline(operation, &named);
            }
        }
    }
    let mut left = match document["definitions"].take() {
        Value::Object(definitions) => definitions,
        _ => Map::new(),
    };
    let (mut used, mut open) = (Map::new(), Vec::new());
    paths.values_mut().for_each(|item| {
        references(item, &mut |name| open.push(name.clone()));
    });
    while let Some(name) = open.pop() {
        if let Some(mut definition) = left.remove(&name) {
            references(&mut definition, &mut |name| open.push(name.clone()));
            used.insert(name, definition);
        }
    }
    json!({"paths": paths, "definitions": used})
}

/// Parameters in place of references to them; those that there are not are left out.
fn inline(of: &mut Value, named: &Value) {
    let Some(Value::Array(all)) = of.get_mut("parameters") else {
        return;
    };
    all.retain_mut(|parameter| {
        let Some(reference) = parameter["$ref"].as_str() else {
            return parameter.is_object();
        };
        let found = reference
            .strip_prefix(PARAMETER)
            .map(|name| named[name].clone());
        *parameter = found.unwrap_or_default();
        parameter.is_object()
    });
}

/// Calls for each name of a definition that a value refers to, which may be changed.
fn references(value: &mut Value, each: &mut impl FnMut(&mut String)) {
    match value {
        Value::Object(object) => {
            if let Some(Value::String(reference)) = object.get_mut("$ref")
                && let Some(name) = reference.strip_prefix(DEFINITION)
            {
                let mut name = name.to_owned();
                each(&mut name);
                *reference = format!("{DEFINITION}{name}");
            }
            object.values_mut().for_each(|v| references(v, each));
        }
        Value::Array(all) => all.iter_mut().for_each(|v| references(v, each)),
        _ => {}
    }
}

/// The definitions of a part that are not there yet, under names that are not there either, and
/// references to them by these names; each with the hash of what it was. `is` says whether what
/// has a name is the same.
pub(super) fn renamed(
    part: &mut Value,
    is: impl Fn(&str, &Value) -> Option<bool>,
) -> Vec<(String, Value, u64)> {
    let Value::Object(definitions) = part["definitions"].take() else {
        return Vec::new();
    };
    let mut names: HashMap<String, String> = HashMap::new();
    let mut new = Vec::new();
    for (name, definition) in &definitions {
        let made = |name: &str| (name.to_owned(), definition.clone(), hash(definition));
        let free =
            |other: &str| is(other, definition).is_none() && !definitions.contains_key(other);
        match is(name, definition) {
            Some(true) => {}
            None => new.push(made(name)),
            Some(false) => {
                let mut others = (2..).map(|n: u64| format!("{name}_v{n}"));
                let other = others.find(|o| is(o, definition) == Some(true) || free(o));
                let other = other.unwrap_or_else(|| name.clone());
                if free(&other) {
                    new.push(made(&other));
                }
                names.insert(name.clone(), other);
            }
        }
    }
    let mut turn = |name: &mut String| {
        if let Some(other) = names.get(&*name) {
            name.clone_from(other);
        }
    };
    references(&mut part["paths"], &mut turn);
    for (_, definition, _) in &mut new {
        references(definition, &mut turn);
    }
    new
}

#[cfg(test)]
mod tests {
    use super::super::{Document, Format};
    use super::*;
    use proptest::prelude::*;

    fn json_of(document: Document) -> Value {
        serde_json::from_slice(&document.finish("v1")).unwrap()
    }

    fn fish(meta: &str) -> Value {
        let to = |name: &str| json!({"$ref": format!("#/definitions/{name}")});
        json!({
            "swagger": "2.0",
            "paths": {
                "/apis/sea/v1/fish": {
                    "get": {"parameters": [{"$ref": "#/parameters/pretty"}, {"$ref": "#/parameters/none"}],
                        "responses": {"200": {"description": "OK", "schema": to("sea.Fish")}}},
                    "parameters": [{"in": "path", "name": "n", "type": "string"}],
                },
                "/apis/sea/v2/fish": {"get": {"responses": {"200": {"schema": to("sea.Whale")}}}},
                "/apis/": {"get": {}},
            },
            "parameters": {"pretty": {"in": "query", "name": "pretty", "type": "string"}},
            "definitions": {
                "sea.Fish": {"type": "object", "properties": {"metadata": to("meta.Meta"), "parent": to("sea.Fish")},
                    "x-kubernetes-group-version-kind": [{"group": "sea", "version": "v1", "kind": "Fish"}]},
                "sea.Whale": {"type": "object"},
                "meta.Meta": {"type": "object", "description": meta, "x-kubernetes-group-version-kind": [{"group": "sea"}]},
            },
        })
    }

    fn ours() -> Document {
        let mut document = Document::new(Format::Json);
        document.add(json!({
            "paths": {"/api": {}},
            "components": {"schemas": {"meta.Meta": {"type": "object", "description": "ours"}}},
        }));
        document
    }

    // k8s.io/kube-openapi/pkg/aggregator/aggregator_test.go
    #[test]
    fn a_part_has_its_paths_and_what_they_use() {
        let part = part(fish("theirs"), "/apis/sea/v1/");
        let names =
            |of: &str| -> Vec<String> { part[of].as_object().unwrap().keys().cloned().collect() };
        assert_eq!(names("paths"), ["/apis/sea/v1/fish"]);
        assert_eq!(names("definitions"), ["meta.Meta", "sea.Fish"]);
        assert_eq!(
            part["paths"]["/apis/sea/v1/fish"]["get"]["parameters"],
            json!([{"in": "query", "name": "pretty", "type": "string"}])
        );
    }

    #[test]
    fn definitions_that_differ_are_renamed_and_equal_ones_kept() {
        let mut document = ours();
        document.merge(part(fish("ours"), "/apis/sea/v1/"));
        let same = json_of(document);
        assert_eq!(same["definitions"].as_object().unwrap().len(), 2);
        let reference = |v: &Value, name: &str| {
            v["definitions"][name]["properties"]["metadata"]["$ref"].clone()
        };
        assert_eq!(reference(&same, "sea.Fish"), "#/definitions/meta.Meta");

        let mut document = ours();
        document.merge(part(fish("theirs"), "/apis/sea/v1/"));
        // The same once more, of another server: nothing that is new, and nothing twice.
        document.merge(part(fish("theirs"), "/apis/sea/v1/"));
        let mut third = fish("others");
        third["definitions"]["sea.Fish"]["type"] = "string".into();
        document.merge(part(third, "/apis/sea/v1/"));
        let made = json_of(document);
        let names: Vec<&String> = made["definitions"].as_object().unwrap().keys().collect();
        assert_eq!(
            names,
            [
                "meta.Meta",
                "meta.Meta_v2",
                "meta.Meta_v3",
                "sea.Fish",
                "sea.Fish_v2"
            ]
        );
        assert_eq!(reference(&made, "sea.Fish"), "#/definitions/meta.Meta_v2");
        assert_eq!(
            reference(&made, "sea.Fish_v2"),
            "#/definitions/meta.Meta_v3"
        );
        let parent = &made["definitions"]["sea.Fish_v2"]["properties"]["parent"]["$ref"];
        assert_eq!(parent, "#/definitions/sea.Fish_v2");
        assert_eq!(made["definitions"]["meta.Meta"]["description"], "ours");
        assert_eq!(made["paths"].as_object().unwrap().len(), 2);
    }

    fn schema() -> impl Strategy<Value = Value> {
        let name = prop_oneof![Just("a"), Just("b"), Just("a_v2"), Just("meta.Meta")];
        let leaf = prop_oneof![
            Just(json!({"type": "string"})),
            name.prop_map(|n| json!({"$ref": format!("#/definitions/{n}")})),
        ];
        leaf.prop_recursive(3, 8, 2, |inner| {
            prop_oneof![
                inner
                    .clone()
                    .prop_map(|v| json!({"type": "array", "items": v})),
                (inner.clone(), inner).prop_map(|(a, b)| json!({"properties": {"x": a, "y": b}})),
            ]
        })
    }

    proptest! {
        /// Whatever servers have, no reference of the document leads nowhere that did not
        /// before, and what was there stays.
        #[test]
        fn references_stay_whole(parts in proptest::collection::vec((schema(), schema(), schema(), schema(), schema()), 1..4)) {
            let mut document = ours();
            for (path, a, b, other, meta) in parts {
                document.merge(part(json!({
                    "paths": {"/apis/g/v1/x": {"get": {"responses": {"200": {"schema": path}}}}},
                    "definitions": {"a": a, "b": b, "a_v2": other, "meta.Meta": meta},
                }), "/apis/g/v1/"));
            }
            let mut made = json_of(document);
            prop_assert_eq!(&made["definitions"]["meta.Meta"]["description"], "ours");
            let definitions = made["definitions"].clone();
            let mut lost = Vec::new();
            references(&mut made, &mut |name| {
                if definitions[&*name].is_null() {
                    lost.push(name.clone());
                }
            });
            prop_assert!(lost.is_empty(), "{:?}", lost);
        }
    }
}
