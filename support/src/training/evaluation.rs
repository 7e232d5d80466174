//! Loss, accuracy and other metrics over a set of examples.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::frozen::PrefixOutputs;
use super::history::number;
use super::metrics::Outputs;
use super::report::epoch_progress;
use super::{Compiled, Predictor, TestTimeAugmentation};
use crate::distributed::ProcessGroup;
use crate::live::Task;
use crate::model::Sequential;
use crate::pipeline::Batches;
use crate::{Error, Result};

/// Loss, accuracy and other metrics over a set of examples.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Mean loss per example.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// Share of examples classified right; where an example can be of several classes, of examples and
    /// classes.
    pub accuracy: f64,
    /// The [metrics](Sequential::metrics) that the model was asked for, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, f64>,
}

impl fmt::Display for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "loss: {:.4} - accuracy: {:.4}", self.loss, self.accuracy)?;
        let mut metrics = self.metrics.iter();
        metrics.try_for_each(|(name, value)| write!(f, " - {name}: {value:.4}"))
    }
}

/// Sums over some examples.
#[derive(Default)]
pub(super) struct Totals {
    pub(super) examples: usize,
    pub(super) loss: f64,
    pub(super) correct: f64,
    /// This process' own, where something else is to be measured.
    pub(super) outputs: Vec<Outputs>,
}

impl Totals {
    pub(super) fn add(&mut self, others: Self) {
        self.examples += others.examples;
        self.loss += others.loss;
        self.correct += others.correct;
        self.outputs.extend(others.outputs);
    }

    /// Reads loss, correct and examples from a tensor `[3]`.
    pub(super) fn read(sums: &Tensor, outputs: Vec<Outputs>) -> Result<Self> {
        let sums = sums.f_to_kind(Kind::Double).and_then(Vec::<f64>::try_from);
        match sums.map_err(Error::torch("sums"))?[..] {
            [loss, correct, examples] => Ok(Self {
                examples: examples as usize,
                loss,
                correct,
                outputs,
            }),
            _ => Ok(Self::default()),
        }
    }

    /// Returns the sums over all ranks.
    fn over(self, group: &ProcessGroup) -> Result<Self> {
        let sums = Tensor::from_slice(&[self.loss, self.correct, self.examples as f64]);
        Self::read(&group.all_reduce(&sums)?, self.outputs)
    }

    /// Returns mean loss and accuracy.
    pub(super) fn mean(&self) -> Evaluation {
        let examples = self.examples as f64;
        Evaluation {
            loss: self.loss / examples,
            accuracy: self.correct / examples,
            metrics: BTreeMap::new(),
        }
    }
}

impl Sequential<Compiled> {
    /// Returns loss, accuracy and the other [metrics](Self::metrics) over `batches`, without training.
    /// Where several processes work together, each evaluates its share, and all get those over the whole.
    ///
    /// # Errors
    /// `Argument` when the labels do not fit the loss, there is no example, or they have no
    /// [AUC](super::Metric::Auc) where it is asked for; `Image` when a broken image stops the run; `Shape`
    /// when the images do not fit the model; `Stopped` by the notebook's Stop button; `Distributed` when
    /// another process fails.
    pub fn evaluate(&self, batches: &Batches) -> Result<Evaluation> {
        batches
            .group()
            .together(|| self.evaluate_share(batches, None))
    }

    /// Returns loss, accuracy and metrics as [`evaluate`](Self::evaluate) does, of the probabilities that
    /// test-time augmentation gives.
    ///
    /// # Errors
    /// As [`evaluate`](Self::evaluate); `Argument` also when the augmentation has no pass, mixes images,
    /// or has arguments that [`augment`](crate::pipeline::Dataset::augment) refuses.
    pub fn evaluate_with(
        &self,
        batches: &Batches,
        augmentation: &TestTimeAugmentation,
    ) -> Result<Evaluation> {
        batches
            .group()
            .together(|| self.evaluate_share(batches, Some(augmentation)))
    }

    fn evaluate_share(
        &self,
        batches: &Batches,
        with: Option<&TestTimeAugmentation>,
    ) -> Result<Evaluation> {
        const NAME: &str = "evaluate, the batches";
        self.check(batches, NAME)?;
        let batches = &batches.unaugmented().share(NAME)?;
        let group = batches.group();
        let mut task = Task::begin_together(group, "evaluate", "batch", batches.len());
        let (cut, outputs) = match with {
            None => (0, PrefixOutputs::computed(self, 0, batches)?),
            Some(_) => (
                self.last(),
                PrefixOutputs::logits(Predictor::new(self, with)?, batches),
            ),
        };
        let start = std::time::Instant::now();
        self.evaluate_outputs(cut, &outputs, |step, _, totals| {
            task.progress
                .show(|| epoch_progress(step, batches.len(), totals, start.elapsed()));
            match task.stop.requested() {
                true => Err(task.stopped(step)),
                false => Ok(()),
            }
        })
    }

    /// Evaluates layer `cut`'s outputs; `on_step_end` is told each batch's number, its loss and the
    /// sums so far, and ends the evaluation by its error. The result is that of all ranks.
    pub(super) fn evaluate_outputs<E: From<Error>>(
        &self,
        cut: usize,
        outputs: &PrefixOutputs<'_>,
        mut on_step_end: impl FnMut(usize, f64, &Totals) -> Result<(), E>,
    ) -> Result<Evaluation, E> {
        let logits = self.inference(cut, self.last())?;
        let mut totals = Totals::default();
        for (step, batch) in (1..).zip(outputs.epoch(0)) {
            let batch = batch?;
            let batch =
                self.batch_loss(&logits(&batch.input)?, &batch.labels, batch.mixed.as_ref())?;
            let batch = batch.read()?;
            let loss = batch.mean().loss;
            totals.add(batch);
            on_step_end(step, loss, &totals)?;
        }
        let group = outputs.batches.group();
        if group.size() > 1 {
            totals = totals.over(group)?;
        }
        match totals.examples {
            0 => Err(outputs.batches.nothing_readable().into()),
            _ => Ok(self.measured(&totals, group)?),
        }
    }

    /// Returns what is measured over all ranks' examples, of which `totals` has the sums.
    pub(super) fn measured(&self, totals: &Totals, group: &ProcessGroup) -> Result<Evaluation> {
        Ok(Evaluation {
            metrics: self.measure(&totals.outputs, group)?,
            ..totals.mean()
        })
    }
}
