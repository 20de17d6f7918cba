//! Images and artifacts that are pulled for their files.

use crate::fake::{Fake, image};
use crate::store;
use images::{GcPolicy, Image, ImageKind, ImageStore, PullOptions, Reference, Wanted};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const RAW: &str = "application/octet-stream";

fn tar(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o640);
        header.set_uid(7);
        header.set_gid(8);
        builder
            .append_data(&mut header, name, content.as_bytes())
            .unwrap();
    }
    builder.into_inner().unwrap()
}

fn named(fake: &Fake, key: &str, name: &str, content: &str) -> Value {
    let mut layer = fake.layer(RAW, content.to_owned());
    layer["annotations"] = json!({key: name});
    layer
}

async fn pull(store: &ImageStore, name: &Reference) -> Result<Image, images::PullError> {
    let options = PullOptions {
        wanted: Wanted::Files,
        ..PullOptions::default()
    };
    store.pull(name, options).await
}

fn dir(image: &Image) -> PathBuf {
    match &image.kind {
        ImageKind::Files { dir } => dir.clone(),
        other => panic!("{other:?}"),
    }
}

/// Files by name.
fn tree(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(next) = todo.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().display().to_string();
                found.insert(name, fs::read_to_string(&path).unwrap());
            }
        }
    }
    found
}

fn files(list: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = list.iter().map(|(n, c)| ((*n).into(), (*c).into()));
    owned.collect()
}

#[tokio::test]
async fn an_image_s_layers_are_laid_over_each_other() {
    use std::os::unix::fs::MetadataExt as _;
    let (fake, (_dir, store)) = (Fake::start().await, store());
    let config = fake.layer(
        OCI_CONFIG,
        r#"{"os":"linux","architecture":"amd64","config":{"Cmd":["/x"]}}"#,
    );
    let lower = fake.layer(TAR, tar(&[("a", "1"), ("d/b", "2"), ("gone", "3")]));
    let upper = fake.layer(TAR, tar(&[("a", "4"), (".wh.gone", "")]));
    fake.manifest("1", &image(config, &[lower, upper]));
    let name = fake.name("app:1");
    assert_eq!(store.get_files(&name).unwrap(), None);
    let pulled = pull(&store, &name).await.unwrap();
    assert_eq!(tree(&dir(&pulled)), files(&[("a", "4"), ("d/b", "2")]));
    let owned = fs::metadata(dir(&pulled).join("a")).unwrap();
    if rustix::process::geteuid().is_root() {
        assert_eq!(
            (owned.uid(), owned.gid(), owned.mode() & 0o777),
            (7, 8, 0o640)
        );
    }
    fake.asked();
    assert_eq!(store.get_files(&name).unwrap().as_ref(), Some(&pulled));
    assert_eq!(pull(&store, &name).await.unwrap(), pulled);
    assert_eq!(fake.asked().len(), 0, "it is here");
    // To run it is another matter, and the other way round.
    store.pull(&name, PullOptions::default()).await.unwrap();
    assert_eq!(store.get_files(&name).unwrap(), Some(pulled));
}

#[tokio::test]
async fn an_artifact_s_layers_are_files_by_their_names() {
    use std::os::unix::fs::PermissionsExt as _;
    let (fake, (_dir, store)) = (Fake::start().await, store());
    let title = "org.opencontainers.image.title";
    let layers = [
        named(&fake, title, "model.bin", "weights"),
        named(&fake, "org.cnai.model.filepath", "conf/model.json", "{}"),
        fake.layer(RAW, "nameless"),
        fake.layer(TAR, tar(&[("docs/readme", "hello")])),
    ];
    fake.manifest("1", &image(fake.layer(EMPTY, "{}"), &layers));
    let pulled = pull(&store, &fake.name("app:1")).await.unwrap();
    let dir = dir(&pulled);
    assert_eq!(
        tree(&dir),
        files(&[
            ("conf/model.json", "{}"),
            ("docs/readme", "hello"),
            ("model.bin", "weights")
        ])
    );
    let mode = fs::metadata(dir.join("model.bin")).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o644);

    for (tag, layer, words) in [
        ("2", fake.layer(RAW, "nameless"), "has a file name"),
        ("3", named(&fake, title, "../up", "x"), "outside the root"),
        ("4", named(&fake, title, "/", "x"), "outside the root"),
    ] {
        fake.manifest(tag, &image(fake.layer(EMPTY, "{}"), &[layer]));
        let error = pull(&store, &fake.name(&format!("app:{tag}"))).await;
        let report = error.unwrap_err().report();
        assert!(report.contains(words), "{tag}: {report}");
    }
}

#[tokio::test]
async fn files_stay_while_they_are_used() {
    let (fake, (_dir, store)) = (Fake::start().await, store());
    let layer = named(&fake, "org.opencontainers.image.title", "f", "x");
    fake.manifest("1", &image(fake.layer(EMPTY, "{}"), &[layer]));
    let pulled = pull(&store, &fake.name("app:1")).await.unwrap();
    let collect = |in_use: Option<String>| {
        store.gc(GcPolicy {
            in_use: in_use.into_iter().collect::<HashSet<_>>(),
            high_percent: 0,
            low_percent: 0,
            min_age: Duration::from_secs(60),
            now: SystemTime::now() + Duration::from_secs(86_400),
        })
    };
    collect(Some(pulled.digest.to_string())).await.unwrap();
    assert_eq!(tree(&dir(&pulled)), files(&[("f", "x")]));
    assert!(store.get_files(&pulled.reference).unwrap().is_some());
    collect(None).await.unwrap();
    assert!(!dir(&pulled).exists());
    assert_eq!(store.get_files(&pulled.reference).unwrap(), None);
}
