//! Charts of the shapes that well-known projects ship, through helm's whole life of a release:
//! a database with claims and hooks, a controller with definitions, access and a webhook, and
//! definitions too large for client-side apply.

use crate::exec::{image, program};
use crate::harness::{Registry, Site, eventually, repo_file, text, tool};
use crate::pods::command;
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Output};

struct Helm<'a> {
    site: &'a Site,
    /// Values that every call sets.
    values: Vec<String>,
    chart: String,
}

impl<'a> Helm<'a> {
    fn new(site: &'a Site, chart: &str, values: &[(&str, &str)]) -> Self {
        let values = values
            .iter()
            .map(|(key, value)| format!("--set={key}={value}"));
        Self {
            site,
            values: values.collect(),
            chart: repo_file("crates/salp/tests/it/charts")
                .join(chart)
                .display()
                .to_string(),
        }
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(tool("helm"))
            .args(args)
            .env("KUBECONFIG", self.site.kubeconfig())
            .env("HOME", &self.site.dir)
            .output()
            .expect("run helm")
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(
            output.status.success(),
            "helm {}: {}\n{}",
            args.join(" "),
            text(&output),
            text(&self.site.kubectl(&["get", "pods,pvc,pv,jobs,events", "-A"]))
        );
        text(&output)
    }

    /// A verb that takes the chart and values.
    fn with_chart(&self, verb: &[&str], more: &[&str]) -> String {
        let values: Vec<&str> = self.values.iter().map(String::as_str).collect();
        self.ok(&[verb, &[self.chart.as_str()], &values, more].concat())
    }
}

const WAIT: [&str; 2] = ["--wait", "--timeout=80s"];

/// Puts a program on a volume, by the directory that its claim is bound to.
fn put_on_volume(site: &Site, claim: &str) {
    let bound = site.json(&["get", "pvc", claim]);
    let volume = bound["spec"]["volumeName"].as_str().expect("a volume");
    let volume = site.json(&["get", "pv", volume]);
    let path = volume["spec"]["hostPath"]["path"].as_str().expect("a path");
    let kept = program("(func (export \"_start\") (call $exit (i32.const 9)))");
    std::fs::write(Path::new(path).join("kept.wasm"), kept).expect("write");
}

/// Whether it is there, as the pod sees it.
fn is_on_volume(site: &Site, pod: &str) -> bool {
    let out = site.kubectl(&["exec", pod, "--", "/data/kept"]);
    match out.status.code() {
        Some(9) => true,
        Some(127) => false,
        _ => panic!("{}", text(&out)),
    }
}

