//! What a model predicts, example by example.

use std::collections::BTreeSet;
use std::fmt;

use tch::Tensor;

use super::{ConfusionMatrix, Report};
use crate::dataset::Label;
use crate::live::Task;
use crate::model::Sequential;
use crate::pipeline::{Batch, Batches, Pixels};
use crate::training::{Compiled, Loss, Predictor, TestTimeAugmentation, argmax, probabilities};
use crate::{Error, Result};

/// What a model makes of one example.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// Which of the dataset's examples it is of.
    pub index: usize,
    /// The example's id.
    pub id: String,
    /// Its class, or classes, as indices into [`Predictions::classes`].
    pub label: Label,
    /// The most probable class; where there are several labels per image, every class whose probability
    /// reaches the threshold.
    pub predicted: Label,
    /// The probability of each class. They add up to 1, unless there are several labels per image: then each
    /// class' is its own.
    pub probabilities: Vec<f64>,
    /// The loss.
    pub loss: f64,
}

impl Prediction {
    /// Returns whether the label was predicted; of several, exactly these.
    #[must_use]
    pub fn is_right(&self) -> bool {
        self.predicted == self.label
    }

    /// Returns the predicted class' probability. Where there are several labels per image, it is that of the
    /// least sure answer: the lowest over the classes of the probability of being what was predicted, of
    /// the class or not. NaN if there is none.
    #[must_use]
    pub fn confidence(&self) -> f64 {
        let Label::Class(predicted) = self.predicted else {
            let answers = self.probabilities.iter().enumerate();
            let answers = answers.map(|(class, &probability)| match self.predicted.has(class) {
                true => probability,
                false => 1. - probability,
            });
            return answers.fold(f64::NAN, f64::min);
        };
        let confidence = self.probabilities.get(predicted);
        confidence.copied().unwrap_or(f64::NAN)
    }

    /// Returns the share of right answers: 0 or 1, or of several labels per image that over the classes.
    fn accuracy(&self) -> f64 {
        if !self.label.is_multi_label() {
            return f64::from(u8::from(self.is_right()));
        }
        let classes = 0..self.probabilities.len();
        let right = classes.filter(|&class| self.label.has(class) == self.predicted.has(class));
        right.count() as f64 / self.probabilities.len() as f64
    }
}

/// The least probability at which an image is taken for one of a class, where it can be of several.
pub(crate) const THRESHOLD: f64 = 0.5;

/// Returns what is predicted by the probability of each class.
pub(crate) fn predicted(loss: Loss, probabilities: &[f64], threshold: f64) -> Label {
    if loss.is_multi_label() {
        reaching(probabilities, threshold)
    } else {
        Label::Class(argmax(probabilities))
    }
}

fn reaching(probabilities: &[f64], threshold: f64) -> Label {
    let classes = probabilities.iter().enumerate();
    let classes = classes.filter(|(_, probability)| **probability >= threshold);
    classes.map(|(class, _)| class).collect()
}

