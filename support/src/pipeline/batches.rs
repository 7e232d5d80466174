//! Batches of tensors, made on worker threads ahead of their use.
//!
//! The order of the images, and how they are augmented, depends on the seed and the epoch, never
//! on the threads.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use image::RgbImage;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use tch::{Device, Kind, Tensor};

use super::mixing::{self, Mixed};
use super::sampler::{Sampler, repeats};
use super::{Augmentation, Dataset, Pixels, Skipped};
use crate::assets::hash_all;
use crate::dataset::Label;
use crate::distributed::ProcessGroup;
use crate::text::listed;
use crate::{Error, Result};

/// How many batches may lie ready, or be in the making, before they are asked for.
const BATCHES_AHEAD: usize = 2;

/// A dataset in batches, to be iterated over once per epoch.
///
/// Where several processes train together, the examples are dealt out to as many shards, one after the
/// other, and every batch takes an equal part of each; [`sharded`](Self::sharded) has the details.
#[derive(Clone)]
pub struct Batches {
    dataset: Dataset<Pixels>,
    size: usize,
    /// Into how many shards the examples are dealt out.
    shards: usize,
    /// Of which of them the batches are.
    own: Range<usize>,
}

/// Some images, with their labels.
#[derive(Debug)]
pub struct Batch {
    /// The images, `[batch, 3, height, width]`, 32-bit floats on the CPU, channels last in
    /// memory.
    pub images: Tensor,
    /// The classes on the CPU: `[batch]`, 64-bit integers, or where there are several labels per image
    /// `[batch, classes]`, 32-bit floats, 1 for the classes that an image is of and 0 for the others. Of an
    /// image that another one was mixed into, those of the one with the larger share.
    pub labels: Tensor,
    /// The other classes of images that were [mixed](super::Augmentation::mix_up).
    pub mixed: Option<Mixed>,
    /// Which examples these are: indices into [`Dataset::examples`] of [`Batches::dataset`].
    pub indices: Vec<usize>,
    /// How many of the images are of which shard.
    pub(crate) parts: Parts,
}

/// Shards that have a part in a batch, and of how many examples, in the batch's order.
pub(crate) type Parts = Vec<(usize, i64)>;

impl Batches {
    pub(super) fn new(dataset: Dataset<Pixels>, size: usize) -> Self {
        let shards = dataset.group().size();
        Self {
            dataset,
            size,
            shards,
            own: 0..shards,
        }
    }

    /// Returns the same batches of another dataset.
    fn of(&self, dataset: Dataset<Pixels>) -> Self {
        Self {
            dataset,
            ..self.clone()
        }
    }

    /// Returns the same examples in the batches that so many processes train on together, for any number
    /// of processes, also one; by default as many as there are.
    ///
    /// Of `n` shards, shard `i` has the examples `i`, `i + n`, `i + 2n` and so on, shuffled by
    /// itself. Every batch takes its `n`th part of each, as long as a shard lasts, one shard after the
    /// other. A process works on the shards of an equal part: what a training comes to does not depend,
    /// up to rounding, on how many processes there are, as long as `n` is the same. It has to be a
    /// multiple of their number, and no more than a batch has images.
    #[must_use]
    pub fn sharded(&self, n: usize) -> Self {
        let n = n.max(1);
        Self {
            shards: n,
            own: 0..n,
            ..self.clone()
        }
    }

    /// Returns the number of shards.
    pub(crate) fn shards(&self) -> usize {
        self.shards
    }

    /// Returns the processes that share the examples out.
    pub(crate) fn group(&self) -> &ProcessGroup {
        self.dataset.group()
    }

    /// Returns this process' share: the parts of the batches that are of its shards.
    ///
    /// # Errors
    /// `Argument` when the shards cannot be dealt out.
    pub(crate) fn share(&self, name: &'static str) -> Result<Self> {
        let (shards, ranks) = (self.shards, self.group().size());
        let refused = |expected: String, got: usize| {
            let got = got.to_string();
            Err(Error::Argument {
                name,
                expected,
                got,
            })
        };
        if !shards.is_multiple_of(ranks) {
            let expected = "a number of shards that is a multiple of";
            return refused(
                format!("{expected} {ranks}, the number of processes"),
                shards,
            );
        }
        if shards > self.size {
            let least = format!("batches of at least {shards} images");
            let expected = format!("{least}, one for each shard or process");
            return refused(expected, self.size);
        }
        let own = shards / ranks;
        let first = own * self.group().rank();
        Ok(Self {
            own: first..first + own,
            ..self.clone()
        })
    }

