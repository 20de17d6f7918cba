//! Configuration: flags, then `SALP_…` variables, then the file, then defaults.

use crate::api_args::ApiArgs;
use crate::cli::{DataDir, LatticeArgs, Part, UpArgs};
use crate::store_commands::{StoreArgs, StoreSettings};
use ::sites::fleet::allowed::Answered;
use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::Taint;
use runtime_oci::StatedProgram;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// Where the configuration file is looked for when no flag names one.
const DEFAULT_FILE: &str = "/etc/salp/config.yaml";

/// The file: the names are those of the flags.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct File {
    data_dir: Option<PathBuf>,
    api_port: Option<u16>,
    bind_address: Option<IpAddr>,
    #[serde(default)]
    disable: Vec<Part>,
    kubelet_port: Option<u16>,
    node_name: Option<String>,
    max_pods: Option<u32>,
    pod_max_pids: Option<u64>,
    pod_manifest_path: Option<PathBuf>,
    kubelet_dir: Option<PathBuf>,
    shutdown_grace_period: Option<String>,
    shutdown_grace_period_critical_pods: Option<String>,
    #[serde(default)]
    node_labels: Vec<String>,
    #[serde(default)]
    register_with_taints: Vec<String>,
    #[serde(default)]
    insecure_registries: Vec<String>,
    #[serde(default)]
    registry_mirrors: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    oci_runtimes: BTreeMap<String, StatedProgram>,
    store: Option<String>,
    store_ca: Option<PathBuf>,
    store_cert: Option<PathBuf>,
    store_key: Option<PathBuf>,
    audit_policy_file: Option<PathBuf>,
    audit_log_path: Option<PathBuf>,
    audit_log_maxsize: Option<u64>,
    audit_log_maxbackup: Option<usize>,
    audit_log_maxage: Option<u64>,
    encryption_provider_config: Option<PathBuf>,
    authentication_config: Option<PathBuf>,
    oidc_issuer_url: Option<String>,
    oidc_client_id: Option<String>,
    oidc_username_claim: Option<String>,
    oidc_username_prefix: Option<String>,
    oidc_groups_claim: Option<String>,
    oidc_groups_prefix: Option<String>,
    oidc_ca_file: Option<PathBuf>,
    #[serde(default)]
    oidc_required_claim: Vec<String>,
    #[serde(default)]
    oidc_signing_algs: Vec<String>,
    requestheader_client_ca_file: Option<PathBuf>,
    #[serde(default)]
    requestheader_allowed_names: Vec<String>,
    #[serde(default)]
    requestheader_username_headers: Vec<String>,
    #[serde(default)]
    requestheader_uid_headers: Vec<String>,
    #[serde(default)]
    requestheader_group_headers: Vec<String>,
    #[serde(default)]
    requestheader_extra_headers_prefix: Vec<String>,
    store_prefix: Option<String>,
    site: Option<String>,
    #[serde(default)]
    lattice: Vec<String>,
    #[serde(default)]
    lattice_hub: bool,
    lattice_token: Option<String>,
    lattice_creds: Option<PathBuf>,
    lattice_nkey: Option<PathBuf>,
    lattice_ca: Option<PathBuf>,
    lattice_listen: Option<String>,
    #[serde(default)]
    lattice_advertise: Vec<String>,
    #[serde(default)]
    lattice_answers: Vec<String>,
    #[serde(default)]
    lattice_exec: Vec<String>,
    region: Option<String>,
    zone: Option<String>,
}

