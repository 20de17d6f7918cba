//! TLS between two sites that reach each other without NATS: each shows the key that it is a
//! member by, as a raw public key (RFC 7250). There are no certificates, no names and no
//! dates, so that a wrong clock keeps nobody out, and who is revoked is out at once.

use crate::identity::{SiteId, SiteKey};
use crate::member::View;
use crate::site::Lattice;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureAlgorithm, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use std::fmt;
use std::sync::Arc;
use tokio::sync::watch;

/// What comes before the 32 bytes of an Ed25519 key in a SubjectPublicKeyInfo (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

impl Lattice {
    /// TLS to one site and no other.
    ///
    /// # Errors
    /// When the TLS library refuses its own defaults.
    pub fn tls_client(&self, site: SiteId) -> Result<ClientConfig, Error> {
        let provider = provider();
        let verifier = Arc::new(self.members(Some(site)));
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(
                self.certified_key(),
            )));
        // A resumed session would not ask again whether the other is a member.
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        Ok(config)
    }

    /// TLS from members; [`Lattice::tls_peer`] says from whom.
    ///
    /// # Errors
    /// When the TLS library refuses its own defaults.
    pub fn tls_server(&self) -> Result<ServerConfig, Error> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(self.members(None)))
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(
                self.certified_key(),
            )));
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// Whose key a finished handshake has shown.
    pub fn tls_peer(&self, shown: Option<&[CertificateDer<'_>]>) -> Option<SiteId> {
        self.members(None).site(shown?.first()?)
    }

    fn members(&self, only: Option<SiteId>) -> Members {
        Members {
            view: self.view(),
            only,
        }
    }

    fn certified_key(&self) -> Arc<CertifiedKey> {
        let key = TlsKey(self.key());
        let shown = CertificateDer::from(key.spki());
        Arc::new(CertifiedKey::new(vec![shown], Arc::new(key)))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The site's own key. What TLS 1.3 signs starts with 64 spaces, what the lattice signs with
/// a purpose: neither signature is good for the other.
struct TlsKey(Arc<SiteKey>);

impl TlsKey {
    fn spki(&self) -> Vec<u8> {
        [&SPKI_PREFIX[..], &self.0.public().sign].concat()
    }
}

impl SigningKey for TlsKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let known = offered.contains(&SignatureScheme::ED25519);
        known.then(|| Box::new(Self(Arc::clone(&self.0))) as _)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(SubjectPublicKeyInfoDer::from(self.spki()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ED25519
    }
}

impl Signer for TlsKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(self.0.sign_tls(message).to_vec())
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

impl fmt::Debug for TlsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TlsKey({})", self.0.id())
    }
}

/// Takes the keys of present members.
#[derive(Debug)]
struct Members {
    view: watch::Receiver<Arc<View>>,
    only: Option<SiteId>,
}

impl Members {
    fn site(&self, shown: &CertificateDer<'_>) -> Option<SiteId> {
        let key = shown.strip_prefix(&SPKI_PREFIX)?;
        let view = self.view.borrow();
        let site = view.sites.iter().find(|s| s.keys.sign[..] == *key)?;
        self.only
            .is_none_or(|only| only == site.id)
            .then_some(site.id)
    }

    fn check(&self, shown: &CertificateDer<'_>) -> Result<(), Error> {
        match self.site(shown) {
            Some(_) => Ok(()),
            None => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }
}

fn signed(
    message: &[u8],
    shown: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let key = SubjectPublicKeyInfoDer::from(shown.as_ref());
    let algorithms = provider().signature_verification_algorithms;
    verify_tls13_signature_with_raw_key(message, &key, dss, &algorithms)
}

/// Both configurations speak TLS 1.3 only.
fn not_tls12() -> Error {
    Error::General("TLS 1.2 between sites".to_owned())
}

impl ServerCertVerifier for Members {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(shown)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(not_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signed(message, shown, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Members {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(shown)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(not_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signed(message, shown, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
