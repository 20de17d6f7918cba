//! Ending a node's pods in order before its machine goes down: Kubernetes' graceful node shutdown.
//!
//! Whoever learns that the machine goes down calls [`crate::Node::shut_down`]; how that is learnt
//! is not known here. Words and order are upstream's: the ordinary pods end first, then the
//! critical ones, and all of them have failed. Start with [`phases`], which is pure.

use crate::agent::{Agent, Record, Slot};
use crate::plan;
use crate::publish::WRITES_MAX;
use crate::state::Ended;
use futures::StreamExt as _;
use futures::future::join_all;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::sync::Arc;
use std::time::Duration;

/// Priority from which pods end last: that of `system-cluster-critical`.
const CRITICAL_PRIORITY: i32 = 2_000_000_000;
/// How long pods wait for the server to know that the node is going: what replaces them must not
/// come here.
const NODE_TOLD_DEADLINE: Duration = Duration::from_secs(3);
/// How long the last pods have beyond their grace, for they are killed when it ends.
const KILL_DEADLINE: Duration = Duration::from_secs(5);
/// How long the server has to take what became of the pods.
const PODS_TOLD_DEADLINE: Duration = Duration::from_secs(5);
/// The `DisruptionTarget` condition's reason where the agent ended the pod.
pub(crate) const TERMINATION_REASON: &str = "TerminationByKubelet";
const TERMINATED: &str = "Pod was terminated in response to imminent node shutdown.";

/// How long pods have to end before the machine goes down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShutdownGrace {
    /// All of them: `shutdownGracePeriod`; zero: they are not ended at all.
    pub total: Duration,
    /// The end of it, for critical ones alone: `shutdownGracePeriodCriticalPods`.
    pub critical: Duration,
}

/// How far a node is in going down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Stage {
    #[default]
    Up,
    /// Nothing new is taken.
    Ends,
    /// The same, and the server knows.
    Told,
}

/// The phases of a shutdown: how long each has, and whose turn it is, by their priority.
fn phases<T>(
    grace: ShutdownGrace,
    pods: impl IntoIterator<Item = (i32, T)>,
) -> [(Duration, Vec<T>); 2] {
    let (critical, ordinary): (Vec<_>, Vec<_>) = pods
        .into_iter()
        .partition(|(priority, _)| *priority >= CRITICAL_PRIORITY);
    let only = |pods: Vec<(i32, T)>| pods.into_iter().map(|(_, pod)| pod).collect();
    let first = grace.total.saturating_sub(grace.critical);
    [(first, only(ordinary)), (grace.critical, only(critical))]
}

/// Why a pod that comes now is refused.
pub(crate) fn refusal() -> Ended {
    Ended {
        reason: "NodeShutdown".to_owned(),
        message: "Pod was rejected: Pod was rejected as the node is shutting down.".to_owned(),
    }
}

/// Whether all of the pod's containers have ended.
fn is_still(record: &Record) -> bool {
    let mut containers = record.actual.containers.iter();
    record.actual.gone || !containers.any(|c| c.run.is_alive())
}

impl Agent {
    /// Whether the machine goes down.
    pub(crate) fn is_going_down(&self) -> bool {
        *self.stage.borrow() != Stage::Up
    }

    /// Refuses pods from now on, and ends those that run.
    pub(crate) async fn shut_down(self: &Arc<Self>, grace: ShutdownGrace) {
        self.stage.send_replace(Stage::Ends);
        let node = core::ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(self.fixed.name.clone()),
            uid: Some(self.fixed.name.clone()),
            ..core::ObjectReference::default()
        };
        let words = "Shutdown manager detected shutdown event";
        self.events
            .record(node, client::EventType::Normal, "Shutdown", words);
        let mut stage = self.stage.subscribe();
        let told = stage.wait_for(|stage| *stage == Stage::Told);
        // Out of reach it can't be told, and pods end all the same.
        drop(tokio::time::timeout(NODE_TOLD_DEADLINE, told).await);

