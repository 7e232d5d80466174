//! What set-up says: a line per step, with what was done and how long it took.

use std::fmt::Display;
use std::process::Command;
use std::time::Instant;

use crate::command::{run, words};

/// Prints a step that is known to be quick, or was already done.
pub(crate) fn done(step: &str, what: impl Display) {
    println!("{step:<13} {what}");
}

/// Announces a step that takes a while, runs it, and says how long it took.
pub(crate) fn timed<T>(
    step: &str,
    what: impl Display,
    work: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    println!("{step:<13} {what} ...");
    let start = Instant::now();
    let result = work()?;
    println!("{step:<13} done in {:.1?}", start.elapsed());
    Ok(result)
}

/// Runs a command as a step of that name.
pub(crate) fn step(name: &str, command: &mut Command) -> anyhow::Result<()> {
    timed(name, words(command), || run(command))
}
