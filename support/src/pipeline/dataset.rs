//! Lazy datasets: which examples, and what is to be made of each image.
//!
//! Nothing is read before something is taken from a dataset; `batches` does so on threads.

use std::any::Any;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::env;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use image::RgbImage;

use super::{Augmentation, Batches, Pixels, Sampler, decode};
use crate::dataset::{Example, ImageDataset, Label, Raw};
use crate::distributed::ProcessGroup;
use crate::settings::BrokenImages;
use crate::text::{listed, thousands};
use crate::{Error, Result};

/// Labelled images, each made into a `T` when it is asked for.
///
/// A clone, and whatever `map`, `augment`, `take`, `skip`, `shuffle` or `batch` makes of a dataset, shares
/// the examples with it, and the list of images that could not be read.
pub struct Dataset<T> {
    examples: Arc<[Example]>,
    classes: Arc<[String]>,
    map: Arc<dyn Fn(RgbImage) -> T + Send + Sync>,
    augmentation: Option<Arc<Augmentation>>,
    seed: u64,
    shuffle_buffer: usize,
    sampler: Option<Sampler>,
    broken: BrokenImages,
    skipped: SkippedList,
    data_dir: Arc<Path>,
    group: ProcessGroup,
}

/// An image that was left out because it could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The example's id.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Skipped {
    pub(crate) fn new(name: &str, error: &Error) -> Self {
        let reason = match error {
            Error::Image { reason, .. } => reason.clone(),
            other => other.to_string(),
        };
        let name = name.to_owned();
        Self { name, reason }
    }
}

/// Lists the first ten of the images that were skipped, a line each, and says how many more there are.
///
/// ```
/// # use support::pipeline::{Skipped, SkippedSummary};
/// let skipped = |n: usize| Skipped { name: format!("{n}.jpg"), reason: "the file is empty".into() };
/// let skipped: Vec<Skipped> = (0..5000).map(skipped).collect();
/// let text = SkippedSummary(&skipped).to_string();
/// assert!(text.starts_with("  0.jpg: the file is empty\n  1.jpg: the file is empty\n"));
/// assert!(text.ends_with("\n  9.jpg: the file is empty\n  … and 4,990 more"));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct SkippedSummary<'a>(pub &'a [Skipped]);

impl fmt::Display for SkippedSummary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 10;
        let line = |Skipped { name, reason }: &Skipped| format!("  {name}: {reason}");
        let mut lines: Vec<String> = self.0.iter().take(SHOWN).map(line).collect();
        if let more @ 1.. = self.0.len().saturating_sub(SHOWN) {
            lines.push(format!("  … and {} more", thousands(more)));
        }
        f.write_str(&lines.join("\n"))
    }
}

impl Dataset<RgbImage> {
    /// Makes a dataset of `examples`, whose labels are indices into `classes` and all of one kind. One that is there
    /// several times counts as often, and every copy is augmented by itself.
    ///
    /// `seed` decides the order after [`Dataset::shuffle`], `broken` what becomes of an image
    /// that cannot be read. Each process has all of it to itself, unless [`Dataset::among`] says otherwise.
    pub fn new(
        mut examples: Vec<Example>,
        classes: Vec<String>,
        seed: u64,
        broken: BrokenImages,
    ) -> Self {
        let mut copies: HashMap<&str, usize> = HashMap::with_capacity(examples.len());
        for Example { id, copy, .. } in &mut examples {
            let copies = copies.entry(id).or_default();
            *copy = *copies;
            *copies += 1;
        }
        Self {
            examples: examples.into(),
            classes: classes.into(),
            map: Arc::new(|image| image),
            augmentation: None,
            seed,
            shuffle_buffer: 1,
            sampler: None,
            broken,
            skipped: SkippedList::default(),
            data_dir: env::temp_dir().into(),
            group: ProcessGroup::default(),
        }
    }

