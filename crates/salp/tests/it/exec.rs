//! Programs beside a pod's own, and its ports: kubectl by WebSocket and by SPDY, and what other
//! clients speak.

use crate::harness::http::get;
use crate::harness::{Following, Registry, Site, eventually, free_port, repo_file, text};
use crate::nats::Nats;
use crate::sites::{hub, sees, shop};
use crate::websocket::{CLOSE, header, read_frame, write_frame};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

/// Preview-1 imports that the programs below share.
const IMPORTS: &str = r#"
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $env_sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $env (param i32 i32) (result i32)))
  (memory (export "memory") 2)"#;

/// Copies its input to its output.
const CAT: &str = r#"(func (export "_start")
    (loop
      (i32.store (i32.const 0) (i32.const 4096))
      (i32.store (i32.const 4) (i32.const 60000))
      (if (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)) (then return))
      (if (i32.eqz (i32.load (i32.const 8))) (then return))
      (i32.store (i32.const 4) (i32.load (i32.const 8)))
      (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 12)))
      (br 0)))"#;

/// Says no, and exits with 7.
const FAIL: &str = r#"(data (i32.const 64) "no\n")
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 64))
    (i32.store (i32.const 4) (i32.const 3))
    (drop (call $write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 8)))
    (call $exit (i32.const 7)))"#;

/// Writes its arguments and environment, each ended by a zero.
const SHOW: &str = r#"(func $out (param $len i32)
    (i32.store (i32.const 0) (i32.const 8192))
    (i32.store (i32.const 4) (local.get $len))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
  (func (export "_start")
    (drop (call $args_sizes (i32.const 16) (i32.const 20)))
    (drop (call $args (i32.const 64) (i32.const 8192)))
    (call $out (i32.load (i32.const 20)))
    (drop (call $env_sizes (i32.const 16) (i32.const 20)))
    (drop (call $env (i32.const 64) (i32.const 8192)))
    (call $out (i32.load (i32.const 20))))"#;

pub(crate) fn program(body: &str) -> Vec<u8> {
    wat::parse_str(format!("(module {IMPORTS} {body})")).expect("WAT")
}

/// An image with a server as its entry point, and programs beside it.
pub(crate) fn image(registry: &Registry) -> String {
    let hello = std::fs::read(repo_file("examples/hello/hello.wasm")).expect("guest");
    let mut layer = tar::Builder::new(Vec::new());
    for (path, content) in [
        ("app.wasm", hello),
        ("bin/cat.wasm", program(CAT)),
        ("bin/fail.wasm", program(FAIL)),
        ("bin/show.wasm", program(SHOW)),
        ("notes.txt", b"no program".to_vec()),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        layer
            .append_data(&mut header, path, content.as_slice())
            .expect("archive");
    }
    let config = serde_json::json!({
        "architecture": "wasm", "os": "wasi",
        "config": {"Entrypoint": ["/app.wasm"], "Env": ["PATH=/bin", "OF=image"]},
        "rootfs": {"type": "layers", "diff_ids": []},
    });
    registry.put(
        "tools:1",
        (
            "application/vnd.oci.image.config.v1+json",
            config.to_string().into_bytes(),
        ),
        &[(
            "application/vnd.oci.image.layer.v1.tar",
            layer.into_inner().expect("archive"),
        )],
    )
}

/// Starts a pod of that image; with a directory of the host at `/data`.
pub(crate) fn start_pod(site: &Site, image: &str, name: &str, data: &Path) {
    site.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  labels: {{app: {name}}}\nspec:\n  containers:\n  - name: main\n    image: {image}\n    env: [{{name: WHO, value: till}}]\n    ports: [{{containerPort: 8080}}]\n    volumeMounts: [{{name: data, mountPath: /data}}]\n  volumes:\n  - {{name: data, hostPath: {{path: {}, type: Directory}}}}",
        data.display()
    ));
    let ready = [
        "wait",
        "--for=condition=Ready",
        "pod",
        name,
        "--timeout=60s",
    ];
    site.ok(&ready);
}