impl File {
    fn api(&self) -> ApiArgs {
        ApiArgs {
            audit_policy_file: self.audit_policy_file.clone(),
            audit_log_path: self.audit_log_path.clone(),
            audit_log_maxsize: self.audit_log_maxsize,
            audit_log_maxbackup: self.audit_log_maxbackup,
            audit_log_maxage: self.audit_log_maxage,
            encryption_provider_config: self.encryption_provider_config.clone(),
            authentication_config: self.authentication_config.clone(),
            oidc_issuer_url: self.oidc_issuer_url.clone(),
            oidc_client_id: self.oidc_client_id.clone(),
            oidc_username_claim: self.oidc_username_claim.clone(),
            oidc_username_prefix: self.oidc_username_prefix.clone(),
            oidc_groups_claim: self.oidc_groups_claim.clone(),
            oidc_groups_prefix: self.oidc_groups_prefix.clone(),
            oidc_ca_file: self.oidc_ca_file.clone(),
            oidc_required_claim: self.oidc_required_claim.clone(),
            oidc_signing_algs: self.oidc_signing_algs.clone(),
            requestheader_client_ca_file: self.requestheader_client_ca_file.clone(),
            requestheader_allowed_names: self.requestheader_allowed_names.clone(),
            requestheader_username_headers: self.requestheader_username_headers.clone(),
            requestheader_uid_headers: self.requestheader_uid_headers.clone(),
            requestheader_group_headers: self.requestheader_group_headers.clone(),
            requestheader_extra_headers_prefix: self.requestheader_extra_headers_prefix.clone(),
        }
    }
}

/// How a site meets others.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LatticeSettings {
    pub name: String,
    pub region: String,
    pub zone: String,
    /// Whether it admits the others.
    pub hub: bool,
    pub token: Option<String>,
    pub servers: Vec<String>,
    pub credentials: Option<PathBuf>,
    pub nkey: Option<PathBuf>,
    pub tls_ca: Option<PathBuf>,
    /// `None`: others reach this site over NATS only.
    pub direct: Option<DirectSettings>,
    /// What other sites are told of pods and nodes here: an affair of the control plane.
    #[serde(skip)]
    pub answered: Answered,
    /// In pods of which namespaces other sites may run programs.
    #[serde(skip, default = "nothing")]
    pub executed: Answered,
}

fn nothing() -> Answered {
    Answered::Nothing
}

/// How other sites reach this one without NATS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DirectSettings {
    pub listen: SocketAddr,
    /// What they are told; empty for what is listened on.
    pub advertise: Vec<String>,
}

impl LatticeSettings {
    /// As the lattice takes it; it keeps its files in `dir`.
    ///
    /// # Errors
    /// When a name or the token can't be one.
    pub fn config(&self, dir: PathBuf) -> Result<lattice::LatticeConfig> {
        let name = lattice::SiteName {
            name: self.name.clone(),
            region: self.region.clone(),
            zone: self.zone.clone(),
        };
        if !name.is_valid() {
            bail!(
                "use site name {:?}: names, regions and zones are up to 63 lower-case letters, digits and hyphens",
                name.name
            );
        }
        let role = if self.hub {
            lattice::Role::Hub
        } else {
            let token = self.token.as_deref().map(lattice::JoinToken::from_text);
            let token = token.transpose().context("use --lattice-token")?;
            lattice::Role::Member { token }
        };
        Ok(lattice::LatticeConfig {
            dir,
            name,
            role,
            link: lattice::LinkConfig {
                servers: self.servers.clone(),
                credentials: self.credentials.clone(),
                nkey: self.nkey.clone(),
                tls_ca: self.tls_ca.clone(),
                tls_client: None,
            },
            timing: lattice::Timing::default(),
        })
    }
}

impl std::fmt::Debug for LatticeSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Addresses and the token are secrets.
        f.debug_struct("LatticeSettings")
            .field("name", &self.name)
            .field("direct", &self.direct)
            .finish_non_exhaustive()
    }
}

/// What `salp up` starts.
#[derive(Clone, Debug)]
pub struct Site {
    pub data_dir: PathBuf,
    pub api_port: u16,
    pub bind_address: IpAddr,
    /// What does not run.
    pub disabled: Vec<Part>,
    /// `None`: 10250, or a free port where that is taken.
    pub kubelet_port: Option<u16>,
    pub node_name: String,
    pub max_pods: u32,
    pub pod_max_pids: Option<u64>,
    /// Directory of static pods.
    pub pod_manifest_path: Option<PathBuf>,
    /// Where device plugins look for a kubelet, if that is stated.
    pub kubelet_dir: Option<PathBuf>,
    /// What pods get when the machine goes down.
    pub shutdown_grace: node::ShutdownGrace,
    pub node_labels: BTreeMap<String, String>,
    /// Taints that the Node has when it is first seen.
    pub node_taints: Vec<Taint>,
    pub insecure_registries: Vec<String>,
    pub registry_mirrors: BTreeMap<String, Vec<String>>,
    /// What the file says of OCI runtimes, by RuntimeClass handler.
    pub oci_runtimes: BTreeMap<String, StatedProgram>,
    /// Folders of manifests that are applied as they change, by a name of each.
    pub manifests: Vec<(String, PathBuf)>,
    /// Where its objects are kept.
    pub store: StoreSettings,
    /// What the API server records, keeps encrypted and believes.
    pub api: ApiArgs,
    /// `None`: the site is alone.
    pub lattice: Option<LatticeSettings>,
}

