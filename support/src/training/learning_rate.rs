//! The learning-rate range test: how the loss goes while the learning rate grows step by step.
//! Source: L. N. Smith, [Cyclical Learning Rates](https://arxiv.org/abs/1506.01186), as fastai's
//! `lr_find` does it (its
//! [`callback/schedule.py`](https://github.com/fastai/fastai/blob/main/fastai/callback/schedule.py),
//! release 2.8).

use std::fmt;

use super::callbacks::{Console, End};
use super::frozen::FrozenPrefix;
use super::optimizer::Rates;
use super::state::TrainingState;
use super::{Compiled, Fit};
use crate::live::Task;
use crate::model::Sequential;
use crate::pipeline::Batches;
use crate::{Error, Result};

/// How much of the smoothed loss is the one before.
const SMOOTHING: f64 = 0.98;

/// A smoothed loss of so many times the lowest one ends the search.
const DIVERGED: f64 = 4.;

/// So many steps at the end are left out of account and of the figure: there the loss is on its way
/// up, and where it diverges it would hide the others.
pub(crate) const LAST: usize = 5;

/// How [`find_learning_rate`](Sequential::find_learning_rate) searches: in 100 steps from 1e-7
/// towards 10, unless told otherwise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRateFinder {
    start: f64,
    end: f64,
    steps: usize,
}

impl Default for LearningRateFinder {
    fn default() -> Self {
        let (start, end, steps) = (1e-7, 10., 100);
        Self { start, end, steps }
    }
}

impl LearningRateFinder {
    /// Returns fastai's search.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Tries learning rates from `start` on, below `end`.
    #[must_use]
    pub fn range(mut self, start: f64, end: f64) -> Self {
        (self.start, self.end) = (start, end);
        self
    }

    /// Trains so many steps at most, 10 or more.
    #[must_use]
    pub fn steps(mut self, steps: usize) -> Self {
        self.steps = steps;
        self
    }

    fn check(&self) -> Result<()> {
        let Self { start, end, steps } = *self;
        if start > 0. && start < end && end.is_finite() && steps >= 10 {
            return Ok(());
        }
        Err(Error::Argument {
            name: "LearningRateFinder",
            expected: "10 steps or more, between positive numbers of which the second is larger"
                .into(),
            got: format!("{steps} steps from {start} to {end}"),
        })
    }

    /// Returns the number of steps at the start over which the average has still to form.
    fn forming(&self) -> usize {
        self.steps / 10
    }

    /// Returns a step's learning rate; the steps have a constant ratio.
    fn rate(&self, step: usize) -> f64 {
        self.start * (self.end / self.start).powf(step as f64 / self.steps as f64)
    }
}

/// The loss at each learning rate, and what to choose.
///
/// Each suggestion is a learning rate to compile the model with. Where they are orders of magnitude
/// apart, the figure tells why.
#[derive(Clone, Debug, PartialEq)]
pub struct LearningRates {
    finder: LearningRateFinder,
    rates: Vec<f64>,
    losses: Vec<f64>,
    /// Of the losses, each step's counting less by [`SMOOTHING`] than the next one's.
    sum: f64,
}

impl LearningRates {
    fn new(finder: LearningRateFinder) -> Self {
        Self {
            finder,
            rates: Vec::new(),
            losses: Vec::new(),
            sum: 0.,
        }
    }

    /// Adds a step's loss; returns whether the search goes on.
    fn add(&mut self, loss: f64) -> bool {
        let step = self.losses.len();
        self.sum = SMOOTHING * self.sum + (1. - SMOOTHING) * loss;
        let smoothed = self.sum / (1. - SMOOTHING.powi(step as i32 + 1));
        if !smoothed.is_finite() {
            return false;
        }
        self.rates.push(self.finder.rate(step));
        self.losses.push(smoothed);
        // Unlike fastai, not of the first: the losses of single batches are far apart where a model
        // is trained already.
        let judged = self.losses.iter().skip(self.finder.forming()).copied();
        smoothed <= DIVERGED * judged.fold(f64::INFINITY, f64::min)
    }

    /// Returns the learning rates tried, in ascending order.
    #[must_use]
    pub fn rates(&self) -> &[f64] {
        &self.rates
    }

    /// Returns the loss at each of them: that before the step of this learning rate, averaged with
    /// those before, the last ones counting most.
    #[must_use]
    pub fn losses(&self) -> &[f64] {
        &self.losses
    }