    /// Returns how many of a batch's images are of a shard: one where there are more shards than images.
    fn part(&self, shard: usize) -> usize {
        let before = |shard| self.size * shard / self.shards;
        (before(shard + 1) - before(shard)).max(1)
    }

    /// Returns how many examples a shard has.
    fn shard_len(&self, shard: usize) -> usize {
        (self.dataset.len() + self.shards - 1 - shard) / self.shards
    }

    /// Returns how many examples of a shard are in an epoch.
    fn shard_draws(&self, shard: usize) -> usize {
        let sampler = self.dataset.sampler();
        let sampled = sampler.map(|sampler| sampler.draws_of(shard, self.shards));
        sampled.unwrap_or_else(|| self.shard_len(shard))
    }

    /// Returns the dataset that the batches are of.
    pub fn dataset(&self) -> &Dataset<Pixels> {
        &self.dataset
    }

    /// Returns the number of batches in an epoch, if every image can be read. The last may be
    /// smaller than the others.
    pub fn len(&self) -> usize {
        let steps = |shard| self.shard_draws(shard).div_ceil(self.part(shard));
        (0..self.shards).map(steps).max().unwrap_or(0)
    }

    /// Returns the first `count` batches, in the order before any shuffling.
    pub fn take(&self, count: usize) -> Self {
        let examples = count.saturating_mul(self.size);
        self.of(self.dataset.take(examples))
    }

    /// Returns whether there is no example.
    pub fn is_empty(&self) -> bool {
        self.dataset.is_empty()
    }

    /// Checks that every label has a class.
    pub(crate) fn check_labels(&self, name: &'static str) -> Result<()> {
        self.dataset.check_labels(name)
    }

    /// Returns the number of examples, unreadable ones included.
    pub fn examples(&self) -> usize {
        self.dataset.len()
    }

    /// Returns how many of them are of the shards that these batches are of.
    pub(crate) fn own_examples(&self) -> usize {
        self.own.clone().map(|shard| self.shard_len(shard)).sum()
    }

    /// Returns the names of the classes, which labels are indices into.
    pub fn classes(&self) -> &[String] {
        self.dataset.classes()
    }

    /// Returns the first batch of the first epoch: images `[batch, 3, height, width]` and
    /// labels `[batch]`, or `[batch, classes]` where there are several per image.
    ///
    /// # Errors
    /// Those of [`BatchIter`], and [`Error::Dataset`] if there is no example.
    pub fn first(&self) -> Result<(Tensor, Tensor)> {
        match self.epoch(0).next() {
            Some(batch) => batch.map(|batch| (batch.images, batch.labels)),
            None => Err(self.error("it has no examples".to_owned())),
        }
    }

    /// Makes the first image of an epoch; `None` if there is none.
    pub(crate) fn first_pixels(&self, epoch: usize) -> Result<Option<Pixels>> {
        let mut batches = self.epoch(epoch);
        let (mut pictures, parts) = BatchIter::collect(&mut batches)?;
        batches.mix(&mut pictures, &parts);
        Ok(pictures.into_iter().next().map(|first| first.pixels))
    }

    /// Starts an epoch: worker threads, one per core, begin with its first images.
    ///
    /// The order of the examples, and how their images are augmented, depends on the dataset's
    /// seed and on `epoch` only.
    pub fn epoch(&self, epoch: usize) -> BatchIter {
        let threads = threads() / self.group().local_size();
        self.epoch_on(threads.max(1), epoch)
    }

    /// Starts an epoch on at most so many threads.
    pub(super) fn epoch_on(&self, threads: usize, epoch: usize) -> BatchIter {
        let threads = threads.div_ceil(self.own.len().max(1));
        let start = |(shard, order): (usize, Vec<usize>)| {
            let dataset = self.dataset.clone();
            let repeats = dataset.sampler().map(|_| repeats(&order));
            let places = (0..order.len()).collect();
            let load = move |place: usize| {
                let before = repeats.as_ref().map_or(0, |repeats| repeats[place]);
                load(&dataset, order[place], before, epoch)
            };
            let ahead = self.part(shard).saturating_mul(BATCHES_AHEAD);
            (shard, Workers::start(load, places, threads, ahead))
        };
        BatchIter {
            workers: self.order(epoch).into_iter().map(start).collect(),
            batches: self.clone(),
            epoch,
            batch: 0,
            any: false,
        }
    }

