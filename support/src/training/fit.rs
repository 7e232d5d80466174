//! The training loop and evaluation.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::activations::Activations;
use super::checkpoint::{Checkpoints, Run};
use super::early_stopping::{EarlyStopping, Verdict};
use super::history::number;
use super::weights::TrainedWeights;
use super::{Compiled, EpochLog, History};
use crate::live::{Progress, Stop};
use crate::model::{HeadLayer, Sequential};
use crate::pipeline::{Batch, Batches};
use crate::{Error, Result};

/// How [`fit`](Sequential::fit) trains.
#[derive(Debug)]
pub struct Fit<'a> {
    epochs: usize,
    initial_epoch: usize,
    validation: Option<&'a Batches>,
    early_stopping: Option<EarlyStopping>,
    cache_activations: bool,
    activation_memory: usize,
    checkpoints: Option<PathBuf>,
    resume: bool,
    on_epoch_end: Option<Callback<'a>>,
}

/// What is called with the history so far.
struct Callback<'a>(Box<Call<'a>>);

type Call<'a> = dyn FnMut(&History) -> Result<()> + 'a;

impl fmt::Debug for Callback<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Callback")
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
            cache_activations: true,
            activation_memory: 4 << 30,
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

    /// Computes what the frozen layers make of each picture once (`true`, the default) or in every
    /// epoch anew. The history is the same, up to rounding. Pictures that are augmented are
    /// computed in every epoch either way.
    #[must_use]
    pub fn cache_activations(mut self, cache: bool) -> Self {
        self.cache_activations = cache;
        self
    }

    /// Keeps what the frozen layers make of the pictures in memory up to so many bytes, for the
    /// training and for the validation pictures each (4 GiB by default), and in a temporary file
    /// in the data folder beyond.
    #[must_use]
    pub fn activation_memory(mut self, bytes: usize) -> Self {
        self.activation_memory = bytes;
        self
    }

    /// Saves a checkpoint after each epoch in a folder, which holds nothing else: model, optimizer
    /// and history, written whole or not at all. The last two are kept, and the best one where its
    /// weights are to be restored; those of an earlier run go when the first is saved.
    #[must_use]
    pub fn checkpoints(mut self, folder: impl Into<PathBuf>) -> Self {
        self.checkpoints = Some(folder.into());
        self.resume = false;
        self
    }

    /// Continues from the newest checkpoint in a folder, if there is one, and saves others there.
    /// On the CPU, the weights and the history end as those of a run that was never interrupted,
    /// to the bit.
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
        self.on_epoch_end = Some(Callback(Box::new(call)));
        self
    }

    fn judge(&self, epochs: &[EpochLog]) -> Verdict {
        let early_stopping = self.early_stopping.as_ref();
        let verdict = early_stopping.map(|early| early.judge(epochs, self.initial_epoch));
        verdict.unwrap_or_default()
    }

    /// Returns the best epoch, counted from 1, where its weights are to be restored.
    fn best(&self, epochs: &[EpochLog]) -> Option<usize> {
        let restores = self
            .early_stopping
            .is_some_and(|early| early.restore_best_weights);
        self.judge(epochs).best.filter(|_| restores)
    }

    /// Returns whether it is time to stop early, and says so.
    fn ends_early(&self, epochs: &[EpochLog], progress: &mut Progress) -> bool {
        let Verdict { wait, stop, .. } = self.judge(epochs);
        if stop && let Some(early_stopping) = self.early_stopping {
            progress.line(&format!(
                "early stopping after epoch {}: {} has not improved for {wait} epochs",
                self.initial_epoch + epochs.len(),
                early_stopping.monitor.name(),
            ));
        }
        stop
    }
}

/// What an epoch runs over: what the frozen layers made of the pictures, or are still to make.
pub(super) struct Source<'a> {
    batches: &'a Batches,
    frozen: Frozen,
}

/// What to train and what to validate on.
pub(super) type Sources<'a> = (Source<'a>, Option<Source<'a>>);

/// Returns a layer's output for pictures.
type Forward = Box<dyn Fn(&Tensor) -> Result<Tensor>>;

enum Frozen {
    Done(Activations),
    ToDo(Forward),
}

