//! What guests may use: memory with an end, processor time with a rate.
//!
//! Meters belong to a container (and, above it, to its pod); all instances of the container
//! count on the same ones. wasmtime's own limits are for a single memory, so they do not do.

use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use wasmtime::ResourceLimiter;

/// Table elements that one instance may have: a pointer each.
const TABLE_ELEMENTS_MAX: usize = 1_000_000;

/// The part of a peak that one smaller instance makes forgotten.
const FORGET: u64 = 16;

/// How far a guest may run ahead of its processor limit before it is held back.
const CPU_BURST: Duration = Duration::from_millis(100);

/// A guest asked for more memory than its container may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("memory limit of {limit_bytes} bytes exceeded")]
pub struct MemoryExceeded {
    /// The limit that was hit.
    pub limit_bytes: u64,
}

/// Memory of a container or pod.
#[derive(Debug, Default)]
pub struct MemoryMeter {
    limit: Option<u64>,
    used: AtomicU64,
    /// What an instance is expected to need: the most that one had, forgotten step by step as
    /// others need less.
    instance_peak: AtomicU64,
    parent: Option<Arc<MemoryMeter>>,
}

impl MemoryMeter {
    /// A meter with a limit in bytes, inside another one (the pod's) if there is one.
    pub fn new(limit_bytes: Option<u64>, parent: Option<Arc<MemoryMeter>>) -> Self {
        Self {
            limit: limit_bytes,
            parent,
            ..Self::default()
        }
    }

    /// Bytes in use.
    pub fn used_bytes(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether another instance would fit beside those `live`, which may grow yet.
    pub(crate) fn has_room(&self, live: u32) -> bool {
        let next = self.instance_peak.load(Ordering::Relaxed);
        let growing = next.saturating_mul(u64::from(live));
        let to_come = growing
            .saturating_sub(self.used_bytes())
            .saturating_add(next);
        let fits = |meter: &Self| {
            meter
                .limit
                .is_none_or(|limit| meter.used_bytes().saturating_add(to_come) <= limit)
        };
        fits(self) && self.parent.as_deref().is_none_or(fits)
    }

    /// Learns from what an instance had in the end.
    fn learn(&self, held: u64) {
        let peak = self.instance_peak.load(Ordering::Relaxed);
        let next = match held.checked_sub(peak) {
            Some(_) => held,
            None => peak - (peak - held) / FORGET,
        };
        // A number lost to another instance's is as good.
        self.instance_peak.store(next, Ordering::Relaxed);
    }

    fn reserve(&self, bytes: u64) -> Result<(), MemoryExceeded> {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if let Some(limit) = self.limit
            && used > limit
        {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            return Err(MemoryExceeded { limit_bytes: limit });
        }
        if let Some(parent) = &self.parent
            && let Err(exceeded) = parent.reserve(bytes)
        {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            return Err(exceeded);
        }
        Ok(())
    }

    fn release(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(parent) = &self.parent {
            parent.release(bytes);
        }
    }
}

/// Processor time of a container.
#[derive(Debug)]
pub struct CpuMeter {
    used_ns: AtomicU64,
    limit: Option<Mutex<CpuLimit>>,
}

#[derive(Debug)]
struct CpuLimit {
    millis: u64,
    /// When the time used so far is paid for at the allowed rate.
    paid_until: Instant,
}

impl CpuMeter {
    /// A meter with a limit in thousandths of a core.
    pub fn new(limit_millis: Option<u64>) -> Self {
        Self {
            used_ns: AtomicU64::new(0),
            limit: limit_millis.filter(|millis| *millis > 0).map(|millis| {
                Mutex::new(CpuLimit {
                    millis,
                    paid_until: Instant::now(),
                })
            }),
        }
    }

    /// Nanoseconds that guests have computed.
    pub fn used_ns(&self) -> u64 {
        self.used_ns.load(Ordering::Relaxed)
    }

