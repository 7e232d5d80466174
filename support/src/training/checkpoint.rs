//! Checkpoints: after an epoch, everything that training goes on from.
//!
//! The order of the examples depends on the seed and the epoch only, so there is no other random
//! state. A checkpoint is a safetensors file of the model's variables under their own names and
//! the optimizer's with a prefix; beside them stand, as JSON, the history and which run it is of.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};

use super::record::RunRecord;
use super::state::TrainedWeights;
use super::{Compiled, History};
use crate::model::Sequential;
use crate::model::weights::{self, Contents, Metadata};
use crate::{Error, Result};

/// The checkpoints of one run in a folder of their own, which no other run uses meanwhile.
#[derive(Debug)]
pub(super) struct Checkpoints {
    folder: PathBuf,
    run: RunRecord,
    /// Locked as long as it is open.
    _lock: File,
}

/// What a checkpoint holds.
struct Saved {
    contents: Contents,
    run: RunRecord,
    history: History,
    optimizer_steps: u64,
}

/// The newest checkpoint that is whole.
pub(super) struct Newest {
    pub(super) path: PathBuf,
    pub(super) epoch: usize,
    pub(super) history: History,
    contents: Contents,
    optimizer_steps: u64,
    /// What is wrong with newer ones.
    pub(super) damaged: Vec<Error>,
}

/// Changes when a reader of this version could no longer read the file, or would misunderstand it.
const VERSION: &str = "2";
const KEPT: usize = 2;
/// Before the slot and the variable: `optimizer/mean_square/dense/kernel`.
const OPTIMIZER: &str = "optimizer/";
const OPTIMIZER_STEPS: &str = "optimizer steps";
const LOCK: &str = ".lock";

