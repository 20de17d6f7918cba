//! `salp exec`: a program in a pod, here or at another site, with this terminal's input and
//! output. A WebSocket carries them, to the API server or through the lattice to another's.

use crate::api_access::{Access, block_on, connect, explain};
use crate::cli::Target;
use crate::fleet;
use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use clap::Args;
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use kube::client::Body;
use std::io::{Read as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;
use streaming::websocket::{CommandSink, Handshake, command_client};
use streaming::{Ended, FromClient, ToClient};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

/// How long another site may take until a program runs there.
const SITE_DEADLINE: Duration = Duration::from_secs(5);
/// Bytes of input that are read at once.
const CHUNK: usize = 32 * 1024;
/// Pieces of input not yet sent; past it no more is read.
const PIECES_MAX: usize = 4;
/// Bytes of a refusal that are shown.
const REFUSAL_MAX: usize = 64 * 1024;

/// Flags of `salp exec`.
#[derive(Clone, Debug, Args)]
pub struct ExecArgs {
    #[command(flatten)]
    pub target: Target,
    /// The pod: NAME, NAMESPACE/NAME or SITE/NAMESPACE/NAME.
    pub pod: String,
    /// Namespace [default: the kubeconfig's].
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// Container, where the pod has several.
    #[arg(short, long)]
    pub container: Option<String>,
    /// Pass standard input on.
    #[arg(short = 'i', long)]
    pub stdin: bool,
    /// Output and errors as one stream, as a terminal has them (WebAssembly has no terminals:
    /// lines are edited here).
    #[arg(short, long)]
    pub tty: bool,
    /// The program and its arguments: a `.wasm` command of the image or of a volume.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// `salp exec`.
pub fn exec(args: ExecArgs) -> Result<ExitCode> {
    let ended = block_on(async {
        let (site, namespace, name) =
            crate::client_commands::named(&args.pod, args.namespace.as_deref())?;
        if let Some(site) = site {
            let namespace = namespace.context("read pod: no namespace")?;
            let path = path(&args, namespace, name);
            let there = fleet::exec(&args.target, site, path, SITE_DEADLINE).await?;
            if let Some((stream, protocol)) = there {
                return take_part(stream, &protocol, args.stdin).await;
            }
        }
        let access = connect(&args.target).await?;
        let namespace = namespace.unwrap_or(&access.namespace);
        let (stream, protocol) = open(&access, path(&args, namespace, name)).await?;
        take_part(stream, protocol, args.stdin).await
    })?;
    match ended {
        Ended::Success => Ok(ExitCode::SUCCESS),
        // What is wrong was said by the program, or in its place.
        Ended::ExitCode { code, .. } => Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
        Ended::Failed(why) => bail!("{why}"),
    }
}

fn path(args: &ExecArgs, namespace: &str, name: &str) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    for word in &args.command {
        query.append_pair("command", word);
    }
    if let Some(container) = &args.container {
        query.append_pair("container", container);
    }
    query.append_pair("stdout", "true");
    let flags = [
        ("stdin", args.stdin),
        ("tty", args.tty),
        ("stderr", !args.tty),
    ];
    for (name, _) in flags.into_iter().filter(|(_, set)| *set) {
        query.append_pair(name, "true");
    }
    let query = query.finish();
    format!("/api/v1/namespaces/{namespace}/pods/{name}/exec?{query}")
}

/// The program's streams at the API server.
async fn open(
    access: &Access,
    path: String,
) -> Result<(impl AsyncRead + AsyncWrite + Unpin + use<>, &'static str)> {
    let mut request = http::Request::get(path)
        .body(Body::empty())
        .context("make request")?;
    let handshake = Handshake::ask(request.headers_mut());
    let mut answer = access.client.send(request).await.map_err(explain)?;
    if answer.status() != http::StatusCode::SWITCHING_PROTOCOLS {
        let status = answer.status();
        let body = http_body_util::Limited::new(answer.into_body(), REFUSAL_MAX);
        let body = body.collect().await.map(|body| body.to_bytes());
        let body = body.unwrap_or_default();
        let said = serde_json::from_slice::<serde_json::Value>(&body).ok();
        let said = said.and_then(|status| Some(status["message"].as_str()?.to_owned()));
        let said = said.unwrap_or_else(|| String::from_utf8_lossy(&body).trim().to_owned());
        if said.is_empty() {
            bail!("run program: the server answers {status}");
        }
        bail!("{said}");
    }
    let protocol = handshake.check(answer.headers())?;
    let upgraded = hyper::upgrade::on(&mut answer).await;
    Ok((TokioIo::new(upgraded.context("run program")?), protocol))
}

/// Until the program's end.
async fn take_part(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    protocol: &str,
    stdin: bool,
) -> Result<Ended> {
    let (mut sink, mut source) = command_client(stream, protocol).await;
    let typing = async {
        if stdin {
            pass_input(&mut sink).await;
        }
        std::future::pending::<Result<Ended>>().await
    };
    let hearing = async {
        let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
        loop {
            let said = source.next().await.context("hear the program")?;
            match said.context("hear the program: the connection has ended")? {
                ToClient::Stdout(bytes) => {
                    let written = out.write_all(&bytes).and_then(|()| out.flush());
                    written.context("write output")?;
                }
                ToClient::Stderr(bytes) => err.write_all(&bytes).context("write output")?,
                ToClient::Ended(ended) => return Ok(ended),
            }
        }
    };
    tokio::select! {
        ended = typing => ended,
        ended = hearing => ended,
    }
}

/// Sends what is typed, to its end or the connection's.
async fn pass_input<S: AsyncRead + AsyncWrite + Unpin>(sink: &mut CommandSink<S>) {
    let (typed, mut pieces) = mpsc::channel::<Bytes>(PIECES_MAX);
    // A read of a terminal can't be called off: the thread ends with the process.
    std::thread::spawn(move || {
        let mut input = std::io::stdin();
        let mut chunk = vec![0; CHUNK];
        while let Ok(read) = input.read(&mut chunk) {
            let piece = Bytes::copy_from_slice(&chunk[..read]);
            if read == 0 || typed.blocking_send(piece).is_err() {
                return;
            }
        }
    });
    while let Some(piece) = pieces.recv().await {
        // Why it can't be sent is heard.
        if sink.send(FromClient::Stdin(piece)).await.is_err() {
            return;
        }
    }
    let _ended = sink.send(FromClient::StdinEnds).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[test]
    fn what_is_run_is_asked_for_as_the_api_has_it() {
        let args = [
            "salp",
            "exec",
            "-i",
            "-c",
            "app",
            "shop-1/default/till-0",
            "--",
            "ls",
            "-l",
            "a b",
        ];
        let cli = crate::cli::Cli::try_parse_from(args).unwrap();
        let crate::cli::Command::Exec(args) = cli.command else {
            panic!("another command");
        };
        assert_eq!(
            path(&args, "default", "till-0"),
            "/api/v1/namespaces/default/pods/till-0/exec?command=ls&command=-l&command=a+b&container=app&stdout=true&stdin=true&stderr=true"
        );
    }
}
