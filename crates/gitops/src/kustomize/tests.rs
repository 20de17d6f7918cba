//! What is refused, and properties of a build. What is built is compared with kubectl in
//! `tests/it/kustomize.rs`.

use super::*;
use expect_test::expect;
use proptest::prelude::*;

fn tree(files: &[(&str, &str)]) -> Tree {
    let mut tree = Tree::default();
    for (path, text) in files {
        tree.insert(*path, text.as_bytes()).unwrap();
    }
    tree
}

fn refused(files: &[(&str, &str)]) -> String {
    build(&tree(files), "a").unwrap_err().to_string()
}

const MAP: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\n";

#[test]
fn what_is_refused_is_named() {
    let k = "a/kustomization.yaml";
    let cases: &[&[(&str, &str)]] = &[
        &[(k, "resources: [../../etc/passwd]")],
        &[(k, "resources: [/etc/passwd]")],
        &[(k, "resources: ['https://example.com/x?ref=v1']")],
        &[(k, "resources: [b.yaml]")],
        &[(k, "resources: [b]"), ("a/b/x.yaml", MAP)],
        &[
            (k, "resources: [../b]"),
            ("b/kustomization.yaml", "resources: [../a]"),
        ],
        &[
            (k, "resources: [m.yaml, n.yaml]"),
            ("a/m.yaml", MAP),
            ("a/n.yaml", MAP),
        ],
        &[(k, "helmCharts: [{name: x}]")],
        &[(k, "namePrefx: x")],
        &[(k, "")],
        &[(k, "resources: [m.yaml]"), ("a/m.yaml", "a: b")],
        &[
            (k, "components: [../b]"),
            ("b/kustomization.yaml", "namePrefix: x"),
        ],
        &[(k, "configMapGenerator: [{name: x, files: [../../y]}]")],
        &[(k, "configMapGenerator: [{name: x, literals: [zz]}]")],
        &[(k, "configMapGenerator: [{name: x, behavior: merge}]")],
        &[(
            k,
            "patches: [{patch: '{kind: X, apiVersion: v1, metadata: {name: yy}}'}]",
        )],
        &[(k, "replicas: [{name: x, count: 1}]")],
        &[(k, "patches: [{target: {kind: '('}, patch: '[]'}]")],
        &[
            (
                k,
                "resources: [m.yaml]\npatches: [{target: {kind: ConfigMap}, patch: '[{op: remove, path: /x}]'}]",
            ),
            ("a/m.yaml", MAP),
        ],
    ];
    let all: Vec<String> = cases.iter().map(|files| refused(files)).collect();
    expect![[r#"
        read ../../etc/passwd named by a/kustomization.yaml: it lies outside of the source
        read /etc/passwd named by a/kustomization.yaml: it lies outside of the source
        read https://example.com/x?ref=v1 named by a/kustomization.yaml: remote bases are not fetched; copy it into the source
        read a/b.yaml: no such file or folder
        read a/b: no kustomization.yaml, kustomization.yml, Kustomization there
        build a: it includes itself, or nests deeper than 32
        add ConfigMap.v1/m of a/n.yaml: an object of that name is there already
        use field helmCharts of a/kustomization.yaml: not supported
        read a/kustomization.yaml: unknown field `namePrefx`, expected one of `apiVersion`, `kind`, `metadata`, `sortOptions`, `buildMetadata`, `resources`, `bases`, `components`, `namespace`, `namePrefix`, `nameSuffix`, `labels`, `commonLabels`, `commonAnnotations`, `images`, `imageTags`, `replicas`, `patches`, `patchesStrategicMerge`, `patchesJson6902`, `replacements`, `configMapGenerator`, `secretGenerator`, `generatorOptions`
        read a/kustomization.yaml: it is empty
        read a/m.yaml: a document without apiVersion and kind is no Kubernetes object
        read b/kustomization.yaml: its kind is not Component
        read ../../y named by a/kustomization.yaml: it lies outside of the source
        generate x of a/kustomization.yaml: invalid literal source zz, expected key=value
        generate x of a/kustomization.yaml: ConfigMap.v1/x does not exist; cannot merge or replace
        patch by a/kustomization.yaml: no matches for X.v1/yy
        transform by a/kustomization.yaml: replicas: no Deployment, ReplicationController, ReplicaSet, StatefulSet is called x
        patch by a/kustomization.yaml: target "(": regex parse error:
            ^(?:()$
             ^
        error: unclosed group
        patch by a/kustomization.yaml: ConfigMap.v1/m: operation '/0' failed at path '/x': path is invalid"#]].assert_eq(&all.join("\n"));
}

#[test]
fn a_patch_of_an_older_name_still_finds_its_object() {
    let tree = tree(&[
        (
            "b/kustomization.yaml",
            "resources: [m.yaml]\nnamePrefix: p-",
        ),
        ("b/m.yaml", MAP),
        (
            "a/kustomization.yaml",
            "resources: [../b]\nnamePrefix: q-\npatches:\n- patch: '{apiVersion: v1, kind: ConfigMap, metadata: {name: m}, data: {k: v}}'\n- target: {name: p-m}\n  patch: '[{op: add, path: /data/l, value: w}]'",
        ),
    ]);
    let built = build(&tree, "a").unwrap();
    assert_eq!(
        built,
        [serde_json::json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "q-p-m"},
            "data": {"k": "v", "l": "w"},
        })]
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The same files give the same objects, whatever they are, and never a panic.
    #[test]
    fn a_build_is_deterministic(
        prefix in "[a-z]{0,3}",
        namespace in proptest::option::of("[a-z]{1,3}"),
        literals in proptest::collection::vec("[a-c]=[ -~]{0,8}", 0..4),
        labels in proptest::collection::btree_map("[a-z]{1,3}", "[a-z]{0,3}", 0..3),
        junk in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let file = serde_json::json!({
            "resources": ["m.yaml"], "namePrefix": prefix, "namespace": namespace,
            "commonLabels": labels,
            "configMapGenerator": [{"name": "g", "literals": literals}],
            "secretGenerator": [{"name": "j", "files": ["junk"]}],
        });
        let mut tree = tree(&[("a/m.yaml", MAP), ("a/kustomization.yaml", &file.to_string())]);
        tree.insert("a/junk", &junk).unwrap();
        prop_assert_eq!(build(&tree, "a"), build(&tree, "a"));
    }

    #[test]
    fn junk_is_refused_or_built_but_does_no_harm(text in "[ -~\n]{0,200}") {
        let _ = build(&tree(&[("a/kustomization.yaml", &text)]), "a");
    }
}
