//! Everything that has to be there before a notebook runs; each step is skipped when it is done.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use kernel::home::{Home, VARIABLE as HOME};

use crate::checkout::Checkout;
use crate::command::{both, is_installed, set_guard};
use crate::environment::{Environment, Python, digest};
use crate::guard::Guard;
use crate::space::{Need, TARGET_DIR, ensure_room};
use crate::tools::Toolchain;
use crate::{kernelspec, report, tools};

/// What set-up has prepared.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) checkout: Checkout,
    pub(crate) home: Home,
    pub(crate) python: Python,
}

/// Prepares everything. What is done with it afterwards may need space, too.
pub(crate) fn setup(
    afterwards: impl FnOnce(&Checkout) -> anyhow::Result<Vec<Need>>,
) -> anyhow::Result<Ready> {
    let start = Instant::now();
    let home = Home::from_env()?;
    let checkout = Checkout::locate()?;
    let _turn = take_turn(&checkout, &home)?;
    let environment = Environment::notebooks(&checkout, &home)?;
    let toolchain = Toolchain::find()?;
    let build_folders =
        |libtorch: &Path| kernelspec::build_folders(&checkout, &home, &toolchain, libtorch);
    let there = environment.libtorch().map(build_folders).transpose()?;
    let mut needs = afterwards(&checkout)?;
    needs.extend(environment.needs());
    needs.extend(tools::needs(&home));
    needs.extend(kernelspec::needs(&checkout, &home, there.as_deref())?);
    preflight(&checkout, &needs)?;
    // pip keeps the network and the disk busy; where the last crates of one build wait for each
    // other, the other one goes on.
    let (python, (launcher, rust_src)) = both(
        || environment.fill(),
        || {
            both(
                || kernelspec::build(&checkout),
                || {
                    let rust_src = tools::find_rust_src(&home, &toolchain)?;
                    tools::install_evcxr(&home)?;
                    Ok(rust_src)
                },
            )
        },
    )?;
    let python = python.link(&checkout, &home)?;
    let build_folders = build_folders(python.libtorch()?)?;
    let ready = Ready {
        checkout,
        home,
        python,
    };
    let rust_src = rust_src.as_deref();
    kernelspec::install(&ready, &launcher, &toolchain, &build_folders, rust_src)?;
    kernelspec::warm_up(&ready, &build_folders)?;
    report::done("set-up", format!("complete after {}", report::time(start)));
    Ok(ready)
}

/// Builds one of the workspace's own programs, with what it needs (no notebook, hence no kernel): `words` select it for
/// Cargo, `place` is where it lies in the target folder.
pub(crate) fn program(
    checkout: Checkout,
    home: Home,
    words: &str,
    place: &str,
) -> anyhow::Result<(Ready, PathBuf)> {
    let _turn = take_turn(&checkout, &home)?;
    let target = checkout.target()?;
    let missing = !target.join(place).exists();
    let need = Need::new("building the program", 1000, target, TARGET_DIR);
    let needs = missing.then_some(need).into_iter().collect();
    let ready = libtorch(checkout, home, needs)?;
    let name = place.rsplit('/').next().unwrap_or(place);
    let build = || ready.checkout.build("build", words, name);
    let program = report::timed("build", format!("cargo build {words}"), build)?;
    Ok((ready, program))
}

/// Prepares what the workspace's own programs are built with. What is done afterwards `needs` space,
/// too.
pub(crate) fn libtorch(
    checkout: Checkout,
    home: Home,
    mut needs: Vec<Need>,
) -> anyhow::Result<Ready> {
    let environment = Environment::notebooks(&checkout, &home)?;
    needs.extend(environment.needs());
    preflight(&checkout, &needs)?;
    let python = environment.fill()?.link(&checkout, &home)?;
    Ok(Ready {
        checkout,
        home,
        python,
    })
}

/// The right to change what is in the cache folder. What is started meanwhile ends with this
/// program, and the next one waits until it has.
#[derive(Debug)]
pub(crate) struct Turn;

impl Drop for Turn {
    fn drop(&mut self) {
        set_guard(None);
    }
}

/// Waits for other set-ups in the same cache folder, which take turns.
pub(crate) fn take_turn(checkout: &Checkout, home: &Home) -> anyhow::Result<Turn> {
    let root = home.root();
    refuse_place(root, &checkout.join(""))?;
    fs::create_dir_all(root).with_context(|| format!("cannot create {}", root.display()))?;
    let lock = File::create(root.join("setup.lock"))?;
    if lock.try_lock().is_err() {
        report::done("set-up", "waiting for another set-up to end ...");
        lock.lock().context("cannot lock the cache folder")?;
    }
    set_guard(Some(Guard::start(lock)?));
    Ok(Turn)
}

