//! Who calls: client certificates, tokens of ServiceAccounts, bootstrap tokens and tokens of
//! issuers outside, else anonymous.

pub(crate) mod bootstrap;
pub(crate) mod impersonate;
pub(crate) mod oidc;
pub(crate) mod token;

use apimachinery::Status;
use http::HeaderMap;
use std::collections::BTreeMap;
use token::Tokens;

/// A caller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// User name.
    pub name: String,
    /// Uid, empty if there is none.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// Further facts, such as the pod that a token is bound to.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// An authenticated user.
    pub fn new(name: &str, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
        if !groups.iter().any(|g| g == AUTHENTICATED) {
            groups.push(AUTHENTICATED.to_owned());
        }
        Self {
            name: name.to_owned(),
            groups,
            ..Self::default()
        }
    }

    /// Nobody in particular.
    pub fn anonymous() -> Self {
        Self {
            name: "system:anonymous".to_owned(),
            groups: vec!["system:unauthenticated".to_owned()],
            ..Self::default()
        }
    }

    /// Whether it is in a group.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

const AUTHENTICATED: &str = "system:authenticated";

/// Turns what a request shows into a [`User`].
#[derive(Debug)]
pub(crate) struct Authenticator {
    pub(crate) tokens: Tokens,
    /// Issuers outside.
    pub(crate) oidc: Option<oidc::Oidc>,
}

impl Authenticator {
    /// The caller of a request; `certificate` is the user of the connection's client certificate.
    ///
    /// # Errors
    /// 401 for a token that is not valid.
    pub(crate) fn authenticate(
        &self,
        headers: &HeaderMap,
        certificate: Option<&User>,
        live: &dyn token::Live,
        now: i64,
    ) -> Result<User, Status> {
        if let Some(user) = certificate {
            return Ok(user.clone());
        }
        match bearer(headers) {
            None => Ok(User::anonymous()),
            Some(t) if bootstrap::parts(t).is_some() => bootstrap::parts(t)
                .ok_or("not a token")
                .and_then(|(id, secret)| {
                    let stored = live.bootstrap_secret(id).ok_or("no such bootstrap token")?;
                    bootstrap::user(id, secret, &stored, now)
                })
                .map_err(|reason| {
                    tracing::debug!(reason, "bootstrap token refused");
                    Status::unauthorized()
                }),
            Some(t) => self
                .tokens
                .verify(t, &[], live, now)
                .map(|(user, _)| user)
                .map_err(|reason| {
                    tracing::debug!(reason, "token refused");
                    Status::unauthorized()
                }),
        }
    }
}

/// The token of a request.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let header = headers.get(http::header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = header.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// The user that a client certificate names: common name and organizations.
pub(crate) fn certificate_user(der: &[u8]) -> Option<User> {
    let (_, cert) = x509_parser::parse_x509_certificate(der).ok()?;
    let subject = cert.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?;
    let groups: Vec<&str> = subject
        .iter_organization()
        .filter_map(|o| o.as_str().ok())
        .collect();
    Some(User::new(name, &groups))
}
