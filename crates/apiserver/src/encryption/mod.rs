//! Encryption at rest: a store around the store, which keeps the resources that a
//! configuration names encrypted, in upstream's form (`k8s:enc:aesgcm:v1:KEY:…`).
//!
//! [`provider`] has the ciphers. Snapshots and migrations carry values as they are stored. The
//! reference is `k8s.io/apiserver/pkg/storage/value` and the documentation "Encrypting
//! Confidential Data at Rest". KMS is refused: its keys are in another process. Start with
//! [`Encryption::parse`].

mod provider;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use provider::Provider;
use serde_json::Value;
use std::sync::Arc;
use store::{Durability, Error, Event, Range, RangeRequest, Record, Revision, WatchItem, Write};

/// What every encrypted value starts with.
const ENCRYPTED: &[u8] = b"k8s:enc:";

/// Which resources are encrypted, and how.
pub(crate) struct Encryption {
    rules: Vec<Rule>,
}

struct Rule {
    /// Resources as configurations name them: `secrets`, `deployments.apps`, `*.apps`, `*.*`.
    resources: Vec<String>,
    /// The first encrypts, all decrypt.
    providers: Vec<Provider>,
}

fn list(v: &Value) -> impl Iterator<Item = &Value> {
    v.as_array().into_iter().flatten()
}

impl Encryption {
    /// Reads an `EncryptionConfiguration`.
    ///
    /// # Errors
    /// What is wrong with it, in words; never a key.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let v: Value = serde_saphyr::from_str(text).map_err(|_| "not YAML".to_owned())?;
        if v["kind"] != "EncryptionConfiguration" || v["apiVersion"] != "apiserver.config.k8s.io/v1"
        {
            return Err(
                "want kind EncryptionConfiguration of apiserver.config.k8s.io/v1".to_owned(),
            );
        }
        let mut rules = Vec::new();
        for (i, r) in list(&v["resources"]).enumerate() {
            let at = format!("resources[{i}]");
            let resources: Vec<String> = list(&r["resources"])
                .filter_map(|t| t.as_str().map(str::to_owned))
                .collect();
            if resources.is_empty() {
                return Err(format!("{at}.resources: Required value"));
            }
            if let Some(bad) = resources
                .iter()
                .find(|t| *t == "*" || t.contains('/') || t.ends_with('.') && *t != "*.")
            {
                return Err(format!(
                    "{at}.resources: Invalid value: {bad:?}: name resources as secrets, deployments.apps, *.apps, *. or *.*"
                ));
            }
            let mut providers = Vec::new();
            for (j, p) in list(&r["providers"]).enumerate() {
                provider::parse(&format!("{at}.providers[{j}]"), p, &mut providers)?;
            }
            if providers.is_empty() {
                return Err(format!("{at}.providers: Required value"));
            }
            rules.push(Rule {
                resources,
                providers,
            });
        }
        if rules.is_empty() {
            return Err("resources: Required value".to_owned());
        }
        Ok(Self { rules })
    }

    /// How a store key's value is kept: the first rule that names its resource.
    fn providers(&self, key: &str) -> Option<&[Provider]> {
        let mut parts = key.strip_prefix("/registry/")?.splitn(3, '/');
        let (group, plural) = (parts.next()?, parts.next()?);
        parts.next()?;
        let named = |wanted: &String| match wanted.split_once('.') {
            None => group == "core" && *wanted == plural,
            Some(("*", "*")) => true,
            Some(("*", "")) => group == "core",
            Some(("*", g)) => g == group,
            Some((p, g)) => p == plural && g == group,
        };
        // What names one resource goes before what names many.
        let one = |w: &&String| !w.starts_with('*');
        let find = |exact: bool| {
            self.rules.iter().find(|r| {
                let mut all = r.resources.iter().filter(|w| one(w) == exact);
                all.any(named)
            })
        };
        let rule = find(true).or_else(|| find(false))?;
        Some(&rule.providers)
    }

    fn encrypt(&self, key: &str, value: &Bytes) -> Result<Bytes, Error> {
        match self.providers(key).and_then(<[Provider]>::first) {
            None | Some(Provider::Identity) => Ok(value.clone()),
            Some(Provider::Keyed { prefix, cipher }) => {
                let sealed = cipher.seal(key, value);
                let sealed = sealed.ok_or_else(|| broken(key, "it can't be encrypted"))?;
                Ok([prefix.as_slice(), &sealed].concat().into())
            }
        }
    }

    fn decrypt(&self, key: &str, value: &Bytes) -> Result<Bytes, Error> {
        let Some(providers) = self.providers(key) else {
            return match value.starts_with(ENCRYPTED) {
                true => Err(broken(
                    key,
                    "it is encrypted, and no provider is configured",
                )),
                false => Ok(value.clone()),
            };
        };
        for p in providers {
            match p {
                Provider::Identity if !value.starts_with(ENCRYPTED) => return Ok(value.clone()),
                Provider::Identity => {}
                Provider::Keyed { prefix, cipher } => {
                    if let Some(sealed) = value.strip_prefix(prefix.as_slice()) {
                        let plain = cipher.open(key, sealed);
                        let why = "it does not fit its key: it was changed or moved";
                        return plain.map(Bytes::from).ok_or_else(|| broken(key, why));
                    }
                }
            }
        }
        let why = match value.starts_with(ENCRYPTED) {
            true => "none of the keys that are configured encrypted it",
            false => "it is not encrypted: add the provider identity, as the last",
        };
        Err(broken(key, why))
    }

    /// Whether a stored value is in another form than one written now.
    fn is_stale(&self, key: &str, value: &Bytes) -> bool {
        match self.providers(key).and_then(<[Provider]>::first) {
            None => false,
            Some(Provider::Identity) => value.starts_with(ENCRYPTED),
            Some(Provider::Keyed { prefix, .. }) => !value.starts_with(prefix),
        }
    }
}