#[test]
fn a_database_is_installed_upgraded_rolled_back_and_kept() {
    let (registry, site) = (Registry::start(), Site::start());
    let dir = tempfile::tempdir().expect("directory");
    let hook = registry.push(&command(dir.path(), "migrated", 0), "hook:1");
    let image = image(&registry);
    let helm = Helm::new(&site, "ledger", &[("image", &image), ("hookImage", &hook)]);

    // What is only asked for is not there.
    let asked = helm.with_chart(&["install", "shop"], &["--dry-run=server"]);
    assert!(asked.contains("kind: StatefulSet"), "{asked}");
    assert!(
        site.fails(&["get", "secret", "shop-ledger"])
            .contains("NotFound")
    );

    let said = helm.with_chart(&["install", "shop"], &WAIT);
    assert!(said.contains("STATUS: deployed"), "{said}");
    assert!(
        said.contains("listens at shop-ledger.default:80, on v1.37"),
        "{said}"
    );
    let password = site.json(&["get", "secret", "shop-ledger"])["data"]["password"].clone();
    let claim = site.json(&["get", "pvc", "data-shop-ledger-0"]);
    assert_eq!(claim["status"]["phase"], "Bound");
    assert_eq!(claim["spec"]["storageClassName"], "local-path");
    assert_eq!(claim["status"]["capacity"]["storage"], "1Gi");
    put_on_volume(&site, "data-shop-ledger-0");
    assert!(is_on_volume(&site, "shop-ledger-0"));
    let scratch = site.json(&["get", "pvc", "shop-ledger-0-scratch"]);
    assert_eq!(scratch["metadata"]["ownerReferences"][0]["kind"], "Pod");
    helm.ok(&["test", "shop", "--timeout=60s"]);

    helm.with_chart(
        &["upgrade", "shop"],
        &[&WAIT[..], &["--set=level=debug,replicas=2"]].concat(),
    );
    let pods = site.json(&["get", "statefulset", "shop-ledger"]);
    assert_eq!(pods["status"]["readyReplicas"], 2);
    assert!(
        is_on_volume(&site, "shop-ledger-0"),
        "the pod is another, its data the same"
    );
    assert!(!is_on_volume(&site, "shop-ledger-1"));
    let kept = site.json(&["get", "secret", "shop-ledger"])["data"]["password"].clone();
    assert_eq!(kept, password, "looked up");
    helm.ok(&[&["rollback", "shop", "1"], &WAIT[..]].concat());
    let level = site.json(&["get", "configmap", "shop-ledger"])["data"]["level"].clone();
    assert_eq!(level, "info");
    let history = helm.ok(&["history", "shop"]);
    assert!(history.contains("Rollback to 1"), "{history}");

    helm.ok(&[&["uninstall", "shop"], &WAIT[..]].concat());
    assert!(
        site.fails(&["get", "statefulset", "shop-ledger"])
            .contains("NotFound")
    );
    // Claims of a set outlive it, and the next release finds what they hold.
    helm.with_chart(&["install", "shop"], &WAIT);
    assert!(is_on_volume(&site, "shop-ledger-0"));
    helm.ok(&[&["uninstall", "shop"], &WAIT[..]].concat());
    reclaimed(&site, "data-shop-ledger-0");
}

/// A claim that is deleted takes its volume and directory along.
fn reclaimed(site: &Site, claim: &str) {
    let bound = site.json(&["get", "pvc", claim]);
    let name = bound["spec"]["volumeName"]
        .as_str()
        .expect("a volume")
        .to_owned();
    let volume = site.json(&["get", "pv", &name]);
    let path = volume["spec"]["hostPath"]["path"]
        .as_str()
        .expect("a path")
        .to_owned();
    site.ok(&["wait", "--for=delete", "pod/shop-ledger-0", "--timeout=60s"]);
    site.ok(&["delete", "pvc", claim, "--timeout=60s"]);
    site.ok(&[
        "wait",
        "--for=delete",
        &format!("pv/{name}"),
        "--timeout=60s",
    ]);
    eventually("the directory goes", || {
        let there = Path::new(&path).exists();
        (!there).then_some(()).ok_or_else(|| path.clone())
    });
}

