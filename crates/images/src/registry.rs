//! The distribution protocol's client: endpoints, authorization, manifests, blobs.
//!
//! It moves bytes and says what went wrong; what is kept of them is the store's business.
//! Start at [`Registry::connect`], which gives a [`Session`] with one endpoint for one repository.

mod challenge;
mod config;
mod session;

pub use config::{HostConfig, RegistryConfig, Scheme};
pub(crate) use session::{Content, Moved, Session};

use crate::auth::{Auth, Keyring};
use crate::{Digest, Reference, reference};
use reqwest::StatusCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use url::Url;

/// Why a registry did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Connecting, sending or receiving failed or took too long.
    #[error("request to {host} failed")]
    Request {
        /// Which registry.
        host: String,
        /// What happened.
        source: reqwest::Error,
    },
    /// The connection ended before the content did.
    #[error("content from {host} ended early, at {got} of {want} bytes")]
    Truncated {
        /// Which registry.
        host: String,
        /// Bytes so far.
        got: u64,
        /// Bytes promised.
        want: u64,
    },
    /// An answer with an error status.
    #[error("unexpected status from {host}: {status}{message}")]
    Status {
        /// Which registry.
        host: String,
        /// The status.
        status: StatusCode,
        /// What it said, beginning with `: `; may be empty.
        message: String,
        /// When to come back.
        retry_after: Option<Duration>,
    },
    /// Every credential was refused.
    #[error("{detail}")]
    Unauthorized {
        /// What it said.
        detail: String,
    },
    /// No such repository, tag or blob.
    #[error("{what}: not found")]
    NotFound {
        /// What was asked for.
        what: String,
    },
    /// More bytes than promised, or than allowed.
    #[error("answer from {host} is longer than {bytes_max} bytes")]
    TooLong {
        /// Which registry.
        host: String,
        /// The limit.
        bytes_max: u64,
    },
    /// Bytes that are not what their digest says.
    #[error("content from {host} has another digest than {wanted}")]
    Digest {
        /// Which registry.
        host: String,
        /// What was promised.
        wanted: Digest,
    },
    /// An answer that breaks the protocol.
    #[error("answer from {host} breaks the protocol: {detail}")]
    Protocol {
        /// Which registry.
        host: String,
        /// How.
        detail: &'static str,
    },
    /// The client could not be set up: certificates, addresses.
    #[error("set up connection to {host}: {detail}")]
    SetUp {
        /// Which registry.
        host: String,
        /// Why.
        detail: String,
    },
}

impl RegistryError {
    /// Whether trying again may help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Request { source, .. } => !source.is_builder() && !source.is_redirect(),
            Self::Truncated { .. } => true,
            Self::Status { status, .. } => {
                status.is_server_error() && *status != StatusCode::NOT_IMPLEMENTED
                    || matches!(
                        *status,
                        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT
                    )
            }
            _ => false,
        }
    }

    /// Whether the registry could not be reached at all or broke off.
    pub fn is_network(&self) -> bool {
        matches!(
            self,
            Self::Request { .. } | Self::Truncated { .. } | Self::SetUp { .. }
        )
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// A client for any number of registries. Clones share connections.
#[derive(Clone, Debug)]
pub struct Registry {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: RegistryConfig,
    keyring: Keyring,
    plain: OnceLock<Result<reqwest::Client, String>>,
    tls: OnceLock<Result<reqwest::Client, String>>,
    tls_unverified: OnceLock<Result<reqwest::Client, String>>,
}

/// One address under which a repository may be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// `scheme://host[:port][/path]/`, without `v2/`.
    pub(crate) base: Url,
    /// Host and port as credentials name them.
    pub(crate) registry: String,
    /// The registry that this one mirrors.
    pub(crate) mirror_of: Option<String>,
    pub(crate) skip_tls_verify: bool,
}

impl Registry {
    /// A client with these settings. Nothing is connected yet.
    pub fn new(config: RegistryConfig) -> Self {
        let keyring = Keyring {
            files: config.auth_files.clone(),
        };
        Self {
            shared: Arc::new(Shared {
                config,
                keyring,
                plain: OnceLock::new(),
                tls: OnceLock::new(),
                tls_unverified: OnceLock::new(),
            }),
        }
    }

    pub(crate) fn config(&self) -> &RegistryConfig {
        &self.shared.config
    }

    /// Where a repository may be served: its mirrors in order, then the registry itself.
    pub(crate) fn endpoints(&self, reference: &Reference) -> Result<Vec<Endpoint>, RegistryError> {
        let registry = reference.registry();
        let mut endpoints = Vec::new();
        for mirror in self.config().mirrors_of(registry) {
            let text = if mirror.contains("://") {
                mirror.clone()
            } else {
                format!("{}://{mirror}", self.config().scheme_of(mirror))
            };
            endpoints.push(self.endpoint(&text, Some(registry))?);
        }
        endpoints.push(self.upstream(reference)?);
        Ok(endpoints)
    }

