//! Which encodings a request speaks: `Accept`, `Content-Type`, `Accept-Encoding`.

use apimachinery::Status;
use apimachinery::decode::MediaType;
use http::HeaderMap;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE};

/// Media type of Kubernetes' protobuf encoding.
pub(crate) const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
/// Media type of one object in CBOR.
pub(crate) const CBOR: &str = "application/cbor";
/// Media type of a watch in CBOR.
pub(crate) const CBOR_SEQUENCE: &str = "application/cbor-seq";

const YAML: &str = "application/yaml";
const JSON: &str = "application/json";

/// Encoding of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Json,
    Yaml,
    Protobuf,
    Cbor,
}

/// Shape that an object or list is turned into before it is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// As it is.
    Object,
    /// Table of `meta.k8s.io`.
    Table,
    /// `PartialObjectMetadata` or its list.
    Metadata,
    /// Aggregated discovery v2.
    Discovery,
}

/// What an answer must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Accepted {
    pub(crate) encoding: Encoding,
    pub(crate) shape: Shape,
    /// A Table or metadata in the version that older clients know.
    pub(crate) beta: bool,
}

impl Accepted {
    /// Plain JSON.
    pub(crate) const JSON: Self = Self {
        encoding: Encoding::Json,
        shape: Shape::Object,
        beta: false,
    };

    /// `apiVersion` of Tables and metadata.
    pub(crate) fn meta(self) -> &'static str {
        if self.beta {
            "meta.k8s.io/v1beta1"
        } else {
            "meta.k8s.io/v1"
        }
    }
}

/// What an endpoint can answer with besides plain objects in JSON, YAML and CBOR.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offer<'a> {
    pub(crate) shapes: &'a [Shape],
    /// Plain objects are there in protobuf: those of custom resources are not.
    pub(crate) messages: bool,
    /// It is a watch, which YAML has no form for and CBOR another.
    pub(crate) stream: bool,
}

/// How an error is told: as the client wants it if it can be, else in JSON.
pub(crate) fn of_errors(headers: &HeaderMap) -> Accepted {
    let offer = Offer {
        shapes: &[],
        messages: true,
        stream: false,
    };
    accept(headers, offer).unwrap_or(Accepted::JSON)
}

/// Picks the first clause of `Accept` that this server speaks.
///
/// # Errors
/// 406 when there is none.
pub(crate) fn accept(headers: &HeaderMap, offer: Offer<'_>) -> Result<Accepted, Status> {
    let mut any = false;
    let mut clauses: Vec<(f32, &str)> = Vec::new();
    for value in headers.get_all(ACCEPT) {
        for clause in value.to_str().unwrap_or_default().split(',') {
            let clause = clause.trim();
            if clause.is_empty() {
                continue;
            }
            any = true;
            let q = parameters(clause)
                .find(|(k, _)| *k == "q")
                .and_then(|(_, v)| v.parse().ok())
                .unwrap_or(1.0);
            clauses.push((q, clause));
        }
    }
    if !any {
        return Ok(Accepted::JSON);
    }
    clauses.sort_by(|a, b| b.0.total_cmp(&a.0));
    clauses
        .iter()
        .filter(|(q, _)| *q > 0.0)
        .find_map(|(_, c)| clause_accepts(c, offer))
        .ok_or_else(|| not_acceptable(offer))
}

fn not_acceptable(offer: Offer<'_>) -> Status {
    let types = match (offer.stream, offer.messages) {
        (false, true) => vec![JSON, YAML, PROTOBUF, CBOR],
        (false, false) => vec![JSON, YAML, CBOR],
        (true, true) => vec![
            "application/json;stream=watch",
            "application/vnd.kubernetes.protobuf;stream=watch",
            CBOR_SEQUENCE,
        ],
        (true, false) => vec!["application/json;stream=watch", CBOR_SEQUENCE],
    };
    let types = types.join(", ");
    let message = format!("only the following media types are accepted: {types}");
    Status::new(406, "NotAcceptable", message)
}

fn clause_accepts(clause: &str, offer: Offer<'_>) -> Option<Accepted> {
    let media = clause.split(';').next().unwrap_or_default().trim();
    let encoding = match media.to_ascii_lowercase().as_str() {
        JSON | "*/*" | "application/*" | "text/*" => Encoding::Json,
        YAML if !offer.stream => Encoding::Yaml,
        PROTOBUF => Encoding::Protobuf,
        // Upstream answers a watch that asks for one object with a sequence, too.
        CBOR => Encoding::Cbor,
        CBOR_SEQUENCE if offer.stream => Encoding::Cbor,
        _ => return None,
    };
    let find = |key: &str| parameters(clause).find(|(k, _)| *k == key).map(|(_, v)| v);
    if find("stream").is_some_and(|s| s != "watch" || encoding == Encoding::Yaml) {
        return None;
    }
    let mut beta = false;
    let shape = match find("as") {
        None if encoding == Encoding::Protobuf && !offer.messages => return None,
        None => Shape::Object,
        Some(kind) => {
            let (group, version) = (find("g").unwrap_or_default(), find("v").unwrap_or_default());
            beta = version == "v1beta1";
            let shape = match (kind, group, version) {
                // Tables have no messages.
                ("Table", "meta.k8s.io", "v1" | "v1beta1") if encoding != Encoding::Protobuf => {
                    Shape::Table
                }
                (
                    "PartialObjectMetadata" | "PartialObjectMetadataList",
                    "meta.k8s.io",
                    "v1" | "v1beta1",
                ) => Shape::Metadata,
                ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2") => Shape::Discovery,
                _ => return None,
            };
            if !offer.shapes.contains(&shape) {
                return None;
            }
            shape
        }
    };
    Some(Accepted {
        encoding,
        shape,
        beta,
    })
}

