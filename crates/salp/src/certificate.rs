//! What a node reads in its certificates: how long they are good, and whose they are.

use std::net::IpAddr;
use std::time::Duration;

/// The part of its life after which a certificate is renewed, and over how much of it nodes
/// spread, as upstream has it.
const RENEW_AFTER: f64 = 0.7;
const RENEW_SPREAD: f64 = 0.2;

/// From when until when a certificate is good, seconds; one that can't be read never is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Life {
    from: i64,
    until: i64,
}

impl Life {
    pub fn of(cert_pem: &str) -> Self {
        let life = with_certificate(cert_pem, |cert| Self {
            from: cert.validity().not_before.timestamp(),
            until: cert.validity().not_after.timestamp(),
        });
        life.unwrap_or_default()
    }

    pub fn is_over(self) -> bool {
        jiff::Timestamp::now().as_second() >= self.until
    }

    /// How long it need not be renewed; `jitter` is this node's own, from 0 to 1.
    pub fn left(self, jitter: f64) -> Duration {
        self.left_at(jiff::Timestamp::now().as_second(), jitter)
    }

    fn left_at(self, now: i64, jitter: f64) -> Duration {
        let life = Duration::from_secs(u64::try_from(self.until - self.from).unwrap_or(0));
        let due = life.mul_f64(RENEW_AFTER + RENEW_SPREAD * jitter.clamp(0.0, 1.0));
        // Before its time the clock is wrong: no reason to ask again and again.
        let age = Duration::from_secs(u64::try_from(now - self.from).unwrap_or(0));
        due.saturating_sub(age)
    }
}

/// Whether a certificate is for an address.
pub fn names(cert_pem: &str, address: IpAddr) -> bool {
    use x509_parser::extensions::GeneralName;
    let wanted = match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    };
    let named = with_certificate(cert_pem, |cert| {
        let names = cert.subject_alternative_name().ok().flatten();
        names.is_some_and(|san| {
            let mut names = san.value.general_names.iter();
            names.any(|name| matches!(name, GeneralName::IPAddress(raw) if **raw == *wanted))
        })
    });
    named.unwrap_or(false)
}

/// The node whose client certificate this is.
pub fn node_of(cert_pem: &str) -> Option<String> {
    with_certificate(cert_pem, |cert| {
        let name = cert.subject().iter_common_name().next()?.as_str().ok()?;
        Some(name.strip_prefix("system:node:")?.to_owned())
    })?
}

fn with_certificate<T>(
    cert_pem: &str,
    read: impl FnOnce(&x509_parser::certificate::X509Certificate<'_>) -> T,
) -> Option<T> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(cert_pem.as_bytes()).ok()?;
    pem.parse_x509().ok().map(|cert| read(&cert))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, SanType};

    #[test]
    fn certificates_are_renewed_late_in_their_life() {
        let life = Life {
            from: 1000,
            until: 2000,
        };
        for (now, jitter, left) in [
            (1000, 0.0, 700),
            (1000, 1.0, 900),
            (1000, 7.0, 900),
            (1600, 0.5, 200),
            (1900, 1.0, 0),
            (2500, 0.0, 0),
            // The clock is behind.
            (10, 0.0, 700),
        ] {
            let found = life.left_at(now, jitter);
            assert_eq!(found, Duration::from_secs(left), "{now} {jitter}");
        }
        assert_eq!(Life::of("nonsense").left_at(5, 0.0), Duration::ZERO);
        assert!(Life::of("nonsense").is_over());
    }

    #[test]
    fn a_certificate_s_life_and_addresses_are_read() {
        let mut params = CertificateParams::new(vec!["n1".to_owned()]).unwrap();
        let here: IpAddr = "192.0.2.1".parse().unwrap();
        params.subject_alt_names.push(SanType::IpAddress(here));
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 1, 11);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let life = Life::of(&pem);
        assert_eq!(life.until - life.from, 10 * 86_400);
        assert!(life.is_over());
        assert!(names(&pem, here));
        assert!(!names(&pem, "192.0.2.2".parse().unwrap()));
    }
}
