//! Builds compared with those of the real `kubectl kustomize`: the same objects, to the
//! letter of generated names and the order of lists.

use anyhow::{Context as _, Result, ensure};
use gitops::kustomize;
use gitops::tree::Tree;
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;

/// A case: its name and its files; `a` is what is built.
struct Case(&'static str, &'static [(&'static str, &'static str)]);

const DEPLOYMENT: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: d, finalizers: [x, y], annotations: {}}
spec:
  template:
    metadata: {labels: {app: d}}
    spec:
      serviceAccountName: sa
      imagePullSecrets: [{name: pull}]
      affinity:
        podAntiAffinity:
          preferredDuringSchedulingIgnoredDuringExecution:
          - {weight: 1, podAffinityTerm: {topologyKey: h, labelSelector: {matchLabels: {app: d}}}}
      initContainers: [{name: i, image: "nginx"}]
      containers:
      - name: a
        image: "nginx:1"
        ports: [{containerPort: 80}]
        envFrom: [{configMapRef: {name: cfg}}, {secretRef: {name: s}}]
        env: [{name: Q, value: q}, {name: R, valueFrom: {secretKeyRef: {name: s, key: p}}}]
      - {name: b, image: "reg:5000/x/nginx@sha256:aa"}
      volumes:
      - {name: v, secret: {secretName: s}}
      - {name: w, configMap: {name: cfg}}
      - {name: c, persistentVolumeClaim: {claimName: claim}}
      - {name: p, projected: {sources: [{configMap: {name: cfg}}, {secret: {name: s}}]}}
"#;

const OTHERS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: n}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: sa}
---
apiVersion: v1
kind: Service
metadata: {name: d}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: claim}
spec: {storageClassName: fast}
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: fast}
provisioner: x
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: cr}
rules: [{apiGroups: [""], resources: [secrets], verbs: [get], resourceNames: [s, other]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: rb}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cr}
subjects: [{kind: ServiceAccount, name: sa}, {kind: ServiceAccount, name: default}, {kind: User, name: sa}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: crb}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cr}
subjects: [{kind: ServiceAccount, name: sa, namespace: old}]
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: i}
spec:
  tls: [{secretName: s}]
  rules: [{http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: d, port: {number: 80}}}}]}}]
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: cj}
spec:
  schedule: "* * * * *"
  jobTemplate: {spec: {template: {spec: {containers: [{name: a, image: nginx, envFrom: [{configMapRef: {name: cfg}}]}]}}}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: st}
spec: {serviceName: d, volumeClaimTemplates: [{metadata: {name: x}, spec: {storageClassName: fast}}]}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: h}
spec: {scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: d}, maxReplicas: 3}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: np}
spec: {podSelector: {matchLabels: {app: d}}, ingress: [{from: [{podSelector: {matchLabels: {app: e}}}]}]}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: pdb}
spec: {selector: {matchLabels: {app: d}}}
---
apiVersion: example.com/v1
kind: Widget
metadata: {name: w}
spec: {list: [{name: a, x: 1}, {name: b}], m: {a: 1, b: 2}, containers: [{image: "nginx:9"}]}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec: {group: example.com}
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: ConfigMap, metadata: {name: listed}}
"#;

const GENERATORS: &str = r#"
resources: [d.yaml, o.yaml]
configMapGenerator:
- {name: cfg, literals: [a=1, 'b=<&>"', "c=", "u=é\u2028"]}
- {name: empty}
secretGenerator:
- {name: s, literals: [p=q, 'k="quoted"', "l='x", m=x=y]}
- {name: long, type: example.com/x, literals: [k=aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffffgggggggggghhhhhhhhhh]}
- {name: nodata}
- {name: pull, options: {disableNameSuffixHash: true}}
"#;

