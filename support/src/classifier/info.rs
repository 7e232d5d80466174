//! What a model file says about its model, as JSON beside the weights.

use std::collections::{BTreeMap, BTreeSet};

use image::RgbImage;
use serde::{Deserialize, Serialize};

use crate::analysis::{NoveltyInfo, check_threshold};
use crate::model::weights::Metadata;
use crate::model::{Architecture, HeadLayer, Weights, output_shape};
use crate::pipeline::{Pixels, Resize};
use crate::training::{Evaluation, History, Loss};

/// The key in the safetensors metadata.
const KEY: &str = "model";

/// Changes when a reader of this version could no longer read the file, or would misunderstand it;
/// fields may be added without.
const VERSION: u32 = 1;

/// That of a calibrated model, whose probabilities a reader of version 1 would misunderstand.
const CALIBRATED: u32 = 2;

/// The most pixels to a side: beyond, a damaged file would ask for any amount of memory.
const MAX_SIZE: u32 = 4096;

/// All that a model file holds besides the weights; the fields are those of its JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// The names of the classes, in the order of the labels that the model was trained with.
    pub classes: Vec<String>,
    /// What the network takes.
    pub input: Input,
    /// The network below the head.
    pub backbone: BackboneInfo,
    /// The layers on top, the first above the backbone first.
    pub head: Vec<HeadLayer>,
    /// What was minimized; it tells how logits become [probabilities](Loss::probabilities).
    pub loss: Loss,
    /// Of several labels per image: the least probability at which an image is taken for one of a class, .5
    /// where the file does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f64>,
    /// How the model was trained.
    pub training: TrainingSettings,
    /// The epochs of all phases of training.
    pub history: History,
    /// Loss and accuracy on other images than those trained on, if they were measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<Evaluation>,
    /// What the logits are worth, if that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibrationInfo>,
}

/// How a [calibrated](crate::model::Sequential::calibrate) model's output is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CalibrationInfo {
    /// What the logits are divided by before they become probabilities.
    pub temperature: f64,
    /// From where on an image is unlike those that the model was trained on.
    pub novelty: NoveltyInfo,
}

/// How an image becomes the network's input: resized, then each sample, as a number from 0 to 1, less
/// `mean` and divided by `std`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Input {
    /// Pixels to a side.
    pub size: u32,
    /// How the image is resized.
    pub resize: Resize,
    /// Red, green, blue.
    pub mean: [f32; 3],
    /// Red, green, blue.
    pub std: [f32; 3],
}

/// The network below the head.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackboneInfo {
    /// What the network is.
    #[serde(flatten)]
    pub architecture: Architecture,
    /// The weights that training started from, and whose padding and epsilon the network has.
    pub weights: Weights,
}

/// How a model was trained, in the last phase where there were several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingSettings {
    /// The optimizer.
    pub optimizer: Optimizer,
    /// The number of images trained on.
    pub examples: usize,
    /// Images in a batch.
    pub batch_size: usize,
    /// What the order of the images and their augmentation are derived from.
    pub seed: u64,
    /// Whether the images were augmented.
    pub augmented: bool,
}

/// An optimizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Optimizer {
    /// Keras' name.
    pub name: String,
    /// Learning rate and whatever else it has, by name.
    pub hyperparameters: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Serialize)]
struct Versioned<'a> {
    version: u32,
    #[serde(flatten)]
    info: &'a ModelInfo,
}

impl ModelInfo {
    /// Adds it to the texts of a file.
    pub(super) fn write(&self, texts: &mut Metadata) -> Result<(), String> {
        let versioned = Versioned {
            version: if self.calibration.is_some() {
                CALIBRATED
            } else {
                VERSION
            },
            info: self,
        };
        let json = serde_json::to_string(&versioned).map_err(|error| error.to_string())?;
        texts.insert(KEY.into(), json);
        Ok(())
    }

    /// Finds it among the texts of a file.
    pub(crate) fn read(texts: &Metadata) -> Result<Self, String> {
        let json = texts.get(KEY).ok_or(
            "it holds tensors, and not what they are the weights of; `save` of a compiled model \
             writes a model file, `load_weights` reads weights alone",
        )?;
        let in_json = |error| format!("its text {KEY:?}: {error}");
        let Version { version } = serde_json::from_str(json).map_err(in_json)?;
        if ![VERSION, CALIBRATED].contains(&version) {
            return Err(format!(
                "it has version {version}, and {VERSION} or {CALIBRATED} is expected; read it with the release that \
                 wrote it"
            ));
        }
        serde_json::from_str(json).map_err(in_json)
    }

    /// Checks that the parts fit each other, the backbone's features having a shape `[C, H, W]`.
    pub(crate) fn check(&self, features: [i64; 3]) -> Result<(), String> {
        let shape = output_shape(&self.head, &features).map_err(|error| error.to_string())?;
        let classes = self.loss.classes(&shape);
        let classes = classes.map_err(|error| error.to_string())?;
        let named = self.classes.len();
        if named != classes {
            return Err(format!(
                "expected the names of the {classes} classes that the head tells apart, got {named}"
            ));
        }
        if let Some(threshold) = self.threshold {
            check_threshold("threshold", threshold).map_err(|error| error.to_string())?;
            if !self.loss.is_multi_label() {
                return Err("it has a threshold, and one label per image".into());
            }
        }
        if let Some(CalibrationInfo {
            temperature,
            novelty,
        }) = self.calibration
        {
            let numbers = [
                ("temperature", temperature),
                ("novelty threshold", novelty.threshold),
            ];
            let positive = |value: f64| value.is_finite() && value > 0.;
            if let Some((name, value)) = numbers.into_iter().find(|(_, value)| !positive(*value)) {
                return Err(format!("expected a {name} above 0, got {value}"));
            }
        }
        let mut seen = BTreeSet::new();
        match self.classes.iter().find(|class| !seen.insert(*class)) {
            Some(class) => Err(format!("two classes are named {class}")),
            None => Ok(()),
        }
    }
}

impl Input {
    /// Returns an image as the network takes it.
    #[must_use]
    pub fn format(&self, image: &RgbImage) -> Pixels {
        let pixels = Pixels::from(image).scale(1.0 / 255.0);
        let resized = self.resize.apply(pixels, self.size);
        resized.normalize(self.mean, self.std)
    }

    /// Returns `[channels, height, width]` of what the network takes.
    pub(super) fn shape(&self) -> Result<[i64; 3], String> {
        let (size, mean, std) = (self.size, self.mean, self.std);
        if size > MAX_SIZE {
            return Err(format!(
                "expected images of at most {MAX_SIZE} pixels to a side, got {size}"
            ));
        }
        if let Resize::CenterCrop { shorter_side, .. } = self.resize
            && !(size..=MAX_SIZE).contains(&shorter_side)
        {
            return Err(format!(
                "expected a shorter side of {size} to {MAX_SIZE} pixels, got {shorter_side}"
            ));
        }
        if std.contains(&0.) || !mean.iter().chain(&std).all(|value| value.is_finite()) {
            return Err(format!("mean {mean:?} and std {std:?} are no scaling"));
        }
        Ok([3, i64::from(size), i64::from(size)])
    }
}
