//! What must survive: acknowledged writes under `kill -9`.

use crate::harness::{Site, text};

#[test]
fn no_acknowledged_write_is_lost_by_kill() {
    let mut site = Site::start();
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        for n in 0..5 {
            let name = format!("kept-{round}-{n}");
            site.ok(&["create", "configmap", &name, "--from-literal=a=b"]);
            acknowledged.push(name);
        }
        site.signal("-KILL");
        site.up(&[]);
        let list = site.ok(&["get", "configmaps", "-o", "name"]);
        for name in &acknowledged {
            assert!(
                list.contains(&format!("configmap/{name}\n")),
                "{name} is lost:\n{list}"
            );
        }
    }
    let pods = site.kubectl(&["get", "nodes"]);
    assert!(text(&pods).contains("Ready"));
}
