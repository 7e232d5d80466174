//! The kernel of one notebook: `transfer-learning-kernel CONNECTION_FILE`.
//!
//! Jupyter runs this by the kernelspec that `cargo xtask setup` installs. It takes a build folder,
//! starts evcxr in an environment made for it, and stands between the two. What hinders that is
//! told in the notebook.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context as _, ensure};
use kernel::bridge::{self, Launch};
use kernel::environment::{self, Places};
use kernel::folder::{self, BuildFolder};
use kernel::home::Home;
use kernel::{cargo, kept, prelude, write_if_changed};

fn main() -> ExitCode {
    let mut words = env::args_os();
    let called = words.next().unwrap_or_default();
    let words: Vec<_> = words.collect();
    let result = match (cargo::run_as(&called, &words), words.first()) {
        (Err(error), _) => Err(error),
        (Ok(Some(code)), _) => Ok(code.into()),
        (Ok(None), Some(connection_file)) => bridge::run(Path::new(connection_file), prepare()),
        (Ok(None), None) => Err(anyhow::anyhow!(
            "usage: transfer-learning-kernel CONNECTION_FILE; Jupyter runs it, `cargo xtask setup` installs it"
        )),
    };
    result.unwrap_or_else(|error| {
        // Jupyter shows a kernel's stderr in its log.
        eprintln!("transfer-learning-kernel: {error:#}");
        ExitCode::FAILURE
    })
}

/// Makes all ready that evcxr needs.
fn prepare() -> anyhow::Result<Launch> {
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
    let [compiler, cargo] = ["rustc", "cargo"].map(|name| programs.join(name));
    for needed in [&evcxr, &libtorch.join("lib"), &compiler, &cargo] {
        ensure!(
            needed.exists(),
            "{} is missing: run `cargo xtask setup`",
            needed.display()
        );
    }
    let config_folder = parent.join("config");
    for (file, text) in [
        (
            parent.join(".cargo/config.toml"),
            environment::cargo_config(),
        ),
        (config_folder.join("evcxr.toml"), prelude::evcxr_toml()),
    ] {
        write_if_changed(&file, &text)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
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

    let version = start(&compiler, &["--version"])?;
    let target_libdir = start(&compiler, &["--print", "target-libdir"])?;
    let version = output(version)?;
    let own = PathBuf::from(given("VIRTUAL_ENV")?).join("bin");
    let current = env::var_os("PATH").unwrap_or_default();
    let path = environment::path(&own, &programs, &current)?;
    let places = Places {
        build_folder: build_folder.clone(),
        config_folder,
        libtorch,
        target_libdir: output(target_libdir)?.into(),
    };
    let mut command = Command::new(evcxr);
    command.arg("--control_file").env("PATH", path);
    // For rustup's proxies, where one of them is called by its path.
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
    Ok(Launch {
        evcxr: command,
        cargo,
        build_folder,
        // `rustc 1.95.0 (59807616e 2026-04-14)`
        rustc: version.split(' ').nth(1).unwrap_or_default().to_owned(),
    })
}

/// Returns a setting that the kernelspec makes.
fn given(name: &str) -> anyhow::Result<OsString> {
    env::var_os(name).with_context(|| {
        format!("{name} is not set; `cargo xtask setup` writes it into the kernelspec")
    })
}

fn start(program: &Path, arguments: &[&str]) -> anyhow::Result<Child> {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", program.display()))
}

fn output(rustc: Child) -> anyhow::Result<String> {
    let output = rustc.wait_with_output()?;
    ensure!(
        output.status.success(),
        "rustc: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
