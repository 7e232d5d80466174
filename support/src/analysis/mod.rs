//! What a trained model gets right and wrong: predictions example by example, what can be counted
//! from them, and where in the images they come from. How they are drawn is [`plotting`](crate::plotting)'s affair.

mod confusion;
mod explanations;
mod predictions;
mod report;
mod thresholds;

pub use confusion::ConfusionMatrix;
pub use explanations::Explanations;
pub use predictions::{Prediction, Predictions};
pub(crate) use predictions::{THRESHOLD, check_threshold, predicted};
pub use report::{Report, Scores};
pub use thresholds::{Threshold, ThresholdCurve};
