//! Fitting and evaluating on a small folder of images made here. Needs the default weights.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod small_set;

use std::fs;

use small_set::{augmented_batches, batches, model, pictures, weights};
use support::Error;
use support::dataset::Example;
use support::model::{Dense, Dropout, GlobalAveragePooling2d, Sequential};
use support::pipeline::{Augmentation, Batches, Dataset};
use support::settings::BrokenImages;
use support::training::{Compiled, Fit, History, Loss, RmsProp};
use tch::{Device, Tensor};

/// A frozen base with features dropped before the last layer.
fn dropping_model(learning_rate: f64, seed: u64) -> Sequential<Compiled> {
    let mut base = small_set::base(Device::Cpu);
    base.set_trainable(false);
    Sequential::new(base)
        .push(GlobalAveragePooling2d)
        .push(Dropout::new(0.2).seed(seed))
        .push(Dense::new(1280, 1).seed(1))
        .compile(RmsProp::new(learning_rate), Loss::BinaryCrossentropy)
        .unwrap()
}

fn augmentation() -> Augmentation {
    Augmentation::new()
        .random_flip_horizontal()
        .random_rotation(0.1)
        .color_jitter(0.2, 0.2, 0.2)
}

fn fit(frozen_layers: usize, cache: bool, batches: &(Batches, Batches)) -> History {
    let (train, validation) = batches;
    let fit = Fit::epochs(3)
        .validation(validation)
        .cache_activations(cache);
    model(frozen_layers, 1e-4).fit(train, fit).unwrap()
}

/// Every number of a history except the seconds.
fn numbers(history: &History) -> Vec<f64> {
    [
        history.loss(),
        history.accuracy(),
        history.val_loss(),
        history.val_accuracy(),
    ]
    .concat()
}

#[test]
#[ignore = "needs weights"]
fn a_run_on_stored_activations_has_the_losses_of_one_on_images() {
    let folder = pictures(&["cats", "dogs"], 12);
    // One in the middle of the order that cannot be read: the batches have to close up alike.
    fs::write(folder.path().join("train/cats/5.png"), b"not a picture").unwrap();
    let batches = batches(folder.path(), BrokenImages::Skip);
    for frozen_layers in [155, 100] {
        let stored = numbers(&fit(frozen_layers, true, &batches));
        let computed = numbers(&fit(frozen_layers, false, &batches));
        assert_eq!(stored.len(), 12);
        for (stored, computed) in stored.iter().zip(&computed) {
            assert!((stored - computed).abs() < 1e-4, "{stored} for {computed}");
        }
    }
}

#[test]
#[ignore = "needs weights"]
fn an_example_that_is_there_twice_counts_twice_on_stored_activations_as_well() {
    let folder = pictures(&["cats", "dogs"], 6);
    let [train, _, _] = small_set::dataset(folder.path(), BrokenImages::Stop)
        .split([8, 1, 1])
        .unwrap();
    let cats = train.examples().iter().filter(|example| example.label == 0);
    let examples: Vec<Example> = cats.chain(train.examples()).cloned().collect();
    let classes = train.classes().to_vec();
    let twice = Dataset::new(examples, classes, 3, BrokenImages::Stop);
    let twice = twice.map(small_set::format).shuffle(8).batch(5);
    let fit = |cache| {
        let fit = Fit::epochs(3).validation(&twice).cache_activations(cache);
        numbers(&model(155, 1e-3).fit(&twice, fit).unwrap())
    };
    for (stored, computed) in fit(true).iter().zip(fit(false)) {
        assert!((stored - computed).abs() < 1e-4, "{stored} for {computed}");
    }
}

