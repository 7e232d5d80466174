//! What follows from the rule of early stopping: an end, and whose weights the model has then.

use super::{Console, End, EpochEnd, Hook};
use crate::Result;
use crate::model::Sequential;
use crate::training::state::TrainedWeights;
use crate::training::{Compiled, EarlyStopping};

/// Ends the training when the validation does not improve any more.
pub(super) struct StopEarly {
    pub(super) rule: EarlyStopping,
    pub(super) initial_epoch: usize,
}

impl StopEarly {
    fn check(&self, model: &Sequential<Compiled>) -> Result<(), End> {
        let epochs = &model.history().epochs;
        let verdict = self.rule.verdict(epochs, self.initial_epoch);
        if !verdict.stop {
            return Ok(());
        }
        Err(End::Early(format!(
            "early stopping after epoch {}: {} has not improved for {} epochs",
            self.initial_epoch + epochs.len(),
            self.rule.monitor,
            verdict.wait,
        )))
    }
}

impl Hook for StopEarly {
    /// A run that is resumed may have ended already.
    fn on_train_begin(&mut self, model: &Sequential<Compiled>) -> Result<(), End> {
        self.check(model)
    }

    fn on_epoch_end(
        &mut self,
        model: &mut Sequential<Compiled>,
        _: &EpochEnd,
        _: &mut Console<'_>,
    ) -> Result<(), End> {
        self.check(model)
    }
}

/// An epoch, counted from 1, and the weights after it.
pub(in crate::training) type BestEpoch = (usize, TrainedWeights);

/// Keeps the best epoch's weights, and gives them to the model in the end.
pub(super) struct BestWeights {
    pub(super) rule: EarlyStopping,
    pub(super) initial_epoch: usize,
    pub(super) best: Option<BestEpoch>,
}

impl Hook for BestWeights {
    fn on_epoch_end(
        &mut self,
        model: &mut Sequential<Compiled>,
        end: &EpochEnd,
        _: &mut Console<'_>,
    ) -> Result<(), End> {
        let epochs = &model.history().epochs;
        if self.rule.verdict(epochs, self.initial_epoch).best == Some(end.epoch) {
            self.best = Some((end.epoch, TrainedWeights::of(model)?));
        }
        Ok(())
    }

    fn on_train_end(
        &mut self,
        model: &mut Sequential<Compiled>,
        ended: Result<(), &End>,
        console: &mut Console<'_>,
    ) -> Result<()> {
        let Some((epoch, weights)) = &self.best else {
            return Ok(());
        };
        if matches!(ended, Err(End::Error(_))) {
            return Ok(());
        }
        weights.restore(model)?;
        let line = format!("restored the weights of epoch {epoch}, the best one");
        console.progress.line(&line);
        Ok(())
    }
}
