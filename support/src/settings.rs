//! What a run takes from its environment: `TRANSFER_*` variables, which work alike in a notebook,
//! headless and in a program. What a dataset's name stands for is the dataset module's business.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tch::Device;

use crate::distributed::{Place, ProcessGroup};
use crate::precision::Precision;
use crate::{Error, Result, device};

/// The folder of checkpoints in the data folder.
const CHECKPOINTS: &str = "checkpoints";

/// What a run can be told from outside.
///
/// A field may also be changed in code; the printed settings show where each value came from.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A set's name, a folder or a CSV file (`TRANSFER_DATASET`). Without it the images that are at
    /// hand are taken.
    pub dataset: Option<String>,
    /// How many examples are used (`TRANSFER_LIMIT`: a number or `all`).
    pub limit: Limit,
    /// Epochs of each phase of training (`TRANSFER_EPOCHS`).
    pub epochs: usize,
    /// Examples in a batch (`TRANSFER_BATCH`).
    pub batch_size: usize,
    /// What every random choice is derived from (`TRANSFER_SEED`).
    pub seed: u64,
    /// Where tensors live (`TRANSFER_DEVICE`: `auto`, `cpu`, `cuda` or `cuda:N`).
    pub device: Device,
    /// What networks compute with (`TRANSFER_PRECISION`: `f32`, `bf16` or `auto`).
    pub precision: Precision,
    /// The processes that train together (`RANK`, `WORLD_SIZE` and what else [`distributed`](crate::distributed)
    /// lists, and `TRANSFER_TIMEOUT`): one, unless a launcher says otherwise.
    pub group: ProcessGroup,
    /// What an image that cannot be decoded does (`TRANSFER_BROKEN`: `skip` or `stop`).
    pub broken: BrokenImages,
    /// Where fetched images and weights lie (`TRANSFER_DATA`).
    pub data_dir: PathBuf,
    /// Where the notebooks' checkpoints go, a folder in it for each phase of training, and their model
    /// files (`TRANSFER_CHECKPOINTS`).
    pub checkpoints: PathBuf,
    /// The values as loaded, in the order of [`Settings::rows`], and whether each was given.
    loaded: Vec<(String, bool)>,
}

/// How many examples of a dataset are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// As many as fit a first run: see the dataset's note.
    Default,
    /// Every one.
    All,
    /// At most this many, over all parts of the dataset.
    Examples(usize),
}

/// What an image that cannot be decoded does to a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokenImages {
    /// It is reported and left out.
    Skip,
    /// It ends the run with an error.
    Stop,
}

impl Settings {
    /// Reads the settings from the environment. A variable that is unset or empty takes its
    /// default: 10 epochs, batches of 32, seed 0, a GPU where there is one, 32-bit floats.
    ///
    /// Where a launcher has started several processes, waits for all of them: call it once.
    ///
    /// # Errors
    /// [`Error::Setting`] names the variable, its value and what it takes; [`Error::Distributed`] says what
    /// keeps the processes from finding each other.
    pub fn from_env() -> Result<Self> {
        Self::from_lookup(|name| env::var_os(name))
    }

    pub(crate) fn from_lookup(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let text = |name: &'static str| match lookup(name).filter(|value| !value.is_empty()) {
            None => Ok(None),
            Some(value) => value
                .into_string()
                .map(Some)
                .map_err(|value| Error::Setting {
                    name,
                    value: value.to_string_lossy().into_owned(),
                    expected: "text in UTF-8".into(),
                }),
        };
        let count = |name, default: usize| match text(name)? {
            None => Ok(default),
            Some(value) => {
                positive(&value).ok_or_else(|| refused(name, value, "a whole number above 0"))
            }
        };

