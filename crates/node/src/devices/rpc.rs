//! gRPC over Unix sockets: a server of unary calls, and calls to a plugin.

use crate::probes::grpc::InScope;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use lifecycle::Scope;
use prost::Message;
use std::convert::Infallible;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tonic::Status;
use tonic::server::UnaryService;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// Connections at once; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 64;
/// How long a plugin has to be connected to…
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// …and to answer: some reset their devices first.
const ANSWER_MAX: Duration = Duration::from_secs(60);

pub(super) type Body = UnsyncBoxBody<Bytes, Status>;

/// Answers calls; what is not known is answered by [`unknown`].
pub(super) trait Service: Send + Sync + 'static {
    fn call(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Body>> + Send;
}

/// Serves at a socket until the scope is cancelled.
pub(super) fn serve<S: Service>(
    path: &Path,
    service: Arc<S>,
    scope: &Scope,
) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let of_connections = scope.clone();
    scope.spawn_cancellable(async move {
        while let Ok(turn) = connections.clone().acquire_owned().await {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "connection not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (service, of_streams) = (service.clone(), of_connections.clone());
            of_connections.spawn_cancellable(async move {
                let answer = hyper::service::service_fn(move |request| {
                    let service = service.clone();
                    async move { Ok::<_, Infallible>(service.call(request).await) }
                });
                let served = hyper::server::conn::http2::Builder::new(InScope(of_streams))
                    .serve_connection(TokioIo::new(stream), answer)
                    .await;
                if let Err(error) = served {
                    tracing::debug!(%error, "connection ended");
                }
                drop(turn);
            });
        }
    });
    Ok(())
}

/// Answers one call.
pub(super) async fn unary<Q, A, F, Fut>(request: Request<Incoming>, answer: F) -> Response<Body>
where
    Q: Message + Default + 'static,
    A: Message + Default + 'static,
    F: FnOnce(Q) -> Fut,
    Fut: Future<Output = Result<A, Status>>,
{
    let mut grpc = tonic::server::Grpc::new(ProstCodec::<A, Q>::default());
    let response = grpc.unary(Once(Some(answer), Default::default()), request);
    response.await.map(http_body_util::BodyExt::boxed_unsync)
}

/// The answer to a call that there is not.
pub(super) fn unknown() -> Response<Body> {
    let response: Response<tonic::body::Body> = Status::unimplemented("no such call").into_http();
    response.map(http_body_util::BodyExt::boxed_unsync)
}

struct Once<Q, F>(Option<F>, std::marker::PhantomData<fn(Q)>);

impl<Q, A, F, Fut> UnaryService<Q> for Once<Q, F>
where
    F: FnOnce(Q) -> Fut,
    Fut: Future<Output = Result<A, Status>>,
{
    type Response = A;
    type Future = futures::future::Either<
        futures::future::MapOk<Fut, fn(A) -> tonic::Response<A>>,
        std::future::Ready<Result<tonic::Response<A>, Status>>,
    >;

    fn call(&mut self, request: tonic::Request<Q>) -> Self::Future {
        use futures::future::{Either, TryFutureExt as _};
        match self.0.take() {
            Some(answer) => Either::Left(
                answer(request.into_inner()).map_ok(tonic::Response::new as fn(A) -> _),
            ),
            None => Either::Right(std::future::ready(Err(Status::internal("asked twice")))),
        }
    }
}

/// Connects to a plugin's socket.
pub(super) async fn connect(socket: &Path) -> Result<Channel, Status> {
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    let connected = endpoint.connect_timeout(CONNECT_MAX).connect().await;
    connected.map_err(|error| Status::unavailable(error.to_string()))
}

fn path(call: &str) -> Result<http::uri::PathAndQuery, Status> {
    let path = format!("/v1beta1.DevicePlugin/{call}");
    path.parse().map_err(|_| Status::internal("no such call"))
}

async fn ready(plugin: Channel) -> Result<tonic::client::Grpc<Channel>, Status> {
    let mut grpc = tonic::client::Grpc::new(plugin);
    let ready = grpc.ready().await;
    ready.map_err(|error| Status::unavailable(error.to_string()))?;
    Ok(grpc)
}

/// Asks a plugin.
pub(super) async fn ask<Q, A>(plugin: Channel, call: &str, request: Q) -> Result<A, Status>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    let asked = async {
        let mut grpc = ready(plugin).await?;
        let codec = ProstCodec::<Q, A>::default();
        let answer = grpc.unary(tonic::Request::new(request), path(call)?, codec);
        Ok(answer.await?.into_inner())
    };
    let answer = tokio::time::timeout(ANSWER_MAX, asked).await;
    answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")))
}

/// Follows what a plugin says.
pub(super) async fn follow<Q, A>(
    plugin: Channel,
    call: &str,
    request: Q,
) -> Result<tonic::Streaming<A>, Status>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    let mut grpc = ready(plugin).await?;
    let codec = ProstCodec::<Q, A>::default();
    let answer = grpc.server_streaming(tonic::Request::new(request), path(call)?, codec);
    Ok(answer.await?.into_inner())
}
