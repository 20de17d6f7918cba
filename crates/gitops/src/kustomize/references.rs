//! Names that point to renamed objects follow them.
//!
//! The table says which fields of which kinds name what; it holds what kustomize's has, no
//! more, so that both agree. Start with [`fix`].

use super::fields::{each, parts};
use super::resource::{Resource, Resources, effective};
use serde_json::Value;

/// Kinds that have a pod's spec, and where. Those that may name ConfigMaps and Secrets.
const CONFIGURED: &[(&str, &str)] = &[
    ("Pod", "spec"),
    ("PodTemplate", "template/spec"),
    ("Deployment", "spec/template/spec"),
    ("ReplicaSet", "spec/template/spec"),
    ("DaemonSet", "spec/template/spec"),
    ("StatefulSet", "spec/template/spec"),
    ("Job", "spec/template/spec"),
    ("CronJob", "spec/jobTemplate/spec/template/spec"),
];

/// Those that may name claims, priority classes and service accounts.
const PLACED: &[(&str, &str)] = &[
    ("Pod", "spec"),
    ("StatefulSet", "spec/template/spec"),
    ("Deployment", "spec/template/spec"),
    ("ReplicationController", "spec/template/spec"),
    ("CronJob", "spec/jobTemplate/spec/template/spec"),
    ("Job", "spec/template/spec"),
    ("DaemonSet", "spec/template/spec"),
];

/// A kind that is named.
struct Referent {
    /// Empty for any.
    group: &'static str,
    kind: &'static str,
    /// Below a pod's spec, in kinds of this list.
    pods: &'static [(&'static str, &'static str)],
    pod_paths: &'static [&'static str],
    /// Kinds and paths besides.
    others: &'static [(&'static str, &'static str)],
}

const RBAC: &str = "rbac.authorization.k8s.io";
const SCALED: &[(&str, &str)] = &[("HorizontalPodAutoscaler", "spec/scaleTargetRef/name")];

const REFERENTS: &[Referent] = &[
    scaled("Deployment"),
    scaled("ReplicationController"),
    scaled("ReplicaSet"),
    scaled("StatefulSet"),
    Referent {
        group: "",
        kind: "ConfigMap",
        pods: CONFIGURED,
        pod_paths: &[
            "volumes/configMap/name",
            "volumes/projected/sources/configMap/name",
            "containers/env/valueFrom/configMapKeyRef/name",
            "initContainers/env/valueFrom/configMapKeyRef/name",
            "containers/envFrom/configMapRef/name",
            "initContainers/envFrom/configMapRef/name",
        ],
        others: &[
            ("Role", "rules/resourceNames"),
            ("ClusterRole", "rules/resourceNames"),
            (
                "Ingress",
                r"metadata/annotations/nginx.ingress.kubernetes.io\/fastcgi-params-configmap",
            ),
        ],
    },
    Referent {
        group: "",
        kind: "Secret",
        pods: CONFIGURED,
        pod_paths: &[
            "volumes/secret/secretName",
            "volumes/projected/sources/secret/name",
            "containers/env/valueFrom/secretKeyRef/name",
            "initContainers/env/valueFrom/secretKeyRef/name",
            "containers/envFrom/secretRef/name",
            "initContainers/envFrom/secretRef/name",
            "imagePullSecrets/name",
        ],
        others: &[
            ("Ingress", "spec/tls/secretName"),
            (
                "Ingress",
                r"metadata/annotations/ingress.kubernetes.io\/auth-secret",
            ),
            (
                "Ingress",
                r"metadata/annotations/nginx.ingress.kubernetes.io\/auth-secret",
            ),
            (
                "Ingress",
                r"metadata/annotations/nginx.ingress.kubernetes.io\/auth-tls-secret",
            ),
            ("ServiceAccount", "imagePullSecrets/name"),
            ("StorageClass", "parameters/secretName"),
            ("StorageClass", "parameters/adminSecretName"),
            ("StorageClass", "parameters/userSecretName"),
            ("StorageClass", "parameters/secretRef"),
            ("Role", "rules/resourceNames"),
            ("ClusterRole", "rules/resourceNames"),
            ("PersistentVolume", "spec/azureFile/secretName"),
        ],
    },
    Referent {
        group: "",
        kind: "Service",
        pods: &[],
        pod_paths: &[],
        others: &[
            ("StatefulSet", "spec/serviceName"),
            ("Ingress", "spec/rules/http/paths/backend/serviceName"),
            ("Ingress", "spec/backend/serviceName"),
            ("Ingress", "spec/rules/http/paths/backend/service/name"),
            ("Ingress", "spec/defaultBackend/service/name"),
            ("APIService", "spec/service/name"),
            (
                "ValidatingWebhookConfiguration",
                "webhooks/clientConfig/service",
            ),
            (
                "MutatingWebhookConfiguration",
                "webhooks/clientConfig/service",
            ),
            ("HTTPRoute", "spec/rules/backendRefs/name"),
        ],
    },
    Referent {
        group: RBAC,
        kind: "Role",
        pods: &[],
        pod_paths: &[],
        others: &[("RoleBinding", "roleRef/name")],
    },
    Referent {
        group: RBAC,
        kind: "ClusterRole",
        pods: &[],
        pod_paths: &[],
        others: &[
            ("RoleBinding", "roleRef/name"),
            ("ClusterRoleBinding", "roleRef/name"),
        ],
    },
    Referent {
        group: "",
        kind: "ServiceAccount",
        pods: PLACED,
        pod_paths: &["serviceAccountName"],
        others: &[
            ("RoleBinding", "subjects"),
            ("ClusterRoleBinding", "subjects"),
        ],
    },
    Referent {
        group: "",
        kind: "PersistentVolumeClaim",
        pods: PLACED,
        pod_paths: &["volumes/persistentVolumeClaim/claimName"],
        others: &[],
    },
    Referent {
        group: "",
        kind: "PersistentVolume",
        pods: &[],
        pod_paths: &[],
        others: &[
            ("PersistentVolumeClaim", "spec/volumeName"),
            ("ClusterRole", "rules/resourceNames"),
        ],
    },
    Referent {
        group: "storage.k8s.io",
        kind: "StorageClass",
        pods: &[],
        pod_paths: &[],
        others: &[
            ("PersistentVolume", "spec/storageClassName"),
            ("PersistentVolumeClaim", "spec/storageClassName"),
            (
                "StatefulSet",
                "spec/volumeClaimTemplates/spec/storageClassName",
            ),
        ],
    },
    Referent {
        group: "scheduling.k8s.io",
        kind: "PriorityClass",
        pods: PLACED,
        pod_paths: &["priorityClassName"],
        others: &[],
    },
    Referent {
        group: "networking.k8s.io",
        kind: "IngressClass",
        pods: &[],
        pod_paths: &[],
        others: &[("Ingress", "spec/ingressClassName")],
    },
];

