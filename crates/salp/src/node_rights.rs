//! Which rights a node lacks that other clusters do not give nodes: there Services are served by
//! a proxy with an account of its own, here by the node. Pods run without them.

use anyhow::{Context as _, Result};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::Api;
use kube::api::PostParams;

/// What is listed and watched beside what upstream lets a node, and what it is for.
const NEEDED: [(&str, &str, &str); 3] = [
    ("", "services", "no Service"),
    ("discovery.k8s.io", "endpointslices", "no Service"),
    ("", "nodes", "no pod of another node"),
];

/// Warns of each right that is missing, with the cure.
pub async fn warn_of_missing(client: kube::Client) {
    for (group, resource, unreached) in NEEDED {
        match may_list(&client, group, resource).await {
            Ok(true) => {}
            Ok(false) => tracing::warn!(
                "this node may not list {resource}: its pods reach {unreached}; give it the right: kubectl create clusterrolebinding salp-node-proxier --clusterrole=system:node-proxier --group=system:nodes"
            ),
            Err(error) => tracing::debug!("{error:#}"),
        }
    }
}

async fn may_list(client: &kube::Client, group: &str, resource: &str) -> Result<bool> {
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                group: Some(group.to_owned()),
                resource: Some(resource.to_owned()),
                verb: Some("list".to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let answer = reviews.create(&PostParams::default(), &review).await;
    let answer = answer.with_context(|| format!("ask whether {resource} may be listed"))?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}
