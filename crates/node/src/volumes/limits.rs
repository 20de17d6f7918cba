//! `emptyDir.sizeLimit`: looks at times how much is in there and ends pods that are past it.

use super::{pod_dir, volume_dir};
use crate::agent::Agent;
use crate::state::{Ended, Sandbox};
use apimachinery::quantity::Quantity;
use k8s_openapi::api::core::v1 as core;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Between looks, as upstream.
const LOOK: Duration = Duration::from_secs(10);

/// Files of one volume that are counted; a volume with more is taken to be as large as those.
const FILES_MAX: usize = 1_000_000;

/// A volume with a limit.
struct Limited {
    dir: PathBuf,
    name: String,
    /// As the pod says it.
    limit: String,
    limit_bytes: u64,
}

/// Never returns.
pub(crate) async fn watch_limits(agent: Arc<Agent>) {
    loop {
        tokio::time::sleep(LOOK).await;
        for slot in agent.slots() {
            let limited = {
                let record = slot.lock();
                let runs = record.actual.sandbox == Sandbox::Up && record.actual.ended.is_none();
                let dir = pod_dir(&agent.fixed.dir, &slot.uid.0);
                if runs {
                    limited(&record.desired.pod, &dir)
                } else {
                    Vec::new()
                }
            };
            if limited.is_empty() {
                continue;
            }
            let look = move || limited.into_iter().find(|v| used(&v.dir) > v.limit_bytes);
            let Ok(Some(over)) = tokio::task::spawn_blocking(look).await else {
                continue;
            };
            let message = format!(
                "Usage of EmptyDir volume {:?} exceeds the limit {:?}. ",
                over.name, over.limit
            );
            let mut record = slot.lock();
            if record.actual.ended.is_some() || record.actual.gone {
                continue;
            }
            agent
                .events
                .warning(&*record.desired.pod, "Evicted", &message);
            record.actual.ended = Some(Ended {
                reason: "Evicted".into(),
                message,
            });
            drop(record);
            agent.queue.add(slot.uid.clone());
        }
    }
}

fn limited(pod: &core::Pod, pod_dir: &Path) -> Vec<Limited> {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes
        .filter_map(|volume| {
            let limit = volume.empty_dir.as_ref()?.size_limit.as_ref()?;
            let limit_bytes = u64::try_from(limit.0.parse::<Quantity>().ok()?.value()).ok()?;
            // None means no limit, upstream too.
            (limit_bytes > 0).then_some(())?;
            Some(Limited {
                dir: volume_dir(pod_dir, volume)?,
                name: volume.name.clone(),
                limit: limit.0.clone(),
                limit_bytes,
            })
        })
        .collect()
}

/// Bytes on disk under a directory. What can't be read counts nothing.
fn used(dir: &Path) -> u64 {
    let (mut bytes, mut count) = (0, 0);
    let mut todo = vec![dir.to_path_buf()];
    while let Some(at) = todo.pop() {
        for entry in std::fs::read_dir(at).into_iter().flatten().flatten() {
            count += 1;
            if count > FILES_MAX {
                return bytes;
            }
            let Ok(meta) = entry.metadata() else {
                continue;
            };
            // Of a sparse file what it takes.
            bytes += meta.blocks() * 512;
            if meta.is_dir() {
                todo.push(entry.path());
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_limited_and_used() {
        let dir = tempfile::tempdir().unwrap();
        let pod: core::Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {
        "containers": [], "volumes": [
            {"name": "free", "emptyDir": {}},
            {"name": "none", "emptyDir": {"sizeLimit": "0"}},
            {"name": "small", "emptyDir": {"sizeLimit": "1Mi"}},
        ]}}))
        .unwrap();
        let found = limited(&pod, dir.path());
        assert_eq!(found.len(), 1);
        let small = &found[0];
        assert_eq!((small.limit_bytes, &*small.limit), (1 << 20, "1Mi"));
        assert_eq!(used(&small.dir), 0);
        std::fs::create_dir_all(small.dir.join("deep")).unwrap();
        std::fs::write(small.dir.join("deep/file"), vec![1; 2 << 20]).unwrap();
        assert!(used(&small.dir) > small.limit_bytes);
    }
}
