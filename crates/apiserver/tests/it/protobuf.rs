//! Answers in protobuf: what is told in it is what is told in JSON. Behaviour from the
//! documentation "Kubernetes API Concepts" (alternate encodings, protobuf encoding idiosyncrasies)
//! and from `endpoints/handlers/{get,watch,rest}.go`, `negotiation` and `runtime/serializer/protobuf`
//! of upstream's apiserver and apimachinery.

use super::crds::{crontabs, define};
use super::kubectl::Kubectl;
use super::{CONFIG_MAPS, DEPLOYMENTS, PODS, config_map, default_account, deployment, pod};
use anyhow::{Context as _, Result};
use apimachinery::GroupVersion;
use apimachinery::protobuf::{self, Envelope};
use apimachinery::schema::Schema;
use serde_json::{Value, json};
use testkit::{Answer, TestApi};

const PROTO: &str = "application/vnd.kubernetes.protobuf";
/// What Go clients of built-in kinds say.
const BOTH: &str = "application/vnd.kubernetes.protobuf,application/json";
/// What Go's metadata client says.
const PARTIAL: &str = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";
const PARTIAL_LIST: &str = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";

/// An object in its envelope.
fn opened(bytes: &[u8]) -> Result<Value> {
    let envelope = Envelope::parse(bytes)?;
    let kind = GroupVersion::parse(envelope.api_version)
        .context("apiVersion")?
        .kind(envelope.kind);
    let ty = Schema::builtin().kind(&kind).context("a kind")?;
    Ok(protobuf::decode(Schema::builtin(), ty, bytes)?)
}

async fn send(
    api: &TestApi,
    method: &str,
    path: &str,
    accept: &str,
    body: Option<&Value>,
) -> Result<Answer> {
    let media = match method {
        "PATCH" => "application/merge-patch+json",
        _ => "application/json",
    };
    let headers = [("accept", accept), ("content-type", media)];
    let body = body.map(|b| b.to_string().into_bytes());
    api.send(method, path, &headers, body.unwrap_or_default())
        .await
}

