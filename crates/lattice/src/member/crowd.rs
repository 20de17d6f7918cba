//! What a member does where there are many others: it hands certificates on, and reports to
//! hubs. When and to whom is decided in `membership::crowd`.

use super::{Member, Output, Phase, hub_subject};
use crate::hub::Hub;
use crate::identity::SiteId;
use crate::membership::Event;
use crate::message::{Called, MEMBERS_MAX, Message};
use crate::trust::Certificate;
use std::collections::BTreeSet;
use std::time::Duration;

impl Member {
    /// Another member hands on the root's word on some.
    pub(super) fn introduced(
        &mut self,
        now: Duration,
        certificates: Vec<Certificate>,
        signature: Option<[u8; 64]>,
    ) {
        let Phase::Member(keyring) = &mut self.phase else {
            return;
        };
        let new = keyring.learn_all(certificates, signature);
        if !new.is_empty() {
            self.out.push(Output::Remember);
            self.tell(now, Event::Introduced(new));
        }
    }

    /// Another member tells of others.
    pub(super) fn roll(&mut self, now: Duration, from: SiteId, event: Event) {
        if let (
            Phase::Member(keyring),
            Event::Heard {
                message: Some(Message::Roll { sites, .. }),
                ..
            },
        ) = (&mut self.phase, &event)
            && self.membership.believes(from)
        {
            for called in sites.iter().filter(|c| c.gone_s.is_none()) {
                keyring.claim(called.site, called.incarnation);
            }
        }
        self.tell(now, event);
    }

    /// The certificates of some, or of all but one, as messages.
    pub(super) fn certificates(&self, wanted: impl Fn(SiteId) -> bool) -> Vec<Message> {
        let Phase::Member(keyring) = &self.phase else {
            return Vec::new();
        };
        let mut wanted: Vec<_> = keyring
            .certificates()
            .filter(|c| wanted(c.site()))
            .cloned()
            .collect();
        let mut messages = Vec::new();
        while !wanted.is_empty() {
            let certificates = wanted.split_off(wanted.len().saturating_sub(MEMBERS_MAX));
            let root = self.hub.as_ref().map(Hub::root);
            let signature = root.map(|root| Certificate::sign_all(root, &certificates));
            messages.push(Message::Members {
                certificates,
                signature,
            });
        }
        messages
    }

    /// Before all are told of some: the certificates that are new.
    pub(super) fn hand_on(&mut self, sites: &[Called]) {
        let new: BTreeSet<SiteId> = sites
            .iter()
            .map(|c| c.site)
            .filter(|site| self.new.remove(site))
            .collect();
        for message in self.certificates(|site| new.contains(&site)) {
            self.group_message(None, &message, false);
        }
    }

    pub(super) fn report(&mut self, message: &Message) {
        let Phase::Member(keyring) = &mut self.phase else {
            return;
        };
        let subject = hub_subject(keyring.root().lattice_id());
        let bytes = keyring.seal_group(&message.encode(), true);
        self.out.push(Output::Publish { subject, bytes });
    }
}
