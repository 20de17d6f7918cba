//! Fields of container pods, one by one: control groups, profiles, ephemeral containers, shared
//! processes, whose files are whose. Images and what needs root are as in `containers`.

use crate::containers::{groups, phase, pod, waits, with_busybox};
use crate::harness::{Site, text};
use serde_json::{Value, json};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// What a control group's file says, by version 1's name or version 2's.
fn of_group(groups: &[PathBuf], names: [&str; 2]) -> String {
    let files = groups.iter().flat_map(|g| names.map(|name| g.join(name)));
    let text = files.map(std::fs::read_to_string).find_map(Result::ok);
    text.unwrap_or_else(|| panic!("none of {names:?} in {groups:?}"))
        .trim()
        .to_owned()
}

#[test]
fn control_groups_are_laid_out_by_quality_of_service() {
    let Some((_registry, image, site)) = with_busybox(&["--pod-max-pids", "20"]) else {
        return;
    };
    let all = json!({"cpu": "200m", "memory": "64Mi"});
    let greedy = "i=0; while [ $i -lt 40 ]; do sleep 300 & i=$((i+1)); done; sleep 300";
    for (name, resources, command) in [
        ("best", json!({}), "sleep 300"),
        ("burst", json!({"requests": all}), "sleep 300"),
        ("sure", json!({"limits": all}), "sleep 300"),
        ("greedy", json!({}), greedy),
    ] {
        site.apply(&pod(
            name,
            json!({"image": image, "command": ["sh", "-c", command], "resources": resources}),
            json!({}),
        ));
    }
    let facts = |name: &str| {
        let pod = phase(&site, name, "Running");
        let uid = pod["metadata"]["uid"].as_str().expect("uid").to_owned();
        let groups = groups(&uid);
        let class = groups[0].parent().expect("a group above").to_owned();
        let class = class
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let said = pod["status"]["qosClass"]
            .as_str()
            .expect("class")
            .to_owned();
        (said, class, groups)
    };
    let (said, class, best) = facts("best");
    assert_eq!((&*said, &*class), ("BestEffort", "besteffort"));
    let (said, class, burst) = facts("burst");
    assert_eq!((&*said, &*class), ("Burstable", "burstable"));
    let (said, class, sure) = facts("sure");
    assert_eq!((&*said, &*class), ("Guaranteed", "kubepods"));

    // Version 2 counts weights from 1 to 10000.
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let (least, fifth) = if unified { ("1", "8") } else { ("2", "204") };
    let shares = ["cpu.shares", "cpu.weight"];
    assert_eq!(of_group(&best, shares), least);
    assert_eq!(of_group(&burst, shares), fifth);
    let memory = ["memory.limit_in_bytes", "memory.max"];
    assert_eq!(of_group(&sure, memory), (64 << 20).to_string());
    assert_eq!(of_group(&sure, ["pids.max"; 2]), "20");
    let limited = |group: &[PathBuf]| of_group(group, memory).parse::<u64>();
    assert!(limited(&burst).unwrap_or(u64::MAX) > 1 << 40);
    let own: Vec<PathBuf> = sure.iter().map(|group| group.join("main-0")).collect();
    let quota = of_group(&own, ["cpu.cfs_quota_us", "cpu.max"]);
    assert!(quota.starts_with("20000"), "{quota}");
    phase(&site, "greedy", "Failed");
    let log = site.ok(&["logs", "greedy"]);
    assert!(log.contains("can't fork"), "{log}");

    // Who asks for more goes later. Below zero only where the machine lets processes go there.
    let score = |name: &str| -> i32 {
        let said = site.ok(&["exec", name, "--", "cat", "/proc/1/oom_score_adj"]);
        said.trim().parse().expect("a number")
    };
    let (best_score, burst_score, sure_score) = (score("best"), score("burst"), score("sure"));
    assert_eq!(best_score, 1000);
    assert!((3..1000).contains(&burst_score), "{burst_score}");
    assert!(sure_score == -997 || sure_score == 0, "{sure_score}");

    // What the pod as a whole uses is more than its containers' own.
    let stats = site.ok(&[
        "get",
        "--raw",
        &format!("/api/v1/nodes/{}/proxy/stats/summary", node(&site)),
    ]);
    let stats: Value = serde_json::from_str(&stats).expect("JSON");
    let pods = stats["pods"].as_array().expect("pods");
    let sure_stats = pods.iter().find(|p| p["podRef"]["name"] == "sure");
    let used = sure_stats.expect("its stats")["memory"]["workingSetBytes"].as_u64();
    assert!(used.is_some_and(|bytes| bytes > 0), "{stats}");

    let groups_of = [best, burst, sure].concat();
    site.ok(&[
        "delete",
        "pod",
        "best",
        "burst",
        "sure",
        "greedy",
        "--timeout=60s",
    ]);
    let left: Vec<_> = groups_of.iter().filter(|group| group.exists()).collect();
    assert_eq!(left, Vec::<&PathBuf>::new());
}

