//! Walks of values by schema: which fields there are, merge, difference, removal.
//!
//! The rules are those of `structured-merge-diff`: structs and maps are merged
//! by field, lists by their kind, and what is atomic is one leaf. What has no
//! schema is taken as it looks: objects by field, everything else a leaf.

use super::fieldset::{Element, Node, Set, field, keyed};
use crate::quantity::Quantity;
use crate::schema::{Field, ListKind, Scalar, Schema, Type, TypeId};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap};

/// Fields of Go structs that are always there: that they come or go with their first or last
/// part is no change of ownership of the field itself.
const EVER_PRESENT: &[&str] = &[
    "metadata",
    "spec",
    "status",
    "template",
    "strategy",
    "updateStrategy",
    "jobTemplate",
    "resources",
    "roleRef",
    "involvedObject",
    "source",
    "names",
    "loadBalancer",
    "nodeInfo",
    "daemonEndpoints",
    "scaleTargetRef",
    "target",
];

/// A type at a place: its schema, and whether the field makes it atomic.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    ty: Option<TypeId>,
    atomic: bool,
    /// It is a field of a struct, by the schema.
    named: bool,
    scalar: Option<Scalar>,
}

/// What a value is at its place.
enum Shape<'a> {
    Leaf,
    Object(&'a Map<String, Value>),
    Set(&'a [Value]),
    Keyed(&'a [Value], &'a [Box<str>], TypeId),
}

/// What changed between two values.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    /// Paths added or modified.
    pub(super) changed: Set,
    /// Paths removed.
    pub(super) removed: Set,
}

/// A value that can't be keyed.
pub(super) type Unkeyable = String;

#[derive(Clone, Copy)]
pub(super) struct Walker<'s> {
    pub(super) schema: &'s Schema,
}

impl<'s> Walker<'s> {
    pub(super) fn root(&self, ty: TypeId) -> Place {
        Place {
            ty: Some(ty),
            ..Place::default()
        }
    }

