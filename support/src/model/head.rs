//! The layers that are put on top of a base model.

use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::layer::Variable;
use crate::{Error, Result};

/// Averages each channel over height and width: `[N, C, H, W]` becomes `[N, C]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
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

    /// Returns what features `[N, ...]` are multiplied by, each example's of `shape`; `place` is the layer's
    /// index among those on top. What is dropped of a shard's part of the batch does not depend on the other parts.
    fn factors(&self, shape: &[i64], place: usize, step: TrainingStep<'_>) -> Result<Tensor> {
        let scale = (1. / (1. - self.rate)) as f32;
        let examples: i64 = step.parts.iter().map(|(_, examples)| examples).sum();
        let each = shape.iter().product::<i64>() as usize;
        let mut factors = Vec::with_capacity(each * examples as usize);
        for &(shard, examples) in step.parts {
            let mut key = <ChaCha8Rng as SeedableRng>::Seed::default();
            for (part, number) in key
                .chunks_mut(8)
                .zip([self.seed, place as u64, shard as u64])
            {
                part.copy_from_slice(&number.to_le_bytes());
            }
            let mut random = ChaCha8Rng::from_seed(key);
            random.set_stream(step.number);
            factors.extend(
                (0..each * examples as usize)
                    .map(|_| f64::from(random.random::<f32>()) >= self.rate)
                    .map(|kept| if kept { scale } else { 0. }),
            );
        }
        Tensor::f_from_slice(&factors)
            .and_then(|factors| factors.f_reshape([&[examples], shape].concat()))
            .map_err(Error::torch("dropout"))
    }
}

/// What the random choices of a training step depend on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TrainingStep<'a> {
    /// How many steps there were before.
    pub(crate) number: u64,
    /// The shards that the batch's examples are of, and how many of each, in order.
    pub(crate) parts: &'a [(usize, i64)],
}

/// A fully connected layer without activation: `[N, in]` becomes `[N, out]`.
///
/// Its weights are made once it is [pushed](super::Sequential::push) onto a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dense {
    name: String,
    inputs: usize,
    units: usize,
    /// Of the kernel's initial values, which a file has no use for.
    #[serde(skip)]
    seed: u64,
}

impl Dense {
    /// Returns a layer with Keras' initial weights: the kernel Glorot uniform, that is between
    /// plus and minus `sqrt(6 / (inputs + outputs))`, the bias zero. Seed 0.
    #[must_use]
    pub fn new(inputs: usize, outputs: usize) -> Self {
        Self {
            name: "dense".into(),
            inputs,
            units: outputs,
            seed: 0,
        }
    }

    /// Draws the initial kernel anew from a seed; the same on every machine.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Names the layer, and its variables with it, as Keras' `count`th in a model.
    pub(super) fn number(&mut self, count: usize) {
        self.name = match count {
            0 => "dense".to_owned(),
            _ => format!("dense_{count}"),
        };
    }

    /// Returns Keras' name of the layer, `dense` or `dense_1` and so on.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the number of inputs.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Returns the number of outputs, Keras' `units`.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.units
    }

    /// Makes kernel and bias.
    fn variables(&self, device: Device) -> Result<Vec<Variable>> {
        let count = self.inputs.checked_mul(self.units);
        let count = count.ok_or_else(|| self.too_large())?;
        let mut values = Vec::new();
        let reserved = values.try_reserve_exact(count);
        reserved.map_err(|_| self.too_large())?;
        let limit = (6. / (self.inputs + self.units).max(1) as f32).sqrt();
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        values.extend((0..count).map(|_| limit * (2. * random.random::<f32>() - 1.)));
        let (inputs, units) = (self.inputs as i64, self.units as i64);
        let kernel = Tensor::f_from_slice(&values)
            .and_then(|values| values.f_reshape([units, inputs])?.f_to_device(device));
        let bias = Tensor::f_zeros([units], (Kind::Float, device));
        [("kernel", kernel), ("bias", bias)]
            .into_iter()
            .map(|(kind, value)| {
                let value = value.map_err(|_| self.too_large())?;
                let mut variable = Variable::new(format!("{}/{kind}", self.name), value);
                variable.set_trainable(true);
                Ok(variable)
            })
            .collect()
    }

    fn too_large(&self) -> Error {
        Error::Argument {
            name: "Dense",
            expected: "a layer that there is memory for".into(),
            got: format!(
                "{} of {} inputs and {} outputs",
                self.name, self.inputs, self.units
            ),
        }
    }

    /// Returns logits `[N, out]` for features `[N, in]`, computed with the initial weights: those that
    /// the layer has in a model before it is trained.
    ///
    /// # Errors
    /// `Shape` when `features` has another number of columns, `Argument` when there is no memory for the
    /// weights.
    pub fn forward(&self, features: &Tensor) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        self.apply(&self.variables(features.device())?, features)
    }

    /// Returns logits `[N, out]` for features `[N, in]`, recorded for a backward pass.
    fn apply(&self, variables: &[Variable], features: &Tensor) -> Result<Tensor> {
        if features.dim() != 2 || features.size()[1] as usize != self.inputs {
            return Err(Error::Shape {
                operation: self.name.clone(),
                expected: format!("[N, {}]", self.inputs),
                got: features.size(),
            });
        }
        let [kernel, bias] = variables else {
            return Err(self.too_large());
        };
        let (kernel, bias) = (kernel.value(), bias.value());
        features
            .f_to_device(kernel.device())
            .and_then(|features| features.f_linear(kernel, Some(bias)))
            .map_err(Error::torch(&self.name))
    }
}

