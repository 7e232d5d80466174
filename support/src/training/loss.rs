//! Losses and the accuracies that go with them.

use tch::{Kind, Reduction, TchError, Tensor};

use crate::Result;

/// What training minimizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Keras' `BinaryCrossentropy(from_logits=True)`: one logit per example, class 1 when it is
    /// above 0.
    BinaryCrossentropy,
}

impl Loss {
    /// Returns the shape of one example's output that the loss takes.
    #[must_use]
    pub fn output_shape(self) -> Vec<i64> {
        match self {
            Self::BinaryCrossentropy => vec![1],
        }
    }

    /// Returns the number of classes that the labels have.
    pub(super) fn classes(self) -> usize {
        match self {
            Self::BinaryCrossentropy => 2,
        }
    }

    /// Returns the mean loss, a scalar, of logits `[N, 1]` and class indices `[N]`.
    pub(super) fn mean(self, logits: &Tensor, labels: &Tensor) -> Result<Tensor, TchError> {
        match self {
            Self::BinaryCrossentropy => {
                let targets = labels.f_to_kind(Kind::Float)?.f_unsqueeze(1)?;
                let none = None::<&Tensor>;
                logits.f_binary_cross_entropy_with_logits(&targets, none, none, Reduction::Mean)
            }
        }
    }

    /// Returns how many of the `N` examples are classified right.
    pub(super) fn correct(self, logits: &Tensor, labels: &Tensor) -> Result<i64, TchError> {
        match self {
            Self::BinaryCrossentropy => {
                let predicted = logits.f_gt(0.)?.f_to_kind(Kind::Int64)?.f_squeeze_dim(1)?;
                predicted
                    .f_eq_tensor(labels)?
                    .f_sum(Kind::Int64)?
                    .f_int64_value(&[])
            }
        }
    }
}
