//! Running other programs: none of them may wait for input, and a failure names the command.

use std::path::Path;
use std::process::{Command, Stdio};

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

/// Runs a command that ends when its stdin does: it does not outlive this program.
pub(crate) fn run_held(command: &mut Command) -> anyhow::Result<()> {
    let mut child = command
        .stdin(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", words(command)))?;
    // Waiting would close it.
    let held = child.stdin.take();
    let status = child.wait()?;
    drop(held);
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
        let (words, status) = (words(command), output.status);
        bail!("{words} failed ({status}): {}", stderr.trim());
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("{} printed what is not UTF-8", words(command)))
}

/// Returns whether a program of this name is in `PATH`.
pub(crate) fn is_installed(name: &str) -> bool {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).any(|folder| folder.join(name).is_file())
}

/// Returns a command's words, for messages.
pub(crate) fn words(command: &Command) -> String {
    let program = command.get_program();
    let program = Path::new(program).file_name().unwrap_or(program);
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
        let mut command = Command::new("sh");
        command.args(["-c", "echo broken >&2; exit 3"]);
        let error = output(&mut command).unwrap_err().to_string();
        for part in ["`sh -c", "exit status: 3", "broken"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(&mut Command::new("no-such-program")).unwrap_err();
        assert_eq!(error.to_string(), "cannot run `no-such-program`");
    }

    #[test]
    fn a_held_command_finds_the_end_of_its_stdin_only_after_this_programs() {
        let mut reads = Command::new("sh");
        reads.args(["-c", "timeout 0.2 cat; [ $? = 124 ]"]);
        run_held(&mut reads).unwrap();
    }
}
