//! TensorBoard's event files.
//!
//! No crate that writes them has had a release since 2024 (tensorboard-rs, tfrecord, tboard), and each brings protobuf's
//! code for all of TensorFlow's graphs. A scalar takes six fields, which are declared here.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process;
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use super::{Callback, End, Epoch, Phase, Step};
use crate::model::Sequential;
use crate::training::Compiled;
use crate::{Error, Result};

/// Writes what is measured as event files for [TensorBoard](https://www.tensorflow.org/tensorboard), as Keras'
/// callback of that name does: two runs, `train` and `validation`, with `epoch_loss`, `epoch_accuracy`, the
/// other metrics and the training's `epoch_learning_rate` by epoch, counted from 1, and its `batch_loss` by step,
/// counted from the first epoch on.
///
/// `tensorboard --logdir FOLDER` shows them. A run that goes on adds files to the folder.
#[derive(Debug)]
pub struct TensorBoard {
    folder: PathBuf,
    training: Option<EventFile>,
    validation: Option<EventFile>,
}

impl TensorBoard {
    /// Returns one that writes into a folder, which is made if it is not there.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            training: None,
            validation: None,
        }
    }

    fn write<'a>(
        &mut self,
        phase: Phase,
        step: usize,
        scalars: impl IntoIterator<Item = (&'a str, f64)>,
    ) -> Result<()> {
        let (file, name) = match phase {
            Phase::Training => (&mut self.training, "train"),
            Phase::Validation => (&mut self.validation, "validation"),
        };
        let now = seconds();
        let file = match file {
            Some(file) => file,
            None => file.insert(EventFile::create(&self.folder.join(name), now)?),
        };
        for (tag, value) in scalars {
            file.write(&scalar_event(now, step, tag, value as f32))?;
        }
        Ok(())
    }

    /// # Errors
    /// `Io` when a file cannot be written.
    fn flush(&mut self) -> Result<()> {
        let mut files = [&mut self.training, &mut self.validation]
            .into_iter()
            .flatten();
        files.try_for_each(|file| file.file.flush().map_err(Error::io("write", &file.path)))
    }
}

impl Callback for TensorBoard {
    /// # Errors
    /// `Io` when a file cannot be written.
    fn on_step_end(&mut self, step: &Step<'_>) -> Result<(), End> {
        if step.phase == Phase::Training {
            let number = (step.epoch - 1) * step.steps + step.step;
            self.write(Phase::Training, number, [("batch_loss", step.loss)])?;
        }
        Ok(())
    }

    /// # Errors
    /// `Io` when a file cannot be written.
    fn on_epoch_end(&mut self, epoch: &Epoch<'_>) -> Result<(), End> {
        let rate = epoch.log.learning_rate;
        let rate = rate.map(|rate| ("learning_rate", rate));
        for (name, value) in epoch.log.values().chain(rate) {
            let (phase, name) = match name.strip_prefix("val_") {
                Some(name) => (Phase::Validation, name),
                None => (Phase::Training, name),
            };
            let tag = format!("epoch_{name}");
            self.write(phase, epoch.epoch, [(tag.as_str(), value)])?;
        }
        Ok(self.flush()?)
    }

    fn on_train_end(&mut self, _: &Sequential<Compiled>, _: Result<(), &End>) -> Result<()> {
        self.flush()
    }
}

/// A file of records, [TFRecord](https://www.tensorflow.org/tutorials/load_data/tfrecord), of events.
#[derive(Debug)]
struct EventFile {
    path: PathBuf,
    file: BufWriter<File>,
}

impl EventFile {
    fn create(folder: &Path, now: f64) -> Result<Self> {
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        // TensorBoard looks for the middle part, and reads the files of a run in the order of their names.
        let name = format!("events.out.tfevents.{now:.9}.{}", process::id());
        let path = folder.join(name);
        let file = File::create_new(&path).map_err(Error::io("create", &path))?;
        let file = BufWriter::new(file);
        let mut events = Self { path, file };
        events.write(&version_event(now))?;
        Ok(events)
    }

    fn write(&mut self, event: &Event) -> Result<()> {
        let written = self.file.write_all(&record(&event.encode_to_vec()));
        written.map_err(Error::io("write", &self.path))
    }
}

fn seconds() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}

/// Of [event.proto][proto] the fields that are written.
///
/// [proto]: https://github.com/tensorflow/tensorboard/blob/2.21.0/tensorboard/compat/proto/event.proto
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Scalar>,
}

/// `Summary.Value`.
#[derive(Clone, PartialEq, Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

/// Returns the first event of a file.
fn version_event(wall_time: f64) -> Event {
    Event {
        wall_time,
        file_version: Some("brain.Event:2".into()),
        ..Event::default()
    }
}

fn scalar_event(wall_time: f64, step: usize, tag: &str, value: f32) -> Event {
    let scalar = Scalar {
        tag: tag.into(),
        simple_value: Some(value),
    };
    Event {
        wall_time,
        step: step as i64,
        summary: Some(Summary {
            value: vec![scalar],
        }),
        ..Event::default()
    }
}

/// Returns a record of a TFRecord file.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let [length_check, data_check] = [&length, data].map(|bytes| masked_crc(bytes).to_le_bytes());
    [&length[..], &length_check, data, &data_check].concat()
}

/// Returns the CRC-32C (Castagnoli) of bytes, masked as in TFRecord files.
fn masked_crc(bytes: &[u8]) -> u32 {
    let mut crc = !0_u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    (!crc).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_written_as_tensorboard_writes_them() {
        // By `tests/reference/tensor_board.py`.
        let expected = include_bytes!("../../../tests/data/events.tfevents");
        let mut written = record(&version_event(1.7e9 + 0.25).encode_to_vec());
        for (step, tag, value) in [
            (1, "batch_loss", 0.6875),
            (127, "batch_loss", 0.5),
            (128, "epoch_loss", -2.5e-9),
            (70_000, "epoch_top_3_accuracy", 1.),
        ] {
            let event = scalar_event(1.7e9 + 0.5, step, tag, value);
            written.extend(record(&event.encode_to_vec()));
        }
        assert_eq!(written, expected);
    }
}
