//! How one value is encrypted: upstream's providers, whose forms on the store are
//! `k8s:enc:PROVIDER:v1:KEY:` and what the cipher makes.
//!
//! `aesgcm` and `aescbc` stand with a nonce and an initialization vector in front,
//! `secretbox` with a nonce in front of NaCl's box. Only `aesgcm` holds a value to its place
//! in the store; `aescbc` does not even tell whether it was changed. The reference is
//! `k8s.io/apiserver/pkg/storage/value/encrypt`.

use super::list;
use base64::Engine as _;
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{
    BlockCipher, BlockDecrypt, BlockDecryptMut as _, BlockEncrypt, BlockEncryptMut as _, KeyInit,
    KeyIvInit as _,
};
use crypto_secretbox::XSalsa20Poly1305;
use crypto_secretbox::aead::Aead as _;
use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde_json::Value;

/// Bytes of a block of AES, which the initialization vector is.
const BLOCK_LEN: usize = 16;
/// Bytes of a box's nonce.
const BOX_NONCE_LEN: usize = 24;

pub(super) enum Provider {
    Identity,
    Keyed { prefix: Vec<u8>, cipher: Cipher },
}

pub(super) enum Cipher {
    AesGcm(Box<LessSafeKey>),
    /// Of 16, 24 or 32 bytes.
    AesCbc(Vec<u8>),
    SecretBox(Box<XSalsa20Poly1305>),
}

impl Cipher {
    /// `None` for a key of a length that is none of `lengths`.
    fn new(kind: &str, secret: &[u8]) -> Option<Self> {
        Some(match kind {
            "aesgcm" => {
                let algorithm = match secret.len() {
                    16 => &AES_128_GCM,
                    32 => &AES_256_GCM,
                    _ => return None,
                };
                Self::AesGcm(Box::new(LessSafeKey::new(
                    UnboundKey::new(algorithm, secret).ok()?,
                )))
            }
            "aescbc" if lengths(kind).contains(&secret.len()) => Self::AesCbc(secret.to_vec()),
            "secretbox" => {
                let key: [u8; 32] = secret.try_into().ok()?;
                Self::SecretBox(Box::new(XSalsa20Poly1305::new(&key.into())))
            }
            _ => return None,
        })
    }

    /// Encrypts the value of a store key.
    pub(super) fn seal(&self, key: &str, plain: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::AesGcm(cipher) => {
                let mut nonce = [0; NONCE_LEN];
                rand::fill(&mut nonce);
                let mut sealed = plain.to_vec();
                let bound = Aad::from(key.as_bytes());
                let unique = Nonce::assume_unique_for_key(nonce);
                cipher
                    .seal_in_place_append_tag(unique, bound, &mut sealed)
                    .ok()?;
                Some([nonce.as_slice(), &sealed].concat())
            }
            Self::AesCbc(secret) => {
                let mut vector = [0; BLOCK_LEN];
                rand::fill(&mut vector);
                let sealed = match secret.len() {
                    16 => cbc_seal::<aes::Aes128>(secret, &vector, plain),
                    24 => cbc_seal::<aes::Aes192>(secret, &vector, plain),
                    _ => cbc_seal::<aes::Aes256>(secret, &vector, plain),
                }?;
                Some([vector.as_slice(), &sealed].concat())
            }
            Self::SecretBox(cipher) => {
                let mut nonce = [0; BOX_NONCE_LEN];
                rand::fill(&mut nonce);
                let sealed = cipher.encrypt(&nonce.into(), plain).ok()?;
                Some([nonce.as_slice(), &sealed].concat())
            }
        }
    }

    /// Decrypts the value of a store key; `None` for what this key has not encrypted so.
    pub(super) fn open(&self, key: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::AesGcm(cipher) => {
                let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN)?;
                let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
                let mut plain = sealed.to_vec();
                let bound = Aad::from(key.as_bytes());
                let length = cipher.open_in_place(nonce, bound, &mut plain).ok()?.len();
                plain.truncate(length);
                Some(plain)
            }
            Self::AesCbc(secret) => {
                let (vector, sealed) = sealed.split_at_checked(BLOCK_LEN)?;
                match secret.len() {
                    16 => cbc_open::<aes::Aes128>(secret, vector, sealed),
                    24 => cbc_open::<aes::Aes192>(secret, vector, sealed),
                    _ => cbc_open::<aes::Aes256>(secret, vector, sealed),
                }
            }
            Self::SecretBox(cipher) => {
                let (nonce, sealed) = sealed.split_at_checked(BOX_NONCE_LEN)?;
                let nonce: [u8; BOX_NONCE_LEN] = nonce.try_into().ok()?;
                cipher.decrypt(&nonce.into(), sealed).ok()
            }
        }
    }
}

