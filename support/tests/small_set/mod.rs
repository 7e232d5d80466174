//! A small folder of images, and a model for them.
#![allow(dead_code, reason = "not every test uses all of it")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::Path;

use support::dataset::ImageDataset;
use support::model::{
    Backbone, Dense, GlobalAveragePooling2d, MobileNetV2, Sequential, SetTrainable, Variable,
};
use support::pipeline::{Augmentation, Batches, Pixels};
use support::settings::{BrokenImages, Limit, Settings};
use support::training::{Compiled, Loss, RmsProp};
use tch::Device;
use tempfile::TempDir;

/// Writes `count` images a class, coarse checks of one class's colour on noise.
pub(crate) fn pictures(classes: &[&str], count: usize) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for part in ["train", "validation"] {
        for (label, class) in classes.iter().enumerate() {
            let class_folder = folder.path().join(part).join(class);
            fs::create_dir_all(&class_folder).unwrap();
            for number in 0..count {
                let seed = (label * 7919 + number * 104_729 + part.len() * 31) as u32;
                let picture = image::RgbImage::from_fn(48, 40, |x, y| {
                    let noise = (seed ^ (x * 73 + y * 179)).wrapping_mul(2_654_435_761) >> 25;
                    let checks = if (x / (4 + label as u32 * 5) + y / 6).is_multiple_of(2) {
                        90
                    } else {
                        0
                    };
                    let mut pixel = [noise as u8; 3];
                    pixel[label % 3] += checks;
                    image::Rgb(pixel)
                });
                picture
                    .save(class_folder.join(format!("{number}.png")))
                    .unwrap();
            }
        }
    }
    folder
}

pub(crate) fn dataset(folder: &Path, broken: BrokenImages) -> ImageDataset {
    let mut settings = Settings::from_env().unwrap();
    settings.dataset = Some(folder.to_str().unwrap().into());
    settings.limit = Limit::All;
    settings.seed = 3;
    settings.broken = broken;
    ImageDataset::load(&settings).unwrap()
}

pub(crate) fn format(image: &image::RgbImage) -> Pixels {
    Pixels::from(image)
        .scale(1. / 127.5)
        .offset(-1.)
        .resize(96, 96)
}

pub(crate) fn batches(folder: &Path, broken: BrokenImages) -> (Batches, Batches) {
    augmented_batches(folder, broken, Augmentation::new())
}

pub(crate) fn augmented_batches(
    folder: &Path,
    broken: BrokenImages,
    augmentation: Augmentation,
) -> (Batches, Batches) {
    let [train, validation, _] = dataset(folder, broken).split([8, 1, 1]).unwrap();
    (
        train
            .map(format)
            .augment(augmentation)
            .unwrap()
            .shuffle(8)
            .batch(5),
        validation.map(format).batch(5),
    )
}

/// The pretrained base for the set's images.
pub(crate) fn base(device: Device) -> Backbone {
    let mut settings = Settings::from_env().unwrap();
    settings.device = device;
    MobileNetV2::pretrained([3, 96, 96], &settings).unwrap()
}

pub(crate) fn model(frozen_layers: usize, learning_rate: f64) -> Sequential<Compiled> {
    model_on(Device::Cpu, frozen_layers, learning_rate)
}

pub(crate) fn model_on(
    device: Device,
    frozen_layers: usize,
    learning_rate: f64,
) -> Sequential<Compiled> {
    let mut base = base(device);
    base.layers_mut()[..frozen_layers].set_trainable(false);
    Sequential::new(base)
        .push(GlobalAveragePooling2d)
        .push(Dense::new(1280, 1).seed(1))
        .compile(RmsProp::new(learning_rate), Loss::BinaryCrossentropy)
        .unwrap()
}

/// Every variable's values, by name.
pub(crate) fn weights(model: &Sequential<Compiled>) -> Vec<(String, Vec<f32>)> {
    let values = |variable: &Variable| {
        let values = Vec::try_from(variable.value().detach().reshape([-1])).unwrap();
        (variable.name().to_owned(), values)
    };
    model.variables().map(values).collect()
}
