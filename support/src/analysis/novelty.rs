//! How unlike the training images an image is, told by its features.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, TchError, Tensor};

use super::Features;
use crate::model::weights::{Contents, NOVELTY};
use crate::{Error, Result};

/// The most directions whose variances are told apart. With EfficientNet-Lite0's features of CIFAR-10's cats and dogs
/// 0, 16, 64 and 256 of them tell the other classes apart with an AUROC of .873, .929, .936 and .935.
const DIRECTIONS: i64 = 64;

/// Describes where in the space of features the training images lie.
///
/// Novelty is the Mahalanobis distance to the nearest class' mean ([Lee et al., 2018][lee]) of features divided by
/// their norm. The classes share a covariance, with the variances of its main directions and one for all others
/// ([Tipping and Bishop, 1999][ppca]), which takes few numbers and suits few images.
///
/// [lee]: https://arxiv.org/abs/1807.03888
/// [ppca]: https://doi.org/10.1111/1467-9868.00196
#[derive(Debug)]
pub(crate) struct Novelty {
    /// `[classes, features]`
    means: Tensor,
    /// `[directions, features]`: orthogonal, and as long as what their part of a squared distance loses.
    directions: Tensor,
}

/// What a model file says about novelty besides its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct NoveltyInfo {
    /// The squared distance above which an image is unlike the training images.
    pub threshold: f64,
    /// The share of validation images below it.
    pub accepted: f64,
}

const TENSORS: [&str; 2] = ["means", "directions"];

impl Novelty {
    pub(super) fn fit(features: &Features) -> Result<Self> {
        Self::of(features.values(), features.labels()).map_err(Error::torch("novelty"))
    }

    /// Fits it to values `[N, features]` and labels `[N]`.
    fn of(values: &Tensor, labels: &Tensor) -> Result<Self, TchError> {
        let values = normalized(values)?;
        let one_hot = labels.f_one_hot(-1)?.f_to_kind(Kind::Double)?;
        let counts = one_hot.f_sum_dim_intlist(&[0i64][..], false, Kind::Double)?;
        let sums = one_hot.f_tr()?.f_mm(&values)?;
        let means = sums.f_div(&counts.f_clamp_min(1)?.f_unsqueeze(1)?)?;
        let within = values.f_sub(&means.f_index_select(0, labels)?)?;
        // A class without an example has no mean.
        let means = means.f_index_select(0, &counts.f_nonzero()?.f_squeeze_dim(1)?)?;
        let [examples, length] = [values.size()[0], values.size()[1]];
        let covariance = within.f_tr()?.f_mm(&within)?;
        let covariance = covariance.f_div_scalar((examples - 1).max(1))?;
        // Ascending.
        let (variances, directions) = covariance.f_linalg_eigh("L")?;
        // Twice as many examples as directions, or the variances of the last ones are chance.
        let count = DIRECTIONS
            .min((examples - means.size()[0]) / 2)
            .clamp(0, length - 1);
        let rest = variances.f_narrow(0, 0, length - count)?.f_mean(None)?;
        let main = variances.f_narrow(0, length - count, count)?;
        // Of images that are all the same there is none.
        let main = main.f_clamp_min(f64::MIN_POSITIVE)?;
        // Times the variance of the rest, a squared distance is |x|^2 less these parts of it.
        let lost = rest
            .f_div(&main)?
            .f_neg()?
            .f_add_scalar(1)?
            .f_clamp_min(0.)?;
        let directions = directions.f_narrow(1, length - count, count)?;
        let directions = directions.f_mul(&lost.f_sqrt()?)?.f_tr()?;
        Ok(Self {
            means: means.f_to_kind(Kind::Float)?,
            directions: directions.f_contiguous()?.f_to_kind(Kind::Float)?,
        })
    }

