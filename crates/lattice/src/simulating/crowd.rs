//! Many sites that come at once, and what it costs: a hundred here, and a thousand where a test
//! is optimised.

use super::*;
use std::collections::VecDeque;

const SITES: usize = if cfg!(debug_assertions) { 100 } else { 1000 };
const STEP: Duration = Duration::from_millis(10);
const DELAY_STEPS: usize = 2;

fn id(i: usize) -> SiteId {
    // In another order than they start in.
    let mut id = [0; 16];
    id[..8].copy_from_slice(&(i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    SiteId(id)
}

struct World {
    now: Duration,
    machines: Vec<Option<Machine>>,
    index: BTreeMap<SiteId, usize>,
    flying: VecDeque<Vec<(usize, Envelope)>>,
    published: usize,
    delivered: usize,
}

impl World {
    /// All have been members for long, and start at once.
    fn start() -> Self {
        let members: BTreeSet<SiteId> = (0..SITES).map(id).collect();
        let machine = |i: usize| {
            let mut members = members.clone();
            members.remove(&id(i));
            let disk = Disk {
                incarnation: 7,
                members,
                ..Disk::default()
            };
            Some(Machine::new(id(i), i == 0, 24, i as u64, disk))
        };
        Self {
            now: Duration::ZERO,
            machines: (0..SITES).map(machine).collect(),
            index: (0..SITES).map(|i| (id(i), i)).collect(),
            flying: vec![Vec::new(); DELAY_STEPS + 1].into(),
            published: 0,
            delivered: 0,
        }
    }

    fn input(&mut self, i: usize, input: Input) {
        let Some(machine) = &mut self.machines[i] else {
            return;
        };
        let flying = &mut self.flying[DELAY_STEPS];
        for envelope in machine.step(self.now, input) {
            self.published += 1;
            let before = flying.len();
            match (envelope.hubs, envelope.to) {
                (true, _) => flying.push((0, envelope)),
                (false, Some(to)) => flying.push((self.index[&to], envelope)),
                (false, None) => {
                    let others = (0..SITES).filter(|to| *to != i);
                    flying.extend(others.map(|to| (to, envelope.clone())));
                }
            }
            self.delivered += flying.len() - before;
        }
    }

    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.now += STEP;
            self.flying.push_back(Vec::new());
            for (to, envelope) in self.flying.pop_front().unwrap_or_default() {
                self.input(to, Input::Received(envelope));
            }
            for i in 0..SITES {
                let due = self.machines[i].as_ref().and_then(Machine::next);
                if due.is_some_and(|at| at <= self.now) {
                    self.input(i, Input::Tick);
                }
            }
        }
    }

    /// How many of all pairs see each other.
    fn pairs(&self) -> usize {
        let alive = |m: &Machine| {
            let peers = m.membership.peers().values();
            peers.filter(|p| p.state == SiteState::Alive).count()
        };
        self.machines.iter().flatten().map(alive).sum()
    }

    fn links(&mut self, up: bool) {
        for i in 0..SITES {
            self.input(i, Input::Link(up));
        }
    }

    fn counted(&mut self) -> (usize, usize) {
        let counted = (self.published, self.delivered);
        (self.published, self.delivered) = (0, 0);
        counted
    }
}

#[test]
fn all_meet_at_once_with_few_messages() {
    let mut world = World::start();
    // A power cut everywhere, and then where NATS is.
    for _ in 0..2 {
        world.links(true);
        world.pass(Duration::from_secs(20));
        let (published, delivered) = world.counted();
        assert_eq!(world.pairs(), SITES * (SITES - 1));
        // Each has told the hub and its neighbours, was asked, and got a census; and all have
        // heard a few rolls. Where each asks each it would be four millions.
        assert!(published < 50 * SITES, "{published} messages said");
        assert!(delivered < 80 * SITES, "{delivered} messages heard");
        world.pass(Duration::from_secs(60));
        assert_eq!(world.pairs(), SITES * (SITES - 1));
        let (published, _) = world.counted();
        assert!(published < 10 * SITES, "{published} messages said later");
        world.links(false);
        world.pass(Duration::from_secs(15));
        assert_eq!(world.pairs(), 0);
    }
    // Without the hub its deputies tell.
    world.machines[0] = None;
    world.links(true);
    world.pass(Duration::from_secs(60));
    let (published, delivered) = world.counted();
    assert_eq!(world.pairs(), (SITES - 1) * (SITES - 2));
    assert!(
        published < 60 * SITES,
        "{published} messages said without a hub"
    );
    assert!(
        delivered < 3 * SITES * SITES,
        "{delivered} heard without a hub"
    );
}
