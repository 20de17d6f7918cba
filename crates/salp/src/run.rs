//! `salp run`: one pod from an image, with its URL or its output.

use crate::api_access::{Access, block_on, connect};
use crate::cli::Target;
use crate::{client_commands, output};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::Duration;

/// Port that an HTTP guest is given: one that needs no root.
const PORT: u16 = 8080;
/// Asking again for a pod whose state has not settled.
const POLL: Duration = Duration::from_millis(100);

/// Flags of `salp run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub target: Target,
    /// The image, such as `localhost:5000/hello:1`.
    pub image: String,
    /// Name of the pod [default: made from the image].
    #[arg(long)]
    pub name: Option<String>,
    /// Namespace [default: the kubeconfig's].
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// Environment, NAME=VALUE; may be repeated.
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Remove the pod once it has ended, or at Ctrl-C.
    #[arg(long)]
    pub rm: bool,
    /// Give up when the pod has not started by then, seconds.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    pub timeout: u64,
    /// Arguments of the program.
    #[arg(last = true)]
    pub args: Vec<String>,
}

/// What became of the pod.
enum Outcome {
    /// It answers here.
    Serves(String),
    Ended(ExitCode),
}

/// `salp run`.
pub fn run(args: RunArgs) -> Result<ExitCode> {
    block_on(async move {
        let access = connect(&args.target).await?;
        let namespace = args
            .namespace
            .clone()
            .unwrap_or_else(|| access.namespace.clone());
        let pod = pod(&args)?;
        let collection = format!("/api/v1/namespaces/{namespace}/pods");
        let made = access.post(&collection, &pod).await?;
        let name = made
            .pointer("/metadata/name")
            .and_then(Value::as_str)
            .context("read pod name")?
            .to_owned();
        let started = Started {
            path: format!("{collection}/{name}"),
            access,
            namespace,
            name,
        };
        let outcome = tokio::select! {
            outcome = started.settle(args.timeout) => outcome,
            stop = tokio::signal::ctrl_c() => {
                stop.context("wait for Ctrl-C")?;
                if !args.rm {
                    started.tell_how_to_end();
                }
                Ok(Outcome::Ended(ExitCode::from(130)))
            }
        };
        if let Ok(Outcome::Serves(url)) = &outcome {
            output::line(url);
            started.tell_how_to_end();
            return Ok(ExitCode::SUCCESS);
        }
        if args.rm {
            started.access.delete(&started.path).await?;
        }
        match outcome? {
            Outcome::Ended(code) => Ok(code),
            Outcome::Serves(_) => Ok(ExitCode::SUCCESS),
        }
    })
}

fn pod(args: &RunArgs) -> Result<Value> {
    let mut env = Vec::new();
    for pair in &args.env {
        let Some((name, value)) = pair.split_once('=') else {
            bail!("read --env {pair:?}: want NAME=VALUE")
        };
        env.push(json!({"name": name, "value": value}));
    }
    let mut container = json!({
        "name": "main", "image": args.image, "env": env,
        "ports": [{"containerPort": PORT, "name": "http"}],
    });
    if !args.args.is_empty() {
        container["args"] = json!(args.args);
    }
    let mut metadata = json!({"labels": {"run": base_name(&args.image)}});
    match &args.name {
        Some(name) => metadata["name"] = json!(name),
        None => metadata["generateName"] = json!(format!("{}-", base_name(&args.image))),
    }
    Ok(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
        "spec": {"restartPolicy": "Never", "containers": [container]},
    }))
}

/// The last part of an image's repository, as a name may have it.
fn base_name(image: &str) -> String {
    let repository = image.split('@').next().unwrap_or(image);
    let last = repository.rsplit('/').next().unwrap_or(repository);
    let last = last.split(':').next().unwrap_or(last);
    let name: String = last
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(50)
        .collect();
    let name = name.trim_matches('-').to_owned();
    if name.is_empty() {
        "pod".to_owned()
    } else {
        name
    }
}

/// A pod that was made.
struct Started {
    access: Access,
    namespace: String,
    name: String,
    path: String,
}

impl Started {
    /// Waits until the pod serves or has ended; its output is printed meanwhile.
    async fn settle(&self, timeout_s: u64) -> Result<Outcome> {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(timeout_s);
        loop {
            let pod = self.access.get(&self.path).await?;
            if let Some(reason) = stuck(&pod) {
                bail!("run pod {}/{}: {reason}", self.namespace, self.name);
            }
            match phase(&pod) {
                "Succeeded" | "Failed" => {
                    self.print_logs(false).await?;
                    return Ok(Outcome::Ended(exit_code(&pod)));
                }
                "Running" => return self.follow(&pod).await,
                _ if tokio::time::Instant::now() >= deadline => bail!(
                    "run pod {}/{}: not started after {timeout_s} s; see `kubectl describe pod {}`",
                    self.namespace,
                    self.name,
                    self.name
                ),
                _ => tokio::time::sleep(POLL).await,
            }
        }
    }

    /// From running on: whether it serves or is a command shows only now.
    async fn follow(&self, pod: &Value) -> Result<Outcome> {
        let ip = pod.pointer("/status/podIP").and_then(Value::as_str);
        let address = (ip.unwrap_or_default().to_owned(), PORT);
        let serves = async {
            while tokio::net::TcpStream::connect(&address).await.is_err() {
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::select! {
            printed = self.print_logs(true) => printed?,
            () = serves => return Ok(Outcome::Serves(format!("http://{}:{PORT}/", address.0))),
        }
        loop {
            let pod = self.access.get(&self.path).await?;
            if let "Succeeded" | "Failed" = phase(&pod) {
                return Ok(Outcome::Ended(exit_code(&pod)));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn print_logs(&self, follow: bool) -> Result<()> {
        let params = kube::api::LogParams {
            follow,
            ..Default::default()
        };
        client_commands::print_logs(&self.access, &self.namespace, &self.name, &params).await
    }

    fn tell_how_to_end(&self) {
        let (namespace, name) = (&self.namespace, &self.name);
        let flag = if *namespace == self.access.namespace {
            String::new()
        } else {
            format!(" -n {namespace}")
        };
        output::note(format!(
            "the pod goes on; `kubectl delete pod {name}{flag}` ends it"
        ));
    }
}

fn phase(pod: &Value) -> &str {
    let phase = pod.pointer("/status/phase").and_then(Value::as_str);
    phase.unwrap_or_default()
}

/// Why a pod will not start without help.
fn stuck(pod: &Value) -> Option<String> {
    let waiting = pod.pointer("/status/containerStatuses/0/state/waiting")?;
    let reason = waiting["reason"].as_str()?;
    let hopeless = [
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
    ];
    (hopeless.contains(&reason) || reason.starts_with("Create") || reason == "RunContainerError")
        .then(|| {
            format!(
                "{reason}: {}",
                waiting["message"].as_str().unwrap_or_default()
            )
        })
}

fn exit_code(pod: &Value) -> ExitCode {
    let code = pod
        .pointer("/status/containerStatuses/0/state/terminated/exitCode")
        .and_then(Value::as_u64);
    ExitCode::from(code.and_then(|c| u8::try_from(c).ok()).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_images() {
        for (image, name) in [
            ("localhost:5000/hello:1", "hello"),
            ("registry.example/a/B_c@sha256:00", "b-c"),
            ("hello", "hello"),
            ("::", "pod"),
        ] {
            assert_eq!(base_name(image), name, "{image}");
        }
    }
}
