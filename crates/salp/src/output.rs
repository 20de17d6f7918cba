//! What a person sees: errors, phases, aligned columns; and where logs go.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this module is the one that prints"
)]

use anyhow::{Context as _, Result};
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// Whether standard error takes colour: a terminal, and `NO_COLOR` is not set.
pub fn colour() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// Prints an error on one line, the cause chain joined by colons.
pub fn error(error: &anyhow::Error) {
    let text =
        error
            .chain()
            .map(|e| e.to_string())
            .fold(Vec::<String>::new(), |mut parts, part| {
                // Some libraries repeat their source in their own text.
                if !parts.last().is_some_and(|last| last.contains(&part)) {
                    parts.push(part);
                }
                parts
            });
    let text = text.join(": ").replace('\n', " ");
    if colour() {
        eprintln!("\x1b[31merror:\x1b[0m {text}");
    } else {
        eprintln!("error: {text}");
    }
}

/// Prints a line to standard output; a closed pipe ends quietly.
pub fn line(text: impl AsRef<str>) {
    let mut out = std::io::stdout().lock();
    let _closed_pipe = writeln!(out, "{}", text.as_ref());
}

/// Prints a line to standard error.
pub fn note(text: impl AsRef<str>) {
    eprintln!("{}", text.as_ref());
}

/// Targets of libraries that log each failure that they also return; what is told of those is
/// for who gets them to decide. `--log kube_client=debug` brings them back.
const QUIET: &str = "kube_client=off,kube_runtime=off";

/// Sets up `tracing` to standard error.
pub fn init_logging(filter: &str, timestamps: bool) -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(format!("{QUIET},{filter}"))
        .with_context(|| format!("read --log {filter:?}: want LEVEL or TARGET=LEVEL,…"))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour());
    if timestamps {
        builder.init();
    } else {
        builder.compact().init();
    }
    Ok(())
}

/// The phases of a start, one line each with what it took.
#[derive(Debug)]
pub struct Phases {
    spinner: Option<indicatif::ProgressBar>,
    started: Instant,
    current: Option<(String, Instant)>,
}

impl Phases {
    /// Shows a spinner on a terminal; elsewhere only the finished lines.
    pub fn new() -> Self {
        let spinner = std::io::stderr().is_terminal().then(|| {
            let bar = indicatif::ProgressBar::new_spinner();
            bar.enable_steady_tick(Duration::from_millis(80));
            bar
        });
        Self {
            spinner,
            started: Instant::now(),
            current: None,
        }
    }

    /// Ends the current phase and begins the next.
    pub fn begin(&mut self, name: &str) {
        self.end();
        if let Some(bar) = &self.spinner {
            bar.set_message(name.to_owned());
        }
        self.current = Some((name.to_owned(), Instant::now()));
    }

    /// Ends the current phase.
    pub fn end(&mut self) {
        if let Some((name, began)) = self.current.take() {
            let took = began.elapsed();
            let mark = if colour() { "\x1b[32m✓\x1b[0m" } else { "ok" };
            let text = format!("{mark} {name:<14} {:>6.1} ms", took.as_secs_f64() * 1e3);
            match &self.spinner {
                Some(bar) => bar.println(text),
                None => eprintln!("{text}"),
            }
        }
    }

    /// Ends the last phase and takes the spinner away. Returns the time since the first.
    pub fn finish(mut self) -> Duration {
        self.end();
        self.clear();
        self.started.elapsed()
    }

    /// Takes the spinner away without ending the phase: it failed.
    pub fn clear(&mut self) {
        if let Some(bar) = self.spinner.take() {
            bar.finish_and_clear();
        }
    }
}

/// Prints rows in columns as wide as their widest cell, three spaces apart, as kubectl does.
pub fn table(head: &[&str], rows: &[Vec<String>]) {
    for text in table_lines(head, rows) {
        line(text);
    }
}

/// The lines of [`table`].
pub fn table_lines(head: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let mut widths: Vec<usize> = head.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (w, cell) in widths.iter_mut().zip(row) {
            *w = (*w).max(cell.chars().count());
        }
    }
    let render = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (cell, width) in cells.zip(&widths) {
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', width + 3 - cell.chars().count()));
        }
        text.trim_end().to_owned()
    };
    let mut lines = vec![render(&mut head.iter().copied())];
    lines.extend(
        rows.iter()
            .map(|row| render(&mut row.iter().map(String::as_str))),
    );
    lines
}

/// A size such as `12.3Mi`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "Ki", "Mi", "Gi", "Ti"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{n}B")
    } else {
        format!("{value:.1}{}", UNITS[unit])
    }
}

/// An age as kubectl prints it: `45s`, `3m12s`, `5h`, `12d`.
pub fn age(seconds: i64) -> String {
    let s = seconds.max(0);
    match s {
        0..120 => format!("{s}s"),
        120..600 if s % 60 != 0 => format!("{}m{}s", s / 60, s % 60),
        120..10_800 => format!("{}m", s / 60),
        10_800..28_800 if (s / 60) % 60 != 0 => format!("{}h{}m", s / 3600, (s / 60) % 60),
        10_800..172_800 => format!("{}h", s / 3600),
        172_800..691_200 if (s / 3600) % 24 != 0 => format!("{}d{}h", s / 86_400, (s / 3600) % 24),
        _ => format!("{}d", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![
            vec!["a".to_owned(), "Running".to_owned()],
            vec!["longer".to_owned(), "x".to_owned()],
        ];
        assert_eq!(
            table_lines(&["POD", "STATE"], &rows),
            ["POD      STATE", "a        Running", "longer   x"]
        );
    }

    #[test]
    fn sizes_and_ages() {
        assert_eq!(bytes(512), "512B");
        assert_eq!(bytes(12 * 1024 * 1024 + 300 * 1024), "12.3Mi");
        assert_eq!(age(45), "45s");
        assert_eq!(age(192), "3m12s");
        assert_eq!(age(3600), "60m");
        assert_eq!(age(5 * 3600), "5h");
        assert_eq!(age(12 * 86_400), "12d");
    }
}
