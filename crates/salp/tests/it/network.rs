//! Names, sockets and probes of guests.

use crate::guests::{apply, body, misbehave};
use crate::harness::{PATIENCE, Registry, Site, eventually, get, get_ok, repo_file};
use crate::pods::pod;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;

/// A pod of the guest that uses sockets.
fn net(site: &Site, registry: &Registry, name: &str, args: &str, more: &str) {
    let image = registry.push(&repo_file("crates/testkit/fixtures/net.wasm"), "net:1");
    let more = format!("    args: {args}\n{more}");
    site.apply(&pod(name, &image, "Never", &more));
}

/// The log of a pod that has ended.
fn log_at_end(site: &Site, name: &str, phase: &str) -> String {
    site.wait_for(&["get", "pod", name], "/status/phase", |p| p == phase);
    site.ok(&["logs", name])
}

fn cluster_ip(site: &Site, namespace: &str, service: &str) -> String {
    let object = site.json(&["get", "service", service, "-n", namespace]);
    object["spec"]["clusterIP"].as_str().expect("IP").to_owned()
}

/// Asks until a fresh Service is known everywhere.
fn answers(address: &str, path: &str, want: &str) {
    eventually(path, || {
        let said = get_ok(address, path)?;
        if said == want { Ok(()) } else { Err(said) }
    });
}

#[test]
fn guests_find_services_by_name() {
    let (registry, site) = (Registry::start(), Site::start());
    misbehave(&site, &registry, "web", "", "");
    site.ok(&["expose", "pod", "web", "--port=80", "--target-port=8080"]);
    site.ok(&["create", "namespace", "shop"]);
    site.ok(&[
        "create",
        "service",
        "clusterip",
        "web",
        "-n",
        "shop",
        "--tcp=80",
    ]);
    let here = cluster_ip(&site, "default", "web");
    let there = cluster_ip(&site, "shop", "web");
    let asker = misbehave(&site, &registry, "asker", "", "");
    for name in [
        "web",
        "web.default",
        "web.default.svc",
        "web.default.svc.cluster.local",
        "web.default.svc.cluster.local.",
        &here,
    ] {
        answers(
            &asker,
            &format!("/lookup?name={name}"),
            &format!("{here}\n"),
        );
        answers(&asker, &format!("/fetch?url=http://{name}/"), "200\nok\n");
    }
    answers(&asker, "/lookup?name=web.shop", &format!("{there}\n"));
    let missing = get(&asker, "/lookup?name=missing.default.svc.cluster.local").expect("answer");
    assert_eq!((missing.code, &*missing.body), (500, "name-unresolvable\n"));
    let missing = get(
        &asker,
        "/fetch?url=http://missing.default.svc.cluster.local/",
    );
    let missing = missing.expect("answer");
    assert!(missing.body.contains("DnsError"), "{}", missing.body);

    // Servers and search list of its own.
    let dns = cluster_ip(&site, "default", "kubernetes");
    let dns = format!("{}.10", dns.rsplit_once('.').expect("IPv4").0);
    let shop = misbehave(
        &site,
        &registry,
        "shopper",
        "",
        &format!(
            "  dnsPolicy: None\n  dnsConfig: {{nameservers: [{dns}], searches: [shop.svc.cluster.local]}}\n"
        ),
    );
    answers(&shop, "/lookup?name=web", &format!("{there}\n"));
    // The machine's, which knows nothing of the site.
    let plain = misbehave(&site, &registry, "plain", "", "  dnsPolicy: Default\n");
    let unknown = get(&plain, "/lookup?name=web.default.svc.cluster.local").expect("answer");
    assert_eq!(unknown.code, 500, "{}", unknown.body);
    answers(&plain, &format!("/fetch?url=http://{here}/"), "200\nok\n");

    // The same by a command, to the end.
    net(&site, &registry, "finds", "[lookup, web.shop]", "");
    assert_eq!(
        log_at_end(&site, "finds", "Succeeded"),
        format!("{there}\n")
    );
    net(&site, &registry, "misses", "[lookup, nobody]", "");
    let log = log_at_end(&site, "misses", "Failed");
    assert_eq!(log, "failed: lookup: name-unresolvable\n");
}

#[test]
fn a_guest_that_listens_is_a_server_like_any() {
    let (registry, site) = (Registry::start(), Site::start());
    let server = "    ports: [{containerPort: 7000, name: line}]
    readinessProbe: {tcpSocket: {port: line}, periodSeconds: 1}
    livenessProbe: {tcpSocket: {port: 7000}, periodSeconds: 1}
";
    for (name, address) in [("four", "0.0.0.0:7000"), ("six", "[::]:7000")] {
        let args = format!("[serve, '{address}', {name}]");
        net(&site, &registry, name, &args, server);
        site.ok(&["label", "pod", name, "app=lines"]);
        site.ok(&[
            "wait",
            "--for=condition=Ready",
            &format!("pod/{name}"),
            &format!("--timeout={}s", PATIENCE.as_secs()),
        ]);
        let ip = site.json(&["get", "pod", name])["status"]["podIP"]
            .as_str()
            .expect("pod IP")
            .to_owned();
        let log = site.ok(&["logs", name]);
        assert_eq!(log, format!("{name} listens at {ip}\n"));
    }
    site.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: lines}\nspec:\n  selector: {app: lines}\n  ports: [{port: 70, targetPort: line}]\n",
    );
    let address = format!("{}:70", cluster_ip(&site, "default", "lines"));
    let mut seen = std::collections::BTreeSet::new();
    eventually("both answer", || {
        seen.insert(line(&address, "hello").map_err(|e| e.to_string())?);
        if seen.len() == 2 {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    });
    let both: Vec<&str> = seen.iter().map(String::as_str).collect();
    assert_eq!(both, ["four: hello", "six: hello"]);

    // By name from another guest.
    net(&site, &registry, "asks", "[ask, lines, '70', hi]", "");
    let log = log_at_end(&site, "asks", "Succeeded");
    assert!(log == "four: hi\n" || log == "six: hi\n", "{log}");

    // What it may not have is said in its log, with the cure.
    net(
        &site,
        &registry,
        "other",
        "[serve, '10.1.2.3:7000', other]",
        "",
    );
    let log = log_at_end(&site, "other", "Failed");
    assert!(
        log.contains("listening at 10.1.2.3:7000 is refused"),
        "{log}"
    );
    assert!(log.contains("listen at 0.0.0.0"), "{log}");
    assert!(log.contains("failed: bind: access-denied"), "{log}");
}

