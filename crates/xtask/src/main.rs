//! The project's development tool: `cargo xtask NAME`. One module a task; nothing here ships.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line tool talks on its standard streams"
)]

mod bench;
mod deny;
mod fetch;
mod fuzz;
mod guests;
mod schema;
mod test;
mod tidy;
mod tools;

use anyhow::Result;
use clap::Parser;
use std::process::ExitCode;

/// Development tasks.
#[derive(Parser)]
#[command(name = "cargo xtask", disable_help_subcommand = true)]
enum Task {
    /// Measure a release build: start, memory, requests, API, density, as ratios to peers.
    Bench {
        /// Groups of figures: start, first-answer, requests, api, density; all if none.
        groups: Vec<String>,
    },
    /// Check licences, sources and banned crates of all dependencies against deny.toml.
    Deny,
    /// Let fuzz targets search for inputs that break a decoder.
    Fuzz {
        /// Names of targets; all if none.
        targets: Vec<String>,
        /// How long each searches, seconds.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// Build the guest components that tests and examples use.
    Guests {
        /// What the task itself takes.
        args: Vec<String>,
    },
    /// Write the schema table of the built-in kinds from published sources.
    Schema,
    /// Fetch tools, build, and run all tests.
    Test {
        /// Passed on to the test runner.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Check crate layers, file heads, names and sizes.
    Tidy {
        /// Write the crate table of ARCHITECTURE.md instead of checking it.
        #[arg(long)]
        write: bool,
    },
    /// Fetch real clients and servers for tests into target/tools.
    Tools {
        /// Names; all if none.
        names: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Task::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Bench { groups } => bench::run(&groups),
        Task::Deny => deny::run(),
        Task::Fuzz { targets, seconds } => fuzz::run(&targets, seconds),
        Task::Guests { args } => guests::run(&fetch::root(), &args),
        Task::Schema => schema::run(),
        Task::Test { args } => test::run(&args),
        Task::Tidy { write } => tidy::run(write),
        Task::Tools { names } => tools::run(&names),
    }
}
