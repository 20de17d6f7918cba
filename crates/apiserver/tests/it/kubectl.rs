//! The real kubectl.

use anyhow::{Context as _, Result};
use std::path::PathBuf;
use std::process::Stdio;
use testkit::TestApi;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

pub(super) struct Kubectl {
    program: PathBuf,
    config: PathBuf,
    home: PathBuf,
}

impl Kubectl {
    /// One that may do everything.
    pub(super) fn of(api: &TestApi) -> Result<Self> {
        Ok(Self {
            program: testkit::tool("kubectl")?,
            config: api.kubeconfig("root", &["system:masters"])?,
            home: api.dir().join("home"),
        })
    }

    /// Output of a command that must succeed (`ok`) or fail.
    pub(super) async fn run(&self, ok: bool, args: &str, input: &str) -> Result<String> {
        let args: Vec<&str> = args.split_whitespace().collect();
        self.run_with(ok, &args, input).await
    }

    /// The same with arguments that may hold spaces.
    pub(super) async fn run_with(&self, ok: bool, args: &[&str], input: &str) -> Result<String> {
        let mut child = Command::new(&self.program)
            .args(args)
            .env("KUBECONFIG", &self.config)
            .env("HOME", &self.home)
            .env("KUBECTL_APPLYSET", "true")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut stdin = child.stdin.take().context("stdin")?;
        stdin.write_all(input.as_bytes()).await?;
        drop(stdin);
        let out = child.wait_with_output().await?;
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
        anyhow::ensure!(out.status.success() == ok, "kubectl {args:?}: {text}");
        Ok(text)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_drives_it() -> Result<()> {
    let api = TestApi::start().await?;
    let k = Kubectl::of(&api)?;
    assert!(
        k.run(true, "version", "")
            .await?
            .contains("Server Version: v1.37.1+salp")
    );
    let manifest = serde_json::to_string(&super::deployment("hello"))?;
    assert_eq!(
        k.run(true, "apply -f -", &manifest).await?,
        "deployment.apps/hello created\n"
    );
    assert_eq!(
        k.run(true, "apply -f -", &manifest).await?,
        "deployment.apps/hello unchanged\n"
    );
    assert_eq!(
        k.run(
            true,
            "apply --server-side --force-conflicts -f -",
            &manifest
        )
        .await?,
        "deployment.apps/hello serverside-applied\n"
    );
    assert!(k.run(true, "get deployments", "").await?.contains("hello"));
    assert!(
        k.run(true, "describe deployment hello", "")
            .await?
            .contains("example.com/c:1")
    );
    k.run(true, "scale deployment hello --replicas 3", "")
        .await?;
    k.run(true, "set image deployment/hello c=example.com/c:2", "")
        .await?;
    k.run(true, "label deployment hello a=b", "").await?;
    k.run(
        true,
        "wait --for=jsonpath={.spec.replicas}=3 deployment/hello --timeout=10s",
        "",
    )
    .await?;
    let yaml = k.run(true, "get deployment hello -o yaml", "").await?;
    assert!(
        yaml.contains("replicas: 3") && yaml.contains("image: example.com/c:2"),
        "{yaml}"
    );
    k.run(true, "create namespace team", "").await?;
    k.run(true, "-n team create configmap c --from-literal=a=b", "")
        .await?;
    k.run(
        true,
        "-n team create secret generic s --from-literal=a=b",
        "",
    )
    .await?;
    k.run(true, "-n team create serviceaccount sa", "").await?;
    k.run(
        true,
        "-n team create role reader --verb=get,list --resource=pods",
        "",
    )
    .await?;
    k.run(
        true,
        "-n team create rolebinding reader --role=reader --serviceaccount=team:sa",
        "",
    )
    .await?;
    assert!(
        k.run(true, "-n team create token sa", "")
            .await?
            .split('.')
            .count()
            == 3
    );
    let who = "--as=system:serviceaccount:team:sa -n team";
    assert_eq!(
        k.run(true, &format!("auth can-i list pods {who}"), "")
            .await?
            .trim(),
        "yes"
    );
    assert_eq!(
        k.run(false, &format!("auth can-i delete pods {who}"), "")
            .await?
            .trim(),
        "no"
    );
    assert!(
        k.run(true, "explain deployment.spec.replicas", "")
            .await?
            .contains("<integer>")
    );
    assert!(
        k.run(true, "api-resources", "")
            .await?
            .contains("deployments")
    );
    let typo = r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"x"},"dat":{}}"#;
    assert!(
        k.run(false, "apply -f -", typo)
            .await?
            .contains("unknown field \"dat\"")
    );
    assert!(
        k.run(true, "delete deployment hello", "")
            .await?
            .contains("deleted")
    );
    assert!(
        k.run(false, "get deployment hello", "")
            .await?
            .contains("not found")
    );
    api.close().await
}

