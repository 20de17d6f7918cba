//! What a guest sees, may do, and can't do to others.

use crate::harness::{PATIENCE, Registry, Site, eventually, get, get_ok, repo_file};

/// A pod with the misbehaving HTTP guest; `container` and `spec` are YAML at their indentation.
pub(crate) fn misbehave(
    site: &Site,
    registry: &Registry,
    name: &str,
    container: &str,
    spec: &str,
) -> String {
    apply(site, registry, name, container, spec);
    let pod = site.wait_for(
        &["get", "pod", name],
        "/status/containerStatuses/0/state/running",
        |r| r.is_object(),
    );
    format!("{}:8080", pod["status"]["podIP"].as_str().expect("pod IP"))
}

pub(crate) fn apply(site: &Site, registry: &Registry, name: &str, container: &str, spec: &str) {
    let image = registry.push(
        &repo_file("crates/testkit/fixtures/misbehave.wasm"),
        "misbehave:1",
    );
    site.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  labels: {{app: {name}, tier: front}}\nspec:\n  containers:\n  - name: main\n    image: {image}\n    ports: [{{containerPort: 8080, name: http}}]\n{container}{spec}"
    ));
}

pub(crate) fn body(address: &str, path: &str) -> String {
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
    site.says(&["logs", "sees"], "seen-in-the-log");
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
    eventually("greedy answers again", || get_ok(&greedy, "/"));
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
    site.says(
        &["describe", "pod", "sick"],
        "Liveness probe failed: HTTP probe failed with statuscode: 500",
    );
    let unready = site.json(&["get", "pod", "unready"]);
    assert_eq!(unready["status"]["containerStatuses"][0]["ready"], false);
    assert_eq!(unready["status"]["phase"], "Running");
}

#[test]
fn a_processor_limit_is_kept_and_hurts_nobody_else() {
    let (registry, site) = (Registry::start(), Site::start());
    let limits = "    resources: {limits: {cpu: 50m}}\n";
    let limited = misbehave(&site, &registry, "limited", limits, "");
    let free = misbehave(&site, &registry, "free", "", "");
    let calm = misbehave(&site, &registry, "calm", "", "");
    for address in [limited, free] {
        std::thread::spawn(move || get(&address, "/spin"));
    }
    let node = site.ok(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]);
    let path = format!("/api/v1/nodes/{node}/proxy/stats/salp");
    // Nanoseconds of processor time of both pods, which began at about the same time.
    let used = || {
        let text = site.ok(&["get", "--raw", &path]);
        let stats: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let of = |name: &str| {
            let pods = stats["pods"].as_array().expect("pods");
            let pod = pods.iter().find(|pod| pod["name"] == name).expect(name);
            pod["containers"][0]["cpuNs"].as_u64().expect("number")
        };
        (of("limited"), of("free"))
    };
    let (limited, free) = eventually("the free one has computed for seconds", || {
        let used = used();
        if used.1 > 4_000_000_000 {
            Ok(used)
        } else {
            Err(format!("{used:?}"))
        }
    });
    assert!(limited > 0, "it goes on");
    // A twentieth of a core, the burst, and one slice that the machine may have stretched:
    // far from the share that it would get.
    assert!(limited * 2 < free, "limited {limited} free {free}");
    for _ in 0..20 {
        assert_eq!(body(&calm, "/"), "ok\n");
    }
}

#[test]
fn single_files_and_parts_of_volumes() {
    let (registry, site) = (Registry::start(), Site::start());
    site.ok(&[
        "create",
        "configmap",
        "settings",
        "--from-literal=app.conf=blue",
        "--from-literal=other=9",
    ]);
    site.ok(&[
        "create",
        "secret",
        "generic",
        "key",
        "--from-literal=token=s3cret",
    ]);
    let host = tempfile::tempdir().expect("directory");
    std::fs::create_dir(host.path().join("part")).expect("directory");
    std::fs::write(host.path().join("part/there"), "on the host").expect("write");
    let address = misbehave(
        &site,
        &registry,
        "sees",
        "    volumeMounts:
    - {name: settings, mountPath: /etc/app/app.conf, subPath: app.conf}
    - {name: key, mountPath: /etc/app/token, subPath: token}
    - {name: scratch, mountPath: /mine, subPath: deep/mine}
    - {name: host, mountPath: /host, subPath: part}
    - {name: host, mountPath: /files/one, subPath: part/there}
",
        &format!(
            "  volumes:
  - {{name: settings, configMap: {{name: settings}}}}
  - {{name: key, secret: {{secretName: key}}}}
  - {{name: scratch, emptyDir: {{}}}}
  - {{name: host, hostPath: {{path: {}}}}}
",
            host.path().display()
        ),
    );
    assert_eq!(body(&address, "/list?path=/etc/app"), "app.conf\ntoken\n");
    assert_eq!(body(&address, "/read?path=/etc/app/app.conf"), "blue");
    assert_eq!(body(&address, "/read?path=/etc/app/token"), "s3cret");
    let refused = get(&address, "/write?path=/etc/app/app.conf&text=no").expect("answer");
    assert_eq!(refused.code, 500, "{}", refused.body);
    body(&address, "/write?path=/mine/note&text=kept");
    assert_eq!(body(&address, "/read?path=/mine/note"), "kept");
    assert_eq!(body(&address, "/list?path=/host"), "there\n");
    assert_eq!(body(&address, "/read?path=/files/one"), "on the host");
    // It is the same file.
    body(&address, "/write?path=/files/one&text=written");
    let written = std::fs::read_to_string(host.path().join("part/there"));
    assert_eq!(written.expect("read"), "written");
}

