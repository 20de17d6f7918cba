//! What a guest sees, may do, and can't do to others.

use crate::harness::{PATIENCE, Registry, Site, eventually, get, repo_file};

/// A pod with the misbehaving HTTP guest; `container` and `spec` are YAML at their indentation.
fn misbehave(site: &Site, registry: &Registry, name: &str, container: &str, spec: &str) -> String {
    apply(site, registry, name, container, spec);
    let pod = site.wait_for(
        &["get", "pod", name],
        "/status/containerStatuses/0/state/running",
        |r| r.is_object(),
    );
    format!("{}:8080", pod["status"]["podIP"].as_str().expect("pod IP"))
}

fn apply(site: &Site, registry: &Registry, name: &str, container: &str, spec: &str) {
    let image = registry.push(
        &repo_file("crates/testkit/fixtures/misbehave.wasm"),
        "misbehave:1",
    );
    site.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  labels: {{app: {name}, tier: front}}\nspec:\n  containers:\n  - name: main\n    image: {image}\n    ports: [{{containerPort: 8080, name: http}}]\n{container}{spec}"
    ));
}

fn body(address: &str, path: &str) -> String {
    get(address, path)
        .expect("answer")
        .expect_code(200)
        .expect("200")
}

#[test]
fn environment_volumes_and_limits() {
    let (registry, site) = (Registry::start(), Site::start());
    site.ok(&[
        "create",
        "configmap",
        "settings",
        "--from-literal=colour=blue",
        "--from-literal=size=9",
    ]);
    site.ok(&[
        "create",
        "secret",
        "generic",
        "key",
        "--from-literal=token=s3cret",
    ]);
    let host = tempfile::tempdir().expect("directory");
    std::fs::write(host.path().join("there"), "on the host").expect("write");
    let address = misbehave(
        &site,
        &registry,
        "sees",
        "    args: [one, $(WHO)]
    env:
    - {name: WHO, value: till}
    - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: ADDRESS, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: TOKEN, valueFrom: {secretKeyRef: {name: key, key: token}}}
    - {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory}}}
    envFrom:
    - {prefix: S_, configMapRef: {name: settings}}
    resources: {limits: {memory: 32Mi}}
    volumeMounts:
    - {name: settings, mountPath: /settings, readOnly: true}
    - {name: key, mountPath: /key}
    - {name: scratch, mountPath: /scratch}
    - {name: host, mountPath: /host, readOnly: true}
    - {name: about, mountPath: /about}
",
        &format!(
            "  volumes:
  - {{name: settings, configMap: {{name: settings}}}}
  - {{name: key, secret: {{secretName: key}}}}
  - {{name: scratch, emptyDir: {{}}}}
  - {{name: host, hostPath: {{path: {}, type: Directory}}}}
  - {{name: about, downwardAPI: {{items: [{{path: labels, fieldRef: {{fieldPath: metadata.labels}}}}]}}}}
",
            host.path().display()
        ),
    );
    let env = body(&address, "/env");
    let ip = address.trim_end_matches(":8080");
    for line in [
        "WHO=till",
        "NAME=sees",
        &format!("ADDRESS={ip}"),
        "TOKEN=s3cret",
        "S_colour=blue",
        "S_size=9",
        "MEMORY=33554432",
        "KUBERNETES_SERVICE_PORT=443",
    ] {
        assert!(env.lines().any(|l| l == line), "{line} is missing:\n{env}");
    }
    assert!(body(&address, "/args").contains("till"));
    assert_eq!(body(&address, "/read?path=/settings/colour"), "blue");
    assert_eq!(body(&address, "/read?path=/key/token"), "s3cret");
    assert_eq!(body(&address, "/read?path=/host/there"), "on the host");
    assert!(body(&address, "/read?path=/about/labels").contains("tier=\"front\""));
    body(&address, "/write?path=/scratch/note&text=kept");
    assert_eq!(body(&address, "/read?path=/scratch/note"), "kept");
    for path in ["/host/new", "/settings/new"] {
        assert_eq!(
            get(&address, &format!("/write?path={path}&text=no"))
                .expect("answer")
                .code,
            500,
            "{path}"
        );
    }
    assert_eq!(
        get(&address, "/read?path=/etc/passwd")
            .expect("answer")
            .code,
        500
    );
    // A changed ConfigMap reaches the running guest.
    site.ok(&[
        "patch",
        "configmap",
        "settings",
        "-p",
        "{\"data\":{\"colour\":\"red\"}}",
    ]);
    eventually("the volume follows", || {
        let now = body(&address, "/read?path=/settings/colour");
        if now == "red" { Ok(()) } else { Err(now) }
    });
    // A trap fails that request and no other.
    assert_eq!(get(&address, "/trap").expect("answer").code, 500);
    assert_eq!(body(&address, "/"), "ok\n");
    body(&address, "/log?text=seen-in-the-log");
    eventually("the log has it", || {
        let log = site.ok(&["logs", "sees"]);
        if log.contains("seen-in-the-log") {
            Ok(())
        } else {
            Err(log)
        }
    });
}

