//! Git repositories: find the revision, fetch what is missing, read its files.
//!
//! A repository on this machine is read where it lies. Any other is fetched, one commit deep,
//! into a bare clone that is kept for the next time; a fetch that breaks off leaves the clone
//! as it was. All of it blocks and runs off the async threads.

use super::http::Web;
use super::ignore::{self, Rules};
use super::verify::{self, Keys};
use super::{Fetched, SourceError, secret};
use crate::controllers::Context;
use crate::kinds::{GitReference, GitRepositorySpec};
use crate::tree::Tree;
use client::ObjectKey;
use gix::ObjectId;
use gix::bstr::ByteSlice as _;
use gix::remote::Direction;
use gix::remote::fetch::{Shallow, Tags};
use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Where the revision is put in the clone.
const HEAD: &str = "refs/salp/head";
/// Packs of a clone; beyond, it is made anew.
const PACKS_MAX: usize = 40;
const SYSTEM_BRANCH: &str = "master";

/// What is to be fetched, with all that is needed for it.
#[derive(Clone)]
pub(crate) struct Request {
    url: String,
    reference: GitReference,
    secrets: BTreeMap<String, Vec<u8>>,
    keys: Option<Keys>,
    rules: Rules,
    known: Option<String>,
    clone_dir: PathBuf,
    timeout: Duration,
}

/// What a reference stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    /// Left side of a refspec: a reference or a commit.
    source: String,
    /// What stands before `@` in the revision.
    name: Option<String>,
}

/// Forgets a repository's clone.
pub(crate) fn forget(data_dir: &Path, key: &ObjectKey) {
    // There may be none.
    let _ = std::fs::remove_dir_all(clone_dir(data_dir, key));
}

fn clone_dir(data_dir: &Path, key: &ObjectKey) -> PathBuf {
    data_dir.join("git").join(&key.namespace).join(&key.name)
}

impl Request {
    /// Reads what the spec names.
    pub(crate) async fn read(
        context: &Context,
        key: &ObjectKey,
        spec: &GitRepositorySpec,
        known: Option<&str>,
        timeout: Duration,
    ) -> Result<Self, SourceError> {
        for (field, set) in [
            ("recurseSubmodules", spec.recurse_submodules),
            ("include", !spec.include.is_empty()),
            ("proxySecretRef", spec.proxy_secret_ref.is_some()),
        ] {
            if set {
                return Err(SourceError::Spec(format!(
                    "use spec.{field}: not supported by this site; leave it out"
                )));
            }
        }
        let secrets = match &spec.secret_ref {
            Some(named) => secret(&context.cluster, &key.namespace, &named.name).await?,
            None => BTreeMap::new(),
        };
        let keys = match &spec.verify {
            Some(verify) => {
                let name = &verify.secret_ref.name;
                let data = secret(&context.cluster, &key.namespace, name).await?;
                Some(Keys::new(verify.mode.as_deref(), data)?)
            }
            None => None,
        };
        Ok(Self {
            url: spec.url.clone(),
            reference: spec.reference.clone().unwrap_or_default(),
            secrets,
            keys,
            rules: Rules::new(spec.ignore.as_deref()),
            known: known.map(str::to_owned),
            clone_dir: clone_dir(&context.data_dir, key),
            timeout,
        })
    }