const fn scaled(kind: &'static str) -> Referent {
    Referent {
        group: "",
        kind,
        pods: &[],
        pod_paths: &[],
        others: SCALED,
    }
}

/// What is known of an object that may be named.
struct Candidate {
    group: String,
    kind: String,
    cluster_scoped: bool,
    namespace: String,
    name: String,
    /// Names before, with their namespaces.
    before: Vec<(String, String)>,
    prefixes: Vec<String>,
    suffixes: Vec<String>,
}

/// Makes all references follow.
///
/// # Errors
/// When one could mean several objects.
pub(crate) fn fix(resources: &mut Resources) -> Result<(), String> {
    let candidates: Vec<Candidate> = resources
        .list
        .iter()
        .filter(|r| !r.before.is_empty())
        .map(candidate)
        .collect();
    if candidates.is_empty() {
        return Ok(());
    }
    for resource in &mut resources.list {
        for referent in REFERENTS {
            fix_one(resource, referent, &candidates)?;
        }
    }
    Ok(())
}

fn candidate(resource: &Resource) -> Candidate {
    Candidate {
        group: resource.group().to_owned(),
        kind: resource.kind().to_owned(),
        cluster_scoped: resource.is_cluster_scoped(),
        namespace: resource.namespace().to_owned(),
        name: resource.name().to_owned(),
        before: resource
            .before
            .iter()
            .map(|id| (id.namespace.clone(), id.name.clone()))
            .collect(),
        prefixes: resource.prefixes.clone(),
        suffixes: resource.suffixes.clone(),
    }
}

