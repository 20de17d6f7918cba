//! Image references: `[registry[:port]/]repository[:tag][@digest]`, as Docker and Kubernetes
//! read them (the grammar of the `distribution/reference` package).

use crate::Digest;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// Repository path length at most (the grammar's own bound).
const REPOSITORY_LEN_MAX: usize = 255;
/// Tag length at most.
const TAG_LEN_MAX: usize = 128;
/// The registry of names that state none.
const DEFAULT_REGISTRY: &str = "docker.io";

/// A parsed image name with defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// An image name that no registry could serve: kubelet's `InvalidImageName`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("couldn't parse image name {name:?}: invalid reference format{hint}")]
pub struct InvalidImageName {
    /// What was given, cut to a readable length.
    pub name: String,
    /// What is wrong with it, beginning with `: `; may be empty.
    pub hint: &'static str,
}

impl Reference {
    /// Parses an image name. Without a registry it is `docker.io` (and `library/` before a
    /// single-part repository); without tag and digest the tag is `latest`.
    ///
    /// # Errors
    /// [`InvalidImageName`] when it breaks the grammar.
    pub fn parse(name: &str) -> Result<Self, InvalidImageName> {
        split(name).map_err(|hint| InvalidImageName {
            name: name.chars().take(256).collect(),
            hint,
        })
    }

    /// Registry host, with the port when one is stated: `docker.io`, `localhost:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path inside the registry: `library/busybox`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `None` only when a digest is stated alone.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, when one is stated; it wins over the tag.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Registry and repository, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The same repository at a digest, without tag.
    pub fn at(&self, digest: Digest) -> Self {
        Self {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// What follows `/manifests/` in a request.
    pub(crate) fn manifest_key(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => "latest",
        }
    }
}

/// Whether a registry host (with or without port) is this machine by name or address.
pub(crate) fn is_loopback(registry: &str) -> bool {
    let host = host_of(registry);
    host == "localhost"
        || host.ends_with(".localhost")
        || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// A registry's host without port and brackets.
pub(crate) fn host_of(registry: &str) -> &str {
    if let Some(rest) = registry.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    registry.split(':').next().unwrap_or(registry)
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = InvalidImageName;

    fn from_str(name: &str) -> Result<Self, InvalidImageName> {
        Self::parse(name)
    }
}

impl TryFrom<String> for Reference {
    type Error = InvalidImageName;

    fn try_from(name: String) -> Result<Self, InvalidImageName> {
        Self::parse(&name)
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

fn split(name: &str) -> Result<Reference, &'static str> {
    let (rest, digest) = match name.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse().map_err(|_| ": bad digest")?)),
        None => (name, None),
    };
    // A colon after the last slash begins the tag; before it, a port.
    let (path, tag) = match rest.rfind(':') {
        Some(at) if !rest[at..].contains('/') => (&rest[..at], Some(&rest[at + 1..])),
        _ => (rest, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err(": bad tag");
    }
    let (registry, repository) = match path.split_once('/') {
        Some((first, rest)) if is_registry_part(first) => (first, rest.to_owned()),
        _ => (DEFAULT_REGISTRY, path.to_owned()),
    };
    let registry = match registry {
        "index.docker.io" => DEFAULT_REGISTRY,
        registry => registry,
    };
    if !is_registry(registry) {
        return Err(": bad registry host");
    }
    let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
        // Prefixing must not turn an empty name into a good one.
        if repository.is_empty() {
            return Err("");
        }
        format!("library/{repository}")
    } else {
        repository
    };
    if repository.len() > REPOSITORY_LEN_MAX {
        return Err(": repository name must not be more than 255 characters");
    }
    if !repository.split('/').all(is_component) {
        let upper = repository.bytes().any(|b| b.is_ascii_uppercase());
        return Err(if upper {
            ": repository name must be lowercase"
        } else {
            ""
        });
    }
    let tag = match (tag, &digest) {
        (None, None) => Some("latest".to_owned()),
        (tag, _) => tag.map(str::to_owned),
    };
    Ok(Reference {
        registry: registry.to_ascii_lowercase(),
        repository,
        tag,
        digest,
    })
}

/// The first part of a name is a registry when it can't be a Docker Hub account.
fn is_registry_part(part: &str) -> bool {
    part.contains(['.', ':']) || part == "localhost"
}

