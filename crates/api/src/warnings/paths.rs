//! Files of one volume that hide each other.

use crate::access::{at, list, text};
use serde_json::Value;
use std::collections::BTreeSet;

/// Warns of a volume whose files are at paths that overlap.
pub(super) fn overlapping(all: &mut Vec<String>, volume: &Value) {
    let name = text(volume, "name");
    for (kind, field, named) in [
        ("ConfigMap", "configMap", Some("name")),
        ("Secret", "secret", Some("secretName")),
        ("DownwardAPI", "downwardAPI", None),
    ] {
        if let Some(source) = volume.get(field) {
            overlaps(all, &headed(name, kind, source, named), &files(source));
        }
    }
    let Some(projected) = volume.get("projected") else {
        return;
    };
    let mut before: BTreeSet<&str> = BTreeSet::new();
    for source in list(projected, "sources") {
        let Some((kind, source, named)) = kind_of(source) else {
            all.push(format!(
                "volume {name:?} (Projected) has no sources provided"
            ));
            continue;
        };
        let own = match source.get("path") {
            Some(path) => path.as_str().into_iter().collect(),
            None => files(source),
        };
        let head = headed(name, &format!("Projected {kind}"), source, named);
        overlaps(all, &head, &own);
        let unique: BTreeSet<&str> = own.into_iter().collect();
        let mut together: Vec<&str> = unique.iter().chain(&before).copied().collect();
        together.sort_unstable();
        overlaps(all, &head, &together);
        before.extend(unique);
    }
}

/// Which of its kinds a projected source is of, and the field that names its object.
fn kind_of(source: &Value) -> Option<(&'static str, &Value, Option<&'static str>)> {
    let of = |kind, field: &str, named| source.get(field).map(|s| (kind, s, named));
    of("ConfigMap", "configMap", Some("name"))
        .or_else(|| of("Secret", "secret", Some("name")))
        .or_else(|| of("DownwardAPI", "downwardAPI", None))
        .or_else(|| of("ServiceAccountToken", "serviceAccountToken", None))
        .or_else(|| {
            let bundle = source.get("clusterTrustBundle")?;
            let named = ["name", "signerName"].into_iter();
            let named = named.into_iter().find(|field| bundle.get(field).is_some());
            Some(("ClusterTrustBundle", bundle, named))
        })
        .or_else(|| of("PodCertificate", "podCertificate", None))
}

fn headed(volume: &str, kind: &str, source: &Value, named: Option<&str>) -> String {
    let object = named.map_or(String::new(), |field| format!(" {:?}", text(source, field)));
    format!("volume {volume:?} ({kind}{object}): overlapping paths")
}

fn files(source: &Value) -> Vec<&str> {
    let items = list(source, "items").iter();
    items.filter_map(|item| at(item, "path").as_str()).collect()
}

fn overlaps(all: &mut Vec<String>, head: &str, paths: &[&str]) {
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for path in paths {
        let path = path.trim_end_matches('/');
        if let Some(other) = seen
            .iter()
            .find(|other| within(path, other) || within(other, path))
        {
            all.push(format!("{head}: {path:?} with {other:?}"));
        }
        seen.insert(path);
    }
}

/// Whether a path is another or lies below it.
fn within(path: &str, other: &str) -> bool {
    let rest = path.strip_prefix(other);
    !other.is_empty() && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
