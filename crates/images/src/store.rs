//! The content store on disk: its folders, what is present, and images made of it.
//!
//! ```text
//! index.json          name → manifest (OCI image layout)
//! grants.json         who may use what came by credentials
//! blobs/sha256/HEX    manifests, configurations, layers, Wasm files
//! partial/HEX         what broken-off downloads left, to go on with
//! unpacked/HEX/       root directories of archive images, by manifest
//! layers/HEX/         layers of container images, to be mounted over each other (`layers`)
//! volumes/HEX/        all files of images and artifacts, to be shown to pods (`files`)
//! compiled/           the Wasm host's own, by content digest
//! ```

use crate::blobs::Blobs;
use crate::digest::Hasher;
use crate::grants::Grants;
use crate::index::{Index, private, replace};
use crate::layout::{self, Layout, SpinComponent};
use crate::manifest::{
    Descriptor, Document, ImageConfig, Manifest, ManifestError, SPIN_APPLICATION, SPIN_BUNDLE,
    SPIN_DATA, pick,
};
use crate::unpack::{self, UnpackError, UnpackLimits, Unpacker};
use crate::{
    Auth, Digest, Image, ImageKind, ImageSummary, Platform, Reference, Registry, RegistryConfig,
    StoreError, WasmForm,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Semaphore;

/// Downloads at once, of all pulls; more wait.
const DOWNLOADS_MAX: usize = 6;
/// Images whose make-up is remembered; past that the memory is cleared and built anew.
const RESOLVED_MAX: usize = 4096;
/// The time of last use is written at most this often.
const TOUCH_EVERY: Duration = Duration::from_secs(600);

/// A content store. Clones share it; several processes may use one directory.
#[derive(Clone, Debug)]
pub struct ImageStore {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) root: PathBuf,
    pub(crate) registry: Registry,
    pub(crate) blobs: Blobs,
    pub(crate) index: Index,
    pub(crate) grants: Grants,
    pub(crate) downloads: Semaphore,
    pub(crate) unpack_limits: UnpackLimits,
    /// Layers of container images are fetched and unpacked.
    pub(crate) containers: bool,
    /// Guards the locks by which one task at a time fetches or unpacks a digest.
    flights: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
    /// Guards what is known of images by digest and wanted platform.
    resolved: Mutex<HashMap<(Digest, Option<Platform>), Resolved>>,
}

#[derive(Clone, Debug)]
struct Resolved {
    image: Arc<Parts>,
    touched: Instant,
}

/// An image without the name it was asked for by.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    digest: Digest,
    manifest_digest: Digest,
    size_bytes: u64,
    annotations: BTreeMap<String, String>,
    config: ImageConfig,
    kind: ImageKind,
}

/// What is known of an image before its layers are there.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) digest: Digest,
    pub(crate) manifest_digest: Digest,
    pub(crate) manifest: Manifest,
    pub(crate) config: ImageConfig,
    pub(crate) layout: Layout,
    pub(crate) size_bytes: u64,
}

/// Why present content is no image.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    #[error("{0}")]
    Unsupported(String),
}

/// Kept beside an unpacked root directory.
#[derive(Debug, Serialize, Deserialize)]
struct UnpackedNote {
    /// The Wasm file; none in a container image that was looked into.
    wasm: Option<UnpackedWasm>,
}

#[derive(Debug, Serialize, Deserialize)]
struct UnpackedWasm {
    /// Relative to the note.
    path: PathBuf,
    digest: Digest,
    form: WasmForm,
}

