//! `run` and `lab`: the notebooks, without a browser and with one.

use std::time::Instant;

use anyhow::ensure;

use crate::execute::{Execution, web_page};
use crate::notebook::Notebook;
use crate::process::run as run_command;
use crate::{report, settings, setup};

/// Runs a notebook and says where the result is and what each training reached.
pub(crate) fn run(name: &str) -> anyhow::Result<()> {
    let ready = setup::setup()?;
    let start = Instant::now();
    let name = name.strip_suffix(".ipynb").unwrap_or(name);
    let notebook = ready
        .checkout
        .join("notebooks")
        .join(format!("{name}.ipynb"));
    ensure!(notebook.is_file(), "there is no {}", notebook.display());
    let output = ready.checkout.output();
    println!("\nrunning {}", notebook.display());
    let executed = Execution {
        notebook: &notebook,
        output: &output,
        settings: &[],
        cell_limit: None,
    }
    .run(&ready.python)?;
    let page = web_page(&ready.python, &executed)?;
    println!();
    for (number, result) in (1..).zip(Notebook::read(&executed)?.training_results()) {
        report::done(&format!("training {number}"), result);
    }
    report::done("time", report::duration(start.elapsed()));
    report::done("notebook", executed.display());
    report::done("web page", page.display());
    Ok(())
}

/// Opens JupyterLab on the notebooks' folder.
pub(crate) fn lab(arguments: &[String]) -> anyhow::Result<()> {
    let ready = setup::setup()?;
    let mut lab = ready.python.command("jupyter")?;
    run_command(
        lab.arg("lab")
            .args(arguments)
            .envs(settings::absolute_paths()?)
            .current_dir(ready.checkout.join("notebooks")),
    )
}
