//! A machine joins a Kubernetes that is not Salp's. There is none here, so a site stands for it
//! from which all is taken that only a site has: the rights that it gives nodes, what it approves,
//! where joining machines read its CA, its RuntimeClasses; and the test gives the Node its block
//! of addresses, as a kube-controller-manager does. Needs root; says so when it is not there.

use crate::harness::{Following, eventually, repo_file, text};
use crate::join::{Machines, terminate};
use serde_json::{Value, json};

/// Records who asked for what, and the answer.
const AUDIT: &str = "apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
rules:
- {level: Metadata, users: ['system:node:b']}
- {level: None}
";
const IMAGE: &str = "localhost:5000/hello:1";
const TAINT: &str = "kubernetes.io/arch=wasm32-wasi:NoExecute";

/// What upstream's `system:node` may, but for Secrets, ConfigMaps and claims, which are given one
/// by one, and the lists of Nodes, where it sees no other's.
fn node_rules() -> Value {
    let rule = |group: &str, resources: &str, verbs: &str| {
        let list = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        json!({"apiGroups": [group], "resources": list(resources), "verbs": list(verbs)})
    };
    json!([
        rule("authentication.k8s.io", "tokenreviews", "create"),
        rule(
            "authorization.k8s.io",
            "subjectaccessreviews localsubjectaccessreviews",
            "create"
        ),
        rule("", "services", "get list watch"),
        rule("", "nodes", "create get update patch"),
        rule("", "nodes/status", "update patch"),
        rule("", "events", "create update patch"),
        rule("", "pods", "get list watch create delete"),
        rule("", "pods/status", "update patch"),
        rule("", "pods/eviction", "create"),
        rule("", "endpoints", "get"),
        rule("", "serviceaccounts/token", "create"),
        rule(
            "certificates.k8s.io",
            "certificatesigningrequests",
            "create get list watch"
        ),
        rule(
            "coordination.k8s.io",
            "leases",
            "get create update patch delete"
        ),
        rule("storage.k8s.io", "volumeattachments", "get"),
        rule("storage.k8s.io", "csidrivers", "get list watch"),
        rule(
            "storage.k8s.io",
            "csinodes",
            "get create update patch delete"
        ),
        rule("node.k8s.io", "runtimeclasses", "get list watch"),
    ])
}

/// Takes from a site what another Kubernetes does not have.
fn make_foreign(machines: &Machines) {
    let bindings = machines.ok(&["get", "clusterrolebindings", "-o", "name"]);
    let ours = bindings.lines().filter(|name| name.contains("/salp:"));
    let ours: Vec<&str> = ours.collect();
    assert!(ours.len() >= 5, "{bindings}");
    machines.ok(&[&["delete"], &*ours].concat());
    let rules = json!([{"op": "replace", "path": "/rules", "value": node_rules()}]);
    let rules = rules.to_string();
    machines.ok(&[
        "patch",
        "clusterrole",
        "system:node",
        "--type=json",
        "-p",
        &rules,
    ]);
    machines.ok(&["delete", "runtimeclasses", "--all"]);
    machines.ok(&["delete", "configmap", "-n", "kube-public", "cluster-info"]);
    // A machine that the cluster has given addresses.
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "c"},
        "spec": {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24"]}});
    apply(machines, &node);
    let address =
        json!({"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.9"}]}});
    let address = address.to_string();
    machines.ok(&["patch", "node", "c", "--subresource=status", "-p", &address]);
    let services = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.43.0.0/16"]}});
    apply(machines, &services);
}

fn apply(machines: &Machines, object: &Value) {
    let file = machines.home.path().join("object.json");
    std::fs::write(&file, object.to_string()).expect("write");
    machines.ok(&["apply", "-f", &file.display().to_string()]);
}

/// The token of a ServiceAccount, as it is in a kubeconfig file and by a program.
fn joiner(machines: &Machines) -> [Value; 2] {
    machines.ok(&["create", "serviceaccount", "-n", "kube-system", "joiner"]);
    let token = machines.ok(&["create", "token", "-n", "kube-system", "joiner"]);
    let version = "client.authentication.k8s.io/v1";
    let said = json!({"apiVersion": version, "kind": "ExecCredential",
        "status": {"token": token.trim()}});
    let file = machines.home.path().join("said.json");
    std::fs::write(&file, said.to_string()).expect("write");
    let program = json!({"apiVersion": version, "command": "cat", "args": [file],
        "interactiveMode": "Never"});
    [json!({"token": token.trim()}), json!({"exec": program})]
}

