//! Every packaging of a Wasm image, and helm.

use crate::harness::{Part, Registry, Site, eventually, get, repo_file, text, tool};
use crate::pods::{command, pod};
use std::process::Command;

#[test]
fn helm_installs_upgrades_and_uninstalls() {
    let site = Site::start();
    let chart = tempfile::tempdir().expect("directory");
    std::fs::create_dir(chart.path().join("templates")).expect("directory");
    std::fs::write(
        chart.path().join("Chart.yaml"),
        "apiVersion: v2\nname: till\nversion: 0.1.0\n",
    )
    .expect("write");
    std::fs::write(chart.path().join("values.yaml"), "greeting: hello\n").expect("write");
    std::fs::write(
        chart.path().join("templates/all.yaml"),
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ .Release.Name }}-config\ndata:\n  greeting: {{ .Values.greeting }}\n---\napiVersion: v1\nkind: Service\nmetadata:\n  name: {{ .Release.Name }}\nspec:\n  selector: {app: till}\n  ports: [{port: 80, name: http}]\n",
    )
    .expect("write");
    let chart = chart.path().display().to_string();
    let helm = |args: &[&str]| {
        let output = Command::new(tool("helm"))
            .args(args)
            .env("KUBECONFIG", site.kubeconfig())
            .env("HOME", &site.dir)
            .output()
            .expect("run helm");
        assert!(
            output.status.success(),
            "helm {}: {}",
            args.join(" "),
            text(&output)
        );
        text(&output)
    };
    assert!(helm(&["install", "shop", &chart]).contains("STATUS: deployed"));
    let greeting = || {
        site.ok(&[
            "get",
            "configmap",
            "shop-config",
            "-o",
            "jsonpath={.data.greeting}",
        ])
    };
    assert_eq!(greeting(), "hello");
    helm(&["upgrade", "shop", &chart, "--set", "greeting=bye"]);
    assert_eq!(greeting(), "bye");
    helm(&["rollback", "shop", "1"]);
    assert_eq!(greeting(), "hello");
    assert!(helm(&["list"]).contains("deployed"));
    helm(&["uninstall", "shop"]);
    assert!(
        site.fails(&["get", "configmap", "shop-config"])
            .contains("NotFound")
    );
}

/// A tar archive with one file, gzip-compressed or not.
fn archive(path: &str, content: &[u8], gzip: bool) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    let mut builder = tar::Builder::new(Vec::new());
    builder
        .append_data(&mut header, path, content)
        .expect("archive");
    let tar = builder.into_inner().expect("archive");
    if !gzip {
        return tar;
    }
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, &tar).expect("gzip");
    encoder.finish().expect("gzip")
}

#[test]
fn every_packaging_of_a_wasm_image_runs() {
    let (registry, site) = (Registry::start(), Site::start());
    let dir = tempfile::tempdir().expect("directory");
    let wasm = std::fs::read(command(dir.path(), "unpacked and run", 0)).expect("module");
    let image_config = |entrypoint: &str| {
        let config = serde_json::json!({
            "architecture": "wasm", "os": "wasi", "config": {"Entrypoint": [entrypoint]},
            "rootfs": {"type": "layers", "diff_ids": []},
        });
        (
            "application/vnd.oci.image.config.v1+json",
            config.to_string().into_bytes(),
        )
    };
    let plain = |media_type| (media_type, b"{}".to_vec());
    let layer = |media_type| (media_type, wasm.clone());
    let (tar, tgz) = (
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
    );
    let packages: Vec<(&str, Part<'_>, Part<'_>)> = vec![
        (
            "cncf",
            plain("application/vnd.wasm.config.v0+json"),
            layer("application/wasm"),
        ),
        (
            "wasm-to-oci",
            plain("application/vnd.wasm.config.v1+json"),
            layer("application/vnd.wasm.content.layer.v1+wasm"),
        ),
        (
            "solo",
            plain("application/vnd.module.wasm.config.v1+json"),
            layer("application/vnd.module.wasm.content.layer.v1+wasm"),
        ),
        (
            "runwasi",
            image_config("/ignored"),
            layer("application/vnd.bytecodealliance.wasm.component.layer.v0+wasm"),
        ),
        (
            "compat-tar",
            image_config("/app.wasm"),
            (tar, archive("app.wasm", &wasm, false)),
        ),
        (
            "compat-gzip",
            image_config("/bin/app.wasm"),
            (tgz, archive("bin/app.wasm", &wasm, true)),
        ),
        (
            "plugin",
            image_config(""),
            (tgz, archive("plugin.wasm", &wasm, true)),
        ),
    ];
    for (name, config, layer) in packages {
        let image = registry.put(&format!("{name}:1"), config, &[layer]);
        site.apply(&pod(name, &image, "Never", ""));
        site.wait_for(&["get", "pod", name], "/status/phase", |p| p == "Succeeded");
        assert_eq!(site.ok(&["logs", name]), "unpacked and run\n", "{name}");
    }
}

#[test]
fn components_of_all_worlds_run() {
    let (registry, site) = (Registry::start(), Site::start());
    for (name, file) in [
        ("cli", "examples/job/job.wasm"),
        ("preview1", "crates/testkit/fixtures/job-preview1.wasm"),
    ] {
        let image = registry.push(&repo_file(file), &format!("{name}:1"));
        site.apply(&pod(name, &image, "Never", ""));
        site.wait_for(&["get", "pod", name], "/status/phase", |p| p == "Succeeded");
    }
    for (name, file) in [
        ("http02", "examples/hello/hello.wasm"),
        ("http03", "crates/testkit/fixtures/hello-p3.wasm"),
    ] {
        let image = registry.push(&repo_file(file), &format!("{name}:1"));
        site.apply(&pod(
            name,
            &image,
            "Always",
            "    ports: [{containerPort: 8080}]\n",
        ));
        let running = site.wait_for(&["get", "pod", name], "/status/phase", |p| p == "Running");
        let address = format!(
            "{}:8080",
            running["status"]["podIP"].as_str().expect("pod IP")
        );
        eventually(name, || {
            get(&address, "/")
                .map_err(|e| e.to_string())
                .and_then(|a| a.expect_code(200))
        });
    }
}
