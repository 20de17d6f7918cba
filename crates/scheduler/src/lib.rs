//! The scheduler: decides on which node a pod runs.
//!
//! [`place()`] is pure: a pod and a [`Snapshot`] of the nodes in, a node's name or the
//! reasons why there is none out. [`run()`] keeps the snapshot up to date from the shared
//! informers and binds. Start with [`place()`]; the filters are in `filter` and
//! `topology`, the scores in `score`; `preempt` says who goes for a pod that finds no room.

mod claims;
mod demand;
mod filter;
mod pending;
mod place;
mod preempt;
mod resources;
mod run;
mod score;
mod snapshot;
mod topology;
mod write;

pub use demand::Demand;
pub use place::{Unschedulable, place};
pub use resources::Resources;
pub use run::{Config, SCHEDULER_NAME, run};
pub use snapshot::Snapshot;

#[cfg(test)]
mod tests;
