//! The engines and what is shared by all guests of a process.
//!
//! Two engines, because a store of the one that can run concurrent (WASI 0.3) guests costs each
//! request of a 0.2 guest about as much again. The second is made when the first 0.3 guest comes.

use crate::cache::Cache;
use crate::environment::Variables;
use crate::kind::Dialect;
use crate::state::{Linkers, link_concurrent, link_plain};
use crate::ticker::Ticker;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use tokio::sync::Semaphore;
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

/// Live instances that a pool is made for, most first; the first that the machine's address
/// space and `ulimit -v` allow is taken. A slot reserves two memories of 4 GiB of addresses.
const POOL_INSTANCES: [u32; 4] = [1000, 250, 60, 12];

/// Live instances where no pool could be made.
const ON_DEMAND_INSTANCES: u32 = 100;

/// Of each linear memory, kept mapped when an instance ends: the next one of the same program
/// finds its pages there instead of faulting them in.
const MEMORY_KEPT_BYTES: usize = 256 << 10;

/// The same for tables.
const TABLE_KEPT_BYTES: usize = 16 << 10;

/// Wasm stack of a guest; past it the guest traps.
const WASM_STACK_BYTES: usize = 1 << 20;

/// Native stack under it, host calls included.
const FIBER_STACK_BYTES: usize = 2 << 20;

/// How to set up a [`Runtime`].
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    /// Where compiled programs are kept; made with mode 0700 when missing.
    pub compiled_dir: PathBuf,
}

/// Why the engines could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The compiler or its memory could not be set up.
    #[error("set up the WebAssembly engine")]
    Engine(#[source] wasmtime::Error),
    /// The folder for compiled programs can't be used.
    #[error("use the folder for compiled programs {}", path.display())]
    CompiledDir {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Engines, cache and ticker of a process. Clones share them.
#[derive(Clone)]
pub struct Runtime {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    plain: EngineSet,
    concurrent: OnceLock<Option<EngineSet>>,
    pub(crate) cache: Cache,
    pub(crate) ticker: Ticker,
    pub(crate) variables: Variables,
    /// Instances that serve right now.
    pub(crate) active: Arc<Semaphore>,
    /// Instances kept for reuse with nothing to do.
    pub(crate) warm: Arc<Semaphore>,
    /// Instances of 0.3 guests, at work or not; their engine has a pool of its own.
    pub(crate) concurrent_slots: Arc<Semaphore>,
}

/// An engine with all that guests of its dialect may import.
pub(crate) struct EngineSet {
    pub(crate) engine: Engine,
    pub(crate) linkers: Linkers,
    pub(crate) instances: u32,
}

impl Runtime {
    /// Sets the engines up.
    ///
    /// # Errors
    /// When the engine can't be made on this machine or the folder can't be used.
    pub fn new(config: &RuntimeConfig) -> Result<Self, RuntimeError> {
        let plain = EngineSet::new(Dialect::Plain).map_err(RuntimeError::Engine)?;
        let cache =
            Cache::open(&config.compiled_dir).map_err(|source| RuntimeError::CompiledDir {
                path: config.compiled_dir.clone(),
                source,
            })?;
        let ticker = Ticker::new(&plain.engine);
        // Instances kept warm and those at work add up to the slots of the pool.
        let warm = (plain.instances / 4) as usize;
        let active = plain.instances as usize - warm;
        Ok(Self {
            shared: Arc::new(Shared {
                plain,
                concurrent: OnceLock::new(),
                cache,
                ticker,
                variables: Variables::default(),
                active: Arc::new(Semaphore::new(active)),
                warm: Arc::new(Semaphore::new(warm)),
                concurrent_slots: Arc::new(Semaphore::new(active + warm)),
            }),
        })
    }

    /// Instances that may be alive at once.
    pub fn instances_max(&self) -> u32 {
        self.shared.plain.instances
    }
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime")
            .field("instances_max", &self.instances_max())
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// The engine for a dialect; `None` when the machine can't have it (logged once).
    pub(crate) fn engine(&self, dialect: Dialect) -> Option<&EngineSet> {
        match dialect {
            Dialect::Plain => Some(&self.plain),
            Dialect::Concurrent => self
                .concurrent
                .get_or_init(|| match EngineSet::new(Dialect::Concurrent) {
                    Ok(set) => {
                        self.ticker.add(&set.engine);
                        Some(set)
                    }
                    Err(error) => {
                        tracing::error!(%error, "could not set up the engine for WASI 0.3 guests");
                        None
                    }
                })
                .as_ref(),
        }
    }
}

impl EngineSet {
    fn new(dialect: Dialect) -> wasmtime::Result<Self> {
        let (engine, instances) = engine(dialect)?;
        let linkers = match dialect {
            Dialect::Plain => link_plain(&engine)?,
            Dialect::Concurrent => link_concurrent(&engine)?,
        };
        Ok(Self {
            engine,
            linkers,
            instances,
        })
    }
}

fn engine(dialect: Dialect) -> wasmtime::Result<(Engine, u32)> {
    for instances in POOL_INSTANCES {
        let mut config = config(dialect);
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(instances)));
        match Engine::new(&config) {
            Ok(engine) => return Ok((engine, instances)),
            Err(error) => {
                tracing::debug!(%error, instances, "this machine has no room for a pool of instances");
            }
        }
    }
    tracing::info!("instances are allocated one by one: address space is short");
    let mut config = config(dialect);
    config.allocation_strategy(InstanceAllocationStrategy::OnDemand);
    Ok((Engine::new(&config)?, ON_DEMAND_INSTANCES))
}

fn config(dialect: Dialect) -> Config {
    let mut config = Config::new();
    match dialect {
        Dialect::Plain => {
            config.concurrency_support(false);
        }
        Dialect::Concurrent => {
            config.wasm_component_model_async(true);
        }
    }
    config.epoch_interruption(true);
    config.max_wasm_stack(WASM_STACK_BYTES);
    config.async_stack_size(FIBER_STACK_BYTES);
    config.memory_init_cow(true);
    // Only debuggers and profilers of the whole process would read it.
    config.native_unwind_info(false);
    config
}

fn pool(instances: u32) -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    // A component may be made of many core modules, most of them without memory.
    pool.total_component_instances(instances)
        .total_core_instances(instances * 16)
        .total_memories(instances * 2)
        .total_tables(instances * 4)
        .total_stacks(instances * 2)
        .total_gc_heaps(instances)
        .max_tables_per_module(8)
        .max_memories_per_module(4)
        .table_elements(100_000)
        .linear_memory_keep_resident(MEMORY_KEPT_BYTES)
        .table_keep_resident(TABLE_KEPT_BYTES)
        .pagemap_scan(Enabled::Auto);
    pool
}
