//! Guests that answer requests.

use crate::host::{Host, Log, spec};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty};
use wasm::{Guest, GuestBody, GuestSpec, HttpGuest};

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
