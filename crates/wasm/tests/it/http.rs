//! Guests that answer requests.

use crate::host::{Host, Log, spec};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::coop;
use wasm::{
    EgressRules, Guest, GuestBody, GuestSpec, HttpError, HttpGuest, HttpOptions, MemoryExceeded,
    MemoryMeter,
};

/// The example of the repository: answers `Hello from $POD_NAME`.
const HELLO: &[u8] = include_bytes!("../../../../examples/hello/hello.wasm");

async fn http(host: &Host, wasm: &[u8], spec: GuestSpec) -> HttpGuest {
    match host.guest(wasm, spec).await {
        Guest::Http(http) => http,
        Guest::Command(_) => panic!("a command"),
    }
}

fn get(path: &str) -> Request<Empty<Bytes>> {
    Request::get(path)
        .header("host", "hello.example")
        .body(Empty::new())
        .unwrap()
}

async fn text(response: Response<GuestBody>) -> String {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

#[tokio::test]
async fn hello() {
    let host = Host::new();
    let log = Log::default();
    let guest = http(
        &host,
        HELLO,
        GuestSpec {
            env: vec![("POD_NAME".into(), "hello-1".into())],
            ..spec(&log)
        },
    )
    .await;
    let response = guest.handle(get("/")).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(text(response).await, "Hello from hello-1\n");
    let response = guest.handle(get("/nowhere")).await.unwrap();
    assert_eq!(response.status(), 404);
    drop(response);
    guest.stop().await;
    assert_eq!(
        (guest.requests(), guest.in_flight(), guest.instances()),
        (2, 0, 0)
    );
    assert_eq!(log.text(), "");
}

/// Tokio's channels and timers tell a task "later" that has done much since it was last given a
/// turn, whatever they hold.
#[tokio::test]
async fn an_answer_is_found_by_a_task_that_has_used_up_its_turn() {
    let host = Host::new();
    let guest = http(&host, HELLO, spec(&Log::default())).await;
    // A turn is 128 steps: one of these ends just when the guest does.
    for used in 0..=128 {
        let mut answer = pin!(guest.handle(get("/nowhere")));
        let mut to_use = used;
        let answer = poll_fn(|cx| {
            for _ in 0..std::mem::take(&mut to_use) {
                let _used = pin!(coop::consume_budget()).poll(cx);
            }
            answer.as_mut().poll(cx)
        });
        // A turn of its own.
        tokio::task::yield_now().await;
        assert_eq!(answer.await.unwrap().status(), 404, "{used} used");
    }
}

/// Behaves as its path says; source in `tests/guest`.
const TRIALS: &[u8] = include_bytes!("../fixtures/trials.wasm");

async fn ask(guest: &HttpGuest, path: &str) -> Result<String, HttpError> {
    Ok(text(guest.handle(get(path)).await?).await)
}

fn reused(log: &Log, requests: u32) -> GuestSpec {
    GuestSpec {
        http: HttpOptions {
            requests_per_instance: Some(requests),
            ..HttpOptions::default()
        },
        ..spec(log)
    }
}

#[tokio::test]
async fn an_instance_serves_as_many_requests_as_it_may() {
    let host = Host::new();
    let log = Log::default();
    let fresh = http(&host, TRIALS, spec(&log)).await;
    let twice = http(&host, TRIALS, reused(&log, 2)).await;
    for _ in 0..2 {
        assert_eq!(ask(&fresh, "/count").await.unwrap(), "1");
        assert_eq!(fresh.instances(), 0);
        assert_eq!(ask(&twice, "/count").await.unwrap(), "1");
        assert_eq!(twice.instances(), 1);
        assert_eq!(ask(&twice, "/count").await.unwrap(), "2");
        assert_eq!(twice.instances(), 0);
    }
}

/// An instance that is as old as it may get finishes its request, and another takes over.
#[tokio::test]
async fn an_old_instance_is_replaced() {
    let host = Host::new();
    let log = Log::default();
    let aged = |lifetime| {
        let mut spec = reused(&log, 1000);
        spec.http.lifetime = Some(lifetime);
        spec
    };
    let young = http(&host, TRIALS, aged(Duration::from_secs(3600))).await;
    let old = http(&host, TRIALS, aged(Duration::ZERO)).await;
    for count in ["1", "2", "3"] {
        assert_eq!(ask(&young, "/count").await.unwrap(), count);
        assert_eq!(ask(&old, "/count").await.unwrap(), "1");
    }
    assert_eq!((young.instances(), old.instances()), (1, 0));
}

#[tokio::test]
async fn an_unused_instance_ends() {
    let host = Host::new();
    let log = Log::default();
    let mut spec = reused(&log, 10);
    spec.http.idle = Duration::from_millis(1);
    let guest = http(&host, TRIALS, spec).await;
    ask(&guest, "/count").await.unwrap();
    while guest.instances() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(ask(&guest, "/count").await.unwrap(), "1");
}

/// Each request takes the only idle instance and gives it back: that must not cost a task each.
#[tokio::test]
async fn one_task_watches_all_idle_instances() {
    let host = Host::new();
    let guest = http(&host, TRIALS, reused(&Log::default(), 1000)).await;
    for served in 1..=50 {
        assert_eq!(ask(&guest, "/count").await.unwrap(), served.to_string());
    }
    let tasks = tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks();
    assert_eq!((guest.instances(), tasks), (1, 1));
}

#[tokio::test]
async fn a_trap_fails_its_request_alone() {
    let host = Host::new();
    let log = Log::default();
    let guest = http(&host, TRIALS, reused(&log, 10)).await;
    assert_eq!(ask(&guest, "/count").await.unwrap(), "1");
    let error = guest.handle(get("/trap")).await.unwrap_err();
    assert!(matches!(error, HttpError::Trap(_)), "{error}");
    assert!(
        log.text()
            .contains("guest trapped: wasm trap: wasm `unreachable`"),
        "{}",
        log.text()
    );
    assert_eq!(
        ask(&guest, "/count").await.unwrap(),
        "1",
        "a trapped instance is not used again"
    );
    let error = guest.handle(get("/silent")).await.unwrap_err();
    assert!(matches!(error, HttpError::NoResponse(_)), "{error}");
}

#[tokio::test]
async fn a_response_whose_guest_traps_is_cut_off() {
    let host = Host::new();
    let guest = http(&host, TRIALS, spec(&Log::default())).await;
    let response = guest.handle(get("/trap-late")).await.unwrap();
    assert_eq!(response.status(), 200);
    let error = response.into_body().collect().await.unwrap_err();
    assert!(error.to_string().starts_with("guest trapped"), "{error}");
}

/// 1 MiB in pieces, sent while it is answered: more than any buffer between holds.
#[tokio::test]
async fn a_body_streams_through() {
    let host = Host::new();
    let guest = http(&host, TRIALS, spec(&Log::default())).await;
    let pieces: Vec<Bytes> = (0..1024u32)
        .map(|n| Bytes::from(vec![u8::try_from(n % 251).unwrap(); 1024]))
        .collect();
    let frames = futures::stream::iter(
        pieces
            .clone()
            .into_iter()
            .map(|piece| Ok::<_, std::convert::Infallible>(http_body::Frame::data(piece))),
    );
    let request = Request::post("/echo")
        .header("host", "x")
        .body(http_body_util::StreamBody::new(frames))
        .unwrap();
    let response = guest.handle(request).await.unwrap();
    let echoed = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(echoed, pieces.concat());
}

#[tokio::test]
async fn out_of_memory_is_told_and_others_are_spared() {
    let host = Host::new();
    let log = Log::default();
    let limit_bytes = 8 << 20;
    let guest = http(
        &host,
        TRIALS,
        GuestSpec {
            memory: Arc::new(MemoryMeter::new(Some(limit_bytes), None)),
            ..spec(&log)
        },
    )
    .await;
    let other = http(&host, TRIALS, spec(&log)).await;
    assert_eq!(ask(&guest, "/eat?4").await.unwrap(), "ate 4194304");
    assert!(!guest.out_of_memory().is_cancelled());
    let error = guest.handle(get("/eat?9")).await.unwrap_err();
    assert_eq!(
        error,
        HttpError::OutOfMemory(MemoryExceeded { limit_bytes })
    );
    assert!(guest.out_of_memory().is_cancelled());
    assert_eq!(ask(&other, "/eat?9").await.unwrap(), "ate 9437184");
    assert!(!other.out_of_memory().is_cancelled());
}

/// Each takes more than a third of the limit: they take turns instead of dying.
#[tokio::test]
async fn requests_wait_for_memory_that_others_hold() {
    let host = Host::new();
    let memory = Arc::new(MemoryMeter::new(Some(12 << 20), None));
    let guest = http(
        &host,
        TRIALS,
        GuestSpec {
            memory,
            ..spec(&Log::default())
        },
    )
    .await;
    ask(&guest, "/eat?4").await.unwrap();
    let answers = futures::future::join_all((0..12).map(|_| ask(&guest, "/eat?4"))).await;
    for answer in answers {
        assert_eq!(answer.unwrap(), "ate 4194304");
    }
}

#[tokio::test]
async fn a_guest_that_never_answers_times_out_and_ends() {
    let host = Host::new();
    let log = Log::default();
    let mut spec = spec(&log);
    spec.http.timeout = Duration::from_millis(40);
    let guest = http(&host, TRIALS, spec).await;
    let (spun, answered) = tokio::join!(ask(&guest, "/spin"), ask(&guest, "/env?A"));
    assert_eq!(
        spun.unwrap_err(),
        HttpError::Timeout(Duration::from_millis(40))
    );
    assert_eq!(answered.unwrap(), "");
    assert_eq!((guest.instances(), guest.in_flight()), (0, 0));
}

#[tokio::test]
async fn what_a_caller_leaves_is_finished_unless_the_guest_is_stopped() {
    let host = Host::new();
    let log = Log::default();
    let guest = http(&host, TRIALS, spec(&log)).await;
    let left = tokio::time::timeout(Duration::from_millis(20), ask(&guest, "/slow?60")).await;
    assert!(left.is_err());
    assert_eq!(guest.in_flight(), 1);
    while guest.in_flight() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(log.text(), "", "it ended well");
    let left = tokio::time::timeout(Duration::from_millis(20), ask(&guest, "/spin")).await;
    assert!(left.is_err());
    assert_eq!(guest.in_flight(), 1);
    guest.stop().await;
    assert_eq!(guest.in_flight(), 0);
    assert_eq!(ask(&guest, "/count").await.unwrap_err(), HttpError::Stopped);
}

#[tokio::test]
async fn output_goes_to_the_log_and_egress_has_rules() {
    let host = Host::new();
    let log = Log::default();
    let guest = http(
        &host,
        TRIALS,
        GuestSpec {
            egress: EgressRules::only(&["allowed.example"]).unwrap(),
            ..spec(&log)
        },
    )
    .await;
    assert_eq!(ask(&guest, "/log?line").await.unwrap(), "logged");
    assert_eq!(log.text(), "line\n");
    let denied = ask(&guest, "/fetch?elsewhere.example/x").await.unwrap();
    assert!(denied.contains("HttpRequestDenied"), "{denied}");
}

/// The same for WASI 0.3; source in `tests/guest03`.
const TRIALS_03: &[u8] = include_bytes!("../fixtures/trials03.wasm");

#[tokio::test]
async fn a_03_instance_serves_many_requests_several_at_a_time() {
    let host = Host::new();
    let log = Log::default();
    let guest = http(&host, TRIALS_03, spec(&log)).await;
    // The slow ones see that others were served meanwhile, by the same instance.
    let slow = ask(&guest, "/slow?200");
    let quick = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        (ask(&guest, "/count").await, ask(&guest, "/count").await)
    };
    let (slow, (second, third)) = tokio::join!(slow, quick);
    assert_eq!(second.unwrap(), "2");
    assert_eq!(third.unwrap(), "3");
    assert_eq!(slow.unwrap(), "slept, 3 served");
    assert_eq!(guest.instances(), 1);
    guest.stop().await;
    assert_eq!((guest.instances(), guest.in_flight()), (0, 0));
    assert_eq!(log.text(), "");

    let fresh = http(&host, TRIALS_03, reused(&log, 1)).await;
    assert_eq!(ask(&fresh, "/count").await.unwrap(), "1");
    assert_eq!(ask(&fresh, "/count").await.unwrap(), "1");
}

#[tokio::test]
async fn a_03_guest_that_fails_is_replaced() {
    let host = Host::new();
    let log = Log::default();
    let limit_bytes = 8 << 20;
    let guest = http(
        &host,
        TRIALS_03,
        GuestSpec {
            memory: Arc::new(MemoryMeter::new(Some(limit_bytes), None)),
            ..spec(&log)
        },
    )
    .await;
    assert!(ask(&guest, "/trap").await.is_err());
    assert!(log.text().contains("unreachable"), "{}", log.text());
    assert_eq!(ask(&guest, "/count").await.unwrap(), "1");
    assert!(ask(&guest, "/eat?9").await.is_err());
    guest.out_of_memory().cancelled().await;
    guest.stop().await;
}

#[tokio::test]
async fn a_03_guest_that_never_answers_is_ended() {
    let host = Host::new();
    let mut spec = spec(&Log::default());
    spec.http.timeout = Duration::from_millis(40);
    let guest = http(&host, TRIALS_03, spec).await;
    assert!(ask(&guest, "/spin").await.is_err());
    assert_eq!(ask(&guest, "/count").await.unwrap(), "1");
    guest.stop().await;
    assert_eq!(guest.instances(), 0);
}
