//! Where examples come from: which images there are, what each one shows, and which part of the
//! split it belongs to. Images are read when they are asked for; decoding them is not done here.

mod cats_vs_dogs;
mod cifar10;
mod label;
mod listed;
mod relabel;
mod source;
mod split;
#[cfg(test)]
mod tests;
mod tree;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::RgbImage;

use crate::assets::Assets;
use crate::assets::archive::Zip;
use crate::distributed::ProcessGroup;
use crate::files::read_image_file;
use crate::settings::{BrokenImages, Limit, Settings};
use crate::text::{listed, thousands};
use crate::{Error, Result};

pub use label::{Label, LabelNames};
pub use source::DATASETS;
use source::{Choice, choose};
pub(crate) use split::Strata;
pub use tree::images_in;

/// The most examples that a run on the CPU uses unless it is told otherwise, over all parts: ten
/// epochs of the head and ten of fine-tuning then end within ten minutes on two cores.
pub const DEFAULT_CPU_LIMIT: usize = 2000;

/// One labelled image, not yet read. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Example {
    /// The image's path within its dataset, with `/` between its parts: the same on every
    /// machine, and what the split is derived from.
    pub id: String,
    /// Its class, or classes, as indices into [`ImageDataset::classes`].
    pub label: Label,
    source: Stored,
    /// Which of its dataset's examples of that id this is, the first being 0: what is random about
    /// it is random for each copy.
    pub(crate) copy: usize,
}

#[derive(Clone, Debug)]
enum Stored {
    File(Arc<Path>),
    Memory(Arc<RgbImage>),
    Zip {
        zip: Arc<Zip>,
        index: usize,
    },
    Cifar10 {
        pictures: Arc<cifar10::Images>,
        index: usize,
    },
}

/// An image as it is stored.
#[derive(Clone, Debug)]
pub enum Raw {
    /// The bytes of an image file.
    Encoded(Vec<u8>),
    /// Pixels that need no decoding.
    Pixels(RgbImage),
}

impl Example {
    #[cfg(test)]
    pub(crate) fn at_path(id: String, label: impl Into<Label>, path: &Path) -> Self {
        Self {
            id,
            label: label.into(),
            source: Stored::File(path.into()),
            copy: 0,
        }
    }

    /// Reads the image from its file or archive.
    ///
    /// # Errors
    /// [`Error::Io`] for a file that cannot be read, [`Error::Image`] for one of more than 256 MiB
    /// or a damaged entry of an archive.
    pub fn encoded_or_pixels(&self) -> Result<Raw> {
        match &self.source {
            Stored::File(path) => read_image_file(path).map(Raw::Encoded),
            Stored::Memory(image) => Ok(Raw::Pixels(image.as_ref().clone())),
            Stored::Zip { zip, index } => {
                zip.read(*index)
                    .map(Raw::Encoded)
                    .map_err(|error| Error::Image {
                        name: self.id.clone(),
                        reason: error.to_string(),
                    })
            }
            Stored::Cifar10 { pictures, index } => Ok(Raw::Pixels(pictures.get(*index))),
        }
    }
}

/// A set of labelled images.
#[derive(Clone, Debug)]
pub struct ImageDataset {
    name: String,
    note: String,
    classes: Vec<String>,
    examples: Examples,
    seed: u64,
    broken: BrokenImages,
    data_dir: Arc<Path>,
    group: ProcessGroup,
}

/// Examples in the order of [`split::rank`].
#[derive(Clone, Debug)]
enum Examples {
    /// To be cut into parts by weights.
    Whole([Vec<Example>; 1]),
    /// The set's own training, validation and test part; the last two may be empty.
    Split([Vec<Example>; 3]),
}

/// What a place that holds images was found to hold.
struct Found {
    classes: Vec<String>,
    examples: Examples,
}

