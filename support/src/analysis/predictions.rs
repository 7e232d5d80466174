//! What a model predicts, example by example.

use std::fmt;

use tch::{Device, Kind, Tensor};

use super::{ConfusionMatrix, Report};
use crate::live::Task;
use crate::model::Sequential;
use crate::pipeline::{Batch, Batches, Pixels};
use crate::training::{Compiled, Loss, Predictor, TestTimeAugmentation};
use crate::{Error, Result};

/// What a model makes of one example.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// Which of the dataset's examples it is of.
    pub index: usize,
    /// The example's id.
    pub id: String,
    /// Its class, an index into [`Predictions::classes`].
    pub label: usize,
    /// The most probable class.
    pub predicted: usize,
    /// The probability of each class; they add up to 1.
    pub probabilities: Vec<f64>,
    /// The loss.
    pub loss: f64,
}

impl Prediction {
    /// Returns whether the most probable class is the label.
    #[must_use]
    pub fn is_right(&self) -> bool {
        self.predicted == self.label
    }

    /// Returns the predicted class' probability, NaN if there is none.
    #[must_use]
    pub fn confidence(&self) -> f64 {
        let confidence = self.probabilities.get(self.predicted);
        confidence.copied().unwrap_or(f64::NAN)
    }
}

/// What a model makes of a set of examples, or of some of them.
///
/// The images are not kept: what shows some reads them again.
#[derive(Clone, Debug)]
pub struct Predictions {
    /// What was predicted, neither shuffled nor augmented.
    batches: Batches,
    predictions: Vec<Prediction>,
}

impl Sequential<Compiled> {
    /// Returns what the model predicts for each example, in the dataset's order before any
    /// shuffling and without augmentation. Images that are skipped because they cannot be read
    /// are not among them.
    ///
    /// # Errors
    /// As [`evaluate`](Self::evaluate).
    pub fn predictions(&self, batches: &Batches) -> Result<Predictions> {
        self.predict(batches, None)
    }

    /// Returns what the model predicts as [`predictions`](Self::predictions) does, with the probabilities
    /// that test-time augmentation gives.
    ///
    /// # Errors
    /// As [`evaluate_with`](Self::evaluate_with).
    pub fn predictions_with(
        &self,
        batches: &Batches,
        augmentation: &TestTimeAugmentation,
    ) -> Result<Predictions> {
        self.predict(batches, Some(augmentation))
    }

    fn predict(
        &self,
        batches: &Batches,
        with: Option<&TestTimeAugmentation>,
    ) -> Result<Predictions> {
        self.check(batches, "predictions, the batches")?;
        let batches = batches.unaugmented().unshuffled().sharded(1);
        let predictor = Predictor::new(self, with)?;
        let mut task = Task::begin("predictions", "batch", batches.len());
        let mut predictions = Vec::with_capacity(batches.examples());
        for (step, logits) in (1..).zip(predictor.logits(&batches)?) {
            let (batch, logits) = logits?;
            predictions.extend(self.judge(&logits, batch, &batches)?);
            task.done(step, predictions.len())?;
        }
        Ok(Predictions {
            batches,
            predictions,
        })
    }

    /// Makes predictions of a batch's logits.
    fn judge(&self, logits: &Tensor, batch: Batch, of: &Batches) -> Result<Vec<Prediction>> {
        let mut losses = self.compiled.losses(logits, &batch.labels)?.into_iter();
        let all = probabilities(self.compiled.loss(), logits)?;
        let labels = Vec::<i64>::try_from(&batch.labels).map_err(Error::torch("labels"))?;
        let all = all.chunks(of.classes().len());
        let examples = batch.indices.into_iter().zip(labels).zip(all);
        let predictions = examples.map(|((index, label), probabilities)| Prediction {
            index,
            id: of.dataset().examples()[index].id.clone(),
            label: label as usize,
            predicted: argmax(probabilities),
            probabilities: probabilities.to_vec(),
            loss: losses.next().unwrap_or(f64::NAN),
        });
        Ok(predictions.collect())
    }
}

/// Returns each class' probability for logits `[N, units]`, example by example.
pub(crate) fn probabilities(loss: Loss, logits: &Tensor) -> Result<Vec<f64>> {
    // In 64 bits even logits that are next to each other give different probabilities.
    let logits = logits
        .f_to_device(Device::Cpu)
        .and_then(|logits| logits.f_to_kind(Kind::Double))
        .map_err(Error::torch("logits"))?;
    loss.probabilities(&logits)?
        .f_reshape([-1])
        .and_then(|all| Vec::<f64>::try_from(&all))
        .map_err(Error::torch("probabilities"))
}

