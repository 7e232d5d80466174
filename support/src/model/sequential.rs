//! A base model with layers on top: what the tutorial trains.

use std::path::Path;

use tch::{Kind, Tensor};

use super::backbone::Backbone;
use super::head::{self, BuiltLayer, HeadLayer, TrainingStep};
use super::layer::{Layer, Variable};
use super::weights;
use crate::Result;

/// A base model followed by layers on top, as Keras' `Sequential`.
///
/// `C` is what compiling adds: nothing at first, [`Compiled`](crate::training::Compiled) after
/// [`compile`](Sequential::compile). Only a compiled model can be trained and evaluated.
#[derive(Debug)]
pub struct Sequential<C = ()> {
    base: Backbone,
    top: Vec<BuiltLayer>,
    pub(crate) compiled: C,
}

impl Sequential {
    /// Returns a model that is only a base; [`push`](Self::push) puts layers on top.
    #[must_use]
    pub fn new(base: Backbone) -> Self {
        Self {
            base,
            top: Vec::new(),
            compiled: (),
        }
    }

    /// Puts a layer on top, on the base's device. Several [`Dense`](super::Dense) are named `dense`,
    /// `dense_1` and so on, as by Keras. One that does not fit is refused by
    /// [`compile`](Self::compile), and wherever the model is used.
    #[must_use]
    pub fn push(mut self, layer: impl Into<HeadLayer>) -> Self {
        let mut layer = layer.into();
        if let HeadLayer::Dense(dense) = &mut layer {
            let is_dense = |layer: &&HeadLayer| matches!(layer, HeadLayer::Dense(_));
            dense.number(self.top().filter(is_dense).count());
        }
        let features = self.base.output_shape();
        let input = match self.top.last() {
            Some(last) => last.output_shape.as_deref(),
            None => Some(&features[..]),
        };
        let layer = BuiltLayer::new(layer, input, self.base.device());
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
    pub fn base(&self) -> &Backbone {
        &self.base
    }

    /// Returns the base model for freezing and unfreezing.
    pub fn base_mut(&mut self) -> &mut Backbone {
        &mut self.base
    }

    /// Returns the layers on top of the base.
    pub fn top(&self) -> impl Iterator<Item = &HeadLayer> {
        self.top.iter().map(|built| &built.layer)
    }

    pub(super) fn built(&self) -> &[BuiltLayer] {
        &self.top
    }

    /// Checks that the layers on top fit the base and each other.
    ///
    /// # Errors
    /// `Shape` names the first layer that does not, `Argument` one that cannot be made.
    pub(crate) fn check_head(&self) -> Result<()> {
        head::output_shape(self.top(), &self.base.output_shape())?;
        self.top.iter().try_for_each(BuiltLayer::check_memory)
    }

    /// Returns the shape of one example's output: `[1]` for one logit. Empty where the layers do not fit.
    #[must_use]
    pub fn output_shape(&self) -> Vec<i64> {
        self.layer_shape(self.last())
    }

    /// Returns every variable: the base's, then the top's.
    pub fn variables(&self) -> impl Iterator<Item = &Variable> {
        self.base
            .variables()
            .chain(self.top.iter().flat_map(|layer| &layer.variables))
    }

    pub(crate) fn variables_mut(&mut self) -> impl Iterator<Item = &mut Variable> {
        let top = self.top.iter_mut().flat_map(|layer| &mut layer.variables);
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
        let top = self.top.iter().flat_map(|layer| &layer.variables);
        let variables = self.base.variables().chain(top);
        (
            variables
                .filter(|variable| variable.is_trainable())
                .collect(),
            &mut self.compiled,
        )
    }

    /// Returns the logits `[N, units]` of images `[N, 3, H, W]`, made as the base takes them.
    ///
    /// # Errors
    /// `Shape` when the images, or one layer's output and the next one's input, do not fit.
    pub fn forward(&self, images: &Tensor) -> Result<Tensor> {
        self.inference(0, self.last())?(images)
    }

    /// Returns the index of the last layer, counting the base's layers, then the top's.
    pub(crate) fn last(&self) -> usize {
        self.base.layers().len() - 1 + self.top.len()
    }

    /// Returns the name of a layer, counted like [`last`](Self::last).
    pub(crate) fn layer_name(&self, index: usize) -> &str {
        match self.base.layers().get(index) {
            Some(layer) => layer.name(),
            None => self.top[index - self.base.layers().len()].layer.name(),
        }
    }

    /// Returns the shape of a layer's output for one example, counted like [`last`](Self::last).
    pub(crate) fn layer_shape(&self, index: usize) -> Vec<i64> {
        match self.base.layers().get(index) {
            Some(layer) => layer.output_shape().to_vec(),
            None => {
                let layer = &self.top[index - self.base.layers().len()];
                layer.output_shape.clone().unwrap_or_default()
            }
        }
    }

    /// Returns the kind that a layer's outputs can be stored in without loss, counted like
    /// [`last`](Self::last).
    pub(crate) fn layer_kind(&self, index: usize) -> Kind {
        match self.base.layers().get(index) {
            Some(_) => self.base.precision().kind(),
            None => Kind::Float,
        }
    }

    /// Returns the layer after which training starts: its output, alone, determines the model's,
    /// and neither it nor a layer before it is trained or random. Of those the last one, or one
    /// before it in the same block whose output is smaller. Layer 0 only hands the images on.
    pub(crate) fn frozen_prefix(&self) -> usize {
        let base = self.base.layers();
        let trained = |variables: &[Variable]| variables.iter().any(Variable::is_trainable);
        let in_base = |layer: &Layer| trained(layer.variables());
        let on_top = |top: &BuiltLayer| top.layer.is_random() || trained(&top.variables);
        let first_trained = base
            .iter()
            .map(in_base)
            .chain(self.top.iter().map(on_top))
            .position(|changes| changes)
            .unwrap_or(self.last() + 1);
        let last = self.base.last_bottleneck(first_trained.min(base.len()) - 1);
        let cuts = (last..first_trained).filter(|&i| i >= base.len() || self.base.is_cut(i));
        let size = |&index: &usize| self.layer_shape(index).iter().product::<i64>();
        cuts.rev().min_by_key(size).unwrap_or(0)
    }

    /// Returns what the random layers after layer `from` multiply their inputs by in a training step.
    pub(crate) fn factors(&self, from: usize, step: TrainingStep<'_>) -> Result<Vec<Tensor>> {
        let first = from.saturating_sub(self.base.layers().len() - 1);
        (first..)
            .zip(self.top_between(from, self.last()))
            .filter_map(|(place, layer)| layer.factors(place, step).transpose())
            .collect()
    }

    /// Returns layer `to`'s output for layer `from`'s in a training step, recording what a backward
    /// pass needs. `factors` are the [random layers'](Self::factors).
    pub(crate) fn run(
        &self,
        from: usize,
        input: &Tensor,
        to: usize,
        factors: &[Tensor],
    ) -> Result<Tensor> {
        let last_of_base = self.base.layers().len() - 1;
        let features = if from < last_of_base {
            self.base.run(from, input, to.min(last_of_base))?
        } else {
            input.shallow_clone()
        };
        let mut factors = factors.iter();
        self.top_between(from, to)
            .iter()
            .try_fold(features, |input, layer| {
                let own = layer.layer.is_random().then(|| factors.next()).flatten();
                layer.forward(&input, own)
            })
    }

    /// Returns the logits for the base's features, recorded for a backward pass; nothing is dropped.
    pub(crate) fn logits(&self, features: &Tensor) -> Result<Tensor> {
        forward_all(&self.top, features.shallow_clone())
    }

    /// Returns a function that gives layer `to`'s output for layer `from`'s, without a record and
    /// with the weights as they are now. Making it takes longer than an image does.
    pub(crate) fn inference(
        &self,
        from: usize,
        to: usize,
    ) -> Result<impl Fn(&Tensor) -> Result<Tensor> + use<C>> {
        let last_of_base = self.base.layers().len() - 1;
        let base = (from < last_of_base)
            .then(|| self.base.inference(from, to.min(last_of_base)))
            .transpose()?;
        let top = self.top_between(from, to).iter();
        let top: Vec<BuiltLayer> = top.map(BuiltLayer::detached).collect();
        Ok(move |input: &Tensor| {
            let _no_grad = tch::no_grad_guard();
            let features = match &base {
                Some(base) => base.run(input)?,
                None => input.shallow_clone(),
            };
            forward_all(&top, features)
        })
    }

    /// Returns the layers on top among those after `from` up to `to`.
    fn top_between(&self, from: usize, to: usize) -> &[BuiltLayer] {
        let last_of_base = self.base.layers().len() - 1;
        &self.top[from.max(last_of_base) - last_of_base..to.max(last_of_base) - last_of_base]
    }

    /// Saves all weights as safetensors under Keras' names, with the name of the base's
    /// [origin](super::Weights); the file appears whole or not at all.
    ///
    /// # Errors
    /// `Io` when the file cannot be written, `Shape` or `Argument` when the layers on top do not fit.
    pub fn save_weights(&self, path: impl AsRef<Path>) -> Result<()> {
        self.check_head()?;
        weights::save(path.as_ref(), self.base.weights(), self.variables())
    }

    /// Loads all weights from a file that [`save_weights`](Self::save_weights) wrote.
    ///
    /// # Errors
    /// `Io` or `Weights` when the file cannot be read, was saved with a base whose weights have
    /// other conventions than this one's, or names the first tensor that is missing, unknown or of
    /// another shape; `Shape` or `Argument` when the layers on top do not fit. Then nothing has been
    /// changed.
    pub fn load_weights(&mut self, path: impl AsRef<Path>) -> Result<()> {
        self.check_head()?;
        let origin = self.base.weights();
        weights::load(path.as_ref(), origin, self.variables_mut())
    }
}

/// Returns the output of layers on top for inference.
fn forward_all(top: &[BuiltLayer], features: Tensor) -> Result<Tensor> {
    top.iter()
        .try_fold(features, |input, layer| layer.forward(&input, None))
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::model::tests::{NETWORKS, network};
    use crate::model::{
        Architecture, Dense, Dropout, GlobalAveragePooling2d, MobileNetV2, SetTrainable,
    };
    use crate::training::{Loss, RmsProp};

    fn step(number: u64) -> TrainingStep<'static> {
        let parts = &[(0, 2)];
        TrainingStep { number, parts }
    }

