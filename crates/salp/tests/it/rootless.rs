//! A site whose processes have no privilege at all.

use crate::harness::{Registry, Site, eventually, get_ok, pid_of, repo_file, text};
use crate::serve::{addresses, hello};
use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::time::Duration;

/// First port that everybody may listen on.
fn first_free_port() -> u16 {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    text.ok()
        .and_then(|t| t.trim().parse().ok())
        .unwrap_or(1024)
}

/// A site without privileges, sure that it has none.
fn unprivileged() -> Site {
    let site = Site::start_unprivileged();
    for pid in [site.pid().to_string(), pid_of(&site.dir, "dataplane")] {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
        let field = |name: &str| -> String {
            let line = status.lines().find_map(|l| l.strip_prefix(name));
            line.expect("field").trim().to_owned()
        };
        assert_ne!(field("Uid:").split_whitespace().nth(1), Some("0"));
        assert_eq!(field("CapEff:").trim_start_matches('0'), "", "{pid}");
    }
    site
}

fn network(site: &Site, name: &str) -> Ipv4Addr {
    let facts = std::fs::read(site.dir.join("site.json")).expect("site.json");
    let facts: serde_json::Value = serde_json::from_slice(&facts).expect("JSON");
    let address = facts[name].as_str().and_then(|a| a.parse().ok());
    address.expect("address")
}

/// The address that a DNS server gives for a name (RFC 1035), if any.
fn resolve(server: (Ipv4Addr, u16), name: &str) -> Result<Ipv4Addr, String> {
    let socket = UdpSocket::bind("127.0.0.1:0").map_err(|e| e.to_string())?;
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .map_err(|e| e.to_string())?;
    // Recursion desired, one question, of type A and class IN.
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).expect("short label"));
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    socket.send_to(&query, server).map_err(|e| e.to_string())?;
    let mut answer = [0; 512];
    let (length, _) = socket.recv_from(&mut answer).map_err(|e| e.to_string())?;
    if answer[7] == 0 || length < 16 {
        return Err(format!("no answer for {name}"));
    }
    let last: [u8; 4] = answer[length - 4..length].try_into().expect("four bytes");
    Ok(last.into())
}

#[test]
fn a_site_without_privileges_serves() {
    let registry = Registry::start();
    let site = unprivileged();
    assert!(network(&site, "podNetwork").is_loopback());
    assert!(network(&site, "serviceNetwork").is_loopback());
    let image = registry.push(&repo_file("examples/hello/hello.wasm"), "hello:1");
    site.apply(&hello(&image, 2));
    site.ok(&["rollout", "status", "deployment/hello", "--timeout=90s"]);
    let (cluster, node_port) = addresses(&site);
    assert!(cluster.starts_with("127."), "{cluster}");
    for address in [&cluster, &node_port] {
        let body = eventually("the service answers", || get_ok(address, "/"));
        assert!(body.starts_with("Hello from hello-"), "{body}");
    }

    // The API server and the cluster DNS are where pods are told that they are.
    let kubernetes = site.json(&["get", "service", "kubernetes"]);
    let host = kubernetes["spec"]["clusterIP"].as_str().expect("address");
    let port = kubernetes["spec"]["ports"][0]["port"]
        .as_u64()
        .expect("port");
    eventually("the API answers at its service address", || {
        let server = format!("--server=https://{host}:{port}");
        let ready = site.kubectl(&["get", "--raw", "/readyz", &server]);
        if ready.status.success() {
            Ok(())
        } else {
            Err(text(&ready))
        }
    });
    let services = u32::from(network(&site, "serviceNetwork"));
    let dns_port = if first_free_port() > 53 { 10_053 } else { 53 };
    let found = eventually("the name is known", || {
        resolve(
            (Ipv4Addr::from(services + 10), dns_port),
            "hello.default.svc.cluster.local",
        )
    });
    assert_eq!(format!("{found}:8080"), cluster);
}

#[test]
fn a_low_port_that_may_not_be_had_is_told_by_an_event() {
    let registry = Registry::start();
    let site = unprivileged();
    let image = registry.push(&repo_file("examples/hello/hello.wasm"), "hello:1");
    site.apply(&hello(&image, 1));
    site.ok(&["rollout", "status", "deployment/hello", "--timeout=90s"]);
    let expose = [
        "expose",
        "deployment",
        "hello",
        "--name=low",
        "--type=NodePort",
    ];
    site.ok(&[&expose[..], &["--port=80", "--target-port=8080"]].concat());
    let low = site.json(&["get", "service", "low"]);
    let address = low["spec"]["clusterIP"].as_str().expect("address");
    let answers = |address: String| eventually("the service answers", || get_ok(&address, "/"));
    if first_free_port() <= 80 {
        answers(format!("{address}:80"));
        return;
    }
    site.expects("listen on tcp");
    let described = eventually("an event tells", || {
        let text = site.ok(&["describe", "service", "low"]);
        if text.contains("FailedListen") {
            Ok(text)
        } else {
            Err(text)
        }
    });
    for part in [
        &format!("{address}:80"),
        "net.ipv4.ip_unprivileged_port_start",
        "Warning",
    ] {
        assert!(described.contains(part), "{part} is missing:\n{described}");
    }
    // The rest of it works, and so do others.
    answers(format!("127.0.0.1:{}", low["spec"]["ports"][0]["nodePort"]));
    answers(addresses(&site).0);
    // Told once, not at each try.
    let events = site.json(&["get", "events", "--field-selector=reason=FailedListen"]);
    assert_eq!(
        events["items"].as_array().map(Vec::len),
        Some(1),
        "{events}"
    );
}

#[test]
fn a_directory_of_somebody_else_is_refused() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    use std::os::unix::process::CommandExt as _;
    let dir = tempfile::tempdir().expect("directory");
    let program = dir.path().join("salp");
    if std::fs::hard_link(env!("CARGO_BIN_EXE_salp"), &program).is_err() {
        std::fs::copy(env!("CARGO_BIN_EXE_salp"), &program).expect("copy salp");
    }
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).expect("permissions");
    let output = Command::new(&program)
        .args(["up", "--api-port=0", "--data-dir"])
        .arg(dir.path().join("mine"))
        .uid(65_534)
        .gid(65_534)
        .output()
        .expect("run salp");
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(
        said.contains("--data-dir") && said.contains("ermission denied"),
        "{said}"
    );
}
