//! Layers made ready for many forward passes without a backward pass.

use tch::{Device, TchError, Tensor};

use super::fused;
use super::layer::Layer;
use super::steps::{
    Convolution, Step, Work, add, channels_last, check_shape, convolve, follow, steps,
};
use crate::{Error, Result};

/// Pictures that go through the layers together on a CPU, at most.
const TOGETHER: i64 = 32;

/// Bytes that a layer's output takes for the pictures that go through it together: so few that the
/// next layer still finds most of it in a cache. (glibc, besides, reuses no memory beyond 32 MiB.)
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
    device: Device,
    together: i64,
    stages: Vec<Stage>,
}

/// Steps that the same number of pictures go through together.
#[derive(Debug)]
struct Stage {
    together: i64,
    steps: Vec<(Step, Prepared)>,
}

/// What a step is computed with: the output layer, and what stands for the layers before it too.
#[derive(Debug)]
struct Prepared {
    layer: Layer,
    weights: Option<Weights>,
}

/// What a [`Convolution`] is computed with.
#[derive(Debug)]
struct Weights {
    convolution: Convolution,
    kernel: Tensor,
    bias: Tensor,
    /// Whether the kernel is laid out for [`fused::convolution`].
    reordered: bool,
}

impl Inference {
    /// Makes the layers behind `from` up to `to` ready.
    pub(super) fn new(
        name: String,
        layers: &[Layer],
        from: usize,
        to: usize,
        device: Device,
    ) -> Result<Self> {
        let _no_grad = tch::no_grad_guard();
        let mut steps = steps(layers, from, to);
        let (together, large) = match device {
            Device::Cpu => (TOGETHER, large(layers, &steps)),
            _ => (i64::MAX, 0),
        };
        let fused = device == Device::Cpu && tch::utils::has_mkldnn();
        let rest = steps.split_off(large);
        let largest = steps.iter().map(|step| bytes(layers, step)).max();
        let few = largest.map_or(together, |largest| (ACTIVATION_BYTES / largest).max(1));
        let stage = |(together, steps)| Stage::new(layers, steps, together, fused);
        let stages = [(few, steps), (together, rest)].into_iter().map(stage);
        Ok(Self {
            name,
            input_shape: layers[from].output_shape(),
            device,
            together,
            stages: stages.collect::<Result<_>>()?,
        })
    }

    /// Returns the last layer's output for the output of the layer before the first one.
    ///
    /// # Errors
    /// `Shape` for an input of another shape.
    pub(crate) fn run(&self, input: &Tensor) -> Result<Tensor> {
        check_shape(&self.name, self.input_shape, input)?;
        let _no_grad = tch::no_grad_guard();
        in_parts(input, self.together, |part| {
            let part = channels_last(part, self.device)?;
            let mut stages = self.stages.iter();
            stages.try_fold(part, |part, stage| stage.run(&part))
        })
    }
}

