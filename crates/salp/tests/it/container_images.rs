//! Container images as other tools pack them: with Docker's manifests.

use crate::containers::{phase, pod, with_busybox};
use crate::harness::{text, tool};
use serde_json::{Value, json};
use std::process::Command;

fn skopeo(args: &[&str]) -> String {
    let output = Command::new(tool("skopeo")).args(args).output();
    let output = output.expect("skopeo");
    assert!(output.status.success(), "{args:?}: {}", text(&output));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn an_image_with_dockers_manifest_runs() {
    let Some((_registry, image, site)) = with_busybox(&[]) else {
        return;
    };
    let name = format!("{}:docker", image.rsplit_once(':').expect("a tag").0);
    let (from, to) = (format!("docker://{image}"), format!("docker://{name}"));
    let insecure = ["--src-tls-verify=false", "--dest-tls-verify=false"];
    let [of_source, of_target] = insecure;
    skopeo(&["copy", of_source, of_target, "--format", "v2s2", &from, &to]);
    let raw = skopeo(&["inspect", "--raw", "--tls-verify=false", &to]);
    let raw: Value = serde_json::from_str(&raw).expect("JSON");
    let manifest = "application/vnd.docker.distribution.manifest.v2+json";
    assert_eq!(raw["mediaType"], manifest, "{raw}");
    for of in raw["layers"].as_array().expect("layers") {
        let layer = "application/vnd.docker.image.rootfs.diff.tar.gzip";
        assert_eq!(of["mediaType"], layer, "{raw}");
    }
    let tell = "echo $FROM; cat from-upper; ls /gone 2>&1 || true";
    site.apply(&pod(
        "docker",
        json!({"image": name, "command": ["sh", "-c", tell]}),
        json!({}),
    ));
    phase(&site, "docker", "Succeeded");
    let log = site.ok(&["logs", "docker"]);
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[..2], ["image", "upper"], "{log}");
    assert!(lines[2].contains("No such file"), "{log}");
}