impl ImageStore {
    /// Opens or makes a store with the default registry settings.
    ///
    /// # Errors
    /// When its folders can't be made.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, StoreError> {
        Self::open_with(dir, RegistryConfig::default())
    }

    /// Opens or makes a store.
    ///
    /// # Errors
    /// When its folders can't be made.
    pub fn open_with(dir: impl Into<PathBuf>, config: RegistryConfig) -> Result<Self, StoreError> {
        let root = dir.into();
        for name in [
            "blobs/sha256",
            "blobs/sha512",
            "partial",
            "unpacked",
            "layers",
            "volumes",
            "compiled",
        ] {
            let path = root.join(name);
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(StoreError::new("make", path))?;
        }
        let marker = root.join("oci-layout");
        if !marker.exists() {
            replace(&marker, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        }
        Ok(Self {
            inner: Arc::new(Inner {
                registry: Registry::new(config),
                blobs: Blobs::new(&root),
                index: Index::new(&root),
                grants: Grants::new(&root),
                downloads: Semaphore::new(DOWNLOADS_MAX),
                unpack_limits: UnpackLimits::default(),
                containers: false,
                flights: Mutex::default(),
                resolved: Mutex::default(),
                root,
            }),
        })
    }

    /// The same store, for a machine that runs containers too: layers of container images are
    /// fetched and unpacked. Takes root; call it before the store is shared.
    #[must_use]
    pub fn for_containers(mut self) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.inner) {
            inner.containers = true;
        }
        self
    }

    /// Where the Wasm host keeps compiled code, named by content digest.
    pub fn compiled_dir(&self) -> PathBuf {
        self.inner.root.join("compiled")
    }

    /// The registry client of this store.
    pub fn registry(&self) -> &Registry {
        &self.inner.registry
    }

    /// An image that is present, ready to run; `None` when a pull is needed.
    ///
    /// # Errors
    /// When the store can't be read.
    pub fn get(
        &self,
        reference: &Reference,
        platform: Option<&Platform>,
    ) -> Result<Option<Image>, StoreError> {
        let Some(top) = self.inner.index.get(reference)? else {
            return Ok(None);
        };
        match self.inner.load(&top.digest, platform) {
            Ok(found) => Ok(found.map(|parts| parts.image(reference))),
            Err(LoadError::Store(error)) => Err(error),
            // A pull will say it better.
            Err(_) => Ok(None),
        }
    }

    /// Whether a holder of these credentials may use the image as it is here, without its
    /// registry being asked. True of an image that is not here.
    ///
    /// # Errors
    /// When the store can't be read.
    pub fn permits(&self, reference: &Reference, auths: &[Auth]) -> Result<bool, StoreError> {
        match self.inner.index.get(reference)? {
            Some(top) => self.inner.grants.permits(reference, &top.digest, auths),
            None => Ok(true),
        }
    }

    /// All names with what they stand for.
    ///
    /// # Errors
    /// When the store can't be read.
    pub fn list(&self) -> Result<Vec<ImageSummary>, StoreError> {
        let names = self.inner.index.all()?;
        Ok(names
            .into_iter()
            .map(|(reference, top)| ImageSummary {
                reference,
                size_bytes: self
                    .inner
                    .closure(&top.digest)
                    .iter()
                    .filter_map(|digest| fs::metadata(self.inner.blobs.path(digest)).ok())
                    .map(|metadata| metadata.len())
                    .sum(),
                used_s: self.inner.used(&top.digest).map_or(0, |used| {
                    let since = used.duration_since(SystemTime::UNIX_EPOCH);
                    since.map_or(0, |since| since.as_secs().try_into().unwrap_or(i64::MAX))
                }),
                digest: top.digest,
            })
            .collect())
    }
}

impl Parts {
    pub(crate) fn image(&self, reference: &Reference) -> Image {
        Image {
            reference: reference.clone(),
            digest: self.digest.clone(),
            manifest_digest: self.manifest_digest.clone(),
            size_bytes: self.size_bytes,
            annotations: self.annotations.clone(),
            config: self.config.clone(),
            kind: self.kind.clone(),
        }
    }
}

impl Inner {
    /// The lock under which a digest is fetched or unpacked.
    pub(crate) fn flight(&self, digest: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut flights = self.flights.lock();
        if let Some(flight) = flights.get(digest).and_then(Weak::upgrade) {
            return flight;
        }
        flights.retain(|_, flight| flight.strong_count() > 0);
        let flight = Arc::default();
        flights.insert(digest.clone(), Arc::downgrade(&flight));
        flight
    }

    /// A lock that garbage collection waits for, or skips at. Blocking.
    pub(crate) fn lock_file(&self) -> Result<File, StoreError> {
        let path = self.root.join("store.lock");
        private().open(&path).map_err(StoreError::new("open", path))
    }

    pub(crate) fn forget(&self) {
        self.resolved.lock().clear();
    }

