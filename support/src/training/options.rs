//! The options of `fit`.

use std::fmt;
use std::path::PathBuf;

use super::{EarlyStopping, History, Schedule};
use crate::pipeline::Batches;
use crate::{Error, Result};

/// How [`fit`](crate::model::Sequential::fit) trains.
#[derive(Debug)]
pub struct Fit<'a> {
    pub(super) epochs: usize,
    pub(super) initial_epoch: usize,
    pub(super) validation: Option<&'a Batches>,
    pub(super) early_stopping: Option<EarlyStopping>,
    pub(super) schedule: Schedule,
    pub(super) cache_activations: bool,
    pub(super) activation_memory: Option<usize>,
    pub(super) checkpoints: Option<PathBuf>,
    pub(super) resume: bool,
    pub(super) on_epoch_end: Option<OnEpochEnd<'a>>,
}

/// What is called with the history so far.
pub(super) struct OnEpochEnd<'a>(pub(super) Box<Call<'a>>);

type Call<'a> = dyn FnMut(&History) -> Result<()> + 'a;

impl fmt::Debug for OnEpochEnd<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnEpochEnd")
    }
}

impl<'a> Fit<'a> {
    /// Trains until `epochs` epochs are done, counted from the very first one.
    #[must_use]
    pub fn epochs(epochs: usize) -> Self {
        Self {
            epochs,
            initial_epoch: 0,
            validation: None,
            early_stopping: None,
            schedule: Schedule::Constant,
            cache_activations: true,
            activation_memory: None,
            checkpoints: None,
            resume: false,
            on_epoch_end: None,
        }
    }

    /// Continues after `initial_epoch` epochs that an earlier run has done.
    #[must_use]
    pub fn initial_epoch(mut self, initial_epoch: usize) -> Self {
        self.initial_epoch = initial_epoch;
        self
    }

    /// Evaluates on these batches after each epoch.
    #[must_use]
    pub fn validation(mut self, batches: &'a Batches) -> Self {
        self.validation = Some(batches);
        self
    }

    /// Ends the training early when the validation does not improve any more.
    #[must_use]
    pub fn early_stopping(mut self, early_stopping: EarlyStopping) -> Self {
        self.early_stopping = Some(early_stopping);
        self
    }

    /// Changes the learning rate from step to step: a [`CosineDecay`](super::CosineDecay), a
    /// [`OneCycle`](super::OneCycle), or a [`ReduceOnPlateau`](super::ReduceOnPlateau). Each counts the steps from
    /// the initial epoch to the last one, and begins with the learning rate that the model was compiled with.
    #[must_use]
    pub fn schedule(mut self, schedule: impl Into<Schedule>) -> Self {
        self.schedule = schedule.into();
        self
    }

    /// Computes the frozen layers' outputs for each image once (`true`, the default) or in every epoch
    /// anew. The history is the same, up to rounding.
    ///
    /// They are computed in every epoch either way for images that are augmented, and where storing
    /// does not pay: where it saves fewer than 100 multiply-adds a byte. A byte takes 2 ns to read from
    /// a disk of 500 MB/s, in which two cores do 100 multiply-adds, at 50 billion a second.
    /// [`MobileNetV2`](crate::model::MobileNetV2)'s outputs pay from the end of `block_1` on (18 layers
    /// frozen, 166 multiply-adds a byte); the block before it makes more of an image than it is.
    #[must_use]
    pub fn cache_activations(mut self, cache: bool) -> Self {
        self.cache_activations = cache;
        self
    }

    /// Keeps the frozen layers' outputs in memory up to so many bytes, for training and validation in
    /// all, and those of the one, or of both, that do not fit in a temporary file in the data folder.
    ///
    /// A file is read front to back, if these bytes also hold the outputs of a
    /// [shuffle](crate::pipeline::Dataset::shuffle) buffer, which are kept from when they are read to when
    /// they are wanted; else some are read out of order. The history is the same.
    ///
    /// Without it, half of the memory that is available when `fit` begins: what the system could give
    /// to a process without swapping (`MemAvailable`), or what the limits of the process' control
    /// groups (cgroup v2) leave, if that is less; 2 GiB where the system tells neither.
    #[must_use]
    pub fn activation_memory(mut self, bytes: usize) -> Self {
        self.activation_memory = Some(bytes);
        self
    }

    /// Saves a checkpoint after each epoch in a folder, which holds no other files: model, optimizer
    /// and history, written whole or not at all. The last two are kept, and the best one where its
    /// weights are to be restored; those of an earlier run go when the first is saved. One run at a
    /// time can use a folder.
    #[must_use]
    pub fn checkpoints(mut self, folder: impl Into<PathBuf>) -> Self {
        self.checkpoints = Some(folder.into());
        self.resume = false;
        self
    }

    /// Continues from the newest checkpoint in a folder, if there is one, and saves others there.
    /// On the CPU, the weights and the history end as those of a run that was never interrupted,
    /// to the bit. All that decides them has to be the same: model, optimizer, data and what is made
    /// of them, early stopping, schedule; the number of epochs may be another, unless the learning rate
    /// depends on it.
    #[must_use]
    pub fn resume(mut self, folder: impl Into<PathBuf>) -> Self {
        self.checkpoints = Some(folder.into());
        self.resume = true;
        self
    }

    /// Calls a function with the history so far after each epoch; its error ends the training.
    ///
    /// ```no_run
    /// # use support::{prelude::*, notebook::DisplayHandle};
    /// let mut figure = DisplayHandle::new();
    /// let fit = Fit::epochs(10).on_epoch_end(|history| figure.update(&history.learning_curves()?));
    /// ```
    #[must_use]
    pub fn on_epoch_end(mut self, call: impl FnMut(&History) -> Result<()> + 'a) -> Self {
        self.on_epoch_end = Some(OnEpochEnd(Box::new(call)));
        self
    }

    /// Checks what does not depend on the model.
    pub(super) fn check(&self) -> Result<()> {
        if self.initial_epoch >= self.epochs {
            return Err(Error::Argument {
                name: "fit, the number of epochs",
                expected: format!("more than the initial epoch, {}", self.initial_epoch),
                got: self.epochs.to_string(),
            });
        }
        let needs_validation = match (self.early_stopping, &self.schedule) {
            (Some(_), _) => Some("early stopping"),
            (_, Schedule::ReduceOnPlateau(_)) => Some("ReduceOnPlateau"),
            _ => None,
        };
        if let (Some(what), None) = (needs_validation, self.validation) {
            return Err(Error::Argument {
                name: "fit, the validation batches",
                expected: format!("some, for {what}"),
                got: "none".into(),
            });
        }
        self.schedule.check()?;
        self.early_stopping.map_or(Ok(()), |rule| rule.check())
    }
}
