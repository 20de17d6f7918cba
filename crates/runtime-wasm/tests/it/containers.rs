//! Containers from their start to their end.

use crate::pod::{Site, get, run, run_to_end, state};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use runtime::{ContainerState, ExitReason, Mount, PodRuntime as _, RuntimeError};

const HELLO: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (memory (export "memory") 1)
    (data (i32.const 0) "\10\00\00\00\0d\00\00\00")
    (data (i32.const 16) "hello\nno end\n")
    (func (export "_start")
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
        (call $exit (i32.const 3))))"#;

#[tokio::test]
async fn a_command_runs_to_its_exit_code_and_its_log() {
    let site = Site::new().await;
    let exit = run_to_end(&site.host, site.pod("hello", HELLO.as_bytes())).await;
    assert_eq!((exit.code, exit.reason), (3, ExitReason::Error));
    assert!(exit.started_ms <= exit.finished_ms);
    assert_eq!(site.log("hello"), ["stdout F hello", "stdout F no end"]);
}

#[tokio::test]
async fn a_trap_is_the_message_and_oom_the_reason() {
    let site = Site::new().await;
    let trap = br#"(module (func $oops (export "_start") (unreachable)))"#;
    let exit = run_to_end(&site.host, site.pod("trap", trap)).await;
    assert_eq!((exit.code, exit.reason), (1, ExitReason::Error));
    assert!(
        exit.message.contains("unreachable") && exit.message.contains("oops"),
        "{exit:?}"
    );

    let hungry = br#"(module (memory (export "memory") 1)
        (func (export "_start") (loop (drop (memory.grow (i32.const 16))) (br 0))))"#;
    let (sandbox, mut container) = site.pod("hungry", hungry);
    container.memory_limit_bytes = Some(8 << 20);
    let exit = run_to_end(&site.host, (sandbox, container)).await;
    assert_eq!((exit.code, exit.reason), (137, ExitReason::OomKilled));
}

#[tokio::test]
async fn a_spinning_command_is_stopped() {
    let site = Site::new().await;
    let spin = br#"(module (func (export "_start") (loop (br 0))))"#;
    let id = run(&site.host, site.pod("spin", spin)).await.unwrap();
    assert!(matches!(
        state(&site.host, &id).await,
        ContainerState::Running { .. }
    ));
    site.host.stop_container(&id, 1000).await.unwrap();
    let ContainerState::Exited(exit) = state(&site.host, &id).await else {
        panic!("still running");
    };
    assert_eq!(exit.code, 143);
    site.host.remove_container(&id).await.unwrap();
    site.host.remove_container(&id).await.unwrap();
    assert_eq!(
        site.host.start_container(&id).await,
        Err(RuntimeError::NotFound(id.0.clone()))
    );
}

#[tokio::test]
async fn an_http_container_serves_at_its_address_and_in_process() {
    let site = Site::new().await;
    let (sandbox, mut container, address) = site.http_pod("web");
    container.env = vec![("NAME".into(), "web-1".into())];
    let uid = sandbox.id.clone();
    let id = run(&site.host, (sandbox, container)).await.unwrap();
    assert_eq!(get(address, "/env?NAME").await, Ok((200, "web-1".into())));
    assert_eq!(
        get(address, "/trap").await,
        Ok((500, "the program failed; its log says why\n".into()))
    );
    let endpoint = site.host.http_endpoint(address).expect("registered");
    let request = Request::get("/log?hi").body(Empty::<Bytes>::new()).unwrap();
    let response = endpoint.call(request).await;
    assert_eq!(response.status(), 200);
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "logged"
    );
    assert!(site.log("web").contains(&"stdout F hi".to_owned()));
    let stats = site.host.stats().await.unwrap();
    assert_eq!(
        (&stats[0].0, stats[0].1.requests, stats[0].1.instances),
        (&id, 3, 0)
    );
    assert!(stats[0].1.cpu_ns > 0);

    assert!(!endpoint.is_gone());
    site.host.remove_sandbox(&uid).await.unwrap();
    assert!(endpoint.is_gone());
    let request = Request::get("/again").body(Empty::<Bytes>::new()).unwrap();
    let back = endpoint.try_call(request).await.unwrap_err();
    assert_eq!(back.uri(), "/again");
    assert!(site.host.http_endpoint(address).is_none());
    assert!(get(address, "/").await.is_err(), "the port is free again");
    assert_eq!(site.host.sandbox(&uid).await, Ok(None));
}

