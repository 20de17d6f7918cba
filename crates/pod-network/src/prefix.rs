//! An address prefix such as `10.42.0.0/24`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A network: an address whose bits after the first `length` are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

/// Text or numbers that are no prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("parse network {0:?}: it must be an address, a slash and a length, as 10.42.0.0/16")]
pub struct ParsePrefixError(pub String);

impl Prefix {
    /// The network that an address is in.
    ///
    /// # Errors
    /// When `length` is more than the address has bits.
    pub fn new(address: IpAddr, length: u8) -> Result<Self, ParsePrefixError> {
        let address = match address {
            IpAddr::V4(v4) if length <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
            }
            IpAddr::V6(v6) if length <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
            }
            _ => return Err(ParsePrefixError(format!("{address}/{length}"))),
        };
        Ok(Self { address, length })
    }

    /// Its first address.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// How many bits are fixed.
    pub fn length(self) -> u8 {
        self.length
    }

    /// Whether an address is in it.
    pub fn contains(self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4()
            && Self::new(address, self.length).is_ok_and(|prefix| prefix == self)
    }
}

impl FromStr for Prefix {
    type Err = ParsePrefixError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (address, length) = text.split_once('/')?;
            Self::new(address.parse().ok()?, length.parse().ok()?).ok()
        };
        parse().ok_or_else(|| ParsePrefixError(text.to_owned()))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_masks_and_contains() {
        for (text, shown) in [
            ("10.42.7.9/16", Ok("10.42.0.0/16")),
            ("1.2.3.4/32", Ok("1.2.3.4/32")),
            ("1.2.3.4/0", Ok("0.0.0.0/0")),
            ("fd00::1:2/64", Ok("fd00::/64")),
            ("::1/0", Ok("::/0")),
            ("10.0.0.0/33", Err(())),
            ("10.0.0.0", Err(())),
            ("ten/8", Err(())),
        ] {
            let parsed = text.parse::<Prefix>().map(|p| p.to_string());
            assert_eq!(parsed.map_err(|_| ()), shown.map(str::to_owned), "{text}");
        }
        let prefix: Prefix = "127.43.0.0/16".parse().unwrap();
        assert!(prefix.contains("127.43.255.1".parse().unwrap()));
        assert!(!prefix.contains("127.44.0.1".parse().unwrap()));
        assert!(!prefix.contains("::1".parse().unwrap()));
    }
}
