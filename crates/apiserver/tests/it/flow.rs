//! Priority and fairness. Behaviour from the documentation "API Priority and Fairness" and
//! `test/integration/apiserver/flowcontrol` of upstream.

use super::kubectl::Kubectl;
use anyhow::{Context as _, Result};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::sync::mpsc::{Receiver, Sender, channel};
use testkit::TestApi;

const FLOW: &str = "/apis/flowcontrol.apiserver.k8s.io/v1";

/// A webhook that holds requests until it is told to let one go.
struct Gate {
    entered: Receiver<()>,
    open: Sender<()>,
    _server: super::webhooks::Server,
}

impl Gate {
    async fn at_config_maps(api: &TestApi) -> Result<Self> {
        let (told, entered) = channel();
        let (open, opened) = channel();
        let (told, opened) = (Mutex::new(told), Mutex::new(opened));
        let server = super::webhooks::serve(move |_, request| {
            let _ = told.lock().send(());
            let _ = opened.lock().recv();
            json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
                "response": {"uid": request["uid"], "allowed": true}})
        })
        .await?;
        let hooks = json!({"metadata": {"name": "gate"}, "webhooks": [{
            "name": "gate.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "timeoutSeconds": 30, "clientConfig": {"url": format!("https://127.0.0.1:{}/", server.port), "caBundle": server.ca},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["*"], "resources": ["configmaps"]}]}]});
        let path = format!("{}/validatingwebhookconfigurations", super::webhooks::BASE);
        create(api, &path, &hooks).await?;
        Ok(Self {
            entered,
            open,
            _server: server,
        })
    }

    /// Waits until somebody is held.
    async fn entered(self) -> Result<Self> {
        let waited = tokio::task::spawn_blocking(move || {
            let entered = self
                .entered
                .recv_timeout(std::time::Duration::from_secs(20));
            (self, entered)
        });
        let (gate, entered) = waited.await?;
        entered.context("nobody came")?;
        Ok(gate)
    }
}

async fn create(api: &TestApi, path: &str, object: &Value) -> Result<Value> {
    let made = api.call("POST", path, Some(object)).await?;
    anyhow::ensure!(made.code == 201, "{path}: {}", made.text);
    Ok(made.json)
}

/// One seat for anna, and so many that may wait.
async fn one_seat(api: &TestApi, response: Value) -> Result<(Value, Value)> {
    let level = json!({"metadata": {"name": "tiny"}, "spec": {"type": "Limited", "limited": {
        "nominalConcurrencyShares": 1, "borrowingLimitPercent": 0, "limitResponse": response}}});
    let level = create(api, &format!("{FLOW}/prioritylevelconfigurations"), &level).await?;
    let schema = json!({"metadata": {"name": "anna"}, "spec": {
        "priorityLevelConfiguration": {"name": "tiny"}, "matchingPrecedence": 300,
        "distinguisherMethod": {"type": "ByUser"},
        "rules": [{"subjects": [{"kind": "User", "user": {"name": "anna"}}],
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": true}]}]}});
    let schema = create(api, &format!("{FLOW}/flowschemas"), &schema).await?;
    let binding = json!({"metadata": {"name": "anna"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "anna"}]});
    let path = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    create(api, path, &binding).await?;
    Ok((
        schema["metadata"]["uid"].clone(),
        level["metadata"]["uid"].clone(),
    ))
}

fn posted(name: &str) -> Vec<u8> {
    super::config_map(name, "l").to_string().into_bytes()
}

const ANNA: (&str, &[&str]) = ("anna", &[]);

/// In process only: a request must be under way once it has been polled.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_flow_has_its_seats_and_its_queue_and_no_more() -> Result<()> {
    let api = TestApi::start_with(|c| c.limits.in_flight_max = 10).await?;
    let queue =
        json!({"type": "Queue", "queuing": {"queues": 1, "handSize": 1, "queueLengthLimit": 1}});
    let (schema, level) = one_seat(&api, queue).await?;
    let gate = Gate::at_config_maps(&api).await?;
    let post = |name: &str| api.send_as(ANNA, "POST", super::CONFIG_MAPS, &[], posted(name));
    let (mut first, mut second) = (Box::pin(post("one")), Box::pin(post("two")));
    assert!(futures::poll!(&mut first).is_pending());
    // No other request of hers runs, one waits, the next is told to come again.
    assert!(futures::poll!(&mut second).is_pending());
    let refused = api
        .send_as(ANNA, "GET", super::CONFIG_MAPS, &[], Vec::new())
        .await?;
    assert_eq!(
        (refused.code, &refused.json["reason"]),
        (429, &json!("TooManyRequests")),
        "{}",
        refused.text
    );
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(
        refused.headers["x-kubernetes-pf-flowschema-uid"],
        *schema.as_str().context("uid")?
    );
    assert_eq!(
        refused.headers["x-kubernetes-pf-prioritylevel-uid"],
        *level.as_str().context("uid")?
    );
    const FLOW_LABELS: &str = "priority_level=\"tiny\",flow_schema=\"anna\"";
    let flow =
        |name: &str, more: &str, value: &str| format!("{name}{{{FLOW_LABELS}{more}}} {value}");
    told(
        &api,
        &[
            &flow("current_executing_requests", "", "1"),
            &flow("current_executing_seats", "", "1"),
            &flow("current_inqueue_requests", "", "1"),
            &flow("rejected_requests_total", ",reason=\"queue-full\"", "1"),
            &flow("dispatched_requests_total", "", "1"),
            &flow("request_queue_length_after_enqueue_sum", "", "1.0"),
            "nominal_limit_seats{priority_level=\"tiny\"} 1",
            "upper_limit_seats{priority_level=\"tiny\"} 1",
            "nominal_limit_seats{priority_level=\"exempt\"} 0",
        ],
    )
    .await?;
    // Others are not touched by that, watches take no seats.
    let listed = api.call("GET", super::SERVICES, None).await?;
    assert_eq!(listed.code, 200);
    let other = api
        .send_as(("eve", &[]), "GET", "/version", &[], Vec::new())
        .await?;
    assert_eq!(other.code, 200, "{}", other.text);
    let gate = {
        let entered = gate.entered();
        tokio::pin!(entered);
        tokio::select! {
            gate = &mut entered => gate?,
            done = &mut first => anyhow::bail!("it was not held: {done:?}"),
        }
    };
    gate.open.send(())?;
    assert_eq!(first.await?.code, 201);
    gate.open.send(())?;
    assert_eq!(second.await?.code, 201);
    // All seats are free again.
    let listed = api
        .send_as(ANNA, "GET", super::CONFIG_MAPS, &[], Vec::new())
        .await?;
    assert_eq!(listed.code, 200, "{}", listed.text);
    let waited = |execute: &str| format!(",execute=\"{execute}\"");
    told(
        &api,
        &[
            &flow("current_executing_requests", "", "0"),
            &flow("current_inqueue_requests", "", "0"),
            &flow("dispatched_requests_total", "", "3"),
            &flow("request_wait_duration_seconds_count", &waited("true"), "3"),
            &flow("request_execution_seconds_count", ",type=\"regular\"", "3"),
        ],
    )
    .await?;
    // One whose schema is gone is told of no more.
    let path = format!("{FLOW}/flowschemas/anna");
    let gone = api.call("DELETE", &path, None).await?;
    assert_eq!(gone.code, 200, "{}", gone.text);
    api.call("GET", &format!("{FLOW}/flowschemas"), None)
        .await?;
    let text = api.call("GET", "/metrics", None).await?.text;
    assert!(!text.contains(FLOW_LABELS), "{text}");
    api.close().await
}

/// Holds when these lines are among the metrics.
async fn told(api: &TestApi, lines: &[&str]) -> Result<()> {
    let text = api.call("GET", "/metrics", None).await?.text;
    for line in lines {
        let line = format!("apiserver_flowcontrol_{line}");
        anyhow::ensure!(text.lines().any(|l| l == line), "{line}:\n{text}");
    }
    Ok(())
}

/// In process only: a request must be under way once it has been polled.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_leaves_frees_his_place() -> Result<()> {
    let api = TestApi::start_with(|c| c.limits.in_flight_max = 10).await?;
    one_seat(&api, json!({"type": "Reject"})).await?;
    let _gate = Gate::at_config_maps(&api).await?;
    let get = || api.send_as(ANNA, "GET", super::SERVICES, &[], Vec::new());
    {
        let held = api.send_as(ANNA, "POST", super::CONFIG_MAPS, &[], posted("one"));
        let mut held = Box::pin(held);
        assert!(futures::poll!(&mut held).is_pending());
        assert_eq!(get().await?.code, 429);
    }
    assert_eq!(get().await?.code, 200);
    api.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_cluster_has_upstreams_levels_and_schemas() -> Result<()> {
    let api = TestApi::start().await?;
    let k = Kubectl::of(&api)?;
    let levels = k
        .run(true, "get prioritylevelconfigurations -o name", "")
        .await?;
    assert_eq!(levels.lines().count(), 8, "{levels}");
    k.run(
        true,
        "wait --for=condition=Dangling=false --all flowschemas --timeout=20s",
        "",
    )
    .await?;
    let schemas = k.run(true, "get flowschemas --no-headers", "").await?;
    assert_eq!(schemas.lines().count(), 13, "{schemas}");
    // Who is of which schema.
    for (user, groups, path, want) in [
        ("root", &["system:masters"][..], "/api/v1/pods", "exempt"),
        (
            "system:node:n",
            &["system:nodes"],
            "/api/v1/nodes/n",
            "system-node-high",
        ),
        (
            "system:node:n",
            &["system:nodes"],
            "/api/v1/pods",
            "system-nodes",
        ),
        (
            "system:kube-scheduler",
            &[],
            "/api/v1/pods",
            "kube-scheduler",
        ),
        (
            "system:serviceaccount:kube-system:x",
            &["system:serviceaccounts"],
            "/api/v1/pods",
            "kube-system-service-accounts",
        ),
        (
            "system:serviceaccount:shop:x",
            &["system:serviceaccounts"],
            "/api/v1/pods",
            "service-accounts",
        ),
        ("anna", &[], "/api/v1/pods", "global-default"),
        ("anna", &[], "/healthz", "probes"),
    ] {
        let answer = api
            .send_as((user, groups), "GET", path, &[], Vec::new())
            .await?;
        let schema = api
            .call("GET", &format!("{FLOW}/flowschemas/{want}"), None)
            .await?;
        let uid = schema.json["metadata"]["uid"].as_str().context("uid")?;
        assert_eq!(
            answer.headers["x-kubernetes-pf-flowschema-uid"], *uid,
            "{user} {path}"
        );
    }
    let lost = json!({"metadata": {"name": "lost"}, "spec": {"priorityLevelConfiguration": {"name": "gone"},
        "rules": [{"subjects": [{"kind": "User", "user": {"name": "*"}}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]}]}});
    create(&api, &format!("{FLOW}/flowschemas"), &lost).await?;
    k.run(
        true,
        "wait --for=condition=Dangling flowschema/lost --timeout=20s",
        "",
    )
    .await?;
    let bad = json!({"metadata": {"name": "bad"}, "spec": {"matchingPrecedence": 20000}});
    let refused = api
        .call("POST", &format!("{FLOW}/flowschemas"), Some(&bad))
        .await?;
    assert_eq!(refused.code, 422, "{}", refused.text);
    for field in [
        "spec.matchingPrecedence",
        "spec.priorityLevelConfiguration.name",
    ] {
        assert!(refused.text.contains(field), "{}", refused.text);
    }
    api.close().await
}