/// An answer that must be in protobuf.
async fn told(
    api: &TestApi,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<(u16, Value)> {
    let answer = send(api, method, path, BOTH, body).await?;
    assert_eq!(answer.headers["content-type"], PROTO, "{}", answer.text);
    Ok((answer.code, opened(&answer.body)?))
}

/// A value without its zeros, which protobuf has no difference for where Go has no pointer.
fn bare(value: &Value) -> Value {
    let zero = |v: &Value| {
        matches!(v, Value::Null)
            || [json!(0), json!(0.0), json!(""), json!(false)].contains(v)
            || [json!([]), json!({})].contains(v)
    };
    match value {
        Value::Array(items) => items.iter().map(bare).collect(),
        Value::Object(fields) => {
            let kept = fields.iter().map(|(k, v)| (k.clone(), bare(v)));
            Value::Object(kept.filter(|(_, v)| !zero(v)).collect())
        }
        other => other.clone(),
    }
}

#[tokio::test]
async fn every_verb_answers() -> Result<()> {
    let api = TestApi::start().await?;
    let path = format!("{DEPLOYMENTS}/d");
    let shown = async || api.call("GET", &path, None).await.map(|a| a.json);
    let mut wanted = deployment("d");
    wanted["spec"]["replicas"] = 0.into();
    let made = told(&api, "POST", DEPLOYMENTS, Some(&wanted)).await?;
    assert_eq!(made.0, 201);
    assert_eq!(bare(&made.1), bare(&shown().await?));
    // A pointer's zero is no absence.
    assert_eq!(made.1["spec"]["replicas"], 0);
    assert_eq!(
        made.1["metadata"]["managedFields"],
        shown().await?["metadata"]["managedFields"]
    );
    let got = told(&api, "GET", &path, None).await?;
    assert_eq!(got, (200, made.1.clone()));
    let mut next = made.1;
    next["spec"]["template"]["spec"]["volumes"] =
        json!([{"name": "v", "configMap": {"name": "c", "defaultMode": 256}}]);
    let put = told(&api, "PUT", &path, Some(&next)).await?;
    assert_eq!(
        put.1["spec"]["template"]["spec"]["volumes"],
        next["spec"]["template"]["spec"]["volumes"]
    );
    let patch =
        json!({"spec": {"strategy": {"rollingUpdate": {"maxSurge": "50%", "maxUnavailable": 0}}}});
    let patched = told(&api, "PATCH", &path, Some(&patch)).await?;
    assert_eq!(
        patched.1["spec"]["strategy"]["rollingUpdate"],
        json!({"maxSurge": "50%", "maxUnavailable": 0})
    );
    let list = told(&api, "GET", DEPLOYMENTS, None).await?.1;
    assert_eq!(list["kind"], "DeploymentList");
    assert!(list["metadata"]["resourceVersion"].is_string());
    let text = api.call("GET", DEPLOYMENTS, None).await?.json;
    assert_eq!(bare(&list["items"]), bare(&text["items"]));
    let page = format!("{DEPLOYMENTS}?limit=1");
    told(&api, "POST", DEPLOYMENTS, Some(&deployment("e"))).await?;
    let page = told(&api, "GET", &page, None).await?.1;
    assert!(page["metadata"]["continue"].is_string());
    assert_eq!(page["metadata"]["remainingItemCount"], 1);
    let gone = told(&api, "DELETE", &path, None).await?;
    assert_eq!((gone.0, &gone.1["status"]), (200, &json!("Success")));
    assert_eq!(gone.1["details"]["name"], "d");
    let all = told(&api, "DELETE", DEPLOYMENTS, None).await?;
    assert_eq!((all.0, &all.1["kind"]), (200, &json!("DeploymentList")));
    api.close().await
}

/// Errors are told as the client wants them, those of the layers before the resource too.
#[tokio::test]
async fn errors_are_told_in_it() -> Result<()> {
    let api = TestApi::start().await?;
    let path = format!("{CONFIG_MAPS}/none");
    let (code, status) = told(&api, "GET", &path, None).await?;
    assert_eq!(code, 404);
    assert_eq!(status, api.call("GET", &path, None).await?.json);
    let accept = [("accept", PROTO)];
    let refused = api
        .send_as(("nobody", &[]), "GET", &path, &accept, Vec::new())
        .await?;
    assert_eq!(refused.code, 403);
    assert_eq!(opened(&refused.body)?["reason"], "Forbidden");
    let wrong = json!({"metadata": {"name": "A"}});
    let (code, status) = told(&api, "POST", CONFIG_MAPS, Some(&wrong)).await?;
    assert_eq!((code, &status["reason"]), (422, &json!("Invalid")));
    assert_eq!(status["details"]["causes"][0]["field"], "metadata.name");
    // Where only other shapes are accepted, the error is JSON.
    let partial = send(&api, "GET", &path, &PARTIAL[..PARTIAL.len() - 17], None).await?;
    assert_eq!(
        (partial.code, &partial.json["reason"]),
        (404, &json!("NotFound"))
    );
    api.close().await
}

/// A kind's list in protobuf and in JSON, neither with metadata, and as something else that is
/// accepted, when nothing was written between them: Leases are renewed, and the first statuses
/// come while the test runs.
async fn at_rest(
    api: &TestApi,
    path: &str,
    partial: Option<&str>,
) -> Result<(Value, Value, Option<Value>)> {
    let text = async || -> Result<Value> {
        let mut list = api.call("GET", path, None).await?.json;
        list["metadata"] = Value::Null;
        Ok(list)
    };
    let mut before = text().await?;
    for _ in 0..100 {
        let (code, mut list) = told(api, "GET", path, None).await?;
        assert_eq!(code, 200, "{path}: {list}");
        list["metadata"] = Value::Null;
        let metadata = match partial {
            Some(accept) => {
                let partial = send(api, "GET", path, accept, None).await?;
                Some(opened(&partial.body)?)
            }
            None => None,
        };
        let after = text().await?;
        if before == after {
            return Ok((list, after, metadata));
        }
        before = after;
    }
    anyhow::bail!("{path} never rests")
}

/// Every kind's list, with all that the server makes itself (roles, flow schemas…).
#[tokio::test]
async fn every_kind_lists() -> Result<()> {
    let api = TestApi::start().await?;
    default_account(&api).await?;
    api.call("POST", PODS, Some(&pod("p", None))).await?;
    api.call("POST", DEPLOYMENTS, Some(&deployment("d")))
        .await?;
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    api.call("POST", crds, Some(&crontabs())).await?;
    let mut with_items = 0;
    for (row, path) in super::listed() {
        if row.group == "metrics.k8s.io" {
            let answer = send(&api, "GET", &path, PROTO, None).await?;
            assert_eq!((answer.code, &answer.body[..4]), (200, &b"k8s\0"[..]));
            continue;
        }
        let partial = row.stored.then_some(PARTIAL_LIST);
        let (list, text, partial) = at_rest(&api, &path, partial).await?;
        assert_eq!(bare(&list), bare(&text), "{path}");
        with_items += usize::from(list["items"].as_array().is_some_and(|i| !i.is_empty()));
        // Objects' metadata, as garbage collection and quota read it of every kind.
        let Some(partial) = partial else { continue };
        assert_eq!(partial["kind"], "PartialObjectMetadataList");
        let metadata = |list: &Value| -> Vec<Value> {
            let items = list["items"].as_array().into_iter().flatten();
            items.map(|i| bare(&i["metadata"])).collect()
        };
        assert_eq!(metadata(&partial), metadata(&text), "{path}");
    }
    assert!(with_items > 8, "{with_items}");
    api.close().await
}

/// Type and object of an event.
fn event(frame: &[u8]) -> Result<(String, Value)> {
    fn field<'a>(bytes: &mut &'a [u8], tag: u8) -> Result<&'a [u8]> {
        anyhow::ensure!(bytes.split_off_first() == Some(&tag), "tag {tag}");
        let (mut len, mut shift) = (0usize, 0);
        loop {
            let b = *bytes.split_off_first().context("length")?;
            len |= usize::from(b & 0x7f) << shift;
            shift += 7;
            if b < 0x80 {
                break;
            }
        }
        bytes.split_off(..len).context("content")
    }
    let mut rest = frame;
    let kind = std::str::from_utf8(field(&mut rest, 0x0a)?)?.to_owned();
    let mut extension = field(&mut rest, 0x12)?;
    let raw = field(&mut extension, 0x0a)?;
    anyhow::ensure!(rest.is_empty() && extension.is_empty(), "nothing else");
    Ok((kind, opened(raw)?))
}

