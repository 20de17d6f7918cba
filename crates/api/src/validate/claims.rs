//! Claims of devices, their templates and classes: what is asked for, and which of them
//! pods use.
//!
//! The reference is `pkg/apis/resource/validation` of upstream. What devices there are is in
//! [`super::slices`], what claims are given in [`super::claim_status`].

use super::{Check, Unique, storage::driver};
use crate::access::{at, int, is_empty, list, text};
use apimachinery::cel::{Env, FieldType, MapType, Opaque, Program, Type};
use apimachinery::names;
use apimachinery::status::FieldError;
use serde_json::Value;
use std::collections::HashSet;
use std::sync::Arc;

/// Requests, constraints, configurations, selectors and results of one claim.
pub(super) const ITEMS_MAX: usize = 32;
const SUBREQUESTS_MAX: usize = 8;
const TOLERATIONS_MAX: usize = 16;
const POOL_BYTES_MAX: usize = 253;
/// Parameters, data and expressions.
const OPAQUE_BYTES_MAX: usize = 10 * 1024;
const EXPRESSION_COST_MAX: u64 = 1_000_000;
/// Longest domain and name of an attribute, and its longest value.
const DOMAIN_BYTES_MAX: u64 = 63;
const ID_BYTES_MAX: usize = 32;
pub(super) const VALUE_BYTES_MAX: usize = 64;

/// A new `ResourceClaim`.
pub(crate) fn claim(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    devices(&mut c, "spec.devices", at(v, "spec.devices"));
    c.0
}

/// A new `ResourceClaimTemplate`.
pub(crate) fn template(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    c.labels("spec.metadata.labels", at(v, "spec.metadata.labels"));
    devices(&mut c, "spec.spec.devices", at(v, "spec.spec.devices"));
    c.0
}

/// `DeviceClass`.
pub(crate) fn class(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    selectors(&mut c, "spec", at(v, "spec"));
    let path = "spec.config";
    c.each(path, list(v, path), ITEMS_MAX, |c, path, one| {
        opaque(c, path, one);
    });
    let extended = at(v, "spec.extendedResourceName");
    if let Some(name) = extended.as_str()
        && !is_extended(name)
    {
        let detail = "must be a valid extended resource name";
        c.invalid("spec.extendedResourceName", extended, detail);
    }
    c.0
}

fn is_extended(name: &str) -> bool {
    let native = !name.contains('/') || name.contains("kubernetes.io/");
    let quota = format!("requests.{name}");
    !native && !name.starts_with("requests.") && names::qualified_name(&quota).is_ok()
}

fn devices(c: &mut Check, path: &str, v: &Value) {
    let requests = list(v, "requests");
    let path_of = |name: &str| format!("{path}.{name}");
    let constraints = list(v, "constraints");
    c.each(&path_of("requests"), requests, ITEMS_MAX, |c, path, one| {
        c.rule(
            format!("{path}.name"),
            at(one, "name"),
            names::dns1123_label,
        );
        let (exactly, first) = (at(one, "exactly"), list(one, "firstAvailable"));
        const ONE: &str = "exactly one of `exactly` or `firstAvailable` is required";
        match (exactly.is_null(), first.is_empty()) {
            (true, true) => c.required(path, ONE),
            (false, false) => {
                let detail = format!("{ONE}, but multiple fields are set");
                c.invalid(path, &Value::Null, detail);
            }
            (false, true) => {
                let named = text(one, "name").to_owned();
                request(c, &format!("{path}.exactly"), exactly, constraints, &named);
            }
            (true, false) => {
                let path = format!("{path}.firstAvailable");
                c.each(&path, first, SUBREQUESTS_MAX, |c, path, sub| {
                    c.rule(
                        format!("{path}.name"),
                        at(sub, "name"),
                        names::dns1123_label,
                    );
                    let named = format!("{}/{}", text(one, "name"), text(sub, "name"));
                    request(c, path, sub, constraints, &named);
                });
                distinct(c, &path, first, SUBREQUESTS_MAX, |s| {
                    text(s, "name").to_owned()
                });
            }
        }
    });
    distinct(c, &path_of("requests"), requests, ITEMS_MAX, |r| {
        text(r, "name").to_owned()
    });
    let known = Requests::of(v);
    c.each(
        &path_of("constraints"),
        constraints,
        ITEMS_MAX,
        |c, path, one| constraint(c, path, one, &known),
    );
    let config = list(v, "config");
    c.each(&path_of("config"), config, ITEMS_MAX, |c, path, one| {
        known.check_all(c, path, one);
        opaque(c, path, one);
    });
}

