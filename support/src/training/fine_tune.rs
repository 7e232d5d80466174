//! fastai's recipe of two phases in one call.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::optimizer::Options;
use super::options::OnEpochEnd;
use super::{Compiled, Fit, History, OneCycle};
use crate::model::{Sequential, SetTrainable as _};
use crate::pipeline::Batches;
use crate::{Error, Result};

/// How much slower than the head the first half of the base learns: fastai's `1 / lr_mult`.
const DISCRIMINATIVE: f64 = 0.01;

/// How [`fine_tune`](Sequential::fine_tune) trains.
#[derive(Debug)]
pub struct FineTune<'a> {
    epochs: usize,
    freeze_epochs: usize,
    from_layer: usize,
    validation: Option<&'a Batches>,
    /// Where, and whether to continue from there.
    checkpoints: Option<(PathBuf, bool)>,
    on_epoch_end: Option<OnEpochEnd<'a>>,
}

impl<'a> FineTune<'a> {
    /// Trains the head for one epoch, then the whole model for `epochs`.
    #[must_use]
    pub fn epochs(epochs: usize) -> Self {
        Self {
            epochs,
            freeze_epochs: 1,
            from_layer: 0,
            validation: None,
            checkpoints: None,
            on_epoch_end: None,
        }
    }

    /// Trains the head for so many epochs first, one or more.
    #[must_use]
    pub fn freeze_epochs(mut self, epochs: usize) -> Self {
        self.freeze_epochs = epochs;
        self
    }

    /// Leaves the base's layers before this one frozen in the second phase too, where they are then
    /// evaluated once per image and not in every epoch, unless images are augmented.
    #[must_use]
    pub fn from_layer(mut self, layer: usize) -> Self {
        self.from_layer = layer;
        self
    }

    /// Evaluates on these batches after each epoch.
    #[must_use]
    pub fn validation(mut self, batches: &'a Batches) -> Self {
        self.validation = Some(batches);
        self
    }

    /// Saves checkpoints as [`Fit::checkpoints`] does: each phase in a folder of its own in this one,
    /// `frozen` and `unfrozen`.
    #[must_use]
    pub fn checkpoints(mut self, folder: impl Into<PathBuf>) -> Self {
        self.checkpoints = Some((folder.into(), false));
        self
    }

    /// Continues from the checkpoints in a folder, as [`Fit::resume`] does.
    #[must_use]
    pub fn resume(mut self, folder: impl Into<PathBuf>) -> Self {
        self.checkpoints = Some((folder.into(), true));
        self
    }

    /// Calls a function with the history so far, of both phases, after each epoch; its error ends the training.
    #[must_use]
    pub fn on_epoch_end(mut self, call: impl FnMut(&History) -> Result<()> + 'a) -> Self {
        self.on_epoch_end = Some(OnEpochEnd(Box::new(call)));
        self
    }

    /// Adds what both phases have to one's.
    fn phase<'f>(&self, fit: Fit<'f>, name: &str) -> Fit<'f>
    where
        'a: 'f,
    {
        let checkpoints = self.checkpoints.as_ref();
        Fit {
            validation: self.validation,
            checkpoints: checkpoints.map(|(folder, _)| folder.join(name)),
            resume: checkpoints.is_some_and(|(_, resume)| *resume),
            ..fit
        }
    }

    fn check(&self, layers: usize) -> Result<()> {
        let (name, expected, got) = if self.epochs == 0 || self.freeze_epochs == 0 {
            let got = format!("{} and {}", self.freeze_epochs, self.epochs);
            (
                "fine_tune, the epochs",
                "one or more in each phase".into(),
                got,
            )
        } else if self.from_layer >= layers {
            let expected = format!("one of the base's {layers}, counted from 0");
            (
                "fine_tune, the first layer",
                expected,
                self.from_layer.to_string(),
            )
        } else {
            return Ok(());
        };
        Err(Error::Argument {
            name,
            expected,
            got,
        })
    }
}

