//! Who may use the kubelet API beside administrators and the API server: those of whom the API
//! server says so, as upstream's kubelet asks it (TokenReview, SubjectAccessReview). Answers are
//! kept for a while.

use super::tls::Identity;
use http::{Method, StatusCode};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::{Api, PostParams};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// How long an answer holds, and one that refuses: upstream's.
const HOLDS: Duration = Duration::from_secs(120);
const REFUSAL_HOLDS: Duration = Duration::from_secs(30);
/// Answers of each kind that are kept; with more all are forgotten.
const ANSWERS_MAX: usize = 256;
/// How long the API server has to answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// User, verb and subresource of the own Node.
type Asked = (String, &'static str, &'static str);

/// Asks the API server.
pub(super) struct Delegate {
    client: kube::Client,
    node: String,
    tokens: Kept<String, Option<Identity>>,
    rights: Kept<Asked, bool>,
}

impl Delegate {
    pub(super) fn new(client: kube::Client, node: &str) -> Self {
        Self {
            client,
            node: node.to_owned(),
            tokens: Kept::default(),
            rights: Kept::default(),
        }
    }

    /// Whose bearer token this is.
    pub(super) async fn identify(&self, token: &str) -> Option<Identity> {
        if let Some(known) = self.tokens.get(&token.to_owned()) {
            return known;
        }
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.to_owned(),
                ..TokenReviewSpec::default()
            },
            ..TokenReview::default()
        };
        let answer = ask(&self.client, &review).await?;
        let status = answer.status.unwrap_or_default();
        let user = status.user.filter(|_| status.authenticated == Some(true));
        let identity = user.map(|user| Identity::Known {
            name: user.username.unwrap_or_default(),
            groups: user.groups.unwrap_or_default(),
        });
        let holds = if identity.is_some() {
            HOLDS
        } else {
            REFUSAL_HOLDS
        };
        self.tokens.put(token.to_owned(), identity.clone(), holds);
        identity
    }

    /// Whether somebody may ask this; else what is answered.
    pub(super) async fn allows(
        &self,
        identity: &Identity,
        method: &Method,
        path: &[&str],
    ) -> Result<(), StatusCode> {
        let Identity::Known { name, groups } = identity else {
            return Err(StatusCode::UNAUTHORIZED);
        };
        let verb = verb(method).ok_or(StatusCode::FORBIDDEN)?;
        for subresource in subresources(path) {
            let key = (format!("{name}\0{}", groups.join("\0")), verb, *subresource);
            let allowed = match self.rights.get(&key) {
                Some(known) => known,
                None => {
                    let asked = self.may(name, groups, verb, subresource).await;
                    let allowed = asked.ok_or(StatusCode::INTERNAL_SERVER_ERROR)?;
                    let holds = if allowed { HOLDS } else { REFUSAL_HOLDS };
                    self.rights.put(key, allowed, holds);
                    allowed
                }
            };
            if allowed {
                return Ok(());
            }
        }
        Err(StatusCode::FORBIDDEN)
    }

    async fn may(
        &self,
        name: &str,
        groups: &[String],
        verb: &str,
        subresource: &str,
    ) -> Option<bool> {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(name.to_owned()),
                groups: Some(groups.to_vec()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.to_owned()),
                    version: Some("v1".to_owned()),
                    resource: Some("nodes".to_owned()),
                    subresource: Some(subresource.to_owned()),
                    name: Some(self.node.clone()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let answer = ask(&self.client, &review).await?;
        Some(answer.status.is_some_and(|status| status.allowed))
    }
}

/// Has a review made; nothing where nobody answers it.
async fn ask<K>(client: &kube::Client, review: &K) -> Option<K>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::ClusterResourceScope>
        + serde::Serialize
        + serde::de::DeserializeOwned
        + Clone
        + std::fmt::Debug,
{
    let api: Api<K> = Api::all(client.clone());
    let params = PostParams::default();
    match tokio::time::timeout(DEADLINE, api.create(&params, review)).await {
        Ok(Ok(answer)) => Some(answer),
        Ok(Err(error)) => {
            tracing::warn!(%error, kind = %K::kind(&()), "who asks the kubelet API is not known");
            None
        }
        Err(_) => None,
    }
}

fn verb(method: &Method) -> Option<&'static str> {
    Some(match *method {
        Method::GET | Method::HEAD => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => return None,
    })
}

/// Subresources of the Node, any of which is right enough for a path.
fn subresources(path: &[&str]) -> &'static [&'static str] {
    match path.first().copied().unwrap_or_default() {
        "stats" => &["stats"],
        "metrics" => &["metrics"],
        "logs" => &["log"],
        "checkpoint" => &["checkpoint"],
        "pods" | "runningpods" => &["pods", "proxy"],
        "configz" => &["configz", "proxy"],
        _ => &["proxy"],
    }
}

/// Answers, each until its time.
struct Kept<K, V>(Mutex<HashMap<K, (Instant, V)>>);

impl<K, V> Default for Kept<K, V> {
    fn default() -> Self {
        Self(Mutex::new(HashMap::new()))
    }
}

impl<K: Hash + Eq, V: Clone> Kept<K, V> {
    fn get(&self, key: &K) -> Option<V> {
        let kept = self.0.lock();
        let (until, value) = kept.get(key)?;
        (Instant::now() < *until).then(|| value.clone())
    }

    fn put(&self, key: K, value: V, holds: Duration) {
        let mut kept = self.0.lock();
        if kept.len() >= ANSWERS_MAX {
            kept.clear();
        }
        kept.insert(key, (Instant::now() + holds, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_a_part_of_the_node() {
        for (path, parts) in [
            (&["metrics", "resource"][..], &["metrics"][..]),
            (&["stats", "summary"], &["stats"]),
            (&["containerLogs", "ns", "pod", "c"], &["proxy"]),
            (&["exec", "metrics"], &["proxy"]),
            (&["pods"], &["pods", "proxy"]),
            (&[], &["proxy"]),
        ] {
            assert_eq!(subresources(path), parts, "{path:?}");
        }
        assert_eq!(verb(&Method::POST), Some("create"));
        assert_eq!(verb(&Method::TRACE), None);
    }

    #[test]
    fn answers_are_bounded_and_end() {
        let kept = Kept::default();
        kept.put(0, 'a', Duration::ZERO);
        assert_eq!(kept.get(&0), None);
        for n in 0..=ANSWERS_MAX {
            kept.put(n, 'b', HOLDS);
        }
        assert_eq!(kept.get(&ANSWERS_MAX), Some('b'));
        assert!(kept.0.lock().len() <= ANSWERS_MAX);
    }
}
