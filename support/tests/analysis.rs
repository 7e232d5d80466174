//! Predictions on a small folder of images made here. Needs the default weights.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
mod small_set;

use std::fs;

use small_set::{augmented_batches, batches, model, pictures};
use support::Error;
use support::analysis::{Prediction, Predictions};
use support::data_report::data_report;
use support::dataset::ImageDataset;
use support::model::{Backbone, Dense, Dropout, GlobalAveragePooling2d, MobileNetV2, Sequential};
use support::pipeline::{Augmentation, Dataset, Pixels};
use support::settings::{BrokenImages, Settings};
use support::training::{Fit, Loss, RmsProp};
use tch::{Device, Kind, Tensor};

fn ids(predictions: &Predictions) -> Vec<&str> {
    let examples = predictions.examples().iter();
    examples.map(|example| example.id.as_str()).collect()
}

#[test]
#[ignore = "needs weights"]
fn predictions_add_up_to_the_evaluation_and_are_those_of_each_image() {
    let folder = pictures(&["cats", "dogs"], 12);
    fs::write(folder.path().join("train/cats/5.png"), b"not a picture").unwrap();
    let (train, validation) = batches(folder.path(), BrokenImages::Skip);
    let mut model = model(155, 1e-4);
    model.fit(&validation, Fit::epochs(1)).unwrap();

    let predictions = model.predictions(&train).unwrap();
    assert_eq!(predictions.len(), 23);
    let evaluation = model.evaluate(&train).unwrap();
    assert!((predictions.loss() - evaluation.loss).abs() < 1e-6);
    assert!((predictions.accuracy() - evaluation.accuracy).abs() < 1e-12);
    let wrong = predictions.wrong();
    assert!(!wrong.is_empty() && wrong.len() < 23, "{predictions}");
    assert_eq!(
        wrong.len(),
        (23. * (1. - evaluation.accuracy)).round() as usize
    );
    assert!(wrong.examples().iter().all(|example| !example.is_right()));

    // The batches' own order is another one.
    let mut by_index = std::collections::HashMap::new();
    let mut shuffled = Vec::new();
    for batch in train.epoch(0) {
        let batch = batch.unwrap();
        let logits = Vec::<f32>::try_from(model.forward(&batch.images).unwrap().reshape(-1));
        let labels = Vec::<i64>::try_from(&batch.labels).unwrap();
        let pairs = labels.into_iter().zip(logits.unwrap());
        shuffled.extend(batch.indices.clone());
        by_index.extend(batch.indices.into_iter().zip(pairs));
    }
    let indices = predictions.examples().iter().map(|example| example.index);
    assert_ne!(indices.collect::<Vec<_>>(), shuffled);
    for example in predictions.examples() {
        assert_eq!(train.dataset().examples()[example.index].id, example.id);
        let (label, logit) = by_index[&example.index];
        assert_eq!(example.label, label as usize);
        assert_eq!(example.predicted == 1, logit > 0., "{example:?}");
        let dog = 1. / (1. + f64::from(-logit).exp());
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-4, "{a} for {b}");
        close(example.probabilities[0], 1. - dog);
        close(example.probabilities[1], dog);
        close(example.confidence(), dog.max(1. - dog));
        let of_label = example.probabilities[example.label.class().unwrap()];
        close(example.loss, -of_label.ln());
    }

    let worst = predictions.highest_loss(5);
    let losses = |examples: &[Prediction]| -> Vec<f64> {
        examples.iter().map(|example| example.loss).collect()
    };
    let mut sorted = losses(predictions.examples());
    sorted.sort_by(|a, b| b.total_cmp(a));
    assert_eq!(losses(worst.examples()), sorted[..5]);
    assert_eq!(predictions.highest_loss(99).len(), 23);

    assert_eq!(predictions.spread(99).examples(), predictions.examples());
    let all = ids(&predictions);
    let spread = [0, 5, 11, 17].map(|index| all[index]);
    assert_eq!(ids(&predictions.spread(4)), spread);
    assert!(predictions.take(0).spread(4).is_empty());

    let matrix = predictions.confusion_matrix();
    assert_eq!(matrix.classes(), ["cats", "dogs"]);
    assert_eq!(matrix.count(0, 0) + matrix.count(0, 1), 11);
    assert_eq!(matrix.count(0, 1) + matrix.count(1, 0), wrong.len());
    assert_eq!(predictions.report().accuracy, predictions.accuracy());
}

