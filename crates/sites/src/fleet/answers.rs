//! Who answers: at a unix socket, with an API server at hand.
//!
//! A connection's first line says who asks: `own`, a command of this site's owner (who alone
//! can open the socket), or `site ID`, another one. Its second is the question.

use super::allowed::{self, Answered, Asked};
use super::processes::{Lister, NotListed, Which};
use super::{exec, wire};
use client::Informers;
use http::{Request, header};
use http_body_util::BodyExt as _;
use kube::client::Body;
use lifecycle::Scope;
use serde_json::json;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _,
    BufReader, DuplexStream,
};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

/// Connections at once; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 512;
/// Bytes of a line.
const LINE_MAX: u64 = 16 * 1024;
/// How long the question may take to come.
const LINE_WITHIN: Duration = Duration::from_secs(10);
/// Pause after a failed accept.
const ACCEPT_AGAIN: Duration = Duration::from_millis(10);

/// What answers need.
#[derive(Clone)]
pub struct Config {
    /// Asks the API server, with no more rights than other sites are to have.
    pub client: kube::Client,
    /// The process's informers, of which lists are made.
    pub informers: Informers,
    /// What of it other sites are told.
    pub answered: Answered,
    /// In pods of which namespaces programs are run for other sites.
    pub executed: Answered,
    /// Connects to the API server, with the right to run programs and no other.
    pub connect: Connect,
}

/// Makes a connection that speaks HTTP/1.1.
pub type Connect = Arc<dyn Fn() -> DuplexStream + Send + Sync>;

/// Answers until the scope is cancelled.
pub fn serve(listener: UnixListener, config: Config, scope: &Scope) {
    let Config {
        client,
        informers,
        answered,
        executed,
        connect,
    } = config;
    let answers = Arc::new(Answers {
        lister: Lister::new(client.clone(), informers, scope),
        client,
        answered,
        executed,
        connect,
    });
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let within = scope.clone();
    scope.spawn_cancellable(async move {
        while let Ok(permit) = connections.clone().acquire_owned().await {
            let connection = match listener.accept().await {
                Ok((connection, _)) => connection,
                Err(error) => {
                    // Out of descriptors, for example: what is open now will be closed.
                    tracing::warn!(%error, "accept questions of other sites");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                    continue;
                }
            };
            let answers = answers.clone();
            within.spawn_cancellable(async move {
                if let Err(error) = answers.answer(connection).await {
                    tracing::debug!(%error, "answer a question");
                }
                drop(permit);
            });
        }
    });
}

struct Answers {
    client: kube::Client,
    lister: Lister,
    answered: Answered,
    executed: Answered,
    connect: Connect,
}

impl Answers {
    async fn answer(&self, connection: UnixStream) -> io::Result<()> {
        let (read, mut write) = connection.into_split();
        let mut read = BufReader::new(read);
        let lines = async { Ok::<_, io::Error>((line(&mut read).await?, line(&mut read).await?)) };
        let (from, question) = tokio::time::timeout(LINE_WITHIN, lines)
            .await
            .map_err(|_| io::ErrorKind::TimedOut)??;
        if let Some(Asked::Exec(namespace)) = allowed::read(&question) {
            let permitted = match from.as_str() {
                "own" => Ok(()),
                _ => self.executed.permits_exec(namespace),
            };
            return match permitted {
                Ok(()) => {
                    tracing::info!(from, question, "run a program for another site");
                    exec::run(&self.connect, &question, read, write).await
                }
                Err(why) => refuse(&mut write, 403, "Forbidden", &why).await,
            };
        }
        // Who asked may leave in the middle of what has no end.
        let mut left = [0];
        tokio::select! {
            said = self.say(from == "own", &question, &mut write) => said,
            _ = read.read(&mut left) => Ok(()),
        }
    }

