//! Where in an image a model sees the class that it predicts, by gradients: Grad-CAM and what came of it.

use tch::{Device, Kind, TchError, Tensor};

use super::Predictions;
use crate::live::Task;
use crate::model::{Backbone, Operation, Sequential};
use crate::training::{Compiled, Loss, argmax};
use crate::{Error, Result};

/// Values above this quantile of a map are cut off: at some borders padding makes features so large that
/// all the rest would look small.
const CLIP_QUANTILE: f64 = 0.97;

/// How much each part of each image speaks for the most probable class: [Grad-CAM][grad-cam] in the form
/// of [LayerCAM][layer-cam], which weights each position of a feature by its own gradient. That allows
/// for a layer whose positions are half as far apart as those of the base's last one, 10x10 for images
/// of 160x160: the last such layer is taken.
///
/// [grad-cam]: https://arxiv.org/abs/1610.02391
/// [layer-cam]: https://doi.org/10.1109/TIP.2021.3089943
#[derive(Debug)]
pub struct Explanations {
    predictions: Predictions,
    /// `[N, H / 16, W / 16]`, not negative.
    maps: Tensor,
    view: View,
}

/// How a layer's positions lie on the images.
#[derive(Clone, Copy, Debug)]
struct View {
    /// The images' height and width.
    size: [i64; 2],
    /// For rows and columns: which pixel the first position looks at, and how many further the next one.
    centers: [(i64, i64); 2],
}

impl Sequential<Compiled> {
    /// Returns where in its image each prediction comes from: the features of a layer, each weighted at
    /// each position by its effect on the predicted class' logit where that is positive, added up.
    ///
    /// # Errors
    /// `Argument` if there is no prediction, or they are of another number of classes; `Shape` when the images do not fit the model;
    /// `Image` when one cannot be read any more; `Stopped` by the notebook's Stop button.
    pub fn explain(&self, predictions: &Predictions) -> Result<Explanations> {
        let batches = predictions.batches();
        self.check(&batches, "explain, the predictions")?;
        let layer = explained_layer(self.base());
        let features = self.inference(0, layer)?;
        let loss = self.compiled.loss();
        let mut task = Task::begin("explain", "batch", batches.len());
        let (mut explained, mut maps) = (Vec::new(), Vec::new());
        for (step, batch) in (1..).zip(batches.epoch(0)) {
            let batch = batch?;
            let found = batch.indices.iter();
            let found: Vec<_> = found.map(|&index| &predictions.examples()[index]).collect();
            let classes = found.iter().map(|found| argmax(&found.probabilities));
            maps.push(layer_cam(
                self,
                layer,
                &features(&batch.images)?,
                classes,
                loss,
            )?);
            explained.extend(found);
            task.done(step, explained.len())?;
        }
        Ok(Explanations {
            predictions: predictions.with(explained.into_iter()),
            maps: Tensor::f_cat(&maps, 0).map_err(Error::torch("explanations"))?,
            view: View::of(self.base(), layer),
        })
    }
}

/// Returns the map `[height, width]` of one image `[1, 3, height, width]` for a class, as [`Explanations::maps`] has them.
pub(crate) fn explanation<C>(
    model: &Sequential<C>,
    image: &Tensor,
    class: usize,
    loss: Loss,
) -> Result<Vec<f32>> {
    let layer = explained_layer(model.base());
    let features = model.inference(0, layer)?(image)?;
    let map = layer_cam(model, layer, &features, [class].into_iter(), loss)?;
    values(&View::of(model.base(), layer).enlarged(&map)?)
}

