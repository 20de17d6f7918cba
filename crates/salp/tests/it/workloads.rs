//! Workloads other than Deployments, run by a whole site: each is seen through kubectl only.

use crate::harness::{Registry, Site, eventually, repo_file};

fn set(kind: &str, name: &str, image: &str, more: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec:\n\
         {more}  selector: {{matchLabels: {{app: {name}}}}}\n  template:\n\
         \x20   metadata: {{labels: {{app: {name}}}}}\n    spec:\n\
         \x20     terminationGracePeriodSeconds: 1\n      containers:\n\
         \x20     - {{name: c, image: {image}, ports: [{{containerPort: 8080}}]}}\n"
    )
}

/// Upstream: `kubectl rollout` of StatefulSets and DaemonSets; "Safely Drain a Node".
#[test]
fn sets_roll_out_undo_and_heed_their_budget() {
    let (registry, site) = (Registry::start(), Site::start());
    let image = registry.push(&repo_file("examples/hello/hello.wasm"), "hello:1");
    site.apply(&set(
        "StatefulSet",
        "db",
        &image,
        "  replicas: 2\n  serviceName: db\n",
    ));
    site.apply(&set("DaemonSet", "log", &image, ""));
    let wait = "--timeout=60s";
    site.ok(&["rollout", "status", "statefulset/db", wait]);
    site.ok(&["rollout", "status", "daemonset/log", wait]);
    let names = site.ok(&["get", "pods", "-l", "app=db", "-o", "name"]);
    assert_eq!(names, "pod/db-0\npod/db-1\n");
    site.ok(&["rollout", "restart", "statefulset/db", "daemonset/log"]);
    site.ok(&["rollout", "status", "statefulset/db", wait]);
    site.ok(&["rollout", "status", "daemonset/log", wait]);
    site.ok(&["rollout", "undo", "statefulset/db"]);
    site.ok(&["rollout", "status", "statefulset/db", wait]);
    site.says(
        &["rollout", "history", "statefulset/db"],
        "3         <none>",
    );
    site.apply(
        "apiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata: {name: db}\n\
         spec: {minAvailable: 2, selector: {matchLabels: {app: db}}}\n",
    );
    let node = site.json(&["get", "nodes"])["items"][0]["metadata"]["name"].clone();
    let node = node.as_str().expect("a node");
    site.ok(&[
        "wait",
        "pdb/db",
        "--for=jsonpath={.status.currentHealthy}=2",
        wait,
    ]);
    let drain = [
        "drain",
        node,
        "--ignore-daemonsets",
        "--timeout=2s",
        "--pod-selector=app=db",
    ];
    let refused = site.fails(&drain);
    assert!(
        refused.contains("Cannot evict pod as it would violate"),
        "{refused}"
    );
    site.ok(&["delete", "pdb", "db"]);
    site.ok(&[
        "drain",
        node,
        "--ignore-daemonsets",
        wait,
        "--pod-selector=app=db",
    ]);
    site.ok(&["uncordon", node]);
    site.ok(&["rollout", "status", "statefulset/db", wait]);
}

/// Upstream: "Running Automated Tasks with a CronJob", and a quota that its pods come up to.
#[test]
fn cron_jobs_start_jobs_and_quotas_bound_them() {
    let (registry, site) = (Registry::start(), Site::start());
    let image = registry.push(&repo_file("examples/job/job.wasm"), "job:1");
    site.apply(&format!(
        "apiVersion: batch/v1\nkind: CronJob\nmetadata: {{name: tick}}\nspec:\n\
         \x20 schedule: '@every 1s'\n  concurrencyPolicy: Forbid\n  jobTemplate:\n    spec:\n\
         \x20     template:\n        spec:\n          restartPolicy: Never\n\
         \x20         containers: [{{name: c, image: {image}}}]\n"
    ));
    eventually("a success", || {
        let tick = site.json(&["get", "cronjob", "tick"]);
        let last = &tick["status"]["lastSuccessfulTime"];
        last.as_str()
            .map(drop)
            .ok_or_else(|| tick["status"].to_string())
    });
    site.ok(&[
        "patch",
        "cronjob",
        "tick",
        "-p",
        r#"{"spec":{"suspend":true}}"#,
    ]);
    site.ok(&["create", "job", "by-hand", "--from=cronjob/tick"]);
    site.ok(&[
        "wait",
        "--for=condition=Complete",
        "job/by-hand",
        "--timeout=60s",
    ]);
    site.ok(&["create", "quota", "few", "--hard=count/jobs.batch=0,pods=0"]);
    let refused = site.fails(&["create", "job", "again", "--from=cronjob/tick"]);
    assert!(
        refused.contains("exceeded quota: few, requested: count/jobs.batch=1"),
        "{refused}"
    );
}