fn cbc_seal<C: BlockCipher + BlockEncrypt + KeyInit>(
    secret: &[u8],
    vector: &[u8],
    plain: &[u8],
) -> Option<Vec<u8>> {
    let cipher = cbc::Encryptor::<C>::new_from_slices(secret, vector).ok()?;
    Some(cipher.encrypt_padded_vec_mut::<Pkcs7>(plain))
}

fn cbc_open<C: BlockCipher + BlockDecrypt + KeyInit>(
    secret: &[u8],
    vector: &[u8],
    sealed: &[u8],
) -> Option<Vec<u8>> {
    let cipher = cbc::Decryptor::<C>::new_from_slices(secret, vector).ok()?;
    cipher.decrypt_padded_vec_mut::<Pkcs7>(sealed).ok()
}

/// Bytes that a provider's keys may have.
fn lengths(kind: &str) -> &'static [usize] {
    match kind {
        "aesgcm" => &[16, 32],
        "aescbc" => &[16, 24, 32],
        _ => &[32],
    }
}

/// Reads one of `providers`; a provider with several keys is as many.
pub(super) fn parse(at: &str, v: &Value, out: &mut Vec<Provider>) -> Result<(), String> {
    let mut kinds = v.as_object().into_iter().flatten();
    let (Some((kind, with)), None) = (kinds.next(), kinds.next()) else {
        return Err(format!("{at}: Invalid value: name exactly one provider"));
    };
    match kind.as_str() {
        "identity" => out.push(Provider::Identity),
        "aesgcm" | "aescbc" | "secretbox" => {
            let keys: Vec<&Value> = list(&with["keys"]).collect();
            if keys.is_empty() {
                return Err(format!("{at}.{kind}.keys: Required value"));
            }
            for (i, k) in keys.into_iter().enumerate() {
                let at = format!("{at}.{kind}.keys[{i}]");
                out.push(keyed(&at, kind, k)?);
            }
        }
        "kms" => {
            return Err(format!(
                "{at}: Unsupported value: \"kms\": keys of a key management service are not supported; use secretbox, aesgcm or aescbc"
            ));
        }
        other => {
            return Err(format!(
                "{at}: Unsupported value: {other:?}: supported values: \"aescbc\", \"aesgcm\", \"identity\", \"secretbox\""
            ));
        }
    }
    Ok(())
}

