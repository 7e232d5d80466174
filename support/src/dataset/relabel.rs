//! Corrected labels.

use std::collections::HashMap;
use std::path::Path;

use super::listed::{open_csv, unfit};
use super::{ImageDataset, Label, split};
use crate::Result;

impl ImageDataset {
    /// Gives examples the labels that a CSV file corrects: one with the columns `id`, `label`, which is the label so
    /// far, and `suggested`, the label to take, as
    /// [`DoubtfulLabels::save_csv`](crate::analysis::DoubtfulLabels::save_csv) writes it. Other columns are passed over.
    /// All examples of an id get the label.
    ///
    /// A dataset without a split of its own is [split](Self::split_examples) by class, so that where labels change, a
    /// few other examples come to another part too.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if the file cannot be read; [`Error::Dataset`](crate::Error::Dataset) if it is no
    /// CSV file or lacks a column, or with the line if it has an unknown id or class or a label that is not the
    /// example's, or if a class has no training example left.
    pub fn relabel(mut self, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let (columns, reader) = open_csv(path)?;
        let [id, label, suggested] = columns.find(["id", "label", "suggested"])?;
        let mut places: HashMap<String, Vec<(usize, usize)>> = HashMap::new();
        for (part, examples) in self.examples.parts().iter().enumerate() {
            for (place, example) in examples.iter().enumerate() {
                let places = places.entry(example.id.clone()).or_default();
                places.push((part, place));
            }
        }
        let mut corrected = 0;
        for record in reader.into_records() {
            let record = record.map_err(|error| unfit(&name, error.to_string()))?;
            let line = record.position().map_or(0, csv::Position::line);
            let field = |at: usize| record.get(at).unwrap_or_default();
            let refused = |reason: String| unfit(&name, format!("line {line}: {reason}"));
            let id = field(id);
            let class = |name: &str| {
                let class = self.classes.iter().position(|class| class == name);
                class.ok_or_else(|| {
                    let classes = crate::text::listed(&self.classes);
                    refused(format!(
                        "{id}: expected one of the classes {classes}, got {name:?}"
                    ))
                })
            };
            let (label, suggested) = (class(field(label))?, class(field(suggested))?);
            let places = places.get(id).ok_or_else(|| {
                refused(format!(
                    "there is no example {id:?} in the dataset {}",
                    self.name
                ))
            })?;
            for &(part, place) in places {
                let example = &mut self.examples.parts_mut()[part][place];
                if example.label != label {
                    let (label, own) = (&self.classes[label], example.label.names(&self.classes));
                    return Err(refused(format!(
                        "{id} is labelled {own} in the dataset, and {label} in the file: is it the file of \
                         another dataset?"
                    )));
                }
                example.label = Label::Class(suggested);
            }
            corrected += 1;
        }
        let counts = split::count(&self.examples.parts()[0], self.classes.len());
        if let Some(class) = counts.iter().position(|&count| count == 0) {
            let class = &self.classes[class];
            return Err(unfit(
                &name,
                format!("no training example of {class} is left"),
            ));
        }
        let rows = crate::text::thousands(corrected);
        self.note += &format!("\n{rows} labels were corrected by {name}.");
        Ok(self)
    }
}
