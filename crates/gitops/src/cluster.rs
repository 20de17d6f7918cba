//! Requests for objects of any kind: discovery, get, apply, delete.

use crate::objects::{Entry, ObjectId};
use kube::Client;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;

/// Field manager of all that is applied here.
pub const FIELD_MANAGER: &str = "salp-gitops";

/// What a kind's objects are reached by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// `/api/v1` or `/apis/GROUP/VERSION`.
    base: String,
    plural: String,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
}

impl Mapping {
    /// The path of one object.
    fn path(&self, namespace: &str, name: &str) -> String {
        let Self { base, plural, .. } = self;
        let (namespace, name) = (segment(namespace), segment(name));
        if self.namespaced {
            format!("{base}/namespaces/{namespace}/{plural}/{name}")
        } else {
            format!("{base}/{plural}/{name}")
        }
    }
}

/// An API server as one user sees it. Clones share what they know of its kinds.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    /// Acts as this user (`system:serviceaccount:NAMESPACE:NAME`).
    acting_as: Option<String>,
    /// Kinds by `apiVersion`. At most one entry for each that objects name.
    kinds: Arc<Mutex<HashMap<String, Kinds>>>,
}

/// The kinds of one `apiVersion`.
type Kinds = Arc<HashMap<String, Mapping>>;

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("acting_as", &self.acting_as)
            .finish_non_exhaustive()
    }
}

impl Cluster {
    /// As the client's own user.
    pub fn new(client: Client) -> Self {
        Self {
            client,
            acting_as: None,
            kinds: Arc::default(),
        }
    }

    /// As a service account.
    pub fn acting_as(client: Client, namespace: &str, account: &str) -> Self {
        Self {
            acting_as: Some(format!("system:serviceaccount:{namespace}:{account}")),
            ..Self::new(client)
        }
    }

    /// How a kind's objects are reached; none when it is not served.
    ///
    /// # Errors
    /// When the server can't be asked.
    pub async fn mapping(
        &self,
        api_version: &str,
        kind: &str,
    ) -> Result<Option<Mapping>, kube::Error> {
        let known = self.kinds.lock().get(api_version).cloned();
        if let Some(found) = known.and_then(|kinds| kinds.get(kind).cloned()) {
            return Ok(Some(found));
        }
        // Absent may mean that it has come since.
        let base = if api_version.contains('/') {
            format!("/apis/{api_version}")
        } else {
            format!("/api/{api_version}")
        };
        let list = match self.send("GET", &base, None).await {
            Ok(list) => list,
            Err(error) if client::is_not_found(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut kinds = HashMap::new();
        for resource in list["resources"].as_array().into_iter().flatten() {
            let name = resource["name"].as_str().unwrap_or_default();
            let Some(kind) = resource["kind"].as_str().filter(|_| !name.contains('/')) else {
                continue;
            };
            kinds.entry(kind.to_owned()).or_insert_with(|| Mapping {
                base: base.clone(),
                plural: name.to_owned(),
                namespaced: resource["namespaced"].as_bool().unwrap_or_default(),
            });
        }
        let found = kinds.get(kind).cloned();
        self.kinds
            .lock()
            .insert(api_version.to_owned(), Arc::new(kinds));
        Ok(found)
    }

    /// One object; none when it, or its kind, is not there.
    ///
    /// # Errors
    /// When it can't be read.
    pub async fn get(
        &self,
        api_version: &str,
        id: &ObjectId,
    ) -> Result<Option<Value>, kube::Error> {
        let Some(mapping) = self.mapping(api_version, &id.kind).await? else {
            return Ok(None);
        };
        let path = mapping.path(&id.namespace, &id.name);
        match self.send("GET", &path, None).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if client::is_not_found(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// One object that an inventory holds.
    ///
    /// # Errors
    /// When it can't be read.
    pub async fn get_entry(&self, entry: &Entry) -> Result<Option<Value>, kube::Error> {
        match entry.object() {
            Some(id) => self.get(&entry.api_version(), &id).await,
            None => Ok(None),
        }
    }

    /// Applies an object, by force: fields that others have changed are taken back.
    ///
    /// # Errors
    /// When the server refuses it.
    pub async fn apply(
        &self,
        mapping: &Mapping,
        object: &Value,
        dry_run: bool,
    ) -> Result<Value, kube::Error> {
        let id = ObjectId::of(object);
        let path = format!(
            "{}?fieldManager={FIELD_MANAGER}&force=true&fieldValidation=Strict{}",
            mapping.path(&id.namespace, &id.name),
            if dry_run { "&dryRun=All" } else { "" }
        );
        self.send(
            "PATCH",
            &path,
            Some(("application/apply-patch+yaml", object)),
        )
        .await
    }

    /// Deletes an object; `true` when it was there.
    ///
    /// # Errors
    /// When the server refuses it.
    pub async fn delete(
        &self,
        mapping: &Mapping,
        id: &ObjectId,
        policy: &str,
    ) -> Result<bool, kube::Error> {
        let path = mapping.path(&id.namespace, &id.name);
        let options = json!({"propagationPolicy": policy});
        match self
            .send("DELETE", &path, Some(("application/json", &options)))
            .await
        {
            Ok(_) => Ok(true),
            Err(error) if client::is_not_found(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Merges a patch into an object or its subresource at a path.
    ///
    /// # Errors
    /// When the server refuses it.
    pub async fn merge(&self, path: &str, patch: &Value) -> Result<Value, kube::Error> {
        self.send("PATCH", path, Some(("application/merge-patch+json", patch)))
            .await
    }

    /// Reads a path.
    ///
    /// # Errors
    /// When the server refuses it.
    pub async fn read(&self, path: &str) -> Result<Value, kube::Error> {
        self.send("GET", path, None).await
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<Value, kube::Error> {
        let mut request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("accept", "application/json");
        if let Some(user) = &self.acting_as {
            request = request.header("impersonate-user", user);
        }
        let mut bytes = Vec::new();
        if let Some((kind, body)) = body {
            request = request.header("content-type", kind);
            bytes = serde_json::to_vec(body).map_err(kube::Error::SerdeError)?;
        }
        let request = request.body(bytes).map_err(kube::Error::HttpError)?;
        self.client.request(request).await
    }
}

/// A name as one segment of a path: names come from files that anybody may have written.
fn segment(name: &str) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b':' => text.push(byte.into()),
            b'.' if !name.starts_with('.') => text.push('.'),
            other => {
                let _ = write!(text, "%{other:02X}");
            }
        }
    }
    text
}

/// What the server says, in one line, with its reason.
pub fn explain(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.reason.is_empty() => status.message.clone(),
        kube::Error::Api(status) => format!("({}) {}", status.reason, status.message),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_one_segment_of_a_path() {
        for (name, segment_of) in [
            ("web-1.example", "web-1.example"),
            ("system:web", "system:web"),
            ("../../secrets/x", "%2E%2E%2F%2E%2E%2Fsecrets%2Fx"),
            ("a b?c#d%", "a%20b%3Fc%23d%25"),
        ] {
            assert_eq!(segment(name), segment_of);
        }
    }
}
