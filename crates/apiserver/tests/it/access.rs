//! Who may do what: certificates, tokens, roles.

use super::{CONFIG_MAPS, PODS, config_map};
use anyhow::{Context as _, Result};
use client::k8s_openapi::api::core::v1::ConfigMap;
use client::kube;
use client::kube::api::{Api, ListParams};
use serde_json::{Value, json};
use testkit::{Answer, TestApi};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const BOB: (&str, &[&str]) = ("bob", &["developers"]);

async fn post(api: &TestApi, path: &str, body: &Value) -> Result<Answer> {
    api.call("POST", path, Some(body)).await
}

async fn grant(api: &TestApi, rules: &Value) -> Result<()> {
    let role = json!({"metadata": {"name": "r"}, "rules": rules});
    let made = post(api, &format!("{RBAC}/namespaces/default/roles"), &role).await?;
    anyhow::ensure!(made.code == 201, "{}", made.text);
    let binding = json!({"metadata": {"name": "b"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "bob"}]});
    let made = post(
        api,
        &format!("{RBAC}/namespaces/default/rolebindings"),
        &binding,
    )
    .await?;
    anyhow::ensure!(made.code == 201, "{}", made.text);
    Ok(())
}

/// Upstream: `test/integration/auth/rbac_test.go`.
#[tokio::test]
async fn roles_allow_and_the_rest_is_forbidden() -> Result<()> {
    let api = TestApi::start().await?;
    let ask =
        async |method: &str, path: &str| api.send_as(BOB, method, path, &[], Vec::new()).await;
    let refused = ask("GET", PODS).await?;
    assert_eq!(refused.code, 403);
    assert_eq!(
        refused.json["message"],
        "pods is forbidden: User \"bob\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
    );
    grant(&api, &json!([{"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "configmaps"]}])).await?;
    assert_eq!(ask("GET", PODS).await?.code, 200);
    assert_eq!(ask("GET", "/api/v1/pods").await?.code, 403);
    assert_eq!(
        ask("GET", "/api/v1/namespaces/kube-system/pods")
            .await?
            .code,
        403
    );
    assert_eq!(ask("DELETE", &format!("{PODS}/x")).await?.code, 403);
    let metrics = ask("GET", "/metrics").await?;
    assert_eq!(
        metrics.json["message"],
        "forbidden: User \"bob\" cannot get path \"/metrics\""
    );
    assert_eq!(ask("GET", "/apis").await?.code, 200);
    // What is taken back is taken back at once.
    api.call(
        "DELETE",
        &format!("{RBAC}/namespaces/default/rolebindings/b"),
        None,
    )
    .await?;
    assert_eq!(ask("GET", PODS).await?.code, 403);
    api.close().await
}

/// Upstream: `test/integration/auth/rbac_test.go`.
#[tokio::test]
async fn nobody_grants_more_than_he_has() -> Result<()> {
    let api = TestApi::start().await?;
    let group = json!(["rbac.authorization.k8s.io"]);
    grant(&api, &json!([
        {"verbs": ["create", "update"], "apiGroups": group, "resources": ["roles", "rolebindings"]},
        {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]},
    ])).await?;
    let roles = format!("{RBAC}/namespaces/default/roles");
    let bindings = format!("{RBAC}/namespaces/default/rolebindings");
    let role = |name: &str, verb: &str| {
        let v = json!({"metadata": {"name": name}, "rules": [{"verbs": [verb], "apiGroups": [""], "resources": ["pods"]}]});
        v.to_string().into_bytes()
    };
    let binding = |name: &str, kind: &str, role: &str| {
        let v = json!({"metadata": {"name": name}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "bob"}]});
        v.to_string().into_bytes()
    };
    let post = async |path: &str, body: Vec<u8>| api.send_as(BOB, "POST", path, &[], body).await;
    assert_eq!(post(&roles, role("own", "get")).await?.code, 201);
    let more = post(&roles, role("more", "delete")).await?;
    assert!(
        more.code == 403
            && more
                .text
                .contains("attempting to grant RBAC permissions not currently held"),
        "{}",
        more.text
    );
    assert_eq!(
        post(&bindings, binding("own", "Role", "own")).await?.code,
        201
    );
    assert_eq!(
        post(&bindings, binding("all", "ClusterRole", "cluster-admin"))
            .await?
            .code,
        403
    );
    assert_eq!(
        post(&bindings, binding("none", "ClusterRole", "none"))
            .await?
            .code,
        404
    );
    api.close().await
}

/// Upstream: `test/integration/auth/rbac_test.go`.
#[tokio::test]
async fn aggregated_roles_gather() -> Result<()> {
    let api = TestApi::start().await?;
    let binding = json!({"metadata": {"name": "view"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "developers"}]});
    post(
        &api,
        &format!("{RBAC}/namespaces/default/rolebindings"),
        &binding,
    )
    .await?;
    let ask = async |path: &str| {
        Ok::<_, anyhow::Error>(api.send_as(BOB, "GET", path, &[], Vec::new()).await?.code)
    };
    assert_eq!(ask(PODS).await?, 200);
    assert_eq!(ask("/api/v1/namespaces/default/secrets").await?, 403);
    let crumbs = "/apis/storage.k8s.io/v1/namespaces/default/csistoragecapacities";
    assert_eq!(ask(crumbs).await?, 403);
    let role = json!({"metadata": {"name": "more", "labels": {"rbac.authorization.k8s.io/aggregate-to-view": "true"}},
        "rules": [{"verbs": ["list"], "apiGroups": ["storage.k8s.io"], "resources": ["csistoragecapacities"]}]});
    post(&api, &format!("{RBAC}/clusterroles"), &role).await?;
    assert_eq!(ask(crumbs).await?, 200);
    api.close().await
}

