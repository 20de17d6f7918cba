//! Several sites that meet over a real nats-server.

use crate::guests::misbehave;
use crate::harness::{Following, Registry, Site, eventually, get, kill, pid_of, repo_file, text};
use crate::nats::Nats;
use crate::serve::hello;
use serde_json::Value;
use std::sync::atomic::{AtomicBool, Ordering};

fn listed(site: &Site) -> Value {
    let out = site.salp(&["sites", "-o", "json"]);
    assert!(out.status.success(), "{}", text(&out));
    serde_json::from_slice(&out.stdout).expect("JSON")
}

/// Waits until a site lists another in a state; what it lists of it.
pub(crate) fn sees(site: &Site, other: &str, state: &str) -> Value {
    eventually(&format!("{other} is {state}"), || {
        let list = listed(site);
        let sites = list["sites"].as_array().expect("sites");
        match sites.iter().find(|s| s["name"] == other) {
            Some(seen) if seen["state"] == state => Ok(seen.clone()),
            seen => Err(format!("{seen:?}")),
        }
    })
}

pub(crate) fn hub(nats: &Nats, more: &[&str]) -> Site {
    let url = nats.url();
    let args = ["--lattice", &url, "--lattice-hub", "--site", "hub"];
    let site = Site::start_with(&[&args, more].concat());
    site.expects("NATS connection");
    site
}

/// What a site is started with that joins by a token of the hub.
pub(crate) fn joining(nats: &Nats, hub: &Site, name: &str) -> Vec<String> {
    let token = hub.salp(&["sites", "token", "--ttl", "10m"]);
    assert!(token.status.success(), "{}", text(&token));
    let token = String::from_utf8(token.stdout).expect("text");
    let (url, token) = (nats.url(), token.trim().to_owned());
    ["--lattice", &url, "--lattice-token", &token, "--site", name]
        .iter()
        .chain(&["--node-name", name])
        .map(|arg| (*arg).to_owned())
        .collect()
}

/// A site that joins by a token of the hub.
pub(crate) fn shop(nats: &Nats, hub: &Site, name: &str, more: &[&str]) -> Site {
    let args = joining(nats, hub, name);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let site = Site::start_with(&[&args, more].concat());
    site.expects("NATS connection");
    site
}

pub(crate) const EXPORT: &str =
    "apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {name: hello}\n";

/// The address of an import at a site, once it has one.
pub(crate) fn import_address(site: &Site) -> String {
    eventually("the import has an address", || {
        let out = site.kubectl(&["get", "serviceimport", "hello", "-o", "json"]);
        let import: Value = serde_json::from_slice(&out.stdout).map_err(|_| text(&out))?;
        let ip = import["spec"]["ips"][0].as_str().ok_or("no address")?;
        Ok(format!("{ip}:8080"))
    })
}

fn ip(address: &str) -> &str {
    address.split(':').next().expect("an address")
}

/// Waits until a request is answered as is wanted.
fn answers(address: &str, what: &str, accept: impl Fn(&str) -> bool) {
    answers_path(address, "/", what, accept);
}

fn answers_path(address: &str, path: &str, what: &str, accept: impl Fn(&str) -> bool) {
    eventually(what, || {
        let body = get(address, path)
            .map_err(|e| e.to_string())?
            .expect_code(200)?;
        if accept(&body) { Ok(()) } else { Err(body) }
    });
}

