//! Cluster IPs and NodePorts: who has which.
//!
//! What is wanted is decided here; who has what is known by [`taken`]: in the memory of the one
//! API server of a store, or in the store itself where several share it.

pub(crate) mod repair;
mod taken;

pub(crate) use taken::{Reservation, Thing};

use crate::cache::Kind;
use crate::config::{Entropy, ServiceCidr};
use crate::registry::{Call, write_failed};
use apimachinery::{FieldError, Status};
use lifecycle::Scope;
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use store::Store;
use taken::{Claims, Here, Taken};

/// The Service whose address is the first of its range; no other may have it.
const OWN_SERVICE: (&str, &str) = ("default", "kubernetes");

/// Gives Services their addresses and ports.
pub(crate) struct Allocator {
    cidr: ServiceCidr,
    ports: (u16, u16),
    entropy: Entropy,
    taken: Taken,
}

/// One Service that is given what it needs.
struct Giving<'a> {
    allocator: &'a Allocator,
    call: &'a Call<'a>,
    /// Uid of the Service.
    owner: Arc<str>,
    reservation: Reservation,
    errors: Vec<FieldError>,
}

impl Allocator {
    /// For the only API server of a store.
    pub(crate) fn new(
        cidr: ServiceCidr,
        ports: (u16, u16),
        entropy: Entropy,
        services: Option<&Arc<Kind>>,
    ) -> Self {
        let all = services.into_iter().flat_map(|k| k.all());
        let taken = Here::new(all.flat_map(|object| {
            let value = object.value();
            let owner = uid_of(&value);
            things_of(&value)
                .into_iter()
                .map(move |thing| (thing, owner.clone()))
        }));
        Self {
            cidr,
            ports,
            entropy,
            taken: Taken::Here(Arc::new(taken)),
        }
    }

    /// For one of several; what a failed write leaves is given back by tasks in `scope`.
    pub(crate) fn shared(
        cidr: ServiceCidr,
        ports: (u16, u16),
        entropy: Entropy,
        store: Arc<dyn Store>,
        scope: &Scope,
    ) -> Self {
        Self {
            cidr,
            ports,
            entropy,
            taken: Taken::Shared(Arc::new(Claims::new(store, scope))),
        }
    }

    /// Gives a Service that is created or changed what it needs and lacks.
    ///
    /// # Errors
    /// 422 in upstream's words when a stated address or port is taken or out of range; and
    /// what the store says.
    pub(crate) async fn assign(
        &self,
        call: &Call<'_>,
        service: &mut Value,
        old: Option<&Value>,
    ) -> Result<Reservation, Status> {
        if call.row.known() != "services" {
            return Ok(Reservation::default());
        }
        if let Some(old) = old {
            keep_unstated(service, old);
        }
        let had = old.map(things_of).unwrap_or_default();
        let mut giving = Giving {
            allocator: self,
            call,
            owner: uid_of(old.unwrap_or(service)),
            reservation: self.taken.reservation(),
            errors: Vec::new(),
        };
        let refused = |e| write_failed(call, call.name, e);
        giving.ip(service, &had).await.map_err(refused)?;
        giving.ports(service, &had).await.map_err(refused)?;
        let Giving {
            owner,
            mut reservation,
            errors,
            ..
        } = giving;
        if !errors.is_empty() {
            let name = service["metadata"]["name"].as_str().unwrap_or_default();
            return Err(Status::invalid("", "Service", name, &errors));
        }
        let now = things_of(service);
        let freed = had.into_iter().filter(|thing| !now.contains(thing));
        let freed: Vec<Thing> = freed.collect();
        self.taken
            .note_freed(&mut reservation, &freed, &owner)
            .await
            .map_err(refused)?;
        Ok(reservation)
    }

    /// Gives back what a deleted Service had.
    pub(crate) async fn release(&self, service: &Value) {
        let owner = uid_of(service);
        self.taken.release(&things_of(service), &owner).await;
    }

    /// Whether an address is the `kubernetes` Service's, which needs no claim.
    fn is_own(&self, ip: IpAddr) -> bool {
        ip == IpAddr::V4(self.cidr.at(1))
    }

    /// Addresses in the order in which they are tried: random ones outside the lower band that
    /// upstream keeps for stated ones, then those of the band.
    fn ips(&self) -> impl Iterator<Item = Thing> + Send + use<> {
        let cidr = self.cidr;
        let size = cidr.size();
        let band = (size / 16).clamp(16, 256).min(size / 2);
        let upper = size - 1 - band;
        let start = self.random() % upper.max(1);
        (0..upper)
            .map(move |i| band + (start + i) % upper)
            .chain(2..band)
            .map(move |offset| IpAddr::V4(Ipv4Addr::from(u32::from(cidr.at(offset)))))
            .filter(move |ip| cidr.assignable(*ip))
            .map(Thing::Ip)
    }

    /// Ports in a random order.
    fn free_ports(&self, protocol: &'static str) -> impl Iterator<Item = Thing> + Send + use<> {
        let (first, last) = self.ports;
        let size = u32::from(last - first) + 1;
        let start = self.random() % size;
        (0..size)
            .filter_map(move |i| u16::try_from(u32::from(first) + (start + i) % size).ok())
            .map(move |port| Thing::Port(port, protocol))
    }

    fn random(&self) -> u32 {
        let mut bytes = [0; 4];
        (self.entropy)(&mut bytes);
        u32::from_le_bytes(bytes)
    }
}