fn is_registry(registry: &str) -> bool {
    let port_ok = |port: &str| {
        !port.is_empty()
            && port.bytes().all(|b| b.is_ascii_digit())
            && port.parse::<u16>().is_ok_and(|port| port > 0)
    };
    if let Some(rest) = registry.strip_prefix('[') {
        let Some((ip, after)) = rest.split_once(']') else {
            return false;
        };
        let after_ok = after.is_empty() || after.strip_prefix(':').is_some_and(port_ok);
        return ip.parse::<std::net::Ipv6Addr>().is_ok() && after_ok;
    }
    let (host, port) = match registry.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (registry, None),
    };
    let label_ok = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.split('.').all(label_ok) && port.is_none_or(port_ok)
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= TAG_LEN_MAX
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

/// One path part: runs of `[a-z0-9]` joined by `.`, `_`, `__` or any number of `-`.
fn is_component(part: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    if !bytes.first().copied().is_some_and(alnum) || !bytes.last().copied().is_some_and(alnum) {
        return false;
    }
    part.split(|c: char| c.is_ascii() && alnum(c as u8))
        .filter(|separator| !separator.is_empty())
        .all(|separator| {
            matches!(separator, "." | "_" | "__") || separator.bytes().all(|b| b == b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn fills_defaults_in() {
        let digest = format!("sha256:{HEX}");
        for (name, want) in [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("busybox:1.36", "docker.io/library/busybox:1.36".to_owned()),
            ("me/app", "docker.io/me/app:latest".to_owned()),
            (
                "index.docker.io/busybox",
                "docker.io/library/busybox:latest".to_owned(),
            ),
            ("localhost/app", "localhost/app:latest".to_owned()),
            ("localhost:5000/a/b:v1", "localhost:5000/a/b:v1".to_owned()),
            ("127.0.0.1:5000/x", "127.0.0.1:5000/x:latest".to_owned()),
            ("[::1]:5000/x:1", "[::1]:5000/x:1".to_owned()),
            ("Reg.Example.COM/x", "reg.example.com/x:latest".to_owned()),
            (
                "ghcr.io/a__b/c-d--e.f_g",
                "ghcr.io/a__b/c-d--e.f_g:latest".to_owned(),
            ),
            (
                &format!("x@{digest}"),
                format!("docker.io/library/x@{digest}"),
            ),
            (&format!("r.io/x:1@{digest}"), format!("r.io/x:1@{digest}")),
        ] {
            assert_eq!(Reference::parse(name).unwrap().to_string(), want, "{name}");
        }
    }

    #[test]
    fn refuses_what_no_registry_serves() {
        for name in [
            "",
            ":",
            "@",
            "/",
            "//x",
            "x/",
            "/x",
            "a//b",
            "UPPER",
            "a/B",
            "x:",
            "x: ",
            "x:-a",
            "x@sha256:12",
            "http://r.io/x",
            "r.io:0/x",
            "r.io:99999/x",
            "r.io:/x",
            "[::1/x",
            "[zz]:1/x",
            "-r.io/x",
            "r_.io:1/x",
            "a..b",
            "a___b",
            ".a",
            "a-",
            "x y",
            "ex\u{e4}mple",
            "r.io/x:1:2",
            "docker.io/",
        ] {
            assert!(Reference::parse(name).is_err(), "{name:?}");
        }
        assert!(Reference::parse(&"a".repeat(300)).is_err());
        assert!(Reference::parse(&format!("x:{}", "a".repeat(129))).is_err());
        assert_eq!(
            Reference::parse("Nginx").unwrap_err().to_string(),
            "couldn't parse image name \"Nginx\": invalid reference format: \
             repository name must be lowercase"
        );
    }

    #[test]
    fn knows_loopback() {
        for host in [
            "localhost",
            "localhost:5000",
            "127.1.2.3:5",
            "[::1]:5000",
            "a.localhost",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "docker.io",
            "10.0.0.1:5000",
            "[fe80::1]",
            "localhost.example.com",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(name in "\\PC*") {
            let _ = Reference::parse(&name);
        }

        #[test]
        fn what_parses_prints_and_parses_again(
            name in "([a-z.:0-9\\[\\]-]{0,12}/){0,2}[a-zA-Z0-9._/-]{0,12}(:[a-z0-9._-]{0,6})?"
        ) {
            if let Ok(reference) = Reference::parse(&name) {
                prop_assert_eq!(Reference::parse(&reference.to_string()), Ok(reference));
            }
        }
    }
}
