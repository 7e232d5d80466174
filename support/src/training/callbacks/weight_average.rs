//! A running average of the weights.

use serde::{Deserialize, Serialize};

use super::{Console, End, Hook, Phase, StepEnd};
use crate::model::Sequential;
use crate::training::Compiled;
use crate::training::state::TrainedWeights;
use crate::{Error, Result};

/// A running average of the weights that are trained, which often does better than the weights themselves:
/// those jump about with the batches. Given to [`Fit::weight_average`](crate::training::Fit::weight_average).
///
/// The average is the weights after the first step, then `decay * average + (1 - decay) * weights` after
/// each further one, as PyTorch's `get_ema_multi_avg_fn` and Keras' `use_ema` have it. Training itself goes
/// on from the weights. Between epochs and in the end, the model has the average: validation measures it,
/// and checkpoints, the best epoch's weights and what is called after an epoch have it. Both are in a
/// checkpoint. A later `fit` goes on from the average and begins another; not after an error, which leaves
/// the model as it was when it came.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightAverage {
    decay: f64,
}

impl WeightAverage {
    /// Returns an exponential moving average with a decay of at least 0 and less than 1: of about the last
    /// `1 / (1 - decay)` steps. An epoch should have some more.
    #[must_use]
    pub fn ema(decay: f64) -> Self {
        Self { decay }
    }

    pub(in crate::training) fn check(self) -> Result<()> {
        if (0. ..1.).contains(&self.decay) {
            return Ok(());
        }
        Err(Error::Argument {
            name: "WeightAverage::ema, the decay",
            expected: "at least 0 and less than 1".into(),
            got: self.decay.to_string(),
        })
    }

    /// Returns the average after another step, `average` being that before, if there was one.
    pub(super) fn next(
        self,
        average: Option<TrainedWeights>,
        model: &Sequential<Compiled>,
    ) -> Result<TrainedWeights> {
        match average {
            None => TrainedWeights::of(model),
            Some(average) => {
                average.average_with(model, self.decay)?;
                Ok(average)
            }
        }
    }
}

/// Averages the weights, and gives the model the average between epochs.
pub(super) struct AverageWeights {
    rule: Option<WeightAverage>,
    average: Option<TrainedWeights>,
}

impl AverageWeights {
    pub(super) fn new(rule: Option<WeightAverage>) -> Self {
        Self {
            rule,
            average: None,
        }
    }
}

impl Hook for AverageWeights {
    /// A run that goes on has both from its checkpoint.
    fn on_train_begin(&mut self, model: &Sequential<Compiled>) -> Result<(), End> {
        if model.compiled.trained.is_some() {
            self.average = Some(TrainedWeights::of(model)?);
        }
        Ok(())
    }

    fn on_epoch_begin(
        &mut self,
        model: &mut Sequential<Compiled>,
        _: usize,
        _: &mut Console<'_>,
    ) -> Result<(), End> {
        if let Some(trained) = model.compiled.trained.take() {
            trained.restore(model)?;
        }
        Ok(())
    }

    fn on_step_end(
        &mut self,
        model: &Sequential<Compiled>,
        end: &StepEnd<'_>,
        _: &mut Console<'_>,
    ) -> Result<(), End> {
        if let (Some(rule), Phase::Training) = (self.rule, end.pass.phase) {
            self.average = Some(rule.next(self.average.take(), model)?);
        }
        Ok(())
    }

    fn on_trained(&mut self, model: &mut Sequential<Compiled>) -> Result<(), End> {
        if let Some(average) = &self.average {
            model.compiled.trained = Some(TrainedWeights::of(model)?);
            average.restore(model)?;
        }
        Ok(())
    }

    fn on_train_end(
        &mut self,
        model: &mut Sequential<Compiled>,
        ended: Result<(), &End>,
        _: &mut Console<'_>,
    ) -> Result<()> {
        let is_average = model.compiled.trained.take().is_some();
        match &self.average {
            Some(average) if !is_average && !matches!(ended, Err(End::Error(_))) => {
                average.restore(model)
            }
            _ => Ok(()),
        }
    }
}