impl Giving<'_> {
    async fn take(&mut self, thing: Thing) -> Result<bool, store::Error> {
        let taken = &self.allocator.taken;
        taken
            .take(&mut self.reservation, thing, &self.owner, self.call.dry_run)
            .await
    }

    async fn ip(&mut self, service: &mut Value, had: &[Thing]) -> Result<(), store::Error> {
        let spec = &mut service["spec"];
        if spec["type"] == "ExternalName" {
            return Ok(());
        }
        let allocator = self.allocator;
        let stated = spec["clusterIP"].as_str().unwrap_or_default().to_owned();
        let ip = match stated.as_str() {
            "None" => {
                spec["clusterIPs"] = json!(["None"]);
                family(spec);
                return Ok(());
            }
            "" => {
                let free = allocator.taken.take_first(
                    &mut self.reservation,
                    allocator.ips(),
                    &self.owner,
                    self.call.dry_run,
                );
                match free.await? {
                    Some(Thing::Ip(ip)) => ip,
                    _ => {
                        self.errors.push(FieldError::invalid(
                            "spec.clusterIPs",
                            &json!([]),
                            "failed to allocate IP: range is full",
                        ));
                        return Ok(());
                    }
                }
            }
            text => {
                let Ok(ip) = text.parse::<IpAddr>() else {
                    return Ok(());
                };
                if !had.contains(&Thing::Ip(ip))
                    && let Some(why) = self.refused(ip).await?
                {
                    self.errors.push(FieldError::invalid(
                        "spec.clusterIPs",
                        &json!([text]),
                        format!("failed to allocate IP {ip}: {why}"),
                    ));
                    return Ok(());
                }
                ip
            }
        };
        spec["clusterIP"] = ip.to_string().into();
        spec["clusterIPs"] = json!([ip.to_string()]);
        family(spec);
        Ok(())
    }

    /// Takes an address that was stated, or says why not.
    async fn refused(&mut self, ip: IpAddr) -> Result<Option<String>, store::Error> {
        const ALLOCATED: &str = "provided IP is already allocated";
        let cidr = self.allocator.cidr;
        if !cidr.assignable(ip) {
            return Ok(Some(format!(
                "the provided IP ({ip}) is not in the valid range. The range of valid IPs is {cidr}"
            )));
        }
        let taken = if self.allocator.is_own(ip) {
            (self.call.namespace, self.call.name) != OWN_SERVICE
        } else {
            !self.take(Thing::Ip(ip)).await?
        };
        Ok(taken.then(|| ALLOCATED.to_owned()))
    }

    async fn ports(&mut self, service: &mut Value, had: &[Thing]) -> Result<(), store::Error> {
        let spec = &mut service["spec"];
        let wants = match spec["type"].as_str() {
            Some("NodePort") => true,
            Some("LoadBalancer") => spec["allocateLoadBalancerNodePorts"] != false,
            _ => false,
        };
        let range = self.allocator.ports;
        let mut mine: Vec<Thing> = Vec::new();
        let ports = spec.get_mut("ports").and_then(Value::as_array_mut);
        for (i, port) in ports.into_iter().flatten().enumerate() {
            let protocol = protocol_of(port);
            let stated = port["nodePort"].as_u64().unwrap_or(0);
            let field = format!("spec.ports[{i}].nodePort");
            let number = match u16::try_from(stated) {
                Ok(0) if !wants => continue,
                Ok(0) => {
                    let free = self.allocator.taken.take_first(
                        &mut self.reservation,
                        self.allocator.free_ports(protocol),
                        &self.owner,
                        self.call.dry_run,
                    );
                    let Some(Thing::Port(number, _)) = free.await? else {
                        self.errors.push(FieldError::invalid(
                            field,
                            &json!(0),
                            "failed to allocate a nodePort: range is full",
                        ));
                        continue;
                    };
                    port["nodePort"] = number.into();
                    mine.push(Thing::Port(number, protocol));
                    continue;
                }
                Ok(n) if (range.0..=range.1).contains(&n) => n,
                _ => {
                    self.errors.push(FieldError::invalid(
                        field,
                        &json!(stated),
                        format!(
                            "provided port is not in the valid range. The range of valid ports is {}-{}",
                            range.0, range.1
                        ),
                    ));
                    continue;
                }
            };
            let thing = Thing::Port(number, protocol);
            if !had.contains(&thing) && !mine.contains(&thing) && !self.take(thing).await? {
                self.errors.push(FieldError::invalid(
                    field,
                    &json!(number),
                    "provided port is already allocated",
                ));
                continue;
            }
            mine.push(thing);
        }
        Ok(())
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

/// What a Service has: its addresses and node ports.
pub(crate) fn things_of(service: &Value) -> Vec<Thing> {
    let spec = &service["spec"];
    let ips = spec["clusterIPs"]
        .as_array()
        .into_iter()
        .flatten()
        .chain(std::iter::once(&spec["clusterIP"]))
        .filter_map(|v| Some(Thing::Ip(v.as_str()?.parse().ok()?)));
    let ports = spec["ports"].as_array().into_iter().flatten();
    let ports = ports.filter_map(|p| {
        let number = u16::try_from(p["nodePort"].as_u64()?).ok();
        Some(Thing::Port(number.filter(|n| *n > 0)?, protocol_of(p)))
    });
    ips.chain(ports).fold(Vec::new(), |mut all, thing| {
        if !all.contains(&thing) {
            all.push(thing);
        }
        all
    })
}

/// One that is none of these is refused later.
fn protocol_of(port: &Value) -> &'static str {
    match port["protocol"].as_str() {
        Some("UDP") => "UDP",
        Some("SCTP") => "SCTP",
        _ => "TCP",
    }
}

fn uid_of(service: &Value) -> Arc<str> {
    service["metadata"]["uid"]
        .as_str()
        .unwrap_or_default()
        .into()
}
