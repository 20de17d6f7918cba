//! Requests that guests send out by `wasi:http`.

use crate::send::{Io, send};
use crate::surroundings::Surroundings;
use http::Uri;
use std::sync::Arc;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

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

/// What an instance's requests go by, as wasmtime asks for it.
pub(crate) struct Egress {
    pub(crate) around: Arc<Surroundings>,
}

type Sent = Result<(http::Response<WasiBody>, Io), Error>;

impl WasiHttpHooks for Egress {
    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _processed: Io,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        if !self.around.egress.permits(request.uri()) {
            return Box::new(async { Err(Error::HttpRequestDenied) });
        }
        let around = self.around.clone();
        Box::new(async move { send(request, options, &around).await })
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
