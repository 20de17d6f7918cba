//! `cargo xtask test`: fetches the tools that tests need and runs all tests.
//!
//! Tests find the tools in `$SALP_TOOLS/bin`. Everything is built once, as one set of packages:
//! another set has other features, and wasmtime would be built again. Tests that need
//! root are marked `#[ignore = "needs root: …"]`: they run when this runs as root, and are
//! named when they do not.

use crate::{fetch, guests, tools};
use anyhow::{Context as _, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// How a test that needs root is marked.
const NEEDS_ROOT: &str = "#[ignore = \"needs root";
/// How a test of the API is marked that needs the server in its own process; why follows.
const IN_PROCESS: &str = "/// In process only: ";

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
        for test in marked(&root.join("crates"), NEEDS_ROOT)? {
            println!(
                "skipped, needs root: {}: {}",
                test.file.display(),
                test.name
            );
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
        println!("skipped, needs cargo-nextest: the tests of the API on etcd and on the binary");
        return Ok(());
    }
    // The same tests of the API on the other store…
    step(api_tests("").env("SALP_TEST_STORE", "etcd"))?;
    // …and against the program, by HTTPS. It was built for its own tests.
    let mut but = String::new();
    for test in marked(&root.join("crates/apiserver/tests/it"), IN_PROCESS)? {
        let module = test.file.file_stem().context("a name")?.to_string_lossy();
        let name = format!("{module}::{}", test.name);
        println!("not against the binary: {name}: {}", test.why);
        but.push_str(&format!(" & !test(={name})"));
    }
    step(api_tests(&but).env("SALP_TEST_SERVER", program()?))
}

/// Runs the tests of the API that the filter leaves.
fn api_tests(filter: &str) -> Command {
    let mut tests = cargo();
    tests
        .args(["nextest", "run", "--workspace", "--no-fail-fast"])
        .args(["-E", &format!("package(apiserver) & binary(it){filter}")])
        .env("SALP_TOOLS", fetch::tools_dir());
    tests
}

/// Where cargo puts the binary that ships, in a build for tests.
fn program() -> Result<PathBuf> {
    let target = match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => std::path::absolute(dir)?,
        None => fetch::root().join("target"),
    };
    let path = target.join("debug/salp");
    ensure!(path.exists(), "{} is not there", path.display());
    Ok(path)
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

/// A function below a line that marks it.
struct Marked {
    file: PathBuf,
    name: String,
    /// What follows the mark.
    why: String,
}

/// The functions below a line that begins with the mark.
fn marked(dir: &Path, mark: &str) -> Result<Vec<Marked>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(marked(&path, mark)?);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(&path)?;
            let mut why = None;
            for line in text.lines().map(str::trim) {
                if let Some(rest) = line.strip_prefix(mark) {
                    why = Some(rest.to_owned());
                }
                if let Some((_, rest)) = line.split_once("fn ")
                    && let Some(why) = why.take()
                {
                    found.push(Marked {
                        file: path.clone(),
                        name: rest.split('(').next().unwrap_or(rest).to_owned(),
                        why,
                    });
                }
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mark_is_a_test_s() {
        let dir = fetch::root().join("crates/apiserver/tests/it");
        let found = marked(&dir, IN_PROCESS).unwrap();
        let mut marks = 0;
        for entry in std::fs::read_dir(&dir).unwrap() {
            let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
            marks += text.lines().filter(|l| l.starts_with(IN_PROCESS)).count();
            for (i, _) in text.match_indices(&format!("\n{IN_PROCESS}")) {
                let below = &text[i + 1..];
                let next = below.lines().find(|l| !l.starts_with("///"));
                assert!(next.unwrap().starts_with("#[tokio::test"), "{below:.200}");
            }
        }
        assert_eq!(found.len(), marks);
        assert!(
            found
                .iter()
                .all(|t| !t.name.is_empty() && !t.why.is_empty())
        );
    }
}
