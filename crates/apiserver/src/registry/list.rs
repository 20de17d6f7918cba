//! Lists: selectors, paging at one revision, and where each page is read.

use crate::cache::{Cache, Kind, Object, Snapshot};
use crate::http::request::Query;
use crate::row::Row;
use crate::server_state::Core;
use apimachinery::Status;
use apimachinery::selector::{FieldSelector, LabelSelector};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use store::{RangeRequest, Revision};

/// Which objects a list or watch is about.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    pub(crate) row: Option<Row>,
    pub(crate) namespace: String,
    pub(crate) labels: LabelSelector,
    pub(crate) fields: FieldSelector,
}

impl Filter {
    /// Reads `labelSelector` and `fieldSelector`.
    ///
    /// # Errors
    /// 400 for malformed selectors and fields that the kind can't be chosen by.
    pub(crate) fn parse(row: &Row, namespace: &str, query: &Query) -> Result<Self, Status> {
        let labels = query
            .get("labelSelector")
            .map(LabelSelector::parse)
            .transpose()?;
        let mut fields = query
            .get("fieldSelector")
            .map(FieldSelector::parse)
            .transpose()?
            .unwrap_or_default();
        let stored = row.stored_row();
        for (path, _, _) in &mut fields.requirements {
            // Events are stored under their core names.
            if row.stored_elsewhere()
                && let Some(rest) = path.strip_prefix("regarding.")
            {
                *path = format!("involvedObject.{rest}");
            }
            let known = matches!(path.as_str(), "metadata.name" | "metadata.namespace")
                || stored.selectable(path);
            if !known {
                return Err(Status::bad_request(format!(
                    "Unable to find {:?} that match label selector {:?}, field selector {:?}: field label not supported: {path}",
                    format!("{}, Resource={}", row.api_version(), row.plural()),
                    query.get("labelSelector").unwrap_or_default(),
                    query.get("fieldSelector").unwrap_or_default(),
                )));
            }
        }
        Ok(Self {
            row: Some(stored),
            namespace: namespace.to_owned(),
            labels: labels.unwrap_or_default(),
            fields,
        })
    }

    /// Whether an object is among those asked for.
    pub(crate) fn matches(&self, o: &Object) -> bool {
        (self.namespace.is_empty() || self.namespace == o.namespace())
            && (self.labels.requirements.is_empty() || self.labels.matches(|k| o.label(k)))
            && (self.fields.requirements.is_empty()
                || self
                    .row
                    .as_ref()
                    .is_some_and(|row| self.fields_match(row, o)))
    }

    fn fields_match(&self, row: &Row, o: &Object) -> bool {
        let mut all = self.fields.requirements.iter();
        all.all(|(path, value, equal)| (o.field(row, path) == *value) == *equal)
    }

    /// Whether every object of the namespace matches.
    pub(crate) fn is_all(&self) -> bool {
        self.labels.requirements.is_empty() && self.fields.requirements.is_empty()
    }
}

/// One page of a list.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) objects: Vec<Arc<Object>>,
    pub(crate) revision: u64,
    /// Token of the next page.
    pub(crate) next: Option<String>,
    /// How many come after it; known only without selectors.
    pub(crate) remaining: Option<usize>,
}

/// Where a page starts.
#[derive(Debug, Deserialize, Serialize)]
struct Continue {
    v: String,
    rv: u64,
    start: String,
}

/// What a list asks of revisions and size.
#[derive(Debug, Default)]
struct Options {
    limit: usize,
    resume: Option<Continue>,
    /// Not older than this.
    at_least: u64,
    /// Exactly this.
    exact: Option<u64>,
    /// Any revision will do (`resourceVersion=0`).
    any: bool,
}

