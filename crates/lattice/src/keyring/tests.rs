//! What members can open of each other, and what nobody can.

use super::*;
use crate::trust::SiteName;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn root() -> SiteKey {
    SiteKey::from_seed(&[99; 32])
}

fn welcome(key: &SiteKey, epoch: u64, revoked: &[SiteId]) -> Welcome {
    let group = [epoch as u8; 32];
    let name = SiteName {
        name: format!("site-{}", key.id()),
        region: String::new(),
        zone: String::new(),
    };
    Welcome {
        root: *root().public(),
        certificate: Certificate::issue(&root(), *key.public(), name, 1, u64::MAX),
        record: EpochRecord::issue(&root(), epoch, &group, revoked.iter().copied().collect()),
        group,
        members: 1,
    }
}

fn member(seed: u8) -> Keyring {
    let key = SiteKey::from_seed(&[seed; 32]);
    let welcome = welcome(&key, 1, &[]);
    Keyring::new(Arc::new(key), welcome, 1)
}

/// Two members that know each other.
fn pair() -> (Keyring, Keyring) {
    let (mut a, mut b) = (member(1), member(2));
    let hello = a.seal_group(b"hello", true);
    assert!(b.open(&hello).unwrap().introduced);
    let hello = b.seal_group(b"hello", true);
    assert!(a.open(&hello).unwrap().introduced);
    (a, b)
}

#[test]
fn a_group_message_is_opened_once_and_only_from_a_known_member() {
    let (mut a, mut b) = (member(1), member(2));
    let unknown = a.seal_group(b"x", false);
    assert_eq!(b.open(&unknown), Err(Refusal::Unknown(a.id())));
    let hello = a.seal_group(b"hello", true);
    let opened = b.open(&hello).unwrap();
    assert_eq!((opened.from, &opened.payload[..]), (a.id(), &b"hello"[..]));
    assert_eq!(b.open(&hello), Err(Refusal::Replayed));
    assert_eq!(a.open(&hello), Err(Refusal::Replayed));
    // One that was late is taken, once.
    assert!(b.open(&unknown).is_ok());
    assert_eq!(b.open(&unknown), Err(Refusal::Replayed));
}

#[test]
fn a_member_can_not_speak_for_another() {
    let (mut a, mut b) = pair();
    // c knows the group key, so it can seal as if it were a; it can't sign.
    let key = SiteKey::from_seed(&[3; 32]);
    let mut c = Keyring::new(
        Arc::new(key),
        welcome(&SiteKey::from_seed(&[3; 32]), 1, &[]),
        1,
    );
    c.sealer = group_key(&[1; 32], a.id(), 1);
    let mut forged = c.seal_group(b"x", false);
    forged[2..18].copy_from_slice(&a.id().0);
    assert_eq!(b.open(&forged), Err(Refusal::Forged));
    let _ = a.seal_group(b"x", false);
}

#[test]
fn pair_messages_are_for_two_and_for_their_incarnations() {
    let (mut a, mut b) = pair();
    let sealed = a.seal_pair(b.id(), b"secret").unwrap();
    let opened = b.open(&sealed).unwrap();
    assert_eq!((opened.pair, &opened.payload[..]), (true, &b"secret"[..]));
    assert_eq!(b.open(&sealed), Err(Refusal::Replayed));
    let mut c = member(3);
    let hello = a.seal_group(b"hello", true);
    c.open(&hello).unwrap();
    assert_eq!(c.open(&sealed), Err(Refusal::Forged));
    // What was recorded before b restarted opens no more, nor does a's old count.
    let later = a.seal_pair(b.id(), b"later").unwrap();
    b.restart(2);
    assert_eq!(b.open(&later), Err(Refusal::Replayed));
    let hello = b.seal_group(b"hello", false);
    assert_eq!(a.open(&hello).unwrap().incarnation, 2);
    let sealed = a.seal_pair(b.id(), b"again").unwrap();
    assert_eq!(b.open(&sealed).unwrap().payload, b"again");
    let answer = b.seal_pair(a.id(), b"answer").unwrap();
    assert_eq!(a.open(&answer).unwrap().payload, b"answer");
}

