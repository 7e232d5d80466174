//! The history as a CSV file.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::{Callback, End, Epoch};
use crate::files::write_whole;
use crate::training::History;
use crate::{Error, Result};

/// Writes what each epoch measured to a CSV file, as Keras' `CSVLogger` does: a line for each epoch, with
/// columns by Keras' names, after `epoch`, which counts from 1, and before `learning_rate` and `seconds`.
///
/// The file is whole after each epoch. Lines of epochs before this `fit`'s first one stay: those before
/// its `initial_epoch`, and those before the checkpoint that it goes on from.
#[derive(Clone, Debug)]
pub struct CsvLog {
    path: PathBuf,
}

/// A table of texts; lines may be shorter than the columns.
#[derive(Default)]
struct Table {
    columns: Vec<String>,
    lines: Vec<Vec<String>>,
}

impl CsvLog {
    /// Returns one that writes to a file.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }
}

impl Callback for CsvLog {
    /// # Errors
    /// `Io` when the file cannot be read or written, `Argument` when it is another one.
    fn on_epoch_end(&mut self, epoch: &Epoch<'_>) -> Result<(), End> {
        let history = epoch.model.history();
        let before = epoch.epoch - history.epochs.len();
        let mut table = Table::read(&self.path)?;
        table.keep(before);
        table.add(history, before);
        Ok(write_whole(&self.path, table.text().as_bytes())?)
    }
}

impl Table {
    fn read(path: &Path) -> Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            text => text.map_err(Error::io("read", path))?,
        };
        let mut lines = text
            .lines()
            .map(|line| line.split(',').map(str::to_owned).collect());
        let columns: Vec<String> = lines.next().unwrap_or_default();
        if columns.first().is_some_and(|first| first != EPOCH) {
            return Err(Error::Argument {
                name: "CsvLog, the path",
                expected: "a file that it has written, or none".into(),
                got: format!("{}, which begins otherwise", path.display()),
            });
        }
        let lines = lines.collect();
        Ok(Self { columns, lines })
    }

    /// Keeps the lines of the first `epochs` epochs.
    fn keep(&mut self, epochs: usize) {
        self.lines.retain(|line| {
            let epoch = line.first().and_then(|epoch| epoch.parse().ok());
            epoch.is_some_and(|epoch| (1..=epochs).contains(&epoch))
        });
        if self.lines.is_empty() {
            self.columns.clear();
        }
    }

    /// Adds the lines of the epochs after the first `before`.
    fn add(&mut self, history: &History, before: usize) {
        for (epoch, log) in (before + 1..).zip(&history.epochs) {
            let values = [(EPOCH, epoch as f64)].into_iter().chain(log.values());
            let mut line = vec![String::new(); self.columns.len()];
            let rate = log.learning_rate.map(|rate| ("learning_rate", rate));
            let values = values.chain(rate).chain([("seconds", log.seconds)]);
            for (name, value) in values {
                let at = self.columns.iter().position(|column| column == name);
                let at = at.unwrap_or_else(|| {
                    self.columns.push(name.to_owned());
                    self.columns.len() - 1
                });
                line.resize(self.columns.len(), String::new());
                line[at] = value.to_string();
            }
            self.lines.push(line);
        }
    }

    fn text(mut self) -> String {
        for line in &mut self.lines {
            line.resize(self.columns.len(), String::new());
        }
        let lines = std::iter::once(&self.columns).chain(&self.lines);
        lines.map(|line| line.join(",") + "\n").collect()
    }
}

const EPOCH: &str = "epoch";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::training::EpochLog;

    fn log(loss: f64, val_loss: Option<f64>) -> EpochLog {
        EpochLog {
            loss,
            accuracy: 0.5,
            val_loss,
            metrics: [("auc".into(), 0.75)].into(),
            seconds: 2.,
            ..EpochLog::default()
        }
    }

    #[test]
    fn epochs_before_stay_and_other_columns_are_added() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.csv");
        let write = |epochs: &[EpochLog], before| {
            let mut table = Table::read(&path).unwrap();
            table.keep(before);
            let epochs = epochs.to_vec();
            table.add(&History { epochs }, before);
            std::fs::write(&path, table.text()).unwrap();
            std::fs::read_to_string(&path).unwrap()
        };
        let first = "epoch,loss,accuracy,auc,seconds\n1,0.7,0.5,0.75,2\n";
        assert_eq!(write(&[log(0.7, None)], 0), first);
        // A killed run has left the line of an epoch that was not saved.
        std::fs::write(&path, format!("{first}2,0.6,0.5,0.7,2\n3,0.")).unwrap();
        let second = "\
epoch,loss,accuracy,auc,seconds,val_loss
1,0.7,0.5,0.75,2,
2,0.1,0.5,0.75,2,0.25
";
        assert_eq!(write(&[log(0.1, Some(0.25))], 1), second);
        // Another run.
        assert_eq!(write(&[log(0.7, None)], 0), first);
    }

    #[test]
    fn a_file_that_is_no_log_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("photos.csv");
        std::fs::write(&path, "path,label\na.jpg,cats\n").unwrap();
        let error = Table::read(&path).err().unwrap().to_string();
        assert!(
            error.contains("photos.csv, which begins otherwise"),
            "{error}"
        );
    }
}
