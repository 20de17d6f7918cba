//! Device plugins: one that speaks the kubelet's protocol gives a container a device of the machine,
//! and the agent that comes after a killed one takes nothing away. Needs root, as `containers`.

use crate::containers::{phase, pod, with_busybox};
use crate::harness::{Site, eventually};
use bytes::Bytes;
use futures::FutureExt as _;
use http_body_util::BodyExt as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, Message)]
struct Empty {}

#[derive(Clone, PartialEq, Message)]
struct Options {
    #[prost(bool, tag = "1")]
    pre_start_required: bool,
    #[prost(bool, tag = "2")]
    preferred: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Register {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(string, tag = "2")]
    endpoint: String,
    #[prost(string, tag = "3")]
    resource_name: String,
    #[prost(message, optional, tag = "4")]
    options: Option<Options>,
}

#[derive(Clone, PartialEq, Message)]
struct Device {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    health: String,
}

#[derive(Clone, PartialEq, Message)]
struct Devices {
    #[prost(message, repeated, tag = "1")]
    devices: Vec<Device>,
}

#[derive(Clone, PartialEq, Message)]
struct Ids {
    #[prost(string, repeated, tag = "1")]
    ids: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct IdsOfContainers {
    #[prost(message, repeated, tag = "1")]
    containers: Vec<Ids>,
}

#[derive(Clone, PartialEq, Message)]
struct Place {
    #[prost(string, tag = "1")]
    container_path: String,
    #[prost(string, tag = "2")]
    host_path: String,
    #[prost(bool, tag = "3")]
    read_only: bool,
}

#[derive(Clone, PartialEq, Message)]
struct DeviceFile {
    #[prost(string, tag = "1")]
    container_path: String,
    #[prost(string, tag = "2")]
    host_path: String,
    #[prost(string, tag = "3")]
    permissions: String,
}

#[derive(Clone, PartialEq, Message)]
struct Allocation {
    #[prost(map = "string, string", tag = "1")]
    envs: HashMap<String, String>,
    #[prost(message, repeated, tag = "2")]
    mounts: Vec<Place>,
    #[prost(message, repeated, tag = "3")]
    devices: Vec<DeviceFile>,
}

#[derive(Clone, PartialEq, Message)]
struct Allocations {
    #[prost(message, repeated, tag = "1")]
    containers: Vec<Allocation>,
}

#[derive(Clone, PartialEq, Message)]
struct OfResource {
    #[prost(string, tag = "1")]
    resource_name: String,
    #[prost(string, repeated, tag = "2")]
    ids: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Allocatable {
    #[prost(message, repeated, tag = "1")]
    devices: Vec<OfResource>,
}

#[derive(Clone, PartialEq, Message)]
struct OfContainer {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    devices: Vec<OfResource>,
}

#[derive(Clone, PartialEq, Message)]
struct OfPod {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(message, repeated, tag = "3")]
    containers: Vec<OfContainer>,
}

#[derive(Clone, PartialEq, Message)]
struct Pods {
    #[prost(message, repeated, tag = "1")]
    pods: Vec<OfPod>,
}

#[derive(Clone, PartialEq, Message)]
struct PodName {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    namespace: String,
}

#[derive(Clone, PartialEq, Message)]
struct OnePod {
    #[prost(message, optional, tag = "1")]
    pod: Option<OfPod>,
}

const RESOURCE: &str = "example.com/dev";

/// A plugin that prefers the last of its devices.
struct Plugin {
    runtime: tokio::runtime::Runtime,
    kubelet: PathBuf,
    list: watch::Sender<Vec<Device>>,
    state: Arc<State>,
}

struct State {
    /// A directory to mount.
    shown: PathBuf,
    calls: Mutex<Vec<String>>,
    list: watch::Receiver<Vec<Device>>,
}

fn list(devices: &[(&str, &str)]) -> Vec<Device> {
    let device = |(id, health): &(&str, &str)| Device {
        id: (*id).to_owned(),
        health: (*health).to_owned(),
    };
    devices.iter().map(device).collect()
}

impl State {
    async fn answer(
        self: Arc<Self>,
        request: http::Request<hyper::body::Incoming>,
    ) -> http::Response<tonic::body::Body> {
        let call = request.uri().path().rsplit('/').next().map(str::to_owned);
        match call.unwrap_or_default().as_str() {
            "ListAndWatch" => {
                let service = tower::service_fn(|_: Request<Empty>| {
                    let lists = tokio_stream(self.list.clone());
                    async move { Ok::<_, Status>(Response::new(lists)) }
                });
                let codec = ProstCodec::<Devices, Empty>::default();
                let mut grpc = tonic::server::Grpc::new(codec);
                grpc.server_streaming(service, request).await
            }
            "GetPreferredAllocation" => {
                let service = |asked: IdsOfContainers| {
                    let last = asked.containers[0].ids.last().cloned();
                    IdsOfContainers {
                        containers: vec![Ids {
                            ids: last.into_iter().collect(),
                        }],
                    }
                };
                unary(request, service).await
            }
            "Allocate" => {
                let service = |asked: IdsOfContainers| {
                    let ids = asked.containers[0].ids.join(",");
                    self.calls
                        .lock()
                        .expect("lock")
                        .push(format!("allocate {ids}"));
                    Allocations {
                        containers: vec![self.allocation(ids)],
                    }
                };
                unary(request, service).await
            }
            "PreStartContainer" => {
                let service = |asked: Ids| {
                    let call = format!("start {}", asked.ids.join(","));
                    self.calls.lock().expect("lock").push(call);
                    Empty {}
                };
                unary(request, service).await
            }
            _ => Status::unimplemented("no such call").into_http(),
        }
    }

