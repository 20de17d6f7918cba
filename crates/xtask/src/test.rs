//! `cargo xtask test`: fetches the tools that tests need and runs all tests.
//!
//! Tests find the tools in `$SALP_TOOLS/bin`. Everything is built once, as one set of packages:
//! another set has other features, and wasmtime would be built again. Tests that need
//! root are marked `#[ignore = "needs root: …"]`: they run when this runs as root, and are
//! named when they do not.

use crate::{fetch, guests, tools};
use anyhow::{Result, ensure};
use std::path::Path;
use std::process::Command;

/// How a test that needs root is marked.
const NEEDS_ROOT: &str = "#[ignore = \"needs root";

/// Runs everything; `args` go to the test runner.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let needed: Vec<String> = tools::FOR_TESTS.iter().map(|t| (*t).to_owned()).collect();
    tools::run(&needed)?;
    let root = fetch::root();
    let as_root = fetch::run(Command::new("id").arg("-u"))?.trim() == "0";
    let nextest = cargo()
        .args(["nextest", "--version"])
        .output()
        .is_ok_and(|o| o.status.success());
    let mut tests = cargo();
    if nextest {
        tests.args(["nextest", "run", "--workspace", "--no-fail-fast"]);
        if as_root {
            tests.args(["--run-ignored", "all"]);
        }
        tests.args(args);
    } else {
        tests.args(["test", "--workspace", "--no-fail-fast"]);
        tests.args(args);
        if as_root {
            if !args.iter().any(|a| a == "--") {
                tests.arg("--");
            }
            tests.arg("--include-ignored");
        }
    }
    tests.env("SALP_TOOLS", fetch::tools_dir());
    if !as_root {
        for name in needs_root(&root.join("crates"))? {
            println!("skipped, needs root: {name}");
        }
    }
    if args.is_empty() {
        guests::interpreted(&root);
    }
    if nextest && args.is_empty() {
        // nextest knows no documentation tests.
        step(cargo().args(["test", "--quiet", "--workspace", "--doc"]))?;
    }
    step(&mut tests)?;
    if !args.is_empty() {
        return Ok(());
    }
    if !nextest {
        println!("skipped, needs cargo-nextest: the tests of the API on etcd");
        return Ok(());
    }
    // The same tests of the API on the other store.
    step(
        cargo()
            .args(["nextest", "run", "--workspace", "--no-fail-fast"])
            .args(["-E", "package(apiserver) & binary(it)"])
            .env("SALP_TOOLS", fetch::tools_dir())
            .env("SALP_TEST_STORE", "etcd"),
    )
}

fn cargo() -> Command {
    let mut cargo = fetch::cargo();
    cargo.current_dir(fetch::root());
    cargo
}

fn step(command: &mut Command) -> Result<()> {
    let status = command.status()?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

/// The functions that carry the mark, as `file: name`.
fn needs_root(dir: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(needs_root(&path)?);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(&path)?;
            let mut marked = false;
            for line in text.lines().map(str::trim) {
                marked |= line.starts_with(NEEDS_ROOT);
                if marked && let Some((_, rest)) = line.split_once("fn ") {
                    let name = rest.split('(').next().unwrap_or(rest);
                    found.push(format!("{}: {name}", path.display()));
                    marked = false;
                }
            }
        }
    }
    Ok(found)
}
