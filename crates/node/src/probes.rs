//! Probes.

use crate::agent::{Agent, Record, Slot};
use std::sync::Arc;

pub(crate) struct Running {}

pub(crate) fn sync(_agent: &Arc<Agent>, _slot: &Arc<Slot>, _record: &mut Record) {}
