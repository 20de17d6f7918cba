//! A site that follows a repository: applied, changed, broken, mended, pruned.

use crate::site::{Repository, Site, config_map, kustomization, map, ready, repository};
use anyhow::{Result, ensure};
use expect_test::expect;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revision_is_applied_renamed_and_pruned() -> Result<()> {
    let repo = Repository::new()?;
    let first = repo.commit(&[
        ("a.yaml", Some(&config_map("one", "1"))),
        ("sub/b.yaml", Some(&config_map("two", "1"))),
        ("notes.txt", Some("no manifest")),
    ])?;
    let site = Site::start(None).await?;
    site.follow("repo", json!({"url": repo.url()})).await?;
    site.kustomize("all", json!({})).await?;
    let object = site.until_ready("all", "True", &first).await?;
    ensure!(ready(&object)["reason"] == "ReconciliationSucceeded");
    ensure!(ready(&object)["message"] == format!("Applied revision: main@sha1:{first}"));
    let status = &object["status"];
    ensure!(status["lastAppliedRevision"] == format!("main@sha1:{first}"));
    ensure!(status["lastAttemptedRevision"] == format!("main@sha1:{first}"));
    expect![[r#"{"entries":[{"id":"default_one__ConfigMap","v":"v1"},{"id":"default_two__ConfigMap","v":"v1"}]}"#]]
        .assert_eq(&status["inventory"].to_string());
    let one = site.get(&map("one")).await?;
    expect![[r#"{"kustomize.toolkit.fluxcd.io/name":"all","kustomize.toolkit.fluxcd.io/namespace":"default"}"#]]
        .assert_eq(&one["metadata"]["labels"].to_string());
    ensure!(one["metadata"]["managedFields"][0]["manager"] == "salp-gitops");

    // One is renamed, another changed; what somebody else made stays.
    site.apply(&json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "other"}, "data": {"k": "mine"}}))
        .await?;
    let second = repo.commit(&[
        ("a.yaml", Some(&config_map("uno", "1"))),
        ("sub/b.yaml", Some(&config_map("two", "2"))),
    ])?;
    let object = site.until_ready("all", "True", &second).await?;
    site.until_map("uno", "k", "1").await?;
    site.until_map("two", "k", "2").await?;
    ensure!(site.get(&map("one")).await?["code"] == 404);
    ensure!(site.get(&map("other")).await?["data"]["k"] == "mine");
    ensure!(
        object["status"]["inventory"]["entries"]
            .as_array()
            .map(Vec::len)
            == Some(2)
    );

    // Deleting the Kustomization deletes what it made, and lets it go.
    site.api.call("DELETE", &kustomization("all"), None).await?;
    site.until("the end", &kustomization("all"), |k| k["code"] == 404)
        .await?;
    ensure!(site.get(&map("uno")).await?["code"] == 404);
    ensure!(site.get(&map("other")).await?["data"]["k"] == "mine");
    site.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_revision_changes_nothing() -> Result<()> {
    let repo = Repository::new()?;
    let good = repo.commit(&[
        ("a.yaml", Some(&config_map("one", "1"))),
        ("b.yaml", Some(&config_map("two", "1"))),
    ])?;
    let site = Site::start(None).await?;
    site.follow("repo", json!({"url": repo.url()})).await?;
    site.kustomize("all", json!({})).await?;
    site.until_ready("all", "True", &good).await?;

    // The server refuses one object: the others are not touched.
    repo.commit(&[
        ("a.yaml", Some(&config_map("one", "2"))),
        ("b.yaml", None),
        (
            "c.yaml",
            Some("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: Not_A_Name}\n"),
        ),
    ])?;
    let object = site
        .until_ready(
            "all",
            "False",
            "ConfigMap/default/Not_A_Name dry-run failed: (Invalid)",
        )
        .await?;
    ensure!(ready(&object)["reason"] == "ReconciliationFailed");
    ensure!(object["status"]["lastAppliedRevision"] == format!("main@sha1:{good}"));
    ensure!(site.get(&map("one")).await?["data"]["k"] == "1");
    ensure!(site.get(&map("two")).await?["data"]["k"] == "1");

    // An unknown field, a kind that nobody serves, a file that is no manifest.
    let broken = [
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndatum: {}\n",
            "unknown field \"datum\"",
        ),
        (
            "apiVersion: example.com/v1\nkind: Widget\nmetadata: {name: c}\n",
            "no matches for kind \"Widget\" in version \"example.com/v1\"",
        ),
        ("hello: world\n", "no Kubernetes object"),
        ("a: [\n", "build failed: read c.yaml"),
    ];
    for (text, says) in broken {
        repo.commit(&[("c.yaml", Some(text))])?;
        let object = site.until_ready("all", "False", says).await?;
        ensure!(
            object["status"]["inventory"]["entries"]
                .as_array()
                .map(Vec::len)
                == Some(2)
        );
        ensure!(site.get(&map("one")).await?["data"]["k"] == "1", "{says}");
    }

    let mended = repo.commit(&[("c.yaml", None)])?;
    site.until_ready("all", "True", &mended).await?;
    site.until_map("one", "k", "2").await?;
    ensure!(site.get(&map("two")).await?["code"] == 404);
    site.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drift_is_corrected_unless_it_rests() -> Result<()> {
    let repo = Repository::new()?;
    let first = repo.commit(&[("a.yaml", Some(&config_map("one", "1")))])?;
    let site = Site::start(None).await?;
    site.follow("repo", json!({"url": repo.url()})).await?;
    site.kustomize("all", json!({"interval": "1s"})).await?;
    site.until_ready("all", "True", &first).await?;
    site.merge(
        &map("one"),
        &json!({"data": {"k": "drift", "more": "kept"}}),
    )
    .await?;
    let back = site.until_map("one", "k", "1").await?;
    ensure!(back["data"]["more"] == "kept", "fields of others stay");
    site.api.call("DELETE", &map("one"), None).await?;
    let anew = site.until_map("one", "k", "1").await?;
    ensure!(anew["data"].get("more").is_none());

    // Nothing changes: nothing is written.
    let version = anew["metadata"]["resourceVersion"].clone();

    site.merge(&kustomization("all"), &json!({"spec": {"suspend": true}}))
        .await?;
    site.merge(&map("one"), &json!({"data": {"k": "drift"}}))
        .await?;
    let second = repo.commit(&[("a.yaml", Some(&config_map("one", "2")))])?;
    site.until("the new artifact", &repository("repo"), |r| {
        r["status"]["artifact"]["revision"] == format!("main@sha1:{second}")
    })
    .await?;
    ensure!(site.get(&map("one")).await?["data"]["k"] == "drift");
    ensure!(site.get(&map("one")).await?["metadata"]["resourceVersion"] != version);
    site.merge(&kustomization("all"), &json!({"spec": {"suspend": false}}))
        .await?;
    site.until_ready("all", "True", &second).await?;
    site.until_map("one", "k", "2").await?;
    site.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dependencies_come_first_and_health_is_waited_for() -> Result<()> {
    let repo = Repository::new()?;
    let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec:\n  replicas: 1\n  selector: {matchLabels: {a: d}}\n  template:\n    metadata: {labels: {a: d}}\n    spec: {containers: [{name: c, image: i}]}\n";
    let first = repo.commit(&[
        ("base/d.yaml", Some(deployment)),
        ("app/a.yaml", Some(&config_map("one", "1"))),
        ("checked/b.yaml", Some(&config_map("two", "1"))),
    ])?;
    let site = Site::start(None).await?;
    site.follow("repo", json!({"url": repo.url()})).await?;
    site.kustomize(
        "app",
        json!({"path": "./app", "dependsOn": [{"name": "base"}]}),
    )
    .await?;
    let waiting = site
        .until_ready("app", "False", "dependency 'default/base' not found")
        .await?;
    ensure!(ready(&waiting)["reason"] == "DependencyNotReady");
    // Nobody makes its pods here: it times out, then it is made healthy by hand.
    site.kustomize(
        "base",
        json!({"path": "./base", "wait": true, "timeout": "1s"}),
    )
    .await?;
    let unhealthy = site
        .until_ready(
            "base",
            "False",
            "timeout waiting for: [Deployment/default/d status: 'InProgress']",
        )
        .await?;
    ensure!(ready(&unhealthy)["reason"] == "HealthCheckFailed");
    site.until_ready("app", "False", "dependency 'default/base' is not ready")
        .await?;
    // What somebody else made may be waited for by name.
    site.kustomize(
        "checked",
        json!({"path": "./checked", "timeout": "1s", "healthChecks": [
            {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d", "namespace": "default"}]}),
    )
    .await?;
    let status = "[Deployment/default/d status: 'InProgress']";
    site.until_ready("checked", "False", status).await?;
    site.until_map("two", "k", "1").await?;
    ensure!(site.get(&map("one")).await?["code"] == 404);
    site.merge(
        "/apis/apps/v1/namespaces/default/deployments/d/status",
        &json!({"status": {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1, "availableReplicas": 1}}),
    )
    .await?;
    site.until_ready("base", "True", &first).await?;
    site.until_ready("checked", "True", &first).await?;
    site.until_ready("app", "True", &first).await?;
    site.until_map("one", "k", "1").await?;
    site.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kinds_and_namespaces_may_come_with_what_needs_them() -> Result<()> {
    let crd = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"kind": "Widget", "plural": "widgets", "singular": "widget", "listKind": "WidgetList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "properties": {"spec": {"type": "object", "properties": {"n": {"type": "integer"}}}}}}}]}});
    let repo = Repository::new()?;
    let first = repo.commit(&[
        ("a.yaml", Some("apiVersion: example.com/v1\nkind: Widget\nmetadata: {name: w}\nspec: {n: '${count:=4}'}\n")),
        ("crd.yaml", Some(&crd.to_string())),
        ("ns.yaml", Some("apiVersion: v1\nkind: Namespace\nmetadata: {name: any}\n")),
    ])?;
    let site = Site::start(None).await?;
    site.apply(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "vars"}, "data": {"count": "7"}}))
        .await?;
    site.follow("repo", json!({"url": repo.url()})).await?;
    site.kustomize(
        "all",
        json!({"targetNamespace": "fresh", "commonMetadata": {"labels": {"site": "shop"}},
            "postBuild": {"substituteFrom": [{"kind": "ConfigMap", "name": "vars"}, {"kind": "Secret", "name": "none", "optional": true}]}}),
    )
    .await?;
    let object = site.until_ready("all", "True", &first).await?;
    expect![[r#"
        [
          "_widgets.example.com_apiextensions.k8s.io_CustomResourceDefinition",
          "_fresh__Namespace",
          "fresh_w_example.com_Widget"
        ]"#]]
    .assert_eq(&serde_json::to_string_pretty(
        &object["status"]["inventory"]["entries"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|e| e["id"].clone())
            .collect::<Vec<Value>>(),
    )?);
    let widget = site
        .get("/apis/example.com/v1/namespaces/fresh/widgets/w")
        .await?;
    ensure!(widget["spec"]["n"] == 7 && widget["metadata"]["labels"]["site"] == "shop");
    site.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_done_is_said() -> Result<()> {
    let repo = Repository::new()?;
    repo.commit(&[("a.yaml", Some(&config_map("one", "1")))])?;
    let site = Site::start(None).await?;
    site.kustomize("all", json!({})).await?;
    let object = site
        .until_ready(
            "all",
            "False",
            "Source 'GitRepository/default/repo' not found",
        )
        .await?;
    ensure!(ready(&object)["reason"] == "ArtifactFailed");
    site.follow(
        "repo",
        json!({"url": repo.url(), "ref": {"branch": "none"}}),
    )
    .await?;
    let source = site
        .until("the failure", &repository("repo"), |r| {
            ready(r)["status"] == "False"
        })
        .await?;
    expect![[r#""failed to checkout and determine revision: couldn't find remote ref \"refs/heads/none\"""#]]
        .assert_eq(&ready(&source)["message"].to_string());
    site.kustomize("all", json!({"decryption": {"provider": "sops"}}))
        .await?;
    site.follow(
        "repo",
        json!({"url": repo.url(), "ref": {"branch": "main"}}),
    )
    .await?;
    let object = site
        .until_ready(
            "all",
            "False",
            "use spec.decryption: not supported by this site; leave it out",
        )
        .await?;
    let stalled = object["status"]["conditions"].as_array();
    ensure!(stalled.is_some_and(|c| {
        c.iter()
            .any(|c| c["type"] == "Stalled" && c["status"] == "True")
    }));
    site.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_heeded_and_handled() -> Result<()> {
    let repo = Repository::new()?;
    let first = repo.commit(&[("a.yaml", Some(&config_map("one", "1")))])?;
    let site = Site::start(None).await?;
    site.follow("repo", json!({"url": repo.url(), "interval": "1h"}))
        .await?;
    site.kustomize("all", json!({})).await?;
    site.until_ready("all", "True", &first).await?;
    let second = repo.commit(&[("a.yaml", Some(&config_map("one", "2")))])?;
    let ask = json!({"metadata": {"annotations": {"reconcile.fluxcd.io/requestedAt": "now"}}});
    site.merge(&repository("repo"), &ask).await?;
    site.until("the token", &repository("repo"), |r| {
        r["status"]["lastHandledReconcileAt"] == "now"
    })
    .await?;
    site.until_ready("all", "True", &second).await?;
    site.until_map("one", "k", "2").await?;
    site.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_applies_only_what_it_may() -> Result<()> {
    let repo = Repository::new()?;
    let first = repo.commit(&[("a.yaml", Some(&config_map("one", "1")))])?;
    let site = Site::start(None).await?;
    site.follow("repo", json!({"url": repo.url()})).await?;
    site.kustomize("all", json!({"serviceAccountName": "deployer"}))
        .await?;
    site.until_ready("all", "False", "(Forbidden)").await?;
    ensure!(site.get(&map("one")).await?["code"] == 404);
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "deployer"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"},
        "subjects": [{"kind": "ServiceAccount", "name": "deployer", "namespace": "default"}]});
    let made = site
        .api
        .call(
            "POST",
            "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings",
            Some(&binding),
        )
        .await?;
    ensure!(made.code == 201, "{}", made.text);
    site.until_ready("all", "True", &first).await?;
    site.close().await
}
