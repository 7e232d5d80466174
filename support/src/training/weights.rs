//! The trained variables as they were at one moment, to go back to.

use tch::Tensor;

use super::Compiled;
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

    /// Gives them back to the model, of which the same variables are trainable still.
    pub(super) fn give(&self, model: &mut Sequential<Compiled>) -> Result<()> {
        let variables = model.variables_mut();
        variables
            .filter(|variable| variable.is_trainable())
            .zip(&self.0)
            .try_for_each(|(variable, value)| variable.assign(value))
    }
}
