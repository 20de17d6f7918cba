//! Nodes, a server and one workload with a `stop` contract through thousands of schedules of
//! cuts, delays, restarts, reboots and pauses. The decisions are [`Contract`]'s, [`Contact`]'s
//! and [`Heard`]'s; what is around them (Leases written by compare-and-swap, an agent that
//! may be away while its data plane runs on, informers that lag) is modelled here. A failure
//! prints its seed.

use super::{Contact, Contract, Epoch, Heard, Renewal};
use std::time::Duration;

const TICK_MS: u64 = 250;
/// Faults happen until then.
const TROUBLE_MS: u64 = 600_000;
/// By then the workload must run again.
const END_MS: u64 = TROUBLE_MS + 300_000;
const SCHEDULES: u64 = 2_000;
const NODES: usize = 3;
const RENEW_MS: u64 = 10_000;
/// How long an agent waits for an answer.
const ANSWER_MS: u64 = 10_000;
const UNREACHABLE_MS: u64 = 40_000;
/// How late the data plane looks by itself.
const GUARD_LOOK_MS: u64 = 1_000;

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A pod at the API server.
#[derive(Clone, Debug)]
struct Pod {
    id: u64,
    node: usize,
    deleting: bool,
    failed: bool,
}

/// A Lease at the API server.
#[derive(Clone, Debug, Default)]
struct Lease {
    version: u64,
    renewed: u64,
    epoch: u64,
}

impl Lease {
    fn seen(&self) -> Renewal {
        Renewal {
            version: self.version.to_string(),
            renewed: jiff::Timestamp::from_millisecond(i64::try_from(self.renewed).unwrap()).ok(),
            epoch: self.epoch,
        }
    }
}

#[derive(Clone, Debug)]
enum Message {
    /// To the server: reads the Lease, or renews it where it is of this version.
    Ask { attempt: u64, version: Option<u64> },
    /// To the node: version and epoch, or the Lease was of another version.
    Answer {
        attempt: u64,
        lease: Option<(u64, u64)>,
        renewed: bool,
    },
    /// To the node: its pods, and whether they are being deleted.
    Pods {
        sequence: u64,
        pods: Vec<(u64, bool)>,
    },
    /// To the server: a pod has ended.
    Ended(u64),
    /// To the server's controllers: a Lease.
    Told(Lease),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Known, and not started.
    Held,
    Running,
    /// Ends until then, by the node's clock.
    Ending(u64),
    Dead,
}

/// A pod on a node: in the checkpoint and, while it lives, in the data plane.
#[derive(Clone, Debug)]
struct Run {
    id: u64,
    state: State,
    told: bool,
}

struct Node {
    /// Of its clock, to a million of true ones.
    rate: u64,
    offset: u64,
    contact: Contact,
    /// As on disk: boot, moment, epoch.
    kept: Option<(u64, u64, Epoch)>,
    boot: u64,
    /// Of the last renewal, as the data plane was told.
    guarded: Option<u64>,
    guard_at: u64,
    runs: Vec<Run>,
    version: Option<u64>,
    listed: u64,
    attempt: u64,
    sent: Option<(u64, u64)>,
    next: u64,
    /// True times until which its parts are away.
    agent_away: u64,
    asleep: u64,
    off: u64,
    link_down: u64,
}

impl Node {
    fn clock(&self, t: u64) -> u64 {
        self.offset + t / 1000 * self.rate / 1000 + t % 1000
    }

    fn restart_agent(&mut self, now: u64) {
        let (boot, at, epoch) = match self.kept.clone() {
            Some((boot, at, epoch)) => (boot, Some(at), Some(epoch)),
            None => (self.boot, None, None),
        };
        let at = at.filter(|_| boot == self.boot);
        self.contact = Contact::known(at, epoch);
        self.version = None;
        self.sent = None;
        self.next = now;
    }
}

struct Server {
    rate: u64,
    away: u64,
    /// Time that it was asleep, which its clock does not count.
    slept: u64,
    heard: Vec<Option<Heard>>,
    /// Newest version that it was told of; informers never go back.
    told: Vec<u64>,
}

