//! What a volume made of API objects holds: its files with their modes.

use super::{Sources, VolumeError};
use crate::env::{ConfigError, field_value, resource_value};
use crate::objects::Kind;
use k8s_openapi::api::core::v1 as core;
use std::collections::BTreeMap;
use std::path::{Component, Path};

/// Mode of files that say none.
const MODE: u32 = 0o644;

/// One file.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct File {
    pub(super) bytes: Vec<u8>,
    pub(super) mode: u32,
}

/// Files by their path inside the volume.
pub(super) type Files = BTreeMap<String, File>;

/// The files of a volume, and when its tokens are to be fetched again (Unix seconds).
pub(super) async fn payload(
    volume: &core::Volume,
    sources: &Sources<'_>,
    dir: &Path,
) -> Result<(Files, Option<i64>), VolumeError> {
    let mut files = Files::new();
    let mut refresh = None;
    if let Some(v) = &volume.config_map {
        let from = From {
            kind: Kind::ConfigMap,
            name: &v.name,
            items: v.items.as_deref(),
            optional: v.optional,
        };
        from.add(sources, mode(v.default_mode), &mut files)?;
    } else if let Some(v) = &volume.secret {
        let from = From {
            kind: Kind::Secret,
            name: v.secret_name.as_deref().unwrap_or_default(),
            items: v.items.as_deref(),
            optional: v.optional,
        };
        from.add(sources, mode(v.default_mode), &mut files)?;
    } else if let Some(v) = &volume.downward_api {
        let items = v.items.as_deref().unwrap_or_default();
        downward(items, sources, mode(v.default_mode), &mut files)?;
    } else if let Some(v) = &volume.projected {
        let default = mode(v.default_mode);
        for projection in v.sources.iter().flatten() {
            let again = project(projection, sources, dir, default, &mut files).await?;
            refresh = match (refresh, again) {
                (Some(a), Some(b)) => Some(i64::min(a, b)),
                (a, b) => a.or(b),
            };
        }
    } else {
        return Err(VolumeError::Unsupported);
    }
    Ok((files, refresh))
}

async fn project(
    projection: &core::VolumeProjection,
    sources: &Sources<'_>,
    dir: &Path,
    mode: u32,
    files: &mut Files,
) -> Result<Option<i64>, VolumeError> {
    if let Some(p) = &projection.config_map {
        let from = From {
            kind: Kind::ConfigMap,
            name: &p.name,
            items: p.items.as_deref(),
            optional: p.optional,
        };
        from.add(sources, mode, files)?;
    } else if let Some(p) = &projection.secret {
        let from = From {
            kind: Kind::Secret,
            name: &p.name,
            items: p.items.as_deref(),
            optional: p.optional,
        };
        from.add(sources, mode, files)?;
    } else if let Some(p) = &projection.downward_api {
        downward(p.items.as_deref().unwrap_or_default(), sources, mode, files)?;
    } else if let Some(p) = &projection.service_account_token {
        let pod = sources.facts.pod;
        // Cut off, a pod starts with the token that it had: better an old one than none.
        let had = std::fs::read_to_string(dir.join("..data").join(&p.path)).ok();
        let token = sources.tokens.get_or(pod, p, had).await;
        let token = token.map_err(VolumeError::Token)?;
        insert(files, &p.path, token.text.into_bytes(), mode)?;
        return Ok(Some(token.refresh_at_s));
    } else {
        return Err(VolumeError::Unsupported);
    }
    Ok(None)
}

/// A ConfigMap or Secret, all of it or some keys.
struct From<'a> {
    kind: Kind,
    name: &'a str,
    items: Option<&'a [core::KeyToPath]>,
    optional: Option<bool>,
}

impl From<'_> {
    fn add(&self, sources: &Sources<'_>, mode: u32, files: &mut Files) -> Result<(), VolumeError> {
        let optional = self.optional == Some(true);
        let Some(object) = sources.objects.get(self.kind, self.name) else {
            if optional {
                return Ok(());
            }
            return Err(VolumeError::Content(ConfigError::ObjectNotFound {
                kind: self.kind,
                name: self.name.into(),
            }));
        };
        let Some(items) = self.items.filter(|i| !i.is_empty()) else {
            for (key, value) in &object.data {
                insert(files, key, value.clone(), mode)?;
            }
            return Ok(());
        };
        for item in items {
            match object.data.get(&item.key) {
                Some(value) => {
                    insert(files, &item.path, value.clone(), own_mode(item.mode, mode))?;
                }
                None if optional => {}
                None => {
                    return Err(VolumeError::Key {
                        what: match self.kind {
                            Kind::ConfigMap => "config",
                            Kind::Secret => "secret",
                        },
                        key: item.key.clone(),
                    });
                }
            }
        }
        Ok(())
    }
}

fn downward(
    items: &[core::DownwardAPIVolumeFile],
    sources: &Sources<'_>,
    mode: u32,
    files: &mut Files,
) -> Result<(), VolumeError> {
    for item in items {
        let value = if let Some(field) = &item.field_ref {
            field_value(&field.field_path, &sources.facts)?
        } else if let Some(resource) = &item.resource_field_ref {
            resource_value(resource, None, &sources.facts)?
        } else {
            String::new()
        };
        insert(
            files,
            &item.path,
            value.into_bytes(),
            own_mode(item.mode, mode),
        )?;
    }
    Ok(())
}

fn insert(files: &mut Files, path: &str, bytes: Vec<u8>, mode: u32) -> Result<(), VolumeError> {
    let mut parts = Path::new(path).components();
    let plain = parts.clone().next().is_some()
        && parts.all(|c| matches!(c, Component::Normal(_)))
        && !path.starts_with("..");
    if !plain {
        return Err(VolumeError::Path(path.into()));
    }
    files.insert(path.into(), File { bytes, mode });
    Ok(())
}

fn mode(stated: Option<i32>) -> u32 {
    own_mode(stated, MODE)
}

fn own_mode(stated: Option<i32>, default: u32) -> u32 {
    stated
        .and_then(|m| u32::try_from(m).ok())
        .map_or(default, |m| m & 0o777)
}
