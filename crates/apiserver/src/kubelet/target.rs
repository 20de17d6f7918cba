//! Where a node's part of the API is: the URL of a kubelet, a pod or a service.

use crate::http::request::Query;
use crate::registry::Call;
use apimachinery::Status;
use serde_json::Value;

/// Default kubelet port.
const KUBELET_PORT: u64 = 10250;

/// The URL that answers a request.
pub(super) async fn url(call: &Call<'_>, query: &Query, tail: &str) -> Result<String, Status> {
    if call.subresource == "proxy" {
        return proxy(call, query, tail).await;
    }
    let pod = call.view(&*call.current().await?);
    match call.subresource {
        "log" => log_url(call, query, &pod),
        "exec" | "attach" => {
            let container = container(call, query, &pod)?;
            let path = format!(
                "{}/{}/{}/{container}",
                call.subresource, call.namespace, call.name
            );
            // The kubelet calls the streams by other names.
            let mut out = url::form_urlencoded::Serializer::new(String::new());
            for (ours, theirs) in [
                ("stdin", "input"),
                ("stdout", "output"),
                ("stderr", "error"),
                ("tty", "tty"),
            ] {
                if query.flag(ours) {
                    out.append_pair(theirs, "1");
                }
            }
            for word in query.all("command") {
                out.append_pair("command", word);
            }
            Ok(format!(
                "{}/{path}?{}",
                kubelet_of(call, &pod)?,
                out.finish()
            ))
        }
        _ => {
            let ports: String = query.all("ports").collect::<Vec<_>>().join(",");
            let question = if ports.is_empty() {
                String::new()
            } else {
                format!("?port={ports}")
            };
            Ok(format!(
                "{}/portForward/{}/{}{question}",
                kubelet_of(call, &pod)?,
                call.namespace,
                call.name
            ))
        }
    }
}

/// `[scheme:]name[:port]`, as the name of a proxied pod, service or node is written.
fn split(name: &str) -> (&str, &str, &str) {
    match name.split(':').collect::<Vec<_>>().as_slice() {
        [name, port] => ("", name, port),
        [scheme, name, port] => (scheme, name, port),
        _ => ("", name, ""),
    }
}

async fn proxy(call: &Call<'_>, query: &Query, tail: &str) -> Result<String, Status> {
    let (scheme, name, port) = split(call.name);
    let object = call.view(&*Call { name, ..*call }.current().await?);
    let scheme = if scheme.is_empty() { "http" } else { scheme };
    let base = match call.row.known() {
        "nodes" => base_of(&object, name)?,
        "pods" => {
            let ip = object["status"]["podIP"].as_str().unwrap_or_default();
            if ip.is_empty() {
                return Err(Status::bad_request(format!(
                    "pod {name} has no address yet"
                )));
            }
            let first = &object["spec"]["containers"][0]["ports"][0]["containerPort"];
            let port = if port.is_empty() {
                first.as_u64().unwrap_or(80).to_string()
            } else {
                port.to_owned()
            };
            format!("{scheme}://{}:{port}", host(ip))
        }
        _ => service_base(call, &object, scheme, port)?,
    };
    let tail = if tail.is_empty() { "/" } else { tail };
    Ok(format!("{base}{tail}{}", raw_query(query)))
}

/// A ready endpoint of a service.
fn service_base(
    call: &Call<'_>,
    service: &Value,
    scheme: &str,
    port: &str,
) -> Result<String, Status> {
    let name = service["metadata"]["name"].as_str().unwrap_or_default();
    let ports: &[Value] = service["spec"]["ports"]
        .as_array()
        .map_or(&[], Vec::as_slice);
    let chosen = ports.iter().find(|p| {
        port.is_empty()
            || p["name"] == port
            || p["port"].as_u64().is_some_and(|n| n.to_string() == port)
    });
    let none = || {
        Status::new(
            503,
            "ServiceUnavailable",
            format!("no endpoints available for service {name:?}"),
        )
    };
    let chosen = chosen.ok_or_else(|| {
        Status::bad_request(format!(
            "no service port {port:?} found for service {name:?}"
        ))
    })?;
    let kind = call
        .core
        .cache
        .named("discovery.k8s.io", "endpointslices")
        .ok_or_else(none)?;
    for slice in kind.all().into_iter().filter(|o| {
        o.namespace() == call.namespace && o.label("kubernetes.io/service-name") == Some(name)
    }) {
        let slice = slice.value();
        let number = slice["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .find_map(|p| {
                let same = p["name"].as_str().unwrap_or_default()
                    == chosen["name"].as_str().unwrap_or_default();
                p["port"].as_u64().filter(|_| same)
            });
        let address = slice["endpoints"]
            .as_array()
            .into_iter()
            .flatten()
            .find_map(|e| {
                e["addresses"][0]
                    .as_str()
                    .filter(|_| e["conditions"]["ready"] != false)
            });
        if let (Some(number), Some(address)) = (number, address) {
            return Ok(format!("{scheme}://{}:{number}", host(address)));
        }
    }
    Err(none())
}

