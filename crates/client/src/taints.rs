//! Taints of nodes and the tolerations of pods.

use k8s_openapi::api::core::v1::{Pod, Taint, Toleration};

/// Whether a toleration covers a taint.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    let tolerated = toleration.value.as_deref().unwrap_or_default();
    let value = taint.value.as_deref().unwrap_or_default();
    let number = |text: &str| text.parse::<i64>().ok();
    (effect.is_empty() || effect == taint.effect)
        && (key.is_empty() || key == taint.key)
        && match toleration.operator.as_deref().unwrap_or_default() {
            "" | "Equal" => tolerated == value,
            "Exists" => true,
            "Lt" => number(value).is_some() && number(value) < number(tolerated),
            "Gt" => number(tolerated).is_some() && number(value) > number(tolerated),
            _ => false,
        }
}

/// The tolerations of a pod.
pub fn tolerations(pod: &Pod) -> &[Toleration] {
    pod.spec
        .as_ref()
        .and_then(|s| s.tolerations.as_deref())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_value_effect_and_operator_decide() {
        let taint = |key: &str, value: &str, effect: &str| Taint {
            key: key.into(),
            value: Some(value.into()),
            effect: effect.into(),
            time_added: None,
        };
        let check = |operator: &str, key: &str, value: &str, effect: &str, taint: &Taint| {
            let some = |s: &str| (!s.is_empty()).then(|| s.to_owned());
            tolerates(
                &Toleration {
                    key: some(key),
                    operator: some(operator),
                    value: some(value),
                    effect: some(effect),
                    toleration_seconds: None,
                },
                taint,
            )
        };
        let gpu = taint("gpu", "2", "NoSchedule");
        assert!(check("Exists", "", "", "", &gpu));
        assert!(check("Exists", "gpu", "", "NoSchedule", &gpu));
        assert!(!check("Exists", "gpu", "", "NoExecute", &gpu));
        assert!(check("Equal", "gpu", "2", "", &gpu));
        assert!(check("", "gpu", "2", "", &gpu));
        assert!(!check("Equal", "gpu", "3", "", &gpu));
        assert!(check("Lt", "gpu", "3", "", &gpu));
        assert!(!check("Gt", "gpu", "3", "", &gpu));
        assert!(!check("Gt", "gpu", "x", "", &gpu));
        assert!(!check("Is", "gpu", "2", "", &gpu));
    }
}