impl<'a> Source<'a> {
    /// Returns the epoch's (output of the last frozen layer, labels), batch by batch.
    pub(super) fn epoch(
        &self,
        epoch: usize,
    ) -> Box<dyn Iterator<Item = Result<(Tensor, Tensor)>> + '_> {
        match &self.frozen {
            Frozen::Done(activations) => Box::new(activations.batches(&self.batches.order(epoch))),
            Frozen::ToDo(compute) => Box::new(self.batches.epoch(epoch).map(move |batch| {
                let Batch { images, labels, .. } = batch?;
                Ok((compute(&images)?, labels))
            })),
        }
    }
}

/// Loss and accuracy over a set of examples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Mean loss per example.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// Share of examples classified right.
    pub accuracy: f64,
}

impl fmt::Display for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "loss: {:.4} - accuracy: {:.4}", self.loss, self.accuracy)
    }
}

/// A batch's loss, where it was computed.
struct BatchLoss {
    /// The root of the backward pass.
    mean: Tensor,
    correct: Tensor,
    examples: i64,
}

impl BatchLoss {
    fn read(&self) -> Result<Evaluation> {
        let read = || {
            let accuracy = self.correct.f_int64_value(&[])? as f64 / self.examples as f64;
            let loss = self.mean.f_double_value(&[])?;
            Ok(Evaluation { loss, accuracy })
        };
        read().map_err(Error::torch("loss"))
    }
}

/// Sums over the examples seen so far.
#[derive(Default)]
struct Totals {
    examples: usize,
    loss: f64,
    correct: f64,
}

impl Totals {
    fn add(&mut self, batch: Evaluation, examples: usize) {
        self.examples += examples;
        self.loss += batch.loss * examples as f64;
        self.correct += batch.accuracy * examples as f64;
    }

    fn mean(&self) -> Evaluation {
        let examples = self.examples as f64;
        Evaluation {
            loss: self.loss / examples,
            accuracy: self.correct / examples,
        }
    }
}

