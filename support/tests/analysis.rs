//! Predictions on a small folder of pictures made here. Needs the default weights.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod small_set;

use std::fs;

use small_set::{augmented_batches, batches, model, pictures};
use support::Error;
use support::analysis::{Prediction, Predictions};
use support::model::{Dense, Dropout, GlobalAveragePooling2d, MobileNetV2, Sequential};
use support::pipeline::Augmentation;
use support::settings::BrokenPictures;
use support::training::{Fit, Loss, RmsProp};
use tch::{Device, Kind, Tensor};

fn ids(predictions: &Predictions) -> Vec<&str> {
    let examples = predictions.examples().iter();
    examples.map(|example| example.id.as_str()).collect()
}

#[test]
fn predictions_add_up_to_the_evaluation_and_are_those_of_each_picture() {
    let folder = pictures(&["cats", "dogs"], 12);
    fs::write(folder.path().join("train/cats/5.png"), b"not a picture").unwrap();
    let (train, validation) = batches(folder.path(), BrokenPictures::Skip);
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
    let mut by_id = std::collections::HashMap::new();
    let mut shuffled = Vec::new();
    for batch in train.epoch(0) {
        let batch = batch.unwrap();
        let logits = Vec::<f32>::try_from(model.forward(&batch.images).unwrap().reshape(-1));
        let labels = Vec::<i64>::try_from(&batch.labels).unwrap();
        let pairs = labels.into_iter().zip(logits.unwrap());
        shuffled.extend(batch.ids.clone());
        by_id.extend(batch.ids.into_iter().zip(pairs));
    }
    assert_ne!(ids(&predictions), shuffled);
    for example in predictions.examples() {
        let (label, logit) = by_id[&example.id];
        assert_eq!(example.label as i64, label);
        assert_eq!(example.predicted == 1, logit > 0., "{example:?}");
        let dog = 1. / (1. + f64::from(-logit).exp());
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-4, "{a} for {b}");
        close(example.probabilities[0], 1. - dog);
        close(example.probabilities[1], dog);
        close(example.confidence(), dog.max(1. - dog));
        close(example.loss, -example.probabilities[example.label].ln());
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
    let counts = matrix.counts();
    assert_eq!(counts[0][0] + counts[0][1], 11);
    assert_eq!(counts[0][1] + counts[1][0], wrong.len());
    assert_eq!(predictions.report().accuracy, predictions.accuracy());
}

#[test]
fn predictions_are_of_the_pictures_as_they_are() {
    let folder = pictures(&["cats", "dogs"], 4);
    let model = model(155, 1e-4);
    let augmentation = Augmentation::new().random_flip_horizontal();
    let (plain, _) = batches(folder.path(), BrokenPictures::Stop);
    let (train, _) = augmented_batches(folder.path(), BrokenPictures::Stop, augmentation);
    let [plain, augmented] = [plain, train].map(|batches| model.predictions(&batches).unwrap());
    assert_eq!(plain.examples(), augmented.examples());
}

#[test]
fn what_cannot_be_predicted_is_an_error() {
    let folder = pictures(&["cats", "dogs", "newts"], 1);
    let (three_classes, _) = batches(folder.path(), BrokenPictures::Stop);
    let model = model(155, 1e-4);
    for batches in [three_classes.take(0), three_classes] {
        let error = model.predictions(&batches).unwrap_err();
        assert!(matches!(error, Error::Argument { .. }), "{error}");
    }
}