    /// The registry itself.
    pub(crate) fn upstream(&self, reference: &Reference) -> Result<Endpoint, RegistryError> {
        let host = match reference.registry() {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        let scheme = self.config().scheme_of(reference.registry());
        let mut endpoint = self.endpoint(&format!("{scheme}://{host}"), None)?;
        reference.registry().clone_into(&mut endpoint.registry);
        Ok(endpoint)
    }

    fn endpoint(&self, text: &str, mirror_of: Option<&str>) -> Result<Endpoint, RegistryError> {
        let set_up = |detail: String| RegistryError::SetUp {
            host: text.to_owned(),
            detail,
        };
        let mut base = Url::parse(text).map_err(|error| set_up(error.to_string()))?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
            return Err(set_up("want http:// or https:// and a host".to_owned()));
        }
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        let host = base.host_str().unwrap_or_default();
        let registry = match base.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        Ok(Endpoint {
            skip_tls_verify: self.config().skips_tls_verify(&registry),
            base,
            registry,
            mirror_of: mirror_of.map(str::to_owned),
        })
    }

    /// A session with one endpoint for one repository.
    pub(crate) async fn connect(
        &self,
        endpoint: Endpoint,
        reference: &Reference,
        auths: &[Auth],
        actions: &'static str,
    ) -> Result<Session, RegistryError> {
        let credentials = self
            .shared
            .keyring
            .candidates(auths, &endpoint.registry, reference)
            .await;
        let http = self.http(&endpoint)?;
        Ok(Session::new(
            http,
            self.config().clone(),
            endpoint,
            reference.repository().to_owned(),
            actions,
            credentials,
        ))
    }

    fn http(&self, endpoint: &Endpoint) -> Result<reqwest::Client, RegistryError> {
        let (cell, kind) = if endpoint.base.scheme() == "http" {
            (&self.shared.plain, Tls::None)
        } else if endpoint.skip_tls_verify {
            (&self.shared.tls_unverified, Tls::Unverified)
        } else {
            (&self.shared.tls, Tls::Verified)
        };
        cell.get_or_init(|| build_client(self.config(), kind))
            .clone()
            .map_err(|detail| RegistryError::SetUp {
                host: endpoint.registry.clone(),
                detail,
            })
    }
}

enum Tls {
    None,
    Verified,
    Unverified,
}

fn build_client(config: &RegistryConfig, tls: Tls) -> Result<reqwest::Client, String> {
    // Fails when the process has chosen a provider already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = reqwest::Client::builder()
        .user_agent(concat!("salp/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(config.connect_timeout)
        .read_timeout(config.stall_timeout)
        .redirect(redirects());
    let builder = match tls {
        // Without system certificates too: a machine may have none.
        Tls::None => builder.no_proxy().tls_certs_only([]),
        Tls::Unverified => builder
            .tls_certs_only([])
            .tls_danger_accept_invalid_certs(true),
        Tls::Verified => {
            let mut certificates = Vec::new();
            for path in &config.ca_files {
                let pem = std::fs::read(path)
                    .map_err(|error| format!("read {}: {error}", path.display()))?;
                let more = reqwest::Certificate::from_pem_bundle(&pem)
                    .map_err(|error| format!("read {}: {error}", path.display()))?;
                certificates.extend(more);
            }
            builder.tls_certs_merge(certificates)
        }
    };
    builder.build().map_err(|error| {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        text
    })
}

/// Follows redirects as registries use them (blobs on other hosts), never from TLS to none.
fn redirects() -> reqwest::redirect::Policy {
    const REDIRECTS_MAX: usize = 10;
    reqwest::redirect::Policy::custom(|attempt| {
        let from_tls = attempt
            .previous()
            .last()
            .is_some_and(|url| url.scheme() == "https");
        if attempt.previous().len() > REDIRECTS_MAX {
            attempt.error("too many redirects")
        } else if from_tls && attempt.url().scheme() != "https" {
            attempt.error("redirect from https to http")
        } else {
            attempt.follow()
        }
    })
}

/// Tries again while failures are transient, waiting longer each time, with jitter, and at
/// least as long as the registry asks.
pub(crate) async fn with_retries<T, F>(
    config: &RegistryConfig,
    mut attempt: impl FnMut() -> F,
) -> Result<T, RegistryError>
where
    F: Future<Output = Result<T, RegistryError>>,
{
    let mut failures = 0;
    loop {
        match attempt().await {
            Err(error) if error.is_transient() && failures + 1 < config.attempts_max => {
                failures += 1;
                tracing::debug!(%error, failures, "registry request failed, trying again");
                tokio::time::sleep(config.delay(failures, error.retry_after())).await;
            }
            done => return done,
        }
    }
}

/// Whether credentials may go to this address: over TLS, or not off this machine, or to the
/// registry's own host when it is configured as plain.
pub(crate) fn may_carry_secrets(url: &Url, endpoint: &Endpoint) -> bool {
    let host = url.host_str().unwrap_or_default();
    url.scheme() == "https"
        || reference::is_loopback(host)
        || (endpoint.base.scheme() == "http" && endpoint.base.host_str() == url.host_str())
}
