//! Pulling: from a name to an image in the store.
//!
//! [`ImageStore::pull`] asks the registry what the name stands for, fetches what is missing
//! blob by blob (each verified, each resumed where it broke off) and unpacks where needed.

use crate::auth::Auth;
use crate::blobs::{Finished, Partial};
use crate::grants::By;
use crate::manifest::{Descriptor, Document, MANIFEST_BYTES_MAX, ManifestError, pick};
use crate::registry::{RegistryError, Session};
use crate::store::{ImageStore, Inner, LoadError};
use crate::{
    Digest, Image, Platform, Progress, PullError, Reference, Step, StoreError, UnpackError,
};
use bytes::BytesMut;
use futures::{StreamExt as _, TryStreamExt as _};
use reqwest::StatusCode;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Layers of one image fetched at once.
const LAYERS_AT_ONCE: usize = 3;
/// Bytes gathered before they are written and hashed off the async threads.
const WRITE_BYTES: usize = 512 << 10;
/// An attempt that brought this much counts as progress: the count of failures begins anew.
const PROGRESS_BYTES: u64 = 64 << 10;
/// Configurations are JSON of a few kilobytes.
const CONFIG_BYTES_MAX: u64 = 8 << 20;

/// When a registry is asked (`imagePullPolicy`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Each time: a tag may have moved.
    Always,
    /// Only when the image is not here.
    #[default]
    IfNotPresent,
    /// Not at all.
    Never,
}

/// What an image is pulled for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// To be run.
    #[default]
    Run,
    /// To show its files, whatever they are.
    Files,
}

/// How to pull.
#[derive(Clone, Default)]
pub struct PullOptions {
    /// When the registry is asked.
    pub policy: Policy,
    /// Credentials to try before the machine's own.
    pub auths: Vec<Auth>,
    /// Told how it goes on.
    pub progress: Option<Arc<dyn Progress>>,
    /// Which of an index's images; WebAssembly, else this machine's, when not stated.
    pub platform: Option<Platform>,
    /// What for.
    pub wanted: Wanted,
}

impl fmt::Debug for PullOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PullOptions")
            .field("policy", &self.policy)
            .field("platform", &self.platform)
            .field("wanted", &self.wanted)
            .finish_non_exhaustive()
    }
}

impl PullOptions {
    fn step(&self, step: Step<'_>) {
        if let Some(progress) = &self.progress {
            progress.step(step);
        }
    }
}

/// Why a step of a pull failed, before it is put to the user's name of the image.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("{what} too large")]
    TooLarge {
        what: &'static str,
        bytes: u64,
        bytes_max: u64,
    },
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Load(LoadError::Store(error))
    }
}

impl ImageStore {
    /// Makes an image present and returns it. Any number of pulls may run at once: each blob
    /// is fetched by one of them. Dropping the future leaves what was fetched for the next.
    ///
    /// # Errors
    /// [`PullError`]; nothing that was present is lost by a failure.
    pub async fn pull(
        &self,
        reference: &Reference,
        options: PullOptions,
    ) -> Result<Image, PullError> {
        let fail = |failure| put(reference, failure);
        let local = |failure: StoreError| put(reference, failure.into());
        // What a digest names can't have changed.
        let unchanged = options.policy != Policy::Always || reference.digest().is_some();
        if unchanged && self.permits(reference, &options.auths).map_err(local)? {
            let present = match options.wanted {
                Wanted::Run => self.get(reference, options.platform.as_ref()),
                Wanted::Files => self.get_files(reference),
            };
            if let Some(image) = present.map_err(local)? {
                return Ok(image);
            }
        }
        if options.policy == Policy::Never {
            return Err(PullError::NeverPull {
                reference: reference.clone(),
            });
        }
        let inner = Arc::clone(&self.inner);
        let _in_use = blocking(move || -> Result<_, StoreError> {
            let file = inner.lock_file()?;
            let lock = file.lock_shared();
            lock.map_err(StoreError::new("lock", inner.root.join("store.lock")))?;
            Ok(file)
        })
        .await
        .map_err(local)?;
        options.step(Step::Resolving);
        let image = self.inner.fetch(reference, &options).await.map_err(fail)?;
        options.step(Step::Done);
        Ok(image)
    }
}

