//! Pictures that somebody said the class of, in a folder that `own_images.ipynb` trains on.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

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
    left: Mutex<Left>,
}

/// What may still come.
#[derive(Debug)]
struct Left {
    pictures: u64,
    bytes: u64,
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
        let mut left = Left {
            pictures: bounds.max_collected.into(),
            bytes: u64::from(bounds.max_collected_size) << 20,
        };
        for class in classes {
            let of_class = folder_of(folder, class)?;
            let told = || of_class.display().to_string();
            for file in fs::read_dir(&of_class).with_context(told)? {
                let size = file
                    .and_then(|file| file.metadata())
                    .with_context(told)?
                    .len();
                left.pictures = left.pictures.saturating_sub(1);
                left.bytes = left.bytes.saturating_sub(size);
            }
        }
        Ok(Self {
            folder: folder.into(),
            left: Mutex::new(left),
        })
    }

    fn left(&self) -> MutexGuard<'_, Left> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
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
        let size = bytes.len() as u64;
        let mut left = self.left();
        if left.pictures == 0 || left.bytes < size {
            let detail = "the folder for pictures is full";
            let problem = Problem::new(StatusCode::INSUFFICIENT_STORAGE, detail);
            return Err(problem.code(Code::CollectionFull));
        }
        left.pictures -= 1;
        left.bytes -= size;
        drop(left);
        self.write(class, &path, bytes).map_err(|error| {
            let mut left = self.left();
            left.pictures += 1;
            left.bytes += size;
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
    fn a_folder_is_full_of_large_pictures_sooner() {
        let folder = tempfile::tempdir().unwrap();
        let bounds = Options::parse_from(["serve", "m", "--max-collected-size", "1"]).bounds;
        let open = || Collection::open(folder.path(), &["cats".to_owned()], &bounds).unwrap();
        let (half, other) = (vec![0; 600 << 10], vec![1; 600 << 10]);
        let collection = open();
        collection.keep("cats", &half).unwrap();
        assert!(collection.keep("cats", &other).is_err() && open().keep("cats", &other).is_err());
        collection.keep("cats", b"small").unwrap();
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