    /// Returns each shard's examples in an epoch's order, as indices into those of the dataset: where they
    /// are drawn, some several times.
    pub(crate) fn order(&self, epoch: usize) -> Vec<(usize, Vec<usize>)> {
        let order = |shard: usize| {
            // No training has so many epochs.
            let stream = epoch as u64 + ((shard as u64) << 32);
            let seed = self.dataset.seed();
            if let Some(sampler) = self.dataset.sampler() {
                return (shard, sampler.draw(shard, self.shards, seed, stream));
            }
            let buffer = self.dataset.shuffle_buffer();
            let order = shuffled(self.shard_len(shard), buffer, seed, stream);
            let examples = order.into_iter().map(|at| shard + at * self.shards);
            (shard, examples.collect())
        };
        self.own.clone().map(order).collect()
    }

    /// Deals what there is of each shard, in order, out to batches.
    pub(crate) fn deal<T>(&self, shards: Vec<(usize, Vec<T>)>) -> Vec<(Vec<T>, Parts)> {
        let mut shards: Vec<_> = shards
            .into_iter()
            .map(|(shard, items)| (shard, items.into_iter()))
            .collect();
        let batch = || {
            let (mut batch, mut parts) = (Vec::new(), Parts::new());
            for (shard, items) in &mut shards {
                let before = batch.len();
                batch.extend(items.take(self.part(*shard)));
                parts.push((*shard, (batch.len() - before) as i64));
            }
            (!batch.is_empty()).then_some((batch, parts))
        };
        std::iter::from_fn(batch).collect()
    }

    /// Returns the same batches in the order before any shuffling, each example once.
    pub(crate) fn unshuffled(&self) -> Self {
        self.of(self.dataset.sampled(None).shuffle(1))
    }

    /// Returns whether the images change from epoch to epoch.
    pub fn is_augmented(&self) -> bool {
        self.dataset.is_augmented()
    }

    /// Returns the same batches of the images as they are without augmentation, each once.
    pub(crate) fn unaugmented(&self) -> Self {
        self.of(self.dataset.unaugmented())
    }

    /// Returns the same batches of images that change from epoch to epoch.
    pub(crate) fn augment(&self, augmentation: Augmentation) -> Result<Self> {
        Ok(self.of(self.dataset.augment(augmentation)?))
    }

    /// Returns batches of the examples at these indices, in this order before any shuffling.
    pub(crate) fn only(&self, indices: impl Iterator<Item = usize> + Clone) -> Self {
        self.of(self.dataset.only(indices))
    }

    /// Makes the pixels of the example at this index, not augmented; `None` if there is none or its
    /// image was skipped.
    pub(crate) fn load(&self, index: usize) -> Result<Option<Pixels>> {
        let example = self.dataset.examples().get(index);
        example.map_or(Ok(None), |example| self.dataset.load(example))
    }

    /// Returns the number of images in a batch.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Makes the pixels that the function given to `map` makes of an image.
    pub(crate) fn format(&self, image: RgbImage) -> Result<Pixels> {
        self.dataset.format("given to `map`", image)
    }

    /// Returns the folder for what is too large for memory: the settings' data folder, or the
    /// system's temporary one.
    pub(crate) fn data_dir(&self) -> &Path {
        self.dataset.data_dir()
    }

    /// Returns what the random choices are derived from.
    pub(crate) fn seed(&self) -> u64 {
        self.dataset.seed()
    }

    /// Returns how the images are augmented, if they are.
    pub(crate) fn augmentation(&self) -> Option<&Augmentation> {
        self.dataset.augmentation()
    }

    /// Returns how the examples are drawn, if they are.
    pub(crate) fn sampler(&self) -> Option<&Sampler> {
        self.dataset.sampler()
    }

    /// Returns from how many examples each next one is drawn.
    pub(crate) fn shuffle_buffer(&self) -> usize {
        self.dataset.shuffle_buffer()
    }