impl Sequential<Compiled> {
    /// Trains the head on the frozen base, then the base as well, and returns the epochs of both, as fastai's
    /// [`Learner.fine_tune`](https://docs.fast.ai/callback.schedule.html#learner.fine_tune) (release 2.8) does:
    ///
    /// | | trains | learning rate, at its highest | schedule |
    /// |---|---|---|---|
    /// | first | the head | that of the optimizer | [one cycle](OneCycle), almost all of it upwards (`pct_start` .99) |
    /// | then | all, or [from a layer on](FineTune::from_layer) | half of it for the head, a hundredth and a tenth of that for the halves of the base ([discriminative](super::OptimizerOptions::discriminative)) | one cycle, `pct_start` .3, from a fifth of the rate |
    ///
    /// So the model is compiled with fastai's `base_lr`, whose default is 2e-3, and what fastai's learner has by
    /// default is [`AdamW`](super::AdamW) with `betas(0.9, 0.99)` and `epsilon(1e-5)`. A factor that the optimizer
    /// has for discriminative rates is taken in place of the hundredth. Other than there, the base's batch
    /// normalizations are frozen in the first phase, as the rest of the base, which therefore runs once per
    /// image; the optimizer's state begins anew in the second.
    ///
    /// ```no_run
    /// # use support::prelude::*;
    /// # fn tune(model: Sequential, train: &Batches, validation: &Batches) -> support::Result<()> {
    /// let mut model = model.compile(AdamW::new(2e-3), Loss::BinaryCrossentropy)?;
    /// let history = model.fine_tune(train, FineTune::epochs(5).validation(validation))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// The base is unfrozen afterwards, and the optimizer has its own rate again.
    ///
    /// # Errors
    /// As [`fit`](Self::fit); `Argument` when a phase has no epoch, or there is no such layer.
    /// [`history`](Self::history) then has the epochs before, of both phases.
    pub fn fine_tune(&mut self, batches: &Batches, mut tune: FineTune<'_>) -> Result<History> {
        tune.check(self.base().layers().len())?;
        let (epochs, freeze_epochs) = (tune.epochs, tune.freeze_epochs);
        let mut on_epoch_end = tune.on_epoch_end.take();

        self.base_mut().set_trainable(false);
        self.compiled.optimizer.set_state(BTreeMap::new(), 0);
        let schedule = OneCycle::new().pct_start(0.99);
        let mut fit = tune.phase(Fit::epochs(freeze_epochs).schedule(schedule), "frozen");
        if let Some(OnEpochEnd(call)) = &mut on_epoch_end {
            fit = fit.on_epoch_end(call);
        }
        let frozen = self.fit(batches, fit)?;
        if frozen.epochs.len() < freeze_epochs {
            // By the Stop button.
            return Ok(frozen);
        }

        self.base_mut().layers_mut()[tune.from_layer..].set_trainable(true);
        self.compiled.history = History::default();
        let optimizer = &mut self.compiled.optimizer;
        optimizer.set_state(BTreeMap::new(), 0);
        let own = optimizer.options();
        optimizer.set_options(Options {
            learning_rate: own.learning_rate / 2.,
            discriminative: own.discriminative.or(Some(DISCRIMINATIVE)),
            ..own
        });
        let fit = Fit::epochs(freeze_epochs + epochs).initial_epoch(freeze_epochs);
        let schedule = OneCycle::new().pct_start(0.3).div_start(5.);
        let mut fit = tune.phase(fit.schedule(schedule), "unfrozen");
        if let Some(OnEpochEnd(call)) = &mut on_epoch_end {
            fit = fit.on_epoch_end(|unfrozen| call(&frozen.then(unfrozen)));
        }
        let ended = self.fit(batches, fit);
        self.compiled.optimizer.set_options(own);
        self.compiled.history = frozen.then(self.history());
        match ended {
            Ok(_) => Ok(self.history().clone()),
            Err(Error::Training { epoch, source, .. }) => Err(Error::Training {
                epoch,
                epochs: self.history().epochs.len(),
                source,
            }),
            Err(error) => Err(error),
        }
    }
}