/// A request or one of those of which the first that can be had is taken.
fn request(c: &mut Check, path: &str, v: &Value, constraints: &[Value], named: &str) {
    c.required_rule(
        format!("{path}.deviceClassName"),
        at(v, "deviceClassName"),
        names::dns1123_subdomain,
    );
    selectors(c, path, v);
    let mut seen = Unique::default();
    for (i, one) in list(v, "derivedAttributes").iter().enumerate() {
        let path = format!("{path}.derivedAttributes[{i}]");
        let name = at(one, "name");
        if is_empty(name) {
            c.required(format!("{path}.name"), "");
        } else if !is_constrained(constraints, name, named) {
            let detail = "must be referenced by at least one matchAttribute or distinctAttribute constraint targeting this request";
            c.invalid(format!("{path}.name"), name, detail);
        }
        if is_empty(at(one, "expression")) {
            c.required(format!("{path}.expression"), "");
        } else {
            expression(
                c,
                format!("{path}.expression"),
                at(one, "expression"),
                false,
            );
        }
        seen.check(c, path, name);
    }
    let (mode, count) = (at(v, "allocationMode"), at(v, "count"));
    match mode.as_str().unwrap_or_default() {
        "All" if int(v, "count") != 0 => {
            let detail = "must not be specified when allocationMode is 'All'";
            c.invalid(format!("{path}.count"), count, detail);
        }
        "ExactCount" if int(v, "count") <= 0 => {
            let shown = Value::from(int(v, "count"));
            c.invalid(format!("{path}.count"), &shown, "must be greater than zero");
        }
        "All" | "ExactCount" => {}
        _ => c.add(FieldError::not_supported(
            format!("{path}.allocationMode"),
            mode,
            &["All", "ExactCount"],
        )),
    }
    tolerations(c, path, v);
}

fn is_constrained(constraints: &[Value], name: &Value, named: &str) -> bool {
    let parent = named.split_once('/').map(|(parent, _)| parent);
    constraints.iter().any(|one| {
        let to = list(one, "requests");
        let mut attributes = [at(one, "matchAttribute"), at(one, "distinctAttribute")].into_iter();
        attributes.find(|a| !a.is_null()) == Some(name)
            && (to.is_empty() || to.iter().any(|r| r == named || r.as_str() == parent))
    })
}

pub(super) fn tolerations(c: &mut Check, path: &str, v: &Value) {
    let path = format!("{path}.tolerations");
    c.each(
        &path,
        list(v, "tolerations"),
        TOLERATIONS_MAX,
        |c, path, t| {
            if !is_empty(at(t, "key")) {
                c.rule(format!("{path}.key"), at(t, "key"), names::qualified_name);
            }
            let value = at(t, "value");
            match text(t, "operator") {
                "Exists" if !is_empty(value) => {
                    let detail = "must be empty for operator `Exists`";
                    c.invalid(format!("{path}.value"), value, detail);
                }
                "Equal" => c.rule(format!("{path}.value"), value, names::label_value),
                _ => {}
            }
            let operators = &["Equal", "Exists"];
            c.one_of(format!("{path}.operator"), at(t, "operator"), operators);
            c.optional_one_of(format!("{path}.effect"), at(t, "effect"), EFFECTS);
        },
    );
}

pub(super) const EFFECTS: &[&str] = &["NoExecute", "NoSchedule", "None"];

fn selectors(c: &mut Check, path: &str, v: &Value) {
    let path = format!("{path}.selectors");
    c.each(&path, list(v, "selectors"), ITEMS_MAX, |c, path, one| {
        if at(one, "cel").is_null() {
            return c.required(format!("{path}.cel"), "");
        }
        let path = format!("{path}.cel.expression");
        expression(c, path, at(one, "cel.expression"), true);
    });
}

/// An expression over one device; what selects gives yes or no.
fn expression(c: &mut Check, path: String, source: &Value, selects: bool) {
    let text = source.as_str().unwrap_or_default();
    if text.len() > OPAQUE_BYTES_MAX {
        return c.add(FieldError::too_long(path, OPAQUE_BYTES_MAX));
    }
    match Program::compile(&environment(), text) {
        Err(e) => c.invalid(path, source, format!("compilation failed: {e}")),
        Ok(p) if selects && !p.gives(&Type::Bool) => {
            let detail = format!(
                "must evaluate to bool or the unknown type, not {}",
                p.output()
            );
            c.invalid(path, source, detail);
        }
        Ok(p) if p.cost_max() > EXPRESSION_COST_MAX && p.cost_max() < UNBOUNDED_FROM => {
            c.forbidden(path, "too complex, exceeds cost limit");
        }
        Ok(_) => {}
    }
}

