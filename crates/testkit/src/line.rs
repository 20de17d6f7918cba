//! A line between two machines that is slow: a TCP proxy that delays, and carries so many bytes
//! a second (a token bucket). It runs in the network namespace of the thread that lays it.
//!
//! Start with [`Line::lay`].

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// Chunks under way on a line, each way; whoever sends more waits.
const CHUNKS_MAX: usize = 256;
/// Bytes of a chunk: what a packet carries.
const CHUNK: usize = 1400;
/// How long a bucket fills before it is full.
const BURST: Duration = Duration::from_millis(50);

/// A line. It goes on until it is dropped; connections then break.
#[derive(Debug)]
pub struct Line {
    shape: Arc<Shape>,
    address: SocketAddr,
}

#[derive(Debug)]
struct Shape {
    delay_ms: AtomicU64,
    bytes_per_s: AtomicU64,
    ended: AtomicBool,
}

impl Line {
    /// Listens, and carries what comes to `to`; at first as fast as it can.
    ///
    /// # Errors
    /// When it can't listen there.
    pub fn lay(listen: SocketAddr, to: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(listen)?;
        let address = listener.local_addr()?;
        let shape = Arc::new(Shape {
            delay_ms: AtomicU64::new(0),
            bytes_per_s: AtomicU64::new(u64::MAX),
            ended: AtomicBool::new(false),
        });
        let shared = shape.clone();
        std::thread::spawn(move || {
            for near in listener.incoming() {
                if shared.ended.load(Ordering::Relaxed) {
                    return;
                }
                // Who can't be reached is not there: the connection ends.
                if let Ok(near) = near
                    && let Ok(far) = TcpStream::connect_timeout(&to, Duration::from_secs(5))
                {
                    carry(&near, &far, &shared);
                    carry(&far, &near, &shared);
                }
            }
        });
        Ok(Self { shape, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on each byte takes so long, and so many go each way in a second, on each
    /// connection.
    pub fn slow(&self, delay: Duration, bytes_per_s: u64) {
        let ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self.shape.delay_ms.store(ms, Ordering::Relaxed);
        let bytes = bytes_per_s.max(1);
        self.shape.bytes_per_s.store(bytes, Ordering::Relaxed);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.shape.ended.store(true, Ordering::Relaxed);
        // The one that listens is woken, where this thread can reach it.
        let _woken = TcpStream::connect_timeout(&self.address, Duration::from_millis(100));
    }
}

/// Carries one way, in threads of its own.
fn carry(from: &TcpStream, to: &TcpStream, shape: &Arc<Shape>) {
    let (Ok(mut from), Ok(mut to)) = (from.try_clone(), to.try_clone()) else {
        return;
    };
    // Now and then it looks whether the line has ended.
    let _shorter = from.set_read_timeout(Some(Duration::from_millis(200)));
    let (sender, chunks) = mpsc::sync_channel::<(Instant, Vec<u8>)>(CHUNKS_MAX);
    let shared = shape.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; CHUNK];
        loop {
            let read = match from.read(&mut buffer) {
                Err(e) if is_timeout(&e) && !shared.ended.load(Ordering::Relaxed) => continue,
                Err(_) | Ok(0) => return,
                Ok(read) => read,
            };
            let delay = Duration::from_millis(shared.delay_ms.load(Ordering::Relaxed));
            let chunk = (Instant::now() + delay, buffer[..read].to_vec());
            if sender.send(chunk).is_err() {
                return;
            }
        }
    });
    let shared = shape.clone();
    std::thread::spawn(move || {
        let mut free_at = Instant::now();
        for (due, chunk) in chunks {
            let rate = shared.bytes_per_s.load(Ordering::Relaxed);
            let takes = Duration::from_secs_f64(chunk.len() as f64 / rate as f64);
            let now = Instant::now();
            // What was not used is kept, up to a full bucket.
            free_at = free_at.max(now.checked_sub(BURST).unwrap_or(now)) + takes;
            wait_until(due.max(free_at));
            if to.write_all(&chunk).is_err() {
                break;
            }
        }
        let _over = to.shutdown(Shutdown::Both);
    });
}

fn is_timeout(e: &std::io::Error) -> bool {
    matches!(
        e.kind(),
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
    )
}

#[allow(
    clippy::disallowed_methods,
    reason = "to be slow is what this is for: there is no event to await"
)]
fn wait_until(at: Instant) {
    std::thread::sleep(at.saturating_duration_since(Instant::now()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_carries_all_and_takes_its_time() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let echo = server.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            let mut back = stream.try_clone().unwrap();
            std::io::copy(&mut stream, &mut back).unwrap();
        });
        let line = Line::lay("127.0.0.1:0".parse().unwrap(), echo).unwrap();
        line.slow(Duration::from_millis(20), 1_000_000);
        let mut stream = TcpStream::connect(line.address()).unwrap();
        let body: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        let began = Instant::now();
        let mut writer = stream.try_clone().unwrap();
        let sent = body.clone();
        let writer = std::thread::spawn(move || writer.write_all(&sent).unwrap());
        let mut back = vec![0; body.len()];
        stream.read_exact(&mut back).unwrap();
        writer.join().unwrap();
        assert!(back == body);
        // Not sooner than the line allows; how much later is the machine's affair.
        assert!(began.elapsed() >= Duration::from_millis(40 + 50));
        drop(line);
        assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0);
    }
}
