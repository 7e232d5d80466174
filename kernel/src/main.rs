//! The kernel of one notebook: `transfer-learning-kernel CONNECTION_FILE`.
//!
//! Jupyter runs this by the kernelspec that `cargo xtask setup` installs. It takes a build folder,
//! starts evcxr in an environment made for it, and stands between the two. What hinders that is
//! told in the notebook.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context as _, ensure};
use kernel::bridge::{self, Launch};
use kernel::environment::{self, Places};
use kernel::folder::{self, BuildFolder};
use kernel::home::Home;
use kernel::{cargo, prelude, write_if_changed};

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
    let libtorch = PathBuf::from(
        env::var_os("LIBTORCH")
            .context("LIBTORCH is not set; `cargo xtask setup` writes it into the kernelspec")?,
    );
    let evcxr = home.evcxr();
    for needed in [&evcxr, &libtorch.join("lib")] {
        ensure!(needed.exists(), "{} is missing", needed.display());
    }
    let path = path()?;
    let parent = home.kernel();
    let config_folder = parent.join("config");
    for (file, text) in [
        (
            parent.join(".cargo/config.toml"),
            environment::CARGO_CONFIG.to_owned(),
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

    // Both at a time: rustup, which mostly stands in for it, takes its time.
    let rustc = |arguments| start_rustc(&build_folder, &path, arguments);
    let version = rustc(&["--version"])?;
    let target_libdir = rustc(&["--print", "target-libdir"])?;
    let version = output(version)?;
    let target_libdir = PathBuf::from(output(target_libdir)?);
    let cargo = cargo_of(&target_libdir, &path)?;
    let places = Places {
        build_folder: build_folder.clone(),
        config_folder,
        libtorch,
        target_libdir,
    };
    let mut command = Command::new(evcxr);
    command.arg("--control_file").env("PATH", path);
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

/// Returns `PATH` with the environment's programs first (this one is among them; npm is another)
/// and Cargo's folder at the end: a Jupyter started from a desktop may lack both.
fn path() -> anyhow::Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let own = env::current_exe()?;
    let cargo = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let folders = own
        .parent()
        .map(PathBuf::from)
        .into_iter()
        .chain(env::split_paths(&path))
        .chain(cargo.map(|cargo| cargo.join("bin")));
    env::join_paths(folders).context("a folder in PATH has a `:` in its name")
}

/// Returns the Cargo of the toolchain that has its libraries in `target_libdir`, or that in `path`.
fn cargo_of(target_libdir: &Path, path: &OsStr) -> anyhow::Result<PathBuf> {
    // SYSROOT/lib/rustlib/TARGET/lib
    let sysroot = target_libdir
        .ancestors()
        .nth(4)
        .map(|sysroot| sysroot.join("bin"));
    let folders = sysroot.into_iter().chain(env::split_paths(path));
    let found = folders
        .map(|folder| folder.join("cargo"))
        .find(|cargo| cargo.is_file());
    found.context("cargo is missing: install Rust from https://rustup.rs")
}

fn start_rustc(build_folder: &Path, path: &OsStr, arguments: &[&str]) -> anyhow::Result<Child> {
    Command::new("rustc")
        .args(arguments)
        .current_dir(build_folder)
        .env("PATH", path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run rustc: install Rust from https://rustup.rs")
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
