//! A second machine joins a site: two network namespaces, a link between them, and the real
//! binary on both sides. Needs root; says so when it is not there.

use crate::harness::{Following, Running, eventually, kill, pid_of, repo_file, text, tool};
use crate::netns::{self, ip};
use crate::serve::hello;
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// A pod on the second machine that names a Secret.
const READER: &str = r#"{"spec":{"nodeName":"b","containers":[{"name":"c","image":"none",
    "envFrom":[{"secretRef":{"name":"named"}}]}]}}"#;
const IMAGE: &str = "localhost:5000/hello:1";

/// Two network namespaces with a link.
pub(crate) struct Machines {
    names: [String; 2],
    pub(crate) home: tempfile::TempDir,
}

impl Machines {
    pub(crate) fn new() -> Option<Self> {
        let id = netns::id()?;
        let names = [format!("salp-a-{id}"), format!("salp-b-{id}")];
        let home = tempfile::tempdir().expect("directory");
        let machines = Self { names, home };
        let [a, b] = &machines.names;
        ip(&["netns", "add", a]);
        ip(&["netns", "add", b]);
        ip(&[
            "link", "add", "eth0", "netns", a, "type", "veth", "peer", "name", "eth0", "netns", b,
        ]);
        for (i, name) in machines.names.iter().enumerate() {
            let address = format!("192.0.2.{}/24", i + 1);
            ip(&["-n", name, "addr", "add", &address, "dev", "eth0"]);
            ip(&["-n", name, "link", "set", "lo", "up"]);
            ip(&["-n", name, "link", "set", "eth0", "up"]);
        }
        Some(machines)
    }

    pub(crate) fn dir(&self, machine: usize) -> PathBuf {
        self.home.path().join(["a", "b"][machine])
    }

    /// A program on one of the machines.
    pub(crate) fn on(&self, machine: usize, program: &str) -> Command {
        netns::command(
            &self.names[machine],
            program,
            &self.dir(machine),
            self.home.path(),
        )
    }

    pub(crate) fn salp(&self, machine: usize) -> Command {
        self.on(machine, env!("CARGO_BIN_EXE_salp"))
    }

    pub(crate) fn kubectl(&self, args: &[&str]) -> Output {
        self.on(0, &tool("kubectl").display().to_string())
            .arg("--kubeconfig")
            .arg(self.dir(0).join("kubeconfig.yaml"))
            .args(args)
            .output()
            .expect("run kubectl")
    }

    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.kubectl(args);
        assert!(
            output.status.success(),
            "kubectl {}: {}",
            args.join(" "),
            text(&output)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let out = self.ok(&[args, &["-o", "json"]].concat());
        serde_json::from_str(&out).expect("JSON")
    }

    fn other(&self) -> PathBuf {
        self.home.path().join("other")
    }

    /// `salp` for another site on the first machine.
    fn at_other(&self, args: &[&str]) -> Command {
        let mut command = self.salp(0);
        command.args(args).env("SALP_DATA_DIR", self.other());
        command
    }

    fn link(&self, state: &str) {
        ip(&["-n", &self.names[0], "link", "set", "eth0", state]);
    }

    /// Whether a URL answers on a machine.
    pub(crate) fn answers(&self, machine: usize, url: &str) -> bool {
        let output = self
            .on(machine, "curl")
            .args(["-sf", "-m", "3", url])
            .output();
        output.expect("run curl").status.success()
    }

    fn pod(&self, name: &str, annotations: &str) -> String {
        let manifest = self.home.path().join(format!("{name}.yaml"));
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  annotations: {annotations}\nspec:\n  nodeName: b\n  terminationGracePeriodSeconds: 1\n  containers:\n  - {{name: c, image: '{IMAGE}', imagePullPolicy: Never, ports: [{{containerPort: 8080}}]}}\n"
        );
        std::fs::write(&manifest, text).expect("write");
        self.ok(&["apply", "-f", &manifest.display().to_string()]);
        eventually("the pod runs", || {
            let pod = self.json(&["get", "pod", name]);
            match pod["status"]["phase"].as_str() {
                Some("Running") => Ok(pod["status"]["podIP"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned()),
                _ => Err(pod["status"].to_string()),
            }
        })
    }

