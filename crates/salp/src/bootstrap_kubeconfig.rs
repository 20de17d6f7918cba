//! The kubeconfig file that `salp node join --kubeconfig` is given: whose server and CA a node
//! takes, and whether its credentials are already a node's. As whom the first certificate is
//! asked for (token, certificate, a program) is kube's to read.

use crate::pki::Pair;
use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use kube::config::{AuthInfo, Kubeconfig};
use std::path::Path;

/// What a node keeps of the file.
#[derive(Debug)]
pub struct Bootstrap {
    pub server: String,
    pub ca_pem: String,
    /// The client certificate that the file shows, if it shows one.
    pub shown: Option<Pair>,
}

/// Reads the file's current context.
pub fn read(path: &Path) -> Result<Bootstrap> {
    let file = Kubeconfig::read_from(path);
    let file = file.with_context(|| format!("read kubeconfig {}", path.display()))?;
    of(&file).with_context(|| format!("use kubeconfig {}", path.display()))
}

fn of(file: &Kubeconfig) -> Result<Bootstrap> {
    let current = file.current_context.as_deref().unwrap_or_default();
    let context = file.contexts.iter().find(|c| c.name == current);
    let context = context.and_then(|c| c.context.as_ref());
    let context = context.with_context(|| format!("there is no context {current:?}"))?;
    let cluster = file.clusters.iter().find(|c| c.name == context.cluster);
    let cluster = cluster.and_then(|c| c.cluster.as_ref());
    let cluster = cluster.with_context(|| format!("there is no cluster {:?}", context.cluster))?;
    // What a node's own kubeconfig does not keep would be lost without a word.
    if cluster.insecure_skip_tls_verify == Some(true) {
        bail!(
            "a node must know its server: give certificate-authority, not insecure-skip-tls-verify"
        );
    }
    if cluster.proxy_url.is_some() || cluster.tls_server_name.is_some() {
        bail!("a node reaches its server directly: proxy-url and tls-server-name can't be used");
    }
    let data = cluster.certificate_authority_data.as_deref();
    let ca_pem = text(data, cluster.certificate_authority.as_deref())
        .context("read certificate-authority")?
        .context("it names no certificate-authority, which a node must know its server by")?;
    let server = cluster.server.clone().context("it names no server")?;
    let user = context.user.as_deref().unwrap_or_default();
    let user = file.auth_infos.iter().find(|u| u.name == user);
    let shown = match user.and_then(|u| u.auth_info.as_ref()) {
        Some(user) => pair(user)?,
        None => None,
    };
    Ok(Bootstrap {
        server: server.trim_end_matches('/').to_owned(),
        ca_pem,
        shown,
    })
}

fn pair(user: &AuthInfo) -> Result<Option<Pair>> {
    let cert = user.client_certificate_data.as_deref();
    let cert = text(cert, user.client_certificate.as_deref()).context("read client-certificate")?;
    // The type shows its secrets to nobody but whoever writes it.
    let user_text = serde_json::to_value(user).context("read client-key")?;
    let key = user_text["client-key-data"].as_str();
    let key = text(key, user.client_key.as_deref()).context("read client-key")?;
    Ok(cert
        .zip(key)
        .map(|(cert_pem, key_pem)| Pair { cert_pem, key_pem }))
}

/// What is in the file itself (base64), else what it names.
fn text(data: Option<&str>, path: Option<&str>) -> Result<Option<String>> {
    if let Some(data) = data.filter(|data| !data.is_empty()) {
        let bytes = base64::engine::general_purpose::STANDARD.decode(data)?;
        return Ok(Some(String::from_utf8(bytes)?));
    }
    let Some(path) = path.filter(|path| !path.is_empty()) else {
        return Ok(None);
    };
    let text = std::fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(cluster: Value, user: Value) -> Result<Bootstrap> {
        of(&serde_json::from_value(json!({
            "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [{"name": "other", "cluster": {"server": "https://other"}}, {"name": "k", "cluster": cluster}],
            "users": [{"name": "u", "user": user}],
        }))?)
    }

    #[test]
    fn what_a_node_keeps_is_read() {
        let cluster =
            json!({"server": "https://192.0.2.1:6443/", "certificate-authority-data": "Q0E="});
        let found = read(cluster.clone(), json!({"token": "t"})).expect("read");
        assert_eq!(found.server, "https://192.0.2.1:6443");
        assert_eq!(found.ca_pem, "CA");
        assert!(found.shown.is_none());
        let user = json!({"client-certificate-data": "Q0VSVA==", "client-key-data": "S0VZ"});
        let shown = read(cluster, user).expect("read").shown.expect("a pair");
        assert_eq!((&*shown.cert_pem, &*shown.key_pem), ("CERT", "KEY"));
        let files = tempfile::tempdir().expect("directory");
        let ca = files.path().join("ca.crt");
        std::fs::write(&ca, "CA of a file").expect("write");
        let found = read(
            json!({"server": "https://a", "certificate-authority": ca}),
            json!({}),
        );
        assert_eq!(found.expect("read").ca_pem, "CA of a file");
    }

    #[test]
    fn what_would_be_lost_is_refused() {
        for (cluster, why) in [
            (json!({"server": "https://a"}), "no certificate-authority"),
            (json!({"certificate-authority-data": "Q0E="}), "no server"),
            (
                json!({"server": "https://a", "certificate-authority-data": "?"}),
                "read certificate-authority",
            ),
            (
                json!({"server": "https://a", "insecure-skip-tls-verify": true}),
                "insecure-skip-tls-verify",
            ),
            (
                json!({"server": "https://a", "certificate-authority-data": "Q0E=", "proxy-url": "http://p"}),
                "proxy-url",
            ),
        ] {
            let error = format!("{:#}", read(cluster, json!({})).expect_err(why));
            assert!(error.contains(why), "{error}");
        }
        assert!(of(&Kubeconfig::default()).is_err());
    }
}
