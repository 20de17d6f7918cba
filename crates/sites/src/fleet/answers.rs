//! Who answers: at a unix socket, with an API server at hand.
//!
//! A connection's first line says who asks: `own`, a command of this site's owner (who alone
//! can open the socket), or `site ID`, another one. Its second is the question.

use super::allowed::{self, Answered, Asked};
use super::processes::{Lister, NotListed, Which};
use super::wire;
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
    BufReader,
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
}

/// Answers until the scope is cancelled.
pub fn serve(listener: UnixListener, config: Config, scope: &Scope) {
    let Config {
        client,
        informers,
        answered,
    } = config;
    let answers = Arc::new(Answers {
        lister: Lister::new(client.clone(), informers, scope),
        client,
        answered,
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
}

impl Answers {
    async fn answer(&self, connection: UnixStream) -> io::Result<()> {
        let (read, mut write) = connection.into_split();
        let mut read = BufReader::new(read);
        let lines = async { Ok::<_, io::Error>((line(&mut read).await?, line(&mut read).await?)) };
        let (from, question) = tokio::time::timeout(LINE_WITHIN, lines)
            .await
            .map_err(|_| io::ErrorKind::TimedOut)??;
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

async fn say(write: &mut (impl AsyncWrite + Unpin), head: &str, body: &[u8]) -> io::Result<()> {
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
                answered,
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
