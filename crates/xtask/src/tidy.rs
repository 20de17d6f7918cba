//! `cargo xtask tidy`: the rules about crates and files that no compiler checks.
//!
//! Layers and edges are those of ARCHITECTURE.md; [`LAYERS`] and [`FENCES`] state them. The
//! crate table of that page is made from the manifests; `--write` refreshes it.

use crate::fetch;
use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

/// Layers from the bottom up, and the layers that a crate of each may use.
const LAYERS: &[(&str, &[&str])] = &[
    ("words", &["words"]),
    ("base", &["words", "base"]),
    ("control", &["words", "base"]),
    ("node", &["words", "base", "node"]),
    ("shell", &["words", "base", "control", "node"]),
    ("dev", &["words", "base", "control", "node"]),
];

/// Crates that only some may use: what starts with the name, who may, and why.
const FENCES: &[(&str, &[&str], &str)] = &[
    (
        "store",
        &["apiserver", "salp", "testkit"],
        "only the API server knows the store",
    ),
    (
        "runtime-",
        &["salp", "testkit"],
        "the binary chooses the runtimes",
    ),
    (
        "hooks",
        &["salp", "testkit"],
        "the binary wires guests into the API server",
    ),
    ("wasmtime", &["wasm"], "wasmtime is fenced in"),
    ("cranelift", &["wasm"], "wasmtime is fenced in"),
    ("rusqlite", &["store"], "SQLite is fenced in"),
    ("etcd-client", &["store"], "etcd is fenced in"),
    ("async-nats", &["lattice"], "NATS is fenced in"),
    ("salp", &[], "nothing depends on the binary"),
];

/// What the words layer must not use: it does no I/O.
const NOT_IN_WORDS: &[&str] = &["tokio", "hyper", "reqwest", "kube", "rustix", "rustls"];

/// Names that say nothing.
const EMPTY_NAMES: &[&str] = &["common", "util", "utils", "core", "helpers", "types"];

/// Where such a name is Kubernetes' own: the core group.
const NAMED_BY_KUBERNETES: &[&str] = &["crates/api/src/catalog/core.rs"];

/// No file is longer, but for generated ones and tests with their snapshots.
const LINES_MAX: usize = 800;

/// Hosts of package registries: tools know them, the project does not.
const HOSTS: &[&str] = &[
    concat!("crates", ".io"),
    concat!("pypi", ".org"),
    concat!("pythonhosted", ".org"),
    concat!("registry.npmjs", ".org"),
    concat!("deb.debian", ".org"),
    concat!("proxy.golang", ".org"),
];

/// What must not stay in code.
const LEFTOVERS: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
];

/// What lies at the root.
const ROOT: &[&str] = &[
    ".cargo",
    ".ci",
    ".config",
    ".gitattributes",
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "clippy.toml",
    "crates",
    "deny.toml",
    "docs",
    "examples",
    "fuzz",
    "rust-toolchain.toml",
    "rustfmt.toml",
];

const TABLE: (&str, &str) = ("<!-- crates:begin -->", "<!-- crates:end -->");

/// A crate of the workspace, as cargo tells it.
#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    #[serde(default)]
    description: Option<String>,
    metadata: Option<Metadata>,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    layer: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    /// `None`, `dev` or `build`.
    kind: Option<String>,
}

impl Package {
    fn layer(&self) -> &str {
        self.metadata
            .as_ref()
            .and_then(|m| m.layer.as_deref())
            .unwrap_or("")
    }

    /// What the crate itself uses; its tests may use more.
    fn uses(&self) -> impl Iterator<Item = &str> {
        self.dependencies
            .iter()
            .filter(|d| d.kind.as_deref() != Some("dev"))
            .map(|d| d.name.as_str())
    }
}

/// Checks everything and names all that is wrong.
pub(crate) fn run(write: bool) -> Result<()> {
    let root = fetch::root();
    let packages = packages()?;
    let mut wrong = edges(&packages);
    for file in files(&root)? {
        wrong.extend(check_name(&file));
        if let Ok(text) = std::fs::read_to_string(root.join(&file)) {
            wrong.extend(check_text(&file, &text));
        }
    }
    wrong.extend(table(&root.join("ARCHITECTURE.md"), &packages, write)?);
    if wrong.is_empty() {
        println!("tidy: {} crates", packages.len());
        return Ok(());
    }
    for line in &wrong {
        eprintln!("{line}");
    }
    bail!("{} untidy places", wrong.len())
}

