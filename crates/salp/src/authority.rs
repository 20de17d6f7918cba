//! The site's certificate authority as the controllers use it: it reads requests and signs
//! those that are approved. Files and the site's own leaves are `pki`'s.

use crate::config::Layout;
use anyhow::{Context as _, Result};
use controllers::Asked;
use rcgen::{
    CertificateSigningRequestParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};

/// Signs with the key in the site's directory.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Reads what `pki::load_or_create` has made.
    pub fn load(layout: &Layout) -> Result<Self> {
        let read = |name: &str| {
            let path = layout.pki().join(name);
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
        };
        let key = KeyPair::from_pem(&read("ca.key")?).context("read certificate authority")?;
        let issuer = Issuer::from_ca_cert_pem(&read("ca.crt")?, key)
            .context("read certificate authority")?;
        Ok(Self { issuer })
    }
}

fn parse(request: &str) -> Result<CertificateSigningRequestParams, String> {
    CertificateSigningRequestParams::from_pem(request).map_err(|e| e.to_string())
}

fn text(value: &DnValue) -> String {
    match value {
        DnValue::Utf8String(s) => s.clone(),
        DnValue::PrintableString(s) => s.as_str().to_owned(),
        DnValue::Ia5String(s) => s.as_str().to_owned(),
        // Nobody names a node in these; an unreadable name is nobody's.
        _ => String::new(),
    }
}

impl controllers::Signer for Authority {
    fn read(&self, request: &str) -> Result<Asked, String> {
        let params = parse(request)?.params;
        let mut asked = Asked::default();
        for (kind, value) in params.distinguished_name.iter() {
            match kind {
                DnType::CommonName => asked.common_name = text(value),
                DnType::OrganizationName => asked.organizations.push(text(value)),
                _ => asked.others = true,
            }
        }
        for name in &params.subject_alt_names {
            match name {
                SanType::DnsName(n) => asked.names.push(n.as_str().to_owned()),
                SanType::IpAddress(a) => asked.addresses.push(*a),
                _ => asked.others = true,
            }
        }
        Ok(asked)
    }

    fn sign(&self, request: &str, server: bool, valid_seconds: i64) -> Result<String, String> {
        let asked = self.read(request)?;
        let mut request = parse(request)?;
        let params = &mut request.params;
        // Of what was asked for only names are taken over.
        let mut name = DistinguishedName::new();
        for organization in &asked.organizations {
            name.push(DnType::OrganizationName, organization.as_str());
        }
        name.push(DnType::CommonName, asked.common_name.as_str());
        params.distinguished_name = name;
        params.is_ca = IsCa::NoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![if server {
            ExtendedKeyUsagePurpose::ServerAuth
        } else {
            ExtendedKeyUsagePurpose::ClientAuth
        }];
        params.use_authority_key_identifier_extension = true;
        let now = jiff::Timestamp::now();
        let (from, until) = (
            crate::pki::date(now, -1),
            crate::pki::date(now, (valid_seconds / 86_400).max(1)),
        );
        params.not_before = rcgen::date_time_ymd(from.0, from.1, from.2);
        params.not_after = rcgen::date_time_ymd(until.0, until.1, until.2);
        let signed = request.signed_by(&self.issuer).map_err(|e| e.to_string())?;
        Ok(signed.pem())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use controllers::Signer as _;
    use rcgen::CertificateParams;

    #[test]
    fn what_is_signed_is_what_was_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let layout = Layout::new(dir.path().join("site"));
        layout.create().expect("made");
        let reached = crate::pki::Reached {
            node_name: "a".to_owned(),
            addresses: Vec::new(),
        };
        let pki = crate::pki::load_or_create(&layout, &reached).expect("made");
        let authority = Authority::load(&layout).expect("read");
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec!["n".to_owned()]).expect("a name");
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, "system:node:n");
        params
            .distinguished_name
            .push(DnType::OrganizationName, "system:nodes");
        let request = params.serialize_request(&key).and_then(|r| r.pem());
        let request = request.expect("a request");
        let asked = authority.read(&request).expect("readable");
        assert_eq!(asked.common_name, "system:node:n");
        assert_eq!(asked.organizations, ["system:nodes"]);
        let signed = authority.sign(&request, true, 86_400).expect("signed");
        let (_, pem) = x509_parser::pem::parse_x509_pem(signed.as_bytes()).expect("PEM");
        let cert = pem.parse_x509().expect("a certificate");
        assert!(!cert.is_ca(), "a request makes no authority");
        let (_, ca) = x509_parser::pem::parse_x509_pem(pki.ca_pem.as_bytes()).expect("PEM");
        let ca = ca.parse_x509().expect("a certificate");
        assert!(cert.verify_signature(Some(ca.public_key())).is_ok());
        assert!(authority.read("no request").is_err());
    }
}