    /// The revision, or none when it is the known one.
    pub(crate) async fn fetch(self) -> Result<Option<Fetched>, SourceError> {
        let stop = Arc::new(AtomicBool::new(false));
        // Dropped with this future when the time is over: the fetch then breaks off.
        let _guard = StopOnDrop(stop.clone());
        let handle = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || self.blocking(&handle, &stop))
            .await
            .map_err(|_| SourceError::Interrupted)?
    }

    fn blocking(
        &self,
        handle: &tokio::runtime::Handle,
        stop: &AtomicBool,
    ) -> Result<Option<Fetched>, SourceError> {
        if let Some(path) = local_path(&self.url) {
            let repo = gix::open_opts(path, gix::open::Options::isolated()).map_err(failed)?;
            let names = references(&repo)?;
            let wanted = self.wanted(&names)?;
            let id = resolve(&repo, &wanted)?;
            return self.finish(&repo, id, &wanted);
        }
        let repo = self.open_clone()?;
        let link = Link {
            request: self,
            repo: &repo,
            handle,
            stop,
        };
        let names = if self.reference.semver.is_some() {
            link.list("refs/tags/*")?
        } else {
            Vec::new()
        };
        let wanted = self.wanted(&names)?;
        match link.fetch(&wanted, self.known_commit())? {
            None => Ok(None),
            Some(id) => self.finish(&repo, id, &wanted),
        }
    }

    fn known_commit(&self) -> Option<&str> {
        self.known
            .as_deref()?
            .rsplit_once("sha1:")
            .map(|(_, id)| id)
    }

    /// Which reference is meant.
    fn wanted(&self, names: &[String]) -> Result<Wanted, SourceError> {
        let set = |field: &Option<String>| field.clone().filter(|f| !f.is_empty());
        let reference = &self.reference;
        let branch = set(&reference.branch);
        if let Some(commit) = set(&reference.commit) {
            return Ok(Wanted {
                source: commit,
                name: branch,
            });
        }
        if let Some(name) = set(&reference.name) {
            return Ok(Wanted {
                source: name.clone(),
                name: Some(name),
            });
        }
        if let Some(range) = set(&reference.semver) {
            let tag = greatest(&range, names)?;
            return Ok(Wanted {
                source: format!("refs/tags/{tag}"),
                name: Some(tag),
            });
        }
        if let Some(tag) = set(&reference.tag) {
            return Ok(Wanted {
                source: format!("refs/tags/{tag}"),
                name: Some(tag),
            });
        }
        let branch = branch.unwrap_or_else(|| SYSTEM_BRANCH.to_owned());
        Ok(Wanted {
            source: format!("refs/heads/{branch}"),
            name: Some(branch),
        })
    }

    fn open_clone(&self) -> Result<gix::Repository, SourceError> {
        let dir = &self.clone_dir;
        let packs = std::fs::read_dir(dir.join("objects/pack")).map_or(0, Iterator::count);
        if packs > PACKS_MAX {
            let _ = std::fs::remove_dir_all(dir);
        }
        let open = || gix::open_opts(dir, gix::open::Options::isolated());
        if let Ok(repo) = open() {
            return Ok(repo);
        }
        let _ = std::fs::remove_dir_all(dir);
        std::fs::create_dir_all(dir)
            .map_err(|e| SourceError::Git(format!("make folder {}: {e}", dir.display())))?;
        gix::init_bare(dir).map_err(failed)?;
        open().map_err(failed)
    }

    /// Checks and reads a revision that is there.
    fn finish(
        &self,
        repo: &gix::Repository,
        id: ObjectId,
        wanted: &Wanted,
    ) -> Result<Option<Fetched>, SourceError> {
        let object = repo.find_object(id).map_err(failed)?;
        let commit = object.peel_to_commit().map_err(failed)?;
        let revision = match &wanted.name {
            Some(name) => format!("{name}@sha1:{}", commit.id),
            None => format!("sha1:{}", commit.id),
        };
        if self.known.as_deref() == Some(revision.as_str()) {
            return Ok(None);
        }
        let signed_by = match &self.keys {
            Some(keys) => Some(verify::check(keys, repo, id, commit.id)?),
            None => None,
        };
        let mut rules = self.rules.clone();
        let root = commit.tree().map_err(failed)?;
        if let Some(entry) = root.find_entry(ignore::FILE) {
            let blob = entry.object().map_err(failed)?;
            rules.add(&blob.data.to_str_lossy());
        }
        let mut tree = Tree::default();
        read_tree(&root, "", &rules, &mut tree)?;
        Ok(Some(Fetched {
            revision,
            tree,
            signed_by,
        }))
    }
}

struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A way to a repository elsewhere.
struct Link<'a> {
    request: &'a Request,
    repo: &'a gix::Repository,
    handle: &'a tokio::runtime::Handle,
    stop: &'a AtomicBool,
}

