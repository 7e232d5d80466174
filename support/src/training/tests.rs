//! Optimizers, schedules and the two phases of fine-tuning in a whole `fit`, on a small network.

use std::collections::HashMap;
use std::path::Path;

use image::RgbImage;
use safetensors::SafeTensors;
use serde_json::Value;
use tch::Device;

use super::*;
use crate::dataset::ImageDataset;
use crate::model::tests::network;
use crate::model::{
    Architecture, Dense, Dropout, GlobalAveragePooling2d, MobileNetV2, SetTrainable as _,
};
use crate::pipeline::{Batches, Pixels};
use crate::settings::Settings;

const FROZEN: usize = 140;

/// 28 images for training, in batches of 4, which makes 7 steps an epoch, and some for validation.
fn batches() -> [Batches; 2] {
    let image = |number: u32| {
        RgbImage::from_fn(32, 32, |x, y| {
            let value = (x * 7 + y * 13 + number * 29) % 256;
            image::Rgb([value as u8, (200 * (number % 2)) as u8, 99])
        })
    };
    let images = (0..45).map(|number| (image(number), ["cats", "dogs"][number as usize % 2]));
    let settings = Settings::from_lookup(|_| None).unwrap();
    let dataset = ImageDataset::from_images(images, &settings).unwrap();
    let [train, validation, _] = dataset.split([4, 1, 0]).unwrap();
    let format = |image: &RgbImage| Pixels::from(image).scale(1. / 127.5).offset(-1.);
    let train = train.map(format).take(28).shuffle(16).batch(4);
    assert_eq!(train.len(), 7);
    [train, validation.map(format).batch(4)]
}

/// One with something frozen and something random.
fn model(optimizer: impl Into<Optimizer>) -> Sequential<Compiled> {
    let architecture = Architecture::MobileNetV2(MobileNetV2 { alpha: 0.35 });
    let mut base = network((architecture, MobileNetV2::KERAS, [3, 32, 32]));
    base.layers_mut()[..FROZEN].set_trainable(false);
    assert_eq!(base.device(), Device::Cpu);
    Sequential::new(base)
        .push(GlobalAveragePooling2d)
        .push(Dropout::new(0.2))
        .push(Dense::new(1280, 1).seed(1))
        .compile(optimizer, Loss::BinaryCrossentropy)
        .unwrap()
}

/// The variables and the optimizer's state in a checkpoint.
fn tensors(bytes: &[u8]) -> HashMap<String, Vec<u8>> {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let tensors = file.iter();
    tensors
        .map(|(name, view)| (name.to_owned(), view.data().to_vec()))
        .collect()
}

/// The texts in a checkpoint.
fn texts(bytes: &[u8]) -> HashMap<String, String> {
    let (_, header) = SafeTensors::read_metadata(bytes).unwrap();
    header.metadata().clone().unwrap()
}

fn checkpoint(folder: &Path, epoch: usize) -> Vec<u8> {
    std::fs::read(folder.join(format!("epoch-{epoch:04}.safetensors"))).unwrap()
}

fn numbers(history: &History) -> Vec<[Option<f64>; 3]> {
    let epochs = history.epochs.iter();
    epochs
        .map(|epoch| [Some(epoch.loss), epoch.val_loss, epoch.learning_rate])
        .collect()
}

#[test]
fn each_optimizer_and_schedule_is_resumed_to_the_bit() {
    type Make = fn() -> Optimizer;
    let cases: [(Make, Schedule); 5] = [
        (|| RmsProp::new(1e-4).into(), Schedule::Constant),
        (
            || RmsProp::new(1e-4).weight_decay(0.1),
            CosineDecay::new().warmup(0.1).into(),
        ),
        (
            || Sgd::new(1e-3).momentum(0.9).nesterov().clip_norm(0.5),
            OneCycle::new().into(),
        ),
        (
            || Adam::new(1e-3).clip_value(0.1),
            // Every epoch is one without an improvement.
            ReduceOnPlateau::new().patience(1).min_delta(9.).into(),
        ),
        (
            || AdamW::new(1e-3).discriminative(0.01),
            OneCycle::new().pct_start(0.5).into(),
        ),
    ];
    let [train, validation] = batches();
    for (optimizer, schedule) in cases {
        let folder = tempfile::tempdir().unwrap();
        let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
        let fit = || {
            Fit::epochs(3)
                .validation(&validation)
                .schedule(schedule.clone())
        };
        let expected = model(optimizer())
            .fit(&train, fit().checkpoints(&whole))
            .unwrap();
        let interrupted = fit()
            .checkpoints(&parts)
            .on_epoch_end(|_| Err(Error::Figure("interrupted".into())));
        model(optimizer()).fit(&train, interrupted).unwrap_err();
        let mut model = model(optimizer());
        let history = model.fit(&train, fit().resume(&parts)).unwrap();
        assert_eq!(numbers(&history), numbers(&expected), "{schedule:?}");
        let [whole, parts] = [whole, parts].map(|folder| checkpoint(&folder, 3));
        assert!(tensors(&whole) == tensors(&parts), "{schedule:?}");
        // Three times seven steps, and a state of each variable.
        assert_eq!(texts(&whole)["optimizer steps"], "21");
        let variables = model.trainable_variables();
        let names = model.compiled.optimizer.names(&variables);
        let mut names = names.map(|(name, _)| format!("optimizer/{name}"));
        assert!(names.all(|name| tensors(&whole).contains_key(&name)));
    }
}

