//! Transfer learning on libtorch, for Rust notebooks.

pub mod error;
pub mod pipeline;

pub use error::{Error, Result};
