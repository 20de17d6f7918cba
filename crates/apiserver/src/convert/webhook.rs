//! Custom resources that a webhook converts (strategy `Webhook`).
//!
//! Showing an object takes no time and can't wait; so whoever is about to show some
//! [`prepare`]s them first. The reference is
//! `k8s.io/apiextensions-apiserver/pkg/apiserver/conversion`.

use super::renewed;
use crate::cache::Object;
use crate::definitions::Custom;
use crate::row::Row;
use crate::server_state::Core;
use crate::webhook::Endpoint;
use apimachinery::Status;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

/// How long a conversion may take, as upstream has it.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Objects of one review; more are asked for one review after the other.
const OBJECTS_MAX: usize = 500;

/// Sees to it that objects can be shown in a row's version.
pub(crate) async fn prepare(
    core: &Arc<Core>,
    row: &Row,
    objects: &[Arc<Object>],
) -> Result<(), Status> {
    let Row::Custom(custom) = row else {
        return Ok(());
    };
    let Some(endpoint) = &custom.conversion else {
        return Ok(());
    };
    let wanted = row.api_version();
    let other: Vec<&Arc<Object>> = objects
        .iter()
        .filter(|o| o.stored_api_version() != wanted && !o.is_converted(row.version()))
        .collect();
    for some in other.chunks(OBJECTS_MAX) {
        let values: Vec<Value> = some.iter().map(|o| o.value()).collect();
        let made = converted(core, custom, endpoint, &wanted, &values).await?;
        for (object, value) in some.iter().zip(made) {
            let value = renewed(custom, row, value);
            object.keep_converted(row.version(), &value);
        }
    }
    Ok(())
}

/// A value of a row's version as it is stored.
pub(crate) async fn stored<'v>(
    core: &Arc<Core>,
    row: &Row,
    value: &'v Value,
) -> Result<Cow<'v, Value>, Status> {
    let Row::Custom(custom) = row else {
        return Ok(super::to_stored(row, value));
    };
    match &custom.conversion {
        Some(endpoint) if !custom.is_stored() => {
            let wanted = custom.stored_api_version();
            let one = std::slice::from_ref(value);
            let mut made = converted(core, custom, endpoint, &wanted, one).await?;
            Ok(Cow::Owned(made.pop().unwrap_or_default()))
        }
        _ => Ok(super::to_stored(row, value)),
    }
}

/// An object of one version in another of the same resource.
pub(crate) async fn into(
    core: &Arc<Core>,
    from: &Row,
    to: &Row,
    value: &Value,
) -> Result<Value, Status> {
    let (Row::Custom(_), Row::Custom(custom)) = (from, to) else {
        return Ok(super::between(from, to, value));
    };
    match &custom.conversion {
        Some(endpoint) if from.version() != to.version() => {
            let wanted = to.api_version();
            let one = std::slice::from_ref(value);
            let mut made = converted(core, custom, endpoint, &wanted, one).await?;
            Ok(renewed(custom, to, made.pop().unwrap_or_default()))
        }
        _ => Ok(super::between(from, to, value)),
    }
}

/// Asks the webhook.
async fn converted(
    core: &Arc<Core>,
    custom: &Custom,
    endpoint: &Endpoint,
    wanted: &str,
    values: &[Value],
) -> Result<Vec<Value>, Status> {
    let uid = core.uid();
    let review = json!({
        "kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1",
        "request": {"uid": uid, "desiredAPIVersion": wanted, "objects": values},
    });
    let from = values
        .first()
        .map_or("", |v| v["apiVersion"].as_str().unwrap_or_default());
    let fail = |e: String| {
        let kind = &custom.names.kind;
        Status::internal(format!(
            "conversion webhook for {from}, Kind={kind} failed: {e}"
        ))
    };
    let sent = core
        .dynamic
        .webhooks
        .post(core, endpoint, &review, TIMEOUT)
        .await;
    let answer =
        sent.map_err(|e| fail(format!("Post \"{}?timeout=30s\": {e}", endpoint.shown())))?;
    read(&answer, &uid, wanted, values).map_err(fail)
}