fn keyed(at: &str, kind: &str, key: &Value) -> Result<Provider, String> {
    let name = key["name"].as_str().unwrap_or_default();
    if name.is_empty() || name.contains(':') {
        return Err(format!("{at}.name: Invalid value: {name:?}"));
    }
    let secret = base64::engine::general_purpose::STANDARD
        .decode(key["secret"].as_str().unwrap_or_default())
        .map_err(|_| {
            format!("{at}.secret: Invalid value: \"REDACTED\": secrets must be base64 encoded")
        })?;
    let cipher = Cipher::new(kind, &secret).ok_or_else(|| {
        let all: Vec<String> = lengths(kind).iter().map(usize::to_string).collect();
        format!(
            "{at}.secret: Invalid value: \"REDACTED\": secret is not of the expected length, got {}, expected one of [{}]",
            secret.len(),
            all.join(" ")
        )
    })?;
    Ok(Provider::Keyed {
        prefix: format!("k8s:enc:{kind}:v1:{name}:").into_bytes(),
        cipher,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(hex: &str) -> Vec<u8> {
        hex::decode(hex).unwrap()
    }

    /// "Cryptography in NaCl", section 10, the example of `crypto_secretbox`.
    #[test]
    fn boxes_are_those_of_nacl() {
        let key = bytes("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389");
        let nonce = bytes("69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37");
        let plain = bytes(concat!(
            "be075fc53c81f2d5cf141316ebeb0c7b5228c52a4c62cbd44b66849b64244ffc",
            "e5ecbaaf33bd751a1ac728d45e6c61296cdc3c01233561f41db66cce314adb31",
            "0e3be8250c46f06dceea3a7fa1348057e2f6556ad6b1318a024a838f21af1fde",
            "048977eb48f59ffd4924ca1c60902e52f0a089bc76897040e082f93776384864",
            "5e0705"
        ));
        let sealed = bytes(concat!(
            "f3ffc7703f9400e52a7dfb4b3d3305d98e993b9f48681273c29650ba32fc76ce",
            "48332ea7164d96a4476fb8c531a1186ac0dfc17c98dce87b4da7f011ec48c972",
            "71d2c20f9b928fe2270d6fb863d51738b48eeee314a7cc8ab932164548e526ae",
            "90224368517acfeabd6bb3732bc0e9da99832b61ca01b6de56244a9e88d5f9b3",
            "7973f622a43d14a6599b1f654cb45a74e355a5"
        ));
        let cipher = Cipher::new("secretbox", &key).unwrap();
        let stored = [nonce, sealed].concat();
        assert_eq!(cipher.open("k", &stored), Some(plain));
    }

    /// NIST SP 800-38A, F.2 (CBC-AES128, 192 and 256), with a block of padding after it.
    #[test]
    fn blocks_are_chained_as_the_standard_says() {
        let vector = bytes("000102030405060708090a0b0c0d0e0f");
        let plain = bytes("6bc1bee22e409f96e93d7e117393172a");
        for (key, first) in [
            (
                "2b7e151628aed2a6abf7158809cf4f3c",
                "7649abac8119b246cee98e9b12e9197d",
            ),
            (
                "8e73b0f7da0e6452c810f32b809079e562f8ead2522c6b7b",
                "4f021db243bc633d7178183a9fa071e8",
            ),
            (
                "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4",
                "f58c4c04d6e5f1ba779eabfb5f7bfbd6",
            ),
        ] {
            let key = bytes(key);
            let sealed = match key.len() {
                16 => cbc_seal::<aes::Aes128>(&key, &vector, &plain),
                24 => cbc_seal::<aes::Aes192>(&key, &vector, &plain),
                _ => cbc_seal::<aes::Aes256>(&key, &vector, &plain),
            }
            .unwrap();
            assert_eq!((sealed.len(), &sealed[..16]), (32, bytes(first).as_slice()));
            let stored = [vector.clone(), sealed].concat();
            let cipher = Cipher::new("aescbc", &key).unwrap();
            assert_eq!(cipher.open("k", &stored), Some(plain.clone()));
        }
    }

    proptest! {
        #[test]
        fn what_is_sealed_is_opened_by_its_key_alone(
            plain in proptest::collection::vec(any::<u8>(), 0..200),
            kind in prop_oneof![Just("aesgcm"), Just("aescbc"), Just("secretbox")],
            changed in any::<prop::sample::Index>(),
        ) {
            let cipher = Cipher::new(kind, &[7; 32]).unwrap();
            let sealed = cipher.seal("k", &plain).unwrap();
            prop_assert_eq!(cipher.open("k", &sealed), Some(plain.clone()));
            let other = Cipher::new(kind, &[8; 32]).unwrap();
            prop_assert_ne!(other.open("k", &sealed), Some(plain.clone()));
            let mut damaged = sealed;
            let at = changed.index(damaged.len());
            damaged[at] ^= 1;
            prop_assert_ne!(cipher.open("k", &damaged), Some(plain));
        }

        #[test]
        fn what_was_never_sealed_is_refused_or_read_but_never_a_panic(
            sealed in proptest::collection::vec(any::<u8>(), 0..100),
            kind in prop_oneof![Just("aesgcm"), Just("aescbc"), Just("secretbox")],
        ) {
            let cipher = Cipher::new(kind, &[7; 32]).unwrap();
            let opened = cipher.open("k", &sealed);
            prop_assert!(kind == "aescbc" || opened.is_none());
        }
    }
}
