//! The RMSprop of the tutorial's TensorFlow, with its state where it can be saved: tch's own
//! optimizers keep theirs out of reach.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde_json::Value;
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

    /// Returns one with the same state, which goes on by itself.
    pub(super) fn copy(&self) -> Result<Self> {
        let copy = |(name, value): (&String, &Tensor)| Ok((name.clone(), value.f_detach_copy()?));
        let mean_squares: Result<_, TchError> = self.mean_squares.iter().map(copy).collect();
        Ok(Self {
            mean_squares: mean_squares.map_err(Error::torch("copying the optimizer's state"))?,
            ..*self
        })
    }

    /// Goes on with another learning rate.
    pub(super) fn set_learning_rate(&mut self, learning_rate: f64) {
        self.learning_rate = learning_rate;
    }

    /// Returns the hyper-parameters, by name.
    pub(crate) fn describe(&self) -> [(String, Value); 3] {
        [
            ("learning rate".into(), self.learning_rate.into()),
            ("rho".into(), self.rho.into()),
            ("epsilon".into(), self.epsilon.into()),
        ]
    }

    /// Returns the state, by variable.
    pub(super) fn mean_squares(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        let pairs = self.mean_squares.iter();
        pairs.map(|(name, value)| (name.as_str(), value))
    }

    /// Replaces the state.
    pub(super) fn set_mean_squares(&mut self, mean_squares: BTreeMap<String, Tensor>) {
        self.mean_squares = mean_squares;
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
        let mut square = gradient.f_square()?;
        let mean_square = match self.mean_squares.entry(variable.name().into()) {
            Entry::Occupied(entry) => {
                let mean_square = entry.into_mut();
                // v + (1 - rho) * (g^2 - v)
                let _updated = mean_square.f_lerp_(&square, 1. - self.rho)?;
                mean_square
            }
            Entry::Vacant(entry) => entry.insert(square.f_mul_scalar_(1. - self.rho)?),
        };
        let scale = mean_square.f_sqrt()?.f_add_scalar_(self.epsilon)?;
        let mut change = gradient.f_div(&scale)?;
        let change = change.f_mul_scalar_(self.learning_rate)?;
        let _updated = variable.value().shallow_clone().f_sub_(&change)?;
        Ok(())
    }
}
