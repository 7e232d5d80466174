//! What a trained model gets right and wrong: predictions example by example, what can be counted
//! from them, where in the images they come from, what probabilities are worth, which labels are doubtful, and which
//! backbone suits the images. How they are drawn is [`plotting`](crate::plotting)'s affair.

mod backbones;
mod calibration;
mod confusion;
mod doubtful_labels;
mod explanations;
mod features;
mod lbfgs;
mod novelty;
mod predictions;
mod probe;
mod report;
mod thresholds;

pub use backbones::{BackboneComparison, ComparedBackbone, compare_backbones};
pub use calibration::{Calibration, Reliability, ReliabilityBin};
pub use confusion::ConfusionMatrix;
pub use doubtful_labels::{DoubtfulLabel, DoubtfulLabels};
pub use explanations::Explanations;
pub(crate) use explanations::explanation;
pub use features::Features;
pub(crate) use novelty::Novelty;
pub use novelty::NoveltyInfo;
pub use predictions::{Prediction, Predictions};
pub(crate) use predictions::{THRESHOLD, check_threshold, predicted};
pub use probe::LinearProbe;
pub use report::{Report, Scores};
pub use thresholds::{Threshold, ThresholdCurve};

#[cfg(test)]
mod reference {
    use serde_json::Value;
    use tch::Tensor;

    /// Returns the cases of a part of `tests/reference/analysis.py`.
    pub(super) fn cases(part: &str) -> Vec<Value> {
        let file = include_str!("../../tests/data/analysis.json");
        let mut parts: Value = serde_json::from_str(file).unwrap();
        let cases: Vec<Value> = serde_json::from_value(parts[part].take()).unwrap();
        assert!(!cases.is_empty());
        cases
    }

    pub(super) fn labels(case: &Value) -> Tensor {
        let labels: Vec<i64> = serde_json::from_value(case["labels"].clone()).unwrap();
        Tensor::from_slice(&labels)
    }

    /// Returns a matrix, in 64 bits.
    pub(super) fn matrix(rows: &Value) -> Tensor {
        let rows: Vec<Vec<f64>> = serde_json::from_value(rows.clone()).unwrap();
        Tensor::from_slice2(&rows)
    }

    #[track_caller]
    pub(super) fn assert_close(found: f64, expected: &Value, tolerance: f64) {
        let expected = expected.as_f64().unwrap();
        assert!(
            (found - expected).abs() < tolerance,
            "{found} for {expected}"
        );
    }
}
