//! Probabilities that mean what they say, and images that the model knows nothing about.

use std::fmt;
use std::rc::Rc;

use tch::{Device, Kind, TchError, Tensor};

use super::novelty::{Novelty, NoveltyInfo};
use crate::model::Sequential;
use crate::pipeline::Batches;
use crate::training::{Compiled, Loss, Objective, argmax, probabilities};
use crate::{Error, Result};

/// As in Guo et al.
const BINS: usize = 15;

/// The share of validation images that are not called unlike the training images.
const ACCEPTED: f64 = 0.99;

/// Where the temperature is looked for.
const TEMPERATURES: [f64; 2] = [0.05, 20.];

/// What a model's probabilities are worth, what to divide its logits by so that they are worth more, and how to tell
/// images unlike those that it was trained on. [`TrainingRecord::calibration`][record] puts it into the model file.
///
/// Shows as the calibration error before and after.
///
/// [record]: crate::classifier::TrainingRecord::calibration
#[derive(Clone, Debug)]
pub struct Calibration {
    temperature: f64,
    before: Reliability,
    after: Reliability,
    novelty: Rc<Novelty>,
    /// The validation images' distances, the smallest first.
    distances: Vec<f64>,
    accepted: f64,
    /// The variables of the layers on top when it was made.
    head: Rc<Vec<Tensor>>,
}

/// How often predictions of a given confidence are right.
#[derive(Clone, Debug, PartialEq)]
pub struct Reliability {
    /// The mean cross-entropy.
    pub loss: f64,
    /// By the confidence, the predicted class' probability: fifteen bins of equal width from 0 to 1, each without its
    /// lower and with its upper end.
    pub bins: Vec<ReliabilityBin>,
}

/// The predictions of about the same confidence.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ReliabilityBin {
    /// How many there are.
    pub examples: usize,
    /// Their mean confidence, 0 if there is none.
    pub confidence: f64,
    /// The share of them that is right, 0 if there is none.
    pub accuracy: f64,
}

impl Reliability {
    fn new(loss: Loss, logits: &Tensor, labels: &Tensor) -> Result<Self> {
        let mean = mean_loss(loss, logits, labels)?;
        let all = probabilities(loss, logits)?;
        let labels = Vec::<i64>::try_from(labels).map_err(Error::torch("labels"))?;
        let mut bins = [ReliabilityBin::default(); BINS];
        for (row, label) in all.chunks(all.len() / labels.len()).zip(&labels) {
            let predicted = argmax(row);
            let bin = (row[predicted] * BINS as f64).ceil() as usize;
            let bin = &mut bins[bin.clamp(1, BINS) - 1];
            bin.examples += 1;
            bin.confidence += row[predicted];
            bin.accuracy += f64::from(u8::from(predicted as i64 == *label));
        }
        for bin in &mut bins {
            let examples = bin.examples.max(1) as f64;
            bin.confidence /= examples;
            bin.accuracy /= examples;
        }
        Ok(Self {
            loss: mean,
            bins: bins.to_vec(),
        })
    }

    /// Returns the expected calibration error ([Guo et al., 2017](https://arxiv.org/abs/1706.04599)): by how much
    /// confidence and accuracy of a bin differ, on average over all examples.
    #[must_use]
    pub fn expected_error(&self) -> f64 {
        let examples: usize = self.bins.iter().map(|bin| bin.examples).sum();
        let gap =
            |bin: &ReliabilityBin| bin.examples as f64 * (bin.accuracy - bin.confidence).abs();
        self.bins.iter().map(gap).sum::<f64>() / examples as f64
    }
}

