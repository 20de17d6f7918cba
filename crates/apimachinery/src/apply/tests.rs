//! Tables of upstream behaviour, and properties.

use super::*;
use crate::gvk::GroupVersionKind;
use expect_test::expect;
use proptest::prelude::*;

fn ty(kind: &str) -> TypeId {
    let group = if kind == "Deployment" { "apps" } else { "" };
    Schema::builtin()
        .kind(&GroupVersionKind::new(group, "v1", kind))
        .expect("built in")
}

fn by<'a>(name: &'a str, time: &'a str) -> Manager<'a> {
    Manager {
        name,
        api_version: "apps/v1",
        subresource: "",
        time,
    }
}

/// Applies to a Deployment.
fn applied(live: Option<&Value>, config: &Value, who: &str, force: bool) -> Result<Value, Status> {
    apply(
        Schema::builtin(),
        ty("Deployment"),
        live,
        config,
        &by(who, "2026-01-01T00:00:00Z"),
        force,
    )
}

fn updated(live: Option<&Value>, new: &Value, who: &str) -> Value {
    let mut new = new.clone();
    update(
        Schema::builtin(),
        ty("Deployment"),
        live,
        &mut new,
        &by(who, "2026-01-02T00:00:00Z"),
    )
    .expect("never fails");
    new
}

fn deployment(containers: Value, replicas: Option<i64>) -> Value {
    let mut v = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "default", "labels": {"app": "web"}},
        "spec": {"template": {"spec": {"containers": containers}}},
    });
    if let Some(n) = replicas {
        v["spec"]["replicas"] = n.into();
    }
    v
}

fn fields_of<'a>(v: &'a Value, who: &str, operation: &str) -> Option<&'a Value> {
    v["metadata"]["managedFields"]
        .as_array()?
        .iter()
        .find(|e| e["manager"] == who && e["operation"] == operation)
        .map(|e| &e["fieldsV1"])
}

#[test]
fn a_first_apply_owns_what_it_states() {
    let config = deployment(
        json!([{"name": "a", "image": "x", "ports": [{"containerPort": 80}]}]),
        Some(3),
    );
    let v = applied(None, &config, "me", false).expect("applies");
    expect![[r#"[{"apiVersion":"apps/v1","fieldsType":"FieldsV1","fieldsV1":{"f:metadata":{"f:labels":{"f:app":{}}},"f:spec":{"f:replicas":{},"f:template":{"f:spec":{"f:containers":{"k:{\"name\":\"a\"}":{".":{},"f:image":{},"f:name":{},"f:ports":{"k:{\"containerPort\":80,\"protocol\":\"TCP\"}":{".":{},"f:containerPort":{}}}}}}}}},"manager":"me","operation":"Apply","time":"2026-01-01T00:00:00Z"}]"#]]
    .assert_eq(&v["metadata"]["managedFields"].to_string());
}

#[test]
fn applying_again_changes_nothing() {
    let config = deployment(
        json!([{"name": "a", "image": "x", "ports": [{"containerPort": 80}]}]),
        Some(3),
    );
    let mut live = applied(None, &config, "me", false).expect("applies");
    // The server defaulted something meanwhile.
    live["spec"]["template"]["spec"]["containers"][0]["ports"][0]["protocol"] = "TCP".into();
    live["spec"]["revisionHistoryLimit"] = 10.into();
    live["metadata"]["uid"] = "u".into();
    let again = apply(
        Schema::builtin(),
        ty("Deployment"),
        Some(&live),
        &config,
        &by("me", "2027-01-01T00:00:00Z"),
        false,
    )
    .expect("applies");
    assert_eq!(again, live);
}

#[test]
fn fields_no_longer_applied_go_unless_another_owns_them() {
    let mut config = deployment(
        json!([{"name": "a", "image": "x"}, {"name": "b", "image": "y"}]),
        Some(3),
    );
    config["metadata"]["labels"]["extra"] = "1".into();
    let live = applied(None, &config, "me", false).expect("applies");
    // Another manager shares the replicas.
    let shared = applied(
        Some(&live),
        &json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"replicas": 3}}),
        "other",
        false,
    )
    .expect("the same value is no conflict");
    let less = deployment(json!([{"name": "a", "image": "x"}]), None);
    let v = applied(Some(&shared), &less, "me", false).expect("applies");
    assert_eq!(v["spec"]["replicas"], 3);
    assert_eq!(v["metadata"]["labels"], json!({"app": "web"}));
    assert_eq!(
        v["spec"]["template"]["spec"]["containers"],
        json!([{"name": "a", "image": "x"}])
    );
    // Now only the other owns it, and it goes with the other.
    let nothing = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "labels": {"b": "1"}}});
    let v = applied(Some(&v), &nothing, "other", false).expect("applies");
    assert!(v["spec"].get("replicas").is_none());
    assert_eq!(v["metadata"]["labels"], json!({"app": "web", "b": "1"}));
    assert_eq!(v["metadata"]["name"], "web");
}