    /// An image of present content, ready to run; `None` when anything is missing.
    pub(crate) fn load(
        &self,
        digest: &Digest,
        platform: Option<&Platform>,
    ) -> Result<Option<Arc<Parts>>, LoadError> {
        let key = (digest.clone(), platform.cloned());
        let known = self.resolved.lock().get(&key).cloned();
        if let Some(known) = known {
            let there = match &known.image.kind {
                ImageKind::Wasm { path, .. } => path.exists(),
                ImageKind::Container { dirs, .. } => {
                    self.blobs.path(&known.image.manifest_digest).exists()
                        && dirs.iter().all(|dir| dir.exists())
                }
                ImageKind::Files { dir } => dir.exists(),
            };
            if there {
                if known.touched.elapsed() > TOUCH_EVERY {
                    self.touch(digest);
                    if let Some(known) = self.resolved.lock().get_mut(&key) {
                        known.touched = Instant::now();
                    }
                }
                return Ok(Some(known.image));
            }
        }
        let Some(plan) = self.plan(digest, platform)? else {
            return Ok(None);
        };
        let Some(kind) = self.kind(&plan)? else {
            return Ok(None);
        };
        let image = Arc::new(Parts {
            digest: plan.digest,
            manifest_digest: plan.manifest_digest,
            size_bytes: plan.size_bytes,
            annotations: plan.manifest.annotations,
            config: plan.config,
            kind,
        });
        self.touch(digest);
        let mut resolved = self.resolved.lock();
        if resolved.len() >= RESOLVED_MAX {
            resolved.clear();
        }
        let known = Resolved {
            image: Arc::clone(&image),
            touched: Instant::now(),
        };
        resolved.insert(key, known);
        Ok(Some(image))
    }

    /// Reads manifest and configuration; `None` when one of them is missing.
    pub(crate) fn plan(
        &self,
        digest: &Digest,
        platform: Option<&Platform>,
    ) -> Result<Option<Plan>, LoadError> {
        let Some(top) = self.blobs.read(digest)? else {
            return Ok(None);
        };
        let (manifest_digest, bytes) = match Document::parse(&top, None)? {
            Document::Manifest(_) => (digest.clone(), top),
            Document::Index(entries) => {
                let entry = pick(&entries, platform)?;
                let Some(bytes) = self.blobs.read(&entry.digest)? else {
                    return Ok(None);
                };
                (entry.digest.clone(), bytes)
            }
        };
        let Document::Manifest(manifest) = Document::parse(&bytes, None)? else {
            return Err(LoadError::Unsupported(
                "an index inside an index is not supported".to_owned(),
            ));
        };
        let Some(config) = self.blobs.read(&manifest.config.digest)? else {
            return Ok(None);
        };
        let config = if crate::manifest::is_image_config(&manifest.config.media_type) {
            ImageConfig::parse(&config)?
        } else {
            ImageConfig::default()
        };
        let layout = Layout::of(&manifest, &config);
        let size_bytes = manifest
            .layers
            .iter()
            .map(|layer| layer.size)
            .fold(manifest.config.size, u64::saturating_add)
            .saturating_add(bytes.len() as u64);
        Ok(Some(Plan {
            digest: digest.clone(),
            manifest_digest,
            manifest,
            config,
            layout,
            size_bytes,
        }))
    }

    /// What the image is, when all that it needs is present.
    fn kind(&self, plan: &Plan) -> Result<Option<ImageKind>, LoadError> {
        if !plan
            .layout
            .needed(self.containers)
            .iter()
            .all(|layer| self.blobs.has(layer))
        {
            return Ok(None);
        }
        match &plan.layout {
            Layout::File(layer) => self.file_kind(layer, None).map(Some),
            Layout::Archives { layers, guess } => {
                // A lone layer may be the Wasm file itself, whatever its type says.
                if let [layer] = layers.as_slice()
                    && let Ok(kind) = self.file_kind(layer, None)
                {
                    return Ok(Some(kind));
                }
                let dir = self.unpacked_dir(&plan.manifest_digest);
                let Some(note) = read_note(&dir)? else {
                    return Ok(None);
                };
                match note.wasm {
                    Some(wasm) => Ok(Some(ImageKind::Wasm {
                        digest: wasm.digest,
                        path: dir.join(wasm.path),
                        form: wasm.form,
                        rootfs: Some(dir.join("rootfs")),
                    })),
                    None if *guess => Ok(self.container(layers)),
                    None => Err(LoadError::Unsupported(
                        "image is marked as Wasm but holds no Wasm file".to_owned(),
                    )),
                }
            }
            Layout::Spin(layers) => {
                let dir = self.unpacked_dir(&plan.manifest_digest);
                if read_note(&dir)?.is_none() {
                    return Ok(None);
                }
                let module = self.spin_module(layers)?;
                self.file_kind(&module, Some(dir.join("rootfs"))).map(Some)
            }
            Layout::Container(layers) => Ok(self.container(layers)),
            Layout::Unsupported(why) => Err(LoadError::Unsupported(why.clone())),
        }
    }

    fn file_kind(
        &self,
        layer: &Descriptor,
        rootfs: Option<PathBuf>,
    ) -> Result<ImageKind, LoadError> {
        let path = self.blobs.path(&layer.digest);
        let form = layout::sniff(&path).map_err(StoreError::new("read", &path))?;
        let form = form.ok_or_else(|| {
            LoadError::Unsupported(format!(
                "layer {:?} is not a Wasm module or component",
                layout::short(&layer.media_type)
            ))
        })?;
        Ok(ImageKind::Wasm {
            digest: layer.digest.clone(),
            path,
            form,
            rootfs,
        })
    }

