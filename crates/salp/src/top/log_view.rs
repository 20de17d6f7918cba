//! A pod's log on the whole screen of `salp top`: followed, scrolled, left again.
//!
//! [`follow`] reads it from wherever the pod is; what is drawn is a function of [`LogView`].

use crate::api_access::{self, connect};
use crate::cli::Target;
use crate::fleet;
use crate::readings::Process;
use anyhow::{Context as _, Result};
use futures::stream::BoxStream;
use futures::{AsyncBufReadExt as _, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, LogParams};
use ratatui::crossterm::event::KeyCode;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::Paragraph;
use std::collections::VecDeque;
use std::time::Duration;

/// Lines kept to scroll back to; older ones go.
const LINES_MAX: usize = 5_000;
/// Lines of what was logged before that are shown at first.
const TAIL: i64 = 1_000;
/// Lines taken between two frames.
const LINES_AT_ONCE: usize = 256;
/// Columns of a tab.
const TAB: &str = "    ";

/// What comes while a log is followed.
#[derive(Debug)]
pub enum Heard {
    /// First: the pod's containers.
    Containers(Vec<String>),
    Line(String),
}

/// A log as it comes.
pub type Following = BoxStream<'static, Vec<Result<Heard>>>;

/// Follows the log of one container of a pod, counted from 0 and around.
pub fn follow(target: &Target, of: &Process, container: usize, within: Duration) -> Following {
    let (target, of) = (target.clone(), of.clone());
    let opened = async move {
        let access = match &of.site {
            Some(site) => fleet::site(&target, site, within).await?,
            None => connect(&target).await?,
        };
        let pods: Api<Pod> = Api::namespaced(access.client, &of.namespace);
        let pod = pods.get(&of.pod).await.map_err(api_access::explain)?;
        let containers = pod.spec.into_iter().flat_map(|s| s.containers);
        let containers: Vec<String> = containers.map(|c| c.name).collect();
        let params = LogParams {
            container: containers.get(container % containers.len().max(1)).cloned(),
            follow: true,
            tail_lines: Some(TAIL),
            ..LogParams::default()
        };
        let stream = pods.log_stream(&of.pod, &params).await;
        let lines = stream.map_err(api_access::explain)?.lines();
        let lines = lines.map(|line| Ok(Heard::Line(line.context("read log")?)));
        let first = futures::stream::iter([Ok(Heard::Containers(containers))]);
        Ok::<_, anyhow::Error>(first.chain(lines))
    };
    futures::stream::once(opened)
        .try_flatten()
        .ready_chunks(LINES_AT_ONCE)
        .boxed()
}

/// What of a log is shown.
#[derive(Debug, Default)]
pub struct LogView {
    /// Whose it is.
    of: String,
    containers: Vec<String>,
    /// Which of them, counted on.
    container: usize,
    lines: VecDeque<String>,
    /// Lines below those that are shown; 0 follows.
    below: usize,
    /// Why nothing more comes.
    ended: Option<String>,
    /// Lines that had room when it was drawn last.
    page: usize,
}

/// What a key wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Nothing,
    Back,
    /// The log of another container.
    Container(usize),
}

impl LogView {
    pub fn new(of: &Process, container: usize) -> Self {
        let site = of.site.iter().map(|site| format!("{site}/"));
        let site: String = site.collect();
        Self {
            of: format!("{site}{}/{}", of.namespace, of.pod),
            container,
            ..Self::default()
        }
    }

    /// Takes in what came; nothing at the end.
    pub fn take(&mut self, heard: Option<Vec<Result<Heard>>>) {
        let Some(heard) = heard else {
            self.ended
                .get_or_insert_with(|| "the log has ended".to_owned());
            return;
        };
        for heard in heard {
            match heard {
                Ok(Heard::Containers(names)) => self.containers = names,
                Ok(Heard::Line(line)) => {
                    self.lines.push_back(plain(&line));
                    if self.below > 0 {
                        self.below += 1;
                    }
                    if self.lines.len() > LINES_MAX {
                        self.lines.pop_front();
                    }
                }
                Err(error) => self.ended = Some(format!("{error:#}")),
            }
        }
        self.scroll(0);
    }

    pub fn press(&mut self, key: KeyCode) -> Wanted {
        let page = self.page.max(2) as isize - 1;
        match key {
            KeyCode::Char('q') | KeyCode::Esc => return Wanted::Back,
            KeyCode::Char('c') if self.containers.len() > 1 => {
                return Wanted::Container(self.container + 1);
            }
            KeyCode::Up | KeyCode::Char('k') => self.scroll(1),
            KeyCode::Down | KeyCode::Char('j') => self.scroll(-1),
            KeyCode::PageUp | KeyCode::Char('b') => self.scroll(page),
            KeyCode::PageDown | KeyCode::Char(' ') => self.scroll(-page),
            KeyCode::Home | KeyCode::Char('g') => self.scroll(isize::MAX),
            KeyCode::End | KeyCode::Char('G' | 'f') => self.below = 0,
            _ => {}
        }
        Wanted::Nothing
    }

    /// Goes so many lines up; no further than the first page.
    fn scroll(&mut self, up: isize) {
        let most = self.lines.len().saturating_sub(self.page.max(1));
        self.below = self.below.saturating_add_signed(up).min(most);
    }

