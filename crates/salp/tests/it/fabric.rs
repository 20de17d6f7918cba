//! Three sites in network namespaces, each with a leaf nats-server of its own that is connected
//! to the hub's: lines that are cut and slowed, servers and sites that are killed and emptied,
//! under load. Every request that was sent is accounted for. Needs root; says so when it is
//! not there.

use crate::failover::Load;
use crate::harness::{
    Following, Running, eventually, kill, pid_of, program, repo_file, text, tool,
};
use crate::join::identity;
use crate::netns::{self, enter, inside, ip};
use crate::serve::hello;
use crate::sites::{EXPORT, by};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use testkit::Line;

const HUB: usize = 0;
const SHOP: usize = 1;
const KIOSK: usize = 2;
const NAMES: [&str; 3] = ["hub", "shop", "kiosk"];
const IMAGE: &str = "localhost:5000/hello:1";
/// Where the hub's nats-server takes leaf nodes.
const LEAF_PORT: u16 = 7422;

/// Namespaces of the sites, and one of the switch that they are connected to.
struct Fabric {
    sites: [String; 3],
    switch: String,
    home: tempfile::TempDir,
    /// What each leaf node connects to.
    uplinks: [SocketAddr; 3],
    nats: [Option<Running>; 3],
    ups: [Option<Following>; 3],
    more: &'static [&'static str],
}

