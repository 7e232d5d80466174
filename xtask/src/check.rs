//! Checks of the kernel and the notebooks, as a user's own CI would meet them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::json;

use crate::environment::Python;
use crate::execute::Execution;
use crate::notebook::{Notebook, epochs};
use crate::process::{output, run};
use crate::report;
use crate::setup::Ready;

/// The settings of a run that checks the notebook and not the network.
const SMALL: [(&str, &str); 2] = [("TRANSFER_LIMIT", "200"), ("TRANSFER_EPOCHS", "2")];

/// Seconds a cell of a small run may take before it counts as hung.
const CELL_LIMIT: u32 = 900;

/// Returns the text of a notebook with these cells.
pub(crate) fn scratch(cells: &[&str]) -> String {
    let cells: Vec<_> = (1..)
        .zip(cells)
        .map(|(number, source)| {
            json!({
                "cell_type": "code", "id": format!("cell-{number}"), "metadata": {},
                "source": source, "execution_count": null, "outputs": [],
            })
        })
        .collect();
    let kernel = json!({"name": "rust", "display_name": "Rust", "language": "rust"});
    json!({"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": cells})
        .to_string()
}

/// A plain `jupyter nbconvert --execute` fails, names the cell and shows the reason, for each way
/// in which a cell can fail; and succeeds where none does.
pub(crate) fn failures_are_honest(ready: &Ready) -> anyhow::Result<()> {
    let cases = [
        ("succeeds", "assert_eq!(before, 1);", None),
        (
            "compile_error",
            "let wrong: u32 = before.missing();",
            Some(""),
        ),
        (
            "panic",
            "assert_eq!(before, 2, \"the cell panics\");",
            Some("the cell panics"),
        ),
        (
            "err",
            "let number: i32 = \"a word\".parse::<i32>()?;",
            Some("invalid digit found in string"),
        ),
    ];
    for (name, cell, failure) in cases {
        let notebook = write(
            ready,
            name,
            &["let before = 1;", cell, "println!(\"went on\");"],
        )?;
        let output = plain_nbconvert(&ready.python, &notebook)?.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        match failure {
            None => ensure!(
                output.status.success(),
                "{name}: the notebook failed:\n{said}"
            ),
            Some(reason) => {
                ensure!(
                    !output.status.success(),
                    "{name}: the cell `{cell}` failed and nbconvert reported success"
                );
                for part in [cell, reason] {
                    ensure!(
                        said.contains(part),
                        "{name}: nbconvert does not mention `{part}`:\n{said}"
                    );
                }
            }
        }
        report::done(
            "checked",
            format!(
                "{name}: nbconvert exits with {}",
                output.status.code().unwrap_or(-1)
            ),
        );
    }
    Ok(())
}

/// The kernel shows things while a cell runs, tells of failures, and stops without losing anything.
pub(crate) fn bridge(ready: &Ready) -> anyhow::Result<()> {
    let mut driver = ready.python.command("python")?;
    driver
        .arg(ready.checkout.join("kernel/tests/bridge.py"))
        .env_remove("TRANSFER_KERNEL_FOLDER");
    run(&mut driver)
}

/// Two notebooks at once, each with the project's crate, do not disturb each other.
pub(crate) fn two_at_once(ready: &Ready) -> anyhow::Result<()> {
    let support = ready.checkout.join("support");
    let support = support
        .to_str()
        .context("the checkout's path is not UTF-8")?;
    let dep = format!(":dep support = {{ path = {support:?} }}");
    let mut running = Vec::new();
    for name in ["one", "two"] {
        let folder = "println!(\"folder {}\", std::env::var(\"EVCXR_TMPDIR\").unwrap());";
        let notebook = write(
            ready,
            name,
            &[&dep, &format!("println!(\"{name}\");"), folder],
        )?;
        let nbconvert = plain_nbconvert(&ready.python, &notebook)?
            .spawn()
            .context("cannot run jupyter")?;
        running.push((name, notebook, nbconvert));
    }
    let mut folders = Vec::new();
    for (name, notebook, nbconvert) in running {
        let output: Output = nbconvert.wait_with_output()?;
        ensure!(
            output.status.success(),
            "notebook {name}:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = Notebook::read(&executed(&notebook))?.text();
        ensure!(
            text.starts_with(&format!("{name}\n")),
            "notebook {name} ran another's cell: {text}"
        );
        folders.push(text);
    }
    let folder = |text: &str| {
        text.lines()
            .find_map(|line| Some(line.strip_prefix("folder ")?.to_owned()))
    };
    ensure!(
        folder(&folders[0]) != folder(&folders[1]),
        "two kernels share a build folder: {folders:?}"
    );
    report::done("checked", "two notebooks at once");
    Ok(())
}

/// Every notebook runs on few pictures, and its saved outputs are those of an honest run.
pub(crate) fn notebooks(ready: &Ready) -> anyhow::Result<()> {
    let folder = ready.checkout.join("notebooks");
    let mut notebooks: Vec<_> = fs::read_dir(&folder)
        .with_context(|| format!("cannot read {}", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "ipynb")
        })
        .collect();
    notebooks.sort();
    for notebook in &notebooks {
        println!("\nrunning {} on few pictures", notebook.display());
        let saved = Notebook::read(notebook)?;
        let complaints = saved.complaints();
        if !complaints.is_empty() {
            bail!(
                "the saved outputs of {} are not those of a full run:\n{}",
                notebook.display(),
                complaints.join("\n")
            );
        }
        let output = ready.checkout.output().join("small");
        // Not where a user's are.
        let checkpoints = output.join("checkpoints");
        let checkpoints = checkpoints.to_str().context("a path that is not UTF-8")?;
        let settings: Vec<_> = SMALL
            .into_iter()
            .chain([("TRANSFER_CHECKPOINTS", checkpoints)])
            .filter(|(name, _)| std::env::var_os(name).is_none())
            .collect();
        let execution = Execution {
            notebook,
            output: &output,
            settings: &settings,
            cell_limit: Some(CELL_LIMIT),
        };
        let fresh = Notebook::read(&execution.run(&ready.python)?)?;
        if notebook.ends_with("transfer_learning.ipynb") {
            the_program_comes_to_the_same(ready, &settings, &fresh)?;
        }
        let differences = saved.differences(&fresh);
        if !differences.is_empty() {
            bail!(
                "the saved outputs of {} are not what it prints:\n{}",
                notebook.display(),
                differences.join("\n")
            );
        }
        report::done(
            "checked",
            format!(
                "{} deterministic outputs are as saved",
                saved.deterministic()
            ),
        );
    }
    Ok(())
}

