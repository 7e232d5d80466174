//! Checkpoints: a run that was interrupted ends as one that was not. Needs the default weights.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod small_set;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use small_set::{augmented_batches, batches, dataset, format, model, pictures, weights};
use support::Error;
use support::model::{
    Dense, Dropout, GlobalAveragePooling2d, Layer, MobileNetV2, Operation, Sequential,
    SetTrainable, Variable,
};
use support::pipeline::{Augmentation, Batches, Dataset};
use support::settings::{BrokenImages, Settings};
use support::training::{Compiled, EarlyStopping, Fit, History, Loss, RmsProp};
use tch::Device;

/// Layers frozen: training changes some of the base, too.
const FROZEN: usize = 140;

/// A history without the seconds.
fn numbers(history: &History) -> Vec<[Option<f64>; 4]> {
    let epochs = history.epochs.iter();
    epochs
        .map(|epoch| {
            [
                Some(epoch.loss),
                Some(epoch.accuracy),
                epoch.val_loss,
                epoch.val_accuracy,
            ]
        })
        .collect()
}

/// What a folder holds besides the lock.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != ".lock")
        .collect();
    names.sort();
    names
}

/// One that has some use for random numbers while it is trained.
fn dropping_model() -> Sequential<Compiled> {
    let mut base = small_set::base(Device::Cpu);
    base.layers_mut()[..FROZEN].set_trainable(false);
    Sequential::new(base)
        .push(GlobalAveragePooling2d)
        .push(Dropout::new(0.3))
        .push(Dense::new(1280, 1))
        .compile(RmsProp::new(1e-3), Loss::BinaryCrossentropy)
        .unwrap()
}

