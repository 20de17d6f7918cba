//! Memory of the control plane per custom resource definition, against the aim of 50 KB.

use crate::harness::Site;
use crate::{client, figure, request, runtime, site_pss_mib};
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};

/// Definitions that are made.
const DEFINITIONS: usize = 1_000;
/// After which the allocator has given back what it does not need.
const SETTLES: Duration = Duration::from_secs(25);
const PATH: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// Makes definitions of 60 fields (about 20 KiB of JSON) until all are established, and asks for
/// discovery and OpenAPI once.
pub(super) fn run(figures: &mut Map<String, Value>) {
    let (site, rt) = (Site::start(), runtime());
    let client = rt.block_on(client(&site));
    let ask = |path: &str| {
        rt.block_on(request(&client, "GET", path, Vec::new()))
            .expect("answer")
    };
    let documents = || {
        for path in ["/apis", "/openapi/v3", "/openapi/v2"] {
            ask(path);
        }
    };
    documents();
    std::thread::sleep(SETTLES);
    let (before, _) = site_pss_mib(&site);
    let bodies: Vec<_> = (0..DEFINITIONS)
        .map(|n| definition(n).to_string())
        .collect();
    let bytes: usize = bodies.iter().map(String::len).sum();
    let mut each = |what: &str, value: f64, unit: &str| {
        figure(figures, &format!("definitions: {what}"), value, unit);
    };
    let per = |all: f64| all / DEFINITIONS as f64;
    each("JSON each", per(bytes as f64) / 1024.0, "KiB");
    let began = Instant::now();
    for body in bodies {
        rt.block_on(request(&client, "POST", PATH, body.into_bytes()))
            .expect("create");
    }
    for n in 0..DEFINITIONS {
        while !established(&ask(&format!("{PATH}/things{n}.g{}.example.org", n / 20))) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    each("until established", began.elapsed().as_secs_f64(), "s");
    let mut tell = |what: &str| {
        std::thread::sleep(SETTLES);
        let (after, _) = site_pss_mib(&site);
        each(what, per((after - before) * 1024.0), "KiB");
    };
    tell("PSS each (aim: 48.8 KiB)");
    documents();
    ask("/openapi/v3/apis/g3.example.org/v1");
    tell("PSS each, documents asked for (aim: 48.8 KiB)");
}

fn established(definition: &Value) -> bool {
    let conditions = definition["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|c| c["type"] == "Established" && c["status"] == "True")
}

fn definition(n: usize) -> Value {
    let group = format!("g{}.example.org", n / 20);
    let text = |seed: usize| {
        let words = (0..40).map(|word| format!("w{}", (n * 31 + seed * 17 + word * word) % 997));
        words.collect::<Vec<_>>().join(" ")
    };
    let leaves = |from: usize| -> Map<String, Value> {
        let leaf = |i: usize| json!({"type": "string", "description": text(from + i)});
        (0..20).map(|i| (format!("field{i}"), leaf(i))).collect()
    };
    let inner = json!({"type": "object", "description": text(1), "properties": leaves(20)});
    let mut spec = leaves(0);
    spec.insert(
        "list".into(),
        json!({"type": "array", "x-kubernetes-list-type": "atomic", "items": inner}),
    );
    spec.insert("replicas".into(), json!({"type": "integer", "default": 1}));
    let mut status = leaves(60);
    status.insert("replicas".into(), json!({"type": "integer"}));
    let rule = json!([{"rule": "self.replicas >= 0", "message": "replicas must not be negative"}]);
    let spec = json!({"type": "object", "properties": spec, "x-kubernetes-validations": rule});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("things{n}.{group}")},
        "spec": {
            "group": group, "scope": "Namespaced",
            "names": {"plural": format!("things{n}"), "kind": format!("Thing{n}")},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": spec,
                    "status": {"type": "object", "properties": status},
                }}},
                "subresources": {"status": {}, "scale": {
                    "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas",
                }},
                "additionalPrinterColumns": [
                    {"name": "READY", "type": "string", "jsonPath": ".status.field1"},
                    {"name": "AGE", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
                ],
            }],
        },
    })
}
