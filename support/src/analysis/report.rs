//! Precision and recall, class by class.

use std::fmt;

pub use crate::training::Scores;

use crate::dataset::Label;
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
    /// Share of all examples that were predicted right; of several labels per image, exactly so.
    pub accuracy: f64,
    /// Over all answers together, whatever their class. With one label per image all three are the accuracy.
    pub micro_average: Scores,
    /// The mean over the classes.
    pub macro_average: Scores,
    /// The mean over the classes, each counted as often as it has examples.
    pub weighted_average: Scores,
    /// The mean over the examples, each with the shares of its own labels; where there are several per image.
    pub samples_average: Option<Scores>,
}

impl Report {
    /// Scores (label, predicted) pairs.
    pub(super) fn new<'a>(
        classes: &[String],
        pairs: impl Iterator<Item = (&'a Label, &'a Label)> + Clone,
        multi_label: bool,
    ) -> Self {
        let none = || vec![0; classes.len()];
        let (mut right, mut predictions, mut supports) = (none(), none(), none());
        let mut exact = 0;
        for (label, predicted) in pairs.clone() {
            for class in label.classes() {
                supports[class] += 1;
                right[class] += usize::from(predicted.has(class));
            }
            for class in predicted.classes() {
                predictions[class] += 1;
            }
            exact += usize::from(label == predicted);
        }
        let scores = |class: usize| Scores::new(right[class], predictions[class], supports[class]);
        let scores: Vec<Scores> = (0..classes.len()).map(scores).collect();
        let of_example = |(label, predicted): (&Label, &Label)| {
            let right = label.classes().filter(|&class| predicted.has(class));
            let [predictions, support] = [predicted, label].map(|it| it.classes().count());
            Scores::new(right.count(), predictions, support)
        };
        let [all_right, all_predictions, all] =
            [right, predictions, supports].map(|counts| counts.iter().sum());
        Self {
            accuracy: share(exact as f64, pairs.clone().count() as f64),
            micro_average: Scores::new(all_right, all_predictions, all),
            macro_average: Scores::mean(&scores, |_| 1.),
            weighted_average: Scores::mean(&scores, |scores| scores.support as f64),
            samples_average: multi_label
                .then(|| Scores::mean(&pairs.map(of_example).collect::<Vec<_>>(), |_| 1.)),
            classes: classes.iter().cloned().zip(scores).collect(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: &str = "weighted avg";
        let digits = f.precision().unwrap_or(2);
        let names = self.classes.iter().map(|(name, _)| name.chars().count());
        let width = names.max().unwrap_or(0).max(LONGEST.len()).max(digits);
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
        writeln!(f)?;
        if self.samples_average.is_some() {
            row(f, "micro avg", &self.micro_average)?;
        } else {
            let (accuracy, support) = (self.accuracy, self.macro_average.support);
            write!(
                f,
                "\n{:>width$}  {:>9} {:>9} {accuracy:>9.digits$} {support:>9}",
                "accuracy", "", ""
            )?;
        }
        row(f, "macro avg", &self.macro_average)?;
        row(f, LONGEST, &self.weighted_average)?;
        match &self.samples_average {
            Some(scores) => row(f, "samples avg", scores),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A case of `tests/reference/classification.py` or `multi_label.py`.
    struct Case {
        report: Report,
        expected: Value,
    }

    fn cases() -> Vec<Case> {
        let cases: Vec<Value> =
            serde_json::from_str(include_str!("../../tests/data/classification.json")).unwrap();
        let several: Vec<Value> =
            serde_json::from_str(include_str!("../../tests/data/multi_label.json")).unwrap();
        let case = |expected: Value, label: fn(&Value) -> Label| {
            let labels = |key: &str| -> Vec<Label> {
                expected[key]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(label)
                    .collect()
            };
            let classes: Vec<String> = serde_json::from_value(expected["classes"].clone()).unwrap();
            let (labels, predicted) = (labels("labels"), labels("predicted"));
            let multi_label = labels[0].is_multi_label();
            let report = Report::new(&classes, labels.iter().zip(&predicted), multi_label);
            Case { report, expected }
        };
        let class = |value: &Value| Label::Class(value.as_u64().unwrap() as usize);
        let classes = |value: &Value| -> Label {
            let classes = value.as_array().unwrap().iter();
            classes
                .map(|class| class.as_u64().unwrap() as usize)
                .collect()
        };
        let one = cases.into_iter().map(|expected| case(expected, class));
        let several = several.into_iter().map(|expected| case(expected, classes));
        one.chain(several).collect()
    }

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
        for Case { report, expected } in cases() {
            let expected = &expected["report"];
            for (name, scores) in &report.classes {
                assert_scores(scores, &expected[name]);
            }
            if let Some(samples) = &report.samples_average {
                assert_scores(samples, &expected["samples avg"]);
                assert_scores(&report.micro_average, &expected["micro avg"]);
            }
            let accuracy = expected["accuracy"].as_f64().unwrap();
            assert!((report.accuracy - accuracy).abs() < 1e-12);
            assert_scores(&report.macro_average, &expected["macro avg"]);
            assert_scores(&report.weighted_average, &expected["weighted avg"]);
        }
    }

    #[test]
    fn its_text_is_scikit_learns() {
        for Case { report, expected } in cases() {
            assert_eq!(report.to_string(), expected["text"].as_str().unwrap());
            let digits = expected["text of 4 digits"].as_str().unwrap();
            assert_eq!(format!("{report:.4}"), digits);
        }
    }

    #[test]
    fn without_an_example_all_is_zero() {
        let report = Report::new(&["a".into(), "b".into()], [].into_iter(), false);
        assert_eq!(report.accuracy, 0.);
        assert_eq!(report.weighted_average, Scores::default());
    }
}
