//! The environment, also as the settings of `wasi:config`; `wasi:logging`: lines with a level.
//!
//! The last two are drafts: the versions here are those that toolchains build against.

use crate::state::ComponentState;
use crate::stdio::LogStream;
use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Lift, Linker, Lower};

/// Names of the interface with settings; they differ in nothing else.
const CONFIG: [&str; 2] = [
    "wasi:config/store@0.2.0-rc.1",
    "wasi:config/store@0.2.0-draft",
];

const LOGGING: &str = "wasi:logging/logging@0.1.0-draft";

type Store<'a> = StoreContextMut<'a, ComponentState>;

/// `wasi:config/store.error`; nothing here fails.
#[derive(ComponentType, Lift, Lower)]
#[component(variant)]
enum ConfigError {
    #[component(name = "upstream")]
    Upstream(String),
    #[component(name = "io")]
    Io(String),
}

/// `wasi:logging/logging.level`.
#[allow(dead_code, reason = "guests make them")]
#[derive(Clone, Copy, Debug, ComponentType, Lift, Lower)]
#[component(enum)]
#[repr(u8)]
enum Level {
    #[component(name = "trace")]
    Trace,
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
    #[component(name = "critical")]
    Critical,
}

pub(crate) fn link(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    for name in CONFIG {
        let mut config = linker.instance(name)?;
        config.func_wrap("get", |store: Store<'_>, (key,): (String,)| {
            let settings = &store.data().egress.around.settings;
            let value = settings.get(&key).map(str::to_owned);
            Ok((Ok::<_, ConfigError>(value),))
        })?;
        config.func_wrap("get-all", |store: Store<'_>, (): ()| {
            let settings = store.data().egress.around.settings.pairs();
            Ok((Ok::<_, ConfigError>(settings),))
        })?;
    }
    linker.instance(LOGGING)?.func_wrap("log", log)
}

/// Puts the environment in place that all instances of a container share; after wasmtime's own,
/// of which each instance has a copy, is linked. A pod's may be large: seven variables for each
/// Service of its namespace.
pub(crate) fn link_environment(
    linker: &mut Linker<ComponentState>,
    version: &str,
) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    linker
        .instance(&format!("wasi:cli/environment@{version}"))?
        .func_wrap("get-environment", |store: Store<'_>, (): ()| {
            Ok((store.data().egress.around.settings.pairs(),))
        })?;
    linker.allow_shadowing(false);
    Ok(())
}

fn log(
    store: Store<'_>,
    (level, context, message): (Level, String, String),
) -> wasmtime::Result<()> {
    let level = format!("{level:?}").to_uppercase();
    let context = if context.is_empty() {
        context
    } else {
        format!(" {context}:")
    };
    let line = format!("{level}{context} {message}\n");
    let log = &store.data().egress.around.log;
    log.open(LogStream::Stderr).write(line.as_bytes());
    Ok(())
}
