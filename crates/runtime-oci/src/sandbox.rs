//! A pod's surroundings: namespaces that no process need hold, its link to the machine, and the
//! files that its containers are shown.
//!
//! The namespaces are kept by mounts of the supervisor's own, not by a process that waits: a pod
//! costs a few files.

use crate::mounts;
use crate::pause::Pause;
use pod_network::veth;
use runtime::{LinuxSandbox, SandboxId, SandboxSpec};
use rustix::thread::UnshareFlags;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

/// Why there are no surroundings.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SandboxError {
    #[error("write {}", .0.display())]
    Write(PathBuf, #[source] io::Error),
    #[error("make namespaces")]
    Namespaces(#[source] io::Error),
    #[error("make link")]
    Link(#[from] veth::Error),
    #[error("use address {0}: container pods need one that is no loopback address")]
    Address(IpAddr),
}

/// What its network namespace is called among its files.
pub(crate) const NETWORK: &str = "network";

/// Where a pod's files are, in the supervisor's directory.
pub(crate) fn dir(supervisor: &Path, id: &SandboxId) -> PathBuf {
    supervisor.join("sandboxes").join(&id.0)
}

/// Where a pod's namespaces and files are.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    dir: PathBuf,
    /// In the machine's own network: it has no network or host name of its own.
    pub(crate) host_network: bool,
    pub(crate) host_ipc: bool,
    /// Its containers see each other's processes.
    pub(crate) shared_processes: bool,
    link: String,
}

impl Surroundings {
    pub(crate) fn of(dir: PathBuf, spec: &SandboxSpec) -> Self {
        let linux = spec.linux.as_deref();
        Self {
            host_network: linux.is_some_and(|l| l.host_network),
            host_ipc: linux.is_some_and(|l| l.host_ipc),
            shared_processes: linux.is_some_and(|l| l.share_process_namespace && !l.host_pid),
            link: link_name(&spec.id.0),
            dir,
        }
    }

    pub(crate) fn hosts(&self) -> PathBuf {
        self.dir.join("hosts")
    }

    pub(crate) fn resolv_conf(&self) -> PathBuf {
        self.dir.join("resolv.conf")
    }

    pub(crate) fn hostname(&self) -> PathBuf {
        self.dir.join("hostname")
    }

    /// A namespace by the name that an OCI spec has for it.
    pub(crate) fn namespace(&self, kind: &str) -> PathBuf {
        self.dir.join(kind)
    }

    /// The namespaces that it has of its own and its containers share, by their names in an OCI
    /// spec.
    pub(crate) fn kinds(&self) -> &'static [&'static str] {
        match (self.host_network, self.host_ipc) {
            (true, true) => &[],
            (true, false) => &["ipc"],
            (false, true) => &[NETWORK, "uts"],
            (false, false) => &[NETWORK, "uts", "ipc"],
        }
    }

    /// Makes all of it. Blocking.
    pub(crate) fn make(&self, spec: &SandboxSpec, gateway: Ipv4Addr) -> Result<(), SandboxError> {
        let usual = LinuxSandbox::default();
        let linux = spec.linux.as_deref().unwrap_or(&usual);
        let write = |path: PathBuf, text: String| {
            fs::write(&path, text).map_err(|source| SandboxError::Write(path, source))
        };
        fs::create_dir_all(&self.dir).map_err(|e| SandboxError::Write(self.dir.clone(), e))?;
        write(self.hosts(), hosts(spec, linux))?;
        write(self.resolv_conf(), resolv_conf(spec))?;
        write(self.hostname(), format!("{}\n", spec.hostname))?;
        if self.kinds().is_empty() {
            return Ok(());
        }
        let link = match spec.ip {
            _ if self.host_network => None,
            IpAddr::V4(address) if !address.is_loopback() => Some(veth::Link {
                name: self.link.clone(),
                address,
                gateway,
            }),
            other => return Err(SandboxError::Address(other)),
        };
        for kind in self.kinds() {
            write(self.namespace(kind), String::new())?;
        }
        let this = self.clone();
        let hostname = spec.hostname.clone();
        let sysctls = linux.sysctls.clone();
        // A thread's namespaces end with it, but for those that are pinned.
        let made = std::thread::Builder::new()
            .name("sandbox".to_owned())
            .spawn(move || this.enter(link.as_ref(), &hostname, &sysctls))
            .map_err(SandboxError::Namespaces)?;
        let panicked = |_| SandboxError::Namespaces(io::ErrorKind::Other.into());
        made.join().map_err(panicked)?
    }

    /// On a thread of its own.
    fn enter(
        &self,
        link: Option<&veth::Link>,
        hostname: &str,
        sysctls: &[(String, String)],
    ) -> Result<(), SandboxError> {
        let io = SandboxError::Namespaces;
        let mut flags = UnshareFlags::empty();
        for kind in self.kinds() {
            flags |= match *kind {
                NETWORK => UnshareFlags::NEWNET,
                "uts" => UnshareFlags::NEWUTS,
                _ => UnshareFlags::NEWIPC,
            };
        }
        let Some(link) = link else {
            mounts::unshare(flags).map_err(io)?;
            return self.keep(sysctls);
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(io)?;
        runtime.block_on(async {
            let machine = File::open("/proc/thread-self/ns/net").map_err(io)?;
            let outside = veth::Netlink::open()?;
            mounts::unshare(flags).map_err(io)?;
            rustix::system::sethostname(hostname.as_bytes()).map_err(|e| io(e.into()))?;
            let inside = veth::Netlink::open()?;
            veth::join(link, &inside, &outside, machine.as_fd()).await?;
            self.keep(sysctls)?;
            inside.close().await;
            outside.close().await;
            Ok(())
        })
    }

    /// Sets this thread's namespaces up and pins them.
    fn keep(&self, sysctls: &[(String, String)]) -> Result<(), SandboxError> {
        for (name, value) in sysctls {
            let path = Path::new("/proc/sys").join(name.replace('.', "/"));
            fs::write(&path, value).map_err(|e| SandboxError::Write(path, e))?;
        }
        for kind in self.kinds() {
            let file = if *kind == NETWORK { "net" } else { kind };
            let own = Path::new("/proc/thread-self/ns").join(file);
            mounts::bind(&own, &self.namespace(kind)).map_err(SandboxError::Namespaces)?;
        }
        Ok(())
    }

    /// Starts the first of its processes, where containers share them. Blocking.
    pub(crate) fn pause(&self, program: &[PathBuf]) -> Result<Option<Pause>, SandboxError> {
        if !self.shared_processes {
            return Ok(None);
        }
        let root = self.dir.join("pause");
        fs::create_dir_all(&root).map_err(|e| SandboxError::Write(root.clone(), e))?;
        let started = Pause::start(program, &root, &self.namespace("pid"));
        Ok(Some(started.map_err(SandboxError::Namespaces)?))
    }

    /// Takes all of it away; what is not there is passed over.
    pub(crate) async fn remove(&self) -> Result<(), SandboxError> {
        mounts::unmount(&self.namespace("pid")).map_err(SandboxError::Namespaces)?;
        if !self.host_network {
            // At once, not when the kernel gets to it: another pod may get the address.
            veth::remove(&self.link).await?;
        }
        for kind in self.kinds() {
            mounts::unmount(&self.namespace(kind)).map_err(SandboxError::Namespaces)?;
        }
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(SandboxError::Write(self.dir.clone(), error))
            }
            _ => Ok(()),
        }
    }
}