#[tokio::test]
async fn stopping_finishes_what_is_under_way_and_takes_nothing_new() {
    let site = Site::new().await;
    let (sandbox, container, address) = site.http_pod("drain");
    let id = run(&site.host, (sandbox, container)).await.unwrap();
    let endpoint = site.host.http_endpoint(address).unwrap();
    let slow = get(address, "/slow?300");
    let stop = async {
        while endpoint.in_flight() == 0 {
            tokio::task::yield_now().await;
        }
        site.host.stop_container(&id, 10_000).await.unwrap();
    };
    let (slow, ()) = tokio::join!(slow, stop);
    assert_eq!(slow, Ok((200, "slept".into())));
    let ContainerState::Exited(exit) = state(&site.host, &id).await else {
        panic!("still running");
    };
    assert_eq!((exit.code, exit.reason), (0, ExitReason::Completed));
}

#[tokio::test]
async fn a_request_that_never_ends_is_cut_after_the_grace() {
    let site = Site::new().await;
    let (sandbox, container, address) = site.http_pod("stuck");
    let id = run(&site.host, (sandbox, container)).await.unwrap();
    let endpoint = site.host.http_endpoint(address).unwrap();
    let stop = async {
        while endpoint.in_flight() == 0 {
            tokio::task::yield_now().await;
        }
        site.host.stop_container(&id, 50).await.unwrap();
    };
    let (spin, ()) = tokio::join!(get(address, "/spin"), stop);
    assert!(spin.is_err());
    let ContainerState::Exited(exit) = state(&site.host, &id).await else {
        panic!("still running");
    };
    assert_eq!(exit.code, 137);
}

#[tokio::test]
async fn an_http_container_out_of_memory_ends_and_the_next_takes_its_port() {
    use futures::StreamExt as _;
    let site = Site::new().await;
    let (sandbox, mut container, address) = site.http_pod("oom");
    container.memory_limit_bytes = Some(8 << 20);
    let mut next = container.clone();
    next.id.0 = "oom/app/1".into();
    let mut changes = site.host.changes().await.unwrap();
    let id = run(&site.host, (sandbox, container)).await.unwrap();
    drop(get(address, "/eat?20").await);
    let exit = loop {
        if let ContainerState::Exited(exit) = state(&site.host, &id).await {
            break exit;
        }
        changes.next().await.expect("hints");
    };
    assert_eq!((exit.code, exit.reason), (137, ExitReason::OomKilled));
    let next_id = next.id.clone();
    site.host.create_container(next).await.unwrap();
    site.host.start_container(&next_id).await.unwrap();
    assert_eq!(
        get(address, "/eat?1").await,
        Ok((200, "ate 1048576".into()))
    );
}

#[tokio::test]
async fn what_can_not_run_is_said() {
    let site = Site::new().await;
    let create = async |pod| run(&site.host, pod).await.unwrap_err();
    assert_eq!(
        create(site.pod(
            "import",
            br#"(module (import "env" "x" (func)) (func (export "_start")))"#
        ))
        .await,
        RuntimeError::CreateContainer(
            r#"module imports "x" of "env", which this host does not provide"#.into()
        )
    );
    let (sandbox, mut container) = site.pod("file", HELLO.as_bytes());
    container.mounts = vec![Mount {
        host_path: "/etc/passwd".into(),
        guest_path: "/config/passwd".into(),
        read_only: true,
        ..Mount::default()
    }];
    assert_eq!(
        create((sandbox, container)).await,
        RuntimeError::CreateContainer(
            "the mount /config/passwd is a single file; Wasm guests can be given directories only"
                .into()
        )
    );
    let (sandbox, container, address) = site.http_pod("busy");
    let _taken = std::net::TcpListener::bind(address).unwrap();
    assert_eq!(
        create((sandbox, container)).await,
        RuntimeError::StartContainer(format!(
            "listen at {address}: Address already in use (os error 98)"
        ))
    );
}
