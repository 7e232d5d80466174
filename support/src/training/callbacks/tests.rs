use std::cell::RefCell;
use std::path::Path;

use serde_json::Value;
use tch::{Device, Kind, Tensor};

use super::*;
use crate::distributed::ProcessGroup;
use crate::distributed::tests::on_ranks;
use crate::model::{Backbone, Dense, GlobalAveragePooling2d};
use crate::pipeline::Augmentation;
use crate::training::ranks::tests::{EPOCHS, batches, images, model};
use crate::training::{Loss, Metric, Monitor, RmsProp};

/// The values of the last layer.
fn last_layer(model: &Sequential<Compiled>) -> Vec<f64> {
    let kernel = model.variables().find(|v| v.name() == "dense/kernel");
    let values = kernel.unwrap().value().detach().view([-1]);
    Vec::try_from(values.to_kind(Kind::Double)).unwrap()
}

/// Keeps the last layer after each step of training.
struct Recorder<'a>(&'a RefCell<Vec<Vec<f64>>>);

impl Callback for Recorder<'_> {
    fn on_step_end(&mut self, step: &Step<'_>) -> Result<(), End> {
        if step.phase == Phase::Training {
            self.0.borrow_mut().push(last_layer(step.model));
        }
        Ok(())
    }
}

/// Ends the training in the way of its choice, at a step of a phase of the second epoch.
struct EndAt(Phase, usize, fn() -> End);

impl Callback for EndAt {
    fn on_step_end(&mut self, step: &Step<'_>) -> Result<(), End> {
        match (step.epoch, step.phase, step.step) {
            (2, phase, number) if phase == self.0 && number == self.1 => Err(self.2()),
            _ => Ok(()),
        }
    }
}

/// Tells what is called.
struct Calls<'a>(&'a RefCell<Vec<String>>);

impl Callback for Calls<'_> {
    fn on_train_begin(&mut self, _: &Sequential<Compiled>) -> Result<(), End> {
        self.0.borrow_mut().push("train".into());
        Ok(())
    }

    fn on_epoch_begin(&mut self, epoch: usize, _: &Sequential<Compiled>) -> Result<(), End> {
        self.0.borrow_mut().push(format!("epoch {epoch}"));
        Ok(())
    }

    fn on_step_end(&mut self, step: &Step<'_>) -> Result<(), End> {
        assert!(step.loss.is_finite() && step.mean.loss.is_finite());
        let Step {
            phase, step, steps, ..
        } = step;
        self.0
            .borrow_mut()
            .push(format!("{phase:?} {step}/{steps}"));
        Ok(())
    }

    fn on_epoch_end(&mut self, epoch: &Epoch<'_>) -> Result<(), End> {
        assert_eq!(epoch.model.history().epochs.last(), Some(epoch.log));
        self.0.borrow_mut().push(format!("end of {}", epoch.epoch));
        Ok(())
    }

    fn on_train_end(&mut self, _: &Sequential<Compiled>, ended: Result<(), &End>) -> Result<()> {
        let how = match ended {
            Ok(()) => "the end",
            Err(End::Early(reason)) => reason,
            Err(_) => "another end",
        };
        self.0.borrow_mut().push(how.into());
        Ok(())
    }
}

fn early() -> End {
    End::Early("enough".into())
}

#[test]
fn what_ends_a_training_early_ends_it_on_all_ranks_and_loses_nothing() {
    let folder = images();
    for (phase, step, epochs) in [
        (Phase::Training, 2, 1),
        // The epoch is trained: it stays.
        (Phase::Validation, 1, 2),
    ] {
        for ranks in [1, 2] {
            let found = on_ranks(ranks, |group| {
                let [train, validation] = batches(folder.path(), &group, Augmentation::new());
                let mut model = model(0, 1e-4);
                let (calls, steps) = (RefCell::default(), RefCell::default());
                let fit = Fit::epochs(EPOCHS).validation(&validation);
                let fit = fit.callback(Calls(&calls)).callback(Recorder(&steps));
                let history = model.fit(&train, fit.callback(EndAt(phase, step, early)));
                let epochs = history.unwrap().epochs.len();
                let called = calls.into_inner();
                assert_eq!(called.is_empty(), !group.is_main(), "on rank 0 alone");
                if let Some(steps) = steps.borrow().last() {
                    assert_eq!(*steps, last_layer(&model), "weights of the last step");
                }
                (epochs, called, last_layer(&model))
            });
            let (_, called, weights) = &found[0];
            assert_eq!(called.last().unwrap(), "enough");
            let ends = called.iter().filter(|call| call.starts_with("end of"));
            assert_eq!(ends.count(), epochs);
            for (of_rank, _, of_rank_weights) in &found {
                assert_eq!(*of_rank, epochs, "on {ranks} ranks");
                assert_eq!(of_rank_weights, weights);
            }
        }
    }
}

