//! One site of three servers over an etcd of three members, each server on a machine of its own
//! (a network namespace), while each of the six is killed. Needs root; says so when it is not
//! there.

use crate::harness::{Following, eventually, text, tool};
use crate::netns::{self, ip};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ListParams, PostParams, WatchEvent, WatchParams};
use kube::{Client, Config};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use testkit::Etcd;

const NAMES: [&str; 3] = ["a", "b", "c"];
/// Objects that a writer makes between two faults.
const BETWEEN: usize = 20;
/// What a client does not wait longer for.
const ANSWER: Duration = Duration::from_secs(20);

/// Three machines and a fourth with etcd, on one switch.
struct Machines {
    names: [String; 3],
    store: String,
    home: tempfile::TempDir,
    etcd: Option<Etcd>,
    running: [Option<Following>; 3],
}

impl Machines {
    fn new() -> Option<Self> {
        let id = netns::id()?;
        let names = NAMES.map(|name| format!("salp-{name}{name}-{id}"));
        let store = format!("salp-store-{id}");
        ip(&["netns", "add", &store]);
        ip(&["-n", &store, "link", "set", "lo", "up"]);
        ip(&["-n", &store, "link", "add", "switch", "type", "bridge"]);
        ip(&[
            "-n",
            &store,
            "addr",
            "add",
            "192.0.2.10/24",
            "dev",
            "switch",
        ]);
        ip(&["-n", &store, "link", "set", "switch", "up"]);
        for (n, name) in names.iter().enumerate() {
            let port = format!("port{n}");
            ip(&["netns", "add", name]);
            ip(&[
                "link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", &port,
                "netns", &store,
            ]);
            ip(&["-n", &store, "link", "set", &port, "master", "switch", "up"]);
            let address = format!("192.0.2.{}/24", n + 1);
            ip(&["-n", name, "addr", "add", &address, "dev", "eth0"]);
            ip(&["-n", name, "link", "set", "lo", "up"]);
            ip(&["-n", name, "link", "set", "eth0", "up"]);
        }
        let host: IpAddr = [192, 0, 2, 10].into();
        let etcd = netns::inside(&store, || Etcd::start_at(3, host).expect("etcd starts"));
        Some(Self {
            names,
            store,
            home: tempfile::tempdir().expect("directory"),
            etcd: Some(etcd),
            running: [None, None, None],
        })
    }

    fn dir(&self, machine: usize) -> PathBuf {
        self.home.path().join(NAMES[machine])
    }

    fn on(&self, machine: usize, program: &str) -> Command {
        let (name, dir) = (&self.names[machine], self.dir(machine));
        netns::command(name, program, &dir, self.home.path())
    }

    fn store(&self) -> String {
        let etcd = self.etcd.as_ref().expect("etcd");
        format!("etcd={}", etcd.config().endpoints.join(","))
    }

    fn command(&self, machine: usize) -> Command {
        let mut up = self.on(machine, env!("CARGO_BIN_EXE_salp"));
        let address = format!("192.0.2.{}", machine + 1);
        up.args(["up", "--bind-address", &address, "--store", &self.store()])
            .args(["--node-name", NAMES[machine]]);
        up
    }

    /// Starts a server, and does not wait for it.
    fn begin(&mut self, machine: usize) {
        self.running[machine] = Some(Following::start(self.command(machine)));
    }

    fn ready(&self, machine: usize) {
        let running = self.running[machine].as_ref().expect("running");
        running.wait_for(|line| line.starts_with("Ready"));
    }

    fn signal(&mut self, machine: usize, signal: &str) {
        let mut running = self.running[machine].take().expect("running");
        let pid = running.pid().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status();
        assert!(sent.expect("kill").success());
        running.ended();
    }

    fn with_etcd(&mut self, act: impl FnOnce(&mut Etcd) + Send) {
        let mut etcd = self.etcd.take().expect("etcd");
        netns::inside(&self.store, || act(&mut etcd));
        self.etcd = Some(etcd);
    }

