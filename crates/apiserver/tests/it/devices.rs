//! Devices: classes, claims, templates, slices and rules of taints; and volumes as such.

use anyhow::Result;
use serde_json::{Value, json};
use testkit::TestApi;

const GROUP: &str = "/apis/resource.k8s.io/v1";

fn fields(answer: &testkit::Answer) -> Vec<&str> {
    let causes = answer.json["details"]["causes"].as_array();
    let fields = causes.into_iter().flatten().map(|c| &c["field"]);
    fields.filter_map(Value::as_str).collect()
}

/// Upstream: `pkg/apis/resource/validation/validation_resourceclaim_test.go`.
#[tokio::test]
async fn a_claim_is_asked_for_once_and_given_once() -> Result<()> {
    let api = TestApi::start().await?;
    let claims = format!("{GROUP}/namespaces/default/resourceclaims");
    let mut claim = json!({"metadata": {"name": "a"}, "spec": {"devices": {"requests": [
        {"name": "gpu", "exactly": {"deviceClassName": "gpu", "tolerations": [{"key": "k"}],
            "selectors": [{"cel": {"expression": "device.driver == 1"}}]}},
    ]}}});
    let wrong = api.call("POST", &claims, Some(&claim)).await?;
    assert_eq!(wrong.code, 422, "{}", wrong.text);
    assert_eq!(
        fields(&wrong),
        ["spec.devices.requests[0].exactly.selectors[0].cel.expression"]
    );
    let exactly = &mut claim["spec"]["devices"]["requests"][0]["exactly"];
    exactly["selectors"] = json!([{"cel": {"expression": "device.driver == 'x.y'"}}]);
    let mut made = api.call("POST", &claims, Some(&claim)).await?;
    assert_eq!(made.code, 201, "{}", made.text);
    let exactly = &made.json["spec"]["devices"]["requests"][0]["exactly"];
    assert_eq!(
        (
            &exactly["allocationMode"],
            &exactly["count"],
            &exactly["tolerations"][0]["operator"]
        ),
        (&json!("ExactCount"), &json!(1), &json!("Equal"))
    );

    let one = format!("{claims}/a");
    let mut other = made.json.clone();
    other["spec"]["devices"]["requests"][0]["exactly"]["count"] = json!(2);
    let told = api.call("PUT", &one, Some(&other)).await?;
    assert_eq!(
        (told.code, &fields(&told)[..]),
        (422, &["spec"][..]),
        "{}",
        told.text
    );

    let status = format!("{one}/status");
    made.json["status"] = json!({"reservedFor": [{"resource": "pods", "name": "p", "uid": "1"}]});
    let told = api.call("PUT", &status, Some(&made.json)).await?;
    assert_eq!(
        (told.code, &fields(&told)[..]),
        (422, &["status.reservedFor"][..]),
        "{}",
        told.text
    );
    made.json["status"]["allocation"] = json!({"devices": {"results": [
        {"request": "gpu", "driver": "x.y", "pool": "p", "device": "d"},
    ]}});
    let mut given = api.call("PUT", &status, Some(&made.json)).await?;
    assert_eq!(given.code, 200, "{}", given.text);
    given.json["status"]["allocation"]["devices"]["results"][0]["device"] = json!("e");
    let told = api.call("PUT", &status, Some(&given.json)).await?;
    assert_eq!(
        (told.code, &fields(&told)[..]),
        (422, &["status.allocation"][..]),
        "{}",
        told.text
    );

    let templates = format!("{GROUP}/namespaces/default/resourceclaimtemplates");
    let template = json!({"metadata": {"name": "t"}, "spec": {"spec": {"devices": {"requests": [{"name": "A"}]}}}});
    let told = api.call("POST", &templates, Some(&template)).await?;
    assert_eq!(
        fields(&told),
        [
            "spec.spec.devices.requests[0].name",
            "spec.spec.devices.requests[0]"
        ],
        "{}",
        told.text
    );
    api.close().await
}

