//! Requests that guests send out by `wasi:http`.

use futures::future::BoxFuture;
use http::{HeaderValue, Uri, header};
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks, default_send_request};

/// To which hosts a guest may send requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EgressRules {
    allowed: Option<Vec<Allowed>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Allowed {
    scheme: Option<String>,
    /// Lower case; with `suffix`, what the host must end in.
    host: String,
    suffix: bool,
    port: Option<u16>,
}

impl EgressRules {
    /// Anywhere, as any pod may.
    pub fn anywhere() -> Self {
        Self::default()
    }

    /// Only to the named hosts: `example.com`, `*.example.com`, `https://example.com:8443`.
    ///
    /// # Errors
    /// The entry that is none of these.
    pub fn only<S: AsRef<str>>(domains: &[S]) -> Result<Self, String> {
        let allowed = domains
            .iter()
            .map(|domain| Allowed::parse(domain.as_ref()).ok_or_else(|| domain.as_ref().into()))
            .collect::<Result<_, String>>()?;
        Ok(Self {
            allowed: Some(allowed),
        })
    }

    fn permits(&self, uri: &Uri) -> bool {
        let Some(allowed) = &self.allowed else {
            return true;
        };
        let Some(host) = uri.host() else {
            return false;
        };
        let host = host.to_ascii_lowercase();
        let scheme = uri.scheme_str().unwrap_or("https");
        let port = uri.port_u16();
        allowed.iter().any(|rule| {
            rule.scheme.as_deref().is_none_or(|want| want == scheme)
                && (if rule.suffix {
                    host.ends_with(&rule.host)
                } else {
                    host == rule.host
                })
                && rule
                    .port
                    .is_none_or(|want| port.unwrap_or(default_port(scheme)) == want)
        })
    }
}

fn default_port(scheme: &str) -> u16 {
    if scheme == "http" { 80 } else { 443 }
}

impl Allowed {
    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme @ ("http" | "https"), rest)) => (Some(scheme.to_owned()), rest),
            Some(_) => return None,
            None => (None, text),
        };
        let rest = rest.trim_end_matches('/');
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !host.ends_with(']') || rest.contains("]:") => {
                (host, Some(port.parse().ok()?))
            }
            _ => (rest, None),
        };
        let (host, suffix) = match host.strip_prefix('*') {
            Some(rest) if rest.starts_with('.') => (rest, true),
            Some(_) => return None,
            None => (host, false),
        };
        if host.is_empty() || host.contains(['/', '*', '@', ' ']) {
            return None;
        }
        Some(Self {
            scheme,
            host: host.to_ascii_lowercase(),
            suffix,
            port,
        })
    }
}

/// Finds addresses of names as a pod's DNS configuration has it.
pub trait Resolve: Send + Sync + 'static {
    /// An address of a host; `None` leaves the name to the machine's own resolver.
    fn resolve(&self, host: String) -> BoxFuture<'static, Option<IpAddr>>;
}

/// The rules as wasmtime asks for them.
pub(crate) struct Egress {
    pub(crate) rules: Arc<EgressRules>,
    pub(crate) names: Option<Arc<dyn Resolve>>,
}

/// Puts the address in place of the host's name, which stays in the Host header. Not for
/// HTTPS, whose certificate is checked against the name.
async fn address(
    mut request: http::Request<WasiBody>,
    names: &dyn Resolve,
) -> http::Request<WasiBody> {
    let uri = request.uri();
    let (Some(authority), Some("http")) = (uri.authority().cloned(), uri.scheme_str()) else {
        return request;
    };
    let host = authority.host();
    if host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
        return request;
    }
    let Some(ip) = names.resolve(host.to_owned()).await else {
        return request;
    };
    let address = SocketAddr::new(ip, authority.port_u16().unwrap_or(80)).to_string();
    let mut parts = uri.clone().into_parts();
    parts.authority = address.parse().ok();
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
        if let Ok(name) = HeaderValue::from_str(authority.as_str()) {
            request.headers_mut().entry(header::HOST).or_insert(name);
        }
    }
    request
}

type Io = Box<dyn Future<Output = Result<(), Error>> + Send>;
type Sent = Result<(http::Response<WasiBody>, Io), Error>;

impl WasiHttpHooks for Egress {
    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _processed: Io,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        if !self.rules.permits(request.uri()) {
            return Box::new(async { Err(Error::HttpRequestDenied) });
        }
        let names = self.names.clone();
        Box::new(async move {
            let request = match &names {
                Some(names) => address(request, &**names).await,
                None => request,
            };
            let (response, io) = default_send_request(request, options).await?;
            let response = response.map(http_body_util::BodyExt::boxed_unsync);
            Ok((response, Box::new(io) as Io))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules() {
        let rules = EgressRules::only(&["https://a.example/", "*.b.example", "c.example:8080"])
            .expect("valid");
        for (uri, permitted) in [
            ("https://a.example/x", true),
            ("http://a.example/x", false),
            ("https://A.EXAMPLE", true),
            ("https://x.a.example", false),
            ("https://a.example.evil", false),
            ("http://x.b.example", true),
            ("http://b.example", false),
            ("http://notb.example", false),
            ("http://c.example:8080", true),
            ("http://c.example", false),
        ] {
            let parsed: Uri = uri.parse().unwrap();
            assert_eq!(rules.permits(&parsed), permitted, "{uri}");
            assert!(EgressRules::anywhere().permits(&parsed));
        }
        for bad in ["ftp://a", "", "a*b", "https://a/b", "a:port"] {
            assert_eq!(EgressRules::only(&[bad]), Err(bad.to_owned()));
        }
        assert!(
            !EgressRules::only::<&str>(&[])
                .unwrap()
                .permits(&Uri::from_static("http://a"))
        );
    }
}
