//! Layers prepared for many forward passes without a backward pass.

use std::sync::{Mutex, PoisonError};

use tch::{Device, Kind, TchError, Tensor};

use super::fused::{self, Activation};
use super::layer::Layer;
#[cfg(feature = "openvino")]
use super::onnx::openvino::Session;
use super::steps::{
    Convolution, Step, Work, by_itself, channels_last, check_shape, convolve, follow, steps,
};
use crate::cuda::{FullBatch, Recorder, bounded_sum, to_device};
use crate::{Error, Result};

/// Images in a micro-batch on a CPU, at most.
const MICRO_BATCH: i64 = 32;

/// Bytes that a layer's output takes for a micro-batch, at most: so few that the next layer still finds
/// most of it in a cache. (glibc, besides, reuses no memory beyond 32 MiB.)
const ACTIVATION_BYTES: i64 = 10 << 20;

/// Some layers of a network, with every batch normalization multiplied into the convolution
/// before it and the kernels in the layout that is quickest to read.
///
/// It holds the weights as they were when it was made.
#[derive(Debug)]
pub(crate) struct Inference {
    /// The network's name, and the shape that it takes an example in.
    name: String,
    input_shape: [i64; 3],
    engine: Engine,
}

/// What computes.
#[derive(Debug)]
enum Engine {
    Libtorch {
        device: Device,
        kind: Kind,
        micro_batch: i64,
        stages: Vec<Stage>,
        full_batch: FullBatch,
        recorder: Mutex<Recorder>,
    },
    #[cfg(feature = "openvino")]
    OpenVino(Session),
}

/// Operations that go through a batch in micro-batches of one size.
#[derive(Debug)]
struct Stage {
    micro_batch: i64,
    operations: Vec<(Step, FusedOperation)>,
}

/// What a step is computed with.
#[derive(Debug)]
enum FusedOperation {
    Layer(Layer),
    Convolution {
        /// The name of the step's last layer.
        layer: String,
        convolution: FoldedConvolution,
    },
}

/// A [`Convolution`] with the batch normalization in its weights.
#[derive(Debug)]
struct FoldedConvolution {
    convolution: Convolution,
    kernel: FoldedKernel,
    bias: Tensor,
}

/// A kernel in the memory layout that it is read in.
#[derive(Debug)]
enum FoldedKernel {
    Plain(Tensor),
    /// For [`fused::convolution`] of a micro-batch, and of a single image: what is laid out for the one is laid out
    /// anew at each call with the other, which takes a single image three times as long.
    Reordered {
        micro_batch: Tensor,
        single: Tensor,
    },
}

// Safety: its tensors are only read, which any number of threads may do; what changes is behind locks.
unsafe impl Sync for Inference {}

impl Inference {
    /// Prepares the layers after `from`, a cut, up to `to`, for computing in `kind`.
    pub(super) fn new(
        name: String,
        layers: &[Layer],
        from: usize,
        to: usize,
        device: Device,
        kind: Kind,
    ) -> Result<Self> {
        let _no_grad = tch::no_grad_guard();
        Ok(Self {
            name,
            input_shape: layers[from].output_shape(),
            engine: Engine::new(layers, from, to, device, kind)?,
        })
    }

    /// Returns the last layer's output for the output of the layer before the first one, as 32-bit floats.
    ///
    /// # Errors
    /// `Shape` for an input of another shape.
    pub(crate) fn run(&self, input: &Tensor) -> Result<Tensor> {
        check_shape(&self.name, self.input_shape, input)?;
        let _no_grad = tch::no_grad_guard();
        self.engine.run(input)
    }
}

