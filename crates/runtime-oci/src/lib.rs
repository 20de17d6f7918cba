//! Container pods, by any OCI runtime on the machine.
//!
//! [`supervise`] is the process that containers belong to; [`Containers`] is the same from the
//! agent's process, which starts it with the first container pod; [`ByImage`] puts it beside the
//! runtime of Wasm pods, so that a pod's images say where it runs. What a container is told to be
//! is in `spec`, its files in `bundle`, its pod's namespaces in `sandbox`, and the runtimes'
//! command line in `seam`. What a pod is, is in crate `node`.

mod agent;
mod bundle;
mod by_image;
mod cgroup;
mod confine;
mod console;
mod mounts;
mod pause;
mod process;
mod programs;
mod sandbox;
mod seam;
mod seccomp;
mod spec;
mod supervisor;
mod users;

pub use agent::{Containers, Launch, Place, connect};
pub use by_image::ByImage;
pub use pause::pause;
pub use programs::{
    BUILT_IN, Program, SELF, Stated as StatedProgram, built_in, find as find_programs,
};
pub use remote_runtime::LogLimits;
pub use supervisor::{Config, SuperviseError, supervise};

/// What the supervisor says that it is.
const VERSION: &str = concat!("salp-oci://", env!("CARGO_PKG_VERSION"));
