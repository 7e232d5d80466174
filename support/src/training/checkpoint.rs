//! Checkpoints: after an epoch, everything that training goes on from.
//!
//! The order of the pictures depends on the seed and the epoch only, so there is no other random
//! state. A checkpoint is a safetensors file of the model's variables under their own names and
//! the optimizer's behind a prefix; beside them stands, as JSON, which run it is of.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::weights::TrainedWeights;
use super::{Compiled, History};
use crate::model::Sequential;
use crate::model::weights::{self, Contents, Metadata};
use crate::{Error, Result};

/// What a run is, field by field: a checkpoint goes on only with the run it is of.
pub(super) type Run = Map<String, Value>;

/// The checkpoints of one run in a folder of their own.
#[derive(Debug)]
pub(super) struct Checkpoints {
    folder: PathBuf,
    run: Run,
}

/// What a checkpoint gave back, besides the weights and the optimizer.
#[derive(Debug)]
pub(super) struct Restored {
    pub(super) path: PathBuf,
    pub(super) epoch: usize,
    pub(super) history: History,
    /// What was wrong with newer ones.
    pub(super) damaged: Vec<Error>,
}

const VERSION: &str = "1";
const KEPT: usize = 2;
const OPTIMIZER: &str = "optimizer/mean_square/";

impl Checkpoints {
    pub(super) fn new(folder: &Path, run: Run) -> Self {
        let folder = folder.into();
        Self { folder, run }
    }

    /// Saves a checkpoint after `epoch` epochs; all but this, the one before it and those of the
    /// epochs in `best` go.
    ///
    /// # Errors
    /// `Io` when it cannot be written; then those that were there still are.
    pub(super) fn save(
        &self,
        model: &Sequential<Compiled>,
        epoch: usize,
        history: &History,
        best: &[usize],
    ) -> Result<()> {
        fs::create_dir_all(&self.folder).map_err(Error::io("create", &self.folder))?;
        let path = self.folder.join(file_name(epoch));
        let json = |value: serde_json::Result<String>| {
            value.map_err(|error| damaged(&path, error.to_string()))
        };
        let metadata = Metadata::from([
            ("checkpoint".into(), VERSION.into()),
            ("history".into(), json(serde_json::to_string(history))?),
            ("run".into(), json(serde_json::to_string(&self.run))?),
        ]);
        let variables = model
            .variables()
            .map(|variable| (variable.name().to_owned(), variable.value()));
        let optimizer = model.compiled.optimizer.mean_squares();
        let optimizer = optimizer.map(|(name, value)| (format!("{OPTIMIZER}{name}"), value));
        weights::write(&path, variables.chain(optimizer), metadata)?;
        self.prune(epoch, best)
    }

    /// Removes what is neither this epoch's checkpoint nor the one before it nor one of the best:
    /// those of an earlier run, and what a killed one left half written.
    fn prune(&self, epoch: usize, best: &[usize]) -> Result<()> {
        let kept = epoch.saturating_sub(KEPT - 1)..=epoch;
        let mut found = self.found()?;
        found.retain(|epoch, _| !kept.contains(epoch) && !best.contains(epoch));
        let entries = fs::read_dir(&self.folder).map_err(Error::io("read", &self.folder))?;
        let half_written = entries.filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name();
            name.to_str()?.starts_with(".tmp").then(|| entry.path())
        });
        for path in found.into_values().chain(half_written) {
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
        Ok(())
    }

    /// Returns the files by epoch.
    fn found(&self) -> Result<BTreeMap<usize, PathBuf>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(BTreeMap::new());
            }
            entries => entries.map_err(Error::io("read", &self.folder))?,
        };
        let by_epoch = entries.filter_map(|entry| {
            let path = entry.ok()?.path();
            Some((epoch_of(path.file_name()?.to_str()?)?, path))
        });
        Ok(by_epoch.collect())
    }

    /// Gives the model the weights and the optimizer's state of the newest checkpoint that is whole,
    /// if there is one.
    ///
    /// # Errors
    /// `Checkpoint` when it is of another run or beyond `epochs`, or none is whole; then nothing has
    /// been changed.
    pub(super) fn restore(
        &self,
        model: &mut Sequential<Compiled>,
        epochs: usize,
    ) -> Result<Option<Restored>> {
        let mut broken = Vec::new();
        for (epoch, path) in self.found()?.into_iter().rev() {
            let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
            match read(&bytes) {
                Ok((contents, run, history)) => {
                    self.same_run(&run)
                        .and_then(|()| is_within(epoch, epochs))
                        .and_then(|()| give(model, contents))
                        .map_err(|reason| damaged(&path, reason))?;
                    return Ok(Some(Restored {
                        path,
                        epoch,
                        history,
                        damaged: broken,
                    }));
                }
                Err(reason) => broken.push(damaged(&path, reason)),
            }
        }
        match broken.into_iter().next() {
            Some(newest) => Err(newest),
            None => Ok(None),
        }
    }

    /// Returns the weights that an epoch trained.
    ///
    /// # Errors
    /// `Checkpoint` when its checkpoint is not there, damaged or of another run.
    pub(super) fn trained_weights(
        &self,
        model: &Sequential<Compiled>,
        epoch: usize,
    ) -> Result<TrainedWeights> {
        let path = self.folder.join(file_name(epoch));
        let weights = fs::read(&path).map_err(|error| error.to_string());
        let weights = weights.and_then(|bytes| {
            let (contents, run, _) = read(&bytes)?;
            self.same_run(&run)?;
            TrainedWeights::in_file(model, contents)
        });
        weights.map_err(|reason| {
            let reason = format!(
                "the best epoch's weights cannot be read: {reason}; go on without \
                 `restore_best_weights`, or train anew with `checkpoints` in place of `resume`"
            );
            damaged(&path, reason)
        })
    }

    fn same_run(&self, saved: &Run) -> Result<(), String> {
        for name in self.run.keys().chain(saved.keys()) {
            let (now, then) = (self.run.get(name), saved.get(name));
            if now != then {
                let [now, then] = [now, then].map(|value| value.unwrap_or(&Value::Null));
                return Err(format!(
                    "it is of another run, with {name} {then} where this one has {now}; \
                     train anew with `checkpoints` in place of `resume`, or in another folder"
                ));
            }
        }
        Ok(())
    }
}

