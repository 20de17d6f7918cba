//! Pulling from a registry that misbehaves.

use crate::fake::{Asked, Fake, Trick, big_wasm, image};
use crate::{HELLO, quick, reference, store, store_with};
use http::Method;
use images::{
    Auth, Credential, Digest, HostConfig, Image, ImageKind, Policy, Progress, PullError,
    PullOptions, RegistryConfig, Step, WasmForm,
};
use serde_json::json;
use std::sync::{Arc, Mutex};

fn policy(policy: Policy) -> PullOptions {
    PullOptions {
        policy,
        ..PullOptions::default()
    }
}

fn wasm_bytes(image: &Image) -> Vec<u8> {
    let ImageKind::Wasm { digest, path, .. } = &image.kind else {
        panic!("not Wasm: {image:?}");
    };
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(Digest::sha256(&bytes), *digest);
    bytes
}

fn is_layer(asked: &Asked, bytes: &[u8]) -> bool {
    asked.method == Method::GET && asked.path.ends_with(Digest::sha256(bytes).as_str())
}

#[tokio::test]
async fn policies_ask_as_often_as_they_say() {
    let (fake, (dir, store)) = (Fake::start().await, store());
    let name = fake.name("app:1");
    let never = store.pull(&name, policy(Policy::Never)).await.unwrap_err();
    assert_eq!(never.reason(), "ErrImageNeverPull");
    assert_eq!(
        never.to_string(),
        format!("Container image \"{name}\" is not present with pull policy of Never")
    );
    assert!(fake.asked().is_empty());

    let digest = fake.artifact("1", HELLO);
    let image = store
        .pull(&name, policy(Policy::IfNotPresent))
        .await
        .unwrap();
    assert_eq!(image.digest, digest);
    assert_eq!(image.id(), format!("{}/app@{digest}", fake.addr));
    assert_eq!(wasm_bytes(&image), HELLO);
    assert!(matches!(
        image.kind,
        ImageKind::Wasm {
            form: WasmForm::Component,
            ..
        }
    ));
    fake.asked();

    for there in [Policy::IfNotPresent, Policy::Never] {
        assert_eq!(store.pull(&name, policy(there)).await.unwrap(), image);
    }
    assert!(fake.asked().is_empty());

    // A tag that stayed costs one HEAD; one that moved is fetched.
    assert_eq!(
        store.pull(&name, policy(Policy::Always)).await.unwrap(),
        image
    );
    assert_eq!(fake.asked_short(), ["HEAD manifests/1"]);
    let moved = fake.artifact("1", big_wasm(1000));
    let image = store
        .pull(&name, policy(Policy::IfNotPresent))
        .await
        .unwrap();
    assert_eq!(image.digest, digest);
    let image = store.pull(&name, policy(Policy::Always)).await.unwrap();
    assert_eq!(image.digest, moved);

    // By digest the registry is not asked at all, and the old content is still there.
    fake.asked();
    let old = store
        .pull(&name.at(digest.clone()), policy(Policy::Always))
        .await
        .unwrap();
    assert_eq!(old.digest, digest);
    assert!(fake.asked().is_empty());

    // Another process sees the same.
    let again = images::ImageStore::open(dir.path()).unwrap();
    assert_eq!(again.get(&name, None).unwrap(), Some(image));
    assert_eq!(again.list().unwrap().len(), 2);
}

#[tokio::test]
async fn files_are_for_this_user_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let (fake, (dir, store)) = (Fake::start().await, store());
    fake.artifact("1", HELLO);
    let image = store
        .pull(&fake.name("app:1"), PullOptions::default())
        .await
        .unwrap();
    let ImageKind::Wasm { path, .. } = image.kind else {
        panic!()
    };
    for (path, mode) in [
        (path, 0o600),
        (dir.path().join("index.json"), 0o600),
        (dir.path().join("blobs/sha256"), 0o700),
        (store.compiled_dir(), 0o700),
    ] {
        let found = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{}", path.display());
    }
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_stopped() {
    let (fake, (_dir, store)) = (Fake::start().await, store());
    let wasm = big_wasm(1 << 20);
    fake.artifact("1", wasm.clone());
    let (bytes, nine_tenths) = (wasm.clone(), wasm.len() * 9 / 10);
    fake.rule(move |asked, before| {
        (is_layer(asked, &bytes) && before == 0).then_some(Trick::DropAfter(nine_tenths))
    });
    let image = store
        .pull(&fake.name("app:1"), PullOptions::default())
        .await
        .unwrap();
    assert_eq!(wasm_bytes(&image), wasm);
    let asked = fake.asked();
    let ranges: Vec<_> = asked
        .iter()
        .filter(|asked| is_layer(asked, &wasm))
        .map(|asked| asked.range.clone())
        .collect();
    assert_eq!(ranges.len(), 2, "{ranges:?}");
    let from = ranges[1]
        .as_deref()
        .unwrap()
        .strip_prefix("bytes=")
        .unwrap();
    let from: usize = from.strip_suffix('-').unwrap().parse().unwrap();
    assert!(from > 0 && from <= nine_tenths, "{from}");
}

