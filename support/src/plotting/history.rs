//! The learning curves of a training history.

use super::{Curves, Figure, learning_curves};
use crate::Result;
use crate::training::History;

impl History {
    /// Draws accuracy and loss, in training and validation, by epoch.
    ///
    /// # Errors
    /// [`Error::Figure`](crate::Error::Figure) if there is no epoch.
    pub fn learning_curves(&self) -> Result<Figure> {
        self.draw(None)
    }

    /// Draws the same with a line where fine-tuning started, after `initial_epochs` epochs.
    ///
    /// # Errors
    /// As [`learning_curves`](Self::learning_curves).
    pub fn fine_tuning_curves(&self, initial_epochs: usize) -> Result<Figure> {
        self.draw(Some(initial_epochs))
    }

    fn draw(&self, start_fine_tuning: Option<usize>) -> Result<Figure> {
        let curves = Curves {
            accuracy: &self.accuracy(),
            val_accuracy: &self.val_accuracy(),
            loss: &self.loss(),
            val_loss: &self.val_loss(),
        };
        learning_curves(&curves, start_fine_tuning)
    }
}
