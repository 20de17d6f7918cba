//! Named services: start order, readiness, cancellation, and a draining stop.
//!
//! A [`Scope`] owns tasks: what is spawned in it is told to stop by its token and
//! waited for by [`Scope::close`]. A [`Stack`] holds started services and stops
//! them in the reverse of their start, each with a deadline that names the laggard.

mod scope;
mod stack;

pub use scope::Scope;
pub use stack::{Laggard, Stack};
pub use tokio_util::sync::CancellationToken;
