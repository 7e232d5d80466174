//! Loss and accuracy over a set of examples.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Compiled;
use super::frozen::PrefixOutputs;
use super::history::number;
use super::report::epoch_progress;
use crate::live::Task;
use crate::model::Sequential;
use crate::pipeline::Batches;
use crate::{Error, Result};

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

/// Sums over the examples seen so far.
#[derive(Default)]
pub(super) struct Totals {
    pub(super) examples: usize,
    loss: f64,
    correct: f64,
}

impl Totals {
    pub(super) fn add(&mut self, batch: Evaluation, examples: usize) {
        self.examples += examples;
        self.loss += batch.loss * examples as f64;
        self.correct += batch.accuracy * examples as f64;
    }

    pub(super) fn mean(&self) -> Evaluation {
        let examples = self.examples as f64;
        Evaluation {
            loss: self.loss / examples,
            accuracy: self.correct / examples,
        }
    }
}

impl Sequential<Compiled> {
    /// Returns loss and accuracy over `batches`, without training.
    ///
    /// # Errors
    /// `Argument` when the labels do not fit the loss or there is no example; `Image` when a broken
    /// image stops the run; `Shape` when the images do not fit the model; `Stopped` by the notebook's
    /// Stop button.
    pub fn evaluate(&self, batches: &Batches) -> Result<Evaluation> {
        self.check(batches, "evaluate, the batches")?;
        let batches = &batches.unaugmented();
        let mut task = Task::begin("evaluate", "batch", batches.len());
        let images = PrefixOutputs::computed(self, 0, batches)?;
        let start = std::time::Instant::now();
        self.evaluate_outputs(0, &images, |step, _, totals| {
            task.progress
                .show(|| epoch_progress(step, batches.len(), totals, start.elapsed()));
            match task.stop.requested() {
                true => Err(task.stopped(step)),
                false => Ok(()),
            }
        })
    }

    /// Evaluates layer `cut`'s outputs; `on_step_end` is told each batch's number, its loss and the
    /// sums so far, and ends the evaluation by its error.
    pub(super) fn evaluate_outputs<E: From<Error>>(
        &self,
        cut: usize,
        outputs: &PrefixOutputs<'_>,
        mut on_step_end: impl FnMut(usize, f64, &Totals) -> Result<(), E>,
    ) -> Result<Evaluation, E> {
        let logits = self.inference(cut, self.last())?;
        let mut totals = Totals::default();
        for (step, batch) in (1..).zip(outputs.epoch(0)) {
            let (input, labels) = batch?;
            let batch = self.batch_loss(&logits(&input)?, &labels)?.read()?;
            totals.add(batch, labels.numel());
            on_step_end(step, batch.loss, &totals)?;
        }
        Ok(totals.mean())
    }
}
