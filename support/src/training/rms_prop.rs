//! The RMSprop of the tutorial's TensorFlow, with its state where it can be saved: tch's own
//! optimizers keep theirs out of reach.

use std::collections::BTreeMap;

use tch::{TchError, Tensor};

use crate::model::Variable;
use crate::{Error, Result};

/// RMSprop as `tf.keras.optimizers.RMSprop` of TensorFlow 2.0 computes it:
///
/// ```text
/// v = rho * v + (1 - rho) * gradient^2
/// w = w - learning_rate * gradient / (sqrt(v) + epsilon)
/// ```
///
/// Keras 3 puts the epsilon inside the root.
#[derive(Debug)]
pub struct RmsProp {
    learning_rate: f64,
    rho: f64,
    epsilon: f64,
    /// `v`, by variable.
    mean_squares: BTreeMap<String, Tensor>,
}

impl RmsProp {
    /// Returns an optimizer with Keras' `rho` 0.9 and `epsilon` 1e-7.
    #[must_use]
    pub fn new(learning_rate: f64) -> Self {
        Self {
            learning_rate,
            rho: 0.9,
            epsilon: 1e-7,
            mean_squares: BTreeMap::new(),
        }
    }

    /// Checks the hyper-parameters.
    pub(super) fn check(&self) -> Result<()> {
        if self.learning_rate.is_finite() && self.learning_rate > 0. {
            return Ok(());
        }
        Err(Error::Argument {
            name: "RmsProp, the learning rate",
            expected: "a positive number".into(),
            got: self.learning_rate.to_string(),
        })
    }

    /// Changes each variable by one step along its gradient.
    pub(super) fn step(&mut self, variables: &[&Variable], gradients: &[Tensor]) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        for (variable, gradient) in variables.iter().zip(gradients) {
            self.update(variable, gradient)
                .map_err(Error::torch(format!("updating {}", variable.name())))?;
        }
        Ok(())
    }

    fn update(&mut self, variable: &Variable, gradient: &Tensor) -> Result<(), TchError> {
        let square = gradient.f_square()?.f_mul_scalar(1. - self.rho)?;
        let mean_square = match self.mean_squares.get(variable.name()) {
            Some(mean_square) => mean_square.f_mul_scalar(self.rho)?.f_add(&square)?,
            None => square,
        };
        let scale = mean_square.f_sqrt()?.f_add_scalar(self.epsilon)?;
        let change = gradient.f_div(&scale)?.f_mul_scalar(self.learning_rate)?;
        let _updated = variable.value().shallow_clone().f_sub_(&change)?;
        self.mean_squares
            .insert(variable.name().into(), mean_square);
        Ok(())
    }
}
