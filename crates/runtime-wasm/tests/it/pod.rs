//! A host in a temporary folder, and pods for it.

use bytes::Bytes;
use futures::StreamExt as _;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use lifecycle::Scope;
use runtime::{
    Artifact, ContainerId, ContainerSpec, ContainerState, Dns, Exit, PodRuntime, Port,
    RuntimeError, SandboxId, SandboxSpec,
};
use runtime_wasm::{Host, HostConfig, LogLimits};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, Ordering};

/// Behaves as its path says; its source is in crate `wasm`.
pub(crate) const TRIALS: &[u8] = include_bytes!("../../../wasm/tests/fixtures/trials.wasm");

pub(crate) struct Site {
    pub(crate) host: Host,
    pub(crate) scope: Scope,
    pub(crate) dir: tempfile::TempDir,
}

impl Site {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let scope = Scope::new();
        let host = Host::start(
            HostConfig {
                socket: Some(dir.path().join("run/dataplane.sock")),
                compiled_dir: dir.path().join("compiled"),
                kept_dir: Some(dir.path().join("kept")),
                log_limits: LogLimits::default(),
                dns: None,
            },
            &scope,
        )
        .await
        .unwrap();
        Self { host, scope, dir }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("run/dataplane.sock")
    }

    /// A pod of one container named `app`.
    pub(crate) fn pod(&self, uid: &str, wasm: &[u8]) -> (SandboxSpec, ContainerSpec) {
        let file = self.dir.path().join(format!("{uid}.wasm"));
        std::fs::write(&file, wasm).unwrap();
        let sandbox = SandboxSpec {
            id: SandboxId(uid.into()),
            namespace: "default".into(),
            name: uid.into(),
            labels: [].into(),
            annotations: [].into(),
            hostname: uid.into(),
            ip: [127, 0, 0, 1].into(),
            memory_limit_bytes: None,
            dns: Dns::default(),
            standby: false,
            dies_after_silence_ms: None,
            linux: None,
        };
        let container = ContainerSpec {
            id: ContainerId(format!("{uid}/app/0")),
            sandbox: sandbox.id.clone(),
            name: "app".into(),
            attempt: 0,
            image: "example/app:1".into(),
            artifact: Artifact::Wasm {
                digest: format!("sha256:{uid}"),
                path: file,
                rootfs: None,
            },
            args: vec!["app".into()],
            env: Vec::new(),
            mounts: Vec::new(),
            ports: Vec::new(),
            memory_limit_bytes: None,
            cpu_request_millis: 0,
            cpu_limit_millis: None,
            working_dir: None,
            log_path: self.dir.path().join(format!("logs/{uid}/app/0.log")),
            tty: false,
            stdin: false,
            stdin_once: false,
            linux: None,
        };
        (sandbox, container)
    }

    /// A pod of an HTTP container at a port that was free a moment ago.
    pub(crate) fn http_pod(&self, uid: &str) -> (SandboxSpec, ContainerSpec, SocketAddr) {
        let (sandbox, mut container) = self.pod(uid, TRIALS);
        let address = SocketAddr::new(sandbox.ip, free_port());
        container.ports = vec![Port {
            name: "http".into(),
            number: address.port(),
            protocol: "TCP".into(),
        }];
        (sandbox, container, address)
    }

    /// The container's log without times.
    pub(crate) fn log(&self, uid: &str) -> Vec<String> {
        std::fs::read_to_string(self.dir.path().join(format!("logs/{uid}/app/0.log")))
            .unwrap()
            .lines()
            .map(|line| line.split_once(' ').unwrap().1.to_owned())
            .collect()
    }
}

fn free_port() -> u16 {
    // Tests of this process must not be given the same one.
    static LAST: AtomicU16 = AtomicU16::new(0);
    loop {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        if LAST.swap(port, Ordering::SeqCst) != port {
            return port;
        }
    }
}

pub(crate) async fn run(
    runtime: &dyn PodRuntime,
    (sandbox, container): (SandboxSpec, ContainerSpec),
) -> Result<ContainerId, RuntimeError> {
    let id = container.id.clone();
    runtime.run_sandbox(sandbox).await?;
    runtime.create_container(container).await?;
    runtime.start_container(&id).await?;
    Ok(id)
}

pub(crate) async fn state(runtime: &dyn PodRuntime, id: &ContainerId) -> ContainerState {
    runtime
        .sandboxes()
        .await
        .unwrap()
        .into_iter()
        .flat_map(|sandbox| sandbox.containers)
        .find(|container| container.id == *id)
        .map(|container| container.state)
        .expect("known")
}

/// Runs a pod and waits for its container's end by the runtime's hints.
pub(crate) async fn run_to_end(
    runtime: &dyn PodRuntime,
    pod: (SandboxSpec, ContainerSpec),
) -> Exit {
    let mut changes = runtime.changes().await.unwrap();
    let id = run(runtime, pod).await.unwrap();
    loop {
        if let ContainerState::Exited(exit) = state(runtime, &id).await {
            return exit;
        }
        changes.next().await.expect("hints");
    }
}

/// A request over a connection of its own; the status and the text.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Result<(u16, String), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let stream = tokio::net::TcpStream::connect(address)
        .await
        .map_err(|error| text(&error))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| text(&error))?;
    let request = Request::get(path)
        .header("host", "app")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let answer = async {
        let response = sender.send_request(request).await.map_err(|e| text(&e))?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.map_err(|e| text(&e))?;
        Ok((
            status,
            String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        ))
    };
    let mut answer = std::pin::pin!(answer);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        answer = &mut answer => answer,
        ended = &mut connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(text(&error)),
        },
    }
}
