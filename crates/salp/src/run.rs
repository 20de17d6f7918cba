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
    /// Remove the pod once it has ended.
    #[arg(long)]
    pub rm: bool,
    /// Give up when the pod has not started by then, seconds.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    pub timeout: u64,
    /// Arguments of the program.
    #[arg(last = true)]
    pub args: Vec<String>,
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
        let path = format!("{collection}/{name}");
        let code = tokio::select! {
            code = settle(&access, &namespace, &name, &path, args.timeout) => code,
            stop = tokio::signal::ctrl_c() => stop.context("wait for Ctrl-C").map(|()| ExitCode::from(130)),
        };
        let serves =
            matches!(&code, Ok(c) if *c == ExitCode::SUCCESS) && still_runs(&access, &path).await;
        if args.rm && !serves {
            access.delete(&path).await?;
        }
        code
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

/// Waits until the pod serves (prints its URL) or has ended (prints its output).
async fn settle(
    access: &Access,
    namespace: &str,
    name: &str,
    path: &str,
    timeout: u64,
) -> Result<ExitCode> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(timeout);
    loop {
        let pod = access.get(path).await?;
        let phase = pod
            .pointer("/status/phase")
            .and_then(Value::as_str)
            .unwrap_or_default();
        if let Some(reason) = stuck(&pod) {
            bail!("run pod {namespace}/{name}: {reason}");
        }
        match phase {
            "Succeeded" | "Failed" => {
                client_commands::print_logs(
                    access,
                    namespace,
                    name,
                    &kube::api::LogParams::default(),
                )
                .await?;
                return Ok(exit_code(&pod));
            }
            "Running" => {
                let ip = pod
                    .pointer("/status/podIP")
                    .and_then(Value::as_str)
                    .unwrap_or_default();
                if !ip.is_empty() && tokio::net::TcpStream::connect((ip, PORT)).await.is_ok() {
                    output::line(format!("http://{ip}:{PORT}/"));
                    return Ok(ExitCode::SUCCESS);
                }
            }
            _ => {}
        }
        if tokio::time::Instant::now() >= deadline {
            if phase == "Running" {
                // A program that neither serves nor ends: show what it says.
                let params = kube::api::LogParams {
                    follow: true,
                    ..Default::default()
                };
                client_commands::print_logs(access, namespace, name, &params).await?;
                return Ok(exit_code(&access.get(path).await?));
            }
            bail!(
                "run pod {namespace}/{name}: not started after {timeout} s; see `kubectl describe pod {name}`"
            );
        }
        tokio::time::sleep(POLL).await;
    }
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

async fn still_runs(access: &Access, path: &str) -> bool {
    access
        .get(path)
        .await
        .is_ok_and(|pod| pod["status"]["phase"] == "Running")
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
