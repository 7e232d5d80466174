//! One layer of a network: what it computes, from which layers, with which variables.
//!
//! Every use of a network (forward pass, freezing, summary, weight files) reads the same flat
//! list of these. What a particular network looks like is not decided here.

use tch::{Device, Kind, TchError, Tensor};

use crate::{Error, Result};

/// A named tensor that belongs to a layer.
#[derive(Debug)]
pub struct Variable {
    name: String,
    value: Tensor,
    statistic: bool,
}

impl Variable {
    pub(crate) fn new(name: String, value: Tensor) -> Self {
        Self {
            name,
            value,
            statistic: false,
        }
    }

    fn filled(name: String, shape: &[i64], value: f64, device: Device) -> Result<Self> {
        let value = Tensor::f_full(shape, value, (Kind::Float, device))
            .map_err(Error::torch(format!("creating {name}")))?;
        Ok(Self::new(name, value))
    }

    fn statistic(mut self) -> Self {
        self.statistic = true;
        self
    }

    /// Returns Keras' name: the layer's name, a slash, the variable's (`Conv1/kernel`).
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the tensor. Convolution kernels are `[out, in / groups, height, width]`, dense
    /// kernels `[out, in]`: libtorch's order, not Keras'.
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// Returns whether this is a batch normalization's moving mean or variance, which no
    /// optimizer ever changes.
    #[must_use]
    pub fn is_statistic(&self) -> bool {
        self.statistic
    }

    /// Returns whether this is a kernel, and not a bias or a batch normalization's.
    pub(crate) fn is_kernel(&self) -> bool {
        self.value.dim() > 1
    }

    /// Returns the number of scalars in the tensor.
    #[must_use]
    pub fn count(&self) -> usize {
        self.value.numel()
    }

    pub(crate) fn set_trainable(&mut self, trainable: bool) {
        if !self.statistic {
            self.value = self.value.set_requires_grad(trainable);
        }
    }

    /// Returns whether training changes the tensor.
    #[must_use]
    pub fn is_trainable(&self) -> bool {
        self.value.requires_grad()
    }

    /// Returns one that shares the values, and is never trained.
    pub(crate) fn detached(&self) -> Self {
        Self {
            name: self.name.clone(),
            value: self.value.detach(),
            statistic: self.statistic,
        }
    }

    /// Overwrites the tensor's values in place.
    pub(crate) fn assign(&mut self, value: &Tensor) -> Result<()> {
        tch::no_grad(|| self.value.f_copy_(value))
            .map_err(Error::torch(format!("assigning {}", self.name)))
    }
}

/// What a layer computes. All tensors are `[batch, channels, height, width]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operation {
    /// The network's input.
    Input,
    /// Rows and columns of zeros around an image. TensorFlow pads some sizes at the end more than at the
    /// start (Keras' `correct_pad`), PyTorch on both sides alike.
    ZeroPadding {
        /// Rows at the top and columns to the left.
        before: [i64; 2],
        /// Rows at the bottom and columns to the right.
        after: [i64; 2],
    },
    /// A convolution without bias.
    Conv2d {
        /// Step in both directions.
        stride: i64,
        /// Zeros on all four sides.
        padding: i64,
    },
    /// A convolution of each channel by itself, without bias.
    DepthwiseConv2d {
        /// Step in both directions.
        stride: i64,
        /// Zeros on all four sides.
        padding: i64,
    },
    /// The largest value in a square window.
    MaxPool2d {
        /// The window's side.
        kernel: i64,
        /// Step in both directions.
        stride: i64,
        /// Values on all four sides that are never the largest.
        padding: i64,
    },
    /// `gamma * (x - moving_mean) / sqrt(moving_variance + epsilon) + beta`: batch
    /// normalization in inference mode, the only mode in which a base model runs.
    BatchNormalization {
        /// Added to the variance.
        epsilon: f64,
    },
    /// `max(x, 0)`.
    Relu,
    /// `min(max(x, 0), 6)`.
    Relu6,
    /// The sum of two layers' outputs.
    Add,
}

impl Operation {
    /// Returns the class name that Keras prints.
    #[must_use]
    pub fn class_name(&self) -> &'static str {
        match self {
            Self::Input => "InputLayer",
            Self::ZeroPadding { .. } => "ZeroPadding2D",
            Self::Conv2d { .. } => "Conv2D",
            Self::DepthwiseConv2d { .. } => "DepthwiseConv2D",
            Self::MaxPool2d { .. } => "MaxPooling2D",
            Self::BatchNormalization { .. } => "BatchNormalization",
            Self::Relu | Self::Relu6 => "ReLU",
            Self::Add => "Add",
        }
    }
}

/// A layer in a flat network: an operation, the layers it reads and its variables.
#[derive(Debug)]
pub struct Layer {
    name: String,
    operation: Operation,
    inputs: Vec<usize>,
    output_shape: [i64; 3],
    trainable: bool,
    variables: Vec<Variable>,
}

