//! What is to be done: desired objects, what was made before, and what is there now, turned
//! into actions. Pure; `apply` performs them.

use crate::objects::{ObjectId, rank};
use std::collections::{BTreeMap, BTreeSet};

/// What is known of one object in the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// It is there.
    pub exists: bool,
    /// Its labels say that the same owner applied it.
    pub ours: bool,
    /// Applying the desired object would change it.
    pub differs: bool,
    /// It can't be changed into the desired one (an immutable field differs).
    pub immutable: bool,
    /// It is annotated not to be touched.
    pub ignored: bool,
    /// It is annotated or told not to be deleted.
    pub kept: bool,
    /// It is being deleted already.
    pub going: bool,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Apply what is not there.
    Create(ObjectId),
    /// Apply what differs.
    Configure(ObjectId),
    /// Delete and create anew what can't be changed.
    Recreate(ObjectId),
    /// Nothing: it is as desired.
    Unchanged(ObjectId),
    /// Nothing: it is annotated so.
    Ignore(ObjectId),
    /// Delete what is no longer desired.
    Prune(ObjectId),
    /// Forget what is no longer desired but is not ours to delete.
    Forget(ObjectId),
}

impl Action {
    /// What it is done to.
    pub fn id(&self) -> &ObjectId {
        match self {
            Self::Create(id)
            | Self::Configure(id)
            | Self::Recreate(id)
            | Self::Unchanged(id)
            | Self::Ignore(id)
            | Self::Prune(id)
            | Self::Forget(id) => id,
        }
    }

    /// As events and `salp gitops diff` word it; nothing for what changes nothing.
    pub fn verb(&self) -> Option<&'static str> {
        match self {
            Self::Create(_) => Some("created"),
            Self::Configure(_) => Some("configured"),
            Self::Recreate(_) => Some("recreated"),
            Self::Prune(_) => Some("deleted"),
            Self::Unchanged(_) | Self::Ignore(_) | Self::Forget(_) => None,
        }
    }
}

/// What the owner allows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Policy {
    /// Objects that are no longer desired are deleted.
    pub prune: bool,
}

/// Actions in the order in which they are to be done: what others need first, deletions
/// last and in reverse.
pub fn plan(
    desired: &[ObjectId],
    inventory: &[ObjectId],
    live: &BTreeMap<ObjectId, Live>,
    policy: Policy,
) -> Vec<Action> {
    let state = |id: &ObjectId| live.get(id).copied().unwrap_or_default();
    let mut wanted: Vec<&ObjectId> = desired.iter().collect();
    wanted.sort_by_key(|id| (rank(&id.group, &id.kind), *id));
    wanted.dedup();
    let mut actions: Vec<Action> = wanted
        .iter()
        .map(|id| applied((*id).clone(), state(id)))
        .collect();
    let wanted: BTreeSet<&ObjectId> = wanted.into_iter().collect();
    let mut stale: Vec<&ObjectId> = inventory.iter().filter(|id| !wanted.contains(id)).collect();
    stale.sort_by_key(|id| (rank(&id.group, &id.kind), *id));
    stale.dedup();
    stale.reverse();
    actions.extend(stale.into_iter().map(|id| {
        let known = state(id);
        if policy.prune && known.exists && known.ours && !known.kept {
            Action::Prune(id.clone())
        } else {
            Action::Forget(id.clone())
        }
    }));
    actions
}

