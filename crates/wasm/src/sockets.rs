//! `wasi:sockets` as a pod has them: where wasmtime's own are told another address.
//!
//! Guests listen at "any address" and find names by `ip-name-lookup`. On this host all pods
//! share the machine's network, so "any" must mean the pod's own address, the loopback must mean
//! the pod, and names must be found as the pod's DNS configuration says. wasmtime can refuse an
//! address but not change it, so the few functions where that matters are put in place of its
//! own, which they then call. Start at [`link_02`] and [`link_03`].

use crate::names::ResolveError;
use crate::state::ComponentState;
use crate::surroundings::{Surroundings, is_machines};
use futures::future::BoxFuture;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll};
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource, ResourceType};
use wasmtime_wasi::p2::bindings::sockets::network::{
    ErrorCode, IpAddress, IpAddressFamily, IpSocketAddress, Network,
};
use wasmtime_wasi::p2::bindings::sockets::tcp::HostTcpSocket;
use wasmtime_wasi::p2::bindings::sockets::tcp_create_socket::Host as _;
use wasmtime_wasi::p2::bindings::sockets::udp::HostUdpSocket;
use wasmtime_wasi::p2::bindings::sockets::udp_create_socket::Host as _;
use wasmtime_wasi::p2::{
    DynPollable, Pollable, SocketError, SocketResult, TcpSocket, UdpSocket, subscribe,
};
use wasmtime_wasi::p3::bindings::sockets::ip_name_lookup::ErrorCode as LookupError03;
use wasmtime_wasi::p3::bindings::sockets::types as types03;
use wasmtime_wasi::p3::bindings::sockets::types::HostTcpSocketWithStore;
use wasmtime_wasi::sockets::{WasiSockets, WasiSocketsView as _};

/// The version that `wasmtime_wasi::p2` links; guests of other 0.2 versions are matched to it.
pub(crate) const V02: &str = "0.2.12";

/// The same for `wasmtime_wasi::p3`.
pub(crate) const V03: &str = "0.3.0";

type Store<'a> = StoreContextMut<'a, ComponentState>;
type Done = wasmtime::Result<(Result<(), ErrorCode>,)>;
type Done03 = wasmtime::Result<(Result<(), types03::ErrorCode>,)>;

