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

/// The model that the tutorial's notebook saves.
const TUTORIALS: &str = "model.safetensors";

/// What that notebook takes by itself, best first, and by which file in the data folder it is known to be there.
const DATASETS: [(&str, &str); 3] = [
    ("cats_vs_dogs", "kagglecatsanddogs_5340.zip"),
    ("cats_and_dogs_filtered", "cats_and_dogs_filtered.zip"),
    ("cifar10_cats_vs_dogs", "cifar10/test_batch.png"),
];

/// Prepares the program, and becomes it.
pub(crate) fn serve(arguments: &[&str]) -> anyhow::Result<()> {
    let (checkout, home) = (Checkout::locate()?, Home::from_env()?);
    let is_named = arguments.first().is_some_and(|word| !word.starts_with('-'));
    let model = match is_named {
        true => None,
        false => Some(newest(&saved_models(&checkout))?),
    };
    let is_examples = |word: &&str| *word == "--examples" || word.starts_with("--examples=");
    let examples = match &model {
        Some(model) if model.ends_with(TUTORIALS) && !arguments.iter().any(is_examples) => {
            let chosen = std::env::var("TRANSFER_DATASET").unwrap_or_default();
            present(&chosen, &data(&checkout))
        }
        _ => None,
    };
    let examples = examples.map(|name| ["--examples", name]);
    let (_, program) = setup::program(checkout, home, "-p serve", "debug/serve")?;
    let mut serve = Command::new(program);
    for (name, value) in ALLOCATOR {
        if std::env::var_os(name).is_none() {
            serve.env(name, value);
        }
    }
    // In place of this program: Ctrl-C is the server's.
    let serve = serve
        .args(model)
        .args(examples.iter().flatten())
        .args(arguments);
    Err(serve.exec()).context("cannot run the server")
}

/// Returns the dataset that the tutorial's notebook takes where this one is chosen (empty: none), if it is in the data folder.
fn present(chosen: &str, data: &Path) -> Option<&'static str> {
    let is_it = |(name, file): &&(&str, &str)| {
        (chosen.is_empty() || chosen == *name) && data.join(file).is_file()
    };
    DATASETS.iter().find(is_it).map(|(name, _)| *name)
}

/// Returns the folder that an environment variable names.
fn folder(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os(name);
    folder
        .filter(|folder| !folder.is_empty())
        .map(PathBuf::from)
}

/// Returns the folder that datasets lie in.
fn data(checkout: &Checkout) -> PathBuf {
    folder("TRANSFER_DATA").unwrap_or_else(|| checkout.join("data"))
}

/// Returns the folder that notebooks save models in.
pub(crate) fn saved_models(checkout: &Checkout) -> PathBuf {
    folder("TRANSFER_CHECKPOINTS").unwrap_or_else(|| data(checkout).join(SAVED))
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

    #[test]
    fn the_tutorials_model_is_tried_with_the_dataset_that_is_there() {
        let data = tempfile::tempdir().unwrap();
        assert_eq!(present("", data.path()), None);
        let assets = include_str!("../../data/assets.toml");
        fs::create_dir(data.path().join("cifar10")).unwrap();
        for (name, file) in DATASETS.into_iter().rev() {
            let (_, in_folder) = file.rsplit_once('/').unwrap_or(("", file));
            assert!(
                assets.contains(&format!("{{ name = \"{in_folder}\"")),
                "{file}"
            );
            fs::write(data.path().join(file), "").unwrap();
            assert_eq!(present("", data.path()), Some(name));
        }
        let chosen = |name| present(name, data.path());
        assert_eq!(chosen("cifar10_cats_vs_dogs"), Some("cifar10_cats_vs_dogs"));
        assert_eq!(chosen("/own/pictures"), None);
    }
}
