//! A pretrained network as the base of a model: the flat list of its layers and all that is done with it,
//! whatever the family.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tch::{Device, Kind, Tensor};

use super::architecture::Architecture;
use super::builder::Builder;
use super::fused;
use super::inference::Inference;
use super::layer::{Layer, Operation, SetTrainable, Variable};
use super::origin::Weights;
use super::steps::{self, check_shape};
use super::weights;
use crate::assets::Assets;
use crate::cuda::{FullBatch, to_device};
use crate::distributed::ProcessGroup;
use crate::precision::{LARGEST_DEVIATION, NOT_NATIVE, Precision, multiplies_bf16};
use crate::settings::Settings;
use crate::{Error, Result};

/// A network without its classification top: images `[N, 3, H, W]`, made as the [weights](Weights)
/// want them, become features `[N, C, H / 32, W / 32]`. What networks there are is
/// [`Architecture`]'s business.
///
/// It always runs in inference mode: batch normalizations use their moving statistics, also
/// while they are trained.
#[derive(Debug)]
pub struct Backbone {
    architecture: Architecture,
    weights: Weights,
    layers: Vec<Layer>,
    /// For each layer, the last layer that reads its output.
    last_reader: Vec<usize>,
    device: Device,
    precision: Precision,
    full_batch: FullBatch,
    /// Newest last.
    prepared: Mutex<Vec<Prepared>>,
}

/// Layers prepared for inference, and what they were prepared from.
#[derive(Debug)]
struct Prepared {
    from: usize,
    to: usize,
    weights: Vec<(usize, i64)>,
    inference: Arc<Inference>,
}

/// The most ranges of layers that are kept prepared: `fit` goes through two, `evaluate` and `explain`
/// each through one.
const KEPT: usize = 4;

impl Backbone {
    /// Returns a network with pretrained weights of the given origin, fetched once into the settings'
    /// data folder, on the settings' device and with their precision. [`Weights::format`] makes images for it.
    ///
    /// `image_shape` is `[3, height, width]`; which sizes it takes is said at the family's type.
    ///
    /// # Errors
    /// `Argument` for another shape, `Setting` for a precision that the device does not have, what
    /// [`Assets::fetch`] gives, or `Weights` when the file does not fit.
    pub fn pretrained(
        weights: Weights,
        image_shape: [i64; 3],
        settings: &Settings,
    ) -> Result<Self> {
        settings.group.together(|| {
            // Before anything is fetched.
            let architecture = weights.architecture();
            let mut network = Self::frame(architecture, weights, image_shape, settings.device)?;
            network.set_precision(settings.precision)?;
            let path = Assets::open(&settings.data_dir)?.fetch(weights.asset())?;
            weights::read(&path)?.assign(network.variables_mut())?;
            Ok(network)
        })
    }

    /// Returns the network whose weights are in a file, which tells format, family, origin and size by
    /// its content:
    /// - Keras' HDF5 of MobileNetV2 (the official `no_top` files, a whole network, TF-Hub's saved in a
    ///   Keras model);
    /// - a saved `state_dict`, as `.pth` or safetensors, of torchvision's `mobilenet_v2`, `resnet18` and
    ///   `resnet50`, timm's `mobilenetv2_{035, 050, 075, 100, 140}` and efficientnet-lite-pytorch's
    ///   `efficientnet-lite{0, 1, 2}`;
    /// - this project's safetensors.
    ///
    /// # Errors
    /// `Argument` for an impossible shape; `Io` or `Weights` when the file cannot be read, or
    /// names the first tensor that is missing, unknown or of another shape.
    pub fn from_file(
        path: impl AsRef<Path>,
        image_shape: [i64; 3],
        device: Device,
    ) -> Result<Self> {
        let file = weights::read(path.as_ref())?;
        let (architecture, weights) = file.network()?;
        let mut network = Self::frame(architecture, weights, image_shape, device)?;
        file.assign(network.variables_mut())?;
        Ok(network)
    }

    /// Returns the default network with all kernels zero.
    #[cfg(test)]
    pub(crate) fn untrained(image_shape: [i64; 3], device: Device) -> Result<Self> {
        let weights = Weights::default();
        Self::frame(weights.architecture(), weights, image_shape, device)
    }

    /// Returns a network with all kernels zero: a frame for weights.
    ///
    /// # Errors
    /// `Argument` for an impossible shape, or weights of another family.
    pub(crate) fn frame(
        architecture: Architecture,
        weights: Weights,
        image_shape: [i64; 3],
        device: Device,
    ) -> Result<Self> {
        let of_weights = weights.architecture();
        if std::mem::discriminant(&architecture) != std::mem::discriminant(&of_weights) {
            return Err(Error::Argument {
                name: "the network's weights",
                expected: format!("an origin of {}", architecture.family().name()),
                got: format!("{weights}, which is of {}", of_weights.family().name()),
            });
        }
        let builder = Builder::new(weights.conventions(), image_shape, device);
        let layers = architecture.family().layers(builder)?;
        let mut last_reader: Vec<usize> = (0..layers.len()).collect();
        for (index, layer) in layers.iter().enumerate() {
            for &input in layer.inputs() {
                last_reader[input] = index;
            }
        }
        let mut network = Self {
            architecture,
            weights,
            layers,
            last_reader,
            device,
            precision: Precision::F32,
            full_batch: FullBatch::default(),
            prepared: Mutex::default(),
        };
        network.set_trainable(true);
        Ok(network)
    }