#[tokio::test]
async fn what_one_pull_left_the_next_one_uses() {
    let (fake, (_dir, store)) = (Fake::start().await, store());
    let wasm = big_wasm(300_000);
    fake.artifact("1", wasm.clone());
    let bytes = wasm.clone();
    // Without ever a byte more.
    fake.rule(move |asked, _| {
        is_layer(asked, &bytes).then_some(if asked.range.is_none() {
            Trick::DropAfter(200_000)
        } else {
            Trick::DropAfter(0)
        })
    });
    let name = fake.name("app:1");
    let error = store.pull(&name, PullOptions::default()).await.unwrap_err();
    assert!(matches!(error, PullError::Network { .. }), "{error:?}");
    fake.good();
    fake.asked();
    store.pull(&name, PullOptions::default()).await.unwrap();
    let asked = fake.asked();
    let layer = asked.iter().find(|asked| is_layer(asked, &wasm)).unwrap();
    assert!(layer.range.is_some());
}

#[tokio::test]
async fn a_registry_without_ranges_and_a_bad_rest_start_over() {
    let (fake, (dir, store)) = (Fake::start().await, store());
    let wasm = big_wasm(200_000);
    fake.artifact("1", wasm.clone());
    let digest = Digest::sha256(&wasm);
    let partial = dir.path().join("partial").join(digest.hex());
    let name = fake.name("app:1");
    // What is left is of another content, of the same length, or longer.
    for rest in [vec![7; 1000], vec![7; wasm.len()], vec![7; wasm.len() + 5]] {
        std::fs::write(&partial, rest).unwrap();
        let image = store.pull(&name, PullOptions::default()).await.unwrap();
        assert_eq!(wasm_bytes(&image), wasm);
        assert!(!partial.exists());
        std::fs::remove_file(dir.path().join("blobs/sha256").join(digest.hex())).unwrap();
    }
    std::fs::write(&partial, &wasm[..1000]).unwrap();
    fake.rule(|_, _| Some(Trick::NoRange));
    let image = store.pull(&name, PullOptions::default()).await.unwrap();
    assert_eq!(wasm_bytes(&image), wasm);
}

#[tokio::test]
async fn content_that_is_not_its_digest_is_refused() {
    let (fake, (dir, store)) = (Fake::start().await, store());
    let wasm = big_wasm(5000);
    fake.artifact("1", wasm.clone());
    for trick in [Trick::Corrupt, Trick::TooLong] {
        let (bytes, trick) = (wasm.clone(), trick);
        fake.rule(move |asked, _| is_layer(asked, &bytes).then(|| trick.clone()));
        let error = store
            .pull(&fake.name("app:1"), PullOptions::default())
            .await;
        let error = error.unwrap_err();
        assert!(
            matches!(
                error,
                PullError::DigestMismatch { .. } | PullError::Registry { .. }
            ),
            "{error:?}"
        );
        assert_eq!(error.reason(), "ErrImagePull");
    }
    let digest = Digest::sha256(&wasm);
    assert!(!dir.path().join("blobs/sha256").join(digest.hex()).exists());
    fake.rule(|asked, _| asked.path.contains("/manifests/").then_some(Trick::Corrupt));
    let error = store
        .pull(&fake.name("app:1"), PullOptions::default())
        .await
        .unwrap_err();
    assert!(
        matches!(error, PullError::DigestMismatch { .. }),
        "{error:?}"
    );
    // A name with a digest is held to it.
    fake.rule(|asked, _| {
        asked
            .path
            .contains("/manifests/")
            .then_some(Trick::Bytes("{}"))
    });
    let pinned = fake.name("app").at(Digest::sha256(b"other"));
    let error = store
        .pull(&pinned, PullOptions::default())
        .await
        .unwrap_err();
    assert!(
        matches!(error, PullError::DigestMismatch { .. }),
        "{error:?}"
    );
    assert!(store.list().unwrap().is_empty());
}

