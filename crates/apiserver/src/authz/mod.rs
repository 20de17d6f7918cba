//! Whether a caller may: RBAC, compiled from the watch cache, and the review kinds.

mod named;
pub(crate) mod node;
pub(crate) mod policy;
pub(crate) mod rbac;
pub(crate) mod reconcile;
pub(crate) mod review;

pub(crate) use named::{NamedByNodes, names_any};
pub(crate) use rbac::{Authorizer, Rule};

use crate::authn::User;
use apimachinery::Status;

/// What is asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attributes<'a> {
    pub(crate) verb: &'a str,
    /// Whether it is about a resource; else about `path`.
    pub(crate) resource_request: bool,
    pub(crate) group: &'a str,
    pub(crate) resource: &'a str,
    pub(crate) subresource: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) path: &'a str,
}

impl Attributes<'_> {
    /// `resource/subresource`.
    fn full_resource(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.to_owned()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }

    /// 403 in upstream's words.
    pub(crate) fn refusal(&self, user: &User) -> Status {
        if !self.resource_request {
            return Status::new(
                403,
                "Forbidden",
                format!(
                    "forbidden: User {:?} cannot {} path {:?}",
                    user.name, self.verb, self.path
                ),
            )
            .with_details(serde_json::json!({}));
        }
        let scope = if self.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {:?}", self.namespace)
        };
        Status::forbidden(
            self.group,
            self.resource,
            self.name,
            format!(
                "User {:?} cannot {} resource {:?} in API group {:?} {scope}",
                user.name,
                self.verb,
                self.full_resource(),
                self.group
            ),
        )
    }
}
