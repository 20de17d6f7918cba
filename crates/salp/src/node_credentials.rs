//! How a machine gets the certificates of a node: it finds the server's CA by a hash that it
//! was told, asks with a token, and later renews with what it has (TLS bootstrap).

use crate::api_access::{Access, explain};
use crate::config::{Layout, write_atomic};
use crate::join_token::{Pinned, cluster_info};
use crate::output;
use crate::pki::{self, Pair};
use crate::servers;
use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How long a request for a certificate may take that needs nobody's word.
const SIGNED_DEADLINE: Duration = Duration::from_secs(60);
/// The same for one by a token, which somebody may have to approve.
const APPROVED_DEADLINE: Duration = Duration::from_secs(600);
/// How long a machine with a certificate that is over looks for the server, before it starts
/// without.
const REACH_DEADLINE: Duration = Duration::from_secs(5);
/// The part of its life after which a certificate is renewed, and over how much of it nodes
/// spread, as upstream has it.
const RENEW_AFTER: f64 = 0.7;
const RENEW_SPREAD: f64 = 0.2;
/// Longest wait before the clock is looked at again: it may have been set, or have slept.
const LOOK_MAX: Duration = Duration::from_secs(3600);
/// Pauses between tries to renew: doubled up to the longest.
const RETRY: Duration = Duration::from_secs(5);
const RETRY_MAX: Duration = Duration::from_secs(600);

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

/// The certificate that the kubelet API is served with, and its key: one file, so that they
/// belong together whenever the machine stops.
fn serving_file(layout: &Layout) -> PathBuf {
    layout.pki().join("serving.pem")
}

/// Everything that is kept here, also by earlier versions.
pub fn files(layout: &Layout) -> Vec<PathBuf> {
    let old = ["node.crt", "node.key", "serving.crt", "serving.key"];
    let mut files = vec![kubeconfig(layout), serving_file(layout)];
    files.extend(old.map(|file| layout.pki().join(file)));
    files
}

/// Those of an earlier start, or new ones by the invitation.
pub async fn obtain(
    layout: &Layout,
    node: &str,
    invitation: Option<&Invitation>,
) -> Result<Credentials> {
    let Some(known) = load(layout, node)? else {
        let Some(invitation) = invitation else {
            bail!(
                "join as node {node}: it has no certificate yet; give --server, --token and --ca-hash as `salp token create` prints them"
            );
        };
        reach(&invitation.server).await?;
        return join(layout, node, invitation).await;
    };
    if !Life::of(&known.client.cert_pem).is_over() {
        return Ok(known);
    }
    let Some(invitation) = invitation else {
        tracing::warn!(
            "the certificate of node {node} has expired; join again with --server, --token and --ca-hash as `salp token create` prints them"
        );
        return Ok(known);
    };
    // Without a server, or with a token that has expired too, it still serves what it has.
    let reached = tokio::time::timeout(REACH_DEADLINE, reach(&invitation.server)).await;
    let joined = match reached {
        Ok(Ok(())) => join(layout, node, invitation).await,
        Ok(Err(error)) => Err(error),
        Err(_) => Err(anyhow::anyhow!("{} is not reached", invitation.server)),
    };
    joined.or_else(|error| {
        tracing::warn!("renew the certificate that has expired: {error:#}");
        Ok(known)
    })
}

/// A certificate by the token.
async fn join(layout: &Layout, node: &str, invitation: &Invitation) -> Result<Credentials> {
    let ca_pem = trusted_ca(invitation).await?;
    let token = access(&invitation.server, Some(&ca_pem), Some(&invitation.token))?;
    let request = Request::client(node);
    let client = certificate(&token, &request, APPROVED_DEADLINE).await?;
    let made = Credentials {
        server: invitation.server.clone(),
        ca_pem,
        client,
    };
    made.write(layout, node)?;
    Ok(made)
}

/// A certificate to serve the kubelet API with: that of an earlier start, whatever it is worth
/// (it is renewed soon), or a new one.
pub async fn serving(layout: &Layout, node: &str, address: IpAddr) -> Result<Pair> {
    match kept_serving(layout) {
        Some(pair) => Ok(pair),
        None => new_serving(layout, node, address).await,
    }
}

fn kept_serving(layout: &Layout) -> Option<Pair> {
    const KEY: &str = "-----BEGIN PRIVATE KEY-----";
    let text = std::fs::read_to_string(serving_file(layout)).ok()?;
    let (cert_pem, key_pem) = text.split_at_checked(text.find(KEY)?)?;
    Some(Pair {
        cert_pem: cert_pem.to_owned(),
        key_pem: key_pem.to_owned(),
    })
}

async fn new_serving(layout: &Layout, node: &str, address: IpAddr) -> Result<Pair> {
    let addresses = [address];
    let request = Request {
        node,
        signer: "kubernetes.io/kubelet-serving",
        usage: "server auth",
        addresses: &addresses,
    };
    let pair = certificate(&own_access(layout).await?, &request, SIGNED_DEADLINE).await?;
    let text = format!("{}\n{}", pair.cert_pem.trim_end(), pair.key_pem);
    write_atomic(&serving_file(layout), text.as_bytes(), 0o600)?;
    Ok(pair)
}