#[test]
fn sites_join_by_token_or_approval_and_are_listed() {
    let mut nats = Nats::start();
    let hub = hub(&nats, &[]);
    let shop = shop(&nats, &hub, "shop-1", &[]);
    let seen = sees(&hub, "shop-1", "Alive");
    assert!(
        seen["roundTripMs"].as_f64().is_some_and(|ms| ms > 0.0),
        "{seen}"
    );
    sees(&shop, "hub", "Alive");
    // What it is, told by itself.
    eventually("the shop tells of its node", || {
        let seen = sees(&hub, "shop-1", "Alive");
        (seen["nodes"] == 1).then_some(()).ok_or(seen.to_string())
    });

    let url = nats.url();
    let late = Site::start_with(&["--lattice", &url, "--site", "shop-2"]);
    late.expects("NATS connection");
    sees(&hub, "shop-2", "Pending");
    assert_eq!(listed(&late)["sites"].as_array().map(Vec::len), Some(1));
    let table = text(&hub.salp(&["sites", "-o", "wide"]));
    assert!(table.contains("it waits for approval"), "{table}");
    assert!(hub.salp(&["sites", "approve", "shop-2"]).status.success());
    sees(&late, "shop-1", "Alive");

    // Another site's pods, and what may not be asked.
    let nodes = hub.salp(&["sites", "get", "shop-1", "/api/v1/nodes"]);
    let nodes: Value = serde_json::from_slice(&nodes.stdout).expect("nodes");
    assert_eq!(nodes["items"][0]["metadata"]["name"], "shop-1");
    let secrets = hub.salp(&["sites", "get", "shop-1", "/api/v1/secrets"]);
    assert!(!secrets.status.success());
    assert!(text(&secrets).contains("may not ask"), "{}", text(&secrets));

    let logs = hub.salp(&["logs", "shop-1/default/none"]);
    assert!(
        text(&logs).contains("\"none\" not found"),
        "{}",
        text(&logs)
    );

    // A lost NATS is not a lost site; it comes back, empty.
    nats.kill();
    sees(&hub, "shop-1", "Gone");
    shop.ok(&["create", "configmap", "written-while-cut-off"]);
    nats.up();
    sees(&hub, "shop-1", "Alive");
    sees(&shop, "shop-2", "Alive");

    assert!(hub.salp(&["sites", "revoke", "shop-2"]).status.success());
    eventually("the revoked site is out", || {
        let list = listed(&shop);
        let known = list["sites"].as_array().expect("sites");
        let gone = known.iter().all(|s| s["name"] != "shop-2");
        gone.then_some(()).ok_or(list.to_string())
    });
    let refused = shop.salp(&["sites", "revoke", "hub"]);
    assert!(
        text(&refused).contains("not the lattice's hub"),
        "{}",
        text(&refused)
    );
}

/// Names of the hello pods at a site.
pub(crate) fn pods(site: &Site) -> Vec<String> {
    let list = site.json(&["get", "pods", "-l", "app=hello"]);
    let items = list["items"].as_array().expect("pods").clone();
    let names = items.iter().filter_map(|p| p["metadata"]["name"].as_str());
    names.map(str::to_owned).collect()
}

/// Whether an answer comes from one of these pods.
pub(crate) fn by(names: &[String]) -> impl Fn(&str) -> bool {
    let names = names.to_vec();
    move |body| names.iter().any(|n| body.contains(n.as_str()))
}

pub(crate) fn export(site: &Site) {
    eventually("the export is served", || {
        let out = site.apply_output(EXPORT, &[]);
        out.status.success().then_some(()).ok_or_else(|| text(&out))
    });
}

/// Deploys hello at a site and exports it.
pub(crate) fn deploy(site: &Site, image: &str) -> Vec<String> {
    site.apply(&hello(image, 1));
    site.ok(&["rollout", "status", "deployment/hello", "--timeout=90s"]);
    export(site);
    pods(site)
}

