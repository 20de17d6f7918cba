//! ServiceAccount tokens: ES256 JWTs bound to an account and, if asked, a pod, secret or node.

use super::User;
use crate::server::Error;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use parking_lot::Mutex;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;

/// Verified tokens that are remembered; when full all are forgotten and verified anew.
const VERIFIED_MAX: usize = 2048;

/// What the API server knows of the objects that tokens are bound to.
pub(crate) trait Live {
    /// The uid of an object in the core group, if it is there and not being deleted.
    fn uid(&self, plural: &str, namespace: &str, name: &str) -> Option<String>;

    /// The Secret of a bootstrap token.
    fn bootstrap_secret(&self, id: &str) -> Option<Value>;
}

/// A name and uid.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Ref {
    pub(crate) name: String,
    pub(crate) uid: String,
}

/// The private claim `kubernetes.io`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Bound {
    pub(crate) namespace: String,
    pub(crate) serviceaccount: Ref,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pod: Option<Ref>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) secret: Option<Ref>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<Ref>,
}

/// A token's claims.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Claims {
    pub(crate) iss: String,
    pub(crate) sub: String,
    pub(crate) aud: Vec<String>,
    pub(crate) exp: i64,
    pub(crate) iat: i64,
    pub(crate) nbf: i64,
    pub(crate) jti: String,
    #[serde(rename = "kubernetes.io")]
    pub(crate) bound: Bound,
}

struct VerifyKey {
    id: String,
    key: DecodingKey,
    jwk: Value,
}

/// Signs and verifies tokens.
pub(crate) struct Tokens {
    signing: EncodingKey,
    keys: Vec<VerifyKey>,
    issuer: String,
    /// Signatures found good, by the token's hash; time and bindings are checked each time.
    verified: Mutex<HashMap<[u8; 32], Claims>>,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens")
            .field("issuer", &self.issuer)
            .finish_non_exhaustive()
    }
}

impl Tokens {
    /// From the signing key and further keys to accept, all PEM.
    pub(crate) fn new(issuer: &str, signing: &str, others: &[String]) -> Result<Self, Error> {
        let mut keys = vec![verify_key(signing)?];
        for pem in others {
            let key = verify_key(pem)?;
            if keys.iter().all(|k| k.id != key.id) {
                keys.push(key);
            }
        }
        Ok(Self {
            signing: EncodingKey::from_ec_pem(signing.as_bytes())
                .map_err(|_| Error::ServiceAccountKey)?,
            keys,
            issuer: issuer.to_owned(),
            verified: Mutex::default(),
        })
    }

    /// A signed token.
    pub(crate) fn sign(&self, claims: &Claims) -> Result<String, jsonwebtoken::errors::Error> {
        let mut header = Header::new(Algorithm::ES256);
        header.typ = None;
        header.kid = Some(self.keys[0].id.clone());
        jsonwebtoken::encode(&header, claims, &self.signing)
    }

    /// The keys as a JWK set.
    pub(crate) fn jwks(&self) -> Value {
        json!({"keys": self.keys.iter().map(|k| &k.jwk).collect::<Vec<_>>()})
    }

    /// The user of a token that is for one of `audiences` (the API server itself if empty),
    /// and which of them it is for.
    pub(crate) fn verify(
        &self,
        token: &str,
        audiences: &[String],
        live: &dyn Live,
        now: i64,
    ) -> Result<(User, Vec<String>), &'static str> {
        let claims = self.claims(token)?;
        // Clocks of clients may be ahead of what signed; upstream allows ten seconds.
        const LEEWAY: i64 = 10;
        if claims.iss != self.issuer {
            return Err("unknown issuer");
        }
        if now > claims.exp + LEEWAY {
            return Err("expired");
        }
        if now + LEEWAY < claims.nbf {
            return Err("not valid yet");
        }
        let wanted: Vec<String> = if audiences.is_empty() {
            vec![self.issuer.clone()]
        } else {
            audiences.to_vec()
        };
        let matched: Vec<String> = wanted
            .into_iter()
            .filter(|a| claims.aud.contains(a))
            .collect();
        if matched.is_empty() {
            return Err("for another audience");
        }
        check_bound(&claims.bound, live)?;
        Ok((user(&claims), matched))
    }

    fn claims(&self, token: &str) -> Result<Claims, &'static str> {
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(c) = self.verified.lock().get(&hash) {
            return Ok(c.clone());
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| "not a token")?;
        let mut rules = Validation::new(Algorithm::ES256);
        // Time and audience are checked against the injected clock by the caller.
        rules.validate_exp = false;
        rules.validate_nbf = false;
        rules.validate_aud = false;
        rules.required_spec_claims.clear();
        let claims = self
            .keys
            .iter()
            .filter(|k| header.kid.as_ref().is_none_or(|id| *id == k.id))
            .find_map(|k| jsonwebtoken::decode::<Claims>(token, &k.key, &rules).ok())
            .ok_or("signature of no known key")?
            .claims;
        let mut verified = self.verified.lock();
        if verified.len() >= VERIFIED_MAX {
            verified.clear();
        }
        verified.insert(hash, claims.clone());
        Ok(claims)
    }
}

