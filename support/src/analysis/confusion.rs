//! How often each class was taken for each other.

use std::fmt;

/// How many examples of each class were predicted as each class.
///
/// As [scikit-learn's `confusion_matrix`](https://scikit-learn.org/stable/modules/generated/sklearn.metrics.confusion_matrix.html)
/// of all classes: a row is a label, a column a prediction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfusionMatrix {
    classes: Vec<String>,
    counts: Vec<Vec<usize>>,
}

impl ConfusionMatrix {
    /// Counts (label, predicted) pairs, which are indices into `classes`.
    pub(crate) fn new(
        classes: Vec<String>,
        pairs: impl IntoIterator<Item = (usize, usize)>,
    ) -> Self {
        let mut counts = vec![vec![0; classes.len()]; classes.len()];
        for (label, predicted) in pairs {
            counts[label][predicted] += 1;
        }
        Self { classes, counts }
    }

    /// Returns the names of the classes, in the order of the rows and of the columns.
    #[must_use]
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Returns the counts: of the examples of class `i`, `counts()[i][j]` were predicted as `j`.
    #[must_use]
    pub fn counts(&self) -> &[Vec<usize>] {
        &self.counts
    }

    /// Returns the `n` most frequent mistakes, the most frequent first, as (label, predicted,
    /// count): fastai's `most_confused`. Fewer where there are not so many kinds of mistakes.
    #[must_use]
    pub fn most_confused(&self, n: usize) -> Vec<(String, String, usize)> {
        let mut mistakes: Vec<(usize, usize, usize)> = Vec::new();
        for (label, row) in self.counts.iter().enumerate() {
            for (predicted, &count) in row.iter().enumerate() {
                if label != predicted && count > 0 {
                    mistakes.push((label, predicted, count));
                }
            }
        }
        mistakes.sort_by_key(|&(_, _, count)| std::cmp::Reverse(count));
        let name = |class: usize| self.classes[class].clone();
        mistakes
            .into_iter()
            .take(n)
            .map(|(label, predicted, count)| (name(label), name(predicted), count))
            .collect()
    }
}

impl fmt::Display for ConfusionMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const CORNER: &str = "label \\ predicted";
        let length = |text: &str| text.chars().count();
        let names = self.classes.iter().map(|name| length(name));
        let first = names.max().unwrap_or(0).max(length(CORNER));
        let widths: Vec<usize> = (0..self.classes.len())
            .map(|column| {
                let counts = self.counts.iter().map(|row| row[column].to_string().len());
                counts.max().unwrap_or(0).max(length(&self.classes[column]))
            })
            .collect();
        write!(f, "{CORNER:>first$}")?;
        for (name, width) in self.classes.iter().zip(&widths) {
            write!(f, "  {name:>width$}")?;
        }
        for (name, row) in self.classes.iter().zip(&self.counts) {
            write!(f, "\n{name:>first$}")?;
            for (count, width) in row.iter().zip(&widths) {
                write!(f, "  {count:>width$}")?;
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
            let counts = serde_json::to_value(matrix.counts()).unwrap();
            assert_eq!(counts, expected["matrix"]);
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
}
