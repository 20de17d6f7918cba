//! How a machine gets the certificates of a node: it finds the server's CA by a hash that it
//! was told, asks with a token, and later renews with what it has (TLS bootstrap).

use crate::api_access::{Access, explain};
use crate::config::{Layout, write_atomic};
use crate::join_token::{Pinned, cluster_info};
use crate::output;
use crate::pki::{self, Pair};
use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// How long a request for a certificate may take.
const SIGNED_DEADLINE: Duration = Duration::from_secs(60);
/// Days left at which a start renews a certificate.
const RENEW_DAYS: i64 = 120;

/// What a machine was told to join by.
#[derive(Clone, Debug)]
pub struct Invitation {
    pub server: String,
    pub token: String,
    pub ca_hash: String,
}

/// What a node shows and trusts.
#[derive(Debug)]
pub struct Credentials {
    pub server: String,
    pub ca_pem: String,
    pub client: Pair,
}

/// The node's own kubeconfig.
pub fn kubeconfig(layout: &Layout) -> PathBuf {
    layout.pki().join("node.kubeconfig")
}

/// Those of an earlier start, or new ones by the invitation.
pub async fn obtain(
    layout: &Layout,
    node: &str,
    invitation: Option<&Invitation>,
) -> Result<Credentials> {
    if let Some(known) = load(layout, node).await? {
        return Ok(known);
    }
    let Some(invitation) = invitation else {
        bail!(
            "join as node {node}: it has no certificate yet; give --server, --token and --ca-hash as `salp token create` prints them"
        );
    };
    reach(&invitation.server).await?;
    let ca_pem = trusted_ca(invitation).await?;
    let token = access(&invitation.server, Some(&ca_pem), Some(&invitation.token))?;
    let request = Request {
        node,
        signer: "kubernetes.io/kube-apiserver-client-kubelet",
        usage: "client auth",
        addresses: &[],
    };
    let client = certificate(layout, "node", &token, &request).await?;
    let made = Credentials {
        server: invitation.server.clone(),
        ca_pem,
        client,
    };
    pki::write_kubeconfig(
        &kubeconfig(layout),
        &made.server,
        &made.ca_pem,
        &format!("system:node:{node}"),
        &made.client,
    )?;
    Ok(made)
}

/// A certificate to serve the kubelet API with, kept from an earlier start if it is good.
pub async fn serving(layout: &Layout, node: &str, address: IpAddr) -> Result<Pair> {
    let (cert, key) = (
        layout.pki().join("serving.crt"),
        layout.pki().join("serving.key"),
    );
    if let (Ok(cert_pem), Ok(key_pem)) =
        (std::fs::read_to_string(cert), std::fs::read_to_string(key))
        && is_good(&cert_pem, Some(address))
    {
        return Ok(Pair { cert_pem, key_pem });
    }
    let path = kubeconfig(layout);
    let client = client::connect::from_kubeconfig(&path).await?;
    let access = Access {
        client,
        namespace: "default".to_owned(),
    };
    let request = Request {
        node,
        signer: "kubernetes.io/kubelet-serving",
        usage: "server auth",
        addresses: &[address],
    };
    certificate(layout, "serving", &access, &request).await
}

