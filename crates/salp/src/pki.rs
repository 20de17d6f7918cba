//! The site's own certificate authority and the certificates it issues to the site's parts.
//!
//! The authority is made once. Leaves are made anew at a start when they are absent, near
//! their end or not valid by the machine's clock (however wrong that is), or lack a name.

use crate::config::{Layout, write_atomic};
use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

/// Days that a leaf is valid; a start renews it in its last third.
const LEAF_DAYS: i64 = 365;

/// A certificate and its key, PEM.
#[derive(Clone)]
pub struct Pair {
    pub cert_pem: String,
    pub key_pem: String,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pair { .. }")
    }
}

/// All that the site's parts need.
#[derive(Clone, Debug)]
pub struct Pki {
    pub ca_pem: String,
    /// Serving certificate of the API server.
    pub apiserver: Pair,
    /// What the API server shows a kubelet.
    pub kubelet_client: Pair,
    /// Serving certificate of the kubelet API.
    pub kubelet: Pair,
    /// The administrator's.
    pub admin: Pair,
    /// The service proxy's, in the data plane.
    pub proxy: Pair,
    /// Of what makes imports and exports, in the data plane.
    pub sites: Pair,
    /// What extension servers are shown, and the authority of its own that they believe.
    pub front_proxy: Pair,
    pub front_proxy_ca_pem: String,
    /// Key that signs ServiceAccount tokens.
    pub service_account_key_pem: String,
}

/// What all servers of a site have in common: files of `pki/`, the mode of each, and what is in
/// it. The certificate that says that there is an authority is written last.
const SHARED: [(&str, u32); 5] = [
    ("service-account.key", 0o600),
    ("front-proxy-ca.key", 0o600),
    ("front-proxy-ca.crt", 0o644),
    ("ca.key", 0o600),
    (CA_CERT, 0o644),
];
const CA_CERT: &str = "ca.crt";

/// Those files, by their names.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secrets(BTreeMap<String, String>);

impl Secrets {
    /// The authority's certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        self.0.get(CA_CERT).map_or("", String::as_str)
    }
}

/// Whether there is an authority already.
pub fn has_authority(layout: &Layout) -> bool {
    layout.pki().join(CA_CERT).exists()
}

/// Those of this directory, made when they are not there.
pub fn secrets(layout: &Layout) -> Result<Secrets> {
    let dir = layout.pki();
    authority(&dir, "front-proxy-ca", "salp-front-proxy-ca")?;
    key(&dir.join("service-account.key"))?;
    authority(&dir, "ca", "salp-ca")?;
    let read = |(file, _): &(&str, u32)| {
        let path = dir.join(file);
        let text = std::fs::read_to_string(&path);
        let text = text.with_context(|| format!("read {}", path.display()))?;
        Ok(((*file).to_owned(), text))
    };
    Ok(Secrets(SHARED.iter().map(read).collect::<Result<_>>()?))
}

/// Makes those of another server this directory's.
pub fn adopt(layout: &Layout, secrets: &Secrets) -> Result<()> {
    for (file, mode) in SHARED {
        if let Some(text) = secrets.0.get(file) {
            write_atomic(&layout.pki().join(file), text.as_bytes(), mode)?;
        }
    }
    Ok(())
}

/// Removes those that were made a moment ago.
pub fn forget(layout: &Layout) -> Result<()> {
    for (file, _) in SHARED.iter().rev() {
        let path = layout.pki().join(file);
        std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}

/// What a leaf says.
struct Leaf<'a> {
    file: &'a str,
    common_name: String,
    organization: Option<&'a str>,
    server: bool,
    names: Vec<String>,
    addresses: Vec<IpAddr>,
}

/// Names and addresses under which the site is reached.
#[derive(Clone, Debug)]
pub struct Reached {
    pub node_name: String,
    pub addresses: Vec<IpAddr>,
}

/// Loads what is there and makes what is not.
pub fn load_or_create(layout: &Layout, reached: &Reached) -> Result<Pki> {
    let dir = layout.pki();
    let (ca_pem, ca_key) = authority(&dir, "ca", "salp-ca")?;
    let issuer =
        Issuer::from_ca_cert_pem(&ca_pem, &ca_key).context("read certificate authority")?;
    let mut server_names = api::constants::API_SERVER_NAMES.map(str::to_owned).to_vec();
    server_names.push(reached.node_name.clone());
    let leaf = |leaf: Leaf<'_>| issue(&dir, &issuer, &ca_pem, &leaf);
    // Another than the clients': who holds a client's certificate speaks for nobody else.
    let (proxy_ca, proxy_key) = authority(&dir, "front-proxy-ca", "salp-front-proxy-ca")?;
    let proxy_issuer =
        Issuer::from_ca_cert_pem(&proxy_ca, &proxy_key).context("read certificate authority")?;
    let name = apiserver::FrontProxy::NAME;
    let front_proxy = issue(&dir, &proxy_issuer, &proxy_ca, &client(name, name, None))?;
    Ok(Pki {
        apiserver: leaf(Leaf {
            file: "apiserver",
            common_name: "kube-apiserver".to_owned(),
            organization: None,
            server: true,
            names: server_names,
            addresses: reached.addresses.clone(),
        })?,
        kubelet: leaf(Leaf {
            file: "kubelet",
            common_name: format!("system:node:{}", reached.node_name),
            organization: Some("system:nodes"),
            server: true,
            names: vec![reached.node_name.clone(), "localhost".to_owned()],
            addresses: reached.addresses.clone(),
        })?,
        kubelet_client: leaf(client(
            "kubelet-client",
            "kube-apiserver-kubelet-client",
            Some("system:masters"),
        ))?,
        admin: leaf(client("admin", "salp-admin", Some("system:masters")))?,
        proxy: leaf(client(
            "proxy",
            "system:kube-proxy",
            Some("system:node-proxier"),
        ))?,
        sites: leaf(client("sites", "system:salp-sites", None))?,
        front_proxy,
        front_proxy_ca_pem: proxy_ca,
        service_account_key_pem: key(&dir.join("service-account.key"))?,
        ca_pem,
    })
}

