//! Questions of other sites, answered by this site's own API server: which pods and nodes
//! there are, and what they log. Reading only, and only these.
//!
//! A question is a stream whose first line is an API path with its query; the answer's first
//! line is the HTTP status and the content type, and the body follows as it comes.

use bytes::Bytes;
use http::{Request, header};
use http_body_util::BodyExt as _;
use kube::client::Body;
use lattice::{Incoming, SiteStream};
use lifecycle::Scope;
use std::io;
use std::sync::Arc;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Semaphore;

/// The protocol of such streams.
pub const PROTOCOL: &str = "fleet";
/// Questions under way at once; further ones are refused.
const QUESTIONS_MAX: usize = 256;

/// Answers questions.
#[derive(Clone)]
pub(crate) struct Fleet {
    client: kube::Client,
    scope: Scope,
    questions: Arc<Semaphore>,
}

impl Fleet {
    pub(crate) fn new(client: kube::Client, scope: &Scope) -> Self {
        Self {
            client,
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
            if let Err(error) = fleet.answer(incoming.stream).await {
                tracing::debug!(%error, from = %incoming.from, "question of another site");
            }
            drop(permit);
        });
    }

    async fn answer(&self, mut stream: SiteStream) -> io::Result<()> {
        let line = crate::tunnel::line(&stream).await?;
        let (path, accept) = line.split_once(' ').unwrap_or((&line, "application/json"));
        if !may_ask(path) {
            return say(
                &mut stream,
                "403 text/plain",
                "other sites may not ask this\n",
            )
            .await;
        }
        let request = Request::get(path)
            .header(header::ACCEPT, accept)
            .body(Body::empty());
        let Ok(request) = request else {
            return say(&mut stream, "400 text/plain", "this is no path\n").await;
        };
        let answer = match self.client.send(request).await {
            Ok(answer) => answer,
            Err(error) => {
                return say(&mut stream, "502 text/plain", &error.to_string()).await;
            }
        };
        let kind = answer.headers().get(header::CONTENT_TYPE);
        let kind = kind.and_then(|k| k.to_str().ok()).unwrap_or("text/plain");
        let head = format!("{} {kind}\n", answer.status().as_u16());
        stream.write_all(head.as_bytes()).await?;
        let mut body = answer.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(io::Error::other)?;
            if let Ok(bytes) = frame.into_data() {
                stream.write_all(&bytes).await?;
            }
        }
        stream.shutdown().await?;
        drain(&stream).await;
        Ok(())
    }
}

async fn say(stream: &mut SiteStream, head: &str, body: &str) -> io::Result<()> {
    stream
        .write_all(format!("{head}\n{body}").as_bytes())
        .await?;
    stream.shutdown().await?;
    drain(stream).await;
    Ok(())
}

/// Waits for the other side's end, so that dropping the stream does not cancel the answer.
async fn drain(stream: &SiteStream) {
    while stream.next(4096).await.is_ok_and(|bytes| !bytes.is_empty()) {}
}

/// The status, content type and body of an answer that came whole.
pub fn read_answer(answer: &Bytes) -> Option<(u16, String, Bytes)> {
    let end = answer.iter().position(|b| *b == b'\n')?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let (status, kind) = head.split_once(' ')?;
    Some((
        status.parse().ok()?,
        kind.to_owned(),
        answer.slice(end + 1..),
    ))
}

/// The status and content type of an answer; what follows in the stream is its body.
///
/// # Errors
/// When the stream ends or has no such form.
pub async fn read_head(stream: &SiteStream) -> io::Result<(u16, String)> {
    let line = crate::tunnel::line(stream).await?;
    let head = line.split_once(' ');
    let head = head.and_then(|(status, kind)| Some((status.parse().ok()?, kind.to_owned())));
    head.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Whether other members may ask this: pods and what they use, their logs, nodes, and
/// Deployments, some of which sleep.
fn may_ask(path_and_query: &str) -> bool {
    let (path, query) = path_and_query
        .split_once('?')
        .unwrap_or((path_and_query, ""));
    // An encoded slash or dot would be another path for the API server.
    if path.contains('%') || path.contains("..") || path.contains("//") {
        return false;
    }
    // A watch has no end; who wants changes asks again.
    let watches = query.split('&').any(|part| {
        let key = part.split('=').next().unwrap_or_default();
        // An encoded letter would be another key for the API server.
        key.contains('%') || key.starts_with("watch")
    });
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match parts.as_slice() {
        ["api", "v1", "pods" | "nodes"] | ["api", "v1", "nodes", _] => !watches,
        ["api", "v1", "namespaces", _, "pods"] | ["api", "v1", "namespaces", _, "pods", _] => {
            !watches
        }
        ["api", "v1", "namespaces", _, "pods", _, "log"] => true,
        ["api", "v1", "nodes", _, "proxy", "stats", "salp"] => true,
        ["apis", "apps", "v1", "deployments"]
        | ["apis", "apps", "v1", "namespaces", _, "deployments"] => !watches,
        ["apis", "metrics.k8s.io", "v1beta1", "pods" | "nodes"] => !watches,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_nodes_and_logs_may_be_asked_for_and_nothing_else() {
        for path in [
            "/api/v1/pods",
            "/api/v1/pods?labelSelector=app%3Dtill",
            "/api/v1/nodes",
            "/api/v1/namespaces/shop/pods",
            "/api/v1/namespaces/shop/pods/till-0/log?follow=true",
            "/apis/metrics.k8s.io/v1beta1/pods",
            "/api/v1/nodes/till/proxy/stats/salp",
            "/apis/apps/v1/namespaces/shop/deployments",
        ] {
            assert!(may_ask(path), "{path}");
        }
        for path in [
            "/api/v1/secrets",
            "/api/v1/namespaces/shop/secrets",
            "/api/v1/namespaces/shop/pods/till-0/exec",
            "/api/v1/pods?watch=true",
            "/api/v1/pods?%77atch=true",
            "/api/v1/nodes/till/proxy/exec/shop/till-0/main",
            "/apis/apps/v1/namespaces/shop/deployments/till/scale",
            "/api/v1/namespaces/shop/pods/../secrets",
            "/api/v1/namespaces/shop%2fsecrets/pods",
            "/api/v1//pods",
            "/",
            "",
        ] {
            assert!(!may_ask(path), "{path}");
        }
    }

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
