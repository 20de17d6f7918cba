//! What is remembered of sites that are gone: since when they are, and what they last said of
//! themselves. Each site keeps it for its own next start, and one tells those that have come
//! since: the first in line that knows it, by the ids of all that are there.

use crate::config::write_atomic;
use crate::sites::About;
use bytes::Bytes;
use lattice::{Lattice, SiteId, SiteState, SiteView, View};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// What keys of a site's state start with that tell of another; its id follows.
const KEY_PREFIX: &str = "gone/";
/// How much longer each waits to tell than the one before it in line, and all at most.
const TURN: Duration = Duration::from_secs(1);
const TURN_MAX: Duration = Duration::from_secs(60);
/// Words that differ by less say the same: clocks differ, and not all notice at once.
const SAME_SECONDS: i64 = 90;
/// How long changes are gathered before all is looked at again.
const GATHER: Duration = Duration::from_millis(200);
/// Sites that are remembered; of more, those that are gone for longest are forgotten.
const WORDS_MAX: usize = 256;

/// What is known of a site that is gone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Word {
    /// Seconds since 1970.
    pub since: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<About>,
    #[serde(default)]
    pub exports: u64,
}

/// Words by the ids of the sites that they are about.
pub type Words = BTreeMap<String, Word>;

/// What this site knows of others that are gone, shared with who lists them.
#[derive(Clone, Debug, Default)]
pub struct Known(Arc<Mutex<Words>>);

impl Known {
    /// What an earlier process knew. Nothing depends on its being there.
    pub fn load(file: &std::path::Path) -> Self {
        let words = std::fs::read(file)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self(Arc::new(Mutex::new(words.unwrap_or_default())))
    }

    /// What is known of a site, by this one or by others.
    pub fn word(&self, view: &View, site: SiteId) -> Option<Word> {
        let own = self.0.lock().get(&site.to_string()).cloned();
        let told = told_by(view, site).map(|(_, word)| word);
        own.into_iter().chain(told).min_by_key(|word| word.since)
    }
}

/// What the others that are there tell of a site.
fn told_by(view: &View, site: SiteId) -> impl Iterator<Item = (SiteId, Word)> {
    let key = format!("{KEY_PREFIX}{site}");
    let there = view.sites.iter().filter(|s| s.state == SiteState::Alive);
    there.filter_map(move |teller| {
        let word = serde_json::from_slice(teller.entries.get(&key)?).ok()?;
        Some((teller.id, word))
    })
}

fn is_gone(site: &SiteView) -> bool {
    matches!(site.state, SiteState::Gone | SiteState::Left)
}

/// Whether anything was heard of its present state, since this one has started.
pub fn was_heard(site: &SiteView) -> bool {
    site.revision > 0
}

/// What is known now, after what was known before. `at` makes a time of day of a time since the
/// start, `about` reads what a site says of itself.
fn known(
    view: &View,
    before: &Words,
    at: impl Fn(Duration) -> i64,
    about: impl Fn(&SiteView) -> Option<About>,
) -> Words {
    let mut words: Vec<(String, Word)> = Vec::new();
    for site in &view.sites {
        let id = site.id.to_string();
        let kept = before.get(&id);
        if was_heard(site) && is_gone(site) {
            let since = at(site.since) - i64::try_from(site.earlier.as_secs()).unwrap_or(0);
            let word = Word {
                since: kept.map_or(since, |kept| kept.since.min(since)),
                about: about(site),
                exports: ::sites::exports(&site.entries),
            };
            words.push((id, word));
        } else if !was_heard(site)
            && let Some(kept) = kept
        {
            words.push((id, kept.clone()));
        }
    }
    words.sort_by_key(|(_, word)| std::cmp::Reverse(word.since));
    words.truncate(WORDS_MAX);
    words.into_iter().collect()
}

/// Whether this site should tell of another: nobody before it in line does, and, if it does not
/// do so yet, nobody at all.
fn is_to_tell(view: &View, site: SiteId, word: &Word, tells: bool) -> bool {
    !told_by(view, site).any(|(teller, told)| {
        let as_good = told.since <= word.since + SAME_SECONDS;
        as_good && (!tells || teller < view.id)
    })
}

/// How long this site leaves it to others to tell.
fn turn(view: &View) -> Duration {
    let there = view.sites.iter().filter(|s| s.state == SiteState::Alive);
    let before = there.filter(|s| s.id < view.id).count();
    TURN.saturating_mul(u32::try_from(before).unwrap_or(u32::MAX))
        .min(TURN_MAX)
}

