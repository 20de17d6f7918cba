//! Services of the last run, served before the API server is reached.

use crate::api::FakeApi;
use crate::sockets::{ask, server};
use crate::{Fixture, eventually, start_proxy};
use lifecycle::Scope;
use serde_json::json;
use service_proxy::NoLocalEndpoints;
use std::sync::Arc;

#[tokio::test]
async fn a_start_without_an_api_server_serves_what_was_known() {
    let dir = tempfile::tempdir().expect("directory");
    let file = dir.path().join("services");
    let api = FakeApi::default();
    let local = Arc::new(NoLocalEndpoints);
    let fixture = Fixture::start_cold(api.clone(), local.clone(), |_| None, Some(file.clone()));
    let servers = Scope::new();
    let endpoint = fixture.address(1, 9000);
    server(&servers, endpoint).await;
    let (kept, removed) = (fixture.address(100, 8000), fixture.address(101, 8000));
    for (name, address) in [("kept", kept), ("removed", removed)] {
        fixture.service(name, address, json!({}));
        fixture.endpoints(name, "TCP", &[(endpoint, true)]);
        eventually(async || ask(address).await).await;
    }
    // What is due is written when it stops.
    fixture.scope.close().await;
    assert_eq!(ask(kept).await, None);

    api.set_reachable(false);
    let scope = Scope::new();
    let second = start_proxy(
        &api,
        local.clone(),
        fixture.network,
        None,
        Some(file.clone()),
        &scope,
    );
    for address in [kept, removed] {
        let answer = eventually(async || ask(address).await).await;
        assert_eq!(answer, endpoint.to_string());
    }

    // Then the API server tells what has become of them.
    api.remove("services", "removed");
    api.set_reachable(true);
    second.ready().await;
    eventually(async || ask(removed).await.is_none().then_some(())).await;
    assert!(ask(kept).await.is_some());
    scope.close().await;

    // A file that is not whole is as none.
    let whole = std::fs::read(&file).expect("checkpoint");
    std::fs::write(&file, &whole[..whole.len() - 1]).expect("torn");
    api.set_reachable(false);
    let scope = Scope::new();
    let third = start_proxy(&api, local, fixture.network, None, Some(file), &scope);
    assert_eq!(ask(kept).await, None);
    api.set_reachable(true);
    third.ready().await;
    assert!(ask(kept).await.is_some());
    scope.close().await;
    servers.close().await;
}
