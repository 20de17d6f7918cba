//! The project's development tool: `cargo xtask NAME`. One module a task; nothing here ships.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line tool talks on its standard streams"
)]

mod fetch;
mod guests;
mod schema;

use anyhow::Result;
use clap::Parser;

/// Development tasks.
#[derive(Parser)]
#[command(name = "cargo xtask", disable_help_subcommand = true)]
enum Task {
    /// Build the guest components that tests and examples use.
    Guests {
        /// What the task itself takes.
        args: Vec<String>,
    },
    /// Write the schema table of the built-in kinds from published sources.
    Schema,
}

fn main() -> Result<()> {
    match Task::parse() {
        Task::Guests { args } => guests::run(&fetch::root(), &args),
        Task::Schema => schema::run(),
    }
}