    /// Returns the learning rate halfway down the longest fall of the loss, bumps left out: fastai's
    /// `valley`, which it suggests unless asked for another. There is none where the loss diverged
    /// within the first few steps, here and below.
    #[must_use]
    pub fn valley(&self) -> Option<f64> {
        let (rates, losses) = self.considered();
        // The longest falling subsequence that ends at each loss.
        let mut lengths: Vec<usize> = Vec::new();
        for (at, loss) in losses.iter().enumerate() {
            let longest = (0..at).filter(|&before| losses[before] > *loss);
            lengths.push(1 + longest.map(|before| lengths[before]).max().unwrap_or(0));
        }
        let end = (0..lengths.len()).rev().max_by_key(|&at| lengths[at])?;
        let length = lengths[end];
        // As if the fall had no gaps.
        Some(rates[(end + length / 3 + length / 6).saturating_sub(length)])
    }

    /// Returns the learning rate at which the loss falls fastest over the rate's logarithm: fastai's
    /// `steep`. Noise at the ends easily misleads it.
    #[must_use]
    pub fn steepest(&self) -> Option<f64> {
        let (rates, losses) = self.considered();
        let slope =
            |at: &usize| (losses[at + 1] - losses[*at]) / (rates[at + 1].ln() - rates[*at].ln());
        let steps = 0..rates.len().saturating_sub(1);
        let at = steps.min_by(|a, b| slope(a).total_cmp(&slope(b)))?;
        Some(rates[at])
    }

    /// Returns a tenth of the learning rate at which the loss is lowest: fastai's `minimum`.
    #[must_use]
    pub fn tenth_of_minimum(&self) -> Option<f64> {
        let (rates, losses) = self.considered();
        let at = (0..rates.len()).min_by(|&a, &b| losses[a].total_cmp(&losses[b]))?;
        Some(rates[at] / 10.)
    }

    /// Returns the rates and losses that suggestions come from: not the first and the last.
    fn considered(&self) -> (&[f64], &[f64]) {
        let end = self.rates.len().saturating_sub(LAST);
        let start = self.finder.forming().min(end);
        (&self.rates[start..end], &self.losses[start..end])
    }
}

impl fmt::Display for LearningRates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (tried, steps) = (self.rates.len(), self.finder.steps);
        let last = self.rates.last().copied().unwrap_or(self.finder.start);
        write!(
            f,
            "learning rates from {:.1e} to {last:.1e}, in {tried} steps",
            self.finder.start
        )?;
        if tried < steps {
            write!(f, " of {steps}: there the loss diverged")?;
        }
        let suggestions = [
            ("valley", self.valley()),
            ("steepest", self.steepest()),
            ("minimum / 10", self.tenth_of_minimum()),
        ];
        for (what, rate) in suggestions {
            match rate {
                Some(rate) => write!(f, "\n{what:<12}  {rate:.1e}")?,
                None => return write!(f, "\ntoo early to suggest one: start lower"),
            }
        }
        Ok(())
    }
}

impl Sequential<Compiled> {
    /// Trains a few steps with learning rates that grow, and returns the loss at each; the weights
    /// and the optimizer are then as they were before. Ends when the loss diverges.
    ///
    /// ```no_run
    /// # use support::prelude::*;
    /// # fn find(mut model: Sequential<support::training::Compiled>, train_batches: &Batches) -> support::Result<()> {
    /// let rates = model.find_learning_rate(&train_batches, LearningRateFinder::new())?;
    /// let rate = rates.valley().unwrap_or(1e-4);
    /// let model = model.compile(RmsProp::new(rate), Loss::BinaryCrossentropy)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`fit`](Self::fit); `Argument` for a search from 0, downwards, or of less than 10 steps;
    /// `Stopped` by the notebook's Stop button.
    pub fn find_learning_rate(
        &mut self,
        batches: &Batches,
        finder: LearningRateFinder,
    ) -> Result<LearningRates> {
        const NAME: &str = "find_learning_rate, the batches";
        batches.group().together(|| {
            finder.check()?;
            self.check_training(batches, NAME)?;
            self.take_over(batches.group(), None)?;
            let before = TrainingState::of(self)?;
            let found = self.search(&batches.share(NAME)?, finder);
            before.restore(self)?;
            found
        })
    }

