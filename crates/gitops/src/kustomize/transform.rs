//! Namespace, prefix and suffix, labels, annotations, replicas and images.
//!
//! Which fields of which kinds are touched are facts of kustomize's defaults; [`SELECTORS`]
//! and [`TEMPLATES`] hold them.

use super::BuildError;
use super::fields::{Spec, each, parts, put_pairs};
use super::file::{File, Image, Labels};
use super::resource::{Resource, Resources};
use serde_json::{Value, json};
use std::collections::BTreeMap;

type Pairs = BTreeMap<String, String>;

const DEPLOYED: &str = "spec/template/spec";

/// Selectors, written with `commonLabels` and `includeSelectors`.
const SELECTORS: &[Spec] = &[
    Spec::new("Service", "spec/selector", true),
    Spec::new("ReplicationController", "spec/selector", true),
    Spec::new("Deployment", "spec/selector/matchLabels", true),
    Spec::new("ReplicaSet", "spec/selector/matchLabels", true),
    Spec::new("DaemonSet", "spec/selector/matchLabels", true),
    Spec::new("StatefulSet", "spec/selector/matchLabels", true),
    Spec::new("Job", "spec/selector/matchLabels", false).of("batch"),
    Spec::new(
        "CronJob",
        "spec/jobTemplate/spec/selector/matchLabels",
        false,
    )
    .of("batch"),
    Spec::new("PodDisruptionBudget", "spec/selector/matchLabels", false).of("policy"),
    Spec::new("NetworkPolicy", "spec/podSelector/matchLabels", false).of("networking.k8s.io"),
    Spec::new(
        "NetworkPolicy",
        "spec/ingress/from/podSelector/matchLabels",
        false,
    )
    .of("networking.k8s.io"),
    Spec::new(
        "NetworkPolicy",
        "spec/egress/to/podSelector/matchLabels",
        false,
    )
    .of("networking.k8s.io"),
];

/// Below the pod's spec of Deployments and StatefulSets, with the selectors.
const AFFINITY: &[&str] = &[
    "affinity/podAffinity/preferredDuringSchedulingIgnoredDuringExecution/podAffinityTerm/labelSelector/matchLabels",
    "affinity/podAffinity/requiredDuringSchedulingIgnoredDuringExecution/labelSelector/matchLabels",
    "affinity/podAntiAffinity/preferredDuringSchedulingIgnoredDuringExecution/podAffinityTerm/labelSelector/matchLabels",
    "affinity/podAntiAffinity/requiredDuringSchedulingIgnoredDuringExecution/labelSelector/matchLabels",
    "topologySpreadConstraints/labelSelector/matchLabels",
];

/// Metadata inside objects, with `labels` or `annotations` to be appended.
const TEMPLATES: &[Spec] = &[
    Spec::new("ReplicationController", "spec/template/metadata", true),
    Spec::new("Deployment", "spec/template/metadata", true),
    Spec::new("ReplicaSet", "spec/template/metadata", true),
    Spec::new("DaemonSet", "spec/template/metadata", true),
    Spec::new("StatefulSet", "spec/template/metadata", true),
    Spec::new("Job", "spec/template/metadata", true).of("batch"),
    Spec::new("CronJob", "spec/jobTemplate/metadata", true).of("batch"),
    Spec::new("CronJob", "spec/jobTemplate/spec/template/metadata", true).of("batch"),
];

/// Kinds whose names stay as they are.
const UNPREFIXED: &[(&str, &str)] = &[
    ("apiextensions.k8s.io", "CustomResourceDefinition"),
    ("apiregistration.k8s.io", "APIService"),
    ("", "Namespace"),
];

/// Kinds that `replicas` is for.
const REPLICATED: &[&str] = &[
    "Deployment",
    "ReplicationController",
    "ReplicaSet",
    "StatefulSet",
];

/// What comes before JSON patches.
pub(crate) fn run(file: &File, resources: &mut Resources) -> Result<(), BuildError> {
    if let Some(namespace) = file.namespace.as_deref().filter(|n| !n.is_empty()) {
        for resource in &mut resources.list {
            set_namespace(resource, namespace);
        }
        unique(file, resources)?;
    }
    let prefix = file.name_prefix.as_deref().unwrap_or_default();
    let suffix = file.name_suffix.as_deref().unwrap_or_default();
    for resource in &mut resources.list {
        affix(resource, prefix, suffix);
    }
    for entry in &file.labels {
        for resource in &mut resources.list {
            label(resource, entry);
        }
    }
    let common = Labels {
        pairs: file.common_labels.clone(),
        include_selectors: true,
        ..Labels::default()
    };
    for resource in &mut resources.list {
        label(resource, &common);
        annotate(resource, &file.common_annotations);
    }
    Ok(())
}

