//! `salp top`: a live view of nodes and pods in the terminal, and of a pod's log.
//!
//! [`watch`] waits for keys, signals, fresh readings and lines of the log; what is on the screen
//! is a function of [`View`] alone, so that tests draw it without a terminal.

mod log_view;

use crate::api_access::{block_on, connect};
use crate::cli::Target;
use crate::fleet::{Member, SiteArgs, Unknown};
use crate::readings::{self, Node, Process, Sample, Which};
use crate::{client_commands, output};
use ::sites::fleet::processes::Processes;
use anyhow::{Context as _, Result, bail};
use clap::Args;
use futures::StreamExt as _;
use log_view::{Following, LogView, Wanted};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Row, Table, TableState};
use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Keys that wait while a frame is drawn; the reader waits when there are more.
const KEYS_PENDING_MAX: usize = 64;
/// How long another site may take to begin with a log.
const LOG_WITHIN: Duration = Duration::from_secs(5);
/// Blank columns between two columns.
const GAP: u16 = 2;
/// Columns of the table, and how soon each goes when the terminal is too narrow: the highest
/// first, 0 never.
const COLUMNS: [(&str, u8); 11] = [
    ("SITE", 1),
    ("NAMESPACE", 1),
    ("POD", 0),
    ("IMAGE", 5),
    ("READY", 3),
    ("STATE", 0),
    ("RESTARTS", 4),
    ("AGE", 2),
    ("CPU", 0),
    ("MEMORY", 0),
    ("REQ/S", 0),
];

/// Flags of `salp top`.
#[derive(Clone, Debug, Args)]
pub struct TopArgs {
    #[command(flatten)]
    pub target: Target,
    /// Only this namespace [default: all].
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// Label selector.
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub selector: Option<String>,
    #[command(flatten)]
    pub fleet: SiteArgs,
    /// Seconds between two looks.
    #[arg(long, default_value_t = 1.0, value_name = "SECONDS")]
    pub every: f64,
}

/// By what the pods are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Cpu,
    Memory,
    Requests,
    Name,
}

/// A pod among those of all sites.
type Key = (Option<String>, String, String);

/// What the screen shows.
struct View {
    sort: Sort,
    selected: TableState,
    /// What was selected by hand stays so, wherever it moves.
    chosen: Option<Key>,
    /// In place of the table, and whose it is.
    log: Option<(Process, LogView)>,
    /// In place of all.
    help: bool,
    nodes: Vec<Node>,
    processes: Vec<Process>,
    /// Sites that did not answer, and why.
    silent: Vec<(String, String)>,
    /// Why the readings are old, if they are.
    trouble: Option<String>,
}

/// What follows a key.
#[derive(Debug, PartialEq)]
enum Next {
    GoOn,
    Quit,
    /// The log of a pod's container is wanted.
    Log(Box<Process>, usize),
}