/// Upstream: `test/integration/auth/accessreview_test.go`.
#[tokio::test]
async fn reviews_answer() -> Result<()> {
    let api = TestApi::start().await?;
    grant(
        &api,
        &json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]),
    )
    .await?;
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let ask = |verb: &str| json!({"spec": {"user": "bob", "resourceAttributes": {"namespace": "default", "verb": verb, "resource": "pods"}}});
    for (verb, allowed) in [("get", true), ("delete", false)] {
        let a = post(&api, path, &ask(verb)).await?;
        assert_eq!(
            (a.code, &a.json["status"]["allowed"]),
            (201, &json!(allowed)),
            "{}",
            a.text
        );
    }
    let own = json!({"spec": {"nonResourceAttributes": {"verb": "get", "path": "/livez"}}})
        .to_string()
        .into_bytes();
    let a = api
        .send_as(
            BOB,
            "POST",
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            &[],
            own,
        )
        .await?;
    assert_eq!(a.json["status"]["allowed"], true, "{}", a.text);
    let rules = json!({"spec": {"namespace": "default"}})
        .to_string()
        .into_bytes();
    let a = api
        .send_as(
            BOB,
            "POST",
            "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
            &[],
            rules,
        )
        .await?;
    assert!(
        a.json["status"]["resourceRules"]
            .as_array()
            .is_some_and(|r| r.iter().any(|r| r["resources"] == json!(["pods"]))),
        "{}",
        a.text
    );
    let a = api
        .send_as(
            BOB,
            "POST",
            "/apis/authentication.k8s.io/v1/selfsubjectreviews",
            &[],
            b"{}".to_vec(),
        )
        .await?;
    assert_eq!(
        a.json["status"]["userInfo"]["username"], "bob",
        "{}",
        a.text
    );
    api.close().await
}

/// Upstream: `test/integration/auth/auth_test.go`.
#[tokio::test]
async fn impersonation_needs_its_verb() -> Result<()> {
    let api = TestApi::start().await?;
    let who = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let headers = [
        ("impersonate-user", "bob"),
        ("impersonate-group", "developers"),
    ];
    let a = api.send("POST", who, &headers, b"{}".to_vec()).await?;
    assert_eq!(
        a.json["status"]["userInfo"]["username"], "bob",
        "{}",
        a.text
    );
    assert_eq!(api.send("GET", PODS, &headers, Vec::new()).await?.code, 403);
    let a = api
        .send_as(
            BOB,
            "POST",
            who,
            &[("impersonate-user", "admin")],
            b"{}".to_vec(),
        )
        .await?;
    assert!(
        a.code == 403 && a.text.contains("cannot impersonate resource"),
        "{}",
        a.text
    );
    api.close().await
}