/// What comes after them.
pub(crate) fn run_late(file: &File, resources: &mut Resources) -> Result<(), BuildError> {
    for wanted in &file.replicas {
        let mut found = false;
        for resource in &mut resources.list {
            let fits = REPLICATED.contains(&resource.kind())
                && resource.ids().any(|id| id.name == wanted.name);
            if fits {
                found = true;
                let count = json!(wanted.count);
                each(
                    &mut resource.value,
                    &parts("spec/replicas"),
                    Some(&count),
                    &mut |at| *at = count.clone(),
                );
            }
        }
        if !found {
            return Err(BuildError::Transform {
                path: file.path.clone(),
                why: format!(
                    "replicas: no {} is called {}",
                    REPLICATED.join(", "),
                    wanted.name
                ),
            });
        }
    }
    for image in &file.images {
        for resource in &mut resources.list {
            // A definition may have properties of such names.
            if resource.kind() != "CustomResourceDefinition" {
                set_images(&mut resource.value, image);
            }
        }
    }
    Ok(())
}

fn unique(file: &File, resources: &Resources) -> Result<(), BuildError> {
    let mut seen = std::collections::HashSet::new();
    for resource in &resources.list {
        let id = resource.id().to_string();
        if !resource.name().is_empty() && !seen.insert(id.clone()) {
            return Err(BuildError::Duplicate {
                path: file.path.clone(),
                id,
            });
        }
    }
    Ok(())
}

fn set_namespace(resource: &mut Resource, namespace: &str) {
    resource.remember();
    let to = json!(namespace);
    let at = |value: &mut Value, path: &str| {
        each(value, &parts(path), Some(&to), &mut |v| *v = to.clone());
    };
    match (resource.group(), resource.kind()) {
        ("", "Namespace") => at(&mut resource.value, "metadata/name"),
        ("apiregistration.k8s.io", "APIService") => {
            at(&mut resource.value, "spec/service/namespace");
        }
        ("apiextensions.k8s.io", "CustomResourceDefinition") => each(
            &mut resource.value,
            &parts("spec/conversion/webhook/clientConfig/service/namespace"),
            None,
            &mut |v| *v = to.clone(),
        ),
        _ => {
            if !resource.is_cluster_scoped() {
                at(&mut resource.value, "metadata/namespace");
            }
        }
    }
    if matches!(resource.kind(), "RoleBinding" | "ClusterRoleBinding") {
        let subjects = resource.value["subjects"].as_array_mut();
        for subject in subjects.into_iter().flatten() {
            if subject["kind"] == "ServiceAccount" && subject["name"] == "default" {
                subject["namespace"] = to.clone();
            }
        }
    }
}

fn affix(resource: &mut Resource, prefix: &str, suffix: &str) {
    let kept = UNPREFIXED
        .iter()
        .any(|(group, kind)| *group == resource.group() && *kind == resource.kind());
    if kept || resource.name().is_empty() {
        return;
    }
    if !prefix.is_empty() {
        resource.remember();
        resource.prefixes.push(prefix.to_owned());
        let name = format!("{prefix}{}", resource.name());
        resource.set_name(&name);
    }
    if !suffix.is_empty() {
        resource.remember();
        resource.suffixes.push(suffix.to_owned());
        let name = format!("{}{suffix}", resource.name());
        resource.set_name(&name);
    }
}

fn label(resource: &mut Resource, entry: &Labels) {
    let pairs = &entry.pairs;
    if pairs.is_empty() {
        return;
    }
    put_pairs(&mut resource.value, "metadata/labels", true, pairs.iter());
    if entry.include_selectors || entry.include_templates {
        in_templates(resource, "labels", pairs);
        if resource.kind() == "StatefulSet" {
            let path = "spec/volumeClaimTemplates/metadata/labels";
            let present = resource.value["spec"]["volumeClaimTemplates"].is_array();
            put_pairs(&mut resource.value, path, present, pairs.iter());
        }
    }
    if entry.include_selectors {
        for spec in SELECTORS {
            if spec.fits(resource) {
                put_pairs(&mut resource.value, spec.path, spec.create, pairs.iter());
            }
        }
        if resource.group() == "apps" && matches!(resource.kind(), "Deployment" | "StatefulSet") {
            for path in AFFINITY {
                let path = format!("{DEPLOYED}/{path}");
                put_pairs(&mut resource.value, &path, false, pairs.iter());
            }
        }
    }
    for spec in &entry.fields {
        if spec.fits(resource) {
            put_pairs(&mut resource.value, &spec.path, spec.create, pairs.iter());
        }
    }
}

