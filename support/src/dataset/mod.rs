//! Where examples come from: which pictures there are, what each one shows, and which part of the
//! split it belongs to. Pictures are read when they are asked for; decoding them is not done here.

mod cats_vs_dogs;
mod cifar10;
mod split;
#[cfg(test)]
mod tests;
mod tree;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::RgbImage;

use crate::assets::Assets;
use crate::assets::archive::Zip;
use crate::settings::{BrokenPictures, DATASETS, Limit, Settings, check_dataset};
use crate::text::{listed, thousands};
use crate::{Error, Result};

pub use tree::pictures_in;

/// The most examples that a run on the CPU uses unless it is told otherwise, over all parts: ten
/// epochs of the head and ten of fine-tuning then end within ten minutes on two cores.
pub const DEFAULT_CPU_LIMIT: usize = 2000;

/// One labelled picture, not yet read. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Example {
    /// The picture's path within its dataset, with `/` between its parts: the same on every
    /// machine, and what the split is derived from.
    pub id: String,
    /// The index of its class in [`ImageDataset::classes`].
    pub label: usize,
    source: Source,
    /// Which of its dataset's examples of that id this is, the first being 0: what is random about
    /// it is random for each copy.
    pub(crate) copy: usize,
}

#[derive(Clone, Debug)]
enum Source {
    File(Arc<Path>),
    Zip {
        zip: Arc<Zip>,
        index: usize,
    },
    Cifar10 {
        pictures: Arc<cifar10::Pictures>,
        index: usize,
    },
}

/// A picture as it is stored.
#[derive(Clone, Debug)]
pub enum Raw {
    /// The bytes of an image file.
    Encoded(Vec<u8>),
    /// Pixels that need no decoding.
    Pixels(RgbImage),
}

impl Example {
    #[cfg(test)]
    pub(crate) fn at_path(id: String, label: usize, path: &Path) -> Self {
        Self {
            id,
            label,
            source: Source::File(path.into()),
            copy: 0,
        }
    }

    /// Reads the picture from its file or archive.
    ///
    /// # Errors
    /// [`Error::Io`] for a file that cannot be read, [`Error::Picture`] for a damaged entry of an
    /// archive.
    pub fn encoded_or_pixels(&self) -> Result<Raw> {
        match &self.source {
            Source::File(path) => fs::read(path)
                .map(Raw::Encoded)
                .map_err(Error::io("read", path)),
            Source::Zip { zip, index } => {
                zip.read(*index)
                    .map(Raw::Encoded)
                    .map_err(|error| Error::Picture {
                        name: self.id.clone(),
                        reason: error.to_string(),
                    })
            }
            Source::Cifar10 { pictures, index } => Ok(Raw::Pixels(pictures.get(*index))),
        }
    }
}

/// A set of labelled pictures.
#[derive(Clone, Debug)]
pub struct ImageDataset {
    name: String,
    note: String,
    classes: Vec<String>,
    examples: Examples,
    seed: u64,
    broken: BrokenPictures,
}

/// Examples in the order of [`split::rank`].
#[derive(Clone, Debug)]
enum Examples {
    /// To be cut into parts by weights.
    Whole([Vec<Example>; 1]),
    /// The set's own training, validation and test part; the last two may be empty.
    Split([Vec<Example>; 3]),
}

/// What a place that holds pictures was found to hold.
struct Found {
    classes: Vec<String>,
    examples: Examples,
}

/// Which pictures, where they are, and why these.
struct Choice {
    name: String,
    path: PathBuf,
    why: String,
}

impl ImageDataset {
    /// Finds the pictures that the settings choose, fetches them where needed, and lists them.
    ///
    /// `settings.dataset` names one of [`DATASETS`] or a folder. A folder holds one folder of
    /// pictures per class, or `train/` and `validation/` (also `val/`, `valid/`) and/or `test/`
    /// that do. Files count by their suffix (jpg, jpeg, png, gif, webp, bmp), at any depth below
    /// the class folder; hidden ones do not. Class names are sorted.
    ///
    /// Without a choice: what is already in the data folder; else `cats_vs_dogs` where there is a
    /// GPU and `cats_and_dogs_filtered` where there is none; else, where neither can be fetched,
    /// `cifar10_cats_vs_dogs`. [`ImageDataset::note`] says which it became and why.
    ///
    /// # Errors
    /// [`Error::Setting`] for an unknown name or a limit that leaves a class out, [`Error::Dataset`] for a folder that cannot serve,
    /// and the errors of [`Assets::fetch`].
    pub fn load(settings: &Settings) -> Result<Self> {
        let assets = Assets::open(&settings.data_dir)?;
        let choice = choose(settings, &assets)?;
        Self::open(settings, choice)
    }

