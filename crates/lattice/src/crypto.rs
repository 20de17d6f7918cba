//! The few primitives everything else is made of: SHA-256, HKDF and ChaCha20-Poly1305 (all
//! from `ring`), and where random bytes come from.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::rand::SecureRandom as _;
use x25519_dalek::{PublicKey, StaticSecret};

/// What sealing adds.
pub(crate) const TAG: usize = 16;

/// Where random bytes come from: the system, or for tests a seed.
pub struct Entropy(Box<Source>);

type Source = dyn FnMut(&mut [u8]) + Send;

impl Entropy {
    /// The operating system's.
    ///
    /// # Panics
    /// When the operating system has none to give, which no system that boots does.
    pub fn system() -> Self {
        let source = ring::rand::SystemRandom::new();
        Self(Box::new(move |out| {
            source.fill(out).expect("the system gives random bytes");
        }))
    }

    /// The same bytes again for the same seed: for simulations only.
    pub fn seeded(seed: u64) -> Self {
        let mut count = 0u64;
        Self(Box::new(move |out| {
            for chunk in out.chunks_mut(32) {
                count += 1;
                let digest = digest(&[b"seeded", &seed.to_be_bytes(), &count.to_be_bytes()]);
                chunk.copy_from_slice(&digest[..chunk.len()]);
            }
        }))
    }

    /// A source of its own, seeded from another: for what needs no secrecy.
    pub(crate) fn seeded_by(other: &mut Self) -> Self {
        Self::seeded(u64::from_be_bytes(other.bytes()))
    }

    /// Random bytes.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        (self.0)(&mut out);
        out
    }

    /// A number below `end` (not zero); slightly uneven, so for jitter only.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        u64::from_be_bytes(self.bytes()) % end
    }
}

impl std::fmt::Debug for Entropy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Entropy")
    }
}

/// SHA-256 of parts, each with its length, so that no two lists of parts are one text.
pub(crate) fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

/// HKDF-SHA256: a key of its own for each salt and context. All parts of a context have
/// fixed sizes per salt, so that no two contexts are one text.
pub(crate) fn derive(salt: &[u8], secret: &[u8], context: &[&[u8]]) -> [u8; 32] {
    let salt = ring::hkdf::Salt::new(ring::hkdf::HKDF_SHA256, salt);
    let mut out = [0; 32];
    salt.extract(secret)
        .expand(context, ring::hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(&mut out))
        .expect("one block can be expanded");
    out
}

/// A key that seals with a counter as nonce. Whoever holds it must never use a counter twice.
///
/// It is kept as its bytes: what `ring` makes of them is twenty times as large, made in no time,
/// and there are three for each of a thousand sites.
pub(crate) struct SealKey([u8; 32]);

impl SealKey {
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        Self(*key)
    }

    fn ready(&self) -> LessSafeKey {
        let key = UnboundKey::new(&CHACHA20_POLY1305, &self.0).expect("the key has 32 bytes");
        LessSafeKey::new(key)
    }

    /// Appends the sealed `plain` to `head`, which is authenticated with it.
    pub(crate) fn seal(&self, counter: u64, head: &mut Vec<u8>, plain: &[u8]) {
        head.reserve(plain.len() + TAG);
        let mut body = plain.to_vec();
        let tag = self
            .ready()
            .seal_in_place_separate_tag(nonce(counter), Aad::from(&head[..]), &mut body)
            .expect("a message is shorter than 256 GiB");
        head.extend_from_slice(&body);
        head.extend_from_slice(tag.as_ref());
    }

    /// The plain text, unless it or `head` was changed.
    pub(crate) fn open(&self, counter: u64, head: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let mut body = sealed.to_vec();
        let plain = self
            .ready()
            .open_in_place(nonce(counter), Aad::from(head), &mut body)
            .ok()?
            .len();
        body.truncate(plain);
        Some(body)
    }
}

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealKey")
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// Seals for whoever has the secret of `to`, by a key made for this once.
pub(crate) fn seal_to(to: &[u8; 32], purpose: &str, plain: &[u8], random: [u8; 32]) -> Vec<u8> {
    let once = StaticSecret::from(random);
    let public = PublicKey::from(&once).to_bytes();
    let mut out = public.to_vec();
    // A degenerate recipient gets what it can't open.
    let shared = crate::identity::agree(&once, to).unwrap_or(random);
    let key = derive(purpose.as_bytes(), &shared, &[&public, to]);
    SealKey::new(&key).seal(0, &mut out, plain);
    out
}

/// Opens what [`seal_to`] sealed for this key.
pub(crate) fn open_sealed(
    key: &crate::identity::SiteKey,
    purpose: &str,
    sealed: &[u8],
) -> Option<Vec<u8>> {
    let (public, body) = sealed.split_first_chunk::<32>()?;
    let shared = key.agree(public)?;
    let derived = derive(purpose.as_bytes(), &shared, &[public, &key.public().agree]);
    SealKey::new(&derived).open(0, public, body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::SiteKey;

    #[test]
    fn what_is_sealed_opens_for_its_reader_alone() {
        let (a, b) = (SiteKey::from_seed(&[1; 32]), SiteKey::from_seed(&[2; 32]));
        let mut sealed = seal_to(&a.public().agree, "p", b"text", [9; 32]);
        assert_eq!(open_sealed(&a, "p", &sealed).as_deref(), Some(&b"text"[..]));
        assert_eq!(open_sealed(&b, "p", &sealed), None);
        assert_eq!(open_sealed(&a, "q", &sealed), None);
        for i in 0..sealed.len() {
            sealed[i] ^= 1;
            assert_eq!(open_sealed(&a, "p", &sealed), None, "byte {i}");
            sealed[i] ^= 1;
        }
    }

    #[test]
    fn a_seed_gives_the_same_bytes_again() {
        let (mut a, mut b) = (Entropy::seeded(1), Entropy::seeded(1));
        assert_eq!(a.bytes::<40>(), b.bytes::<40>());
        assert_ne!(a.bytes::<8>(), Entropy::seeded(2).bytes::<8>());
    }
}
