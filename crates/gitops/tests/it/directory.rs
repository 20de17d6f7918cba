//! A folder of manifests that is applied as it changes.

use crate::site::{Site, config_map, map};
use anyhow::{Result, ensure};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_is_applied_as_it_changes() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = |name: &str| dir.path().join(name);
    std::fs::write(file("a.yaml"), config_map("one", "1"))?;
    let site = Site::start(Some(dir.path())).await?;
    site.until_map("one", "k", "1").await?;

    std::fs::write(
        file("kustomization.yaml"),
        "resources: [b.yaml]\nnamePrefix: p-\n",
    )?;
    std::fs::write(file("b.yaml"), config_map("two", "22"))?;
    site.until_map("p-two", "k", "22").await?;
    site.until("the end of one", &map("one"), |m| m["code"] == 404)
        .await?;

    // What is broken changes nothing; a folder that is gone neither.
    std::fs::write(
        file("b.yaml"),
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: B_B}\n",
    )?;
    std::fs::write(file("c.yaml"), config_map("three", "3"))?;
    let other = tempfile::tempdir()?;
    std::fs::rename(dir.path(), other.path().join("away"))?;
    let kept = "/api/v1/namespaces/kube-system/configmaps/salp-manifests-test";
    site.until("what was applied", kept, |m| {
        m["data"]["inventory"] == r#"[{"id":"default_p-two__ConfigMap","v":"v1"}]"#
    })
    .await?;
    std::fs::write(other.path().join("away/b.yaml"), config_map("two", "333"))?;
    std::fs::rename(other.path().join("away"), dir.path())?;
    site.until_map("p-two", "k", "333").await?;
    ensure!(site.get(&map("p-three")).await?["code"] == 404);

    // Empty means that nothing is wanted.
    for name in ["kustomization.yaml", "b.yaml", "c.yaml"] {
        std::fs::remove_file(file(name))?;
    }
    site.until("the end of two", &map("p-two"), |m| m["code"] == 404)
        .await?;
    site.close().await
}
