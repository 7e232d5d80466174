//! The learning curves of a training history.

use super::{Curves, Figure, learning_curves};
use crate::Result;
use crate::training::{EpochLog, History};

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
        // Epochs without a validation leave a gap.
        let validation = |value: fn(&EpochLog) -> Option<f64>| -> Vec<f64> {
            let values: Vec<Option<f64>> = self.epochs.iter().map(value).collect();
            match values.iter().any(Option::is_some) {
                true => values
                    .iter()
                    .map(|value| value.unwrap_or(f64::NAN))
                    .collect(),
                false => Vec::new(),
            }
        };
        let curves = Curves {
            accuracy: &self.accuracy(),
            val_accuracy: &validation(|epoch| epoch.val_accuracy),
            loss: &self.loss(),
            val_loss: &validation(|epoch| epoch.val_loss),
        };
        learning_curves(&curves, start_fine_tuning)
    }
}

#[cfg(test)]
mod tests {
    use super::super::curves::{ORANGE, tests::places};
    use super::*;

    #[test]
    fn a_validation_that_began_later_is_drawn_at_its_epochs() {
        let log = |val: Option<f64>| EpochLog {
            loss: 0.5,
            accuracy: 0.5,
            val_loss: val,
            val_accuracy: val,
            learning_rate: None,
            seconds: 1.,
        };
        let extent = |validated: [bool; 4]| {
            let epochs = validated.map(|validated| log(validated.then_some(0.9)));
            let history = History {
                epochs: epochs.into(),
            };
            let places = places(&history.learning_curves().unwrap(), ORANGE);
            let across = places.into_iter().map(|(x, _)| x);
            (across.clone().min(), across.max())
        };
        let (left, right) = extent([true; 4]);
        let (later_left, later_right) = extent([false, false, true, true]);
        assert_eq!(later_right, right);
        assert!(later_left.unwrap() > left.unwrap() + 300, "{later_left:?}");
        assert_eq!(extent([false; 4]), (None, None));
    }
}
