//! Compiled programs: on disk once a machine, in memory once a process.
//!
//! A file's name is the source's digest and the engine's compatibility hash, which covers
//! the compiler's version, its settings and the processor's features; so a file that is there
//! fits, and an upgrade or another machine makes its own. Start with [`Runtime::load`].

use crate::engine::{EngineSet, Runtime};
use crate::kind::GuestKind;
use crate::precompiled::{Fresh, Trusted};
use crate::program::{Compiled, LinkError, LoadError, Program, link};
use bytes::Bytes;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::fs::{DirBuilder, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use tokio::sync::Semaphore;

/// Programs compiled at once; the others wait. Each uses all processors at low priority.
const COMPILING_MAX: usize = 2;

/// Niceness of compiler threads: serving comes first, but a machine that is never idle must not
/// keep a new pod waiting for ever (a tenth of a busy processor each).
const COMPILER_NICE: i32 = 10;

pub(crate) struct Cache {
    dir: PathBuf,
    /// By digest. A slot's lock is held while its program is loaded, so that it is loaded once.
    slots: Mutex<HashMap<String, Arc<Slot>>>,
    compiling: Semaphore,
    temporary: AtomicU64,
}

type Slot = tokio::sync::Mutex<Weak<Program>>;

impl Cache {
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        // Left by a process that was killed while it wrote.
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().ends_with(".tmp") {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            slots: Mutex::default(),
            compiling: Semaphore::new(COMPILING_MAX),
            temporary: AtomicU64::new(0),
        })
    }

    fn slot(&self, digest: &str) -> Arc<Slot> {
        let mut slots = self.slots.lock();
        if let Some(slot) = slots.get(digest) {
            return slot.clone();
        }
        // Forget programs that no pod runs any more.
        slots.retain(|_, slot| {
            Arc::strong_count(slot) > 1 || slot.try_lock().is_ok_and(|p| p.strong_count() > 0)
        });
        slots.entry(digest.to_owned()).or_default().clone()
    }

    fn file(&self, digest: &str, set: &EngineSet) -> PathBuf {
        let mut hasher = DefaultHasher::new();
        set.engine.precompile_compatibility_hash().hash(&mut hasher);
        let digest: String = digest
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        self.dir
            .join(format!("{digest}.{:016x}.cwasm", hasher.finish()))
    }

    /// Stores compiled code so that it is there whole or not at all.
    fn store(&self, path: &Path, code: &[u8]) -> io::Result<()> {
        let unique = self.temporary.fetch_add(1, Ordering::Relaxed);
        let temporary = self
            .dir
            .join(format!("{}-{unique}.tmp", std::process::id()));
        let written = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| {
                file.write_all(code)?;
                file.sync_all()
            })
            .and_then(|()| std::fs::rename(&temporary, path));
        if written.is_err() {
            // Best effort: `open` removes it at the next start otherwise.
            drop(std::fs::remove_file(&temporary));
            return written;
        }
        File::open(&self.dir)?.sync_all()
    }
}

impl Runtime {
    /// The program in a file, compiled if this machine has not done so before.
    ///
    /// `digest` names its content. Many callers of one digest wait for one compilation and
    /// share one program. A dropped call stops nothing: the next one finds the compiled file.
    ///
    /// # Errors
    /// When the file can't be read, is no program, does not compile or lacks an import.
    pub async fn load(&self, digest: &str, path: &Path) -> Result<Arc<Program>, LoadError> {
        let slot = self.shared.cache.slot(digest);
        let mut slot = slot.lock().await;
        if let Some(program) = slot.upgrade() {
            return Ok(program);
        }
        let source = Source {
            runtime: self.clone(),
            digest: digest.to_owned(),
            origin: Origin::File(path.to_owned()),
            stored: true,
        };
        let program = Arc::new(source.load().await?);
        *slot = Arc::downgrade(&program);
        Ok(program)
    }

    /// The program in these bytes, which may be WebAssembly's text. `stored` says whether the
    /// compiled code is kept for the next time; what pods can write should not fill the disk.
    ///
    /// # Errors
    /// As [`Runtime::load`].
    pub async fn load_bytes(&self, wasm: Bytes, stored: bool) -> Result<Arc<Program>, LoadError> {
        let source = Source {
            runtime: self.clone(),
            digest: format!("sha256:{}", hex::encode(Sha256::digest(&wasm))),
            origin: Origin::Bytes(wasm),
            stored,
        };
        source.load().await.map(Arc::new)
    }
}

#[derive(Clone)]
enum Origin {
    File(PathBuf),
    Bytes(Bytes),
}

