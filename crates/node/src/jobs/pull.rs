//! Pulling the images that a container needs, by their policies.

use crate::agent::{Agent, Record, Slot};
use crate::backoff::MAX_MS;
use crate::image::{self, Obtained, PullFailure, PulledImage, Wanted};
use crate::objects::{Kind, PodObjects};
use crate::pod::{PullPolicy, Role, pull_policy};
use crate::state::Image;
use crate::volumes;
use client::EventType;
use k8s_openapi::api::core::v1 as core;
use runtime::Artifact;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// An image that a container needs before it can start.
struct Needed {
    image: Arc<str>,
    policy: PullPolicy,
    /// Where its files are shown, if it is not what the container runs.
    volume: Option<PathBuf>,
}

impl Needed {
    fn by_volume((place, source): (PathBuf, core::ImageVolumeSource)) -> Self {
        let image = source.reference.as_deref().unwrap_or_default();
        Self {
            image: image.into(),
            policy: pull_policy(source.pull_policy.as_deref(), image),
            volume: Some(place),
        }
    }

    fn wanted(&self) -> Wanted {
        match self.volume {
            Some(_) => Wanted::Files,
            None => Wanted::Run,
        }
    }

    /// The container that events are about; else it is the pod.
    fn about(&self, index: usize) -> Option<usize> {
        self.volume.is_none().then_some(index)
    }
}

impl Agent {
    /// Finds or pulls a container's image, and before it those of volumes that it mounts.
    pub(crate) async fn pull(self: &Arc<Self>, slot: &Arc<Slot>, index: usize) {
        let (own, pod, mut secrets, known) = {
            let record = slot.lock();
            let wanted = &record.desired.containers[index];
            let own = Needed {
                image: wanted.image.clone(),
                policy: wanted.pull,
                volume: None,
            };
            (
                own,
                record.desired.pod.clone(),
                pull_secrets(&record.desired.pod, &record.objects),
                record.actual.containers[index].image_id.is_some(),
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
        let work = async {
            self.fetch_volumes(slot, index, &secrets).await?;
            let fetched = self.fetch(slot, index, &own, &secrets, known).await;
            let noted = fetched.and_then(|image| {
                let dir = volumes::pod_dir(&self.fixed.dir, &slot.uid.0);
                let noted = volumes::note_image(&dir, &image.id);
                noted.map_err(|error| unusable(error.to_string()))?;
                Ok(image)
            });
            noted.map_err(|failure| (own, failure))
        };
        let result = slot.ending.run_until_cancelled(work).await;
        let mut record = slot.lock();
        match result {
            None => record.actual.containers[index].image = Image::Unknown,
            Some(Ok(image)) => {
                let container = &mut record.actual.containers[index];
                container.image = Image::Ready;
                container.image_id = Some(image.id.as_str().into());
                container.pulls = Default::default();
                record.sides[index].pulled = Some(Arc::new(image));
            }
            Some(Err((needed, failure))) => self.not_pulled(&mut record, index, &needed, failure),
        }
    }

    /// Finds or pulls the images of the volumes that a container mounts, and links them.
    async fn fetch_volumes(
        &self,
        slot: &Slot,
        index: usize,
        secrets: &[Vec<u8>],
    ) -> Result<(), (Needed, PullFailure)> {
        // Another container that mounts the same one waits, and finds it there.
        let _turn = slot.fetching.lock().await;
        let dir = volumes::pod_dir(&self.fixed.dir, &slot.uid.0);
        let missing = {
            let record = slot.lock();
            let container = record.desired.container(index);
            container.map(|c| volumes::missing_images(&dir, &record.desired.pod, c))
        };
        for volume in missing.unwrap_or_default() {
            let needed = Needed::by_volume(volume);
            let fetched = self.fetch(slot, index, &needed, secrets, false).await;
            let linked = fetched.and_then(|image| match (&needed.volume, &image.artifact) {
                (Some(place), Artifact::Container { layers, .. }) if layers.len() == 1 => {
                    let linked = volumes::link_image(place, &layers[0]);
                    linked.map_err(|error| unusable(error.to_string()))
                }
                _ => Err(unusable("the store gave no files".to_owned())),
            });
            if let Err(failure) = linked {
                return Err((needed, failure));
            }
        }
        Ok(())
    }

    /// Finds or pulls one image; `known` is whether this container ran it before.
    async fn fetch(
        &self,
        slot: &Slot,
        index: usize,
        needed: &Needed,
        secrets: &[Vec<u8>],
        known: bool,
    ) -> Result<PulledImage, PullFailure> {
        let about = needed.about(index);
        let tell = |reason: &str, words: &str| {
            self.image_event(&slot.lock(), about, EventType::Normal, reason, words);
        };
        let (image, wanted) = (&*needed.image, needed.wanted());
        let began = tokio::time::Instant::now();
        let mut turn_at = began;
        let result = async {
            // What is here needs no turn.
            if needed.policy != PullPolicy::Always
                && let Ok(Some(found)) = self.images.local(image, wanted).await
                && let Ok(true) = self.images.permits(image, secrets).await
            {
                return Ok(Obtained::Present(found));
            }
            let _turn = self.pulls.acquire().await;
            turn_at = tokio::time::Instant::now();
            let pulling = || tell("Pulling", &format!("Pulling image {image:?}"));
            image::obtain(
                &*self.images,
                (image, wanted),
                needed.policy,
                secrets,
                pulling,
            )
            .await
        };
        let obtained = match result.await {
            // Cut off, a pod that ran this image here before may run it again.
            Err(failure) if failure.unreachable && known => {
                match self.images.local(image, wanted).await {
                    Ok(Some(found)) => Obtained::Present(found),
                    _ => return Err(failure),
                }
            }
            other => other?,
        };
        let (found, words) = match obtained {
            Obtained::Present(found) => {
                let words = format!("Container image {image:?} already present on machine");
                (found, words)
            }
            Obtained::Pulled(found) => {
                let words = pulled_words(image, turn_at, began, found.size_bytes);
                (found, words)
            }
        };
        tell("Pulled", &words);
        Ok(found)
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
            let run = (&*other.image, Wanted::Run);
            let obtained = image::obtain(&*self.images, run, policy, &secrets, || {}).await;
            let found = match obtained {
                Ok(Obtained::Present(image) | Obtained::Pulled(image)) => image,
                Err(error) => {
                    tracing::debug!(image = &*other.image, %error, "kind of image not known");
                    continue;
                }
            };
            if matches!(found.artifact, Artifact::Container { .. }) {
                return true;
            }
        }
        false
    }

    fn not_pulled(&self, record: &mut Record, index: usize, needed: &Needed, failure: PullFailure) {
        let (image, reason) = (&*needed.image, failure.reason);
        let words = if reason == "ErrImagePull" {
            format!("Failed to pull image {image:?}: {}", failure.message)
        } else {
            failure.message.clone()
        };
        let warning = EventType::Warning;
        self.image_event(record, needed.about(index), warning, "Failed", &words);
        let words = format!("Error: {reason}");
        self.container_event(record, index, warning, "Failed", &words);
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
            of_volume: needed.volume.as_ref().map(|_| needed.image.clone()),
        };
    }
}

fn unusable(message: String) -> PullFailure {
    PullFailure {
        reason: "ErrImagePull",
        message,
        unreachable: false,
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