async fn brief(watch: &mut testkit::Watch) -> Result<String> {
    let (kind, object) = event(&watch.next_frame().await?.context("a frame")?)?;
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    Ok(format!(
        "{kind} {} {name}",
        object["kind"].as_str().unwrap_or_default()
    ))
}

#[tokio::test]
async fn events_come_in_frames() -> Result<()> {
    let api = TestApi::start().await?;
    api.call("POST", CONFIG_MAPS, Some(&config_map("a", "x")))
        .await?;
    let start =
        "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let path = format!("{CONFIG_MAPS}?{start}");
    let chosen = format!("{CONFIG_MAPS}?watch=1&labelSelector=l%3Dx");
    // Also as a list of types, and by the name of the stream.
    let streamed = format!("{PROTO};stream=watch");
    let mut first = api.watch(&path, &[("accept", BOTH)]).await?;
    let mut second = api.watch(&path, &[("accept", &streamed)]).await?;
    let mut metadata = api.watch(&path, &[("accept", PARTIAL)]).await?;
    let mut some = api.watch(&chosen, &[("accept", BOTH)]).await?;
    let mut text = api.watch(&path, &[]).await?;
    for watch in [&first, &second, &metadata, &some] {
        let media = &watch.headers["content-type"];
        assert_eq!(media, "application/vnd.kubernetes.protobuf;stream=watch");
    }
    for watch in [&mut first, &mut second] {
        assert_eq!(brief(watch).await?, "ADDED ConfigMap a");
        let (kind, mark) = event(&watch.next_frame().await?.context("bookmark")?)?;
        assert_eq!(
            (kind.as_str(), &mark["kind"]),
            ("BOOKMARK", &json!("ConfigMap"))
        );
        assert_eq!(
            mark["metadata"]["annotations"],
            json!({"k8s.io/initial-events-end": "true"})
        );
    }
    assert_eq!(brief(&mut some).await?, "ADDED ConfigMap a");
    assert_eq!(brief(&mut metadata).await?, "ADDED PartialObjectMetadata a");
    assert_eq!(
        brief(&mut metadata).await?,
        "BOOKMARK PartialObjectMetadata "
    );
    assert_eq!(text.brief().await?, "ADDED a");
    assert_eq!(text.brief().await?, "BOOKMARK ");
    // Large enough for lengths of several bytes.
    let mut large = config_map("b", "x");
    large["data"]["k"] = "v".repeat(200_000).into();
    api.call("POST", CONFIG_MAPS, Some(&large)).await?;
    let other = json!({"metadata": {"labels": {"l": "y"}}});
    send(
        &api,
        "PATCH",
        &format!("{CONFIG_MAPS}/b"),
        "*/*",
        Some(&other),
    )
    .await?;
    api.call("DELETE", &format!("{CONFIG_MAPS}/b"), None)
        .await?;
    for want in ["ADDED", "MODIFIED", "DELETED"] {
        let told = text.next().await?.context("event")?;
        assert_eq!(told["type"], want);
        for watch in [&mut first, &mut second] {
            let (kind, object) = event(&watch.next_frame().await?.context("event")?)?;
            assert_eq!((kind.as_str(), &object), (want, &told["object"]));
        }
        let (kind, object) = event(&metadata.next_frame().await?.context("event")?)?;
        assert_eq!((kind.as_str(), object.get("data")), (want, None));
        assert_eq!(object["metadata"], told["object"]["metadata"]);
    }
    // What leaves the selection is gone for this one, with its last state inside.
    assert_eq!(brief(&mut some).await?, "ADDED ConfigMap b");
    let (kind, object) = event(&some.next_frame().await?.context("event")?)?;
    assert_eq!(
        (kind.as_str(), &object["metadata"]["labels"]["l"]),
        ("DELETED", &json!("x"))
    );
    api.close().await
}