/// kubectl with input, by SPDY or by what it prefers.
fn exec(site: &Site, spdy: bool, args: &[&str], input: &[u8]) -> Output {
    let mut command = site.kubectl_command(&[&["exec"], args].concat());
    if spdy {
        command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false");
    }
    with_input(command, input)
}

pub(crate) fn with_input(mut command: std::process::Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run command");
    let mut stdin = child.stdin.take().expect("stdin");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // Who does not read it has its reasons.
            let _ = stdin.write_all(input);
        });
        child.wait_with_output().expect("output")
    })
}

#[test]
fn programs_run_beside_a_pod_s_own() {
    let (registry, site) = (Registry::start(), Site::start());
    let data = tempfile::tempdir().expect("directory");
    std::fs::write(data.path().join("own.wasm"), program(FAIL)).expect("write");
    start_pod(&site, &image(&registry), "web", data.path());
    for spdy in [false, true] {
        let exec = |args: &[&str], input: &[u8]| exec(&site, spdy, args, input);
        let out = exec(&["web", "--", "show", "one", "two"], b"");
        assert!(out.status.success(), "{spdy}: {}", text(&out));
        let shown = String::from_utf8(out.stdout).expect("text");
        let shown: Vec<&str> = shown.split('\0').collect();
        assert_eq!(shown[..3], ["show", "one", "two"]);
        for line in ["WHO=till", "OF=image", "KUBERNETES_SERVICE_PORT=443"] {
            assert!(shown.contains(&line), "{line}: {shown:?}");
        }

        let much: Vec<u8> = (0..2_000_000u32).map(|n| (n % 251) as u8).collect();
        let out = exec(&["-i", "web", "-c", "main", "--", "/bin/cat"], &much);
        assert!(out.status.success(), "{spdy}: {}", text(&out));
        assert!(out.stdout == much, "{spdy}: {} bytes", out.stdout.len());

        for named in ["fail", "bin/fail.wasm", "/data/own"] {
            let out = exec(&["web", "--", named], b"");
            assert_eq!(out.status.code(), Some(7), "{spdy}: {}", text(&out));
            assert!(out.stdout.is_empty());
            let said = String::from_utf8_lossy(&out.stderr);
            assert!(said.starts_with("no\n"), "{said}");
            assert!(said.contains("terminated with exit code 7"), "{said}");
        }
        for (named, code, words) in [
            (
                "sh",
                127,
                "\"sh\": not found in container \"main\"; it has /app.wasm, /bin/cat.wasm",
            ),
            ("/notes.txt", 126, "/notes.txt is no WebAssembly"),
            ("/app.wasm", 126, "serves requests"),
        ] {
            let out = exec(&["web", "--", named], b"");
            assert_eq!(out.status.code(), Some(code), "{spdy}: {}", text(&out));
            assert!(text(&out).contains(words), "{}", text(&out));
        }
        let out = exec(&["web", "-c", "other", "--", "cat"], b"");
        assert!(
            text(&out).contains("container other is not valid"),
            "{}",
            text(&out)
        );
    }
    // The pod serves all the while, and logs nothing of it.
    let pod = site.json(&["get", "pod", "web"]);
    let address = format!("{}:8080", pod["status"]["podIP"].as_str().expect("pod IP"));
    assert_eq!(get(&address, "/").expect("answer").code, 200);
    assert!(!site.ok(&["logs", "web"]).contains("no"));

    by_the_fourth_version(&site);

    // What runs beside it ends with it.
    let mut hold = site.kubectl_command(&["exec", "-i", "web", "--", "cat"]);
    hold.stdin(Stdio::piped());
    let mut hold = Following::start(hold);
    hold.type_in(b"ready\n");
    hold.wait_for(|line| line == "ready");
    site.ok(&["delete", "pod", "web", "--wait=false"]);
    assert_eq!(hold.ended().code(), Some(137), "{:?}", hold.lines());
}