        let limit = match text("TRANSFER_LIMIT")? {
            None => Limit::Default,
            Some(value) if value == "all" => Limit::All,
            Some(value) => Limit::Examples(positive(&value).ok_or_else(|| {
                refused("TRANSFER_LIMIT", value, "a whole number above 0, or all")
            })?),
        };
        let seed = match text("TRANSFER_SEED")? {
            None => 0,
            Some(value) => value.parse().map_err(|_| {
                refused("TRANSFER_SEED", value, "a whole number of at most 64 bits")
            })?,
        };
        let broken = match text("TRANSFER_BROKEN")?.as_deref() {
            None | Some("skip") => BrokenImages::Skip,
            Some("stop") => BrokenImages::Stop,
            Some(value) => return Err(refused("TRANSFER_BROKEN", value, "skip or stop")),
        };
        let timeout = count("TRANSFER_TIMEOUT", 600)?;
        let place = Place::from_lookup(&lookup)?;
        let local_rank = place.as_ref().map_or(0, |place| place.local_rank);
        let device = text("TRANSFER_DEVICE")?;
        let device = device::pick_for(device.as_deref().unwrap_or("auto"), local_rank)?;
        let precision = text("TRANSFER_PRECISION")?.as_deref().map(str::parse);
        let precision = precision.transpose()?.unwrap_or_default();
        let data_dir = text("TRANSFER_DATA")?.map_or_else(default_data_dir, PathBuf::from);
        let checkpoints = text("TRANSFER_CHECKPOINTS")?;
        let mut settings = Self {
            dataset: text("TRANSFER_DATASET")?,
            limit,
            epochs: count("TRANSFER_EPOCHS", 10)?,
            batch_size: count("TRANSFER_BATCH", 32)?,
            seed,
            device,
            precision,
            group: ProcessGroup::default(),
            broken,
            checkpoints: checkpoints.map_or_else(|| data_dir.join(CHECKPOINTS), PathBuf::from),
            data_dir,
            loaded: Vec::new(),
        };
        let given = |(_, name, value)| (value, lookup(name).is_some_and(|value| !value.is_empty()));
        settings.loaded = settings.rows().into_iter().map(given).collect();
        if let Some(place) = place {
            let timeout = Duration::from_secs(timeout as u64);
            settings.group = ProcessGroup::connect(place, device, timeout)?;
        }
        Ok(settings)
    }

    /// What each setting is called, its variable, its value.
    fn rows(&self) -> [(&'static str, &'static str, String); 10] {
        let dataset = match &self.dataset {
            Some(dataset) => dataset.clone(),
            None => "what is at hand".into(),
        };
        let limit = match self.limit {
            Limit::Default => "for a first run".into(),
            Limit::All => "all".into(),
            Limit::Examples(count) => count.to_string(),
        };
        let device = match self.device {
            Device::Cuda(index) => format!("cuda:{index}"),
            device => format!("{device:?}").to_lowercase(),
        };
        // A checkout's own folder is told without the machine's path, which does not belong into
        // a notebook that is passed on.
        let data_dir = if self.data_dir == default_data_dir() {
            "data/ in this project".into()
        } else {
            self.data_dir.display().to_string()
        };
        let checkpoints = if self.checkpoints == self.data_dir.join(CHECKPOINTS) {
            "in the data folder".into()
        } else {
            self.checkpoints.display().to_string()
        };
        let broken = match self.broken {
            BrokenImages::Skip => "skip",
            BrokenImages::Stop => "stop",
        };
        [
            ("dataset", "TRANSFER_DATASET", dataset),
            ("limit", "TRANSFER_LIMIT", limit),
            ("epochs", "TRANSFER_EPOCHS", self.epochs.to_string()),
            ("batch size", "TRANSFER_BATCH", self.batch_size.to_string()),
            ("seed", "TRANSFER_SEED", self.seed.to_string()),
            ("device", "TRANSFER_DEVICE", device),
            (
                "precision",
                "TRANSFER_PRECISION",
                self.precision.name().into(),
            ),
            ("broken images", "TRANSFER_BROKEN", broken.into()),
            ("data folder", "TRANSFER_DATA", data_dir),
            ("checkpoints", "TRANSFER_CHECKPOINTS", checkpoints),
        ]
    }
}

/// One aligned line per setting: its value, and whether that is the default, given by the
/// environment, or changed in code.
impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.rows();
        let width = rows
            .iter()
            .map(|(_, _, value)| value.chars().count())
            .max()
            .unwrap_or(0);
        for (at, ((label, name, value), (loaded, given))) in
            rows.iter().zip(&self.loaded).enumerate()
        {
            let origin = match (value == loaded, given) {
                (false, _) => "changed in code".into(),
                (true, true) => format!("from {name}"),
                (true, false) => format!("default; {name} sets it"),
            };
            let end = if at == 0 { "" } else { "\n" };
            write!(f, "{end}{label:<15}  {value:<width$}  {origin}")?;
        }
        match self.group.size() {
            1 => Ok(()),
            size => write!(f, "\n{:<15}  {size:<width$}  from WORLD_SIZE", "processes"),
        }
    }
}

fn default_data_dir() -> PathBuf {
    let support = Path::new(env!("CARGO_MANIFEST_DIR"));
    support.parent().unwrap_or(support).join("data")
}

fn positive(value: &str) -> Option<usize> {
    value.parse().ok().filter(|&count| count > 0)
}