/// Custom resources have no messages; their metadata has.
#[tokio::test]
async fn custom_resources_are_json() -> Result<()> {
    let api = TestApi::start().await?;
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let tabs = "/apis/stable.example.com/v1/namespaces/default/crontabs";
    let made = define(&api, &crontabs()).await?;
    let path = format!(
        "{crds}/{}",
        made["metadata"]["name"].as_str().context("name")?
    );
    let definition = told(&api, "GET", &path, None).await?.1;
    assert_eq!(bare(&definition), bare(&made));
    let tab = json!({"apiVersion": "stable.example.com/v1", "kind": "CronTab",
        "metadata": {"name": "t"}, "spec": {"cronSpec": "* * * * *", "image": "i"}});
    let refused = send(&api, "POST", tabs, PROTO, Some(&tab)).await?;
    assert_eq!(refused.code, 406, "{}", refused.text);
    // It was refused before anything was done.
    let none = api.call("GET", tabs, None).await?.json;
    assert_eq!(none["items"], json!([]));
    let made = send(&api, "POST", tabs, BOTH, Some(&tab)).await?;
    assert_eq!(
        (made.code, &made.json["kind"]),
        (201, &json!("CronTab")),
        "{}",
        made.text
    );
    let list = send(&api, "GET", tabs, PARTIAL_LIST, None).await?;
    let list = opened(&list.body)?;
    assert_eq!(list["items"][0]["metadata"], made.json["metadata"]);
    let one = send(&api, "GET", &format!("{tabs}/t"), PARTIAL, None).await?;
    assert_eq!(opened(&one.body)?["metadata"], made.json["metadata"]);
    let mut watch = api
        .watch(&format!("{tabs}?watch=1"), &[("accept", PARTIAL)])
        .await?;
    assert_eq!(brief(&mut watch).await?, "ADDED PartialObjectMetadata t");
    let (code, status) = told(&api, "GET", &format!("{tabs}/none"), None).await?;
    assert_eq!((code, &status["reason"]), (404, &json!("NotFound")));
    api.close().await
}

