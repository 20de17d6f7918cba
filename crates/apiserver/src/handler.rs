//! What happens to a request: who calls, may he, which resource, and the verb.

use crate::admission::{self, Warnings};
use crate::aggregation;
use crate::audit;
use crate::authn::impersonate::acting_as;
use crate::authn::{Shown, User};
use crate::authz::{self, Attributes, review};
use crate::convert;
use crate::discovery;
use crate::flow;
use crate::health;
use crate::http::negotiate::{self, Accepted, Encoding, Offer, Shape};
use crate::http::request::{Query, RequestInfo};
use crate::http::respond::{self, Body, BoxError};
use crate::input::{delete_options, manager_of, read_input, read_named, read_patch};
use crate::kubelet;
use crate::registry::create::{Tracking, create};
use crate::registry::delete::{self, Deleted};
use crate::registry::list::Filter;
use crate::registry::patch;
use crate::registry::render::{Include, View};
use crate::registry::{Call, eviction, list, subresource, token_request, update, watch};
use crate::resource_metrics;
use crate::row::Row;
use crate::server_state::Core;
use apimachinery::Status;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::upgrade::OnUpgrade;
use parking_lot::Mutex;
use serde_json::Value;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::time::Instant;

/// Deletions of one collection that are under way together.
const DELETES_AT_ONCE: usize = 32;

/// Body of a request, whatever it came over.
pub(crate) type Incoming = UnsyncBoxBody<Bytes, BoxError>;

/// How the caller is known.
#[derive(Clone, Debug)]
pub(crate) enum Caller {
    /// From the network, with what its client certificate says, and from where.
    Remote(Arc<Shown>, IpAddr),
    /// From this process.
    Local(Arc<User>),
}

/// A request taken apart.
pub(crate) struct Ctx<'a> {
    pub(crate) core: &'a Arc<Core>,
    pub(crate) info: &'a RequestInfo,
    pub(crate) query: &'a Query,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) user: &'a User,
    pub(crate) audit: Option<&'a audit::Record>,
}

/// Answers a request.
pub(crate) fn handle(
    core: Arc<Core>,
    request: Request<Incoming>,
    caller: Caller,
) -> BoxFuture<'static, Response<Body>> {
    // A defect in one request must not take its connection, or the client of this process
    // that shares the task, down with it.
    let answered = AssertUnwindSafe(respond_to(core, request, caller)).catch_unwind();
    Box::pin(answered.map(|answer| {
        answer.unwrap_or_else(|_| {
            tracing::error!("a request ended in a panic");
            let failed = Status::internal("the request ended in a panic");
            respond::status(&failed, Accepted::JSON)
        })
    }))
}

/// Answers in time, or says that it did not.
async fn bounded(
    core: &Arc<Core>,
    work: impl Future<Output = Result<Response<Body>, Status>>,
) -> Result<Response<Body>, Status> {
    match tokio::time::timeout(core.limits.request_timeout, work).await {
        Ok(response) => response,
        Err(_) => Err(Status::new(
            504,
            "Timeout",
            "Timeout: request did not complete within the allotted timeout",
        )),
    }
}