#[test]
#[ignore = "needs weights"]
fn predictions_are_of_the_images_as_they_are() {
    let folder = pictures(&["cats", "dogs"], 4);
    let model = model(155, 1e-4);
    let augmentation = Augmentation::new().random_flip_horizontal();
    let (plain, _) = batches(folder.path(), BrokenImages::Stop);
    let (train, _) = augmented_batches(folder.path(), BrokenImages::Stop, augmentation);
    let [plain, augmented] = [plain, train].map(|batches| model.predictions(&batches).unwrap());
    assert_eq!(plain.examples(), augmented.examples());
}

#[test]
#[ignore = "needs weights"]
fn examples_that_are_there_twice_are_predicted_and_explained_twice() {
    let folder = pictures(&["cats", "dogs"], 3);
    let dataset = small_set::dataset(folder.path(), BrokenImages::Stop);
    let [examples, ..] = dataset.split_examples([8, 1, 1]).unwrap();
    let twice = [&examples[..], &examples[..2]].concat();
    let classes = dataset.classes().to_vec();
    let twice = Dataset::new(twice, classes, 0, BrokenImages::Stop);
    let model = model(155, 1e-4);
    let batches = twice.map(small_set::format).batch(3);
    let predictions = model.predictions(&batches).unwrap();
    let found = predictions.examples();
    let indices: Vec<usize> = found.iter().map(|example| example.index).collect();
    assert_eq!(indices, (0..examples.len() + 2).collect::<Vec<_>>());
    for (copy, original) in found[examples.len()..].iter().zip(found) {
        assert_eq!((&copy.id, &copy.label), (&original.id, &original.label));
        assert!((copy.loss - original.loss).abs() < 1e-4);
    }
    let explanations = model.explain(&predictions.highest_loss(99)).unwrap();
    let explained = explanations.predictions().examples();
    assert_eq!(explained, predictions.highest_loss(99).examples());
    assert_eq!(explanations.maps().unwrap().size()[0], found.len() as i64);
}

#[test]
#[ignore = "needs weights"]
fn what_cannot_be_predicted_is_an_error() {
    let folder = pictures(&["cats", "dogs", "newts"], 1);
    let (three_classes, _) = batches(folder.path(), BrokenImages::Stop);
    let model = model(155, 1e-4);
    let dataset = small_set::dataset(folder.path(), BrokenImages::Stop);
    let examples = dataset.split_examples([8, 1, 1]).unwrap();
    let two = ["cats", "dogs"].map(str::to_owned).to_vec();
    let beyond = Dataset::new(examples.concat(), two, 0, BrokenImages::Stop);
    let beyond_batches = beyond
        .map(|image| Pixels::from(image).resize(96, 96))
        .batch(4);
    for batches in [three_classes.take(0), three_classes, beyond_batches] {
        let error = model.predictions(&batches).unwrap_err();
        assert!(matches!(error, Error::Argument { .. }), "{error}");
    }
    let error = data_report(&[("all", &beyond)]).unwrap_err().to_string();
    assert!(
        error.contains("labels that are indices of 2 classes, got 2 for "),
        "{error}"
    );
}

/// Compares the explanations of three images with those of `tests/reference/layer_cam.py`: what speaks
/// for class 1 if that is predicted, and what speaks against it if it is not.
#[track_caller]
fn assert_explanations_equal_the_references(loss: Loss, kernel: &Tensor, bias: &[f32], name: &str) {
    let folder = tempfile::tempdir().unwrap();
    for class in ["cats", "dogs"] {
        fs::create_dir_all(folder.path().join(class)).unwrap();
        for n in 0..3 {
            let path = folder.path().join(format!("{class}/{n}.png"));
            common::picture(n, 160).save(path).unwrap();
        }
    }
    let mut settings = Settings::from_env().unwrap();
    settings.dataset = Some(folder.path().to_str().unwrap().into());
    let dataset = ImageDataset::load(&settings).unwrap();
    let [all, _, _] = dataset.split([1, 0, 0]).unwrap();
    let batches = all.map(|image| MobileNetV2::TORCHVISION.format(image, 160));

    let shape = [3, 160, 160];
    let base = Backbone::pretrained(
        MobileNetV2::TORCHVISION,
        shape,
        &common::settings(Device::Cpu),
    )
    .unwrap();
    let model = Sequential::new(base)
        .push(GlobalAveragePooling2d)
        .push(Dropout::new(0.5))
        .push(Dense::new(1280, bias.len()))
        .compile(RmsProp::new(1e-3), loss)
        .unwrap();
    let set = |name: &str, values: &Tensor| {
        let variable = model.variables().find(|v| v.name() == name).unwrap();
        tch::no_grad(|| variable.value().shallow_clone().copy_(values));
    };
    set("dense/kernel", kernel);
    set("dense/bias", &Tensor::from_slice(bias));
    let predictions = model.predictions(&batches.batch(4)).unwrap();
    let explanations = model.explain(&predictions.highest_loss(5)).unwrap();
    let predictions = explanations.predictions();
    assert_eq!(predictions.len(), 5);
    let maps = explanations.maps().unwrap();
    assert_eq!(maps.size(), [5, 160, 160]);

    let reference = &common::tensors("layer_cam.safetensors")[name];
    // These are the pixels that the features look at: torchvision pads on both sides.
    let centers = Tensor::arange(10, (Kind::Int64, Device::Cpu)) * 16;
    for (index, example) in (0..).zip(predictions.examples()) {
        assert_eq!(example.predicted, usize::from(name == "for"));
        let n = ["0.png", "1.png", "2.png"].map(|file| example.id.ends_with(file));
        let n = n.iter().position(|is| *is).unwrap() as i64;
        let large = maps.get(index);
        let map = large.index_select(0, &centers).index_select(1, &centers);
        common::assert_close(&example.id, &map, &reference.get(n), 1e-3);
        let between = (map.double_value(&[3, 5]) + 3. * map.double_value(&[4, 5])) / 4.;
        assert!((large.double_value(&[60, 80]) - between).abs() < 1e-3);
        assert_eq!(large.get(159), large.get(144), "beyond the last");
    }
    let error = model.explain(&predictions.take(0)).unwrap_err();
    assert!(matches!(error, Error::Argument { .. }), "{error}");
}

