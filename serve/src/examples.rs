//! Pictures that the page offers to try the model with.

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use anyhow::{anyhow, ensure};
use axum::body::Bytes;
use image::ImageFormat;
use support::dataset::{DATASETS, Example, ImageDataset, Raw, images_in};
use support::pipeline::decode_within;
use support::settings::Settings;

use crate::options::Bounds;

/// How many there are at most.
const MOST: usize = 8;

/// The bytes that one may have: the page loads all of them.
const MOST_BYTES: usize = 1 << 20;

/// Pictures as they are sent, read at the start.
#[derive(Debug, Default)]
pub(crate) struct Examples(Vec<Picture>);

#[derive(Debug)]
struct Picture {
    name: String,
    /// Its media type.
    kind: &'static str,
    bytes: Bytes,
}

/// A picture that is not read yet.
enum Stored {
    File(PathBuf),
    Example(Example),
}

impl Examples {
    /// Reads pictures of a folder, or of a dataset's validation part: from each class in turn, always the same. One that
    /// is too large or cannot be read is left out.
    pub(crate) fn read(place: &Path, bounds: &Bounds) -> anyhow::Result<Self> {
        let told = || format!("--examples {}", place.display());
        let found = match place.to_str().filter(|name| DATASETS.contains(name)) {
            Some(name) => validation_of(name),
            None => in_folder(place),
        };
        // The error says what caused it.
        let found = found.map_err(|error| anyhow!("{}: {error}", told()))?;
        let memory = u64::from(bounds.max_picture) << 20;
        let read = |stored| Picture::read(&stored, memory);
        let read = |class: Vec<_>| class.into_iter().filter_map(read);
        let mut classes: Vec<_> = found.into_iter().map(read).collect();
        let mut pictures = Vec::new();
        while pictures.len() < MOST {
            let before = pictures.len();
            for class in &mut classes {
                pictures.extend(class.next().filter(|_| pictures.len() < MOST));
            }
            if pictures.len() == before {
                break;
            }
        }
        ensure!(
            !pictures.is_empty(),
            "{}: expected pictures (JPEG, PNG, GIF, WebP, BMP) of at most 1 MiB, in folders by class or in this one",
            told()
        );
        Ok(Self(pictures))
    }

    pub(crate) fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.0.iter().map(|picture| picture.name.as_str())
    }

    /// Returns a picture's media type and bytes.
    pub(crate) fn get(&self, index: usize) -> Option<(&'static str, Bytes)> {
        let picture = self.0.get(index)?;
        Some((picture.kind, picture.bytes.clone()))
    }
}

impl Picture {
    /// Reads a picture that is small enough and can be decoded.
    fn read(stored: &Stored, memory: u64) -> Option<Self> {
        let bytes = match stored {
            Stored::File(path) => {
                let size = fs::metadata(path).ok()?.len();
                (size <= MOST_BYTES as u64).then(|| fs::read(path).ok())??
            }
            Stored::Example(example) => match example.encoded_or_pixels().ok()? {
                Raw::Encoded(bytes) => bytes,
                Raw::Pixels(image) => {
                    let mut png = Cursor::new(Vec::new());
                    image.write_to(&mut png, ImageFormat::Png).ok()?;
                    png.into_inner()
                }
            },
        };
        let name = match stored {
            Stored::File(path) => path.file_name()?.to_string_lossy().into_owned(),
            Stored::Example(example) => example.id.rsplit('/').next()?.to_owned(),
        };
        if bytes.len() > MOST_BYTES {
            return None;
        }
        decode_within(memory, &name, &bytes).ok()?;
        let kind = image::guess_format(&bytes).ok()?.to_mime_type();
        let bytes = bytes.into();
        Some(Self { name, kind, bytes })
    }
}

/// Returns a folder's pictures by the folder that they are in.
fn in_folder(folder: &Path) -> support::Result<Vec<Vec<Stored>>> {
    let mut classes: BTreeMap<Option<PathBuf>, Vec<Stored>> = BTreeMap::new();
    for path in images_in(folder)? {
        let class = path.parent().map(Path::to_owned);
        classes.entry(class).or_default().push(Stored::File(path));
    }
    Ok(classes.into_values().collect())
}

/// Returns the validation pictures of one of [`DATASETS`] by class: those of the notebooks' split, or, where a notebook
/// took fewer pictures, others that it has not trained on.
fn validation_of(name: &str) -> support::Result<Vec<Vec<Stored>>> {
    let mut settings = Settings::from_env()?;
    settings.dataset = Some(name.into());
    let [_, validation, _] = ImageDataset::load(&settings)?.split_examples([8, 1, 1])?;
    let mut classes: BTreeMap<Option<usize>, Vec<Stored>> = BTreeMap::new();
    for example in validation {
        let class = example.label.class();
        classes
            .entry(class)
            .or_default()
            .push(Stored::Example(example));
    }
    Ok(classes.into_values().collect())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use image::RgbImage;

    use super::*;
    use crate::options::Options;

    fn read(folder: &Path) -> anyhow::Result<Vec<String>> {
        let bounds = Options::parse_from(["serve", "m", "--max-picture", "1"]).bounds;
        let examples = Examples::read(folder, &bounds)?;
        Ok(examples.names().map(str::to_owned).collect())
    }

    fn picture(folder: &Path, name: &str, side: u32) {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        RgbImage::new(side, side).save(path).unwrap();
    }

    #[test]
    fn eight_small_pictures_are_taken_from_each_class_in_turn() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a/1.png", "a/2.png", "a/3.png", "b/4.png", "c/x/7.png"] {
            picture(folder.path(), name, 8);
        }
        // 3 MB to decode, and nothing to decode.
        picture(folder.path(), "b/0.png", 1000);
        fs::write(folder.path().join("b/00.png"), "no picture").unwrap();
        let large = vec![0; MOST_BYTES + 1];
        fs::write(folder.path().join("b/000.png"), large).unwrap();
        let found = read(folder.path()).unwrap();
        assert_eq!(found, ["1.png", "4.png", "7.png", "2.png", "3.png"]);
        for number in 0..9 {
            picture(folder.path(), &format!("flat/{number}.png"), 8);
        }
        let flat = read(&folder.path().join("flat")).unwrap();
        assert_eq!(flat.len(), MOST);
        assert_eq!(flat[7], "7.png");
    }

    #[test]
    fn a_folder_that_is_not_there_or_has_no_picture_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let missing = read(&folder.path().join("missing")).unwrap_err();
        assert!(format!("{missing:#}").contains("missing"), "{missing:#}");
        fs::write(folder.path().join("a.png"), "no picture").unwrap();
        let empty = read(folder.path()).unwrap_err().to_string();
        assert!(empty.contains("expected pictures"), "{empty}");
    }
}