impl Engine {
    fn new(layers: &[Layer], from: usize, to: usize, device: Device, kind: Kind) -> Result<Self> {
        #[cfg(feature = "openvino")]
        if device == Device::Cpu
            && !layers[from + 1..=to].iter().any(Layer::is_trainable)
            && let Some(session) = Session::new(layers, from, to, kind)?
        {
            return Ok(Self::OpenVino(session));
        }
        let mut steps = steps(layers, from, to);
        let (micro_batch, large) = match device {
            Device::Cpu => (MICRO_BATCH, large_steps(layers, &steps, kind)),
            _ => (i64::MAX, 0),
        };
        let fused = device == Device::Cpu && tch::utils::has_mkldnn();
        let rest = steps.split_off(large);
        let largest = steps.iter().map(|step| bytes(layers, step, kind)).max();
        let small_batch = largest.map_or(micro_batch, |largest| {
            (ACTIVATION_BYTES / largest).clamp(1, micro_batch)
        });
        let stages = [(steps, small_batch), (rest, micro_batch)].into_iter();
        let stages = stages.map(|(steps, size)| Stage::new(layers, steps, size, fused, kind));
        Ok(Self::Libtorch {
            device,
            kind,
            micro_batch,
            stages: stages.collect::<Result<_>>()?,
            full_batch: FullBatch::default(),
            recorder: Mutex::default(),
        })
    }

    fn run(&self, input: &Tensor) -> Result<Tensor> {
        match self {
            Self::Libtorch {
                device,
                kind,
                micro_batch,
                stages,
                full_batch,
                recorder,
            } => in_micro_batches(input, *micro_batch, |part| {
                let part = to_device(part, *device).map_err(Error::torch("batch"))?;
                let work = |parts: &[Tensor]| {
                    let part = channels_last(&parts[0], *device, *kind)?;
                    let output = stages
                        .iter()
                        .try_fold(part, |part, stage| stage.run(&part))?;
                    let output = output.f_to_kind(Kind::Float);
                    Ok(vec![output.map_err(Error::torch("batch"))?])
                };
                full_batch.run(&part, |part| {
                    let inputs = [part.shallow_clone()];
                    let mut outputs = match device {
                        Device::Cpu => work(&inputs)?,
                        // One thread at a time.
                        _ => {
                            let recorder = recorder.lock();
                            let mut recorder = recorder.unwrap_or_else(PoisonError::into_inner);
                            recorder.run(&inputs, work)?
                        }
                    };
                    Ok(outputs.remove(0))
                })
            }),
            #[cfg(feature = "openvino")]
            Self::OpenVino(session) => session.run(input),
        }
    }
}