impl Inner {
    async fn fetch(
        self: &Arc<Self>,
        reference: &Reference,
        options: &PullOptions,
    ) -> Result<Image, Failure> {
        let sessions = self.sessions(reference, options).await?;
        let (top, sessions) = self.resolve(reference, options, sessions).await?;
        let by = match sessions[0].proven().await {
            Some(credential) if options.auths.iter().any(|a| a.credential == credential) => {
                By::Given(credential)
            }
            _ => By::Everybody,
        };
        // Before it can be found by its name.
        self.grant(reference, &top.digest, by).await?;
        if let Ok(Some(image)) = self.present(reference, &top.digest, options) {
            self.name(reference, top).await?;
            return Ok(image);
        }
        self.chosen_manifest(reference, &top.digest, options, &sessions)
            .await?;
        let plan = loop {
            match self.plan(&top.digest, options.platform.as_ref())? {
                Some(plan) => break plan,
                // Only the configuration can be missing now.
                None => self.configuration(&top.digest, options, &sessions).await?,
            }
        };
        let layers = match options.wanted {
            Wanted::Run => plan.layout.needed(self.containers),
            Wanted::Files => &plan.manifest.layers,
        };
        let total: u64 = layers
            .iter()
            .fold(0, |sum, layer| sum.saturating_add(layer.size));
        let bytes_max = self.registry.config().image_bytes_max;
        check_size("image", total, bytes_max)?;
        options.step(Step::Resolved {
            digest: &top.digest,
            total_bytes: total,
        });
        futures::stream::iter(layers.iter().map(Ok::<_, Failure>))
            .try_for_each_concurrent(LAYERS_AT_ONCE, |layer| self.blob(layer, options, &sessions))
            .await?;
        if options.wanted == Wanted::Files || self.wants_unpacking(&plan)? {
            options.step(Step::Unpacking);
            let flight = self.flight(&plan.manifest_digest);
            let _one = flight.lock().await;
            let (inner, wanted) = (Arc::clone(self), options.wanted);
            let unpack = move || match wanted {
                Wanted::Run => inner.unpack(&plan),
                Wanted::Files => inner.unpack_all_files(&plan),
            };
            blocking(unpack).await?;
        }
        let image = self.present(reference, &top.digest, options)?;
        let image = image.ok_or_else(|| {
            LoadError::Unsupported("content went missing while it was pulled".to_owned())
        })?;
        self.name(reference, top).await?;
        Ok(image)
    }

    /// The image as it is wanted, when all that it needs is here.
    fn present(
        &self,
        reference: &Reference,
        digest: &Digest,
        options: &PullOptions,
    ) -> Result<Option<Image>, LoadError> {
        match options.wanted {
            Wanted::Run => {
                let parts = self.load(digest, options.platform.as_ref())?;
                Ok(parts.map(|parts| parts.image(reference)))
            }
            Wanted::Files => self.files(reference, digest),
        }
    }

    async fn sessions(
        &self,
        reference: &Reference,
        options: &PullOptions,
    ) -> Result<Vec<Session>, Failure> {
        let mut sessions = Vec::new();
        for endpoint in self.registry.endpoints(reference)? {
            let session = self
                .registry
                .connect(endpoint, reference, &options.auths, "pull")
                .await?;
            sessions.push(session);
        }
        Ok(sessions)
    }