impl Options {
    fn parse(query: &Query) -> Result<Self, Status> {
        let mut o = Self {
            limit: query.number::<usize>("limit")?.unwrap_or(0),
            ..Self::default()
        };
        let version = revision_parameter(query)?;
        let matching = query.get("resourceVersionMatch");
        if let Some(token) = query.get("continue") {
            if version.is_some_and(|v| v > 0) || matching.is_some() {
                return Err(Status::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            let bad = || Status::bad_request("continue key is not valid");
            let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| bad())?;
            let resume: Continue = serde_json::from_slice(&bytes).map_err(|_| bad())?;
            o.resume = Some(resume);
            return Ok(o);
        }
        match (version, matching) {
            (None, None) => {}
            (None, Some(_)) => {
                return Err(Status::bad_request(
                    "resourceVersionMatch is forbidden unless resourceVersion is provided",
                ));
            }
            (Some(v), Some("Exact")) if v > 0 => o.exact = Some(v),
            (Some(_), Some("Exact")) => {
                return Err(Status::bad_request(
                    "resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"",
                ));
            }
            (Some(0), None | Some("NotOlderThan")) => o.any = true,
            (Some(v), Some("NotOlderThan")) => o.at_least = v,
            // With a limit and no match rule upstream reads exactly that revision.
            (Some(v), None) if o.limit > 0 => o.exact = Some(v),
            (Some(v), None) => o.at_least = v,
            (Some(_), Some(other)) => {
                return Err(Status::bad_request(format!(
                    "resourceVersionMatch: Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\""
                )));
            }
        }
        Ok(o)
    }
}

/// `resourceVersion` of a query.
pub(crate) fn revision_parameter(query: &Query) -> Result<Option<u64>, Status> {
    query
        .get("resourceVersion")
        .map(|v| {
            v.parse().map_err(|_| {
                Status::bad_request(format!("invalid resource version {v:?}: strconv.ParseUint: parsing {v:?}: invalid syntax"))
            })
        })
        .transpose()
}

/// Reads one page.
pub(crate) async fn list(core: &Arc<Core>, filter: &Filter, query: &Query) -> Result<Page, Status> {
    let options = Options::parse(query)?;
    let row = filter.row.as_ref();
    let row = row.ok_or_else(|| Status::internal("list without a kind"))?;
    let kind = &core.kind(row)?;
    if options.at_least > 0 {
        core.cache.reach(options.at_least).await?;
    }
    if !options.any {
        core.fresh().await?;
    }
    let after = options.resume.as_ref().map(|r| r.start.clone());
    let wanted = options.exact.or(options.resume.as_ref().map(|r| r.rv));
    let snapshot = match wanted {
        // The cache is still what it was then.
        Some(at) if kind.revision() <= at && at <= core.cache.applied() => {
            let mut s = from_cache(&core.cache, kind, filter, after.as_deref());
            if s.revision > at && kind.revision() > at {
                s = from_store(core, kind, filter, after.as_deref(), at).await?;
            }
            Snapshot { revision: at, ..s }
        }
        Some(at) => from_store(core, kind, filter, after.as_deref(), at).await?,
        None => from_cache(&core.cache, kind, filter, after.as_deref()),
    };
    Ok(page(snapshot, filter, options.limit))
}

fn from_cache(cache: &Cache, kind: &Kind, filter: &Filter, after: Option<&str>) -> Snapshot {
    kind.list(&filter.namespace, after, cache.applied())
}

/// Reads an older revision.
async fn from_store(
    core: &Core,
    kind: &Kind,
    filter: &Filter,
    after: Option<&str>,
    at: u64,
) -> Result<Snapshot, Status> {
    let base = kind.prefix();
    let prefix = if filter.namespace.is_empty() {
        base.clone()
    } else {
        format!("{base}{}/", filter.namespace)
    };
    let request = RangeRequest {
        prefix,
        after: after.map(|a| format!("{base}{a}")),
        limit: 0,
        at: Some(Revision(at)),
    };
    let range = core.store.range(request).await.map_err(|e| match e {
        store::Error::Compacted(_) => Status::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results.",
        ),
        store::Error::Future(newest) => Status::new(
            504,
            "Timeout",
            format!("Too large resource version: {at}, current: {}", newest.0),
        ),
        e => Status::internal(e),
    })?;
    let objects = range
        .records
        .into_iter()
        .filter_map(|r| {
            let key = r.key.strip_prefix(&base)?.into();
            Object::parse(kind.table, key, r.value, r.modified.0).map(Arc::new)
        })
        .collect();
    Ok(Snapshot {
        objects,
        revision: at,
    })
}

fn page(snapshot: Snapshot, filter: &Filter, limit: usize) -> Page {
    let Snapshot {
        mut objects,
        revision,
    } = snapshot;
    if !filter.is_all() {
        objects.retain(|o| filter.matches(o));
    }
    if limit == 0 || objects.len() <= limit {
        return Page {
            objects,
            revision,
            next: None,
            remaining: None,
        };
    }
    let remaining = objects.len() - limit;
    objects.truncate(limit);
    let next = objects.last().map(|last| {
        let token = Continue {
            v: "meta.k8s.io/v1".to_owned(),
            rv: revision,
            start: last.key.to_string(),
        };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
    });
    Page {
        objects,
        revision,
        next,
        remaining: filter.is_all().then_some(remaining),
    }
}