#[test]
fn callbacks_are_told_of_steps_and_epochs_in_order() {
    let folder = images();
    let [train, validation] = batches(folder.path(), &ProcessGroup::default(), Augmentation::new());
    let calls = RefCell::default();
    let fit = Fit::epochs(2).validation(&validation);
    let fit = fit.callback(Calls(&calls));
    model(0, 1e-4).fit(&train, fit).unwrap();
    let mut called = calls.into_inner().into_iter();
    assert_eq!(called.next().unwrap(), "train");
    let steps = |phase: &str, batches: &Batches| -> Vec<String> {
        // Broken images leave the last ones without any.
        let steps = (1..).zip(batches.epoch(0));
        let all = batches.len();
        steps
            .map(|(step, _)| format!("{phase} {step}/{all}"))
            .collect()
    };
    for epoch in 1..=2 {
        let expected = [
            vec![format!("epoch {epoch}")],
            steps("Training", &train),
            steps("Validation", &validation),
            vec![format!("end of {epoch}")],
        ];
        let expected = expected.concat();
        let found: Vec<String> = called.by_ref().take(expected.len()).collect();
        assert_eq!(found, expected);
    }
    assert_eq!(Vec::from_iter(called), ["the end"]);
}

#[test]
fn a_callbacks_error_is_what_fit_returns() {
    let folder = images();
    let [train, _] = batches(folder.path(), &ProcessGroup::default(), Augmentation::new());
    let mut model = model(0, 1e-4);
    let fail = || Error::Figure("no pen".into()).into();
    let fit = Fit::epochs(3).callback(EndAt(Phase::Training, 1, fail));
    let error = model.fit(&train, fit).unwrap_err().to_string();
    assert!(error.starts_with("epoch 2: figure: no pen"), "{error}");
    assert_eq!(model.history().epochs.len(), 1);
}

#[test]
fn averages_of_weights_equal_pytorchs_and_keras() {
    let text = include_str!("../../../tests/data/weight_average.json");
    let case: Value = serde_json::from_str(text).unwrap();
    let rows =
        |name: &str| -> Vec<Vec<f32>> { serde_json::from_value(case[name].clone()).unwrap() };
    let rule = WeightAverage::ema(case["decay"].as_f64().unwrap());
    let mut base = Backbone::untrained([3, 32, 32], Device::Cpu).unwrap();
    base.set_trainable(false);
    let model = Sequential::new(base)
        .push(GlobalAveragePooling2d)
        .push(Dense::new(1280, 1))
        .compile(RmsProp::new(1e-4), Loss::BinaryCrossentropy)
        .unwrap();
    let kernel = || model.trainable_variables()[0].value().detach().view([-1]);
    let mut average = None;
    for (weights, expected) in rows("weights").iter().zip(rows("averages")) {
        kernel().narrow(0, 0, 3).copy_(&Tensor::from_slice(weights));
        let next = rule.next(average.take(), &model).unwrap();
        let found = next.named(&model).next().unwrap().1.view([-1]);
        let off = found.narrow(0, 0, 3) - Tensor::from_slice(&expected);
        let off = off.abs().max().double_value(&[]);
        assert!(off < 1e-6, "{off}");
        average = Some(next);
    }
}

#[test]
fn the_average_of_the_weights_is_validated_and_kept_and_training_goes_on_from_the_weights() {
    const DECAY: f64 = 0.7;
    let folder = images();
    let [train, validation] = batches(folder.path(), &ProcessGroup::default(), Augmentation::new());
    let train_with = |average: Option<WeightAverage>, end: Option<EndAt>| {
        let (mut model, steps) = (model(0, 1e-3), RefCell::default());
        let mut fit = Fit::epochs(EPOCHS).validation(&validation);
        fit.weight_average = average;
        if let Some(end) = end {
            fit = fit.callback(end);
        }
        let history = model.fit(&train, fit.callback(Recorder(&steps))).unwrap();
        (model, history, steps.into_inner())
    };
    let ema = Some(WeightAverage::ema(DECAY));
    let (_, plain, steps) = train_with(None, None);
    let (model, history, averaged_steps) = train_with(ema, None);
    assert_eq!(steps, averaged_steps);
    assert_eq!(history.loss(), plain.loss());
    assert_ne!(history.val_loss(), plain.val_loss());
    let assert_average = |steps: &[Vec<f64>], found: &[f64]| {
        let mut average = steps[0].clone();
        for step in &steps[1..] {
            for (average, weight) in average.iter_mut().zip(step) {
                *average = DECAY * *average + (1. - DECAY) * weight;
            }
        }
        let off = average.iter().zip(found).map(|(a, b)| (a - b).abs());
        assert!(off.fold(0., f64::max) < 1e-6);
    };
    assert_average(&steps, &last_layer(&model));
    let evaluation = model.evaluate(&validation).unwrap();
    assert!((evaluation.loss - history.val_loss()[EPOCHS - 1]).abs() < 1e-5);
    let stop = EndAt(Phase::Training, 2, early);
    let (stopped, _, before) = train_with(ema, Some(stop));
    // The step that ended it is in the average, though no callback after the first was told.
    assert_average(&steps[..=before.len()], &last_layer(&stopped));
}

