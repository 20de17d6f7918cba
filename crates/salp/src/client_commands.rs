//! Commands that ask a running API server: `ps`, `logs`, `token`; and `kubeconfig`, `version`.

use crate::api_access::{self, block_on, connect};
use crate::cli::{DataDir, Format, Target};
use crate::config::{self, Layout};
use crate::fleet::{self, Member, SiteArgs, Unknown};
use crate::output;
use crate::readings::{self, Process, Which};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use futures::{AsyncBufReadExt as _, TryStreamExt as _};
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::Duration;

/// Between the two samples that give `ps` its rates.
const SAMPLE_EVERY: Duration = Duration::from_millis(500);

/// How long another site may take to begin with a log.
const SITE_DEADLINE: Duration = Duration::from_secs(5);

/// Flags of `salp ps`.
#[derive(Clone, Debug, Args)]
pub struct PsArgs {
    #[command(flatten)]
    pub target: Target,
    /// Namespace [default: the kubeconfig's].
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// All namespaces.
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// Label selector, such as `app=till`.
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub selector: Option<String>,
    /// Field selector, such as `status.phase=Running`.
    #[arg(long, value_name = "SELECTOR")]
    pub field_selector: Option<String>,
    #[command(flatten)]
    pub fleet: SiteArgs,
    /// Output format.
    #[arg(short, long)]
    pub output: Option<Format>,
    /// No heading.
    #[arg(long)]
    pub no_headers: bool,
}

