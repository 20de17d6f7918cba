//! Every packaging of a Wasm image, and helm.

use crate::harness::{
    Part, Registry, Site, eventually, get, get_ok, repo_file, salp_command, text, tool,
};
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
        eventually(name, || get_ok(&address, "/"));
    }
}

/// Waits until a pod's image can't be had; the message of its status.
fn refused(site: &Site, name: &str) -> String {
    let pod = site.wait_for(
        &["get", "pod", name],
        "/status/containerStatuses/0/state/waiting/reason",
        |r| r == "ErrImagePull" || r == "ImagePullBackOff" || r == "ErrImageNeverPull",
    );
    pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"]
        .as_str()
        .expect("message")
        .to_owned()
}

fn succeeds(site: &Site, name: &str) {
    site.wait_for(&["get", "pod", name], "/status/phase", |p| p == "Succeeded");
}

#[test]
fn a_registry_with_a_password_serves_those_who_have_it() {
    let (registry, mut site) = (Registry::start_with_password(), Site::start());
    let dir = tempfile::tempdir().expect("directory");
    let wasm = command(dir.path(), "let in", 0).display().to_string();
    let image = format!("{}/shop/till:1", registry.address);

    // The command line, by ~/.docker/config.json.
    let home = tempfile::tempdir().expect("directory");
    let data = home.path().join("data").display().to_string();
    let image_command = |args: &[&str]| {
        let mut command = salp_command(&[&["image", "--data-dir", &data], args].concat());
        command.env("HOME", home.path()).output().expect("run salp")
    };
    let push = || image_command(&["push", &wasm, &image]);
    let denied = push();
    assert!(!denied.status.success());
    assert!(
        text(&denied).contains("authentication required"),
        "{}",
        text(&denied)
    );
    std::fs::create_dir(home.path().join(".docker")).expect("directory");
    std::fs::write(
        home.path().join(".docker/config.json"),
        // till:s3cret
        format!(
            "{{\"auths\": {{\"{}\": {{\"auth\": \"dGlsbDpzM2NyZXQ=\"}}}}}}",
            registry.address
        ),
    )
    .expect("write");
    let pushed = push();
    assert!(pushed.status.success(), "{}", text(&pushed));
    let pulled = image_command(&["pull", &image]);
    assert!(pulled.status.success(), "{}", text(&pulled));

    // Pods, by their secrets.
    for (name, password) in [("good", "s3cret"), ("bad", "wrong")] {
        site.ok(&[
            "create",
            "secret",
            "docker-registry",
            name,
            &format!("--docker-server={}", registry.address),
            "--docker-username=till",
            &format!("--docker-password={password}"),
        ]);
    }
    let secret = |secret: &str| format!("  imagePullSecrets: [{{name: {secret}}}]\n");
    site.apply(&pod("none", &image, "Never", ""));
    site.apply(&pod("wrong", &image, "Never", &secret("bad")));
    for name in ["none", "wrong"] {
        let message = refused(&site, name);
        assert!(message.contains(&image), "{message}");
        assert!(message.to_lowercase().contains("auth"), "{message}");
        assert!(
            !message.contains("wrong\"") && !message.contains("s3cret"),
            "{message}"
        );
    }
    site.apply(&pod("right", &image, "Never", &secret("good")));
    succeeds(&site, "right");

    // What came by a secret is for those who have it, though it is here now.
    for (name, more) in [("none-2", String::new()), ("wrong-2", secret("bad"))] {
        site.apply(&pod(name, &image, "Never", &more));
        let message = refused(&site, name);
        assert!(message.to_lowercase().contains("auth"), "{message}");
    }
    site.apply(&pod(
        "never",
        &image,
        "Never",
        "    imagePullPolicy: Never\n",
    ));
    let message = refused(&site, "never");
    assert!(
        message.contains("does not have the proper credentials"),
        "{message}"
    );

    // And it is for them without the registry, after a restart too.
    registry.stop();
    site.apply(&pod("right-2", &image, "Never", &secret("good")));
    succeeds(&site, "right-2");
    let turn = site.between_stop_and_start();
    site.signal("-INT");
    site.up(&[]);
    drop(turn);
    let more = format!("    imagePullPolicy: Never\n{}", secret("good"));
    site.apply(&pod("right-3", &image, "Never", &more));
    succeeds(&site, "right-3");
    site.apply(&pod(
        "never-2",
        &image,
        "Never",
        "    imagePullPolicy: Never\n",
    ));
    let message = refused(&site, "never-2");
    assert!(
        message.contains("does not have the proper credentials"),
        "{message}"
    );
}

#[test]
fn examples_in_javascript_and_python_run() {
    let (registry, site) = (Registry::start(), Site::start());
    for name in ["hello-js", "hello-python"] {
        let Some(file) = interpreted(name) else {
            skipped(&format!(
                "{name} is not built: `cargo xtask guests {name}` needs its language's packages"
            ));
            continue;
        };
        let image = registry.push(&file, &format!("{name}:1"));
        let manifest =
            std::fs::read_to_string(repo_file(&format!("examples/{name}/deployment.yaml")))
                .expect("manifest");
        site.apply(&manifest.replace(&format!("localhost:5000/{name}:1"), &image));
        // An interpreter is some 10 MB of code to compile, once.
        site.ok(&[
            "wait",
            "--for=condition=Available",
            &format!("deployment/{name}"),
            "--timeout=10m",
        ]);
        let service = site.json(&["get", "service", name]);
        let address = format!(
            "{}:8080",
            service["spec"]["clusterIP"].as_str().expect("IP")
        );
        let pods = site.json(&["get", "pods", "-l", &format!("app={name}")]);
        let pod = pods["items"][0]["metadata"]["name"].as_str().expect("name");
        eventually(name, || {
            let said = get_ok(&address, "/")?;
            if said == format!("Hello from {pod}\n") {
                Ok(())
            } else {
                Err(said)
            }
        });
        assert_eq!(get(&address, "/nothing").expect("answer").code, 404);
    }
}

/// An example that brings an interpreter, if `cargo xtask guests` has built it.
fn interpreted(name: &str) -> Option<std::path::PathBuf> {
    let file = repo_file("Cargo.toml").with_file_name(format!("target/guests/{name}.wasm"));
    file.exists().then_some(file)
}

#[allow(clippy::print_stderr, reason = "the test runner shows it")]
fn skipped(why: &str) {
    eprintln!("skipped: {why}");
}
