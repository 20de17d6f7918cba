//! How registries are reached: timeouts, retries, mirrors, certificates.

use crate::reference::is_loopback;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Settings for all registries.
#[derive(Clone, Debug)]
pub struct RegistryConfig {
    /// Settings by registry (`docker.io`, `localhost:5000`).
    pub hosts: BTreeMap<String, HostConfig>,
    /// More certificate authorities to trust, PEM files.
    pub ca_files: Vec<PathBuf>,
    /// Docker's and Podman's credential files; see [`crate::default_auth_files`].
    pub auth_files: Vec<PathBuf>,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long a registry may be silent inside a request.
    pub stall_timeout: Duration,
    /// How often a request is tried without progress.
    pub attempts_max: u32,
    /// Wait before the second attempt; doubles from there.
    pub backoff_base: Duration,
    /// Longest wait between attempts.
    pub backoff_max: Duration,
    /// Bytes of one layer at most.
    pub layer_bytes_max: u64,
    /// Bytes of all layers together at most.
    pub image_bytes_max: u64,
}

/// Settings for one registry.
#[derive(Clone, Debug, Default)]
pub struct HostConfig {
    /// Overrides the rule that this machine is reached by http and others by https.
    pub scheme: Option<Scheme>,
    /// Accept any certificate.
    pub skip_tls_verify: bool,
    /// Asked first, in order: `host[:port][/path]` or a URL.
    pub mirrors: Vec<String>,
}

/// How a registry is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Plain.
    Http,
    /// TLS.
    Https,
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Https => "https",
        })
    }
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            hosts: BTreeMap::new(),
            ca_files: Vec::new(),
            auth_files: Vec::new(),
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            attempts_max: 5,
            backoff_base: Duration::from_millis(250),
            backoff_max: Duration::from_secs(20),
            layer_bytes_max: 8 << 30,
            image_bytes_max: 16 << 30,
        }
    }
}

impl RegistryConfig {
    pub(super) fn mirrors_of(&self, registry: &str) -> &[String] {
        self.hosts
            .get(registry)
            .map_or(&[], |host| host.mirrors.as_slice())
    }

    pub(super) fn scheme_of(&self, registry: &str) -> Scheme {
        // A mirror may be given with a path.
        let host = registry.split('/').next().unwrap_or(registry);
        let configured = self.hosts.get(host).and_then(|host| host.scheme);
        configured.unwrap_or(if is_loopback(host) {
            Scheme::Http
        } else {
            Scheme::Https
        })
    }

    pub(super) fn skips_tls_verify(&self, registry: &str) -> bool {
        self.hosts
            .get(registry)
            .is_some_and(|host| host.skip_tls_verify)
    }

    /// The wait after the n-th failure in a row (from 1): exponential, half of it random so
    /// that a fleet does not come back at once, never shorter than what the registry asked
    /// for (up to `backoff_max`).
    pub(crate) fn delay(&self, failures: u32, asked: Option<Duration>) -> Duration {
        let doublings = failures.saturating_sub(1).min(16);
        let full = (self.backoff_base * 2u32.pow(doublings)).min(self.backoff_max);
        let jittered = full / 2 + full.mul_f64(rand::random::<f64>() / 2.0);
        jittered.max(asked.unwrap_or_default().min(self.backoff_max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_plain_and_others_are_not() {
        let mut config = RegistryConfig::default();
        assert_eq!(config.scheme_of("localhost:5000"), Scheme::Http);
        assert_eq!(config.scheme_of("r.io"), Scheme::Https);
        config.hosts.insert(
            "r.io".to_owned(),
            HostConfig {
                scheme: Some(Scheme::Http),
                ..HostConfig::default()
            },
        );
        assert_eq!(config.scheme_of("r.io/path"), Scheme::Http);
    }

    #[test]
    fn waits_double_up_to_the_bound_and_heed_the_registry() {
        let config = RegistryConfig::default();
        for (failures, full_ms) in [(1, 250), (2, 500), (4, 2000), (60, 20_000)] {
            let delay = config.delay(failures, None);
            let full = Duration::from_millis(full_ms);
            assert!(delay >= full / 2 && delay <= full, "{failures}: {delay:?}");
        }
        let asked = Some(Duration::from_secs(3));
        assert_eq!(config.delay(1, asked), Duration::from_secs(3));
        let day = Some(Duration::from_secs(86_400));
        assert_eq!(config.delay(1, day), config.backoff_max);
    }
}
