//! # RMSprop
//!
//! T. Tieleman, G. Hinton, [Lecture 6.5](https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf),
//! 2012; as the tutorial's TensorFlow has it.

use tch::{TchError, Tensor};

use super::{Bounds, HyperParameter, Now, Optimizer, Rule};

/// RMSprop as `tf.keras.optimizers.RMSprop` of TensorFlow 2.0 computes it:
///
/// ```text
/// v = rho * v + (1 - rho) * gradient^2
/// w = w - learning_rate * gradient / (sqrt(v) + epsilon)
/// ```
///
/// So does PyTorch's, which calls `rho` `alpha` and has 0.99 by default. Keras 3 puts the epsilon inside the
/// root.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsProp {
    learning_rate: f64,
    rho: f64,
    epsilon: f64,
}

impl RmsProp {
    /// Returns an optimizer with Keras' `rho` 0.9 and `epsilon` 1e-7.
    #[must_use]
    pub fn new(learning_rate: f64) -> Self {
        Self {
            learning_rate,
            rho: 0.9,
            epsilon: 1e-7,
        }
    }
}

impl From<RmsProp> for Optimizer {
    fn from(rule: RmsProp) -> Self {
        Self::new(rule.learning_rate, rule)
    }
}

impl Rule for RmsProp {
    fn name(&self) -> &'static str {
        "RMSprop"
    }

    fn hyper_parameters(&self) -> Vec<HyperParameter> {
        vec![
            HyperParameter::new("rho", self.rho, Bounds::Share),
            HyperParameter::new("epsilon", self.epsilon, Bounds::Positive),
        ]
    }

    fn slots(&self) -> &'static [&'static str] {
        &["mean_square"]
    }

    fn change(
        &self,
        gradient: &Tensor,
        slots: &mut [Tensor],
        now: Now,
    ) -> Result<Tensor, TchError> {
        // v + (1 - rho) * (g^2 - v)
        let mean_square = slots[0].f_lerp_(&gradient.f_square()?, 1. - self.rho)?;
        let scale = mean_square.f_sqrt()?.f_add_scalar_(self.epsilon)?;
        gradient.f_div(&scale)?.f_mul_scalar_(now.learning_rate)
    }
}
