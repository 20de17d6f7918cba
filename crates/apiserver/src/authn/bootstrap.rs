//! Bootstrap tokens: what a machine shows that has no certificate yet. A token `ID.SECRET`
//! is the Secret `bootstrap-token-ID` in `kube-system` (KEP-130, as kubeadm makes them).

use super::User;
use base64::Engine as _;
use serde_json::Value;

/// Namespace of the tokens' Secrets.
pub(crate) const NAMESPACE: &str = "kube-system";

const GROUP: &str = "system:bootstrappers";
const ID_CHARS: usize = 6;
const SECRET_CHARS: usize = 16;

/// The two parts of a bootstrap token; `None` for any other text.
pub(crate) fn parts(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |s: &str| {
        s.bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    let whole = id.len() == ID_CHARS && secret.len() == SECRET_CHARS;
    (whole && plain(id) && plain(secret)).then_some((id, secret))
}

/// Name of a token's Secret.
pub(crate) fn secret_name(id: &str) -> String {
    format!("bootstrap-token-{id}")
}

/// The user that a token stands for, given its Secret.
pub(crate) fn user(id: &str, secret: &str, stored: &Value, now: i64) -> Result<User, &'static str> {
    let field = |name: &str| -> Option<String> {
        let encoded = stored["data"][name].as_str()?;
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(encoded)
            .ok()?;
        String::from_utf8(bytes).ok()
    };
    if stored["type"] != "bootstrap.kubernetes.io/token"
        || !stored["metadata"]["deletionTimestamp"].is_null()
    {
        return Err("no such bootstrap token");
    }
    let known = field("token-secret").unwrap_or_default();
    if field("token-id").as_deref() != Some(id) || !same(known.as_bytes(), secret.as_bytes()) {
        return Err("no such bootstrap token");
    }
    if let Some(until) = field("expiration") {
        let until: jiff::Timestamp = until.parse().map_err(|_| "unreadable expiration")?;
        if now >= until.as_second() {
            return Err("expired");
        }
    }
    if field("usage-bootstrap-authentication").as_deref() != Some("true") {
        return Err("not for authentication");
    }
    let extra = field("auth-extra-groups").unwrap_or_default();
    let mut groups = vec![GROUP];
    for group in extra.split(',').map(str::trim).filter(|g| !g.is_empty()) {
        if !group.starts_with("system:bootstrappers:") {
            return Err("a group that is not one of bootstrappers");
        }
        groups.push(group);
    }
    Ok(User::new(&format!("system:bootstrap:{id}"), &groups))
}

/// Compares in a time that depends on the length only.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |all, (x, y)| all | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tokens_are_known_by_their_secrets() {
        let encode = |s: &str| base64::engine::general_purpose::STANDARD.encode(s);
        let secret = json!({"type": "bootstrap.kubernetes.io/token", "metadata": {}, "data": {
            "token-id": encode("abcdef"), "token-secret": encode("0123456789abcdef"),
            "usage-bootstrap-authentication": encode("true"),
            "expiration": encode("2030-01-01T00:00:00Z"),
            "auth-extra-groups": encode("system:bootstrappers:nodes"),
        }});
        let (id, text) = parts("abcdef.0123456789abcdef").expect("a token");
        let made = user(id, text, &secret, 0).expect("is good");
        assert_eq!(made.name, "system:bootstrap:abcdef");
        assert!(made.in_group("system:bootstrappers:nodes") && made.in_group(GROUP));
        assert_eq!(
            user(id, "0123456789abcdee", &secret, 0),
            Err("no such bootstrap token")
        );
        assert_eq!(user(id, text, &secret, 2_000_000_000), Err("expired"));
        let mut master = secret.clone();
        master["data"]["auth-extra-groups"] = encode("system:masters").into();
        assert!(user(id, text, &master, 0).is_err());
        for none in ["abcdef", "ABCDEF.0123456789abcdef", "abcdef.0123", "a.b.c"] {
            assert_eq!(parts(none), None, "{none}");
        }
    }
}
