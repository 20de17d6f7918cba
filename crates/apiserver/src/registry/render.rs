//! Objects and lists in the shape that the client asked for.

use super::list::Page;
use crate::cache::Object;
use crate::convert;
use crate::http::negotiate::{Accepted, CBOR, Encoding, PROTOBUF, Shape};
use crate::http::respond::{self, Body, PIECE, to_json};
use crate::row::Row;
use apimachinery::schema::{Schema, TypeId};
use apimachinery::{Status, cbor, protobuf};
use http::Response;
use serde_json::{Value, json};

/// How a request's objects are shown.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) row: Row,
    pub(crate) accepted: Accepted,
    /// `includeObject` of Tables.
    pub(crate) include: Include,
    /// Unix seconds, for ages.
    pub(crate) now: i64,
}

/// What a Table row carries of its object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Include {
    None,
    #[default]
    Metadata,
    Object,
}

impl Include {
    pub(crate) fn parse(text: Option<&str>) -> Result<Self, Status> {
        match text {
            None | Some("Metadata") => Ok(Self::Metadata),
            Some("None") => Ok(Self::None),
            Some("Object") => Ok(Self::Object),
            Some(other) => Err(Status::bad_request(format!(
                "unrecognized includeObject value: {other:?}"
            ))),
        }
    }
}

/// Objects of a list in protobuf or CBOR after which others get their turn: some hundred microseconds.
const ENCODED_AT_ONCE: usize = 64;
/// What an item adds to a piece beyond the size that ends it, mostly.
const ITEM_ROOM: usize = 8 * 1024;
const PARTIAL: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadata";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

impl View {
    /// One object as an answer.
    pub(crate) fn answer(&self, code: u16, object: &Object) -> Result<Response<Body>, Status> {
        let media = match self.accepted.encoding {
            Encoding::Json | Encoding::Yaml => {
                return Ok(respond::encoded(code, self.accepted, self.object(object)));
            }
            Encoding::Protobuf => PROTOBUF,
            Encoding::Cbor => CBOR,
        };
        let mut out = Vec::with_capacity(object.bytes.len());
        self.write_enclosed(object, &mut out)?;
        Ok(respond::bytes(code, media, out))
    }

    /// A list as an answer.
    pub(crate) async fn answer_list(&self, page: Page) -> Result<Response<Body>, Status> {
        let page = match (self.accepted.encoding, self.accepted.shape) {
            (_, Shape::Table) => {
                let objects: Vec<&Object> = page.objects.iter().map(|o| &**o).collect();
                let table = self.table(&objects, &list_meta(&page), true);
                return Ok(respond::encoded(200, self.accepted, to_json(&table)));
            }
            (Encoding::Protobuf, _) => &page,
            (Encoding::Cbor, _) => return self.sequence(&page).await,
            (encoding, _) => {
                let mut body = self.list(page);
                if encoding == Encoding::Json {
                    return Ok(respond::body(200, "application/json", body));
                }
                body.make();
                let json = body.full().map(|bytes| bytes.to_vec());
                return Ok(respond::encoded(
                    200,
                    self.accepted,
                    json.unwrap_or_default(),
                ));
            }
        };
        let (schema, ty, ..) = self.message()?;
        let meta_ty = struct_type(LIST_META)?;
        let (kind, version) = self.list_kind();
        let size: usize = page.objects.iter().map(|o| o.bytes.len()).sum();
        let mut items = Vec::with_capacity(size / 2);
        let mut text = Vec::new();
        for some in page.objects.chunks(ENCODED_AT_ONCE) {
            for object in some {
                protobuf::nested(&mut items, 2, |out| {
                    self.write_message((schema, ty), object, &mut text, out)
                })?;
            }
            tokio::task::yield_now().await;
        }
        let mut out = Vec::with_capacity(items.len() + 256);
        protobuf::enclose(&mut out, &version, &kind, |out| {
            protobuf::nested(out, 1, |out| {
                protobuf::write_value(schema, meta_ty, &list_meta(page), out);
            });
            out.append(&mut items);
        });
        Ok(respond::bytes(200, PROTOBUF, out))
    }

