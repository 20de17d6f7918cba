//! Objects as a watch brings them: text of any kind, and the little of it that following a
//! watch takes. The machinery of listing and watching is compiled once for this type, not
//! once for each kind, and a kind is read from text in one way only: that makes megabytes of
//! a program.

use futures::StreamExt as _;
use futures::stream::BoxStream;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, ApiResource};
use kube::core::DynamicResourceScope;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use std::borrow::Cow;

/// The text of an object.
///
/// In a watch's event its `type` must stand before the `object`, as all API servers write
/// it: the text of what comes before its type can't be kept.
#[derive(Clone, Debug)]
pub(crate) struct Text {
    /// Name, namespace, uid and resourceVersion; nothing else.
    metadata: ObjectMeta,
    json: Box<RawValue>,
}

impl Text {
    /// The object itself.
    pub(crate) fn parse<K: DeserializeOwned>(&self) -> serde_json::Result<K> {
        serde_json::from_str(self.json.get())
    }
}

/// What is read of every object, whoever wants it.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    metadata: HeadMeta,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HeadMeta {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = Box::<RawValue>::deserialize(deserializer)?;
        let head: Head = serde_json::from_str(json.get()).map_err(D::Error::custom)?;
        Ok(Self {
            metadata: ObjectMeta {
                name: head.metadata.name,
                namespace: head.metadata.namespace,
                uid: head.metadata.uid,
                resource_version: head.metadata.resource_version,
                ..ObjectMeta::default()
            },
            json,
        })
    }
}

impl kube::Resource for Text {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(of: &ApiResource) -> Cow<'_, str> {
        of.kind.as_str().into()
    }

    fn group(of: &ApiResource) -> Cow<'_, str> {
        of.group.as_str().into()
    }

    fn version(of: &ApiResource) -> Cow<'_, str> {
        of.version.as_str().into()
    }

    fn plural(of: &ApiResource) -> Cow<'_, str> {
        of.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Lists and watches a kind in all namespaces, for ever: errors are told and tried again
/// with back-off.
pub(crate) fn watch(
    client: kube::Client,
    of: &ApiResource,
    config: watcher::Config,
) -> BoxStream<'static, Result<Event<Text>, watcher::Error>> {
    watcher(Api::<Text>::all_with(client, of), config)
        .default_backoff()
        .boxed()
}
