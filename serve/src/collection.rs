//! Pictures that somebody said the class of, in a folder that `own_images.ipynb` trains on.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, ensure};
use axum::http::StatusCode;
use image::ImageFormat;
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use crate::log;
use crate::options::Bounds;
use crate::problem::{Code, Problem};

/// A folder with one folder for each class.
#[derive(Debug)]
pub(crate) struct Collection {
    folder: PathBuf,
    /// How many pictures may still come.
    left: AtomicU32,
}

/// Makes the folder of a class.
fn folder_of(folder: &Path, class: &str) -> anyhow::Result<PathBuf> {
    let is_name =
        !class.is_empty() && !class.starts_with('.') && !class.contains(['/', '\\', '\0']);
    ensure!(
        is_name,
        "--collect: the class {class:?} cannot be the name of a folder"
    );
    let of_class = folder.join(class);
    fs::create_dir_all(&of_class).with_context(|| of_class.display().to_string())?;
    Ok(of_class)
}

impl Collection {
    /// Makes the folders for some classes.
    pub(crate) fn open(folder: &Path, classes: &[String], bounds: &Bounds) -> anyhow::Result<Self> {
        let mut count = 0;
        for class in classes {
            let of_class = folder_of(folder, class)?;
            let files = fs::read_dir(&of_class).with_context(|| of_class.display().to_string())?;
            count += u32::try_from(files.count()).unwrap_or(u32::MAX);
        }
        Ok(Self {
            folder: folder.into(),
            left: AtomicU32::new(bounds.max_collected.saturating_sub(count)),
        })
    }

    /// Keeps a picture, which can be read, under its content's name; one that is there already, once. Returns the
    /// file's path in the folder.
    pub(crate) fn keep(&self, class: &str, bytes: &[u8]) -> Result<String, Problem> {
        let format = image::guess_format(bytes).ok();
        let suffix = format.and_then(|format| format.extensions_str().first().copied());
        let digest = Sha256::digest(bytes);
        let name: String = digest
            .iter()
            .take(16)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let file = format!(
            "{class}/{name}.{}",
            suffix.unwrap_or(ImageFormat::Jpeg.extensions_str()[0])
        );
        let path = self.folder.join(&file);
        if path.exists() {
            return Ok(file);
        }
        let take = |left: u32| left.checked_sub(1);
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .map_err(|_| {
                let detail = "the folder for pictures is full";
                Problem::new(StatusCode::INSUFFICIENT_STORAGE, detail).code(Code::CollectionFull)
            })?;
        self.write(class, &path, bytes).map_err(|error| {
            self.left.fetch_add(1, Ordering::Relaxed);
            log(format_args!("{error:#}"));
            let detail = "the picture could not be written; the server's output says why";
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail).code(Code::NotKept)
        })?;
        Ok(file)
    }

    /// Writes a file whole or not at all.
    fn write(&self, class: &str, path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
        // Of a model that was replaced, it may be new.
        folder_of(&self.folder, class)?;
        let mut file = NamedTempFile::new_in(&self.folder)?;
        file.write_all(bytes)?;
        file.persist(path)
            .with_context(|| path.display().to_string())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::options::Options;

    #[test]
    fn a_picture_is_kept_once_under_its_class_until_the_folder_is_full() {
        let folder = tempfile::tempdir().unwrap();
        let bounds = Options::parse_from(["serve", "m", "--max-collected", "2"]).bounds;
        let classes = ["cats", "dogs"].map(str::to_owned);
        let collection = Collection::open(folder.path(), &classes, &bounds).unwrap();
        let kept = collection.keep("cats", b"\xff\xd8\xffone").unwrap();
        assert!(
            kept.starts_with("cats/") && kept.ends_with(".jpg"),
            "{kept}"
        );
        assert_eq!(
            fs::read(folder.path().join(&kept)).unwrap(),
            b"\xff\xd8\xffone"
        );
        assert_eq!(collection.keep("cats", b"\xff\xd8\xffone").unwrap(), kept);
        collection.keep("dogs", b"\xff\xd8\xfftwo").unwrap();
        assert!(collection.keep("dogs", b"\xff\xd8\xffthree").is_err());
        // What is there counts from the start.
        let again = Collection::open(folder.path(), &classes, &bounds).unwrap();
        assert!(again.keep("dogs", b"\xff\xd8\xffthree").is_err());
        let files = fs::read_dir(folder.path().join("dogs")).unwrap().count();
        assert_eq!(files, 1);
    }

    #[test]
    fn a_class_that_is_no_folders_name_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let bounds = Options::parse_from(["serve", "m"]).bounds;
        for class in ["..", "a/b", ".hidden", ""] {
            let found = Collection::open(folder.path(), &[class.to_owned()], &bounds);
            assert!(found.unwrap_err().to_string().contains("name of a folder"));
        }
    }
}
