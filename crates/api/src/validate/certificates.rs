//! Requests for certificates, and bundles of those that are trusted.

use super::{Check, Unique};
use crate::access::{at, is_empty, list, text};
use apimachinery::names;
use apimachinery::status::FieldError;
use base64::Engine as _;
use serde_json::Value;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::error::X509Error;
use x509_parser::prelude::FromDer as _;

/// Longest domain of a signer, and longest name: that with a namespace and a name after it.
const DOMAIN_BYTES_MAX: usize = 253;
const NAME_BYTES_MAX: usize = 253 + 1 + 63 + 1 + 253;

/// What a key may be used for.
const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

/// A new `CertificateSigningRequest`.
pub(crate) fn signing_request(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    let request = at(v, "spec.request");
    if let Err(e) = signed_request(&decoded(request)) {
        c.invalid("spec.request", request, e);
    }
    let usages = list(v, "spec.usages");
    if usages.is_empty() {
        c.required("spec.usages", "");
    }
    let mut seen = Unique::default();
    for (i, one) in usages.iter().enumerate() {
        let path = format!("spec.usages[{i}]");
        c.one_of(path.as_str(), one, &USAGES);
        seen.check(&mut c, path, one);
    }
    let signer = at(v, "spec.signerName");
    if signer == "kubernetes.io/legacy-unknown" {
        let detail = "the legacy signerName is not allowed via this API version";
        c.invalid("spec.signerName", signer, detail);
    } else {
        signer_name(&mut c, "spec.signerName", signer);
    }
    let seconds = at(v, "spec.expirationSeconds");
    if seconds.as_i64().is_some_and(|n| n < 600) {
        let detail = "may not specify a duration less than 600 seconds (10 minutes)";
        c.invalid("spec.expirationSeconds", seconds, detail);
    }
    c.0
}

/// A request in PEM that the key which it is for has signed.
fn signed_request(pem: &[u8]) -> Result<(), String> {
    let block = x509_parser::pem::parse_x509_pem(pem).ok().map(|(_, b)| b);
    let block = block
        .filter(|b| b.label == "CERTIFICATE REQUEST")
        .ok_or("PEM block type must be CERTIFICATE REQUEST")?;
    let (_, request) =
        X509CertificationRequest::from_der(&block.contents).map_err(|e| e.to_string())?;
    match request.verify_signature() {
        // Keys of P521 can't be checked here.
        Ok(()) | Err(X509Error::SignatureUnsupportedAlgorithm) => Ok(()),
        Err(e) => Err(e.to_string()),
    }
}

pub(super) fn decoded(v: &Value) -> Vec<u8> {
    let engine = base64::engine::general_purpose::STANDARD;
    let text = v.as_str().unwrap_or_default();
    engine.decode(text).unwrap_or_default()
}

/// What is written by `/status` of a `CertificateSigningRequest`: by its signer.
pub(crate) fn signing_status(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    conditions(&mut c, new, old);
    let path = "status.certificate";
    let (certificate, before) = (at(new, path), at(old, path));
    if certificate != before && !(is_empty(certificate) && is_empty(before)) {
        let pem = decoded(certificate);
        let shown = "<certificate data>".into();
        match certificates(&String::from_utf8_lossy(&pem)) {
            Ok(0) if !pem.is_empty() => {
                let detail = "must contain at least one CERTIFICATE PEM block";
                c.invalid(path, &shown, detail);
            }
            Ok(_) => {}
            Err(e) => c.invalid(path, &shown, e),
        }
        if !is_empty(before) {
            c.forbidden(path, "updates may not modify existing certificate content");
        }
    }
    for kind in APPROVALS {
        let (n, o) = (of_type(new, kind), of_type(old, kind));
        if n.len() > o.len() {
            let detail = format!("updates may not add a condition of type {kind:?}");
            c.forbidden("status.conditions", detail);
        } else if n.len() == o.len() && n != o {
            let detail = format!("updates may not modify a condition of type {kind:?}");
            c.forbidden("status.conditions", detail);
        }
    }
    c.0
}

/// What is written by `/approval`: by whoever may say whether it is to be signed.
pub fn approval_errors(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    conditions(&mut c, new, old);
    c.0
}

const APPROVALS: [&str; 2] = ["Approved", "Denied"];

fn of_type<'a>(v: &'a Value, kind: &str) -> Vec<&'a Value> {
    let all = list(v, "status.conditions").iter();
    all.filter(|one| text(one, "type") == kind).collect()
}

