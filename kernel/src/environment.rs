//! The environment that evcxr, and the process in which it runs the cells, start with.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// Names the toolchain that set-up built with, its `rustc --print sysroot`.
pub const TOOLCHAIN: &str = "TRANSFER_TOOLCHAIN";

/// Names the folder for build folders whose dependencies are those of the checkout.
pub const BUILD_FOLDERS: &str = "TRANSFER_BUILD_FOLDERS";

/// Returns Cargo's configuration above the build folders: a cell is compiled often and runs little
/// code of its own, its dependencies are compiled once, as the workspace's are, and do all the work.
#[must_use]
pub fn cargo_config() -> String {
    const MANIFEST: &str = include_str!("../../Cargo.toml");
    const SHARED: &str = "# What follows is the notebooks' profile, too";
    let shared = MANIFEST.split(SHARED).nth(1).unwrap_or_default();
    let (_, shared) = shared.split_once('\n').unwrap_or_default();
    format!(
        "# Written by the kernel launcher at every start.\n\
         [profile.dev]\nopt-level = 3\n\n\
         [profile.dev.package.ctx]\nopt-level = 0\n\n{shared}"
    )
}

/// Variables that would move or change what evcxr builds: it expects its own build folder and
/// sets its own flags, and a `:dep` has to find what the warm-up built.
const UNWANTED: &[&str] = &[
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_ENCODED_RUSTFLAGS",
    // With evcxr's `:cache` it breaks every cell after the first.
    "CARGO_INCREMENTAL",
    "CARGO_TARGET_DIR",
];

/// Variables with which a user may steer `torch-sys` past the libtorch of the environment.
pub const OTHER_LIBTORCH: &[&str] = &[
    "LIBTORCH_CXX11_ABI",
    "LIBTORCH_INCLUDE",
    "LIBTORCH_LIB",
    "LIBTORCH_STATIC",
    "LIBTORCH_USE_PYTORCH",
];

/// Variables that mean another Python's packages than those of the environment.
pub const OTHER_PYTHON: &[&str] = &["PYTHONHOME", "PYTHONPATH"];

/// Returns whether `cargo run` sets this variable for the program it starts. A build script that
/// asks for it (ring's does) would otherwise run again, with everything that depends on it, when a
/// build is started by hand after one by `cargo xtask`, or from another checkout.
pub fn is_left_by_cargo(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
}

/// glibc hands big blocks back to the system and faults every page in again, which costs a
/// network more than its arithmetic: keep them. 32 MiB is the highest threshold that glibc takes;
/// it ignores a higher one.
pub const ALLOCATOR: &[(&str, &str)] = &[
    ("MALLOC_MMAP_THRESHOLD_", "33554432"),
    ("MALLOC_TRIM_THRESHOLD_", "1073741824"),
    ("MALLOC_TOP_PAD_", "67108864"),
];

#[cfg(target_os = "macos")]
const LIBRARY_PATH: &str = "DYLD_LIBRARY_PATH";
#[cfg(not(target_os = "macos"))]
const LIBRARY_PATH: &str = "LD_LIBRARY_PATH";

/// Returns `PATH` with the programs of the Python environment first (npm is among them), then those
/// of the toolchain that set-up built with, past rustup's proxies.
///
/// # Errors
///
/// A folder has the character that separates paths in its name.
pub fn path(python: &Path, toolchain: &Path, current: &OsStr) -> anyhow::Result<OsString> {
    let first = [python, toolchain].map(PathBuf::from).into_iter();
    let folders = first.chain(std::env::split_paths(current));
    std::env::join_paths(folders).context("a folder in PATH has a `:` in its name")
}

/// What the environment is made from.
#[derive(Debug)]
pub struct Places {
    /// The folder evcxr builds in.
    pub build_folder: PathBuf,
    /// The folder with `evcxr.toml`.
    pub config_folder: PathBuf,
    /// The libtorch folder, the one with `lib` and `include` in it.
    pub libtorch: PathBuf,
    /// The toolchain's folder of target libraries.
    pub target_libdir: PathBuf,
}

