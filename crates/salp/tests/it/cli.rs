//! What the command line says, and how it fails.

use crate::harness::{Site, eventually, get_ok, repo_file, salp, text};

fn fails(args: &[&str]) -> String {
    let output = salp(args);
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    let said = text(&output);
    assert_eq!(said.trim().lines().count(), 1, "one line: {said}");
    assert!(said.starts_with("error: "), "{said}");
    said
}

/// The error of a command that may print its progress before.
fn fails_last(args: &[&str]) -> String {
    let output = salp(args);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let error = said.lines().last().expect("an error").to_owned();
    assert!(error.starts_with("error: "), "{said}");
    error
}

#[test]
fn errors_are_one_line_with_the_cure() {
    let dir = tempfile::tempdir().expect("directory");
    let nowhere = dir.path().join("none").display().to_string();
    assert!(fails(&["kubeconfig", "--data-dir", &nowhere]).contains("salp up"));
    assert!(fails(&["ps", "--data-dir", &nowhere]).contains("salp up"));
    let broken = dir.path().join("broken.yaml");
    std::fs::write(&broken, "a: [").expect("write");
    let broken = broken.display().to_string();
    assert!(fails(&["ps", "--kubeconfig", &broken]).contains("--kubeconfig"));
    assert!(fails(&["up", "--config", &broken, "--data-dir", &nowhere]).contains("broken.yaml"));
    assert!(fails(&["image", "push", &nowhere, "localhost:1/a:1"]).contains("none"));
    let unset = std::process::Command::new(env!("CARGO_BIN_EXE_salp"))
        .arg("ps")
        .env("KUBECONFIG", &nowhere)
        .output()
        .expect("run salp");
    assert!(
        !unset.status.success() && text(&unset).contains("$KUBECONFIG"),
        "{}",
        text(&unset)
    );
}

#[test]
fn a_port_in_use_is_named() {
    let held = std::net::TcpListener::bind("127.0.0.1:0").expect("port");
    let port = held.local_addr().expect("address").port().to_string();
    let dir = tempfile::tempdir().expect("directory");
    let place = dir.path().join("site").display().to_string();
    let said = fails_last(&["up", "--data-dir", &place, "--api-port", &port]);
    assert!(
        said.contains(&port) && said.contains("--api-port"),
        "{said}"
    );
    let said = fails_last(&[
        "up",
        "--data-dir",
        &place,
        "--api-port=0",
        "--kubelet-port",
        &port,
    ]);
    assert!(
        said.contains(&port) && said.contains("--kubelet-port"),
        "{said}"
    );
    // Nothing of it is left running.
    assert!(!dir.path().join("site/run/dataplane.pid").exists());
}

#[test]
fn a_second_up_in_the_same_directory_is_refused() {
    let site = Site::start();
    let place = site.dir.display().to_string();
    let said = fails_last(&["up", "--data-dir", &place, "--api-port=0"]);
    assert!(
        said.contains(&site.pid().to_string()) && said.contains("salp down"),
        "{said}"
    );
}

#[test]
fn up_with_manifests_prints_a_url_that_answers() {
    let mut site = Site::start();
    let turn = site.between_stop_and_start();
    site.signal("-INT");
    let printed = site.up(&["-f", &repo_file("examples/hello").display().to_string()]);
    drop(turn);
    let url = printed
        .split_whitespace()
        .find(|w| w.starts_with("http://"))
        .expect("URL")
        .to_owned();
    let address = url
        .trim_start_matches("http://")
        .trim_end_matches('/')
        .to_owned();
    let body = eventually("the URL answers", || get_ok(&address, "/"));
    assert!(body.starts_with("Hello from hello-"), "{body}");
}

#[test]
fn completion_and_version() {
    for shell in ["bash", "zsh", "fish"] {
        let output = salp(&["completion", shell]);
        assert!(
            output.status.success() && text(&output).contains("kubeconfig"),
            "{shell}"
        );
    }
    // A shell takes it.
    let sourced = std::process::Command::new("bash")
        .args([
            "-c",
            "source <(\"$SALP\" completion bash) && complete -p salp",
        ])
        .env("SALP", env!("CARGO_BIN_EXE_salp"))
        .output()
        .expect("run bash");
    assert!(sourced.status.success(), "{}", text(&sourced));
    assert!(text(&salp(&["version"])).contains("v1.37.1"));
    let json = salp(&["version", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(json["kubernetes"], "v1.37.1");
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    let platform = json["platform"].as_str().expect("platform");
    assert!(
        platform.starts_with("linux/") && !platform.contains('_'),
        "{platform}"
    );
    // Slips of typing are told apart from failures.
    assert_eq!(salp(&["pss"]).status.code(), Some(2));
    assert_eq!(salp(&["ps", "--colour"]).status.code(), Some(2));
    let help = text(&salp(&["up", "--help"]));
    assert!(help.contains("Examples:\n  salp up\n"), "{help}");
}
