//! The layers that are put on top of a base model.

use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use tch::Tensor;

use super::layer::Variable;
use crate::{Error, Result};

/// Averages each channel over height and width: `[N, C, H, W]` becomes `[N, C]`.
#[derive(Clone, Copy, Debug)]
pub struct GlobalAveragePooling2d;

impl GlobalAveragePooling2d {
    /// Returns the averages `[N, C]` of features `[N, C, H, W]`.
    ///
    /// # Errors
    /// `Shape` when `features` does not have four dimensions.
    pub fn forward(&self, features: &Tensor) -> Result<Tensor> {
        if features.dim() != 4 {
            return Err(Error::Shape {
                operation: "global_average_pooling2d".into(),
                expected: "[N, C, H, W]".into(),
                got: features.size(),
            });
        }
        features
            .f_mean_dim(&[2i64, 3][..], false, None)
            .map_err(Error::torch("global_average_pooling2d"))
    }
}

/// Sets each feature to zero with probability `rate` while training, and divides the others by
/// `1 - rate`, so that they add up to as much on average. Does nothing in inference. As Keras'
/// `Dropout`.
///
/// Which features, depends on the seed, the layer's place in the model and the number of the
/// training step only, counted by [`fit`](super::Sequential::fit) from the first epoch of all: a
/// run that is continued with [`initial_epoch`](crate::training::Fit::initial_epoch) drops what
/// one that was never interrupted drops, on any device.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    rate: f64,
    seed: u64,
}

impl Dropout {
    /// Returns a layer that drops a share of the features, 0 or more and less than 1, which
    /// [`compile`](super::Sequential::compile) checks. Seed 0.
    #[must_use]
    pub fn new(rate: f64) -> Self {
        Self { rate, seed: 0 }
    }

    /// Drops other features.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Returns the rate and the seed.
    pub(crate) fn parts(self) -> (f64, u64) {
        (self.rate, self.seed)
    }

    fn check(&self) -> Result<()> {
        if (0.0..1.0).contains(&self.rate) {
            return Ok(());
        }
        Err(Error::Argument {
            name: "Dropout, the rate",
            expected: "0 or more, and less than 1".into(),
            got: self.rate.to_string(),
        })
    }

    /// Drops features, `place` being the layer's index among those on top.
    fn forward_training(&self, features: &Tensor, place: usize, step: u64) -> Result<Tensor> {
        let mut key = <ChaCha8Rng as SeedableRng>::Seed::default();
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        key[8..16].copy_from_slice(&(place as u64).to_le_bytes());
        let mut random = ChaCha8Rng::from_seed(key);
        random.set_stream(step);
        let scale = (1. / (1. - self.rate)) as f32;
        let factors: Vec<f32> = (0..features.numel())
            .map(|_| f64::from(random.random::<f32>()) >= self.rate)
            .map(|kept| if kept { scale } else { 0. })
            .collect();
        Tensor::f_from_slice(&factors)
            .and_then(|factors| factors.f_reshape(features.size()))
            .and_then(|factors| factors.f_to_device(features.device()))
            .and_then(|factors| features.f_mul(&factors))
            .map_err(Error::torch("dropout"))
    }
}

/// A fully connected layer without activation: `[N, in]` becomes `[N, out]`.
#[derive(Debug)]
pub struct Dense {
    kernel: Variable,
    bias: Variable,
}

impl Dense {
    /// Returns a layer with Keras' initial weights: the kernel Glorot uniform, that is between
    /// plus and minus `sqrt(6 / (inputs + outputs))`, the bias zero. Seed 0.
    #[must_use]
    pub fn new(inputs: usize, outputs: usize) -> Self {
        Self::with_seed(inputs, outputs, 0)
    }

