//! What is measured besides loss and accuracy, over a whole set of examples.
//!
//! None of it is the mean of what the batches have: the logits of all examples are kept until the set is
//! through, by all ranks, and measured together.

use std::collections::BTreeMap;
use std::fmt;

use tch::{Device, Kind, Tensor};

use super::loss::{argmax, probabilities};
use super::{Compiled, Loss};
use crate::distributed::ProcessGroup;
use crate::model::Sequential;
use crate::{Error, Result};

/// Something to measure besides loss and accuracy, by [`Sequential::metrics`]. The numbers are
/// scikit-learn's.
///
/// Precision, recall, F1 and AUC are those of each class against all others, and their mean over the
/// classes, each of which counts the same (scikit-learn's `average="macro"`). The class predicted is the
/// most probable one; where an example can be of several classes, each whose probability is above 0.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Metric {
    /// The share of examples whose class is among the so many most probable ones, `top_3_accuracy`; of
    /// equally probable classes those with the higher index are taken first. Not where an example can be of
    /// several classes.
    TopK(usize),
    /// The area under the ROC curve, `auc`: how often an example of a class is given a higher probability
    /// of it than an example of another, a tie counting half. A class without an example, or that has all
    /// of them, has none, and is not in the mean.
    Auc,
    /// The share of what is predicted as a class that is of it, `precision`; 0 for one never predicted.
    Precision,
    /// The share of a class' examples that are predicted as it, `recall`; 0 for one without examples.
    Recall,
    /// The harmonic mean of precision and recall, `f1_score`; 0 where both are.
    F1,
}

/// Its name in [`EpochLog::metrics`](super::EpochLog::metrics), as Keras has them.
impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TopK(k) => write!(f, "top_{k}_accuracy"),
            Self::Auc => f.write_str("auc"),
            Self::Precision => f.write_str("precision"),
            Self::Recall => f.write_str("recall"),
            Self::F1 => f.write_str("f1_score"),
        }
    }
}

impl Metric {
    /// Returns the metric of a name.
    pub(super) fn named(name: &str) -> Option<Self> {
        let top_k = || {
            let k = name.strip_prefix("top_")?.strip_suffix("_accuracy")?;
            k.parse().ok().map(Self::TopK)
        };
        let mut others = [Self::Auc, Self::Precision, Self::Recall, Self::F1].into_iter();
        others
            .find(|metric| metric.to_string() == name)
            .or_else(top_k)
    }

    fn check(self, loss: Loss, classes: usize) -> Result<()> {
        let Self::TopK(k) = self else {
            return Ok(());
        };
        let expected = match loss.is_multi_label() {
            true => "none, where an example can be of several classes".into(),
            false if (1..=classes).contains(&k) => return Ok(()),
            false => format!("1 to {classes} of {classes} classes"),
        };
        Err(Error::Argument {
            name: "Metric::TopK",
            expected,
            got: k.to_string(),
        })
    }

    fn measure(self, examples: &Examples) -> Result<f64> {
        let macro_average = || Scores::mean(&examples.scores(), |_| 1.);
        Ok(match self {
            Self::TopK(k) => examples.top_k_accuracy(k),
            Self::Auc => return examples.auc(),
            Self::Precision => macro_average().precision,
            Self::Recall => macro_average().recall,
            Self::F1 => macro_average().f1,
        })
    }
}

impl Sequential<Compiled> {
    /// Measures these besides loss and accuracy, over the training examples of each epoch of
    /// [`fit`](Self::fit), each measured before the step it takes part in, and in validation and
    /// [`evaluate`](Self::evaluate). They take the place of those asked for before.
    ///
    /// They are exact for the whole set. Until its end, 4 bytes are kept for each logit and 8 for each
    /// label of its examples: 1 MB for 20,000 images of ten classes.
    ///
    /// ```no_run
    /// # use support::prelude::*;
    /// # fn compile(model: Sequential) -> support::Result<()> {
    /// let model = model
    ///     .compile(RmsProp::new(1e-4), Loss::SparseCategoricalCrossentropy)?
    ///     .metrics([Metric::TopK(3), Metric::Auc, Metric::F1])?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `Argument` for [`Metric::TopK`] of no class, of more than there are, or where an example can be of
    /// several.
    pub fn metrics(mut self, metrics: impl IntoIterator<Item = Metric>) -> Result<Self> {
        let metrics: Vec<Metric> = metrics.into_iter().collect();
        let loss = self.compiled.loss();
        let classes = loss.classes(&self.output_shape())?;
        let mut checks = metrics.iter().map(|metric| metric.check(loss, classes));
        checks.try_for_each(|checked| checked)?;
        self.compiled.metrics = metrics;
        Ok(self)
    }