#[test]
#[ignore = "needs weights"]
fn activations_in_a_file_give_the_history_of_those_in_memory_in_whatever_order_they_are_read() {
    let folder = pictures(&["cats", "dogs"], 6);
    let (train, validation) = &batches(folder.path(), BrokenImages::Skip);
    let fit = |memory: usize| {
        let fit = Fit::epochs(2).validation(validation);
        let fit = fit.activation_memory(memory);
        numbers(&model(100, 1e-4).fit(train, fit).unwrap())
    };
    let in_memory = fit(1 << 30);
    // The window of a shuffle with a buffer of 8 fits, all 12 do not: read front to back.
    let row = 6 * 6 * 96 * size_of::<f32>();
    assert_eq!(fit(8 * row), in_memory);
    // No window: each is read where it is.
    assert_eq!(fit(0), in_memory);
}

#[test]
#[ignore = "needs weights"]
fn the_same_seed_gives_the_same_history() {
    let folder = pictures(&["cats", "dogs"], 6);
    let batches = batches(folder.path(), BrokenImages::Skip);
    let first = numbers(&fit(100, true, &batches));
    assert_eq!(first, numbers(&fit(100, true, &batches)));
}

#[test]
#[ignore = "needs weights"]
fn fitting_learns() {
    let folder = pictures(&["cats", "dogs"], 12);
    let (train, validation) = batches(folder.path(), BrokenImages::Stop);
    learns(&mut model(155, 1e-2), &train, &validation, 0.9);
}

/// Asserts that eight epochs halve the validation loss and end above an accuracy.
#[track_caller]
fn learns(
    model: &mut Sequential<Compiled>,
    train: &Batches,
    validation: &Batches,
    least_accuracy: f64,
) {
    let before = model.evaluate(validation).unwrap();
    let fit = Fit::epochs(8).validation(validation);
    let history = model.fit(train, fit).unwrap();
    let after = model.evaluate(validation).unwrap();
    assert_eq!(history.val_loss().last(), Some(&after.loss));
    assert!(after.loss < 0.5 * before.loss, "{before} became {after}");
    assert!(after.accuracy > least_accuracy, "{after}");
}

#[test]
#[ignore = "needs weights"]
fn fitting_with_augmentation_and_dropout_learns_and_evaluates_the_images_as_they_are() {
    let folder = pictures(&["cats", "dogs"], 12);
    let (train, validation) = augmented_batches(folder.path(), BrokenImages::Stop, augmentation());
    let (plain, _) = batches(folder.path(), BrokenImages::Stop);
    let mut model = dropping_model(1e-3, 0);
    learns(&mut model, &train, &validation, 0.8);
    assert_eq!(
        model.evaluate(&train).unwrap(),
        model.evaluate(&plain).unwrap()
    );
    // Nothing is augmented where it serves as validation, stored or not.
    for cache in [true, false] {
        let fit = |validation| {
            let fit = Fit::epochs(1).validation(validation);
            let history = dropping_model(1e-4, 0).fit(&train, fit.cache_activations(cache));
            history.unwrap().val_loss()
        };
        assert_eq!(fit(&train), fit(&plain));
    }
}

#[test]
#[ignore = "needs weights"]
fn what_is_augmented_and_dropped_is_reproducible_and_the_same_in_a_continued_run() {
    let folder = pictures(&["cats", "dogs"], 4);
    let augmented =
        |augmentation| augmented_batches(folder.path(), BrokenImages::Stop, augmentation).0;
    let fit = |train: &Batches, seed, stops: &[usize]| {
        let mut model = dropping_model(1e-3, seed);
        let mut losses = Vec::new();
        let mut done = 0;
        for &epochs in stops {
            let fit = Fit::epochs(epochs).initial_epoch(done);
            losses.extend(model.fit(train, fit).unwrap().loss());
            done = epochs;
        }
        losses
    };
    let train = augmented(augmentation());
    let whole = fit(&train, 5, &[3]);
    assert_eq!(whole, fit(&train, 5, &[3]));
    assert_eq!(whole, fit(&train, 5, &[1, 3]));
    assert_ne!(whole, fit(&train, 6, &[3]));
    assert_ne!(whole, fit(&augmented(Augmentation::new()), 5, &[3]));
    // On stored activations as well.
    let plain = augmented(Augmentation::new());
    assert_eq!(fit(&plain, 5, &[3]), fit(&plain, 5, &[2, 3]));
    // With steps too small to change a weight, a new model's later epochs are the first one's.
    let losses = |initial_epoch| {
        let fit = Fit::epochs(3).initial_epoch(initial_epoch);
        dropping_model(1e-30, 5).fit(&plain, fit).unwrap().loss()
    };
    assert_eq!(losses(0)[1..], losses(1));
    assert_ne!(losses(0)[0], losses(0)[1]);
    // Nor do the steps of an epoch drop the same.
    let (images, labels) = plain.first().unwrap();
    let mut model = dropping_model(1e-30, 5);
    let [one, other] = [0, 1].map(|_| model.train_on_batch(&images, &labels).unwrap().loss);
    assert_ne!(one, other);
}

