//! Services of several sites as one, by the Multi-Cluster Services API: what is exported here
//! is told over the lattice, what others export becomes ServiceImports, and requests go to
//! whoever is near and can answer. And questions of other sites about this one's pods.
//!
//! Start with [`start`]. What exports come to is in `merge`, who answers in `choose`, which
//! objects follow in `plan`: all pure; `controller` reads and writes, `gates` take connections
//! for other sites and `tunnel` carries them, directly where there is a way (`routes`); `fleet`
//! answers questions. It knows no NATS (that is `lattice`) and no proxy: what it makes are
//! ordinary Services and EndpointSlices.
//!
//! It runs where requests are served, not where the API is: without an API server connections
//! go on, and find another site when theirs is gone.

mod choose;
mod controller;
mod exported;
pub mod fleet;
mod gates;
mod kinds;
mod merge;
mod plan;
mod routes;
mod set_up;
#[cfg(test)]
mod simulation;
mod tunnel;

pub use choose::{Candidate, Choice, Rank, choose, order, rank};
pub use controller::{Config, Direct, StartError, start};
pub use exported::Exported;
pub use kinds::{
    CLUSTER_LABEL, ClusterStatus, GROUP, ImportType, Port, SERVICE_LABEL, ServiceExport,
    ServiceExportSpec, ServiceExportStatus, ServiceImport, ServiceImportSpec, ServiceImportStatus,
    VERSION, WEIGHT_ANNOTATION,
};
pub use merge::{Conflict, Merged, Source, merge};

/// How many Services a site exports, by what it tells.
pub fn exports(told: &std::collections::BTreeMap<String, bytes::Bytes>) -> u64 {
    told.keys()
        .filter(|key| exported::parse_key(key).is_some())
        .count() as u64
}

/// The CustomResourceDefinitions of the kinds, as YAML.
pub fn crds() -> &'static [&'static str] {
    &[
        include_str!("../crds/serviceexport.yaml"),
        include_str!("../crds/serviceimport.yaml"),
    ]
}
