//! Where a site keeps its objects: in its own file or in etcd; `salp store` moves them.

use crate::config::{self, Layout};
use crate::output;
use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use std::fs::File;
use std::io::{BufReader, BufWriter, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use store::{EmbeddedStore, EtcdStore, Snapshot, Store};

/// Which store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Store")]
pub struct StoreArgs {
    /// Where objects are kept: `embedded`, or `etcd=URL[,URL…]`. Each further machine that is
    /// given the same etcd, with a data directory of its own, is one more server of the same
    /// site; give it --bind-address and another --node-name [default: embedded].
    #[arg(long, env = "SALP_STORE", hide_env_values = true, value_name = "STORE")]
    pub store: Option<String>,
    /// Certificates (PEM) that etcd is trusted by.
    #[arg(long, env = "SALP_STORE_CA", value_name = "FILE")]
    pub store_ca: Option<PathBuf>,
    /// Client certificate (PEM) for etcd.
    #[arg(
        long,
        env = "SALP_STORE_CERT",
        value_name = "FILE",
        requires = "store_key"
    )]
    pub store_cert: Option<PathBuf>,
    /// Key (PEM) of the client certificate.
    #[arg(
        long,
        env = "SALP_STORE_KEY",
        value_name = "FILE",
        requires = "store_cert"
    )]
    pub store_key: Option<PathBuf>,
    /// What all keys in etcd begin with, such as /shop-1: so that several sites may use one etcd.
    #[arg(long, env = "SALP_STORE_PREFIX", value_name = "PREFIX")]
    pub store_prefix: Option<String>,
}

/// Where objects are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreSettings {
    /// In the data directory.
    Embedded,
    /// In an etcd cluster.
    Etcd {
        endpoints: Vec<String>,
        ca: Option<PathBuf>,
        /// Certificate and key.
        identity: Option<(PathBuf, PathBuf)>,
        /// What all keys begin with; empty, or `/` and a name.
        prefix: String,
    },
}

impl StoreSettings {
    /// Whether several servers may use it at once.
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Etcd { .. })
    }
}

impl StoreArgs {
    /// Reads the flags.
    ///
    /// # Errors
    /// When they make no store.
    pub fn settings(&self) -> Result<StoreSettings> {
        let text = self.store.as_deref().unwrap_or("embedded");
        let Some(endpoints) = text.strip_prefix("etcd=") else {
            if text != "embedded" {
                bail!("use --store {text:?}: want embedded or etcd=https://HOST:2379[,…]");
            }
            if self.store_ca.is_some() || self.store_cert.is_some() || self.store_prefix.is_some() {
                bail!(
                    "use --store-ca, --store-cert and --store-prefix: they are for --store etcd=…"
                );
            }
            return Ok(StoreSettings::Embedded);
        };
        let endpoints = endpoints.split(',').filter(|e| !e.is_empty());
        Ok(StoreSettings::Etcd {
            endpoints: endpoints.map(str::to_owned).collect(),
            ca: self.store_ca.clone(),
            identity: self.store_cert.clone().zip(self.store_key.clone()),
            prefix: prefix(self.store_prefix.as_deref().unwrap_or_default())?,
        })
    }
}

/// Reads `--store-prefix`.
fn prefix(text: &str) -> Result<String> {
    let name = text.trim_matches('/');
    if text.is_empty() {
        return Ok(String::new());
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    if name.is_empty() || !name.chars().all(plain) {
        bail!("use --store-prefix {text:?}: want a name such as /shop-1");
    }
    Ok(format!("/{name}"))
}

/// Opens a store.
///
/// # Errors
/// When it can't be opened or reached.
pub async fn open(settings: &StoreSettings, layout: &Layout) -> Result<Arc<dyn Store>> {
    match settings {
        StoreSettings::Embedded => {
            let path = layout.store();
            let opened = tokio::task::spawn_blocking(move || EmbeddedStore::open(&path));
            Ok(Arc::new(opened.await.context("open store")??))
        }
        StoreSettings::Etcd {
            endpoints,
            ca,
            identity,
            prefix,
        } => {
            let read = |path: &Path| {
                std::fs::read_to_string(path)
                    .with_context(|| format!("read {} for etcd", path.display()))
            };
            let identity = identity.as_ref();
            let config = store::etcd::Config {
                endpoints: endpoints.clone(),
                ca_pem: ca.as_deref().map(read).transpose()?,
                identity: identity
                    .map(|(cert, key)| anyhow::Ok((read(cert)?, read(key)?)))
                    .transpose()?,
                prefix: prefix.clone(),
            };
            let connected = EtcdStore::connect(&config).await;
            let named = || format!("use etcd at {}", endpoints.join(", "));
            Ok(Arc::new(connected.with_context(named)?))
        }
    }
}

/// `salp store`.
#[derive(Clone, Debug, Args)]
pub struct StoreCommandArgs {
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(Clone, Debug, Subcommand)]
enum StoreCommand {
    /// Write all objects of a stopped site, or of an etcd, to a file.
    #[command(
        after_help = "Examples:\n  salp store snapshot site.zst\n  salp store snapshot site.zst --store etcd=https://10.0.0.1:2379 --store-ca ca.pem --store-cert c.pem --store-key k.pem"
    )]
    Snapshot {
        /// The file; it must not be there.
        file: PathBuf,
        #[command(flatten)]
        of: Place,
    },
    /// Put the objects of a file into an empty store.
    #[command(after_help = "Examples:\n  salp store restore site.zst --data-dir ./shop-1")]
    Restore {
        /// The file.
        file: PathBuf,
        #[command(flatten)]
        to: Place,
    },
    /// Copy all objects of a stopped site into an empty etcd, or back; then start it with the
    /// other --store.
    #[command(
        after_help = "Examples:\n  salp store migrate --to etcd=http://127.0.0.1:2379\n  salp store migrate --store etcd=http://127.0.0.1:2379 --to embedded"
    )]
    Migrate {
        /// `embedded` or `etcd=URL[,URL…]`; certificates are those of the --store flags.
        #[arg(long, value_name = "STORE")]
        to: String,
        #[command(flatten)]
        from: Place,
    },
}

