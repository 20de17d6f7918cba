//! Garbage collection: what no name and no pod needs, and, when the disk fills, the images
//! that were unused for longest (as a kubelet does it).

use crate::pull::blocking;
use crate::store::{ImageStore, Inner};
use crate::{Digest, Reference, StoreError};
use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Partial downloads nobody came back for are kept this long.
const PARTIAL_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// What may be removed and when.
#[derive(Clone, Debug)]
pub struct GcPolicy {
    /// What pods use: image ids (`repository@digest`), digests, or names.
    pub in_use: HashSet<String>,
    /// Above this share of the disk in use, images are removed.
    pub high_percent: u8,
    /// Down to this one.
    pub low_percent: u8,
    /// Images and files used more recently stay.
    pub min_age: Duration,
    /// The time that ages are counted to.
    pub now: SystemTime,
}

impl Default for GcPolicy {
    /// A kubelet's thresholds, with nothing in use.
    fn default() -> Self {
        Self {
            in_use: HashSet::new(),
            high_percent: 85,
            low_percent: 80,
            min_age: Duration::from_secs(120),
            now: SystemTime::now(),
        }
    }
}

/// What garbage collection did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Names removed.
    pub removed: Vec<Reference>,
    /// Bytes that this gave back, nearly.
    pub freed_bytes: u64,
    /// Pulls were under way, so nothing was done.
    pub skipped: bool,
    /// The disk is still fuller than `low_percent`, and no image is left to remove.
    pub still_full: bool,
}

/// What the store takes, and the file system it is on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of all files of the store.
    pub bytes: u64,
    /// Names.
    pub images: usize,
    /// Size of the file system, bytes.
    pub capacity_bytes: u64,
    /// Free for this user, bytes.
    pub available_bytes: u64,
}

impl Usage {
    /// Share of the file system in use.
    fn used_percent(&self) -> u64 {
        let used = self.capacity_bytes.saturating_sub(self.available_bytes);
        used.saturating_mul(100) / self.capacity_bytes.max(1)
    }
}

impl ImageStore {
    /// What the store takes now.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn usage(&self) -> Result<Usage, StoreError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.usage()).await
    }

    /// Forgets a name and removes what only it needed and no pod uses, by the policy's ages,
    /// however full the disk is. Whether it was there.
    ///
    /// # Errors
    /// When the store can't be read or written.
    pub async fn remove(
        &self,
        reference: &Reference,
        policy: GcPolicy,
    ) -> Result<bool, StoreError> {
        let (inner, reference) = (Arc::clone(&self.inner), reference.clone());
        blocking(move || {
            let was = inner
                .index
                .update(|names| names.remove(&reference).is_some())?;
            if was {
                // Others may use what it stood for: let ages tell.
                inner.collect(&GcPolicy {
                    high_percent: 100,
                    ..policy
                })?;
            }
            Ok(was)
        })
        .await
    }

    /// Removes what is not needed. Does nothing while pulls are under way.
    ///
    /// # Errors
    /// When the store can't be read or written.
    pub async fn gc(&self, policy: GcPolicy) -> Result<GcReport, StoreError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.collect(&policy)).await
    }
}

impl Inner {
    fn usage(&self) -> Result<Usage, StoreError> {
        let disk = rustix::fs::statvfs(&self.root)
            .map_err(|error| StoreError::new("stat", &self.root)(error.into()))?;
        Ok(Usage {
            bytes: tree_bytes(&self.root),
            images: self.index.all()?.len(),
            capacity_bytes: disk.f_blocks.saturating_mul(disk.f_frsize),
            available_bytes: disk.f_bavail.saturating_mul(disk.f_frsize),
        })
    }

    /// Blocking.
    fn collect(&self, policy: &GcPolicy) -> Result<GcReport, StoreError> {
        let lock = self.lock_file()?;
        if lock.try_lock().is_err() {
            return Ok(GcReport {
                skipped: true,
                ..GcReport::default()
            });
        }
        let mut report = GcReport {
            freed_bytes: self.sweep(policy)?,
            ..GcReport::default()
        };
        let usage = self.usage()?;
        if usage.used_percent() >= u64::from(policy.high_percent) {
            let target = usage.capacity_bytes / 100 * u64::from(policy.low_percent);
            let used = usage.capacity_bytes.saturating_sub(usage.available_bytes);
            let excess = used.saturating_sub(target);
            self.remove_oldest(policy, excess, &mut report)?;
        }
        self.grants.prune(&self.index)?;
        self.forget();
        Ok(report)
    }