    /// A list in CBOR.
    async fn sequence(&self, page: &Page) -> Result<Response<Body>, Status> {
        let (kind, version) = self.list_kind();
        let size: usize = page.objects.iter().map(|o| o.bytes.len()).sum();
        let mut out = Vec::with_capacity(size + 256);
        cbor::enclose(&mut out, |out| {
            cbor::map(4, out);
            for (key, text) in [("kind", &kind), ("apiVersion", &version)] {
                cbor::string(key.as_bytes(), out);
                cbor::string(text.as_bytes(), out);
            }
            cbor::string(b"metadata", out);
            cbor::write(None, &list_meta(page), out);
            cbor::string(b"items", out);
            cbor::array(page.objects.len(), out);
        });
        for some in page.objects.chunks(ENCODED_AT_ONCE) {
            for object in some {
                self.write_cbor(object, &mut out)?;
            }
            tokio::task::yield_now().await;
        }
        Ok(respond::bytes(200, CBOR, out))
    }

    /// Appends one object in CBOR.
    fn write_cbor(&self, object: &Object, out: &mut Vec<u8>) -> Result<(), Status> {
        let text = self.object(object);
        let value: Value = serde_json::from_slice(&text).map_err(Status::internal)?;
        // Of bytes and floats only built-in kinds know, and no metadata has any.
        let ty = match (self.accepted.shape, &self.row) {
            (Shape::Object, Row::Builtin(_)) => self.row.schema().ok(),
            _ => None,
        };
        cbor::write(ty, &value, out);
        Ok(())
    }

    /// Appends one object in protobuf with its envelope, or in CBOR with the tag that marks it.
    pub(crate) fn write_enclosed(&self, object: &Object, out: &mut Vec<u8>) -> Result<(), Status> {
        if self.accepted.encoding == Encoding::Cbor {
            out.extend_from_slice(&cbor::MAGIC);
            return self.write_cbor(object, out);
        }
        let (schema, ty, version, kind) = self.message()?;
        protobuf::enclose(out, &version, kind, |out| {
            self.write_message((schema, ty), object, &mut Vec::new(), out)
        })
    }

    /// Type of the messages, and the version and kind that their envelopes name.
    fn message(&self) -> Result<(&Schema, TypeId, String, &str), Status> {
        if self.accepted.shape == Shape::Metadata {
            let ty = struct_type(PARTIAL)?;
            let kind = "PartialObjectMetadata";
            let version = self.accepted.meta().to_owned();
            return Ok((Schema::builtin(), ty, version, kind));
        }
        let (schema, ty) = self.row.schema()?;
        Ok((schema, ty, self.row.api_version(), self.row.kind()))
    }

