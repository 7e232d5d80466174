//! Losses, and the accuracies and probabilities that go with them.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Reduction, TchError, Tensor};

use crate::pipeline::Batches;
use crate::{Error, Result};

/// What training minimizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Keras' `BinaryCrossentropy(from_logits=True)`: one logit per example, class 1 when it is
    /// above 0.
    BinaryCrossentropy,
    /// Keras' `SparseCategoricalCrossentropy(from_logits=True)`: as many logits per example as
    /// there are classes, two or more, the class that of the largest.
    SparseCategoricalCrossentropy,
    /// For examples of any number of classes: a logit per class, of which an example is when it is above
    /// 0. Keras' `BinaryCrossentropy(from_logits=True)` of labels `[N, classes]`, the mean over the
    /// classes; PyTorch's `MultiLabelSoftMarginLoss`.
    MultiLabelBinaryCrossentropy,
}

impl Loss {
    /// Returns the number of classes that a model tells apart whose output for one example has the
    /// given shape.
    ///
    /// # Errors
    /// `Argument` when the loss takes another shape.
    pub fn classes(self, output: &[i64]) -> Result<usize> {
        match (self, output) {
            (Self::BinaryCrossentropy, [1]) => Ok(2),
            (Self::SparseCategoricalCrossentropy, &[classes]) if classes >= 2 => {
                Ok(classes as usize)
            }
            (Self::MultiLabelBinaryCrossentropy, &[classes]) if classes >= 1 => {
                Ok(classes as usize)
            }
            _ => Err(Error::Argument {
                name: "the model's output",
                expected: format!("{} for {self:?}", self.shape()),
                got: format!("{output:?}"),
            }),
        }
    }

    /// Returns the loss with the fewest logits for so many classes.
    pub(crate) fn of_classes(classes: usize) -> Self {
        match classes {
            2 => Self::BinaryCrossentropy,
            _ => Self::SparseCategoricalCrossentropy,
        }
    }

    /// Returns the shape of an example's output, in words.
    fn shape(self) -> &'static str {
        match self {
            Self::BinaryCrossentropy => "shape [1]",
            Self::SparseCategoricalCrossentropy => "shape [number of classes, 2 or more]",
            Self::MultiLabelBinaryCrossentropy => "shape [number of classes]",
        }
    }

    /// Returns whether an example can be of several classes, and of none: its labels are then a 0 or 1
    /// for each class, `[N, classes]` 32-bit floats, else its class' index, `[N]` 64-bit integers.
    #[must_use]
    pub fn is_multi_label(self) -> bool {
        matches!(self, Self::MultiLabelBinaryCrossentropy)
    }

    /// Returns each class' probability, `[N, classes]`, in the precision of the logits: `[N, 1]` with
    /// [`BinaryCrossentropy`](Self::BinaryCrossentropy), else `[N, classes]`. An example's add up to 1,
    /// but not where it [can be of several classes](Self::is_multi_label).
    ///
    /// # Errors
    /// `Shape` for logits of another shape.
    pub fn probabilities(self, logits: &Tensor) -> Result<Tensor> {
        let shape = logits.size();
        if shape.len() != 2 || self.classes(&shape[1..]).is_err() {
            return Err(Error::Shape {
                operation: format!("probabilities, {self:?}"),
                expected: match self {
                    Self::BinaryCrossentropy => "[N, 1]".into(),
                    Self::SparseCategoricalCrossentropy => "[N, classes], two or more".into(),
                    Self::MultiLabelBinaryCrossentropy => "[N, classes]".into(),
                },
                got: shape,
            });
        }
        let probabilities = || match self {
            Self::BinaryCrossentropy => {
                // Not 1 minus the other: that loses the digits of a small one.
                let not = logits.f_neg()?.f_sigmoid()?;
                Tensor::f_cat(&[not, logits.f_sigmoid()?], 1)
            }
            Self::SparseCategoricalCrossentropy => logits.f_softmax(1, None),
            Self::MultiLabelBinaryCrossentropy => logits.f_sigmoid(),
        };
        probabilities().map_err(Error::torch("probabilities"))
    }

    /// Returns how many of the `N` examples are classified right, a scalar; of several labels, the sum of
    /// the examples' shares of classes told right, as Keras' `binary_accuracy` counts.
    pub(crate) fn correct(self, logits: &Tensor, labels: &Tensor) -> Result<Tensor, TchError> {
        let above = || logits.f_gt(0.);
        match self {
            Self::BinaryCrossentropy => above()?
                .f_to_kind(Kind::Int64)?
                .f_squeeze_dim(1)?
                .f_eq_tensor(labels)?
                .f_sum(Kind::Int64),
            Self::SparseCategoricalCrossentropy => logits
                .f_argmax(1, false)?
                .f_eq_tensor(labels)?
                .f_sum(Kind::Int64),
            Self::MultiLabelBinaryCrossentropy => above()?
                .f_eq_tensor(&labels.f_gt(0.5)?)?
                .f_mean_dim(Some(&[1][..]), false, Kind::Float)?
                .f_sum(Kind::Float),
        }
    }

    /// Minimizes this loss of labels that are less than certain, as [`Objective::label_smoothing`].
    #[must_use]
    pub fn label_smoothing(self, smoothing: f64) -> Objective {
        Objective::from(self).label_smoothing(smoothing)
    }

    /// Minimizes this loss with classes that count differently, as [`Objective::class_weights`].
    #[must_use]
    pub fn class_weights(self, weights: &[f64]) -> Objective {
        Objective::from(self).class_weights(weights)
    }
}

