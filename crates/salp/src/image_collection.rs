//! Removes images that no pod needs when the disk fills, as a kubelet does it.

use client::k8s_openapi::api::core::v1::Pod;
use images::{GcPolicy, ImageStore};
use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

/// Between two looks at the disk: the kubelet's period.
const EVERY: Duration = Duration::from_secs(300);

/// Looks at the disk now and then until dropped; `node` is the directory of this machine's.
pub async fn run(images: ImageStore, pods: client::Informer<Pod>, node: PathBuf) {
    pods.synced().await;
    loop {
        tokio::time::sleep(EVERY).await;
        let mut in_use = in_use(&pods.list());
        in_use.extend(node::images_in_use(&node));
        let policy = GcPolicy {
            in_use,
            ..GcPolicy::default()
        };
        match images.gc(policy).await {
            Ok(report) if report.still_full => {
                tracing::warn!(
                    freed_bytes = report.freed_bytes,
                    "the disk is nearly full and no image can go"
                );
            }
            Ok(report) if !report.removed.is_empty() => {
                tracing::info!(
                    images = report.removed.len(),
                    freed_bytes = report.freed_bytes,
                    "removed unused images"
                );
            }
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "collect images"),
        }
    }
}

/// Names and ids of all images that pods name or run.
fn in_use(pods: &[std::sync::Arc<Pod>]) -> HashSet<String> {
    let mut used = HashSet::new();
    for pod in pods {
        if let Some(spec) = &pod.spec {
            let init = spec.init_containers.iter().flatten();
            used.extend(init.chain(&spec.containers).filter_map(|c| c.image.clone()));
            let shown = spec.volumes.iter().flatten();
            used.extend(shown.filter_map(|v| v.image.as_ref()?.reference.clone()));
        }
        if let Some(status) = &pod.status {
            let init = status.init_container_statuses.iter().flatten();
            let all = init.chain(status.container_statuses.iter().flatten());
            used.extend(all.map(|c| c.image_id.clone()).filter(|id| !id.is_empty()));
        }
    }
    used
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pods_name_or_run_is_in_use() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "spec": {"containers": [{"name": "a", "image": "r/a:1"}],
                     "initContainers": [{"name": "i", "image": "r/i:1"}],
                     "volumes": [{"name": "v", "image": {"reference": "r/v:1"}}]},
            "status": {"containerStatuses": [{"name": "a", "image": "r/a:1", "imageID": "r/a@sha256:00",
                       "ready": true, "restartCount": 0}]},
        }))
        .unwrap();
        let mut used: Vec<_> = in_use(&[std::sync::Arc::new(pod)]).into_iter().collect();
        used.sort();
        assert_eq!(used, ["r/a:1", "r/a@sha256:00", "r/i:1", "r/v:1"]);
    }
}
