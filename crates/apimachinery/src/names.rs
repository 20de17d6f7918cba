//! What names, labels, keys and ports may be, with upstream's messages.
//!
//! Each function answers `Err` with the first complaint, worded as
//! `k8s.io/apimachinery/pkg/util/validation` words it.

const LABEL_1123: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN_1123: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const QUALIFIED: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";

/// Longest DNS label, and longest label value and name part of a qualified name.
pub const LABEL_BYTES_MAX: usize = 63;
/// Longest DNS subdomain, and so the longest name of most objects.
pub const SUBDOMAIN_BYTES_MAX: usize = 253;
/// Longest name of a port.
pub const PORT_NAME_BYTES_MAX: usize = 15;

/// DNS-1123 subdomain (most names): lower case, digits, `-`, `.`; at most 253. `Err` is upstream's message.
pub fn dns1123_subdomain(s: &str) -> Result<(), String> {
    bytes_at_most(s, SUBDOMAIN_BYTES_MAX)?;
    if is_subdomain_1123(s) {
        return Ok(());
    }
    Err(regex_error(
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, \
         '-' or '.', and must start and end with an alphanumeric character",
        SUBDOMAIN_1123,
        &["example.com"],
    ))
}

/// DNS-1123 label (namespaces, containers, volumes): at most 63.
pub fn dns1123_label(s: &str) -> Result<(), String> {
    bytes_at_most(s, LABEL_BYTES_MAX)?;
    if is_label_1123(s) {
        return Ok(());
    }
    if is_subdomain_1123(s) {
        return Err("must not contain dots".to_owned());
    }
    Err(regex_error(
        "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', \
         and must start and end with an alphanumeric character",
        LABEL_1123,
        &["my-name", "123-abc"],
    ))
}

/// DNS-1035 label (services): as a DNS-1123 label, but starting with a letter.
pub fn dns1035_label(s: &str) -> Result<(), String> {
    bytes_at_most(s, LABEL_BYTES_MAX)?;
    if is_label_1123(s) && s.as_bytes()[0].is_ascii_lowercase() {
        return Ok(());
    }
    Err(regex_error(
        "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with \
         an alphabetic character, and end with an alphanumeric character",
        "[a-z]([-a-z0-9]*[a-z0-9])?",
        &["my-name", "abc-123"],
    ))
}

/// Qualified name (label and annotation keys): `[prefix/]name`.
pub fn qualified_name(s: &str) -> Result<(), String> {
    let complaint = || {
        regex_error(
            "must consist of alphanumeric characters, '-', '_' or '.', and must start and end \
             with an alphanumeric character",
            QUALIFIED,
            &["MyName", "my.name", "123-abc"],
        )
    };
    let name = match s.split_once('/') {
        None => s,
        Some((_, name)) if name.contains('/') => {
            return Err(format!(
                "a qualified name {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                complaint()
            ));
        }
        Some(("", _)) => return Err("prefix part must be non-empty".to_owned()),
        Some((prefix, name)) => {
            dns1123_subdomain(prefix).map_err(|e| format!("prefix part {e}"))?;
            name
        }
    };
    if name.is_empty() {
        return Err("name part must be non-empty".to_owned());
    }
    bytes_at_most(name, LABEL_BYTES_MAX).map_err(|e| format!("name part {e}"))?;
    if is_qualified_part(name) {
        Ok(())
    } else {
        Err(format!("name part {}", complaint()))
    }
}

/// Label value: at most 63, may be empty.
pub fn label_value(s: &str) -> Result<(), String> {
    bytes_at_most(s, LABEL_BYTES_MAX)?;
    if s.is_empty() || is_qualified_part(s) {
        return Ok(());
    }
    Err(regex_error(
        "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' \
         or '.', and must start and end with an alphanumeric character",
        "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?",
        &["MyValue", "my_value", "12345"],
    ))
}

/// Path segment name (RBAC objects): not `.`/`..`, no `/` or `%`.
pub fn path_segment(s: &str) -> Result<(), String> {
    match s {
        "." | ".." => return Err(format!("may not be '{s}'")),
        _ => {}
    }
    for c in ["/", "%"] {
        if s.contains(c) {
            return Err(format!("may not contain '{c}'"));
        }
    }
    Ok(())
}

