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
                operation: "dense".into(),
                expected: format!("[N, {}]", self.inputs()),
                got: features.size(),
            });
        }
        features
            .f_to_device(kernel.device())
            .and_then(|features| features.f_linear(kernel, Some(self.bias.value())))
            .map_err(Error::torch("dense"))
    }
}

/// A layer on top of a base model, as [`Sequential::push`](super::Sequential::push) takes it.
#[derive(Debug)]
pub enum TopLayer {
    /// Averages the features over the picture.
    GlobalAveragePooling2d(GlobalAveragePooling2d),
    /// Turns features into logits.
    Dense(Dense),
}

impl From<GlobalAveragePooling2d> for TopLayer {
    fn from(layer: GlobalAveragePooling2d) -> Self {
        Self::GlobalAveragePooling2d(layer)
    }
}

impl From<Dense> for TopLayer {
    fn from(layer: Dense) -> Self {
        Self::Dense(layer)
    }
}

impl TopLayer {
    /// Returns a layer that shares this one's variables.
    pub(crate) fn shallow_clone(&self) -> Self {
        match self {
            Self::GlobalAveragePooling2d(layer) => (*layer).into(),
            Self::Dense(Dense { kernel, bias }) => Self::Dense(Dense {
                kernel: kernel.shallow_clone(),
                bias: bias.shallow_clone(),
            }),
        }
    }

    pub(crate) fn forward_recorded(&self, input: &Tensor) -> Result<Tensor> {
        match self {
            Self::GlobalAveragePooling2d(layer) => layer.forward(input),
            Self::Dense(layer) => layer.forward_recorded(input),
        }
    }

    /// Returns Keras' name and class, and the output's shape without the batch dimension for an
    /// input of the given shape.
    pub(crate) fn describe(&self, input: &[i64]) -> (&'static str, &'static str, Vec<i64>) {
        match self {
            Self::GlobalAveragePooling2d(_) => {
                let channels = input.iter().take(1).copied().collect();
                (
                    "global_average_pooling2d",
                    "GlobalAveragePooling2D",
                    channels,
                )
            }
            Self::Dense(layer) => ("dense", "Dense", vec![layer.outputs() as i64]),
        }
    }

    pub(crate) fn variables(&self) -> Vec<&Variable> {
        match self {
            Self::GlobalAveragePooling2d(_) => Vec::new(),
            Self::Dense(layer) => layer.variables().into(),
        }
    }

    pub(crate) fn variables_mut(&mut self) -> Vec<&mut Variable> {
        match self {
            Self::GlobalAveragePooling2d(_) => Vec::new(),
            Self::Dense(layer) => layer.variables_mut().into(),
        }
    }
}
