//! Requests for certificates, and bundles of those that are trusted.

use super::Check;
use crate::access::{at, is_empty, text};
use apimachinery::names;
use apimachinery::status::FieldError;
use serde_json::Value;

/// Longest domain of a signer, and longest name: that with a namespace and a name after it.
const DOMAIN_BYTES_MAX: usize = 253;
const NAME_BYTES_MAX: usize = 253 + 1 + 63 + 1 + 253;

/// `CertificateSigningRequest`.
pub(crate) fn signing_request(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    if is_empty(at(v, "spec.request")) {
        c.required("spec.request", "");
    }
    if is_empty(at(v, "spec.usages")) {
        c.required("spec.usages", "");
    }
    signer_name(&mut c, "spec.signerName", at(v, "spec.signerName"));
    if at(v, "spec.expirationSeconds")
        .as_i64()
        .is_some_and(|n| n < 600)
    {
        c.invalid(
            "spec.expirationSeconds",
            at(v, "spec.expirationSeconds"),
            "may not specify a duration less than 600 seconds (10 minutes)",
        );
    }
    c.0
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
