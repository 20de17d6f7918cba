//! The real kubectl against a [`Site`].

use crate::site::Site;
use anyhow::{Result, ensure};
use std::path::PathBuf;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

pub(crate) struct Kubectl {
    program: PathBuf,
    config: PathBuf,
    home: PathBuf,
}

impl Kubectl {
    pub(crate) fn of(site: &Site) -> Result<Self> {
        Ok(Self {
            program: testkit::tool("kubectl")?,
            config: site.api.kubeconfig("root", &["system:masters"])?,
            home: site.api.dir().join("home"),
        })
    }

    /// Output of a command that must succeed.
    pub(crate) async fn run(&self, args: &str) -> Result<String> {
        let (ok, text) = self.try_run(args, "").await?;
        ensure!(ok, "kubectl {args}: {text}");
        Ok(text)
    }

    /// Whether a command succeeded, and its output.
    pub(crate) async fn try_run(&self, args: &str, input: &str) -> Result<(bool, String)> {
        let mut child = Command::new(&self.program)
            .args(args.split_whitespace())
            .env("KUBECONFIG", &self.config)
            .env("HOME", &self.home)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).await?;
        }
        let out = child.wait_with_output().await?;
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
        Ok((out.status.success(), text))
    }
}