    /// Returns a digest of the examples' ids and labels, in the order before any shuffling.
    pub(crate) fn examples_digest(&self) -> String {
        let examples = self.dataset.examples().iter();
        hash_all(examples.map(|example| format!("{:?} {}\n", example.id, example.label)))
    }

    /// Returns whether there are several labels per image.
    pub(crate) fn is_multi_label(&self) -> bool {
        self.dataset.is_multi_label()
    }

    /// Returns the labels of the examples at these indices, as a [`Batch`] has them.
    ///
    /// # Errors
    /// `Argument` where the labels are not of one kind, or one of several per image has no class.
    pub(crate) fn labels(&self, indices: &[usize]) -> Result<Tensor> {
        let classes = self.classes().len();
        let unfit = |label: &Label| Error::Argument {
            name: "batch, the labels",
            expected: format!("labels of one kind that are indices of {classes} classes"),
            got: label.to_string(),
        };
        let examples = self.dataset.examples();
        let mut labels = indices.iter().map(|&index| &examples[index].label);
        if !self.is_multi_label() {
            let class = |label: &Label| label.class().ok_or_else(|| unfit(label));
            let labels = labels.map(|label| class(label).map(|class| class as i64));
            let labels = Tensor::f_from_slice(&labels.collect::<Result<Vec<_>>>()?);
            return labels.map_err(Error::torch("labels"));
        }
        if let Some(label) = labels.clone().find(|label| !label.is_multi_label()) {
            return Err(unfit(label));
        }
        let mut values = vec![0f32; indices.len() * classes];
        for row in 0..indices.len() {
            let Some(label) = labels.next() else { break };
            for class in label.classes() {
                if class >= classes {
                    return Err(unfit(label));
                }
                values[row * classes + class] = 1.;
            }
        }
        Tensor::f_from_slice(&values)
            .and_then(|labels| labels.f_reshape([indices.len() as i64, classes as i64]))
            .map_err(Error::torch("labels"))
    }

    /// Lets every process know which images the others could not read.
    pub(crate) fn share_skipped(&self) -> Result<()> {
        self.dataset.share_skipped()
    }

    /// Returns the examples whose images could not be read so far, each once, by name.
    pub fn skipped(&self) -> Vec<Skipped> {
        self.dataset.skipped()
    }

    /// Returns the error of examples of which no image could be read.
    pub(crate) fn nothing_readable(&self) -> Error {
        let skipped = self.skipped();
        let example = skipped.first().map_or(String::new(), |first| {
            format!("; {}: {}", first.name, first.reason)
        });
        let count = self.examples();
        self.error(format!("none of {count} images can be read{example}"))
    }

    /// Makes a batch of images of one size; `mixed` has the place of the image that was mixed into each, and
    /// the share that is left of it.
    fn batch(
        &self,
        pictures: Vec<Image>,
        parts: Parts,
        mixed: Option<Vec<(usize, f32)>>,
    ) -> Result<Batch> {
        let (indices, pixels): (Vec<_>, Vec<_>) = pictures
            .into_iter()
            .map(|Image { index, pixels }| (index, pixels))
            .unzip();
        let labels = self.labels(&indices)?;
        let (labels, mixed) = match mixed {
            Some(mixed) => mixing::labels(&labels, &mixed).map_err(Error::torch("batch"))?,
            None => (labels, None),
        };
        Ok(Batch {
            images: stack(pixels)?,
            labels,
            mixed,
            indices,
            parts,
        })
    }

    fn error(&self, reason: String) -> Error {
        Error::Dataset {
            name: listed(self.classes()),
            reason,
        }
    }
}

impl fmt::Debug for Batches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} batches of {} of {:?}",
            self.len(),
            self.size,
            self.dataset
        )
    }
}

/// How many worker threads there are.
pub(crate) fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// The batches of an epoch; dropping it stops its threads.
///
/// Gives [`Error::Image`] for an image that cannot be read, if the settings do not say to
/// skip it, or whose `map` function panicked; [`Error::Shape`] if the images of a batch differ
/// in size; [`Error::Dataset`] if no image at all could be read. Ends after an error.
pub struct BatchIter {
    batches: Batches,
    /// The images of each shard.
    workers: Vec<(usize, Workers<Loaded>)>,
    epoch: usize,
    /// The number of the next batch.
    batch: usize,
    /// Whether an image has been read.
    any: bool,
}

