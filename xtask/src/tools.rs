//! The two tools that no Python environment brings: evcxr, and the standard library's sources,
//! from which evcxr infers the types of variables.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};
use kernel::home::Home;

use crate::process::{cargo, is_installed, output, run, succeeds_within};
use crate::report;

/// The evcxr that the kernel is written for.
pub(crate) const EVCXR_VERSION: &str = "0.22.0";

/// Builds evcxr unless it is there.
pub(crate) fn install_evcxr(home: &Home) -> anyhow::Result<()> {
    // Cargo's own record of what it has installed below a root.
    let record = fs::read_to_string(home.tools().join(".crates.toml")).unwrap_or_default();
    if home.evcxr().exists() && record.contains(&format!("\"evcxr_jupyter {EVCXR_VERSION} ")) {
        report::done("evcxr", format!("present: evcxr_jupyter {EVCXR_VERSION}"));
        return Ok(());
    }
    let what = format!("building evcxr_jupyter {EVCXR_VERSION}, 5 to 12 minutes on two cores");
    report::timed("evcxr", what, || {
        fs::create_dir_all(home.tools())?;
        // A folder that outlives an interruption, so that the next attempt goes on from there.
        let build = home.tools().join("evcxr-build");
        let mut install = cargo();
        install
            .current_dir(home.tools())
            .env_remove("CARGO_TARGET_DIR");
        install.args([
            "install",
            "evcxr_jupyter",
            "--version",
            EVCXR_VERSION,
            "--locked",
            "--force",
            "--quiet",
        ]);
        install
            .arg("--root")
            .arg(home.tools())
            .arg("--target-dir")
            .arg(&build);
        run(&mut install)?;
        fs::remove_dir_all(&build)?;
        Ok(())
    })
}

/// Makes sure that the standard library's sources are there, and returns their folder where evcxr
/// does not find them by itself.
pub(crate) fn find_rust_src(home: &Home) -> anyhow::Result<Option<PathBuf>> {
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let component = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library");
    if is_library(&component) {
        report::done("rust-src", "present: the toolchain's own");
        return Ok(None);
    }
    let chosen = std::env::var_os("RUST_SRC_PATH").map(PathBuf::from);
    let unpacked = home.tools().join("rust-src");
    let elsewhere = || {
        let installed = [Path::new("/"), &unpacked]
            .into_iter()
            .filter_map(debian_library);
        chosen
            .into_iter()
            .chain(installed)
            .find(|folder| is_library(folder))
    };
    if let Some(folder) = elsewhere() {
        report::done("rust-src", format!("present: {}", folder.display()));
        return Ok(Some(folder));
    }
    report::timed(
        "rust-src",
        "fetching the standard library's sources",
        || {
            let mut rustup = Command::new("rustup");
            rustup.args(["component", "add", "rust-src"]);
            if succeeds_within(&mut rustup, Duration::from_secs(120)) && is_library(&component) {
                return Ok(None);
            }
            match from_debian(home, &unpacked) {
                Ok(folder) => Ok(Some(folder)),
                Err(error) => bail!(
                    "the standard library's sources are missing, without which evcxr cannot tell the type of a variable. \
                 `rustup component add rust-src` did not bring them (nor did Debian's package: {error:#}). \
                 Run it where the network allows, or set RUST_SRC_PATH to the `library` folder of Rust's sources",
                ),
            }
        },
    )
}

/// Unpacks Debian's package of Rust's sources into `folder`, without installing it.
fn from_debian(home: &Home, folder: &Path) -> anyhow::Result<PathBuf> {
    if !is_installed("apt-get") || !is_installed("dpkg-deb") {
        bail!("this is not a Debian system");
    }
    let download = home.tools().join("rust-src-download");
    fs::create_dir_all(&download)?;
    let fetch = |package: &str| {
        let mut command = Command::new("apt-get");
        output(
            command
                .args(["-q", "download", package])
                .current_dir(&download),
        )
    };
    // The newer sources first; the lists of a fresh container may be empty.
    if fetch("rust-web-src").is_err() && fetch("rust-src").is_err() {
        output(Command::new("apt-get").args(["-q", "update"]))?;
        fetch("rust-web-src").or_else(|_| fetch("rust-src"))?;
    }
    let package = fs::read_dir(&download)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get fetched nothing")?;
    output(
        Command::new("dpkg-deb")
            .arg("--extract")
            .arg(&package)
            .arg(folder),
    )?;
    fs::remove_dir_all(&download)?;
    debian_library(folder).context("the package holds no library folder")
}

/// Returns the library folder that Debian's package puts below `root`.
fn debian_library(root: &Path) -> Option<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(root.join("usr/src"))
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("rustc-"))
        })
        .map(|path| path.join("library"))
        .filter(|path| is_library(path))
        .collect();
    found.sort();
    found.pop()
}

fn is_library(folder: &Path) -> bool {
    folder.join("core/src/lib.rs").is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debians_newest_sources_are_found_and_incomplete_ones_are_not() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(debian_library(root.path()), None);
        for version in ["1.85.0", "1.96.0"] {
            let core = root
                .path()
                .join(format!("usr/src/rustc-{version}/library/core/src"));
            fs::create_dir_all(&core).unwrap();
            fs::write(core.join("lib.rs"), "").unwrap();
        }
        fs::create_dir_all(root.path().join("usr/src/rustc-2.0.0/library")).unwrap();
        assert_eq!(
            debian_library(root.path()),
            Some(root.path().join("usr/src/rustc-1.96.0/library"))
        );
    }
}
