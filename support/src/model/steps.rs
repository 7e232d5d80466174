//! The layers of a network in the steps that they are computed in. Most steps are fused operations: a
//! convolution with the padding before it and the batch normalization, addition and ReLU after it.
//!
//! A batch normalization in inference mode is `scale * x + shift` for each channel, so it can be
//! multiplied into the kernel of the convolution before it: no pass over the activations remains.
//! In training this happens in each step, and `gamma`, `beta` and the kernel get their gradients; for
//! inference it is done once.

use std::collections::{BTreeMap, BTreeSet};

use tch::{Device, Kind, TchError, Tensor};

use super::fused::{self, Activation, Geometry};
use super::layer::{Layer, Operation};
use crate::cuda::to_device;
use crate::{Error, Result};

/// One or more layers that are computed at once.
#[derive(Debug, PartialEq)]
pub(super) struct Step {
    /// The layer whose output goes in.
    pub(super) input: usize,
    /// The layer whose output is added, if there is one.
    residual: Option<usize>,
    /// The layer whose output comes out.
    pub(super) output: usize,
    /// The layers whose outputs no later step reads.
    last_read: Vec<usize>,
    pub(super) work: Work,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Work {
    /// The output layer, by itself.
    Layer,
    /// A convolution and the batch normalization after it, the addition and the activation.
    Convolution(Convolution),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Convolution {
    /// The convolution's layer; the batch normalization is the next one.
    pub(super) layer: usize,
    pub(super) geometry: Geometry,
    /// Rows at the bottom and columns to the right of zeros beyond those on all four sides.
    pub(super) uneven: [i64; 2],
    epsilon: f64,
    /// What comes last, after the addition.
    pub(super) activation: Activation,
}

/// Groups the layers after `from`, a cut, up to `to`.
pub(super) fn steps(layers: &[Layer], from: usize, to: usize) -> Vec<Step> {
    let chain = Chain::new(&layers[..=to]);
    let mut steps: Vec<Step> = Vec::new();
    let mut done = from;
    while done < to {
        let step = Step::starting_at(&chain, done + 1);
        done = step.output;
        steps.push(step);
    }
    let mut read = BTreeSet::new();
    for step in steps.iter_mut().rev() {
        let inputs = [Some(step.input), step.residual].into_iter().flatten();
        step.last_read = inputs.filter(|&input| read.insert(input)).collect();
    }
    steps
}

/// Layers, and how many layers read each one's output.
struct Chain<'a> {
    layers: &'a [Layer],
    readers: Vec<usize>,
}

impl<'a> Chain<'a> {
    fn new(layers: &'a [Layer]) -> Self {
        let mut readers = vec![0; layers.len()];
        for &input in layers.iter().flat_map(Layer::inputs) {
            readers[input] += 1;
        }
        Self { layers, readers }
    }

    /// Returns the layer after `index` if nothing else reads the output of `index`.
    fn after(&self, index: usize) -> Option<&'a Layer> {
        let next = self.layers.get(index + 1)?;
        (self.readers[index] == 1 && next.inputs().contains(&index)).then_some(next)
    }
}

impl Step {
    /// Returns the step that begins with layer `first`.
    fn starting_at(chain: &Chain<'_>, first: usize) -> Self {
        let inputs = chain.layers[first].inputs();
        let mut step = Self {
            input: inputs[0],
            residual: inputs.get(1).copied(),
            output: first,
            last_read: Vec::new(),
            work: Work::Layer,
        };
        let Some(mut convolution) = Convolution::starting_at(chain, first) else {
            return step;
        };
        step.output = convolution.layer + 1;
        if let Some(next) = chain.after(step.output)
            && next.operation() == Operation::Add
        {
            let before = step.output;
            step.residual = next.inputs().iter().copied().find(|&other| other != before);
            step.output += 1;
        }
        let activation = match chain.after(step.output).map(Layer::operation) {
            Some(Operation::Relu) => Activation::Relu,
            Some(Operation::Relu6) => Activation::Relu6,
            _ => Activation::None,
        };
        if activation != Activation::None {
            convolution.activation = activation;
            step.output += 1;
        }
        step.work = Work::Convolution(convolution);
        step
    }