fn conditions(c: &mut Check, new: &Value, old: &Value) {
    let was_both = APPROVALS.iter().all(|kind| !of_type(old, kind).is_empty());
    let mut seen = Unique::default();
    let mut approval = None;
    for (i, one) in list(new, "status.conditions").iter().enumerate() {
        let path = format!("status.conditions[{i}]");
        let kind = text(one, "type");
        let allowed: &[&str] = match kind {
            "Approved" | "Denied" | "Failed" => &["True"],
            _ => &["False", "True", "Unknown"],
        };
        if kind.is_empty() {
            c.required(format!("{path}.type"), "");
        }
        c.one_of(format!("{path}.status"), at(one, "status"), allowed);
        if APPROVALS.contains(&kind) && !was_both {
            let before = approval.replace(kind);
            if before.is_some_and(|before| before != kind) {
                let detail = "Approved and Denied conditions are mutually exclusive";
                c.invalid(format!("{path}.type"), at(one, "type"), detail);
            }
        }
        seen.check(c, format!("{path}.type"), at(one, "type"));
    }
    for kind in ["Approved", "Denied", "Failed"] {
        if of_type(new, kind).len() < of_type(old, kind).len() {
            let detail = format!("updates may not remove a condition of type {kind:?}");
            c.forbidden("status.conditions", detail);
        }
    }
}

/// Who signs: a domain and a name.
pub(super) fn signer_name(c: &mut Check, path: &str, v: &Value) {
    let name = v.as_str().unwrap_or_default();
    if name.is_empty() {
        return c.required(path, "");
    }
    let (domain, rest) = match name.split('/').collect::<Vec<_>>()[..] {
        [domain, rest] => (domain, rest),
        _ => {
            let detail =
                "must be a fully qualified domain and path of the form 'example.com/signer-name'";
            return c.invalid(path, v, detail);
        }
    };
    if domain.len() > DOMAIN_BYTES_MAX {
        c.add(FieldError::too_long(path, DOMAIN_BYTES_MAX));
    }
    let rules = [
        (domain, names::dns1123_label as fn(&str) -> _),
        (rest, names::dns1123_subdomain),
    ];
    for (part, rule) in rules {
        let mut labels = part.split('.');
        if let Some((label, e)) = labels.find_map(|l| rule(l).err().map(|e: String| (l, e))) {
            c.invalid(
                path,
                &part.into(),
                format!("validating label {label:?}: {e}"),
            );
        }
        if part == domain && !domain.contains('.') {
            let detail = "should be a domain with at least two segments separated by dots";
            c.invalid(path, &domain.into(), detail);
        }
    }
    if name.len() > NAME_BYTES_MAX {
        c.add(FieldError::too_long(path, NAME_BYTES_MAX));
    }
}

/// `ClusterTrustBundle`.
pub(crate) fn trust_bundle(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    let (name, signer) = (text(v, "metadata.name"), text(v, "spec.signerName"));
    if signer.is_empty() {
        if name.contains(':') {
            c.invalid(
                "metadata.name",
                at(v, "metadata.name"),
                "ClusterTrustBundle without signer name must not have \":\" in its name",
            );
        }
    } else {
        signer_name(&mut c, "spec.signerName", at(v, "spec.signerName"));
        let prefix = format!("{}:", signer.replacen('/', ":", 1));
        if !name.starts_with(&prefix) {
            c.invalid(
                "metadata.name",
                at(v, "metadata.name"),
                format!(
                    "ClusterTrustBundle for signerName {signer} must be named with prefix {prefix}"
                ),
            );
        }
    }
    let bundle = text(v, "spec.trustBundle");
    let detail = match certificates(bundle) {
        Ok(0) => "at least one trust anchor must be provided",
        Ok(_) => return c.0,
        Err(detail) => detail,
    };
    c.invalid("spec.trustBundle", &Value::from("<value omitted>"), detail);
    c.0
}

/// How many certificates a text of PEM blocks holds.
fn certificates(text: &str) -> Result<usize, &'static str> {
    let mut count = 0;
    for block in x509_parser::pem::Pem::iter_from_buffer(text.as_bytes()) {
        let block = block.map_err(|_| "PEM block can't be read")?;
        if block.label != "CERTIFICATE" {
            return Err("PEM blocks must be of type CERTIFICATE");
        }
        block
            .parse_x509()
            .map_err(|_| "certificate does not parse")?;
        count += 1;
    }
    Ok(count)
}

