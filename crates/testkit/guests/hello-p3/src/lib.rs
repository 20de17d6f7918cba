//! A `wasi:http` 0.3 component that greets, says which pod answered, and counts the requests
//! that its instance has seen: an instance serves many, several at once. For tests.
//!
//! `GET /` answers at once, `GET /wait?ms=N` after N ms.

use std::sync::atomic::{AtomicU64, Ordering};
use wasip3::cli::environment::get_environment;
use wasip3::clocks::monotonic_clock::wait_for;
use wasip3::exports::http::handler::Guest;
use wasip3::http::types::{ErrorCode, Fields, Request, Response};
use wasip3::{wit_bindgen, wit_future, wit_stream};

struct Hello;

wasip3::http::service::export!(Hello);

/// Requests that this instance has begun.
static SEEN: AtomicU64 = AtomicU64::new(0);

impl Guest for Hello {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let number = SEEN.fetch_add(1, Ordering::Relaxed) + 1;
        let target = request.get_path_with_query().unwrap_or_default();
        if let Some(ms) = target.strip_prefix("/wait?ms=") {
            wait_for(ms.parse::<u64>().unwrap_or(0) * 1_000_000).await;
        }
        Ok(answer(format!("Hello from {}, request {number}\n", name())))
    }
}

/// Who answers.
fn name() -> String {
    let environment = get_environment();
    ["POD_NAME", "HOSTNAME"]
        .iter()
        .find_map(|wanted| environment.iter().find(|(name, _)| name == wanted))
        .map_or_else(|| "salp".to_owned(), |(_, value)| value.clone())
}

/// A whole text response; the body is sent after it was returned.
fn answer(text: String) -> Response {
    let (mut body, content) = wit_stream::new();
    let (trailers, no_trailers) = wit_future::new(|| Ok(None));
    let headers = Fields::new();
    let _ = headers.set("content-type", &[b"text/plain".to_vec()]);
    let _ = headers.set("content-length", &[text.len().to_string().into_bytes()]);
    let (response, _sent) = Response::new(headers, Some(content), no_trailers);
    drop(trailers);
    wit_bindgen::spawn(async move {
        // What is left over, a client that went away did not want.
        body.write_all(text.into_bytes()).await;
    });
    response
}
