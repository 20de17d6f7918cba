//! Commands in a real pseudo-terminal, which `script` (util-linux) makes.

use crate::guests::misbehave;
use crate::harness::{PATIENCE, Registry, Running, Site, eventually, get, repo_file, text};
use crate::nats::Nats;
use crate::sites;
use std::io::{Read as _, Write as _};
use std::num::NonZero;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};

pub(crate) const ROWS: NonZero<u16> = NonZero::new(12).unwrap();
pub(crate) const COLUMNS: NonZero<u16> = NonZero::new(120).unwrap();

/// A command in a terminal: what it draws, and keys for it.
pub(crate) struct Terminal {
    process: Running,
    keys: ChildStdin,
    screen: Arc<(Mutex<vt100::Parser>, Condvar)>,
    reader: std::thread::JoinHandle<()>,
}

impl Terminal {
    /// Runs a shell command line; `$SALP` is the program under test.
    pub(crate) fn run(site: &Site, line: &str) -> Self {
        let line = format!("stty rows {ROWS} cols {COLUMNS}; {line}");
        let mut child = Command::new("script")
            .args([
                "--quiet",
                "--return",
                "--flush",
                "--command",
                &line,
                "/dev/null",
            ])
            .env("SALP", env!("CARGO_BIN_EXE_salp"))
            .env("SALP_DATA_DIR", &site.dir)
            .env("SHELL", "/bin/sh")
            .env("TERM", "xterm")
            .env_remove("KUBECONFIG")
            .env_remove("NO_COLOR")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start `script`, of util-linux");
        let parser = vt100::Parser::new(ROWS, COLUMNS, 0);
        let screen = Arc::new((Mutex::new(parser), Condvar::new()));
        let (mut out, shared) = (child.stdout.take().expect("stdout"), screen.clone());
        let reader = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = out.read(&mut bytes) {
                shared.0.lock().expect("lock").process(&bytes[..n]);
                shared.1.notify_all();
            }
        });
        Self {
            keys: child.stdin.take().expect("stdin"),
            process: Running(child),
            screen,
            reader,
        }
    }

    pub(crate) fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("press keys");
    }

    /// Waits until the screen is as wanted; its text then.
    pub(crate) fn wait_for(&self, accept: impl Fn(&vt100::Screen) -> bool) -> String {
        let parser = self.screen.0.lock().expect("lock");
        let waiting = |parser: &mut vt100::Parser| !accept(parser.screen());
        let (parser, waited) = self
            .screen
            .1
            .wait_timeout_while(parser, PATIENCE, waiting)
            .expect("lock");
        let shown = parser.screen().contents();
        assert!(!waited.timed_out(), "the screen is\n{shown}");
        shown
    }

    /// Waits for the end; the exit code and the last screen.
    pub(crate) fn ended(mut self) -> (Option<i32>, String) {
        let code = eventually("it ends", || {
            let status = self.process.0.try_wait().expect("wait");
            let shown = || self.screen.0.lock().expect("lock").screen().contents();
            status.map(|s| s.code()).ok_or_else(shown)
        });
        self.reader.join().expect("reader");
        let parser = self.screen.0.lock().expect("lock");
        assert!(!parser.screen().alternate_screen(), "left the terminal");
        assert!(!parser.screen().hide_cursor(), "gave the cursor back");
        (code, parser.screen().contents())
    }
}

/// The row of a pod as cells, if it is on the screen.
fn row(screen: &vt100::Screen, pod: &str) -> Option<Vec<String>> {
    let shown = screen.contents();
    let mut lines = shown
        .lines()
        .map(|l| l.split_whitespace().map(str::to_owned));
    lines.find_map(|cells| {
        let cells: Vec<String> = cells.collect();
        (cells.get(1).map(String::as_str) == Some(pod)).then_some(cells)
    })
}

/// Requests a second of a pod as shown.
fn rate(screen: &vt100::Screen, pod: &str) -> Option<f64> {
    row(screen, pod)?.last()?.parse().ok()
}

