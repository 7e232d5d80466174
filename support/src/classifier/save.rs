//! Writing a model file.

use std::path::Path;

use super::info::{BackboneInfo, CalibrationInfo, Input, ModelInfo, Optimizer, TrainingSettings};
use crate::analysis::Calibration;
use crate::model::Sequential;
use crate::model::weights::{self, Metadata, ORIGIN};
use crate::pipeline::{Batches, Resize, noise};
use crate::training::{Compiled, Evaluation, History};
use crate::{Error, Result};

/// How far what `map` makes of an image may be from what the file says, in units of the network's
/// input, of which a grey level is about 1/128 or more. Other ways to the same values round otherwise.
const TOLERANCE: f32 = 1e-3;

/// What a model file tells about the training besides what the model itself knows.
#[derive(Clone, Debug)]
pub struct TrainingRecord {
    batches: Batches,
    history: History,
    evaluation: Option<Evaluation>,
    threshold: Option<f64>,
    calibration: Option<Calibration>,
}

impl TrainingRecord {
    /// Starts a record with the batches that were trained on: they know the classes.
    #[must_use]
    pub fn new(train_batches: &Batches) -> Self {
        Self {
            batches: train_batches.clone(),
            history: History::default(),
            evaluation: None,
            threshold: None,
            calibration: None,
        }
    }

    /// Adds the epochs of a phase of training, after those of the phases before.
    #[must_use]
    pub fn history(mut self, history: &History) -> Self {
        self.history = self.history.then(history);
        self
    }

    /// Tells what [`evaluate`](Sequential::evaluate) found on images that were not trained on.
    #[must_use]
    pub fn evaluation(mut self, evaluation: &Evaluation) -> Self {
        self.evaluation = Some(evaluation.clone());
        self
    }

    /// Tells the least probability at which an image is taken for one of a class, where it can be of several;
    /// .5 unless told.
    #[must_use]
    pub fn threshold(mut self, threshold: f64) -> Self {
        self.threshold = Some(threshold);
        self
    }

    /// Tells what [`calibrate`](Sequential::calibrate) found of the model as it is saved: its temperature, and how to
    /// tell images unlike those that it was trained on.
    #[must_use]
    pub fn calibration(mut self, calibration: &Calibration) -> Self {
        self.calibration = Some(calibration.clone());
        self
    }
}

impl Sequential<Compiled> {
    /// Saves the model as a [model file](crate::classifier): safetensors of all weights, under the names
    /// that [`save_weights`](Self::save_weights) gives them, with all that a
    /// [`Classifier`](super::Classifier) needs. It appears whole or not at all.
    /// [`load_weights`](Self::load_weights) reads it too.
    ///
    /// # Errors
    /// `Io` when the file cannot be written. `Argument` when the classes do not fit the model, or it
    /// takes images otherwise than the file can tell: not square, or made by a function given to `map`
    /// that does not what [`Weights::format`](crate::model::Weights::format) or
    /// [`format_evaluation`](crate::model::Weights::format_evaluation) does; or when it has been trained since
    /// it was calibrated. `Image` when that function panics. `ModelFile` when the file could not be loaded
    /// again: two classes of one name, layers that do not fit each other, a threshold that is no probability
    /// or for one label per image, images of more than 4096 pixels to a side.
    pub fn save(&self, path: impl AsRef<Path>, record: &TrainingRecord) -> Result<()> {
        let path = path.as_ref();
        let info = self.info(record)?;
        let refused = |reason| Error::ModelFile {
            path: path.into(),
            reason,
        };
        info.check(self.base().output_shape()).map_err(refused)?;
        info.input.shape().map_err(refused)?;
        let mut texts = Metadata::from([(ORIGIN.into(), self.base().weights().to_string())]);
        info.write(&mut texts).map_err(refused)?;
        let variables = self.variables();
        let tensors = variables.map(|variable| (variable.name().to_owned(), variable.value()));
        let calibration = record.calibration.iter();
        let tensors = tensors.chain(calibration.flat_map(|it| it.novelty().1.tensors()));
        weights::write(path, tensors, texts)
    }