#[test]
fn a_controller_with_definitions_and_a_webhook_is_installed() {
    let (registry, site) = (Registry::start(), Site::start());
    let image = image(&registry);
    let helm = Helm::new(&site, "gate", &[("image", &image)]);
    helm.with_chart(&["install", "edge"], &WAIT);
    assert!(site.ok(&["get", "rt"]).contains("shop.example"));
    let old = site.ok(&[
        "get",
        "routes.v1alpha1.gate.example",
        "edge-gate",
        "-o",
        "yaml",
    ]);
    assert!(old.contains("apiVersion: gate.example/v1alpha1"), "{old}");
    // Nobody serves TLS behind the Service: who is not exempt is refused, and says why.
    let route = "apiVersion: gate.example/v1\nkind: Route\nmetadata: {name: more}\nspec: {host: more.example}\n";
    let refused = text(&site.apply_output(route, &[]));
    assert!(
        refused.contains("failed calling webhook \"routes.gate.example\""),
        "{refused}"
    );
    let can = ["auth", "can-i", "update", "routes/status.gate.example"];
    let who = "--as=system:serviceaccount:default:edge-gate";
    assert_eq!(site.ok(&[&can[..], &[who]].concat()).trim(), "yes");

    // Without the webhook, by an upgrade; its certificate is made anew, so all is rolled out.
    helm.with_chart(
        &["upgrade", "edge"],
        &[&WAIT[..], &["--set=webhook=false,replicas=2"]].concat(),
    );
    site.apply(route);
    let moved = route.replace("more.example", "other.example");
    let refused = text(&site.apply_output(&moved, &[]));
    assert!(refused.contains("a route keeps its host"), "{refused}");
    helm.ok(&[&["rollback", "edge", "1"], &WAIT[..]].concat());
    assert!(
        site.ok(&["get", "validatingwebhookconfigurations"])
            .contains("edge-gate")
    );

    // The same chart by kubectl: what helm owns is taken over on demand only.
    let rendered = helm.with_chart(
        &["template", "edge"],
        &["--set=webhook=false", "--skip-crds"],
    );
    let conflict = text(&site.apply_output(&rendered, &["--server-side"]));
    assert!(conflict.contains("conflict"), "{conflict}");
    let forced = site.apply_output(&rendered, &["--server-side", "--force-conflicts"]);
    assert!(forced.status.success(), "{}", text(&forced));
    let managers = site.ok(&[
        "get",
        "deployment",
        "edge-gate",
        "-o",
        "jsonpath={.metadata.managedFields[*].manager}",
    ]);
    assert!(
        managers.contains("kubectl") && managers.contains("helm"),
        "{managers}"
    );

    helm.ok(&[&["uninstall", "edge"], &WAIT[..]].concat());
    assert!(
        site.fails(&["get", "route", "edge-gate"])
            .contains("NotFound")
    );
    // Definitions stay, and what was made of them.
    assert!(site.ok(&["get", "rt"]).contains("more.example"));
}

/// A definition of the size that monitoring operators have.
fn large_definition() -> Value {
    let field = |n: usize| {
        let about = format!("Field {n} of what is monitored. ").repeat(12);
        let inner = json!({"type": "object", "description": about, "properties": {
            "enabled": {"type": "boolean", "description": about},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        }});
        (format!("field{n}"), inner)
    };
    let fields: serde_json::Map<String, Value> = (0..400).map(field).collect();
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "monitors.watch.example"},
        "spec": {
            "group": "watch.example", "scope": "Namespaced",
            "names": {"plural": "monitors", "singular": "monitor", "kind": "Monitor"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "properties": {"spec": {"type": "object", "properties": fields}},
            }}}],
        },
    })
}

#[test]
fn a_definition_that_is_too_large_for_an_annotation_is_applied_by_the_server() {
    let site = Site::start();
    let definition = large_definition().to_string();
    assert!(definition.len() > 300_000, "{}", definition.len());
    let refused = text(&site.apply_output(&definition, &[]));
    assert!(
        refused.contains("metadata.annotations: Too long: may not be more than 262144 bytes"),
        "{refused}"
    );
    for said in ["serverside-applied", "serverside-applied"] {
        let output = site.apply_output(&definition, &["--server-side"]);
        assert!(text(&output).contains(said), "{}", text(&output));
    }
    site.ok(&[
        "wait",
        "--for=condition=Established",
        "crd/monitors.watch.example",
        "--timeout=30s",
    ]);
    let monitor = "apiVersion: watch.example/v1\nkind: Monitor\nmetadata: {name: all}\nspec: {field7: {enabled: true}, field399: {labels: {a: b}}}\n";
    site.apply(monitor);
    let wrong = monitor.replace("enabled: true", "enabled: 7");
    let refused = text(&site.apply_output(&wrong, &[]));
    assert!(
        refused.contains("spec.field7.enabled: Invalid value: \"integer\""),
        "{refused}"
    );
    let about = site.ok(&["explain", "monitors.spec.field399.enabled"]);
    assert!(about.contains("Field 399 of what is monitored."), "{about}");
}
