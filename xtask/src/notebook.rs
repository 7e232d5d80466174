//! What an executed notebook says: its accuracies, and whether its saved outputs are honest.

use std::fmt;
use std::path::Path;

use anyhow::Context as _;
use serde::Deserialize;

/// The tag of a cell whose text output is the same in every run, whatever the settings.
const DETERMINISTIC: &str = "deterministic";

/// A notebook, format 4, as far as it is needed here.
#[derive(Debug, Deserialize)]
pub(crate) struct Notebook {
    cells: Vec<Cell>,
}

#[derive(Debug, Deserialize)]
struct Cell {
    cell_type: String,
    source: Text,
    execution_count: Option<u32>,
    #[serde(default)]
    outputs: Vec<Output>,
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Debug, Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    tags: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "output_type", rename_all = "snake_case")]
enum Output {
    Stream { name: String, text: Text },
    ExecuteResult { data: Data },
    DisplayData { data: Data },
    Error { evalue: String },
}

#[derive(Debug, Deserialize)]
struct Data {
    #[serde(rename = "text/plain")]
    plain: Option<Text>,
}

/// Text as notebooks store it: whole or as a list of lines.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Text {
    Whole(String),
    Lines(Vec<String>),
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(text) => f.write_str(text),
            Self::Lines(lines) => lines.iter().try_for_each(|line| f.write_str(line)),
        }
    }
}

impl Cell {
    fn is_code(&self) -> bool {
        self.cell_type == "code" && !self.source.to_string().trim().is_empty()
    }

    fn is_deterministic(&self) -> bool {
        self.metadata.tags.iter().any(|tag| tag == DETERMINISTIC)
    }

    /// Returns what the cell printed and showed as plain text. stderr is left out: evcxr does not
    /// keep it in step with the cells.
    fn text(&self) -> String {
        let mut all = String::new();
        for output in &self.outputs {
            match output {
                Output::Stream { name, text } if name == "stdout" => {
                    all.push_str(&text.to_string())
                }
                Output::ExecuteResult { data } | Output::DisplayData { data } => {
                    if let Some(plain) = &data.plain {
                        all.push_str(&plain.to_string());
                    }
                }
                Output::Stream { .. } | Output::Error { .. } => {}
            }
        }
        all
    }

    /// Returns the cell's first line, to name it by.
    fn first_line(&self) -> String {
        self.source
            .to_string()
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned()
    }
}

impl Notebook {
    /// Reads a notebook file.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is not a notebook", path.display()))
    }

    fn code(&self) -> impl Iterator<Item = &Cell> {
        self.cells.iter().filter(|cell| cell.is_code())
    }

    /// Returns what is wrong with the saved outputs of a notebook that claims to have been run
    /// from top to bottom: a cell that was not run, was run out of order, or failed.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        let mut last = None;
        for cell in self.code() {
            let line = cell.first_line();
            match (cell.execution_count, last) {
                (None, _) => complaints.push(format!("was not run: {line}")),
                // evcxr counts from 2.
                (Some(count @ 3..), None) => {
                    complaints.push(format!("the first cell is numbered {count}: {line}"))
                }
                (Some(count), Some(last)) if count != last + 1 => {
                    complaints.push(format!(
                        "was run out of order ([{count}] follows [{last}]): {line}"
                    ));
                }
                _ => {}
            }
            last = cell.execution_count.or(last);
            for output in &cell.outputs {
                if let Output::Error { evalue } = output {
                    complaints.push(format!("failed with {evalue}: {line}"));
                }
            }
        }
        complaints
    }

    /// Returns how the deterministic cells of this notebook differ from those of a fresh run.
    pub(crate) fn differences(&self, fresh: &Self) -> Vec<String> {
        if self.code().count() != fresh.code().count() {
            return vec!["the fresh run has other cells".to_owned()];
        }
        let pairs = self
            .code()
            .zip(fresh.code())
            .filter(|(saved, _)| saved.is_deterministic());
        pairs
            .filter(|(saved, fresh)| saved.text() != fresh.text())
            .map(|(saved, fresh)| {
                let (line, saved, fresh) = (saved.first_line(), saved.text(), fresh.text());
                format!(
                    "{line}\n  saved: {}\n  fresh: {}",
                    saved.trim_end(),
                    fresh.trim_end()
                )
            })
            .collect()
    }

    /// Returns what all cells printed and showed as plain text.
    pub(crate) fn text(&self) -> String {
        self.code().map(Cell::text).collect()
    }

    /// Returns how many cells are marked as deterministic.
    pub(crate) fn deterministic(&self) -> usize {
        self.code().filter(|cell| cell.is_deterministic()).count()
    }

    /// Returns what each epoch reached, without the times.
    pub(crate) fn epochs(&self) -> Vec<String> {
        self.code().flat_map(|cell| epochs(&cell.text())).collect()
    }

    /// Returns where this notebook's code, or the order of its cells, is not that of another one.
    #[cfg(test)]
    fn other_code(&self, other: &Self) -> Vec<String> {
        let shape = |notebook: &Self| -> Vec<String> {
            let cells = notebook.cells.iter();
            cells
                .map(|cell| match cell.is_code() {
                    true => cell.source.to_string(),
                    false => cell.cell_type.clone(),
                })
                .collect()
        };
        let (these, others) = (shape(self), shape(other));
        let longest = these.len().max(others.len());
        (0..longest)
            .filter(|&index| these.get(index) != others.get(index))
            .map(|index| {
                format!(
                    "cell {index}: {:?}, {:?}",
                    these.get(index),
                    others.get(index)
                )
            })
            .collect()
    }

    /// Returns the last epoch of each cell that trains.
    pub(crate) fn training_results(&self) -> Vec<Epoch> {
        self.code()
            .filter_map(|cell| cell.text().lines().filter_map(Epoch::parse).next_back())
            .collect()
    }
}

