//! A pod's own network namespace, and its link to the machine.
//!
//! The pod has `eth0` with its address and one way out: the node's gateway, an address that the
//! machine answers for anyway (`anyip`). The machine reaches the pod by a route of its own in the
//! table of local addresses: that is where the node's whole block is, and the longer prefix wins.
//! So packets to pods of Wasm go to this machine, and those to this pod into its link. No bridge
//! is between, and no pod can speak in another's name to a neighbour.

use lifecycle::Scope;
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::packet_route::route::{RouteMessage, RouteScope, RouteType};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// The pod's side.
const INSIDE: &str = "eth0";
/// The table of local addresses (`RT_TABLE_LOCAL`).
const TABLE_LOCAL: u32 = 255;
/// The loopback interface is always the first of a namespace.
const LOOPBACK_INDEX: u32 = 1;
/// What the whole of an address is.
const WHOLE: u8 = 32;

/// A pod's addresses and the name of its link on the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// At most 15 letters.
    pub name: String,
    /// The pod's.
    pub address: Ipv4Addr,
    /// Of the machine, one that it answers for.
    pub gateway: Ipv4Addr,
}

/// Why a pod has no link.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No netlink socket.
    #[error("open netlink socket")]
    Open(#[source] io::Error),
    /// The kernel refused.
    #[error("{step} link {link}")]
    Refused {
        /// What was done: `make`, `find`, …
        step: &'static str,
        /// Which link.
        link: String,
        /// Why.
        source: rtnetlink::Error,
    },
}

/// A way to ask the kernel about the network namespace that the thread was in when it was opened.
#[derive(Debug)]
pub struct Netlink {
    handle: Handle,
    scope: Scope,
}

impl Netlink {
    /// Opens one, in an async runtime.
    ///
    /// # Errors
    /// [`Error::Open`].
    pub fn open() -> Result<Self, Error> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Open)?;
        let scope = Scope::new();
        scope.spawn_cancellable(connection);
        Ok(Self { handle, scope })
    }

    /// Ends it.
    pub async fn close(self) {
        self.scope.close().await;
    }
}

/// Joins the namespace of `inside` with the one of `outside`, which is `machine`.
///
/// # Errors
/// Without CAP_NET_ADMIN, or when the name or the address is taken.
pub async fn join(
    link: &Link,
    inside: &Netlink,
    outside: &Netlink,
    machine: BorrowedFd<'_>,
) -> Result<(), Error> {
    let (inside, outside) = (&inside.handle, &outside.handle);
    let failed = |step| {
        move |source| Error::Refused {
            step,
            link: link.name.clone(),
            source,
        }
    };
    // Made straight where it belongs: the pod's end never shows on the machine.
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(link.name.clone())
        .setns_by_fd(machine.as_raw_fd())
        .build();
    let pair = LinkMessageBuilder::<LinkVeth>::new(INSIDE, &link.name)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .up()
        .build();
    let made = inside.link().add(pair).execute().await;
    made.map_err(failed("make"))?;
    let loopback = LinkUnspec::new_with_index(LOOPBACK_INDEX);
    let up = inside.link().set(loopback.up().build()).execute().await;
    up.map_err(failed("start loopback beside"))?;
    let own = index(inside, INSIDE).await.map_err(failed("find"))?;
    let request = inside.address().add(own, link.address.into(), WHOLE);
    request.execute().await.map_err(failed("address"))?;
    let near = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(link.gateway, WHOLE)
        .output_interface(own)
        .scope(RouteScope::Link)
        .build();
    let away = RouteMessageBuilder::<Ipv4Addr>::new()
        .gateway(link.gateway)
        .output_interface(own)
        .build();
    for route in [near, away] {
        let added = inside.route().add(route).execute().await;
        added.map_err(failed("route inside"))?;
    }
    let end = index(outside, &link.name).await.map_err(failed("find"))?;
    let up = LinkUnspec::new_with_index(end).up();
    let up = outside.link().set(up.build()).execute().await;
    up.map_err(failed("start"))?;
    let request = outside.route().add(to_pod(link, end)).replace();
    request.execute().await.map_err(failed("route to"))
}

/// Takes a link away, at once with all that goes by it; nothing is done when there is none.
///
/// # Errors
/// Without CAP_NET_ADMIN.
pub async fn remove(name: &str) -> Result<(), Error> {
    let netlink = Netlink::open()?;
    let removed = match index(&netlink.handle, name).await {
        Ok(end) => netlink.handle.link().del(end).execute().await,
        Err(_) => Ok(()),
    };
    netlink.close().await;
    removed.map_err(|source| Error::Refused {
        step: "remove",
        link: name.to_owned(),
        source,
    })
}

fn to_pod(link: &Link, end: u32) -> RouteMessage {
    RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(link.address, WHOLE)
        .output_interface(end)
        .table_id(TABLE_LOCAL)
        .scope(RouteScope::Link)
        .kind(RouteType::Unicast)
        .pref_source(link.gateway)
        .build()
}

async fn index(handle: &Handle, name: &str) -> Result<u32, rtnetlink::Error> {
    use futures::TryStreamExt as _;
    let found = handle.link().get().match_name(name).execute();
    futures::pin_mut!(found);
    match found.try_next().await? {
        Some(message) => Ok(message.header.index),
        None => Err(rtnetlink::Error::RequestFailed),
    }
}