fn client<'a>(file: &'a str, common_name: &str, organization: Option<&'a str>) -> Leaf<'a> {
    Leaf {
        file,
        common_name: common_name.to_owned(),
        organization,
        server: false,
        names: Vec::new(),
        addresses: Vec::new(),
    }
}

fn authority(dir: &Path, file: &str, common_name: &str) -> Result<(String, KeyPair)> {
    let (cert_path, key_path) = (
        dir.join(format!("{file}.crt")),
        dir.join(format!("{file}.key")),
    );
    let key = KeyPair::from_pem(&key(&key_path)?)
        .with_context(|| format!("read key {}", key_path.display()))?;
    if let Some(pem) = read_if_there(&cert_path)? {
        return Ok((pem, key));
    }
    let mut params = CertificateParams::default();
    params.distinguished_name = name(common_name, None);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    // Valid by any clock that a machine with a dead battery may show.
    params.not_before = rcgen::date_time_ymd(1970, 1, 2);
    params.not_after = rcgen::date_time_ymd(2120, 1, 1);
    let pem = params
        .self_signed(&key)
        .context("make certificate authority")?
        .pem();
    write_atomic(&cert_path, pem.as_bytes(), 0o644)?;
    Ok((pem, key))
}

fn issue(dir: &Path, issuer: &Issuer<'_, &KeyPair>, ca_pem: &str, leaf: &Leaf<'_>) -> Result<Pair> {
    let cert_path = dir.join(format!("{}.crt", leaf.file));
    let key_path = dir.join(format!("{}.key", leaf.file));
    let key_pem = key(&key_path)?;
    if let Some(cert_pem) = read_if_there(&cert_path)?
        && still_good(&cert_pem, ca_pem, &key_pem, leaf)
    {
        return Ok(Pair { cert_pem, key_pem });
    }
    let key =
        KeyPair::from_pem(&key_pem).with_context(|| format!("read key {}", key_path.display()))?;
    let mut params = CertificateParams::new(leaf.names.clone()).context("make certificate")?;
    params
        .subject_alt_names
        .extend(leaf.addresses.iter().map(|a| SanType::IpAddress(*a)));
    params.distinguished_name = name(&leaf.common_name, leaf.organization);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![if leaf.server {
        ExtendedKeyUsagePurpose::ServerAuth
    } else {
        ExtendedKeyUsagePurpose::ClientAuth
    }];
    params.use_authority_key_identifier_extension = true;
    let now = jiff::Timestamp::now();
    let ((y0, m0, d0), (y1, m1, d1)) = (date(now, -1), date(now, LEAF_DAYS));
    params.not_before = rcgen::date_time_ymd(y0, m0, d0);
    params.not_after = rcgen::date_time_ymd(y1, m1, d1);
    let cert_pem = params
        .signed_by(&key, issuer)
        .context("sign certificate")?
        .pem();
    write_atomic(&cert_path, cert_pem.as_bytes(), 0o644)?;
    Ok(Pair { cert_pem, key_pem })
}

/// The date so many days from `now`: year, month, day.
pub fn date(now: jiff::Timestamp, days: i64) -> (i32, u8, u8) {
    let date = (now + jiff::SignedDuration::from_hours(24 * days))
        .to_zoned(jiff::tz::TimeZone::UTC)
        .date();
    (
        i32::from(date.year()),
        date.month().unsigned_abs(),
        date.day().unsigned_abs(),
    )
}

