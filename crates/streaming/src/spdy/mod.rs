//! SPDY/3.1 as far as Kubernetes' clients and API servers use it: a client opens streams with
//! headers, both ends send data in them. No push, no priorities, and no windows, which those
//! clients do not keep: what comes is read as fast as it is used ([`session`]).

#[cfg(test)]
mod client;
mod command;
mod frame;
mod headers;
mod ports;
mod session;

pub use command::{CommandStreams, serve_command};
pub use frame::{Frame, FrameError, Head, parse_head};
pub use headers::{HeaderError, Headers, Unpacker};
pub use ports::serve_ports;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};

/// `X-Stream-Protocol-Version` of exec and attach, the newest first.
pub const COMMAND_PROTOCOLS: &[&str] = &[
    "v4.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "channel.k8s.io",
];
/// `X-Stream-Protocol-Version` of port-forward.
pub const PORTS_PROTOCOLS: &[&str] = &["portforward.k8s.io"];

const VERSION_HEADER: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const UPGRADE: &str = "SPDY/3.1";

/// Whether a request asks for SPDY.
pub fn is_asked(headers: &HeaderMap) -> bool {
    let is = |name: &HeaderName, wanted: &str| {
        headers.get_all(name).iter().any(|value| {
            let value = value.to_str().unwrap_or_default();
            value
                .split(',')
                .any(|word| word.trim().eq_ignore_ascii_case(wanted))
        })
    };
    is(&header::CONNECTION, "upgrade") && is(&header::UPGRADE, UPGRADE)
}

/// The first of the client's protocols that is among the supported ones; a client that names
/// none gets the last. None if no protocol fits.
pub fn accept(
    headers: &HeaderMap,
    supported: &[&'static str],
) -> Option<(&'static str, Response<()>)> {
    let offered: Vec<&str> = headers
        .get_all(VERSION_HEADER)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect();
    let chosen = match offered.as_slice() {
        [] => supported.last().copied(),
        offered => offered
            .iter()
            .find_map(|o| supported.iter().find(|s| *s == o).copied()),
    }?;
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = response.headers_mut();
    answer.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(header::UPGRADE, HeaderValue::from_static(UPGRADE));
    if !offered.is_empty() {
        answer.insert(VERSION_HEADER, HeaderValue::from_static(chosen));
    }
    Some((chosen, response))
}