impl Site {
    pub fn runs(&self, part: Part) -> bool {
        !self.disabled.contains(&part)
    }
}

/// The data directory that the flags or the surroundings name.
pub fn data_dir(arg: &DataDir) -> Result<PathBuf> {
    let dir = match &arg.data_dir {
        Some(dir) => dir.clone(),
        None => match read_file(Path::new(DEFAULT_FILE), true)?.data_dir {
            Some(dir) => dir,
            None => default_data_dir()?,
        },
    };
    std::path::absolute(&dir).with_context(|| format!("find data directory {}", dir.display()))
}

/// Puts flags, file and defaults together.
pub fn site(args: &UpArgs) -> Result<Site> {
    let file = match &args.config {
        Some(path) => read_file(path, false)?,
        None => read_file(Path::new(DEFAULT_FILE), true)?,
    };
    let data_dir = match args.data_dir.data_dir.clone().or(file.data_dir.clone()) {
        Some(dir) => dir,
        None => default_data_dir()?,
    };
    let node_name = match args.node.node_name.clone().or(file.node_name.clone()) {
        Some(name) => {
            if let Err(why) = apimachinery::names::dns1123_subdomain(&name) {
                bail!("use node name {name:?}: {why}");
            }
            name
        }
        None => host_name(),
    };
    let bind_address = args
        .bind_address
        .or(file.bind_address)
        .unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let lattice = lattice_settings(&args.lattice, &file, &node_name, bind_address)?;
    let disabled = either(&args.disable, &file.disable).to_vec();
    if lattice.is_some() && disabled.contains(&Part::Node) {
        bail!("use --disable node: sites meet in the data plane, leave --lattice away");
    }
    let store = StoreArgs {
        store: args.store.store.clone().or(file.store.clone()),
        store_ca: args.store.store_ca.clone().or(file.store_ca.clone()),
        store_cert: args.store.store_cert.clone().or(file.store_cert.clone()),
        store_key: args.store.store_key.clone().or(file.store_key.clone()),
        store_prefix: args
            .store
            .store_prefix
            .clone()
            .or(file.store_prefix.clone()),
    };
    let node = &args.node;
    let pod_manifest_path = node
        .pod_manifest_path
        .clone()
        .or(file.pod_manifest_path.clone());
    Ok(Site {
        store: store.settings()?,
        api: args.api.clone().or(file.api()),
        lattice,
        data_dir: std::path::absolute(&data_dir)
            .with_context(|| format!("find data directory {}", data_dir.display()))?,
        api_port: args.api_port.or(file.api_port).unwrap_or(6443),
        bind_address,
        disabled,
        kubelet_port: node.kubelet_port.or(file.kubelet_port),
        node_name,
        max_pods: node.max_pods.or(file.max_pods).unwrap_or(10_000),
        pod_max_pids: node.pod_max_pids.or(file.pod_max_pids),
        pod_manifest_path: pod_manifest_path
            .map(std::path::absolute)
            .transpose()
            .context("find directory of static pods")?,
        kubelet_dir: node
            .kubelet_dir
            .clone()
            .or(file.kubelet_dir)
            .map(std::path::absolute)
            .transpose()
            .context("find the kubelet's directory")?,
        shutdown_grace: crate::shutdown::grace(
            node.shutdown_grace_period
                .as_deref()
                .or(file.shutdown_grace_period.as_deref()),
            node.shutdown_grace_period_critical_pods
                .as_deref()
                .or(file.shutdown_grace_period_critical_pods.as_deref()),
        )?,
        node_labels: labels(either(&node.node_labels, &file.node_labels))?,
        node_taints: taints(either(
            &node.register_with_taints,
            &file.register_with_taints,
        ))?,
        insecure_registries: either(&node.insecure_registry, &file.insecure_registries).to_vec(),
        registry_mirrors: file.registry_mirrors,
        oci_runtimes: file.oci_runtimes,
        manifests: manifests_dirs(),
    })
}

