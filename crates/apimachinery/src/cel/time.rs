//! Times and durations, read and written as Go does.

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::{Offset, TimeZone};

const SECOND: i128 = 1_000_000_000;

/// RFC 3339.
pub(super) fn parse_time(s: &str) -> Option<Timestamp> {
    let upper = s.to_ascii_uppercase();
    let ok = upper.len() >= 20 && upper.as_bytes()[10] == b'T' && !upper.contains('[');
    let t: Timestamp = ok.then(|| upper.parse().ok())??;
    in_range(t).then_some(t)
}

/// Years that a time may have.
pub(super) fn in_range(t: Timestamp) -> bool {
    (-62_135_596_800..=253_402_300_799).contains(&t.as_second())
}

/// RFC 3339 or a date, as fields of objects have them.
pub(super) fn parse_json_time(s: &str) -> Option<Timestamp> {
    parse_time(s).or_else(|| {
        let date: Date = s.parse().ok().filter(|_| s.len() == 10)?;
        date.to_zoned(TimeZone::UTC).ok().map(|z| z.timestamp())
    })
}

/// RFC 3339 with as many decimals as it needs.
pub(super) fn format_time(t: Timestamp) -> String {
    t.to_string()
}

/// Go's `time.ParseDuration`, in nanoseconds.
pub(super) fn parse_duration(s: &str) -> Option<i64> {
    let (negative, mut rest) = match s.strip_prefix('-') {
        Some(r) => (true, r),
        None => (false, s.strip_prefix('+').unwrap_or(s)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || whole.len() > 19 {
            return None;
        }
        let (unit, tail) = [
            ("ns", 1),
            ("us", 1000),
            ("µs", 1000),
            ("μs", 1000),
            ("ms", 1_000_000),
            ("s", SECOND),
            ("m", 60 * SECOND),
            ("h", 3600 * SECOND),
        ]
        .into_iter()
        .find_map(|(name, unit)| Some((unit, tail.strip_prefix(name)?)))?;
        let whole: i128 = if whole.is_empty() {
            0
        } else {
            whole.parse().ok()?
        };
        total += whole * unit;
        let mut scale = unit;
        for d in fraction.bytes().take(18) {
            scale /= 10;
            total += i128::from(d - b'0') * scale;
        }
        rest = tail;
    }
    i64::try_from(if negative { -total } else { total }).ok()
}

/// As CEL writes a duration: seconds.
pub(super) fn format_duration(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let n = nanos.unsigned_abs();
    let (whole, part) = (n / 1_000_000_000, n % 1_000_000_000);
    if part == 0 {
        return format!("{sign}{whole}s");
    }
    let text = format!("{part:09}");
    format!("{sign}{whole}.{}s", text.trim_end_matches('0'))
}

/// A time in a zone: UTC or an offset such as `+01:00`.
pub(super) fn civil(t: Timestamp, zone: Option<&str>) -> Result<DateTime, String> {
    let zone = match zone {
        None | Some("" | "UTC" | "Z") => TimeZone::UTC,
        Some(text) => match offset(text) {
            Some(offset) => TimeZone::fixed(offset),
            None => TimeZone::get(text).map_err(|_| format!("unknown time zone {text}"))?,
        },
    };
    Ok(t.to_zoned(zone).datetime())
}

fn offset(text: &str) -> Option<Offset> {
    let (sign, rest) = match text.strip_prefix('-') {
        Some(r) => (-1, r),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let (h, m) = rest.split_once(':')?;
    let (h, m): (i32, i32) = (h.parse().ok()?, m.parse().ok()?);
    let whole = (0..24).contains(&h) && (0..60).contains(&m);
    whole.then(|| Offset::from_seconds(sign * (h * 3600 + m * 60)).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, nanos, back) in [
            ("1h30m", Some(5400 * SECOND as i64), "5400s"),
            ("1.5s", Some(1_500_000_000), "1.5s"),
            ("-2ms", Some(-2_000_000), "-0.002s"),
            ("0", Some(0), "0s"),
            ("1", None, ""),
            ("", None, ""),
            (".s", None, ""),
            ("99999999999999h", None, ""),
            ("1..5s", None, ""),
        ] {
            assert_eq!(parse_duration(text), nanos, "{text}");
            if let Some(n) = nanos {
                assert_eq!(format_duration(n), back, "{text}");
            }
        }
    }

    #[test]
    fn times() {
        assert!(parse_time("2024-01-02T03:04:05Z").is_some());
        assert!(parse_time("2024-01-02").is_none());
        assert!(parse_json_time("2024-01-02").is_some());
        let t = parse_time("2024-01-02T23:04:05Z").unwrap();
        assert_eq!(civil(t, Some("+02:00")).unwrap().day(), 3);
        assert!(civil(t, Some("Nowhere/At/All")).is_err());
    }
}
