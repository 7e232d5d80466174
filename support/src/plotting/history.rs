//! The learning curves of a training history.

use super::curves::learning_rate_curve;
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

    /// Draws the learning rate of each epoch's last step, by epoch.
    ///
    /// # Errors
    /// [`Error::Figure`](crate::Error::Figure) if there is none.
    pub fn learning_rate_curve(&self) -> Result<Figure> {
        learning_rate_curve(&self.column(|epoch| epoch.learning_rate))
    }

    /// Returns a value of each epoch, not a number where an epoch has none; empty where all have none.
    fn column(&self, value: fn(&EpochLog) -> Option<f64>) -> Vec<f64> {
        let values: Vec<Option<f64>> = self.epochs.iter().map(value).collect();
        match values.iter().any(Option::is_some) {
            true => values
                .iter()
                .map(|value| value.unwrap_or(f64::NAN))
                .collect(),
            false => Vec::new(),
        }
    }

    fn draw(&self, start_fine_tuning: Option<usize>) -> Result<Figure> {
        let curves = Curves {
            accuracy: &self.accuracy(),
            val_accuracy: &self.column(|epoch| epoch.val_accuracy),
            loss: &self.loss(),
            val_loss: &self.column(|epoch| epoch.val_loss),
        };
        learning_curves(&curves, start_fine_tuning)
    }
}

#[cfg(test)]
mod tests {
    use super::super::curves::{BLUE, ORANGE, tests::places};
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

    #[test]
    fn a_falling_learning_rate_is_drawn_downwards_and_an_old_history_has_none() {
        let log = |learning_rate| EpochLog {
            loss: 0.5,
            accuracy: 0.5,
            val_loss: None,
            val_accuracy: None,
            learning_rate,
            seconds: 1.,
        };
        let history = |rates: &[Option<f64>]| History {
            epochs: rates.iter().copied().map(log).collect(),
        };
        let figure = history(&[None, Some(2e-5), Some(1e-5)]);
        let places = places(&figure.learning_rate_curve().unwrap(), BLUE);
        let first = places.iter().min_by_key(|(x, _)| *x).unwrap();
        let last = places.iter().max_by_key(|(x, _)| *x).unwrap();
        assert!(
            first.0 > 300 && last.0 > first.0 + 100,
            "{first:?} {last:?}"
        );
        assert!(last.1 > first.1 + 100, "{first:?} {last:?}");
        let error = history(&[None]).learning_rate_curve().unwrap_err();
        assert_eq!(
            error.to_string(),
            "figure: there is no learning rate to draw"
        );
    }
}
