//! A container's environment, program and arguments: values from literals, fields,
//! resources, ConfigMaps, Secrets and Services, with `$(NAME)` expanded.
//!
//! Pure: whatever must be fetched was fetched before ([`PodObjects`]).

use crate::objects::{Kind, PodObjects};
use apimachinery::quantity::Quantity;
use k8s_openapi::api::core::v1 as core;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

/// What fields may refer to beside the pod object.
#[derive(Clone, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) pod: &'a core::Pod,
    pub(crate) pod_ip: Option<IpAddr>,
    pub(crate) node_ip: IpAddr,
    pub(crate) node_name: &'a str,
    /// Stands in for limits that a container does not state.
    pub(crate) allocatable: &'a BTreeMap<String, Quantity>,
}

/// Why a container's configuration is not complete; Display is what users see.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("{} {name:?} not found", .kind.word())]
    ObjectNotFound { kind: Kind, name: String },
    #[error("couldn't find key {key} in {} {namespace}/{name}", .kind.title())]
    KeyNotFound {
        kind: Kind,
        namespace: String,
        name: String,
        key: String,
    },
    #[error("field label not supported: {0}")]
    Field(String),
    #[error("resource not supported: {0}")]
    Resource(String),
    #[error("container {0} not found")]
    Container(String),
    #[error("{0} is not supported on this node")]
    Unsupported(&'static str),
}

/// The environment in order; a name stands once, with its last value.
pub(crate) fn environment(
    container: &core::Container,
    facts: &Facts<'_>,
    objects: &PodObjects,
    services: &[Arc<core::Service>],
) -> Result<Vec<(String, String)>, ConfigError> {
    let mut env = Env::default();
    for (name, value) in service_env(facts.pod, services) {
        env.set(name, value);
    }
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let source = match (&from.config_map_ref, &from.secret_ref) {
            (Some(r), _) => Some((Kind::ConfigMap, &r.name, r.optional)),
            (None, Some(r)) => Some((Kind::Secret, &r.name, r.optional)),
            (None, None) => None,
        };
        let Some((kind, name, optional)) = source else {
            continue;
        };
        match objects.get(kind, name) {
            Some(object) => {
                for (key, value) in &object.data {
                    env.set(
                        format!("{prefix}{key}"),
                        String::from_utf8_lossy(value).into_owned(),
                    );
                }
            }
            None if optional == Some(true) => {}
            None => return Err(not_found(kind, name)),
        }
    }
    for var in container.env.iter().flatten() {
        let value = match &var.value_from {
            Some(source) => match value_from(source, container, facts, objects)? {
                Some(value) => value,
                None => continue,
            },
            None => expand(var.value.as_deref().unwrap_or_default(), |n| env.get(n)),
        };
        env.set(var.name.clone(), value);
    }
    Ok(env.list)
}

#[derive(Default)]
struct Env {
    list: Vec<(String, String)>,
    places: HashMap<String, usize>,
}

impl Env {
    fn set(&mut self, name: String, value: String) {
        if let Some(at) = self.places.get(&name) {
            self.list[*at].1 = value;
            return;
        }
        self.places.insert(name.clone(), self.list.len());
        self.list.push((name, value));
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.places.get(name).map(|at| self.list[*at].1.as_str())
    }
}

fn value_from(
    source: &core::EnvVarSource,
    container: &core::Container,
    facts: &Facts<'_>,
    objects: &PodObjects,
) -> Result<Option<String>, ConfigError> {
    if let Some(field) = &source.field_ref {
        return field_value(&field.field_path, facts).map(Some);
    }
    if let Some(resource) = &source.resource_field_ref {
        return resource_value(resource, Some(container), facts).map(Some);
    }
    let (kind, name, key, optional) = if let Some(r) = &source.config_map_key_ref {
        (Kind::ConfigMap, &r.name, &r.key, r.optional)
    } else if let Some(r) = &source.secret_key_ref {
        (Kind::Secret, &r.name, &r.key, r.optional)
    } else {
        return Err(ConfigError::Unsupported("fileKeyRef"));
    };
    let Some(object) = objects.get(kind, name) else {
        return if optional == Some(true) {
            Ok(None)
        } else {
            Err(not_found(kind, name))
        };
    };
    match object.data.get(key) {
        Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
        None if optional == Some(true) => Ok(None),
        None => Err(ConfigError::KeyNotFound {
            kind,
            namespace: facts.pod.metadata.namespace.clone().unwrap_or_default(),
            name: name.clone(),
            key: key.clone(),
        }),
    }
}

