//! Registry credentials: image pull secrets, Docker's and Podman's files, credential helpers.
//!
//! Nothing here talks to a registry; `registry` uses what [`Keyring::candidates`] finds.

use crate::Reference;
use crate::reference::host_of;
use base64::Engine as _;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;

/// How long a credential helper may take; it may ask a cloud's metadata service.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);
/// What Docker calls its hub in credential files and to helpers.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// A credential and where it may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    /// `host[:port][/path]`; host parts may hold `*` as in Kubernetes' pull secrets.
    pub scope: String,
    /// What to prove oneself with.
    pub credential: Credential,
}

/// What a registry or its token service takes.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// User name and password (or access token used as one).
    Basic {
        /// User name.
        username: String,
        /// Password.
        password: String,
    },
    /// A refresh token for the token service.
    IdentityToken(String),
    /// A bearer token for the registry itself.
    RegistryToken(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic(..)",
            Self::IdentityToken(_) => "IdentityToken(..)",
            Self::RegistryToken(_) => "RegistryToken(..)",
        })
    }
}

/// Why a credentials document can't be used. Its text never holds the document's.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// Not JSON, or of another shape; line and column only.
    #[error("parse registry credentials: line {line}, column {column}")]
    Parse {
        /// Line.
        line: usize,
        /// Column.
        column: usize,
    },
    /// `auth` is not `user:password` in base64.
    #[error("parse registry credentials for {0}: auth is not base64 of user:password")]
    Encoding(String),
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ConfigFile {
    auths: BTreeMap<String, Entry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    username: String,
    password: String,
    auth: String,
    identitytoken: String,
    registrytoken: String,
}

impl Auth {
    /// Parses a Secret's `.dockerconfigjson`.
    ///
    /// # Errors
    /// [`AuthError`], without the secret's text.
    pub fn from_docker_config_json(bytes: &[u8]) -> Result<Vec<Self>, AuthError> {
        let file: ConfigFile = parse(bytes)?;
        entries(&file.auths)
    }

    /// Parses a Secret's `.dockercfg` (the map without `auths` around it).
    ///
    /// # Errors
    /// [`AuthError`], without the secret's text.
    pub fn from_dockercfg(bytes: &[u8]) -> Result<Vec<Self>, AuthError> {
        entries(&parse::<BTreeMap<String, Entry>>(bytes)?)
    }
}

fn parse<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, AuthError> {
    serde_json::from_slice(bytes).map_err(|error| AuthError::Parse {
        line: error.line(),
        column: error.column(),
    })
}

fn entries(map: &BTreeMap<String, Entry>) -> Result<Vec<Auth>, AuthError> {
    let mut auths = Vec::new();
    for (key, entry) in map {
        if let Some(credential) = credential(key, entry)? {
            auths.push(Auth {
                scope: normalize(key),
                credential,
            });
        }
    }
    Ok(auths)
}

fn credential(key: &str, entry: &Entry) -> Result<Option<Credential>, AuthError> {
    if !entry.registrytoken.is_empty() {
        return Ok(Some(Credential::RegistryToken(entry.registrytoken.clone())));
    }
    if !entry.identitytoken.is_empty() {
        return Ok(Some(Credential::IdentityToken(entry.identitytoken.clone())));
    }
    if entry.auth.is_empty() {
        return Ok((!entry.username.is_empty()).then(|| Credential::Basic {
            username: entry.username.clone(),
            password: entry.password.clone(),
        }));
    }
    let bad = || AuthError::Encoding(key.chars().take(160).collect());
    let engine = base64::engine::GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        base64::engine::GeneralPurposeConfig::new()
            .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
    );
    let text = engine.decode(entry.auth.trim()).map_err(|_| bad())?;
    let text = String::from_utf8(text).map_err(|_| bad())?;
    let (username, password) = text.split_once(':').ok_or_else(bad)?;
    Ok(Some(Credential::Basic {
        username: username.to_owned(),
        // Docker pads with NUL bytes at times.
        password: password.trim_end_matches('\0').to_owned(),
    }))
}

/// A key of a credentials file as `host[:port][/path]`.
fn normalize(key: &str) -> String {
    let key = key.trim();
    let key = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key)
        .trim_end_matches('/');
    let key = key
        .strip_suffix("/v1")
        .or_else(|| key.strip_suffix("/v2"))
        .unwrap_or(key);
    let (host, path) = key.split_at(key.find('/').unwrap_or(key.len()));
    let host = host.to_ascii_lowercase();
    match host.as_str() {
        "index.docker.io" | "registry-1.docker.io" => format!("docker.io{path}"),
        _ => format!("{host}{path}"),
    }
}

