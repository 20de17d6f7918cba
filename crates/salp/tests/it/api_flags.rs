//! Upstream's flags and files of the API server: audit, encryption at rest.

use crate::harness::Site;

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
