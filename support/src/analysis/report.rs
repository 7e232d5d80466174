//! Precision and recall, class by class.

use std::fmt;

use super::ConfusionMatrix;
pub use crate::training::Scores;
use crate::training::share;

/// Precision, recall and F1 of each class and on average.
///
/// The numbers and the text are those of
/// [scikit-learn's `classification_report`](https://scikit-learn.org/stable/modules/generated/sklearn.metrics.classification_report.html)
/// of all classes, those without an example included; `{:.4}` writes four digits instead of two.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Each class by name, in the order of the labels.
    pub classes: Vec<(String, Scores)>,
    /// Share of all examples that were predicted right.
    pub accuracy: f64,
    /// The mean over the classes.
    pub macro_average: Scores,
    /// The mean over the classes, each counted as often as it has examples.
    pub weighted_average: Scores,
}

impl Report {
    pub(super) fn new(matrix: &ConfusionMatrix) -> Self {
        let classes = matrix.classes().len();
        let (mut supports, mut predictions) = (vec![0; classes], vec![0; classes]);
        for (label, predicted, count) in matrix.counts() {
            supports[label] += count;
            predictions[predicted] += count;
        }
        let scores = |class: usize| {
            let right = matrix.count(class, class);
            Scores::new(right, predictions[class], supports[class])
        };
        let scores: Vec<Scores> = (0..classes).map(scores).collect();
        let support: usize = supports.iter().sum();
        let right: usize = (0..classes).map(|class| matrix.count(class, class)).sum();
        Self {
            accuracy: share(right as f64, support as f64),
            macro_average: Scores::mean(&scores, |_| 1.),
            weighted_average: Scores::mean(&scores, |scores| scores.support as f64),
            classes: matrix.classes().iter().cloned().zip(scores).collect(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const AVERAGES: [&str; 2] = ["macro avg", "weighted avg"];
        let digits = f.precision().unwrap_or(2);
        let names = self.classes.iter().map(|(name, _)| name.chars().count());
        let width = names.max().unwrap_or(0).max(AVERAGES[1].len()).max(digits);
        let row = |f: &mut fmt::Formatter<'_>, name: &str, scores: &Scores| {
            let Scores {
                precision,
                recall,
                f1,
                support,
            } = scores;
            write!(
                f,
                "\n{name:>width$}  {precision:>9.digits$} {recall:>9.digits$} {f1:>9.digits$} {support:>9}"
            )
        };
        writeln!(
            f,
            "{:>width$}  {:>9} {:>9} {:>9} {:>9}",
            "", "precision", "recall", "f1-score", "support"
        )?;
        for (name, scores) in &self.classes {
            row(f, name, scores)?;
        }
        let (accuracy, support) = (self.accuracy, self.macro_average.support);
        write!(
            f,
            "\n\n{:>width$}  {:>9} {:>9} {accuracy:>9.digits$} {support:>9}",
            "accuracy", "", ""
        )?;
        row(f, AVERAGES[0], &self.macro_average)?;
        row(f, AVERAGES[1], &self.weighted_average)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::confusion::tests::{Case, cases};
    use super::*;

    #[track_caller]
    fn assert_scores(actual: &Scores, expected: &Value) {
        let numbers = [actual.precision, actual.recall, actual.f1];
        for (number, key) in numbers.into_iter().zip(["precision", "recall", "f1-score"]) {
            let expected = expected[key].as_f64().unwrap();
            assert!(
                (number - expected).abs() < 1e-12,
                "{key} {number} for {expected}"
            );
        }
        assert_eq!(json!(actual.support as f64), expected["support"]);
    }

    #[test]
    fn scores_are_those_of_scikit_learn() {
        for Case { matrix, expected } in cases() {
            let (report, expected) = (Report::new(&matrix), &expected["report"]);
            for (name, scores) in &report.classes {
                assert_scores(scores, &expected[name]);
            }
            let accuracy = expected["accuracy"].as_f64().unwrap();
            assert!((report.accuracy - accuracy).abs() < 1e-12);
            assert_scores(&report.macro_average, &expected["macro avg"]);
            assert_scores(&report.weighted_average, &expected["weighted avg"]);
        }
    }

    #[test]
    fn its_text_is_scikit_learns() {
        for Case { matrix, expected } in cases() {
            let report = Report::new(&matrix);
            assert_eq!(report.to_string(), expected["text"].as_str().unwrap());
            let digits = expected["text of 4 digits"].as_str().unwrap();
            assert_eq!(format!("{report:.4}"), digits);
        }
    }

    #[test]
    fn without_an_example_all_is_zero() {
        let matrix = ConfusionMatrix::new(vec!["a".into(), "b".into()], []);
        let report = Report::new(&matrix);
        assert_eq!(report.accuracy, 0.);
        assert_eq!(report.weighted_average, Scores::default());
    }
}
