//! The real nats-server, which tests and benches start and kill.

use crate::harness::{Running, free_port, tool};
use std::process::{Command, Stdio};

/// A nats-server at a port that stays the same when it is started again.
pub(crate) struct Nats {
    port: u16,
    process: Option<Running>,
}

impl Nats {
    pub(crate) fn start() -> Self {
        let mut nats = Self {
            port: free_port(),
            process: None,
        };
        nats.up();
        nats
    }

    pub(crate) fn up(&mut self) {
        let child = Command::new(tool("nats-server"))
            .args(["--addr", "127.0.0.1", "--port", &self.port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start nats-server");
        self.process = Some(Running(child));
    }

    /// As a power cut would.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }
}
