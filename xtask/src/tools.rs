//! The two tools that no Python environment brings: evcxr, and the standard library's sources,
//! from which evcxr infers the types of variables.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use kernel::home::Home;

use crate::command::{cargo, output, watch, watch_cargo};
use crate::report;

/// The evcxr that the kernel is written for.
pub(crate) const EVCXR_VERSION: &str = "0.22.0";

/// Asks rustup for the sources, for two minutes at most; else unpacks Debian's package into
/// `rust-src` without installing it.
const FETCH_RUST_SRC: &str = "\
    limit=$(command -v timeout >/dev/null && echo timeout 120)
    $limit rustup component add rust-src && exit
    set -e
    rm -rf rust-src-download
    mkdir rust-src-download
    cd rust-src-download
    fetch() { apt-get -q download rust-web-src || apt-get -q download rust-src; } # the newer ones first
    fetch || { apt-get -q update; fetch; } # the lists of a fresh container may be empty
    dpkg-deb --extract ./*.deb ../rust-src
    rm -r ../rust-src-download";

/// Builds evcxr unless it is there.
pub(crate) fn install_evcxr(home: &Home) -> anyhow::Result<()> {
    let tools = home.tools();
    // Cargo's own record of what it has installed below a root.
    let record = fs::read_to_string(tools.join(".crates.toml")).unwrap_or_default();
    if home.evcxr().exists() && record.contains(&format!("\"evcxr_jupyter {EVCXR_VERSION} ")) {
        report::done("evcxr", format!("present: evcxr_jupyter {EVCXR_VERSION}"));
        return Ok(());
    }
    let what = format!("building evcxr_jupyter {EVCXR_VERSION}, 5 to 12 minutes on two cores");
    report::timed("evcxr", what, || {
        fs::create_dir_all(&tools)?;
        // A folder that outlives an interruption, so that the next attempt goes on from there.
        let build = tools.join("evcxr-build");
        let mut install = cargo();
        install.args(["install", "evcxr_jupyter", "--version", EVCXR_VERSION]);
        install.args(["--locked", "--force", "--root"]);
        install.arg(&tools).arg("--target-dir").arg(&build);
        install.current_dir(&tools).env_remove("CARGO_TARGET_DIR");
        watch_cargo("evcxr", &mut install)?;
        Ok(fs::remove_dir_all(&build)?)
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
    let found = chosen
        .filter(|folder| is_library(folder))
        .or_else(|| debian_library(Path::new("/")))
        .or_else(|| debian_library(&unpacked));
    if let Some(folder) = found {
        report::done("rust-src", format!("present: {}", folder.display()));
        return Ok(Some(folder));
    }
    let what = "fetching the standard library's sources";
    report::timed("rust-src", what, || {
        fs::create_dir_all(home.tools())?;
        let mut fetch = Command::new("sh");
        fetch.args(["-c", FETCH_RUST_SRC]).current_dir(home.tools());
        let fetched = watch("rust-src", &mut fetch);
        if is_library(&component) {
            return Ok(None);
        }
        let found = fetched.and_then(|()| debian_library(&unpacked).context("no library folder"));
        found.map(Some).context(
            "the standard library's sources are missing, without which evcxr cannot tell the type of a variable. \
             `rustup component add rust-src` did not bring them, nor did Debian's package. \
             Run it where the network allows, or set RUST_SRC_PATH to the `library` folder of Rust's sources",
        )
    })
}

/// Returns the library folder that Debian's package puts below `root`.
fn debian_library(root: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(root.join("usr/src")).ok()?;
    let libraries = entries.filter_map(|entry| Some(entry.ok()?.path().join("library")));
    libraries.filter(|library| is_library(library)).max()
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
        let library = |version: &str| root.path().join(format!("usr/src/rustc-{version}/library"));
        for version in ["1.85.0", "1.96.0"] {
            let core = library(version).join("core/src");
            fs::create_dir_all(&core).unwrap();
            fs::write(core.join("lib.rs"), "").unwrap();
        }
        fs::create_dir_all(library("2.0.0")).unwrap();
        assert_eq!(debian_library(root.path()), Some(library("1.96.0")));
    }
}