fn applied(id: ObjectId, live: Live) -> Action {
    if !live.exists {
        Action::Create(id)
    } else if live.ignored {
        Action::Ignore(id)
    } else if live.immutable {
        Action::Recreate(id)
    } else if live.differs {
        Action::Configure(id)
    } else {
        Action::Unchanged(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use proptest::prelude::*;

    fn id(kind: &str, name: &str) -> ObjectId {
        ObjectId {
            kind: kind.into(),
            group: match kind {
                "Deployment" => "apps".into(),
                _ => String::new(),
            },
            namespace: if kind == "Namespace" { "" } else { "web" }.into(),
            name: name.into(),
        }
    }

    fn shown(actions: &[Action]) -> String {
        actions
            .iter()
            .map(|a| {
                let word = format!("{a:?}");
                format!(
                    "{} {}\n",
                    word.split('(').next().unwrap_or_default(),
                    a.id()
                )
            })
            .collect()
    }

    #[test]
    fn what_others_need_comes_first_and_goes_last() {
        let desired = [
            id("Deployment", "new"),
            id("Deployment", "drifted"),
            id("Deployment", "same"),
            id("Service", "mine"),
            id("ConfigMap", "fixed"),
            id("Namespace", "web"),
        ];
        let inventory = [
            id("Namespace", "old"),
            id("ConfigMap", "old"),
            id("Deployment", "old"),
            id("Deployment", "same"),
            id("Deployment", "others"),
            id("Deployment", "kept"),
            id("Deployment", "gone"),
        ];
        let there = Live {
            exists: true,
            ours: true,
            ..Live::default()
        };
        let live = BTreeMap::from([
            (
                id("Deployment", "drifted"),
                Live {
                    differs: true,
                    ..there
                },
            ),
            (id("Deployment", "same"), there),
            (
                id("Service", "mine"),
                Live {
                    ignored: true,
                    differs: true,
                    ..there
                },
            ),
            (
                id("ConfigMap", "fixed"),
                Live {
                    immutable: true,
                    ..there
                },
            ),
            (id("Namespace", "old"), there),
            (id("ConfigMap", "old"), there),
            (id("Deployment", "old"), there),
            (
                id("Deployment", "others"),
                Live {
                    ours: false,
                    ..there
                },
            ),
            (
                id("Deployment", "kept"),
                Live {
                    kept: true,
                    ..there
                },
            ),
        ]);
        let actions = plan(&desired, &inventory, &live, Policy { prune: true });
        expect![[r#"
            Create Namespace/web
            Recreate ConfigMap/web/fixed
            Ignore Service/web/mine
            Configure Deployment/web/drifted
            Create Deployment/web/new
            Unchanged Deployment/web/same
            Forget Deployment/web/others
            Prune Deployment/web/old
            Forget Deployment/web/kept
            Forget Deployment/web/gone
            Prune ConfigMap/web/old
            Prune Namespace/old
        "#]]
        .assert_eq(&shown(&actions));
        let kept = plan(&desired, &inventory, &live, Policy { prune: false });
        assert!(!kept.iter().any(|a| matches!(a, Action::Prune(_))));
    }

    fn ids() -> impl Strategy<Value = Vec<ObjectId>> {
        let one = (
            proptest::sample::select(vec!["Namespace", "ConfigMap", "Deployment", "Widget"]),
            "[a-c]",
        );
        proptest::collection::vec(one.prop_map(|(kind, name)| id(kind, &name)), 0..8)
    }

    proptest! {
        /// Nothing is deleted that was not made before, is desired, or bears no label of ours;
        /// every desired object gets one action.
        #[test]
        fn only_what_was_made_is_deleted(
            desired in ids(), inventory in ids(), present in ids(),
            flags in proptest::collection::vec(any::<[bool; 6]>(), 8), prune: bool,
        ) {
            let live: BTreeMap<ObjectId, Live> = present.into_iter().zip(flags).map(|(id, f)| (id, Live {
                exists: true, ours: f[0], differs: f[1], immutable: f[2], ignored: f[3], kept: f[4], going: f[5],
            })).collect();
            let actions = plan(&desired, &inventory, &live, Policy { prune });
            prop_assert_eq!(&actions, &plan(&desired, &inventory, &live, Policy { prune }));
            for action in &actions {
                if let Action::Prune(id) = action {
                    prop_assert!(prune && inventory.contains(id) && !desired.contains(id));
                    prop_assert!(live[id].ours && !live[id].kept);
                }
            }
            let unique: BTreeSet<_> = desired.iter().chain(&inventory).collect();
            prop_assert_eq!(actions.len(), unique.len());
        }
    }
}