impl BatchIter {
    /// Collects the images of the next batch; fewer, or none, at the end of the epoch.
    fn collect(&mut self) -> Result<(Vec<Image>, Parts)> {
        let most = self.batches.size.min(self.batches.own_examples());
        let mut pictures: Vec<Image> = Vec::with_capacity(most);
        let mut parts = Parts::new();
        for (shard, workers) in &mut self.workers {
            let before = pictures.len();
            let full = before + self.batches.part(*shard);
            while pictures.len() < full
                && let Some(picture) = workers.next()
            {
                // A skipped image's place goes to the next one.
                let Some(picture) = picture?? else { continue };
                let got = picture.size();
                if let Some(first) = pictures.first()
                    && first.size() != got
                {
                    let first = first.size();
                    let id = &self.batches.dataset.examples()[picture.index].id;
                    return Err(Error::Shape {
                        operation: format!("batch, at image {id}"),
                        expected: format!("{first:?}, as the batch's first image; resize in `map`"),
                        got: got.to_vec(),
                    });
                }
                pictures.push(picture);
            }
            parts.push((*shard, (pictures.len() - before) as i64));
        }
        self.any |= !pictures.is_empty();
        // Other processes may have images that can be read.
        let whole = self.batches.own.len() == self.batches.shards;
        if !self.any && whole && !self.batches.is_empty() {
            return Err(self.batches.nothing_readable());
        }
        Ok((pictures, parts))
    }

    /// Mixes the images of each shard with each other, if they are augmented so; returns which one was
    /// mixed into each, and the share that is left of it.
    fn mix(&mut self, pictures: &mut [Image], parts: &Parts) -> Option<Vec<(usize, f32)>> {
        let ways = self.batches.augmentation()?.mixings();
        let number = self.batch;
        self.batch += 1;
        if ways.is_empty() {
            return None;
        }
        let (mut mixed, mut rest) = (Vec::with_capacity(pictures.len()), pictures);
        for &(shard, count) in parts {
            let (part, others) = rest.split_at_mut(count as usize);
            rest = others;
            let mut random = mixing::random_of(self.batches.seed(), self.epoch, number, shard);
            let mut images: Vec<_> = part.iter_mut().map(|picture| &mut picture.pixels).collect();
            let share = mixing::mix(&mut images, &ways, &mut random);
            let (first, count) = (mixed.len(), part.len());
            let others = (0..count).map(|at| first + (at + count - 1) % count);
            mixed.extend(others.map(|other| (other, share)));
        }
        Some(mixed)
    }
}

impl Iterator for BatchIter {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = match self.collect() {
            Ok((pictures, _)) if pictures.is_empty() => return None,
            Ok((mut pictures, parts)) => {
                let mixed = self.mix(&mut pictures, &parts);
                self.batches.batch(pictures, parts, mixed)
            }
            Err(error) => Err(error),
        };
        if batch.is_err() {
            self.any = true;
            self.workers.clear();
        }
        Some(batch)
    }
}

/// A formatted image on its way into a batch.
struct Image {
    index: usize,
    pixels: Pixels,
}

impl Image {
    /// `[3, height, width]`
    fn size(&self) -> [i64; 3] {
        let (width, height) = self.pixels.dimensions();
        [3, height.into(), width.into()]
    }
}

/// Puts images of one size into one tensor `[N, 3, height, width]`. Its memory is in N, H, W, C
/// order, which the pixels come in and the network wants.
///
/// # Errors
/// `Shape` if they are not of one size, `Torch` if there is no memory for them.
pub(crate) fn stack(pictures: Vec<Pixels>) -> Result<Tensor> {
    let (width, height) = pictures.first().map_or((0, 0), Pixels::dimensions);
    let shape = [pictures.len() as i64, height.into(), width.into(), 3];
    let length = width as usize * height as usize * 3;
    let values: Vec<_> = pictures.into_iter().map(Pixels::into_values).collect();
    if let Some(other) = values.iter().find(|values| values.len() != length) {
        return Err(Error::Shape {
            operation: "batch".to_owned(),
            expected: format!("images of {height} x {width} x 3 values"),
            got: vec![other.len() as i64],
        });
    }
    let images = || {
        let images = Tensor::f_empty(shape, (Kind::Float, Device::Cpu))?;
        let mut place = images.data_ptr().cast::<f32>();
        for values in &values {
            // Safety: all are of this length, so that they fill the new tensor exactly.
            unsafe {
                place.copy_from_nonoverlapping(values.as_ptr(), values.len());
                place = place.add(values.len());
            }
        }
        images.f_permute([0, 3, 1, 2])
    };
    images().map_err(Error::torch("batch"))
}

