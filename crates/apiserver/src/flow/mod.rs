//! Priority and fairness: a request is of the first flow schema that it fits, and takes a seat
//! of that schema's priority level, or waits for one, or is told to come again (429).
//!
//! [`schema`] says which, [`book`] who runs and who waits, [`defaults`] are the objects that
//! every cluster has, [`metrics`] what is told of it. Watches and streams take no seats. Unlike upstream a request is one
//! seat, however much it asks for. The reference is `k8s.io/apiserver/pkg/util/flowcontrol` and
//! the documentation "API Priority and Fairness". Start with [`Flow::admit`].

mod book;
mod defaults;
mod metrics;
mod schema;
mod settle;

pub(crate) use defaults::objects;
pub(crate) use metrics::Metrics;
pub(crate) use settle::start;

use crate::authn::User;
use crate::cache::{Cache, Kind};
use crate::http::request::RequestInfo;
use apimachinery::Status;
use arc_swap::ArcSwap;
use book::{Asked, Book, Queues, Share};
use http::{HeaderMap, HeaderName, HeaderValue};
use metrics::{Labels, Told};
use parking_lot::Mutex;
use schema::Schema;
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

/// Queues of one level; more that are asked for are as good as these.
const QUEUES_MAX: usize = 1024;

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
const SCHEMA_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
const LEVEL_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");

/// How all requests are shared out.
pub(crate) struct Flow {
    seats: usize,
    schemas: Arc<Kind>,
    levels: Arc<Kind>,
    /// As the objects were at these revisions.
    known: ArcSwap<Known>,
    /// Seats and queues. Held for single moves.
    book: Arc<Mutex<Book>>,
    /// A request waits no longer for a seat.
    patience: Duration,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Known {
    revisions: (u64, u64),
    /// By precedence, then name.
    schemas: Vec<Schema>,
    levels: HashMap<String, Level>,
}

struct Level {
    uid: Option<HeaderValue>,
    exempt: bool,
}

/// What a request was found to be; for its answer's headers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    schema: Option<HeaderValue>,
    level: Option<HeaderValue>,
}

impl Found {
    pub(crate) fn tell(&self, headers: &mut HeaderMap) {
        for (name, value) in [(SCHEMA_UID, &self.schema), (LEVEL_UID, &self.level)] {
            if let Some(value) = value {
                headers.insert(name, value.clone());
            }
        }
    }
}

/// A seat, which is given back when this is dropped.
struct Seat {
    book: Arc<Mutex<Book>>,
    level: Arc<str>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.book.lock().leave(&self.level);
    }
}

/// A request that is executed, until this is dropped.
pub(crate) struct Admitted {
    /// None for what is exempt.
    _seat: Option<Seat>,
    _told: Told,
}

impl Flow {
    /// `None` when the cache lacks the kinds.
    pub(crate) fn new(
        cache: &Cache,
        seats: usize,
        request_timeout: Duration,
        metrics: Metrics,
    ) -> Option<Self> {
        Some(Self {
            seats,
            schemas: cache.named(GROUP, "flowschemas")?,
            levels: cache.named(GROUP, "prioritylevelconfigurations")?,
            known: ArcSwap::default(),
            book: Arc::default(),
            // As upstream: a quarter, so that there is time left to answer.
            patience: request_timeout / 4,
            metrics: metrics.into(),
        })
    }

    /// Finds a request's flow and takes a seat for it; none for what is exempt.
    ///
    /// # Errors
    /// 429 when there is no room.
    pub(crate) async fn admit(
        &self,
        info: &RequestInfo,
        user: &User,
        found: &Mutex<Found>,
    ) -> Result<Option<Admitted>, Status> {
        let (labels, exempt, flow) = {
            let known = self.known();
            let fits = |s: &&Schema| known.levels.contains_key(&*s.level) && s.fits(info, user);
            let Some(schema) = known.schemas.iter().find(fits) else {
                // Before the first objects are there: nobody but this process asks.
                return Ok(None);
            };
            let level = &known.levels[&*schema.level];
            *found.lock() = Found {
                schema: schema.uid.clone(),
                level: level.uid.clone(),
            };
            let mut hash = DefaultHasher::new();
            (&schema.name, schema.flow(info, user)).hash(&mut hash);
            (labels(schema), level.exempt, hash.finish())
        };
        let metrics = self.metrics.clone();
        if exempt {
            return Ok(Some(Admitted {
                _seat: None,
                _told: Told::executed(metrics, labels, true),
            }));
        }
        let level = labels.priority_level.clone();
        let asked = self.book.lock().ask(&level, flow);
        let book = self.book.clone();
        let (seat, told) = match asked {
            Asked::Runs => {
                let told = Told::executed(metrics, labels, false);
                (Some(Seat { book, level }), told)
            }
            Asked::Refused(why) => {
                metrics.rejected(&labels, why);
                return Err(refused(why));
            }
            Asked::Waits { waits, length } => {
                let told = Told::queued(metrics, labels, length);
                let waiting = Waiting {
                    waits,
                    at: Some((book, level)),
                };
                match waiting.done(self.patience).await {
                    Ok(seat) => (seat, told.dispatched()),
                    Err(why) => {
                        told.refused(why);
                        return Err(refused(why));
                    }
                }
            }
        };
        Ok(Some(Admitted {
            _seat: seat,
            _told: told,
        }))
    }

