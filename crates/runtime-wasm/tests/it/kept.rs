//! A host that starts in the folder of one that was killed.

use crate::pod::{Site, get, run};
use futures::StreamExt as _;
use lifecycle::Scope;
use runtime::{ContainerId, ContainerState, PodRuntime as _, SandboxId, SandboxStatus};
use runtime_wasm::{Host, HostConfig, LogLimits};
use std::net::SocketAddr;
use std::path::Path;

async fn host(dir: &Path, scope: &Scope) -> Host {
    let config = HostConfig {
        socket: None,
        compiled_dir: dir.join("compiled"),
        kept_dir: Some(dir.join("kept")),
        log_limits: LogLimits::default(),
        dns: None,
    };
    Host::start(config, scope).await.expect("host")
}

async fn sandboxes(host: &Host) -> Vec<SandboxStatus> {
    let mut all = host.sandboxes().await.expect("sandboxes");
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// Ends a host as a crash would; in the same process its listeners take a moment to go.
async fn crash(scope: Scope, address: SocketAddr) {
    scope.close().await;
    while tokio::net::TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

/// The scope is closed as a crash would: nobody stops what runs.
#[tokio::test]
async fn what_served_serves_again_as_its_next_run() {
    let site = Site::new().await;
    let (sandbox, container, address) = site.http_pod("web");
    run(&site.host, (sandbox, container)).await.unwrap();
    let (sandbox, container, stopped) = site.http_pod("stopped");
    let id = run(&site.host, (sandbox, container)).await.unwrap();
    site.host.stop_container(&id, 0).await.unwrap();
    let spin = br#"(module (func (export "_start") (loop (br 0))))"#;
    run(&site.host, site.pod("command", spin)).await.unwrap();
    site.scope.close().await;
    assert!(get(address, "/").await.is_err());

    for attempt in 1..3 {
        let scope = Scope::new();
        let host = host(site.dir.path(), &scope).await;
        assert_eq!(
            get(address, "/env?NAME").await.map(|(code, _)| code),
            Ok(200)
        );
        assert!(get(stopped, "/").await.is_err());
        let all = sandboxes(&host).await;
        let names: Vec<_> = all.iter().map(|sandbox| &*sandbox.name).collect();
        assert_eq!(
            names,
            ["web"],
            "what ended, and what may not be done twice, is left"
        );
        let web = &all[0].containers[0];
        assert_eq!(web.id, ContainerId(format!("web/app/{attempt}")));
        assert_eq!(web.attempt, attempt);
        let log = site.dir.path().join(format!("logs/web/app/{attempt}.log"));
        assert!(log.exists(), "each run has a log of its own");
        crash(scope, address).await;
    }
}

#[tokio::test]
async fn one_on_standby_is_woken_and_known_until_adopted() {
    let site = Site::new().await;
    let (mut sandbox, container, address) = site.http_pod("till");
    sandbox.standby = true;
    sandbox.labels = [("app".to_owned(), "till".to_owned())].into();
    let (id, ports) = (sandbox.id.clone(), container.ports.clone());
    site.host.run_sandbox(sandbox).await.unwrap();
    site.host.create_container(container).await.unwrap();
    site.scope.close().await;

    // It stands by in the next host too, and costs it no listener.
    let scope = Scope::new();
    let second = host(site.dir.path(), &scope).await;
    let standbys = second.standbys().borrow().clone();
    assert_eq!(standbys.len(), 1);
    assert_eq!(
        (&standbys[0].id, &standbys[0].ports, standbys[0].http),
        (&id, &ports, true)
    );
    assert!(sandboxes(&second).await[0].standby);
    assert!(get(address, "/").await.is_err());
    // A thousand may ask at once.
    let wakes = (0..1000).map(|_| second.wake(&id));
    for woken in futures::future::join_all(wakes).await {
        woken.unwrap();
    }
    assert_eq!(
        get(address, "/env?NAME").await.map(|(code, _)| code),
        Ok(200)
    );
    assert!(!sandboxes(&second).await[0].standby);
    assert_eq!(
        second.standbys().borrow().len(),
        1,
        "the API does not know it yet"
    );
    crash(scope, address).await;

    // Woken, and killed before anybody knew.
    let scope = Scope::new();
    let third = host(site.dir.path(), &scope).await;
    assert_eq!(
        get(address, "/env?NAME").await.map(|(code, _)| code),
        Ok(200)
    );
    let all = sandboxes(&third).await;
    assert!(!all[0].standby);
    assert!(matches!(
        all[0].containers[0].state,
        ContainerState::Running { .. }
    ));
    assert_eq!(third.standbys().borrow().len(), 1);
    third.adopted(&id).await.unwrap();
    assert!(third.standbys().borrow().is_empty());
    crash(scope, address).await;

    // Adopted, it is a pod as any other.
    let scope = Scope::new();
    let fourth = host(site.dir.path(), &scope).await;
    assert_eq!(
        get(address, "/env?NAME").await.map(|(code, _)| code),
        Ok(200)
    );
    assert!(fourth.standbys().borrow().is_empty());
    scope.close().await;
}

/// Who is told that a container runs looks once: it must see that the pod is awake.
#[tokio::test]
async fn what_runs_never_stands_by() {
    let site = Site::new().await;
    let mut artifact = None;
    let mut ids = Vec::new();
    for n in 0..100u8 {
        let (mut sandbox, mut container, _) = site.http_pod(&format!("till-{n}"));
        sandbox.standby = true;
        sandbox.ip = [127, 0, 1, n].into();
        container.artifact = artifact.get_or_insert(container.artifact).clone();
        ids.push(sandbox.id.clone());
        site.host.run_sandbox(sandbox).await.unwrap();
        site.host.create_container(container).await.unwrap();
    }
    let (host, handle) = (site.host.clone(), tokio::runtime::Handle::current());
    let looks = std::thread::spawn(move || {
        loop {
            let all = handle.block_on(sandboxes(&host));
            for sandbox in &all {
                let mut states = sandbox.containers.iter().map(|c| &c.state);
                let runs = states.any(|s| matches!(s, ContainerState::Running { .. }));
                assert!(!(runs && sandbox.standby), "{}", sandbox.name);
            }
            if all.iter().all(|sandbox| !sandbox.standby) {
                return;
            }
        }
    });
    for id in &ids {
        site.host.wake(id).await.unwrap();
    }
    looks.join().unwrap();
}

/// No agent is there, and none tells of contact.
#[tokio::test]
async fn what_must_stop_dies_without_contact_and_waits_for_it() {
    let site = Site::new().await;
    let (mut sandbox, container, silent) = site.http_pod("silent");
    sandbox.dies_after_silence_ms = Some(0);
    let id = run(&site.host, (sandbox, container)).await.unwrap();
    let (mut sandbox, container, lasting) = site.http_pod("lasting");
    sandbox.dies_after_silence_ms = Some(3_600_000);
    run(&site.host, (sandbox, container)).await.unwrap();
    let mut changes = site.host.changes().await.unwrap();
    let state = async || {
        let found = site.host.sandbox(&SandboxId("silent".into())).await;
        let containers = found.unwrap().expect("a sandbox").containers;
        containers.into_iter().find(|c| c.id == id).unwrap().state
    };
    while !matches!(state().await, ContainerState::Exited(_)) {
        changes.next().await;
    }
    assert!(get(silent, "/env?NAME").await.is_err());
    assert!(get(lasting, "/env?NAME").await.is_ok());

    crash(site.scope, lasting).await;
    let scope = Scope::new();
    let host = host(site.dir.path(), &scope).await;
    let names: Vec<_> = sandboxes(&host).await;
    assert_eq!(names, [], "only an agent with contact makes them again");
    scope.close().await;
}
