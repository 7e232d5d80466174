//! What users add to a training.

use std::fmt;

use tch::Tensor;

use super::{Console, End, EpochEnd, Hook, Phase, StepEnd};
use crate::distributed::ProcessGroup;
use crate::model::Sequential;
use crate::training::{Compiled, EpochLog, Evaluation};
use crate::{Error, Result};

/// Something to do around the steps and epochs of a training, given to
/// [`Fit::callback`](crate::training::Fit::callback).
///
/// An [`End`] that it returns ends the training without losing it: after the step or, within a
/// validation, after the epoch. [`Early`](End::Early) says why; an [`Error`] is what `fit` returns.
///
/// Where several processes train together, callbacks are called on rank 0 alone, and what ends it there ends
/// it for all, after the same step: they tell each other after every one. Each process gives the same
/// number of them to its `fit`. So that the processes cannot diverge, a callback sees the model and does not
/// change it.
///
/// ```
/// use support::training::callbacks::{Callback, End, Epoch};
///
/// /// Ends the training once it is good enough.
/// struct GoodEnough(f64);
///
/// impl Callback for GoodEnough {
///     fn on_epoch_end(&mut self, epoch: &Epoch<'_>) -> Result<(), End> {
///         match epoch.log.val_accuracy {
///             Some(accuracy) if accuracy >= self.0 => Err(End::Early("good enough".into())),
///             _ => Ok(()),
///         }
///     }
/// }
/// ```
pub trait Callback {
    /// Is called before the first epoch, of a run that goes on as well; `model` has the epochs before in
    /// its [`history`](Sequential::history).
    ///
    /// # Errors
    /// What is to end the training.
    fn on_train_begin(&mut self, _model: &Sequential<Compiled>) -> Result<(), End> {
        Ok(())
    }

    /// Is called before each epoch, counted from 1.
    ///
    /// # Errors
    /// What is to end the training.
    fn on_epoch_begin(&mut self, _epoch: usize, _model: &Sequential<Compiled>) -> Result<(), End> {
        Ok(())
    }

    /// Is called after each step of the training and of the validation.
    ///
    /// # Errors
    /// What is to end the training.
    fn on_step_end(&mut self, _step: &Step<'_>) -> Result<(), End> {
        Ok(())
    }

    /// Is called after each epoch and its validation, once it is in the history and its checkpoint saved.
    ///
    /// # Errors
    /// What is to end the training.
    fn on_epoch_end(&mut self, _epoch: &Epoch<'_>) -> Result<(), End> {
        Ok(())
    }

    /// Is called in the end, which came early if `ended` says how.
    ///
    /// # Errors
    /// What `fit` is to return.
    fn on_train_end(
        &mut self,
        _model: &Sequential<Compiled>,
        _ended: Result<(), &End>,
    ) -> Result<()> {
        Ok(())
    }
}

/// A step that is done.
#[derive(Debug)]
#[non_exhaustive]
pub struct Step<'a> {
    /// The epoch, counted from 1.
    pub epoch: usize,
    /// Whether it was one of training or of validation.
    pub phase: Phase,
    /// The step of the phase, counted from 1.
    pub step: usize,
    /// How many steps the phase has, if every image can be read.
    pub steps: usize,
    /// The batch's mean loss: in training that before the step, over all processes; in validation over this
    /// process' share.
    pub loss: f64,
    /// Mean loss and accuracy over the phase so far, of the same examples.
    pub mean: Evaluation,
    /// The model after the step.
    pub model: &'a Sequential<Compiled>,
}

/// An epoch that is done.
#[derive(Debug)]
#[non_exhaustive]
pub struct Epoch<'a> {
    /// The epoch, counted from 1.
    pub epoch: usize,
    /// What was measured, which is the last of the model's [`history`](Sequential::history).
    pub log: &'a EpochLog,
    /// The model after it.
    pub model: &'a Sequential<Compiled>,
}

/// The callbacks of a `fit`.
#[derive(Default)]
pub(in crate::training) struct CallbackList<'a>(Vec<Box<dyn Callback + 'a>>);

impl<'a> CallbackList<'a> {
    pub(in crate::training) fn push(&mut self, callback: impl Callback + 'a) {
        self.0.push(Box::new(callback));
    }

