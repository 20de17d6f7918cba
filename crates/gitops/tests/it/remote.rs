//! Repositories elsewhere: over HTTP with the real `git http-backend`, by a link that breaks,
//! over SSH with a program in the place of `ssh`, with signatures.

use crate::site::{Repository, Site, config_map, map, ready, repository};
use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::AsyncWriteExt as _;

/// `git http-backend` behind HTTP, with a password.
struct Server {
    url: String,
    link: Arc<Link>,
}

/// The way to it.
struct Link {
    /// Bytes that were sent.
    sent: AtomicUsize,
    /// Answers longer than this break off after as many bytes.
    breaks_after: AtomicUsize,
    broken: AtomicUsize,
}

impl Server {
    async fn start(root: &Path, scope: &lifecycle::Scope) -> Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let root = root.to_owned();
        let link = Arc::new(Link {
            sent: AtomicUsize::new(0),
            breaks_after: AtomicUsize::new(usize::MAX),
            broken: AtomicUsize::new(0),
        });
        let by = link.clone();
        let inner = scope.clone();
        scope.spawn_cancellable(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (root, link) = (root.clone(), by.clone());
                inner.spawn_cancellable(async move {
                    let service = hyper::service::service_fn(move |request| {
                        answer(root.clone(), link.clone(), request)
                    });
                    let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Ok(Self { url, link })
    }
}

async fn answer(
    root: PathBuf,
    link: Arc<Link>,
    request: Request<Incoming>,
) -> Result<Response<BoxBody<Bytes, std::io::Error>>> {
    let wanted = base64::engine::general_purpose::STANDARD.encode("me:secret");
    let authorized = request
        .headers()
        .get("authorization")
        .is_some_and(|v| v.as_bytes() == format!("Basic {wanted}").as_bytes());
    if !authorized {
        let refused = Response::builder().status(StatusCode::UNAUTHORIZED);
        let nothing = Full::default().map_err(|never| match never {});
        return Ok(refused.body(nothing.boxed())?);
    }
    let header = |name: &str| {
        let value = request.headers().get(name);
        value
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default()
            .to_owned()
    };
    let mut child = tokio::process::Command::new("git")
        .args(["-c", "safe.directory=*", "http-backend"])
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_COUNT", "2")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .env("GIT_CONFIG_KEY_1", "uploadpack.allowAnySHA1InWant")
        .env("GIT_CONFIG_VALUE_1", "true")
        .env("GIT_PROTOCOL", header("git-protocol"))
        .env("REQUEST_METHOD", request.method().as_str())
        .env("PATH_INFO", request.uri().path())
        .env("QUERY_STRING", request.uri().query().unwrap_or_default())
        .env("CONTENT_TYPE", header("content-type"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let body = request.into_body().collect().await?.to_bytes();
    let mut stdin = child.stdin.take().context("stdin")?;
    stdin.write_all(&body).await?;
    drop(stdin);
    let output = child.wait_with_output().await?.stdout;
    let end = output
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .context("headers of the backend")?;
    let mut response = Response::builder();
    for line in std::str::from_utf8(&output[..end])?.lines() {
        if let Some((name, value)) = line.split_once(": ") {
            response = match name {
                "Status" => response.status(value.split(' ').next().unwrap_or("500")),
                _ => response.header(name, value),
            };
        }
    }
    let body = Bytes::copy_from_slice(&output[end + 4..]);
    let most = link.breaks_after.load(Ordering::SeqCst);
    let body = if body.len() > most {
        link.broken.fetch_add(1, Ordering::SeqCst);
        let broken = Err(std::io::ErrorKind::ConnectionReset.into());
        let parts = [Ok(Frame::data(body.slice(..most))), broken];
        StreamBody::new(futures::stream::iter(parts)).boxed()
    } else {
        link.sent.fetch_add(body.len(), Ordering::SeqCst);
        Full::new(body).map_err(|never| match never {}).boxed()
    };
    Ok(response.body(body)?)
}

/// The revision that a site keeps of a repository.
async fn until_revision(site: &Site, name: &str, revision: &str) -> Result<()> {
    site.until(revision, &repository(name), |r| {
        r["status"]["artifact"]["revision"] == revision && ready(r)["status"] == "True"
    })
    .await
    .map(|_| ())
}

fn encoded(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_repository_is_fetched_over_http_one_commit_deep() -> Result<()> {
    let repo = Repository::new()?;
    // History that nobody needs: noise does not compress.
    let noise: String = (0..4000_u64)
        .map(|n| format!("{:x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
        .collect();
    repo.commit(&[("noise", Some(&noise))])?;
    repo.commit(&[("noise", None), ("a.yaml", Some(&config_map("one", "1")))])?;
    repo.git(&["tag", "-a", "-m", "t", "v1.0.0"])?;
    let tagged = repo.git(&["rev-parse", "HEAD"])?;
    repo.git(&["tag", "v0.9.0", "HEAD~1"])?;
    let head = repo.commit(&[("a.yaml", Some(&config_map("one", "2")))])?;

    let site = Site::start(None).await?;
    let server = Server::start(&repo.path(), &site.scope).await?;
    let url = format!("{}/.git", server.url);
    site.follow("refused", json!({"url": url})).await?;
    let refused = site
        .until("the refusal", &repository("refused"), |r| {
            ready(r)["status"] == "False"
        })
        .await?;
    let said = ready(&refused)["message"].to_string();
    ensure!(
        said.contains("401") || said.contains("authenticat"),
        "{said}"
    );

    site.apply(
        &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "auth"},
        "data": {"username": encoded("me"), "password": encoded("secret")}}),
    )
    .await?;
    let with = |reference: serde_json::Value| json!({"url": url, "ref": reference, "secretRef": {"name": "auth"}});
    site.follow("repo", with(json!({"branch": "main"}))).await?;
    until_revision(&site, "repo", &format!("main@sha1:{head}")).await?;
    ensure!(
        server.link.sent.load(Ordering::SeqCst) < noise.len() / 2,
        "only one commit was sent: {}",
        server.link.sent.load(Ordering::SeqCst)
    );
    site.kustomize("all", json!({})).await?;
    site.until_map("one", "k", "2").await?;

    for (name, reference, revision) in [
        (
            "tag",
            json!({"tag": "v1.0.0"}),
            format!("v1.0.0@sha1:{tagged}"),
        ),
        (
            "semver",
            json!({"semver": ">=0.5.0"}),
            format!("v1.0.0@sha1:{tagged}"),
        ),
        (
            "name",
            json!({"name": "refs/heads/main"}),
            format!("refs/heads/main@sha1:{head}"),
        ),
        (
            "commit",
            json!({"branch": "main", "commit": tagged}),
            format!("main@sha1:{tagged}"),
        ),
    ] {
        site.follow(name, with(reference)).await?;
        until_revision(&site, name, &revision).await?;
    }

    let next = repo.commit(&[("a.yaml", Some(&config_map("one", "3")))])?;
    until_revision(&site, "repo", &format!("main@sha1:{next}")).await?;
    site.until_map("one", "k", "3").await?;
    site.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_link_that_breaks_leaves_the_last_good_revision_and_is_tried_again() -> Result<()> {
    let repo = Repository::new()?;
    let noise = |seed: u64| -> String {
        (0..4000_u64)
            .map(|n| format!("{:x}", (n + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
            .collect()
    };
    let first = repo.commit(&[
        ("noise", Some(&noise(0))),
        ("a.yaml", Some(&config_map("one", "1"))),
        ("b.yaml", Some(&config_map("two", "1"))),
    ])?;
    let site = Site::start(None).await?;
    let server = Server::start(&repo.path(), &site.scope).await?;
    site.apply(
        &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "auth"},
        "data": {"username": encoded("me"), "password": encoded("secret")}}),
    )
    .await?;
    let link = &server.link;
    let fails_by_the_link = async || {
        let before = link.broken.load(Ordering::SeqCst);
        site.until("the failure", &repository("repo"), |r| {
            let said = ready(r);
            link.broken.load(Ordering::SeqCst) > before
                && said["status"] == "False"
                && said["reason"] == "GitOperationFailed"
        })
        .await
    };

    // It breaks at the first fetch already: there is nothing yet, and nothing is made.
    link.breaks_after.store(8_000, Ordering::SeqCst);
    let url = format!("{}/.git", server.url);
    let spec = json!({"url": url, "secretRef": {"name": "auth"}});
    site.follow("repo", spec).await?;
    site.kustomize("all", json!({})).await?;
    let source = fails_by_the_link().await?;
    ensure!(source["status"].get("artifact").is_none(), "{source}");
    ensure!(site.get(&map("one")).await?["code"] == 404);
    link.breaks_after.store(usize::MAX, Ordering::SeqCst);
    site.until_ready("all", "True", &first).await?;

    // Later what was applied stays, whole, until the next revision is there, whole.
    link.breaks_after.store(8_000, Ordering::SeqCst);
    let second = repo.commit(&[
        ("noise", Some(&noise(1_000_000))),
        ("a.yaml", Some(&config_map("one", "2"))),
        ("b.yaml", None),
    ])?;
    let source = fails_by_the_link().await?;
    ensure!(source["status"]["artifact"]["revision"] == format!("main@sha1:{first}"));
    ensure!(site.get(&map("one")).await?["data"]["k"] == "1");
    ensure!(site.get(&map("two")).await?["data"]["k"] == "1");
    link.breaks_after.store(usize::MAX, Ordering::SeqCst);
    site.until_ready("all", "True", &second).await?;
    site.until_map("one", "k", "2").await?;
    ensure!(site.get(&map("two")).await?["code"] == 404);

    // What is kept of the repository is sound.
    let clone = site.api.dir().join("gitops/git/default/repo");
    let clone = clone.display().to_string();
    repo.git(&["-c", "safe.directory=*", "-C", &clone, "fsck", "--full"])?;
    site.close().await
}

/// Where the program in the place of `ssh` is, for the run of the test that has it on its PATH.
const SSH_DIR: &str = "GITOPS_TEST_SSH_DIR";

const SSH: &str = r#"#!/bin/sh
echo "$@" >> DIR/calls
cat "$2" >> DIR/key
stat -c %a "$2" >> DIR/mode
for word; do
    case $host in ?*) there="$there $word";; esac
    case $word in git@*) host=$word;; esac
done
exec sh -c "$there"
"#;

/// The variables of a process can't be changed safely while it runs: the test runs itself again
/// with another `ssh` first on the PATH.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_is_fetched_over_ssh_with_the_key_that_is_given() -> Result<()> {
    if let Some(dir) = std::env::var_os(SSH_DIR) {
        return over_ssh(Path::new(&dir)).await;
    }
    let dir = tempfile::tempdir()?;
    // It writes down how it was called, the key and its mode, and runs here what it should there.
    let program = SSH.replace("DIR", &dir.path().display().to_string());
    let ssh = dir.path().join("ssh");
    std::fs::write(&ssh, program)?;
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&ssh, executable)?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::iter::once(dir.path().to_owned()).chain(std::env::split_paths(&path));
    let out = Command::new(std::env::current_exe()?)
        .args(["--exact", "--nocapture"])
        .arg("remote::a_repository_is_fetched_over_ssh_with_the_key_that_is_given")
        .env("PATH", std::env::join_paths(dirs)?)
        .env(SSH_DIR, dir.path())
        .output()?;
    let said = String::from_utf8_lossy(&out.stdout);
    ensure!(
        out.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&out.stderr)
    );
    Ok(())
}

