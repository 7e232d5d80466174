//! Which images a run uses: a set that is known by name, a folder or a CSV file. The settings choose;
//! else what is at hand, or what can be fetched.

use std::path::{Path, PathBuf};

use super::{Found, cats_vs_dogs, cifar10, listed, tree};
use crate::assets::Assets;
use crate::settings::Settings;
use crate::text::thousands;
use crate::{Error, Result};

/// A set that is known by name.
pub(super) struct Known {
    pub(super) name: &'static str,
    /// The asset that its images come with.
    asset: &'static str,
    read: fn(&Path) -> Result<Found>,
    /// What the images are and what accuracy to expect of the tutorial's 10 + 10 epochs on them.
    /// Source: TensorFlow's tutorial for cats_vs_dogs, own measurements for the others.
    about: &'static str,
}

/// The original tutorial's set.
pub(super) const FULL: Known = Known {
    name: "cats_vs_dogs",
    asset: "cats_vs_dogs",
    read: cats_vs_dogs::read,
    about: "photos of cats and dogs, the set of the original tutorial (TFDS cats_vs_dogs). Expect a \
            validation accuracy of about .97 with the base frozen and .98 to .99 after fine-tuning.",
};

/// Today's tutorial's set.
pub(super) const FILTERED: Known = Known {
    name: "cats_and_dogs_filtered",
    asset: "cats_and_dogs_filtered",
    read: |path| tree::read_zip(FILTERED.name, path),
    about: "photos of cats and dogs, the set of today's tutorial. Expect a validation accuracy of \
            about .97 with the base frozen and .975 after fine-tuning.",
};

/// What comes through a package registry, for a machine that reaches nothing else.
pub(super) const SMALL: Known = Known {
    name: "cifar10_cats_vs_dogs",
    asset: "cifar10",
    read: |path| cifar10::read(path, &["cat", "dog"]),
    about: "images of cats and dogs from CIFAR-10, 32x32 pixels small, where the tutorial has \
            photos. Expect a validation accuracy of .83 to .9 instead of the tutorial's .97: too \
            little is left in so small an image.",
};

const CIFAR10: Known = Known {
    name: "cifar10",
    asset: "cifar10",
    read: |path| cifar10::read(path, &cifar10::CLASSES),
    about: "images of 32x32 pixels in ten classes (CIFAR-10).",
};

const KNOWN: [&Known; 4] = [&FULL, &FILTERED, &SMALL, &CIFAR10];

/// The names that `TRANSFER_DATASET` takes besides a folder and a CSV file: cats and dogs, best first,
/// then another set.
pub const DATASETS: [&str; 4] = [FULL.name, FILTERED.name, SMALL.name, CIFAR10.name];

/// What kind of place holds the images.
pub(super) enum Source {
    Known(&'static Known),
    Folder,
    Csv,
}

/// Which images, where they are, and why these.
pub(super) struct Choice {
    pub(super) source: Source,
    pub(super) path: PathBuf,
    pub(super) why: String,
}

impl Source {
    /// Accepts one of [`DATASETS`] and whatever can be a folder or a CSV file: a typing error in a name
    /// should not end in a search for a folder of that name.
    fn named(name: &str) -> Result<Self> {
        if let Some(known) = KNOWN.into_iter().find(|known| known.name == name) {
            return Ok(Self::Known(known));
        }
        let path = Path::new(name);
        let suffix = path.extension().unwrap_or_default();
        if path.is_dir() {
            Ok(Self::Folder)
        } else if suffix.eq_ignore_ascii_case("csv") {
            Ok(Self::Csv)
        } else if name.contains('/') {
            Ok(Self::Folder)
        } else {
            Err(Error::Setting {
                name: "TRANSFER_DATASET",
                value: name.into(),
                expected: format!(
                    "{}, a folder (with a / in its path), or a file that ends in .csv",
                    DATASETS.join(", ")
                ),
            })
        }
    }
}

impl Choice {
    /// Returns one of [`DATASETS`], or the path.
    pub(super) fn name(&self) -> String {
        match self.source {
            Source::Known(known) => known.name.into(),
            Source::Folder | Source::Csv => self.path.display().to_string(),
        }
    }

    /// Lists the images.
    pub(super) fn read(&self) -> Result<Found> {
        match self.source {
            Source::Known(known) => (known.read)(&self.path),
            Source::Folder => tree::read_folder(&self.path),
            Source::Csv => listed::read_csv(&self.path),
        }
    }

    /// Says what the images are.
    pub(super) fn about(&self, found: &Found) -> String {
        match self.source {
            Source::Known(known) => {
                format!("{} {}", thousands(found.examples.len()), known.about)
            }
            Source::Folder | Source::Csv => found.about(),
        }
    }
}

/// Finds which images to use and makes sure that they are on disk.
pub(super) fn choose(settings: &Settings, assets: &Assets) -> Result<Choice> {
    if let Some(name) = &settings.dataset {
        let source = Source::named(name)?;
        let path = match source {
            Source::Known(known) => assets.fetch(known.asset)?,
            Source::Folder | Source::Csv => name.into(),
        };
        let why = "They were asked for by name.".into();
        return Ok(Choice { source, path, why });
    }
    let choice = |known, path, why| Choice {
        source: Source::Known(known),
        path,
        why,
    };
    for known in [&FULL, &FILTERED] {
        if let Some(path) = assets.present(known.asset) {
            let why = "They were chosen because they are already here.".into();
            return Ok(choice(known, path, why));
        }
    }
    if let Some(path) = assets.present(SMALL.asset) {
        let why = format!(
            "They were chosen because they are here and no photos are; where the network allows, \
             TRANSFER_DATASET={} fetches some.",
            FILTERED.name
        );
        return Ok(choice(&SMALL, path, why));
    }
    let (device, order) = match settings.device.is_cuda() {
        true => ("a GPU", [&FULL, &FILTERED, &SMALL]),
        false => ("no GPU", [&FILTERED, &FULL, &SMALL]),
    };
    let mut failures = Vec::new();
    for known in order {
        match assets.fetch(known.asset) {
            Ok(path) if failures.is_empty() => {
                let why = format!("They were chosen because there is {device}.");
                return Ok(choice(known, path, why));
            }
            Ok(path) => {
                let failures = failures.join(" and ");
                let why = format!("They stand in because {failures} could not be fetched.");
                return Ok(choice(known, path, why));
            }
            // Whatever answered instead of the source: no network, or the page of some gateway in
            // the place of the file.
            Err(
                error
                @ (Error::Unreachable { .. } | Error::Mismatch { .. } | Error::Archive { .. }),
            ) => {
                let (name, reason) = (known.name, reason(&error));
                println!("{name} is out of reach: {reason}");
                failures.push(format!("{name} ({reason})"));
            }
            Err(error) => return Err(error),
        }
    }
    Err(Error::Unreachable {
        asset: "any images".into(),
        reason: failures.join("\n"),
        help: format!(
            "either set TRANSFER_DATASET=FOLDER with images of your own, one folder per class; or \
             install npm (it comes with Node.js), which {} comes through; or get one of the \
             files that data/README.md lists by other means and put it into {}",
            SMALL.name,
            settings.data_dir.display()
        ),
    })
}

/// The cause of a failed fetch in one line, without advice and address.
fn reason(error: &Error) -> String {
    let text = match error {
        Error::Unreachable { reason, .. } => reason.clone(),
        error => error.to_string(),
    };
    let words = text.split_whitespace();
    let words: Vec<_> = words.filter(|word| !word.starts_with("http")).collect();
    words.join(" ")
}
