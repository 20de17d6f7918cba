//! What must survive: acknowledged writes and pods that serve, under `kill -9`.

use crate::harness::{Registry, Running, Site, eventually, get, get_ok, repo_file, text};
use crate::serve::{addresses, hello};
use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

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
    // Twice: the second is one that was started again.
    for restarts in 1..=2 {
        site.kill("dataplane");
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
    site.kill("dataplane");
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

/// What is served with is replaced in a running site, and so is what its parts show.
#[test]
fn the_site_s_certificates_are_renewed_while_it_runs() {
    let site = Site::start();
    let before = site.dir.join("before.yaml");
    std::fs::copy(site.dir.join("kubeconfig.yaml"), &before).expect("copy");
    let node = &site.json(&["get", "nodes"])["items"][0]["metadata"]["name"];
    let node = node.as_str().expect("a name").to_owned();
    let server = site.ok(&[
        "config",
        "view",
        "-o",
        "jsonpath={.clusters[0].cluster.server}",
    ]);
    let served = || {
        let mut curl = std::process::Command::new("curl");
        curl.args(["-sk", "-o", "/dev/null", "-w", "%{certs}", &server]);
        text(&curl.output().expect("run curl"))
    };
    // A line of the signature: that of one certificate alone.
    let signature = |pem: &str| pem.lines().rev().nth(2).unwrap_or_default().to_owned();
    let file = |name: &str| std::fs::read_to_string(site.dir.join("pki").join(name)).ok();
    let old = file("apiserver.crt").expect("a certificate");
    assert!(served().contains(&signature(&old)), "{}", served());
    let all = [
        "apiserver",
        "kubelet",
        "kubelet-client",
        "admin",
        "proxy",
        "sites",
    ];
    for leaf in all {
        std::fs::remove_file(site.dir.join(format!("pki/{leaf}.crt"))).expect("remove");
    }
    eventually("another is served", || {
        let new = file("apiserver.crt").ok_or("not yet made")?;
        assert_ne!(signature(&new), signature(&old));
        served()
            .contains(&signature(&new))
            .then_some(())
            .ok_or_else(served)
    });
    eventually("the kubeconfig is another", || {
        let read = |path: &std::path::Path| std::fs::read_to_string(path).expect("read");
        let same = read(&site.dir.join("kubeconfig.yaml")) == read(&before);
        (!same).then_some(()).ok_or("the same".to_owned())
    });
    // Whoever has the one before is believed as well, and nodes are reached with the new ones.
    let healthz = format!("/api/v1/nodes/{node}/proxy/healthz");
    for kubeconfig in [site.dir.join("kubeconfig.yaml"), before] {
        let kubeconfig = kubeconfig.display().to_string();
        let said = site.ok(&["--kubeconfig", &kubeconfig, "get", "--raw", &healthz]);
        assert_eq!(said.trim(), "ok");
    }
}

/// As one of a machine that sleeps, or whose line is cut: it never says that it has heard of the end.
#[test]
fn a_suspended_client_does_not_keep_a_site_from_stopping() {
    let mut site = Site::start();
    let mut watch = site.kubectl_command(&["get", "configmaps", "-A", "-w"]);
    let watch = watch.stdout(Stdio::piped()).spawn().expect("run kubectl");
    let mut watch = Running(watch);
    let said = BufReader::new(watch.0.stdout.take().expect("stdout"));
    let first = said.lines().next().expect("a line").expect("a line");
    assert!(first.contains("NAME"), "{first}");
    let suspended = Command::new("kill")
        .args(["-STOP", &watch.0.id().to_string()])
        .status();
    assert!(suspended.expect("kill").success());
    // A part that is given up is an error in the log, which no test lets pass.
    site.signal("-TERM");
}
