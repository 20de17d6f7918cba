//! Short texts with a grammar: selectors, quantities, names.
#![no_main]

use apimachinery::selector::{FieldSelector, LabelSelector};
use apimachinery::{names, quantity};

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(selector) = LabelSelector::parse(text) {
        let again = LabelSelector::parse(&selector.to_string());
        assert!(again.is_ok(), "{selector}");
    }
    let _ = FieldSelector::parse(text);
    if let Ok(canonical) = quantity::canonical(text) {
        assert_eq!(quantity::canonical(&canonical), Ok(canonical.clone()));
    }
    let _ = names::dns1123_subdomain(text);
    let _ = names::qualified_name(text);
    let _ = names::label_value(text);
});