    fn search(&mut self, batches: &Batches, finder: LearningRateFinder) -> Result<LearningRates> {
        let group = batches.group();
        let mut task = Task::begin_together(group, "find_learning_rate", "step", finder.steps);
        // Worth it where images come again.
        let fit = Fit::epochs(1).cache_activations(batches.len() < finder.steps);
        let mut console = Console {
            progress: &mut task.progress,
            stop: &mut task.stop,
        };
        let prefix = match FrozenPrefix::new(self, batches, &fit, &mut console) {
            Err(End::Error(error)) => return Err(error),
            Err(_) => return Err(task.stopped(0)),
            Ok(prefix) => prefix,
        };
        let mut stepper = self.stepper(prefix.cut, group)?;
        let mut found = LearningRates::new(finder);
        let mut epoch = 0;
        let mut coming = prefix.training.epoch(epoch);
        for step in 0..finder.steps {
            let rates = Rates {
                learning_rate: finder.rate(step),
                ..self.compiled.optimizer.rates()
            };
            let loss = loop {
                let inputs = self.inputs(prefix.cut, coming.next())?;
                let totals = self.train_step(&mut stepper, inputs, rates)?.read()?;
                if totals.examples > 0 {
                    break totals.mean().loss;
                }
                if step == 0 {
                    return Err(batches.nothing_readable());
                }
                epoch += 1;
                coming = prefix.training.epoch(epoch);
            };
            if !found.add(loss) {
                break;
            }
            task.done_with(step + 1, || {
                format!(
                    "learning rate: {:.1e} - loss: {loss:.4}",
                    rates.learning_rate
                )
            })?;
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// The cases of `tests/reference/learning_rates.py`.
    fn cases() -> Vec<Value> {
        let text = include_str!("../../tests/data/learning_rates.json");
        serde_json::from_str(text).unwrap()
    }

    fn numbers(value: &Value) -> Vec<f64> {
        serde_json::from_value(value.clone()).unwrap()
    }

    #[track_caller]
    fn assert_close(actual: &[f64], expected: &[f64]) {
        assert_eq!(actual.len(), expected.len());
        for (actual, expected) in actual.iter().zip(expected) {
            let off = (actual - expected).abs() / expected.abs();
            assert!(off < 1e-5, "{actual} for {expected}");
        }
    }

    #[test]
    fn rates_smoothed_losses_end_and_suggestions_are_fastais() {
        for case in cases() {
            let number = |key: &str| case[key].as_f64().unwrap();
            let finder = LearningRateFinder::new()
                .range(number("start"), number("end"))
                .steps(number("steps") as usize);
            let mut found = LearningRates::new(finder);
            let mut losses = numbers(&case["losses"]).into_iter();
            while found.rates.len() < finder.steps && found.add(losses.next().unwrap()) {}
            assert_close(found.rates(), &numbers(&case["rates"]));
            assert_close(found.losses(), &numbers(&case["smoothed"]));
            assert_close(&[found.valley().unwrap()], &[number("valley")]);
            assert_close(&[found.steepest().unwrap()], &[number("steep")]);
            assert_close(&[found.tenth_of_minimum().unwrap()], &[number("minimum")]);
        }
    }

    #[test]
    fn a_loss_that_diverges_or_is_no_number_ends_the_search() {
        let found = |losses: &[f64]| {
            let mut found = LearningRates::new(LearningRateFinder::new());
            let steps = losses.iter().take_while(|loss| found.add(**loss)).count();
            (steps, found)
        };
        let (steps, diverged) = found(&[&[1.; 12][..], &[1e3]].concat());
        assert_eq!((steps, diverged.losses().len()), (12, 13));
        let suggestions = [
            diverged.valley(),
            diverged.steepest(),
            diverged.tenth_of_minimum(),
        ];
        assert_eq!(suggestions, [None; 3]);
        assert!(diverged.to_string().ends_with("start lower"), "{diverged}");
        let (steps, no_number) = found(&[1., f64::NAN, 1.]);
        assert_eq!((steps, no_number.losses()), (1, &[1.][..]));
        // An easy first batch of a trained model.
        assert_eq!(found(&[&[1e-3][..], &[0.1; 99]].concat()).0, 100);
    }

    #[test]
    fn a_search_that_makes_no_sense_is_refused() {
        let new = LearningRateFinder::new;
        for finder in [
            new().steps(9),
            new().range(0., 1.),
            new().range(1., 1.),
            new().range(1., f64::INFINITY),
            new().range(f64::NAN, 1.),
        ] {
            let error = finder.check().unwrap_err().to_string();
            assert!(error.contains("10 steps or more"), "{error}");
        }
    }
}