    /// Fetches, where needed, the pictures that [`ImageDataset::load`] would load; returns where
    /// they are.
    ///
    /// # Errors
    /// Those of [`ImageDataset::load`] that concern fetching.
    pub fn fetch(settings: &Settings) -> Result<PathBuf> {
        let assets = Assets::open(&settings.data_dir)?;
        choose(settings, &assets).map(|choice| choice.path)
    }

    fn open(settings: &Settings, choice: Choice) -> Result<Self> {
        let Choice { name, path, why } = choice;
        let Found {
            classes,
            mut examples,
        } = match name.as_str() {
            "cats_vs_dogs" => cats_vs_dogs::read(&path)?,
            "cats_and_dogs_filtered" => tree::read_zip(&name, &path)?,
            "cifar10_cats_vs_dogs" => cifar10::read(&path, &["cat", "dog"])?,
            "cifar10" => cifar10::read(&path, &cifar10::CLASSES)?,
            _ => tree::read_folder(&path)?,
        };
        for part in examples.parts_mut() {
            *part = split::rank(std::mem::take(part), settings.seed);
        }
        let total = examples.len();
        let by_default = settings.dataset.is_none() && !settings.device.is_cuda();
        let limit = match settings.limit {
            Limit::Examples(limit) => limit,
            Limit::Default if by_default => DEFAULT_CPU_LIMIT,
            Limit::Default | Limit::All => total,
        };
        if limit < classes.len() {
            return Err(Error::Setting {
                name: "TRANSFER_LIMIT",
                value: limit.to_string(),
                expected: format!("at least {}, one example of each class", classes.len()),
            });
        }
        split::limit(examples.parts_mut(), classes.len(), limit);

        let mut note = format!("{}\n{why}", about(&name, total, &classes));
        if limit < total {
            let reason = match settings.limit {
                Limit::Examples(_) => "as TRANSFER_LIMIT says",
                _ => "so that a run without a GPU ends within minutes",
            };
            let (limit, total) = (thousands(limit), thousands(total));
            note += &format!(
                "\n{limit} of the {total} pictures are used, {reason}; TRANSFER_LIMIT=all lifts the \
                 limit."
            );
        }
        Ok(Self {
            name,
            note,
            classes,
            examples,
            seed: settings.seed,
            broken: settings.broken,
        })
    }

    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    pub(crate) fn broken(&self) -> BrokenPictures {
        self.broken
    }

    /// Returns the class names; a label is an index into them.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Returns the number of examples in use, over all parts.
    pub fn len(&self) -> usize {
        self.examples.len()
    }

    /// Returns whether there is no example at all, which no constructor lets happen.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns one of [`DATASETS`], or the folder's path.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns, in plain sentences on up to three lines, which pictures these are, what accuracy to expect, why these,
    /// and the limit in force.
    pub fn note(&self) -> &str {
        &self.note
    }

    /// Splits into training, validation and test examples.
    ///
    /// A set with a split of its own keeps it, whatever the weights; a part that it lacks is
    /// empty. Else each class is cut by the weights in an order derived from the seed and each
    /// example's id, so that the split is the same on every machine. In every part the examples
    /// are in that order too, classes mixed.
    ///
    /// # Errors
    /// [`Error::Argument`] where all weights are 0.
    pub fn split_examples(&self, weights: [u32; 3]) -> Result<[Vec<Example>; 3]> {
        match &self.examples {
            Examples::Whole([all]) => split::cut(all, self.classes.len(), weights),
            Examples::Split(parts) => Ok(parts.clone()),
        }
    }
}

impl Examples {
    fn parts(&self) -> &[Vec<Example>] {
        match self {
            Self::Whole(parts) => parts,
            Self::Split(parts) => parts,
        }
    }

    fn parts_mut(&mut self) -> &mut [Vec<Example>] {
        match self {
            Self::Whole(parts) => parts,
            Self::Split(parts) => parts,
        }
    }

    fn len(&self) -> usize {
        self.parts().iter().map(Vec::len).sum()
    }
}

