//! What members say to each other, inside the envelopes of the keyring.

use crate::identity::SiteId;
use crate::state::Delta;
use crate::trust::Certificate;
use crate::wire::{DecodeError, Reader, Writer};
use bytes::Bytes;

/// Sites asked about, or missed, in one message.
const ASKED_MAX: usize = 64;
/// Certificates in one message, and sites in one roll.
pub(crate) const MEMBERS_MAX: usize = 256;
pub(crate) const ROLL_MAX: usize = 512;
/// Bytes of a stream's data in one frame.
pub(crate) const FRAME_MAX: usize = 32 * 1024;
/// Bytes of a protocol's name.
pub(crate) const PROTOCOL_MAX: usize = 128;
/// Bytes of a reason.
pub(crate) const REASON_MAX: usize = 256;

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// To all: here I am, and my state has this revision.
    Beat {
        /// The state's revision.
        revision: u64,
        /// How long the site has run, in seconds: a beat that was held back on its way is
        /// known by it, without any clock being right.
        uptime_s: u64,
        /// Whether the site is a hub.
        hub: bool,
    },
    /// To all or one: my state has changed.
    Delta(Delta),
    /// To all: I leave.
    Bye,
    /// To all or one: who are these?
    Ask {
        /// Whose certificates are missing here.
        sites: Vec<SiteId>,
    },
    /// To one: you have counted higher before.
    Stale {
        /// The highest incarnation that was heard.
        known: u64,
    },
    /// To one: answer at once.
    Ping {
        /// To be sent back.
        nonce: u64,
        /// The state's revision.
        revision: u64,
    },
    /// The answer.
    Pong {
        /// As it was asked.
        nonce: u64,
        /// The state's revision.
        revision: u64,
        /// How long the site has run, in seconds, as in a beat.
        uptime_s: u64,
    },
    /// To one: tell me what has changed since.
    Fetch {
        /// The revision that is known.
        since: u64,
    },
    /// To one: part of a stream.
    Frame(Frame),
    /// To all: these have not answered. To one of them: you had not, and all were told.
    Missed {
        /// Who.
        sites: Vec<SiteId>,
    },
    /// To one: tell me whom you know.
    Census {
        /// Of the ids of all that are known already: who knows others tells certificates too.
        known: u64,
    },
    /// To all: who has come. To one: who is there, and who is not.
    Roll {
        /// How long the teller has run, in seconds, as in a beat.
        uptime_s: u64,
        /// Whether this is the last part of the answer to a census.
        last: bool,
        /// The sites.
        sites: Vec<Called>,
    },
    /// To all or one: these are members.
    Members {
        /// The root's word on each.
        certificates: Vec<Certificate>,
        /// Its word on all of them, of a hub: a thousand need not be checked one by one.
        signature: Option<[u8; 64]>,
    },
}

/// A site as another one tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Called {
    /// Which.
    pub site: SiteId,
    /// How often it has started.
    pub incarnation: u64,
    /// Its state's revision.
    pub revision: u64,
    /// How long it has run, in seconds.
    pub uptime_s: u64,
    /// It does not answer, for so many seconds.
    pub gone_s: Option<u64>,
}

impl Called {
    fn write(&self, w: &mut Writer) {
        w.fixed(&self.site.0).number(self.incarnation);
        w.number(self.revision).number(self.uptime_s);
        w.u8(self.gone_s.is_some().into());
        if let Some(gone_s) = self.gone_s {
            w.number(gone_s);
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            site: SiteId(r.fixed()?),
            incarnation: r.number()?,
            revision: r.number()?,
            uptime_s: r.number()?,
            gone_s: match r.flag("an absence")? {
                true => Some(r.number()?),
                false => None,
            },
        })
    }
}

/// Part of a stream between two sites.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its number, given by the site that opened it.
    pub stream: u64,
    /// Whether the sender of this frame opened the stream.
    pub opener: bool,
    /// What about it.
    pub body: FrameBody,
}

/// What a frame says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameBody {
    /// Bytes.
    Data {
        /// For the first bytes of an opened stream: what it is for.
        open: Option<String>,
        /// How many bytes came before.
        offset: u64,
        /// Whether none follow.
        fin: bool,
        /// The bytes.
        bytes: Bytes,
    },
    /// What was received, and up to where more may be sent.
    Window {
        /// Everything before this came in.
        received: u64,
        /// Whether the end came in as well.
        fin: bool,
        /// Nothing beyond this may be sent.
        limit: u64,
        /// Something after `received` came in: what is between was lost.
        gap: bool,
    },
    /// It is over at once, for both directions.
    Reset {
        /// Why, for people.
        reason: String,
    },
}