    #[test]
    fn training_starts_at_the_bottleneck_before_what_is_trained() {
        let base = Backbone::untrained([3, 160, 160], Device::Cpu).unwrap();
        let mut model = Sequential::new(base)
            .push(GlobalAveragePooling2d)
            .push(Dense::new(1280, 1));
        let mut starts_after = |frozen: usize| {
            model.base_mut().set_trainable(true);
            model.base_mut().layers_mut()[..frozen].set_trainable(false);
            let index = model.frozen_prefix();
            (model.layer_name(index).to_owned(), model.layer_shape(index))
        };
        let after = |name: &str, shape: &[i64]| (name.to_owned(), shape.to_vec());
        assert_eq!(starts_after(0), after("input_1", &[3, 160, 160]));
        // `block_11_expand` is frozen as well, but six times as wide and quick to run again.
        assert_eq!(
            starts_after(100),
            after("block_10_project_BN", &[96, 10, 10])
        );
        // Block 13 has no residual connection, and its depthwise output is wider still.
        assert_eq!(starts_after(122), after("block_12_add", &[96, 10, 10]));
        assert_eq!(
            starts_after(155),
            after("global_average_pooling2d", &[1280])
        );
    }

    #[test]
    fn every_family_is_frozen_up_to_a_blocks_output() {
        for (of, frozen, expected, shape) in [
            // In block 6 of EfficientNet-Lite0, which has a shortcut: in its depthwise convolution.
            (3, 60, "block_5_project_bn", [80, 4, 4]),
            // Before the next block the expansion is frozen as well, and six times as wide.
            (3, 75, "block_7_add", [80, 4, 4]),
            (4, 15, "block_0_project_bn", [16, 33, 41]),
            // ResNet-18: between a shortcut and the sum that it goes into, and after that sum.
            (5, 21, "layer1.1.relu", [64, 16, 16]),
            (5, 28, "layer2.0.relu", [128, 8, 8]),
            (7, 30, "layer1.1.relu", [256, 16, 16]),
        ] {
            let mut model = Sequential::new(network(NETWORKS[of]));
            model.base_mut().layers_mut()[..frozen].set_trainable(false);
            let index = model.frozen_prefix();
            assert_eq!(model.layer_name(index), expected, "{frozen}");
            assert_eq!(model.layer_shape(index), shape);
            // What comes after it needs nothing from before.
            let [channels, height, width] = model.base().input_shape();
            let images = [2, channels, height, width];
            let images = Tensor::randn(images, (Kind::Float, Device::Cpu));
            let stored = model.inference(0, index).unwrap()(&images).unwrap();
            let features = model.run(index, &stored, model.last(), &[]).unwrap();
            let expected = model.forward(&images).unwrap();
            // Sums of another order are rounded by the largest, also where they are close to zero.
            let largest = |tensor: &Tensor| tensor.abs().max().double_value(&[]);
            let difference = largest(&(features - &expected)) / largest(&expected);
            assert!(difference < 1e-4, "{frozen}: {difference}");
        }
    }

