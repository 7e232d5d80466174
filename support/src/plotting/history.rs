//! The learning curves of a training history.

use std::collections::BTreeSet;

use super::curves::metric_curve;
use super::{Curves, Figure, learning_curves};
use crate::text::listed;
use crate::training::History;
use crate::{Error, Result};

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
            val_accuracy: &self.values("val_accuracy"),
            loss: &self.loss(),
            val_loss: &self.values("val_loss"),
        };
        learning_curves(&curves, start_fine_tuning)
    }

    /// Draws one thing that was measured, in training and validation, by epoch: `loss`, `accuracy` or a
    /// [metric](crate::model::Sequential::metrics), such as `auc`.
    ///
    /// # Errors
    /// [`Error::Argument`] if nothing of that name was measured.
    pub fn curve(&self, name: &str) -> Result<Figure> {
        let training = self.values(name);
        let validation = self.values(&format!("val_{name}"));
        if training.is_empty() && validation.is_empty() {
            let epochs = self.epochs.iter();
            let names = epochs.flat_map(|epoch| epoch.values().map(|(name, _)| name));
            let names = names.filter(|name| !name.starts_with("val_"));
            let names: Vec<&str> = names.collect::<BTreeSet<_>>().into_iter().collect();
            return Err(Error::Argument {
                name: "History::curve, the name",
                expected: format!("one of {}", listed(&names)),
                got: name.to_owned(),
            });
        }
        metric_curve(name, &training, &validation)
    }

    /// Returns what was measured by epoch; epochs without it leave a gap, and if all are, it is empty.
    fn values(&self, name: &str) -> Vec<f64> {
        let values: Vec<_> = self.epochs.iter().map(|epoch| epoch.value(name)).collect();
        match values.iter().any(Option::is_some) {
            true => values
                .into_iter()
                .map(|value| value.unwrap_or(f64::NAN))
                .collect(),
            false => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::curves::{BLUE, ORANGE, tests::places};
    use super::*;
    use crate::training::EpochLog;

    #[test]
    fn any_metric_is_drawn_by_its_name() {
        let log = |value: f64| EpochLog {
            metrics: [("auc".into(), value), ("val_auc".into(), value - 0.2)].into(),
            ..EpochLog::default()
        };
        let epochs = vec![log(0.5), log(0.9)];
        let history = History { epochs };
        let figure = history.curve("auc").unwrap();
        let highest = |color| places(&figure, color).into_iter().map(|(_, y)| y).min();
        assert!(highest(BLUE).unwrap() + 40 < highest(ORANGE).unwrap());
        assert!(history.curve("loss").is_ok(), "it is measured always");
        let error = history.curve("f1_score").unwrap_err().to_string();
        assert!(
            error.contains("accuracy, auc") && error.ends_with("got f1_score"),
            "{error}"
        );
    }

    #[test]
    fn a_validation_that_began_later_is_drawn_at_its_epochs() {
        let log = |val: Option<f64>| EpochLog {
            loss: 0.5,
            accuracy: 0.5,
            val_loss: val,
            val_accuracy: val,
            ..EpochLog::default()
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
