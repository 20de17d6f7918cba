//! A lattice of 3, 100, 300 and 1,000 sites over a real nats-server on this machine: what the hub
//! costs in memory for each site, how long until all see each other, what one idle site sends
//! and hears, how all come back at once after a power cut at NATS, and how long until all know
//! of one that falls silent. The hub is a process of its own; the others are tasks of this one,
//! each with its own connection and files.
//!
//! `SALP_TOOLS=… cargo bench -p lattice --bench members [-- SITES…]`. Times of a thousand sites
//! are those of this machine, which does the work of all of them: each knows each, a million
//! pairs.

#![allow(
    clippy::print_stdout,
    dead_code,
    reason = "a program that prints its figures; the tests use more of the server"
)]

#[path = "../tests/it/nats.rs"]
mod nats;

use lattice::{
    JoinToken, Lattice, LatticeConfig, LinkConfig, Role, SiteName, SiteState, Standing, Timing,
    View,
};
use lifecycle::Scope;
use nats::{Nats, Setup};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// How long after they have met sites are idle.
const SETTLE: Duration = Duration::from_secs(45);
/// How long an idle lattice is listened to.
const WINDOW: Duration = Duration::from_secs(60);
/// How long one is waited for before what it sees is printed.
const PATIENCE: Duration = Duration::from_secs(120);
/// What TLS, TCP and IP add to a packet, and an acknowledgement alone.
const PACKET_BYTES: f64 = 74.0;
const ACK_BYTES: f64 = 52.0;
/// As in the lattice: of many sites, how often one is heard.
const HEARD_EVERY: Duration = Duration::from_secs(12);

fn main() {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with("--"))
        .collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    if let [role, dir, url, sites] = &args[..]
        && role == "hub"
    {
        let sites = sites.parse().expect("a number");
        return runtime.block_on(hub(Path::new(dir), url, sites));
    }
    let mut sizes: Vec<usize> = args.iter().filter_map(|a| a.parse().ok()).collect();
    if sizes.is_empty() {
        sizes = vec![3, 100, 300, 1000];
    }
    for sites in sizes {
        println!("# {sites} sites");
        runtime.block_on(measure(sites));
    }
}

/// Heartbeats as they are once nothing has changed for long: they get there by doubling.
fn timing(sites: usize) -> Timing {
    let mut timing = Timing::default();
    if sites > 4 {
        let settled = HEARD_EVERY * (sites as u32 - 1);
        let longer = settled.div_duration_f64(timing.beat);
        timing.silence = timing.silence.mul_f64(longer);
        timing.beat = settled;
    }
    timing
}

async fn start(dir: &Path, name: &str, url: String, role: Role, sites: usize) -> (Lattice, Scope) {
    let scope = Scope::new();
    let config = LatticeConfig {
        dir: dir.join(name),
        name: SiteName {
            name: name.to_owned(),
            region: "eu".into(),
            zone: String::new(),
        },
        role,
        link: LinkConfig {
            servers: vec![url],
            ..LinkConfig::default()
        },
        timing: timing(sites),
    };
    let started = Lattice::start(config, &scope).await;
    let (lattice, mut incoming) = started.expect("a lattice");
    scope.spawn_cancellable(async move { while incoming.recv().await.is_some() {} });
    (lattice, scope)
}

/// Tells on its output a token, and then how many it sees alive.
async fn hub(dir: &Path, url: &str, sites: usize) {
    let (lattice, _scope) = start(dir, "hub", url.to_owned(), Role::Hub, sites).await;
    lattice.wait_for(|v| v.link).await;
    let token = lattice.make_token(Duration::from_secs(3600), sites as u32);
    println!("{}", token.await.expect("a token").to_text());
    let mut view = lattice.view();
    loop {
        let alive = view.borrow_and_update().alive().count();
        println!("{alive}");
        std::io::stdout().flush().expect("output");
        if view.changed().await.is_err() {
            return;
        }
    }
}

/// The hub's process; killed when dropped.
struct Hub {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Hub {
    fn start(dir: &Path, url: &str, sites: usize) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["hub", &dir.display().to_string(), url, &sites.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the hub");
        let lines = BufReader::new(child.stdout.take().expect("its output"));
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("the hub's output");
        assert!(!line.is_empty(), "the hub has ended");
        line.trim().to_owned()
    }