/// Sends a line and reads one.
fn line(address: &str, text: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{text}\n").as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(answer.trim_end().to_owned())
}

#[test]
fn a_guest_answers_grpc_probes_and_is_restarted_by_them() {
    let (registry, site) = (Registry::start(), Site::start());
    let fast = "periodSeconds: 1, failureThreshold: 1";
    misbehave(
        &site,
        &registry,
        "healthy",
        &format!(
            "    startupProbe: {{grpc: {{port: 8080}}, {fast}}}\n    readinessProbe: {{grpc: {{port: 8080, service: shop}}, {fast}}}\n    livenessProbe: {{grpc: {{port: 8080}}, {fast}}}\n"
        ),
        "",
    );
    site.ok(&[
        "wait",
        "--for=condition=Ready",
        "pod/healthy",
        &format!("--timeout={}s", PATIENCE.as_secs()),
    ]);
    let probes = [
        (
            "unwell",
            "livenessProbe",
            "grpc: {port: 8080, service: sick}",
        ),
        (
            "slow",
            "startupProbe",
            "httpGet: {path: '/status?code=503', port: http}",
        ),
        ("deaf", "startupProbe", "tcpSocket: {port: 8081}"),
    ];
    for (name, probe, action) in probes {
        let probe = format!("    {probe}: {{{action}, {fast}}}\n");
        apply(&site, &registry, name, &probe, "");
    }
    for (name, words) in [
        (
            "unwell",
            "Liveness probe failed: service unhealthy (responded with \"NOT_SERVING\")",
        ),
        (
            "slow",
            "Startup probe failed: HTTP probe failed with statuscode: 503",
        ),
        ("deaf", "Startup probe failed: dial tcp"),
    ] {
        site.wait_for(
            &["get", "pod", name],
            "/status/containerStatuses/0/restartCount",
            |n| n.as_u64().is_some_and(|n| n > 0),
        );
        site.says(&["describe", "pod", name], words);
    }
    let healthy = site.json(&["get", "pod", "healthy"]);
    let status = &healthy["status"]["containerStatuses"][0];
    assert_eq!(
        (&status["restartCount"], &status["started"]),
        (&0.into(), &true.into())
    );
}

#[test]
fn settings_values_and_log_lines_by_their_interfaces() {
    let (registry, site) = (Registry::start(), Site::start());
    site.ok(&[
        "create",
        "configmap",
        "settings",
        "--from-literal=colour=blue",
    ]);
    let image = registry.push(
        &repo_file("crates/testkit/fixtures/keeper.wasm"),
        "keeper:1",
    );
    let more = "    ports: [{containerPort: 8080}]
    env: [{name: size, value: '9'}]
    envFrom: [{configMapRef: {name: settings}}]
";
    for name in ["keeper", "stranger"] {
        site.apply(&pod(name, &image, "Always", more));
    }
    let address = |name: &str| {
        let running = site.wait_for(&["get", "pod", name], "/status/phase", |p| p == "Running");
        format!(
            "{}:8080",
            running["status"]["podIP"].as_str().expect("pod IP")
        )
    };
    let keeper = address("keeper");
    assert_eq!(body(&keeper, "/config?colour"), "blue");
    assert_eq!(body(&keeper, "/config?size"), "9");
    assert_eq!(get(&keeper, "/config?weight").expect("answer").code, 404);
    // Each request is another instance: what is kept is the pod's.
    assert_eq!(body(&keeper, "/set?name=till"), "done");
    assert_eq!(body(&keeper, "/get?name"), "till");
    assert_eq!(body(&keeper, "/add?visits"), "1");
    assert_eq!(body(&keeper, "/add?visits"), "2");
    assert_eq!(body(&keeper, "/keys"), "name\nvisits");
    assert_eq!(body(&keeper, "/delete?name"), "done");
    assert_eq!(get(&keeper, "/get?name").expect("answer").code, 404);
    let stranger = address("stranger");
    assert_eq!(get(&stranger, "/get?visits").expect("answer").code, 404);
    assert_eq!(body(&keeper, "/log?careful"), "logged");
    eventually("the log has it", || {
        let log = site.ok(&["logs", "keeper"]);
        if log == "WARN keeper: careful\n" {
            Ok(())
        } else {
            Err(log)
        }
    });
}
