//! Who answers requests to an import: this site while it can, else the nearest ones that
//! can. Pure.

use lattice::{SiteName, SiteState};
use std::cmp::Reverse;
use std::time::Duration;

/// Shares that a site can have at most, so that a weight costs no more listeners.
const SHARES_MAX: u32 = 8;

/// Sites of one metropolis are less far from each other, and a busy machine makes as much of a
/// difference.
const NEAR_MS: u128 = 8;

/// As far as a site counts whose round trip nobody knows yet: some tens of milliseconds, so
/// that it comes after those that are known to be near and before those that are known to
/// be far.
const UNKNOWN: Duration = Duration::from_millis(60);

/// A site that exports the Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its name and place.
    pub place: SiteName,
    /// Whether it is this site.
    pub own: bool,
    /// Whether it can be reached.
    pub state: SiteState,
    /// The round trip.
    pub rtt: Option<Duration>,
    /// Endpoints that are ready.
    pub ready: u32,
    /// Its share among sites as near.
    pub weight: u32,
}

/// How near a site is; smaller is nearer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank(u8);

/// What a site gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// How near it is.
    pub rank: Rank,
    /// Its share of requests; 0 while nearer ones answer or it can't.
    pub shares: u32,
}

/// How near a candidate is.
pub fn rank(own: &SiteName, c: &Candidate) -> Rank {
    if c.own {
        return Rank(0);
    }
    let same = |a: &str, b: &str| !a.is_empty() && a == b;
    let place = if same(&own.region, &c.place.region) && same(&own.zone, &c.place.zone) {
        1
    } else if same(&own.region, &c.place.region) {
        20
    } else {
        40
    };
    // Doubling steps from what is near anyway, so that a round trip that wavers changes nothing.
    let steps = c.rtt.unwrap_or(UNKNOWN).as_millis() / NEAR_MS;
    let far = (u128::BITS - steps.leading_zeros()).min(15) as u8;
    let suspect = if c.state == SiteState::Alive { 0 } else { 100 };
    Rank(suspect + place + far)
}

/// What each candidate gets, in their order.
pub fn choose(own: &SiteName, candidates: &[Candidate]) -> Vec<Choice> {
    let ranks: Vec<Rank> = candidates.iter().map(|c| rank(own, c)).collect();
    let can = |c: &Candidate| {
        let reached = c.own || matches!(c.state, SiteState::Alive | SiteState::Suspect);
        reached && c.ready > 0
    };
    // Those with no weight answer when nobody else can.
    let best = |with_weight: bool| {
        candidates
            .iter()
            .zip(&ranks)
            .filter(|(c, _)| can(c) && (c.weight > 0 || !with_weight))
            .map(|(_, rank)| *rank)
            .min()
    };
    let weighted = best(true);
    let nearest = weighted.or_else(|| best(false));
    let chosen = |c: &Candidate, rank: Rank| {
        can(c) && Some(rank) == nearest && (c.weight > 0 || weighted.is_none())
    };
    let most = candidates
        .iter()
        .zip(&ranks)
        .filter(|(c, r)| chosen(c, **r))
        .map(|(c, _)| c.weight)
        .max()
        .unwrap_or(1)
        .max(1);
    candidates
        .iter()
        .zip(&ranks)
        .map(|(c, rank)| Choice {
            rank: *rank,
            shares: match chosen(c, *rank) {
                false => 0,
                // The same weight for all is one share each.
                true if c.weight == most && !uneven(candidates, &ranks, *rank) => 1,
                true => shares(c.weight, most),
            },
        })
        .collect()
}

fn uneven(candidates: &[Candidate], ranks: &[Rank], rank: Rank) -> bool {
    let mut weights = candidates
        .iter()
        .zip(ranks)
        .filter(|(c, r)| **r == rank && c.weight > 0 && c.ready > 0)
        .map(|(c, _)| c.weight);
    let first = weights.next();
    weights.any(|w| Some(w) != first)
}

fn shares(weight: u32, most: u32) -> u32 {
    let scaled = u64::from(weight) * u64::from(SHARES_MAX) / u64::from(most);
    u32::try_from(scaled)
        .unwrap_or(SHARES_MAX)
        .clamp(1, SHARES_MAX)
}