    fn shape<'v>(&self, place: Place, v: &'v Value) -> Shape<'v>
    where
        's: 'v,
    {
        if place.atomic {
            return Shape::Leaf;
        }
        match (place.ty.map(|t| self.schema.get(t)), v) {
            (Some(Type::Struct(s)), Value::Object(m)) if !s.atomic => Shape::Object(m),
            (Some(Type::Map(_) | Type::Any) | None, Value::Object(m)) => Shape::Object(m),
            (Some(Type::List(l)), Value::Array(a)) => match &l.kind {
                ListKind::Atomic => Shape::Leaf,
                ListKind::Set => Shape::Set(a),
                ListKind::Map(keys) => Shape::Keyed(a, keys, l.item),
            },
            _ => Shape::Leaf,
        }
    }

    fn of_type(&self, ty: TypeId) -> Place {
        let scalar = match self.schema.get(ty) {
            Type::Scalar(s) => Some(*s),
            _ => None,
        };
        Place {
            ty: Some(ty),
            atomic: false,
            named: false,
            scalar,
        }
    }

    fn child(&self, place: Place, name: &str) -> Place {
        match place.ty.map(|t| self.schema.get(t)) {
            Some(Type::Struct(s)) => match s.field(name) {
                Some(Field { ty, atomic, .. }) => Place {
                    atomic: *atomic,
                    named: true,
                    ..self.of_type(*ty)
                },
                None => Place::default(),
            },
            Some(Type::Map(value)) => self.of_type(*value),
            _ => Place::default(),
        }
    }

    fn item(&self, place: Place) -> Place {
        match place.ty.map(|t| self.schema.get(t)) {
            Some(Type::List(l)) => self.of_type(l.item),
            _ => Place::default(),
        }
    }

    /// The place that an element leads to.
    fn descend(&self, place: Place, e: &str) -> Place {
        match e.strip_prefix("f:") {
            Some(name) => self.child(place, name),
            None => self.item(place),
        }
    }

    /// How a keyed list tells this item apart.
    fn key(&self, keys: &[Box<str>], item_type: TypeId, item: &Value) -> Option<Element> {
        let fields = self.schema.get_struct(item_type);
        let mut pairs: Vec<(&str, &Value)> = keys
            .iter()
            .filter_map(|k| {
                let given = item.get(&**k).filter(|v| !v.is_null());
                let value = given.or_else(|| fields.and_then(|s| s.field(k)?.default.as_ref()))?;
                Some((&**k, value))
            })
            .collect();
        if pairs.is_empty() {
            return None;
        }
        pairs.sort_unstable_by_key(|(k, _)| *k);
        Some(keyed(pairs.into_iter()))
    }

    /// The elements of a list's items, in order; `None` for a list that is a leaf.
    fn elements(&self, shape: &Shape<'_>) -> Option<Vec<Element>> {
        match shape {
            Shape::Set(items) => Some(items.iter().map(|v| format!("v:{v}").into()).collect()),
            Shape::Keyed(items, keys, ty) => Some(
                items
                    .iter()
                    .enumerate()
                    .map(|(i, v)| {
                        self.key(keys, *ty, v)
                            .unwrap_or_else(|| format!("i:{i}").into())
                    })
                    .collect(),
            ),
            _ => None,
        }
    }

    /// The fields that a value states.
    ///
    /// # Errors
    /// For items without keys and items with the same keys, unless `lenient`.
    pub(super) fn field_set(
        &self,
        place: Place,
        v: &Value,
        lenient: bool,
    ) -> Result<Set, Unkeyable> {
        let mut path = String::new();
        self.node(place, v, lenient, &mut path).map(|n| n.children)
    }

    fn node(
        &self,
        place: Place,
        v: &Value,
        lenient: bool,
        path: &mut String,
    ) -> Result<Node, Unkeyable> {
        let shape = self.shape(place, v);
        let mut node = Node::default();
        match &shape {
            Shape::Leaf => node.member = true,
            Shape::Object(map) => {
                for (k, v) in map.iter().filter(|(_, v)| !v.is_null()) {
                    let child = self.child(place, k);
                    let length = path.len();
                    path.push('.');
                    path.push_str(k);
                    let mut n = self.node(child, v, lenient, path)?;
                    path.truncate(length);
                    n.member |= !child.named || is_empty(v);
                    if n.member || !n.children.is_empty() {
                        node.children.0.insert(field(k), n);
                    }
                }
            }
            Shape::Set(items) | Shape::Keyed(items, ..) => {
                let elements = self.elements(&shape).unwrap_or_default();
                let of_item = self.item(place);
                for (e, v) in elements.into_iter().zip(*items) {
                    if !lenient && e.starts_with("i:") {
                        return Err(self.without_keys(path, &shape));
                    }
                    let mut n = self.node(of_item, v, lenient, path)?;
                    n.member = true;
                    if !lenient && node.children.0.contains_key(&e) {
                        let mut only = Set::default();
                        only.insert(&[e]);
                        return Err(format!(
                            "{path}: duplicate entries for key {}",
                            only.paths().concat()
                        ));
                    }
                    node.children.0.insert(e, n);
                }
            }
        }
        Ok(node)
    }

    fn without_keys(&self, path: &str, shape: &Shape<'_>) -> Unkeyable {
        let keys: Vec<String> = match shape {
            Shape::Keyed(_, keys, _) => keys.iter().map(|k| format!("{k:?}")).collect(),
            _ => Vec::new(),
        };
        format!(
            "{path}: associative list with keys has an element that omits all key fields [{}] (and doesn't have default value for any key)",
            keys.join(" ")
        )
    }

    /// Merges what a configuration states into a value.
    pub(super) fn merge(&self, place: Place, live: &mut Value, config: &Value) {
        if config.is_null() {
            return;
        }
        match (self.shape(place, config), self.shape(place, live)) {
            (Shape::Object(new), Shape::Object(_)) => {
                let Some(old) = live.as_object_mut() else {
                    return;
                };
                for (k, v) in new.iter().filter(|(_, v)| !v.is_null()) {
                    match old.get_mut(k).filter(|o| !o.is_null()) {
                        Some(o) => self.merge(self.child(place, k), o, v),
                        None => {
                            old.insert(k.clone(), without_nulls(v));
                        }
                    }
                }
            }
            (Shape::Set(_) | Shape::Keyed(..), Shape::Set(_) | Shape::Keyed(..)) => {
                self.merge_list(place, live, config);
            }
            _ => {
                if !self.same(place, live, config) {
                    *live = without_nulls(config);
                }
            }
        }
    }

    /// Merges two associative lists. The configuration's order rules where both have an item;
    /// items that only the live list has keep their place among their neighbours.
    fn merge_list(&self, place: Place, live: &mut Value, config: &Value) {
        let of_item = self.item(place);
        let left = self.elements(&self.shape(place, live)).unwrap_or_default();
        let right = self
            .elements(&self.shape(place, config))
            .unwrap_or_default();
        let (Some(old), Some(new)) = (live.as_array_mut(), config.as_array()) else {
            return;
        };
        let mut slots: Vec<Option<Value>> = std::mem::take(old).into_iter().map(Some).collect();
        let mut at: HashMap<&str, Vec<usize>> = HashMap::with_capacity(left.len());
        for (i, e) in left.iter().enumerate() {
            at.entry(e).or_default().push(i);
        }
        let wanted: HashMap<&str, usize> =
            right.iter().enumerate().map(|(i, e)| (&**e, i)).collect();
        let mut shared = right.iter().filter(|e| at.contains_key(&***e));
        let mut next_shared = shared.next();
        let mut merged = vec![false; right.len()];
        let mut out = Vec::with_capacity(left.len().max(right.len()));
        let mut take = |e: &str, rhs: &Value| match at.get(e).map(Vec::as_slice) {
            Some([one]) => {
                let mut item = slots[*one].take().unwrap_or_default();
                self.merge(of_item, &mut item, rhs);
                item
            }
            // A key that is there twice can't be merged into; the configuration's item stands.
            _ => without_nulls(rhs),
        };
        let (mut l, mut r) = (0, 0);
        while l < left.len() || r < right.len() {
            if l < left.len() && r < right.len() {
                if left[l] == right[r] {
                    merged[r] = true;
                    out.push(Slot::New(take(&right[r], &new[r])));
                    (l, r) = (l + 1, r + 1);
                    next_shared = shared.next();
                    continue;
                }
                let other = next_shared.is_some_and(|n| *n != left[l]);
                if wanted.contains_key(&*left[l]) && other {
                    l += 1;
                    continue;
                }
            }
            if l < left.len() {
                match wanted.get(&*left[l]) {
                    None => {
                        out.push(Slot::Live(l));
                        l += 1;
                        continue;
                    }
                    Some(&r) if merged[r] => l += 1,
                    Some(_) => {}
                }
            }
            if r < right.len() {
                merged[r] = true;
                out.push(Slot::New(take(&right[r], &new[r])));
                if next_shared == Some(&right[r]) {
                    next_shared = shared.next();
                }
                r += 1;
            }
        }
        *old = out
            .into_iter()
            .filter_map(|slot| match slot {
                Slot::New(v) => Some(v),
                Slot::Live(i) => slots[i].take(),
            })
            .collect();
    }

    /// Whether two leaves say the same; quantities may be written in many ways.
    fn same(&self, place: Place, a: &Value, b: &Value) -> bool {
        a == b
            || (place.scalar == Some(Scalar::Quantity)
                && Quantity::from_json(a).is_some_and(|q| Some(q) == Quantity::from_json(b)))
    }

    /// What changed from `old` to `new`.
    pub(super) fn compare(&self, place: Place, old: &Value, new: &Value) -> Comparison {
        let mut out = Comparison::default();
        self.compare_at(place, Some(old), Some(new), &mut Vec::new(), &mut out);
        out
    }

    fn compare_at(
        &self,
        place: Place,
        old: Option<&Value>,
        new: Option<&Value>,
        path: &mut Vec<Element>,
        out: &mut Comparison,
    ) {
        let old = old.filter(|v| !v.is_null());
        let new = new.filter(|v| !v.is_null());
        if old == new {
            return;
        }
        let empty = |v: Option<&Value>| v.is_none_or(is_empty);
        let shape = |v: Option<&'_ Value>| v.map_or(0, |v| kind(&self.shape(place, v)));
        let (before, after) = (shape(old), shape(new));
        let leaf =
            before == LEAF || after == LEAF || (before != 0 && after != 0 && before != after);
        if leaf || (empty(old) && empty(new)) {
            match (old, new) {
                (Some(a), Some(b)) if self.same(place, a, b) => {}
                (Some(_), None) => out.removed.insert(path),
                _ => out.changed.insert(path),
            }
            return;
        }
        if before.max(after) == OBJECT {
            self.compare_objects(place, old, new, path, out);
        } else {
            self.compare_lists(place, old, new, path, out);
        }
        if path.is_empty() {
            return;
        }
        let whole = !(place.named && path.last().is_some_and(|e| EVER_PRESENT.contains(&&e[2..])));
        match (old, new) {
            (None, _) if whole => out.changed.insert(path),
            (_, None) => out.removed.insert(path),
            _ => {}
        }
    }

    fn compare_objects(
        &self,
        place: Place,
        old: Option<&Value>,
        new: Option<&Value>,
        path: &mut Vec<Element>,
        out: &mut Comparison,
    ) {
        let (old, new) = (
            old.and_then(Value::as_object),
            new.and_then(Value::as_object),
        );
        for (k, o) in old.into_iter().flatten() {
            let n = new.and_then(|m| m.get(k));
            if n != Some(o) {
                path.push(field(k));
                self.compare_at(self.child(place, k), Some(o), n, path, out);
                path.pop();
            }
        }
        for (k, n) in new.into_iter().flatten() {
            if old.is_none_or(|m| !m.contains_key(k)) {
                path.push(field(k));
                self.compare_at(self.child(place, k), None, Some(n), path, out);
                path.pop();
            }
        }
    }

    fn compare_lists<'v>(
        &self,
        place: Place,
        old: Option<&'v Value>,
        new: Option<&'v Value>,
        path: &mut Vec<Element>,
        out: &mut Comparison,
    ) {
        type Pair<'v> = (Vec<&'v Value>, Vec<&'v Value>);
        let keys = |v: Option<&Value>| {
            let elements = v.and_then(|v| self.elements(&self.shape(place, v)));
            elements.unwrap_or_default()
        };
        let (old_keys, new_keys) = (keys(old), keys(new));
        let items = |v: Option<&'v Value>| v.and_then(Value::as_array).into_iter().flatten();
        let mut both: BTreeMap<&Element, Pair<'v>> = BTreeMap::new();
        for (e, v) in old_keys.iter().zip(items(old)) {
            both.entry(e).or_default().0.push(v);
        }
        for (e, v) in new_keys.iter().zip(items(new)) {
            both.entry(e).or_default().1.push(v);
        }
        let of_item = self.item(place);
        for (e, (o, n)) in both {
            if o == n {
                continue;
            }
            path.push(e.clone());
            if o.len() > 1 || n.len() > 1 {
                // Items with one key twice are compared, and owned, as one.
                if n.is_empty() {
                    out.removed.insert(path);
                } else {
                    out.changed.insert(path);
                }
            } else {
                self.compare_at(of_item, o.first().copied(), n.first().copied(), path, out);
            }
            path.pop();
        }
    }

    /// What `last` names and none of `kept` does. A field of a struct counts as named
    /// when anything in it is.
    pub(super) fn abandoned(&self, place: Place, last: &Set, kept: &[&Set]) -> Set {
        let mut out = Set::default();
        for (e, node) in &last.0 {
            let child = self.descend(place, e);
            let stands = |n: &Node| n.member || (child.named && !n.children.is_empty());
            let theirs: Vec<&Node> = kept.iter().filter_map(|s| s.0.get(e)).collect();
            if stands(node) && !theirs.iter().any(|n| stands(n)) {
                out.0.insert(
                    e.clone(),
                    Node {
                        member: true,
                        children: Set::default(),
                    },
                );
                continue;
            }
            let theirs: Vec<&Set> = theirs.iter().map(|n| &n.children).collect();
            let children = self.abandoned(child, &node.children, &theirs);
            if !children.is_empty() {
                let member = false;
                out.0.insert(e.clone(), Node { member, children });
            }
        }
        out
    }

    /// Removes the paths of a set; what becomes empty by that goes too, unless `kept` names it.
    pub(super) fn remove(&self, place: Place, v: &mut Value, set: &Set, kept: &[&Set]) {
        if set.is_empty() {
            return;
        }
        if let Some(elements) = self.elements(&self.shape(place, v)) {
            let of_item = self.item(place);
            let mut elements = elements.into_iter();
            if let Some(items) = v.as_array_mut() {
                items.retain_mut(|item| {
                    let Some(e) = elements.next() else {
                        return true;
                    };
                    match set.0.get(&e) {
                        None => true,
                        Some(n) if n.member => false,
                        Some(n) => {
                            let (_, below) = step(kept, &e);
                            self.remove(of_item, item, &n.children, &below);
                            true
                        }
                    }
                });
            }
            return;
        }
        let Some(map) = v.as_object_mut() else { return };
        for (e, node) in &set.0 {
            let Some(name) = e.strip_prefix("f:") else {
                continue;
            };
            if node.member {
                map.remove(name);
            } else if let Some(inner) = map.get_mut(name) {
                let (named, below) = step(kept, e);
                self.remove(self.child(place, name), inner, &node.children, &below);
                if is_empty(inner) && !named {
                    map.remove(name);
                }
            }
        }
    }
}

