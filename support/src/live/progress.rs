//! A text that changes in place while a cell runs.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::bridge::{Bridge, Displayed};

/// How often what is shown may change.
const INTERVAL: Duration = Duration::from_millis(250);

/// What is done sooner shows nothing but its lines.
const SOON: Duration = Duration::from_secs(1);

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
}

/// A notebook's output.
struct Lines {
    shown: Displayed,
    done: String,
    state: String,
}

impl Progress {
    pub(crate) fn begin() -> Self {
        Self {
            out: None,
            due: Instant::now() + SOON,
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
                lines.update();
            }
            Out::Terminal(bar) => bar.set_message(state()),
        }
    }

    /// Puts a line that stays in the place of what was shown.
    pub(crate) fn line(&mut self, line: &str) {
        self.due = Instant::now() + INTERVAL;
        match self.out.get_or_insert_with(Out::begin) {
            Out::Notebook(lines) => {
                lines.done += line;
                lines.done += "\n";
                lines.state.clear();
                lines.update();
            }
            Out::Terminal(bar) => bar.suspend(|| println!("{line}")),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        match &mut self.out {
            Some(Out::Notebook(lines)) if !lines.state.is_empty() => {
                lines.state.clear();
                lines.update();
            }
            Some(Out::Terminal(bar)) => bar.finish_and_clear(),
            _ => {}
        }
    }
}

impl Out {
    fn begin() -> Self {
        let notebook = || {
            Some(Self::Notebook(Lines {
                shown: Bridge::connect()?.display(TEXT, "")?,
                done: String::new(),
                state: String::new(),
            }))
        };
        notebook().unwrap_or_else(|| {
            let bar = ProgressBar::no_length();
            Self::Terminal(match ProgressStyle::with_template("{msg}") {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            })
        })
    }
}

impl Lines {
    fn update(&mut self) {
        let text = format!("{}{}", self.done, self.state);
        self.shown.update(TEXT, text.trim_end());
    }
}

const TEXT: &str = "text/plain";
