//! TLS of the kubelet API, and who a client is by its certificate.

use crate::config::{Kubelet, TlsError};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::fmt;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Identity {
    /// No certificate.
    None,
    /// One that the cluster's CA signed.
    Known { name: String, groups: Vec<String> },
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("nobody"),
            Self::Known { name, .. } => write!(f, "user={name}"),
        }
    }
}

impl Identity {
    /// Administrators, and the API server under the names that its client certificate
    /// commonly has.
    pub(super) fn may_use_kubelet(&self) -> bool {
        match self {
            Self::None => false,
            Self::Known { name, groups } => {
                let admin = [
                    "system:masters",
                    "kubeadm:cluster-admins",
                    "system:monitoring",
                ];
                let server = [
                    "kube-apiserver-kubelet-client",
                    "kube-apiserver",
                    "system:apiserver",
                    "system:kube-apiserver",
                ];
                server.contains(&name.as_str())
                    || groups.iter().any(|g| admin.contains(&g.as_str()))
            }
        }
    }
}

/// Accepts TLS; checks a client's certificate if it shows one.
pub(super) fn acceptor(kubelet: &Kubelet) -> Result<TlsAcceptor, TlsError> {
    let certs = certificates(&kubelet.cert_pem)?;
    let key = PrivateKeyDer::from_pem_slice(kubelet.key_pem.as_bytes()).map_err(TlsError::Pem)?;
    let mut roots = RootCertStore::empty();
    for ca in certificates(&kubelet.client_ca_pem)? {
        roots.add(ca).map_err(TlsError::Certificates)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(TlsError::ClientCa)?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Certificates)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certs, key)
        .map_err(TlsError::Certificates)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(TlsError::Pem)
}

/// Who the other end is: common name and organisations of its certificate.
pub(super) fn identity(stream: &TlsStream<TcpStream>) -> Identity {
    let (_, session) = stream.get_ref();
    let Some(leaf) = session.peer_certificates().and_then(|c| c.first()) else {
        return Identity::None;
    };
    let Ok((_, cert)) = X509Certificate::from_der(leaf) else {
        return Identity::None;
    };
    let texts = |values: Vec<Option<String>>| values.into_iter().flatten().collect::<Vec<_>>();
    let subject = cert.subject();
    let names = subject
        .iter_common_name()
        .map(|a| a.as_str().ok().map(Into::into));
    let groups = subject
        .iter_organization()
        .map(|a| a.as_str().ok().map(Into::into));
    Identity::Known {
        name: texts(names.collect())
            .into_iter()
            .next()
            .unwrap_or_default(),
        groups: texts(groups.collect()),
    }
}
