//! A loss or a weight that is infinite or not a number: from there on nothing is learned.

use super::{Callback, Console, End, EpochEnd, Phase, StepEnd};
use crate::model::Sequential;
use crate::training::Compiled;
use crate::training::state::TrainingState;
use crate::{Error, Result};

/// Ends a training that has diverged, and takes the model back to the last epoch that had not.
pub(super) struct StopOnNonFinite {
    learning_rate: f64,
    /// How many epochs are done.
    epochs: usize,
    /// The model after them.
    last_good: Option<TrainingState>,
    diverged: bool,
}

impl StopOnNonFinite {
    pub(super) fn new(initial_epoch: usize) -> Self {
        Self {
            learning_rate: 0.,
            epochs: initial_epoch,
            last_good: None,
            diverged: false,
        }
    }

    fn end(&mut self, what: String) -> End {
        self.diverged = true;
        End::Error(Error::NotFinite {
            what,
            learning_rate: self.learning_rate,
            epochs: self.epochs,
        })
    }
}

impl Callback for StopOnNonFinite {
    fn on_train_begin(&mut self, model: &Sequential<Compiled>) -> Result<(), End> {
        self.epochs += model.history().epochs.len();
        self.last_good = Some(TrainingState::of(model)?);
        self.learning_rate = model.compiled.optimizer.rates().learning_rate;
        Ok(())
    }

    fn on_step_end(&mut self, end: &StepEnd<'_>, _: &mut Console<'_>) -> Result<(), End> {
        if end.loss.is_finite() {
            return Ok(());
        }
        let (loss, step, steps) = (end.loss, end.step, end.pass.steps);
        let what = match end.pass.phase {
            Phase::Training => "loss",
            Phase::Validation => "validation loss",
        };
        Err(self.end(format!("the {what} of step {step} of {steps} is {loss}")))
    }

    fn on_epoch_end(
        &mut self,
        model: &mut Sequential<Compiled>,
        end: &EpochEnd,
        _: &mut Console<'_>,
    ) -> Result<(), End> {
        // The last step's loss is that before it.
        let state = TrainingState::of(model)?;
        if !state.is_finite()? {
            return Err(self.end("a weight after the last step is not finite".into()));
        }
        (self.epochs, self.last_good) = (end.epoch, Some(state));
        Ok(())
    }

    fn on_train_end(
        &mut self,
        model: &mut Sequential<Compiled>,
        _: Result<(), &End>,
        _: &mut Console<'_>,
    ) -> Result<()> {
        match self.last_good.take() {
            Some(state) if self.diverged => state.restore(model),
            _ => Ok(()),
        }
    }
}
