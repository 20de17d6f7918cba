//! The agent against a runtime, images and an API server in memory, in virtual time.

use crate::fakes::{EPOCH, FakeApi, FakeRuntime, Rig, epoch, one, pod};
use crate::image::PullFailure;
use client::Clock;
use expect_test::expect;
use runtime::RuntimeError;
use serde_json::{Value, json};

#[tokio::test(start_paused = true)]
async fn a_pod_runs_and_its_status_tells() {
    let rig = Rig::new().await;
    rig.apply("web", one());
    rig.until("running", |r| r.api.status("web")["phase"] == "Running")
        .await;
    expect![[r#"
        0 run_sandbox web
        0 create web/c/0
        0 start web/c/0
    "#]]
    .assert_eq(&rig.runtime.told());
    expect![[r#"
        Pulling: Pulling image "hello:1"
        Pulled: Successfully pulled image "hello:1" in 0ms (0ms including waiting). Image size: 9 bytes.
        Created: Container created
        Started: Container started
    "#]]
    .assert_eq(&rig.api.events());
    expect![[r#"
        {
          "conditions": [
            "PodReadyToStartContainers=True",
            "Initialized=True",
            "Ready=True",
            "ContainersReady=True",
            "PodScheduled=True"
          ],
          "container": {
            "containerID": "fake://web/c/0",
            "image": "hello:1",
            "imageID": "hello:1@sha256:00",
            "lastState": {},
            "name": "c",
            "ready": true,
            "restartCount": 0,
            "started": true,
            "state": {
              "running": {
                "startedAt": "2026-01-01T00:00:00Z"
              }
            }
          },
          "podIP": "127.42.0.2",
          "qosClass": "BestEffort"
        }"#]]
    .assert_eq(&summary(&rig.api.status("web")));
    // The whole way up cost one write.
    let patches = rig
        .api
        .writes
        .lock()
        .iter()
        .filter(|(to, _)| to.contains("/pods/"))
        .count();
    assert_eq!(patches, 1);
    rig.scope.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_both_kinds_is_known_as_such_before_its_first_guest() {
    let rig = Rig::new().await;
    let spec = json!({
        "initContainers": [{"name": "i", "image": "hello:1"}],
        "containers": [{"name": "c", "image": "box:1"}],
    });
    rig.apply("web", spec);
    rig.until("made", |r| r.runtime.told().contains("start web/i/0"))
        .await;
    expect![[r#"
        0 run_sandbox web
        0 run_sandbox web of both kinds
        0 create web/i/0
        0 start web/i/0
    "#]]
    .assert_eq(&rig.runtime.told());
    // Not one that is only looked at by containers.
    let spec = json!({
        "containers": [{"name": "c", "image": "hello:1"}],
        "ephemeralContainers": [{"name": "e", "image": "box:1"}],
    });
    rig.apply("seen", spec);
    rig.until("made", |r| r.runtime.told().contains("start seen/c/0"))
        .await;
    assert!(!rig.runtime.told().contains("run_sandbox seen of both"));
    rig.scope.close().await;
}

fn summary(status: &Value) -> String {
    let conditions: Vec<String> = status["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|c| {
            format!(
                "{}={}",
                c["type"].as_str().unwrap(),
                c["status"].as_str().unwrap()
            )
        })
        .collect();
    let short = json!({"container": status["containerStatuses"][0], "conditions": conditions,
        "podIP": status["podIP"], "qosClass": status["qosClass"]});
    serde_json::to_string_pretty(&short).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_crashing_container_is_restarted_ever_later() {
    let rig = Rig::new().await;
    rig.apply("web", one());
    for attempt in 0..5 {
        let started = format!("start web/c/{attempt}");
        rig.until(&started, |r| r.runtime.told().contains(&started))
            .await;
        rig.runtime.exit("web", "c", 1);
    }
    rig.until("back-off", |r| {
        r.container("web", "/state/waiting/message")
            == "back-off 1m20s restarting failed container=c pod=web_default(web)"
    })
    .await;
    assert_eq!(
        rig.container("web", "/state/waiting/reason"),
        "CrashLoopBackOff"
    );
    assert_eq!(rig.container("web", "/restartCount"), 4);
    assert_eq!(rig.container("web", "/lastState/terminated/exitCode"), 1);
    assert_eq!(rig.api.status("web")["phase"], "Running");
    let starts: Vec<u64> = rig
        .runtime
        .calls
        .lock()
        .iter()
        .filter(|(_, what)| what.starts_with("start"))
        .map(|(at, _)| *at)
        .collect();
    expect!["[0, 0, 10, 30, 70]"].assert_eq(&format!("{starts:?}"));
    assert!(
        rig.api
            .events()
            .contains("BackOff: Back-off restarting failed container c in pod web_default(web)")
    );
    rig.scope.close().await;
}

#[tokio::test(start_paused = true)]
async fn deletion_stops_with_grace_then_deletes_for_good() {
    let rig = Rig::new().await;
    rig.apply("web", one());
    rig.until("running", |r| r.api.status("web")["phase"] == "Running")
        .await;
    rig.delete("web", 7);
    rig.until("deleted", |r| {
        r.api.wrote("DELETE /api/v1/namespaces/default/pods/web")
    })
    .await;
    expect![[r#"
        0 run_sandbox web
        0 create web/c/0
        0 start web/c/0
        0 stop web/c/0 within 7000 ms
        0 remove_sandbox web
    "#]]
    .assert_eq(&rig.runtime.told());
    assert_eq!(rig.api.status("web")["phase"], "Succeeded");
    let delete = rig
        .api
        .writes
        .lock()
        .iter()
        .find(|(to, _)| to.starts_with("DELETE"))
        .map(|(_, body)| body.clone())
        .unwrap();
    assert_eq!(delete["gracePeriodSeconds"], 0);
    assert_eq!(delete["preconditions"]["uid"], "web");
    let uid = crate::pod::Uid::from("web");
    rig.agent.gone(&uid);
    rig.until("forgotten", |r| r.agent.slot(&uid).is_none())
        .await;
    assert!(!rig.dir.path().join("pods/web").exists());
    assert!(!rig.dir.path().join("logs/pods/default_web_web").exists());
    rig.scope.close().await;
}

#[tokio::test(start_paused = true)]
async fn init_containers_run_in_order_before_a_job_completes() {
    let rig = Rig::new().await;
    rig.apply(
        "job",
        json!({
            "initContainers": [{"name": "i1", "image": "i:1"},
                {"name": "side", "image": "i:1", "restartPolicy": "Always"}],
            "containers": [{"name": "c", "image": "hello:1"}],
            "restartPolicy": "Never",
        }),
    );
    rig.until("first init", |r| {
        r.runtime.told().contains("start job/i1/0")
    })
    .await;
    rig.until("waits", |r| r.api.status("job")["phase"] == "Pending")
        .await;
    assert_eq!(
        rig.container("job", "/state/waiting/reason"),
        "PodInitializing"
    );
    rig.runtime.exit("job", "i1", 0);
    rig.until("main", |r| r.runtime.told().contains("start job/c/0"))
        .await;
    rig.until("running", |r| r.api.status("job")["phase"] == "Running")
        .await;
    rig.runtime.exit("job", "c", 0);
    rig.until("done", |r| r.api.status("job")["phase"] == "Succeeded")
        .await;
    rig.until("released", |r| r.runtime.told().contains("remove_sandbox"))
        .await;
    expect![[r#"
        0 run_sandbox job
        0 create job/i1/0
        0 start job/i1/0
        0 create job/side/0
        0 start job/side/0
        0 create job/c/0
        0 start job/c/0
        0 stop job/side/0 within 30000 ms
        0 remove_sandbox job
    "#]]
    .assert_eq(&rig.runtime.told());
    let status = rig.api.status("job");
    assert_eq!(status["conditions"][2]["reason"], "PodCompleted");
    rig.scope.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_container_waits_for_the_images_of_its_volumes() {
    let rig = Rig::new().await;
    let mut spec = one();
    spec["volumes"] = json!([
        {"name": "model", "image": {"reference": "model:1", "pullPolicy": "IfNotPresent"}},
        {"name": "unused", "image": {"reference": "unused:1"}},
    ]);
    spec["containers"][0]["volumeMounts"] = json!([{"name": "model", "mountPath": "/model"}]);
    rig.apply("web", spec);
    let reason = |r: &Rig| r.container("web", "/state/waiting/reason");
    rig.until("error", |r| reason(r) == "ErrImagePull").await;
    rig.until("back-off", |r| reason(r) == "ImagePullBackOff")
        .await;
    assert_eq!(
        rig.container("web", "/state/waiting/message"),
        "Back-off pulling image \"model:1\": ErrImagePull: the store gave no files"
    );
    assert_eq!(rig.runtime.told(), "0 run_sandbox web\n");
    let digest = "ab".repeat(32);
    let files = rig.dir.path().join("images/volumes").join(&digest);
    std::fs::create_dir_all(files.join("conf")).unwrap();
    *rig.images.files.lock() = Some(files.clone());
    rig.until("running", |r| r.api.status("web")["phase"] == "Running")
        .await;
    let pod_dir = crate::volumes::pod_dir(rig.dir.path(), "web");
    let links = pod_dir.join("volumes/kubernetes.io~image");
    assert_eq!(std::fs::read_link(links.join("model")).unwrap(), files);
    assert!(!links.join("unused").exists());
    let used = crate::images_in_use(rig.dir.path());
    assert_eq!(
        used,
        [format!("sha256:{digest}"), "sha256:00".into()].into()
    );
    let told = rig.api.events();
    for line in [
        "Failed: Error: ErrImagePull",
        "BackOff: Back-off pulling image \"model:1\"",
        "Pulling: Pulling image \"model:1\"",
        "Pulling: Pulling image \"hello:1\"",
    ] {
        assert!(told.lines().any(|l| l == line), "{line}: {told}");
    }
    rig.delete("web", 0);
    rig.until("removed", |r| r.runtime.told().contains("remove_sandbox"))
        .await;
    rig.until("links removed", |_| !pod_dir.exists()).await;
    assert!(files.is_dir(), "it is the store's");
    rig.scope.close().await;
}

#[tokio::test(start_paused = true)]
async fn an_image_that_can_not_be_had_is_tried_again_ever_later() {
    let rig = Rig::new().await;
    *rig.images.failure.lock() = Some(PullFailure {
        reason: "ErrImagePull",
        message: "not found".into(),
        unreachable: false,
    });
    rig.apply("web", one());
    let reason = |r: &Rig| r.container("web", "/state/waiting/reason");
    rig.until("error", |r| reason(r) == "ErrImagePull").await;
    rig.until("back-off", |r| reason(r) == "ImagePullBackOff")
        .await;
    assert_eq!(
        rig.container("web", "/state/waiting/message"),
        "Back-off pulling image \"hello:1\": ErrImagePull: not found"
    );
    *rig.images.failure.lock() = None;
    rig.until("running", |r| r.api.status("web")["phase"] == "Running")
        .await;
    let started = rig
        .runtime
        .calls
        .lock()
        .iter()
        .find(|(_, w)| w.starts_with("start"))
        .unwrap()
        .0;
    assert_eq!(started, 10);
    expect![[r#"
        Pulling: Pulling image "hello:1"
        Failed: Failed to pull image "hello:1": not found
        Failed: Error: ErrImagePull
        BackOff: Back-off pulling image "hello:1"
    "#]]
    .assert_eq(
        &rig.api
            .events()
            .lines()
            .take(4)
            .map(|l| format!("{l}\n"))
            .collect::<String>(),
    );
    rig.scope.close().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_missing_or_refused_is_told_by_reason() {
    let rig = Rig::new().await;
    rig.apply(
        "web",
        json!({"containers": [{"name": "c", "image": "hello:1",
            "envFrom": [{"configMapRef": {"name": "nope"}}]}]}),
    );
    let reason = |r: &Rig, pod: &str| r.container(pod, "/state/waiting/reason");
    rig.until("config error", |r| {
        reason(r, "web") == "CreateContainerConfigError"
    })
    .await;
    assert_eq!(
        rig.container("web", "/state/waiting/message"),
        "configmap \"nope\" not found"
    );
    *rig.runtime.create_error.lock() = Some(RuntimeError::CreateContainer(
        "component imports missing `a:b/c`".into(),
    ));
    rig.apply("bad", one());
    rig.until("create error", |r| {
        reason(r, "bad") == "CreateContainerError"
    })
    .await;
    assert_eq!(
        rig.container("bad", "/state/waiting/message"),
        "component imports missing `a:b/c`"
    );
    rig.apply(
        "late",
        json!({"containers": [{"name": "c", "image": "hello:1"}],
        "volumes": [{"name": "v", "configMap": {"name": "nope"}}]}),
    );
    rig.until("mount failure", |r| {
        r.api.events().contains(
            "FailedMount: MountVolume.SetUp failed for volume \"v\" : configmap \"nope\" not found",
        )
    })
    .await;
    rig.scope.close().await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_restarts_touches_nothing_that_runs() {
    let rig = Rig::new().await;
    rig.apply("web", one());
    rig.until("running", |r| r.api.status("web")["phase"] == "Running")
        .await;
    rig.runtime.exit("web", "c", 1);
    rig.until("restarted", |r| r.container("web", "/restartCount") == 1)
        .await;
    let mut known = pod("web", one());
    known.status = serde_json::from_value(rig.api.status("web")).unwrap();
    rig.scope.close().await;

    let calls = rig.runtime.told();
    let clock = Clock::following_tokio(EPOCH.parse().unwrap());
    let rig = Rig::on(rig.dir, rig.runtime, clock, FakeApi::default()).await;
    rig.agent.update(known.into(), true);
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    assert_eq!(rig.runtime.told(), calls);
    // Nor does it tell the API server what that knows.
    assert_eq!(rig.api.status("web"), json!({}));
    rig.runtime.exit("web", "c", 1);
    rig.until("restarted", |r| r.container("web", "/restartCount") == 2)
        .await;
    rig.scope.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_sandbox_is_made_again_at_the_same_address() {
    let rig = Rig::new().await;
    rig.apply("web", one());
    rig.until("running", |r| r.api.status("web")["phase"] == "Running")
        .await;
    rig.runtime.crash();
    rig.until("again", |r| r.runtime.told().contains("start web/c/1"))
        .await;
    rig.until("told", |r| r.container("web", "/restartCount") == 1)
        .await;
    assert_eq!(
        rig.container("web", "/lastState/terminated/reason"),
        "ContainerStatusUnknown"
    );
    assert_eq!(rig.api.status("web")["podIP"], "127.42.0.2");
    assert!(rig.api.events().contains("SandboxChanged"));
    rig.scope.close().await;
}

#[tokio::test(start_paused = true)]
async fn pods_run_from_the_checkpoint_without_an_api_server() {
    let rig = Rig::new().await;
    rig.api.config_maps.lock().insert(
        "conf".into(),
        json!({"metadata": {"name": "conf", "namespace": "default"}, "data": {"COLOR": "red"}}),
    );
    let spec = json!({"containers": [{"name": "c", "image": "hello:1",
        "envFrom": [{"configMapRef": {"name": "conf"}}]}]});
    rig.apply("web", spec.clone());
    rig.until("running", |r| r.api.status("web")["phase"] == "Running")
        .await;
    rig.scope.close().await;

    // The machine boots: nothing runs, nobody answers.
    let clock = Clock::following_tokio(EPOCH.parse().unwrap());
    let api = FakeApi::default();
    *api.down.lock() = true;
    let rig = Rig::on(rig.dir, FakeRuntime::new(clock.clone()), clock, api).await;
    rig.until("running", |r| r.runtime.told().contains("start web/c/0"))
        .await;
    let env = rig.runtime.specs.lock()[0].env.clone();
    assert!(env.contains(&("COLOR".into(), "red".into())), "{env:?}");
    assert!(rig.api.writes.lock().is_empty());
    // Contact: the same pod goes on, another was deleted meanwhile.
    *rig.api.down.lock() = false;
    let before = rig.runtime.told();
    rig.apply("web", spec);
    rig.until("told", |r| r.api.status("web")["phase"] == "Running")
        .await;
    assert_eq!(rig.runtime.told(), before);
    rig.agent.retain(&std::collections::HashSet::new());
    rig.until("ended", |r| r.runtime.told().contains("remove_sandbox web"))
        .await;
    rig.scope.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_the_pod() {
    let rig = Rig::new().await;
    let mut spec = one();
    spec["activeDeadlineSeconds"] = json!(60);
    rig.apply("web", spec);
    rig.until("failed", |r| r.api.status("web")["phase"] == "Failed")
        .await;
    assert_eq!(rig.api.status("web")["reason"], "DeadlineExceeded");
    rig.until("stopped", |r| r.runtime.told().contains("60 stop web/c/0"))
        .await;
    rig.scope.close().await;
}

#[tokio::test(start_paused = true)]
async fn many_pods_come_up_each_for_one_write() {
    let rig = Rig::new().await;
    for n in 0..500 {
        rig.apply(&format!("p{n}"), one());
    }
    rig.until("all told", |r| {
        let writes = r.api.writes.lock();
        writes
            .iter()
            .filter(|(to, _)| to.ends_with("/status"))
            .count()
            >= 500
    })
    .await;
    let early = rig
        .api
        .writes
        .lock()
        .iter()
        .filter(|(to, body)| to.ends_with("/status") && body["status"]["phase"] != "Running")
        .count();
    assert_eq!(early, 0);
    rig.scope.close().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_status_says_to_run_and_no_runtime_has_is_run_again() {
    let rig = Rig::new().await;
    let mut known = pod("web", one());
    known.status = serde_json::from_value(json!({"phase": "Running", "podIP": "127.42.0.9",
        "startTime": EPOCH, "containerStatuses": [{"name": "c", "image": "hello:1",
            "imageID": "x", "ready": true, "restartCount": 3,
            "state": {"running": {"startedAt": EPOCH}}}]}))
    .unwrap();
    rig.agent.update(known.into(), true);
    rig.until("again", |r| r.container("web", "/restartCount") == 4)
        .await;
    expect![[r#"
        0 run_sandbox web
        0 create web/c/4
        0 start web/c/4
    "#]]
    .assert_eq(&rig.runtime.told());
    assert_eq!(
        rig.runtime
            .sandboxes
            .lock()
            .values()
            .next()
            .unwrap()
            .ip
            .to_string(),
        "127.42.0.9"
    );
    rig.scope.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_drained_node_ends_containers_and_tells_nobody() {
    let rig = Rig::new().await;
    let mut spec = one();
    spec["restartPolicy"] = json!("Never");
    spec["terminationGracePeriodSeconds"] = json!(3);
    rig.apply("job", spec);
    rig.until("running", |r| r.api.status("job")["phase"] == "Running")
        .await;
    rig.agent.drain_all().await;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert!(
        rig.runtime
            .told()
            .ends_with("stop job/c/0 within 3000 ms\n")
    );
    assert_eq!(rig.api.status("job")["phase"], "Running");
    rig.scope.close().await;
}

#[tokio::test(start_paused = true)]
async fn probes_decide_on_ready_and_on_restarts() {
    let rig = Rig::new().await;
    // Nobody listens there: a port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.42.0.2:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let probe = |threshold: u32| json!({"tcpSocket": {"port": port}, "periodSeconds": 5, "failureThreshold": threshold});
    rig.apply(
        "web",
        json!({"terminationGracePeriodSeconds": 9, "containers": [{"name": "c", "image": "hello:1",
        "readinessProbe": probe(1), "livenessProbe": probe(3)}]}),
    );
    rig.until("running", |r| r.api.status("web")["phase"] == "Running")
        .await;
    assert_eq!(rig.container("web", "/ready"), false);
    assert_eq!(rig.container("web", "/started"), true);
    rig.until("killed", |r| r.runtime.told().contains("stop web/c/0"))
        .await;
    assert!(
        rig.runtime
            .told()
            .contains("10 stop web/c/0 within 9000 ms"),
        "{}",
        rig.runtime.told()
    );
    let events = rig.api.events();
    assert!(
        events.contains("Killing: Container c failed liveness probe, will be restarted"),
        "{events}"
    );
    assert!(
        events.contains("Unhealthy: Liveness probe failed: dial tcp 127.42.0.2:"),
        "{events}"
    );
    rig.until("restarted", |r| r.container("web", "/restartCount") == 1)
        .await;
    // Somebody listens now.
    let _listener = std::net::TcpListener::bind(("127.42.0.2", port)).unwrap();
    rig.until("ready", |r| r.container("web", "/ready") == true)
        .await;
    rig.scope.close().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_else_is_probed_before_startup_passed() {
    let rig = Rig::new().await;
    let port = std::net::TcpListener::bind("127.42.0.2:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    rig.apply(
        "web",
        json!({"containers": [{"name": "c", "image": "hello:1",
        "startupProbe": {"tcpSocket": {"port": port}, "periodSeconds": 1, "failureThreshold": 100},
        "livenessProbe": {"exec": {"command": ["true"]}}}]}),
    );
    rig.until("failing", |r| {
        r.api.events().contains("Unhealthy: Startup probe failed")
    })
    .await;
    assert_eq!(rig.container("web", "/started"), false);
    assert!(!rig.api.events().contains("Liveness"));
    let _listener = std::net::TcpListener::bind(("127.42.0.2", port)).unwrap();
    rig.until("ready", |r| r.container("web", "/ready") == true)
        .await;
    let words = "Unhealthy: Liveness probe errored: exec: this runtime runs no further programs";
    rig.until("told", |r| r.api.events().contains(words)).await;
    rig.scope.close().await;
}

#[tokio::test(start_paused = true)]
async fn contracts_are_kept_when_the_server_is_out_of_reach() {
    let rig = Rig::new().await;
    for (name, annotations) in [
        (
            "stop",
            json!({"salp.dev/when-disconnected": "stop", "salp.dev/after": "45s"}),
        ),
        ("keep", json!({"salp.dev/when-disconnected": "keep"})),
        ("plain", json!({})),
    ] {
        let mut made = pod(name, one());
        made.metadata.annotations = serde_json::from_value(annotations).unwrap();
        rig.agent.update(std::sync::Arc::new(made), true);
    }
    rig.until("running", |r| r.api.status("stop")["phase"] == "Running")
        .await;
    // As long as renewals are answered nothing happens.
    for _ in 0..10 {
        tokio::time::sleep(std::time::Duration::from_secs(10)).await;
        rig.agent.contacted(rig.agent.contact.now(), &epoch(0));
    }
    assert_eq!(rig.api.status("stop")["phase"], "Running");
    let cut_off = rig.agent.contact.now();
    rig.until("stopped", |r| r.api.status("stop")["phase"] == "Failed")
        .await;
    let took = rig.agent.contact.now() - cut_off;
    assert!((45_000..60_000).contains(&took), "{took}");
    assert_eq!(rig.api.status("stop")["reason"], "NodeDisconnected");
    assert_eq!(rig.api.status("keep")["phase"], "Running");
    assert_eq!(rig.api.status("plain")["phase"], "Running");
    // It is over for good: the server may run another by now.
    rig.agent.contacted(rig.agent.contact.now(), &epoch(0));
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    assert_eq!(rig.api.status("stop")["phase"], "Failed");
    rig.scope.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_pause_of_the_machine_is_no_way_around_a_contract() {
    let rig = Rig::new().await;
    let mut made = pod("stop", one());
    let annotations = json!({"salp.dev/when-disconnected": "stop", "salp.dev/after": "45s"});
    made.metadata.annotations = serde_json::from_value(annotations).unwrap();
    rig.agent.update(std::sync::Arc::new(made), true);
    rig.until("running", |r| r.api.status("stop")["phase"] == "Running")
        .await;
    // Nothing ran for two minutes, and the first thing to run is a renewal.
    tokio::time::advance(std::time::Duration::from_secs(120)).await;
    rig.agent.contacted(rig.agent.contact.now(), &epoch(0));
    rig.until("stopped", |r| r.api.status("stop")["phase"] == "Failed")
        .await;
    rig.scope.close().await;
}

fn stopping(name: &str) -> std::sync::Arc<k8s_openapi::api::core::v1::Pod> {
    let mut made = pod(name, one());
    let annotations = json!({"salp.dev/when-disconnected": "stop", "salp.dev/after": "45s"});
    made.metadata.annotations = serde_json::from_value(annotations).unwrap();
    std::sync::Arc::new(made)
}

#[tokio::test(start_paused = true)]
async fn what_must_stop_waits_for_the_first_contact() {
    let known = api::partition::Contact::known(None, Some(epoch(0)));
    let rig = Rig::in_contact(known).await;
    rig.agent.update(stopping("stop"), true);
    rig.agent
        .update(std::sync::Arc::new(pod("plain", one())), true);
    rig.until("running", |r| r.api.status("plain")["phase"] == "Running")
        .await;
    tokio::time::sleep(std::time::Duration::from_secs(120)).await;
    assert_ne!(rig.api.status("stop")["phase"], "Running");
    rig.agent.contacted(rig.agent.contact.now(), &epoch(0));
    rig.until("running", |r| r.api.status("stop")["phase"] == "Running")
        .await;
    rig.scope.close().await;
}

#[tokio::test(start_paused = true)]
async fn an_epoch_that_is_over_ends_what_must_stop() {
    let rig = Rig::new().await;
    rig.agent.update(stopping("stop"), true);
    rig.agent
        .update(std::sync::Arc::new(pod("plain", one())), true);
    for name in ["stop", "plain"] {
        rig.until("running", |r| r.api.status(name)["phase"] == "Running")
            .await;
    }
    // Its clock stood still, as a paused virtual machine's: only the epoch tells.
    rig.agent.contacted(rig.agent.contact.now(), &epoch(1));
    rig.until("stopped", |r| r.api.status("stop")["phase"] == "Failed")
        .await;
    assert_eq!(rig.api.status("plain")["phase"], "Running");
    rig.agent.update(stopping("next"), true);
    rig.until("running", |r| r.api.status("next")["phase"] == "Running")
        .await;
    rig.scope.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_told_ready_again_when_the_server_marked_it() {
    let rig = Rig::new().await;
    rig.apply("web", one());
    let ready = |r: &Rig| {
        let conditions = r.api.status("web")["conditions"].clone();
        let all = conditions.as_array().cloned().unwrap_or_default();
        all.iter()
            .any(|c| c["type"] == "Ready" && c["status"] == "True")
    };
    rig.until("ready", ready).await;
    // As the node controller does with the pods of a silent node.
    let marked = json!({"conditions": [{"type": "Ready", "status": "False"}]});
    let written = (
        "SERVER /pods/web/status".to_owned(),
        json!({"status": marked}),
    );
    rig.api.writes.lock().push(written);
    assert!(!ready(&rig));
    let mut told = pod("web", one());
    told.metadata.resource_version = Some("1000000".to_owned());
    told.status = serde_json::from_value(marked).unwrap();
    rig.agent.update(std::sync::Arc::new(told), true);
    rig.until("ready again", ready).await;
    rig.scope.close().await;
}
