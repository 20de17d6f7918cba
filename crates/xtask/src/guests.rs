//! `cargo xtask guests`: builds the example and test guests and writes their components.
//!
//! Where the `wasm32-wasip2` target is installed (`rustup target add wasm32-wasip2`) this is
//! a plain `cargo build`. Elsewhere Debian's `rustc-web` and its library source are unpacked
//! under `target/tools` (nothing is installed), the standard library is built along, and the
//! module becomes a component here. Start reading at [`run`].

use crate::fetch;
use anyhow::{Context as _, Result, ensure};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME as ADAPTER_NAME,
    WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER as COMMAND_ADAPTER,
    WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER as REACTOR_ADAPTER,
};

/// A guest written in Rust.
struct Guest {
    /// Package name, also of the file.
    name: &'static str,
    /// Where its Cargo.toml is, from the workspace's root.
    dir: &'static str,
    kind: Kind,
    /// Where the component is committed, from the workspace's root.
    fixture: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A library that uses WASI only through its interfaces: the smallest.
    Bare,
    /// A library that also uses files or the environment of the standard library.
    Library,
    /// A program.
    Command,
    /// A program as a preview-1 core module.
    Module,
}

const GUESTS: &[Guest] = &[
    Guest {
        name: "hello",
        dir: "examples/hello",
        kind: Kind::Bare,
        fixture: "examples/hello/hello.wasm",
    },
    Guest {
        name: "trials",
        dir: "crates/wasm/tests/guest",
        kind: Kind::Bare,
        fixture: "crates/wasm/tests/fixtures/trials.wasm",
    },
    Guest {
        name: "trials03",
        dir: "crates/wasm/tests/guest03",
        kind: Kind::Bare,
        fixture: "crates/wasm/tests/fixtures/trials03.wasm",
    },
    Guest {
        name: "counter",
        dir: "examples/counter",
        kind: Kind::Library,
        fixture: "examples/counter/counter.wasm",
    },
    Guest {
        name: "job",
        dir: "examples/job",
        kind: Kind::Command,
        fixture: "examples/job/job.wasm",
    },
    Guest {
        name: "job",
        dir: "examples/job",
        kind: Kind::Module,
        fixture: "crates/testkit/fixtures/job-preview1.wasm",
    },
    Guest {
        name: "hello-p3",
        dir: "crates/testkit/guests/hello-p3",
        kind: Kind::Bare,
        fixture: "crates/testkit/fixtures/hello-p3.wasm",
    },
    Guest {
        name: "misbehave",
        dir: "crates/testkit/guests/misbehave",
        kind: Kind::Library,
        fixture: "crates/testkit/fixtures/misbehave.wasm",
    },
    Guest {
        name: "net",
        dir: "crates/testkit/guests/net",
        kind: Kind::Bare,
        fixture: "crates/testkit/fixtures/net.wasm",
    },
    Guest {
        name: "keeper",
        dir: "crates/testkit/guests/keeper",
        kind: Kind::Bare,
        fixture: "crates/testkit/fixtures/keeper.wasm",
    },
];

/// A compiler with a WebAssembly back end, its libraries, the standard library's source and a
/// C library for it.
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
    "wasi-libc",
];

/// Builds into the second path, from the workspace's root.
type Build = fn(&Path, &Path) -> Result<()>;

/// Guests that bring an interpreter. Not committed, and built only when named.
const INTERPRETED: &[(&str, Build)] = &[
    ("hello-js", build_javascript),
    ("hello-python", build_python),
];

/// Builds the named guests, or all that are committed.
pub(crate) fn run(root: &Path, names: &[String]) -> Result<()> {
    for name in names {
        if let Some((_, build)) = INTERPRETED.iter().find(|(known, _)| known == name) {
            let out = built(root, name);
            build(root, &out).with_context(|| format!("build guest {name}"))?;
            println!("{}", out.display());
        } else {
            ensure!(
                GUESTS.iter().any(|guest| guest.name == name),
                "no guest is called {name}"
            );
        }
    }
    let compiled = |guest: &Guest| names.is_empty() || names.iter().any(|name| name == guest.name);
    if !GUESTS.iter().any(compiled) {
        return Ok(());
    }
    let toolchain = Toolchain::find()?;
    for guest in GUESTS {
        if compiled(guest) {
            let component = toolchain
                .build(root, guest)
                .with_context(|| format!("build guest {}", guest.name))?;
            let path = root.join(guest.fixture);
            std::fs::write(&path, &component)
                .with_context(|| format!("write {}", path.display()))?;
            println!("{} ({} bytes)", guest.fixture, component.len());
        }
    }
    Ok(())
}

