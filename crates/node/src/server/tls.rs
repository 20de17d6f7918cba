//! TLS of the kubelet API, and who a client is by its certificate.

use crate::config::{Kubelet, TlsError};
use parking_lot::RwLock;
use rustls::RootCertStore;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
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

/// What is served with now; connections that come later get what replaces it.
#[derive(Debug)]
pub(crate) struct Serving(RwLock<Arc<CertifiedKey>>);

impl Serving {
    fn new(cert_pem: &str, key_pem: &str) -> Result<Arc<Self>, TlsError> {
        let certified = certified(cert_pem, key_pem)?;
        Ok(Arc::new(Self(RwLock::new(certified))))
    }

    /// Serves with another certificate from now on, if it and its key belong together.
    pub(crate) fn replace(&self, cert_pem: &str, key_pem: &str) -> Result<(), TlsError> {
        *self.0.write() = certified(cert_pem, key_pem)?;
        Ok(())
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().clone())
    }
}

fn certified(cert_pem: &str, key_pem: &str) -> Result<Arc<CertifiedKey>, TlsError> {
    let certs = certificates(cert_pem)?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(TlsError::Pem)?;
    let provider = rustls::crypto::ring::default_provider();
    let certified =
        CertifiedKey::from_der(certs, key, &provider).map_err(TlsError::Certificates)?;
    Ok(Arc::new(certified))
}

/// Accepts TLS; checks a client's certificate if it shows one.
pub(super) fn acceptor(kubelet: &Kubelet) -> Result<(TlsAcceptor, Arc<Serving>), TlsError> {
    let serving = Serving::new(&kubelet.cert_pem, &kubelet.key_pem)?;
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
        .with_cert_resolver(serving.clone());
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((TlsAcceptor::from(Arc::new(config)), serving))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_belongs_together_is_served() {
        let made = || {
            let made = rcgen::generate_simple_self_signed(["n1".to_owned()]).unwrap();
            (made.cert.pem(), made.signing_key.serialize_pem())
        };
        let (first, second) = (made(), made());
        let serving = Serving::new(&first.0, &first.1).unwrap();
        let shown = || serving.0.read().cert.clone();
        let before = shown();
        assert!(serving.replace(&second.0, &first.1).is_err());
        assert!(serving.replace("", &first.1).is_err());
        assert_eq!(shown(), before);
        serving.replace(&second.0, &second.1).unwrap();
        assert_ne!(shown(), before);
    }
}
