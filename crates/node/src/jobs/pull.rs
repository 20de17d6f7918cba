//! Pulling a container's image, by its policy.

use crate::agent::{Agent, Record, Slot};
use crate::backoff::MAX_MS;
use crate::image::{self, Obtained, PulledImage};
use crate::objects::{Kind, PodObjects};
use crate::pod::{PullPolicy, Role};
use crate::state::Image;
use client::EventType;
use k8s_openapi::api::core::v1 as core;
use std::sync::Arc;
use std::time::Duration;

impl Agent {
    /// Finds or pulls a container's image.
    pub(crate) async fn pull(self: &Arc<Self>, slot: &Arc<Slot>, index: usize) {
        let (wanted, pod, mut secrets, known) = {
            let record = slot.lock();
            (
                record.desired.containers[index].clone(),
                record.desired.pod.clone(),
                pull_secrets(&record.desired.pod, &record.objects),
                record.actual.containers[index].image_id.clone(),
            )
        };
        let names_secrets = pod
            .spec
            .as_ref()
            .is_some_and(|s| s.image_pull_secrets.as_ref().is_some_and(|l| !l.is_empty()));
        if names_secrets
            && secrets.is_empty()
            && let Ok(objects) = self.objects.for_pod(&slot.uid, &pod).await
        {
            secrets = pull_secrets(&pod, &objects);
        }
        let began = tokio::time::Instant::now();
        let mut turn_at = began;
        let work = async {
            // What is here needs no turn.
            let local = wanted.pull != PullPolicy::Always;
            if local
                && let Ok(Some(found)) = self.images.local(&wanted.image).await
                && let Ok(true) = self.images.permits(&wanted.image, &secrets).await
            {
                return Ok(Obtained::Present(found));
            }
            let _turn = self.pulls.acquire().await;
            turn_at = tokio::time::Instant::now();
            image::obtain(&*self.images, &wanted.image, wanted.pull, &secrets, || {
                let record = slot.lock();
                let words = format!("Pulling image {:?}", &*wanted.image);
                self.container_event(&record, index, EventType::Normal, "Pulling", &words);
            })
            .await
        };
        let Some(mut result) = slot.ending.run_until_cancelled(work).await else {
            slot.lock().actual.containers[index].image = Image::Unknown;
            return;
        };
        // Cut off, a pod that ran this image here before may run it again.
        if let Err(failure) = &result
            && failure.unreachable
            && known.is_some()
            && let Ok(Some(found)) = self.images.local(&wanted.image).await
        {
            result = Ok(Obtained::Present(found));
        }
        let mut record = slot.lock();
        match result {
            Ok(obtained) => {
                let (image, words) = match obtained {
                    Obtained::Present(image) => {
                        let words = format!(
                            "Container image {:?} already present on machine",
                            &*wanted.image
                        );
                        (image, words)
                    }
                    Obtained::Pulled(image) => {
                        let words = pulled_words(&wanted.image, turn_at, began, image.size_bytes);
                        (image, words)
                    }
                };
                self.container_event(&record, index, EventType::Normal, "Pulled", &words);
                self.pulled(&mut record, index, image);
            }
            Err(failure) => {
                let words = format!(
                    "Failed to pull image {:?}: {}",
                    &*wanted.image, failure.message
                );
                let reason = failure.reason;
                let warn = |words: &str| {
                    self.container_event(&record, index, EventType::Warning, "Failed", words);
                };
                if reason == "ErrImagePull" {
                    warn(&words);
                } else {
                    warn(&failure.message);
                }
                warn(&format!("Error: {reason}"));
                let now = self.now();
                record.sides[index].pull_failed_at = now;
                let container = &mut record.actual.containers[index];
                let delay = container.pulls.grow(now);
                let retry_at = if reason == "InvalidImageName" {
                    now + MAX_MS
                } else {
                    now + delay
                };
                container.image = Image::Failed {
                    reason,
                    message: failure.message,
                    retry_at,
                };
            }
        }
    }

    /// Whether a pod with this Wasm container has container images too. Those that are not here
    /// yet are brought for that, as their containers need them anyway; one that can't be had is
    /// told of when its container's turn comes.
    pub(crate) async fn has_containers(&self, slot: &Slot, wasm: usize) -> bool {
        let (desired, secrets) = {
            let record = slot.lock();
            let secrets = pull_secrets(&record.desired.pod, &record.objects);
            (record.desired.clone(), secrets)
        };
        let own = &desired.containers[wasm].image;
        // An ephemeral one comes later, and takes nothing away from what runs.
        let others = desired.containers.iter();
        let others = others.filter(|c| c.image != *own && c.role != Role::Ephemeral);
        for other in others {
            let policy = match other.pull {
                PullPolicy::Always => PullPolicy::IfNotPresent,
                policy => policy,
            };
            let obtained = image::obtain(&*self.images, &other.image, policy, &secrets, || {});
            let found = match obtained.await {
                Ok(Obtained::Present(image) | Obtained::Pulled(image)) => image,
                Err(error) => {
                    tracing::debug!(image = &*other.image, %error, "kind of image not known");
                    continue;
                }
            };
            if matches!(found.artifact, runtime::Artifact::Container { .. }) {
                return true;
            }
        }
        false
    }

    fn pulled(&self, record: &mut Record, index: usize, image: PulledImage) {
        let container = &mut record.actual.containers[index];
        container.image = Image::Ready;
        container.image_id = Some(image.id.as_str().into());
        container.pulls = Default::default();
        record.sides[index].pulled = Some(Arc::new(image));
    }
}

fn pull_secrets(pod: &core::Pod, objects: &PodObjects) -> Vec<Vec<u8>> {
    let names = pod
        .spec
        .iter()
        .flat_map(|s| s.image_pull_secrets.iter().flatten());
    names
        .filter_map(|r| {
            let data = &objects.get(Kind::Secret, &r.name)?.data;
            match data.get(".dockerconfigjson") {
                Some(config) => Some(config.clone()),
                // The older form is the inside of the newer one.
                None => data
                    .get(".dockercfg")
                    .map(|old| [b"{\"auths\":", &old[..], b"}"].concat()),
            }
        })
        .collect()
}

fn pulled_words(
    image: &str,
    turn_at: tokio::time::Instant,
    began: tokio::time::Instant,
    bytes: u64,
) -> String {
    let words = |d: Duration| {
        if d.as_secs() == 0 {
            format!("{}ms", d.as_millis())
        } else {
            format!("{}.{:03}s", d.as_secs(), d.subsec_millis())
        }
    };
    format!(
        "Successfully pulled image {image:?} in {} ({} including waiting). Image size: {bytes} bytes.",
        words(turn_at.elapsed()),
        words(began.elapsed())
    )
}
