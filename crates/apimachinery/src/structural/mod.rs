//! Structural schemas: what a `CustomResourceDefinition` says of its objects.
//!
//! A definition's `openAPIV3Schema` is checked by [`check`](fn@check) (upstream's rules for structural
//! schemas), compiled by [`compile`](fn@compile) to the same [`Schema`] that built-in kinds have, and
//! then drives pruning and strict decoding ([`crate::decode`]), ownership
//! ([`crate::apply`]), [`default`](fn@default) and [`validate`](fn@validate). Its rules in the
//! Common Expression Language are [`Rules`].
//!
//! The reference is `k8s.io/apiextensions-apiserver/pkg/apiserver/schema` and `…/validation`.

mod check;
mod compile;
mod declare;
mod default;
mod formats;
mod rules;
mod rules_run;
mod validate;

pub use check::{KEYWORDS_MAX, check};
pub use compile::{Compiled, compile};
pub use default::default;
pub use formats::has_format;
pub use rules::Rules;
pub use validate::{ERRORS_MAX, validate};

use crate::schema::Schema;

/// Fields of every object, which a definition need not (and can't) describe.
const ROOT_FIELDS: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// Type of `metadata` in the built-in schema.
const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

fn builtin() -> &'static Schema {
    Schema::builtin()
}

#[cfg(test)]
mod rules_tests;
#[cfg(test)]
mod tests;
