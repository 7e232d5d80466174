//! What an epoch runs over: the frozen prefix's outputs for each example, stored or computed anew.

use std::time::Instant;

use tch::Tensor;

use super::activations::Activations;
use super::callbacks::{Console, End};
use super::{Fit, Predictor, memory};
use crate::Result;
use crate::model::Sequential;
use crate::pipeline::{Batches, Mixed, Parts};

/// Outputs that took fewer multiply-adds a byte than this are not stored.
/// [`Fit::cache_activations`] says where the number is from.
const LEAST_SAVED: f64 = 100.;

/// Memory for outputs where the system does not tell how much it has.
const UNKNOWN_MEMORY: u64 = 4 << 30;

/// The layers that a `fit` need not train, and their outputs for the examples.
pub(super) struct FrozenPrefix<'a> {
    /// The last of the layers.
    pub(super) cut: usize,
    pub(super) training: PrefixOutputs<'a>,
    pub(super) validation: Option<PrefixOutputs<'a>>,
}

/// The frozen prefix's outputs for the examples of some batches.
pub(super) struct PrefixOutputs<'a> {
    pub(super) batches: &'a Batches,
    outputs: Outputs,
}

/// The frozen prefix's outputs for a batch, or for this process' part of one.
pub(super) struct PrefixBatch {
    /// `[N, ...]`
    pub(super) input: Tensor,
    /// `[N]`, or `[N, classes]` of several labels per image
    pub(super) labels: Tensor,
    /// The other labels of mixed images.
    pub(super) mixed: Option<Mixed>,
    /// How many of them are of which shard.
    pub(super) parts: Parts,
}

/// Returns a layer's output for images.
pub(super) type Forward = Box<dyn Fn(&Tensor) -> Result<Tensor>>;

enum Outputs {
    Stored(Activations),
    Computed(Forward),
    /// The last layer's, the logits.
    Logits(Predictor),
}

impl<'a> PrefixOutputs<'a> {
    /// Returns layer `cut`'s outputs, computed anew in each epoch.
    pub(super) fn computed<C: 'static>(
        model: &Sequential<C>,
        cut: usize,
        batches: &'a Batches,
    ) -> Result<Self> {
        let outputs = Outputs::Computed(Box::new(model.inference(0, cut)?));
        Ok(Self { batches, outputs })
    }

    /// Returns the last layer's outputs, in the order before any shuffling.
    pub(super) fn logits(predictor: Predictor, batches: &'a Batches) -> Self {
        let outputs = Outputs::Logits(predictor);
        Self { batches, outputs }
    }

    /// Returns an epoch's outputs, batch by batch.
    pub(super) fn epoch(&self, epoch: usize) -> Box<dyn Iterator<Item = Result<PrefixBatch>> + '_> {
        match &self.outputs {
            Outputs::Stored(outputs) => Box::new(outputs.batches(self.batches, epoch)),
            Outputs::Computed(compute) => Box::new(self.batches.epoch(epoch).map(move |batch| {
                let batch = batch?;
                Ok(PrefixBatch {
                    input: compute(&batch.images)?,
                    labels: batch.labels,
                    mixed: batch.mixed,
                    parts: batch.parts,
                })
            })),
            Outputs::Logits(predictor) => match predictor.logits(self.batches) {
                Err(error) => Box::new(std::iter::once(Err(error))),
                Ok(logits) => Box::new(logits.map(|logits| {
                    let (batch, input) = logits?;
                    Ok(PrefixBatch {
                        input,
                        labels: batch.labels,
                        mixed: None,
                        parts: batch.parts,
                    })
                })),
            },
        }
    }

    fn stored(&self) -> Option<&Activations> {
        match &self.outputs {
            Outputs::Stored(outputs) => Some(outputs),
            Outputs::Computed(_) | Outputs::Logits(_) => None,
        }
    }
}

