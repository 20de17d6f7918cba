//! Requests of nodes for the certificates of pods: what is asked for, and what a signer answers.
//!
//! The reference is `pkg/apis/certificates/validation` of upstream. Requests of people are in
//! [`super::certificates`].

use super::Check;
use super::certificates::{decoded, signer_name};
use crate::access::{at, is_empty, list, text};
use apimachinery::names;
use apimachinery::status::FieldError;
use jiff::Timestamp;
use serde_json::Value;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::error::X509Error;
use x509_parser::pem::Pem;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::public_key::PublicKey;

const UID_BYTES_MAX: usize = 128;
const REQUEST_BYTES_MAX: usize = 10 * 1024;
const CHAIN_BYTES_MAX: usize = 100 * 1024;
const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;
const HOUR_SECONDS: i64 = 60 * 60;
const DAY_SECONDS: i64 = 24 * HOUR_SECONDS;
/// Of signers that are not Kubernetes' own.
const DAYS_MAX: i64 = 91;
/// How far the clocks of a signer and of this server may be apart.
const SKEW_SECONDS: i64 = 5 * 60;
/// How long after the beginning, and before the end, a certificate may be renewed.
const MARGIN_SECONDS: i64 = 10 * 60;
/// The ways a request can end.
const ENDS: [&str; 3] = ["Issued", "Denied", "Failed"];

/// A new `PodCertificateRequest`.
pub(crate) fn request(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    let spec = at(v, "spec");
    signer_name(&mut c, "spec.signerName", at(spec, "signerName"));
    annotations(&mut c, at(spec, "unverifiedUserAnnotations"));
    for (name, uid) in [
        ("podName", "podUID"),
        ("serviceAccountName", "serviceAccountUID"),
        ("nodeName", "nodeUID"),
    ] {
        let rule = names::dns1123_subdomain;
        c.rule(format!("spec.{name}"), &text(spec, name).into(), rule);
        let (path, uid) = (format!("spec.{uid}"), text(spec, uid));
        if uid.is_empty() {
            c.invalid(path, &"".into(), "must not be empty");
        } else if uid.len() > UID_BYTES_MAX {
            c.add(FieldError::too_long(path, UID_BYTES_MAX));
        }
    }
    let host = text(spec, "signerName")
        .split('/')
        .next()
        .unwrap_or_default();
    let own = host == "kubernetes.io" || host.ends_with(".kubernetes.io");
    let most = if own {
        DAY_SECONDS
    } else {
        DAYS_MAX * DAY_SECONDS
    };
    let path = "spec.maxExpirationSeconds";
    match at(v, path).as_i64() {
        None => {
            c.required(path, "must be set");
            return c.0;
        }
        Some(n) if !(HOUR_SECONDS..=most).contains(&n) => {
            let detail = format!("must be in the range [{HOUR_SECONDS}, {most}]");
            c.invalid(path, at(v, path), detail);
        }
        Some(_) => {}
    }
    stub(&mut c, at(spec, "stubPKCS10Request"));
    c.0
}

fn annotations(c: &mut Check, v: &Value) {
    let path = "spec.unverifiedUserAnnotations";
    let mut bytes = 0;
    for (key, value) in v.as_object().into_iter().flatten() {
        bytes += key.len() + value.as_str().map_or(0, str::len);
        if let Err(e) = names::qualified_name(&key.to_lowercase()) {
            c.invalid(path, &key.as_str().into(), e);
        } else if !key.contains('/') {
            let detail = "must be a domain-prefixed key (such as \"acme.io/foo\")";
            c.invalid(path, &key.as_str().into(), detail);
        }
    }
    if bytes > ANNOTATIONS_BYTES_MAX {
        c.add(FieldError::too_long(path, ANNOTATIONS_BYTES_MAX));
    }
}

