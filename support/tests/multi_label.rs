//! Several labels per image from beginning to end: images of coloured squares, any number of them in one,
//! are learned, saved, loaded and told. Needs the default weights.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod small_set;

use image::{Rgb, RgbImage};
use support::classifier::{Classifier, TrainingRecord};
use support::dataset::{ImageDataset, Label};
use support::model::{Dense, GlobalAveragePooling2d, MobileNetV2, Sequential};
use support::pipeline::{Batches, Dataset};
use support::settings::{Limit, Settings};
use support::training::{Compiled, Fit, Loss, RmsProp};
use support::{Error, Result};
use tch::Device;

const CLASSES: [&str; 3] = ["red", "green", "blue"];
const SIZE: u32 = 96;

/// Noise with a square of each of these colours, at a place of its own.
fn picture(seed: u32, colors: &[usize]) -> RgbImage {
    let noise = |x: u32, y: u32| (seed ^ (x * 73 + y * 179)).wrapping_mul(2_654_435_761) >> 26;
    let mut picture = RgbImage::from_fn(48, 48, |x, y| Rgb([noise(x, y) as u8; 3]));
    for &color in colors {
        let (left, top) = (16 * color as u32, noise(seed, color as u32) % 32);
        for (x, y) in (0..256).map(|at| (left + at % 16, top + at / 16)) {
            picture.get_pixel_mut(x, y).0[color] = 255;
        }
    }
    picture
}

/// Images of all sets of colours, equally often.
fn dataset(count: u32) -> [Dataset<RgbImage>; 3] {
    let image = |seed: u32| {
        let colors: Vec<usize> = (0..3).filter(|color| seed >> color & 1 == 1).collect();
        let names: Vec<&str> = colors.iter().map(|&color| CLASSES[color]).collect();
        (picture(seed, &colors), names)
    };
    let mut settings = Settings::from_env().unwrap();
    settings.limit = Limit::All;
    let dataset = ImageDataset::from_images((0..count).map(image), &settings).unwrap();
    dataset.split([3, 1, 0]).unwrap()
}

fn batches(dataset: &Dataset<RgbImage>) -> Batches {
    dataset
        .map(|image| MobileNetV2::TF_HUB.format(image, SIZE))
        .shuffle(100)
        .batch(8)
}

fn model(loss: Loss) -> Result<Sequential<Compiled>> {
    let mut base = small_set::base(Device::Cpu);
    base.set_trainable(false);
    Sequential::new(base)
        .push(GlobalAveragePooling2d)
        .push(Dense::new(1280, 3).seed(1))
        .compile(RmsProp::new(1e-3), loss)
}

#[test]
#[ignore = "needs weights"]
fn several_labels_per_image_are_learned_saved_and_told() {
    let [train, validation, _] = dataset(160);
    let (train, validation) = (batches(&train), batches(&validation));
    let mut model = model(Loss::MultiLabelBinaryCrossentropy).unwrap();
    let sampled = train.dataset().sample_balanced().unwrap().batch(8);
    model
        .fit(&sampled, Fit::epochs(40).validation(&validation))
        .unwrap();
    let evaluation = model.evaluate(&validation).unwrap();
    assert!(evaluation.accuracy > 0.97, "{evaluation}");

    let predictions = model.predictions(&validation).unwrap();
    assert!((predictions.accuracy() - evaluation.accuracy).abs() < 1e-6);
    assert!((predictions.loss() - evaluation.loss).abs() < 1e-5);
    assert!(
        predictions.report().micro_average.f1 > 0.97,
        "{}",
        predictions.report()
    );
    assert!(predictions.highest_loss(4).show().is_ok());
    assert!(model.explain(&predictions.take(2)).unwrap().show().is_ok());

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let record = TrainingRecord::new(&train).evaluation(&evaluation);
    model.save(&path, &record).unwrap();
    let classifier = Classifier::load_on(&path, Device::Cpu).unwrap();
    assert_eq!(classifier.info().threshold, None);
    let dataset = validation.dataset();
    for prediction in predictions.take(16).examples() {
        let example = &dataset.examples()[prediction.index];
        let support::dataset::Raw::Pixels(image) = example.encoded_or_pixels().unwrap() else {
            panic!("it is in memory")
        };
        let found = classifier.predict(&image).unwrap();
        for (one, other) in found.probabilities.iter().zip(&prediction.probabilities) {
            assert!((one - other).abs() < 1e-4, "{found}");
        }
        let names: Vec<&str> = found
            .classes
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        let index = |name: &&str| classifier.classes().iter().position(|class| class == name);
        let told: Label = names.iter().filter_map(index).collect();
        assert_eq!(told, prediction.predicted);
    }
    let two = classifier.predict(picture(1001, &[0, 2])).unwrap();
    assert!(
        two.to_string().contains(" %, ") && two.to_string().contains("red "),
        "{two}"
    );
    assert_eq!(
        classifier.predict(picture(1002, &[])).unwrap().to_string(),
        "none"
    );

    model.save(&path, &record.clone().threshold(1.)).unwrap();
    let strict = Classifier::load_on(&path, Device::Cpu).unwrap();
    assert_eq!(strict.predict(picture(1001, &[0, 2])).unwrap().classes, []);
    let error = model
        .save(&path, &record.threshold(1.5))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("a probability from 0 to 1, got 1.5"),
        "{error}"
    );
}

#[test]
#[ignore = "needs weights"]
fn a_loss_for_another_number_of_labels_per_image_is_refused() {
    let [several, ..] = dataset(16);
    let several = batches(&several);
    let images = (0..8).map(|seed| (picture(seed, &[]), CLASSES[seed as usize % 3]));
    let mut settings = Settings::from_env().unwrap();
    settings.limit = Limit::All;
    let one_each = ImageDataset::from_images(images, &settings).unwrap();
    let [one_each, ..] = one_each.split([1, 0, 0]).unwrap();
    for (loss, data, got) in [
        (
            Loss::SparseCategoricalCrossentropy,
            several,
            "any number of classes each",
        ),
        (
            Loss::MultiLabelBinaryCrossentropy,
            batches(&one_each),
            "one class each",
        ),
    ] {
        let mut model = model(loss).unwrap();
        let error = model.fit(&data, Fit::epochs(1)).unwrap_err();
        assert!(matches!(error, Error::Argument { .. }), "{error}");
        assert!(
            error
                .to_string()
                .ends_with(&format!("got examples of {got}")),
            "{error}"
        );
    }
}