/// Returns what each epoch in a program's output reached, without the times.
pub(crate) fn epochs(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| Epoch::parse(line).is_some());
    lines
        .filter_map(|line| Some(line[line.find("loss: ")?..].to_owned()))
        .collect()
}

/// The accuracies at the end of an epoch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Epoch {
    pub(crate) accuracy: f64,
    pub(crate) val_accuracy: Option<f64>,
}

impl Epoch {
    /// Reads a line such as
    /// `63/63 - 9s 150ms/step - loss: 0.16 - accuracy: 0.94 - val_loss: 0.15 - val_accuracy: 0.95`.
    fn parse(line: &str) -> Option<Self> {
        let (step, steps) = line.split(" - ").next()?.trim().split_once('/')?;
        if step.parse::<u32>().ok()? != steps.parse::<u32>().ok()? {
            return None;
        }
        let value = |name: &str| -> Option<f64> {
            line.split(" - ").find_map(|part| {
                part.trim()
                    .strip_prefix(name)?
                    .strip_prefix(": ")?
                    .parse()
                    .ok()
            })
        };
        Some(Self {
            accuracy: value("accuracy")?,
            val_accuracy: value("val_accuracy"),
        })
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "accuracy {:.4}", self.accuracy)?;
        match self.val_accuracy {
            Some(accuracy) => write!(f, ", validation accuracy {accuracy:.4}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn code(count: impl Into<Value>, source: &str, outputs: Value, tags: &[&str]) -> Value {
        json!({
            "cell_type": "code", "execution_count": count.into(), "source": source,
            "outputs": outputs, "metadata": {"tags": tags},
        })
    }

    fn printed(text: &str) -> Value {
        json!([{"output_type": "stream", "name": "stdout", "text": text}])
    }

    fn notebook(cells: &[Value]) -> Notebook {
        serde_json::from_value(json!({"cells": cells, "nbformat": 4})).unwrap()
    }

    #[test]
    fn the_chinese_notebook_has_the_same_code() {
        let read = |name: &str| {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../notebooks");
            Notebook::read(&folder.join(name)).unwrap()
        };
        let english = read("transfer_learning.ipynb");
        let chinese = read("transfer_learning.zh.ipynb");
        assert_eq!(chinese.other_code(&english), Vec::<String>::new());
        let other = [code(1, "let a = 1;", json!([]), &[])];
        assert!(!notebook(&other).other_code(&english).is_empty());
    }

    #[test]
    fn epochs_are_compared_without_their_times() {
        let line =
            "63/63 - 9s 150ms/step - 98 img/s - loss: 0.16 - accuracy: 0.94 - val_accuracy: 0.95";
        let text = format!("Epoch 1/1\n{line}\ninitial loss: 0.9 - accuracy: 0.5\n");
        let epoch = "loss: 0.16 - accuracy: 0.94 - val_accuracy: 0.95";
        assert_eq!(epochs(&text), [epoch]);
        assert_eq!(
            notebook(&[code(1, "fit", printed(&text), &[])]).epochs(),
            [epoch]
        );
    }

    #[test]
    fn a_notebook_run_from_top_to_bottom_gives_no_complaint() {
        for first in [1, 2] {
            let cells = [
                json!({"cell_type": "markdown", "source": ["# Title"], "metadata": {}}),
                code(first, "let a = 1;", json!([]), &[]),
                code(Value::Null, " \n", json!([]), &[]),
                code(first + 1, "a", printed("1\n"), &[]),
            ];
            assert_eq!(notebook(&cells).complaints(), Vec::<String>::new());
        }
    }

    #[test]
    fn cells_not_run_out_of_order_or_failed_are_named() {
        let error = json!([{"output_type": "error", "ename": "Error", "evalue": "mismatched types", "traceback": []}]);
        let cells = [
            code(5, "let a = 1;", json!([]), &[]),
            code(Value::Null, "let b = 2;", json!([]), &[]),
            code(8, "let c = 3;", error, &[]),
        ];
        assert_eq!(
            notebook(&cells).complaints(),
            [
                "the first cell is numbered 5: let a = 1;",
                "was not run: let b = 2;",
                "was run out of order ([8] follows [5]): let c = 3;",
                "failed with mismatched types: let c = 3;",
            ]
        );
    }

    #[test]
    fn only_deterministic_cells_are_compared_and_differences_show_both() {
        let saved = notebook(&[
            code(1, "count", printed("155\n"), &[DETERMINISTIC]),
            code(2, "time", printed("3 s\n"), &[]),
        ]);
        let fresh = notebook(&[
            code(1, "count", printed("154\n"), &[]),
            code(2, "time", printed("4 s\n"), &[]),
        ]);
        assert_eq!(saved.deterministic(), 1);
        assert_eq!(
            saved.differences(&fresh),
            ["count\n  saved: 155\n  fresh: 154"]
        );
        assert!(
            saved
                .differences(&notebook(&[]))
                .contains(&"the fresh run has other cells".to_owned())
        );
    }

    #[test]
    fn how_a_text_is_cut_into_outputs_and_lines_makes_no_difference() {
        let whole = json!([
            {"output_type": "stream", "name": "stdout", "text": "a\nb\n"},
            {"output_type": "execute_result", "data": {"text/plain": ["[2,\n", " 3]"], "image/png": "AAAA"}},
        ]);
        let pieces = json!([
            {"output_type": "stream", "name": "stdout", "text": ["a\n"]},
            {"output_type": "stream", "name": "stderr", "text": "noise"},
            {"output_type": "stream", "name": "stdout", "text": ["b\n"]},
            {"output_type": "display_data", "data": {"text/plain": "[2,\n 3]"}},
        ]);
        let saved = notebook(&[code(1, "x", whole, &[DETERMINISTIC])]);
        assert!(
            saved
                .differences(&notebook(&[code(1, "x", pieces, &[])]))
                .is_empty()
        );
    }

    #[test]
    fn each_training_cell_reports_its_last_epoch() {
        let epochs = "Epoch 1/2\n\
            63/63 - 9s 150ms/step - 213 img/s - loss: 0.4 - accuracy: 0.8001 - val_loss: 0.3 - val_accuracy: 0.8525\n\
            Epoch 2/2\n\
            63/63 - 9s 150ms/step - 213 img/s - loss: 0.1634 - accuracy: 0.9420 - val_loss: 0.152 - val_accuracy: 0.9530\n";
        let cells = [
            code(1, "fit", printed(epochs), &[]),
            code(2, "nothing", printed("1/2\naccuracy: 3\n"), &[]),
            code(
                3,
                "fit",
                printed("7/7 - 1s - loss: 0.1 - accuracy: 0.9700\n"),
                &[],
            ),
        ];
        let results = notebook(&cells).training_results();
        assert_eq!(
            results,
            [
                Epoch {
                    accuracy: 0.942,
                    val_accuracy: Some(0.953)
                },
                Epoch {
                    accuracy: 0.97,
                    val_accuracy: None
                },
            ]
        );
        assert_eq!(
            results[0].to_string(),
            "accuracy 0.9420, validation accuracy 0.9530"
        );
    }

    #[test]
    fn a_step_within_an_epoch_is_not_its_end() {
        assert_eq!(Epoch::parse("12/63 - loss: 0.4 - accuracy: 0.8"), None);
    }
}