#[test]
#[ignore = "needs weights"]
fn a_dropout_of_everything_or_less_than_nothing_is_not_compiled() {
    for rate in [-0.1, 1., f64::NAN, f64::INFINITY] {
        let base = small_set::base(Device::Cpu);
        let error = Sequential::new(base)
            .push(GlobalAveragePooling2d)
            .push(Dropout::new(rate))
            .push(Dense::new(1280, 1))
            .compile(RmsProp::new(1e-4), Loss::BinaryCrossentropy)
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("Dropout, the rate: expected 0 or more, and less than 1, got {rate}")
        );
    }
}

#[test]
#[ignore = "needs weights"]
fn a_run_can_be_continued_and_the_histories_joined() {
    let folder = pictures(&["cats", "dogs"], 3);
    let (train, _) = batches(folder.path(), BrokenImages::Stop);
    let mut model = model(155, 1e-4);
    let first = model.fit(&train, Fit::epochs(1)).unwrap();
    let next = model.fit(&train, Fit::epochs(3).initial_epoch(1)).unwrap();
    assert_eq!(first.then(&next).epochs.len(), 3);
    assert!(next.val_accuracy().is_empty());
}

#[test]
#[ignore = "needs weights"]
fn the_last_epoch_that_can_be_counted_is_trained() {
    let folder = pictures(&["cats", "dogs"], 2);
    let (train, _) = batches(folder.path(), BrokenImages::Stop);
    let last = Fit::epochs(usize::MAX).initial_epoch(usize::MAX - 1);
    let history = model(155, 1e-4).fit(&train, last).unwrap();
    assert_eq!(history.epochs.len(), 1);
}

#[test]
#[ignore = "needs weights"]
fn evaluating_a_number_of_steps_takes_the_first_batches() {
    let folder = pictures(&["cats", "dogs"], 6);
    let (_, validation) = batches(folder.path(), BrokenImages::Stop);
    assert_eq!(validation.take(2).examples(), 10);
    let model = model(155, 1e-4);
    let whole = model.evaluate(&validation).unwrap();
    assert_eq!(model.evaluate(&validation.take(100)).unwrap(), whole);
    assert_ne!(model.evaluate(&validation.take(1)).unwrap(), whole);
}

#[test]
#[ignore = "needs weights"]
fn a_broken_image_is_skipped_and_named_or_stops_the_run() {
    let folder = pictures(&["cats", "dogs"], 4);
    fs::write(folder.path().join("train/dogs/2.png"), b"").unwrap();
    let (train, _) = batches(folder.path(), BrokenImages::Skip);
    model(155, 1e-4).fit(&train, Fit::epochs(1)).unwrap();
    let skipped = train.skipped();
    assert_eq!(skipped.len(), 1);
    assert_eq!(skipped[0].name, "train/dogs/2.png");

    let (train, _) = batches(folder.path(), BrokenImages::Stop);
    let error = model(155, 1e-4)
        .fit(&train, Fit::epochs(1))
        .unwrap_err()
        .to_string();
    assert!(error.contains("train/dogs/2.png"), "{error}");
}

