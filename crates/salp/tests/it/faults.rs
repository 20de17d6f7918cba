//! What must survive: acknowledged writes under `kill -9`.

use crate::harness::{Registry, Site, eventually, get, repo_file, text};

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
        eventually("the service answers again", || {
            get(&address, "/")
                .map_err(|e| e.to_string())
                .and_then(|r| r.expect_code(200))
        });
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