/// Trains a new model with the options that `with` adds.
fn train(
    (train, validation): &(Batches, Batches),
    with: impl FnOnce(Fit<'_>) -> Fit<'_>,
    epochs: usize,
) -> support::Result<(Sequential<Compiled>, History)> {
    let mut model = dropping_model();
    let fit = with(Fit::epochs(epochs).validation(validation));
    let history = model.fit(train, fit)?;
    Ok((model, history))
}

#[test]
#[ignore = "needs weights"]
fn an_interrupted_run_ends_as_one_that_was_not() {
    let folder = pictures(&["cats", "dogs"], 6);
    let augmentation = Augmentation::new()
        .random_flip_horizontal()
        .random_rotation(0.1);
    let batches = augmented_batches(folder.path(), BrokenImages::Stop, augmentation);
    let checkpoints = &folder.path().join("new/checkpoints");
    let (whole, whole_history) = train(&batches, |fit| fit, 4).unwrap();
    let (_, first) = train(&batches, |fit| fit.checkpoints(checkpoints), 3).unwrap();
    assert_eq!(
        names(checkpoints),
        ["epoch-0002.safetensors", "epoch-0003.safetensors"]
    );
    assert_eq!(first.epochs.len(), 3);

    let (resumed, history) = train(&batches, |fit| fit.resume(checkpoints), 4).unwrap();
    assert_eq!(numbers(&history), numbers(&whole_history));
    assert_eq!(history.epochs[..3], first.epochs);
    assert!(weights(&resumed) == weights(&whole), "the weights differ");
    assert_eq!(
        names(checkpoints),
        ["epoch-0003.safetensors", "epoch-0004.safetensors"]
    );

    // All done already: the weights come from the file.
    let (again, history) = train(&batches, |fit| fit.resume(checkpoints), 4).unwrap();
    assert_eq!(numbers(&history), numbers(&whole_history));
    assert!(weights(&again) == weights(&whole), "the weights differ");
}

/// The environment variable by which this program is told that it is to be killed.
const VICTIM: &str = "TRANSFER_TEST_VICTIM";

#[test]
#[ignore = "needs weights"]
fn a_killed_run_is_resumed() {
    if let Some(folder) = std::env::var_os(VICTIM) {
        let folder = PathBuf::from(folder);
        let batches = batches(&folder, BrokenImages::Stop);
        let checkpoints = folder.join("checkpoints");
        train(&batches, |fit| fit.checkpoints(checkpoints), 100_000).unwrap();
        unreachable!("it is killed");
    }
    let folder = pictures(&["cats", "dogs"], 6);
    let checkpoints = &folder.path().join("checkpoints");
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--include-ignored", "a_killed_run_is_resumed"])
        .env(VICTIM, folder.path())
        .spawn()
        .unwrap();
    let end = Instant::now() + Duration::from_secs(120);
    while !checkpoints.join("epoch-0002.safetensors").exists() {
        assert!(Instant::now() < end && victim.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(5));
    }
    victim.kill().unwrap();
    victim.wait().unwrap();

    let newest = names(checkpoints);
    let newest = newest
        .iter()
        .rfind(|name| name.starts_with("epoch-"))
        .unwrap();
    let epoch: usize = newest["epoch-".len()..][..4].parse().unwrap();
    let batches = batches(folder.path(), BrokenImages::Stop);
    let (resumed, history) = train(&batches, |fit| fit.resume(checkpoints), epoch + 1).unwrap();
    let (whole, whole_history) = train(&batches, |fit| fit, epoch + 1).unwrap();
    assert_eq!(numbers(&history), numbers(&whole_history));
    assert!(weights(&resumed) == weights(&whole), "the weights differ");
    assert!(
        names(checkpoints)
            .iter()
            .all(|name| name.starts_with("epoch-"))
    );
}

#[test]
#[ignore = "needs weights"]
fn a_damaged_checkpoint_gives_way_to_the_one_before_it() {
    let folder = pictures(&["cats", "dogs"], 3);
    let batches = batches(folder.path(), BrokenImages::Stop);
    let checkpoints = &folder.path().join("checkpoints");
    let (whole, _) = train(&batches, |fit| fit.checkpoints(checkpoints), 2).unwrap();
    let cut = |name: &str| {
        let bytes = fs::read(checkpoints.join(name)).unwrap();
        fs::write(checkpoints.join(name), &bytes[..bytes.len() / 2]).unwrap();
    };
    cut("epoch-0002.safetensors");
    let (resumed, _) = train(&batches, |fit| fit.resume(checkpoints), 2).unwrap();
    assert!(weights(&resumed) == weights(&whole), "the weights differ");

    cut("epoch-0002.safetensors");
    cut("epoch-0001.safetensors");
    let error = train(&batches, |fit| fit.resume(checkpoints), 2).unwrap_err();
    assert!(
        matches!(&error, Error::Checkpoint { path, .. } if path.ends_with("epoch-0002.safetensors"))
    );
}

#[test]
#[ignore = "needs weights"]
fn a_checkpoint_that_was_renamed_is_of_no_other_epoch() {
    let folder = pictures(&["cats", "dogs"], 3);
    let batches = batches(folder.path(), BrokenImages::Stop);
    let checkpoints = &folder.path().join("checkpoints");
    train(&batches, |fit| fit.checkpoints(checkpoints), 1).unwrap();
    let [saved, renamed] = [1, 7].map(|epoch| format!("epoch-000{epoch}.safetensors"));
    fs::rename(checkpoints.join(saved), checkpoints.join(renamed)).unwrap();
    let error = train(&batches, |fit| fit.resume(checkpoints), 9).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("saved after epoch 1, and then renamed"),
        "{error}"
    );
}

