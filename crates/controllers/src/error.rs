//! Why a reconcile failed.

/// A request that the API server refused or that did not reach it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading one object.
    #[error("get {what}")]
    Get {
        /// Kind, namespace and name.
        what: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// Reading a collection or discovery.
    #[error("list {what}")]
    List {
        /// What.
        what: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// Making an object.
    #[error("create {what}")]
    Create {
        /// Kind, namespace and name.
        what: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// Changing an object or its status.
    #[error("update {what}")]
    Update {
        /// Kind, namespace and name.
        what: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// Deleting an object or a collection.
    #[error("delete {what}")]
    Delete {
        /// Kind, namespace and name.
        what: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// The object's label selector can't be read.
    #[error("read selector of {what}")]
    Selector {
        /// Kind, namespace and name.
        what: String,
        /// Why.
        #[source]
        source: client::labels::ParseSelectorError,
    },
}

/// Whether nothing can be created because the namespace is being deleted.
pub(crate) fn is_terminating(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403
        && status.message.contains("is being terminated"))
}
