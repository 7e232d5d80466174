//! Makes a network's flat list of layers, one after the other.

use tch::Device;

use super::layer::{Layer, Operation};
use super::origin::Conventions;
use crate::Result;

/// The layers so far; a new one reads the last one, or the one that [`read`](Self::read) names.
pub(super) struct Builder {
    conventions: &'static Conventions,
    layers: Vec<Layer>,
    input: usize,
    device: Device,
}

impl Builder {
    /// Starts with an input for images `[3, height, width]`.
    pub(super) fn new(
        conventions: &'static Conventions,
        image_shape: [i64; 3],
        device: Device,
    ) -> Self {
        Self {
            conventions,
            layers: vec![Layer::new("input_1", Operation::Input, vec![], image_shape)],
            input: 0,
            device,
        }
    }

    pub(super) fn finish(self) -> Vec<Layer> {
        self.layers
    }

    /// Returns the layer that the next one reads.
    pub(super) fn last(&self) -> usize {
        self.input
    }

    /// Returns the output shape of the layer that the next one reads.
    pub(super) fn shape(&self) -> [i64; 3] {
        self.layers[self.input].output_shape()
    }

    /// Has the next layer read layer `index`.
    pub(super) fn read(&mut self, index: usize) -> &mut Self {
        self.input = index;
        self
    }

    /// Adds the zeros that the weights' origin puts around an image for a window of this size and
    /// stride.
    pub(super) fn pad(&mut self, name: &str, kernel: i64, stride: i64) -> &mut Self {
        let [channels, height, width] = self.shape();
        let padding = self.conventions.padding;
        let sides = [height, width].map(|size| padding.around(size, kernel, stride));
        let (before, after) = (
            sides.map(|(before, _)| before),
            sides.map(|(_, after)| after),
        );
        let shape = [
            channels,
            height + before[0] + after[0],
            width + before[1] + after[1],
        ];
        self.push(name, Operation::ZeroPadding { before, after }, shape)
    }

    pub(super) fn conv(
        &mut self,
        name: &str,
        channels: i64,
        kernel: i64,
        stride: i64,
        padding: i64,
    ) -> Result<&mut Self> {
        let kernel_shape = [channels, self.shape()[0], kernel, kernel];
        let shape = self.moved(channels, kernel, stride, padding);
        let operation = Operation::Conv2d { stride, padding };
        let layer = Layer::new(name, operation, vec![self.input], shape)
            .with_kernel(kernel_shape, self.device)?;
        Ok(self.add_layer(layer))
    }

    pub(super) fn depthwise(
        &mut self,
        name: &str,
        kernel: i64,
        stride: i64,
        padding: i64,
    ) -> Result<&mut Self> {
        let channels = self.shape()[0];
        let shape = self.moved(channels, kernel, stride, padding);
        let operation = Operation::DepthwiseConv2d { stride, padding };
        let layer = Layer::new(name, operation, vec![self.input], shape)
            .with_kernel([channels, 1, kernel, kernel], self.device)?;
        Ok(self.add_layer(layer))
    }

    pub(super) fn max_pool(
        &mut self,
        name: &str,
        kernel: i64,
        stride: i64,
        padding: i64,
    ) -> &mut Self {
        let shape = self.moved(self.shape()[0], kernel, stride, padding);
        let operation = Operation::MaxPool2d {
            kernel,
            stride,
            padding,
        };
        self.push(name, operation, shape)
    }

    pub(super) fn batch_norm(&mut self, name: &str) -> Result<&mut Self> {
        let epsilon = self.conventions.epsilon;
        let operation = Operation::BatchNormalization { epsilon };
        let layer = Layer::new(name, operation, vec![self.input], self.shape())
            .with_batch_normalization(self.device)?;
        Ok(self.add_layer(layer))
    }

    pub(super) fn relu(&mut self, name: &str) -> &mut Self {
        self.push(name, Operation::Relu, self.shape())
    }

    pub(super) fn relu6(&mut self, name: &str) -> &mut Self {
        self.push(name, Operation::Relu6, self.shape())
    }

    /// Adds the output of layer `other`, of the same shape, to the last one's.
    pub(super) fn add(&mut self, name: &str, other: usize) -> &mut Self {
        let inputs = vec![other, self.input];
        self.add_layer(Layer::new(name, Operation::Add, inputs, self.shape()))
    }

    /// Returns the output shape of a window that moves over the input.
    fn moved(&self, channels: i64, kernel: i64, stride: i64, padding: i64) -> [i64; 3] {
        let [_, height, width] = self.shape();
        let side = |size: i64| (size + 2 * padding - kernel) / stride + 1;
        [channels, side(height), side(width)]
    }

    fn push(&mut self, name: &str, operation: Operation, shape: [i64; 3]) -> &mut Self {
        self.add_layer(Layer::new(name, operation, vec![self.input], shape))
    }

    fn add_layer(&mut self, layer: Layer) -> &mut Self {
        self.input = self.layers.len();
        self.layers.push(layer);
        self
    }
}

/// Returns a number of channels times `factor`, rounded to a multiple of 8 that is not more than a
/// tenth below (Keras' `_make_divisible`, torchvision's and timm's too, EfficientNet's `round_filters`).
pub(super) fn scaled(channels: i64, factor: f64) -> i64 {
    let exact = channels as f64 * factor;
    let rounded = 8 * ((exact / 8.).round() as i64).max(1);
    if (rounded as f64) < 0.9 * exact {
        rounded + 8
    } else {
        rounded
    }
}