    /// Returns a dataset of what `f` makes of each image, on the thread that needs it.
    pub fn map<U>(&self, f: impl Fn(&RgbImage) -> U + Send + Sync + 'static) -> Dataset<U> {
        let before = self.map.clone();
        Dataset {
            examples: self.examples.clone(),
            classes: self.classes.clone(),
            map: Arc::new(move |image| f(&before(image))),
            augmentation: self.augmentation.clone(),
            seed: self.seed,
            shuffle_buffer: self.shuffle_buffer,
            sampler: self.sampler.clone(),
            broken: self.broken,
            skipped: self.skipped.clone(),
            data_dir: self.data_dir.clone(),
            group: self.group.clone(),
        }
    }
}

impl Dataset<Pixels> {
    /// Returns a dataset whose batches change the images at random, in each epoch otherwise, for
    /// training; an augmentation given before is replaced. `evaluate` and `fit`'s validation take
    /// the images as they are.
    ///
    /// # Errors
    /// [`Error::Argument`] for an argument of the augmentation that is negative, not a number or
    /// too large.
    pub fn augment(&self, augmentation: Augmentation) -> Result<Self> {
        augmentation.check()?;
        Ok(Self {
            augmentation: (!augmentation.is_empty()).then(|| augmentation.into()),
            ..self.clone()
        })
    }

    pub(super) fn augmentation(&self) -> Option<&Augmentation> {
        self.augmentation.as_deref()
    }

    /// Returns whether the images change from epoch to epoch.
    pub fn is_augmented(&self) -> bool {
        self.augmentation.is_some()
    }

    /// Returns whether the images of a batch are mixed with each other.
    pub(crate) fn is_mixed(&self) -> bool {
        self.augmentation().is_some_and(Augmentation::is_mixing)
    }

    /// Returns a dataset of the images as `map` makes them, each once.
    pub(super) fn unaugmented(&self) -> Self {
        Self {
            augmentation: None,
            ..self.sampled(None)
        }
    }

    /// Returns a dataset whose examples are drawn so, or come each once.
    pub(super) fn sampled(&self, sampler: Option<Sampler>) -> Self {
        Self {
            sampler,
            ..self.clone()
        }
    }

    pub(super) fn sampler(&self) -> Option<&Sampler> {
        self.sampler.as_ref()
    }

    /// Makes an example's pixels as they are in an epoch in which it was drawn so many times before; `None` if
    /// its image was skipped.
    pub(crate) fn load_drawn(
        &self,
        example: &Example,
        before: usize,
        epoch: usize,
    ) -> Result<Option<Pixels>> {
        let Some(augmentation) = &self.augmentation else {
            return self.load(example);
        };
        let Some(image) = self.read(example)? else {
            return Ok(None);
        };
        let format = |image| self.format(&example.id, image);
        let pixels = augmentation.apply(image, format, self.seed, &key(example, before), epoch);
        pixels.map(Some)
    }

    /// Returns a dataset whose batches are in another order in each epoch.
    ///
    /// The order is that of `tf.data`'s `shuffle(buffer_size)`: each next example is drawn from
    /// the `buffer_size` next ones, so that a buffer of the dataset's size or more mixes fully,
    /// and one of 0 or 1 not at all. It depends on the dataset's seed and the epoch only.
    pub fn shuffle(&self, buffer_size: usize) -> Self {
        Self {
            shuffle_buffer: buffer_size,
            ..self.clone()
        }
    }

    /// Returns the dataset in batches of `size` images; 0 is taken for 1.
    pub fn batch(&self, size: usize) -> Batches {
        Batches::new(self.clone(), size.max(1))
    }
}

impl<T> Dataset<T> {
    /// Returns the number of examples, unreadable ones included.
    pub fn len(&self) -> usize {
        self.examples.len()
    }

    /// Returns whether there is no example.
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    /// Returns a dataset of the first `count` examples, in the order before any shuffling.
    pub fn take(&self, count: usize) -> Self {
        self.only(0..count.min(self.len()))
    }

    /// Returns a dataset without the first `count` examples, in the order before any shuffling.
    pub fn skip(&self, count: usize) -> Self {
        self.only(count.min(self.len())..self.len())
    }