/// Of a pod's link on the machine: interfaces have short names.
fn link_name(id: &str) -> String {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    let hash = format!("{:016x}", hasher.finish());
    format!("salp{}", &hash[..11])
}

/// `/etc/hosts`, as a kubelet writes it.
fn hosts(spec: &SandboxSpec, linux: &LinuxSandbox) -> String {
    if linux.host_network {
        let own = fs::read_to_string("/etc/hosts").unwrap_or_default();
        return format!(
            "# Kubernetes-managed hosts file (host network).\n{own}{}",
            aliases(linux)
        );
    }
    let names = match &linux.fqdn {
        Some(fqdn) => format!("{fqdn}\t{}", spec.hostname),
        None => spec.hostname.clone(),
    };
    format!(
        "# Kubernetes-managed hosts file.\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n\
         {}\t{names}\n{}",
        spec.ip,
        aliases(linux)
    )
}

fn aliases(linux: &LinuxSandbox) -> String {
    let mut text = String::new();
    for (at, (ip, names)) in linux.host_aliases.iter().enumerate() {
        if at == 0 {
            text.push_str("\n# Entries added by HostAliases.\n");
        }
        // Writing to memory does not fail.
        let _ = writeln!(text, "{ip}\t{}", names.join("\t"));
    }
    text
}

/// `/etc/resolv.conf`.
fn resolv_conf(spec: &SandboxSpec) -> String {
    let mut text = String::new();
    if !spec.dns.searches.is_empty() {
        let _ = writeln!(text, "search {}", spec.dns.searches.join(" "));
    }
    for server in &spec.dns.servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !spec.dns.options.is_empty() {
        let _ = writeln!(text, "options {}", spec.dns.options.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use runtime::Dns;

    fn spec(linux: LinuxSandbox) -> SandboxSpec {
        SandboxSpec {
            dns: Dns {
                servers: vec![[10, 43, 0, 10].into()],
                searches: vec!["shop.svc.cluster.local".into(), "svc.cluster.local".into()],
                options: vec!["ndots:5".into()],
            },
            ..crate::spec::tests::sandbox(linux)
        }
    }

    #[test]
    fn files_are_as_a_kubelet_writes_them() {
        let linux = LinuxSandbox {
            host_aliases: vec![([192, 0, 2, 1].into(), vec!["a".into(), "b".into()])],
            fqdn: Some("till.all.shop.svc.cluster.local".into()),
            ..LinuxSandbox::default()
        };
        let spec = spec(linux);
        expect![[r#"
            # Kubernetes-managed hosts file.
            127.0.0.1	localhost
            ::1	localhost ip6-localhost ip6-loopback
            fe00::0	ip6-localnet
            fe00::0	ip6-mcastprefix
            fe00::1	ip6-allnodes
            fe00::2	ip6-allrouters
            10.42.0.7	till.all.shop.svc.cluster.local	till

            # Entries added by HostAliases.
            192.0.2.1	a	b
        "#]]
        .assert_eq(&hosts(&spec, spec.linux.as_deref().unwrap()));
        expect![[r#"
            search shop.svc.cluster.local svc.cluster.local
            nameserver 10.43.0.10
            options ndots:5
        "#]]
        .assert_eq(&resolv_conf(&spec));
        assert_eq!(link_name("a long uid of a pod").len(), 15);
    }
}