    /// What the name stands for, by the first endpoint that knows; its bytes are kept. That
    /// endpoint and those after it may be asked for the rest.
    async fn resolve(
        &self,
        reference: &Reference,
        options: &PullOptions,
        mut sessions: Vec<Session>,
    ) -> Result<(Descriptor, Vec<Session>), Failure> {
        let known = self.index.get(reference)?;
        let mut failure = None;
        while !sessions.is_empty() {
            match self
                .resolve_at(&sessions[0], reference, options, known.as_ref())
                .await
            {
                Ok(top) => return Ok((top, sessions)),
                Err(error @ Failure::Load(_)) => return Err(error),
                Err(error) => {
                    tracing::debug!(host = sessions[0].host(), %error, "endpoint can't serve it");
                    // What the registry itself says (the last) is what counts.
                    failure = Some(error);
                }
            }
            sessions.remove(0);
        }
        Err(failure.unwrap_or_else(|| {
            RegistryError::NotFound {
                what: reference.to_string(),
            }
            .into()
        }))
    }

    async fn resolve_at(
        &self,
        session: &Session,
        reference: &Reference,
        options: &PullOptions,
        known: Option<&Descriptor>,
    ) -> Result<Descriptor, Failure> {
        // A tag that has not moved costs one HEAD. Not all registries answer it.
        if let Some(known) = known
            && let Ok(Some(digest)) = session.head_manifest(reference).await
            && digest == known.digest
            && matches!(self.present(reference, &digest, options), Ok(Some(_)))
        {
            return Ok(known.clone());
        }
        let answer = session.manifest(reference).await?;
        Document::parse(&answer.bytes, answer.content_type.as_deref()).map_err(LoadError::from)?;
        self.blobs.write(&answer.digest, &answer.bytes)?;
        Ok(Descriptor {
            media_type: answer.content_type.unwrap_or_default(),
            digest: answer.digest,
            size: answer.bytes.len() as u64,
            platform: None,
            annotations: BTreeMap::new(),
        })
    }

    /// Fetches the manifest that an index has for this machine.
    async fn chosen_manifest(
        &self,
        reference: &Reference,
        top: &Digest,
        options: &PullOptions,
        sessions: &[Session],
    ) -> Result<(), Failure> {
        let Some(bytes) = self.blobs.read(top)? else {
            return Ok(());
        };
        let Document::Index(entries) = Document::parse(&bytes, None).map_err(LoadError::from)?
        else {
            return Ok(());
        };
        let entry = pick(&entries, options.platform.as_ref()).map_err(LoadError::from)?;
        if self.blobs.has(entry) {
            return Ok(());
        }
        check_size("manifest", entry.size, MANIFEST_BYTES_MAX)?;
        let at = reference.at(entry.digest.clone());
        let mut last = None;
        for session in sessions {
            match session.manifest(&at).await {
                Ok(answer) => return Ok(self.blobs.write(&answer.digest, &answer.bytes)?),
                Err(error) => last = Some(error),
            }
        }
        Err(last.map_or_else(|| missing(&entry.digest), Failure::from))
    }

    async fn configuration(
        self: &Arc<Self>,
        top: &Digest,
        options: &PullOptions,
        sessions: &[Session],
    ) -> Result<(), Failure> {
        let Some(manifest) = self.chosen(top, options)? else {
            return Err(missing(top));
        };
        check_size("configuration", manifest.size, CONFIG_BYTES_MAX)?;
        self.blob(&manifest, options, sessions).await
    }

    /// The configuration's descriptor in the manifest that is run.
    fn chosen(&self, top: &Digest, options: &PullOptions) -> Result<Option<Descriptor>, Failure> {
        let Some(bytes) = self.blobs.read(top)? else {
            return Ok(None);
        };
        let bytes = match Document::parse(&bytes, None).map_err(LoadError::from)? {
            Document::Manifest(manifest) => return Ok(Some(manifest.config)),
            Document::Index(entries) => {
                let entry = pick(&entries, options.platform.as_ref()).map_err(LoadError::from)?;
                self.blobs.read(&entry.digest)?
            }
        };
        let Some(bytes) = bytes else { return Ok(None) };
        match Document::parse(&bytes, None).map_err(LoadError::from)? {
            Document::Manifest(manifest) => Ok(Some(manifest.config)),
            Document::Index(_) => Err(LoadError::Unsupported(
                "an index inside an index is not supported".to_owned(),
            )
            .into()),
        }
    }