#[tokio::test]
async fn a_stalled_registry_is_given_up() {
    let (fake, (_dir, store)) = (Fake::start().await, store());
    fake.artifact("1", HELLO);
    for trick in [Trick::Silence, Trick::StallAfter(100)] {
        fake.rule(move |asked, _| asked.path.contains("/blobs/").then(|| trick.clone()));
        let error = store
            .pull(&fake.name("app:1"), PullOptions::default())
            .await;
        assert!(matches!(error, Err(PullError::Network { .. })), "{error:?}");
    }
}

#[tokio::test]
async fn nobody_listening_is_a_network_error_with_its_cause() {
    let (_dir, store) = store();
    // Bound and never listening: connections are refused.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let name = reference(&format!("{}/app:1", socket.local_addr().unwrap()));
    let error = store.pull(&name, PullOptions::default()).await.unwrap_err();
    assert!(matches!(error, PullError::Network { .. }));
    let report = error.report();
    assert!(report.starts_with(&format!("failed to pull and unpack image \"{name}\"")));
    assert!(
        report.to_lowercase().contains("connection refused"),
        "{report}"
    );
}

#[tokio::test]
async fn a_busy_registry_is_asked_again() {
    let (fake, (_dir, store)) = (Fake::start().await, store());
    fake.artifact("1", HELLO);
    fake.rule(|_, before| {
        let busy = |code| Trick::Status(code, vec![("retry-after", "0".to_owned())]);
        [429, 503].get(before).map(|code| busy(*code))
    });
    store
        .pull(&fake.name("app:1"), PullOptions::default())
        .await
        .unwrap();
    fake.rule(|_, _| Some(Trick::Status(500, vec![])));
    let error = store
        .pull(&fake.name("other:1"), PullOptions::default())
        .await;
    let error = error.unwrap_err();
    assert!(matches!(error, PullError::Registry { .. }), "{error:?}");
    assert!(error.report().contains("500"), "{}", error.report());
}

#[tokio::test]
async fn what_is_not_there_reads_as_users_know_it() {
    let (fake, (_dir, store)) = (Fake::start().await, store());
    let name = fake.name("none:1");
    let error = store.pull(&name, PullOptions::default()).await.unwrap_err();
    assert_eq!(
        error.report(),
        format!(
            "failed to pull and unpack image \"{name}\": failed to resolve reference \
             \"{name}\": {name}: not found"
        )
    );
    assert_eq!(error.reason(), "ErrImagePull");
}

fn basic(username: &str) -> Auth {
    Auth {
        scope: "127.0.0.1:*".to_owned(),
        credential: Credential::Basic {
            username: username.to_owned(),
            password: "p".to_owned(),
        },
    }
}

