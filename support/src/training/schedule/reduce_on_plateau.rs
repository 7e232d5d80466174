//! # Reduce on plateau
//!
//! As [Keras' `ReduceLROnPlateau`](https://keras.io/api/callbacks/reduce_lr_on_plateau/) does it.

use serde::{Deserialize, Serialize};

use super::{Moment, Schedule, check};
use crate::Result;
use crate::training::optimizer::Rates;
use crate::training::{EpochLog, Monitor};

/// Lowers the learning rate when the validation does not improve any more, as
/// [Keras' `ReduceLROnPlateau`](https://keras.io/api/callbacks/reduce_lr_on_plateau/) does; its defaults are
/// Keras'. Every `fit` begins with the rate that the model was compiled with.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReduceOnPlateau {
    monitor: Monitor,
    factor: f64,
    patience: usize,
    min_delta: f64,
    cooldown: usize,
    min_lr: f64,
}

impl Default for ReduceOnPlateau {
    fn default() -> Self {
        Self {
            monitor: Monitor::default(),
            factor: 0.1,
            patience: 10,
            min_delta: 1e-4,
            cooldown: 0,
            min_lr: 0.,
        }
    }
}

impl ReduceOnPlateau {
    /// Returns one that takes a tenth of the learning rate after ten epochs in which the validation loss has
    /// not fallen by more than 1e-4.
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

    /// Multiplies the learning rate by this, more than 0 and less than 1.
    #[must_use]
    pub fn factor(mut self, factor: f64) -> Self {
        self.factor = factor;
        self
    }

    /// Lowers it after so many epochs in a row without an improvement; 0 is taken for 1.
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

    /// Does not count so many epochs after it was lowered.
    #[must_use]
    pub fn cooldown(mut self, epochs: usize) -> Self {
        self.cooldown = epochs;
        self
    }

    /// Does not lower it below this.
    #[must_use]
    pub fn min_lr(mut self, rate: f64) -> Self {
        self.min_lr = rate;
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        let factor = self.factor > 0. && self.factor < 1.;
        let fits = factor && self.min_delta.is_finite() && self.min_lr >= 0.;
        let expected = "a factor that is more than 0 and less than 1, a finite least improvement, and a \
                        least rate of 0 or more";
        check("ReduceOnPlateau", fits, expected, self)
    }

    pub(super) fn rates(&self, compiled: Rates, now: &Moment<'_>) -> Rates {
        Rates {
            learning_rate: self.rate(compiled.learning_rate, now.epochs),
            ..compiled
        }
    }

    /// Returns the learning rate after some epochs.
    fn rate(&self, mut rate: f64, epochs: &[EpochLog]) -> f64 {
        let (mut best, mut wait, mut cooldown) = (None, 0, 0_usize);
        for value in epochs.iter().filter_map(|log| self.monitor.value(log)) {
            if cooldown > 0 {
                cooldown -= 1;
                wait = 0;
            }
            let improves = |best| self.monitor.improves(value, best, self.min_delta);
            if value.is_finite() && best.is_none_or(improves) {
                best = Some(value);
                wait = 0;
            } else if cooldown == 0 {
                wait += 1;
                if wait >= self.patience.max(1) && rate > self.min_lr {
                    rate = (rate * self.factor).max(self.min_lr);
                    (cooldown, wait) = (self.cooldown, 0);
                }
            }
        }
        rate
    }
}

impl From<ReduceOnPlateau> for Schedule {
    fn from(schedule: ReduceOnPlateau) -> Self {
        Self::ReduceOnPlateau(schedule)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::{assert_close, cases};
    use super::*;
    use crate::training::Evaluation;

    #[derive(Deserialize)]
    struct Case {
        monitor: String,
        rate: f64,
        factor: f64,
        patience: usize,
        min_delta: f64,
        cooldown: usize,
        min_lr: f64,
        values: Vec<f64>,
        /// After each epoch.
        rates: Vec<f64>,
    }

    #[test]
    fn the_rate_after_each_epoch_is_keras() {
        let cases = cases::<Case>("reduce_on_plateau");
        assert!(cases.len() > 50);
        for case in cases {
            let monitor = match case.monitor.as_str() {
                "val_loss" => Monitor::ValLoss,
                _ => Monitor::ValAccuracy,
            };
            let rule = ReduceOnPlateau::new()
                .monitor(monitor)
                .factor(case.factor)
                .patience(case.patience)
                .min_delta(case.min_delta)
                .cooldown(case.cooldown)
                .min_lr(case.min_lr);
            let log = |&value: &f64| {
                let evaluation = Evaluation {
                    loss: value,
                    accuracy: value,
                };
                EpochLog::new(evaluation, Some(evaluation), None, Duration::ZERO)
            };
            let epochs: Vec<EpochLog> = case.values.iter().map(log).collect();
            for (after, &expected) in (1..).zip(&case.rates) {
                // Keras has it in 32 bits.
                assert_close(rule.rate(case.rate, &epochs[..after]), expected, 1e-6);
            }
        }
    }
}