/// A kubeconfig file of a user.
fn bootstrap(machines: &Machines, user: &Value) -> std::path::PathBuf {
    let file = machines.home.path().join("bootstrap.kubeconfig");
    let ca = machines.dir(0).join("pki/ca.crt");
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "b",
        "clusters": [{"name": "k", "cluster": {"server": "https://192.0.2.1:6443", "certificate-authority": ca}}],
        "contexts": [{"name": "b", "context": {"cluster": "k", "user": "u"}}],
        "users": [{"name": "u", "user": user}],
    });
    std::fs::write(&file, text.to_string()).expect("write");
    file
}

/// The request that a node says to approve.
fn asks_for_approval(node: &Following) -> String {
    const SAID: &str = "kubectl certificate approve ";
    let line = node.wait_for(|line| line.contains(SAID));
    let (_, name) = line.split_once(SAID).expect("a name");
    name.trim_end_matches('`').to_owned()
}

/// The manifest of `docs/joining-kubernetes.md`.
fn manifest(machines: &Machines) -> String {
    let text = std::fs::read_to_string(repo_file("docs/joining-kubernetes.md")).expect("read");
    let (_, rest) = text.split_once("```yaml\n").expect("a manifest");
    let (manifest, _) = rest.split_once("```").expect("its end");
    let file = machines.home.path().join("manifest.yaml");
    std::fs::write(&file, manifest).expect("write");
    file.display().to_string()
}