/// Puts the functions of WASI 0.2 in place; after wasmtime's own are linked.
pub(crate) fn link_02(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut tcp = linker.instance(&format!("wasi:sockets/tcp@{V02}"))?;
    tcp.func_wrap_async("[method]tcp-socket.start-bind", |store, params| {
        Box::new(tcp_start_bind(store, params))
    })?;
    tcp.func_wrap("[method]tcp-socket.start-connect", tcp_start_connect)?;
    let mut tcp = linker.instance(&format!("wasi:sockets/tcp-create-socket@{V02}"))?;
    tcp.func_wrap("create-tcp-socket", create_tcp_02)?;
    let mut udp = linker.instance(&format!("wasi:sockets/udp-create-socket@{V02}"))?;
    udp.func_wrap_async("create-udp-socket", |store, params| {
        Box::new(create_udp_02(store, params))
    })?;
    let mut udp = linker.instance(&format!("wasi:sockets/udp@{V02}"))?;
    udp.func_wrap_async("[method]udp-socket.start-bind", |store, params| {
        Box::new(udp_start_bind(store, params))
    })?;
    let mut names = linker.instance(&format!("wasi:sockets/ip-name-lookup@{V02}"))?;
    names.resource(
        "resolve-address-stream",
        ResourceType::host::<Lookup>(),
        |mut store, rep| {
            let table = &mut store.data_mut().table;
            table.delete(Resource::<Lookup>::new_own(rep))?;
            Ok(())
        },
    )?;
    names.func_wrap("resolve-addresses", resolve_addresses)?;
    names.func_wrap(
        "[method]resolve-address-stream.resolve-next-address",
        resolve_next_address,
    )?;
    names.func_wrap(
        "[method]resolve-address-stream.subscribe",
        |mut store: Store<'_>, (lookup,): (Resource<Lookup>,)| {
            let pollable: Resource<DynPollable> = subscribe(&mut store.data_mut().table, lookup)?;
            Ok((pollable,))
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

/// Puts the functions of WASI 0.3 in place; after wasmtime's own are linked.
pub(crate) fn link_03(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut types = linker.instance(&format!("wasi:sockets/types@{V03}"))?;
    types.func_wrap("[static]tcp-socket.create", create_tcp_03)?;
    types.func_wrap_async("[static]udp-socket.create", |store, params| {
        Box::new(create_udp_03(store, params))
    })?;
    types.func_wrap_async("[method]tcp-socket.bind", |store, params| {
        Box::new(tcp_bind_03(store, params))
    })?;
    types.func_wrap_async("[method]udp-socket.bind", |store, params| {
        Box::new(udp_bind_03(store, params))
    })?;
    types.func_wrap_concurrent("[method]tcp-socket.connect", |accessor, params| {
        let (socket, asked): (Resource<types03::TcpSocket>, types03::IpSocketAddress) = params;
        Box::pin(async move {
            let target = accessor.with(|mut access| {
                let around = access.get().egress.around.clone();
                around.connect_to(asked.into())
            });
            let sockets = accessor.with_getter::<WasiSockets>(|state| state.sockets());
            let connected = WasiSockets::connect(&sockets, socket, target.into()).await;
            said_03(connected)
        })
    })?;
    let mut names = linker.instance(&format!("wasi:sockets/ip-name-lookup@{V03}"))?;
    names.func_wrap_concurrent("resolve-addresses", |accessor, (name,): (String,)| {
        Box::pin(async move {
            let looked_up = accessor.with(|mut access| access.get().egress.around.lookup(&name));
            let found: Result<Vec<types03::IpAddress>, LookupError03> = match looked_up.await {
                Ok(found) => Ok(found.into_iter().map(Into::into).collect()),
                Err(ResolveError::NotFound) => Err(LookupError03::NameUnresolvable),
                Err(ResolveError::NoAnswer) => Err(LookupError03::TemporaryResolverFailure),
            };
            Ok((found,))
        })
    })?;
    linker.allow_shadowing(false);
    Ok(())
}

fn around(store: &Store<'_>) -> Arc<Surroundings> {
    store.data().egress.around.clone()
}

fn create_tcp_02(
    mut store: Store<'_>,
    (family,): (IpAddressFamily,),
) -> wasmtime::Result<(Result<Resource<TcpSocket>, ErrorCode>,)> {
    said(new_tcp_02(&mut store, family))
}

fn new_tcp_02(store: &mut Store<'_>, family: IpAddressFamily) -> SocketResult<Resource<TcpSocket>> {
    let around = around(store);
    let mut sockets = store.data_mut().sockets();
    let mut make = || sockets.create_tcp_socket(family);
    match &around.network {
        Some(network) => network.enter(make).map_err(SocketError::trap)?,
        None => make(),
    }
}

async fn create_udp_02(
    mut store: Store<'_>,
    (family,): (IpAddressFamily,),
) -> wasmtime::Result<(Result<Resource<UdpSocket>, ErrorCode>,)> {
    let around = around(&store);
    let mut sockets = store.data_mut().sockets();
    let made = sockets.create_udp_socket(family);
    said(match &around.network {
        Some(network) => network.begin(made).await?,
        None => made.await,
    })
}

fn create_tcp_03(
    mut store: Store<'_>,
    (family,): (types03::IpAddressFamily,),
) -> wasmtime::Result<(Result<Resource<types03::TcpSocket>, types03::ErrorCode>,)> {
    let around = around(&store);
    let mut sockets = store.data_mut().sockets();
    said_03(match &around.network {
        Some(network) => network.enter(|| types03::HostTcpSocket::create(&mut sockets, family))?,
        None => types03::HostTcpSocket::create(&mut sockets, family),
    })
}

async fn create_udp_03(
    mut store: Store<'_>,
    (family,): (types03::IpAddressFamily,),
) -> wasmtime::Result<(Result<Resource<types03::UdpSocket>, types03::ErrorCode>,)> {
    let around = around(&store);
    let mut sockets = store.data_mut().sockets();
    let made = types03::HostUdpSocket::create(&mut sockets, family);
    said_03(match &around.network {
        Some(network) => network.begin(made).await?,
        None => made.await,
    })
}

/// An error is the guest's to see; what is none traps.
fn said<T>(result: SocketResult<T>) -> wasmtime::Result<(Result<T, ErrorCode>,)> {
    Ok((match result {
        Ok(done) => Ok(done),
        Err(error) => Err(SocketError::downcast(error)?),
    },))
}

fn said_03<T>(
    result: wasmtime_wasi::p3::sockets::SocketResult<T>,
) -> wasmtime::Result<(Result<T, types03::ErrorCode>,)> {
    Ok((match result {
        Ok(done) => Ok(done),
        Err(error) => Err(error.downcast()?),
    },))
}

/// Whether an address is of the other family than the socket that was made for another.
fn crosses(asked: SocketAddr, given: SocketAddr) -> bool {
    asked.is_ipv4() != given.is_ipv4()
}

fn family(address: SocketAddr) -> IpAddressFamily {
    match address {
        SocketAddr::V4(_) => IpAddressFamily::Ipv4,
        SocketAddr::V6(_) => IpAddressFamily::Ipv6,
    }
}

/// Whether the pod may listen there; tells the log if not.
fn refused(around: &Surroundings, at: SocketAddr) -> bool {
    let refused = around.network.is_none()
        && (is_machines(at.ip()) || (at.port() != 0 && Some(at.ip()) != around.address));
    if refused {
        around.refuse_listening(at);
    }
    refused
}

async fn tcp_start_bind(
    mut store: Store<'_>,
    (socket, network, asked): (Resource<TcpSocket>, Resource<Network>, IpSocketAddress),
) -> Done {
    let (around, asked) = (around(&store), SocketAddr::from(asked));
    let at = around.listen_at(asked);
    if refused(&around, at) {
        return Ok((Err(ErrorCode::AccessDenied),));
    }
    replace_02(&mut store, &socket, asked, at)?;
    let mut sockets = store.data_mut().sockets();
    said(HostTcpSocket::start_bind(&mut sockets, socket, network, at.into()).await)
}

fn tcp_start_connect(
    mut store: Store<'_>,
    (socket, network, asked): (Resource<TcpSocket>, Resource<Network>, IpSocketAddress),
) -> Done {
    let asked = SocketAddr::from(asked);
    let to = around(&store).connect_to(asked);
    replace_02(&mut store, &socket, asked, to)?;
    let mut sockets = store.data_mut().sockets();
    said(sockets.start_connect(socket, network, to.into()))
}

/// A socket has a family from its making; the pod's address may be of the other one.
fn replace_02(
    store: &mut Store<'_>,
    socket: &Resource<TcpSocket>,
    asked: SocketAddr,
    given: SocketAddr,
) -> wasmtime::Result<()> {
    if !crosses(asked, given) {
        return Ok(());
    }
    // One that can't be made leaves the old, which then refuses the address.
    if let Ok(made) = new_tcp_02(store, family(given)) {
        let table = &mut store.data_mut().table;
        let made = table.delete(made)?;
        *table.get_mut(socket)? = made;
    }
    Ok(())
}

async fn udp_start_bind(
    mut store: Store<'_>,
    (socket, network, asked): (Resource<UdpSocket>, Resource<Network>, IpSocketAddress),
) -> Done {
    let around = around(&store);
    let at = around.listen_at(asked.into());
    if refused(&around, at) {
        return Ok((Err(ErrorCode::AccessDenied),));
    }
    let mut sockets = store.data_mut().sockets();
    said(HostUdpSocket::start_bind(&mut sockets, socket, network, at.into()).await)
}

async fn tcp_bind_03(
    mut store: Store<'_>,
    (socket, asked): (Resource<types03::TcpSocket>, types03::IpSocketAddress),
) -> Done03 {
    let (around, asked) = (around(&store), SocketAddr::from(asked));
    let at = around.listen_at(asked);
    if refused(&around, at) {
        return Ok((Err(types03::ErrorCode::AccessDenied),));
    }
    let mut sockets = store.data_mut().sockets();
    said_03(types03::HostTcpSocket::bind(&mut sockets, socket, at.into()).await)
}

async fn udp_bind_03(
    mut store: Store<'_>,
    (socket, asked): (Resource<types03::UdpSocket>, types03::IpSocketAddress),
) -> Done03 {
    let around = around(&store);
    let at = around.listen_at(asked.into());
    if refused(&around, at) {
        return Ok((Err(types03::ErrorCode::AccessDenied),));
    }
    let mut sockets = store.data_mut().sockets();
    said_03(types03::HostUdpSocket::bind(&mut sockets, socket, at.into()).await)
}

/// A name being looked up, or its addresses not yet taken.
struct Lookup(State);

enum State {
    Asking(BoxFuture<'static, Result<Vec<IpAddr>, ResolveError>>),
    Found(std::vec::IntoIter<IpAddr>),
    Failed(ErrorCode),
}

impl Lookup {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let State::Asking(asking) = &mut self.0 {
            self.0 = match std::task::ready!(asking.as_mut().poll(cx)) {
                Ok(found) => State::Found(found.into_iter()),
                Err(ResolveError::NotFound) => State::Failed(ErrorCode::NameUnresolvable),
                Err(ResolveError::NoAnswer) => State::Failed(ErrorCode::TemporaryResolverFailure),
            };
        }
        Poll::Ready(())
    }
}

#[async_trait::async_trait]
impl Pollable for Lookup {
    async fn ready(&mut self) {
        std::future::poll_fn(|cx| self.poll(cx)).await;
    }
}

fn resolve_addresses(
    mut store: Store<'_>,
    (network, name): (Resource<Network>, String),
) -> wasmtime::Result<(Result<Resource<Lookup>, ErrorCode>,)> {
    // Holding one is the permission to ask.
    store.data().table.get(&network)?;
    if name.is_empty() {
        return Ok((Err(ErrorCode::InvalidArgument),));
    }
    let asking = around(&store).lookup(&name);
    let lookup = store.data_mut().table.push(Lookup(State::Asking(asking)))?;
    Ok((Ok(lookup),))
}

fn resolve_next_address(
    mut store: Store<'_>,
    (lookup,): (Resource<Lookup>,),
) -> wasmtime::Result<(Result<Option<IpAddress>, ErrorCode>,)> {
    let lookup = store.data_mut().table.get_mut(&lookup)?;
    // Whoever wants to be woken subscribes.
    let mut nobody = Context::from_waker(std::task::Waker::noop());
    Ok((match (lookup.poll(&mut nobody), &mut lookup.0) {
        (_, State::Found(found)) => Ok(found.next().map(Into::into)),
        (_, State::Failed(code)) => Err(*code),
        (_, State::Asking(_)) => Err(ErrorCode::WouldBlock),
    },))
}
