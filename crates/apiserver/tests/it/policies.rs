//! Admission policies: cases from the documentation of ValidatingAdmissionPolicy and
//! MutatingAdmissionPolicy, and `test/integration/apiserver/cel` of upstream.

use super::webhooks::{TABS, converted, define, serve, tab};
use anyhow::Result;
use serde_json::{Value, json};
use testkit::{Answer, TestApi};

const BASE: &str = "/apis/admissionregistration.k8s.io/v1";

async fn make(api: &TestApi, plural: &str, object: Value) -> Result<()> {
    let made = api
        .call("POST", &format!("{BASE}/{plural}"), Some(&object))
        .await?;
    anyhow::ensure!(made.code == 201, "{}", made.text);
    Ok(())
}

fn constraints() -> Value {
    json!({"resourceRules": [{"apiGroups": ["apps"], "apiVersions": ["v1"],
        "operations": ["CREATE", "UPDATE"], "resources": ["deployments"]}]})
}

async fn policy(api: &TestApi, name: &str, mut spec: Value) -> Result<()> {
    if spec["matchConstraints"].is_null() {
        spec["matchConstraints"] = constraints();
    }
    let object = json!({"metadata": {"name": name}, "spec": spec});
    make(api, "validatingadmissionpolicies", object).await
}

async fn bind(api: &TestApi, name: &str, mut spec: Value) -> Result<()> {
    if spec["validationActions"].is_null() {
        spec["validationActions"] = json!(["Deny"]);
    }
    let object = json!({"metadata": {"name": format!("{name}-b")}, "spec": spec});
    make(api, "validatingadmissionpolicybindings", object).await
}

async fn deploy(api: &TestApi, name: &str, replicas: i64) -> Result<Answer> {
    let mut deployment = super::deployment(name);
    deployment["spec"]["replicas"] = replicas.into();
    api.call("POST", super::DEPLOYMENTS, Some(&deployment))
        .await
}

#[tokio::test]
async fn a_policy_refuses_in_upstream_s_words() -> Result<()> {
    let api = TestApi::start().await?;
    let spec = json!({"validations": [{"expression": "object.spec.replicas <= 5"}]});
    policy(&api, "few", spec).await?;
    // Without a binding it does nothing.
    assert_eq!(deploy(&api, "free", 9).await?.code, 201);
    bind(&api, "few", json!({"policyName": "few"})).await?;
    let refused = deploy(&api, "a", 6).await?;
    assert_eq!(refused.code, 422, "{}", refused.text);
    assert_eq!(
        refused.json["message"],
        "deployments.apps \"a\" is forbidden: ValidatingAdmissionPolicy 'few' with binding 'few-b' denied request: failed expression: object.spec.replicas <= 5"
    );
    assert_eq!(refused.json["reason"], "Invalid");
    assert_eq!(deploy(&api, "a", 5).await?.code, 201);
    let patch = api
        .send(
            "PATCH",
            &format!("{}/a", super::DEPLOYMENTS),
            &[("content-type", "application/merge-patch+json")],
            json!({"spec": {"replicas": 7}}).to_string().into_bytes(),
        )
        .await?;
    assert_eq!(patch.code, 422, "{}", patch.text);
    // Taken back, it does nothing any more.
    let path = format!("{BASE}/validatingadmissionpolicies/few");
    assert_eq!(api.call("DELETE", &path, None).await?.code, 200);
    assert_eq!(deploy(&api, "b", 7).await?.code, 201);
    api.close().await
}

