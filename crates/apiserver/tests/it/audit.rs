//! The audit log. Behaviour from the documentation "Auditing" and
//! `test/integration/controlplane/audit` of upstream.

use super::kubectl::Kubectl;
use anyhow::{Context as _, Result};
use client::kube;
use serde_json::{Value, json};
use std::path::Path;
use testkit::TestApi;

const POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
rules:
- level: None
  users: ["system:apiserver"]
- level: RequestResponse
  omitStages: [RequestReceived]
  omitManagedFields: true
  resources: [{group: "", resources: ["configmaps"]}]
- level: Metadata
  resources: [{group: "", resources: ["secrets", "pods"]}]
"#;

async fn recording(path: &Path) -> Result<TestApi> {
    let path = path.to_owned();
    TestApi::start_with(|c| {
        c.audit = Some(apiserver::AuditConfig {
            policy: POLICY.to_owned(),
            log: apiserver::AuditLog {
                path,
                ..apiserver::AuditLog::default()
            },
        });
    })
    .await
}

/// The log of a server that has stopped.
fn events(path: &Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(path)?;
    let lines = text.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().context("lines of JSON")
}

/// `STAGE VERB RESOURCE/NAME CODE`.
fn brief(e: &Value) -> String {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    format!(
        "{} {} {}/{} {}",
        text(&e["stage"]),
        text(&e["verb"]),
        text(&e["objectRef"]["resource"]),
        text(&e["objectRef"]["name"]),
        e["responseStatus"]["code"]
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_recorded_as_the_policy_says() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("audit.log");
    let api = recording(&path).await?;
    let k = Kubectl::of(&api)?;
    k.run(true, "create configmap seen --from-literal=k=v", "")
        .await?;
    k.run(
        true,
        "create secret generic kept --from-literal=k=hidden",
        "",
    )
    .await?;
    k.run(true, "get namespaces", "").await?;
    k.run(false, "get secret kept --as=eve --as-group=shop", "")
        .await?;
    let mut watch = api
        .watch(&format!("{}?watch=1", super::CONFIG_MAPS), &[])
        .await?;
    watch.next().await?;
    drop(watch);
    let with_id = api
        .send(
            "GET",
            &format!("{}/seen", super::CONFIG_MAPS),
            &[("audit-id", "mine"), ("x-forwarded-for", "192.0.2.9")],
            Vec::new(),
        )
        .await?;
    assert_eq!(with_id.headers["audit-id"], "mine");
    let api_is_remote = api.server().is_err();
    api.close().await?;
    let all = events(&path)?;
    let mut told: Vec<String> = all.iter().map(brief).collect();
    // A client that leaves its watch does not wait for the server to see it.
    if let Some(last) = told.get_mut(6..8) {
        last.sort_unstable_by(|a, b| b.cmp(a));
    }
    for (i, want) in [
        "ResponseComplete create configmaps/seen 201",
        "RequestReceived create secrets/ null",
        "ResponseComplete create secrets/kept 201",
        "RequestReceived get secrets/kept null",
        "ResponseComplete get secrets/kept 403",
        "ResponseStarted watch configmaps/ 200",
        "ResponseComplete watch configmaps/ 200",
        "ResponseComplete get configmaps/seen 200",
    ]
    .iter()
    .enumerate()
    {
        assert_eq!(told.get(i).map(String::as_str), Some(*want), "{told:#?}");
    }
    let made = &all[0];
    assert_eq!(
        (&made["kind"], &made["apiVersion"], &made["level"]),
        (
            &json!("Event"),
            &json!("audit.k8s.io/v1"),
            &json!("RequestResponse")
        )
    );
    assert_eq!(made["user"]["username"], "root");
    assert_eq!(made["sourceIPs"], json!(["127.0.0.1"]));
    assert_eq!(made["requestObject"]["data"], json!({"k": "v"}));
    assert!(made["responseObject"]["metadata"]["uid"].is_string());
    assert!(made["responseObject"]["metadata"]["managedFields"].is_null());
    assert_eq!(
        made["annotations"]["authorization.k8s.io/decision"],
        "allow"
    );
    assert!(
        made["userAgent"]
            .as_str()
            .is_some_and(|a| a.starts_with("kubectl/"))
    );
    // Of Secrets nothing is told but that they were asked for.
    let text = std::fs::read_to_string(&path)?;
    assert!(!text.contains("aGlkZGVu"), "a Secret's data is in the log");
    let refused = &all[4];
    assert_eq!(refused["impersonatedUser"]["username"], "eve");
    assert_eq!(
        refused["annotations"]["authorization.k8s.io/decision"],
        "forbid"
    );
    assert_eq!(refused["responseStatus"]["reason"], "Forbidden");
    // Who asks in the server's own process comes from `::1`.
    let from = if api_is_remote { "127.0.0.1" } else { "::1" };
    let mine = all.iter().find(|e| e["auditID"] == "mine");
    let mine = mine.context("the request with an id")?;
    assert_eq!(mine["sourceIPs"], json!(["192.0.2.9", from]));
    Ok(())
}

/// `TestFailedAuthnAudit` of `endpoints/filters/authn_audit_test.go`.
#[tokio::test]
async fn who_is_not_known_is_told_of_once() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("audit.log");
    let api = recording(&path).await?;
    let mut config = kube::Config::new(api.url().parse()?);
    config.root_cert = Some(vec![super::access::pem_der(&api.pki.ca_cert)]);
    config.auth_info.token = Some("none such".to_owned().into());
    let client = kube::Client::try_from(config)?;
    for of in ["/api/v1/secrets", "/api/v1/nodes"] {
        let ask = http::Request::get(of).body(Vec::new())?;
        let refused = client.request_text(ask).await;
        assert!(
            matches!(&refused, Err(kube::Error::Api(s)) if s.code == 401),
            "{refused:?}"
        );
    }
    api.close().await?;
    // The policy asks for what is done to Secrets, not to nodes.
    let [event] = &events(&path)?[..] else {
        anyhow::bail!("one event");
    };
    assert_eq!(brief(event), "ResponseStarted list secrets/ 401");
    assert_eq!(event["user"], json!({}));
    assert_eq!(
        event["responseStatus"]["message"],
        "Authentication failed, attempted: bearer"
    );
    Ok(())
}