#[test]
fn a_checkpoint_of_before_there_were_other_optimizers_is_read() {
    let [train, _] = batches();
    let folder = tempfile::tempdir().unwrap();
    let fit = |epochs| Fit::epochs(epochs).resume(folder.path());
    let expected = model(RmsProp::new(1e-4)).fit(&train, fit(2)).unwrap();
    std::fs::remove_file(folder.path().join("epoch-0002.safetensors")).unwrap();
    let new = checkpoint(folder.path(), 1);
    assert!(tensors(&new).contains_key("optimizer/mean_square/dense/kernel"));
    let mut texts = texts(&new);
    texts.remove("optimizer steps").unwrap();
    let file = SafeTensors::deserialize(&new).unwrap();
    let old = safetensors::serialize(file.iter(), Some(texts)).unwrap();
    std::fs::write(folder.path().join("epoch-0001.safetensors"), old).unwrap();
    let resumed = model(RmsProp::new(1e-4)).fit(&train, fit(2)).unwrap();
    assert_eq!(numbers(&resumed), numbers(&expected));
}

#[test]
fn a_run_whose_learning_rate_depends_on_its_end_is_not_resumed_to_another() {
    let [train, _] = batches();
    let folder = tempfile::tempdir().unwrap();
    let fit = |epochs, schedule: Schedule| {
        let fit = Fit::epochs(epochs).schedule(schedule).resume(folder.path());
        model(Sgd::new(1e-3)).fit(&train, fit)
    };
    fit(1, OneCycle::new().into()).unwrap();
    let longer = fit(2, OneCycle::new().into()).unwrap_err().to_string();
    assert!(
        longer.contains("schedule epochs 1 where this one has 2"),
        "{longer}"
    );
    let other = fit(1, OneCycle::new().div_start(5.).into())
        .unwrap_err()
        .to_string();
    assert!(
        other.contains("schedule div start 25.0 where this one has 5.0"),
        "{other}"
    );
}

#[test]
fn the_rates_of_a_fit_after_an_initial_epoch_are_those_of_its_own_steps() {
    let [train, _] = batches();
    let fit = Fit::epochs(5).initial_epoch(3).schedule(CosineDecay::new());
    let history = model(Sgd::new(1e-3)).fit(&train, fit).unwrap();
    let last = |step: f64| 1e-3 * (1. + (std::f64::consts::PI * step / 14.).cos()) / 2.;
    for (rate, expected) in history.learning_rate().iter().zip([last(6.), last(13.)]) {
        assert!((rate - expected).abs() < 1e-12, "{rate} for {expected}");
    }
    assert_eq!(history.epochs.len(), 2);
}

#[test]
fn a_plateau_needs_a_validation() {
    let [train, _] = batches();
    let fit = Fit::epochs(1).schedule(ReduceOnPlateau::new());
    let error = model(Sgd::new(1e-3)).fit(&train, fit).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("ReduceOnPlateau, the monitor"), "{error}");
}