    fn kubectl(&self, machine: usize, args: &[&str]) -> Output {
        self.on(machine, &tool("kubectl").display().to_string())
            .arg("--kubeconfig")
            .arg(self.dir(machine).join("kubeconfig.yaml"))
            .args(args)
            .output()
            .expect("run kubectl")
    }

    /// Asks as a client on a machine, in a runtime of its own.
    fn ask<T: Send>(&self, machine: usize, ask: impl AsyncFnOnce(Client) -> T + Send) -> T {
        let kubeconfig = self.dir(machine).join("kubeconfig.yaml");
        netns::inside(&self.names[machine], || {
            let runtime = runtime();
            runtime.block_on(async { ask(client(&kubeconfig, None).await).await })
        })
    }

    fn list<K>(&self, machine: usize) -> Vec<K>
    where
        K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + Send,
        K: serde::de::DeserializeOwned + 'static,
    {
        self.ask(machine, async |client| {
            let api: Api<K> = Api::all(client);
            api.list(&ListParams::default()).await.expect("list").items
        })
    }

    /// Who holds a Lease of `kube-system`, and how often it changed hands.
    fn holder(&self, machine: usize, lease: &str) -> (String, i32) {
        self.ask(machine, async |client| {
            let api: Api<Lease> = Api::namespaced(client, "kube-system");
            let spec = api.get_opt(lease).await.ok().flatten();
            let spec = spec.and_then(|lease| lease.spec).unwrap_or_default();
            let holder = spec.holder_identity.unwrap_or_default();
            (holder, spec.lease_transitions.unwrap_or_default())
        })
    }

    /// The server that holds a Lease.
    fn leader(&self, machine: usize, lease: &str) -> usize {
        eventually(&format!("somebody leads {lease}"), || {
            let (holder, _) = self.holder(machine, lease);
            let name = holder.split('_').next().unwrap_or_default();
            let leader = NAMES.iter().position(|n| *n == name);
            leader.ok_or_else(|| format!("holder {holder:?}"))
        })
    }

    /// Waits until a pod that is made now has a node.
    fn schedules(&self, machine: usize, name: &str) {
        self.ask(machine, async |client| {
            let api: Api<Pod> = Api::namespaced(client, "default");
            let pod = json!({"metadata": {"name": name},
                "spec": {"containers": [{"name": "c", "image": "localhost:1/none:1"}]}});
            let pod: Pod = serde_json::from_value(pod).expect("a pod");
            api.create(&PostParams::default(), &pod)
                .await
                .expect("create");
        });
        eventually("the pod is scheduled", || {
            let pods = self.list::<Pod>(machine);
            let pod = pods
                .iter()
                .find(|p| p.metadata.name.as_deref() == Some(name));
            let spec = pod.and_then(|pod| pod.spec.as_ref());
            let node = spec.and_then(|spec| spec.node_name.clone());
            node.ok_or_else(|| format!("{pod:?}"))
        });
    }

