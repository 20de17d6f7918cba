//! The command line: what can be asked, and which module answers.

use crate::api_args::ApiArgs;
use crate::store_commands::{self, StoreArgs};
use crate::{
    client_commands, config, dataplane, exec, gitops_commands, image_commands, node_join, output,
    run, sites_commands, stop, supervisor, top, up,
};
use anyhow::Result;
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use serde::Deserialize;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

/// A whole Kubernetes site in one binary: WebAssembly pods from OCI registries, driven by kubectl.
#[derive(Debug, Parser)]
#[command(
    name = "salp",
    version,
    disable_help_subcommand = true,
    max_term_width = 100,
    after_help = "Examples:\n  salp up -f examples/hello\n  export KUBECONFIG=$(salp kubeconfig)\n  salp run localhost:5000/hello:1\n  salp ps -A"
)]
pub struct Cli {
    /// What to log, such as `info` or `salp=debug,apiserver=trace`.
    #[arg(
        long,
        global = true,
        env = "SALP_LOG",
        default_value = "warn",
        hide_env_values = true
    )]
    pub log: String,
    #[command(subcommand)]
    pub command: Command,
}

/// Where a site lives.
#[derive(Clone, Debug, Args)]
pub struct DataDir {
    /// Directory with the site's whole state [default: /var/lib/salp as root, else $XDG_DATA_HOME/salp].
    #[arg(
        long,
        global = true,
        env = "SALP_DATA_DIR",
        hide_env_values = true,
        value_name = "DIR"
    )]
    pub data_dir: Option<PathBuf>,
}

/// How to reach an API server.
#[derive(Clone, Debug, Args)]
pub struct Target {
    #[command(flatten)]
    pub data_dir: DataDir,
    /// Kubeconfig file [default: $KUBECONFIG, else the site's own].
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

/// Output formats of the commands that list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// More columns.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
    /// Names only.
    Name,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a site: API server, scheduler, controllers, node and data plane.
    #[command(
        after_help = "Examples:\n  salp up\n  salp up -f examples/hello\n  salp up --data-dir ./shop-1 --api-port 7443\n  salp up --disable node,scheduler,controllers,gitops"
    )]
    Up(Box<UpArgs>),
    /// Stop a site and all its pods.
    #[command(after_help = "Examples:\n  salp down\n  salp down --data-dir ./shop-1")]
    Down(DataDir),
    /// Run an image as one pod: print its output, or the URL where it answers.
    #[command(
        after_help = "Examples:\n  salp run localhost:5000/hello:1\n  salp run --rm localhost:5000/sum:1 -- 1 2 3"
    )]
    Run(run::RunArgs),
    /// List pods like processes.
    #[command(
        after_help = "Examples:\n  salp ps\n  salp ps -A -o json\n  salp ps -n shop -l app=till\n  salp ps -A --sites"
    )]
    Ps(client_commands::PsArgs),
    /// Watch nodes and pods live.
    #[command(after_help = "Examples:\n  salp top\n  salp top -n shop\n  salp top --sites")]
    Top(top::TopArgs),
    /// Print a pod's logs.
    #[command(
        after_help = "Examples:\n  salp logs hello-5d8c\n  salp logs -f -n shop till-0 -c app\n  salp logs -f shop-1/default/till-0"
    )]
    Logs(client_commands::LogsArgs),
    /// Run a program in a pod, here or at another site.
    #[command(
        after_help = "Examples:\n  salp exec hello-5d8c -- show\n  salp exec -i -n shop till-0 -c app -- /bin/import.wasm --all\n  salp exec shop-1/default/till-0 -- show"
    )]
    Exec(exec::ExecArgs),
    /// List the sites of the lattice; admit and revoke them at its hub.
    #[command(
        after_help = "Examples:\n  salp sites\n  salp sites token --ttl 1h\n  salp sites approve shop-1\n  salp sites revoke shop-1"
    )]
    Sites(sites_commands::SitesArgs),
    /// Push, pull, list and remove images.
    #[command(
        after_help = "Examples:\n  salp image push hello.wasm localhost:5000/hello:1\n  salp image pull localhost:5000/hello:1\n  salp image ls"
    )]
    Image(image_commands::ImageArgs),
    /// Follow Git repositories and OCI artifacts: list, reconcile, suspend, resume, diff.
    #[command(
        after_help = "Examples:\n  salp gitops get -A\n  salp gitops reconcile ks shop --with-source\n  salp gitops diff shop --path ."
    )]
    Gitops(gitops_commands::GitopsArgs),
    /// Keep a site's objects in a file, restore them, or move them between stores.
    #[command(
        after_help = "Examples:\n  salp store snapshot site.zst\n  salp store migrate --to etcd=http://127.0.0.1:2379"
    )]
    Store(store_commands::StoreCommandArgs),
    /// Print the path of the site's kubeconfig file.
    #[command(after_help = "Examples:\n  export KUBECONFIG=$(salp kubeconfig)")]
    Kubeconfig(DataDir),
    /// Join this machine to a site as a node, or leave it.
    #[command(after_help = "Examples:\n  salp node leave")]
    Node(node_join::NodeArgs),
    /// Print a token of a ServiceAccount.
    #[command(
        after_help = "Examples:\n  salp token default\n  salp token -n ci deployer --duration 10m\n  salp token create"
    )]
    Token(client_commands::TokenArgs),
    /// Print a shell completion script.
    #[command(
        after_help = "Examples:\n  source <(salp completion bash)\n  salp completion zsh > \"${fpath[1]}/_salp\"\n  salp completion fish > ~/.config/fish/completions/salp.fish"
    )]
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the version.
    #[command(after_help = "Examples:\n  salp version\n  salp version -o json")]
    Version {
        /// Output format.
        #[arg(short, long)]
        output: Option<Format>,
    },
    /// The data plane process of a site (started by `up`).
    #[command(hide = true)]
    Dataplane {
        /// Its configuration file.
        #[arg(long)]
        config: PathBuf,
    },
    /// The process that a node's containers belong to (started by the first of them).
    #[command(hide = true)]
    Supervisor {
        /// Its configuration file.
        #[arg(long)]
        config: PathBuf,
    },
    /// The first process of a pod whose containers share theirs (started by the supervisor).
    #[command(hide = true)]
    Pause {
        /// What it sees as its root directory.
        dir: PathBuf,
    },
}

