//! Agents come and go; pods stay.

use crate::pod::{Site, get, run, state};
use futures::StreamExt as _;
use lifecycle::Scope;
use remote_runtime::{Frames, PROTOCOL};
use runtime::{ContainerState, PodRuntime as _, RuntimeError};
use runtime_wasm::{Host, HostConfig, HostError, LogLimits, connect};
use std::os::unix::fs::PermissionsExt as _;

#[tokio::test]
async fn an_agent_that_restarts_finds_its_pods_serving() {
    let site = Site::new().await;
    let mode = std::fs::metadata(site.socket())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let (sandbox, container, address) = site.http_pod("kept");

    let first = Scope::new();
    let agent = connect(&site.socket(), &first);
    let id = run(&agent, (sandbox, container)).await.unwrap();
    assert!(agent.version().starts_with("salp-wasm://"));
    first.close().await;
    assert!(matches!(
        agent.sandboxes().await,
        Err(RuntimeError::Unavailable(_))
    ));
    assert_eq!(get(address, "/").await, Ok((200, "trials".into())));

    let second = Scope::new();
    let agent = connect(&site.socket(), &second);
    assert!(matches!(
        state(&agent, &id).await,
        ContainerState::Running { .. }
    ));
    let mut changes = agent.changes().await.unwrap();
    agent.stop_container(&id, 1000).await.unwrap();
    assert_eq!(changes.next().await.unwrap().0.0, "kept");
    assert!(matches!(
        state(&agent, &id).await,
        ContainerState::Exited(_)
    ));
    assert_eq!(agent.stats().await.unwrap()[0].0, id);
    second.close().await;
}

#[tokio::test]
async fn an_agent_connects_again_when_the_data_plane_comes_back() {
    let mut site = Site::new().await;
    let scope = Scope::new();
    let agent = connect(&site.socket(), &scope);
    let mut changes = agent.changes().await.unwrap();
    site.scope.close().await;
    assert_eq!(changes.next().await, None, "hints end with the connection");
    let config = HostConfig {
        socket: Some(site.socket()),
        compiled_dir: site.dir.path().join("compiled"),
        kept_dir: None,
        log_limits: LogLimits::default(),
        dns: None,
    };
    site.scope = Scope::new();
    site.host = Host::start(config.clone(), &site.scope).await.unwrap();
    assert_eq!(agent.sandboxes().await, Ok(Vec::new()));
    let error = Host::start(config, &site.scope).await.unwrap_err();
    assert!(matches!(error, HostError::Socket { .. }), "{error}");
    scope.close().await;
}

#[tokio::test]
async fn another_protocol_is_refused_with_words() {
    let site = Site::new().await;
    let stream = tokio::net::UnixStream::connect(site.socket())
        .await
        .unwrap();
    let mut frames = Frames::new(stream);
    frames
        .write(&serde_json::json!({ "Hello": { "protocol": 99 } }))
        .await
        .unwrap();
    let answer: serde_json::Value = frames.read().await.unwrap();
    let reason = answer["Refused"]["reason"].as_str().unwrap();
    assert!(
        reason.contains(&format!("speaks protocol {PROTOCOL} and the agent 99")),
        "{reason}"
    );
}
