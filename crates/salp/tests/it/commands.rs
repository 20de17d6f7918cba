//! `salp run`, `logs`, `token`, `ps`, `image` against a running site.

use crate::harness::{Following, Registry, Site, eventually, get, repo_file, salp, text};
use crate::pods::{command, module, pod};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A preview-1 command that prints `tick` ten times a second, so often, and fails.
pub(crate) fn ticking(dir: &Path, times: u32) -> PathBuf {
    let wat = format!(
        r#"(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 64) "tick\n")
  (func (export "_start") (local $n i32)
    (i32.store (i32.const 0) (i32.const 64))
    (i32.store (i32.const 4) (i32.const 5))
    ;; A subscription to the monotonic clock at 128: its id, then the delay in nanoseconds.
    (i32.store (i32.const 144) (i32.const 1))
    (i64.store (i32.const 152) (i64.const 100000000))
    (loop $again
      (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16)))
      (drop (call $poll (i32.const 128) (i32.const 256) (i32.const 1) (i32.const 16)))
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_if $again (i32.lt_u (local.get $n) (i32.const {times}))))
    (call $proc_exit (i32.const 5))))"#
    );
    module(dir, &format!("ticking-{times}"), &wat)
}

/// Standard output of a command that must succeed.
fn printed(site: &Site, args: &[&str]) -> String {
    let output = site.salp(args);
    assert!(output.status.success(), "salp {args:?}: {}", text(&output));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn json(site: &Site, args: &[&str]) -> Value {
    serde_json::from_str(&printed(site, args)).expect("JSON")
}

#[test]
fn run_prints_a_url_that_answers() {
    let (registry, site) = (Registry::start(), Site::start());
    let image = registry.push(&repo_file("examples/hello/hello.wasm"), "hello:1");
    let output = site.salp(&["run", &image, "--name", "greeter"]);
    assert!(output.status.success(), "{}", text(&output));
    let url = String::from_utf8(output.stdout).expect("UTF-8");
    let address = url
        .trim()
        .strip_prefix("http://")
        .expect("a URL and no more");
    let answer = get(address.trim_end_matches('/'), "/").expect("answer");
    assert!(answer.expect_code(200).expect("200").starts_with("Hello"));
    // How to be rid of it is said, where it does not mix with the URL.
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("kubectl delete pod greeter"), "{said}");
    let taken = site.salp(&["run", &image, "--name", "greeter"]);
    assert_eq!(taken.status.code(), Some(1));
    assert!(text(&taken).contains("already exists"), "{}", text(&taken));
}

