//! Logistic regression on stored features: what the last layer can reach without a change below it, in seconds.

use tch::{Kind, TchError, Tensor};

use super::{Features, lbfgs};
use crate::model::{HeadLayer, Sequential};
use crate::training::{Loss, Objective};
use crate::{Error, Result};

/// Up to this element of the gradient of the mean loss, as scikit-learn's `tol`, but finer.
const TOLERANCE: f64 = 1e-6;

const ITERATIONS: usize = 2000;

/// The best last layer for given features: logistic regression with an L2 penalty, the features standardized, as
/// scikit-learn's `make_pipeline(StandardScaler(), LogisticRegression(C=c))`.
///
/// It minimizes `c * (sum of the losses) + |kernel|^2 / 2`, where the kernel is that for the standardized features and
/// the bias is free. [`logits`](Self::logits) takes features as they are.
#[derive(Debug)]
pub struct LinearProbe {
    loss: Loss,
    /// `[units, features]`
    kernel: Tensor,
    /// `[units]`
    bias: Tensor,
}

impl LinearProbe {
    /// A strength that suits pooled features of photos: of `cats_and_dogs_filtered`, values from .001 to .1 differ
    /// by .001 in validation accuracy.
    pub const C: f64 = 0.01;

    /// Fits one to features and their labels. The smaller `c`, the smaller the weights.
    ///
    /// # Errors
    /// `Argument` when the loss is not for this number of classes, or `c` is no positive number or so large that
    /// the weights grow without end; `Torch` when there is no memory.
    pub fn fit(features: &Features, loss: Loss, c: f64) -> Result<Self> {
        let units = units(loss, features.classes().len())?;
        Self::of(features.values(), features.labels(), loss, units, c)
    }

    /// Fits one to values `[N, features]` and labels `[N]`.
    pub(super) fn of(
        values: &Tensor,
        labels: &Tensor,
        loss: Loss,
        units: i64,
        c: f64,
    ) -> Result<Self> {
        let unsuitable = |expected: &str| Error::Argument {
            name: "linear probe, c",
            expected: expected.into(),
            got: c.to_string(),
        };
        if !(c.is_finite() && c > 0.) {
            return Err(unsuitable("a positive number"));
        }
        let _no_grad = tch::no_grad_guard();
        let standardized = || {
            let values = values.f_to_kind(Kind::Double)?;
            let mean = values.f_mean_dim(&[0i64][..], false, None)?;
            let std = values.f_std_dim(&[0i64][..], false, false)?;
            // A feature that never changes says nothing, whatever it is divided by.
            let std = std.f_where_self(&std.f_gt(0.)?, &std.f_ones_like()?)?;
            let values = values.f_sub(&mean)?.f_div(&std)?;
            Ok((values, mean, std))
        };
        let (values, mean, std) = standardized().map_err(Error::torch("linear probe"))?;
        let [examples, inputs] = [values.size()[0], values.size()[1]];
        // Of the mean loss, so that the tolerance does not depend on the number of examples.
        let penalty = 0.5 / (c * examples as f64);
        let objective = Objective::from(loss);
        let minimized = |point: &Tensor| {
            let minimized = || -> Result<_, TchError> {
                let point = point.f_detach()?.f_set_requires_grad(true)?;
                let value = tch::with_grad(|| {
                    let [kernel, bias] = unpacked(&point, units, inputs)?;
                    let logits = values.f_linear(&kernel, Some(&bias))?;
                    let loss = objective.each(&logits, labels)?.f_mean(Kind::Double)?;
                    loss.f_add(
                        &kernel
                            .f_square()?
                            .f_sum(Kind::Double)?
                            .f_mul_scalar(penalty)?,
                    )
                })?;
                let gradients = Tensor::f_run_backward(&[&value], &[&point], false, false)?;
                Ok((value.f_double_value(&[])?, gradients[0].shallow_clone()))
            };
            minimized().map_err(Error::torch("linear probe"))
        };
        let start = Tensor::f_zeros([units * (inputs + 1)], (Kind::Double, values.device()));
        let start = start.map_err(Error::torch("linear probe"))?;
        let found = lbfgs::minimize(start, TOLERANCE, ITERATIONS, minimized)?;
        let found = found.ok_or_else(|| {
            unsuitable("finite features and a c at which a minimum is found in 2,000 iterations; a smaller one")
        })?;
        let of_raw_features = || -> Result<_, TchError> {
            let [kernel, bias] = unpacked(&found, units, inputs)?;
            let kernel = kernel.f_div(&std)?;
            let bias = bias.f_sub(&kernel.f_mv(&mean)?)?;
            Ok(Self { loss, kernel, bias })
        };
        of_raw_features().map_err(Error::torch("linear probe"))
    }

    /// Returns the logits `[N, units]` of features `[N, features]`, in 64 bits.
    ///
    /// # Errors
    /// `Shape` for another number of features.
    pub fn logits(&self, features: &Tensor) -> Result<Tensor> {
        let inputs = self.kernel.size()[1];
        if features.dim() != 2 || features.size()[1] != inputs {
            return Err(Error::Shape {
                operation: "linear probe".into(),
                expected: format!("[N, {inputs}]"),
                got: features.size(),
            });
        }
        let features = features.f_to_kind(Kind::Double);
        features
            .and_then(|features| features.f_linear(&self.kernel, Some(&self.bias)))
            .map_err(Error::torch("linear probe"))
    }