/// A loss and what is made of it: what [`compile`](crate::model::Sequential::compile) takes.
///
/// Training, validation and evaluation all measure it, so that their losses can be compared. Keras leaves
/// class weights out of all but the training. The model's probabilities do not depend on it.
///
/// ```
/// # use support::prelude::*;
/// let objective = Loss::SparseCategoricalCrossentropy
///     .label_smoothing(0.1)
///     .class_weights(&[0.5, 2.0, 1.0]);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Objective {
    loss: Loss,
    options: LossOptions,
}

/// What an [`Objective`] adds to its loss, as it stands in a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct LossOptions {
    label_smoothing: f64,
    class_weights: Option<Vec<f64>>,
}

impl LossOptions {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl From<Loss> for Objective {
    fn from(loss: Loss) -> Self {
        Self {
            loss,
            options: LossOptions::default(),
        }
    }
}

impl Objective {
    /// Takes labels for less than certain, which keeps logits from growing without end: the right class
    /// counts as `1 - smoothing`, and `smoothing`, at least 0 and less than 1, is divided among all
    /// classes. Of one or several sigmoids, a label `y` becomes `y (1 - smoothing) + smoothing / 2`. As
    /// Keras' and PyTorch's `label_smoothing`; [Szegedy et al. 2015](https://arxiv.org/abs/1512.00567).
    #[must_use]
    pub fn label_smoothing(mut self, smoothing: f64) -> Self {
        self.options.label_smoothing = smoothing;
        self
    }

    /// Multiplies an example's loss by its class' weight: 0 or more, one for each class in the order of
    /// the labels. A batch's loss is the sum of these divided by the number of examples, as with Keras'
    /// `class_weight`; PyTorch's `weight` divides by the sum of the weights.
    /// [`balanced_class_weights`] makes up for classes of different sizes.
    ///
    /// Where an example can be of several classes, a class' weight multiplies its term of the loss for
    /// the examples that are of it, as PyTorch's `pos_weight`.
    #[must_use]
    pub fn class_weights(mut self, weights: &[f64]) -> Self {
        self.options.class_weights = Some(weights.to_vec());
        self
    }

    /// Returns the loss without options.
    #[must_use]
    pub fn loss(&self) -> Loss {
        self.loss
    }

    pub(super) fn options(&self) -> &LossOptions {
        &self.options
    }

    /// Checks that it fits a model's output for one example.
    pub(super) fn check(&self, output: &[i64]) -> Result<()> {
        let classes = self.loss.classes(output)?;
        let LossOptions {
            label_smoothing: smoothing,
            class_weights,
        } = &self.options;
        if !(0. ..1.).contains(smoothing) {
            return Err(Error::Argument {
                name: "compile, the label smoothing",
                expected: "at least 0 and less than 1".into(),
                got: smoothing.to_string(),
            });
        }
        let Some(weights) = class_weights else {
            return Ok(());
        };
        let are_weights = weights
            .iter()
            .all(|weight| weight.is_finite() && *weight >= 0.);
        if are_weights && weights.len() == classes && weights.iter().any(|weight| *weight > 0.) {
            return Ok(());
        }
        Err(Error::Argument {
            name: "compile, the class weights",
            expected: format!("{classes} numbers of 0 or more, not all of them 0"),
            got: format!("{weights:?}"),
        })
    }