    async fn say(
        &self,
        own: bool,
        question: &str,
        write: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<()> {
        let (path, accept) = question
            .split_once(' ')
            .unwrap_or((question, "application/json"));
        let Some(asked) = allowed::read(path) else {
            return say(write, "403 text/plain", b"other sites may not ask this\n").await;
        };
        if !own && let Err(why) = self.answered.permits(asked) {
            return refuse(write, 403, "Forbidden", &why).await;
        }
        match asked {
            Asked::Processes(query) => self.processes(own, query, write).await,
            _ => self.of_api(path, accept, write).await,
        }
    }

    async fn processes(
        &self,
        own: bool,
        query: &str,
        write: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<()> {
        let which = match Which::parse(query) {
            Ok(which) => which,
            Err(why) => return refuse(write, 400, "BadRequest", &why).await,
        };
        let list = if own {
            self.lister.all(which).await
        } else {
            match self.lister.permitted(which, &self.answered).await {
                Ok(list) => list,
                Err(NotListed::Forbidden(why)) => {
                    return refuse(write, 403, "Forbidden", &why).await;
                }
                Err(NotListed::Asking(error)) => {
                    return say(write, "502 text/plain", error.to_string().as_bytes()).await;
                }
            }
        };
        let packed = tokio::task::spawn_blocking(move || wire::encode(list));
        let packed = packed.await.map_err(io::Error::other)??;
        say(write, &format!("200 {}", wire::KIND), &packed).await
    }

    /// What the API server answers, as it comes.
    async fn of_api(
        &self,
        path: &str,
        accept: &str,
        write: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<()> {
        let request = Request::get(path)
            .header(header::ACCEPT, accept)
            .body(Body::empty());
        let Ok(request) = request else {
            return say(write, "400 text/plain", b"this is no path\n").await;
        };
        let answer = match self.client.send(request).await {
            Ok(answer) => answer,
            Err(error) => {
                return say(write, "502 text/plain", error.to_string().as_bytes()).await;
            }
        };
        let kind = answer.headers().get(header::CONTENT_TYPE);
        let kind = kind.and_then(|k| k.to_str().ok()).unwrap_or("text/plain");
        let head = format!("{} {kind}\n", answer.status().as_u16());
        write.write_all(head.as_bytes()).await?;
        let mut body = answer.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(io::Error::other)?;
            if let Ok(bytes) = frame.into_data() {
                write.write_all(&bytes).await?;
            }
        }
        Ok(())
    }
}

async fn line(read: &mut (impl AsyncBufRead + Unpin)) -> io::Result<String> {
    let mut line = String::new();
    read.take(LINE_MAX).read_line(&mut line).await?;
    match line.pop() {
        Some('\n') => Ok(line),
        // Too long, or cut off.
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

pub(super) async fn say(
    write: &mut (impl AsyncWrite + Unpin),
    head: &str,
    body: &[u8],
) -> io::Result<()> {
    write.write_all(format!("{head}\n").as_bytes()).await?;
    write.write_all(body).await
}

/// Refuses in a way that every client of an API understands.
async fn refuse(
    write: &mut (impl AsyncWrite + Unpin),
    code: u16,
    reason: &str,
    why: &str,
) -> io::Result<()> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": why, "reason": reason, "code": code,
    });
    let head = format!("{code} application/json");
    say(write, &head, status.to_string().as_bytes()).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// An API server that says what it was asked.
    fn echo() -> kube::Client {
        client::connect::from_service(tower::service_fn(|request: Request<Body>| async move {
            let body = json!({"asked": request.uri().to_string()}).to_string();
            let response = http::Response::builder()
                .header(header::CONTENT_TYPE, "application/json")
                .body(Body::from(body.into_bytes()));
            response.map_err(tower::BoxError::from)
        }))
    }

    /// An API server whose every program says what it is told.
    fn cat() -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(1024);
        let scope = Scope::new();
        let kept = scope.clone();
        kept.spawn_cancellable(async move {
            let _scope = scope;
            let (read, mut write) = tokio::io::split(ours);
            let mut read = BufReader::new(read);
            let mut headers = http::HeaderMap::new();
            let mut refused = false;
            loop {
                let line = line(&mut read).await.unwrap();
                let line = line.trim();
                refused |= line.contains("/nobody/");
                let Some((name, value)) = line.split_once(": ") else {
                    if line.is_empty() {
                        break;
                    }
                    continue;
                };
                let name = http::HeaderName::try_from(name).unwrap();
                headers.insert(name, value.parse().unwrap());
            }
            if refused {
                let no = b"HTTP/1.1 404 Not Found\r\nContent-Length: 7\r\n\r\nno pod\n";
                write.write_all(no).await.unwrap();
                return;
            }
            let protocols = streaming::websocket::COMMAND_PROTOCOLS;
            let (_, answer) = streaming::websocket::accept(&headers, protocols).unwrap();
            let mut head = "HTTP/1.1 101 Switching Protocols\r\n".to_owned();
            for (name, value) in answer.headers() {
                head += &format!("{name}: {}\r\n", value.to_str().unwrap());
            }
            head += "\r\n";
            write.write_all(head.as_bytes()).await.unwrap();
            let _left = tokio::io::copy(&mut read, &mut write).await;
        });
        theirs
    }