/// Tables have no messages: the next that is accepted is answered with.
#[tokio::test]
async fn tables_are_json() -> Result<()> {
    let api = TestApi::start().await?;
    let table = "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io";
    let only = send(&api, "GET", CONFIG_MAPS, table, None).await?;
    assert_eq!(only.code, 406);
    let either = format!("{table},application/json;as=Table;v=v1;g=meta.k8s.io");
    let list = send(&api, "GET", CONFIG_MAPS, &either, None).await?;
    assert_eq!(list.json["kind"], "Table");
    api.close().await
}

#[tokio::test]
async fn subresources_and_reviews_answer() -> Result<()> {
    let api = TestApi::start().await?;
    default_account(&api).await?;
    api.call("POST", DEPLOYMENTS, Some(&deployment("d")))
        .await?;
    let path = format!("{DEPLOYMENTS}/d/scale");
    let scale = told(&api, "GET", &path, None).await?.1;
    assert_eq!(
        bare(&scale),
        bare(&api.call("GET", &path, None).await?.json)
    );
    let three = json!({"spec": {"replicas": 3}});
    let scaled = told(&api, "PATCH", &path, Some(&three)).await?.1;
    assert_eq!(scaled["spec"]["replicas"], 3);
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "spec": {"user": "u", "extra": {"k": ["a", "b"]},
            "resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let reviews = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let (code, answered) = told(&api, "POST", reviews, Some(&review)).await?;
    assert_eq!((code, &answered["status"]["allowed"]), (201, &json!(false)));
    assert_eq!(answered["spec"], review["spec"]);
    let token = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"audiences": ["a"], "expirationSeconds": 3600}});
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let (code, token) = told(&api, "POST", path, Some(&token)).await?;
    assert_eq!(code, 201);
    assert!(
        token["status"]["token"]
            .as_str()
            .is_some_and(|t| t.len() > 100)
    );
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": token["status"]["token"], "audiences": ["a"]}});
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let review = told(&api, "POST", reviews, Some(&review)).await?.1;
    assert_eq!(
        review["status"]["user"]["username"],
        "system:serviceaccount:default:default"
    );
    api.call("POST", PODS, Some(&pod("p", None))).await?;
    let binding = json!({"apiVersion": "v1", "kind": "Binding",
        "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    let path = format!("{PODS}/p/binding");
    let bound = told(&api, "POST", &path, Some(&binding)).await?;
    assert_eq!((bound.0, &bound.1["status"]), (201, &json!("Success")));
    let eviction =
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    let path = format!("{PODS}/p/eviction");
    let evicted = told(&api, "POST", &path, Some(&eviction)).await?;
    assert_eq!((evicted.0, &evicted.1["status"]), (201, &json!("Success")));
    api.close().await
}

#[tokio::test]
async fn discovery_is_told_in_it() -> Result<()> {
    let api = TestApi::start().await?;
    for path in ["/api", "/apis", "/api/v1", "/apis/apps", "/apis/apps/v1"] {
        let (code, found) = told(&api, "GET", path, None).await?;
        assert_eq!(code, 200, "{path}");
        let mut text = api.call("GET", path, None).await?.json;
        text["apiVersion"] = "v1".into();
        assert_eq!(bare(&found), bare(&text), "{path}");
    }
    let shape = "g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    for path in ["/api", "/apis"] {
        let found = send(&api, "GET", path, &format!("{PROTO};{shape}"), None).await?;
        assert_eq!(
            found.headers["content-type"].to_str()?,
            format!("{PROTO};{shape}")
        );
        let text = send(
            &api,
            "GET",
            path,
            &format!("application/json;{shape}"),
            None,
        )
        .await?;
        assert_eq!(bare(&opened(&found.body)?), bare(&text.json), "{path}");
        assert_eq!(found.headers["etag"], text.headers["etag"]);
    }
    api.close().await
}

