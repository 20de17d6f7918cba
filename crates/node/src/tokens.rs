//! Service account tokens for pods: requested from the API server, bound to the pod,
//! fetched again before they expire.

use crate::pod::{Uid, uid_of};
use crate::sleep::is_standby;
use client::Clock;
use k8s_openapi::api::authentication::v1 as auth;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, PostParams};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::Duration;

/// Upstream's default lifetime, seconds.
const LIFETIME_S: i64 = 3600;

/// How long the API server has to answer when there is an older token.
const REACH_DEADLINE: Duration = Duration::from_secs(3);
/// Seconds after which it is asked again then.
const RETRY_S: i64 = 10;

/// Why no token was given; Display is its cause's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("{0}")]
    Request(kube::Error),
    #[error("the API server gave none")]
    Empty,
}

/// A token, and when to ask for the next.
#[derive(Clone)]
pub(crate) struct Token {
    pub(crate) text: String,
    /// Unix seconds; at 80 % of the lifetime, as upstream.
    pub(crate) refresh_at_s: i64,
}

/// By pod, audience, lifetime, and whether it is bound to the pod.
type Key = (String, String, i64, bool);

/// Tokens in use; bounded by the projections of the node's pods.
pub(crate) struct Tokens {
    client: kube::Client,
    /// Asks for tokens that are bound to no pod, which a node may not have.
    unbound: Option<kube::Client>,
    clock: Clock,
    /// Never held across an await.
    known: Mutex<HashMap<Key, Token>>,
}

impl Tokens {
    pub(crate) fn new(client: kube::Client, unbound: Option<kube::Client>, clock: Clock) -> Self {
        Self {
            client,
            unbound,
            clock,
            known: Mutex::default(),
        }
    }

    /// The token of a projection; `had`, asked again soon, when the API server can't be
    /// reached.
    pub(crate) async fn get_or(
        &self,
        pod: &core::Pod,
        projection: &core::ServiceAccountTokenProjection,
        had: Option<String>,
    ) -> Result<Token, TokenError> {
        let Some(had) = had else {
            return self.get(pod, projection).await;
        };
        match tokio::time::timeout(REACH_DEADLINE, self.get(pod, projection)).await {
            Ok(Ok(token)) => Ok(token),
            // An answer, and it is no.
            Ok(Err(TokenError::Request(kube::Error::Api(status)))) if status.code < 500 => {
                Err(TokenError::Request(kube::Error::Api(status)))
            }
            Ok(Err(_)) | Err(_) => Ok(Token {
                text: had,
                refresh_at_s: self.clock.now().as_second() + RETRY_S,
            }),
        }
    }

    /// The token of a projection; the known one while it is fresh.
    async fn get(
        &self,
        pod: &core::Pod,
        projection: &core::ServiceAccountTokenProjection,
    ) -> Result<Token, TokenError> {
        let meta = &pod.metadata;
        let lifetime = projection.expiration_seconds.unwrap_or(LIFETIME_S);
        let audience = projection.audience.clone().unwrap_or_default();
        let uid = uid_of(pod).unwrap_or_else(|| Uid::from(""));
        // The API server knows no pod yet that this could be bound to.
        let standby = meta.uid.as_deref() == Some(&*uid.0) && is_standby(&uid);
        let key = (uid.to_string(), audience.clone(), lifetime, !standby);
        let now = self.clock.now().as_second();
        if let Some(token) = self.known.lock().get(&key)
            && now < token.refresh_at_s
        {
            return Ok(token.clone());
        }
        let account = pod
            .spec
            .as_ref()
            .and_then(|s| s.service_account_name.as_deref())
            .unwrap_or("default");
        let request = auth::TokenRequest {
            spec: Some(auth::TokenRequestSpec {
                audiences: Some(vec![audience]).filter(|a| !a[0].is_empty()),
                bound_object_ref: (!standby).then(|| auth::BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: meta.name.clone(),
                    uid: meta.uid.clone(),
                }),
                expiration_seconds: Some(lifetime),
                ..auth::TokenRequestSpec::default()
            }),
            ..auth::TokenRequest::default()
        };
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let client = self.unbound.as_ref().filter(|_| standby);
        let client = client.unwrap_or(&self.client).clone();
        let accounts = Api::<core::ServiceAccount>::namespaced(client, namespace);
        let answer = accounts
            .create_token_request(account, &PostParams::default(), &request)
            .await
            .map_err(TokenError::Request)?;
        let status = answer.status.ok_or(TokenError::Empty)?;
        let Time(expires) = status.expiration_timestamp.ok_or(TokenError::Empty)?;
        let token = Token {
            text: status.token.ok_or(TokenError::Empty)?,
            refresh_at_s: now + (expires.as_second() - now).max(10) * 8 / 10,
        };
        self.known.lock().insert(key, token.clone());
        Ok(token)
    }

    /// The pod is no more.
    pub(crate) fn release(&self, uid: &str) {
        self.known.lock().retain(|(of, ..), _| of != uid);
    }
}
