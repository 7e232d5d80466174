//! The notebook's Stop button.

use super::{Console, End, EpochEnd, Hook, Pass, Phase, StepEnd};
use crate::model::Sequential;
use crate::training::Compiled;

/// Ends the training after a step once the notebook's Stop button was pressed. After the last step
/// of a validation it waits for the next epoch: this one is whole.
#[derive(Default)]
pub(super) struct StopButton {
    epochs_before: usize,
}

impl Hook for StopButton {
    fn on_train_begin(&mut self, model: &Sequential<Compiled>) -> Result<(), End> {
        self.epochs_before = model.history().epochs.len();
        Ok(())
    }

    fn on_step_end(
        &mut self,
        _: &Sequential<Compiled>,
        end: &StepEnd<'_>,
        console: &mut Console<'_>,
    ) -> Result<(), End> {
        let (step, Pass { epoch, steps, .. }) = (end.step, end.pass);
        let place = match end.pass.phase {
            Phase::Training => format!("after step {step} of epoch {epoch}"),
            Phase::Validation if step == steps => return Ok(()),
            Phase::Validation => format!("in the validation of epoch {epoch}, which is trained"),
        };
        if !console.stop.requested() {
            return Ok(());
        }
        let before = self.epochs_before;
        Err(End::Stopped(format!(
            "stopped {place}; the history has the {before} before"
        )))
    }

    fn on_epoch_end(
        &mut self,
        model: &mut Sequential<Compiled>,
        _: &EpochEnd,
        _: &mut Console<'_>,
    ) -> Result<(), End> {
        self.epochs_before = model.history().epochs.len();
        Ok(())
    }
}
