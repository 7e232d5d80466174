//! `clean`: removes what was built, never what was fetched by hand.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use kernel::folder;
use kernel::home::Home;

use crate::checkout::Checkout;
use crate::command::run;
use crate::report;

/// Removes this checkout's build outputs and links and the kernel's build folders, or with `all`
/// the whole cache folder too. Images and weights stay in `data/`.
pub(crate) fn clean(all: bool) -> anyhow::Result<()> {
    let checkout = Checkout::locate()?;
    let home = Home::from_env()?;
    for link in [checkout.join(".venv"), checkout.libtorch_link()] {
        if link.is_symlink() {
            fs::remove_file(&link).with_context(|| format!("cannot remove {}", link.display()))?;
            report::done("removed", link.display());
        }
    }
    remove(&checkout.output())?;
    remove(&checkout.bench_output())?;
    if all {
        remove(home.root())?;
    } else {
        remove_build_folders(&home.kernel())?;
        let root = home.root().display();
        report::done(
            "kept",
            format!("{root}; `cargo xtask clean --all` removes it"),
        );
    }
    run(&mut checkout.cargo("clean"))?;
    report::done("kept", checkout.join("data").display());
    Ok(())
}

/// Removes the kernel's build folders, except those that a notebook is using.
fn remove_build_folders(parent: &Path) -> anyhow::Result<()> {
    let Ok(entries) = fs::read_dir(parent) else {
        return Ok(());
    };
    for entry in entries {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        if name != folder::WARM && name.parse::<u32>().is_err() {
            continue;
        }
        match folder::take(parent, &name) {
            Ok(held) => remove(&held.path)?,
            Err(error) => report::done("kept", format!("{error:#}")),
        }
    }
    Ok(())
}

fn remove(folder: &Path) -> anyhow::Result<()> {
    if folder.is_dir() {
        fs::remove_dir_all(folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
        report::done("removed", folder.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_folders_in_use_are_kept_and_the_rest_of_the_folder_is_not_touched() {
        let parent = tempfile::tempdir().unwrap();
        for name in ["0", "warm", "config"] {
            fs::create_dir(parent.path().join(name)).unwrap();
        }
        let _held = folder::take(parent.path(), "1").unwrap();
        remove_build_folders(parent.path()).unwrap();
        let left = |name: &str| parent.path().join(name).is_dir();
        assert!(!left("0") && !left("warm") && left("1") && left("config"));
    }
}