/// `salp top`.
pub fn top(args: TopArgs) -> Result<ExitCode> {
    if !std::io::stdout().is_terminal() {
        bail!("open terminal: standard output is none; use `salp ps` in scripts");
    }
    if !(args.every.is_finite() && args.every >= 0.1) {
        bail!("read --every {}: want at least 0.1 seconds", args.every);
    }
    let which = Which {
        namespace: args.namespace.clone(),
        label_selector: args.selector.clone(),
        field_selector: None,
    };
    block_on(async {
        let first = look(&args, &which).await?;
        let mut terminal = ratatui::try_init().context("open terminal")?;
        let result = watch(&mut terminal, &args, &which, first).await;
        ratatui::restore();
        result
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What each site has answered; one that is alone has no name.
type Look = Vec<(Option<String>, Result<Seen, Unknown>)>;

/// What is known of a site.
enum Seen {
    /// By its API: rates are found by comparing with the one before.
    Sample(Sample),
    /// By its own list.
    Told(Processes),
}

/// Asks all sites that are shown, at once.
async fn look(args: &TopArgs, which: &Which) -> Result<Look> {
    if !args.fleet.any() {
        let access = connect(&args.target).await?;
        let sample = readings::sample(&access, which).await?;
        return Ok(vec![(None, Ok(Seen::Sample(sample)))]);
    }
    let within = args.fleet.within()?;
    let members = args.fleet.members(&args.target).await?;
    let asked = members.into_iter().map(|member| async move {
        let seen = look_at(&member, which, within).await;
        (Some(member.name), seen)
    });
    Ok(futures::future::join_all(asked).await)
}

async fn look_at(member: &Member, which: &Which, within: Duration) -> Result<Seen, Unknown> {
    if let Some(list) = member.processes(which, within).await? {
        return Ok(Seen::Told(list));
    }
    let access = member
        .access
        .as_ref()
        .map_err(|e| Unknown::Silent(e.clone()))?;
    let sample = tokio::time::timeout(within, readings::sample(access, which)).await;
    let sample = sample.map_err(|_| Unknown::Silent(format!("no answer within {within:?}")))?;
    let sample = sample.map_err(|e| Unknown::Silent(format!("{e:#}")))?;
    Ok(Seen::Sample(sample))
}

async fn watch(
    terminal: &mut ratatui::DefaultTerminal,
    args: &TopArgs,
    which: &Which,
    first: Look,
) -> Result<()> {
    let mut interrupted = signal(SignalKind::interrupt()).context("watch signals")?;
    let mut terminated = signal(SignalKind::terminate()).context("watch signals")?;
    let mut keys = keys()?;
    let mut view = View {
        sort: Sort::Cpu,
        selected: TableState::default().with_selected(0),
        chosen: None,
        log: None,
        help: false,
        nodes: Vec::new(),
        processes: Vec::new(),
        silent: Vec::new(),
        trouble: None,
    };
    let mut last = HashMap::new();
    view.take(first, &mut last);
    // A server that is slow to answer must not keep `q` waiting.
    let again = || async {
        tokio::time::sleep(Duration::from_secs_f64(args.every)).await;
        look(args, which).await
    };
    let next = again();
    tokio::pin!(next);
    let mut following: Option<Following> = None;
    loop {
        view.sort();
        terminal
            .draw(|frame| draw(frame, &mut view))
            .context("draw")?;
        let heard = async {
            match &mut following {
                Some(lines) => lines.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = keys.recv() => match event {
                Some(Event::Key(key)) if key.kind == KeyEventKind::Press => match view.press(key) {
                    Next::Quit => return Ok(()),
                    Next::Log(of, container) => {
                        following = Some(log_view::follow(&args.target, &of, container, LOG_WITHIN));
                        view.log = Some((*of.clone(), LogView::new(&of, container)));
                    }
                    Next::GoOn if view.log.is_none() => following = None,
                    Next::GoOn => {}
                },
                Some(_) => {}
                None => bail!("read keys: the terminal is gone"),
            },
            heard = heard => {
                if heard.is_none() {
                    following = None;
                }
                if let Some((_, log)) = &mut view.log {
                    log.take(heard);
                }
            }
            sample = &mut next => {
                match sample {
                    Ok(look) => view.take(look, &mut last),
                    Err(error) => view.trouble = Some(format!("{error:#}")),
                }
                next.set(again());
            }
            _ = interrupted.recv() => return Ok(()),
            _ = terminated.recv() => return Ok(()),
        }
    }
}

/// What is typed, read by a thread of its own: reading blocks. It ends with the process.
fn keys() -> Result<mpsc::Receiver<Event>> {
    let (sender, receiver) = mpsc::channel(KEYS_PENDING_MAX);
    std::thread::Builder::new()
        .name("keys".to_owned())
        .spawn(move || {
            while let Ok(event) = event::read() {
                if sender.blocking_send(event).is_err() {
                    return;
                }
            }
        })
        .context("read keys")?;
    Ok(receiver)
}

impl View {
    /// Takes in what the sites have answered; `last` are their samples before these.
    fn take(&mut self, look: Look, last: &mut HashMap<Option<String>, Sample>) {
        self.trouble = None;
        self.nodes.clear();
        self.processes.clear();
        self.silent.clear();
        for (site, seen) in look {
            let (processes, nodes) = match seen {
                Ok(Seen::Told(list)) => (list.processes, list.nodes),
                Ok(Seen::Sample(sample)) => {
                    let processes = readings::processes(last.get(&site), &sample);
                    let nodes = sample.nodes.clone();
                    last.insert(site.clone(), sample);
                    (processes, nodes)
                }
                Err(why) => {
                    self.silent
                        .push((site.unwrap_or_default(), why.to_string()));
                    continue;
                }
            };
            let named = processes.into_iter().map(|p| Process {
                site: site.clone(),
                ..p
            });
            self.processes.extend(named);
            let nodes = nodes.into_iter().map(|node| Node {
                site: site.clone(),
                ..node
            });
            self.nodes.extend(nodes);
        }
    }

    fn press(&mut self, key: KeyEvent) -> Next {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        if control && key.code == KeyCode::Char('c') {
            return Next::Quit;
        }
        if std::mem::take(&mut self.help) {
            return Next::GoOn;
        }
        if key.code == KeyCode::Char('?') {
            self.help = true;
            return Next::GoOn;
        }
        if let Some((of, log)) = &mut self.log {
            match log.press(key.code) {
                Wanted::Nothing => {}
                Wanted::Back => self.log = None,
                Wanted::Container(n) => return Next::Log(Box::new(of.clone()), n),
            }
            return Next::GoOn;
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Next::Quit,
            KeyCode::Char('c') => self.sort = Sort::Cpu,
            KeyCode::Char('m') => self.sort = Sort::Memory,
            KeyCode::Char('r') => self.sort = Sort::Requests,
            KeyCode::Char('n') => self.sort = Sort::Name,
            KeyCode::Down | KeyCode::Char('j') => {
                self.selected.select_next();
                self.chosen = self.selected().map(key_of);
            }
            KeyCode::Up | KeyCode::Char('k') => {
                self.selected.select_previous();
                self.chosen = self.selected().map(key_of);
            }
            KeyCode::Enter | KeyCode::Char('l') => {
                if let Some(pod) = self.selected() {
                    return Next::Log(Box::new(pod.clone()), 0);
                }
            }
            _ => {}
        }
        Next::GoOn
    }

    fn selected(&self) -> Option<&Process> {
        let last = self.processes.len().checked_sub(1)?;
        self.processes.get(self.selected.selected()?.min(last))
    }

    fn sort(&mut self) {
        let list = &mut self.processes;
        match self.sort {
            Sort::Name => {
                list.sort_by(|a, b| (&a.namespace, &a.pod).cmp(&(&b.namespace, &b.pod)));
            }
            Sort::Cpu => sort_down(list, |p| p.cpu_cores.unwrap_or(0.0)),
            Sort::Memory => sort_down(list, |p| p.memory_bytes.unwrap_or(0) as f64),
            Sort::Requests => sort_down(list, |p| p.requests_per_second.unwrap_or(0.0)),
        }
        if let Some(key) = &self.chosen
            && let Some(at) = self.processes.iter().position(|p| key_of(p) == *key)
        {
            self.selected.select(Some(at));
        }
    }
}

fn key_of(p: &Process) -> Key {
    (p.site.clone(), p.namespace.clone(), p.pod.clone())
}

fn sort_down(list: &mut [Process], key: impl Fn(&Process) -> f64) {
    list.sort_by(|a, b| {
        key(b)
            .total_cmp(&key(a))
            .then_with(|| (&a.namespace, &a.pod).cmp(&(&b.namespace, &b.pod)))
    });
}

/// What `?` shows.
const HELP: [&str; 7] = [
    "↑ ↓, k j     select a pod",
    "Enter, l     its log: scroll with ↑ ↓ PgUp PgDn g G, leave with q",
    "c m r n      sort by cpu, memory, requests a second, name",
    "?            this",
    "q, Esc       quit; so does Ctrl-C, anywhere",
    "",
    "any key goes back",
];

fn draw(frame: &mut ratatui::Frame<'_>, view: &mut View) {
    if view.help {
        let lines: Vec<Line<'_>> = HELP.iter().map(|text| Line::from(*text)).collect();
        frame.render_widget(ratatui::widgets::Paragraph::new(lines), frame.area());
        return;
    }
    if let Some((_, log)) = &mut view.log {
        log.draw(frame);
        return;
    }
    let heading = u16::try_from(view.nodes.len() + view.silent.len())
        .unwrap_or(u16::MAX)
        .saturating_add(2)
        .min(8);
    let [top, middle, bottom] = Layout::vertical([
        Constraint::Length(heading),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(ratatui::widgets::Paragraph::new(summary(view)), top);

    let cells: Vec<Vec<String>> = view
        .processes
        .iter()
        .map(|p| {
            let mut row = client_commands::row(p, true, false);
            if p.site.is_none() {
                row.insert(0, String::new());
            }
            row
        })
        .collect();
    let shown = fit(&cells, middle.width);
    let pick = |row: &[String]| -> Vec<Cell<'_>> {
        shown
            .iter()
            .map(|(at, _)| Cell::from(row[*at].clone()))
            .collect()
    };
    let rows = cells.iter().map(|row| Row::new(pick(row)));
    let head: Vec<&str> = shown.iter().map(|(at, _)| COLUMNS[*at].0).collect();
    let widths = shown.iter().map(|(_, width)| Constraint::Length(*width));
    let table = Table::new(rows, widths)
        .column_spacing(GAP)
        .header(Row::new(head).style(Style::new().add_modifier(Modifier::REVERSED)))
        .row_highlight_style(Style::new().add_modifier(Modifier::BOLD));
    frame.render_stateful_widget(table, middle, &mut view.selected);

    let foot = match &view.trouble {
        Some(trouble) => trouble.clone(),
        None => "q quit   ? keys   Enter log   sort: c cpu  m memory  r req/s  n name".to_owned(),
    };
    frame.render_widget(Line::from(foot), bottom);
}

/// The lines above the table: all together, then each node.
fn summary(view: &View) -> Vec<Line<'static>> {
    let all = &view.processes;
    let cpu: f64 = all.iter().filter_map(|p| p.cpu_cores).sum();
    let memory: u64 = all.iter().filter_map(|p| p.memory_bytes).sum();
    let requests: f64 = all.iter().filter_map(|p| p.requests_per_second).sum();
    let mut lines = vec![Line::from(format!(
        "{}   {:.0}m cpu   {} memory   {requests:.0} requests/s",
        count(all.len()),
        cpu * 1000.0,
        output::bytes(memory),
    ))];
    for node in &view.nodes {
        let on_it = |p: &&Process| p.node == node.name && p.site == node.site;
        let pods = all.iter().filter(on_it).count();
        let site = node.site.iter().map(|site| format!("{site}/"));
        let site: String = site.collect();
        let state = match (node.ready, node.reached) {
            (true, true) => "Ready",
            (true, false) => "Ready, its kubelet is silent",
            _ => "NotReady",
        };
        lines.push(Line::from(format!(
            "{site}{}   {state}   {:.0} cores   {}   {}",
            node.name,
            node.cpu_cores,
            output::bytes(node.memory_bytes),
            count(pods),
        )));
    }
    for (site, why) in &view.silent {
        lines.push(Line::from(format!("{site}   {why}")));
    }
    lines
}

fn count(pods: usize) -> String {
    format!("{pods} {}", if pods == 1 { "pod" } else { "pods" })
}

/// The columns that have room, and how wide each is: as its widest cell. Where all together
/// are too wide those go that matter least; the last resort is that POD is cut.
fn fit(rows: &[Vec<String>], width: u16) -> Vec<(usize, u16)> {
    let widest = |at: usize| {
        let cells = rows.iter().filter_map(|row| row.get(at));
        let wide = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
        u16::try_from(wide.max(COLUMNS[at].0.len())).unwrap_or(u16::MAX)
    };
    // A site that is alone has no name.
    let named = |at: &usize| *at > 0 || rows.iter().any(|row| !row[0].is_empty());
    let columns = (0..COLUMNS.len()).filter(named);
    let mut shown: Vec<(usize, u16)> = columns.map(|at| (at, widest(at))).collect();
    let total = |shown: &[(usize, u16)]| {
        let cells: u32 = shown.iter().map(|(_, w)| u32::from(w + GAP)).sum();
        cells.saturating_sub(GAP.into())
    };
    while total(&shown) > u32::from(width) {
        let least = shown.iter().copied().max_by_key(|(at, _)| COLUMNS[*at].1);
        match least {
            Some((at, _)) if COLUMNS[at].1 > 0 => shown.retain(|(other, _)| *other != at),
            _ => {
                let over = total(&shown) - u32::from(width);
                if let Some((_, pod)) = shown.iter_mut().find(|(at, _)| COLUMNS[*at].0 == "POD") {
                    *pod = pod
                        .saturating_sub(u16::try_from(over).unwrap_or(u16::MAX))
                        .max(3);
                }
                break;
            }
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use ratatui::backend::TestBackend;

    fn process(pod: &str, state: &str, cpu: f64, requests: f64) -> Process {
        Process {
            site: None,
            namespace: "default".to_owned(),
            pod: pod.to_owned(),
            node: "till".to_owned(),
            ip: "10.42.0.5".to_owned(),
            image: "localhost:5000/hello:1".to_owned(),
            ready: "1/1".to_owned(),
            state: state.to_owned(),
            restarts: 0,
            age_seconds: 192,
            cpu_cores: Some(cpu),
            memory_bytes: Some(3 << 20),
            requests_per_second: Some(requests),
            requests: Some(100),
            instances: Some(1),
        }
    }

    fn view() -> View {
        let unknown = Process {
            cpu_cores: None,
            memory_bytes: None,
            requests_per_second: None,
            ready: "0/1".to_owned(),
            ..process("broken", "CrashLoopBackOff", 0.0, 0.0)
        };
        View {
            sort: Sort::Cpu,
            selected: TableState::default(),
            chosen: None,
            log: None,
            help: false,
            silent: Vec::new(),
            nodes: vec![Node {
                site: None,
                name: "till".to_owned(),
                ready: true,
                cpu_cores: 4.0,
                memory_bytes: 8 << 30,
                reached: true,
            }],
            processes: vec![
                unknown,
                process("hello-1", "Running", 0.012, 1234.4),
                process("hello-2", "Running", 0.25, 7.0),
            ],
            trouble: None,
        }
    }

    fn check(mut view: View, width: u16, want: Expect) {
        let mut terminal = ratatui::Terminal::new(TestBackend::new(width, 9)).unwrap();
        view.sort();
        terminal.draw(|frame| draw(frame, &mut view)).unwrap();
        let screen = terminal.backend().to_string();
        let lines: Vec<&str> = screen
            .lines()
            .map(|line| line.trim_matches('"').trim_end())
            .collect();
        want.assert_eq(&lines.join("\n"));
    }

    #[test]
    fn a_wide_terminal_shows_all() {
        check(
            view(),
            120,
            expect![[r#"
            3 pods   262m cpu   6.0Mi memory   1241 requests/s
            till   Ready   4 cores   8.0Gi   3 pods

            NAMESPACE  POD      IMAGE                   READY  STATE             RESTARTS  AGE    CPU   MEMORY  REQ/S
            default    hello-2  localhost:5000/hello:1  1/1    Running           0         3m12s  250m  3.0Mi   7
            default    hello-1  localhost:5000/hello:1  1/1    Running           0         3m12s  12m   3.0Mi   1234
            default    broken   localhost:5000/hello:1  0/1    CrashLoopBackOff  0         3m12s  -     -       -

            q quit   ? keys   Enter log   sort: c cpu  m memory  r req/s  n name"#]],
        );
    }

    #[test]
    fn a_narrow_terminal_shows_what_matters() {
        check(
            view(),
            70,
            expect![[r#"
            3 pods   262m cpu   6.0Mi memory   1241 requests/s
            till   Ready   4 cores   8.0Gi   3 pods

            NAMESPACE  POD      STATE             AGE    CPU   MEMORY  REQ/S
            default    hello-2  Running           3m12s  250m  3.0Mi   7
            default    hello-1  Running           3m12s  12m   3.0Mi   1234
            default    broken   CrashLoopBackOff  3m12s  -     -       -

            q quit   ? keys   Enter log   sort: c cpu  m memory  r req/s  n name"#]],
        );
        check(
            view(),
            40,
            expect![[r#"
            3 pods   262m cpu   6.0Mi memory   1241
            till   Ready   4 cores   8.0Gi   3 pods

            POD  STATE           CPU   MEMORY  REQ/S
            hel  Running         250m  3.0Mi   7
            hel  Running         12m   3.0Mi   1234
            bro  CrashLoopBackO  -     -       -

            q quit   ? keys   Enter log   sort: c cp"#]],
        );
    }

    #[test]
    fn several_sites_are_told_apart_and_a_silent_one_is_named() {
        let mut all = view();
        let site = |name: &str| Some(name.to_owned());
        all.nodes[0].site = site("shop-1");
        all.processes.retain(|p| p.pod != "broken");
        all.processes[0].site = site("shop-1");
        all.processes[1].site = site("hub");
        all.silent = vec![(
            "shop-2".to_owned(),
            "silent: it is gone since 90s".to_owned(),
        )];
        check(
            all,
            90,
            expect![[r#"
            2 pods   262m cpu   6.0Mi memory   1241 requests/s
            shop-1/till   Ready   4 cores   8.0Gi   1 pod
            shop-2   silent: it is gone since 90s

            SITE    NAMESPACE  POD      READY  STATE    RESTARTS  AGE    CPU   MEMORY  REQ/S
            hub     default    hello-2  1/1    Running  0         3m12s  250m  3.0Mi   7
            shop-1  default    hello-1  1/1    Running  0         3m12s  12m   3.0Mi   1234

            q quit   ? keys   Enter log   sort: c cpu  m memory  r req/s  n name"#]],
        );
    }

    #[test]
    fn keys_sort_and_quit() {
        let mut view = view();
        let key = |c| KeyEvent::new(KeyCode::Char(c), KeyModifiers::NONE);
        let order =
            |view: &View| -> Vec<String> { view.processes.iter().map(|p| p.pod.clone()).collect() };
        view.sort();
        assert_eq!(order(&view), ["hello-2", "hello-1", "broken"]);
        assert_eq!(view.press(key('r')), Next::GoOn);
        view.sort();
        assert_eq!(order(&view), ["hello-1", "hello-2", "broken"]);
        view.press(key('n'));
        view.sort();
        assert_eq!(order(&view), ["broken", "hello-1", "hello-2"]);
        assert_eq!(view.press(key('q')), Next::Quit);
        let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(view.press(control_c), Next::Quit);
    }

    #[test]
    fn what_is_selected_stays_so_and_opens_its_log() {
        let mut view = view();
        let press = |view: &mut View, code| view.press(KeyEvent::new(code, KeyModifiers::NONE));
        view.sort();
        view.selected.select(Some(0));
        press(&mut view, KeyCode::Down);
        let of = |next: Next| match next {
            Next::Log(of, container) => (of.pod, container),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            of(press(&mut view, KeyCode::Enter)),
            ("hello-1".to_owned(), 0)
        );
        press(&mut view, KeyCode::Char('r'));
        view.sort();
        assert_eq!(view.selected.selected(), Some(0));
        assert_eq!(of(press(&mut view, KeyCode::Char('l'))).0, "hello-1");

        // In the log, `q` goes back; in the help, any key.
        let pod = view.processes[0].clone();
        view.log = Some((pod.clone(), LogView::new(&pod, 0)));
        assert_eq!(press(&mut view, KeyCode::Char('?')), Next::GoOn);
        check_first_line(&mut view, "↑ ↓, k j     select a pod");
        assert_eq!(press(&mut view, KeyCode::Char('q')), Next::GoOn);
        check_first_line(&mut view, "log of default/hello-1");
        assert_eq!(press(&mut view, KeyCode::Char('q')), Next::GoOn);
        check_first_line(
            &mut view,
            "3 pods   262m cpu   6.0Mi memory   1241 requests/s",
        );
        assert_eq!(press(&mut view, KeyCode::Char('q')), Next::Quit);
    }

    fn check_first_line(view: &mut View, want: &str) {
        let mut terminal = ratatui::Terminal::new(TestBackend::new(70, 9)).unwrap();
        terminal.draw(|frame| draw(frame, view)).unwrap();
        let screen = terminal.backend().to_string();
        let first = screen.lines().next().unwrap_or_default();
        assert_eq!(first.trim_matches('"').trim_end(), want);
    }

    #[test]
    fn old_readings_are_said_to_be_old() {
        let mut old = view();
        old.nodes[0].reached = false;
        old.trouble = Some("reach API server: is the site up?".to_owned());
        check(
            old,
            70,
            expect![[r#"
            3 pods   262m cpu   6.0Mi memory   1241 requests/s
            till   Ready, its kubelet is silent   4 cores   8.0Gi   3 pods

            NAMESPACE  POD      STATE             AGE    CPU   MEMORY  REQ/S
            default    hello-2  Running           3m12s  250m  3.0Mi   7
            default    hello-1  Running           3m12s  12m   3.0Mi   1234
            default    broken   CrashLoopBackOff  3m12s  -     -       -

            reach API server: is the site up?"#]],
        );
    }
}