/// Flags of `salp up`; the configuration file has the same names.
#[derive(Clone, Debug, Args)]
pub struct UpArgs {
    #[command(flatten)]
    pub data_dir: DataDir,
    /// Configuration file [default: /etc/salp/config.yaml, if it is there].
    #[arg(long, env = "SALP_CONFIG", hide_env_values = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Port of the API server [default: 6443].
    #[arg(long, env = "SALP_API_PORT", hide_env_values = true, value_name = "N")]
    pub api_port: Option<u16>,
    /// Address that the API server and node ports listen on; 0.0.0.0 opens the site to the network [default: 127.0.0.1].
    #[arg(
        long,
        env = "SALP_BIND_ADDRESS",
        hide_env_values = true,
        value_name = "IP"
    )]
    pub bind_address: Option<IpAddr>,
    /// Apply manifests (a file or directory) once the site is up, and print the URLs that answer.
    #[arg(short = 'f', long = "filename", value_name = "PATH")]
    pub filename: Vec<PathBuf>,
    /// Parts that don't run here: without `node` this machine runs no pods and has no data plane,
    /// with all of them off it serves the API alone.
    #[arg(
        long,
        env = "SALP_DISABLE",
        hide_env_values = true,
        value_delimiter = ',',
        value_name = "PART"
    )]
    pub disable: Vec<Part>,
    #[command(flatten)]
    pub node: NodeFlags,
    #[command(flatten)]
    pub store: StoreArgs,
    #[command(flatten)]
    pub api: ApiArgs,
    #[command(flatten)]
    pub lattice: LatticeArgs,
}

/// What `salp up` runs beside the API server, unless it is told not to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// The node agent and the data plane.
    Node,
    /// The scheduler.
    Scheduler,
    /// The controllers.
    Controllers,
    /// What follows Git repositories, OCI artifacts and folders of manifests.
    Gitops,
}

