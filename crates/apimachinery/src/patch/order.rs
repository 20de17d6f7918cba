//! The order of a merged list: items that the patch names follow the patch's
//! order, the others the server's, interleaved by where they stood before.

use serde_json::Value;

/// What tells items apart: a key field of objects, or the scalar itself.
#[derive(Clone, Copy)]
pub(super) struct ItemKey<'a>(pub(super) Option<&'a str>);

impl ItemKey<'_> {
    pub(super) fn of<'v>(&self, item: &'v Value) -> Option<&'v Value> {
        match self.0 {
            Some(key) => item.get(key),
            None => Some(item),
        }
    }

    pub(super) fn position(&self, list: &[Value], item: &Value) -> Option<usize> {
        let wanted = self.of(item)?;
        list.iter().position(|i| self.of(i) == Some(wanted))
    }
}

/// Orders `merged`. `wanted` is the order asked for, `server` the list before the patch.
pub(super) fn normalize(
    merged: Vec<Value>,
    wanted: &[Value],
    server: &[Value],
    key: ItemKey<'_>,
) -> Vec<Value> {
    let (mut named, mut others) = (Vec::new(), Vec::new());
    for item in merged {
        match key.position(wanted, &item) {
            Some(at) => named.push((at, item)),
            None => others.push((key.position(server, &item), item)),
        }
    }
    named.sort_by_key(|(at, _)| *at);
    // Items unknown to the server come last.
    others.sort_by_key(|(at, _)| at.unwrap_or(usize::MAX));

    let mut out = Vec::with_capacity(named.len() + others.len());
    let mut named = named.into_iter().map(|(_, i)| i).peekable();
    let mut others = others.into_iter().peekable();
    loop {
        match (others.peek(), named.peek()) {
            (None, _) => {
                out.extend(named);
                return out;
            }
            (_, None) => {
                out.extend(others.map(|(_, i)| i));
                return out;
            }
            (Some((left, _)), Some(right)) => {
                let right = key.position(server, right);
                let before = matches!((left, right), (Some(l), Some(r)) if *l < r);
                if before {
                    out.extend(others.next().map(|(_, i)| i));
                } else {
                    out.extend(named.next());
                }
            }
        }
    }
}
