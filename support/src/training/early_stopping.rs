//! When to stop training, and which epoch was the best.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::history::VALIDATION;
use super::{EpochLog, Metric};
use crate::{Error, Result};

/// A number of each epoch: what early stopping looks at. In JSON its name, such as `val_loss`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Monitor {
    /// The training loss, which is to fall.
    Loss,
    /// The training accuracy, which is to rise.
    Accuracy,
    /// The validation loss, which is to fall.
    #[default]
    ValLoss,
    /// The validation accuracy, which is to rise.
    ValAccuracy,
    /// A [metric](crate::model::Sequential::metrics) of the training, which is to rise.
    Metric(Metric),
    /// A [metric](crate::model::Sequential::metrics) of the validation, which is to rise.
    ValMetric(Metric),
}

/// Its name in the history, as Keras has them.
impl fmt::Display for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loss => f.write_str("loss"),
            Self::Accuracy => f.write_str("accuracy"),
            Self::ValLoss => write!(f, "{VALIDATION}loss"),
            Self::ValAccuracy => write!(f, "{VALIDATION}accuracy"),
            Self::Metric(metric) => metric.fmt(f),
            Self::ValMetric(metric) => write!(f, "{VALIDATION}{metric}"),
        }
    }
}

impl From<Monitor> for String {
    fn from(monitor: Monitor) -> Self {
        monitor.to_string()
    }
}

impl TryFrom<String> for Monitor {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let of_metric = match name.strip_prefix(VALIDATION) {
            Some(name) => Metric::named(name).map(Self::ValMetric),
            None => Metric::named(&name).map(Self::Metric),
        };
        let known = [Self::Loss, Self::Accuracy, Self::ValLoss, Self::ValAccuracy];
        let mut known = known.into_iter();
        known
            .find(|monitor| monitor.to_string() == name)
            .or(of_metric)
            .ok_or_else(|| format!("nothing named {name} is measured"))
    }
}

impl Monitor {
    pub(super) fn value(self, log: &EpochLog) -> Option<f64> {
        log.value(&self.to_string())
    }

    /// Returns whether `value` is better than `than` by more than `min_delta`.
    pub(super) fn improves(self, value: f64, than: f64, min_delta: f64) -> bool {
        match self {
            Self::Loss | Self::ValLoss => value + min_delta < than,
            _ => value - min_delta > than,
        }
    }

    /// Checks that a `fit` with or without a validation measures it, by a model with these metrics;
    /// `name` is whose it is.
    pub(super) fn check(
        self,
        name: &'static str,
        metrics: &[Metric],
        validates: bool,
    ) -> Result<()> {
        let is_measured = match self {
            Self::Loss | Self::Accuracy => true,
            Self::ValLoss | Self::ValAccuracy => validates,
            Self::Metric(metric) => metrics.contains(&metric),
            Self::ValMetric(metric) => validates && metrics.contains(&metric),
        };
        if is_measured {
            return Ok(());
        }
        Err(Error::Argument {
            name,
            expected:
                "what the training measures: of the validation where there is one, and loss, \
                       accuracy and the model's `metrics`"
                    .into(),
            got: self.to_string(),
        })
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

    pub(super) fn check(&self, metrics: &[Metric], validates: bool) -> Result<()> {
        let name = "EarlyStopping, what it monitors";
        self.monitor.check(name, metrics, validates)?;
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
        monitor: Monitor,
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
                val_loss: value,
                val_accuracy: value,
                ..EpochLog::default()
            }
        };
        values.iter().map(log).collect()
    }

    #[test]
    fn it_stops_and_restores_where_keras_does() {
        let cases = include_str!("../../tests/data/early_stopping.json");
        let cases: Vec<Case> = serde_json::from_str(cases).unwrap();
        for case in cases {
            let early_stopping = EarlyStopping::new()
                .monitor(case.monitor)
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
    fn what_is_monitored_is_found_by_its_name_in_the_history_and_has_a_direction() {
        let log = EpochLog {
            loss: 1.,
            accuracy: 2.,
            val_loss: Some(3.),
            val_accuracy: Some(4.),
            metrics: [("auc".into(), 5.), ("val_top_3_accuracy".into(), 6.)].into(),
            ..EpochLog::default()
        };
        for (monitor, name, value, falls) in [
            (Monitor::Loss, "loss", 1., true),
            (Monitor::Accuracy, "accuracy", 2., false),
            (Monitor::ValLoss, "val_loss", 3., true),
            (Monitor::ValAccuracy, "val_accuracy", 4., false),
            (Monitor::Metric(Metric::Auc), "auc", 5., false),
            (
                Monitor::ValMetric(Metric::TopK(3)),
                "val_top_3_accuracy",
                6.,
                false,
            ),
        ] {
            assert_eq!(monitor.value(&log), Some(value));
            assert_eq!(monitor.improves(0., 1., 0.), falls);
            let json = format!("\"{name}\"");
            assert_eq!(serde_json::to_string(&monitor).unwrap(), json);
            assert_eq!(serde_json::from_str::<Monitor>(&json).unwrap(), monitor);
        }
        let error = serde_json::from_str::<Monitor>("\"val_x\"").unwrap_err();
        assert!(error.to_string().starts_with("nothing named val_x"));
    }

    #[test]
    fn what_is_not_measured_cannot_be_monitored() {
        let check = |monitor: Monitor, metrics: &[Metric], validates| {
            EarlyStopping::new()
                .monitor(monitor)
                .check(metrics, validates)
        };
        let auc = Monitor::ValMetric(Metric::Auc);
        assert!(check(Monitor::Loss, &[], false).is_ok());
        assert!(check(auc, &[Metric::F1, Metric::Auc], true).is_ok());
        for (monitor, metrics, validates) in [
            (Monitor::ValLoss, &[][..], false),
            (auc, &[Metric::Auc], false),
            (auc, &[Metric::F1], true),
            (Monitor::Metric(Metric::Auc), &[], true),
        ] {
            let error = check(monitor, metrics, validates).unwrap_err().to_string();
            assert!(error.ends_with(&format!("got {monitor}")), "{error}");
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