    /// Returns the metrics of all ranks' examples, by name.
    ///
    /// # Errors
    /// `Argument` when the examples have no AUC.
    pub(super) fn measure(
        &self,
        outputs: &[Outputs],
        group: &ProcessGroup,
    ) -> Result<BTreeMap<String, f64>> {
        let Compiled { metrics, .. } = &self.compiled;
        if metrics.is_empty() {
            return Ok(BTreeMap::new());
        }
        let loss = self.compiled.loss();
        let units = self.output_shape();
        let (label_shape, label_kind) = match loss.is_multi_label() {
            true => (&units[..], Kind::Float),
            false => (&[][..], Kind::Int64),
        };
        let own = |part: fn(&Outputs) -> &Tensor| outputs.iter().map(part).collect::<Vec<_>>();
        let logits = gather(own(|(logits, _)| logits), &units, Kind::Float, group)?;
        let labels = gather(own(|(_, labels)| labels), label_shape, label_kind, group)?;
        let examples = Examples::new(loss, &logits, &labels, loss.classes(&units)?)?;
        let measured = metrics
            .iter()
            .map(|metric| Ok((metric.to_string(), metric.measure(&examples)?)));
        measured.collect()
    }
}

/// Logits `[N, outputs]` and labels of some examples.
pub(super) type Outputs = (Tensor, Tensor);

/// Returns the rows, each of a shape, of all ranks' tensors, one rank's after the other's.
fn gather(own: Vec<&Tensor>, row: &[i64], kind: Kind, group: &ProcessGroup) -> Result<Tensor> {
    const OPERATION: &str = "metrics";
    let rows = |count: i64| {
        let shape = [&[count], row].concat();
        Tensor::f_zeros(&shape[..], (kind, Device::Cpu))
    };
    let joined = || {
        let own = own
            .iter()
            .map(|part| part.f_to_device(Device::Cpu)?.f_to_kind(kind));
        // Without any there would be no shape.
        let own: Result<Vec<_>, _> = std::iter::once(rows(0)).chain(own).collect();
        Tensor::f_cat(&own?, 0)
    };
    let own = joined().map_err(Error::torch(OPERATION))?;
    if group.size() == 1 {
        return Ok(own);
    }
    let count = own.size()[0];
    let counts = group.all_gather(&Tensor::from_slice(&[count]))?;
    let counts: Vec<i64> = counts
        .f_reshape([-1])
        .and_then(Vec::try_from)
        .map_err(Error::torch(OPERATION))?;
    let most = counts.iter().max().map_or(0, |&most| most);
    let padded = rows(most - count).and_then(|padding| Tensor::f_cat(&[own, padding], 0));
    let all = group.all_gather(&padded.map_err(Error::torch(OPERATION))?)?;
    let parts = (0..).zip(counts);
    let parts = parts.map(|(rank, count)| all.f_get(rank)?.f_narrow(0, 0, count));
    parts
        .collect::<Result<Vec<_>, _>>()
        .and_then(|parts| Tensor::f_cat(&parts, 0))
        .map_err(Error::torch(OPERATION))
}

/// What a model makes of some examples, and what they are.
struct Examples {
    classes: usize,
    /// `[N, classes]`
    probabilities: Vec<f64>,
    labels: Labels,
}

enum Labels {
    /// Each example's class.
    Single(Vec<usize>),
    /// Whether each example is of each class, `[N, classes]`.
    Multi(Vec<bool>),
}

