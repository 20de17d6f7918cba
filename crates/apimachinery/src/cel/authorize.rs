//! `authorizer`: what the user of a request may do.
//!
//! The reference is `k8s.io/apiserver/pkg/cel/library/authz.go`.

use super::eval::EvalError;
use super::value::{Text, Value};
use std::fmt;
use std::sync::Arc;

type Result<'a> = std::result::Result<Value<'a>, EvalError>;

/// Who is asked.
pub trait Authorize: Sync {
    /// Whether the user of the request, or the service account that the question names, may.
    fn allowed(&self, question: &Question) -> bool;
}

/// A question to the authorizer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of a SubjectAccessReview")]
pub struct Question {
    /// Namespace and name.
    pub service_account: Option<(String, String)>,
    pub path: Option<String>,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub verb: String,
}

/// What is asked so far, and the answer.
#[derive(Clone)]
pub struct Check<'a> {
    ask: &'a (dyn Authorize + 'a),
    question: Question,
    step: Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Authorizer,
    Path,
    Group,
    Resource,
    Decision(bool),
}

impl fmt::Debug for Check<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?}", self.step, self.question)
    }
}

impl<'a> Check<'a> {
    /// The variable `authorizer`.
    pub fn authorizer(ask: &'a (dyn Authorize + 'a)) -> Value<'a> {
        let (question, step) = (Question::default(), Step::Authorizer);
        Value::Check(Arc::new(Self {
            ask,
            question,
            step,
        }))
    }

    /// The variable `authorizer.requestResource`.
    pub fn request_resource(ask: &'a (dyn Authorize + 'a), question: Question) -> Value<'a> {
        let step = Step::Resource;
        Value::Check(Arc::new(Self {
            ask,
            question,
            step,
        }))
    }

    pub(super) fn type_name(&self) -> &'static str {
        match self.step {
            Step::Authorizer => "kubernetes.authorization.Authorizer",
            Step::Path => "kubernetes.authorization.PathCheck",
            Step::Group => "kubernetes.authorization.GroupCheck",
            Step::Resource => "kubernetes.authorization.ResourceCheck",
            Step::Decision(_) => "kubernetes.authorization.Decision",
        }
    }
}

pub(super) fn call<'a>(name: &'static str, args: &[Value<'a>]) -> Result<'a> {
    let Some(Value::Check(check)) = args.first() else {
        return Err(EvalError::overload());
    };
    let text = |i: usize| match args.get(i) {
        Some(Value::String(s)) => Ok(match s {
            Text::Ref(s) => (*s).to_owned(),
            Text::Own(s) => s.to_string(),
        }),
        _ => Err(EvalError::overload()),
    };
    let mut next = (**check).clone();
    let q = &mut next.question;
    match (check.step, name) {
        (Step::Authorizer, "path") => {
            q.path = Some(text(1)?);
            next.step = Step::Path;
        }
        (Step::Authorizer, "group") => {
            q.group = text(1)?;
            next.step = Step::Group;
        }
        (Step::Authorizer, "serviceAccount") => q.service_account = Some((text(1)?, text(2)?)),
        (Step::Group, "resource") => {
            q.resource = text(1)?;
            next.step = Step::Resource;
        }
        (Step::Resource, "subresource") => q.subresource = text(1)?,
        (Step::Resource, "namespace") => q.namespace = text(1)?,
        (Step::Resource, "name") => q.name = text(1)?,
        // Rules that ask for selectors are answered as if all were asked for.
        (Step::Resource, "fieldSelector" | "labelSelector") => {}
        (Step::Resource | Step::Path, "check") => {
            q.verb = text(1)?;
            next.step = Step::Decision(next.ask.allowed(&next.question));
        }
        (Step::Decision(yes), "allowed") => return Ok(Value::Bool(yes)),
        (Step::Decision(_), "errored") => return Ok(Value::Bool(false)),
        (Step::Decision(_), "reason" | "error") => return Ok(String::new().into()),
        _ => return Err(EvalError::overload()),
    }
    Ok(Value::Check(Arc::new(next)))
}
