//! Tokens of OpenID Connect issuers, as an `AuthenticationConfiguration` says.
//!
//! [`mapping`] makes a user of claims, [`keys`] holds an issuer's keys and checks signatures.
//! Keys are fetched when a token first needs them, and again when one is of a key that is not
//! known: a site boots without its issuers. The reference is
//! `k8s.io/apiserver/plugin/pkg/authenticator/token/oidc` and the documentation
//! "Authenticating", "OpenID Connect Tokens". Start with [`Oidc::parse`].

mod keys;
mod mapping;

use super::User;
use crate::https;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http_body_util::BodyExt as _;
use keys::Keys;
use mapping::Mapping;
use parking_lot::Mutex;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Bytes of a token; a longer one is none.
const TOKEN_BYTES_MAX: usize = 64 * 1024;
/// Bytes of an issuer's documents; a longer one is an error.
const DOCUMENT_BYTES_MAX: usize = 1 << 20;
/// How long an issuer may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// An issuer is asked for its keys this often at most, whatever tokens come.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// Keys older than this are asked for anew; those known are used when nobody answers.
const KEYS_AGE_MAX: Duration = Duration::from_secs(3600);
/// How far ahead an issuer's clock may be.
const LEEWAY_SECONDS: i64 = 300;

/// All issuers that are believed.
#[derive(Debug)]
pub(crate) struct Oidc {
    issuers: Vec<Issuer>,
}

/// One issuer.
struct Issuer {
    url: String,
    discovery: String,
    audiences: Vec<String>,
    /// Algorithms that signatures may be of.
    algorithms: Vec<String>,
    client: https::Client,
    mapping: Mapping,
    keys: Mutex<Option<(Arc<Keys>, Instant)>>,
    /// When it was last asked; held while it is.
    asked: tokio::sync::Mutex<Option<Instant>>,
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issuer")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

fn list(v: &Value) -> impl Iterator<Item = &Value> {
    v.as_array().into_iter().flatten()
}

fn text<'v>(v: &'v Value, key: &str) -> &'v str {
    v[key].as_str().unwrap_or_default()
}

impl Oidc {
    /// Reads an `AuthenticationConfiguration`; `own` is the issuer of ServiceAccount tokens.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(crate) fn parse(config: &str, own: &str) -> Result<Self, String> {
        let v: Value = serde_saphyr::from_str(config).map_err(|e| e.to_string())?;
        const VERSIONS: [&str; 2] = [
            "apiserver.config.k8s.io/v1",
            "apiserver.config.k8s.io/v1beta1",
        ];
        if v["kind"] != "AuthenticationConfiguration" || !VERSIONS.contains(&text(&v, "apiVersion"))
        {
            return Err(
                "want kind AuthenticationConfiguration of apiserver.config.k8s.io/v1".to_owned(),
            );
        }
        let mut issuers: Vec<Issuer> = Vec::new();
        for (i, jwt) in list(&v["jwt"]).enumerate() {
            let at = format!("jwt[{i}]");
            let made = Issuer::parse(jwt).map_err(|e| format!("{at}.{e}"))?;
            if made.url == own || issuers.iter().any(|o| o.url == made.url) {
                return Err(format!("{at}.issuer.url: Duplicate value: {:?}", made.url));
            }
            issuers.push(made);
        }
        Ok(Self { issuers })
    }

    /// The user of a token, if it is one of these issuers'.
    pub(crate) async fn user(&self, token: &str, now: i64) -> Option<Result<User, String>> {
        let (issuer, token) = self.issuers.iter().find_map(|issuer| {
            let token = Token::read(token)?;
            (text(&token.claims, "iss") == issuer.url).then_some((issuer, token))
        })?;
        Some(issuer.user(token, now).await)
    }
}

/// A token taken apart, not yet believed.
struct Token<'t> {
    header: Value,
    claims: Value,
    /// What is signed.
    signed: &'t str,
    signature: Vec<u8>,
}

impl<'t> Token<'t> {
    fn read(token: &'t str) -> Option<Self> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let json = |part: &str| -> Option<Value> {
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
        };
        Some(Self {
            header: json(header)?,
            claims: json(claims)?,
            signed,
            signature: URL_SAFE_NO_PAD.decode(signature).ok()?,
        })
    }
}

