//! Whole sites, sealed envelopes and all, in a world that cuts, delays, repeats, restarts and
//! forges, under a seed. A failure prints it; `SALP_SIM_SEED` runs that one alone and
//! `SALP_SIM_RUNS` more of them.

use super::*;
use crate::trust::SiteName;
use std::collections::BTreeMap;

/// All hear all.
const FEW: usize = 4;
/// Each looks after the next one.
const MANY: usize = 6;
/// Each asks each, or hubs tell who comes.
const ALL: usize = usize::MAX;
const CROWD: usize = 3;

struct World {
    seed: u64,
    entropy: Entropy,
    now: Duration,
    sites: Vec<Slot>,
    /// When, where to, on what subject, what.
    flying: Vec<(Duration, usize, Bytes)>,
    /// What an attacker at NATS has kept.
    recorded: Vec<(String, Bytes)>,
    /// Links that are cut: each site's to NATS.
    cut: Vec<bool>,
    loss: u64,
    /// Others up to which each asks each that comes.
    crowd: usize,
}

struct Slot {
    key: [u8; 32],
    member: Option<Member>,
    saved: Saved,
    started: Duration,
    values: BTreeMap<String, String>,
    writes: u64,
    revoked: bool,
}

fn config(
    slot: &Slot,
    index: usize,
    crowd: usize,
    token: Option<JoinToken>,
    seed: u64,
) -> MemberConfig {
    MemberConfig {
        key: Arc::new(SiteKey::from_seed(&slot.key)),
        name: SiteName {
            name: format!("site-{index}"),
            region: String::new(),
            zone: String::new(),
        },
        timing: Timing {
            crowd,
            ..Timing::default()
        },
        root: (index == 0).then(|| SiteKey::from_seed(&[200; 32])),
        token,
        saved: slot.saved.clone(),
        entropy: Entropy::seeded(seed),
        unix: Box::new(|| 1000),
    }
}

impl World {
    fn new(seed: u64, sites: usize, crowd: usize) -> Self {
        let slots = (0..sites).map(|i| Slot {
            key: [i as u8 + 1; 32],
            member: None,
            saved: Saved::default(),
            started: Duration::ZERO,
            values: BTreeMap::new(),
            writes: 0,
            revoked: false,
        });
        let mut world = Self {
            seed,
            entropy: Entropy::seeded(seed),
            now: Duration::ZERO,
            sites: slots.collect(),
            flying: Vec::new(),
            recorded: Vec::new(),
            cut: vec![false; sites],
            loss: 0,
            crowd,
        };
        world.start(0, None);
        let hub = world.sites[0].member.as_mut().unwrap();
        let token = hub
            .make_token(Duration::from_secs(60), sites as u32)
            .unwrap();
        for i in 1..sites {
            world.start(i, Some(token.clone()));
        }
        world
    }

    fn start(&mut self, i: usize, token: Option<JoinToken>) {
        let seed = self.entropy.below(u64::MAX);
        let crowd = self.crowd;
        let slot = &mut self.sites[i];
        slot.saved.incarnation += 1;
        slot.started = self.now;
        slot.values.clear();
        let member = Member::new(config(slot, i, crowd, token, seed)).unwrap();
        slot.saved = member.saved();
        slot.member = Some(member);
        self.input(i, Input::Link(!self.cut[i]));
    }

    fn input(&mut self, i: usize, input: Input) {
        let now = self.now - self.sites[i].started;
        let Some(member) = &mut self.sites[i].member else {
            return;
        };
        let outputs = member.step(now, input);
        self.outputs(i, outputs);
    }

