//! Two sides and a line between them that loses, repeats and delays.

use super::*;
use crate::crypto::Entropy;
use proptest::prelude::*;

const RTT: Duration = Duration::from_millis(40);

/// A line that loses `loss` of 100 frames until `mends`, and delays each by up to 60 ms.
struct Line {
    entropy: Entropy,
    loss: u64,
    mends: Duration,
    flying: Vec<(Duration, bool, Frame)>,
}

struct Pair {
    now: Duration,
    sides: [Option<Stream>; 2],
    line: Line,
}

impl Pair {
    fn new(seed: u64, loss: u64, mends: Duration) -> Self {
        let opener = Stream::open(1, "p".into(), Duration::ZERO, RTT);
        Self {
            now: Duration::ZERO,
            sides: [Some(opener), None],
            line: Line {
                entropy: Entropy::seeded(seed),
                loss,
                mends,
                flying: Vec::new(),
            },
        }
    }

    /// Lets frames fly and time pass to the next thing that happens; whether there is one.
    fn step(&mut self) -> bool {
        for side in 0..2 {
            let Some(stream) = &mut self.sides[side] else {
                continue;
            };
            for frame in stream.frames(self.now) {
                let lost = self.line.entropy.below(100) < self.line.loss;
                if lost && self.now < self.line.mends {
                    continue;
                }
                let delay = Duration::from_millis(20 + self.line.entropy.below(40));
                self.line
                    .flying
                    .push((self.now + delay, side == 0, frame.clone()));
                if self.line.entropy.below(20) == 0 {
                    self.line
                        .flying
                        .push((self.now + delay * 2, side == 0, frame));
                }
            }
        }
        let timers = self.sides.iter().flatten().filter_map(|s| s.next(self.now));
        let flights = self.line.flying.iter().map(|f| f.0);
        let Some(at) = timers.chain(flights).min() else {
            return false;
        };
        self.now = self.now.max(at);
        let (due, later) = std::mem::take(&mut self.line.flying)
            .into_iter()
            .partition(|f| f.0 <= self.now);
        self.line.flying = later;
        for (_, to_second, frame) in due {
            let side = usize::from(to_second);
            if self.sides[side].is_none()
                && let FrameBody::Data { open: Some(_), .. } = &frame.body
            {
                self.sides[side] = Some(Stream::accept(1, self.now, RTT));
            }
            if let Some(stream) = &mut self.sides[side] {
                stream.take(self.now, frame.body);
            }
        }
        true
    }
}

/// Sends both texts at once with readers that pause, to their ends.
fn exchange(seed: u64, loss: u64, texts: [Vec<u8>; 2]) -> Pair {
    let mut pair = Pair::new(seed, loss, Duration::from_secs(20));
    let mut written = [0, 0];
    let mut read = [Vec::new(), Vec::new()];
    let mut ended = [false, false];
    for _ in 0..200_000 {
        for side in 0..2 {
            let Some(stream) = &mut pair.sides[side] else {
                continue;
            };
            if written[side] < texts[side].len() {
                written[side] += stream.write(&texts[side][written[side]..]).unwrap();
                assert!(stream.send.buffer.len() <= WINDOW);
            } else if !stream.send.fin {
                stream.finish();
            }
            if pair.line.entropy.below(3) > 0 {
                assert!(stream.receive.buffer.len() <= WINDOW);
                match stream.read(50_000).unwrap() {
                    Some(bytes) if bytes.is_empty() => ended[side] = true,
                    Some(bytes) => read[side].extend_from_slice(&bytes),
                    None => {}
                }
            }
        }
        let over = pair.sides.iter().flatten().filter(|s| s.is_over()).count() == 2;
        if over && ended == [true, true] {
            assert!(read[0] == texts[1] && read[1] == texts[0], "seed {seed}");
            return pair;
        }
        if !pair.step() {
            // Only readers are waited for.
            pair.now += Duration::from_millis(10);
        }
    }
    panic!("seed {seed}: the exchange does not end at {:?}", pair.now);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn all_bytes_come_in_order(seed in any::<u64>(), loss in 0u64..40, a in 0usize..900_000, b in 0usize..90_000) {
        let text = |n: usize, f: u8| (0..n).map(|i| (i as u8).wrapping_mul(f)).collect();
        exchange(seed, loss, [text(a, 7), text(b, 13)]);
    }
}

#[test]
fn a_writer_waits_for_its_reader() {
    let mut pair = Pair::new(1, 0, Duration::ZERO);
    let text = vec![5; WINDOW];
    let mut written = 0;
    for _ in 0..2000 {
        written += pair.sides[0].as_mut().unwrap().write(&text).unwrap();
        pair.step();
    }
    // One window waits for its reader at the other side, one at this side. The other side
    // answers, so the stream is not given up however long that takes.
    assert_eq!(written, 2 * WINDOW);
    assert!(pair.now > STALL_MAX * 2, "{:?}", pair.now);
    assert!(pair.sides[0].as_ref().unwrap().error.is_none());
    let mut read = 0;
    while read < 2 * WINDOW {
        if let Some(bytes) = pair.sides[1].as_mut().unwrap().read(usize::MAX).unwrap() {
            read += bytes.len();
        }
        pair.step();
    }
}

#[test]
fn a_cut_line_ends_both_sides() {
    let mut pair = Pair::new(1, 0, Duration::ZERO);
    pair.sides[0].as_mut().unwrap().write(b"hello").unwrap();
    while pair.sides[1].is_none() {
        pair.step();
    }
    pair.line.loss = 100;
    pair.line.mends = Duration::MAX;
    pair.line.flying.clear();
    pair.sides[0].as_mut().unwrap().write(b"more").unwrap();
    while !pair.sides[0].as_ref().unwrap().is_over() && pair.step() {}
    let error = pair.sides[0].as_mut().unwrap().read(1).unwrap_err();
    assert_eq!(error, StreamError::Stalled);
    assert!(pair.now >= STALL_MAX && pair.now < STALL_MAX * 2);
}

#[test]
fn cancelling_is_told() {
    let mut pair = Pair::new(1, 0, Duration::ZERO);
    pair.sides[0].as_mut().unwrap().write(b"hello").unwrap();
    while pair.sides[1].is_none() {
        pair.step();
    }
    pair.sides[1].as_mut().unwrap().cancel("enough");
    while pair.step() {}
    let first = pair.sides[0].as_mut().unwrap();
    assert_eq!(
        first.read(1).unwrap_err(),
        StreamError::Reset("enough".into())
    );
    assert!(first.write(b"x").is_err());
    let second = pair.sides[1].as_mut().unwrap();
    assert_eq!(second.read(9).unwrap(), Some(Bytes::from_static(b"hello")));
    assert_eq!(second.read(9).unwrap_err(), StreamError::Cancelled);
}

#[test]
fn more_than_the_window_is_refused() {
    let mut stream = Stream::accept(1, Duration::ZERO, RTT);
    for i in 0..=8 {
        let body = FrameBody::Data {
            open: None,
            offset: i * FRAME_MAX as u64,
            fin: false,
            bytes: vec![0; FRAME_MAX].into(),
        };
        stream.take(Duration::ZERO, body);
    }
    assert_eq!(stream.error, Some(StreamError::Cancelled));
    assert!(matches!(
        stream.frames(Duration::ZERO)[0].body,
        FrameBody::Reset { .. }
    ));
}