        let slots = self.slots();
        let by_priority = slots.iter().map(|slot| {
            let spec = slot.lock().desired.pod.spec.as_ref().map(|s| s.priority);
            (spec.flatten().unwrap_or(0), slot)
        });
        for (time, pods) in phases(grace, by_priority) {
            for slot in &pods {
                self.terminate(slot, time);
            }
            let _late = tokio::time::timeout(time, join_all(pods.into_iter().map(still))).await;
        }
        let _late = tokio::time::timeout(KILL_DEADLINE, join_all(slots.iter().map(still))).await;
        let told = futures::stream::iter(&slots)
            .for_each_concurrent(WRITES_MAX, |slot| self.tell_termination(slot));
        let told = tokio::time::timeout(PODS_TOLD_DEADLINE, told).await;
        if told.is_err() {
            tracing::warn!("the server was not told of all pods that the shutdown ended");
        }
    }

    /// Begins to end a pod, unless it ends or has ended by itself.
    fn terminate(&self, slot: &Slot, time: Duration) {
        let mut record = slot.lock();
        let record = &mut *record;
        let over = record.actual.ended.is_some()
            || record.desired.deleting
            || record.actual.gone
            || plan::has_finished(&record.desired, &record.actual);
        if over {
            return;
        }
        let grace_s = record.desired.grace_s.min(time.as_secs());
        record.ends_by = Some(self.now() + grace_s * 1000);
        record.actual.ended = Some(Ended {
            reason: "Terminated".to_owned(),
            message: TERMINATED.to_owned(),
        });
        record.conditions.retain(|c| c.type_ != "DisruptionTarget");
        record.conditions.push(core::PodCondition {
            last_transition_time: Some(Time(self.clock.now())),
            message: Some(TERMINATED.to_owned()),
            observed_generation: record.desired.generation(),
            reason: Some(TERMINATION_REASON.to_owned()),
            status: "True".to_owned(),
            type_: "DisruptionTarget".to_owned(),
            last_probe_time: None,
        });
        self.queue.add(slot.uid.clone());
    }

    /// Tells what became of a pod. One that the server knows to have failed is not run again by a
    /// boot without it; any other is.
    async fn tell_termination(&self, slot: &Arc<Slot>) {
        match self.publish(&slot.uid).await {
            Ok(()) => {
                let record = slot.lock();
                if record.confirmed && record.actual.ended.is_some() && is_still(&record) {
                    self.checkpoint.remove_pod(&slot.uid);
                }
            }
            // It runs again after the boot, for all that the server knows.
            Err(error) => tracing::debug!(uid = %slot.uid, %error, "end of pod not told"),
        }
    }
}

