//! What an API server is told at its start. Everything is passed in: no environment, no files.

use crate::server::Error;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// Time of day, injected so that tests can set it.
pub trait Clock: Send + Sync + 'static {
    /// Now.
    fn now(&self) -> jiff::Timestamp;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::now()
    }
}

/// Source of random bytes for uids and generated names.
pub type Entropy = Arc<dyn Fn(&mut [u8]) + Send + Sync>;

/// How kubelets are reached and told who calls.
#[derive(Clone, Debug, Default)]
pub struct KubeletAccess {
    /// PEM certificate and key that the API server shows to kubelets.
    pub client_identity: Option<(String, String)>,
    /// PEM bundle that signed the kubelets' serving certificates; `None`: they are not checked,
    /// as upstream does without `--kubelet-certificate-authority`.
    pub ca: Option<String>,
}

/// How extension servers know that a request comes through this one (aggregation).
#[derive(Clone)]
pub struct FrontProxy {
    /// PEM certificate that is shown to them; its common name is the one that they are told
    /// to believe.
    pub cert: String,
    /// PEM key.
    pub key: String,
    /// PEM bundle that signed the certificate.
    pub ca: String,
}

impl FrontProxy {
    /// Common name of the certificate.
    pub const NAME: &'static str = "front-proxy-client";
}

impl fmt::Debug for FrontProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FrontProxy")
    }
}

/// Who may say in whose name a request comes, and how (`--requestheader-…` of upstream).
///
/// Whom extension servers are told to believe is believed here too: the authority of
/// [`Config::front_proxy`] and `ca`.
#[derive(Clone, Debug)]
pub struct RequestHeader {
    /// PEM bundle of further authorities.
    pub ca: Option<String>,
    /// Common names that are believed beside [`FrontProxy::NAME`]; with `ca` and without names,
    /// any is.
    pub allowed_names: Vec<String>,
    /// Headers with the user's name; the first that is there counts.
    pub username_headers: Vec<String>,
    /// Headers with the user's uid; the first that is there counts.
    pub uid_headers: Vec<String>,
    /// Headers with groups; all count.
    pub group_headers: Vec<String>,
    /// What the names of headers with further facts start with.
    pub extra_prefixes: Vec<String>,
}

impl Default for RequestHeader {
    fn default() -> Self {
        let one = |name: &str| vec![name.to_owned()];
        Self {
            ca: None,
            allowed_names: Vec::new(),
            username_headers: one("X-Remote-User"),
            uid_headers: one("X-Remote-Uid"),
            group_headers: one("X-Remote-Group"),
            extra_prefixes: one("X-Remote-Extra-"),
        }
    }
}

/// Bounds; each says what happens when it is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request body; above: 413.
    pub body_max: usize,
    /// Requests under way that are not watches or streams, shared out by priority levels; above:
    /// they wait, then 429 with `Retry-After`.
    pub in_flight_max: usize,
    /// Open connections; above: new ones wait in the listen queue.
    pub connections_max: usize,
    /// Events kept a kind for watchers to read; those further behind read the store.
    pub events_max: usize,
    /// Bytes of those events.
    pub event_bytes_max: usize,
    /// How long a request may run that is not a watch or stream.
    pub request_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_max: 3 * 1024 * 1024,
            in_flight_max: 400,
            connections_max: 4096,
            events_max: 1024,
            event_bytes_max: 512 * 1024,
            request_timeout: Duration::from_secs(60),
        }
    }
}

/// IPv4 network that cluster IPs come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceCidr {
    /// First address.
    pub base: Ipv4Addr,
    /// Prefix length, 8 to 30.
    pub prefix: u8,
}

impl ServiceCidr {
    /// Parses `10.43.0.0/16`.
    pub fn parse(text: &str) -> Option<Self> {
        let (base, prefix) = text.split_once('/')?;
        let (base, prefix) = (base.parse::<Ipv4Addr>().ok()?, prefix.parse::<u8>().ok()?);
        if !(8..=30).contains(&prefix) {
            return None;
        }
        let mask = u32::MAX << (32 - prefix);
        Some(Self {
            base: Ipv4Addr::from(u32::from(base) & mask),
            prefix,
        })
    }

    /// How many addresses it has.
    pub fn size(self) -> u32 {
        1 << (32 - self.prefix)
    }

    /// The address at an offset.
    pub fn at(self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.base).wrapping_add(offset))
    }

    /// Whether an address can be given to a Service (not the first, not the last).
    pub fn assignable(self, ip: IpAddr) -> bool {
        let IpAddr::V4(ip) = ip else { return false };
        let offset = u32::from(ip).wrapping_sub(u32::from(self.base));
        offset > 0 && offset < self.size() - 1
    }
}

impl fmt::Display for ServiceCidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

/// One of several API servers of a store.
#[derive(Clone, Debug)]
pub struct Shared {
    /// Its name among them, such as its node's.
    pub name: String,
    /// How long it may be silent before it counts as dead.
    pub lease: Duration,
}

