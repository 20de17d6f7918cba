//! Every way in which Wasm lies in registries, and what is none.

use crate::fake::{Fake, image};
use crate::{HELLO, store};
use images::{ImageKind, Platform, PullError, PullOptions, WasmForm};
use serde_json::{Value, json};
use std::io::Write as _;

const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const TAR_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const TAR_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const MODULE: &[u8] = b"\0asm\x01\0\0\0";

/// A tar archive of files.
fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 0).unwrap()
}

async fn pull(fake: &Fake, tag: &str) -> Result<(tempfile::TempDir, images::Image), PullError> {
    let (dir, store) = store();
    let image = store
        .pull(&fake.name(&format!("app:{tag}")), PullOptions::default())
        .await?;
    Ok((dir, image))
}

#[tokio::test]
async fn artifacts_of_every_convention_run() {
    let fake = Fake::start().await;
    for (config_type, layer_type) in [
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
            OCI_CONFIG,
            "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
        ),
        // Mixed pairs, and types that say nothing.
        ("application/vnd.wasm.config.v1+json", "application/wasm"),
        (
            "application/vnd.oci.empty.v1+json",
            "application/octet-stream",
        ),
        ("application/vnd.wasm.config.v0+json", TAR_GZIP),
    ] {
        let config = fake.layer(config_type, "{}");
        let layer = fake.layer(layer_type, HELLO);
        fake.manifest("1", &image(config, &[layer]));
        let (_dir, image) = pull(&fake, "1").await.unwrap();
        let ImageKind::Wasm {
            path, form, rootfs, ..
        } = image.kind
        else {
            panic!("{config_type} {layer_type}: {:?}", image.kind);
        };
        assert_eq!(form, WasmForm::Component);
        assert_eq!(rootfs, None);
        assert_eq!(
            std::fs::read(path).unwrap(),
            HELLO,
            "{config_type} {layer_type}"
        );
    }
}

fn run_config(os: &str, architecture: &str, run: &Value) -> String {
    json!({"os": os, "architecture": architecture, "config": run}).to_string()
}

#[tokio::test]
async fn compat_images_are_unpacked_layer_over_layer() {
    let fake = Fake::start().await;
    let run = json!({
        "Entrypoint": ["/app/main.wasm"], "Cmd": ["--x"], "Env": ["A=1"], "WorkingDir": "/app",
        "ExposedPorts": {"8080/tcp": {}},
    });
    let config = fake.layer(OCI_CONFIG, run_config("wasip1", "wasm", &run));
    let lower = tar(&[
        ("app/main.wasm", b"old"),
        ("data/a", b"a"),
        ("data/b", b"b"),
    ]);
    let middle = tar(&[
        ("app/main.wasm", MODULE),
        ("data/.wh.a", b""),
        ("more/x", b"x"),
    ]);
    let upper = tar(&[("more/.wh..wh..opq", b""), ("more/y", b"y")]);
    let layers = [
        fake.layer(TAR_GZIP, gzip(&lower)),
        fake.layer(TAR_ZSTD, zstd(&middle)),
        fake.layer(TAR, upper),
    ];
    fake.manifest("1", &image(config, &layers));
    let (_dir, image) = pull(&fake, "1").await.unwrap();
    assert_eq!(image.config.entrypoint, ["/app/main.wasm"]);
    assert_eq!(image.config.cmd, ["--x"]);
    assert_eq!(image.config.env, ["A=1"]);
    assert_eq!(image.config.exposed_ports, ["8080/tcp"]);
    let ImageKind::Wasm {
        path,
        form,
        rootfs: Some(rootfs),
        digest,
    } = image.kind
    else {
        panic!("{:?}", image.kind);
    };
    assert_eq!(
        (form, digest),
        (WasmForm::Module, images::Digest::sha256(MODULE))
    );
    assert_eq!(std::fs::read(&path).unwrap(), MODULE);
    assert_eq!(path, rootfs.join("app/main.wasm"));
    let there = |name: &str| rootfs.join(name).exists();
    let found = ["data/a", "data/b", "more/x", "more/y"].map(there);
    assert_eq!(found, [false, true, false, true]);
}

