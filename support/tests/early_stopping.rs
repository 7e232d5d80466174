//! Early stopping: when a fit ends, with which weights, also where it was interrupted. Needs the
//! default weights.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod small_set;

use std::fs;

use small_set::{batches, model, pictures, weights};
use support::model::Sequential;
use support::pipeline::Batches;
use support::settings::BrokenImages;
use support::training::{Compiled, EarlyStopping, Fit, History, Monitor};

/// Nothing improves on the first epoch by so much.
const TOO_MUCH: f64 = 1e9;

fn early_stopping() -> EarlyStopping {
    let early_stopping = EarlyStopping::new().patience(3);
    early_stopping.restore_best_weights(true)
}

/// Trains a new model with the options that `with` adds.
fn train(
    (train, validation): &(Batches, Batches),
    epochs: usize,
    with: impl FnOnce(Fit<'_>) -> Fit<'_>,
) -> support::Result<(Sequential<Compiled>, History)> {
    // Steps so large that the validation soon gets worse.
    let mut model = model(140, 3e-3);
    let fit = Fit::epochs(epochs).validation(validation);
    let history = model.fit(train, with(fit))?;
    Ok((model, history))
}

#[track_caller]
fn assert_same(a: &Sequential<Compiled>, b: &Sequential<Compiled>) {
    assert!(weights(a) == weights(b), "the weights differ");
}

#[test]
#[ignore = "needs weights"]
fn training_ends_when_patience_does_with_the_best_or_the_last_weights() {
    let folder = pictures(&["cats", "dogs"], 6);
    let batches = &batches(folder.path(), BrokenImages::Stop);
    let [one, two, four] = [1, 2, 4].map(|epochs| train(batches, epochs, |fit| fit).unwrap().0);
    for monitor in [Monitor::ValLoss, Monitor::ValAccuracy] {
        let with = |epochs, restore| {
            let early_stopping = early_stopping().monitor(monitor).min_delta(TOO_MUCH);
            let early_stopping = early_stopping.restore_best_weights(restore);
            train(batches, epochs, |fit| fit.early_stopping(early_stopping)).unwrap()
        };
        let (best, history) = with(100, true);
        assert_eq!(history.epochs.len(), 4);
        assert_same(&best, &one);
        assert_same(&with(100, false).0, &four);
        // Restored as well where all epochs are trained.
        assert_same(&with(2, true).0, &one);
        assert_same(&with(2, false).0, &two);
    }
}

#[test]
#[ignore = "needs weights"]
fn an_interrupted_run_ends_with_the_weights_of_one_that_was_not() {
    let folder = pictures(&["cats", "dogs"], 6);
    let batches = &batches(folder.path(), BrokenImages::Stop);
    for (round, min_delta) in [TOO_MUCH, 0.].into_iter().enumerate() {
        let early_stopping = early_stopping().min_delta(min_delta);
        let (whole, whole_history) =
            train(batches, 9, |fit| fit.early_stopping(early_stopping)).unwrap();
        let losses = whole_history.val_loss();
        for interrupted in [1, 3] {
            let checkpoints = folder.path().join(format!("{round}-{interrupted}"));
            train(batches, interrupted, |fit| {
                fit.early_stopping(early_stopping).checkpoints(&checkpoints)
            })
            .unwrap();
            // The second time it has ended already.
            for _ in 0..2 {
                let (resumed, history) = train(batches, 9, |fit| {
                    fit.early_stopping(early_stopping).resume(&checkpoints)
                })
                .unwrap();
                assert_eq!(history.val_loss(), losses);
                assert_same(&resumed, &whole);
            }
        }
        let best = match min_delta {
            TOO_MUCH => 1,
            _ => {
                1 + (0..losses.len())
                    .min_by(|&a, &b| losses[a].total_cmp(&losses[b]))
                    .unwrap()
            }
        };
        assert_same(&train(batches, best, |fit| fit).unwrap().0, &whole);
    }
}

#[test]
#[ignore = "needs weights"]
fn the_best_checkpoint_is_kept_and_missed_where_it_is_gone() {
    let folder = pictures(&["cats", "dogs"], 3);
    let batches = &batches(folder.path(), BrokenImages::Stop);
    let checkpoints = &folder.path().join("checkpoints");
    let early_stopping = early_stopping().min_delta(TOO_MUCH);
    train(batches, 4, |fit| {
        fit.early_stopping(early_stopping).checkpoints(checkpoints)
    })
    .unwrap();
    let file = |epoch: usize| checkpoints.join(format!("epoch-{epoch:04}.safetensors"));
    let there: Vec<usize> = (1..=4).filter(|epoch| file(*epoch).exists()).collect();
    assert_eq!(there, [1, 3, 4]);
    fs::remove_file(file(1)).unwrap();
    let error = train(batches, 9, |fit| {
        fit.early_stopping(early_stopping).resume(checkpoints)
    });
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("epoch-0001") && error.contains("best epoch's weights"),
        "{error}"
    );
}

#[test]
#[ignore = "needs weights"]
fn without_a_validation_nothing_can_stop_early() {
    let folder = pictures(&["cats", "dogs"], 2);
    let (train, _) = batches(folder.path(), BrokenImages::Stop);
    let fit = Fit::epochs(1).early_stopping(early_stopping());
    let error = model(155, 1e-3).fit(&train, fit).unwrap_err();
    assert_eq!(
        error.to_string(),
        "EarlyStopping, what it monitors: expected what the training measures: of the validation where there \
         is one, and loss, accuracy and the model's `metrics`, got val_loss"
    );
}

#[test]
#[ignore = "needs weights"]
fn an_improvement_by_no_number_is_refused() {
    let folder = pictures(&["cats", "dogs"], 2);
    let batches = &batches(folder.path(), BrokenImages::Stop);
    for min_delta in [f64::NAN, f64::INFINITY] {
        let rule = early_stopping().min_delta(min_delta);
        let error = train(batches, 1, |fit| fit.early_stopping(rule)).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "EarlyStopping, the least improvement: expected a finite number, got {min_delta}"
            )
        );
    }
}
