//! Routes to the pods of other nodes: each node's prefix by the address of that node, which
//! must be on a link of this machine.

use crate::Prefix;
use crate::anyip::with_netlink;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::RouteMessage;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Why a route could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A prefix and an address of two families.
    #[error("route {prefix} by {gateway}: they are of two families")]
    Families {
        /// The prefix.
        prefix: Prefix,
        /// The node's address.
        gateway: IpAddr,
    },
    /// No netlink, or the kernel refused.
    #[error("change route {prefix}")]
    Change {
        /// The prefix.
        prefix: Prefix,
        /// Why.
        #[source]
        source: crate::anyip::Error,
    },
}

/// Sends what goes to a prefix by a node, in place of the route that was there.
///
/// # Errors
/// Without CAP_NET_ADMIN, and when the node is on no link of this machine.
pub async fn add(prefix: Prefix, gateway: IpAddr) -> Result<(), Error> {
    let route = route(prefix, gateway)?;
    with_netlink(async |handle| {
        let request = handle.route().add(route).replace();
        request
            .execute()
            .await
            .map_err(|source| crate::anyip::Error::Add { prefix, source })
    })
    .await
    .map_err(|source| Error::Change { prefix, source })
}

/// Takes the route of [`add`] away.
///
/// # Errors
/// Without CAP_NET_ADMIN, or when there is none.
pub async fn remove(prefix: Prefix, gateway: IpAddr) -> Result<(), Error> {
    let route = route(prefix, gateway)?;
    with_netlink(async |handle| {
        let request = handle.route().del(route);
        request
            .execute()
            .await
            .map_err(|source| crate::anyip::Error::Remove { prefix, source })
    })
    .await
    .map_err(|source| Error::Change { prefix, source })
}

fn route(prefix: Prefix, gateway: IpAddr) -> Result<RouteMessage, Error> {
    match (prefix.address(), gateway) {
        (IpAddr::V4(address), IpAddr::V4(gateway)) => Ok(RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(address, prefix.length())
            .gateway(gateway)
            .build()),
        (IpAddr::V6(address), IpAddr::V6(gateway)) => Ok(RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(address, prefix.length())
            .gateway(gateway)
            .build()),
        _ => Err(Error::Families { prefix, gateway }),
    }
}