#[tokio::test]
async fn compat_images_are_known_by_any_of_their_marks() {
    let fake = Fake::start().await;
    let layer = fake.layer(
        DOCKER_LAYER,
        gzip(&tar(&[("plugin.wasm", MODULE), ("m.wat", b"(module)")])),
    );
    let none = json!({});
    let wat = json!({"Entrypoint": ["m.wat"]});
    let command = json!({"Entrypoint": ["/run"]});
    for (os, architecture, run, annotation, want) in [
        ("linux", "amd64", &none, None, WasmForm::Module),
        ("linux", "amd64", &wat, None, WasmForm::Text),
        ("wasi", "wasm32", &command, None, WasmForm::Module),
        (
            "linux",
            "amd64",
            &command,
            Some(("module.wasm.image/variant", "compat")),
            WasmForm::Module,
        ),
        (
            "linux",
            "amd64",
            &command,
            Some(("run.oci.handler", "wasm")),
            WasmForm::Module,
        ),
    ] {
        let config = fake.layer(DOCKER_CONFIG, run_config(os, architecture, run));
        let mut manifest = image(config, std::slice::from_ref(&layer));
        if let Some((key, value)) = annotation {
            manifest["annotations"] = json!({key: value});
        }
        fake.manifest("1", &manifest);
        let (_dir, image) = pull(&fake, "1").await.unwrap();
        let ImageKind::Wasm { form, .. } = image.kind else {
            panic!("{os}/{architecture} {run} {annotation:?}");
        };
        assert_eq!(form, want);
    }
}

#[tokio::test]
async fn container_images_are_recognised_and_not_fetched() {
    let fake = Fake::start().await;
    let run = json!({"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]});
    let config = fake.layer(OCI_CONFIG, run_config("linux", "amd64", &run));
    let layer = fake.layer(TAR_GZIP, gzip(&tar(&[("bin/sh", b"\x7fELF")])));
    fake.manifest("1", &image(config.clone(), std::slice::from_ref(&layer)));
    let (_dir, image_) = pull(&fake, "1").await.unwrap();
    let ImageKind::Container { layers, .. } = &image_.kind else {
        panic!()
    };
    assert_eq!(layers.len(), 1);
    assert_eq!(image_.config.cmd, ["/bin/sh"]);
    assert!(
        fake.asked()
            .iter()
            .all(|asked| !asked.path.contains(layer["digest"].as_str().unwrap()))
    );
    // Without a command it was looked into.
    let config = fake.layer(OCI_CONFIG, run_config("linux", "amd64", &json!({})));
    fake.manifest("2", &image(config, &[layer]));
    let (_dir, image_) = pull(&fake, "2").await.unwrap();
    assert!(matches!(image_.kind, ImageKind::Container { .. }));
}

#[tokio::test]
async fn an_index_gives_what_runs_here() {
    let fake = Fake::start().await;
    let host = Platform::host();
    let mut entries = Vec::new();
    for (tag, os, architecture) in [
        ("host", host.os.as_str(), host.architecture.as_str()),
        ("wasm", "wasip2", "wasm"),
    ] {
        let config = fake.layer(
            OCI_CONFIG,
            run_config(os, architecture, &json!({"Cmd": ["/x"]})),
        );
        let layer = fake.layer(TAR_GZIP, gzip(&tar(&[("x", HELLO)])));
        let digest = fake.manifest(tag, &image(config, &[layer]));
        entries.push(json!({
            "mediaType": crate::fake::OCI_MANIFEST, "digest": digest, "size": 0,
            "platform": {"os": os, "architecture": architecture},
        }));
    }
    let index = |entries: &[Value]| {
        json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": entries,
        })
    };
    let top = fake.manifest("1", &index(&entries));
    let (_dir, store) = store();
    let name = fake.name("app:1");
    let image = store.pull(&name, PullOptions::default()).await.unwrap();
    assert!(matches!(image.kind, ImageKind::Wasm { .. }));
    assert_eq!(image.digest, top);
    assert_eq!(
        Some(image.manifest_digest.as_str()),
        entries[1]["digest"].as_str()
    );
    let options = PullOptions {
        platform: Some(host),
        ..PullOptions::default()
    };
    let image = store.pull(&name, options).await.unwrap();
    assert!(matches!(image.kind, ImageKind::Container { .. }));

    entries[0]["platform"] = json!({"os": "plan9", "architecture": "mips"});
    fake.manifest("2", &index(&entries[..1]));
    let error = store
        .pull(&fake.name("app:2"), PullOptions::default())
        .await
        .unwrap_err();
    assert!(matches!(error, PullError::NoPlatform { .. }), "{error:?}");
    assert!(
        error.report().ends_with("it offers plan9/mips"),
        "{}",
        error.report()
    );
}

