//! What an image's manifest and configuration say it is made of: the packagings in use.
//! Pure; `pull` fetches what a [`Layout`] needs.
//!
//! Layer media types count first, then the first bytes: mixed pairs exist.

use crate::manifest::{
    Descriptor, ImageConfig, Manifest, SPIN_APPLICATION, SPIN_BUNDLE, SPIN_DATA, is_image_config,
    is_tar_layer, is_wasm_layer,
};
use crate::{Digest, WasmForm};
use serde::Deserialize;
use std::path::Path;

/// Images without an entry point are looked into up to here; Wasm ones are small.
const GUESS_BYTES_MAX: u64 = 256 << 20;

/// What to fetch and how it becomes an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// One layer is the Wasm file, if its first bytes agree.
    File(Descriptor),
    /// Spin: modules as layers, the application beside them, files as layers.
    Spin(Vec<Descriptor>),
    /// Archives with a Wasm file inside.
    Archives {
        /// Lowest first.
        layers: Vec<Descriptor>,
        /// Nothing says that it is Wasm: without a Wasm file it is a container image.
        guess: bool,
    },
    /// A container image.
    Container(Vec<Descriptor>),
    /// Something else; why.
    Unsupported(String),
}

impl Layout {
    /// By media types, annotations and entry point.
    pub(crate) fn of(manifest: &Manifest, config: &ImageConfig) -> Self {
        let layers = &manifest.layers;
        let wasm: Vec<_> = layers
            .iter()
            .filter(|layer| is_wasm_layer(&layer.media_type))
            .collect();
        let spin = layers.iter().any(|layer| {
            matches!(
                layer.media_type.as_str(),
                SPIN_APPLICATION | SPIN_DATA | SPIN_BUNDLE
            )
        });
        match wasm.as_slice() {
            [] => {}
            [one] if !spin => return Self::File((*one).clone()),
            _ => return Self::Spin(layers.clone()),
        }
        let total: u64 = layers
            .iter()
            .fold(0, |sum, layer| sum.saturating_add(layer.size));
        if is_image_config(&manifest.config.media_type) {
            if says_wasm(manifest, config) {
                return Self::Archives {
                    layers: layers.clone(),
                    guess: false,
                };
            }
            let no_command = config.entrypoint.is_empty() && config.cmd.is_empty();
            if no_command && !layers.is_empty() && total <= GUESS_BYTES_MAX {
                return Self::Archives {
                    layers: layers.clone(),
                    guess: true,
                };
            }
            return Self::Container(layers.clone());
        }
        match layers.as_slice() {
            [one] if !is_tar_layer(&one.media_type) => Self::File(one.clone()),
            [_, ..] if layers.iter().all(|layer| is_tar_layer(&layer.media_type)) => {
                Self::Archives {
                    layers: layers.clone(),
                    guess: false,
                }
            }
            _ => Self::Unsupported(format!(
                "artifact with config {:?} is neither Wasm nor a container image",
                short(&manifest.config.media_type)
            )),
        }
    }

    /// The layers to fetch, on a machine that runs containers or not.
    pub(crate) fn needed(&self, containers: bool) -> &[Descriptor] {
        match self {
            Self::Container(layers) if containers => layers,
            Self::File(layer) => std::slice::from_ref(layer),
            Self::Spin(layers) | Self::Archives { layers, .. } => layers,
            Self::Container(_) | Self::Unsupported(_) => &[],
        }
    }
}

fn says_wasm(manifest: &Manifest, config: &ImageConfig) -> bool {
    let says = |key: &str, values: &[&str]| {
        [&manifest.annotations, &config.labels].iter().any(|map| {
            map.get(key)
                .is_some_and(|value| values.contains(&value.as_str()))
        })
    };
    config.platform.as_ref().is_some_and(|p| p.is_wasm())
        || says("module.wasm.image/variant", &["compat", "compat-smart"])
        || says("run.oci.handler", &["wasm"])
        || first_argument(config).is_some_and(is_wasm_name)
}

fn first_argument(config: &ImageConfig) -> Option<&str> {
    let mut arguments = config.entrypoint.iter().chain(&config.cmd);
    arguments.next().map(String::as_str)
}

fn is_wasm_name(name: &str) -> bool {
    let extension = Path::new(name).extension();
    extension.is_some_and(|extension| extension == "wasm" || extension == "wat")
}

/// Names under which an archive image's Wasm file may be, the likeliest first.
pub(crate) fn entry_names(config: &ImageConfig) -> Vec<String> {
    let base = config.working_dir.as_deref().unwrap_or("/");
    let mut names = Vec::new();
    let arguments: Vec<_> = config.entrypoint.iter().chain(&config.cmd).collect();
    let likely = arguments
        .iter()
        .filter(|argument| is_wasm_name(argument))
        .chain(arguments.first());
    for name in likely {
        names.push(Path::new(base).join(name).to_string_lossy().into_owned());
        names.push((*name).clone());
    }
    names.push("plugin.wasm".to_owned());
    names
}

/// What Spin's locked application says of its first component.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SpinComponent {
    pub(crate) module: Digest,
    /// Path in the guest, content.
    pub(crate) files: Vec<(String, Digest)>,
}

