//! `resource.Quantity`: fixed-point numbers with decimal or binary suffixes.

/// A quantity, exact to a nano-unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Quantity {
    /// Value in billionths.
    pub nano: i128,
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
        let _ = s;
        todo!()
    }
}

impl Quantity {
    /// Whole units, rounded up (bytes, counts).
    pub fn value(self) -> i64 {
        todo!()
    }

    /// Thousandths, rounded up (milli-CPU).
    pub fn milli_value(self) -> i64 {
        todo!()
    }
}

/// The canonical text of a quantity as upstream re-serialises it (`1000m` → `1`, `1024Mi` → `1Gi`).
///
/// # Errors
/// When `s` is no quantity.
pub fn canonical(s: &str) -> Result<String, ParseQuantityError> {
    let _ = s;
    todo!()
}
