//! Label and field selectors: text form, object form, matching.

use crate::status::Status;
use serde_json::Value;

/// A parsed label selector; the empty one matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    /// All must hold.
    pub requirements: Vec<Requirement>,
}

/// One requirement on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// Label key.
    pub key: String,
    /// What must hold of its value.
    pub op: Op,
}

/// What a requirement asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// The value is one of these.
    In(Vec<String>),
    /// The label is absent or its value none of these.
    NotIn(Vec<String>),
    /// The label is there.
    Exists,
    /// The label is not there.
    DoesNotExist,
    /// The value is an integer above this (node affinity and `key>n`).
    Gt(i64),
    /// The value is an integer below this.
    Lt(i64),
}

impl LabelSelector {
    /// Parses the query form: `a=b,c!=d,e in (f,g),h notin (i),j,!k`.
    ///
    /// # Errors
    /// 400 as upstream words it: `unable to parse requirement: …`.
    pub fn parse(text: &str) -> Result<Self, Status> {
        let _ = text;
        todo!()
    }

    /// From a `metav1.LabelSelector` object (`matchLabels`, `matchExpressions`).
    ///
    /// # Errors
    /// 400 for an unknown operator or missing values.
    pub fn from_object(selector: &Value) -> Result<Self, Status> {
        let _ = selector;
        todo!()
    }

    /// Whether labels (looked up by key) satisfy it.
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        let _ = label;
        todo!()
    }
}

/// A parsed field selector: `metadata.name=a,status.phase!=Running`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    /// (path, value, must be equal)
    pub requirements: Vec<(String, String, bool)>,
}

impl FieldSelector {
    /// Parses the query form (`=`, `==`, `!=`, `\,` escapes).
    ///
    /// # Errors
    /// 400 for malformed text.
    pub fn parse(text: &str) -> Result<Self, Status> {
        let _ = text;
        todo!()
    }

    /// Whether the fields (looked up by path; absent is the empty string) satisfy it.
    pub fn matches<'a>(&self, field: impl Fn(&str) -> &'a str) -> bool {
        let _ = field;
        todo!()
    }
}
