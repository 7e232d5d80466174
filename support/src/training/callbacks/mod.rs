//! What happens around the steps and epochs of [`fit`](crate::model::Sequential::fit), so that the loop holds
//! the training alone. What users add is a [`Callback`].

mod csv_log;
mod early_stopping;
mod non_finite;
mod stop_button;
mod tensor_board;
#[cfg(test)]
mod tests;
mod user;
mod weight_average;

pub use csv_log::CsvLog;
pub(super) use early_stopping::BestEpoch;
use early_stopping::{BestWeights, StopEarly};
use non_finite::StopOnNonFinite;
use stop_button::StopButton;
pub use tensor_board::TensorBoard;
pub use user::{Callback, Epoch, Step};
pub(super) use user::{CallbackList, UserCallbacks};
use weight_average::AverageWeights;
pub use weight_average::WeightAverage;

use super::checkpoint::Checkpoints;
use super::evaluation::Totals;
use super::frozen::PrefixOutputs;
use super::options::OnEpochEnd;
use super::report::ProgressLines;
use super::{Compiled, EarlyStopping, EpochLog, Fit, History};
use crate::live::{Progress, Stop};
use crate::model::Sequential;
use crate::pipeline::Batches;
use crate::{Error, Result};

/// Where training tells how far it is, and hears the notebook's Stop button.
pub(super) struct Console<'a> {
    pub(super) progress: &'a mut Progress,
    pub(super) stop: &'a mut Stop,
}

/// Why training ends before the last epoch. Its history and the weights are as they are then; the texts say
/// to the user what ended it.
#[derive(Debug)]
pub enum End {
    /// By the notebook's Stop button.
    Stopped(String),
    /// By a rule, such as early stopping, or a [`Callback`].
    Early(String),
    /// By an error, which `fit` then returns.
    Error(Error),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl End {
    /// Says of an error in which epoch it came, and what is not lost.
    pub(super) fn in_epoch(self, epoch: usize, history: &History) -> Self {
        match self {
            Self::Error(error) => Self::Error(Error::Training {
                epoch,
                epochs: history.epochs.len(),
                source: Box::new(error),
            }),
            other => other,
        }
    }
}

/// What the steps of an epoch are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The weights change.
    Training,
    /// They are measured.
    Validation,
}

/// The steps of one phase of an epoch. Epochs and steps are counted from 1.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pass {
    pub(super) epoch: usize,
    pub(super) phase: Phase,
    pub(super) steps: usize,
}

impl Pass {
    pub(super) fn new(epoch: usize, phase: Phase, outputs: &PrefixOutputs<'_>) -> Self {
        Self {
            epoch,
            phase,
            steps: outputs.batches.len(),
        }
    }

    pub(super) fn end(self, step: usize, loss: f64, totals: &Totals) -> StepEnd<'_> {
        StepEnd {
            pass: self,
            step,
            loss,
            totals,
        }
    }
}

/// A step that is done.
pub(super) struct StepEnd<'a> {
    pub(super) pass: Pass,
    pub(super) step: usize,
    /// The batch's mean loss.
    pub(super) loss: f64,
    /// The sums over this pass.
    pub(super) totals: &'a Totals,
}

/// An epoch that is done, counted from 1.
pub(super) struct EpochEnd {
    pub(super) epoch: usize,
    pub(super) log: EpochLog,
}

/// Something to do around steps and epochs. What returns an [`End`] ends the training.
pub(super) trait Hook {
    fn on_train_begin(&mut self, _model: &Sequential<Compiled>) -> Result<(), End> {
        Ok(())
    }

    fn on_epoch_begin(
        &mut self,
        _model: &mut Sequential<Compiled>,
        _epoch: usize,
        _console: &mut Console<'_>,
    ) -> Result<(), End> {
        Ok(())
    }

    fn on_step_end(
        &mut self,
        _model: &Sequential<Compiled>,
        _end: &StepEnd<'_>,
        _console: &mut Console<'_>,
    ) -> Result<(), End> {
        Ok(())
    }

    /// Is called after an epoch's last training step, before its validation.
    fn on_trained(&mut self, _model: &mut Sequential<Compiled>) -> Result<(), End> {
        Ok(())
    }

    fn on_epoch_end(
        &mut self,
        _model: &mut Sequential<Compiled>,
        _end: &EpochEnd,
        _console: &mut Console<'_>,
    ) -> Result<(), End> {
        Ok(())
    }

    /// Is called however the training ended.
    fn on_train_end(
        &mut self,
        _model: &mut Sequential<Compiled>,
        _ended: Result<(), &End>,
        _console: &mut Console<'_>,
    ) -> Result<()> {
        Ok(())
    }
}

/// Hooks, in this order: one that ends the training keeps the later ones from being called.
pub(super) struct Hooks<'a>(Vec<Box<dyn Hook + 'a>>);

