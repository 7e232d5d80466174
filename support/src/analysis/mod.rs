//! What a trained model gets right and wrong: predictions example by example, and what can be
//! counted from them. How they are drawn is [`plotting`](crate::plotting)'s affair.

mod confusion;
mod predictions;
mod report;

pub use confusion::ConfusionMatrix;
pub use predictions::{Prediction, Predictions};
pub use report::{Report, Scores};