/// Flags of whatever runs pods: `salp up` and `salp node join`.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Node")]
pub struct NodeFlags {
    /// Port of the kubelet API [default: 10250, or any free one].
    #[arg(
        long,
        env = "SALP_KUBELET_PORT",
        hide_env_values = true,
        value_name = "N"
    )]
    pub kubelet_port: Option<u16>,
    /// Name of this node [default: the host name].
    #[arg(
        long,
        env = "SALP_NODE_NAME",
        hide_env_values = true,
        value_name = "NAME"
    )]
    pub node_name: Option<String>,
    /// Most pods on this node [default: 10000].
    #[arg(long, env = "SALP_MAX_PODS", hide_env_values = true, value_name = "N")]
    pub max_pods: Option<u32>,
    /// Most processes and threads of a container pod [default: no limit].
    #[arg(
        long,
        env = "SALP_POD_MAX_PIDS",
        hide_env_values = true,
        value_name = "N"
    )]
    pub pod_max_pids: Option<u64>,
    /// Registries that are asked over plain HTTP (host:port); loopback always is.
    #[arg(
        long,
        env = "SALP_INSECURE_REGISTRIES",
        hide_env_values = true,
        value_delimiter = ',',
        value_name = "HOST"
    )]
    pub insecure_registry: Vec<String>,
    /// Directory of files that each describe a pod to run here, API server or not (static pods).
    #[arg(
        long,
        env = "SALP_POD_MANIFEST_PATH",
        hide_env_values = true,
        value_name = "DIR"
    )]
    pub pod_manifest_path: Option<PathBuf>,
    /// Labels of this node: KEY=VALUE.
    #[arg(
        long,
        env = "SALP_NODE_LABELS",
        hide_env_values = true,
        value_delimiter = ',',
        value_name = "LABEL"
    )]
    pub node_labels: Vec<String>,
    /// Taints that this node has when it is first seen: KEY=VALUE:EFFECT.
    #[arg(
        long,
        env = "SALP_REGISTER_WITH_TAINTS",
        hide_env_values = true,
        value_delimiter = ',',
        value_name = "TAINT"
    )]
    pub register_with_taints: Vec<String>,
    /// Where device plugins look for a kubelet [default: with root /var/lib/kubelet, if nobody else is there].
    #[arg(
        long,
        env = "SALP_KUBELET_DIR",
        hide_env_values = true,
        value_name = "DIR"
    )]
    pub kubelet_dir: Option<PathBuf>,
    /// How long pods have to end when the machine goes down, such as 30s [default: 0s, they are not ended].
    #[arg(
        long,
        env = "SALP_SHUTDOWN_GRACE_PERIOD",
        hide_env_values = true,
        value_name = "TIME"
    )]
    pub shutdown_grace_period: Option<String>,
    /// How much of that is for critical pods alone, which end last [default: 0s].
    #[arg(
        long,
        env = "SALP_SHUTDOWN_GRACE_PERIOD_CRITICAL_PODS",
        hide_env_values = true,
        value_name = "TIME"
    )]
    pub shutdown_grace_period_critical_pods: Option<String>,
}

