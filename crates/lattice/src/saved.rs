//! What a site writes down: how often it has started, its membership, and whom it knows.

use crate::admission::Welcome;
use crate::identity::PublicKeys;
use crate::keyring::MEMBERS_MAX;
use crate::trust::{Certificate, EpochRecord};
use crate::wire::{DecodeError, Reader, Writer};

const VERSION: u8 = 1;
/// Bytes of a hub's tokens.
const TOKENS_MAX: usize = 64 * 1024 * 1024;

/// The file's content. It holds the group's key: 0600.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Saved {
    /// Grows each time the site starts.
    pub(crate) incarnation: u64,
    /// The site's own membership, if it has joined.
    pub(crate) welcome: Option<Welcome>,
    /// Certificates of others.
    pub(crate) known: Vec<Certificate>,
    /// A hub's tokens.
    pub(crate) tokens: Vec<u8>,
}

impl Saved {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.u8(VERSION).number(self.incarnation);
        w.u8(self.welcome.is_some().into());
        if let Some(welcome) = &self.welcome {
            welcome.root.write(&mut w);
            welcome.certificate.write(&mut w);
            welcome.record.write(&mut w);
            w.fixed(&welcome.group).number(welcome.members);
        }
        w.number(self.known.len() as u64);
        for certificate in &self.known {
            certificate.write(&mut w);
        }
        w.bytes(&self.tokens).finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let version = r.u8()?;
        if version != VERSION {
            return Err(DecodeError::Unknown {
                what: "the version",
                value: version.into(),
            });
        }
        let incarnation = r.number()?;
        let welcome = match r.flag("a membership")? {
            true => Some(Welcome {
                root: PublicKeys::read(&mut r)?,
                certificate: Certificate::read(&mut r)?,
                record: EpochRecord::read(&mut r)?,
                group: r.fixed()?,
                members: r.number()?,
            }),
            false => None,
        };
        let count = r.count("the list of members", MEMBERS_MAX)?;
        let known: Result<_, _> = (0..count).map(|_| Certificate::read(&mut r)).collect();
        let saved = Self {
            incarnation,
            welcome,
            known: known?,
            tokens: r.bytes("the tokens", TOKENS_MAX)?.to_vec(),
        };
        r.finish()?;
        Ok(saved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::SiteKey;
    use crate::trust::SiteName;

    #[test]
    fn what_was_written_is_read() {
        let (root, site) = (SiteKey::from_seed(&[1; 32]), SiteKey::from_seed(&[2; 32]));
        let name = SiteName {
            name: "shop-1".into(),
            region: "eu".into(),
            zone: String::new(),
        };
        let certificate = Certificate::issue(&root, *site.public(), name, 1, u64::MAX);
        let mut saved = Saved {
            incarnation: 7,
            welcome: None,
            known: vec![certificate.clone(), certificate.clone()],
            tokens: vec![1, 2, 3],
        };
        assert_eq!(Saved::decode(&saved.encode()), Ok(saved.clone()));
        saved.welcome = Some(Welcome {
            root: *root.public(),
            certificate,
            record: EpochRecord::issue(&root, 3, &[4; 32], [site.id()].into()),
            group: [4; 32],
            members: 2,
        });
        let bytes = saved.encode();
        assert_eq!(Saved::decode(&bytes), Ok(saved));
        for end in 0..bytes.len() {
            assert!(Saved::decode(&bytes[..end]).is_err());
        }
        assert!(Saved::decode(b"\x02").is_err());
    }
}
