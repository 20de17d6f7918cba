//! Deletes bootstrap tokens when they have expired: Secrets of their type in `kube-system`.
//! The API server takes none that has expired; this is so that none are left about.

use crate::context::{Context, named};
use crate::error::Error;
use client::k8s_openapi::api::core::v1::Secret;
use client::{Informer, ObjectKey, Outcome, Selected};
use jiff::Timestamp;
use kube::api::{Api, DeleteParams, Preconditions};
use std::sync::Arc;
use std::time::Duration;

const NAME: &str = "token-cleaner";
const NAMESPACE: &str = "kube-system";
const TYPE: &str = "bootstrap.kubernetes.io/token";
const EXPIRATION: &str = "expiration";
/// Deletions wait for one another: there are few.
const WORKERS: usize = 1;

pub(crate) fn start(context: &Context) {
    let selected = Selected::fields(format!("metadata.namespace={NAMESPACE},type={TYPE}"));
    let tokens = context.informers.get_selected::<Secret>(selected);
    let queue = context.queue::<ObjectKey>();
    context.enqueue(&tokens, &queue);
    let ready = vec![tokens.ready()];
    let context_kept = context.clone();
    context.work(NAME, queue, WORKERS, ready, move |key| {
        let (context, tokens) = (context_kept.clone(), tokens.clone());
        async move { reconcile(&context, &tokens, &key).await }
    });
}

async fn reconcile(
    context: &Context,
    tokens: &Informer<Secret>,
    key: &ObjectKey,
) -> Result<Outcome, Error> {
    let Some(token) = tokens.get(&key.namespace, &key.name) else {
        return Ok(Outcome::Done);
    };
    match judge(&token, context.clock.now()) {
        Verdict::Keep => Ok(Outcome::Done),
        Verdict::Later(left) => Ok(Outcome::After(left)),
        Verdict::Delete => {
            delete(context, &token, key).await?;
            Ok(Outcome::Done)
        }
    }
}

/// What becomes of a token.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It is good for ever, or none of ours, or going already.
    Keep,
    /// It expires in this time.
    Later(Duration),
    /// It has expired, or nobody can tell when it does.
    Delete,
}

fn judge(token: &Secret, now: Timestamp) -> Verdict {
    if token.type_.as_deref() != Some(TYPE) || token.metadata.deletion_timestamp.is_some() {
        return Verdict::Keep;
    }
    let expiration = token.data.as_ref().and_then(|data| data.get(EXPIRATION));
    let Some(expiration) = expiration.filter(|bytes| !bytes.0.is_empty()) else {
        return Verdict::Keep;
    };
    let until = std::str::from_utf8(&expiration.0).ok();
    let Some(until) = until.and_then(|text| text.parse::<Timestamp>().ok()) else {
        return Verdict::Delete;
    };
    match Duration::try_from(until.duration_since(now)) {
        Ok(left) if !left.is_zero() => Verdict::Later(left),
        _ => Verdict::Delete,
    }
}

async fn delete(context: &Context, token: &Arc<Secret>, key: &ObjectKey) -> Result<(), Error> {
    let api: Api<Secret> = Api::namespaced(context.client.clone(), &key.namespace);
    // One that was made anew by that name, or prolonged, is another.
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: token.metadata.uid.clone(),
            resource_version: token.metadata.resource_version.clone(),
        }),
        ..DeleteParams::default()
    };
    match api.delete(&key.name, &params).await {
        Ok(_) => {
            tracing::info!(token = key.name, "deleted expired bootstrap token");
            Ok(())
        }
        Err(error) if client::is_not_found(&error) || client::is_conflict(&error) => Ok(()),
        Err(source) => Err(Error::Delete {
            what: named::<Secret>(key),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use client::k8s_openapi::ByteString;

    #[test]
    fn what_has_expired_is_deleted() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let token = |type_: &str, expiration: Option<&str>| Secret {
            type_: Some(type_.to_owned()),
            data: expiration.map(|text| {
                let bytes = ByteString(text.as_bytes().to_vec());
                [(EXPIRATION.to_owned(), bytes)].into()
            }),
            ..Secret::default()
        };
        for (type_, expiration, verdict) in [
            (TYPE, None, Verdict::Keep),
            (TYPE, Some(""), Verdict::Keep),
            ("Opaque", Some("2025-01-01T00:00:00Z"), Verdict::Keep),
            (TYPE, Some("2025-12-31T23:59:59Z"), Verdict::Delete),
            (TYPE, Some("2026-01-01T00:00:00Z"), Verdict::Delete),
            (TYPE, Some("tomorrow"), Verdict::Delete),
            (
                TYPE,
                Some("2026-01-01T01:01:00+01:00"),
                Verdict::Later(Duration::from_secs(60)),
            ),
        ] {
            let judged = judge(&token(type_, expiration), now);
            assert_eq!(judged, verdict, "{type_} {expiration:?}");
        }
    }
}
