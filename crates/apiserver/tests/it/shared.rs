//! Several API servers over one store.

use super::SERVICES;
use anyhow::Result;
use apiserver::{Config, Shared};
use futures::future::join_all;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;
use testkit::TestApi;

const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";

/// How a server is told that it is one of several.
fn named(name: &'static str) -> impl FnOnce(&mut Config) {
    move |config| {
        config.shared = Some(Shared {
            name: name.to_owned(),
            lease: Duration::from_secs(1),
        });
        config.node_ports = (30_000, 30_009);
    }
}

async fn two() -> Result<(TestApi, TestApi)> {
    let a = TestApi::start_with(named("a")).await?;
    let b = a.beside(named("b")).await?;
    Ok((a, b))
}

fn service(name: &str, spec: &Value) -> Value {
    let mut service = json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        service["spec"][key] = value.clone();
    }
    service
}

/// Asks until it is so; the last answer otherwise.
async fn eventually(api: &TestApi, path: &str, accept: impl Fn(&Value) -> bool) -> Result<()> {
    let mut last = Value::Null;
    for _ in 0..200 {
        last = api.call("GET", path, None).await?.json;
        if accept(&last) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    anyhow::bail!("not so within ten seconds: {last}")
}

/// In process only: two servers share one store handle; `salp` has its own tests of several.
#[tokio::test(flavor = "multi_thread")]
async fn no_address_and_no_port_is_given_twice() -> Result<()> {
    let (a, b) = two().await?;
    let make = |n: usize, spec: Value| {
        let api = if n.is_multiple_of(2) { &a } else { &b };
        async move {
            let service = service(&format!("s{n}"), &spec);
            api.call("POST", SERVICES, Some(&service)).await
        }
    };
    let made = join_all((0..20).map(|n| make(n, json!({"type": "NodePort"})))).await;
    let made = made.into_iter().collect::<Result<Vec<_>>>()?;
    let (good, bad): (Vec<_>, Vec<_>) = made.iter().partition(|answer| answer.code == 201);
    let full = |text: &str| text.contains("failed to allocate a nodePort: range is full");
    assert!(bad.iter().all(|answer| full(&answer.text)), "{bad:?}");
    let of = |path: &str| -> BTreeSet<String> {
        let each = good.iter().filter_map(|answer| answer.json.pointer(path));
        each.map(Value::to_string).collect()
    };
    assert_eq!(of("/spec/ports/0/nodePort").len(), 10, "{good:?}");
    assert_eq!(of("/spec/clusterIP").len(), 10, "{good:?}");
    assert_eq!(good.len(), 10);

    // One address for many: one has it.
    let ip = json!({"clusterIP": "10.43.7.7"});
    let asked = join_all((100..108).map(|n| make(n, ip.clone()))).await;
    let asked = asked.into_iter().collect::<Result<Vec<_>>>()?;
    let got = asked.iter().filter(|answer| answer.code == 201).count();
    assert_eq!(got, 1, "{asked:?}");
    let own = make(200, json!({"clusterIP": "10.43.0.1"})).await?;
    assert_eq!(own.code, 422, "{}", own.text);

    // What one server gives back another gives away.
    let name = good[0].json["metadata"]["name"]
        .as_str()
        .unwrap_or_default();
    let port = &good[0].json["spec"]["ports"][0]["nodePort"];
    a.call("DELETE", &format!("{SERVICES}/{name}"), None)
        .await?;
    let stated = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]});
    let again = make(301, stated.clone()).await?;
    assert_eq!(again.code, 201, "{}", again.text);
    // And what an update gives back.
    let patch = json!({"spec": {"type": "ClusterIP"}})
        .to_string()
        .into_bytes();
    let merge = [("content-type", "application/merge-patch+json")];
    let path = format!("{SERVICES}/s301");
    let changed = b.send("PATCH", &path, &merge, patch).await?;
    assert_eq!(changed.code, 200, "{}", changed.text);
    let again = make(302, stated.clone()).await?;
    assert_eq!(again.code, 201, "{}", again.text);
    a.call("DELETE", &format!("{SERVICES}/s302"), None).await?;
    // What is refused, and what is only tried, keeps nothing for long.
    let dry = format!("{SERVICES}?dryRun=All");
    let tried = a.call("POST", &dry, Some(&service("dry", &stated))).await?;
    assert_eq!(tried.code, 201, "{}", tried.text);
    let mut wrong = stated.clone();
    wrong["ports"][0]["port"] = 0.into();
    let refused = a
        .call("POST", SERVICES, Some(&service("no", &wrong)))
        .await?;
    assert_eq!(refused.code, 422, "{}", refused.text);
    let mut code = 0;
    for _ in 0..200 {
        code = make(303, stated.clone()).await?.code;
        if code == 201 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(code, 201);
    b.leave().await?;
    a.close().await
}

