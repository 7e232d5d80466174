//! How often each class was taken for each other.

use std::collections::BTreeMap;
use std::fmt;

use crate::text::thousands;

/// As text, a matrix of more classes is the list of its most frequent mistakes.
const MAX_AS_TABLE: usize = 50;

/// How many examples of each class were predicted as each class.
///
/// As [scikit-learn's `confusion_matrix`](https://scikit-learn.org/stable/modules/generated/sklearn.metrics.confusion_matrix.html)
/// of all classes: a row is a label, a column a prediction. Only counts above 0 are stored, so that
/// its size is at most that of the predictions, however many classes there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfusionMatrix {
    classes: Vec<String>,
    /// By (label, predicted).
    counts: BTreeMap<(usize, usize), usize>,
}

impl ConfusionMatrix {
    /// Counts (label, predicted) pairs, which are indices into `classes`.
    pub(crate) fn new(
        classes: Vec<String>,
        pairs: impl IntoIterator<Item = (usize, usize)>,
    ) -> Self {
        let mut counts = BTreeMap::new();
        for pair in pairs {
            *counts.entry(pair).or_default() += 1;
        }
        Self { classes, counts }
    }

    /// Returns the names of the classes, in the order of the rows and of the columns.
    #[must_use]
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Returns how many examples of class `label` were predicted as class `predicted`.
    #[must_use]
    pub fn count(&self, label: usize, predicted: usize) -> usize {
        self.counts.get(&(label, predicted)).copied().unwrap_or(0)
    }

    /// Returns the counts above 0 as (label, predicted, count), row by row.
    pub fn counts(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        let counts = self.counts.iter();
        counts.map(|(&(label, predicted), &count)| (label, predicted, count))
    }

    /// Returns the `n` most frequent mistakes, the most frequent first, as (label, predicted,
    /// count): fastai's `most_confused`. Fewer where there are not so many kinds of mistakes.
    #[must_use]
    pub fn most_confused(&self, n: usize) -> Vec<(String, String, usize)> {
        let mistakes = self.counts();
        let mut mistakes: Vec<_> = mistakes
            .filter(|(label, predicted, _)| label != predicted)
            .collect();
        mistakes.sort_by_key(|&(_, _, count)| std::cmp::Reverse(count));
        let name = |class: usize| self.classes[class].clone();
        mistakes
            .into_iter()
            .take(n)
            .map(|(label, predicted, count)| (name(label), name(predicted), count))
            .collect()
    }
}

/// A table of up to 50 classes; of more, the most frequent mistakes.
impl fmt::Display for ConfusionMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const CORNER: &str = "label \\ predicted";
        let classes = self.classes.len();
        if classes > MAX_AS_TABLE {
            write!(
                f,
                "{} classes; the most frequent mistakes:",
                thousands(classes)
            )?;
            for (label, predicted, count) in self.most_confused(MAX_AS_TABLE) {
                write!(
                    f,
                    "\n{label} predicted as {predicted}: {}",
                    thousands(count)
                )?;
            }
            return Ok(());
        }
        let length = |text: &str| text.chars().count();
        let names = self.classes.iter().map(|name| length(name));
        let first = names.max().unwrap_or(0).max(length(CORNER));
        let digits = |label, predicted| self.count(label, predicted).to_string().len();
        let width = |column: usize| {
            let counts = (0..classes).map(|row| digits(row, column));
            counts.max().unwrap_or(0).max(length(&self.classes[column]))
        };
        let widths: Vec<usize> = (0..classes).map(width).collect();
        write!(f, "{CORNER:>first$}")?;
        for (name, width) in self.classes.iter().zip(&widths) {
            write!(f, "  {name:>width$}")?;
        }
        for (row, name) in self.classes.iter().enumerate() {
            write!(f, "\n{name:>first$}")?;
            for (column, width) in widths.iter().enumerate() {
                write!(f, "  {:>width$}", self.count(row, column))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::Value;

    use super::*;

    /// A case of `tests/reference/classification.py`: what scikit-learn makes of predictions.
    pub(in crate::analysis) struct Case {
        pub(in crate::analysis) matrix: ConfusionMatrix,
        pub(in crate::analysis) expected: Value,
    }

    pub(in crate::analysis) fn cases() -> Vec<Case> {
        let file = include_str!("../../tests/data/classification.json");
        let cases: Vec<Value> = serde_json::from_str(file).unwrap();
        let case = |expected: Value| {
            let indices = |key: &str| -> Vec<usize> {
                serde_json::from_value(expected[key].clone()).unwrap()
            };
            let classes = serde_json::from_value(expected["classes"].clone()).unwrap();
            let pairs = indices("labels").into_iter().zip(indices("predicted"));
            let matrix = ConfusionMatrix::new(classes, pairs);
            Case { matrix, expected }
        };
        cases.into_iter().map(case).collect()
    }

    #[test]
    fn counts_and_most_confused_are_those_of_scikit_learn_and_fastai() {
        let cases = cases();
        assert_eq!(cases.len(), 5);
        for Case { matrix, expected } in cases {
            let classes = matrix.classes().len();
            let row = |label| Vec::from_iter((0..classes).map(|class| matrix.count(label, class)));
            let rows = Vec::from_iter((0..classes).map(row));
            assert_eq!(serde_json::to_value(rows).unwrap(), expected["matrix"]);
            let confused = serde_json::to_value(matrix.most_confused(7)).unwrap();
            assert_eq!(confused, expected["most_confused"]);
        }
    }

    #[test]
    fn as_text_it_is_a_table_with_a_row_for_each_label() {
        let classes = ["cats", "small dogs"].map(str::to_owned).to_vec();
        let matrix = ConfusionMatrix::new(classes, [(0, 0), (0, 1), (1, 1), (0, 1)]);
        let table = "\
label \\ predicted  cats  small dogs
             cats     1           2
       small dogs     0           1";
        assert_eq!(matrix.to_string(), table);
    }

    #[test]
    fn ten_thousand_classes_take_no_more_room_than_their_examples() {
        let classes: Vec<String> = (0..10_000).map(|class| format!("c{class}")).collect();
        let pairs = [(3, 3), (9_999, 0), (9_999, 0), (5, 7)];
        let matrix = ConfusionMatrix::new(classes, pairs);
        let counts = [(3, 3, 1), (5, 7, 1), (9_999, 0, 2)];
        assert_eq!(Vec::from_iter(matrix.counts()), counts);
        let text = "\
10,000 classes; the most frequent mistakes:
c9999 predicted as c0: 2
c5 predicted as c7: 1";
        assert_eq!(matrix.to_string(), text);
    }
}
