//! Durations as people read them: `5s`, `3m12s`, `2d4h`, `3y12d`.

use serde_json::Value;

/// A duration in seconds as `kubectl` prints ages: two units while the first is small.
pub fn human_duration(seconds: i64) -> String {
    // A clock that is a little ahead is no error; a lot ahead is.
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    if seconds < 0 {
        return "0s".to_owned();
    }
    let (s, m, h, d) = (seconds, seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |a: i64, ua: &str, b: i64, ub: &str| {
        if b == 0 {
            format!("{a}{ua}")
        } else {
            format!("{a}{ua}{b}{ub}")
        }
    };
    if s < 120 {
        format!("{s}s")
    } else if m < 10 {
        two(m, "m", s % 60, "s")
    } else if m < 180 {
        format!("{m}m")
    } else if h < 8 {
        two(h, "h", m % 60, "m")
    } else if h < 48 {
        format!("{h}h")
    } else if h < 192 {
        two(d, "d", h % 24, "h")
    } else if d < 730 {
        format!("{d}d")
    } else if d < 2920 {
        two(d / 365, "y", d % 365, "d")
    } else {
        format!("{}y", d / 365)
    }
}

/// An RFC 3339 string as Unix seconds.
pub(super) fn unix_seconds(time: &Value) -> Option<i64> {
    let t: jiff::Timestamp = time.as_str()?.parse().ok()?;
    Some(t.as_second())
}

#[cfg(test)]
mod tests {
    use super::human_duration;

    #[test]
    fn reads_like_kubectl() {
        for (seconds, want) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (192, "3m12s"),
            (600, "10m"),
            (3 * 3600 - 1, "179m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 60, "3h1m"),
            (8 * 3600, "8h"),
            (48 * 3600, "2d"),
            (52 * 3600, "2d4h"),
            (8 * 86_400, "8d"),
            (729 * 86_400, "729d"),
            (730 * 86_400, "2y"),
            (731 * 86_400, "2y1d"),
            (2920 * 86_400, "8y"),
        ] {
            assert_eq!(human_duration(seconds), want, "{seconds}");
        }
    }
}
