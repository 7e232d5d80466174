//! What is known of the cell that evcxr has.

use std::path::Path;

use jupyter_protocol::ErrorOutput;

use tokio::time::Instant;

use super::channels::Passing;
use super::{LAST_WORDS, LAST_WORDS_OF_FAILURE};

pub(super) struct Cell {
    pub(super) request: Passing,
    /// Shown beside the cell, as in `[1]`.
    pub(super) number: usize,
    /// What was told about panics and errors.
    pub(super) notes: Vec<String>,
    pub(super) stderr: String,
    /// A panic, or an error that a `?` met: evcxr calls this a success.
    pub(super) failed: bool,
    /// Stop was meant for it, and what waits is not run; `asked`: it was asked to end itself.
    pub(super) stopped: bool,
    pub(super) asked: bool,
    /// When the next build for it is to be ended.
    pub(super) ends_build: Option<Instant>,
    /// The last error that was shown.
    pub(super) error: Option<ErrorOutput>,
    pub(super) reply: Option<Passing>,
    /// Whether evcxr says that it is done.
    pub(super) idle: bool,
    /// When the reply is to be passed on.
    pub(super) ends: Option<Instant>,
}

impl Cell {
    /// Returns the cell of a request, which comes after one of the number `last`.
    pub(super) fn new(request: Passing, last: usize) -> Self {
        let content = &request.content;
        let counts = content["silent"] != true && content["store_history"] != false;
        Self {
            number: last + usize::from(counts),
            request,
            notes: Vec::new(),
            stderr: String::new(),
            failed: false,
            stopped: false,
            asked: false,
            ends_build: None,
            error: None,
            reply: None,
            idle: false,
            ends: None,
        }
    }

    pub(super) fn code(&self) -> &str {
        self.request.content["code"].as_str().unwrap_or_default()
    }

    /// Returns whether evcxr calls it done without having replied, if only for a moment.
    pub(super) fn lacks_reply(&self) -> bool {
        self.idle && self.reply.is_none()
    }

    /// Sets the time of the end once evcxr has said both that it has a result and that it is idle.
    pub(super) fn ends_if_told(&mut self) {
        if self.reply.is_some() && self.idle {
            let last_words = if self.failed {
                LAST_WORDS_OF_FAILURE
            } else {
                LAST_WORDS
            };
            self.ends = Some(Instant::now() + last_words);
        }
    }

    /// Returns the error of a panic, of a `?`, or of a build that was ended: evcxr has shown none.
    pub(super) fn failure(&self, build_folder: &Path) -> Option<ErrorOutput> {
        if self.ends_build.is_some() && self.error.is_some() {
            let evalue = "stopped while it compiled".to_owned();
            return Some(ErrorOutput {
                ename: "Stopped".to_owned(),
                traceback: vec![evalue.clone()],
                evalue,
            });
        }
        if !self.failed {
            return None;
        }
        let told = self.notes.last().map_or(self.stderr.trim(), String::as_str);
        let (place, message) = match told.split_once(PLACE_ENDS) {
            Some((place, message)) => (Some(place), message),
            None => (None, told),
        };
        let line = place.and_then(|place| line_in_cell(place, self.code(), build_folder));
        let mut traceback = vec![message.to_owned()];
        match (line, place) {
            (Some((number, text)), _) => traceback.push(format!("line {number}: {text}")),
            (None, Some(place)) => traceback.push(format!("at {place}")),
            (None, None) => {}
        }
        Some(ErrorOutput {
            ename: if place.is_some() { "Panic" } else { "Error" }.into(),
            evalue: message.to_owned(),
            traceback,
        })
    }
}

/// Stands between a panic's place and its message in a note.
pub const PLACE_ENDS: char = '\u{1f}';

/// Returns the number and text of the line of a cell's code that `place` (`src/lib.rs:12:5`) in the
/// program that evcxr made of it stands for, if there is one such line only.
fn line_in_cell(place: &str, code: &str, build_folder: &Path) -> Option<(usize, String)> {
    let mut parts = place.rsplitn(3, ':');
    let (_column, line, file) = (parts.next()?, parts.next()?, parts.next()?);
    let program = std::fs::read_to_string(build_folder.join(file)).ok()?;
    let index = line.parse::<usize>().ok()?.checked_sub(1)?;
    let text = program.lines().nth(index)?.trim();
    // evcxr may put something of its own around what it takes over.
    let is_text = |line: &&str| !line.is_empty() && text.contains(*line);
    let mut found = (1..)
        .zip(code.lines().map(str::trim))
        .filter(|(_, line)| is_text(line));
    let (number, line) = found.next()?;
    found.next().is_none().then(|| (number, line.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_in_evcxrs_program_is_a_line_of_the_cell_if_there_is_one_such_line() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("src")).unwrap();
        let program = "mod evcxr;\nfn run() {\n    first();\n    twice();\n    twice();\n}\n";
        std::fs::write(folder.path().join("src/lib.rs"), program).unwrap();
        let code = "let a = 1;\n  first();\ntwice();\ntwice();";
        let line = |place: &str| line_in_cell(place, code, folder.path());
        assert_eq!(line("src/lib.rs:3:5"), Some((2, "first();".into())));
        assert_eq!(line("src/lib.rs:4:5"), None);
        assert_eq!(line("src/other.rs:3:5"), None);
        assert_eq!(line("nowhere"), None);
    }
}