#[test]
#[ignore = "needs weights"]
fn a_checkpoint_of_another_run_is_refused_and_changes_nothing() {
    let folder = pictures(&["cats", "dogs"], 3);
    let batches = batches(folder.path(), BrokenImages::Stop);
    let checkpoints = &folder.path().join("checkpoints");
    train(&batches, |fit| fit.checkpoints(checkpoints), 2).unwrap();
    let refusal = |mut model: Sequential<Compiled>, train: &Batches, epochs: usize| {
        let before = weights(&model);
        let fit = Fit::epochs(epochs)
            .validation(&batches.1)
            .resume(checkpoints);
        let error = model.fit(train, fit).unwrap_err();
        assert!(weights(&model) == before, "the weights changed");
        error.to_string()
    };
    let other_head = refusal(model(FROZEN, 1e-3), &batches.0, 3);
    assert!(
        other_head.contains(r#"with head 2 class name "Dropout" where this one has "Dense""#),
        "{other_head}"
    );
    let dropping = |rate: f64| {
        let rms_prop = RmsProp::new(rate);
        dropping_model()
            .compile(rms_prop, Loss::BinaryCrossentropy)
            .unwrap()
    };
    let other_rate = refusal(dropping(1e-4), &batches.0, 3);
    assert!(
        other_rate.contains("learning rate 0.001 where this one has 0.0001"),
        "{other_rate}"
    );
    let mut frozen = dropping(1e-3);
    frozen.base_mut().set_trainable(false);
    let others_trained = refusal(frozen, &batches.0, 3);
    assert!(
        others_trained.contains("trainable variables"),
        "{others_trained}"
    );
    let fewer_images = refusal(dropping(1e-3), &batches.0.take(1), 3);
    assert!(
        fewer_images.contains("with training examples 6 where this one has 5"),
        "{fewer_images}"
    );
    let fewer_epochs = refusal(dropping(1e-3), &batches.0, 1);
    assert!(
        fewer_epochs.contains("beyond the 1 epochs asked for"),
        "{fewer_epochs}"
    );
}

#[test]
#[ignore = "needs weights"]
fn a_new_run_replaces_the_checkpoints_of_an_earlier_one_with_its_first() {
    let folder = pictures(&["cats", "dogs"], 3);
    let batches = batches(folder.path(), BrokenImages::Stop);
    let checkpoints = &folder.path().join("checkpoints");
    train(&batches, |fit| fit.checkpoints(checkpoints), 3).unwrap();
    train(&batches, |fit| fit.checkpoints(checkpoints), 1).unwrap();
    assert_eq!(names(checkpoints), ["epoch-0001.safetensors"]);

    let in_the_way = folder.path().join("file");
    fs::write(&in_the_way, "").unwrap();
    let error = train(&batches, |fit| fit.checkpoints(&in_the_way), 1).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
}

#[test]
#[ignore = "needs weights"]
fn each_epoch_is_told_and_an_error_ends_the_training() {
    let folder = pictures(&["cats", "dogs"], 3);
    let batches = batches(folder.path(), BrokenImages::Stop);
    let mut told = Vec::new();
    let mut model = model(155, 1e-3);
    let error = model
        .fit(
            &batches.0,
            Fit::epochs(3).on_epoch_end(|history| {
                told.push(history.epochs.len());
                if told.len() < 2 {
                    return Ok(());
                }
                Err(Error::Figure("no paper".into()))
            }),
        )
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "epoch 2: figure: no paper\n(epochs in the model's `history()`: 2)"
    );
    assert!(matches!(
        error,
        Error::Training { source, .. } if matches!(*source, Error::Figure(_))
    ));
    assert_eq!(told, [1, 2]);
    assert_eq!(model.history().epochs.len(), 2);
}