    #[test]
    fn nothing_after_a_dropout_is_frozen() {
        let mut base = Backbone::untrained([3, 160, 160], Device::Cpu).unwrap();
        base.set_trainable(false);
        let model = Sequential::new(base)
            .push(GlobalAveragePooling2d)
            .push(Dropout::new(0.2))
            .push(Dense::new(1280, 1));
        let name = |index| model.layer_name(index);
        assert_eq!(name(model.frozen_prefix()), "global_average_pooling2d");
        assert_eq!([name(156), name(157)], ["dropout", "dense"]);
        assert_eq!(model.layer_shape(156), [1280]);
        let summary = model.summary().to_string();
        let row = summary.lines().find(|line| line.starts_with("dropout"));
        let cells: Vec<&str> = row.unwrap().split_whitespace().collect();
        assert_eq!(cells, ["dropout", "(Dropout)", "[None,", "1280]", "0"]);
    }

    #[test]
    fn a_part_of_a_model_drops_what_the_whole_model_drops() {
        let base = Backbone::untrained([3, 32, 32], Device::Cpu).unwrap();
        let model = Sequential::new(base)
            .push(GlobalAveragePooling2d)
            .push(Dropout::new(0.5))
            .push(Dropout::new(0.5));
        let features = Tensor::rand([2, 1280, 1, 1], (Kind::Float, Device::Cpu));
        let run = |from, input: &Tensor, number| {
            let factors = model.factors(from, step(number)).unwrap();
            model.run(from, input, 157, &factors).unwrap()
        };
        let pooled = model.run(154, &features, 155, &[]).unwrap();
        let whole = run(154, &features, 9);
        assert_eq!(run(155, &pooled, 9), whole);
        assert_ne!(run(155, &pooled, 8), whole);
        assert_eq!(model.inference(155, 157).unwrap()(&pooled).unwrap(), pooled);
        // Two layers of one seed drop different features: about a quarter is left.
        let kept = whole.ne(0.).sum(None).int64_value(&[]);
        assert!((540..740).contains(&kept), "{kept}");
    }

