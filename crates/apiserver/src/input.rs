//! What comes with a request: its body, how the body is encoded, and write options.

use crate::handler::{Ctx, Incoming};
use crate::http::negotiate::{body_media, content_type};
use crate::http::request::Query;
use crate::registry::Input;
use crate::registry::delete::{DeleteOptions, Propagation};
use crate::registry::patch::{APPLY_CBOR, APPLY_YAML, Patch};
use apimachinery::decode::{self, FieldValidation, MediaType};
use apimachinery::schema::Schema;
use apimachinery::{FieldError, Status};
use bytes::Bytes;
use http::{Method, header};
use http_body_util::BodyExt as _;
use serde_json::Value;

/// `fieldManager`, or the program that the User-Agent names; server-side apply must state it.
pub(crate) fn manager_of(ctx: &Ctx<'_>, method: &Method) -> String {
    if let Some(m) = ctx.query.get("fieldManager") {
        return m.to_owned();
    }
    if *method == Method::PATCH && [APPLY_YAML, APPLY_CBOR].contains(&&*content_type(ctx.headers)) {
        return String::new();
    }
    ctx.headers
        .get(header::USER_AGENT)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.split('/').next())
        .filter(|v| !v.is_empty())
        .unwrap_or("unknown")
        .to_owned()
}

fn field_validation(query: &Query) -> Result<FieldValidation, Status> {
    match query.get("fieldValidation") {
        None | Some("Warn") => Ok(FieldValidation::Warn),
        Some("Strict") => Ok(FieldValidation::Strict),
        Some("Ignore") => Ok(FieldValidation::Ignore),
        Some(other) => {
            let error = FieldError::not_supported(
                "fieldValidation",
                &other.into(),
                &["Ignore", "Strict", "Warn"],
            );
            Err(Status::invalid(
                "meta.k8s.io",
                "CreateOptions",
                "",
                &[error],
            ))
        }
    }
}

async fn read_body(ctx: &Ctx<'_>, mut body: Incoming) -> Result<Bytes, Status> {
    let limit = ctx.core.limits.body_max;
    let mut first = Bytes::new();
    let mut all: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|e| Status::bad_request(format!("unable to read the body: {e}")))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if first.len() + all.len() + data.len() > limit {
            return Err(Status::new(
                413,
                "RequestEntityTooLarge",
                format!("limit is {limit}"),
            ));
        }
        // Most bodies come in one piece, which is not copied.
        if first.is_empty() && all.is_empty() {
            first = data;
        } else {
            if all.is_empty() {
                all.extend_from_slice(&std::mem::take(&mut first));
            }
            all.extend_from_slice(&data);
        }
    }
    Ok(if all.is_empty() { first } else { all.into() })
}

pub(crate) async fn read_input(ctx: &Ctx<'_>, body: Incoming) -> Result<Input, Status> {
    let media = body_media(ctx.headers)?;
    let validation = field_validation(ctx.query)?;
    let bytes = read_body(ctx, body).await?;
    if bytes.is_empty() {
        return Err(Status::bad_request(
            "the request body is empty: an object is required",
        ));
    }
    Ok(Input {
        media,
        bytes,
        validation,
    })
}

pub(crate) async fn read_patch(ctx: &Ctx<'_>, body: Incoming) -> Result<Patch, Status> {
    let media = content_type(ctx.headers);
    let input = Input {
        media: match &*media {
            APPLY_YAML => MediaType::Yaml,
            APPLY_CBOR => MediaType::Cbor,
            _ => MediaType::Json,
        },
        validation: field_validation(ctx.query)?,
        bytes: read_body(ctx, body).await?,
    };
    let patch = Patch {
        media,
        input,
        force: ctx.query.flag("force"),
    };
    if let Some(audit) = ctx.audit {
        audit.sent(&patch.document().unwrap_or_default());
    }
    Ok(patch)
}

/// A body of a type that has no row of its own here.
pub(crate) async fn read_named(
    ctx: &Ctx<'_>,
    body: Incoming,
    type_name: &str,
    kind: &str,
) -> Result<Value, Status> {
    let input = read_input(ctx, body).await?;
    let (_, sent) = decode::type_meta(input.media, &input.bytes)?;
    if sent.as_deref().is_some_and(|k| !k.is_empty() && k != kind) {
        return Err(Status::bad_request(format!(
            "expected a {kind} in the body"
        )));
    }
    let schema = Schema::builtin();
    let ty = schema
        .by_name(type_name)
        .ok_or_else(|| Status::internal(format!("no schema for {type_name}")))?;
    let value = decode::decode(schema, ty, input.media, &input.bytes, input.validation)?.value;
    if let Some(audit) = ctx.audit {
        audit.sent(&value);
    }
    Ok(value)
}

pub(crate) async fn delete_options(ctx: &Ctx<'_>, body: Incoming) -> Result<DeleteOptions, Status> {
    let bytes = read_body(ctx, body).await?;
    let mut options = if bytes.is_empty() {
        DeleteOptions::default()
    } else {
        let schema = Schema::builtin();
        let ty = schema
            .by_name("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions")
            .ok_or_else(|| Status::internal("no schema for DeleteOptions"))?;
        let media = body_media(ctx.headers)?;
        let decoded = decode::decode(schema, ty, media, &bytes, FieldValidation::Ignore)?;
        if let Some(audit) = ctx.audit {
            audit.sent(&decoded.value);
        }
        DeleteOptions::from_value(&decoded.value)?
    };
    if options.grace.is_none() {
        options.grace = ctx.query.number("gracePeriodSeconds")?;
    }
    if options.propagation.is_none() {
        options.propagation = match ctx.query.get("propagationPolicy") {
            Some(p) => Some(Propagation::parse(p)?),
            None => ctx.query.get("orphanDependents").map(|v| {
                if v == "true" {
                    Propagation::Orphan
                } else {
                    Propagation::Background
                }
            }),
        };
    }
    Ok(options)
}
