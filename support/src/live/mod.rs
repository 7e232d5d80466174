//! What passes between a running cell and the person in front of it: progress, and Stop.
//!
//! In this project's kernel a bridge between Jupyter and evcxr shows things while a cell runs and
//! hears of Stop; elsewhere there is a terminal, or only lines. What a value looks like is
//! [`notebook`](crate::notebook)'s affair.

mod bridge;
mod output;
mod progress;
mod stop;
mod task;

pub(crate) use output::{Output, for_evcxr};
pub(crate) use progress::Progress;
pub use stop::Stop;
pub(crate) use task::Task;
