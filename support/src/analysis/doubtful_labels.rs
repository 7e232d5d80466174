//! Labels that are probably wrong.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use tch::Tensor;

use super::Features;
use super::probe::{LinearProbe, units};
use crate::files::write_whole;
use crate::live::Task;
use crate::pipeline::{Batches, Pixels};
use crate::text::thousands;
use crate::training::{Loss, argmax, probabilities};
use crate::{Error, Result};

/// Parts of the examples, each of which is predicted by a probe trained on the others.
const FOLDS: usize = 5;

/// Weaker than [`LinearProbe::C`]: wrong labels shall not be learned. Of 5 % wrong labels on photos of cats and dogs,
/// the first 8 % of the list then hold 99 %, with .01 98 %.
const C: f64 = 1e-3;

/// As cleanlab's: a probability may miss its threshold by so much.
const ROUNDING: f64 = 1e-6;

/// A label beside what features say about it.
#[derive(Clone, Debug, PartialEq)]
pub struct DoubtfulLabel {
    /// Which of the dataset's examples it is of.
    pub index: usize,
    /// The example's id.
    pub id: String,
    /// The label, an index into the classes.
    pub label: usize,
    /// The most probable class.
    pub suggested: usize,
    /// The probability of the label.
    pub label_probability: f64,
    /// The probability of the suggested class.
    pub probability: f64,
    /// Whether the example counts as one of another class than its label's.
    pub is_doubtful: bool,
}

/// The labels of a set of examples, the most doubtful first. Shows as a list of those that are doubtful.
#[derive(Clone, Debug)]
pub struct DoubtfulLabels {
    batches: Batches,
    /// Those that are doubtful stand before the others.
    ranked: Vec<DoubtfulLabel>,
    count: usize,
}

impl Features {
    /// Finds labels that are probably wrong, by confident learning ([Northcutt et al., 2021][paper]): a linear probe
    /// predicts each example from others, in five folds. Where the probability of another class reaches what that
    /// class' own examples have on average, and the label's is not the highest, the label is doubtful; those whose
    /// label is the least probable come first. As cleanlab's `find_label_issues(filter_by="confident_learning",
    /// return_indices_ranked_by="self_confidence")`.
    ///
    /// The features should be of a network that has not been trained on these labels, such as a pretrained base:
    /// one that has been may have learned them by heart.
    ///
    /// [paper]: https://arxiv.org/abs/1911.00068
    ///
    /// # Errors
    /// `Argument` when a class has only one example; `Stopped` by the notebook's Stop button.
    pub fn doubtful_labels(&self) -> Result<DoubtfulLabels> {
        let labels = Vec::<i64>::try_from(self.labels()).map_err(Error::torch("labels"))?;
        let labels: Vec<usize> = labels.into_iter().map(|label| label as usize).collect();
        let folds = self.folds(&labels)?;
        let predicted = self.cross_validated(&folds)?;
        let mut ranked: Vec<DoubtfulLabel> = judge(&labels, &predicted, self.classes().len());
        for label in &mut ranked {
            label.index = self.indices()[label.index];
            label.id = self.batches().dataset().examples()[label.index].id.clone();
        }
        Ok(DoubtfulLabels {
            batches: self.batches().clone(),
            count: ranked.iter().filter(|label| label.is_doubtful).count(),
            ranked,
        })
    }

    /// Deals the examples of each class to the folds in turn.
    fn folds(&self, labels: &[usize]) -> Result<Vec<usize>> {
        let mut counts = vec![0; self.classes().len()];
        let mut next = |&label: &usize| {
            counts[label] += 1;
            (counts[label] - 1) % FOLDS
        };
        let folds = labels.iter().map(&mut next).collect();
        match counts.iter().position(|&count| count == 1) {
            None => Ok(folds),
            Some(class) => Err(Error::Argument {
                name: "doubtful_labels, the examples",
                expected: "two or more of each class, as each is predicted from others".into(),
                got: format!("one of {}", self.classes()[class]),
            }),
        }
    }

    /// Returns each class' probability for each example, row by row.
    fn cross_validated(&self, folds: &[usize]) -> Result<Vec<f64>> {
        let classes = self.classes().len();
        let loss = Loss::of_classes(classes);
        let units = units(loss, classes)?;
        let mut predicted = vec![0.; classes * folds.len()];
        let mut task = Task::begin("doubtful labels", "fold", FOLDS);
        for fold in 0..FOLDS {
            let rows = |inside: bool| -> Vec<i64> {
                let rows = (0..).zip(folds);
                let rows = rows.filter(|&(_, &of)| (of == fold) == inside);
                rows.map(|(row, _)| row).collect()
            };
            let held_out = rows(true);
            if held_out.is_empty() {
                continue;
            }
            let select = |of: &Tensor, rows: &[i64]| {
                let selected = of.f_index_select(0, &Tensor::from_slice(rows));
                selected.map_err(Error::torch("doubtful labels"))
            };
            let others = rows(false);
            let (values, labels) = (
                select(self.values(), &others)?,
                select(self.labels(), &others)?,
            );
            let probe = LinearProbe::of(&values, &labels, loss, units, C)?;
            let logits = probe.logits(&select(self.values(), &held_out)?)?;
            let found = probabilities(loss, &logits)?;
            for (row, found) in held_out.into_iter().zip(found.chunks(classes)) {
                let row = row as usize * classes;
                predicted[row..row + classes].copy_from_slice(found);
            }
            task.done_with(fold + 1, || "linear probe".into())?;
        }
        Ok(predicted)
    }
}