/// In process only: two servers share one store handle; `salp` has its own tests of several.
#[tokio::test(flavor = "multi_thread")]
async fn clients_are_told_of_the_servers_that_live() -> Result<()> {
    let (a, b) = two().await?;
    let port = |api: &TestApi| anyhow::Ok(api.server()?.addresses()[0].port());
    let (port_a, port_b) = (port(&a)?, port(&b)?);
    let ports = |list: &Value| -> BTreeSet<u64> {
        let slices = list["items"].as_array().into_iter().flatten();
        slices
            .filter_map(|s| s["ports"][0]["port"].as_u64())
            .collect()
    };
    let both = BTreeSet::from([port_a, port_b].map(u64::from));
    eventually(&b, SLICES, |list| ports(list) == both).await?;
    let leases = a.call("GET", LEASES, None).await?.json;
    let names: Vec<_> = leases["items"].as_array().into_iter().flatten().collect();
    let names: Vec<_> = names.iter().map(|l| &l["metadata"]["name"]).collect();
    assert_eq!(names, ["apiserver-a", "apiserver-b"]);

    // One that was there and says nothing any more.
    let dead = json!({
        "metadata": {"name": "apiserver-c",
            "labels": {"apiserver.kubernetes.io/identity": "kube-apiserver"},
            "annotations": {"salp.dev/address": "127.0.0.1:1"}},
        "spec": {"holderIdentity": "c_1"},
    });
    let made = b.call("POST", LEASES, Some(&dead)).await?;
    assert_eq!(made.code, 201, "{}", made.text);
    eventually(&a, SLICES, |list| ports(list).contains(&1)).await?;
    eventually(&a, SLICES, |list| ports(list) == both).await?;
    let gone = format!("{LEASES}/apiserver-c");
    eventually(&a, &gone, |lease| lease["code"] == 404).await?;

    // The one that has the duty goes, and says so.
    a.leave().await?;
    let left = BTreeSet::from([u64::from(port_b)]);
    let told = b.call("GET", SLICES, None).await?.json;
    assert_eq!(ports(&told), left, "{told}");
    let info = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
    let named = format!("https://127.0.0.1:{port_b}");
    eventually(&b, info, |map| map.to_string().contains(&named)).await?;
    b.leave().await?;
    a.close().await
}

/// In process only: two servers share one store handle; `salp` has its own tests of several.
#[tokio::test]
async fn a_second_server_of_a_name_is_refused() -> Result<()> {
    let a = TestApi::start_with(named("a")).await?;
    let refused = a.beside(named("a")).await.err().map(|e| e.to_string());
    let refused = refused.unwrap_or_default();
    assert!(
        refused.contains("an API server named a runs at 127.0.0.1:"),
        "{refused}"
    );
    a.close().await
}

/// In process only: two servers share one store handle; `salp` has its own tests of several.
#[tokio::test(flavor = "multi_thread")]
async fn what_one_server_was_told_the_other_knows() -> Result<()> {
    let (a, b) = two().await?;
    for n in 0..20 {
        let (one, other) = if n % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let namespace = json!({"metadata": {"name": format!("n{n}")}});
        let made = one
            .call("POST", "/api/v1/namespaces", Some(&namespace))
            .await?;
        assert_eq!(made.code, 201, "{}", made.text);
        let maps = format!("/api/v1/namespaces/n{n}/configmaps");
        let map = json!({"metadata": {"name": "m"}});
        let made = other.call("POST", &maps, Some(&map)).await?;
        assert_eq!(made.code, 201, "{}", made.text);
        let read = one.call("GET", &format!("{maps}/m"), None).await?;
        assert_eq!(read.json, made.json);
    }
    b.leave().await?;
    a.close().await
}