/// What can't be read or written, and why.
#[derive(Debug, thiserror::Error)]
#[error("use {key}: {why}")]
struct Broken {
    key: String,
    why: &'static str,
}

fn broken(key: &str, why: &'static str) -> Error {
    let key = key.to_owned();
    Error::Corrupt(Box::new(Broken { key, why }))
}

/// A store that holds some values encrypted.
pub(crate) struct Encrypted {
    inner: Arc<dyn store::Store>,
    how: Arc<Encryption>,
}

impl Encrypted {
    pub(crate) fn new(inner: Arc<dyn store::Store>, how: Encryption) -> Self {
        Self {
            inner,
            how: Arc::new(how),
        }
    }

    /// Whether what a key has should be written anew: under another key than the first.
    pub(crate) async fn is_stale(&self, key: &str) -> bool {
        if self.how.providers(key).is_none() {
            return false;
        }
        match self.inner.get(key, None).await {
            Ok(Some(record)) => self.how.is_stale(key, &record.value),
            _ => false,
        }
    }
}

fn plain(how: &Encryption, mut record: Record) -> Result<Record, Error> {
    if !record.value.is_empty() {
        record.value = how.decrypt(&record.key, &record.value)?;
    }
    Ok(record)
}

#[async_trait]
impl store::Store for Encrypted {
    async fn get(&self, key: &str, at: Option<Revision>) -> Result<Option<Record>, Error> {
        let found = self.inner.get(key, at).await?;
        found.map(|r| plain(&self.how, r)).transpose()
    }

    async fn range(&self, request: RangeRequest) -> Result<Range, Error> {
        let mut range = self.inner.range(request).await?;
        for record in &mut range.records {
            record.value = self.how.decrypt(&record.key, &record.value)?;
        }
        Ok(range)
    }

    async fn count(&self, prefix: &str) -> Result<usize, Error> {
        self.inner.count(prefix).await
    }

    async fn write(
        &self,
        key: &str,
        mut write: Write,
        durability: Durability,
    ) -> Result<Record, Error> {
        if let Write::Create { value } | Write::Update { value, .. } = &mut write {
            *value = self.how.encrypt(key, value)?;
        }
        match self.inner.write(key, write, durability).await {
            Ok(record) => plain(&self.how, record),
            Err(Error::Conflict(Some(record))) => {
                Err(Error::Conflict(Some(plain(&self.how, record)?)))
            }
            Err(e) => Err(e),
        }
    }

    async fn watch(
        &self,
        prefix: &str,
        from: Option<Revision>,
    ) -> Result<BoxStream<'static, Result<WatchItem, Error>>, Error> {
        let how = self.how.clone();
        let events = self.inner.watch(prefix, from).await?;
        let told = events.map(move |item| match item {
            Ok(WatchItem::Events(events)) => Ok(WatchItem::Events(plain_events(&how, events))),
            other => other,
        });
        Ok(told.boxed())
    }

    async fn revision(&self) -> Result<Revision, Error> {
        self.inner.revision().await
    }

    async fn compact(&self, at: Revision) -> Result<(), Error> {
        self.inner.compact(at).await
    }

    async fn close(&self) -> Result<(), Error> {
        self.inner.close().await
    }
}

