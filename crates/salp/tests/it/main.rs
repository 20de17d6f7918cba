//! The real binary with real clients: kubectl, helm, an OCI registry, plain HTTP.
//!
//! Tools are found in `$SALP_TOOLS/bin` or `target/tools/bin`; `cargo xtask tools` fetches them.

mod api_flags;
mod charts;
mod cli;
mod clients;
mod commands;
mod container_fields;
mod container_images;
mod container_mixed;
mod container_runtimes;
mod container_sessions;
mod containers;
mod crds;
mod devices;
mod disk;
mod exec;
mod fabric;
mod failover;
mod faults;
mod foreign;
mod gitops;
mod guests;
mod harness;
mod image_volumes;
mod join;
mod kubectl;
mod nats;
mod netns;
mod network;
mod operator;
mod packages;
mod pods;
mod rootless;
mod serve;
mod servers;
mod shutdown;
mod sites;
mod stores;
mod terminal;
mod tour;
mod wake;
mod websocket;
mod workloads;
