//! `cargo xtask fuzz`: builds the fuzz targets and lets each search for a while.
//!
//! libFuzzer needs the compiler's coverage pass, which is no unstable flag; only a sanitizer
//! would need a nightly toolchain, and safe code gains little by one. What a target found
//! interesting stays in `target/fuzz/corpus` and is tried first the next time.

use crate::fetch;
use anyhow::{Context as _, Result, bail, ensure};
use std::path::Path;
use std::process::Command;

/// What the compiler puts in so that libFuzzer sees which code an input reached.
const FLAGS: [&str; 8] = [
    "--cfg=fuzzing",
    "-Cdebug-assertions",
    "-Coverflow-checks",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// The largest input tried, bytes.
const INPUT_MAX: u32 = 16 * 1024;
/// An input that takes longer is a finding, seconds.
const INPUT_SECONDS_MAX: u32 = 10;

/// Runs the targets named, or all, each for so many seconds.
pub(crate) fn run(names: &[String], seconds: u32) -> Result<()> {
    let here = fetch::root().join("fuzz");
    let known = targets(&here)?;
    if let Some(name) = names.iter().find(|n| !known.contains(n)) {
        bail!("no fuzz target {name}: there are {}", known.join(", "));
    }
    let host = host()?;
    let out = fetch::root().join("target/fuzz");
    // With a target named, build scripts and procedural macros go without the pass.
    let built = fetch::cargo()
        .current_dir(&here)
        .args(["build", "--locked", "--release", "--target", &host])
        .arg("--target-dir")
        .arg(&out)
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"))
        .status()?;
    ensure!(built.success(), "the build of fuzz/ ended with {built}");
    for name in known
        .iter()
        .filter(|n| names.is_empty() || names.contains(n))
    {
        search(&out, &host, name, seconds)?;
    }
    Ok(())
}

/// One target's search; what it says is shown if it finds something.
fn search(out: &Path, host: &str, name: &str, seconds: u32) -> Result<()> {
    let corpus = out.join("corpus").join(name);
    let found = out.join("artifacts").join(name);
    std::fs::create_dir_all(&corpus)?;
    std::fs::create_dir_all(&found)?;
    let said = Command::new(out.join(host).join("release").join(name))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={INPUT_MAX}"))
        .arg(format!("-timeout={INPUT_SECONDS_MAX}"))
        .arg("-print_final_stats=1")
        .arg(format!("-artifact_prefix={}/", found.display()))
        .arg(&corpus)
        .output()
        .with_context(|| format!("start fuzz target {name}"))?;
    let text = String::from_utf8_lossy(&said.stderr);
    if !said.status.success() {
        bail!(
            "fuzz target {name} ended with {}, its input is in {}:\n{text}",
            said.status,
            found.display()
        );
    }
    let runs = text
        .lines()
        .find_map(|l| l.strip_prefix("stat::number_of_executed_units:"))
        .map_or("?", str::trim);
    println!("{name}: {runs} inputs in {seconds} s, nothing found");
    Ok(())
}

/// Names of the targets, sorted.
fn targets(here: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(here.join("fuzz_targets"))? {
        let path = entry?.path();
        names.extend(path.file_stem().map(|s| s.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

/// The target triple of this machine.
fn host() -> Result<String> {
    let text = fetch::run(Command::new("rustc").arg("-vV"))?;
    text.lines()
        .find_map(|l| l.strip_prefix("host: "))
        .map(str::to_owned)
        .context("rustc -vV tells no host")
}