fn not_found(kind: Kind, name: &str) -> ConfigError {
    ConfigError::ObjectNotFound {
        kind,
        name: name.into(),
    }
}

/// The value of a `fieldPath`.
pub(crate) fn field_value(path: &str, facts: &Facts<'_>) -> Result<String, ConfigError> {
    let meta = &facts.pod.metadata;
    let spec = facts.pod.spec.as_ref();
    let ip = |ip: Option<IpAddr>| ip.map(|ip| ip.to_string()).unwrap_or_default();
    Ok(match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "metadata.labels" => list_map(meta.labels.as_ref()),
        "metadata.annotations" => list_map(meta.annotations.as_ref()),
        "spec.nodeName" => facts.node_name.into(),
        "spec.serviceAccountName" => spec
            .and_then(|s| s.service_account_name.clone())
            .unwrap_or_else(|| "default".into()),
        "status.hostIP" | "status.hostIPs" => facts.node_ip.to_string(),
        "status.podIP" | "status.podIPs" => ip(facts.pod_ip),
        _ => {
            let (map, key) = if let Some(key) = subscript(path, "metadata.labels") {
                (meta.labels.as_ref(), key)
            } else if let Some(key) = subscript(path, "metadata.annotations") {
                (meta.annotations.as_ref(), key)
            } else {
                return Err(ConfigError::Field(path.into()));
            };
            map.and_then(|m| m.get(key)).cloned().unwrap_or_default()
        }
    })
}

/// `key` of `base['key']`.
fn subscript<'a>(path: &'a str, base: &str) -> Option<&'a str> {
    path.strip_prefix(base)?
        .strip_prefix("['")?
        .strip_suffix("']")
}

/// `key="value"` a line, quoted as Go's `%q`.
fn list_map(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={}", serde_json::Value::from(v.as_str())))
        .collect();
    lines.join("\n")
}

/// The value of a `resourceFieldRef`, in units of its divisor, rounded up.
pub(crate) fn resource_value(
    selector: &core::ResourceFieldSelector,
    own: Option<&core::Container>,
    facts: &Facts<'_>,
) -> Result<String, ConfigError> {
    let container = match selector.container_name.as_deref() {
        None | Some("") => own,
        Some(name) => facts.pod.spec.as_ref().and_then(|s| {
            s.containers
                .iter()
                .chain(s.init_containers.iter().flatten())
                .find(|c| c.name == name)
        }),
    };
    let container = container.ok_or_else(|| {
        ConfigError::Container(selector.container_name.clone().unwrap_or_default())
    })?;
    let (which, name) = selector
        .resource
        .split_once('.')
        .ok_or_else(|| ConfigError::Resource(selector.resource.clone()))?;
    let resources = container.resources.as_ref();
    let stated = match which {
        "limits" => resources.and_then(|r| r.limits.as_ref()?.get(name)),
        "requests" => resources.and_then(|r| r.requests.as_ref()?.get(name)),
        _ => return Err(ConfigError::Resource(selector.resource.clone())),
    };
    let value = match stated {
        Some(q) => {
            q.0.parse::<Quantity>()
                .map_err(|_| ConfigError::Resource(selector.resource.clone()))?
        }
        None if which == "limits" => facts.allocatable.get(name).copied().unwrap_or_default(),
        None => Quantity::default(),
    };
    let divisor = selector
        .divisor
        .as_ref()
        .and_then(|d| d.0.parse::<Quantity>().ok())
        .map(|d| d.nano)
        .filter(|d| *d > 0)
        .unwrap_or(1_000_000_000);
    let units = value.nano / divisor + i128::from(value.nano % divisor > 0);
    Ok(units.to_string())
}

