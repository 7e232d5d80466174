//! What set-up says: a line per step, with what was done and how long it took.

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use crate::command::{follow, words};

/// Prints a step that is known to be quick, or was already done, or how far one is.
pub(crate) fn done(step: &str, what: impl Display) {
    // Cargo may be drawing its progress into the line that the cursor is on.
    let erase = if io::stdout().is_terminal() {
        "\r\x1b[K"
    } else {
        ""
    };
    println!("{erase}{step:<13} {what}");
}

/// Says what was removed because nobody has used it for long.
pub(crate) fn pruned(folders: Vec<PathBuf>) {
    for folder in folders {
        let folder = folder.display();
        done("removed", format!("{folder}: unused for 30 days"));
    }
}

/// Prints what another program has printed.
pub(crate) fn pass_on(output: &[u8]) {
    let mut stdout = io::stdout().lock();
    // Who has closed stdout does not want to know.
    let _ = stdout.write_all(output).and_then(|()| stdout.flush());
}

/// Returns how much time has passed, as in `3 min 10 s`.
pub(crate) fn time(since: Instant) -> String {
    match since.elapsed().as_secs() {
        seconds @ ..60 => format!("{seconds} s"),
        seconds => format!("{} min {} s", seconds / 60, seconds % 60),
    }
}

/// Announces a step that takes a while, runs it, and says how long it took.
pub(crate) fn timed<T>(
    step: &str,
    what: impl Display,
    work: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    done(step, format!("{what} ..."));
    let start = Instant::now();
    let result =
        work().inspect_err(|_| done(step, format!("not finished, after {}", time(start))))?;
    done(step, format!("done in {}", time(start)));
    Ok(result)
}

/// Runs a command as a step of that name.
pub(crate) fn step(name: &str, command: &mut Command) -> anyhow::Result<()> {
    timed(name, words(command), || follow(name, command, false))
}
