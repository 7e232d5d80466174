//! # MobileNetV2
//!
//! - Paper: [MobileNetV2: Inverted Residuals and Linear Bottlenecks][paper], table 2.
//! - Reference implementation: [`keras.applications.MobileNetV2`][keras], whose layer names,
//!   order and widths this follows, in the version that the tutorial used: 155 layers, with
//!   `Conv1_pad` as a layer of its own. Padding and epsilon are those of the weights' origin.
//!
//! [paper]: https://arxiv.org/abs/1801.04381
//! [keras]: https://github.com/keras-team/keras/blob/master/keras/src/applications/mobilenet_v2.py

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use tch::{Device, Tensor};

use super::fused;
use super::inference::{self, Inference};
use super::layer::{Layer, Operation, SetTrainable, Variable};
use super::pretrained::{Conventions, Weights};
use super::steps::{self, check_shape};
use super::weights;
use crate::assets::Assets;
use crate::settings::Settings;
use crate::{Error, Result};

/// One row of the paper's table 2: (expansion `t`, output channels `c`, repeats `n`, stride `s`
/// of the first repeat).
pub(super) const INVERTED_RESIDUALS: [(i64, i64, usize, i64); 7] = [
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
];
const STEM_CHANNELS: i64 = 32;
const FEATURE_CHANNELS: i64 = 1280;
/// Factors on the numbers of channels for which there are weights: Keras' `alpha`.
const ALPHAS: [f64; 6] = [1.0, 0.35, 0.5, 0.75, 1.3, 1.4];
/// Five steps of stride 2.
const DOWNSAMPLING: i64 = 32;

/// MobileNetV2 without its classification top: pictures `[N, 3, H, W]`, made as the
/// [weights](Weights) want them, become features `[N, 1280, H / 32, W / 32]` (more than 1280 where
/// [`alpha`](Self::alpha) is above 1).
///
/// It always runs in inference mode: batch normalizations use their moving statistics, also
/// while they are trained.
#[derive(Debug)]
pub struct MobileNetV2 {
    weights: Weights,
    alpha: f64,
    layers: Vec<Layer>,
    /// For each layer, the last layer that reads its output.
    last_reader: Vec<usize>,
    device: Device,
    prepared: RefCell<Option<Prepared>>,
}

/// Layers made ready for inference, and what they were made from.
#[derive(Debug)]
struct Prepared {
    from: usize,
    to: usize,
    weights: Vec<(usize, i64)>,
    inference: Rc<Inference>,
}

impl MobileNetV2 {
    /// Returns the network with weights pretrained on ImageNet (TF-Hub's
    /// `mobilenet_v2/feature_vector`, fetched once into the data folder).
    ///
    /// `image_shape` is `[3, height, width]`, both multiples of 32.
    ///
    /// # Errors
    /// `Argument` for another shape, what [`Assets::fetch`] gives, or `Weights` when the file
    /// does not fit.
    pub fn pretrained(image_shape: [i64; 3], device: Device) -> Result<Self> {
        Self::with_weights(Weights::default(), image_shape, device)
    }

    /// Returns the network with pretrained weights of the given origin, fetched once into the data
    /// folder. [`Weights::format`] makes pictures for it.
    ///
    /// # Errors
    /// As [`pretrained`](Self::pretrained).
    pub fn with_weights(weights: Weights, image_shape: [i64; 3], device: Device) -> Result<Self> {
        let path = Assets::open(&Settings::from_env()?.data_dir)?.fetch(weights.asset())?;
        let mut network = Self::from_file(path, image_shape, device)?;
        network.weights = weights;
        Ok(network)
    }

