//! What training reports, epoch by epoch.

/// Loss and accuracy over one epoch, as Keras' `History` has them.
#[derive(Clone, Debug, PartialEq)]
pub struct EpochLog {
    /// Mean loss over the training examples, each measured before the step it takes part in.
    pub loss: f64,
    /// Share of training examples classified right, likewise.
    pub accuracy: f64,
    /// Mean loss over the validation examples after the epoch.
    pub val_loss: Option<f64>,
    /// Share of validation examples classified right after the epoch.
    pub val_accuracy: Option<f64>,
    /// Seconds that the epoch took, validation included.
    pub seconds: f64,
}

/// The epochs of one or several runs of [`fit`](crate::model::Sequential::fit), in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// One entry per epoch.
    pub epochs: Vec<EpochLog>,
}

impl History {
    /// Returns this run followed by another.
    #[must_use]
    pub fn then(&self, next: &Self) -> Self {
        Self {
            epochs: [&self.epochs[..], &next.epochs[..]].concat(),
        }
    }

    /// Returns the training accuracy of each epoch.
    #[must_use]
    pub fn accuracy(&self) -> Vec<f64> {
        self.epochs.iter().map(|epoch| epoch.accuracy).collect()
    }

    /// Returns the training loss of each epoch.
    #[must_use]
    pub fn loss(&self) -> Vec<f64> {
        self.epochs.iter().map(|epoch| epoch.loss).collect()
    }

    /// Returns the validation accuracy of each epoch that had one.
    #[must_use]
    pub fn val_accuracy(&self) -> Vec<f64> {
        self.epochs
            .iter()
            .filter_map(|epoch| epoch.val_accuracy)
            .collect()
    }

    /// Returns the validation loss of each epoch that had one.
    #[must_use]
    pub fn val_loss(&self) -> Vec<f64> {
        self.epochs
            .iter()
            .filter_map(|epoch| epoch.val_loss)
            .collect()
    }
}