/// The request that says which key the certificate is for, signed by that key.
fn stub(c: &mut Check, v: &Value) {
    let path = "spec.stubPKCS10Request";
    let der = decoded(v);
    if der.len() > REQUEST_BYTES_MAX {
        return c.add(FieldError::too_long(path, REQUEST_BYTES_MAX));
    }
    let Ok((_, request)) = X509CertificationRequest::from_der(&der) else {
        return c.invalid(path, v, "must be a valid PKCS#10 CSR");
    };
    let key = &request.certification_request_info.subject_pki;
    let bits = key.parsed().map_or(0, |k| k.key_size());
    let detail = match key.parsed() {
        Ok(PublicKey::RSA(_)) if !matches!(bits, 3072 | 4096) => {
            let shown = format!("{bits}-bit modulus").into();
            let detail = "RSA keys must have modulus size 3072 or 4096";
            return c.invalid(path, &shown, detail);
        }
        Ok(PublicKey::EC(_)) if !matches!(bits, 256 | 384 | 521 | 528) => {
            "elliptic public keys must use curve P256, P384, or P521"
        }
        Ok(PublicKey::RSA(_) | PublicKey::EC(_)) => "",
        _ if key.algorithm.algorithm.to_id_string() == "1.3.101.112" => "",
        _ => "unknown public key type; supported types are Ed25519, ECDSA, and RSA",
    };
    if !detail.is_empty() {
        return c.invalid(path, v, detail);
    }
    // Keys of P521 can't be checked here.
    match request.verify_signature() {
        Ok(()) | Err(X509Error::SignatureUnsupportedAlgorithm) => {}
        Err(_) => omitted(c, path, "could not verify the signature of the PKCS#10 CSR"),
    }
}

/// An error that doesn't show the value.
fn omitted(c: &mut Check, path: &str, detail: &str) {
    c.add(FieldError {
        field: path.to_owned(),
        reason: "FieldValueInvalid",
        message: format!("Invalid value: {detail}"),
    });
}

/// The signer's answer: once, and for good.
pub(crate) fn request_status(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    let path = "status.conditions";
    let mut found = false;
    for (i, one) in list(new, path).iter().enumerate() {
        let (kind, path) = (at(one, "type"), format!("{path}[{i}]"));
        if !ENDS.iter().any(|end| kind == end) {
            let e = FieldError::not_supported(format!("{path}.type"), kind, &ENDS);
            c.add(e);
            continue;
        }
        if std::mem::replace(&mut found, true) {
            let detail = "There may be at most one condition with type \"Issued\", \"Denied\", or \"Failed\"";
            c.invalid(format!("{path}.type"), kind, detail);
        }
        if text(one, "status") != "True" {
            let status = text(one, "status").into();
            let e = FieldError::not_supported(format!("{path}.status"), &status, &["True"]);
            c.add(e);
        }
    }
    c.conditions(path, at(new, path), usize::MAX);
    if !c.0.is_empty() {
        return c.0;
    }
    let ended = |v: &Value| {
        let mut all = list(v, path).iter();
        all.any(|one| ENDS.contains(&text(one, "type")) && text(one, "status") == "True")
    };
    let is = |kind: &str| list(new, path).iter().any(|one| text(one, "type") == kind);
    let others = |v: &Value| {
        let fields = at(v, "status").as_object().into_iter().flatten();
        fields
            .filter(|(k, v)| *k != "conditions" && !is_empty(v))
            .count()
    };
    let same = at(new, path) == at(old, path) && fields(new) == fields(old);
    if ended(old) {
        if !same {
            let detail = "immutable after PodCertificateRequest is issued, denied, or failed";
            omitted(&mut c, "status", detail);
        }
    } else if is("Issued") {
        if let Err(e) = issued(new) {
            c.add(e);
        }
    } else if found {
        if others(new) > 0 {
            let detail = "non-condition status fields must be empty when denying or failing the PodCertificateRequest";
            omitted(&mut c, "status", detail);
        }
    } else if !same {
        let detail =
            "status is immutable unless transitioning to \"Issued\", \"Denied\", or \"Failed\"";
        omitted(&mut c, "status", detail);
    }
    c.0
}

/// What a status has besides conditions.
fn fields(v: &Value) -> [&Value; 4] {
    [
        "certificateChain",
        "notBefore",
        "notAfter",
        "beginRefreshAt",
    ]
    .map(|name| at(at(v, "status"), name))
}

