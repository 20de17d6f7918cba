//! One list of 1,000 pods in JSON and in protobuf: how large each is, and how long it takes until
//! it is read. Taken in turns; the medians are told, and their ratio.

use crate::harness::Site;
use crate::{client, figure, median, ms, request, runtime};
use serde_json::{Map, Value, json};
use std::time::Instant;

const PODS: usize = 1_000;
const TURNS: usize = 41;
const PATH: &str = "/api/v1/namespaces/default/pods";

pub(super) fn run(figures: &mut Map<String, Value>) {
    let (site, rt) = (Site::start(), runtime());
    rt.block_on(async {
        let client = client(&site).await;
        for n in 0..PODS {
            let body = serde_json::to_vec(&pod(n)).expect("JSON");
            let made = request(&client, "POST", PATH, body).await;
            made.expect("a pod");
        }
        let encodings = [
            ("JSON", "application/json"),
            ("protobuf", "application/vnd.kubernetes.protobuf"),
        ];
        let mut took = [const { Vec::new() }; 2];
        let mut size = [0; 2];
        for _ in 0..TURNS {
            for (i, (_, accept)) in encodings.iter().enumerate() {
                let ask = http::Request::get(PATH)
                    .header("accept", *accept)
                    .body(Vec::new())
                    .expect("request");
                let began = Instant::now();
                let answer = client.request_stream(ask).await.expect("list");
                let read = futures::io::copy(answer, &mut futures::io::sink()).await;
                took[i].push(ms(began.elapsed()));
                size[i] = read.expect("body");
            }
        }
        let mut medians = Vec::new();
        for ((name, _), (took, size)) in encodings.iter().zip(took.into_iter().zip(size)) {
            let of = format!("list of {PODS} pods, {name}");
            figure(figures, &format!("{of}: size"), size as f64 / 1024.0, "KiB");
            medians.push(median(took));
            figure(figures, &of, medians[medians.len() - 1], "ms");
        }
        let ratio = medians[1] / medians[0];
        figure(figures, "list of pods, protobuf / JSON", ratio, "×");
    });
}

/// A pod as deployments make them, that nobody schedules.
fn pod(n: usize) -> Value {
    let probe = json!({"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 10});
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("load-{n}"), "labels": {"app": "load", "n": n.to_string()}},
        "spec": {
            "schedulerName": "nobody",
            "containers": [{
                "name": "web", "image": "registry.example.com/team/web:1.2.3",
                "ports": [{"name": "http", "containerPort": 8080}],
                "env": [{"name": "MODE", "value": "production"},
                    {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "resources": {"requests": {"cpu": "100m", "memory": "64Mi"},
                    "limits": {"memory": "128Mi"}},
                "livenessProbe": probe, "readinessProbe": probe,
                "volumeMounts": [{"name": "cache", "mountPath": "/cache"}],
            }],
            "volumes": [{"name": "cache", "emptyDir": {"sizeLimit": "1Gi"}}],
        },
    })
}