#[tokio::test]
async fn policies_that_audit_are_told_of() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("audit.log");
    let api = recording(&path).await?;
    super::default_account(&api).await?;
    let base = super::webhooks::BASE;
    let policy = json!({"metadata": {"name": "few"}, "spec": {
        "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"],
            "operations": ["CREATE"], "resources": ["configmaps"]}]},
        "validations": [{"expression": "size(object.data) < 1", "message": "too many"}],
        "auditAnnotations": [{"key": "size", "valueExpression": "'has ' + string(size(object.data))"}]}});
    let binding = json!({"metadata": {"name": "few"},
        "spec": {"policyName": "few", "validationActions": ["Audit"]}});
    for (plural, object) in [
        ("validatingadmissionpolicies", policy),
        ("validatingadmissionpolicybindings", binding),
    ] {
        let made = api
            .call("POST", &format!("{base}/{plural}"), Some(&object))
            .await?;
        anyhow::ensure!(made.code == 201, "{}", made.text);
    }
    let hook = super::webhooks::serve(|_, request| {
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": {
            "uid": request["uid"], "allowed": true, "auditAnnotations": {"checked": "yes"}}})
    })
    .await?;
    let hooks = json!({"metadata": {"name": "h"}, "webhooks": [{
        "name": "v.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": {"url": format!("https://127.0.0.1:{}/", hook.port), "caBundle": hook.ca},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["*"], "resources": ["configmaps"]}]}]});
    for plural in [
        "mutatingwebhookconfigurations",
        "validatingwebhookconfigurations",
    ] {
        let made = api
            .call("POST", &format!("{base}/{plural}"), Some(&hooks))
            .await?;
        anyhow::ensure!(made.code == 201, "{}", made.text);
    }
    let made = api
        .call(
            "POST",
            super::CONFIG_MAPS,
            Some(&super::config_map("a", "a")),
        )
        .await?;
    anyhow::ensure!(made.code == 201, "{}", made.text);
    let labels = json!({"metadata": {"labels": {"pod-security.kubernetes.io/audit": "baseline",
        "pod-security.kubernetes.io/enforce": "privileged"}}});
    let patch = [("content-type", "application/merge-patch+json")];
    let body = labels.to_string().into_bytes();
    api.send("PATCH", "/api/v1/namespaces/default", &patch, body)
        .await?;
    let mut pod = super::pod("p", None);
    pod["spec"]["hostPID"] = true.into();
    let made = api.call("POST", super::PODS, Some(&pod)).await?;
    anyhow::ensure!(made.code == 201, "{}", made.text);
    api.close().await?;
    let all = events(&path)?;
    let annotations = |resource: &str| {
        let mut found = all.iter().filter(|e| {
            e["objectRef"]["resource"] == resource
                && e["verb"] == "create"
                && e["stage"] == "ResponseComplete"
        });
        found
            .next()
            .map(|e| e["annotations"].clone())
            .unwrap_or_default()
    };
    let told = annotations("configmaps");
    let failure: Value = serde_json::from_str(
        told["validation.policy.admission.k8s.io/validation_failure"]
            .as_str()
            .unwrap_or_default(),
    )?;
    assert_eq!(
        failure,
        json!([{"message": "too many", "policy": "few", "binding": "few", "expressionIndex": 0,
            "validationActions": ["Audit"]}])
    );
    assert_eq!(told["few/size"], "has 1");
    assert_eq!(told["v.example.com/checked"], "yes");
    assert_eq!(
        told["mutation.webhook.admission.k8s.io/round_0_index_0"],
        "{\"configuration\":\"h\",\"mutated\":false,\"webhook\":\"v.example.com\"}"
    );
    let told = annotations("pods");
    assert_eq!(
        told["pod-security.kubernetes.io/enforce-policy"],
        "privileged:latest"
    );
    assert!(
        told["pod-security.kubernetes.io/audit-violations"]
            .as_str()
            .is_some_and(
                |t| t.starts_with("would violate PodSecurity \"baseline:latest\": host namespaces")
            ),
        "{told}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_list_is_recorded_whole() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("audit.log");
    let api = recording(&path).await?;
    let maps = "/api/v1/namespaces/default/configmaps";
    for i in 0..3 {
        let object =
            json!({"metadata": {"name": format!("large-{i}")}, "data": {"k": "v".repeat(100_000)}});
        let made = api.call("POST", maps, Some(&object)).await?;
        assert_eq!(made.code, 201, "{}", made.text);
    }
    let list = api.call("GET", maps, None).await?;
    api.close().await?;
    let all = events(&path)?;
    let told = all.iter().find(|e| e["verb"] == "list").context("a list")?;
    let recorded = &told["responseObject"]["items"];
    assert_eq!(recorded.as_array().map(Vec::len), Some(3));
    assert_eq!(recorded[2]["data"], list.json["items"][2]["data"]);
    Ok(())
}
