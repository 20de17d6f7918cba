//! A nats-server for a test: its own process and directory, killed with the test.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A server; killed when dropped.
pub(crate) struct Nats {
    child: Child,
    config: PathBuf,
    pub(crate) port: u16,
    pub(crate) leaf_port: u16,
    _dir: tempfile::TempDir,
}

/// How a server is set up.
#[derive(Default)]
pub(crate) struct Setup {
    /// Certificate and key.
    pub(crate) tls: Option<(PathBuf, PathBuf)>,
    /// The only nkey that may come in.
    pub(crate) nkey: Option<String>,
    /// The only password that may come in.
    pub(crate) password: Option<String>,
    /// The leaf port of the server that it is a leaf of.
    pub(crate) leaf_of: Option<u16>,
}

impl Nats {
    pub(crate) fn start(setup: &Setup) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (port, leaf_port) = (free_port(), free_port());
        let mut text = format!("listen: 127.0.0.1:{port}\n");
        match setup.leaf_of {
            None => writeln!(text, "leafnodes {{ listen: 127.0.0.1:{leaf_port} }}").unwrap(),
            Some(hub) => writeln!(
                text,
                "leafnodes {{ reconnect: 1s, remotes: [{{ url: \"nats-leaf://127.0.0.1:{hub}\" }}] }}"
            )
            .unwrap(),
        }
        if let Some((certificate, key)) = &setup.tls {
            writeln!(
                text,
                "tls {{ cert_file: {certificate:?}, key_file: {key:?} }}"
            )
            .unwrap();
        }
        if let Some(nkey) = &setup.nkey {
            writeln!(text, "authorization {{ users: [{{ nkey: {nkey} }}] }}").unwrap();
        }
        if let Some(password) = &setup.password {
            writeln!(text, "authorization {{ user: salp, password: {password} }}").unwrap();
        }
        let config = dir.path().join("nats.conf");
        std::fs::write(&config, text).unwrap();
        Self {
            child: spawn(&config),
            config,
            port,
            leaf_port,
            _dir: dir,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Kills it, as a power cut would.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }

    /// Starts it again, empty, at the same ports.
    pub(crate) fn restart(&mut self) {
        self.child = spawn(&self.config);
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.kill();
    }
}

#[allow(
    clippy::zombie_processes,
    reason = "it is waited for when it is killed, and a server that did not start has ended"
)]
fn spawn(config: &Path) -> Child {
    let mut child = Command::new(program())
        .arg("--config")
        .arg(config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("nats-server runs: cargo xtask tools nats-server");
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    let mut line = String::new();
    while log.read_line(&mut line).unwrap() > 0 {
        said += &line;

        if line.contains("Server is ready") {
            // Whatever it says from now on is read and dropped, so that it never blocks.
            std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
            return child;
        }
        line.clear();
    }
    panic!("nats-server ended:\n{said}");
}

fn program() -> PathBuf {
    let dirs = [
        std::env::var_os("SALP_TOOLS").map(PathBuf::from),
        Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools")),
    ];
    dirs.into_iter()
        .flatten()
        .map(|dir| dir.join("bin/nats-server"))
        .find(|path| path.exists())
        .expect("nats-server is there: cargo xtask tools nats-server")
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}