#[tokio::test]
async fn messages_reasons_variables_and_conditions() -> Result<()> {
    let api = TestApi::start().await?;
    let spec = json!({
        "variables": [
            {"name": "limit", "expression": "namespaceObject.metadata.name == 'default' ? 3 : 1"},
            {"name": "over", "expression": "object.spec.replicas - variables.limit"},
        ],
        "matchConditions": [{"name": "not-exempt", "expression": "!object.metadata.name.startsWith('exempt')"}],
        "validations": [{
            "expression": "variables.over <= 0", "reason": "Forbidden",
            "messageExpression": "'%d more than %s may have in %s'.format([variables.over, request.userInfo.username, request.namespace])",
        }],
    });
    policy(&api, "p", spec).await?;
    bind(&api, "p", json!({"policyName": "p"})).await?;
    let refused = deploy(&api, "a", 5).await?;
    assert_eq!(refused.code, 403, "{}", refused.text);
    assert_eq!(
        refused.json["message"],
        "deployments.apps \"a\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'p-b' denied request: 2 more than kubernetes-admin may have in default"
    );
    assert_eq!(deploy(&api, "a", 3).await?.code, 201);
    assert_eq!(deploy(&api, "exempt", 5).await?.code, 201);
    api.close().await
}

#[tokio::test]
async fn parameters_warnings_and_failures() -> Result<()> {
    let api = TestApi::start().await?;
    let spec = json!({
        "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "validations": [{"expression": "object.spec.replicas <= int(params.data.max)", "message": "too many"}],
    });
    policy(&api, "p", spec).await?;
    let of = json!({"name": "limits", "namespace": "default", "parameterNotFoundAction": "Deny"});
    bind(&api, "p", json!({"policyName": "p", "paramRef": of})).await?;
    let missing = deploy(&api, "a", 1).await?;
    assert!(
        missing.text.contains("failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction"),
        "{}",
        missing.text
    );
    let limits = json!({"metadata": {"name": "limits"}, "data": {"max": "2"}});
    assert_eq!(
        api.call("POST", super::CONFIG_MAPS, Some(&limits))
            .await?
            .code,
        201
    );
    assert!(deploy(&api, "a", 3).await?.text.contains("too many"));
    assert_eq!(deploy(&api, "a", 2).await?.code, 201);
    // What only warns lets pass, and says so.
    let spec = json!({"validations": [{"expression": "false", "message": "not so good"}]});
    policy(&api, "w", spec).await?;
    bind(
        &api,
        "w",
        json!({"policyName": "w", "validationActions": ["Warn", "Audit"]}),
    )
    .await?;
    let warned = deploy(&api, "b", 1).await?;
    assert_eq!(warned.code, 201, "{}", warned.text);
    let warning = warned
        .headers
        .get("warning")
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    assert!(
        warning.contains(
            "Validation failed for ValidatingAdmissionPolicy 'w' with binding 'w-b': not so good"
        ),
        "{warning}"
    );
    // An error denies, or, with failurePolicy Ignore, does not.
    let wrong = json!([{"expression": "object.spec.nope == 1"}]);
    policy(
        &api,
        "i",
        json!({"failurePolicy": "Ignore", "validations": wrong}),
    )
    .await?;
    bind(&api, "i", json!({"policyName": "i"})).await?;
    assert_eq!(deploy(&api, "c", 1).await?.code, 201);
    policy(&api, "f", json!({"validations": wrong})).await?;
    bind(&api, "f", json!({"policyName": "f"})).await?;
    let failed = deploy(&api, "d", 1).await?;
    assert!(
        failed
            .text
            .contains("expression 'object.spec.nope == 1' resulted in error: no such key: nope"),
        "{}",
        failed.text
    );
    api.close().await
}

#[tokio::test]
async fn selectors_exclusions_and_the_authorizer() -> Result<()> {
    let api = TestApi::start().await?;
    let spec = json!({
        "matchConstraints": {
            "resourceRules": [{"apiGroups": [""], "apiVersions": ["*"], "operations": ["*"], "resources": ["configmaps"]}],
            "excludeResourceRules": [{"apiGroups": [""], "apiVersions": ["*"], "operations": ["*"], "resources": ["configmaps"], "resourceNames": ["left-out"]}],
            "objectSelector": {"matchLabels": {"l": "strict"}},
        },
        "validations": [{"expression": "request.operation == 'DELETE' ? authorizer.group('').resource('pods').check('fly').allowed() && oldObject.data.k == 'v' : authorizer.requestResource.check('create').allowed() && object.data.k != 'bad'"}],
    });
    policy(&api, "p", spec).await?;
    bind(&api, "p", json!({"policyName": "p"})).await?;
    let make = async |name: &str, label: &str, v: &str| -> Result<u16> {
        let mut map = super::config_map(name, label);
        map["data"]["k"] = v.into();
        Ok(api.call("POST", super::CONFIG_MAPS, Some(&map)).await?.code)
    };
    assert_eq!(make("a", "loose", "bad").await?, 201);
    assert_eq!(make("left-out", "strict", "bad").await?, 201);
    assert_eq!(make("b", "strict", "bad").await?, 422);
    assert_eq!(make("b", "strict", "v").await?, 201);
    let gone = api
        .call("DELETE", &format!("{}/b", super::CONFIG_MAPS), None)
        .await?;
    assert_eq!(gone.code, 200, "{}", gone.text);
    api.close().await
}