    /// Waits until clients are told of these servers and no others.
    fn told_of(&self, machine: usize, servers: &[usize]) {
        let wanted: BTreeSet<String> = servers
            .iter()
            .map(|n| format!("192.0.2.{}", n + 1))
            .collect();
        eventually("the servers that live are told of", || {
            let slices = self.list::<EndpointSlice>(machine);
            let own = slices.into_iter().filter(|slice| {
                let labels = slice.metadata.labels.as_ref();
                labels
                    .and_then(|l| l.get("kubernetes.io/service-name"))
                    .map(String::as_str)
                    == Some("kubernetes")
            });
            let told = own.flat_map(|slice| slice.endpoints.into_iter().flatten());
            let told: BTreeSet<String> = told.flat_map(|e| e.addresses).collect();
            let endpoints = self.list::<Endpoints>(machine);
            let named = |e: &Endpoints| e.metadata.name.as_deref() == Some("kubernetes");
            let old = endpoints.into_iter().filter(named);
            let old = old.flat_map(|e| e.subsets.into_iter().flatten());
            let old = old.flat_map(|subset| subset.addresses.into_iter().flatten());
            let old: BTreeSet<String> = old.map(|address| address.ip).collect();
            let right = told == wanted && old == wanted;
            right.then_some(()).ok_or(format!("{told:?}, {old:?}"))
        });
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for machine in 0..3 {
            let _stopped = self
                .on(machine, env!("CARGO_BIN_EXE_salp"))
                .arg("down")
                .output();
        }
        self.etcd = None;
        for name in self.names.iter().chain([&self.store]) {
            let _gone = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime")
}

/// The administrator of a kubeconfig, perhaps at another server.
async fn client(kubeconfig: &std::path::Path, server: Option<usize>) -> Client {
    let read = kube::config::Kubeconfig::read_from(kubeconfig).expect("kubeconfig");
    let options = kube::config::KubeConfigOptions::default();
    let mut config = Config::from_custom_kubeconfig(read, &options)
        .await
        .expect("kubeconfig");
    if let Some(server) = server {
        let url = format!("https://192.0.2.{}:6443", server + 1);
        config.cluster_url = url.parse().expect("URL");
    }
    config.connect_timeout = Some(Duration::from_secs(2));
    Client::try_from(config).expect("client")
}

/// The name of the ConfigMap that is made when the writers have ended.
const LAST: &str = "w-last";

/// What the clients have been told.
#[derive(Default)]
struct Told {
    /// Names of objects whose creation was acknowledged.
    acknowledged: Mutex<BTreeSet<String>>,
    /// How many of them each writer has.
    by_writer: [AtomicUsize; 3],
    stop: AtomicBool,
}

/// Makes ConfigMaps and Services through one server until it is told to stop; goes on
/// whatever the server says.
async fn write(client: Client, machine: usize, told: &Told) {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let services: Api<Service> = Api::namespaced(client, "default");
    let params = PostParams::default();
    for n in 0.. {
        if told.stop.load(Ordering::Relaxed) {
            return;
        }
        let name = format!("w-{}-{n}", NAMES[machine]);
        let map: ConfigMap =
            serde_json::from_value(json!({"metadata": {"name": name}})).expect("a map");
        let service: Service = serde_json::from_value(json!({"metadata": {"name": name},
            "spec": {"type": "NodePort", "ports": [{"port": 80}]}}))
        .expect("a service");
        let make = async {
            let made = maps.create(&params, &map).await.is_ok();
            if made {
                told.acknowledged.lock().expect("lock").insert(name.clone());
                told.by_writer[machine].fetch_add(1, Ordering::Relaxed);
            }
            if n % 3 == 0 && services.create(&params, &service).await.is_ok() {
                let name = format!("service {name}");
                told.acknowledged.lock().expect("lock").insert(name);
            }
            made
        };
        if !matches!(tokio::time::timeout(ANSWER, make).await, Ok(true)) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Follows all ConfigMaps at one server after another: how often each was told as new.
async fn follow(clients: &[Client], seen: &Mutex<BTreeMap<String, usize>>, from: String) {
    use futures::StreamExt as _;
    let mut at = from;
    let params = WatchParams::default().labels("!kubernetes.io/none");
    for client in clients.iter().cycle() {
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
        let Ok(Ok(events)) = tokio::time::timeout(ANSWER, maps.watch(&params, &at)).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let mut events = events.boxed();
        while let Some(Ok(event)) = events.next().await {
            let version = match &event {
                WatchEvent::Added(map) | WatchEvent::Modified(map) | WatchEvent::Deleted(map) => {
                    map.metadata.resource_version.clone()
                }
                WatchEvent::Bookmark(mark) => Some(mark.metadata.resource_version.clone()),
                WatchEvent::Error(_) => break,
            };
            at = version.unwrap_or(at);
            if let WatchEvent::Added(map) = event {
                let name = map.metadata.name.unwrap_or_default();
                *seen.lock().expect("lock").entry(name).or_default() += 1;
            }
        }
    }
}

/// Waits until each of these writers has made so many more.
fn progress(told: &Told, writers: &[usize]) {
    let of = |n: usize| told.by_writer[n].load(Ordering::Relaxed);
    let before: Vec<usize> = writers.iter().map(|n| of(*n)).collect();
    for (writer, before) in writers.iter().zip(before) {
        eventually(&format!("server {} takes writes", NAMES[*writer]), || {
            let made = of(*writer) - before;
            (made >= BETWEEN)
                .then_some(())
                .ok_or(format!("{made} made"))
        });
    }
}

#[test]
fn a_site_of_three_servers_loses_nothing_with_any_of_them() {
    let Some(mut machines) = Machines::new() else {
        return;
    };
    // All at once: one of them founds the site, the others join it.
    (0..3).for_each(|n| machines.begin(n));
    (0..3).for_each(|n| machines.ready(n));
    machines.told_of(0, &[0, 1, 2]);
    let authority = |n: usize| std::fs::read(machines.dir(n).join("pki/ca.crt")).expect("a CA");
    assert!((1..3).all(|n| authority(n) == authority(0)));
    let nodes = machines.list::<Node>(1);
    let blocks: BTreeSet<String> = nodes
        .iter()
        .filter_map(|node| node.spec.as_ref()?.pod_cidr.clone())
        .collect();
    assert_eq!(blocks.len(), 3, "{blocks:?}");
    let maps = machines.list::<ConfigMap>(2);
    assert!(!maps.is_empty());

    let told = Arc::new(Told::default());
    let seen = Arc::new(Mutex::new(BTreeMap::new()));
    let from = machines.ask(0, async |client| {
        let api: Api<ConfigMap> = Api::namespaced(client, "default");
        let list = api.list(&ListParams::default()).await.expect("list");
        list.metadata.resource_version.expect("a version")
    });
    let clients: Vec<_> = (0..3)
        .map(|n| {
            let (told, name) = (told.clone(), machines.names[n].clone());
            let kubeconfig = machines.dir(n).join("kubeconfig.yaml");
            std::thread::spawn(move || {
                netns::enter(&name);
                runtime().block_on(async {
                    write(client(&kubeconfig, None).await, n, &told).await;
                });
            })
        })
        .collect();
    let follower = {
        let (seen, name) = (seen.clone(), machines.store.clone());
        let kubeconfig = machines.dir(0).join("kubeconfig.yaml");
        std::thread::spawn(move || {
            netns::enter(&name);
            runtime().block_on(async {
                let mut clients = Vec::new();
                for server in 0..3 {
                    clients.push(client(&kubeconfig, Some(server)).await);
                }
                // Each change is told after those before it.
                let done = async {
                    while !seen.lock().expect("lock").contains_key(LAST) {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                };
                tokio::select! {
                    () = follow(&clients, &seen, from) => {}
                    () = done => {}
                    () = tokio::time::sleep(Duration::from_secs(600)) => {}
                }
            });
        })
    };

    progress(&told, &[0, 1, 2]);
    for server in 0..3 {
        let others: Vec<usize> = (0..3).filter(|n| *n != server).collect();
        machines.signal(server, "-KILL");
        progress(&told, &others);
        machines.told_of(others[0], &others);
        machines.begin(server);
        machines.ready(server);
        progress(&told, &[server]);
        machines.told_of(others[1], &[0, 1, 2]);
    }
    for member in 0..3 {
        // One of them leads the others.
        machines.with_etcd(|etcd| etcd.kill(member));
        progress(&told, &[0, 1, 2]);
        machines.with_etcd(|etcd| etcd.restart(member).expect("etcd starts"));
        progress(&told, &[0, 1, 2]);
    }
    told.stop.store(true, Ordering::Relaxed);
    clients
        .into_iter()
        .for_each(|c| c.join().expect("a writer"));
    machines.ask(0, async |client| {
        let api: Api<ConfigMap> = Api::namespaced(client, "default");
        let last = serde_json::from_value(json!({"metadata": {"name": LAST}})).expect("a map");
        api.create(&PostParams::default(), &last)
            .await
            .expect("a last write");
    });
    follower.join().expect("the follower");

    let acknowledged = told.acknowledged.lock().expect("lock");
    let ours = |name: &str| name.starts_with("w-");
    for server in 0..3 {
        let maps = machines.list::<ConfigMap>(server);
        let maps: BTreeSet<String> = maps.into_iter().filter_map(|m| m.metadata.name).collect();
        let services = machines.list::<Service>(server);
        let lost: Vec<&String> = acknowledged
            .iter()
            .filter(|name| match name.strip_prefix("service ") {
                Some(name) => services
                    .iter()
                    .all(|s| s.metadata.name.as_deref() != Some(name)),
                None => !maps.contains(*name),
            })
            .collect();
        assert!(lost.is_empty(), "server {server} does not know {lost:?}");
        // Each was told once, whether it was acknowledged or not.
        let seen = seen.lock().expect("lock");
        let seen: BTreeMap<&String, usize> = seen
            .iter()
            .filter(|(name, _)| ours(name))
            .map(|(name, count)| (name, *count))
            .collect();
        assert!(seen.values().all(|count| *count == 1), "{seen:?}");
        let made: BTreeSet<&String> = maps.iter().filter(|name| ours(name)).collect();
        let seen: BTreeSet<&String> = seen.into_keys().collect();
        let differ: Vec<_> = seen.symmetric_difference(&made).collect();
        assert!(differ.is_empty(), "told or listed only: {differ:?}");
        let mut ips = BTreeSet::new();
        let mut ports = BTreeSet::new();
        for service in &services {
            let spec = service.spec.as_ref().expect("a spec");
            let ip = spec.cluster_ip.as_ref().expect("an address");
            assert!(ips.insert(ip), "{ip} is given twice");
            for port in spec.ports.iter().flatten().filter_map(|p| p.node_port) {
                assert!(ports.insert(port), "{port} is given twice");
            }
        }
    }
}

#[test]
fn pods_are_scheduled_on_when_the_leader_goes() {
    let Some(mut machines) = Machines::new() else {
        return;
    };
    (0..2).for_each(|n| {
        machines.begin(n);
        machines.ready(n);
    });
    const LEASES: [&str; 3] = ["kube-scheduler", "kube-controller-manager", "salp-gitops"];
    let leader = machines.leader(0, LEASES[0]);
    let other = 1 - leader;
    machines.schedules(other, "first");
    // It says goodbye: the other follows at once, and nobody waits for a Lease to run out.
    machines.signal(leader, "-TERM");
    for lease in LEASES {
        eventually(&format!("the other leads {lease}"), || {
            let (holder, changes) = machines.holder(other, lease);
            let follows = holder.starts_with(&format!("{}_", NAMES[other]));
            follows.then_some(()).ok_or(format!("{holder} {changes}"))
        });
    }
    machines.schedules(other, "second");
    machines.told_of(other, &[other]);
    machines.begin(leader);
    machines.ready(leader);
    assert_eq!(machines.leader(leader, LEASES[0]), other);
    // And now it just dies.
    machines.signal(other, "-KILL");
    machines.schedules(leader, "third");
    assert_eq!(machines.leader(leader, LEASES[0]), leader);
    let set = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "set"},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}}, "template": {
            "metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "localhost:1/none:1"}]}}}});
    let file = machines.home.path().join("set.json");
    std::fs::write(&file, set.to_string()).expect("write");
    let applied = machines.kubectl(leader, &["apply", "-f", &file.display().to_string()]);
    assert!(applied.status.success(), "{}", text(&applied));
    eventually("the controllers make its pods", || {
        let pods = machines.list::<Pod>(leader);
        let names: Vec<_> = pods.into_iter().filter_map(|p| p.metadata.name).collect();
        let made = names.iter().filter(|name| name.starts_with("set-")).count();
        (made == 2).then_some(()).ok_or(format!("{names:?}"))
    });
}

#[test]
fn a_store_is_of_one_site() {
    let Some(mut machines) = Machines::new() else {
        return;
    };
    machines.begin(0);
    machines.ready(0);
    // A machine with a site of its own is not made a server of this one.
    let alone = |machines: &Machines, args: &[&str]| {
        let mut up = machines.on(1, env!("CARGO_BIN_EXE_salp"));
        up.args(["up", "--bind-address", "192.0.2.2", "--node-name", "b"]);
        up.args(args);
        let mut site = Following::start(up);
        site.wait_for(|line| line.starts_with("Ready"));
        let pid = site.pid().to_string();
        let stopped = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(stopped.expect("kill").success());
        site.ended();
    };
    alone(&machines, &[]);
    let refused = machines.command(1).output().expect("run salp");
    let said = text(&refused);
    assert!(!refused.status.success(), "{said}");
    assert!(
        said.contains("it has the objects of site a (sha256:") && said.contains("is of site b ("),
        "{said}"
    );
    // Beside it there is room for another.
    let store = machines.store();
    alone(&machines, &["--store", &store, "--store-prefix", "/b"]);
    assert_eq!(machines.list::<Node>(0).len(), 1);
    // And no machine is a server that the others can't reach.
    let mut hidden = machines.on(2, env!("CARGO_BIN_EXE_salp"));
    hidden.args(["up", "--store", &store]);
    let said = text(&hidden.output().expect("run salp"));
    assert!(
        said.contains("other machines can't reach 127.0.0.1"),
        "{said}"
    );
    let told: Value =
        serde_json::from_slice(&machines.kubectl(0, &["version", "-o", "json"]).stdout)
            .expect("JSON");
    assert!(told["serverVersion"].is_object(), "{told}");
}

/// What a node that was joined through one server does when that dies.
#[test]
fn a_node_goes_on_with_another_server() {
    let Some(mut machines) = Machines::new() else {
        return;
    };
    (0..2).for_each(|n| {
        machines.begin(n);
        machines.ready(n);
    });
    let created = machines
        .on(0, env!("CARGO_BIN_EXE_salp"))
        .args(["token", "create"])
        .output();
    let said = text(&created.expect("run salp"));
    let mut join = machines.on(2, env!("CARGO_BIN_EXE_salp"));
    join.args(said.split_whitespace().skip(1))
        .args(["--node-ip", "192.0.2.3", "--node-name", "c"]);
    let node = Following::start(join);
    node.wait_for(|line| line.starts_with("Node c runs"));
    let kubeconfig = machines.dir(2).join("pki/node.kubeconfig");
    eventually("the node knows the other server", || {
        let text = std::fs::read_to_string(&kubeconfig).expect("a kubeconfig");
        text.contains("https://192.0.2.2:6443")
            .then_some(())
            .ok_or(text)
    });
    machines.signal(0, "-KILL");
    machines.ask(1, async |client| {
        let api: Api<Pod> = Api::namespaced(client, "default");
        let pod = json!({"metadata": {"name": "after"}, "spec": {"nodeName": "c",
            "containers": [{"name": "c", "image": "localhost:1/none:1"}]}});
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        api.create(&PostParams::default(), &pod)
            .await
            .expect("create");
    });
    eventually("the node hears of a pod and tells of it", || {
        let pods = machines.list::<Pod>(1);
        let pod = pods
            .iter()
            .find(|p| p.metadata.name.as_deref() == Some("after"));
        let status = pod.and_then(|pod| pod.status.as_ref());
        let told = status.and_then(|status| status.container_statuses.as_ref());
        told.map(|_| ()).ok_or_else(|| format!("{status:?}"))
    });
    // It finds that server too when it starts again.
    let pid = node.pid().to_string();
    let stopped = Command::new("kill").args(["-TERM", &pid]).status();
    assert!(stopped.expect("kill").success());
    drop(node);
    let mut again = machines.on(2, env!("CARGO_BIN_EXE_salp"));
    again.args(["node", "join", "--node-ip", "192.0.2.3", "--node-name", "c"]);
    let node = Following::start(again);
    node.wait_for(|line| line.starts_with("Node c runs"));
}