/// With the certificate that the node has.
async fn own_access(layout: &Layout) -> Result<Access> {
    Ok(Access {
        client: client::connect::from_kubeconfig(&kubeconfig(layout)).await?,
        namespace: "default".to_owned(),
    })
}

/// Renews both certificates of a running node in time, each time. Clients follow the
/// kubeconfig; the kubelet API is told.
pub async fn keep_fresh(layout: Layout, name: String, address: IpAddr, node: Arc<node::Node>) {
    // Nodes that joined together do not all ask together.
    let jitter = rand::random::<f64>();
    let mut pause = RETRY;
    loop {
        let left = match renew_due(&layout, &name, address, jitter, &node).await {
            Ok(left) => {
                pause = RETRY;
                left.clamp(RETRY, LOOK_MAX)
            }
            Err(error) => {
                tracing::warn!("renew certificates of node {name}: {error:#}");
                pause = (pause * 2).min(RETRY_MAX);
                pause
            }
        };
        tokio::time::sleep(left).await;
    }
}

/// Renews what is due; how long nothing is.
async fn renew_due(
    layout: &Layout,
    name: &str,
    address: IpAddr,
    jitter: f64,
    node: &node::Node,
) -> Result<Duration> {
    let mut known = load(layout, name)?.context("read node's kubeconfig: it has gone")?;
    let mut left = Life::of(&known.client.cert_pem).left(jitter);
    if left.is_zero() {
        let request = Request::client(name);
        let access = own_access(layout).await?;
        known.client = certificate(&access, &request, SIGNED_DEADLINE).await?;
        known.write(layout, name)?;
        tracing::info!(node = name, "renewed the client certificate");
        left = Life::of(&known.client.cert_pem).left(jitter);
    }
    let serving = kept_serving(layout).filter(|pair| names(&pair.cert_pem, address));
    let mut serving_left =
        serving.map_or(Duration::ZERO, |pair| Life::of(&pair.cert_pem).left(jitter));
    if serving_left.is_zero() {
        let pair = new_serving(layout, name, address).await?;
        node.serve_with(&pair.cert_pem, &pair.key_pem)
            .context("serve the kubelet API")?;
        tracing::info!(node = name, "renewed the serving certificate");
        serving_left = Life::of(&pair.cert_pem).left(jitter);
    }
    Ok(left.min(serving_left))
}

impl Credentials {
    fn write(&self, layout: &Layout, node: &str) -> Result<()> {
        let user = format!("system:node:{node}");
        let path = kubeconfig(layout);
        let servers = servers::known(layout);
        let (server, ca) = (&self.server, &self.ca_pem);
        pki::write_kubeconfig(&path, server, &servers, ca, &user, &self.client)
    }
}

/// Writes the node's kubeconfig with the servers that are known now.
pub fn name_servers(layout: &Layout, node: &str) -> Result<()> {
    match load(layout, node)? {
        Some(known) => known.write(layout, node),
        None => Ok(()),
    }
}