    /// Waits until it sees so many.
    fn sees(&mut self, sites: usize) {
        while self.line() != sites.to_string() {}
    }

    fn memory_kib(&self) -> f64 {
        let path = format!("/proc/{}/smaps_rollup", self.child.id());
        let text = std::fs::read_to_string(path).unwrap_or_default();
        // Not what it shares with this process: the program.
        let own = text.lines().find_map(|l| l.strip_prefix("Anonymous:"));
        let own = own.map(|v| v.trim().trim_end_matches(" kB"));
        own.and_then(|v| v.trim().parse().ok()).unwrap_or(f64::NAN)
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// What went through a line, each way.
#[derive(Default)]
struct Counted {
    sent: AtomicU64,
    sent_packets: AtomicU64,
    sent_messages: AtomicU64,
    heard: AtomicU64,
    heard_packets: AtomicU64,
    heard_messages: AtomicU64,
}

impl Counted {
    fn now(&self) -> [u64; 6] {
        let parts = [
            &self.sent,
            &self.sent_packets,
            &self.sent_messages,
            &self.heard,
            &self.heard_packets,
            &self.heard_messages,
        ];
        parts.map(|p| p.load(Ordering::Relaxed))
    }
}

/// A line to a server that counts; what is read at once is a packet, of an idle site's. It is
/// cut when the scope is closed.
async fn counting(to: u16, scope: &Scope) -> (u16, Arc<Counted>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("its port").port();
    let counted = Arc::new(Counted::default());
    let counts = counted.clone();
    let inner = scope.clone();
    scope.spawn_cancellable(async move {
        while let Ok((near, _)) = listener.accept().await {
            let Ok(far) = TcpStream::connect(("127.0.0.1", to)).await else {
                continue;
            };
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            let (out, back) = (counts.clone(), counts.clone());
            inner.spawn_cancellable(async move {
                let counts = [&out.sent, &out.sent_packets, &out.sent_messages];
                pump(near_in, far_out, b"PUB salp.", counts).await;
            });
            inner.spawn_cancellable(async move {
                let counts = [&back.heard, &back.heard_packets, &back.heard_messages];
                pump(far_in, near_out, b"MSG salp.", counts).await;
            });
        }
    });
    (port, counted)
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    begins: &[u8],
    [bytes, packets, messages]: [&AtomicU64; 3],
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        bytes.fetch_add(read as u64, Ordering::Relaxed);
        packets.fetch_add(1, Ordering::Relaxed);
        let begun = buffer[..read].windows(begins.len());
        let begun = begun.filter(|w| *w == begins).count();
        messages.fetch_add(begun as u64, Ordering::Relaxed);
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

fn figure(name: &str, value: f64, unit: &str) {
    println!("{name:<60} {value:>10.2} {unit}");
}

async fn measure(sites: usize) {
    // In memory where that is possible: not one disk for a thousand sites.
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    let dir = dir.expect("a directory");
    let mut nats = Nats::start(&Setup::default());
    let (line, cut) = (Scope::new(), Scope::new());
    let (hub_port, at_hub) = counting(nats.port, &line).await;
    let (idle_port, at_idle) = counting(nats.port, &cut).await;
    let hub_url = format!("nats://127.0.0.1:{hub_port}");
    let mut hub = Hub::start(dir.path(), &hub_url, sites);
    // Its line is served by this thread too, when it is the only one.
    let token = tokio::task::block_in_place(|| hub.line());
    let token = JoinToken::from_text(&token).expect("a token");
    let alone = hub.memory_kib();

    let began = Instant::now();
    let mut members = Vec::new();
    for i in 1..sites {
        let port = if i == 1 { idle_port } else { nats.port };
        let role = Role::Member {
            token: Some(token.clone()),
        };
        let url = format!("nats://127.0.0.1:{port}");
        members.push(start(dir.path(), &format!("site-{i}"), url, role, sites).await);
    }
    for (member, _) in &members {
        member.wait_for(|v| v.standing == Standing::Member).await;
    }
    figure("all are admitted after", began.elapsed().as_secs_f64(), "s");
    meet(&members, &mut hub, sites).await;
    let took = began.elapsed().as_secs_f64();
    figure("all see each other after", took, "s");
    met("the hub", at_hub.now(), sites);
    met("a site", at_idle.now(), sites);
    // What measures the ways, and heartbeats of when they were few.
    tokio::time::sleep(SETTLE).await;
    let per_site = (hub.memory_kib() - alone) / (sites - 1) as f64;
    figure("memory of the hub alone", alone / 1024.0, "MiB");
    figure("memory of the hub for each site", per_site, "KiB");

    let (idle, hub_before) = (at_idle.now(), at_hub.now());
    tokio::time::sleep(WINDOW).await;
    told("an idle site", idle, at_idle.now());
    told("the hub", hub_before, at_hub.now());

    // A power cut where NATS is.
    nats.kill();
    for (member, _) in &members {
        member.wait_for(|v| !v.link && v.alive().count() == 0).await;
    }
    tokio::task::block_in_place(|| hub.sees(0));
    let (idle, hub_before) = (at_idle.now(), at_hub.now());
    let began = Instant::now();
    nats.restart();
    meet(&members, &mut hub, sites).await;
    let took = began.elapsed().as_secs_f64();
    figure("after a power cut all see each other within", took, "s");
    met("the hub", since(hub_before, at_hub.now()), sites);
    met("a site", since(idle, at_idle.now()), sites);

    // Its line goes, and it says nothing more.
    let (gone, others) = members.split_first().expect("members");
    let began = Instant::now();
    cut.close().await;
    let known = |v: &Arc<View>| {
        let site = v.sites.iter().find(|s| s.id == gone.0.id());
        site.is_some_and(|s| s.state == SiteState::Gone)
    };
    for (member, _) in others {
        member.wait_for(known).await;
    }
    figure(
        "all know of a silent idle site after",
        began.elapsed().as_secs_f64(),
        "s",
    );
    drop(hub);
    line.close().await;
    for (_, scope) in members {
        scope.close().await;
    }
}

/// Until all see each other.
async fn meet(members: &[(Lattice, Scope)], hub: &mut Hub, sites: usize) {
    for (i, (member, _)) in members.iter().enumerate() {
        let all = member.wait_for(|v| v.alive().count() == sites - 1);
        if tokio::time::timeout(PATIENCE, all).await.is_err() {
            let view = member.view();
            let view = view.borrow();
            println!(
                "site {i}, {:?}, sees {} alive",
                view.standing,
                view.alive().count()
            );
        }
    }
    tokio::task::block_in_place(|| hub.sees(sites - 1));
}

fn since(before: [u64; 6], now: [u64; 6]) -> [u64; 6] {
    std::array::from_fn(|i| now[i] - before[i])
}

/// What it took one to meet the others.
fn met(who: &str, line: [u64; 6], sites: usize) {
    let [sent, _, said, heard, _, messages] = line.map(|n| n as f64);
    let others = (sites - 1) as f64;
    let of = |what: &str| format!("meanwhile {who} {what} for each other site");
    figure(&of("has said"), said / others, "messages");
    figure(&of("has heard"), messages / others, "messages");
    figure(&of("has sent"), sent / others, "bytes");
    figure(&of("was sent"), heard / others, "bytes");
}

/// What went through a line in the window.
fn told(who: &str, before: [u64; 6], after: [u64; 6]) {
    let seconds = WINDOW.as_secs_f64();
    let [sent, sent_packets, said, heard, heard_packets, messages] =
        since(before, after).map(|n| n as f64);
    figure(&format!("{who} says"), said / seconds, "messages/s");
    figure(&format!("{who} hears"), messages / seconds, "messages/s");
    figure(&format!("{who} sends"), sent / seconds, "bytes/s");
    figure(&format!("{who} sends"), sent_packets / seconds, "packets/s");
    figure(&format!("{who} hears"), heard / seconds, "bytes/s");
    figure(
        &format!("{who} hears"),
        heard_packets / seconds,
        "packets/s",
    );
    let wire = sent + sent_packets * PACKET_BYTES + heard_packets * ACK_BYTES;
    figure(
        &format!("{who} sends, with TLS, TCP and acknowledgements"),
        wire * 86_400.0 / seconds / 1e6,
        "MB/day",
    );
}