#[tokio::test]
async fn a_policy_changes_objects() -> Result<()> {
    let api = TestApi::start().await?;
    super::default_account(&api).await?;
    let spec = json!({
        "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]},
        "matchConditions": [{"name": "once", "expression": "!object.spec.?initContainers.orValue([]).exists(c, c.name == 'mesh')"}],
        "failurePolicy": "Fail", "reinvocationPolicy": "IfNeeded",
        "variables": [{"name": "image", "expression": "'example.com/mesh:' + object.metadata.?labels.?v.orValue('1')"}],
        "mutations": [
            {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression":
                "Object{spec: Object.spec{initContainers: [Object.spec.initContainers{name: 'mesh', image: variables.image, restartPolicy: 'Always'}]}}"}},
            {"patchType": "JSONPatch", "jsonPatch": {"expression":
                "[JSONPatch{op: 'test', path: '/spec/containers/0/name', value: 'c'}, JSONPatch{op: 'add', path: '/metadata/labels', value: {jsonpatch.escapeKey('a'): 'b'}}]"}},
        ],
    });
    make(
        &api,
        "mutatingadmissionpolicies",
        json!({"metadata": {"name": "mesh"}, "spec": spec}),
    )
    .await?;
    let binding = json!({"metadata": {"name": "mesh"}, "spec": {"policyName": "mesh"}});
    make(&api, "mutatingadmissionpolicybindings", binding).await?;
    let made = api
        .call("POST", super::PODS, Some(&super::pod("p", None)))
        .await?;
    assert_eq!(made.code, 201, "{}", made.text);
    let init = &made.json["spec"]["initContainers"][0];
    assert_eq!(
        (&init["name"], &init["image"]),
        (&json!("mesh"), &json!("example.com/mesh:1"))
    );
    // What is added is defaulted, and owned by nobody.
    assert_eq!(init["terminationMessagePath"], "/dev/termination-log");
    assert_eq!(made.json["metadata"]["labels"], json!({"a": "b"}));
    assert!(
        !made.json["metadata"]["managedFields"]
            .to_string()
            .contains("mesh")
    );
    api.close().await
}

/// Documentation of ValidatingAdmissionPolicy, "Type checking".
#[tokio::test]
async fn the_status_tells_what_does_not_fit_the_types() -> Result<()> {
    let api = TestApi::start().await?;
    let spec = json!({"validations": [
        {"expression": "object.replicas > 1", "messageExpression": "'needs %d'.format([object.spec.replicas])"},
        {"expression": "object.spec.template.spec.containers.all(c, c.image != '')"},
    ]});
    policy(&api, "p", spec).await?;
    let path = format!("{BASE}/validatingadmissionpolicies?watch=1");
    let mut watch = api.watch(&path, &[]).await?;
    let status = loop {
        let event = watch.next().await?.unwrap_or_default();
        anyhow::ensure!(event.is_object(), "the watch has ended");
        if event["object"]["status"]["observedGeneration"] == 1 {
            break event["object"]["status"].clone();
        }
    };
    let warnings = &status["typeChecking"]["expressionWarnings"];
    assert_eq!(warnings.as_array().map(Vec::len), Some(1), "{status}");
    assert_eq!(warnings[0]["fieldRef"], "spec.validations[0].expression");
    let text = warnings[0]["warning"].as_str().unwrap_or_default();
    assert!(
        text.starts_with(
            "apps/v1, Kind=Deployment: ERROR: <input>:1:7: undefined field 'replicas'"
        ),
        "{text}"
    );
    api.close().await
}

