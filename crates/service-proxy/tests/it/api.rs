//! A Kubernetes API of two collections that can be watched.

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Request, Response};
use http_body_util::StreamBody;
use hyper::body::Frame;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use tokio::sync::{broadcast, watch};

#[derive(Clone)]
pub(crate) struct FakeApi {
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<(String, Value)>,
    /// Until it is true nobody is answered.
    reachable: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<(String, String), Value>,
}

impl Default for FakeApi {
    fn default() -> Self {
        Self {
            state: Arc::default(),
            events: broadcast::Sender::new(10_000),
            reachable: watch::Sender::new(true),
        }
    }
}

impl FakeApi {
    pub(crate) fn client(&self) -> client::kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<client::kube::client::Body>| {
            let api = api.clone();
            async move {
                let mut reachable = api.reachable.subscribe();
                reachable
                    .wait_for(|reachable| *reachable)
                    .await
                    .expect("api");
                Ok::<_, Infallible>(api.watch(&request))
            }
        });
        client::kube::Client::new(service, "default")
    }

    pub(crate) fn set_reachable(&self, reachable: bool) {
        self.reachable.send_replace(reachable);
    }

    /// Makes an object, or replaces it.
    pub(crate) fn put(&self, collection: &str, mut object: Value) {
        let mut state = self.state.lock();
        state.version += 1;
        object["metadata"]["resourceVersion"] = json!(state.version.to_string());
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let key = (collection.to_owned(), name.to_owned());
        let old = state.objects.insert(key, object.clone());
        let kind = if old.is_some() { "MODIFIED" } else { "ADDED" };
        self.tell(collection, kind, object);
    }

    /// Removes an object.
    pub(crate) fn remove(&self, collection: &str, name: &str) {
        let mut state = self.state.lock();
        state.version += 1;
        let key = (collection.to_owned(), name.to_owned());
        if let Some(mut object) = state.objects.remove(&key) {
            object["metadata"]["resourceVersion"] = json!(state.version.to_string());
            self.tell(collection, "DELETED", object);
        }
    }

    fn tell(&self, collection: &str, kind: &str, object: Value) {
        let event = json!({"type": kind, "object": object});
        // Nobody may be watching yet.
        let _ = self.events.send((collection.to_owned(), event));
    }

    fn watch(
        &self,
        request: &Request<client::kube::client::Body>,
    ) -> Response<StreamBody<impl futures::Stream<Item = Result<Frame<Bytes>, Infallible>> + use<>>>
    {
        let query = request.uri().query().unwrap_or_default();
        assert!(query.contains("sendInitialEvents=true"), "{query}");
        let collection = request.uri().path().rsplit('/').next().unwrap_or_default();
        let collection = collection.to_owned();
        let state = self.state.lock();
        let mut first: Vec<Value> = state
            .objects
            .iter()
            .filter(|((of, _), _)| *of == collection)
            .map(|(_, object)| json!({"type": "ADDED", "object": object}))
            .collect();
        let (version, kind) = match collection.as_str() {
            "services" => ("v1", "Service"),
            _ => ("discovery.k8s.io/v1", "EndpointSlice"),
        };
        first.push(json!({"type": "BOOKMARK", "object": {
            "apiVersion": version, "kind": kind, "spec": {}, "addressType": "", "endpoints": [],
            "metadata": {"resourceVersion": state.version.to_string(),
                "annotations": {"k8s.io/initial-events-end": "true"}}}}));
        let events = self.events.subscribe();
        drop(state);
        let rest = futures::stream::unfold((events, collection), |(mut events, of)| async move {
            loop {
                let (collection, event) = events.recv().await.ok()?;
                if collection == of {
                    return Some((event, (events, of)));
                }
            }
        });
        let body = futures::stream::iter(first).chain(rest).map(|event| {
            // The type comes first, as API servers write it.
            let (kind, object) = (&event["type"], &event["object"]);
            let line = format!("{{\"type\":{kind},\"object\":{object}}}\n");
            Ok(Frame::data(Bytes::from(line)))
        });
        Response::new(StreamBody::new(body))
    }
}
