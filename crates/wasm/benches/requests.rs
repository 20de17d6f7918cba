//! Requests a second of the hello example, called in process: no sockets, no HTTP parsing.
//!
//! `cargo bench -p wasm --bench requests [-- SECONDS [COMPONENT]]` prints one line for each way
//! to keep instances and number of callers.
#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use wasm::{
    CpuMeter, EgressRules, Guest, GuestSpec, HttpGuest, HttpOptions, LogSink, LogStream, LogWriter,
    MemoryMeter, Runtime, RuntimeConfig,
};

struct Nowhere;

impl LogSink for Nowhere {
    fn open(&self, _stream: LogStream) -> Box<dyn LogWriter> {
        Box::new(Self)
    }
}

impl LogWriter for Nowhere {
    fn write(&mut self, _bytes: &[u8]) {}
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // `cargo bench` adds `--bench`.
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let seconds = args.next().map_or(Ok(3), |arg| arg.parse())?;
    let component = args.next().unwrap_or_else(|| {
        concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../examples/hello/hello.wasm"
        )
        .into()
    });
    let dir = tempfile::tempdir()?;
    let threads = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    threads.block_on(async {
        let runtime = Runtime::new(&RuntimeConfig {
            compiled_dir: dir.path().to_owned(),
        })?;
        let program = runtime.load("sha256:bench", component.as_ref()).await?;
        for (name, reuse) in [("fresh", 1), ("reused", 1000)] {
            for callers in [1, 8, 64] {
                let Guest::Http(guest) = program.guest(spec(reuse))? else {
                    return Err("the component serves no HTTP".into());
                };
                let rate = measure(&guest, callers, Duration::from_secs(seconds)).await?;
                println!("{name:7} {callers:3} callers {rate:8.0} requests/s");
                guest.stop().await;
            }
        }
        Ok(())
    })
}

fn spec(reuse: u32) -> GuestSpec {
    GuestSpec {
        args: vec!["hello".into()],
        env: vec![("POD_NAME".into(), "bench".into())],
        cwd: None,
        preopens: Vec::new(),
        memory: Arc::new(MemoryMeter::new(None, None)),
        cpu: Arc::new(CpuMeter::new(None)),
        log: Arc::new(Nowhere),
        address: None,
        network: None,
        input: None,
        egress: EgressRules::anywhere(),
        names: None,
        store: Arc::default(),
        http: HttpOptions {
            requests_per_instance: Some(reuse),
            ..HttpOptions::default()
        },
    }
}

async fn measure(
    guest: &HttpGuest,
    callers: usize,
    time: Duration,
) -> Result<f64, Box<dyn std::error::Error>> {
    let served = Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    let start = Instant::now();
    for _ in 0..callers {
        let (guest, served) = (guest.clone(), served.clone());
        tasks.spawn(async move {
            while start.elapsed() < time {
                let request = Request::get("/")
                    .header("host", "hello")
                    .body(Empty::<Bytes>::new())?;
                let response = guest.handle(request).await?;
                response.into_body().collect().await?;
                served.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended?.map_err(|error| error.to_string())?;
    }
    Ok(served.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64())
}
