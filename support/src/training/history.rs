//! What training reports, epoch by epoch.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use super::Evaluation;

/// How the name of what is measured in validation begins.
pub(super) const VALIDATION: &str = "val_";

/// Loss, accuracy and other metrics over one epoch, as Keras' `History` has them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EpochLog {
    /// Mean loss over the training examples, each measured before the step it takes part in.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// Share of training examples classified right, likewise.
    pub accuracy: f64,
    /// Mean loss over the validation examples after the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "some_number")]
    pub val_loss: Option<f64>,
    /// Share of validation examples classified right after the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_accuracy: Option<f64>,
    /// The learning rate of the epoch's last step. Histories of before it was kept have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// The [metrics](crate::model::Sequential::metrics) that the model was asked for, by name; the
    /// validation's begin with `val_`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, f64>,
    /// Seconds that the epoch took, validation included.
    pub seconds: f64,
}

impl EpochLog {
    pub(super) fn new(
        training: Evaluation,
        validation: Option<Evaluation>,
        learning_rate: Option<f64>,
        time: Duration,
    ) -> Self {
        Self {
            loss: training.loss,
            accuracy: training.accuracy,
            val_loss: validation.as_ref().map(|validation| validation.loss),
            val_accuracy: validation.as_ref().map(|validation| validation.accuracy),
            metrics: {
                let validation = validation
                    .into_iter()
                    .flat_map(|validation| validation.metrics);
                let validation =
                    validation.map(|(name, value)| (format!("{VALIDATION}{name}"), value));
                training.metrics.into_iter().chain(validation).collect()
            },
            learning_rate,
            seconds: time.as_secs_f64(),
        }
    }

    /// Returns a value by Keras' name: `loss`, `accuracy`, a metric such as `auc`, or one of them in
    /// validation, `val_auc`; or the `learning_rate`; none where it was not measured.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<f64> {
        match name {
            "loss" => Some(self.loss),
            "accuracy" => Some(self.accuracy),
            "val_loss" => self.val_loss,
            "val_accuracy" => self.val_accuracy,
            "learning_rate" => self.learning_rate,
            _ => self.metrics.get(name).copied(),
        }
    }

    /// Returns losses, accuracies and metrics by Keras' name, the training's first.
    pub fn values(&self) -> impl Iterator<Item = (&str, f64)> {
        let all = self
            .metrics
            .iter()
            .map(|(name, value)| (name.as_str(), *value));
        let (validation, training): (Vec<_>, Vec<_>) =
            all.partition(|(name, _)| name.starts_with(VALIDATION));
        let first = [("loss", self.loss), ("accuracy", self.accuracy)];
        let val = [
            ("val_loss", self.val_loss),
            ("val_accuracy", self.val_accuracy),
        ];
        let val = val
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)));
        first
            .into_iter()
            .chain(training)
            .chain(val)
            .chain(validation)
    }
}

/// The epochs of one or several runs of [`fit`](crate::model::Sequential::fit), in order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct History {
    /// One entry per epoch.
    pub epochs: Vec<EpochLog>,
}

/// Reads a number. JSON has `null` where a loss has overflown.
pub(super) fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

fn some_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    number(deserializer).map(Some)
}

impl History {
    /// Returns this run followed by another.
    #[must_use]
    pub fn then(&self, next: &Self) -> Self {
        Self {
            epochs: [&self.epochs[..], &next.epochs[..]].concat(),
        }
    }

    /// Returns the training accuracy of each epoch.
    #[must_use]
    pub fn accuracy(&self) -> Vec<f64> {
        self.epochs.iter().map(|epoch| epoch.accuracy).collect()
    }

    /// Returns the training loss of each epoch.
    #[must_use]
    pub fn loss(&self) -> Vec<f64> {
        self.epochs.iter().map(|epoch| epoch.loss).collect()
    }

    /// Returns the validation accuracy of each epoch that had one.
    #[must_use]
    pub fn val_accuracy(&self) -> Vec<f64> {
        self.epochs
            .iter()
            .filter_map(|epoch| epoch.val_accuracy)
            .collect()
    }

    /// Returns the validation loss of each epoch that had one.
    #[must_use]
    pub fn val_loss(&self) -> Vec<f64> {
        self.epochs
            .iter()
            .filter_map(|epoch| epoch.val_loss)
            .collect()
    }

    /// Returns the learning rate of each epoch's last step, as far as it was kept.
    #[must_use]
    pub fn learning_rate(&self) -> Vec<f64> {
        self.epochs
            .iter()
            .filter_map(|epoch| epoch.learning_rate)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_comes_back_from_json_to_the_bit() {
        let log = |loss: f64, val_loss| EpochLog {
            loss,
            accuracy: 2. / 3.,
            val_loss,
            val_accuracy: val_loss.map(|_| 0.1 + 0.2),
            learning_rate: val_loss.map(|_| 1e-4 / 3.),
            metrics: BTreeMap::from([("auc".into(), 0.7 / 3.)]),
            seconds: 1e-7 / 3.,
        };
        let epochs = vec![log(0.1 / 3., None), log(f64::INFINITY, Some(f64::NAN))];
        let history = History { epochs };
        let json = serde_json::to_string(&history).unwrap();
        let read: History = serde_json::from_str(&json).unwrap();
        assert!(read.epochs[1].loss.is_nan());
        assert!(read.epochs[1].val_loss.is_some_and(f64::is_nan));
        assert_eq!(read.epochs[0], history.epochs[0]);
        assert_eq!(read.epochs[1].val_accuracy, history.epochs[1].val_accuracy);
        assert_eq!(read.learning_rate(), [1e-4 / 3.]);
    }
}