fn annotate(resource: &mut Resource, pairs: &Pairs) {
    if !pairs.is_empty() {
        put_pairs(
            &mut resource.value,
            "metadata/annotations",
            true,
            pairs.iter(),
        );
        in_templates(resource, "annotations", pairs);
    }
}

fn in_templates(resource: &mut Resource, field: &str, pairs: &Pairs) {
    for spec in TEMPLATES {
        if spec.fits(resource) {
            let path = format!("{}/{field}", spec.path);
            put_pairs(&mut resource.value, &path, spec.create, pairs.iter());
        }
    }
}

/// Changes every image of containers, at any depth.
fn set_images(value: &mut Value, image: &Image) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                if matches!(key.as_str(), "containers" | "initContainers") {
                    for container in inner.as_array_mut().into_iter().flatten() {
                        if let Some(Value::String(text)) = container.get_mut("image")
                            && let Some(new) = replaced(text, image)
                        {
                            *text = new;
                        }
                    }
                } else {
                    set_images(inner, image);
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|v| set_images(v, image)),
        _ => {}
    }
}

/// An image after the change; none when it is another one.
fn replaced(text: &str, image: &Image) -> Option<String> {
    let rest = text.strip_prefix(&image.name)?;
    if !(rest.is_empty() || rest.starts_with(':') || rest.starts_with('@')) || rest.contains('/') {
        return None;
    }
    let (tag, digest) = match rest.split_once('@') {
        Some((tag, digest)) => (tag.strip_prefix(':'), Some(digest)),
        None => (rest.strip_prefix(':'), None),
    };
    let set = |field: &Option<String>| field.clone().filter(|f| !f.is_empty());
    let name = set(&image.new_name).unwrap_or_else(|| image.name.clone());
    let mut tag = tag.map(str::to_owned);
    let mut digest = digest.map(str::to_owned);
    match (set(&image.new_tag), set(&image.digest)) {
        (Some(new_tag), Some(new_digest)) => {
            tag = Some(new_tag);
            digest = Some(new_digest);
        }
        (Some(new), None) => {
            tag = Some(new);
            digest = None;
        }
        (None, Some(new)) => {
            tag = None;
            digest = Some(new);
        }
        (None, None) => {}
    }
    if let (Some(more), Some(tag)) = (set(&image.tag_suffix), &mut tag) {
        tag.push_str(&more);
    }
    let tag = tag.map(|t| format!(":{t}")).unwrap_or_default();
    let digest = digest.map(|d| format!("@{d}")).unwrap_or_default();
    Some(format!("{name}{tag}{digest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_told_apart_by_their_whole_name() {
        let image = |name: &str, tag: &str, digest: &str, new: &str| Image {
            name: name.into(),
            new_name: Some(new.into()),
            new_tag: Some(tag.into()),
            digest: Some(digest.into()),
            tag_suffix: None,
        };
        for (text, change, want) in [
            ("nginx", image("nginx", "2", "", ""), Some("nginx:2")),
            ("nginx:1", image("nginx", "2", "", ""), Some("nginx:2")),
            ("nginx:1", image("nginx", "", "", "x/y"), Some("x/y:1")),
            (
                "nginx:1",
                image("nginx", "", "sha256:a", ""),
                Some("nginx@sha256:a"),
            ),
            (
                "nginx@sha256:b",
                image("nginx", "2", "", ""),
                Some("nginx:2"),
            ),
            ("nginx-x:1", image("nginx", "2", "", ""), None),
            ("r:5000/nginx:1", image("nginx", "2", "", ""), None),
            ("r:5000/nginx", image("r", "2", "", ""), None),
            (
                "r:5000/nginx:1",
                image("r:5000/nginx", "2", "", ""),
                Some("r:5000/nginx:2"),
            ),
        ] {
            assert_eq!(
                replaced(text, &change).as_deref(),
                want,
                "{text} {change:?}"
            );
        }
    }
}
