//! Lifecycle hooks of containers: `postStart` and `preStop`.

use crate::http_get::{self, HttpGetError};
use k8s_openapi::api::core::v1 as core;
use std::net::IpAddr;
use std::time::Duration;

/// A hook's HTTP request may take this long; containers' own grace bounds the rest.
const HTTP_DEADLINE: Duration = Duration::from_secs(30);

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HookError {
    #[error("exec hooks are not supported by this runtime")]
    Exec,
    #[error("{0}")]
    Http(#[from] HttpGetError),
    #[error("request failed with status {0}")]
    Status(u16),
    #[error("the pod has no address")]
    NoAddress,
    #[error("no answer after {0:?}")]
    Deadline(Duration),
}

/// Runs a hook to its end.
pub(crate) async fn run(
    hook: &core::LifecycleHandler,
    container: &core::Container,
    pod_ip: Option<IpAddr>,
) -> Result<(), HookError> {
    if let Some(sleep) = &hook.sleep {
        let seconds = u64::try_from(sleep.seconds).unwrap_or(0);
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        return Ok(());
    }
    if hook.exec.is_some() {
        return Err(HookError::Exec);
    }
    if let Some(get) = &hook.http_get {
        let ip = pod_ip.ok_or(HookError::NoAddress)?;
        let answer = tokio::time::timeout(HTTP_DEADLINE, http_get::get(get, container, ip))
            .await
            .map_err(|_| HookError::Deadline(HTTP_DEADLINE))??;
        if !(200..400).contains(&answer.status) {
            return Err(HookError::Status(answer.status));
        }
    }
    Ok(())
}
