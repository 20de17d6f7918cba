//! Scalars with a text form of their own: times, durations, bytes.

use jiff::Timestamp;
use serde_json::Value;

/// Why a text can't be read, in upstream's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TextError {
    #[error("parsing time {text:?} as {layout:?}: cannot parse {text:?}")]
    Time { text: String, layout: &'static str },
    #[error("illegal base64 data")]
    Base64,
}

/// RFC 3339 at a precision of seconds, in UTC. The zero time is no time.
pub(crate) fn parse_time(text: &str) -> Result<Value, TextError> {
    let parsed = parse(text, "2006-01-02T15:04:05Z07:00")?;
    Ok(parsed.map_or(Value::Null, |t| Value::String(time(t))))
}

/// RFC 3339 at a precision of microseconds, in UTC.
pub(crate) fn parse_micro_time(text: &str) -> Result<Value, TextError> {
    let parsed = parse(text, "2006-01-02T15:04:05.000000Z07:00")?;
    Ok(parsed.map_or(Value::Null, |t| Value::String(micro_time(t))))
}

fn parse(text: &str, layout: &'static str) -> Result<Option<Timestamp>, TextError> {
    let error = || TextError::Time {
        text: text.to_owned(),
        layout,
    };
    // Go's layouts know only a capital T and Z, and no zone names.
    let bytes = text.as_bytes();
    if bytes.get(10) != Some(&b'T') || text.contains(['[', 'z', 't']) {
        return Err(error());
    }
    let time: Timestamp = text.parse().map_err(|_| error())?;
    Ok((!text.starts_with("0001-01-01T00:00:00")).then_some(time))
}

/// As `metav1.Time` is written.
pub(crate) fn time(t: Timestamp) -> String {
    t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// As `metav1.MicroTime` is written.
pub(crate) fn micro_time(t: Timestamp) -> String {
    t.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// Checks base64 (standard alphabet, padded; line ends are ignored) and drops line ends.
pub(crate) fn base64(text: &str) -> Result<String, TextError> {
    use base64::Engine as _;
    let text: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    base64::engine::general_purpose::STANDARD
        .decode(&text)
        .map_err(|_| TextError::Base64)?;
    Ok(text)
}

/// Nanoseconds as Go writes a `time.Duration`: `1h0m0s`, `1.5s`, `300ms`.
pub(crate) fn go_duration(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let n = nanos.unsigned_abs();
    let fraction = |value: u64, unit: u64, name: &str| {
        let digits = unit.ilog10() as usize;
        let rest = format!("{:0digits$}", value % unit);
        let rest = if digits == 0 {
            ""
        } else {
            rest.trim_end_matches('0')
        };
        let dot = if rest.is_empty() { "" } else { "." };
        format!("{}{dot}{rest}{name}", value / unit)
    };
    let text = match n {
        0 => return "0s".to_owned(),
        1..1_000 => format!("{n}ns"),
        1_000..1_000_000 => fraction(n, 1_000, "µs"),
        1_000_000..1_000_000_000 => fraction(n, 1_000_000, "ms"),
        _ => {
            let minutes = n / 60_000_000_000;
            let seconds = fraction(n % 60_000_000_000, 1_000_000_000, "s");
            match (minutes / 60, minutes % 60) {
                (0, 0) => seconds,
                (0, m) => format!("{m}m{seconds}"),
                (h, m) => format!("{h}h{m}m{seconds}"),
            }
        }
    };
    format!("{sign}{text}")
}
