//! The connection to NATS: the only file that knows it. Envelopes go out to subjects and come
//! in from those listened to; anything may be lost, and nothing here is trusted or waited for.

use crate::crypto::Entropy;
use async_nats::{ConnectOptions, Event, ServerAddr, Subscriber};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::SelectAll;
use lifecycle::Scope;
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Envelopes that wait to go out; further ones are dropped, and sent again by who needs them.
const OUTGOING_MAX: usize = 4096;
/// Envelopes that came in and wait. When there are more they wait in the NATS client, which
/// drops what is beyond [`SUBSCRIPTION_MAX`].
const INCOMING_MAX: usize = 1024;
/// See [`INCOMING_MAX`].
const SUBSCRIPTION_MAX: usize = 8192;
/// Between the connection's own pings; after two without an answer it is made anew.
const PING: Duration = Duration::from_secs(30);
/// The first and the longest pause before the connection is made again.
const AGAIN_MIN: Duration = Duration::from_millis(100);
const AGAIN_MAX: Duration = Duration::from_secs(8);

/// Where NATS is and how it is spoken to.
#[derive(Clone, Default)]
pub struct LinkConfig {
    /// `nats://host:port` or `tls://host:port`, with `user:password@` where wanted.
    pub servers: Vec<String>,
    /// A credentials file (a JWT and its seed).
    pub credentials: Option<PathBuf>,
    /// A file with an nkey seed.
    pub nkey: Option<PathBuf>,
    /// Certificates (PEM) of those who may have issued the server's.
    pub tls_ca: Option<PathBuf>,
    /// This client's certificate and key (PEM).
    pub tls_client: Option<(PathBuf, PathBuf)>,
}

/// Why there can be no connection, now or ever.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum LinkError {
    #[error("read NATS server address {address}: expected such as nats://host:4222")]
    Address {
        address: String,
        source: std::io::Error,
    },
    #[error("read NATS credentials {}", path.display())]
    Credentials {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("set up the NATS client")]
    Connect(#[source] async_nats::ConnectError),
}

/// What the connection tells.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    /// It is up, or is not.
    Up(bool),
    /// An envelope came in.
    Received(Bytes),
}

/// An envelope to be published.
pub(crate) type Envelope = (String, Vec<u8>);

/// The two ends of a connection.
pub(crate) struct Link {
    pub(crate) outgoing: mpsc::Sender<Envelope>,
    pub(crate) incoming: mpsc::Receiver<LinkEvent>,
    pub(crate) subjects: watch::Sender<Vec<String>>,
}

/// The other side of a [`Link`].
pub(crate) struct LinkEnds {
    pub(crate) outgoing: mpsc::Receiver<Envelope>,
    pub(crate) incoming: mpsc::Sender<LinkEvent>,
    pub(crate) subjects: watch::Receiver<Vec<String>>,
}

impl Link {
    pub(crate) fn new() -> (Self, LinkEnds) {
        let (outgoing, out_end) = mpsc::channel(OUTGOING_MAX);
        let (in_end, incoming) = mpsc::channel(INCOMING_MAX);
        let (subjects, subjects_end) = watch::channel(Vec::new());
        let link = Self {
            outgoing,
            incoming,
            subjects,
        };
        let ends = LinkEnds {
            outgoing: out_end,
            incoming: in_end,
            subjects: subjects_end,
        };
        (link, ends)
    }

    /// Connects to NATS, now or when it can be reached, again and again.
    pub(crate) async fn nats(config: &LinkConfig, scope: &Scope) -> Result<Self, LinkError> {
        let (state, up) = watch::channel(false);
        let mut options = options(config, state).await?;
        let servers = addresses(&config.servers)?;
        // The client does not take them from the address by itself.
        let with_user = servers
            .iter()
            .find_map(|s| Some((s.username()?, s.password()?)));
        if let Some((user, password)) = with_user {
            let plain = |text| percent_decode_str(text).decode_utf8_lossy().into_owned();
            options = options.user_and_password(plain(user), plain(password));
        }
        let client = options.connect(servers).await.map_err(LinkError::Connect)?;
        let (link, ends) = Self::new();
        // It ends by its outgoing side being closed: what was said last is still sent.
        scope.spawn(run(client, ends, up));
        Ok(link)
    }
}

fn addresses(servers: &[String]) -> Result<Vec<ServerAddr>, LinkError> {
    let parse = |address: &String| {
        address.parse().map_err(|source| LinkError::Address {
            address: address.clone(),
            source,
        })
    };
    servers.iter().map(parse).collect()
}