/// A bound that is at least this is none: upstream knows how long the values of attributes are,
/// whatever their type, and this does not.
const UNBOUNDED_FROM: u64 = 1 << 50;

/// The variable `device`, as `k8s.io/dynamic-resource-allocation/cel` declares it.
fn environment() -> Env {
    let map = |bytes, value| {
        Type::Map(Arc::new(MapType {
            key: Type::String(bytes),
            value,
            max: ITEMS_MAX as u64,
        }))
    };
    let by_domain = |value| map(DOMAIN_BYTES_MAX, map(ID_BYTES_MAX as u64, value));
    let device = vec![
        FieldType::plain("driver", Type::String(DOMAIN_BYTES_MAX)),
        FieldType::plain("attributes", by_domain(Type::Dyn)),
        FieldType::plain("capacity", by_domain(Type::Opaque(Opaque::Quantity))),
        FieldType::plain("allowMultipleAllocations", Type::Bool),
    ];
    Env::new().with("device", Type::object("kubernetes.DRADevice", device))
}

fn constraint(c: &mut Check, path: &str, v: &Value, known: &Requests<'_>) {
    const ONE: &str = "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set";
    known.check_all(c, path, v);
    let named = ["matchAttribute", "distinctAttribute"].map(|name| (name, at(v, name)));
    let mut set = named.iter().filter(|(_, v)| !v.is_null());
    match (set.next(), set.next()) {
        (None, _) => c.required(path, ONE),
        (Some(_), Some(_)) => c.invalid(path, &Value::Null, ONE),
        (Some((name, attribute)), None) => {
            let path = format!("{path}.{name}");
            qualified(c, &path, attribute.as_str().unwrap_or_default());
            if !attribute.as_str().unwrap_or_default().contains('/') {
                let detail =
                    "a fully qualified name must be a domain and a name separated by a slash";
                c.invalid(path, attribute, detail);
            }
        }
    }
}

/// The name of an attribute or capacity: an identifier, after a domain or without.
pub(super) fn qualified(c: &mut Check, path: &str, name: &str) {
    let id = match name.split('/').collect::<Vec<_>>()[..] {
        [id] => id,
        [domain, id] => {
            if domain.is_empty() {
                c.invalid(path, &"".into(), "the domain must not be empty");
            } else {
                driver(c, path.to_owned(), &domain.into());
            }
            if id.is_empty() {
                return c.invalid(path, &"".into(), "the name must not be empty");
            }
            id
        }
        _ => return c.invalid(path, &name.into(), "must not contain more than one slash"),
    };
    if id.len() > ID_BYTES_MAX {
        c.add(FieldError::too_long(path, ID_BYTES_MAX));
    }
    let mut chars = id.bytes();
    let first = chars
        .next()
        .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    if !first || !chars.all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        let detail = "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*')";
        c.invalid(path, &id.into(), detail);
    }
}

/// Names of requests and of what is below them.
pub(super) struct Requests<'a>(&'a [Value]);

impl<'a> Requests<'a> {
    pub(super) fn of(devices: &'a Value) -> Self {
        Self(list(devices, "requests"))
    }

    fn has(&self, name: &str, sub: Option<&str>) -> bool {
        let mut all = self.0.iter().filter(|r| text(r, "name") == name);
        all.any(|r| {
            let mut subs = list(r, "firstAvailable").iter();
            sub.is_none_or(|sub| subs.any(|s| text(s, "name") == sub))
        })
    }

    /// A reference, `REQUEST` or `REQUEST/SUBREQUEST`.
    pub(super) fn check(&self, c: &mut Check, path: &str, v: &Value) {
        let name = v.as_str().unwrap_or_default();
        let (of, sub) = name
            .split_once('/')
            .map_or((name, None), |(r, s)| (r, Some(s)));
        let deeper = sub.is_some_and(|s| s.contains('/'));
        for part in [Some(of), sub].into_iter().flatten().filter(|_| !deeper) {
            c.rule(path, &part.into(), names::dns1123_label);
        }
        if deeper || !self.has(of, sub) {
            let detail = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
            c.invalid(path, v, detail);
        }
    }