/// Flags overrule the file.
fn either<'a, T>(flags: &'a [T], file: &'a [T]) -> &'a [T] {
    if flags.is_empty() { file } else { flags }
}

fn labels(texts: &[String]) -> Result<BTreeMap<String, String>> {
    let split = texts.iter().map(|text| {
        let (key, value) = text
            .split_once('=')
            .with_context(|| format!("use node label {text:?}: want KEY=VALUE"))?;
        Ok((key.to_owned(), value.to_owned()))
    });
    split.collect()
}

/// As `kubectl taint` has them: `KEY=VALUE:EFFECT` or `KEY:EFFECT`.
fn taints(texts: &[String]) -> Result<Vec<Taint>> {
    let parse = |text: &String| {
        let (what, effect) = text.rsplit_once(':')?;
        let (key, value) = match what.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (what, None),
        };
        let known = ["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect);
        (known && !key.is_empty()).then(|| Taint {
            key: key.to_owned(),
            value: value.filter(|v| !v.is_empty()),
            effect: effect.to_owned(),
            time_added: None,
        })
    };
    let all = texts.iter().map(|text| {
        parse(text).with_context(|| {
            format!(
                "use node taint {text:?}: want KEY=VALUE:EFFECT, EFFECT one of NoSchedule, PreferNoSchedule, NoExecute"
            )
        })
    });
    all.collect()
}

fn lattice_settings(
    args: &LatticeArgs,
    file: &File,
    node_name: &str,
    bind: IpAddr,
) -> Result<Option<LatticeSettings>> {
    let servers = either(&args.servers, &file.lattice).to_vec();
    let hub = args.lattice_hub || file.lattice_hub;
    let token = args.lattice_token.clone().or(file.lattice_token.clone());
    if servers.is_empty() {
        if hub || token.is_some() {
            bail!("join the lattice: name its NATS server with --lattice");
        }
        return Ok(None);
    }
    let own = node_name.split('.').next().unwrap_or(node_name);
    let place = |arg: &Option<String>, file: &Option<String>| {
        arg.clone().or(file.clone()).unwrap_or_default()
    };
    let path = |arg: &Option<PathBuf>, file: &Option<PathBuf>| {
        let path = arg.clone().or(file.clone());
        // The data plane has another working directory.
        let path = path.map(|p| std::path::absolute(&p));
        path.transpose().context("find a file of the lattice")
    };
    let settings = LatticeSettings {
        name: args
            .site
            .clone()
            .or(file.site.clone())
            .unwrap_or_else(|| own.to_owned()),
        region: place(&args.region, &file.region),
        zone: place(&args.zone, &file.zone),
        hub,
        token: token.filter(|_| !hub),
        servers,
        credentials: path(&args.lattice_creds, &file.lattice_creds)?,
        nkey: path(&args.lattice_nkey, &file.lattice_nkey)?,
        tls_ca: path(&args.lattice_ca, &file.lattice_ca)?,
        direct: direct_settings(args, file, bind)?,
        answered: answered(either(&args.lattice_answers, &file.lattice_answers))?,
        executed: executed(either(&args.lattice_exec, &file.lattice_exec))?,
    };
    settings.config(PathBuf::new())?;
    Ok(Some(settings))
}

/// Reads `--lattice-answers`.
fn answered(words: &[String]) -> Result<Answered> {
    which("--lattice-answers", words, Answered::All)
}

/// Reads `--lattice-exec`.
fn executed(words: &[String]) -> Result<Answered> {
    which("--lattice-exec", words, Answered::Nothing)
}

fn which(flag: &str, words: &[String], default: Answered) -> Result<Answered> {
    match words {
        [] => Ok(default),
        [one] if one == "all" => Ok(Answered::All),
        [one] if one == "off" => Ok(Answered::Nothing),
        namespaces => {
            for name in namespaces {
                if let Err(why) = apimachinery::names::dns1123_label(name) {
                    bail!("use {flag} {name:?}: want all, off or namespaces: {why}");
                }
                if name == "all" || name == "off" {
                    bail!("use {flag}: {name:?} stands alone");
                }
            }
            Ok(Answered::Namespaces(namespaces.iter().cloned().collect()))
        }
    }
}