enum Slot {
    Live(usize),
    New(Value),
}

fn is_empty(v: &Value) -> bool {
    match v {
        Value::Object(m) => m.is_empty(),
        Value::Array(a) => a.is_empty(),
        _ => false,
    }
}

/// Whether any of the sets names an element, and what they name below it.
fn step<'a>(sets: &[&'a Set], e: &str) -> (bool, Vec<&'a Set>) {
    let nodes = || sets.iter().filter_map(|s| s.0.get(e));
    (
        nodes().any(|n| n.member),
        nodes().map(|n| &n.children).collect(),
    )
}

const LEAF: u8 = 1;
const OBJECT: u8 = 2;

fn kind(shape: &Shape<'_>) -> u8 {
    match shape {
        Shape::Leaf => LEAF,
        Shape::Object(_) => OBJECT,
        Shape::Set(_) | Shape::Keyed(..) => 3,
    }
}

/// A copy without `null` fields.
pub(super) fn without_nulls(v: &Value) -> Value {
    match v {
        Value::Object(m) => Value::Object(
            m.iter()
                .filter(|(_, v)| !v.is_null())
                .map(|(k, v)| (k.clone(), without_nulls(v)))
                .collect(),
        ),
        Value::Array(a) => Value::Array(a.iter().map(without_nulls).collect()),
        other => other.clone(),
    }
}
