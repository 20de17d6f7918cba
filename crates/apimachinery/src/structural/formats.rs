//! Formats of strings, as `k8s.io/kube-openapi/pkg/validation/strfmt` reads them.

use crate::names;
use crate::schema::Format;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Whether a text has a format.
pub fn has_format(format: Format, text: &str) -> bool {
    match format {
        Format::DateTime => date_time(text),
        Format::Date => text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(),
        Format::Duration => duration(text),
        Format::Byte => base64(text),
        Format::Uuid => uuid(text),
        Format::Ipv4 => text.parse::<Ipv4Addr>().is_ok(),
        Format::Ipv6 => text.parse::<Ipv6Addr>().is_ok(),
        Format::Cidr => cidr(text),
        Format::Mac => mac(text),
        Format::Email => email(text),
        Format::Hostname => hostname(text),
        Format::Uri => uri(text),
    }
}

fn date_time(text: &str) -> bool {
    let upper = text.to_ascii_uppercase();
    let bytes = upper.as_bytes();
    bytes.len() >= 20 && bytes[10] == b'T' && !upper.contains('[') && {
        upper.parse::<jiff::Timestamp>().is_ok()
    }
}

/// A Go duration, or `3 days` as upstream's package has it.
fn duration(text: &str) -> bool {
    const UNITS: [&str; 7] = ["ns", "us", "µs", "ms", "h", "m", "s"];
    const WORDS: [&str; 24] = [
        "ns",
        "nano",
        "nanos",
        "nanosecond",
        "nanoseconds",
        "us",
        "µs",
        "micro",
        "micros",
        "microsecond",
        "microseconds",
        "ms",
        "milli",
        "millis",
        "s",
        "sec",
        "secs",
        "m",
        "h",
        "hr",
        "hour",
        "d",
        "day",
        "w",
    ];
    if text == "0" {
        return true;
    }
    let words = || {
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
        let unit = unit.trim().to_lowercase();
        let singular = unit.strip_suffix('s').unwrap_or(&unit);
        let known = WORDS.contains(&&*unit)
            || WORDS.contains(&singular)
            || matches!(
                singular,
                "millisecond" | "second" | "minute" | "min" | "week" | "wk"
            );
        (!number.is_empty() && known).then_some(())
    };
    let mut rest = text.trim_start_matches(['-', '+']);
    let mut go = !rest.is_empty();
    while go && !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let number = &rest[..digits];
        go = number.bytes().any(|b| b.is_ascii_digit()) && number.matches('.').count() <= 1;
        rest = &rest[digits..];
        match UNITS.iter().find(|u| rest.starts_with(**u)) {
            Some(unit) => rest = &rest[unit.len()..],
            None => go = false,
        }
    }
    go || words().is_some()
}

fn base64(text: &str) -> bool {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .is_ok()
}

fn uuid(text: &str) -> bool {
    let hex: String = text.chars().filter(|c| *c != '-').collect();
    let dashes = text.len() - hex.len();
    hex.len() == 32 && dashes <= 4 && hex.bytes().all(|b| b.is_ascii_hexdigit())
}

fn cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else {
        return false;
    };
    let Ok(bits) = bits.parse::<u8>() else {
        return false;
    };
    (address.parse::<Ipv4Addr>().is_ok() && bits <= 32)
        || (address.parse::<Ipv6Addr>().is_ok() && bits <= 128)
}

fn mac(text: &str) -> bool {
    [':', '-'].iter().any(|s| {
        let parts: Vec<&str> = text.split(*s).collect();
        matches!(parts.len(), 6 | 8 | 20)
            && parts
                .iter()
                .all(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))
    })
}

fn email(text: &str) -> bool {
    match text.rsplit_once('@') {
        Some((user, host)) => {
            !user.is_empty()
                && !host.is_empty()
                && !text.contains(char::is_whitespace)
                && !user.contains(['(', ')', ',', '<', '>'])
        }
        None => false,
    }
}

fn hostname(text: &str) -> bool {
    text.len() <= names::SUBDOMAIN_BYTES_MAX
        && !text.is_empty()
        && text.trim_end_matches('.').split('.').all(|label| {
            let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
            !label.is_empty()
                && label.len() <= names::LABEL_BYTES_MAX
                && label.bytes().all(inner)
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

/// An absolute URI, or an absolute path.
fn uri(text: &str) -> bool {
    if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return false;
    }
    if text.starts_with('/') {
        return true;
    }
    text.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        for (format, good, bad) in [
            (Format::DateTime, "2024-01-02T03:04:05Z", "2024-01-02"),
            (Format::DateTime, "2024-01-02T03:04:05.5+02:00", "yesterday"),
            (Format::Date, "2024-02-29", "2023-02-29"),
            (Format::Duration, "1h30m", "1x"),
            (Format::Duration, "3 days", "days"),
            (Format::Byte, "aGk=", "a"),
            (Format::Uuid, "123e4567-e89b-12d3-a456-426614174000", "123"),
            (Format::Ipv4, "10.0.0.1", "10.0.0"),
            (Format::Ipv6, "fe80::1", "10.0.0.1"),
            (Format::Cidr, "10.0.0.0/8", "10.0.0.0/33"),
            (Format::Mac, "00:00:5e:00:53:01", "00:00:5e"),
            (Format::Email, "a@example.com", "a"),
            (Format::Hostname, "a.example", "-a"),
            (Format::Uri, "https://example.com/a", "example"),
        ] {
            assert!(has_format(format, good), "{format:?} {good}");
            assert!(!has_format(format, bad), "{format:?} {bad}");
        }
    }
}