/// Returns the variables to set (`Some`) and to remove (`None`), given those that are set now.
///
/// The library path starts with the toolchain's folder: evcxr links cells to the shared standard
/// library with relative run paths that break where the toolchain and the build folder have a
/// parent in common. libtorch follows.
///
/// # Errors
///
/// One of the folders holds the character that separates paths in the library path.
pub fn variables(
    places: &Places,
    current: impl Fn(&str) -> Option<OsString>,
) -> anyhow::Result<Vec<(&'static str, Option<OsString>)>> {
    let mut library_path = vec![places.target_libdir.clone(), places.libtorch.join("lib")];
    if let Some(existing) = current(LIBRARY_PATH) {
        library_path.extend(std::env::split_paths(&existing));
    }
    let mut variables = vec![
        (
            "EVCXR_TMPDIR",
            Some(places.build_folder.clone().into_os_string()),
        ),
        (
            "EVCXR_CONFIG_DIR",
            Some(places.config_folder.clone().into_os_string()),
        ),
        ("LIBTORCH", Some(places.libtorch.clone().into_os_string())),
        // evcxr, at its start, puts its own kernelspec in place of the one that it finds there.
        (
            "JUPYTER_PATH",
            Some(places.build_folder.clone().into_os_string()),
        ),
        (LIBRARY_PATH, Some(std::env::join_paths(library_path)?)),
    ];
    let unwanted = UNWANTED.iter().chain(OTHER_LIBTORCH).chain(OTHER_PYTHON);
    variables.extend(unwanted.map(|name| (*name, None)));
    let chosen_by_the_user = |name: &str| current(name).is_some();
    variables.extend(
        ALLOCATOR
            .iter()
            .filter(|(name, _)| !chosen_by_the_user(name))
            .map(|(name, value)| (*name, Some(OsStr::new(value).to_owned()))),
    );
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(current: &[(&str, &str)]) -> Vec<(&'static str, Option<OsString>)> {
        let places = Places {
            build_folder: "/home/kernel/0".into(),
            config_folder: "/home/kernel/strict".into(),
            libtorch: "/site/torch".into(),
            target_libdir: "/toolchain/lib".into(),
        };
        variables(&places, |name| {
            let (_, value) = current.iter().find(|(known, _)| *known == name)?;
            Some(value.into())
        })
        .unwrap()
    }

    fn value(variables: &[(&'static str, Option<OsString>)], name: &str) -> Option<Option<String>> {
        let (_, value) = variables.iter().find(|(known, _)| *known == name)?;
        Some(
            value
                .as_ref()
                .map(|value| value.to_string_lossy().into_owned()),
        )
    }

    #[test]
    fn the_library_path_is_toolchain_then_libtorch_then_what_was_there() {
        let set = given(&[(LIBRARY_PATH, "/mine:/other")]);
        let path = value(&set, LIBRARY_PATH).unwrap().unwrap();
        assert_eq!(path, "/toolchain/lib:/site/torch/lib:/mine:/other");
        let path = value(&given(&[]), LIBRARY_PATH).unwrap().unwrap();
        assert_eq!(path, "/toolchain/lib:/site/torch/lib");
    }

    #[test]
    fn variables_that_would_break_evcxrs_folder_or_the_environments_python_are_removed() {
        for name in ["CARGO_TARGET_DIR", "CARGO_INCREMENTAL", "PYTHONPATH"] {
            let set = given(&[(name, "/elsewhere")]);
            assert_eq!(value(&set, name), Some(None), "{name}");
        }
    }

    #[test]
    fn the_environments_programs_come_first_then_those_that_set_up_built_with() {
        let programs = |python: &str, toolchain: &str| {
            let current = OsStr::new("/me/.cargo/bin:/usr/bin");
            path(Path::new(python), Path::new(toolchain), current)
        };
        assert_eq!(
            programs("/env/bin", "/toolchain/bin").unwrap(),
            "/env/bin:/toolchain/bin:/me/.cargo/bin:/usr/bin"
        );
        programs("/env:2/bin", "/toolchain/bin").unwrap_err();
    }

    #[test]
    fn evcxr_finds_no_kernelspec_that_it_would_replace() {
        let set = given(&[("JUPYTER_PATH", "/env/share/jupyter")]);
        let path = value(&set, "JUPYTER_PATH").unwrap().unwrap();
        assert_eq!(path, "/home/kernel/0");
    }

    #[test]
    fn what_cargo_tells_a_program_about_itself_is_told_from_a_users_settings() {
        let left = |name: &str| is_left_by_cargo(OsStr::new(name));
        assert!(left("CARGO_MANIFEST_DIR") && left("CARGO_PKG_VERSION_PRE"));
        assert!(!left("CARGO_HOME") && !left("CARGO_BUILD_JOBS"));
    }

    #[test]
    fn the_users_allocator_settings_win() {
        let set = given(&[("MALLOC_TOP_PAD_", "1")]);
        assert_eq!(value(&set, "MALLOC_TOP_PAD_"), None);
        assert_eq!(
            value(&set, "MALLOC_TRIM_THRESHOLD_").unwrap().unwrap(),
            "1073741824"
        );
    }

    #[test]
    fn a_cell_is_compiled_fast_and_its_dependencies_as_the_workspaces() {
        let config = cargo_config();
        for part in [
            "\n[profile.dev.package.ctx]\nopt-level = 0\n",
            "\n[profile.dev.package]\n\"*\" = { debug = false,",
            "\ntorch-sys.opt-level = 0\n",
        ] {
            assert!(config.contains(part), "{config}");
        }
        assert!(!config.contains("package.kernel"), "{config}");
    }

    #[test]
    fn settings_of_the_project_are_left_alone() {
        let set = given(&[("TRANSFER_LIMIT", "200")]);
        assert_eq!(value(&set, "TRANSFER_LIMIT"), None);
    }
}