/// Whether a scope covers a repository: host part by part with `*`, the same port, and a path
/// that is a prefix at a slash.
fn covers(scope: &str, registry: &str, repository: &str) -> bool {
    let (scope_host, scope_path) = match scope.split_once('/') {
        Some((host, path)) => (host, path),
        None => (scope, ""),
    };
    let path_ok = scope_path.is_empty()
        || repository
            .strip_prefix(scope_path)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let port = |host: &str| host[host_of(host).len()..].to_owned();
    if !path_ok || port(scope_host) != port(registry) {
        return false;
    }
    let (pattern, host) = (host_of(scope_host), host_of(registry));
    pattern.split('.').count() == host.split('.').count()
        && pattern
            .split('.')
            .zip(host.split('.'))
            .all(|(pattern, part)| glob(pattern, part))
}

/// Those of the credentials that are for an image's own registry.
pub(crate) fn covering<'a>(
    auths: &'a [Auth],
    reference: &'a Reference,
) -> impl Iterator<Item = &'a Credential> {
    auths
        .iter()
        .filter(|auth| {
            let scope = normalize(&auth.scope);
            covers(&scope, reference.registry(), reference.repository())
        })
        .map(|auth| &auth.credential)
}

fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => text.strip_prefix(before).is_some_and(|rest| {
            (0..=rest.len())
                .filter(|at| rest.is_char_boundary(*at))
                .any(|at| glob(after, &rest[at..]))
        }),
    }
}

/// The credential files that Docker and Podman use, the more specific first. `env` reads the
/// environment: only the binary may.
pub fn default_auth_files(env: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let mut files = Vec::new();
    if let Some(file) = env("REGISTRY_AUTH_FILE") {
        files.push(PathBuf::from(file));
    }
    match (env("DOCKER_CONFIG"), env("HOME")) {
        (Some(dir), _) => files.push(PathBuf::from(dir).join("config.json")),
        (None, Some(home)) => files.push(PathBuf::from(home).join(".docker/config.json")),
        (None, None) => {}
    }
    if let Some(dir) = env("XDG_RUNTIME_DIR") {
        files.push(PathBuf::from(dir).join("containers/auth.json"));
    }
    files
}

/// Where credentials are looked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keyring {
    pub(crate) files: Vec<PathBuf>,
}

impl Keyring {
    /// Credentials to try for a repository, in order: those given (the most specific first),
    /// then the machine's. Ends with `None`, no credential, when nothing matched.
    pub(crate) async fn candidates(
        &self,
        given: &[Auth],
        registry: &str,
        reference: &Reference,
    ) -> Vec<Option<Credential>> {
        let mut matching: Vec<&Auth> = given
            .iter()
            .filter(|auth| covers(&normalize(&auth.scope), registry, reference.repository()))
            .collect();
        matching.sort_by_key(|auth| std::cmp::Reverse(auth.scope.len()));
        let mut found: Vec<_> = matching
            .into_iter()
            .map(|auth| Some(auth.credential.clone()))
            .collect();
        for path in &self.files {
            match from_file(path, registry, reference.repository()).await {
                Ok(more) => found.extend(more.into_iter().map(Some)),
                // Others' files may be broken; the pull may need none of them.
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "can't use registry credentials");
                }
            }
        }
        found.dedup();
        if found.is_empty() {
            found.push(None);
        }
        found
    }
}

async fn from_file(
    path: &std::path::Path,
    registry: &str,
    repository: &str,
) -> Result<Vec<Credential>, AuthError> {
    let Ok(bytes) = tokio::fs::read(path).await else {
        return Ok(Vec::new());
    };
    let file: ConfigFile = parse(&bytes)?;
    let helper = file
        .cred_helpers
        .iter()
        .find(|(key, _)| normalize(key) == registry)
        .map(|(key, helper)| (key.as_str(), helper.as_str()));
    let store = (!file.creds_store.is_empty()).then(|| {
        let key = if registry == "docker.io" {
            DOCKER_HUB_KEY
        } else {
            registry
        };
        (key, file.creds_store.as_str())
    });
    if let Some((key, helper)) = helper.or(store)
        && let Some(credential) = ask_helper(helper, key).await
    {
        return Ok(vec![credential]);
    }
    let mut auths = entries(&file.auths)?;
    auths.retain(|auth| covers(&auth.scope, registry, repository));
    auths.sort_by_key(|auth| std::cmp::Reverse(auth.scope.len()));
    Ok(auths.into_iter().map(|auth| auth.credential).collect())
}

