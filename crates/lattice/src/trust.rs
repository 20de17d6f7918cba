//! What the lattice's root signs: certificates of membership, the record of the present
//! epoch (who is revoked, which group key holds), and join tokens.
//!
//! Nothing here looks at a clock: a site's may be wrong by years. An epoch is a number that
//! the root raises when somebody is revoked; only a token's end is a time, and it is judged
//! by the hub that issued it.

use crate::crypto;
use crate::identity::{LatticeId, PublicKeys, SiteId, SiteKey};
use crate::wire::{DecodeError, Reader, Writer};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use std::collections::BTreeSet;

/// Bytes of a site's name, its region and its zone.
const NAME_MAX: usize = 63;
/// Revoked sites that an epoch record can name; a root that needs more founds a new lattice.
pub(crate) const REVOKED_MAX: usize = 16_384;
/// What a join token starts with.
const TOKEN_PREFIX: &str = "salp-join-1.";

const CERTIFICATE: &str = "salp certificate 1";
const CERTIFICATES: &str = "salp certificates 1";
const EPOCH: &str = "salp epoch 1";
const TOKEN: &str = "salp join token 1";

/// A name, region or zone as it can be: the empty region and zone mean none.
pub(crate) fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    !bytes.is_empty()
        && bytes.len() <= NAME_MAX
        && bytes.iter().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Who a site says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteName {
    /// A DNS label.
    pub name: String,
    /// Where it is, as `topology.kubernetes.io/region` says it; may be empty.
    pub region: String,
    /// Where in the region; may be empty.
    pub zone: String,
}

impl SiteName {
    /// Whether all three are DNS labels or, but for the name, empty.
    pub fn is_valid(&self) -> bool {
        let place = |text: &str| text.is_empty() || is_name(text);
        is_name(&self.name) && place(&self.region) && place(&self.zone)
    }

    pub(crate) fn write(&self, w: &mut Writer) {
        w.text(&self.name).text(&self.region).text(&self.zone);
    }

    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let name = Self {
            name: r.text("a name", NAME_MAX)?.to_owned(),
            region: r.text("a region", NAME_MAX)?.to_owned(),
            zone: r.text("a zone", NAME_MAX)?.to_owned(),
        };
        if name.is_valid() {
            Ok(name)
        } else {
            Err(DecodeError::Form("a name"))
        }
    }
}

/// The root's word that a site is a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The site's keys.
    pub keys: PublicKeys,
    /// Its name and place.
    pub name: SiteName,
    /// The epoch in which it was issued.
    pub epoch: u64,
    /// The last epoch in which it holds.
    pub last_epoch: u64,
    signature: [u8; 64],
}

impl Certificate {
    pub(crate) fn issue(
        root: &SiteKey,
        keys: PublicKeys,
        name: SiteName,
        epoch: u64,
        last_epoch: u64,
    ) -> Self {
        let mut certificate = Self {
            keys,
            name,
            epoch,
            last_epoch,
            signature: [0; 64],
        };
        certificate.signature = root.sign(CERTIFICATE, &certificate.body());
        certificate
    }

    /// The site's id.
    pub fn site(&self) -> SiteId {
        self.keys.site_id()
    }

    pub(crate) fn is_signed_by(&self, root: &PublicKeys) -> bool {
        root.verify(CERTIFICATE, &self.body(), &self.signature)
    }

    /// The root's word on many at once.
    pub(crate) fn sign_all(root: &SiteKey, certificates: &[Self]) -> [u8; 64] {
        root.sign(CERTIFICATES, &Self::all(certificates))
    }

    pub(crate) fn are_signed_by(
        certificates: &[Self],
        root: &PublicKeys,
        signature: &[u8; 64],
    ) -> bool {
        root.verify(CERTIFICATES, &Self::all(certificates), signature)
    }

    fn all(certificates: &[Self]) -> Vec<u8> {
        let mut w = Writer::new();
        w.number(certificates.len() as u64);
        for certificate in certificates {
            certificate.write(&mut w);
        }
        w.finish()
    }

