//! Upstream's flags and files of the API server: audit, encryption at rest, proxies in front.

use crate::harness::{Site, free_port, salp, text};

const POLICY: &str = "apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  resources: [{group: '', resources: [secrets]}]
  verbs: [create]
";

#[test]
fn a_site_records_requests_and_keeps_secrets_encrypted() {
    let dir = tempfile::tempdir().expect("directory");
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("write");
        path.display().to_string()
    };
    let log = dir.path().join("audit.log");
    let key = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=";
    let encryption = file(
        "encryption.yaml",
        &format!(
            "apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets]
  providers:
  - aesgcm: {{keys: [{{name: one, secret: {key}}}]}}
"
        ),
    );
    let (policy, path) = (file("policy.yaml", POLICY), log.display().to_string());
    let flags = [
        "--audit-policy-file",
        &policy,
        "--audit-log-path",
        &path,
        "--encryption-provider-config",
        &encryption,
    ];
    let mut site = Site::start_with(&flags);
    site.ok(&["create", "secret", "generic", "s", "--from-literal=k=v"]);
    site.signal("-TERM");
    let text = std::fs::read_to_string(&log).expect("read");
    let line = text.lines().find(|l| l.contains("\"name\":\"s\""));
    let event: serde_json::Value =
        serde_json::from_str(line.expect("an event")).expect("a line of JSON");
    assert_eq!(event["level"], "Metadata", "{event}");
    assert_eq!(event["responseStatus"]["code"], 201, "{event}");
    assert!(event["requestObject"].is_null(), "{event}");
    // With its key the site reads what it has written.
    site.up(&flags);
    let secret = site.json(&["get", "secret", "s"]);
    assert_eq!(secret["data"]["k"], "dg==");
}

/// Who somebody is that shows the certificate of the site's front proxy and says this.
fn who(site: &Site, headers: &[&str]) -> serde_json::Value {
    let server = "jsonpath={.clusters[0].cluster.server}";
    let server = site.ok(&["config", "view", "-o", server]);
    let pki = |file: &str| site.dir.join("pki").join(file).display().to_string();
    let mut curl = std::process::Command::new("curl");
    // Over HTTP/2 curl 7.88 fails when it is refused before it has sent its body.
    curl.args(["-s", "--http1.1", "--cacert", &pki("ca.crt")])
        .args(["--cert", &pki("front-proxy-client.crt")])
        .args(["--key", &pki("front-proxy-client.key")])
        .args(["-H", "content-type: application/json", "-d"])
        .arg(r#"{"kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1"}"#);
    for header in headers {
        curl.args(["-H", header]);
    }
    let url = format!("{server}/apis/authentication.k8s.io/v1/selfsubjectreviews");
    let answer = text(&curl.arg(url).output().expect("run curl"));
    serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{e}: {answer}"))
}

#[test]
fn a_proxy_in_front_says_who_asks() {
    let site = Site::start_with(&[
        "--requestheader-group-headers",
        "X-Remote-Group,X-Team",
        "--requestheader-username-headers=X-Remote-User",
    ]);
    let said = ["X-Remote-User: anna", "X-Team: tills"];
    let review = who(&site, &said);
    let user = &review["status"]["userInfo"];
    assert_eq!(user["username"], "anna", "{review}");
    assert_eq!(
        user["groups"],
        serde_json::json!(["tills", "system:authenticated"])
    );
    assert_eq!(who(&site, &said[1..])["code"], 401);
    let told = site.json(&[
        "get",
        "configmap",
        "-n",
        "kube-system",
        "extension-apiserver-authentication",
    ]);
    assert_eq!(
        told["data"]["requestheader-group-headers"],
        r#"["X-Remote-Group","X-Team"]"#
    );
}

#[test]
fn what_is_wrong_with_a_file_is_told_with_its_name() {
    let dir = tempfile::tempdir().expect("directory");
    let head = "apiVersion: apiserver.config.k8s.io/v1\nkind";
    for (flag, file, content, want) in [
        (
            "--encryption-provider-config",
            "encryption.yaml",
            format!(
                "{head}: EncryptionConfiguration\nresources: [{{resources: [secrets], providers: [{{kms: {{}}}}]}}]"
            ),
            "resources[0].providers[0]: Unsupported value: \"kms\"",
        ),
        (
            "--authentication-config",
            "authentication.yaml",
            format!("{head}: AuthenticationConfiguration\njwt: [{{issuer: {{url: 'http://x'}}}}]"),
            "jwt[0].issuer.url: Invalid value: \"http://x\"",
        ),
        (
            "--requestheader-client-ca-file",
            "ca.crt",
            "nothing".to_owned(),
            "read request-header configuration",
        ),
    ] {
        let path = dir.path().join(file).display().to_string();
        std::fs::write(&path, content).expect("write");
        let data = dir.path().join(format!("site-{file}"));
        let data = data.display().to_string();
        let out = salp(&[
            "up",
            "--data-dir",
            &data,
            "--api-port",
            &free_port().to_string(),
            flag,
            &path,
        ]);
        let said = text(&out);
        assert!(!out.status.success(), "{said}");
        assert!(
            said.contains(&format!("use {path}")) && said.contains(want),
            "{said}"
        );
    }
}

/// As k3s has it with `--disable-agent`.
#[test]
fn a_site_may_be_no_node_itself() {
    let mut site = Site::start_with(&["--disable", "node"]);
    assert!(!site.dir.join("run/dataplane.pid").exists());
    site.ok(&["create", "deployment", "web", "--image=localhost:1/web:1"]);
    let none = "no nodes available to schedule pods";
    site.says(&["get", "events", "-A"], none);
    assert!(site.ok(&["get", "nodes", "-o", "name"]).is_empty());
    // It is one when it is told nothing of the kind, and what waited is placed.
    let turn = site.between_stop_and_start();
    site.signal("-TERM");
    site.up(&[]);
    drop(turn);
    assert!(!site.ok(&["get", "nodes", "-o", "name"]).is_empty());
    let pods = ["get", "pods", "-l", "app=web"];
    site.wait_for(&pods, "/items/0/spec/nodeName", |name| !name.is_null());
}

#[test]
fn a_site_without_a_node_is_in_no_lattice() {
    let dir = tempfile::tempdir().expect("directory");
    let place = dir.path().display().to_string();
    let args = [
        "up",
        "--data-dir",
        &place,
        "--lattice",
        "nats://127.0.0.1:1",
    ];
    let refused = salp(&[&args[..], &["--disable", "node"]].concat());
    assert!(!refused.status.success());
    assert!(
        text(&refused).contains("--disable node"),
        "{}",
        text(&refused)
    );
}