/// The order in which sites would be asked, nearest first, for people.
pub fn order(own: &SiteName, candidates: &[Candidate]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_by_key(|i| {
        let c = &candidates[*i];
        (rank(own, c), Reverse(c.weight), c.place.name.clone())
    });
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place(name: &str, region: &str, zone: &str) -> SiteName {
        SiteName {
            name: name.into(),
            region: region.into(),
            zone: zone.into(),
        }
    }

    fn candidate(name: &str, region: &str, rtt_ms: u64, ready: u32) -> Candidate {
        Candidate {
            place: place(name, region, ""),
            own: false,
            state: SiteState::Alive,
            rtt: Some(Duration::from_millis(rtt_ms)),
            ready,
            weight: 1,
        }
    }

    fn own(ready: u32) -> Candidate {
        Candidate {
            own: true,
            rtt: None,
            ..candidate("shop-1", "eu", 0, ready)
        }
    }

    fn who(candidates: &[Candidate]) -> Vec<(String, u32)> {
        let here = place("shop-1", "eu", "");
        choose(&here, candidates)
            .iter()
            .zip(candidates)
            .filter(|(choice, _)| choice.shares > 0)
            .map(|(choice, c)| (c.place.name.clone(), choice.shares))
            .collect()
    }

    fn got(list: &[(&str, u32)]) -> Vec<(String, u32)> {
        list.iter().map(|(n, s)| ((*n).to_owned(), *s)).collect()
    }

    #[test]
    fn this_site_first_then_the_nearest_then_the_rest() {
        let near = candidate("shop-2", "eu", 3, 1);
        let far = candidate("cloud", "us", 80, 5);
        let all = |ready, near: &Candidate| [own(ready), near.clone(), far.clone()];
        assert_eq!(who(&all(1, &near)), got(&[("shop-1", 1)]));
        assert_eq!(who(&all(0, &near)), got(&[("shop-2", 1)]));
        let gone = Candidate {
            state: SiteState::Gone,
            ..near.clone()
        };
        assert_eq!(who(&all(0, &gone)), got(&[("cloud", 1)]));
        // A suspect is asked when nobody better is left.
        let suspect = Candidate {
            state: SiteState::Suspect,
            ..near
        };
        assert_eq!(who(&all(0, &suspect)), got(&[("cloud", 1)]));
        assert_eq!(who(&[own(0), suspect]), got(&[("shop-2", 1)]));
    }

    #[test]
    fn one_that_was_not_measured_comes_after_near_and_before_far_ones() {
        let unknown = |region| Candidate {
            rtt: None,
            ..candidate("new", region, 0, 1)
        };
        let (near, far) = (candidate("a", "eu", 3, 1), candidate("b", "eu", 300, 1));
        let new = unknown("eu");
        assert_eq!(who(&[own(0), new.clone(), near.clone()]), got(&[("a", 1)]));
        assert_eq!(who(&[own(0), new.clone(), far.clone()]), got(&[("new", 1)]));
        // Its place says more than what was measured of others.
        let elsewhere = candidate("c", "us", 1, 1);
        assert_eq!(who(&[own(0), elsewhere, new]), got(&[("new", 1)]));
        assert_eq!(who(&[own(0), far, unknown("us")]), got(&[("b", 1)]));
    }

    #[test]
    fn sites_as_near_share_by_weight() {
        let one = candidate("a", "us", 40, 1);
        let mut two = candidate("b", "us", 50, 1);
        assert_eq!(who(&[one.clone(), two.clone()]), got(&[("a", 1), ("b", 1)]));
        two.weight = 4;
        assert_eq!(who(&[one.clone(), two.clone()]), got(&[("a", 2), ("b", 8)]));
        two.weight = 0;
        assert_eq!(who(&[one.clone(), two.clone()]), got(&[("a", 1)]));
        assert_eq!(who(&[two]), got(&[("b", 1)]));
    }

    fn any_candidate() -> impl Strategy<Value = Candidate> {
        let state = prop_oneof![
            Just(SiteState::Alive),
            Just(SiteState::Suspect),
            Just(SiteState::Gone),
            Just(SiteState::Left)
        ];
        let rtt = prop::option::of(0u64..500);
        (0u8..4, any::<bool>(), state, rtt, 0u32..3, 0u32..5).prop_map(
            |(name, eu, state, rtt, ready, weight)| Candidate {
                place: place(&format!("s{name}"), if eu { "eu" } else { "us" }, ""),
                own: false,
                state,
                rtt: rtt.map(Duration::from_millis),
                ready,
                weight,
            },
        )
    }

    proptest! {
        #[test]
        fn the_rules_hold(mut candidates in prop::collection::vec(any_candidate(), 0..6), mine in prop::option::of(0u32..2)) {
            if let Some(ready) = mine {
                candidates.insert(0, own(ready));
            }
            let here = place("shop-1", "eu", "");
            let choices = choose(&here, &candidates);
            let can = |c: &Candidate| c.ready > 0 && (c.own || matches!(c.state, SiteState::Alive | SiteState::Suspect));
            let chosen: Vec<_> = choices.iter().zip(&candidates).filter(|(x, _)| x.shares > 0).collect();
            // Somebody answers whenever somebody can.
            prop_assert_eq!(chosen.is_empty(), !candidates.iter().any(can));
            for (choice, c) in &chosen {
                // Nobody is chosen who can't answer, none that is gone.
                prop_assert!(can(c));
                prop_assert!(choice.shares <= SHARES_MAX);
                // Nobody nearer with a weight is passed over.
                for (other, o) in choices.iter().zip(&candidates) {
                    prop_assert!(other.shares > 0 || !can(o) || o.weight == 0 || other.rank >= choice.rank);
                }
            }
            // A ready pod of this site keeps requests at home.
            if mine.is_some_and(|ready| ready > 0) {
                prop_assert_eq!(chosen.len(), 1);
                prop_assert!(chosen[0].1.own);
            }
        }
    }
}