#[test]
#[ignore = "needs weights"]
fn a_checkpoint_is_not_of_a_run_that_would_go_on_otherwise() {
    let folder = pictures(&["cats", "dogs"], 3);
    let [training, held_out, _] = dataset(folder.path(), BrokenImages::Stop)
        .split([8, 1, 1])
        .unwrap();
    let checkpoints = &folder.path().join("checkpoints");
    let rule = EarlyStopping::new().patience(5);
    let [train, validation] = [&training, &held_out].map(|part| part.map(format).batch(3));
    let fit = |model: &mut Sequential<Compiled>, train: &Batches, validation: &Batches, rule| {
        let fit = Fit::epochs(2).validation(validation).early_stopping(rule);
        model.fit(train, fit.resume(checkpoints))
    };
    fit(&mut model(140, 1e-3), &train, &validation, rule).unwrap();
    let refused = |mut model, train: &Batches, validation: &Batches, rule, field: &str| {
        let error = fit(&mut model, train, validation, rule).unwrap_err();
        assert!(matches!(error, Error::Checkpoint { .. }), "{error}");
        let error = error.to_string();
        assert!(
            error.contains(&format!("of another run, with {field}")),
            "{error}"
        );
    };

    let larger = |image: &image::RgbImage| MobileNetV2::TF_HUB.format(image, 128);
    let [larger_train, larger_validation] =
        [&training, &held_out].map(|part| part.map(larger).batch(3));
    let mut settings = Settings::from_env().unwrap();
    settings.device = Device::Cpu;
    let mut base = MobileNetV2::pretrained([3, 128, 128], &settings).unwrap();
    base.layers_mut()[..140].set_trainable(false);
    let larger = Sequential::new(base)
        .push(GlobalAveragePooling2d)
        .push(Dense::new(1280, 1).seed(1))
        .compile(RmsProp::new(1e-3), Loss::BinaryCrossentropy)
        .unwrap();
    let field = "backbone";
    refused(larger, &larger_train, &larger_validation, rule, field);

    let darker = |image: &image::RgbImage| format(image).offset(-0.5);
    let darker = training.map(darker).batch(3);
    let field = "training map digest";
    refused(model(140, 1e-3), &darker, &validation, rule, field);

    let few = validation.take(1);
    let field = "validation examples 6 where this one has 3";
    refused(model(140, 1e-3), &train, &few, rule, field);
    let mut others = held_out.examples().to_vec();
    others[0].label = usize::from(others[0].label == 0).into();
    let classes = held_out.classes().to_vec();
    let others = Dataset::new(others, classes, 3, BrokenImages::Stop);
    let relabelled = others.map(format).batch(3);
    let field = "validation examples digest";
    refused(model(140, 1e-3), &train, &relabelled, rule, field);

    let field = "early stopping patience 5 where this one has 6";
    let patient = rule.patience(6);
    refused(model(140, 1e-3), &train, &validation, patient, field);

    // As many variables, one of them another.
    let mut others_trained = model(140, 1e-3);
    let layers = others_trained.base_mut().layers_mut();
    let trains = |layer: &Layer| layer.variables().iter().any(Variable::is_trainable);
    let depthwise = |layer: &Layer| matches!(layer.operation(), Operation::DepthwiseConv2d { .. });
    let last = layers
        .iter()
        .rposition(|layer| trains(layer) && depthwise(layer));
    layers[last.unwrap()..=last.unwrap()].set_trainable(false);
    let first = layers.iter().position(depthwise).unwrap();
    layers[first..=first].set_trainable(true);
    let count = model(140, 1e-3).trainable_variables().len();
    assert_eq!(others_trained.trainable_variables().len(), count);
    let field = "trainable variables 1 ";
    refused(others_trained, &train, &validation, rule, field);

    // And this one is the run.
    fit(&mut model(140, 1e-3), &train, &validation, rule).unwrap();
}

#[test]
#[ignore = "needs weights"]
fn two_runs_cannot_use_one_folder_at_a_time() {
    let folder = pictures(&["cats", "dogs"], 3);
    let (train, _) = batches(folder.path(), BrokenImages::Stop);
    let checkpoints = &folder.path().join("checkpoints");
    let mut refusal = None;
    let first = Fit::epochs(2).checkpoints(checkpoints).on_epoch_end(|_| {
        let second = Fit::epochs(9).checkpoints(checkpoints);
        refusal = model(155, 1e-3).fit(&train, second).err();
        Ok(())
    });
    model(155, 1e-3).fit(&train, first).unwrap();
    assert_eq!(
        names(checkpoints),
        ["epoch-0001.safetensors", "epoch-0002.safetensors"]
    );
    let refusal = refusal.unwrap();
    assert!(matches!(refusal, Error::Checkpoint { .. }), "{refusal}");
    let (refusal, process) = (refusal.to_string(), std::process::id());
    assert!(
        refusal.contains(&format!("another run, in process {process}, saves"))
            && refusal.contains("choose another folder"),
        "{refusal}"
    );
    let next = Fit::epochs(1).checkpoints(checkpoints);
    model(155, 1e-3).fit(&train, next).unwrap();
}

