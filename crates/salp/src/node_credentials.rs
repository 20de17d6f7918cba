//! How a machine gets the certificates of a node: it finds the server's CA by a hash that it
//! was told, asks with a token, and later renews with what it has (TLS bootstrap).

use crate::api_access::{Access, explain};
use crate::certificate::{Life, names, node_of};
use crate::config::{Layout, write_atomic};
use crate::join_token::{Pinned, cluster_info};
use crate::output;
use crate::pki::{self, Pair};
use crate::{bootstrap_kubeconfig, servers};
use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long a node that starts waits for a certificate to serve with, where nobody's word is
/// needed for it.
pub const SERVING_WAIT: Duration = Duration::from_secs(10);
/// How long a request to renew a certificate is waited for, as upstream has it.
const RENEWED_DEADLINE: Duration = Duration::from_secs(900);
/// The same for the first one, which somebody may have to approve.
const APPROVED_DEADLINE: Duration = Duration::from_secs(600);
/// How long a machine with a certificate that is over looks for the server, before it starts
/// without.
const REACH_DEADLINE: Duration = Duration::from_secs(5);
/// Longest wait before the clock is looked at again: it may have been set, or have slept.
const LOOK_MAX: Duration = Duration::from_secs(3600);
/// Pauses between tries to renew: doubled up to the longest.
const RETRY: Duration = Duration::from_secs(5);
const RETRY_MAX: Duration = Duration::from_secs(600);

/// What a machine was told to join by.
#[derive(Clone, Debug)]
pub enum Invitation {
    /// A server whose CA it reads there, and knows by its hash.
    Token {
        server: String,
        token: String,
        ca_hash: String,
    },
    /// A kubeconfig file whose credentials may ask for a certificate, or are a node's.
    Kubeconfig(PathBuf),
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
                "join as node {node}: it has no certificate yet; give --server, --token and --ca-hash as `salp token create` prints them, or --kubeconfig"
            );
        };
        return join(layout, node, invitation).await;
    };
    if !Life::of(&known.client.cert_pem).is_over() {
        return Ok(known);
    }
    let Some(invitation) = invitation else {
        tracing::warn!(
            "the certificate of node {node} has expired; join again with --server, --token and --ca-hash as `salp token create` prints them, or --kubeconfig"
        );
        return Ok(known);
    };
    // Without a server, or with a token that has expired too, it still serves what it has.
    let joined = match tokio::time::timeout(REACH_DEADLINE, reach_by(invitation)).await {
        Ok(Ok(())) => join(layout, node, invitation).await,
        Ok(Err(error)) => Err(error),
        Err(_) => Err(anyhow::anyhow!("the server is not reached")),
    };
    joined.or_else(|error| {
        tracing::warn!("renew the certificate that has expired: {error:#}");
        Ok(known)
    })
}

async fn reach_by(invitation: &Invitation) -> Result<()> {
    match invitation {
        Invitation::Token { server, .. } => reach(server).await,
        Invitation::Kubeconfig(path) => reach(&bootstrap_kubeconfig::read(path)?.server).await,
    }
}

/// A certificate by what the machine was told, once the server is there.
async fn join(layout: &Layout, node: &str, invitation: &Invitation) -> Result<Credentials> {
    reach_by(invitation).await?;
    let request = Request::client(node);
    let made = match invitation {
        Invitation::Token {
            server,
            token,
            ca_hash,
        } => {
            let ca_pem = trusted_ca(server, ca_hash).await?;
            let access = access(server, Some(&ca_pem), Some(token))?;
            Credentials {
                server: server.clone(),
                ca_pem,
                client: certificate(&access, &request, APPROVED_DEADLINE).await?,
            }
        }
        Invitation::Kubeconfig(path) => by_kubeconfig(path, node, &request).await?,
    };
    made.write(layout, node)?;
    Ok(made)
}

/// The certificate of the file if that is this node's, else one that its credentials ask for.
async fn by_kubeconfig(path: &Path, node: &str, request: &Request<'_>) -> Result<Credentials> {
    let file = bootstrap_kubeconfig::read(path)?;
    let shown = file.shown.as_ref();
    let of_node = shown.and_then(|pair| node_of(&pair.cert_pem));
    if let Some(other) = of_node.as_deref().filter(|other| *other != node) {
        bail!(
            "join as node {node}: {} has the certificate of node {other}; give --node-name {other}, or another file",
            path.display()
        );
    }
    let is_good = |pair: &Pair| of_node.is_some() && !Life::of(&pair.cert_pem).is_over();
    let client = match file.shown.clone().filter(is_good) {
        Some(pair) => pair,
        None => {
            let access = Access {
                client: client::connect::from_kubeconfig(path).await?,
                namespace: "default".to_owned(),
            };
            let asked = certificate(&access, request, APPROVED_DEADLINE).await;
            asked.with_context(|| {
                format!(
                    "join by {}: its user must have the ClusterRole system:node-bootstrapper",
                    path.display()
                )
            })?
        }
    };
    Ok(Credentials {
        server: file.server,
        ca_pem: file.ca_pem,
        client,
    })
}