    fn info(&self, record: &TrainingRecord) -> Result<ModelInfo> {
        let batches = &record.batches;
        self.check(batches, "save, the training batches")?;
        if let Some(calibration) = &record.calibration {
            calibration.check(self)?;
        }
        let calibration = record
            .calibration
            .as_ref()
            .map(|calibration| CalibrationInfo {
                temperature: calibration.temperature(),
                novelty: calibration.novelty().0,
            });
        let (name, hyperparameters) = self.compiled.optimizer().describe();
        Ok(ModelInfo {
            classes: batches.classes().to_vec(),
            input: self.input(batches)?,
            backbone: BackboneInfo {
                architecture: self.base().architecture(),
                weights: self.base().weights(),
            },
            head: self.top().cloned().collect(),
            loss: self.compiled.loss(),
            threshold: record.threshold,
            training: TrainingSettings {
                optimizer: Optimizer {
                    name: name.into(),
                    hyperparameters,
                },
                examples: batches.examples(),
                batch_size: batches.size(),
                seed: batches.seed(),
                augmented: batches.is_augmented(),
            },
            history: record.history.clone(),
            evaluation: record.evaluation.clone(),
            calibration,
        })
    }

    /// Returns how images were made for the model, once that was tried on one.
    fn input(&self, batches: &Batches) -> Result<Input> {
        let [_, height, width] = self.base().input_shape();
        if height != width {
            return Err(Error::Argument {
                name: "save, the model's images",
                expected: "as high as wide".into(),
                got: format!("{height} x {width} pixels"),
            });
        }
        let weights = self.base().weights();
        let got = batches.format(noise())?;
        let size = got.dimensions();
        let got = got.into_values();
        let resizes = [Resize::Bilinear, weights.evaluation_resize(width as u32)];
        for resize in resizes {
            let input = Input {
                size: width as u32,
                resize,
                mean: weights.mean(),
                std: weights.std(),
            };
            let expected = input.format(&noise());
            let same_size = expected.dimensions() == size;
            let expected = expected.into_values();
            let mut pairs = expected.iter().zip(&got);
            if same_size && pairs.all(|(expected, got)| (expected - got).abs() <= TOLERANCE) {
                return Ok(input);
            }
        }
        Err(Error::Argument {
            name: "save, the training batches",
            expected: format!(
                "images as `Weights::format(image, {width})` or `format_evaluation` makes them for {weights}"
            ),
            got:
                "images made otherwise by the function given to `map`, which the file cannot tell; \
                  `save_weights` saves the weights alone"
                    .into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use image::RgbImage;

    use super::*;
    use crate::classifier::Classifier;
    use crate::dataset::Example;
    use crate::model::tests::NETWORKS;
    use crate::model::{Dense, GlobalAveragePooling2d, Weights};
    use crate::pipeline::{Augmentation, Dataset, Filter, Pixels, stack};
    use crate::settings::BrokenImages;
    use crate::training::{Loss, RmsProp, TestTimeAugmentation};

    /// Saves a model of weights of torchvision with a function given to `map`, and loads it again.
    fn saved(
        format: fn(Weights, &RgbImage) -> Pixels,
    ) -> Result<(Sequential<Compiled>, Classifier)> {
        let (architecture, weights, [_, side, _]) = NETWORKS[5];
        let base = crate::model::tests::network((architecture, weights, [3, side, side]));
        let features = base.output_shape()[0] as usize;
        let model = Sequential::new(base)
            .push(GlobalAveragePooling2d)
            .push(Dense::new(features, 1))
            .compile(RmsProp::new(1e-4), Loss::BinaryCrossentropy)?;
        let classes = ["cats", "dogs"].map(str::to_owned).to_vec();
        let examples = vec![Example::at_path("a".into(), 0, "a".as_ref())];
        let dataset = Dataset::new(examples, classes, 0, BrokenImages::Stop);
        let batches = dataset.map(move |image| format(weights, image)).batch(1);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        model.save(&path, &TrainingRecord::new(&batches))?;
        Ok((model, Classifier::load_on(&path, tch::Device::Cpu)?))
    }

    #[test]
    fn a_classifier_resizes_as_the_images_were_that_the_model_was_trained_on() {
        let formats: [fn(Weights, &RgbImage) -> Pixels; 2] = [
            |weights, image| weights.format(image, 64),
            |weights, image| weights.format_evaluation(image, 64),
        ];
        let crop = Resize::CenterCrop {
            shorter_side: 73,
            filter: Filter::Bilinear,
        };
        for (format, expected) in formats.into_iter().zip([Resize::Bilinear, crop]) {
            let (model, classifier) = saved(format).unwrap();
            assert_eq!(classifier.info().input.resize, expected);
            let picture = RgbImage::from_fn(90, 120, |x, y| {
                image::Rgb([(x * x) as u8, (3 * y) as u8, (x * y) as u8])
            });
            let images = stack(vec![format(NETWORKS[5].1, &picture)]).unwrap();
            let logit = model.forward(&images).unwrap().double_value(&[0, 0]);
            let found = classifier.predict(&picture).unwrap();
            assert!(
                (f64::from(found.logits[0]) - logit).abs() < 1e-5,
                "{expected:?}"
            );
        }
        let error = saved(|weights, image| {
            let pixels = Pixels::from(image).scale(1.0 / 255.0);
            let resized = pixels.resize_and_crop(73, 64, Filter::Bicubic);
            resized.normalize(weights.mean(), weights.std())
        });
        let error = error.map(drop).unwrap_err().to_string();
        assert!(
            error.contains("or `format_evaluation` makes them for resnet18"),
            "{error}"
        );
    }

    #[test]
    fn a_classifier_with_test_time_augmentation_takes_an_image_and_its_mirror_image_alike() {
        let (_, classifier) = saved(|weights, image| weights.format(image, 64)).unwrap();
        let picture = RgbImage::from_fn(64, 64, |x, y| {
            image::Rgb([(x * x) as u8, (3 * y) as u8, (x * y) as u8])
        });
        let mirrored = image::imageops::flip_horizontal(&picture);
        let [plain, plain_mirrored] =
            [&picture, &mirrored].map(|image| classifier.predict(image).unwrap());
        assert_ne!(plain.logits, plain_mirrored.logits);
        let with = TestTimeAugmentation::flip();
        let classifier = classifier.with_test_time_augmentation(with).unwrap();
        let [found, found_mirrored] =
            [&picture, &mirrored].map(|image| classifier.predict(image).unwrap());
        let [not, is] = [0, 1].map(|class| {
            let both = [&plain, &plain_mirrored].map(|found| found.probabilities[class]);
            (both[0] + both[1]) / 2.
        });
        let expected = is.ln() - not.ln();
        for logit in [found.logits[0], found_mirrored.logits[0]] {
            let off = (f64::from(logit) - expected).abs() / expected.abs();
            assert!(off < 1e-4, "{logit} for {expected}");
        }

        let crop = Augmentation::new().random_resized_crop(0.3..=0.9, 0.75..=1.33);
        let with = TestTimeAugmentation::new(crop.clone(), 2);
        let classifier = classifier.with_test_time_augmentation(with).unwrap();
        let one = classifier.predict(&mirrored).unwrap();
        let all: Result<Vec<_>> = classifier.predict_all([&picture, &mirrored]).collect();
        let off = (all.unwrap()[1].logits[0] - one.logits[0]).abs();
        assert!(off < 1e-4 * one.logits[0].abs(), "{off}");
        assert_ne!(one.logits, found_mirrored.logits);
        let mixing = TestTimeAugmentation::new(crop.mix_up(1.), 2);
        let error = classifier.with_test_time_augmentation(mixing).unwrap_err();
        assert!(matches!(error, Error::Argument { .. }), "{error}");
    }
}
