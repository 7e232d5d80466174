//! Writing a model file.

use std::path::Path;

use super::info::{
    BackboneInfo, CalibrationInfo, Input, ModelInfo, Optimizer, Resize, TrainingSettings,
};
use crate::analysis::Calibration;
use crate::model::Sequential;
use crate::model::weights::{self, Metadata, ORIGIN};
use crate::pipeline::{Batches, noise};
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
        self.evaluation = Some(*evaluation);
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
    /// that does not what [`Weights::format`](crate::model::Weights::format) does, or has been trained since it was
    /// calibrated; `Image` when that
    /// function panics. `ModelFile` when the file could not be loaded again: two classes of one name,
    /// layers that do not fit each other, images of more than 4096 pixels to a side.
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
            evaluation: record.evaluation,
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
        let input = Input {
            size: width as u32,
            resize: Resize::Bilinear,
            mean: weights.mean(),
            std: weights.std(),
        };
        let noise = noise();
        let (expected, got) = (input.format(&noise), batches.format(noise)?);
        let same_size = expected.dimensions() == got.dimensions();
        let (expected, got) = (expected.into_values(), got.into_values());
        let mut pairs = expected.iter().zip(&got);
        if same_size && pairs.all(|(expected, got)| (expected - got).abs() <= TOLERANCE) {
            return Ok(input);
        }
        Err(Error::Argument {
            name: "save, the training batches",
            expected: format!(
                "images as `Weights::format(image, {width})` makes them for {weights}"
            ),
            got:
                "images made otherwise by the function given to `map`, which the file cannot tell; \
                  `save_weights` saves the weights alone"
                    .into(),
        })
    }
}