/// As kube-rs and the Python client do it.
fn by_the_fourth_version(site: &Site) {
    let port = free_port();
    let proxy = site.kubectl_command(&["proxy", "--port", &port.to_string(), "--reject-paths=^$"]);
    let _proxy = Following::start(proxy);
    let mut stream = eventually("the proxy listens", || {
        TcpStream::connect(("127.0.0.1", port)).map_err(|e| e.to_string())
    });
    let patience = Some(Duration::from_secs(60));
    stream.set_read_timeout(patience).expect("timeout");
    let ask = format!(
        "GET /api/v1/namespaces/default/pods/web/exec?command=cat&stdin=true&stdout=true&stderr=true HTTP/1.1\r\nHost: localhost:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
    );
    stream.write_all(ask.as_bytes()).expect("ask");
    let head = crate::websocket::head(&mut stream).expect("a head");
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert_eq!(
        header(&head, "sec-websocket-protocol"),
        Some("v4.channel.k8s.io")
    );
    const BINARY: u8 = 0x82;
    write_frame(&mut stream, BINARY, b"\0hello", Some([1, 2, 3, 4])).expect("send");
    let (kind, said) = read_frame(&mut stream).expect("an answer");
    assert_eq!((kind, said.as_slice()), (BINARY, &b"\x01hello"[..]));
    write_frame(&mut stream, CLOSE, b"", Some([0; 4])).expect("send");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("the end");
}

#[test]
fn a_program_is_run_and_attached_to() {
    let (registry, site) = (Registry::start(), Site::start());
    let dir = tempfile::tempdir().expect("directory");
    let file = dir.path().join("cat.wasm");
    std::fs::write(&file, program(CAT)).expect("write");
    let image = registry.push(&file, "cat:1");
    for spdy in [false, true] {
        let name = if spdy { "old" } else { "new" };
        let image = format!("--image={image}");
        let mut run = site.kubectl_command(&["run", "-i", "--rm", "--restart=Never", &image, name]);
        if spdy {
            run.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false");
        }
        let out = with_input(run, b"what is typed\n");
        assert!(out.status.success(), "{spdy}: {}", text(&out));
        assert!(
            text(&out).contains("what is typed\n"),
            "{spdy}: {}",
            text(&out)
        );
        assert!(
            text(&out).contains(&format!("pod \"{name}\" deleted")),
            "{}",
            text(&out)
        );
    }
}

#[test]
fn ports_of_a_pod_are_forwarded() {
    let (registry, site) = (Registry::start(), Site::start());
    let data = tempfile::tempdir().expect("directory");
    start_pod(&site, &image(&registry), "web", data.path());
    site.ok(&[
        "expose",
        "pod",
        "web",
        "--port",
        "80",
        "--target-port",
        "8080",
    ]);
    for (spdy, target, ports) in [
        (false, "pod/web", ":8080"),
        (false, "svc/web", ":80"),
        (true, "pod/web", ":8080"),
    ] {
        let mut command = site.kubectl_command(&["port-forward", target, ports]);
        if spdy {
            command.env("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false");
        }
        let forward = Following::start(command);
        let line = forward.wait_for(|line| line.starts_with("Forwarding from 127.0.0.1:"));
        let address = line
            .split_whitespace()
            .nth(2)
            .expect("an address")
            .to_owned();
        for _ in 0..5 {
            let said = get(&address, "/").expect("an answer").expect_code(200);
            assert!(said.as_ref().is_ok_and(|s| s.contains("Hello")), "{said:?}");
        }
    }
    // Nobody listens there, and the way stays open for others.
    let forward = Following::start(site.kubectl_command(&["port-forward", "web", ":81"]));
    let line = forward.wait_for(|line| line.starts_with("Forwarding from 127.0.0.1:"));
    let address = line
        .split_whitespace()
        .nth(2)
        .expect("an address")
        .to_owned();
    assert!(get(&address, "/").is_err());
    forward.wait_for(|line| line.contains("failed to connect to"));
}

