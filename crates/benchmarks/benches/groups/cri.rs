//! containerd, driven by the calls that a kubelet makes (CRI v1): its own process, directories and
//! bridge, gone with it.

use crate::harness::{Running, eventually, tool};
use prost::Message;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// The bridge of its pods.
const BRIDGE: &str = "salpbench0";

#[derive(Clone, PartialEq, Message)]
struct SandboxMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<SandboxMetadata>,
    #[prost(string, tag = "2")]
    hostname: String,
    #[prost(string, tag = "3")]
    log_directory: String,
}

#[derive(Clone, PartialEq, Message)]
struct RunPodSandbox {
    #[prost(message, optional, tag = "1")]
    config: Option<SandboxConfig>,
}

/// A request or an answer that is one name.
#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct PullImage {
    #[prost(message, optional, tag = "1")]
    image: Option<Named>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Named>,
    #[prost(message, optional, tag = "2")]
    image: Option<Named>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
    #[prost(string, tag = "11")]
    log_path: String,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainer {
    #[prost(string, tag = "1")]
    sandbox: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<SandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct StopContainer {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int64, tag = "2")]
    timeout_seconds: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Nothing {}

/// A pod of one container.
pub(crate) struct Pod {
    sandbox: String,
    container: String,
}

/// A containerd that runs.
pub(crate) struct Containerd {
    channel: Channel,
    running: Running,
    dir: TempDir,
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _gone = Command::new("ip")
            .args(["link", "delete", BRIDGE])
            .stderr(Stdio::null())
            .status();
    }
}

fn configuration(dir: &Path, programs: &Path, pause: &str) -> String {
    let at = |name: &str| dir.join(name).display().to_string();
    format!(
        r#"version = 2
root = "{root}"
state = "{state}"
[grpc]
address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "{runc}"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{cni}"
conf_dir = "{dir}"
"#,
        root = at("root"),
        state = at("state"),
        socket = at("socket"),
        runc = tool("runc").display(),
        cni = programs.join("lib/cni").display(),
        dir = dir.display(),
    )
}

impl Containerd {
    /// Starts one that has an image, and another whose process keeps its pods' namespaces.
    pub(crate) async fn start(image: &str, pause: &str) -> Self {
        let dir = TempDir::new().expect("directory");
        // Its shims and the plugins of its network lie beside it, where its packages were unpacked.
        let tools = tool("containerd");
        let tools = tools.ancestors().nth(2).expect("tools");
        let programs: PathBuf = tools.join("debian/containerd/usr");
        let program = programs.join("bin/containerd");
        let network = format!(
            r#"{{"cniVersion": "0.4.0", "name": "bench", "type": "bridge", "bridge": "{BRIDGE}",
            "isGateway": true, "ipam": {{"type": "host-local", "dataDir": "{}",
            "ranges": [[{{"subnet": "10.199.0.0/16"}}]]}}}}"#,
            dir.path().join("addresses").display()
        );
        fs::write(dir.path().join("10-bench.conf"), network).expect("network");
        let config = dir.path().join("config.toml");
        fs::write(&config, configuration(dir.path(), &programs, pause)).expect("configuration");
        let path = std::env::var("PATH").unwrap_or_default();
        let child = Command::new(&program)
            .arg("--config")
            .arg(&config)
            .env("PATH", format!("{}:{path}", programs.join("bin").display()))
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.path().join("log")).expect("log"))
            .spawn()
            .expect("start containerd");
        let running = Running(child);
        let socket = dir.path().join("socket");
        eventually("containerd listens", || {
            std::os::unix::net::UnixStream::connect(&socket).map_err(|e| e.to_string())
        });
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()));
        let channel = endpoint.expect("address").connect().await.expect("connect");
        let this = Self {
            channel,
            running,
            dir,
        };
        let pull = PullImage {
            image: Some(named(image)),
        };
        let _pulled: Named = this.call("ImageService/PullImage", pull).await;
        this
    }

    async fn call<Q: Message + 'static, A: Message + Default + 'static>(
        &self,
        call: &str,
        request: Q,
    ) -> A {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        grpc.ready().await.expect("containerd");
        let path = format!("/runtime.v1.{call}").parse().expect("path");
        let codec = ProstCodec::<Q, A>::default();
        let answer = grpc.unary(tonic::Request::new(request), path, codec).await;
        answer
            .unwrap_or_else(|e| panic!("{call}: {e}"))
            .into_inner()
    }

    /// Makes a pod; it runs.
    pub(crate) async fn pod(&self, name: &str, image: &str, command: &[&str]) -> Pod {
        let config = SandboxConfig {
            metadata: Some(SandboxMetadata {
                name: name.to_owned(),
                uid: name.to_owned(),
                namespace: "default".to_owned(),
            }),
            hostname: name.to_owned(),
            log_directory: self.dir.path().display().to_string(),
        };
        let run = RunPodSandbox {
            config: Some(config.clone()),
        };
        let sandbox: Named = self.call("RuntimeService/RunPodSandbox", run).await;
        let create = CreateContainer {
            sandbox: sandbox.name.clone(),
            config: Some(ContainerConfig {
                metadata: Some(named("main")),
                image: Some(named(image)),
                command: command.iter().map(|w| (*w).to_owned()).collect(),
                log_path: format!("{name}.log"),
            }),
            sandbox_config: Some(config),
        };
        let container: Named = self.call("RuntimeService/CreateContainer", create).await;
        let start = named(&container.name);
        let _started: Nothing = self.call("RuntimeService/StartContainer", start).await;
        Pod {
            sandbox: sandbox.name,
            container: container.name,
        }
    }

    /// Ends a pod, and takes it away.
    pub(crate) async fn remove(&self, pod: Pod) {
        let stop = StopContainer {
            name: pod.container,
            timeout_seconds: 30,
        };
        let _stopped: Nothing = self.call("RuntimeService/StopContainer", stop).await;
        for call in ["StopPodSandbox", "RemovePodSandbox"] {
            let call = format!("RuntimeService/{call}");
            let _done: Nothing = self.call(&call, named(&pod.sandbox)).await;
        }
    }

    /// Memory of what runs beside the containers of its pods: a process a pod.
    pub(crate) fn shims_pss_mib(&self) -> f64 {
        let entries = fs::read_dir("/proc").expect("processes").flatten();
        let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
        let own = self.dir.path().display().to_string();
        let is_shim = |pid: &u32| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).into_owned();
            words.contains("containerd-shim") && words.contains(&own)
        };
        pids.filter(is_shim).map(crate::pss_mib).sum()
    }

    pub(crate) fn pss_mib(&self) -> f64 {
        crate::pss_mib(self.running.0.id())
    }
}

fn named(name: &str) -> Named {
    Named {
        name: name.to_owned(),
    }
}