    /// Adds time; if that is more than the limit allows, when the guest may go on.
    pub(crate) fn charge(&self, start: Instant, end: Instant) -> Option<Instant> {
        let spent = end.saturating_duration_since(start);
        let spent_ns = u64::try_from(spent.as_nanos()).unwrap_or(u64::MAX);
        self.used_ns.fetch_add(spent_ns, Ordering::Relaxed);
        let mut limit = self.limit.as_ref()?.lock();
        let due = Duration::from_nanos(spent_ns.saturating_mul(1000) / limit.millis);
        limit.paid_until = limit.paid_until.max(start) + due;
        (limit.paid_until > end + CPU_BURST).then(|| limit.paid_until - CPU_BURST)
    }
}

/// One instance's part of a [`MemoryMeter`]; gives it back when dropped.
pub(crate) struct Limiter {
    meter: Arc<MemoryMeter>,
    held: u64,
    /// Granted last; taken back if the memory then fails to grow.
    granted: u64,
}

impl Limiter {
    pub(crate) fn new(meter: Arc<MemoryMeter>) -> Self {
        Self {
            meter,
            held: 0,
            granted: 0,
        }
    }
}

impl Drop for Limiter {
    fn drop(&mut self) {
        self.meter.learn(self.held);
        self.meter.release(self.held);
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.granted = 0;
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        let bytes = desired.saturating_sub(current) as u64;
        // Not `Ok(false)`: as with a container, the process is ended, it does not get to see
        // a failed allocation.
        if let Err(exceeded) = self.meter.reserve(bytes) {
            return Err(wasmtime::Error::new(exceeded));
        }
        self.held += bytes;
        self.granted = bytes;
        Ok(true)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        tracing::debug!(%error, "a guest's memory could not grow");
        self.meter.release(self.granted);
        self.held -= self.granted;
        self.granted = 0;
        Ok(())
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired
            <= maximum
                .unwrap_or(TABLE_ELEMENTS_MAX)
                .min(TABLE_ELEMENTS_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_held_to_its_own_and_its_pods_limit() {
        let pod = Arc::new(MemoryMeter::new(Some(300), None));
        let a = Arc::new(MemoryMeter::new(Some(200), Some(pod.clone())));
        let b = Arc::new(MemoryMeter::new(None, Some(pod.clone())));
        let mut in_a = Limiter::new(a.clone());
        let mut in_b = Limiter::new(b.clone());
        assert!(in_a.memory_growing(0, 150, None).unwrap());
        assert_eq!(
            in_a.memory_growing(150, 250, None)
                .unwrap_err()
                .downcast_ref(),
            Some(&MemoryExceeded { limit_bytes: 200 })
        );
        assert!(in_b.memory_growing(0, 100, None).unwrap());
        assert_eq!(
            in_b.memory_growing(100, 200, None)
                .unwrap_err()
                .downcast_ref(),
            Some(&MemoryExceeded { limit_bytes: 300 })
        );
        assert_eq!(
            (a.used_bytes(), b.used_bytes(), pod.used_bytes()),
            (150, 100, 250)
        );
        drop(in_a);
        assert_eq!((a.used_bytes(), pod.used_bytes()), (0, 100));
        assert!(a.has_room(0));
        assert!(!a.has_room(1), "one that has not grown yet will");
        for _ in 0..64 {
            drop(Limiter::new(a.clone()));
        }
        assert!(a.has_room(3), "what was large once is forgotten");
    }

    #[test]
    fn growth_that_the_machine_refuses_is_not_counted() {
        let meter = Arc::new(MemoryMeter::new(None, None));
        let mut limiter = Limiter::new(meter.clone());
        assert!(limiter.memory_growing(0, 100, None).unwrap());
        assert!(limiter.memory_growing(100, 200, None).unwrap());
        limiter
            .memory_grow_failed(wasmtime::Error::msg("no memory"))
            .unwrap();
        assert_eq!(meter.used_bytes(), 100);
        assert!(!limiter.memory_growing(100, 200, Some(150)).unwrap());
        limiter
            .memory_grow_failed(wasmtime::Error::msg("past its maximum"))
            .unwrap();
        assert_eq!(meter.used_bytes(), 100);
    }

    #[test]
    fn a_processor_limit_holds_back_after_a_burst() {
        let meter = CpuMeter::new(Some(500));
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(meter.charge(at(0), at(100)), None, "within the burst");
        let resume = meter.charge(at(100), at(200)).expect("held back");
        assert!(
            resume >= at(300),
            "200 ms at half a core take 400 less the burst"
        );
        assert_eq!(meter.used_ns(), 200_000_000);
        assert_eq!(CpuMeter::new(None).charge(at(0), at(9000)), None);
    }
}