/// Checks a threshold for probabilities.
pub(crate) fn check_threshold(name: &'static str, threshold: f64) -> Result<()> {
    if (0. ..=1.).contains(&threshold) {
        return Ok(());
    }
    Err(Error::Argument {
        name,
        expected: "a probability from 0 to 1".into(),
        got: threshold.to_string(),
    })
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
        let all = all.chunks(of.classes().len());
        let predictions = batch
            .indices
            .into_iter()
            .zip(all)
            .map(|(index, probabilities)| {
                let example = &of.dataset().examples()[index];
                Prediction {
                    index,
                    id: example.id.clone(),
                    label: example.label.clone(),
                    predicted: predicted(self.compiled.loss(), probabilities, THRESHOLD),
                    probabilities: probabilities.to_vec(),
                    loss: losses.next().unwrap_or(f64::NAN),
                }
            });
        Ok(predictions.collect())
    }
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

    /// Returns the share of examples predicted right, where there are several labels per image over the
    /// classes as well; NaN of none.
    #[must_use]
    pub fn accuracy(&self) -> f64 {
        self.mean(Prediction::accuracy)
    }

    /// Returns whether there are several labels per image.
    #[must_use]
    pub fn is_multi_label(&self) -> bool {
        self.batches.is_multi_label()
    }

    /// Returns the same with every class predicted whose probability is at least another threshold than .5,
    /// for several labels per image: a lower one finds more of the images of a class, and takes more others
    /// for some.
    ///
    /// # Errors
    /// `Argument` for a threshold below 0 or above 1, and where there is one label per image.
    pub fn at_threshold(&self, threshold: f64) -> Result<Self> {
        const NAME: &str = "at_threshold";
        check_threshold(NAME, threshold)?;
        if !self.is_multi_label() {
            return Err(Error::Argument {
                name: NAME,
                expected: "predictions of several labels per image".into(),
                got: "of one, the most probable class".into(),
            });
        }
        let mut all = self.clone();
        for prediction in &mut all.predictions {
            prediction.predicted = reaching(&prediction.probabilities, threshold);
        }
        Ok(all)
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

    /// Returns how often each class was predicted as each. Where there are several labels per image, what is
    /// counted is how often each set of classes was predicted as each: `cat, outdoor` as `cat`;
    /// [`class_matrices`](Self::class_matrices) has each class by itself.
    #[must_use]
    pub fn confusion_matrix(&self) -> ConfusionMatrix {
        if !self.is_multi_label() {
            let class = |label: &Label| label.class().unwrap_or_default();
            let pairs = self
                .pairs()
                .map(|(label, predicted)| (class(label), class(predicted)));
            return ConfusionMatrix::new(self.classes().to_vec(), pairs);
        }
        let sets: BTreeSet<&Label> = self.pairs().flat_map(<[_; 2]>::from).collect();
        let sets: Vec<&Label> = sets.into_iter().collect();
        let names = sets.iter().map(|set| set.names(self.classes())).collect();
        let index = |set: &Label| sets.binary_search(&set).unwrap_or_default();
        let pairs = self
            .pairs()
            .map(|(label, predicted)| (index(label), index(predicted)));
        ConfusionMatrix::new(names, pairs)
    }

    /// Returns for each class by name how often images that are of it, and others, were predicted as it:
    /// [scikit-learn's `multilabel_confusion_matrix`](https://scikit-learn.org/stable/modules/generated/sklearn.metrics.multilabel_confusion_matrix.html),
    /// rows and columns being `not cat`, `cat`.
    #[must_use]
    pub fn class_matrices(&self) -> Vec<(String, ConfusionMatrix)> {
        let matrix = |(class, name): (usize, &String)| {
            let has = |label: &Label| usize::from(label.has(class));
            let pairs = self
                .pairs()
                .map(|(label, predicted)| (has(label), has(predicted)));
            let matrix = ConfusionMatrix::new(vec![format!("not {name}"), name.clone()], pairs);
            (name.clone(), matrix)
        };
        self.classes().iter().enumerate().map(matrix).collect()
    }

    /// Returns precision, recall and F1 of each class and on average.
    #[must_use]
    pub fn report(&self) -> Report {
        Report::new(self.classes(), self.pairs(), self.is_multi_label())
    }

    /// Returns what each example is, and what it was taken for.
    fn pairs(&self) -> impl Iterator<Item = (&Label, &Label)> + Clone {
        let predictions = self.predictions.iter();
        predictions.map(|prediction| (&prediction.label, &prediction.predicted))
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

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::dataset::Example;
    use crate::pipeline::Dataset;
    use crate::settings::BrokenImages;

    /// A case of `tests/reference/multi_label.py`.
    #[derive(Deserialize)]
    struct Case {
        classes: Vec<String>,
        probabilities: Vec<Vec<f64>>,
        labels: Vec<Vec<usize>>,
        matrices: Vec<[[usize; 2]; 2]>,
        binary_accuracy: f64,
    }

    fn cases() -> Vec<(Predictions, Case)> {
        let file = include_str!("../../tests/data/multi_label.json");
        let cases: Vec<Case> = serde_json::from_str(file).unwrap();
        let predictions = |case: Case| {
            let labels = case
                .labels
                .iter()
                .map(|classes| Label::from_iter(classes.clone()));
            let example = |label| Example::at_path(String::new(), label, "x".as_ref());
            let examples: Vec<Example> = labels.map(example).collect();
            let all = examples.iter().zip(&case.probabilities).enumerate();
            let predictions = all.map(|(index, (example, probabilities))| Prediction {
                index,
                id: String::new(),
                label: example.label.clone(),
                predicted: reaching(probabilities, THRESHOLD),
                probabilities: probabilities.clone(),
                loss: 0.,
            });
            let predictions = predictions.collect();
            let dataset = Dataset::new(examples, case.classes.clone(), 0, BrokenImages::Stop);
            let batches = dataset.map(|image| Pixels::from(image)).batch(4);
            (
                Predictions {
                    batches,
                    predictions,
                },
                case,
            )
        };
        cases.into_iter().map(predictions).collect()
    }

    #[test]
    fn of_several_labels_accuracy_and_matrices_are_those_of_keras_and_scikit_learn() {
        for (predictions, case) in cases() {
            assert!((predictions.accuracy() - case.binary_accuracy).abs() < 1e-12);
            let matrices = predictions.class_matrices();
            assert_eq!(matrices.len(), case.classes.len());
            for ((name, matrix), expected) in matrices.iter().zip(case.matrices) {
                assert_eq!(matrix.classes(), [format!("not {name}"), name.clone()]);
                let counts = [0, 1].map(|label| [0, 1].map(|class| matrix.count(label, class)));
                assert_eq!(counts, expected, "{name}");
            }
            let wrong = predictions.wrong().len();
            let right = (predictions.report().accuracy * predictions.len() as f64).round();
            assert_eq!(predictions.len() - wrong, right as usize);
        }
    }

    #[test]
    fn a_confusion_matrix_of_several_labels_is_of_the_sets_of_classes() {
        let (predictions, _) = cases().remove(1);
        let matrix = predictions.confusion_matrix();
        // Labels are cat, dog; dog; none; cat. What is predicted is bird, cat; cat; none; cat.
        assert_eq!(
            matrix.classes(),
            ["none", "bird, cat", "cat", "cat, dog", "dog"]
        );
        assert_eq!(
            Vec::from_iter(matrix.counts()),
            [(0, 0, 1), (2, 2, 1), (3, 1, 1), (4, 2, 1)]
        );
        let expected = ("cat, dog".to_owned(), "bird, cat".to_owned(), 1);
        assert_eq!(predictions.most_confused(1), [expected]);
        let confidences = predictions.examples().iter().map(Prediction::confidence);
        let expected = [0.8, 0.6, 0.7, 0.6];
        assert!(
            confidences
                .zip(expected)
                .all(|(a, b)| (a - b).abs() < 1e-12)
        );
    }

    #[test]
    fn a_lower_threshold_predicts_more_classes() {
        let (predictions, _) = cases().remove(1);
        assert_eq!(
            predictions.at_threshold(0.5).unwrap().examples(),
            predictions.examples()
        );
        let lower = predictions.at_threshold(0.35).unwrap();
        assert_eq!(lower.examples()[1].predicted, Label::from_iter([1, 2]));
        let none = predictions.at_threshold(1.).unwrap();
        assert!(
            none.examples()
                .iter()
                .all(|one| one.predicted.classes().count() == 0)
        );
        assert!(predictions.at_threshold(f64::NAN).is_err());
        let dataset = Dataset::new(Vec::new(), vec!["a".into()], 0, BrokenImages::Stop);
        let batches = dataset.map(|image| Pixels::from(image)).batch(4);
        let one_each = Predictions {
            batches,
            predictions: Vec::new(),
        };
        let error = one_each.at_threshold(0.5).unwrap_err().to_string();
        assert!(error.contains("several labels per image"), "{error}");
    }
}
