//! The layers of a network in the steps that they are computed in: a convolution takes the padding
//! before it and the batch normalization, ReLU6 or addition behind it along.
//!
//! A batch normalization in inference mode is `scale * x + shift` for each channel, so it can be
//! multiplied into the kernel of the convolution before it: no pass over the activations remains.
//! While the network is trained this happens inside the backward pass's record, so that `gamma`,
//! `beta` and the kernel get their gradients; for inference it is done once.

use std::collections::BTreeMap;

use tch::{Device, TchError, Tensor};

use super::fused::Geometry;
use super::layer::{Layer, Operation};
use crate::{Error, Result};

/// One or more layers that are computed at once.
#[derive(Debug, PartialEq)]
pub(super) struct Step {
    /// The layer whose output goes in.
    pub(super) input: usize,
    /// The layer whose output comes out.
    pub(super) output: usize,
    /// The layer whose output is added.
    residual: Option<usize>,
    /// Whether a later step adds this one's input.
    keeps_input: bool,
    pub(super) work: Work,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Work {
    /// The output layer, by itself.
    Layer,
    /// A convolution and the batch normalization behind it.
    Convolution(Convolution),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Convolution {
    /// The convolution's layer; the batch normalization is the next one.
    layer: usize,
    pub(super) geometry: Geometry,
    epsilon: f64,
    /// A zero-padding layer comes before.
    padded: bool,
    /// Rows and columns of zeros that it adds at the end beyond those on all four sides.
    pub(super) uneven: i64,
    /// A ReLU6 layer comes behind.
    pub(super) relu6: bool,
}

/// Groups the layers behind `from` up to `to`.
pub(super) fn steps(layers: &[Layer], from: usize, to: usize) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut done = from;
    while done < to {
        let convolution = Convolution::starting_at(&layers[..=to], done + 1);
        let mut output = convolution.map_or(done + 1, |convolution| convolution.last());
        let next = layers[..=to].get(output + 1);
        if convolution.is_some_and(|convolution| !convolution.relu6)
            && next.is_some_and(|next| next.operation() == Operation::Add)
        {
            output += 1;
        }
        let before = output.saturating_sub(1);
        steps.push(Step {
            input: done,
            output,
            residual: layers[output]
                .inputs()
                .iter()
                .copied()
                .find(|&input| input != before),
            keeps_input: false,
            work: convolution.map_or(Work::Layer, Work::Convolution),
        });
        done = output;
    }
    let residuals: Vec<usize> = steps.iter().filter_map(|step| step.residual).collect();
    for step in &mut steps {
        step.keeps_input = residuals.contains(&step.input);
    }
    steps
}

impl Convolution {
    /// Returns the convolution that begins with layer `first`, if it has a batch normalization.
    fn starting_at(layers: &[Layer], first: usize) -> Option<Self> {
        let operation = |index: usize| layers.get(index).map(Layer::operation);
        let (padded, before, after) = match operation(first)? {
            Operation::ZeroPadding { before, after } => (true, before, after),
            _ => (false, 0, 0),
        };
        let layer = first + usize::from(padded);
        let (stride, padding, groups) = match operation(layer)? {
            Operation::Conv2d { stride } => (stride, 0, 1),
            Operation::DepthwiseConv2d { stride, padding } => {
                (stride, padding, layers[layer].output_shape()[0])
            }
            _ => return None,
        };
        let Operation::BatchNormalization { epsilon } = operation(layer + 1)? else {
            return None;
        };
        Some(Self {
            layer,
            geometry: Geometry {
                stride,
                padding: padding + before,
                groups,
            },
            epsilon,
            padded,
            uneven: after - before,
            relu6: operation(layer + 2) == Some(Operation::Relu6),
        })
    }

    /// Returns the layer whose output goes in.
    pub(super) fn input(self) -> usize {
        self.layer - 1 - usize::from(self.padded)
    }

