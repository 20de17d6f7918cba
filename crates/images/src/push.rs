//! Publishing a Wasm file as a CNCF Wasm artifact: one `application/wasm` layer and a
//! configuration that tells module from component and what it imports and exports.

use crate::auth::Auth;
use crate::manifest::{Descriptor, OCI_MANIFEST, WASM_CONFIG, WASM_LAYER};
use crate::pull::blocking;
use crate::registry::{Content, Moved, RegistryError};
use crate::{
    Digest, ImageStore, Progress, PushError, Reference, Registry, Step, StoreError, WasmForm,
};
use bytes::Bytes;
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use wasmparser::{Encoding, Parser, Payload};

/// How to push.
#[derive(Clone, Default)]
pub struct PushOptions {
    /// Credentials to try before the machine's own.
    pub auths: Vec<Auth>,
    /// Told how it goes on.
    pub progress: Option<Arc<dyn Progress>>,
    /// A repository of the same registry that may have the file already.
    pub mount_from: Option<String>,
    /// The manifest's annotations.
    pub annotations: BTreeMap<String, String>,
}

impl fmt::Debug for PushOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PushOptions")
            .field("mount_from", &self.mount_from)
            .field("annotations", &self.annotations)
            .finish_non_exhaustive()
    }
}

/// What was published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The manifest's digest.
    pub digest: Digest,
    /// The Wasm file's digest.
    pub wasm_digest: Digest,
    /// The Wasm file's length, bytes.
    pub size_bytes: u64,
    /// Module or component.
    pub form: WasmForm,
}

impl ImageStore {
    /// [`Registry::push_wasm`] with this store's registry settings.
    ///
    /// # Errors
    /// [`PushError`].
    pub async fn push_wasm(
        &self,
        path: &Path,
        reference: &Reference,
        options: PushOptions,
    ) -> Result<Pushed, PushError> {
        self.registry().push_wasm(path, reference, options).await
    }

    /// Puts a Wasm file into this store under a tag, as if it had been pushed and pulled:
    /// for machines without a registry.
    ///
    /// # Errors
    /// [`PushError`]; the name is set last.
    pub async fn load_wasm(&self, path: &Path, reference: &Reference) -> Result<Pushed, PushError> {
        if reference.tag().is_none() || reference.digest().is_some() {
            return Err(PushError::NotATag(reference.clone()));
        }
        let (inner, file, reference) =
            (Arc::clone(&self.inner), path.to_owned(), reference.clone());
        blocking(move || {
            let wasm = Described::read(file)?;
            let (config, manifest) = wasm.documents(&BTreeMap::new());
            let digest = Digest::sha256(&manifest);
            let keep = || -> Result<(), StoreError> {
                inner.blobs.write(&wasm.digest, &wasm.bytes)?;
                inner.blobs.write(&Digest::sha256(&config), &config)?;
                inner.blobs.write(&digest, &manifest)?;
                let top = Descriptor {
                    media_type: OCI_MANIFEST.to_owned(),
                    digest: digest.clone(),
                    size: manifest.len() as u64,
                    platform: None,
                    annotations: BTreeMap::new(),
                };
                inner.index.update(|names| {
                    names.insert(reference.clone(), top);
                })
            };
            keep().map_err(|source| PushError::Keep {
                reference: reference.clone(),
                source: Box::new(source),
            })?;
            Ok(Pushed {
                digest,
                size_bytes: wasm.bytes.len() as u64,
                wasm_digest: wasm.digest,
                form: wasm.form,
            })
        })
        .await
    }
}

impl Registry {
    /// Publishes a Wasm file under a tag. What the registry has already is not sent again;
    /// the same file gives the same manifest.
    ///
    /// # Errors
    /// [`PushError`]; the tag is set last, so it never names half an image.
    pub async fn push_wasm(
        &self,
        path: &Path,
        reference: &Reference,
        options: PushOptions,
    ) -> Result<Pushed, PushError> {
        let tag = match (reference.tag(), reference.digest()) {
            (Some(tag), None) => tag,
            _ => return Err(PushError::NotATag(reference.clone())),
        };
        let file = path.to_owned();
        let wasm = blocking(move || Described::read(file)).await?;
        let layer = wasm.bytes.clone();
        let size_bytes = layer.len() as u64;
        let (config, manifest) = wasm.documents(&options.annotations);
        let digest = Digest::sha256(&manifest);
        if let Some(progress) = &options.progress {
            progress.step(Step::Resolved {
                digest: &digest,
                total_bytes: size_bytes,
            });
        }
        let moved = report_sent(options.progress.clone(), wasm.digest.clone(), size_bytes);
        let send = async {
            let endpoint = self.upstream(reference)?;
            let session = self
                .connect(endpoint, reference, &options.auths, "pull,push")
                .await?;
            let quiet: Moved = Arc::new(|_| {});
            let mount_from = options.mount_from.as_deref();
            let config_digest = Digest::sha256(&config);
            for (digest, bytes, moved) in [
                (&wasm.digest, layer, &moved),
                (&config_digest, config, &quiet),
            ] {
                let size = bytes.len() as u64;
                if session.has_blob(digest).await? {
                    moved(size);
                } else {
                    session
                        .upload_blob(digest, size, Content(bytes), mount_from, moved)
                        .await?;
                }
            }
            session.put_manifest(tag, OCI_MANIFEST, manifest).await
        };
        send.await.map_err(|error| match error {
            RegistryError::Unauthorized { detail } => PushError::Unauthorized {
                reference: reference.clone(),
                detail,
            },
            source => PushError::Registry {
                reference: reference.clone(),
                source: Box::new(source),
            },
        })?;
        if let Some(progress) = &options.progress {
            progress.step(Step::Done);
        }
        Ok(Pushed {
            digest,
            wasm_digest: wasm.digest,
            size_bytes,
            form: wasm.form,
        })
    }
}

