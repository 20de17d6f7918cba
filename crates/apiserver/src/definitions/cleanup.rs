//! Deletes the objects of a definition that is being deleted, and then lets it go.

use super::{Definition, settle};
use crate::registry::create::Tracking;
use crate::registry::delete::{self, DeleteOptions};
use crate::registry::update::{Part, modify};
use crate::registry::{Call, meta};
use crate::row::Row;
use apimachinery::Status;
use futures::StreamExt as _;
use serde_json::json;

/// Keeps a definition until its objects are gone.
pub(crate) const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

/// Objects deleted at once; the store commits them together.
const AT_ONCE: usize = 32;

/// One round: deletes what is there; when nothing is left the definition goes. Objects with
/// finalizers of their own call for another round when they end.
pub(super) async fn clean(call: &Call<'_>, definition: &Definition) -> Result<(), Status> {
    let value = call.view(&*call.current().await?);
    if !meta::finalizers(&value).contains(&FINALIZER) {
        return Ok(());
    }
    let kind = call
        .core
        .cache
        .named(&definition.names.group, &definition.names.plural);
    if let (Some(kind), Some(version)) = (&kind, definition.stored()) {
        let row = Row::Custom(version);
        let options = DeleteOptions::default();
        let mut all = Vec::new();
        for object in kind.all() {
            let (row, options) = (&row, &options);
            all.push(async move {
                let one = Call {
                    row,
                    namespace: object.namespace(),
                    name: object.name(),
                    subresource: "",
                    ..*call
                };
                delete::delete(&one, options).await
            });
        }
        let mut done = futures::stream::iter(all).buffer_unordered(AT_ONCE);
        while let Some(result) = done.next().await {
            match result {
                Err(s) if s.code != 404 => return Err(s),
                _ => {}
            }
        }
    }
    if kind.is_some_and(|k| k.len() > 0) {
        let now = call.core.timestamp();
        modify(call, Part::Status, Tracking::Update, &|old| {
            let mut new = old.clone();
            let message = "CustomResource deletion is in progress";
            let terminating = ("Terminating", true, "InstanceDeletionInProgress", message);
            settle::set(&mut new["status"], terminating, &now);
            Ok(new)
        })
        .await?;
        return Ok(());
    }
    let main = Call {
        subresource: "",
        ..*call
    };
    modify(&main, Part::Main, Tracking::Update, &|old| {
        let mut new = old.clone();
        let rest: Vec<&str> = meta::finalizers(old)
            .into_iter()
            .filter(|f| *f != FINALIZER)
            .collect();
        let rest = json!(rest);
        meta::of_mut(&mut new).insert("finalizers".to_owned(), rest);
        Ok(new)
    })
    .await
    .map(drop)
}