#[test]
fn a_pod_that_fills_its_scratch_volume_is_evicted() {
    let (registry, site) = (Registry::start(), Site::start());
    let address = misbehave(
        &site,
        &registry,
        "greedy",
        "    volumeMounts: [{name: scratch, mountPath: /scratch}]\n",
        "  volumes: [{name: scratch, emptyDir: {sizeLimit: 64Ki}}]\n",
    );
    let text = "x".repeat(6000);
    for n in 0..20 {
        body(&address, &format!("/write?path=/scratch/{n}&text={text}"));
    }
    let pod = site.wait_for(&["get", "pod", "greedy"], "/status/phase", |p| {
        p == "Failed"
    });
    assert_eq!(pod["status"]["reason"], "Evicted");
    assert_eq!(
        pod["status"]["message"],
        "Usage of EmptyDir volume \"scratch\" exceeds the limit \"64Ki\". "
    );
    site.says(&["describe", "pod", "greedy"], "Evicted");
}

#[test]
fn a_pod_waits_for_its_volume_claim() {
    let (registry, site) = (Registry::start(), Site::start());
    apply(
        &site,
        &registry,
        "waits",
        "    volumeMounts: [{name: data, mountPath: /data}]\n",
        "  volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]\n",
    );
    let why = |words: &str| {
        let said = |c: &serde_json::Value| c.as_str().is_some_and(|c| c.contains(words));
        let pod = site.wait_for(
            &["get", "pod", "waits"],
            "/status/conditions/0/message",
            said,
        );
        assert_eq!(pod["status"]["phase"], "Pending");
        assert_eq!(pod["status"]["conditions"][0]["reason"], "Unschedulable");
    };
    why("0/1 nodes are available: persistentvolumeclaim \"data\" not found.");
    site.apply(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: data}\nspec:\n  storageClassName: \"\"\n  accessModes: [ReadWriteOnce]\n  resources: {requests: {storage: 1Gi}}\n",
    );
    why("0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.");
    let events = site.ok(&["describe", "pod", "waits"]);
    assert!(events.contains("FailedScheduling"), "{events}");
}

/// Upstream: `test/e2e/storage/testsuites/{readwriteoncepod,volume_expand}.go`.
#[test]
fn a_claim_for_one_pod_is_for_one_and_grows() {
    let (registry, site) = (Registry::start(), Site::start());
    site.apply(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: data}\nspec:\n  accessModes: [ReadWriteOncePod]\n  resources: {requests: {storage: 1Gi}}\n",
    );
    let node = site.json(&["get", "nodes"])["items"][0]["metadata"]["name"].clone();
    let node = node.as_str().expect("a name");
    let starts = |name: &str, more: &str| {
        let volumes = "volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]";
        apply(
            &site,
            &registry,
            name,
            "    volumeMounts: [{name: data, mountPath: /data}]\n",
            &format!("  {volumes}\n{more}"),
        );
    };
    let is = |name: &str, phase: &str| {
        site.wait_for(&["get", "pod", name], "/status/phase", |p| p == phase);
    };
    starts("one", "");
    is("one", "Running");
    // The next is not placed, and one that says its node itself is not given the volume.
    starts("two", "");
    site.says(
        &["get", "events", "--field-selector=involvedObject.name=two"],
        "0/1 nodes are available: 1 node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode.",
    );
    starts("three", &format!("  nodeName: {node}\n"));
    site.says(
        &[
            "get",
            "events",
            "--field-selector=involvedObject.name=three",
        ],
        "volume uses the ReadWriteOncePod access mode and is already in use by another pod",
    );
    // It grows as it is used.
    let more = r#"{"spec": {"resources": {"requests": {"storage": "2Gi"}}}}"#;
    site.ok(&["patch", "pvc", "data", "--patch", more]);
    let grown = site.wait_for(&["get", "pvc", "data"], "/status/capacity/storage", |s| {
        s == "2Gi"
    });
    let volume = grown["spec"]["volumeName"].as_str().expect("a volume");
    let volume = site.json(&["get", "pv", volume]);
    assert_eq!(volume["spec"]["capacity"]["storage"], "2Gi");
    site.says(&["describe", "pvc", "data"], "Resize volume succeeded");
    for name in ["two", "three"] {
        let pod = site.json(&["get", "pod", name]);
        assert_eq!(pod["status"]["phase"], "Pending", "{name}");
    }
    site.ok(&["delete", "pod", "two", "one"]);
    is("three", "Running");
}