/// Refuses a cache folder in which notebooks could not be built.
fn refuse_place(root: &Path, checkout: &Path) -> anyhow::Result<()> {
    let shown = root.display();
    ensure!(
        !root.starts_with(checkout) || root == checkout.join("target"),
        "the cache folder {shown} lies in the checkout, whose workspace would claim the notebooks' build folders: \
         choose a folder outside of it with {HOME}",
    );
    // It tells the process that runs the cells what to load in a line of words.
    ensure!(
        !root.to_string_lossy().contains(char::is_whitespace),
        "the cache folder `{shown}` has a space in its path, which evcxr cannot build in: \
         choose a folder without one with {HOME}",
    );
    Ok(())
}

/// Checks what has to be on the machine before anything is fetched or built.
fn preflight(checkout: &Checkout, needs: &[Need]) -> anyhow::Result<()> {
    let compiler = compiler().context(
        "no C++ compiler found (c++, g++ or clang++, or one named by CXX): \
         on Debian `apt install g++`, on Fedora `dnf install gcc-c++`, on macOS `xcode-select --install`",
    )?;
    let room = ensure_room(needs)?;
    report::done("preflight", format!("{compiler}, {room}"));
    // Cargo itself sets it to the checkout's link, by `.cargo/config.toml`.
    let given = std::env::var_os("LIBTORCH");
    if let Some(other) = given.filter(|other| *other != checkout.libtorch_link()) {
        let other = other.display();
        let reason = "is not used: libtorch comes from the environment";
        report::done("", format!("LIBTORCH={other} {reason}"));
    }
    Ok(())
}

/// Returns the C++ compiler that will be used.
fn compiler() -> Option<String> {
    if let Some(chosen) = std::env::var("CXX").ok().filter(|name| !name.is_empty()) {
        // It may carry arguments, as in `ccache g++`.
        let program = chosen.split_whitespace().next()?;
        return (is_installed(program) || Path::new(program).is_file()).then_some(chosen);
    }
    let mut names = ["c++", "g++", "clang++"].into_iter();
    names.find(|name| is_installed(name)).map(str::to_owned)
}

/// A mark in the data folder: the default weights and images are there.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) path: PathBuf,
    /// A digest of the list of files and of what chooses among the images.
    wanted: String,
}

impl Fetched {
    /// Returns the mark that this list of files and these settings would leave.
    pub(crate) fn wanted(checkout: &Checkout) -> anyhow::Result<Self> {
        let given = std::env::var_os("TRANSFER_DATA").filter(|folder| !folder.is_empty());
        let folder = given.map_or_else(|| checkout.join("data"), PathBuf::from);
        let list = checkout.read("data/assets.toml")?;
        let setting = |name: &str| std::env::var(name).unwrap_or_default();
        let chosen = ["TRANSFER_DATASET", "TRANSFER_DEVICE"].map(setting);
        Ok(Self {
            path: folder.join(".fetched"),
            wanted: digest([list.as_str(), &chosen[0], &chosen[1]]),
        })
    }

    /// Returns whether it is there.
    pub(crate) fn is_set(&self) -> bool {
        fs::read_to_string(&self.path).is_ok_and(|found| found == self.wanted)
    }

    pub(crate) fn set(&self) -> anyhow::Result<()> {
        fs::write(&self.path, &self.wanted)
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// Returns a command for `support`'s program that fetches files, with the environment's pip and npm.
pub(crate) fn assets(ready: &Ready, words: &str) -> anyhow::Result<Command> {
    let mut command = ready.checkout.cargo("run --quiet -p support --bin assets");
    command.args(words.split(' '));
    ready.python.activate(&mut command)?;
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_folder_in_the_checkout_or_with_a_space_is_refused_in_words() {
        let refusal = |root: &str| {
            let refused = refuse_place(Path::new(root), Path::new("/my checkout"));
            refused.map_err(|error| error.to_string())
        };
        for accepted in ["/home/me/.cache/t", "/checkout2"] {
            assert_eq!(refusal(accepted), Ok(()));
        }
        for (root, reason) in [
            ("/my checkout/cache", "lies in the checkout"),
            ("/home/Jane Doe/.cache/t", "has a space in its path"),
        ] {
            let error = refusal(root).unwrap_err();
            let says = |part: &str| error.contains(part);
            assert!(
                says(root) && says(reason) && says("TRANSFER_HOME"),
                "{error}"
            );
        }
    }
}