    /// Returns whether the output is a block's: a sum, or a convolution's without activation.
    pub(super) fn ends_block(&self) -> bool {
        match self.work {
            Work::Layer => false,
            Work::Convolution(Convolution { activation, .. }) => {
                self.residual.is_some() || activation == Activation::None
            }
        }
    }

    /// Returns whether it reads nothing before the output of layer `cut`.
    pub(super) fn starts_from(&self, cut: usize) -> bool {
        self.input >= cut && self.residual.is_none_or(|residual| residual >= cut)
    }

    /// Returns the step's output, recording what the trainable layers in it need for a backward
    /// pass.
    pub(super) fn run(
        &self,
        layers: &[Layer],
        input: &Tensor,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let layer = &layers[self.output];
        match self.work {
            Work::Layer => by_itself(layer, input, residual),
            Work::Convolution(convolution) => convolution
                .run(layers, input, residual)
                .map_err(Error::torch(format!("layer {}", layer.name()))),
        }
    }
}

impl Convolution {
    /// Returns the convolution that begins with layer `first`, if it has a batch normalization.
    fn starting_at(chain: &Chain<'_>, first: usize) -> Option<Self> {
        let (layer, before, after) = match chain.layers[first].operation() {
            Operation::ZeroPadding { before, after } => {
                chain.after(first)?;
                (first + 1, before, after)
            }
            _ => (first, [0; 2], [0; 2]),
        };
        let convolution = &chain.layers[layer];
        let (stride, padding, groups) = match convolution.operation() {
            Operation::Conv2d { stride, padding } => (stride, padding, 1),
            Operation::DepthwiseConv2d { stride, padding } => {
                (stride, padding, convolution.output_shape()[0])
            }
            _ => return None,
        };
        let Operation::BatchNormalization { epsilon } = chain.after(layer)?.operation() else {
            return None;
        };
        Some(Self {
            layer,
            geometry: Geometry {
                stride,
                padding: before.map(|before| before + padding),
                groups,
            },
            uneven: [after[0] - before[0], after[1] - before[1]],
            epsilon,
            activation: Activation::None,
        })
    }

    /// Returns the kernel and the bias with the batch normalization multiplied in.
    pub(super) fn folded(self, layers: &[Layer]) -> Result<(Tensor, Tensor), TchError> {
        let kernel = layers[self.layer].variables()[0].value();
        let statistics = layers[self.layer + 1].variables();
        let [gamma, beta, mean, variance] = [0, 1, 2, 3].map(|i| statistics[i].value());
        let deviation = variance.f_add_scalar(self.epsilon)?;
        let scale = deviation.f_rsqrt()?.f_mul(gamma)?;
        let kernel = kernel.f_mul(&scale.f_view([-1, 1, 1, 1])?)?;
        Ok((kernel, beta.f_sub(&mean.f_mul(&scale)?)?))
    }

    /// Returns the step's output, recorded for a backward pass.
    fn run(
        self,
        layers: &[Layer],
        input: &Tensor,
        residual: Option<&Tensor>,
    ) -> Result<Tensor, TchError> {
        let (padded, normalization) = (self.pad(input)?, &layers[self.layer + 1]);
        let kernel = layers[self.layer].variables()[0].value();
        if input.device() != Device::Cpu {
            // Small batches keep a GPU waiting for the next kernel: these are the fewest.
            let kernel = kernel.f_to_kind(input.kind())?;
            let output = convolve(&padded, &kernel, None, self.geometry)?;
            return self.finish(normalization.normalize(&output, self.epsilon)?, residual);
        }
        let convolution = |activation| {
            let variables = [0, 1, 2, 3].map(|i| normalization.variables()[i].value());
            let (epsilon, geometry) = (self.epsilon, self.geometry);
            fused::normalized_convolution(&padded, kernel, variables, epsilon, geometry, activation)
        };
        match residual {
            None => convolution(self.activation),
            residual => self.finish(convolution(Activation::None)?, residual),
        }
    }

    /// Adds the zeros that [`Geometry`] cannot tell.
    pub(super) fn pad(self, input: &Tensor) -> Result<Tensor, TchError> {
        match self.uneven {
            [0, 0] => Ok(input.shallow_clone()),
            [rows, columns] => input.f_constant_pad_nd([0, columns, 0, rows]),
        }
    }