#[test]
fn conflicts_are_named() {
    let live = updated(
        None,
        &deployment(json!([{"name": "a", "image": "x"}]), Some(1)),
        "kubectl",
    );
    let config = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"replicas": 2}});
    let e = applied(Some(&live), &config, "me", false).expect_err("conflicts");
    assert_eq!((e.code, e.reason), (409, "Conflict"));
    expect![[
        r#"Apply failed with 1 conflict: conflict with "kubectl" using apps/v1: .spec.replicas"#
    ]]
    .assert_eq(&e.message);
    expect![[r#"{"causes":[{"field":".spec.replicas","message":"conflict with \"kubectl\" using apps/v1","reason":"FieldManagerConflict"}]}"#]]
    .assert_eq(&e.details.expect("has details").to_string());

    let config = deployment(json!([{"name": "a", "image": "z"}]), Some(2));
    let e = applied(Some(&live), &config, "me", false).expect_err("conflicts");
    expect![[r#"
        Apply failed with 2 conflicts: conflicts with "kubectl" using apps/v1:
        - .spec.replicas
        - .spec.template.spec.containers[name="a"].image"#]]
    .assert_eq(&e.message);

    let v = applied(Some(&live), &config, "me", true).expect("is forced");
    assert_eq!(v["spec"]["replicas"], 2);
    let theirs = fields_of(&v, "kubectl", "Update").expect("keeps the rest");
    assert!(theirs["f:spec"].get("f:replicas").is_none());

    let e = applied(
        Some(&v),
        &deployment(json!([{"name": "a", "image": "z"}]), Some(4)),
        "third",
        false,
    )
    .expect_err("conflicts");
    assert_eq!(
        e.message,
        r#"Apply failed with 1 conflict: conflict with "me": .spec.replicas"#
    );
}

#[test]
fn quantities_conflict_by_value() {
    let with = |cpu: Value| {
        deployment(
            json!([{"name": "a", "resources": {"limits": {"cpu": cpu}}}]),
            None,
        )
    };
    let live = applied(None, &with("1".into()), "me", false).expect("applies");
    let v = applied(Some(&live), &with("1000m".into()), "other", false).expect("is the same");
    assert_eq!(v["spec"], live["spec"]);
    applied(Some(&live), &with("2".into()), "other", false).expect_err("is not the same");
}

#[test]
fn atomic_parts_are_one_field() {
    let with = |selector: Value| {
        let mut v = deployment(json!([{"name": "a"}]), None);
        v["spec"]["selector"] = json!({"matchLabels": selector});
        v["spec"]["template"]["spec"]["nodeSelector"] = json!({"disk": "ssd"});
        v
    };
    let live = applied(None, &with(json!({"a": "1"})), "me", false).expect("applies");
    let own = fields_of(&live, "me", "Apply").expect("owns");
    assert_eq!(own["f:spec"]["f:selector"], json!({}));
    assert_eq!(
        own["f:spec"]["f:template"]["f:spec"]["f:nodeSelector"],
        json!({})
    );
    let v = applied(Some(&live), &with(json!({"b": "1"})), "me", false).expect("applies");
    assert_eq!(v["spec"]["selector"], json!({"matchLabels": {"b": "1"}}));
}

#[test]
fn sets_and_their_members() {
    let with = |f: Value| json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "finalizers": f}});
    let live = applied(None, &with(json!(["a", "b"])), "me", false).expect("applies");
    let v = applied(Some(&live), &with(json!(["c"])), "other", false).expect("applies");
    assert_eq!(v["metadata"]["finalizers"], json!(["a", "b", "c"]));
    let v = applied(Some(&v), &with(json!(["b"])), "me", false).expect("applies");
    assert_eq!(v["metadata"]["finalizers"], json!(["b", "c"]));
}