fn is_within(epoch: usize, epochs: usize) -> Result<(), String> {
    if epoch <= epochs {
        return Ok(());
    }
    Err(format!("it is beyond the {epochs} epochs asked for"))
}

fn damaged(path: &Path, reason: String) -> Error {
    let path = path.into();
    Error::Checkpoint { path, reason }
}

fn file_name(epoch: usize) -> String {
    format!("epoch-{epoch:04}.safetensors")
}

fn epoch_of(name: &str) -> Option<usize> {
    let epoch = name.strip_prefix("epoch-")?.strip_suffix(".safetensors")?;
    epoch.parse().ok()
}

fn read(bytes: &[u8]) -> Result<(Contents, Run, History), String> {
    let (contents, metadata) = weights::read_safetensors(bytes)?;
    let text = |name: &str| metadata.get(name).ok_or(format!("it has no {name}"));
    let version = text("checkpoint")?;
    if version != VERSION {
        return Err(format!(
            "it has version {version}, and {VERSION} is expected; train anew with `checkpoints`"
        ));
    }
    let json = |error: serde_json::Error| error.to_string();
    let run = serde_json::from_str(text("run")?).map_err(json)?;
    let history = serde_json::from_str(text("history")?).map_err(json)?;
    Ok((contents, run, history))
}

/// Gives the model what a checkpoint holds: all of it or, on an error, nothing.
fn give(model: &mut Sequential<Compiled>, mut contents: Contents) -> Result<(), String> {
    let mut mean_squares = BTreeMap::new();
    for variable in model.trainable_variables() {
        let name = variable.name();
        if let Some(found) = contents.remove(&format!("{OPTIMIZER}{name}")) {
            found.check(name, &variable.value().size())?;
            let value = found.tensor().map_err(|error| error.to_string())?;
            mean_squares.insert(name.to_owned(), value.to_device(variable.value().device()));
        }
    }
    weights::assign(contents, model.variables_mut().collect())?;
    model.compiled.optimizer.set_mean_squares(mean_squares);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_name_tells_its_epoch_and_other_files_are_none() {
        assert_eq!(epoch_of(&file_name(12)), Some(12));
        assert_eq!(epoch_of(&file_name(123_456)), Some(123_456));
        for name in ["epoch-1.tmp", "epoch-x.safetensors", "model.safetensors"] {
            assert_eq!(epoch_of(name), None);
        }
    }

    #[test]
    fn a_damaged_file_or_one_of_another_version_says_so() {
        assert!(read(b"x").err().unwrap().contains("safetensors"));
        let write = |metadata: &[(&str, &str)]| {
            let pairs = metadata
                .iter()
                .map(|&(name, text)| (name.into(), text.into()));
            let none = std::iter::empty::<(String, safetensors::tensor::TensorView<'_>)>();
            safetensors::serialize(none, Some(pairs.collect())).unwrap()
        };
        for (metadata, reason) in [
            (&[("run", "{}")][..], "it has no checkpoint"),
            (&[("checkpoint", "2")], "version 2, and 1 is expected"),
            (
                &[("checkpoint", VERSION), ("run", "{}")],
                "it has no history",
            ),
            (&[("checkpoint", VERSION), ("run", "[")], "expected a map"),
        ] {
            let error = read(&write(metadata)).err().unwrap();
            assert!(error.contains(reason), "{error}");
        }
    }
}
