//! Leader election by a Lease, as client-go has it: of several processes one leads, and another
//! follows when it stops, dies or is cut off.
//!
//! The holder writes its Lease again and again. Another takes it over once it has not seen the
//! Lease change for as long as that says it lasts. A holder that can't write stops leading
//! before that. No two clocks are compared: only how long each process itself has waited.
//!
//! `Candidate` decides and is simulated; [`start`] asks, waits and writes.

use crate::Clock;
use futures::{Stream, StreamExt as _};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Api, PostParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use lifecycle::Scope;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::time::Duration;
use tokio::time::Instant;

/// How long things take; the defaults are upstream's.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How long a Lease that is not renewed keeps others out.
    pub lease: Duration,
    /// A holder that has not renewed it for so long leads no more. Less than `lease`: the
    /// difference is what it has to stop.
    pub renew_within: Duration,
    /// Between two tries.
    pub retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            renew_within: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

/// What is led, and who would.
#[derive(Clone)]
pub struct Election {
    /// Reads and writes the Lease.
    pub client: kube::Client,
    /// Where the Lease is.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Name of this process among all that ever were.
    pub identity: String,
    /// How long things take.
    pub timing: Timing,
    /// What is written as time; nothing is decided by it.
    pub clock: Clock,
    /// Of the jitter of retries.
    pub seed: u64,
}

impl std::fmt::Debug for Election {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Election")
            .field("name", &self.name)
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

/// How long a holder that ends may take to give its Lease away.
const RELEASE: Duration = Duration::from_secs(3);

/// Takes part in an election until `scope` is cancelled. While this process leads, what `lead`
/// has started runs in the scope that it is given; that scope has ended before another may
/// lead, and before a next term begins.
pub fn start(election: Election, scope: &Scope, lead: impl Fn(&Scope) + Send + Sync + 'static) {
    let token = scope.token().clone();
    scope.spawn(async move {
        let mut running = Running::new(election);
        loop {
            if token.run_until_cancelled(running.win()).await.is_none() {
                return;
            }
            let name = &running.election.name;
            tracing::info!(lease = name, "leads from now on");
            let term = Scope::new();
            lead(&term);
            let lost = token.run_until_cancelled(running.hold()).await;
            term.close().await;
            if lost.is_none() {
                // What it has done is done: the next may begin at once.
                let released = tokio::time::timeout(RELEASE, running.release()).await;
                if !matches!(released, Ok(Ok(()))) {
                    tracing::debug!(lease = running.election.name, ?released, "release Lease");
                }
                return;
            }
            tracing::warn!(
                lease = running.election.name,
                "leads no more: its Lease is lost"
            );
        }
    });
}

struct Running {
    election: Election,
    api: Api<Lease>,
    candidate: Candidate,
    rng: StdRng,
}

impl Running {
    fn new(election: Election) -> Self {
        Self {
            api: Api::namespaced(election.client.clone(), &election.namespace),
            candidate: Candidate::new(&election.identity, election.timing),
            rng: StdRng::seed_from_u64(election.seed),
            election,
        }
    }

    /// Returns once the Lease is held.
    async fn win(&mut self) {
        let mut given_up = given_up(&self.api, &self.election.name);
        loop {
            match self.attempt().await {
                Ok(()) if self.candidate.leads(Instant::now()) => return,
                Ok(()) => {}
                Err(error) => {
                    tracing::debug!(lease = self.election.name, %error, "campaign");
                }
            }
            let pause = self
                .election
                .timing
                .retry
                .mul_f64(self.rng.random_range(1.0..1.2));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                Some(()) = given_up.next() => {}
            }
        }
    }

