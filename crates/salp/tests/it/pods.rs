//! What a pod may say, and what becomes of it: exit codes, restarts, jobs, bad images.

use crate::harness::{Registry, Site, eventually, get_ok, repo_file, salp, text};
use std::path::{Path, PathBuf};

/// A preview-1 command module that prints a line and exits with a code.
pub(crate) fn command(dir: &Path, line: &str, code: u32) -> PathBuf {
    let wat = format!(
        r#"(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 64) "{line}\n")
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 64))
    (i32.store (i32.const 4) (i32.const {length}))
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16)))
    (call $proc_exit (i32.const {code}))))"#,
        length = line.len() + 1
    );
    module(dir, &format!("command-{code}"), &wat)
}

/// A module from its text form.
pub(crate) fn module(dir: &Path, name: &str, wat: &str) -> PathBuf {
    let path = dir.join(format!("{name}.wasm"));
    std::fs::write(&path, wat::parse_str(wat).expect("WAT")).expect("write module");
    path
}

/// A pod with one container `main`; `more` is YAML indented by four for the container.
pub(crate) fn pod(name: &str, image: &str, restart: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n  restartPolicy: {restart}\n  containers:\n  - name: main\n    image: {image}\n{more}"
    )
}

fn cut_file(dir: &Path, whole: &[u8]) -> String {
    let cut = dir.join("cut.wasm");
    std::fs::write(&cut, &whole[..whole.len() / 2]).expect("write");
    cut.display().to_string()
}

