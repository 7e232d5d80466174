//! # Stochastic gradient descent
//!
//! I. Sutskever et al., [On the importance of initialization and momentum in deep
//! learning](https://proceedings.mlr.press/v28/sutskever13.html), 2013; as PyTorch has it.

use tch::{TchError, Tensor};

use super::{Bounds, HyperParameter, Now, Optimizer, Rule};

/// Stochastic gradient descent, with momentum or without, as `torch.optim.SGD` computes it:
///
/// ```text
/// m = momentum * m + gradient
/// w = w - learning_rate * m                            with Nesterov's: (gradient + momentum * m)
/// ```
///
/// Keras has the learning rate within `m`: the same as long as the rate is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    learning_rate: f64,
    momentum: f64,
    nesterov: bool,
}

impl Sgd {
    /// Returns an optimizer without momentum.
    #[must_use]
    pub fn new(learning_rate: f64) -> Self {
        Self {
            learning_rate,
            momentum: 0.,
            nesterov: false,
        }
    }

    /// Goes on in the direction of the steps before, of which each counts `momentum` times as much as the
    /// next one: at least 0 and less than 1.
    #[must_use]
    pub fn momentum(mut self, momentum: f64) -> Self {
        self.momentum = momentum;
        self
    }

    /// Takes Nesterov's momentum; without a momentum it changes nothing.
    #[must_use]
    pub fn nesterov(mut self) -> Self {
        self.nesterov = true;
        self
    }
}

impl From<Sgd> for Optimizer {
    fn from(rule: Sgd) -> Self {
        Self::new(rule.learning_rate, rule)
    }
}

impl Rule for Sgd {
    fn name(&self) -> &'static str {
        "SGD"
    }

    fn hyper_parameters(&self) -> Vec<HyperParameter> {
        vec![
            HyperParameter::new("momentum", self.momentum, Bounds::Share),
            // All are numbers: 1 for `true`.
            HyperParameter::new("nesterov", f64::from(self.nesterov), Bounds::NotNegative),
        ]
    }

    fn slots(&self) -> &'static [&'static str] {
        if self.momentum == 0. {
            &[]
        } else {
            &["momentum"]
        }
    }

    fn momentum(&self) -> Option<f64> {
        (self.momentum != 0.).then_some(self.momentum)
    }

    fn change(
        &self,
        gradient: &Tensor,
        slots: &mut [Tensor],
        now: Now,
    ) -> Result<Tensor, TchError> {
        let Some(buffer) = slots.first_mut() else {
            return gradient.f_mul_scalar(now.learning_rate);
        };
        let buffer = buffer.f_mul_scalar_(now.momentum)?.f_add_(gradient)?;
        if !self.nesterov {
            return buffer.f_mul_scalar(now.learning_rate);
        }
        let mut ahead = buffer.f_mul_scalar(now.momentum)?.f_add_(gradient)?;
        ahead.f_mul_scalar_(now.learning_rate)
    }
}
