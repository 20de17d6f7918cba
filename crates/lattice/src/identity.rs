//! Who a site is: one secret seed made at first start, kept in a file that only its owner
//! reads, and the two keys derived from it (Ed25519 to sign, X25519 to agree on keys).
//!
//! The site's id is a digest of its public keys: nobody can take another's.

use crate::crypto;
use crate::wire::{DecodeError, Reader, Writer};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use x25519_dalek::{PublicKey, StaticSecret};

/// A site's id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SiteId(pub [u8; 16]);

/// A lattice's id: a digest of its root's public keys.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LatticeId(pub [u8; 8]);

/// The public halves of a site's (or a lattice root's) keys.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKeys {
    /// Ed25519.
    pub sign: [u8; 32],
    /// X25519.
    pub agree: [u8; 32],
}

/// A site's secret keys.
pub struct SiteKey {
    sign: Ed25519KeyPair,
    agree: StaticSecret,
    public: PublicKeys,
}

/// Why a site has no key.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum KeyError {
    #[error("read key {}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("read key {}: it is not 64 hexadecimal digits", .0.display())]
    Form(PathBuf),
    #[error("write key {}", path.display())]
    Write {
        path: PathBuf,
        source: std::io::Error,
    },
}

impl SiteKey {
    /// The keys that a seed stands for.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let part = |name: &[u8]| crypto::derive(b"salp site key 1", seed, &[name]);
        // A seed of 32 bytes is always a key.
        let sign = Ed25519KeyPair::from_seed_unchecked(&part(b"sign"))
            .expect("32 bytes are an Ed25519 seed");
        let agree = StaticSecret::from(part(b"agree"));
        let mut public = PublicKeys {
            sign: [0; 32],
            agree: PublicKey::from(&agree).to_bytes(),
        };
        public.sign.copy_from_slice(sign.public_key().as_ref());
        Self {
            sign,
            agree,
            public,
        }
    }

    /// Reads the seed from a file, or makes one from `fresh` and writes it there, readable
    /// by its owner only.
    ///
    /// # Errors
    /// When the file can't be read or written, or holds something else.
    pub fn load_or_create(path: &Path, fresh: [u8; 32]) -> Result<Self, KeyError> {
        match std::fs::read_to_string(path) {
            Ok(text) => {
                let mut seed = [0; 32];
                hex::decode_to_slice(text.trim(), &mut seed)
                    .map_err(|_| KeyError::Form(path.to_owned()))?;
                Ok(Self::from_seed(&seed))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let text = format!("{}\n", hex::encode(fresh));
                crate::files::write(path, text.as_bytes()).map_err(|source| KeyError::Write {
                    path: path.to_owned(),
                    source,
                })?;
                Ok(Self::from_seed(&fresh))
            }
            Err(source) => Err(KeyError::Read {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// The public halves.
    pub fn public(&self) -> &PublicKeys {
        &self.public
    }

    /// This site's id.
    pub fn id(&self) -> SiteId {
        self.public.site_id()
    }

    /// Signs `parts`, as one text, for a purpose.
    pub(crate) fn sign(&self, purpose: &str, body: &[u8]) -> [u8; 64] {
        let mut out = [0; 64];
        out.copy_from_slice(self.sign.sign(&signed_text(purpose, body)).as_ref());
        out
    }

    /// Signs what TLS 1.3 asks to be signed, as it is.
    pub(crate) fn sign_tls(&self, message: &[u8]) -> [u8; 64] {
        let mut out = [0; 64];
        out.copy_from_slice(self.sign.sign(message).as_ref());
        out
    }

    /// The secret shared with another's keys; `None` when the other's key is degenerate.
    pub(crate) fn agree(&self, other: &[u8; 32]) -> Option<[u8; 32]> {
        agree(&self.agree, other)
    }
}

/// The secret that two X25519 keys share; `None` when the public one is degenerate.
pub(crate) fn agree(secret: &StaticSecret, other: &[u8; 32]) -> Option<[u8; 32]> {
    let shared = secret.diffie_hellman(&PublicKey::from(*other));
    shared.was_contributory().then(|| shared.to_bytes())
}

impl PublicKeys {
    /// The id of the site with these keys.
    pub fn site_id(&self) -> SiteId {
        let digest = crypto::digest(&[b"salp site id 1", &self.sign, &self.agree]);
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        SiteId(id)
    }

    /// The id of the lattice with this root.
    pub fn lattice_id(&self) -> LatticeId {
        let digest = crypto::digest(&[b"salp lattice id 1", &self.sign, &self.agree]);
        let mut id = [0; 8];
        id.copy_from_slice(&digest[..8]);
        LatticeId(id)
    }

    /// Whether the signature is this key's, for that purpose.
    pub(crate) fn verify(&self, purpose: &str, body: &[u8], signature: &[u8]) -> bool {
        ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, &self.sign)
            .verify(&signed_text(purpose, body), signature)
            .is_ok()
    }

    pub(crate) fn write(&self, w: &mut Writer) {
        w.fixed(&self.sign).fixed(&self.agree);
    }

    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            sign: r.fixed()?,
            agree: r.fixed()?,
        })
    }
}

/// A signature for one purpose is none for another.
fn signed_text(purpose: &str, body: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(purpose.len() + 1 + body.len());
    text.extend_from_slice(purpose.as_bytes());
    text.push(0);
    text.extend_from_slice(body);
    text
}

impl fmt::Display for SiteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for SiteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0[..4]))
    }
}

/// A text is no site's id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("read site id: expected 32 hexadecimal digits")]
pub struct NoSiteId;

impl FromStr for SiteId {
    type Err = NoSiteId;

    fn from_str(text: &str) -> Result<Self, NoSiteId> {
        let mut id = [0; 16];
        hex::decode_to_slice(text, &mut id).map_err(|_| NoSiteId)?;
        Ok(Self(id))
    }
}

impl fmt::Display for LatticeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for LatticeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for PublicKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKeys({})", self.site_id())
    }
}

impl fmt::Debug for SiteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SiteKey({})", self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_key_is_made_once_and_kept_from_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("site.key");
        let made = SiteKey::load_or_create(&path, [7; 32]).unwrap();
        let again = SiteKey::load_or_create(&path, [8; 32]).unwrap();
        assert_eq!(made.id(), again.id());
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(&path, "no key").unwrap();
        let error = SiteKey::load_or_create(&path, [8; 32]).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("it is not 64 hexadecimal digits")
        );
    }

    #[test]
    fn a_signature_is_for_one_text_and_purpose() {
        let key = SiteKey::from_seed(&[1; 32]);
        let signature = key.sign("a", b"text");
        assert!(key.public().verify("a", b"text", &signature));
        assert!(!key.public().verify("b", b"text", &signature));
        assert!(!key.public().verify("a", b"texT", &signature));
        assert!(
            !SiteKey::from_seed(&[2; 32])
                .public()
                .verify("a", b"text", &signature)
        );
    }

    #[test]
    fn both_sides_agree_and_a_degenerate_key_is_refused() {
        let (a, b) = (SiteKey::from_seed(&[1; 32]), SiteKey::from_seed(&[2; 32]));
        assert_eq!(a.agree(&b.public().agree), b.agree(&a.public().agree));
        assert_eq!(a.agree(&[0; 32]), None);
    }

    #[test]
    fn ids_are_read_as_they_are_shown() {
        let id = SiteKey::from_seed(&[3; 32]).id();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("12".parse::<SiteId>(), Err(NoSiteId));
    }
}