async fn options(
    config: &LinkConfig,
    state: watch::Sender<bool>,
) -> Result<ConnectOptions, LinkError> {
    let last = Mutex::new(String::new());
    let mut options = ConnectOptions::new()
        .name("salp")
        .no_echo()
        .retry_on_initial_connect()
        .max_reconnects(None)
        .ping_interval(PING)
        .subscription_capacity(SUBSCRIPTION_MAX)
        .reconnect_delay_callback(again_after)
        .event_callback(move |event| {
            let up = match &event {
                Event::Connected => Some(true),
                Event::Disconnected | Event::Closed => Some(false),
                Event::ClientError(_) | Event::ServerError(_) => {
                    // Once, not at every attempt.
                    let text = event.to_string();
                    if std::mem::replace(&mut *last.lock(), text.clone()) != text {
                        tracing::warn!(event = text, "NATS connection");
                    }
                    None
                }
                _ => None,
            };
            if let Some(up) = up {
                state.send_replace(up);
            }
            std::future::ready(())
        });
    let unreadable = |path: &PathBuf| {
        let path = path.clone();
        move |source| LinkError::Credentials { path, source }
    };
    if let Some(path) = &config.credentials {
        options = options
            .credentials_file(path)
            .await
            .map_err(unreadable(path))?;
    }
    if let Some(path) = &config.nkey {
        let seed = tokio::fs::read_to_string(path)
            .await
            .map_err(unreadable(path))?;
        options = options.nkey(seed.trim().to_owned());
    }
    if let Some(path) = &config.tls_ca {
        options = options
            .add_root_certificates(path.clone())
            .require_tls(true);
    }
    if let Some((certificate, key)) = &config.tls_client {
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    Ok(options)
}

/// Doubles from the shortest pause to the longest, and takes a random part of the second half
/// off, so that a thousand sites do not come back at once.
fn again_after(attempts: usize) -> Duration {
    let doubled = AGAIN_MIN.saturating_mul(1 << attempts.min(10));
    let pause = doubled.min(AGAIN_MAX).as_millis() as u64;
    Duration::from_millis(pause - Entropy::system().below(pause / 2 + 1))
}

async fn run(client: async_nats::Client, mut ends: LinkEnds, mut up: watch::Receiver<bool>) {
    let mut subscribed: Vec<String> = Vec::new();
    let mut subscriptions: SelectAll<Subscriber> = SelectAll::new();
    // A state that was missed is told with the next one.
    let mut told = false;
    let mut listening = true;
    loop {
        tokio::select! {
            biased;
            changed = ends.subjects.changed(), if listening => {
                // The other side has ended; what it said last is still to be sent.
                listening = changed.is_ok();
                let wanted = ends.subjects.borrow_and_update().clone();
                for subject in wanted {
                    if subscribed.contains(&subject) {
                        continue;
                    }
                    match client.subscribe(subject.clone()).await {
                        Ok(subscription) => {
                            subscriptions.push(subscription);
                            subscribed.push(subject);
                        }
                        Err(e) => tracing::warn!(%subject, error = %e, "subscribe"),
                    }
                }
            }
            changed = up.changed() => {
                let now = changed.is_ok() && *up.borrow_and_update();
                // Down and up between two looks are told as both: what was under way is lost.
                if now && told {
                    let _ = ends.incoming.send(LinkEvent::Up(false)).await;
                }
                told = now;
                let _ = ends.incoming.send(LinkEvent::Up(now)).await;
            }
            envelope = ends.outgoing.recv() => {
                let Some((subject, bytes)) = envelope else {
                    break;
                };
                // Without a connection it would wait and then tell of the past.
                if told && let Err(e) = client.publish(subject, bytes.into()).await {
                    tracing::debug!(error = %e, "publish");
                }
            }
            Some(message) = subscriptions.next() => {
                let _ = ends.incoming.send(LinkEvent::Received(message.payload)).await;
            }
        }
    }
    // What was said last: that the site leaves.
    let _ = tokio::time::timeout(Duration::from_secs(1), client.flush()).await;
}

impl std::fmt::Debug for LinkConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Addresses may hold passwords.
        f.debug_struct("LinkConfig")
            .field("servers", &self.servers.len())
            .field("credentials", &self.credentials)
            .field("nkey", &self.nkey)
            .field("tls_ca", &self.tls_ca)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_differ() {
        for (attempts, max) in [(0, 100), (1, 200), (3, 800), (20, 8000)] {
            for _ in 0..20 {
                let pause = again_after(attempts).as_millis();
                assert!((max / 2..=max).contains(&pause), "{attempts}: {pause}");
            }
        }
    }

    #[test]
    fn addresses_are_named_when_wrong() {
        let wrong = addresses(&["nats://ok:1".into(), "what is this".into()]).unwrap_err();
        assert!(wrong.to_string().contains("what is this"), "{wrong}");
    }
}
