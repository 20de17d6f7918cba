//! Addresses, prefixes and URLs.
//!
//! The reference is `k8s.io/apiserver/pkg/cel/library/{ip,cidr,urls}.go`.

use super::eval::EvalError;
use super::value::{Key, Map, Value};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

type Result<'a> = std::result::Result<Value<'a>, EvalError>;

/// An address and how many of its bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    pub(super) address: IpAddr,
    pub(super) bits: u8,
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl Cidr {
    fn parse(s: &str) -> std::result::Result<Self, String> {
        let bad = || format!("network address parse error during conversion from string: {s:?}");
        let (address, bits) = s.split_once('/').ok_or_else(bad)?;
        let address = parse_ip(address)?;
        let plain = bits.len() == 1 || !bits.starts_with('0');
        let digits = !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit());
        let most = if address.is_ipv4() { 32 } else { 128 };
        match bits.parse::<u8>() {
            Ok(n) if plain && digits && n <= most => Ok(Self { address, bits: n }),
            _ => Err(bad()),
        }
    }

    fn masked(self) -> Self {
        let address = match self.address {
            IpAddr::V4(a) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                IpAddr::V4((u32::from(a) & mask).into())
            }
            IpAddr::V6(a) => {
                let mask = u128::MAX
                    .checked_shl(128 - u32::from(self.bits))
                    .unwrap_or(0);
                IpAddr::V6((u128::from(a) & mask).into())
            }
        };
        Self { address, ..self }
    }

    fn contains(self, a: IpAddr) -> bool {
        self.address.is_ipv4() == a.is_ipv4()
            && Self {
                address: a,
                bits: self.bits,
            }
            .masked()
            .address
                == self.masked().address
    }
}

/// An address as upstream takes one: no zone, no IPv4 in IPv6.
fn parse_ip(s: &str) -> std::result::Result<IpAddr, String> {
    match s.parse::<IpAddr>() {
        Ok(IpAddr::V6(a)) if a.to_ipv4_mapped().is_some() => Err(format!(
            "IP Address {s:?} parse error during conversion from string: IPv4-mapped IPv6 address is not allowed"
        )),
        Ok(a) => Ok(a),
        Err(_) => Err(format!(
            "IP Address {s:?} parse error during conversion from string"
        )),
    }
}

/// A URL: absolute, or an absolute path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    scheme: String,
    /// With port.
    host: String,
    path: String,
    query: String,
}

