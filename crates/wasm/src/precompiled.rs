//! Loads compiled code: the one place that trusts bytes to be machine code that this compiler made.
#![allow(
    unsafe_code,
    reason = "mapping machine code is unsafe by nature; see SAFETY on each call"
)]

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use wasmtime::component::Component;
use wasmtime::{Engine, Module};

/// A compiled file that only this user can have written.
pub(crate) struct Trusted(PathBuf);

impl Trusted {
    /// Opens a compiled file; refuses one that another user owns or may write.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let file = File::options()
            .read(true)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)?;
        let meta = file.metadata()?;
        let own = meta.uid() == rustix::process::geteuid().as_raw();
        if !meta.is_file() || !own || meta.mode() & 0o077 != 0 {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "owned or writable by another user",
            ));
        }
        Ok(Self(path.to_owned()))
    }

    pub(crate) fn component(self, engine: &Engine) -> wasmtime::Result<Component> {
        // SAFETY: the file must be what `precompile_component` returned. It is named by the
        // source's digest and this engine's compatibility hash in a 0700 folder, was written
        // 0600 by this user (checked in `open`), synced, then renamed into place, and is never
        // written again. wasmtime checks its header against the engine.
        unsafe { Component::deserialize_file(engine, self.0) }
    }

    pub(crate) fn module(self, engine: &Engine) -> wasmtime::Result<Module> {
        // SAFETY: as for `component`, with `precompile_module`.
        unsafe { Module::deserialize_file(engine, self.0) }
    }
}

/// Code that was compiled a moment ago in this process and could not be stored.
pub(crate) struct Fresh(Vec<u8>);

impl Fresh {
    /// Compiles a component or core module.
    pub(crate) fn compile(engine: &Engine, wasm: &[u8], component: bool) -> wasmtime::Result<Self> {
        if component {
            engine.precompile_component(wasm).map(Self)
        } else {
            engine.precompile_module(wasm).map(Self)
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn component(&self, engine: &Engine) -> wasmtime::Result<Component> {
        // SAFETY: the bytes are those that `precompile_component` returned in `compile`; the
        // field is private to this module and nothing writes it.
        unsafe { Component::deserialize(engine, &self.0) }
    }

    pub(crate) fn module(&self, engine: &Engine) -> wasmtime::Result<Module> {
        // SAFETY: as for `component`, with `precompile_module`.
        unsafe { Module::deserialize(engine, &self.0) }
    }
}