/// The objects of an answer, which differ from those that were sent in nothing that makes them
/// what they are.
fn read(answer: &Value, uid: &str, wanted: &str, sent: &[Value]) -> Result<Vec<Value>, String> {
    if answer["apiVersion"] != "apiextensions.k8s.io/v1" || answer["kind"] != "ConversionReview" {
        return Err(
            "invalid response: expected ConversionReview of apiextensions.k8s.io/v1".to_owned(),
        );
    }
    let response = &answer["response"];
    if response["uid"] != uid {
        return Err(format!(
            "expected response.uid={uid:?}, got {:?}",
            response["uid"].as_str().unwrap_or_default()
        ));
    }
    let result = &response["result"];
    if result["status"] != "Success" {
        let why = result["message"].as_str().filter(|m| !m.is_empty());
        return Err(why
            .unwrap_or("response.result.status is not Success")
            .to_owned());
    }
    let made = response["convertedObjects"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    if made.len() != sent.len() {
        return Err(format!(
            "webhook returned {} objects, expected {}",
            made.len(),
            sent.len()
        ));
    }
    let each = sent.iter().zip(made).enumerate().map(|(i, (old, new))| {
        let is = new["apiVersion"].as_str().unwrap_or_default();
        if is != wanted {
            return Err(format!(
                "webhook returned invalid converted object at index {i}: invalid groupVersion (expected {wanted}, received {is})"
            ));
        }
        if new["kind"] != old["kind"] {
            return Err(format!("webhook returned invalid converted object at index {i}: invalid kind"));
        }
        for key in ["name", "namespace", "uid"] {
            if new["metadata"][key] != old["metadata"][key] {
                return Err(format!(
                    "webhook returned invalid metadata at index {i}: must have the same {key}"
                ));
            }
        }
        // Of metadata only labels and annotations are the webhook's.
        let mut value = new.clone();
        let mut meta = old["metadata"].clone();
        for key in ["labels", "annotations"] {
            let kept = meta.as_object_mut();
            match (kept, new["metadata"].get(key)) {
                (Some(m), Some(v)) => drop(m.insert(key.to_owned(), v.clone())),
                (Some(m), None) => drop(m.remove(key)),
                (None, _) => {}
            }
        }
        value["metadata"] = meta;
        Ok(value)
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    // k8s.io/apiextensions-apiserver/pkg/apiserver/conversion/webhook_converter_test.go
    #[test]
    fn answers_are_held_against_what_was_sent() {
        let sent = json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "a", "uid": "u", "labels": {"l": "1"}, "finalizers": ["f"]}});
        let answer = |object: Value| {
            json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview", "response": {
                "uid": "r", "result": {"status": "Success"}, "convertedObjects": [object]}})
        };
        let mut good = sent.clone();
        good["apiVersion"] = "g/v2".into();
        good["metadata"]["labels"] = json!({"l": "2"});
        good["metadata"]["finalizers"] = json!([]);
        let sent = [sent];
        let made = read(&answer(good.clone()), "r", "g/v2", &sent).unwrap();
        assert_eq!(
            made[0]["metadata"],
            json!({"name": "a", "uid": "u", "labels": {"l": "2"}, "finalizers": ["f"]})
        );
        let error = |v: Value| read(&v, "r", "g/v2", &sent).unwrap_err();
        let mut renamed = good.clone();
        renamed["metadata"]["name"] = "b".into();
        assert!(error(answer(renamed)).contains("must have the same name"));
        assert!(error(answer(sent[0].clone())).contains("expected g/v2, received g/v1"));
        assert!(error(json!({})).contains("invalid response"));
        let mut failed = answer(good);
        failed["response"]["result"] = json!({"status": "Failure", "message": "no such field"});
        assert_eq!(error(failed.clone()), "no such field");
        failed["response"]["uid"] = "x".into();
        assert!(error(failed).contains("expected response.uid"));
    }
}
