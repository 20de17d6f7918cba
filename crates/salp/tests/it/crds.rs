//! Custom resources as kubectl and helm use them.

use crate::harness::{Site, text, tool};
use serde_json::{Value, json};
use std::process::Command;

/// A definition of the shape that certificate operators have.
fn tickets() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "tickets.fair.example"},
        "spec": {
            "group": "fair.example", "scope": "Namespaced",
            "names": {"plural": "tickets", "singular": "ticket", "kind": "Ticket",
                "listKind": "TicketList", "shortNames": ["tkt"], "categories": ["fair"]},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "subresources": {"status": {}, "scale": {
                    "specReplicasPath": ".spec.seats", "statusReplicasPath": ".status.seats"}},
                "additionalPrinterColumns": [
                    {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status"},
                    {"name": "Ride", "type": "string", "jsonPath": ".spec.rideRef.name"},
                    {"name": "Seats", "type": "integer", "jsonPath": ".spec.seats", "priority": 1},
                    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
                ],
                "schema": {"openAPIV3Schema": schema()},
            }],
        },
    })
}

fn schema() -> Value {
    json!({"type": "object", "description": "A ticket lets somebody ride.", "required": ["spec"], "properties": {
        "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"},
        "spec": {"type": "object", "required": ["rideRef"], "properties": {
            "rideRef": {"type": "object", "required": ["name"], "description": "Which ride.",
                "properties": {"name": {"type": "string"}, "kind": {"type": "string", "default": "Ride"}}},
            "seats": {"type": "integer", "minimum": 1, "default": 1},
            "guests": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "required": ["name"], "properties": {
                    "name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}}}},
        }},
        "status": {"type": "object", "properties": {
            "seats": {"type": "integer"},
            "conditions": {"type": "array", "items": {"type": "object", "properties": {
                "type": {"type": "string"}, "status": {"type": "string"}}}},
        }},
    }})
}

fn ticket(spec: &str) -> String {
    format!("apiVersion: fair.example/v1\nkind: Ticket\nmetadata: {{name: one}}\nspec: {spec}\n")
}

#[test]
fn kubectl_works_with_custom_resources() {
    let site = Site::start();
    site.apply(&tickets().to_string());
    site.ok(&[
        "wait",
        "--for=condition=Established",
        "crd/tickets.fair.example",
        "--timeout=30s",
    ]);
    assert!(
        site.ok(&["api-resources", "--api-group=fair.example"])
            .contains("tkt")
    );
    let explained = site.ok(&["explain", "tickets.spec.rideRef"]);
    assert!(explained.contains("Which ride."), "{explained}");

    let said = site.apply(&ticket("{rideRef: {name: wheel}}"));
    assert!(said.contains("ticket.fair.example/one created"), "{said}");
    let strict = site.apply_output(&ticket("{rideRef: {name: wheel}, sets: 1}"), &[]);
    assert!(!strict.status.success(), "{}", text(&strict));
    assert!(
        text(&strict).contains("unknown field \"spec.sets\""),
        "{}",
        text(&strict)
    );
    let wrong = site.apply_output(&ticket("{rideRef: {name: wheel}, seats: 0}"), &[]);
    let said = text(&wrong);
    assert!(said.contains("spec.seats: Invalid value: 0"), "{said}");
    let missing = site.apply_output(
        &ticket("{seats: 2}"),
        &["--server-side", "--force-conflicts"],
    );
    assert!(
        missing.status.success(),
        "what others own stays: {}",
        text(&missing)
    );

    let table = site.ok(&["get", "tkt"]);
    let head: Vec<&str> = table
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    assert_eq!(head, ["NAME", "READY", "RIDE", "AGE"]);
    assert!(table.contains("wheel"), "{table}");
    assert!(site.ok(&["get", "fair", "-o", "wide"]).contains("SEATS"));
    let status = r#"{"status":{"conditions":[{"type":"Ready","status":"True"}]}}"#;
    site.ok(&[
        "patch",
        "ticket",
        "one",
        "--subresource=status",
        "--type=merge",
        "-p",
        status,
    ]);
    site.ok(&[
        "wait",
        "--for=condition=Ready",
        "ticket/one",
        "--timeout=30s",
    ]);
    assert!(site.ok(&["get", "ticket", "one"]).contains("True"));
    site.ok(&["scale", "ticket/one", "--replicas=4"]);
    assert_eq!(site.json(&["get", "ticket", "one"])["spec"]["seats"], 4);
    site.ok(&["annotate", "ticket", "one", "a=b"]);
    assert_eq!(
        site.json(&["get", "ticket", "one"])["spec"]["rideRef"]["kind"],
        "Ride"
    );

    site.ok(&["delete", "crd", "tickets.fair.example", "--timeout=60s"]);
    let left = site.ok(&["api-resources", "--api-group=fair.example"]);
    assert!(!left.contains("tkt"), "{left}");
}

#[test]
fn helm_installs_a_chart_with_crds() {
    let site = Site::start();
    let dir = tempfile::tempdir().expect("directory");
    let chart = dir.path().join("fair");
    for folder in ["crds", "templates"] {
        std::fs::create_dir_all(chart.join(folder)).expect("folder");
    }
    let write = |file: &str, body: &str| std::fs::write(chart.join(file), body).expect("file");
    write("Chart.yaml", "apiVersion: v2\nname: fair\nversion: 0.1.0\n");
    write("crds/tickets.yaml", &tickets().to_string());
    write(
        "templates/one.yaml",
        &ticket("{rideRef: {name: {{ .Values.ride }}}}"),
    );
    write("values.yaml", "ride: wheel\n");
    let output = Command::new(tool("helm"))
        .arg("--kubeconfig")
        .arg(site.kubeconfig())
        .args(["install", "fair"])
        .arg(&chart)
        .env("HOME", dir.path())
        .output()
        .expect("run helm");
    assert!(output.status.success(), "{}", text(&output));
    let one = site.json(&["get", "ticket", "one"]);
    assert_eq!(one["spec"]["rideRef"]["name"], "wheel");
    assert_eq!(
        one["metadata"]["labels"]["app.kubernetes.io/managed-by"],
        "Helm"
    );
}
