//! The machine goes down: pods end in order, and what comes back after the boot is as upstream.

use crate::harness::{Registry, Site, eventually, repo_file};
use crate::pods::pod;
use serde_json::Value;
use std::process::Command;

const GRACE: [&str; 4] = [
    "--shutdown-grace-period",
    "30s",
    "--shutdown-grace-period-critical-pods",
    "10s",
];

/// A `systemctl` that says what the file beside it says; the command that puts it in the path.
fn systemd(dir: &std::path::Path) -> String {
    let program = dir.join("systemctl");
    let script = "#!/bin/sh\n[ \"$1\" = is-system-running ] && cat \"${0%/*}/state\"\n";
    std::fs::write(&program, script).expect("script");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, mode).expect("script");
    format!("export PATH='{}':$PATH; exec \"$@\"", dir.display())
}

fn daemon_set(image: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {{name: each}}\nspec:\n  selector: {{matchLabels: {{app: each}}}}\n  template:\n    metadata: {{labels: {{app: each}}}}\n    spec: {{containers: [{{name: main, image: '{image}'}}]}}\n"
    )
}

fn by_app(site: &Site, app: &str) -> Vec<Value> {
    let found = site.json(&["get", "pods", "-l", &format!("app={app}")]);
    found["items"].as_array().expect("a list").clone()
}

fn running(site: &Site, app: &str) -> String {
    eventually(&format!("a pod of {app} runs"), || {
        let pods = by_app(site, app);
        let ready = |pod: &&Value| pod["status"]["containerStatuses"][0]["ready"] == true;
        match pods.iter().find(ready) {
            Some(pod) => Ok(pod["metadata"]["uid"].as_str().expect("a UID").to_owned()),
            None => Err(format!("{pods:#?}")),
        }
    })
}

/// When its container ended, by the pod that has failed for the shutdown's sake.
fn terminated_at(site: &Site, name: &str) -> jiff::Timestamp {
    let status = site.json(&["get", "pod", name])["status"].clone();
    assert_eq!(status["phase"], "Failed", "{status:#}");
    assert_eq!(status["reason"], "Terminated");
    let words = "Pod was terminated in response to imminent node shutdown.";
    assert_eq!(status["message"], words);
    let mut conditions = status["conditions"].as_array().expect("a list").iter();
    let target = conditions.find(|c| c["type"] == "DisruptionTarget");
    let target = target.expect("a condition");
    assert_eq!(
        (&target["status"], &target["message"]),
        (&"True".into(), &words.into())
    );
    assert_eq!(target["reason"], "TerminationByKubelet");
    let ended = &status["containerStatuses"][0]["state"]["terminated"]["finishedAt"];
    ended.as_str().expect("a time").parse().expect("a time")
}

#[test]
fn pods_end_in_order_when_the_machine_goes_down_and_only_then() {
    let registry = Registry::start();
    let image = registry.push(&repo_file("examples/hello/hello.wasm"), "hello:1");
    let home = tempfile::tempdir().expect("directory");
    let state = home.path().join("state");
    let says = |word: &str| std::fs::write(&state, format!("{word}\n")).expect("state");
    says("running");
    let statics = home.path().join("static");
    std::fs::create_dir(&statics).expect("directory");
    std::fs::write(statics.join("kept.yaml"), pod("kept", &image, "Always", "")).expect("write");
    let statics = statics.display().to_string();
    let args = [
        &GRACE[..],
        &["--pod-manifest-path", &statics, "--node-name", "edge"],
    ]
    .concat();
    let mut site = Site::start_by(&systemd(home.path()), &args);
    site.ok(&["create", "deployment", "web", "--image", &image]);
    site.apply(&daemon_set(&image));
    site.apply(&pod("bare", &image, "Always", ""));
    let hook = "    lifecycle: {preStop: {sleep: {seconds: 5}}}\n";
    site.apply(&pod("slow", &image, "Always", hook));
    let last = pod(
        "last",
        &image,
        "Always",
        "  priorityClassName: system-node-critical\n",
    );
    site.apply(&last);
    let ready = |site: &Site, name: &str| {
        let is_ready = "/status/containerStatuses/0/ready";
        site.wait_for(&["get", "pod", name], is_ready, |v| v == true)
    };
    let names = ["bare", "slow", "last", "kept-edge"];
    let before: Vec<_> = names.iter().map(|name| ready(&site, name)).collect();
    let (web, each) = (running(&site, "web"), running(&site, "each"));

    // The agent is restarted, and no container is.
    site.signal("-TERM");
    site.up(&args);
    for (name, before) in names.iter().zip(before) {
        let now = ready(&site, name);
        let run = |pod: &Value| {
            let status = pod["status"]["containerStatuses"][0].clone();
            (status["containerID"].clone(), status["state"].clone())
        };
        assert_eq!(run(&now), run(&before), "{name}");
    }

    // The machine goes down. While the slow one ends, nobody comes.
    says("stopping");
    let turn = site.between_stop_and_start();
    let pid = site.pid().to_string();
    let sent = Command::new("kill").args(["-TERM", &pid]).status();
    assert!(sent.expect("kill").success());
    let node = site.wait_for(&["get", "node", "edge"], "/status/conditions", |all| {
        let mut all = all.as_array().into_iter().flatten();
        all.any(|c| c["type"] == "Ready" && c["status"] == "False")
    });
    let mut conditions = node["status"]["conditions"]
        .as_array()
        .expect("a list")
        .iter();
    let condition = conditions
        .find(|c| c["type"] == "Ready")
        .expect("a condition");
    assert_eq!(condition["reason"], "KubeletNotReady");
    assert_eq!(condition["message"], "node is shutting down");
    let late = pod("late", &image, "Always", "  nodeName: edge\n");
    site.apply(&late);
    let refused = site.wait_for(&["get", "pod", "late"], "/status/phase", |p| p == "Failed");
    assert_eq!(refused["status"]["reason"], "NodeShutdown");
    site.signal("-TERM");

    says("running");
    site.up(&args);
    drop(turn);
    let (bare, slow, last) = (
        terminated_at(&site, "bare"),
        terminated_at(&site, "slow"),
        terminated_at(&site, "last"),
    );
    assert!(bare < slow && slow <= last, "{bare} {slow} {last}");
    assert_ne!(running(&site, "web"), web);
    assert_ne!(running(&site, "each"), each);
    ready(&site, "kept-edge");
    let node = site.ok(&["get", "node", "edge"]);
    assert!(node.contains(" Ready "), "{node}");

    // The same by the signal of a power failure, whatever systemd knows.
    let web = running(&site, "web");
    let turn = site.between_stop_and_start();
    site.signal("-PWR");
    site.up(&args);
    drop(turn);
    assert_ne!(running(&site, "web"), web);
    terminated_at(&site, "bare");
}
