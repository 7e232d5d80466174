//! The two tools that no Python environment brings: evcxr, and the standard library's sources,
//! from which evcxr infers the types of variables.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use kernel::home::{Home, VARIABLE as HOME};
use kernel::{EVCXR_VERSION, kept};

use crate::command::{cargo, is_installed, output, watch, watch_cargo};
use crate::report;
use crate::space::Need;

/// The Rust toolchain that all is built with.
#[derive(Debug)]
pub(crate) struct Toolchain {
    /// Its folder.
    pub(crate) sysroot: PathBuf,
    /// What its compiler says that it is.
    pub(crate) version: String,
}

impl Toolchain {
    pub(crate) fn find() -> anyhow::Result<Self> {
        let rustc = |arguments: &[&str]| output(Command::new("rustc").args(arguments));
        Ok(Self {
            sysroot: rustc(&["--print", "sysroot"])?.trim().into(),
            version: rustc(&["-vV"])?,
        })
    }
}

/// What of evcxr does nothing for a cell: it completes code, looks for mistakes that are never shown,
/// reads settings.
const RARELY_RUN: [&str; 13] = [
    "clap_builder",
    "ra_ap_cfg",
    "ra_ap_ide",
    "ra_ap_ide_assists",
    "ra_ap_ide_completion",
    "ra_ap_ide_diagnostics",
    "ra_ap_ide_ssr",
    "ra_ap_project_model",
    "regex-automata",
    "regex-syntax",
    "tokio",
    "toml",
    "zeromq",
];

/// Fetches prebuilt programs, where a user has it: <https://github.com/cargo-bins/cargo-binstall>.
const BINSTALL: &str = "cargo-binstall";

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

/// Fetches or builds evcxr unless it is there.
pub(crate) fn install_evcxr(home: &Home) -> anyhow::Result<()> {
    let binstall = is_installed(BINSTALL).then(|| Command::new(BINSTALL));
    kept::hold(&home.evcxr())?;
    install(&home.evcxr(), binstall, cargo())?;
    report::pruned(kept::prune_siblings(&home.evcxr())?);
    Ok(())
}

/// Returns what is still missing: while evcxr is built, that takes more than evcxr.
pub(crate) fn needs(home: &Home) -> Option<Need> {
    let folder = home.evcxr();
    let missing = !is_evcxr(&folder);
    missing.then(|| Need::new("building evcxr", 1500, folder, HOME))
}

/// Returns whether evcxr is installed in `root`.
fn is_evcxr(root: &Path) -> bool {
    // What Cargo and binstall keep of what they have installed.
    let record = fs::read_to_string(root.join(".crates.toml")).unwrap_or_default();
    let recorded = record.contains(&format!("\"evcxr_jupyter {EVCXR_VERSION} "));
    recorded && root.join("bin/evcxr_jupyter").exists()
}

/// Installs evcxr into `root`: a prebuilt one if `binstall` brings one that runs here, else one
/// that `cargo` builds.
fn install(root: &Path, binstall: Option<Command>, mut cargo: Command) -> anyhow::Result<()> {
    let evcxr = root.join("bin/evcxr_jupyter");
    if is_evcxr(root) {
        report::done("evcxr", format!("present: evcxr_jupyter {EVCXR_VERSION}"));
        return Ok(());
    }
    fs::create_dir_all(root)?;
    if let Some(mut binstall) = binstall {
        binstall.args(["binstall", "--no-confirm", "--force"]);
        binstall.args([
            "--disable-strategies",
            "compile",
            "--no-discover-github-token",
        ]);
        binstall.arg("--root").arg(root);
        binstall.arg(format!("evcxr_jupyter@{EVCXR_VERSION}"));
        let what = format!("fetching a prebuilt evcxr_jupyter {EVCXR_VERSION}");
        let fetched = report::timed("evcxr", what, || {
            watch("evcxr", &mut binstall)?;
            // One made elsewhere may want a newer C library.
            output(Command::new(&evcxr).arg("--help"))
        });
        match fetched {
            Ok(_) => return Ok(()),
            Err(error) => report::done("evcxr", format!("{error:#}: building it instead")),
        }
        // So that it does not pass for one that runs, should the build be interrupted.
        if evcxr.exists() {
            fs::remove_file(&evcxr)?;
        }
    }
    let what = format!("building evcxr_jupyter {EVCXR_VERSION}, 4 to 10 minutes on two cores");
    report::timed("evcxr", what, || {
        // A folder that outlives an interruption, so that the next attempt goes on from there.
        let build = root.join("evcxr-build");
        cargo.args(["install", "evcxr_jupyter", "--version", EVCXR_VERSION]);
        cargo.args(["--locked", "--force", "--root"]);
        cargo.arg(root).arg("--target-dir").arg(&build);
        // As fast where it matters, in a third less time.
        cargo.args(["--config", "profile.release.lto=\"off\""]);
        for package in RARELY_RUN {
            let level = format!("profile.release.package.{package}.opt-level=1");
            cargo.args(["--config", &level]);
        }
        cargo.current_dir(root).env_remove("CARGO_TARGET_DIR");
        watch_cargo("evcxr", &mut cargo)?;
        if build.exists() {
            fs::remove_dir_all(&build)?;
        }
        Ok(())
    })
}