/// Computes at most `together` examples at a time.
fn in_parts(
    input: &Tensor,
    together: i64,
    mut compute: impl FnMut(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    if input.size()[0] <= together {
        return compute(input);
    }
    let parts = input.f_split(together, 0).map_err(Error::torch("batch"))?;
    let outputs: Vec<Tensor> = parts.iter().map(compute).collect::<Result<_>>()?;
    Tensor::f_cat(&outputs, 0).map_err(Error::torch("batch"))
}

/// Returns a function that computes all layers with libtorch's own operators alone, whatever the
/// number of pictures: one that can be traced.
pub(super) fn traceable(layers: &[Layer]) -> Result<impl Fn(&Tensor) -> Result<Tensor> + use<>> {
    let _no_grad = tch::no_grad_guard();
    let stage = Stage::new(layers, steps(layers, 0, layers.len() - 1), i64::MAX, false)?;
    Ok(move |input: &Tensor| stage.run(input))
}

/// Returns how many steps there are up to the last whose activations are too large for [`TOGETHER`]
/// pictures, and on to where one narrow output is all that goes on.
fn large(layers: &[Layer], steps: &[Step]) -> usize {
    let is_large = |step| bytes(layers, step) > ACTIVATION_BYTES / TOGETHER;
    let Some(last) = steps.iter().rposition(is_large) else {
        return 0;
    };
    let is_cut = |&count: &usize| {
        let before = &steps[count - 1];
        before.is_narrow()
            && steps[count..]
                .iter()
                .all(|step| !step.adds_from_before(before))
    };
    (last + 1..steps.len()).find(is_cut).unwrap_or(steps.len())
}

/// Returns the bytes of the larger of a step's input and output for one example.
fn bytes(layers: &[Layer], step: &Step) -> i64 {
    let bytes = |layer: usize| layers[layer].output_shape().iter().product::<i64>() * 4;
    bytes(step.input).max(bytes(step.output))
}

impl Stage {
    fn new(layers: &[Layer], steps: Vec<Step>, together: i64, fused: bool) -> Result<Self> {
        let prepare = |step: Step| {
            let layer = layers[step.output].detached();
            let weights = match step.work {
                Work::Layer => Ok(None),
                Work::Convolution(convolution) => {
                    Weights::new(convolution, layers, together, fused).map(Some)
                }
            };
            let weights =
                weights.map_err(Error::torch(format!("preparing layer {}", layer.name())))?;
            Ok((step, Prepared { layer, weights }))
        };
        Ok(Self {
            together,
            steps: steps.into_iter().map(prepare).collect::<Result<_>>()?,
        })
    }

    fn run(&self, input: &Tensor) -> Result<Tensor> {
        in_parts(input, self.together, |part| {
            let steps = self.steps.iter().map(|(step, prepared)| (step, prepared));
            follow(
                steps,
                part,
                |_, Prepared { layer, weights }, input, residual| match weights {
                    Some(weights) => weights
                        .run(input, residual)
                        .map_err(Error::torch(format!("layer {}", layer.name()))),
                    None => layer.forward(input, residual),
                },
            )
        })
    }
}

impl Weights {
    fn new(
        mut convolution: Convolution,
        layers: &[Layer],
        together: i64,
        reordered: bool,
    ) -> Result<Self, TchError> {
        let (mut kernel, bias) = convolution.folded(layers)?;
        if reordered {
            let uneven = convolution.uneven;
            if uneven > 0 {
                // As many more rows and columns of zeros in the kernel and padding on all sides give
                // what padding at the end gives, without a padded copy of the input.
                kernel = kernel.f_constant_pad_nd([uneven, 0, uneven, 0])?;
                convolution.geometry.padding += uneven;
            }
            let [channels, height, width] = layers[convolution.input()].output_shape();
            let input_size = [together, channels, height, width];
            kernel = fused::reorder_weight(&kernel, convolution.geometry, input_size)?;
        }
        Ok(Self {
            convolution,
            kernel,
            bias,
            reordered,
        })
    }

    fn run(&self, input: &Tensor, residual: Option<&Tensor>) -> Result<Tensor, TchError> {
        let (convolution, kernel, bias) = (self.convolution, &self.kernel, &self.bias);
        let geometry = convolution.geometry;
        let output = if self.reordered {
            fused::convolution(input, kernel, bias, geometry, convolution.relu6)?
        } else {
            convolution.clamp(convolve(
                &convolution.pad(input)?,
                kernel,
                Some(bias),
                geometry,
            )?)?
        };
        add(output, residual)
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use tch::Kind;

    use super::*;
    use crate::model::steps::run;
    use crate::model::{MobileNetV2, Weights};

    /// A network with weights drawn at random, about as large as trained ones.
    fn network(weights: Weights, alpha: f64) -> MobileNetV2 {
        tch::manual_seed(5);
        let mut network = MobileNetV2::frame(weights, alpha, [3, 64, 64], Device::Cpu).unwrap();
        for variable in network.variables_mut() {
            let shape = variable.value().size();
            let random = Tensor::randn(&shape, (Kind::Float, Device::Cpu));
            let inputs: i64 = shape.iter().skip(1).product();
            let values = match variable.name().rsplit('/').next() {
                Some("kernel") => random * (2. / inputs as f64).sqrt(),
                Some("gamma" | "moving_variance") => random.abs() * 0.2 + 0.8,
                _ => random * 0.1,
            };
            variable.assign(&values).unwrap();
        }
        network
    }

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
        steps_give_what_the_layers_give(&network(Weights::TfHub, 1.0));
        steps_give_what_the_layers_give(&network(Weights::TfHub, 0.35));
        steps_give_what_the_layers_give(&network(Weights::Torchvision, 1.0));
        steps_give_what_the_layers_give(&network(Weights::Torchvision, 1.4));
    }

    fn steps_give_what_the_layers_give(network: &MobileNetV2) {
        let layers = network.layers();
        // All; a single layer; up to a convolution without its normalization; from one on; a block
        // with padding and one with a residual connection.
        for (from, to) in [
            (0, 154),
            (0, 1),
            (0, 27),
            (28, 36),
            (54, 63),
            (98, 154),
            (98, 98),
        ] {
            let [channels, height, width] = layers[from].output_shape();
            // More than go through together, and not a multiple of that.
            let shape = [TOGETHER + 3, channels, height, width];
            let input = Tensor::randn(shape, (Kind::Float, Device::Cpu));
            let expected = layer_by_layer(layers, from, &input, to);
            let inferred = network.inference(from, to).unwrap().run(&input).unwrap();
            let recorded = run(layers, from, &input, to, Device::Cpu).unwrap();
            for output in [inferred, recorded] {
                assert_eq!(output.size(), expected.size());
                let difference = (&output - &expected).abs().max() / expected.abs().max();
                let difference = f64::try_from(difference).unwrap();
                assert!(difference < 1e-4, "{from} to {to}: {difference}");
            }
        }
    }

    #[test]
    fn weights_are_prepared_again_once_one_has_changed() {
        let mut network = network(Weights::TfHub, 1.0);
        let input = Tensor::randn([1, 3, 64, 64], (Kind::Float, Device::Cpu));
        let first = network.inference(0, 154).unwrap();
        assert!(Rc::ptr_eq(&first, &network.inference(0, 154).unwrap()));
        assert!(!Rc::ptr_eq(&first, &network.inference(0, 27).unwrap()));

        let before = network.forward(&input).unwrap();
        let prepared = network.inference(0, 154).unwrap();
        // As an optimizer does.
        let variable = network.variables().last().unwrap().value();
        let _changed = variable.shallow_clone().f_add_scalar_(1.).unwrap();
        assert!(!Rc::ptr_eq(&prepared, &network.inference(0, 154).unwrap()));
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
        folding_leaves_the_gradients(&network(Weights::TfHub, 1.0));
        folding_leaves_the_gradients(&network(Weights::Torchvision, 1.0));
    }

    fn folding_leaves_the_gradients(network: &MobileNetV2) {
        // In 32 bits, rounding moves some values over a ReLU6's edge, where gradients jump.
        for variable in network.variables() {
            let value = variable.value();
            value.shallow_clone().set_data(&value.to_kind(Kind::Double));
        }
        let layers = network.layers();
        let input = Tensor::randn([4, 3, 64, 64], (Kind::Double, Device::Cpu));
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
        let folded = gradients(run(layers, 0, &input, 154, Device::Cpu).unwrap());
        for ((variable, expected), folded) in variables.iter().zip(&expected).zip(&folded) {
            let difference = (folded - expected).norm() / expected.norm();
            let difference = f64::try_from(difference).unwrap();
            assert!(difference < 1e-9, "{:?}: {difference}", variable.size());
        }
    }
}