/// The tutorial as a program trains as the notebook does, to the last digit that is printed.
fn the_program_comes_to_the_same(
    ready: &Ready,
    settings: &[(&str, &str)],
    notebook: &Notebook,
) -> anyhow::Result<()> {
    let figures = ready.checkout.output().join("program");
    let mut program = ready.checkout.cargo(&["run", "--quiet", "-p", "support"]);
    program.args(["--example", "transfer_learning", "--"]);
    program.arg(&figures).envs(settings.iter().copied());
    program.envs(crate::settings::absolute_paths()?);
    let epochs = epochs(&output(&mut program)?);
    ensure!(
        !epochs.is_empty() && epochs == notebook.epochs(),
        "the program's epochs are not the notebook's:\n{}\n{}",
        epochs.join("\n"),
        notebook.epochs().join("\n")
    );
    report::done(
        "checked",
        format!("{} epochs of the program are the notebook's", epochs.len()),
    );
    Ok(())
}

/// A run whose starter is killed ends, and takes the processes that run its cells with it.
pub(crate) fn no_kernel_outlives_its_run(ready: &Ready) -> anyhow::Result<()> {
    let folder = ready.checkout.output().join("checks");
    let mark = folder.join("endless.mark");
    let _ = fs::remove_file(&mark);
    let mark_text = mark.to_str().context("the checkout's path is not UTF-8")?;
    let busy = format!(
        "std::fs::write({mark_text:?}, std::process::id().to_string()).unwrap();\n\
         loop {{ std::thread::sleep(std::time::Duration::from_secs(1)); }}"
    );
    let notebook = write(ready, "endless", &[&busy])?;
    let execution = Execution {
        notebook: &notebook,
        output: &folder.join("executed"),
        settings: &[],
        cell_limit: None,
    };
    let mut nbconvert = execution.command(&ready.python)?.spawn()?;
    let started = wait_until(|| mark.exists());
    drop(nbconvert.stdin.take());
    let ended = wait_until(|| matches!(nbconvert.try_wait(), Ok(Some(_))));
    if !ended {
        nbconvert.kill()?;
    }
    let said = nbconvert.wait_with_output()?;
    ensure!(
        started,
        "the endless cell did not start: {}",
        String::from_utf8_lossy(&said.stderr)
    );
    ensure!(ended, "nbconvert went on after its starter's end");
    let process = fs::read_to_string(&mark)?;
    let gone = wait_until(|| {
        let mut signal = Command::new("kill");
        signal.args(["-0", &process]).stderr(Stdio::null());
        signal.status().is_ok_and(|status| !status.success())
    });
    ensure!(gone, "the process of the cells, {process}, is still there");
    report::done("checked", "nothing outlives a run whose starter is killed");
    Ok(())
}

/// Waits up to a minute.
fn wait_until(mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + Duration::from_secs(60);
    while Instant::now() < end {
        if condition() {
            return true;
        }
        thread::sleep(Duration::from_millis(100));
    }
    false
}

/// Returns the command a user's CI would run, waiting for nothing and heard by no one.
fn plain_nbconvert(python: &Python, notebook: &Path) -> anyhow::Result<Command> {
    let mut command = python.command("jupyter")?;
    command
        .args(["nbconvert", "--to", "notebook", "--execute", "--output"])
        .arg(executed(notebook))
        .arg(notebook);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.env_remove("TRANSFER_KERNEL_FOLDER");
    Ok(command)
}

fn executed(notebook: &Path) -> PathBuf {
    notebook.with_extension("executed.ipynb")
}

fn write(ready: &Ready, name: &str, cells: &[&str]) -> anyhow::Result<PathBuf> {
    let folder = ready.checkout.output().join("checks");
    fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{name}.ipynb"));
    fs::write(&path, scratch(cells)).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}