    struct Asking {
        dir: tempfile::TempDir,
        scope: Scope,
    }

    impl Asking {
        fn new(answered: Answered) -> Self {
            let asking = Self {
                dir: tempfile::tempdir().unwrap(),
                scope: Scope::new(),
            };
            let listener = UnixListener::bind(asking.dir.path().join("socket")).unwrap();
            let config = Config {
                client: echo(),
                informers: Informers::new(echo(), &asking.scope),
                executed: answered.clone(),
                answered,
                connect: Arc::new(cat),
            };
            serve(listener, config, &asking.scope);
            asking
        }

        async fn connect(&self) -> UnixStream {
            UnixStream::connect(self.dir.path().join("socket"))
                .await
                .unwrap()
        }

        async fn ask(&self, lines: &str) -> String {
            let mut connection = self.connect().await;
            connection.write_all(lines.as_bytes()).await.unwrap();
            let mut said = String::new();
            connection.read_to_string(&mut said).await.unwrap();
            said
        }
    }

    #[tokio::test]
    async fn the_api_answers_what_may_be_asked() {
        let asking = Asking::new(Answered::All);
        assert_eq!(
            asking.ask("site 01\n/api/v1/nodes?limit=1\n").await,
            "200 application/json\n{\"asked\":\"/api/v1/nodes?limit=1\"}"
        );
        assert_eq!(
            asking.ask("site 01\n/api/v1/secrets\n").await,
            "403 text/plain\nother sites may not ask this\n"
        );
        asking.scope.close().await;
    }

    #[tokio::test]
    async fn who_answers_nothing_says_so_and_still_answers_its_owner() {
        let asking = Asking::new(Answered::Nothing);
        let said = asking.ask("site 01\n/api/v1/nodes\n").await;
        let (head, body) = said.split_once('\n').unwrap();
        assert_eq!(head, "403 application/json");
        let status: Value = serde_json::from_str(body).unwrap();
        assert_eq!(status["message"], "does not answer questions");
        let own = asking.ask("own\n/api/v1/nodes\n").await;
        assert!(own.starts_with("200 "), "{own}");
        asking.scope.close().await;
    }

    const EXEC: &str = "/api/v1/namespaces/shop/pods/till-0/exec?command=cat&stdin=true";

    #[tokio::test]
    async fn programs_are_run_for_those_who_may_have_them_run() {
        let asking = Asking::new(Answered::Namespaces(["shop".to_owned()].into()));
        let mut connection = BufReader::new(asking.connect().await);
        let question = format!("site 01\n{EXEC}\n");
        connection.write_all(question.as_bytes()).await.unwrap();
        assert_eq!(
            line(&mut connection).await.unwrap(),
            "101 v5.channel.k8s.io"
        );
        connection.write_all(b"as it comes").await.unwrap();
        let mut said = [0; 11];
        connection.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"as it comes");

        let missing = EXEC.replace("till-0", "nobody");
        let said = asking.ask(&format!("site 01\n{missing}\n")).await;
        assert_eq!(said, "404 text/plain\nno pod\n");
        let other = EXEC.replace("shop", "other");
        let said = asking.ask(&format!("site 01\n{other}\n")).await;
        assert!(said.starts_with("403 "), "{said}");
        assert!(said.contains("only in shop"), "{said}");
        asking.scope.close().await;

        let mute = Asking::new(Answered::Nothing);
        let said = mute.ask(&format!("site 01\n{EXEC}\n")).await;
        assert!(said.contains("start it with --lattice-exec"), "{said}");
        mute.scope.close().await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_is_not_waited_for() {
        let asking = Asking::new(Answered::All);
        let mut connection = asking.connect().await;
        connection.write_all(b"site 01\n/api/v1").await.unwrap();
        let began = tokio::time::Instant::now();
        let mut said = Vec::new();
        // The test's clock jumps to the deadline.
        assert_eq!(connection.read_to_end(&mut said).await.unwrap(), 0);
        assert_eq!(began.elapsed().as_secs(), LINE_WITHIN.as_secs());
        asking.scope.close().await;
    }
}