    /// Returns the share of examples that it classifies right.
    ///
    /// # Errors
    /// As [`logits`](Self::logits).
    pub fn accuracy(&self, features: &Features) -> Result<f64> {
        let logits = self.logits(features.values())?;
        let right = self.loss.correct(&logits, features.labels());
        let right = right.and_then(|right| right.f_double_value(&[]));
        Ok(right.map_err(Error::torch("accuracy"))? / features.len() as f64)
    }

    /// Makes it the model's last [`Dense`](crate::model::Dense): training starts there where some epochs with the base
    /// frozen would have led.
    ///
    /// # Errors
    /// `Argument` when there is no such layer, or `Shape` when it has other numbers of inputs and outputs.
    pub fn initialize<C>(&self, model: &mut Sequential<C>) -> Result<()> {
        let is_dense = |layer: &&HeadLayer| matches!(layer, HeadLayer::Dense(_));
        let Some(dense) = model.top().filter(is_dense).last() else {
            return Err(Error::Argument {
                name: "linear probe, the model",
                expected: "a Dense on top".into(),
                got: "none".into(),
            });
        };
        let name = dense.name().to_owned();
        let values = [("kernel", &self.kernel), ("bias", &self.bias)];
        let values = values.map(|(part, value)| (format!("{name}/{part}"), value));
        let mut variables: Vec<_> = model.variables_mut().collect();
        variables.retain(|variable| values.iter().any(|(name, _)| name == variable.name()));
        for (variable, (name, value)) in variables.iter().zip(&values) {
            if variable.value().size() != value.size() {
                return Err(Error::Shape {
                    operation: format!("linear probe for {name}"),
                    expected: format!("{:?}", variable.value().size()),
                    got: value.size(),
                });
            }
        }
        for (variable, (_, value)) in variables.into_iter().zip(values) {
            variable.assign(value)?;
        }
        Ok(())
    }
}

/// Returns how many logits tell so many classes apart.
pub(super) fn units(loss: Loss, classes: usize) -> Result<i64> {
    let units = match loss {
        Loss::BinaryCrossentropy => 1,
        Loss::SparseCategoricalCrossentropy | Loss::MultiLabelBinaryCrossentropy => classes as i64,
    };
    match loss.classes(&[units])? {
        takes if takes == classes => Ok(units),
        takes => Err(Error::Argument {
            name: "linear probe, the loss",
            expected: format!("one for {classes} classes"),
            got: format!("{loss:?}, for {takes}"),
        }),
    }
}

/// Returns kernel and bias.
fn unpacked(point: &Tensor, units: i64, inputs: i64) -> Result<[Tensor; 2], TchError> {
    let kernel = point.f_narrow(0, 0, units * inputs)?;
    let bias = point.f_narrow(0, units * inputs, units)?;
    Ok([kernel.f_reshape([units, inputs])?, bias])
}

#[cfg(test)]
mod tests {
    use super::super::reference::{cases, labels, matrix};
    use super::*;

    #[test]
    fn kernel_bias_and_predictions_are_those_of_scikit_learn() {
        for case in cases("probe") {
            let classes = case["classes"].as_u64().unwrap() as usize;
            let (loss, labels) = (Loss::of_classes(classes), labels(&case));
            let values = matrix(&case["features"]).to_kind(Kind::Float);
            let (units, c) = (units(loss, classes).unwrap(), case["c"].as_f64().unwrap());
            let probe = LinearProbe::of(&values, &labels, loss, units, c).unwrap();
            let expected = matrix(&case["kernel"]);
            let difference = (&probe.kernel - &expected).abs().max();
            assert!(difference.double_value(&[]) < 1e-4, "{difference}");
            let bias: Vec<f64> = serde_json::from_value(case["bias"].clone()).unwrap();
            let difference = (&probe.bias - Tensor::from_slice(&bias)).abs().max();
            assert!(difference.double_value(&[]) < 1e-4, "{difference}");
            let right = loss
                .correct(&probe.logits(&values).unwrap(), &labels)
                .unwrap();
            let accuracy = right.double_value(&[]) / labels.numel() as f64;
            assert_eq!(accuracy, case["accuracy"].as_f64().unwrap());
        }
    }

    #[test]
    fn a_strength_without_a_minimum_is_refused() {
        let values = Tensor::from_slice2(&[[0_f32, 1.], [1., 0.]]);
        let labels = Tensor::from_slice(&[0_i64, 1]);
        let loss = Loss::BinaryCrossentropy;
        for (c, expected) in [
            (0., "a positive number"),
            (-1., "a positive number"),
            (f64::NAN, "a positive number"),
            (f64::INFINITY, "a positive number"),
        ] {
            let error = LinearProbe::of(&values, &labels, loss, 1, c)
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected), "{error}");
        }
        let values = Tensor::from_slice2(&[[0_f32, f32::NAN], [1., 0.]]);
        let error = LinearProbe::of(&values, &labels, loss, 1, 1.)
            .unwrap_err()
            .to_string();
        assert!(error.contains("finite features"), "{error}");
    }
}
