//! What a node is started with, and why it may not start.

use crate::image::ImageSource;
use crate::sleep::Sleep;
use client::{Clock, Informers};
use k8s_openapi::api::core::v1::Taint;
use pod_network::Prefix;
use runtime::PodRuntime;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// What a node is started with.
pub struct Config {
    /// Name of the Node object.
    pub name: String,
    /// Access to the API server.
    pub client: kube::Client,
    /// Shared with the other parts of the process.
    pub informers: Informers,
    /// Where images come from.
    pub images: Arc<dyn ImageSource>,
    /// Runtimes by RuntimeClass handler; the first runs pods that name none.
    pub runtimes: Vec<(String, Arc<dyn PodRuntime>)>,
    /// Holds `pods/` (volumes), `logs/` and the checkpoint.
    pub dir: PathBuf,
    /// The node's own address.
    pub node_ip: IpAddr,
    /// The block that its pods' addresses come from.
    pub pod_cidr: Prefix,
    /// DNS servers of pods.
    pub cluster_dns: Vec<IpAddr>,
    /// `cluster.local`.
    pub cluster_domain: String,
    /// The kubelet API.
    pub kubelet: Kubelet,
    /// Labels beside those that every node has.
    pub labels: BTreeMap<String, String>,
    /// Taints at registration.
    pub taints: Vec<Taint>,
    /// Directory of files that each describe a pod to run, API server or not.
    pub static_pods: Option<PathBuf>,
    /// Where device plugins and those who ask what pods have look for a kubelet: the first of
    /// these directories that nobody else has.
    pub kubelet_dirs: Vec<PathBuf>,
    /// Pods that the node takes.
    pub max_pods: u32,
    /// Processes and threads that a container pod may have.
    pub pod_pids_limit: Option<u64>,
    /// The watch for pods is shared with others of this process that need all pods; else
    /// the node watches only its own.
    pub share_pod_informer: bool,
    /// Lets Deployments sleep at zero and wake on a request, if they may.
    pub sleep: Option<Sleep>,
    /// Version of this program, for `kubeletVersion`: `v1.37.1+salp.0.1.0`.
    pub version: String,
    /// Wall clock.
    pub clock: Clock,
}

/// The kubelet API's listener and certificates, PEM.
pub struct Kubelet {
    /// Bound; 10250 by convention.
    pub listener: std::net::TcpListener,
    /// Server certificate chain.
    pub cert_pem: String,
    /// Its key.
    pub key_pem: String,
    /// Who signs clients' certificates.
    pub client_ca_pem: String,
}

/// Why the node agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No runtime was given.
    #[error("start node agent: no runtime is configured")]
    NoRuntime,
    /// The pod network can't be used.
    #[error("set up pod addresses")]
    Addresses(#[source] pod_network::PoolError),
    /// A directory can't be made.
    #[error("make directory {}", .path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The kubelet API's certificates can't be used.
    #[error("set up kubelet TLS")]
    Tls(#[source] TlsError),
    /// Its listener can't be used.
    #[error("listen for the kubelet API")]
    Listen(#[source] std::io::Error),
}

/// What is wrong with certificates or keys.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Not PEM.
    #[error("read PEM")]
    Pem(#[source] rustls_pki_types::pem::Error),
    /// Not usable together.
    #[error("use certificate and key")]
    Certificates(#[source] rustls::Error),
    /// The clients' CA is none.
    #[error("use client CA")]
    ClientCa(#[source] rustls::server::VerifierBuilderError),
}
