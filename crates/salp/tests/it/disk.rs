//! A disk that fills while the site runs. Needs root, to mount a small one.

use crate::harness::{Registry, Site, eventually, get_ok, repo_file, salp, text};
use crate::serve::{addresses, hello};
use std::collections::HashMap;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

/// Size of the disk: enough for a site with an image, soon filled.
const DISK_MIB: u32 = 64;
/// Writes until one must have been refused: together more than the disk holds.
const WRITES_MAX: usize = 2000;

/// A small file system of its own, in memory.
struct Disk(tempfile::TempDir);

impl Disk {
    /// `None` where it can't be mounted, which is said.
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().expect("directory");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={DISK_MIB}m"), "tmpfs"])
            .arg(dir.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(dir)),
            refused => {
                #[allow(clippy::print_stderr, reason = "says what was not tested")]
                {
                    eprintln!("skipped: mounting a small disk needs root: {refused:?}");
                }
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes all that is free.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.path().join("filler")).expect("create");
        let mut block = vec![0; 1 << 20];
        while !block.is_empty() {
            if file.write_all(&block).is_err() {
                block.truncate(block.len() / 2);
            }
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.path().join("filler")).expect("remove");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _gone = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

/// What a site may complain of while its disk is full.
fn expect_full_disk(site: &Site) {
    for part in [
        "disk is full",
        "the write was not stored",
        "No space left on device",
    ] {
        site.expects(part);
    }
}

/// Text that no compression makes short.
fn noise(seed: usize) -> String {
    use sha2::Digest as _;
    (0..64)
        .map(|n| hex::encode(sha2::Sha256::digest(format!("{seed} {n}"))))
        .collect()
}

#[test]
fn a_full_disk_refuses_writes_and_nothing_else() {
    let Some(disk) = Disk::mount() else { return };
    let registry = Registry::start();
    let mut site = Site::start_in(disk.path());
    expect_full_disk(&site);
    let image = registry.push(&repo_file("examples/hello/hello.wasm"), "hello:1");
    site.apply(&hello(&image, 1));
    site.ok(&["rollout", "status", "deployment/hello", "--timeout=90s"]);
    let (cluster, _) = addresses(&site);
    let answers = || get_ok(&cluster, "/");
    eventually("the service answers", answers);

    disk.fill();
    let mut acknowledged = HashMap::new();
    let refused = (0..WRITES_MAX).find_map(|n| {
        let (name, value) = (format!("kept-{n}"), noise(n));
        let manifest = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{value: '{value}'}}\n"
        );
        let output = site.apply_output(&manifest, &["--server-side"]);
        if output.status.success() {
            acknowledged.insert(name, value);
            return None;
        }
        Some((name, text(&output)))
    });
    let (refused, said) = refused.expect("a full disk refuses writes");
    assert!(
        said.contains("the write was not stored") && said.contains("free space"),
        "{said}"
    );

    // Reads and running pods go on, and the node says what is wrong.
    assert!(site.ok(&["get", "pods", "-o", "wide"]).contains("Running"));
    assert!(
        site.fails(&["get", "configmap", &refused])
            .contains("NotFound")
    );
    answers().expect("the pod serves");
    let pressed = |want: &'static str| {
        site.ok(&[
            "wait",
            &format!("--for=condition=DiskPressure={want}"),
            "nodes",
            "--all",
            "--timeout=60s",
        ])
    };
    pressed("True");
    assert!(site.ok(&["get", "nodes"]).contains(" Ready "));

    disk.free();
    eventually("writes are taken again", || {
        let output = site.kubectl(&["create", "configmap", "after", "--from-literal=a=b"]);
        if output.status.success() {
            Ok(())
        } else {
            Err(text(&output))
        }
    });
    pressed("False");
    let check = |site: &Site| {
        let list = site.json(&["get", "configmaps"]);
        let items = list["items"].as_array().expect("items");
        for (name, value) in &acknowledged {
            let found = items
                .iter()
                .find(|i| i["metadata"]["name"] == name.as_str());
            let found = found.map(|i| i["data"]["value"].as_str() == Some(value));
            assert_eq!(found, Some(true), "{name}");
        }
        assert!(items.iter().any(|i| i["metadata"]["name"] == "after"));
        assert!(
            !items
                .iter()
                .any(|i| i["metadata"]["name"] == refused.as_str())
        );
    };
    check(&site);
    site.signal("-KILL");
    site.up(&[]);
    check(&site);
    site.ok(&["scale", "deployment/hello", "--replicas=2"]);
    site.ok(&["rollout", "status", "deployment/hello", "--timeout=90s"]);
    answers().expect("the pod serves");
}

#[test]
fn a_start_on_a_full_disk_says_so_and_pods_go_on() {
    let Some(disk) = Disk::mount() else { return };
    let registry = Registry::start();
    let mut site = Site::start_in(disk.path());
    expect_full_disk(&site);
    let image = registry.push(&repo_file("examples/hello/hello.wasm"), "hello:1");
    site.apply(&hello(&image, 1));
    site.ok(&["rollout", "status", "deployment/hello", "--timeout=90s"]);
    let (cluster, _) = addresses(&site);
    let answers = || get_ok(&cluster, "/");
    eventually("the service answers", answers);
    site.signal("-KILL");
    disk.fill();
    let port = site.port.to_string();
    let refused = |dir: &Path| {
        let dir = dir.display().to_string();
        let output = salp(&["up", "--api-port", &port, "--data-dir", &dir]);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        let error = said.lines().last().expect("an error");
        let wanted = ["error: start site in", "its disk is full", "--data-dir"];
        assert!(wanted.iter().all(|part| error.contains(part)), "{said}");
    };
    refused(&site.dir);
    answers().expect("the pod serves");
    // A first start leaves nothing running.
    let other = disk.path().join("other");
    refused(&other);
    assert!(!other.join("run/dataplane.pid").exists());
    disk.free();
    site.up(&[]);
    site.ok(&["create", "configmap", "after", "--from-literal=a=b"]);
    answers().expect("the pod serves");
}