async fn over_ssh(dir: &Path) -> Result<()> {
    let repo = Repository::new()?;
    let first = repo.commit(&[("a.yaml", Some(&config_map("one", "1")))])?;
    let site = Site::start(None).await?;
    let url = format!("ssh://git@shop.example.com{}", repo.url());
    let secret = |name: &str, data: serde_json::Value| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data});
    let (key, hosts) = (
        encoded("the key"),
        encoded("shop.example.com ssh-ed25519 A"),
    );
    site.apply(&secret("blind", json!({"identity": key})))
        .await?;
    site.apply(&secret(
        "key",
        json!({"identity": key, "known_hosts": hosts}),
    ))
    .await?;
    // A host that can't be told from another is not talked to.
    site.follow("blind", json!({"url": url, "secretRef": {"name": "blind"}}))
        .await?;
    let blind = site
        .until("the refusal", &repository("blind"), |r| {
            ready(r)["status"] == "False"
        })
        .await?;
    let said = ready(&blind)["message"].to_string();
    ensure!(said.contains("no known_hosts"), "{said}");
    ensure!(!dir.join("calls").exists());

    site.follow("repo", json!({"url": url, "secretRef": {"name": "key"}}))
        .await?;
    until_revision(&site, "repo", &format!("main@sha1:{first}")).await?;
    site.kustomize("all", json!({})).await?;
    site.until_map("one", "k", "1").await?;
    let next = repo.commit(&[("a.yaml", Some(&config_map("one", "2")))])?;
    until_revision(&site, "repo", &format!("main@sha1:{next}")).await?;
    let read = |name: &str| std::fs::read_to_string(dir.join(name));
    let calls = read("calls")?;
    let mut calls = calls.lines().filter(|call| !call.contains(" -G "));
    let call = calls.next().context("no call")?;
    for part in [
        "StrictHostKeyChecking=yes",
        "UserKnownHostsFile=",
        "git@shop.example.com",
        "git-upload-pack",
    ] {
        ensure!(call.contains(part), "{part}: {call}");
    }
    ensure!(read("key")?.lines().all(|line| line == "the key"));
    ensure!(read("mode")?.lines().all(|line| line == "600"));
    // The key does not stay on the disk.
    let file = call.split(' ').nth(1).context("no key")?;
    ensure!(!Path::new(file).exists(), "{file}");
    site.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signatures_are_checked_when_a_key_is_given() -> Result<()> {
    let keys = tempfile::tempdir()?;
    let key = keys.path().join("key");
    for (name, comment) in [("key", "good"), ("other", "other")] {
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", comment, "-f"])
            .arg(keys.path().join(name))
            .stdin(Stdio::null())
            .status();
        match made {
            Ok(status) => ensure!(status.success(), "ssh-keygen failed"),
            // Without the program there is nothing to check with.
            Err(_) => return Ok(()),
        }
    }
    let repo = Repository::new()?;
    repo.git(&["config", "gpg.format", "ssh"])?;
    repo.git(&["config", "user.signingKey", &key.display().to_string()])?;
    repo.git(&["config", "commit.gpgSign", "true"])?;
    let signed = repo.commit(&[("a.yaml", Some(&config_map("one", "1")))])?;
    let site = Site::start(None).await?;
    for name in ["key", "other"] {
        let public = std::fs::read_to_string(keys.path().join(format!("{name}.pub")))?;
        site.apply(
            &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
            "data": {"git.pub": encoded(&public)}}),
        )
        .await?;
    }
    let with = |secret: &str| json!({"url": repo.url(), "verify": {"mode": "HEAD", "secretRef": {"name": secret}}});
    site.follow("good", with("key")).await?;
    until_revision(&site, "good", &format!("main@sha1:{signed}")).await?;
    site.follow("bad", with("other")).await?;
    let bad = site
        .until("the refusal", &repository("bad"), |r| {
            ready(r)["status"] == "False"
        })
        .await?;
    ensure!(ready(&bad)["reason"] == "VerificationError", "{bad}");
    ensure!(bad["status"].get("artifact").is_none());

    // Who was trusted before keeps the last revision that was signed.
    repo.git(&["config", "commit.gpgSign", "false"])?;
    repo.commit(&[("a.yaml", Some(&config_map("one", "2")))])?;
    let kept = site
        .until("the refusal", &repository("good"), |r| {
            ready(r)["message"]
                .as_str()
                .unwrap_or_default()
                .contains("is not signed")
        })
        .await?;
    ensure!(kept["status"]["artifact"]["revision"] == format!("main@sha1:{signed}"));
    site.close().await
}