    /// The references in `requests` of a constraint or configuration.
    pub(super) fn check_all(&self, c: &mut Check, path: &str, v: &Value) {
        let (path, all) = (format!("{path}.requests"), list(v, "requests"));
        c.each(&path, all, ITEMS_MAX, |c, path, one| {
            self.check(c, path, one)
        });
        let mut seen = Unique::default();
        for (i, one) in all.iter().enumerate() {
            seen.check(c, format!("{path}[{i}]"), one);
        }
    }
}

/// No two items may have the same key; too many are not looked at.
pub(super) fn distinct(
    c: &mut Check,
    path: &str,
    items: &[Value],
    max: usize,
    key: impl Fn(&Value) -> String,
) {
    if items.len() > max {
        return;
    }
    let mut seen = HashSet::new();
    for (i, one) in items.iter().enumerate() {
        let key = key(one);
        if seen.contains(&key) {
            c.add(FieldError::duplicate(format!("{path}[{i}]"), &key.into()));
        } else {
            seen.insert(key);
        }
    }
}

/// Parameters for a driver.
pub(super) fn opaque(c: &mut Check, path: &str, v: &Value) {
    let (path, v) = (format!("{path}.opaque"), at(v, "opaque"));
    if v.is_null() {
        return c.required(path, "");
    }
    driver(c, format!("{path}.driver"), at(v, "driver"));
    raw(c, format!("{path}.parameters"), at(v, "parameters"));
}

pub(super) fn raw(c: &mut Check, path: String, v: &Value) {
    match v {
        Value::Null => c.required(path, ""),
        v if v.to_string().len() > OPAQUE_BYTES_MAX => {
            c.add(FieldError::too_long(path, OPAQUE_BYTES_MAX));
        }
        Value::Object(_) => {}
        _ => c.invalid(
            path,
            &"<value omitted>".into(),
            "must be a valid JSON object",
        ),
    }
}

/// The name of a pool: subdomains between slashes.
pub(super) fn pool(c: &mut Check, path: String, v: &Value) {
    let name = v.as_str().unwrap_or_default();
    if name.is_empty() {
        return c.required(path, "");
    }
    if name.len() > POOL_BYTES_MAX {
        c.add(FieldError::too_long(path.as_str(), POOL_BYTES_MAX));
    }
    for part in name.split('/') {
        c.rule(path.as_str(), &part.into(), names::dns1123_subdomain);
    }
}

/// The claims of a pod, and which of them its containers use.
pub(super) fn of_pod(c: &mut Check, path: &str, pod: &Value) {
    let all = list(pod, "resourceClaims");
    let mut seen = Unique::default();
    for (i, one) in all.iter().enumerate() {
        let path = format!("{path}.resourceClaims[{i}]");
        let rule = names::dns1123_label;
        c.required_rule(format!("{path}.name"), at(one, "name"), rule);
        seen.check(c, format!("{path}.name"), at(one, "name"));
        let of = ["resourceClaimName", "resourceClaimTemplateName"];
        let set = of.iter().filter(|name| !at(one, name).is_null());
        match set.clone().count() {
            0 => c.invalid(
                path.as_str(),
                one,
                "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
            ),
            1 => {}
            _ => c.invalid(
                path.as_str(),
                one,
                "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified",
            ),
        }
        for name in set {
            let rule = names::dns1123_subdomain;
            c.rule(format!("{path}.{name}"), at(one, name), rule);
        }
    }
    let mut known: Vec<&str> = all.iter().map(|one| text(one, "name")).collect();
    known.sort_unstable();
    known.dedup();
    for field in ["initContainers", "containers"] {
        for (i, container) in list(pod, field).iter().enumerate() {
            let path = format!("{path}.{field}[{i}].resources.claims");
            uses(c, &path, list(container, "resources.claims"), &known);
        }
    }
}