impl Shared {
    /// A server that the others miss after 15 seconds.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            lease: Duration::from_secs(15),
        }
    }
}

/// Everything an API server needs.
pub struct Config {
    /// Where objects are kept.
    pub store: Arc<dyn store::Store>,
    /// Bound listeners to serve HTTPS on; may be empty (in-process only).
    pub listeners: Vec<std::net::TcpListener>,
    /// PEM chain of the serving certificate.
    pub serving_cert: String,
    /// PEM key of the serving certificate.
    pub serving_key: String,
    /// PEM bundle that signs client certificates.
    pub client_ca: String,
    /// PEM (PKCS#8, EC P-256) key that signs ServiceAccount tokens.
    pub service_account_key: String,
    /// Further keys (PEM, public or private, EC P-256) whose tokens are accepted.
    pub service_account_verify_keys: Vec<String>,
    /// `iss` of tokens, such as `https://kubernetes.default.svc.cluster.local`.
    pub issuer: String,
    /// Where cluster IPs come from.
    pub service_cidr: ServiceCidr,
    /// Port of the `kubernetes` Service: 443, unless whoever listens for it may not.
    pub service_port: u16,
    /// First and last NodePort.
    pub node_ports: (u16, u16),
    /// Address of the `kubernetes` Service's endpoint; `None` makes no endpoint.
    pub advertise: Option<SocketAddr>,
    /// How kubelets are reached.
    pub kubelet: KubeletAccess,
    /// Others may serve the same store; `None`: this is the only one, and keeps in memory who
    /// has which address.
    pub shared: Option<Shared>,
    /// What extension servers are shown; `None`: they can't tell who asks.
    pub front_proxy: Option<FrontProxy>,
    /// Who else may say in whose name a request comes.
    pub request_header: RequestHeader,
    /// Who asked for what is recorded; `None`: nothing is.
    pub audit: Option<crate::AuditConfig>,
    /// Text of an `AuthenticationConfiguration`: issuers of tokens that are believed.
    pub authentication: Option<String>,
    /// Text of an `EncryptionConfiguration`: what the store keeps encrypted; `None`: nothing.
    pub encryption: Option<String>,
    /// Bounds.
    pub limits: Limits,
    /// Time of day.
    pub clock: Arc<dyn Clock>,
    /// Random bytes.
    pub entropy: Entropy,
}

impl Config {
    /// A configuration with upstream's defaults around what has none.
    pub fn new(
        store: Arc<dyn store::Store>,
        serving_cert: String,
        serving_key: String,
        client_ca: String,
        service_account_key: String,
    ) -> Self {
        Self {
            store,
            listeners: Vec::new(),
            serving_cert,
            serving_key,
            client_ca,
            service_account_key,
            service_account_verify_keys: Vec::new(),
            issuer: "https://kubernetes.default.svc.cluster.local".to_owned(),
            service_cidr: ServiceCidr {
                base: Ipv4Addr::new(10, 43, 0, 0),
                prefix: 16,
            },
            service_port: 443,
            node_ports: (30000, 32767),
            advertise: None,
            kubelet: KubeletAccess::default(),
            shared: None,
            front_proxy: None,
            request_header: RequestHeader::default(),
            audit: None,
            authentication: None,
            encryption: None,
            limits: Limits::default(),
            clock: Arc::new(SystemClock),
            entropy: Arc::new(|bytes: &mut [u8]| rand::fill(bytes)),
        }
    }

    /// Refuses what can't work before anything is started.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.node_ports.0 == 0 || self.node_ports.0 > self.node_ports.1 {
            return Err(Error::NodePorts(self.node_ports.0, self.node_ports.1));
        }
        Ok(())
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Keys stay out of logs.
        f.debug_struct("Config")
            .field("listeners", &self.listeners)
            .field("issuer", &self.issuer)
            .field("service_cidr", &self.service_cidr)
            .field("node_ports", &self.node_ports)
            .field("advertise", &self.advertise)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_cidr_bounds() {
        let cidr = ServiceCidr::parse("10.43.7.9/24").unwrap();
        assert_eq!(cidr.to_string(), "10.43.7.0/24");
        assert_eq!(cidr.at(1), Ipv4Addr::new(10, 43, 7, 1));
        for (ip, ok) in [
            ("10.43.7.0", false),
            ("10.43.7.1", true),
            ("10.43.7.254", true),
            ("10.43.7.255", false),
            ("10.43.8.1", false),
            ("::1", false),
        ] {
            assert_eq!(cidr.assignable(ip.parse().unwrap()), ok, "{ip}");
        }
        for bad in ["10.43.0.0", "10.43.0.0/31", "x/16", "10.43.0.0/7"] {
            assert_eq!(ServiceCidr::parse(bad), None, "{bad}");
        }
    }
}