async fn respond_to(core: Arc<Core>, request: Request<Incoming>, caller: Caller) -> Response<Body> {
    let started = Instant::now();
    let gzip = negotiate::takes_gzip(request.headers());
    let of_errors = negotiate::of_errors(request.headers());
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let path = percent_encoding::percent_decode_str(request.uri().path())
        .decode_utf8_lossy()
        .into_owned();
    let method = match *request.method() {
        Method::HEAD => Method::GET,
        ref m => m.clone(),
    };
    let info = RequestInfo::parse(&method, &path, &query);
    let remote = core.aggregator.route(&path);
    let row = if info.is_resource && remote.is_none() {
        core.row(&info.group, &info.version, &info.resource)
    } else {
        None
    };
    let row = row.as_ref();
    let from = match &caller {
        Caller::Remote(_, from) => Some(*from),
        Caller::Local(_) => None,
    };
    let audit = audit::Record::begin(&core, request.uri(), request.headers(), &info, from);
    let long = info.verb == "watch"
        || matches!(
            info.subresource.as_str(),
            "log" | "exec" | "attach" | "portforward" | "proxy"
        )
        || (remote.is_some() && request.headers().contains_key(header::UPGRADE));
    let flow = Mutex::default();
    let target = Target {
        info: &info,
        query: &query,
        row,
        remote: remote.as_deref(),
        audit: audit.as_ref(),
        flow: &flow,
        long,
    };
    let response = if long {
        serve(&core, request, target, &caller).await
    } else {
        let work = serve(&core, request, target, &caller);
        bounded(&core, work).await
    };
    let mut response = response.unwrap_or_else(|s| respond::status(&s, of_errors));
    let took = (!long).then(|| started.elapsed());
    core.metrics.request(
        info.verb,
        row,
        &info.subresource,
        response.status().as_u16(),
        took,
    );
    if let Some(text) = row.and_then(Row::deprecation) {
        respond::warn(&mut response, &[text.to_owned()]);
    }
    let headers = response.headers_mut();
    flow.lock().tell(headers);
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-cache, private"));
    if let Some(audit) = audit {
        response = audit.finish(response, long);
    }
    if gzip {
        respond::gzip(response)
    } else {
        response
    }
}

/// What a request is about and who answers.
#[derive(Clone, Copy)]
struct Target<'a> {
    info: &'a RequestInfo,
    query: &'a Query,
    row: Option<&'a Row>,
    /// An extension server.
    remote: Option<&'a aggregation::Remote>,
    audit: Option<&'a audit::Record>,
    /// What flow it is of, once that is known.
    flow: &'a Mutex<flow::Found>,
    /// A watch or stream.
    long: bool,
}

async fn serve(
    core: &Arc<Core>,
    mut request: Request<Incoming>,
    target: Target<'_>,
    caller: &Caller,
) -> Result<Response<Body>, Status> {
    let Target {
        info,
        query,
        row,
        remote,
        audit,
        flow,
        long,
    } = target;
    let user = match caller {
        Caller::Local(user) => user.clone(),
        Caller::Remote(shown, _) => {
            let found = core.authenticate(request.headers(), shown).await;
            if let (Err(Status { code: 401, .. }), Some(audit)) = (&found, audit) {
                audit.refused(info);
            }
            if let Some(proxies) = &core.authn.request_headers {
                proxies.clear(request.headers_mut());
            }
            Arc::new(found?)
        }
    };
    if let Some(audit) = audit {
        audit.known(info, &user);
    }
    let user = if request
        .headers()
        .keys()
        .any(|k| k.as_str().starts_with("impersonate-"))
    {
        let acting = acting_as((*user).clone(), request.headers(), &core.authz)?;
        if let Some(audit) = audit {
            audit.acting(&acting);
        }
        Arc::new(acting)
    } else {
        user
    };
    let _seat = match &core.flow {
        Some(all) if !long => {
            let admitted = all.admit(info, &user, flow).await;
            admitted.inspect_err(|_| core.metrics.rejected())?
        }
        _ => None,
    };
    let allowed = authorize(core, info, &user, matches!(caller, Caller::Local(_)));
    if let Some(audit) = audit {
        audit.decided(allowed.is_ok());
    }
    allowed?;
    let (mut parts, body) = request.into_parts();
    let upgrade = parts.extensions.remove::<OnUpgrade>();
    if let Some(remote) = remote {
        let passed = aggregation::forward(core, remote, parts, body, upgrade, &user);
        return Box::pin(passed).await;
    }
    let ctx = Ctx {
        core,
        info,
        query,
        headers: &parts.headers,
        user: &user,
        audit,
    };
    if !info.is_resource {
        return Box::pin(other(&ctx, &parts.method)).await;
    }
    let Some(row) = row else {
        return Ok(respond::text(404, "404 page not found\n"));
    };
    Box::pin(resource(&ctx, row, &parts.method, body, upgrade)).await
}