impl Sequential<Compiled> {
    /// Calibrates the model, as it is now: finds the temperature that its logits are to be divided by
    /// ([Guo et al., 2017](https://arxiv.org/abs/1706.04599)), which changes no prediction, from the validation
    /// images, and where in the space of features the training images lie. Images further away than 99 % of the
    /// validation images are unlike them; [`accept`](Calibration::accept) takes another share.
    ///
    /// The distance is Mahalanobis' to the nearest class, of normalized features, with a covariance of few numbers. Of
    /// the methods tried it finds strangers as well as any, and takes little room. With EfficientNet-Lite0's features
    /// of 2,000 cats and dogs of CIFAR-10 and its other classes as strangers, where nothing but the motif differs, its
    /// AUROC is .936; that of the tenth nearest neighbour, which takes all training features along, .937; of
    /// Mahalanobis' distance without normalizing .905, ViM .822, energy and highest probability .642. With photos of
    /// cats and dogs, and CIFAR-10's other classes or scikit-image's and SciPy's pictures as strangers, it is .998,
    /// by the highest probability .961 and .957. `bench/peers/novelty.py` compares them.
    ///
    /// # Errors
    /// As [`features`](Self::features); `Argument` when the labels do not fit the loss.
    pub fn calibrate(&self, train: &Batches, validation: &Batches) -> Result<Calibration> {
        self.check(train, "calibrate, the training batches")?;
        self.check(validation, "calibrate, the validation batches")?;
        let novelty = Novelty::fit(&self.features(train)?)?;
        let validation = self.features(validation)?;
        let head = self.inference(self.before_last_dense(), self.last())?;
        let logits = head(validation.values())?.f_to_device(Device::Cpu);
        let logits = logits.and_then(|logits| logits.f_to_kind(Kind::Double));
        let logits = logits.map_err(Error::torch("logits"))?;
        let (loss, labels) = (self.compiled.loss(), validation.labels());
        let before = Reliability::new(loss, &logits, labels)?;
        let temperature = temperature(loss, &logits, labels)?;
        let scaled = logits.f_div_scalar(temperature);
        let scaled = scaled.map_err(Error::torch("temperature"))?;
        let mut distances = novelty.distances(validation.values())?;
        distances.sort_by(f64::total_cmp);
        Ok(Calibration {
            temperature,
            before,
            after: Reliability::new(loss, &scaled, labels)?,
            novelty: Rc::new(novelty),
            distances,
            accepted: ACCEPTED,
            head: Rc::new(self.head_values().map_err(Error::torch("calibration"))?),
        })
    }

    /// Copies the variables of the layers on top.
    fn head_values(&self) -> Result<Vec<Tensor>, TchError> {
        let of_base = self.base().variables().count();
        let on_top = self.variables().skip(of_base);
        let copies = on_top.map(|variable| variable.value().f_detach()?.f_detach_copy());
        copies.collect()
    }
}

/// Returns the temperature at which the mean loss is least; 1 where every prediction is right, which would make any
/// lower one better still.
fn temperature(loss: Loss, logits: &Tensor, labels: &Tensor) -> Result<f64> {
    let wrong = loss
        .correct(logits, labels)
        .and_then(|right| Ok(labels.numel() as i64 - right.f_int64_value(&[])?));
    if wrong.map_err(Error::torch("temperature"))? == 0 {
        return Ok(1.);
    }
    let at = |log: f64| {
        let scaled = logits.f_div_scalar(log.exp());
        mean_loss(loss, &scaled.map_err(Error::torch("temperature"))?, labels)
    };
    // Golden section: the loss is convex in 1 / T, so that it has one minimum over any scale of T.
    let ratio = (5_f64.sqrt() - 1.) / 2.;
    let [mut low, mut high] = TEMPERATURES.map(f64::ln);
    let mut inner = [high - ratio * (high - low), low + ratio * (high - low)];
    let mut losses = [at(inner[0])?, at(inner[1])?];
    while high - low > 1e-7 {
        if losses[0] < losses[1] {
            high = inner[1];
            inner = [high - ratio * (high - low), inner[0]];
            losses = [at(inner[0])?, losses[0]];
        } else {
            low = inner[0];
            inner = [inner[1], low + ratio * (high - low)];
            losses = [losses[1], at(inner[1])?];
        }
    }
    Ok((0.5 * (low + high)).exp())
}

fn mean_loss(loss: Loss, logits: &Tensor, labels: &Tensor) -> Result<f64> {
    Objective::from(loss)
        .each(logits, labels)
        .and_then(|each| each.f_mean(Kind::Double)?.f_double_value(&[]))
        .map_err(Error::torch("loss"))
}

impl Calibration {
    /// Returns what the logits are to be divided by: above 1 where the model is too sure of itself. It is 1 where
    /// every validation image is predicted right, which tells nothing about it.
    #[must_use]
    pub fn temperature(&self) -> f64 {
        self.temperature
    }

    /// Returns what the probabilities were worth on the validation images.
    #[must_use]
    pub fn before(&self) -> &Reliability {
        &self.before
    }

    /// Returns what they are worth there with the temperature.
    #[must_use]
    pub fn after(&self) -> &Reliability {
        &self.after
    }

