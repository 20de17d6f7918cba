//! Who may run and who waits: seats of priority levels, and their queues. It does no I/O and
//! knows no requests.
//!
//! A level has its share of the seats. It may use those of others that they lend and do not
//! need, and always its own. Who finds no seat waits in a queue of the level: which one is
//! chosen by its flow, so that a flow that asks for much fills few queues, and queues take
//! turns.

use std::collections::VecDeque;
use tokio::sync::oneshot;

/// A level's share and what it does when that is used up.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Share {
    pub(super) name: String,
    /// Seats of its own.
    pub(super) nominal: usize,
    /// Of these, how many others may use.
    pub(super) lendable: usize,
    /// How many of others it may use.
    pub(super) borrows: usize,
    pub(super) queues: Option<Queues>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Queues {
    pub(super) count: usize,
    pub(super) hand: usize,
    pub(super) length: usize,
}

/// All levels.
#[derive(Debug, Default)]
pub(super) struct Book {
    seats: usize,
    running: usize,
    levels: Vec<Level>,
}

#[derive(Debug)]
struct Level {
    share: Share,
    running: usize,
    queues: Vec<VecDeque<oneshot::Sender<()>>>,
    /// The queue whose turn it is.
    turn: usize,
}

/// What becomes of who asks.
pub(super) enum Asked {
    Runs,
    Waits {
        waits: oneshot::Receiver<()>,
        /// Of its queue, with it.
        length: usize,
    },
    /// Why not.
    Refused(&'static str),
}

impl Book {
    /// Takes other shares; who runs or waits goes on. Levels that are gone stay while somebody
    /// is in them.
    pub(super) fn set(&mut self, seats: usize, shares: Vec<Share>) {
        self.seats = seats;
        for level in &mut self.levels {
            if shares.iter().all(|s| s.name != level.share.name) {
                level.share.nominal = 0;
                level.share.lendable = 0;
            }
        }
        for share in shares {
            let count = share.queues.map_or(0, |q| q.count);
            match self.levels.iter_mut().find(|l| l.share.name == share.name) {
                Some(level) => {
                    level.share = share;
                    // Those that wait in queues that are no more wait in others.
                    let gone: Vec<_> = level
                        .queues
                        .drain(count.min(level.queues.len())..)
                        .collect();
                    level.queues.resize_with(count.max(1), VecDeque::new);
                    let first = &mut level.queues[0];
                    first.extend(gone.into_iter().flatten());
                    level.turn = 0;
                }
                None => {
                    let mut queues = Vec::new();
                    queues.resize_with(count.max(1), VecDeque::new);
                    self.levels.push(Level {
                        share,
                        running: 0,
                        queues,
                        turn: 0,
                    });
                }
            }
        }
        self.levels
            .retain(|l| l.share.nominal > 0 || l.running > 0 || l.waiting() > 0);
        self.dispatch();
    }

    /// Asks for a seat of a level; `flow` is a hash that tells flows apart.
    pub(super) fn ask(&mut self, name: &str, flow: u64) -> Asked {
        let Some(i) = self.levels.iter().position(|l| l.share.name == name) else {
            return Asked::Refused("no such level");
        };
        if self.levels[i].waiting() == 0 && self.may_run(i) {
            self.levels[i].running += 1;
            self.running += 1;
            return Asked::Runs;
        }
        let level = &mut self.levels[i];
        let Some(queues) = level.share.queues else {
            return Asked::Refused("concurrency-limit");
        };
        let chosen = shortest(flow, queues, &level_lengths(&level.queues));
        let queue = &mut level.queues[chosen];
        if queue.len() >= queues.length {
            queue.retain(|w| !w.is_closed());
        }
        if queue.len() >= queues.length {
            return Asked::Refused("queue-full");
        }
        let (seat, waits) = oneshot::channel();
        queue.push_back(seat);
        let length = queue.len();
        Asked::Waits { waits, length }
    }

    /// Gives a seat back.
    pub(super) fn leave(&mut self, name: &str) {
        if let Some(level) = self.levels.iter_mut().find(|l| l.share.name == name) {
            level.running = level.running.saturating_sub(1);
        }
        self.running = self.running.saturating_sub(1);
        self.dispatch();
    }

    /// Whether a level has a seat left: of its own, or one that nobody else needs.
    fn may_run(&self, i: usize) -> bool {
        let level = &self.levels[i];
        if level.running < level.share.nominal {
            return true;
        }
        if level.running >= level.share.nominal.saturating_add(level.share.borrows) {
            return false;
        }
        // What others do not lend and do not use now is kept for them.
        let kept: usize = self
            .levels
            .iter()
            .enumerate()
            .filter(|(j, _)| *j != i)
            .map(|(_, l)| {
                let own = l.share.nominal - l.share.lendable.min(l.share.nominal);
                own.saturating_sub(l.running)
            })
            .sum();
        self.running + kept < self.seats
    }

