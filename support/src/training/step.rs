//! One training step, and what has to hold before it.

use tch::{Device, Kind, Tensor};

use super::{Compiled, Evaluation};
use crate::model::Sequential;
use crate::pipeline::Batches;
use crate::{Error, Result};

/// A batch's loss, where it was computed.
pub(super) struct BatchLoss {
    /// The root of the backward pass.
    mean: Tensor,
    correct: Tensor,
    examples: i64,
}

impl BatchLoss {
    pub(super) fn read(&self) -> Result<Evaluation> {
        let read = || {
            let accuracy = self.correct.f_int64_value(&[])? as f64 / self.examples as f64;
            let loss = self.mean.f_double_value(&[])?;
            Ok(Evaluation { loss, accuracy })
        };
        read().map_err(Error::torch("loss"))
    }
}

impl Sequential<Compiled> {
    /// Trains one step on images `[N, 3, H, W]` with class indices `[N]`, 64-bit integers; returns loss
    /// and accuracy before the step.
    ///
    /// # Errors
    /// `Shape` when the images do not fit the model, or the labels the images; `Argument` when a label
    /// is of no class or not an integer, or nothing is trainable. Then nothing has been changed.
    pub fn train_on_batch(&mut self, images: &Tensor, labels: &Tensor) -> Result<Evaluation> {
        self.check_trainable("train_on_batch")?;
        self.check_labels(images, labels)?;
        self.train_step(0, images, labels)
    }

    /// Trains one step on layer `cut`'s output for some images.
    pub(super) fn train_step(
        &mut self,
        cut: usize,
        input: &Tensor,
        labels: &Tensor,
    ) -> Result<Evaluation> {
        let logits = self.run(cut, input, self.last(), self.compiled.step)?;
        let loss = self.batch_loss(&logits, labels)?;
        let (variables, compiled) = self.split_compiled();
        let values: Vec<&Tensor> = variables.iter().map(|variable| variable.value()).collect();
        let gradients = Tensor::f_run_backward(&[&loss.mean], &values, false, false)
            .map_err(Error::torch("backward pass"))?;
        compiled.optimizer.step(&variables, &gradients)?;
        compiled.step += 1;
        // Only now: a GPU is waited for.
        loss.read()
    }

    /// Returns the mean loss of a batch, and how many of its examples are classified right.
    pub(super) fn batch_loss(&self, logits: &Tensor, labels: &Tensor) -> Result<BatchLoss> {
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
        self.check_trainable(name)
    }

    fn check_trainable(&self, name: &'static str) -> Result<()> {
        if !self.trainable_variables().is_empty() {
            return Ok(());
        }
        Err(Error::Argument {
            name,
            expected: "a model with at least one trainable variable".into(),
            got: "all layers frozen".into(),
        })
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

    /// Checks labels that come with images from anywhere.
    fn check_labels(&self, images: &Tensor, labels: &Tensor) -> Result<()> {
        let argument = |expected: String, got: String| {
            Err(Error::Argument {
                name: "train_on_batch, the labels",
                expected,
                got,
            })
        };
        let (count, got) = (images.size().first().copied().unwrap_or(0), labels.size());
        if got != [count] || count == 0 {
            return Err(Error::Shape {
                operation: "train_on_batch, the labels".into(),
                expected: format!("[N] for images [N, 3, H, W], N = {count} being 1 or more"),
                got,
            });
        }
        if labels.kind() != Kind::Int64 {
            let kind = format!("{:?}", labels.kind());
            return argument("class indices, 64-bit integers".into(), kind);
        }
        let classes = self.compiled.loss.classes(&self.output_shape())?;
        let labels = labels
            .f_to_device(Device::Cpu)
            .and_then(Vec::<i64>::try_from);
        let labels = labels.map_err(Error::torch("labels"))?;
        match labels
            .iter()
            .find(|&&label| !(0..classes as i64).contains(&label))
        {
            Some(label) => argument(format!("indices of {classes} classes"), label.to_string()),
            None => Ok(()),
        }
    }
}