fn host(address: &str) -> String {
    if address.contains(':') {
        format!("[{address}]")
    } else {
        address.to_owned()
    }
}

fn raw_query(query: &Query) -> String {
    let text = query.encode();
    if text.is_empty() {
        text
    } else {
        format!("?{text}")
    }
}

/// The kubelet of the node that a pod is on.
fn kubelet_of(call: &Call<'_>, pod: &Value) -> Result<String, Status> {
    let node_name = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node_name.is_empty() {
        return Err(Status::bad_request(format!(
            "pod {} does not have a host assigned",
            call.name
        )));
    }
    let node = call
        .core
        .peek("", "nodes", "", node_name)
        .ok_or_else(|| Status::not_found("", "nodes", node_name))?
        .value();
    base_of(&node, node_name)
}

/// `https://ADDRESS:PORT` of a node's kubelet.
pub(super) fn base_of(node: &Value, name: &str) -> Result<String, Status> {
    let addresses = node["status"]["addresses"].as_array();
    let of = |kind: &str| {
        addresses
            .into_iter()
            .flatten()
            .find(|a| a["type"] == kind)
            .and_then(|a| a["address"].as_str())
    };
    let address = of("InternalIP")
        .or_else(|| of("Hostname"))
        .or_else(|| of("ExternalIP"));
    let Some(address) = address else {
        return Err(Status::internal(format!(
            "no preferred addresses found for node {:?}",
            node["metadata"]["name"].as_str().unwrap_or(name)
        )));
    };
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
        .as_u64()
        .filter(|p| *p > 0)
        .unwrap_or(KUBELET_PORT);
    Ok(format!("https://{}:{port}", host(address)))
}

/// The container that is asked for, or the pod's only one.
fn container(call: &Call<'_>, query: &Query, pod: &Value) -> Result<String, Status> {
    let names = |list: &str| -> Vec<String> {
        pod["spec"][list]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|c| c["name"].as_str().map(str::to_owned))
            .collect()
    };
    let (containers, init) = (names("containers"), names("initContainers"));
    match query.get("container") {
        Some(c) => {
            let all = containers
                .iter()
                .chain(&init)
                .chain(&names("ephemeralContainers"))
                .any(|n| n == c);
            if !all {
                return Err(Status::bad_request(format!(
                    "container {c} is not valid for pod {}",
                    call.name
                )));
            }
            Ok(c.to_owned())
        }
        None => match containers.as_slice() {
            [one] => Ok(one.clone()),
            several => {
                let mut text = format!(
                    "a container name must be specified for pod {}, choose one of: [{}]",
                    call.name,
                    several.join(" ")
                );
                if !init.is_empty() {
                    text.push_str(&format!(
                        " or one of the init containers: [{}]",
                        init.join(" ")
                    ));
                }
                Err(Status::bad_request(text))
            }
        },
    }
}

fn log_url(call: &Call<'_>, query: &Query, pod: &Value) -> Result<String, Status> {
    let container = container(call, query, pod)?;
    let kubelet = kubelet_of(call, pod)?;
    let mut out = url::form_urlencoded::Serializer::new(String::new());
    for key in [
        "follow",
        "previous",
        "sinceSeconds",
        "sinceTime",
        "timestamps",
        "tailLines",
        "limitBytes",
        "stream",
    ] {
        if let Some(v) = query.get(key) {
            out.append_pair(key, v);
        }
    }
    let tail = out.finish();
    let question = if tail.is_empty() { "" } else { "?" };
    Ok(format!(
        "{}/containerLogs/{}/{}/{container}{question}{tail}",
        kubelet, call.namespace, call.name
    ))
}