impl<'a> Hooks<'a> {
    /// Returns those of a `fit` on `training`, which saves `checkpoints` and knows a `best` epoch from
    /// before. What only one process is to do is rank 0's.
    pub(super) fn of(
        fit: &mut Fit<'a>,
        training: &'a Batches,
        checkpoints: Option<Checkpoints>,
        best: Option<BestEpoch>,
    ) -> Self {
        let lines = ProgressLines::new(training, fit.validation, fit.epochs);
        let mut all: Vec<Box<dyn Hook + 'a>> = vec![
            Box::new(StopOnNonFinite::new(fit.initial_epoch)),
            Box::new(AverageWeights::new(fit.weight_average)),
            Box::new(KeepHistory),
            Box::new(lines),
            Box::new(StopButton::default()),
        ];
        let (rule, initial_epoch) = (fit.early_stopping, fit.initial_epoch);
        if let Some(rule) = rule.filter(|rule| rule.restore_best_weights) {
            all.push(Box::new(BestWeights {
                rule,
                initial_epoch,
                best,
            }));
        }
        if let Some(checkpoints) = checkpoints {
            all.push(Box::new(SaveCheckpoints {
                checkpoints,
                rule,
                initial_epoch,
            }));
        }
        if let Some(call) = fit.on_epoch_end.take_if(|_| training.group().is_main()) {
            all.push(Box::new(call));
        }
        let callbacks = std::mem::take(&mut fit.callbacks);
        all.extend(UserCallbacks::of(callbacks, training.group()).map(|hook| Box::new(hook) as _));
        if let Some(rule) = rule {
            all.push(Box::new(StopEarly {
                rule,
                initial_epoch,
            }));
        }
        Self(all)
    }
}

impl Hook for Hooks<'_> {
    fn on_train_begin(&mut self, model: &Sequential<Compiled>) -> Result<(), End> {
        let mut all = self.0.iter_mut();
        all.try_for_each(|hook| hook.on_train_begin(model))
    }

    fn on_epoch_begin(
        &mut self,
        model: &mut Sequential<Compiled>,
        epoch: usize,
        console: &mut Console<'_>,
    ) -> Result<(), End> {
        let mut all = self.0.iter_mut();
        all.try_for_each(|hook| hook.on_epoch_begin(model, epoch, console))
    }

    fn on_step_end(
        &mut self,
        model: &Sequential<Compiled>,
        end: &StepEnd<'_>,
        console: &mut Console<'_>,
    ) -> Result<(), End> {
        let mut all = self.0.iter_mut();
        all.try_for_each(|hook| hook.on_step_end(model, end, console))
    }

    fn on_trained(&mut self, model: &mut Sequential<Compiled>) -> Result<(), End> {
        let mut all = self.0.iter_mut();
        all.try_for_each(|hook| hook.on_trained(model))
    }

    fn on_epoch_end(
        &mut self,
        model: &mut Sequential<Compiled>,
        end: &EpochEnd,
        console: &mut Console<'_>,
    ) -> Result<(), End> {
        let mut all = self.0.iter_mut();
        all.try_for_each(|hook| hook.on_epoch_end(model, end, console))
    }

    fn on_train_end(
        &mut self,
        model: &mut Sequential<Compiled>,
        ended: Result<(), &End>,
        console: &mut Console<'_>,
    ) -> Result<()> {
        let mut all = self.0.iter_mut();
        all.try_for_each(|hook| hook.on_train_end(model, ended, console))
    }
}

/// Adds each epoch to the model's history, first of all: whatever then fails cannot take it away.
struct KeepHistory;

impl Hook for KeepHistory {
    fn on_epoch_end(
        &mut self,
        model: &mut Sequential<Compiled>,
        end: &EpochEnd,
        _: &mut Console<'_>,
    ) -> Result<(), End> {
        model.compiled.history.epochs.push(end.log.clone());
        Ok(())
    }
}

struct SaveCheckpoints {
    checkpoints: Checkpoints,
    rule: Option<EarlyStopping>,
    initial_epoch: usize,
}

impl Hook for SaveCheckpoints {
    fn on_epoch_end(
        &mut self,
        model: &mut Sequential<Compiled>,
        end: &EpochEnd,
        _: &mut Console<'_>,
    ) -> Result<(), End> {
        let epochs = &model.history().epochs;
        let best = |epochs| {
            self.rule
                .and_then(|rule| rule.best_to_restore(epochs, self.initial_epoch))
        };
        // The best epoch as of this checkpoint and of the one before: `resume` may start from either.
        let kept = [best(epochs), best(&epochs[..epochs.len() - 1])];
        let kept: Vec<usize> = kept.into_iter().flatten().collect();
        Ok(self.checkpoints.save(model, end.epoch, &kept)?)
    }
}

/// The function given to [`Fit::on_epoch_end`].
impl Hook for OnEpochEnd<'_> {
    fn on_epoch_end(
        &mut self,
        model: &mut Sequential<Compiled>,
        _: &EpochEnd,
        _: &mut Console<'_>,
    ) -> Result<(), End> {
        Ok(self.0(model.history())?)
    }
}