fn authorize(core: &Core, info: &RequestInfo, user: &User, own: bool) -> Result<(), Status> {
    // Health is for whoever asks, also before the first roles are there.
    if matches!(info.path.as_str(), "/healthz" | "/livez" | "/readyz") {
        return Ok(());
    }
    let a = Attributes {
        verb: info.verb,
        resource_request: info.is_resource,
        group: &info.group,
        resource: &info.resource,
        subresource: &info.subresource,
        namespace: &info.namespace,
        name: &info.name,
        path: &info.path,
    };
    if core.authz.allowed(user, &a) || authz::node::allowed(core, user, &a, own) {
        Ok(())
    } else {
        Err(a.refusal(user))
    }
}

/// Paths that are no resource.
async fn other(ctx: &Ctx<'_>, method: &Method) -> Result<Response<Body>, Status> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return Ok(respond::text(405, "Method Not Allowed\n"));
    }
    let path = ctx.info.path.as_str();
    if let Some(response) = health::answer(ctx.core, path, ctx.query).await {
        return Ok(response);
    }
    match path {
        "/version" | "/version/" => Ok(respond::value(200, Accepted::JSON, &health::version())),
        "/metrics" => Ok(respond::bytes(
            200,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            ctx.core.metrics.render(&ctx.core.cache).into_bytes(),
        )),
        "/openid/v1/jwks" => Ok(respond::bytes(
            200,
            "application/jwk-set+json",
            respond::to_json(&ctx.core.authn.tokens.jwks()),
        )),
        "/.well-known/openid-configuration" => Ok(respond::value(
            200,
            Accepted::JSON,
            &discovery::openid(ctx.core),
        )),
        "/" => Ok(respond::value(
            200,
            Accepted::JSON,
            &discovery::root(ctx.core),
        )),
        _ => discovery::answer(ctx.core, path, ctx.query, ctx.headers),
    }
}

/// One resource request.
async fn resource(
    ctx: &Ctx<'_>,
    row: &Row,
    method: &Method,
    body: Incoming,
    upgrade: Option<OnUpgrade>,
) -> Result<Response<Body>, Status> {
    let info = ctx.info;
    let sub = info.subresource.as_str();
    // `namespaces/x` carries its own name as namespace for authorization only.
    let namespace = if row.namespaced() {
        info.namespace.as_str()
    } else {
        ""
    };
    if !row.namespaced() && !info.namespace.is_empty() && row.known() != "namespaces" {
        return Ok(respond::text(404, "404 page not found\n"));
    }
    // A name that a selector stated is not the path's.
    let named =
        !matches!(info.verb, "list" | "watch" | "deletecollection" | "create") || !sub.is_empty();
    let manager = manager_of(ctx, method);
    let warnings = Warnings::default();
    let call = Call {
        core: ctx.core,
        row,
        namespace,
        name: if named { &info.name } else { "" },
        subresource: sub,
        user: ctx.user,
        dry_run: ctx.query.dry_run()?,
        manager: &manager,
        warnings: &warnings,
    };
    let answer = answer_to(ctx, &call, method, body, upgrade).await;
    // What is refused is warned of too.
    let of_errors = negotiate::of_errors(ctx.headers);
    let mut response = answer.unwrap_or_else(|s| respond::status(&s, of_errors));
    respond::warn(&mut response, &warnings.take());
    if let Some(audit) = ctx.audit {
        for (key, value) in warnings.take_notes() {
            audit.annotate(&key, &value);
        }
    }
    Ok(response)
}

