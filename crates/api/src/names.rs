//! Checks of `metadata.name`, one a naming rule.

use apimachinery::names as rules;

pub(crate) fn subdomain(s: &str) -> Result<(), String> {
    rules::dns1123_subdomain(s)
}

pub(crate) fn label(s: &str) -> Result<(), String> {
    rules::dns1123_label(s)
}

pub(crate) fn service(s: &str) -> Result<(), String> {
    rules::dns1035_label(s)
}

pub(crate) fn path_segment(s: &str) -> Result<(), String> {
    rules::path_segment(s)
}

/// Kinds whose names carry a meaning that their own validation checks.
pub(crate) fn any(s: &str) -> Result<(), String> {
    rules::path_segment(s)
}