#[test]
fn top_draws_follows_and_leaves() {
    let (registry, site) = (Registry::start(), Site::start());
    let image = registry.push(&repo_file("examples/hello/hello.wasm"), "hello:1");
    let run = |name: &str| {
        let output = site.salp(&["run", &image, "--name", name]);
        assert!(output.status.success(), "{}", text(&output));
        let url = String::from_utf8(output.stdout).expect("UTF-8");
        url.trim()
            .trim_start_matches("http://")
            .trim_end_matches('/')
            .to_owned()
    };
    let address = run("first");
    let line = "before=$(stty -g); $SALP top --every 0.2; code=$?; \
                [ \"$before\" = \"$(stty -g)\" ] && echo settings are back; exit $code";
    let mut top = Terminal::run(&site, line);
    let shown = top.wait_for(|s| row(s, "first").is_some());
    for part in ["1 pod ", "Ready", "REQ/S", "Running", "q quit"] {
        assert!(shown.contains(part), "{part} is missing:\n{shown}");
    }
    top.wait_for(|s| s.alternate_screen() && rate(s, "first") == Some(0.0));
    // It follows: requests move the figure, and a new pod appears.
    top.wait_for(|s| {
        let answer = get(&address, "/").expect("answer");
        answer.expect_code(200).expect("200");
        rate(s, "first").is_some_and(|r| r > 0.0)
    });
    run("second");
    top.wait_for(|s| row(s, "second").is_some());
    // Sorted by name on request.
    top.press("n");
    top.wait_for(|s| {
        let shown = s.contents();
        shown.find("first") < shown.find("second")
    });
    top.press("q");
    let (code, shown) = top.ended();
    assert_eq!(code, Some(0), "{shown}");
    assert!(shown.contains("settings are back"), "{shown}");

    // Ctrl-C and SIGTERM leave it as well.
    let mut top = Terminal::run(&site, line);
    top.wait_for(|s| row(s, "first").is_some());
    top.press("\x03");
    let (code, shown) = top.ended();
    assert_eq!(code, Some(0), "{shown}");
    assert!(shown.contains("settings are back"), "{shown}");
    let line = "before=$(stty -g); $SALP top <&0 & echo $! > \"$SALP_DATA_DIR/top.pid\"; wait $!; \
                [ \"$before\" = \"$(stty -g)\" ] && echo settings are back";
    let top = Terminal::run(&site, line);
    top.wait_for(|s| row(s, "first").is_some());
    let pid = std::fs::read_to_string(site.dir.join("top.pid")).expect("pid");
    assert!(
        Command::new("kill")
            .arg(pid.trim())
            .status()
            .expect("kill")
            .success()
    );
    let (_, shown) = top.ended();
    assert!(shown.contains("settings are back"), "{shown}");
}

#[test]
fn top_opens_the_log_of_a_pod_wherever_it_is() {
    let (nats, registry) = (Nats::start(), Registry::start());
    let hub = sites::hub(&nats, &[]);
    let shop = sites::shop(&nats, &hub, "shop-1", &[]);
    sites::sees(&hub, "shop-1", "Alive");
    let at_hub = misbehave(&hub, &registry, "at-hub", "", "");
    let at_shop = misbehave(&shop, &registry, "at-shop", "", "");
    let says = |address: &str, text: &str| {
        let answer = get(address, &format!("/log?text={text}")).expect("answer");
        answer.expect_code(200).expect("200");
    };
    says(&at_hub, "hub-1");
    says(&at_shop, "shop-1");
    let mut top = Terminal::run(&hub, "$SALP top --sites --every 0.2");
    top.wait_for(|s| s.contents().contains("at-hub") && s.contents().contains("at-shop"));
    top.press("?");
    let keys = top.wait_for(|s| s.contents().contains("any key goes back"));
    assert!(keys.contains("Enter, l"), "{keys}");
    top.press(" n");
    top.wait_for(|s| {
        let shown = s.contents();
        shown.find("at-hub") < shown.find("at-shop") && shown.contains("q quit")
    });
    let lines = |top: &Terminal, of: &str, line: &str| {
        top.wait_for(|s| s.contents().contains(of) && s.contents().contains(line))
    };
    top.press("\r");
    lines(&top, "log of hub/default/at-hub", "hub-1");
    // It goes on as lines come.
    says(&at_hub, "hub-2");
    lines(&top, "following", "hub-2");
    top.press("q");
    top.wait_for(|s| s.contents().contains("q quit"));
    // The next pod is at the other site.
    top.press("jl");
    lines(&top, "log of shop-1/default/at-shop", "shop-1");
    says(&at_shop, "shop-2");
    lines(&top, "following", "shop-2");
    top.press("\x1b");
    top.wait_for(|s| s.contents().contains("q quit"));
    top.press("q");
    assert_eq!(top.ended().0, Some(0));
}

#[test]
fn top_says_when_the_site_goes_away_and_still_quits() {
    let mut site = Site::start();
    let mut top = Terminal::run(&site, "$SALP top --every 0.2");
    top.wait_for(|s| s.contents().contains("q quit"));
    site.signal("-TERM");
    top.wait_for(|s| s.contents().contains("is the site up?"));
    top.press("q");
    assert_eq!(top.ended().0, Some(0));
}

#[test]
fn top_without_a_terminal_is_a_clear_error() {
    let site = Site::start();
    let output = site.salp(&["top"]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output);
    assert!(
        said.starts_with("error: ") && said.contains("salp ps"),
        "{said}"
    );
}

#[test]
fn colour_is_for_terminals_that_want_it() {
    let site = Site::start();
    let coloured = |line: &str| {
        let terminal = Terminal::run(&site, line);
        let screen = terminal.screen.clone();
        let (code, shown) = terminal.ended();
        assert_eq!(code, Some(1), "{shown}");
        let parser = screen.0.lock().expect("lock");
        let cell = parser.screen().cell(0, 0).expect("cell");
        assert_eq!(cell.contents(), "e", "{shown}");
        cell.fgcolor() != vt100::Color::Default
    };
    assert!(coloured("$SALP logs absent"));
    assert!(!coloured("NO_COLOR=1 $SALP logs absent"));
    let piped = site.salp(&["logs", "absent"]);
    assert!(!text(&piped).contains('\x1b'), "{}", text(&piped));
}