/// Challenges everything that has no token, and gives tokens to `good` alone.
fn guard(fake: &Fake, expire_once: bool) {
    let realm = format!(
        "Bearer realm=\"http://{}/token\",service=\"fake\",scope=\"repository:app:pull\"",
        fake.addr
    );
    // "good:p"
    let good = "Basic Z29vZDpw";
    fake.rule(move |asked, before| {
        if asked.path.starts_with("/token") {
            return Some(match &asked.authorization {
                Some(authorization) if authorization == good => {
                    Trick::Bytes(r#"{"token":"t","expires_in":60}"#)
                }
                _ => Trick::Status(401, vec![]),
            });
        }
        let expired = expire_once && asked.path.contains("/blobs/") && before == 0;
        let refused = asked.authorization.as_deref() != Some("Bearer t") || expired;
        refused.then(|| Trick::Status(401, vec![("www-authenticate", realm.clone())]))
    });
}

#[tokio::test]
async fn credentials_are_tried_one_after_the_other() {
    let (fake, (_dir, store)) = (Fake::start().await, store());
    fake.artifact("1", HELLO);
    let name = fake.name("app:1");
    let pull = |users: &[&str]| {
        let options = PullOptions {
            policy: Policy::Always,
            auths: users
                .iter()
                .map(|user| Auth {
                    scope: fake.addr.to_string(),
                    ..basic(user)
                })
                .collect(),
            ..PullOptions::default()
        };
        store.pull(&name, options)
    };
    guard(&fake, false);
    for refused in [&[][..], &["bad"]] {
        let error = pull(refused).await.unwrap_err();
        assert!(matches!(error, PullError::Unauthorized { .. }), "{error:?}");
        assert!(!format!("{error:?} {}", error.report()).contains("YmFk"));
    }
    fake.asked();
    pull(&["bad", "good"]).await.unwrap();
    let token = fake.asked();
    let token = token
        .iter()
        .find(|asked| asked.path.starts_with("/token"))
        .unwrap();
    assert!(token.path.contains("service=fake"), "{}", token.path);
    assert!(
        token.path.contains("scope=repository%3Aapp%3Apull"),
        "{}",
        token.path
    );

    // A token that runs out is renewed, in the middle of a pull.
    fake.artifact("1", big_wasm(2000));
    guard(&fake, true);
    pull(&["good"]).await.unwrap();
}

#[tokio::test]
async fn secrets_stay_where_they_belong() {
    // A challenge that sends the password to another machine in the clear.
    let (fake, (_dir, store)) = (Fake::start().await, store());
    fake.artifact("1", HELLO);
    fake.rule(|_, _| {
        let realm = "Bearer realm=\"http://192.0.2.1/token\"".to_owned();
        Some(Trick::Status(401, vec![("www-authenticate", realm)]))
    });
    let options = PullOptions {
        auths: vec![Auth {
            scope: fake.addr.to_string(),
            ..basic("good")
        }],
        ..PullOptions::default()
    };
    let error = store.pull(&fake.name("app:1"), options).await.unwrap_err();
    assert!(error.report().contains("without TLS"), "{}", error.report());
}

#[tokio::test]
async fn many_pulls_at_once_fetch_each_blob_once() {
    let (fake, (_dir, store)) = (Fake::start().await, store());
    let wasm = big_wasm(600_000);
    fake.artifact("1", wasm.clone());
    let name = fake.name("app:1");
    let pulls = (0..16).map(|_| store.pull(&name, PullOptions::default()));
    for image in futures::future::join_all(pulls).await {
        assert_eq!(wasm_bytes(&image.unwrap()).len(), wasm.len());
    }
    let asked = fake.asked();
    let layer = asked.iter().filter(|asked| is_layer(asked, &wasm));
    assert_eq!(layer.count(), 1);
}

#[tokio::test]
async fn two_processes_share_a_download() {
    let (fake, (dir, store)) = (Fake::start().await, store());
    let other = images::ImageStore::open_with(dir.path(), quick()).unwrap();
    let wasm = big_wasm(600_000);
    fake.artifact("1", wasm.clone());
    let name = fake.name("app:1");
    let (one, two) = tokio::join!(
        store.pull(&name, PullOptions::default()),
        other.pull(&name, PullOptions::default())
    );
    assert_eq!(one.unwrap(), two.unwrap());
    let asked = fake.asked();
    assert_eq!(
        asked.iter().filter(|asked| is_layer(asked, &wasm)).count(),
        1
    );
}

#[tokio::test]
async fn a_dropped_pull_leaves_its_bytes_for_the_next() {
    let (fake, (dir, store)) = (Fake::start().await, store_with(RegistryConfig::default()));
    let wasm = big_wasm(2 << 20);
    fake.artifact("1", wasm.clone());
    let bytes = wasm.clone();
    fake.rule(move |asked, _| is_layer(asked, &bytes).then_some(Trick::StallAfter(1 << 20)));
    let name = fake.name("app:1");
    struct Half(tokio::sync::Notify);
    impl Progress for Half {
        fn step(&self, step: Step<'_>) {
            if matches!(step, Step::Blob { done_bytes, total_bytes, .. }
                if done_bytes >= 1 << 19 && done_bytes < total_bytes)
            {
                self.0.notify_one();
            }
        }
    }
    let half = Arc::new(Half(tokio::sync::Notify::new()));
    let options = PullOptions {
        progress: Some(half.clone()),
        ..PullOptions::default()
    };
    tokio::select! {
        done = store.pull(&name, options) => panic!("{done:?}"),
        () = half.0.notified() => {}
    }
    let partial = dir.path().join("partial").join(Digest::sha256(&wasm).hex());
    assert!(std::fs::metadata(partial).unwrap().len() >= 1 << 19);
    fake.good();
    fake.asked();
    store.pull(&name, PullOptions::default()).await.unwrap();
    let asked = fake.asked();
    let layer = asked.iter().find(|asked| is_layer(asked, &wasm)).unwrap();
    assert!(layer.range.is_some());
}

#[tokio::test]
async fn sizes_are_bounded_before_anything_is_fetched() {
    let fake = Fake::start().await;
    let (_dir, store) = store_with(RegistryConfig {
        layer_bytes_max: 10_000,
        image_bytes_max: 15_000,
        ..quick()
    });
    let config = fake.layer("application/vnd.wasm.config.v0+json", "{}");
    let layer = fake.layer("application/wasm", big_wasm(10_001));
    fake.manifest("1", &image(config.clone(), &[layer]));
    let error = store
        .pull(&fake.name("app:1"), PullOptions::default())
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            PullError::TooLarge {
                what: "layer",
                bytes_max: 10_000,
                ..
            }
        ),
        "{error:?}"
    );
    let mut endless = image(config, &[]);
    endless["annotations"] = json!({"x": "y".repeat(5 << 20)});
    fake.manifest("2", &endless);
    let error = store
        .pull(&fake.name("app:2"), PullOptions::default())
        .await
        .unwrap_err();
    assert!(error.report().contains("longer than"), "{}", error.report());
}