impl Examples {
    fn new(loss: Loss, logits: &Tensor, labels: &Tensor, classes: usize) -> Result<Self> {
        let read = |labels: &Tensor| {
            Vec::<f64>::try_from(&labels.f_reshape([-1])?.f_to_kind(Kind::Double)?)
        };
        let labels = read(labels).map_err(Error::torch("labels"))?.into_iter();
        Ok(Self {
            classes,
            probabilities: probabilities(loss, logits)?,
            labels: match loss.is_multi_label() {
                true => Labels::Multi(labels.map(|label| label > 0.5).collect()),
                false => Labels::Single(labels.map(|label| label as usize).collect()),
            },
        })
    }

    fn rows(&self) -> impl Iterator<Item = &[f64]> {
        self.probabilities.chunks(self.classes)
    }

    /// Returns whether an example is of a class.
    fn is(&self, example: usize, class: usize) -> bool {
        match &self.labels {
            Labels::Single(labels) => labels[example] == class,
            Labels::Multi(labels) => labels[example * self.classes + class],
        }
    }

    fn top_k_accuracy(&self, k: usize) -> f64 {
        let Labels::Single(labels) = &self.labels else {
            return f64::NAN; // `Metric::check` has refused it.
        };
        let is_in = |&(row, &label): &(&[f64], &usize)| {
            let before =
                |&(class, probability): &(usize, &f64)| (*probability, class) > (row[label], label);
            row.iter().enumerate().filter(before).count() < k
        };
        let hits = self.rows().zip(labels).filter(is_in).count();
        hits as f64 / labels.len() as f64
    }

    fn auc(&self) -> Result<f64> {
        let of_class = |class: usize| {
            let rows = self.rows().enumerate();
            roc_auc(rows.map(|(example, row)| (row[class], self.is(example, class))))
        };
        let areas: Vec<f64> = (0..self.classes).filter_map(of_class).collect();
        if areas.is_empty() {
            return Err(Error::Argument {
                name: "Metric::Auc, the examples",
                expected: "some that are of a class and some that are not".into(),
                got: "all of the same classes".into(),
            });
        }
        Ok(areas.iter().sum::<f64>() / areas.len() as f64)
    }

    /// Returns each class' scores.
    fn scores(&self) -> Vec<Scores> {
        let mut counts = vec![[0; 3]; self.classes];
        for (example, row) in self.rows().enumerate() {
            let most_probable = argmax(row);
            for (class, [right, predicted, support]) in counts.iter_mut().enumerate() {
                let is_predicted = match self.labels {
                    Labels::Single(_) => class == most_probable,
                    Labels::Multi(_) => row[class] > 0.5,
                };
                let is = self.is(example, class);
                *right += usize::from(is && is_predicted);
                *predicted += usize::from(is_predicted);
                *support += usize::from(is);
            }
        }
        let scores = counts.into_iter();
        scores
            .map(|[right, predicted, support]| Scores::new(right, predicted, support))
            .collect()
    }
}

/// Returns the area under the ROC curve of scores and whether each is an example of the class; none where
/// all are, or none is.
fn roc_auc(scores: impl Iterator<Item = (f64, bool)>) -> Option<f64> {
    let mut scores: Vec<_> = scores.collect();
    scores.sort_by(|a, b| a.0.total_cmp(&b.0));
    // Pairs of an example of the class and another that the scores put in the right order.
    let (mut right, mut positives, mut negatives) = (0., 0, 0);
    for tied in scores.chunk_by(|a, b| a.0 == b.0) {
        let of_class = tied.iter().filter(|(_, is)| *is).count();
        let others = tied.len() - of_class;
        right += of_class as f64 * (negatives as f64 + others as f64 / 2.);
        positives += of_class;
        negatives += others;
    }
    (positives > 0 && negatives > 0).then(|| right / (positives as f64 * negatives as f64))
}

/// How well a class, or all classes on average, was told from the others.
///
/// A share of nothing is 0, as with scikit-learn's `zero_division=0`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Scores {
    /// Share of what was predicted as the class that is of it.
    pub precision: f64,
    /// Share of the class' examples that were predicted as it.
    pub recall: f64,
    /// Harmonic mean of precision and recall.
    pub f1: f64,
    /// Number of the class' examples.
    pub support: usize,
}