/// Upstream: `test/integration/auth/svcaccttoken_test.go`.
#[tokio::test]
async fn tokens_speak_for_accounts_until_their_object_goes() -> Result<()> {
    let api = TestApi::start().await?;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    post(&api, accounts, &json!({"metadata": {"name": "default"}})).await?;
    post(&api, PODS, &super::pod("p", Some("n"))).await?;
    let request = json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1",
        "spec": {"expirationSeconds": 600, "audiences": [], "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p"}}});
    let a = post(&api, &format!("{accounts}/default/token"), &request).await?;
    assert_eq!(a.code, 201, "{}", a.text);
    let token = a.json["status"]["token"]
        .as_str()
        .context("token")?
        .to_owned();
    let review = async || {
        let body = json!({"spec": {"token": token}});
        Ok::<_, anyhow::Error>(
            post(&api, "/apis/authentication.k8s.io/v1/tokenreviews", &body)
                .await?
                .json["status"]
                .clone(),
        )
    };
    let good = review().await?;
    assert_eq!(good["authenticated"], true, "{good}");
    assert_eq!(
        good["user"]["username"],
        "system:serviceaccount:default:default"
    );
    assert_eq!(
        good["user"]["extra"]["authentication.kubernetes.io/pod-name"],
        json!(["p"])
    );
    // Over HTTPS as a bearer token.
    let config = |token: &str| {
        let mut c = kube::Config::new(api.url().parse().unwrap());
        c.root_cert = Some(vec![pem_der(&api.pki.ca_cert)]);
        c.auth_info.token = Some(token.to_owned().into());
        c
    };
    let maps = |token: &str| -> Result<Api<ConfigMap>> {
        Ok(Api::namespaced(
            kube::Client::try_from(config(token))?,
            "default",
        ))
    };
    let forbidden = maps(&token)?.list(&ListParams::default()).await;
    assert!(
        matches!(&forbidden, Err(kube::Error::Api(s)) if s.code == 403),
        "{forbidden:?}"
    );
    let bad = maps(&format!("{token}x"))?
        .list(&ListParams::default())
        .await;
    assert!(
        matches!(&bad, Err(kube::Error::Api(s)) if s.code == 401),
        "{bad:?}"
    );
    api.call("DELETE", &format!("{PODS}/p?gracePeriodSeconds=0"), None)
        .await?;
    let refused = review().await?;
    assert!(refused["authenticated"].is_null(), "{refused}");
    assert!(
        refused["error"]
            .as_str()
            .is_some_and(|e| e.starts_with("[invalid bearer token, ")),
        "{refused}"
    );
    api.close().await
}

pub(crate) fn pem_der(pem: &str) -> Vec<u8> {
    use base64::Engine as _;
    let body: String = pem.lines().filter(|l| !l.starts_with("-----")).collect();
    base64::engine::general_purpose::STANDARD
        .decode(body)
        .unwrap_or_default()
}

/// Upstream: `test/integration/auth/certs_test.go`.
#[tokio::test]
async fn certificates_name_users_over_https() -> Result<()> {
    let api = TestApi::start().await?;
    post(&api, CONFIG_MAPS, &config_map("a", "x")).await?;
    let admin =
        client::connect::from_kubeconfig(&api.kubeconfig("root", &["system:masters"])?).await?;
    let maps: Api<ConfigMap> = Api::namespaced(admin, "default");
    assert_eq!(maps.list(&ListParams::default()).await?.items.len(), 1);
    let bob = client::connect::from_kubeconfig(&api.kubeconfig("bob", &["developers"])?).await?;
    let refused = Api::<ConfigMap>::namespaced(bob, "default").get("a").await;
    assert!(
        matches!(&refused, Err(kube::Error::Api(s)) if s.message.contains("User \"bob\"")),
        "{refused:?}"
    );
    // The in-process client is the same API.
    let local: Api<ConfigMap> = Api::namespaced(api.client()?, "default");
    assert_eq!(
        local
            .get("a")
            .await?
            .data
            .and_then(|d| d.get("k").cloned())
            .as_deref(),
        Some("v")
    );
    api.close().await
}

/// Clients that come later see what replaced it; what can't be used replaces nothing.
/// Upstream: `test/integration/apiserver/certreload/certreload_test.go`.
///
/// In process only: it hands the server certificates, which the binary makes itself.
#[tokio::test]
async fn a_serving_certificate_is_replaced_while_it_serves() -> Result<()> {
    let api = TestApi::start().await?;
    let admin = || async {
        let path = api.kubeconfig("root", &["system:masters"])?;
        let client = client::connect::from_kubeconfig(&path).await?;
        let maps: Api<ConfigMap> = Api::namespaced(client, "default");
        anyhow::Ok(maps.list(&ListParams::default()).await)
    };
    assert!(admin().await?.is_ok());
    let (own, other) = (
        api.pki.serving_for(&["127.0.0.1", "localhost"])?,
        testkit::Pki::new()?.serving,
    );
    assert!(api.server()?.serve_with(&own.cert, &other.key).is_err());
    assert!(api.server()?.serve_with("", &own.key).is_err());
    assert!(admin().await?.is_ok());
    api.server()?.serve_with(&own.cert, &own.key)?;
    assert!(admin().await?.is_ok());
    // Of an authority that nobody trusts: it is this that is served now.
    api.server()?.serve_with(&other.cert, &other.key)?;
    assert!(admin().await?.is_err());
    api.close().await
}

