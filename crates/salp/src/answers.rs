//! Where questions of other sites are answered: a unix socket of the process that has the API
//! server. Who takes them from the lattice passes them on to it.

use crate::config::{LatticeSettings, Layout};
use crate::process;
use ::sites::fleet::answers;
use anyhow::Result;
use lifecycle::{Scope, Stack};
use std::time::Duration;

/// How long answers under way may take to end.
const STOP_DEADLINE: Duration = Duration::from_secs(1);

/// Answers with the rights of `client`; programs are run with those of `connect`.
pub fn start(
    settings: &LatticeSettings,
    layout: &Layout,
    client: kube::Client,
    connect: answers::Connect,
    informers: client::Informers,
    stack: &mut Stack,
) -> Result<()> {
    let listener = process::listen_for_owner(&layout.fleet_socket())?;
    let scope = Scope::new();
    let config = answers::Config {
        client,
        informers,
        answered: settings.answered.clone(),
        executed: settings.executed.clone(),
        connect,
    };
    answers::serve(listener, config, &scope);
    stack.push("answers", STOP_DEADLINE, move || async move {
        scope.close().await
    });
    Ok(())
}
