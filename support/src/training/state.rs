//! What training changes, as it was at one moment, to go back to.

use tch::Tensor;

use super::{Compiled, Optimizer};
use crate::distributed::ProcessGroup;
use crate::model::Sequential;
use crate::model::weights::Contents;
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
            .map(|variable| variable.value().f_detach_copy())
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