impl<'a> FrozenPrefix<'a> {
    /// Finds the frozen prefix and stores its outputs for the training batches and the validation's of
    /// `fit`, where that is wanted and pays; says which.
    ///
    /// # Errors
    /// Also the Stop button.
    pub(super) fn new<C: 'static>(
        model: &Sequential<C>,
        training: &'a Batches,
        fit: &Fit<'a>,
        console: &mut Console<'_>,
    ) -> Result<Self, End> {
        let cut = model.frozen_prefix();
        let (start, saved) = (Instant::now(), saved_per_byte(model, cut));
        let wanted = fit.cache_activations && cut > 0;
        let is_stored =
            |batches: &Batches| wanted && saved >= LEAST_SAVED && !batches.is_augmented();
        let all = [Some(training), fit.validation];
        let all = all
            .into_iter()
            .flatten()
            .filter(|batches| is_stored(batches));
        let (steps, mut step) = (all.map(Batches::len).sum::<usize>(), 0);
        let mut on_step_end = || {
            step += 1;
            console.progress.show(|| {
                let rate = (step * training.size()) as f64 / start.elapsed().as_secs_f64();
                format!("frozen layers: {step}/{steps} - {rate:.0} img/s")
            });
            match console.stop.requested() {
                true => Err(End::Stopped("stopped before the first epoch".into())),
                false => Ok(()),
            }
        };
        let group = training.group();
        let default = || default_memory() / group.local_size();
        let memory = fit.activation_memory.unwrap_or_else(default);
        let mut memory_left = memory;
        let mut outputs = |batches: &'a Batches| {
            if !is_stored(batches) {
                return Ok(PrefixOutputs::computed(model, cut, batches)?);
            }
            let stored = Activations::compute(model, cut, batches, memory_left, &mut on_step_end)?;
            memory_left -= stored.store().memory();
            let outputs = Outputs::Stored(stored);
            Ok::<_, End>(PrefixOutputs { batches, outputs })
        };
        let prefix = Self {
            cut,
            training: outputs(training)?,
            validation: fit.validation.map(outputs).transpose()?,
        };
        let name = model.layer_name(cut);
        let anew = (wanted && prefix.training.stored().is_none()).then(|| match saved {
            ..LEAST_SAVED => format!(
                "computed anew in every epoch, as storing its output would save {saved:.0} multiply-adds a \
                 byte, and pays from {LEAST_SAVED} on"
            ),
            _ => "computed anew in every epoch for the training images, which are augmented".into(),
        });
        let seconds = start.elapsed().as_secs_f64();
        let once = prefix.report(memory);
        let once = once.map(|stored| format!("{stored}, computed once in {seconds:.0}s"));
        for text in anew.into_iter().chain(once) {
            console
                .progress
                .line(&format!("frozen up to {name}: {text}"));
        }
        Ok(prefix)
    }

    /// Tells what is stored, if anything is.
    fn report(&self, memory: usize) -> Option<String> {
        let stored = || {
            let outputs = std::iter::once(&self.training).chain(&self.validation);
            outputs.filter_map(PrefixOutputs::stored)
        };
        let count: usize = stored().map(Activations::len).sum();
        let bytes = |in_file_only: bool| {
            let stores = stored().map(Activations::store);
            let stores = stores.filter(|store| store.file().is_some() || !in_file_only);
            stores.map(|store| store.bytes()).sum::<usize>()
        };
        let megabytes = |bytes: usize| bytes as f64 / 1e6;
        let of = match self.training.stored() {
            Some(_) => "",
            None => " of validation images",
        };
        let in_file = match bytes(true) {
            0 => String::new(),
            in_file => format!(
                ", {:.0} of them in a file, as {:.0} MB of memory are allowed, {}",
                megabytes(in_file),
                megabytes(memory),
                self.order_of_reading()
            ),
        };
        stored().next()?;
        let all = megabytes(bytes(false));
        let on = match self.training.batches.group() {
            group if group.size() > 1 => format!(" on {group:?}"),
            _ => String::new(),
        };
        Some(format!("{count} activations{of}, {all:.0} MB{in_file}{on}"))
    }

    /// Tells how those are read that are in a file.
    fn order_of_reading(&self) -> String {
        let outputs = std::iter::once(&self.training).chain(&self.validation);
        let in_file = outputs.filter_map(PrefixOutputs::stored);
        let in_file = in_file.filter_map(|stored| Some((stored.len(), stored.store().file()?)));
        let (mut rows, mut backwards, mut window) = (0, 0, 0);
        for (count, file) in in_file {
            rows += count;
            backwards += file.backwards();
            window += file.needed_bytes();
        }
        match backwards {
            0 => "read front to back".into(),
            _ => format!(
                "{:.0} % of them read out of order, as shuffling needs a window of {:.1} MB \
                 (`activation_memory` allows more, or shuffle with a smaller buffer)",
                100. * backwards as f64 / rows as f64,
                window as f64 / 1e6
            ),
        }
    }
}