    fn outputs(&mut self, i: usize, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Publish { subject, bytes } if !self.cut[i] => {
                    let bytes = Bytes::from(bytes);
                    if self.recorded.len() < 2000 {
                        self.recorded.push((subject.clone(), bytes.clone()));
                    }
                    self.deliver(Some(i), &subject, &bytes);
                }
                Output::Save | Output::Admitted | Output::Remember => {
                    let member = self.sites[i].member.as_ref().unwrap();
                    self.sites[i].saved = member.saved();
                }
                _ => {}
            }
        }
    }

    fn deliver(&mut self, from: Option<usize>, subject: &str, bytes: &Bytes) {
        for to in 0..self.sites.len() {
            let listens = self.sites[to]
                .member
                .as_ref()
                .is_some_and(|m| m.subjects().iter().any(|s| s == subject));
            if Some(to) == from || !listens || self.cut[to] {
                continue;
            }
            if self.entropy.below(100) < self.loss {
                continue;
            }
            let delay = Duration::from_millis(5 + self.entropy.below(60));
            self.flying.push((self.now + delay, to, bytes.clone()));
        }
    }

    /// Lets time pass.
    fn pass(&mut self, until: Duration) {
        for round in 0.. {
            assert!(
                round < 1_000_000,
                "seed {}: it does not come to rest",
                self.seed
            );
            let timers = self.sites.iter().filter_map(|slot| {
                let at = slot.member.as_ref()?.next()?;
                Some(slot.started + at)
            });
            let at = timers.chain(self.flying.iter().map(|f| f.0)).min();
            let Some(at) = at.filter(|at| *at <= until) else {
                self.now = until;
                return;
            };
            self.now = self.now.max(at);
            let (due, later): (Vec<_>, _) = std::mem::take(&mut self.flying)
                .into_iter()
                .partition(|f| f.0 <= self.now);
            self.flying = later;
            for (_, to, bytes) in due {
                if !self.cut[to] {
                    self.input(to, Input::Received(bytes));
                }
            }
            for i in 0..self.sites.len() {
                self.input(i, Input::Tick);
            }
        }
    }

    /// One thing happens.
    fn fault(&mut self) {
        let i = self.entropy.below(self.sites.len() as u64) as usize;
        match self.entropy.below(8) {
            0 | 1 => {
                self.cut[i] = !self.cut[i];
                let up = !self.cut[i];
                // Half of the time the site does not notice.
                if up || self.entropy.below(2) == 0 {
                    self.input(i, Input::Link(up));
                }
            }
            // Killed, and started later.
            2 => self.sites[i].member = None,
            3 => {
                if self.sites[i].member.is_none() {
                    self.start(i, None);
                }
            }
            // Its file is an old one: the count is behind.
            4 => {
                if self.sites[i].member.is_none() && self.sites[i].saved.incarnation > 1 {
                    self.sites[i].saved.incarnation -= 1;
                }
            }
            5 => {
                self.write(i);
            }
            6 => self.loss = self.entropy.below(30),
            _ => {
                for _ in 0..10 {
                    self.forge();
                }
            }
        }
    }

    fn write(&mut self, i: usize) {
        let key = format!("k{}", self.entropy.below(5));
        let remove = self.entropy.below(4) == 0;
        let now = self.now - self.sites[i].started;
        let slot = &mut self.sites[i];
        let Some(member) = &mut slot.member else {
            return;
        };
        slot.writes += 1;
        let text = format!("{i}/{}", slot.writes);
        let value = (!remove).then(|| Bytes::from(text.clone()));
        member.publish(now, vec![(key.clone(), value)]).unwrap();
        if remove {
            slot.values.remove(&key);
        } else {
            slot.values.insert(key, text);
        }
        self.input(i, Input::Tick);
    }

    /// Somebody at NATS sends again what was sent, to anybody, or changes it.
    fn forge(&mut self) {
        if self.recorded.is_empty() {
            return;
        }
        let pick = self.entropy.below(self.recorded.len() as u64) as usize;
        let (subject, bytes) = self.recorded[pick].clone();
        let mut bytes = bytes.to_vec();
        if self.entropy.below(2) == 0 {
            let at = self.entropy.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << self.entropy.below(8);
        }
        self.deliver(None, &subject, &bytes.into());
    }

    /// All faults end; whoever is dead starts.
    fn heal(&mut self) {
        self.loss = 0;
        for i in 0..self.sites.len() {
            if self.sites[i].member.is_none() {
                self.start(i, None);
            }
            self.cut[i] = false;
            self.input(i, Input::Link(true));
        }
        let until = self.now + self.patience() + Duration::from_secs(30);
        self.pass(until);
    }

    /// Everybody sees everybody, and what they say.
    fn converged(&self) {
        let seed = self.seed;
        for (i, slot) in self.sites.iter().enumerate() {
            let view = slot.member.as_ref().unwrap().view();
            if slot.revoked {
                assert_eq!(view.standing, Standing::Revoked, "seed {seed}: site {i}");
                continue;
            }
            assert_eq!(view.standing, Standing::Member, "seed {seed}: site {i}");
            for (j, other) in self.sites.iter().enumerate().filter(|(j, _)| *j != i) {
                let name = format!("site-{j}");
                let seen = view.site(&name);
                if other.revoked {
                    assert!(seen.is_none(), "seed {seed}: {i} sees the revoked {j}");
                    continue;
                }
                let seen = seen.unwrap_or_else(|| panic!("seed {seed}: {i} does not know {j}"));
                assert_eq!(seen.state, SiteState::Alive, "seed {seed}: {i} of {j}");
                let said: BTreeMap<String, String> = seen
                    .entries
                    .iter()
                    .map(|(k, v)| (k.clone(), String::from_utf8_lossy(v).into_owned()))
                    .collect();
                assert_eq!(said, other.values, "seed {seed}: {i} of {j}");
            }
        }
    }

    /// How long it may take until all know of a change.
    fn patience(&self) -> Duration {
        let few = self.sites.len() <= FEW;
        Duration::from_secs(if few { 60 } else { 150 })
    }

    /// Nobody believes alive who has been dead or cut off for long.
    fn no_ghosts(&self, dead_since: &BTreeMap<usize, Duration>) {
        for (i, slot) in self.sites.iter().enumerate() {
            let Some(member) = &slot.member else { continue };
            let view = member.view();
            for (j, since) in dead_since {
                let long = self.now - *since > self.patience();
                let own = self.now - slot.started > self.patience();
                if let Some(seen) = view.site(&format!("site-{j}"))
                    && *j != i
                    && long
                    && own
                {
                    let seed = self.seed;
                    assert_ne!(seen.state, SiteState::Alive, "seed {seed}: {i} of {j}");
                }
            }
        }
    }
}

