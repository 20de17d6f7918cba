//! Requests a second of the API server by kind, and events of watches.

use crate::harness::Site;
use crate::{LOAD_SECONDS, client, figure, request, runtime, site_pss_mib};
use futures::AsyncBufReadExt as _;
use serde_json::{Map, Value, json};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Creates, gets, lists, updates, patches, deletes and watches of ConfigMaps of 1 KiB over HTTPS
/// by 1, 8 and 32 clients, each with one connection that is there before the time counts. The
/// clients read their answers and do not parse them: they share the processors with the server.
pub(super) fn run(figures: &mut Map<String, Value>) {
    let (site, rt) = (Site::start(), runtime());
    let (idle, _) = site_pss_mib(&site);
    figure(figures, "API, PSS of the control plane before", idle, "MiB");
    let object = |n: usize, turn: usize| {
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("load-{n}")},
            "data": {"text": "x".repeat(1024), "turn": turn.to_string()},
        });
        serde_json::to_vec(&object).expect("JSON")
    };
    let body = |n: usize| object(n, 0);
    for count in [1usize, 8, 32] {
        let namespace = format!("load-{count}");
        site.ok(&["create", "namespace", &namespace]);
        let path = format!("/api/v1/namespaces/{namespace}/configmaps");
        let clients = rt.block_on(connected(&site, count));
        let mut tell = |what: &str, value: f64| {
            figure(
                figures,
                &format!("API, {count} clients: {what}"),
                value,
                "1/s",
            );
        };
        let one = |n: usize| format!("{path}/load-{n}");
        let (made, rate) = load(&rt, &clients, usize::MAX, &|n| {
            ("POST", path.clone(), body(n))
        });
        assert!(made >= 1_000, "only {made} objects to list");
        tell("creates", rate);
        let any = |call: &Call<'_>| load(&rt, &clients, usize::MAX, call).1;
        tell("gets", any(&|n| ("GET", one(n % made), Vec::new())));
        tell(
            "lists of 1000",
            any(&|_| ("GET", format!("{path}?limit=1000"), Vec::new())),
        );
        tell(
            "updates",
            any(&|n| ("PUT", one(n % made), object(n % made, n + 1))),
        );
        tell(
            "patches",
            any(&|n| {
                let patch = json!({"metadata": {"labels": {"turn": n.to_string()}}});
                ("PATCH", one(n % made), patch.to_string().into_bytes())
            }),
        );
        tell(
            "deletes",
            load(&rt, &clients, made, &|n| ("DELETE", one(n), Vec::new())).1,
        );
        tell("watch events", watched(&rt, &site, count, &body));
        let (control, _) = site_pss_mib(&site);
        figure(
            figures,
            &format!("API, {count} clients: PSS of the control plane after"),
            control,
            "MiB",
        );
    }
}

/// The method, path and body of a load's n-th request.
type Call<'a> = dyn Fn(usize) -> (&'static str, String, Vec<u8>) + Sync + 'a;

/// Clients whose connections stand.
async fn connected(site: &Site, count: usize) -> Vec<kube::Client> {
    let mut clients = Vec::new();
    for _ in 0..count {
        let client = client(site).await;
        let ask = http::Request::get("/readyz").body(Vec::new());
        let answer = client.request_text(ask.expect("request")).await;
        assert_eq!(answer.expect("readyz"), "ok");
        clients.push(client);
    }
    clients
}

/// All clients send requests one after another, for [`LOAD_SECONDS`] or until there were `limit`:
/// how many there were, and how many a second.
fn load(
    rt: &tokio::runtime::Runtime,
    clients: &[kube::Client],
    limit: usize,
    call: &Call<'_>,
) -> (usize, f64) {
    let (next, began) = (AtomicUsize::new(0), Instant::now());
    let until = began + Duration::from_secs(u64::from(LOAD_SECONDS));
    let work = clients.iter().map(|client| {
        let next = &next;
        async move {
            let mut done = 0;
            while Instant::now() < until {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= limit {
                    break;
                }
                let (method, path, body) = call(n);
                let request = http::Request::builder()
                    .method(method)
                    .uri(path)
                    .header("content-type", content_type(method))
                    .header("accept", "application/json")
                    .body(body)
                    .expect("request");
                let answer = client.request_stream(request).await.expect("answer");
                let read = futures::io::copy(answer, &mut futures::io::sink()).await;
                assert!(read.expect("body") > 0, "an empty answer");
                done += 1;
            }
            done
        }
    });
    let done: usize = rt.block_on(futures::future::join_all(work)).iter().sum();
    (done, done as f64 / began.elapsed().as_secs_f64())
}

fn content_type(method: &str) -> &'static str {
    match method {
        "PATCH" => "application/merge-patch+json",
        _ => "application/json",
    }
}

/// So many clients watch a namespace while 8 others create objects of 1 KiB in it: events a
/// second that reach the watchers, of all together, until each has seen every object.
fn watched(
    rt: &tokio::runtime::Runtime,
    site: &Site,
    watchers: usize,
    body: &(dyn Fn(usize) -> Vec<u8> + Sync),
) -> f64 {
    const OBJECTS: usize = 2_000;
    const WRITERS: usize = 8;
    let namespace = format!("watched-{watchers}");
    site.ok(&["create", "namespace", &namespace]);
    let path = format!("/api/v1/namespaces/{namespace}/configmaps");
    rt.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        let start = std::sync::Arc::new(tokio::sync::Barrier::new(watchers + 1));
        for _ in 0..watchers {
            let (client, start) = (client(site).await, start.clone());
            let ask = http::Request::get(format!(
                "{path}?watch=1&fieldSelector=metadata.name%21%3Dkube-root-ca.crt"
            ))
            .body(Vec::new())
            .expect("request");
            tasks.spawn(async move {
                let mut events = pin!(client.request_stream(ask).await.expect("watch"));
                start.wait().await;
                let mut seen = 0;
                while seen < OBJECTS {
                    let chunk = events.fill_buf().await.expect("events");
                    assert!(!chunk.is_empty(), "the watch ended after {seen} events");
                    seen += chunk.iter().filter(|byte| **byte == b'\n').count();
                    let length = chunk.len();
                    events.consume_unpin(length);
                }
            });
        }
        start.wait().await;
        let began = Instant::now();
        let bodies: Vec<_> = (0..OBJECTS).map(body).collect();
        for share in bodies.chunks(OBJECTS.div_ceil(WRITERS)) {
            let (share, client, path) = (share.to_vec(), client(site).await, path.clone());
            tasks.spawn(async move {
                for body in share {
                    request(&client, "POST", &path, body).await.expect("create");
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.expect("task");
        }
        (OBJECTS * watchers) as f64 / began.elapsed().as_secs_f64()
    })
}