/// Makes sure that the standard library's sources are there, and returns their folder where evcxr
/// does not find them by itself.
pub(crate) fn find_rust_src(home: &Home, toolchain: &Toolchain) -> anyhow::Result<Option<PathBuf>> {
    let component = toolchain.sysroot.join("lib/rustlib/src/rust/library");
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
    /// Returns a command for a program that writes down how it is called and then runs `script`,
    /// with the folder that follows `--root` as `$root`.
    fn stand_in(folder: &Path, name: &str, script: &str) -> Command {
        let path = folder.join(name);
        let called = folder.join("called");
        let script = format!(
            "#!/bin/sh\necho {name} \"$@\" >> {}\n\
             while [ \"$1\" != --root ]; do shift; done; root=$2; mkdir -p $root/bin\n{script}\n",
            called.display()
        );
        fs::write(&path, script).unwrap();
        let mut command = Command::new("sh");
        command.arg(path);
        command
    }

    /// A script that installs an evcxr whose `--help` ends with `status`.
    fn brings(status: u8) -> String {
        format!(
            "printf '#!/bin/sh\\nexit {status}\\n' > $root/bin/evcxr_jupyter; chmod +x $root/bin/evcxr_jupyter\n\
             echo '\"evcxr_jupyter {EVCXR_VERSION} (registry)\" = [\"evcxr_jupyter\"]' > $root/.crates.toml"
        )
    }

    /// Installs evcxr twice, where a `cargo-binstall` that runs `script` is installed or none is.
    /// Returns the programs that were called.
    fn installed_by(script: Option<&str>) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let tools = folder.join("tools");
        for _ in 0..2 {
            let binstall = script.map(|script| stand_in(folder, "binstall", script));
            install(&tools, binstall, stand_in(folder, "cargo", &brings(0))).unwrap();
        }
        output(Command::new(tools.join("bin/evcxr_jupyter")).arg("--help")).unwrap();
        let called = fs::read_to_string(folder.join("called")).unwrap();
        let version = |line: &&str| line.contains(EVCXR_VERSION);
        assert_eq!(
            called.lines().filter(version).count(),
            called.lines().count(),
            "{called}"
        );
        let first = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
        called.lines().map(first).collect()
    }

    #[test]
    fn a_prebuilt_evcxr_is_taken_if_it_runs_here_and_built_if_it_does_not() {
        assert_eq!(installed_by(None), ["cargo"]);
        assert_eq!(installed_by(Some(&brings(0))), ["binstall"]);
        assert_eq!(installed_by(Some(&brings(1))), ["binstall", "cargo"]);
        assert_eq!(installed_by(Some("exit 94")), ["binstall", "cargo"]);
    }

    #[test]
    fn a_prebuilt_evcxr_that_does_not_run_here_is_not_left_in_place_of_a_built_one() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let install = |brought| {
            let binstall = stand_in(folder, "binstall", &brings(brought));
            install(
                &folder.join("tools"),
                Some(binstall),
                stand_in(folder, "cargo", "exit 101"),
            )
        };
        let error = install(1).unwrap_err().to_string();
        assert!(error.contains("install evcxr_jupyter"), "{error}");
        install(1).unwrap_err();
        install(0).unwrap();
    }
}
