//! TLS of the API server: the certificates that it shows, which may be replaced while it runs,
//! and whose clients' certificates are believed.

use crate::config::Config;
use crate::http::respond::BoxError;
use crate::server::Error;
use parking_lot::RwLock;
use rustls::client::ResolvesClientCert;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use std::sync::Arc;

/// What is shown now; connections that come later get what replaces it.
#[derive(Debug)]
pub(crate) struct Identity(RwLock<Arc<CertifiedKey>>);

impl Identity {
    /// Shows a certificate (PEM), if it and its key belong together.
    pub(crate) fn new(cert_pem: &str, key_pem: &str) -> Result<Arc<Self>, BoxError> {
        Ok(Arc::new(Self(RwLock::new(certified(cert_pem, key_pem)?))))
    }

    /// Shows another certificate from now on, if it and its key belong together.
    pub(crate) fn replace(&self, cert_pem: &str, key_pem: &str) -> Result<(), BoxError> {
        *self.0.write() = certified(cert_pem, key_pem)?;
        Ok(())
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().clone())
    }
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn certified(cert_pem: &str, key_pem: &str) -> Result<Arc<CertifiedKey>, BoxError> {
    let chain =
        CertificateDer::pem_slice_iter(cert_pem.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())?;
    let provider = rustls::crypto::ring::default_provider();
    Ok(Arc::new(CertifiedKey::from_der(chain, key, &provider)?))
}

/// Whose certificates the authorities of a bundle (PEM) have signed.
pub(crate) fn authorities(pem: &str) -> Result<Arc<dyn ClientCertVerifier>, BoxError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    Ok(verifier.allow_unauthenticated().build()?)
}

/// Whether these have signed a certificate that comes with its chain, and it is valid now.
pub(crate) fn is_signed(by: &dyn ClientCertVerifier, chain: &[CertificateDer<'_>]) -> bool {
    chain.split_first().is_some_and(|(leaf, between)| {
        by.verify_client_cert(leaf, between, UnixTime::now())
            .is_ok()
    })
}

/// What connections are accepted with; `proxies` is the bundle of those in front, if any is.
pub(crate) fn tls(
    config: &Config,
    proxies: Option<&str>,
) -> Result<(Arc<ServerConfig>, Arc<Identity>), Error> {
    let serving = Identity::new(&config.serving_cert, &config.serving_key)
        .map_err(Error::ServingCertificate)?;
    let all = format!(
        "{}\n{}",
        config.client_ca.trim_end(),
        proxies.unwrap_or_default()
    );
    let verifier = authorities(&all).map_err(Error::ClientCa)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::ServingCertificate(e.into()))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(serving.clone());
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok((Arc::new(tls), serving))
}