#[test]
fn a_decay_that_is_none_is_refused() {
    for decay in [-0.1, 1., f64::NAN] {
        let error = WeightAverage::ema(decay).check().unwrap_err().to_string();
        assert!(error.ends_with(&format!("got {decay}")), "{error}");
    }
}

#[test]
fn the_logs_of_a_run_that_went_on_are_whole() {
    let folder = images();
    let [train, validation] = batches(folder.path(), &ProcessGroup::default(), Augmentation::new());
    let logs = tempfile::tempdir().unwrap();
    let path = logs.path().join("log.csv");
    let run = |epochs| {
        let fit = Fit::epochs(epochs).validation(&validation);
        let fit = fit.resume(logs.path().join("checkpoints"));
        let fit = fit.callback(CsvLog::new(&path));
        let fit = fit.callback(TensorBoard::new(logs.path().join("board")));
        model(0, 1e-4).fit(&train, fit).unwrap()
    };
    run(1);
    let history = run(EPOCHS);
    let text = std::fs::read_to_string(&path).unwrap();
    let mut lines = text.lines();
    let header = "epoch,loss,accuracy,val_loss,val_accuracy,learning_rate,seconds";
    assert_eq!(lines.next(), Some(header));
    let losses = lines.map(|line| line.split(',').nth(1).unwrap().parse().unwrap());
    assert_eq!(losses.collect::<Vec<f64>>(), history.loss());
    let files = |run: &str| std::fs::read_dir(logs.path().join("board").join(run)).unwrap();
    let records = |run| {
        files(run)
            .map(|file| records(&file.unwrap().path()))
            .sum::<usize>()
    };
    // One at the head of each of two files.
    assert_eq!(records("validation"), 2 + 2 * EPOCHS);
    let steps = train.epoch(0).count();
    assert_eq!(records("train"), 2 + (3 + steps) * EPOCHS);
}

/// Keeps the loss of each step of training, numbered as TensorBoard has them.
struct StepLosses<'a>(&'a RefCell<Vec<(usize, f64)>>);

impl Callback for StepLosses<'_> {
    fn on_step_end(&mut self, step: &Step<'_>) -> Result<(), End> {
        if step.phase == Phase::Training {
            let number = (step.epoch - 1) * step.steps + step.step;
            self.0.borrow_mut().push((number, step.loss));
        }
        Ok(())
    }
}

#[test]
#[ignore = "needs TensorBoard"]
fn a_runs_event_files_are_read_in_tensorboard() {
    let folder = images();
    let [train, validation] = batches(folder.path(), &ProcessGroup::default(), Augmentation::new());
    let board = tempfile::tempdir().unwrap();
    let losses = RefCell::default();
    let fit = Fit::epochs(2).validation(&validation);
    let fit = fit.callback(StepLosses(&losses));
    let fit = fit.callback(TensorBoard::new(board.path()));
    let mut model = model(0, 1e-4).metrics([Metric::Auc]).unwrap();
    let history = model.fit(&train, fit).unwrap();

    let python = std::env::var_os("TRANSFER_TEST_PYTHON").unwrap_or_else(|| "python3".into());
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/reference/tensor_board.py"
    );
    let mut command = std::process::Command::new(python);
    let output = command.arg(script).arg(board.path()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let read: Value = serde_json::from_slice(&output.stdout).unwrap();
    // Event files have 32 bits.
    let scalars = |scalars: &[(usize, f64)]| {
        let scalars = scalars.iter();
        scalars
            .map(|&(step, value)| serde_json::json!([step, f64::from(value as f32)]))
            .collect()
    };
    let curve = |name: &str| -> Value {
        let values = history.epochs.iter().map(|log| log.value(name).unwrap());
        scalars(&(1..).zip(values).collect::<Vec<_>>())
    };
    let expected = serde_json::json!({
        "train": {
            "batch_loss": scalars(&losses.into_inner()),
            "epoch_loss": curve("loss"),
            "epoch_accuracy": curve("accuracy"),
            "epoch_auc": curve("auc"),
            "epoch_learning_rate": curve("learning_rate"),
        },
        "validation": {
            "epoch_loss": curve("val_loss"),
            "epoch_accuracy": curve("val_accuracy"),
            "epoch_auc": curve("val_auc"),
        },
    });
    assert_eq!(read, expected);
}

/// Returns how many records a file has.
fn records(path: &Path) -> usize {
    let bytes = std::fs::read(path).unwrap();
    let (mut rest, mut count) = (&bytes[..], 0);
    while let Some((length, after)) = rest.split_first_chunk() {
        rest = &after[u64::from_le_bytes(*length) as usize + 8..];
        count += 1;
    }
    count
}

#[test]
fn a_training_without_validation_can_stop_early_by_a_metric_of_its_own() {
    let folder = images();
    let [train, _] = batches(folder.path(), &ProcessGroup::default(), Augmentation::new());
    let model = model(0, 1e-30).metrics([Metric::Auc]);
    let rule = EarlyStopping::new().monitor(Monitor::Metric(Metric::Auc));
    let history = model
        .unwrap()
        .fit(&train, Fit::epochs(9).early_stopping(rule.min_delta(0.5)));
    assert_eq!(history.unwrap().epochs.len(), 2);
}
