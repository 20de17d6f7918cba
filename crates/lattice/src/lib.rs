//! Sites meet over NATS: who is a member, who is there, what each tells all others, and
//! streams between any two. It knows nothing of Kubernetes: state is named bytes, streams
//! are for a protocol by name.
//!
//! NATS is not trusted: it carries envelopes that only members can open, says nothing about
//! who sent them, and holds no state. It may lose, repeat, delay and forge.
//!
//! Start with [`Lattice::start`]; the rules are in `member` (pure: envelopes in, envelopes
//! out), what is signed in `trust`, what is sealed in `keyring`, who is alive in
//! `membership`, streams in `streams`. Only `link` knows NATS. Sites that reach each other
//! without it speak TLS by the same keys: `tls`.

mod admission;
mod crypto;
mod files;
mod hub;
mod identity;
mod keyring;
mod link;
mod member;
mod membership;
mod message;
mod mux;
mod saved;
#[doc(hidden)]
pub mod simulating;
mod site;
mod state;
mod streams;
mod tls;
mod trust;
mod wire;

pub use crypto::Entropy;
pub use hub::{HubError, PendingSite};
pub use identity::{KeyError, LatticeId, NoSiteId, PublicKeys, SiteId, SiteKey};
pub use link::{LinkConfig, LinkError};
pub use member::{SiteView, Standing, View};
pub use membership::{SiteState, Timing};
pub use mux::{Incoming, SiteStream};
pub use site::{Gathered, Lattice, LatticeConfig, OpenError, QueryError, Role, StartError};
pub use state::{ENTRIES_MAX, KEY_MAX, PublishError, STATE_MAX, VALUE_MAX};
pub use streams::{StreamError, WINDOW};
pub use trust::{Certificate, EpochRecord, JoinToken, SiteName, TokenError};

/// Parsers of what comes from outside, for the fuzz targets.
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::admission::{JoinRequest, Welcome};
    pub use crate::keyring::EnvelopeKind;
    pub use crate::message::Message;
    pub use crate::wire::DecodeError;

    /// Reads a record as the peer of an attacker would, whatever it is.
    pub fn parse_all(bytes: &[u8]) {
        use crate::wire::Reader;
        let _ = EnvelopeKind::of(bytes);
        let _ = crate::trust::Certificate::read(&mut Reader::new(bytes));
        let _ = crate::trust::EpochRecord::read(&mut Reader::new(bytes));
        let _ = crate::saved::Saved::decode(bytes);
        if let Ok(message) = Message::decode(bytes) {
            assert_eq!(message.encode(), bytes, "a message has one form");
        }
        if let Ok(text) = std::str::from_utf8(bytes)
            && let Ok(token) = crate::JoinToken::from_text(text)
        {
            assert_eq!(token.to_text(), text.trim());
        }
    }
}