/// Builds those with an interpreter that are not there. Where their language's packages can't be
/// had, the test that runs them is skipped and says so.
pub(crate) fn interpreted(root: &Path) {
    for (name, build) in INTERPRETED {
        let out = built(root, name);
        if out.is_file() {
            continue;
        }
        if let Err(error) = build(root, &out) {
            println!("skipped, not built: {name}: {error:#}");
        }
    }
}

/// Where a guest lies that is not committed.
fn built(root: &Path, name: &str) -> PathBuf {
    root.join("target/guests").join(format!("{name}.wasm"))
}

/// What compiles Rust to WebAssembly here.
enum Toolchain {
    /// The host's own, with the target's standard library.
    Installed,
    /// Debian's, unpacked; holds its `usr` directory.
    Debian(PathBuf),
}

impl Toolchain {
    fn find() -> Result<Self> {
        let target = ["--print", "target-libdir", "--target", "wasm32-wasip2"];
        let lib = fetch::run(Command::new("rustc").args(target))?;
        if Path::new(lib.trim()).is_dir() {
            return Ok(Self::Installed);
        }
        let dir = fetch::tools_dir().join("rust-web");
        fetch::once(&dir, unpack_debian)?;
        Ok(Self::Debian(dir.join("usr")))
    }

    /// The component's (or module's) bytes.
    fn build(&self, root: &Path, guest: &Guest) -> Result<Vec<u8>> {
        let target_dir = root.join("target/guests/build");
        let mut cargo = fetch::cargo();
        let remap = remapped(root, self)?;
        for target in ["UNKNOWN_UNKNOWN", "WASIP1", "WASIP2"] {
            cargo.env(format!("CARGO_TARGET_WASM32_{target}_RUSTFLAGS"), &remap);
        }
        cargo
            .current_dir(root.join(guest.dir))
            .args(["rustc", "--release", "--locked", "--target-dir"])
            .arg(&target_dir)
            // The host compiler's settings are not the guest's.
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS");
        let target = match (self, guest.kind) {
            (Self::Installed, Kind::Module) => "wasm32-wasip1",
            (Self::Installed, _) => "wasm32-wasip2",
            (Self::Debian(_), Kind::Bare) => "wasm32-unknown-unknown",
            (Self::Debian(_), _) => "wasm32-wasip1",
        };
        cargo.args(["--target", target]);
        if let Self::Debian(usr) = self {
            debian_settings(&mut cargo, usr, &remap, &target_dir, guest.kind)?;
        }
        fetch::run(&mut cargo)?;
        let file = target_dir
            .join(target)
            .join("release")
            .join(format!("{}.wasm", guest.name.replace('-', "_")));
        let bytes = std::fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        let adapter = match (self, guest.kind) {
            (Self::Installed, _) | (_, Kind::Module) => return Ok(bytes),
            (_, Kind::Bare) => None,
            (_, Kind::Library) => Some(REACTOR_ADAPTER),
            (_, Kind::Command) => Some(COMMAND_ADAPTER),
        };
        let mut encoder = wit_component::ComponentEncoder::default()
            .module(&bytes)?
            .validate(true);
        if let Some(adapter) = adapter {
            encoder = encoder.adapter(ADAPTER_NAME, adapter)?;
        }
        encoder.encode()
    }
}

/// The compiler's flags that keep this machine's paths out of what is committed.
fn remapped(root: &Path, toolchain: &Toolchain) -> Result<String> {
    let home = match std::env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => PathBuf::from(std::env::var_os("HOME").context("read $HOME")?).join(".cargo"),
    };
    let mut prefixes = vec![(root.to_owned(), "/salp"), (home, "/cargo")];
    // The last that fits counts.
    if let Toolchain::Debian(usr) = toolchain {
        prefixes.push((usr.join("lib/rustlib/src/rust"), "/rust"));
    }
    let flags = prefixes
        .iter()
        .map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display()));
    Ok(flags.collect::<Vec<_>>().join(" "))
}