    /// Returns the network's name with the height of its images, as Keras does.
    #[must_use]
    pub fn name(&self) -> String {
        let family = self.architecture.family();
        format!("{}_{}", family.name(), self.input_shape()[1])
    }

    /// Returns what the network is.
    #[must_use]
    pub fn architecture(&self) -> Architecture {
        self.architecture
    }

    /// Returns the weights' origin, whose [`format`](Weights::format) makes images for this network.
    /// Of a file that does not tell (HDF5 may come from TF-Hub or from Keras) it is one of the same
    /// conventions.
    #[must_use]
    pub fn weights(&self) -> Weights {
        self.weights
    }

    /// Returns the layers, each after those that it reads.
    #[must_use]
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Returns the layers for freezing: `base.layers_mut()[..100].set_trainable(false)`.
    pub fn layers_mut(&mut self) -> &mut [Layer] {
        &mut self.layers
    }

    /// Freezes (`false`) or unfreezes (`true`) every layer.
    pub fn set_trainable(&mut self, trainable: bool) {
        self.layers.set_trainable(trainable);
    }

    /// Returns every variable, layer by layer.
    pub fn variables(&self) -> impl Iterator<Item = &Variable> {
        self.layers.iter().flat_map(Layer::variables)
    }

    pub(crate) fn variables_mut(&mut self) -> impl Iterator<Item = &mut Variable> {
        self.layers.iter_mut().flat_map(Layer::variables_mut)
    }

    /// Returns the device that the weights lie on.
    #[must_use]
    pub fn device(&self) -> Device {
        self.device
    }

    /// Returns what the network computes with.
    #[must_use]
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Sets what the network computes with.
    ///
    /// # Errors
    /// `Setting` for bfloat16 where that is not native.
    pub fn set_precision(&mut self, precision: Precision) -> Result<()> {
        precision.check(self.device)?;
        self.precision = precision;
        self.prepared = Mutex::default();
        Ok(())
    }

    /// Decides for [`Precision::Auto`], together with the other ranks, by some images of each; returns which
    /// precision it is and why, where that was open.
    pub(crate) fn settle_precision(
        &mut self,
        images: impl FnOnce() -> Result<Tensor>,
        group: &ProcessGroup,
    ) -> Result<Option<String>> {
        if self.precision != Precision::Auto {
            return Ok(None);
        }
        self.precision = Precision::F32;
        let native = multiplies_bf16(self.device);
        // A rank that cannot keeps the others from it.
        let squares = match native {
            true => self.squares_in_bf16(&images()?)?,
            false => Tensor::from_slice(&[f64::INFINITY, 1.]),
        };
        let squares = group.all_reduce(&squares)?;
        let [off, expected] = [0, 1].map(|at| squares.double_value(&[at]));
        let deviation = (off / expected).sqrt();
        let (precision, verdict) = match deviation <= LARGEST_DEVIATION {
            true => (Precision::Bf16, "within"),
            false => (Precision::F32, "not within"),
        };
        self.set_precision(precision)?;
        let reason = match deviation.is_infinite() {
            true if native => "another rank does not multiply bfloat16 natively".into(),
            true => NOT_NATIVE.into(),
            false => format!(
                "the first batch's features in bfloat16 are {:.1} % from those in 32 bits, {verdict} the {:.0} % \
                 that are allowed",
                100. * deviation,
                100. * LARGEST_DEVIATION,
            ),
        };
        Ok(Some(format!("{}, as {reason}", precision.name())))
    }

    /// Returns the sums of squares of what bfloat16 changes of the features of images, and of these, both pooled.
    fn squares_in_bf16(&mut self, images: &Tensor) -> Result<Tensor> {
        let expected = self.pooled(images)?;
        self.set_precision(Precision::Bf16)?;
        let found = self.pooled(images);
        self.set_precision(Precision::F32)?;
        let found = found?;
        let squares = || {
            let off = found.f_sub(&expected)?.f_square()?.f_sum(Kind::Double)?;
            Tensor::f_stack(&[off, expected.f_square()?.f_sum(Kind::Double)?], 0)?
                .f_to_device(Device::Cpu)
        };
        squares().map_err(Error::torch("precision"))
    }

    /// Returns the features of images, each channel's mean, `[N, C]`.
    fn pooled(&self, images: &Tensor) -> Result<Tensor> {
        self.forward(images)?
            .f_mean_dim(&[2, 3][..], false, Kind::Float)
            .map_err(Error::torch("precision"))
    }

    /// Returns `[channels, height, width]` of the images the network takes.
    #[must_use]
    pub fn input_shape(&self) -> [i64; 3] {
        self.layers[0].output_shape()
    }