/// A home of gpg whose agent ends with it.
struct Gpg(tempfile::TempDir);

impl Gpg {
    /// With a key; none where there is no gpg to make it.
    fn new(user: &str) -> Result<Option<Self>> {
        let gpg = Self(tempfile::tempdir()?);
        let args = [
            "--passphrase",
            "",
            "--quick-gen-key",
            user,
            "ed25519",
            "sign",
            "never",
        ];
        match gpg.run("gpg", &args) {
            Ok(_) => Ok(Some(gpg)),
            Err(error) if error.downcast_ref::<std::io::Error>().is_some() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let mut command = Command::new(program);
        if program == "gpg" {
            command.args(["--batch", "--quiet"]);
        }
        let out = command
            .args(args)
            .env("GNUPGHOME", self.0.path())
            .output()?;
        ensure!(
            out.status.success(),
            "{program}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        Ok(String::from_utf8(out.stdout)?)
    }

    /// What git calls to sign.
    fn signer(&self) -> Result<String> {
        let path = self.0.path().join("signer");
        let home = self.0.path().display();
        std::fs::write(
            &path,
            format!("#!/bin/sh\nGNUPGHOME={home} exec gpg \"$@\"\n"),
        )?;
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, executable)?;
        Ok(path.display().to_string())
    }
}

impl Drop for Gpg {
    fn drop(&mut self) {
        // There may be none.
        let _ = self.run("gpgconf", &["--kill", "all"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_and_tags_may_be_signed_by_openpgp() -> Result<()> {
    let Some(owner) = Gpg::new("shop@example.com")? else {
        return Ok(());
    };
    let other = Gpg::new("other@example.com")?.context("another key")?;
    let repo = Repository::new()?;
    repo.git(&["config", "gpg.program", &owner.signer()?])?;
    repo.git(&["config", "user.signingKey", "shop@example.com"])?;
    repo.git(&["config", "commit.gpgSign", "true"])?;
    let signed = repo.commit(&[("a.yaml", Some(&config_map("one", "1")))])?;
    repo.git(&["tag", "-s", "-m", "t", "v1.0.0"])?;
    repo.git(&["tag", "v1.1.0"])?;
    let site = Site::start(None).await?;
    for (name, gpg) in [("owner", &owner), ("other", &other)] {
        let public = gpg.run("gpg", &["--armor", "--export"])?;
        site.apply(
            &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
            "data": {"shop.asc": encoded(&public)}}),
        )
        .await?;
    }
    let url = repo.url();
    let with = |reference: serde_json::Value, mode: &str, secret: &str| json!({"url": url, "ref": reference, "verify": {"mode": mode, "secretRef": {"name": secret}}});
    let main = json!({"branch": "main"});
    let tag = json!({"tag": "v1.0.0"});
    site.follow("head", with(main.clone(), "HEAD", "owner"))
        .await?;
    until_revision(&site, "head", &format!("main@sha1:{signed}")).await?;
    site.follow("both", with(tag, "TagAndHEAD", "owner"))
        .await?;
    until_revision(&site, "both", &format!("v1.0.0@sha1:{signed}")).await?;
    for (name, spec) in [
        ("stranger", with(main, "HEAD", "other")),
        // A tag that is only a name can't be signed.
        ("bare", with(json!({"tag": "v1.1.0"}), "Tag", "owner")),
    ] {
        site.follow(name, spec).await?;
        let refused = site
            .until("the refusal", &repository(name), |r| {
                ready(r)["status"] == "False"
            })
            .await?;
        ensure!(
            ready(&refused)["reason"] == "VerificationError",
            "{refused}"
        );
        ensure!(refused["status"].get("artifact").is_none());
    }
    site.close().await
}
