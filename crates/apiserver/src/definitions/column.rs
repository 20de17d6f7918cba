//! Printed columns of custom resources (`additionalPrinterColumns`).

use apimachinery::json_path::JsonPath;
use serde_json::{Value, json};

/// One column.
#[derive(Debug)]
pub(crate) struct Column {
    name: Box<str>,
    kind: Box<str>,
    format: Box<str>,
    description: Box<str>,
    priority: i64,
    path: JsonPath,
}

impl Column {
    /// The columns of a version; its age when it states none.
    pub(super) fn of_version(version: &Value) -> Box<[Column]> {
        let stated = version["additionalPrinterColumns"].as_array();
        let text = |v: &Value| Box::from(v.as_str().unwrap_or_default());
        match stated.filter(|c| !c.is_empty()) {
            Some(columns) => columns
                .iter()
                .filter_map(|c| {
                    Some(Self {
                        name: text(&c["name"]),
                        kind: text(&c["type"]),
                        format: text(&c["format"]),
                        description: text(&c["description"]),
                        priority: c["priority"].as_i64().unwrap_or(0),
                        path: JsonPath::parse(c["jsonPath"].as_str()?).ok()?,
                    })
                })
                .collect(),
            None => JsonPath::parse(".metadata.creationTimestamp")
                .ok()
                .map(|path| Self {
                    name: "Age".into(),
                    kind: "date".into(),
                    format: "".into(),
                    description: "".into(),
                    priority: 0,
                    path,
                })
                .into_iter()
                .collect(),
        }
    }

    /// As a Table's `columnDefinitions` have it.
    pub(crate) fn definition(&self) -> Value {
        json!({
            "name": &*self.name, "type": &*self.kind, "format": &*self.format,
            "description": &*self.description, "priority": self.priority,
        })
    }

    /// The cell of an object: `null` where it has nothing, or something of another type.
    pub(crate) fn cell(&self, object: &Value, now: i64) -> Value {
        let Some(found) = self.path.first(object) else {
            return Value::Null;
        };
        match (&*self.kind, found) {
            (_, Value::Null) => Value::Null,
            ("string", Value::String(s)) => s.as_str().into(),
            ("string", other) => other.to_string().into(),
            ("integer", Value::Number(n)) => match (n.as_i64(), n.as_f64()) {
                (Some(n), _) => n.into(),
                (None, Some(f)) => (f as i64).into(),
                _ => Value::Null,
            },
            ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => found.clone(),
            ("date", Value::String(s)) => match s.parse::<jiff::Timestamp>() {
                Ok(t) => api::human_duration(now - t.as_second()).into(),
                Err(_) => "<invalid>".into(),
            },
            _ => Value::Null,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_have_their_columns_type() {
        let version = json!({"additionalPrinterColumns": [
            {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status"},
            {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas"},
            {"name": "Names", "type": "string", "jsonPath": ".spec.names"},
            {"name": "Until", "type": "date", "jsonPath": ".status.until"},
            {"name": "On", "type": "boolean", "jsonPath": ".spec.replicas"},
        ]});
        let object = json!({"spec": {"replicas": 3, "names": ["a"]}, "status": {
            "until": "1970-01-01T00:01:00Z",
            "conditions": [{"type": "Other", "status": "False"}, {"type": "Ready", "status": "True"}],
        }});
        let cells = |v: &Value| -> Vec<Value> {
            let columns = Column::of_version(&version);
            columns.iter().map(|c| c.cell(v, 180)).collect()
        };
        assert_eq!(
            Value::from(cells(&object)),
            json!(["True", 3, "[\"a\"]", "2m", null])
        );
        assert_eq!(
            Value::from(cells(&json!({}))),
            json!([null, null, null, null, null])
        );
        assert_eq!(Column::of_version(&json!({})).len(), 1);
    }
}
