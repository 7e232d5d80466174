//! What the benchmarks that are programs share: a command line in, a JSON object out.
#![allow(dead_code, reason = "each benchmark uses a part of it")]

use std::error::Error;
use std::fs;
use std::process::ExitCode;

use serde_json::Value;

pub(crate) type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// Measures what the command line says, and prints the figures if there are any to print; `missing` says what a
/// command line needs.
pub(crate) fn run(
    missing: &str,
    measure: impl FnOnce(&[String]) -> Result<Option<Value>>,
) -> ExitCode {
    // `cargo bench` adds a flag of its own.
    let words = std::env::args().skip(1).filter(|word| word != "--bench");
    let words: Vec<String> = words.collect();
    if words.is_empty() {
        println!("nothing to measure: {missing}");
        return ExitCode::SUCCESS;
    }
    match measure(&words) {
        Ok(figures) => {
            figures.iter().for_each(|figures| println!("{figures}"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Calls `set` with the name and the value of each option; it returns whether there is one of that name, and
/// `known` are those that there are.
pub(crate) fn options(
    words: &[String],
    known: &str,
    mut set: impl FnMut(&str, &str) -> Result<bool>,
) -> Result<()> {
    for option in words.chunks(2) {
        let [name, value] = option else {
            return Err(format!("{option:?}: expected an option and its value").into());
        };
        if !set(name, value)? {
            return Err(format!("{name}: expected {known}").into());
        }
    }
    Ok(())
}

/// Returns the most memory that this process ever held, in bytes, as Linux counts it.
pub(crate) fn peak_memory() -> Result<f64> {
    Ok(field("/proc/self/status", "VmHWM:")? * 1024.)
}

/// Returns the number behind a name in one of the kernel's files.
pub(crate) fn field(file: &str, name: &str) -> Result<f64> {
    let text = fs::read_to_string(file)?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(name));
    let value = lines.next().and_then(|line| line.split_whitespace().next());
    Ok(value
        .ok_or_else(|| format!("{file} has no {name}"))?
        .parse()?)
}