type Loaded = Result<Option<Image>>;

/// Threads that load images, a bounded number ahead, and hand them over in order.
pub(crate) struct Workers<T> {
    order: std::vec::IntoIter<usize>,
    /// Work for any thread: which example, and where its result goes. `None` once stopped.
    jobs: Option<Sender<(usize, SyncSender<T>)>>,
    /// Results, or where they will arrive, in order.
    pending: VecDeque<Receiver<T>>,
    stopped: Arc<AtomicBool>,
}

impl<T: Send + 'static> Workers<T> {
    /// Starts the threads; `ahead` images are loaded before they are asked for.
    pub(crate) fn start(
        load: impl Fn(usize) -> T + Send + Sync + 'static,
        order: Vec<usize>,
        threads: usize,
        ahead: usize,
    ) -> Self {
        let (jobs, queue) = mpsc::channel::<(usize, SyncSender<T>)>();
        let queue = Arc::new(Mutex::new(queue));
        let stopped = Arc::new(AtomicBool::new(false));
        let load = Arc::new(load);
        for _ in 0..threads.min(order.len()) {
            let (load, queue, stopped) = (load.clone(), queue.clone(), stopped.clone());
            thread::spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((index, result)) = job else { break };
                    // Nobody waits for it once the epoch was dropped: not an error.
                    let _ = result.send(load(index));
                }
            });
        }
        let ahead = ahead.min(order.len());
        let mut workers = Self {
            order: order.into_iter(),
            jobs: Some(jobs),
            pending: VecDeque::new(),
            stopped,
        };
        (0..ahead).for_each(|_| workers.order_next());
        workers
    }

    /// Gives the threads one more image to load.
    fn order_next(&mut self) {
        if let Some(jobs) = &self.jobs
            && let Some(index) = self.order.next()
        {
            let (result, receiver) = mpsc::sync_channel(1);
            // Without a thread to take it, `receiver` will say so.
            let _ = jobs.send((index, result));
            self.pending.push_back(receiver);
        }
    }
}

impl<T: Send + 'static> Iterator for Workers<T> {
    type Item = Result<T>;

    /// Waits for the next image in order; `None` after the last.
    fn next(&mut self) -> Option<Result<T>> {
        let receiver = self.pending.pop_front()?;
        self.order_next();
        Some(receiver.recv().map_err(|_| Error::Image {
            name: "(unknown)".to_owned(),
            reason: "the thread that was to read it died".to_owned(),
        }))
    }
}

impl<T> Workers<T> {
    pub(crate) fn stop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.jobs = None;
        self.pending.clear();
    }
}

impl<T> Drop for Workers<T> {
    fn drop(&mut self) {
        self.stop();
    }
}

fn load(dataset: &Dataset<Pixels>, index: usize, before: usize, epoch: usize) -> Loaded {
    let example = &dataset.examples()[index];
    let Some(pixels) = dataset.load_drawn(example, before, epoch)? else {
        return Ok(None);
    };
    Ok(Some(Image { index, pixels }))
}

/// Returns `0..len` in the order of `tf.data`'s `shuffle`: each next index is drawn from a
/// buffer of `buffer`, and the first one not yet drawn from takes its place.
fn shuffled(len: usize, buffer: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(epoch);
    let mut coming = 0..len;
    let mut waiting: Vec<usize> = coming.by_ref().take(buffer.max(1)).collect();
    let mut order = Vec::with_capacity(len);
    while !waiting.is_empty() {
        let drawn = random.random_range(0..waiting.len());
        order.push(match coming.next() {
            Some(next) => std::mem::replace(&mut waiting[drawn], next),
            None => waiting.swap_remove(drawn),
        });
    }
    order
}