/// A chain whose first certificate is for the key of the request, with its times.
fn issued(v: &Value) -> Result<(), FieldError> {
    const PATH: &str = "status.certificateChain";
    let [chain, not_before, not_after, refresh] = fields(v);
    let chain_text = chain.as_str().unwrap_or_default();
    let wrong = |detail: &str| FieldError::invalid(PATH, &chain_text.into(), detail);
    if chain_text.len() > CHAIN_BYTES_MAX {
        return Err(FieldError::too_long(PATH, CHAIN_BYTES_MAX));
    }
    let blocks: Vec<Pem> = Pem::iter_from_buffer(chain_text.as_bytes())
        .map_while(Result::ok)
        .collect();
    let [leaf, rest @ ..] = &blocks[..] else {
        let detail = "issued certificate chain must contain at least one certificate";
        return Err(wrong(detail));
    };
    const BLOCKS: &str = "issued certificate chain must consist entirely of CERTIFICATE PEM blocks";
    if leaf.label != "CERTIFICATE" {
        return Err(wrong(BLOCKS));
    }
    let Ok(leaf) = leaf.parse_x509() else {
        return Err(wrong("leaf certificate does not parse as valid X.509"));
    };
    let der = decoded(at(v, "spec.stubPKCS10Request"));
    let request = X509CertificationRequest::from_der(&der);
    let wanted = request.map(|(_, r)| r.certification_request_info.subject_pki.raw.to_vec());
    if !wanted.is_ok_and(|key| key == leaf.public_key().raw) {
        let detail = "leaf certificate was not issued to the requested public key";
        return Err(wrong(detail));
    }
    times(v, &leaf, [not_before, not_after, refresh])?;
    for one in rest {
        if one.label != "CERTIFICATE" {
            return Err(wrong(BLOCKS));
        }
        if X509Certificate::from_der(&one.contents).is_err() {
            let detail = "intermediate certificate does not parse as valid X.509";
            return Err(wrong(detail));
        }
    }
    Ok(())
}

fn times(v: &Value, leaf: &X509Certificate<'_>, stated: [&Value; 3]) -> Result<(), FieldError> {
    const PATHS: [&str; 3] = [
        "status.notBefore",
        "status.notAfter",
        "status.beginRefreshAt",
    ];
    let mut seconds = [0; 3];
    for (i, v) in stated.iter().enumerate() {
        let parsed = v.as_str().and_then(|s| s.parse::<Timestamp>().ok());
        let detail = match i {
            2 => "must be present and in the range [notbefore+10min, notafter-10min]",
            _ => "must be present and consistent with the issued certificate",
        };
        seconds[i] = parsed
            .ok_or_else(|| FieldError::required(PATHS[i], detail))?
            .as_second();
    }
    let [from, to, refresh] = seconds;
    let validity = leaf.validity();
    let lifetime = validity.not_after.timestamp() - validity.not_before.timestamp();
    let most = at(v, "spec.maxExpirationSeconds").as_i64().unwrap_or(0);
    let skew = (from - Timestamp::now().as_second()).abs();
    for (i, is_wrong, detail) in [
        (
            0,
            from != validity.not_before.timestamp(),
            "must be set to the NotBefore time encoded in the leaf certificate",
        ),
        (
            0,
            skew >= SKEW_SECONDS,
            "must be set to within 5 minutes of kube-apiserver's current time",
        ),
        (
            1,
            to != validity.not_after.timestamp(),
            "must be set to the NotAfter time encoded in the leaf certificate",
        ),
    ] {
        if is_wrong {
            return Err(FieldError::invalid(PATHS[i], stated[i], detail));
        }
    }
    let path = "status.certificateChain";
    let shown = Value::from(lifetime.saturating_mul(1_000_000_000));
    if lifetime < HOUR_SECONDS {
        let detail = "leaf certificate lifetime must be >= 1 hour";
        return Err(FieldError::invalid(path, &shown, detail));
    }
    if lifetime > most {
        let detail =
            format!("leaf certificate lifetime must be <= spec.maxExpirationSeconds ({most})");
        return Err(FieldError::invalid(path, &shown, detail));
    }
    let detail = if refresh < from + MARGIN_SECONDS {
        "must be at least 10 minutes after status.notBefore"
    } else if refresh > to - MARGIN_SECONDS {
        "must be at least 10 minutes before status.notAfter"
    } else {
        return Ok(());
    };
    Err(FieldError::invalid(PATHS[2], stated[2], detail))
}

#[cfg(test)]
mod tests {
    use super::super::told;
    use super::*;
    use expect_test::expect;
    use serde_json::json;

