//! etcd for a test: real members on loopback, in a folder of their own, killed with the test.

use crate::Pki;
use anyhow::{Context as _, Result, bail};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use store::etcd::Config;

/// Between looks whether a member listens.
const LOOK: Duration = Duration::from_millis(20);
/// Looks before a member is given up.
const LOOKS: usize = 500;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A cluster of etcd.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
    tls: Option<Config>,
    _dir: tempfile::TempDir,
}

#[derive(Debug)]
struct Member {
    arguments: Vec<String>,
    client: SocketAddr,
    child: Option<Child>,
}

impl Etcd {
    /// Starts so many members, without TLS; done when all listen.
    ///
    /// # Errors
    /// When etcd is not there or does not start.
    pub fn start(members: usize) -> Result<Self> {
        Self::start_with(members, LOOPBACK, None)
    }

    /// Starts so many members that listen at this address, which is the machine's: of the
    /// network namespace that the caller is in.
    ///
    /// # Errors
    /// When etcd is not there or does not start.
    pub fn start_at(members: usize, host: IpAddr) -> Result<Self> {
        Self::start_with(members, host, None)
    }

    /// Starts one member that serves, and demands, certificates of this authority.
    ///
    /// # Errors
    /// When etcd is not there or does not start.
    pub fn start_tls(pki: &Pki) -> Result<Self> {
        Self::start_with(1, LOOPBACK, Some(pki))
    }

    fn start_with(count: usize, host: IpAddr, pki: Option<&Pki>) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let ports: Vec<(u16, u16)> = free_ports(host, count * 2)?
            .chunks(2)
            .map(|pair| (pair[0], pair[1]))
            .collect();
        let cluster: Vec<String> = ports
            .iter()
            .enumerate()
            .map(|(n, (_, peer))| format!("m{n}=http://{host}:{peer}"))
            .collect();
        let scheme = if pki.is_some() { "https" } else { "http" };
        let mut tls_arguments = Vec::new();
        let mut tls = None;
        if let Some(pki) = pki {
            let client = pki.identity("root", &[])?;
            let keep = |name: &str, pem: &str| -> Result<String> {
                let path = dir.path().join(name);
                std::fs::write(&path, pem)?;
                Ok(path.display().to_string())
            };
            tls_arguments = vec![
                "--client-cert-auth".to_owned(),
                format!("--trusted-ca-file={}", keep("ca.pem", &pki.ca_cert)?),
                format!("--cert-file={}", keep("cert.pem", &pki.serving.cert)?),
                format!("--key-file={}", keep("key.pem", &pki.serving.key)?),
            ];
            tls = Some(Config {
                endpoints: Vec::new(),
                ca_pem: Some(pki.ca_cert.clone()),
                identity: Some((client.cert, client.key)),
                prefix: String::new(),
            });
        }
        let members = ports
            .iter()
            .enumerate()
            .map(|(n, (client, peer))| {
                let folder = dir.path().join(format!("m{n}")).display().to_string();
                let mut arguments = vec![
                    format!("--name=m{n}"),
                    format!("--data-dir={folder}"),
                    format!("--listen-client-urls={scheme}://{host}:{client}"),
                    format!("--advertise-client-urls={scheme}://{host}:{client}"),
                    format!("--listen-peer-urls=http://{host}:{peer}"),
                    format!("--initial-advertise-peer-urls=http://{host}:{peer}"),
                    format!("--initial-cluster={}", cluster.join(",")),
                    // A killed process loses nothing that the kernel has; tests cut no power.
                    "--unsafe-no-fsync".to_owned(),
                    "--heartbeat-interval=50".to_owned(),
                    "--election-timeout=500".to_owned(),
                    "--log-level=error".to_owned(),
                ];
                arguments.extend(tls_arguments.iter().cloned());
                Member {
                    arguments,
                    client: SocketAddr::new(host, *client),
                    child: None,
                }
            })
            .collect();
        let mut this = Self {
            members,
            tls,
            _dir: dir,
        };
        for member in &mut this.members {
            member.spawn()?;
        }
        for member in &mut this.members {
            member.wait()?;
        }
        Ok(this)
    }

    /// How the store reaches it.
    pub fn config(&self) -> Config {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let url = |member: &Member| format!("{scheme}://{}", member.client);
        Config {
            endpoints: self.members.iter().map(url).collect(),
            ..self.tls.clone().unwrap_or_default()
        }
    }

    /// Kills a member, as a power cut would.
    pub fn kill(&mut self, member: usize) {
        self.members[member].kill();
    }

    /// Starts a killed member again over its files; done when it listens.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart(&mut self, member: usize) -> Result<()> {
        self.members[member].spawn()?;
        self.members[member].wait()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            member.kill();
        }
    }
}

impl Member {
    fn spawn(&mut self) -> Result<()> {
        let child = Command::new(crate::tool("etcd")?)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("run etcd")?;
        self.child = Some(child);
        Ok(())
    }

    #[allow(
        clippy::disallowed_methods,
        reason = "another process is waited for, and it tells nobody that it listens"
    )]
    fn wait(&mut self) -> Result<()> {
        for _ in 0..LOOKS {
            if std::net::TcpStream::connect(self.client).is_ok() {
                return Ok(());
            }
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                bail!("etcd ended: {status}; it was run with {:?}", self.arguments);
            }
            std::thread::sleep(LOOK);
        }
        bail!("etcd does not listen at {}", self.client)
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Ports that nobody listened at a moment ago, all different.
fn free_ports(host: IpAddr, count: usize) -> Result<Vec<u16>> {
    let listeners = (0..count)
        .map(|_| TcpListener::bind((host, 0)))
        .collect::<std::io::Result<Vec<_>>>()?;
    let port = |listener: &TcpListener| Ok(listener.local_addr()?.port());
    listeners.iter().map(port).collect()
}
