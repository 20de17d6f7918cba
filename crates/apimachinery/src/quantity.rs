//! `resource.Quantity`: fixed-point numbers with decimal or binary suffixes.
//!
//! Exact to a billionth; what is finer is rounded away from zero, what is
//! larger than 2⁶³−1 is capped, both as upstream does.

use std::fmt::Write as _;

const NANO: i128 = 1_000_000_000;
const CAP: i128 = (i64::MAX as i128) * NANO;

/// A quantity, exact to a nano-unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Quantity {
    /// Value in billionths.
    pub nano: i128,
}

/// How a quantity's text is written; a client's choice is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `m`, `k`, `M`…
    #[default]
    DecimalSi,
    /// `Ki`, `Mi`…
    BinarySi,
    /// `e3`, `e6`…
    DecimalExponent,
}

/// Text that is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
)]
pub struct ParseQuantityError;

impl std::str::FromStr for Quantity {
    type Err = ParseQuantityError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        parse(s).map(|(q, _)| q)
    }
}

impl Quantity {
    /// From whole units.
    pub fn from_value(value: i64) -> Self {
        Self {
            nano: i128::from(value) * NANO,
        }
    }

    /// From thousandths.
    pub fn from_milli(milli: i64) -> Self {
        Self {
            nano: i128::from(milli) * 1_000_000,
        }
    }

    /// Reads a JSON value: a string, or a number as YAML authors write it.
    pub fn from_json(v: &serde_json::Value) -> Option<Self> {
        match v {
            serde_json::Value::String(s) => s.parse().ok(),
            serde_json::Value::Number(n) => n.to_string().parse().ok(),
            _ => None,
        }
    }

    /// Whole units, rounded up (bytes, counts).
    pub fn value(self) -> i64 {
        clamp(ceil_div(self.nano, NANO))
    }

    /// Thousandths, rounded up (milli-CPU).
    pub fn milli_value(self) -> i64 {
        clamp(ceil_div(self.nano, 1_000_000))
    }

    /// The canonical text in a format.
    pub fn text(self, format: Format) -> String {
        let mut out = String::new();
        if self.nano == 0 {
            return "0".to_owned();
        }
        let whole = self.nano / NANO;
        let exact = self.nano % NANO == 0;
        // Small and fractional values are clearer, and exact, in decimal.
        if format == Format::BinarySi && exact && whole.abs() >= 1024 {
            let mut n = whole;
            let mut i = 0;
            while n % 1024 == 0 && i + 1 < BINARY.len() {
                n /= 1024;
                i += 1;
            }
            let _ = write!(out, "{n}{}", BINARY[i]);
            return out;
        }
        let mut n = self.nano;
        let mut exponent = -9;
        while n % 1000 == 0 && exponent < 18 {
            n /= 1000;
            exponent += 3;
        }
        let _ = match (format, exponent) {
            (Format::DecimalExponent, 0) => write!(out, "{n}"),
            (Format::DecimalExponent, e) => write!(out, "{n}e{e}"),
            (_, e) => write!(out, "{n}{}", DECIMAL[((e + 9) / 3) as usize]),
        };
        out
    }
}

/// The canonical text of a quantity as upstream re-serialises it (`1000m` → `1`, `1024Mi` → `1Gi`).
///
/// # Errors
/// When `s` is no quantity.
pub fn canonical(s: &str) -> Result<String, ParseQuantityError> {
    parse(s).map(|(q, f)| q.text(f))
}

const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
const DECIMAL: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];

fn parse(s: &str) -> Result<(Quantity, Format), ParseQuantityError> {
    let b = s.as_bytes();
    let (negative, start) = match b.first() {
        Some(b'-') => (true, 1),
        Some(b'+') => (false, 1),
        _ => (false, 0),
    };
    let end = b[start..]
        .iter()
        .position(|c| !c.is_ascii_digit() && *c != b'.')
        .map_or(b.len(), |i| start + i);
    let (digits, suffix) = (&s[start..end], &s[end..]);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
        return Err(ParseQuantityError);
    }
    let (format, binary, ten) = scale(suffix)?;

    // value = mantissa · 10^(ten − fraction digits) · 2^binary, in billionths.
    let mut mantissa: i128 = 0;
    let mut dropped = false;
    let mut exponent = ten + 9;
    for (i, c) in whole.bytes().chain(fraction.bytes()).enumerate() {
        let d = i128::from(c - b'0');
        if mantissa > i128::MAX >> binary >> 4 {
            // Beyond any digit that can matter; keep the magnitude.
            dropped |= d != 0;
            if i < whole.len() {
                exponent += 1;
            }
            continue;
        }
        mantissa = mantissa * 10 + d;
        if i >= whole.len() {
            exponent -= 1;
        }
    }
    let mut nano = mantissa.checked_mul(1_i128 << binary).unwrap_or(i128::MAX);
    while exponent > 0 && nano != 0 && nano <= CAP {
        nano = nano.saturating_mul(10);
        exponent -= 1;
    }
    while exponent < 0 && nano != 0 {
        dropped |= nano % 10 != 0;
        nano /= 10;
        exponent += 1;
        if nano == 0 {
            dropped = true;
        }
    }
    if dropped {
        nano = nano.saturating_add(1);
    }
    let nano = nano.min(CAP);
    let nano = if negative { -nano } else { nano };
    Ok((Quantity { nano }, format))
}

