//! Questions of other sites: which pods and nodes there are, and what they log. Reading only,
//! and only these; but where the owner lets them, others may run programs in pods ([`exec`]).
//!
//! A question is a stream whose first line is a path with its query, of the API ([`allowed`])
//! or one of the fleet's own ([`processes`]); the answer's first line is the HTTP status and
//! the content type, and the body follows as it comes.
//!
//! Who answers ([`answers`]) does so at a unix socket: that is the process that has an API
//! server. Where streams of other sites come in they are passed on to it ([`Fleet`]).

pub mod allowed;
pub mod answers;
mod exec;
pub mod processes;
mod usage;
pub mod wire;

use bytes::Bytes;
use lattice::{Incoming, SiteId, SiteStream};
use lifecycle::Scope;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

/// The protocol of such streams.
pub const PROTOCOL: &str = "fleet";
/// Questions under way at once; further ones are refused.
const QUESTIONS_MAX: usize = 256;
/// How long who asked may take to see that the answer has ended.
const END_WITHIN: Duration = Duration::from_secs(30);

/// Takes questions of other sites to who answers them.
#[derive(Clone)]
pub(crate) struct Fleet {
    socket: PathBuf,
    scope: Scope,
    questions: Arc<Semaphore>,
}

impl Fleet {
    pub(crate) fn new(socket: PathBuf, scope: &Scope) -> Self {
        Self {
            socket,
            scope: scope.clone(),
            questions: Arc::new(Semaphore::new(QUESTIONS_MAX)),
        }
    }

    pub(crate) fn take(&self, incoming: Incoming) {
        let Ok(permit) = self.questions.clone().try_acquire_owned() else {
            incoming.stream.cancel("too many questions");
            return;
        };
        let fleet = self.clone();
        self.scope.spawn_cancellable(async move {
            let Incoming { from, stream, .. } = incoming;
            if let Err(error) = fleet.pass(from, stream).await {
                tracing::debug!(%error, %from, "question of another site");
            }
            drop(permit);
        });
    }

    async fn pass(&self, from: SiteId, stream: SiteStream) -> io::Result<()> {
        let (mut asked, mut answer) = tokio::io::split(stream);
        let answers = async {
            let mut answers = UnixStream::connect(&self.socket).await?;
            answers
                .write_all(format!("site {from}\n").as_bytes())
                .await?;
            Ok::<_, io::Error>(answers)
        };
        match answers.await {
            Ok(answers) => {
                let (mut from_answers, mut to_answers) = answers.into_split();
                let question = async {
                    tokio::io::copy(&mut asked, &mut to_answers).await?;
                    // Who has said all waits for the answer.
                    std::future::pending().await
                };
                tokio::select! {
                    copied = tokio::io::copy(&mut from_answers, &mut answer) => copied.map(drop),
                    // Who asked has left: dropping the connection tells it.
                    left = question => left,
                }?;
            }
            Err(error) => {
                tracing::debug!(%error, "reach who answers questions");
                answer
                    .write_all(b"503 text/plain\nits control plane is down\n")
                    .await?;
            }
        }
        answer.shutdown().await?;
        // Dropping the stream before the other end has seen its end would cancel the answer.
        let mut rest = [0; 64];
        let end = async { while asked.read(&mut rest).await.is_ok_and(|n| n > 0) {} };
        let _gone_either_way = tokio::time::timeout(END_WITHIN, end).await;
        Ok(())
    }
}

/// The status and content type of an answer; what follows in the stream is its body.
///
/// # Errors
/// When the stream ends or has no such form.
pub async fn read_head(stream: &SiteStream) -> io::Result<(u16, String)> {
    let line = crate::tunnel::line(stream).await?;
    parse_head(&line).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The status, content type and body of an answer that came whole.
pub fn read_answer(answer: &Bytes) -> Option<(u16, String, Bytes)> {
    let end = answer.iter().position(|b| *b == b'\n')?;
    let (status, kind) = parse_head(std::str::from_utf8(&answer[..end]).ok()?)?;
    Some((status, kind, answer.slice(end + 1..)))
}

/// The status and content type in an answer's first line.
pub fn parse_head(line: &str) -> Option<(u16, String)> {
    let (status, kind) = line.split_once(' ')?;
    Some((status.parse().ok()?, kind.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_a_head() {
        let read = read_answer(&Bytes::from_static(b"200 text/plain\nhello\n"));
        assert_eq!(
            read,
            Some((200, "text/plain".into(), Bytes::from_static(b"hello\n")))
        );
        assert_eq!(read_answer(&Bytes::from_static(b"hello")), None);
    }
}
