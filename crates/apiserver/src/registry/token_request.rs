//! `serviceaccounts/token`: signed tokens, bound to what the request names.

use super::{Call, meta};
use crate::admission::node_restriction;
use crate::authn::token::{Bound, Claims, Ref};
use crate::server_state::rfc3339;
use apimachinery::{FieldError, Status};
use jiff::SignedDuration;
use serde_json::{Value, json};

/// `serviceaccounts/token`: signs a token.
pub(crate) async fn token(call: &Call<'_>, request: &Value) -> Result<Value, Status> {
    const MIN_SECONDS: i64 = 600;
    const MAX_SECONDS: i64 = 1 << 32;
    const DEFAULT_SECONDS: i64 = 3600;
    let account = call.view(&*call.current().await?);
    let spec = &request["spec"];
    let seconds = spec["expirationSeconds"]
        .as_i64()
        .unwrap_or(DEFAULT_SECONDS);
    let invalid = |e: FieldError| {
        Err(Status::invalid(
            "authentication.k8s.io",
            "TokenRequest",
            call.name,
            &[e],
        ))
    };
    if seconds < MIN_SECONDS {
        return invalid(FieldError::invalid(
            "spec.expirationSeconds",
            &seconds.into(),
            "may not specify a duration less than 10 minutes",
        ));
    }
    if seconds > MAX_SECONDS {
        return invalid(FieldError::invalid(
            "spec.expirationSeconds",
            &seconds.into(),
            "may not specify a duration larger than 2^32 seconds",
        ));
    }
    let mut audiences: Vec<String> = spec["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|a| a.as_str().map(str::to_owned))
        .collect();
    if audiences.is_empty() {
        audiences.push(call.core.issuer.clone());
    }
    let mut bound = Bound {
        namespace: call.namespace.to_owned(),
        serviceaccount: Ref {
            name: call.name.to_owned(),
            uid: meta::text(&account, "uid").to_owned(),
        },
        pod: None,
        secret: None,
        node: None,
    };
    node_restriction::token(call, &spec["boundObjectRef"])?;
    bind_token(call, &spec["boundObjectRef"], &mut bound)?;
    let now = call.core.clock.now();
    let claims = Claims {
        iss: call.core.issuer.clone(),
        sub: format!("system:serviceaccount:{}:{}", call.namespace, call.name),
        aud: audiences.clone(),
        exp: now.as_second() + seconds,
        iat: now.as_second(),
        nbf: now.as_second(),
        jti: call.core.uid(),
        bound,
    };
    let signed = call
        .core
        .authn
        .tokens
        .sign(&claims)
        .map_err(Status::internal)?;
    let mut spec_out = spec.clone();
    spec_out["audiences"] = json!(audiences);
    spec_out["expirationSeconds"] = seconds.into();
    if spec_out.get("boundObjectRef").is_none() {
        spec_out["boundObjectRef"] = Value::Null;
    }
    Ok(json!({
        "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1",
        "metadata": {"name": call.name, "namespace": call.namespace, "creationTimestamp": call.core.timestamp()},
        "spec": spec_out,
        "status": {
            "token": signed,
            "expirationTimestamp": rfc3339(now + SignedDuration::from_secs(seconds)),
        },
    }))
}

fn bind_token(call: &Call<'_>, reference: &Value, bound: &mut Bound) -> Result<(), Status> {
    let Some(name) = reference["name"].as_str().filter(|n| !n.is_empty()) else {
        return Ok(());
    };
    let (plural, namespace) = match reference["kind"].as_str() {
        Some("Pod") => ("pods", call.namespace),
        Some("Secret") => ("secrets", call.namespace),
        Some("Node") => ("nodes", ""),
        other => {
            return Err(Status::bad_request(format!(
                "cannot bind token for serviceaccount {:?} to type {}",
                call.name,
                other.unwrap_or("")
            )));
        }
    };
    let object = call
        .core
        .peek("", plural, namespace, name)
        .ok_or_else(|| Status::not_found("", plural, name))?
        .value();
    let uid = meta::text(&object, "uid").to_owned();
    let asked = reference["uid"].as_str().unwrap_or_default();
    if !asked.is_empty() && asked != uid {
        return Err(Status::conflict(
            "",
            plural,
            name,
            format!(
                "the UID in the bound object reference ({asked}) does not match the UID in record. The object might have been deleted and then recreated"
            ),
        ));
    }
    let r = Some(Ref {
        name: name.to_owned(),
        uid,
    });
    match plural {
        "pods" => {
            let account = object["spec"]["serviceAccountName"]
                .as_str()
                .unwrap_or_default();
            if account != call.name {
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    call.name
                )));
            }
            bound.pod = r;
            if let Some(node) = object["spec"]["nodeName"]
                .as_str()
                .filter(|n| !n.is_empty())
            {
                let uid = call.core.peek("", "nodes", "", node).map(|n| n.value());
                bound.node = Some(Ref {
                    name: node.to_owned(),
                    uid: uid
                        .map(|n| meta::text(&n, "uid").to_owned())
                        .unwrap_or_default(),
                });
            }
        }
        "secrets" => bound.secret = r,
        _ => bound.node = r,
    }
    Ok(())
}
