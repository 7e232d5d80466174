//! A text that changes in place while a cell runs.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::bridge::{Bridge, Displayed};
use crate::distributed::ProcessGroup;

/// How often what is shown may change.
const INTERVAL: Duration = Duration::from_millis(250);

/// What is done sooner shows nothing but its lines.
const SOON: Duration = Duration::from_secs(1);

/// So many lines make an output; what follows is another one. Each change sends an output whole.
const LINES: usize = 200;

/// Lines that are there to stay, and below them one that shows how far the work is.
///
/// In a notebook of this project's kernel they are one output that is updated; in a terminal the
/// last line is written over; elsewhere only what stays is written.
pub(crate) struct Progress {
    out: Option<Out>,
    /// When what is shown may change next.
    due: Instant,
}

enum Out {
    Notebook(Lines),
    /// Draws on a terminal only.
    Terminal(ProgressBar),
    /// Another process shows the same.
    Nowhere,
}

/// A notebook's output.
struct Lines {
    shown: Displayed,
    done: String,
    /// How many lines `done` has.
    count: usize,
    state: String,
    /// When the output was last sent.
    sent: Instant,
    /// Whether it has changed since.
    changed: bool,
}

impl Progress {
    pub(crate) fn begin() -> Self {
        Self {
            out: None,
            due: Instant::now() + SOON,
        }
    }

    /// Begins one that only the main process of a group shows.
    pub(crate) fn of(group: &ProcessGroup) -> Self {
        Self {
            out: (!group.is_main()).then_some(Out::Nowhere),
            ..Self::begin()
        }
    }

    /// Shows how far the work is, unless it was shown a moment ago.
    pub(crate) fn show(&mut self, state: impl FnOnce() -> String) {
        let now = Instant::now();
        if now < self.due {
            return;
        }
        self.due = now + INTERVAL;
        match self.out.get_or_insert_with(Out::begin) {
            Out::Notebook(lines) => {
                lines.state = state();
                lines.send();
            }
            Out::Terminal(bar) => bar.set_message(state()),
            Out::Nowhere => {}
        }
    }

    /// Puts a line that stays in the place of what was shown: at once or, where lines come quickly,
    /// with the next ones.
    pub(crate) fn line(&mut self, line: &str) {
        self.due = Instant::now() + INTERVAL;
        match self.out.get_or_insert_with(Out::begin) {
            Out::Notebook(lines) => lines.push(line),
            Out::Terminal(bar) => bar.suspend(|| println!("{line}")),
            Out::Nowhere => {}
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        match &mut self.out {
            Some(Out::Notebook(lines)) if lines.changed || !lines.state.is_empty() => {
                lines.state.clear();
                lines.send();
            }
            Some(Out::Terminal(bar)) => bar.finish_and_clear(),
            _ => {}
        }
    }
}

impl Out {
    fn begin() -> Self {
        let notebook = Lines::begin().map(Self::Notebook);
        notebook.unwrap_or_else(|| {
            let bar = ProgressBar::no_length();
            Self::Terminal(match ProgressStyle::with_template("{msg}") {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            })
        })
    }
}

impl Lines {
    /// Begins an output, where there is a bridge.
    fn begin() -> Option<Self> {
        let shown = Bridge::connect()?.display(TEXT, "")?;
        Some(Self::shown_as(shown))
    }

    fn shown_as(shown: Displayed) -> Self {
        Self {
            shown,
            done: String::new(),
            count: 0,
            state: String::new(),
            sent: Instant::now() - INTERVAL,
            changed: false,
        }
    }

    fn push(&mut self, line: &str) {
        if self.count == LINES
            && let Some(next) = Self::begin()
        {
            self.state.clear();
            self.send();
            *self = next;
        }
        self.done += line;
        self.done += "\n";
        self.count += 1;
        self.state.clear();
        self.changed = true;
        if self.sent.elapsed() >= INTERVAL {
            self.send();
        }
    }

    fn send(&mut self) {
        let text = format!("{}{}", self.done, self.state);
        self.shown.update(TEXT, text.trim_end());
        (self.sent, self.changed) = (Instant::now(), false);
    }
}

const TEXT: &str = "text/plain";

#[cfg(test)]
mod tests {
    use super::super::bridge::tests::{OK, bridge};
    use super::*;

    #[test]
    fn lines_in_quick_succession_are_sent_together_and_none_is_lost() {
        const ANSWERS: &[&str] = &[OK; 40];
        let (folder, told) = bridge(ANSWERS);
        let bridge = Bridge::connect_to(&folder.path().join("events")).unwrap();
        let mut lines = Lines::shown_as(bridge.display(TEXT, "").unwrap());
        let count = LINES - 1;
        (0..count).for_each(|line| lines.push(&format!("line {line}")));
        drop(Progress {
            out: Some(Out::Notebook(lines)),
            due: Instant::now(),
        });
        let told = told.join().unwrap();
        let sent: usize = told.iter().map(|event| event.to_string().len()).sum();
        let last = told.last().unwrap()["data"][TEXT].as_str().unwrap();
        assert!(last.starts_with("line 0\nline 1\n"), "{last}");
        assert!(last.ends_with(&format!("\nline {}", count - 1)), "{last}");
        // Sent with every line, it would be about a hundred times the text.
        assert!(sent < 20 * last.len(), "{sent} bytes for {}", last.len());
    }
}