    fn allocation(&self, ids: String) -> Allocation {
        Allocation {
            envs: [("DEVICES".to_owned(), ids)].into(),
            mounts: vec![Place {
                container_path: "/shown".to_owned(),
                host_path: self.shown.display().to_string(),
                read_only: true,
            }],
            devices: vec![DeviceFile {
                container_path: "/dev/gadget".to_owned(),
                host_path: "/dev/fuse".to_owned(),
                permissions: "rw".to_owned(),
            }],
        }
    }
}

fn tokio_stream(
    list: watch::Receiver<Vec<Device>>,
) -> impl futures::Stream<Item = Result<Devices, Status>> {
    futures::stream::unfold((list, true), |(mut list, first)| async move {
        if !first {
            list.changed().await.ok()?;
        }
        let devices = list.borrow_and_update().clone();
        Some((Ok(Devices { devices }), (list, false)))
    })
}

async fn unary<Q, A>(
    request: http::Request<hyper::body::Incoming>,
    answer: impl Fn(Q) -> A,
) -> http::Response<tonic::body::Body>
where
    Q: Message + Default + 'static,
    A: Message + Default + 'static,
{
    let service = tower::service_fn(|asked: Request<Q>| {
        let answer = answer(asked.into_inner());
        async move { Ok::<_, Status>(Response::new(answer)) }
    });
    let mut grpc = tonic::server::Grpc::new(ProstCodec::<A, Q>::default());
    grpc.unary(service, request).await
}

/// One call at a socket.
async fn ask<Q, A>(socket: PathBuf, call: &'static str, request: Q) -> Result<A, Status>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    let endpoint = format!("unix://{}", socket.display());
    let endpoint = tonic::transport::Endpoint::from_shared(endpoint).expect("endpoint");
    let channel = endpoint.connect().await;
    let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut grpc = tonic::client::Grpc::new(channel);
    let ready = grpc.ready().await;
    ready.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = http::uri::PathAndQuery::from_static(call);
    let answer = grpc.unary(Request::new(request), path, ProstCodec::<Q, A>::default());
    Ok(answer.await?.into_inner())
}

impl Plugin {
    fn new(kubelet: &Path, shown: &Path, devices: &[(&str, &str)]) -> Self {
        let (sender, receiver) = watch::channel(list(devices));
        let state = State {
            shown: shown.to_owned(),
            calls: Mutex::default(),
            list: receiver,
        };
        Self {
            runtime: tokio::runtime::Runtime::new().expect("runtime"),
            kubelet: kubelet.to_owned(),
            list: sender,
            state: Arc::new(state),
        }
    }

    fn ask<Q, A>(&self, socket: &str, call: &'static str, request: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let socket = self.kubelet.join(socket);
        self.runtime.block_on(ask(socket, call, request))
    }

    fn register(&self, endpoint: &str, resource: &str) -> Result<Empty, Status> {
        let request = Register {
            version: "v1beta1".to_owned(),
            endpoint: endpoint.to_owned(),
            resource_name: resource.to_owned(),
            options: Some(Options {
                pre_start_required: true,
                preferred: true,
            }),
        };
        let call = "/v1beta1.Registration/Register";
        self.ask("device-plugins/kubelet.sock", call, request)
    }

    /// Serves and registers, as a plugin does that sees the kubelet's socket come.
    fn come(&self) {
        let path = self.kubelet.join("device-plugins/gadget.sock");
        let _stale = std::fs::remove_file(&path);
        let _in_runtime = self.runtime.enter();
        let listener = tokio::net::UnixListener::bind(path).expect("listen");
        let state = self.state.clone();
        let serve = async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = state.clone();
                let answer = move |request| {
                    state
                        .clone()
                        .answer(request)
                        .map(|answer| Ok::<_, std::convert::Infallible>(answer.map(body)))
                };
                let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), hyper::service::service_fn(answer));
                tokio::task::spawn_local(served);
            }
        };
        let handle = self.runtime.handle().clone();
        std::thread::spawn(move || {
            let local = tokio::task::LocalSet::new();
            handle.block_on(local.run_until(serve));
        });
        self.register("gadget.sock", RESOURCE).expect("registered");
    }

    fn calls(&self) -> Vec<String> {
        self.state.calls.lock().expect("lock").clone()
    }
}

fn body(body: tonic::body::Body) -> http_body_util::combinators::UnsyncBoxBody<Bytes, Status> {
    body.boxed_unsync()
}

