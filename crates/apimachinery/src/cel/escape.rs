//! Names of properties that expressions can't write as they are.
//!
//! The reference is `k8s.io/apiserver/pkg/cel/escaping.go`.

use super::parse::RESERVED;

/// What can't be a field name in expressions beside the words that no variable may have.
const LITERALS: [&str; 4] = ["true", "false", "null", "in"];

const PARTS: [(&str, &str); 4] = [
    ("__", "__underscores__"),
    (".", "__dot__"),
    ("-", "__dash__"),
    ("/", "__slash__"),
];

/// How expressions write a property's name; `None` for one that they can't.
pub fn escape(name: &str) -> Option<String> {
    if is_reserved(name) {
        return Some(format!("__{name}__"));
    }
    let first = name.chars().next()?;
    let begins = first.is_ascii_alphabetic() || matches!(first, '_' | '.' | '-' | '/');
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '/');
    if !begins || !name.chars().all(inner) {
        return None;
    }
    Some(replaced(name, PARTS))
}

/// The name that an escaped one stands for; `None` if it is not escaped.
pub fn unescape(name: &str) -> Option<String> {
    if !name.contains("__") {
        return None;
    }
    let inner = name.strip_prefix("__").and_then(|n| n.strip_suffix("__"));
    if let Some(word) = inner.filter(|w| is_reserved(w)) {
        return Some(word.to_owned());
    }
    Some(replaced(name, PARTS.map(|(from, to)| (to, from))))
}

fn is_reserved(name: &str) -> bool {
    LITERALS.contains(&name) || RESERVED.contains(&name)
}

/// The name with each part replaced, from left to right.
fn replaced(name: &str, parts: [(&str, &str); PARTS.len()]) -> String {
    let (mut out, mut rest) = (String::with_capacity(name.len()), name);
    'next: while let Some(c) = rest.chars().next() {
        for (from, to) in parts {
            if let Some(tail) = rest.strip_prefix(from) {
                out.push_str(to);
                rest = tail;
                continue 'next;
            }
        }
        out.push(c);
        rest = &rest[c.len_utf8()..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // k8s.io/apiserver/pkg/cel/escaping_test.go
    #[test]
    fn names() {
        for (name, escaped) in [
            ("simple", Some("simple")),
            ("namespace", Some("__namespace__")),
            ("a.b", Some("a__dot__b")),
            ("a-b", Some("a__dash__b")),
            ("a/b", Some("a__slash__b")),
            ("my__name", Some("my__underscores__name")),
            ("___", Some("__underscores___")),
            ("int", Some("int")),
            ("1a", None),
            ("a b", None),
            ("$a", None),
            ("", None),
        ] {
            assert_eq!(escape(name).as_deref(), escaped, "{name}");
        }
    }

    proptest! {
        #[test]
        fn escapes_are_undone(name in "[a-z_./-]{1,12}") {
            let escaped = escape(&name).unwrap();
            prop_assert_eq!(unescape(&escaped).unwrap_or(escaped), name);
        }
    }
}
