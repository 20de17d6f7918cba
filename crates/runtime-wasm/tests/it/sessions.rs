//! Somebody takes part: beside a container's program, and in it.

use crate::pod::{Site, run};
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use lifecycle::Scope;
use runtime::{AttachSpec, ContainerId, ExecSpec, PodRuntime, RuntimeError, Said, Session};
use runtime_wasm::connect;

/// Copies its input to its output.
const CAT: &[u8] = br#"(module
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (func (export "_start")
    (loop
      (i32.store (i32.const 0) (i32.const 4096))
      (i32.store (i32.const 4) (i32.const 60000))
      (if (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)) (then return))
      (if (i32.eqz (i32.load (i32.const 8))) (then return))
      (i32.store (i32.const 4) (i32.load (i32.const 8)))
      (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 12)))
      (br 0))))"#;

async fn cat(site: &Site, runtime: &dyn PodRuntime, uid: &str, once: bool) -> ContainerId {
    let (sandbox, mut container) = site.pod(uid, CAT);
    container.stdin = true;
    container.stdin_once = once;
    run(runtime, (sandbox, container)).await.unwrap()
}

async fn exec(runtime: &dyn PodRuntime, container: &ContainerId) -> Result<Session, RuntimeError> {
    let spec = ExecSpec {
        container: container.clone(),
        command: vec!["app".into()],
        stdin: true,
        tty: false,
    };
    runtime.exec(spec).await
}

async fn attach(
    runtime: &dyn PodRuntime,
    container: &ContainerId,
    stdin: bool,
) -> Result<Session, RuntimeError> {
    let container = container.clone();
    runtime.attach(AttachSpec { container, stdin }).await
}

async fn echoes(session: &mut Session) {
    session
        .input
        .send(Bytes::from_static(b"hello"))
        .await
        .unwrap();
    let said = session.output.next().await;
    assert_eq!(said, Some(Said::Stdout(Bytes::from_static(b"hello"))));
}

#[tokio::test]
async fn who_attaches_gives_input_and_sees_output() {
    let site = Site::new().await;
    let scope = Scope::new();
    let agent = connect(&site.socket(), &scope);
    let id = cat(&site, &agent, "once", true).await;
    let mut watching = attach(&agent, &id, false).await.unwrap();
    let mut first = attach(&agent, &id, true).await.unwrap();
    echoes(&mut first).await;
    let heard = watching.output.next().await;
    assert_eq!(heard, Some(Said::Stdout(Bytes::from_static(b"hello"))));
    let second = attach(&agent, &id, true).await.unwrap_err().to_string();
    assert!(
        second.contains("has ended with who gave it first"),
        "{second}"
    );
    // The end of its input is the program's, and that everybody's.
    drop(first.input);
    for mut output in [first.output, watching.output] {
        assert_eq!(output.next().await, Some(Said::Exited { code: 0 }));
        assert_eq!(output.next().await, None);
    }
    assert_eq!(site.log("once"), ["stdout F hello"]);

    // Else input outlives those who give it.
    let id = cat(&site, &agent, "again", false).await;
    for _ in 0..2 {
        let mut session = attach(&agent, &id, true).await.unwrap();
        echoes(&mut session).await;
    }
    scope.close().await;
}

#[tokio::test]
async fn a_container_without_input_says_so() {
    let site = Site::new().await;
    let (sandbox, container, _) = site.http_pod("web");
    let id = run(&site.host, (sandbox, container)).await.unwrap();
    let refused = attach(&site.host, &id, true).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "exec: container \"app\" takes no input: its spec does not say `stdin: true`"
    );
    assert!(attach(&site.host, &id, false).await.is_ok());
}

#[tokio::test]
async fn sessions_are_bounded_and_end_with_either_end() {
    let site = Site::new().await;
    let scope = Scope::new();
    let agent = connect(&site.socket(), &scope);
    let id = cat(&site, &agent, "many", false).await;
    let mut sessions = Vec::new();
    let refused = loop {
        match exec(&agent, &id).await {
            Ok(session) => sessions.push(session),
            Err(error) => break error.to_string(),
        }
    };
    assert!(
        refused.contains("sessions with this pod are open already"),
        "{refused}"
    );
    assert_eq!(sessions.len(), 16);
    for session in &mut sessions {
        echoes(session).await;
    }
    // Whoever leaves makes room.
    drop(sessions.pop());
    let session = loop {
        if let Ok(session) = exec(&agent, &id).await {
            break session;
        }
        tokio::task::yield_now().await;
    };
    sessions.push(session);
    // A program that is told that input has ended ends by itself.
    let Session {
        input, mut output, ..
    } = sessions.remove(0);
    drop(input);
    assert_eq!(output.next().await, Some(Said::Exited { code: 0 }));
    // Those that are left end with the container, and have no end of their own.
    agent.stop_container(&id, 0).await.unwrap();
    for mut session in sessions {
        while let Some(said) = session.output.next().await {
            assert!(!matches!(said, Said::Exited { .. }));
        }
    }
    assert!(exec(&agent, &id).await.is_err());
    scope.close().await;
}