/// Returns the index of the highest value, of equal ones the first.
pub(crate) fn argmax(values: &[f64]) -> usize {
    (1..values.len()).fold(0, |best, index| {
        if values[index] > values[best] {
            index
        } else {
            best
        }
    })
}

impl Predictions {
    /// Returns the predictions, in the dataset's order unless they were put in another.
    #[must_use]
    pub fn examples(&self) -> &[Prediction] {
        &self.predictions
    }

    /// Returns the number of predictions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.predictions.len()
    }

    /// Returns whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.predictions.is_empty()
    }

    /// Returns the names of the classes, which labels and predictions are indices into.
    #[must_use]
    pub fn classes(&self) -> &[String] {
        self.batches.classes()
    }

    /// Returns the share of examples predicted right, NaN of none.
    #[must_use]
    pub fn accuracy(&self) -> f64 {
        self.mean(|prediction| f64::from(u8::from(prediction.is_right())))
    }

    /// Returns the mean loss, NaN of none.
    #[must_use]
    pub fn loss(&self) -> f64 {
        self.mean(|prediction| prediction.loss)
    }

    fn mean(&self, value: impl Fn(&Prediction) -> f64) -> f64 {
        self.predictions.iter().map(value).sum::<f64>() / self.len() as f64
    }

    /// Returns the first `count` of them.
    #[must_use]
    pub fn take(&self, count: usize) -> Self {
        self.with(self.predictions.iter().take(count))
    }

    /// Returns `count` of them, evenly spread: a dataset's order can be that of its classes.
    #[must_use]
    pub fn spread(&self, count: usize) -> Self {
        let of = self.len();
        let count = count.min(of);
        self.with((0..count).map(|index| &self.predictions[index * of / count]))
    }

    /// Returns those that are wrong.
    #[must_use]
    pub fn wrong(&self) -> Self {
        let wrong = |prediction: &&Prediction| !prediction.is_right();
        self.with(self.predictions.iter().filter(wrong))
    }

    /// Returns the `n` with the highest loss, the highest first: fastai's `top_losses`.
    #[must_use]
    pub fn highest_loss(&self, n: usize) -> Self {
        let mut sorted: Vec<&Prediction> = self.predictions.iter().collect();
        sorted.sort_by(|a, b| b.loss.total_cmp(&a.loss));
        self.with(sorted.into_iter().take(n))
    }

    pub(super) fn with<'a>(&self, predictions: impl Iterator<Item = &'a Prediction>) -> Self {
        Self {
            batches: self.batches.clone(),
            predictions: predictions.cloned().collect(),
        }
    }

    /// Returns how often each class was predicted as each.
    #[must_use]
    pub fn confusion_matrix(&self) -> ConfusionMatrix {
        let pairs = self.predictions.iter();
        let pairs = pairs.map(|prediction| (prediction.label, prediction.predicted));
        ConfusionMatrix::new(self.classes().to_vec(), pairs)
    }

    /// Returns precision, recall and F1 of each class and on average.
    #[must_use]
    pub fn report(&self) -> Report {
        Report::new(&self.confusion_matrix())
    }

    /// Returns the `n` most frequent mistakes, as [`ConfusionMatrix::most_confused`].
    #[must_use]
    pub fn most_confused(&self, n: usize) -> Vec<(String, String, usize)> {
        self.confusion_matrix().most_confused(n)
    }

    /// Returns these predictions' images as batches, in this order.
    pub(super) fn batches(&self) -> Batches {
        let indices = self.predictions.iter().map(|found| found.index);
        self.batches.only(indices)
    }

    /// Reads the first `count` images again, as they were made for the model; returns each with
    /// its index.
    pub(crate) fn pictures(&self, count: usize) -> Result<Vec<(usize, Pixels)>> {
        let mut pictures = Vec::new();
        for (index, prediction) in self.predictions.iter().take(count).enumerate() {
            if let Some(pixels) = self.batches.load(prediction.index)? {
                pictures.push((index, pixels));
            }
        }
        Ok(pictures)
    }
}

impl fmt::Display for Predictions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} predictions - loss: {:.4} - accuracy: {:.4}",
            self.len(),
            self.loss(),
            self.accuracy()
        )
    }
}
