//! Endpoints, and who has which addresses.

use super::{Check, network::address};
use crate::access::{at, int, is_empty, list};
use apimachinery::names;
use apimachinery::status::FieldError;
use serde_json::Value;
use std::net::IpAddr;

/// `Endpoints`.
pub(crate) fn endpoints(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    for (i, subset) in list(v, "subsets").iter().enumerate() {
        let path = format!("subsets[{i}]");
        let both = ["addresses", "notReadyAddresses"];
        if both.iter().all(|field| list(subset, field).is_empty()) {
            c.required(
                path.as_str(),
                "must specify `addresses` or `notReadyAddresses`",
            );
        }
        for field in both {
            for (j, one) in list(subset, field).iter().enumerate() {
                let path = format!("{path}.{field}[{j}]");
                endpoint_address(&mut c, &format!("{path}.ip"), at(one, "ip"));
                for (name, rule) in [
                    ("hostname", names::dns1123_label as fn(&str) -> _),
                    ("nodeName", names::dns1123_subdomain),
                ] {
                    if !is_empty(at(one, name)) {
                        c.rule(format!("{path}.{name}"), at(one, name), rule);
                    }
                }
            }
        }
        let ports = list(subset, "ports");
        for (j, port) in ports.iter().enumerate() {
            let path = format!("{path}.ports[{j}]");
            let name = at(port, "name");
            if is_empty(name) && ports.len() > 1 {
                c.required(format!("{path}.name"), "");
            } else if !is_empty(name) {
                c.rule(format!("{path}.name"), name, names::dns1123_label);
            }
            if let Err(e) = names::port_number(int(port, "port")) {
                c.invalid(format!("{path}.port"), at(port, "port"), e);
            }
            c.one_of(
                format!("{path}.protocol"),
                at(port, "protocol"),
                &["SCTP", "TCP", "UDP"],
            );
        }
    }
    c.0
}

/// An address that others can reach. Those of loopback are not refused, as they are upstream:
/// pods of sites without privileges have them.
fn endpoint_address(c: &mut Check, path: &str, v: &Value) {
    let Some(ip) = v.as_str().and_then(|s| s.parse::<IpAddr>().ok()) else {
        return address(c, path.to_owned(), v);
    };
    let local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    let multicast = match ip {
        IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
        IpAddr::V6(ip) => ip.octets()[..2] == [0xff, 0x02],
    };
    for (is, detail) in [
        (
            ip.is_unspecified(),
            "may not be unspecified (0.0.0.0 or ::)",
        ),
        (
            local,
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)",
        ),
        (
            multicast,
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)",
        ),
    ] {
        if is {
            c.invalid(path, v, detail);
        }
    }
}

/// `IPAddress`.
pub(crate) fn ip_address(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    address(&mut c, "metadata.name".to_owned(), at(v, "metadata.name"));
    let parent = at(v, "spec.parentRef");
    if parent.is_null() {
        c.required("spec.parentRef", "");
        return c.0;
    }
    for name in ["resource", "name"] {
        let path = format!("spec.parentRef.{name}");
        c.required_rule(path, at(parent, name), names::path_segment);
    }
    if !is_empty(at(parent, "namespace")) {
        let path = "spec.parentRef.namespace";
        c.rule(path, at(parent, "namespace"), names::path_segment);
    }
    c.0
}

/// Whose an `IPAddress` is stays.
pub(crate) fn ip_address_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    c.immutable("spec.parentRef", new, old);
    c.0
}

