//! The training loop.

use std::time::Instant;

use super::callbacks::{BestEpoch, Console, End, EpochEnd, Hook, Hooks, Pass, Phase};
use super::checkpoint::Checkpoints;
use super::evaluation::Totals;
use super::frozen::FrozenPrefix;
use super::optimizer::Rates;
use super::ranks::agree;
use super::record::RunRecord;
use super::schedule::Moment;
use super::step::Stepper;
use super::{Compiled, EpochLog, Fit, History};
use crate::distributed::ProcessGroup;
use crate::live::{Progress, Stop};
use crate::model::Sequential;
use crate::pipeline::Batches;
use crate::{Error, Result};

impl Sequential<Compiled> {
    /// Trains on `batches` and returns loss, accuracy and the other [metrics](Self::metrics) of each epoch,
    /// which it also prints as Keras does.
    ///
    /// The same seed gives the same history on the same machine. The notebook's Stop button ends it
    /// after the current step, or within the validation, with the history so far: an epoch whose
    /// validation did not end is not in it.
    ///
    /// # Errors
    /// Before training: `Argument` when the labels do not fit the loss, there is nothing to train (no
    /// example, no epoch, no trainable variable), or not measured what early stopping or
    /// [`ReduceOnPlateau`](super::ReduceOnPlateau) looks at, or the schedule makes no sense;
    /// `Image` when a broken image stops the run; `Shape` when the images do not fit the model;
    /// `Checkpoint` when another run uses the folder, or when there is one to continue from and it, or
    /// the best one, is damaged or of another run; `Io` when the folder cannot be written to. All but
    /// `Image` and `Shape` leave the history of the last `fit` as it was.
    ///
    /// In an epoch: `Training`, which says why. [`history`](Self::history) then has the epochs before.
    /// When a loss or a weight is not finite any more, the model is as it was after the last of them.
    ///
    /// # Several processes
    /// Where there is a [`ProcessGroup`](crate::distributed::ProcessGroup), all of its ranks call this, each
    /// with the whole of the same batches, and train one model: that of rank 0, with whose weights they
    /// begin. Each decodes its [share](Batches::sharded) of the images only, and stores only their
    /// activations. The history and the weights are then the same on all ranks, and those of one
    /// process that trains on the same batches, up to rounding. Rank 0 alone prints, saves checkpoints and
    /// calls [`on_epoch_end`](Fit::on_epoch_end) and [callbacks](super::callbacks::Callback).
    /// `Distributed` is the error when another rank fails, hangs, or was asked for something else.
    pub fn fit(&mut self, batches: &Batches, fit: Fit<'_>) -> Result<History> {
        let group = batches.group();
        group.together(|| self.fit_share(batches, fit, group))
    }

    fn fit_share(
        &mut self,
        batches: &Batches,
        fit: Fit<'_>,
        group: &ProcessGroup,
    ) -> Result<History> {
        const TRAINING: &str = "fit, the training batches";
        const VALIDATION: &str = "fit, the validation batches";
        self.check_training(batches, TRAINING)?;
        if let Some(validation) = fit.validation {
            self.check(validation, VALIDATION)?;
            if validation.group().size() != group.size() {
                return Err(Error::Argument {
                    name: VALIDATION,
                    expected: format!("batches of the training's process group, {group:?}"),
                    got: format!("{:?}", validation.group()),
                });
            }
        }
        fit.check(&self.compiled.metrics)?;
        let batches = &batches.share(TRAINING)?;
        let validation = fit
            .validation
            .map(|all| all.unaugmented().share(VALIDATION));
        let validation = validation.transpose()?;
        let mut fit = Fit {
            validation: validation.as_ref(),
            ..fit
        };
        let console = &mut Console {
            progress: &mut Progress::of(group),
            stop: &mut Stop::of(group),
        };
        let first = || Ok(batches.first()?.0);
        if let Some(which) = self.base_mut().settle_precision(first, group)? {
            console.progress.line(&format!("precision: {which}"));
        }
        let mut checkpoints = None;
        if fit.checkpoints.is_some() || group.size() > 1 {
            let run = RunRecord::of(self, batches, &fit)?;
            agree(group, &run, &fit, &self.compiled.metrics)?;
            let folder = fit.checkpoints.as_ref().filter(|_| group.is_main());
            checkpoints = folder.map(|folder| Checkpoints::open(folder, run));
        }
        let checkpoints = checkpoints.transpose()?;
        let best = self.begin(checkpoints.as_ref(), &fit, console)?;
        let best = self.take_over(group, best)?;
        let mut hooks = Hooks::of(&mut fit, batches, checkpoints, best);
        let ended = self.train(batches, &fit, &mut hooks, console);
        if !matches!(ended, Err(End::Error(_))) {
            batches.share_skipped()?;
            validation.as_ref().map_or(Ok(()), Batches::share_skipped)?;
        }
        hooks.on_train_end(self, ended.as_ref().copied(), console)?;
        match ended {
            Err(End::Error(error)) => Err(error),
            _ => Ok(self.history().clone()),
        }
    }