/// A layer on top of a base model, as [`Sequential::push`](super::Sequential::push) takes it and files
/// describe it, by Keras' `class_name`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "class_name")]
pub enum HeadLayer {
    /// Averages the features over the image.
    #[serde(rename = "GlobalAveragePooling2D")]
    GlobalAveragePooling2d(GlobalAveragePooling2d),
    /// Drops features while training.
    Dropout(Dropout),
    /// Turns features into logits.
    Dense(Dense),
}

impl From<GlobalAveragePooling2d> for HeadLayer {
    fn from(layer: GlobalAveragePooling2d) -> Self {
        Self::GlobalAveragePooling2d(layer)
    }
}

impl From<Dropout> for HeadLayer {
    fn from(layer: Dropout) -> Self {
        Self::Dropout(layer)
    }
}

impl From<Dense> for HeadLayer {
    fn from(layer: Dense) -> Self {
        Self::Dense(layer)
    }
}

impl HeadLayer {
    /// Returns Keras' name of the layer.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::GlobalAveragePooling2d(_) => "global_average_pooling2d",
            Self::Dropout(_) => "dropout",
            Self::Dense(layer) => layer.name(),
        }
    }

    /// Returns Keras' name of the layer's class.
    pub(crate) fn class_name(&self) -> &'static str {
        match self {
            Self::GlobalAveragePooling2d(_) => "GlobalAveragePooling2D",
            Self::Dropout(_) => "Dropout",
            Self::Dense(_) => "Dense",
        }
    }

    /// Returns whether every training step makes something else of the same input.
    pub(crate) fn is_random(&self) -> bool {
        matches!(self, Self::Dropout(_))
    }

    /// Returns the output's shape for an example of the given shape.
    ///
    /// # Errors
    /// `Shape` when the layer takes another one, `Argument` for what no layer can be made of.
    pub(crate) fn output_shape(&self, input: &[i64]) -> Result<Vec<i64>> {
        let expected = match (self, input) {
            (Self::GlobalAveragePooling2d(_), &[channels, _, _]) => return Ok(vec![channels]),
            (Self::GlobalAveragePooling2d(_), _) => "[channels, height, width]".into(),
            (Self::Dropout(layer), _) => return layer.check().map(|()| input.to_vec()),
            (Self::Dense(layer), &[features]) if features as usize == layer.inputs => {
                let units = i64::try_from(layer.units).map_err(|_| layer.too_large())?;
                return Ok(vec![units]);
            }
            (Self::Dense(layer), _) => format!("[{}]", layer.inputs),
        };
        Err(Error::Shape {
            operation: self.name().into(),
            expected,
            got: input.to_vec(),
        })
    }
}

/// Returns the shape of an example's output of a head, for features of a shape.
///
/// # Errors
/// `Shape` names the first layer that takes another input than it would get; else as
/// [`HeadLayer::output_shape`].
pub(crate) fn output_shape<'a>(
    head: impl IntoIterator<Item = &'a HeadLayer>,
    features: &[i64],
) -> Result<Vec<i64>> {
    let mut layers = head.into_iter();
    layers.try_fold(features.to_vec(), |shape, layer| layer.output_shape(&shape))
}

/// A layer in a model.
#[derive(Debug)]
pub(super) struct BuiltLayer {
    pub(super) layer: HeadLayer,
    /// An example's; none where the layer does not fit those before it.
    pub(super) output_shape: Option<Vec<i64>>,
    /// None where the layer does not fit, or there is no memory for them.
    pub(super) variables: Vec<Variable>,
}

impl BuiltLayer {
    /// Makes the variables for an example of the given shape.
    pub(super) fn new(layer: HeadLayer, input: Option<&[i64]>, device: Device) -> Self {
        let output_shape = input.and_then(|input| layer.output_shape(input).ok());
        let variables = match &layer {
            HeadLayer::Dense(dense) if output_shape.is_some() => dense.variables(device).ok(),
            _ => None,
        };
        Self {
            layer,
            output_shape,
            variables: variables.unwrap_or_default(),
        }
    }