    /// Whether [`Inner::unpack`] has to run before [`Inner::load`] finds the image.
    pub(crate) fn wants_unpacking(&self, plan: &Plan) -> Result<bool, LoadError> {
        match plan.layout {
            Layout::Archives { .. } | Layout::Spin(_) | Layout::Container(_) => {
                Ok(self.kind(plan)?.is_none())
            }
            Layout::File(_) | Layout::Unsupported(_) => Ok(false),
        }
    }

    /// Unpacks an image's files. Blocking; call under the manifest's flight.
    pub(crate) fn unpack(&self, plan: &Plan) -> Result<(), LoadError> {
        let layers = match &plan.layout {
            Layout::Container(layers) => return self.unpack_layers(layers),
            Layout::Archives { layers, .. } => layers.as_slice(),
            _ => &[],
        };
        self.unpack_files(plan)?;
        let note = read_note(&self.unpacked_dir(&plan.manifest_digest))?;
        // It was looked into and is a container image.
        if self.containers && note.is_some_and(|note| note.wasm.is_none()) {
            self.unpack_layers(layers)?;
        }
        Ok(())
    }

    fn unpack_files(&self, plan: &Plan) -> Result<(), LoadError> {
        let dir = self.unpacked_dir(&plan.manifest_digest);
        if read_note(&dir)?.is_some() {
            return Ok(());
        }
        let parent = self.root.join("unpacked");
        let fresh = tempfile::Builder::new()
            .prefix(".new-")
            .tempdir_in(&parent)
            .map_err(StoreError::new("make", &parent))?;
        let rootfs = fresh.path().join("rootfs");
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&rootfs)
            .map_err(StoreError::new("make", &rootfs))?;
        let mut unpacker = Unpacker::new(&rootfs, self.unpack_limits);
        let mut wasm = None;
        match &plan.layout {
            Layout::Archives { layers, .. } => {
                for layer in layers {
                    unpacker.layer(&self.blobs.path(&layer.digest))?;
                }
                wasm = find_wasm(fresh.path(), &rootfs, &plan.config)?;
            }
            Layout::Spin(layers) => self.unpack_spin(layers, &mut unpacker)?,
            _ => {}
        }
        let note = serde_json::to_vec(&UnpackedNote { wasm })
            .map_err(std::io::Error::from)
            .map_err(StoreError::new("encode", &dir))?;
        replace(&fresh.path().join("image.json"), &note)?;
        // A crash must not leave the note without the files it tells of.
        sync_filesystem(&rootfs)?;
        let fresh = fresh.keep();
        fs::rename(&fresh, &dir).or_else(|error| {
            let _ = fs::remove_dir_all(&fresh);
            // Another process was first.
            if dir.join("image.json").exists() {
                Ok(())
            } else {
                Err(LoadError::Store(StoreError::new("rename", &dir)(error)))
            }
        })
    }

    fn unpack_spin(&self, layers: &[Descriptor], unpacker: &mut Unpacker) -> Result<(), LoadError> {
        for layer in layers {
            if layer.media_type == SPIN_BUNDLE {
                unpacker.layer(&self.blobs.path(&layer.digest))?;
            }
        }
        let component = self.spin_component(layers)?;
        let named = component
            .map(|component| component.files)
            .unwrap_or_default();
        let titled = layers
            .iter()
            .filter(|layer| layer.media_type == SPIN_DATA && named.is_empty())
            .filter_map(|layer| {
                let title = layer.annotations.get("org.opencontainers.image.title")?;
                Some((title.clone(), layer.digest.clone()))
            });
        for (name, digest) in titled.chain(named.clone()) {
            let path = self.blobs.path(&digest);
            // Some files travel inside the bundle.
            if let Ok(mut file) = File::open(&path) {
                unpacker.file(Path::new(&name), &mut file)?;
            }
        }
        Ok(())
    }

    fn spin_component(&self, layers: &[Descriptor]) -> Result<Option<SpinComponent>, StoreError> {
        let application = layers
            .iter()
            .find(|layer| layer.media_type == SPIN_APPLICATION);
        let Some(application) = application else {
            return Ok(None);
        };
        let bytes = self.blobs.read(&application.digest)?;
        Ok(bytes.and_then(|bytes| SpinComponent::first(&bytes)))
    }

    /// The module of the application's first component, else the first module.
    fn spin_module(&self, layers: &[Descriptor]) -> Result<Descriptor, LoadError> {
        let component = self.spin_component(layers)?;
        let wasm = || {
            layers
                .iter()
                .filter(|layer| crate::manifest::is_wasm_layer(&layer.media_type))
        };
        wasm()
            .find(|layer| {
                component
                    .as_ref()
                    .is_some_and(|component| component.module == layer.digest)
            })
            .or_else(|| wasm().next())
            .cloned()
            .ok_or_else(|| LoadError::Unsupported("Spin application without module".to_owned()))
    }

    pub(crate) fn unpacked_dir(&self, manifest: &Digest) -> PathBuf {
        self.root.join("unpacked").join(manifest.hex())
    }

    /// Notes that an image was used: garbage collection takes the longest unused first.
    pub(crate) fn touch(&self, digest: &Digest) {
        if let Ok(file) = File::options().write(true).open(self.blobs.path(digest)) {
            let _ = file.set_modified(SystemTime::now());
        }
    }

    pub(crate) fn used(&self, digest: &Digest) -> Option<SystemTime> {
        fs::metadata(self.blobs.path(digest)).ok()?.modified().ok()
    }

    /// Every digest below a manifest or index that is present, itself included.
    pub(crate) fn closure(&self, digest: &Digest) -> Vec<Digest> {
        let mut found = vec![digest.clone()];
        let Ok(Some(bytes)) = self.blobs.read(digest) else {
            return found;
        };
        match Document::parse(&bytes, None) {
            Ok(Document::Manifest(manifest)) => {
                found.push(manifest.config.digest);
                found.extend(manifest.layers.into_iter().map(|layer| layer.digest));
            }
            Ok(Document::Index(entries)) => {
                for entry in entries {
                    if entry.digest != *digest && self.blobs.path(&entry.digest).exists() {
                        found.extend(self.manifest_closure(&entry.digest));
                    }
                }
            }
            Err(_) => {}
        }
        found
    }

    /// [`Inner::closure`] of a manifest that is in an index: no deeper.
    fn manifest_closure(&self, digest: &Digest) -> Vec<Digest> {
        let mut found = vec![digest.clone()];
        if let Ok(Some(bytes)) = self.blobs.read(digest)
            && let Ok(Document::Manifest(manifest)) = Document::parse(&bytes, None)
        {
            found.push(manifest.config.digest);
            found.extend(manifest.layers.into_iter().map(|layer| layer.digest));
        }
        found
    }
}