impl Sequential<Compiled> {
    /// Trains on `batches` and returns loss and accuracy of each epoch, which it also prints as
    /// Keras does.
    ///
    /// The same seed gives the same history on the same machine. The notebook's Stop button ends it
    /// after the current step, or within the validation, with the history so far: an epoch whose
    /// validation did not end is not in it.
    ///
    /// # Errors
    /// `Argument` when the labels do not fit the loss, there is nothing to train (no example, no
    /// epoch, no trainable variable) or nothing to validate on, which early stopping needs; `Picture`
    /// when a broken picture stops the run; `Shape` when the pictures do not fit the model;
    /// `Checkpoint` when there is one to continue from and it, or the best one, is damaged or of
    /// another run; `Io` when one cannot be saved.
    pub fn fit(&mut self, batches: &Batches, fit: Fit<'_>) -> Result<History> {
        self.check_training(batches, "fit, the training batches")?;
        if let Some(validation) = fit.validation {
            self.check(validation, "fit, the validation batches")?;
        }
        if fit.initial_epoch >= fit.epochs {
            return Err(Error::Argument {
                name: "fit, the number of epochs",
                expected: format!("more than the initial epoch, {}", fit.initial_epoch),
                got: fit.epochs.to_string(),
            });
        }
        if fit.early_stopping.is_some() && fit.validation.is_none() {
            return Err(Error::Argument {
                name: "fit, the validation batches",
                expected: "some, for early stopping".into(),
                got: "none".into(),
            });
        }
        let validation = fit.validation.map(Batches::unaugmented);
        let mut fit = Fit {
            validation: validation.as_ref(),
            ..fit
        };

        let (mut progress, mut stop) = (Progress::begin(), Stop::listen());
        let checkpoints = fit
            .checkpoints
            .as_ref()
            .map(|folder| Checkpoints::new(folder, self.describe(batches, &fit)));
        let mut history = History::default();
        let mut first_epoch = fit.initial_epoch;
        let mut best = None;
        if let Some(checkpoints) = &checkpoints
            && fit.resume
            && let Some(restored) = checkpoints.restore(self, fit.epochs)?
        {
            for damaged in &restored.damaged {
                progress.line(&damaged.to_string());
            }
            let (epoch, path) = (restored.epoch, restored.path.display());
            progress.line(&format!("continuing after epoch {epoch}, from {path}"));
            (history, first_epoch) = (restored.history, epoch);
            if let Some(epoch) = fit.best(&history.epochs) {
                best = Some((epoch, checkpoints.trained_weights(self, epoch)?));
            }
        }
        if first_epoch >= fit.epochs || fit.ends_early(&history.epochs, &mut progress) {
            return self.finish(history, best, &mut progress);
        }

        let done = self.frozen_prefix();
        let sources = self.sources(done, batches, &fit, &mut progress, &mut stop)?;
        let Some((source, validation)) = sources else {
            progress.line("stopped before the first epoch");
            return self.finish(history, best, &mut progress);
        };
        for epoch in first_epoch..fit.epochs {
            progress.line(&format!("Epoch {}/{}", epoch + 1, fit.epochs));
            let start = Instant::now();
            let mut totals = Totals::default();
            let steps = batches.len();
            self.compiled.step = (epoch * steps) as u64;
            for (step, batch) in (1..).zip(source.epoch(epoch)) {
                let (input, labels) = batch?;
                totals.add(self.train_step(done, &input, &labels)?, labels.numel());
                progress.show(|| state(step, steps, &totals, start.elapsed()));
                if stop.requested() {
                    progress.line(&format!(
                        "stopped after step {step} of epoch {}; the history has the {} before",
                        epoch + 1,
                        history.epochs.len(),
                    ));
                    return self.finish(history, best, &mut progress);
                }
            }
            let train_seconds = start.elapsed().as_secs_f64();
            let validated = validation.as_ref().map(|source| {
                self.evaluate_source(done, source, |step, _| {
                    let steps = source.batches.len();
                    progress.show(|| format!("validation: {step}/{steps}"));
                    step == steps || !stop.requested()
                })
            });
            let validation = validated.transpose()?;
            if validation == Some(None) {
                progress.line(&format!(
                    "stopped in the validation of epoch {}, which is trained; the history has the {} before",
                    epoch + 1,
                    history.epochs.len(),
                ));
                return self.finish(history, best, &mut progress);
            }
            let validation = validation.flatten();

            let Evaluation { loss, accuracy } = totals.mean();
            let log = EpochLog {
                loss,
                accuracy,
                val_loss: validation.map(|validation| validation.loss),
                val_accuracy: validation.map(|validation| validation.accuracy),
                seconds: start.elapsed().as_secs_f64(),
            };
            progress.line(&epoch_line(&log, steps, totals.examples, train_seconds));
            history.epochs.push(log);
            let epochs = &history.epochs[..];
            let best_now = fit.best(epochs);
            if best_now == Some(epoch + 1) {
                best = Some((epoch + 1, TrainedWeights::of(self)?));
            }
            if let Some(checkpoints) = &checkpoints {
                // The best epoch as of this checkpoint and of the one before: `resume` may start from either.
                let best_before = fit.best(&epochs[..epochs.len() - 1]);
                let kept: Vec<usize> = best_now.into_iter().chain(best_before).collect();
                checkpoints.save(self, epoch + 1, &history, &kept)?;
            }
            if let Some(Callback(call)) = &mut fit.on_epoch_end {
                call(&history)?;
            }
            if fit.ends_early(&history.epochs, &mut progress) {
                break;
            }
        }
        report_skipped(&mut progress, batches, "training");
        if let Some(validation) = fit.validation {
            report_skipped(&mut progress, validation, "validation");
        }
        self.finish(history, best, &mut progress)
    }

    /// Restores the weights of the best epoch, if they are to be.
    fn finish(
        &mut self,
        history: History,
        best: Option<(usize, TrainedWeights)>,
        progress: &mut Progress,
    ) -> Result<History> {
        if let Some((epoch, weights)) = best {
            weights.give(self)?;
            progress.line(&format!(
                "restored the weights of epoch {epoch}, the best one"
            ));
        }
        Ok(history)
    }

    /// Returns all that, besides the weights and the optimizer's state, decides how a run goes on.
    fn describe(&self, batches: &Batches, fit: &Fit<'_>) -> Run {
        let variables = self.trainable_variables();
        let dropouts = self.top().filter_map(|layer| match layer {
            HeadLayer::Dropout(dropout) => Some(format!("{dropout:?}")),
            _ => None,
        });
        let mut run = Run::from_iter([
            ("loss".into(), format!("{:?}", self.compiled.loss).into()),
            (
                "pretrained weights".into(),
                self.base().weights().to_string().into(),
            ),
            ("dropouts".into(), dropouts.collect::<Vec<_>>().into()),
            ("initial epoch".into(), fit.initial_epoch.into()),
            ("trainable variables".into(), variables.len().into()),
        ]);
        run.extend(self.compiled.optimizer.describe());
        run.extend(batches.describe());
        run
    }

