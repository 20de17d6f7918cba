//! Programs that run to their end.

use crate::host::{Host, Log, spec};
use expect_test::expect;
use std::sync::Arc;
use std::time::Duration;
use wasm::{CommandGuest, Guest, GuestSpec, MemoryExceeded, MemoryMeter, Outcome, Preopen};

async fn command(host: &Host, wat: &str, spec: GuestSpec) -> CommandGuest {
    match host.guest(wat.as_bytes(), spec).await {
        Guest::Command(command) => command,
        Guest::Http(_) => panic!("an HTTP guest"),
    }
}

async fn run(wat: &str, spec: GuestSpec) -> Outcome {
    let host = Host::new();
    command(&host, wat, spec).await.run().await
}

/// Writes its arguments and environment, each ended by a zero, to stdout.
const ECHO: &str = r#"(module
    (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "environ_sizes_get" (func $env_sizes (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "environ_get" (func $env (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (func $out (param $len i32)
        (i32.store (i32.const 0) (i32.const 4096))
        (i32.store (i32.const 4) (local.get $len))
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
    (func (export "_start")
        (drop (call $args_sizes (i32.const 16) (i32.const 20)))
        (drop (call $args (i32.const 64) (i32.const 4096)))
        (call $out (i32.load (i32.const 20)))
        (drop (call $env_sizes (i32.const 16) (i32.const 20)))
        (drop (call $env (i32.const 64) (i32.const 4096)))
        (call $out (i32.load (i32.const 20)))))"#;

#[tokio::test]
async fn a_program_gets_its_arguments_and_environment() {
    let log = Log::default();
    let outcome = run(
        ECHO,
        GuestSpec {
            args: vec!["app".into(), "--fast".into()],
            env: vec![
                ("A".into(), "1".into()),
                ("B".into(), "2".into()),
                ("A".into(), "3".into()),
            ],
            ..spec(&log)
        },
    )
    .await;
    assert_eq!(outcome, Outcome::Exited(0));
    assert_eq!(log.text(), "app\0--fast\0A=3\0B=2\0");
}

#[tokio::test]
async fn exit_codes_and_traps() {
    let exit = |code: i32| {
        format!(
            r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
                (memory (export "memory") 1)
                (func (export "_start") (call $exit (i32.const {code}))))"#
        )
    };
    let log = Log::default();
    assert_eq!(run(&exit(0), spec(&log)).await, Outcome::Exited(0));
    assert_eq!(run(&exit(42), spec(&log)).await, Outcome::Exited(42));
    let Outcome::Failed(message) = run(
        r#"(module (func $deep (unreachable)) (func (export "_start") (call $deep)))"#,
        spec(&log),
    )
    .await
    else {
        panic!("should fail")
    };
    expect![[r#"
        wasm trap: wasm `unreachable` instruction executed
        error while executing at wasm backtrace:
            0:     0x23 - <unknown>!deep
            1:     0x28 - <unknown>!<wasm function 1>"#]]
    .assert_eq(&message);
}

#[tokio::test]
async fn endless_recursion_is_that_guests_trap() {
    let outcome = run(
        r#"(module (func $f (export "_start") (call $f) (call $f)))"#,
        spec(&Log::default()),
    )
    .await;
    assert!(
        matches!(&outcome, Outcome::Failed(message) if message.contains("call stack exhausted")),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn more_memory_than_allowed_ends_the_guest() {
    let limit_bytes = 10 << 20;
    let memory = Arc::new(MemoryMeter::new(Some(limit_bytes), None));
    let outcome = run(
        r#"(module (memory (export "memory") 1)
            (func (export "_start") (loop (drop (memory.grow (i32.const 16))) (br 0))))"#,
        GuestSpec {
            memory: memory.clone(),
            ..spec(&Log::default())
        },
    )
    .await;
    assert_eq!(
        outcome,
        Outcome::OutOfMemory(MemoryExceeded { limit_bytes })
    );
    assert_eq!(memory.used_bytes(), 0, "given back");
}

const SPIN: &str = r#"(module (func (export "_start") (loop (br 0))))"#;

/// On a single thread: if the loop did not yield, nothing else would ever run.
#[tokio::test]
async fn an_endless_loop_lets_others_run_and_can_be_ended() {
    let host = Host::new();
    let log = Log::default();
    let spin = command(&host, SPIN, spec(&log)).await;
    let spinning = spin.run();
    tokio::pin!(spinning);
    let other = command(&host, ECHO, spec(&log)).await;
    tokio::select! {
        biased;
        outcome = &mut spinning => panic!("ended: {outcome:?}"),
        outcome = other.run() => assert_eq!(outcome, Outcome::Exited(0)),
    }
    assert_eq!(spin.instances(), 1);
    let ended = command(&host, SPIN, spec(&log)).await;
    assert!(
        tokio::time::timeout(Duration::from_millis(30), ended.run())
            .await
            .is_err()
    );
    assert_eq!(ended.instances(), 0, "dropping the run ends it");
}

/// Opens `f` in the first directory with the given flags and rights; exits with the error code.
fn open_file(oflags: u32, rights: u64) -> String {
    format!(
        r#"(module
        (import "wasi_snapshot_preview1" "path_open"
            (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 1)
        (data (i32.const 100) "f")
        (func (export "_start")
            (call $exit (call $open (i32.const 3) (i32.const 0) (i32.const 100) (i32.const 1)
                (i32.const {oflags}) (i64.const {rights}) (i64.const 0) (i32.const 0)
                (i32.const 8)))))"#
    )
}

#[tokio::test]
async fn a_read_only_directory_can_be_read_and_not_written() {
    const CREATE: u32 = 1;
    const READ: u64 = 1 << 1;
    const WRITE: u64 = 1 << 6;
    const PERM: i32 = 63;
    const NOENT: i32 = 44;
    let dir = tempfile::tempdir().unwrap();
    let open = async |oflags, rights, read_only| {
        let preopens = vec![Preopen {
            host: dir.path().to_owned(),
            guest: "/data".into(),
            read_only,
        }];
        run(
            &open_file(oflags, rights),
            GuestSpec {
                preopens,
                ..spec(&Log::default())
            },
        )
        .await
    };
    assert_eq!(open(0, READ, true).await, Outcome::Exited(NOENT));
    assert_eq!(open(CREATE, WRITE, true).await, Outcome::Exited(PERM));
    assert!(!dir.path().join("f").exists());
    assert_eq!(open(CREATE, WRITE, false).await, Outcome::Exited(0));
    assert!(dir.path().join("f").exists());
    assert_eq!(open(0, READ, true).await, Outcome::Exited(0));
    assert_eq!(open(0, WRITE, true).await, Outcome::Exited(PERM));
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_named() {
    let host = Host::new();
    let program = host.load(ECHO.as_bytes()).await.unwrap();
    let error = program
        .guest(GuestSpec {
            preopens: vec![Preopen {
                host: "/nonexistent/volume".into(),
                guest: "/data".into(),
                read_only: true,
            }],
            ..spec(&Log::default())
        })
        .unwrap_err();
    expect![
        "open /nonexistent/volume for the guest's /data: No such file or directory (os error 2)"
    ]
    .assert_eq(&error.to_string());
}
