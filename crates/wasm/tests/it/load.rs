//! Loading: compiled once, shared, and clear about what is wrong.

use crate::host::Host;
use expect_test::{Expect, expect};
use std::sync::Arc;
use wasm::GuestKind;

async fn check_error(wasm: &[u8], expect: Expect) {
    let error = Host::new().load(wasm).await.unwrap_err();
    expect.assert_eq(&error.to_string());
}

#[tokio::test]
async fn a_missing_import_is_named() {
    check_error(
        br#"(module (import "env" "magic" (func)) (func (export "_start")))"#,
        expect![[r#"module imports "magic" of "env", which this host does not provide"#]],
    )
    .await;
    check_error(
        br#"(component
            (import "foo:bar/baz@1.0.0" (instance (export "magic" (func))))
            (component $c (core module $m)) (instance $i (instantiate $c))
            (export "wasi:cli/run@0.2.0" (instance $i)))"#,
        expect![[
            r#"component imports "foo:bar/baz@1.0.0" (at least its `magic`), which this host does not provide"#
        ]],
    )
    .await;
}

#[tokio::test]
async fn a_cut_or_invalid_file_is_an_error() {
    let whole = wat::parse_str(r#"(module (func (export "_start") (nop)))"#).unwrap();
    check_error(
        &whole[..whole.len() - 3],
        expect!["read WebAssembly: unexpected end-of-file at byte 34"],
    )
    .await;
    check_error(
        br#"(module (func (export "_start") (i32.add)))"#,
        expect!["compile WebAssembly: failed to compile: wasm[0]::function[0]: WebAssembly translation error: Invalid input WebAssembly code at offset 35: type mismatch: expected i32 but nothing on stack"],
    )
    .await;
    check_error(
        b"hello",
        expect!["read WebAssembly: the file does not begin as WebAssembly does"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_that_ask_share_one_program_and_the_next_process_its_code() {
    let host = Host::new();
    let wat = br#"(module (func (export "_start")))"#;
    let programs = futures::future::join_all((0..8).map(|_| host.load(wat))).await;
    let first = programs[0].as_ref().unwrap();
    assert_eq!(first.kind(), GuestKind::CommandPreview1);
    for program in &programs {
        assert!(Arc::ptr_eq(first, program.as_ref().unwrap()));
    }
    let compiled = || {
        let mut files: Vec<_> = std::fs::read_dir(host.dir.path().join("compiled"))
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                (
                    entry.file_name(),
                    entry.metadata().unwrap().modified().unwrap(),
                )
            })
            .collect();
        files.sort();
        files
    };
    let before = compiled();
    assert_eq!(before.len(), 1);
    drop(programs);
    host.load(wat).await.unwrap();
    assert_eq!(compiled(), before, "loaded, not compiled again");
}

#[tokio::test]
async fn a_damaged_or_foreign_compiled_file_is_made_again() {
    use std::os::unix::fs::PermissionsExt as _;
    let host = Host::new();
    let wat = br#"(module (func (export "_start")))"#;
    drop(host.load(wat).await.unwrap());
    let file = std::fs::read_dir(host.dir.path().join("compiled"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let good = std::fs::metadata(&file).unwrap().len();
    std::fs::write(&file, b"cut").unwrap();
    drop(host.load(wat).await.unwrap());
    assert_eq!(std::fs::metadata(&file).unwrap().len(), good);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).unwrap();
    drop(host.load(wat).await.unwrap());
    assert_eq!(
        std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
}