fn check_bound(b: &Bound, live: &dyn Live) -> Result<(), &'static str> {
    let same = |plural: &str, namespace: &str, r: &Ref| {
        live.uid(plural, namespace, &r.name)
            .is_some_and(|uid| uid == r.uid)
    };
    if !same("serviceaccounts", &b.namespace, &b.serviceaccount) {
        return Err("its service account is gone");
    }
    for (plural, r) in [("pods", &b.pod), ("secrets", &b.secret)] {
        if r.as_ref().is_some_and(|r| !same(plural, &b.namespace, r)) {
            return Err("the object that it is bound to is gone");
        }
    }
    // A node beside a pod only informs.
    if b.pod.is_none() && b.node.as_ref().is_some_and(|n| !same("nodes", "", n)) {
        return Err("the node that it is bound to is gone");
    }
    Ok(())
}

fn user(claims: &Claims) -> User {
    let b = &claims.bound;
    let mut user = User::new(
        &format!(
            "system:serviceaccount:{}:{}",
            b.namespace, b.serviceaccount.name
        ),
        &[
            "system:serviceaccounts",
            &format!("system:serviceaccounts:{}", b.namespace),
        ],
    );
    user.uid.clone_from(&b.serviceaccount.uid);
    let mut extra = |key: &str, value: &str| {
        user.extra.insert(
            format!("authentication.kubernetes.io/{key}"),
            vec![value.to_owned()],
        );
    };
    extra("credential-id", &format!("JTI={}", claims.jti));
    for (kind, r) in [("pod", &b.pod), ("node", &b.node)] {
        if let Some(r) = r {
            extra(&format!("{kind}-name"), &r.name);
            extra(&format!("{kind}-uid"), &r.uid);
        }
    }
    user
}

fn verify_key(pem: &str) -> Result<VerifyKey, Error> {
    let point: Vec<u8> = if pem.contains("PUBLIC KEY") {
        let der = rustls_pki_types::SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| Error::ServiceAccountKey)?;
        use x509_parser::prelude::FromDer as _;
        let (_, spki) = x509_parser::x509::SubjectPublicKeyInfo::from_der(&der)
            .map_err(|_| Error::ServiceAccountKey)?;
        spki.subject_public_key.data.to_vec()
    } else {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| Error::ServiceAccountKey)?;
        EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            der.secret_pkcs8_der(),
            &ring::rand::SystemRandom::new(),
        )
        .map_err(|_| Error::ServiceAccountKey)?
        .public_key()
        .as_ref()
        .to_vec()
    };
    // An uncompressed P-256 point: 4, x, y.
    let [4, xy @ ..] = point.as_slice() else {
        return Err(Error::ServiceAccountKey);
    };
    if xy.len() != 64 {
        return Err(Error::ServiceAccountKey);
    }
    let (x, y) = (
        URL_SAFE_NO_PAD.encode(&xy[..32]),
        URL_SAFE_NO_PAD.encode(&xy[32..]),
    );
    let id = URL_SAFE_NO_PAD.encode(Sha256::digest(&point));
    Ok(VerifyKey {
        key: DecodingKey::from_ec_components(&x, &y).map_err(|_| Error::ServiceAccountKey)?,
        jwk: json!({"use": "sig", "kty": "EC", "kid": id, "crv": "P-256", "alg": "ES256", "x": x, "y": y}),
        id,
    })
}
