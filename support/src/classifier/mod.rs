//! The model file: a trained model with all that it takes to use it on other images.
//!
//! [`Sequential::save`](crate::model::Sequential::save) writes it, [`Classifier`] reads it. What is in it is
//! [`ModelInfo`]; `docs/model_file.md` describes it for other languages, which
//! [`save_onnx`](Classifier::save_onnx) is for, too. Weights alone, for a network
//! that the reader knows, are [`save_weights`](crate::model::Sequential::save_weights)' business.
//!
//! In a notebook, after training:
//!
//! ```no_run
//! # use support::prelude::*;
//! # use support::training::{Compiled, Evaluation};
//! # fn after(model: Sequential<Compiled>, train_batches: Batches, history: History,
//! #     fine_tuning_history: History, test_evaluation: Evaluation) -> support::Result<()> {
//! let record = TrainingRecord::new(&train_batches)
//!     .history(&history)
//!     .history(&fine_tuning_history)
//!     .evaluation(&test_evaluation);
//! model.save("cats_and_dogs.safetensors", &record)?;
//! # Ok(())
//! # }
//! ```
//!
//! In a program of your own, with `support = { path = "…/support" }` under `[dependencies]`:
//!
//! ```no_run
//! use support::prelude::*;
//!
//! fn main() -> support::Result<()> {
//!     let classifier = Classifier::load("cats_and_dogs.safetensors")?;
//!     println!("{}", classifier.predict("photo.jpg")?); // cats, 99.2 %
//!     Ok(())
//! }
//! ```

mod explain;
mod info;
mod onnx;
mod picture;
mod predict;
mod save;

pub use explain::Explained;
pub use info::{BackboneInfo, CalibrationInfo, Input, ModelInfo, Optimizer, TrainingSettings};
pub use picture::Image;
pub use predict::{Classification, Classifications, Classifier, PreparedImage};
pub use save::TrainingRecord;

pub use crate::pipeline::{Filter, Resize};
