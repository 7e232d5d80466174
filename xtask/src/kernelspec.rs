//! The Jupyter kernel in the environment, and the build folder that its first `:dep` starts from.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use kernel::environment::{BUILD_FOLDERS, TOOLCHAIN, cargo_config};
use kernel::home::{Home, VARIABLE as HOME};
use kernel::{EVCXR_VERSION, folder, kept};
use serde_json::{Value, json};

use crate::checkout::Checkout;
use crate::command::run_held;
use crate::environment::digest;
use crate::report;
use crate::setup::{Fetched, Ready};
use crate::space::{Need, TARGET_DIR};
use crate::tools::Toolchain;

/// The launcher's file name.
const LAUNCHER: &str = "transfer-learning-kernel";

/// The kernelspec, where Jupyter looks for kernels. Its folder is called `rust`, like that of plain
/// evcxr, so that a notebook opens with either.
const SPEC: &str = "kernels/rust/kernel.json";

/// Builds the launcher, and returns where it is.
pub(crate) fn build(checkout: &Checkout) -> anyhow::Result<PathBuf> {
    checkout.build("kernel", "-p kernel", LAUNCHER)
}

/// Installs the kernel twice: for the commands of this checkout, and in the environment, for who
/// starts Jupyter there and without a checkout.
pub(crate) fn install(
    ready: &Ready,
    built: &Path,
    toolchain: &Toolchain,
    build_folders: &Path,
    rust_src: Option<&Path>,
) -> anyhow::Result<()> {
    let (prefix, libtorch) = (&ready.python.prefix, ready.python.libtorch()?);
    let sysroot = &toolchain.sysroot;
    let env = &environment(
        &ready.home,
        prefix,
        libtorch,
        sysroot,
        build_folders,
        rust_src,
    );
    write(&ready.checkout.kernels().join(SPEC), built, env)?;
    let spec = prefix.join("share/jupyter").join(SPEC);
    if is_anothers(&spec) {
        let kernels = ready.checkout.kernels();
        let what = format!(
            "{} is not this project's and stays; to have Jupyter find the kernel without `cargo xtask`: JUPYTER_PATH={}",
            spec.display(),
            kernels.display()
        );
        report::done("kernel", what);
        return Ok(());
    }
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
    write(&spec, &launcher, env)?;
    let done = if same { "present" } else { "installed" };
    report::done("kernel", format!("{done}: {}", spec.display()));
    Ok(())
}

/// Removes the kernel from an environment, if it is this project's.
pub(crate) fn remove(prefix: &Path) -> anyhow::Result<()> {
    let spec = prefix.join("share/jupyter").join(SPEC);
    if !spec.exists() || is_anothers(&spec) {
        return Ok(());
    }
    let failed = || format!("cannot remove {}", spec.display());
    let launcher = prefix.join("bin").join(LAUNCHER);
    if launcher.exists() {
        fs::remove_file(launcher).with_context(failed)?;
    }
    if let Some(folder) = spec.parent() {
        fs::remove_dir_all(folder).with_context(failed)?;
    }
    report::done("removed", spec.display());
    Ok(())
}

/// Returns the folder for build folders that this checkout's kernel was last told.
pub(crate) fn installed_build_folders(checkout: &Checkout) -> Option<PathBuf> {
    let text = fs::read_to_string(checkout.kernels().join(SPEC)).ok()?;
    let spec: Value = serde_json::from_str(&text).ok()?;
    Some(spec["env"][BUILD_FOLDERS].as_str()?.into())
}

/// Returns whether a kernelspec is there that starts another program than the launcher.
fn is_anothers(spec: &Path) -> bool {
    let Ok(text) = fs::read_to_string(spec) else {
        return false;
    };
    let spec: Value = serde_json::from_str(&text).unwrap_or_default();
    let program = spec["argv"][0].as_str().map(Path::new);
    program.and_then(Path::file_name) != Some(LAUNCHER.as_ref())
}

fn write(spec: &Path, launcher: &Path, env: &Value) -> anyhow::Result<()> {
    let text = format!("{:#}\n", kernel_json(launcher, env));
    kernel::write_if_changed(spec, &text)
        .with_context(|| format!("cannot write {}", spec.display()))
}

/// Returns what the launcher has to be told.
fn environment(
    home: &Home,
    prefix: &Path,
    libtorch: &Path,
    sysroot: &Path,
    build_folders: &Path,
    rust_src: Option<&Path>,
) -> Value {
    let mut env = json!({
        HOME: home.root(),
        "VIRTUAL_ENV": prefix,
        "LIBTORCH": libtorch,
        TOOLCHAIN: sysroot,
        BUILD_FOLDERS: build_folders,
    });
    if let Some(folder) = rust_src {
        env["RUST_SRC_PATH"] = json!(folder);
    }
    env
}

