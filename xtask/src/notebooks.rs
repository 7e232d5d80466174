//! `run` and `lab`: the notebooks, without a browser and with one.

use std::os::unix::process::CommandExt as _;

use anyhow::{Context as _, ensure};

use crate::command;
use crate::setup;

/// Runs a notebook, and says where the result is and what each training reached.
pub(crate) fn run(name: &str) -> anyhow::Result<()> {
    let name = name.strip_suffix(".ipynb").unwrap_or(name);
    let ready = setup::setup(|_| Ok(Vec::new()))?;
    let notebook = ready.checkout.join(format!("notebooks/{name}.ipynb"));
    ensure!(notebook.is_file(), "there is no {}", notebook.display());
    let mut script = ready.python.script(&ready.checkout, "xtask/notebooks.py")?;
    command::run_held(script.arg("run").args([notebook, ready.checkout.output()]))
}

/// Opens JupyterLab on the notebooks' folder.
pub(crate) fn lab(arguments: &[&str]) -> anyhow::Result<()> {
    let ready = setup::setup(|_| Ok(Vec::new()))?;
    let mut lab = ready.python.command("jupyter")?;
    lab.arg("lab").args(arguments);
    lab.current_dir(ready.checkout.join("notebooks"));
    // In place of this program: Ctrl-C, and the question that it makes Jupyter ask, are Jupyter's.
    Err(lab.exec()).context("cannot run jupyter lab")
}
