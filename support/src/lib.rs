//! Transfer learning on libtorch, for Rust notebooks.

pub mod error;

pub use error::{Error, Result};