fn direct_settings(
    args: &LatticeArgs,
    file: &File,
    bind: IpAddr,
) -> Result<Option<DirectSettings>> {
    let listen = args.lattice_listen.clone().or(file.lattice_listen.clone());
    let listen = match listen.as_deref() {
        Some("off") => return Ok(None),
        Some(address) => address
            .parse()
            .with_context(|| format!("use --lattice-listen {address}: want ADDRESS:PORT or off"))?,
        None => SocketAddr::new(bind, 0),
    };
    let advertise = either(&args.lattice_advertise, &file.lattice_advertise).to_vec();
    Ok(Some(DirectSettings { listen, advertise }))
}

fn read_file(path: &Path, may_be_absent: bool) -> Result<File> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if may_be_absent && e.kind() == std::io::ErrorKind::NotFound => {
            return Ok(File::default());
        }
        Err(e) => return Err(e).with_context(|| format!("read configuration {}", path.display())),
    };
    if text.trim().is_empty() {
        return Ok(File::default());
    }
    serde_saphyr::from_str(&text).with_context(|| format!("read configuration {}", path.display()))
}

/// The machine's folder of manifests and the user's, there or not.
fn manifests_dirs() -> Vec<(String, PathBuf)> {
    let own = match std::env::var_os("XDG_CONFIG_HOME").filter(|d| !d.is_empty()) {
        Some(dir) => Some(PathBuf::from(dir)),
        None => std::env::home_dir().map(|home| home.join(".config")),
    };
    let machine = ("system".to_owned(), PathBuf::from("/etc/salp/manifests"));
    let own = own.map(|dir| ("user".to_owned(), dir.join("salp/manifests")));
    std::iter::once(machine).chain(own).collect()
}

fn default_data_dir() -> Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/salp"));
    }
    if let Some(dir) = std::env::var_os("XDG_DATA_HOME").filter(|d| !d.is_empty()) {
        return Ok(PathBuf::from(dir).join("salp"));
    }
    match std::env::home_dir() {
        Some(home) => Ok(home.join(".local/share/salp")),
        None => {
            bail!("find data directory: neither XDG_DATA_HOME nor HOME is set; give --data-dir")
        }
    }
}

/// The host's name as a node name: lower case, what does not fit replaced by `-`.
fn host_name() -> String {
    let raw = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .to_lowercase();
    let name: String = raw
        .chars()
        .map(|c| {
            if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.' {
                c
            } else {
                '-'
            }
        })
        .collect();
    let name = name.trim_matches(['-', '.']).to_owned();
    if name.is_empty() {
        "node".to_owned()
    } else {
        name
    }
}

/// Files and directories of a site, all under its data directory.
#[derive(Clone, Debug)]
pub struct Layout {
    pub root: PathBuf,
}

