//! `cargo xtask guests`: builds the example and test guests and writes their components.
//!
//! Where the `wasm32-wasip2` target is installed (`rustup target add wasm32-wasip2`) this is
//! a plain `cargo build`. Elsewhere Debian's `rustc-web` and its library source are unpacked
//! under `target/tools/rust-web` (nothing is installed) and the standard library is built
//! along. Start reading at [`run`].

use anyhow::{Context as _, Result, bail, ensure};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A guest written in Rust.
struct Guest {
    /// Package name, also of the file.
    name: &'static str,
    /// Where its Cargo.toml is, from the workspace's root.
    dir: &'static str,
    /// Where the component is committed, from the workspace's root.
    fixture: &'static str,
}

const GUESTS: &[Guest] = &[Guest {
    name: "hello",
    dir: "examples/hello",
    fixture: "examples/hello/hello.wasm",
}];

/// Debian packages that hold a compiler with a WebAssembly back end and the library's source.
const DEBIAN_PACKAGES: &[&str] = &[
    "rustc-web",
    "libstd-rust-web-1.96",
    "libstd-rust-web-dev",
    "rust-web-src",
    "libllvm22",
    "libz3-4",
    "libedit2",
    "libxml2",
    "libbsd0",
    "libicu72",
];

/// Builds the named guests, or all.
pub(crate) fn run(root: &Path, names: &[String]) -> Result<()> {
    for name in names {
        ensure!(
            GUESTS.iter().any(|guest| guest.name == name),
            "no guest is called {name}"
        );
    }
    let toolchain = Toolchain::find(root)?;
    for guest in GUESTS {
        if names.is_empty() || names.iter().any(|name| name == guest.name) {
            let component = toolchain
                .build(root, guest)
                .with_context(|| format!("build guest {}", guest.name))?;
            let path = root.join(guest.fixture);
            std::fs::write(&path, component)
                .with_context(|| format!("write {}", path.display()))?;
        }
    }
    Ok(())
}

/// What compiles Rust to WebAssembly here.
enum Toolchain {
    /// The host's own, with the target's standard library.
    Installed,
    /// Debian's, unpacked; holds its `usr` directory.
    Debian(PathBuf),
}

impl Toolchain {
    fn find(root: &Path) -> Result<Self> {
        let lib = output(Command::new("rustc").args([
            "--print",
            "target-libdir",
            "--target",
            "wasm32-wasip2",
        ]))?;
        if Path::new(lib.trim()).is_dir() {
            return Ok(Self::Installed);
        }
        let dir = root.join("target/tools/rust-web");
        let usr = dir.join("usr");
        if !usr.join("bin/rustc").is_file() {
            unpack_debian(&dir)?;
        }
        Ok(Self::Debian(usr))
    }

    /// The component's bytes.
    fn build(&self, root: &Path, guest: &Guest) -> Result<Vec<u8>> {
        let target_dir = root.join("target/guests/build");
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo
            .current_dir(root.join(guest.dir))
            .args(["build", "--release", "--locked", "--target-dir"])
            .arg(&target_dir)
            // The host compiler's settings are not the guest's.
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS");
        let target = match self {
            Self::Installed => "wasm32-wasip2",
            Self::Debian(usr) => {
                cargo
                    .env("RUSTC", usr.join("bin/rustc"))
                    .env("RUSTC_BOOTSTRAP", "1")
                    .env("LD_LIBRARY_PATH", usr.join("lib/x86_64-linux-gnu"))
                    .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", rust_lld()?)
                    .arg("-Zbuild-std=std,panic_abort");
                "wasm32-unknown-unknown"
            }
        };
        status(cargo.args(["--target", target]))?;
        let file = target_dir
            .join(target)
            .join("release")
            .join(format!("{}.wasm", guest.name.replace('-', "_")));
        let bytes = std::fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        match self {
            Self::Installed => Ok(bytes),
            Self::Debian(_) => wit_component::ComponentEncoder::default()
                .module(&bytes)?
                .validate(true)
                .encode(),
        }
    }
}

/// The linker that comes with the host's Rust.
fn rust_lld() -> Result<OsString> {
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let host = output(Command::new("rustc").args(["--print", "host-tuple"]))?;
    let lld = Path::new(sysroot.trim())
        .join("lib/rustlib")
        .join(host.trim())
        .join("bin/rust-lld");
    ensure!(lld.is_file(), "{} is missing", lld.display());
    Ok(lld.into())
}

/// Downloads the packages and unpacks them into `dir`, which appears only when complete.
fn unpack_debian(dir: &Path) -> Result<()> {
    let partial = dir.with_extension("partial");
    if partial.exists() {
        std::fs::remove_dir_all(&partial)?;
    }
    let debs = partial.join("deb");
    std::fs::create_dir_all(&debs)?;
    status(
        Command::new("apt-get")
            .args(["download", "-q"])
            .args(DEBIAN_PACKAGES)
            .current_dir(&debs),
    )
    .context("no wasm32-wasip2 target and no Debian packages: rustup target add wasm32-wasip2")?;
    for entry in std::fs::read_dir(&debs)? {
        status(
            Command::new("dpkg")
                .arg("-x")
                .arg(entry?.path())
                .arg(&partial),
        )?;
    }
    std::fs::remove_dir_all(&debs)?;
    std::fs::rename(&partial, dir)?;
    Ok(())
}

fn output(command: &mut Command) -> Result<String> {
    let out = command
        .output()
        .with_context(|| format!("run {command:?}"))?;
    if !out.status.success() {
        bail!(
            "{command:?}: {}: {}",
            out.status,
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(String::from_utf8(out.stdout)?)
}

fn status(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("run {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