#[test]
#[ignore = "needs weights"]
fn an_image_that_cannot_be_read_after_an_epoch_does_not_cost_the_history() {
    let folder = pictures(&["cats", "dogs"], 4);
    let (train, validation) = batches(folder.path(), BrokenImages::Stop);
    let mut model = model(155, 1e-4);
    let fit = Fit::epochs(5)
        .validation(&validation)
        .cache_activations(false)
        .on_epoch_end(|history| {
            if history.epochs.len() == 2 {
                fs::write(folder.path().join("train/dogs/2.png"), b"").unwrap();
            }
            Ok(())
        });
    let error = model.fit(&train, fit).unwrap_err();
    assert!(
        matches!(
            &error,
            Error::Training { epoch: 3, epochs: 2, source }
                if matches!(**source, Error::Image { .. })
        ),
        "{error}"
    );
    let history = model.history().clone();
    assert_eq!(history.val_loss().len(), 2);
    // A fit that is refused leaves it, the next one's is another.
    model.fit(&train, Fit::epochs(0)).unwrap_err();
    assert_eq!(*model.history(), history);
    let next = model.fit(&validation, Fit::epochs(1)).unwrap();
    assert_eq!(*model.history(), next);
}

#[test]
#[ignore = "needs weights"]
fn a_training_that_diverges_ends_with_the_model_as_it_was() {
    let folder = pictures(&["cats", "dogs"], 4);
    let (train, validation) = batches(folder.path(), BrokenImages::Stop);
    let before = weights(&model(140, 1.));
    let diverge = |frozen, learning_rate: f64, train: &Batches, fit: Fit<'_>| {
        let mut model = model(frozen, learning_rate);
        let error = model.fit(train, fit).unwrap_err();
        assert!(
            matches!(
                &error,
                Error::Training { epoch: 1, epochs: 0, source }
                    if matches!(**source, Error::NotFinite { epochs: 0, .. })
            ),
            "{error}"
        );
        assert!(weights(&model) == before, "the weights changed");
        assert!(model.history().epochs.is_empty());
        // The optimizer as well.
        let (images, labels) = validation.first().unwrap();
        let rate = RmsProp::new(learning_rate);
        let mut fresh = small_set::model(frozen, 1.)
            .compile(rate, Loss::BinaryCrossentropy)
            .unwrap();
        for model in [&mut model, &mut fresh] {
            model.train_on_batch(&images, &labels).unwrap();
        }
        // By their bits: a step of such a length may leave no numbers.
        let bits = |model| {
            let values = weights(model).into_iter().flat_map(|(_, values)| values);
            values.map(f32::to_bits).collect::<Vec<_>>()
        };
        assert!(bits(&model) == bits(&fresh), "the optimizers differ");
        error.to_string()
    };
    let step = diverge(140, 1e20, &train, Fit::epochs(2));
    assert!(
        step.contains("epoch 1: the loss of step 2 of 2 is "),
        "{step}"
    );
    assert!(step.contains("lower learning rate than 1e20 "), "{step}");
    // The only step's loss is from before it.
    let one = train.take(1);
    let validated = diverge(155, 1e38, &one, Fit::epochs(2).validation(&validation));
    assert!(
        validated.contains("epoch 1: the validation loss of step 1 of 2 is "),
        "{validated}"
    );
    let weight = diverge(140, 1e39, &one, Fit::epochs(2));
    assert!(
        weight.contains("epoch 1: a weight after the last step is not finite"),
        "{weight}"
    );
}

