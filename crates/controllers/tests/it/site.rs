//! An API server with the controllers, and a stand-in for nodes.

use anyhow::{Context as _, Result, bail};
use client::informer::Kind;
use client::k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use client::{Change, Clock, Informers};
use futures::StreamExt as _;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use lifecycle::Scope;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use testkit::TestApi;

/// Nothing here takes as long, unless it never comes.
const NEVER: Duration = Duration::from_secs(60);

pub(crate) struct Site {
    pub(crate) api: TestApi,
    pub(crate) client: kube::Client,
    pub(crate) informers: Informers,
    pub(crate) scope: Scope,
}

impl Site {
    /// With all controllers.
    pub(crate) async fn start() -> Result<Self> {
        Self::start_between(|own, _| own).await
    }

    /// The same, where what the controllers ask passes through what `between` makes of their
    /// own client and of an administrator's.
    pub(crate) async fn start_between(
        between: impl FnOnce(kube::Client, kube::Client) -> kube::Client,
    ) -> Result<Self> {
        let api = TestApi::start().await?;
        let scope = Scope::new();
        let client = api.client()?;
        let informers = Informers::new(client.clone(), &scope);
        // With the rights that the binary's have, and no more.
        let own = api.client_as("system:kube-controller-manager", &[])?;
        let own = between(own, client.clone());
        controllers::run(
            controllers::Config {
                informers: informers.with_client(own),
                root_ca_pem: "-----BEGIN CERTIFICATE-----".to_owned(),
                signer: None,
                clock: Clock::system(),
                seed: 1,
            },
            &scope,
        );
        let site = Self {
            api,
            client,
            informers,
            scope,
        };
        // Pods are refused before their namespace has its account.
        site.until::<ServiceAccount, _>("the account of the default namespace", |accounts| {
            accounts
                .iter()
                .any(|a| a.metadata.namespace.as_deref() == Some("default"))
                .then_some(())
        })
        .await?;
        Ok(site)
    }

    /// Makes each new pod ready, or ended as `phase` says of its image, and lets deleted
    /// ones go.
    pub(crate) fn play_node(&self, phase: fn(image: &str) -> Option<&'static str>) {
        let pods = self.informers.get::<Pod>();
        let mut changes = pods.subscribe();
        let client = self.client.clone();
        let addresses = AtomicU32::new(1);
        self.scope.spawn_cancellable(async move {
            while let Some(change) = changes.next().await {
                let touched = match change {
                    Change::Object { new, .. } => new.into_iter().collect(),
                    Change::Resync => pods.list(),
                };
                for pod in touched {
                    let n = addresses.fetch_add(1, Ordering::Relaxed);
                    if let Err(error) = play_pod(&client, &pod, phase, n).await {
                        tracing::debug!(%error, "pod changed meanwhile");
                    }
                }
            }
        });
    }

    /// Creates what a manifest says.
    pub(crate) async fn create(&self, path: &str, object: Value) -> Result<Value> {
        let answer = self.api.call("POST", path, Some(&object)).await?;
        if answer.code >= 300 {
            bail!("POST {path}: {} {}", answer.code, answer.text);
        }
        Ok(answer.json)
    }

    pub(crate) async fn patch(&self, path: &str, patch: Value) -> Result<Value> {
        let answer = self
            .api
            .send(
                "PATCH",
                path,
                &[("content-type", "application/merge-patch+json")],
                patch.to_string().into_bytes(),
            )
            .await?;
        if answer.code >= 300 {
            bail!("PATCH {path}: {} {}", answer.code, answer.text);
        }
        Ok(answer.json)
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Value> {
        Ok(self.api.call("GET", path, None).await?.json)
    }

    pub(crate) async fn delete(&self, path: &str, policy: &str) -> Result<()> {
        let options = json!({"propagationPolicy": policy});
        let answer = self.api.call("DELETE", path, Some(&options)).await?;
        if answer.code >= 300 {
            bail!("DELETE {path}: {} {}", answer.code, answer.text);
        }
        Ok(())
    }

    /// Waits until `found` finds something in the state of a kind's objects, looking again
    /// at each change.
    pub(crate) async fn until<K: Kind, T>(
        &self,
        what: &str,
        found: impl Fn(&[Arc<K>]) -> Option<T>,
    ) -> Result<T> {
        let informer = self.informers.get::<K>();
        let mut changes = informer.subscribe();
        let wait = async {
            while changes.next().await.is_some() {
                if let Some(found) = found(&informer.list()) {
                    return Some(found);
                }
            }
            None
        };
        match tokio::time::timeout(NEVER, wait).await {
            Ok(Some(found)) => Ok(found),
            _ => bail!(
                "never: {what}; there are {:#?}",
                informer
                    .list()
                    .iter()
                    .map(|o| format!("{o:?}"))
                    .collect::<Vec<_>>()
            ),
        }
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.scope.close().await;
        self.api.close().await.context("close the API server")
    }
}

async fn play_pod(
    client: &kube::Client,
    pod: &Pod,
    phase: fn(&str) -> Option<&'static str>,
    n: u32,
) -> Result<()> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    if pod.metadata.deletion_timestamp.is_some() {
        let now = DeleteParams {
            grace_period_seconds: Some(0),
            ..DeleteParams::default()
        };
        api.delete(name, &now).await?;
        return Ok(());
    }
    let has = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    if has.is_some_and(|phase| phase != "Pending") {
        return Ok(());
    }
    let image = pod
        .spec
        .as_ref()
        .and_then(|s| s.containers[0].image.clone())
        .unwrap_or_default();
    let Some(phase) = phase(&image) else {
        return Ok(());
    };
    let ready = if phase == "Running" { "True" } else { "False" };
    let ip = format!("10.42.{}.{}", n / 256, n % 256);
    let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {
        "phase": phase, "podIP": ip, "podIPs": [{"ip": ip}],
        "conditions": [{"type": "Ready", "status": ready,
            "lastTransitionTime": "2026-01-01T00:00:00Z"}],
    }});
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(())
}