    /// Returns the last layer that is computed along.
    fn last(self) -> usize {
        self.layer + 1 + usize::from(self.relu6)
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

    /// Returns the convolution's output, recorded for a backward pass.
    fn run(self, layers: &[Layer], input: &Tensor) -> Result<Tensor, TchError> {
        let padded = self.pad(input)?;
        if input.device() != Device::Cpu {
            // Small batches keep a GPU waiting for the next kernel: these are the fewest.
            let kernel = layers[self.layer].variables()[0].value();
            let output = convolve(&padded, kernel, None, self.geometry)?;
            return self.clamp(layers[self.layer + 1].normalize(&output, self.epsilon)?);
        }
        let (kernel, bias) = self.folded(layers)?;
        self.clamp(convolve(&padded, &kernel, Some(&bias), self.geometry)?)
    }

    /// Does what is left of the work of the padding layer before it.
    pub(super) fn pad(self, input: &Tensor) -> Result<Tensor, TchError> {
        match self.uneven {
            0 => Ok(input.shallow_clone()),
            uneven => input.f_constant_pad_nd([0, uneven, 0, uneven]),
        }
    }

    /// Does the work of the ReLU6 layer behind it; in place, autograd would keep a copy of `output`.
    pub(super) fn clamp(self, output: Tensor) -> Result<Tensor, TchError> {
        if self.relu6 {
            output.f_relu6()
        } else {
            Ok(output)
        }
    }
}

/// Computes the steps one after the other, each from what belongs to it, its input and what it
/// adds.
pub(super) fn follow<'a, T>(
    steps: impl IntoIterator<Item = (&'a Step, T)>,
    input: &Tensor,
    mut compute: impl FnMut(&Step, T, &Tensor, Option<&Tensor>) -> Result<Tensor>,
) -> Result<Tensor> {
    let mut output = input.shallow_clone();
    let mut residuals = BTreeMap::new();
    for (step, own) in steps {
        if step.keeps_input {
            residuals.insert(step.input, output.shallow_clone());
        }
        let residual = step.residual.and_then(|layer| residuals.remove(&layer));
        output = compute(step, own, &output, residual.as_ref())?;
    }
    Ok(output)
}

impl Step {
    /// Returns whether the output is a block's, which has few channels.
    pub(super) fn is_narrow(&self) -> bool {
        matches!(self.work, Work::Convolution(convolution) if !convolution.relu6)
    }

    /// Returns whether the output of a step before `other` is added.
    pub(super) fn adds_from_before(&self, other: &Self) -> bool {
        self.residual
            .is_some_and(|residual| residual < other.output)
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
            Work::Layer => layer.forward(input, residual),
            Work::Convolution(convolution) => convolution
                .run(layers, input)
                .and_then(|output| add(output, residual))
                .map_err(Error::torch(format!("layer {}", layer.name()))),
        }
    }
}

/// Returns layer `to`'s output for layer `from`'s, recording what the trainable layers between need
/// for a backward pass.
pub(super) fn run(
    layers: &[Layer],
    from: usize,
    input: &Tensor,
    to: usize,
    device: Device,
) -> Result<Tensor> {
    let input = channels_last(input, device)?;
    let steps = steps(layers, from, to);
    let steps = steps.iter().map(|step| (step, ()));
    follow(steps, &input, |step, (), input, residual| {
        step.run(layers, input, residual)
    })
}

/// Adds, in place, what a residual connection brings, if there is one.
pub(super) fn add(mut output: Tensor, residual: Option<&Tensor>) -> Result<Tensor, TchError> {
    match residual {
        Some(residual) => output.f_add_(residual),
        None => Ok(output),
    }
}

pub(super) fn convolve(
    input: &Tensor,
    kernel: &Tensor,
    bias: Option<&Tensor>,
    geometry: Geometry,
) -> Result<Tensor, TchError> {
    let (strides, paddings) = ([geometry.stride; 2], [geometry.padding; 2]);
    input.f_conv2d(kernel, bias, strides, paddings, [1, 1], geometry.groups)
}

/// Returns the same `[N, C, H, W]` tensor on `device`, with its memory in N, H, W, C order, for
/// which libtorch's convolutions are faster. tch has no call for it.
pub(super) fn channels_last(images: &Tensor, device: Device) -> Result<Tensor> {
    images
        .f_to_device(device)
        .and_then(|images| {
            images
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
