//! The crate's one error type.
//!
//! Each variant is a cause and each message says what was expected, what was found and what to
//! do about it. Nothing in this crate's public API panics on bad input.

use std::path::{Path, PathBuf};

/// What can go wrong, one variant per cause.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting (a `TRANSFER_*` environment variable) has a value that cannot be used.
    #[error("{name}={value}: expected {expected}")]
    Setting {
        /// The environment variable.
        name: &'static str,
        /// Its value as found.
        value: String,
        /// What would have been accepted.
        expected: String,
    },

    /// A function was called with an argument outside its domain.
    #[error("{name}: expected {expected}, got {got}")]
    Argument {
        /// The argument, with the function it belongs to.
        name: &'static str,
        /// What would have been accepted.
        expected: String,
        /// What was passed.
        got: String,
    },

    /// The notebook's Stop button was pressed.
    #[error("stopped: {operation}")]
    Stopped {
        /// What was under way, and how far it was.
        operation: String,
    },

    /// The operating system refused to read or write a file.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted, as in "read" or "create".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },

    /// A file that has to be fetched could not be reached from any of its sources.
    #[error("cannot fetch {asset}: {reason}\n{help}")]
    Unreachable {
        /// The asset's name in `data/assets.toml`.
        asset: String,
        /// What each source answered.
        reason: String,
        /// What else can be done.
        help: String,
    },

    /// A fetched file is not the one that was asked for. Nothing of it is kept.
    #[error("{what}: expected {expected}, got {got}; the file was discarded, fetch it again")]
    Mismatch {
        /// The file and the property that differs.
        what: String,
        /// The recorded value.
        expected: String,
        /// The value found.
        got: String,
    },

    /// An archive is damaged, or holds an entry that must not be unpacked.
    #[error("archive {}: {reason}", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// A folder, or a choice of examples, that cannot serve as a dataset.
    #[error("dataset {name}: {reason}")]
    Dataset {
        /// The dataset's name or folder.
        name: String,
        /// What is wrong with it, and how a dataset has to look.
        reason: String,
    },

    /// An image that cannot be decoded.
    #[error("image {name}: {reason}")]
    Image {
        /// The image's name within its dataset, or its file.
        name: String,
        /// What the decoder found.
        reason: String,
    },

    /// A tensor has another shape than an operation needs.
    #[error("{operation}: expected shape {expected}, got {got:?}")]
    Shape {
        /// The layer or function.
        operation: String,
        /// The shape it takes, with `N` for any batch size.
        expected: String,
        /// The shape it was given.
        got: Vec<i64>,
    },

    /// A weights file that is damaged, incomplete or of another network.
    #[error("weights {}: {reason}", path.display())]
    Weights {
        /// The file.
        path: PathBuf,
        /// The first tensor that does not fit, and how.
        reason: String,
    },

    /// A checkpoint that is damaged or of another run, or a folder of checkpoints that another run uses.
    #[error("checkpoint {}: {reason}", path.display())]
    Checkpoint {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// [`fit`](crate::model::Sequential::fit) ended in the middle of the training. What was done before
    /// is not lost.
    #[error("epoch {epoch}: {source}\n(epochs in the model's `history()`: {epochs})")]
    Training {
        /// The epoch, counted from 1.
        epoch: usize,
        /// How many epochs the model's [`history`](crate::model::Sequential::history) has.
        epochs: usize,
        /// What went wrong.
        source: Box<Error>,
    },

    /// Training has diverged: there is no going on from a loss or a weight that is infinite or no number.
    #[error(
        "{what}: compile with a lower learning rate than {learning_rate:e} or, if it was so from the first \
         step on, look for pixels that are not finite; the model is as it was after {epochs} epochs"
    )]
    NotFinite {
        /// The loss or weight.
        what: String,
        /// The optimizer's learning rate.
        learning_rate: f64,
        /// After how many epochs the model was as it is now: weights and optimizer.
        epochs: usize,
    },

    /// The processes that train together cannot go on, because of another one than this.
    #[error("rank {rank} of {ranks}, {operation}: {reason}")]
    Distributed {
        /// This process.
        rank: usize,
        /// How many there are.
        ranks: usize,
        /// What they were doing together.
        operation: String,
        /// Which of them failed, is missing or does not fit, and why.
        reason: String,
    },

    /// A model file that is damaged, incomplete or of another format.
    #[error("model file {}: {reason}", path.display())]
    ModelFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// libtorch refused an operation.
    #[error("libtorch, {operation}: {source}")]
    Torch {
        /// What was being computed.
        operation: String,
        /// libtorch's own message.
        source: tch::TchError,
    },

    /// OpenVINO cannot be loaded, or refused an operation.
    #[cfg(feature = "openvino")]
    #[error("OpenVINO, {operation}: {reason}")]
    OpenVino {
        /// What was being done.
        operation: String,
        /// What OpenVINO or the system says, and what to do where its library is missing.
        reason: String,
    },

    /// A figure could not be drawn.
    #[error("figure: {0}")]
    Figure(String),
}

/// A `Result` whose error is this crate's [`Error`] unless another is named.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Returns whether the cause is another process, or known to all of them.
    pub(crate) fn is_of_other_ranks(&self) -> bool {
        match self {
            Self::Distributed { .. } => true,
            Self::Training { source, .. } => source.is_of_other_ranks(),
            _ => false,
        }
    }

    /// Wraps an I/O error, for use with `map_err`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    /// Wraps a libtorch error, for use with `map_err`.
    pub(crate) fn torch(operation: impl Into<String>) -> impl FnOnce(tch::TchError) -> Self {
        let operation = operation.into();
        move |source| Self::Torch { operation, source }
    }
}