    /// Appends one object's message, from its JSON text, for which `text` has room.
    fn write_message(
        &self,
        (schema, ty): (&Schema, TypeId),
        object: &Object,
        text: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<(), Status> {
        text.clear();
        match self.accepted.shape {
            Shape::Metadata => object.write_metadata(self.accepted.meta(), text),
            _ => self.write_object(object, text),
        }
        protobuf::write_text(schema, ty, text, out).map_err(Status::internal)
    }

    /// Kind and version of lists.
    fn list_kind(&self) -> (String, String) {
        if self.accepted.shape == Shape::Metadata {
            let version = self.accepted.meta().to_owned();
            ("PartialObjectMetadataList".to_owned(), version)
        } else {
            (self.row.list_kind(), self.row.api_version())
        }
    }

    /// One object as JSON text.
    fn object(&self, object: &Object) -> Vec<u8> {
        let mut out = Vec::with_capacity(object.bytes.len() + 64);
        match self.accepted.shape {
            Shape::Table => {
                let meta = version_meta(object.revision);
                out = to_json(&self.table(&[object], &meta, true));
            }
            Shape::Metadata => object.write_metadata(self.accepted.meta(), &mut out),
            _ => self.write_object(object, &mut out),
        }
        out
    }

    /// Appends the plain object in the row's version.
    pub(crate) fn write_object(&self, object: &Object, out: &mut Vec<u8>) {
        if convert::differs(&self.row, object) {
            out.extend(to_json(&convert::view(&self.row, object)));
        } else {
            object.write_json(out);
        }
    }

    /// A list as JSON text.
    fn list(&self, page: Page) -> Body {
        let meta = list_meta(&page);
        let (kind, version) = self.list_kind();
        let head = format!(
            "{{\"kind\":\"{kind}\",\"apiVersion\":\"{version}\",\"metadata\":{meta},\"items\":["
        );
        // What a webhook has converted is kept for the last version that was asked for.
        let at_once = page.objects.iter().any(|o| convert::differs(&self.row, o));
        let most: usize = page.objects.iter().map(|o| o.bytes.len() + 40).sum();
        let room = most.min(PIECE) + head.len() + ITEM_ROOM;
        let mut out = Vec::with_capacity(room);
        out.extend_from_slice(head.as_bytes());
        let view = self.clone();
        let mut objects = page.objects.into_iter();
        let mut next = Some(out);
        let mut comma = false;
        let mut body = Body::pieces(std::iter::from_fn(move || {
            let mut out = next.take()?;
            for object in objects.by_ref() {
                if std::mem::replace(&mut comma, true) {
                    out.push(b',');
                }
                view.write_item(&object, &mut out);
                if out.len() >= PIECE {
                    next = Some(Vec::with_capacity(room));
                    return Some(out.into());
                }
            }
            out.extend_from_slice(b"]}");
            Some(out.into())
        }));
        if at_once {
            body.make();
        }
        body
    }

    /// Appends an item of a list.
    fn write_item(&self, object: &Object, out: &mut Vec<u8>) {
        if self.accepted.shape == Shape::Metadata {
            object.write_metadata(self.accepted.meta(), out);
        } else if convert::differs(&self.row, object) {
            self.write_object(object, out);
        } else {
            object.write_item(out);
        }
    }

    /// A Table; columns are left out in all but the first event of a watch.
    pub(crate) fn table(&self, objects: &[&Object], meta: &Value, with_columns: bool) -> Value {
        let rows: Vec<Value> = objects.iter().map(|o| self.table_row(o)).collect();
        let mut table = json!({
            "kind": "Table", "apiVersion": self.accepted.meta(), "metadata": meta,
            "columnDefinitions": null, "rows": rows,
        });
        if with_columns {
            table["columnDefinitions"] = columns(&self.row);
        }
        table
    }

    fn table_row(&self, object: &Object) -> Value {
        let value = convert::view(&self.row, object);
        let mut cells = Vec::with_capacity(self.row.column_count() + 1);
        if self.row.name_column() {
            cells.push(Value::from(object.name()));
        }
        cells.extend(self.row.cells(&value, self.now));
        let shown = match self.include {
            Include::None => Value::Null,
            Include::Object => value,
            Include::Metadata => json!({
                "kind": "PartialObjectMetadata", "apiVersion": self.accepted.meta(),
                "metadata": value["metadata"],
            }),
        };
        json!({"cells": cells, "object": shown})
    }
}

fn struct_type(name: &str) -> Result<TypeId, Status> {
    let found = Schema::builtin().by_name(name);
    found.ok_or_else(|| Status::internal(format!("no schema for {name}")))
}

fn list_meta(page: &Page) -> Value {
    let mut meta = version_meta(page.revision);
    if let Some(next) = &page.next {
        meta["continue"] = next.as_str().into();
        if let Some(n) = page.remaining {
            meta["remainingItemCount"] = n.into();
        }
    }
    meta
}

/// List metadata with a resourceVersion.
pub(crate) fn version_meta(revision: u64) -> Value {
    json!({"resourceVersion": revision.to_string()})
}

fn columns(row: &Row) -> Value {
    let mut out = Vec::with_capacity(row.column_count() + 1);
    if row.name_column() {
        out.push(json!({
            "name": "Name", "type": "string", "format": "name", "priority": 0,
            "description": "Name must be unique within a namespace.",
        }));
    }
    out.extend(row.columns());
    Value::Array(out)
}
