//! What is being done, as policies and webhooks are told.

use crate::admission::Operation;
use crate::convert;
use crate::registry::{Call, subresource};
use crate::row::Row;
use apimachinery::Status;
use serde_json::{Value, json};
use std::borrow::Cow;

/// A write, in the version that a policy or webhook has asked for.
pub(super) struct Subject<'a> {
    pub(super) call: &'a Call<'a>,
    pub(super) operation: Operation,
    /// The version that it is told in.
    pub(super) row: Row,
    pub(super) object: Cow<'a, Value>,
    pub(super) old: Cow<'a, Value>,
}

impl Operation {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

const NULL: &Value = &Value::Null;

impl<'a> Subject<'a> {
    pub(super) fn new(
        call: &'a Call<'a>,
        operation: Operation,
        new: &'a Value,
        old: Option<&'a Value>,
    ) -> Self {
        let shown = |v: &'a Value| match (call.subresource, call.row.scale()) {
            ("scale", Some(paths)) => Cow::Owned(subresource::scale_of(paths, v)),
            _ => Cow::Borrowed(v),
        };
        let (object, old) = match operation {
            Operation::Create | Operation::Connect => (shown(new), Cow::Borrowed(NULL)),
            Operation::Update => (shown(new), old.map_or(Cow::Borrowed(NULL), shown)),
            Operation::Delete => (Cow::Borrowed(NULL), old.map_or(Cow::Borrowed(NULL), shown)),
        };
        Self {
            call,
            operation,
            row: call.row.clone(),
            object,
            old,
        }
    }

    /// The same in another version of the resource, which a conversion webhook may be asked for.
    pub(super) async fn in_version(&self, row: &Row) -> Result<Subject<'_>, Status> {
        let of = |object: Cow<'a, Value>, old: Cow<'a, Value>| Subject {
            call: self.call,
            operation: self.operation,
            row: row.clone(),
            object,
            old,
        };
        let own = self.call.row;
        let same = row.version() == own.version() && row.group() == own.group();
        // Scales and options of connections are of a version of their own.
        if same || self.call.subresource == "scale" || self.operation == Operation::Connect {
            return Ok(of(self.object.clone(), self.old.clone()));
        }
        let object = turned(self.call, row, &self.object).await?;
        let old = turned(self.call, row, &self.old).await?;
        Ok(of(Cow::Owned(object), Cow::Owned(old)))
    }

    /// Namespace of the object, empty for one of the cluster.
    pub(super) fn namespace(&self) -> &str {
        if self.call.row.namespaced() {
            self.call.namespace
        } else {
            ""
        }
    }

    /// Whether it is a namespace itself.
    pub(super) fn is_namespace(&self) -> bool {
        self.call.row.known() == "namespaces"
    }

    /// The namespace's object.
    pub(super) fn namespace_object(&self) -> Value {
        match self.namespace() {
            "" => Value::Null,
            name => self
                .call
                .core
                .peek("", "namespaces", "", name)
                .map_or(Value::Null, |o| o.value()),
        }
    }

    /// `AdmissionRequest`; without the objects.
    pub(super) fn request(&self, uid: &str) -> Value {
        let call = self.call;
        let is_scale = call.subresource == "scale";
        let connects = self.operation == Operation::Connect;
        let kind = |row: &Row| match is_scale {
            // What is told of is how it connects.
            false if connects => json!({"group": "", "version": "v1", "kind": self.object["kind"]}),
            true => json!({"group": "autoscaling", "version": "v1", "kind": "Scale"}),
            false => json!({"group": row.group(), "version": row.version(), "kind": row.kind()}),
        };
        let resource = |row: &Row| json!({"group": row.group(), "version": row.version(), "resource": row.plural()});
        let user = call.user;
        let mut info = json!({"username": user.name, "groups": user.groups});
        if !user.uid.is_empty() {
            info["uid"] = user.uid.as_str().into();
        }
        if !user.extra.is_empty() {
            info["extra"] = json!(user.extra);
        }
        let options = match self.operation {
            Operation::Create => "CreateOptions",
            Operation::Update => "UpdateOptions",
            Operation::Delete => "DeleteOptions",
            Operation::Connect => "",
        };
        let mut options = json!({"kind": options, "apiVersion": "meta.k8s.io/v1"});
        if self.operation != Operation::Delete && !call.manager.is_empty() {
            options["fieldManager"] = call.manager.into();
        }
        if connects {
            options = Value::Null;
        }
        if call.dry_run {
            options["dryRun"] = json!(["All"]);
        }
        let mut out = json!({
            "uid": uid,
            "kind": kind(&self.row),
            "resource": resource(&self.row),
            "requestKind": kind(call.row),
            "requestResource": resource(call.row),
            "name": call.name,
            "operation": self.operation.name(),
            "userInfo": info,
            "dryRun": call.dry_run,
            "options": options,
        });
        if !call.subresource.is_empty() {
            out["subResource"] = call.subresource.into();
            out["requestSubResource"] = call.subresource.into();
        }
        let namespace = if self.is_namespace() {
            call.name
        } else {
            self.namespace()
        };
        if !namespace.is_empty() {
            out["namespace"] = namespace.into();
        }
        out
    }
}

/// An object in another version; none stays none.
async fn turned(call: &Call<'_>, row: &Row, object: &Value) -> Result<Value, Status> {
    if object.is_null() {
        return Ok(Value::Null);
    }
    convert::into(call.core, call.row, row, object).await
}
