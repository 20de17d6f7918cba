//! `salp top`: a live view of nodes and pods in the terminal.

use crate::api_access::{Access, block_on, connect};
use crate::cli::Target;
use crate::client_commands;
use crate::readings::{self, Process, Sample, Which};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Row, Table, TableState};
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

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

/// What the screen shows.
struct View {
    sort: Sort,
    selected: TableState,
    processes: Vec<Process>,
    sample: Option<Sample>,
    trouble: Option<String>,
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
        let access = connect(&args.target).await?;
        let first = readings::sample(&access, &which).await?;
        let mut terminal = ratatui::try_init().context("open terminal")?;
        let result = watch(
            &mut terminal,
            &access,
            &which,
            first,
            Duration::from_secs_f64(args.every),
        )
        .await;
        ratatui::restore();
        result
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn watch(
    terminal: &mut ratatui::DefaultTerminal,
    access: &Access,
    which: &Which,
    first: Sample,
    every: Duration,
) -> Result<()> {
    let mut view = View {
        sort: Sort::Cpu,
        selected: TableState::default().with_selected(0),
        processes: readings::processes(None, &first),
        sample: Some(first),
        trouble: None,
    };
    loop {
        sort(&mut view);
        terminal
            .draw(|frame| draw(frame, &mut view))
            .context("draw")?;
        let until = Instant::now() + every;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            if !event::poll(left).context("read keys")? {
                break;
            }
            if let Event::Key(key) = event::read().context("read keys")?
                && key.kind == KeyEventKind::Press
            {
                match key.code {
                    KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                    KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                        return Ok(());
                    }
                    KeyCode::Char('c') => view.sort = Sort::Cpu,
                    KeyCode::Char('m') => view.sort = Sort::Memory,
                    KeyCode::Char('r') => view.sort = Sort::Requests,
                    KeyCode::Char('n') => view.sort = Sort::Name,
                    KeyCode::Down | KeyCode::Char('j') => view.selected.select_next(),
                    KeyCode::Up | KeyCode::Char('k') => view.selected.select_previous(),
                    _ => {}
                }
                sort(&mut view);
                terminal
                    .draw(|frame| draw(frame, &mut view))
                    .context("draw")?;
            }
        }
        match readings::sample(access, which).await {
            Ok(sample) => {
                view.processes = readings::processes(view.sample.as_ref(), &sample);
                view.sample = Some(sample);
                view.trouble = None;
            }
            Err(error) => view.trouble = Some(format!("{error:#}")),
        }
    }
}

fn sort(view: &mut View) {
    let name = |p: &Process| (p.namespace.clone(), p.pod.clone());
    match view.sort {
        Sort::Name => view.processes.sort_by_key(name),
        Sort::Cpu => sort_down(&mut view.processes, |p| p.cpu_cores.unwrap_or(0.0)),
        Sort::Memory => sort_down(&mut view.processes, |p| p.memory_bytes.unwrap_or(0) as f64),
        Sort::Requests => sort_down(&mut view.processes, |p| {
            p.requests_per_second.unwrap_or(0.0)
        }),
    }
}

fn sort_down(list: &mut [Process], key: impl Fn(&Process) -> f64) {
    list.sort_by(|a, b| {
        key(b)
            .total_cmp(&key(a))
            .then_with(|| (&a.namespace, &a.pod).cmp(&(&b.namespace, &b.pod)))
    });
}

fn draw(frame: &mut ratatui::Frame<'_>, view: &mut View) {
    let nodes = view.sample.as_ref().map_or(&[][..], |s| &s.nodes);
    let heading = u16::try_from(nodes.len())
        .unwrap_or(u16::MAX)
        .saturating_add(2)
        .min(8);
    let [top, middle, bottom] = Layout::vertical([
        Constraint::Length(heading),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(frame.area());

    let cpu: f64 = view.processes.iter().filter_map(|p| p.cpu_cores).sum();
    let memory: u64 = view.processes.iter().filter_map(|p| p.memory_bytes).sum();
    let requests: f64 = view
        .processes
        .iter()
        .filter_map(|p| p.requests_per_second)
        .sum();
    let mut lines = vec![Line::from(format!(
        "{} pods   {:.0}m cpu   {} memory   {requests:.0} requests/s",
        view.processes.len(),
        cpu * 1000.0,
        crate::output::bytes(memory),
    ))];
    for node in nodes {
        let pods = view
            .processes
            .iter()
            .filter(|p| p.node == node.name)
            .count();
        let state = match (node.ready, node.reached) {
            (true, true) => "Ready",
            (true, false) => "Ready, its kubelet is silent",
            _ => "NotReady",
        };
        lines.push(Line::from(format!(
            "{}   {state}   {:.0} cores   {}   {pods} pods",
            node.name,
            node.cpu_cores,
            crate::output::bytes(node.memory_bytes),
        )));
    }
    frame.render_widget(ratatui::widgets::Paragraph::new(lines), top);

    let head = [
        "NAMESPACE",
        "POD",
        "IMAGE",
        "READY",
        "STATE",
        "RESTARTS",
        "AGE",
        "CPU",
        "MEMORY",
        "REQ/S",
    ];
    let rows: Vec<Row<'_>> = view
        .processes
        .iter()
        .map(|p| {
            Row::new(
                client_commands::row(p, true, false)
                    .into_iter()
                    .map(Cell::from),
            )
        })
        .collect();
    let widths = [
        Constraint::Max(16),
        Constraint::Min(20),
        Constraint::Min(20),
        Constraint::Length(6),
        Constraint::Max(18),
        Constraint::Length(9),
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Length(9),
        Constraint::Length(8),
    ];
    let table = Table::new(rows, widths)
        .header(Row::new(head).style(Style::new().add_modifier(Modifier::REVERSED)))
        .row_highlight_style(Style::new().add_modifier(Modifier::BOLD));
    frame.render_stateful_widget(table, middle, &mut view.selected);

    let foot = match &view.trouble {
        Some(trouble) => trouble.clone(),
        None => "q quit   sort: c cpu  m memory  r requests  n name   ↑↓ select".to_owned(),
    };
    frame.render_widget(Line::from(foot), bottom);
}