    /// Trains the epochs that the history does not have yet.
    fn train(
        &mut self,
        batches: &Batches,
        fit: &Fit<'_>,
        hooks: &mut Hooks<'_>,
        console: &mut Console<'_>,
    ) -> Result<(), End> {
        let first = fit.initial_epoch + self.history().epochs.len();
        if first >= fit.epochs {
            return Ok(());
        }
        hooks.on_train_begin(self)?;
        let prefix = FrozenPrefix::new(self, batches, fit, console)?;
        let mut stepper = self.stepper(prefix.cut, batches.group())?;
        for epoch in first..fit.epochs {
            self.train_epoch(epoch, fit, &prefix, &mut stepper, hooks, console)
                .map_err(|end| end.in_epoch(epoch + 1, self.history()))?;
        }
        Ok(())
    }

    /// Trains an epoch, counted from 0, and validates.
    fn train_epoch(
        &mut self,
        epoch: usize,
        fit: &Fit<'_>,
        prefix: &FrozenPrefix<'_>,
        stepper: &mut Stepper,
        hooks: &mut Hooks<'_>,
        console: &mut Console<'_>,
    ) -> Result<(), End> {
        let FrozenPrefix { cut, training, .. } = prefix;
        let pass = Pass::new(epoch + 1, Phase::Training, training);
        hooks.on_epoch_begin(self, pass.epoch, console)?;
        let (start, mut totals) = (Instant::now(), Totals::default());
        self.compiled.step = (epoch as u64).wrapping_mul(pass.steps as u64);
        let (mut batches, mut learning_rate) = (training.epoch(epoch).fuse(), None);
        let mut inputs = self.inputs(*cut, batches.next());
        for step in 1.. {
            let rates = self.rates(fit, pass, step);
            let trained = self.train_step(stepper, inputs?, rates)?;
            // While a GPU trains.
            inputs = self.inputs(*cut, batches.next());
            let before = trained.read()?;
            if before.examples == 0 {
                break;
            }
            learning_rate = Some(rates.learning_rate);
            let loss = before.mean().loss;
            totals.add(before);
            hooks.on_step_end(self, &pass.end(step, loss, &totals), console)?;
        }
        if totals.examples == 0 {
            return Err(training.batches.nothing_readable().into());
        }
        let measured = self.measured(&totals, training.batches.group())?;
        hooks.on_trained(self)?;
        let model = &*self;
        let validation = prefix.validation.as_ref().map(|validation| {
            let pass = Pass::new(epoch + 1, Phase::Validation, validation);
            model.evaluate_outputs(*cut, validation, |step, loss, totals| {
                hooks.on_step_end(model, &pass.end(step, loss, totals), console)
            })
        });
        let validation = validation.transpose()?;
        let log = EpochLog::new(measured, validation, learning_rate, start.elapsed());
        let epoch = epoch + 1;
        hooks.on_epoch_end(self, &EpochEnd { epoch, log }, console)
    }

    /// Returns the rates of a step of an epoch, both counted from 1.
    fn rates(&self, fit: &Fit<'_>, pass: Pass, step: usize) -> Rates {
        let first = pass.epoch - 1 - fit.initial_epoch;
        let moment = Moment {
            step: first * pass.steps + step - 1,
            steps: (fit.epochs - fit.initial_epoch) * pass.steps,
            epochs: &self.history().epochs,
        };
        let compiled = self.compiled.optimizer.rates();
        fit.schedule.rates(compiled, &moment)
    }

    /// Begins a history or, where a run is to be continued, takes the model to its newest checkpoint;
    /// returns the best epoch so far, where its weights are to be restored in the end.
    fn begin(
        &mut self,
        checkpoints: Option<&Checkpoints>,
        fit: &Fit<'_>,
        console: &mut Console<'_>,
    ) -> Result<Option<BestEpoch>> {
        let newest = match checkpoints {
            Some(checkpoints) if fit.resume => {
                let newest = checkpoints.newest(fit.epochs)?;
                newest.map(|newest| (checkpoints, newest))
            }
            _ => None,
        };
        let Some((checkpoints, newest)) = newest else {
            self.compiled.history = History::default();
            self.compiled.trained = None;
            return Ok(None);
        };
        let epochs = &newest.history.epochs;
        let rule = fit.early_stopping;
        let best = rule.and_then(|rule| rule.best_to_restore(epochs, fit.initial_epoch));
        let weights = |epoch| Ok((epoch, checkpoints.trained_weights(self, epoch)?));
        let best = best.map(weights).transpose()?;
        for damaged in &newest.damaged {
            console.progress.line(&damaged.to_string());
        }
        let (epoch, path) = (newest.epoch, newest.path.display());
        let line = format!("continuing after epoch {epoch}, from {path}");
        newest.load(self)?;
        console.progress.line(&line);
        Ok(best)
    }
}
