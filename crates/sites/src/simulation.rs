//! Sites that export and import through thousands of schedules of cuts, delays, losses, repeats,
//! restarts with their files and without, an emptied NATS, and sites that leave, return and are
//! revoked. The membership is the lattice's; imports are what `merge`, `choose` and `plan` make
//! of it. A failure prints its seed: `SALP_SIM_SEED` runs that one alone and `SALP_SIM_RUNS`
//! more of them.

use crate::choose::Candidate;
use crate::exported::{self, Exported};
use crate::kinds::ImportType;
use crate::merge::Merged;
use crate::merge::tests::{export, port};
use crate::plan::{self, Offer};
use lattice::simulating::{Disk, Envelope, Input, Machine};
use lattice::{SiteId, SiteName, SiteState};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const SCHEDULES: u64 = 1_000;
const FAULTS: u64 = 14;
const SERVICES: [&str; 3] = ["till", "stock", "prices"];
/// How long it may take until all know of a change.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long until a site without its files asks again to be let in.
const JOIN_AGAIN: Duration = Duration::from_secs(5);
/// Envelopes that an attacker keeps.
const RECORDED_MAX: usize = 400;

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

    fn one_of(&mut self, n: usize) -> usize {
        self.below(n as u64) as usize
    }

    fn ms(&mut self, below: u64) -> Duration {
        Duration::from_millis(self.below(below))
    }
}

struct Site {
    machine: Option<Machine>,
    disk: Disk,
    started: Duration,
    /// Its line to NATS.
    cut: bool,
    /// It has no files and waits for the hub.
    joins_at: Option<Duration>,
    exports: BTreeMap<&'static str, Exported>,
    revoked: bool,
    /// Since when nobody hears it.
    away: Option<Duration>,
    /// Since when it hears the others.
    here: Duration,
}

struct World {
    seed: u64,
    rng: Rng,
    now: Duration,
    sites: Vec<Site>,
    flying: BTreeMap<(Duration, u64), (usize, Envelope)>,
    recorded: Vec<Envelope>,
    count: u64,
    nats: bool,
    loss: u64,
    repeats: u64,
    delay_ms: u64,
    /// Others up to which each asks each that comes.
    crowd: usize,
}

fn id(i: usize) -> SiteId {
    SiteId([i as u8 + 1; 16])
}

