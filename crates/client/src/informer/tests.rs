//! Informers against an API server that answers watches from a script.

use super::*;
use http::{Request, Response};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::client::Body;
use std::collections::VecDeque;
use std::convert::Infallible;

/// Answers each watch with the next script: lines, then the stream ends, or stays open
/// when it is the last one.
#[derive(Clone, Default)]
struct Scripted {
    scripts: Arc<Mutex<VecDeque<Vec<String>>>>,
    queries: Arc<Mutex<Vec<String>>>,
}

impl Scripted {
    fn new(scripts: Vec<Vec<String>>) -> Self {
        Self {
            scripts: Arc::new(Mutex::new(scripts.into())),
            ..Self::default()
        }
    }

    fn client(&self) -> kube::Client {
        let this = self.clone();
        crate::connect::from_service(tower::service_fn(move |request: Request<Body>| {
            let this = this.clone();
            async move { Ok::<_, Infallible>(this.answer(&request)) }
        }))
    }

    fn answer(&self, request: &Request<Body>) -> Response<StreamBody> {
        self.queries.lock().push(request.uri().to_string());
        let mut scripts = self.scripts.lock();
        let lines = scripts.pop_front().unwrap_or_default();
        let open = scripts.is_empty();
        let frames = futures::stream::iter(lines)
            .map(|line| Ok::<_, Infallible>(http_body::Frame::data(bytes::Bytes::from(line))));
        let end = futures::stream::once(async move {
            if open {
                std::future::pending::<()>().await;
            }
        })
        .filter_map(|()| std::future::ready(None));
        Response::new(StreamBody(frames.chain(end).boxed()))
    }
}

struct StreamBody(
    futures::stream::BoxStream<'static, Result<http_body::Frame<bytes::Bytes>, Infallible>>,
);

impl http_body::Body for StreamBody {
    type Data = bytes::Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, Infallible>>> {
        self.0.poll_next_unpin(cx)
    }
}

/// An event as API servers write it: its type comes first.
fn line(kind: &str, object: &serde_json::Value) -> String {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n")
}

fn event(kind: &str, name: &str, version: u32) -> String {
    let object = serde_json::json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {
            "name": name, "namespace": "default", "uid": name,
            "resourceVersion": version.to_string(),
            "managedFields": [{"manager": "kubectl"}],
        },
        "data": {"version": version.to_string()},
    });
    line(kind, &object)
}

fn listed(version: u32) -> String {
    let object = serde_json::json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {
            "resourceVersion": version.to_string(),
            "annotations": {"k8s.io/initial-events-end": "true"},
        },
    });
    line("BOOKMARK", &object)
}

fn gone() -> String {
    let status = serde_json::json!({"kind": "Status", "status": "Failure", "code": 410,
        "reason": "Expired", "message": "too old resource version"});
    line("ERROR", &status)
}

/// `+name`, `-name` or `name old->new` of a change.
fn shown(change: &Change<ConfigMap>) -> String {
    let version = |o: &Arc<ConfigMap>| o.metadata.resource_version.clone().unwrap();
    match change {
        Change::Resync => "resync".into(),
        Change::Object { key, old, new } => match (old, new) {
            (None, _) => format!("+{key}"),
            (_, None) => format!("-{key}"),
            (Some(old), Some(new)) => format!("{key} {}->{}", version(old), version(new)),
        },
    }
}

async fn take(
    changes: &mut (impl Stream<Item = Change<ConfigMap>> + Unpin),
    n: usize,
) -> Vec<String> {
    changes.take(n).map(|c| shown(&c)).collect().await
}

