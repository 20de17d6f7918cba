//! Cluster IPs and NodePorts: who has which.
//!
//! Kept in memory and rebuilt from the Services in the cache at start. One API server a
//! store: several would need the allocation in the store itself.

use crate::cache::Kind;
use crate::config::{Entropy, ServiceCidr};
use crate::row::Row;
use apimachinery::{FieldError, Status};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

#[derive(Debug, Default)]
struct Taken {
    ips: HashMap<IpAddr, Arc<str>>,
    /// By port and protocol.
    ports: HashMap<(u16, String), Arc<str>>,
}

/// Gives Services their addresses and ports.
pub(crate) struct Allocator {
    cidr: ServiceCidr,
    ports: (u16, u16),
    entropy: Entropy,
    /// Guards both maps; held for one Service at a time, never across a write to the store.
    taken: Arc<Mutex<Taken>>,
}

/// What a write has taken; given back when the write fails.
#[derive(Debug, Default)]
pub(crate) struct Reservation {
    taken: Option<Arc<Mutex<Taken>>>,
    ips: Vec<IpAddr>,
    ports: Vec<(u16, String)>,
    /// Given back when the write succeeds.
    freed_ips: Vec<IpAddr>,
    freed_ports: Vec<(u16, String)>,
}

impl Reservation {
    /// The write succeeded.
    pub(crate) fn keep(mut self) {
        self.ips.clear();
        self.ports.clear();
        if let Some(taken) = &self.taken {
            let mut t = taken.lock();
            for ip in self.freed_ips.drain(..) {
                t.ips.remove(&ip);
            }
            for port in self.freed_ports.drain(..) {
                t.ports.remove(&port);
            }
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let Some(taken) = &self.taken else { return };
        let mut t = taken.lock();
        for ip in &self.ips {
            t.ips.remove(ip);
        }
        for port in &self.ports {
            t.ports.remove(port);
        }
    }
}

impl Allocator {
    pub(crate) fn new(
        cidr: ServiceCidr,
        ports: (u16, u16),
        entropy: Entropy,
        services: Option<&Arc<Kind>>,
    ) -> Self {
        let mut taken = Taken::default();
        for object in services.into_iter().flat_map(|k| k.all()) {
            let value = object.value();
            for ip in ips_of(&value) {
                taken.ips.insert(ip, object.key.clone());
            }
            for port in ports_of(&value) {
                taken.ports.insert(port, object.key.clone());
            }
        }
        Self {
            cidr,
            ports,
            entropy,
            taken: Arc::new(Mutex::new(taken)),
        }
    }

    /// Gives a Service that is created or changed what it needs and lacks.
    ///
    /// # Errors
    /// 422 in upstream's words when a stated address or port is taken or out of range.
    pub(crate) fn assign(
        &self,
        row: &Row,
        service: &mut Value,
        old: Option<&Value>,
    ) -> Result<Reservation, Status> {
        if row.known() != "services" {
            return Ok(Reservation::default());
        }
        let name = service["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let key: Arc<str> = format!(
            "{}/{name}",
            service["metadata"]["namespace"]
                .as_str()
                .unwrap_or_default()
        )
        .into();
        let mut taken = self.taken.lock();
        let mut r = Reservation::default();
        r.taken = Some(self.taken.clone());
        let errors = {
            let mut errors = Vec::new();
            if let Some(old) = old {
                keep_unstated(service, old);
            }
            let had_ips = old.map(ips_of).unwrap_or_default();
            let had_ports = old.map(ports_of).unwrap_or_default();
            self.assign_ip(&mut taken, &mut r, &key, service, &had_ips, &mut errors);
            self.assign_ports(&mut taken, &mut r, &key, service, &had_ports, &mut errors);
            let (now_ips, now_ports) = (ips_of(service), ports_of(service));
            r.freed_ips = had_ips
                .into_iter()
                .filter(|ip| !now_ips.contains(ip))
                .collect();
            r.freed_ports = had_ports
                .into_iter()
                .filter(|p| !now_ports.contains(p))
                .collect();
            errors
        };
        drop(taken);
        if errors.is_empty() {
            Ok(r)
        } else {
            Err(Status::invalid("", "Service", &name, &errors))
        }
    }

