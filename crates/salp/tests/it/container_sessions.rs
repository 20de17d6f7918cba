//! Those who take part in container pods, at terminals of their own.

use crate::containers::{pod, with_busybox};
use crate::harness::tool;
use crate::terminal::{COLUMNS, ROWS, Terminal};
use serde_json::json;
use std::process::Command;

/// Says its terminal's size again and again.
const SIZES: &str = "while true; do stty size; sleep 0.1; done";

#[test]
fn a_terminal_has_the_size_of_who_looks_at_it() {
    let Some((_registry, image, site)) = with_busybox(&[]) else {
        return;
    };
    let container =
        json!({"image": image, "command": ["sh", "-c", SIZES], "tty": true, "stdin": true});
    site.apply(&pod("box", container, json!({})));
    site.ok(&["wait", "--for=condition=Ready", "pod/box", "--timeout=60s"]);
    let kubectl = format!(
        "{} --kubeconfig {}",
        tool("kubectl").display(),
        site.kubeconfig().display()
    );
    let sees = |terminal: &Terminal, size: &str| {
        terminal.wait_for(|s| s.contents().lines().any(|line| line.trim_end() == size));
    };
    for (name, asked) in [
        ("exec", format!("exec -it box -- sh -c '{SIZES}'")),
        ("attach", "attach -it box".to_owned()),
    ] {
        let line = format!("tty > \"$SALP_DATA_DIR/{name}\"; {kubectl} {asked}");
        let mut terminal = Terminal::run(&site, &line);
        sees(&terminal, &format!("{ROWS} {COLUMNS}"));
        let at = std::fs::read_to_string(site.dir.join(name)).expect("a terminal");
        let resized = Command::new("stty")
            .args(["-F", at.trim(), "rows", "20", "cols", "100"])
            .status();
        assert!(resized.expect("stty").success());
        sees(&terminal, "20 100");
        // Its line discipline makes a signal of it.
        terminal.press("\x03");
        assert_eq!(terminal.ended().0, Some(130));
    }
    site.wait_for(
        &["get", "pod", "box"],
        "/status/containerStatuses/0/state/terminated/exitCode",
        |code| *code == 130,
    );
}