struct World {
    rng: Rng,
    contract: Contract,
    after_ms: u64,
    grace_ms: u64,
    t: u64,
    nodes: Vec<Node>,
    server: Server,
    leases: Vec<Lease>,
    pods: Vec<Pod>,
    pods_made: u64,
    /// When, whose, to or from the node.
    messages: Vec<(u64, usize, Message)>,
    replaced: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let after_ms = 15_000 + rng.below(60_000);
        let grace_ms = rng.below(30_000);
        let mut rate = || 999_400 + rng.below(1_200);
        let rates: Vec<u64> = (0..=NODES).map(|_| rate()).collect();
        let node = |i: usize, offset| Node {
            rate: rates[i],
            offset,
            contact: Contact::default(),
            kept: None,
            boot: 0,
            guarded: None,
            guard_at: 0,
            runs: Vec::new(),
            version: None,
            listed: 0,
            attempt: 0,
            sent: None,
            next: 0,
            agent_away: 0,
            asleep: 0,
            off: 0,
            link_down: 0,
        };
        Self {
            contract: Contract::Stop {
                after: Duration::from_millis(after_ms),
            },
            after_ms,
            grace_ms,
            t: 0,
            nodes: (0..NODES).map(|i| node(i, rng.below(1 << 30))).collect(),
            server: Server {
                rate: rates[NODES],
                away: 0,
                slept: 0,
                heard: vec![None; NODES],
                told: vec![0; NODES],
            },
            leases: vec![Lease::default(); NODES],
            pods: Vec::new(),
            pods_made: 0,
            messages: Vec::new(),
            replaced: 0,
            rng,
        }
    }

    /// Mostly short, at times very long.
    fn delay(&mut self) -> u64 {
        match self.rng.below(20) {
            0 if self.t < TROUBLE_MS => self.rng.below(30_000),
            1..4 if self.t < TROUBLE_MS => self.rng.below(3_000),
            _ => self.rng.below(200),
        }
    }

    /// Something breaks, for a while.
    fn trouble(&mut self) {
        if !self.rng.one_in(40) {
            return;
        }
        let i = usize::try_from(self.rng.below(NODES as u64)).unwrap();
        let until = self.t + self.rng.below(180_000);
        let until = until.min(TROUBLE_MS);
        let node = &mut self.nodes[i];
        match self.rng.below(12) {
            0..5 => node.link_down = node.link_down.max(until),
            5..7 => node.agent_away = node.agent_away.max(until),
            7 => node.asleep = node.asleep.max(until),
            8 => {
                // A reboot: nothing runs, and the clock begins anew.
                node.off = until.min(self.t + 60_000);
                node.boot += 1;
                node.offset = 0;
                node.guarded = None;
                for run in &mut node.runs {
                    if run.state != State::Dead {
                        run.state = State::Held;
                    }
                }
                node.restart_agent(0);
            }
            // What the server knows of silence is gone with it.
            9 => {
                self.server.away = self.server.away.max(until);
                self.server.heard = vec![None; NODES];
            }
            // It sleeps: its clock stands still, and it knows what it knew.
            10 => {
                let until = until.max(self.server.away);
                self.server.slept += until - self.t.max(self.server.away);
                self.server.away = until;
            }
            // The data plane is killed, and its pods with it.
            _ => {
                for run in &mut node.runs {
                    if run.state != State::Dead {
                        run.state = State::Held;
                    }
                }
            }
        }
    }

    fn send(&mut self, node: usize, message: Message) {
        if self.nodes[node].link_down > self.t || (self.t < TROUBLE_MS && self.rng.one_in(50)) {
            return;
        }
        let at = self.t + self.delay();
        self.messages.push((at, node, message));
    }

    fn deliver(&mut self) {
        let due: Vec<_> = {
            let t = self.t;
            self.messages.extract_if(.., |(at, ..)| *at <= t).collect()
        };
        for (_, i, message) in due {
            let cut = self.nodes[i].link_down > self.t;
            let server_away = self.server.away > self.t;
            let node_away = self.node_away(i);
            match message {
                Message::Told(_) if server_away => {}
                Message::Told(lease) if lease.version <= self.server.told[i] => {}
                Message::Told(lease) => {
                    self.server.told[i] = lease.version;
                    let now = self.server_clock();
                    match &mut self.server.heard[i] {
                        Some(heard) => heard.told(lease.seen(), now),
                        none => *none = Some(Heard::first(lease.seen(), now)),
                    }
                }
                // Lost, or as late as the link is long away.
                message if cut => {
                    if self.rng.one_in(2) {
                        let at = self.nodes[i].link_down + self.rng.below(5_000);
                        self.messages.push((at, i, message));
                    }
                }
                Message::Ask { .. } | Message::Ended(_) if server_away => {}
                Message::Ask { attempt, version } => self.answer(i, attempt, version),
                Message::Ended(id) => {
                    for pod in self.pods.iter_mut().filter(|p| p.id == id) {
                        pod.failed = true;
                    }
                    self.pods.retain(|p| p.id != id || !p.deleting);
                }
                // A machine that sleeps finds what has come meanwhile.
                message
                    if matches!(message, Message::Answer { .. } | Message::Pods { .. })
                        && self.nodes[i].asleep > self.t =>
                {
                    self.messages.push((self.nodes[i].asleep, i, message));
                }
                Message::Answer { .. } | Message::Pods { .. } if node_away => {}
                Message::Answer {
                    attempt,
                    lease,
                    renewed,
                } => self.answered(i, attempt, lease, renewed),
                Message::Pods { sequence, .. } if sequence <= self.nodes[i].listed => {}
                Message::Pods { sequence, pods } => {
                    self.nodes[i].listed = sequence;
                    self.listed(i, &pods);
                }
            }
        }
    }

    fn answer(&mut self, i: usize, attempt: u64, version: Option<u64>) {
        let renewed = self.nodes[i].clock(self.t);
        let lease = &mut self.leases[i];
        let fits = version == Some(lease.version);
        if fits {
            lease.version += 1;
            lease.renewed = renewed;
        }
        let lease = lease.clone();
        let state = (version.is_none() || fits).then_some((lease.version, lease.epoch));
        if fits {
            let lag = self.delay();
            self.messages.push((self.t + lag, i, Message::Told(lease)));
        }
        let answer = Message::Answer {
            attempt,
            lease: state,
            renewed: fits,
        };
        self.send(i, answer);
    }

    fn node_away(&self, i: usize) -> bool {
        let node = &self.nodes[i];
        node.agent_away.max(node.asleep).max(node.off) > self.t
    }

    fn answered(&mut self, i: usize, attempt: u64, lease: Option<(u64, u64)>, renewed: bool) {
        self.hold_contracts(i);
        let now = self.nodes[i].clock(self.t);
        let node = &mut self.nodes[i];
        let Some((sent, _)) = node.sent.take_if(|(_, number)| *number == attempt) else {
            return;
        };
        node.next = now;
        let Some((version, epoch)) = lease else {
            node.version = None;
            return;
        };
        node.version = Some(version);
        if !renewed {
            return;
        }
        let epoch = Epoch {
            lease: i.to_string(),
            count: epoch,
        };
        if node.contact.is_over(&epoch) {
            for run in &mut node.runs {
                run.state = match run.state {
                    State::Held | State::Dead => State::Dead,
                    State::Running | State::Ending(_) => State::Ending(now),
                };
            }
        }
        node.contact.renewed(sent, &epoch);
        node.kept = Some((node.boot, sent, epoch));
        node.guarded = Some(sent);
        node.next = now + RENEW_MS;
    }

    fn listed(&mut self, i: usize, pods: &[(u64, bool)]) {
        let now = self.nodes[i].clock(self.t);
        let grace = self.grace_ms;
        let node = &mut self.nodes[i];
        for (id, deleting) in pods {
            if !node.runs.iter().any(|r| r.id == *id) {
                node.runs.push(Run {
                    id: *id,
                    state: State::Held,
                    told: false,
                });
            }
            for run in node.runs.iter_mut().filter(|r| r.id == *id && *deleting) {
                run.state = match run.state {
                    State::Held => State::Dead,
                    State::Running => State::Ending(now + grace),
                    state => state,
                };
            }
        }
    }

    /// What the agent does whenever it looks.
    fn hold_contracts(&mut self, i: usize) {
        let (after, grace) = (self.after_ms, self.grace_ms);
        let now = self.nodes[i].clock(self.t);
        let node = &mut self.nodes[i];
        let silence = node.contact.silence(now);
        if !self.contract.forbids(silence) {
            return;
        }
        let silence = silence.map_or(u64::MAX, |s| u64::try_from(s.as_millis()).unwrap());
        for run in &mut node.runs {
            if run.state == State::Running {
                let left = (after + grace).saturating_sub(silence);
                run.state = State::Ending(now + left);
            }
        }
    }

    fn run_node(&mut self, i: usize) {
        if self.nodes[i].off.max(self.nodes[i].asleep) > self.t {
            return;
        }
        let now = self.nodes[i].clock(self.t);
        let limit = self.after_ms + self.grace_ms;
        let node = &mut self.nodes[i];
        if now >= node.guard_at || node.guard_at > now + GUARD_LOOK_MS {
            node.guard_at = now + GUARD_LOOK_MS;
            if node
                .guarded
                .is_some_and(|at| now.saturating_sub(at) >= limit)
            {
                for run in &mut node.runs {
                    if matches!(run.state, State::Running | State::Ending(_)) {
                        run.state = State::Ending(now);
                    }
                }
            }
        }
        for run in &mut node.runs {
            if matches!(run.state, State::Ending(until) if until <= now) {
                run.state = State::Dead;
            }
        }
        if node.agent_away > self.t {
            // The next one reads what this one left.
            if node.agent_away <= self.t + TICK_MS {
                node.restart_agent(now);
            }
            return;
        }
        self.hold_contracts(i);
        let allowed = !self.contract.forbids(self.nodes[i].contact.silence(now));
        let mut ended = Vec::new();
        for run in &mut self.nodes[i].runs {
            match run.state {
                State::Held if allowed => run.state = State::Running,
                State::Dead if !run.told => ended.push(run.id),
                _ => {}
            }
        }
        let node = &mut self.nodes[i];
        if node.sent.is_some_and(|(at, _)| now >= at + ANSWER_MS) {
            (node.sent, node.version, node.next) = (None, None, now + 1_000);
        }
        if node.sent.is_none() && now >= node.next {
            node.attempt += 1;
            node.sent = Some((now, node.attempt));
            let (attempt, version) = (node.attempt, node.version);
            self.send(i, Message::Ask { attempt, version });
        }
        if self.rng.one_in(8) {
            for id in ended {
                self.send(i, Message::Ended(id));
            }
        }
    }

    fn server_clock(&self) -> u64 {
        let t = self.t - self.server.slept.min(self.t);
        t / 1000 * self.server.rate / 1000 + t % 1000
    }

    fn run_server(&mut self) {
        if self.server.away > self.t {
            return;
        }
        let now = self.server_clock();
        let grace = Duration::from_millis(self.grace_ms);
        let waits = self.contract.replaced_after(grace).unwrap();
        for i in 0..NODES {
            let lease = self.leases[i].seen();
            let version = self.leases[i].version;
            let heard = self.server.heard[i].get_or_insert_with(|| {
                self.server.told[i] = version;
                Heard::first(lease, now)
            });
            let silence = heard.silence(now);
            let lost = self
                .pods
                .iter()
                .any(|p| p.node == i && !p.deleting && !p.failed);
            if lost && silence >= waits && silence.as_millis() >= u128::from(UNREACHABLE_MS) {
                if let Some((epoch, version)) = heard.fence() {
                    if version != self.leases[i].version.to_string() {
                        continue;
                    }
                    let lease = &mut self.leases[i];
                    lease.version += 1;
                    lease.epoch = epoch;
                    heard.fenced(lease.seen());
                }
                for pod in self.pods.iter_mut().filter(|p| p.node == i) {
                    pod.deleting = true;
                }
                self.replaced += 1;
            }
            if self.rng.one_in(4) {
                let pods = self.pods.iter().filter(|p| p.node == i);
                let pods = pods.map(|p| (p.id, p.deleting)).collect();
                let sequence = self.t;
                self.send(i, Message::Pods { sequence, pods });
            }
        }
        if !self.pods.iter().any(|p| !p.deleting && !p.failed) {
            let reachable: Vec<usize> = (0..NODES)
                .filter(|i| {
                    let heard = self.server.heard[*i].as_ref();
                    heard.is_some_and(|h| h.silence(now).as_millis() < u128::from(UNREACHABLE_MS))
                })
                .collect();
            if !reachable.is_empty() {
                let pick = self.rng.below(reachable.len() as u64);
                self.pods_made += 1;
                self.pods.push(Pod {
                    id: self.pods_made,
                    node: reachable[usize::try_from(pick).unwrap()],
                    deleting: false,
                    failed: false,
                });
            }
        }
    }

    /// Pods that run: a machine that is off or asleep runs nothing.
    fn running(&self) -> Vec<(usize, u64)> {
        let mut all = Vec::new();
        for (i, node) in self.nodes.iter().enumerate() {
            if node.off.max(node.asleep) > self.t {
                continue;
            }
            for run in &node.runs {
                if matches!(run.state, State::Running | State::Ending(_)) {
                    all.push((i, run.id));
                }
            }
        }
        all
    }
}

/// Runs a schedule; how often a pod was replaced.
fn simulate(seed: u64) -> u64 {
    let mut world = World::new(seed);
    while world.t < END_MS {
        if world.t < TROUBLE_MS {
            world.trouble();
        }
        // Nodes first: one that wakes looks at its clock before anything else.
        for i in 0..NODES {
            world.run_node(i);
        }
        world.deliver();
        world.run_server();
        let running = world.running();
        assert!(
            running.len() <= 1,
            "seed {seed}: at {} ms node and pod {running:?} run at once",
            world.t
        );
        world.t += TICK_MS;
    }
    assert_eq!(
        world.running().len(),
        1,
        "seed {seed}: the workload does not run after all: {:?}",
        world.pods
    );
    world.replaced
}

#[test]
fn what_must_stop_never_runs_twice_and_always_comes_back() {
    let replaced: u64 = (0..SCHEDULES).map(simulate).sum();
    assert!(
        replaced > SCHEDULES / 4,
        "only {replaced} replacements: too quiet a world"
    );
}