fn kernel_json(launcher: &Path, env: &Value) -> Value {
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

/// Returns the folder for the build folders of this checkout's notebooks. A digest of everything
/// that decides how the dependencies of `support` are compiled is its name.
pub(crate) fn build_folders(
    checkout: &Checkout,
    home: &Home,
    toolchain: &Toolchain,
    libtorch: &Path,
) -> anyhow::Result<PathBuf> {
    let mut all = vec![
        toolchain.version.clone(),
        libtorch.display().to_string(),
        cargo_config(),
        EVCXR_VERSION.into(),
    ];
    for file in ["Cargo.toml", "Cargo.lock", "support/Cargo.toml"] {
        all.push(checkout.read(file)?);
    }
    Ok(home.kernel().join(&digest(all)[..12]))
}

/// Returns what is still missing: the launcher and what it is built from; the folder with compiled
/// dependencies, and the copy of it in which a notebook's kernel builds; weights and images.
pub(crate) fn needs(
    checkout: &Checkout,
    home: &Home,
    build_folders: Option<&Path>,
) -> anyhow::Result<Vec<Need>> {
    let mut needs = Vec::new();
    let target = checkout.target()?;
    if !target.join("debug").join(LAUNCHER).exists() {
        needs.push(Need::new("building the kernel", 500, target, TARGET_DIR));
    }
    if !build_folders.is_some_and(is_warm) {
        let what = "the kernel's dependencies";
        needs.push(Need::new(what, 1500, home.kernel(), HOME));
    }
    let fetched = Fetched::wanted(checkout)?;
    if !fetched.is_set() {
        let what = "weights and images";
        needs.push(Need::new(what, 300, fetched.path, "TRANSFER_DATA"));
    }
    Ok(needs)
}

/// Returns whether the dependencies are compiled.
fn is_warm(build_folders: &Path) -> bool {
    folder::stamp(&build_folders.join(folder::WARM)).is_some()
}

/// Compiles `support` and its dependencies in the build folder that others are copied from, so
/// that the first `:dep` of a person takes seconds, and has `support` fetch the default weights
/// and images: in a notebook, so that nothing is compiled for that alone.
pub(crate) fn warm_up(ready: &Ready, build_folders: &Path) -> anyhow::Result<()> {
    kept::hold(build_folders)?;
    let all = kept::prune(&ready.home.kernel(), |name| !name.starts_with('.'))?;
    report::pruned(all);
    report::pruned(folder::prune(build_folders)?);
    let warm = is_warm(build_folders);
    let name = build_folders.to_string_lossy();
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
            folder::set_stamp(build_folders, None)?;
            script.env("TRANSFER_KERNEL_FOLDER", folder::WARM);
        }
        if !fetched.is_set() {
            script.arg("fetch");
        }
        run_held(&mut script)?;
        if !warm {
            folder::set_stamp(build_folders, Some(&name))?;
        }
        fetched.set()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernelspec_starts_the_launcher_with_everything_it_needs() {
        let home = Home::at("/home");
        let [prefix, libtorch, sysroot, builds] =
            ["/env", "/env/torch", "/toolchain", "/home/kernel/1f"].map(Path::new);
        let env = |rust_src| environment(&home, prefix, libtorch, sysroot, builds, rust_src);
        let spec = kernel_json(Path::new("/env/bin/kernel"), &env(None));
        assert_eq!(
            spec["argv"],
            json!(["/env/bin/kernel", "{connection_file}"])
        );
        assert_eq!(spec["display_name"], "Rust (transfer learning)");
        assert_eq!(spec["language"], "rust");
        assert_eq!(spec["metadata"]["debugger"], true);
        let wanted = json!({
            "TRANSFER_HOME": "/home",
            "VIRTUAL_ENV": "/env",
            "LIBTORCH": "/env/torch",
            "TRANSFER_TOOLCHAIN": "/toolchain",
            "TRANSFER_BUILD_FOLDERS": "/home/kernel/1f",
        });
        assert_eq!(spec["env"], wanted);
        let env = env(Some(Path::new("/src/library")));
        assert_eq!(env["RUST_SRC_PATH"], "/src/library");
    }

    /// Puts a kernelspec that starts `program` into a new environment.
    fn environment_with(program: &str) -> (tempfile::TempDir, PathBuf) {
        let prefix = tempfile::tempdir().unwrap();
        let spec = prefix.path().join("share/jupyter").join(SPEC);
        write(&spec, Path::new(program), &json!({})).unwrap();
        (prefix, spec)
    }

    #[test]
    fn another_kernel_of_that_name_is_neither_replaced_nor_removed() {
        let (prefix, spec) = environment_with("/home/me/.cargo/bin/evcxr_jupyter");
        assert!(is_anothers(&spec));
        remove(prefix.path()).unwrap();
        assert!(spec.exists());
        fs::write(&spec, "not JSON").unwrap();
        assert!(is_anothers(&spec));
    }

    #[test]
    fn the_projects_own_is_replaced_and_removed_with_its_launcher() {
        let (prefix, spec) = environment_with("/gone/bin/transfer-learning-kernel");
        assert!(!is_anothers(&spec) && !is_anothers(Path::new("/no/kernel.json")));
        let launcher = prefix.path().join("bin").join(LAUNCHER);
        fs::create_dir(prefix.path().join("bin")).unwrap();
        fs::write(&launcher, "").unwrap();
        remove(prefix.path()).unwrap();
        assert!(!spec.exists() && !launcher.exists());
        remove(prefix.path()).unwrap();
    }
}