fn fix_one(
    resource: &mut Resource,
    referent: &Referent,
    candidates: &[Candidate],
) -> Result<(), String> {
    let kind = resource.kind().to_owned();
    let mut paths: Vec<String> = Vec::new();
    for (_, spec) in referent.pods.iter().filter(|(k, _)| *k == kind) {
        paths.extend(referent.pod_paths.iter().map(|p| format!("{spec}/{p}")));
    }
    let others = referent.others.iter().filter(|(k, _)| *k == kind);
    paths.extend(others.map(|(_, p)| (*p).to_owned()));
    if paths.is_empty() {
        return Ok(());
    }
    let of_kind: Vec<&Candidate> = candidates
        .iter()
        .filter(|c| {
            c.kind == referent.kind && (referent.group.is_empty() || referent.group == c.group)
        })
        .collect();
    if of_kind.is_empty() {
        return Ok(());
    }
    let referrer = Referrer {
        text: resource.id().to_string(),
        cluster_scoped: resource.is_cluster_scoped(),
        namespace: resource.namespace().to_owned(),
        prefixes: resource.prefixes.clone(),
        suffixes: resource.suffixes.clone(),
        role_kind: resource.value["roleRef"]["kind"]
            .as_str()
            .map(str::to_owned),
    };
    // Of both kinds of roles a binding means one.
    if matches!(referent.kind, "Role" | "ClusterRole")
        && referrer.role_kind.as_deref() != Some(referent.kind)
    {
        return Ok(());
    }
    let mut failure = None;
    for path in paths {
        each(&mut resource.value, &parts(&path), None, &mut |at| {
            if let Err(why) = follow(at, &referrer, &of_kind) {
                failure = Some(why);
            }
        });
    }
    failure.map_or(Ok(()), Err)
}

struct Referrer {
    text: String,
    cluster_scoped: bool,
    namespace: String,
    prefixes: Vec<String>,
    suffixes: Vec<String>,
    role_kind: Option<String>,
}

fn follow(at: &mut Value, referrer: &Referrer, candidates: &[&Candidate]) -> Result<(), String> {
    match at {
        Value::String(name) => {
            if let Some(found) = find(name, None, referrer, candidates)? {
                name.clone_from(&found.name);
            }
        }
        Value::Array(list) => {
            for item in list {
                follow(item, referrer, candidates)?;
            }
        }
        Value::Object(map) => {
            let Some(name) = map.get("name").and_then(Value::as_str) else {
                return Ok(());
            };
            let namespace = map.get("namespace").and_then(Value::as_str);
            if let Some(found) = find(name, namespace, referrer, candidates)? {
                map.insert("name".into(), Value::String(found.name.clone()));
                if !found.namespace.is_empty() {
                    map.insert("namespace".into(), Value::String(found.namespace.clone()));
                }
            }
        }
        _ => {}
    }
    Ok(())
}

/// The object that a name means, if it is one that was renamed.
fn find<'a>(
    name: &str,
    namespace: Option<&str>,
    referrer: &Referrer,
    candidates: &[&'a Candidate],
) -> Result<Option<&'a Candidate>, String> {
    let mut left: Vec<&Candidate> = candidates
        .iter()
        .filter(|c| c.before.iter().any(|(_, n)| n == name))
        .filter(|c| {
            referrer.cluster_scoped
                || c.cluster_scoped
                || c.kind == "ServiceAccount"
                || effective(&c.namespace) == effective(&referrer.namespace)
        })
        .copied()
        .collect();
    if let Some(namespace) = namespace {
        let original = |c: &&&Candidate| {
            c.before
                .first()
                .is_some_and(|(ns, _)| effective(ns) == effective(namespace))
        };
        let current = |c: &&&Candidate| effective(&c.namespace) == effective(namespace);
        let narrowed: Vec<&Candidate> = if left.iter().any(|c| original(&c)) {
            left.iter().filter(original).copied().collect()
        } else {
            left.iter().filter(current).copied().collect()
        };
        left = narrowed;
    }
    if left.len() > 1 {
        left.retain(|c| {
            ends_alike(&c.prefixes, &referrer.prefixes)
                && ends_alike(&c.suffixes, &referrer.suffixes)
        });
    }
    if left.len() > 1 && left.iter().any(|c| c.kind == "ServiceAccount") {
        let near = |c: &&Candidate| effective(&c.namespace) == effective(&referrer.namespace);
        if left.iter().any(near) {
            left.retain(near);
        }
    }
    match left.as_slice() {
        [] => Ok(None),
        [first, rest @ ..] if rest.iter().all(|c| c.name == first.name) => Ok(Some(first)),
        _ => Err(format!(
            "{}: {name} could be {}",
            referrer.text,
            left.iter()
                .map(|c| c.name.as_str())
                .collect::<Vec<_>>()
                .join(" or ")
        )),
    }
}

/// Whether one was renamed as the other, at least by the layers that both went through.
fn ends_alike(a: &[String], b: &[String]) -> bool {
    a.ends_with(b) || b.ends_with(a)
}
