//! Who may use an image that is here already.
//!
//! An image that came by a pod's credentials must not serve a pod that has none, though its
//! content is on the machine (upstream: `KubeletEnsureSecretPulledImages` with the policy
//! `NeverVerifyPreloadedImages`). Kept in `grants.json`, by repository and digest: whether all
//! may use it, else hashes of the credentials that the registry took. What has no entry was
//! loaded by an administrator and is everybody's.

use crate::auth::{Credential, covering};
use crate::index::{Index, private, replace};
use crate::{Auth, Digest, Reference, StoreError};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Hashes kept of one image; a rotated credential drives out another.
const CREDENTIALS_MAX: usize = 64;

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Document {
    /// Makes the hashes useless for lists of known passwords.
    salt: String,
    images: BTreeMap<String, Grant>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Grant {
    /// The registry gave it to anybody, or to the machine itself.
    everybody: bool,
    credentials: BTreeSet<String>,
}

/// By what an image came.
#[derive(Debug)]
pub(crate) enum By {
    /// Nothing, or credentials of the machine.
    Everybody,
    /// Credentials that the caller gave.
    Given(Credential),
}

#[derive(Debug)]
pub(crate) struct Grants {
    path: PathBuf,
}

impl Grants {
    pub(crate) fn new(root: &Path) -> Self {
        Self {
            path: root.join("grants.json"),
        }
    }

    /// Whether a holder of these credentials may use present content without asking.
    pub(crate) fn permits(
        &self,
        reference: &Reference,
        digest: &Digest,
        auths: &[Auth],
    ) -> Result<bool, StoreError> {
        let document = self.read()?;
        let Some(grant) = document.images.get(&key(reference, digest)) else {
            return Ok(true);
        };
        Ok(grant.everybody
            || covering(auths, reference).any(|credential| {
                grant
                    .credentials
                    .contains(&hash(&document.salt, credential))
            }))
    }

    /// Notes that the registry gave it to somebody; on disk when this returns. Blocking.
    pub(crate) fn note(
        &self,
        reference: &Reference,
        digest: &Digest,
        by: &By,
        index: &Index,
    ) -> Result<(), StoreError> {
        let lock_path = self.path.with_extension("lock");
        let lock = private().open(&lock_path);
        let lock = lock.map_err(StoreError::new("open", &lock_path))?;
        lock.lock().map_err(StoreError::new("lock", &lock_path))?;
        let mut document = self.read()?;
        let (key, names) = (key(reference, digest), index.all()?);
        let known = document.images.get(&key).cloned();
        let mut grant = match (&known, by) {
            (Some(known), _) => known.clone(),
            // Loaded or pulled for all before: it stays so.
            (None, _) if names.values().any(|found| found.digest == *digest) => return Ok(()),
            (None, By::Everybody) => return Ok(()),
            (None, By::Given(_)) => Grant::default(),
        };
        match by {
            By::Everybody => grant.everybody = true,
            By::Given(credential) => {
                if document.salt.is_empty() {
                    document.salt = hex::encode(rand::random::<[u8; 16]>());
                }
                while grant.credentials.len() >= CREDENTIALS_MAX {
                    grant.credentials.pop_first();
                }
                grant.credentials.insert(hash(&document.salt, credential));
            }
        }
        if known.as_ref() == Some(&grant) {
            return Ok(());
        }
        document.images.insert(key, grant);
        self.write(&document)
    }

    /// Forgets images that are gone. Only while nothing is pulled: what is being pulled is
    /// noted before it has its name.
    pub(crate) fn prune(&self, index: &Index) -> Result<(), StoreError> {
        let mut document = self.read()?;
        let present: BTreeSet<String> = index
            .all()?
            .iter()
            .map(|(name, found)| key(name, &found.digest))
            .collect();
        let before = document.images.len();
        document.images.retain(|key, _| present.contains(key));
        if document.images.len() == before {
            return Ok(());
        }
        self.write(&document)
    }

    fn write(&self, document: &Document) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(document)
            .map_err(io::Error::from)
            .map_err(StoreError::new("encode", &self.path))?;
        replace(&self.path, &bytes)
    }

    fn read(&self) -> Result<Document, StoreError> {
        match fs::read(&self.path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(io::Error::from)
                .map_err(StoreError::new("parse", &self.path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Document::default()),
            Err(error) => Err(StoreError::new("read", &self.path)(error)),
        }
    }
}

fn key(reference: &Reference, digest: &Digest) -> String {
    format!("{}@{digest}", reference.name())
}

fn hash(salt: &str, credential: &Credential) -> String {
    let text = match credential {
        Credential::Basic { username, password } => format!("{salt}\0b{username}\0{password}"),
        Credential::IdentityToken(token) => format!("{salt}\0i{token}"),
        Credential::RegistryToken(token) => format!("{salt}\0r{token}"),
    };
    Digest::sha256(text.as_bytes()).hex().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Descriptor;

    fn auth(scope: &str, password: &str) -> Auth {
        Auth {
            scope: scope.into(),
            credential: Credential::Basic {
                username: "till".into(),
                password: password.into(),
            },
        }
    }

    #[test]
    fn only_holders_of_proven_credentials_use_what_came_by_some() {
        let dir = tempfile::tempdir().unwrap();
        let (grants, index) = (Grants::new(dir.path()), Index::new(dir.path()));
        let image = Reference::parse("r.io/shop/till:1").unwrap();
        let digest = Digest::sha256(b"content");
        let (good, other) = (auth("r.io", "good"), auth("r.io", "other"));
        let elsewhere = auth("other.io", "good");
        let may = |auths: &[Auth]| grants.permits(&image, &digest, auths).unwrap();
        assert!(may(&[]), "preloaded");
        grants
            .note(&image, &digest, &By::Given(good.credential.clone()), &index)
            .unwrap();
        assert!(!may(&[]));
        assert!(!may(&[other.clone(), elsewhere]));
        assert!(may(&[other.clone(), good]));
        let text = std::fs::read_to_string(dir.path().join("grants.json")).unwrap();
        assert!(
            !text.contains("good") && !text.contains("till\\u0000"),
            "{text}"
        );
        grants
            .note(
                &image,
                &digest,
                &By::Given(other.credential.clone()),
                &index,
            )
            .unwrap();
        assert!(may(&[other]));
        grants.prune(&index).unwrap();
        assert!(may(&[]), "the image is gone, so is what was known of it");
        let good = By::Given(auth("r.io", "good").credential);
        grants.note(&image, &digest, &good, &index).unwrap();
        grants
            .note(&image, &digest, &By::Everybody, &index)
            .unwrap();
        assert!(may(&[]));
    }

    #[test]
    fn what_was_loaded_for_all_stays_so() {
        let dir = tempfile::tempdir().unwrap();
        let (grants, index) = (Grants::new(dir.path()), Index::new(dir.path()));
        let image = Reference::parse("r.io/shop/till:1").unwrap();
        let found = Descriptor {
            media_type: String::new(),
            digest: Digest::sha256(b"content"),
            size: 1,
            platform: None,
            annotations: BTreeMap::new(),
        };
        let digest = found.digest.clone();
        index
            .update(|names| names.insert(image.clone(), found))
            .unwrap();
        let by = By::Given(auth("r.io", "good").credential);
        grants.note(&image, &digest, &by, &index).unwrap();
        assert!(grants.permits(&image, &digest, &[]).unwrap());
    }
}
