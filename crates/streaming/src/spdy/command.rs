//! A command's streams: the client opens one for each of them and one for how it ended.

use super::session::{Stream, serve};
use crate::{Ended, FromClient, ToClient};
use bytes::Bytes;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

/// How long the streams may take to be opened.
const OPENED_WITHIN: Duration = Duration::from_secs(30);
/// Bytes of a terminal's size; more is none.
const RESIZE_MAX_BYTES: usize = 1024;

/// Which streams a client will open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommandStreams {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
    /// A terminal, whose size is said in a stream of its own (not before the third version).
    pub tty: bool,
}

/// As [`crate::websocket::serve_command`].
///
/// # Errors
/// When the connection fails.
pub async fn serve_command(
    stream: impl AsyncRead + AsyncWrite + Send,
    protocol: &str,
    streams: CommandStreams,
    to: mpsc::Sender<FromClient>,
    from: mpsc::Receiver<ToClient>,
) -> io::Result<()> {
    let resized = streams.tty && matches!(protocol, "v4.channel.k8s.io" | "v3.channel.k8s.io");
    let plain = protocol != "v4.channel.k8s.io";
    serve(stream, |opened| async move {
        let all = Opened::wait(opened, streams, resized);
        match tokio::time::timeout(OPENED_WITHIN, all).await {
            Ok(Some(all)) => all.run(plain, to, from).await,
            Ok(None) => {}
            Err(_) => tracing::debug!("a client opened too few streams"),
        }
    })
    .await
}

#[derive(Default)]
struct Opened {
    error: Option<Stream>,
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    resize: Option<Stream>,
}

impl Opened {
    /// None if the client leaves before.
    async fn wait(
        mut opened: mpsc::Receiver<Stream>,
        wanted: CommandStreams,
        resized: bool,
    ) -> Option<Self> {
        let mut all = Self::default();
        while all.error.is_none()
            || all.stdin.is_none() && wanted.stdin
            || all.stdout.is_none() && wanted.stdout
            || all.stderr.is_none() && wanted.stderr
            || all.resize.is_none() && resized
        {
            let stream = opened.recv().await?;
            let place = match stream.headers.get("streamtype") {
                Some("error") => &mut all.error,
                Some("stdin") => &mut all.stdin,
                Some("stdout") => &mut all.stdout,
                Some("stderr") => &mut all.stderr,
                Some("resize") => &mut all.resize,
                _ => continue,
            };
            *place = Some(stream);
        }
        Some(all)
    }

    async fn run(
        self,
        plain: bool,
        to: mpsc::Sender<FromClient>,
        mut from: mpsc::Receiver<ToClient>,
    ) {
        let (stdin, resize) = (self.stdin, self.resize);
        let hearing = async {
            let typing = async {
                if let Some(mut stdin) = stdin {
                    while let Some(bytes) = stdin.input.recv().await {
                        // A program that reads no more has its reasons.
                        drop(to.send(FromClient::Stdin(bytes)).await);
                    }
                    drop(to.send(FromClient::StdinEnds).await);
                }
            };
            let sizing = async {
                if let Some(mut resize) = resize {
                    let mut text = Vec::new();
                    while let Some(bytes) = resize.input.recv().await {
                        for said in sizes(&mut text, &bytes) {
                            drop(to.send(said).await);
                        }
                    }
                }
            };
            tokio::join!(typing, sizing);
            std::future::pending::<()>().await
        };
        let saying = async {
            while let Some(said) = from.recv().await {
                let (stream, bytes) = match said {
                    ToClient::Stdout(bytes) => (&self.stdout, bytes),
                    ToClient::Stderr(bytes) => (&self.stderr, bytes),
                    ToClient::Ended(ended) => (
                        &self.error,
                        if plain {
                            words(&ended)
                        } else {
                            ended.to_json()
                        },
                    ),
                };
                if let Some(stream) = stream
                    && !bytes.is_empty()
                {
                    stream.output.send(bytes).await;
                }
            }
        };
        tokio::select! {
            () = hearing => {}
            () = saying => {}
        }
        for stream in [&self.stdout, &self.stderr, &self.error]
            .into_iter()
            .flatten()
        {
            stream.output.end().await;
        }
    }
}

