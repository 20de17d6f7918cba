//! `salp gitops`: what a site follows, and asking it to look, rest, go on, or to say what a
//! change would do.

use crate::api_access::{self, Access, block_on, connect};
use crate::cli::Target;
use crate::output;
use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Between looks at what was asked for.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Flags of `salp gitops`.
#[derive(Debug, Args)]
pub struct GitopsArgs {
    #[command(subcommand)]
    command: GitopsCommand,
}

#[derive(Debug, Subcommand)]
enum GitopsCommand {
    /// List what is followed and how it stands.
    #[command(after_help = "Examples:\n  salp gitops get\n  salp gitops get -A")]
    Get(GetArgs),
    /// Have it looked at now, and wait for the outcome.
    #[command(
        after_help = "Examples:\n  salp gitops reconcile kustomization shop\n  salp gitops reconcile ks shop --with-source\n  salp gitops reconcile git shop"
    )]
    Reconcile(ReconcileArgs),
    /// Stop following: what is there stays as it is.
    #[command(after_help = "Examples:\n  salp gitops suspend ks shop")]
    Suspend(OneArgs),
    /// Go on following.
    #[command(after_help = "Examples:\n  salp gitops resume ks shop")]
    Resume(OneArgs),
    /// Say what a folder would change as a Kustomization's next revision; exits 1 if anything.
    #[command(after_help = "Examples:\n  salp gitops diff shop --path ./shop")]
    Diff(DiffArgs),
}

/// What is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// A Git repository.
    #[value(name = "gitrepository", aliases = ["git", "gitrepo", "gitrepositories"])]
    GitRepository,
    /// An OCI artifact.
    #[value(name = "ocirepository", aliases = ["oci", "ocirepo", "ocirepositories"])]
    OciRepository,
    /// A folder that is applied.
    #[value(name = "kustomization", aliases = ["ks", "kustomizations"])]
    Kustomization,
}

impl Kind {
    const ALL: [Self; 3] = [
        Self::GitRepository,
        Self::OciRepository,
        Self::Kustomization,
    ];

    fn group(self) -> &'static str {
        match self {
            Self::GitRepository | Self::OciRepository => gitops::kinds::SOURCE_GROUP,
            Self::Kustomization => gitops::kinds::KUSTOMIZE_GROUP,
        }
    }

    fn plural(self) -> &'static str {
        match self {
            Self::GitRepository => "gitrepositories",
            Self::OciRepository => "ocirepositories",
            Self::Kustomization => "kustomizations",
        }
    }

    fn singular(self) -> &'static str {
        match self {
            Self::GitRepository => "gitrepository",
            Self::OciRepository => "ocirepository",
            Self::Kustomization => "kustomization",
        }
    }

    fn path(self, namespace: Option<&str>, name: Option<&str>) -> String {
        let namespace = namespace.map(|n| format!("/namespaces/{n}"));
        let name = name.map(|n| format!("/{n}"));
        format!(
            "/apis/{}/v1{}/{}{}",
            self.group(),
            namespace.unwrap_or_default(),
            self.plural(),
            name.unwrap_or_default()
        )
    }
}

#[derive(Debug, Args)]
struct Where {
    #[command(flatten)]
    target: Target,
    /// Namespace [default: the kubeconfig's].
    #[arg(short, long)]
    namespace: Option<String>,
}

impl Where {
    async fn connect(&self) -> Result<(Access, String)> {
        let access = connect(&self.target).await?;
        let namespace = self
            .namespace
            .clone()
            .unwrap_or_else(|| access.namespace.clone());
        Ok((access, namespace))
    }
}

#[derive(Debug, Args)]
struct GetArgs {
    #[command(flatten)]
    place: Where,
    /// All namespaces.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
}

#[derive(Debug, Args)]
struct OneArgs {
    #[command(flatten)]
    place: Where,
    /// What is followed.
    kind: Kind,
    /// Its name.
    name: String,
}

#[derive(Debug, Args)]
struct ReconcileArgs {
    #[command(flatten)]
    one: OneArgs,
    /// Look at a Kustomization's source first.
    #[arg(long)]
    with_source: bool,
    /// How long to wait, seconds.
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    timeout: u64,
}

#[derive(Debug, Args)]
struct DiffArgs {
    #[command(flatten)]
    place: Where,
    /// Name of the Kustomization.
    name: String,
    /// The source's root as it would be; the Kustomization's path is below it.
    #[arg(long, value_name = "DIR")]
    path: PathBuf,
}

/// `salp gitops`.
pub fn gitops(args: GitopsArgs) -> Result<ExitCode> {
    block_on(async {
        match args.command {
            GitopsCommand::Get(args) => get(args).await,
            GitopsCommand::Reconcile(args) => reconcile(args).await,
            GitopsCommand::Suspend(args) => suspend(args, true).await,
            GitopsCommand::Resume(args) => suspend(args, false).await,
            GitopsCommand::Diff(args) => diff(args).await,
        }
    })
}

async fn get(args: GetArgs) -> Result<ExitCode> {
    let (access, namespace) = args.place.connect().await?;
    let mut rows = Vec::new();
    for kind in Kind::ALL {
        let path = kind.path((!args.all_namespaces).then_some(namespace.as_str()), None);
        let list = access
            .get(&path)
            .await
            .with_context(|| format!("list {}", kind.plural()))?;
        for object in list["items"].as_array().into_iter().flatten() {
            rows.push(row(kind, object, args.all_namespaces));
        }
    }
    if rows.is_empty() {
        output::note("Nothing is followed.");
        return Ok(ExitCode::SUCCESS);
    }
    let mut head = vec!["NAME", "READY", "SUSPENDED", "REVISION", "STATUS"];
    if args.all_namespaces {
        head.insert(0, "NAMESPACE");
    }
    output::table(&head, &rows);
    Ok(ExitCode::SUCCESS)
}