    /// Refuses a layer that there is no memory for.
    pub(super) fn check_memory(&self) -> Result<()> {
        match &self.layer {
            HeadLayer::Dense(dense) if self.variables.is_empty() => Err(dense.too_large()),
            _ => Ok(()),
        }
    }

    /// Returns the layer with its values as they are, shared and never trained.
    pub(super) fn detached(&self) -> Self {
        Self {
            layer: self.layer.clone(),
            output_shape: self.output_shape.clone(),
            variables: self.variables.iter().map(Variable::detached).collect(),
        }
    }

    /// Returns, for a random layer, what it multiplies its input by in a training step, `place` being its index
    /// among those on top.
    pub(super) fn factors(&self, place: usize, step: TrainingStep<'_>) -> Result<Option<Tensor>> {
        let shape = self.output_shape.as_deref().unwrap_or_default();
        match &self.layer {
            HeadLayer::Dropout(layer) => layer.factors(shape, place, step).map(Some),
            _ => Ok(None),
        }
    }

    /// Returns the output, recorded for a backward pass: for inference, or in a training step that is
    /// given with the [factors](Self::factors) of a random layer.
    pub(super) fn forward(&self, input: &Tensor, factors: Option<&Tensor>) -> Result<Tensor> {
        match (&self.layer, factors) {
            (HeadLayer::GlobalAveragePooling2d(layer), _) => layer.forward(input),
            (HeadLayer::Dropout(_), Some(factors)) => {
                input.f_mul(factors).map_err(Error::torch("dropout"))
            }
            (HeadLayer::Dropout(_), None) => Ok(input.shallow_clone()),
            (HeadLayer::Dense(layer), _) => layer.apply(&self.variables, input),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ones() -> Tensor {
        Tensor::ones([32, 1280], (Kind::Float, Device::Cpu))
    }

    fn built(layer: Dropout) -> BuiltLayer {
        BuiltLayer::new(layer.into(), Some(&[1280]), Device::Cpu)
    }

    fn forward_training(
        layer: &BuiltLayer,
        features: &Tensor,
        place: usize,
        step: TrainingStep<'_>,
    ) -> Tensor {
        let factors = layer.factors(place, step).unwrap();
        layer.forward(features, factors.as_ref()).unwrap()
    }

    fn drop(layer: Dropout, place: usize, number: u64) -> Tensor {
        let step = TrainingStep {
            number,
            parts: &[(0, 32)],
        };
        forward_training(&built(layer), &ones(), place, step)
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
            // Four standard deviations of the share are at most 0.01, of a mean over the images
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
    fn what_is_dropped_of_a_shard_does_not_depend_on_the_others() {
        let layer = built(Dropout::new(0.2));
        let drop = |parts: &[(usize, i64)]| {
            let examples: i64 = parts.iter().map(|(_, examples)| examples).sum();
            let step = TrainingStep { number: 7, parts };
            let features = ones().narrow(0, 0, examples);
            forward_training(&layer, &features, 1, step)
        };
        let whole = drop(&[(2, 5), (3, 4)]);
        assert_eq!(whole.narrow(0, 0, 5), drop(&[(2, 5)]));
        assert_eq!(whole.narrow(0, 5, 4), drop(&[(3, 4)]));
        assert_ne!(drop(&[(2, 4)]), drop(&[(3, 4)]));
    }

    #[test]
    fn dropout_does_nothing_in_inference() {
        let layer = built(Dropout::new(0.9));
        assert_eq!(layer.forward(&ones(), None).unwrap(), ones());
    }

    #[test]
    fn a_dense_layer_by_itself_gives_what_it_gives_in_a_model_before_training() {
        let dense = Dense::new(1280, 2).seed(5);
        let built = BuiltLayer::new(dense.clone().into(), Some(&[1280]), Device::Cpu);
        let features = Tensor::rand([3, 1280], (Kind::Float, Device::Cpu));
        let logits = dense.forward(&features).unwrap();
        assert_eq!(logits, built.forward(&features, None).unwrap().detach());
        assert!(!logits.requires_grad() && logits.abs().min().double_value(&[]) > 0.);
        let error = dense.forward(&features.narrow(1, 0, 9)).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{error}");
    }

    #[test]
    fn the_gradient_of_what_is_dropped_is_zero() {
        let features = ones().set_requires_grad(true);
        let layer = built(Dropout::new(0.5));
        let step = TrainingStep {
            number: 0,
            parts: &[(0, 32)],
        };
        let dropped = forward_training(&layer, &features, 0, step);
        dropped.sum(None).backward();
        assert_eq!(features.grad(), dropped.detach());
    }
}
