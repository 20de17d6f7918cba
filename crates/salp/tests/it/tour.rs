//! The tour of two sites that the README gives: its commands, run as they are written.

use crate::harness::{Following, eventually, free_port, program, repo_file, tool};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The section of the README.
const SECTION: &str = "## Two sites on one laptop";

/// The commands of the section, block by block.
fn blocks() -> Vec<String> {
    let readme = std::fs::read_to_string(repo_file("README.md")).expect("README");
    let (_, section) = readme.split_once(SECTION).expect("the section");
    let section = section.split("\n## ").next().expect("a section");
    let blocks = section.split("```console\n").skip(1);
    let text = |block: &str| block.split("```").next().expect("its end").to_owned();
    blocks.map(text).collect()
}

/// A terminal that has the programs, in a directory where the examples are.
struct Terminal {
    dir: tempfile::TempDir,
    path: String,
    /// What stands in the README, and what is free on this machine.
    ports: [(&'static str, u16); 3],
}

impl Terminal {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let bin = dir.path().join("bin");
        std::fs::create_dir(&bin).expect("directory");
        let link = |from: &Path, name: &str| {
            std::os::unix::fs::symlink(from, dir.path().join(name)).expect("link");
        };
        link(&program(), "bin/salp");
        link(&tool("kubectl"), "bin/kubectl");
        link(&tool("nats-server"), "bin/nats-server");
        link(&repo_file("examples"), "examples");
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").expect("PATH"));
        Self {
            dir,
            path,
            ports: [
                ("4222", free_port()),
                ("6443", free_port()),
                ("7443", free_port()),
            ],
        }
    }

    fn command(&self, commands: &str) -> Command {
        let mut commands = commands.to_owned();
        for (written, free) in &self.ports {
            commands = commands.replace(written, &free.to_string());
        }
        let kept = self.kept();
        let kept = kept.display();
        let mut command = Command::new("bash");
        command
            .args([
                "-c",
                &format!("[ -f {kept} ] && . {kept}; set -eu\n{commands}\nexport -p > {kept}"),
            ])
            .current_dir(self.dir.path())
            .env("PATH", &self.path)
            .env("HOME", self.dir.path())
            .env_remove("KUBECONFIG");
        command
    }

    /// What one block exports and the next one finds.
    fn kept(&self) -> PathBuf {
        self.dir.path().join("exports")
    }

    /// Types commands again until they succeed and show what is wanted, as a person would.
    fn types(&self, commands: &str, wanted: impl Fn(&str) -> bool) {
        eventually(commands, || {
            let out = self.command(commands).output().expect("bash");
            let said = crate::harness::text(&out);
            (out.status.success() && wanted(&said))
                .then_some(())
                .ok_or(said)
        });
    }

    fn salp(&self, args: &str) {
        let stopped = self
            .command(&format!("salp {args}"))
            .output()
            .expect("bash");
        assert!(
            stopped.status.success(),
            "{}",
            crate::harness::text(&stopped)
        );
    }
}

/// What goes on in a terminal of its own; stopped with the test.
struct Site<'a> {
    terminal: &'a Terminal,
    dir: &'static str,
    _process: Following,
}

impl Drop for Site<'_> {
    fn drop(&mut self) {
        self.terminal.salp(&format!("down --data-dir {}", self.dir));
    }
}

#[test]
fn the_readme_does_what_it_says() {
    let terminal = Terminal::new();
    let blocks = blocks();
    let [nats, cloud, shop, list, export, covers, away, rest @ ..] = &blocks[..] else {
        panic!("the tour has changed: {blocks:?}");
    };
    assert!(rest.is_empty(), "the tour goes on: {rest:?}");
    let nats = Following::start(terminal.command(&format!("exec {nats}")));
    nats.wait_for(|line| line.contains("Server is ready"));
    let up = |commands: &str, dir| {
        // The last line goes on until it is stopped.
        let process = Following::start(terminal.command(commands));
        process.wait_for(|line| line.starts_with("Ready"));
        Site {
            terminal: &terminal,
            dir,
            _process: process,
        }
    };
    let _cloud = up(cloud, "cloud");
    let _shop = up(shop, "shop");
    terminal.types(list, |said| {
        ["cloud", "shop"].iter().all(|site| said.contains(site)) && said.contains("Alive")
    });
    terminal.types(export, |said| said.contains("Hello from hello-"));
    let pods = |site: &str| {
        let name = "-o jsonpath='{.items[*].metadata.name}'";
        let list = format!("kubectl --kubeconfig {site}/kubeconfig.yaml get pods {name}");
        let out = terminal.command(&list).output().expect("bash");
        String::from_utf8(out.stdout).expect("names")
    };
    let of_cloud = pods("cloud");
    terminal.types(covers, |said| {
        let answer = said
            .lines()
            .rev()
            .find_map(|l| l.strip_prefix("Hello from "));
        answer.is_some_and(|pod| of_cloud.contains(pod))
    });
    terminal.types(away, |said| {
        said.contains("cloud") && said.contains("Running")
    });
}
