//! # One cycle
//!
//! L. N. Smith, N. Topin, [Super-Convergence](https://arxiv.org/abs/1708.07120), 2017, as fastai's
//! [`fit_one_cycle`](https://github.com/fastai/fastai/blob/main/fastai/callback/schedule.py) has it (release 2.8).

use serde::{Deserialize, Serialize};

use super::{Moment, Schedule, check, cosine};
use crate::Result;
use crate::training::optimizer::Rates;

/// fastai's momentum (Adam's first beta) at the start, at the highest learning rate, and at the end.
const MOMENTUMS: [f64; 3] = [0.95, 0.85, 0.95];

/// Lets the learning rate rise along half a cosine to the optimizer's, and fall along another one to almost
/// nothing, over all steps, as fastai's `fit_one_cycle` does. The momentum of an optimizer that has one,
/// Adam's first beta, goes from 0.95 to 0.85 and back meanwhile, whatever it was compiled with.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OneCycle {
    pct_start: f64,
    div: f64,
    div_final: f64,
}

impl Default for OneCycle {
    fn default() -> Self {
        Self {
            pct_start: 0.25,
            div: 25.,
            div_final: 1e5,
        }
    }
}

impl OneCycle {
    /// Returns fastai's: a quarter of the steps up from a 25th of the learning rate, then down to 1e-5 of it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Is at the highest learning rate after this share of the steps, more than 0 and less than 1.
    #[must_use]
    pub fn pct_start(mut self, share: f64) -> Self {
        self.pct_start = share;
        self
    }

    /// Starts at the highest learning rate divided by this.
    #[must_use]
    pub fn div(mut self, div: f64) -> Self {
        self.div = div;
        self
    }

    /// Ends at the highest learning rate divided by this. The last step is one before the end.
    #[must_use]
    pub fn div_final(mut self, div: f64) -> Self {
        self.div_final = div;
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        let divisor = |div: f64| div > 0. && div.is_finite();
        let share = self.pct_start > 0. && self.pct_start < 1.;
        let fits = share && divisor(self.div) && divisor(self.div_final);
        let expected = "a start that is more than 0 and less than 1, and positive divisors";
        check("OneCycle", fits, expected, self)
    }

    pub(super) fn rates(&self, compiled: Rates, now: &Moment<'_>) -> Rates {
        let (done, start) = (now.done(), self.pct_start);
        let combined = |[first, middle, last]: [f64; 3]| {
            if done < start {
                cosine(first, middle, done / start)
            } else {
                cosine(middle, last, (done - start) / (1. - start))
            }
        };
        let rate = compiled.learning_rate;
        Rates {
            learning_rate: combined([rate / self.div, rate, rate / self.div_final]),
            momentum: compiled.momentum.map(|_| combined(MOMENTUMS)),
        }
    }
}

impl From<OneCycle> for Schedule {
    fn from(schedule: OneCycle) -> Self {
        Self::OneCycle(schedule)
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
        pct_start: f64,
        div: f64,
        div_final: f64,
        rates: Vec<f64>,
        momentums: Vec<f64>,
    }

    #[test]
    fn rates_and_momentums_are_fastais() {
        for case in cases::<Case>("one_cycle") {
            let schedule = OneCycle::new()
                .pct_start(case.pct_start)
                .div(case.div)
                .div_final(case.div_final)
                .into();
            let compiled = |momentum| Rates {
                learning_rate: case.rate,
                momentum,
            };
            let found = all(&schedule, compiled(Some(0.9)), case.steps);
            assert_eq!(found.len(), case.rates.len());
            let expected = case.rates.iter().zip(&case.momentums);
            for (found, (&rate, &momentum)) in found.iter().zip(expected) {
                // fastai has the position in 32 bits.
                assert_close(found.learning_rate, rate, 1e-4);
                assert_close(found.momentum.unwrap(), momentum, 1e-6);
            }
            let without = all(&schedule, compiled(None), case.steps);
            assert!(without.iter().all(|rates| rates.momentum.is_none()));
        }
    }
}