fn parameters(clause: &str) -> impl Iterator<Item = (&str, &str)> {
    clause.split(';').skip(1).filter_map(|p| {
        let (k, v) = p.split_once('=')?;
        Some((k.trim(), v.trim().trim_matches('"')))
    })
}

/// The media type of a body, without parameters; JSON when not stated.
pub(crate) fn content_type(headers: &HeaderMap) -> String {
    headers
        .get(CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .map(|v| {
            v.split(';')
                .next()
                .unwrap_or_default()
                .trim()
                .to_ascii_lowercase()
        })
        .filter(|v| !v.is_empty())
        .unwrap_or_else(|| "application/json".to_owned())
}

/// The decoder of a body.
///
/// # Errors
/// 415 for types that are not spoken.
pub(crate) fn body_media(headers: &HeaderMap) -> Result<MediaType, Status> {
    match content_type(headers).as_str() {
        JSON | "*/*" => Ok(MediaType::Json),
        YAML | "application/x-yaml" | "text/yaml" => Ok(MediaType::Yaml),
        PROTOBUF => Ok(MediaType::Protobuf),
        CBOR => Ok(MediaType::Cbor),
        other => Err(unsupported_media(&[JSON, YAML, PROTOBUF, CBOR], other)),
    }
}

/// 415 with the types that would do.
pub(crate) fn unsupported_media(accepted: &[&str], got: &str) -> Status {
    Status::new(
        415,
        "UnsupportedMediaType",
        format!(
            "the body of the request was in an unknown format - accepted media types include: {} (got {got})",
            accepted.join(", ")
        ),
    )
}

/// Whether the client takes gzip.
pub(crate) fn takes_gzip(headers: &HeaderMap) -> bool {
    headers
        .get_all(ACCEPT_ENCODING)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .any(|e| e.split(';').next().is_some_and(|e| e.trim() == "gzip"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(accept_header: &str, messages: bool) -> Result<Accepted, u16> {
        let mut h = HeaderMap::new();
        if !accept_header.is_empty() {
            h.insert(ACCEPT, accept_header.parse().unwrap());
        }
        let shapes = &[Shape::Table, Shape::Metadata];
        let offer = Offer {
            shapes,
            messages,
            stream: false,
        };
        accept(&h, offer).map_err(|s| s.code)
    }

    #[test]
    fn accept_header() {
        let table = Accepted {
            encoding: Encoding::Json,
            shape: Shape::Table,
            beta: false,
        };
        let meta = Accepted {
            encoding: Encoding::Json,
            shape: Shape::Metadata,
            beta: false,
        };
        let yaml = Accepted {
            encoding: Encoding::Yaml,
            ..Accepted::JSON
        };
        let cbor = Accepted {
            encoding: Encoding::Cbor,
            ..Accepted::JSON
        };
        let old = |shape| Accepted {
            shape,
            beta: true,
            ..Accepted::JSON
        };
        let protobuf = |shape| Accepted {
            encoding: Encoding::Protobuf,
            shape,
            beta: false,
        };
        let cases = [
            ("", Ok(Accepted::JSON)),
            ("*/*", Ok(Accepted::JSON)),
            ("application/yaml", Ok(yaml)),
            (
                "application/vnd.kubernetes.protobuf,application/json",
                Ok(protobuf(Shape::Object)),
            ),
            (PROTOBUF, Ok(protobuf(Shape::Object))),
            (
                "application/json;q=0.5, application/vnd.kubernetes.protobuf;stream=watch",
                Ok(protobuf(Shape::Object)),
            ),
            (
                "application/vnd.kubernetes.protobuf;q=0.5, application/json",
                Ok(Accepted::JSON),
            ),
            ("application/vnd.kubernetes.protobuf;stream=else", Err(406)),
            (
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json",
                Ok(protobuf(Shape::Metadata)),
            ),
            (
                "application/vnd.kubernetes.protobuf;as=Table;g=meta.k8s.io;v=v1,application/json",
                Ok(Accepted::JSON),
            ),
            ("application/cbor, text/html", Ok(cbor)),
            ("application/cbor-seq, text/html", Err(406)),
            ("application/yaml;stream=watch", Err(406)),
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
                Ok(table),
            ),
            (
                "application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
                Ok(old(Shape::Table)),
            ),
            (
                "application/json;as=PartialObjectMetadata;v=v1beta1;g=meta.k8s.io",
                Ok(old(Shape::Metadata)),
            ),
            (
                "application/json;as=Table;v=v1alpha1;g=meta.k8s.io,application/json",
                Ok(Accepted::JSON),
            ),
            (
                "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
                Ok(meta),
            ),
            ("application/json;q=0.1, application/yaml;q=0.9", Ok(yaml)),
        ];
        for (header, want) in cases {
            assert_eq!(of(header, true), want, "{header}");
        }
        // Of custom resources there is only metadata in protobuf.
        assert_eq!(of(PROTOBUF, false), Err(406));
        let either = format!("{PROTOBUF},application/json");
        assert_eq!(of(&either, false), Ok(Accepted::JSON));
        let partial = format!("{PROTOBUF};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1");
        assert_eq!(of(&partial, false), Ok(protobuf(Shape::Metadata)));
    }
}
