//! Where in a picture a model sees the class that it predicts: [Grad-CAM](https://arxiv.org/abs/1610.02391).

use std::collections::HashMap;
use std::time::Instant;

use tch::{Device, IndexOp, Kind, TchError, Tensor};

use super::{Prediction, Predictions};
use crate::live::{Progress, Stop};
use crate::model::{Sequential, TopLayer};
use crate::training::Compiled;
use crate::{Error, Result};

/// How much each part of each picture speaks for the predicted class.
///
/// With global average pooling and one dense layer on top, it is also what
/// [class activation mapping](https://arxiv.org/abs/1512.04150) gives.
#[derive(Debug)]
pub struct Explanations {
    predictions: Predictions,
    /// `[N, H / 32, W / 32]`, not negative.
    maps: Tensor,
    /// The pictures' height and width.
    size: [i64; 2],
}

impl Sequential<Compiled> {
    /// Returns where in its picture each prediction comes from: the features of the base, each
    /// weighted by its mean effect on the predicted class' logit, where they add up to more than 0.
    ///
    /// # Errors
    /// `Argument` if there is no prediction, or they are of another number of classes; `Shape` when the pictures do not fit the model;
    /// `Picture` when one cannot be read any more; `Stopped` by the notebook's Stop button.
    pub fn explain(&self, predictions: &Predictions) -> Result<Explanations> {
        let batches = predictions.batches();
        self.check(&batches, "explain, the predictions")?;
        let by_id: HashMap<&str, &Prediction> = predictions
            .examples()
            .iter()
            .map(|prediction| (prediction.id.as_str(), prediction))
            .collect();
        let features = self.inference(0, self.base().layers().len() - 1)?;
        let (mut progress, mut stop) = (Progress::begin(), Stop::listen());
        let (start, steps) = (Instant::now(), batches.len());
        let (mut explained, mut maps) = (Vec::new(), Vec::new());
        for (step, batch) in (1..).zip(batches.epoch(0)) {
            let batch = batch?;
            let found = batch.ids.iter().filter_map(|id| by_id.get(id.as_str()));
            let found: Vec<&Prediction> = found.copied().collect();
            maps.push(self.grad_cam(&features(&batch.images)?, &found)?);
            explained.extend(found);
            progress.show(|| {
                let rate = explained.len() as f64 / start.elapsed().as_secs_f64();
                format!("explanations: {step}/{steps} - {rate:.0} img/s")
            });
            if stop.requested() {
                return Err(Error::Stopped {
                    operation: format!("explain, after batch {step} of {steps}"),
                });
            }
        }
        let [_, height, width] = self.base().input_shape();
        Ok(Explanations {
            predictions: predictions.with(explained.into_iter()),
            maps: Tensor::f_cat(&maps, 0).map_err(Error::torch("explanations"))?,
            size: [height, width],
        })
    }

    /// Returns the maps `[N, h, w]` of features `[N, C, h, w]`.
    fn grad_cam(&self, features: &Tensor, predictions: &[&Prediction]) -> Result<Tensor> {
        let features = features.detach().set_requires_grad(true);
        let forward = |input: Tensor, layer: &TopLayer| match layer {
            TopLayer::GlobalAveragePooling2d(layer) => layer.forward(&input),
            TopLayer::Dropout(_) => Ok(input),
            TopLayer::Dense(layer) => layer.forward_recorded(&input),
        };
        let logits = self
            .top()
            .iter()
            .try_fold(features.shallow_clone(), forward)?;
        let predicted = predictions.iter().map(|p| p.predicted as i64);
        let predicted = Tensor::from_slice(&predicted.collect::<Vec<_>>());
        let maps = || -> Result<Tensor, TchError> {
            let predicted = predicted.f_to_device(logits.device())?.f_unsqueeze(1)?;
            let scores = if logits.size()[1] == 1 {
                // The one logit is class 1's, and against class 0.
                logits.f_mul(&predicted.f_mul_scalar(2)?.f_sub_scalar(1)?)?
            } else {
                logits.f_gather(1, &predicted, false)?
            };
            let score = scores.f_sum(Kind::Float)?;
            let gradients = Tensor::f_run_backward(&[score], &[&features], false, false)?;
            let _no_grad = tch::no_grad_guard();
            let weights = gradients[0].f_mean_dim(&[2i64, 3][..], true, Kind::Float)?;
            features
                .f_mul(&weights)?
                .f_sum_dim_intlist(&[1i64][..], false, Kind::Float)?
                .f_relu()?
                .f_to_device(Device::Cpu)
        };
        maps().map_err(Error::torch("explanations"))
    }
}

impl Explanations {
    /// Returns the predictions that are explained.
    #[must_use]
    pub fn predictions(&self) -> &Predictions {
        &self.predictions
    }

    /// Returns the maps, `[N, height, width]` as the pictures: bilinear between the base's features,
    /// and each divided by its largest value. One that is 0 everywhere has nothing that speaks for
    /// the class.
    ///
    /// # Errors
    /// `Torch` if there is no memory for them.
    pub fn maps(&self) -> Result<Tensor> {
        self.enlarged(&self.maps)
    }

    /// Returns the map of one picture, row by row.
    pub(crate) fn map(&self, index: usize) -> Result<Vec<f32>> {
        let index = index as i64;
        let map = self.enlarged(&self.maps.i(index..index + 1))?;
        Vec::try_from(map.reshape(-1)).map_err(Error::torch("explanations"))
    }

    fn enlarged(&self, maps: &Tensor) -> Result<Tensor> {
        let enlarged = || {
            let maps = maps
                .f_unsqueeze(1)?
                .f_upsample_bilinear2d(self.size, false, None, None)?
                .f_squeeze_dim(1)?;
            let largest = maps.f_amax(&[1i64, 2][..], true)?;
            maps.f_div(&largest.f_clamp_min(f64::from(f32::MIN_POSITIVE))?)
        };
        enlarged().map_err(Error::torch("explanations"))
    }
}