    /// Loads the image on a machine.
    pub(crate) fn load(&self, machine: usize) {
        let hello = repo_file("examples/hello/hello.wasm").display().to_string();
        let loaded = self
            .salp(machine)
            .args(["image", "load", &hello, IMAGE])
            .output()
            .expect("run salp");
        assert!(loaded.status.success(), "{}", text(&loaded));
    }

    /// The first machine's site.
    fn up(&self) -> Following {
        self.up_with(&[])
    }

    pub(crate) fn up_with(&self, args: &[&str]) -> Following {
        let mut up = self.salp(0);
        up.args(["up", "--bind-address", "192.0.2.1", "--node-name", "a"]);
        up.args(args);
        let site = Following::start(up);
        site.wait_for(|line| line.starts_with("Ready"));
        site
    }

    /// What `salp token create` says to run.
    fn invitation(&self) -> Vec<String> {
        let created = self.salp(0).args(["token", "create"]).output();
        let said = text(&created.expect("run salp"));
        let words: Vec<String> = said.split_whitespace().map(str::to_owned).collect();
        assert_eq!(words[..3], ["salp", "node", "join"], "{said}");
        words[1..].to_owned()
    }

    /// The second machine as a node.
    pub(crate) fn join(&self, words: &[String]) -> Following {
        let mut join = self.salp(1);
        join.args(words)
            .args(["--node-ip", "192.0.2.2", "--node-name", "b"]);
        Following::start(join)
    }

    fn joined(&self, words: &[String]) -> Following {
        let node = self.join(words);
        node.wait_for(|line| line.starts_with("Node b runs"));
        self.ok(&["wait", "--for=condition=Ready", "node/b", "--timeout=60s"]);
        node
    }

