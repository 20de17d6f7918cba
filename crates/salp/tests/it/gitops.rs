//! A site that follows a real Git repository, as `examples/gitops` tells.

use crate::harness::{Registry, Site, eventually, get_ok, repo_file, text};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A repository with `examples/gitops/shop` in it.
struct Repository(tempfile::TempDir);

impl Repository {
    fn new(image: &str) -> Self {
        let repository = Self(tempfile::tempdir().expect("directory"));
        repository.git(&["init", "--quiet", "--initial-branch=main"]);
        std::fs::create_dir_all(repository.shop()).expect("directory");
        for name in ["kustomization.yaml", "page.yaml"] {
            let file = repo_file(&format!("examples/gitops/shop/{name}"));
            let text = std::fs::read_to_string(file).expect("example");
            repository.write(name, &text.replace("localhost:5000/hello:1", image));
        }
        repository.commit();
        repository
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn shop(&self) -> PathBuf {
        self.path().join("examples/gitops/shop")
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.shop().join(name), text).expect("write");
    }

    fn edit(&self, name: &str, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.shop().join(name)).expect("read");
        assert!(text.contains(from), "{text}");
        self.write(name, &text.replace(from, to));
    }

    /// Commits what is in the folder; the revision as conditions tell it.
    fn commit(&self) -> String {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--message", "change"]);
        let id = self.git(&["rev-parse", "HEAD"]);
        format!("main@sha1:{}", id.trim())
    }

    fn git(&self, args: &[&str]) -> String {
        let out = Command::new("git")
            .current_dir(self.path())
            .args(["-c", "user.name=shop", "-c", "user.email=shop@example.com"])
            .args(args)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .output()
            .expect("run git");
        assert!(out.status.success(), "git {args:?}: {}", text(&out));
        String::from_utf8(out.stdout).expect("text")
    }
}

/// Commits are followed: made, changed, pruned; what does not build changes nothing and is told.
#[test]
fn a_site_follows_a_repository() {
    let (registry, site) = (Registry::start(), Site::start());
    let image = registry.push(&repo_file("examples/hello/hello.wasm"), "hello:1");
    let repository = Repository::new(&image);
    let follow = std::fs::read_to_string(repo_file("examples/gitops/follow.yaml")).expect("read");
    let path = repository.path().display().to_string();
    site.apply(&follow.replace("https://git.example.com/shop.git", &path));
    let followed = ["wait", "--for=condition=Ready", "ks/shop", "--timeout=60s"];
    site.ok(&followed);
    let page = || site.json(&["get", "deployment", "page"]);
    assert_eq!(page()["spec"]["replicas"], 2, "{:?}", page());
    let service = site.json(&["get", "service", "page"]);
    let address = format!("{}:80", service["spec"]["clusterIP"].as_str().expect("IP"));
    eventually("the page answers", || get_ok(&address, "/"));
    let look = ["gitops", "reconcile", "ks", "shop", "--with-source"];

    // A commit is followed when told to look, before the interval is over.
    repository.edit("page.yaml", "${replicas:=1}", "1");
    let revision = repository.commit();
    let out = site.salp(&look);
    assert!(out.status.success(), "{}", text(&out));
    assert_eq!(page()["spec"]["replicas"], 1);
    let status = site.json(&["get", "kustomization", "shop"])["status"].clone();
    assert_eq!(status["lastAppliedRevision"], revision.as_str(), "{status}");

    // What does not build changes nothing, and says why.
    repository.edit("kustomization.yaml", "page.yaml", "no.yaml");
    repository.commit();
    site.expects("no.yaml");
    let out = site.salp(&look);
    assert!(!out.status.success(), "{}", text(&out));
    assert!(text(&out).contains("no.yaml"), "{}", text(&out));
    assert_eq!(page()["spec"]["replicas"], 1);
    let out = text(&site.salp(&["gitops", "get"]));
    let line = out.lines().find(|l| l.contains("kustomization/shop"));
    assert!(line.is_some_and(|l| l.contains("no.yaml")), "{out}");

    // A working tree's changes can be seen before they are pushed.
    repository.edit("kustomization.yaml", "no.yaml", "page.yaml");
    repository.edit("page.yaml", "port: 80", "port: 81");
    let diff = site.salp(&["gitops", "diff", "shop", "--path", &path]);
    assert_eq!(diff.status.code(), Some(1), "{}", text(&diff));
    let said = text(&diff);
    assert!(said.contains("Service/default/page configured"), "{said}");

    // What leaves the folder leaves the site, and nothing else does.
    site.ok(&["create", "configmap", "mine"]);
    let text = std::fs::read_to_string(repository.shop().join("page.yaml")).expect("read");
    let (deployment, _service) = text.split_once("---\n").expect("two documents");
    repository.write("page.yaml", deployment);
    repository.commit();
    let out = site.salp(&look);
    assert!(out.status.success(), "{out:?}");
    assert!(
        site.fails(&["get", "service", "page"])
            .contains("not found")
    );
    site.ok(&["get", "deployment/page", "configmap/mine"]);

    // Suspended, nothing is followed.
    let out = site.salp(&["gitops", "suspend", "ks", "shop"]);
    assert!(out.status.success(), "{out:?}");
    site.ok(&["delete", "deployment", "page"]);
    let out = site.salp(&["gitops", "resume", "ks", "shop"]);
    assert!(out.status.success(), "{out:?}");
    eventually("it is made again", || {
        let out = site.kubectl(&["get", "deployment", "page"]);
        out.status.success().then_some(()).ok_or("not there".into())
    });
}

