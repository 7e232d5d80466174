//! What training changes, as it was at one moment, to go back to.

use tch::Tensor;

use super::{Compiled, Optimizer};
use crate::distributed::ProcessGroup;
use crate::model::weights::Contents;
use crate::model::{Sequential, Variable};
use crate::{Error, Result};

/// The values of the trainable variables, in the model's order. Nothing but a training step changes
/// a value, and it changes these alone.
#[derive(Debug)]
pub(super) struct TrainedWeights(Vec<Tensor>);

impl TrainedWeights {
    /// Copies those of a model.
    pub(super) fn of(model: &Sequential<Compiled>) -> Result<Self> {
        let variables = model.trainable_variables().into_iter();
        let copies: Result<_, _> = variables
            // `detach_copy` alone does not detach.
            .map(|variable| variable.value().f_detach()?.f_detach_copy())
            .collect();
        copies
            .map(Self)
            .map_err(Error::torch("copying the weights"))
    }

    /// Takes those of a file's contents that a model trains.
    ///
    /// # Errors
    /// The name of one that is missing or of another shape.
    pub(super) fn in_file(
        model: &Sequential<Compiled>,
        mut contents: Contents,
    ) -> Result<Self, String> {
        let variables = model.trainable_variables().into_iter();
        let values = variables.map(|variable| {
            let name = variable.name();
            let found = contents.remove(name);
            let found = found.ok_or_else(|| format!("{name} is missing"))?;
            found.check(name, &variable.value().size())?;
            found.tensor().map_err(|error| error.to_string())
        });
        values.collect::<Result<_, _>>().map(Self)
    }

    /// Returns the values, with the names of the variables of a model, of which the same are trainable
    /// still.
    pub(super) fn named<'a>(
        &'a self,
        model: &'a Sequential<Compiled>,
    ) -> impl Iterator<Item = (&'a str, &'a Tensor)> {
        let variables = model.trainable_variables().into_iter();
        variables.map(Variable::name).zip(&self.0)
    }

    /// Moves the values towards those of a model: `decay * value + (1 - decay) * model's`.
    pub(super) fn average_with(&self, model: &Sequential<Compiled>, decay: f64) -> Result<()> {
        let variables = model.trainable_variables().into_iter();
        self.0
            .iter()
            .zip(variables)
            .try_for_each(|(value, variable)| {
                let to = variable.value().f_detach()?;
                value.shallow_clone().f_lerp_(&to, 1. - decay).map(drop)
            })
            .map_err(Error::torch("averaging the weights"))
    }

    /// Returns rank 0's.
    pub(super) fn broadcast(&self, group: &ProcessGroup) -> Result<Self> {
        let values = self.0.iter().map(|value| group.broadcast(value));
        values.collect::<Result<_>>().map(Self)
    }

    /// Gives the model, of which the same variables are trainable still, these values.
    pub(super) fn restore(&self, model: &mut Sequential<Compiled>) -> Result<()> {
        let variables = model.variables_mut();
        variables
            .filter(|variable| variable.is_trainable())
            .zip(&self.0)
            .try_for_each(|(variable, value)| variable.assign(value))
    }
}

/// All that a training step changes: the weights, the optimizer's state and the count of steps.
#[derive(Debug)]
pub(super) struct TrainingState {
    weights: TrainedWeights,
    optimizer: Optimizer,
    step: u64,
}

impl TrainingState {
    /// Copies a model's.
    pub(super) fn of(model: &Sequential<Compiled>) -> Result<Self> {
        Ok(Self {
            weights: TrainedWeights::of(model)?,
            optimizer: model.compiled.optimizer.copy()?,
            step: model.compiled.step,
        })
    }

    /// Returns whether no number in it is infinite or none.
    pub(super) fn is_finite(&self) -> Result<bool> {
        let state = self.optimizer.state().map(|(_, value)| value);
        let flags = self.weights.0.iter().chain(state);
        let flags = flags.map(|value| value.f_isfinite()?.f_all());
        // One question for all: a GPU is waited for.
        flags
            .collect::<Result<Vec<_>, _>>()
            .and_then(|flags| Tensor::f_stack(&flags, 0)?.f_all()?.f_int64_value(&[]))
            .map(|all| all != 0)
            .map_err(Error::torch("looking for weights that are not finite"))
    }

    /// Takes the model, of which the same variables are trainable still, back to it.
    pub(super) fn restore(self, model: &mut Sequential<Compiled>) -> Result<()> {
        self.weights.restore(model)?;
        model.compiled.optimizer = self.optimizer;
        model.compiled.step = self.step;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::training::ranks::tests::model;

    #[test]
    fn a_copy_keeps_nothing_of_the_weights_record_of_operations() {
        let weights = TrainedWeights::of(&model(0, 1e-4)).unwrap();
        assert!(!weights.0.is_empty());
        // A GPU's recording would begin with what had been recorded for this.
        assert!(weights.0.iter().all(|value| !value.requires_grad()));
    }
}
