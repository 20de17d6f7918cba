//! What `config.json` says of each field.

use super::*;
use expect_test::{Expect, expect};
use runtime::{Artifact, ContainerId, Dns, Mount, SandboxId};

pub(crate) fn sandbox(linux: LinuxSandbox) -> SandboxSpec {
    SandboxSpec {
        id: SandboxId("u1".into()),
        namespace: "shop".into(),
        name: "till".into(),
        labels: Default::default(),
        annotations: Default::default(),
        hostname: "till".into(),
        ip: [10, 42, 0, 7].into(),
        memory_limit_bytes: None,
        dns: Dns::default(),
        standby: false,
        dies_after_silence_ms: None,
        linux: Some(Box::new(linux)),
    }
}

fn container(linux: LinuxContainer) -> ContainerSpec {
    ContainerSpec {
        id: ContainerId("u1/main/0".into()),
        sandbox: SandboxId("u1".into()),
        name: "main".into(),
        attempt: 0,
        image: "busybox:1".into(),
        artifact: Artifact::Container {
            digest: "sha256:00".into(),
            layers: vec!["/layers/a".into()],
        },
        args: vec!["sh".into()],
        env: vec![("A".into(), "1".into())],
        mounts: vec![],
        ports: vec![],
        memory_limit_bytes: None,
        cpu_request_millis: 0,
        cpu_limit_millis: None,
        working_dir: None,
        log_path: "/logs/0.log".into(),
        tty: false,
        stdin: false,
        stdin_once: false,
        linux: Some(Box::new(linux)),
    }
}

fn built(sandbox: &SandboxSpec, container: &ContainerSpec, identity: &Identity) -> Value {
    let host = sandbox.linux.as_ref().is_some_and(|l| l.host_network);
    let kinds: &[&'static str] = if host {
        &[]
    } else {
        &["network", "uts", "ipc"]
    };
    let namespaces = kinds
        .iter()
        .map(|kind| (*kind, Path::new("/pod").join(kind)));
    let places = Places {
        root: Path::new("/bundle/rootfs"),
        hosts: Path::new("/pod/hosts"),
        hostname: Path::new("/pod/hostname"),
        resolv_conf: Path::new("/pod/resolv.conf"),
        termination: Some((Path::new("/bundle/termination"), "/dev/termination-log")),
        namespaces: namespaces.collect(),
        seccomp: None,
        apparmor: None,
        cgroup: "/kubepods/besteffort/podu1/main-0",
        unified: false,
        rights: Rights::of("", -1000),
    };
    config(sandbox, container, identity, &places)
}

/// What differs from an ordinary container, by path.
fn check(pod: LinuxSandbox, change: impl FnOnce(&mut ContainerSpec), expected: Expect) {
    let identity = Identity::default();
    let usual = built(
        &sandbox(LinuxSandbox::default()),
        &container(LinuxContainer::default()),
        &identity,
    );
    let mut changed = container(LinuxContainer::default());
    change(&mut changed);
    let changed = built(&sandbox(pod), &changed, &identity);
    let (mut usual, mut changed) = (usual, changed);
    for config in [&mut usual, &mut changed] {
        // Of who is root they are the bounding ones.
        let held = &mut config["process"]["capabilities"];
        assert_eq!(held["effective"], held["bounding"]);
        assert_eq!(held["permitted"], held["bounding"]);
        *held = held["bounding"].take();
    }
    let mut lines = Vec::new();
    differ("", &usual, &changed, &mut lines);
    expected.assert_eq(&lines.join("\n"));
}

fn differ(path: &str, a: &Value, b: &Value, lines: &mut Vec<String>) {
    match (a, b) {
        _ if a == b => {}
        (Value::Object(x), Value::Object(y)) => {
            let keys: BTreeSet<_> = x.keys().chain(y.keys()).collect();
            for key in keys {
                let path = format!("{path}/{key}");
                differ(&path, &a[key.as_str()], &b[key.as_str()], lines);
            }
        }
        (Value::Array(x), Value::Array(y)) => {
            let all = |mark: &str, list: Vec<&Value>| match list.as_slice() {
                [] => None,
                // Names go into one line.
                list if list.iter().all(|v| v.is_string()) => {
                    let names: Vec<_> = list.iter().filter_map(|v| v.as_str()).collect();
                    Some(vec![format!("{path} {mark} {}", names.join(" "))])
                }
                list => Some(list.iter().map(|v| format!("{path} {mark} {v}")).collect()),
            };
            let gone = x.iter().filter(|v| !y.contains(v)).collect();
            let come = y.iter().filter(|v| !x.contains(v)).collect();
            for told in [all("-", gone), all("+", come)].into_iter().flatten() {
                lines.extend(told);
            }
        }
        (_, Value::Null) => lines.push(format!("{path} -")),
        _ => lines.push(format!("{path} = {b}")),
    }
}

fn linux(spec: &mut ContainerSpec) -> &mut LinuxContainer {
    spec.linux.as_mut().unwrap()
}