/// Upstream: `plugin/policy/mutating/dispatcher.go` (versioned attributes, converted back) and
/// `test/integration/apiserver/cel/mutatingadmissionpolicy_test.go`: of kinds in several versions
/// a policy sees that of its rule.
#[tokio::test]
async fn a_policy_changes_objects_in_the_version_of_its_rule() -> Result<()> {
    let api = TestApi::start().await?;
    let conversion = serve(|_, request| converted(request)).await?;
    define(&api, &conversion).await?;
    let about = |policy: &str| {
        json!({"matchPolicy": policy, "resourceRules": [{"apiGroups": ["stable.example.com"],
            "apiVersions": ["v2"], "operations": ["CREATE", "UPDATE"], "resources": ["crontabs"]}]})
    };
    let policies = [
        (
            "a-port",
            "Equivalent",
            json!({"patchType": "ApplyConfiguration", "applyConfiguration": {
            "expression": "Object{spec: Object.spec{port: object.spec.port + '9'}}"}}),
        ),
        (
            "b-host",
            "Equivalent",
            json!({"patchType": "JSONPatch", "jsonPatch": {"expression":
            "[JSONPatch{op: 'replace', path: '/spec/host', value: object.apiVersion.split('/')[1] + (oldObject == null ? '' : oldObject.spec.host)}]"}}),
        ),
        (
            "c-exact",
            "Exact",
            json!({"patchType": "JSONPatch", "jsonPatch": {"expression":
            "[JSONPatch{op: 'add', path: '/metadata/labels', value: {'exact': 'yes'}}]"}}),
        ),
    ];
    for (name, policy, mutation) in policies {
        let spec = json!({
            "matchConstraints": about(policy), "mutations": [mutation], "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "matchConditions": [{"name": "host", "expression": "object.spec.host != 'free'"}],
        });
        let object = json!({"metadata": {"name": name}, "spec": spec});
        make(&api, "mutatingadmissionpolicies", object).await?;
        let binding = json!({"metadata": {"name": name}, "spec": {"policyName": name}});
        make(&api, "mutatingadmissionpolicybindings", binding).await?;
    }
    let one = tab("v1", "one", json!({"hostPort": "a:1"}));
    let made = api.call("POST", TABS, Some(&one)).await?;
    assert_eq!(made.code, 201, "{}", made.text);
    assert_eq!(made.json["apiVersion"], "stable.example.com/v1");
    assert_eq!(made.json["spec"], json!({"hostPort": "v2:19"}));
    assert_eq!(made.json["metadata"].get("labels"), None);
    // It is who wrote that owns what was changed.
    let fields = made.json["metadata"]["managedFields"].as_array();
    assert_eq!(fields.map(Vec::len), Some(1), "{}", made.text);
    let mut next = made.json.clone();
    next["spec"]["hostPort"] = "b:2".into();
    let put = api.call("PUT", &format!("{TABS}/one"), Some(&next)).await?;
    assert_eq!(
        put.json["spec"],
        json!({"hostPort": "v2v2:29"}),
        "{}",
        put.text
    );
    // Conditions are held against the object in that version, too.
    let free = tab("v1", "free", json!({"hostPort": "free:1"}));
    let made = api.call("POST", TABS, Some(&free)).await?;
    assert_eq!(
        made.json["spec"],
        json!({"hostPort": "free:1"}),
        "{}",
        made.text
    );
    // Whose own version it is is asked without a conversion; and the exact one is.
    let own = tab("v2", "own", json!({"host": "a", "port": "1"}));
    let made = api
        .call("POST", &TABS.replace("/v1/", "/v2/"), Some(&own))
        .await?;
    assert_eq!(
        made.json["spec"],
        json!({"host": "v2", "port": "19"}),
        "{}",
        made.text
    );
    assert_eq!(made.json["metadata"]["labels"], json!({"exact": "yes"}));
    api.close().await
}