impl Url {
    pub(super) fn parse(s: &str) -> Option<Self> {
        if s.is_empty() || s.bytes().any(|b| b < 0x20 || b == 0x7f) {
            return None;
        }
        let (scheme, rest) = if s.starts_with('/') {
            ("", s)
        } else {
            let (scheme, rest) = s.split_once(':')?;
            let good = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
            (good.then_some(scheme)?, rest)
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (host, path) = match rest.strip_prefix("//") {
            Some(r) if !scheme.is_empty() || !s.starts_with("///") => {
                let end = r.find('/').unwrap_or(r.len());
                (&r[..end], &r[end..])
            }
            _ => ("", rest),
        };
        let host = host.rsplit_once('@').map_or(host, |(_, h)| h);
        let odd =
            |c: char| c == ' ' || matches!(c, '<' | '>' | '"' | '{' | '}' | '|' | '\\' | '^' | '`');
        if host.contains(odd) || !port_is_sound(host) || !escapes_are_sound(path) {
            return None;
        }
        Some(Self {
            scheme: scheme.to_ascii_lowercase(),
            host: host.to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
        })
    }

    fn hostname(&self) -> &str {
        match self.host.strip_prefix('[') {
            Some(r) => r.split(']').next().unwrap_or_default(),
            None => self.host.split(':').next().unwrap_or_default(),
        }
    }

    fn port(&self) -> &str {
        let after = self.host.rsplit(']').next().unwrap_or_default();
        after.rsplit_once(':').map_or("", |(_, p)| p)
    }
}

fn port_is_sound(host: &str) -> bool {
    let tail = match host.strip_prefix('[') {
        Some(r) => match r.split_once(']') {
            Some((inner, tail)) if !inner.is_empty() => tail,
            _ => return false,
        },
        None => &host[host.find(':').unwrap_or(host.len())..],
    };
    match tail.strip_prefix(':') {
        Some(port) => port.bytes().all(|b| b.is_ascii_digit()),
        None => tail.is_empty(),
    }
}

fn escapes_are_sound(path: &str) -> bool {
    path.split('%').skip(1).all(|p| {
        let b = p.as_bytes();
        b.len() >= 2 && b[0].is_ascii_hexdigit() && b[1].is_ascii_hexdigit()
    })
}

/// What a path is when it is written out.
fn escaped(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for b in path.bytes() {
        let plain = b.is_ascii_alphanumeric() || b"-_.~/$&+,:;=@%!*'()[]".contains(&b);
        if plain {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

fn unescaped(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let hex = |b: Option<&u8>| b.and_then(|b| char::from(*b).to_digit(16));
    let mut i = 0;
    while i < bytes.len() {
        match (bytes[i], hex(bytes.get(i + 1)), hex(bytes.get(i + 2))) {
            (b'%', Some(a), Some(b)) => {
                out.push((a * 16 + b) as u8);
                i += 2;
            }
            (b'+', ..) => out.push(b' '),
            (b, ..) => out.push(b),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

pub(super) fn call<'a>(name: &'static str, args: &[Value<'a>]) -> Result<'a> {
    match (name, args) {
        ("ip", [Value::String(s)]) => parse_ip(s).map(Value::Ip).map_err(EvalError::new),
        ("ip", [Value::Cidr(c)]) => Ok(Value::Ip(c.address)),
        ("isIP", [Value::String(s)]) => Ok(Value::Bool(parse_ip(s).is_ok())),
        ("ip.isCanonical", [Value::String(s)]) => {
            let a = parse_ip(s).map_err(EvalError::new)?;
            Ok(Value::Bool(a.to_string() == **s))
        }
        ("cidr", [Value::String(s)]) => Cidr::parse(s).map(Value::Cidr).map_err(EvalError::new),
        ("isCIDR", [Value::String(s)]) => Ok(Value::Bool(Cidr::parse(s).is_ok())),
        ("isURL", [Value::String(s)]) => Ok(Value::Bool(Url::parse(s).is_some())),
        ("url", [Value::String(s)]) => Url::parse(s)
            .map(|u| Value::Url(Arc::new(u)))
            .ok_or_else(|| EvalError::new(format!("URL parse error during conversion from string: parse {:?}: invalid URI for request", &**s))),
        (_, [Value::Ip(a)]) => of_ip(name, *a),
        (_, [Value::Cidr(c), rest @ ..]) => of_cidr(name, *c, rest),
        (_, [Value::Url(u)]) => of_url(name, u),
        _ => Err(EvalError::overload()),
    }
}

fn of_ip<'a>(name: &str, a: IpAddr) -> Result<'a> {
    let link_local = match a {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    };
    let link_multicast = match a {
        IpAddr::V4(a) => a.octets()[..3] == [224, 0, 0],
        IpAddr::V6(a) => a.segments()[0] & 0xff0f == 0xff02,
    };
    let broadcast = matches!(a, IpAddr::V4(a) if a.is_broadcast());
    Ok(match name {
        "family" => Value::Int(if a.is_ipv4() { 4 } else { 6 }),
        "isUnspecified" => Value::Bool(a.is_unspecified()),
        "isLoopback" => Value::Bool(a.is_loopback()),
        "isLinkLocalMulticast" => Value::Bool(link_multicast),
        "isLinkLocalUnicast" => Value::Bool(link_local),
        "isGlobalUnicast" => Value::Bool(
            !(a.is_unspecified() || a.is_loopback() || a.is_multicast() || link_local || broadcast),
        ),
        _ => return Err(EvalError::overload()),
    })
}

fn of_cidr<'a>(name: &str, c: Cidr, rest: &[Value<'a>]) -> Result<'a> {
    Ok(match (name, rest) {
        ("containsIP", [Value::Ip(a)]) => Value::Bool(c.contains(*a)),
        ("containsIP", [Value::String(s)]) => {
            Value::Bool(c.contains(parse_ip(s).map_err(EvalError::new)?))
        }
        ("containsCIDR", [other]) => {
            let other = match other {
                Value::Cidr(o) => *o,
                Value::String(s) => Cidr::parse(s).map_err(EvalError::new)?,
                _ => return Err(EvalError::overload()),
            };
            Value::Bool(c.bits <= other.bits && c.contains(other.address))
        }
        ("masked", []) => Value::Cidr(c.masked()),
        ("prefixLength", []) => Value::Int(i64::from(c.bits)),
        _ => return Err(EvalError::overload()),
    })
}

fn of_url<'a>(name: &str, u: &Url) -> Result<'a> {
    Ok(match name {
        "getScheme" => u.scheme.clone().into(),
        "getHost" => u.host.clone().into(),
        "getHostname" => u.hostname().to_owned().into(),
        "getPort" => u.port().to_owned().into(),
        "getEscapedPath" => escaped(&u.path).into(),
        "getQuery" => {
            let mut all: BTreeMap<Key, Vec<Value<'a>>> = BTreeMap::new();
            for pair in u.query.split('&').filter(|p| !p.is_empty()) {
                let (k, v) = pair.split_once('=').unwrap_or((pair, ""));
                let key = Key::String(unescaped(k).into());
                all.entry(key).or_default().push(unescaped(v).into());
            }
            let all = all.into_iter().map(|(k, v)| (k, v.into()));
            Value::Map(Map::Own(Arc::new(all.collect())))
        }
        _ => return Err(EvalError::overload()),
    })
}
