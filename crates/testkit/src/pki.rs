//! Keys and certificates of a test cluster.

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use std::path::Path;
use std::sync::Arc;

/// A certificate and its key, PEM.
#[derive(Clone)]
pub struct Identity {
    /// Certificate.
    pub cert: String,
    /// Key.
    pub key: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity")
    }
}

/// A certificate authority and what it has signed. Clones share its key.
#[derive(Clone)]
pub struct Pki {
    /// The authority's certificate, PEM.
    pub ca_cert: String,
    /// For `localhost` and `127.0.0.1`.
    pub serving: Identity,
    /// Signs ServiceAccount tokens, PEM.
    pub service_account_key: String,
    issuer: Arc<Issuer<'static, KeyPair>>,
}

impl std::fmt::Debug for Pki {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pki")
    }
}

impl Pki {
    /// New keys.
    ///
    /// # Errors
    /// When the machine has no randomness.
    pub fn new() -> Result<Self> {
        let ca_key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        params
            .distinguished_name
            .push(DnType::CommonName, "test-ca");
        let ca_cert = params.self_signed(&ca_key)?.pem();
        let issuer = Arc::new(Issuer::new(params, ca_key));
        let key = KeyPair::generate()?;
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let cert = CertificateParams::new(names)?.signed_by(&key, &*issuer)?;
        Ok(Self {
            ca_cert,
            serving: Identity {
                cert: cert.pem(),
                key: key.serialize_pem(),
            },
            service_account_key: KeyPair::generate()?.serialize_pem(),
            issuer,
        })
    }

    /// Those that a site has made in its data directory.
    ///
    /// # Errors
    /// When they are not there.
    pub fn of_site(data_dir: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = data_dir.join("pki").join(name);
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
        };
        let ca_cert = read("ca.crt")?;
        let issuer = Issuer::from_ca_cert_pem(&ca_cert, KeyPair::from_pem(&read("ca.key")?)?)?;
        Ok(Self {
            ca_cert,
            serving: Identity {
                cert: read("apiserver.crt")?,
                key: read("apiserver.key")?,
            },
            service_account_key: read("service-account.key")?,
            issuer: Arc::new(issuer),
        })
    }

    /// A serving certificate for names.
    ///
    /// # Errors
    /// When it can't be signed.
    pub fn serving_for(&self, names: &[&str]) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let cert = CertificateParams::new(names)?.signed_by(&key, &*self.issuer)?;
        Ok(Identity {
            cert: cert.pem(),
            key: key.serialize_pem(),
        })
    }

    /// A client certificate of a user.
    ///
    /// # Errors
    /// When it can't be signed.
    pub fn identity(&self, user: &str, groups: &[&str]) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, user);
        for group in groups {
            params
                .distinguished_name
                .push(DnType::OrganizationName, *group);
        }
        let cert = params.signed_by(&key, &*self.issuer)?;
        Ok(Identity {
            cert: cert.pem(),
            key: key.serialize_pem(),
        })
    }
}