/// Ranks labels, given the probabilities of all classes for each; `index` is the place in `labels`.
fn judge(labels: &[usize], predicted: &[f64], classes: usize) -> Vec<DoubtfulLabel> {
    // A class' threshold is the mean probability that its own examples have of it.
    let mut own = vec![(0., 0_usize); classes];
    for (&label, row) in labels.iter().zip(predicted.chunks(classes)) {
        own[label].0 += row[label];
        own[label].1 += 1;
    }
    let thresholds = own.into_iter().map(|(sum, count)| match count {
        0 => f64::INFINITY,
        _ => sum / count as f64 - ROUNDING,
    });
    let thresholds: Vec<f64> = thresholds.collect();
    let rows = labels.iter().zip(predicted.chunks(classes)).enumerate();
    let mut ranked: Vec<DoubtfulLabel> = rows
        .map(|(index, (&label, row))| {
            let suggested = argmax(row);
            let mut confident = (0..classes).filter(|&class| row[class] >= thresholds[class]);
            let counts_as = match (confident.next(), confident.next()) {
                (only, None) => only,
                _ => Some(suggested),
            };
            DoubtfulLabel {
                index,
                id: String::new(),
                label,
                suggested,
                label_probability: row[label],
                probability: row[suggested],
                is_doubtful: counts_as.is_some_and(|class| class != label)
                    && row[label] < row[suggested],
            }
        })
        .collect();
    ranked.sort_by(|a, b| {
        let doubtful_first = b.is_doubtful.cmp(&a.is_doubtful);
        doubtful_first.then(a.label_probability.total_cmp(&b.label_probability))
    });
    ranked
}

impl DoubtfulLabels {
    /// Returns the doubtful labels, the most doubtful first.
    #[must_use]
    pub fn examples(&self) -> &[DoubtfulLabel] {
        &self.ranked[..self.count]
    }

    /// Returns all labels, the doubtful ones first, then the others from the least probable on.
    #[must_use]
    pub fn ranked(&self) -> &[DoubtfulLabel] {
        &self.ranked
    }

    /// Returns the number of doubtful labels.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Returns whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns the names of the classes.
    #[must_use]
    pub fn classes(&self) -> &[String] {
        self.batches.classes()
    }

    /// Writes the doubtful labels as a CSV file with the columns `id`, `label` and `suggested`, for
    /// [`ImageDataset::relabel`](crate::dataset::ImageDataset::relabel), once the rows whose label is right were deleted.
    /// The file appears whole or not at all.
    ///
    /// # Errors
    /// `Io` when it cannot be written.
    pub fn save_csv(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let mut csv = csv::Writer::from_writer(Vec::new());
        // An example may be in the dataset several times.
        let mut seen = HashSet::new();
        let rows = self.examples().iter();
        let rows = rows.filter(|found| seen.insert(&found.id)).map(
            |DoubtfulLabel {
                 id,
                 label,
                 suggested,
                 ..
             }| {
                let [label, suggested] =
                    [label, suggested].map(|&class| self.classes()[class].as_str());
                [id, label, suggested]
            },
        );
        let written = [["id", "label", "suggested"]]
            .into_iter()
            .chain(rows)
            .try_for_each(|row| csv.write_record(row));
        let bytes = written.map_err(std::io::Error::other).and_then(|()| {
            let bytes = csv.into_inner();
            bytes.map_err(csv::IntoInnerError::into_error)
        });
        write_whole(path, &bytes.map_err(Error::io("write", path))?)
    }

    /// Reads the first `count` images of doubtful labels again, as they were made for the model.
    pub(crate) fn pictures(&self, count: usize) -> Result<Vec<(&DoubtfulLabel, Pixels)>> {
        let mut pictures = Vec::new();
        for label in self.examples().iter().take(count) {
            if let Some(pixels) = self.batches.load(label.index)? {
                pictures.push((label, pixels));
            }
        }
        Ok(pictures)
    }
}

impl fmt::Display for DoubtfulLabels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = thousands(self.ranked.len());
        write!(f, "{} of {all} labels are doubtful", thousands(self.count))?;
        for found in self.examples().iter().take(crate::text::LISTED) {
            let [label, suggested] =
                [found.label, found.suggested].map(|class| &self.classes()[class]);
            let percent = 100. * found.probability;
            write!(
                f,
                "\n{}: {label}, rather {suggested} ({percent:.1} %)",
                found.id
            )?;
        }
        match self.count.saturating_sub(crate::text::LISTED) {
            0 => Ok(()),
            more => write!(f, "\n… and {} more", thousands(more)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::reference::cases;
    use super::*;

    #[test]
    fn doubtful_labels_are_those_that_cleanlab_finds_in_its_order() {
        for case in cases("doubtful") {
            let labels: Vec<usize> = serde_json::from_value(case["labels"].clone()).unwrap();
            let rows: Vec<Vec<f64>> =
                serde_json::from_value(case["probabilities"].clone()).unwrap();
            let found = judge(&labels, &rows.concat(), rows[0].len());
            assert_eq!(found.len(), labels.len());
            let doubtful = found.iter().filter(|label| label.is_doubtful);
            let doubtful: Vec<usize> = doubtful.map(|label| label.index).collect();
            let expected: Vec<usize> = serde_json::from_value(case["issues"].clone()).unwrap();
            assert!(!expected.is_empty());
            assert_eq!(doubtful, expected);
        }
    }
}
