//! The controllers against a real API server in this process, with a stand-in for the
//! node that makes pods ready at once.

mod autoscaling;
mod bounds;
mod collection;
mod cron;
mod kubectl;
mod nodes;
mod roles;
mod sets;
mod site;
mod volumes;
mod workloads;
mod writes;
