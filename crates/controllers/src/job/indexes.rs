//! Sets of completion indexes in their text form: `0,2-4`.

use std::collections::BTreeSet;

/// Reads the text; what is no number is left out, as is what is not below `limit`.
pub(super) fn parse(text: &str, limit: i32) -> BTreeSet<i32> {
    let mut indexes = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) {
            indexes.extend(first.max(0)..=last.min(limit - 1));
        }
    }
    indexes
}

/// Writes the text: two that follow each other with a comma, three or more with a dash.
pub(super) fn format(indexes: &BTreeSet<i32>) -> String {
    let mut ranges: Vec<(i32, i32)> = Vec::new();
    for index in indexes {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => ranges.push((*index, *index)),
        }
    }
    let parts: Vec<String> = ranges
        .into_iter()
        .map(|(first, last)| match last - first {
            0 => first.to_string(),
            1 => format!("{first},{last}"),
            _ => format!("{first}-{last}"),
        })
        .collect();
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges() {
        assert_eq!(format(&BTreeSet::from([0, 2, 3, 5, 6, 7])), "0,2,3,5-7");
        assert_eq!(parse("0,2-4,9,x", 5), BTreeSet::from([0, 2, 3, 4]));
        assert_eq!(parse("", 5), BTreeSet::new());
    }

    proptest! {
        #[test]
        fn text_and_back(indexes in prop::collection::btree_set(0..50_i32, 0..50)) {
            prop_assert_eq!(parse(&format(&indexes), 50), indexes);
        }
    }
}