    pub fn draw(&mut self, frame: &mut ratatui::Frame<'_>) {
        let [head, body, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Min(1),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        self.page = usize::from(body.height);
        self.scroll(0);
        let container = match self.containers.len() {
            0 | 1 => String::new(),
            n => {
                let at = self.container % n;
                format!("   container {} ({} of {n})", self.containers[at], at + 1)
            }
        };
        let title = format!("log of {}{container}", self.of);
        let reversed = Style::new().add_modifier(Modifier::REVERSED);
        frame.render_widget(Line::from(title).style(reversed), head);
        let rows = self.rows(body.width.into(), body.height.into());
        frame.render_widget(Paragraph::new(rows), body);
        let state = match (&self.ended, self.below) {
            (Some(why), _) => why.clone(),
            (None, 0) => "following".to_owned(),
            (None, n) => format!("{n} lines below"),
        };
        let keys = if self.containers.len() > 1 {
            "q back   ↑↓ scroll   G follow   c container"
        } else {
            "q back   ↑↓ scroll   G follow"
        };
        frame.render_widget(Line::from(format!("{keys}   {state}")), foot);
    }

    /// The rows of the screen, the last line at the bottom; long lines take several.
    fn rows(&self, width: usize, height: usize) -> Vec<Line<'static>> {
        let mut rows: VecDeque<Line<'static>> = VecDeque::new();
        for line in self.lines.iter().rev().skip(self.below) {
            let cells: Vec<char> = line.chars().collect();
            let pieces: Vec<String> = match cells.len() {
                0 => vec![String::new()],
                _ => cells
                    .chunks(width.max(1))
                    .map(|c| c.iter().collect())
                    .collect(),
            };
            for piece in pieces.into_iter().rev() {
                rows.push_front(Line::from(piece));
            }
            if rows.len() >= height {
                break;
            }
        }
        rows.drain(..rows.len().saturating_sub(height));
        rows.into()
    }
}

/// A line without what a terminal would obey.
fn plain(line: &str) -> String {
    let mut shown = String::with_capacity(line.len());
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\t' => shown.push_str(TAB),
            // ESC [ … letter: colours and the like.
            '\x1b' if chars.peek() == Some(&'[') => {
                chars.next();
                for c in chars.by_ref() {
                    if ('@'..='~').contains(&c) {
                        break;
                    }
                }
            }
            c if c.is_control() => {}
            c => shown.push(c),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use ratatui::backend::TestBackend;

    fn lines(view: &mut LogView, range: std::ops::Range<usize>) {
        let lines = range.map(|n| Ok(Heard::Line(format!("line {n}"))));
        view.take(Some(lines.collect()));
    }

    fn check(view: &mut LogView, want: Expect) {
        let mut terminal = ratatui::Terminal::new(TestBackend::new(60, 5)).unwrap();
        terminal.draw(|frame| view.draw(frame)).unwrap();
        let screen = terminal.backend().to_string();
        let lines: Vec<&str> = screen
            .lines()
            .map(|line| line.trim_matches('"').trim_end())
            .collect();
        want.assert_eq(&lines.join("\n"));
    }

    fn view() -> LogView {
        LogView {
            of: "shop-1/default/till-0".to_owned(),
            containers: vec!["till".to_owned()],
            ..LogView::default()
        }
    }

    #[test]
    fn it_follows_until_it_is_scrolled_and_again_when_asked() {
        let mut view = view();
        lines(&mut view, 0..5);
        check(
            &mut view,
            expect![[r#"
                log of shop-1/default/till-0
                line 2
                line 3
                line 4
                q back   ↑↓ scroll   G follow   following"#]],
        );
        assert_eq!(view.press(KeyCode::Up), Wanted::Nothing);
        // What comes now does not move what is read.
        lines(&mut view, 5..9);
        check(
            &mut view,
            expect![[r#"
                log of shop-1/default/till-0
                line 1
                line 2
                line 3
                q back   ↑↓ scroll   G follow   5 lines below"#]],
        );
        view.press(KeyCode::Home);
        view.press(KeyCode::Up);
        check(
            &mut view,
            expect![[r#"
                log of shop-1/default/till-0
                line 0
                line 1
                line 2
                q back   ↑↓ scroll   G follow   6 lines below"#]],
        );
        view.press(KeyCode::PageDown);
        view.press(KeyCode::Char('G'));
        view.take(None);
        check(
            &mut view,
            expect![[r#"
                log of shop-1/default/till-0
                line 6
                line 7
                line 8
                q back   ↑↓ scroll   G follow   the log has ended"#]],
        );
        assert_eq!(view.press(KeyCode::Esc), Wanted::Back);
    }

    #[test]
    fn long_lines_take_several_rows_and_no_line_commands_the_terminal() {
        let mut view = view();
        view.containers.push("proxy".to_owned());
        let line = format!("\x1b[31m{}\x1b[0m\tend\x07", "x".repeat(70));
        view.take(Some(vec![Ok(Heard::Line(line))]));
        check(
            &mut view,
            expect![[r#"
                log of shop-1/default/till-0   container till (1 of 2)
                xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
                xxxxxxxxxx    end

                q back   ↑↓ scroll   G follow   c container   following"#]],
        );
        assert_eq!(view.press(KeyCode::Char('c')), Wanted::Container(1));
    }

    #[test]
    fn it_keeps_no_more_than_it_may() {
        let mut view = view();
        lines(&mut view, 0..10);
        view.press(KeyCode::Home);
        lines(&mut view, 10..LINES_MAX * 2);
        assert_eq!(view.lines.len(), LINES_MAX);
        check(
            &mut view,
            expect![[r#"
                log of shop-1/default/till-0
                line 5000
                line 5001
                line 5002
                q back   ↑↓ scroll   G follow   4997 lines below"#]],
        );
    }
}