    fn body(&self) -> Vec<u8> {
        let mut w = Writer::new();
        self.keys.write(&mut w);
        self.name.write(&mut w);
        w.number(self.epoch).number(self.last_epoch).finish()
    }

    pub(crate) fn write(&self, w: &mut Writer) {
        w.fixed(&self.body()).fixed(&self.signature);
    }

    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            keys: PublicKeys::read(r)?,
            name: SiteName::read(r)?,
            epoch: r.number()?,
            last_epoch: r.number()?,
            signature: r.fixed()?,
        })
    }
}

/// The root's word on the present: who is revoked, and which group key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochRecord {
    /// Higher is newer.
    pub epoch: u64,
    /// The digest of the group key, so that any member can hand the key on.
    pub commitment: [u8; 32],
    /// Sites that are members no more.
    pub revoked: BTreeSet<SiteId>,
    signature: [u8; 64],
}

impl EpochRecord {
    pub(crate) fn issue(
        root: &SiteKey,
        epoch: u64,
        group: &[u8; 32],
        revoked: BTreeSet<SiteId>,
    ) -> Self {
        let mut record = Self {
            epoch,
            commitment: commitment(group),
            revoked,
            signature: [0; 64],
        };
        record.signature = root.sign(EPOCH, &record.body());
        record
    }

    pub(crate) fn is_signed_by(&self, root: &PublicKeys) -> bool {
        root.verify(EPOCH, &self.body(), &self.signature)
    }

    /// Whether this is the epoch's key.
    pub(crate) fn commits_to(&self, group: &[u8; 32]) -> bool {
        self.commitment == commitment(group)
    }

    fn body(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.number(self.epoch).fixed(&self.commitment);
        w.number(self.revoked.len() as u64);
        for site in &self.revoked {
            w.fixed(&site.0);
        }
        w.finish()
    }

    pub(crate) fn write(&self, w: &mut Writer) {
        w.fixed(&self.body()).fixed(&self.signature);
    }

    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let epoch = r.number()?;
        let commitment = r.fixed()?;
        let count = r.count("the list of revoked sites", REVOKED_MAX)?;
        let mut revoked = BTreeSet::new();
        for _ in 0..count {
            let site = SiteId(r.fixed()?);
            // Sorted and each once, so that a list has one form.
            if revoked.last().is_some_and(|last| *last >= site) {
                return Err(DecodeError::Form("the list of revoked sites"));
            }
            revoked.insert(site);
        }
        Ok(Self {
            epoch,
            commitment,
            revoked,
            signature: r.fixed()?,
        })
    }
}

fn commitment(group: &[u8; 32]) -> [u8; 32] {
    crypto::digest(&[b"salp group key 1", group])
}

/// What lets a site join without anybody approving it. Whoever holds it may use it until
/// it ends, so it is short-lived and passed on like a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinToken {
    /// The root that issued it, which the joining site trusts from then on.
    pub root: PublicKeys,
    /// Which token it is.
    pub id: [u8; 8],
    /// When it ends by the hub's clock, in seconds since 1970.
    pub expires: u64,
    /// How many sites may use it.
    pub uses: u32,
    signature: [u8; 64],
}

impl JoinToken {
    pub(crate) fn issue(root: &SiteKey, id: [u8; 8], expires: u64, uses: u32) -> Self {
        let mut token = Self {
            root: *root.public(),
            id,
            expires,
            uses,
            signature: [0; 64],
        };
        token.signature = root.sign(TOKEN, &token.body());
        token
    }

    /// Whether the root that it names signed it.
    pub(crate) fn is_signed(&self) -> bool {
        self.root.verify(TOKEN, &self.body(), &self.signature)
    }

    /// The lattice it is for.
    pub fn lattice(&self) -> LatticeId {
        self.root.lattice_id()
    }

    fn body(&self) -> Vec<u8> {
        let mut w = Writer::new();
        self.root.write(&mut w);
        w.fixed(&self.id).number(self.expires);
        w.number(self.uses.into()).finish()
    }

