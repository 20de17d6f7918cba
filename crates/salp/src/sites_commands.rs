//! `salp sites`: asks the running site about the lattice.

use crate::cli::{DataDir, Format};
use crate::config::{self, Layout};
use crate::output;
use crate::sites::{Answer, Listed, Listing, Question};
use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

/// A running site answers at once, but for questions to other sites.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub struct SitesArgs {
    #[command(flatten)]
    data_dir: DataDir,
    /// Output format.
    #[arg(short, long, global = true)]
    output: Option<Format>,
    #[command(subcommand)]
    command: Option<SitesCommand>,
}

#[derive(Debug, Subcommand)]
enum SitesCommand {
    /// List the sites.
    #[command(after_help = "Examples:\n  salp sites ls\n  salp sites ls -o wide")]
    Ls,
    /// Admit a site that waits, at the hub.
    #[command(after_help = "Examples:\n  salp sites approve shop-1")]
    Approve {
        /// Its name or id.
        site: String,
    },
    /// Take a site out for good, at the hub.
    #[command(after_help = "Examples:\n  salp sites revoke shop-1")]
    Revoke {
        /// Its name or id.
        site: String,
    },
    /// Make a token by which sites join, at the hub.
    #[command(after_help = "Examples:\n  salp sites token\n  salp sites token --ttl 24h --uses 20")]
    Token {
        /// How long it is valid, such as 10m or 24h.
        #[arg(long, default_value = "1h", value_parser = duration)]
        ttl: Duration,
        /// How many sites may join by it.
        #[arg(long, default_value_t = 1)]
        uses: u32,
    },
    /// Ask another site's API for pods or nodes and print the answer.
    #[command(after_help = "Examples:\n  salp sites get shop-1 /api/v1/nodes")]
    Get {
        /// Its name or id.
        site: String,
        /// A path such as /api/v1/pods.
        path: String,
        /// How long to wait.
        #[arg(long, default_value = "5s", value_parser = duration)]
        deadline: Duration,
    },
}

fn duration(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration = text.parse().map_err(|e: jiff::Error| e.to_string())?;
    Duration::try_from(span).map_err(|_| "a duration is not negative".to_owned())
}

/// `salp sites`.
pub fn sites(args: SitesArgs) -> Result<ExitCode> {
    let layout = Layout::new(config::data_dir(&args.data_dir)?);
    let question = match args.command {
        None | Some(SitesCommand::Ls) => Question::List,
        Some(SitesCommand::Approve { site }) => Question::Approve { site },
        Some(SitesCommand::Revoke { site }) => Question::Revoke { site },
        Some(SitesCommand::Token { ttl, uses }) => Question::Token {
            seconds: ttl.as_secs(),
            uses,
        },
        Some(SitesCommand::Get {
            site,
            path,
            deadline,
        }) => Question::Ask {
            site,
            path,
            milliseconds: deadline.as_millis() as u64,
        },
    };
    let (answer, mut rest) = ask(&layout, &question)?;
    match answer {
        Answer::Sites(listing) => print(&listing, args.output)?,
        Answer::Done(text) => output::line(text),
        Answer::Said { status: 200, .. } => {
            let mut out = std::io::stdout().lock();
            std::io::copy(&mut rest, &mut out).context("read the site's answer")?;
        }
        Answer::Said { status, .. } => {
            let mut body = String::new();
            rest.read_to_string(&mut body)
                .context("read the site's answer")?;
            bail!("ask site: it answers {status}: {}", body.trim());
        }
        Answer::Refused(why) => bail!("{why}"),
    }
    Ok(ExitCode::SUCCESS)
}

fn ask(layout: &Layout, question: &Question) -> Result<(Answer, BufReader<UnixStream>)> {
    let path = layout.sites_socket();
    let mut connection = UnixStream::connect(&path).with_context(|| {
        format!(
            "ask the site in {}: it does not run, or without --lattice",
            layout.root.display()
        )
    })?;
    connection.set_read_timeout(Some(PATIENCE))?;
    let mut text = serde_json::to_vec(question)?;
    text.push(b'\n');
    connection.write_all(&text).context("ask the site")?;
    let mut connection = BufReader::new(connection);
    let mut line = String::new();
    connection
        .read_line(&mut line)
        .context("read the site's answer")?;
    let answer = serde_json::from_str(&line).context("read the site's answer")?;
    Ok((answer, connection))
}

fn print(listing: &Listing, format: Option<Format>) -> Result<()> {
    match format {
        Some(Format::Json) => output::line(serde_json::to_string_pretty(listing)?),
        Some(Format::Yaml) => output::line(serde_saphyr::to_string(listing)?.trim_end()),
        Some(Format::Name) => listing
            .sites
            .iter()
            .for_each(|s| output::line(format!("site/{}", s.name))),
        Some(Format::Wide) | None => {
            let wide = format == Some(Format::Wide);
            let mut head = vec![
                "NAME", "REGION", "ZONE", "STATE", "SINCE", "VERSION", "NODES", "PODS", "RTT",
            ];
            if wide {
                head.extend(["EXPORTS", "ID", "REASON"]);
            }
            let now = jiff::Timestamp::now();
            let rows: Vec<_> = listing.sites.iter().map(|s| row(s, now, wide)).collect();
            output::table(&head, &rows);
        }
    }
    Ok(())
}

fn row(site: &Listed, now: jiff::Timestamp, wide: bool) -> Vec<String> {
    let dash = |text: &str| if text.is_empty() { "-" } else { text }.to_owned();
    let count = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let rtt = site.round_trip_ms.map(|ms| match ms {
        ms if ms < 10.0 => format!("{ms:.1}ms"),
        ms => format!("{ms:.0}ms"),
    });
    let mut cells = vec![
        site.name.clone(),
        dash(&site.region),
        dash(&site.zone),
        site.state.clone(),
        output::age(now.as_second() - site.since.as_second()),
        dash(site.version.as_deref().unwrap_or_default()),
        count(site.nodes),
        count(site.pods),
        dash(rtt.as_deref().unwrap_or_default()),
    ];
    if wide {
        cells.extend([
            site.exports.to_string(),
            site.id.clone(),
            dash(site.reason.as_deref().unwrap_or_default()),
        ]);
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_is_one_line() {
        let mut site = Listed {
            name: "shop-1".into(),
            id: "00".into(),
            region: "eu".into(),
            zone: String::new(),
            state: "Gone".into(),
            reason: None,
            since: jiff::Timestamp::UNIX_EPOCH,
            version: Some("0.1.0".into()),
            nodes: Some(1),
            pods: None,
            exports: 2,
            round_trip_ms: Some(1.25),
        };
        let now = jiff::Timestamp::from_second(90).unwrap();
        expect_test::expect!["shop-1 eu - Gone 90s 0.1.0 1 - 1.2ms 2 00 -"]
            .assert_eq(&row(&site, now, true).join(" "));
        site.round_trip_ms = Some(120.6);
        assert_eq!(row(&site, now, false)[8], "121ms");
    }

    #[test]
    fn durations_are_read() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert!(duration("-1h").is_err());
        assert!(duration("soon").is_err());
    }
}