    /// Returns what to train and to validate on, the layers up to `done` being frozen; nothing once
    /// a stop is requested.
    pub(super) fn sources<'a>(
        &self,
        done: usize,
        batches: &'a Batches,
        fit: &Fit<'a>,
        progress: &mut Progress,
        stop: &mut Stop,
    ) -> Result<Option<Sources<'a>>> {
        let start = Instant::now();
        let store = fit.cache_activations && done > 0;
        let is_stored = |batches: &Batches| store && !batches.is_augmented();
        let all: usize = [Some(batches), fit.validation]
            .into_iter()
            .flatten()
            .filter(|batches| is_stored(batches))
            .map(Batches::len)
            .sum();
        let mut computed = 0;
        let mut goes_on = || {
            computed += 1;
            progress.show(|| {
                let rate = (computed * batches.size()) as f64 / start.elapsed().as_secs_f64();
                format!("frozen layers: {computed}/{all} - {rate:.0} img/s")
            });
            !stop.requested()
        };
        let mut source = |batches: &'a Batches| {
            let frozen = if is_stored(batches) {
                let memory = fit.activation_memory;
                match Activations::compute(self, done, batches, memory, &mut goes_on)? {
                    Some(activations) => Frozen::Done(activations),
                    None => return Ok(None),
                }
            } else {
                Frozen::ToDo(Box::new(self.inference(0, done)?))
            };
            Ok(Some(Source { batches, frozen }))
        };
        let Some(training) = source(batches)? else {
            return Ok(None);
        };
        let validation = match fit.validation.map(source).transpose()? {
            Some(None) => return Ok(None),
            validation => validation.flatten(),
        };
        let stored: Vec<&Activations> = std::iter::once(&training)
            .chain(&validation)
            .filter_map(|source| match &source.frozen {
                Frozen::Done(activations) => Some(activations),
                Frozen::ToDo(_) => None,
            })
            .collect();
        if store && batches.is_augmented() {
            progress.line(&format!(
                "frozen up to {}: computed anew in every epoch for the training pictures, which are augmented",
                self.layer_name(done),
            ));
        }
        if !stored.is_empty() {
            progress.line(&format!(
                "frozen up to {}: {} activations{}, {:.0} MB{}, computed once in {:.0}s",
                self.layer_name(done),
                stored.iter().map(|stored| stored.len()).sum::<usize>(),
                if batches.is_augmented() {
                    " of validation pictures"
                } else {
                    ""
                },
                stored
                    .iter()
                    .map(|stored| stored.store().bytes())
                    .sum::<usize>() as f64
                    / 1e6,
                if stored.iter().any(|stored| stored.store().is_file()) {
                    " in a file"
                } else {
                    ""
                },
                start.elapsed().as_secs_f64(),
            ));
        }
        Ok(Some((training, validation)))
    }

    /// Returns loss and accuracy over `batches`, without training.
    ///
    /// # Errors
    /// As [`fit`](Self::fit); `Stopped` by the notebook's Stop button.
    pub fn evaluate(&self, batches: &Batches) -> Result<Evaluation> {
        self.check(batches, "evaluate, the batches")?;
        let batches = &batches.unaugmented();
        let frozen = Frozen::ToDo(Box::new(self.inference(0, 0)?));
        let (mut progress, mut stop) = (Progress::begin(), Stop::listen());
        let (start, steps) = (Instant::now(), batches.len());
        let mut done = 0;
        let evaluation = self.evaluate_source(0, &Source { batches, frozen }, |step, totals| {
            done = step;
            progress.show(|| state(step, steps, totals, start.elapsed()));
            !stop.requested()
        })?;
        evaluation.ok_or_else(|| Error::Stopped {
            operation: format!("evaluate, after batch {done} of {steps}"),
        })
    }

    /// Trains one step on pictures `[N, 3, H, W]` with class indices `[N]`; returns loss and
    /// accuracy before the step.
    ///
    /// # Errors
    /// `Shape` when the pictures do not fit the model, `Torch` when the labels do not fit the
    /// pictures or nothing is trainable.
    pub fn train_on_batch(&mut self, images: &Tensor, labels: &Tensor) -> Result<Evaluation> {
        self.train_step(0, images, labels)
    }

    pub(super) fn train_step(
        &mut self,
        done: usize,
        input: &Tensor,
        labels: &Tensor,
    ) -> Result<Evaluation> {
        let logits = self.run(done, input, self.last(), self.compiled.step)?;
        let loss = self.loss(&logits, labels)?;
        let (variables, compiled) = self.split_compiled();
        let values: Vec<&Tensor> = variables.iter().map(|variable| variable.value()).collect();
        let gradients = Tensor::f_run_backward(&[&loss.mean], &values, false, false)
            .map_err(Error::torch("backward pass"))?;
        compiled.optimizer.step(&variables, &gradients)?;
        compiled.step += 1;
        // Only now: a GPU is waited for.
        loss.read()
    }

    /// Evaluates; returns nothing once `goes_on`, asked with each batch's number and the sums so
    /// far, says no.
    fn evaluate_source(
        &self,
        done: usize,
        source: &Source<'_>,
        mut goes_on: impl FnMut(usize, &Totals) -> bool,
    ) -> Result<Option<Evaluation>> {
        let rest = self.inference(done, self.last())?;
        let mut totals = Totals::default();
        for (step, batch) in (1..).zip(source.epoch(0)) {
            let (input, labels) = batch?;
            totals.add(self.loss(&rest(&input)?, &labels)?.read()?, labels.numel());
            if !goes_on(step, &totals) {
                return Ok(None);
            }
        }
        Ok(Some(totals.mean()))
    }

    /// Returns the mean loss of a batch, and how many of its examples are classified right.
    fn loss(&self, logits: &Tensor, labels: &Tensor) -> Result<BatchLoss> {
        let loss = self.compiled.loss;
        let evaluate = || {
            let labels = labels.f_to_device(logits.device())?;
            Ok(BatchLoss {
                mean: loss.mean(logits, &labels)?,
                correct: loss.correct(logits, &labels)?,
                examples: logits.size()[0],
            })
        };
        evaluate().map_err(Error::torch("loss"))
    }

    /// Checks that there is something to train on the batches.
    pub(super) fn check_training(&self, batches: &Batches, name: &'static str) -> Result<()> {
        self.check(batches, name)?;
        if self.trainable_variables().is_empty() {
            return Err(Error::Argument {
                name,
                expected: "a model with at least one trainable variable".into(),
                got: "all layers frozen".into(),
            });
        }
        Ok(())
    }

    /// Checks that the batches can be evaluated.
    pub(crate) fn check(&self, batches: &Batches, name: &'static str) -> Result<()> {
        let expected_classes = self.compiled.loss.classes(&self.output_shape())?;
        let (classes, examples) = (batches.classes().len(), batches.examples());
        if classes == expected_classes && examples > 0 {
            return batches.check_labels(name);
        }
        Err(Error::Argument {
            name,
            expected: format!("examples of {expected_classes} classes"),
            got: format!("{examples} examples of {classes} classes"),
        })
    }
}

