//! Which addresses of a node's pod network are taken.

use crate::Prefix;
use parking_lot::Mutex;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;

/// Addresses managed at most, 8 KiB of bits; of a larger network only the first so many
/// are used. No node runs more pods.
const ADDRESSES_MAX: u32 = 1 << 16;
/// The network's own address and the one that a bridge will have.
const FIRST: u32 = 2;

/// Addresses at the end of a block that no pod gets, and the longest prefix of a block that
/// has so many to spare.
const SET_ASIDE: u32 = 256;
const SET_ASIDE_PREFIX_MAX: u8 = 20;

/// The addresses of a node's block that no pod gets: for those of others that are to answer
/// on this machine. None where the block is small.
pub fn set_aside(network: Prefix) -> Option<RangeInclusive<Ipv4Addr>> {
    let IpAddr::V4(first) = network.address() else {
        return None;
    };
    if network.length() > SET_ASIDE_PREFIX_MAX {
        return None;
    }
    let size = u32::try_from(1u64 << (32 - network.length())).unwrap_or(u32::MAX);
    let last = first.to_bits().saturating_add(size - 1);
    // Not the first and last, which look like a network's own and broadcast.
    let from = Ipv4Addr::from_bits(last - SET_ASIDE + 2);
    Some(from..=Ipv4Addr::from_bits(last - 1))
}

/// Why an address was not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// All are taken.
    #[error("allocate pod address: all {0} are taken")]
    Full(u32),
    /// The network is IPv6, or too small to hold one pod.
    #[error("use pod network {0}: it must be IPv4 with at least four addresses")]
    Unusable(Prefix),
    /// Not an address that pods may have.
    #[error("reserve pod address {0}: it is not one of this node's")]
    Outside(IpAddr),
    /// Somebody has it.
    #[error("reserve pod address {0}: it is taken")]
    Taken(IpAddr),
}

/// The addresses of one node's pods. They are given out in turn, so that a freed address
/// rests as long as can be. Not persisted: reserve what running pods have at start.
#[derive(Debug)]
pub struct IpPool {
    network: u32,
    /// Addresses from `FIRST` to before this are for pods.
    end: u32,
    bits: Mutex<Bits>,
}

#[derive(Debug)]
struct Bits {
    words: Vec<u64>,
    /// Where the next search starts.
    next: u32,
    taken: u32,
}

impl IpPool {
    /// All addresses of a network free, but for its first two, its last, and those that are
    /// [`set_aside`].
    ///
    /// # Errors
    /// [`PoolError::Unusable`].
    pub fn new(network: Prefix) -> Result<Self, PoolError> {
        let (IpAddr::V4(address), length @ 0..=30) = (network.address(), network.length()) else {
            return Err(PoolError::Unusable(network));
        };
        let size = 1u64 << (32 - length);
        let whole = u32::try_from(size).unwrap_or(u32::MAX);
        let size = whole.min(ADDRESSES_MAX);
        // Of a larger block the end is not managed anyway.
        let kept = if set_aside(network).is_some() && whole == size {
            SET_ASIDE
        } else {
            1
        };
        let bits = Bits {
            words: vec![0; size.div_ceil(64) as usize],
            next: FIRST,
            taken: 0,
        };
        Ok(Self {
            network: address.to_bits(),
            end: size - kept,
            bits: Mutex::new(bits),
        })
    }

    /// How many addresses pods can have.
    pub fn capacity(&self) -> u32 {
        self.end - FIRST
    }

    /// How many they have.
    pub fn taken(&self) -> u32 {
        self.bits.lock().taken
    }

    /// Takes a free address.
    ///
    /// # Errors
    /// [`PoolError::Full`].
    pub fn allocate(&self) -> Result<Ipv4Addr, PoolError> {
        let mut bits = self.bits.lock();
        let start = bits.next;
        let free = (start..self.end)
            .chain(FIRST..start)
            .find(|n| !bits.is_taken(*n))
            .ok_or(PoolError::Full(self.capacity()))?;
        bits.take(free);
        bits.next = free + 1;
        Ok(Ipv4Addr::from_bits(self.network + free))
    }

    /// Takes a given address, such as a running pod's.
    ///
    /// # Errors
    /// [`PoolError::Outside`] or [`PoolError::Taken`].
    pub fn reserve(&self, address: IpAddr) -> Result<(), PoolError> {
        let number = self.number(address).ok_or(PoolError::Outside(address))?;
        let mut bits = self.bits.lock();
        if bits.is_taken(number) {
            return Err(PoolError::Taken(address));
        }
        bits.take(number);
        Ok(())
    }

