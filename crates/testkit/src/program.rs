//! The real binary as a process that serves the API alone, for tests.
//!
//! It has a data directory of its own and whatever of a test's configuration has flags; what has
//! none is refused, so that no test runs against another server than it means.

use crate::remote::{self, Service};
use crate::{Etcd, Identity, Pki};
use anyhow::{Context as _, Result, bail, ensure};
use apiserver::Config;
use std::collections::HashMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use store::EmbeddedStore;

/// Names the binary, which tests of the API then run against.
const PROGRAM: &str = "SALP_TEST_SERVER";

/// A running binary.
#[derive(Debug)]
pub(crate) struct Program {
    program: PathBuf,
    url: String,
    /// What this process keeps for it; the data directory is in there.
    dir: PathBuf,
    child: Option<Child>,
    /// A connection for each user and groups.
    services: Mutex<HashMap<String, Service>>,
    /// Parts of the lines that it may log as WARN or ERROR.
    expected: Mutex<Vec<String>>,
}

/// The binary that tests are to run against, if they are.
pub(crate) fn asked_for() -> Option<PathBuf> {
    std::env::var_os(PROGRAM).map(PathBuf::from)
}

impl Program {
    /// Starts it in `dir`; done when it serves.
    pub(crate) fn start(
        program: &Path,
        dir: &Path,
        etcd: Option<&Etcd>,
        change: impl FnOnce(&mut Config),
    ) -> Result<Self> {
        let turn = turns()?;
        turn.lock_shared()?;
        Self::start_in_turn(program, dir, etcd, change)
    }

    fn start_in_turn(
        program: &Path,
        dir: &Path,
        etcd: Option<&Etcd>,
        change: impl FnOnce(&mut Config),
    ) -> Result<Self> {
        let mut command = Command::new(program);
        command
            .arg("up")
            .arg("--data-dir")
            .arg(dir.join("site"))
            .args(["--api-port=0", "--node-name=test"])
            .arg("--disable=node,scheduler,controllers,gitops")
            .args(flags(dir, change)?);
        if let Some(etcd) = etcd {
            let endpoints = etcd.config().endpoints.join(",");
            command.arg(format!("--store=etcd={endpoints}"));
        }
        let log = dir.join("up.log");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log)?)
            .spawn()
            .with_context(|| format!("run {}", program.display()))?;
        let stdout = child.stdout.take().context("a pipe")?;
        let mut this = Self {
            program: program.to_owned(),
            url: String::new(),
            dir: dir.to_owned(),
            child: Some(child),
            services: Mutex::default(),
            expected: Mutex::default(),
        };
        let mut lines = BufReader::new(stdout).lines();
        loop {
            match lines.next().transpose()? {
                Some(line) if line.starts_with("Ready") => break,
                Some(_) => {}
                None => {
                    this.reap();
                    bail!("{}", std::fs::read_to_string(&log)?);
                }
            }
        }
        // Whatever follows is read and dropped, or the pipe would fill.
        std::thread::spawn(move || lines.for_each(drop));
        let kubeconfig = dir.join("site/kubeconfig.yaml");
        let kubeconfig = client::kube::config::Kubeconfig::read_from(kubeconfig)?;
        let cluster = kubeconfig.clusters.first();
        let server = cluster.and_then(|c| c.cluster.as_ref()?.server.clone());
        this.url = server.context("a kubeconfig with a server")?;
        Ok(this)
    }

    /// Ends it as `kill` does, which leaves the site as it is, and starts it again over its files.
    pub(crate) async fn restart(
        mut self,
        etcd: Option<&Etcd>,
        change: impl FnOnce(&mut Config),
    ) -> Result<Self> {
        // Meanwhile no other site that starts may take this one's addresses.
        let turn = turns()?;
        turn.lock()?;
        self.end("-TERM").await?;
        let mut again = Self::start_in_turn(&self.program, &self.dir, etcd, change)?;
        again.expected = std::mem::take(&mut self.expected);
        Ok(again)
    }

    /// Ends it as Ctrl-C does: nothing is left of it on the machine.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        self.end("-INT").await
    }

    /// Waits for the end, beside what this process does for its connections. A line that was logged
    /// as WARN or ERROR and that nobody expects is a failure.
    async fn end(&mut self, signal: &str) -> Result<()> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        let pid = child.id().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status()?;
        ensure!(sent.success(), "salp had ended: {:?}", child.try_wait()?);
        let status = tokio::task::spawn_blocking(move || child.wait()).await??;
        ensure!(status.success(), "salp ended with {status}");
        let log = std::fs::read_to_string(self.dir.join("up.log"))?;
        let expected = self.expected.lock().map_err(|e| anyhow::anyhow!("{e}"))?;
        let complaint = log.lines().find(|line| {
            let level = line.split_whitespace().nth(1);
            let complains = matches!(level, Some("WARN" | "ERROR"));
            (complains || line.contains("panicked at"))
                && !expected.iter().any(|e| line.contains(e))
        });
        ensure!(complaint.is_none(), "salp complained: {complaint:?}");
        Ok(())
    }

    /// Names a part of lines that it may log as WARN or ERROR.
    pub(crate) fn expects(&self, part: &str) -> Result<()> {
        let mut expected = self.expected.lock().map_err(|e| anyhow::anyhow!("{e}"))?;
        expected.push(part.to_owned());
        Ok(())
    }

    /// Where it serves.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// What asks it as a user, who shows a certificate.
    pub(crate) fn service(&self, pki: &Pki, user: &str, groups: &[&str]) -> Result<Service> {
        let key = format!("{user}\n{}", groups.join("\n"));
        let mut services = self.services.lock().map_err(|e| anyhow::anyhow!("{e}"))?;
        if let Some(service) = services.get(&key) {
            return Ok(service.clone());
        }
        let identity: Identity = pki.identity(user, groups)?;
        let service = remote::over_https(&self.url, &pki.ca_cert, &identity)?;
        services.insert(key, service.clone());
        Ok(service)
    }

    fn reap(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.reap();
            // Takes away what it leaves on the machine.
            let _ = Command::new(&self.program)
                .args(["down", "--data-dir"])
                .arg(self.dir.join("site"))
                .stderr(Stdio::null())
                .status();
        }
        let log = std::fs::read_to_string(self.dir.join("up.log")).unwrap_or_default();
        #[allow(
            clippy::print_stderr,
            reason = "the test runner shows it with a failure"
        )]
        if !log.is_empty() {
            eprintln!("--- salp up\n{log}");
        }
    }
}