impl Link<'_> {
    /// Names of references there.
    fn list(&self, pattern: &str) -> Result<Vec<String>, SourceError> {
        let spec = format!("+{pattern}:refs/salp/list/*");
        let mut names = Vec::new();
        self.with(&spec, |prepared| {
            let map = prepared.ref_map();
            for reference in &map.remote_refs {
                names.push(reference.unpack().0.to_string());
            }
            Ok(None)
        })?;
        Ok(names)
    }

    /// Fetches one commit; none when it is the known one.
    fn fetch(&self, wanted: &Wanted, known: Option<&str>) -> Result<Option<ObjectId>, SourceError> {
        let spec = format!("+{}:{HEAD}", wanted.source);
        let mut unchanged = false;
        let fetched = self.with(&spec, |prepared| {
            let mappings = &prepared.ref_map().mappings;
            let Some(mapping) = mappings.first() else {
                return Err(SourceError::Git(format!(
                    "couldn't find remote ref {:?}",
                    wanted.source
                )));
            };
            let there = mapping.remote.peeled_id().map(ToOwned::to_owned);
            if known.is_some() && there.map(|id| id.to_string()).as_deref() == known {
                unchanged = true;
                return Ok(None);
            }
            Ok(mapping.remote.as_id().map(ToOwned::to_owned))
        })?;
        if unchanged {
            return Ok(None);
        }
        fetched
            .map(Some)
            .ok_or_else(|| SourceError::Git(format!("{:?} stands for nothing", wanted.source)))
    }

    /// Connects, asks `decide` with what is there, and fetches what it says.
    fn with(
        &self,
        spec: &str,
        decide: impl FnOnce(&dyn RefMapOf) -> Result<Option<ObjectId>, SourceError>,
    ) -> Result<Option<ObjectId>, SourceError> {
        let url = &self.request.url;
        let mut repo = self.repo.clone();
        let files = self.ssh(&mut repo)?;
        let remote = repo
            .remote_at(url.as_str())
            .map_err(failed)?
            .with_fetch_tags(Tags::None)
            .with_refspecs([spec], Direction::Fetch)
            .map_err(failed)?;
        let id = if url.starts_with("http://") || url.starts_with("https://") {
            let web = Web::new(
                self.handle.clone(),
                &self.request.secrets,
                self.request.timeout,
                url.starts_with("http://"),
            )
            .map_err(SourceError::Git)?;
            let parsed = gix::Url::try_from(url.as_str()).map_err(failed)?;
            let transport = gix_transport::client::blocking_io::http::Transport::new_http(
                web,
                parsed,
                gix_transport::Protocol::V2,
                false,
            );
            self.receive(remote.to_connection_with_transport(transport), decide)
        } else {
            let connection = remote.connect(Direction::Fetch).map_err(failed)?;
            self.receive(connection, decide)
        };
        drop(files);
        id
    }

    fn receive<T>(
        &self,
        connection: gix::remote::Connection<'_, '_, '_, T>,
        decide: impl FnOnce(&dyn RefMapOf) -> Result<Option<ObjectId>, SourceError>,
    ) -> Result<Option<ObjectId>, SourceError>
    where
        T: gix_transport::client::blocking_io::Transport,
    {
        // Nobody is there to be asked.
        let connection = connection.with_credentials(|_| Ok(None));
        let prepared = connection
            .prepare_fetch(
                gix::progress::Discard,
                gix::remote::ref_map::Options::default(),
            )
            .map_err(failed)?;
        let Some(id) = decide(&Prepared(prepared.ref_map()))? else {
            return Ok(None);
        };
        prepared
            .with_shallow(Shallow::DepthAtRemote(NonZeroU32::MIN))
            .receive(gix::progress::Discard, self.stop)
            .map_err(failed)?;
        Ok(Some(id))
    }

    /// Writes the key of an SSH secret down for the program `ssh`, and tells it where.
    fn ssh(&self, repo: &mut gix::Repository) -> Result<Option<tempfile::TempDir>, SourceError> {
        let url = &self.request.url;
        let is_ssh = url.starts_with("ssh://") || (!url.contains("://") && url.contains('@'));
        let Some(identity) = self.request.secrets.get("identity").filter(|_| is_ssh) else {
            return Ok(None);
        };
        let Some(hosts) = self.request.secrets.get("known_hosts") else {
            return Err(SourceError::Git(
                "the secret has an identity but no known_hosts".to_owned(),
            ));
        };
        let disk = |e: std::io::Error| SourceError::Git(format!("write ssh key: {e}"));
        let dir = tempfile::tempdir().map_err(disk)?;
        for (name, bytes) in [("identity", identity), ("known_hosts", hosts)] {
            write_private(&dir.path().join(name), bytes).map_err(disk)?;
        }
        let at = dir.path().display();
        let command = format!(
            "ssh -i {at}/identity -o IdentitiesOnly=yes -o BatchMode=yes -o StrictHostKeyChecking=yes -o UserKnownHostsFile={at}/known_hosts -o ConnectTimeout=20"
        );
        let mut config = repo.config_snapshot_mut();
        config
            .set_raw_value("core.sshCommand", command.as_str())
            .map_err(failed)?;
        config.commit().map_err(failed)?;
        Ok(Some(dir))
    }
}

/// What `decide` sees, whatever the transport.
trait RefMapOf {
    fn ref_map(&self) -> &gix::remote::fetch::RefMap;
}

struct Prepared<'a>(&'a gix::remote::fetch::RefMap);

impl RefMapOf for Prepared<'_> {
    fn ref_map(&self) -> &gix::remote::fetch::RefMap {
        self.0
    }
}

/// Writes a file that only its owner reads.
pub(super) fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    // A key without a last line break is no key to ssh.
    if !bytes.ends_with(b"\n") {
        file.write_all(b"\n")?;
    }
    Ok(())
}