    /// Makes one blob present.
    async fn blob(
        self: &Arc<Self>,
        blob: &Descriptor,
        options: &PullOptions,
        sessions: &[Session],
    ) -> Result<(), Failure> {
        let bytes_max = self.registry.config().layer_bytes_max;
        check_size("layer", blob.size, bytes_max)?;
        let flight = self.flight(&blob.digest);
        let _one = flight.lock().await;
        if self.blobs.has(blob) {
            options.step(Step::Blob {
                digest: &blob.digest,
                done_bytes: blob.size,
                total_bytes: blob.size,
            });
            return Ok(());
        }
        let _slot = self.downloads.acquire().await;
        let mut last = None;
        for session in sessions {
            match self.download(session, blob, options).await {
                Ok(()) => return Ok(()),
                // The disk is the same for every endpoint.
                Err(Failure::Load(error)) => return Err(error.into()),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| missing(&blob.digest)))
    }

    async fn download(
        self: &Arc<Self>,
        session: &Session,
        blob: &Descriptor,
        options: &PullOptions,
    ) -> Result<(), Failure> {
        let (inner, wanted) = (Arc::clone(self), blob.clone());
        let partial = blocking(move || inner.blobs.partial(&wanted)).await?;
        let Some(mut partial) = partial else {
            return Ok(());
        };
        let mut failures = 0;
        loop {
            let before = partial.len();
            let attempt;
            (partial, attempt) = self.attempt(session, blob, partial, options).await?;
            match attempt {
                Ok(()) => {
                    let wanted = blob.digest.clone();
                    let finished;
                    (partial, finished) = blocking(move || {
                        let finished = partial.finish(&wanted);
                        (partial, finished)
                    })
                    .await;
                    match finished? {
                        Finished::Kept => return Ok(()),
                        Finished::Again => {}
                        Finished::Mismatch => {
                            return Err(RegistryError::Digest {
                                host: session.host().to_owned(),
                                wanted: blob.digest.clone(),
                            }
                            .into());
                        }
                    }
                }
                Err(error) if error.is_transient() => {
                    if partial.len() >= before + PROGRESS_BYTES {
                        failures = 0;
                    }
                    failures += 1;
                    let config = session.config();
                    if failures >= config.attempts_max {
                        return Err(error.into());
                    }
                    tracing::debug!(%error, failures, at = partial.len(), "download broke off");
                    let asked = match &error {
                        RegistryError::Status { retry_after, .. } => *retry_after,
                        _ => None,
                    };
                    tokio::time::sleep(config.delay(failures, asked)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Fetches from where the partial file ends to the blob's end. The outer error is the
    /// disk's.
    async fn attempt(
        &self,
        session: &Session,
        blob: &Descriptor,
        mut partial: Partial,
        options: &PullOptions,
    ) -> Result<(Partial, Result<(), RegistryError>), Failure> {
        if partial.len() == blob.size {
            return Ok((partial, Ok(())));
        }
        let answer = match session.open_blob(&blob.digest, partial.len()).await {
            Ok(answer) => answer,
            Err(RegistryError::Status { status, .. })
                if status == StatusCode::RANGE_NOT_SATISFIABLE && partial.len() > 0 =>
            {
                partial.truncate()?;
                match session.open_blob(&blob.digest, 0).await {
                    Ok(answer) => answer,
                    Err(error) => return Ok((partial, Err(error))),
                }
            }
            Err(error) => return Ok((partial, Err(error))),
        };
        if answer.offset == 0 && partial.len() > 0 {
            // The registry has no ranges.
            partial.truncate()?;
        } else if answer.offset != partial.len() {
            return Ok((
                partial,
                Err(session.protocol("another range than asked for")),
            ));
        }
        let mut content = answer.response.bytes_stream();
        let mut pending = BytesMut::with_capacity(WRITE_BYTES);
        loop {
            let chunk = content.next().await;
            let end = match chunk {
                Some(Ok(chunk)) => {
                    pending.extend_from_slice(&chunk);
                    None
                }
                Some(Err(error)) => Some(Err(session.request(error))),
                None => Some(Ok(())),
            };
            let got = partial.len() + pending.len() as u64;
            if got > blob.size {
                let error = RegistryError::TooLong {
                    host: session.host().to_owned(),
                    bytes_max: blob.size,
                };
                return Ok((partial, Err(error)));
            }
            if pending.len() >= WRITE_BYTES || end.is_some() {
                let bytes = pending.split().freeze();
                partial = blocking(move || partial.write(&bytes).map(|()| partial)).await?;
                options.step(Step::Blob {
                    digest: &blob.digest,
                    done_bytes: got,
                    total_bytes: blob.size,
                });
            }
            match end {
                None => {}
                Some(Ok(())) if got < blob.size => {
                    let error = RegistryError::Truncated {
                        host: session.host().to_owned(),
                        got,
                        want: blob.size,
                    };
                    return Ok((partial, Err(error)));
                }
                Some(result) => return Ok((partial, result)),
            }
        }
    }

    /// Gives the name to the content. What it stood for before stays under its digest until
    /// garbage collection finds it unused: pods may still run it.
    async fn grant(
        self: &Arc<Self>,
        reference: &Reference,
        digest: &Digest,
        by: By,
    ) -> Result<(), Failure> {
        let (inner, reference, digest) = (Arc::clone(self), reference.clone(), digest.clone());
        blocking(move || inner.grants.note(&reference, &digest, &by, &inner.index)).await?;
        Ok(())
    }

    async fn name(self: &Arc<Self>, reference: &Reference, top: Descriptor) -> Result<(), Failure> {
        if self
            .index
            .get(reference)?
            .is_some_and(|old| old.digest == top.digest)
        {
            return Ok(());
        }
        let (inner, reference) = (Arc::clone(self), reference.clone());
        blocking(move || {
            inner.index.update(|names| {
                let old = names.insert(reference.clone(), top);
                if let Some(old) = old {
                    names.entry(reference.at(old.digest.clone())).or_insert(old);
                }
            })
        })
        .await?;
        Ok(())
    }
}

fn check_size(what: &'static str, bytes: u64, bytes_max: u64) -> Result<(), Failure> {
    if bytes > bytes_max {
        return Err(Failure::TooLarge {
            what,
            bytes,
            bytes_max,
        });
    }
    Ok(())
}

fn missing(digest: &Digest) -> Failure {
    RegistryError::NotFound {
        what: digest.to_string(),
    }
    .into()
}

/// Runs file work off the async threads; a panic there goes on here.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(out) => out,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The async runtime is being shut down and drops this future next.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Puts a failure to the user's name of the image.
fn put(reference: &Reference, failure: Failure) -> PullError {
    let reference = reference.clone();
    match failure {
        Failure::TooLarge {
            what,
            bytes,
            bytes_max,
        } => PullError::TooLarge {
            reference,
            what,
            bytes,
            bytes_max,
        },
        Failure::Registry(source) => match source {
            RegistryError::NotFound { .. } => PullError::NotFound { reference },
            RegistryError::Unauthorized { detail } => PullError::Unauthorized { reference, detail },
            RegistryError::Digest { wanted, .. } => PullError::DigestMismatch { reference, wanted },
            source if source.is_network() => PullError::Network { reference, source },
            source => PullError::Registry { reference, source },
        },
        Failure::Load(LoadError::Store(source)) => PullError::Disk { reference, source },
        Failure::Load(LoadError::Unpack(UnpackError::Write { path, source })) => PullError::Disk {
            reference,
            source: StoreError::new("write", path)(source),
        },
        Failure::Load(LoadError::Unpack(source)) => PullError::Unpack { reference, source },
        Failure::Load(LoadError::Manifest(source @ ManifestError::NoPlatform(_))) => {
            PullError::NoPlatform { reference, source }
        }
        Failure::Load(LoadError::Manifest(source)) => PullError::UnsupportedArtifact {
            reference,
            detail: source.to_string(),
        },
        Failure::Load(LoadError::Unsupported(detail)) => {
            PullError::UnsupportedArtifact { reference, detail }
        }
    }
}