/// The decoder that counts: kubectl's typed clients are Go's own, and print what they have read
/// of the protobuf that `create` is answered with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_reads_it() -> Result<()> {
    let api = TestApi::start().await?;
    let k = Kubectl::of(&api)?;
    let in_default = |group: &str, plural: &str, name: &str| match group {
        "v1" => format!("/api/v1/namespaces/default/{plural}/{name}"),
        _ => format!("/apis/{group}/namespaces/default/{plural}/{name}"),
    };
    for (args, path) in [
        (
            "deployment d --image=i --replicas=2 --port=80",
            in_default("apps/v1", "deployments", "d"),
        ),
        (
            "configmap c --from-literal=a=b",
            in_default("v1", "configmaps", "c"),
        ),
        (
            "secret generic s --from-literal=a=b",
            in_default("v1", "secrets", "s"),
        ),
        ("serviceaccount a", in_default("v1", "serviceaccounts", "a")),
        (
            "quota q --hard=cpu=1500m,memory=1Gi",
            in_default("v1", "resourcequotas", "q"),
        ),
        (
            "service nodeport n --tcp=80:web",
            in_default("v1", "services", "n"),
        ),
        ("job j --image=i", in_default("batch/v1", "jobs", "j")),
        (
            "cronjob cj --image=i --schedule=*/5_*_*_*_*",
            in_default("batch/v1", "cronjobs", "cj"),
        ),
        (
            "ingress i --rule=a.example/=svc:80",
            in_default("networking.k8s.io/v1", "ingresses", "i"),
        ),
        (
            "pdb p --min-available=50% --selector=a=b",
            in_default("policy/v1", "poddisruptionbudgets", "p"),
        ),
        (
            "role r --verb=get --resource=pods",
            in_default("rbac.authorization.k8s.io/v1", "roles", "r"),
        ),
        (
            "rolebinding b --role=r --user=u",
            in_default("rbac.authorization.k8s.io/v1", "rolebindings", "b"),
        ),
        (
            "priorityclass pc --value=-5",
            "/apis/scheduling.k8s.io/v1/priorityclasses/pc".to_owned(),
        ),
        ("namespace ns", "/api/v1/namespaces/ns".to_owned()),
    ] {
        let args: Vec<String> = args.split(' ').map(|a| a.replace('_', " ")).collect();
        let mut all = vec!["create"];
        all.extend(args.iter().map(String::as_str));
        all.extend(["-o", "json", "-v=9"]);
        let told = k.run_with(true, &all, "").await?;
        let mut values = serde_json::Deserializer::from_str(&told).into_iter::<Value>();
        let printed = values.next().context("JSON")??;
        // It comes from the answer, which was in protobuf.
        assert!(printed["metadata"]["uid"].is_string(), "{told}");
        assert!(
            told.contains("\tContent-Type: application/vnd.kubernetes.protobuf\n"),
            "{told}"
        );
        let mut stored = api.call("GET", &path, None).await?.json;
        // kubectl prints no managed fields.
        if let Some(metadata) = stored["metadata"].as_object_mut() {
            metadata.remove("managedFields");
        }
        assert_eq!(bare(&printed), bare(&stored));
    }
    api.close().await
}