#[tokio::test(start_paused = true)]
async fn follows_changes_and_keeps_no_managed_fields() {
    let server = Scripted::new(vec![vec![
        event("ADDED", "a", 1),
        event("ADDED", "b", 2),
        listed(2),
        event("MODIFIED", "a", 3),
        event("DELETED", "b", 4),
        event("ADDED", "c", 5),
    ]]);
    let scope = lifecycle::Scope::new();
    let informers = Informers::new(server.client(), &scope);
    let maps = informers.get::<ConfigMap>();
    let mut changes = maps.subscribe();
    assert_eq!(
        take(&mut changes, 4).await,
        ["resync", "default/a 1->3", "-default/b", "+default/c"]
    );
    let names: Vec<_> = maps.keys().iter().map(ToString::to_string).collect();
    assert_eq!(names, ["default/a", "default/c"]);
    let a = maps.get("default", "a").unwrap();
    assert!(a.metadata.managed_fields.is_none());
    assert_eq!(a.data.as_ref().unwrap()["version"], "3");
    assert_eq!((maps.len(), maps.list_namespace("other").len()), (2, 0));
    assert_eq!(server.queries.lock().len(), 1);
    assert!(server.queries.lock()[0].contains("sendInitialEvents=true"));
    scope.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_kind_is_watched_once_but_each_selector_by_itself() {
    let server = Scripted::new(vec![vec![listed(1)], vec![listed(1)]]);
    let scope = lifecycle::Scope::new();
    let informers = Informers::new(server.client(), &scope);
    let (one, two) = (informers.get::<ConfigMap>(), informers.get::<ConfigMap>());
    assert!(Arc::ptr_eq(&one.inner, &two.inner));
    let selected = informers.get_selected::<ConfigMap>(Selected::fields("metadata.name=x"));
    one.synced().await;
    selected.synced().await;
    let mut queries = server.queries.lock().clone();
    queries.retain(|q| q.contains("sendInitialEvents"));
    assert_eq!(queries.len(), 2);
    assert_eq!(
        queries
            .iter()
            .filter(|q| q.contains("fieldSelector=metadata.name%3Dx"))
            .count(),
        1
    );
    scope.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_relisting_tells_only_the_difference() {
    let server = Scripted::new(vec![
        vec![
            event("ADDED", "same", 1),
            event("ADDED", "gone", 2),
            event("ADDED", "changed", 3),
            listed(3),
            gone(),
        ],
        vec![
            event("ADDED", "same", 1),
            event("ADDED", "changed", 7),
            event("ADDED", "new", 8),
            listed(9),
        ],
    ]);
    let scope = lifecycle::Scope::new();
    let maps = Informers::new(server.client(), &scope).get::<ConfigMap>();
    let mut changes = maps.subscribe();
    assert_eq!(
        take(&mut changes, 4).await,
        [
            "resync",
            "-default/gone",
            "default/changed 3->7",
            "+default/new"
        ]
    );
    scope.close().await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_left_out() {
    let odd = serde_json::json!({"metadata": {"name": "odd", "resourceVersion": "2"}, "data": 1});
    let server = Scripted::new(vec![vec![
        event("ADDED", "a", 1),
        line("ADDED", &odd),
        listed(2),
        line("MODIFIED", &odd),
        event("ADDED", "b", 3),
    ]]);
    let scope = lifecycle::Scope::new();
    let maps = Informers::new(server.client(), &scope).get::<ConfigMap>();
    let mut changes = maps.subscribe();
    assert_eq!(take(&mut changes, 2).await, ["resync", "+default/b"]);
    let names = maps.keys().into_iter().map(|key| key.name);
    assert_eq!(names.collect::<Vec<_>>(), ["a", "b"]);
    scope.close().await;
}

#[tokio::test(start_paused = true)]
async fn who_lags_is_told_to_list_again() {
    let maps = Informer::<ConfigMap>::default();
    maps.relist(Objects::default());
    let mut changes = maps.subscribe();
    assert_eq!(take(&mut changes, 1).await, ["resync"]);
    for n in 0..=CHANGES_PENDING_MAX {
        let map = ConfigMap {
            metadata: kube::core::ObjectMeta {
                name: Some(format!("m{n}")),
                ..Default::default()
            },
            ..ConfigMap::default()
        };
        maps.apply(Arc::new(map));
    }
    assert_eq!(take(&mut changes, 1).await, ["resync"]);
    assert_eq!(maps.len(), CHANGES_PENDING_MAX + 1);
    let gone = serde_json::from_str::<Text>(r#"{"metadata": {"name": "m0"}}"#);
    maps.delete(&gone.unwrap());
    assert_eq!(take(&mut changes, 1).await, ["-m0"]);
}

#[test]
fn objects_are_found_by_their_controller() {
    let map = |name: &str, version: u32, owner: Option<&str>| -> ConfigMap {
        serde_json::from_value(serde_json::json!({"metadata": {
            "name": name, "resourceVersion": version.to_string(),
            "ownerReferences": owner.map(|uid| [serde_json::json!({
                "apiVersion": "v1", "kind": "K", "name": "o", "uid": uid, "controller": true,
            })]).into_iter().flatten().collect::<Vec<_>>(),
        }}))
        .unwrap()
    };
    let maps = Informer::<ConfigMap>::default();
    let names = |list: Vec<Arc<ConfigMap>>| {
        let mut names: Vec<_> = list
            .iter()
            .map(|o| o.metadata.name.clone().unwrap())
            .collect();
        names.sort();
        names
    };
    maps.apply(Arc::new(map("a", 1, Some("x"))));
    maps.apply(Arc::new(map("b", 2, Some("x"))));
    maps.apply(Arc::new(map("c", 3, None)));
    assert_eq!(names(maps.owned_by("x")), ["a", "b"]);
    assert_eq!(names(maps.orphans(|_| true)), ["c"]);
    maps.apply(Arc::new(map("a", 4, None)));
    maps.apply(Arc::new(map("c", 5, Some("y"))));
    let gone = serde_json::to_string(&map("b", 9, Some("x"))).unwrap();
    maps.delete(&serde_json::from_str::<Text>(&gone).unwrap());
    assert_eq!(names(maps.owned_by("x")), [""; 0]);
    assert_eq!(names(maps.owned_by("y")), ["c"]);
    assert_eq!(names(maps.orphans(|_| true)), ["a"]);
    assert_eq!(maps.revision(), 9);
}

/// Upstream: client-go's reflector, `TestReflectorWatchList` and `TestReflectorFullListIfExpired`.
#[tokio::test(start_paused = true)]
async fn metadata_goes_on_from_what_is_known_and_lists_again_when_that_is_gone() {
    let scripts = vec![
        // It ends before all is listed: from the beginning.
        vec![event("ADDED", "a", 1)],
        vec![event("ADDED", "a", 1), listed(2), event("MODIFIED", "a", 3)],
        vec![line(
            "BOOKMARK",
            &serde_json::json!({"metadata": {"resourceVersion": "7"}}),
        )],
        vec![event("DELETED", "a", 8), gone()],
        vec!["no event\n".to_owned()],
        vec![listed(9), event("ADDED", "b", 10)],
    ];
    let server = Scripted::new(scripts);
    let resource = ApiResource::erase::<ConfigMap>(&());
    let events = crate::metadata::watch_metadata(server.client(), &resource);
    let told: Vec<String> = events
        .take(11)
        .map(|event| {
            let named = |o: &kube::core::PartialObjectMeta<kube::api::DynamicObject>| {
                assert_eq!(o.metadata.managed_fields, None);
                o.metadata.name.clone().unwrap_or_default()
            };
            match event {
                Event::Init => "init".to_owned(),
                Event::InitApply(o) => format!("listed {}", named(&o)),
                Event::InitDone => "done".to_owned(),
                Event::Apply(o) => format!("+{}", named(&o)),
                Event::Delete(o) => format!("-{}", named(&o)),
            }
        })
        .collect()
        .await;
    let wanted = [
        "init", "listed a", "init", "listed a", "done", "+a", "-a", "init", "init", "done", "+b",
    ];
    assert_eq!(told, wanted);
    let queries = server.queries.lock();
    let from = |query: &String| {
        let from = query.split_once("&resourceVersion=");
        from.map(|(_, from)| from.to_owned())
    };
    let from: Vec<Option<String>> = queries.iter().map(from).collect();
    let some = |revision: &str| Some(revision.to_owned());
    assert_eq!(from, [None, None, some("3"), some("7"), None, None]);
    assert!(
        queries[0].contains("sendInitialEvents=true"),
        "{}",
        queries[0]
    );
}
