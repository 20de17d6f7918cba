//! The environment of a guest. Pods of a namespace have most of theirs in common, seven variables
//! for each Service and much of it all: a variable is kept once, for all guests that have it.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::collections::HashSet;
use std::collections::hash_map::Entry;
use std::sync::Arc;

/// Variables, each name once.
#[derive(Clone, Debug, Default)]
pub struct Environment(Box<[Arc<str>]>);

impl Environment {
    /// The value of a variable.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(n, _)| *n == name).map(|(_, v)| v)
    }

    /// Names and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter_map(|v| v.split_once('='))
    }

    /// Names and values to be given away.
    pub(crate) fn pairs(&self) -> Vec<(String, String)> {
        self.iter().map(|(n, v)| (n.into(), v.into())).collect()
    }
}

/// The variables of all guests, as `NAME=VALUE`.
#[derive(Debug, Default)]
pub(crate) struct Variables(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    all: HashSet<Arc<str>>,
    /// How many there were in use when last looked at.
    used: usize,
}

/// Those that nobody has any more are let go when there are this many more than were in use.
const UNUSED_MAX: usize = 1024;

impl Variables {
    /// Each name once, where it came first, with the value that came last.
    pub(crate) fn environment(&self, env: Vec<(String, String)>) -> Environment {
        let mut at: HashMap<String, usize> = HashMap::with_capacity(env.len());
        let mut values: Vec<String> = Vec::with_capacity(env.len());
        for (name, value) in env {
            let text = format!("{name}={value}");
            match at.entry(name) {
                Entry::Occupied(known) => values[*known.get()] = text,
                Entry::Vacant(new) => {
                    new.insert(values.len());
                    values.push(text);
                }
            }
        }
        let mut known = self.0.lock();
        Environment(values.iter().map(|v| known.keep(v)).collect())
    }
}

impl Known {
    fn keep(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.all.get(text) {
            return known.clone();
        }
        if self.all.len() >= self.used * 2 + UNUSED_MAX {
            self.all.retain(|v| Arc::strong_count(v) > 1);
            self.all.shrink_to_fit();
            self.used = self.all.len();
        }
        let new: Arc<str> = text.into();
        self.all.insert(new.clone());
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
        all.iter()
            .map(|(n, v)| ((*n).into(), (*v).into()))
            .collect()
    }

    #[test]
    fn a_name_has_its_first_place_and_its_last_value() {
        let variables = Variables::default();
        let env = variables.environment(pairs(&[
            ("A", "1"),
            ("B", "x=y=z"),
            ("A", "2"),
            ("EMPTY", ""),
        ]));
        assert_eq!(
            env.pairs(),
            pairs(&[("A", "2"), ("B", "x=y=z"), ("EMPTY", "")])
        );
        assert_eq!(env.get("B"), Some("x=y=z"));
        assert_eq!(env.get("EMPTY"), Some(""));
        assert_eq!(env.get("C"), None);
    }

    #[test]
    fn what_two_have_is_there_once_and_what_nobody_has_goes() {
        let variables = Variables::default();
        let one = variables.environment(pairs(&[("A", "1"), ("OWN", "one")]));
        let two = variables.environment(pairs(&[("A", "1"), ("OWN", "two")]));
        assert!(Arc::ptr_eq(&one.0[0], &two.0[0]));
        for n in 0..UNUSED_MAX * 4 {
            let _ = variables.environment(pairs(&[("N", &n.to_string())]));
        }
        assert!(variables.0.lock().all.len() <= UNUSED_MAX + 6);
        assert_eq!(two.get("OWN"), Some("two"));
    }
}