/// Keeps and tells what is known, until its scope is cancelled.
pub async fn run(
    lattice: Lattice,
    known_here: Known,
    file: PathBuf,
    at: impl Fn(Duration) -> i64 + Send,
    about: impl Fn(&SiteView) -> Option<About> + Send,
) {
    let mut view = lattice.view();
    let mut told: BTreeSet<String> = BTreeSet::new();
    let mut noticed: HashMap<String, Instant> = HashMap::new();
    loop {
        let seen = view.borrow_and_update().clone();
        let words = known(&seen, &known_here.0.lock(), &at, &about);
        if *known_here.0.lock() != words {
            let bytes = serde_json::to_vec(&words).unwrap_or_default();
            if let Err(error) = write_atomic(&file, &bytes, 0o600) {
                tracing::warn!("keep what is known of sites that are gone: {error:#}");
            }
            *known_here.0.lock() = words.clone();
        }
        let mut values = Vec::new();
        let mut wake: Option<Instant> = None;
        let gone = seen.sites.iter().filter(|site| is_gone(site));
        let mut wanted = BTreeSet::new();
        for site in gone {
            let id = site.id.to_string();
            let Some(word) = words.get(&id) else { continue };
            let due = *noticed.entry(id.clone()).or_insert_with(Instant::now) + turn(&seen);
            if !is_to_tell(&seen, site.id, word, told.contains(&id)) {
                continue;
            }
            if due > Instant::now() && !told.contains(&id) {
                wake = Some(wake.map_or(due, |at| at.min(due)));
                continue;
            }
            let value = serde_json::to_vec(word).unwrap_or_default();
            values.push((format!("{KEY_PREFIX}{id}"), Some(Bytes::from(value))));
            wanted.insert(id);
        }
        let over = told.difference(&wanted);
        values.extend(over.map(|id| (format!("{KEY_PREFIX}{id}"), None)));
        noticed.retain(|id, _| words.contains_key(id));
        // What is told already is not told again.
        if !values.is_empty()
            && let Err(error) = lattice.publish(values).await
        {
            tracing::warn!(%error, "tell of sites that are gone");
        }
        told = wanted;
        let waking = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = view.changed() => if changed.is_err() { return },
            () = waking => {}
        }
        tokio::time::sleep(GATHER).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lattice::{SiteKey, SiteName, Standing};

    fn site(seed: u8, state: SiteState, heard: bool) -> SiteView {
        let key = SiteKey::from_seed(&[seed; 32]);
        SiteView {
            id: SiteId([seed; 16]),
            name: SiteName {
                name: format!("s{seed}"),
                region: String::new(),
                zone: String::new(),
            },
            keys: *key.public(),
            state,
            since: Duration::from_secs(40),
            earlier: Duration::ZERO,
            rtt: None,
            incarnation: 1,
            revision: heard.into(),
            entries: Arc::default(),
        }
    }

    fn view(own: u8, sites: Vec<SiteView>) -> View {
        View {
            id: SiteId([own; 16]),
            name: site(own, SiteState::Alive, true).name,
            standing: Standing::Member,
            lattice: None,
            epoch: 1,
            hub: false,
            link: true,
            sites,
            pending: Vec::new(),
        }
    }

    fn at(since: Duration) -> i64 {
        1000 + since.as_secs().cast_signed()
    }

    fn word(since: i64) -> Word {
        Word {
            since,
            about: None,
            exports: 0,
        }
    }

    /// `of` tells `word` of another.
    fn tells(mut of: SiteView, about: u8, word: &Word) -> SiteView {
        let key = format!("{KEY_PREFIX}{}", SiteId([about; 16]));
        let value = serde_json::to_vec(word).expect("JSON");
        of.entries = Arc::new([(key, value.into())].into());
        of
    }

    #[test]
    fn what_was_seen_is_known_and_what_was_not_is_remembered() {
        let id = SiteId([9; 16]).to_string();
        let none = Words::new();
        let about = |_: &SiteView| None;
        let now = |state, heard, before: &Words| {
            let words = known(&view(1, vec![site(9, state, heard)]), before, at, about);
            words.get(&id).map(|word| word.since)
        };
        let before = Words::from([(id.clone(), word(7))]);
        assert_eq!(now(SiteState::Alive, true, &none), None);
        assert_eq!(now(SiteState::Gone, true, &none), Some(1040));
        assert_eq!(now(SiteState::Left, true, &none), Some(1040));
        // It was gone when this one started, which knows no more than before.
        assert_eq!(now(SiteState::Gone, false, &none), None);
        assert_eq!(now(SiteState::Suspect, false, &before), Some(7));
        assert_eq!(now(SiteState::Gone, false, &before), Some(7));
        assert_eq!(now(SiteState::Gone, true, &before), Some(7));
        // It is back.
        assert_eq!(now(SiteState::Alive, true, &before), None);
        assert!(known(&view(1, Vec::new()), &before, at, about).is_empty());
    }

    #[test]
    fn the_first_in_line_tells_and_others_if_it_does_not() {
        let gone = || site(9, SiteState::Gone, true);
        let (mine, id) = (word(1040), SiteId([9; 16]));
        let alive = |seed| site(seed, SiteState::Alive, true);
        let silent = view(5, vec![alive(2), alive(7), gone()]);
        assert!(is_to_tell(&silent, id, &mine, false));
        assert_eq!(turn(&silent), TURN);
        // Somebody tells as much already.
        for teller in [2, 7] {
            let told = view(5, vec![tells(alive(teller), 9, &word(1050)), gone()]);
            assert!(!is_to_tell(&told, id, &mine, false));
            // Two that have begun together agree who goes on.
            assert_eq!(is_to_tell(&told, id, &mine, true), teller == 7);
        }
        // Who came later knows less; who is gone itself tells nobody.
        let less = view(5, vec![tells(alive(2), 9, &word(5000)), gone()]);
        assert!(is_to_tell(&less, id, &mine, true));
        let dead = tells(site(2, SiteState::Gone, true), 9, &word(1));
        assert!(is_to_tell(&view(5, vec![dead, gone()]), id, &mine, false));
        let known = Known::default();
        assert_eq!(known.word(&less, id), Some(word(5000)));
        known.0.lock().insert(id.to_string(), mine.clone());
        assert_eq!(known.word(&less, id), Some(mine));
    }
}