#[test]
fn a_service_is_answered_by_other_sites_while_its_own_pods_are_away() {
    let nats = Nats::start();
    let registry = Registry::start();
    let image = registry.push(&repo_file("examples/hello/hello.wasm"), "hello:1");
    let hub = hub(&nats, &[]);
    let (shop, kiosk) = (
        shop(&nats, &hub, "shop-1", &[]),
        shop(&nats, &hub, "kiosk", &[]),
    );
    let (of_hub, of_shop) = (deploy(&hub, &image), deploy(&shop, &image));
    let at_shop = import_address(&shop);
    answers(&at_shop, "the shop's own pod answers first", by(&of_shop));

    // A site that has none of it finds it by address and by name.
    let at_kiosk = import_address(&kiosk);
    let either = [of_hub.clone(), of_shop.clone()].concat();
    answers(&at_kiosk, "a site without pods is answered", by(&either));
    let asker = misbehave(&kiosk, &registry, "asker", "", "");
    let name = "hello.default.svc.clusterset.local";
    let said = get(&asker, &format!("/lookup?name={name}")).expect("answer");
    assert_eq!(said.expect_code(200), Ok(format!("{}\n", ip(&at_kiosk))));
    let fetch = format!("/fetch?url=http://{name}:8080/");
    answers_path(&asker, &fetch, "a guest is answered by name", by(&either));

    // Its pods go: the nearest other site covers; they return: traffic comes home.
    shop.ok(&["scale", "deployment/hello", "--replicas=0"]);
    answers(&at_shop, "the hub covers for it", by(&of_hub));
    for _ in 0..20 {
        let said = get(&at_shop, "/").expect("answer").expect_code(200);
        assert!(by(&of_hub)(&said.expect("200")));
    }
    let export = shop.json(&["get", "serviceexport", "hello"]);
    let conflict = export["status"]["conditions"].as_array();
    let agrees = |c: &Value| c["type"] == "Conflict" && c["status"] == "False";
    assert!(conflict.expect("conditions").iter().any(agrees), "{export}");
    shop.ok(&["scale", "deployment/hello", "--replicas=1"]);
    let again = eventually("the shop's pod is back", || {
        let names = pods(&shop);
        let one = (names.len() == 1).then_some(names);
        one.ok_or("not yet".to_owned())
    });
    answers(&at_shop, "traffic comes home", by(&again));

    // A site that is revoked keeps nothing of the others, nor they of it.
    assert!(hub.salp(&["sites", "revoke", "shop-1"]).status.success());
    kiosk.wait_for(
        &["get", "serviceimport", "hello"],
        "/status/clusters",
        |c| c.as_array().is_some_and(|c| c.len() == 1),
    );
    answers(&at_kiosk, "only the hub answers", by(&of_hub));
    shop.ok(&["scale", "deployment/hello", "--replicas=0"]);
    eventually("nobody covers for the revoked site", || {
        let said =
            get(&at_shop, "/").and_then(|a| a.expect_code(200).map_err(std::io::Error::other));
        said.map_or(Ok(()), Err)
    });

    // Nobody exports it any more: the import goes.
    hub.ok(&["delete", "serviceexport", "hello"]);
    eventually("the import is gone", || {
        let out = kiosk.kubectl(&["get", "serviceimport", "hello"]);
        (!out.status.success())
            .then_some(())
            .ok_or_else(|| text(&out))
    });
}

/// KEP-1645: a Service without address has its endpoints' addresses in all sites.
#[test]
fn a_headless_service_of_another_site_answers_at_its_true_port() {
    let nats = Nats::start();
    let registry = Registry::start();
    let image = registry.push(&repo_file("examples/hello/hello.wasm"), "hello:1");
    let hub = hub(&nats, &[]);
    let shop = shop(&nats, &hub, "shop-1", &[]);
    sees(&hub, "shop-1", "Alive");
    let named = "    spec:\n      hostname: one\n      subdomain: direct\n      containers:";
    let manifest = hello(&image, 1).replacen("    spec:\n      containers:", named, 1);
    assert!(manifest.contains("subdomain"), "{manifest}");
    hub.apply(&manifest);
    hub.ok(&["rollout", "status", "deployment/hello", "--timeout=90s"]);
    hub.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: direct}\nspec: {clusterIP: None, \
         selector: {app: hello}, ports: [{name: http, port: 80, targetPort: 8080}]}\n",
    );
    eventually("the export is served", || {
        let out = hub.apply_output(&EXPORT.replace("hello", "direct"), &[]);
        out.status.success().then_some(()).ok_or_else(|| text(&out))
    });
    let own = pods(&hub);
    let slices = [
        "get",
        "endpointslices",
        "-l",
        "multicluster.kubernetes.io/source-cluster=hub",
    ];
    let items = shop.wait_for(&slices, "/items", |items| {
        items[0]["endpoints"][0]["conditions"]["ready"] == true
    });
    let items = items["items"].as_array().expect("slices");
    assert_eq!(items.len(), 1, "{items:?}");
    assert_eq!(items[0]["ports"][0]["port"], 8080, "{items:?}");
    let address = items[0]["endpoints"][0]["addresses"][0].as_str();
    let address = address.expect("an address");
    answers(
        &format!("{address}:8080"),
        "the hub's pod answers",
        by(&own),
    );

    let asker = misbehave(&shop, &registry, "asker", "", "");
    for name in ["direct", "one.hub.direct"] {
        let name = format!("{name}.default.svc.clusterset.local");
        let said = get(&asker, &format!("/lookup?name={name}")).expect("answer");
        assert_eq!(said.expect_code(200), Ok(format!("{address}\n")));
        let fetch = format!("/fetch?url=http://{name}:8080/");
        answers_path(&asker, &fetch, "a guest is answered by name", by(&own));
    }
}

