//! Every packaging of a Wasm image, and helm.

use crate::harness::{Site, text, tool};
use std::process::Command;

#[test]
fn helm_installs_upgrades_and_uninstalls() {
    let site = Site::start();
    let chart = tempfile::tempdir().expect("directory");
    std::fs::create_dir(chart.path().join("templates")).expect("directory");
    std::fs::write(
        chart.path().join("Chart.yaml"),
        "apiVersion: v2\nname: till\nversion: 0.1.0\n",
    )
    .expect("write");
    std::fs::write(chart.path().join("values.yaml"), "greeting: hello\n").expect("write");
    std::fs::write(
        chart.path().join("templates/all.yaml"),
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ .Release.Name }}-config\ndata:\n  greeting: {{ .Values.greeting }}\n---\napiVersion: v1\nkind: Service\nmetadata:\n  name: {{ .Release.Name }}\nspec:\n  selector: {app: till}\n  ports: [{port: 80, name: http}]\n",
    )
    .expect("write");
    let chart = chart.path().display().to_string();
    let helm = |args: &[&str]| {
        let output = Command::new(tool("helm"))
            .args(args)
            .env("KUBECONFIG", site.kubeconfig())
            .env("HOME", &site.dir)
            .output()
            .expect("run helm");
        assert!(
            output.status.success(),
            "helm {}: {}",
            args.join(" "),
            text(&output)
        );
        text(&output)
    };
    assert!(helm(&["install", "shop", &chart]).contains("STATUS: deployed"));
    let greeting = || {
        site.ok(&[
            "get",
            "configmap",
            "shop-config",
            "-o",
            "jsonpath={.data.greeting}",
        ])
    };
    assert_eq!(greeting(), "hello");
    helm(&["upgrade", "shop", &chart, "--set", "greeting=bye"]);
    assert_eq!(greeting(), "bye");
    helm(&["rollback", "shop", "1"]);
    assert_eq!(greeting(), "hello");
    assert!(helm(&["list"]).contains("deployed"));
    helm(&["uninstall", "shop"]);
    assert!(
        site.fails(&["get", "configmap", "shop-config"])
            .contains("NotFound")
    );
}