impl Fabric {
    /// The namespaces and their lines; nothing runs yet.
    fn lay(more: &'static [&'static str]) -> Option<Self> {
        let id = netns::id()?;
        let fabric = Self {
            sites: NAMES.map(|name| format!("salp-{name}-{id}")),
            switch: format!("salp-switch-{id}"),
            home: tempfile::tempdir().expect("directory"),
            uplinks: [SocketAddr::from(([192, 0, 2, 1], LEAF_PORT)); 3],
            nats: [None, None, None],
            ups: [None, None, None],
            more,
        };
        let switch = fabric.switch.as_str();
        ip(&["netns", "add", switch]);
        ip(&["-n", switch, "link", "add", "br0", "type", "bridge"]);
        ip(&["-n", switch, "link", "set", "br0", "up"]);
        for (i, site) in fabric.sites.iter().enumerate() {
            ip(&["netns", "add", site]);
            let port = format!("port{i}");
            let pair = ["link", "add", "eth0", "netns", site, "type", "veth"];
            ip(&[&pair[..], &["peer", "name", &port, "netns", switch]].concat());
            ip(&["-n", switch, "link", "set", &port, "master", "br0", "up"]);
            let address = format!("192.0.2.{}/24", i + 1);
            ip(&["-n", site, "addr", "add", &address, "dev", "eth0"]);
            ip(&["-n", site, "link", "set", "lo", "up"]);
            ip(&["-n", site, "link", "set", "eth0", "up"]);
        }
        Some(fabric)
    }

    /// All three sites, which see each other, with the image and what exports it.
    fn start(more: &'static [&'static str]) -> Option<Self> {
        let mut fabric = Self::lay(more)?;
        for site in [HUB, SHOP, KIOSK] {
            fabric.nats(site);
            fabric.up(site);
        }
        for site in [HUB, SHOP, KIOSK] {
            for other in (0..3).filter(|other| *other != site) {
                fabric.sees(site, other, "Alive");
            }
            fabric.deploy(site);
        }
        Some(fabric)
    }

    fn dir(&self, site: usize) -> PathBuf {
        self.home.path().join(NAMES[site])
    }

    /// A program in a site's namespace.
    fn on(&self, site: usize, program: &str) -> Command {
        netns::command(
            &self.sites[site],
            program,
            &self.dir(site),
            self.home.path(),
        )
    }

    fn salp(&self, site: usize, args: &[&str]) -> Output {
        let mut command = self.on(site, &program().display().to_string());
        command.args(args).output().expect("run salp")
    }

    /// Starts a site's nats-server, empty.
    fn nats(&mut self, site: usize) {
        let noticed = "ping_interval: \"1s\"\nping_max: 2\nlisten: 127.0.0.1:4222\n";
        let leaf = match site {
            HUB => format!("listen: 192.0.2.1:{LEAF_PORT}"),
            _ => format!(
                "reconnect: 1s, remotes: [{{url: \"nats-leaf://{}\"}}]",
                self.uplinks[site]
            ),
        };
        let config = self.home.path().join(format!("{}.conf", NAMES[site]));
        std::fs::write(&config, format!("{noticed}leafnodes {{ {leaf} }}\n")).expect("write");
        let child = self
            .on(site, &tool("nats-server").display().to_string())
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.nats[site] = Some(Running(child.expect("start nats-server")));
    }

    /// Starts a site, or its control plane again.
    fn up(&mut self, site: usize) {
        let bind = format!("192.0.2.{}", site + 1);
        let name = NAMES[site];
        let mut up = self.on(site, &program().display().to_string());
        up.args(["up", "--bind-address", &bind, "--node-name", name])
            .args(["--site", name, "--lattice", "nats://127.0.0.1:4222"])
            .args(self.more);
        if site == HUB {
            up.args(["--lattice-hub", "--region", "cloud"]);
        } else {
            let token = self.salp(HUB, &["sites", "token", "--ttl", "10m"]);
            assert!(token.status.success(), "{}", text(&token));
            let token = String::from_utf8(token.stdout).expect("text");
            up.args(["--lattice-token", token.trim(), "--region", "street"]);
        }
        let following = Following::start(up);
        following.wait_for(|line| line.starts_with("Ready"));
        self.ups[site] = Some(following);
    }

    /// Ends a site's control plane, as a crash would.
    fn kill_up(&mut self, site: usize) {
        self.ups[site] = None;
    }

    /// Ends all of a site, as a power cut would.
    fn kill(&mut self, site: usize) {
        let pid = pid_of(&self.dir(site), "dataplane");
        self.kill_up(site);
        kill(&pid);
    }

    /// Cuts a site's line at the switch, or mends it.
    fn line(&self, site: usize, state: &str) {
        let port = format!("port{site}");
        ip(&["-n", &self.switch, "link", "set", &port, state]);
    }

    fn kubectl(&self, site: usize, args: &[&str]) -> Output {
        self.on(site, &tool("kubectl").display().to_string())
            .arg("--kubeconfig")
            .arg(self.dir(site).join("kubeconfig.yaml"))
            .args(args)
            .output()
            .expect("run kubectl")
    }

    fn ok(&self, site: usize, args: &[&str]) -> String {
        let output = self.kubectl(site, args);
        let words = args.join(" ");
        assert!(
            output.status.success(),
            "kubectl {words} at {}: {}\n{}",
            NAMES[site],
            text(&output),
            self.state(site)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What a person would look at after a failure.
    fn state(&self, site: usize) -> String {
        let pods = self.kubectl(site, &["get", "pods,events", "-A", "-o", "wide"]);
        format!("{}\n{}", text(&pods), self.log(site))
    }

    fn log(&self, site: usize) -> String {
        let up = self.ups[site].as_ref().map(Following::lines);
        let up = up.unwrap_or_default().join("\n");
        let data_plane = std::fs::read_to_string(self.dir(site).join("dataplane.log"));
        let name = NAMES[site];
        let data_plane = data_plane.unwrap_or_default();
        format!("--- {name}: up\n{up}\n--- {name}: data plane\n{data_plane}")
    }

    fn json(&self, site: usize, args: &[&str]) -> Value {
        let out = self.ok(site, &[args, &["-o", "json"]].concat());
        serde_json::from_str(&out).expect("JSON")
    }

    fn apply(&self, site: usize, manifest: &str) {
        let file = self.home.path().join(format!("{}.yaml", NAMES[site]));
        std::fs::write(&file, manifest).expect("write");
        eventually("the manifest is taken", || {
            let applied = self.kubectl(site, &["apply", "-f", &file.display().to_string()]);
            let taken = applied.status.success();
            taken.then_some(()).ok_or_else(|| text(&applied))
        });
    }

    fn deploy(&self, site: usize) {
        let wasm = repo_file("examples/hello/hello.wasm").display().to_string();
        let loaded = self.salp(site, &["image", "load", &wasm, IMAGE]);
        assert!(loaded.status.success(), "{}", text(&loaded));
        let image = format!("image: {IMAGE}\n          imagePullPolicy: Never");
        let hello = hello(IMAGE, 1).replace(&format!("image: {IMAGE}"), &image);
        self.apply(site, &format!("{hello}---\n{EXPORT}"));
        self.rolled_out(site);
    }

    fn rolled_out(&self, site: usize) {
        let wait = ["rollout", "status", "deployment/hello", "--timeout=90s"];
        self.ok(site, &wait);
    }

    fn scale(&self, site: usize, replicas: u32) {
        let replicas = format!("--replicas={replicas}");
        self.ok(site, &["scale", "deployment/hello", &replicas]);
    }

    /// The hello pods of a site that are not being deleted.
    fn pods(&self, site: usize) -> Vec<Value> {
        let list = self.json(site, &["get", "pods", "-l", "app=hello"]);
        let all = list["items"].as_array().cloned().unwrap_or_default();
        let stays = |p: &Value| p["metadata"]["deletionTimestamp"].is_null();
        all.into_iter().filter(stays).collect()
    }

    fn pod_names(&self, site: usize) -> Vec<String> {
        let pods = self.pods(site);
        let names = pods.iter().filter_map(|p| p["metadata"]["name"].as_str());
        names.map(str::to_owned).collect()
    }

    fn identities(&self, site: usize) -> Vec<(String, String, i64)> {
        let mut all: Vec<_> = self.pods(site).iter().map(identity).collect();
        all.sort();
        all
    }

    /// Waits until a site lists another in a state; what it lists of it.
    fn sees(&self, site: usize, other: usize, state: &str) -> Value {
        let (at, other) = (NAMES[site], NAMES[other]);
        eventually(&format!("{at} sees that {other} is {state}"), || {
            let out = self.salp(site, &["sites", "-o", "json"]);
            let list: Value = serde_json::from_slice(&out.stdout).map_err(|_| text(&out))?;
            let sites = list["sites"].as_array().ok_or("no sites")?;
            match sites.iter().find(|s| s["name"] == other) {
                Some(seen) if seen["state"] == state => Ok(seen.clone()),
                seen => Err(format!("{seen:?}")),
            }
        })
    }

    /// Waits until the import at a site says so of whether all can be reached.
    fn reachable(&self, site: usize, status: &str) -> String {
        let at = NAMES[site];
        eventually(
            &format!("at {at} the import's Reachable is {status}"),
            || {
                let import = self.json(site, &["get", "serviceimport", "hello"]);
                let conditions = import["status"]["conditions"].as_array();
                let mut conditions = conditions.into_iter().flatten();
                let found = conditions.find(|c| c["type"] == "Reachable");
                match found {
                    Some(c) if c["status"] == status => {
                        Ok(c["message"].as_str().unwrap_or_default().to_owned())
                    }
                    _ => Err(import["status"].to_string()),
                }
            },
        )
    }

    /// Clients at a site of the import there.
    fn load(&self, site: usize) -> Load {
        let address = eventually("the import has an address", || {
            let import = self.json(site, &["get", "serviceimport", "hello"]);
            let clusters = import["status"]["clusters"].as_array().map_or(0, Vec::len);
            let ip = import["spec"]["ips"][0].as_str().filter(|_| clusters == 3);
            let ip = ip.ok_or_else(|| import.to_string())?;
            Ok(format!("{ip}:8080"))
        });
        let namespace = self.sites[site].clone();
        Load::from(&address, move || enter(&namespace))
    }
}

impl Drop for Fabric {
    #[allow(
        clippy::print_stderr,
        reason = "the test runner shows it with a failure"
    )]
    fn drop(&mut self) {
        for site in [KIOSK, SHOP, HUB] {
            if std::thread::panicking() {
                eprintln!("{}", self.log(site));
            }
            self.ups[site] = None;
            let _stopped = self.salp(site, &["down"]);
            self.nats[site] = None;
        }
        for name in self.sites.iter().chain([&self.switch]) {
            let _gone = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

#[test]
fn a_site_that_is_cut_off_goes_on_alone_and_comes_back() {
    let Some(fabric) = Fabric::start(&[]) else {
        return;
    };
    // The kiosk has no pods of its own: the shop, in the same region, answers for it.
    fabric.scale(KIOSK, 0);
    let (of_hub, of_shop) = (fabric.pod_names(HUB), fabric.pod_names(SHOP));
    let loads = [HUB, SHOP, KIOSK].map(|site| fabric.load(site));
    loads[HUB].settles("the hub's pods answer at the hub", by(&of_hub));
    loads[SHOP].settles("the shop's pods answer at the shop", by(&of_shop));
    loads[KIOSK].settles("the shop answers for the kiosk", by(&of_shop));
    let before = [HUB, SHOP].map(|site| fabric.identities(site));

    fabric.line(SHOP, "down");
    loads[KIOSK].settles("the hub answers for the kiosk", by(&of_hub));
    let seen = fabric.sees(KIOSK, SHOP, "Gone");
    assert!(
        seen["since"].as_str().is_some_and(|s| s.len() > 10),
        "{seen}"
    );
    let said = fabric.reachable(KIOSK, "False");
    assert!(
        said.contains("site shop can't be reached since 20"),
        "{said}"
    );

    // Alone it serves, takes writes and schedules; who asks after the others notices.
    fabric.ok(SHOP, &["create", "configmap", "written-while-cut-off"]);
    fabric.scale(SHOP, 2);
    fabric.rolled_out(SHOP);
    let listed = text(&fabric.salp(SHOP, &["ps", "--sites", "-A"]));
    assert!(listed.contains("is silent"), "{listed}");
    for other in [HUB, KIOSK] {
        fabric.sees(SHOP, other, "Gone");
    }
    let said = fabric.reachable(SHOP, "False");
    assert!(
        said.contains("site hub can't be reached since 20"),
        "{said}"
    );
    let of_shop = fabric.pod_names(SHOP);
    loads[SHOP].settles("the shop's pods answer at the shop", by(&of_shop));

    fabric.line(SHOP, "up");
    for (site, other) in [(KIOSK, SHOP), (HUB, SHOP), (SHOP, HUB), (SHOP, KIOSK)] {
        fabric.sees(site, other, "Alive");
    }
    for site in [SHOP, KIOSK] {
        fabric.reachable(site, "True");
    }
    loads[KIOSK].settles("the shop answers for the kiosk again", by(&of_shop));
    assert_eq!(fabric.identities(HUB), before[HUB], "nothing was recreated");
    let after = fabric.identities(SHOP);
    let kept = before[SHOP].iter().all(|pod| after.contains(pod));
    assert!(kept && after.len() == 2, "{before:?} {after:?}");
    fabric.ok(SHOP, &["get", "configmap", "written-while-cut-off"]);

    fabric.scale(KIOSK, 1);
    fabric.rolled_out(KIOSK);
    let of_kiosk = fabric.pod_names(KIOSK);
    loads[KIOSK].settles("traffic comes home", by(&of_kiosk));
    for load in loads {
        load.expect_no_failure();
    }
}

#[test]
fn no_request_fails_over_slow_lines_and_killed_servers() {
    let Some(mut fabric) = Fabric::lay(&["--lattice-listen", "off"]) else {
        return;
    };
    // The kiosk's leaf node has a thin line to the hub.
    let far = fabric.uplinks[KIOSK];
    let line = inside(&fabric.sites[KIOSK], move || {
        Line::lay(SocketAddr::from(([127, 0, 0, 1], LEAF_PORT)), far).expect("a line")
    });
    fabric.uplinks[KIOSK] = line.address();
    for site in [HUB, SHOP, KIOSK] {
        fabric.nats(site);
        fabric.up(site);
    }
    for site in [HUB, SHOP, KIOSK] {
        fabric.sees(site, (site + 1) % 3, "Alive");
        fabric.deploy(site);
    }
    fabric.scale(KIOSK, 0);
    let (of_hub, of_shop) = (fabric.pod_names(HUB), fabric.pod_names(SHOP));
    let load = fabric.load(KIOSK);
    load.settles("the shop answers for the kiosk", by(&of_shop));
    line.slow(Duration::from_millis(100), 64 * 1024);
    load.settles("the shop answers over a slow line", by(&of_shop));
    // Slow is not silent.
    for other in [HUB, SHOP] {
        fabric.sees(KIOSK, other, "Alive");
    }

    // Servers of NATS are killed, and come back empty.
    let before = [HUB, SHOP].map(|site| fabric.identities(site));
    for site in [HUB, KIOSK] {
        fabric.nats[site] = None;
        fabric.nats(site);
        load.settles("the shop answers again", by(&of_shop));
    }
    line.slow(Duration::from_millis(20), 1024 * 1024);

    // So is a control plane, and nothing notices but those who ask it.
    fabric.kill_up(SHOP);
    fabric.up(SHOP);
    fabric.sees(KIOSK, SHOP, "Alive");
    assert_eq!(
        fabric.identities(SHOP),
        before[SHOP],
        "nothing was recreated"
    );
    load.settles("the shop answers after its restart", by(&of_shop));

    // And a whole site: the other covers, until it is back.
    fabric.kill(SHOP);
    load.settles("the hub covers", by(&of_hub));
    fabric.up(SHOP);
    let of_shop = eventually("the shop's pod runs", || {
        let names = fabric.pod_names(SHOP);
        (names.len() == 1)
            .then_some(names)
            .ok_or("not yet".to_owned())
    });
    load.settles("the shop answers once it is back", by(&of_shop));
    assert_eq!(fabric.identities(HUB), before[HUB], "nothing was recreated");

    fabric.scale(KIOSK, 1);
    fabric.rolled_out(KIOSK);
    let of_kiosk = fabric.pod_names(KIOSK);
    load.settles("traffic comes home", by(&of_kiosk));
    load.expect_no_failure();
}