#[test]
fn run_gives_a_command_s_output_and_exit_code() {
    let (registry, site) = (Registry::start(), Site::start());
    let dir = tempfile::tempdir().expect("directory");
    let job = registry.push(&repo_file("examples/job/job.wasm"), "job:1");
    assert_eq!(
        printed(&site, &["run", &job, "--", "100"]),
        "25 primes below 100\n"
    );
    assert_eq!(
        printed(&site, &["run", "-e", "LIMIT=10", &job]),
        "4 primes below 10\n"
    );
    let failed = site.salp(&["run", "--rm", "--name=fails", &job, "--", "many"]);
    // WASI 0.2 tells failure, not which.
    assert_eq!(failed.status.code(), Some(1), "{}", text(&failed));
    assert!(text(&failed).contains("not a number"), "{}", text(&failed));
    assert!(site.fails(&["get", "pod", "fails"]).contains("NotFound"));

    // What it prints is shown as it comes, not when it has ended.
    let slow = registry.push(&ticking(dir.path(), 30), "ticking:1");
    let mut running = Following::start(site.salp_command(&["run", "--name=slow", &slow]));
    running.wait_for(|line| line == "tick");
    assert_eq!(
        site.json(&["get", "pod", "slow"])["status"]["phase"],
        "Running"
    );
    assert_eq!(running.ended().code(), Some(5));
    assert_eq!(running.lines(), vec!["tick"; 30]);

    // Ctrl-C ends it, and with --rm the pod.
    let mut running =
        Following::start(site.salp_command(&["run", "--rm", "--name=stopped", &slow]));
    running.wait_for(|line| line == "tick");
    let pid = running.pid().to_string();
    let sent = std::process::Command::new("kill")
        .args(["-INT", &pid])
        .status();
    assert!(sent.expect("kill").success());
    assert_eq!(running.ended().code(), Some(130));
    eventually("the pod is gone", || {
        let left = site.ok(&["get", "pods", "-o", "name"]);
        if left.contains("stopped") {
            Err(left)
        } else {
            Ok(())
        }
    });

    let absent = format!("{}/absent:1", registry.address);
    let output = site.salp(&["run", "--rm", &absent]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said.starts_with("error: ") && said.contains("not found"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
    let pods = site.ok(&["get", "pods", "-o", "name"]);
    assert!(!pods.contains("absent"), "{pods}");
}

#[test]
fn logs_follow_a_pod_to_its_end() {
    let (registry, site) = (Registry::start(), Site::start());
    let dir = tempfile::tempdir().expect("directory");
    let image = registry.push(&ticking(dir.path(), 20), "ticking:1");
    site.apply(&pod("ticks", &image, "Never", ""));
    site.ok(&[
        "wait",
        "--for=condition=Ready",
        "pod/ticks",
        "--timeout=60s",
    ]);
    let mut follow = Following::start(site.salp_command(&["logs", "-f", "ticks"]));
    follow.wait_for(|line| line == "tick");
    assert!(follow.ended().success());
    assert_eq!(follow.lines(), vec!["tick"; 20]);
    assert_eq!(
        printed(&site, &["logs", "default/ticks", "--tail=2"]),
        "tick\ntick\n"
    );
    let stamped = printed(&site, &["logs", "ticks", "--timestamps", "--tail=1"]);
    let (time, line) = stamped.split_once(' ').expect("time and line");
    assert!(
        time.starts_with("20") && time.ends_with('Z') && line == "tick\n",
        "{stamped}"
    );
    let missing = site.salp(&["logs", "absent"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(
        text(&missing).contains("\"absent\" not found"),
        "{}",
        text(&missing)
    );
}

#[test]
fn ps_tells_the_truth() {
    let (registry, site) = (Registry::start(), Site::start());
    let dir = tempfile::tempdir().expect("directory");
    let image = registry.push(&repo_file("examples/hello/hello.wasm"), "hello:1");
    let none = site.salp(&["ps"]);
    assert!(none.status.success() && none.stdout.is_empty());
    assert!(text(&none).contains("No pods found"));

    let url = printed(&site, &["run", &image, "--name=hello"]);
    let address = url
        .trim()
        .trim_start_matches("http://")
        .trim_end_matches('/')
        .to_owned();
    for _ in 0..50 {
        get(&address, "/")
            .expect("answer")
            .expect_code(200)
            .expect("200");
    }
    let one = |list: Value| -> Value {
        let list = list.as_array().expect("a list").clone();
        list.into_iter()
            .find(|p| p["pod"] == "hello")
            .expect("hello")
    };
    let idle = one(json(&site, &["ps", "-o", "json"]));
    assert_eq!(idle["requests"], 50, "{idle}");
    assert_eq!(idle["requestsPerSecond"], 0.0, "{idle}");
    assert_eq!(
        (idle["state"].as_str(), idle["ready"].as_str()),
        (Some("Running"), Some("1/1"))
    );
    assert_eq!(
        (idle["image"].as_str(), idle["restarts"].as_u64()),
        (Some(&*image), Some(0))
    );
    let pod_ip = site.json(&["get", "pod", "hello"])["status"]["podIP"].clone();
    assert_eq!(idle["ip"], pod_ip);

    let stop = Arc::new(AtomicBool::new(false));
    let load = {
        let (stop, address) = (stop.clone(), address.clone());
        std::thread::spawn(move || {
            let mut sent = 0u64;
            while !stop.load(Ordering::Relaxed) {
                get(&address, "/")
                    .expect("answer")
                    .expect_code(200)
                    .expect("200");
                sent += 1;
            }
            sent
        })
    };
    let busy = eventually("requests are counted", || {
        let busy = one(json(&site, &["ps", "-o", "json"]));
        let rate = busy["requestsPerSecond"].as_f64().unwrap_or_default();
        if rate > 0.0 {
            Ok(busy)
        } else {
            Err(busy.to_string())
        }
    });
    assert!(busy["cpuCores"].as_f64().is_some_and(|c| c > 0.0), "{busy}");
    stop.store(true, Ordering::Relaxed);
    let sent = load.join().expect("load");
    let after = one(json(&site, &["ps", "-o", "json"]));
    assert_eq!(after["requests"], 50 + sent);
    assert_eq!(after["requestsPerSecond"], 0.0);

    // Other forms of the same.
    let done = registry.push(&command(dir.path(), "done", 0), "done:1");
    site.apply(&pod("ended", &done, "Never", ""));
    site.wait_for(&["get", "pod", "ended"], "/status/phase", |p| {
        p == "Succeeded"
    });
    let plain = printed(&site, &["ps"]);
    let head: Vec<&str> = plain
        .lines()
        .next()
        .expect("heading")
        .split_whitespace()
        .collect();
    assert_eq!(
        head,
        [
            "POD", "IMAGE", "READY", "STATE", "RESTARTS", "AGE", "CPU", "MEMORY", "REQ/S"
        ]
    );
    let ended = plain.lines().find(|l| l.starts_with("ended")).expect("row");
    assert!(
        ended.contains("Completed") && ended.contains("0/1"),
        "{plain}"
    );
    assert!(!printed(&site, &["ps", "--no-headers"]).contains("IMAGE"));
    let wide = printed(&site, &["ps", "-o", "wide", "-A"]);
    for column in ["NAMESPACE", "REQUESTS", "INSTANCES", "IP", "NODE"] {
        assert!(
            wide.lines().next().expect("heading").contains(column),
            "{wide}"
        );
    }
    assert!(wide.contains(pod_ip.as_str().expect("IP")), "{wide}");
    let names = printed(&site, &["ps", "-o", "name"]);
    assert_eq!(
        names.lines().collect::<Vec<_>>(),
        ["pod/ended", "pod/hello"]
    );
    assert!(printed(&site, &["ps", "-o", "yaml"]).contains("pod: hello"));
    assert_eq!(
        printed(&site, &["ps", "-o", "name", "-l", "run=hello"]),
        "pod/hello\n"
    );
    let field = "--field-selector=status.phase=Succeeded";
    assert_eq!(printed(&site, &["ps", "-o", "name", field]), "pod/ended\n");
}

#[test]
fn tokens_authenticate() {
    let site = Site::start();
    let token = printed(&site, &["token", "default", "--duration", "10m"]);
    // A client certificate goes before a token, so this one asks without.
    let server = site.ok(&[
        "config",
        "view",
        "--minify",
        "-o",
        "jsonpath={.clusters[0].cluster.server}",
    ]);
    let bare = site.dir.join("bare.yaml");
    std::fs::write(&bare, "").expect("write");
    let asked = std::process::Command::new(crate::harness::tool("kubectl"))
        .arg("--kubeconfig")
        .arg(&bare)
        .args(["auth", "whoami", "-o", "json", "--insecure-skip-tls-verify"])
        .args([
            format!("--server={server}"),
            format!("--token={}", token.trim()),
        ])
        .output()
        .expect("kubectl");
    assert!(asked.status.success(), "{}", text(&asked));
    let who: Value = serde_json::from_slice(&asked.stdout).expect("JSON");
    assert_eq!(
        who["status"]["userInfo"]["username"],
        "system:serviceaccount:default:default"
    );
    let absent = site.salp(&["token", "absent"]);
    assert_eq!(absent.status.code(), Some(1));
    assert!(
        text(&absent).contains("\"absent\" not found"),
        "{}",
        text(&absent)
    );
    assert_eq!(
        site.salp(&["token", "--duration", "soon"]).status.code(),
        Some(2)
    );
}

#[test]
fn images_are_pulled_listed_and_removed() {
    let (registry, site) = (Registry::start(), Site::start());
    let dir = tempfile::tempdir().expect("directory");
    let file = command(dir.path(), "from the store", 0);
    let image = registry.push(&file, "stored:1");
    assert_eq!(printed(&site, &["image", "ls", "-q"]), "");
    let pulled = printed(&site, &["image", "pull", &image]);
    let digest = pulled
        .trim()
        .strip_prefix(&format!("{image}@"))
        .expect("name and digest");
    assert!(digest.starts_with("sha256:"), "{pulled}");
    let table = printed(&site, &["image", "ls"]);
    assert!(
        table.starts_with("IMAGE") && table.contains(&image),
        "{table}"
    );
    let list = json(&site, &["image", "ls", "-o", "json"]);
    assert_eq!(
        (&list[0]["reference"], &list[0]["digest"]),
        (&image.as_str().into(), &digest.into())
    );

    // $KUBECONFIG says which site as well.
    let named = std::process::Command::new(env!("CARGO_BIN_EXE_salp"))
        .args(["image", "ls", "-q"])
        .env("KUBECONFIG", site.kubeconfig())
        .output()
        .expect("run salp");
    assert_eq!(text(&named).trim(), image);

    // The running site uses it: nothing is pulled any more.
    drop(registry);
    site.apply(&pod(
        "stored",
        &image,
        "Never",
        "    imagePullPolicy: Never\n",
    ));
    site.wait_for(&["get", "pod", "stored"], "/status/phase", |p| {
        p == "Succeeded"
    });
    assert_eq!(site.ok(&["logs", "stored"]), "from the store\n");

    let loaded = "localhost:5000/loaded:1";
    printed(
        &site,
        &["image", "load", &file.display().to_string(), loaded],
    );
    assert!(printed(&site, &["image", "ls", "-q"]).contains(loaded));
    assert_eq!(
        printed(&site, &["image", "rm", loaded]),
        format!("removed {loaded}\n")
    );
    let again = site.salp(&["image", "rm", loaded]);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again).contains("salp image ls"), "{}", text(&again));
    let unreachable = site.salp(&["image", "pull", &image]);
    assert_eq!(unreachable.status.code(), Some(1));
    assert_eq!(
        text(&unreachable).lines().count(),
        1,
        "{}",
        text(&unreachable)
    );
}

#[test]
fn listing_images_makes_no_site() {
    let dir = tempfile::tempdir().expect("directory");
    let nowhere = dir.path().join("none");
    let listed = salp(&[
        "image",
        "ls",
        "-q",
        "--data-dir",
        &nowhere.display().to_string(),
    ]);
    assert!(
        listed.status.success() && listed.stdout.is_empty(),
        "{}",
        text(&listed)
    );
    assert!(!nowhere.exists());
}

#[test]
fn a_stopped_site_is_said_to_be_stopped() {
    let mut site = Site::start();
    site.signal("-INT");
    for args in [
        &["ps"][..],
        &["logs", "a"],
        &["token"],
        &["run", "localhost:1/a:1"],
    ] {
        let output = site.salp(args);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(
            said.contains("is the site up?") && said.contains("salp up"),
            "{said}"
        );
    }
    let down = site.salp(&["down"]);
    assert!(
        down.status.success() && text(&down).contains("nothing runs"),
        "{}",
        text(&down)
    );
}
