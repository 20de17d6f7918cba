//! What a store holds for one instance, and the linkers that offer it to guests.

use crate::egress::Egress;
use crate::limits::Limiter;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use wasmtime::Engine;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

/// State of a component's instance.
pub(crate) struct ComponentState {
    pub(crate) wasi: WasiCtx,
    pub(crate) table: ResourceTable,
    pub(crate) http: WasiHttpCtx,
    pub(crate) egress: Egress,
    pub(crate) limiter: Limiter,
    /// Held for its drop.
    pub(crate) _live: Live,
}

/// State of a core module's instance.
pub(crate) struct ModuleState {
    pub(crate) wasi: WasiP1Ctx,
    pub(crate) limiter: Limiter,
    /// Held for its drop.
    pub(crate) _live: Live,
}

impl WasiView for ComponentState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl WasiHttpView for ComponentState {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            hooks: &mut self.egress,
            table: &mut self.table,
            ctx: &mut self.http,
        }
    }
}

/// Counts an instance while it is alive.
pub(crate) struct Live(Arc<AtomicU32>);

impl Live {
    pub(crate) fn new(count: Arc<AtomicU32>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All that guests of an engine may import.
pub(crate) struct Linkers {
    pub(crate) component: wasmtime::component::Linker<ComponentState>,
    pub(crate) module: wasmtime::Linker<ModuleState>,
}

pub(crate) fn link_plain(engine: &Engine) -> wasmtime::Result<Linkers> {
    let mut component = wasmtime::component::Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut component)?;
    crate::sockets::link_02(&mut component)?;
    crate::settings::link_environment(&mut component, crate::sockets::V02)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut component)?;
    crate::settings::link(&mut component)?;
    crate::keyvalue::link(&mut component)?;
    let mut module = wasmtime::Linker::new(engine);
    wasmtime_wasi::p1::add_to_linker_async(&mut module, |state: &mut ModuleState| &mut state.wasi)?;
    Ok(Linkers { component, module })
}

pub(crate) fn link_concurrent(engine: &Engine) -> wasmtime::Result<Linkers> {
    let mut linkers = link_plain(engine)?;
    wasmtime_wasi::p3::add_to_linker(&mut linkers.component)?;
    crate::sockets::link_03(&mut linkers.component)?;
    crate::settings::link_environment(&mut linkers.component, crate::sockets::V03)?;
    wasmtime_wasi_http::p3::add_to_linker(&mut linkers.component)?;
    Ok(linkers)
}