/// Held shared by whoever starts a new site, and alone by whoever starts one again.
fn turns() -> Result<std::fs::File> {
    let path = std::env::temp_dir().join("salp-test-sites.lock");
    Ok(std::fs::File::create(path)?)
}

/// What a configuration says that differs from the usual one, as flags of `salp up` and files.
fn flags(dir: &Path, change: impl FnOnce(&mut Config)) -> Result<Vec<String>> {
    // Never written to: a configuration is not to be had without one.
    let store = Arc::new(EmbeddedStore::open(&dir.join("unused.db"))?);
    let text = String::new;
    let make = || Config::new(store.clone(), text(), text(), text(), text());
    let (usual, mut config) = (make(), make());
    let (clock, entropy) = (config.clock.clone(), config.entropy.clone());
    change(&mut config);
    let Config {
        store: _,
        listeners,
        serving_cert,
        serving_key,
        client_ca,
        service_account_key,
        service_account_verify_keys,
        issuer,
        service_cidr,
        service_port,
        node_ports,
        advertise,
        kubelet,
        shared,
        front_proxy,
        request_header,
        audit,
        authentication,
        encryption,
        limits,
        clock: own_clock,
        entropy: own_entropy,
    } = config;
    let same = [
        ("listeners", listeners.is_empty()),
        ("serving_cert", serving_cert.is_empty()),
        ("serving_key", serving_key.is_empty()),
        ("client_ca", client_ca.is_empty()),
        ("service_account_key", service_account_key.is_empty()),
        (
            "service_account_verify_keys",
            service_account_verify_keys.is_empty(),
        ),
        ("issuer", issuer == usual.issuer),
        ("service_cidr", service_cidr == usual.service_cidr),
        ("service_port", service_port == usual.service_port),
        ("node_ports", node_ports == usual.node_ports),
        ("advertise", advertise.is_none()),
        (
            "kubelet",
            kubelet.client_identity.is_none() && kubelet.ca.is_none(),
        ),
        ("shared", shared.is_none()),
        ("limits", limits == usual.limits),
        ("clock", Arc::ptr_eq(&clock, &own_clock)),
        ("entropy", Arc::ptr_eq(&entropy, &own_entropy)),
    ];
    for (name, same) in same {
        ensure!(same, "the binary has no flag for {name}: in process only");
    }
    let mut flags = Flags {
        dir,
        all: Vec::new(),
    };
    if let Some(proxy) = front_proxy {
        let pki = dir.join("site/pki");
        std::fs::create_dir_all(&pki)?;
        std::fs::write(pki.join("front-proxy-ca.crt"), proxy.ca)?;
        std::fs::write(pki.join("front-proxy-client.crt"), proxy.cert)?;
        std::fs::write(pki.join("front-proxy-client.key"), proxy.key)?;
    }
    flags.file("encryption-provider-config", encryption)?;
    flags.file("authentication-config", authentication)?;
    if let Some(audit) = audit {
        flags.file("audit-policy-file", Some(audit.policy))?;
        flags.add("audit-log-path", audit.log.path.display());
        flags.add("audit-log-maxsize", audit.log.size_max_mb);
        flags.add("audit-log-maxbackup", audit.log.backups_max);
        flags.add("audit-log-maxage", audit.log.age_max_days);
    }
    let header = request_header;
    flags.file("requestheader-client-ca-file", header.ca)?;
    for (name, words) in [
        ("allowed-names", header.allowed_names),
        ("username-headers", header.username_headers),
        ("uid-headers", header.uid_headers),
        ("group-headers", header.group_headers),
        ("extra-headers-prefix", header.extra_prefixes),
    ] {
        if !words.is_empty() {
            flags.add(&format!("requestheader-{name}"), words.join(","));
        }
    }
    Ok(flags.all)
}

struct Flags<'a> {
    dir: &'a Path,
    all: Vec<String>,
}

impl Flags<'_> {
    fn add(&mut self, name: &str, value: impl std::fmt::Display) {
        self.all.push(format!("--{name}={value}"));
    }

    fn file(&mut self, name: &str, text: Option<String>) -> Result<()> {
        if let Some(text) = text {
            let path = self.dir.join(name);
            std::fs::write(&path, text)?;
            self.add(name, path.display());
        }
        Ok(())
    }
}