/// A certificate to serve the kubelet API with: that of an earlier start, whatever it is worth
/// (it is renewed soon), or a new one. Other clusters leave it to people to approve that: then
/// one that the node signs itself, until there is one (see [`Renewed`]).
pub async fn serving(layout: &Layout, node: &str, address: IpAddr, wait: Duration) -> Result<Pair> {
    if let Some(pair) = kept_serving(layout) {
        return Ok(pair);
    }
    if !wait.is_zero() {
        match new_serving(layout, node, address, wait).await {
            Ok(pair) => return Ok(pair),
            Err(error) => {
                tracing::warn!("serve the kubelet API with an own certificate: {error:#}")
            }
        }
    }
    let key = KeyPair::generate().context("make key")?;
    let mut params = CertificateParams::new(vec![node.to_owned()]).context("make certificate")?;
    params.subject_alt_names.push(SanType::IpAddress(address));
    let cert = params.self_signed(&key).context("make certificate")?;
    Ok(Pair {
        cert_pem: cert.pem(),
        key_pem: key.serialize_pem(),
    })
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

async fn new_serving(layout: &Layout, node: &str, address: IpAddr, wait: Duration) -> Result<Pair> {
    let addresses = [address];
    let request = Request {
        node,
        signer: "kubernetes.io/kubelet-serving",
        usage: "server auth",
        addresses: &addresses,
    };
    let pair = certificate(&own_access(layout).await?, &request, wait).await?;
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

/// A running node whose certificates are renewed.
pub struct Renewed {
    pub layout: Layout,
    pub name: String,
    pub address: IpAddr,
    pub node: Arc<node::Node>,
}

#[derive(Clone, Copy, Debug)]
enum Which {
    Client,
    Serving,
}

impl Renewed {
    /// Renews both certificates in time, each time. Clients follow the kubeconfig; the kubelet
    /// API is told. Neither waits for the other, which may need somebody's word.
    pub async fn keep_fresh(self) {
        tokio::join!(self.keep(Which::Client), self.keep(Which::Serving));
    }

    async fn keep(&self, which: Which) {
        // Nodes that joined together do not all ask together.
        let jitter = rand::random::<f64>();
        let mut pause = RETRY;
        loop {
            let renewed = match which {
                Which::Client => self.renew_client(jitter).await,
                Which::Serving => self.renew_serving(jitter).await,
            };
            let left = match renewed {
                Ok(left) => {
                    pause = RETRY;
                    left.clamp(RETRY, LOOK_MAX)
                }
                Err(error) => {
                    tracing::warn!("renew certificates of node {}: {error:#}", self.name);
                    pause = (pause * 2).min(RETRY_MAX);
                    pause
                }
            };
            tokio::time::sleep(left).await;
        }
    }

    /// Renews it if it is due; how long it is not.
    async fn renew_client(&self, jitter: f64) -> Result<Duration> {
        let (layout, name) = (&self.layout, &self.name);
        let mut known = load(layout, name)?.context("read node's kubeconfig: it has gone")?;
        let left = Life::of(&known.client.cert_pem).left(jitter);
        if !left.is_zero() {
            return Ok(left);
        }
        let access = own_access(layout).await?;
        known.client = certificate(&access, &Request::client(name), RENEWED_DEADLINE).await?;
        known.write(layout, name)?;
        tracing::info!(node = name, "renewed the client certificate");
        Ok(Life::of(&known.client.cert_pem).left(jitter))
    }

    /// The same.
    async fn renew_serving(&self, jitter: f64) -> Result<Duration> {
        let (layout, name) = (&self.layout, &self.name);
        let kept = kept_serving(layout).filter(|pair| names(&pair.cert_pem, self.address));
        let left = kept.map_or(Duration::ZERO, |pair| Life::of(&pair.cert_pem).left(jitter));
        if !left.is_zero() {
            return Ok(left);
        }
        let pair = new_serving(layout, name, self.address, RENEWED_DEADLINE).await?;
        self.node
            .serve_with(&pair.cert_pem, &pair.key_pem)
            .context("serve the kubelet API")?;
        tracing::info!(node = name, "renewed the serving certificate");
        Ok(Life::of(&pair.cert_pem).left(jitter))
    }
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
async fn trusted_ca(server: &str, hash: &str) -> Result<String> {
    let anybody = access(server, None, None)?;
    let (_, ca) = cluster_info(&anybody)
        .await
        .with_context(|| format!("join {server}"))?;
    // One certificate and no more: whatever else came with it was not vouched for.
    let found = Pinned::read(&ca)?;
    if found.hash != hash {
        bail!(
            "join {server}: its CA is {}, not {hash}: this is another server than the one that made the token",
            found.hash
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