/// Before the fourth version: nothing, or why it failed.
fn words(ended: &Ended) -> Bytes {
    match ended {
        Ended::Success => Bytes::new(),
        Ended::ExitCode { message, .. } | Ended::Failed(message) => message.clone().into(),
    }
}

/// Sizes come one after the other, each an object of JSON.
fn sizes(text: &mut Vec<u8>, bytes: &[u8]) -> Vec<FromClient> {
    text.extend_from_slice(bytes);
    let mut found = Vec::new();
    while let Some(end) = text.iter().position(|b| *b == b'}') {
        let one: Vec<u8> = text.drain(..=end).collect();
        if let Ok(resize) = serde_json::from_slice(&one) {
            found.push(FromClient::Resize(resize));
        }
    }
    if text.len() > RESIZE_MAX_BYTES {
        text.clear();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spdy::client::Client;

    #[tokio::test]
    async fn a_session_of_streams() {
        let (server, client) = tokio::io::duplex(1 << 20);
        let (to, mut heard) = mpsc::channel(1);
        let (say, from) = mpsc::channel(1);
        let streams = CommandStreams {
            stdin: true,
            stdout: true,
            tty: true,
            stderr: false,
        };
        let served = serve_command(server, "v4.channel.k8s.io", streams, to, from);
        let program = async {
            let mut lines = Vec::new();
            while let Some(said) = heard.recv().await {
                lines.push(format!("{said:?}"));
                if let FromClient::Stdin(bytes) = said {
                    say.send(ToClient::Stdout(bytes)).await.unwrap();
                }
                if lines.iter().any(|l| l == "StdinEnds") && lines.len() == 4 {
                    break;
                }
            }
            let message = "seven".to_owned();
            let ended = Ended::ExitCode { code: 7, message };
            say.send(ToClient::Ended(ended)).await.unwrap();
            drop(say);
            lines
        };
        let client = async {
            let mut client = Client::new(client);
            let error = client.open(&[("streamType", "error")], false).await;
            let stdin = client.open(&[("streamType", "stdin")], false).await;
            let stdout = client.open(&[("streamType", "stdout")], false).await;
            let resize = client.open(&[("streamType", "resize")], false).await;
            let sizes = b"{\"Width\":80,\"Height\":24}\n{\"Width\":81,\"Height\":24}\n";
            client.say(resize, &sizes[..30], false).await;
            client.say(resize, &sizes[30..], false).await;
            client.say(stdin, b"hello", true).await;
            client
                .until(|c| c.ended(error) && c.ended(stdout) && c.gone)
                .await;
            assert_eq!(client.heard(stdout), b"hello");
            Ended::from_json(client.heard(error))
        };
        let (served, mut lines, ended) = tokio::join!(served, program, client);
        served.unwrap();
        let message = "seven".to_owned();
        assert_eq!(ended, Ended::ExitCode { code: 7, message });
        lines.sort();
        let size = |width| format!("Resize(Resize {{ width: {width}, height: 24 }})");
        let stdin = "Stdin(b\"hello\")".to_owned();
        assert_eq!(lines, [size(80), size(81), stdin, "StdinEnds".to_owned()]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_opens_too_little_is_not_waited_for() {
        let (server, client) = tokio::io::duplex(1 << 20);
        let (to, _heard) = mpsc::channel(1);
        let (_say, from) = mpsc::channel(1);
        let streams = CommandStreams {
            stdout: true,
            ..CommandStreams::default()
        };
        let served = serve_command(server, "v4.channel.k8s.io", streams, to, from);
        let asking = async {
            let mut client = Client::new(client);
            client.open(&[("streamtype", "error")], false).await;
            client.until(|c| c.gone).await;
        };
        let (served, ()) = tokio::join!(served, asking);
        served.unwrap();
    }
}
