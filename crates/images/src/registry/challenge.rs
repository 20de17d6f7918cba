//! `WWW-Authenticate` as registries send it (RFC 9110 §11, distribution token authentication).

/// What a registry asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User name and password with each request.
    Basic,
    /// A token from the service at `realm`.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// The challenge to answer: a token service wins over sending the password around.
pub(super) fn parse<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let mut found = None;
    for header in headers {
        for (scheme, params) in split(header) {
            let get = |name: &str| {
                params
                    .iter()
                    .find(|(key, _)| key.eq_ignore_ascii_case(name))
                    .map(|(_, value)| value.clone())
            };
            if scheme.eq_ignore_ascii_case("bearer") {
                if let Some(realm) = get("realm") {
                    return Some(Challenge::Bearer {
                        realm,
                        service: get("service"),
                        scope: get("scope"),
                    });
                }
            } else if scheme.eq_ignore_ascii_case("basic") {
                found = Some(Challenge::Basic);
            }
        }
    }
    found
}

/// Schemes with their parameters.
fn split(header: &str) -> Vec<(String, Vec<(String, String)>)> {
    let mut out: Vec<(String, Vec<(String, String)>)> = Vec::new();
    let mut rest = header.trim();
    while !rest.is_empty() {
        rest = rest.trim_start_matches([',', ' ', '\t']);
        let end = rest.find(['=', ' ', ',', '\t']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let after = after.trim_start();
        if let Some(value) = after.strip_prefix('=').filter(|_| !word.is_empty()) {
            let (value, after) = token_or_quoted(value.trim_start());
            if let Some((_, params)) = out.last_mut() {
                params.push((word.to_owned(), value));
            }
            rest = after;
        } else if word.is_empty() {
            // Not a word: step over one character, or this would never end.
            let mut chars = rest.chars();
            chars.next();
            rest = chars.as_str();
        } else {
            out.push((word.to_owned(), Vec::new()));
            rest = after;
        }
    }
    out
}

fn token_or_quoted(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_registries_send() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.to_owned(),
                service: service.map(str::to_owned),
                scope: scope.map(str::to_owned),
            })
        };
        for (header, want) in [
            (r#"Basic realm="x""#, Some(Challenge::Basic)),
            (
                r#"Bearer realm="https://a.io/token",service="r.io",scope="repository:a/b:pull,push""#,
                bearer(
                    "https://a.io/token",
                    Some("r.io"),
                    Some("repository:a/b:pull,push"),
                ),
            ),
            (
                r#"bearer realm=https://a.io/t"#,
                bearer("https://a.io/t", None, None),
            ),
            (
                r#"Basic realm="a", Bearer realm="b""#,
                bearer("b", None, None),
            ),
            (
                r#"Bearer realm="a\"b", error="invalid_token""#,
                bearer("a\"b", None, None),
            ),
            ("Bearer", None),
            ("Negotiate", None),
            ("", None),
        ] {
            assert_eq!(parse([header].into_iter()), want, "{header}");
        }
    }

    proptest! {
        #[test]
        fn ends_and_never_panics(header in "\\PC{0,64}|([a-zA-Z]{1,4}[ =,\"\\\\]{0,3}){0,12}") {
            let _ = parse([header.as_str()].into_iter());
        }
    }
}