#[test]
#[ignore = "needs weights"]
fn a_checkpoint_that_cannot_be_saved_does_not_cost_the_history() {
    let folder = pictures(&["cats", "dogs"], 3);
    let (train, _) = batches(folder.path(), BrokenImages::Stop);
    let checkpoints = &folder.path().join("checkpoints");
    let mut model = model(155, 1e-3);
    let fit = Fit::epochs(4).checkpoints(checkpoints);
    let fit = fit.on_epoch_end(|_| {
        fs::remove_dir_all(checkpoints).unwrap();
        fs::write(checkpoints, "in the way").unwrap();
        Ok(())
    });
    let error = model.fit(&train, fit).unwrap_err();
    assert!(
        matches!(
            &error,
            Error::Training { epoch: 2, epochs: 2, source } if matches!(**source, Error::Io { .. })
        ),
        "{error}"
    );
    assert_eq!(model.history().epochs.len(), 2);
}

#[test]
#[ignore = "needs weights"]
fn a_run_that_diverges_keeps_its_good_checkpoints_and_can_be_resumed() {
    let folder = pictures(&["cats", "dogs"], 3);
    let [training, _, _] = dataset(folder.path(), BrokenImages::Stop)
        .split([8, 1, 1])
        .unwrap();
    let no_numbers = Arc::new(AtomicBool::new(false));
    let made = no_numbers.clone();
    let train = training.map(move |image| {
        let scale = if made.load(Ordering::Relaxed) {
            f32::NAN
        } else {
            1. / 127.5
        };
        format(image).scale(scale / (1. / 127.5))
    });
    let train = train.shuffle(8).batch(5);
    let checkpoints = &folder.path().join("checkpoints");
    let run = |epochs: usize, diverges_after: usize| {
        // All of it is trained: from the first layer on, what is no number stays none.
        let mut model = model(0, 1e-3);
        no_numbers.store(false, Ordering::Relaxed);
        let fit = Fit::epochs(epochs)
            .cache_activations(false)
            .on_epoch_end(|history| {
                let diverges = history.epochs.len() == diverges_after;
                no_numbers.store(diverges, Ordering::Relaxed);
                Ok(())
            });
        let ended = model.fit(&train, fit.resume(checkpoints));
        (model, ended)
    };
    let (diverged, ended) = run(6, 3);
    let error = ended.unwrap_err();
    assert!(
        matches!(
            &error,
            Error::Training { epoch: 4, epochs: 3, source }
                if matches!(**source, Error::NotFinite { epochs: 3, .. })
        ),
        "{error}"
    );
    let error = error.to_string();
    let what =
        "epoch 4: the loss of step 1 of 2 is NaN: compile with a lower learning rate than 1e-3";
    assert!(error.starts_with(what), "{error}");
    assert_eq!(
        names(checkpoints),
        ["epoch-0002.safetensors", "epoch-0003.safetensors"]
    );
    let (resumed, ended) = run(3, 9);
    assert_eq!(ended.unwrap(), *diverged.history());
    assert!(
        weights(&diverged) == weights(&resumed),
        "the weights differ"
    );
    // The optimizer's state as well.
    let (resumed, _) = run(4, 9);
    let mut diverged = diverged;
    no_numbers.store(false, Ordering::Relaxed);
    let fit = Fit::epochs(4).initial_epoch(3).cache_activations(false);
    diverged.fit(&train, fit).unwrap();
    assert!(
        weights(&diverged) == weights(&resumed),
        "the weights differ"
    );
}