/// The example of the documentation of ValidatingAdmissionPolicy, as kubectl sends it: in
/// protobuf.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_is_refused_by_a_policy() -> Result<()> {
    let api = TestApi::start().await?;
    let k = Kubectl {
        program: testkit::tool("kubectl")?,
        config: api.kubeconfig("root", &["system:masters"])?,
        home: api.dir().join("home"),
    };
    const POLICY: &str = "
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: demo-policy.example.com}
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules:
    - {apiGroups: [apps], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [deployments]}
  validations:
  - expression: object.spec.replicas <= 5
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: demo-binding-test.example.com}
spec:
  policyName: demo-policy.example.com
  validationActions: [Deny]
  matchResources:
    namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: default}}
";
    k.run(true, "create -f -", POLICY).await?;
    let policies = k.run(true, "get validatingadmissionpolicies", "").await?;
    assert!(policies.contains("demo-policy.example.com"), "{policies}");
    let refused = k
        .run(
            false,
            "create deployment nginx --image=nginx --replicas=6",
            "",
        )
        .await?;
    assert!(
        refused.contains("ValidatingAdmissionPolicy 'demo-policy.example.com' with binding 'demo-binding-test.example.com' denied request: failed expression: object.spec.replicas <= 5"),
        "{refused}"
    );
    k.run(
        true,
        "create deployment nginx --image=nginx --replicas=5",
        "",
    )
    .await?;
    // A scale is a resource of its own, which the policy does not name.
    k.run(true, "scale deployment nginx --replicas=6", "")
        .await?;
    api.close().await
}

/// ConfigMaps of one set, with a value each.
fn set(all: &[(&str, &str)]) -> String {
    let each = all.iter().map(|(name, value)| {
        format!(
            "{{apiVersion: v1, kind: ConfigMap, metadata: {{name: {name}, labels: {{set: shop}}}}, data: {{k: {value}}}}}\n---\n"
        )
    });
    each.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn diff_shows_what_apply_would_change() -> Result<()> {
    let api = TestApi::start().await?;
    let k = Kubectl::of(&api)?;
    let shown = k.run(false, "diff -f -", &set(&[("one", "a")])).await?;
    assert!(
        shown.contains("+  k: a") && shown.contains("+kind: ConfigMap"),
        "{shown}"
    );
    assert!(
        k.run(false, "get configmap one", "")
            .await?
            .contains("NotFound")
    );
    k.run(true, "apply -f -", &set(&[("one", "a")])).await?;
    assert_eq!(k.run(true, "diff -f -", &set(&[("one", "a")])).await?, "");
    for how in ["diff -f -", "diff --server-side --force-conflicts -f -"] {
        let shown = k.run(false, how, &set(&[("one", "b")])).await?;
        assert!(
            shown.contains("-  k: a") && shown.contains("+  k: b"),
            "{how}: {shown}"
        );
        assert!(!shown.contains("resourceVersion:"), "{how}: {shown}");
    }
    let shown = k
        .run(
            false,
            "diff --prune -l set=shop -f -",
            &set(&[("two", "b")]),
        )
        .await?;
    assert!(
        shown.contains("-  name: one") && shown.contains("+  name: two"),
        "{shown}"
    );
    let kept = k
        .run(true, "get configmap one -o jsonpath={.data.k}", "")
        .await?;
    assert_eq!(kept, "a");
    api.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apply_prunes_what_is_no_more_in_the_set() -> Result<()> {
    let api = TestApi::start().await?;
    let k = Kubectl::of(&api)?;
    let both = set(&[("one", "a"), ("two", "b")]);
    let other = both
        .replace("one", "other")
        .replace("set: shop", "set: else");
    k.run(true, "apply -f -", &other.replace("two", "more"))
        .await?;
    k.run(true, "apply --prune -l set=shop -f -", &both).await?;
    let said = k
        .run(
            true,
            "apply --prune -l set=shop -f -",
            &set(&[("two", "b")]),
        )
        .await?;
    assert!(
        said.contains("configmap/two unchanged") && said.contains("configmap/one pruned"),
        "{said}"
    );
    let left = k.run(true, "get configmaps -o name", "").await?;
    for (name, there) in [
        ("one", false),
        ("two", true),
        ("other", true),
        ("more", true),
    ] {
        let line = format!("configmap/{name}");
        assert_eq!(left.lines().any(|l| l == line), there, "{line}: {left}");
    }
    // By an object that knows the set's members.
    let apply = "apply --server-side --prune --applyset=secret/set -n default -f -";
    let third = set(&[("three", "c"), ("four", "d")]);
    k.run(true, apply, &third).await?;
    let said = k.run(true, apply, &set(&[("four", "d")])).await?;
    assert!(said.contains("configmap/three pruned"), "{said}");
    let left = k.run(true, "get configmaps -o name", "").await?;
    assert!(
        left.contains("configmap/four") && !left.contains("configmap/three"),
        "{left}"
    );
    api.close().await
}