impl Layout {
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }
    pub fn pki(&self) -> PathBuf {
        self.root.join("pki")
    }
    pub fn kubeconfig(&self) -> PathBuf {
        self.root.join("kubeconfig.yaml")
    }
    pub fn store(&self) -> PathBuf {
        self.root.join("store").join("salp.db")
    }
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }
    pub fn node(&self) -> PathBuf {
        self.root.join("node")
    }
    pub fn gitops(&self) -> PathBuf {
        self.root.join("gitops")
    }
    pub fn site_file(&self) -> PathBuf {
        self.root.join("site.json")
    }
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }
    pub fn lock(&self) -> PathBuf {
        self.run().join("salp.lock")
    }
    pub fn lattice(&self) -> PathBuf {
        self.root.join("lattice")
    }
    pub fn sites_socket(&self) -> PathBuf {
        self.run().join("sites.sock")
    }
    pub fn fleet_socket(&self) -> PathBuf {
        self.run().join("fleet.sock")
    }
    /// The kubeconfig of a part that runs in the data plane.
    pub fn kubeconfig_of(&self, part: &str) -> PathBuf {
        self.run().join(format!("{part}.kubeconfig"))
    }
    pub fn dataplane_config(&self) -> PathBuf {
        self.run().join("dataplane.json")
    }
    pub fn dataplane_socket(&self) -> PathBuf {
        self.run().join("dataplane.sock")
    }
    pub fn dataplane_pid(&self) -> PathBuf {
        self.run().join("dataplane.pid")
    }
    pub fn dataplane_state(&self) -> PathBuf {
        self.root.join("dataplane")
    }
    pub fn supervisor_config(&self) -> PathBuf {
        self.run().join("supervisor.json")
    }
    pub fn supervisor_socket(&self) -> PathBuf {
        self.run().join("supervisor.sock")
    }
    pub fn supervisor_pid(&self) -> PathBuf {
        self.run().join("supervisor.pid")
    }
    pub fn supervisor_log(&self) -> PathBuf {
        self.root.join("supervisor.log")
    }
    /// Root directories of containers and what goes with them.
    pub fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }
    pub fn dataplane_log(&self) -> PathBuf {
        self.root.join("dataplane.log")
    }

    /// Makes the directories, readable by the owner alone.
    pub fn create(&self) -> Result<()> {
        use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
        for dir in [
            self.root.clone(),
            self.pki(),
            self.run(),
            self.root.join("store"),
            self.dataplane_state(),
            self.node(),
        ] {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)
                .with_context(|| {
                    format!(
                        "make directory {}: choose another with --data-dir",
                        dir.display()
                    )
                })?;
        }
        std::fs::set_permissions(&self.root, std::fs::Permissions::from_mode(0o700))
            .with_context(|| format!("restrict directory {}", self.root.display()))
    }
}

/// Writes a file by way of a temporary one beside it: it is there whole or not at all.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;
    let dir = path.parent().context("find directory of file")?;
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::Builder::new()
            .prefix(".tmp")
            .permissions(std::fs::Permissions::from_mode(mode))
            .tempfile_in(dir)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_knows_its_keys() {
        let ok: File = serde_saphyr::from_str("api-port: 7443\nbind-address: 0.0.0.0\n").unwrap();
        assert_eq!(ok.api_port, Some(7443));
        let ok: File = serde_saphyr::from_str("disable: [node, gitops]\n").unwrap();
        assert_eq!(ok.disable, [Part::Node, Part::Gitops]);
        let wrong = serde_saphyr::from_str::<File>("api-prot: 7443\n").unwrap_err();
        assert!(wrong.to_string().contains("api-prot"), "{wrong}");
    }

    #[test]
    fn what_other_sites_are_told_is_said_in_a_word_or_by_namespaces() {
        let read =
            |words: &[&str]| answered(&words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>());
        assert_eq!(read(&[]).unwrap(), Answered::All);
        assert_eq!(read(&["all"]).unwrap(), Answered::All);
        assert_eq!(read(&["off"]).unwrap(), Answered::Nothing);
        let some = ["shop".to_owned(), "till".to_owned()].into();
        assert_eq!(read(&["shop", "till"]).unwrap(), Answered::Namespaces(some));
        for wrong in [&["off", "shop"][..], &["Shop"], &[""]] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn labels_and_taints_are_read_as_kubectl_writes_them() {
        let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let found = labels(&words(&["zone=a", "empty="])).unwrap();
        assert_eq!(found["zone"], "a");
        assert_eq!(found["empty"], "");
        assert!(labels(&words(&["zone"])).is_err());
        let found = taints(&words(&["a/b=c:NoSchedule", "d:NoExecute", "e=:NoExecute"])).unwrap();
        let found: Vec<_> = found
            .iter()
            .map(|t| (t.key.as_str(), t.value.as_deref(), t.effect.as_str()))
            .collect();
        assert_eq!(
            found,
            [
                ("a/b", Some("c"), "NoSchedule"),
                ("d", None, "NoExecute"),
                ("e", None, "NoExecute"),
            ]
        );
        for wrong in ["a=b", "a=b:Never", ":NoExecute", "=b:NoExecute"] {
            assert!(taints(&words(&[wrong])).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_file_is_replaced_whole() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        write_atomic(&path, b"one", 0o600).unwrap();
        write_atomic(&path, b"two", 0o600).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