/// With one dense layer behind the pooling, the gradient is the same everywhere: the layer's kernel,
/// divided by the number of positions.
#[track_caller]
fn assert_explanations_are_class_activation_maps(classes: &[&str], loss: Loss, outputs: usize) {
    let folder = pictures(classes, 6);
    let (train, _) = batches(folder.path(), BrokenPictures::Stop);
    let mut base = MobileNetV2::pretrained([3, 96, 96], Device::Cpu).unwrap();
    base.set_trainable(false);
    let mut model = Sequential::new(base)
        .push(GlobalAveragePooling2d)
        .push(Dropout::new(0.5))
        .push(Dense::new(1280, outputs).seed(1))
        .compile(RmsProp::new(1e-3), loss)
        .unwrap();
    model.fit(&train, Fit::epochs(20)).unwrap();
    // In another order than the dataset's, some of them, of every class.
    let count = train.examples() - 1;
    let predictions = model.predictions(&train).unwrap().highest_loss(count);
    for class in 0..classes.len() {
        let mut examples = predictions.examples().iter();
        assert!(examples.any(|example| example.predicted == class));
    }
    let explanations = model.explain(&predictions).unwrap();
    assert_eq!(ids(explanations.predictions()), ids(&predictions));
    let maps = explanations.maps().unwrap();
    assert_eq!(maps.size(), [count as i64, 96, 96]);

    let mut images = std::collections::HashMap::new();
    for batch in train.epoch(0) {
        let batch = batch.unwrap();
        let of_batch = (0..).zip(batch.ids);
        images.extend(of_batch.map(|(i, id)| (id, batch.images.get(i))));
    }
    let kernel = model.variables().find(|v| v.name() == "dense/kernel");
    let kernel = kernel.unwrap().value().detach();
    for (index, example) in (0..).zip(predictions.examples()) {
        let image = images[&example.id].unsqueeze(0);
        let features = model.base().forward(&image).unwrap().get(0);
        let weights = match (loss, example.predicted as i64) {
            (Loss::BinaryCrossentropy, 0) => -kernel.select(0, 0),
            (Loss::BinaryCrossentropy, _) => kernel.select(0, 0),
            (Loss::SparseCategoricalCrossentropy, class) => kernel.select(0, class),
        };
        let sum = (features * weights.reshape([1280, 1, 1])).sum_dim_intlist(
            [0i64].as_slice(),
            false,
            Kind::Float,
        );
        let map = sum.relu().reshape([3, 3]);
        let map = &map / map.max();
        // These are the pixels that the features look at; the first two are 32 apart.
        let centers = Tensor::from_slice(&[31i64, 63, 95]);
        let large = maps.get(index);
        let at_centers = large.index_select(0, &centers).index_select(1, &centers);
        let deviation = (at_centers - &map).abs().max().double_value(&[]);
        assert!(deviation < 1e-3, "{example:?}: {deviation}");
        let between = (map.double_value(&[0, 1]) + 3. * map.double_value(&[1, 1])) / 4.;
        assert!((large.double_value(&[55, 63]) - between).abs() < 1e-3);
        assert_eq!(large.get(0), large.get(31), "beyond the first");
    }
    let error = model.explain(&predictions.take(0)).unwrap_err();
    assert!(matches!(error, Error::Argument { .. }), "{error}");
}

#[test]
fn an_explanation_is_the_class_activation_map_of_what_was_predicted() {
    let [cats, dogs, newts] = ["cats", "dogs", "newts"];
    assert_explanations_are_class_activation_maps(&[cats, dogs], Loss::BinaryCrossentropy, 1);
    let sparse = Loss::SparseCategoricalCrossentropy;
    assert_explanations_are_class_activation_maps(&[cats, dogs, newts], sparse, 3);
}

#[test]
fn of_three_classes_the_most_probable_is_predicted() {
    let folder = pictures(&["cats", "dogs", "newts"], 4);
    let (train, _) = batches(folder.path(), BrokenPictures::Stop);
    let base = MobileNetV2::pretrained([3, 96, 96], Device::Cpu).unwrap();
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
        assert!((example.loss + probabilities[example.label].ln()).abs() < 1e-4);
    }
    assert_eq!(predictions.confusion_matrix().counts().len(), 3);
}

/// What is shown is one page, whatever it shows.
#[test]
fn predictions_and_explanations_are_shown_side_by_side() {
    let folder = pictures(&["cats", "dogs"], 14);
    let (train, _) = batches(folder.path(), BrokenPictures::Stop);
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