    /// Returns the network with weights from a file, which tells format, origin and `alpha` by its
    /// content:
    /// - Keras' HDF5 (the official `no_top` files, a whole network, TF-Hub's saved in a Keras model);
    /// - torchvision's `mobilenet_v2` and timm's `mobilenetv2_{035, 050, 075, 100, 140}`, a saved
    ///   `state_dict` as `.pth` or safetensors;
    /// - this project's safetensors.
    ///
    /// `alpha`, the network's width, is 0.35, 0.5, 0.75, 1.0, 1.3 or 1.4.
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
        let mut network = Self::frame(file.origin(), alpha(&file)?, image_shape, device)?;
        file.assign(network.variables_mut())?;
        Ok(network)
    }

    /// Returns the default network with all kernels zero.
    #[cfg(test)]
    pub(crate) fn untrained(image_shape: [i64; 3], device: Device) -> Result<Self> {
        Self::frame(Weights::default(), 1.0, image_shape, device)
    }

    /// Returns a network with all kernels zero: a frame for weights.
    pub(crate) fn frame(
        weights: Weights,
        alpha: f64,
        image_shape: [i64; 3],
        device: Device,
    ) -> Result<Self> {
        let [channels, height, width] = image_shape;
        let fits = |side: i64| side > 0 && side % DOWNSAMPLING == 0;
        if channels != 3 || !fits(height) || !fits(width) {
            return Err(Error::Argument {
                name: "MobileNetV2 image shape",
                expected: "[3, height, width], height and width multiples of 32".into(),
                got: format!("{image_shape:?}"),
            });
        }
        if !ALPHAS.contains(&alpha) {
            return Err(Error::Argument {
                name: "MobileNetV2 alpha",
                expected: format!("one of {ALPHAS:?}"),
                got: alpha.to_string(),
            });
        }
        let layers = Builder::new(weights.conventions(), alpha, image_shape, device).network()?;
        let mut last_reader: Vec<usize> = (0..layers.len()).collect();
        for (index, layer) in layers.iter().enumerate() {
            for &input in layer.inputs() {
                last_reader[input] = index;
            }
        }
        let mut network = Self {
            weights,
            alpha,
            layers,
            last_reader,
            device,
            prepared: RefCell::default(),
        };
        network.set_trainable(true);
        Ok(network)
    }

    /// Returns Keras' name of the model.
    #[must_use]
    pub fn name(&self) -> String {
        format!("mobilenetv2_{:.2}_{}", self.alpha, self.input_shape()[1])
    }

    /// Returns the weights' origin, whose [`format`](Weights::format) makes pictures for this network.
    /// Of a file that does not tell (HDF5 may come from TF-Hub or from Keras) it is one of the same
    /// conventions.
    #[must_use]
    pub fn weights(&self) -> Weights {
        self.weights
    }

    /// Returns the factor on the paper's numbers of channels, as Keras calls it.
    #[must_use]
    pub fn alpha(&self) -> f64 {
        self.alpha
    }

    /// Returns the layers in Keras' order, all 155.
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

    /// Returns `[channels, height, width]` of the pictures the network takes.
    #[must_use]
    pub fn input_shape(&self) -> [i64; 3] {
        self.layers[0].output_shape()
    }

    /// Returns (first, step): in both directions, position `i` of a layer's output looks at what lies
    /// around pixel `first + step * i` of a picture. That is not the middle of the pixels that it stands
    /// for: the convolutions of stride 2 pad at one end more than at the other.
    pub(crate) fn centers(&self, layer: usize) -> (i64, i64) {
        let (mut first, mut step, mut padding) = (0, 1, 0);
        for layer in &self.layers[..=layer] {
            let (stride, own_padding) = match layer.operation() {
                Operation::ZeroPadding { before, .. } => {
                    padding = before;
                    continue;
                }
                Operation::Conv2d { stride } => (stride, 0),
                Operation::DepthwiseConv2d { stride, padding } => (stride, padding),
                _ => continue,
            };
            let kernel = layer.variables()[0].value().size()[2];
            first += step * (kernel / 2 - own_padding - std::mem::take(&mut padding));
            step *= stride;
        }
        (first, step)
    }

    /// Returns `[channels, height, width]` of the features.
    #[must_use]
    pub fn output_shape(&self) -> [i64; 3] {
        self.layers[self.layers.len() - 1].output_shape()
    }

    /// Returns the features `[N, 1280, H / 32, W / 32]` of pictures `[N, 3, H, W]`, made as the
    /// [weights](Self::weights) want them, as Keras' `base_model(images, training=False)` outside a
    /// gradient tape.
    ///
    /// # Errors
    /// `Shape` for pictures of another size than the network was made for.
    pub fn forward(&self, images: &Tensor) -> Result<Tensor> {
        self.inference(0, self.layers.len() - 1)?.run(images)
    }

    /// Returns a function like [`forward`](Self::forward) that can be traced.
    pub(super) fn traceable(&self) -> Result<impl Fn(&Tensor) -> Result<Tensor> + use<>> {
        inference::traceable(&self.layers)
    }

    /// Returns whether no later layer reads past layer `index`: its output alone determines all
    /// that follows.
    pub(crate) fn is_cut(&self, index: usize) -> bool {
        self.last_reader[..index]
            .iter()
            .all(|&reader| reader <= index)
    }

    /// Returns the last block's output among the layers up to `index`: a cut behind which no ReLU6
    /// follows. Layer 0, the pictures, is one.
    pub(crate) fn last_bottleneck(&self, index: usize) -> usize {
        let ends_block = |&index: &usize| {
            let next = self.layers.get(index + 1).map(Layer::operation);
            let is_output = match self.layers[index].operation() {
                Operation::Add => true,
                Operation::BatchNormalization { .. } => next != Some(Operation::Relu6),
                _ => false,
            };
            is_output && self.is_cut(index)
        };
        (0..=index).rev().find(ends_block).unwrap_or(0)
    }

    /// Returns layer `to`'s output for layer `from`'s, a [cut](Self::is_cut), recording what the
    /// trainable layers between need for a backward pass. Layer 0's output is the pictures.
    pub(crate) fn run(&self, from: usize, input: &Tensor, to: usize) -> Result<Tensor> {
        check_shape(&self.name(), self.layers[from].output_shape(), input)?;
        steps::run(&self.layers, from, input, to, self.device)
    }

    /// Returns the layers behind `from`, a [cut](Self::is_cut), up to `to`, ready for inference: made
    /// so anew unless they were the last and no weight has changed since.
    pub(crate) fn inference(&self, from: usize, to: usize) -> Result<Rc<Inference>> {
        let variables = self.layers[from + 1..=to].iter().flat_map(Layer::variables);
        let weights: Option<Vec<_>> = variables.map(|v| fused::state(v.value())).collect();
        let is_same = |prepared: &&Prepared| {
            (prepared.from, prepared.to) == (from, to)
                && Some(&prepared.weights) == weights.as_ref()
        };
        if let Some(prepared) = self.prepared.borrow().as_ref().filter(is_same) {
            return Ok(prepared.inference.clone());
        }
        let inference = Inference::new(self.name(), &self.layers, from, to, self.device)?;
        let inference = Rc::new(inference);
        *self.prepared.borrow_mut() = weights.map(|weights| Prepared {
            from,
            to,
            weights,
            inference: inference.clone(),
        });
        Ok(inference)
    }
}