fn load(layout: &Layout, node: &str) -> Result<Option<Credentials>> {
    let path = kubeconfig(layout);
    if !path.exists() {
        return Ok(None);
    }
    const READ: &str = "read node's kubeconfig";
    let text = std::fs::read_to_string(&path).context(READ)?;
    let config: Value = serde_saphyr::from_str(&text).context(READ)?;
    let user = &config["users"][0];
    let name = user["name"].as_str().unwrap_or_default();
    if name != format!("system:node:{node}") {
        bail!(
            "join as node {node}: this directory is that of {name}; give another --data-dir, or leave first with `salp node leave`"
        );
    }
    let decode = |value: &Value| -> Result<String> {
        let text = value.as_str().context(READ)?;
        let bytes = base64::engine::general_purpose::STANDARD.decode(text);
        String::from_utf8(bytes.context(READ)?).context(READ)
    };
    let (cluster, user) = (&config["clusters"][0]["cluster"], &user["user"]);
    Ok(Some(Credentials {
        server: cluster["server"].as_str().context(READ)?.to_owned(),
        ca_pem: decode(&cluster["certificate-authority-data"])?,
        client: Pair {
            cert_pem: decode(&user["client-certificate-data"])?,
            key_pem: decode(&user["client-key-data"])?,
        },
    }))
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

/// Waits until something listens there. Tries overlap: one that was made before the network
/// came may take a second to notice.
async fn reach(server: &str) -> Result<()> {
    const ANSWER: Duration = Duration::from_secs(3);
    const AGAIN: Duration = Duration::from_millis(200);
    let url = address(server)?;
    let host = url.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let at = (host, url.port_u16().unwrap_or(443));
    let mut tries = FuturesUnordered::new();
    let mut again = tokio::time::interval(AGAIN);
    for tick in 0u64.. {
        again.tick().await;
        if tick == 1 {
            output::note(format!("waiting for {server}"));
        }
        tries.push(tokio::time::timeout(
            ANSWER,
            tokio::net::TcpStream::connect(at),
        ));
        let connected = async {
            while let Some(tried) = tries.next().await {
                if matches!(tried, Ok(Ok(_))) {
                    return true;
                }
            }
            // The next tick makes another.
            std::future::pending().await
        };
        if let Ok(true) = tokio::time::timeout(AGAIN, connected).await {
            return Ok(());
        }
    }
    bail!("reach {server}")
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

impl<'a> Request<'a> {
    fn client(node: &'a str) -> Self {
        Self {
            node,
            signer: "kubernetes.io/kube-apiserver-client-kubelet",
            usage: "client auth",
            addresses: &[],
        }
    }
}

/// Asks for a certificate and waits for it.
async fn certificate(access: &Access, asked: &Request<'_>, deadline: Duration) -> Result<Pair> {
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
    let waited = tokio::time::timeout(deadline, signed(access, PATH, &name)).await;
    let cert_pem = match waited {
        Ok(certificate) => certificate?,
        Err(_) => bail!(
            "ask for a certificate: nobody signed it; see `kubectl describe csr {name}`, approve it with `kubectl certificate approve {name}` and start again"
        ),
    };
    Ok(Pair {
        cert_pem,
        key_pem: key.serialize_pem(),
    })
}

/// Waits until a request is signed or refused.
async fn signed(access: &Access, path: &str, name: &str) -> Result<String> {
    const LOOK: Duration = Duration::from_millis(50);
    const LOOK_LATER: Duration = Duration::from_secs(1);
    /// Looks after which it needs somebody's word.
    const LOOKS: u32 = 60;
    for looks in 0u32.. {
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
        if looks == LOOKS {
            output::note(format!(
                "waiting for somebody to approve this: `kubectl certificate approve {name}`"
            ));
        }
        let pause = if looks < LOOKS { LOOK } else { LOOK_LATER };
        tokio::time::sleep(pause).await;
    }
    bail!("ask for a certificate: nobody signed it")
}

/// From when until when a certificate is good, seconds; one that can't be read never is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Life {
    from: i64,
    until: i64,
}

impl Life {
    fn of(cert_pem: &str) -> Self {
        let life = with_certificate(cert_pem, |cert| Self {
            from: cert.validity().not_before.timestamp(),
            until: cert.validity().not_after.timestamp(),
        });
        life.unwrap_or_default()
    }

    fn is_over(self) -> bool {
        jiff::Timestamp::now().as_second() >= self.until
    }

    /// How long it need not be renewed; `jitter` is this node's own, from 0 to 1.
    fn left(self, jitter: f64) -> Duration {
        self.left_at(jiff::Timestamp::now().as_second(), jitter)
    }

    fn left_at(self, now: i64, jitter: f64) -> Duration {
        let life = Duration::from_secs(u64::try_from(self.until - self.from).unwrap_or(0));
        let due = life.mul_f64(RENEW_AFTER + RENEW_SPREAD * jitter.clamp(0.0, 1.0));
        // Before its time the clock is wrong: no reason to ask again and again.
        let age = Duration::from_secs(u64::try_from(now - self.from).unwrap_or(0));
        due.saturating_sub(age)
    }
}

/// Whether a certificate is for an address.
fn names(cert_pem: &str, address: IpAddr) -> bool {
    use x509_parser::extensions::GeneralName;
    let wanted = match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    };
    let named = with_certificate(cert_pem, |cert| {
        let names = cert.subject_alternative_name().ok().flatten();
        names.is_some_and(|san| {
            let mut names = san.value.general_names.iter();
            names.any(|name| matches!(name, GeneralName::IPAddress(raw) if **raw == *wanted))
        })
    });
    named.unwrap_or(false)
}

fn with_certificate<T>(
    cert_pem: &str,
    read: impl FnOnce(&x509_parser::certificate::X509Certificate<'_>) -> T,
) -> Option<T> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(cert_pem.as_bytes()).ok()?;
    pem.parse_x509().ok().map(|cert| read(&cert))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_renewed_late_in_their_life() {
        let life = Life {
            from: 1000,
            until: 2000,
        };
        for (now, jitter, left) in [
            (1000, 0.0, 700),
            (1000, 1.0, 900),
            (1000, 7.0, 900),
            (1600, 0.5, 200),
            (1900, 1.0, 0),
            (2500, 0.0, 0),
            // The clock is behind.
            (10, 0.0, 700),
        ] {
            let found = life.left_at(now, jitter);
            assert_eq!(found, Duration::from_secs(left), "{now} {jitter}");
        }
        assert_eq!(Life::of("nonsense").left_at(5, 0.0), Duration::ZERO);
        assert!(Life::of("nonsense").is_over());
    }

    #[test]
    fn a_certificate_s_life_and_addresses_are_read() {
        let mut params = CertificateParams::new(vec!["n1".to_owned()]).unwrap();
        let here: IpAddr = "192.0.2.1".parse().unwrap();
        params.subject_alt_names.push(SanType::IpAddress(here));
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 1, 11);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let life = Life::of(&pem);
        assert_eq!(life.until - life.from, 10 * 86_400);
        assert!(life.is_over());
        assert!(names(&pem, here));
        assert!(!names(&pem, "192.0.2.2".parse().unwrap()));
    }
}