const CASES: &[Case] = &[
    Case(
        "plain resources and lists",
        &[
            ("a/kustomization.yaml", "resources: [d.yaml, o.yaml]"),
            ("a/d.yaml", DEPLOYMENT),
            ("a/o.yaml", OTHERS),
        ],
    ),
    Case(
        "generators and references",
        &[
            ("a/kustomization.yaml", GENERATORS),
            ("a/d.yaml", DEPLOYMENT),
            ("a/o.yaml", OTHERS),
        ],
    ),
    Case(
        "an overlay renames everything",
        &[
            ("b/kustomization.yaml", GENERATORS),
            ("b/d.yaml", DEPLOYMENT),
            ("b/o.yaml", OTHERS),
            (
                "a/kustomization.yaml",
                "resources: [../b]\nnamespace: ns\nnamePrefix: p-\nnameSuffix: -s\nimages: [{name: nginx, newName: reg/n, newTag: '2'}, {name: 'reg:5000/x/nginx', digest: 'sha256:bb'}]\nreplicas: [{name: d, count: 3}]",
            ),
        ],
    ),
    Case(
        "labels and annotations of all sorts",
        &[
            (
                "b/kustomization.yaml",
                "resources: [d.yaml, o.yaml]\ncommonLabels: {common: l}\ncommonAnnotations: {common: a}",
            ),
            ("b/d.yaml", DEPLOYMENT),
            ("b/o.yaml", OTHERS),
            (
                "a/kustomization.yaml",
                "resources: [../b]\nlabels:\n- pairs: {plain: l}\n- pairs: {sel: l}\n  includeSelectors: true\n- pairs: {tem: l}\n  includeTemplates: true\n- pairs: {f: l}\n  fields: [{kind: Widget, path: spec/labels, create: true}]",
            ),
        ],
    ),
    Case(
        "files, environments and options of generators",
        &[
            (
                "a/kustomization.yaml",
                "configMapGenerator:\n- name: f\n  files: [env.txt, x=sub/y.txt]\n- name: e\n  envs: [env.txt]\n  options: {labels: {own: l}, immutable: true}\n- name: nn\n  namespace: other\n  literals: [a=b]\nsecretGenerator:\n- name: e\n  envs: [env.txt]\n  files: [sub/y.txt]\ngeneratorOptions: {labels: {g: h}, annotations: {i: j}}",
            ),
            ("a/env.txt", "A=1\n# c\n\n  B=x y \nC=\nD='q'\n"),
            ("a/sub/y.txt", "line\nline two \u{fffd}\n"),
        ],
    ),
    Case(
        "generators merged and replaced by an overlay",
        &[
            (
                "b/kustomization.yaml",
                "namePrefix: p-\nconfigMapGenerator:\n- {name: m, literals: [a=1, b=2]}\n- {name: r, literals: [a=1, b=2]}\nresources: [pod.yaml]",
            ),
            (
                "b/pod.yaml",
                "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: i, envFrom: [{configMapRef: {name: m}}, {configMapRef: {name: r}}]}]}",
            ),
            (
                "a/kustomization.yaml",
                "resources: [../b]\nconfigMapGenerator:\n- {name: m, behavior: merge, literals: [b=3, c=4]}\n- {name: r, behavior: replace, literals: [c=4]}",
            ),
        ],
    ),
    Case(
        "strategic merge patches",
        &[
            ("a/d.yaml", DEPLOYMENT),
            ("a/o.yaml", OTHERS),
            (
                "a/kustomization.yaml",
                r#"
resources: [d.yaml, o.yaml]
patchesStrategicMerge:
- p.yaml
- |
  apiVersion: example.com/v1
  kind: Widget
  metadata: {name: w}
  spec: {list: [{name: c}], m: {a: null, c: 3}}
patches:
- patch: |
    apiVersion: apps/v1
    kind: Deployment
    metadata: {name: d, finalizers: [z, y]}
    spec:
      template:
        spec:
          containers:
          - {name: b, env: [{name: N, value: n}]}
          - {name: c, image: c}
          - {name: a, env: [{name: Q, $patch: delete}, {name: T, value: t}], ports: [{containerPort: 81}]}
          volumes: [{name: v, emptyDir: {}, secret: null}]
- target: {kind: Service|Widget, name: "d|w"}
  patch: |
    apiVersion: v1
    kind: any
    metadata: {name: any, labels: {picked: "yes"}}
- patch: |
    {apiVersion: batch/v1, kind: CronJob, metadata: {name: cj}, $patch: delete}
- target: {kind: ServiceAccount}
  options: {allowNameChange: true}
  patch: |
    {apiVersion: v1, kind: ServiceAccount, metadata: {name: renamed}}
"#,
            ),
            (
                "a/p.yaml",
                "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec:\n  template:\n    spec:\n      affinity: {$patch: replace, nodeAffinity: {}}\n      initContainers: [{$patch: replace}, {name: j, image: j}]\n---\napiVersion: v1\nkind: Service\nmetadata: {name: d}\nspec: {ports: [{port: 80, name: http}, {port: 81}]}\n",
            ),
        ],
    ),
    Case(
        "JSON patches",
        &[
            ("a/d.yaml", DEPLOYMENT),
            ("a/o.yaml", OTHERS),
            (
                "a/kustomization.yaml",
                r#"
resources: [d.yaml, o.yaml]
namePrefix: p-
patches:
- target: {group: apps, version: v1, kind: Deployment, name: d}
  path: j.yaml
- target: {labelSelector: "app=none"}
  patch: '[{"op": "remove", "path": "/nothing"}]'
- target: {kind: .*Role.*}
  patch: '[{"op": "add", "path": "/metadata/labels", "value": {"rbac": "y"}}]'
patchesJson6902:
- target: {version: v1, kind: Service, name: d}
  patch: |-
    - {op: replace, path: /spec/ports/0/port, value: 8080}
"#,
            ),
            (
                "a/j.yaml",
                "- {op: replace, path: /spec/template/spec/containers/0/image, value: z}\n- {op: add, path: /spec/replicas, value: 2}\n",
            ),
        ],
    ),
    Case(
        "components",
        &[
            (
                "b/kustomization.yaml",
                "resources: [d.yaml]\nconfigMapGenerator: [{name: cfg, literals: [a=1]}]",
            ),
            ("b/d.yaml", DEPLOYMENT),
            (
                "c/kustomization.yaml",
                "apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\nresources: [o.yaml]\nconfigMapGenerator: [{name: cfg, behavior: merge, literals: [b=2]}]\npatches: [{target: {kind: Deployment}, patch: '[{\"op\": \"add\", \"path\": \"/spec/paused\", \"value\": true}]'}]\nnameSuffix: -c",
            ),
            ("c/o.yaml", OTHERS),
            (
                "a/kustomization.yaml",
                "resources: [../b]\ncomponents: [../c]\nnamePrefix: p-",
            ),
        ],
    ),
    Case(
        "two overlays of one base side by side",
        &[
            (
                "b/kustomization.yaml",
                "resources: [d.yaml]\nconfigMapGenerator: [{name: cfg, literals: [a=1]}]\nsecretGenerator: [{name: s, literals: [a=1]}]",
            ),
            ("b/d.yaml", DEPLOYMENT),
            ("x/kustomization.yaml", "resources: [../b]\nnamePrefix: x-"),
            (
                "y/kustomization.yaml",
                "resources: [../b]\nnamePrefix: y-\nnamespace: yy",
            ),
            (
                "a/kustomization.yaml",
                "resources: [../x, ../y]\nnameSuffix: -z",
            ),
        ],
    ),
    Case(
        "replacements",
        &[
            ("a/d.yaml", DEPLOYMENT),
            ("a/o.yaml", OTHERS),
            (
                "a/kustomization.yaml",
                r#"
resources: [d.yaml, o.yaml]
replacements:
- source: {kind: Service, name: d, fieldPath: "spec.ports.0.port"}
  targets:
  - select: {kind: Deployment}
    fieldPaths: ["spec.template.spec.containers.[name=a].env.[name=Q].value"]
- source: {kind: Deployment, fieldPath: "spec.template.spec.containers.[name=a].image", options: {delimiter: ":", index: 0}}
  targets:
  - select: {kind: Widget}
    fieldPaths: ["spec.version", "metadata.annotations.example\\.com/v"]
    options: {create: true}
  - select: {kind: StatefulSet}
    fieldPaths: [spec.serviceName]
    options: {delimiter: "-", index: 1}
"#,
            ),
        ],
    ),
];