/// Upstream: `pkg/apis/resource/validation/validation_resourceslice_test.go` and those beside it.
#[tokio::test]
async fn what_there_is_is_told_by_slices_classes_and_rules() -> Result<()> {
    let api = TestApi::start().await?;
    let slices = format!("{GROUP}/resourceslices");
    let mut slice = json!({"metadata": {"name": "s"}, "spec": {"driver": "x.y",
        "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1},
        "devices": [{"name": "d", "taints": [{"key": "k", "effect": "NoSchedule"}]}]}});
    let told = api.call("POST", &slices, Some(&slice)).await?;
    assert_eq!(
        (told.code, &fields(&told)[..]),
        (422, &["spec"][..]),
        "{}",
        told.text
    );
    slice["spec"]["allNodes"] = json!(true);
    let made = api.call("POST", &slices, Some(&slice)).await?;
    assert_eq!(made.code, 201, "{}", made.text);
    let since = &made.json["spec"]["devices"][0]["taints"][0]["timeAdded"];
    assert!(since.is_string(), "{}", made.text);
    let mut other = made.json.clone();
    other["spec"]["driver"] = json!("x.z");
    let told = api
        .call("PUT", &format!("{slices}/s"), Some(&other))
        .await?;
    assert_eq!(
        (told.code, &fields(&told)[..]),
        (422, &["spec.driver"][..]),
        "{}",
        told.text
    );

    let class = json!({"metadata": {"name": "c"}, "spec": {"selectors": [{}], "extendedResourceName": "gpu"}});
    let told = api
        .call("POST", &format!("{GROUP}/deviceclasses"), Some(&class))
        .await?;
    assert_eq!(
        fields(&told),
        ["spec.selectors[0].cel", "spec.extendedResourceName"],
        "{}",
        told.text
    );

    let rules = format!("{GROUP}/devicetaintrules");
    let rule =
        json!({"metadata": {"name": "r"}, "spec": {"taint": {"key": "k", "effect": "NoExecute"}}});
    let mut made = api.call("POST", &rules, Some(&rule)).await?;
    assert_eq!(made.code, 201, "{}", made.text);
    made.json["status"] = json!({"conditions": [{"type": "a b", "status": "True", "reason": "R", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
    let told = api
        .call("PUT", &format!("{rules}/r/status"), Some(&made.json))
        .await?;
    assert_eq!(
        fields(&told),
        ["status.conditions[0].type"],
        "{}",
        told.text
    );
    api.close().await
}

/// Upstream: `ValidateVolumeDevices`, `ValidatePersistentVolumeUpdate` and those beside them.
#[tokio::test]
async fn containers_see_claims_as_devices_and_volumes_stay() -> Result<()> {
    let api = TestApi::start().await?;
    super::default_account(&api).await?;
    let mut pod = super::pod("p", None);
    pod["spec"]["volumes"] =
        json!([{"name": "e"}, {"name": "c", "persistentVolumeClaim": {"claimName": "c"}}]);
    pod["spec"]["containers"][0]["volumeDevices"] = json!([{"name": "e", "devicePath": "/dev/e"}]);
    pod["spec"]["containers"][0]["resources"] = json!({"claims": [{"name": "no"}]});
    let told = api.call("POST", super::PODS, Some(&pod)).await?;
    assert_eq!(
        fields(&told),
        [
            "spec.containers[0].volumeDevices[0].name",
            "spec.containers[0].resources.claims[0]",
        ],
        "{}",
        told.text
    );
    pod["spec"]["containers"][0]["volumeDevices"][0]["name"] = json!("c");
    pod["spec"]["containers"][0]["resources"] = json!({});
    let made = api.call("POST", super::PODS, Some(&pod)).await?;
    assert_eq!(made.code, 201, "{}", made.text);

    let volume = json!({"metadata": {"name": "v"}, "spec": {"capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/a"}}});
    let node = json!({"metadata": {"name": "n"}, "spec": {"providerID": "x://n"}});
    let quota = json!({"metadata": {"name": "q"}, "spec": {"scopes": ["BestEffort"]}});
    for (all, made, pointer, to, field) in [
        (
            "/api/v1/persistentvolumes",
            volume,
            "/spec/hostPath/path",
            "/b",
            "spec.persistentvolumesource",
        ),
        (
            "/api/v1/nodes",
            node,
            "/spec/providerID",
            "x://m",
            "spec.providerID",
        ),
        (
            "/api/v1/namespaces/default/resourcequotas",
            quota,
            "/spec/scopes/0",
            "NotBestEffort",
            "spec.scopes",
        ),
    ] {
        let mut made = api.call("POST", all, Some(&made)).await?;
        assert_eq!(made.code, 201, "{}", made.text);
        let name = made.json["metadata"]["name"].as_str().unwrap_or_default();
        let path = format!("{all}/{name}");
        *made.json.pointer_mut(pointer).expect("the field is there") = json!(to);
        let told = api.call("PUT", &path, Some(&made.json)).await?;
        assert_eq!(
            (told.code, &fields(&told)[..]),
            (422, &[field][..]),
            "{}",
            told.text
        );
    }
    api.close().await
}