    /// Returns the squared distance of each row of features `[N, features]` to its nearest class, in units of the
    /// variance that the lesser directions share.
    pub(crate) fn distances(&self, features: &Tensor) -> Result<Vec<f64>> {
        let distances = || -> Result<_, TchError> {
            let [means, directions] =
                [&self.means, &self.directions].map(|it| it.f_to_kind(Kind::Double));
            let (means, directions) = (means?, directions?.f_tr()?);
            let features = normalized(&features.f_to_device(Device::Cpu)?)?;
            let (projected, of_means) = (features.f_mm(&directions)?, means.f_mm(&directions)?);
            let squares = |of: &Tensor| {
                let squares = of.f_square()?;
                squares.f_sum_dim_intlist(&[1i64][..], true, Kind::Double)
            };
            // |x - m|^2 less |directions (x - m)|^2, multiplied out: of all pairs, only products are made.
            let own = squares(&features)?.f_sub(&squares(&projected)?)?;
            let of_class = squares(&means)?.f_sub(&squares(&of_means)?)?.f_tr()?;
            let product = features.f_mm(&means.f_tr()?)?;
            let product = product.f_sub(&projected.f_mm(&of_means.f_tr()?)?)?;
            let all = own.f_add(&of_class)?.f_sub(&product.f_mul_scalar(2)?)?;
            Vec::try_from(&all.f_amin(&[1i64][..], false)?)
        };
        distances().map_err(Error::torch("novelty"))
    }

    /// Returns its tensors under the names that they have in a model file.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = (String, &Tensor)> {
        let name = |part| format!("{NOVELTY}{part}");
        TENSORS
            .map(name)
            .into_iter()
            .zip([&self.means, &self.directions])
    }

    /// Takes its tensors out of a model file's, for a model whose last layer has so many inputs and classes.
    pub(crate) fn read(
        contents: &mut Contents,
        inputs: i64,
        classes: usize,
    ) -> Result<Self, String> {
        let mut tensor = |part: &str, most: i64| {
            let name = format!("{NOVELTY}{part}");
            let found = contents.remove(&name);
            let found = found.ok_or_else(|| format!("{name} is missing"))?;
            let tensor = found.tensor().map_err(|error| error.to_string())?;
            let rows = tensor.size().first().copied().unwrap_or_default();
            found.check(&name, &[rows, inputs])?;
            match rows {
                rows if rows <= most => Ok(tensor),
                rows => Err(format!("{name}: expected at most {most} rows, got {rows}")),
            }
        };
        let [means, directions] = TENSORS;
        let means = tensor(means, classes as i64)?;
        if means.size()[0] == 0 {
            return Err(format!(
                "{NOVELTY}means: expected a row for each class, got none"
            ));
        }
        Ok(Self {
            means,
            directions: tensor(directions, inputs)?,
        })
    }
}

/// Divides each row by its norm, in 64 bits.
fn normalized(features: &Tensor) -> Result<Tensor, TchError> {
    let features = features.f_to_kind(Kind::Double)?;
    let norms = features.f_norm_scalaropt_dim(2, &[1i64][..], true)?;
    features.f_div(&norms.f_clamp_min(f64::MIN_POSITIVE)?)
}

#[cfg(test)]
mod tests {
    use super::super::reference::{cases, labels, matrix};
    use super::*;

    #[test]
    fn distances_are_mahalanobis_with_the_covariance_of_scikit_learns_pca() {
        for case in cases("novelty") {
            let novelty = Novelty::of(&matrix(&case["features"]), &labels(&case)).unwrap();
            let found = novelty.distances(&matrix(&case["others"])).unwrap();
            let expected: Vec<f64> = serde_json::from_value(case["distances"].clone()).unwrap();
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.into_iter().zip(expected) {
                assert!(
                    (found / expected - 1.).abs() < 1e-4,
                    "{found} for {expected}"
                );
            }
        }
    }

    #[test]
    fn a_class_without_an_example_is_near_nothing() {
        let values =
            Tensor::from_slice2(&[[1_f32, 0., 0.], [0.9, 0.1, 0.], [0., 1., 0.], [0., 1., 0.1]]);
        let found = |labels: [i64; 4]| {
            let novelty = Novelty::of(&values, &Tensor::from_slice(&labels)).unwrap();
            let others = Tensor::from_slice2(&[[0_f32, 0., 1.], [0.5, 0.5, 0.]]);
            novelty.distances(&others).unwrap()
        };
        assert_eq!(found([0, 0, 2, 2]), found([0, 0, 1, 1]));
    }
}