/// The name, how many examples there are of each class, and the note.
impl fmt::Display for ImageDataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} pictures", self.name, thousands(self.len()))?;
        let parts = self.examples.parts();
        let titles = if parts.len() == 1 {
            &["all"][..]
        } else {
            &["training", "validation", "test"]
        };
        for (title, part) in titles.iter().zip(parts) {
            let counts = split::count(part, self.classes.len());
            let counts = self.classes.iter().zip(counts);
            let counts: Vec<_> = counts
                .map(|(class, count)| format!("{class} {}", thousands(count)))
                .collect();
            writeln!(f, "  {title:<10}  {}", listed(&counts))?;
        }
        write!(f, "{}", self.note)
    }
}

/// What the pictures are and what accuracy to expect of the tutorial's 10 + 10 epochs on them.
/// Source: TensorFlow's tutorial for cats_vs_dogs, own measurements for the other two.
fn about(name: &str, total: usize, classes: &[String]) -> String {
    let total = thousands(total);
    match name {
        "cats_vs_dogs" => format!(
            "{total} photos of cats and dogs, the set of the original tutorial (TFDS cats_vs_dogs). Expect a \
             validation accuracy of about .97 with the base frozen and .98 to .99 after fine-tuning."
        ),
        "cats_and_dogs_filtered" => format!(
            "{total} photos of cats and dogs, the set of today's tutorial. Expect a validation \
             accuracy of about .97 with the base frozen and .975 after fine-tuning."
        ),
        "cifar10_cats_vs_dogs" => format!(
            "{total} pictures of cats and dogs from CIFAR-10, 32x32 pixels small, where the tutorial \
             has photos. Expect a validation accuracy of .83 to .9 instead of the tutorial's .97: \
             too little is left in so small a picture."
        ),
        "cifar10" => format!("{total} pictures of 32x32 pixels in ten classes (CIFAR-10)."),
        _ => format!("{total} pictures of your own in {} classes.", classes.len()),
    }
}

/// Returns the asset that a dataset's pictures come with.
fn asset(dataset: &str) -> &str {
    match dataset {
        "cifar10_cats_vs_dogs" => "cifar10",
        dataset => dataset,
    }
}

/// Finds which pictures to use and makes sure that they are on disk.
fn choose(settings: &Settings, assets: &Assets) -> Result<Choice> {
    let choice = |name: &str, path, why: String| Choice {
        name: name.into(),
        path,
        why,
    };
    if let Some(name) = &settings.dataset {
        check_dataset(name)?;
        let path = if DATASETS.contains(&name.as_str()) {
            assets.fetch(asset(name))?
        } else {
            name.into()
        };
        return Ok(choice(name, path, "They were asked for by name.".into()));
    }
    let [full, filtered, small, _] = DATASETS;
    for name in [full, filtered, small] {
        if let Some(path) = assets.present(asset(name)) {
            let why = if name == small {
                format!(
                    "They were chosen because they are here and no photos are; where the network \
                     allows, TRANSFER_DATASET={filtered} fetches some."
                )
            } else {
                "They were chosen because they are already here.".into()
            };
            return Ok(choice(name, path, why));
        }
    }
    let (device, order) = match settings.device.is_cuda() {
        true => ("a GPU", [full, filtered, small]),
        false => ("no GPU", [filtered, full, small]),
    };
    let mut failures = Vec::new();
    for name in order {
        match assets.fetch(asset(name)) {
            Ok(path) if failures.is_empty() => {
                let why = format!("They were chosen because there is {device}.");
                return Ok(choice(name, path, why));
            }
            Ok(path) => {
                let failures = failures.join(" and ");
                let why = format!("They stand in because {failures} could not be fetched.");
                return Ok(choice(name, path, why));
            }
            // Whatever answered instead of the source: no network, or the page of some gateway in
            // the place of the file.
            Err(
                error
                @ (Error::Unreachable { .. } | Error::Mismatch { .. } | Error::Archive { .. }),
            ) => {
                let reason = reason(&error);
                println!("{name} is out of reach: {reason}");
                failures.push(format!("{name} ({reason})"));
            }
            Err(error) => return Err(error),
        }
    }
    Err(Error::Unreachable {
        asset: "any pictures".into(),
        reason: failures.join("\n"),
        help: format!(
            "either set TRANSFER_DATASET=FOLDER with pictures of your own, one folder per class; or \
             install npm (it comes with Node.js), which {small} comes through; or get one of the \
             files that data/README.md lists by other means and put it into {}",
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