fn schedule(seed: u64, sites: usize, crowd: usize) {
    let mut world = World::new(seed, sites, crowd);
    world.pass(Duration::from_secs(20));
    world.converged();
    let mut dead: BTreeMap<usize, Duration> = BTreeMap::new();
    for _ in 0..25 {
        world.fault();
        for i in 0..sites {
            let off = world.cut[i] || world.sites[i].member.is_none();
            match off {
                true => dead.entry(i).or_insert(world.now),
                false => &mut dead.remove(&i).unwrap_or_default(),
            };
        }
        let pause = Duration::from_millis(world.entropy.below(20_000));
        world.pass(world.now + pause);
        world.no_ghosts(&dead);
    }
    world.heal();
    world.converged();
    // One is revoked while another is away; both learn of it.
    let away = 1 + world.entropy.below(sites as u64 - 1) as usize;
    let out = 1 + (away % (sites - 1));
    world.cut[away] = true;
    world.input(away, Input::Link(false));
    let now = world.now;
    let since_start = now - world.sites[0].started;
    let hub = world.sites[0].member.as_mut().unwrap();
    hub.revoke(since_start, &format!("site-{out}")).unwrap();
    world.sites[out].revoked = true;
    world.input(0, Input::Tick);
    world.write(0);
    world.pass(world.now + Duration::from_secs(100));
    world.heal();
    world.converged();
    // Nothing counts that the revoked one has ever said.
    for _ in 0..50 {
        world.forge();
    }
    world.pass(world.now + Duration::from_secs(20));
    world.converged();
}

#[test]
fn sites_converge_whatever_happens() {
    let from_env = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    if let Some(seed) = from_env("SALP_SIM_SEED") {
        schedule(seed, FEW, ALL);
        schedule(seed, MANY, ALL);
        return schedule(seed, MANY, CROWD);
    }
    for seed in 0..from_env("SALP_SIM_RUNS").unwrap_or(9) {
        schedule(seed, FEW, ALL);
        match seed % 4 {
            1 => schedule(seed, MANY, CROWD),
            3 => schedule(seed, MANY, ALL),
            _ => {}
        }
    }
}

#[test]
fn an_approved_site_trusts_who_welcomed_it_and_a_stranger_sees_nothing() {
    let mut world = World::new(5, FEW, ALL);
    // This one has no token.
    world.pass(Duration::from_secs(5));
    let hub = world.sites[0].member.as_mut().unwrap();
    hub.revoke(world.now, "site-3").unwrap();
    let slot = &mut world.sites[3];
    slot.saved = Saved::default();
    slot.key = [77; 32];
    world.start(3, None);
    world.pass(Duration::from_secs(10));
    let hub = world.sites[0].member.as_mut().unwrap();
    let pending = hub.view().pending;
    assert_eq!(pending.len(), 1);
    assert_eq!(pending[0].reason, "it waits for approval");
    let stranger = world.sites[3].member.as_ref().unwrap().view();
    assert_eq!(
        (stranger.standing, stranger.sites.len()),
        (Standing::Joining, 0)
    );
    // It hears nothing of what members say, whatever it listens to.
    let now = world.now - world.sites[0].started;
    world.sites[0]
        .member
        .as_mut()
        .unwrap()
        .approve(now, "site-3")
        .unwrap();
    world.input(0, Input::Tick);
    let until = world.now + Duration::from_secs(10);
    world.pass(until);
    world.converged();
}
