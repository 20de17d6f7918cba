//! Who calls: whom a proxy in front names, client certificates, tokens of ServiceAccounts,
//! bootstrap tokens and tokens of issuers outside, else anonymous.

pub(crate) mod bootstrap;
pub(crate) mod impersonate;
pub(crate) mod oidc;
pub(crate) mod request_header;
pub(crate) mod token;

use apimachinery::Status;
use http::HeaderMap;
use request_header::RequestHeaders;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::CertificateDer;
use std::collections::BTreeMap;
use std::sync::Arc;
use token::{Live, Tokens};

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

/// What a connection's client certificate says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shown {
    /// Whom it names, if an authority of clients has signed it.
    user: Option<User>,
    /// It is one of a proxy in front.
    proxy: bool,
    /// There is one that no authority of clients has signed.
    stranger: bool,
}

/// Turns what a request shows into a [`User`].
#[derive(Debug)]
pub(crate) struct Authenticator {
    pub(crate) tokens: Tokens,
    /// Issuers outside.
    pub(crate) oidc: Option<oidc::Oidc>,
    /// Proxies in front.
    pub(crate) request_headers: Option<Arc<RequestHeaders>>,
    /// Whose signature makes a certificate a client's.
    pub(crate) clients: Arc<dyn ClientCertVerifier>,
    /// What tokens are for that state no audience: the API server itself.
    pub(crate) audience: String,
}

impl Authenticator {
    /// What a certificate with its chain says.
    pub(crate) fn shown(&self, chain: Option<&[CertificateDer<'_>]>) -> Shown {
        let Some((leaf, chain)) = chain.and_then(|c| Some((c.first()?, c))) else {
            return Shown::default();
        };
        let known = crate::serving::is_signed(&*self.clients, chain);
        let proxies = self.request_headers.as_ref();
        Shown {
            user: known.then(|| certificate_user(leaf)).flatten(),
            proxy: proxies.is_some_and(|p| p.believes(chain)),
            stranger: !known,
        }
    }

    /// The caller of a request, if it shows no token or need not.
    ///
    /// # Errors
    /// 401 for a certificate that is of no client and names nobody.
    pub(crate) fn without_token(
        &self,
        headers: &HeaderMap,
        shown: &Shown,
    ) -> Result<Option<User>, Status> {
        let proxies = self.request_headers.as_ref().filter(|_| shown.proxy);
        if let Some(user) = proxies.and_then(|p| p.user(headers)) {
            return Ok(Some(user));
        }
        if let Some(user) = &shown.user {
            return Ok(Some(user.clone()));
        }
        match bearer(headers) {
            Some(_) => Ok(None),
            None if shown.stranger => Err(Status::unauthorized()),
            None => Ok(Some(User::anonymous())),
        }
    }

    /// The user of a token for one of `audiences`, and which of them it is for. Those that
    /// know no audience of ours are for the API server.
    ///
    /// # Errors
    /// Why it is refused, in words.
    pub(crate) async fn token(
        &self,
        token: &str,
        audiences: &[String],
        live: &(dyn Live + Sync),
        now: i64,
    ) -> Result<(User, Vec<String>), String> {
        let own = || match audiences.iter().find(|a| **a == self.audience) {
            Some(audience) => Ok(vec![audience.clone()]),
            None if audiences.is_empty() => Ok(vec![self.audience.clone()]),
            None => Err(String::new()),
        };
        if let Some(oidc) = &self.oidc
            && let Some(found) = oidc.user(token, now).await
        {
            return Ok((found?, own()?));
        }
        if let Some((id, secret)) = bootstrap::parts(token) {
            let matched = own()?;
            let stored = live.bootstrap_secret(id).ok_or("no such bootstrap token")?;
            let user = bootstrap::user(id, secret, &stored, now)?;
            return Ok((user, matched));
        }
        Ok(self.tokens.verify(token, audiences, live, now)?)
    }
}

/// The token of a request.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let header = headers.get(http::header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = header.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// The common name of a certificate's subject.
fn common_name(der: &[u8]) -> Option<String> {
    let (_, cert) = x509_parser::parse_x509_certificate(der).ok()?;
    let name = cert.subject().iter_common_name().next()?;
    Some(name.as_str().ok()?.to_owned())
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
