//! Users that a proxy in front names in headers (`X-Remote-User` and its kin): believed of
//! whoever shows a client certificate of an authority of its own.
//!
//! The reference is `k8s.io/apiserver/pkg/authentication/request/headerrequest`. Start with
//! [`RequestHeaders::user`].

use super::{AUTHENTICATED, User, common_name};
use crate::config::{FrontProxy, RequestHeader};
use crate::http::respond::BoxError;
use crate::serving::{authorities, is_signed};
use http::{HeaderMap, HeaderName};
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use std::sync::Arc;

/// Whom to believe, and which headers say who asks. Names are in lower case.
#[derive(Debug)]
pub(crate) struct RequestHeaders {
    /// PEM.
    ca: String,
    signed_by: Arc<dyn ClientCertVerifier>,
    /// Empty: any.
    names: Vec<String>,
    username: Vec<String>,
    uid: Vec<String>,
    groups: Vec<String>,
    extra: Vec<String>,
    stated: RequestHeader,
}

impl RequestHeaders {
    /// `own` is what this server shows to extension servers; `None` where there is no authority.
    ///
    /// # Errors
    /// What is wrong with a bundle.
    pub(crate) fn new(
        own: Option<&FrontProxy>,
        stated: &RequestHeader,
    ) -> Result<Option<Self>, BoxError> {
        if let Some(theirs) = &stated.ca {
            // One without a certificate would be hidden by the site's own.
            authorities(theirs)?;
        }
        let bundles = own.map(|o| &o.ca).into_iter().chain(&stated.ca);
        let ca: String = bundles.map(|pem| format!("{}\n", pem.trim_end())).collect();
        if ca.is_empty() {
            return Ok(None);
        }
        for (flag, values) in [
            ("allowed-names", &stated.allowed_names),
            ("username-headers", &stated.username_headers),
            ("uid-headers", &stated.uid_headers),
            ("group-headers", &stated.group_headers),
            ("extra-headers-prefix", &stated.extra_prefixes),
        ] {
            if values.iter().any(|v| v.trim().is_empty()) {
                return Err(format!("empty value in \"requestheader-{flag}\"").into());
            }
        }
        let mut names = stated.allowed_names.clone();
        if own.is_some() && (stated.ca.is_none() || !names.is_empty()) {
            names.push(FrontProxy::NAME.to_owned());
        }
        names.sort();
        names.dedup();
        let lower = |names: &[String]| names.iter().map(|n| n.to_lowercase()).collect();
        Ok(Some(Self {
            signed_by: authorities(&ca)?,
            ca,
            names,
            username: lower(&stated.username_headers),
            uid: lower(&stated.uid_headers),
            groups: lower(&stated.group_headers),
            extra: lower(&stated.extra_prefixes),
            stated: stated.clone(),
        }))
    }

    /// The PEM bundle of those that sign the proxies' certificates.
    pub(crate) fn ca(&self) -> &str {
        &self.ca
    }

