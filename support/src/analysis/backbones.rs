//! Which backbone suits a set of images: each one's accuracy with a linear probe, its size and its speed.

use std::fmt;

use image::RgbImage;

use super::LinearProbe;
use crate::model::{Backbone, GlobalAveragePooling2d, Sequential, Weights};
use crate::pipeline::Dataset;
use crate::settings::Settings;
use crate::training::Loss;
use crate::{Error, Result};

/// Images in a batch.
const BATCH_SIZE: usize = 32;

/// Backbones side by side, in the order that they were asked for. Shows as a table.
#[derive(Clone, Debug, PartialEq)]
pub struct BackboneComparison {
    /// A row for each.
    pub backbones: Vec<ComparedBackbone>,
}

/// What a backbone is worth on a set of images.
#[derive(Clone, Debug, PartialEq)]
pub struct ComparedBackbone {
    /// The network's name, with the size of its images.
    pub name: String,
    /// The network and where its weights come from.
    pub weights: Weights,
    /// Height and width in pixels of the images that it was given: those of its weights.
    pub image_size: u32,
    /// How many numbers it consists of.
    pub parameters: usize,
    /// Over how many training images a second its features were computed, reading and decoding included.
    pub images_per_second: f64,
    /// The share of validation images that a [`LinearProbe`] on its frozen features gets right.
    pub accuracy: f64,
}

/// Compares pretrained backbones by what a [`LinearProbe`] on their pooled features, trained on `train`, makes of
/// `validation`. Each gets the images in the size that its weights were trained at, made by its
/// [`Weights::format`]; its weights are fetched where they are not here yet.
///
/// ```no_run
/// # use support::prelude::*;
/// # let settings = Settings::from_env()?;
/// # let [train, validation, _] = ImageDataset::load(&settings)?.split([8, 1, 1])?;
/// let candidates = [MobileNetV2::TF_HUB, EfficientNetLite::LITE0, EfficientNetLite::LITE2];
/// println!("{}", compare_backbones(&candidates, &train, &validation, &settings)?);
/// # Ok::<(), support::Error>(())
/// ```
///
/// # Errors
/// `Argument` when the two sets have other classes; what [`Backbone::pretrained`] gives, which names the weights, when
/// those of one cannot be fetched or read; what [`Sequential::features`] gives.
pub fn compare_backbones(
    weights: &[Weights],
    train: &Dataset<RgbImage>,
    validation: &Dataset<RgbImage>,
    settings: &Settings,
) -> Result<BackboneComparison> {
    if train.classes() != validation.classes() {
        return Err(Error::Argument {
            name: "compare_backbones, the validation images",
            expected: format!("classes {:?}", train.classes()),
            got: format!("{:?}", validation.classes()),
        });
    }
    let compared = weights
        .iter()
        .map(|&weights| compared(weights, train, validation, settings));
    Ok(BackboneComparison {
        backbones: compared.collect::<Result<_>>()?,
    })
}

fn compared(
    weights: Weights,
    train: &Dataset<RgbImage>,
    validation: &Dataset<RgbImage>,
    settings: &Settings,
) -> Result<ComparedBackbone> {
    let size = weights.image_size();
    let base = Backbone::pretrained(weights, [3, size.into(), size.into()], settings)?;
    let model = Sequential::new(base).push(GlobalAveragePooling2d);
    let features = |images: &Dataset<RgbImage>| {
        let images = images.map(move |image| weights.format(image, size));
        model.features(&images.batch(BATCH_SIZE))
    };
    let (train, validation) = (features(train)?, features(validation)?);
    let probe = LinearProbe::fit(
        &train,
        Loss::of_classes(train.classes().len()),
        LinearProbe::C,
    )?;
    Ok(ComparedBackbone {
        name: model.base().name(),
        weights,
        image_size: size,
        parameters: model.base().summary().total,
        images_per_second: train.images_per_second,
        accuracy: probe.accuracy(&validation)?,
    })
}

impl fmt::Display for BackboneComparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.backbones.iter().map(|row| row.name.len());
        let first = names.max().unwrap_or(0).max("network".len());
        let weights = self.backbones.iter().map(|row| row.weights.name().len());
        let second = weights.max().unwrap_or(0).max("weights".len());
        write!(
            f,
            "{:first$}  {:second$}  parameters  images/s  accuracy of a linear probe",
            "network", "weights"
        )?;
        for row in &self.backbones {
            let millions = format!("{:.2} M", row.parameters as f64 / 1e6);
            write!(
                f,
                "\n{:first$}  {:second$}  {millions:>10}  {:>8.0}  {:>26.4}",
                row.name,
                row.weights.name(),
                row.images_per_second,
                row.accuracy
            )?;
        }
        Ok(())
    }
}