    /// Returns a dataset of the examples at these indices, in this order before any shuffling.
    pub(super) fn only(&self, indices: impl Iterator<Item = usize> + Clone) -> Self {
        let indices = indices.filter(|&index| index < self.len());
        let sampler = self.sampler.as_ref();
        Self {
            examples: indices
                .clone()
                .map(|index| self.examples[index].clone())
                .collect(),
            sampler: sampler.map(|sampler| sampler.only(indices)),
            ..self.clone()
        }
    }

    /// Checks that every label has a class, and all are of one kind.
    pub(crate) fn check_labels(&self, name: &'static str) -> Result<()> {
        let classes = self.classes.len();
        let refused = |expected: String, Example { id, label, .. }: &Example| {
            let got = format!("{label} for {id}");
            Err(Error::Argument {
                name,
                expected,
                got,
            })
        };
        let mut examples = self.examples.iter();
        let unknown = |example: &&Example| example.label.classes().any(|class| class >= classes);
        if let Some(example) = examples.clone().find(unknown) {
            let expected = format!("labels that are indices of {classes} classes");
            return refused(expected, example);
        }
        let multi_label = self.is_multi_label();
        match examples.find(|example| example.label.is_multi_label() != multi_label) {
            Some(example) => refused("labels of one kind".into(), example),
            None => Ok(()),
        }
    }

    /// Returns whether the examples are of any number of classes each: several labels per image.
    pub fn is_multi_label(&self) -> bool {
        let first = self.examples.first();
        first.is_some_and(|example| example.label.is_multi_label())
    }

    /// Returns the names of the classes, which labels are indices into.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Returns the examples, in the order before any shuffling.
    pub fn examples(&self) -> &[Example] {
        &self.examples
    }

    /// Iterates over the images, in the order before any shuffling, each with its label, as `map`
    /// makes them: not augmented.
    ///
    /// An image that cannot be read is left out and noted, or is an [`Error::Image`], as the
    /// settings say.
    pub fn iter(&self) -> impl Iterator<Item = Result<(T, Label)>> + '_ {
        self.examples.iter().filter_map(|example| {
            self.load(example)
                .map(|made| made.map(|made| (made, example.label.clone())))
                .transpose()
        })
    }

    /// Returns the examples whose images could not be read so far, each once, by name.
    pub fn skipped(&self) -> Vec<Skipped> {
        self.skipped.list()
    }

    /// Lets every process know which images the others could not read.
    pub(super) fn share_skipped(&self) -> Result<()> {
        if self.group.size() == 1 {
            return Ok(());
        }
        let own: Vec<_> = self.skipped.lock().clone().into_iter().collect();
        let no_json =
            |error: serde_json::Error| self.group.mismatch("skipped images", error.to_string());
        let own = serde_json::to_string(&own).map_err(no_json)?;
        for text in self.group.gather_texts(&own)? {
            let theirs: Vec<((String, usize), String)> =
                serde_json::from_str(&text).map_err(no_json)?;
            self.skipped.lock().extend(theirs);
        }
        Ok(())
    }

    pub(super) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Returns a dataset that the ranks of a group share out between them, as those of an [`ImageDataset`]
    /// do with the settings' group.
    #[must_use]
    pub fn among(&self, group: &ProcessGroup) -> Self {
        Self {
            group: group.clone(),
            ..self.clone()
        }
    }

    /// Returns the processes that share the examples out.
    pub(super) fn group(&self) -> &ProcessGroup {
        &self.group
    }

    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    pub(super) fn shuffle_buffer(&self) -> usize {
        self.shuffle_buffer
    }

    /// Makes what `map` makes of an example's image; `None` if it was skipped.
    ///
    /// A panic in the function given to `map` is that function's error, whatever the settings say
    /// about broken images.
    pub(super) fn load(&self, example: &Example) -> Result<Option<T>> {
        let image = self.read(example)?;
        image
            .map(|image| self.format(&example.id, image))
            .transpose()
    }

    /// Reads an example's image; `None` if it was skipped.
    fn read(&self, example: &Example) -> Result<Option<RgbImage>> {
        match (read(example, |_| ()), self.broken) {
            (Ok(image), _) => Ok(Some(image)),
            (Err(error), BrokenImages::Skip) => {
                self.skipped.add(example, &error);
                Ok(None)
            }
            (Err(error), BrokenImages::Stop) => Err(error),
        }
    }

    /// Makes what `map` makes of an image.
    pub(super) fn format(&self, name: &str, picture: RgbImage) -> Result<T> {
        catching(|| (self.map)(picture)).map_err(|panic| Error::Image {
            name: name.to_owned(),
            reason: format!("the function given to `map` panicked: {panic}"),
        })
    }
}