#[test]
fn duplicates_in_the_live_list_do_no_harm() {
    let twice = json!([{"name": "E", "value": "1"}, {"name": "F", "value": "f"}, {"name": "E", "value": "2"}]);
    let live = updated(
        None,
        &deployment(json!([{"name": "a", "image": "x", "env": twice}]), Some(1)),
        "kubectl",
    );
    let config = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "labels": {"n": "1"}}});
    let v = applied(Some(&live), &config, "me", false).expect("applies");
    assert_eq!(v["spec"], live["spec"]);
    // Applying the item itself makes it one.
    let config = deployment(
        json!([{"name": "a", "env": [{"name": "E", "value": "3"}]}]),
        None,
    );
    let v = applied(Some(&v), &config, "me", true).expect("applies");
    assert_eq!(
        v["spec"]["template"]["spec"]["containers"][0]["env"],
        json!([{"name": "E", "value": "3"}, {"name": "F", "value": "f"}])
    );
}

#[test]
fn configs_must_be_keyed() {
    for (containers, want) in [
        (
            json!([{"name": "a"}, {"name": "a"}]),
            r#"failed to create typed patch object (default/web; apps/v1, Kind=Deployment): .spec.template.spec.containers: duplicate entries for key [name="a"]"#,
        ),
        (
            json!([{"image": "x"}]),
            r#"failed to create typed patch object (default/web; apps/v1, Kind=Deployment): .spec.template.spec.containers: associative list with keys has an element that omits all key fields ["name"] (and doesn't have default value for any key)"#,
        ),
    ] {
        let e = applied(None, &deployment(containers, None), "me", false).expect_err("is refused");
        assert_eq!((e.code, &*e.message), (400, want));
    }
}