/// Formats the time of a step as Keras does.
fn step_time(seconds: f64) -> String {
    match seconds {
        1.0.. => format!("{seconds:.0}s"),
        1e-3.. => format!("{:.0}ms", 1e3 * seconds),
        _ => format!("{:.0}us", 1e6 * seconds),
    }
}

/// Formats an epoch as Keras does.
fn epoch_line(log: &EpochLog, steps: usize, examples: usize, train_seconds: f64) -> String {
    let mut line = format!(
        "{steps}/{steps} - {:.0}s {}/step - {:.0} img/s - loss: {:.4} - accuracy: {:.4}",
        log.seconds,
        step_time(train_seconds / steps as f64),
        examples as f64 / train_seconds,
        log.loss,
        log.accuracy,
    );
    if let (Some(loss), Some(accuracy)) = (log.val_loss, log.val_accuracy) {
        line += &format!(" - val_loss: {loss:.4} - val_accuracy: {accuracy:.4}");
    }
    line
}

/// Tells how far an epoch is.
fn state(step: usize, steps: usize, totals: &Totals, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64();
    let done = 20 * step / steps;
    let Evaluation { loss, accuracy } = totals.mean();
    format!(
        "{step}/{steps} [{}{}] ETA {:.0}s - {:.0} img/s - loss: {loss:.4} - accuracy: {accuracy:.4}",
        "=".repeat(done),
        ".".repeat(20 - done),
        seconds / step as f64 * (steps - step) as f64,
        totals.examples as f64 / seconds,
    )
}