#[test]
fn pods_and_logs_of_all_sites_are_one_list() {
    let nats = Nats::start();
    let registry = Registry::start();
    let hub = hub(&nats, &[]);
    let mut shop = shop(&nats, &hub, "shop-1", &[]);
    sees(&hub, "shop-1", "Alive");
    let greeter = registry.push(&repo_file("examples/job/job.wasm"), "job:1");
    for (site, pod) in [(&hub, "at-hub"), (&shop, "at-shop")] {
        misbehave(site, &registry, pod, "", "");
    }
    shop.ok(&["run", "once", "--image", &greeter, "--restart=Never"]);
    shop.wait_for(&["get", "pod", "once"], "/status/phase", |p| {
        p == "Succeeded"
    });

    let list = text(&hub.salp(&["ps", "--sites", "-A"]));
    let row = |list: &str, pod: &str| -> Vec<String> {
        let line = list.lines().find(|l| l.contains(pod));
        let cells = line
            .unwrap_or_else(|| panic!("no {pod}: {list}"))
            .split_whitespace();
        cells.map(str::to_owned).collect()
    };
    assert_eq!(row(&list, "NAMESPACE")[..3], ["SITE", "NAMESPACE", "POD"]);
    assert_eq!(row(&list, "at-hub")[0], "hub");
    let at_shop = row(&list, "at-shop");
    assert_eq!(at_shop[..3], ["shop-1", "default", "at-shop"]);
    // What it uses is known as well.
    assert!(at_shop[9] != "-", "{list}");
    let one = hub.salp(&["ps", "--site", "shop-1", "-l", "app=at-shop", "-o", "json"]);
    let one: Value = serde_json::from_slice(&one.stdout).expect("JSON");
    assert_eq!(one.as_array().map(Vec::len), Some(1));
    assert_eq!(
        (&one[0]["site"], &one[0]["pod"]),
        (&"shop-1".into(), &"at-shop".into())
    );

    // The same selectors as at home, and what is wrong with one is told.
    let picked = |args: &[&str]| {
        let all = [&["ps", "--sites", "-A", "-o", "name"], args].concat();
        text(&hub.salp(&all))
    };
    assert_eq!(
        picked(&["--field-selector", "status.phase=Succeeded"]),
        "pod/once\n"
    );
    assert_eq!(picked(&["-l", "app in (at-hub)"]), "pod/at-hub\n");
    let wrong = picked(&["--field-selector", "spec.x=1"]);
    assert!(
        wrong.contains("field label not supported: spec.x"),
        "{wrong}"
    );
    let elsewhere = text(&hub.salp(&["ps", "--sites", "-n", "kube-system", "-o", "yaml"]));
    assert_eq!(elsewhere.trim(), "[]");

    // A log as it was, and one that goes on.
    let there = shop.ok(&["logs", "once"]);
    assert!(!there.is_empty());
    assert_eq!(text(&hub.salp(&["logs", "shop-1/default/once"])), there);
    let at_shop = &shop.json(&["get", "pod", "at-shop"])["status"]["podIP"];
    let at_shop = format!("{}:8080", at_shop.as_str().expect("IP"));
    let following = Following::start(hub.salp_command(&["logs", "-f", "shop-1/default/at-shop"]));
    for n in 0..3 {
        get(&at_shop, &format!("/log?text=line-{n}")).expect("answer");
        following.wait_for(|line| line.contains(&format!("line-{n}")));
    }
    drop(following);

    // A site that is away is named, and keeps nobody waiting.
    shop.signal("-INT");
    sees(&hub, "shop-1", "Left");
    let list = text(&hub.salp(&["ps", "--sites", "-A"]));
    assert_eq!(row(&list, "at-hub")[0], "hub");
    assert!(
        list.contains("site shop-1 is silent: it is left since"),
        "{list}"
    );
    let none = text(&hub.salp(&["ps", "--site", "nobody"]));
    assert!(none.contains("no member has this name"), "{none}");
}

