//! What has to be on the machine before anything is fetched or built.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use kernel::home::Home;

use crate::environment::Place;
use crate::process::{is_installed, output};
use crate::report;
use crate::workspace::Checkout;

/// Space for the Python environment (4.8 GB, most of it libtorch with CUDA) and pip's downloads.
const ENVIRONMENT: u64 = 8_000_000_000;

/// Space for what is compiled, the pictures and the weights.
const BUILDS: u64 = 4_000_000_000;

/// Checks for a C++ compiler and disk space, and says how to get what is missing.
pub(crate) fn check(checkout: &Checkout, home: &Home, place: &Place) -> anyhow::Result<()> {
    ensure!(
        !home.root().starts_with(checkout.join("")) || home.root() == checkout.join("target"),
        "TRANSFER_HOME={} lies in the checkout, whose workspace would claim the notebooks' build folders: \
         choose a folder outside of it",
        home.root().display(),
    );
    let compiler = compiler().context(
        "no C++ compiler found (c++, g++ or clang++, or one named by CXX): \
         on Debian `apt install g++`, on Fedora `dnf install gcc-c++`, on macOS `xcode-select --install`",
    )?;
    let needed = BUILDS + if place.lacks_torch() { ENVIRONMENT } else { 0 };
    let free = ensure_space(home, needed)?;
    let python = place.python().version();
    report::done(
        "preflight",
        format!("Python {python}, {compiler}, {} free", report::size(free)),
    );
    // Cargo itself sets it to the checkout's link, by `.cargo/config.toml`.
    let link = checkout.libtorch_link();
    if let Some(other) = std::env::var_os("LIBTORCH").filter(|other| *other != link) {
        report::done(
            "",
            format!(
                "LIBTORCH={} is not used: libtorch comes from the environment",
                other.display()
            ),
        );
    }
    Ok(())
}

/// Checks that there is room in the cache folder for one more environment with torch.
pub(crate) fn check_environment(home: &Home, place: &Place) -> anyhow::Result<()> {
    let needed = if place.lacks_torch() { ENVIRONMENT } else { 0 };
    ensure_space(home, needed).map(drop)
}

/// Returns the space that is free in the cache folder, at least `needed`.
fn ensure_space(home: &Home, needed: u64) -> anyhow::Result<u64> {
    std::fs::create_dir_all(home.root())
        .with_context(|| format!("cannot create {}", home.root().display()))?;
    let free = free_space(home.root())?;
    ensure!(
        free >= needed,
        "{} free in {}, {} needed: make room, or choose another place with TRANSFER_HOME",
        report::size(free),
        home.root().display(),
        report::size(needed),
    );
    Ok(free)
}

fn compiler() -> Option<String> {
    let chosen = std::env::var("CXX").ok().filter(|name| !name.is_empty());
    if let Some(chosen) = chosen {
        // It may carry arguments, as in `ccache g++`.
        let program = chosen.split_whitespace().next()?;
        return (is_installed(program) || Path::new(program).is_file()).then_some(chosen);
    }
    ["c++", "g++", "clang++"]
        .into_iter()
        .find(|name| is_installed(name))
        .map(str::to_owned)
}

fn free_space(folder: &Path) -> anyhow::Result<u64> {
    let table = output(Command::new("df").arg("-Pk").arg(folder))?;
    available(&table).with_context(|| format!("`df` gave no usable answer: {table}"))
}

/// Reads the bytes available from what `df -Pk` prints for one folder.
fn available(table: &str) -> Option<u64> {
    let kilobytes: u64 = table
        .lines()
        .nth(1)?
        .split_whitespace()
        .nth_back(2)?
        .parse()
        .ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_space_is_the_fourth_column_even_where_the_device_has_spaces() {
        let table = "Filesystem 1024-blocks Used Available Capacity Mounted on\n\
                     //host/my share 263174212 22876632 73400320 24% /data\n";
        assert_eq!(available(table), Some(73_400_320 * 1024));
        assert_eq!(available("Filesystem\n"), None);
    }

    #[test]
    fn this_machines_free_space_can_be_read() {
        assert!(free_space(Path::new("/")).unwrap() > 0);
    }
}