    fn remove_oldest(
        &self,
        policy: &GcPolicy,
        excess: u64,
        report: &mut GcReport,
    ) -> Result<(), StoreError> {
        let mut unused: Vec<_> = self
            .index
            .all()?
            .into_iter()
            .filter(|(name, top)| !in_use(policy, name, &top.digest))
            .map(|(name, top)| (self.used(&top.digest), name))
            .filter(|(used, _)| used.is_none_or(|used| is_old(policy, used, policy.min_age)))
            .collect();
        unused.sort();
        let mut freed = 0;
        for (_, name) in unused {
            if freed >= excess {
                break;
            }
            self.index.update(|names| names.remove(&name))?;
            freed += self.sweep(policy)?;
            report.removed.push(name);
        }
        report.freed_bytes += freed;
        report.still_full = freed < excess;
        Ok(())
    }

    /// Removes files that nothing needs; the bytes they had.
    fn sweep(&self, policy: &GcPolicy) -> Result<u64, StoreError> {
        let names = self.index.all()?;
        let mut needed: HashSet<Digest> = HashSet::new();
        let mut layers: HashSet<String> = HashSet::new();
        let pods = policy.in_use.iter().filter_map(|used| {
            let digest = used
                .rsplit_once('@')
                .map_or(used.as_str(), |(_, digest)| digest);
            digest.parse().ok()
        });
        for digest in names.into_values().map(|top| top.digest).chain(pods) {
            if !needed.contains(&digest) {
                needed.extend(self.closure(&digest));
                layers.extend(self.layer_keys(&digest));
            }
        }
        let hexes: HashSet<&str> = needed.iter().map(Digest::hex).collect();
        let mut freed = 0;
        for (dir, age) in [
            ("blobs/sha256", policy.min_age),
            ("blobs/sha512", policy.min_age),
            ("unpacked", policy.min_age),
            ("layers", policy.min_age),
            ("volumes", policy.min_age),
            ("partial", PARTIAL_AGE_MAX),
        ] {
            let dir = self.root.join(dir);
            let entries = fs::read_dir(&dir).map_err(StoreError::new("read", &dir))?;
            for entry in entries.flatten() {
                let name = entry.file_name();
                let path = entry.path();
                let kept = name
                    .to_str()
                    .is_some_and(|name| hexes.contains(name) || layers.contains(name));
                let modified = entry.metadata().and_then(|metadata| metadata.modified());
                let old = modified.is_ok_and(|modified| is_old(policy, modified, age));
                // A partial file is of no blob that is present, needed or not.
                if (kept && !path.starts_with(self.root.join("partial"))) || !old {
                    continue;
                }
                freed += tree_bytes(&path);
                let removed = if path.is_dir() {
                    fs::remove_dir_all(&path)
                } else {
                    fs::remove_file(&path)
                };
                removed.map_err(StoreError::new("remove", &path))?;
            }
        }
        Ok(freed)
    }
}

fn in_use(policy: &GcPolicy, name: &Reference, digest: &Digest) -> bool {
    let id = format!("{}@{digest}", name.name());
    [digest.as_str(), &id, &name.to_string()]
        .iter()
        .any(|key| policy.in_use.contains(*key))
}

fn is_old(policy: &GcPolicy, time: SystemTime, age: Duration) -> bool {
    policy
        .now
        .duration_since(time)
        .is_ok_and(|since| since >= age)
}

/// Bytes of a file, or of all files below a folder.
fn tree_bytes(path: &Path) -> u64 {
    let Ok(metadata) = path.symlink_metadata() else {
        return 0;
    };
    if !metadata.is_dir() {
        return metadata.len();
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| tree_bytes(&entry.path())).sum()
}
