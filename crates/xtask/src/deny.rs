//! `cargo xtask deny`: licences, sources and banned crates of everything that is built in,
//! against deny.toml, whose form is that of cargo-deny.
//!
//! A cargo-deny on the PATH does the same and more (advisories, which need a network). This
//! needs nothing but cargo.

use crate::fetch;
use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use std::collections::BTreeSet;

#[derive(Deserialize)]
struct Rules {
    licenses: Licenses,
    bans: Bans,
    sources: Sources,
}

#[derive(Deserialize)]
struct Licenses {
    allow: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Banned>,
}

#[derive(Deserialize)]
struct Banned {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    allow_registry: Vec<String>,
}

#[derive(Deserialize)]
struct Resolved {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

/// Checks every package of Cargo.lock.
pub(crate) fn run() -> Result<()> {
    let root = fetch::root();
    let text = std::fs::read_to_string(root.join("deny.toml")).context("read deny.toml")?;
    let rules: Rules = toml::from_str(&text).context("read deny.toml")?;
    let text = fetch::run(
        fetch::cargo()
            .args(["metadata", "--locked", "--format-version=1"])
            .current_dir(&root),
    )?;
    let resolved: Resolved = serde_json::from_str(&text)?;
    let mut wrong = Vec::new();
    for package in &resolved.packages {
        wrong.extend(check(package, &rules));
    }
    if wrong.is_empty() {
        println!("deny: {} packages", resolved.packages.len());
        return Ok(());
    }
    for line in &wrong {
        eprintln!("{line}");
    }
    bail!("{} packages break deny.toml", wrong.len())
}

fn check(package: &Package, rules: &Rules) -> Vec<String> {
    let Package { name, version, .. } = package;
    let mut wrong = Vec::new();
    match &package.license {
        None => wrong.push(format!("{name} {version}: states no licence")),
        Some(license) => match satisfied(license, &rules.licenses.allow) {
            Ok(true) => {}
            Ok(false) => wrong.push(format!("{name} {version}: licence {license}")),
            Err(e) => wrong.push(format!("{name} {version}: licence {license}: {e}")),
        },
    }
    if let Some(banned) = rules.bans.deny.iter().find(|b| b.name == *name) {
        wrong.push(format!("{name} {version}: banned: {}", banned.reason));
    }
    if let Some(source) = &package.source
        && !rules
            .sources
            .allow_registry
            .iter()
            .any(|r| source.strip_prefix("registry+") == Some(r))
    {
        wrong.push(format!("{name} {version}: comes from {source}"));
    }
    wrong
}

/// Whether a licence expression can be met with the allowed licences.
fn satisfied(expression: &str, allow: &BTreeSet<String>) -> Result<bool> {
    // Old manifests write a slash for OR.
    let text = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let mut words = text.split_whitespace().peekable();
    let met = any_of(&mut words, allow)?;
    match words.next() {
        None => Ok(met),
        Some(word) => bail!("unexpected {word}"),
    }
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any_of(words: &mut Words<'_>, allow: &BTreeSet<String>) -> Result<bool> {
    let mut met = all_of(words, allow)?;
    while words.next_if_eq(&"OR").is_some() {
        met |= all_of(words, allow)?;
    }
    Ok(met)
}

fn all_of(words: &mut Words<'_>, allow: &BTreeSet<String>) -> Result<bool> {
    let mut met = one(words, allow)?;
    while words.next_if_eq(&"AND").is_some() {
        met &= one(words, allow)?;
    }
    Ok(met)
}

fn one(words: &mut Words<'_>, allow: &BTreeSet<String>) -> Result<bool> {
    let word = words.next().context("the expression ends early")?;
    if word == "(" {
        let met = any_of(words, allow)?;
        words.next_if_eq(&")").context("a parenthesis stays open")?;
        return Ok(met);
    }
    if words.next_if_eq(&"WITH").is_some() {
        let exception = words.next().context("the expression ends early")?;
        return Ok(allow.contains(&format!("{word} WITH {exception}")));
    }
    Ok(allow.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions() {
        let allow = ["MIT", "Apache-2.0 WITH LLVM-exception", "ISC"]
            .map(str::to_owned)
            .into();
        for (text, met) in [
            ("MIT", true),
            ("GPL-3.0 OR MIT", true),
            ("GPL-3.0/MIT", true),
            ("GPL-3.0 AND MIT", false),
            ("(GPL-3.0 OR MIT) AND ISC", true),
            ("Apache-2.0", false),
            ("Apache-2.0 WITH LLVM-exception", true),
        ] {
            assert_eq!(satisfied(text, &allow).unwrap(), met, "{text}");
        }
        assert!(satisfied("(MIT", &allow).is_err());
        assert!(satisfied("MIT ISC", &allow).is_err());
    }
}
