//! Descriptions of the built-in types and fields, kept compressed until someone asks.

use super::table::{Input, TableError, inflate};
use super::{Schema, Type};
use std::collections::HashMap;

/// Descriptions by type and field. About 1.5 MB: drop it after use.
#[derive(Debug, Default)]
pub struct Descriptions {
    texts: Vec<Box<str>>,
    /// Struct name to the index of its own text; its fields' follow in their order.
    places: HashMap<Box<str>, Vec<u32>>,
}

impl Descriptions {
    pub(super) fn builtin() -> Self {
        read(include_bytes!("builtin.docs"), Schema::builtin())
            .expect("the committed descriptions are well-formed, as the tests show")
    }

    /// What a struct is; empty if nobody says.
    pub fn of(&self, name: &str) -> &str {
        self.at(name, 0)
    }

    /// What a struct's field is; `index` is its place in [`super::Struct::fields`].
    pub fn of_field(&self, name: &str, index: usize) -> &str {
        self.at(name, index + 1)
    }

    fn at(&self, name: &str, index: usize) -> &str {
        self.places
            .get(name)
            .and_then(|p| p.get(index))
            .and_then(|i| self.texts.get(*i as usize))
            .map_or("", |t| t)
    }
}

fn read(bytes: &[u8], schema: &Schema) -> Result<Descriptions, TableError> {
    let bytes = inflate(bytes)?;
    let mut input = Input { rest: &bytes };
    let count = input.count()?;
    let texts = (0..count)
        .map(|_| Ok(input.text()?.into()))
        .collect::<Result<_, TableError>>()?;
    let mut places = HashMap::new();
    for ty in &schema.types {
        let Type::Struct(s) = ty else { continue };
        let own = (0..=s.fields.len())
            .map(|_| u32::try_from(input.number()?).map_err(|_| TableError::Malformed))
            .collect::<Result<_, _>>()?;
        places.insert(s.name.clone(), own);
    }
    Ok(Descriptions { texts, places })
}