    /// Returns (first, step) for rows and columns: position `i` of a layer's output looks at what lies
    /// around pixel `first + step * i` of an image. That is not the middle of the pixels that it stands
    /// for where a convolution of stride 2 pads at one end more than at the other.
    pub(crate) fn centers(&self, layer: usize) -> [(i64, i64); 2] {
        // All ways to a layer have the same centers; this one leaves no shortcut's out.
        let last_input = |&index: &usize| self.layers[index].inputs().last().copied();
        let mut path: Vec<&Layer> = std::iter::successors(Some(layer), last_input)
            .map(|index| &self.layers[index])
            .collect();
        path.reverse();
        let mut centers = [(0, 1); 2];
        for layer in path {
            let side = || layer.variables()[0].value().size()[2];
            let (kernel, stride, padding) = match layer.operation() {
                Operation::ZeroPadding { before, .. } => (1, 1, before),
                Operation::Conv2d { stride, padding }
                | Operation::DepthwiseConv2d { stride, padding } => (side(), stride, [padding; 2]),
                Operation::MaxPool2d {
                    kernel,
                    stride,
                    padding,
                } => (kernel, stride, [padding; 2]),
                _ => continue,
            };
            for ((first, step), padding) in centers.iter_mut().zip(padding) {
                *first += *step * (kernel / 2 - padding);
                *step *= stride;
            }
        }
        centers
    }

    /// Returns `[channels, height, width]` of the features.
    #[must_use]
    pub fn output_shape(&self) -> [i64; 3] {
        self.layers[self.layers.len() - 1].output_shape()
    }

    /// Returns the features `[N, C, H / 32, W / 32]` of images `[N, 3, H, W]`, made as the
    /// [weights](Self::weights) want them, as Keras' `base_model(images, training=False)` outside a
    /// gradient tape.
    ///
    /// # Errors
    /// `Shape` for images of another size than the network was made for.
    pub fn forward(&self, images: &Tensor) -> Result<Tensor> {
        self.inference(0, self.layers.len() - 1)?.run(images)
    }

    /// Returns whether no later layer reads past layer `index`: its output alone determines all
    /// that follows.
    pub(crate) fn is_cut(&self, index: usize) -> bool {
        self.last_reader[..index]
            .iter()
            .all(|&reader| reader <= index)
    }

    /// Returns the last bottleneck among the layers up to `index`: a block's output that is a
    /// [cut](Self::is_cut). Layer 0, the images, is one.
    pub(crate) fn last_bottleneck(&self, index: usize) -> usize {
        let steps = steps::steps(&self.layers, 0, self.layers.len() - 1);
        let of_blocks = steps.iter().filter(|step| step.ends_block());
        let outputs = of_blocks.map(|step| step.output);
        outputs
            .filter(|&output| output <= index && self.is_cut(output))
            .last()
            .unwrap_or(0)
    }

    /// Returns layer `to`'s output for layer `from`'s, a [cut](Self::is_cut), recording what the
    /// trainable layers between need for a backward pass, as 32-bit floats. Layer 0's output is the images.
    pub(crate) fn run(&self, from: usize, input: &Tensor, to: usize) -> Result<Tensor> {
        check_shape(&self.name(), self.layers[from].output_shape(), input)?;
        let kind = self.precision.kind();
        let input = to_device(input, self.device).map_err(Error::torch("features"))?;
        let output = self.full_batch.run(&input, |input| {
            steps::run(&self.layers, from, input, to, self.device, kind)
        })?;
        output
            .f_to_kind(Kind::Float)
            .map_err(Error::torch("features"))
    }

    /// Returns the layers after `from`, a [cut](Self::is_cut), up to `to`, prepared for inference: anew
    /// only if a weight has changed since.
    pub(crate) fn inference(&self, from: usize, to: usize) -> Result<Arc<Inference>> {
        let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        prepared.retain(|prepared| {
            self.weights_between(prepared.from, prepared.to)
                .is_some_and(|weights| weights == prepared.weights)
        });
        let same = prepared.iter().find(|it| (it.from, it.to) == (from, to));
        if let Some(same) = same {
            return Ok(same.inference.clone());
        }
        let kind = self.precision.kind();
        let inference = Inference::new(self.name(), &self.layers, from, to, self.device, kind)?;
        let inference = Arc::new(inference);
        if let Some(weights) = self.weights_between(from, to).filter(|it| !it.is_empty()) {
            if prepared.len() == KEPT {
                prepared.remove(0);
            }
            prepared.push(Prepared {
                from,
                to,
                weights,
                inference: inference.clone(),
            });
        }
        Ok(inference)
    }

    /// Returns the [state](fused::state) of each variable of the layers after `from` up to `to`.
    fn weights_between(&self, from: usize, to: usize) -> Option<Vec<(usize, i64)>> {
        let variables = self.layers[from + 1..=to].iter().flat_map(Layer::variables);
        variables.map(|v| fused::state(v.value())).collect()
    }
}
