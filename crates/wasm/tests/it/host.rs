//! A runtime in a temporary folder, and a log that keeps what guests write.

use parking_lot::Mutex;
use std::sync::Arc;
use wasm::{
    CpuMeter, EgressRules, Guest, GuestSpec, HttpOptions, LoadError, LogSink, LogStream, LogWriter,
    MemoryMeter, Program, Runtime, RuntimeConfig,
};

pub(crate) struct Host {
    pub(crate) runtime: Runtime,
    pub(crate) dir: tempfile::TempDir,
}

/// All that guests wrote, as text.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<String>>);

impl Log {
    pub(crate) fn text(&self) -> String {
        self.0.lock().clone()
    }
}

impl LogSink for Log {
    fn open(&self, _stream: LogStream) -> Box<dyn LogWriter> {
        Box::new(self.clone())
    }
}

impl LogWriter for Log {
    fn write(&mut self, bytes: &[u8]) {
        self.0.lock().push_str(&String::from_utf8_lossy(bytes));
    }
}

impl Host {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = Runtime::new(&RuntimeConfig {
            compiled_dir: dir.path().join("compiled"),
        })
        .unwrap();
        Self { runtime, dir }
    }

    /// Loads bytes or text under a digest of their own.
    pub(crate) async fn load(&self, wasm: &[u8]) -> Result<Arc<Program>, LoadError> {
        use std::hash::{DefaultHasher, Hash as _, Hasher as _};
        let mut hasher = DefaultHasher::new();
        wasm.hash(&mut hasher);
        let digest = format!("sha256:{:x}", hasher.finish());
        let path = self.dir.path().join(digest.replace(':', "-"));
        if !path.exists() {
            std::fs::write(&path, wasm).unwrap();
        }
        self.runtime.load(&digest, &path).await
    }

    /// Loads a program and ties it to a container.
    pub(crate) async fn guest(&self, wasm: &[u8], spec: GuestSpec) -> Guest {
        self.load(wasm).await.unwrap().guest(spec).unwrap()
    }
}

/// A container with nothing but a log.
pub(crate) fn spec(log: &Log) -> GuestSpec {
    GuestSpec {
        args: vec!["guest".into()],
        env: Vec::new(),
        cwd: None,
        preopens: Vec::new(),
        memory: Arc::new(MemoryMeter::new(None, None)),
        cpu: Arc::new(CpuMeter::new(None)),
        log: Arc::new(log.clone()),
        address: None,
        network: None,
        input: None,
        egress: EgressRules::anywhere(),
        names: None,
        store: Arc::default(),
        http: HttpOptions::default(),
    }
}