/// `ServiceCIDR`.
pub(crate) fn service_cidr(v: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    let all = list(v, "spec.cidrs");
    if all.is_empty() {
        c.required("spec.cidrs", "at least one CIDR required");
    }
    if all.len() > 2 {
        let detail = "may only hold up to 2 values";
        c.invalid("spec.cidrs", at(v, "spec.cidrs"), detail);
    }
    let families: Vec<_> = all
        .iter()
        .filter_map(|cidr| family(cidr.as_str()?))
        .collect();
    if families.len() == 2 && families[0] == families[1] {
        c.invalid(
            "spec.cidrs",
            at(v, "spec.cidrs"),
            "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/96",
        );
    }
    for (i, cidr) in all.iter().enumerate() {
        if cidr.as_str().and_then(family).is_none() {
            c.invalid(
                format!("spec.cidrs[{i}]"),
                cidr,
                "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            );
        }
    }
    c.0
}

/// Whether a block of addresses is one of IPv6.
fn family(cidr: &str) -> Option<bool> {
    let (ip, length) = cidr.split_once('/')?;
    let (ip, length) = (ip.parse::<IpAddr>().ok()?, length.parse::<u32>().ok()?);
    let (bits, value) = match ip {
        IpAddr::V4(ip) => (32, u128::from(ip.to_bits()) << 96),
        IpAddr::V6(ip) => (128, ip.to_bits()),
    };
    let in_block = length <= bits && value.checked_shl(length).unwrap_or(0) == 0;
    in_block.then_some(ip.is_ipv6())
}

/// A `ServiceCIDR` may get a second family and nothing else.
pub(crate) fn service_cidr_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut c = Check::default();
    let (new, old) = (list(new, "spec.cidrs"), list(old, "spec.cidrs"));
    for (i, cidr) in old.iter().enumerate() {
        if new.get(i) != Some(cidr) {
            let now = new.get(i).unwrap_or(&Value::Null);
            c.invalid(format!("spec.cidrs[{i}]"), now, super::IMMUTABLE);
        }
    }
    c.0
}

#[cfg(test)]
mod tests {
    use super::super::told;
    use super::*;
    use expect_test::expect;
    use serde_json::json;

    #[test]
    fn endpoints_are_addresses_that_others_reach() {
        let fine = json!({"subsets": [{"addresses": [{"ip": "10.0.0.1"}, {"ip": "127.42.0.2"}], "ports": [{"port": 80, "protocol": "TCP"}]}]});
        told(endpoints(&fine), expect![""]);
        let v = json!({"subsets": [
            {"ports": []},
            {
                "addresses": [{"ip": "0.0.0.0"}, {"ip": "x", "hostname": "A"}],
                "notReadyAddresses": [{"ip": "169.254.1.1"}, {"ip": "ff02::1"}],
                "ports": [{"port": 0, "protocol": "TCP"}, {"name": "a b", "port": 1, "protocol": "ICMP"}],
            },
        ]});
        told(
            endpoints(&v),
            expect![[r#"
            subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`
            subsets[1].addresses[0].ip: Invalid value: "0.0.0.0": may not be unspecified (0.0.0.0 or ::)
            subsets[1].addresses[1].ip: Invalid value: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)
            subsets[1].addresses[1].hostname: Invalid value: "A": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
            subsets[1].notReadyAddresses[0].ip: Invalid value: "169.254.1.1": may not be in the link-local range (169.254.0.0/16, fe80::/10)
            subsets[1].notReadyAddresses[1].ip: Invalid value: "ff02::1": may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)
            subsets[1].ports[0].name: Required value
            subsets[1].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive
            subsets[1].ports[1].name: Invalid value: "a b": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
            subsets[1].ports[1].protocol: Unsupported value: "ICMP": supported values: "SCTP", "TCP", "UDP""#]],
        );
    }

    #[test]
    fn blocks_and_their_addresses() {
        let cidrs = |all: &[&str]| json!({"spec": {"cidrs": all}});
        told(
            service_cidr(&cidrs(&["10.0.0.0/24", "2001:db8::/64"])),
            expect![""],
        );
        told(
            service_cidr(&cidrs(&["10.0.0.1/24", "10.0.0.0/8"])),
            expect![[
                r#"spec.cidrs[0]: Invalid value: "10.0.0.1/24": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"#
            ]],
        );
        told(
            service_cidr(&cidrs(&[])),
            expect!["spec.cidrs: Required value: at least one CIDR required"],
        );
        let (one, two) = (
            cidrs(&["10.0.0.0/24"]),
            cidrs(&["10.0.0.0/24", "2001:db8::/64"]),
        );
        told(service_cidr_update(&two, &one), expect![""]);
        told(
            service_cidr_update(&one, &two),
            expect!["spec.cidrs[1]: Invalid value: null: field is immutable"],
        );
        let v =
            json!({"metadata": {"name": "ten"}, "spec": {"parentRef": {"resource": "services"}}});
        told(
            ip_address(&v),
            expect![[r#"
            metadata.name: Invalid value: "ten": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)
            spec.parentRef.name: Required value"#]],
        );
    }
}
