//! A loaded program: compiled, its imports bound, shared by all pods that run it.

use crate::engine::{EngineSet, Runtime};
use crate::kind::{GuestKind, KindError};
use crate::precompiled::{Fresh, Trusted};
use crate::state::{ComponentState, ModuleState};
use std::path::PathBuf;
use wasmtime::component::Component;
use wasmtime::{InstancePre, Module};
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi::p3::bindings::CommandPre as CommandPre03;
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p3::bindings::ServicePre;

/// A program ready to be instantiated. Kept once a process and digest, see [`Runtime::load`].
pub struct Program {
    pub(crate) runtime: Runtime,
    pub(crate) digest: String,
    pub(crate) kind: GuestKind,
    pub(crate) code: Code,
}

pub(crate) enum Code {
    Http02(ProxyPre<ComponentState>),
    Http03(ServicePre<ComponentState>),
    Command02(CommandPre<ComponentState>),
    Command03(CommandPre03<ComponentState>),
    Preview1(InstancePre<ModuleState>),
}

/// Why a file could not be made a program.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LoadError {
    /// The file can't be read.
    #[error("read {}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// It is no WebAssembly that a pod can run.
    #[error(transparent)]
    Kind(#[from] KindError),
    /// It does not compile.
    #[error("compile WebAssembly: {0}")]
    Compile(String),
    /// It needs what this host lacks.
    #[error("{what} imports {import}, which this host does not provide")]
    MissingImport {
        /// `component` or `module`.
        what: &'static str,
        /// The interface and, where only a part lacks, the part.
        import: String,
    },
    /// The machine can't run programs of this kind.
    #[error("run WASI 0.3 programs: this machine's engine could not be set up")]
    NoEngine,
}

impl Program {
    /// What it is.
    pub fn kind(&self) -> GuestKind {
        self.kind
    }

    /// The digest that it was loaded by.
    pub fn digest(&self) -> &str {
        &self.digest
    }
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Program")
            .field("digest", &self.digest)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// Compiled code from either place.
pub(crate) enum Compiled {
    Stored(Trusted),
    Fresh(Fresh),
}

impl Compiled {
    fn component(self, engine: &wasmtime::Engine) -> wasmtime::Result<Component> {
        match self {
            Self::Stored(file) => file.component(engine),
            Self::Fresh(bytes) => bytes.component(engine),
        }
    }

    fn module(self, engine: &wasmtime::Engine) -> wasmtime::Result<Module> {
        match self {
            Self::Stored(file) => file.module(engine),
            Self::Fresh(bytes) => bytes.module(engine),
        }
    }
}

/// Binds a program's imports.
pub(crate) fn link(
    set: &EngineSet,
    kind: GuestKind,
    compiled: Compiled,
) -> Result<Code, LinkError> {
    if kind == GuestKind::CommandPreview1 {
        let module = compiled.module(&set.engine).map_err(LinkError::Stale)?;
        return set
            .linkers
            .module
            .instantiate_pre(&module)
            .map(Code::Preview1)
            .map_err(|error| LinkError::Import(missing("module", &error)));
    }
    let component = compiled.component(&set.engine).map_err(LinkError::Stale)?;
    let pre = set
        .linkers
        .component
        .instantiate_pre(&component)
        .map_err(|error| LinkError::Import(missing("component", &error)))?;
    match kind {
        GuestKind::Http02 => ProxyPre::new(pre).map(Code::Http02),
        GuestKind::Http03 => ServicePre::new(pre).map(Code::Http03),
        GuestKind::Command03 => CommandPre03::new(pre).map(Code::Command03),
        GuestKind::Command02 | GuestKind::CommandPreview1 => {
            CommandPre::new(pre).map(Code::Command02)
        }
    }
    .map_err(|error| LinkError::Import(LoadError::Compile(format!("{error:#}"))))
}

pub(crate) enum LinkError {
    /// The compiled file is not of this engine: compile again.
    Stale(wasmtime::Error),
    /// The program's imports or exports do not fit.
    Import(LoadError),
}

/// Names what is missing, from the names that wasmtime puts in backquotes.
fn missing(what: &'static str, error: &wasmtime::Error) -> LoadError {
    let quoted = |text: &str| {
        let mut parts = text.split('`');
        parts.nth(1).map(str::to_owned)
    };
    let mut chain = error.chain().map(ToString::to_string);
    let Some(import) = chain.next().as_deref().and_then(quoted) else {
        return LoadError::Compile(format!("{error:#}"));
    };
    // `a::b` of a core module; the parts of an interface are named by the causes.
    let import = match import.split_once("::") {
        Some((module, name)) => format!("\"{name}\" of \"{module}\""),
        None => match chain.next().as_deref().and_then(quoted) {
            Some(part) => format!("\"{import}\" (at least its `{part}`)"),
            None => format!("\"{import}\""),
        },
    };
    LoadError::MissingImport { what, import }
}