/// Capacity and allocatable.
fn amounts(site: &Site, want: [&str; 2]) {
    eventually(&format!("the Node has {want:?}"), || {
        let status = site.json(&["get", "node", "edge"])["status"].clone();
        let has = ["capacity", "allocatable"].map(|list| status[list][RESOURCE].clone());
        match has == want.map(Value::from) {
            true => Ok(()),
            false => Err(format!("{has:?}")),
        }
    });
}

fn user(name: &str, image: &str, spec: Value) -> String {
    let words = "echo $DEVICES; cat /shown/word; ls -l /dev/gadget; (exec 3<>/dev/gadget) && echo opened; sleep 300";
    let container = json!({"image": image, "command": ["sh", "-c", words],
        "resources": {"limits": {RESOURCE: "1"}}});
    pod(name, container, spec)
}

#[test]
fn a_plugin_s_devices_are_given_to_containers_and_kept() {
    let home = tempfile::tempdir().expect("directory");
    let kubelet = home.path().join("kubelet");
    let dir = kubelet.display().to_string();
    let args = ["--kubelet-dir", &dir, "--node-name", "edge"];
    let Some((_registry, image, mut site)) = with_busybox(&args) else {
        return;
    };
    std::fs::write(home.path().join("word"), "shown\n").expect("write");
    let three = [("a", "Healthy"), ("b", "Healthy"), ("c", "Unhealthy")];
    let plugin = Plugin::new(&kubelet, home.path(), &three);
    assert!(
        plugin.register("x.sock", "cpu").is_err(),
        "no plugin's name"
    );
    plugin.come();
    amounts(&site, ["3", "2"]);

    site.apply(&user("first", &image, json!({})));
    let first = phase(&site, "first", "Running");
    site.says(&["logs", "first"], "opened");
    let log = site.ok(&["logs", "first"]);
    assert!(log.starts_with("b\nshown\ncrw"), "{log}");
    assert_eq!(plugin.calls(), ["allocate b", "start b"]);

    let pods = "pod-resources/kubelet.sock";
    let get = |name: &str| {
        let asked = PodName {
            name: name.to_owned(),
            namespace: "default".to_owned(),
        };
        plugin.ask::<_, OnePod>(pods, "/v1.PodResourcesLister/Get", asked)
    };
    let of_first = OfPod {
        name: "first".to_owned(),
        namespace: "default".to_owned(),
        containers: vec![OfContainer {
            name: "main".to_owned(),
            devices: vec![OfResource {
                resource_name: RESOURCE.to_owned(),
                ids: vec!["b".to_owned()],
            }],
        }],
    };
    assert_eq!(get("first").expect("an answer").pod, Some(of_first.clone()));
    assert_eq!(get("none").expect_err("none").code(), tonic::Code::NotFound);
    let all: Pods = plugin
        .ask(pods, "/v1.PodResourcesLister/List", Empty {})
        .expect("an answer");
    assert!(all.pods.contains(&of_first), "{all:?}");
    let call = "/v1.PodResourcesLister/GetAllocatableResources";
    let free: Allocatable = plugin.ask(pods, call, Empty {}).expect("an answer");
    let ids: Vec<_> = free.devices.iter().flat_map(|d| &d.ids).collect();
    assert_eq!(ids, ["a", "b"]);

    // The agent is killed. The next knows whose the device is, and waits for the plugin.
    site.signal("-KILL");
    site.up(&args);
    amounts(&site, ["0", "0"]);
    assert_eq!(get("first").expect("an answer").pod, Some(of_first));
    plugin.come();
    amounts(&site, ["3", "2"]);
    site.apply(&user("second", &image, json!({})));
    phase(&site, "second", "Running");
    site.says(&["logs", "second"], "opened");
    assert!(site.ok(&["logs", "second"]).starts_with("a\n"));
    let again = phase(&site, "first", "Running");
    let run = "/status/containerStatuses/0/containerID";
    assert_eq!(again.pointer(run), first.pointer(run));

    // Nothing is left: neither the scheduler nor the node gives what is not there.
    site.apply(&user("third", &image, json!({"nodeName": "edge"})));
    let third = phase(&site, "third", "Failed");
    assert_eq!(third["status"]["reason"], "UnexpectedAdmissionError");
    assert_eq!(
        third["status"]["message"],
        "Pod was rejected: Allocate failed due to requested number of devices unavailable for example.com/dev. Requested: 1, Available: 0, which is unexpected"
    );
    site.apply(&user("fourth", &image, json!({})));
    site.says(
        &["describe", "pod", "fourth"],
        "Insufficient example.com/dev",
    );

    // What a pod had is free after it; what broke is not.
    site.ok(&["delete", "pod", "first"]);
    phase(&site, "fourth", "Running");
    site.says(&["logs", "fourth"], "opened");
    assert!(site.ok(&["logs", "fourth"]).starts_with("b\n"));
    plugin
        .list
        .send_replace(list(&[("a", "Unhealthy"), ("b", "Healthy")]));
    amounts(&site, ["2", "1"]);
    drop(plugin);
    amounts(&site, ["2", "0"]);
}