#[derive(Clone)]
struct Source {
    runtime: Runtime,
    digest: String,
    origin: Origin,
    /// Whether compiled code is looked for on disk, and left there.
    stored: bool,
}

impl Source {
    async fn load(self) -> Result<Program, LoadError> {
        let stored = self.clone();
        let (kind, code) = blocking(move || stored.stored()).await?;
        let code = match code {
            Some(code) => code,
            None => {
                // Never closed.
                let _permit = self.runtime.shared.cache.compiling.acquire().await.ok();
                let source = self.clone();
                blocking(move || source.compile(kind)).await?
            }
        };
        Ok(Program {
            runtime: self.runtime,
            digest: self.digest,
            kind,
            code,
        })
    }

    fn engine(&self, kind: GuestKind) -> Result<&EngineSet, LoadError> {
        self.runtime
            .shared
            .engine(kind.dialect())
            .ok_or(LoadError::NoEngine)
    }

    fn read(&self) -> Result<Vec<u8>, LoadError> {
        let fail = |reason: String| match &self.origin {
            Origin::File(path) => LoadError::Read {
                path: path.clone(),
                reason,
            },
            Origin::Bytes(_) => LoadError::Compile(reason),
        };
        let bytes = match &self.origin {
            Origin::File(path) => std::fs::read(path).map_err(|error| fail(error.to_string()))?,
            Origin::Bytes(bytes) => bytes.to_vec(),
        };
        // Text is a packaging of its own: an entry point that ends in `.wat`.
        match wat::Detect::from_bytes(&bytes) {
            wat::Detect::WasmText => wat::parse_bytes(&bytes)
                .map(std::borrow::Cow::into_owned)
                .map_err(|error| fail(error.to_string())),
            _ => Ok(bytes),
        }
    }

    /// What it is, and its code if that was compiled before.
    fn stored(&self) -> Result<(GuestKind, Option<crate::program::Code>), LoadError> {
        let kind = GuestKind::of(&self.read()?)?;
        let set = self.engine(kind)?;
        if !self.stored {
            return Ok((kind, None));
        }
        let path = self.runtime.shared.cache.file(&self.digest, set);
        let file = match Trusted::open(&path) {
            Ok(file) => file,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(%error, path = %path.display(), "compiling again");
                }
                return Ok((kind, None));
            }
        };
        match link(set, kind, Compiled::Stored(file)) {
            Ok(code) => Ok((kind, Some(code))),
            Err(LinkError::Stale(error)) => {
                tracing::warn!(%error, path = %path.display(), "compiling again");
                Ok((kind, None))
            }
            Err(LinkError::Import(error)) => Err(error),
        }
    }

    fn compile(&self, kind: GuestKind) -> Result<crate::program::Code, LoadError> {
        let set = self.engine(kind)?;
        let wasm = self.read()?;
        let component = kind != GuestKind::CommandPreview1;
        let fail = |error: &dyn std::fmt::Display| LoadError::Compile(format!("{error:#}"));
        // Its own threads, so that their priority can be low; gone when it is done.
        let fresh = rayon::ThreadPoolBuilder::new()
            .thread_name(|n| format!("wasm-compile-{n}"))
            .start_handler(|_| {
                if let Err(error) = rustix::process::setpriority_process(None, COMPILER_NICE) {
                    tracing::debug!(%error, "compiling at normal priority");
                }
            })
            .build()
            .map_err(|error| fail(&error))?
            .install(|| Fresh::compile(&set.engine, &wasm, component))
            .map_err(|error| fail(&error))?;
        drop(wasm);
        link(set, kind, self.keep(set, fresh)).map_err(|error| match error {
            LinkError::Stale(error) => fail(&error),
            LinkError::Import(error) => error,
        })
    }

    /// Leaves compiled code on disk, where it is to be found the next time.
    fn keep(&self, set: &EngineSet, fresh: Fresh) -> Compiled {
        if !self.stored {
            return Compiled::Fresh(fresh);
        }
        let cache = &self.runtime.shared.cache;
        let path = cache.file(&self.digest, set);
        let stored = cache.store(&path, fresh.bytes());
        match stored.and_then(|()| Trusted::open(&path)) {
            Ok(file) => Compiled::Stored(file),
            Err(error) => {
                // A full disk must not stop a pod whose image is here.
                tracing::warn!(%error, path = %path.display(), "could not store compiled code");
                Compiled::Fresh(fresh)
            }
        }
    }
}

/// Runs on a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LoadError> + Send + 'static,
) -> Result<T, LoadError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(LoadError::Compile(format!("the compiler failed: {error}"))),
    }
}