async fn answer_to(
    ctx: &Ctx<'_>,
    call: &Call<'_>,
    method: &Method,
    body: Incoming,
    upgrade: Option<OnUpgrade>,
) -> Result<Response<Body>, Status> {
    let (info, row, sub) = (ctx.info, call.row, call.subresource);
    if sub.is_empty() {
        if !row.verbs().contains(&info.verb) {
            return Err(not_allowed());
        }
        if !row.stored() {
            return transient(ctx, call, body).await;
        }
        return match info.verb {
            "get" => show(ctx, call).await,
            "list" => lists(ctx, row, call.namespace).await,
            "watch" => watches(ctx, row, call.namespace).await,
            "create" => creates(ctx, call, body).await,
            "update" => puts(ctx, call, body).await,
            "patch" => patches(ctx, call, body).await,
            "delete" => deletes(ctx, call, body).await,
            "deletecollection" => deletes_all(ctx, call, body).await,
            _ => Err(not_allowed()),
        };
    }
    let known = row.subresources().iter().any(|s| s.name == sub)
        || (sub == "status" && row.status())
        || (sub == "scale" && row.scale().is_some());
    if !known {
        return Ok(respond::text(404, "404 page not found\n"));
    }
    if matches!(sub, "log" | "exec" | "attach" | "portforward" | "proxy") {
        if sub != "log" {
            admission::connect(call, ctx.query, &info.tail).await?;
        }
        let forwarded = kubelet::Forwarded {
            query: ctx.query,
            tail: &info.tail,
            method,
            headers: ctx.headers,
            body,
            upgrade,
        };
        return kubelet::serve(call, forwarded).await;
    }
    subresources(ctx, call, body).await
}

async fn subresources(
    ctx: &Ctx<'_>,
    call: &Call<'_>,
    body: Incoming,
) -> Result<Response<Body>, Status> {
    let verb = ctx.info.verb;
    let accepted = accept(ctx, call.row)?;
    match (call.subresource, verb) {
        ("scale", "get") => {
            let scale = call.row.scale().ok_or_else(not_allowed)?;
            let object = call.view(&*call.current().await?);
            Ok(respond::value(
                200,
                accepted,
                &subresource::scale_of(scale, &object),
            ))
        }
        ("scale", "update" | "patch") => {
            let scale = call.row.scale().ok_or_else(not_allowed)?;
            let value = if verb == "update" {
                let input = read_input(ctx, body).await?;
                subresource::write_scale(call, scale, Some(&input), None).await?
            } else {
                let patch = read_patch(ctx, body).await?;
                subresource::write_scale(call, scale, None, Some(&patch)).await?
            };
            Ok(respond::value(200, accepted, &value))
        }
        ("binding", "create") => {
            let v = read_named(ctx, body, "io.k8s.api.core.v1.Binding", "Binding").await?;
            bind(call, &v, accepted).await
        }
        ("eviction", "create") => {
            let v = read_named(ctx, body, "io.k8s.api.policy.v1.Eviction", "Eviction").await?;
            Ok(respond::value(
                201,
                accepted,
                &eviction::evict(call, &v).await?,
            ))
        }
        ("token", "create") => {
            let name = "io.k8s.api.authentication.v1.TokenRequest";
            let v = read_named(ctx, body, name, "TokenRequest").await?;
            Ok(respond::value(
                201,
                accepted,
                &token_request::token(call, &v).await?,
            ))
        }
        (_, "get") if subresource::part(call).is_some() => show(ctx, call).await,
        (_, "update") => {
            let part = subresource::part(call).ok_or_else(not_allowed)?;
            let input = read_input(ctx, body).await?;
            let mut warnings = Vec::new();
            let value = call.decode(&input, &mut warnings)?;
            sent(ctx, &value);
            let (object, _) = update::put(call, part, value).await?;
            answer(&view(ctx, call.row)?, 200, &object, &warnings)
        }
        (_, "patch") => {
            let p = read_patch(ctx, body).await?;
            let mut warnings = Vec::new();
            let object = subresource::patch_part(call, &p, &mut warnings).await?;
            answer(&view(ctx, call.row)?, 200, &object, &warnings)
        }
        _ => Err(not_allowed()),
    }
}