/// `salp ps`.
pub fn ps(args: PsArgs) -> Result<ExitCode> {
    let list = block_on(async {
        if args.fleet.any() {
            return fleet_processes(&args).await;
        }
        let access = connect(&args.target).await?;
        site_processes(&access, &which(&args, &access.namespace)).await
    })?;
    match args.output {
        Some(Format::Json) => {
            output::line(serde_json::to_string_pretty(&list).context("encode list")?)
        }
        Some(Format::Yaml) => output::line(
            serde_saphyr::to_string(&list)
                .context("encode list")?
                .trim_end(),
        ),
        Some(Format::Name) => list
            .iter()
            .for_each(|p| output::line(format!("pod/{}", p.pod))),
        Some(Format::Wide) | None => {
            if list.is_empty() {
                output::note(match (&args.namespace, args.all_namespaces) {
                    (_, true) => "No pods found".to_owned(),
                    (Some(ns), _) => format!("No pods found in namespace {ns}."),
                    (None, _) => "No pods found.".to_owned(),
                });
                return Ok(ExitCode::SUCCESS);
            }
            print_processes(&list, &args);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Which pods, at a site whose namespace by default is this.
fn which(args: &PsArgs, namespace: &str) -> Which {
    let named = || {
        args.namespace
            .clone()
            .unwrap_or_else(|| namespace.to_owned())
    };
    Which {
        namespace: (!args.all_namespaces).then(named),
        label_selector: args.selector.clone(),
        field_selector: args.field_selector.clone(),
    }
}

/// The pods of one site, by its API.
async fn site_processes(access: &api_access::Access, which: &Which) -> Result<Vec<Process>> {
    let first = readings::sample(access, which).await?;
    tokio::time::sleep(SAMPLE_EVERY).await;
    let second = readings::sample(access, which).await?;
    Ok(readings::processes(Some(&first), &second))
}

/// The pods of all sites that are asked and answer in time; the others are named.
async fn fleet_processes(args: &PsArgs) -> Result<Vec<Process>> {
    let within = args.fleet.within()?;
    let members = args.fleet.members(&args.target).await?;
    let asked = members.into_iter().map(|member| async move {
        let list = member_processes(&member, args, within).await;
        (member.name, list)
    });
    let mut all = Vec::new();
    for (site, list) in futures::future::join_all(asked).await {
        match list {
            Ok(list) => all.extend(list.into_iter().map(|p| Process {
                site: Some(site.clone()),
                ..p
            })),
            Err(Unknown::Silent(why)) => output::note(format!("site {site} is silent: {why}")),
            Err(Unknown::Said(text)) => output::note(format!("site {site}: {text}")),
        }
    }
    Ok(all)
}

async fn member_processes(
    member: &Member,
    args: &PsArgs,
    within: Duration,
) -> Result<Vec<Process>, Unknown> {
    let access = member
        .access
        .as_ref()
        .map_err(|e| Unknown::Silent(e.clone()))?;
    let which = which(args, &access.namespace);
    if let Some(list) = member.processes(&which, within).await? {
        return Ok(list.processes);
    }
    let within = within + SAMPLE_EVERY;
    let list = tokio::time::timeout(within, site_processes(access, &which)).await;
    list.map_err(|_| Unknown::Silent(format!("no answer within {within:?}")))?
        .map_err(|e| Unknown::Silent(format!("{e:#}")))
}

fn print_processes(list: &[Process], args: &PsArgs) {
    let wide = args.output == Some(Format::Wide);
    let mut head = vec![
        "POD", "IMAGE", "READY", "STATE", "RESTARTS", "AGE", "CPU", "MEMORY", "REQ/S",
    ];
    if args.all_namespaces {
        head.insert(0, "NAMESPACE");
    }
    if args.fleet.any() {
        head.insert(0, "SITE");
    }
    if wide {
        head.extend(["REQUESTS", "INSTANCES", "IP", "NODE"]);
    }
    let rows: Vec<Vec<String>> = list
        .iter()
        .map(|p| row(p, args.all_namespaces, wide))
        .collect();
    let skip = usize::from(args.no_headers);
    // Thousands of lines are one write.
    let lines = output::table_lines(&head, &rows);
    output::line(lines[skip.min(lines.len())..].join("\n"));
}

/// The cells of one pod, as `ps` and `top` show them.
pub fn row(p: &Process, with_namespace: bool, wide: bool) -> Vec<String> {
    let unknown = || "-".to_owned();
    let mut cells = vec![
        p.pod.clone(),
        p.image.clone(),
        p.ready.clone(),
        p.state.clone(),
        p.restarts.to_string(),
        output::age(p.age_seconds),
        p.cpu_cores
            .map_or_else(unknown, |c| format!("{}m", (c * 1000.0).round())),
        p.memory_bytes.map_or_else(unknown, output::bytes),
        p.requests_per_second
            .map_or_else(unknown, |r| format!("{r:.0}")),
    ];
    if with_namespace {
        cells.insert(0, p.namespace.clone());
    }
    if let Some(site) = &p.site {
        cells.insert(0, site.clone());
    }
    if wide {
        cells.push(p.requests.map_or_else(unknown, |r| r.to_string()));
        cells.push(p.instances.map_or_else(unknown, |r| r.to_string()));
        cells.push(if p.ip.is_empty() {
            unknown()
        } else {
            p.ip.clone()
        });
        cells.push(if p.node.is_empty() {
            unknown()
        } else {
            p.node.clone()
        });
    }
    cells
}

/// Flags of `salp logs`.
#[derive(Clone, Debug, Args)]
pub struct LogsArgs {
    #[command(flatten)]
    pub target: Target,
    /// The pod: NAME, NAMESPACE/NAME or SITE/NAMESPACE/NAME.
    pub pod: String,
    /// Namespace [default: the kubeconfig's].
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// Container, where the pod has several.
    #[arg(short, long)]
    pub container: Option<String>,
    /// Go on as lines come.
    #[arg(short, long)]
    pub follow: bool,
    /// The run before the last restart.
    #[arg(short, long)]
    pub previous: bool,
    /// Only the last lines.
    #[arg(long, value_name = "N")]
    pub tail: Option<i64>,
    /// With the time of each line.
    #[arg(long)]
    pub timestamps: bool,
}

/// `salp logs`.
pub fn logs(args: LogsArgs) -> Result<ExitCode> {
    block_on(async {
        let (site, namespace, name) = named(&args.pod, args.namespace.as_deref())?;
        let access = match site {
            Some(site) => fleet::site(&args.target, site, SITE_DEADLINE).await?,
            None => connect(&args.target).await?,
        };
        let namespace = namespace.unwrap_or(&access.namespace);
        let params = kube::api::LogParams {
            container: args.container.clone(),
            follow: args.follow,
            previous: args.previous,
            tail_lines: args.tail,
            timestamps: args.timestamps,
            ..Default::default()
        };
        print_logs(&access, namespace, name, &params).await
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Site, namespace and name of a pod, as commands are told them.
pub fn named<'a>(
    pod: &'a str,
    namespace: Option<&'a str>,
) -> Result<(Option<&'a str>, Option<&'a str>, &'a str)> {
    let parts: Vec<&str> = pod.split('/').collect();
    match parts[..] {
        [name] => Ok((None, namespace, name)),
        [of, name] if namespace.is_none() => Ok((None, Some(of), name)),
        [site, of, name] if namespace.is_none() => Ok((Some(site), Some(of), name)),
        _ => bail!(
            "read pod {pod:?}: want NAME, NAMESPACE/NAME or SITE/NAMESPACE/NAME of a pod; see `salp ps -A`"
        ),
    }
}

/// Copies a pod's log to standard output.
pub async fn print_logs(
    access: &api_access::Access,
    namespace: &str,
    name: &str,
    params: &kube::api::LogParams,
) -> Result<()> {
    let pods: kube::Api<k8s_openapi::api::core::v1::Pod> =
        kube::Api::namespaced(access.client.clone(), namespace);
    let stream = pods
        .log_stream(name, params)
        .await
        .map_err(api_access::explain)?;
    let mut lines = stream.lines();
    while let Some(line) = lines.try_next().await.context("read log")? {
        output::line(line);
    }
    Ok(())
}

/// Flags of `salp token`.
#[derive(Clone, Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct TokenArgs {
    #[command(subcommand)]
    pub command: Option<crate::join_token::TokenCommand>,
    #[command(flatten)]
    pub target: Target,
    /// The ServiceAccount.
    #[arg(default_value = "default")]
    pub service_account: String,
    /// Namespace [default: the kubeconfig's].
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// How long it is valid, such as `10m` or `24h`.
    #[arg(long, default_value = "1h", value_parser = parse_duration)]
    pub duration: Duration,
}

pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration: want a number and s, m, h or d");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let per = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let count: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    count
        .checked_mul(per)
        .map(Duration::from_secs)
        .ok_or_else(wrong)
}

/// `salp token`.
pub fn token(args: TokenArgs) -> Result<ExitCode> {
    if let Some(crate::join_token::TokenCommand::Create(create)) = &args.command {
        return crate::join_token::create(create);
    }
    block_on(async {
        let access = connect(&args.target).await?;
        let namespace = args
            .namespace
            .clone()
            .unwrap_or_else(|| access.namespace.clone());
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"expirationSeconds": args.duration.as_secs()},
        });
        let path = format!(
            "/api/v1/namespaces/{namespace}/serviceaccounts/{}/token",
            args.service_account
        );
        let answer = access.post(&path, &body).await?;
        match answer.pointer("/status/token").and_then(Value::as_str) {
            Some(token) => output::line(token),
            None => bail!("read token: the server's answer has none"),
        }
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

/// `salp kubeconfig`.
pub fn kubeconfig(dir: &DataDir) -> Result<ExitCode> {
    let path = Layout::new(config::data_dir(dir)?).kubeconfig();
    if !path.exists() {
        bail!(
            "find kubeconfig {}: start the site with `salp up` first, or give its --data-dir",
            path.display()
        );
    }
    output::line(path.display().to_string());
    Ok(ExitCode::SUCCESS)
}

/// `salp version`.
pub fn version(format: Option<Format>) -> Result<ExitCode> {
    let info = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "kubernetes": api::constants::KUBERNETES_VERSION,
        "platform": platform(),
    });
    match format {
        Some(Format::Json) => {
            output::line(serde_json::to_string_pretty(&info).context("encode version")?)
        }
        Some(Format::Yaml) => output::line(
            serde_saphyr::to_string(&info)
                .context("encode version")?
                .trim_end(),
        ),
        _ => output::line(format!(
            "salp {} (Kubernetes {}, {})",
            env!("CARGO_PKG_VERSION"),
            api::constants::KUBERNETES_VERSION,
            platform(),
        )),
    }
    Ok(ExitCode::SUCCESS)
}

/// This program's platform in Kubernetes' words, such as `linux/amd64`.
fn platform() -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("{}/{architecture}", std::env::consts::OS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(parse_duration("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(parse_duration("2d"), Ok(Duration::from_secs(172_800)));
        for wrong in ["", "m", "10", "-1s", "1w", "99999999999999999999d"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }
}
