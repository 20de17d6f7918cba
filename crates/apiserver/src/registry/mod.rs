//! The one generic registry behind every row of the resource table: create, get, list,
//! watch, update, patch, delete and the subresources.
//!
//! Start with [`Call`] (what all of them are given), then `create.rs` and `update.rs`.

pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod eviction;
pub(crate) mod list;
pub(crate) mod meta;
pub(crate) mod patch;
pub(crate) mod render;
pub(crate) mod subresource;
pub(crate) mod token_request;
pub(crate) mod update;
pub(crate) mod watch;

use crate::admission::Warnings;
use crate::authn::User;
use crate::cache::{Object, encode, store_key};
use crate::convert;
use crate::http::negotiate::unsupported_media;
use crate::row::Row;
use crate::server_state::Core;
use apimachinery::Status;
use apimachinery::apply::Manager;
use apimachinery::decode::{self, FieldValidation, MediaType};
use bytes::Bytes;
use serde_json::Value;
use std::sync::Arc;
use store::{Durability, Revision, Write};

/// Tries of a read-modify-write before it gives up with 409.
pub(crate) const WRITE_TRIES: usize = 16;

/// A request as the registry sees it.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) core: &'a Arc<Core>,
    /// The row that the request names.
    pub(crate) row: &'a Row,
    /// Empty for cluster-scoped kinds and for lists of all namespaces.
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) subresource: &'a str,
    pub(crate) user: &'a User,
    /// Everything is done but the write.
    pub(crate) dry_run: bool,
    /// `fieldManager`.
    pub(crate) manager: &'a str,
    /// What admission tells the client besides the answer.
    pub(crate) warnings: &'a Warnings,
}

/// A body and how it is encoded.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    pub(crate) media: MediaType,
    pub(crate) bytes: Bytes,
    pub(crate) validation: FieldValidation,
}

impl<'a> Call<'a> {
    /// One of the server itself, of an object. Parts with names of their own state them over it.
    pub(crate) fn own(
        core: &'a Arc<Core>,
        row: &'a Row,
        namespace: &'a str,
        name: &'a str,
        user: &'a User,
    ) -> Self {
        Self {
            core,
            row,
            namespace,
            name,
            subresource: "",
            user,
            dry_run: false,
            manager: "apiserver",
            warnings: Warnings::nobody(),
        }
    }
}

impl Call<'_> {
    /// `apiVersion` of the request.
    pub(crate) fn api_version(&self) -> String {
        self.row.api_version()
    }

    pub(crate) fn not_found(&self) -> Status {
        Status::not_found(self.row.group(), self.row.plural(), self.name)
    }

    pub(crate) fn forbidden(&self, detail: impl std::fmt::Display) -> Status {
        Status::forbidden(self.row.group(), self.row.plural(), self.name, detail)
    }

    /// The object as of now.
    pub(crate) async fn current(&self) -> Result<Arc<Object>, Status> {
        self.core.fresh().await?;
        let kind = self.core.kind(self.row)?;
        let object = kind.get(self.namespace, self.name);
        let object = object.ok_or_else(|| self.not_found())?;
        convert::prepare(self.core, self.row, std::slice::from_ref(&object)).await?;
        Ok(object)
    }

    /// An object parsed, in the version that the request speaks.
    pub(crate) fn view(&self, object: &Object) -> Value {
        convert::view(self.row, object)
    }

    /// Decodes a body that must be of the request's kind; warnings go to `warnings`.
    pub(crate) fn decode(
        &self,
        input: &Input,
        warnings: &mut Vec<String>,
    ) -> Result<Value, Status> {
        decode_kind(self.row, input, warnings)
    }

    /// Tells `managedFields` who writes.
    pub(crate) fn track(&self, live: Option<&Value>, new: &mut Value) -> Result<(), Status> {
        let (schema, ty) = self.row.schema()?;
        let (version, time) = (self.api_version(), self.core.timestamp());
        let manager = Manager {
            name: self.manager,
            api_version: &version,
            subresource: self.subresource,
            time: &time,
        };
        apimachinery::apply::update(schema, ty, live, new, &manager)
    }

    /// How soon this kind's writes must be on disk.
    fn durability(&self) -> Durability {
        match (self.row.known(), self.subresource) {
            // A node's status is a heartbeat too: it is sent again and again, and must be
            // tellable when the disk is what is wrong.
            ("events" | "leases", _) | ("nodes", "status") => Durability::Lazy,
            _ => Durability::Sync,
        }
    }

    /// Waits until the cache has a write, so that whatever follows it (roles, namespaces,
    /// accounts as admission and authorization read them) sees it. The write is done
    /// whether or not that succeeds.
    async fn seen(&self, revision: Revision) {
        if let Err(e) = self.core.cache.reach(revision.0).await {
            tracing::warn!(error = %e, "the cache is behind the store");
        }
    }

    /// An object as it is stored, for [`Self::insert`] and [`Self::replace`].
    pub(crate) async fn stored(&self, value: &Value) -> Result<Bytes, Status> {
        let stored = convert::stored(self.core, self.row, value).await?;
        Ok(encode(&stored).into())
    }

    /// What was written of a value; its own version needs no second conversion.
    fn written(&self, key: &str, bytes: Bytes, revision: u64, value: &Value) -> Arc<Object> {
        let made = object(self.row, key, bytes, revision);
        if matches!(self.row, Row::Custom(c) if c.conversion.is_some()) {
            made.keep_converted(self.row.version(), value);
        }
        made
    }

    /// A value that is shown and not stored.
    fn shown(&self, key: &str, value: &Value, revision: u64) -> Arc<Object> {
        let value = match self.row {
            Row::Custom(c) if c.conversion.is_some() => std::borrow::Cow::Borrowed(value),
            row => convert::to_stored(row, value),
        };
        object(self.row, key, Bytes::from(encode(&value)), revision)
    }

    /// Writes a new object.
    pub(crate) async fn insert(
        &self,
        key: &str,
        value: &Value,
        bytes: Bytes,
    ) -> Result<Arc<Object>, store::Error> {
        let record = self
            .core
            .store
            .write(
                &store_key(self.row, key),
                Write::Create {
                    value: bytes.clone(),
                },
                self.durability(),
            )
            .await?;
        self.seen(record.modified).await;
        Ok(self.written(key, bytes, record.modified.0, value))
    }

    /// Replaces an object that must be at `old`'s revision.
    pub(crate) async fn replace(
        &self,
        old: &Object,
        value: &Value,
        bytes: Bytes,
    ) -> Result<Arc<Object>, store::Error> {
        let write = Write::Update {
            value: bytes.clone(),
            expected: Revision(old.revision),
        };
        let record = self
            .core
            .store
            .write(&store_key(self.row, &old.key), write, self.durability())
            .await?;
        self.seen(record.modified).await;
        Ok(self.written(&old.key, bytes, record.modified.0, value))
    }

    /// Removes an object that must be at `old`'s revision; its last state is `value`.
    pub(crate) async fn remove(
        &self,
        old: &Object,
        value: &Value,
    ) -> Result<Arc<Object>, store::Error> {
        let write = Write::Delete {
            expected: Revision(old.revision),
        };
        let record = self
            .core
            .store
            .write(&store_key(self.row, &old.key), write, self.durability())
            .await?;
        if self.row.known() == "services" {
            self.core.services.release(value).await;
        }
        self.seen(record.modified).await;
        Ok(self.shown(&old.key, value, record.modified.0))
    }

    /// An object that was not written (dry run).
    pub(crate) fn unwritten(&self, key: &str, value: &Value, revision: u64) -> Arc<Object> {
        self.shown(key, value, revision)
    }
}