/// What a suffix means: (format, power of two, power of ten).
fn scale(suffix: &str) -> Result<(Format, u32, i32), ParseQuantityError> {
    if let Some(i) = DECIMAL.iter().position(|d| *d == suffix) {
        return Ok((Format::DecimalSi, 0, i as i32 * 3 - 9));
    }
    if let Some(i) = BINARY.iter().position(|d| *d == suffix) {
        return Ok((Format::BinarySi, i as u32 * 10, 0));
    }
    let exponent = suffix
        .strip_prefix(['e', 'E'])
        .and_then(|e| e.parse::<i16>().ok())
        .ok_or(ParseQuantityError)?;
    Ok((Format::DecimalExponent, 0, i32::from(exponent)))
}

fn ceil_div(a: i128, b: i128) -> i128 {
    a.div_euclid(b) + i128::from(a.rem_euclid(b) != 0)
}

fn clamp(n: i128) -> i64 {
    n.clamp(i64::MIN.into(), i64::MAX.into()) as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn canonical_text() {
        for (text, want) in [
            ("0", "0"),
            ("0Mi", "0"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("1.", "1"),
            ("1000", "1k"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Gi", "512Mi"),
            ("1023", "1023"),
            ("1Ki", "1Ki"),
            ("0.5Ki", "512"),
            ("1e3", "1e3"),
            ("12e2", "1200"),
            ("1200e-2", "12"),
            ("1E", "1E"),
            ("-1.5", "-1500m"),
            ("0.0000000001", "1n"),
            ("0.0000000011", "2n"),
            ("100E", "9223372036854775807"),
            (
                "99999999999999999999999999999999999999999999",
                "9223372036854775807",
            ),
            (
                "1.00000000000000000000000000000000000000000001",
                "1000000001n",
            ),
        ] {
            assert_eq!(canonical(text).as_deref(), Ok(want), "{text}");
        }
    }

    #[test]
    fn refuses_nonsense() {
        for text in [
            "", ".", "1.2.3", "a", "1x", "1mi", "1ki", "--1", "1e", "1 Gi", "Gi", "1e1.5",
        ] {
            assert_eq!(canonical(text), Err(ParseQuantityError), "{text}");
        }
    }

    #[test]
    fn rounds_up() {
        let q: Quantity = "1.1".parse().expect("parses");
        assert_eq!((q.value(), q.milli_value()), (2, 1100));
        let q: Quantity = "100u".parse().expect("parses");
        assert_eq!((q.value(), q.milli_value()), (1, 1));
        let q: Quantity = "-1.1".parse().expect("parses");
        assert_eq!(q.value(), -1);
    }

    proptest! {
        #[test]
        fn canonical_is_stable_and_keeps_the_value(
            n in any::<i32>(),
            frac in proptest::option::of(0u32..1_000_000),
            suffix in prop::sample::select(vec!["", "m", "u", "k", "M", "Ki", "Mi", "Gi", "e2", "e-3"]),
        ) {
            let text = match frac {
                Some(f) => format!("{n}.{f:06}{suffix}"),
                None => format!("{n}{suffix}"),
            };
            let q: Quantity = text.parse().expect("parses");
            let c = canonical(&text).expect("parses");
            prop_assert_eq!(c.parse::<Quantity>().expect("canonical parses"), q);
            prop_assert_eq!(canonical(&c).expect("canonical parses"), c);
        }

        #[test]
        fn never_panics(s in "[-+]?[0-9.]{0,60}[a-zA-Z]{0,2}[-+]?[0-9]{0,4}") {
            let _ = canonical(&s);
        }
    }
}
