//! Clients in Python that others wrote: the client of Kubernetes, and an operator made with kopf.
//! What they do is in `python/`; here they are given a site.

use crate::exec::{image, start_pod};
use crate::harness::{Following, Registry, Site, free_port, repo_file, tool};
use std::path::{Path, PathBuf};
use std::process::Command;

fn script(name: &str) -> PathBuf {
    repo_file("crates/salp/tests/it/python").join(name)
}

/// The Python with those packages, for this site.
fn python(site: &Site) -> Command {
    let mut command = Command::new(tool("python-clients"));
    command
        .env("KUBECONFIG", site.kubeconfig())
        .env("HOME", &site.dir)
        .env("PYTHONUNBUFFERED", "1");
    command
}

#[test]
fn the_python_client_walks_the_api() {
    let (registry, site) = (Registry::start(), Site::start());
    let data = tempfile::tempdir().expect("directory");
    start_pod(&site, &image(&registry), "web", data.path());
    let mut walk = python(&site);
    walk.arg(script("client.py"))
        .env("NAMESPACE", "default")
        .env("POD", "web");
    let mut walk = Following::start(walk);
    let status = walk.ended();
    let said = walk.lines().join("\n");
    assert!(status.success(), "{said}");
    assert_eq!(
        walk.lines().last().map(String::as_str),
        Some("OK"),
        "{said}"
    );
}

/// A certificate of its own for a server on loopback; it is its own authority, as the tools make
/// them that come with webhooks.
fn self_signed(dir: &Path) -> (PathBuf, PathBuf) {
    let key = rcgen::KeyPair::generate().expect("key");
    let mut params =
        rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("parameters");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).expect("certificate");
    let files = (dir.join("tls.crt"), dir.join("tls.key"));
    std::fs::write(&files.0, certificate.pem()).expect("write");
    std::fs::write(&files.1, key.serialize_pem()).expect("write");
    files
}

fn stall(name: &str, wares: &str) -> String {
    format!(
        "apiVersion: fair.example/v1\nkind: Stall\nmetadata: {{name: {name}}}\nspec: {{wares: [{wares}]}}\n"
    )
}

#[test]
fn an_operator_of_kopf_converges() {
    let mut site = Site::start();
    let manifests = std::fs::read_to_string(script("operator.yaml")).expect("manifests");
    site.apply(&manifests);
    site.ok(&[
        "wait",
        "--for=condition=Established",
        "crd",
        "--all",
        "--timeout=30s",
    ]);
    site.apply("apiVersion: kopf.dev/v1\nkind: KopfPeering\nmetadata: {name: stalls}\n");
    // It is there before the operator, which must find it.
    site.apply(&stall("early", "apples"));
    let dir = tempfile::tempdir().expect("directory");
    let (certificate, key) = self_signed(dir.path());
    let mut operator = python(&site);
    operator
        .args(["-m", "kopf", "run", "--namespace", "default"])
        .arg(script("operator.py"))
        .env("PORT", free_port().to_string())
        .env("CERT", &certificate)
        .env("CA", &certificate)
        .env("KEY", &key);
    let mut operator = Following::start(operator);
    let of = |object: &str| ["get", "stall", object].map(str::to_owned);
    let wait = |site: &Site, object: &str, pointer: &str, wanted: serde_json::Value| {
        let args = of(object);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        site.wait_for(&args, pointer, |v| *v == wanted)
    };
    let seen = wait(
        &site,
        "early",
        "/status/open_stall/map",
        "early-wares".into(),
    );
    assert_eq!(
        seen["metadata"]["finalizers"][0],
        "kopf.zalando.org/KopfFinalizerMarker"
    );

    admission(&site);
    let seen = wait(
        &site,
        "sweets",
        "/status/open_stall/map",
        "sweets-wares".into(),
    );
    assert_eq!(seen["spec"]["keeper"], "nobody", "the mutating webhook");
    let map = site.json(&["get", "configmap", "sweets-wares"]);
    assert_eq!(map["data"]["wares"], "nougat,fudge");
    assert_eq!(map["metadata"]["ownerReferences"][0]["kind"], "Stall");
    site.says(
        &[
            "get",
            "events",
            "--field-selector=reason=Opened,involvedObject.name=sweets",
        ],
        "sells 2 wares",
    );
    site.ok(&["create", "configmap", "plain"]);
    site.ok(&["label", "configmap", "plain", "watched=yes"]);
    site.wait_for(
        &["get", "configmap", "plain"],
        "/metadata/annotations/seen",
        |v| v == "yes",
    );

    site.signal("-KILL");
    site.up(&[]);
    // Whether the operator has noticed yet or not, nothing is lost.
    site.apply(&stall("sweets", "nougat, fudge, toffee"));
    let seen = wait(&site, "sweets", "/status/changed", "2 to 3".into());
    let map = site.json(&["get", "configmap", "sweets-wares"]);
    assert_eq!(map["data"]["wares"], "nougat,fudge,toffee");
    let ticks = seen["status"]["ticks"].as_u64().unwrap_or_default();
    let args = ["get", "stall", "sweets"];
    site.wait_for(&args, "/status/ticks", |v| v.as_u64() > Some(ticks + 1));

    site.ok(&["delete", "stall", "sweets", "early", "--timeout=60s"]);
    let closed = site.json(&["get", "configmap", "sweets-closed"]);
    assert_eq!(closed["data"]["by"], "operator");
    site.ok(&[
        "wait",
        "--for=delete",
        "configmap/sweets-wares",
        "--timeout=60s",
    ]);

    let stopped = Command::new("kill")
        .arg(operator.pid().to_string())
        .status()
        .expect("kill");
    assert!(stopped.success());
    let ended = operator.ended();
    assert!(ended.success(), "{}", operator.lines().join("\n"));
    // It takes its webhooks and its place among its peers away as it goes.
    let left = site.json(&[
        "get",
        "validatingwebhookconfiguration",
        "stalls.fair.example",
    ]);
    assert_eq!(left["webhooks"].as_array().map_or(0, Vec::len), 0);
    let peers = site.json(&["get", "kopfpeering", "stalls"]);
    assert_eq!(
        peers["status"].as_object().map_or(0, serde_json::Map::len),
        0
    );
}

/// What the operator's webhooks say to what comes.
fn admission(site: &Site) {
    let configured = |kind| {
        site.wait_for(
            &["get", kind, "stalls.fair.example"],
            "/webhooks/0/name",
            |v| v.is_string(),
        );
    };
    configured("validatingwebhookconfiguration");
    configured("mutatingwebhookconfiguration");
    let refused = site.apply_output(&stall("desert", "sand"), &[]);
    let said = crate::harness::text(&refused);
    assert!(!refused.status.success(), "{said}");
    assert!(said.contains("nobody buys sand"), "{said}");
    let warned = site.apply(&stall("empty", ""));
    assert!(warned.contains("Warning: an empty stall"), "{warned}");
    site.apply(&stall("sweets", "nougat, fudge"));
}