    /// Does the work of the addition and the activation after a convolution.
    pub(super) fn finish(
        self,
        mut output: Tensor,
        residual: Option<&Tensor>,
    ) -> Result<Tensor, TchError> {
        if let Some(residual) = residual {
            output = output.f_add_(residual)?;
        }
        match self.activation {
            Activation::None => Ok(output),
            Activation::Relu => output.f_relu_(),
            // In place, autograd would keep a copy of `output`.
            Activation::Relu6 => output.f_relu6(),
        }
    }
}

/// Computes the steps one after the other, each from what belongs to it, its input and what it
/// adds. An output is kept until the last step that reads it.
pub(super) fn follow<'a, T>(
    steps: impl IntoIterator<Item = (&'a Step, T)>,
    input: &Tensor,
    mut compute: impl FnMut(&Step, T, &Tensor, Option<&Tensor>) -> Result<Tensor>,
) -> Result<Tensor> {
    let mut newest = input.shallow_clone();
    let mut newest_is = None;
    let mut outputs = BTreeMap::new();
    for (step, own) in steps {
        // The first step's input is what all of them start from.
        outputs.insert(newest_is.unwrap_or(step.input), newest);
        let residual = step.residual.map(|layer| &outputs[&layer]);
        newest = compute(step, own, &outputs[&step.input], residual)?;
        newest_is = Some(step.output);
        for layer in &step.last_read {
            outputs.remove(layer);
        }
    }
    Ok(newest)
}

/// Returns the output of a layer that is no part of a fused operation, computed in its weights' precision.
pub(super) fn by_itself(
    layer: &Layer,
    input: &Tensor,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let kind = input.kind();
    if kind != Kind::BFloat16 {
        return layer.forward(input, residual);
    }
    let widened = |tensor: &Tensor| tensor.f_to_kind(Kind::Float);
    let failed = || Error::torch(format!("layer {}", layer.name()));
    let input = widened(input).map_err(failed())?;
    let residual = residual.map(widened).transpose().map_err(failed())?;
    let output = layer.forward(&input, residual.as_ref())?;
    output.f_to_kind(kind).map_err(failed())
}

/// Returns layer `to`'s output for layer `from`'s, computed in `kind`, recording what the trainable layers
/// between need for a backward pass.
pub(super) fn run(
    layers: &[Layer],
    from: usize,
    input: &Tensor,
    to: usize,
    device: Device,
    kind: Kind,
) -> Result<Tensor> {
    let input = channels_last(input, device, kind)?;
    let steps = steps(layers, from, to);
    let steps = steps.iter().map(|step| (step, ()));
    follow(steps, &input, |step, (), input, residual| {
        step.run(layers, input, residual)
    })
}

pub(super) fn convolve(
    input: &Tensor,
    kernel: &Tensor,
    bias: Option<&Tensor>,
    geometry: Geometry,
) -> Result<Tensor, TchError> {
    let strides = [geometry.stride; 2];
    input.f_conv2d(
        kernel,
        bias,
        strides,
        geometry.padding,
        [1, 1],
        geometry.groups,
    )
}

/// Returns the same `[N, C, H, W]` tensor of `kind` on `device`, with its memory in N, H, W, C order, for
/// which libtorch's convolutions are faster. tch has no call for it.
pub(super) fn channels_last(images: &Tensor, device: Device, kind: Kind) -> Result<Tensor> {
    to_device(images, device)
        .and_then(|images| {
            images
                .f_to_kind(kind)?
                .f_permute([0, 2, 3, 1])?
                .f_contiguous()?
                .f_permute([0, 3, 1, 2])
        })
        .map_err(Error::torch("input layout"))
}

/// Refuses examples `[N, C, H, W]` of another shape than `[C, H, W]`.
pub(super) fn check_shape(operation: &str, [c, h, w]: [i64; 3], examples: &Tensor) -> Result<()> {
    let got = examples.size();
    if got.get(1..) == Some(&[c, h, w]) {
        return Ok(());
    }
    Err(Error::Shape {
        operation: operation.into(),
        expected: format!("[N, {c}, {h}, {w}]"),
        got,
    })
}