    /// Draws the initial kernel anew from a seed; the same on every machine.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        Self::with_seed(self.inputs(), self.outputs(), seed)
    }

    /// Names the layer, and its variables with it, as Keras' `count`th in a model.
    pub(super) fn number(&mut self, count: usize) {
        let name = match count {
            0 => "dense".to_owned(),
            _ => format!("dense_{count}"),
        };
        self.kernel.rename(format!("{name}/kernel"));
        self.bias.rename(format!("{name}/bias"));
    }

    /// Returns Keras' name of the layer, `dense` or `dense_1` and so on.
    pub(crate) fn name(&self) -> &str {
        let name = self.kernel.name();
        name.strip_suffix("/kernel").unwrap_or(name)
    }

    fn with_seed(inputs: usize, outputs: usize, seed: u64) -> Self {
        let limit = (6. / (inputs + outputs).max(1) as f32).sqrt();
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let values: Vec<f32> = (0..inputs * outputs)
            .map(|_| limit * (2. * random.random::<f32>() - 1.))
            .collect();
        let kernel = Tensor::from_slice(&values).reshape([outputs as i64, inputs as i64]);
        let bias = Tensor::from_slice(&vec![0f32; outputs]);
        let mut dense = Self {
            kernel: Variable::new("dense/kernel".into(), kernel),
            bias: Variable::new("dense/bias".into(), bias),
        };
        for variable in dense.variables_mut() {
            variable.set_trainable(true);
        }
        dense
    }

    /// Returns the number of inputs.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.kernel.value().size()[1] as usize
    }

    /// Returns the number of outputs, Keras' `units`.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.kernel.value().size()[0] as usize
    }

    /// Returns kernel `[out, in]` and bias `[out]`.
    #[must_use]
    pub fn variables(&self) -> [&Variable; 2] {
        [&self.kernel, &self.bias]
    }

    pub(crate) fn variables_mut(&mut self) -> [&mut Variable; 2] {
        [&mut self.kernel, &mut self.bias]
    }

    /// Returns logits `[N, out]` for features `[N, in]`.
    ///
    /// # Errors
    /// `Shape` when `features` has another number of columns.
    pub fn forward(&self, features: &Tensor) -> Result<Tensor> {
        tch::no_grad(|| self.forward_recorded(features))
    }

    pub(crate) fn forward_recorded(&self, features: &Tensor) -> Result<Tensor> {
        let kernel = self.kernel.value();
        if features.dim() != 2 || features.size()[1] != kernel.size()[1] {
            return Err(Error::Shape {
                operation: self.name().into(),
                expected: format!("[N, {}]", self.inputs()),
                got: features.size(),
            });
        }
        // A trace would record a move to where the features are already.
        let features = match kernel.device() {
            device if device == features.device() => Ok(features.shallow_clone()),
            device => features.f_to_device(device),
        };
        features
            .and_then(|features| features.f_linear(kernel, Some(self.bias.value())))
            .map_err(Error::torch(self.name()))
    }
}

/// A layer on top of a base model, as [`Sequential::push`](super::Sequential::push) takes it.
#[derive(Debug)]
pub enum TopLayer {
    /// Averages the features over the picture.
    GlobalAveragePooling2d(GlobalAveragePooling2d),
    /// Drops features while training.
    Dropout(Dropout),
    /// Turns features into logits.
    Dense(Dense),
}

impl From<GlobalAveragePooling2d> for TopLayer {
    fn from(layer: GlobalAveragePooling2d) -> Self {
        Self::GlobalAveragePooling2d(layer)
    }
}

impl From<Dropout> for TopLayer {
    fn from(layer: Dropout) -> Self {
        Self::Dropout(layer)
    }
}

impl From<Dense> for TopLayer {
    fn from(layer: Dense) -> Self {
        Self::Dense(layer)
    }
}

impl TopLayer {
    /// Returns the layer with its values as they are, shared and never trained.
    pub(crate) fn detached(&self) -> Self {
        match self {
            Self::GlobalAveragePooling2d(layer) => (*layer).into(),
            Self::Dropout(layer) => (*layer).into(),
            Self::Dense(Dense { kernel, bias }) => Self::Dense(Dense {
                kernel: kernel.detached(),
                bias: bias.detached(),
            }),
        }
    }

    /// Returns the output for inference.
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor> {
        match self {
            Self::GlobalAveragePooling2d(layer) => layer.forward(input),
            Self::Dropout(_) => Ok(input.shallow_clone()),
            Self::Dense(layer) => layer.forward(input),
        }
    }

    /// Returns the output in a training step, recorded for a backward pass. `place` is the
    /// layer's index among those on top.
    pub(crate) fn forward_recorded(
        &self,
        input: &Tensor,
        place: usize,
        step: u64,
    ) -> Result<Tensor> {
        match self {
            Self::GlobalAveragePooling2d(layer) => layer.forward(input),
            Self::Dropout(layer) => layer.forward_training(input, place, step),
            Self::Dense(layer) => layer.forward_recorded(input),
        }
    }

