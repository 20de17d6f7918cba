//! One try of a probe.

use super::grpc;
use crate::exec::Exec;
use crate::http_get;
use k8s_openapi::api::core::v1 as core;
use std::net::IpAddr;
use std::time::Duration;
use tokio::net::TcpStream;

/// What a try gave; the words are for events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Success,
    Failure(String),
    Unknown(String),
}

/// Bytes of an answer that a failure shows.
const SHOWN_BYTES_MAX: usize = 256;

/// Tries once.
pub(super) async fn check(
    probe: &core::Probe,
    container: &core::Container,
    ip: IpAddr,
    exec: &Exec,
    timeout: Duration,
) -> Outcome {
    let limited = tokio::time::timeout(timeout, try_once(probe, container, ip, exec)).await;
    limited.unwrap_or_else(|_| {
        let words = if let Some(action) = &probe.exec {
            let command = action.command.as_deref().unwrap_or_default().join(" ");
            format!("command timed out: {command:?} timed out after {timeout:?}")
        } else if let Some(grpc) = &probe.grpc {
            format!(
                "timeout: health rpc of {ip}:{} did not complete within {timeout:?}",
                grpc.port
            )
        } else if probe.http_get.is_some() {
            "context deadline exceeded (Client.Timeout exceeded while awaiting headers)".into()
        } else {
            format!("dial tcp {ip}: i/o timeout")
        };
        Outcome::Failure(words)
    })
}

async fn try_once(
    probe: &core::Probe,
    container: &core::Container,
    ip: IpAddr,
    exec: &Exec,
) -> Outcome {
    if let Some(action) = &probe.exec {
        let command = action.command.as_deref().unwrap_or_default();
        return match exec.run(command).await {
            Ok((0, _)) => Outcome::Success,
            Ok((_, said)) => Outcome::Failure(said.trim_end().to_owned()),
            Err(error) => Outcome::Unknown(error.to_string()),
        };
    }
    if let Some(action) = &probe.http_get {
        return match http_get::get(action, container, ip).await {
            Ok(answer) if (200..400).contains(&answer.status) => Outcome::Success,
            Ok(answer) => {
                let shown = &answer.body[..answer.body.len().min(SHOWN_BYTES_MAX)];
                tracing::debug!(status = answer.status, body = %String::from_utf8_lossy(shown), "probe failed");
                Outcome::Failure(format!(
                    "HTTP probe failed with statuscode: {}",
                    answer.status
                ))
            }
            Err(error @ (http_get::HttpGetError::Port(_) | http_get::HttpGetError::Request(_))) => {
                Outcome::Unknown(error.to_string())
            }
            Err(error) => Outcome::Failure(error.to_string()),
        };
    }
    if let Some(action) = &probe.tcp_socket {
        let port = match http_get::port_of(&action.port, container) {
            Ok(port) => port,
            Err(error) => return Outcome::Unknown(error.to_string()),
        };
        let host = match action.host.as_deref() {
            None | Some("") => ip.to_string(),
            Some(host) => host.to_string(),
        };
        return match TcpStream::connect((host.as_str(), port)).await {
            Ok(_) => Outcome::Success,
            Err(error) => Outcome::Failure(format!("dial tcp {host}:{port}: connect: {error}")),
        };
    }
    if let Some(action) = &probe.grpc {
        let Ok(port) = u16::try_from(action.port) else {
            return Outcome::Unknown(format!("port {} is none", action.port));
        };
        let service = action.service.as_deref().unwrap_or_default();
        return match grpc::health(ip, port, service).await {
            Ok(grpc::Health::Serving) => Outcome::Success,
            Ok(other) => Outcome::Failure(format!(
                "service unhealthy (responded with \"{}\")",
                other.word()
            )),
            Err(error) => Outcome::Failure(error.to_string()),
        };
    }
    Outcome::Unknown("it names nothing to try".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    fn probe(value: serde_json::Value) -> core::Probe {
        serde_json::from_value(value).unwrap()
    }

    async fn run(value: serde_json::Value, port: u16) -> Outcome {
        let container: core::Container = serde_json::from_value(
            json!({"name": "c", "ports": [{"name": "web", "containerPort": port}]}),
        )
        .unwrap();
        let local = IpAddr::from([127, 0, 0, 1]);
        let exec = Exec {
            runtime: crate::fakes::FakeRuntime::new(client::Clock::system()),
            container: runtime::ContainerId("u1/c/0".into()),
        };
        check(
            &probe(value),
            &container,
            local,
            &exec,
            Duration::from_secs(5),
        )
        .await
    }

    /// Answers one connection with `answer` and gives back what it was sent.
    async fn server(answer: &'static str) -> (u16, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let scope = lifecycle::Scope::new();
        let task = scope.spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut seen = vec![0; 4096];
            let count = stream.read(&mut seen).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&seen[..count]).into_owned()
        });
        (port, task)
    }

    #[tokio::test]
    async fn http_get_by_port_name_with_headers() {
        let (port, seen) = server("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await;
        let action = json!({"httpGet": {"port": "web", "path": "healthz?x=1",
            "httpHeaders": [{"name": "X-Who", "value": "me"}, {"name": "Host", "value": "shop"}]}});
        assert_eq!(run(action, port).await, Outcome::Success);
        let seen = seen.await.unwrap().to_lowercase();
        assert!(seen.starts_with("get /healthz?x=1 http/1.1"), "{seen}");
        assert!(
            seen.contains("x-who: me") && seen.contains("host: shop"),
            "{seen}"
        );
        assert!(seen.contains("user-agent: kube-probe/"), "{seen}");
    }

    #[tokio::test]
    async fn http_get_fails_by_status() {
        let (port, _) = server("HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(
            run(json!({"httpGet": {"port": port}}), port).await,
            Outcome::Failure("HTTP probe failed with statuscode: 503".into())
        );
    }

    #[tokio::test]
    async fn tcp_socket_needs_a_listener() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let action = json!({"tcpSocket": {"port": "web"}});
        assert_eq!(run(action.clone(), port).await, Outcome::Success);
        drop(listener);
        let refused = run(action, port).await;
        assert!(matches!(refused, Outcome::Failure(words) if words.contains("refused")));
    }

    #[tokio::test]
    async fn what_can_not_be_run_is_neither_good_nor_bad() {
        let exec = run(json!({"exec": {"command": ["true"]}}), 1).await;
        assert!(matches!(exec, Outcome::Unknown(_)));
        let named = run(json!({"httpGet": {"port": "nope"}}), 1).await;
        assert_eq!(named, Outcome::Unknown("unknown port \"nope\"".into()));
    }
}