    pub(crate) fn write(&self, w: &mut Writer) {
        w.fixed(&self.body()).fixed(&self.signature);
    }

    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            root: PublicKeys::read(r)?,
            id: r.fixed()?,
            expires: r.number()?,
            uses: r.count("a number of uses", u32::MAX as usize)? as u32,
            signature: r.fixed()?,
        })
    }

    /// The token as people pass it on.
    pub fn to_text(&self) -> String {
        let mut w = Writer::new();
        self.write(&mut w);
        format!(
            "{TOKEN_PREFIX}{}",
            BASE64_URL_SAFE_NO_PAD.encode(w.as_slice())
        )
    }

    /// Reads it again, and checks that the root it names signed it.
    ///
    /// # Errors
    /// When the text is no token, or was changed.
    pub fn from_text(text: &str) -> Result<Self, TokenError> {
        let body = text
            .trim()
            .strip_prefix(TOKEN_PREFIX)
            .ok_or(TokenError::Prefix)?;
        let bytes = BASE64_URL_SAFE_NO_PAD
            .decode(body)
            .map_err(|_| TokenError::Form)?;
        let mut r = Reader::new(&bytes);
        let token = Self::read(&mut r).map_err(|_| TokenError::Form)?;
        r.finish().map_err(|_| TokenError::Form)?;
        if token.is_signed() {
            Ok(token)
        } else {
            Err(TokenError::Signature)
        }
    }
}

/// Why a text is no join token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum TokenError {
    #[error("read join token: it does not start with {TOKEN_PREFIX}")]
    Prefix,
    #[error("read join token: it is cut or mistyped")]
    Form,
    #[error("read join token: it was changed")]
    Signature,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> SiteKey {
        SiteKey::from_seed(&[1; 32])
    }

    fn name(name: &str) -> SiteName {
        SiteName {
            name: name.into(),
            region: "eu".into(),
            zone: String::new(),
        }
    }

    #[test]
    fn a_certificate_is_what_its_root_signed() {
        let site = SiteKey::from_seed(&[2; 32]);
        let issued = Certificate::issue(&root(), *site.public(), name("shop-1"), 3, u64::MAX);
        let mut w = Writer::new();
        issued.write(&mut w);
        let bytes = w.finish();
        let read = Certificate::read(&mut Reader::new(&bytes)).unwrap();
        assert_eq!(read, issued);
        assert!(read.is_signed_by(root().public()));
        assert!(!read.is_signed_by(site.public()));
        for i in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[i] ^= 1;
            let read = Certificate::read(&mut Reader::new(&changed));
            assert!(
                read.is_err() || !read.unwrap().is_signed_by(root().public()),
                "byte {i}"
            );
        }
    }

    #[test]
    fn an_epoch_names_the_revoked_and_its_key() {
        let revoked = [SiteId([1; 16]), SiteId([2; 16])].into();
        let issued = EpochRecord::issue(&root(), 4, &[5; 32], revoked);
        let mut w = Writer::new();
        issued.write(&mut w);
        let read = EpochRecord::read(&mut Reader::new(w.as_slice())).unwrap();
        assert_eq!(read, issued);
        assert!(read.is_signed_by(root().public()));
        assert!(read.commits_to(&[5; 32]) && !read.commits_to(&[6; 32]));
        let mut fewer = read.clone();
        fewer.revoked.pop_last();
        assert!(!fewer.is_signed_by(root().public()));
    }

    #[test]
    fn a_token_is_read_as_it_was_written() {
        let token = JoinToken::issue(&root(), [7; 8], 1_700_000_000, 3);
        let text = token.to_text();
        assert_eq!(JoinToken::from_text(&text), Ok(token));
        assert_eq!(JoinToken::from_text("abc"), Err(TokenError::Prefix));
        assert_eq!(JoinToken::from_text(&text[..60]), Err(TokenError::Form));
        let mut other = JoinToken::issue(&root(), [7; 8], 1_700_000_000, 3);
        other.uses = 4;
        assert_eq!(
            JoinToken::from_text(&other.to_text()),
            Err(TokenError::Signature)
        );
    }

    #[test]
    fn names_are_labels() {
        assert!(name("shop-1").is_valid());
        for bad in ["", "-a", "a-", "A", "a.b", "ä", &"a".repeat(64)] {
            assert!(!name(bad).is_valid(), "{bad}");
        }
    }
}
