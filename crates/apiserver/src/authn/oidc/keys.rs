//! An issuer's keys (a JSON Web Key Set, RFC 7517) and signatures by them (RFC 7518).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey};
use serde_json::Value;

/// Keys of one issuer that are kept; further ones are left out.
const KEYS_MAX: usize = 64;

#[derive(Debug)]
pub(super) struct Keys(Vec<Key>);

#[derive(Debug)]
struct Key {
    id: Option<String>,
    /// The only one that it is for, if it says so.
    algorithm: Option<String>,
    public: Public,
}

#[derive(Debug)]
enum Public {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// An uncompressed point.
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

impl Keys {
    /// Reads a set; what is no key for signatures is left out.
    pub(super) fn parse(set: &Value) -> Self {
        let all = set["keys"].as_array().into_iter().flatten();
        Self(all.filter_map(Key::parse).take(KEYS_MAX).collect())
    }

    /// Whether a token's signature is by one of them.
    pub(super) fn verify(&self, header: &Value, signed: &str, signature: &[u8]) -> bool {
        let Some(algorithm) = header["alg"].as_str() else {
            return false;
        };
        let id = header["kid"].as_str();
        let mut fitting = self.0.iter().filter(|k| {
            (id.is_none() || k.id.is_none() || k.id.as_deref() == id)
                && k.algorithm.as_deref().is_none_or(|a| a == algorithm)
        });
        fitting.any(|k| k.public.verify(algorithm, signed.as_bytes(), signature))
    }
}

impl Key {
    fn parse(v: &Value) -> Option<Self> {
        if v["use"].as_str().is_some_and(|u| u != "sig") {
            return None;
        }
        let bytes = |key: &str| URL_SAFE_NO_PAD.decode(v[key].as_str()?).ok();
        let point = || {
            let (x, y) = (bytes("x")?, bytes("y")?);
            Some([&[4], x.as_slice(), y.as_slice()].concat())
        };
        let public = match (v["kty"].as_str()?, v["crv"].as_str()) {
            ("RSA", _) => Public::Rsa {
                n: bytes("n")?,
                e: bytes("e")?,
            },
            ("EC", Some("P-256")) => Public::P256(point()?),
            ("EC", Some("P-384")) => Public::P384(point()?),
            ("OKP", Some("Ed25519")) => Public::Ed25519(bytes("x")?),
            _ => return None,
        };
        let text = |key: &str| v[key].as_str().map(str::to_owned);
        Some(Self {
            id: text("kid"),
            algorithm: text("alg"),
            public,
        })
    }
}

impl Public {
    fn verify(&self, algorithm: &str, signed: &[u8], signature: &[u8]) -> bool {
        let plain = |how: &'static dyn signature::VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(how, key)
                .verify(signed, signature)
                .is_ok()
        };
        match (self, algorithm) {
            (Self::Rsa { n, e }, _) => {
                let how: &'static RsaParameters = match algorithm {
                    "RS256" => &signature::RSA_PKCS1_2048_8192_SHA256,
                    "RS384" => &signature::RSA_PKCS1_2048_8192_SHA384,
                    "RS512" => &signature::RSA_PKCS1_2048_8192_SHA512,
                    "PS256" => &signature::RSA_PSS_2048_8192_SHA256,
                    "PS384" => &signature::RSA_PSS_2048_8192_SHA384,
                    "PS512" => &signature::RSA_PSS_2048_8192_SHA512,
                    _ => return false,
                };
                let key = RsaPublicKeyComponents { n, e };
                key.verify(how, signed, signature).is_ok()
            }
            (Self::P256(key), "ES256") => plain(&signature::ECDSA_P256_SHA256_FIXED, key),
            (Self::P384(key), "ES384") => plain(&signature::ECDSA_P384_SHA384_FIXED, key),
            (Self::Ed25519(key), "EdDSA") => plain(&signature::ED25519, key),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// RFC 7515, A.2 (RS256) and A.3 (ES256); RFC 8037, A.4 (EdDSA).
    #[test]
    fn signatures_of_the_standards_are_good() {
        let set = Keys::parse(&json!({"keys": [
            {"kty": "RSA", "kid": "rsa", "e": "AQAB",
             "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ"},
            {"kty": "EC", "crv": "P-256",
             "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"},
            {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
            {"kty": "oct", "k": "AA"},
        ]}));
        assert_eq!(set.0.len(), 3);
        const CLAIMS: &str = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
        for (header, head, claims, signature) in [
            (
                json!({"alg": "RS256"}),
                "eyJhbGciOiJSUzI1NiJ9",
                CLAIMS,
                "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw",
            ),
            (
                json!({"alg": "ES256"}),
                "eyJhbGciOiJFUzI1NiJ9",
                CLAIMS,
                "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
            ),
            (
                json!({"alg": "EdDSA"}),
                "eyJhbGciOiJFZERTQSJ9",
                "RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc",
                "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
            ),
        ] {
            let bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
            let signed = format!("{head}.{claims}");
            assert!(set.verify(&header, &signed, &bytes), "{header}");
            assert!(!set.verify(&header, &format!("{signed}x"), &bytes));
            for alg in ["none", "HS256", "RS512", "ES384"] {
                assert!(!set.verify(&json!({"alg": alg}), &signed, &bytes), "{alg}");
            }
        }
        let other = json!({"alg": "RS256", "kid": "other"});
        assert!(!set.verify(&other, "a.b", b"x"));
    }
}
