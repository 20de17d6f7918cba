//! Against Docker's own registry, open and with passwords, and tools that nobody here wrote.

use crate::fake::Fake;
use crate::{HELLO, quick, reference, store, store_with};
use images::{
    Auth, Credential, HostConfig, ImageKind, PullError, PullOptions, PushError, PushOptions,
    Registry, RegistryConfig, Scheme, WasmForm,
};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A program that `cargo xtask tools` fetches.
fn tool(name: &str) -> PathBuf {
    let dirs = [
        std::env::var_os("SALP_TOOLS").map(PathBuf::from),
        Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools")),
    ];
    dirs.iter()
        .flatten()
        .map(|dir| dir.join("bin").join(name))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("{name} is missing: run cargo xtask tools"))
}

struct Real {
    child: Child,
    host: String,
    _dir: tempfile::TempDir,
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Real {
    fn start(password: bool) -> Self {
        Self::start_with(password, None)
    }

    /// Starts the registry on a free port and waits for its own word that it listens.
    /// `tls` is certificate and key, PEM.
    fn start_with(password: bool, tls: Option<(String, String)>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().display();
        let mut config = format!(
            "version: 0.1\nlog: {{level: info, formatter: json}}\n\
             storage: {{filesystem: {{rootdirectory: {root}/data}}, delete: {{enabled: true}}}}\n\
             http:\n  addr: '127.0.0.1:0'\n"
        );
        if let Some((certificate, key)) = tls {
            std::fs::write(dir.path().join("cert.pem"), certificate).unwrap();
            std::fs::write(dir.path().join("key.pem"), key).unwrap();
            config += &format!("  tls: {{certificate: {root}/cert.pem, key: {root}/key.pem}}\n");
        }
        if password {
            // "me" with the password "secret", bcrypt.
            let line = "me:$2a$04$wm5kT45T7KmWxt5TQHazz.IV9LHw6IheuoOhH6fPxi4yVHS5DeUre\n";
            std::fs::write(dir.path().join("htpasswd"), line).unwrap();
            config += &format!("auth: {{htpasswd: {{realm: r, path: {root}/htpasswd}}}}\n");
        }
        let path = dir.path().join("config.yml");
        std::fs::write(&path, config).unwrap();
        let mut child = Command::new(tool("registry"))
            .arg("serve")
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = child.stderr.take().unwrap();
        let mut lines = BufReader::new(stderr).lines().map_while(Result::ok);
        let host = lines.by_ref().find_map(|line| {
            let (_, rest) = line.split_once("listening on ")?;
            let end = rest.find(['"', ','])?;
            Some(rest[..end].to_owned())
        });
        // Its later words must go somewhere, or it would block.
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            child,
            host: host.expect("the registry said where it listens"),
            _dir: dir,
        }
    }

    fn name(&self, rest: &str) -> images::Reference {
        reference(&format!("{}/{rest}", self.host))
    }
}

fn hello_file() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hello.wasm");
    std::fs::write(&path, HELLO).unwrap();
    (dir, path)
}

#[tokio::test]
async fn what_is_pushed_is_pulled() {
    let real = Real::start(false);
    let (_files, file) = hello_file();
    let (_dir, store) = store();
    let name = real.name("team/hello:1");
    let pushed = store
        .push_wasm(&file, &name, PushOptions::default())
        .await
        .unwrap();
    assert_eq!(pushed.form, WasmForm::Component);
    // The same file again gives the same manifest, and nothing is sent.
    let again = store
        .push_wasm(&file, &name, PushOptions::default())
        .await
        .unwrap();
    assert_eq!(again, pushed);
    // To another repository the file is mounted, not sent.
    let other = real.name("team/other:1");
    let mount = PushOptions {
        mount_from: Some("team/hello".to_owned()),
        ..PushOptions::default()
    };
    store.push_wasm(&file, &other, mount).await.unwrap();
    for name in [&name, &other] {
        let image = store.pull(name, PullOptions::default()).await.unwrap();
        assert_eq!(image.digest, pushed.digest);
        let ImageKind::Wasm { path, .. } = image.kind else {
            panic!()
        };
        assert_eq!(std::fs::read(path).unwrap(), HELLO);
    }
    let missing = store
        .pull(&real.name("team/hello:2"), PullOptions::default())
        .await;
    assert!(
        matches!(missing, Err(PullError::NotFound { .. })),
        "{missing:?}"
    );
    let missing = store
        .pull(&real.name("nobody/x"), PullOptions::default())
        .await;
    assert!(
        matches!(missing, Err(PullError::NotFound { .. })),
        "{missing:?}"
    );
}