    /// A base of 64 pixels, [1280, 2, 2], or 1792 features at alpha 1.4.
    fn base(alpha: f64) -> Backbone {
        let architecture = Architecture::MobileNetV2(MobileNetV2 { alpha });
        Backbone::frame(architecture, MobileNetV2::TF_HUB, [3, 64, 64], Device::Cpu).unwrap()
    }

    fn refusal(model: Sequential) -> String {
        let images = Tensor::zeros([1, 3, 64, 64], (Kind::Float, Device::Cpu));
        model.forward(&images).unwrap_err();
        let folder = tempfile::tempdir().unwrap();
        model.save_weights(folder.path().join("w")).unwrap_err();
        let compiled = model.compile(RmsProp::new(1e-3), Loss::BinaryCrossentropy);
        compiled.unwrap_err().to_string()
    }

    #[test]
    fn a_layer_that_does_not_fit_is_refused_when_compiled_with_both_shapes() {
        let narrow = Sequential::new(base(1.4))
            .push(GlobalAveragePooling2d)
            .push(Dense::new(1280, 1));
        let expected = "dense: expected shape [1280], got [1792]";
        assert_eq!(refusal(narrow), expected);
        let unpooled = Sequential::new(base(1.0)).push(Dense::new(1280, 1));
        let expected = "dense: expected shape [1280], got [1280, 2, 2]";
        assert_eq!(refusal(unpooled), expected);
        let second = Sequential::new(base(1.0))
            .push(GlobalAveragePooling2d)
            .push(Dense::new(1280, 4))
            .push(Dense::new(5, 1));
        let expected = "dense_1: expected shape [5], got [4]";
        assert_eq!(refusal(second), expected);
        let pooled_twice = Sequential::new(base(1.0))
            .push(GlobalAveragePooling2d)
            .push(GlobalAveragePooling2d);
        let expected =
            "global_average_pooling2d: expected shape [channels, height, width], got [1280]";
        assert_eq!(refusal(pooled_twice), expected);
    }

    #[test]
    fn a_dense_layer_that_there_is_no_memory_for_is_an_error() {
        for (inputs, units, reason) in [
            (
                usize::MAX,
                1,
                "dense: expected shape [18446744073709551615]",
            ),
            (usize::MAX, usize::MAX, "dense: expected shape"),
            (1280, usize::MAX, "got dense of 1280 inputs"),
            (1280, i64::MAX as usize, "a layer that there is memory for"),
            (
                1280,
                1 << 40,
                "got dense of 1280 inputs and 1099511627776 outputs",
            ),
        ] {
            let model = Sequential::new(base(1.0))
                .push(GlobalAveragePooling2d)
                .push(Dense::new(inputs, units).seed(1));
            let error = refusal(model);
            assert!(error.contains(reason), "{error}");
        }
    }
}
