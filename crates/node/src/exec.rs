//! Programs in containers that nobody takes part in: those of probes and hooks.

use futures::StreamExt as _;
use runtime::{ContainerId, ExecSpec, PodRuntime, RuntimeError, Said, Session};
use std::sync::Arc;

/// Of a program's output so much is kept, as upstream has it.
const OUTPUT_BYTES_MAX: usize = 10 << 10;

/// Where programs run.
pub(crate) struct Exec {
    pub(crate) runtime: Arc<dyn PodRuntime>,
    pub(crate) container: ContainerId,
}

impl Exec {
    /// Runs one to its end: its exit code and what it said. Dropping the future ends it.
    pub(crate) async fn run(&self, command: &[String]) -> Result<(i32, String), RuntimeError> {
        let spec = ExecSpec {
            container: self.container.clone(),
            command: command.to_vec(),
            stdin: false,
            tty: false,
        };
        let Session {
            input, mut output, ..
        } = self.runtime.exec(spec).await?;
        drop(input);
        let mut said = Vec::new();
        while let Some(piece) = output.next().await {
            match piece {
                Said::Stdout(bytes) | Said::Stderr(bytes) => {
                    let room = OUTPUT_BYTES_MAX - said.len();
                    said.extend_from_slice(&bytes[..bytes.len().min(room)]);
                }
                Said::Exited { code } => {
                    return Ok((code, String::from_utf8_lossy(&said).into_owned()));
                }
            }
        }
        let stopped = "the program was stopped".to_owned();
        Err(RuntimeError::Unavailable(stopped))
    }
}