    #[test]
    fn requests_say_for_whom_and_for_how_long() {
        told(
            request(&json!({})),
            expect![[r#"
            spec.signerName: Required value
            spec.podName: Invalid value: "": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
            spec.podUID: Invalid value: "": must not be empty
            spec.serviceAccountName: Invalid value: "": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
            spec.serviceAccountUID: Invalid value: "": must not be empty
            spec.nodeName: Invalid value: "": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
            spec.nodeUID: Invalid value: "": must not be empty
            spec.maxExpirationSeconds: Required value: must be set"#]],
        );
        let mut v = json!({"spec": {
            "signerName": "kubernetes.io/a/b", "podName": "P", "podUID": "u".repeat(129), "nodeName": "n",
            "unverifiedUserAnnotations": {"a": "b", "x.y/a b": "c"}, "stubPKCS10Request": "AAAA", "maxExpirationSeconds": 86401,
        }});
        told(
            request(&v),
            expect![[r#"
            spec.signerName: Invalid value: "kubernetes.io/a/b": must be a fully qualified domain and path of the form 'example.com/signer-name'
            spec.unverifiedUserAnnotations: Invalid value: "a": must be a domain-prefixed key (such as "acme.io/foo")
            spec.unverifiedUserAnnotations: Invalid value: "x.y/a b": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
            spec.podName: Invalid value: "P": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
            spec.podUID: Too long: may not be more than 128 bytes
            spec.serviceAccountName: Invalid value: "": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
            spec.serviceAccountUID: Invalid value: "": must not be empty
            spec.nodeUID: Invalid value: "": must not be empty
            spec.maxExpirationSeconds: Invalid value: 86401: must be in the range [3600, 86400]
            spec.stubPKCS10Request: Invalid value: "AAAA": must be a valid PKCS#10 CSR"#]],
        );
        for (signer, seconds, fits) in [
            ("kubernetes.io/a", 86400, true),
            ("x.kubernetes.io/a", 86401, false),
            ("x.y/a", 86401, true),
            ("x.y/a", 91 * 86400 + 1, false),
            ("x.y/a", 3599, false),
        ] {
            v["spec"]["signerName"] = json!(signer);
            v["spec"]["maxExpirationSeconds"] = json!(seconds);
            let told = request(&v);
            let wrong = told.iter().any(|e| e.field == "spec.maxExpirationSeconds");
            assert_eq!(wrong, !fits, "{signer} {seconds}");
        }
    }

    #[test]
    fn a_request_ends_once() {
        let ended = |kind: &str| json!({"status": {"conditions": [{"type": kind, "status": "True", "reason": "R", "lastTransitionTime": "t"}]}});
        let open = json!({"status": {}});
        told(request_status(&ended("Denied"), &open), expect![""]);
        told(
            request_status(&ended("Denied"), &ended("Denied")),
            expect![""],
        );
        told(
            request_status(&ended("Failed"), &ended("Denied")),
            expect![
                "status: Invalid value: immutable after PodCertificateRequest is issued, denied, or failed"
            ],
        );
        told(
            request_status(&ended("Issued"), &open),
            expect![[
                r#"status.certificateChain: Invalid value: "": issued certificate chain must contain at least one certificate"#
            ]],
        );
        told(
            request_status(&ended("Other"), &open),
            expect![[
                r#"status.conditions[0].type: Unsupported value: "Other": supported values: "Issued", "Denied", "Failed""#
            ]],
        );
        let mut v = ended("Denied");
        v["status"]["notAfter"] = json!("2026-01-01T00:00:00Z");
        told(
            request_status(&v, &open),
            expect![
                "status: Invalid value: non-condition status fields must be empty when denying or failing the PodCertificateRequest"
            ],
        );
        v["status"]["conditions"] = Value::Null;
        told(
            request_status(&v, &open),
            expect![[
                r#"status: Invalid value: status is immutable unless transitioning to "Issued", "Denied", or "Failed""#
            ]],
        );
        v["status"]["conditions"] = json!([{"type": "Denied", "status": "False", "reason": "R", "lastTransitionTime": "t"},
            {"type": "Failed", "status": "True", "reason": "R", "lastTransitionTime": "t"}]);
        told(
            request_status(&v, &open),
            expect![[r#"
            status.conditions[0].status: Unsupported value: "False": supported values: "True"
            status.conditions[1].type: Invalid value: "Failed": There may be at most one condition with type "Issued", "Denied", or "Failed""#]],
        );
    }
}
