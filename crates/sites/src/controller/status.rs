//! What imports and exports say of themselves: their conditions, and who exports.

use super::{Controller, Key, key_of};
use crate::exported::{Exported, NotExported};
use crate::kinds::{ServiceExport, ServiceImport};
use crate::plan::Import;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::{Api, Patch, PatchParams};
use lattice::{SiteId, SiteState, View};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

impl Controller {
    /// Status of an import: who exports it, and who of them can't be reached since when.
    pub(super) async fn tell_import(
        &mut self,
        import: &ServiceImport,
        clusters: &[String],
        view: &View,
    ) -> Result<(), kube::Error> {
        let mut silent = Vec::new();
        for site in &view.sites {
            let reached = matches!(site.state, SiteState::Alive | SiteState::Suspect);
            if !reached && clusters.contains(&site.name.name) {
                let since = self.since(site.id, site.since);
                silent.push(format!(
                    "site {} can't be reached since {since}",
                    site.name.name
                ));
            }
        }
        let reachable = if silent.is_empty() {
            condition(
                "Reachable",
                true,
                "Reachable",
                "all sites that export it can be reached",
            )
        } else {
            condition("Reachable", false, "SiteUnreachable", &silent.join("; "))
        };
        let ready = condition("Ready", true, "Ready", "its address answers");
        let old = &import.status.conditions;
        let conditions = [settle(ready, old), settle(reachable, old)];
        let status = json!({
            "endpointSliceObjects": "Present",
            "clusters": clusters.iter().map(|c| json!({"cluster": c})).collect::<Vec<_>>(),
            "conditions": conditions,
        });
        self.write_status(import, status, json!(import.status))
            .await
    }

    /// Since when a site is silent, in wall-clock time.
    fn since(&mut self, site: SiteId, since: Duration) -> String {
        let started = self.lattice.started();
        let text = self.unreachable.entry((site, since)).or_insert_with(|| {
            let ago = started.elapsed().saturating_sub(since);
            let now = jiff::Timestamp::now();
            let at = now.checked_sub(jiff::SignedDuration::try_from(ago).unwrap_or_default());
            format!("{:.0}", at.unwrap_or(now))
        });
        let text = text.clone();
        // One a site: the last.
        self.unreachable
            .retain(|(id, at), _| *id != site || *at == since);
        text
    }

    /// Status of an export.
    pub(super) async fn judge(
        &self,
        export: &ServiceExport,
        own: &BTreeMap<Key, Result<Exported, NotExported>>,
        imports: &BTreeMap<Key, Import>,
    ) -> Result<(), kube::Error> {
        let Some(key) = key_of(&export.metadata) else {
            return Ok(());
        };
        let (valid, ready) = match own.get(&key) {
            Some(Err(why)) => (
                condition("Valid", false, why.reason(), why.message()),
                condition("Ready", false, "Failed", why.message()),
            ),
            _ => (
                condition("Valid", true, "Valid", "the Service can be exported"),
                condition(
                    "Ready",
                    true,
                    "Exported",
                    "other sites are told of the Service",
                ),
            ),
        };
        let conflict = imports.get(&key).and_then(|i| i.merged.conflict());
        let conflict = match conflict {
            Some((reason, message)) => condition("Conflict", true, &reason, &message),
            None => condition("Conflict", false, "NoConflicts", "all exports agree"),
        };
        let old = &export.status.conditions;
        let conditions = [valid, ready, conflict].map(|c| settle(c, old));
        let status = json!({"conditions": conditions});
        self.write_status(export, status, json!(export.status))
            .await
    }

    async fn write_status<K>(
        &self,
        object: &K,
        status: Value,
        old: Value,
    ) -> Result<(), kube::Error>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + serde::de::DeserializeOwned
            + std::fmt::Debug,
    {
        if status == old {
            return Ok(());
        }
        let Some((namespace, name)) = key_of(object.meta()) else {
            return Ok(());
        };
        let api: Api<K> = Api::namespaced(self.client.clone(), &namespace);
        let patch = Patch::Merge(json!({"status": status}));
        match api
            .patch_status(&name, &PatchParams::default(), &patch)
            .await
        {
            Err(error) if !client::is_not_found(&error) => Err(error),
            _ => Ok(()),
        }
    }
}

fn condition(type_: &str, status: bool, reason: &str, message: &str) -> Condition {
    Condition {
        type_: type_.to_owned(),
        status: if status { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: None,
        last_transition_time: Time(jiff::Timestamp::now()),
    }
}

/// A condition whose status has not changed keeps its time.
fn settle(mut new: Condition, old: &[Condition]) -> Condition {
    let before = old.iter().find(|c| c.type_ == new.type_);
    if let Some(before) = before.filter(|c| c.status == new.status) {
        new.last_transition_time = before.last_transition_time.clone();
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_keeps_its_time_until_it_turns() {
        let mut old = condition("Ready", true, "Ready", "a");
        old.last_transition_time = Time(jiff::Timestamp::UNIX_EPOCH);
        let same = settle(condition("Ready", true, "Ready", "b"), &[old.clone()]);
        assert_eq!(same.last_transition_time, old.last_transition_time);
        assert_eq!(same.message, "b");
        let turned = settle(condition("Ready", false, "Failed", "b"), &[old.clone()]);
        assert_ne!(turned.last_transition_time, old.last_transition_time);
    }
}