/// Returns how many bytes stored outputs may take in memory, unless the user says it.
fn default_memory() -> usize {
    let available = memory::available().unwrap_or(UNKNOWN_MEMORY);
    usize::try_from(available / 2).unwrap_or(usize::MAX)
}

/// Returns how many multiply-adds the layers up to `cut` take for each byte of their output: what a
/// store saves.
fn saved_per_byte<C>(model: &Sequential<C>, cut: usize) -> f64 {
    let layers = model.base().layers().iter().take(cut + 1);
    let multiply_adds: i64 = layers
        .flat_map(|layer| {
            let [_, height, width] = layer.output_shape();
            let kernels = layer.variables().iter().map(|variable| variable.value());
            let kernels = kernels.filter(|value| value.dim() == 4);
            kernels.map(move |kernel| kernel.numel() as i64 * height * width)
        })
        .sum();
    let values: i64 = model.layer_shape(cut).iter().product();
    let size = model.layer_kind(cut).elt_size_in_bytes();
    multiply_adds as f64 / (values as f64 * size as f64)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use image::RgbImage;
    use tch::Device;

    use super::*;
    use crate::dataset::Example;
    use crate::distributed::tests::on_ranks;
    use crate::live::{Progress, Stop};
    use crate::model::{Backbone, Dense, GlobalAveragePooling2d, SetTrainable};
    use crate::pipeline::{Augmentation, Dataset, Pixels};
    use crate::precision::{Precision, multiplies_bf16};
    use crate::settings::BrokenImages;

    /// Two images, and a frozen model for them.
    fn images_and_model(folder: &Path) -> (Dataset<Pixels>, Sequential) {
        let path = folder.join("0.png");
        RgbImage::new(32, 32).save(&path).unwrap();
        let examples = [0, 1].map(|label| Example::at_path(format!("{label}.png"), label, &path));
        let classes = ["cats", "dogs"].map(str::to_owned).to_vec();
        let pictures = Dataset::new(examples.to_vec(), classes, 0, BrokenImages::Stop);
        let mut base = Backbone::untrained([3, 32, 32], Device::Cpu).unwrap();
        base.set_trainable(false);
        let model = Sequential::new(base)
            .push(GlobalAveragePooling2d)
            .push(Dense::new(1280, 1));
        (pictures.map(|image| Pixels::from(image)), model)
    }

    fn prefix<'a>(model: &Sequential, batches: &'a Batches, fit: &Fit<'a>) -> FrozenPrefix<'a> {
        let mut console = Console {
            progress: &mut Progress::begin(),
            stop: &mut Stop::listen(),
        };
        FrozenPrefix::new(model, batches, fit, &mut console).unwrap()
    }

    /// Returns whether the outputs are in a file, if they are stored.
    fn in_file(outputs: &PrefixOutputs<'_>) -> Option<bool> {
        outputs
            .stored()
            .map(|stored| stored.store().file().is_some())
    }

    #[test]
    fn activations_of_augmented_images_are_not_stored() {
        let folder = tempfile::tempdir().unwrap();
        let (pictures, model) = images_and_model(folder.path());
        let flip = Augmentation::new().random_flip_horizontal();
        let augmented = pictures.augment(flip).unwrap().batch(2);
        let plain = pictures.batch(2);
        let prefix = prefix(&model, &augmented, &Fit::epochs(1).validation(&plain));
        assert_eq!(in_file(&prefix.training), None);
        assert_eq!(in_file(&prefix.validation.unwrap()), Some(false));
    }

    #[test]
    fn activations_beyond_the_memory_allowed_for_all_go_into_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let (pictures, model) = images_and_model(folder.path());
        let batches = pictures.batch(2);
        let values = model.layer_shape(model.frozen_prefix());
        let bytes = 2 * values.iter().product::<i64>() as usize * size_of::<f32>();
        for (memory, files) in [
            (2 * bytes, [false, false]),
            (2 * bytes - 1, [false, true]),
            (bytes - 1, [true, true]),
        ] {
            let fit = Fit::epochs(1).validation(&batches);
            let prefix = prefix(&model, &batches, &fit.activation_memory(memory));
            let places = [&prefix.training, prefix.validation.as_ref().unwrap()].map(in_file);
            assert_eq!(places, files.map(Some));
            let report = prefix.report(memory).unwrap();
            assert_eq!(report.contains("in a file"), files[1], "{report}");
        }
    }

    #[test]
    fn activations_in_bfloat16_take_half_of_the_memory() {
        if !multiplies_bf16(Device::Cpu) {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let (pictures, mut model) = images_and_model(folder.path());
        // Up to the middle of the base: pooled features are 32-bit floats.
        model.base_mut().layers_mut()[100..].set_trainable(true);
        let batches = pictures.batch(2);
        let mut bytes = |precision| {
            model.base_mut().set_precision(precision).unwrap();
            let prefix = prefix(&model, &batches, &Fit::epochs(1));
            prefix.training.stored().unwrap().store().bytes()
        };
        assert_eq!(bytes(Precision::F32), 2 * bytes(Precision::Bf16));
    }

    #[test]
    fn a_rank_stores_the_activations_of_its_share_only() {
        let bytes = |ranks| {
            on_ranks(ranks, |group| {
                let folder = tempfile::tempdir().unwrap();
                let (pictures, model) = images_and_model(folder.path());
                let batches = pictures.among(&group).batch(4).share("batches").unwrap();
                let prefix = prefix(&model, &batches, &Fit::epochs(1));
                prefix.training.stored().unwrap().store().bytes()
            })
        };
        let alone = bytes(1)[0];
        assert_eq!(bytes(2), [alone / 2; 2]);
    }

    #[test]
    fn the_window_that_a_file_is_read_through_counts_as_memory() {
        let folder = tempfile::tempdir().unwrap();
        let (pictures, model) = images_and_model(folder.path());
        let validation = pictures.batch(2);
        let twelve = [0, 1].into_iter().cycle().take(12);
        let training = pictures.shuffle(6).batch(1).only(twelve);
        let prefix_within = |memory| {
            let fit = Fit::epochs(1).validation(&validation);
            prefix(&model, &training, &fit.activation_memory(memory))
        };
        let none = prefix_within(0);
        let window = none.training.stored().unwrap().store().file().unwrap();
        let window = window.needed_bytes();
        let report = none.report(0).unwrap();
        assert!(
            report.contains("read out of order, as shuffling needs a window of"),
            "{report}"
        );
        let validations = none.validation.as_ref().unwrap().stored().unwrap();
        let validations = validations.store().bytes();
        for (memory, is_file) in [
            (window + validations - 1, true),
            (window + validations, false),
        ] {
            let prefix = prefix_within(memory);
            let places = [&prefix.training, prefix.validation.as_ref().unwrap()].map(in_file);
            assert_eq!(places, [Some(true), Some(is_file)]);
            let report = prefix.report(memory).unwrap();
            assert!(report.contains("read front to back"), "{report}");
        }
    }

    #[test]
    fn activations_are_stored_where_that_saves_enough_work() {
        let folder = tempfile::tempdir().unwrap();
        let (pictures, mut model) = images_and_model(folder.path());
        let batches = pictures.batch(2);
        for (frozen, stored) in [
            (0, false),
            (10, false),
            (17, false),
            (18, true),
            (155, true),
        ] {
            model.base_mut().set_trainable(true);
            model.base_mut().layers_mut()[..frozen].set_trainable(false);
            let prefix = prefix(&model, &batches, &Fit::epochs(1));
            let is_stored = in_file(&prefix.training).is_some();
            assert_eq!(is_stored, stored, "{frozen} layers frozen");
        }
        // 0.4 MB an image of 160 pixels to a side, which is 0.3 MB itself.
        let saved = saved_per_byte(&model, 9);
        assert!((25. ..27.).contains(&saved), "{saved}");
        let saved = saved_per_byte(&model, 18);
        assert!((165. ..167.).contains(&saved), "{saved}");
    }
}