fn refused(name: &'static str, value: impl Into<String>, expected: &str) -> Error {
    Error::Setting {
        name,
        value: value.into(),
        expected: expected.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<Settings> {
        Settings::from_lookup(|name| {
            variables
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value.into())
        })
    }

    fn refusal(name: &str, value: &str) -> String {
        settings(&[(name, value)]).unwrap_err().to_string()
    }

    #[test]
    fn without_variables_the_tutorials_values_are_taken() {
        let settings = settings(&[("TRANSFER_EPOCHS", "")]).unwrap();
        assert_eq!(
            (settings.epochs, settings.batch_size, settings.seed),
            (10, 32, 0)
        );
        assert_eq!((settings.dataset, settings.limit), (None, Limit::Default));
        assert_eq!(settings.broken, BrokenImages::Skip);
        assert!(
            settings.data_dir.ends_with("data"),
            "{:?}",
            settings.data_dir
        );
    }

    #[test]
    fn every_variable_arrives_in_its_field() {
        let settings = settings(&[
            ("TRANSFER_DATASET", "cifar10"),
            ("TRANSFER_LIMIT", "100"),
            ("TRANSFER_EPOCHS", "2"),
            ("TRANSFER_BATCH", "8"),
            ("TRANSFER_SEED", "7"),
            ("TRANSFER_DEVICE", "cpu"),
            ("TRANSFER_PRECISION", "auto"),
            ("TRANSFER_BROKEN", "stop"),
            ("TRANSFER_DATA", "/elsewhere"),
        ])
        .unwrap();
        assert_eq!(settings.dataset.as_deref(), Some("cifar10"));
        assert_eq!(settings.limit, Limit::Examples(100));
        assert_eq!(
            (settings.epochs, settings.batch_size, settings.seed),
            (2, 8, 7)
        );
        assert_eq!(
            (settings.device, settings.broken),
            (Device::Cpu, BrokenImages::Stop)
        );
        assert_eq!(settings.precision, Precision::Auto);
        assert_eq!(settings.data_dir, Path::new("/elsewhere"));
    }

    #[test]
    fn limit_all_lifts_the_limit() {
        assert_eq!(
            settings(&[("TRANSFER_LIMIT", "all")]).unwrap().limit,
            Limit::All
        );
    }

    #[test]
    fn a_value_out_of_range_is_refused_with_its_name_and_what_it_takes() {
        assert_eq!(
            refusal("TRANSFER_LIMIT", "0"),
            "TRANSFER_LIMIT=0: expected a whole number above 0, or all"
        );
        assert_eq!(
            refusal("TRANSFER_EPOCHS", "0"),
            "TRANSFER_EPOCHS=0: expected a whole number above 0"
        );
        assert_eq!(
            refusal("TRANSFER_BATCH", "-3"),
            "TRANSFER_BATCH=-3: expected a whole number above 0"
        );
        assert_eq!(
            refusal("TRANSFER_SEED", "x"),
            "TRANSFER_SEED=x: expected a whole number of at most 64 bits"
        );
        assert_eq!(
            refusal("TRANSFER_BROKEN", "no"),
            "TRANSFER_BROKEN=no: expected skip or stop"
        );
        assert_eq!(
            refusal("TRANSFER_DEVICE", "gpu"),
            "TRANSFER_DEVICE=gpu: expected auto, cpu, cuda or cuda:N"
        );
        assert_eq!(
            refusal("TRANSFER_PRECISION", "half"),
            "TRANSFER_PRECISION=half: expected f32, bf16 or auto"
        );
    }

    #[test]
    fn a_gpu_that_is_not_there_is_refused() {
        assert!(refusal("TRANSFER_DEVICE", "cuda:64").contains("a device that is there"));
    }

    #[test]
    fn the_printed_settings_say_where_each_value_came_from() {
        let mut settings = settings(&[
            ("TRANSFER_EPOCHS", "3"),
            ("TRANSFER_DATA", "/d"),
            ("TRANSFER_DEVICE", "cpu"),
        ])
        .unwrap();
        settings.seed = 5;
        let expected = "\
dataset          what is at hand     default; TRANSFER_DATASET sets it
limit            for a first run     default; TRANSFER_LIMIT sets it
epochs           3                   from TRANSFER_EPOCHS
batch size       32                  default; TRANSFER_BATCH sets it
seed             5                   changed in code
device           cpu                 from TRANSFER_DEVICE
precision        f32                 default; TRANSFER_PRECISION sets it
broken images    skip                default; TRANSFER_BROKEN sets it
data folder      /d                  from TRANSFER_DATA
checkpoints      in the data folder  default; TRANSFER_CHECKPOINTS sets it";
        assert_eq!(settings.to_string(), expected);
    }
}