/// Who comes later is told by those that were there, and who was away remembers.
#[test]
fn a_site_that_died_before_another_came_is_known_to_it() {
    let nats = Nats::start();
    let registry = Registry::start();
    let mut hub = hub(&nats, &[]);
    let mut shop = shop(&nats, &hub, "shop-1", &[]);
    misbehave(&shop, &registry, "at-shop", "", "");
    eventually("the hub knows of its pod", || {
        let seen = sees(&hub, "shop-1", "Alive");
        let pods = seen["pods"].as_u64();
        (pods == Some(1)).then_some(()).ok_or(seen.to_string())
    });
    let pid = pid_of(&shop.dir, "dataplane");
    shop.signal("-KILL");
    kill(&pid);
    let died = sees(&hub, "shop-1", "Gone");
    let since = |seen: &Value| -> jiff::Timestamp {
        let text = seen["since"].as_str().expect("a time");
        text.parse().expect("a time")
    };
    let knows = |site: &Site, who: &str| {
        let seen = eventually(&format!("{who} knows when and what"), || {
            let seen = sees(site, "shop-1", "Gone");
            let differs = since(&seen).as_second() - since(&died).as_second();
            let same = differs.abs() <= 2 && seen["pods"] == 1 && seen["nodes"] == 1;
            same.then_some(seen.clone())
                .ok_or(format!("{seen}, not {died}"))
        });
        let silent = text(&site.salp(&["ps", "--sites", "-A"]));
        assert!(
            silent.contains("site shop-1 is silent: it is gone since"),
            "{silent}"
        );
        assert!(silent.contains("and had 1 pod then"), "{silent}");
        seen
    };
    let kiosk = crate::sites::shop(&nats, &hub, "kiosk", &[]);
    knows(&kiosk, "a site that has come since");
    let turn = hub.between_stop_and_start();
    hub.signal("-INT");
    let url = nats.url();
    hub.up(&["--lattice", &url, "--lattice-hub", "--site", "hub"]);
    drop(turn);
    knows(&hub, "a hub that has started again");
}