#[tokio::test]
async fn spin_applications_bring_their_files() {
    let fake = Fake::start().await;
    let config = fake.layer(OCI_CONFIG, run_config("wasip1", "wasm", &json!({})));
    let module = fake.layer("application/vnd.wasm.content.layer.v1+wasm", HELLO);
    let other = fake.layer("application/vnd.wasm.content.layer.v1+wasm", MODULE);
    let data = fake.layer("application/vnd.wasm.content.layer.v1+data", "text");
    let bundle = fake.layer(
        "application/vnd.wasm.content.bundle.v1.tar+gzip",
        gzip(&tar(&[("static/b.txt", b"b")])),
    );
    let application = json!({"components": [{
        "id": "web", "source": {"content_type": "application/wasm", "digest": module["digest"]},
        "files": [{"path": "static/a.txt", "content": {"digest": data["digest"]}}],
    }]});
    let application = fake.layer(
        "application/vnd.fermyon.spin.application.v1+config",
        application.to_string(),
    );
    fake.manifest(
        "1",
        &image(config, &[other, module, data, bundle, application]),
    );
    let (_dir, image) = pull(&fake, "1").await.unwrap();
    let ImageKind::Wasm {
        path,
        rootfs: Some(rootfs),
        ..
    } = image.kind
    else {
        panic!("{:?}", image.kind);
    };
    assert_eq!(std::fs::read(path).unwrap(), HELLO);
    assert_eq!(std::fs::read(rootfs.join("static/a.txt")).unwrap(), b"text");
    assert_eq!(std::fs::read(rootfs.join("static/b.txt")).unwrap(), b"b");
}

#[tokio::test]
async fn what_nothing_runs_is_named() {
    let fake = Fake::start().await;
    let config = fake.layer("application/vnd.cncf.helm.config.v1+json", "{}");
    let chart = fake.layer(
        "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
        gzip(b"x"),
    );
    fake.manifest("1", &image(config, &[chart]));
    let error = pull(&fake, "1").await.unwrap_err();
    assert!(
        matches!(error, PullError::UnsupportedArtifact { .. }),
        "{error:?}"
    );
    assert!(
        error.report().contains("is not a Wasm module or component"),
        "{}",
        error.report()
    );

    let config = fake.layer("application/vnd.wasm.config.v0+json", "{}");
    let broken = fake.layer("application/wasm", "not wasm");
    fake.manifest("2", &image(config, &[broken]));
    let error = pull(&fake, "2").await.unwrap_err();
    assert!(
        matches!(error, PullError::UnsupportedArtifact { .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn hostile_layers_change_nothing() {
    let fake = Fake::start().await;
    let (dir, store) = store();
    let outside = dir.path().join("outside");
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "out", dir.path()).unwrap();
    let link = builder.into_inner().unwrap();
    let through = tar(&[("out/outside", b"x")]);
    let config = fake.layer(
        OCI_CONFIG,
        run_config("wasi", "wasm", &json!({"Entrypoint": ["a.wasm"]})),
    );
    let layers = [fake.layer(TAR, link), fake.layer(TAR, through)];
    fake.manifest("1", &image(config, &layers));
    let error = store
        .pull(&fake.name("app:1"), PullOptions::default())
        .await
        .unwrap_err();
    assert!(matches!(error, PullError::Unpack { .. }), "{error:?}");
    assert!(!outside.exists());
    assert!(store.list().unwrap().is_empty());
    let left = std::fs::read_dir(dir.path().join("unpacked"))
        .unwrap()
        .count();
    assert_eq!(left, 0);
}