    /// Calls so many of the validation images like the training images, .99 unless it is said: fewer make it find
    /// more strangers, and refuse more that are none.
    ///
    /// # Errors
    /// `Argument` unless `share` is above 0 and at most 1.
    pub fn accept(self, share: f64) -> Result<Self> {
        if share > 0. && share <= 1. {
            return Ok(Self {
                accepted: share,
                ..self
            });
        }
        Err(Error::Argument {
            name: "accept, the share of validation images",
            expected: "a number above 0 and at most 1".into(),
            got: share.to_string(),
        })
    }

    /// Returns what a model file says about novelty, and the tensors that go with it.
    pub(crate) fn novelty(&self) -> (NoveltyInfo, &Novelty) {
        let info = NoveltyInfo {
            threshold: quantile(&self.distances, self.accepted),
            accepted: self.accepted,
        };
        (info, &self.novelty)
    }

    /// Checks that a model still has the layers on top that were calibrated.
    pub(crate) fn check(&self, model: &Sequential<Compiled>) -> Result<()> {
        let values = model.head_values();
        let values = values.map_err(Error::torch("calibration"))?;
        let mut pairs = values.iter().zip(self.head.iter());
        let same = values.len() == self.head.len()
            && pairs.all(|(now, then)| now.size() == then.size() && now.equal(then));
        match same {
            true => Ok(()),
            false => Err(Error::Argument {
                name: "save, the calibration",
                expected: "one of the model as it is: calibrate after the training".into(),
                got: "one of other weights".into(),
            }),
        }
    }
}

/// Returns the value that a share of sorted values is at or below, between two of them as NumPy's `quantile`.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (below, above) = (
        sorted[place.floor() as usize],
        sorted[place.ceil() as usize],
    );
    below + place.fract() * (above - below)
}

impl fmt::Display for Calibration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, after) = (&self.before, &self.after);
        write!(
            f,
            "temperature {:.3}: expected calibration error {:.4} -> {:.4}, loss {:.4} -> {:.4}",
            self.temperature,
            before.expected_error(),
            after.expected_error(),
            before.loss,
            after.loss,
        )?;
        let right = before
            .bins
            .iter()
            .map(|bin| bin.examples as f64 * bin.accuracy);
        if right.sum::<f64>().round() as usize == self.distances.len() {
            write!(
                f,
                " (every validation image is predicted right, which tells no temperature)"
            )?;
        }
        write!(
            f,
            "\nunlike the training images: those further away than {:.4}, as {:.0} % of the validation images are not",
            self.novelty().0.threshold,
            100. * self.accepted
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::reference::{assert_close, cases, labels, matrix};
    use super::*;

    #[test]
    fn temperature_and_calibration_error_are_those_of_scipy_and_torchmetrics() {
        for case in cases("calibration") {
            let (logits, labels) = (matrix(&case["logits"]), labels(&case));
            let loss = match logits.size()[1] {
                1 => Loss::BinaryCrossentropy,
                _ => Loss::SparseCategoricalCrossentropy,
            };
            let temperature = temperature(loss, &logits, &labels).unwrap();
            assert_close(temperature, &case["temperature"], 1e-5);
            for (place, temperature) in [1., temperature].into_iter().enumerate() {
                let scaled = &logits / temperature;
                let found = Reliability::new(loss, &scaled, &labels).unwrap();
                assert_close(found.expected_error(), &case["errors"][place], 1e-5);
                assert_close(found.loss, &case["losses"][place], 1e-9);
            }
        }
    }

    #[test]
    fn predictions_that_are_all_right_tell_no_temperature() {
        let logits = Tensor::from_slice2(&[[-0.1_f64], [3.], [0.2]]);
        let labels = Tensor::from_slice(&[0_i64, 1, 1]);
        let found = temperature(Loss::BinaryCrossentropy, &logits, &labels);
        assert_eq!(found.unwrap(), 1.);
    }

    #[test]
    fn a_quantile_lies_between_the_values_beside_it() {
        // As NumPy's `quantile`.
        for (share, expected) in [(1., 4.), (0.5, 2.5), (0.99, 3.97), (0.01, 1.03)] {
            let found = quantile(&[1., 2., 3., 4.], share);
            assert!((found - expected).abs() < 1e-12, "{found}");
        }
        assert_eq!(quantile(&[5.], 0.99), 5.);
    }
}