fn uses(c: &mut Check, path: &str, all: &[Value], known: &[&str]) {
    for (i, one) in all.iter().enumerate() {
        let path = format!("{path}[{i}]");
        let name = text(one, "name");
        if name.is_empty() {
            c.required(path, "");
            continue;
        }
        if all[..i].contains(one) {
            c.add(FieldError::duplicate(path.as_str(), at(one, "name")));
        }
        if !is_empty(at(one, "request")) {
            let path = format!("{path}.request");
            c.rule(path, at(one, "request"), names::dns1123_label);
        }
        if !known.contains(&name) {
            let mut e = FieldError::not_found(path, at(one, "name"));
            e.message += ": must be one of the names in pod.spec.resourceClaims";
            match known {
                [] => e.message += " which is empty",
                _ => e.message += &format!(": {}", known.join(", ")),
            }
            c.add(e);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::told;
    use super::*;
    use expect_test::expect;
    use serde_json::json;

    fn exactly(selector: &str) -> Value {
        json!({"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 1,
            "selectors": [{"cel": {"expression": selector}}]})
    }

    fn sound() -> Value {
        let one = exactly("device.driver == 'x.y' && device.attributes['x.y'].model == 'a100'");
        let mut small = exactly("device.capacity['x.y'].memory.isGreaterThan(quantity('1Gi'))");
        small["name"] = json!("small");
        json!({"spec": {"devices": {
            "requests": [{"name": "a", "exactly": one}, {"name": "b", "firstAvailable": [small]}],
            "constraints": [{"requests": ["a", "b/small"], "matchAttribute": "x.y/numa"}],
            "config": [{"requests": ["b"], "opaque": {"driver": "x.y", "parameters": {"k": 1}}}],
        }}})
    }

    #[test]
    fn claims_ask_for_what_can_be_given() {
        told(claim(&sound()), expect![""]);
        told(template(&json!({"spec": sound()})), expect![""]);
        assert_eq!(super::super::spec_update(&sound(), &sound()), []);
        let changed = super::super::spec_update(&json!({"spec": {}}), &sound());
        assert_eq!((changed.len(), &*changed[0].field), (1, "spec"));
        let mut v = sound();
        let devices = &mut v["spec"]["devices"];
        devices["requests"] = json!([
            {"name": "A"}, {"name": "a", "exactly": {}, "firstAvailable": [{}]},
            {"name": "a", "exactly": {"deviceClassName": "C", "allocationMode": "All", "count": 2,
                "tolerations": [{"operator": "Exists", "value": "v", "effect": "No"}, {"key": "a b", "operator": "Is"}]}},
            {"name": "b", "exactly": exactly("device.nope")},
            {"name": "c", "exactly": exactly("1")},
            {"name": "d", "firstAvailable": [{"name": "s", "allocationMode": "Some",
                "selectors": [{}], "derivedAttributes": [{"name": "x.y/z", "expression": "1 +"}]}]},
        ]);
        devices["constraints"] = json!([{"requests": ["a", "a", "d/t", "a/b/c"]},
            {"matchAttribute": "numa"}, {"distinctAttribute": "x.y/1"}]);
        devices["config"] = json!([{}, {"opaque": {"driver": "", "parameters": [1]}}]);
        told(
            claim(&v),
            expect![[r#"
            spec.devices.requests[0].name: Invalid value: "A": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
            spec.devices.requests[0]: Required value: exactly one of `exactly` or `firstAvailable` is required
            spec.devices.requests[1]: Invalid value: null: exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set
            spec.devices.requests[2].exactly.deviceClassName: Invalid value: "C": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
            spec.devices.requests[2].exactly.count: Invalid value: 2: must not be specified when allocationMode is 'All'
            spec.devices.requests[2].exactly.tolerations[0].value: Invalid value: "v": must be empty for operator `Exists`
            spec.devices.requests[2].exactly.tolerations[0].effect: Unsupported value: "No": supported values: "NoExecute", "NoSchedule", "None"
            spec.devices.requests[2].exactly.tolerations[1].key: Invalid value: "a b": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
            spec.devices.requests[2].exactly.tolerations[1].operator: Unsupported value: "Is": supported values: "Equal", "Exists"
            spec.devices.requests[3].exactly.selectors[0].cel.expression: Invalid value: "device.nope": compilation failed: ERROR: <input>:1:7: undefined field 'nope'
             | device.nope
             | ......^
            spec.devices.requests[4].exactly.selectors[0].cel.expression: Invalid value: "1": must evaluate to bool or the unknown type, not int
            spec.devices.requests[5].firstAvailable[0].deviceClassName: Required value
            spec.devices.requests[5].firstAvailable[0].selectors[0].cel: Required value
            spec.devices.requests[5].firstAvailable[0].derivedAttributes[0].name: Invalid value: "x.y/z": must be referenced by at least one matchAttribute or distinctAttribute constraint targeting this request
            spec.devices.requests[5].firstAvailable[0].derivedAttributes[0].expression: Invalid value: "1 +": compilation failed: ERROR: <input>:1:4: Syntax error: mismatched input '<EOF>' expecting {'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}
             | 1 +
             | ...^
            spec.devices.requests[5].firstAvailable[0].allocationMode: Unsupported value: "Some": supported values: "All", "ExactCount"
            spec.devices.requests[2]: Duplicate value: "a"
            spec.devices.constraints[0].requests[2]: Invalid value: "d/t": must be the name of a request in the claim or the name of a request and a subrequest separated by '/'
            spec.devices.constraints[0].requests[3]: Invalid value: "a/b/c": must be the name of a request in the claim or the name of a request and a subrequest separated by '/'
            spec.devices.constraints[0].requests[1]: Duplicate value: "a"
            spec.devices.constraints[0]: Required value: exactly one of "matchAttribute" or "distinctAttribute" is required, but multiple fields are set
            spec.devices.constraints[1].matchAttribute: Invalid value: "numa": a fully qualified name must be a domain and a name separated by a slash
            spec.devices.constraints[2].distinctAttribute: Invalid value: "1": a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*')
            spec.devices.config[0].opaque: Required value
            spec.devices.config[1].opaque.driver: Required value
            spec.devices.config[1].opaque.parameters: Invalid value: "<value omitted>": must be a valid JSON object"#]],
        );
    }

    #[test]
    fn selectors_have_bounds() {
        let mut v = json!({"spec": {"selectors": [{"cel": {"expression":
            "device.attributes.exists(a, device.attributes.exists(b, device.attributes.exists(c, device.attributes.exists(d, a + b == c + d))))"}}]}});
        told(
            class(&v),
            expect!["spec.selectors[0].cel.expression: Forbidden: too complex, exceeds cost limit"],
        );
        v["spec"]["selectors"][0]["cel"]["expression"] = json!("a".repeat(10 * 1024 + 1));
        v["spec"]["extendedResourceName"] = json!("cpu");
        told(
            class(&v),
            expect![[r#"
            spec.selectors[0].cel.expression: Too long: may not be more than 10240 bytes
            spec.extendedResourceName: Invalid value: "cpu": must be a valid extended resource name"#]],
        );
        v["spec"]["selectors"] = vec![json!({}); 33].into();
        v["spec"]["extendedResourceName"] = json!("x.y/gpu");
        told(
            class(&v),
            expect!["spec.selectors: Too many: 33: must have at most 32 items"],
        );
        for fine in [
            "cel.bind(dra, device.attributes['x.y'], dra.one && dra.two)",
            "device.attributes['x.y'].name.startsWith('a')",
            "device.attributes['x.y'].driverVersion.compareTo(semver('1.0.0')) >= 0",
            "'x.y' in device.attributes && device.allowMultipleAllocations",
        ] {
            v["spec"]["selectors"] = json!([{"cel": {"expression": fine}}]);
            told(class(&v), expect![""]);
        }
    }

    #[test]
    fn pods_use_claims_that_they_have() {
        let pod = json!({
            "resourceClaims": [{"name": "a", "resourceClaimName": "c"}, {"name": "a"},
                {"name": "B", "resourceClaimName": "c", "resourceClaimTemplateName": "T_"}],
            "containers": [{"resources": {"claims": [{"name": "a"}, {"name": "a"}, {"name": "a", "request": "r"},
                {"name": "a", "request": "R"}, {"name": "z"}, {}]}}],
        });
        let mut c = Check::default();
        of_pod(&mut c, "spec", &pod);
        of_pod(
            &mut c,
            "spec",
            &json!({"initContainers": [{"resources": {"claims": [{"name": "a"}]}}]}),
        );
        told(
            c.0,
            expect![[r#"
                spec.resourceClaims[1].name: Duplicate value: "a"
                spec.resourceClaims[1]: Invalid value: {"name":"a"}: must specify one of: `resourceClaimName`, `resourceClaimTemplateName`
                spec.resourceClaims[2].name: Invalid value: "B": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
                spec.resourceClaims[2]: Invalid value: {"name":"B","resourceClaimName":"c","resourceClaimTemplateName":"T_"}: at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified
                spec.resourceClaims[2].resourceClaimTemplateName: Invalid value: "T_": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
                spec.containers[0].resources.claims[1]: Duplicate value: "a"
                spec.containers[0].resources.claims[3].request: Invalid value: "R": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
                spec.containers[0].resources.claims[4]: Not found: "z": must be one of the names in pod.spec.resourceClaims: B, a
                spec.containers[0].resources.claims[5]: Required value
                spec.initContainers[0].resources.claims[0]: Not found: "a": must be one of the names in pod.spec.resourceClaims which is empty"#]],
        );
    }
}