fn kubectl() -> Option<PathBuf> {
    let tools = std::env::var_os("SALP_TOOLS").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/tools"),
        PathBuf::from,
    );
    Some(tools.join("bin/kubectl")).filter(|p| p.exists())
}

/// Objects by what names them.
fn sorted(mut objects: Vec<Value>) -> Vec<Value> {
    objects.sort_by_key(|o| {
        format!(
            "{} {} {} {}",
            o["apiVersion"], o["kind"], o["metadata"]["namespace"], o["metadata"]["name"]
        )
    });
    objects
}

#[test]
fn builds_are_those_of_kubectl() -> Result<()> {
    let Some(kubectl) = kubectl() else {
        return Ok(());
    };
    let mut wrong = Vec::new();
    for Case(name, files) in CASES {
        let dir = tempfile::tempdir()?;
        let mut tree = Tree::default();
        for (path, text) in *files {
            let file = dir.path().join(path);
            std::fs::create_dir_all(file.parent().context("folder")?)?;
            std::fs::write(&file, text)?;
            tree.insert(*path, text.as_bytes())?;
        }
        let output = Command::new(&kubectl)
            .arg("kustomize")
            .arg(dir.path().join("a"))
            .output()?;
        ensure!(
            output.status.success(),
            "{name}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let theirs = sorted(kustomize::documents("kubectl", &output.stdout)?);
        let mut theirs = theirs;
        theirs.iter_mut().for_each(unfold);
        let ours = match kustomize::build(&tree, "a") {
            Ok(ours) => sorted(ours),
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        let count = theirs.len().max(ours.len());
        for at in 0..count {
            if ours.get(at) != theirs.get(at) {
                wrong.push(format!(
                    "{name}:\n  ours   {}\n  theirs {}",
                    ours.get(at).unwrap_or(&Value::Null),
                    theirs.get(at).unwrap_or(&Value::Null)
                ));
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Breaks in base64 text mean nothing.
fn unfold(object: &mut Value) {
    if object["kind"] == "Secret"
        && let Some(data) = object.get_mut("data").and_then(Value::as_object_mut)
    {
        for text in data.values_mut() {
            if let Value::String(text) = text {
                text.retain(|c| c != '\n');
            }
        }
    }
}
