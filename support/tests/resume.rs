//! Checkpoints: a run that was interrupted ends as one that was not. Needs the default weights.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod small_set;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use small_set::{augmented_batches, batches, model, pictures, weights};
use support::Error;
use support::model::{Dense, Dropout, GlobalAveragePooling2d, Sequential, SetTrainable};
use support::pipeline::{Augmentation, Batches};
use support::settings::BrokenPictures;
use support::training::{Compiled, Fit, History, Loss, RmsProp};
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

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
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
fn an_interrupted_run_ends_as_one_that_was_not() {
    let folder = pictures(&["cats", "dogs"], 6);
    let augmentation = Augmentation::new()
        .random_flip_horizontal()
        .random_rotation(0.1);
    let batches = augmented_batches(folder.path(), BrokenPictures::Stop, augmentation);
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
fn a_killed_run_is_resumed() {
    if let Some(folder) = std::env::var_os(VICTIM) {
        let folder = PathBuf::from(folder);
        let batches = batches(&folder, BrokenPictures::Stop);
        let checkpoints = folder.join("checkpoints");
        train(&batches, |fit| fit.checkpoints(checkpoints), 100_000).unwrap();
        unreachable!("it is killed");
    }
    let folder = pictures(&["cats", "dogs"], 6);
    let checkpoints = &folder.path().join("checkpoints");
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_killed_run_is_resumed"])
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
    let batches = batches(folder.path(), BrokenPictures::Stop);
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
fn a_damaged_checkpoint_gives_way_to_the_one_before_it() {
    let folder = pictures(&["cats", "dogs"], 3);
    let batches = batches(folder.path(), BrokenPictures::Stop);
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
fn a_checkpoint_of_another_run_is_refused_and_changes_nothing() {
    let folder = pictures(&["cats", "dogs"], 3);
    let batches = batches(folder.path(), BrokenPictures::Stop);
    let checkpoints = &folder.path().join("checkpoints");
    train(&batches, |fit| fit.checkpoints(checkpoints), 2).unwrap();
    let refusal = |mut model: Sequential<Compiled>, train: &Batches, epochs: usize| {
        let before = weights(&model);
        let fit = Fit::epochs(epochs).resume(checkpoints);
        let error = model.fit(train, fit).unwrap_err();
        assert!(weights(&model) == before, "the weights changed");
        error.to_string()
    };
    let other_head = refusal(model(FROZEN, 1e-3), &batches.0, 3);
    assert!(other_head.contains("with dropouts"), "{other_head}");
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
    let fewer_pictures = refusal(dropping(1e-3), &batches.0.take(1), 3);
    assert!(fewer_pictures.contains("with picture"), "{fewer_pictures}");
    let fewer_epochs = refusal(dropping(1e-3), &batches.0, 1);
    assert!(
        fewer_epochs.contains("beyond the 1 epochs asked for"),
        "{fewer_epochs}"
    );
}

#[test]
fn a_new_run_replaces_the_checkpoints_of_an_earlier_one_with_its_first() {
    let folder = pictures(&["cats", "dogs"], 3);
    let batches = batches(folder.path(), BrokenPictures::Stop);
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
fn each_epoch_is_told_and_an_error_ends_the_training() {
    let folder = pictures(&["cats", "dogs"], 3);
    let batches = batches(folder.path(), BrokenPictures::Stop);
    let mut told = Vec::new();
    let error = model(155, 1e-3)
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
    assert_eq!(error.to_string(), "figure: no paper");
    assert_eq!(told, [1, 2]);
}