    /// Frees an address; whether it was taken.
    pub fn release(&self, address: IpAddr) -> bool {
        let Some(number) = self.number(address) else {
            return false;
        };
        let mut bits = self.bits.lock();
        let was_taken = bits.is_taken(number);
        if was_taken {
            bits.words[(number / 64) as usize] &= !(1 << (number % 64));
            bits.taken -= 1;
        }
        was_taken
    }

    fn number(&self, address: IpAddr) -> Option<u32> {
        let IpAddr::V4(address) = address else {
            return None;
        };
        let number = address.to_bits().checked_sub(self.network)?;
        (FIRST..self.end).contains(&number).then_some(number)
    }
}

impl Bits {
    fn is_taken(&self, number: u32) -> bool {
        self.words[(number / 64) as usize] & (1 << (number % 64)) != 0
    }

    fn take(&mut self, number: u32) {
        self.words[(number / 64) as usize] |= 1 << (number % 64);
        self.taken += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn pool(network: &str) -> IpPool {
        IpPool::new(network.parse().unwrap()).unwrap()
    }

    #[test]
    fn gives_in_turn_until_full() {
        let pool = pool("10.42.3.0/29");
        let given: Vec<_> = (0..5)
            .map(|_| pool.allocate().unwrap().to_string())
            .collect();
        let all = [
            "10.42.3.2",
            "10.42.3.3",
            "10.42.3.4",
            "10.42.3.5",
            "10.42.3.6",
        ];
        assert_eq!(given, all);
        assert_eq!(pool.allocate(), Err(PoolError::Full(5)));
        assert!(pool.release("10.42.3.4".parse().unwrap()));
        assert!(!pool.release("10.42.3.4".parse().unwrap()));
        assert_eq!(pool.allocate().unwrap().to_string(), "10.42.3.4");
    }

    #[test]
    fn refuses_what_it_can_not_manage() {
        for network in ["10.0.0.0/31", "10.0.0.0/32", "fd00::/64"] {
            let network = network.parse().unwrap();
            assert_eq!(
                IpPool::new(network).unwrap_err(),
                PoolError::Unusable(network)
            );
        }
        let pool = pool("10.0.0.0/8");
        assert_eq!(pool.capacity(), ADDRESSES_MAX - 3);
        for outside in [
            "10.0.0.0",
            "10.0.0.1",
            "10.0.255.255",
            "10.1.0.0",
            "9.9.9.9",
            "::1",
        ] {
            let address = outside.parse().unwrap();
            assert_eq!(pool.reserve(address), Err(PoolError::Outside(address)));
            assert!(!pool.release(address));
        }
    }

    #[test]
    fn the_end_of_a_large_block_is_for_no_pod() {
        let aside = |network: &str| {
            let aside = set_aside(network.parse().unwrap())?;
            Some(format!("{}-{}", aside.start(), aside.end()))
        };
        let found = aside("10.42.0.0/16");
        assert_eq!(found.as_deref(), Some("10.42.255.1-10.42.255.254"));
        let found = aside("10.42.16.0/20");
        assert_eq!(found.as_deref(), Some("10.42.31.1-10.42.31.254"));
        for none in ["10.42.0.0/21", "10.42.0.0/24", "fd00::/64"] {
            assert_eq!(aside(none), None, "{none}");
        }
        let pool = pool("10.42.0.0/16");
        assert_eq!(pool.capacity(), 65_536 - 256 - 2);
        let address = "10.42.255.1".parse().unwrap();
        assert_eq!(pool.reserve(address), Err(PoolError::Outside(address)));
        assert_eq!(pool.reserve("10.42.254.255".parse().unwrap()), Ok(()));
    }

    proptest! {
        #[test]
        fn nobody_shares_an_address(steps in prop::collection::vec((0u8..3, 0u32..20), 0..200)) {
            let pool = pool("10.1.0.240/28");
            let mut model = BTreeSet::new();
            for (kind, number) in steps {
                let address = Ipv4Addr::from_bits(pool.network + number);
                let outside = !(2..15).contains(&number);
                match kind {
                    0 => match pool.allocate() {
                        Ok(given) => prop_assert!(model.insert(given)),
                        Err(_) => prop_assert_eq!(model.len(), 13),
                    },
                    1 => {
                        let reserved = pool.reserve(address.into()).is_ok();
                        prop_assert_eq!(reserved, !outside && model.insert(address));
                    }
                    _ => {
                        let released = pool.release(address.into());
                        prop_assert_eq!(released, model.remove(&address));
                    }
                }
                prop_assert_eq!(pool.taken() as usize, model.len());
            }
        }
    }
}
