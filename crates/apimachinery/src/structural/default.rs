//! Defaults of custom resources: filled in where the parent is there and the field is not.

use crate::schema::Rule;
use crate::schema::{Schema, Struct, Type, TypeId};
use serde_json::Value;

/// Fills in what a value lacks. A `null` where the schema has a default and no `nullable`
/// counts as lacking.
pub fn default(schema: &Schema, ty: TypeId, value: &mut Value) {
    if !schema.is_custom(ty) {
        return;
    }
    match (schema.get(ty), value) {
        (Type::Struct(def), Value::Object(map)) => {
            for field in def.fields.iter().filter(|f| f.default.is_some()) {
                let nullable = schema.is_custom(field.ty) && is_nullable(schema, field.ty);
                if map
                    .get(&*field.name)
                    .is_none_or(|v| v.is_null() && !nullable)
                    && let Some(value) = &field.default
                {
                    map.insert(field.name.to_string(), value.clone());
                }
            }
            for (name, value) in map.iter_mut() {
                if let Some(field) = Struct::field(def, name) {
                    default(schema, field.ty, value);
                }
            }
        }
        (Type::Map(of), Value::Object(map)) => {
            for value in map.values_mut() {
                default(schema, *of, value);
            }
        }
        (Type::List(list), Value::Array(items)) => {
            for item in items {
                default(schema, list.item, item);
            }
        }
        _ => {}
    }
}

/// Whether `null` is a value of this type.
pub(super) fn is_nullable(schema: &Schema, ty: TypeId) -> bool {
    schema.rules(ty).iter().any(|r| matches!(r, Rule::Nullable))
}