#[tokio::test]
async fn passwords_are_asked_for_and_given() {
    let real = Real::start(true);
    let (_files, file) = hello_file();
    let name = real.name("hello:1");
    let registry = Registry::new(quick());
    let auths = vec![Auth {
        scope: real.host.clone(),
        credential: Credential::Basic {
            username: "me".to_owned(),
            password: "secret".to_owned(),
        },
    }];
    let refused = registry
        .push_wasm(&file, &name, PushOptions::default())
        .await;
    assert!(
        matches!(refused, Err(PushError::Unauthorized { .. })),
        "{refused:?}"
    );
    let options = PushOptions {
        auths: auths.clone(),
        ..PushOptions::default()
    };
    registry.push_wasm(&file, &name, options).await.unwrap();

    let (_dir, store) = store();
    let refused = store.pull(&name, PullOptions::default()).await;
    assert!(
        matches!(refused, Err(PullError::Unauthorized { .. })),
        "{refused:?}"
    );
    let options = PullOptions {
        auths,
        ..PullOptions::default()
    };
    store.pull(&name, options).await.unwrap();
}

#[tokio::test]
async fn copies_that_other_tools_make_are_the_same_image() {
    let skopeo = tool("skopeo");
    let real = Real::start(false);
    let (_files, file) = hello_file();
    let (_dir, store) = store();
    let name = real.name("hello:1");
    let pushed = store
        .push_wasm(&file, &name, PushOptions::default())
        .await
        .unwrap();
    let layout = tempfile::tempdir().unwrap();
    let oci = format!("oci:{}:hello", layout.path().display());
    let copy = real.name("copy:1");
    for (from, to) in [
        (format!("docker://{name}"), oci.clone()),
        (oci, format!("docker://{copy}")),
    ] {
        let done = Command::new(&skopeo)
            .args([
                "--insecure-policy",
                "copy",
                "--src-tls-verify=false",
                "--dest-tls-verify=false",
            ])
            .args([from, to])
            .stdout(Stdio::null())
            .status();
        assert!(done.unwrap().success());
    }
    let image = store.pull(&copy, PullOptions::default()).await.unwrap();
    assert_eq!(image.digest, pushed.digest);
}

#[tokio::test]
async fn what_is_no_wasm_is_not_pushed() {
    let fake = Fake::start().await;
    let registry = Registry::new(quick());
    let (files, file) = hello_file();
    let truncated = files.path().join("truncated.wasm");
    std::fs::write(&truncated, &HELLO[..HELLO.len() - 10]).unwrap();
    let text = files.path().join("text.wasm");
    std::fs::write(&text, "hello").unwrap();
    for bad in [&truncated, &text] {
        let pushed = registry
            .push_wasm(bad, &fake.name("x:1"), PushOptions::default())
            .await;
        assert!(
            matches!(pushed, Err(PushError::NotWasm { .. })),
            "{pushed:?}"
        );
    }
    let name = fake.name("x:1");
    let none = registry.push_wasm(Path::new("/none"), &name, PushOptions::default());
    assert!(matches!(none.await, Err(PushError::Read { .. })));
    let digest = images::Digest::sha256(b"");
    let pinned = name.at(digest.clone());
    let pushed = registry.push_wasm(&file, &pinned, PushOptions::default());
    assert!(matches!(pushed.await, Err(PushError::NotATag(_))));
    assert!(fake.asked().is_empty());
    registry
        .push_wasm(&file, &fake.name("x:1"), PushOptions::default())
        .await
        .unwrap();
    assert!(fake.has_blob(&images::Digest::sha256(HELLO)));
    assert!(!fake.has_blob(&digest));
}

#[tokio::test]
async fn tls_is_verified_unless_told_otherwise() {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let real = Real::start_with(
        false,
        Some((made.cert.pem(), made.signing_key.serialize_pem())),
    );
    let (files, file) = hello_file();
    let ca = files.path().join("ca.pem");
    std::fs::write(&ca, made.cert.pem()).unwrap();
    let config = |skip_tls_verify, ca_files| {
        let mut config = RegistryConfig {
            ca_files,
            ..quick()
        };
        let host = HostConfig {
            scheme: Some(Scheme::Https),
            skip_tls_verify,
            ..HostConfig::default()
        };
        config.hosts.insert(real.host.clone(), host);
        config
    };
    let name = real.name("hello:1");
    let push = PushOptions::default;
    let trusting = Registry::new(config(false, vec![ca]));
    trusting.push_wasm(&file, &name, push()).await.unwrap();
    let (_dir, store) = store_with(config(true, vec![]));
    store.pull(&name, PullOptions::default()).await.unwrap();
    let strict = Registry::new(config(false, vec![]));
    let error = strict.push_wasm(&file, &name, push()).await.unwrap_err();
    let report = error.report().to_lowercase();
    assert!(report.contains("certificate"), "{report}");
}