impl Scores {
    /// Returns those of a class with `support` examples, of which so many were `right`ly predicted as it, as
    /// were `predicted` in all.
    pub(crate) fn new(right: usize, predicted: usize, support: usize) -> Self {
        Self {
            precision: share(right as f64, predicted as f64),
            recall: share(right as f64, support as f64),
            f1: share(2. * right as f64, (support + predicted) as f64),
            support,
        }
    }

    /// Returns the mean of some classes' with a weight for each.
    pub(crate) fn mean(all: &[Self], weight: fn(&Self) -> f64) -> Self {
        let weights: f64 = all.iter().map(weight).sum();
        let mean = |value: fn(&Self) -> f64| {
            let sum: f64 = all.iter().map(|s| weight(s) * value(s)).sum();
            share(sum, weights)
        };
        Self {
            precision: mean(|scores| scores.precision),
            recall: mean(|scores| scores.recall),
            f1: mean(|scores| scores.f1),
            support: all.iter().map(|scores| scores.support).sum(),
        }
    }
}

/// Returns a share, of nothing 0.
pub(crate) fn share(part: f64, whole: f64) -> f64 {
    if whole == 0. { 0. } else { part / whole }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// The cases of `tests/reference/metrics.py`.
    fn cases() -> Vec<Value> {
        let text = include_str!("../../tests/data/metrics.json");
        let file: Value = serde_json::from_str(text).unwrap();
        file["cases"].as_array().unwrap().clone()
    }

    /// A value as a tensor: a list, or a list of lists.
    fn tensor(value: &Value, kind: Kind) -> Tensor {
        match serde_json::from_value::<Vec<Vec<f64>>>(value.clone()) {
            Ok(rows) => Tensor::from_slice2(&rows),
            Err(_) => {
                let values: Vec<f64> = serde_json::from_value(value.clone()).unwrap();
                Tensor::from_slice(&values)
            }
        }
        .to_kind(kind)
    }

    #[test]
    fn metrics_equal_scikit_learns() {
        for case in cases() {
            let loss: Loss = serde_json::from_value(case["loss"].clone()).unwrap();
            let logits = tensor(&case["logits"], Kind::Float);
            let labels = tensor(&case["labels"], Kind::Float);
            let classes = loss.classes(&logits.size()[1..]).unwrap();
            let examples = Examples::new(loss, &logits, &labels, classes).unwrap();
            let expected = case["metrics"].as_object().unwrap();
            assert!(expected.len() >= 4, "{case}");
            for (name, expected) in expected {
                let metric = Metric::named(name).unwrap();
                metric.check(loss, classes).unwrap();
                let expected = expected.as_f64().unwrap();
                let got = metric.measure(&examples).unwrap();
                assert!(
                    (got - expected).abs() < 1e-12,
                    "{name} {got} for {expected} of {case}"
                );
            }
        }
    }

    #[test]
    fn examples_of_one_class_alone_have_no_auc() {
        let logits = Tensor::from_slice(&[1_f32, -1., 0.]).view([3, 1]);
        let labels = Tensor::from_slice(&[1_i64; 3]);
        let examples = Examples::new(Loss::BinaryCrossentropy, &logits, &labels, 2).unwrap();
        let error = Metric::Auc.measure(&examples).unwrap_err().to_string();
        assert!(
            error.starts_with("Metric::Auc, the examples: expected"),
            "{error}"
        );
    }

    #[test]
    fn a_metric_is_found_by_its_name() {
        for metric in [
            Metric::TopK(12),
            Metric::Auc,
            Metric::Precision,
            Metric::Recall,
            Metric::F1,
        ] {
            assert_eq!(Metric::named(&metric.to_string()), Some(metric));
        }
        for name in ["", "top_x_accuracy", "accuracy", "top_3"] {
            assert_eq!(Metric::named(name), None);
        }
    }

    #[test]
    fn as_many_classes_as_top_k_takes_have_to_be_there() {
        let sparse = Loss::SparseCategoricalCrossentropy;
        let check = |k, loss| Metric::TopK(k).check(loss, 3);
        assert!(check(3, sparse).is_ok());
        for (k, loss) in [
            (0, sparse),
            (4, sparse),
            (1, Loss::MultiLabelBinaryCrossentropy),
        ] {
            let error = check(k, loss).unwrap_err().to_string();
            assert!(error.ends_with(&format!("got {k}")), "{error}");
        }
    }
}
