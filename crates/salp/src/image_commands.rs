//! `salp image`: the content store of a site, and pushing to registries.

use crate::cli::{DataDir, Format};
use crate::config::{self, Layout};
use crate::output;
use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use images::{
    GcPolicy, ImageStore, ImageSummary, Policy, Progress, PullOptions, PushOptions, Reference,
    Registry, Step,
};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Flags of `salp image`.
#[derive(Debug, Args)]
pub struct ImageArgs {
    #[command(flatten)]
    data_dir: DataDir,
    /// Registries that are asked over plain HTTP (host:port); loopback always is.
    #[arg(
        long,
        global = true,
        env = "SALP_INSECURE_REGISTRIES",
        hide_env_values = true,
        value_delimiter = ',',
        value_name = "HOST"
    )]
    insecure_registry: Vec<String>,
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Push a Wasm file to a registry.
    #[command(after_help = "Examples:\n  salp image push hello.wasm localhost:5000/hello:1")]
    Push {
        /// The component or module.
        file: PathBuf,
        /// Where to, with a tag.
        reference: String,
    },
    /// Pull an image into the site's store.
    #[command(
        after_help = "Examples:\n  salp image pull localhost:5000/hello:1\n  salp image pull --platform wasi/wasm localhost:5000/hello:1"
    )]
    Pull {
        /// The image.
        reference: String,
        /// For which platform of an index, such as `wasi/wasm`.
        #[arg(long)]
        platform: Option<String>,
    },
    /// Put a Wasm file into the site's store under a name, without a registry.
    #[command(after_help = "Examples:\n  salp image load hello.wasm localhost:5000/hello:1")]
    Load {
        /// The component or module.
        file: PathBuf,
        /// The name that pods use, with a tag.
        reference: String,
    },
    /// List the images in the site's store.
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  salp image ls\n  salp image ls -o json"
    )]
    Ls {
        /// Output format.
        #[arg(short, long)]
        output: Option<Format>,
        /// Names only.
        #[arg(short, long)]
        quiet: bool,
    },
    /// Remove images from the site's store; what pods use of them stays as long as they do.
    #[command(
        visible_alias = "remove",
        after_help = "Examples:\n  salp image rm localhost:5000/hello:1"
    )]
    Rm {
        /// The images.
        #[arg(required = true)]
        references: Vec<String>,
    },
}

/// `salp image`.
pub fn image(args: ImageArgs) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start runtime")?;
    runtime.block_on(run(args))?;
    Ok(ExitCode::SUCCESS)
}

async fn run(args: ImageArgs) -> Result<()> {
    let registry = registry_config(&args.insecure_registry, &BTreeMap::new());
    match args.command {
        // Needs no store: a developer's machine may have no site.
        ImageCommand::Push { file, reference } => {
            let to = parse(&reference)?;
            let bar = Bar::new();
            let options = PushOptions {
                progress: Some(bar.clone()),
                ..PushOptions::default()
            };
            let pushed = Registry::new(registry)
                .push_wasm(&file, &to, options)
                .await
                .with_context(|| format!("push {} to {reference}", file.display()));
            bar.clear();
            output::line(format!("{reference}@{}", pushed?.digest));
        }
        ImageCommand::Pull {
            reference,
            platform,
        } => {
            let store = open(&args.data_dir, registry)?;
            let platform = match platform {
                Some(text) => match text.split_once('/') {
                    Some((os, architecture)) => Some(images::Platform {
                        os: os.to_owned(),
                        architecture: architecture.to_owned(),
                        variant: None,
                    }),
                    None => {
                        bail!("read --platform {text:?}: want OS/ARCHITECTURE, such as wasi/wasm")
                    }
                },
                None => None,
            };
            let bar = Bar::new();
            let options = PullOptions {
                policy: Policy::Always,
                progress: Some(bar.clone()),
                platform,
                ..PullOptions::default()
            };
            let pulled = store.pull(&parse(&reference)?, options).await;
            bar.clear();
            output::line(format!("{reference}@{}", pulled?.digest));
        }
        ImageCommand::Load { file, reference } => {
            let store = open(&args.data_dir, registry)?;
            let loaded = store
                .load_wasm(&file, &parse(&reference)?)
                .await
                .with_context(|| format!("load {}", file.display()))?;
            output::line(format!("{reference}@{}", loaded.digest));
        }
        ImageCommand::Ls { output, quiet } => {
            // Looking makes no site.
            let there = layout(&args.data_dir)?.images().exists();
            let images = if there {
                open(&args.data_dir, registry)?
                    .list()
                    .context("list images")?
            } else {
                Vec::new()
            };
            list(&images, output, quiet)?;
        }
        ImageCommand::Rm { references } => {
            let store = open(&args.data_dir, registry)?;
            let policy = GcPolicy {
                in_use: node::images_in_use(&layout(&args.data_dir)?.node()),
                ..GcPolicy::default()
            };
            for reference in references {
                if !store
                    .remove(&parse(&reference)?, policy.clone())
                    .await
                    .context("remove image")?
                {
                    bail!("remove image {reference}: not in the store; see `salp image ls`");
                }
                output::line(format!("removed {reference}"));
            }
        }
    }
    Ok(())
}

