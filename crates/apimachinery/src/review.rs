//! Answers of admission webhooks (`AdmissionReview`), which come from outside: read, or told what
//! is wrong with them.

use crate::status::Status;
use serde_json::Value;

/// Warnings of one answer that are passed on.
const WARNINGS_MAX: usize = 20;
/// Annotations of one answer that are noted.
const ANNOTATIONS_MAX: usize = 64;

/// `AdmissionResponse`.
#[derive(Debug)]
pub struct Answer {
    /// Whether the request may go on.
    pub allowed: bool,
    /// Why it may not.
    pub status: Value,
    /// A JSON patch.
    pub patch: Option<Value>,
    /// For the client.
    pub warnings: Vec<String>,
    /// For the audit log.
    pub annotations: Vec<(String, String)>,
}

impl Answer {
    /// Reads an `AdmissionReview` that answers the request `uid`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(v: &Value, uid: &str) -> Result<Self, String> {
        use base64::Engine as _;
        let (version, kind) = (&v["apiVersion"], &v["kind"]);
        if version != "admission.k8s.io/v1" || kind != "AdmissionReview" {
            let shown = |v: &Value| v.as_str().unwrap_or_default().to_owned();
            return Err(format!(
                "received invalid webhook response: expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {}, Kind={}",
                shown(version),
                shown(kind)
            ));
        }
        let response = &v["response"];
        if !response.is_object() {
            return Err(
                "received invalid webhook response: webhook response was absent".to_owned(),
            );
        }
        if response["uid"] != uid {
            return Err(format!(
                "received invalid webhook response: expected response.uid={uid:?}, got {:?}",
                response["uid"].as_str().unwrap_or_default()
            ));
        }
        let wrong = |e: String| format!("received invalid webhook response: {e}");
        let patch = match (response["patch"].as_str(), response["patchType"].as_str()) {
            (None | Some(""), None) => None,
            (None | Some(""), Some(_)) => {
                return Err(wrong(
                    "webhook returned response.patchType but not response.patch".to_owned(),
                ));
            }
            (Some(_), None) => {
                return Err(wrong(
                    "webhook returned response.patch but not response.patchType".to_owned(),
                ));
            }
            (Some(text), Some("JSONPatch")) => {
                let bytes = base64::engine::general_purpose::STANDARD.decode(text);
                let bytes = bytes.map_err(|e| wrong(e.to_string()))?;
                Some(serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?)
            }
            (Some(_), Some(other)) => {
                return Err(wrong(format!(
                    "webhook returned invalid response.patchType of {other:?}"
                )));
            }
        };
        let warnings = response["warnings"].as_array().into_iter().flatten();
        let annotations = response["auditAnnotations"].as_object();
        Ok(Self {
            allowed: response["allowed"] == true,
            status: response["status"].clone(),
            patch,
            warnings: warnings
                .filter_map(|w| w.as_str().map(str::to_owned))
                .take(WARNINGS_MAX)
                .collect(),
            annotations: annotations
                .into_iter()
                .flatten()
                .filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned())))
                .take(ANNOTATIONS_MAX)
                .collect(),
        })
    }
}

/// Reasons that a webhook may give; others are left out.
const REASONS: [&str; 12] = [
    "Unauthorized",
    "Forbidden",
    "NotFound",
    "AlreadyExists",
    "Conflict",
    "Gone",
    "Invalid",
    "BadRequest",
    "MethodNotAllowed",
    "TooManyRequests",
    "InternalError",
    "ServiceUnavailable",
];

/// The refusal of a webhook, in the words of upstream's `ToStatusErr`.
pub fn denial(name: &str, status: &Value) -> Status {
    let by = format!("admission webhook {name:?} denied the request");
    let text = |k: &str| status[k].as_str().filter(|t| !t.is_empty());
    let message = match (text("message"), text("reason")) {
        (Some(m), _) => format!("{by}: {m}"),
        (None, Some(r)) => format!("{by}: {r}"),
        (None, None) => format!("{by} without explanation"),
    };
    let code = status["code"].as_u64().and_then(|c| u16::try_from(c).ok());
    let code = code.filter(|c| (400..600).contains(c)).unwrap_or(400);
    let reason = REASONS.into_iter().find(|r| text("reason") == Some(r));
    let made = Status::new(code, reason.unwrap_or_default(), message);
    match &status["details"] {
        d if d.is_object() => made.with_details(d.clone()),
        _ => made,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn review(response: Value) -> Value {
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
    }

    // k8s.io/apiserver/pkg/admission/plugin/webhook/request/admissionreview_test.go
    #[test]
    fn answers_are_read_and_wrong_ones_told() {
        let read = |v: Value| Answer::read(&v, "u").map(|a| (a.allowed, a.patch));
        assert_eq!(
            read(review(json!({"uid": "u", "allowed": true}))),
            Ok((true, None))
        );
        let patch = json!({"uid": "u", "allowed": true, "patchType": "JSONPatch", "patch": "W10="});
        assert_eq!(read(review(patch)), Ok((true, Some(json!([])))));
        for (response, part) in [
            (
                json!({"uid": "x", "allowed": true}),
                "expected response.uid=\"u\", got \"x\"",
            ),
            (
                json!({"uid": "u", "patch": "W10="}),
                "but not response.patchType",
            ),
            (
                json!({"uid": "u", "patchType": "JSONPatch"}),
                "but not response.patch",
            ),
            (
                json!({"uid": "u", "patchType": "No", "patch": "W10="}),
                "invalid response.patchType of \"No\"",
            ),
            (
                json!({"uid": "u", "patchType": "JSONPatch", "patch": "?"}),
                "received invalid webhook response",
            ),
            (json!(null), "webhook response was absent"),
        ] {
            let error = read(review(response)).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        let other = json!({"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview"});
        assert!(
            read(other)
                .unwrap_err()
                .contains("got admission.k8s.io/v1beta1, Kind=AdmissionReview")
        );
    }

    // k8s.io/apiserver/pkg/admission/plugin/webhook/errors/statuserror_test.go
    #[test]
    fn denials_say_who_and_why() {
        let told = |v: Value| {
            let s = denial("w", &v);
            (s.code, s.reason, s.message)
        };
        let by = "admission webhook \"w\" denied the request";
        assert_eq!(
            told(json!(null)),
            (400, "", format!("{by} without explanation"))
        );
        assert_eq!(
            told(json!({"message": "no", "code": 200})),
            (400, "", format!("{by}: no"))
        );
        assert_eq!(
            told(json!({"reason": "Forbidden", "code": 403})),
            (403, "Forbidden", format!("{by}: Forbidden"))
        );
    }

    proptest! {
        #[test]
        fn no_answer_panics(body in "\\PC{0,200}", patch in "[A-Za-z0-9+/=]{0,40}") {
            if let Ok(v) = serde_json::from_str(&body) {
                let _ = Answer::read(&v, "u");
            }
            let v = review(json!({"uid": "u", "allowed": body, "patchType": "JSONPatch", "patch": patch, "status": body}));
            if let Ok(a) = Answer::read(&v, "u") {
                let _ = denial("w", &a.status);
            }
        }
    }
}