fn report_skipped(progress: &mut Progress, batches: &Batches, part: &str) {
    let skipped = batches.skipped();
    progress.line(&format!("{} broken {part} pictures skipped", skipped.len()));
    for picture in skipped {
        progress.line(&format!("  {}: {}", picture.name, picture.reason));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use image::RgbImage;
    use tch::Device;

    use super::*;
    use crate::dataset::Example;
    use crate::model::{Backbone, Dense, GlobalAveragePooling2d};
    use crate::pipeline::{Augmentation, Dataset, Pixels};
    use crate::settings::BrokenPictures;
    use crate::training::{Loss, RmsProp};

    /// Two pictures, and a model for them.
    fn pictures_and_model(folder: &Path) -> (Dataset<Pixels>, Sequential<Compiled>) {
        let path = folder.join("0.png");
        RgbImage::new(32, 32).save(&path).unwrap();
        let examples = [0, 1].map(|label| Example::at_path(format!("{label}.png"), label, &path));
        let classes = ["cats", "dogs"].map(str::to_owned).to_vec();
        let pictures = Dataset::new(examples.to_vec(), classes, 0, BrokenPictures::Stop);
        let model = Sequential::new(Backbone::untrained([3, 32, 32], Device::Cpu).unwrap())
            .push(GlobalAveragePooling2d)
            .push(Dense::new(1280, 1))
            .compile(RmsProp::new(1e-4), Loss::BinaryCrossentropy)
            .unwrap();
        (pictures.map(|image| Pixels::from(image)), model)
    }

    #[test]
    fn activations_of_augmented_pictures_are_not_stored() {
        let folder = tempfile::tempdir().unwrap();
        let (pictures, model) = pictures_and_model(folder.path());
        let flip = Augmentation::new().random_flip_horizontal();
        let augmented = pictures.augment(flip).unwrap().batch(2);
        let plain = pictures.batch(2);
        let fit = Fit::epochs(1).validation(&plain);
        let (mut progress, mut stop) = (Progress::begin(), Stop::listen());
        let sources = model.sources(155, &augmented, &fit, &mut progress, &mut stop);
        let (training, validation) = sources.unwrap().unwrap();
        assert!(matches!(training.frozen, Frozen::ToDo(_)));
        assert!(matches!(validation.unwrap().frozen, Frozen::Done(_)));
    }

    #[test]
    fn activations_beyond_the_memory_allowed_go_into_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let (pictures, model) = pictures_and_model(folder.path());
        let batches = pictures.batch(2);
        let bytes = 2 * 1280 * size_of::<f32>();
        for (memory, file) in [(bytes, false), (bytes - 1, true)] {
            let fit = Fit::epochs(1).activation_memory(memory);
            let (mut progress, mut stop) = (Progress::begin(), Stop::listen());
            let sources = model.sources(155, &batches, &fit, &mut progress, &mut stop);
            let (source, _) = sources.unwrap().unwrap();
            let Frozen::Done(activations) = source.frozen else {
                panic!("not stored")
            };
            assert_eq!(activations.store().is_file(), file);
        }
    }

    #[test]
    fn an_epoch_is_printed_as_keras_prints_it() {
        let log = EpochLog {
            loss: 0.16341,
            accuracy: 0.942,
            val_loss: Some(0.152),
            val_accuracy: Some(0.953),
            seconds: 9.45,
        };
        assert_eq!(
            epoch_line(&log, 63, 2000, 9.4),
            "63/63 - 9s 149ms/step - 213 img/s - loss: 0.1634 - accuracy: 0.9420 \
             - val_loss: 0.1520 - val_accuracy: 0.9530"
        );
        let times = [2.4, 0.15, 0.000_312].map(step_time);
        assert_eq!(times, ["2s", "150ms", "312us"]);
    }
}
