//! What must survive: acknowledged writes and pods that serve, under `kill -9`.

use crate::harness::{Registry, Running, Site, eventually, get, get_ok, repo_file, text};
use crate::serve::{addresses, hello};
use std::collections::BTreeSet;

#[test]
fn no_acknowledged_write_is_lost_by_kill() {
    let mut site = Site::start();
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        for n in 0..5 {
            let name = format!("kept-{round}-{n}");
            site.ok(&["create", "configmap", &name, "--from-literal=a=b"]);
            acknowledged.push(name);
        }
        site.signal("-KILL");
        site.up(&[]);
        let list = site.ok(&["get", "configmaps", "-o", "name"]);
        for name in &acknowledged {
            assert!(
                list.contains(&format!("configmap/{name}\n")),
                "{name} is lost:\n{list}"
            );
        }
    }
    let pods = site.kubectl(&["get", "nodes"]);
    assert!(text(&pods).contains("Ready"));
}

#[test]
fn a_killed_data_plane_comes_back_with_its_pods() {
    let registry = Registry::start();
    let image = registry.push(&repo_file("examples/hello/hello.wasm"), "hello:1");
    let site = Site::start();
    site.expects("the data plane ended; starting it again");
    site.ok(&[
        "create",
        "deployment",
        "hello",
        "--image",
        &image,
        "--port=8080",
    ]);
    site.ok(&["expose", "deployment", "hello", "--port=8080"]);
    site.ok(&[
        "wait",
        "--for=condition=Available",
        "deployment/hello",
        "--timeout=60s",
    ]);
    let address = site.json(&["get", "service", "hello"])["spec"]["clusterIP"]
        .as_str()
        .map(|ip| format!("{ip}:8080"))
        .expect("address");
    let pid_file = site.dir.join("run/dataplane.pid");
    // Twice: the second is one that was started again.
    for restarts in 1..=2 {
        let pid = std::fs::read_to_string(&pid_file).expect("pid");
        let killed = std::process::Command::new("kill")
            .args(["-KILL", pid.trim()])
            .status();
        assert!(killed.expect("kill").success());
        site.wait_for(
            &["get", "pods", "-l", "app=hello"],
            "/items/0/status/containerStatuses/0",
            |status| status["restartCount"] == restarts && status["ready"] == true,
        );
        eventually("the service answers again", || get_ok(&address, "/"));
    }
}

#[test]
fn a_new_site_keeps_off_the_addresses_of_one_whose_control_plane_is_down() {
    let mut one = Site::start();
    one.signal("-KILL");
    let two = Site::start();
    let blocks = |site: &Site| std::fs::read_to_string(site.dir.join("site.json")).expect("facts");
    assert_ne!(blocks(&one), blocks(&two));
    one.up(&[]);
    assert!(one.ok(&["get", "nodes"]).contains(" Ready "));
}

/// Nothing is left but files, and nothing but the data plane is started: it serves.
#[test]
fn a_data_plane_alone_serves_what_it_knew() {
    let registry = Registry::start();
    let image = registry.push(&repo_file("examples/hello/hello.wasm"), "hello:1");
    let mut site = Site::start();
    site.expects("the data plane ended; starting it again");
    site.apply(&hello(&image, 2));
    site.ok(&["rollout", "status", "deployment/hello", "--timeout=90s"]);
    let (cluster, node_port) = addresses(&site);
    let ok = |address: &str| get_ok(address, "/");
    let both = || {
        let answers: BTreeSet<_> = (0..10).map(|_| ok(&cluster)).collect::<Result<_, _>>()?;
        (answers.len() == 2)
            .then_some(())
            .ok_or(format!("{answers:?}"))
    };
    eventually("both pods answer", both);
    let services = site.dir.join("dataplane/services");
    eventually("the Service is kept", || {
        let text = std::fs::read_to_string(&services).map_err(|e| e.to_string())?;
        let known = text.contains(cluster.trim_end_matches(":8080")) && text.contains("127.");
        (known && text.matches("\"ready\":true").count() >= 2)
            .then_some(())
            .ok_or(text)
    });
    site.signal("-KILL");
    let held = site.hold_addresses();
    let pid = std::fs::read_to_string(site.dir.join("run/dataplane.pid")).expect("pid");
    let killed = std::process::Command::new("kill")
        .args(["-KILL", pid.trim()])
        .status();
    assert!(killed.expect("kill").success());
    eventually("nobody answers", || match get(&cluster, "/") {
        Ok(answer) => Err(format!("{answer:?}")),
        Err(_) => Ok(()),
    });

    let alone = std::process::Command::new(env!("CARGO_BIN_EXE_salp"))
        .args(["dataplane", "--config"])
        .arg(site.dir.join("run/dataplane.json"))
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .map(Running)
        .expect("start data plane");
    for address in [&cluster, &node_port] {
        eventually("the data plane alone answers", || ok(address));
    }
    eventually("both pods answer", both);

    // A control plane that comes back adopts what it finds: the pods' next run.
    drop(held);
    site.up(&[]);
    let args = ["get", "pods", "-l", "app=hello"];
    for pod in ["0", "1"] {
        let status = format!("/items/{pod}/status/containerStatuses/0");
        site.wait_for(&args, &status, |s| {
            s["restartCount"] == 1 && s["ready"] == true
        });
    }
    assert!(ok(&cluster).is_ok());
    drop(alone);
}
