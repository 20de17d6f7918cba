//! Lifecycle hooks of containers: `postStart` and `preStop`.

use crate::exec::Exec;
use crate::http_get::{self, HttpGetError};
use k8s_openapi::api::core::v1 as core;
use std::net::IpAddr;
use std::time::Duration;

/// A hook's HTTP request may take this long; containers' own grace bounds the rest.
const HTTP_DEADLINE: Duration = Duration::from_secs(30);

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HookError {
    #[error("{0}")]
    Exec(runtime::RuntimeError),
    #[error("command {command:?} exited with {code}: {said}")]
    Code {
        command: String,
        code: i32,
        said: String,
    },
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
    exec: &Exec,
) -> Result<(), HookError> {
    if let Some(sleep) = &hook.sleep {
        let seconds = u64::try_from(sleep.seconds).unwrap_or(0);
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        return Ok(());
    }
    if let Some(action) = &hook.exec {
        let command = action.command.as_deref().unwrap_or_default();
        let (code, said) = exec.run(command).await.map_err(HookError::Exec)?;
        if code != 0 {
            let command = command.join(" ");
            let said = said.trim_end().to_owned();
            return Err(HookError::Code {
                command,
                code,
                said,
            });
        }
        return Ok(());
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