fn read_note(dir: &Path) -> Result<Option<UnpackedNote>, StoreError> {
    let path = dir.join("image.json");
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(std::io::Error::from)
            .map_err(StoreError::new("parse", path)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::new("read", path)(error)),
    }
}

/// The Wasm file of an unpacked image: what the command names, `plugin.wasm`, or the only
/// `.wasm` file at the root.
fn find_wasm(
    dir: &Path,
    rootfs: &Path,
    config: &ImageConfig,
) -> Result<Option<UnpackedWasm>, LoadError> {
    let mut candidates: Vec<_> = layout::entry_names(config)
        .iter()
        .filter_map(|name| unpack::find(rootfs, name))
        .collect();
    let at_root: Vec<_> = fs::read_dir(rootfs)
        .map_err(StoreError::new("read", rootfs))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "wasm") && path.is_file())
        .collect();
    if let [only] = at_root.as_slice() {
        candidates.extend(unpack::find(
            rootfs,
            &only.file_name().unwrap_or_default().to_string_lossy(),
        ));
    }
    for path in candidates {
        let read = StoreError::new("read", &path);
        let hash = || -> std::io::Result<Option<UnpackedWasm>> {
            let Some(form) = layout::sniff(&path)? else {
                return Ok(None);
            };
            let mut hasher = Hasher::Sha256(Default::default());
            let mut file = File::open(&path)?;
            let mut buffer = vec![0; 256 << 10];
            loop {
                let read = file.read(&mut buffer)?;
                if read == 0 {
                    break;
                }
                hasher.update(&buffer[..read]);
            }
            let relative = path.strip_prefix(dir).unwrap_or(&path);
            Ok(Some(UnpackedWasm {
                path: relative.to_owned(),
                digest: hasher.finish(),
                form,
            }))
        };
        if let Some(found) = hash().map_err(read)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Writes a file system's dirty pages: cheaper than syncing each of many small files.
pub(crate) fn sync_filesystem(path: &Path) -> Result<(), StoreError> {
    let sync = || -> std::io::Result<()> {
        let dir = File::open(path)?;
        Ok(rustix::fs::syncfs(dir)?)
    };
    sync().map_err(StoreError::new("sync", path))
}
