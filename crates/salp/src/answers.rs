//! Where questions of other sites are answered: a unix socket of the process that has the API
//! server. Who takes them from the lattice passes them on to it.

use crate::config::{LatticeSettings, Layout};
use ::sites::fleet::answers;
use anyhow::{Context as _, Result};
use lifecycle::{Scope, Stack};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;
use tokio::net::UnixListener;

/// How long answers under way may take to end.
const STOP_DEADLINE: Duration = Duration::from_secs(1);

/// Answers with the rights of `client`.
pub fn start(
    settings: &LatticeSettings,
    layout: &Layout,
    client: kube::Client,
    informers: client::Informers,
    stack: &mut Stack,
) -> Result<()> {
    let path = layout.fleet_socket();
    let _stale = std::fs::remove_file(&path);
    let listener =
        UnixListener::bind(&path).with_context(|| format!("listen on {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("restrict {}", path.display()))?;
    let scope = Scope::new();
    let config = answers::Config {
        client,
        informers,
        answered: settings.answered.clone(),
    };
    answers::serve(listener, config, &scope);
    stack.push("answers", STOP_DEADLINE, move || async move {
        scope.close().await
    });
    Ok(())
}