#[test]
fn a_lost_count_is_told() {
    let (mut a, mut b) = pair();
    a.restart(5);
    b.open(&a.seal_group(b"x", false)).unwrap();
    a.restart(3);
    let stale = a.seal_group(b"x", false);
    let known = Refusal::Stale {
        from: a.id(),
        known: 5,
    };
    assert_eq!(b.open(&stale), Err(known));
}

#[test]
fn epochs_move_on_and_leave_the_revoked_behind() {
    let (mut a, mut b) = pair();
    let mut c = member(3);
    let hello = c.seal_group(b"hello", true);
    a.open(&hello).unwrap();
    b.open(&hello).unwrap();
    let next = welcome(a.key(), 2, &[c.id()]);
    assert_eq!(a.advance(next.clone()), Some(vec![c.id()]));
    assert_eq!(a.advance(next), None);
    // c can't read it; b knows that it is behind.
    let news = a.seal_group(b"news", false);
    assert_eq!(b.open(&news), Err(Refusal::Ahead(a.id())));
    assert_eq!(c.open(&news), Err(Refusal::Unknown(a.id())));
    // b's are read still, c's are not.
    assert!(a.open(&b.seal_group(b"old", false)).unwrap().behind);
    assert_eq!(
        a.open(&c.seal_group(b"old", true)),
        Err(Refusal::Revoked(c.id()))
    );
    // a hands on what b needs; it would not to c.
    let brought = a.welcome_for(b.id()).unwrap();
    assert_eq!(b.advance(brought), Some(vec![c.id()]));
    assert!(a.welcome_for(c.id()).is_none());
    assert!(b.open(&a.seal_group(b"news", false)).is_ok());
    // Two epochs on the oldest key is gone.
    let mut d = member(4);
    b.open(&d.seal_group(b"hello", true)).unwrap();
    assert!(b.advance(welcome(b.key(), 3, &[])).is_some());
    assert_eq!(
        b.open(&d.seal_group(b"x", false)),
        Err(Refusal::Behind(d.id()))
    );
}

#[test]
fn another_roots_certificate_is_none() {
    let (mut a, b) = pair();
    let other = SiteKey::from_seed(&[50; 32]);
    let key = SiteKey::from_seed(&[4; 32]);
    let mut forged = welcome(&key, 1, &[]);
    forged.certificate =
        Certificate::issue(&other, *key.public(), forged.certificate.name.clone(), 1, 9);
    assert!(!a.learn(forged.certificate));
    forged = welcome(a.key(), 9, &[]);
    forged.root = *other.public();
    assert_eq!(a.advance(forged), None);
    assert_eq!(a.certificates().count(), 1);
    assert!(a.certificate_of(b.id()).is_some());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_comes_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0u8..4) {
        let (mut a, b) = pair();
        let mut framed = vec![1, kind];
        framed.extend_from_slice(&b.id().0);
        framed.extend_from_slice(&bytes);
        prop_assert!(a.open(&bytes).is_err());
        prop_assert!(a.open(&framed).is_err());
    }

    #[test]
    fn no_bit_can_be_changed(at in any::<prop::sample::Index>(), bit in 0u8..8, pairwise in any::<bool>()) {
        let (mut a, mut b) = pair();
        let mut sealed = if pairwise {
            a.seal_pair(b.id(), b"text").unwrap()
        } else {
            a.seal_group(b"text", false)
        };
        let at = at.index(sealed.len());
        sealed[at] ^= 1 << bit;
        prop_assert!(b.open(&sealed).is_err());
    }

    #[test]
    fn a_window_takes_each_once(numbers in prop::collection::vec(1u64..300, 0..200)) {
        let mut window = Window::default();
        let (mut seen, mut highest) = (BTreeSet::new(), 0);
        for n in numbers {
            let expected = !seen.contains(&n) && n + 128 > highest;
            prop_assert_eq!(window.take(n), expected, "{}", n);
            seen.insert(n);
            highest = highest.max(n);
        }
    }
}
