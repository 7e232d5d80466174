//! When to stop training, and which epoch was the best.

use serde::{Deserialize, Serialize};

use super::EpochLog;
use crate::{Error, Result};

/// What early stopping looks at after each epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Monitor {
    /// The validation loss, which is to fall.
    #[default]
    ValLoss,
    /// The validation accuracy, which is to rise.
    ValAccuracy,
}

impl Monitor {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::ValLoss => "val_loss",
            Self::ValAccuracy => "val_accuracy",
        }
    }

    pub(super) fn value(self, log: &EpochLog) -> Option<f64> {
        match self {
            Self::ValLoss => log.val_loss,
            Self::ValAccuracy => log.val_accuracy,
        }
    }

    /// Returns whether a value is better than another by more than `min_delta`.
    pub(super) fn improves(self, value: f64, best: f64, min_delta: f64) -> bool {
        match self {
            Self::ValLoss => value + min_delta < best,
            Self::ValAccuracy => value - min_delta > best,
        }
    }
}

/// Ends the training when the validation does not improve any more, as
/// [Keras' `EarlyStopping`](https://keras.io/api/callbacks/early_stopping/) does; its defaults are
/// Keras'.
///
/// A loss that is not a finite number is no improvement, and any other is one on it; `fit` itself ends
/// with an error at the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EarlyStopping {
    pub(super) monitor: Monitor,
    patience: usize,
    min_delta: f64,
    pub(super) restore_best_weights: bool,
}

/// What is to be made of the epochs so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// The best epoch, counted from 1.
    pub(super) best: Option<usize>,
    /// For how many epochs nothing has improved.
    pub(super) wait: usize,
    /// Whether the last epoch was one too many without an improvement.
    pub(super) stop: bool,
}

impl EarlyStopping {
    /// Returns one that stops after the first epoch without a lower validation loss and keeps the
    /// last weights.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks at something else than the validation loss.
    #[must_use]
    pub fn monitor(mut self, monitor: Monitor) -> Self {
        self.monitor = monitor;
        self
    }

    /// Stops after so many epochs in a row without an improvement; 0 is taken for 1.
    #[must_use]
    pub fn patience(mut self, epochs: usize) -> Self {
        self.patience = epochs;
        self
    }

    /// Takes for an improvement only what improves by more than this, a finite number.
    #[must_use]
    pub fn min_delta(mut self, min_delta: f64) -> Self {
        self.min_delta = min_delta.abs();
        self
    }

    /// Gives the model the weights of the best epoch in the end, whether all epochs were trained,
    /// the patience ran out or the notebook's Stop button was pressed; not after an error. The
    /// optimizer's state stays that of the last step.
    #[must_use]
    pub fn restore_best_weights(mut self, restore: bool) -> Self {
        self.restore_best_weights = restore;
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.min_delta.is_finite() {
            return Ok(());
        }
        Err(Error::Argument {
            name: "EarlyStopping, the least improvement",
            expected: "a finite number".into(),
            got: self.min_delta.to_string(),
        })
    }

    /// Returns the best epoch so far, counted from 1, where its weights are to be restored.
    pub(super) fn best_to_restore(
        &self,
        epochs: &[EpochLog],
        initial_epoch: usize,
    ) -> Option<usize> {
        let best = self.verdict(epochs, initial_epoch).best;
        best.filter(|_| self.restore_best_weights)
    }

    /// Returns what is to be made of the epochs after `initial_epoch`.
    pub(super) fn verdict(&self, epochs: &[EpochLog], initial_epoch: usize) -> Verdict {
        let improves = |value, best| self.monitor.improves(value, best, self.min_delta);
        let mut verdict = Verdict::default();
        let mut best = None;
        for (epoch, log) in (initial_epoch + 1..).zip(epochs) {
            let Some(value) = self.monitor.value(log) else {
                continue;
            };
            if value.is_finite() && best.is_none_or(|best| improves(value, best)) {
                best = Some(value);
                (verdict.best, verdict.wait) = (Some(epoch), 0);
            } else {
                verdict.best = verdict.best.or(Some(epoch));
                verdict.wait += 1;
            }
            verdict.stop = verdict.wait >= self.patience.max(1);
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    /// A case of `tests/reference/early_stopping.py`.
    #[derive(Deserialize)]
    struct Case {
        monitor: String,
        patience: usize,
        min_delta: f64,
        initial_epoch: usize,
        /// None stands for NaN.
        values: Vec<Option<f64>>,
        /// The epoch after which Keras stopped, counted from 1.
        stopped: Option<usize>,
        /// Whose weights Keras restored in the end.
        restored: usize,
    }

    fn logs(values: &[Option<f64>]) -> Vec<EpochLog> {
        let log = |value: &Option<f64>| {
            let value = Some(value.unwrap_or(f64::NAN));
            EpochLog {
                loss: 0.,
                accuracy: 0.,
                val_loss: value,
                val_accuracy: value,
                learning_rate: None,
                seconds: 0.,
            }
        };
        values.iter().map(log).collect()
    }

    #[test]
    fn it_stops_and_restores_where_keras_does() {
        let cases = include_str!("../../tests/data/early_stopping.json");
        let cases: Vec<Case> = serde_json::from_str(cases).unwrap();
        for case in cases {
            let monitors = [Monitor::ValLoss, Monitor::ValAccuracy].into_iter();
            let monitor = monitors
                .clone()
                .find(|monitor| monitor.name() == case.monitor);
            let early_stopping = EarlyStopping::new()
                .monitor(monitor.unwrap())
                .patience(case.patience)
                .min_delta(case.min_delta);
            let logs = logs(&case.values);
            let verdict = |epochs| early_stopping.verdict(&logs[..epochs], case.initial_epoch);
            let last = (1..logs.len()).find(|&epochs| verdict(epochs).stop);
            let last = last.unwrap_or(logs.len());
            let verdict = verdict(last);
            let stopped = verdict.stop.then_some(case.initial_epoch + last);
            assert_eq!((stopped, verdict.best), (case.stopped, Some(case.restored)));
        }
    }

    #[test]
    fn a_number_improves_on_none_and_the_first_epoch_is_better_than_nothing() {
        let early_stopping = EarlyStopping::new().patience(2);
        let verdict = |values: &[Option<f64>]| {
            let Verdict { best, wait, stop } = early_stopping.verdict(&logs(values), 0);
            (best, wait, stop)
        };
        assert_eq!(verdict(&[]), (None, 0, false));
        assert_eq!(verdict(&[None]), (Some(1), 1, false));
        assert_eq!(verdict(&[None, Some(f64::INFINITY)]), (Some(1), 2, true));
        assert_eq!(verdict(&[None, Some(9.)]), (Some(2), 0, false));
    }
}
