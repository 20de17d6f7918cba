//! A Service of several sites under load, while pods, whole sites and NATS are killed: every
//! request that was sent is accounted for.

use crate::harness::{self, Registry, Site, eventually, get, pid_of, repo_file};
use crate::nats::Nats;
use crate::sites::{by, deploy, hub, import_address, joining, pods, sees, shop};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Clients that connect anew for each request, and those that keep their connection.
const CLIENTS: usize = 2;
/// Answers in a row that show that something has settled.
const SETTLED: usize = 40;

/// What became of a request.
struct Outcome {
    answer: Result<String, String>,
    took: Duration,
}

/// Clients without a pause.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    outcomes: Arc<Mutex<Vec<Outcome>>>,
    clients: Vec<std::thread::JoinHandle<u64>>,
}

impl Load {
    fn on(address: &str) -> Self {
        Self::from(address, || {})
    }

    /// Clients whose threads do something first: go where they are to be.
    pub(crate) fn from(address: &str, go: impl Fn() + Clone + Send + 'static) -> Self {
        let address: SocketAddr = address.parse().expect("address");
        let stop = Arc::new(AtomicBool::new(false));
        let outcomes = Arc::new(Mutex::new(Vec::new()));
        let clients = (0..2 * CLIENTS).map(|n| {
            let (stop, outcomes) = (stop.clone(), outcomes.clone());
            let go = go.clone();
            std::thread::spawn(move || {
                go();
                let mut client = Client::new(address, n < CLIENTS);
                let mut sent = 0;
                while !stop.load(Ordering::Relaxed) {
                    sent += 1;
                    let began = Instant::now();
                    let answer = client.get().map_err(|e| e.to_string());
                    let took = began.elapsed();
                    outcomes
                        .lock()
                        .expect("lock")
                        .push(Outcome { answer, took });
                }
                sent
            })
        });
        let clients = clients.collect();
        Self {
            stop,
            outcomes,
            clients,
        }
    }

    /// Waits until so many answers in a row were as wanted, from now on.
    pub(crate) fn settles(&self, what: &str, accept: impl Fn(&str) -> bool) {
        let from = self.outcomes.lock().expect("lock").len();
        eventually(what, || {
            let outcomes = self.outcomes.lock().expect("lock");
            let last = outcomes[from..].iter().rev().take(SETTLED);
            let good = last.filter(|o| o.answer.as_ref().is_ok_and(|a| accept(a)));
            match good.count() {
                SETTLED => Ok(()),
                count => Err(format!(
                    "{count} of {SETTLED}, last {:?}",
                    outcomes.last().map(|o| &o.answer)
                )),
            }
        });
    }

    /// The last answer.
    fn last(&self) -> String {
        let outcomes = self.outcomes.lock().expect("lock");
        let mut answers = outcomes.iter().rev().filter_map(|o| o.answer.as_ref().ok());
        answers.next().expect("an answer").clone()
    }

    /// Ends it: each request that was sent must have been answered.
    pub(crate) fn expect_no_failure(self) {
        self.stop.store(true, Ordering::Relaxed);
        let sent: u64 = self
            .clients
            .into_iter()
            .map(|c| c.join().expect("client"))
            .sum();
        let outcomes = self.outcomes.lock().expect("lock");
        assert_eq!(outcomes.len() as u64, sent, "a request is unaccounted for");
        let bad: Vec<_> = outcomes
            .iter()
            .filter_map(|o| Some((o.answer.as_ref().err()?, o.took)))
            .collect();
        let first = &bad[..bad.len().min(5)];
        assert!(bad.is_empty(), "{} of {sent} failed: {first:?}", bad.len());
    }
}

/// As little of a client as can keep a connection.
struct Client {
    address: SocketAddr,
    keeps: bool,
    connection: Option<TcpStream>,
}

impl Client {
    fn new(address: SocketAddr, keeps: bool) -> Self {
        Self {
            address,
            keeps,
            connection: None,
        }
    }

    fn get(&mut self) -> std::io::Result<String> {
        let mut connection = match self.connection.take() {
            Some(kept) => kept,
            None => TcpStream::connect_timeout(&self.address, Duration::from_secs(10))?,
        };
        connection.set_read_timeout(Some(Duration::from_secs(60)))?;
        let end = if self.keeps {
            ""
        } else {
            "Connection: close\r\n"
        };
        let request = format!("GET / HTTP/1.1\r\nHost: hello\r\n{end}\r\n");
        connection.write_all(request.as_bytes())?;
        let (head, body) = read_answer(&mut connection)?;
        if self.keeps && !head.contains("connection: close") {
            self.connection = Some(connection);
        }
        match head.split(' ').nth(1) {
            Some("200") => Ok(body),
            _ => Err(std::io::Error::other(format!("{head} {body}"))),
        }
    }
}