    /// Renews the Lease; returns once it is lost.
    async fn hold(&mut self) {
        while let Some(until) = self.candidate.held_until() {
            tokio::time::sleep(self.election.timing.retry).await;
            match tokio::time::timeout_at(until, self.attempt()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!(lease = self.election.name, %error, "renew Lease");
                }
                Err(_) => return,
            }
            if !self.candidate.leads(Instant::now()) {
                return;
            }
        }
    }

    /// Makes, takes or renews the Lease if it may.
    async fn attempt(&mut self) -> Result<(), kube::Error> {
        let asked = Instant::now();
        let found = self.api.get_opt(&self.election.name).await?;
        let wall = self.election.clock.now();
        let step = self.candidate.step(found.as_ref(), Instant::now(), wall);
        let params = PostParams::default();
        let written = match step {
            Step::Wait => return Ok(()),
            Step::Make(spec) => {
                let lease = Lease {
                    metadata: ObjectMeta {
                        name: Some(self.election.name.clone()),
                        namespace: Some(self.election.namespace.clone()),
                        ..ObjectMeta::default()
                    },
                    spec: Some(spec),
                };
                self.api.create(&params, &lease).await
            }
            Step::Take(lease) => {
                let name = &self.election.name;
                self.api.replace(name, &params, &lease).await
            }
        };
        match written {
            Ok(_) => {
                self.candidate.has_written(asked);
                Ok(())
            }
            // Another was faster: the next look tells.
            Err(error) if crate::is_conflict(&error) || crate::is_not_found(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Leaves the Lease to whoever comes next.
    async fn release(&mut self) -> Result<(), kube::Error> {
        let name = &self.election.name;
        let Some(found) = self.api.get_opt(name).await? else {
            return Ok(());
        };
        let Some(lease) = self.candidate.released(found, self.election.clock.now()) else {
            return Ok(());
        };
        let params = PostParams::default();
        self.api.replace(name, &params, &lease).await.map(drop)
    }
}

/// Tells when nobody holds the Lease.
fn given_up(api: &Api<Lease>, name: &str) -> impl Stream<Item = ()> + Unpin + use<> {
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let events = watcher(api.clone(), config).default_backoff();
    let free = events.filter_map(|event| {
        let free = match event {
            Ok(Event::Apply(lease)) => holder(&lease).is_empty(),
            Ok(Event::Delete(_)) => true,
            _ => false,
        };
        std::future::ready(free.then_some(()))
    });
    free.boxed()
}

fn holder(lease: &Lease) -> &str {
    let spec = lease.spec.as_ref();
    spec.and_then(|spec| spec.holder_identity.as_deref())
        .unwrap_or_default()
}

/// What to do about a Lease.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    /// It is another's.
    Wait,
    /// There is none.
    Make(LeaseSpec),
    /// It is free, run out or one's own.
    Take(Box<Lease>),
}

/// One who would lead: what it has seen and whether it does.
#[derive(Debug)]
struct Candidate {
    identity: String,
    timing: Timing,
    seen: Option<Seen>,
    held_until: Option<Instant>,
}

/// The Lease when it last changed.
#[derive(Debug)]
struct Seen {
    version: Option<String>,
    at: Instant,
}

impl Candidate {
    fn new(identity: &str, timing: Timing) -> Self {
        Self {
            identity: identity.to_owned(),
            timing,
            seen: None,
            held_until: None,
        }
    }

    fn step(&mut self, found: Option<&Lease>, now: Instant, wall: jiff::Timestamp) -> Step {
        let Some(found) = found else {
            self.held_until = None;
            return Step::Make(self.spec(0, wall, wall));
        };
        let version = &found.metadata.resource_version;
        let seen = match &mut self.seen {
            Some(seen) if seen.version == *version => seen,
            seen => seen.insert(Seen {
                version: version.clone(),
                at: now,
            }),
        };
        let spec = found.spec.clone().unwrap_or_default();
        let own = holder(found) == self.identity;
        if !own {
            // Whatever it held, it holds no more.
            self.held_until = None;
            let lasts = spec
                .lease_duration_seconds
                .and_then(|s| u64::try_from(s).ok());
            let lasts = lasts.map_or(self.timing.lease, Duration::from_secs);
            if !holder(found).is_empty() && now < seen.at + lasts {
                return Step::Wait;
            }
        }
        let transitions = spec.lease_transitions.unwrap_or(0);
        let next = if own {
            let since = spec.acquire_time.map_or(wall, |time| time.0);
            self.spec(transitions, since, wall)
        } else {
            self.spec(transitions.saturating_add(1), wall, wall)
        };
        Step::Take(Box::new(Lease {
            metadata: found.metadata.clone(),
            spec: Some(next),
        }))
    }

    fn spec(&self, transitions: i32, since: jiff::Timestamp, now: jiff::Timestamp) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.timing.lease.as_secs()).ok(),
            acquire_time: Some(MicroTime(since)),
            renew_time: Some(MicroTime(now)),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    /// The Lease was written; the others have waited since `asked` at the longest.
    fn has_written(&mut self, asked: Instant) {
        self.held_until = Some(asked + self.timing.renew_within);
    }

    fn held_until(&self) -> Option<Instant> {
        self.held_until
    }

    fn leads(&self, now: Instant) -> bool {
        self.held_until.is_some_and(|until| now < until)
    }

    /// The Lease as it is left, if it is this one's.
    fn released(&mut self, found: Lease, wall: jiff::Timestamp) -> Option<Lease> {
        self.held_until = None;
        if holder(&found) != self.identity {
            return None;
        }
        let mut lease = found;
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        spec.renew_time = Some(MicroTime(wall));
        spec.acquire_time = Some(MicroTime(wall));
        Some(lease)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wall() -> jiff::Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn lease(holder: &str, version: &str) -> Lease {
        let candidate = Candidate::new(holder, Timing::default());
        let mut lease = Lease {
            spec: Some(candidate.spec(4, wall(), wall())),
            ..Lease::default()
        };
        lease.metadata.resource_version = Some(version.to_owned());
        lease
    }

    fn taken(step: Step) -> LeaseSpec {
        match step {
            Step::Take(lease) => lease.spec.unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_lease_is_taken_when_it_does_not_change_for_its_time() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut b = Candidate::new("b", Timing::default());
        let made = b.step(None, start, wall());
        assert!(matches!(made, Step::Make(spec) if spec.lease_transitions == Some(0)));
        assert_eq!(b.step(Some(&lease("a", "1")), start, wall()), Step::Wait);
        assert_eq!(b.step(Some(&lease("a", "1")), at(14), wall()), Step::Wait);
        // Renewed: from here on it is waited anew.
        assert_eq!(b.step(Some(&lease("a", "2")), at(14), wall()), Step::Wait);
        assert_eq!(b.step(Some(&lease("a", "2")), at(28), wall()), Step::Wait);
        let spec = taken(b.step(Some(&lease("a", "2")), at(29), wall()));
        assert_eq!(spec.holder_identity.as_deref(), Some("b"));
        assert_eq!(spec.lease_transitions, Some(5));
        assert!(!b.leads(at(29)));
        b.has_written(at(29));
        assert!(b.leads(at(38)) && !b.leads(at(39)));
        // Its own it renews at any time, and keeps since when it has it.
        let spec = taken(b.step(Some(&lease("b", "3")), at(60), wall()));
        assert_eq!(spec.lease_transitions, Some(4));
        // Another's it has lost, and what was released is free at once.
        assert_eq!(b.step(Some(&lease("a", "4")), at(30), wall()), Step::Wait);
        assert!(!b.leads(at(30)));
        let mut a = Candidate::new("a", Timing::default());
        assert_eq!(a.released(lease("b", "5"), wall()), None);
        let left = a.released(lease("a", "5"), wall()).unwrap();
        assert_eq!(left.spec.as_ref().unwrap().lease_duration_seconds, Some(1));
        let spec = taken(b.step(Some(&left), at(31), wall()));
        assert_eq!(spec.lease_transitions, Some(5));
    }

    /// One of the processes of a simulation, whose requests take their time or get lost.
    struct Process {
        candidate: Candidate,
        asked: Instant,
        state: State,
        /// When the request is heard, or the answer, or the next try is due; in milliseconds.
        due: u64,
        /// Nothing goes out or comes in before.
        cut_until: u64,
    }

    #[derive(Clone)]
    enum State {
        Resting,
        Reading,
        Read(Option<Box<Lease>>),
        Writing(Step),
        Written(bool),
    }

    /// Delays of up to six seconds, lost requests and answers, cuts of up to a minute.
    fn simulate(seed: u64) {
        const SPAN: u64 = 600_000;
        const QUIET: u64 = 540_000;
        let mut rng = StdRng::seed_from_u64(seed);
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut register: Option<Lease> = None;
        let mut version = 0u64;
        let mut led = 0;
        let mut processes: Vec<Process> = ["a", "b", "c"]
            .map(|name| Process {
                candidate: Candidate::new(name, Timing::default()),
                asked: start,
                state: State::Resting,
                due: 0,
                cut_until: 0,
            })
            .into();
        for ms in (0..SPAN).step_by(50) {
            for process in &mut processes {
                let faulty = ms < QUIET;
                if faulty && rng.random_range(0..4000) == 0 {
                    process.cut_until = ms + rng.random_range(0..60_000);
                }
                if !faulty {
                    process.cut_until = 0;
                }
                if ms < process.due {
                    continue;
                }
                let lost = ms < process.cut_until || faulty && rng.random_range(0..20) == 0;
                let delay = if faulty && rng.random_range(0..10) == 0 {
                    6_000
                } else {
                    100
                };
                process.due = ms + rng.random_range(0..delay);
                let state = std::mem::replace(&mut process.state, State::Resting);
                process.state = match state {
                    State::Resting => {
                        process.asked = at(ms);
                        State::Reading
                    }
                    // A request, or an answer, that is lost is given up after five seconds.
                    State::Reading | State::Read(_) | State::Writing(_) | State::Written(_)
                        if lost =>
                    {
                        // What was lost may be the answer of a write that was done.
                        if let State::Writing(step) = &state
                            && rng.random_range(0..2) == 0
                        {
                            write(&mut register, &mut version, step);
                        }
                        process.due = ms + 5_000;
                        State::Resting
                    }
                    State::Reading => State::Read(register.clone().map(Box::new)),
                    State::Read(found) => {
                        match process.candidate.step(found.as_deref(), at(ms), wall()) {
                            Step::Wait => {
                                process.due = ms + 2_000;
                                State::Resting
                            }
                            step => State::Writing(step),
                        }
                    }
                    State::Writing(step) => {
                        State::Written(write(&mut register, &mut version, &step))
                    }
                    State::Written(done) => {
                        if done {
                            process.candidate.has_written(process.asked);
                        }
                        process.due = ms + 2_000;
                        State::Resting
                    }
                };
            }
            let leaders = processes
                .iter()
                .filter(|p| p.candidate.leads(at(ms)))
                .count();
            assert!(leaders <= 1, "seed {seed}: {leaders} lead after {ms} ms");
            led += u64::from(leaders == 1);
            let settled = ms >= QUIET + 25_000;
            assert!(
                leaders == 1 || !settled,
                "seed {seed}: nobody leads after {ms} ms"
            );
        }
        assert!(led > 0);
    }

    fn write(register: &mut Option<Lease>, version: &mut u64, step: &Step) -> bool {
        let mut next = match step {
            Step::Make(spec) if register.is_none() => Lease {
                spec: Some(spec.clone()),
                ..Lease::default()
            },
            Step::Take(lease) => {
                let there = register.as_ref().map(|l| &l.metadata.resource_version);
                if there != Some(&lease.metadata.resource_version) {
                    return false;
                }
                (**lease).clone()
            }
            _ => return false,
        };
        *version += 1;
        next.metadata.resource_version = Some(version.to_string());
        *register = Some(next);
        true
    }

    #[test]
    fn no_two_lead_whatever_is_lost_or_late_and_one_does_in_the_end() {
        for seed in 0..200 {
            simulate(seed);
        }
    }
}