/// Who signed the certificates of a `ClusterTrustBundle` stays.
pub(crate) fn trust_bundle_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    c.immutable("spec.signerName", new, old);
    c.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use serde_json::json;

    /// Requests with keys are in the tests of the API server.
    #[test]
    fn requests_say_what_for() {
        let shown = |all: Vec<FieldError>| {
            let all: Vec<String> = all.iter().map(ToString::to_string).collect();
            all.join("\n")
        };
        let v = json!({"spec": {"request": "aGk=", "usages": ["signing", "signing", "s"],
            "signerName": "a b.c/d", "expirationSeconds": 599}});
        expect![[r#"
            spec.request: Invalid value: "aGk=": PEM block type must be CERTIFICATE REQUEST
            spec.usages[1]: Duplicate value: "signing"
            spec.usages[2]: Unsupported value: "s": supported values: "any", "cert sign", "client auth", "code signing", "content commitment", "crl sign", "data encipherment", "decipher only", "digital signature", "email protection", "encipher only", "ipsec end system", "ipsec tunnel", "ipsec user", "key agreement", "key encipherment", "microsoft sgc", "netscape sgc", "ocsp signing", "s/mime", "server auth", "signing", "timestamping"
            spec.signerName: Invalid value: "a b.c": validating label "a b": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
            spec.expirationSeconds: Invalid value: 599: may not specify a duration less than 600 seconds (10 minutes)"#]].assert_eq(&shown(signing_request(&v)));
        let v = json!({"spec": {"signerName": "kubernetes.io/legacy-unknown"}});
        expect![[r#"
            spec.request: Invalid value: null: PEM block type must be CERTIFICATE REQUEST
            spec.usages: Required value
            spec.signerName: Invalid value: "kubernetes.io/legacy-unknown": the legacy signerName is not allowed via this API version"#]].assert_eq(&shown(signing_request(&v)));
    }

    #[test]
    fn who_approves_and_who_signs_write_their_own() {
        let shown = |all: Vec<FieldError>| {
            let all: Vec<String> = all.iter().map(ToString::to_string).collect();
            all.join("\n")
        };
        let with = |kinds: &[&str], certificate: &str| {
            let all = kinds
                .iter()
                .map(|kind| json!({"type": kind, "status": "True"}));
            json!({"status": {"conditions": all.collect::<Vec<_>>(), "certificate": certificate}})
        };
        let (open, approved) = (with(&[], ""), with(&["Approved"], ""));
        assert_eq!(approval_errors(&approved, &open), []);
        assert_eq!(
            signing_status(&with(&["Approved", "Failed"], ""), &approved),
            []
        );
        expect![[r#"status.conditions[1].type: Invalid value: "Denied": Approved and Denied conditions are mutually exclusive"#]].assert_eq(&shown(approval_errors(
            &with(&["Approved", "Denied"], ""),
            &open,
        )));
        expect![[
            r#"status.conditions: Forbidden: updates may not remove a condition of type "Approved""#
        ]]
        .assert_eq(&shown(approval_errors(&open, &approved)));
        expect![[
            r#"status.conditions: Forbidden: updates may not add a condition of type "Approved""#
        ]]
        .assert_eq(&shown(signing_status(&approved, &open)));
        expect![[r#"
            status.certificate: Invalid value: "<certificate data>": must contain at least one CERTIFICATE PEM block
            status.certificate: Forbidden: updates may not modify existing certificate content"#]].assert_eq(&shown(signing_status(
            &with(&[], "aGk="),
            &with(&[], "aG8="),
        )));
        let mut v = with(&["Approved", "", "X", "X"], "");
        v["status"]["conditions"][0]["status"] = json!("False");
        v["status"]["conditions"][2]["status"] = json!("No");
        expect![[r#"
            status.conditions[0].status: Unsupported value: "False": supported values: "True"
            status.conditions[1].type: Required value
            status.conditions[2].status: Unsupported value: "No": supported values: "False", "True", "Unknown"
            status.conditions[3].type: Duplicate value: "X""#]].assert_eq(&shown(approval_errors(&v, &open)));
    }

    #[test]
    fn bundles_hold_certificates_and_are_named_by_their_signer() {
        let shown = |v: &Value| {
            let all: Vec<String> = trust_bundle(v).iter().map(ToString::to_string).collect();
            all.join("\n")
        };
        let v = json!({"metadata": {"name": "a:b"}, "spec": {"trustBundle": ""}});
        expect![[r#"
            metadata.name: Invalid value: "a:b": ClusterTrustBundle without signer name must not have ":" in its name
            spec.trustBundle: Invalid value: "<value omitted>": at least one trust anchor must be provided"#]].assert_eq(&shown(&v));
        let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        let v =
            json!({"metadata": {"name": "b"}, "spec": {"signerName": "x.y/z", "trustBundle": key}});
        expect![[r#"
            metadata.name: Invalid value: "b": ClusterTrustBundle for signerName x.y/z must be named with prefix x.y:z:
            spec.trustBundle: Invalid value: "<value omitted>": PEM blocks must be of type CERTIFICATE"#]].assert_eq(&shown(&v));
        let torn = key.replace("PRIVATE KEY", "CERTIFICATE");
        let v = json!({"metadata": {"name": "x.y:z:b"}, "spec": {"signerName": "x.y/z", "trustBundle": torn}});
        expect![[
            r#"spec.trustBundle: Invalid value: "<value omitted>": certificate does not parse"#
        ]]
        .assert_eq(&shown(&v));
    }
}
