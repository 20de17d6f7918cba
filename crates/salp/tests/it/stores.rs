//! Sites whose objects are in etcd, and moves from one store to another.

use crate::harness::{Site, salp, text};
use testkit::Etcd;

/// Names and UIDs of the ConfigMaps of namespace `default`.
fn maps(site: &Site) -> String {
    let columns = "custom-columns=NAME:.metadata.name,UID:.metadata.uid";
    site.ok(&["get", "configmaps", "-n", "default", "-o", columns])
}

/// `salp store` that must succeed.
fn store(args: &[&str]) -> String {
    let output = salp(&[&["store"], args].concat());
    assert!(output.status.success(), "store {args:?}: {}", text(&output));
    text(&output)
}

/// A configuration that encrypts Secrets.
const ENCRYPTION: &str = "apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets]
  providers:
  - aesgcm: {keys: [{name: one, secret: MDEyMzQ1Njc4OWFiY2RlZg==}]}
";

/// What a Secret says, which only who has the key can read.
fn secret(site: &Site) -> serde_json::Value {
    site.json(&["get", "secret", "hidden"])["data"]["k"].clone()
}

#[test]
fn a_site_moves_to_etcd_and_back() {
    let etcd = Etcd::start(1).expect("etcd starts");
    let etcd_store = format!("etcd={}", etcd.config().endpoints[0]);
    let folder = tempfile::tempdir().expect("a folder");
    let encryption = folder.path().join("encryption.yaml");
    std::fs::write(&encryption, ENCRYPTION).expect("write");
    let key = [
        "--encryption-provider-config",
        &encryption.display().to_string(),
    ];
    let in_etcd = [&key[..], &["--store", &etcd_store]].concat();
    let mut site = Site::start_with(&key);
    site.ok(&[
        "create",
        "secret",
        "generic",
        "hidden",
        "--from-literal=k=v",
    ]);
    let hidden = secret(&site);
    for n in 0..20 {
        let name = format!("map-{n}");
        site.ok(&["create", "configmap", &name, "--from-literal=a=1"]);
    }
    let before = maps(&site);
    let dir = site.dir.display().to_string();
    let running = salp(&["store", "migrate", "--to", &etcd_store, "--data-dir", &dir]);
    assert!(!running.status.success());
    let said = text(&running);
    assert!(said.contains("another process has it open"), "{said}");
    site.signal("-TERM");

    let file = folder.path().join("site.zst").display().to_string();
    store(&["snapshot", &file, "--data-dir", &dir]);
    store(&["migrate", "--to", &etcd_store, "--data-dir", &dir]);
    let again = salp(&["store", "migrate", "--to", &etcd_store, "--data-dir", &dir]);
    let said = text(&again);
    assert!(
        !again.status.success() && said.contains("has objects already"),
        "{said}"
    );

    site.up(&in_etcd);
    assert_eq!((maps(&site), secret(&site)), (before, hidden.clone()));
    site.ok(&["create", "configmap", "in-etcd"]);
    let before_kill = maps(&site);
    site.signal("-KILL");
    site.up(&in_etcd);
    assert_eq!(maps(&site), before_kill);
    site.signal("-TERM");

    std::fs::remove_dir_all(site.dir.join("store")).expect("the old objects go");
    let back = [
        "migrate",
        "--store",
        &etcd_store,
        "--to",
        "embedded",
        "--data-dir",
    ];
    store(&[&back[..], &[&dir]].concat());
    site.up(&key);
    assert_eq!((maps(&site), secret(&site)), (before_kill, hidden));

    let other = folder.path().join("other").display().to_string();
    store(&["restore", &file, "--data-dir", &other]);
    let restored = folder.path().join("again.zst").display().to_string();
    let told = store(&["snapshot", &restored, "--data-dir", &other]);
    assert!(told.contains(" objects at revision "), "{told}");
}

#[test]
fn an_etcd_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path().display().to_string();
    let wrong = salp(&["up", "--store", "etcd=10.0.0.1:2379", "--data-dir", &dir]);
    let said = text(&wrong);
    assert!(!wrong.status.success());
    assert!(said.contains("begin it with https:// or http://"), "{said}");
}
