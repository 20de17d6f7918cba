//! Certificates of nodes: approves what a node may have without being asked for more, and
//! signs what is approved.
//!
//! Client certificates (`kubernetes.io/kube-apiserver-client-kubelet`) go to whoever may
//! create the CSR subresource `nodeclient`, or `selfnodeclient` for the own one, as upstream's
//! csrapprover has it. Serving certificates (`kubernetes.io/kubelet-serving`), which upstream
//! leaves to people, go to a node for its own name and addresses, as long as nobody else has
//! these and it may create the subresource `selfnodeserver`. [`plan`] decides, and signing is the binary's ([`Signer`]).

mod plan;
#[cfg(test)]
mod tests;

use crate::context::Context;
use crate::error::Error;
use client::k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use client::k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use client::k8s_openapi::api::core::v1::{Node, Service};
use client::k8s_openapi::api::discovery::v1::EndpointSlice;
use client::{Informer, Outcome};
use kube::api::{Api, Patch, PatchParams, PostParams};
use plan::{Verdict, is_approved};
use serde_json::json;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

const NAME: &str = "certificate-controller";
const WORKERS: usize = 2;
/// Between looks at a request that is too early.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// Longest life of a certificate that is signed, and that of one that asks for none.
const VALID_MAX_SECONDS: i64 = 365 * 86_400;

/// What a request for a certificate asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Common name of the subject.
    pub common_name: String,
    /// Organizations of the subject.
    pub organizations: Vec<String>,
    /// DNS names.
    pub names: Vec<String>,
    /// IP addresses.
    pub addresses: Vec<IpAddr>,
    /// It asks for names of other kinds (e-mail, URI).
    pub others: bool,
}

/// The site's certificate authority.
pub trait Signer: Send + Sync {
    /// Reads a request (PEM), whose signature must be good.
    ///
    /// # Errors
    /// What is wrong with it.
    fn read(&self, request: &str) -> Result<Asked, String>;

    /// Signs a request (PEM) for a server or for a client; the certificate, PEM.
    ///
    /// # Errors
    /// Why it can't be signed.
    fn sign(&self, request: &str, server: bool, valid_seconds: i64) -> Result<String, String>;
}

struct Controller {
    context: Context,
    signer: Arc<dyn Signer>,
    requests: Informer<CertificateSigningRequest>,
    nodes: Informer<Node>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
}

pub(crate) fn start(context: &Context, signer: Arc<dyn Signer>) {
    let requests = context.informers.get::<CertificateSigningRequest>();
    let queue = context.queue::<String>();
    {
        let queue = queue.clone();
        context.follow(&requests, move |_, new| {
            if let Some(name) = new.and_then(|r| r.metadata.name.clone()) {
                queue.add(name);
            }
        });
    }
    let controller = Arc::new(Controller {
        context: context.clone(),
        signer,
        nodes: context.informers.get(),
        services: context.informers.get(),
        slices: context.informers.get(),
        requests,
    });
    let ready = vec![
        controller.requests.ready(),
        controller.nodes.ready(),
        controller.services.ready(),
        controller.slices.ready(),
    ];
    context.work(NAME, queue, WORKERS, ready, move |name| {
        let controller = controller.clone();
        async move { controller.reconcile(&name).await }
    });
}

/// Whether a node tells how it is.
fn is_in_touch(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|c| c.type_ == "Ready" && c.status != "Unknown")
}

impl Controller {
    async fn reconcile(&self, name: &str) -> Result<Outcome, Error> {
        let Some(request) = self.requests.get("", name) else {
            return Ok(Outcome::Done);
        };
        let Ok(pem) = std::str::from_utf8(&request.spec.request.0) else {
            return Ok(Outcome::Done);
        };
        let signed = request
            .status
            .as_ref()
            .is_some_and(|s| s.certificate.is_some());
        if signed || plan::is_denied(&request) || !plan::is_ours(&request) {
            return Ok(Outcome::Done);
        }
        if is_approved(&request) {
            self.sign(name, &request, pem).await?;
            return Ok(Outcome::Done);
        }
        let asked = match self.signer.read(pem) {
            Ok(asked) => asked,
            Err(reason) => {
                tracing::warn!(request = name, reason, "certificate request can't be read");
                return Ok(Outcome::Done);
            }
        };
        let taken = self.taken(&request.spec.username.clone().unwrap_or_default());
        match plan::judge(&request, &asked, &taken) {
            Verdict::Ask(subresource) => {
                if self.may(&request, subresource).await? {
                    self.approve(name, &request).await?;
                }
            }
            Verdict::Later(reason) => {
                tracing::debug!(request = name, reason, "certificate request waits");
                return Ok(Outcome::After(LOOK_AGAIN));
            }
            // A person may still approve it.
            Verdict::Leave(reason) => {
                tracing::info!(request = name, reason, "certificate request left to people");
            }
        }
        Ok(Outcome::Done)
    }

