//! What all parts of the API server share.

use crate::allocate::Allocator;
use crate::authn::{Authenticator, Shown, User};
use crate::authz::{Authorizer, NamedByNodes};
use crate::cache::{Cache, Kind, Object};
use crate::config::{Clock, Entropy, Limits};
use crate::kubelet::Kubelets;
use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::row::Row;
use apimachinery::Status;
use lifecycle::CancellationToken;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use store::Store;

/// The API server's insides.
pub(crate) struct Core {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) authn: Authenticator,
    pub(crate) authz: Authorizer,
    /// What nodes may reach because their pods name it.
    pub(crate) named: NamedByNodes,
    pub(crate) services: Allocator,
    /// The other servers of the store, where there may be some.
    pub(crate) peers: Option<Peers>,
    pub(crate) kubelets: Kubelets,
    pub(crate) metrics: Metrics,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Entropy,
    pub(crate) limits: Limits,
    pub(crate) issuer: String,
    /// How requests that are no watches or streams share the server.
    pub(crate) flow: Option<crate::flow::Flow>,
    /// Cancelled when the server stops: ends watches and streams.
    pub(crate) stop: CancellationToken,
    /// Owns the streams between clients and nodes.
    pub(crate) streams: lifecycle::Scope,
    /// Set once the bootstrap objects are there.
    pub(crate) ready: AtomicBool,
    pub(crate) openapi: crate::discovery::OpenApi,
    pub(crate) disk_trouble: DiskTrouble,
    /// Where requests are recorded, if they are.
    pub(crate) audit: Option<Arc<crate::audit::Audit>>,
    /// The store again, where it keeps values encrypted.
    pub(crate) encrypted: Option<Arc<crate::encryption::Encrypted>>,
    /// What extension servers serve.
    pub(crate) aggregator: crate::aggregation::Aggregator,
    pub(crate) resource_metrics: crate::resource_metrics::Readings,
    /// Policies and webhooks.
    pub(crate) dynamic: crate::admission::dynamic::Dynamic,
}

/// Tells of refused writes now and then: while a disk is full every write is refused.
#[derive(Default)]
pub(crate) struct DiskTrouble {
    told: parking_lot::Mutex<Option<Instant>>,
}

impl DiskTrouble {
    /// Between two lines of the log.
    const EVERY: Duration = Duration::from_secs(60);

    pub(crate) fn tell(&self, error: &std::io::Error) {
        let mut told = self.told.lock();
        if told.is_none_or(|at| at.elapsed() >= Self::EVERY) {
            *told = Some(Instant::now());
            tracing::error!(%error, "writes are refused: the store can't write to its disk");
        }
    }
}

impl Core {
    /// What serves a group's version of a plural.
    pub(crate) fn row(&self, group: &str, version: &str, plural: &str) -> Option<Row> {
        Row::builtin(group, version, plural)
            .or_else(|| self.cache.definitions.row(group, version, plural))
    }

    /// The kind of a stored row.
    pub(crate) fn kind(&self, row: &Row) -> Result<Arc<Kind>, Status> {
        self.cache
            .kind(row)
            .ok_or_else(|| Status::method_not_allowed(row.group(), row.plural(), "get"))
    }

    /// Waits until the cache holds every acknowledged write.
    pub(crate) async fn fresh(&self) -> Result<(), Status> {
        let revision = self.store.revision().await.map_err(Status::internal)?;
        self.cache.reach(revision.0).await
    }

    /// Whether this server does what one does for all that share the store.
    pub(crate) fn on_duty(&self) -> bool {
        self.peers.as_ref().is_none_or(Peers::on_duty)
    }

    /// Who a request comes from.
    ///
    /// # Errors
    /// 401 for a token that is not valid.
    pub(crate) async fn authenticate(
        &self,
        headers: &http::HeaderMap,
        shown: &Shown,
    ) -> Result<User, Status> {
        if let Some(user) = self.authn.without_token(headers, shown)? {
            return Ok(user);
        }
        let token = crate::authn::bearer(headers).unwrap_or_default();
        let found = self.token(token, &[]).await;
        found.map(|(user, _)| user).map_err(|reason| {
            tracing::debug!(reason, "token refused");
            Status::unauthorized()
        })
    }

    /// The user of a token, and for which of `audiences` it is. It may be of an account that
    /// another server has just made: before it is refused the cache catches up.
    ///
    /// # Errors
    /// Why it is refused, in words.
    pub(crate) async fn token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<(User, Vec<String>), String> {
        let now = self.clock.now().as_second();
        let found = self.authn.token(token, audiences, self, now).await;
        if found.is_ok() || self.peers.is_none() {
            return found;
        }
        self.fresh().await.map_err(|e| e.message)?;
        self.authn.token(token, audiences, self, now).await
    }

    /// An object as the cache has it, perhaps a moment old.
    pub(crate) fn peek(
        &self,
        group: &str,
        plural: &str,
        namespace: &str,
        name: &str,
    ) -> Option<Arc<Object>> {
        self.cache.named(group, plural)?.get(namespace, name)
    }

    /// RFC 3339 time with seconds, as metadata has it.
    pub(crate) fn timestamp(&self) -> String {
        rfc3339(self.clock.now())
    }

    /// A random uid (version 4).
    pub(crate) fn uid(&self) -> String {
        let mut bytes = [0; 16];
        (self.entropy)(&mut bytes);
        uuid::Builder::from_random_bytes(bytes)
            .into_uuid()
            .to_string()
    }

    /// Five random characters for generated names, from upstream's alphabet
    /// (no vowels, nothing that reads like another).
    pub(crate) fn suffix(&self) -> String {
        const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
        let mut bytes = [0; 5];
        (self.entropy)(&mut bytes);
        bytes
            .iter()
            .map(|b| char::from(ALPHABET[usize::from(*b) % ALPHABET.len()]))
            .collect()
    }

    /// The user that the server itself writes as.
    pub(crate) fn own_user() -> User {
        User::new("system:apiserver", &["system:masters"])
    }
}

/// RFC 3339 with seconds and `Z`.
pub(crate) fn rfc3339(t: jiff::Timestamp) -> String {
    t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
