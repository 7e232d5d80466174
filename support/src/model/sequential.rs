//! A base model with layers on top: what the tutorial trains.

use std::path::Path;

use tch::Tensor;

use super::head::TopLayer;
use super::layer::Variable;
use super::mobilenet_v2::MobileNetV2;
use super::weights;
use crate::Result;

/// A base model followed by layers on top, as Keras' `Sequential`.
///
/// `C` is what compiling adds: nothing at first, [`Compiled`](crate::training::Compiled) after
/// [`compile`](Sequential::compile). Only a compiled model can be trained and evaluated.
#[derive(Debug)]
pub struct Sequential<C = ()> {
    base: MobileNetV2,
    top: Vec<TopLayer>,
    pub(crate) compiled: C,
}

impl Sequential {
    /// Returns a model that is only a base; [`push`](Self::push) puts layers on top.
    #[must_use]
    pub fn new(base: MobileNetV2) -> Self {
        Self {
            base,
            top: Vec::new(),
            compiled: (),
        }
    }

    /// Puts a layer on top, on the base's device.
    #[must_use]
    pub fn push(mut self, layer: impl Into<TopLayer>) -> Self {
        let mut layer = layer.into();
        for variable in layer.variables_mut() {
            variable.move_to(self.base.device());
        }
        self.top.push(layer);
        self
    }
}

impl<C> Sequential<C> {
    /// Replaces what compiling added.
    pub(crate) fn with_compiled<D>(self, compiled: D) -> Sequential<D> {
        Sequential {
            base: self.base,
            top: self.top,
            compiled,
        }
    }

    /// Returns the base model.
    #[must_use]
    pub fn base(&self) -> &MobileNetV2 {
        &self.base
    }

    /// Returns the base model for freezing and unfreezing.
    pub fn base_mut(&mut self) -> &mut MobileNetV2 {
        &mut self.base
    }

    /// Returns the layers on top of the base.
    #[must_use]
    pub fn top(&self) -> &[TopLayer] {
        &self.top
    }

    /// Returns the shape of one example's output: `[1]` for one logit.
    #[must_use]
    pub fn output_shape(&self) -> Vec<i64> {
        let features = self.base.output_shape().to_vec();
        self.top
            .iter()
            .fold(features, |shape, layer| layer.describe(&shape).2)
    }

    /// Returns every variable: the base's, then the top's.
    pub fn variables(&self) -> impl Iterator<Item = &Variable> {
        self.base
            .variables()
            .chain(self.top.iter().flat_map(TopLayer::variables))
    }

    pub(crate) fn variables_mut(&mut self) -> impl Iterator<Item = &mut Variable> {
        let top = self.top.iter_mut().flat_map(TopLayer::variables_mut);
        self.base.variables_mut().chain(top)
    }

    /// Returns the variables that training changes.
    #[must_use]
    pub fn trainable_variables(&self) -> Vec<&Variable> {
        self.variables()
            .filter(|variable| variable.is_trainable())
            .collect()
    }

    /// Returns the trainable variables beside what compiling added, both borrowed at once.
    pub(crate) fn split_compiled(&mut self) -> (Vec<&Variable>, &mut C) {
        let top = self.top.iter().flat_map(TopLayer::variables);
        let variables = self.base.variables().chain(top);
        (
            variables
                .filter(|variable| variable.is_trainable())
                .collect(),
            &mut self.compiled,
        )
    }

    /// Returns the logits `[N, units]` of pictures `[N, 3, H, W]` with values in `[-1, 1]`.
    ///
    /// # Errors
    /// `Shape` when the pictures, or one layer's output and the next one's input, do not fit.
    pub fn forward(&self, images: &Tensor) -> Result<Tensor> {
        tch::no_grad(|| self.forward_recorded(images))
    }

    /// Like [`forward`](Self::forward), recording what a backward pass needs.
    pub(crate) fn forward_recorded(&self, images: &Tensor) -> Result<Tensor> {
        let features = self.base.forward_recorded(images)?;
        self.top
            .iter()
            .try_fold(features, |input, layer| layer.forward_recorded(&input))
    }

    /// Saves all weights as safetensors under Keras' names; the file appears whole or not at all.
    ///
    /// # Errors
    /// `Io` when the file cannot be written.
    pub fn save_weights(&self, path: impl AsRef<Path>) -> Result<()> {
        weights::save(path.as_ref(), self.variables())
    }

    /// Loads all weights from a file that [`save_weights`](Self::save_weights) wrote.
    ///
    /// # Errors
    /// `Io` or `Weights` when the file cannot be read, or names the first tensor that is
    /// missing, unknown or of another shape; then nothing has been changed.
    pub fn load_weights(&mut self, path: impl AsRef<Path>) -> Result<()> {
        weights::load(path.as_ref(), self.variables_mut())
    }
}