#[test]
#[ignore = "needs weights"]
fn explanations_equal_pytorch_grad_cams() {
    let kernel = Tensor::arange(1280, (Kind::Float, Device::Cpu)).sin() / 10;
    let (binary, sparse) = (
        Loss::BinaryCrossentropy,
        Loss::SparseCategoricalCrossentropy,
    );
    assert_explanations_equal_the_references(binary, &kernel.unsqueeze(0), &[0.], "for");
    assert_explanations_equal_the_references(binary, &kernel.unsqueeze(0), &[-9.], "against");
    let kernel = Tensor::stack(&[-&kernel, kernel.shallow_clone()], 0);
    assert_explanations_equal_the_references(sparse, &kernel, &[0., 0.], "for");
    assert_explanations_equal_the_references(sparse, &kernel, &[9., -9.], "against");
}

#[test]
#[ignore = "needs weights"]
fn of_three_classes_the_most_probable_is_predicted() {
    let folder = pictures(&["cats", "dogs", "newts"], 4);
    let (train, _) = batches(folder.path(), BrokenImages::Stop);
    let base = small_set::base(Device::Cpu);
    let model = Sequential::new(base)
        .push(GlobalAveragePooling2d)
        .push(Dense::new(1280, 3).seed(1))
        .compile(RmsProp::new(1e-3), Loss::SparseCategoricalCrossentropy)
        .unwrap();
    let predictions = model.predictions(&train).unwrap();
    let evaluation = model.evaluate(&train).unwrap();
    assert!((predictions.loss() - evaluation.loss).abs() < 1e-6);
    assert!((predictions.accuracy() - evaluation.accuracy).abs() < 1e-12);
    for example in predictions.examples() {
        let probabilities = &example.probabilities;
        assert!((probabilities.iter().sum::<f64>() - 1.).abs() < 1e-9);
        let highest = probabilities.iter().copied().fold(0., f64::max);
        assert_eq!(example.confidence(), highest);
        let label = example.label.class().unwrap();
        assert!((example.loss + probabilities[label].ln()).abs() < 1e-4);
    }
    assert_eq!(predictions.confusion_matrix().classes().len(), 3);
}

/// What is shown is one page, whatever it shows.
#[test]
#[ignore = "needs weights"]
fn predictions_and_explanations_are_shown_side_by_side() {
    let folder = pictures(&["cats", "dogs"], 14);
    let (train, _) = batches(folder.path(), BrokenImages::Stop);
    let model = model(155, 1e-4);
    let predictions = model.predictions(&train).unwrap();
    let nine = predictions.take(9);
    let figure = nine.show().unwrap();
    let explained = model.explain(&nine).unwrap().show().unwrap();
    assert_eq!(figure.dimensions(), explained.dimensions());
    assert_ne!(figure, explained);
    // Of 28, 25 are shown.
    let all = predictions.show().unwrap();
    assert_eq!(all, predictions.take(25).show().unwrap());
    let none = predictions.take(0).show().unwrap_err();
    assert!(matches!(none, Error::Figure(_)), "{none}");
}
