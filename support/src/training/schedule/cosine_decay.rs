//! # Cosine decay with a linear warm-up
//!
//! I. Loshchilov, F. Hutter, [SGDR](https://arxiv.org/abs/1608.03983), 2016, without restarts.

use serde::{Deserialize, Serialize};

use super::{Moment, Schedule, check, cosine};
use crate::Result;
use crate::training::optimizer::Rates;

/// Lets the learning rate fall along half a cosine, as
/// [Keras' `CosineDecay`](https://keras.io/api/optimizers/learning_rate_schedules/cosine_decay/) does, over all
/// steps; with a [warm-up](Self::warmup), it rises linearly from 0 before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CosineDecay {
    warmup: f64,
    end: f64,
}

impl CosineDecay {
    /// Returns one without a warm-up that ends at 0.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes this share of all steps, rounded to whole ones, to reach the optimizer's learning rate: at least
    /// 0 and less than 1.
    #[must_use]
    pub fn warmup(mut self, share: f64) -> Self {
        self.warmup = share;
        self
    }

    /// Ends at this share of the optimizer's learning rate, 0 to 1, Keras' `alpha`. The last step is one
    /// before the end.
    #[must_use]
    pub fn end(mut self, share: f64) -> Self {
        self.end = share;
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        let fits = (0. ..1.).contains(&self.warmup) && (0. ..=1.).contains(&self.end);
        let expected = "a warm-up of at least 0 and less than 1, and an end from 0 to 1";
        check("CosineDecay", fits, expected, self)
    }

    pub(super) fn rates(&self, compiled: Rates, now: &Moment<'_>) -> Rates {
        let warmup = (self.warmup * now.steps as f64).round();
        let (step, steps) = (now.step as f64, now.steps as f64);
        let share = if step < warmup {
            step / warmup
        } else {
            cosine(1., self.end, (step - warmup) / (steps - warmup))
        };
        Rates {
            learning_rate: compiled.learning_rate * share,
            ..compiled
        }
    }
}

impl From<CosineDecay> for Schedule {
    fn from(schedule: CosineDecay) -> Self {
        Self::CosineDecay(schedule)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{all, assert_close, cases};
    use super::*;

    #[derive(Deserialize)]
    struct Case {
        rate: f64,
        steps: usize,
        warmup: f64,
        end: f64,
        rates: Vec<f64>,
    }

    #[test]
    fn the_rates_are_keras() {
        for case in cases::<Case>("cosine_decay") {
            let compiled = Rates {
                learning_rate: case.rate,
                momentum: Some(0.9),
            };
            let schedule = CosineDecay::new().warmup(case.warmup).end(case.end);
            let found = all(&schedule.into(), compiled, case.steps);
            assert_eq!(found.len(), case.rates.len());
            for (found, expected) in found.iter().zip(&case.rates) {
                // Keras computes in 32 bits, where the cosine near its end has few digits.
                let off = (found.learning_rate - expected).abs();
                assert!(off < 1e-6 * case.rate, "{found:?} for {expected}");
                assert_eq!(found.momentum, Some(0.9));
            }
        }
        // And one that the reference has not: of a step.
        let compiled = Rates {
            learning_rate: 0.5,
            momentum: None,
        };
        let only = all(&CosineDecay::new().warmup(0.1).into(), compiled, 1);
        assert_close(only[0].learning_rate, 0.5, 0.);
    }
}