    /// Names and addresses that no node but the one that has them may answer for.
    fn taken(&self, username: &str) -> plan::Taken {
        let own = username.strip_prefix(plan::NODE_PREFIX).unwrap_or_default();
        let mut taken = plan::Taken::default();
        for node in self.nodes.list() {
            if is_in_touch(&node) {
                taken.in_touch.extend(node.metadata.name.clone());
            }
            if node.metadata.name.as_deref() == Some(own) {
                continue;
            }
            taken.names.extend(node.metadata.name.clone());
            let addresses = node.status.as_ref().and_then(|s| s.addresses.clone());
            for address in addresses.into_iter().flatten() {
                taken
                    .addresses
                    .extend(address.address.parse::<IpAddr>().ok());
            }
        }
        for service in self.services.list() {
            let spec = service.spec.as_ref();
            let ips = spec.and_then(|s| s.cluster_ips.as_ref());
            let ips = ips.into_iter().flatten();
            taken
                .addresses
                .extend(ips.filter_map(|a| a.parse::<IpAddr>().ok()));
        }
        if let Some(slice) = self.slices.get("default", "kubernetes") {
            let all = slice.endpoints.iter().flatten().flat_map(|e| &e.addresses);
            taken
                .addresses
                .extend(all.filter_map(|a| a.parse::<IpAddr>().ok()));
        }
        taken
    }

    /// Whether who asked may create a subresource of requests.
    async fn may(
        &self,
        request: &CertificateSigningRequest,
        subresource: &str,
    ) -> Result<bool, Error> {
        let spec = &request.spec;
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: spec.username.clone(),
                groups: spec.groups.clone(),
                uid: spec.uid.clone(),
                resource_attributes: Some(ResourceAttributes {
                    group: Some("certificates.k8s.io".to_owned()),
                    resource: Some("certificatesigningrequests".to_owned()),
                    verb: Some("create".to_owned()),
                    version: Some("*".to_owned()),
                    subresource: Some(subresource.to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.context.client.clone());
        let answer = api.create(&PostParams::default(), &review).await;
        let answer = answer.map_err(|source| Error::Create {
            what: "SubjectAccessReview".to_owned(),
            source,
        })?;
        Ok(answer.status.is_some_and(|s| s.allowed))
    }

    async fn approve(&self, name: &str, request: &CertificateSigningRequest) -> Result<(), Error> {
        let why = "A node may have this certificate";
        let patch = self.judged(request, "Approved", "AutoApproved", why);
        self.patch(name, "approval", &patch).await
    }

    /// A patch that says by a condition what became of a request.
    fn judged(
        &self,
        request: &CertificateSigningRequest,
        type_: &str,
        reason: &str,
        message: &str,
    ) -> serde_json::Value {
        let now = self.context.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ");
        json!({
            "metadata": {"uid": request.metadata.uid},
            "status": {"conditions": [{
                "type": type_, "status": "True", "reason": reason, "message": message,
                "lastUpdateTime": now.to_string(),
            }]},
        })
    }

    async fn sign(
        &self,
        name: &str,
        request: &CertificateSigningRequest,
        pem: &str,
    ) -> Result<(), Error> {
        use client::k8s_openapi::ByteString;
        let server = request.spec.signer_name == plan::SERVING;
        let seconds = request
            .spec
            .expiration_seconds
            .map_or(VALID_MAX_SECONDS, i64::from);
        // Who approved it can't make it more than a node's.
        let right = self.signer.read(pem).and_then(|asked| {
            plan::shape(request, &asked)
                .map(drop)
                .map_err(str::to_owned)
        });
        let seconds = seconds.min(VALID_MAX_SECONDS);
        let patch = match right.and_then(|()| self.signer.sign(pem, server, seconds)) {
            Ok(certificate) => json!({
                "metadata": {"uid": request.metadata.uid},
                "status": {"certificate": ByteString(certificate.into_bytes())},
            }),
            Err(reason) => self.judged(request, "Failed", "SignerValidationFailure", &reason),
        };
        self.patch(name, "status", &patch).await
    }

    async fn patch(&self, name: &str, sub: &str, patch: &serde_json::Value) -> Result<(), Error> {
        let api: Api<CertificateSigningRequest> = Api::all(self.context.client.clone());
        let patch = Patch::Strategic(patch);
        match api
            .patch_subresource(sub, name, &PatchParams::default(), &patch)
            .await
        {
            Ok(_) => Ok(()),
            Err(error) if client::is_not_found(&error) || client::is_conflict(&error) => Ok(()),
            Err(source) => Err(Error::Update {
                what: format!("{sub} of CertificateSigningRequest {name}"),
                source,
            }),
        }
    }
}
