//! Custom resources: the table of what `CustomResourceDefinition` objects define.
//!
//! The watch cache keeps the table in step with the definitions it holds: whoever has seen a
//! definition's write finds its resource here. Lookups take no lock. [`custom`] is one
//! version of a resource, [`mod@column`] its printed columns, [`settle`] accepts names and
//! establishes, [`cleanup`] empties what is being deleted.
//!
//! Start with [`Definitions`].

mod cleanup;
mod column;
mod custom;
mod settle;

pub(crate) use cleanup::FINALIZER;
pub(crate) use custom::{Custom, Definition};
pub(crate) use settle::{set as set_condition, start};

use crate::cache::Object;
use crate::row::Row;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use tokio::sync::Notify;

/// Group and plural of definitions themselves.
pub(crate) const GROUP: &str = "apiextensions.k8s.io";
pub(crate) const PLURAL: &str = "customresourcedefinitions";

/// Definitions of a group by plural.
type Group = BTreeMap<Box<str>, Arc<Definition>>;

/// What is defined.
#[derive(Debug, Default)]
pub(crate) struct Definitions {
    groups: ArcSwap<HashMap<Box<str>, Arc<Group>>>,
    /// Names of definitions that [`settle`] has to look at: as many as there are definitions
    /// at most. Guards nothing else.
    unsettled: Mutex<BTreeSet<String>>,
    changed: Notify,
}

impl Definitions {
    /// Takes a definition in, in place of the one of its name. `None` when it defines nothing
    /// (it lacks what validation asks for).
    pub(crate) fn define(&self, object: &Arc<Object>) -> Option<Arc<Definition>> {
        let value = object.value();
        let group = value["spec"]["group"].as_str()?;
        let plural = value["spec"]["names"]["plural"].as_str()?;
        let before = self.get(group, plural);
        let made = Arc::new(Definition::parse(&value, object, before.as_deref())?);
        self.change(group, |g| {
            g.insert(plural.into(), made.clone());
        });
        self.look_at(&made.name);
        Some(made)
    }

    /// Drops a definition; the one that was there.
    pub(crate) fn remove(&self, group: &str, plural: &str) -> Option<Arc<Definition>> {
        let gone = self.get(group, plural)?;
        self.change(group, |g| {
            g.remove(plural);
        });
        // Its names are free now.
        for other in self.of_group(group) {
            self.look_at(&other.name);
        }
        Some(gone)
    }

    fn change(&self, group: &str, f: impl Fn(&mut Group)) {
        self.groups.rcu(|all| {
            let mut all = HashMap::clone(all);
            let mut inner = all.get(group).map(|g| Group::clone(g)).unwrap_or_default();
            f(&mut inner);
            if inner.is_empty() {
                all.remove(group);
            } else {
                all.insert(group.into(), Arc::new(inner));
            }
            all
        });
    }

    /// Asks [`settle`] to look at a definition.
    pub(crate) fn look_at(&self, name: &str) {
        self.unsettled.lock().insert(name.to_owned());
        self.changed.notify_one();
    }

    /// The definition of a group's plural, served or not.
    pub(crate) fn get(&self, group: &str, plural: &str) -> Option<Arc<Definition>> {
        self.groups.load().get(group)?.get(plural).cloned()
    }

    /// The definition with this object name.
    pub(crate) fn named(&self, name: &str) -> Option<Arc<Definition>> {
        let (plural, group) = name.split_once('.')?;
        self.get(group, plural)
    }

    /// All definitions of a group.
    pub(crate) fn of_group(&self, group: &str) -> Vec<Arc<Definition>> {
        let groups = self.groups.load();
        groups
            .get(group)
            .map(|g| g.values().cloned().collect())
            .unwrap_or_default()
    }

    /// Names of all definitions.
    pub(crate) fn all(&self) -> Vec<Arc<Definition>> {
        let groups = self.groups.load();
        groups.values().flat_map(|g| g.values().cloned()).collect()
    }

    /// The row that serves a group's version of a plural.
    pub(crate) fn row(&self, group: &str, version: &str, plural: &str) -> Option<Row> {
        let groups = self.groups.load();
        let definition = groups.get(group)?.get(plural)?;
        definition.served(version).map(Row::Custom)
    }

    /// Everything that is served, in order of group and plural.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let groups = self.groups.load();
        let mut names: Vec<&Box<str>> = groups.keys().collect();
        names.sort();
        names
            .into_iter()
            .filter_map(|g| groups.get(g))
            .flat_map(|g| g.values())
            .flat_map(|d| d.all_served())
            .map(Row::Custom)
            .collect()
    }
}
