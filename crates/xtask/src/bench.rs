//! `cargo xtask bench`: fetches the peers and runs the benches of whole sites on what
//! ships.

use crate::{fetch, tools};
use anyhow::{Result, ensure};

/// What the benches drive and compare with.
const NEEDED: [&str; 5] = ["kubectl", "registry", "wrk", "wasmtime", "nats-server"];

/// Runs the groups named, or all.
pub(crate) fn run(groups: &[String]) -> Result<()> {
    tools::run(&NEEDED.map(str::to_owned))?;
    let built = fetch::cargo()
        .current_dir(fetch::root())
        .args(["build", "--profile", "dist", "--package", "salp"])
        .status()?;
    ensure!(built.success(), "the build ended with {built}");
    let status = fetch::cargo()
        .current_dir(fetch::root())
        .args(["bench", "--package", "benchmarks", "--bench", "site", "--"])
        .args(groups)
        .env("SALP_TOOLS", fetch::tools_dir())
        .env("SALP_PROGRAM", fetch::root().join("target/dist/salp"))
        .status()?;
    ensure!(status.success(), "the bench ended with {status}");
    Ok(())
}
