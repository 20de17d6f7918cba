//! Types of built-in kinds and of what definitions compile to, as expressions see them when
//! they are checked ahead of any object.

use super::{FieldType, Type, escape};
use crate::schema::{Scalar, Schema, Type as Form, TypeId};

/// How deep types go; below, anything is allowed.
const DEPTH_MAX: usize = 24;

impl Type {
    /// The type of a schema; what holds itself is open at the second turn.
    pub fn of_schema(schema: &Schema, ty: TypeId) -> Self {
        of(schema, ty, &mut Vec::new())
    }
}

fn of(schema: &Schema, id: TypeId, above: &mut Vec<TypeId>) -> Type {
    if above.len() >= DEPTH_MAX || above.contains(&id) {
        return Type::Dyn;
    }
    above.push(id);
    let made = match schema.get(id) {
        Form::Scalar(s) => match s {
            Scalar::Bool => Type::Bool,
            Scalar::Int32 | Scalar::Int64 => Type::Int,
            Scalar::Double => Type::Double,
            Scalar::Bytes => Type::Bytes(super::UNBOUNDED),
            Scalar::Time | Scalar::MicroTime => Type::Timestamp,
            Scalar::IntOrString => Type::Dyn,
            Scalar::String | Scalar::Quantity | Scalar::Duration => Type::TEXT,
        },
        Form::Struct(s) if s.preserve_unknown => Type::Dyn,
        Form::Struct(s) => {
            let fields = s.fields.iter().filter_map(|f| {
                Some(FieldType {
                    name: escape(&f.name)?.into(),
                    key: f.name.clone(),
                    ty: of(schema, f.ty, above),
                })
            });
            let fields = fields.collect();
            Type::object(&s.name, fields)
        }
        Form::Map(value) => Type::map(Type::TEXT, of(schema, *value, above)),
        Form::List(l) => Type::list(of(schema, l.item, above)),
        Form::Any => Type::Dyn,
    };
    above.pop();
    made
}