    /// Whether a certificate is one of a proxy in front.
    pub(crate) fn believes(&self, chain: &[CertificateDer<'_>]) -> bool {
        let Some(leaf) = chain.first().filter(|_| is_signed(&*self.signed_by, chain)) else {
            return false;
        };
        let name = common_name(leaf).unwrap_or_default();
        let known = self.names.is_empty() || self.names.contains(&name);
        if !known {
            tracing::debug!(
                name,
                "a proxy's certificate is of a name that is not allowed"
            );
        }
        known
    }

    /// The user that headers name; `None` when they name none.
    pub(crate) fn user(&self, headers: &HeaderMap) -> Option<User> {
        let all = |names: &[String]| -> Vec<String> {
            let values = names.iter().flat_map(|n| headers.get_all(n.as_str()));
            let texts = values.map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
            texts.filter(|t| !t.is_empty()).collect()
        };
        let first = |names: &[String]| all(names).into_iter().next();
        let mut user = User {
            name: first(&self.username)?,
            uid: first(&self.uid).unwrap_or_default(),
            groups: all(&self.groups),
            ..User::default()
        };
        for (name, value) in headers {
            let mut prefixes = self.extra.iter();
            if let Some(key) = prefixes.find_map(|p| name.as_str().strip_prefix(p.as_str())) {
                let key = percent_encoding::percent_decode_str(key)
                    .decode_utf8()
                    .map_or_else(|_| key.to_owned(), |k| k.into_owned());
                let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
                user.extra.entry(key).or_default().push(value);
            }
        }
        if !user.in_group(AUTHENTICATED) && user.name != User::anonymous().name {
            user.groups.push(AUTHENTICATED.to_owned());
        }
        Some(user)
    }

    /// Removes what only a proxy may say: whoever is asked next must not take it for this
    /// server's word.
    pub(crate) fn clear(&self, headers: &mut HeaderMap) {
        let told: Vec<HeaderName> = headers
            .keys()
            .filter(|k| {
                let k = k.as_str();
                let mut lists = [&self.username, &self.uid, &self.groups].into_iter();
                lists.any(|l| l.iter().any(|n| n == k))
                    || self.extra.iter().any(|p| k.starts_with(p.as_str()))
            })
            .cloned()
            .collect();
        for name in told {
            headers.remove(name);
        }
    }

    /// The keys of the ConfigMap by which extension servers know the same.
    pub(crate) fn published(&self) -> Vec<(&'static str, Value)> {
        // Lists are JSON in a text.
        let list = |items: &[String]| Value::from(json!(items).to_string());
        let s = &self.stated;
        vec![
            ("requestheader-client-ca-file", self.ca.as_str().into()),
            ("requestheader-allowed-names", list(&self.names)),
            (
                "requestheader-extra-headers-prefix",
                list(&s.extra_prefixes),
            ),
            ("requestheader-group-headers", list(&s.group_headers)),
            ("requestheader-uid-headers", list(&s.uid_headers)),
            ("requestheader-username-headers", list(&s.username_headers)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    fn authority() -> (Issuer<'static, KeyPair>, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        (Issuer::new(params, key), pem)
    }

    fn certificate(issuer: &Issuer<'static, KeyPair>, name: &str) -> Vec<CertificateDer<'static>> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let made = params.signed_by(&key, issuer).unwrap();
        vec![made.der().clone()]
    }

    #[test]
    fn proxies_are_those_of_the_authorities_and_names() {
        let (issuer, ca) = authority();
        let (other, other_ca) = authority();
        let own = FrontProxy {
            cert: String::new(),
            key: String::new(),
            ca,
        };
        let made = |own: Option<&FrontProxy>, ca: Option<&str>, names: &[&str]| {
            let stated = RequestHeader {
                ca: ca.map(str::to_owned),
                allowed_names: names.iter().map(|n| (*n).to_owned()).collect(),
                ..RequestHeader::default()
            };
            RequestHeaders::new(own, &stated).unwrap()
        };
        assert!(made(None, None, &["x"]).is_none());
        for (how, signer, name, want) in [
            (
                made(Some(&own), None, &[]),
                &issuer,
                "front-proxy-client",
                true,
            ),
            (made(Some(&own), None, &[]), &issuer, "other", false),
            (
                made(Some(&own), None, &[]),
                &other,
                "front-proxy-client",
                false,
            ),
            (made(Some(&own), None, &["other"]), &issuer, "other", true),
            (
                made(Some(&own), Some(&other_ca), &[]),
                &other,
                "whoever",
                true,
            ),
            (
                made(Some(&own), Some(&other_ca), &["p"]),
                &other,
                "whoever",
                false,
            ),
            (made(None, Some(&other_ca), &["p"]), &other, "p", true),
            (made(None, Some(&other_ca), &["p"]), &issuer, "p", false),
        ] {
            let how = how.unwrap();
            assert_eq!(
                how.believes(&certificate(signer, name)),
                want,
                "{name} {how:?}"
            );
        }
        assert!(!made(Some(&own), None, &[]).unwrap().believes(&[]));
        let wrong = RequestHeader {
            ca: Some("no PEM".to_owned()),
            ..RequestHeader::default()
        };
        assert!(RequestHeaders::new(None, &wrong).is_err());
        // It would be in front of every header's name.
        let blank = RequestHeader {
            ca: Some(other_ca),
            extra_prefixes: vec![" ".to_owned()],
            ..RequestHeader::default()
        };
        let error = RequestHeaders::new(None, &blank).unwrap_err().to_string();
        assert_eq!(
            error,
            "empty value in \"requestheader-extra-headers-prefix\""
        );
    }

    fn of(stated: RequestHeader) -> RequestHeaders {
        let (_, ca) = authority();
        let stated = RequestHeader {
            ca: Some(ca),
            ..stated
        };
        RequestHeaders::new(None, &stated).unwrap().unwrap()
    }

    fn headers(all: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (k, v) in all {
            headers.append(*k, HeaderValue::from_static(v));
        }
        headers
    }

    // k8s.io/apiserver/pkg/authentication/request/headerrequest/requestheader_test.go
    #[test]
    fn users_are_read_from_the_headers_that_are_named() {
        let texts = |all: &[&str]| all.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        let how = of(RequestHeader {
            username_headers: texts(&["X-Other", "X-Remote-User"]),
            group_headers: texts(&["X-Remote-Group", "X-Team"]),
            extra_prefixes: texts(&["X-Remote-Extra-", "X-Fact-"]),
            ..RequestHeader::default()
        });
        assert_eq!(how.user(&headers(&[("x-remote-group", "g")])), None);
        assert_eq!(how.user(&headers(&[("x-remote-user", "")])), None);
        let mut given = headers(&[
            ("x-remote-user", "anna"),
            ("x-other", ""),
            ("x-remote-uid", "7"),
            ("x-remote-group", "a"),
            ("x-remote-group", ""),
            ("x-remote-group", "b"),
            ("x-team", "c"),
            ("x-remote-extra-example.com%2fscope", "one"),
            ("x-remote-extra-example.com%2fscope", "two"),
            ("x-fact-%ff", "kept"),
            ("accept", "text/plain"),
        ]);
        let user = how.user(&given).unwrap();
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("anna", "7"));
        assert_eq!(user.groups, ["a", "b", "c", "system:authenticated"]);
        let extra: Vec<(&str, Vec<&str>)> = user
            .extra
            .iter()
            .map(|(k, v)| (k.as_str(), v.iter().map(String::as_str).collect()))
            .collect();
        assert_eq!(
            extra,
            [
                ("%ff", vec!["kept"]),
                ("example.com/scope", vec!["one", "two"])
            ]
        );
        how.clear(&mut given);
        assert_eq!(given.keys().collect::<Vec<_>>(), ["accept"]);
    }

    static STANDARD: std::sync::LazyLock<RequestHeaders> =
        std::sync::LazyLock::new(|| of(RequestHeader::default()));

    proptest! {
        /// Whatever a proxy says, nobody is in no group, and nothing of it is passed on.
        #[test]
        fn any_headers_name_one_user_or_none(
            all in proptest::collection::vec(("(x-remote-(user|uid|group|extra-[a-z%0-9]{0,6})|x-[a-z]{1,4})", proptest::collection::vec(any::<u8>(), 0..12)), 0..12)
        ) {
            let how = &*STANDARD;
            let mut headers = HeaderMap::new();
            for (name, value) in &all {
                if let (Ok(name), Ok(value)) = (HeaderName::try_from(name.as_str()), HeaderValue::from_bytes(value)) {
                    headers.append(name, value);
                }
            }
            let named = headers.get_all("x-remote-user").iter().any(|v| !v.is_empty());
            let user = how.user(&headers);
            prop_assert_eq!(user.is_some(), named);
            if let Some(user) = user {
                prop_assert!(!user.name.is_empty() && !user.groups.is_empty() || user.name == "system:anonymous");
            }
            how.clear(&mut headers);
            prop_assert!(headers.keys().all(|k| !k.as_str().starts_with("x-remote-")));
            prop_assert!(how.user(&headers).is_none());
        }
    }
}