    /// The objects as they are now, parsed.
    fn known(&self) -> arc_swap::Guard<Arc<Known>> {
        let revisions = (self.schemas.revision(), self.levels.revision());
        let known = self.known.load();
        if known.revisions == revisions {
            return known;
        }
        let objects = self.levels.all();
        let levels: Vec<(String, Value)> = objects
            .iter()
            .map(|o| (o.name().to_owned(), o.value()))
            .collect();
        let mut schemas: Vec<Schema> = self
            .schemas
            .all()
            .iter()
            .map(|o| Schema::parse(o))
            .collect();
        schemas.sort_by(|a, b| (a.precedence, &a.name).cmp(&(b.precedence, &b.name)));
        let shares = shares(self.seats, &levels);
        let exempt = levels.iter().filter(|(_, v)| v["spec"]["type"] == "Exempt");
        let exempt: Vec<String> = exempt.map(|(name, _)| name.clone()).collect();
        let all = |schemas: &[Schema]| schemas.iter().map(labels).collect::<BTreeSet<_>>();
        let gone = &all(&known.schemas) - &all(&schemas);
        self.metrics.set(self.seats, &shares, &exempt, &gone);
        self.book.lock().set(self.seats, shares);
        let levels = levels.into_iter().map(|(name, v)| {
            let level = Level {
                uid: schema::uid(&v),
                exempt: v["spec"]["type"] == "Exempt",
            };
            (name, level)
        });
        self.known.store(Arc::new(Known {
            revisions,
            schemas,
            levels: levels.collect(),
        }));
        self.known.load()
    }
}

/// Who waits for a seat. One that is given just when he leaves goes back.
struct Waiting {
    waits: tokio::sync::oneshot::Receiver<()>,
    /// Until he has it.
    at: Option<(Arc<Mutex<Book>>, Arc<str>)>,
}

impl Waiting {
    /// The error is why there is none.
    async fn done(mut self, patience: Duration) -> Result<Option<Seat>, &'static str> {
        match tokio::time::timeout(patience, &mut self.waits).await {
            Ok(Ok(())) => Ok(self.at.take().map(|(book, level)| Seat { book, level })),
            Ok(Err(_)) => Err("cancelled"),
            Err(_) => Err("time-out"),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.waits.close();
        if self.waits.try_recv().is_ok()
            && let Some((book, level)) = self.at.take()
        {
            drop(Seat { book, level });
        }
    }
}

fn labels(schema: &Schema) -> Labels {
    Labels {
        priority_level: schema.level.clone(),
        flow_schema: schema.name.clone(),
    }
}

fn refused(why: &'static str) -> Status {
    tracing::debug!(why, "a request was refused by its priority level");
    Status::new(
        429,
        "TooManyRequests",
        "Too many requests, please try again later.",
    )
}

/// The seats of each level that is limited.
fn shares(seats: usize, levels: &[(String, Value)]) -> Vec<Share> {
    let limited = || {
        levels
            .iter()
            .filter(|(_, v)| v["spec"]["type"] == "Limited")
            .map(|(name, v)| (name, &v["spec"]["limited"]))
    };
    let number = |v: &Value, key: &str, default: u64| v[key].as_u64().unwrap_or(default);
    let sum: u64 = limited()
        .map(|(_, l)| number(l, "nominalConcurrencyShares", 30))
        .sum();
    limited()
        .map(|(name, l)| {
            let shares = number(l, "nominalConcurrencyShares", 30);
            let nominal = (seats as u64 * shares).div_ceil(sum.max(1));
            let percent = |key: &str| Some(nominal * l[key].as_u64()? / 100);
            let queuing = &l["limitResponse"]["queuing"];
            let size = |key: &str, default| number(queuing, key, default) as usize;
            Share {
                name: name.clone(),
                nominal: nominal as usize,
                lendable: percent("lendablePercent").unwrap_or(0) as usize,
                borrows: percent("borrowingLimitPercent").map_or(usize::MAX, |b| b as usize),
                queues: (l["limitResponse"]["type"] == "Queue").then(|| Queues {
                    count: size("queues", 64).clamp(1, QUEUES_MAX),
                    hand: size("handSize", 8),
                    length: size("queueLengthLimit", 50),
                }),
            }
        })
        .collect()
}
