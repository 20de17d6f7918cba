//! One endpoint, one repository: requests with authorization.

use super::challenge::{self, Challenge};
use super::{Endpoint, RegistryConfig, RegistryError, may_carry_secrets, with_retries};
use crate::auth::Credential;
use crate::manifest::{ACCEPT, MANIFEST_BYTES_MAX};
use crate::{Digest, Reference};
use base64::Engine as _;
use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderValue};
use reqwest::{RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use url::Url;

/// Error bodies and token answers are read up to here.
const ANSWER_BYTES_MAX: u64 = 1 << 20;
/// How much of an error body is shown.
const MESSAGE_LEN_MAX: usize = 300;
/// Expired tokens renewed in one session at most; a registry that never accepts what its own
/// token service gives would go on for ever.
const RENEWALS_MAX: u32 = 8;

/// Requests for one repository at one endpoint.
pub(crate) struct Session {
    http: reqwest::Client,
    config: RegistryConfig,
    endpoint: Endpoint,
    repository: String,
    actions: &'static str,
    credentials: Vec<Option<Credential>>,
    /// Guards which credential is in use and the header made of it. Taken alone.
    state: Mutex<AuthState>,
}

#[derive(Default)]
struct AuthState {
    /// The credential in use.
    current: usize,
    header: Option<HeaderValue>,
    /// Whether that header was accepted once.
    worked: bool,
    renewals: u32,
}

/// A manifest as served.
pub(crate) struct ManifestAnswer {
    pub(crate) bytes: Bytes,
    pub(crate) digest: Digest,
    pub(crate) content_type: Option<String>,
}

/// The beginning of a blob's content.
pub(crate) struct BlobAnswer {
    pub(crate) response: Response,
    /// Where in the blob the content begins.
    pub(crate) offset: u64,
}

/// What is uploaded: sent in chunks, so that progress is seen.
pub(crate) struct Content(pub(crate) Bytes);

/// Told how many bytes were sent or received.
pub(crate) type Moved = Arc<dyn Fn(u64) + Send + Sync>;

impl Session {
    pub(super) fn new(
        http: reqwest::Client,
        config: RegistryConfig,
        endpoint: Endpoint,
        repository: String,
        actions: &'static str,
        credentials: Vec<Option<Credential>>,
    ) -> Self {
        Self {
            http,
            config,
            endpoint,
            repository,
            actions,
            credentials,
            state: Mutex::default(),
        }
    }

    /// The credential that the registry took, if it wanted one.
    pub(crate) async fn proven(&self) -> Option<Credential> {
        let state = self.state.lock().await;
        if !state.worked {
            return None;
        }
        self.credentials.get(state.current).cloned().flatten()
    }

    /// The endpoint's host, for messages.
    pub(crate) fn host(&self) -> &str {
        &self.endpoint.registry
    }

    pub(crate) fn config(&self) -> &RegistryConfig {
        &self.config
    }

    /// The digest that a tag stands for now, if the registry says so without the content.
    pub(crate) async fn head_manifest(
        &self,
        reference: &Reference,
    ) -> Result<Option<Digest>, RegistryError> {
        let url = self.url(&format!("manifests/{}", reference.manifest_key()))?;
        let response = with_retries(&self.config, || {
            self.send(&url, reference, |http| {
                http.head(url.clone()).header(header::ACCEPT, ACCEPT)
            })
        })
        .await?;
        Ok(stated_digest(response.headers()))
    }

    /// A manifest or index, verified against the reference's digest and the registry's own.
    pub(crate) async fn manifest(
        &self,
        reference: &Reference,
    ) -> Result<ManifestAnswer, RegistryError> {
        let url = self.url(&format!("manifests/{}", reference.manifest_key()))?;
        with_retries(&self.config, || async {
            let response = self
                .send(&url, reference, |http| {
                    http.get(url.clone()).header(header::ACCEPT, ACCEPT)
                })
                .await?;
            let stated = stated_digest(response.headers());
            let content_type = text_header(response.headers(), header::CONTENT_TYPE);
            let bytes = self.read_all(response, MANIFEST_BYTES_MAX).await?;
            let wanted = reference.digest().cloned().or(stated);
            let digest = wanted.unwrap_or_else(|| Digest::sha256(&bytes));
            if !digest.matches(&bytes) {
                return Err(RegistryError::Digest {
                    host: self.host().to_owned(),
                    wanted: digest,
                });
            }
            Ok(ManifestAnswer {
                bytes,
                digest,
                content_type,
            })
        })
        .await
    }

    /// Opens a blob, from an offset if the registry can; no retries here, the caller resumes.
    pub(crate) async fn open_blob(
        &self,
        digest: &Digest,
        offset: u64,
    ) -> Result<BlobAnswer, RegistryError> {
        let url = self.url(&format!("blobs/{digest}"))?;
        let response = self
            .send(&url, digest, |http| {
                let request = http.get(url.clone());
                if offset > 0 {
                    request.header(header::RANGE, format!("bytes={offset}-"))
                } else {
                    request
                }
            })
            .await?;
        let offset = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = text_header(response.headers(), header::CONTENT_RANGE);
                let start = range.as_deref().and_then(|range| {
                    let (start, _) = range.strip_prefix("bytes ")?.split_once('-')?;
                    start.trim().parse::<u64>().ok()
                });
                start.ok_or_else(|| self.protocol("206 without a content range"))?
            }
            _ => 0,
        };
        Ok(BlobAnswer { response, offset })
    }

    /// A blob of bounded length, verified.
    pub(crate) async fn whole_blob(
        &self,
        digest: &Digest,
        bytes_max: u64,
    ) -> Result<Bytes, RegistryError> {
        with_retries(&self.config, || async {
            let answer = self.open_blob(digest, 0).await?;
            let bytes = self.read_all(answer.response, bytes_max).await?;
            if digest.matches(&bytes) {
                return Ok(bytes);
            }
            Err(RegistryError::Digest {
                host: self.host().to_owned(),
                wanted: digest.clone(),
            })
        })
        .await
    }

    /// The repository's tags, as far as the registry lists them at once.
    pub(crate) async fn tags(&self) -> Result<Vec<String>, RegistryError> {
        #[derive(serde::Deserialize)]
        struct Tags {
            #[serde(default)]
            tags: Option<Vec<String>>,
        }
        let url = self.url("tags/list")?;
        let response = with_retries(&self.config, || {
            self.send(&url, &"tags", |http| http.get(url.clone()))
        })
        .await?;
        let bytes = self.read_all(response, MANIFEST_BYTES_MAX).await?;
        let tags: Tags =
            serde_json::from_slice(&bytes).map_err(|_| self.protocol("tags that are no JSON"))?;
        Ok(tags.tags.unwrap_or_default())
    }

    /// Whether the repository has a blob.
    pub(crate) async fn has_blob(&self, digest: &Digest) -> Result<bool, RegistryError> {
        let url = self.url(&format!("blobs/{digest}"))?;
        let head = with_retries(&self.config, || {
            self.send(&url, digest, |http| http.head(url.clone()))
        });
        match head.await {
            Ok(_) => Ok(true),
            Err(RegistryError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Uploads a blob in one piece, or has it mounted from another repository of the registry.
    pub(crate) async fn upload_blob(
        &self,
        digest: &Digest,
        size: u64,
        content: Content,
        mount_from: Option<&str>,
        moved: &Moved,
    ) -> Result<(), RegistryError> {
        with_retries(&self.config, || async {
            let mut start = self.url("blobs/uploads/")?;
            if let Some(from) = mount_from {
                start
                    .query_pairs_mut()
                    .append_pair("mount", digest.as_str())
                    .append_pair("from", from);
            }
            let response = self
                .send(&start, digest, |http| {
                    http.post(start.clone()).header(header::CONTENT_LENGTH, 0)
                })
                .await?;
            if response.status() == StatusCode::CREATED {
                moved(size);
                return Ok(());
            }
            let location = text_header(response.headers(), header::LOCATION)
                .and_then(|location| start.join(&location).ok());
            let mut put = location.ok_or_else(|| self.protocol("upload without a location"))?;
            put.query_pairs_mut().append_pair("digest", digest.as_str());
            self.send(&put, digest, |http| {
                http.put(put.clone())
                    .header(header::CONTENT_TYPE, "application/octet-stream")
                    .header(header::CONTENT_LENGTH, size)
                    .body(body(&content, moved))
            })
            .await
            .map(drop)
        })
        .await
    }

    /// Publishes a manifest under a tag.
    pub(crate) async fn put_manifest(
        &self,
        tag: &str,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<(), RegistryError> {
        let url = self.url(&format!("manifests/{tag}"))?;
        let response = with_retries(&self.config, || {
            self.send(&url, &tag, |http| {
                http.put(url.clone())
                    .header(header::CONTENT_TYPE, media_type)
                    .body(bytes.clone())
            })
        })
        .await?;
        match stated_digest(response.headers()) {
            Some(digest) if !digest.matches(&bytes) => Err(RegistryError::Digest {
                host: self.host().to_owned(),
                wanted: digest,
            }),
            _ => Ok(()),
        }
    }

    /// Reads a body of bounded length.
    async fn read_all(&self, mut response: Response, max: u64) -> Result<Bytes, RegistryError> {
        let mut bytes = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.request(e))? {
            if (bytes.len() + chunk.len()) as u64 > max {
                return Err(RegistryError::TooLong {
                    host: self.host().to_owned(),
                    bytes_max: max,
                });
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    }

    fn url(&self, path: &str) -> Result<Url, RegistryError> {
        let base = &self.endpoint.base;
        // A mirror's base may hold the API version already, with a project after it.
        let version = if base.path().contains("/v2/") {
            ""
        } else {
            "v2/"
        };
        let mut url = base
            .join(&format!("{version}{}/{path}", self.repository))
            .map_err(|_| self.protocol("bad address"))?;
        if let Some(mirrored) = &self.endpoint.mirror_of {
            url.query_pairs_mut().append_pair("ns", mirrored);
        }
        Ok(url)
    }

    /// Sends a request, answering challenges with one credential after the other.
    async fn send(
        &self,
        url: &Url,
        what: &(dyn std::fmt::Display + Sync),
        make: impl Fn(&reqwest::Client) -> RequestBuilder,
    ) -> Result<Response, RegistryError> {
        loop {
            let authorization = self.state.lock().await.header.clone();
            let mut request = make(&self.http);
            // An upload location may be on another host.
            let own = url.host_str() == self.endpoint.base.host_str()
                && may_carry_secrets(url, &self.endpoint);
            if let Some(authorization) = authorization.clone().filter(|_| own) {
                request = request.header(header::AUTHORIZATION, authorization);
            }
            let response = request.send().await.map_err(|e| self.request(e))?;
            match response.status() {
                status if status.is_success() => {
                    if authorization.is_some() {
                        self.state.lock().await.worked = true;
                    }
                    return Ok(response);
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    self.authorize(response, authorization).await?;
                }
                StatusCode::NOT_FOUND => {
                    return Err(RegistryError::NotFound {
                        what: what.to_string(),
                    });
                }
                _ => return Err(self.status(response).await),
            }
        }
    }

    /// Makes a header that the next try may succeed with, or says that there is none.
    async fn authorize(
        &self,
        refused: Response,
        used: Option<HeaderValue>,
    ) -> Result<(), RegistryError> {
        let challenge = challenge::parse(
            refused
                .headers()
                .get_all(header::WWW_AUTHENTICATE)
                .iter()
                .filter_map(|value| value.to_str().ok()),
        );
        let unauthorized_status = refused.status() == StatusCode::UNAUTHORIZED;
        let mut detail = self.message(refused).await;
        let mut state = self.state.lock().await;
        if state.header != used {
            // Another request of this session has renewed it meanwhile.
            return Ok(());
        }
        if used.is_some() {
            if unauthorized_status && state.worked && state.renewals < RENEWALS_MAX {
                state.renewals += 1;
            } else {
                state.current += 1;
            }
            state.worked = false;
        }
        while let Some(credential) = self.credentials.get(state.current) {
            match self.header(challenge.as_ref(), credential.as_ref()).await {
                Ok(header) => {
                    state.header = Some(header);
                    return Ok(());
                }
                Err(RegistryError::Unauthorized { detail: why }) => {
                    detail = why;
                    state.current += 1;
                }
                Err(error) => return Err(error),
            }
        }
        Err(RegistryError::Unauthorized { detail })
    }

    async fn header(
        &self,
        challenge: Option<&Challenge>,
        credential: Option<&Credential>,
    ) -> Result<HeaderValue, RegistryError> {
        let refused = |detail: &str| RegistryError::Unauthorized {
            detail: detail.to_owned(),
        };
        let text = match (challenge, credential) {
            (_, Some(Credential::RegistryToken(token))) => format!("Bearer {token}"),
            (Some(Challenge::Basic), Some(Credential::Basic { username, password })) => {
                basic(username, password)
            }
            (Some(Challenge::Bearer { .. }), credential) => {
                let token = with_retries(&self.config, || self.token(challenge, credential));
                format!("Bearer {}", token.await?)
            }
            (Some(Challenge::Basic), None) => return Err(refused("authentication required")),
            (None, _) => return Err(refused("access denied")),
            (Some(Challenge::Basic), Some(_)) => {
                return Err(refused("registry wants a user name and password"));
            }
        };
        let mut value =
            HeaderValue::from_str(&text).map_err(|_| refused("credential has bad characters"))?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// Asks the token service (distribution token authentication; OAuth2 for refresh tokens).
    async fn token(
        &self,
        challenge: Option<&Challenge>,
        credential: Option<&Credential>,
    ) -> Result<String, RegistryError> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(default)]
            token: String,
            #[serde(default)]
            access_token: String,
        }
        let Some(Challenge::Bearer {
            realm,
            service,
            scope,
        }) = challenge
        else {
            return Err(self.protocol("no token service"));
        };
        let realm = Url::parse(realm).map_err(|_| self.protocol("bad token service address"))?;
        if !matches!(realm.scheme(), "http" | "https") {
            return Err(self.protocol("bad token service address"));
        }
        if credential.is_some() && !may_carry_secrets(&realm, &self.endpoint) {
            return Err(self.protocol("token service wants credentials without TLS"));
        }
        let scope = scope
            .clone()
            .unwrap_or_else(|| format!("repository:{}:{}", self.repository, self.actions));
        let request = match credential {
            Some(Credential::IdentityToken(token)) => {
                let form = url::form_urlencoded::Serializer::new(String::new())
                    .append_pair("grant_type", "refresh_token")
                    .append_pair("service", service.as_deref().unwrap_or_default())
                    .append_pair("client_id", "salp")
                    .append_pair("scope", &scope)
                    .append_pair("refresh_token", token)
                    .finish();
                self.http
                    .post(realm)
                    .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(form)
            }
            credential => {
                let mut url = realm;
                if let Some(service) = service {
                    url.query_pairs_mut().append_pair("service", service);
                }
                url.query_pairs_mut().append_pair("scope", &scope);
                let request = self.http.get(url);
                match credential {
                    Some(Credential::Basic { username, password }) => {
                        request.header(header::AUTHORIZATION, basic(username, password))
                    }
                    _ => request,
                }
            }
        };
        let response = request.send().await.map_err(|e| self.request(e))?;
        match response.status() {
            status if status.is_success() => {}
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                return Err(self.status(response).await);
            }
            _ => {
                return Err(RegistryError::Unauthorized {
                    detail: self.message(response).await,
                });
            }
        }
        let bytes = self.read_all(response, ANSWER_BYTES_MAX).await?;
        let answer: Answer =
            serde_json::from_slice(&bytes).map_err(|_| self.protocol("bad token answer"))?;
        Some(answer.token)
            .filter(|token| !token.is_empty())
            .or(Some(answer.access_token).filter(|token| !token.is_empty()))
            .ok_or_else(|| self.protocol("token answer without token"))
    }

    async fn status(&self, response: Response) -> RegistryError {
        let status = response.status();
        let retry_after = retry_after(response.headers());
        let message = self.message(response).await;
        RegistryError::Status {
            host: self.host().to_owned(),
            status,
            message: format!(": {message}"),
            retry_after,
        }
    }

    /// What an error answer says, in one line.
    async fn message(&self, response: Response) -> String {
        #[derive(Deserialize)]
        struct Errors {
            errors: Vec<Entry>,
        }
        #[derive(Deserialize)]
        struct Entry {
            #[serde(default)]
            code: String,
            #[serde(default)]
            message: String,
        }
        let status = response.status();
        let bytes = self.read_all(response, ANSWER_BYTES_MAX).await;
        let bytes = bytes.unwrap_or_default();
        let text = match serde_json::from_slice::<Errors>(&bytes) {
            Ok(Errors { errors }) if !errors.is_empty() => errors
                .iter()
                .take(3)
                .map(|entry| format!("{}: {}", entry.code.to_lowercase(), entry.message))
                .collect::<Vec<_>>()
                .join("; "),
            _ => status
                .canonical_reason()
                .unwrap_or("unknown status")
                .to_lowercase(),
        };
        text.chars()
            .filter(|c| !c.is_control())
            .take(MESSAGE_LEN_MAX)
            .collect()
    }

    pub(crate) fn request(&self, source: reqwest::Error) -> RegistryError {
        RegistryError::Request {
            host: self.host().to_owned(),
            // The address may hold a signature.
            source: source.without_url(),
        }
    }

    pub(crate) fn protocol(&self, detail: &'static str) -> RegistryError {
        RegistryError::Protocol {
            host: self.host().to_owned(),
            detail,
        }
    }
}

fn basic(username: &str, password: &str) -> String {
    let pair = format!("{username}:{password}");
    let encoded = base64::engine::general_purpose::STANDARD.encode(pair);
    format!("Basic {encoded}")
}

fn text_header(headers: &HeaderMap, name: header::HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

fn stated_digest(headers: &HeaderMap) -> Option<Digest> {
    headers
        .get("docker-content-digest")?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

/// Seconds, or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?;
    Duration::try_from(date.timestamp().duration_since(jiff::Timestamp::now())).ok()
}

fn body(content: &Content, moved: &Moved) -> reqwest::Body {
    const CHUNK: usize = 64 << 10;
    let moved = Arc::clone(moved);
    let chunks = futures::stream::unfold(content.0.clone(), move |mut rest| {
        let chunk = rest.split_to(rest.len().min(CHUNK));
        moved(chunk.len() as u64);
        async move { (!chunk.is_empty()).then(|| (std::io::Result::Ok(chunk), rest)) }
    });
    reqwest::Body::wrap_stream(chunks)
}