fn row(kind: Kind, object: &Value, with_namespace: bool) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let status = &object["status"];
    let revision = match kind {
        Kind::Kustomization => &status["lastAppliedRevision"],
        _ => &status["artifact"]["revision"],
    };
    let ready = condition(object, "Ready");
    let suspended = object["spec"]["suspend"].as_bool().unwrap_or_default();
    let mut row = vec![
        format!("{}/{}", kind.singular(), text(&object["metadata"]["name"])),
        match ready["status"].as_str() {
            Some(status) => status.to_owned(),
            None => "Unknown".to_owned(),
        },
        if suspended { "True" } else { "False" }.to_owned(),
        short(&text(revision)),
        text(&ready["message"]).replace('\n', " "),
    ];
    if with_namespace {
        row.insert(0, text(&object["metadata"]["namespace"]));
    }
    row
}

/// A revision with as much of its id as people read.
fn short(revision: &str) -> String {
    match revision.rsplit_once(':') {
        Some((head, id)) if id.len() > 12 => format!("{head}:{}", &id[..8]),
        _ => revision.to_owned(),
    }
}

fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    object["status"]["conditions"]
        .as_array()
        .and_then(|list| list.iter().find(|c| c["type"] == kind))
        .unwrap_or(&Value::Null)
}

async fn reconcile(args: ReconcileArgs) -> Result<ExitCode> {
    let OneArgs { place, kind, name } = args.one;
    let (access, namespace) = place.connect().await?;
    let timeout = Duration::from_secs(args.timeout);
    if args.with_source {
        if kind != Kind::Kustomization {
            bail!("reconcile {name}: --with-source is for Kustomizations");
        }
        let path = kind.path(Some(&namespace), Some(&name));
        let source = access.get(&path).await?["spec"]["sourceRef"].clone();
        let of = match source["kind"].as_str() {
            Some("OCIRepository") => Kind::OciRepository,
            _ => Kind::GitRepository,
        };
        let at = source["namespace"].as_str().unwrap_or(&namespace);
        let named = source["name"].as_str().unwrap_or_default();
        ask(&access, of, at, named, timeout).await?;
    }
    ask(&access, kind, &namespace, &name, timeout).await?;
    Ok(ExitCode::SUCCESS)
}

/// Asks for a reconcile and waits until that has been heeded.
async fn ask(
    access: &Access,
    kind: Kind,
    namespace: &str,
    name: &str,
    timeout: Duration,
) -> Result<()> {
    let what = format!("{}/{name}", kind.singular());
    let path = kind.path(Some(namespace), Some(name));
    let token = jiff::Timestamp::now().to_string();
    let asked = patch(
        access,
        &path,
        &json!({"metadata": {"annotations": {gitops::kinds::REQUESTED_AT: token}}}),
    )
    .await
    .with_context(|| format!("reconcile {what}"))?;
    if asked["spec"]["suspend"] == true {
        bail!("reconcile {what}: it is suspended; go on with `salp gitops resume`");
    }
    let wait = async {
        loop {
            let object = access.get(&path).await?;
            if object["status"]["lastHandledReconcileAt"] == token.as_str() {
                return Ok::<_, anyhow::Error>(object);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    let object = tokio::time::timeout(timeout, wait)
        .await
        .with_context(|| format!("reconcile {what}: no outcome within {}s", timeout.as_secs()))??;
    let ready = condition(&object, "Ready");
    let message = ready["message"].as_str().unwrap_or_default();
    if ready["status"] != "True" {
        bail!("reconcile {what}: {message}");
    }
    output::line(format!("{what}: {message}"));
    Ok(())
}

async fn suspend(args: OneArgs, suspended: bool) -> Result<ExitCode> {
    let OneArgs { place, kind, name } = args;
    let (access, namespace) = place.connect().await?;
    let path = kind.path(Some(&namespace), Some(&name));
    let (verb, done) = if suspended {
        ("suspend", "suspended")
    } else {
        ("resume", "resumed")
    };
    patch(&access, &path, &json!({"spec": {"suspend": suspended}}))
        .await
        .with_context(|| format!("{verb} {}/{name}", kind.singular()))?;
    output::line(format!("{}/{name} {done}", kind.singular()));
    Ok(ExitCode::SUCCESS)
}

async fn diff(args: DiffArgs) -> Result<ExitCode> {
    let (access, namespace) = args.place.connect().await?;
    let dir = args.path.clone();
    let tree = gitops::directory::read_tree(&dir).map_err(anyhow::Error::msg)?;
    let actions = gitops::diff::diff(access.client.clone(), (&namespace, &args.name), &tree)
        .await
        .with_context(|| format!("diff {}", args.name))?;
    let mut changes = false;
    for action in &actions {
        if let Some(verb) = action.verb() {
            changes = true;
            output::line(format!("{} {verb}", action.id()));
        }
    }
    Ok(if changes {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

async fn patch(access: &api_access::Access, path: &str, patch: &Value) -> Result<Value> {
    let body = serde_json::to_vec(patch).context("encode patch")?;
    access
        .send("PATCH", path, "application/merge-patch+json", body)
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_how_it_stands() {
        let object = json!({"metadata": {"name": "shop", "namespace": "web"}, "spec": {"suspend": true},
            "status": {"lastAppliedRevision": "main@sha1:0123456789abcdef0123",
                "conditions": [{"type": "Ready", "status": "False", "message": "build\nfailed"}]}});
        assert_eq!(
            row(Kind::Kustomization, &object, true),
            [
                "web",
                "kustomization/shop",
                "False",
                "True",
                "main@sha1:01234567",
                "build failed"
            ]
        );
    }
}