impl SpinComponent {
    /// Best effort: `None` when the application can't be read.
    pub(crate) fn first(application: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Application {
            components: Vec<Component>,
        }
        #[derive(Deserialize)]
        struct Component {
            source: Content,
            #[serde(default)]
            files: Vec<File>,
        }
        #[derive(Deserialize)]
        struct File {
            path: String,
            content: Content,
        }
        #[derive(Deserialize)]
        struct Content {
            digest: Option<Digest>,
        }
        let application: Application = serde_json::from_slice(application).ok()?;
        let component = application.components.into_iter().next()?;
        Some(Self {
            module: component.source.digest?,
            files: component
                .files
                .into_iter()
                .filter_map(|file| Some((file.path, file.content.digest?)))
                .collect(),
        })
    }
}

/// A layer's form by its first bytes; archives and others give `None`.
pub(crate) fn sniff(path: &Path) -> std::io::Result<Option<WasmForm>> {
    use std::io::Read as _;
    let mut head = Vec::with_capacity(64);
    std::fs::File::open(path)?.take(64).read_to_end(&mut head)?;
    Ok(WasmForm::sniff(&head))
}

pub(crate) fn short(text: &str) -> String {
    text.chars().take(160).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn descriptor(media_type: &str) -> Descriptor {
        Descriptor {
            media_type: media_type.to_owned(),
            digest: Digest::sha256(media_type.as_bytes()),
            size: 10,
            platform: None,
            annotations: BTreeMap::new(),
        }
    }

    fn layout(config_type: &str, layers: &[&str], config: &ImageConfig) -> Layout {
        let manifest = Manifest {
            config: descriptor(config_type),
            layers: layers.iter().map(|layer| descriptor(layer)).collect(),
            annotations: BTreeMap::new(),
        };
        Layout::of(&manifest, config)
    }

    const IMAGE: &str = "application/vnd.oci.image.config.v1+json";
    const TAR: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    #[test]
    fn every_packaging_is_told_from_the_others() {
        let none = ImageConfig::default();
        let command = |word: &str| ImageConfig {
            entrypoint: vec![word.to_owned()],
            ..ImageConfig::default()
        };
        for (config_type, layer) in [
            ("application/vnd.wasm.config.v0+json", "application/wasm"),
            (
                "application/vnd.wasm.config.v1+json",
                "application/vnd.wasm.content.layer.v1+wasm",
            ),
            (
                "application/vnd.module.wasm.config.v1+json",
                "application/vnd.module.wasm.content.layer.v1+wasm",
            ),
            (
                IMAGE,
                "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
            ),
            (
                "application/vnd.unknown.config.v1+json",
                "application/octet-stream",
            ),
        ] {
            let want = Layout::File(descriptor(layer));
            assert_eq!(layout(config_type, &[layer], &none), want, "{config_type}");
        }
        let spin = ["application/vnd.wasm.content.layer.v1+wasm", SPIN_DATA];
        assert!(matches!(layout(IMAGE, &spin, &none), Layout::Spin(_)));
        let archives = |guess| Layout::Archives {
            layers: vec![descriptor(TAR)],
            guess,
        };
        assert_eq!(
            layout(IMAGE, &[TAR], &command("/app.wasm")),
            archives(false)
        );
        assert_eq!(layout(IMAGE, &[TAR], &none), archives(true));
        let mut config = command("/app");
        assert_eq!(
            layout(IMAGE, &[TAR], &config),
            Layout::Container(vec![descriptor(TAR)])
        );
        config.platform = Some(crate::Platform {
            os: "wasi".to_owned(),
            architecture: "wasm32".to_owned(),
            variant: None,
        });
        assert_eq!(layout(IMAGE, &[TAR], &config), archives(false));
        let odd = layout(
            "application/vnd.cncf.helm.config.v1+json",
            &["a", "b"],
            &none,
        );
        assert!(matches!(odd, Layout::Unsupported(_)));
    }

    #[test]
    fn entry_names_follow_the_command() {
        let config = ImageConfig {
            entrypoint: vec!["app".to_owned()],
            cmd: vec!["x.wasm".to_owned()],
            working_dir: Some("/srv".to_owned()),
            ..ImageConfig::default()
        };
        assert_eq!(
            entry_names(&config),
            ["/srv/x.wasm", "x.wasm", "/srv/app", "app", "plugin.wasm"]
        );
    }

    #[test]
    fn spin_applications_name_module_and_files() {
        let (module, file) = (Digest::sha256(b"m"), Digest::sha256(b"f"));
        let application = format!(
            r#"{{"components":[{{"id":"x","source":{{"digest":"{module}"}},
                "files":[{{"path":"/a.txt","content":{{"digest":"{file}"}}}}]}}]}}"#
        );
        assert_eq!(
            SpinComponent::first(application.as_bytes()),
            Some(SpinComponent {
                module,
                files: vec![("/a.txt".to_owned(), file)]
            })
        );
        assert_eq!(SpinComponent::first(b"{}"), None);
    }
}
