//! Running a notebook without a browser, through `jupyter nbconvert --execute`.

use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

use crate::environment::Python;
use crate::process::output;
use crate::settings;

/// nbconvert's settings, a Python file.
const CONFIG: &str = include_str!("nbconvert.py");

/// A notebook to run.
#[derive(Debug)]
pub(crate) struct Execution<'a> {
    pub(crate) notebook: &'a Path,
    /// The folder for the executed notebook, which keeps its name.
    pub(crate) output: &'a Path,
    /// Settings for the kernel, beside those that are in the environment already.
    pub(crate) settings: &'a [(&'a str, &'a str)],
    /// Seconds after which a cell counts as failed; none by default.
    pub(crate) cell_limit: Option<u32>,
}

impl Execution<'_> {
    /// Returns nbconvert's command line. It ends, and its kernel with it, when its stdin does.
    pub(crate) fn command(&self, python: &Python) -> anyhow::Result<Command> {
        std::fs::create_dir_all(self.output)?;
        let config = self.output.join("nbconvert_config.py");
        kernel::write_if_changed(&config, CONFIG)?;
        let mut command = python.command("jupyter")?;
        command.args([
            "nbconvert",
            "--to",
            "notebook",
            "--execute",
            "--log-level",
            "WARN",
        ]);
        command
            .arg("--config")
            .arg(&config)
            .arg("--output-dir")
            .arg(self.output)
            .arg(self.notebook);
        if let Some(seconds) = self.cell_limit {
            command.arg(format!("--ExecutePreprocessor.timeout={seconds}"));
        }
        command
            .envs(settings::absolute_paths()?)
            .envs(self.settings.iter().copied());
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(command)
    }

    /// Runs the notebook from top to bottom and returns where the executed one is.
    ///
    /// Progress, and the outputs of a cell that fails, are printed as they come.
    pub(crate) fn run(&self, python: &Python) -> anyhow::Result<PathBuf> {
        let mut child = self
            .command(python)?
            .spawn()
            .context("cannot run jupyter")?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let hidden = std::thread::scope(|scope| {
            let stderr =
                scope.spawn(|| stderr.map(|stream| relay(stream, |line| eprintln!("{line}"))));
            let stdout = stdout.map(|stream| relay(stream, |line| println!("{line}")));
            // A relay ends with its stream and does not panic.
            [stdout, stderr.join().ok().flatten()]
        });
        let status = child.wait()?;
        if !status.success() {
            let hidden: Vec<_> = hidden.into_iter().flatten().flatten().collect();
            // The cell's own outputs say more than nbconvert's stack, unless no cell failed.
            if !hidden
                .iter()
                .any(|line| line.contains("CellExecutionError"))
            {
                eprintln!("{}", hidden.join("\n"));
            }
            anyhow::bail!("{} failed", self.notebook.display());
        }
        let executed = self.output.join(
            self.notebook
                .file_name()
                .context("a notebook has a file name")?,
        );
        ensure!(
            executed.exists(),
            "nbconvert wrote no {}",
            executed.display()
        );
        Ok(executed)
    }
}

/// Passes lines on, up to a Python stack, and returns the rest.
fn relay(stream: impl Read, show: impl Fn(&str)) -> Vec<String> {
    let mut hidden = Vec::new();
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        if !hidden.is_empty() || line.starts_with("Traceback (most recent call last)") {
            hidden.push(line);
        } else if !line.starts_with("Loading startup configuration from") {
            show(&line);
        }
    }
    hidden
}

/// Makes a web page of an executed notebook, beside it, and returns where it is.
pub(crate) fn web_page(python: &Python, executed: &Path) -> anyhow::Result<PathBuf> {
    let mut command = python.command("jupyter")?;
    output(
        command
            .args(["nbconvert", "--to", "html", "--log-level", "WARN"])
            .arg(executed),
    )?;
    Ok(executed.with_extension("html"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn a_python_stack_is_kept_back_and_everything_before_it_is_shown() {
        let shown = RefCell::new(Vec::new());
        let text = "Loading startup configuration from: x\n   Compiling tch\nTraceback (most recent call last):\n  File\nCellExecutionError: y\n";
        let hidden = relay(text.as_bytes(), |line| {
            shown.borrow_mut().push(line.to_owned())
        });
        assert_eq!(shown.into_inner(), ["   Compiling tch"]);
        assert_eq!(
            hidden,
            [
                "Traceback (most recent call last):",
                "  File",
                "CellExecutionError: y"
            ]
        );
    }
}
