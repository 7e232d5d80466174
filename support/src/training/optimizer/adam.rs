//! # Adam and AdamW
//!
//! D. P. Kingma, J. Ba, [Adam](https://arxiv.org/abs/1412.6980), 2014, algorithm 1; I. Loshchilov, F. Hutter,
//! [Decoupled Weight Decay Regularization](https://arxiv.org/abs/1711.05101), 2017. As PyTorch has them.

use tch::{TchError, Tensor};

use super::{Bounds, HyperParameter, Now, Optimizer, OptimizerOptions as _, Rule};

/// Adam as `torch.optim.Adam` computes it, `t` being the number of the step:
///
/// ```text
/// m = beta_1 * m + (1 - beta_1) * gradient
/// v = beta_2 * v + (1 - beta_2) * gradient^2
/// w = w - learning_rate * m / (1 - beta_1^t) / (sqrt(v / (1 - beta_2^t)) + epsilon)
/// ```
///
/// Keras' epsilon, 1e-7 by default, is that of the paper's shorter formula: it is divided by
/// `sqrt(1 - beta_2^t)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adam {
    learning_rate: f64,
    betas: [f64; 2],
    epsilon: f64,
}

/// [`Adam`] with weight decay apart from the gradient, as `torch.optim.AdamW` computes it: in each step
/// `learning_rate * weight_decay * w` is subtracted from `w` besides. fastai's default optimizer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW(Adam);

impl Adam {
    /// Returns an optimizer with the paper's betas, 0.9 and 0.999, and epsilon, 1e-8.
    #[must_use]
    pub fn new(learning_rate: f64) -> Self {
        Self {
            learning_rate,
            betas: [0.9, 0.999],
            epsilon: 1e-8,
        }
    }

    /// Chooses how much of the mean of the gradient, and of its square, is that of the step before: at
    /// least 0 and less than 1. fastai's are 0.9 and 0.99.
    #[must_use]
    pub fn betas(mut self, beta_1: f64, beta_2: f64) -> Self {
        self.betas = [beta_1, beta_2];
        self
    }

    /// Chooses what keeps the division from one by 0. fastai's is 1e-5.
    #[must_use]
    pub fn epsilon(mut self, epsilon: f64) -> Self {
        self.epsilon = epsilon;
        self
    }
}

impl AdamW {
    /// Returns an optimizer with [`Adam`]'s betas and epsilon and PyTorch's weight decay, 0.01, which
    /// [`weight_decay`](super::OptimizerOptions::weight_decay) changes.
    #[must_use]
    pub fn new(learning_rate: f64) -> Self {
        Self(Adam::new(learning_rate))
    }

    /// As [`Adam::betas`].
    #[must_use]
    pub fn betas(self, beta_1: f64, beta_2: f64) -> Self {
        Self(self.0.betas(beta_1, beta_2))
    }

    /// As [`Adam::epsilon`].
    #[must_use]
    pub fn epsilon(self, epsilon: f64) -> Self {
        Self(self.0.epsilon(epsilon))
    }
}

impl From<Adam> for Optimizer {
    fn from(rule: Adam) -> Self {
        Self::new(rule.learning_rate, rule)
    }
}

impl From<AdamW> for Optimizer {
    fn from(rule: AdamW) -> Self {
        Self::new(rule.0.learning_rate, rule).weight_decay(0.01)
    }
}

impl Rule for Adam {
    fn name(&self) -> &'static str {
        "Adam"
    }

    fn hyper_parameters(&self) -> Vec<HyperParameter> {
        vec![
            HyperParameter::new("beta_1", self.betas[0], Bounds::Share),
            HyperParameter::new("beta_2", self.betas[1], Bounds::Share),
            HyperParameter::new("epsilon", self.epsilon, Bounds::Positive),
        ]
    }

    fn slots(&self) -> &'static [&'static str] {
        &["momentum", "velocity"]
    }

    fn momentum(&self) -> Option<f64> {
        Some(self.betas[0])
    }

    fn change(
        &self,
        gradient: &Tensor,
        slots: &mut [Tensor],
        now: Now,
    ) -> Result<Tensor, TchError> {
        let [beta_1, beta_2] = [now.momentum, self.betas[1]];
        let [correction_1, correction_2] = [beta_1, beta_2].map(|beta| 1. - beta.powi(now.step));
        let velocity = slots[1].f_lerp_(&gradient.f_square()?, 1. - beta_2)?;
        let mut scale = velocity
            .f_sqrt()?
            .f_mul_scalar_(correction_2.sqrt().recip())?;
        let scale = scale.f_add_scalar_(self.epsilon)?;
        let mean = slots[0].f_lerp_(gradient, 1. - beta_1)?;
        mean.f_div(&scale)?
            .f_mul_scalar_(now.learning_rate / correction_1)
    }
}

impl Rule for AdamW {
    fn name(&self) -> &'static str {
        "AdamW"
    }

    fn hyper_parameters(&self) -> Vec<HyperParameter> {
        self.0.hyper_parameters()
    }

    fn slots(&self) -> &'static [&'static str] {
        self.0.slots()
    }

    fn momentum(&self) -> Option<f64> {
        self.0.momentum()
    }

    fn decouples_weight_decay(&self) -> bool {
        true
    }

    fn change(
        &self,
        gradient: &Tensor,
        slots: &mut [Tensor],
        now: Now,
    ) -> Result<Tensor, TchError> {
        self.0.change(gradient, slots, now)
    }
}