impl Issuer {
    fn parse(jwt: &Value) -> Result<Self, String> {
        let issuer = &jwt["issuer"];
        let url = text(issuer, "url").to_owned();
        if !url.starts_with("https://") || url.contains(['?', '#', '@']) {
            return Err(format!(
                "issuer.url: Invalid value: {url:?}: URL scheme must be https, without user, query and fragment"
            ));
        }
        let discovery = match text(issuer, "discoveryURL") {
            "" => format!(
                "{}/.well-known/openid-configuration",
                url.trim_end_matches('/')
            ),
            other if other.starts_with("https://") => other.to_owned(),
            other => {
                return Err(format!(
                    "issuer.discoveryURL: Invalid value: {other:?}: URL scheme must be https"
                ));
            }
        };
        let audiences: Vec<String> = list(&issuer["audiences"])
            .filter_map(|a| a.as_str().map(str::to_owned))
            .collect();
        if audiences.is_empty() || audiences.iter().any(String::is_empty) {
            return Err("issuer.audiences: Required value: at least one is required".to_owned());
        }
        let policy = text(issuer, "audienceMatchPolicy");
        if audiences.len() > 1 && policy != "MatchAny" {
            return Err("issuer.audienceMatchPolicy: Invalid value: audienceMatchPolicy must be MatchAny for multiple audiences".to_owned());
        }
        let ca = text(issuer, "certificateAuthority");
        let tls = https::trusting(ca.as_bytes(), false, None)
            .map_err(|e| format!("issuer.certificateAuthority: Invalid value: {e}"))?;
        // Upstream takes all of them; its flags, which come here in this form, limit them.
        let stated: Vec<String> = list(&issuer["signingAlgorithms"])
            .filter_map(|a| a.as_str().map(str::to_owned))
            .collect();
        Ok(Self {
            url,
            discovery,
            audiences,
            algorithms: stated,
            client: https::client(tls, None),
            mapping: Mapping::parse(jwt)?,
            keys: Mutex::default(),
            asked: tokio::sync::Mutex::default(),
        })
    }

    async fn user(&self, token: Token<'_>, now: i64) -> Result<User, String> {
        let claims = &token.claims;
        let algorithm = text(&token.header, "alg");
        if !self.algorithms.is_empty() && self.algorithms.iter().all(|a| a != algorithm) {
            return Err(format!("algorithm {algorithm:?} is not accepted"));
        }
        // Before keys are asked for: what can't be accepted makes nobody ask.
        let exp = claims["exp"].as_f64().ok_or("the token has no expiry")?;
        if now as f64 > exp {
            return Err("the token is expired".to_owned());
        }
        if claims["nbf"]
            .as_f64()
            .is_some_and(|nbf| ((now + LEEWAY_SECONDS) as f64) < nbf)
        {
            return Err("the token is not valid yet".to_owned());
        }
        let is_ours = |a: &Value| {
            a.as_str()
                .is_some_and(|a| self.audiences.iter().any(|o| o == a))
        };
        if !is_ours(&claims["aud"]) && !list(&claims["aud"]).any(is_ours) {
            return Err("the token is for another audience".to_owned());
        }
        self.verify(&token).await?;
        self.mapping.user(claims)
    }

    async fn verify(&self, token: &Token<'_>) -> Result<(), String> {
        let known = self.keys.lock().clone();
        let fresh = known
            .as_ref()
            .is_some_and(|(_, at)| at.elapsed() < KEYS_AGE_MAX);
        let good = |keys: &Keys| keys.verify(&token.header, token.signed, &token.signature);
        if fresh && known.as_ref().is_some_and(|(keys, _)| good(keys)) {
            return Ok(());
        }
        if let Err(error) = self.refresh().await {
            tracing::warn!(
                issuer = self.url,
                error,
                "the keys of an issuer can't be read"
            );
        }
        let known = self.keys.lock().clone();
        match known {
            Some((keys, _)) if good(&keys) => Ok(()),
            Some(_) => Err("failed to verify signature".to_owned()),
            None => Err("the keys of its issuer are not known yet".to_owned()),
        }
    }

    /// Asks for the keys, unless somebody did just now.
    async fn refresh(&self) -> Result<(), String> {
        let mut asked = self.asked.lock().await;
        if asked.is_some_and(|at| at.elapsed() < ASK_AGAIN) {
            return Ok(());
        }
        *asked = Some(Instant::now());
        let found = self.get(&self.discovery).await?;
        if text(&found, "issuer") != self.url {
            return Err(format!(
                "the issuer calls itself {:?}",
                text(&found, "issuer")
            ));
        }
        let keys = self.get(text(&found, "jwks_uri")).await?;
        let keys = Arc::new(Keys::parse(&keys));
        *self.keys.lock() = Some((keys, Instant::now()));
        Ok(())
    }

    async fn get(&self, url: &str) -> Result<Value, String> {
        let body = http_body_util::Empty::new().map_err(|e| -> https::BoxError { match e {} });
        let mut request = http::Request::new(body.boxed_unsync());
        *request.uri_mut() = url.parse().map_err(|_| format!("no URL: {url:?}"))?;
        https::json(&self.client, request, DOCUMENT_BYTES_MAX, TIMEOUT).await
    }
}