#[test]
fn an_ordinary_process() {
    let process = process(
        &container(LinuxContainer::default()),
        &Identity::default(),
        "till",
        Rights::of("", -1000),
    );
    let mut process = process;
    process["capabilities"] = Value::Null;
    expect![[r#"{"args":["sh"],"capabilities":null,"cwd":"/","env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin","HOSTNAME=till","A=1","HOME=/"],"noNewPrivileges":false,"oomScoreAdj":0,"terminal":false,"user":{"additionalGids":[],"gid":0,"uid":0}}"#]]
    .assert_eq(&process.to_string());
}

#[test]
fn rights() {
    check(
        LinuxSandbox::default(),
        |c| {
            linux(c).drop_capabilities = vec!["ALL".into()];
            linux(c).add_capabilities = vec!["CAP_NET_ADMIN".into(), "nonsense".into()];
            linux(c).no_new_privileges = true;
            linux(c).read_only_root = true;
            linux(c).seccomp = Seccomp::Unconfined;
        },
        expect![[r#"
            /linux/seccomp -
            /mounts - {"destination":"/etc/hosts","options":["rbind","rprivate","rw"],"source":"/pod/hosts","type":"bind"}
            /mounts - {"destination":"/etc/hostname","options":["rbind","rprivate","rw"],"source":"/pod/hostname","type":"bind"}
            /mounts - {"destination":"/etc/resolv.conf","options":["rbind","rprivate","rw"],"source":"/pod/resolv.conf","type":"bind"}
            /mounts + {"destination":"/etc/hosts","options":["rbind","rprivate","ro"],"source":"/pod/hosts","type":"bind"}
            /mounts + {"destination":"/etc/hostname","options":["rbind","rprivate","ro"],"source":"/pod/hostname","type":"bind"}
            /mounts + {"destination":"/etc/resolv.conf","options":["rbind","rprivate","ro"],"source":"/pod/resolv.conf","type":"bind"}
            /process/capabilities - CAP_AUDIT_WRITE CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_FSETID CAP_KILL CAP_MKNOD CAP_NET_BIND_SERVICE CAP_NET_RAW CAP_SETFCAP CAP_SETGID CAP_SETPCAP CAP_SETUID CAP_SYS_CHROOT
            /process/capabilities + CAP_NET_ADMIN
            /process/noNewPrivileges = true
            /root/readonly = true"#]],
    );
}

#[test]
fn privileged_sees_and_may_all() {
    check(
        LinuxSandbox::default(),
        |c| linux(c).privileged = true,
        expect![[r#"
            /linux/maskedPaths -
            /linux/readonlyPaths -
            /linux/resources/devices - {"access":"rwm","allow":false}
            /linux/resources/devices - {"access":"m","allow":true,"type":"c"}
            /linux/resources/devices - {"access":"m","allow":true,"type":"b"}
            /linux/resources/devices + {"access":"rwm","allow":true}
            /linux/seccomp -
            /mounts - {"destination":"/sys","options":["nosuid","noexec","nodev","ro"],"source":"sysfs","type":"sysfs"}
            /mounts - {"destination":"/sys/fs/cgroup","options":["nosuid","noexec","nodev","relatime","ro"],"source":"cgroup","type":"cgroup"}
            /mounts + {"destination":"/sys","options":["nosuid","noexec","nodev","rw"],"source":"sysfs","type":"sysfs"}
            /mounts + {"destination":"/sys/fs/cgroup","options":["nosuid","noexec","nodev","relatime","rw"],"source":"cgroup","type":"cgroup"}
            /process/capabilities + CAP_AUDIT_CONTROL CAP_AUDIT_READ CAP_BLOCK_SUSPEND CAP_BPF CAP_CHECKPOINT_RESTORE CAP_DAC_READ_SEARCH CAP_IPC_LOCK CAP_IPC_OWNER CAP_LEASE CAP_LINUX_IMMUTABLE CAP_MAC_ADMIN CAP_MAC_OVERRIDE CAP_NET_ADMIN CAP_NET_BROADCAST CAP_PERFMON CAP_SYSLOG CAP_SYS_ADMIN CAP_SYS_BOOT CAP_SYS_MODULE CAP_SYS_NICE CAP_SYS_PACCT CAP_SYS_PTRACE CAP_SYS_RAWIO CAP_SYS_RESOURCE CAP_SYS_TIME CAP_SYS_TTY_CONFIG CAP_WAKE_ALARM"#]],
    );
}

#[test]
fn devices_of_the_machine() {
    check(
        LinuxSandbox::default(),
        |c| {
            linux(c).devices = vec![runtime::Device {
                path: "/dev/gadget".into(),
                is_block: false,
                major: 10,
                minor: 229,
                mode: 0o600,
                user: 0,
                group: 6,
                access: "rw".into(),
            }];
            linux(c).annotations = [("a".to_owned(), "b".to_owned())].into();
        },
        expect![[r#"
            /annotations/a = "b"
            /linux/devices = [{"fileMode":384,"gid":6,"major":10,"minor":229,"path":"/dev/gadget","type":"c","uid":0}]
            /linux/resources/devices + {"access":"rw","allow":true,"major":10,"minor":229,"type":"c"}"#]],
    );
}

#[test]
fn limits() {
    check(
        LinuxSandbox::default(),
        |c| {
            c.memory_limit_bytes = Some(64 << 20);
            c.cpu_limit_millis = Some(250);
            c.cpu_request_millis = 100;
            linux(c).oom_score_adj = 997;
        },
        expect![[r#"
            /linux/resources/cpu/period = 100000
            /linux/resources/cpu/quota = 25000
            /linux/resources/cpu/shares = 102
            /linux/resources/memory = {"limit":67108864}
            /process/oomScoreAdj = 997"#]],
    );
}

#[test]
fn what_the_machine_refuses_to_lower_is_as_low_as_it_takes() {
    let mut guaranteed = container(LinuxContainer::default());
    linux(&mut guaranteed).oom_score_adj = -997;
    let told = |min| {
        let rights = Rights::of("", min);
        process(&guaranteed, &Identity::default(), "till", rights)["oomScoreAdj"].clone()
    };
    assert_eq!((told(-1000), told(0)), (json!(-997), json!(0)));
}

#[test]
fn the_machine_s_own_namespaces() {
    let pod = LinuxSandbox {
        host_network: true,
        host_pid: true,
        ..LinuxSandbox::default()
    };
    check(
        pod,
        |_| {},
        expect![[r#"
        /linux/namespaces - {"type":"pid"}
        /linux/namespaces - {"path":"/pod/network","type":"network"}
        /linux/namespaces - {"path":"/pod/uts","type":"uts"}
        /linux/namespaces - {"path":"/pod/ipc","type":"ipc"}
        /mounts - {"destination":"/sys","options":["nosuid","noexec","nodev","ro"],"source":"sysfs","type":"sysfs"}
        /mounts + {"destination":"/sys","options":["rbind","nosuid","noexec","nodev","ro"],"source":"/sys","type":"bind"}"#]],
    );
}

#[test]
fn volumes_come_outermost_first() {
    check(
        LinuxSandbox::default(),
        |c| {
            let mount = |host: &str, guest: &str, read_only| Mount {
                host_path: host.into(),
                guest_path: guest.into(),
                read_only,
                ..Mount::default()
            };
            c.mounts = vec![
                mount("/v/inner", "/data/inner", false),
                mount("/v/outer", "/data", true),
                mount("/v/hosts", "/etc/hosts", false),
            ];
            c.tty = true;
            c.working_dir = Some("/data".into());
        },
        expect![[r#"
            /mounts - {"destination":"/etc/hosts","options":["rbind","rprivate","rw"],"source":"/pod/hosts","type":"bind"}
            /mounts + {"destination":"/data","options":["rbind","rprivate","ro"],"source":"/v/outer","type":"bind"}
            /mounts + {"destination":"/data/inner","options":["rbind","rprivate","rw"],"source":"/v/inner","type":"bind"}
            /mounts + {"destination":"/etc/hosts","options":["rbind","rprivate","rw"],"source":"/v/hosts","type":"bind"}
            /process/cwd = "/data"
            /process/env + TERM=xterm
            /process/terminal = true"#]],
    );
}

#[test]
fn how_volumes_are_mounted() {
    check(
        LinuxSandbox::default(),
        |c| {
            let mount = |guest: &str| Mount {
                host_path: "/v".into(),
                guest_path: guest.into(),
                read_only: true,
                ..Mount::default()
            };
            c.mounts = vec![
                Mount {
                    follows_machine: true,
                    ..mount("/a")
                },
                Mount {
                    recursive_read_only: true,
                    ..mount("/b")
                },
            ];
        },
        expect![[r#"
            /linux/rootfsPropagation = "rslave"
            /mounts + {"destination":"/a","options":["rbind","rslave","ro"],"source":"/v","type":"bind"}
            /mounts + {"destination":"/b","options":["rbind","rprivate","rro"],"source":"/v","type":"bind"}"#]],
    );
}

#[test]
fn nobody_is_given_what_the_machine_does_not_have() {
    // Without SYS_RESOURCE, number 24.
    let rights = Rights::of("Name:\tsalp\nCapBnd:\t000001fffeffffff\n", 0);
    let mut privileged = container(LinuxContainer::default());
    linux(&mut privileged).privileged = true;
    let process = process(&privileged, &Identity::default(), "till", rights);
    let held = process["capabilities"]["bounding"].as_array().unwrap();
    assert_eq!(held.len(), ALL_CAPABILITIES.len() - 1);
    assert!(!held.contains(&json!("CAP_SYS_RESOURCE")));
}

#[test]
fn who_is_not_root_holds_no_capabilities() {
    let identity = Identity {
        uid: 1000,
        gid: 100,
        groups: vec![7],
        home: "/home/till".into(),
    };
    let built = built(
        &sandbox(LinuxSandbox::default()),
        &container(LinuxContainer::default()),
        &identity,
    );
    assert_eq!(
        built["process"]["user"],
        json!({"uid": 1000, "gid": 100, "additionalGids": [7]})
    );
    assert_eq!(built["process"]["capabilities"]["effective"], json!([]));
}