    /// Checks what was given to the layer.
    pub(crate) fn check(&self) -> Result<()> {
        match self {
            Self::Dropout(layer) => layer.check(),
            Self::GlobalAveragePooling2d(_) | Self::Dense(_) => Ok(()),
        }
    }

    /// Returns whether every training step makes something else of the same input.
    pub(crate) fn is_random(&self) -> bool {
        matches!(self, Self::Dropout(_))
    }

    /// Returns Keras' name and class, and the output's shape without the batch dimension for an
    /// input of the given shape.
    pub(crate) fn describe(&self, input: &[i64]) -> (&str, &'static str, Vec<i64>) {
        match self {
            Self::GlobalAveragePooling2d(_) => {
                let channels = input.iter().take(1).copied().collect();
                (
                    "global_average_pooling2d",
                    "GlobalAveragePooling2D",
                    channels,
                )
            }
            Self::Dropout(_) => ("dropout", "Dropout", input.to_vec()),
            Self::Dense(layer) => (layer.name(), "Dense", vec![layer.outputs() as i64]),
        }
    }

    pub(crate) fn variables(&self) -> Vec<&Variable> {
        match self {
            Self::GlobalAveragePooling2d(_) | Self::Dropout(_) => Vec::new(),
            Self::Dense(layer) => layer.variables().into(),
        }
    }

    pub(crate) fn variables_mut(&mut self) -> Vec<&mut Variable> {
        match self {
            Self::GlobalAveragePooling2d(_) | Self::Dropout(_) => Vec::new(),
            Self::Dense(layer) => layer.variables_mut().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn ones() -> Tensor {
        Tensor::ones([32, 1280], (Kind::Float, Device::Cpu))
    }

    fn drop(layer: Dropout, place: usize, step: u64) -> Tensor {
        let layer = TopLayer::from(layer);
        layer.forward_recorded(&ones(), place, step).unwrap()
    }

    #[test]
    fn dropout_drops_its_rate_and_scales_the_others() {
        for rate in [0.0, 0.2, 0.75] {
            let dropped = drop(Dropout::new(rate), 1, 7);
            let kept = dropped.ne(0.);
            let values = dropped.masked_select(&kept);
            let scale = 1. / (1. - rate);
            assert!((values.min().double_value(&[]) - scale).abs() < 1e-6);
            assert!((values.max().double_value(&[]) - scale).abs() < 1e-6);
            // Four standard deviations of the share are at most 0.01, of a mean over the pictures
            // 0.36 times the scale.
            let share = kept.to_kind(Kind::Double).mean(None).double_value(&[]);
            assert!((share - (1. - rate)).abs() < 0.01, "{rate}: {share}");
            let of_features = dropped.mean_dim(0i64, false, None);
            let furthest = (of_features - 1.).abs().max().double_value(&[]);
            assert!(furthest < 0.4 * scale, "{rate}: {furthest}");
        }
    }

    #[test]
    fn what_is_dropped_depends_on_seed_place_and_step() {
        let layer = Dropout::new(0.2).seed(3);
        let one = drop(layer, 1, 7);
        assert_eq!(one, drop(layer, 1, 7));
        for other in [
            drop(layer.seed(4), 1, 7),
            drop(layer, 2, 7),
            drop(layer, 1, 8),
        ] {
            // Independent masks differ in 0.32 of all places.
            let differs = one.ne_tensor(&other).to_kind(Kind::Double).mean(None);
            assert!((differs.double_value(&[]) - 0.32).abs() < 0.02);
        }
    }

    #[test]
    fn dropout_does_nothing_in_inference() {
        let layer = TopLayer::from(Dropout::new(0.9));
        assert_eq!(layer.forward(&ones()).unwrap(), ones());
    }

    #[test]
    fn the_gradient_of_what_is_dropped_is_zero() {
        let features = ones().set_requires_grad(true);
        let layer = TopLayer::from(Dropout::new(0.5));
        let dropped = layer.forward_recorded(&features, 0, 0).unwrap();
        dropped.sum(None).backward();
        assert_eq!(features.grad(), dropped.detach());
    }
}
