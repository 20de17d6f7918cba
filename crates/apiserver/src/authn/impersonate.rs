//! Impersonation: `Impersonate-User` and its kin, for callers whose roles allow it.

use super::{AUTHENTICATED, User};
use crate::authz::{Attributes, Authorizer};
use apimachinery::Status;
use http::HeaderMap;

const EXTRA: &str = "impersonate-extra-";

/// The user that a request asks to act as; the caller himself when it asks for none.
///
/// # Errors
/// 403 when he may not, 400 for groups or extras without a user.
pub(crate) fn acting_as(
    user: User,
    headers: &HeaderMap,
    authz: &Authorizer,
) -> Result<User, Status> {
    let text = |name: &str| {
        headers
            .get(name)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default()
    };
    let name = text("impersonate-user");
    let groups: Vec<&str> = headers
        .get_all("impersonate-group")
        .iter()
        .filter_map(|v| v.to_str().ok())
        .collect();
    let uid = text("impersonate-uid");
    let extras: Vec<(String, &str)> = headers
        .iter()
        .filter_map(|(k, v)| {
            let key = k.as_str().strip_prefix(EXTRA)?;
            let key = percent_encoding::percent_decode_str(key).decode_utf8_lossy();
            Some((key.into_owned(), v.to_str().ok()?))
        })
        .collect();
    if name.is_empty() {
        if groups.is_empty() && uid.is_empty() && extras.is_empty() {
            return Ok(user);
        }
        return Err(Status::bad_request(
            "requested impersonation of groups, uid or extra without impersonating a user",
        ));
    }
    let may = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| {
        let a = Attributes {
            verb: "impersonate",
            resource_request: true,
            group,
            resource,
            subresource,
            namespace,
            name,
            path: "",
        };
        if authz.allowed(&user, &a) {
            Ok(())
        } else {
            Err(a.refusal(&user))
        }
    };
    let mut acting = User {
        name: name.to_owned(),
        uid: uid.to_owned(),
        ..User::default()
    };
    if let Some((namespace, account)) = name
        .strip_prefix("system:serviceaccount:")
        .and_then(|n| n.split_once(':'))
    {
        may("", "serviceaccounts", "", namespace, account)?;
        if groups.is_empty() {
            acting.groups.push("system:serviceaccounts".to_owned());
            acting
                .groups
                .push(format!("system:serviceaccounts:{namespace}"));
        }
    } else {
        may("", "users", "", "", name)?;
    }
    for group in groups {
        may("", "groups", "", "", group)?;
        acting.groups.push(group.to_owned());
    }
    if !uid.is_empty() {
        may("authentication.k8s.io", "uids", "", "", uid)?;
    }
    for (key, value) in extras {
        may("authentication.k8s.io", "userextras", &key, "", value)?;
        acting.extra.entry(key).or_default().push(value.to_owned());
    }
    let known = if name == "system:anonymous" {
        "system:unauthenticated"
    } else {
        AUTHENTICATED
    };
    if !acting.in_group(known) {
        acting.groups.push(known.to_owned());
    }
    Ok(acting)
}