/// Key of a ConfigMap or Secret: it becomes a file name.
pub fn config_key(s: &str) -> Result<(), String> {
    bytes_at_most(s, SUBDOMAIN_BYTES_MAX)?;
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if s.is_empty() || !s.bytes().all(ok) {
        return Err(regex_error(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    match s {
        "." | ".." => Err(format!("must not be '{s}'")),
        _ if s.starts_with("..") => Err("must not start with '..'".to_owned()),
        _ => Ok(()),
    }
}

/// Name of a port (IANA service name): at most 15.
pub fn port_name(s: &str) -> Result<(), String> {
    bytes_at_most(s, PORT_NAME_BYTES_MAX)?;
    let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if s.is_empty() || !s.bytes().all(ok) {
        return Err(
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into(),
        );
    }
    if !s.bytes().any(|b| b.is_ascii_lowercase()) {
        return Err("must contain at least one letter (a-z)".into());
    }
    if s.contains("--") {
        return Err("must not contain consecutive hyphens".into());
    }
    if s.starts_with('-') || s.ends_with('-') {
        return Err("must not begin or end with a hyphen".into());
    }
    Ok(())
}

/// Number of a port.
pub fn port_number(n: i64) -> Result<(), String> {
    if (1..=65535).contains(&n) {
        Ok(())
    } else {
        Err("must be between 1 and 65535, inclusive".to_owned())
    }
}

/// Name of an environment variable: printable ASCII without `=`.
pub fn env_name(s: &str) -> Result<(), String> {
    if !s.is_empty() && s.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
        return Ok(());
    }
    Err(
        "a valid environment variable name must consist only of printable ASCII characters \
         other than '='"
            .to_owned(),
    )
}

fn bytes_at_most(s: &str, max: usize) -> Result<(), String> {
    if s.len() > max {
        Err(format!("must be no more than {max} bytes"))
    } else {
        Ok(())
    }
}

fn is_label_1123(s: &str) -> bool {
    let b = s.as_bytes();
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    matches!((b.first(), b.last()), (Some(&f), Some(&l)) if alnum(f) && alnum(l))
        && b.iter().all(|&b| alnum(b) || b == b'-')
}

fn is_subdomain_1123(s: &str) -> bool {
    s.split('.').all(is_label_1123)
}

fn is_qualified_part(s: &str) -> bool {
    let b = s.as_bytes();
    matches!((b.first(), b.last()), (Some(f), Some(l)) if f.is_ascii_alphanumeric() && l.is_ascii_alphanumeric())
        && b.iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

fn regex_error(message: &str, regex: &str, examples: &[&str]) -> String {
    let mut out = format!("{message} (e.g. ");
    for (i, e) in examples.iter().enumerate() {
        if i > 0 {
            out.push_str(" or ");
        }
        out.push_str(&format!("'{e}', "));
    }
    out.push_str(&format!("regex used for validation is '{regex}')"));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    #[test]
    fn accepts_what_upstream_accepts() {
        let long = "a".repeat(63);
        for s in ["a", "0", "a-b", "a--b", &long] {
            assert_eq!(dns1123_label(s), Ok(()), "{s}");
        }
        for s in ["a.b", "example.com", "0.0", &"a".repeat(253)] {
            assert_eq!(dns1123_subdomain(s), Ok(()), "{s}");
        }
        for s in ["a", "A_b.c", "example.com/Name", "a.b/0"] {
            assert_eq!(qualified_name(s), Ok(()), "{s}");
        }
        for s in ["", "A", "a_b", "1.2"] {
            assert_eq!(label_value(s), Ok(()), "{s}");
        }
        assert_eq!(path_segment("system:node"), Ok(()));
        assert!(config_key("..a").is_err());
        assert_eq!(config_key(".a"), Ok(()));
        assert_eq!(port_name("http-2"), Ok(()));
        assert_eq!(env_name("a.b-c d"), Ok(()));
    }

    #[test]
    fn refuses_with_upstream_messages() {
        fn check(r: Result<(), String>, e: Expect) {
            e.assert_eq(&r.expect_err("must be refused"));
        }
        check(dns1123_label("a.b"), expect!["must not contain dots"]);
        check(
            dns1123_label("A"),
            expect![
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
            ],
        );
        check(
            dns1123_subdomain("Foo_Bar"),
            expect![[
                r"a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            ]],
        );
        check(
            dns1123_subdomain(&"a".repeat(254)),
            expect!["must be no more than 253 bytes"],
        );
        check(
            qualified_name("/a"),
            expect!["prefix part must be non-empty"],
        );
        check(qualified_name("a/"), expect!["name part must be non-empty"]);
        check(
            qualified_name("a@"),
            expect![
                "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
            ],
        );
        check(path_segment(".."), expect!["may not be '..'"]);
        check(path_segment("a/b"), expect!["may not contain '/'"]);
        check(
            port_name("80"),
            expect!["must contain at least one letter (a-z)"],
        );
        check(
            port_number(0),
            expect!["must be between 1 and 65535, inclusive"],
        );
        check(config_key(".."), expect!["must not be '..'"]);
    }
}