fn place(i: usize) -> SiteName {
    SiteName {
        name: format!("site-{i}"),
        region: ["eu", "us"][i % 2].into(),
        zone: String::new(),
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        // Where all hear all, and where each looks after the next.
        let count = 3 + rng.one_of(5);
        let site = || Site {
            machine: None,
            disk: Disk::default(),
            started: Duration::ZERO,
            cut: false,
            joins_at: None,
            exports: BTreeMap::new(),
            revoked: false,
            away: None,
            here: Duration::ZERO,
        };
        let mut world = Self {
            seed,
            rng,
            now: Duration::ZERO,
            sites: (0..count).map(|_| site()).collect(),
            flying: BTreeMap::new(),
            recorded: Vec::new(),
            count: 0,
            nats: true,
            loss: 0,
            repeats: 0,
            delay_ms: 60,
            // Every other time hubs tell.
            crowd: if seed.is_multiple_of(2) { 3 } else { 24 },
        };
        for i in 0..count {
            world.start(i);
        }
        for _ in 0..count {
            world.change();
        }
        world
    }

    fn start(&mut self, i: usize) {
        let seed = self.rng.next();
        let crowd = self.crowd;
        let site = &mut self.sites[i];
        site.disk.incarnation += 1;
        site.started = self.now;
        let mut machine = Machine::new(id(i), i == 0, crowd, seed, site.disk.clone());
        for (name, export) in &site.exports {
            machine.publish(Duration::ZERO, &exported::key("shop", name), told(export));
        }
        site.machine = Some(machine);
        site.joins_at = None;
        let up = self.nats && !site.cut;
        self.input(i, Input::Link(up));
    }

    fn input(&mut self, i: usize, input: Input) {
        let site = &mut self.sites[i];
        let Some(machine) = &mut site.machine else {
            return;
        };
        let said = machine.step(self.now - site.started, input);
        site.disk = machine.disk().clone();
        for envelope in said {
            if !self.nats || self.sites[i].cut {
                continue;
            }
            if self.recorded.len() < RECORDED_MAX {
                self.recorded.push(envelope.clone());
            }
            self.carry(Some(i), &envelope);
        }
    }

    fn carry(&mut self, from: Option<usize>, envelope: &Envelope) {
        for to in 0..self.sites.len() {
            let meant =
                envelope.to.is_none_or(|site| site == id(to)) && (to == 0 || !envelope.hubs);
            if Some(to) == from || !meant || self.sites[to].cut {
                continue;
            }
            let times = 1 + u64::from(self.rng.below(100) < self.repeats);
            for _ in 0..times {
                if self.rng.below(100) >= self.loss {
                    let at = self.now + Duration::from_millis(2) + self.rng.ms(self.delay_ms);
                    self.count += 1;
                    self.flying.insert((at, self.count), (to, envelope.clone()));
                }
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        for round in 0.. {
            assert!(round < 400_000, "seed {}: no rest", self.seed);
            let timers = self.sites.iter().filter_map(|site| {
                let machine = site.machine.as_ref()?.next();
                machine
                    .map(|at| site.started + at)
                    .into_iter()
                    .chain(site.joins_at)
                    .min()
            });
            let joins = self.sites.iter().filter_map(|site| site.joins_at);
            let first = self.flying.first_key_value().map(|((at, _), _)| *at);
            let at = timers.chain(joins).chain(first).min();
            let Some(at) = at.filter(|at| *at <= until) else {
                self.now = until;
                return;
            };
            self.now = self.now.max(at);
            while let Some(entry) = self.flying.first_entry()
                && entry.key().0 <= self.now
            {
                let (to, envelope) = entry.remove();
                if self.nats && !self.sites[to].cut {
                    self.input(to, Input::Received(envelope));
                }
            }
            for i in 0..self.sites.len() {
                let site = &self.sites[i];
                let due = site.machine.as_ref().and_then(Machine::next);
                if due.is_some_and(|at| site.started + at <= self.now) {
                    self.input(i, Input::Tick);
                }
                if self.sites[i].joins_at.is_some_and(|at| at <= self.now) {
                    self.join(i);
                }
            }
        }
    }

    /// A site without its files asks the hub, which knows who is a member.
    fn join(&mut self, i: usize) {
        let reached = |site: &Site| site.machine.is_some() && !site.cut;
        if self.nats && !self.sites[i].cut && reached(&self.sites[0]) {
            self.sites[i].disk.record = self.sites[0].disk.record.clone();
            // Its count is its clock's, which may be wrong.
            let clock = [0, 1 << 20, 1 << 20][self.rng.one_of(3)];
            self.sites[i].disk.incarnation = clock + self.rng.below(1 << 16);
            self.start(i);
        } else {
            self.sites[i].joins_at = Some(self.now + JOIN_AGAIN);
        }
    }

    /// One thing happens.
    fn fault(&mut self) {
        let i = self.rng.one_of(self.sites.len());
        match self.rng.below(13) {
            0..3 => {
                self.sites[i].cut = !self.sites[i].cut;
                let up = self.nats && !self.sites[i].cut;
                // A leaf node's line breaks and the site does not notice.
                if up || self.rng.below(2) == 0 {
                    self.input(i, Input::Link(up));
                }
            }
            3 => self.sites[i].machine = None,
            4 => {
                if self.sites[i].machine.is_none() && self.sites[i].joins_at.is_none() {
                    // The hub keeps its files: without its root key there is no lattice.
                    if i > 0 && self.rng.below(2) == 0 {
                        self.sites[i].disk = Disk::default();
                        self.sites[i].joins_at = Some(self.now);
                    } else {
                        self.start(i);
                    }
                }
            }
            5 => {
                self.input(i, Input::Leave);
                self.sites[i].machine = None;
            }
            6 => self.loss = self.rng.below(30),
            7 => self.repeats = self.rng.below(30),
            8 => self.delay_ms = [20, 60, 900, 8000][self.rng.one_of(4)],
            9 => self.empty_nats(),
            10 => {
                let to = self.rng.one_of(self.sites.len());
                self.input(i, Input::Traffic(id(to)));
            }
            11 => self.replay(),
            _ => self.change(),
        }
    }

    /// It is killed and started again, with nothing.
    fn empty_nats(&mut self) {
        self.flying.clear();
        self.nats = false;
        for i in 0..self.sites.len() {
            self.input(i, Input::Link(false));
        }
        let away = self.rng.ms(20_000);
        self.pass(away);
        self.nats = true;
        for i in 0..self.sites.len() {
            let again = self.rng.ms(3_000);
            self.pass(again);
            if !self.sites[i].cut {
                self.input(i, Input::Link(true));
            }
        }
    }

    fn replay(&mut self) {
        for _ in 0..10 {
            if !self.recorded.is_empty() {
                let pick = self.rng.one_of(self.recorded.len());
                let envelope = self.recorded[pick].clone();
                self.carry(None, &envelope);
            }
        }
    }

    /// A site exports something else, or other endpoints are ready.
    fn change(&mut self) {
        let i = self.rng.one_of(self.sites.len());
        let name = SERVICES[self.rng.one_of(SERVICES.len())];
        let value = (self.rng.below(4) > 0).then(|| {
            let port = port("http", 80 + self.rng.below(2) as i32);
            let mut exported = export(self.rng.below(3) as i64, vec![port]);
            exported.ready = self.rng.below(3) as u32;
            if self.rng.below(5) == 0 {
                exported.type_ = ImportType::Headless;
            }
            exported
        });
        let site = &mut self.sites[i];
        if let Some(machine) = &mut site.machine {
            let bytes = value.as_ref().and_then(told);
            machine.publish(self.now - site.started, &exported::key("shop", name), bytes);
        }
        match value {
            Some(value) => site.exports.insert(name, value),
            None => site.exports.remove(name),
        };
        self.input(i, Input::Tick);
    }

    fn heal(&mut self) {
        (self.loss, self.repeats, self.delay_ms) = (0, 0, 60);
        for i in 0..self.sites.len() {
            self.sites[i].cut = false;
            if self.sites[i].machine.is_none() && self.sites[i].joins_at.is_none() {
                self.start(i);
            }
            self.input(i, Input::Link(true));
        }
        self.pass(PATIENCE);
        self.note_who_is_away();
    }

    /// The offers of a Service, as a site sees them.
    fn offers(&self, i: usize, name: &str) -> Vec<Offer> {
        let site = &self.sites[i];
        let offer = |at: usize, state, rtt, exported: Exported| Offer {
            site: (at != i).then(|| id(at)),
            candidate: Candidate {
                place: place(at),
                own: at == i,
                state,
                rtt,
                ready: exported.ready,
                weight: exported.weight,
            },
            exported,
        };
        let own = site.exports.get(name).cloned();
        let own = own.map(|own| offer(i, SiteState::Alive, None, own));
        let seen = site.machine.iter().flat_map(Machine::seen);
        let others = seen.filter_map(|(site, seen)| {
            let value = seen.entries.get(&exported::key("shop", name))?;
            let at = (0..self.sites.len()).find(|at| id(*at) == site)?;
            let told = exported::read(value).expect("an export");
            Some(offer(at, seen.state, seen.rtt, told))
        });
        own.into_iter().chain(others).collect()
    }

    fn merged(&self, i: usize, name: &str) -> Option<(Merged, Vec<String>)> {
        let import = plan::import(&place(i), "shop", name, &self.offers(i, name))?;
        Some((import.merged, import.clusters))
    }

    fn note_who_is_away(&mut self) {
        for site in &mut self.sites {
            let away = site.cut || site.machine.is_none() || !self.nats;
            match site.away {
                None if away => site.away = Some(self.now),
                Some(_) if !away => {
                    site.away = None;
                    site.here = self.now;
                }
                _ => {}
            }
        }
    }

    /// At any time: requests go to nobody who is known to be gone, and who has been away for
    /// long is known to be.
    fn nothing_stale_is_preferred(&self) {
        let seed = self.seed;
        for (i, site) in self.sites.iter().enumerate() {
            let Some(machine) = &site.machine else {
                continue;
            };
            let states: BTreeMap<SiteId, SiteState> = machine
                .seen()
                .map(|(site, seen)| (site, seen.state))
                .collect();
            for (j, other) in self.sites.iter().enumerate().filter(|(j, _)| *j != i) {
                let started = site.started.max(site.here);
                let long = |since: Duration| self.now > since + PATIENCE;
                if other.away.is_some_and(long) && (site.away.is_some() || long(started)) {
                    let state = states.get(&id(j));
                    let alive = state == Some(&SiteState::Alive) && self.now > started + PATIENCE;
                    assert!(!alive, "seed {seed}: {i} believes {j}");
                }
            }
            for name in SERVICES {
                let offers = self.offers(i, name);
                let Some(import) = plan::import(&place(i), "shop", name, &offers) else {
                    continue;
                };
                for tunnel in import.tunnels.iter().filter(|t| t.ready) {
                    let to = tunnel.gates[0].site;
                    let reached = matches!(states[&to], SiteState::Alive | SiteState::Suspect);
                    assert!(reached, "seed {seed}: {i} asks {to} for {name}");
                    let better = offers.iter().any(|o| {
                        let c = &o.candidate;
                        (c.own || c.state == SiteState::Alive) && c.ready > 0 && c.weight > 0
                    });
                    let suspect = states[&to] == SiteState::Suspect;
                    assert!(!(suspect && better), "seed {seed}: {i} prefers a suspect");
                }
            }
        }
    }

    /// All members see each other and the same imports, which are what is exported.
    fn converged(&self) {
        let seed = self.seed;
        let members: Vec<usize> = (0..self.sites.len())
            .filter(|i| !self.sites[*i].revoked)
            .collect();
        for i in &members {
            let machine = self.sites[*i].machine.as_ref().expect("started");
            let alive: BTreeSet<SiteId> = machine
                .seen()
                .filter(|(_, seen)| seen.state == SiteState::Alive)
                .map(|(site, _)| site)
                .collect();
            let others: BTreeSet<SiteId> =
                members.iter().filter(|j| *j != i).map(|j| id(*j)).collect();
            assert_eq!(alive, others, "seed {seed}: {i} sees");
        }
        for name in SERVICES {
            let exporters: Vec<String> = members
                .iter()
                .filter(|i| self.sites[**i].exports.contains_key(name))
                .map(|i| place(*i).name)
                .collect();
            let first = self.merged(members[0], name);
            let clusters = first.as_ref().map_or_else(Vec::new, |(_, c)| c.clone());
            assert_eq!(clusters, exporters, "seed {seed}: {name}");
            for i in &members {
                assert_eq!(self.merged(*i, name), first, "seed {seed}: {name} at {i}");
            }
        }
    }

    /// Without any change little is said.
    fn rests(&mut self) {
        let before = self.count;
        self.pass(Duration::from_secs(120));
        let sites = self.sites.len() as u64;
        // Heartbeats to all, what looks after the next, and a change's heartbeats that slow down.
        let most = sites * (sites * 12 + 12);
        let said = self.count - before;
        assert!(
            said <= most,
            "seed {}: {said} envelopes of {sites} sites",
            self.seed
        );
    }

    /// The site that carries traffic dies: within a second nobody asks it who has another.
    fn a_dead_site_is_missed_at_once(&mut self) {
        let (asks, dies) = (0, 1 + self.rng.one_of(self.sites.len() - 1));
        if self.sites[dies].revoked {
            return;
        }
        for _ in 0..20 {
            self.input(asks, Input::Traffic(id(dies)));
            self.pass(Duration::from_millis(100));
        }
        self.sites[dies].machine = None;
        for _ in 0..10 {
            self.input(asks, Input::Traffic(id(dies)));
            self.pass(Duration::from_millis(100));
        }
        let machine = self.sites[asks].machine.as_ref().expect("started");
        let state = machine.seen().find(|(site, _)| *site == id(dies));
        let state = state.map(|(_, seen)| seen.state);
        assert_ne!(state, Some(SiteState::Alive), "seed {}", self.seed);
        self.nothing_stale_is_preferred();
    }
}

fn told(exported: &Exported) -> Option<bytes::Bytes> {
    serde_json::to_vec(exported).ok().map(Into::into)
}

fn schedule(seed: u64) {
    let mut world = World::new(seed);
    world.pass(Duration::from_secs(20));
    world.converged();
    for _ in 0..FAULTS {
        world.fault();
        world.note_who_is_away();
        let pause = [500, 5_000, 60_000][world.rng.one_of(3)];
        let pause = world.rng.ms(pause);
        world.pass(pause);
        world.note_who_is_away();
        world.nothing_stale_is_preferred();
    }
    if seed.is_multiple_of(3) {
        // Whoever is out counts for nobody, not even those that were away.
        let out = 1 + world.rng.one_of(world.sites.len() - 1);
        world.sites[out].revoked = true;
        if world.sites[0].machine.is_none() {
            world.start(0);
        }
        world.input(0, Input::Revoke(id(out)));
    }
    world.heal();
    world.converged();
    world.replay();
    world.rests();
    world.converged();
    world.a_dead_site_is_missed_at_once();
}

#[test]
fn imports_converge_whatever_happens() {
    let from_env = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    if let Some(seed) = from_env("SALP_SIM_SEED") {
        return schedule(seed);
    }
    for seed in 0..from_env("SALP_SIM_RUNS").unwrap_or(SCHEDULES) {
        schedule(seed);
    }
}