    pub(in crate::training) fn len(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Debug for CallbackList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} callbacks", self.0.len())
    }
}

/// Calls users' callbacks, on rank 0.
pub(in crate::training) struct UserCallbacks<'a> {
    /// Of rank 0.
    callbacks: Vec<Box<dyn Callback + 'a>>,
    group: ProcessGroup,
    /// What is to end the training after the epoch: ranks need not have the same number of steps of
    /// validation, and meet only then.
    end: Option<End>,
}

impl<'a> UserCallbacks<'a> {
    /// Returns what calls them, if there are some.
    pub(super) fn of(callbacks: CallbackList<'a>, group: &ProcessGroup) -> Option<Self> {
        let CallbackList(mut callbacks) = callbacks;
        if callbacks.is_empty() {
            return None;
        }
        if !group.is_main() {
            callbacks.clear();
        }
        Some(Self {
            callbacks,
            group: group.clone(),
            end: None,
        })
    }

    fn call(
        &mut self,
        mut call: impl FnMut(&mut (dyn Callback + 'a)) -> Result<(), End>,
    ) -> Result<(), End> {
        let mut callbacks = self.callbacks.iter_mut();
        callbacks.try_for_each(|callback| call(callback.as_mut()))
    }

    /// Calls rank 0's, and ends all ranks where they end.
    fn call_for_all(
        &mut self,
        call: impl FnMut(&mut (dyn Callback + 'a)) -> Result<(), End>,
    ) -> Result<(), End> {
        let ended = self.call(call);
        if self.group.size() == 1 || matches!(ended, Err(End::Error(_))) {
            // The others are told of an error by whoever waits for them.
            return ended;
        }
        let ends = Tensor::from_slice(&[i64::from(ended.is_err())]);
        let ends = self.group.broadcast(&ends)?;
        let ends = ends
            .f_int64_value(&[0])
            .map_err(Error::torch("callbacks"))?;
        if ends == 0 {
            return Ok(());
        }
        let reason = match ended {
            Err(End::Early(reason) | End::Stopped(reason)) => reason,
            _ => String::new(),
        };
        let reasons = self.group.gather_texts(&reason)?;
        Err(End::Early(reasons.into_iter().next().unwrap_or_default()))
    }
}

impl Hook for UserCallbacks<'_> {
    fn on_train_begin(&mut self, model: &Sequential<Compiled>) -> Result<(), End> {
        self.call_for_all(|callback| callback.on_train_begin(model))
    }

    fn on_epoch_begin(
        &mut self,
        model: &mut Sequential<Compiled>,
        epoch: usize,
        _: &mut Console<'_>,
    ) -> Result<(), End> {
        self.call_for_all(|callback| callback.on_epoch_begin(epoch, model))
    }

    fn on_step_end(
        &mut self,
        model: &Sequential<Compiled>,
        end: &StepEnd<'_>,
        _: &mut Console<'_>,
    ) -> Result<(), End> {
        let step = Step {
            epoch: end.pass.epoch,
            phase: end.pass.phase,
            step: end.step,
            steps: end.pass.steps,
            loss: end.loss,
            mean: end.totals.mean(),
            model,
        };
        if step.phase == Phase::Training {
            return self.call_for_all(|callback| callback.on_step_end(&step));
        }
        if self.end.is_none() {
            match self.call(|callback| callback.on_step_end(&step)) {
                Err(End::Error(error)) => return Err(End::Error(error)),
                ended => self.end = ended.err(),
            }
        }
        Ok(())
    }

    fn on_epoch_end(
        &mut self,
        model: &mut Sequential<Compiled>,
        end: &EpochEnd,
        _: &mut Console<'_>,
    ) -> Result<(), End> {
        let epoch = Epoch {
            epoch: end.epoch,
            log: &end.log,
            model,
        };
        let mut in_validation = self.end.take();
        self.call_for_all(|callback| {
            callback.on_epoch_end(&epoch)?;
            in_validation.take().map_or(Ok(()), Err)
        })
    }

    fn on_train_end(
        &mut self,
        model: &mut Sequential<Compiled>,
        ended: Result<(), &End>,
        _: &mut Console<'_>,
    ) -> Result<()> {
        let mut callbacks = self.callbacks.iter_mut();
        callbacks.try_for_each(|callback| callback.on_train_end(model, ended))
    }
}
