//! What a class is told at, threshold by threshold.

use std::fmt;

use super::{Predictions, Scores};
use crate::text::listed;
use crate::{Error, Result};

/// What it comes to if an example is taken for one of a class from a probability on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    /// The least probability of the class that is enough.
    pub threshold: f64,
    /// Precision, recall and F1 of the class.
    pub scores: Scores,
}

/// Precision, recall and F1 of a class against all others, by threshold:
/// [scikit-learn's `precision_recall_curve`](https://scikit-learn.org/stable/modules/generated/sklearn.metrics.precision_recall_curve.html)
/// without its last point, which has no threshold.
#[derive(Clone, Debug, PartialEq)]
pub struct ThresholdCurve {
    class: String,
    points: Vec<Threshold>,
}

impl Predictions {
    /// Returns what precision, recall and F1 of a class are for each probability from which on an example
    /// could be taken for one of it.
    ///
    /// # Errors
    /// `Argument` when there is no such class, or no example of it.
    pub fn threshold_curve(&self, class: &str) -> Result<ThresholdCurve> {
        const NAME: &str = "threshold_curve, the class";
        let classes = self.classes();
        let Some(index) = classes.iter().position(|name| name == class) else {
            return Err(Error::Argument {
                name: NAME,
                expected: format!("one of {}", listed(classes)),
                got: class.to_owned(),
            });
        };
        let predictions = self.examples().iter();
        let scores = predictions.map(|found| (found.probabilities[index], found.label.has(index)));
        let points = points(scores.collect());
        match points.first() {
            Some(all) if all.scores.support > 0 => Ok(ThresholdCurve {
                class: class.to_owned(),
                points,
            }),
            _ => Err(Error::Argument {
                name: NAME,
                expected: "one with an example among the predictions".into(),
                got: class.to_owned(),
            }),
        }
    }
}

/// Returns what each probability would come to as a threshold, from the lowest on, of probabilities and
/// whether each is of an example of the class.
fn points(mut examples: Vec<(f64, bool)>) -> Vec<Threshold> {
    examples.sort_by(|a, b| b.0.total_cmp(&a.0));
    let support = examples.iter().filter(|(_, is)| *is).count();
    let (mut right, mut predicted) = (0, 0);
    let equal = examples.chunk_by(|a, b| a.0 == b.0);
    let mut points: Vec<Threshold> = equal
        .map(|equal| {
            right += equal.iter().filter(|(_, is)| *is).count();
            predicted += equal.len();
            Threshold {
                threshold: equal[0].0,
                scores: Scores::new(right, predicted, support),
            }
        })
        .collect();
    points.reverse();
    points
}

impl ThresholdCurve {
    /// Returns the name of the class.
    #[must_use]
    pub fn class(&self) -> &str {
        &self.class
    }

    /// Returns each probability that there is, the lowest first, as a threshold: at least one.
    #[must_use]
    pub fn points(&self) -> &[Threshold] {
        &self.points
    }

    /// Returns the threshold of the highest F1, of equal ones the lowest.
    #[must_use]
    pub fn best_f1(&self) -> Threshold {
        let points = self.points.iter().copied();
        let better = |best: Threshold, point: Threshold| {
            if point.scores.f1 > best.scores.f1 {
                point
            } else {
                best
            }
        };
        points.fold(self.points[0], better)
    }
}

impl fmt::Display for ThresholdCurve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Threshold { threshold, scores } = self.best_f1();
        let Scores {
            precision,
            recall,
            f1,
            ..
        } = scores;
        write!(
            f,
            "{}: the best F1, {f1:.4}, is that of a threshold of {threshold:.4} (precision {precision:.4}, \
             recall {recall:.4})",
            self.class
        )
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn thresholds_precision_and_recall_equal_scikit_learns() {
        let text = include_str!("../../tests/data/metrics.json");
        let file: Value = serde_json::from_str(text).unwrap();
        for case in file["curves"].as_array().unwrap() {
            let numbers =
                |name: &str| -> Vec<f64> { serde_json::from_value(case[name].clone()).unwrap() };
            let labels = numbers("labels").into_iter().map(|label| label == 1.);
            let points = points(numbers("scores").into_iter().zip(labels).collect());
            let curve = |value: fn(&Threshold) -> f64| points.iter().map(value).collect::<Vec<_>>();
            assert_eq!(curve(|point| point.threshold), numbers("thresholds"));
            assert_eq!(curve(|point| point.scores.precision), numbers("precision"));
            assert_eq!(curve(|point| point.scores.recall), numbers("recall"));
        }
    }

    #[test]
    fn the_best_threshold_is_that_of_the_highest_f1() {
        let examples = [
            (0.9, true),
            (0.6, true),
            (0.5, false),
            (0.2, true),
            (0.1, false),
        ];
        let curve = ThresholdCurve {
            class: "dogs".into(),
            points: points(examples.into()),
        };
        // 3 of 4 and 3 of 3; from .6 on 2 of 2 and 2 of 3.
        assert_eq!(
            curve.to_string(),
            "dogs: the best F1, 0.8571, is that of a threshold of 0.2000 (precision 0.7500, recall 1.0000)"
        );
    }

    #[test]
    fn the_figure_has_its_line_at_the_best_threshold() {
        // matplotlib's red, of which the legend is at the left too.
        let rightmost = |best: f64| {
            let points = points(vec![(best, true), (0.1, false)]);
            let class = "dogs".into();
            let figure = ThresholdCurve { class, points }.show().unwrap();
            let pixels = figure.image().enumerate_pixels();
            let red = pixels.filter(|(.., pixel)| pixel.0[0] > 190 && pixel.0[1] < 80);
            red.map(|(x, ..)| x).max().unwrap()
        };
        let [middle, right] = [0.6, 0.9].map(rightmost);
        // 1,000 pixels, less the axis' labels and margins, stand for 1.04.
        assert!((240..290).contains(&(right - middle)), "{middle} {right}");
    }
}
