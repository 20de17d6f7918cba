//! Aggregated ClusterRoles.

use crate::site::Site;
use anyhow::Result;
use client::k8s_openapi::api::rbac::v1::ClusterRole;
use serde_json::json;
use std::sync::Arc;

const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles";

/// Upstream: "Aggregated ClusterRoles": view, edit and admin gather each other's.
#[tokio::test]
async fn the_default_roles_show_what_they_gather() -> Result<()> {
    let site = Site::start().await?;
    let shows = |role: &'static str, resource: &'static str| {
        move |roles: &[Arc<ClusterRole>]| {
            let named = |r: &&Arc<ClusterRole>| r.metadata.name.as_deref() == Some(role);
            let rules = roles.iter().find(named)?.rules.as_ref()?;
            let mut resources = rules.iter().flat_map(|r| r.resources.iter().flatten());
            Some(resources.any(|r| r == resource))
        }
    };
    let until = async |role: &'static str, resource: &'static str, yes: bool| {
        let found =
            move |roles: &[Arc<ClusterRole>]| (shows(role, resource)(roles)? == yes).then_some(());
        site.until::<ClusterRole, _>(&format!("{role}: {resource} {yes}"), found)
            .await
    };
    until("view", "configmaps", true).await?;
    until("admin", "configmaps", true).await?;
    until("view", "secrets", false).await?;
    let more = json!({"metadata": {"name": "gadgets",
        "labels": {"rbac.authorization.k8s.io/aggregate-to-view": "true"}},
        "rules": [{"apiGroups": ["x.io"], "resources": ["gadgets"], "verbs": ["get"]}]});
    site.create(ROLES, more).await?;
    until("view", "gadgets", true).await?;
    until("admin", "gadgets", true).await?;
    site.delete(&format!("{ROLES}/gadgets"), "Background")
        .await?;
    until("admin", "gadgets", false).await?;
    site.stop().await
}