    /// A Deployment of one replica, which lands on the second machine.
    fn deploy(&self, name: &str, annotations: &str) -> Value {
        self.ok(&["cordon", "a"]);
        let manifest = self.home.path().join(format!("{name}.yaml"));
        let text = format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\nspec:\n  selector: {{matchLabels: {{app: {name}}}}}\n  template:\n    metadata:\n      labels: {{app: {name}}}\n      annotations: {annotations}\n    spec:\n      terminationGracePeriodSeconds: 1\n      containers:\n      - {{name: c, image: '{IMAGE}', imagePullPolicy: Never, ports: [{{containerPort: 8080}}]}}\n"
        );
        std::fs::write(&manifest, text).expect("write");
        self.ok(&["apply", "-f", &manifest.display().to_string()]);
        let pod = self.running(name);
        self.ok(&["uncordon", "a"]);
        assert_eq!(pod["spec"]["nodeName"], "b");
        pod
    }

    /// A pod of a Deployment that runs.
    fn running(&self, app: &str) -> Value {
        eventually("the pod runs", || {
            let pods = self.pods(app);
            let running = pods.iter().find(|p| p["status"]["phase"] == "Running");
            running.cloned().ok_or_else(|| format!("{pods:?}"))
        })
    }

    /// The pods of a Deployment that are not being deleted.
    fn pods(&self, app: &str) -> Vec<Value> {
        let list = self.json(&["get", "pods", "-l", &format!("app={app}")]);
        let all = list["items"].as_array().cloned().unwrap_or_default();
        all.into_iter()
            .filter(|p| p["metadata"]["deletionTimestamp"].is_null())
            .collect()
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for machine in [1, 0] {
            let _stopped = self.salp(machine).arg("down").output();
        }
        if self.other().exists() {
            let _stopped = self.at_other(&["down"]).output();
        }
        for name in &self.names {
            let _gone = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

#[test]
fn a_machine_joins_is_cut_off_and_leaves() {
    let Some(machines) = Machines::new() else {
        return;
    };
    let site = machines.up();
    let words = machines.invitation();
    // Another CA than the one that was meant is not trusted.
    let mut wrong = words.clone();
    let hash = wrong.last_mut().expect("a hash");
    *hash = format!("sha256:{}", "0".repeat(64));
    let refused = machines
        .salp(1)
        .args(&wrong)
        .args(["--node-ip", "192.0.2.2"])
        .output();
    let refused = text(&refused.expect("run salp"));
    assert!(refused.contains("another server"), "{refused}");

    let node = machines.joined(&words);
    machines.load(1);

    let stop = "{salp.dev/when-disconnected: stop, salp.dev/after: 15s}";
    let stops = machines.pod("stops", stop);
    let keeps = machines.pod("keeps", "{salp.dev/when-disconnected: keep}");
    for machine in [0, 1] {
        for address in [&stops, &keeps] {
            let url = format!("http://{address}:8080/");
            eventually("the pod answers on both machines", || {
                machines
                    .answers(machine, &url)
                    .then_some(())
                    .ok_or_else(|| url.clone())
            });
        }
    }
    // With its certificate a node reads what its pods name, and nothing more.
    machines.ok(&["create", "secret", "generic", "named", "--from-literal=a=b"]);
    machines.ok(&["create", "secret", "generic", "other", "--from-literal=a=b"]);
    let as_node = |args: &[&str]| {
        let kubectl = tool("kubectl").display().to_string();
        let mut command = machines.on(1, &kubectl);
        command
            .arg("--kubeconfig")
            .arg(machines.dir(1).join("pki/node.kubeconfig"))
            .args(args);
        text(&command.output().expect("run kubectl"))
    };
    assert!(as_node(&["get", "secret", "named"]).contains("Forbidden"));
    machines.ok(&["run", "reader", "--image=none", "--overrides", READER]);
    assert!(!as_node(&["get", "secret", "named"]).contains("Forbidden"));
    for refused in [
        &["get", "secret", "other"][..],
        &["get", "secrets", "-A"],
        &["create", "token", "default"],
        &["delete", "node", "a"],
    ] {
        let said = as_node(refused).to_lowercase();
        assert!(said.contains("forbidden"), "{refused:?}: {said}");
    }
    machines.ok(&["delete", "pod", "reader", "--now"]);
    // The API server reaches the new node's kubelet by the certificate that it signed.
    machines.ok(&["logs", "keeps"]);

    machines.link("down");
    let url = format!("http://{stops}:8080/");
    eventually("the node ends it by its own clock", || {
        (!machines.answers(1, &url))
            .then_some(())
            .ok_or_else(|| "still answers".to_owned())
    });
    assert!(
        machines.answers(1, &format!("http://{keeps}:8080/")),
        "what is kept runs on"
    );
    machines.link("up");
    eventually("what became of it is told", || {
        let pod = machines.json(&["get", "pod", "stops"]);
        let reason = pod["status"]["reason"].as_str().unwrap_or_default();
        (reason == "NodeDisconnected")
            .then_some(())
            .ok_or_else(|| pod["status"].to_string())
    });
    let kept = machines.json(&["get", "pod", "keeps"]);
    assert_eq!(kept["status"]["containerStatuses"][0]["restartCount"], 0);

    let left = machines
        .salp(1)
        .args(["node", "leave"])
        .output()
        .expect("run salp");
    assert!(
        left.status.success(),
        "{}\n{}",
        text(&left),
        node.lines().join("\n")
    );
    let nodes = machines.ok(&["get", "nodes", "-o", "name"]);
    assert_eq!(nodes.trim(), "node/a");
    drop(site);
}

/// What a pod is known by, and that it was not started again.
pub(crate) fn identity(pod: &Value) -> (String, String, i64) {
    let container = &pod["status"]["containerStatuses"][0];
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    (
        text(&pod["metadata"]["uid"]),
        text(&container["state"]["running"]["startedAt"]),
        container["restartCount"].as_i64().unwrap_or(-1),
    )
}

fn url(pod: &Value) -> String {
    let address = pod["status"]["podIP"].as_str().unwrap_or_default();
    format!("http://{address}:8080/")
}

#[test]
fn what_must_stop_moves_once_it_has_and_what_is_kept_stays() {
    let Some(machines) = Machines::new() else {
        return;
    };
    // Asked before there is anybody to join.
    let site = machines.up();
    let words = machines.invitation();
    let _node = machines.joined(&words);
    machines.load(0);
    machines.load(1);
    let stop = "{salp.dev/when-disconnected: stop, salp.dev/after: 15s}";
    let mover = machines.deploy("mover", stop);
    let keeper = machines.deploy("keeper", "{salp.dev/when-disconnected: keep}");
    let refused = machines.kubectl(&[
        "annotate",
        "pod",
        "-l",
        "app=keeper",
        "salp.dev/when-disconnected=stop",
        "--overwrite",
    ]);
    assert!(
        text(&refused).contains("may not change once the pod is bound"),
        "{}",
        text(&refused)
    );

    machines.link("down");
    let uid = &mover["metadata"]["uid"];
    let next = eventually("another runs on the first machine", || {
        let pods = machines.pods("mover");
        let other = pods.iter().find(|p| p["metadata"]["uid"] != *uid);
        if other.is_some() {
            assert!(
                !machines.answers(1, &url(&mover)),
                "it was replaced while it ran"
            );
        }
        let running = other.filter(|p| p["status"]["phase"] == "Running");
        running.cloned().ok_or_else(|| format!("{pods:?}"))
    });
    assert_eq!(next["spec"]["nodeName"], "a");
    assert!(
        machines.answers(1, &url(&keeper)),
        "what is kept runs on where it is"
    );
    let kept = machines.pods("keeper");
    assert_eq!(kept.len(), 1, "and has no replacement: {kept:?}");

    machines.link("up");
    machines.ok(&["wait", "--for=condition=Ready", "node/b", "--timeout=60s"]);
    // It was marked when the node fell silent; nothing else of it changed.
    let ready = "--for=condition=Ready";
    machines.ok(&["wait", ready, "pod", "-l", "app=keeper", "--timeout=60s"]);
    let lease = machines.json(&["get", "lease", "-n", "kube-node-lease", "b"]);
    assert_eq!(lease["metadata"]["annotations"]["salp.dev/epoch"], "1");
    eventually("the one that was replaced is gone", || {
        let all = machines.json(&["get", "pods", "-l", "app=mover"]);
        let count = all["items"].as_array().map_or(0, Vec::len);
        (count == 1).then_some(()).ok_or_else(|| all.to_string())
    });
    assert_eq!(
        machines.pods("mover")[0]["metadata"]["uid"],
        next["metadata"]["uid"]
    );

    // The server's process is killed: its nodes go on, and it finds all as it was.
    drop(site);
    assert!(machines.answers(1, &url(&keeper)));
    let _site = machines.up();
    machines.ok(&["wait", "--for=condition=Ready", "node/b", "--timeout=60s"]);
    for machine in [0, 1] {
        assert!(machines.answers(machine, &url(&keeper)));
    }
    let kept = machines.pods("keeper");
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(
        identity(&kept[0]),
        identity(&keeper),
        "nothing was recreated"
    );

    // Who leaves hands over first.
    let left = machines.salp(1).args(["node", "leave"]).output();
    let left = left.expect("run salp");
    assert!(left.status.success(), "{}", text(&left));
    let moved = machines.running("keeper");
    assert_eq!(moved["spec"]["nodeName"], "a");
    assert!(machines.answers(0, &url(&moved)));
}

#[test]
fn a_machine_waits_for_the_server_and_joins_at_once() {
    let Some(machines) = Machines::new() else {
        return;
    };
    let _site = machines.up();
    let words = machines.invitation();
    machines.link("down");
    let node = machines.join(&words);
    node.wait_for(|line| line.contains("waiting for https://192.0.2.1:6443"));
    machines.link("up");
    node.wait_for(|line| line.starts_with("Node b runs"));
    machines.ok(&["wait", "--for=condition=Ready", "node/b", "--timeout=60s"]);
}

#[test]
fn a_dead_agent_is_no_way_around_a_contract() {
    let Some(machines) = Machines::new() else {
        return;
    };
    let _site = machines.up();
    let node = machines.joined(&machines.invitation());
    machines.load(1);
    let stop = "{salp.dev/when-disconnected: stop, salp.dev/after: 15s}";
    let stops = format!("http://{}:8080/", machines.pod("stops", stop));
    let keep = "{salp.dev/when-disconnected: keep}";
    let keeps = format!("http://{}:8080/", machines.pod("keeps", keep));
    let before = machines.json(&["get", "pod", "keeps"]);

    machines.link("down");
    // Killed: only the data plane is left to hold the contract.
    drop(node);
    eventually("the data plane ends it", || {
        (!machines.answers(1, &stops))
            .then_some(())
            .ok_or_else(|| "still answers".to_owned())
    });
    assert!(machines.answers(1, &keeps));

    // The next agent starts with no server in reach.
    let again = ["node", "join"].map(str::to_owned);
    let node = machines.join(&again);
    node.wait_for(|line| line.starts_with("Node b runs"));
    assert!(machines.answers(1, &keeps));
    assert!(!machines.answers(1, &stops), "it waits for contact");
    machines.link("up");
    eventually("what became of it is told", || {
        let output = machines.kubectl(&["get", "pod", "stops", "-o", "json"]);
        if text(&output).contains("NotFound") {
            return Ok(());
        }
        let pod: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        (pod["status"]["reason"] == "NodeDisconnected")
            .then_some(())
            .ok_or_else(|| pod["status"].to_string())
    });
    machines.ok(&["wait", "--for=condition=Ready", "node/b", "--timeout=60s"]);
    let after = machines.json(&["get", "pod", "keeps"]);
    assert_eq!(identity(&after), identity(&before), "nothing was recreated");
}

/// What another site exports answers on every node, not only where the lattice is.
#[test]
fn a_joined_node_reaches_other_sites() {
    let Some(machines) = Machines::new() else {
        return;
    };
    let mut nats = machines.on(0, &tool("nats-server").display().to_string());
    let nats = nats.args(["--addr", "192.0.2.1", "--port", "4222"]);
    let _nats = Running(
        nats.stderr(Stdio::null())
            .spawn()
            .expect("start nats-server"),
    );
    let lattice = [
        "--lattice",
        "nats://192.0.2.1:4222",
        "--lattice-listen",
        "off",
    ];
    let site = machines.up_with(&[&lattice[..], &["--lattice-hub"]].concat());
    let node = machines.joined(&machines.invitation());
    let token = machines.salp(0).args(["sites", "token"]).output();
    let token = String::from_utf8(token.expect("run salp").stdout).expect("text");
    let mut other = machines.at_other(&["up", "--bind-address", "192.0.2.1"]);
    other
        .args(["--api-port", "7443", "--node-name", "other"])
        .args(lattice)
        .args(["--lattice-token", token.trim()]);
    let other = Following::start(other);
    other.wait_for(|line| line.starts_with("Ready"));
    let wasm = repo_file("examples/hello/hello.wasm").display().to_string();
    let loaded = machines.at_other(&["image", "load", &wasm, IMAGE]).output();
    assert!(loaded.expect("run salp").status.success());
    let export = "---\napiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {name: hello}\n";
    let manifest = machines.home.path().join("hello.yaml");
    std::fs::write(&manifest, hello(IMAGE, 1) + export).expect("write");
    let kubectl = tool("kubectl").display().to_string();
    eventually("the other site takes the export", || {
        let mut apply = machines.on(0, &kubectl);
        apply
            .arg("--kubeconfig")
            .arg(machines.other().join("kubeconfig.yaml"))
            .args(["apply", "-f"])
            .arg(&manifest);
        let out = apply.output().expect("run kubectl");
        out.status.success().then_some(()).ok_or_else(|| text(&out))
    });
    let url = eventually("the import has an address", || {
        let out = machines.kubectl(&["get", "serviceimport", "hello", "-o", "json"]);
        let import: Value = serde_json::from_slice(&out.stdout).map_err(|_| text(&out))?;
        let ip = import["spec"]["ips"][0].as_str().ok_or("no address")?;
        Ok(format!("http://{ip}:8080/"))
    });
    for machine in [0, 1] {
        eventually("the other site answers on both machines", || {
            machines
                .answers(machine, &url)
                .then_some(())
                .ok_or_else(|| url.clone())
        });
    }
    drop((other, node, site));
}

/// A pair of certificate and key of node b, signed by the site, that was made some time ago.
fn node_pair(machines: &Machines, age: i64, left: i64, serves: bool) -> (String, String) {
    use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
    let read = |file: &str| {
        let path = machines.dir(0).join("pki").join(file);
        std::fs::read_to_string(path).expect("read")
    };
    let ca_key = KeyPair::from_pem(&read("ca.key")).expect("a key");
    let issuer = Issuer::from_ca_cert_pem(&read("ca.crt"), &ca_key).expect("a CA");
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.distinguished_name = rcgen::DistinguishedName::new();
    let name = &mut params.distinguished_name;
    name.push(DnType::OrganizationName, "system:nodes");
    name.push(DnType::CommonName, "system:node:b");
    let address = "192.0.2.2".parse().expect("an address");
    params.extended_key_usages = if serves {
        params.subject_alt_names = vec![SanType::IpAddress(address)];
        vec![ExtendedKeyUsagePurpose::ServerAuth]
    } else {
        vec![ExtendedKeyUsagePurpose::ClientAuth]
    };
    let at = |offset: i64| {
        let seconds = jiff::Timestamp::now().as_second() + offset;
        let seconds = std::time::Duration::from_secs(seconds.cast_unsigned());
        rcgen::date_time_ymd(1970, 1, 1) + seconds
    };
    (params.not_before, params.not_after) = (at(-age), at(left));
    let key = KeyPair::generate().expect("a key");
    let cert = params.signed_by(&key, &issuer).expect("a certificate");
    (cert.pem(), key.serialize_pem())
}

/// Gives the second machine other certificates than it has.
fn put_pairs(machines: &Machines, age: i64, left: i64) {
    use base64::Engine as _;
    let pki = machines.dir(1).join("pki");
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let (cert, key) = node_pair(machines, age, left, false);
    let config = pki.join("node.kubeconfig");
    let text = std::fs::read_to_string(&config).expect("read");
    let lines = text.lines().map(|line| match line.split_once(": ") {
        Some((k, _)) if k.ends_with("client-certificate-data") => {
            format!("{k}: {}\n", encode(&cert))
        }
        Some((k, _)) if k.ends_with("client-key-data") => format!("{k}: {}\n", encode(&key)),
        _ => format!("{line}\n"),
    });
    std::fs::write(&config, lines.collect::<String>()).expect("write");
    let (cert, key) = node_pair(machines, age, left, true);
    std::fs::write(pki.join("serving.pem"), format!("{cert}{key}")).expect("write");
}

/// Ends one of the machines' programs and leaves its data plane.
pub(crate) fn terminate(mut program: Following) {
    let pid = rustix::process::Pid::from_raw(program.pid().cast_signed()).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("kill");
    assert!(program.ended().success());
}

#[test]
fn certificates_are_renewed_while_a_node_runs_and_by_a_token_when_they_are_over() {
    let Some(machines) = Machines::new() else {
        return;
    };
    let site = machines.up();
    let node = machines.joined(&machines.invitation());
    machines.load(1);
    machines.pod("web", "{}");
    let again: Vec<String> = ["node", "join"].map(str::to_owned).into();

    // At 60 % of their life: good for a start, and renewed between 70 and 90 %.
    terminate(node);
    let left = 40;
    let over = jiff::Timestamp::now().as_second() + left;
    put_pairs(&machines, 60, left);
    let files = ["node.kubeconfig", "serving.pem"].map(|f| machines.dir(1).join("pki").join(f));
    let now = || {
        files
            .clone()
            .map(|f| std::fs::read_to_string(f).expect("read"))
    };
    let before = now();
    let node = machines.joined(&again);
    eventually("both are renewed, and the first are over", || {
        let renewed = now().iter().zip(&before).all(|(now, before)| now != before);
        let is_over = jiff::Timestamp::now().as_second() > over;
        (renewed && is_over)
            .then_some(())
            .ok_or_else(|| node.lines().join("\n"))
    });
    // Whoever connects now sees the new ones, on both sides.
    let renewed = |machines: &Machines| {
        let lease = machines.json(&["get", "lease", "-n", "kube-node-lease", "b"]);
        lease["spec"]["renewTime"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let last = renewed(&machines);
    terminate(site);
    let site = machines.up();
    eventually("the node is in touch again", || {
        (renewed(&machines) != last)
            .then_some(())
            .ok_or_else(|| node.lines().join("\n"))
    });
    machines.ok(&["logs", "web"]);

    // Over: without a token it starts all the same, and is not heard.
    terminate(node);
    put_pairs(&machines, 100, -10);
    let node = machines.join(&again);
    node.wait_for(|line| line.contains("has expired"));
    node.wait_for(|line| line.starts_with("Node b runs"));
    terminate(node);
    // A token renews what is over, once the site does not hear the node any more.
    let block = |machines: &Machines| {
        let node = machines.json(&["get", "node", "b"]);
        node["spec"]["podCIDR"]
            .as_str()
            .expect("a block")
            .to_owned()
    };
    let before = block(&machines);
    let node = machines.joined(&machines.invitation());
    // And so it does where all that was on the machine is lost. It keeps its addresses.
    let pid = pid_of(&machines.dir(1), "dataplane");
    drop(node);
    kill(&pid);
    std::fs::remove_dir_all(machines.dir(1)).expect("lost");
    let node = machines.joined(&machines.invitation());
    assert_eq!(block(&machines), before);
    eventually("it serves with a new one too", || {
        let logs = machines.kubectl(&["get", "--raw", "/api/v1/nodes/b/proxy/healthz"]);
        logs.status
            .success()
            .then_some(())
            .ok_or_else(|| text(&logs))
    });
    drop((node, site));
}

/// Two nodes with the same addresses would each have what is sent to the other.
#[test]
fn a_machine_whose_addresses_are_another_s_is_refused() {
    let Some(machines) = Machines::new() else {
        return;
    };
    let site = machines.up();
    let node = machines.joined(&machines.invitation());
    terminate(node);
    machines.ok(&["delete", "node", "b"]);
    let other = machines.home.path().join("other.json");
    let object = r#"{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "c"},
        "spec": {"podCIDR": "10.44.0.0/16", "podCIDRs": ["10.44.0.0/16"]}}"#;
    std::fs::write(&other, object).expect("write");
    machines.ok(&["create", "-f", &other.display().to_string()]);
    let again: Vec<String> = ["node", "join"].map(str::to_owned).into();
    let mut refused = machines.join(&again);
    refused.wait_for(|line| {
        line.contains("its pods' addresses 10.44.0.0/16 overlap 10.44.0.0/16 of node c")
    });
    assert!(!refused.ended().success());
    // As it says: it leaves, and gets others.
    let left = machines.salp(1).args(["node", "leave"]).output();
    let left = left.expect("run salp");
    assert!(left.status.success(), "{}", text(&left));
    let node = machines.joined(&machines.invitation());
    let found = machines.json(&["get", "node", "b"]);
    assert_eq!(found["spec"]["podCIDR"], "10.46.0.0/16");
    drop((node, site));
}

/// Whatever was killed and in whichever order, `salp down` leaves nothing on the machine.
#[test]
fn what_was_killed_is_cleared_away() {
    let Some(machines) = Machines::new() else {
        return;
    };
    let mut site = machines.up();
    let signal = |pid: i32, signal| {
        let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
        rustix::process::kill_process(pid, signal).expect("kill");
    };
    let routes = || {
        let mut show = machines.on(0, "ip");
        show.args(["route", "show", "table", "local", "root", "10.0.0.0/8"]);
        text(&show.output().expect("run ip"))
    };
    let pid = pid_of(&machines.dir(0), "dataplane");
    signal(site.pid().cast_signed(), rustix::process::Signal::KILL);
    site.ended();
    // Nobody is there any more to end it, so it does so when it is asked, but for Ctrl-C.
    let pid = pid.parse().expect("a pid");
    signal(pid, rustix::process::Signal::INT);
    signal(pid, rustix::process::Signal::TERM);
    eventually("the data plane ends", || {
        let there = std::path::Path::new(&format!("/proc/{pid}")).exists();
        (!there)
            .then_some(())
            .ok_or_else(|| format!("{pid} is there"))
    });
    assert!(routes().contains("10.42.0.0/16"), "{}", routes());
    let down = || text(&machines.salp(0).arg("down").output().expect("run salp"));
    let said = down();
    assert!(said.contains("took away"), "{said}");
    assert!(!routes().contains("/16"), "{}", routes());
    let said = down();
    assert!(said.contains("nothing runs"), "{said}");
}
