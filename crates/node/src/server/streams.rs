//! Exec, attach and port-forward: connections that change their protocol, to WebSocket or to
//! SPDY/3.1 for those that know no better (`streaming`).

use super::{Body, Server, text};
use crate::agent::Slot;
use crate::container::container_id;
use crate::state::Run;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt as _, SinkExt as _, StreamExt as _};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use runtime::{
    AttachSpec, ContainerId, ExecSpec, PodRuntime, RuntimeError, Said, Session, TerminalSize,
};
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use streaming::spdy::CommandStreams;
use streaming::{DialError, Dialled, Ended, FromClient, Ports, Resize, ToClient, spdy, websocket};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// Sessions of a node at once; further ones are refused.
pub(super) const SESSIONS_MAX: usize = 256;
/// Pieces on their way between a client and a program; past it who sends waits.
const PIECES_MAX: usize = 4;
/// How long a pod's port may take to take a connection.
const DIAL_WITHIN: Duration = Duration::from_secs(10);

/// Why there is no session, as it is answered.
type Refused = (StatusCode, String);

/// What a client wants of a command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Asked {
    command: Vec<String>,
    streams: CommandStreams,
}

/// How the connection goes on.
enum Protocol {
    WebSocket(&'static str),
    Spdy(&'static str),
}

/// A connection that is about to change its protocol.
struct Upgrade {
    on: OnUpgrade,
    protocol: Protocol,
    permit: OwnedSemaphorePermit,
}

impl Server {
    /// Answers `/exec/…`, `/attach/…` and `/portForward/…`.
    pub(super) async fn stream(&self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
        let answer = match parts.as_slice() {
            [what @ ("exec" | "attach"), namespace, pod, container]
            | [what @ ("exec" | "attach"), namespace, pod, _, container] => {
                self.command(what, [namespace, pod, container], request)
            }
            ["portForward", namespace, pod] | ["portForward", namespace, pod, _] => {
                self.ports(namespace, pod, request)
            }
            _ => Err((StatusCode::NOT_FOUND, "404 page not found".to_owned())),
        };
        match answer {
            Ok(response) => response,
            Err((status, words)) => text(status, &words),
        }
    }

    fn command(
        &self,
        what: &str,
        [namespace, pod, container]: [&str; 3],
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Refused> {
        let asked = asked(request.uri().query().unwrap_or_default())?;
        let exec = what == "exec";
        if exec && asked.command.is_empty() {
            let words = "you must specify a command: none was given".to_owned();
            return Err((StatusCode::BAD_REQUEST, words));
        }
        let slot = self.pod(namespace, pod)?;
        let (runtime, container) = self.running(&slot, container)?;
        let protocols = (websocket::COMMAND_PROTOCOLS, spdy::COMMAND_PROTOCOLS);
        let (upgrade, response) = self.upgrade(request, protocols)?;
        self.scope.spawn_cancellable(async move {
            let begun = begin(&*runtime, exec, container, &asked);
            upgrade.command(asked.clone(), begun).await;
        });
        Ok(response)
    }

    fn ports(
        &self,
        namespace: &str,
        pod: &str,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Refused> {
        let asked = ports(request.uri().query().unwrap_or_default())?;
        let slot = self.pod(namespace, pod)?;
        let ip = slot.lock().ip;
        let ip =
            ip.ok_or_else(|| (StatusCode::BAD_REQUEST, format!("pod {pod} has no address")))?;
        let protocols = (websocket::PORTS_PROTOCOLS, spdy::PORTS_PROTOCOLS);
        let (upgrade, response) = self.upgrade(request, protocols)?;
        if asked.is_empty()
            && let Protocol::WebSocket(protocol) = upgrade.protocol
            && protocol != websocket::SPDY_TUNNEL
        {
            let words = "query parameter \"port\" is required".to_owned();
            return Err((StatusCode::BAD_REQUEST, words));
        }
        self.scope
            .spawn_cancellable(upgrade.ports(asked, PodPorts(ip)));
        Ok(response)
    }

    fn pod(&self, namespace: &str, pod: &str) -> Result<Arc<Slot>, Refused> {
        self.agent.find(namespace, pod).ok_or_else(|| {
            let words = format!("pod {pod:?} does not exist on this node");
            (StatusCode::NOT_FOUND, words)
        })
    }

    /// The run of a container that there is now.
    fn running(
        &self,
        slot: &Slot,
        name: &str,
    ) -> Result<(Arc<dyn PodRuntime>, ContainerId), Refused> {
        let record = slot.lock();
        let index = record.desired.index_of(name).ok_or_else(|| {
            let words = format!(
                "container {name} is not valid for pod {}",
                record.desired.name
            );
            (StatusCode::BAD_REQUEST, words)
        })?;
        let actual = &record.actual.containers[index];
        if !matches!(actual.run, Run::Running { .. }) {
            let words = format!("container not found ({name:?}): it does not run now");
            return Err((StatusCode::INTERNAL_SERVER_ERROR, words));
        }
        let id = container_id(&record.desired, name, actual.attempt);
        let runtime = self.agent.runtime(record.runtime.unwrap_or(0)).clone();
        Ok((runtime, id))
    }

    fn upgrade(
        &self,
        mut request: Request<Incoming>,
        (websockets, spdys): (&[&'static str], &[&'static str]),
    ) -> Result<(Upgrade, Response<Body>), Refused> {
        if ![Method::GET, Method::POST].contains(request.method()) {
            let words = "method not allowed".to_owned();
            return Err((StatusCode::METHOD_NOT_ALLOWED, words));
        }
        let (protocol, response) = switch(request.headers(), websockets, spdys)?;
        let permit = self.sessions.clone().try_acquire_owned();
        let permit = permit.map_err(|_| {
            let words = format!("{SESSIONS_MAX} sessions are open on this node already");
            (StatusCode::SERVICE_UNAVAILABLE, words)
        })?;
        let upgrade = Upgrade {
            on: hyper::upgrade::on(&mut request),
            protocol,
            permit,
        };
        let empty = Empty::new().map_err(|never| match never {}).boxed();
        Ok((upgrade, response.map(|()| empty)))
    }
}

fn switch(
    headers: &HeaderMap,
    websockets: &[&'static str],
    spdys: &[&'static str],
) -> Result<(Protocol, Response<()>), Refused> {
    if websocket::is_asked(headers) {
        let accepted = websocket::accept(headers, websockets);
        let (protocol, response) =
            accepted.map_err(|e| (StatusCode::BAD_REQUEST, e.to_string()))?;
        return Ok((Protocol::WebSocket(protocol), response));
    }
    if !spdy::is_asked(headers) {
        let words = "Upgrade request required: WebSocket or SPDY/3.1".to_owned();
        return Err((StatusCode::BAD_REQUEST, words));
    }
    let accepted = spdy::accept(headers, spdys);
    let (protocol, response) = accepted.ok_or_else(|| {
        let words = format!(
            "unable to negotiate protocol: this node speaks {}",
            spdys.join(", ")
        );
        (StatusCode::FORBIDDEN, words)
    })?;
    Ok((Protocol::Spdy(protocol), response))
}

impl Upgrade {
    async fn command(
        self,
        asked: Asked,
        begun: impl Future<Output = Result<Session, RuntimeError>>,
    ) {
        let _permit = self.permit;
        let stream = match self.on.await {
            Ok(upgraded) => TokioIo::new(upgraded),
            Err(error) => return tracing::debug!(%error, "connection not upgraded"),
        };
        let (to, heard) = mpsc::channel(PIECES_MAX);
        let (say, from) = mpsc::channel(PIECES_MAX);
        let streams = asked.streams;
        let served = async {
            match self.protocol {
                Protocol::WebSocket(protocol) => {
                    websocket::serve_command(stream, protocol, to, from).await
                }
                Protocol::Spdy(protocol) => {
                    spdy::serve_command(stream, protocol, streams, to, from).await
                }
            }
        };
        let working = async {
            let ended = take_part(begun.await, streams, heard, &say).await;
            // Nobody need be there any more.
            drop(say.send(ToClient::Ended(ended)).await);
            drop(say);
        };
        let mut working = pin!(working.fuse());
        let mut served = pin!(served.fuse());
        let served = futures::select_biased! {
            served = served => served,
            // All was said; the client has yet to see it.
            () = working => served.await,
        };
        if let Err(error) = served {
            tracing::debug!(%error, "session ended");
        }
    }

    async fn ports(self, asked: Vec<u16>, ports: PodPorts) {
        let _permit = self.permit;
        let stream = match self.on.await {
            Ok(upgraded) => TokioIo::new(upgraded),
            Err(error) => return tracing::debug!(%error, "connection not upgraded"),
        };
        let served = match self.protocol {
            Protocol::WebSocket(websocket::SPDY_TUNNEL) => {
                let tunnel = websocket::Tunnel::server(stream).await;
                spdy::serve_ports(tunnel, &ports).await
            }
            Protocol::WebSocket(_) => websocket::serve_ports(stream, &asked, &ports).await,
            Protocol::Spdy(_) => spdy::serve_ports(stream, &ports).await,
        };
        if let Err(error) = served {
            tracing::debug!(%error, "port-forward ended");
        }
    }
}

async fn begin(
    runtime: &dyn PodRuntime,
    exec: bool,
    container: ContainerId,
    asked: &Asked,
) -> Result<Session, RuntimeError> {
    let CommandStreams { stdin, tty, .. } = asked.streams;
    if exec {
        let command = asked.command.clone();
        let spec = ExecSpec {
            container,
            command,
            stdin,
            tty,
        };
        runtime.exec(spec).await
    } else {
        runtime.attach(AttachSpec { container, stdin }).await
    }
}

/// Carries what is said both ways, to the program's end.
async fn take_part(
    begun: Result<Session, RuntimeError>,
    streams: CommandStreams,
    mut heard: mpsc::Receiver<FromClient>,
    say: &mpsc::Sender<ToClient>,
) -> Ended {
    let Session {
        input,
        mut output,
        mut sizes,
    } = match begun {
        Ok(session) => session,
        Err(RuntimeError::Exec { code, message }) => {
            let message = format!("exec: {message}");
            let line = Bytes::from(format!("salp: {message}\n"));
            let line = if streams.stderr {
                Some(ToClient::Stderr(line))
            } else {
                streams.stdout.then_some(ToClient::Stdout(line))
            };
            if let Some(line) = line {
                drop(say.send(line).await);
            }
            return Ended::ExitCode { code, message };
        }
        Err(error) => {
            return Ended::Failed(format!("error executing command in container: {error}"));
        }
    };
    let typing = async {
        let mut input = streams.stdin.then_some(input);
        while let Some(said) = heard.recv().await {
            match (said, &mut input) {
                (FromClient::Stdin(bytes), Some(to)) => {
                    if to.send(bytes).await.is_err() {
                        input = None;
                    }
                }
                (FromClient::StdinEnds, _) => input = None,
                (FromClient::Stdin(_), _) => {}
                (FromClient::Resize(Resize { width, height }), _) => {
                    if let Some(to) = &mut sizes {
                        let (columns, rows) = (width, height);
                        // A program that has ended shows no more.
                        drop(to.send(TerminalSize { columns, rows }).await);
                    }
                }
            }
        }
        // The client has left, or will say no more: its output tells which.
        drop(input);
        std::future::pending::<Ended>().await
    };
    let saying = async {
        while let Some(said) = output.next().await {
            let said = match said {
                Said::Stdout(bytes) => streams.stdout.then_some(ToClient::Stdout(bytes)),
                // A terminal has one output.
                Said::Stderr(bytes) if streams.tty => {
                    streams.stdout.then_some(ToClient::Stdout(bytes))
                }
                Said::Stderr(bytes) => streams.stderr.then_some(ToClient::Stderr(bytes)),
                Said::Exited { code: 0 } => return Ended::Success,
                Said::Exited { code } => {
                    let message = format!("command terminated with exit code {code}");
                    return Ended::ExitCode { code, message };
                }
            };
            if let Some(said) = said
                && say.send(said).await.is_err()
            {
                break;
            }
        }
        let message = "the container was stopped".to_owned();
        Ended::ExitCode { code: 137, message }
    };
    tokio::select! {
        ended = typing => ended,
        ended = saying => ended,
    }
}

fn truth(value: &str) -> bool {
    matches!(value, "1" | "true")
}

/// What the query asks for, as the API server has written it for kubelets or as clients do.
fn asked(query: &str) -> Result<Asked, Refused> {
    let mut asked = Asked::default();
    let streams = &mut asked.streams;
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "command" => asked.command.push(value.into_owned()),
            "input" | "stdin" => streams.stdin = truth(&value),
            "output" | "stdout" => streams.stdout = truth(&value),
            "error" | "stderr" => streams.stderr = truth(&value),
            "tty" => streams.tty = truth(&value),
            _ => {}
        }
    }
    let bad = |words: &str| Err((StatusCode::BAD_REQUEST, words.to_owned()));
    if streams.tty && streams.stderr {
        // A terminal has one output; clients ask for both all the same.
        streams.stderr = false;
    }
    if !(streams.stdin || streams.stdout || streams.stderr) {
        return bad("you must specify at least 1 of stdin, stdout, stderr");
    }
    Ok(asked)
}

/// The ports of a query: `port=80&port=81`, or with commas.
fn ports(query: &str) -> Result<Vec<u16>, Refused> {
    let mut ports = Vec::new();
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        if name != "port" && name != "ports" {
            continue;
        }
        for word in value.split(',') {
            match word.parse() {
                Ok(port) if port > 0 => ports.push(port),
                _ => {
                    let words = format!("unable to parse {word:?} as a port");
                    return Err((StatusCode::BAD_REQUEST, words));
                }
            }
        }
    }
    Ok(ports)
}

/// The ports at a pod's address.
struct PodPorts(IpAddr);

impl Ports for PodPorts {
    fn dial(&self, port: u16) -> BoxFuture<'static, Result<Dialled, DialError>> {
        let address = SocketAddr::new(self.0, port);
        Box::pin(async move {
            let dialled = tokio::time::timeout(DIAL_WITHIN, TcpStream::connect(address)).await;
            let failed = |why: String| DialError(format!("failed to connect to {address}: {why}"));
            match dialled {
                Ok(Ok(stream)) => {
                    // What little there is goes at once.
                    let _ = stream.set_nodelay(true);
                    Ok(Box::new(stream) as Dialled)
                }
                Ok(Err(error)) => Err(failed(error.to_string())),
                Err(_) => Err(failed(format!("no answer within {DIAL_WITHIN:?}"))),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_read_from_the_query() {
        let all = asked("command=ls&command=-l&input=1&output=1&error=1").unwrap();
        assert_eq!(all.command, ["ls", "-l"]);
        let streams = CommandStreams {
            stdin: true,
            stdout: true,
            stderr: true,
            tty: false,
        };
        assert_eq!(all.streams, streams);
        let tty = asked("command=sh&stdin=true&stdout=true&stderr=true&tty=true").unwrap();
        assert!(tty.streams.tty && !tty.streams.stderr);
        assert_eq!(asked("command=ls").unwrap_err().0, StatusCode::BAD_REQUEST);
    }

    #[test]
    fn ports_are_numbers() {
        assert_eq!(ports("port=80&port=81,82"), Ok(vec![80, 81, 82]));
        assert_eq!(ports(""), Ok(vec![]));
        for wrong in ["port=0", "port=http", "port=65536", "port="] {
            assert!(ports(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_command_that_is_not_there_ends_as_in_a_shell() {
        let (say, mut from) = mpsc::channel(4);
        let (_to, heard) = mpsc::channel(1);
        let missing = RuntimeError::Exec {
            code: 127,
            message: "\"ls\": not found".to_owned(),
        };
        let streams = CommandStreams {
            stdout: true,
            stderr: true,
            ..CommandStreams::default()
        };
        let ended = take_part(Err(missing), streams, heard, &say).await;
        let message = "exec: \"ls\": not found".to_owned();
        assert_eq!(ended, Ended::ExitCode { code: 127, message });
        let line = Bytes::from("salp: exec: \"ls\": not found\n");
        assert_eq!(from.recv().await, Some(ToClient::Stderr(line)));
    }
}
