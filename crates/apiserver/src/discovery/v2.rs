//! `/openapi/v2`: one document of everything, made of the v3 documents of this server's
//! group-versions one after another, in the form that a client asks for, and of what extension
//! servers last said of theirs: none is asked for it.

use super::{Served, document, document_hash, document_value};
use crate::aggregation::Part;
use crate::http::respond::{self, Body};
use crate::server_state::Core;
use apimachinery::Status;
use apimachinery::openapi::v2::{Document, Format};
use http::header::{ACCEPT, HeaderValue, VARY};
use http::{HeaderMap, Response};
use sha2::{Digest as _, Sha256};
use std::io::Write as _;
use std::sync::Arc;

/// Media types that are answered, as upstream's `k8s.io/kube-openapi/pkg/handler` has them.
/// The first two are the same: the `@` is no letter of a media type, and still asked for.
const MEDIA: [(&str, Format); 3] = [
    (
        "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
        Format::Protobuf,
    ),
    (
        "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
        Format::Protobuf,
    ),
    ("application/json", Format::Json),
];

/// The form that a client asks for, the first that is known; none: it takes no such form.
fn format(headers: &HeaderMap) -> Option<Format> {
    let mut asked = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(|clause| clause.split(';').next().unwrap_or_default().trim())
        .filter(|media| !media.is_empty())
        .peekable();
    if asked.peek().is_none() {
        return Some(Format::Json);
    }
    asked.find_map(|media| match media {
        "*/*" | "application/*" => Some(Format::Json),
        _ => MEDIA.iter().find(|(m, _)| *m == media).map(|(_, f)| *f),
    })
}

/// Answers a request for the document.
pub(super) fn answer(core: &Core, headers: &HeaderMap) -> Result<Response<Body>, Status> {
    let Some(format) = format(headers) else {
        return Ok(respond::text(406, "406 not acceptable\n"));
    };
    let media = match format {
        Format::Json => "application/json",
        Format::Protobuf => MEDIA[0].0,
    };
    let served = Served::now(core);
    let hash = hash(&served);
    let mut response = document(headers, media, &hash, || {
        let name = match format {
            Format::Json => "v2",
            Format::Protobuf => "v2 protobuf",
        };
        core.openapi.packed(name, &hash, |packer| {
            packer.write_all(&text(&served, format))
        })
    })?;
    let accept = HeaderValue::from_static("Accept");
    response.headers_mut().insert(VARY, accept);
    Ok(response)
}

/// Of everything that the document is made of.
fn hash(served: &Served) -> String {
    let mut hash = Sha256::new();
    let by_version = served.by_version();
    for (group, version) in served.group_versions() {
        if let Some(rows) = by_version.get(&(group, version)) {
            hash.update(document_hash(group, version, rows));
        }
    }
    for part in parts(served) {
        hash.update(&part.hash);
    }
    hex::encode_upper(hash.finalize())
}

/// What extension servers have.
fn parts(served: &Served) -> impl Iterator<Item = Arc<Part>> {
    let told = served.1.iter().filter_map(|remote| remote.resources().0);
    told.filter_map(|told| told.v2.clone())
}

fn text(served: &Served, format: Format) -> Vec<u8> {
    let mut document = Document::new(format);
    let by_version = served.by_version();
    for (group, version) in served.group_versions() {
        if let Some(rows) = by_version.get(&(group, version)) {
            document.add(document_value(group, version, rows));
        }
    }
    // After all of this server's own: those keep their names.
    for part in parts(served) {
        match part.unpack() {
            Ok(part) => document.merge(part),
            Err(error) => tracing::error!(%error, "unpacking an OpenAPI v2 document"),
        }
    }
    document.finish(api::constants::KUBERNETES_VERSION)
}
