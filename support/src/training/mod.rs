//! Training as Keras does it: compile, fit, evaluate, history. What is trained comes from
//! [`model`](crate::model), on what from [`pipeline`](crate::pipeline); figures are drawn elsewhere.

mod activations;
pub mod callbacks;
mod checkpoint;
mod early_stopping;
mod evaluation;
mod fine_tune;
mod fit;
mod frozen;
mod history;
mod learning_rate;
mod loss;
mod memory;
mod metrics;
mod optimizer;
mod options;
mod ranks;
mod record;
mod report;
mod row_file;
mod schedule;
mod state;
mod step;
mod store;
mod test_time;
#[cfg(test)]
mod tests;

pub use callbacks::WeightAverage;
pub use early_stopping::{EarlyStopping, Monitor};
pub use evaluation::Evaluation;
pub use fine_tune::FineTune;
pub use history::{EpochLog, History};
pub(crate) use learning_rate::LAST;
pub use learning_rate::{LearningRateFinder, LearningRates};
pub use loss::{Loss, Objective, balanced_class_weights};
pub(crate) use loss::{argmax, probabilities};
pub(crate) use metrics::share;
pub use metrics::{Metric, Scores};
pub use optimizer::{Adam, AdamW, Optimizer, OptimizerOptions, RmsProp, Sgd};
pub use options::Fit;
pub use schedule::{CosineDecay, OneCycle, ReduceOnPlateau, Schedule};
pub(crate) use test_time::Predictor;
pub use test_time::TestTimeAugmentation;

use state::TrainedWeights;
use tch::{Kind, Tensor};

use crate::model::Sequential;
use crate::{Error, Result};

/// What compiling adds to a [`Sequential`].
#[derive(Debug)]
pub struct Compiled {
    optimizer: Optimizer,
    objective: Objective,
    /// What is measured besides loss and accuracy.
    metrics: Vec<Metric>,
    /// How many steps were trained before the next one, from the first epoch on; what a
    /// [`Dropout`](crate::model::Dropout) drops depends on it.
    step: u64,
    /// The weights that training goes on from, while the model has their average.
    trained: Option<TrainedWeights>,
    /// The epochs of the last `fit`.
    history: History,
}

impl<C> Sequential<C> {
    /// Returns the model ready for training with an optimizer ([`RmsProp`], [`Sgd`], [`Adam`], [`AdamW`])
    /// and a [`Loss`], or an [`Objective`] made of one; accuracy is always measured,
    /// [other metrics](Sequential::metrics) on request. Compiling again starts with a new optimizer and keeps the
    /// weights. The optimizer's state begins anew, too, when variables are trained that it has none of.
    ///
    /// # Errors
    /// `Shape` names the first layer on top that does not take what the layers before it give.
    /// `Argument` when the loss or its options do not fit the number of outputs, the learning rate is not a
    /// positive number or another of the optimizer's is out of its bounds, a dropout's rate is not at least 0
    /// and less than 1, or there is no memory for a layer.
    pub fn compile(
        self,
        optimizer: impl Into<Optimizer>,
        loss: impl Into<Objective>,
    ) -> Result<Sequential<Compiled>> {
        let optimizer = optimizer.into();
        self.check_head()?;
        let objective = loss.into();
        objective.check(&self.output_shape())?;
        optimizer.check()?;
        Ok(self.with_compiled(Compiled {
            optimizer,
            objective,
            metrics: Vec::new(),
            step: 0,
            trained: None,
            history: History::default(),
        }))
    }
}

impl Sequential<Compiled> {
    /// Returns the epochs of the last [`fit`](Self::fit), as Keras' `model.history`: also of one that
    /// ended with an error, those before it. Those that it continued from a checkpoint are among them.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.compiled.history
    }
}

impl Compiled {
    /// Returns the loss that the model was compiled with.
    pub(crate) fn loss(&self) -> Loss {
        self.objective.loss()
    }

    /// Returns the optimizer that the model was compiled with.
    pub(crate) fn optimizer(&self) -> &Optimizer {
        &self.optimizer
    }

    /// Returns each example's loss for its logits `[N, units]` and labels.
    pub(crate) fn losses(&self, logits: &Tensor, labels: &Tensor) -> Result<Vec<f64>> {
        self.objective.check_labels(logits, labels)?;
        let losses = labels
            .f_to_device(logits.device())
            .and_then(|labels| {
                self.objective
                    .each(logits, &labels)?
                    .f_to_kind(Kind::Double)
            })
            .and_then(|losses| Vec::try_from(&losses));
        losses.map_err(Error::torch("loss"))
    }
}