/// How a site meets others.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Lattice")]
pub struct LatticeArgs {
    /// Name of this site among others [default: the node's name].
    #[arg(long, env = "SALP_SITE", value_name = "NAME")]
    pub site: Option<String>,
    /// NATS servers by which sites meet, such as nats://hub:4222 or tls://…; none: the site is alone.
    #[arg(
        long = "lattice",
        env = "SALP_LATTICE",
        value_delimiter = ',',
        value_name = "URL",
        hide_env_values = true
    )]
    pub servers: Vec<String>,
    /// This site is the lattice's hub: it holds the root key, and admits and revokes the others.
    #[arg(long, env = "SALP_LATTICE_HUB")]
    pub lattice_hub: bool,
    /// Token that admits this site (`salp sites token` at the hub makes it).
    #[arg(
        long,
        env = "SALP_LATTICE_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true
    )]
    pub lattice_token: Option<String>,
    /// NATS credentials file.
    #[arg(long, env = "SALP_LATTICE_CREDS", value_name = "FILE")]
    pub lattice_creds: Option<PathBuf>,
    /// File with a NATS nkey seed.
    #[arg(long, env = "SALP_LATTICE_NKEY", value_name = "FILE")]
    pub lattice_nkey: Option<PathBuf>,
    /// Certificates (PEM) that the NATS server is trusted by.
    #[arg(long, env = "SALP_LATTICE_CA", value_name = "FILE")]
    pub lattice_ca: Option<PathBuf>,
    /// Where other sites reach this one without NATS: ADDRESS:PORT, or `off` [default: the
    /// bind address, any port].
    #[arg(long, env = "SALP_LATTICE_LISTEN", value_name = "ADDRESS")]
    pub lattice_listen: Option<String>,
    /// What other sites are told of it where that is another: HOST:PORT.
    #[arg(
        long,
        env = "SALP_LATTICE_ADVERTISE",
        value_delimiter = ',',
        value_name = "ADDRESS"
    )]
    pub lattice_advertise: Vec<String>,
    /// What other sites may ask of pods, their logs and nodes here: `all`, `off`, or only
    /// about these namespaces [default: all].
    #[arg(
        long,
        env = "SALP_LATTICE_ANSWERS",
        value_delimiter = ',',
        value_name = "NAMESPACE"
    )]
    pub lattice_answers: Vec<String>,
    /// Where other sites may run programs in pods here (`salp exec`): `all`, `off`, or only
    /// in these namespaces [default: off].
    #[arg(
        long,
        env = "SALP_LATTICE_EXEC",
        value_delimiter = ',',
        value_name = "NAMESPACE"
    )]
    pub lattice_exec: Vec<String>,
    /// Region of this site.
    #[arg(long, env = "SALP_REGION", value_name = "NAME")]
    pub region: Option<String>,
    /// Zone of this site in its region.
    #[arg(long, env = "SALP_ZONE", value_name = "NAME")]
    pub zone: Option<String>,
}

/// Runs the command.
pub fn dispatch(cli: Cli) -> Result<ExitCode> {
    let is_service = matches!(
        cli.command,
        Command::Dataplane { .. } | Command::Supervisor { .. } | Command::Pause { .. }
    );
    output::init_logging(&cli.log, is_service)?;
    match cli.command {
        Command::Up(args) => up::up(*args),
        Command::Down(dir) => stop::down(&config::data_dir(&dir)?),
        Command::Run(args) => run::run(args),
        Command::Ps(args) => client_commands::ps(args),
        Command::Top(args) => top::top(args),
        Command::Logs(args) => client_commands::logs(args),
        Command::Exec(args) => exec::exec(args),
        Command::Sites(args) => sites_commands::sites(args),
        Command::Image(args) => image_commands::image(args),
        Command::Gitops(args) => gitops_commands::gitops(args),
        Command::Store(args) => store_commands::store(&args),
        Command::Kubeconfig(dir) => client_commands::kubeconfig(&dir),
        Command::Node(args) => node_join::node(args),
        Command::Token(args) => client_commands::token(args),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "salp", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Version { output } => client_commands::version(output),
        Command::Dataplane { config } => dataplane::main(&config),
        Command::Supervisor { config } => supervisor::main(&config),
        Command::Pause { dir } => supervisor::pause(&dir),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every(command: &clap::Command, check: &mut impl FnMut(&clap::Command)) {
        check(command);
        let shown = command.get_subcommands().filter(|c| !c.is_hide_set());
        shown.for_each(|c| every(c, check));
    }

    #[test]
    fn every_command_says_what_it_does_and_gives_examples() {
        Cli::command().debug_assert();
        every(&Cli::command(), &mut |command| {
            let name = command.get_name();
            assert!(command.get_about().is_some(), "{name} says nothing");
            let help = command.get_after_help().map(ToString::to_string);
            let help = help.unwrap_or_default();
            let mut lines = help.lines();
            assert_eq!(lines.next(), Some("Examples:"), "{name}");
            assert!(lines.clone().count() > 0, "{name} has no example");
            assert!(lines.all(|l| l.contains("salp ")), "{name}: {help}");
        });
    }

    #[test]
    fn examples_are_commands_that_are_there() {
        every(&Cli::command(), &mut |command| {
            let help = command.get_after_help().map(ToString::to_string);
            for line in help.iter().flat_map(|h| h.lines().skip(1)) {
                let words = line[line.find("salp ").expect("salp")..].split_whitespace();
                let words = words
                    .map(|w| w.trim_end_matches(')').trim_matches('"'))
                    .take_while(|w| !w.starts_with('>'));
                if let Err(error) = Cli::try_parse_from(words) {
                    panic!("{line}: {error}");
                }
            }
        });
    }
}
