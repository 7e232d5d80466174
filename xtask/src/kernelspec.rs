//! The Jupyter kernel in the environment, and the build folder that its first `:dep` starts from.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use kernel::environment::CARGO_CONFIG;
use kernel::folder;
use kernel::home::Home;
use serde_json::{Value, json};

use crate::environment::{Python, digest};
use crate::execute::Execution;
use crate::process::output;
use crate::report;
use crate::tools::EVCXR_VERSION;
use crate::workspace::Checkout;

/// The launcher's file name.
const LAUNCHER: &str = "transfer-learning-kernel";

/// Installs the launcher and its kernelspec into the environment, where they do not depend on the
/// checkout.
pub(crate) fn install(
    checkout: &Checkout,
    home: &Home,
    python: &Python,
    rust_src: Option<&Path>,
) -> anyhow::Result<()> {
    let build = ["build", "--quiet", "--package", "kernel", "--bin", LAUNCHER];
    let built = checkout.build(&build, LAUNCHER)?;
    let launcher = python.prefix.join("bin").join(LAUNCHER);
    let spec = python.prefix.join("share/jupyter/kernels/rust/kernel.json");
    let program = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    let same = fs::read(&launcher).is_ok_and(|found| found == program);
    if !same {
        // By renaming: a kernel may be running from the old file.
        let arriving = launcher.with_extension("new");
        fs::copy(&built, &arriving)
            .with_context(|| format!("cannot write {}", arriving.display()))?;
        fs::rename(&arriving, &launcher)?;
    }
    let text = format!(
        "{:#}\n",
        kernel_json(&launcher, home, python.libtorch()?, rust_src)
    );
    kernel::write_if_changed(&spec, &text)?;
    report::done(
        "kernel",
        format!(
            "{}: {}",
            if same { "present" } else { "installed" },
            spec.display()
        ),
    );
    Ok(())
}

/// Returns the kernelspec. Its folder is called `rust`, like that of plain evcxr, so that a
/// notebook opens with either.
fn kernel_json(launcher: &Path, home: &Home, libtorch: &Path, rust_src: Option<&Path>) -> Value {
    let mut env = json!({"TRANSFER_HOME": home.root(), "LIBTORCH": libtorch});
    if let Some(folder) = rust_src {
        env["RUST_SRC_PATH"] = json!(folder);
    }
    json!({
        "argv": [launcher, "{connection_file}"],
        "display_name": "Rust (transfer learning)",
        "language": "rust",
        "interrupt_mode": "message",
        "env": env,
    })
}

/// Compiles `support` and its dependencies in the build folder that others are copied from, so
/// that the first `:dep` of a person takes seconds.
pub(crate) fn warm_up(checkout: &Checkout, home: &Home, python: &Python) -> anyhow::Result<()> {
    let parent = home.kernel();
    let wanted = dependencies(checkout, python)?;
    if folder::stamp(&parent.join(folder::WARM)).as_deref() == Some(wanted.as_str()) {
        report::done("warm-up", "present: the kernel's dependencies are built");
        return Ok(());
    }
    report::timed(
        "warm-up",
        "compiling the kernel's dependencies, 2 to 6 minutes",
        || {
            folder::set_stamp(&parent, None)?;
            let support = checkout.join("support");
            let support = support
                .to_str()
                .context("the checkout's path is not UTF-8")?;
            let notebook = parent.join("warm-up.ipynb");
            kernel::write_if_changed(
                &notebook,
                &crate::check::scratch(&[&format!(
                    ":dep support = {{ path = {support:?} }}\n\"warm\""
                )]),
            )?;
            Execution {
                notebook: &notebook,
                output: &parent.join("warm-up"),
                settings: &[("TRANSFER_KERNEL_FOLDER", folder::WARM)],
                cell_limit: None,
            }
            .run(python)?;
            folder::set_stamp(&parent, Some(&wanted))?;
            Ok(())
        },
    )
}

/// Returns a digest of everything that decides how the dependencies of `support` are compiled.
fn dependencies(checkout: &Checkout, python: &Python) -> anyhow::Result<String> {
    let rustc = output(Command::new("rustc").arg("-vV"))?;
    let read = |file: &str| {
        fs::read_to_string(checkout.join(file)).with_context(|| format!("cannot read {file}"))
    };
    let files = [
        read("Cargo.toml")?,
        read("Cargo.lock")?,
        read("support/Cargo.toml")?,
    ];
    let libtorch = python.libtorch()?.display().to_string();
    let others = [&rustc, &libtorch, CARGO_CONFIG, EVCXR_VERSION];
    Ok(digest(files.iter().map(String::as_str).chain(others)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernelspec_starts_the_launcher_with_everything_it_needs() {
        let home = Home::from_env().unwrap();
        let (launcher, libtorch) = (Path::new("/env/bin/kernel"), Path::new("/env/torch"));
        let spec = kernel_json(launcher, &home, libtorch, None);
        assert_eq!(
            spec["argv"],
            json!(["/env/bin/kernel", "{connection_file}"])
        );
        assert_eq!(spec["display_name"], "Rust (transfer learning)");
        assert_eq!(spec["language"], "rust");
        assert_eq!(
            spec["env"],
            json!({"TRANSFER_HOME": home.root(), "LIBTORCH": "/env/torch"})
        );

        let spec = kernel_json(launcher, &home, libtorch, Some(Path::new("/src/library")));
        assert_eq!(spec["env"]["RUST_SRC_PATH"], "/src/library");
    }
}