impl Message {
    /// Whether it may be said to all, or (false) to one by pair message.
    pub(crate) fn may_be(&self, pair: bool) -> bool {
        match self {
            Self::Beat { .. }
            | Self::Bye
            | Self::Ask { .. }
            | Self::Stale { .. }
            | Self::Missed { .. } => !pair,
            Self::Delta(_) | Self::Roll { .. } | Self::Members { .. } => true,
            Self::Ping { .. }
            | Self::Pong { .. }
            | Self::Fetch { .. }
            | Self::Census { .. }
            | Self::Frame(_) => pair,
        }
    }

    /// The message as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        match self {
            Self::Beat {
                revision,
                uptime_s,
                hub,
            } => {
                w.u8(1).number(*revision).number(*uptime_s);
                w.u8((*hub).into());
            }
            Self::Delta(delta) => delta.write(w.u8(2)),
            Self::Bye => {
                w.u8(3);
            }
            Self::Ask { sites } => write_sites(w.u8(4), sites),
            Self::Stale { known } => {
                w.u8(5).number(*known);
            }
            Self::Ping { nonce, revision } => {
                w.u8(6).fixed(&nonce.to_be_bytes()).number(*revision);
            }
            Self::Pong {
                nonce,
                revision,
                uptime_s,
            } => {
                w.u8(7).fixed(&nonce.to_be_bytes()).number(*revision);
                w.number(*uptime_s);
            }
            Self::Fetch { since } => {
                w.u8(8).number(*since);
            }
            Self::Frame(frame) => frame.write(w.u8(9)),
            Self::Missed { sites } => write_sites(w.u8(10), sites),
            Self::Census { known } => {
                w.u8(11).fixed(&known.to_be_bytes());
            }
            Self::Roll {
                uptime_s,
                last,
                sites,
            } => {
                w.u8(12).number(*uptime_s).u8((*last).into());
                w.number(sites.len() as u64);
                for site in sites {
                    site.write(&mut w);
                }
            }
            Self::Members {
                certificates,
                signature,
            } => {
                w.u8(13).number(certificates.len() as u64);
                for certificate in certificates {
                    certificate.write(&mut w);
                }
                w.u8(signature.is_some().into());
                if let Some(signature) = signature {
                    w.fixed(signature);
                }
            }
        }
        w.finish()
    }

    /// Reads a message.
    ///
    /// # Errors
    /// When the bytes are none.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let message = match r.u8()? {
            1 => Self::Beat {
                revision: r.number()?,
                uptime_s: r.number()?,
                hub: r.flag("a hub")?,
            },
            2 => Self::Delta(Delta::read(&mut r)?),
            3 => Self::Bye,
            4 => Self::Ask {
                sites: read_sites(&mut r)?,
            },
            5 => Self::Stale { known: r.number()? },
            6 => Self::Ping {
                nonce: u64::from_be_bytes(r.fixed()?),
                revision: r.number()?,
            },
            7 => Self::Pong {
                nonce: u64::from_be_bytes(r.fixed()?),
                revision: r.number()?,
                uptime_s: r.number()?,
            },
            8 => Self::Fetch { since: r.number()? },
            9 => Self::Frame(Frame::read(&mut r)?),
            10 => Self::Missed {
                sites: read_sites(&mut r)?,
            },
            11 => Self::Census {
                known: u64::from_be_bytes(r.fixed()?),
            },
            12 => Self::Roll {
                uptime_s: r.number()?,
                last: r.flag("the last part")?,
                sites: {
                    let count = r.count("a roll", ROLL_MAX)?;
                    let sites = (0..count).map(|_| Called::read(&mut r));
                    sites.collect::<Result<_, _>>()?
                },
            },
            13 => Self::Members {
                certificates: {
                    let count = r.count("the list of members", MEMBERS_MAX)?;
                    let certificates = (0..count).map(|_| Certificate::read(&mut r));
                    certificates.collect::<Result<_, _>>()?
                },
                signature: match r.flag("a signature")? {
                    true => Some(r.fixed()?),
                    false => None,
                },
            },
            value => {
                return Err(DecodeError::Unknown {
                    what: "the message",
                    value: value.into(),
                });
            }
        };
        r.finish()?;
        Ok(message)
    }
}

fn write_sites(w: &mut Writer, sites: &[SiteId]) {
    w.number(sites.len() as u64);
    for site in sites {
        w.fixed(&site.0);
    }
}

fn read_sites(r: &mut Reader<'_>) -> Result<Vec<SiteId>, DecodeError> {
    let count = r.count("the list of sites", ASKED_MAX)?;
    (0..count).map(|_| r.fixed().map(SiteId)).collect()
}