#[test]
fn updates_own_what_they_change() {
    let live = updated(
        None,
        &deployment(json!([{"name": "a", "image": "x"}]), Some(1)),
        "creator",
    );
    expect![[r#"{"f:metadata":{"f:labels":{".":{},"f:app":{}}},"f:spec":{"f:replicas":{},"f:template":{"f:spec":{"f:containers":{".":{},"k:{\"name\":\"a\"}":{".":{},"f:image":{},"f:name":{}}}}}}}"#]]
    .assert_eq(&fields_of(&live, "creator", "Update").expect("owns").to_string());

    let mut new = live.clone();
    new["spec"]["replicas"] = 2.into();
    new["metadata"]["resourceVersion"] = "9".into();
    let v = updated(Some(&live), &new, "scaler");
    assert_eq!(
        fields_of(&v, "scaler", "Update"),
        Some(&json!({"f:spec": {"f:replicas": {}}}))
    );
    assert!(
        fields_of(&v, "creator", "Update").expect("owns")["f:spec"]
            .get("f:replicas")
            .is_none()
    );

    // A write that changes nothing leaves all as it was, also when the client sent none.
    let mut same = v.clone();
    managers::take(&mut same);
    assert_eq!(updated(Some(&v), &same, "somebody"), v);

    // Removal takes the field from its owner and gives nothing.
    let mut new = v.clone();
    new["spec"]
        .as_object_mut()
        .expect("an object")
        .remove("replicas");
    let w = updated(Some(&v), &new, "remover");
    assert!(fields_of(&w, "scaler", "Update").is_none());
    assert!(fields_of(&w, "remover", "Update").is_none());
}

#[test]
fn a_client_may_reset_ownership() {
    let live = updated(
        None,
        &deployment(json!([{"name": "a"}]), Some(1)),
        "creator",
    );
    let mut new = live.clone();
    new["metadata"]["managedFields"] = json!([{}]);
    let v = updated(Some(&live), &new, "me");
    assert!(v["metadata"].get("managedFields").is_none());
    // Then the first apply owes everything to nobody in particular.
    let v = applied(
        Some(&v),
        &deployment(json!([{"name": "a"}]), Some(1)),
        "me",
        false,
    )
    .expect("agrees");
    assert!(fields_of(&v, BEFORE_FIRST_APPLY, "Update").is_some());
    // Nonsense is ignored.
    new["metadata"]["managedFields"] = json!([{"operation": "Sing"}]);
    assert_eq!(updated(Some(&live), &new, "me"), live);
}

#[test]
fn subresources_are_managers_of_their_own() {
    let live = updated(
        None,
        &deployment(json!([{"name": "a"}]), Some(1)),
        "creator",
    );
    let mut new = live.clone();
    new["status"] = json!({"replicas": 1});
    let status = Manager {
        subresource: "status",
        ..by("creator", "2026-01-03T00:00:00Z")
    };
    update(
        Schema::builtin(),
        ty("Deployment"),
        Some(&live),
        &mut new,
        &status,
    )
    .expect("never fails");
    let entry = new["metadata"]["managedFields"]
        .as_array()
        .and_then(|a| a.iter().find(|e| e["subresource"] == "status"))
        .expect("has an entry");
    assert_eq!(entry["fieldsV1"], json!({"f:status": {"f:replicas": {}}}));
}

#[test]
fn old_updaters_are_merged() {
    let mut live = updated(
        None,
        &deployment(json!([{"name": "a"}]), Some(1)),
        "creator",
    );
    for i in 0..15 {
        let mut new = live.clone();
        new["metadata"]["labels"][format!("l{i}")] = "1".into();
        live = updated(Some(&live), &new, &format!("m{i:02}"));
    }
    let entries = live["metadata"]["managedFields"]
        .as_array()
        .expect("a list");
    assert_eq!(entries.len(), UPDATE_MANAGERS_MAX);
    assert!(fields_of(&live, "ancient-changes", "Update").is_some());
}

#[test]
fn untyped_fields_are_kept_by_name() {
    let crd = Schema::builtin();
    let raw = crd
        .kind(&GroupVersionKind::new("apps", "v1", "ControllerRevision"))
        .expect("built in");
    let config = json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": {"name": "r"},
        "data": {"a": {"b": [1]}}, "revision": 1});
    let v = apply(crd, raw, None, &config, &by("me", "t"), false).expect("applies");
    assert_eq!(v["data"], config["data"]);
    let again = apply(crd, raw, Some(&v), &config, &by("me", "u"), false).expect("applies");
    assert_eq!(again, v);
}