/// Returns the maps `[N, h, w]` of a layer's features `[N, C, h, w]` for a class each.
fn layer_cam<C>(
    model: &Sequential<C>,
    layer: usize,
    features: &Tensor,
    classes: impl Iterator<Item = usize>,
    loss: Loss,
) -> Result<Tensor> {
    let features = features
        .f_detach()
        .and_then(|features| features.f_set_requires_grad(true))
        .map_err(Error::torch("explanations"))?;
    let last_of_base = model.base().layers().len() - 1;
    // Nothing in the base is random.
    let logits = model.logits(&model.run(layer, &features, last_of_base, &[])?)?;
    let predicted = classes.map(|class| class as i64);
    let predicted = Tensor::from_slice(&predicted.collect::<Vec<_>>());
    let one_logit = loss == Loss::BinaryCrossentropy;
    let maps = || -> Result<Tensor, TchError> {
        let predicted = predicted.f_to_device(logits.device())?.f_unsqueeze(1)?;
        let scores = if one_logit {
            // The one logit is class 1's, and against class 0.
            logits.f_mul(&predicted.f_mul_scalar(2)?.f_sub_scalar(1)?)?
        } else {
            logits.f_gather(1, &predicted, false)?
        };
        let score = scores.f_sum(Kind::Float)?;
        let gradients = Tensor::f_run_backward(&[score], &[&features], false, false)?;
        let _no_grad = tch::no_grad_guard();
        let maps = features
            .f_mul(&gradients[0].f_relu()?)?
            .f_sum_dim_intlist(&[1i64][..], false, Kind::Float)?
            .f_to_device(Device::Cpu)?;
        let largest = maps.f_reshape([maps.size()[0], -1])?.f_quantile_scalar(
            CLIP_QUANTILE,
            1,
            true,
            "linear",
        )?;
        maps.f_minimum(&largest.f_unsqueeze(2)?)
    };
    maps().map_err(Error::torch("explanations"))
}

/// Returns the last layer of a base with more positions than its output, twice as many in either
/// direction.
fn explained_layer(base: &Backbone) -> usize {
    let [_, height, _] = base.output_shape();
    let layers = base.layers();
    let finer = |index: &usize| {
        let pads = matches!(layers[*index].operation(), Operation::ZeroPadding { .. });
        !pads && layers[*index].output_shape()[1] > height && base.is_cut(*index)
    };
    (0..layers.len()).rev().find(finer).unwrap_or_default()
}

impl Explanations {
    /// Returns the predictions that are explained.
    #[must_use]
    pub fn predictions(&self) -> &Predictions {
        &self.predictions
    }

    /// Returns the maps, `[N, height, width]` as the images: bilinear between the pixels that the
    /// base's features look at, cut off at the 97 % quantile of its positions and divided by the largest
    /// value that is left. One that is 0 everywhere has nothing that speaks for the class.
    ///
    /// # Errors
    /// `Torch` if there is no memory for them.
    pub fn maps(&self) -> Result<Tensor> {
        self.view.enlarged(&self.maps)
    }

    /// Returns the map of one image, row by row.
    pub(crate) fn map(&self, index: usize) -> Result<Vec<f32>> {
        let index = index as i64;
        let map = self.maps.f_narrow(0, index, 1);
        values(
            &self
                .view
                .enlarged(&map.map_err(Error::torch("explanations"))?)?,
        )
    }
}

/// Returns a tensor's values, row by row.
fn values(map: &Tensor) -> Result<Vec<f32>> {
    map.f_reshape([-1])
        .and_then(|map| Vec::try_from(&map))
        .map_err(Error::torch("explanations"))
}

impl View {
    fn of(base: &Backbone, layer: usize) -> Self {
        let [_, height, width] = base.input_shape();
        Self {
            size: [height, width],
            centers: base.centers(layer),
        }
    }

    /// Returns maps as large as the images.
    fn enlarged(&self, maps: &Tensor) -> Result<Tensor> {
        let [height, width] = self.size;
        let [count, rows, columns] = <[i64; 3]>::try_from(maps.size()).unwrap_or_default();
        // Each pixel's place among the positions, the first being -1 and the last 1.
        let places = |pixels: i64, positions: i64, (first, step): (i64, i64)| {
            let scale = 2. / (step * (positions - 1).max(1)) as f64;
            Tensor::f_arange(pixels, (Kind::Float, Device::Cpu))?
                .f_sub_scalar(first)?
                .f_mul_scalar(scale)?
                .f_sub_scalar(1)
        };
        let enlarged = || {
            let [of_rows, of_columns] = self.centers;
            let x = places(width, columns, of_columns)?.f_expand([height, width], false)?;
            let y = places(height, rows, of_rows)?.f_unsqueeze(1)?;
            let y = y.f_expand([height, width], false)?;
            let grid = Tensor::f_stack(&[x, y], -1)?.f_expand([count, height, width, 2], false)?;
            let (bilinear, border, corners_are_centers) = (0, 1, true);
            let maps = maps
                .f_unsqueeze(1)?
                .f_grid_sampler(&grid, bilinear, border, corners_are_centers)?
                .f_squeeze_dim(1)?;
            let largest = maps.f_amax(&[1i64, 2][..], true)?;
            maps.f_div(&largest.f_clamp_min(f64::from(f32::MIN_POSITIVE))?)
        };
        enlarged().map_err(Error::torch("explanations"))
    }
}