    /// Lets run who waits and may.
    fn dispatch(&mut self) {
        for i in 0..self.levels.len() {
            while self.levels[i].waiting() > 0 && self.may_run(i) {
                let Some(seat) = self.levels[i].next() else {
                    break;
                };
                // Who has gone meanwhile takes none.
                if seat.send(()).is_ok() {
                    self.levels[i].running += 1;
                    self.running += 1;
                }
            }
        }
    }
}

impl Level {
    fn waiting(&self) -> usize {
        self.queues.iter().map(VecDeque::len).sum()
    }

    /// Of the next queue that has somebody.
    fn next(&mut self) -> Option<oneshot::Sender<()>> {
        for _ in 0..self.queues.len() {
            let queue = self.turn % self.queues.len();
            self.turn = queue + 1;
            if let Some(seat) = self.queues[queue].pop_front() {
                return Some(seat);
            }
        }
        None
    }
}

fn level_lengths(queues: &[VecDeque<oneshot::Sender<()>>]) -> Vec<usize> {
    queues.iter().map(VecDeque::len).collect()
}

/// The shortest queue of a flow's hand (shuffle sharding, KEP-1040).
fn shortest(mut flow: u64, queues: Queues, lengths: &[usize]) -> usize {
    let mut left: Vec<usize> = (0..lengths.len()).collect();
    let mut best = 0;
    for card in 0..queues.hand.clamp(1, lengths.len()) {
        let n = left.len() as u64;
        let chosen = left.swap_remove((flow % n) as usize);
        flow /= n;
        if card == 0 || lengths[chosen] < lengths[best] {
            best = chosen;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(name: &str, nominal: usize, lendable: usize, queues: Option<Queues>) -> Share {
        Share {
            name: name.to_owned(),
            nominal,
            lendable,
            borrows: usize::MAX,
            queues,
        }
    }

    const QUEUES: Queues = Queues {
        count: 4,
        hand: 2,
        length: 2,
    };

    fn runs(asked: &Asked) -> bool {
        matches!(asked, Asked::Runs)
    }

    #[test]
    fn a_level_has_its_own_seats_and_borrows_what_is_lent() {
        let mut book = Book::default();
        book.set(6, vec![share("a", 2, 0, None), share("b", 4, 2, None)]);
        // Its own two, and the two that b lends.
        for _ in 0..4 {
            assert!(runs(&book.ask("a", 0)));
        }
        assert!(matches!(
            book.ask("a", 0),
            Asked::Refused("concurrency-limit")
        ));
        // Whatever others have borrowed, b's own seats are b's.
        for _ in 0..4 {
            assert!(runs(&book.ask("b", 0)));
        }
        assert!(!runs(&book.ask("b", 0)));
        assert!(matches!(book.ask("c", 0), Asked::Refused("no such level")));
    }

    #[tokio::test]
    async fn who_waits_runs_when_a_seat_is_free() {
        let mut book = Book::default();
        book.set(1, vec![share("a", 1, 0, Some(QUEUES))]);
        assert!(runs(&book.ask("a", 7)));
        let waits = |asked| match asked {
            Asked::Waits { waits, .. } => waits,
            _ => panic!("it waits"),
        };
        let (first, second) = (waits(book.ask("a", 7)), waits(book.ask("a", 7)));
        // One that has gone takes no seat.
        drop(first);
        book.leave("a");
        assert_eq!(second.await, Ok(()));
        assert_eq!(book.running, 1);
        book.leave("a");
        assert_eq!((book.running, book.levels[0].waiting()), (0, 0));
    }

    #[test]
    fn a_flow_fills_its_hand_and_no_other_queue() {
        let mut book = Book::default();
        book.set(1, vec![share("a", 1, 0, Some(QUEUES))]);
        assert!(runs(&book.ask("a", 0)));
        let mut waiting = Vec::new();
        let refused = loop {
            match book.ask("a", 1) {
                Asked::Waits { waits, length } => {
                    assert!((1..=QUEUES.length).contains(&length), "{length}");
                    waiting.push(waits);
                }
                Asked::Refused(why) => break why,
                Asked::Runs => panic!("there is one seat"),
            }
        };
        assert_eq!(
            (refused, waiting.len()),
            ("queue-full", QUEUES.hand * QUEUES.length)
        );
        let lengths = level_lengths(&book.levels[0].queues);
        assert_eq!(lengths.iter().filter(|l| **l > 0).count(), QUEUES.hand);
        // Another flow still finds a place.
        let other = (0..100).any(|flow| matches!(book.ask("a", flow), Asked::Waits { .. }));
        assert!(other);
    }

    #[test]
    fn shares_change_under_those_who_wait() {
        let mut book = Book::default();
        book.set(1, vec![share("a", 1, 0, Some(QUEUES))]);
        assert!(runs(&book.ask("a", 0)));
        let Asked::Waits { mut waits, .. } = book.ask("a", 3) else {
            panic!("it waits")
        };
        book.set(2, vec![share("a", 2, 0, None)]);
        assert!(waits.try_recv().is_ok());
        assert_eq!(book.running, 2);
        book.set(2, Vec::new());
        book.leave("a");
        book.leave("a");
        book.set(2, Vec::new());
        assert!(book.levels.is_empty());
    }
}
