//! Label selectors of typed objects.

use apimachinery::selector::{LabelSelector, Op, Requirement};
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use std::collections::BTreeMap;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// A selector with an operator that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("parse label selector: {operator:?} is not a valid label selector operator")]
pub struct ParseSelectorError {
    /// What stands there.
    pub operator: String,
}

/// A selector ready to match; an empty one matches everything. Whether an absent one
/// matches all or nothing is the caller's to know.
///
/// # Errors
/// For an unknown operator.
pub fn parse(selector: &meta::LabelSelector) -> Result<LabelSelector, ParseSelectorError> {
    let mut requirements = of_map(selector.match_labels.as_ref()).requirements;
    for expression in selector.match_expressions.iter().flatten() {
        let values = expression.values.clone().unwrap_or_default();
        let op = match expression.operator.as_str() {
            "In" => Op::In(values),
            "NotIn" => Op::NotIn(values),
            "Exists" => Op::Exists,
            "DoesNotExist" => Op::DoesNotExist,
            other => {
                return Err(ParseSelectorError {
                    operator: other.to_owned(),
                });
            }
        };
        requirements.push(Requirement {
            key: expression.key.clone(),
            op,
        });
    }
    Ok(LabelSelector { requirements })
}

/// The selector that asks for all of these labels; for none it matches everything.
pub fn of_map(labels: Option<&Labels>) -> LabelSelector {
    LabelSelector {
        requirements: labels
            .into_iter()
            .flatten()
            .map(|(key, value)| Requirement {
                key: key.clone(),
                op: Op::In(vec![value.clone()]),
            })
            .collect(),
    }
}

/// Whether an object's labels satisfy a selector.
pub fn matches(selector: &LabelSelector, labels: Option<&Labels>) -> bool {
    selector.matches(|key| labels?.get(key).map(String::as_str))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typed_selectors_match_as_their_text_form() {
        let typed: meta::LabelSelector = serde_json::from_value(serde_json::json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [
                {"key": "tier", "operator": "NotIn", "values": ["old"]},
                {"key": "canary", "operator": "DoesNotExist"},
            ],
        }))
        .unwrap();
        let selector = parse(&typed).unwrap();
        let labels = |pairs: &[(&str, &str)]| -> Labels {
            pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect()
        };
        assert!(matches(&selector, Some(&labels(&[("app", "web")]))));
        assert!(!matches(
            &selector,
            Some(&labels(&[("app", "web"), ("tier", "old")]))
        ));
        assert!(!matches(
            &selector,
            Some(&labels(&[("app", "web"), ("canary", "")]))
        ));
        assert!(!matches(&selector, None));
        assert!(matches(&of_map(None), None));
    }
}