impl Frame {
    fn write(&self, w: &mut Writer) {
        w.number(self.stream).u8(self.opener.into());
        match &self.body {
            FrameBody::Data {
                open,
                offset,
                fin,
                bytes,
            } => {
                w.u8(1).u8(open.is_some().into());
                if let Some(protocol) = open {
                    w.text(protocol);
                }
                w.number(*offset).u8((*fin).into()).bytes(bytes);
            }
            FrameBody::Window {
                received,
                fin,
                limit,
                gap,
            } => {
                w.u8(2).number(*received).u8((*fin).into());
                w.number(*limit).u8((*gap).into());
            }
            FrameBody::Reset { reason } => {
                w.u8(3).text(reason);
            }
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let stream = r.number()?;
        let opener = r.flag("a stream's side")?;
        let body = match r.u8()? {
            1 => FrameBody::Data {
                open: match r.flag("a protocol")? {
                    true => Some(r.text("a protocol", PROTOCOL_MAX)?.to_owned()),
                    false => None,
                },
                offset: r.number()?,
                fin: r.flag("an end")?,
                bytes: Bytes::copy_from_slice(r.bytes("a frame", FRAME_MAX)?),
            },
            2 => FrameBody::Window {
                received: r.number()?,
                fin: r.flag("an end")?,
                limit: r.number()?,
                gap: r.flag("a gap")?,
            },
            3 => FrameBody::Reset {
                reason: r.text("a reason", REASON_MAX)?.to_owned(),
            },
            value => {
                return Err(DecodeError::Unknown {
                    what: "the frame",
                    value: value.into(),
                });
            }
        };
        Ok(Self {
            stream,
            opener,
            body,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame() -> impl Strategy<Value = Frame> {
        let data = (
            prop::option::of("[a-z/]{0,20}"),
            any::<u64>(),
            any::<bool>(),
            prop::collection::vec(any::<u8>(), 0..40),
        )
            .prop_map(|(open, offset, fin, bytes)| FrameBody::Data {
                open,
                offset,
                fin,
                bytes: bytes.into(),
            });
        let window = (any::<u64>(), any::<bool>(), any::<u64>(), any::<bool>()).prop_map(
            |(received, fin, limit, gap)| FrameBody::Window {
                received,
                fin,
                limit,
                gap,
            },
        );
        let reset = "[ -~]{0,40}".prop_map(|reason| FrameBody::Reset { reason });
        (
            any::<u64>(),
            any::<bool>(),
            prop_oneof![data, window, reset],
        )
            .prop_map(|(stream, opener, body)| Frame {
                stream,
                opener,
                body,
            })
    }

    fn called() -> impl Strategy<Value = Called> {
        any::<([u8; 16], u64, u64, u64, Option<u64>)>().prop_map(
            |(id, incarnation, revision, uptime_s, gone_s)| Called {
                site: SiteId(id),
                incarnation,
                revision,
                uptime_s,
                gone_s,
            },
        )
    }

    fn message() -> impl Strategy<Value = Message> {
        prop_oneof![
            any::<(u64, u64, bool)>().prop_map(|(revision, uptime_s, hub)| Message::Beat {
                revision,
                uptime_s,
                hub
            }),
            any::<u64>().prop_map(|known| Message::Census { known }),
            (any::<(u64, bool)>(), prop::collection::vec(called(), 0..5)).prop_map(
                |((uptime_s, last), sites)| Message::Roll {
                    uptime_s,
                    last,
                    sites
                }
            ),
            Just(Message::Bye),
            prop::collection::vec(any::<[u8; 16]>(), 0..5).prop_map(|ids| Message::Ask {
                sites: ids.into_iter().map(SiteId).collect(),
            }),
            prop::collection::vec(any::<[u8; 16]>(), 0..5).prop_map(|ids| Message::Missed {
                sites: ids.into_iter().map(SiteId).collect(),
            }),
            any::<u64>().prop_map(|known| Message::Stale { known }),
            any::<(u64, u64)>().prop_map(|(nonce, revision)| Message::Ping { nonce, revision }),
            any::<(u64, u64, u64)>().prop_map(|(nonce, revision, uptime_s)| Message::Pong {
                nonce,
                revision,
                uptime_s
            }),
            any::<u64>().prop_map(|since| Message::Fetch { since }),
            frame().prop_map(Message::Frame),
        ]
    }

    proptest! {
        #[test]
        fn a_message_survives(message in message()) {
            prop_assert_eq!(Message::decode(&message.encode()), Ok(message));
        }

        #[test]
        fn what_is_read_has_one_form(mut bytes in prop::collection::vec(any::<u8>(), 1..60), kind in 0u8..15) {
            bytes[0] = kind;
            if let Ok(message) = Message::decode(&bytes) {
                prop_assert_eq!(message.encode(), bytes);
            }
        }
    }
}
