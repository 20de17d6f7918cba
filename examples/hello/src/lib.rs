//! A `wasi:http` 0.2 component that greets and says which pod answered.
//!
//! `GET /` answers `Hello from NAME`, where NAME is `$POD_NAME`, else `$HOSTNAME`, else
//! `salp`. Any other path is 404.

use wasip2::cli::environment::get_environment;
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{
    Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam,
};

struct Hello;

wasip2::http::proxy::export!(Hello);

impl Guest for Hello {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        let path = path.split('?').next().unwrap_or_default();
        if path.is_empty() || path == "/" {
            answer(out, 200, &format!("Hello from {}\n", name()));
        } else {
            answer(out, 404, "not found\n");
        }
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

/// Sends a whole text response. A client that went away is nobody's error.
fn answer(out: ResponseOutparam, status: u16, text: &str) {
    let headers = Fields::new();
    let _ = headers.set("content-type", &[b"text/plain; charset=utf-8".to_vec()]);
    let _ = headers.set("content-length", &[text.len().to_string().into_bytes()]);
    let response = OutgoingResponse::new(headers);
    let _ = response.set_status_code(status);
    let Ok(body) = response.body() else { return };
    ResponseOutparam::set(out, Ok(response));
    if let Ok(stream) = body.write() {
        let _ = stream.blocking_write_and_flush(text.as_bytes());
    }
    let _ = OutgoingBody::finish(body, None);
}
