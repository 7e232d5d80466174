//! The RMSprop of the tutorial's TensorFlow, with its state where it can be saved: tch's own
//! optimizers keep theirs out of reach.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
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
    /// The names of the variables of the last step, and their mean squares in one tensor.
    flat: Option<(Vec<String>, Tensor)>,
}

/// An optimizer and its hyper-parameters, as they stand in a checkpoint, by Keras' name.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", deny_unknown_fields)]
pub(super) enum OptimizerConfig {
    #[serde(rename = "RMSprop")]
    RmsProp {
        learning_rate: f64,
        rho: f64,
        epsilon: f64,
    },
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
            flat: None,
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
            flat: None,
            ..*self
        })
    }

    /// Goes on with another learning rate.
    pub(super) fn set_learning_rate(&mut self, learning_rate: f64) {
        self.learning_rate = learning_rate;
    }

    pub(super) fn learning_rate(&self) -> f64 {
        self.learning_rate
    }

    /// Returns what a file says of it.
    pub(super) fn config(&self) -> OptimizerConfig {
        let &Self {
            learning_rate,
            rho,
            epsilon,
            ..
        } = self;
        OptimizerConfig::RmsProp {
            learning_rate,
            rho,
            epsilon,
        }
    }

    /// Returns Keras' name of the optimizer and its hyper-parameters, by name.
    pub(crate) fn describe(&self) -> (&'static str, BTreeMap<String, f64>) {
        let hyper_parameters = [
            ("learning_rate", self.learning_rate),
            ("rho", self.rho),
            ("epsilon", self.epsilon),
        ];
        let named = hyper_parameters.map(|(name, value)| (name.to_owned(), value));
        ("RMSprop", named.into())
    }

    /// Returns the state, by variable.
    pub(super) fn mean_squares(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        let pairs = self.mean_squares.iter();
        pairs.map(|(name, value)| (name.as_str(), value))
    }

    /// Replaces the state.
    pub(super) fn set_mean_squares(&mut self, mean_squares: BTreeMap<String, Tensor>) {
        self.mean_squares = mean_squares;
        self.flat = None;
    }

    /// Changes each variable by one step along its gradient; `gradient` has one variable's after the
    /// other's.
    pub(super) fn step(&mut self, variables: &[&Variable], gradient: &Tensor) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        self.update(variables, gradient)
            .map_err(Error::torch("updating the variables"))
    }

    fn update(&mut self, variables: &[&Variable], gradient: &Tensor) -> Result<(), TchError> {
        let mut mean_square = self.flat_mean_squares(variables)?;
        // v + (1 - rho) * (g^2 - v)
        let _updated = mean_square.f_lerp_(&gradient.f_square()?, 1. - self.rho)?;
        let scale = mean_square.f_sqrt()?.f_add_scalar_(self.epsilon)?;
        let change = gradient.f_div(&scale)?.f_mul_scalar_(self.learning_rate)?;
        for (variable, change) in variables.iter().zip(unflatten(&change, variables)) {
            let _updated = variable.value().shallow_clone().f_sub_(&change?)?;
        }
        Ok(())
    }

    /// Returns the state of these variables in one tensor, of which `mean_squares` then holds parts:
    /// one operation for all is quicker than many small ones, on a GPU above all.
    fn flat_mean_squares(&mut self, variables: &[&Variable]) -> Result<Tensor, TchError> {
        if let Some((names, flat)) = &self.flat
            && names
                .iter()
                .eq(variables.iter().map(|variable| variable.name()))
        {
            return Ok(flat.shallow_clone());
        }
        let values = variables.iter().map(|variable| {
            let known = self.mean_squares.get(variable.name());
            known.map_or_else(
                || variable.value().detach().f_zeros_like(),
                |known| Ok(known.shallow_clone()),
            )
        });
        let flat = flatten(&values.collect::<Result<Vec<_>, _>>()?)?;
        let names: Vec<String> = variables.iter().map(|v| v.name().to_owned()).collect();
        for (name, part) in names.iter().zip(unflatten(&flat, variables)) {
            self.mean_squares.insert(name.clone(), part?);
        }
        self.flat = Some((names, flat.shallow_clone()));
        Ok(flat)
    }
}

/// Returns all values, one tensor's after the other's.
pub(super) fn flatten(tensors: &[Tensor]) -> Result<Tensor, TchError> {
    let flat: Result<Vec<_>, _> = tensors.iter().map(|part| part.f_reshape([-1])).collect();
    Tensor::f_cat(&flat?, 0)
}

/// Returns the parts of a flat tensor, each in the shape of its variable.
fn unflatten<'a>(
    flat: &'a Tensor,
    variables: &'a [&Variable],
) -> impl Iterator<Item = Result<Tensor, TchError>> + 'a {
    let mut start = 0;
    variables.iter().map(move |variable| {
        let shape = variable.value().size();
        let length = shape.iter().product();
        let part = flat.f_narrow(0, start, length)?.f_view(&shape[..]);
        start += length;
        part
    })
}
