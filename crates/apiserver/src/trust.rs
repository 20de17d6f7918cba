//! Whom the API server believes when it calls somebody: those that a bundle's authorities have
//! signed, and those whose own certificate is in the bundle. The latter is what self-signed
//! certificates of webhooks are, authority and server in one; Go's verification takes them,
//! webpki's alone does not. Not for those that call the API server (`serving`).

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::sync::Arc;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Trusts what is in a PEM bundle.
#[derive(Debug)]
pub(crate) struct Bundle {
    certificates: Vec<CertificateDer<'static>>,
    authorities: Arc<WebPkiServerVerifier>,
}

impl Bundle {
    /// An empty bundle trusts whom everybody trusts.
    ///
    /// # Errors
    /// What is wrong with the bundle.
    pub(crate) fn parse(pem: &[u8], provider: &Arc<CryptoProvider>) -> Result<Arc<Self>, String> {
        let mut roots = RootCertStore::empty();
        if pem.is_empty() {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        let certificates = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| e.to_string())?;
        for certificate in &certificates {
            roots.add(certificate.clone()).map_err(|e| e.to_string())?;
        }
        let authorities =
            WebPkiServerVerifier::builder_with_provider(roots.into(), provider.clone())
                .build()
                .map_err(|e| e.to_string())?;
        Ok(Arc::new(Self {
            certificates,
            authorities,
        }))
    }
}

impl ServerCertVerifier for Bundle {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if !self.certificates.iter().any(|known| known == certificate) {
            return self.authorities.verify_server_cert(
                certificate,
                intermediates,
                name,
                ocsp,
                now,
            );
        }
        in_time_and_to_serve(certificate, now)?;
        rustls::client::verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.authorities
            .verify_tls12_signature(message, certificate, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.authorities
            .verify_tls13_signature(message, certificate, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.supported_verify_schemes()
    }
}

/// What else a certificate that is trusted itself must fulfil.
fn in_time_and_to_serve(
    certificate: &CertificateDer<'_>,
    now: UnixTime,
) -> Result<(), CertificateError> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now < parsed.validity().not_before.timestamp() {
        return Err(CertificateError::NotValidYet);
    }
    if now > parsed.validity().not_after.timestamp() {
        return Err(CertificateError::Expired);
    }
    match parsed.extended_key_usage() {
        Ok(None) => Ok(()),
        Ok(Some(usage)) if usage.value.server_auth || usage.value.any => Ok(()),
        Ok(Some(_)) => Err(CertificateError::InvalidPurpose),
        Err(_) => Err(CertificateError::BadEncoding),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{
        BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    };

    const NAME: &str = "hook.shop.svc";

    fn params() -> CertificateParams {
        let mut params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2027, 1, 1);
        params
    }

    #[test]
    fn a_bundle_trusts_its_authorities_and_its_own_certificates() {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = KeyPair::generate().unwrap();
        let mut root = params();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let own = root.self_signed(&key).unwrap();
        let bundle = Bundle::parse(own.pem().as_bytes(), &provider).unwrap();
        let check = |certificate: &rcgen::Certificate, name: &str, year_2026: u64| {
            let name = ServerName::try_from(name.to_owned()).unwrap();
            // The start of 2026, and as many days later.
            let now = std::time::Duration::from_secs(1_767_225_600 + year_2026 * 86_400);
            bundle
                .verify_server_cert(
                    certificate.der(),
                    &[],
                    &name,
                    &[],
                    UnixTime::since_unix_epoch(now),
                )
                .map(drop)
                .map_err(|e| e.to_string())
        };
        assert_eq!(check(&own, NAME, 1), Ok(()));
        assert!(check(&own, "other.shop.svc", 1).is_err());
        assert!(check(&own, NAME, 400).unwrap_err().contains("Expired"));

        let leaf = params()
            .signed_by(
                &KeyPair::generate().unwrap(),
                &Issuer::from_params(&root, &key),
            )
            .unwrap();
        assert_eq!(check(&leaf, NAME, 1), Ok(()));
        let stranger = params().self_signed(&KeyPair::generate().unwrap()).unwrap();
        assert!(check(&stranger, NAME, 1).is_err());

        let mut wrong = params();
        wrong.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let wrong = wrong.self_signed(&key).unwrap();
        assert_eq!(
            in_time_and_to_serve(
                wrong.der(),
                UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_767_300_000))
            ),
            Err(CertificateError::InvalidPurpose)
        );
        assert!(
            Bundle::parse(
                b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                &provider
            )
            .is_err()
        );
    }
}
