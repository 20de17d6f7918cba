//! Pod addresses of this node: each pod has one of the node's block until it is torn down.

use crate::pod::Uid;
use parking_lot::Mutex;
use pod_network::{IpPool, PoolError, Prefix};
use std::collections::HashMap;
use std::net::IpAddr;

/// Addresses and which pod has them.
pub(crate) struct Addresses {
    pool: IpPool,
    /// Never held across an await.
    by_pod: Mutex<HashMap<Uid, IpAddr>>,
}

impl Addresses {
    pub(crate) fn new(network: Prefix) -> Result<Self, PoolError> {
        Ok(Self {
            pool: IpPool::new(network)?,
            by_pod: Mutex::default(),
        })
    }

    /// The pod's address, a new one if it has none.
    pub(crate) fn take(&self, pod: &Uid) -> Result<IpAddr, PoolError> {
        let mut by_pod = self.by_pod.lock();
        if let Some(known) = by_pod.get(pod) {
            return Ok(*known);
        }
        let address = IpAddr::V4(self.pool.allocate()?);
        by_pod.insert(pod.clone(), address);
        Ok(address)
    }

    /// Notes an address that a pod has from before; false when another pod has it.
    pub(crate) fn adopt(&self, pod: &Uid, address: IpAddr) -> bool {
        let mut by_pod = self.by_pod.lock();
        if let Some(known) = by_pod.get(pod) {
            return *known == address;
        }
        match self.pool.reserve(address) {
            Ok(()) => {
                by_pod.insert(pod.clone(), address);
                true
            }
            // The node's own address, of a pod in the host's network.
            Err(PoolError::Outside { .. }) => true,
            Err(_) => false,
        }
    }

    pub(crate) fn release(&self, pod: &Uid) {
        if let Some(address) = self.by_pod.lock().remove(pod) {
            self.pool.release(address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_pods_until_released() {
        let block = Addresses::new("10.42.0.0/29".parse().unwrap()).unwrap();
        let (a, b) = (Uid::from("a"), Uid::from("b"));
        let address = block.take(&a).unwrap();
        assert_eq!(block.take(&a).unwrap(), address);
        assert!(!block.adopt(&b, address));
        block.release(&a);
        assert!(block.adopt(&b, address));
    }
}
