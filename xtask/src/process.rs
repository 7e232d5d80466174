//! Running other programs: none of them may wait for input, and a failure names the command.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

/// Returns a command for the Cargo that runs this program.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs a command whose output the user sees.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot run {}", words(command)))?;
    ensure!(status.success(), "{} failed ({status})", words(command));
    Ok(())
}

/// Runs a command and returns what it prints; an error carries what it wrote to stderr.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", words(command)))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{} failed ({}): {}",
            words(command),
            output.status,
            stderr.trim()
        );
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("{} printed what is not UTF-8", words(command)))
}

/// Runs a command and hands over each line that it prints, as it comes; an error carries what it
/// wrote to stderr.
pub(crate) fn run_lines(command: &mut Command, mut line: impl FnMut(String)) -> anyhow::Result<()> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", words(command)))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let errors = std::thread::spawn(move || {
        let mut text = Vec::new();
        // What could be read up to a failure is all there is to tell.
        let _ = stderr.map(|mut stderr| stderr.read_to_end(&mut text));
        String::from_utf8_lossy(&text).into_owned()
    });
    if let Some(stdout) = stdout {
        BufReader::new(stdout)
            .lines()
            .map_while(Result::ok)
            .for_each(&mut line);
    }
    let errors = errors.join().unwrap_or_default();
    let status = child.wait()?;
    ensure!(
        status.success(),
        "{} failed ({status}): {}",
        words(command),
        errors.trim()
    );
    Ok(())
}

/// Runs a command quietly, ends it after `limit`, and returns whether it succeeded in time.
pub(crate) fn succeeds_within(command: &mut Command, limit: Duration) -> bool {
    let quiet = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let Ok(mut child) = quiet.spawn() else {
        return false;
    };
    let start = Instant::now();
    while start.elapsed() < limit {
        match child.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) => std::thread::sleep(Duration::from_millis(50)),
            Err(_) => break,
        }
    }
    // It may have ended meanwhile; either way it has not succeeded in time.
    let _ = child.kill();
    let _ = child.wait();
    false
}

/// Returns whether a program of this name is in `PATH`.
pub(crate) fn is_installed(name: &str) -> bool {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).any(|folder| folder.join(name).is_file())
}

/// Returns a command's words, for messages.
fn words(command: &Command) -> String {
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or(command.get_program());
    let words: Vec<_> = std::iter::once(program)
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect();
    format!("`{}`", words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_command_and_what_it_said() {
        let error = output(Command::new("sh").args(["-c", "echo broken >&2; exit 3"]))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`sh -c")
                && error.contains("exit status: 3")
                && error.contains("broken"),
            "{error}"
        );
    }

    #[test]
    fn the_lines_of_a_failing_command_arrive_as_well() {
        let mut lines = Vec::new();
        let mut command = Command::new("sh");
        command.args(["-c", "echo first; echo broken >&2; echo last; exit 3"]);
        let error = run_lines(&mut command, |line| lines.push(line)).unwrap_err();
        assert_eq!(lines, ["first", "last"]);
        let error = error.to_string();
        assert!(
            error.ends_with("failed (exit status: 3): broken"),
            "{error}"
        );
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(&mut Command::new("no-such-program"))
            .unwrap_err()
            .to_string();
        assert_eq!(error, "cannot run `no-such-program`");
    }

    #[test]
    fn a_command_past_its_limit_counts_as_failed() {
        assert!(succeeds_within(
            &mut Command::new("true"),
            Duration::from_secs(20)
        ));
        assert!(!succeeds_within(
            Command::new("sleep").arg("20"),
            Duration::from_millis(100)
        ));
    }
}