/// Waits until nothing of the pod runs.
async fn still(slot: &Arc<Slot>) {
    loop {
        let mut changed = std::pin::pin!(slot.changed.notified());
        changed.as_mut().enable();
        if is_still(&slot.lock()) {
            return;
        }
        changed.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::{EPOCH, FakeApi, FakeRuntime, Rig, one};
    use client::Clock;
    use expect_test::expect;
    use serde_json::{Value, json};

    const GRACE: ShutdownGrace = ShutdownGrace {
        total: Duration::from_secs(30),
        critical: Duration::from_secs(10),
    };

    #[test]
    fn critical_pods_come_last_and_have_their_own_time() {
        let node_critical = 2_000_001_000;
        let pods = [(0, "web"), (node_critical, "dns"), (-5, "batch")];
        let more = [(CRITICAL_PRIORITY, "proxy"), (CRITICAL_PRIORITY - 1, "db")];
        let [ordinary, critical] = phases(GRACE, pods.into_iter().chain(more));
        let (first, last) = (Duration::from_secs(20), Duration::from_secs(10));
        assert_eq!(ordinary, (first, vec!["web", "batch", "db"]));
        assert_eq!(critical, (last, vec!["dns", "proxy"]));
    }

    fn pod(priority: i32, grace_s: i64, pre_stop_s: i64) -> Value {
        let mut spec = one();
        spec["priority"] = json!(priority);
        spec["terminationGracePeriodSeconds"] = json!(grace_s);
        if pre_stop_s > 0 {
            spec["containers"][0]["lifecycle"] =
                json!({"preStop": {"sleep": {"seconds": pre_stop_s}}});
        }
        spec
    }

    async fn running(rig: &Rig, pods: &[&str]) {
        for name in pods {
            rig.until(name, |r| r.api.status(name)["phase"] == "Running")
                .await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pods_end_in_order_and_nothing_new_comes() {
        let rig = Rig::new().await;
        rig.apply("slow", pod(0, 60, 4));
        rig.apply("quick", pod(0, 3, 0));
        rig.apply("dns", pod(CRITICAL_PRIORITY, 60, 0));
        let mut job = one();
        job["restartPolicy"] = json!("Never");
        rig.apply("job", job);
        running(&rig, &["slow", "quick", "dns", "job"]).await;
        rig.runtime.exit("job", "c", 0);
        rig.until("done", |r| r.api.status("job")["phase"] == "Succeeded")
            .await;
        let before = rig.runtime.told().len();

        let meanwhile = async {
            rig.until("it begins", |r| r.agent.is_going_down()).await;
            rig.agent.stage.send_replace(Stage::Told);
            rig.apply("late", one());
        };
        tokio::join!(rig.agent.shut_down(GRACE), meanwhile);

        let calls = rig.runtime.told()[before..].to_owned();
        let stops = calls.lines().filter(|call| call.contains("stop"));
        let stops: Vec<_> = stops
            .map(|call| call.split_once(' ').unwrap().1.to_owned())
            .collect();
        // The slow one's hook took four of its twenty seconds; the last waited for it.
        expect![[r#"
            [
                "stop quick/c/0 within 3000 ms",
                "stop slow/c/0 within 16000 ms",
                "stop dns/c/0 within 10000 ms",
            ]
        "#]]
        .assert_debug_eq(&stops);
        for name in ["slow", "quick", "dns"] {
            let status = rig.api.status(name);
            assert_eq!(status["phase"], "Failed", "{name}");
            assert_eq!(status["reason"], "Terminated");
            assert_eq!(status["message"], TERMINATED);
            let mut conditions = status["conditions"].as_array().unwrap().iter();
            let target = conditions.find(|c| c["type"] == "DisruptionTarget");
            let target = target.expect("a condition");
            let said = (&target["status"], &target["reason"], &target["message"]);
            let want = (json!("True"), json!(TERMINATION_REASON), json!(TERMINATED));
            assert_eq!(said, (&want.0, &want.1, &want.2));
        }
        let late = rig.api.status("late");
        assert_eq!(
            (&late["phase"], &late["reason"], &late["message"]),
            (
                &json!("Failed"),
                &json!("NodeShutdown"),
                &json!("Pod was rejected: Pod was rejected as the node is shutting down.")
            )
        );
        assert_eq!(rig.api.status("job")["phase"], "Succeeded");
        rig.scope.close().await;

        // The machine boots and nobody answers: what has failed does not run.
        assert_eq!(after_boot(rig.dir).await, "");
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_server_never_heard_of_runs_again() {
        let rig = Rig::new().await;
        rig.apply("web", pod(0, 60, 0));
        running(&rig, &["web"]).await;
        *rig.api.down.lock() = true;
        rig.agent.shut_down(GRACE).await;
        assert!(rig.runtime.told().contains("stop web/c/0 within 20000 ms"));
        rig.scope.close().await;
        assert!(after_boot(rig.dir).await.contains("start web/c/0"));
    }

    /// What the next agent does with what is on the disk alone.
    async fn after_boot(dir: tempfile::TempDir) -> String {
        let clock = Clock::following_tokio(EPOCH.parse().unwrap());
        let api = FakeApi::default();
        *api.down.lock() = true;
        let rig = Rig::on(dir, FakeRuntime::new(clock.clone()), clock, api).await;
        tokio::time::sleep(Duration::from_secs(10)).await;
        rig.scope.close().await;
        rig.runtime.told()
    }
}