fn debian_settings(
    cargo: &mut Command,
    usr: &Path,
    remap: &str,
    target_dir: &Path,
    kind: Kind,
) -> Result<()> {
    let (lld, libc) = (rust_lld()?, usr.join("lib/wasm32-wasi"));
    // The same for all guests, or the standard library would be built anew for each.
    let flags = format!(
        "-Clink-self-contained=no -Lnative={} {remap}",
        libc.display()
    );
    compiler(cargo, usr)
        .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", &lld)
        .env("CARGO_TARGET_WASM32_WASIP1_LINKER", &lld)
        .env("CARGO_TARGET_WASM32_WASIP1_RUSTFLAGS", flags)
        .arg("-Zbuild-std=std,panic_abort")
        .arg("--");
    if matches!(kind, Kind::Command | Kind::Module) {
        let start = libc.join("crt1-command.o");
        cargo.arg(format!("-Clink-arg={}", start.display()));
    }
    if kind == Kind::Command {
        std::fs::create_dir_all(target_dir)?;
        let object = target_dir.join("cabi_realloc.o");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/guests/cabi_realloc.rs");
        let mut rustc = Command::new(usr.join("bin/rustc"));
        rustc
            .args(["--edition", "2024", "--crate-type", "lib", "--emit", "obj"])
            .args([
                "--target",
                "wasm32-wasip1",
                "-Copt-level=s",
                "-Cpanic=abort",
            ])
            .args([OsString::from("-o"), object.clone().into(), source.into()]);
        fetch::run(compiler(&mut rustc, usr))?;
        cargo
            .arg(format!("-Clink-arg={}", object.display()))
            .arg("-Clink-arg=--export=cabi_realloc");
    }
    Ok(())
}

/// Makes a command use Debian's compiler.
fn compiler<'a>(command: &'a mut Command, usr: &Path) -> &'a mut Command {
    command
        .env("RUSTC", usr.join("bin/rustc"))
        // Building the standard library is not stable; this is what the compiler offers for it.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("LD_LIBRARY_PATH", usr.join("lib/x86_64-linux-gnu"))
}

/// The linker that comes with the host's Rust.
fn rust_lld() -> Result<OsString> {
    let sysroot = fetch::run(Command::new("rustc").args(["--print", "sysroot"]))?;
    let host = fetch::run(Command::new("rustc").args(["--print", "host-tuple"]))?;
    let lld = Path::new(sysroot.trim())
        .join("lib/rustlib")
        .join(host.trim())
        .join("bin/rust-lld");
    ensure!(lld.is_file(), "{} is missing", lld.display());
    Ok(lld.into())
}

/// By Node.js, in a copy of the example, as it fills its folder with packages.
fn build_javascript(root: &Path, out: &Path) -> Result<()> {
    let work = root.join("target/guests/hello-js");
    std::fs::create_dir_all(&work)?;
    for name in ["package.json", "build.mjs", "world.wit", "hello.js"] {
        std::fs::copy(root.join("examples/hello-js").join(name), work.join(name))?;
    }
    for args in [
        &["install", "--no-audit", "--no-fund"][..],
        &["run", "build"],
    ] {
        fetch::run(Command::new("npm").args(args).current_dir(&work))?;
    }
    std::fs::rename(work.join("hello.wasm"), out)?;
    Ok(())
}

/// By componentize-py, in an environment of its own.
fn build_python(root: &Path, out: &Path) -> Result<()> {
    let tool = fetch::tools_dir().join("componentize-py-0.25.0");
    let python = |tool: &Path| Command::new(tool.join("bin/python"));
    if !tool.join("bin/componentize-py").is_file() {
        fetch::run(Command::new("python3").args(["-m", "venv"]).arg(&tool))?;
        let install = ["-m", "pip", "install", "--quiet", "componentize-py==0.25.0"];
        fetch::run(python(&tool).args(install))?;
    }
    std::fs::create_dir_all(root.join("target/guests"))?;
    let mut path = tool.join("bin").into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let script = root.join("examples/hello-python/build.py");
    fetch::run(python(&tool).arg(script).arg(out).env("PATH", path))?;
    Ok(())
}

/// Downloads the packages and unpacks them.
fn unpack_debian(dir: &Path) -> Result<()> {
    let debs = dir.join("deb");
    std::fs::create_dir(&debs)?;
    let mut download = Command::new("apt-get");
    download.args(["download", "-q"]).args(DEBIAN_PACKAGES);
    fetch::run(download.current_dir(&debs)).context(
        "this Rust has no WebAssembly target and there are no Debian packages: \
         rustup target add wasm32-wasip1 wasm32-wasip2",
    )?;
    for entry in std::fs::read_dir(&debs)? {
        fetch::run(Command::new("dpkg").arg("-x").arg(entry?.path()).arg(dir))?;
    }
    Ok(std::fs::remove_dir_all(&debs)?)
}