fn packages() -> Result<Vec<Package>> {
    #[derive(Deserialize)]
    struct Workspace {
        packages: Vec<Package>,
    }
    let text = fetch::run(
        fetch::cargo()
            .args(["metadata", "--no-deps", "--format-version=1"])
            .current_dir(fetch::root()),
    )?;
    let workspace: Workspace = serde_json::from_str(&text)?;
    Ok(workspace.packages)
}

/// Files that git knows or would add.
fn files(root: &Path) -> Result<Vec<String>> {
    let text = fetch::run(
        Command::new("git")
            .args(["ls-files", "--cached", "--others", "--exclude-standard"])
            .current_dir(root),
    )?;
    Ok(text.lines().map(str::to_owned).collect())
}

fn edges(packages: &[Package]) -> Vec<String> {
    let layers: BTreeMap<&str, &str> = packages
        .iter()
        .map(|p| (p.name.as_str(), p.layer()))
        .collect();
    let mut wrong = Vec::new();
    for package in packages {
        let name = package.name.as_str();
        let Some((_, allowed)) = LAYERS.iter().find(|(l, _)| *l == package.layer()) else {
            wrong.push(format!(
                "crate {name}: state [package.metadata] layer as one of {}",
                LAYERS.iter().map(|l| l.0).collect::<Vec<_>>().join(", ")
            ));
            continue;
        };
        if EMPTY_NAMES.contains(&name) {
            wrong.push(format!("crate {name}: the name says nothing"));
        }
        for used in package.uses() {
            if let Some(layer) = layers.get(used)
                && !allowed.contains(layer)
            {
                wrong.push(format!(
                    "crate {name}: layer {} does not use layer {layer} ({used})",
                    package.layer()
                ));
            }
            if package.layer() == "words" && NOT_IN_WORDS.contains(&used) {
                wrong.push(format!("crate {name}: words do no I/O ({used})"));
            }
        }
        for used in package.dependencies.iter().map(|d| d.name.as_str()) {
            for (fenced, users, why) in FENCES {
                let inside = used == *fenced
                    || used.starts_with(fenced) && !layers.contains_key(used)
                    || fenced.ends_with('-') && used.starts_with(fenced);
                if inside && !users.contains(&name) && name != used {
                    wrong.push(format!("crate {name}: {why} ({used})"));
                }
            }
        }
    }
    wrong
}

fn check_name(file: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let first = file.split('/').next().unwrap_or(file);
    if !ROOT.contains(&first) {
        wrong.push(format!("{file}: nothing of this name belongs at the root"));
    }
    if file.ends_with(".rs") && !NAMED_BY_KUBERNETES.contains(&file) {
        let stem = file.trim_end_matches(".rs");
        let named = stem.split('/').rfind(|part| EMPTY_NAMES.contains(part));
        if let Some(part) = named {
            wrong.push(format!("{file}: the name {part} says nothing"));
        }
    }
    wrong
}

fn check_text(file: &str, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let rust = file.ends_with(".rs");
    let generated = text.lines().take(5).any(|l| l.contains("@generated"));
    if rust && !generated {
        if !text.starts_with("//!") {
            wrong.push(format!("{file}:1: say with //! what this file is"));
        }
        let lines = text.lines().count();
        let tests = file.ends_with("/tests.rs") || file.contains("/tests/");
        if lines > LINES_MAX && !tests {
            wrong.push(format!("{file}: {lines} lines: look for the second thing"));
        }
        for (i, line) in text.lines().enumerate() {
            for leftover in LEFTOVERS.iter().filter(|l| line.contains(**l)) {
                wrong.push(format!("{file}:{}: {leftover} in code", i + 1));
            }
        }
    }
    let by_tools = ["Cargo.lock", "package-lock.json", "deny.toml"];
    if !by_tools.iter().any(|name| file.ends_with(name)) {
        for (i, line) in text.lines().enumerate() {
            for host in HOSTS.iter().filter(|h| line.contains(**h)) {
                wrong.push(format!("{file}:{}: names the registry {host}", i + 1));
            }
        }
    }
    wrong
}

