//! `salp token create`: a bootstrap token by which another machine joins as a node.

use crate::api_access::{Access, block_on, connect};
use crate::cli::Target;
use crate::output;
use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use rand::RngExt as _;
use serde_json::json;
use std::process::ExitCode;
use std::time::Duration;

/// Letters of tokens.
const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// What `salp token` can do besides tokens of ServiceAccounts.
#[derive(Clone, Debug, Subcommand)]
pub enum TokenCommand {
    /// Print the command by which another machine joins this site as a node.
    #[command(after_help = "Examples:\n  salp token create\n  salp token create --duration 10m")]
    Create(CreateArgs),
}

/// Flags of `salp token create`.
#[derive(Clone, Debug, Args)]
pub struct CreateArgs {
    #[command(flatten)]
    pub target: Target,
    /// How long machines may join by it, such as `10m` or `24h`.
    #[arg(long, default_value = "24h", value_parser = crate::client_commands::parse_duration)]
    pub duration: Duration,
}

/// `salp token create`.
pub fn create(args: &CreateArgs) -> Result<ExitCode> {
    block_on(async {
        let access = connect(&args.target).await?;
        let (server, ca) = cluster_info(&access).await?;
        let host = server.parse::<http::Uri>().ok();
        let host = host.as_ref().and_then(http::Uri::host).unwrap_or_default();
        if host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
        {
            bail!(
                "make a join token: other machines can't reach {server}: start the site with `salp up --bind-address IP`"
            );
        }
        let id = random(6);
        let secret = random(16);
        let until = jiff::Timestamp::now() + jiff::SignedDuration::try_from(args.duration)?;
        let body = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
            "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": "kube-system"},
            "stringData": {
                "token-id": id, "token-secret": secret,
                "expiration": until.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
                "usage-bootstrap-authentication": "true",
                "description": "made by salp token create",
            },
        });
        access
            .post("/api/v1/namespaces/kube-system/secrets", &body)
            .await?;
        output::line(format!(
            "salp node join --server {server} --token {id}.{secret} --ca-hash {}",
            Pinned::read(&ca)?.hash
        ));
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Address of the server and its CA (PEM), as whoever joins reads them.
pub async fn cluster_info(access: &Access) -> Result<(String, String)> {
    let map = access
        .get("/api/v1/namespaces/kube-public/configmaps/cluster-info")
        .await
        .context("read cluster-info")?;
    let text = map["data"]["kubeconfig"].as_str().unwrap_or_default();
    let config: kube::config::Kubeconfig =
        serde_saphyr::from_str(text).context("read cluster-info")?;
    let cluster = config.clusters.into_iter().next().and_then(|c| c.cluster);
    let Some(cluster) = cluster else {
        bail!("read cluster-info: it names no cluster");
    };
    let ca = cluster.certificate_authority_data.unwrap_or_default();
    let ca = decode(&ca).context("read cluster-info")?;
    Ok((cluster.server.unwrap_or_default(), ca))
}

fn decode(text: &str) -> Result<String> {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(text)?;
    Ok(String::from_utf8(bytes)?)
}

/// A CA and what it is known by.
pub struct Pinned {
    /// `sha256:` and the hash of the CA's public key, as kubeadm writes it.
    pub hash: String,
    /// The certificate with this hash, and nothing else: what stood around it in the text
    /// that was read is not here, as another parser might find another certificate in it.
    pub ca_pem: String,
}

impl Pinned {
    /// Reads a text with this one certificate.
    pub fn read(text: &str) -> Result<Self> {
        let (rest, pem) = x509_parser::pem::parse_x509_pem(text.as_bytes()).context("read CA")?;
        if !rest.trim_ascii().is_empty() || pem.label != "CERTIFICATE" {
            bail!("read CA: there is something else than one certificate");
        }
        let (rest, cert) = x509_parser::parse_x509_certificate(&pem.contents).context("read CA")?;
        if !rest.is_empty() {
            bail!("read CA: there is something behind the certificate");
        }
        let hash = ring::digest::digest(&ring::digest::SHA256, cert.public_key().raw);
        Ok(Self {
            hash: format!("sha256:{}", hex(hash.as_ref())),
            ca_pem: encode(&pem.contents),
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A certificate as PEM (RFC 7468): 64 characters a line.
fn encode(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

fn random(length: usize) -> String {
    let mut rng = rand::rng();
    (0..length)
        .map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_ca_has_a_hash() {
        let dir = tempfile::tempdir().expect("a directory");
        let layout = crate::config::Layout::new(dir.path().join("site"));
        layout.create().expect("made");
        let reached = crate::pki::Reached {
            node_name: "a".to_owned(),
            addresses: Vec::new(),
        };
        let ca = crate::pki::load_or_create(&layout, &reached)
            .expect("made")
            .ca_pem;
        let pinned = Pinned::read(&ca).expect("a CA");
        let hash = &pinned.hash;
        assert!(
            hash.starts_with("sha256:") && hash.len() == 7 + 64,
            "{hash}"
        );
        // Whoever stands between could put a CA of their own behind the right one.
        assert!(Pinned::read(&format!("{ca}{ca}")).is_err());
        assert!(Pinned::read("").is_err());
        // Or before it, where this parser does not look and others do.
        assert_eq!(
            pinned.ca_pem.replace("\r\n", "\n"),
            ca.replace("\r\n", "\n")
        );
        for before in [format!(" {ca}"), format!("x\r{}\r", ca.replace('\n', "\r"))] {
            let read = Pinned::read(&format!("{before}\n{ca}"));
            assert!(read.is_err() || read.is_ok_and(|r| r.ca_pem == pinned.ca_pem));
        }
    }
}