fn object(row: &Row, key: &str, bytes: Bytes, revision: u64) -> Arc<Object> {
    Arc::new(Object::made(row, key.into(), bytes, revision))
}

/// Decodes a body that must be of a row's kind.
pub(crate) fn decode_kind(
    row: &Row,
    input: &Input,
    warnings: &mut Vec<String>,
) -> Result<Value, Status> {
    if input.media == MediaType::Protobuf && matches!(row, Row::Custom(_)) {
        let types = ["application/json", "application/yaml", "application/cbor"];
        return Err(unsupported_media(
            &types,
            "application/vnd.kubernetes.protobuf",
        ));
    }
    let (version, kind) = decode::type_meta(input.media, &input.bytes)?;
    let want = row.api_version();
    if let Some(k) = kind.filter(|k| !k.is_empty() && k != row.kind()) {
        return Err(Status::bad_request(format!(
            "{k} in version {:?} cannot be handled as a {}: no kind {k:?} is registered for this resource",
            version.as_deref().unwrap_or(&want),
            row.kind()
        )));
    }
    if let Some(v) = version.filter(|v| !v.is_empty() && *v != want) {
        return Err(Status::bad_request(format!(
            "the API version in the data ({v}) does not match the expected API version ({want})"
        )));
    }
    let (schema, ty) = row.schema()?;
    let decoded = decode::decode(schema, ty, input.media, &input.bytes, input.validation)?;
    warnings.extend(decoded.warnings);
    let mut value = decoded.value;
    let Some(top) = value.as_object_mut() else {
        return Err(Status::bad_request("the object provided is not an object"));
    };
    top.insert("kind".to_owned(), row.kind().into());
    top.insert("apiVersion".to_owned(), want.into());
    if !top.get("metadata").is_some_and(Value::is_object) {
        top.insert("metadata".to_owned(), serde_json::json!({}));
    }
    Ok(value)
}

/// A store error of a write as a client sees it.
pub(crate) fn write_failed(call: &Call<'_>, name: &str, e: store::Error) -> Status {
    let (group, plural) = (call.row.group(), call.row.plural());
    match e {
        store::Error::Exists(_) => Status::already_exists(group, plural, name),
        store::Error::Conflict(None) => Status::not_found(group, plural, name),
        store::Error::Conflict(Some(_)) => Status::modified(group, plural, name),
        store::Error::Disk(source) => {
            call.core.disk_trouble.tell(&source);
            let cure = match source.kind() {
                std::io::ErrorKind::StorageFull => "; free space on the disk of the data directory",
                _ => "",
            };
            Status::new(
                507,
                "InsufficientStorage",
                format!("the write was not stored: {source}{cure}"),
            )
        }
        store::Error::Closed => Status::new(503, "ServiceUnavailable", "the server is stopping"),
        store::Error::TooLarge => Status::new(
            413,
            "RequestEntityTooLarge",
            "the object is larger than the store takes",
        ),
        // Nobody knows whether it was done: what clients are told of a time-out.
        store::Error::Unavailable(source) => Status::new(
            504,
            "Timeout",
            format!("the store does not answer: {source}"),
        ),
        other => Status::internal(other),
    }
}