/// A site made by an earlier version has its roles without what came later.
/// Upstream: `plugin/pkg/auth/authorizer/rbac/bootstrappolicy/policy_test.go`.
#[tokio::test]
async fn default_roles_are_brought_up_to_date_at_a_start() -> Result<()> {
    const KIND: &[(&str, &str)] = &[("content-type", "application/merge-patch+json")];
    const OWN: &str = "rbac.authorization.kubernetes.io/autoupdate";
    let api = TestApi::start().await?;
    api.expects("default binding names another role: made anew")?;
    let role = |name: &str| format!("{RBAC}/clusterroles/{name}");
    let bound = |name: &str| format!("{RBAC}/clusterrolebindings/{name}");
    let extra = json!({"verbs": ["get"], "apiGroups": ["example.com"], "resources": ["own"]});
    let subject = |name: &str| {
        json!({"kind": "Group", "name": name,
        "apiGroup": "rbac.authorization.k8s.io"})
    };
    for (path, patch) in [
        (role("system:node"), json!({"rules": [extra]})),
        (
            role("system:monitoring"),
            json!({"rules": [], "metadata": {"annotations": {OWN: "false"}}}),
        ),
        (bound("system:node"), json!({"subjects": [subject("own")]})),
    ] {
        let done = api
            .send("PATCH", &path, KIND, patch.to_string().into())
            .await?;
        assert_eq!(done.code, 200, "{}", done.text);
    }
    // Another role by the name of a default binding.
    let path = bound("system:discovery");
    api.call("DELETE", &path, None).await?;
    let other = json!({"metadata": {"name": "system:discovery"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}});
    let made = post(&api, &format!("{RBAC}/clusterrolebindings"), &other).await?;
    assert_eq!(made.code, 201, "{}", made.text);

    let api = api.restart().await?;
    let node = api.call("GET", &role("system:node"), None).await?.json;
    let rules = node["rules"].as_array().context("rules")?;
    assert!(rules.contains(&extra) && rules.len() > 10, "{rules:?}");
    let monitoring = api.call("GET", &role("system:monitoring"), None).await?;
    assert_eq!(monitoring.json["rules"], json!([]), "{}", monitoring.text);
    let nodes = api.call("GET", &bound("system:node"), None).await?;
    assert_eq!(
        nodes.json["subjects"],
        json!([subject("own"), subject("system:nodes")])
    );
    let made = api.call("GET", &path, None).await?;
    assert_eq!(made.json["roleRef"]["name"], "system:discovery");
    // What is up to date is not written again.
    let version = |a: &Answer| a.json["metadata"]["resourceVersion"].clone();
    let before = version(&nodes);
    let api = api.restart().await?;
    let after = version(&api.call("GET", &bound("system:node"), None).await?);
    assert_eq!(after, before);
    api.close().await
}

/// Upstream: `pkg/apis/authorization/validation/validation_test.go`.
#[tokio::test]
async fn questions_about_access_are_whole() -> Result<()> {
    const GROUP: &str = "/apis/authorization.k8s.io/v1";
    let api = TestApi::start().await?;
    let (pods, path) = (
        json!({"verb": "get", "resource": "pods", "namespace": "other"}),
        json!({"verb": "get", "path": "/x"}),
    );
    let none = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
    for (url, kind, spec, told) in [
        (
            "selfsubjectaccessreviews",
            "SelfSubjectAccessReview",
            json!({}),
            format!("spec.resourceAttributes: Invalid value: null: {none}"),
        ),
        (
            "subjectaccessreviews",
            "SubjectAccessReview",
            json!({"resourceAttributes": pods, "nonResourceAttributes": path}),
            r#"[spec.nonResourceAttributes: Invalid value: {"path":"/x","verb":"get"}: cannot be specified in combination with resourceAttributes, spec.user: Invalid value: "": at least one of user or group must be specified]"#.to_owned(),
        ),
        (
            "namespaces/default/localsubjectaccessreviews",
            "LocalSubjectAccessReview",
            json!({"resourceAttributes": pods, "user": "u"}),
            r#"spec.resourceAttributes.namespace: Invalid value: "other": must match metadata.namespace"#.to_owned(),
        ),
        (
            "namespaces/default/localsubjectaccessreviews",
            "LocalSubjectAccessReview",
            json!({"nonResourceAttributes": path, "user": "u"}),
            r#"spec.nonResourceAttributes: Invalid value: {"path":"/x","verb":"get"}: disallowed on this kind of request"#.to_owned(),
        ),
    ] {
        let asked = api
            .call("POST", &format!("{GROUP}/{url}"), Some(&json!({"spec": spec})))
            .await?;
        let text = format!("{kind}.authorization.k8s.io \"\" is invalid: {told}");
        assert_eq!((asked.code, &asked.json["message"]), (422, &json!(text)));
    }
    api.close().await
}