/// The path of a repository on this machine.
fn local_path(url: &str) -> Option<PathBuf> {
    let path = url.strip_prefix("file://").unwrap_or(url);
    path.starts_with('/').then(|| PathBuf::from(path))
}

fn references(repo: &gix::Repository) -> Result<Vec<String>, SourceError> {
    let platform = repo.references().map_err(failed)?;
    let all = platform.all().map_err(failed)?;
    Ok(all
        .flatten()
        .map(|r| r.name().as_bstr().to_string())
        .collect())
}

fn resolve(repo: &gix::Repository, wanted: &Wanted) -> Result<ObjectId, SourceError> {
    if let Ok(id) = ObjectId::from_hex(wanted.source.as_bytes()) {
        return Ok(id);
    }
    let found = repo.find_reference(wanted.source.as_str());
    let mut found = found
        .map_err(|_| SourceError::Git(format!("couldn't find remote ref {:?}", wanted.source)))?;
    // The tag itself, when it is one: it may be signed.
    let target = found.follow_to_object().map_err(failed)?;
    Ok(target.detach())
}

/// The greatest tag in a range.
fn greatest(range: &str, names: &[String]) -> Result<String, SourceError> {
    greatest_version(
        range,
        names.iter().filter_map(|n| n.strip_prefix("refs/tags/")),
    )
    .map_err(SourceError::Spec)?
    .ok_or_else(|| SourceError::Git(format!("no match found for semver: {range}")))
}

/// The greatest version among names, in a range as Cargo or Go write it.
pub(super) fn greatest_version<'a>(
    range: &str,
    names: impl Iterator<Item = &'a str>,
) -> Result<Option<String>, String> {
    // `>=1.0.0 <2.0.0` is `>=1.0.0, <2.0.0`, and `1.x` is `1.*`.
    let text = range
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(", ")
        .replace(",,", ",")
        .replace(".x", ".*");
    // A bare version is exactly that one, not what is compatible with it.
    let text = if text.starts_with(|c: char| c.is_ascii_digit()) && !text.contains(['*', ',']) {
        format!("={text}")
    } else {
        text
    };
    let range = semver::VersionReq::parse(&text)
        .map_err(|e| format!("semver parse error: {range:?}: {e}"))?;
    Ok(names
        .filter_map(|name| {
            let version = semver::Version::parse(name.strip_prefix('v').unwrap_or(name)).ok()?;
            range.matches(&version).then_some((version, name))
        })
        .max()
        .map(|(_, name)| name.to_owned()))
}

fn read_tree(
    tree: &gix::Tree<'_>,
    dir: &str,
    rules: &Rules,
    into: &mut Tree,
) -> Result<(), SourceError> {
    for entry in tree.iter() {
        let entry = entry.map_err(failed)?;
        let name = entry.filename().to_str_lossy();
        let path = if dir.is_empty() {
            name.into_owned()
        } else {
            format!("{dir}/{name}")
        };
        let mode = entry.mode();
        if mode.is_tree() {
            let object = entry.object().map_err(failed)?;
            read_tree(&object.into_tree(), &path, rules, into)?;
        } else if mode.is_blob() && !rules.leave_out(&path) {
            // Links could lead anywhere, and submodules are elsewhere: both are left out.
            let object = entry.object().map_err(failed)?;
            into.insert(path, &object.data)?;
        }
    }
    Ok(())
}

/// An error of gix and its causes in one line.
fn failed(error: impl std::error::Error) -> SourceError {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = inner.source();
    }
    SourceError::Git(text.replace('\n', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_pick_the_greatest_version() {
        let names = [
            "v1.0.0",
            "1.2.3",
            "v1.10.0",
            "v2.0.0-rc.1",
            "nightly",
            "0.9.0",
        ];
        for (range, want) in [
            ("1.x", Some("v1.10.0")),
            (">=1.0.0 <1.5.0", Some("1.2.3")),
            (">=1.0.0, <1.5.0", Some("1.2.3")),
            ("~1.2.0", Some("1.2.3")),
            ("1.0.0", Some("v1.0.0")),
            ("*", Some("v1.10.0")),
            (">=3.0.0", None),
        ] {
            let found = greatest_version(range, names.iter().copied());
            assert_eq!(found.unwrap().as_deref(), want, "{range}");
        }
        assert!(greatest_version("one", names.iter().copied()).is_err());
    }

    #[test]
    fn paths_of_this_machine_are_told_from_urls() {
        assert_eq!(local_path("/srv/x"), Some("/srv/x".into()));
        assert_eq!(local_path("file:///srv/x"), Some("/srv/x".into()));
        assert_eq!(local_path("https://x/y"), None);
        assert_eq!(local_path("git@host:x/y"), None);
    }
}
