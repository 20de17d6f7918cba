//! Connections that stop speaking HTTP: a request with `Connection: upgrade` (WebSocket and
//! others) that an endpoint over the network takes up. Its 101 is passed on, and from then on
//! bytes both ways, as of a connection that was never parsed.
//!
//! Guests of this process can't do so: they answer such a request as any other. `h2c` is not
//! asked for on behalf of a client: who wants HTTP/2 says so from the start.

use crate::Shared;
use crate::backend::Connected;
use crate::tcp;
use http::header::{CONNECTION, HeaderMap, HeaderValue, UPGRADE};
use http::{Request, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

/// What a client asks to speak, and its side of the connection once it does. Goes with the
/// request, which may be given to several endpoints until one takes it.
#[derive(Clone)]
pub(crate) struct Switch {
    protocols: Vec<HeaderValue>,
    client: OnUpgrade,
}

/// Both sides of a connection that has changed its protocol.
pub(crate) struct Tunnel {
    client: OnUpgrade,
    upstream: OnUpgrade,
    /// It is under way until it is over.
    _connected: Connected,
}

/// Takes note of what a request asks to speak; whether it does.
pub(crate) fn note(request: &mut Request<Incoming>) -> bool {
    let headers = request.headers();
    if request.version() != Version::HTTP_11 || !headers.contains_key(UPGRADE) || !asks(headers) {
        return false;
    }
    let protocols = protocols(headers);
    if protocols
        .iter()
        .any(|p| p.as_bytes().eq_ignore_ascii_case(b"h2c"))
    {
        return false;
    }
    let client = hyper::upgrade::on(&mut *request);
    request
        .extensions_mut()
        .insert(Switch { protocols, client });
    true
}

/// Whether `Connection` has the word.
fn asks(headers: &HeaderMap) -> bool {
    let values = headers.get_all(CONNECTION).iter();
    let mut words = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    words.any(|word| word.trim().eq_ignore_ascii_case("upgrade"))
}

fn protocols(headers: &HeaderMap) -> Vec<HeaderValue> {
    headers.get_all(UPGRADE).iter().cloned().collect()
}

impl Switch {
    /// What a request asks to speak.
    pub(crate) fn of<B>(request: &Request<B>) -> Option<Self> {
        request.extensions().get::<Self>().cloned()
    }

    /// Puts into a request to an endpoint what the client has asked for.
    pub(crate) fn ask(&self, headers: &mut HeaderMap) {
        put(headers, self.protocols.clone());
    }

    /// What an endpoint has agreed to.
    pub(crate) fn tunnel(self, upstream: OnUpgrade, connected: Connected) -> Tunnel {
        Tunnel {
            client: self.client,
            upstream,
            _connected: connected,
        }
    }
}

/// Clears the headers of an answer that are for one connection, but for those that say that
/// it changes.
pub(crate) fn keep(headers: &mut HeaderMap, clear: impl Fn(&mut HeaderMap)) {
    let agreed = protocols(headers);
    clear(headers);
    put(headers, agreed);
}

fn put(headers: &mut HeaderMap, protocols: Vec<HeaderValue>) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    for protocol in protocols {
        headers.append(UPGRADE, protocol);
    }
}

impl Tunnel {
    /// Passes bytes until both sides are done.
    pub(crate) async fn run(self, shared: &Shared) {
        // One of them may have gone before it came to that.
        if let (Ok(client), Ok(upstream)) = tokio::join!(self.client, self.upstream) {
            tcp::copy(TokioIo::new(client), TokioIo::new(upstream), shared).await;
        }
    }
}