fn config() -> impl Strategy<Value = Value> {
    let container = (
        "[a-c]",
        prop::option::of("[x-y]"),
        prop::collection::btree_set(80..82u16, 0..3),
    );
    (
        prop::collection::btree_map("[a-c]", "[1-2]", 0..3),
        prop::option::of(1..3i64),
        prop::collection::vec(container, 0..3).prop_map(|list| {
            let mut seen = std::collections::BTreeSet::new();
            list.into_iter()
                .filter(|(n, ..)| seen.insert(n.clone()))
                .map(|(name, image, ports)| {
                    let mut c = json!({"name": name});
                    if let Some(i) = image {
                        c["image"] = i.into();
                    }
                    if !ports.is_empty() {
                        let ports: Vec<_> =
                            ports.iter().map(|p| json!({"containerPort": p})).collect();
                        c["ports"] = ports.into();
                    }
                    c
                })
                .collect::<Vec<_>>()
        }),
    )
        .prop_map(|(labels, replicas, containers)| {
            let mut v = deployment(containers.into(), replicas);
            v["metadata"]["labels"] = labels
                .into_iter()
                .map(|(k, v)| (k, Value::from(v)))
                .collect();
            v
        })
}

/// Whether everything that a config says holds in an object.
fn holds(object: &Value, config: &Value) -> bool {
    match (object, config) {
        (Value::Object(o), Value::Object(c)) => {
            c.iter()
                .all(|(k, v)| k == "managedFields" || o.get(k).is_some_and(|o| holds(o, v)))
                || c.is_empty()
        }
        (Value::Array(o), Value::Array(c)) => c.iter().all(|v| o.iter().any(|o| holds(o, v))),
        (o, c) => o == c,
    }
}

/// Without times, and with lists in an order of their own.
fn normal(v: &Value) -> Value {
    match v {
        Value::Object(m) => Value::Object(
            m.iter()
                .filter(|(k, _)| *k != "time")
                .map(|(k, v)| (k.clone(), normal(v)))
                .collect(),
        ),
        Value::Array(a) => {
            let mut a: Vec<Value> = a.iter().map(normal).collect();
            a.sort_by_key(Value::to_string);
            Value::Array(a)
        }
        other => other.clone(),
    }
}

proptest! {
    #[test]
    fn apply_is_idempotent(a in config(), b in config(), c in config()) {
        let v = applied(None, &a, "a", false).expect("applies");
        let v = updated(Some(&v), &{
            let mut n = v.clone();
            n["spec"] = b["spec"].clone();
            n
        }, "u");
        let once = applied(Some(&v), &c, "a", true).expect("is forced");
        let twice = applied(Some(&once), &c, "a", false).expect("owns all that it says");
        prop_assert_eq!(&once, &twice);
        prop_assert!(holds(&once, &c));
    }

    #[test]
    fn an_owner_loses_nothing_without_force(a in config(), others in prop::collection::vec((0..3u8, config()), 0..5)) {
        let mut v = applied(None, &a, "a", false).expect("applies");
        for (who, config) in others {
            match applied(Some(&v), &config, &format!("m{who}"), false) {
                Ok(next) => v = next,
                Err(e) => prop_assert_eq!(e.code, 409),
            }
            prop_assert!(holds(&v, &a), "{} lost from {}", a, v);
        }
    }

    #[test]
    fn agreeing_appliers_commute(a in config(), b in config(), c in config()) {
        let start = applied(None, &a, "s", false).expect("applies");
        let one = applied(Some(&start), &b, "b", false).and_then(|v| applied(Some(&v), &c, "c", false));
        let two = applied(Some(&start), &c, "c", false).and_then(|v| applied(Some(&v), &b, "b", false));
        match (one, two) {
            (Ok(one), Ok(two)) => prop_assert_eq!(normal(&one), normal(&two)),
            (Err(_), Err(_)) => {}
            (x, y) => prop_assert!(false, "{:?} against {:?}", x, y),
        }
    }

    #[test]
    fn what_all_owners_give_up_is_gone(a in config(), b in config()) {
        let v = applied(None, &a, "a", false).expect("applies");
        let v = applied(Some(&v), &b, "a", false).expect("owns all");
        let fresh = applied(None, &b, "a", false).expect("applies");
        prop_assert_eq!(normal(&v), normal(&fresh));
    }
}