/// Returns the `alpha` that a file's weights are for: at each, the last convolution takes another
/// number of channels.
fn alpha(file: &weights::File) -> Result<f64> {
    let (_, last, _, _) = INVERTED_RESIDUALS[INVERTED_RESIDUALS.len() - 1];
    let Some(&[_, got, _, _]) = file.shape("Conv_1/kernel") else {
        // What is missing is told when the weights are assigned.
        return Ok(1.0);
    };
    let found = ALPHAS.into_iter().find(|&alpha| scaled(last, alpha) == got);
    found.ok_or_else(|| {
        let known = ALPHAS.map(|alpha| format!("{} ({alpha})", scaled(last, alpha)));
        file.refused(format!(
            "Conv_1/kernel: expected as many input channels as for a known alpha, {}, got {got}",
            known.join(", ")
        ))
    })
}

/// Returns a number of channels times `alpha`, rounded to a multiple of 8 that is not more than a
/// tenth below (Keras' `_make_divisible`, torchvision's and timm's too).
fn scaled(channels: i64, alpha: f64) -> i64 {
    let exact = channels as f64 * alpha;
    let rounded = 8 * ((exact / 8.).round() as i64).max(1);
    if (rounded as f64) < 0.9 * exact {
        rounded + 8
    } else {
        rounded
    }
}

/// Builds the flat layer list; the last layer added is what the next one reads.
struct Builder {
    conventions: &'static Conventions,
    alpha: f64,
    layers: Vec<Layer>,
    device: Device,
}

impl Builder {
    fn new(
        conventions: &'static Conventions,
        alpha: f64,
        image_shape: [i64; 3],
        device: Device,
    ) -> Self {
        let input = Layer::new("input_1", Operation::Input, vec![], image_shape);
        Self {
            conventions,
            alpha,
            layers: vec![input],
            device,
        }
    }

