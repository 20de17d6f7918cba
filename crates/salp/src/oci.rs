//! `salp oci-runtime`: the built-in OCI runtime by the command line that OCI runtimes share. What it
//! does is in crate `oci-runtime`.

use oci_runtime::{Error, Operation};
use serde_json::json;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The first argument.
pub const NAME: &str = "oci-runtime";

/// As other OCI runtimes have them.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = NAME)]
pub struct Args {
    /// Where it keeps what it knows of containers.
    #[arg(long)]
    root: PathBuf,
    /// Where errors are written.
    #[arg(long)]
    log: Option<PathBuf>,
    /// How errors are written: a JSON object a line is all there is.
    #[arg(long, value_parser = ["json"])]
    log_format: Option<String>,
    #[command(subcommand)]
    call: Call,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Call {
    /// Makes a container, whose first process waits.
    Create {
        #[arg(long)]
        bundle: PathBuf,
        #[command(flatten)]
        process: ProcessArgs,
    },
    /// Lets it run.
    Start { id: String },
    /// Runs a further program in it.
    Exec {
        #[arg(long)]
        process: PathBuf,
        /// It does not wait for the program, ever.
        #[arg(long)]
        detach: bool,
        #[command(flatten)]
        started: ProcessArgs,
    },
    /// Ends whatever is left of it, and forgets it.
    Delete {
        /// Even if it runs, always.
        #[arg(long)]
        force: bool,
        id: String,
    },
}

#[derive(Clone, Debug, clap::Args)]
struct ProcessArgs {
    #[arg(long)]
    pid_file: PathBuf,
    #[arg(long)]
    console_socket: Option<PathBuf>,
    id: String,
}

impl ProcessArgs {
    fn operation<'a>(&'a self, root: &'a Path) -> Operation<'a> {
        Operation {
            root,
            id: &self.id,
            pid_file: &self.pid_file,
            console_socket: self.console_socket.as_deref(),
        }
    }
}

/// Does it; why not is in the log.
pub fn main(args: &Args) -> ExitCode {
    let Err(error) = call(args) else {
        return ExitCode::SUCCESS;
    };
    let message = format!("{:#}", anyhow::Error::from(error));
    let line = json!({"level": "error", "msg": message}).to_string() + "\n";
    let log = args.log.as_ref().map(|path| {
        let mut options = std::fs::OpenOptions::new();
        let file = options.create(true).append(true).open(path);
        file.and_then(|mut file| file.write_all(line.as_bytes()))
    });
    if !matches!(log, Some(Ok(()))) {
        crate::output::error(&anyhow::Error::msg(message));
    }
    ExitCode::FAILURE
}

fn call(args: &Args) -> Result<(), Error> {
    match &args.call {
        Call::Create { bundle, process } => {
            oci_runtime::create(process.operation(&args.root), bundle)
        }
        Call::Start { id } => oci_runtime::start(&args.root, id),
        Call::Exec {
            process, started, ..
        } => oci_runtime::exec(started.operation(&args.root), process),
        Call::Delete { id, .. } => oci_runtime::delete(&args.root, id),
    }
}
