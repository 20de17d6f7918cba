//! How a site becomes a member: it asks ([`JoinRequest`]), and a hub answers with all that a
//! member needs ([`Welcome`]), sealed for that site.
//!
//! A site with a token knows the root and seals its question for it; one without sends it in
//! the open (its name and public keys, nothing else), waits until somebody approves it at
//! the hub, and trusts the root that welcomes it first.

use crate::crypto;
use crate::identity::{LatticeId, PublicKeys, SiteKey};
use crate::trust::{Certificate, EpochRecord, JoinToken, SiteName};
use crate::wire::{DecodeError, Reader, Writer};

const REQUEST: &str = "salp join request 1";
const WELCOME: &str = "salp welcome 1";

/// A site asks to become a member, or, being one, for the present epoch's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinRequest {
    /// Its keys.
    pub keys: PublicKeys,
    /// Its name and place.
    pub name: SiteName,
    /// What admits it at once.
    pub token: Option<JoinToken>,
}

impl JoinRequest {
    /// The request as bytes, signed, and sealed for the root if that is known.
    pub(crate) fn seal(
        &self,
        key: &SiteKey,
        root: Option<&PublicKeys>,
        random: [u8; 32],
    ) -> Vec<u8> {
        let mut w = Writer::new();
        self.keys.write(&mut w);
        self.name.write(&mut w);
        w.u8(self.token.is_some().into());
        if let Some(token) = &self.token {
            token.write(&mut w);
        }
        let signature = key.sign(REQUEST, w.as_slice());
        let body = w.fixed(&signature).finish();
        let mut out = Writer::new();
        match root {
            None => out.u8(0).fixed(&body),
            Some(root) => {
                let sealed = crypto::seal_to(&root.agree, REQUEST, &body, random);
                out.u8(1).fixed(&root.lattice_id().0).fixed(&sealed)
            }
        };
        out.finish()
    }

    /// Opens a request for this root; `None` when it is sealed for another.
    ///
    /// # Errors
    /// When it is no request, or the site did not sign it.
    pub fn open(root: &SiteKey, bytes: &[u8]) -> Result<Option<Self>, DecodeError> {
        let mut r = Reader::new(bytes);
        if !r.flag("the sealing")? {
            return Self::read(r.rest()).map(Some);
        }
        if LatticeId(r.fixed()?) != root.public().lattice_id() {
            return Ok(None);
        }
        let body = crypto::open_sealed(root, REQUEST, r.rest());
        let body = body.ok_or(DecodeError::Form("a sealed request"))?;
        Self::read(&body).map(Some)
    }

    fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let keys = PublicKeys::read(&mut r)?;
        let name = SiteName::read(&mut r)?;
        let token = match r.flag("a token")? {
            true => Some(JoinToken::read(&mut r)?),
            false => None,
        };
        let signed = &bytes[..bytes.len() - r.rest().len()];
        let signature: [u8; 64] = r.fixed()?;
        r.finish()?;
        if !keys.verify(REQUEST, signed, &signature) {
            return Err(DecodeError::Form("the request's signature"));
        }
        Ok(Self { keys, name, token })
    }
}

/// What makes a site a member. Every part is signed by the root or committed to by it, so
/// it does not matter who carries it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The root's keys.
    pub root: PublicKeys,
    /// The site's certificate.
    pub certificate: Certificate,
    /// The present epoch.
    pub record: EpochRecord,
    /// Its group key.
    pub group: [u8; 32],
    /// How many members there are, about: a newcomer greets a thousand otherwise than ten.
    pub members: u64,
}

impl Welcome {
    pub(crate) fn seal(&self, random: [u8; 32]) -> Vec<u8> {
        let mut w = Writer::new();
        self.root.write(&mut w);
        self.certificate.write(&mut w);
        self.record.write(&mut w);
        w.fixed(&self.group).number(self.members);
        let to = &self.certificate.keys.agree;
        crypto::seal_to(to, WELCOME, &w.finish(), random)
    }

    /// Opens a welcome for this site and checks that the root it names means it.
    ///
    /// # Errors
    /// When it is for another site, or its parts are not the root's.
    pub fn open(key: &SiteKey, bytes: &[u8]) -> Result<Self, DecodeError> {
        let body = crypto::open_sealed(key, WELCOME, bytes);
        let body = body.ok_or(DecodeError::Form("a sealed welcome"))?;
        let mut r = Reader::new(&body);
        let welcome = Self {
            root: PublicKeys::read(&mut r)?,
            certificate: Certificate::read(&mut r)?,
            record: EpochRecord::read(&mut r)?,
            group: r.fixed()?,
            members: r.number()?,
        };
        r.finish()?;
        let root = &welcome.root;
        if welcome.certificate.keys != *key.public()
            || !welcome.certificate.is_signed_by(root)
            || !welcome.record.is_signed_by(root)
            || !welcome.record.commits_to(&welcome.group)
        {
            return Err(DecodeError::Form("the welcome's signature"));
        }
        Ok(welcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(key: &SiteKey, token: Option<JoinToken>) -> JoinRequest {
        JoinRequest {
            keys: *key.public(),
            name: SiteName {
                name: "shop-1".into(),
                region: "eu".into(),
                zone: "eu-1".into(),
            },
            token,
        }
    }

    #[test]
    fn a_request_reaches_its_root_alone() {
        let (root, other) = (SiteKey::from_seed(&[1; 32]), SiteKey::from_seed(&[2; 32]));
        let site = SiteKey::from_seed(&[3; 32]);
        let token = JoinToken::issue(&root, [1; 8], 5, 1);
        let asked = request(&site, Some(token));
        let sealed = asked.seal(&site, Some(root.public()), [4; 32]);
        assert_eq!(JoinRequest::open(&root, &sealed), Ok(Some(asked)));
        assert_eq!(JoinRequest::open(&other, &sealed), Ok(None));
        let asked = request(&site, None);
        let plain = asked.seal(&site, None, [4; 32]);
        assert_eq!(JoinRequest::open(&other, &plain), Ok(Some(asked.clone())));
        // Signed by another site than the one it names.
        let stolen = asked.seal(&other, None, [4; 32]);
        assert!(JoinRequest::open(&root, &stolen).is_err());
        for sealed in [sealed, plain] {
            for i in 0..sealed.len() {
                let mut changed = sealed.clone();
                changed[i] ^= 0x80;
                let opened = JoinRequest::open(&root, &changed);
                assert!(matches!(opened, Err(_) | Ok(None)), "byte {i}");
            }
        }
    }

    #[test]
    fn a_welcome_is_for_one_site_and_of_one_root() {
        let (root, other) = (SiteKey::from_seed(&[1; 32]), SiteKey::from_seed(&[2; 32]));
        let site = SiteKey::from_seed(&[3; 32]);
        let asked = request(&site, None);
        let issue = |certifier: &SiteKey, group| Welcome {
            root: *root.public(),
            certificate: Certificate::issue(certifier, asked.keys, asked.name.clone(), 1, u64::MAX),
            record: EpochRecord::issue(&root, 1, &[5; 32], [].into()),
            group,
            members: 3,
        };
        let welcome = issue(&root, [5; 32]);
        let sealed = welcome.seal([6; 32]);
        assert_eq!(Welcome::open(&site, &sealed), Ok(welcome));
        assert!(Welcome::open(&other, &sealed).is_err());
        assert!(Welcome::open(&site, &issue(&other, [5; 32]).seal([6; 32])).is_err());
        assert!(Welcome::open(&site, &issue(&root, [7; 32]).seal([6; 32])).is_err());
    }
}
