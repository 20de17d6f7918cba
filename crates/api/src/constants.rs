//! Labels, annotations, taints and names that more than one crate must agree on.

/// Version of Kubernetes whose API this is.
pub const KUBERNETES_VERSION: &str = "v1.37.1";
/// Names that the API server answers to inside a cluster, and on its machine.
pub const API_SERVER_NAMES: [&str; 5] = [
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "localhost",
];
/// Kind of the runtime class for Wasm pods in a process of their own.
pub const RUNTIME_CLASS_WASM_PROCESS: &str = "wasm-process";
/// Pod annotation: `fresh`, or how many requests one instance may serve.
pub const ANNOTATION_INSTANCE_REUSE: &str = "salp.dev/instance-reuse";
/// Deployment annotation: how long nobody must ask before it sleeps at zero, as `30s`.
pub const ANNOTATION_SCALE_TO_ZERO: &str = "salp.dev/scale-to-zero";
/// Deployment annotation: it sleeps, and comes back to so many replicas.
pub const ANNOTATION_ASLEEP_REPLICAS: &str = "salp.dev/asleep-replicas";
/// Deployment annotation: the node where a pod stands by for it.
pub const ANNOTATION_ASLEEP_ON: &str = "salp.dev/asleep-on";
/// ReplicaSet annotation: `NODE/POD`, a pod that runs already and is to be created under
/// this name. On a Deployment `NODE/POD@GENERATION`, for the ReplicaSet that this generation
/// scales up from zero.
pub const ANNOTATION_WOKEN_POD: &str = "salp.dev/woken-pod";
/// Pod annotation: the node on which it was woken; its sandbox is named for the pod, not for
/// its UID.
pub const ANNOTATION_WOKEN_ON: &str = "salp.dev/woken-on";
/// Krustlet's pod annotation: JSON list of origins that a guest may call.
pub const ANNOTATION_ALLOWED_DOMAINS: &str = "alpha.wasi.krustlet.dev/allowed-domains";
/// Krustlet's pod annotation: how many outgoing requests may be under way at once.
pub const ANNOTATION_MAX_CONCURRENT_REQUESTS: &str =
    "alpha.wasi.krustlet.dev/max-concurrent-requests";
/// Node annotation: the directory in which volumes are made that are to be on this node.
pub const ANNOTATION_VOLUMES_DIR: &str = "salp.dev/volumes-dir";
/// Who makes volumes that are directories of a node, and the class that asks for them.
pub const LOCAL_PATH_PROVISIONER: &str = "salp.dev/local-path";
/// See [`LOCAL_PATH_PROVISIONER`]: the class of claims that name none.
pub const LOCAL_PATH_CLASS: &str = "local-path";
/// Upstream's annotation of volumes: who has made it.
pub const ANNOTATION_PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// Finalizer of claims: they stay while a pod uses them.
pub const FINALIZER_CLAIM_IN_USE: &str = "kubernetes.io/pvc-protection";
/// Finalizer of volumes: they stay while they are bound.
pub const FINALIZER_VOLUME_IN_USE: &str = "kubernetes.io/pv-protection";
/// Node label and Service-less pods: the host name.
pub const LABEL_HOSTNAME: &str = "kubernetes.io/hostname";
/// Node label.
pub const LABEL_ARCH: &str = "kubernetes.io/arch";
/// Node label.
pub const LABEL_OS: &str = "kubernetes.io/os";
/// EndpointSlice label.
pub const LABEL_SERVICE_NAME: &str = "kubernetes.io/service-name";
/// EndpointSlice label.
pub const LABEL_MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Taint of a node whose Ready condition is false.
pub const TAINT_NOT_READY: &str = "node.kubernetes.io/not-ready";
/// Taint of a node that is not heard from.
pub const TAINT_UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// Taint of a cordoned node.
pub const TAINT_UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Of these annotations `true` makes a StorageClass the one of claims that state none.
pub const ANNOTATIONS_DEFAULT_CLASS: [&str; 2] = [
    "storageclass.kubernetes.io/is-default-class",
    "storageclass.beta.kubernetes.io/is-default-class",
];