    /// Gives back what a deleted Service had.
    pub(crate) fn release(&self, service: &Value, key: &str) {
        let mut taken = self.taken.lock();
        for ip in ips_of(service) {
            if taken.ips.get(&ip).is_some_and(|owner| **owner == *key) {
                taken.ips.remove(&ip);
            }
        }
        for port in ports_of(service) {
            if taken.ports.get(&port).is_some_and(|owner| **owner == *key) {
                taken.ports.remove(&port);
            }
        }
    }

    fn assign_ip(
        &self,
        taken: &mut Taken,
        r: &mut Reservation,
        key: &Arc<str>,
        service: &mut Value,
        had: &[IpAddr],
        errors: &mut Vec<FieldError>,
    ) {
        let spec = &mut service["spec"];
        if spec["type"] == "ExternalName" {
            return;
        }
        let stated = spec["clusterIP"].as_str().unwrap_or_default().to_owned();
        let ip = match stated.as_str() {
            "None" => {
                spec["clusterIPs"] = json!(["None"]);
                family(spec);
                return;
            }
            "" => match self.free_ip(taken) {
                Some(ip) => ip,
                None => {
                    errors.push(FieldError::invalid(
                        "spec.clusterIPs",
                        &json!([]),
                        "failed to allocate IP: range is full",
                    ));
                    return;
                }
            },
            text => {
                let Ok(ip) = text.parse::<IpAddr>() else {
                    return;
                };
                let refuse = |why: &str| {
                    FieldError::invalid(
                        "spec.clusterIPs",
                        &json!([text]),
                        format!("failed to allocate IP {ip}: {why}"),
                    )
                };
                if !had.contains(&ip) {
                    if !self.cidr.assignable(ip) {
                        errors.push(refuse(&format!(
                            "the provided IP ({ip}) is not in the valid range. The range of valid IPs is {}",
                            self.cidr
                        )));
                        return;
                    }
                    if taken.ips.contains_key(&ip) {
                        errors.push(refuse("provided IP is already allocated"));
                        return;
                    }
                }
                ip
            }
        };
        if !had.contains(&ip) {
            taken.ips.insert(ip, key.clone());
            r.ips.push(ip);
        }
        spec["clusterIP"] = ip.to_string().into();
        spec["clusterIPs"] = json!([ip.to_string()]);
        family(spec);
    }

    /// A random free address, outside the lower band that upstream keeps for stated ones.
    fn free_ip(&self, taken: &Taken) -> Option<IpAddr> {
        let size = self.cidr.size();
        let band = (size / 16).clamp(16, 256).min(size / 2);
        let mut bytes = [0; 4];
        (self.entropy)(&mut bytes);
        let upper = size - 1 - band;
        let start = u32::from_le_bytes(bytes) % upper.max(1);
        let at = |offset: u32| IpAddr::V4(Ipv4Addr::from(u32::from(self.cidr.at(offset))));
        (0..upper)
            .map(|i| band + (start + i) % upper)
            .chain(2..band)
            .map(at)
            .find(|ip| self.cidr.assignable(*ip) && !taken.ips.contains_key(ip))
    }

    fn assign_ports(
        &self,
        taken: &mut Taken,
        r: &mut Reservation,
        key: &Arc<str>,
        service: &mut Value,
        had: &[(u16, String)],
        errors: &mut Vec<FieldError>,
    ) {
        let spec = &mut service["spec"];
        let wants = match spec["type"].as_str() {
            Some("NodePort") => true,
            Some("LoadBalancer") => spec["allocateLoadBalancerNodePorts"] != false,
            _ => false,
        };
        let mut mine: Vec<(u16, String)> = Vec::new();
        let ports = spec.get_mut("ports").and_then(Value::as_array_mut);
        for (i, port) in ports.into_iter().flatten().enumerate() {
            let protocol = port["protocol"].as_str().unwrap_or("TCP").to_owned();
            let stated = port["nodePort"].as_u64().unwrap_or(0);
            let number = match u16::try_from(stated) {
                Ok(0) if !wants => continue,
                Ok(0) => match self.free_port(taken, &protocol) {
                    Some(n) => n,
                    None => {
                        errors.push(FieldError::invalid(
                            format!("spec.ports[{i}].nodePort"),
                            &json!(0),
                            "failed to allocate a nodePort: range is full",
                        ));
                        continue;
                    }
                },
                Ok(n) if (self.ports.0..=self.ports.1).contains(&n) => n,
                _ => {
                    errors.push(FieldError::invalid(
                        format!("spec.ports[{i}].nodePort"),
                        &json!(stated),
                        format!(
                            "provided port is not in the valid range. The range of valid ports is {}-{}",
                            self.ports.0, self.ports.1
                        ),
                    ));
                    continue;
                }
            };
            let entry = (number, protocol);
            if !had.contains(&entry) && !mine.contains(&entry) {
                if taken.ports.contains_key(&entry) {
                    errors.push(FieldError::invalid(
                        format!("spec.ports[{i}].nodePort"),
                        &json!(number),
                        "provided port is already allocated",
                    ));
                    continue;
                }
                taken.ports.insert(entry.clone(), key.clone());
                r.ports.push(entry.clone());
            }
            port["nodePort"] = number.into();
            mine.push(entry);
        }
    }

