//! The kernel of one notebook: `transfer-learning-kernel CONNECTION_FILE`.
//!
//! Jupyter runs this by the kernelspec that `cargo xtask setup` installs. It takes a build folder,
//! starts evcxr in an environment made for it, and stands between the two.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, ensure};
use kernel::environment::{self, Places};
use kernel::folder::{self, BuildFolder};
use kernel::home::Home;
use kernel::{bridge, kept, prelude, write_if_changed};

fn main() -> ExitCode {
    let result = match env::args_os().nth(1) {
        Some(connection_file) => start(Path::new(&connection_file)),
        None => Err(anyhow::anyhow!(
            "usage: transfer-learning-kernel CONNECTION_FILE; Jupyter runs it, `cargo xtask setup` installs it"
        )),
    };
    result.unwrap_or_else(|error| {
        // Jupyter shows a kernel's stderr in its log.
        eprintln!("transfer-learning-kernel: {error:#}");
        ExitCode::FAILURE
    })
}

fn start(connection_file: &Path) -> anyhow::Result<ExitCode> {
    let home = Home::from_env()?;
    let libtorch = PathBuf::from(given("LIBTORCH")?);
    let toolchain = PathBuf::from(given(environment::TOOLCHAIN)?);
    let parent = PathBuf::from(given(environment::BUILD_FOLDERS)?);
    let in_use = [home.evcxr(), parent.clone()].into_iter();
    for folder in in_use.chain(home.environment_of(&libtorch)) {
        // For as long as this program runs: set-up removes what is not in use and was not for long.
        std::mem::forget(kept::hold(&folder)?);
    }
    let evcxr = home.evcxr().join("bin/evcxr_jupyter");
    let programs = toolchain.join("bin");
    for needed in [&evcxr, &libtorch.join("lib"), &programs.join("rustc")] {
        ensure!(
            needed.exists(),
            "{} is missing: run `cargo xtask setup`",
            needed.display()
        );
    }

    write_if_changed(
        &parent.join(".cargo/config.toml"),
        environment::CARGO_CONFIG,
    )?;
    let config_folder = parent.join("config");
    write_if_changed(&config_folder.join("evcxr.toml"), &prelude::evcxr_toml())?;
    let BuildFolder {
        path: build_folder,
        lock,
    } = match env::var("TRANSFER_KERNEL_FOLDER") {
        Ok(name) => folder::take(&parent, &name)?,
        Err(_) => folder::take_free(&parent)?,
    };
    if let Err(error) = folder::prune(&parent) {
        eprintln!("{error:#}");
    }

    let own = PathBuf::from(given("VIRTUAL_ENV")?).join("bin");
    let current = env::var_os("PATH").unwrap_or_default();
    let path = environment::path(&own, &programs, &current)?;
    let target_libdir = target_libdir(&build_folder, &path)?;
    let places = Places {
        build_folder: build_folder.clone(),
        config_folder,
        libtorch,
        target_libdir,
    };
    let mut command = Command::new(evcxr);
    command.arg("--control_file").env("PATH", path);
    // evcxr asks rustup before it looks into `PATH`.
    command.env("RUSTUP_TOOLCHAIN", toolchain);
    for (name, _) in env::vars_os().filter(|(name, _)| environment::is_left_by_cargo(name)) {
        command.env_remove(name);
    }
    for (name, value) in environment::variables(&places, |name| env::var_os(name))? {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    // evcxr reads nothing from its stdin, and holds the lock on the folder there: as long as it
    // lives. Its children get a stdin of their own.
    command.stdin(Stdio::from(lock));
    bridge::run(connection_file, command, build_folder)
}

/// Returns a setting that the kernelspec makes.
fn given(name: &str) -> anyhow::Result<OsString> {
    env::var_os(name).with_context(|| {
        format!("{name} is not set; `cargo xtask setup` writes it into the kernelspec")
    })
}

fn target_libdir(build_folder: &Path, path: &OsStr) -> anyhow::Result<PathBuf> {
    let output = Command::new("rustc")
        .args(["--print", "target-libdir"])
        .current_dir(build_folder)
        .env("PATH", path)
        .stdin(Stdio::null())
        .output()
        .context("cannot run rustc: install Rust from https://rustup.rs")?;
    ensure!(
        output.status.success(),
        "rustc: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}
