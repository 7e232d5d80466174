//! The Jupyter kernel in the environment, and the build folder that its first `:dep` starts from.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use kernel::environment::CARGO_CONFIG;
use kernel::folder;
use serde_json::{Value, json};

use crate::checkout::Checkout;
use crate::command::{output, run_held};
use crate::environment::digest;
use crate::report;
use crate::setup::{Fetched, Ready};
use crate::tools::EVCXR_VERSION;

/// The launcher's file name.
const LAUNCHER: &str = "transfer-learning-kernel";

/// Builds the launcher, and returns where it is.
pub(crate) fn build(checkout: &Checkout) -> anyhow::Result<PathBuf> {
    checkout.build("kernel", "-p kernel", LAUNCHER)
}

/// Installs the launcher and its kernelspec into the environment, where they do not depend on the
/// checkout.
pub(crate) fn install(ready: &Ready, built: &Path, rust_src: Option<&Path>) -> anyhow::Result<()> {
    let prefix = &ready.python.prefix;
    let launcher = prefix.join("bin").join(LAUNCHER);
    let program = fs::read(built).with_context(|| format!("cannot read {}", built.display()))?;
    let same = fs::read(&launcher).is_ok_and(|found| found == program);
    if !same {
        // By renaming: a kernel may be running from the old file.
        let arriving = launcher.with_extension("new");
        fs::copy(built, &arriving)
            .and_then(|_| fs::rename(&arriving, &launcher))
            .with_context(|| format!("cannot write {}", launcher.display()))?;
    }
    let (root, libtorch) = (ready.home.root(), ready.python.libtorch()?);
    let spec = prefix.join("share/jupyter/kernels/rust/kernel.json");
    let text = kernel_json(&launcher, root, libtorch, rust_src);
    kernel::write_if_changed(&spec, &format!("{text:#}\n"))?;
    let done = if same { "present" } else { "installed" };
    report::done("kernel", format!("{done}: {}", spec.display()));
    Ok(())
}

/// Returns the kernelspec. Its folder is called `rust`, like that of plain evcxr, so that a
/// notebook opens with either.
fn kernel_json(launcher: &Path, home: &Path, libtorch: &Path, rust_src: Option<&Path>) -> Value {
    let mut env = json!({"TRANSFER_HOME": home, "LIBTORCH": libtorch});
    if let Some(folder) = rust_src {
        env["RUST_SRC_PATH"] = json!(folder);
    }
    json!({
        "argv": [launcher, "{connection_file}"],
        "display_name": "Rust (transfer learning)",
        "language": "rust",
        "interrupt_mode": "message",
        "env": env,
        // Without this JupyterLab has no panel of variables.
        "metadata": {"debugger": true},
    })
}

/// Compiles `support` and its dependencies in the build folder that others are copied from, so
/// that the first `:dep` of a person takes seconds, and has `support` fetch the default weights
/// and images: in a notebook, so that nothing is compiled for that alone.
pub(crate) fn warm_up(ready: &Ready) -> anyhow::Result<()> {
    let parent = ready.home.kernel();
    let wanted = dependencies(ready)?;
    let warm = folder::stamp(&parent.join(folder::WARM)).is_some_and(|found| found == wanted);
    let fetched = Fetched::wanted(&ready.checkout)?;
    let mut missing = Vec::new();
    for (there, what, work) in [
        (warm, "the kernel's dependencies", "compiling"),
        (fetched.is_set(), "weights and images", "fetching"),
    ] {
        if there {
            report::done("warm-up", format!("present: {what}"));
        } else {
            missing.push(format!("{work} {what}"));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    report::timed("warm-up", missing.join(", then "), || {
        let mut script = ready.python.script(&ready.checkout, "xtask/notebooks.py")?;
        script.arg("warm-up").env_remove("TRANSFER_KERNEL_FOLDER");
        if !warm {
            folder::set_stamp(&parent, None)?;
            script.env("TRANSFER_KERNEL_FOLDER", folder::WARM);
        }
        if !fetched.is_set() {
            script.arg("fetch");
        }
        run_held(&mut script)?;
        if !warm {
            folder::set_stamp(&parent, Some(&wanted))?;
        }
        fetched.set()
    })
}

/// Returns a digest of everything that decides how the dependencies of `support` are compiled.
fn dependencies(ready: &Ready) -> anyhow::Result<String> {
    let rustc = output(Command::new("rustc").arg("-vV"))?;
    let libtorch = ready.python.libtorch()?.display().to_string();
    let mut all = vec![rustc, libtorch, CARGO_CONFIG.into(), EVCXR_VERSION.into()];
    for file in ["Cargo.toml", "Cargo.lock", "support/Cargo.toml"] {
        all.push(ready.checkout.read(file)?);
    }
    Ok(digest(all.iter().map(String::as_str)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernelspec_starts_the_launcher_with_everything_it_needs() {
        let [launcher, home, libtorch] = ["/env/bin/kernel", "/home", "/env/torch"].map(Path::new);
        let spec = kernel_json(launcher, home, libtorch, None);
        assert_eq!(
            spec["argv"],
            json!(["/env/bin/kernel", "{connection_file}"])
        );
        assert_eq!(spec["display_name"], "Rust (transfer learning)");
        assert_eq!(spec["language"], "rust");
        assert_eq!(spec["metadata"]["debugger"], true);
        let env = json!({"TRANSFER_HOME": "/home", "LIBTORCH": "/env/torch"});
        assert_eq!(spec["env"], env);
        let spec = kernel_json(launcher, home, libtorch, Some(Path::new("/src/library")));
        assert_eq!(spec["env"]["RUST_SRC_PATH"], "/src/library");
    }
}
