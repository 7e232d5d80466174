//! `clean`: removes what was built, never what was fetched by hand.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use kernel::home::Home;
use kernel::kept;

use crate::checkout::Checkout;
use crate::command::run;
use crate::environment::users_environment;
use crate::{kernelspec, report};

/// Removes this checkout's build outputs and links and its notebooks' build folders, or with `all`
/// the whole cache folder, and the kernel in the user's environment too. Images and weights stay
/// in `data/`.
pub(crate) fn clean(all: bool) -> anyhow::Result<()> {
    let checkout = Checkout::locate()?;
    let home = Home::from_env()?;
    if all {
        if let Some((environment, _)) = users_environment(&checkout, &home) {
            kernelspec::remove(&environment)?;
        }
        remove(home.root())?;
    } else {
        if let Some(folder) = kernelspec::installed_build_folders(&checkout) {
            remove_unless_in_use(&folder)?;
        }
        let root = home.root().display();
        report::done(
            "kept",
            format!("{root}; `cargo xtask clean --all` removes it"),
        );
    }
    for link in [checkout.venv(), checkout.libtorch_link()] {
        if link.is_symlink() {
            fs::remove_file(&link).with_context(|| format!("cannot remove {}", link.display()))?;
            report::done("removed", link.display());
        }
    }
    remove(&checkout.output())?;
    remove(&checkout.bench_output())?;
    remove(&checkout.kernels())?;
    run(&mut checkout.cargo("clean"))?;
    report::done("kept", checkout.join("data").display());
    Ok(())
}

fn remove_unless_in_use(folder: &Path) -> anyhow::Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    if kept::try_take(folder)?.is_none() {
        let reason = "a notebook's kernel is using it";
        report::done("kept", format!("{}: {reason}", folder.display()));
        return Ok(());
    }
    remove(folder)
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
    fn build_folders_in_use_are_kept_and_others_are_not() {
        let parent = tempfile::tempdir().unwrap();
        let folders = ["1f", "2e"].map(|name| parent.path().join(name));
        for folder in &folders {
            fs::create_dir(folder).unwrap();
        }
        let _held = kept::hold(&folders[0]).unwrap();
        for folder in &folders {
            remove_unless_in_use(folder).unwrap();
        }
        assert_eq!(folders.map(|folder| folder.exists()), [true, false]);
        remove_unless_in_use(&parent.path().join("3d")).unwrap();
    }
}