async fn load(layout: &Layout, node: &str) -> Result<Option<Credentials>> {
    let path = kubeconfig(layout);
    if !path.exists() {
        return Ok(None);
    }
    let config = kube::config::Kubeconfig::read_from(&path).context("read node's kubeconfig")?;
    let user = config.auth_infos.first().map(|u| u.name.clone());
    if user.as_deref() != Some(&*format!("system:node:{node}")) {
        bail!(
            "join as node {node}: this directory is that of {}; give another --data-dir, or leave first with `salp node leave`",
            user.unwrap_or_default()
        );
    }
    let cluster = config.clusters.into_iter().next().and_then(|c| c.cluster);
    let cluster = cluster.context("read node's kubeconfig")?;
    let ca = base64::engine::general_purpose::STANDARD
        .decode(cluster.certificate_authority_data.unwrap_or_default())
        .context("read node's kubeconfig")?;
    let read = |file: &str| {
        let path = layout.pki().join(file);
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    let mut made = Credentials {
        server: cluster.server.unwrap_or_default(),
        ca_pem: String::from_utf8(ca).context("read node's kubeconfig")?,
        client: Pair {
            cert_pem: read("node.crt")?,
            key_pem: read("node.key")?,
        },
    };
    if !is_good(&made.client.cert_pem, None) {
        // Still valid for a while: a server that is out of reach is no reason not to start.
        let access = Access {
            client: client::connect::from_kubeconfig(&path).await?,
            namespace: "default".to_owned(),
        };
        let request = Request {
            node,
            signer: "kubernetes.io/kube-apiserver-client-kubelet",
            usage: "client auth",
            addresses: &[],
        };
        match certificate(layout, "node", &access, &request).await {
            Ok(pair) => {
                made.client = pair;
                let user = format!("system:node:{node}");
                pki::write_kubeconfig(&path, &made.server, &made.ca_pem, &user, &made.client)?;
            }
            Err(error) => tracing::warn!("renew node certificate: {error:#}"),
        }
    }
    Ok(Some(made))
}

/// The CA that the server names, if it is the one that was meant.
async fn trusted_ca(invitation: &Invitation) -> Result<String> {
    let anybody = access(&invitation.server, None, None)?;
    let (_, ca) = cluster_info(&anybody)
        .await
        .with_context(|| format!("join {}", invitation.server))?;
    // One certificate and no more: whatever else came with it was not vouched for.
    let found = Pinned::read(&ca)?;
    if found.hash != invitation.ca_hash {
        bail!(
            "join {}: its CA is {}, not {}: this is another server than the one that made the token",
            invitation.server,
            found.hash,
            invitation.ca_hash
        );
    }
    Ok(found.ca_pem)
}

/// Waits until something listens there.
async fn reach(server: &str) -> Result<()> {
    const ANSWER: Duration = Duration::from_secs(1);
    const AGAIN: Duration = Duration::from_millis(250);
    let url = address(server)?;
    let host = url.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let at = (host, url.port_u16().unwrap_or(443));
    let mut told = false;
    loop {
        let connected = tokio::time::timeout(ANSWER, tokio::net::TcpStream::connect(at)).await;
        if let Ok(Ok(_)) = connected {
            return Ok(());
        }
        if !std::mem::replace(&mut told, true) {
            output::note(format!("waiting for {server}"));
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn address(server: &str) -> Result<http::Uri> {
    let url: Option<http::Uri> = server.parse().ok();
    url.filter(|u| u.scheme_str() == Some("https") && u.host().is_some())
        .with_context(|| format!("use server {server:?}: want https://HOST:PORT"))
}

/// A client that trusts one CA, or, to read what is then checked, whoever answers.
fn access(server: &str, ca_pem: Option<&str>, token: Option<&str>) -> Result<Access> {
    let mut config = kube::Config::new(address(server)?);
    match ca_pem {
        Some(pem) => {
            let (_, parsed) =
                x509_parser::pem::parse_x509_pem(pem.as_bytes()).context("read CA")?;
            config.root_cert = Some(vec![parsed.contents]);
        }
        None => config.accept_invalid_certs = true,
    }
    config.auth_info.token = token.map(|t| t.to_owned().into());
    Ok(Access {
        client: kube::Client::try_from(config).context("use server")?,
        namespace: "default".to_owned(),
    })
}

/// What a certificate is asked for.
struct Request<'a> {
    node: &'a str,
    signer: &'a str,
    usage: &'a str,
    addresses: &'a [IpAddr],
}

/// Asks for a certificate and waits for it; key and certificate are kept in `pki/`.
async fn certificate(
    layout: &Layout,
    file: &str,
    access: &Access,
    asked: &Request<'_>,
) -> Result<Pair> {
    // A key of its own for each request: an old one may have been read.
    let key = KeyPair::generate().context("make key")?;
    let serves = !asked.addresses.is_empty();
    let names = if serves {
        vec![asked.node.to_owned()]
    } else {
        Vec::new()
    };
    let mut params = CertificateParams::new(names).context("make request")?;
    let addresses = asked.addresses.iter().map(|a| SanType::IpAddress(*a));
    params.subject_alt_names.extend(addresses);
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "system:nodes");
    name.push(DnType::CommonName, format!("system:node:{}", asked.node));
    params.distinguished_name = name;
    let pem = params
        .serialize_request(&key)
        .and_then(|r| r.pem())
        .context("make request")?;
    let body = json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"generateName": "node-csr-"},
        "spec": {
            "request": base64::engine::general_purpose::STANDARD.encode(pem),
            "signerName": asked.signer, "usages": ["digital signature", asked.usage],
        },
    });
    const PATH: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let made = access
        .post(PATH, &body)
        .await
        .context("ask for a certificate")?;
    let name = made["metadata"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let waited = tokio::time::timeout(SIGNED_DEADLINE, signed(access, PATH, &name)).await;
    let cert_pem = match waited {
        Ok(certificate) => certificate?,
        Err(_) => bail!(
            "ask for a certificate: nobody signed it; see `kubectl describe csr {name}`, approve it with `kubectl certificate approve {name}` and start again"
        ),
    };
    let pair = Pair {
        cert_pem,
        key_pem: key.serialize_pem(),
    };
    let at = |kind: &str| layout.pki().join(format!("{file}.{kind}"));
    write_atomic(&at("key"), pair.key_pem.as_bytes(), 0o600)?;
    write_atomic(&at("crt"), pair.cert_pem.as_bytes(), 0o644)?;
    Ok(pair)
}

/// Waits until a request is signed or refused.
async fn signed(access: &Access, path: &str, name: &str) -> Result<String> {
    const LOOK: Duration = Duration::from_millis(50);
    loop {
        let request = access
            .client
            .request::<Value>(http::Request::get(format!("{path}/{name}")).body(Vec::new())?)
            .await
            .map_err(explain)?;
        if let Some(certificate) = request["status"]["certificate"].as_str() {
            let bytes = base64::engine::general_purpose::STANDARD.decode(certificate)?;
            return Ok(String::from_utf8(bytes)?);
        }
        let conditions = request["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten();
        for condition in conditions {
            if matches!(condition["type"].as_str(), Some("Denied" | "Failed")) {
                bail!(
                    "ask for a certificate: refused: {}",
                    condition["message"].as_str().unwrap_or_default()
                );
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether a certificate is good for a while, and for an address.
fn is_good(cert_pem: &str, address: Option<IpAddr>) -> bool {
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(cert_pem.as_bytes()) else {
        return false;
    };
    let Ok(cert) = pem.parse_x509() else {
        return false;
    };
    let left = cert.validity().not_after.timestamp() - jiff::Timestamp::now().as_second();
    let named = address.is_none_or(|address| {
        let names = cert.subject_alternative_name().ok().flatten();
        names.is_some_and(|san| {
            san.value.general_names.iter().any(|n| match (n, address) {
                (x509_parser::extensions::GeneralName::IPAddress(raw), IpAddr::V4(a)) => {
                    **raw == a.octets()
                }
                (x509_parser::extensions::GeneralName::IPAddress(raw), IpAddr::V6(a)) => {
                    **raw == a.octets()
                }
                _ => false,
            })
        })
    });
    named && left > RENEW_DAYS * 86_400
}