/// Expands `$(NAME)`; `$$` stands for `$`, unknown names are left as they are.
pub(crate) fn expand<'v>(text: &str, value: impl Fn(&str) -> Option<&'v str>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest
            .strip_prefix('(')
            .and_then(|inner| inner.split_once(')'))
        {
            match value(name) {
                Some(v) => out.push_str(v),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// `{NAME}_SERVICE_HOST` and its kin, of the services that the pod may see.
fn service_env(pod: &core::Pod, services: &[Arc<core::Service>]) -> Vec<(String, String)> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let links = pod
        .spec
        .as_ref()
        .and_then(|s| s.enable_service_links)
        .unwrap_or(true);
    let mut env = Vec::new();
    for service in services {
        let meta = &service.metadata;
        let name = meta.name.as_deref().unwrap_or_default();
        let of = meta.namespace.as_deref().unwrap_or_default();
        let master = of == "default" && name == "kubernetes";
        if !(master || links && of == namespace) {
            continue;
        }
        let Some(spec) = service.spec.as_ref() else {
            continue;
        };
        let ip = match spec.cluster_ip.as_deref() {
            None | Some("" | "None") => continue,
            Some(ip) => ip,
        };
        one_service(
            name,
            ip,
            spec.ports.as_deref().unwrap_or_default(),
            &mut env,
        );
    }
    env
}

fn one_service(name: &str, ip: &str, ports: &[core::ServicePort], env: &mut Vec<(String, String)>) {
    let name = name.to_uppercase().replace('-', "_");
    let Some(first) = ports.first() else {
        return;
    };
    env.push((format!("{name}_SERVICE_HOST"), ip.into()));
    env.push((format!("{name}_SERVICE_PORT"), first.port.to_string()));
    for port in ports {
        if let Some(port_name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            let port_name = port_name.to_uppercase().replace('-', "_");
            env.push((
                format!("{name}_SERVICE_PORT_{port_name}"),
                port.port.to_string(),
            ));
        }
    }
    let host = if ip.contains(':') {
        format!("[{ip}]")
    } else {
        ip.to_string()
    };
    for (index, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let lower = protocol.to_lowercase();
        let url = format!("{lower}://{host}:{}", port.port);
        if index == 0 {
            env.push((format!("{name}_PORT"), url.clone()));
        }
        let stem = format!("{name}_PORT_{}_{protocol}", port.port);
        env.push((stem.clone(), url));
        env.push((format!("{stem}_PROTO"), lower));
        env.push((format!("{stem}_PORT"), port.port.to_string()));
        env.push((format!("{stem}_ADDR"), ip.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::ObjectData;
    use expect_test::expect;
    use serde_json::json;

    fn facts<'a>(pod: &'a core::Pod, allocatable: &'a BTreeMap<String, Quantity>) -> Facts<'a> {
        Facts {
            pod,
            pod_ip: Some([10, 42, 0, 7].into()),
            node_ip: [192, 0, 2, 1].into(),
            node_name: "n1",
            allocatable,
        }
    }

    fn pod() -> core::Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u1",
                "labels": {"app": "web"}, "annotations": {"a/b": "say \"hi\""}},
            "spec": {"containers": [], "serviceAccountName": "robot"},
        }))
        .unwrap()
    }

    fn objects() -> PodObjects {
        let mut objects = PodObjects::default();
        let data = |pairs: &[(&str, &str)]| {
            Arc::new(ObjectData {
                data: pairs
                    .iter()
                    .map(|(k, v)| ((*k).into(), v.as_bytes().to_vec()))
                    .collect(),
                ..ObjectData::default()
            })
        };
        objects.insert(
            Kind::ConfigMap,
            "conf",
            data(&[("color", "red"), ("size", "9")]),
        );
        objects.insert(Kind::Secret, "key", data(&[("token", "t0p")]));
        objects
    }

    fn check(container: serde_json::Value, expected: expect_test::Expect) {
        let container: core::Container = serde_json::from_value(container).unwrap();
        let pod = pod();
        let allocatable = BTreeMap::from([(
            "cpu".to_string(),
            Quantity {
                nano: 4_000_000_000,
            },
        )]);
        let services: Vec<Arc<core::Service>> = vec![Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": "kubernetes", "namespace": "default"},
                "spec": {"clusterIP": "10.43.0.1", "ports": [{"name": "https", "port": 443}]},
            }))
            .unwrap(),
        )];
        let text = match environment(
            &container,
            &facts(&pod, &allocatable),
            &objects(),
            &services,
        ) {
            Ok(env) => env
                .iter()
                .filter(|(k, _)| !k.starts_with("KUBERNETES_"))
                .map(|(k, v)| format!("{k}={v}\n"))
                .collect(),
            Err(error) => format!("error: {error}"),
        };
        expected.assert_eq(&text);
    }

    #[test]
    fn values_from_everywhere_in_order() {
        check(
            json!({"name": "c",
            "envFrom": [{"prefix": "C_", "configMapRef": {"name": "conf"}},
                {"secretRef": {"name": "absent", "optional": true}}],
            "env": [
                {"name": "A", "value": "1"},
                {"name": "B", "value": "$(A)-$(C_color)-$$(A)-$(NO)"},
                {"name": "A", "value": "2"},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                {"name": "ANN", "valueFrom": {"fieldRef": {"fieldPath": "metadata.annotations"}}},
                {"name": "SA", "valueFrom": {"fieldRef": {"fieldPath": "spec.serviceAccountName"}}},
                {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "key", "key": "token"}}},
                {"name": "NONE", "valueFrom": {"secretKeyRef": {"name": "key", "key": "x", "optional": true}}},
            ]}),
            expect![[r#"
                C_color=red
                C_size=9
                A=2
                B=1-red-$(A)-$(NO)
                IP=10.42.0.7
                APP=web
                ANN=a/b="say \"hi\""
                SA=robot
                CPU=4
                TOKEN=t0p
            "#]],
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        check(
            json!({"name": "c", "envFrom": [{"configMapRef": {"name": "nope"}}]}),
            expect![[r#"error: configmap "nope" not found"#]],
        );
        check(
            json!({"name": "c", "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "key", "key": "x"}}}]}),
            expect!["error: couldn't find key x in Secret shop/key"],
        );
        check(
            json!({"name": "c", "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.x"}}}]}),
            expect!["error: field label not supported: spec.x"],
        );
    }

    #[test]
    fn services_are_told_in_upstreams_words() {
        let pod = pod();
        let service: core::Service = serde_json::from_value(json!({
            "metadata": {"name": "my-db", "namespace": "shop"},
            "spec": {"clusterIP": "10.43.0.9", "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}]},
        }))
        .unwrap();
        let text: String = service_env(&pod, &[Arc::new(service)])
            .iter()
            .map(|(k, v)| format!("{k}={v}\n"))
            .collect();
        expect![[r#"
            MY_DB_SERVICE_HOST=10.43.0.9
            MY_DB_SERVICE_PORT=5432
            MY_DB_SERVICE_PORT_SQL=5432
            MY_DB_PORT=tcp://10.43.0.9:5432
            MY_DB_PORT_5432_TCP=tcp://10.43.0.9:5432
            MY_DB_PORT_5432_TCP_PROTO=tcp
            MY_DB_PORT_5432_TCP_PORT=5432
            MY_DB_PORT_5432_TCP_ADDR=10.43.0.9
        "#]]
        .assert_eq(&text);
    }
}
