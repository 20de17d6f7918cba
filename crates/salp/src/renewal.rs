//! Renews the certificates that the site has issued to itself while it runs: `pki` makes what is
//! absent or near its end anew, as at a start, and each part is given what is its own. Nothing is
//! interrupted: open connections go on with what they began with.

use crate::config::Layout;
use crate::pki::{self, Pki, Reached};
use crate::servers;
use anyhow::{Context as _, Result};
use std::sync::Arc;
use std::time::Duration;

/// Between looks. They cost little, and the clock may have been set meanwhile, or have slept.
const LOOK: Duration = Duration::from_secs(30);

/// Where the site's parts find what they show.
pub struct Renewal {
    pub layout: Layout,
    pub reached: Reached,
    /// The API's URL, as kubeconfigs have it.
    pub url: String,
    pub server: apiserver::ApiServer,
    /// `None`: this machine is no node.
    pub node: Option<Arc<node::Node>>,
    /// What they show now.
    pub pki: Pki,
}

impl Renewal {
    /// Renews until its scope is cancelled.
    pub async fn run(mut self) {
        loop {
            tokio::time::sleep(LOOK).await;
            if let Err(error) = self.look().await {
                tracing::warn!("renew the site's certificates: {error:#}");
            }
        }
    }

    async fn look(&mut self) -> Result<()> {
        let (layout, reached) = (self.layout.clone(), self.reached.clone());
        let pki = tokio::task::spawn_blocking(move || pki::load_or_create(&layout, &reached));
        let pki = pki.await.context("make certificates")??;
        let before = &self.pki;
        let changed = |old: &pki::Pair, new: &pki::Pair| old.cert_pem != new.cert_pem;
        if changed(&before.apiserver, &pki.apiserver) {
            let pair = &pki.apiserver;
            let replaced = self.server.serve_with(&pair.cert_pem, &pair.key_pem);
            replaced.context("serve the API")?;
            tracing::info!("renewed the API server's certificate");
        }
        if changed(&before.kubelet_client, &pki.kubelet_client) {
            let access = kubelet_access(&pki);
            let replaced = self.server.reach_kubelets_with(&access);
            replaced.context("reach kubelets")?;
            tracing::info!("renewed what kubelets are shown");
        }
        if changed(&before.front_proxy, &pki.front_proxy) {
            let pair = &pki.front_proxy;
            let replaced = (self.server).call_extensions_with(&pair.cert_pem, &pair.key_pem);
            replaced.context("call extension servers")?;
            tracing::info!("renewed what extension servers are shown");
        }
        if let Some(node) = &self.node
            && changed(&before.kubelet, &pki.kubelet)
        {
            let pair = &pki.kubelet;
            let replaced = node.serve_with(&pair.cert_pem, &pair.key_pem);
            replaced.context("serve the kubelet API")?;
            tracing::info!("renewed the kubelet's certificate");
        }
        // Who reads these follows the files.
        write_kubeconfigs(&self.layout, &self.url, &pki)?;
        self.pki = pki;
        Ok(())
    }
}

/// Of the administrator, and of the parts that reach the API over TLS.
pub fn write_kubeconfigs(layout: &Layout, url: &str, pki: &Pki) -> Result<()> {
    let files = [
        (layout.kubeconfig(), "salp-admin", &pki.admin),
        (layout.kubeconfig_of("proxy"), "salp-proxy", &pki.proxy),
        (layout.kubeconfig_of("sites"), "salp-sites", &pki.sites),
    ];
    let servers = servers::known(layout);
    for (path, user, pair) in files {
        pki::write_kubeconfig(&path, url, &servers, &pki.ca_pem, user, pair)?;
    }
    Ok(())
}

/// What the API server shows kubelets, and who may sign what they show.
pub fn kubelet_access(pki: &Pki) -> apiserver::KubeletAccess {
    let pair = &pki.kubelet_client;
    apiserver::KubeletAccess {
        client_identity: Some((pair.cert_pem.clone(), pair.key_pem.clone())),
        ca: Some(pki.ca_pem.clone()),
    }
}