#[cfg(test)]
mod tests {
    use tch::IndexOp as _;

    use super::*;
    use crate::model::tests::{NETWORKS, network};
    use crate::model::{EfficientNetLite, MobileNetV2, ResNet};

    /// All weights being alike and no activation cutting anything off, what a feature sees lies evenly
    /// around what it looks at: the center of mass of its gradient. But of equal values max pooling takes
    /// the first, 2 pixels before the middle of its window.
    #[test]
    fn features_look_at_their_centers() {
        for (weights, sides, expected, pooled) in [
            (MobileNetV2::TF_HUB, [608, 608], [(31, 32), (31, 32)], 0),
            (MobileNetV2::TORCHVISION, [608, 608], [(0, 32), (0, 32)], 0),
            (
                EfficientNetLite::LITE0,
                [1088, 1095],
                [(31, 32), (6, 32)],
                0,
            ),
            (ResNet::RESNET18, [608, 672], [(0, 32), (0, 32)], 2),
        ] {
            let shape = [3, sides[0], sides[1]];
            let architecture = weights.architecture();
            let network = Backbone::frame(architecture, weights, shape, Device::Cpu);
            let mut network = network.unwrap();
            network.set_trainable(false);
            for variable in network.variables_mut() {
                let shape = variable.value().size();
                let inputs: i64 = shape.iter().skip(1).product();
                let value = match variable.name().rsplit('/').next() {
                    // Small, so that no ReLU6 cuts anything off.
                    Some("kernel") => 0.5 / inputs as f64,
                    Some("gamma" | "moving_variance") => 1.,
                    _ => 0.,
                };
                let values = Tensor::full(&shape, value, (Kind::Float, Device::Cpu));
                variable.assign(&values).unwrap();
            }
            let last = network.layers().len() - 1;
            let centers = network.centers(last);
            assert_eq!(centers, expected, "{weights}");
            let [_, rows, columns] = network.output_shape();
            let input = Tensor::ones([1, 3, sides[0], sides[1]], (Kind::Float, Device::Cpu));
            let input = input.set_requires_grad(true);
            let features = Sequential::new(network).run(0, &input, last, &[]).unwrap();
            let at = [rows / 2, columns / 2];
            let feature = features.i((0, 0, at[0], at[1]));
            let seen = Tensor::run_backward(&[feature], &[&input], false, false).remove(0);
            for (direction, (first, step)) in centers.into_iter().enumerate() {
                let others = [0i64, 1, 3 - direction as i64];
                let seen = seen.sum_dim_intlist(others.as_slice(), false, Kind::Double);
                let pixels = Tensor::arange(sides[direction], (Kind::Double, Device::Cpu));
                let center = (pixels * &seen).sum(None) / seen.sum(None);
                let center = center.double_value(&[]);
                let expected = (first + at[direction] * step - pooled) as f64;
                assert!(
                    (center - expected).abs() < 0.01,
                    "{weights}, {direction}: {center} instead of {expected}"
                );
            }
        }
    }

    #[test]
    fn the_explained_layer_is_the_last_before_the_base_halves_for_the_last_time() {
        let explained = NETWORKS.map(|of| {
            let network = network(of);
            let layer = &network.layers()[explained_layer(&network)];
            let [_, rows, columns] = layer.output_shape();
            (layer.name().to_owned(), rows, columns)
        });
        let expected = [
            ("block_13_expand_relu", 4, 4),
            ("block_13_expand_relu", 4, 6),
            ("block_13_expand_relu", 4, 4),
            ("block_11_expand_activation", 4, 4),
            ("block_15_expand_activation", 5, 6),
            ("layer3.1.relu", 4, 4),
            ("layer3.1.relu", 5, 7),
            ("layer3.5.relu", 4, 4),
        ];
        for ((name, rows, columns), expected) in explained.iter().zip(expected) {
            assert_eq!((name.as_str(), *rows, *columns), expected);
        }
    }
}
