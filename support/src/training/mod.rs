//! Training as Keras does it: compile, fit, evaluate, history. What is trained comes from
//! [`model`](crate::model), on what from [`pipeline`](crate::pipeline); figures are drawn elsewhere.

mod activations;
mod callbacks;
mod checkpoint;
mod early_stopping;
mod evaluation;
mod fit;
mod frozen;
mod history;
mod learning_rate;
mod loss;
mod memory;
mod options;
mod ranks;
mod record;
mod report;
mod rms_prop;
mod row_file;
mod state;
mod step;
mod store;
mod test_time;

pub use early_stopping::{EarlyStopping, Monitor};
pub use evaluation::Evaluation;
pub use history::{EpochLog, History};
pub(crate) use learning_rate::LAST;
pub use learning_rate::{LearningRateFinder, LearningRates};
pub use loss::Loss;
pub use options::Fit;
pub use rms_prop::RmsProp;
pub(crate) use test_time::Predictor;
pub use test_time::TestTimeAugmentation;

use tch::{Kind, Tensor};

use crate::model::Sequential;
use crate::{Error, Result};

/// What compiling adds to a [`Sequential`].
#[derive(Debug)]
pub struct Compiled {
    optimizer: RmsProp,
    loss: Loss,
    /// How many steps were trained before the next one, from the first epoch on; what a
    /// [`Dropout`](crate::model::Dropout) drops depends on it.
    step: u64,
    /// The epochs of the last `fit`.
    history: History,
}

impl<C> Sequential<C> {
    /// Returns the model ready for training with an optimizer and a loss; accuracy is always
    /// measured. Compiling again starts with a new optimizer and keeps the weights.
    ///
    /// # Errors
    /// `Shape` names the first layer on top that does not take what the layers before it give.
    /// `Argument` when the loss does not fit the number of outputs, the learning rate is not a
    /// positive number, a dropout's rate is not at least 0 and less than 1, or there is no memory for
    /// a layer.
    pub fn compile(self, optimizer: RmsProp, loss: Loss) -> Result<Sequential<Compiled>> {
        self.check_head()?;
        loss.classes(&self.output_shape())?;
        optimizer.check()?;
        Ok(self.with_compiled(Compiled {
            optimizer,
            loss,
            step: 0,
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
        self.loss
    }

    /// Returns the optimizer that the model was compiled with.
    pub(crate) fn optimizer(&self) -> &RmsProp {
        &self.optimizer
    }

    /// Returns each example's loss for its logits `[N, units]` and class index `[N]`.
    pub(crate) fn losses(&self, logits: &Tensor, labels: &Tensor) -> Result<Vec<f64>> {
        let losses = labels
            .f_to_device(logits.device())
            .and_then(|labels| self.loss.each(logits, &labels)?.f_to_kind(Kind::Double))
            .and_then(|losses| Vec::try_from(&losses));
        losses.map_err(Error::torch("loss"))
    }
}
