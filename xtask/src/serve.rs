//! `serve`: a page for a model file that a notebook has saved.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::Context as _;
use kernel::environment::ALLOCATOR;
use kernel::home::Home;

use crate::checkout::Checkout;
use crate::setup;

/// Where notebooks save models, in the data folder.
const SAVED: &str = "checkpoints";

/// Prepares the program, and becomes it.
pub(crate) fn serve(arguments: &[&str]) -> anyhow::Result<()> {
    let (checkout, home) = (Checkout::locate()?, Home::from_env()?);
    let is_named = arguments.first().is_some_and(|word| !word.starts_with('-'));
    let model = match is_named {
        true => None,
        false => Some(newest(&saved_models(&checkout))?),
    };
    let (_, program) = setup::program(checkout, home, "-p serve", "debug/serve")?;
    let mut serve = Command::new(program);
    for (name, value) in ALLOCATOR {
        if std::env::var_os(name).is_none() {
            serve.env(name, value);
        }
    }
    // In place of this program: Ctrl-C is the server's.
    Err(serve.args(model).args(arguments).exec()).context("cannot run the server")
}

/// Returns the folder that notebooks save models in.
pub(crate) fn saved_models(checkout: &Checkout) -> PathBuf {
    let folder = |name| {
        std::env::var_os(name)
            .filter(|folder| !folder.is_empty())
            .map(PathBuf::from)
    };
    let data = || folder("TRANSFER_DATA").unwrap_or_else(|| checkout.join("data"));
    folder("TRANSFER_CHECKPOINTS").unwrap_or_else(|| data().join(SAVED))
}

/// Returns the model file in a folder that was saved last.
pub(crate) fn newest(folder: &Path) -> anyhow::Result<PathBuf> {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let files = files.map(|entry| entry.path());
    let saved = |path: &Path| fs::metadata(path).and_then(|file| file.modified());
    files
        .filter(|path| path.is_file() && path.extension().is_some_and(|end| end == "safetensors"))
        .max_by_key(|path| saved(path).unwrap_or(SystemTime::UNIX_EPOCH))
        .with_context(|| {
            format!(
                "no model is saved in {}: run a notebook first (`cargo xtask run`), or name a file: \
                 `cargo xtask serve model.safetensors`, `cargo xtask bench --serve --model model.safetensors`",
                folder.display()
            )
        })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_model_that_was_saved_last_is_served() {
        let folder = tempfile::tempdir().unwrap();
        let error = newest(folder.path()).unwrap_err().to_string();
        assert!(error.contains("cargo xtask run"), "{error}");
        let now = SystemTime::now();
        for (name, age) in [("a.safetensors", 9), ("b.safetensors", 5), ("c.csv", 1)] {
            let file = fs::File::create(folder.path().join(name)).unwrap();
            file.set_modified(now - Duration::from_secs(age)).unwrap();
        }
        assert!(newest(folder.path()).unwrap().ends_with("b.safetensors"));
    }
}