impl Checkpoints {
    /// Takes a folder for a run, and makes it where there is none.
    ///
    /// # Errors
    /// `Checkpoint` while another run uses the folder, `Io` when it cannot be written to.
    pub(super) fn open(folder: &Path, run: RunRecord) -> Result<Self> {
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        Ok(Self {
            folder: folder.into(),
            run,
            _lock: lock(folder)?,
        })
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
        best: &[usize],
    ) -> Result<()> {
        let path = self.folder.join(file_name(epoch));
        let json = |value: serde_json::Result<String>| {
            value.map_err(|error| damaged(&path, error.to_string()))
        };
        let metadata = Metadata::from([
            ("checkpoint".into(), VERSION.into()),
            (
                "history".into(),
                json(serde_json::to_string(model.history()))?,
            ),
            ("run".into(), json(serde_json::to_string(&self.run))?),
            (
                OPTIMIZER_STEPS.into(),
                model.compiled.optimizer.steps().to_string(),
            ),
        ]);
        let variables = model
            .variables()
            .map(|variable| (variable.name().to_owned(), variable.value()));
        let optimizer = model.compiled.optimizer.state();
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

    /// Returns the newest checkpoint that is whole, if there is one.
    ///
    /// # Errors
    /// `Checkpoint` when it is of another run or beyond `epochs`, or none is whole.
    pub(super) fn newest(&self, epochs: usize) -> Result<Option<Newest>> {
        let mut broken = Vec::new();
        for (epoch, path) in self.found()?.into_iter().rev() {
            let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
            match read(&bytes, epoch) {
                Ok(saved) => {
                    self.check_run(&saved.run)
                        .and_then(|()| is_within(epoch, epochs))
                        .map_err(|reason| damaged(&path, reason))?;
                    return Ok(Some(Newest {
                        path,
                        epoch,
                        history: saved.history,
                        contents: saved.contents,
                        optimizer_steps: saved.optimizer_steps,
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
            let saved = read(&bytes, epoch)?;
            self.check_run(&saved.run)?;
            TrainedWeights::in_file(model, saved.contents)
        });
        weights.map_err(|reason| {
            let reason = format!(
                "the best epoch's weights cannot be read: {reason}; train anew with `checkpoints` in \
                 place of `resume`"
            );
            damaged(&path, reason)
        })
    }

    fn check_run(&self, saved: &RunRecord) -> Result<(), String> {
        let difference = self.run.difference(saved);
        match difference.map_err(|error| error.to_string())? {
            None => Ok(()),
            Some(difference) => Err(format!(
                "it is of another run, with {difference}; train anew with `checkpoints` in place of \
                 `resume`, or in another folder"
            )),
        }
    }
}

impl Newest {
    /// Gives the model weights, optimizer's state and history.
    ///
    /// # Errors
    /// `Checkpoint` when they do not fit; then nothing has been changed.
    pub(super) fn load(mut self, model: &mut Sequential<Compiled>) -> Result<()> {
        let mut load = || -> Result<(), String> {
            let mut state = BTreeMap::new();
            let variables = model.trainable_variables();
            for (name, variable) in model.compiled.optimizer.names(&variables) {
                if let Some(found) = self.contents.remove(&format!("{OPTIMIZER}{name}")) {
                    found.check(&name, &variable.value().size())?;
                    let value = found.tensor().map_err(|error| error.to_string())?;
                    state.insert(name, value.to_device(variable.value().device()));
                }
            }
            weights::assign(
                std::mem::take(&mut self.contents),
                model.variables_mut().collect(),
            )?;
            model
                .compiled
                .optimizer
                .set_state(state, self.optimizer_steps);
            Ok(())
        };
        load().map_err(|reason| damaged(&self.path, reason))?;
        model.compiled.history = self.history;
        Ok(())
    }
}

/// Locks a folder for this process until the file is closed, also by the process' end.
fn lock(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK);
    let options = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path);
    let mut file = options.map_err(Error::io("create", &path))?;
    match file.try_lock() {
        Ok(()) => {
            let owner = file
                .set_len(0)
                .and_then(|()| write!(file, "{}", std::process::id()));
            owner.map_err(Error::io("write", &path))?;
        }
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            // Who it is, is only part of the message.
            let _ = file.read_to_string(&mut owner);
            return Err(damaged(
                folder,
                format!(
                    "another run, in process {owner}, saves its checkpoints here; choose another folder, \
                     or wait for that run or end it"
                ),
            ));
        }
        // The file system has no locks.
        Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {}
        Err(TryLockError::Error(error)) => return Err(Error::io("lock", &path)(error)),
    }
    Ok(file)
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

/// Reads the file of an epoch.
fn read(bytes: &[u8], epoch: usize) -> Result<Saved, String> {
    let (contents, metadata) = weights::read_safetensors(bytes)?;
    let text = |name: &str| metadata.get(name).ok_or(format!("it has no {name}"));
    let version = text("checkpoint")?;
    if version != VERSION {
        return Err(format!(
            "it has version {version}, and {VERSION} is expected; train anew with `checkpoints`"
        ));
    }
    let json = |error: serde_json::Error| error.to_string();
    let (run, history) = (text("run")?, text("history")?);
    let run: RunRecord = serde_json::from_str(run).map_err(json)?;
    let history: History = serde_json::from_str(history).map_err(json)?;
    let last = run.initial_epoch + history.epochs.len();
    if last != epoch {
        return Err(format!("it was saved after epoch {last}, and then renamed"));
    }
    // Absent from files of before there was an optimizer that counts them.
    let steps = metadata
        .get(OPTIMIZER_STEPS)
        .map_or(Ok(0), |steps| steps.parse());
    let optimizer_steps = steps.map_err(|error| format!("{OPTIMIZER_STEPS}: {error}"))?;
    Ok(Saved {
        contents,
        run,
        history,
        optimizer_steps,
    })
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
        assert!(read(b"x", 1).err().unwrap().contains("safetensors"));
        let write = |metadata: &[(&str, &str)]| {
            let pairs = metadata
                .iter()
                .map(|&(name, text)| (name.into(), text.into()));
            let none = std::iter::empty::<(String, safetensors::tensor::TensorView<'_>)>();
            safetensors::serialize(none, Some(pairs.collect())).unwrap()
        };
        for (metadata, reason) in [
            (&[("run", "{}")][..], "it has no checkpoint"),
            (&[("checkpoint", "1")], "version 1, and 2 is expected"),
            (
                &[("checkpoint", VERSION), ("run", "{}")],
                "it has no history",
            ),
            (
                &[("checkpoint", VERSION), ("run", "{}"), ("history", "[]")],
                "missing field `backbone`",
            ),
        ] {
            let error = read(&write(metadata), 1).err().unwrap();
            assert!(error.contains(reason), "{error}");
        }
    }
}