    /// Checks that labels are such as the loss takes for logits `[N, outputs]`. libtorch would take others
    /// for something else.
    pub(super) fn check_labels(&self, logits: &Tensor, labels: &Tensor) -> Result<()> {
        let (outputs, got) = (logits.size(), labels.size());
        let is_multi_label = self.loss.is_multi_label();
        let shape = if is_multi_label {
            &outputs[..]
        } else {
            &outputs[..1]
        };
        if got == shape && (labels.kind() == Kind::Int64) != is_multi_label {
            return Ok(());
        }
        Err(Error::Shape {
            operation: format!("labels, {:?}", self.loss),
            expected: match is_multi_label {
                true => format!("{shape:?} of 0 and 1, for each class"),
                false => format!("{shape:?} of class indices, one for each example"),
            },
            got,
        })
    }

    /// Returns each example's loss, `[N]`, of logits `[N, outputs]` and labels that
    /// [fit](Self::check_labels). A batch's loss is their mean.
    pub(crate) fn each(&self, logits: &Tensor, labels: &Tensor) -> Result<Tensor, TchError> {
        let LossOptions {
            label_smoothing: smoothing,
            class_weights,
        } = &self.options;
        let weights = class_weights.as_ref().map(|weights| {
            let (kind, device) = (logits.kind(), logits.device());
            if device == Device::Cpu {
                return Tensor::f_from_slice(weights)?.f_to_kind(kind);
            }
            // Nothing is copied to a GPU while its work is recorded.
            let each = weights
                .iter()
                .map(|&weight| Tensor::f_full([1], weight, (kind, device)));
            Tensor::f_cat(&each.collect::<Result<Vec<_>, _>>()?, 0)
        });
        let weights = weights.transpose()?;
        let no_weights = None::<&Tensor>;
        let smoothed = |labels: Tensor| {
            let labels = labels.f_to_kind(logits.kind())?;
            match *smoothing {
                0. => Ok(labels),
                smoothing => labels
                    .f_mul_scalar(1. - smoothing)?
                    .f_add_scalar(smoothing / 2.),
            }
        };
        let each = match self.loss {
            Loss::BinaryCrossentropy => logits
                .f_binary_cross_entropy_with_logits(
                    &smoothed(labels.f_unsqueeze(1)?)?,
                    no_weights,
                    no_weights,
                    Reduction::None,
                )?
                .f_squeeze_dim(1)?,
            // No label is left out.
            Loss::SparseCategoricalCrossentropy => {
                logits.f_cross_entropy_loss(labels, no_weights, Reduction::None, -1, *smoothing)?
            }
            Loss::MultiLabelBinaryCrossentropy => {
                return logits
                    .f_binary_cross_entropy_with_logits(
                        &smoothed(labels.shallow_clone())?,
                        no_weights,
                        weights.as_ref(),
                        Reduction::None,
                    )?
                    .f_mean_dim(Some(&[1][..]), false, logits.kind());
            }
        };
        match weights {
            Some(weights) => each.f_mul(&weights.f_index_select(0, labels)?),
            None => Ok(each),
        }
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

/// Returns a weight for each class that makes up for how rare it is: `n / (classes * count)` of `n`
/// examples, `count` of which are of the class, those whose images cannot be read included. They are
/// [scikit-learn's "balanced"](https://scikit-learn.org/stable/modules/generated/sklearn.utils.class_weight.compute_class_weight.html)
/// ones, for [`Loss::class_weights`].
///
/// ```no_run
/// # use support::{prelude::*, training::balanced_class_weights};
/// # fn compile(model: Sequential, train_batches: &Batches) -> support::Result<()> {
/// let weights = balanced_class_weights(&train_batches)?;
/// let loss = Loss::SparseCategoricalCrossentropy.class_weights(&weights);
/// let model = model.compile(RmsProp::new(1e-4), loss)?;
/// # Ok(())
/// # }
/// ```
///
/// Where an example can be of several classes, a class' weight is how many times as many examples are not
/// of it as are: `(n - count) / count`, what PyTorch suggests for `pos_weight`.
///
/// # Errors
/// `Argument` when a class has no example, or a label no class.
pub fn balanced_class_weights(batches: &Batches) -> Result<Vec<f64>> {
    const NAME: &str = "balanced_class_weights, the batches";
    batches.check_labels(NAME)?;
    let mut counts = vec![0_usize; batches.classes().len()];
    for example in batches.dataset().examples() {
        example.label.classes().for_each(|class| counts[class] += 1);
    }
    if let Some(class) = counts.iter().position(|&count| count == 0) {
        return Err(Error::Argument {
            name: NAME,
            expected: "an example of each class".into(),
            got: format!("none of {}", batches.classes()[class]),
        });
    }
    let (examples, classes) = (batches.examples() as f64, counts.len() as f64);
    let weight = |count: usize| match batches.is_multi_label() {
        true => (examples - count as f64) / count as f64,
        false => examples / (classes * count as f64),
    };
    Ok(counts.into_iter().map(weight).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::dataset::{Example, Label};
    use crate::pipeline::{Dataset, Pixels};
    use crate::settings::BrokenImages;

    const LOSSES: [(Loss, &str); 3] = [
        (Loss::BinaryCrossentropy, "binary"),
        (Loss::SparseCategoricalCrossentropy, "sparse"),
        (Loss::MultiLabelBinaryCrossentropy, "multi"),
    ];

    /// The tensors of `tests/reference/losses.py`.
    fn reference() -> HashMap<String, Tensor> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/losses.safetensors");
        let tensors = Tensor::read_safetensors(path).unwrap();
        tensors.into_iter().collect()
    }

    #[track_caller]
    fn assert_close(actual: &Tensor, expected: &Tensor) {
        assert_eq!(actual.size(), expected.size());
        // Relative: a probability of 1e-20 has its digits too. A weight can be 0.
        let deviation = (actual - expected).abs() / expected.abs().clamp_min(1e-30);
        let deviation = deviation.max().double_value(&[]);
        assert!(deviation < 1e-4, "{deviation}: {actual} for {expected}");
    }

    fn numbers(tensor: &Tensor) -> Vec<f64> {
        Vec::try_from(&tensor.to_kind(Kind::Double)).unwrap()
    }

    #[test]
    fn losses_and_gradients_equal_keras_and_pytorch_smoothed_and_weighted_too() {
        let reference = reference();
        for (loss, name) in LOSSES {
            let of = |part: &str| &reference[&format!("{name}/{part}")];
            let smoothed = loss.label_smoothing(0.1);
            let weights = numbers(of("weights"));
            for (objective, prefix) in [
                (Objective::from(loss), ""),
                (smoothed.clone(), "smoothed "),
                (smoothed.class_weights(&weights), "weighted "),
            ] {
                let expected = |part: &str| &reference[&format!("{prefix}{name}/{part}")];
                let logits = of("logits").copy().set_requires_grad(true);
                objective.check(&logits.size()[1..]).unwrap();
                objective.check_labels(&logits, of("labels")).unwrap();
                let each = objective.each(&logits, of("labels")).unwrap();
                // As a whole: libtorch's loss of a logit of 40 is 0, and not 1e-18.
                assert_close(&(each.detach() + 1.), &(expected("each") + 1.));
                let mean = each.mean(None);
                assert_close(&mean.detach(), expected("loss"));
                let gradients = Tensor::run_backward(&[&mean], &[&logits], false, false);
                assert_close(&gradients[0], expected("gradient"));
            }
        }
    }

    #[test]
    fn accuracy_and_probabilities_equal_keras() {
        let reference = reference();
        for (loss, name) in LOSSES {
            let of = |part: &str| &reference[&format!("{name}/{part}")];
            let logits = of("logits");
            let correct = loss.correct(logits, of("labels")).unwrap();
            let accuracy = correct.double_value(&[]) / logits.size()[0] as f64;
            assert!((accuracy - of("accuracy").double_value(&[])).abs() < 1e-6);
            assert!(accuracy > 0. && accuracy < 1., "{accuracy}");
            let probabilities = loss.probabilities(logits).unwrap();
            assert_close(&probabilities, of("probabilities"));
        }
    }

    fn batches(labels: impl IntoIterator<Item = impl Into<Label>>, classes: usize) -> Batches {
        let classes = (0..classes).map(|class| format!("c{class}")).collect();
        let example = |label| Example::at_path(String::new(), label, "x".as_ref());
        let examples = labels.into_iter().map(example).collect();
        let dataset = Dataset::new(examples, classes, 0, BrokenImages::Stop);
        dataset.map(|image| Pixels::from(image)).batch(2)
    }

    #[test]
    fn balanced_class_weights_equal_scikit_learns() {
        let reference = reference();
        let labels = numbers(&reference["sparse/labels"]);
        let labels = labels.into_iter().map(|label| label as usize);
        let weights = balanced_class_weights(&batches(labels, 5)).unwrap();
        assert_close(
            &Tensor::from_slice(&weights).to_kind(Kind::Float),
            &reference["balanced"],
        );
        let error = balanced_class_weights(&batches([0, 2, 2], 3)).unwrap_err();
        assert!(error.to_string().ends_with("got none of c1"), "{error}");
        let several = [vec![0, 1], vec![0], vec![], vec![0]];
        let several = several.map(Label::from_iter);
        let weights = balanced_class_weights(&batches(several, 2)).unwrap();
        assert_eq!(weights, [1. / 3., 3.]);
    }

    #[test]
    fn the_number_of_outputs_tells_the_number_of_classes() {
        let [binary, sparse, multi] = LOSSES.map(|(loss, _)| loss);
        assert_eq!(binary.classes(&[1]).unwrap(), 2);
        assert_eq!(sparse.classes(&[2]).unwrap(), 2);
        assert_eq!(sparse.classes(&[1000]).unwrap(), 1000);
        assert_eq!(multi.classes(&[1]).unwrap(), 1);
        for (loss, output) in [
            (binary, &[2][..]),
            (binary, &[]),
            (sparse, &[1]),
            (sparse, &[3, 5, 5]),
            (multi, &[0]),
        ] {
            let error = loss.classes(output).unwrap_err().to_string();
            assert!(error.contains(&format!("{output:?}")), "{error}");
        }
    }

    #[test]
    fn options_that_make_no_sense_are_refused() {
        let [binary, sparse, _] = LOSSES.map(|(loss, _)| loss);
        for (objective, output, got) in [
            (binary.label_smoothing(-0.1), 1, "got -0.1"),
            (binary.label_smoothing(1.), 1, "got 1"),
            (sparse.label_smoothing(f64::NAN), 3, "got NaN"),
            (binary.class_weights(&[1.]), 1, "2 numbers of 0 or more"),
            (sparse.class_weights(&[1., 2.]), 3, "got [1.0, 2.0]"),
            (sparse.class_weights(&[1., -1., 1.]), 3, "got [1.0, -1.0"),
            (sparse.class_weights(&[0.; 3]), 3, "not all of them 0"),
        ] {
            let error = objective.check(&[output]).unwrap_err().to_string();
            assert!(error.contains(got), "{error}");
        }
    }

    #[test]
    fn labels_of_another_kind_than_the_loss_takes_are_refused() {
        let [binary, sparse, multi] = LOSSES.map(|(loss, _)| loss);
        let tensor = |shape: &[i64], kind| Tensor::zeros(shape, (kind, Device::Cpu));
        for (loss, outputs, labels) in [
            // libtorch would take these for probabilities.
            (sparse, 3, tensor(&[4, 3], Kind::Float)),
            (sparse, 3, tensor(&[5], Kind::Int64)),
            (binary, 1, tensor(&[4, 1], Kind::Float)),
            (multi, 4, tensor(&[4], Kind::Int64)),
            (multi, 4, tensor(&[4, 4], Kind::Int64)),
        ] {
            let logits = tensor(&[4, outputs], Kind::Float);
            let error = Objective::from(loss).check_labels(&logits, &labels);
            let error = error.unwrap_err();
            assert!(matches!(error, Error::Shape { .. }), "{error}");
        }
    }

    #[test]
    fn logits_of_another_shape_have_no_probabilities() {
        for (loss, shape) in [
            (Loss::BinaryCrossentropy, &[4, 2][..]),
            (Loss::SparseCategoricalCrossentropy, &[4, 1]),
            (Loss::SparseCategoricalCrossentropy, &[4]),
            (Loss::MultiLabelBinaryCrossentropy, &[4]),
        ] {
            let logits = Tensor::zeros(shape, (Kind::Float, Device::Cpu));
            let error = loss.probabilities(&logits).unwrap_err();
            assert!(matches!(error, Error::Shape { .. }), "{error}");
        }
    }
}