fn renewed(machines: &Machines) -> String {
    let lease = machines.json(&["get", "lease", "-n", "kube-node-lease", "b"]);
    lease["spec"]["renewTime"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// What the server recorded of the node.
fn records(log: &std::path::Path) -> Vec<Value> {
    let text = std::fs::read_to_string(log).expect("read");
    let lines = text.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().expect("lines of JSON")
}

#[test]
fn a_node_joins_a_kubernetes_that_is_not_salp_s() {
    let Some(machines) = Machines::new() else {
        return;
    };
    let policy = machines.home.path().join("audit.yaml");
    std::fs::write(&policy, AUDIT).expect("write");
    let log = machines.home.path().join("audit.log");
    let site = machines.up_with(&[
        "--audit-policy-file",
        &policy.display().to_string(),
        "--audit-log-path",
        &log.display().to_string(),
    ]);
    make_foreign(&machines);
    let [by_token, by_program] = joiner(&machines);
    let file = bootstrap(&machines, &by_token);
    let words = [
        "node",
        "join",
        "--register-with-taints",
        TAINT,
        "--kubeconfig",
    ];
    let mut words: Vec<String> = words.map(str::to_owned).into();
    words.push(file.display().to_string());

    // Who may not even ask is told what is missing.
    let mut refused = machines.join(&words);
    refused.wait_for(|line| line.contains("must have the ClusterRole system:node-bootstrapper"));
    assert!(!refused.ended().success());
    machines.ok(&[
        "create",
        "clusterrolebinding",
        "joiner",
        "--clusterrole=system:node-bootstrapper",
        "--serviceaccount=kube-system:joiner",
    ]);
    bootstrap(&machines, &by_program);
    let node = machines.join(&words);
    let request = asks_for_approval(&node);
    machines.ok(&["certificate", "approve", &request]);

    // Its addresses are the cluster's to give, and small.
    node.wait_for(|line| line.contains("waiting for the cluster to give node b addresses"));
    let block = r#"{"spec": {"podCIDR": "10.244.3.0/24", "podCIDRs": ["10.244.3.0/24"]}}"#;
    machines.ok(&["patch", "node", "b", "-p", block]);
    node.wait_for(|line| line.starts_with("Node b runs"));
    machines.ok(&["wait", "--for=condition=Ready", "node/b", "--timeout=60s"]);
    let found = machines.json(&["get", "node", "b"]);
    assert_eq!(found["spec"]["taints"][0]["value"], "wasm32-wasi");
    assert_eq!(found["status"]["capacity"]["pods"], "253");

    machines.load(1);
    let spec = json!({"nodeName": "b", "terminationGracePeriodSeconds": 1,
        "tolerations": [{"key": "kubernetes.io/arch", "operator": "Exists"}],
        "containers": [{"name": "c", "image": IMAGE, "imagePullPolicy": "Never",
            "ports": [{"containerPort": 8080}]}]});
    let labels = json!({"name": "web", "labels": {"app": "web"}});
    apply(
        &machines,
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": labels, "spec": spec}),
    );
    machines.ok(&["wait", "--for=condition=Ready", "pod/web", "--timeout=60s"]);
    let pod = machines.json(&["get", "pod", "web"]);
    let address = pod["status"]["podIP"].as_str().expect("an address");
    assert!(address.starts_with("10.244.3."), "{address}");
    assert!(machines.answers(1, &format!("http://{address}:8080/")));

    reads_logs(&machines, &node);
    knows_tokens(&machines);
    serves_services(&machines, &node);

    // It goes on, and comes back without the file.
    let is_renewed = |last: &str| {
        eventually("its Lease is renewed", || {
            let now = renewed(&machines);
            (now != last).then_some(()).ok_or(now)
        });
    };
    is_renewed(&renewed(&machines));
    std::fs::remove_file(&file).expect("remove");
    terminate(node);
    let last = renewed(&machines);
    let node = machines.join(&["node", "join"].map(str::to_owned));
    node.wait_for(|line| line.starts_with("Node b runs"));
    is_renewed(&last);
    let again = machines.json(&["get", "pod", "web"]);
    let id = |pod: &Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
    assert_eq!(id(&again), id(&pod));
    assert!(machines.answers(1, &format!("http://{address}:8080/")));

    // It leaves, but for its Node, which only site's nodes may delete.
    let kept = machines.home.path().join("kept.kubeconfig");
    std::fs::copy(machines.dir(1).join("pki/node.kubeconfig"), &kept).expect("copy");
    let left = machines.salp(1).args(["node", "leave"]).output();
    let left = left.expect("run salp");
    assert!(left.status.success(), "{}", text(&left));
    assert!(
        text(&left).contains("kubectl delete node b"),
        "{}",
        text(&left)
    );
    drop(node);
    // A file that has the node's own certificate needs nobody's word.
    let asked = || machines.ok(&["get", "csr", "-o", "name"]).lines().count();
    let before = asked();
    let words = ["node", "join", "--kubeconfig", &kept.display().to_string()].map(str::to_owned);
    let node = machines.join(&words);
    node.wait_for(|line| line.starts_with("Node b runs"));
    eventually("it asks for a certificate to serve with alone", || {
        let now = asked();
        (now == before + 1)
            .then_some(())
            .ok_or_else(|| format!("{now} after {before}"))
    });
    let again = machines.json(&["get", "node", "b"]);
    assert_eq!(again["spec"]["podCIDR"], "10.244.3.0/24");
    asks_only_what_it_may(&records(&log));
    drop((node, site));
}

/// A node may not delete its Node: a person does.
fn is_leaving(record: &Value) -> bool {
    record["verb"] == "delete" && record["objectRef"]["resource"] == "nodes"
}

/// As an API server reads logs: it shows who it is, and does not mind who signed for the node.
fn reads_logs(machines: &Machines, node: &Following) {
    let pki = |file: &str| machines.dir(0).join("pki").join(file);
    let mut curl = machines.on(0, "curl");
    curl.args([
        "-skf",
        "https://192.0.2.2:10250/containerLogs/default/web/c",
    ])
    .arg("--cert")
    .arg(pki("kubelet-client.crt"))
    .arg("--key")
    .arg(pki("kubelet-client.key"));
    let logs = curl.output().expect("run curl");
    assert!(logs.status.success(), "{}", text(&logs));
    // This one does mind, until somebody approves what the node has asked for.
    let logs = machines.kubectl(&["logs", "web"]);
    assert!(text(&logs).contains("certificate"), "{}", text(&logs));
    let waiting = eventually("it asks for a certificate to serve with", || {
        let all = machines.json(&["get", "csr"]);
        let items = all["items"].as_array().cloned().unwrap_or_default();
        let mut open = items.iter().filter(|request| {
            request["spec"]["signerName"] == "kubernetes.io/kubelet-serving"
                && request["status"]["conditions"].is_null()
        });
        let request = open.next().ok_or_else(|| all.to_string())?;
        assert_eq!(open.next(), None, "one is enough");
        Ok(request["metadata"]["name"]
            .as_str()
            .expect("a name")
            .to_owned())
    });
    node.wait_for(|line| line.contains(&format!("kubectl certificate approve {waiting}")));
    machines.ok(&["certificate", "approve", &waiting]);
    eventually("it serves with the certificate", || {
        let logs = machines.kubectl(&["logs", "web"]);
        logs.status
            .success()
            .then_some(())
            .ok_or_else(|| text(&logs))
    });
}

/// Monitoring shows a token, whose rights the API server knows.
fn knows_tokens(machines: &Machines) {
    machines.ok(&["create", "serviceaccount", "meter"]);
    let token = machines.ok(&["create", "token", "meter"]);
    let asks = |token: &str, path: &str| {
        let mut curl = machines.on(0, "curl");
        curl.args(["-sk", "-o", "/dev/null", "-w", "%{http_code}", "-H"])
            .arg(format!("authorization: Bearer {}", token.trim()))
            .arg(format!("https://192.0.2.2:10250/{path}"));
        text(&curl.output().expect("run curl"))
    };
    assert_eq!(asks("nobody's", "metrics/resource"), "401");
    assert_eq!(asks(&token, "containerLogs/default/web/c"), "403");
    let role = ["create", "clusterrole", "meter", "--verb=get"];
    machines.ok(&[&role[..], &["--resource=nodes/metrics"]].concat());
    let binding = [
        "create",
        "clusterrolebinding",
        "meter",
        "--clusterrole=meter",
    ];
    machines.ok(&[&binding[..], &["--serviceaccount=default:meter"]].concat());
    assert_eq!(asks(&token, "metrics/resource"), "200");
    assert_eq!(asks(&token, "containerLogs/default/web/c"), "403");
}

/// Services and other nodes' pods need rights that the node says it lacks.
fn serves_services(machines: &Machines, node: &Following) {
    for resource in ["endpointslices", "nodes"] {
        node.wait_for(|line| line.contains(&format!("this node may not list {resource}")));
    }
    machines.ok(&["expose", "pod", "web", "--port=80", "--target-port=8080"]);
    let service = machines.json(&["get", "service", "web"]);
    let address = service["spec"]["clusterIP"].as_str().expect("an address");
    let url = format!("http://{address}/");
    assert!(!machines.answers(1, &url));
    machines.ok(&["apply", "-f", &manifest(machines)]);
    eventually("the Service answers on the node", || {
        let answers = machines.answers(1, &url);
        answers.then_some(()).ok_or_else(|| url.clone())
    });
    eventually("there is a route to the other node's pods", || {
        let routes = machines.on(1, "ip").args(["route"]).output();
        let routes = text(&routes.expect("run ip"));
        let there = routes.contains("10.244.0.0/24 via 192.0.2.9");
        there.then_some(()).ok_or(routes)
    });
}

/// Whatever was refused is what the manifest gives, and of pods it sees its own.
fn asks_only_what_it_may(records: &[Value]) {
    assert!(records.len() > 20, "{records:?}");
    for record in records {
        let asked = &record["objectRef"];
        let resource = asked["resource"].as_str().unwrap_or_default();
        let uri = record["requestURI"].as_str().unwrap_or_default();
        if record["responseStatus"]["code"] == 403 {
            let is_given = ["nodes", "endpointslices", "servicecidrs"].contains(&resource)
                && ["list", "watch"].iter().any(|v| record["verb"] == *v);
            assert!(is_given || is_leaving(record), "{record}");
        }
        if resource == "pods" && ["list", "watch"].iter().any(|v| record["verb"] == *v) {
            assert!(uri.contains("spec.nodeName%3Db"), "{record}");
        }
    }
}
