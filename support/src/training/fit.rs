//! The training loop and evaluation.

use std::fmt;
use std::time::Instant;

use tch::Tensor;

use super::{Compiled, EpochLog, History};
use crate::model::Sequential;
use crate::pipeline::{Batch, Batches};
use crate::{Error, Result};

/// How [`fit`](Sequential::fit) trains.
#[derive(Clone, Debug)]
pub struct Fit<'a> {
    epochs: usize,
    initial_epoch: usize,
    validation: Option<&'a Batches>,
}

impl<'a> Fit<'a> {
    /// Trains until `epochs` epochs are done, counted from the very first one.
    #[must_use]
    pub fn epochs(epochs: usize) -> Self {
        Self {
            epochs,
            initial_epoch: 0,
            validation: None,
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
}

/// Loss and accuracy over a set of examples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean loss per example.
    pub loss: f64,
    /// Share of examples classified right.
    pub accuracy: f64,
}

impl fmt::Display for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "loss: {:.4} - accuracy: {:.4}", self.loss, self.accuracy)
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
    /// The same seed gives the same history on the same machine.
    ///
    /// # Errors
    /// `Argument` when the labels do not fit the loss, there is nothing to train (no example, no
    /// epoch, no trainable variable) or nothing to validate on; `Picture` when a broken picture
    /// stops the run; `Shape` when the pictures do not fit the model.
    pub fn fit(&mut self, batches: &Batches, fit: Fit<'_>) -> Result<History> {
        self.check(batches, "fit, the training batches")?;
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
        if self.trainable_variables().is_empty() {
            return Err(Error::Argument {
                name: "fit, the model",
                expected: "at least one trainable variable".into(),
                got: "all layers frozen".into(),
            });
        }

        let mut history = History::default();
        for epoch in fit.initial_epoch..fit.epochs {
            println!("Epoch {}/{}", epoch + 1, fit.epochs);
            let start = Instant::now();
            let mut totals = Totals::default();
            for batch in batches.epoch(epoch) {
                let Batch {
                    images,
                    labels,
                    ids,
                } = batch?;
                totals.add(self.train_on_batch(&images, &labels)?, ids.len());
            }
            let train_seconds = start.elapsed().as_secs_f64();
            let validation = fit
                .validation
                .map(|batches| self.evaluate(batches))
                .transpose()?;

            let Evaluation { loss, accuracy } = totals.mean();
            let log = EpochLog {
                loss,
                accuracy,
                val_loss: validation.map(|validation| validation.loss),
                val_accuracy: validation.map(|validation| validation.accuracy),
                seconds: start.elapsed().as_secs_f64(),
            };
            println!(
                "{}",
                epoch_line(&log, batches.len(), totals.examples, train_seconds)
            );
            history.epochs.push(log);
        }
        report_skipped(batches, "training");
        if let Some(validation) = fit.validation {
            report_skipped(validation, "validation");
        }
        Ok(history)
    }

    /// Returns loss and accuracy over `batches`, without training.
    ///
    /// # Errors
    /// As [`fit`](Self::fit).
    pub fn evaluate(&self, batches: &Batches) -> Result<Evaluation> {
        self.check(batches, "evaluate, the batches")?;
        let mut totals = Totals::default();
        let _no_grad = tch::no_grad_guard();
        for batch in batches.epoch(0) {
            let Batch {
                images,
                labels,
                ids,
            } = batch?;
            totals.add(self.loss(&images, &labels)?.1, ids.len());
        }
        Ok(totals.mean())
    }

    /// Trains one step on pictures `[N, 3, H, W]` with class indices `[N]`; returns loss and
    /// accuracy before the step.
    ///
    /// # Errors
    /// `Shape` when the pictures do not fit the model, `Torch` when the labels do not fit the
    /// pictures or nothing is trainable.
    pub fn train_on_batch(&mut self, images: &Tensor, labels: &Tensor) -> Result<Evaluation> {
        let (loss, evaluation) = self.loss(images, labels)?;
        let (variables, compiled) = self.split_compiled();
        let values: Vec<&Tensor> = variables.iter().map(|variable| variable.value()).collect();
        let gradients = Tensor::f_run_backward(&[loss], &values, false, false)
            .map_err(Error::torch("backward pass"))?;
        compiled.optimizer.step(&variables, &gradients)?;
        Ok(evaluation)
    }

    /// Returns a batch's mean loss twice: as the root of the backward pass, and as a number
    /// beside the accuracy.
    fn loss(&self, images: &Tensor, labels: &Tensor) -> Result<(Tensor, Evaluation)> {
        let logits = self.forward_recorded(images)?;
        let loss = self.compiled.loss;
        let evaluate = || {
            let labels = labels.f_to_device(logits.device())?;
            let mean = loss.mean(&logits, &labels)?;
            let accuracy = loss.correct(&logits, &labels)? as f64 / logits.size()[0] as f64;
            let evaluation = Evaluation {
                loss: mean.f_double_value(&[])?,
                accuracy,
            };
            Ok((mean, evaluation))
        };
        evaluate().map_err(Error::torch("loss"))
    }

    fn check(&self, batches: &Batches, name: &'static str) -> Result<()> {
        let expected_classes = self.compiled.loss.classes();
        let (classes, examples) = (batches.classes().len(), batches.examples());
        if classes == expected_classes && examples > 0 {
            return Ok(());
        }
        Err(Error::Argument {
            name,
            expected: format!("examples of {expected_classes} classes"),
            got: format!("{examples} examples of {classes} classes"),
        })
    }
}

/// Formats an epoch as Keras does.
fn epoch_line(log: &EpochLog, steps: usize, examples: usize, train_seconds: f64) -> String {
    let mut line = format!(
        "{steps}/{steps} - {:.0}s {:.0}ms/step - {:.0} img/s - loss: {:.4} - accuracy: {:.4}",
        log.seconds,
        1e3 * train_seconds / steps as f64,
        examples as f64 / train_seconds,
        log.loss,
        log.accuracy,
    );
    if let (Some(loss), Some(accuracy)) = (log.val_loss, log.val_accuracy) {
        line += &format!(" - val_loss: {loss:.4} - val_accuracy: {accuracy:.4}");
    }
    line
}

fn report_skipped(batches: &Batches, part: &str) {
    let skipped = batches.skipped();
    println!("{} broken {part} pictures skipped", skipped.len());
    for picture in skipped {
        println!("  {}: {}", picture.name, picture.reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    }
}