#[test]
#[ignore = "needs weights"]
fn labels_that_do_not_exist_are_refused_before_anything_changes() {
    let folder = pictures(&["cats", "dogs"], 2);
    let (train, _) = batches(folder.path(), BrokenImages::Stop);
    let (images, labels) = train.first().unwrap();
    assert_eq!(labels.size(), [4]);
    let mut model = model(155, 1e-3);
    let before = weights(&model);
    let mut refusal = |images: &Tensor, labels: Tensor| {
        let error = model.train_on_batch(images, &labels).unwrap_err();
        assert!(weights(&model) == before, "the weights changed");
        error
    };
    for (wrong, reason) in [
        (
            Tensor::from_slice(&[0i64, 7, 1, 0]),
            "indices of 2 classes, got 7",
        ),
        (
            Tensor::from_slice(&[0i64, 1, 1, -1]),
            "indices of 2 classes, got -1",
        ),
        (
            Tensor::from_slice(&[0f32, 1., 1., 0.]),
            "64-bit integers, got Float",
        ),
    ] {
        let error = refusal(&images, wrong);
        assert!(matches!(error, Error::Argument { .. }), "{error}");
        assert!(error.to_string().contains(reason), "{error}");
    }
    for wrong in [labels.narrow(0, 0, 3), labels.unsqueeze(1)] {
        let error = refusal(&images, wrong);
        assert!(matches!(error, Error::Shape { .. }), "{error}");
    }
    let error = refusal(&images.narrow(0, 0, 0), labels.narrow(0, 0, 0));
    assert!(matches!(error, Error::Shape { .. }), "{error}");
    model.train_on_batch(&images, &labels).unwrap();
    assert!(weights(&model) != before);
}

#[test]
#[ignore = "needs weights"]
fn more_classes_than_the_loss_takes_are_refused() {
    let folder = pictures(&["birds", "cats", "dogs"], 2);
    let (train, _) = batches(folder.path(), BrokenImages::Stop);
    let error = model(155, 1e-4)
        .fit(&train, Fit::epochs(1))
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "fit, the training batches: expected examples of 2 classes, got 6 examples of 3 classes"
    );
}

#[test]
#[ignore = "needs weights"]
fn a_fit_that_would_do_nothing_is_refused() {
    let folder = pictures(&["cats", "dogs"], 2);
    let (train, validation) = batches(folder.path(), BrokenImages::Stop);
    let mut model = model(155, 1e-4);
    let mut refusal =
        |batches: &Batches, fit: Fit<'_>| model.fit(batches, fit).unwrap_err().to_string();
    let none = Fit::epochs(2).initial_epoch(2);
    assert!(refusal(&train, none).contains("more than the initial epoch, 2, got 2"));
    let empty = validation.take(0);
    let error = refusal(&train, Fit::epochs(1).validation(&empty));
    assert!(
        error.starts_with("fit, the validation batches: "),
        "{error}"
    );
    assert!(refusal(&empty, Fit::epochs(1)).starts_with("fit, the training batches: "));
}

#[test]
#[ignore = "needs weights"]
fn a_model_that_the_loss_or_the_optimizer_cannot_train_is_not_compiled() {
    let compile = |outputs: usize, learning_rate: f64| {
        let base = small_set::base(Device::Cpu);
        Sequential::new(base)
            .push(GlobalAveragePooling2d)
            .push(Dense::new(1280, outputs))
            .compile(RmsProp::new(learning_rate), Loss::BinaryCrossentropy)
            .unwrap_err()
            .to_string()
    };
    assert!(compile(2, 1e-4).contains("expected shape [1] for BinaryCrossentropy, got [2]"));
    for rate in [0., -1., f64::NAN, f64::INFINITY] {
        assert!(
            compile(1, rate).contains("learning rate to be a positive number"),
            "{rate}"
        );
    }
}

#[test]
#[ignore = "needs weights"]
fn three_classes_are_learned_and_a_head_for_two_refuses_them() {
    let folder = pictures(&["ants", "bees", "cows"], 10);
    let (train, validation) = batches(folder.path(), BrokenImages::Stop);
    let model = |classes: usize| {
        let mut base = small_set::base(Device::Cpu);
        base.set_trainable(false);
        Sequential::new(base)
            .push(GlobalAveragePooling2d)
            .push(Dense::new(1280, classes))
            .compile(RmsProp::new(1e-3), Loss::SparseCategoricalCrossentropy)
            .unwrap()
    };
    let fit = Fit::epochs(20).validation(&validation);
    let history = model(3).fit(&train, fit).unwrap();
    assert!(history.val_accuracy()[19] > 0.9, "{history:?}");
    let error = model(2).fit(&train, Fit::epochs(1)).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("of 2 classes") && error.contains("of 3 classes"),
        "{error}"
    );
}