fn waiting_reason(site: &Site, name: &str, want: &[&str]) -> String {
    let object = site.wait_for(
        &["get", "pod", name],
        "/status/containerStatuses/0/state/waiting/reason",
        |r| r.as_str().is_some_and(|r| want.contains(&r)),
    );
    object["status"]["containerStatuses"][0]["state"]["waiting"]["message"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[test]
fn commands_run_to_their_end() {
    let (registry, site) = (Registry::start(), Site::start());
    let dir = tempfile::tempdir().expect("directory");
    let good = registry.push(&command(dir.path(), "all is well", 0), "good:1");
    let bad = registry.push(&command(dir.path(), "all is lost", 3), "bad:1");

    site.apply(&pod("good", &good, "Never", ""));
    site.wait_for(&["get", "pod", "good"], "/status/phase", |p| {
        p == "Succeeded"
    });
    assert_eq!(site.ok(&["logs", "good"]), "all is well\n");
    assert!(site.ok(&["get", "pod", "good"]).contains("Completed"));

    site.apply(&pod("bad", &bad, "Never", ""));
    let failed = site.wait_for(&["get", "pod", "bad"], "/status/phase", |p| p == "Failed");
    let ended = &failed["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(
        (ended["exitCode"].as_u64(), ended["reason"].as_str()),
        (Some(3), Some("Error"))
    );

    site.apply(&pod("again", &bad, "Always", ""));
    waiting_reason(&site, "again", &["CrashLoopBackOff"]);
    let again = site.wait_for(
        &["get", "pod", "again"],
        "/status/containerStatuses/0/restartCount",
        |n| n.as_u64().is_some_and(|n| n >= 1),
    );
    assert_eq!(
        again["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"],
        3
    );
    assert_eq!(site.ok(&["logs", "again", "--previous"]), "all is lost\n");
    assert!(
        site.ok(&["describe", "pod", "again"])
            .contains("Back-off restarting failed container")
    );

    site.ok(&["create", "job", "once", &format!("--image={good}")]);
    site.ok(&[
        "wait",
        "--for=condition=complete",
        "job/once",
        "--timeout=90s",
    ]);
    assert_eq!(site.ok(&["logs", "job/once"]), "all is well\n");
    assert!(site.ok(&["get", "jobs"]).contains("1/1"));
}

#[test]
fn init_containers_run_first_and_in_order() {
    let (registry, site) = (Registry::start(), Site::start());
    let dir = tempfile::tempdir().expect("directory");
    let image = registry.push(&command(dir.path(), "done", 0), "init:1");
    let bad = registry.push(&command(dir.path(), "no", 4), "no:1");
    let with_init = |name: &str, init: &str| {
        format!(
            "{}  initContainers:\n  - name: first\n    image: {init}\n",
            pod(name, &image, "Never", "")
        )
    };
    site.apply(&with_init("ready", &image));
    let done = site.wait_for(&["get", "pod", "ready"], "/status/phase", |p| {
        p == "Succeeded"
    });
    assert_eq!(
        done["status"]["initContainerStatuses"][0]["state"]["terminated"]["reason"],
        "Completed"
    );
    site.apply(&with_init("stuck", &bad));
    let failed = site.wait_for(&["get", "pod", "stuck"], "/status/phase", |p| p == "Failed");
    assert_eq!(
        failed["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"],
        4
    );
    assert!(failed["status"]["containerStatuses"][0]["state"]["terminated"].is_null());
}

#[test]
fn bad_images_give_the_conditions_that_users_know() {
    let (registry, site) = (Registry::start(), Site::start());
    let dir = tempfile::tempdir().expect("directory");

    site.apply(&pod(
        "absent",
        &format!("{}/absent:1", registry.address),
        "Always",
        "",
    ));
    waiting_reason(&site, "absent", &["ErrImagePull", "ImagePullBackOff"]);
    let described = eventually("events tell", || {
        let text = site.ok(&["describe", "pod", "absent"]);
        if text.contains("Failed to pull image") {
            Ok(text)
        } else {
            Err(text)
        }
    });
    assert!(described.contains("not found"), "{described}");

    site.apply(&pod("misnamed", "UPPER/Case:1", "Always", ""));
    waiting_reason(&site, "misnamed", &["InvalidImageName"]);

    let wrong = format!("{}/absent@sha256:{}", registry.address, "0".repeat(64));
    site.apply(&pod("wrong-digest", &wrong, "Always", ""));
    waiting_reason(&site, "wrong-digest", &["ErrImagePull", "ImagePullBackOff"]);

    let missing = module(
        dir.path(),
        "missing",
        r#"(component
            (import "example:absent/api@1.0.0" (instance (export "call" (func))))
            (core module $m (func (export "run") (result i32) i32.const 0))
            (core instance $i (instantiate $m))
            (func $run (result (result)) (canon lift (core func $i "run")))
            (instance $r (export "run" (func $run)))
            (export "wasi:cli/run@0.2.0" (instance $r)))"#,
    );
    let missing = registry.push(&missing, "missing:1");
    site.apply(&pod("missing", &missing, "Always", ""));
    let message = waiting_reason(&site, "missing", &["CreateContainerError"]);
    assert!(message.contains("example:absent/api@1.0.0"), "{message}");

    let whole = std::fs::read(command(dir.path(), "x", 0)).expect("module");
    let refused = salp(&[
        "image",
        "push",
        &cut_file(dir.path(), &whole),
        "localhost:1/cut:1",
    ]);
    assert!(!refused.status.success() && text(&refused).contains("not a Wasm module"));
    let layer = ("application/wasm", whole[..whole.len() / 2].to_vec());
    let cut = registry.put(
        "cut:1",
        ("application/vnd.wasm.config.v0+json", b"{}".to_vec()),
        &[layer],
    );
    site.apply(&pod("cut", &cut, "Always", ""));
    waiting_reason(&site, "cut", &["CreateContainerError"]);

    let config = pod(
        "config",
        &missing,
        "Always",
        "    envFrom:\n    - configMapRef: {name: absent}\n",
    );
    site.apply(&config);
    waiting_reason(&site, "config", &["CreateContainerConfigError"]);

    // Nothing else suffers.
    let good = registry.push(&command(dir.path(), "fine", 0), "fine:1");
    site.apply(&pod("fine", &good, "Never", ""));
    site.wait_for(&["get", "pod", "fine"], "/status/phase", |p| {
        p == "Succeeded"
    });
}

#[test]
fn unknown_fields_are_refused_and_nothing_is_made() {
    let site = Site::start();
    let manifest = "apiVersion: v1\nkind: Pod\nmetadata: {name: odd}\nspec:\n  colour: red\n  containers: [{name: a, image: b}]\n";
    let output = site.apply_output(manifest, &[]);
    let said = text(&output);
    assert!(
        !output.status.success() && said.contains("unknown field \"spec.colour\""),
        "{said}"
    );
    assert!(site.fails(&["get", "pod", "odd"]).contains("NotFound"));
}

#[test]
fn static_pods_run_by_their_files_and_are_shown() {
    let registry = Registry::start();
    let hello = registry.push(&repo_file("examples/hello/hello.wasm"), "hello:1");
    let mut site = Site::new();
    let home = tempfile::tempdir().expect("directory");
    let dir = home.path().join("static");
    std::fs::create_dir(&dir).expect("directory");
    let file = dir.join("web.yaml");
    let manifest = pod(
        "web",
        &hello,
        "Always",
        "    ports: [{containerPort: 8080}]\n",
    )
    .replace("name: web", "name: web\n  labels: {app: web}");
    std::fs::write(&file, &manifest).expect("write");
    let path = dir.display().to_string();
    let args = [
        "--pod-manifest-path",
        &path,
        "--node-name",
        "edge",
        "--node-labels",
        "shelf=top",
        "--register-with-taints",
        "salp.dev/only=wasm:NoSchedule",
    ];
    site.up(&args);
    let node = site.json(&["get", "node", "edge"]);
    assert_eq!(node["metadata"]["labels"]["shelf"], "top");
    assert_eq!(node["spec"]["taints"][0]["key"], "salp.dev/only");

    // The mirror tells how the pod is, and is no way to end it.
    let ready = |v: &serde_json::Value| v == true;
    let is_ready = "/status/containerStatuses/0/ready";
    let first = site.wait_for(&["get", "pod", "web-edge"], is_ready, ready);
    let (id, uid) = ("/status/containerStatuses/0/containerID", "/metadata/uid");
    assert_eq!(first["metadata"]["ownerReferences"][0]["kind"], "Node");
    site.ok(&["delete", "pod", "web-edge", "--now"]);
    let second = site.wait_for(&["get", "pod", "web-edge"], is_ready, ready);
    assert_ne!(first.pointer(uid), second.pointer(uid));
    assert_eq!(first.pointer(id), second.pointer(id));
    assert_eq!(second["status"]["containerStatuses"][0]["restartCount"], 0);
    let ip = second["status"]["podIP"]
        .as_str()
        .expect("address")
        .to_owned();
    eventually("it answers", || get_ok(&format!("{ip}:8080"), "/"));
    assert!(
        site.ok(&["describe", "pod", "web-edge"])
            .contains("Started")
    );

    // It runs on without the agent, and the next finds it.
    site.signal("-KILL");
    get_ok(&format!("{ip}:8080"), "/").expect("an answer");
    site.up(&args);
    let third = site.wait_for(&["get", "pod", "web-edge"], is_ready, ready);
    assert_eq!(second.pointer(id), third.pointer(id));

    // What its file says now; what can't run is named, and changes nothing.
    std::fs::write(&file, "kind: Pod\n").expect("write");
    site.expects("no static pod in it");
    eventually("the file is named", || {
        match site.up_log().contains("web.yaml") {
            true => Ok(()),
            false => Err("not yet".to_owned()),
        }
    });
    get_ok(&format!("{ip}:8080"), "/").expect("an answer");
    std::fs::write(&file, manifest.replace("app: web", "app: other")).expect("write");
    site.wait_for(&["get", "pod", "web-edge"], "/metadata/labels/app", |v| {
        v == "other"
    });
    std::fs::remove_file(&file).expect("remove");
    eventually("it ends", || {
        let left = site.ok(&["get", "pods", "-o", "name"]);
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}