    fn free_port(&self, taken: &Taken, protocol: &str) -> Option<u16> {
        let size = u32::from(self.ports.1 - self.ports.0) + 1;
        let mut bytes = [0; 4];
        (self.entropy)(&mut bytes);
        let start = u32::from_le_bytes(bytes) % size;
        (0..size)
            .filter_map(|i| u16::try_from(u32::from(self.ports.0) + (start + i) % size).ok())
            .find(|p| !taken.ports.contains_key(&(*p, protocol.to_owned())))
    }
}

fn family(spec: &mut Value) {
    if spec["ipFamilies"].as_array().is_none_or(Vec::is_empty) {
        spec["ipFamilies"] = json!(["IPv4"]);
    }
    if spec["ipFamilyPolicy"].is_null() {
        spec["ipFamilyPolicy"] = json!("SingleStack");
    }
}

/// An update that says nothing about addresses and ports keeps them.
fn keep_unstated(service: &mut Value, old: &Value) {
    let spec = &mut service["spec"];
    let external = |v: &Value| v["type"] == "ExternalName";
    if external(spec) {
        if !external(&old["spec"])
            && let Some(spec) = spec.as_object_mut()
        {
            for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                spec.remove(key);
            }
        }
        return;
    }
    if spec["clusterIP"].as_str().unwrap_or_default().is_empty() {
        for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            if let Some(v) = old["spec"].get(key) {
                spec[key] = v.clone();
            }
        }
    }
    let kind = spec["type"].clone();
    let had_ports = old["spec"]["ports"].as_array().cloned().unwrap_or_default();
    let ports = spec.get_mut("ports").and_then(Value::as_array_mut);
    for port in ports.into_iter().flatten() {
        if kind == "ClusterIP" {
            // Leaving NodePort gives the ports back, unless the client states them.
            let was = had_ports.iter().any(|o| o["nodePort"] == port["nodePort"]);
            if was && let Some(p) = port.as_object_mut() {
                p.remove("nodePort");
            }
        } else if port["nodePort"].as_u64().unwrap_or(0) == 0
            && let Some(twin) = had_ports
                .iter()
                .find(|o| o["port"] == port["port"] && o["protocol"] == port["protocol"])
            && !twin["nodePort"].is_null()
        {
            port["nodePort"] = twin["nodePort"].clone();
        }
    }
}

fn ips_of(service: &Value) -> Vec<IpAddr> {
    let spec = &service["spec"];
    spec["clusterIPs"]
        .as_array()
        .into_iter()
        .flatten()
        .chain(std::iter::once(&spec["clusterIP"]))
        .filter_map(|v| v.as_str()?.parse().ok())
        .fold(Vec::new(), |mut all, ip| {
            if !all.contains(&ip) {
                all.push(ip);
            }
            all
        })
}

fn ports_of(service: &Value) -> Vec<(u16, String)> {
    service["spec"]["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|p| {
            let number = u16::try_from(p["nodePort"].as_u64()?)
                .ok()
                .filter(|n| *n > 0)?;
            Some((number, p["protocol"].as_str().unwrap_or("TCP").to_owned()))
        })
        .collect()
}