/// Sums what was sent into steps; an attempt that is repeated does not count beyond the end.
fn report_sent(progress: Option<Arc<dyn Progress>>, digest: Digest, total: u64) -> Moved {
    let sent = AtomicU64::new(0);
    Arc::new(move |bytes| {
        let done = sent.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if let Some(progress) = &progress {
            progress.step(Step::Blob {
                digest: &digest,
                done_bytes: done.min(total),
                total_bytes: total,
            });
        }
    })
}

/// A Wasm file and what its configuration says of it.
struct Described {
    bytes: Bytes,
    digest: Digest,
    form: WasmForm,
    created: String,
    imports: Vec<String>,
    exports: Vec<String>,
}

impl Described {
    /// Blocking.
    fn read(path: PathBuf) -> Result<Self, PushError> {
        let read = |source| PushError::Read {
            path: path.clone(),
            source,
        };
        let bytes = std::fs::read(&path).map_err(read)?;
        // The file's own time and not the clock: the same file gives the same digest.
        let modified = std::fs::metadata(&path).and_then(|metadata| metadata.modified());
        let created = jiff::Timestamp::try_from(modified.map_err(read)?)
            .unwrap_or(jiff::Timestamp::UNIX_EPOCH)
            .round(jiff::Unit::Second)
            .unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        let (form, imports, exports) =
            names(&bytes).map_err(|source| PushError::NotWasm { path, source })?;
        Ok(Self {
            digest: Digest::sha256(&bytes),
            bytes: bytes.into(),
            form,
            created: created.to_string(),
            imports,
            exports,
        })
    }

    /// Configuration and manifest, encoded.
    fn documents(&self, annotations: &BTreeMap<String, String>) -> (Bytes, Bytes) {
        let component = self.form == WasmForm::Component;
        let mut config = json!({
            "created": self.created,
            "architecture": "wasm",
            "os": if component { "wasip2" } else { "wasip1" },
            "layerDigests": [self.digest],
        });
        if component {
            config["component"] = json!({
                "exports": self.exports,
                "imports": self.imports,
                "target": null,
            });
        }
        let config = Bytes::from(config.to_string());
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {
                "mediaType": WASM_CONFIG,
                "digest": Digest::sha256(&config),
                "size": config.len(),
            },
            "layers": [{
                "mediaType": WASM_LAYER,
                "digest": self.digest,
                "size": self.bytes.len(),
            }],
        });
        if !annotations.is_empty() {
            manifest["annotations"] = json!(annotations);
        }
        (config, Bytes::from(manifest.to_string()))
    }
}

type Names = (WasmForm, Vec<String>, Vec<String>);

/// Form, imports and exports of the outermost module or component. Reads the whole file's
/// sections, so a truncated one is refused.
fn names(bytes: &[u8]) -> Result<Names, Option<wasmparser::BinaryReaderError>> {
    let form = match WasmForm::sniff(bytes) {
        Some(form @ (WasmForm::Module | WasmForm::Component)) => form,
        Some(WasmForm::Text) | None => return Err(None),
    };
    let (mut imports, mut exports, mut depth) = (Vec::new(), Vec::new(), 0_u32);
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.map_err(Some)? {
            Payload::Version { encoding, .. } => {
                if depth == 0 && (encoding == Encoding::Component) != (form == WasmForm::Component)
                {
                    return Err(None);
                }
                depth += 1;
            }
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(section) if depth == 1 => {
                for import in section {
                    imports.push(import.map_err(Some)?.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(section) if depth == 1 => {
                for export in section {
                    exports.push(export.map_err(Some)?.name.name.to_owned());
                }
            }
            _ => {}
        }
    }
    Ok((form, imports, exports))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: &[u8] = include_bytes!("../../../examples/hello/hello.wasm");

    #[test]
    fn a_component_tells_its_names() {
        let (form, imports, exports) = names(HELLO).unwrap();
        assert_eq!(form, WasmForm::Component);
        assert!(
            imports
                .iter()
                .any(|name| name.starts_with("wasi:cli/environment@0.2"))
        );
        assert_eq!(exports.len(), 1, "{exports:?}");
        assert!(exports[0].starts_with("wasi:http/incoming-handler@0.2"));
    }

    #[test]
    fn truncated_and_foreign_files_are_refused() {
        assert!(matches!(names(&HELLO[..HELLO.len() / 2]), Err(Some(_))));
        for foreign in [&b""[..], b"\x7fELF", b"(module)", b"\0asm\x01"] {
            assert!(matches!(names(foreign), Err(None)), "{foreign:?}");
        }
        let empty = names(b"\0asm\x01\0\0\0").unwrap();
        assert_eq!(empty, (WasmForm::Module, vec![], vec![]));
    }
}
