//! Prefixes that this machine answers for as a whole: Linux's "AnyIP".
//!
//! One route of type `local` on the loopback interface makes every address of a prefix
//! bindable, without adding addresses to interfaces. That takes CAP_NET_ADMIN; inside
//! 127.0.0.0/8 the kernel has such a route from the start.

use crate::Prefix;
use rtnetlink::packet_route::route::{RouteMessage, RouteScope, RouteType};
use rtnetlink::{Handle, RouteMessageBuilder};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};

/// The routing table of addresses that are this machine's own (`RT_TABLE_LOCAL`).
const TABLE_LOCAL: u32 = 255;
/// The loopback interface is always the first.
const LOOPBACK_INDEX: u32 = 1;

/// Why a prefix's route could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No netlink socket.
    #[error("open netlink socket")]
    Open(#[source] io::Error),
    /// The kernel refused the route.
    #[error("add local route {prefix}")]
    Add {
        /// The prefix.
        prefix: Prefix,
        /// Why.
        #[source]
        source: rtnetlink::Error,
    },
    /// The kernel refused to remove it.
    #[error("remove local route {prefix}")]
    Remove {
        /// The prefix.
        prefix: Prefix,
        /// Why.
        #[source]
        source: rtnetlink::Error,
    },
}

/// Whether a server can listen on the prefix's addresses now: tries with one of them.
pub fn is_bindable(prefix: Prefix) -> bool {
    let probe = match prefix.address() {
        IpAddr::V4(first) if prefix.length() < 31 => {
            // Not the first, which is the network's own and may be bindable without the rest.
            IpAddr::V4(Ipv4Addr::from_bits(first.to_bits() | 2))
        }
        IpAddr::V6(first) if prefix.length() < 127 => {
            IpAddr::V6(Ipv6Addr::from_bits(first.to_bits() | 2))
        }
        only => only,
    };
    TcpListener::bind((probe, 0)).is_ok()
}

/// Makes the prefix bindable; nothing is done when it is so already.
///
/// # Errors
/// Without CAP_NET_ADMIN, mostly.
pub async fn add(prefix: Prefix) -> Result<(), Error> {
    if is_bindable(prefix) {
        return Ok(());
    }
    with_netlink(async |handle| {
        let request = handle.route().add(route(prefix)).replace();
        let source = match request.execute().await {
            Ok(()) => return Ok(()),
            Err(source) => source,
        };
        Err(Error::Add { prefix, source })
    })
    .await
}

/// Removes the route that [`add`] made; nothing is done when there is none.
///
/// # Errors
/// Without CAP_NET_ADMIN, mostly.
pub async fn remove(prefix: Prefix) -> Result<(), Error> {
    with_netlink(
        async |handle| match handle.route().del(route(prefix)).execute().await {
            Ok(()) => Ok(()),
            Err(rtnetlink::Error::NetlinkError(error)) if is_absent(&error.to_io()) => Ok(()),
            Err(source) => Err(Error::Remove { prefix, source }),
        },
    )
    .await
}

/// ESRCH: the kernel's word for a route that is not there.
fn is_absent(error: &io::Error) -> bool {
    const ESRCH: i32 = 3;
    error.raw_os_error() == Some(ESRCH)
}

fn route(prefix: Prefix) -> RouteMessage {
    match prefix.address() {
        IpAddr::V4(address) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(address, prefix.length())
            .output_interface(LOOPBACK_INDEX)
            .table_id(TABLE_LOCAL)
            .scope(RouteScope::Host)
            .kind(RouteType::Local)
            .build(),
        IpAddr::V6(address) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(address, prefix.length())
            .output_interface(LOOPBACK_INDEX)
            .table_id(TABLE_LOCAL)
            .scope(RouteScope::Host)
            .kind(RouteType::Local)
            .build(),
    }
}

/// Runs `work` with a netlink connection that ends with it.
pub(crate) async fn with_netlink<T>(
    work: impl AsyncFnOnce(Handle) -> Result<T, Error>,
) -> Result<T, Error> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Open)?;
    let scope = lifecycle::Scope::new();
    scope.spawn_cancellable(connection);
    let result = work(handle).await;
    scope.close().await;
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_bindable_and_others_places_are_not() {
        assert!(is_bindable("127.43.0.0/16".parse().unwrap()));
        assert!(!is_bindable("198.51.100.0/24".parse().unwrap()));
    }

    /// Needs CAP_NET_ADMIN; says so when it is not there.
    #[tokio::test]
    #[allow(clippy::print_stderr, reason = "a skipped test says so")]
    async fn a_route_makes_a_prefix_bindable() {
        // TEST-NET-3 (RFC 5737): nobody's network.
        let prefix: Prefix = "203.0.113.128/26".parse().unwrap();
        if let Err(error) = add(prefix).await {
            eprintln!("skipped, it needs CAP_NET_ADMIN: {error:?}");
            return;
        }
        assert!(is_bindable(prefix));
        let last = TcpListener::bind("203.0.113.191:0");
        let beyond = TcpListener::bind("203.0.113.192:0");
        add(prefix).await.unwrap();
        remove(prefix).await.unwrap();
        remove(prefix).await.unwrap();
        assert!(last.is_ok() && beyond.is_err());
        assert!(!is_bindable(prefix));
    }
}