/// Events with values decrypted. One that another server has written under a key that is not
/// known here stays as it is: who reads it finds that it is no object.
fn plain_events(how: &Encryption, events: Arc<[Event]>) -> Arc<[Event]> {
    if events
        .iter()
        .all(|e| how.providers(&e.record.key).is_none())
    {
        return events;
    }
    let open = |key: &str, value: &Bytes| {
        if value.is_empty() {
            return value.clone();
        }
        how.decrypt(key, value).unwrap_or_else(|error| {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "decrypting an event"
            );
            value.clone()
        })
    };
    events
        .iter()
        .map(|e| {
            let mut e = e.clone();
            e.record.value = open(&e.record.key, &e.record.value);
            e.previous = e.previous.map(|v| open(&e.record.key, &v));
            e
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;

    fn config(resources: &str, keys: &[(&str, u8)], identity: bool) -> Encryption {
        let keys: Vec<String> = keys
            .iter()
            .map(|(name, byte)| {
                let secret = base64::engine::general_purpose::STANDARD.encode([*byte; 32]);
                format!("{{name: {name}, secret: {secret}}}")
            })
            .collect();
        let last = if identity { ", {identity: {}}" } else { "" };
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [{resources}]\n  providers: [{{aesgcm: {{keys: [{}]}}}}{last}]\n",
            keys.join(", ")
        );
        Encryption::parse(&text).unwrap()
    }

    const KEY: &str = "/registry/core/secrets/default/s";

    #[test]
    fn values_are_bound_to_their_keys_and_rotate() {
        let (old, new) = (
            config("secrets", &[("one", 1)], true),
            config("secrets", &[("two", 2), ("one", 1)], false),
        );
        let value = Bytes::from_static(b"{\"kind\":\"Secret\"}");
        let sealed = old.encrypt(KEY, &value).unwrap();
        assert!(sealed.starts_with(b"k8s:enc:aesgcm:v1:one:"));
        assert_eq!(old.decrypt(KEY, &sealed).unwrap(), value);
        assert_eq!(old.decrypt(KEY, &value).unwrap(), value, "written before");
        assert_eq!(new.decrypt(KEY, &sealed).unwrap(), value);
        assert!(new.is_stale(KEY, &sealed) && !old.is_stale(KEY, &sealed));
        for (how, key, sealed) in [
            (&new, KEY, value.clone()),
            (&old, "/registry/core/secrets/default/t", sealed.clone()),
            (&config("secrets", &[("one", 9)], true), KEY, sealed.clone()),
            (
                &config("secrets", &[("three", 1)], true),
                KEY,
                sealed.clone(),
            ),
            (&config("configmaps", &[("one", 1)], true), KEY, sealed),
        ] {
            assert!(how.decrypt(key, &sealed).is_err());
        }
    }

    #[test]
    fn resources_are_named_as_upstream_names_them() {
        for (named, key, want) in [
            ("secrets", KEY, true),
            ("configmaps", KEY, false),
            ("'*.'", KEY, true),
            ("'*.*'", KEY, true),
            ("'*.apps'", KEY, false),
            ("'*.apps'", "/registry/apps/deployments/default/d", true),
            (
                "deployments.apps",
                "/registry/apps/deployments/default/d",
                true,
            ),
            ("deployments", "/registry/apps/deployments/default/d", false),
        ] {
            let how = config(named, &[("k", 1)], true);
            assert_eq!(how.providers(key).is_some(), want, "{named} {key}");
        }
    }

    #[test]
    fn what_can_not_be_used_is_told_without_keys() {
        let head = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n";
        for (text, want) in [
            ("resources: []", "resources: Required value"),
            (
                "resources: [{resources: [secrets], providers: [{kms: {}}]}]",
                "Unsupported value: \"kms\"",
            ),
            (
                "resources: [{resources: [secrets], providers: [{rot13: {}}]}]",
                "supported values: \"aescbc\", \"aesgcm\", \"identity\", \"secretbox\"",
            ),
            (
                "resources: [{resources: [secrets], providers: [{secretbox: {keys: [{name: a, secret: AAAAAAAAAAAAAAAAAAAAAA==}]}}]}]",
                "got 16, expected one of [32]",
            ),
            (
                "resources: [{resources: [secrets], providers: [{aescbc: {}}]}]",
                "resources[0].providers[0].aescbc.keys: Required value",
            ),
            (
                "resources: [{resources: ['*'], providers: [{identity: {}}]}]",
                "Invalid value: \"*\"",
            ),
            (
                "resources: [{resources: [secrets], providers: [{aesgcm: {keys: [{name: a, secret: c2hvcnQ=}]}}]}]",
                "got 5",
            ),
        ] {
            let error = Encryption::parse(&format!("{head}{text}")).err().unwrap();
            assert!(error.contains(want) && !error.contains("c2hv"), "{error}");
        }
    }
}
