//! `salp`: one binary that is a whole Kubernetes site.
//!
//! This crate is the composition root: it parses configuration, starts the parts
//! in order and stops them in reverse. It holds no Kubernetes logic of its own.
//! Start with [`cli`] for the commands and [`up`] for how a site comes to life.

#![allow(
    unreachable_pub,
    missing_docs,
    reason = "a binary has no outside to document for"
)]

mod answers;
mod api_access;
mod api_args;
mod authority;
mod bootstrap_kubeconfig;
mod certificate;
mod cli;
mod client_commands;
mod config;
mod dataplane;
mod exec;
mod fleet;
mod gitops_commands;
mod image_collection;
mod image_commands;
mod join_token;
mod manifests;
mod node_credentials;
mod node_join;
mod node_place;
mod node_rights;
mod node_routes;
mod node_start;
mod oci;
mod output;
mod pki;
mod process;
mod readings;
mod renewal;
mod run;
mod servers;
mod shared_site;
mod shutdown;
mod site;
mod sites;
mod sites_commands;
mod sites_gone;
mod sites_server;
mod stop;
mod store_commands;
mod supervisor;
mod top;
mod up;

use clap::Parser as _;
use std::process::ExitCode;

/// Requests are allocated on one worker thread and often freed on another, which the system's
/// allocator serialises: see `docs/decisions/2026-11-22-allocator.md`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Once or twice a container: nothing else is made ready for it.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|name| name == oci::NAME)
    {
        return oci::main(&oci::Args::parse_from(std::env::args_os().skip(1)));
    }
    // Two TLS back ends may be linked through dependencies; the first use decides otherwise.
    let _already_set = rustls::crypto::ring::default_provider().install_default();
    let cli = cli::Cli::parse();
    match cli::dispatch(cli) {
        Ok(code) => code,
        Err(error) => {
            output::error(&error);
            ExitCode::FAILURE
        }
    }
}
