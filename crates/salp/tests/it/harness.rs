//! A site of its own for each test, a registry, and the clients.

#[path = "http.rs"]
pub(crate) mod http;

pub(crate) use http::{get, get_ok};

use http::{Answer, exchange};
use serde_json::Value;
use sha2::Digest as _;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// No wait of a test is longer; a wait that ends here has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// Path of a tool that `cargo xtask tools` fetched.
pub(crate) fn tool(name: &str) -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("workspace");
    let dir = std::env::var_os("SALP_TOOLS")
        .map_or_else(|| workspace.join("target/tools"), PathBuf::from);
    let path = dir.join("bin").join(name);
    assert!(
        path.exists(),
        "no {}: run `cargo xtask tools`",
        path.display()
    );
    path
}

/// Where programs are looked for, the tools first: OCI runtimes are among them.
fn path_with_tools() -> String {
    let tools = tool("kubectl");
    let tools = tools.parent().unwrap_or(Path::new("/"));
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{}:{path}", tools.display())
}

/// A file of the repository.
pub(crate) fn repo_file(relative: &str) -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("workspace");
    let path = workspace.join(relative);
    assert!(path.exists(), "no {}", path.display());
    path
}

/// A port that is free now.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|l| l.local_addr())
        .expect("free port")
        .port()
}

/// Runs `check` until it gives a value; fails with what it last said.
pub(crate) fn eventually<T>(what: &str, mut check: impl FnMut() -> Result<T, String>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        match check() {
            Ok(value) => return value,
            Err(why) if Instant::now() > until => panic!("{what}: {why}"),
            // Polling another program's state: there is no event to await.
            Err(_) => std::thread::park_timeout(Duration::from_millis(50)),
        }
    }
}

/// A file that all tests know, to be locked.
fn turns() -> std::fs::File {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("sites.lock");
    std::fs::File::create(path).expect("lock file")
}

/// A process that is killed when the test ends, however it ends.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _already_dead = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// A command whose output is read while it runs.
pub(crate) struct Following {
    process: Running,
    lines: Arc<(Mutex<Vec<String>>, Condvar)>,
    readers: Vec<std::thread::JoinHandle<()>>,
}

impl Following {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start command");
        let lines = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let out: [Box<dyn Read + Send>; 2] = [
            Box::new(child.stdout.take().expect("stdout")),
            Box::new(child.stderr.take().expect("stderr")),
        ];
        let read = |stream| {
            let lines = lines.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    lines.0.lock().expect("lock").push(line);
                    lines.1.notify_all();
                }
            })
        };
        Self {
            process: Running(child),
            readers: out.into_iter().map(read).collect(),
            lines,
        }
    }

    /// Writes to its standard input, which was made a pipe.
    pub(crate) fn type_in(&mut self, bytes: &[u8]) {
        let stdin = self.process.0.stdin.as_mut().expect("a pipe");
        stdin.write_all(bytes).expect("write");
    }

    /// Waits for a line; that line.
    pub(crate) fn wait_for(&self, accept: impl Fn(&str) -> bool) -> String {
        let seen = self.lines.0.lock().expect("lock");
        let missing = |seen: &mut Vec<String>| !seen.iter().any(|line| accept(line));
        let (seen, waited) = self
            .lines
            .1
            .wait_timeout_while(seen, PATIENCE, missing)
            .expect("lock");
        assert!(!waited.timed_out(), "no such line in\n{}", seen.join("\n"));
        let found = seen.iter().find(|line| accept(line));
        found.expect("a line").clone()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// What it has printed so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.0.lock().expect("lock").clone()
    }

    /// Waits until it ends by itself.
    pub(crate) fn ended(&mut self) -> std::process::ExitStatus {
        let status = eventually("the command ends", || {
            let status = self.process.0.try_wait().expect("wait");
            status.ok_or_else(|| self.lines().join("\n"))
        });
        for reader in self.readers.drain(..) {
            reader.join().expect("reader");
        }
        status
    }
}

/// What the registry that wants a password knows: user `till`, password `s3cret` (bcrypt).
const HTPASSWD: &str = "till:$2b$04$Ns03rGpKClpEifwg2TX8OeNNrtosCWXxT2DsI0cgsxzxuO04EOaZi\n";

