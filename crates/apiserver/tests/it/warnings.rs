//! Upstream: `pkg/api/pod/warnings.go`, the strategies of `pkg/registry`, and
//! `test/e2e/network/endpointslice.go` ("pointing to API Server").

use super::{CONFIG_MAPS, DEPLOYMENTS, PODS, default_account};
use anyhow::Result;
use serde_json::{Value, json};
use testkit::{Answer, TestApi};

/// What a client is warned of.
fn warned(answer: &Answer) -> Vec<&str> {
    let all = answer.headers.get_all("warning").into_iter();
    all.filter_map(|value| value.to_str().ok()).collect()
}

fn spec(memory: &str) -> Value {
    json!({"containers": [{"name": "a", "image": "x",
        "resources": {"limits": {"memory": memory}}}]})
}

#[tokio::test(flavor = "multi_thread")]
async fn what_surprises_is_warned_of() -> Result<()> {
    let api = TestApi::start().await?;
    default_account(&api).await?;
    let pod = |name: &str, memory: &str| json!({"metadata": {"name": name}, "spec": spec(memory)});
    let fine = api.call("POST", PODS, Some(&pod("fine", "1Mi"))).await?;
    assert_eq!((fine.code, warned(&fine)), (201, vec![]));
    let odd = api.call("POST", PODS, Some(&pod("odd.pod", "1.5"))).await?;
    assert_eq!(odd.code, 201, "{}", odd.text);
    let told = [
        r#"299 - "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [must not contain dots]""#,
        r#"299 - "spec.containers[0].resources.limits[memory]: fractional byte value \"1500m\" is invalid, must be an integer""#,
        r#"299 - "spec.containers[0].resources.requests[memory]: fractional byte value \"1500m\" is invalid, must be an integer""#,
    ];
    assert_eq!(warned(&odd), told);
    // An invalid object is refused and nothing else.
    let bad = pod("Bad.pod", "1.5");
    let refused = api.call("POST", PODS, Some(&bad)).await?;
    assert_eq!((refused.code, warned(&refused)), (422, vec![]));
    let path = format!("{PODS}/odd.pod");
    let again = api.call("PUT", &path, Some(&odd.json)).await?;
    assert_eq!((again.code, warned(&again)), (200, vec![]));

    let labels = json!({"app": "d"});
    let mut deployment = json!({"metadata": {"name": "d"}, "spec": {
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": spec("1.5")},
    }});
    let path = format!("{DEPLOYMENTS}/d");
    let made = api.call("POST", DEPLOYMENTS, Some(&deployment)).await?;
    assert_eq!(warned(&made).len(), 1, "{:?}", warned(&made));
    deployment["metadata"]["labels"] = json!({"other": "1"});
    let labelled = api.call("PUT", &path, Some(&deployment)).await?;
    assert_eq!((labelled.code, warned(&labelled)), (200, vec![]));
    deployment["spec"]["replicas"] = 2.into();
    let scaled = api.call("PUT", &path, Some(&deployment)).await?;
    assert!(warned(&scaled)[0].contains("spec.template.spec.containers[0].resources.limits"));

    let endpoints = api.call("GET", "/api/v1/endpoints", None).await?;
    let told =
        ["299 - \"v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice\""];
    assert_eq!(warned(&endpoints), told);
    let maps = api.call("GET", CONFIG_MAPS, None).await?;
    assert_eq!(warned(&maps), Vec::<&str>::new());
    api.close().await
}

/// Upstream: `pkg/api/pod/warnings.go`, `ValidatePodUpdate`, and `CheckGracefulDelete` of pods.
#[tokio::test]
async fn a_negative_time_to_end_is_taken_for_one() -> Result<()> {
    let api = TestApi::start().await?;
    default_account(&api).await?;
    let mut pod = super::pod("a", Some("n"));
    pod["spec"]["terminationGracePeriodSeconds"] = json!(-5);
    let mut made = api.call("POST", PODS, Some(&pod)).await?;
    assert_eq!(made.code, 201, "{}", made.text);
    let told = "spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1";
    assert_eq!(warned(&made), [format!("299 - \"{told}\"")]);
    let path = format!("{PODS}/a");
    for (seconds, code) in [(7, 422), (1, 200), (2, 422)] {
        made.json["spec"]["terminationGracePeriodSeconds"] = json!(seconds);
        made.json["metadata"]["resourceVersion"] = json!("");
        let changed = api.call("PUT", &path, Some(&made.json)).await?;
        assert_eq!(changed.code, code, "{seconds}: {}", changed.text);
    }
    pod["metadata"]["name"] = json!("b");
    assert_eq!(api.call("POST", PODS, Some(&pod)).await?.code, 201);
    let ends = api.call("DELETE", &format!("{PODS}/b"), None).await?;
    assert_eq!(
        ends.json["metadata"]["deletionGracePeriodSeconds"], 1,
        "{}",
        ends.text
    );
    api.close().await
}
