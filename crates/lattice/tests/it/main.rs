//! Real sites and the real nats-server.
//!
//! It is found in `$SALP_TOOLS/bin` or `target/tools/bin`; `cargo xtask tools nats-server`
//! fetches it.

mod nats;
mod sites;