#[test]
fn salp_exec_runs_programs_here_and_at_other_sites() {
    let nats = Nats::start();
    let registry = Registry::start();
    let hub = hub(&nats, &[]);
    let mut shop = shop(&nats, &hub, "shop-1", &["--lattice-exec", "default,tools"]);
    let shy = crate::sites::shop(&nats, &hub, "shy", &[]);
    let data = tempfile::tempdir().expect("directory");
    let image = image(&registry);
    for (site, name) in [(&hub, "of-hub"), (&shop, "of-shop"), (&shy, "of-shy")] {
        start_pod(site, &image, name, data.path());
    }
    shop.ok(&["create", "namespace", "closed"]);
    for site in ["shop-1", "shy"] {
        sees(&hub, site, "Alive");
    }
    let exec = |args: &[&str], input: &[u8]| {
        with_input(hub.salp_command(&[&["exec"], args].concat()), input)
    };
    let much: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
    for pod in ["of-hub", "hub/default/of-hub", "shop-1/default/of-shop"] {
        let out = exec(&["-i", pod, "--", "cat"], &much);
        assert!(out.status.success(), "{pod}: {}", text(&out));
        assert!(out.stdout == much, "{pod}: {} bytes", out.stdout.len());
        let out = exec(&[pod, "-c", "main", "--", "fail", "-x"], b"");
        assert_eq!(out.status.code(), Some(7), "{pod}: {}", text(&out));
        assert_eq!(
            (out.stdout, out.stderr),
            (vec![], b"no\n".to_vec()),
            "{pod}"
        );
        let out = exec(&["-t", pod, "--", "fail"], b"");
        assert_eq!(out.stdout, b"no\n", "{pod}");
        let out = exec(&[pod, "--", "sh"], b"");
        assert_eq!(out.status.code(), Some(127), "{pod}: {}", text(&out));
        assert!(
            text(&out).contains("it has /app.wasm, /bin/cat.wasm"),
            "{}",
            text(&out)
        );
    }
    for (pod, words) in [
        ("nobody", "pods \"nobody\" not found"),
        (
            "shop-1/default/nobody",
            "site shop-1: pods \"nobody\" not found",
        ),
        (
            "shop-1/closed/of-shop",
            "site shop-1: runs programs for other sites only in default, tools",
        ),
        (
            "shy/default/of-shy",
            "site shy: runs no programs for other sites",
        ),
        ("nowhere/default/x", "no member has this name"),
    ] {
        let out = exec(&[pod, "--", "cat"], b"");
        assert_eq!(out.status.code(), Some(1), "{pod}: {}", text(&out));
        assert!(text(&out).contains(words), "{pod}: {}", text(&out));
    }
    // Who leaves takes the program along.
    let mut held = hub.salp_command(&["exec", "-i", "shop-1/default/of-shop", "--", "cat"]);
    held.stdin(Stdio::piped());
    let mut held = Following::start(held);
    held.type_in(b"ready\n");
    held.wait_for(|line| line == "ready");
    // Rights as anybody's: the owner may take them away.
    let rights = r#"[{"op": "replace", "path": "/rules", "value": []}]"#;
    let role = [
        "patch",
        "clusterrole",
        "system:salp-fleet-exec",
        "--type=json",
        "-p",
        rights,
    ];
    shop.ok(&role);
    eventually("the rights are gone", || {
        let out = exec(&["shop-1/default/of-shop", "--", "fail"], b"");
        let said = text(&out);
        said.contains("site shop-1: pods \"of-shop\" is forbidden")
            .then_some(())
            .ok_or(said)
    });
    // The site is there without its API server.
    shop.signal("-KILL");
    let out = exec(&["shop-1/default/of-shop", "--", "cat"], b"");
    assert!(
        text(&out).contains("site shop-1: its control plane is down"),
        "{}",
        text(&out)
    );
}
