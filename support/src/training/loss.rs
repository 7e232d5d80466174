//! Losses, and the accuracies and probabilities that go with them.

use serde::{Deserialize, Serialize};
use tch::{Kind, Reduction, TchError, Tensor};

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
        }
    }

    /// Returns each class' probability, `[N, classes]`, in the precision of the logits: `[N, 1]` with
    /// [`BinaryCrossentropy`](Self::BinaryCrossentropy), else `[N, classes]`.
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
        };
        probabilities().map_err(Error::torch("probabilities"))
    }

    /// Returns the mean loss, a scalar, of logits `[N, outputs]` and class indices `[N]`.
    pub(super) fn mean(self, logits: &Tensor, labels: &Tensor) -> Result<Tensor, TchError> {
        self.reduced(logits, labels, Reduction::Mean)
    }

    /// Returns the loss of each of the `N` examples.
    pub(crate) fn each(self, logits: &Tensor, labels: &Tensor) -> Result<Tensor, TchError> {
        self.reduced(logits, labels, Reduction::None)?
            .f_reshape([-1])
    }

    fn reduced(
        self,
        logits: &Tensor,
        labels: &Tensor,
        reduction: Reduction,
    ) -> Result<Tensor, TchError> {
        let no_weights = None::<&Tensor>;
        match self {
            Self::BinaryCrossentropy => {
                // In 64 bits where the logits are: libtorch takes the targets' precision for the loss.
                let targets = labels.f_to_kind(logits.kind())?.f_unsqueeze(1)?;
                logits
                    .f_binary_cross_entropy_with_logits(&targets, no_weights, no_weights, reduction)
            }
            Self::SparseCategoricalCrossentropy => {
                // No label is left out, none smoothed.
                logits.f_cross_entropy_loss(labels, no_weights, reduction, -1, 0.)
            }
        }
    }

    /// Returns how many of the `N` examples are classified right, a scalar.
    pub(crate) fn correct(self, logits: &Tensor, labels: &Tensor) -> Result<Tensor, TchError> {
        let predicted = match self {
            Self::BinaryCrossentropy => {
                logits.f_gt(0.)?.f_to_kind(Kind::Int64)?.f_squeeze_dim(1)?
            }
            Self::SparseCategoricalCrossentropy => logits.f_argmax(1, false)?,
        };
        predicted.f_eq_tensor(labels)?.f_sum(Kind::Int64)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const LOSSES: [(Loss, &str); 2] = [
        (Loss::BinaryCrossentropy, "binary"),
        (Loss::SparseCategoricalCrossentropy, "sparse"),
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
        // Relative: a probability of 1e-20 has its digits too.
        let deviation = ((actual - expected) / expected).abs().max();
        assert!(deviation.double_value(&[]) < 1e-5, "{deviation}");
    }

    #[test]
    fn loss_gradient_accuracy_and_probabilities_equal_keras() {
        let reference = reference();
        for (loss, name) in LOSSES {
            let of = |part: &str| &reference[&format!("{name}/{part}")];
            let logits = of("logits").copy().set_requires_grad(true);
            let mean = loss.mean(&logits, of("labels")).unwrap();
            assert_close(&mean.detach(), of("loss"));
            let gradients = Tensor::run_backward(&[&mean], &[&logits], false, false);
            assert_close(&gradients[0], of("gradient"));
            let correct = loss.correct(&logits, of("labels")).unwrap();
            let accuracy = correct.int64_value(&[]) as f64 / logits.size()[0] as f64;
            assert!((accuracy - of("accuracy").double_value(&[])).abs() < 1e-6);
            assert!(accuracy > 0. && accuracy < 1., "{accuracy}");
            let probabilities = loss.probabilities(&logits.detach()).unwrap();
            assert_close(&probabilities, of("probabilities"));
        }
    }

    #[test]
    fn the_number_of_outputs_tells_the_number_of_classes() {
        let [binary, sparse] = LOSSES.map(|(loss, _)| loss);
        assert_eq!(binary.classes(&[1]).unwrap(), 2);
        assert_eq!(sparse.classes(&[2]).unwrap(), 2);
        assert_eq!(sparse.classes(&[1000]).unwrap(), 1000);
        for (loss, output) in [
            (binary, &[2][..]),
            (binary, &[]),
            (sparse, &[1]),
            (sparse, &[3, 5, 5]),
        ] {
            let error = loss.classes(output).unwrap_err().to_string();
            assert!(error.contains(&format!("{output:?}")), "{error}");
        }
    }

    #[test]
    fn logits_of_another_shape_have_no_probabilities() {
        for (loss, shape) in [
            (Loss::BinaryCrossentropy, &[4, 2][..]),
            (Loss::SparseCategoricalCrossentropy, &[4, 1]),
            (Loss::SparseCategoricalCrossentropy, &[4]),
        ] {
            let logits = Tensor::zeros(shape, (Kind::Float, tch::Device::Cpu));
            let error = loss.probabilities(&logits).unwrap_err();
            assert!(matches!(error, Error::Shape { .. }), "{error}");
        }
    }
}