/// The real registry (docker-registry 2.8) on loopback.
pub(crate) struct Registry {
    pub(crate) address: String,
    _process: Running,
    _dir: tempfile::TempDir,
}

impl Registry {
    /// For everybody.
    pub(crate) fn start() -> Self {
        Self::start_for(200, "")
    }

    /// For `till` with the password `s3cret`.
    pub(crate) fn start_with_password() -> Self {
        Self::start_for(401, "auth:\n  htpasswd: {realm: shop, path: HTPASSWD}\n")
    }

    fn start_for(first_answer: u16, auth: &str) -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let port = free_port();
        let config = dir.path().join("config.yml");
        let htpasswd = dir.path().join("htpasswd");
        std::fs::write(&htpasswd, HTPASSWD).expect("write users");
        let auth = auth.replace("HTPASSWD", &htpasswd.display().to_string());
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n  delete: {{enabled: true}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n{auth}",
                dir.path().join("data").display()
            ),
        )
        .expect("write registry configuration");
        let process = Command::new(tool("registry"))
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start registry");
        let registry = Self {
            address: format!("localhost:{port}"),
            _process: Running(process),
            _dir: dir,
        };
        eventually("registry starts", || {
            get(&format!("127.0.0.1:{port}"), "/v2/")
                .map_err(|e| e.to_string())
                .and_then(|r| r.expect_code(first_answer))
        });
        registry
    }

    /// Ends it: from now on nobody answers.
    pub(crate) fn stop(self) {
        drop(self);
    }

    /// Pushes a Wasm file with `salp image push`; the reference.
    pub(crate) fn push(&self, file: &Path, name: &str) -> String {
        let reference = format!("{}/{name}", self.address);
        let output = salp(&["image", "push", &file.display().to_string(), &reference]);
        assert!(output.status.success(), "push: {}", text(&output));
        reference
    }
}

/// A layer or configuration: its media type and content.
pub(crate) type Part<'a> = (&'a str, Vec<u8>);

impl Registry {
    /// Puts an artifact there as another tool would have packed it; the reference.
    pub(crate) fn put(&self, name: &str, config: Part<'_>, layers: &[Part<'_>]) -> String {
        let layers = layers.iter().map(|part| self.blob(name, part)).collect();
        let config = self.blob(name, &config);
        self.put_manifest(name, &config, layers)
    }

    /// Puts an artifact of files with their names there; the reference.
    pub(crate) fn put_files(&self, name: &str, files: &[(&str, &str)]) -> String {
        let layers = files.iter().map(|(title, content)| {
            let part = ("application/octet-stream", content.as_bytes().to_vec());
            let mut layer = self.blob(name, &part);
            layer["annotations"] = serde_json::json!({"org.opencontainers.image.title": title});
            layer
        });
        let layers = layers.collect();
        let config = ("application/vnd.oci.empty.v1+json", b"{}".to_vec());
        let config = self.blob(name, &config);
        self.put_manifest(name, &config, layers)
    }

    /// Puts a blob there; its descriptor.
    fn blob(&self, name: &str, (media_type, bytes): &Part<'_>) -> Value {
        let repository = name.split_once(':').expect("name:tag").0;
        let digest = format!("sha256:{}", hex::encode(sha2::Sha256::digest(bytes)));
        let begun = self.send("POST", &format!("/v2/{repository}/blobs/uploads/"), "", &[]);
        let place = begun.header("location");
        let path = place
            .split_once(&self.address)
            .map_or(place.as_str(), |(_, path)| path);
        let mark = if path.contains('?') { '&' } else { '?' };
        let put = format!("{path}{mark}digest={digest}");
        self.send("PUT", &put, "application/octet-stream", bytes)
            .expect_code(201)
            .expect("blob");
        serde_json::json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    fn put_manifest(&self, name: &str, config: &Value, layers: Vec<Value>) -> String {
        let (repository, tag) = name.split_once(':').expect("name:tag");
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers,
        });
        let path = format!("/v2/{repository}/manifests/{tag}");
        self.send("PUT", &path, MANIFEST, manifest.to_string().as_bytes())
            .expect_code(201)
            .expect("manifest");
        format!("{}/{name}", self.address)
    }

    fn send(&self, method: &str, path: &str, media_type: &str, body: &[u8]) -> Answer {
        let address = self.address.replace("localhost", "127.0.0.1");
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        exchange(&address, &[head.as_bytes(), body].concat()).expect("registry")
    }
}