/// Valid for another third of its life, of this authority and key, with all names that are wanted.
fn still_good(cert_pem: &str, ca_pem: &str, key_pem: &str, leaf: &Leaf<'_>) -> bool {
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(cert_pem.as_bytes()) else {
        return false;
    };
    let Ok(cert) = pem.parse_x509() else {
        return false;
    };
    let Ok((_, ca)) = x509_parser::pem::parse_x509_pem(ca_pem.as_bytes()) else {
        return false;
    };
    let Ok(ca) = ca.parse_x509() else {
        return false;
    };
    let Ok(key) = KeyPair::from_pem(key_pem) else {
        return false;
    };
    let now = jiff::Timestamp::now().as_second();
    let validity = cert.validity();
    let in_time = validity.not_before.timestamp() <= now
        && now + LEAF_DAYS * 86_400 / 3 <= validity.not_after.timestamp();
    let same_key = {
        use rcgen::PublicKeyData as _;
        cert.public_key().raw == key.subject_public_key_info().as_slice()
    };
    let mut names = Vec::new();
    let mut addresses: Vec<IpAddr> = Vec::new();
    if let Ok(Some(san)) = cert.subject_alternative_name() {
        for name in &san.value.general_names {
            match name {
                x509_parser::extensions::GeneralName::DNSName(n) => names.push((*n).to_owned()),
                x509_parser::extensions::GeneralName::IPAddress(raw) => {
                    if let Ok(four) = <[u8; 4]>::try_from(*raw) {
                        addresses.push(four.into());
                    } else if let Ok(sixteen) = <[u8; 16]>::try_from(*raw) {
                        addresses.push(sixteen.into());
                    }
                }
                _ => {}
            }
        }
    }
    let common_name = cert
        .subject()
        .iter_common_name()
        .next()
        .and_then(|c| c.as_str().ok());
    in_time
        && same_key
        && common_name == Some(&leaf.common_name)
        && cert.issuer() == ca.subject()
        && cert.verify_signature(Some(ca.public_key())).is_ok()
        && leaf.names.iter().all(|n| names.contains(n))
        && leaf.addresses.iter().all(|a| addresses.contains(a))
}

fn name(common_name: &str, organization: Option<&str>) -> DistinguishedName {
    let mut dn = DistinguishedName::new();
    if let Some(o) = organization {
        dn.push(DnType::OrganizationName, o);
    }
    dn.push(DnType::CommonName, common_name);
    dn
}

/// A P-256 key in PKCS #8 PEM, made on first use.
fn key(path: &Path) -> Result<String> {
    if let Some(pem) = read_if_there(path)? {
        return Ok(pem);
    }
    let pem = KeyPair::generate().context("make key")?.serialize_pem();
    write_atomic(path, pem.as_bytes(), 0o600)?;
    Ok(pem)
}

fn read_if_there(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("read {}", path.display())),
    }
}

/// Writes a kubeconfig with everything inside, and further servers for who understands that.
pub fn write_kubeconfig(
    path: &Path,
    server: &str,
    servers: &[String],
    ca_pem: &str,
    user: &str,
    pair: &Pair,
) -> Result<()> {
    use base64::Engine as _;
    let b64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let extensions = if servers.is_empty() {
        String::new()
    } else {
        let name = client::connect::SERVERS;
        let all = serde_json::json!([{"name": name, "extension": {"servers": servers}}]);
        format!("    extensions: {all}\n")
    };
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: salp\nclusters:\n- name: salp\n  cluster:\n    server: {server}\n    certificate-authority-data: {}\n{extensions}contexts:\n- name: salp\n  context:\n    cluster: salp\n    user: {user}\nusers:\n- name: {user}\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n",
        b64(ca_pem),
        b64(&pair.cert_pem),
        b64(&pair.key_pem),
    );
    if read_if_there(path)?.as_deref() == Some(&text) {
        return Ok(());
    }
    write_atomic(path, text.as_bytes(), 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reached(ip: &str) -> Reached {
        Reached {
            node_name: "till".to_owned(),
            addresses: vec![ip.parse().unwrap()],
        }
    }

    #[test]
    fn leaves_are_kept_until_a_name_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("site"));
        layout.create().unwrap();
        let first = load_or_create(&layout, &reached("127.0.0.1")).unwrap();
        let second = load_or_create(&layout, &reached("127.0.0.1")).unwrap();
        assert_eq!(first.ca_pem, second.ca_pem);
        assert_eq!(first.apiserver.cert_pem, second.apiserver.cert_pem);
        let third = load_or_create(&layout, &reached("192.0.2.7")).unwrap();
        assert_eq!(first.ca_pem, third.ca_pem);
        assert_ne!(first.apiserver.cert_pem, third.apiserver.cert_pem);
        assert_eq!(first.apiserver.key_pem, third.apiserver.key_pem);
        assert_eq!(first.admin.cert_pem, third.admin.cert_pem);
    }

    #[test]
    fn a_leaf_of_another_authority_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("site"));
        layout.create().unwrap();
        let first = load_or_create(&layout, &reached("127.0.0.1")).unwrap();
        std::fs::remove_file(layout.pki().join("ca.crt")).unwrap();
        std::fs::remove_file(layout.pki().join("ca.key")).unwrap();
        let second = load_or_create(&layout, &reached("127.0.0.1")).unwrap();
        assert_ne!(first.ca_pem, second.ca_pem);
        assert_ne!(first.admin.cert_pem, second.admin.cert_pem);
    }
}