#[test]
fn a_site_says_how_much_it_answers() {
    let nats = Nats::start();
    let registry = Registry::start();
    let hub = hub(&nats, &[]);
    let mute = shop(&nats, &hub, "mute", &["--lattice-answers", "off"]);
    let mut shy = shop(&nats, &hub, "shy", &["--lattice-answers", "shown"]);
    shy.ok(&["create", "namespace", "shown"]);
    let image = registry.push(&repo_file("examples/hello/hello.wasm"), "hello:1");
    for (site, name, namespace) in [
        (&mute, "of-mute", "default"),
        (&shy, "hidden", "default"),
        (&shy, "seen", "shown"),
        (&hub, "of-hub", "default"),
    ] {
        site.ok(&["run", name, "--image", &image, "-n", namespace]);
        site.ok(&[
            "wait",
            "--for=condition=Ready",
            "pod",
            name,
            "-n",
            namespace,
            "--timeout=60s",
        ]);
    }
    for site in ["mute", "shy"] {
        sees(&hub, site, "Alive");
    }
    let list = text(&hub.salp(&["ps", "--sites", "-A"]));
    for (part, shown) in [
        ("of-hub", true),
        ("seen", true),
        ("hidden", false),
        ("of-mute", false),
        ("site mute: does not answer questions", true),
    ] {
        assert_eq!(list.contains(part), shown, "{part}: {list}");
    }
    let elsewhere = text(&hub.salp(&["ps", "--site", "shy", "-n", "default"]));
    let only = "site shy: answers only about namespace shown";
    assert!(elsewhere.contains(only), "{elsewhere}");
    for pod in ["mute/default/of-mute", "shy/default/hidden"] {
        let logs = hub.salp(&["logs", pod]);
        assert!(!logs.status.success());
        assert!(text(&logs).contains("answer"), "{}", text(&logs));
    }
    // Its owner sees all of it.
    let own = text(&shy.salp(&["ps", "--sites", "-A"]));
    for part in ["of-hub", "seen", "hidden"] {
        assert!(own.contains(part), "{part}: {own}");
    }

    // Who answers has rights like anybody else, and the owner may take them away.
    let rights = r#"[{"op": "replace", "path": "/rules", "value": []}]"#;
    let role = [
        "patch",
        "clusterrole",
        "system:salp-fleet",
        "--type=json",
        "-p",
        rights,
    ];
    shy.ok(&role);
    eventually("the rights are gone", || {
        let list = text(&hub.salp(&["ps", "--site", "shy", "-n", "shown"]));
        let refused = list.contains("site shy: does not answer questions about pods");
        refused.then_some(()).ok_or(list)
    });

    // The site is there without its API server, which can't be asked.
    shy.signal("-KILL");
    let list = text(&hub.salp(&["ps", "--site", "shy", "-A"]));
    let down = "site shy is silent: its control plane is down";
    assert!(list.contains(down), "{list}");
}

#[test]
fn what_sleeps_is_woken_from_another_site() {
    let nats = Nats::start();
    let registry = Registry::start();
    let image = registry.push(&repo_file("examples/hello/hello.wasm"), "hello:1");
    let hub = hub(&nats, &[]);
    let shop = shop(&nats, &hub, "shop-1", &[]);
    let sleepy = "  name: hello\n  annotations:\n    salp.dev/scale-to-zero: 1s\n  labels:";
    hub.apply(&hello(&image, 1).replacen("  name: hello\n  labels:", sleepy, 1));
    export(&hub);
    let asleep = || {
        hub.wait_for(
            &["get", "deployment", "hello"],
            "/metadata/annotations",
            |a| a["salp.dev/asleep-on"].is_string(),
        );
        let gone = |items: &Value| items.as_array().is_some_and(Vec::is_empty);
        hub.wait_for(&["get", "pods", "-l", "app=hello"], "/items", gone);
    };
    let woken = |address: &str| {
        let said = get(address, "/").expect("answer").expect_code(200);
        assert!(
            said.as_ref().is_ok_and(|s| s.contains("Hello from hello-")),
            "{said:?}"
        );
    };
    let (at_hub, at_shop) = (import_address(&hub), import_address(&shop));
    for address in [&at_shop, &at_hub] {
        asleep();
        answers(address, "it is known to answer", |said| {
            said.contains("Hello")
        });
        asleep();
        woken(address);
    }
    // While it is asked by the address of all sites it does not sleep.
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                woken(&at_hub);
            }
        });
        let awake = eventually("the API has followed", || {
            let awake = pods(&hub);
            (!awake.is_empty()).then_some(awake).ok_or("no pod".into())
        });
        // Longer than it takes to be idle.
        let until = std::time::Instant::now() + std::time::Duration::from_secs(4);
        let mut later = pods(&hub);
        while later == awake && std::time::Instant::now() < until {
            later = pods(&hub);
        }
        stop.store(true, Ordering::Relaxed);
        asking.join().expect("each was answered");
        assert_eq!(later, awake);
    });
}