#[test]
fn memory_and_cpu_of_one_do_not_hurt_another() {
    let (registry, site) = (Registry::start(), Site::start());
    let limits = "    resources: {limits: {memory: 16Mi}}\n";
    let greedy = misbehave(&site, &registry, "greedy", limits, "");
    let calm = misbehave(&site, &registry, "calm", "", "");
    // Guests that never end are cut off by nobody, yet others are served.
    for _ in 0..4 {
        let greedy = greedy.clone();
        std::thread::spawn(move || get(&greedy, "/spin"));
    }
    for _ in 0..20 {
        assert_eq!(body(&calm, "/"), "ok\n");
    }
    let _dies = get(&greedy, "/alloc?mb=64");
    let pod = site.wait_for(
        &["get", "pod", "greedy"],
        "/status/containerStatuses/0/restartCount",
        |n| n.as_u64().is_some_and(|n| n > 0),
    );
    let last = &pod["status"]["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!(
        (last["reason"].as_str(), last["exitCode"].as_u64()),
        (Some("OOMKilled"), Some(137))
    );
    let calm_pod = site.json(&["get", "pod", "calm"]);
    assert_eq!(
        calm_pod["status"]["containerStatuses"][0]["restartCount"],
        0
    );
    assert_eq!(body(&calm, "/"), "ok\n");
    eventually("greedy answers again", || {
        get(&greedy, "/")
            .map_err(|e| e.to_string())
            .and_then(|a| a.expect_code(200))
    });
}

#[test]
fn probes_really_run() {
    let (registry, site) = (Registry::start(), Site::start());
    let fast = "periodSeconds: 1, failureThreshold: 1";
    // It may never be seen running: it is killed as soon as it is probed.
    apply(
        &site,
        &registry,
        "sick",
        &format!(
            "    livenessProbe: {{httpGet: {{path: '/status?code=500', port: http}}, {fast}}}\n"
        ),
        "",
    );
    misbehave(
        &site,
        &registry,
        "unready",
        &format!(
            "    readinessProbe: {{httpGet: {{path: '/status?code=503', port: 8080}}, {fast}}}\n"
        ),
        "",
    );
    misbehave(
        &site,
        &registry,
        "well",
        &format!(
            "    startupProbe: {{httpGet: {{path: /, port: http}}, {fast}}}\n    readinessProbe: {{tcpSocket: {{port: 8080}}, {fast}}}\n    livenessProbe: {{httpGet: {{path: /, port: http}}, {fast}}}\n"
        ),
        "",
    );
    site.ok(&[
        "wait",
        "--for=condition=Ready",
        "pod/well",
        &format!("--timeout={}s", PATIENCE.as_secs()),
    ]);
    site.wait_for(
        &["get", "pod", "sick"],
        "/status/containerStatuses/0/restartCount",
        |n| n.as_u64().is_some_and(|n| n > 0),
    );
    eventually("events tell", || {
        let text = site.ok(&["describe", "pod", "sick"]);
        if text.contains("Liveness probe failed: HTTP probe failed with statuscode: 500") {
            Ok(())
        } else {
            Err(text)
        }
    });
    let unready = site.json(&["get", "pod", "unready"]);
    assert_eq!(unready["status"]["containerStatuses"][0]["ready"], false);
    assert_eq!(unready["status"]["phase"], "Running");
}