// Not derived: that would ask for `T: Clone`.
impl<T> Clone for Dataset<T> {
    fn clone(&self) -> Self {
        Self {
            examples: self.examples.clone(),
            classes: self.classes.clone(),
            map: self.map.clone(),
            augmentation: self.augmentation.clone(),
            seed: self.seed,
            shuffle_buffer: self.shuffle_buffer,
            sampler: self.sampler.clone(),
            broken: self.broken,
            skipped: self.skipped.clone(),
            data_dir: self.data_dir.clone(),
            group: self.group.clone(),
        }
    }
}

impl<T> fmt::Debug for Dataset<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Dataset of {} examples of {}",
            self.len(),
            listed(&self.classes)
        )
    }
}

impl ImageDataset {
    /// Splits the dataset in three by `weights`, as [`ImageDataset::split_examples`] does.
    ///
    /// # Errors
    /// Those of [`ImageDataset::split_examples`].
    pub fn split(&self, weights: [u32; 3]) -> Result<[Dataset<RgbImage>; 3]> {
        let parts = self.split_examples(weights)?;
        Ok(parts.map(|examples| {
            let classes = self.classes().to_vec();
            Dataset {
                data_dir: self.data_dir().clone(),
                group: self.group().clone(),
                ..Dataset::new(examples, classes, self.seed(), self.broken())
            }
        }))
    }
}

/// What an example's augmentation is derived from, besides seed and epoch: the id, which gives the
/// same images in whatever order or choice of examples, of further copies which one it is, and where it
/// was drawn `before` in the epoch, how often.
fn key(example: &Example, before: usize) -> Cow<'_, str> {
    let id = &example.id;
    match (example.copy, before) {
        (0, 0) => Cow::Borrowed(id),
        (copy, 0) => Cow::Owned(format!("{id}\0{copy}")),
        (copy, before) => Cow::Owned(format!("{id}\0{copy}\0{before}")),
    }
}

/// The unreadable images of a dataset and of all that was derived from it: reasons by id and copy.
#[derive(Clone, Default)]
struct SkippedList(Arc<Mutex<BTreeMap<(String, usize), String>>>);

impl SkippedList {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, usize), String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, example: &Example, error: &Error) {
        let Skipped { name, reason } = Skipped::new(&example.id, error);
        let mut reasons = self.lock();
        reasons.entry((name, example.copy)).or_insert(reason);
    }

    fn list(&self) -> Vec<Skipped> {
        let reasons = self.lock();
        let skipped = |((name, _), reason): (&(String, usize), &String)| Skipped {
            name: name.clone(),
            reason: reason.clone(),
        };
        reasons.iter().map(skipped).collect()
    }
}

/// Reads an example's image, showing `look` how it is stored.
pub(crate) fn read(example: &Example, look: impl FnOnce(&Raw)) -> Result<RgbImage> {
    readable(&example.id, || {
        let raw = example.encoded_or_pixels()?;
        look(&raw);
        match raw {
            Raw::Encoded(bytes) => decode(&example.id, &bytes),
            Raw::Pixels(image) => Ok(image),
        }
    })
}

/// Calls what reads an image; a decoder that panics found a broken one.
pub(crate) fn readable(name: &str, read: impl FnOnce() -> Result<RgbImage>) -> Result<RgbImage> {
    catching(read).unwrap_or_else(|panic| {
        Err(Error::Image {
            name: name.to_owned(),
            reason: format!("the decoder panicked: {panic}"),
        })
    })
}

/// Calls `f`; a panic becomes its message.
fn catching<T>(f: impl FnOnce() -> T) -> std::result::Result<T, String> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|panic: Box<dyn Any + Send>| {
        let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
        text.or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "without a message".to_owned())
    })
}