fn node(site: &Site) -> String {
    let nodes = site.json(&["get", "nodes"]);
    nodes["items"][0]["metadata"]["name"]
        .as_str()
        .expect("a node")
        .to_owned()
}

#[test]
fn what_can_t_be_run_is_not_told_to_have_started() {
    let Some((_registry, image, site)) = with_busybox(&[]) else {
        return;
    };
    site.apply(&pod(
        "lost",
        json!({"image": image, "command": ["/no-such"]}),
        json!({"restartPolicy": "Always"}),
    ));
    let looping = "/status/containerStatuses/0/state/waiting/reason";
    let pod = site.wait_for(&["get", "pod", "lost"], looping, |r| {
        r == "CrashLoopBackOff"
    });
    let last = &pod["status"]["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!(last["reason"], "StartError", "{last}");
    assert_eq!(last["exitCode"], 128, "{last}");
    let about = "involvedObject.name=lost";
    let failed = |events: &Value| {
        let events = events.as_array().into_iter().flatten();
        let mut words = events.filter(|e| e["reason"] == "Failed");
        words.any(|e| e["message"].as_str().is_some_and(|m| m.contains("no-such")))
    };
    let get = ["get", "events", "--field-selector", about];
    let events = site.wait_for(&get, "/items", failed);
    let events = events["items"].as_array().cloned().unwrap_or_default();
    assert!(
        events.iter().all(|e| e["reason"] != "Started"),
        "{events:?}"
    );
    // One that is there and no program is known to be none only when it is executed: that is in
    // the container's log.
    site.apply(
        r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "text"}, "data": {"text": "no program\n"}}"#,
    );
    site.apply(&self::pod(
        "text",
        json!({"image": image, "command": ["/vol/text"],
            "volumeMounts": [{"name": "text", "mountPath": "/vol"}]}),
        json!({"volumes": [{"name": "text", "configMap": {"name": "text", "defaultMode": 0o755}}]}),
    ));
    let ended = phase(&site, "text", "Failed");
    let last = &ended["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(
        (&last["reason"], &last["exitCode"]),
        (&json!("Error"), &json!(1))
    );
    assert_eq!(
        site.ok(&["logs", "text"]),
        "exec: \"/vol/text\": exec format error\n"
    );
}

#[test]
fn kubectl_debug_sees_its_target_s_processes() {
    let Some((_registry, image, site)) = with_busybox(&[]) else {
        return;
    };
    site.apply(&pod(
        "web",
        json!({"image": image, "command": ["sleep", "1234"]}),
        json!({"restartPolicy": "Always"}),
    ));
    phase(&site, "web", "Running");
    let debug = |name: &str, command: &str| {
        let own = format!("--image={image}");
        let mut all = vec!["debug", "web", "-i", &own, "--target=main", "-c", name];
        all.extend(["--", "sh", "-c", command]);
        let mut kubectl = site.kubectl_command(&all);
        let mut kubectl = kubectl
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("kubectl");
        let mut stdin = kubectl.stdin.take().expect("stdin");
        stdin.write_all(b"question\n").expect("write");
        drop(stdin);
        kubectl.wait_with_output().expect("kubectl")
    };
    let said = debug("first", "read line; echo $line; busybox ps; exit 3");
    let said = text(&said);
    assert!(
        said.contains("question") && said.contains("sleep 1234"),
        "{said}"
    );
    let ended = "/status/ephemeralContainerStatuses/0/state/terminated/exitCode";
    let pod = site.wait_for(&["get", "pod", "web"], ended, |code| *code == 3);
    assert_eq!(pod["status"]["phase"], "Running");
    assert_eq!(
        pod["status"]["ephemeralContainerStatuses"][0]["restartCount"],
        0
    );
    // A second one beside it; the first stays as it ended.
    debug("second", "true");
    let second = "/status/ephemeralContainerStatuses/1/state/terminated/exitCode";
    let pod = site.wait_for(&["get", "pod", "web"], second, |code| *code == 0);
    assert_eq!(
        pod["status"]["ephemeralContainerStatuses"][0]["restartCount"],
        0
    );
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);
    let log = site.ok(&["logs", "web", "-c", "first"]);
    assert!(log.contains("sleep 1234"), "{log}");

    let patch = json!({"spec": {"ephemeralContainers": [
        {"name": "third", "image": image, "targetContainerName": "none"}]}});
    let refused = site.fails(&[
        "patch",
        "pod",
        "web",
        "--subresource=ephemeralcontainers",
        "-p",
        &patch.to_string(),
    ]);
    let words = "spec.ephemeralContainers[0].targetContainerName: Not found: \"none\"";
    assert!(refused.contains(words), "{refused}");
}