fn list(images: &[ImageSummary], format: Option<Format>, quiet: bool) -> Result<()> {
    let now = jiff::Timestamp::now().as_second();
    match (format, quiet) {
        (Some(Format::Json | Format::Yaml), _) => {
            let list: Vec<_> = images
                .iter()
                .map(|i| {
                    json!({
                        "reference": i.reference.to_string(), "digest": i.digest.to_string(),
                        "sizeBytes": i.size_bytes, "usedSeconds": i.used_s,
                    })
                })
                .collect();
            if format == Some(Format::Json) {
                output::line(serde_json::to_string_pretty(&list).context("encode list")?);
            } else {
                output::line(
                    serde_saphyr::to_string(&list)
                        .context("encode list")?
                        .trim_end(),
                );
            }
        }
        (Some(Format::Name), _) | (_, true) => {
            images
                .iter()
                .for_each(|i| output::line(i.reference.to_string()));
        }
        _ => {
            let rows: Vec<Vec<String>> = images
                .iter()
                .map(|i| {
                    let digest = i.digest.to_string();
                    let short = if format == Some(Format::Wide) {
                        digest.len()
                    } else {
                        19
                    };
                    vec![
                        i.reference.to_string(),
                        digest.chars().take(short).collect(),
                        output::bytes(i.size_bytes),
                        output::age(now - i.used_s),
                    ]
                })
                .collect();
            output::table(&["IMAGE", "DIGEST", "SIZE", "USED"], &rows);
        }
    }
    Ok(())
}

fn parse(text: &str) -> Result<Reference> {
    Reference::parse(text)
        .with_context(|| format!("read image name {text:?}: want such as localhost:5000/hello:1"))
}

/// The site of `--data-dir`, else the one whose kubeconfig `$KUBECONFIG` names, so that images
/// and pods are looked at in the same place, else the default.
fn layout(dir: &DataDir) -> Result<Layout> {
    if dir.data_dir.is_none()
        && let Some(kubeconfig) = std::env::var_os("KUBECONFIG")
        && let Some(root) = Path::new(&kubeconfig).parent()
    {
        let named = Layout::new(root);
        if named.kubeconfig() == kubeconfig && named.site_file().exists() {
            return Ok(named);
        }
    }
    Ok(Layout::new(config::data_dir(dir)?))
}

fn open(dir: &DataDir, registry: images::RegistryConfig) -> Result<ImageStore> {
    let layout = layout(dir)?;
    layout.create()?;
    ImageStore::open_with(layout.images(), registry).with_context(|| {
        format!(
            "open images in {}: choose another with --data-dir",
            layout.root.display()
        )
    })
}

/// Registry settings from flags and the configuration file.
pub fn registry_config(
    insecure: &[String],
    mirrors: &BTreeMap<String, Vec<String>>,
) -> images::RegistryConfig {
    let mut config = images::RegistryConfig {
        auth_files: images::default_auth_files(|name| std::env::var_os(name)),
        ..images::RegistryConfig::default()
    };
    for host in insecure {
        config.hosts.entry(host.clone()).or_default().scheme = Some(images::Scheme::Http);
    }
    for (host, list) in mirrors {
        config
            .hosts
            .entry(host.clone())
            .or_default()
            .mirrors
            .clone_from(list);
    }
    config
}

/// A progress bar on a terminal, nothing elsewhere.
struct Bar(indicatif::ProgressBar);

impl Bar {
    fn new() -> Arc<Self> {
        use std::io::IsTerminal as _;
        let bar = if std::io::stderr().is_terminal() {
            indicatif::ProgressBar::new(0).with_style(
                indicatif::ProgressStyle::with_template(
                    "{msg:12} {bar:40} {bytes}/{total_bytes} {bytes_per_sec}",
                )
                .unwrap_or_else(|_| indicatif::ProgressStyle::default_bar()),
            )
        } else {
            indicatif::ProgressBar::hidden()
        };
        Arc::new(Self(bar))
    }

    fn clear(&self) {
        self.0.finish_and_clear();
    }
}

impl Progress for Bar {
    fn step(&self, step: Step<'_>) {
        match step {
            Step::Resolving => self.0.set_message("resolving"),
            Step::Resolved { total_bytes, .. } => self.0.set_length(total_bytes),
            Step::Blob {
                done_bytes,
                total_bytes,
                ..
            } => {
                self.0.set_message("copying");
                self.0.set_length(total_bytes);
                self.0.set_position(done_bytes);
            }
            Step::Unpacking => self.0.set_message("unpacking"),
            Step::Done => self.0.set_message("done"),
        }
    }
}