#[derive(Clone, Debug, Args)]
struct Place {
    #[command(flatten)]
    data_dir: crate::cli::DataDir,
    #[command(flatten)]
    store: StoreArgs,
}

impl Place {
    async fn open(&self) -> Result<Arc<dyn Store>> {
        let layout = Layout::new(config::data_dir(&self.data_dir)?);
        open(&self.store.settings()?, &layout).await
    }
}

/// Runs `salp store`.
///
/// # Errors
/// When a store or the file can't be used.
pub fn store(args: &StoreCommandArgs) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start")?;
    runtime.block_on(run(&args.command))?;
    Ok(ExitCode::SUCCESS)
}

async fn run(command: &StoreCommand) -> Result<()> {
    match command {
        StoreCommand::Snapshot { file, of } => {
            let store = of.open().await?;
            let snapshot = Snapshot::of(&*store).await.context("read store")?;
            store.close().await.context("close store")?;
            keep(&snapshot, file)?;
            let count = snapshot.records.len();
            let at = snapshot.revision.0;
            output::line(format!(
                "{count} objects at revision {at} in {}",
                file.display()
            ));
        }
        StoreCommand::Restore { file, to } => {
            let opened = File::open(file).with_context(|| format!("read {}", file.display()))?;
            let snapshot = Snapshot::read_from(BufReader::new(opened))
                .with_context(|| format!("restore {}", file.display()))?;
            fill(&snapshot, &*to.open().await?).await?;
        }
        StoreCommand::Migrate { to, from } => {
            let mut target = from.clone();
            target.store.store = Some(to.clone());
            if to == "embedded" {
                target.store = StoreArgs::default();
            }
            let mut from = from.clone();
            if from
                .store
                .store
                .as_deref()
                .is_none_or(|store| store == "embedded")
            {
                // The other flags are for where they go.
                from.store = StoreArgs::default();
            }
            if target.store.settings()? == from.store.settings()? {
                bail!("migrate: the objects are there already");
            }
            let source = from.open().await?;
            let snapshot = Snapshot::of(&*source).await.context("read store")?;
            fill(&snapshot, &*target.open().await?).await?;
            source.close().await.context("close store")?;
        }
    }
    Ok(())
}

async fn fill(snapshot: &Snapshot, store: &dyn Store) -> Result<()> {
    let bar = if std::io::stderr().is_terminal() {
        indicatif::ProgressBar::new(snapshot.records.len() as u64)
    } else {
        indicatif::ProgressBar::hidden()
    };
    let put = snapshot
        .put_into(store, |n| bar.set_position(n as u64))
        .await;
    bar.finish_and_clear();
    match put {
        Err(store::Error::Exists(_)) => {
            bail!("fill store: it has objects already; give an empty one")
        }
        other => other.context("fill store")?,
    }
    store.close().await.context("close store")?;
    output::line(format!("{} objects", snapshot.records.len()));
    Ok(())
}

/// Writes the file whole or not at all; only its owner may read it.
fn keep(snapshot: &Snapshot, path: &Path) -> Result<()> {
    let named = || format!("write {}", path.display());
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let file = tempfile::NamedTempFile::new_in(folder).with_context(named)?;
    let mut out = BufWriter::new(&file);
    snapshot.write_to(&mut out).with_context(named)?;
    drop(out);
    file.as_file().sync_all().with_context(named)?;
    file.persist_noclobber(path).with_context(named)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_are_named() {
        let of = |text: &str| {
            let args = StoreArgs {
                store: Some(text.into()),
                ..StoreArgs::default()
            };
            args.settings().map_err(|e| e.to_string())
        };
        assert_eq!(of("embedded"), Ok(StoreSettings::Embedded));
        let StoreSettings::Etcd { endpoints, .. } = of("etcd=http://a:1,http://b:2").expect("fine")
        else {
            panic!("it is etcd");
        };
        assert_eq!(endpoints, ["http://a:1", "http://b:2"]);
        assert!(of("postgres://x").is_err_and(|e| e.contains("want embedded or etcd=")));
        let lost = StoreArgs {
            store_ca: Some("ca.pem".into()),
            ..StoreArgs::default()
        };
        assert!(lost.settings().is_err());
    }
}