/// Computes at most `micro_batch` examples at a time.
fn in_micro_batches(
    input: &Tensor,
    micro_batch: i64,
    mut compute: impl FnMut(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    if input.size()[0] <= micro_batch {
        return compute(input);
    }
    let parts = input.f_split(micro_batch, 0);
    let parts = parts.map_err(Error::torch("batch"))?;
    let outputs: Vec<Tensor> = parts.iter().map(compute).collect::<Result<_>>()?;
    Tensor::f_cat(&outputs, 0).map_err(Error::torch("batch"))
}

/// Returns how many steps there are up to the last whose activations are too large for a
/// [`MICRO_BATCH`], and on to the next bottleneck.
fn large_steps(layers: &[Layer], steps: &[Step], kind: Kind) -> usize {
    let is_large = |step| bytes(layers, step, kind) > ACTIVATION_BYTES / MICRO_BATCH;
    let Some(last) = steps.iter().rposition(is_large) else {
        return 0;
    };
    let is_bottleneck = |&count: &usize| {
        let before = &steps[count - 1];
        let mut after = steps[count..].iter();
        before.ends_block() && after.all(|step| step.starts_from(before.output))
    };
    (last + 1..steps.len())
        .find(is_bottleneck)
        .unwrap_or(steps.len())
}

/// Returns the bytes of the larger of a step's input and output for one example.
fn bytes(layers: &[Layer], step: &Step, kind: Kind) -> i64 {
    let size = kind.elt_size_in_bytes() as i64;
    let bytes = |layer: usize| layers[layer].output_shape().iter().product::<i64>() * size;
    bytes(step.input).max(bytes(step.output))
}

impl Stage {
    fn new(
        layers: &[Layer],
        steps: Vec<Step>,
        micro_batch: i64,
        fused: bool,
        kind: Kind,
    ) -> Result<Self> {
        let prepare = |step: Step| {
            let layer = &layers[step.output];
            let operation = match step.work {
                Work::Layer => FusedOperation::Layer(layer.detached()),
                Work::Convolution(convolution) => {
                    let [channels, height, width] = layers[step.input].output_shape();
                    let input_size = fused.then_some([micro_batch, channels, height, width]);
                    FusedOperation::Convolution {
                        layer: layer.name().into(),
                        convolution: FoldedConvolution::new(convolution, layers, input_size, kind)
                            .map_err(Error::torch(format!("preparing layer {}", layer.name())))?,
                    }
                }
            };
            Ok((step, operation))
        };
        Ok(Self {
            micro_batch,
            operations: steps.into_iter().map(prepare).collect::<Result<_>>()?,
        })
    }

    fn run(&self, input: &Tensor) -> Result<Tensor> {
        in_micro_batches(input, self.micro_batch, |part| {
            let steps = self.operations.iter().map(|(step, own)| (step, own));
            follow(
                steps,
                part,
                |_, operation, input, residual| match operation {
                    FusedOperation::Layer(layer) => by_itself(layer, input, residual),
                    FusedOperation::Convolution { layer, convolution } => convolution
                        .run(input, residual)
                        .map_err(Error::torch(format!("layer {layer}"))),
                },
            )
        })
    }
}

impl FoldedConvolution {
    /// Folds the batch normalization in, and lays the kernel out for [`fused::convolution`] of inputs of
    /// `input_size`, if there is one.
    fn new(
        mut convolution: Convolution,
        layers: &[Layer],
        input_size: Option<[i64; 4]>,
        kind: Kind,
    ) -> Result<Self, TchError> {
        let (kernel, bias) = convolution.folded(layers)?;
        let (mut kernel, bias) = (kernel.f_to_kind(kind)?, bias.f_to_kind(kind)?);
        let on_gpu = kernel.device().is_cuda();
        if on_gpu || input_size.is_some() {
            // As many more rows and columns of zeros in the kernel and padding on all sides give what padding at
            // the end gives, without a padded copy of the input; so does one more of each, as the stride is 2.
            // cuDNN is slow with kernels of even sizes.
            let more = |uneven| if on_gpu && uneven > 0 { 1 } else { 0 };
            let [rows, columns] = std::mem::take(&mut convolution.uneven).map(|at| at + more(at));
            kernel = kernel.f_constant_pad_nd([columns, 0, rows, 0])?;
            convolution.geometry.padding[0] += rows;
            convolution.geometry.padding[1] += columns;
        }
        let Some([micro_batch, input @ ..]) = input_size else {
            return Ok(Self {
                convolution,
                kernel: FoldedKernel::Plain(kernel),
                bias,
            });
        };
        let [channels, height, width] = input;
        let reordered = |count| {
            let input_size = [count, channels, height, width];
            fused::reorder_weight(&kernel, convolution.geometry, input_size)
        };
        Ok(Self {
            convolution,
            kernel: FoldedKernel::Reordered {
                micro_batch: reordered(micro_batch)?,
                single: reordered(1)?,
            },
            bias,
        })
    }

    fn run(&self, input: &Tensor, residual: Option<&Tensor>) -> Result<Tensor, TchError> {
        let (convolution, bias) = (self.convolution, &self.bias);
        let geometry = convolution.geometry;
        let kernel = match &self.kernel {
            FoldedKernel::Plain(kernel) if kernel.device().is_cuda() => {
                let output = convolve(input, kernel, None, geometry)?;
                return bounded_sum(&output, bias, residual, convolution.activation.bounds());
            }
            FoldedKernel::Plain(kernel) => {
                let output = convolve(&convolution.pad(input)?, kernel, Some(bias), geometry)?;
                return convolution.finish(output, residual);
            }
            FoldedKernel::Reordered { single, .. } if input.size()[0] == 1 => single,
            FoldedKernel::Reordered { micro_batch, .. } => micro_batch,
        };
        if residual.is_none() {
            return fused::convolution(input, kernel, bias, geometry, convolution.activation);
        }
        let sum = fused::convolution(input, kernel, bias, geometry, Activation::None)?;
        convolution.finish(sum, residual)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tch::Kind;

    use super::*;
    use crate::distributed::tests::on_ranks;
    use crate::model::Backbone;
    use crate::model::steps::run;
    use crate::model::tests::{NETWORKS, network};
    use crate::precision::{Precision, multiplies_bf16};

    /// Computes a layer from the outputs of those from `first` on.
    fn forward(layer: &Layer, outputs: &[Tensor], first: usize) -> Tensor {
        let mut inputs = layer.inputs().iter().map(|input| &outputs[input - first]);
        layer
            .forward(inputs.next().unwrap(), inputs.next())
            .unwrap()
    }

    /// Computes every layer by itself.
    fn layer_by_layer(layers: &[Layer], from: usize, input: &Tensor, to: usize) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        let mut outputs = vec![input.shallow_clone()];
        for layer in &layers[from + 1..=to] {
            outputs.push(forward(layer, &outputs, from));
        }
        outputs.pop().unwrap()
    }

    #[test]
    fn steps_give_what_the_layers_give_one_by_one() {
        for of in NETWORKS {
            let network = network(of);
            let last = network.layers().len() - 1;
            // All; a single layer; up to a convolution without its normalization; none; from each part to
            // the next one and to the end.
            let mut parts = vec![(0, last), (0, 1), (0, 27), (last, last)];
            let cuts: Vec<usize> = (1..last).filter(|&layer| network.is_cut(layer)).collect();
            for parts_between in cuts.windows(2).step_by(3) {
                parts.push((parts_between[0], parts_between[1]));
            }
            parts.push((cuts[cuts.len() / 2], last));
            steps_give_what_the_layers_give(&network, &parts);
        }
    }

    fn steps_give_what_the_layers_give(network: &Backbone, parts: &[(usize, usize)]) {
        let layers = network.layers();
        for &(from, to) in parts {
            let [channels, height, width] = layers[from].output_shape();
            // The whole network: more than a micro-batch, and not a multiple of that.
            let count = if from == 0 { MICRO_BATCH + 3 } else { 2 };
            let shape = [count, channels, height, width];
            let input = Tensor::randn(shape, (Kind::Float, Device::Cpu));
            let expected = layer_by_layer(layers, from, &input, to);
            let inference = network.inference(from, to).unwrap();
            let inferred = inference.run(&input).unwrap();
            let single = inference.run(&input.narrow(0, 0, 1)).unwrap();
            let difference = (single - expected.narrow(0, 0, 1)).abs().max();
            assert!(f64::try_from(difference / expected.abs().max()).unwrap() < 1e-4);
            let recorded = run(layers, from, &input, to, Device::Cpu, Kind::Float).unwrap();
            for output in [inferred, recorded] {
                assert_eq!(output.size(), expected.size());
                let difference = (&output - &expected).abs().max() / expected.abs().max();
                let difference = f64::try_from(difference).unwrap();
                let name = network.name();
                assert!(difference < 1e-4, "{name}, {from} to {to}: {difference}");
            }
        }
    }

    #[test]
    fn bfloat16_gives_features_close_to_those_of_32_bits() {
        if !multiplies_bf16(Device::Cpu) {
            return;
        }
        for of in NETWORKS {
            let mut network = network(of);
            let [channels, height, width] = network.input_shape();
            let images = [4, channels, height, width];
            let images = Tensor::randn(images, (Kind::Float, Device::Cpu));
            let mut outputs = |precision| {
                network.set_precision(precision).unwrap();
                let recorded = network.run(0, &images, network.layers().len() - 1);
                [network.forward(&images), recorded].map(|output| output.unwrap().detach())
            };
            let expected = outputs(Precision::F32);
            for (found, expected) in outputs(Precision::Bf16).iter().zip(&expected) {
                assert_eq!(found.kind(), Kind::Float);
                let difference = f64::try_from((found - expected).norm() / expected.norm());
                // Equal ones would not have been computed in bfloat16.
                let (name, difference) = (network.name(), difference.unwrap());
                assert!((1e-4..0.2).contains(&difference), "{name}: {difference}");
            }
        }
    }

    #[test]
    fn ranks_settle_on_one_precision_by_the_images_of_all() {
        let settled = on_ranks(2, |group| {
            let mut network = network(NETWORKS[0]);
            network.set_precision(Precision::Auto).unwrap();
            let brightness = group.rank() as f64 + 1.;
            let images = || {
                Ok(Tensor::full(
                    [1, 3, 64, 64],
                    brightness,
                    (Kind::Float, Device::Cpu),
                ))
            };
            let which = network.settle_precision(images, &group).unwrap();
            let again = network.settle_precision(|| panic!("settled"), &group);
            assert_eq!(again.unwrap(), None);
            (network.precision(), which.unwrap())
        });
        let (precision, which) = &settled[0];
        assert_eq!(settled[1], (*precision, which.clone()));
        assert!(which.starts_with(precision.name()), "{which}");
        let native = multiplies_bf16(Device::Cpu);
        assert_eq!(which.contains("features in bfloat16"), native, "{which}");
    }

    #[test]
    fn weights_are_prepared_again_once_one_has_changed() {
        let mut network = network(NETWORKS[0]);
        let input = Tensor::randn([1, 3, 64, 64], (Kind::Float, Device::Cpu));
        let first = network.inference(0, 154).unwrap();
        assert!(Arc::ptr_eq(&first, &network.inference(0, 154).unwrap()));
        // Other layers in between, as `evaluate` asks for, do not put them aside.
        assert!(!Arc::ptr_eq(&first, &network.inference(0, 27).unwrap()));
        network.inference(0, 0).unwrap();
        network.inference(27, 154).unwrap();
        assert!(Arc::ptr_eq(&first, &network.inference(0, 154).unwrap()));

        let before = network.forward(&input).unwrap();
        let prepared = network.inference(0, 154).unwrap();
        // As an optimizer does.
        let variable = network.variables().last().unwrap().value();
        let _changed = variable.shallow_clone().f_add_scalar_(1.).unwrap();
        assert!(!Arc::ptr_eq(&prepared, &network.inference(0, 154).unwrap()));
        assert!(!network.forward(&input).unwrap().equal(&before));
        let variable = network.variables_mut().last().unwrap();
        variable.assign(&(variable.value() - 1.)).unwrap();
        assert!(
            network
                .forward(&input)
                .unwrap()
                .allclose(&before, 1e-4, 1e-4, false)
        );
    }

    #[test]
    fn folding_leaves_every_gradient_as_it_is() {
        for of in NETWORKS {
            folding_leaves_the_gradients(&network(of));
        }
    }

    fn folding_leaves_the_gradients(network: &Backbone) {
        // In 32 bits, rounding moves some values over a ReLU6's edge, where gradients jump.
        for variable in network.variables() {
            let value = variable.value();
            value.shallow_clone().set_data(&value.to_kind(Kind::Double));
        }
        let layers = network.layers();
        let [channels, height, width] = network.input_shape();
        let input = [4, channels, height, width];
        let input = Tensor::randn(input, (Kind::Double, Device::Cpu));
        let variables: Vec<&Tensor> = network
            .variables()
            .filter(|variable| variable.is_trainable())
            .map(|variable| variable.value())
            .collect();
        let gradients = |output: Tensor| {
            Tensor::f_run_backward(&[output.square().mean(None)], &variables, false, false).unwrap()
        };
        let mut outputs = vec![input.shallow_clone()];
        for layer in &layers[1..] {
            outputs.push(forward(layer, &outputs, 0));
        }
        let expected = gradients(outputs.pop().unwrap());
        let last = layers.len() - 1;
        let folded = run(layers, 0, &input, last, Device::Cpu, Kind::Double);
        let folded = gradients(folded.unwrap());
        for ((variable, expected), folded) in variables.iter().zip(&expected).zip(&folded) {
            let difference = (folded - expected).norm() / expected.norm();
            let difference = f64::try_from(difference).unwrap();
            let name = network.name();
            assert!(
                difference < 1e-9,
                "{name}, {:?}: {difference}",
                variable.size()
            );
        }
    }
}