async fn bind(
    call: &Call<'_>,
    binding: &Value,
    accepted: Accepted,
) -> Result<Response<Body>, Status> {
    subresource::bind(call, binding).await?;
    let done = serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201,
    });
    Ok(respond::value(201, accepted, &done))
}

/// Kinds that are answered, not stored.
async fn transient(
    ctx: &Ctx<'_>,
    call: &Call<'_>,
    body: Incoming,
) -> Result<Response<Body>, Status> {
    if call.row.group() == resource_metrics::GROUP {
        let view = view(ctx, call.row)?;
        return resource_metrics::answer(call, ctx.query, ctx.info.verb, &view).await;
    }
    if ctx.info.verb != "create" {
        return if call.row.known() == "componentstatuses" && ctx.info.verb == "list" {
            let list = serde_json::json!({
                "kind": "ComponentStatusList", "apiVersion": "v1", "metadata": {}, "items": [],
            });
            Ok(respond::value(200, accept(ctx, call.row)?, &list))
        } else {
            Err(Status::not_found(
                call.row.group(),
                call.row.plural(),
                call.name,
            ))
        };
    }
    let accepted = accept(ctx, call.row)?;
    let input = read_input(ctx, body).await?;
    let mut warnings = Vec::new();
    let value = call.decode(&input, &mut warnings)?;
    sent(ctx, &value);
    if call.row.kind() == "Binding" {
        let name = value["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let pods = Row::builtin("", "v1", "pods").ok_or_else(not_allowed)?;
        return bind(
            &Call {
                row: &pods,
                name: &name,
                subresource: "binding",
                ..*call
            },
            &value,
            accepted,
        )
        .await;
    }
    let review = review::answer(ctx.core, call.row.kind(), call.namespace, ctx.user, value).await?;
    Ok(respond::value(201, accepted, &review))
}

async fn show(ctx: &Ctx<'_>, call: &Call<'_>) -> Result<Response<Body>, Status> {
    let view = view(ctx, call.row)?;
    let object = call.current().await?;
    view.answer(200, &object)
}

async fn lists(ctx: &Ctx<'_>, row: &Row, namespace: &str) -> Result<Response<Body>, Status> {
    let view = view(ctx, row)?;
    let filter = Filter::parse(row, namespace, ctx.query)?;
    let page = list::list(ctx.core, &filter, ctx.query).await?;
    convert::prepare(ctx.core, &view.row, &page.objects).await?;
    view.answer_list(page).await
}

async fn watches(ctx: &Ctx<'_>, row: &Row, namespace: &str) -> Result<Response<Body>, Status> {
    let view = view(ctx, row)?;
    let mut filter = Filter::parse(row, namespace, ctx.query)?;
    // Whatever else is selected: it is for this name that the request was authorized.
    if !ctx.info.name.is_empty() {
        filter
            .fields
            .requirements
            .push(("metadata.name".to_owned(), ctx.info.name.clone(), true));
    }
    let media = match view.accepted.encoding {
        Encoding::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        Encoding::Cbor => negotiate::CBOR_SEQUENCE,
        Encoding::Json | Encoding::Yaml => "application/json",
    };
    let body = watch::open(ctx.core, filter, view, ctx.query).await?;
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    Ok(response)
}

async fn creates(ctx: &Ctx<'_>, call: &Call<'_>, body: Incoming) -> Result<Response<Body>, Status> {
    let view = view(ctx, call.row)?;
    let input = read_input(ctx, body).await?;
    let mut warnings = Vec::new();
    let value = call.decode(&input, &mut warnings)?;
    sent(ctx, &value);
    let object = create(call, value, Tracking::Update).await?;
    answer(&view, 201, &object, &warnings)
}

async fn puts(ctx: &Ctx<'_>, call: &Call<'_>, body: Incoming) -> Result<Response<Body>, Status> {
    let view = view(ctx, call.row)?;
    let input = read_input(ctx, body).await?;
    let mut warnings = Vec::new();
    let value = call.decode(&input, &mut warnings)?;
    sent(ctx, &value);
    let (object, made) = update::put(call, update::Part::Main, value).await?;
    answer(&view, if made { 201 } else { 200 }, &object, &warnings)
}

async fn patches(ctx: &Ctx<'_>, call: &Call<'_>, body: Incoming) -> Result<Response<Body>, Status> {
    let view = view(ctx, call.row)?;
    let p = read_patch(ctx, body).await?;
    let mut warnings = Vec::new();
    let (object, made) = patch::run(call, update::Part::Main, &p, &mut warnings).await?;
    answer(&view, if made { 201 } else { 200 }, &object, &warnings)
}

async fn deletes(ctx: &Ctx<'_>, call: &Call<'_>, body: Incoming) -> Result<Response<Body>, Status> {
    let view = view(ctx, call.row)?;
    let options = delete_options(ctx, body).await?;
    match delete::delete(call, &options).await? {
        Deleted::Gone(object) if !delete::returns_object(call.row.known()) => Ok(respond::value(
            200,
            Accepted {
                shape: Shape::Object,
                ..view.accepted
            },
            &delete::success(call, &object),
        )),
        Deleted::Gone(object) | Deleted::Pending(object) => view.answer(200, &object),
    }
}

async fn deletes_all(
    ctx: &Ctx<'_>,
    call: &Call<'_>,
    body: Incoming,
) -> Result<Response<Body>, Status> {
    let options = delete_options(ctx, body).await?;
    let view = view(ctx, call.row)?;
    let filter = Filter::parse(call.row, call.namespace, ctx.query)?;
    let page = list::list(ctx.core, &filter, ctx.query).await?;
    convert::prepare(ctx.core, &view.row, &page.objects).await?;
    // At once, so that the store commits them together.
    let mut all = Vec::with_capacity(page.objects.len());
    for object in &page.objects {
        let one = Call {
            namespace: object.namespace(),
            name: object.name(),
            ..*call
        };
        let options = &options;
        all.push(async move { delete::delete(&one, options).await });
    }
    let mut done = futures::stream::iter(all).buffer_unordered(DELETES_AT_ONCE);
    while let Some(result) = done.next().await {
        match result {
            Ok(_) => {}
            Err(s) if s.code == 404 => {}
            Err(s) => return Err(s),
        }
    }
    drop(done);
    view.answer_list(page).await
}

/// What was sent, for the audit log.
fn sent(ctx: &Ctx<'_>, value: &Value) {
    if let Some(audit) = ctx.audit {
        audit.sent(value);
    }
}

/// An object as the answer to a write.
fn answer(
    view: &View,
    code: u16,
    object: &crate::cache::Object,
    warnings: &[String],
) -> Result<Response<Body>, Status> {
    let mut response = view.answer(code, object)?;
    respond::warn(&mut response, warnings);
    Ok(response)
}

fn accept(ctx: &Ctx<'_>, row: &Row) -> Result<Accepted, Status> {
    let offer = Offer {
        shapes: &[Shape::Table, Shape::Metadata],
        messages: row.has_messages(),
        stream: ctx.info.verb == "watch",
    };
    negotiate::accept(ctx.headers, offer)
}

fn view(ctx: &Ctx<'_>, row: &Row) -> Result<View, Status> {
    Ok(View {
        row: row.clone(),
        accepted: accept(ctx, row)?,
        include: Include::parse(ctx.query.get("includeObject"))?,
        now: ctx.core.clock.now().as_second(),
    })
}

fn not_allowed() -> Status {
    Status::new(
        405,
        "MethodNotAllowed",
        "the server does not allow this method on the requested resource",
    )
}

/// Whether the server has what it needs to serve.
pub(crate) fn is_ready(core: &Core) -> bool {
    core.ready.load(Ordering::Acquire)
}