#[test]
fn containers_of_a_pod_may_share_their_processes() {
    let Some((_registry, image, site)) = with_busybox(&[]) else {
        return;
    };
    site.apply(&pod(
        "shared",
        json!({"image": image, "command": ["sh", "-c", "sleep 4321"]}),
        json!({"shareProcessNamespace": true}),
    ));
    phase(&site, "shared", "Running");
    let said = site.ok(&["exec", "shared", "--", "busybox", "ps"]);
    assert!(said.contains("sleep 4321"), "{said}");
    // The first process is none of the container's, and shows nothing of the machine.
    let first = site.ok(&["exec", "shared", "--", "cat", "/proc/1/cmdline"]);
    assert!(!first.contains("sleep"), "{first}");
    let root = site.kubectl(&["exec", "shared", "--", "ls", "/proc/1/root/"]);
    assert!(!text(&root).contains("etc"), "{}", text(&root));
    site.ok(&["delete", "pod", "shared", "--timeout=60s"]);
}

#[test]
fn a_pod_s_security_is_as_it_asks_or_it_does_not_run() {
    let Some((_registry, image, site)) = with_busybox(&[]) else {
        return;
    };
    let profiles = site.dir.join("seccomp/strict");
    std::fs::create_dir_all(&profiles).expect("directory");
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]});
    std::fs::write(profiles.join("no-dirs.json"), profile.to_string()).expect("profile");
    site.apply(
        r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "conf"}, "data": {"a": "1"}}"#,
    );
    site.apply(&pod(
        "held",
        json!({
            "image": image,
            "command": ["sh", "-c", "busybox mkdir /tmp/x 2>&1; id -G; for f in /memory /disk /conf/..data/a; do stat -L -c '%g %a' $f; done; \
                dd if=/dev/zero of=/memory/big bs=1M count=4 2>&1 | busybox grep -o 'No space'; busybox df /memory | busybox tail -1 | busybox cut -d' ' -f1"],
            "securityContext": {
                "runAsUser": 1000,
                "seccompProfile": {"type": "Localhost", "localhostProfile": "strict/no-dirs.json"},
            },
            "volumeMounts": [
                {"name": "memory", "mountPath": "/memory"},
                {"name": "disk", "mountPath": "/disk"},
                {"name": "conf", "mountPath": "/conf"},
            ],
        }),
        json!({
            "securityContext": {"fsGroup": 4242, "supplementalGroups": [77]},
            "volumes": [
                {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
                {"name": "disk", "emptyDir": {}},
                {"name": "conf", "configMap": {"name": "conf", "defaultMode": 0o400}},
            ],
        }),
    ));
    phase(&site, "held", "Succeeded");
    assert_eq!(
        site.ok(&["logs", "held"]),
        "mkdir: can't create directory '/tmp/x': Operation not permitted\n1001 77 4242\n\
         4242 2777\n4242 2777\n4242 440\nNo space\ntmpfs\n"
    );

    site.apply(&pod(
        "root",
        json!({"image": image, "securityContext": {"runAsNonRoot": true}}),
        json!({}),
    ));
    let words = "container has runAsNonRoot and image will run as root (pod: \"root_default(";
    waits(&site, "root", "CreateContainerConfigError", words);

    site.apply(&pod(
        "pages",
        json!({"image": image}),
        json!({"volumes": [{"name": "v", "emptyDir": {"medium": "HugePages"}}]}),
    ));
    let get = [
        "get",
        "events",
        "--field-selector",
        "involvedObject.name=pages",
    ];
    site.wait_for(&get, "/items", |events| {
        events
            .to_string()
            .contains("huge pages are not supported on this node")
    });

    if Path::new("/sys/module/apparmor/parameters/enabled").exists() {
        return;
    }
    site.apply(&pod(
        "armor",
        json!({"image": image}),
        json!({"securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}}),
    ));
    let refused = phase(&site, "armor", "Failed");
    assert_eq!(refused["status"]["reason"], "AppArmor");
    assert_eq!(
        refused["status"]["message"],
        "Pod was rejected: Cannot enforce AppArmor: AppArmor is not enabled on the host"
    );
}

#[test]
fn a_claims_volume_belongs_to_each_pods_group() {
    let Some((_registry, image, site)) = with_busybox(&[]) else {
        return;
    };
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
    });
    site.apply(&claim.to_string());
    let tell = "echo kept >> /data/file && cat /data/file && stat -c '%g %a' /data /data/file";
    for (name, group, said) in [
        ("first", 4242, "kept\n4242 2777\n4242 644\n"),
        // What the first has made is the second's, whoever it runs as.
        ("second", 4343, "kept\nkept\n4343 2777\n4343 664\n"),
    ] {
        site.apply(&pod(
            name,
            json!({
                "image": image,
                "command": ["sh", "-c", tell],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            }),
            json!({
                "securityContext": {"runAsUser": 1000 + group, "fsGroup": group},
                "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
            }),
        ));
        phase(&site, name, "Succeeded");
        assert_eq!(site.ok(&["logs", name]), said);
    }
}
