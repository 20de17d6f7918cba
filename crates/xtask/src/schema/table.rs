//! Writes the table that `apimachinery::schema::table` reads; the format is described there.

use super::model::{Field, ListKind, Model, Ty};
use anyhow::Result;
use flate2::{Compression, write::ZlibEncoder};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write as _;

/// Both files.
pub(crate) struct Written {
    pub(crate) table: Vec<u8>,
    pub(crate) docs: Vec<u8>,
}

/// Encodes a model.
pub(crate) fn write(model: &Model) -> Result<Written> {
    let mut types: BTreeMap<Ty, u32> = BTreeMap::new();
    for name in model.structs.keys() {
        let next = types.len() as u32;
        types.insert(Ty::Ref(name.clone()), next);
    }
    for def in model.structs.values() {
        for field in def.fields.values() {
            number(&field.ty, &mut types);
        }
    }
    let strings = strings(model);
    let index: HashMap<&str, u64> = strings
        .iter()
        .zip(0..)
        .map(|(s, i)| (s.as_str(), i))
        .collect();
    let mut out = Writer::default();
    out.number(strings.len() as u64);
    for s in &strings {
        out.number(s.len() as u64);
        out.bytes.extend_from_slice(s.as_bytes());
    }
    let mut by_id: Vec<(&Ty, u32)> = types.iter().map(|(t, i)| (t, *i)).collect();
    by_id.sort_by_key(|(_, id)| *id);
    out.number(by_id.len() as u64);
    for (ty, _) in by_id {
        out.ty(ty, model, &types, &index);
    }
    out.number(model.kinds.len() as u64);
    for (kind, name) in &model.kinds {
        out.number(index[kind.group.as_str()]);
        out.number(index[kind.version.as_str()]);
        out.number(index[kind.kind.as_str()]);
        out.number(u64::from(types[&Ty::Ref(name.clone())]));
    }
    Ok(Written {
        table: compress(&out.bytes)?,
        docs: compress(&docs(model))?,
    })
}

fn compress(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

fn number(ty: &Ty, types: &mut BTreeMap<Ty, u32>) {
    if types.contains_key(ty) {
        return;
    }
    if let Ty::Map(item) | Ty::List { item, .. } = ty {
        number(item, types);
    }
    let next = types.len() as u32;
    types.insert(ty.clone(), next);
}

/// All strings of the table, each once.
fn strings(model: &Model) -> Vec<String> {
    let mut set = BTreeSet::new();
    for def in model.structs.values() {
        set.insert(def.name.clone());
        for (name, field) in &def.fields {
            set.insert(name.clone());
            if let Some(default) = &field.default {
                set.insert(default.to_string());
            }
            let mut ty = &field.ty;
            while let Ty::Map(item) | Ty::List { item, .. } = ty {
                if let Ty::List {
                    kind, merge_key, ..
                } = ty
                {
                    set.extend(merge_key.clone());
                    if let ListKind::Map(keys) = kind {
                        set.extend(keys.iter().cloned());
                    }
                }
                ty = item;
            }
            if let Ty::Union(name) = ty {
                set.insert(name.clone());
            }
        }
    }
    for kind in model.kinds.keys() {
        set.extend([kind.group.clone(), kind.version.clone(), kind.kind.clone()]);
    }
    set.into_iter().collect()
}

/// Distinct texts, then for each struct its own and its fields' as indices; 0 is no text.
fn docs(model: &Model) -> Vec<u8> {
    let mut texts: Vec<&str> = vec![""];
    let mut index: HashMap<&str, u64> = HashMap::from([("", 0)]);
    let mut places = Writer::default();
    for def in model.structs.values() {
        let fields = def.fields.values().map(|f| &f.description);
        for text in std::iter::once(&def.description).chain(fields) {
            let at = *index.entry(text).or_insert_with(|| {
                texts.push(text);
                texts.len() as u64 - 1
            });
            places.number(at);
        }
    }
    let mut out = Writer::default();
    out.number(texts.len() as u64);
    for text in texts {
        out.number(text.len() as u64);
        out.bytes.extend_from_slice(text.as_bytes());
    }
    out.bytes.extend_from_slice(&places.bytes);
    out.bytes
}

#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn number(&mut self, mut n: u64) {
        while n > 0x7f {
            self.bytes.push((n as u8 & 0x7f) | 0x80);
            n >>= 7;
        }
        self.bytes.push(n as u8);
    }

    fn ty(
        &mut self,
        ty: &Ty,
        model: &Model,
        types: &BTreeMap<Ty, u32>,
        strings: &HashMap<&str, u64>,
    ) {
        match ty {
            Ty::Scalar(n) => self.number(*n as u64),
            Ty::Any => self.number(16),
            Ty::Union(name) => {
                self.number(17);
                self.number(strings[name.as_str()]);
            }
            Ty::Map(item) => {
                self.number(18);
                self.number(u64::from(types[&**item]));
            }
            Ty::List {
                item,
                kind,
                merge_key,
            } => {
                self.number(19);
                self.number(u64::from(types[&**item]));
                match kind {
                    ListKind::Atomic => self.number(0),
                    ListKind::Set => self.number(1),
                    ListKind::Map(keys) => {
                        self.number(1 + keys.len() as u64);
                        for key in keys {
                            self.number(strings[key.as_str()]);
                        }
                    }
                }
                self.number(merge_key.as_ref().map_or(0, |k| 1 + strings[k.as_str()]));
            }
            Ty::Ref(name) => {
                let def = &model.structs[name];
                self.number(20);
                self.number(strings[name.as_str()]);
                self.number(u64::from(def.atomic));
                self.number(def.fields.len() as u64);
                for (name, field) in &def.fields {
                    self.field(name, field, types, strings);
                }
            }
        }
    }

    fn field(
        &mut self,
        name: &str,
        field: &Field,
        types: &BTreeMap<Ty, u32>,
        strings: &HashMap<&str, u64>,
    ) {
        self.number(strings[name]);
        self.number(u64::from(types[&field.ty]));
        let flags = [
            field.required,
            field.omit_zero,
            field.atomic,
            field.merge,
            field.retain_keys,
            field.default.is_some(),
            !field.inline.is_empty(),
        ];
        let flags = flags
            .iter()
            .enumerate()
            .fold(0u64, |all, (i, set)| all | u64::from(*set) << i);
        self.number(flags);
        self.number(u64::from(field.number));
        if !field.inline.is_empty() {
            for i in 0..2 {
                self.number(field.inline.get(i).copied().unwrap_or(0).into());
            }
        }
        if let Some(default) = &field.default {
            self.number(strings[default.to_string().as_str()]);
        }
    }
}