#[test]
fn fine_tuning_trains_the_head_then_all_at_fastais_rates() {
    let [train, validation] = batches();
    let folder = tempfile::tempdir().unwrap();
    let mut calls = Vec::new();
    let mut tuned = model(AdamW::new(2e-3));
    let tune = FineTune::epochs(3).validation(&validation).from_layer(100);
    let tune = tune.checkpoints(folder.path()).on_epoch_end(|history| {
        calls.push(history.epochs.len());
        Ok(())
    });
    let history = tuned.fine_tune(&train, tune).unwrap();
    assert_eq!(calls, [1, 2, 3, 4]);
    assert_eq!(tuned.history(), &history);
    assert!(history.epochs.iter().all(|epoch| epoch.val_loss.is_some()));

    // The rates of `tests/reference/schedules.py` at the end of each epoch of seven steps.
    let cases = include_str!("../../tests/data/schedules.json");
    let cases: Value = serde_json::from_str(cases).unwrap();
    let fastai =
        |case: usize, step: usize| cases["one_cycle"][case]["rates"][step].as_f64().unwrap();
    let expected = [fastai(1, 6), fastai(2, 6), fastai(2, 13), fastai(2, 20)];
    for (rate, expected) in history.learning_rate().iter().zip(expected) {
        assert!((rate / expected - 1.).abs() < 1e-4, "{rate} for {expected}");
    }

    let run = |phase: &str, epoch| {
        let bytes = checkpoint(&folder.path().join(phase), epoch);
        let run: Value = serde_json::from_str(&texts(&bytes)["run"]).unwrap();
        (run, tensors(&bytes))
    };
    let (frozen, after_frozen) = run("frozen", 1);
    let (unfrozen, after_unfrozen) = run("unfrozen", 4);
    assert_eq!(frozen["optimizer"]["learning_rate"], 2e-3);
    assert_eq!(frozen["optimizer"].get("discriminative"), None);
    assert_eq!(unfrozen["optimizer"]["learning_rate"], 1e-3);
    assert_eq!(unfrozen["optimizer"]["discriminative"], 0.01);
    let (_, own) = tuned.compiled.optimizer.describe();
    assert_eq!(
        own["learning_rate"], 2e-3,
        "the optimizer has its own rate again"
    );
    let before = model(Sgd::new(1.));
    let values = |variable: &crate::model::Variable| -> Vec<u8> {
        let values: Vec<f32> = Vec::try_from(variable.value().detach().reshape([-1])).unwrap();
        values.into_iter().flat_map(f32::to_le_bytes).collect()
    };
    let (mut still, mut moved) = (0, 0);
    let layers = before.base().layers().iter().enumerate();
    for (at, variable) in
        layers.flat_map(|(at, layer)| layer.variables().iter().map(move |v| (at, v)))
    {
        let (name, values) = (variable.name(), values(variable));
        assert!(after_frozen[name] == values, "{name} was to be frozen");
        let changes = at >= 100 && !variable.is_statistic();
        assert_eq!(after_unfrozen[name] != values, changes, "{name}");
        *(if changes { &mut moved } else { &mut still }) += 1;
    }
    assert!(still > 50 && moved > 50, "{still} and {moved}");

    // And a run of which a phase and an epoch are done goes on from there.
    std::fs::remove_file(folder.path().join("unfrozen/epoch-0004.safetensors")).unwrap();
    let tune = FineTune::epochs(3).validation(&validation).from_layer(100);
    let resumed = model(AdamW::new(2e-3)).fine_tune(&train, tune.resume(folder.path()));
    assert_eq!(numbers(&resumed.unwrap()), numbers(&history));
    assert!(run("unfrozen", 4).1 == after_unfrozen, "other weights");
}

#[test]
fn an_error_while_fine_tuning_leaves_the_epochs_of_both_phases() {
    let [train, _] = batches();
    let mut model = model(AdamW::new(1e-3));
    let tune = FineTune::epochs(2)
        .from_layer(FROZEN)
        .on_epoch_end(|history| match history.epochs.len() {
            2 => Err(Error::Figure("no paper".into())),
            _ => Ok(()),
        });
    let error = model.fine_tune(&train, tune).unwrap_err().to_string();
    assert_eq!(
        error,
        "epoch 2: figure: no paper\n(epochs in the model's `history()`: 2)"
    );
    assert_eq!(model.history().epochs.len(), 2);
    let no_layer = FineTune::epochs(1).from_layer(999);
    let error = model.fine_tune(&train, no_layer).unwrap_err().to_string();
    assert!(error.contains("one of the base's"), "{error}");
    let no_epoch = FineTune::epochs(1).freeze_epochs(0);
    let error = model.fine_tune(&train, no_epoch).unwrap_err().to_string();
    assert!(error.contains("one or more in each phase"), "{error}");
    assert_eq!(model.history().epochs.len(), 2, "nothing has been changed");
}