/// What OCI calls an image manifest.
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// The binary under test: `$SALP_PROGRAM`, or the one built beside the test.
pub(crate) fn program() -> PathBuf {
    std::env::var_os("SALP_PROGRAM")
        .or(option_env!("CARGO_BIN_EXE_salp").map(Into::into))
        .map(PathBuf::from)
        .expect("$SALP_PROGRAM names the binary to measure")
}

/// Runs it.
pub(crate) fn salp(args: &[&str]) -> Output {
    salp_command(args).output().expect("run salp")
}

pub(crate) fn salp_command(args: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(args).env_remove("KUBECONFIG");
    command
}

/// The process id of a `dataplane` or `supervisor`, of the site in this directory.
pub(crate) fn pid_of(dir: &Path, process: &str) -> String {
    let file = dir.join(format!("run/{process}.pid"));
    let pid = std::fs::read_to_string(file).expect("a pid");
    pid.trim().to_owned()
}

/// Ends a process as a fault would.
pub(crate) fn kill(pid: &str) {
    let killed = Command::new("kill").args(["-KILL", pid]).status();
    assert!(killed.expect("kill").success());
}

/// Standard output and error of a finished command.
pub(crate) fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// The user without privileges that a test may run a site as: `nobody` on every Linux.
const NOBODY: u32 = 65_534;

/// A running site with a data directory of its own.
///
/// Its end is a check too: a line that it logged as WARN or ERROR fails the test, unless
/// [`Site::expects`] named it.
pub(crate) struct Site {
    pub(crate) port: u16,
    pub(crate) dir: PathBuf,
    process: Option<Child>,
    home: tempfile::TempDir,
    program: PathBuf,
    /// Whom the control plane runs as, if not as the tests do.
    user: Option<u32>,
    /// Parts of the lines that may be logged as WARN or ERROR.
    expected: Mutex<Vec<String>>,
}