impl Layer {
    /// Makes a layer without variables.
    pub(crate) fn new(
        name: impl Into<String>,
        operation: Operation,
        inputs: Vec<usize>,
        output_shape: [i64; 3],
    ) -> Self {
        let name = name.into();
        Self {
            name,
            operation,
            inputs,
            output_shape,
            trainable: true,
            variables: Vec::new(),
        }
    }

    /// Adds a zero-filled kernel of the given shape.
    pub(crate) fn with_kernel(mut self, shape: [i64; 4], device: Device) -> Result<Self> {
        self.variables = vec![Variable::filled(
            self.variable_name("kernel"),
            &shape,
            0.,
            device,
        )?];
        Ok(self)
    }

    /// Adds a batch normalization's four variables, in Keras' order, such that it is the
    /// identity (up to epsilon).
    pub(crate) fn with_batch_normalization(mut self, device: Device) -> Result<Self> {
        let shape = [self.output_shape[0]];
        let filled =
            |kind, value| Variable::filled(self.variable_name(kind), &shape, value, device);
        self.variables = vec![
            filled("gamma", 1.)?,
            filled("beta", 0.)?,
            filled("moving_mean", 0.)?.statistic(),
            filled("moving_variance", 1.)?.statistic(),
        ];
        Ok(self)
    }

    fn variable_name(&self, kind: &str) -> String {
        format!("{}/{kind}", self.name)
    }

    /// Returns Keras' name of the layer.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns what the layer computes.
    #[must_use]
    pub fn operation(&self) -> Operation {
        self.operation
    }

    /// Returns the indices of the layers whose outputs this one reads.
    #[must_use]
    pub fn inputs(&self) -> &[usize] {
        &self.inputs
    }

    /// Returns `[channels, height, width]` of the output.
    #[must_use]
    pub fn output_shape(&self) -> [i64; 3] {
        self.output_shape
    }

    /// Returns whether training may change the layer's weights.
    #[must_use]
    pub fn is_trainable(&self) -> bool {
        self.trainable
    }

    /// Freezes (`false`) or unfreezes (`true`) the layer's weights.
    pub fn set_trainable(&mut self, trainable: bool) {
        self.trainable = trainable;
        for variable in &mut self.variables {
            variable.set_trainable(trainable);
        }
    }

    /// Returns the layer's variables in Keras' order.
    #[must_use]
    pub fn variables(&self) -> &[Variable] {
        &self.variables
    }

    pub(crate) fn variables_mut(&mut self) -> &mut [Variable] {
        &mut self.variables
    }

    /// Returns a layer that shares this one's values, and is never trained.
    pub(crate) fn detached(&self) -> Self {
        Self {
            name: self.name.clone(),
            operation: self.operation,
            inputs: self.inputs.clone(),
            output_shape: self.output_shape,
            trainable: self.trainable,
            variables: self.variables.iter().map(Variable::detached).collect(),
        }
    }

    /// Computes the layer's output from those of the layers it reads; only an addition reads a
    /// second one.
    pub(crate) fn forward(&self, input: &Tensor, second: Option<&Tensor>) -> Result<Tensor> {
        let variable = |index: usize| self.variables[index].value();
        let none = None::<&Tensor>;
        let output = match self.operation {
            Operation::Input => Ok(input.shallow_clone()),
            Operation::ZeroPadding { before, after } => {
                input.f_constant_pad_nd([before[1], after[1], before[0], after[0]])
            }
            Operation::Conv2d { stride, padding } => {
                input.f_conv2d(variable(0), none, [stride; 2], [padding; 2], [1, 1], 1)
            }
            Operation::DepthwiseConv2d { stride, padding } => {
                let channels = self.output_shape[0];
                input.f_conv2d(
                    variable(0),
                    none,
                    [stride; 2],
                    [padding; 2],
                    [1, 1],
                    channels,
                )
            }
            Operation::MaxPool2d {
                kernel,
                stride,
                padding,
            } => input.f_max_pool2d([kernel; 2], [stride; 2], [padding; 2], [1, 1], false),
            Operation::BatchNormalization { epsilon } => self.normalize(input, epsilon),
            Operation::Relu => input.f_relu(),
            Operation::Relu6 => input.f_clamp(0., 6.),
            Operation::Add => second
                .ok_or_else(|| TchError::Shape("an addition of one input".into()))
                .and_then(|second| input.f_add(second)),
        };
        output.map_err(Error::torch(format!("layer {}", self.name)))
    }

    /// Does the work of a batch normalization.
    pub(super) fn normalize(&self, input: &Tensor, epsilon: f64) -> Result<Tensor, TchError> {
        let [gamma, beta, mean, variance] = [0, 1, 2, 3].map(|i| Some(self.variables[i].value()));
        input.f_batch_norm(gamma, beta, mean, variance, false, 0., epsilon, false)
    }
}

/// Freezing of many layers at once: `layers_mut()[..100].set_trainable(false)`.
pub trait SetTrainable {
    /// Freezes (`false`) or unfreezes (`true`) every layer's weights.
    fn set_trainable(&mut self, trainable: bool);
}

impl SetTrainable for [Layer] {
    fn set_trainable(&mut self, trainable: bool) {
        for layer in self {
            layer.set_trainable(trainable);
        }
    }
}