/// An archive of files as `flux push artifact` packs it.
fn packed(files: &[(&str, &str)]) -> Vec<u8> {
    let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut archive = tar::Builder::new(gzip);
    for (path, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        archive
            .append_data(&mut header, path, text.as_bytes())
            .expect("archive");
    }
    let gzip = archive.into_inner().expect("archive");
    gzip.finish().expect("gzip")
}

/// Pushes it, as a version.
fn push(registry: &Registry, version: &str, files: &[(&str, &str)]) {
    let config = ("application/vnd.cncf.flux.config.v1+json", b"{}".to_vec());
    let layer = "application/vnd.cncf.flux.content.v1.tar+gzip";
    registry.put(
        &format!("shop:{version}"),
        config,
        &[(layer, packed(files))],
    );
}

fn greeting(text: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: greeting}}\ndata: {{text: {text}}}\n"
    )
}

/// Artifacts of a registry are followed by version; while it is away, and over a restart, the last
/// one is kept and what drifts from it is corrected.
#[test]
fn a_site_follows_an_artifact_and_keeps_it_while_the_registry_is_away() {
    let (registry, mut site) = (Registry::start(), Site::start());
    let kustomization = "resources: [all.yaml]\nnameSuffix: -of-shop\n";
    let folder = |text: &str| {
        [
            ("deploy/kustomization.yaml", kustomization.to_owned()),
            ("deploy/all.yaml", greeting(text)),
        ]
    };
    let release = |version: &str, text: &str| {
        let files = folder(text);
        let files: Vec<_> = files
            .iter()
            .map(|(path, text)| (*path, text.as_str()))
            .collect();
        push(&registry, version, &files);
    };
    release("1.0.0", "hello");
    let address = registry.address.clone();
    let kinds = ["get", "ocirepositories,kustomizations"];
    eventually("the kinds are served", || {
        let out = site.kubectl(&kinds);
        out.status.success().then_some(()).ok_or_else(|| text(&out))
    });
    site.apply(&format!(
        "apiVersion: source.toolkit.fluxcd.io/v1\nkind: OCIRepository\nmetadata: {{name: shop}}\nspec:\n  interval: 1s\n  url: oci://{address}/shop\n  insecure: true\n  ref: {{semver: '>=1.0.0'}}\n---\napiVersion: kustomize.toolkit.fluxcd.io/v1\nkind: Kustomization\nmetadata: {{name: shop}}\nspec:\n  interval: 1s\n  path: ./deploy\n  prune: true\n  sourceRef: {{kind: OCIRepository, name: shop}}\n"
    ));
    let map = ["get", "configmap", "greeting-of-shop"];
    let says = |site: &Site, wanted: &str| {
        eventually(&format!("it says {wanted}"), || {
            let out = site.kubectl(&[&map[..], &["-o", "jsonpath={.data.text}"]].concat());
            let said = text(&out);
            (said == wanted).then_some(()).ok_or(said)
        });
    };
    says(&site, "hello");
    release("1.1.0", "welcome");
    says(&site, "welcome");
    let status = site.json(&["get", "ocirepository", "shop"])["status"].clone();
    let revision = status["artifact"]["revision"].as_str().expect("revision");
    assert!(revision.starts_with("1.1.0@sha256:"), "{status}");

    // Nobody can be asked; the site starts again all the same.
    registry.stop();
    site.expects("shop");
    site.signal("-KILL");
    site.up(&[]);
    site.ok(&["delete", "configmap", "greeting-of-shop"]);
    says(&site, "welcome");
    site.wait_for(
        &["get", "ocirepository", "shop"],
        "/status/conditions",
        |c| {
            let ready = c
                .as_array()
                .and_then(|c| c.iter().find(|c| c["type"] == "Ready"));
            ready.is_some_and(|c| c["status"] == "False" && c["reason"] == "OCIArtifactPullFailed")
        },
    );
    let status = site.json(&["get", "ocirepository", "shop"])["status"].clone();
    assert_eq!(status["artifact"]["revision"], revision);
}

/// The user's folder of manifests is applied at start and as it changes.
#[test]
fn a_folder_of_manifests_is_applied() {
    let mut site = Site::new();
    let file = |name: &str| site.manifests().join(name);
    let (map, other) = (file("greeting.yaml"), file("more/other.yaml"));
    std::fs::create_dir_all(other.parent().expect("folder")).expect("folder");
    std::fs::write(&map, greeting("hello")).expect("write");
    std::fs::write(&other, greeting("more").replace("greeting", "other")).expect("write");
    site.up(&[]);
    let says = |name: &str, wanted: &str| {
        eventually(&format!("{name} says {wanted}"), || {
            let out = site.kubectl(&["get", "configmap", name, "-o", "jsonpath={.data.text}"]);
            let said = text(&out);
            said.contains(wanted).then_some(()).ok_or(said)
        });
    };
    says("greeting", "hello");
    says("other", "more");
    std::fs::write(&map, greeting("welcome")).expect("write");
    std::fs::remove_file(&other).expect("remove");
    says("greeting", "welcome");
    says("other", "NotFound");
}