/// The head in small letters, and a body whose length it tells.
fn read_answer(connection: &mut TcpStream) -> std::io::Result<(String, String)> {
    let mut raw = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        if let Some(end) = raw.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&raw[..end]).to_ascii_lowercase();
            let length = head
                .lines()
                .find_map(|l| l.strip_prefix("content-length: "));
            let length: usize = length.and_then(|l| l.trim().parse().ok()).unwrap_or(0);
            if raw.len() >= end + 4 + length {
                let body = &raw[end + 4..end + 4 + length];
                return Ok((head, String::from_utf8_lossy(body).into_owned()));
            }
        }
        match connection.read(&mut chunk)? {
            0 => {
                let said = String::from_utf8_lossy(&raw).into_owned();
                return Err(std::io::Error::other(format!("it ended after {said:?}")));
            }
            read => raw.extend_from_slice(&chunk[..read]),
        }
    }
}

/// Ends all of a site at once, as a power cut would.
fn kill(site: &mut Site) {
    let pid = pid_of(&site.dir, "dataplane");
    // First the one that would start the other again.
    site.signal("-KILL");
    harness::kill(&pid);
}

/// Ends the data plane alone, and waits until there is another.
fn kill_data_plane(site: &Site) {
    let pid = || pid_of(&site.dir, "dataplane");
    let before = pid();
    harness::kill(&before);
    eventually("there is another data plane", || {
        let now = pid();
        (now != before).then_some(()).ok_or(now)
    });
}

fn no_request_fails(more: &[&str]) {
    let mut nats = Nats::start();
    let registry = Registry::start();
    let image = registry.push(&repo_file("examples/hello/hello.wasm"), "hello:1");
    let hub = hub(&nats, more);
    let till = shop(&nats, &hub, "till", more);
    let kiosk = shop(&nats, &hub, "kiosk", more);
    let of_till = deploy(&till, &image);
    let mut others = [("hub", hub), ("kiosk", kiosk)].map(|(name, site)| {
        let pods = deploy(&site, &image);
        (name, site, pods)
    });
    let address = import_address(&till);
    eventually("all three are told of", || {
        let import = till.json(&["get", "serviceimport", "hello"]);
        let clusters = import["status"]["clusters"].as_array().map_or(0, Vec::len);
        (clusters == 3).then_some(()).ok_or(import.to_string())
    });

    let load = Load::on(&address);
    load.settles("the till's own pod answers", by(&of_till));
    till.ok(&["scale", "deployment/hello", "--replicas=0"]);
    let either = [others[0].2.clone(), others[1].2.clone()].concat();
    load.settles("others cover for it", by(&either));
    // Of the two the one that answers dies, in the middle of it.
    let answer = load.last();
    let dying = others.iter().position(|o| by(&o.2)(&answer)).expect("one");
    kill(&mut others[dying].1);
    let (name, _, left) = &others[1 - dying];
    load.settles("the one that is left answers", by(left));
    nats.kill();
    nats.up();
    load.settles("NATS was started again", by(left));
    sees(&till, name, "Alive");
    till.ok(&["scale", "deployment/hello", "--replicas=1"]);
    let again = eventually("the till's pod is back", || {
        let names = pods(&till);
        let one = (names.len() == 1).then_some(names);
        one.ok_or("not yet".to_owned())
    });
    load.settles("traffic comes home", by(&again));
    load.expect_no_failure();
}

#[test]
fn no_request_fails_over_nats() {
    no_request_fails(&["--lattice-listen", "off"]);
}

#[test]
fn no_request_fails_on_direct_routes() {
    no_request_fails(&[]);
}

/// A site whose control plane is dead still reaches the others, and still changes over.
#[test]
fn without_a_control_plane_other_sites_answer_and_cover_for_each_other() {
    let nats = Nats::start();
    let registry = Registry::start();
    let image = registry.push(&repo_file("examples/hello/hello.wasm"), "hello:1");
    let hub = hub(&nats, &[]);
    let args = joining(&nats, &hub, "till");
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let again = joining(&nats, &hub, "till");
    let mut till = Site::start_with(&args);
    till.expects("NATS connection");
    let kiosk = shop(&nats, &hub, "kiosk", &[]);
    let mut others = [("hub", hub), ("kiosk", kiosk)].map(|(name, site)| {
        let pods = deploy(&site, &image);
        (name, site, pods)
    });
    let either = [others[0].2.clone(), others[1].2.clone()].concat();
    let address = import_address(&till);
    let load = Load::on(&address);
    load.settles("one of the others answers", by(&either));
    till.expects("watch");
    till.signal("-KILL");
    load.settles("and does without a control plane", by(&either));
    let answer = load.last();
    let dying = others.iter().position(|o| by(&o.2)(&answer)).expect("one");
    kill(&mut others[dying].1);
    let (name, _, left) = &others[1 - dying];
    load.settles("the one that is left answers", by(left));
    // With another token, which a member has no use for.
    till.up(&again.iter().map(String::as_str).collect::<Vec<_>>());
    sees(&till, name, "Alive");
    load.settles("and does when there is a control plane again", by(left));
    load.expect_no_failure();

    // What ends with the data plane is what it carried, and no more.
    till.expects("the data plane ended");
    kill_data_plane(&till);
    eventually("the next data plane answers", || {
        get(&address, "/").map(drop).map_err(|e| e.to_string())
    });
    let load = Load::on(&address);
    load.settles("and takes up where the last one was", by(left));
    load.expect_no_failure();
}