impl Site {
    /// Starts a site in a fresh directory and waits until it is ready.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    pub(crate) fn start_with(args: &[&str]) -> Self {
        let mut site = Self::new();
        site.up(args);
        site
    }

    /// Starts a site by a shell command, which is given the program and its arguments.
    pub(crate) fn start_by(command: &str, args: &[&str]) -> Self {
        let mut site = Self::new();
        site.program = site.home.path().join("start");
        let program = program();
        let script = format!(
            "#!/bin/sh\nset -- '{}' \"$@\"\n{command}\n",
            program.display()
        );
        std::fs::write(&site.program, script).expect("script");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&site.program, mode).expect("script");
        site.up(args);
        site
    }

    /// Starts a site whose data directory is in `dir`.
    pub(crate) fn start_in(dir: &Path) -> Self {
        let mut site = Self::new();
        site.dir = dir.join("site");
        site.up(&[]);
        site
    }

    /// Starts a site as a user without privileges; the tests' own user, if that is none.
    pub(crate) fn start_unprivileged() -> Self {
        let mut site = Self::new();
        if rustix::process::geteuid().is_root() {
            site.user = Some(NOBODY);
            // The build directory may be closed to others.
            site.program = site.home.path().join("salp");
            let built = program();
            if std::fs::hard_link(&built, &site.program).is_err() {
                std::fs::copy(&built, &site.program).expect("copy salp");
            }
            std::os::unix::fs::chown(site.home.path(), Some(NOBODY), Some(NOBODY))
                .expect("give directory away");
        }
        site.up(&[]);
        site
    }

    /// A site that does not run yet.
    pub(crate) fn new() -> Self {
        let home = tempfile::tempdir().expect("directory");
        Self {
            port: free_port(),
            dir: home.path().join("site"),
            process: None,
            home,
            program: program(),
            user: None,
            expected: Mutex::default(),
        }
    }

    /// The folder of manifests of the user that the site runs as.
    pub(crate) fn manifests(&self) -> PathBuf {
        self.home.path().join("config/salp/manifests")
    }

    /// Names a part of lines that this test makes the site log as WARN or ERROR.
    pub(crate) fn expects(&self, part: &str) {
        self.expected.lock().expect("lock").push(part.to_owned());
    }

    /// A `salp` command for this site, with its output.
    pub(crate) fn salp(&self, args: &[&str]) -> Output {
        self.salp_command(args).output().expect("run salp")
    }

    pub(crate) fn salp_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .args(args)
            .env_remove("KUBECONFIG")
            .env("SALP_DATA_DIR", &self.dir);
        command
    }

    /// Starts the control plane (again) and waits until it says that it is ready.
    pub(crate) fn up(&mut self, args: &[&str]) -> String {
        let is_new = !self.dir.join("site.json").exists();
        let _turn = is_new.then(|| {
            let turn = turns();
            turn.lock_shared().expect("lock");
            turn
        });
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.home.path().join("up.log"))
            .expect("log");
        let mut command = Command::new(&self.program);
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        let mut child = command
            .args(["up", "--data-dir"])
            .arg(&self.dir)
            .args(["--api-port", &self.port.to_string()])
            .args(args)
            .env_remove("KUBECONFIG")
            .env("PATH", path_with_tools())
            // Not the tests' user's: there may be manifests.
            .env("XDG_CONFIG_HOME", self.home.path().join("config"))
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("start salp");
        let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
        let mut printed = String::new();
        loop {
            match lines.next() {
                Some(Ok(line)) => {
                    printed.push_str(&line);
                    printed.push('\n');
                    if line.starts_with("Ready") {
                        break;
                    }
                }
                _ => {
                    let _reaped = child.wait();
                    panic!("salp up ended: {printed}{}", self.up_log());
                }
            }
        }
        // Whatever follows is read and dropped, or the pipe would fill.
        std::thread::spawn(move || lines.for_each(drop));
        self.process = Some(child);
        printed
    }

    pub(crate) fn up_log(&self) -> String {
        std::fs::read_to_string(self.home.path().join("up.log")).unwrap_or_default()
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig.yaml")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().expect("running").id()
    }

    /// Ends another process of the site as a fault would: `dataplane`, `supervisor`.
    pub(crate) fn kill(&self, process: &str) {
        kill(&pid_of(&self.dir, process));
    }

    /// Sends a signal to the control plane and waits for its end.
    pub(crate) fn signal(&mut self, signal: &str) {
        let mut child = self.process.take().expect("running");
        let sent = Command::new("kill")
            .args([signal, &child.id().to_string()])
            .status()
            .expect("kill");
        assert!(sent.success());
        child.wait().expect("wait for salp");
    }

    /// While this is held no other test starts a new site, which could take the addresses of
    /// this one when it has stopped as a whole.
    pub(crate) fn between_stop_and_start(&self) -> std::fs::File {
        let turn = turns();
        turn.lock().expect("lock");
        turn
    }

    /// Keeps other sites off this one's addresses, as its control plane does, which is dead.
    pub(crate) fn hold_addresses(&self) -> std::net::UdpSocket {
        let facts = std::fs::read(self.dir.join("site.json")).expect("facts");
        let facts: Value = serde_json::from_slice(&facts).expect("JSON");
        let network = facts["serviceNetwork"].as_str().expect("a network");
        let network: std::net::Ipv4Addr = network.parse().expect("an address");
        let first = std::net::Ipv4Addr::from(u32::from(network) + 1);
        std::net::UdpSocket::bind((first, 10_256)).expect("claim")
    }

    /// kubectl against this site.
    pub(crate) fn kubectl(&self, args: &[&str]) -> Output {
        self.kubectl_command(args).output().expect("run kubectl")
    }

    pub(crate) fn kubectl_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(tool("kubectl"));
        command
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .args(args)
            .env("HOME", self.home.path());
        command
    }

    /// kubectl that must succeed; its standard output.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.kubectl(args);
        assert!(
            output.status.success(),
            "kubectl {}: {}\n{}",
            args.join(" "),
            text(&output),
            self.state()
        );
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Waits until kubectl's output has a part.
    pub(crate) fn says(&self, args: &[&str], part: &str) {
        eventually(&format!("kubectl {} says {part:?}", args.join(" ")), || {
            let said = self.ok(args);
            said.contains(part).then_some(()).ok_or(said)
        });
    }

    /// kubectl that must fail; what it says.
    pub(crate) fn fails(&self, args: &[&str]) -> String {
        let output = self.kubectl(args);
        assert!(
            !output.status.success(),
            "kubectl {} succeeded: {}",
            args.join(" "),
            text(&output)
        );
        text(&output)
    }

    /// `kubectl apply -f -`.
    pub(crate) fn apply(&self, manifest: &str) -> String {
        let output = self.apply_output(manifest, &[]);
        assert!(output.status.success(), "apply: {}", text(&output));
        text(&output)
    }

    pub(crate) fn apply_output(&self, manifest: &str, args: &[&str]) -> Output {
        let mut child = self
            .kubectl_command(&["apply", "-f", "-"])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("run kubectl");
        child
            .stdin
            .take()
            .expect("stdin")
            .write_all(manifest.as_bytes())
            .expect("write manifest");
        child.wait_with_output().expect("kubectl")
    }

    /// An object as JSON.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let out = self.ok(&[args, &["-o", "json"]].concat());
        serde_json::from_str(&out).expect("JSON")
    }

    /// What a person would look at after a failure.
    fn state(&self) -> String {
        let pods = text(&self.kubectl(&["get", "pods,events", "-A", "-o", "wide"]));
        let (up, data_plane) = (self.up_log(), self.dataplane_log());
        let supervisor = self.supervisor_log();
        format!("{pods}\n--- up\n{up}\n--- data plane\n{data_plane}\n--- supervisor\n{supervisor}")
    }

    fn supervisor_log(&self) -> String {
        std::fs::read_to_string(self.dir.join("supervisor.log")).unwrap_or_default()
    }

    pub(crate) fn dataplane_log(&self) -> String {
        std::fs::read_to_string(self.dir.join("dataplane.log")).unwrap_or_default()
    }

    /// Lines logged as WARN or ERROR that nobody expects.
    fn complaints(&self) -> Vec<String> {
        let expected = self.expected.lock().expect("lock");
        let logs = self.up_log() + &self.dataplane_log() + &self.supervisor_log();
        let bad = logs.lines().filter(|line| {
            let level = line.split_whitespace().nth(1);
            let complains = matches!(level, Some("WARN" | "ERROR"))
                || line.starts_with("error:")
                || line.contains("panicked at");
            complains && !expected.iter().any(|part| line.contains(part))
        });
        bad.map(str::to_owned).collect()
    }

    /// Waits for a value inside an object, by JSON pointer.
    pub(crate) fn wait_for(
        &self,
        args: &[&str],
        pointer: &str,
        accept: impl Fn(&Value) -> bool,
    ) -> Value {
        let mut last = String::new();
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            let output = self.kubectl(&[args, &["-o", "json"]].concat());
            match serde_json::from_slice::<Value>(&output.stdout) {
                Ok(object) => {
                    let found = object.pointer(pointer).unwrap_or(&Value::Null);
                    if accept(found) {
                        return object;
                    }
                    last = found.to_string();
                }
                Err(_) => last = text(&output),
            }
            std::thread::park_timeout(Duration::from_millis(50));
        }
        panic!("{}: {pointer} is {last}\n{}", args.join(" "), self.state());
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            #[allow(
                clippy::print_stderr,
                reason = "the test runner shows it with the failure"
            )]
            {
                eprintln!("--- salp up\n{}", self.up_log());
            }
        }
        if let Some(mut child) = self.process.take() {
            let _sent = Command::new("kill")
                .args(["-INT", &child.id().to_string()])
                .status();
            let _reaped = child.wait();
        }
        let _stopped = salp(&["down", "--data-dir", &self.dir.display().to_string()]);
        if !std::thread::panicking() {
            let complaints = self.complaints();
            assert!(
                complaints.is_empty(),
                "the site complained:\n{}",
                complaints.join("\n")
            );
        }
    }
}