impl ImageDataset {
    /// Finds the images that the settings choose, fetches them where needed, and lists them.
    ///
    /// `settings.dataset` names one of [`DATASETS`], a folder, or a CSV file, which is read as by
    /// [`from_csv`](Self::from_csv). A folder holds one folder of images per class, or `train/` and
    /// `validation/` (also called `val/` or `valid/`) and/or `test/` that do. Files count by their suffix
    /// (jpg, jpeg, png, gif, webp, bmp), at any depth below the class folder; hidden ones do not, and
    /// neither does what is no regular file. Symbolic links are followed, but not to a folder above
    /// themselves. Class names are sorted.
    ///
    /// Without a choice: what is already in the data folder; else `cats_vs_dogs` where there is a
    /// GPU and `cats_and_dogs_filtered` where there is none; else, where neither can be fetched,
    /// `cifar10_cats_vs_dogs`. [`ImageDataset::note`] says which it became and why.
    ///
    /// # Errors
    /// [`Error::Setting`] for an unknown name or a limit that leaves a class out, [`Error::Dataset`] for a
    /// folder or list that cannot serve, and the errors of [`Assets::fetch`].
    pub fn load(settings: &Settings) -> Result<Self> {
        settings.group.together(|| {
            let assets = Assets::open(&settings.data_dir)?;
            let choice = choose(settings, &assets)?;
            Self::open(settings, choice)
        })
    }

    /// Fetches, where needed, the images that [`ImageDataset::load`] would load; returns where
    /// they are.
    ///
    /// # Errors
    /// Those of [`ImageDataset::load`] that concern fetching.
    pub fn fetch(settings: &Settings) -> Result<PathBuf> {
        let assets = Assets::open(&settings.data_dir)?;
        choose(settings, &assets).map(|choice| choice.path)
    }

    fn open(settings: &Settings, choice: Choice) -> Result<Self> {
        let found = choice.read()?;
        let note = format!("{}\n{}", choice.about(&found), choice.why);
        let limited = settings.dataset.is_none() && !settings.device.is_cuda();
        let default_limit = limited.then_some(DEFAULT_CPU_LIMIT);
        Self::of(found, choice.name(), note, default_limit, settings)
    }

    /// Makes a dataset of what was found, of which at most `default_limit` examples are used if the
    /// settings leave it open.
    fn of(
        found: Found,
        name: String,
        mut note: String,
        default_limit: Option<usize>,
        settings: &Settings,
    ) -> Result<Self> {
        let Found {
            classes,
            mut examples,
        } = found;
        for part in examples.parts_mut() {
            *part = split::rank(std::mem::take(part), settings.seed);
        }
        let total = examples.len();
        let limit = match settings.limit {
            Limit::Examples(limit) => limit,
            Limit::Default => default_limit.unwrap_or(total),
            Limit::All => total,
        };
        if limit < classes.len() {
            return Err(Error::Setting {
                name: "TRANSFER_LIMIT",
                value: limit.to_string(),
                expected: format!("at least {}, one example of each class", classes.len()),
            });
        }
        split::limit(examples.parts_mut(), classes.len(), limit);
        if limit < total {
            let reason = match settings.limit {
                Limit::Examples(_) => "as TRANSFER_LIMIT says",
                _ => "so that a run without a GPU ends within minutes",
            };
            let (limit, total) = (thousands(limit), thousands(total));
            note += &format!(
                "\n{limit} of the {total} images are used, {reason}; TRANSFER_LIMIT=all lifts the \
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
            data_dir: settings.data_dir.as_path().into(),
            group: settings.group.clone(),
        })
    }

    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    pub(crate) fn broken(&self) -> BrokenImages {
        self.broken
    }

    pub(crate) fn data_dir(&self) -> &Arc<Path> {
        &self.data_dir
    }

    pub(crate) fn group(&self) -> &ProcessGroup {
        &self.group
    }

    /// Returns the class names; a label is an index into them, or several.
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

    /// Returns one of [`DATASETS`], or the path of the folder or CSV file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns, in plain sentences on up to three lines, which images these are, what accuracy to expect, why these,
    /// and the limit in force.
    pub fn note(&self) -> &str {
        &self.note
    }

    /// Splits into training, validation and test examples.
    ///
    /// A set with a split of its own keeps it, whatever the weights; a part that it lacks is
    /// empty. Else each class is cut by the weights in an order derived from the seed and each
    /// example's id, so that the split is the same on every machine. An image of several classes is cut
    /// with those of its rarest one. In every part the examples are in that order too, classes mixed.
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

impl Found {
    /// Says what a user's own images are.
    fn about(&self) -> String {
        let (pictures, classes) = (thousands(self.examples.len()), self.classes.len());
        let mut examples = self.examples.parts().iter().flatten();
        let each = match examples.any(|example| example.label.is_multi_label()) {
            true => ", each in any number of them",
            false => "",
        };
        format!("{pictures} images of your own in {classes} classes{each}.")
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
        writeln!(f, "{}: {} images", self.name, thousands(self.len()))?;
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