#[tokio::test]
async fn mirrors_come_first_and_the_registry_last() {
    let (mirror, upstream) = (Fake::start().await, Fake::start().await);
    let digest = mirror.artifact("1", HELLO);
    upstream.artifact("2", big_wasm(100));
    let mut config = quick();
    config.hosts.insert(
        upstream.addr.to_string(),
        HostConfig {
            mirrors: vec![mirror.addr.to_string()],
            ..HostConfig::default()
        },
    );
    let (_dir, store) = store_with(config);
    let image = store
        .pull(&upstream.name("app:1"), PullOptions::default())
        .await
        .unwrap();
    assert_eq!(image.digest, digest);
    assert_eq!(image.reference, upstream.name("app:1"));
    assert!(upstream.asked().is_empty());
    let asked = mirror.asked();
    assert!(
        asked.iter().all(|asked| asked
            .path
            .ends_with(&format!("?ns={}", upstream.addr).replace(':', "%3A"))),
        "{asked:?}"
    );
    store
        .pull(&upstream.name("app:2"), PullOptions::default())
        .await
        .unwrap();
    assert!(!upstream.asked().is_empty());
}

#[tokio::test]
async fn progress_tells_the_way() {
    #[derive(Default)]
    struct Log(Mutex<Vec<String>>);
    impl Progress for Log {
        fn step(&self, step: Step<'_>) {
            let word = match step {
                Step::Resolving => "resolving".to_owned(),
                Step::Resolved { total_bytes, .. } => format!("of {total_bytes}"),
                Step::Blob {
                    done_bytes,
                    total_bytes,
                    ..
                } => format!("{done_bytes}/{total_bytes}"),
                Step::Unpacking => "unpacking".to_owned(),
                Step::Done => "done".to_owned(),
            };
            self.0.lock().unwrap().push(word);
        }
    }
    let (fake, (_dir, store)) = (Fake::start().await, store());
    fake.artifact("1", big_wasm(1000));
    let log = Arc::new(Log::default());
    let options = PullOptions {
        progress: Some(log.clone()),
        ..PullOptions::default()
    };
    store.pull(&fake.name("app:1"), options).await.unwrap();
    let log = log.0.lock().unwrap();
    assert_eq!(*log, ["resolving", "2/2", "of 1000", "1000/1000", "done"]);
}

/// Needs root, for a small file system of its own.
#[allow(clippy::print_stderr, reason = "a skipped test says so")]
#[tokio::test]
async fn a_full_disk_is_named_and_leaves_room() {
    let dir = tempfile::tempdir().unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=512k", "tmpfs"])
        .arg(dir.path())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("skipped: mounting a small file system needs root");
        return;
    }
    struct Unmount<'a>(&'a std::path::Path);
    impl Drop for Unmount<'_> {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount").arg(self.0).status();
        }
    }
    let _unmount = Unmount(dir.path());
    let store = images::ImageStore::open_with(dir.path(), quick()).unwrap();
    let fake = Fake::start().await;
    fake.artifact("1", big_wasm(2 << 20));
    let error = store
        .pull(&fake.name("app:1"), PullOptions::default())
        .await
        .unwrap_err();
    let PullError::Disk { source, .. } = &error else {
        panic!("{error:?}")
    };
    assert!(source.is_full());
    assert!(
        error.to_string().ends_with("no space left on device"),
        "{error}"
    );
    // Smaller images still fit.
    fake.artifact("2", HELLO);
    store
        .pull(&fake.name("app:2"), PullOptions::default())
        .await
        .unwrap();
}