    fn network(mut self) -> Result<Vec<Layer>> {
        let alpha = self.alpha;
        self.pad("Conv1_pad")
            .conv("Conv1", scaled(STEM_CHANNELS, alpha), 3, 2)?
            .batch_norm("bn_Conv1")?
            .relu6("Conv1_relu");
        let mut block = 0;
        for (expansion, channels, repeats, first_stride) in INVERTED_RESIDUALS {
            for repeat in 0..repeats {
                let stride = if repeat == 0 { first_stride } else { 1 };
                let channels = scaled(channels, alpha);
                self.inverted_residual(block, expansion, channels, stride)?;
                block += 1;
            }
        }
        // The paper makes the features no fewer where the network is narrower.
        self.conv("Conv_1", scaled(FEATURE_CHANNELS, alpha.max(1.0)), 1, 1)?
            .batch_norm("Conv_1_bn")?
            .relu6("out_relu");
        Ok(self.layers)
    }

    /// Keras' `_inverted_res_block`: expand, filter each channel, project; add the input back
    /// where the shape allows it.
    fn inverted_residual(
        &mut self,
        block: usize,
        expansion: i64,
        channels: i64,
        stride: i64,
    ) -> Result<()> {
        let input = self.last();
        let input_channels = self.shape()[0];
        let prefix = if block == 0 {
            "expanded_conv".into()
        } else {
            format!("block_{block}")
        };
        let name = |part: &str| format!("{prefix}_{part}");
        if block > 0 {
            self.conv(&name("expand"), input_channels * expansion, 1, 1)?
                .batch_norm(&name("expand_BN"))?
                .relu6(&name("expand_relu"));
        }
        if stride == 2 {
            self.pad(&name("pad"));
        }
        self.depthwise(&name("depthwise"), stride)?
            .batch_norm(&name("depthwise_BN"))?
            .relu6(&name("depthwise_relu"))
            .conv(&name("project"), channels, 1, 1)?
            .batch_norm(&name("project_BN"))?;
        if stride == 1 && input_channels == channels {
            let (project, shape) = (self.last(), self.shape());
            self.push(Layer::new(
                name("add"),
                Operation::Add,
                vec![input, project],
                shape,
            ));
        }
        Ok(())
    }

    fn last(&self) -> usize {
        self.layers.len() - 1
    }

    fn shape(&self) -> [i64; 3] {
        self.layers[self.last()].output_shape()
    }

    fn push(&mut self, layer: Layer) -> &mut Self {
        self.layers.push(layer);
        self
    }

    fn pad(&mut self, name: &str) -> &mut Self {
        let [channels, height, width] = self.shape();
        let (before, after) = self.conventions.padding;
        let operation = Operation::ZeroPadding { before, after };
        // Sides are multiples of 32, so every size that is padded is even.
        let shape = [channels, height + before + after, width + before + after];
        self.push(Layer::new(name, operation, vec![self.last()], shape))
    }

    fn conv(&mut self, name: &str, channels: i64, kernel: i64, stride: i64) -> Result<&mut Self> {
        let [input_channels, height, width] = self.shape();
        let side = |size: i64| (size - kernel) / stride + 1;
        let shape = [channels, side(height), side(width)];
        let layer = Layer::new(name, Operation::Conv2d { stride }, vec![self.last()], shape)
            .with_kernel([channels, input_channels, kernel, kernel], self.device)?;
        Ok(self.push(layer))
    }

    fn depthwise(&mut self, name: &str, stride: i64) -> Result<&mut Self> {
        let [channels, height, width] = self.shape();
        // At stride 2 a layer of its own has padded.
        let padding = if stride == 1 { 1 } else { 0 };
        let side = |size: i64| (size + 2 * padding - 3) / stride + 1;
        let shape = [channels, side(height), side(width)];
        let operation = Operation::DepthwiseConv2d { stride, padding };
        let layer = Layer::new(name, operation, vec![self.last()], shape)
            .with_kernel([channels, 1, 3, 3], self.device)?;
        Ok(self.push(layer))
    }

    fn batch_norm(&mut self, name: &str) -> Result<&mut Self> {
        let epsilon = self.conventions.epsilon;
        let operation = Operation::BatchNormalization { epsilon };
        let layer = Layer::new(name, operation, vec![self.last()], self.shape())
            .with_batch_normalization(self.device)?;
        Ok(self.push(layer))
    }

    fn relu6(&mut self, name: &str) -> &mut Self {
        self.push(Layer::new(
            name,
            Operation::Relu6,
            vec![self.last()],
            self.shape(),
        ))
    }
}
