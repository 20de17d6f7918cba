//! The metadata of all objects of any resource, as it changes. There may be a thousand
//! resources, and most never change: a watch that waits keeps next to nothing.

use crate::informer::Trouble;
use futures::io::{AsyncBufRead, AsyncBufReadExt as _};
use futures::{Stream, stream};
use kube::api::{ApiResource, DynamicObject};
use kube::core::{PartialObjectMeta, Status, TypeMeta};
use kube::runtime::utils::Backoff as _;
use kube::runtime::watcher::{DefaultBackoff, Event};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::pin::Pin;

/// What is asked of a list and its watch.
const AS: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";
/// A watch that brings nothing for so long is made anew, in seconds.
const WATCH_SECONDS: u32 = 290;
/// What a server writes beside the bookmark that ends a list.
const LISTED: &str = "k8s.io/initial-events-end";

type Metadata = PartialObjectMeta<DynamicObject>;
type Lines = Pin<Box<dyn AsyncBufRead + Send>>;

/// The metadata of all objects of any resource as a stream that never ends: for those
/// who keep less than an informer would. Managed fields are left out. Errors that go on are
/// logged; the watch is tried again with back-off.
///
/// `Event::Init`, `InitApply`…, `InitDone` bracket each new listing.
pub fn watch_metadata(
    client: kube::Client,
    resource: &ApiResource,
) -> impl Stream<Item = Event<Metadata>> + Send + use<> {
    let watch = Watch {
        client,
        path: path_of(resource),
        kind: resource.kind.clone(),
        lines: None,
        from: None,
        backoff: DefaultBackoff::default(),
        trouble: Trouble::default(),
    };
    stream::unfold(watch, async |mut watch| {
        let event = watch.next().await;
        Some((event, watch))
    })
}

fn path_of(resource: &ApiResource) -> String {
    let (version, plural) = (&resource.api_version, &resource.plural);
    if resource.group.is_empty() {
        format!("/api/{version}/{plural}")
    } else {
        format!("/apis/{version}/{plural}")
    }
}

struct Watch {
    client: kube::Client,
    path: String,
    kind: String,
    /// What the server sends, while it does.
    lines: Option<Lines>,
    /// The revision that is known, once all is listed.
    from: Option<String>,
    backoff: DefaultBackoff,
    trouble: Trouble,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    kind: String,
    object: Box<RawValue>,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("ask: {0}")]
    Ask(#[from] kube::Error),
    #[error("read: {0}")]
    Read(#[from] std::io::Error),
    #[error("read event: {0}")]
    Parse(#[from] serde_json::Error),
    #[error("the server says: {0}")]
    Told(String),
    #[error("the watch ended before all was listed")]
    Short,
}

impl Watch {
    async fn next(&mut self) -> Event<Metadata> {
        loop {
            let tried = match &mut self.lines {
                Some(_) => self.read().await,
                None => Box::pin(self.open()).await,
            };
            match tried {
                Ok(Some(event)) => return event,
                Ok(None) => {}
                Err(failure) => {
                    self.lines = None;
                    self.trouble.failed(&self.kind, &failure);
                    let pause = self.backoff.next().unwrap_or_default();
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// Asks for what comes after what is known, or for everything.
    async fn open(&mut self) -> Result<Option<Event<Metadata>>, Failure> {
        let from = match &self.from {
            Some(from) => format!("&resourceVersion={from}"),
            None => "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan".to_owned(),
        };
        let url = format!(
            "{}?watch=true&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}{from}",
            self.path
        );
        let request = http::Request::get(url).header(http::header::ACCEPT, AS);
        let request = request.body(Vec::new()).map_err(kube::Error::HttpError)?;
        let lines = self.client.request_stream(request).await;
        if matches!(&lines, Err(kube::Error::Api(status)) if is_gone(status)) {
            self.from = None;
        }
        self.lines = Some(Box::pin(lines?));
        self.trouble.over(&self.kind);
        Ok(self.from.is_none().then_some(Event::Init))
    }

    async fn read(&mut self) -> Result<Option<Event<Metadata>>, Failure> {
        let Some(lines) = &mut self.lines else {
            return Ok(None);
        };
        let mut text = Vec::new();
        if lines.read_until(b'\n', &mut text).await? == 0 {
            if self.from.is_none() {
                return Err(Failure::Short);
            }
            // It has run for its time. A server that ends each at once is not asked at once.
            self.lines = None;
            tokio::time::sleep(self.backoff.next().unwrap_or_default()).await;
            return Ok(None);
        }
        let line: Line = serde_json::from_slice(&text)?;
        if line.kind == "ERROR" {
            let status: Status = serde_json::from_str(line.object.get())?;
            if is_gone(&status) {
                self.from = None;
            }
            return Err(Failure::Told(status.message));
        }
        let mut object: Metadata = serde_json::from_str(line.object.get())?;
        object.types = None::<TypeMeta>;
        object.metadata.managed_fields = None;
        self.backoff.reset();
        let listed = self.from.is_some();
        let ends_list = || {
            let annotations = object.metadata.annotations.as_ref();
            annotations.is_some_and(|a| a.contains_key(LISTED))
        };
        let bookmark = line.kind == "BOOKMARK";
        if listed || (bookmark && ends_list()) {
            self.from.clone_from(&object.metadata.resource_version);
        }
        Ok(match (line.kind.as_str(), listed) {
            ("BOOKMARK", false) => self.from.is_some().then_some(Event::InitDone),
            ("BOOKMARK", true) => None,
            ("DELETED", _) => Some(Event::Delete(object)),
            (_, false) => Some(Event::InitApply(object)),
            (_, true) => Some(Event::Apply(object)),
        })
    }
}

/// Whether what is known is too old to go on from.
fn is_gone(status: &Status) -> bool {
    status.code == 410 || status.reason == "Expired"
}