/// The crate table between its markers, written or compared.
fn table(page: &Path, packages: &[Package], write: bool) -> Result<Option<String>> {
    let Ok(text) = std::fs::read_to_string(page) else {
        return Ok(None);
    };
    let Some((head, rest)) = text.split_once(TABLE.0) else {
        return Ok(None);
    };
    let (old, tail) = rest
        .split_once(TABLE.1)
        .context("ARCHITECTURE.md: the crate table has no end")?;
    let new = format!("\n{}", render(packages)?);
    if old == new {
        return Ok(None);
    }
    if write {
        let whole = format!("{head}{}{new}{}{tail}", TABLE.0, TABLE.1);
        std::fs::write(page, whole)?;
        println!("ARCHITECTURE.md: crate table written");
        return Ok(None);
    }
    Ok(Some(
        "ARCHITECTURE.md: the crate table is old: cargo xtask tidy --write".to_owned(),
    ))
}

fn render(packages: &[Package]) -> Result<String> {
    let names: BTreeSet<&str> = packages.iter().map(|p| p.name.as_str()).collect();
    let mut out = String::new();
    writeln!(out, "| layer | crate | purpose | uses |\n|---|---|---|---|")?;
    for (layer, _) in LAYERS {
        let mut members: Vec<&Package> = packages.iter().filter(|p| p.layer() == *layer).collect();
        members.sort_by(|a, b| a.name.cmp(&b.name));
        let mut shown = *layer;
        for package in members {
            let uses: BTreeSet<&str> = package.uses().filter(|u| names.contains(u)).collect();
            let uses = match *layer {
                "shell" => "everything".to_owned(),
                _ if uses.is_empty() => "–".to_owned(),
                _ => uses.into_iter().collect::<Vec<_>>().join(", "),
            };
            writeln!(
                out,
                "| {shown} | `{}` | {} | {uses} |",
                package.name,
                package.description.as_deref().unwrap_or("").trim()
            )?;
            shown = "";
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, layer: &str, uses: &[&str]) -> Package {
        Package {
            name: name.to_owned(),
            description: None,
            metadata: Some(Metadata {
                layer: Some(layer.to_owned()),
            }),
            dependencies: uses
                .iter()
                .map(|u| Dependency {
                    name: (*u).to_owned(),
                    kind: None,
                })
                .collect(),
        }
    }

    #[test]
    fn forbidden_edges_are_found() {
        let wrong = edges(&[
            package("api", "words", &["tokio"]),
            package("store", "base", &["rusqlite", "zstd"]),
            package("apiserver", "control", &["store", "api"]),
            package("controllers", "control", &["store", "node"]),
            package(
                "node",
                "node",
                &["runtime-wasm", "rusqlite", "wasmtime-wasi"],
            ),
            package("runtime-wasm", "node", &["api"]),
            package("salp", "shell", &["store", "runtime-wasm"]),
            package("lost", "", &["salp"]),
        ]);
        assert_eq!(
            wrong,
            [
                "crate api: words do no I/O (tokio)",
                "crate controllers: layer control does not use layer node (node)",
                "crate controllers: only the API server knows the store (store)",
                "crate node: the binary chooses the runtimes (runtime-wasm)",
                "crate node: SQLite is fenced in (rusqlite)",
                "crate node: wasmtime is fenced in (wasmtime-wasi)",
                "crate lost: state [package.metadata] layer as one of words, base, control, node, shell, dev",
            ]
        );
    }

    #[test]
    fn untidy_files_are_found() {
        assert_eq!(check_name("crates/api/src/util.rs").len(), 1);
        assert_eq!(check_name("crates/api/src/names.rs").len(), 0);
        assert_eq!(check_name("stray.rs").len(), 1);
        let text = format!("use x;\n// {} later\n", LEFTOVERS[0]);
        assert_eq!(check_text("crates/a/src/a.rs", &text).len(), 2);
        let long = format!("//! a\n{}", "\n".repeat(LINES_MAX));
        assert_eq!(check_text("crates/a/src/a.rs", &long).len(), 1);
        assert_eq!(check_text("README.md", HOSTS[0]).len(), 1);
        assert_eq!(check_text("Cargo.lock", HOSTS[0]).len(), 0);
    }
}