/// Runs `docker-credential-NAME get`. A helper that knows nothing of a registry is no error.
async fn ask_helper(name: &str, server: &str) -> Option<Credential> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if !name.bytes().all(plain) {
        tracing::warn!(helper = name, "credential helper has a bad name");
        return None;
    }
    let run = async {
        let mut child = tokio::process::Command::new(format!("docker-credential-{name}"))
            .arg("get")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(server.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    let output = match tokio::time::timeout(HELPER_TIMEOUT, run).await {
        Ok(Ok(output)) if output.status.success() => output,
        Ok(Ok(_)) => return None,
        Ok(Err(error)) => {
            tracing::warn!(helper = name, %error, "can't run credential helper");
            return None;
        }
        Err(_) => {
            tracing::warn!(helper = name, "credential helper does not answer");
            return None;
        }
    };
    let answer: Answer = serde_json::from_slice(&output.stdout).ok()?;
    Some(if answer.username == "<token>" {
        Credential::IdentityToken(answer.secret)
    } else {
        Credential::Basic {
            username: answer.username,
            password: answer.secret,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(username: &str, password: &str) -> Credential {
        Credential::Basic {
            username: username.to_owned(),
            password: password.to_owned(),
        }
    }

    #[test]
    fn reads_secrets_of_both_types() {
        let auth = base64::engine::general_purpose::STANDARD.encode("me:pass:word");
        let inner = format!(
            r#"{{"https://index.docker.io/v1/":{{"auth":"{auth}"}},
                 "r.io":{{"username":"u","password":"p"}},
                 "t.io":{{"identitytoken":"id"}},
                 "empty.io":{{}}}}"#
        );
        let want = [
            ("docker.io", basic("me", "pass:word")),
            ("r.io", basic("u", "p")),
            ("t.io", Credential::IdentityToken("id".to_owned())),
        ];
        let wrapped = format!(r#"{{"auths":{inner},"HttpHeaders":{{}}}}"#);
        for auths in [
            Auth::from_dockercfg(inner.as_bytes()).unwrap(),
            Auth::from_docker_config_json(wrapped.as_bytes()).unwrap(),
        ] {
            let got: Vec<_> = auths
                .iter()
                .map(|auth| (auth.scope.as_str(), auth.credential.clone()))
                .collect();
            assert_eq!(got, want);
            assert!(!format!("{auths:?}").contains("word"), "secret in Debug");
        }
        assert!(Auth::from_docker_config_json(b"{").is_err());
        let bad = Auth::from_dockercfg(br#"{"r.io":{"auth":"!!"}}"#).unwrap_err();
        assert_eq!(
            bad.to_string(),
            "parse registry credentials for r.io: auth is not base64 of user:password"
        );
    }

    #[test]
    fn scopes_cover_as_pull_secrets_do() {
        for (scope, registry, repository, want) in [
            ("r.io", "r.io", "a/b", true),
            ("https://r.io/v2/", "r.io", "a", true),
            ("*.r.io", "x.r.io", "a", true),
            ("*.r.io", "r.io", "a", false),
            ("*.r.io", "x.y.r.io", "a", false),
            ("r.io/team", "r.io", "team/app", true),
            ("r.io/team", "r.io", "teams/app", false),
            ("r.io:5000", "r.io", "a", false),
            ("r.io:5000", "r.io:5000", "a", true),
            ("pre*fix.io", "pre-x-fix.io", "a", true),
        ] {
            assert_eq!(
                covers(&normalize(scope), registry, repository),
                want,
                "{scope}"
            );
        }
    }

    #[tokio::test]
    async fn the_most_specific_comes_first_and_nothing_means_anonymous() {
        let reference = Reference::parse("r.io/team/app").unwrap();
        let given = [
            Auth {
                scope: "r.io".to_owned(),
                credential: basic("wide", ""),
            },
            Auth {
                scope: "r.io/team".to_owned(),
                credential: basic("narrow", ""),
            },
            Auth {
                scope: "q.io".to_owned(),
                credential: basic("other", ""),
            },
        ];
        let keyring = Keyring::default();
        assert_eq!(
            keyring.candidates(&given, "r.io", &reference).await,
            [Some(basic("narrow", "")), Some(basic("wide", ""))]
        );
        assert_eq!(keyring.candidates(&[], "r.io", &reference).await, [None]);
    }

    #[tokio::test]
    async fn files_of_this_machine_are_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(
            &path,
            r#"{"auths":{"r.io":{"username":"u","password":"p"}}}"#,
        )
        .unwrap();
        let keyring = Keyring {
            files: vec![dir.path().join("none"), path],
        };
        let reference = Reference::parse("r.io/app").unwrap();
        assert_eq!(
            keyring.candidates(&[], "r.io", &reference).await,
            [Some(basic("u", "p"))]
        );
    }
}
