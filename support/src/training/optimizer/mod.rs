//! Optimizers: what changes the weights along the gradient, with their state where it can be saved:
//! tch's own keep theirs out of reach.
//!
//! Each is a file here: hyper-parameters and a [`Rule`]. What all have in common is done once, here:
//! weight decay, clipping, discriminative rates, and the state, which is in checkpoints by itself.

mod adam;
mod rms_prop;
mod sgd;

pub use adam::{Adam, AdamW};
pub use rms_prop::RmsProp;
pub use sgd::Sgd;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tch::{TchError, Tensor};

use crate::model::{Variable, subtract};
use crate::{Error, Result};

/// An optimizer with its hyper-parameters and its state: what `compile` makes of an [`RmsProp`], an
/// [`Sgd`], an [`Adam`] or an [`AdamW`]. What it can have besides their own hyper-parameters is in
/// [`OptimizerOptions`].
#[derive(Debug)]
pub struct Optimizer {
    rule: Arc<dyn Rule>,
    options: Options,
    /// One tensor a slot and variable, by `slot/variable`.
    state: BTreeMap<String, Tensor>,
    /// The steps since the state began.
    steps: u64,
    flat: Option<Flat>,
}

/// The hyper-parameters that any optimizer can have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    pub(super) learning_rate: f64,
    pub(super) weight_decay: f64,
    pub(super) clip_value: Option<f64>,
    pub(super) clip_norm: Option<f64>,
    pub(super) discriminative: Option<f64>,
}

/// How one optimizer makes its change to the weights of the gradient. All tensors are flat, one
/// variable's elements after the other's: one operation for all is quicker than many small ones, on a
/// GPU above all.
trait Rule: fmt::Debug + Send + Sync {
    /// Returns Keras' name.
    fn name(&self) -> &'static str;

    /// Returns the rule's own, by Keras' names. They stand in checkpoints and model files.
    fn hyper_parameters(&self) -> Vec<HyperParameter>;

    /// Returns the names of the tensors that it keeps from step to step, which begin as zeros. They
    /// stand in checkpoints.
    fn slots(&self) -> &'static [&'static str];

    /// Returns the momentum, or the beta of the gradient's mean, that a schedule may change; none where
    /// there is none.
    fn momentum(&self) -> Option<f64> {
        None
    }

    /// Returns whether weight decay is subtracted from the weights, and not added to the gradient.
    fn decouples_weight_decay(&self) -> bool {
        false
    }

    /// Returns what is to be subtracted from the weights, in a tensor of its own, and updates the slots.
    fn change(&self, gradient: &Tensor, slots: &mut [Tensor], now: Now)
    -> Result<Tensor, TchError>;
}

/// A step's learning rate, momentum (0 for a rule that has none) and number, counted from 1.
#[derive(Clone, Copy)]
struct Now {
    learning_rate: f64,
    momentum: f64,
    step: i32,
}

/// What a schedule may change at each step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rates {
    pub(super) learning_rate: f64,
    /// None for an optimizer without.
    pub(super) momentum: Option<f64>,
}

/// A number that an optimizer is made with.
struct HyperParameter {
    name: &'static str,
    value: f64,
    bounds: Bounds,
}

#[derive(Clone, Copy)]
enum Bounds {
    Positive,
    /// 0 or more.
    NotNegative,
    /// 0 or more, and less than 1.
    Share,
    /// More than 0, and 1 at most.
    Factor,
}

impl HyperParameter {
    const fn new(name: &'static str, value: f64, bounds: Bounds) -> Self {
        Self {
            name,
            value,
            bounds,
        }
    }

    fn check(&self, optimizer: &str) -> Result<()> {
        let value = self.value;
        let (fits, bounds) = match self.bounds {
            Bounds::Positive => (value > 0., "a positive number"),
            Bounds::NotNegative => (value >= 0., "0 or more"),
            Bounds::Share => ((0. ..1.).contains(&value), "at least 0 and less than 1"),
            Bounds::Factor => (value > 0. && value <= 1., "more than 0 and at most 1"),
        };
        if fits && value.is_finite() {
            return Ok(());
        }
        Err(Error::Argument {
            name: "compile, the optimizer",
            expected: format!(
                "{optimizer}'s {} to be {bounds}",
                self.name.replace('_', " ")
            ),
            got: value.to_string(),
        })
    }
}

/// An optimizer and its hyper-parameters, as they stand in a checkpoint, by Keras' names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct OptimizerConfig {
    name: String,
    /// Flattened, none is unknown: one of another version makes it another optimizer.
    #[serde(flatten)]
    hyper_parameters: BTreeMap<String, f64>,
}

/// What any optimizer can have besides its own hyper-parameters, which come first:
///
/// ```
/// # use support::prelude::*;
/// let optimizer = Sgd::new(0.01).momentum(0.9).nesterov().weight_decay(1e-4).clip_norm(1.0);
/// ```
pub trait OptimizerOptions: Into<Optimizer> {
    /// Draws each weight towards 0. [`AdamW`] subtracts `learning_rate * weight_decay * weight` from it at
    /// each step; the others add `weight_decay * weight` to its gradient, as PyTorch's do (Keras' subtract
    /// for all).
    ///
    /// Only of kernels: biases and the batch normalizations' variables are left alone, as by fastai
    /// (`wd_bn_bias=False`) and timm. Keras and PyTorch decay them too, unless told otherwise.
    #[must_use]
    fn weight_decay(self, weight_decay: f64) -> Optimizer {
        let mut optimizer = self.into();
        optimizer.options.weight_decay = weight_decay;
        optimizer
    }

    /// Makes the gradient of all variables together shorter where its Euclidean norm is more than `norm`,
    /// as PyTorch's `clip_grad_norm_` and Keras' `global_clipnorm`.
    #[must_use]
    fn clip_norm(self, norm: f64) -> Optimizer {
        let mut optimizer = self.into();
        optimizer.options.clip_norm = Some(norm);
        optimizer
    }

    /// Takes each element of the gradient for `value`, or `-value`, where it is beyond, before a
    /// [`clip_norm`](Self::clip_norm); as PyTorch's `clip_grad_value_` and Keras' `clipvalue`.
    #[must_use]
    fn clip_value(self, value: f64) -> Optimizer {
        let mut optimizer = self.into();
        optimizer.options.clip_value = Some(value);
        optimizer
    }

    /// Trains the base slower than the layers on top, whose rate is the learning rate: the first half of
    /// the base's trainable layers at `factor` times that, the second half at `sqrt(factor)` times.
    /// fastai's `slice(factor * rate, rate)` has the same rates for the three groups of layers that its
    /// `vision_learner` makes of a ResNet; networks that it has no groups for have two there.
    #[must_use]
    fn discriminative(self, factor: f64) -> Optimizer {
        let mut optimizer = self.into();
        optimizer.options.discriminative = Some(factor);
        optimizer
    }
}

impl<T: Into<Optimizer>> OptimizerOptions for T {}

/// The state of the variables that are trained, and what depends on which they are.
#[derive(Debug)]
struct Flat {
    /// The names of the variables.
    names: Vec<String>,
    /// Of which the state has parts.
    slots: Vec<Tensor>,
    /// What the learning rate is multiplied by, where not all have the same.
    factors: Option<Tensor>,
    /// The weight decay, which is 0 for some.
    decay: Option<Tensor>,
}

impl Optimizer {
    fn new(learning_rate: f64, rule: impl Rule + 'static) -> Self {
        Self {
            rule: Arc::new(rule),
            options: Options {
                learning_rate,
                weight_decay: 0.,
                clip_value: None,
                clip_norm: None,
                discriminative: None,
            },
            state: BTreeMap::new(),
            steps: 0,
            flat: None,
        }
    }

    /// Returns all hyper-parameters; of those that any optimizer can have, the ones that it has.
    fn hyper_parameters(&self) -> Vec<HyperParameter> {
        use Bounds::{Factor, NotNegative, Positive};
        let Options {
            learning_rate,
            weight_decay,
            clip_value,
            clip_norm,
            discriminative,
        } = self.options;
        let mut all = vec![HyperParameter::new(
            "learning_rate",
            learning_rate,
            Positive,
        )];
        all.extend(self.rule.hyper_parameters());
        let options = [
            (
                "weight_decay",
                (weight_decay != 0.).then_some(weight_decay),
                NotNegative,
            ),
            ("clipvalue", clip_value, Positive),
            ("global_clipnorm", clip_norm, Positive),
            ("discriminative", discriminative, Factor),
        ];
        let options = options.into_iter();
        all.extend(options.filter_map(|(name, value, bounds)| {
            value.map(|value| HyperParameter::new(name, value, bounds))
        }));
        all
    }

    /// Checks the hyper-parameters.
    pub(super) fn check(&self) -> Result<()> {
        let all = self.hyper_parameters();
        all.iter().try_for_each(|each| each.check(self.rule.name()))
    }

    /// Returns Keras' name of the optimizer and its hyper-parameters, by name.
    pub(crate) fn describe(&self) -> (&'static str, BTreeMap<String, f64>) {
        let all = self.hyper_parameters().into_iter();
        let named = all.map(|each| (each.name.to_owned(), each.value));
        (self.rule.name(), named.collect())
    }

    /// Returns what a checkpoint says of it.
    pub(super) fn config(&self) -> OptimizerConfig {
        let (name, hyper_parameters) = self.describe();
        OptimizerConfig {
            name: name.into(),
            hyper_parameters,
        }
    }

    /// Returns the learning rate and the momentum that it was made with.
    pub(super) fn rates(&self) -> Rates {
        Rates {
            learning_rate: self.options.learning_rate,
            momentum: self.rule.momentum(),
        }
    }

    pub(super) fn options(&self) -> Options {
        self.options
    }

    /// Goes on with other hyper-parameters.
    pub(super) fn set_options(&mut self, options: Options) {
        self.options = options;
        self.flat = None;
    }

    /// Returns one with the same state, which goes on by itself.
    pub(super) fn copy(&self) -> Result<Self> {
        let copy = |(name, value): (&String, &Tensor)| Ok((name.clone(), value.f_detach_copy()?));
        let state: Result<_, TchError> = self.state.iter().map(copy).collect();
        Ok(Self {
            rule: Arc::clone(&self.rule),
            state: state.map_err(Error::torch("copying the optimizer's state"))?,
            flat: None,
            ..*self
        })
    }

    /// Returns the state, by `slot/variable`.
    pub(super) fn state(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        let pairs = self.state.iter();
        pairs.map(|(name, value)| (name.as_str(), value))
    }

    /// Returns the steps since the state began.
    pub(super) fn steps(&self) -> u64 {
        self.steps
    }

    /// Replaces the state, by `slot/variable`, and the steps since it began.
    pub(super) fn set_state(&mut self, state: BTreeMap<String, Tensor>, steps: u64) {
        (self.state, self.steps) = (state, steps);
        self.flat = None;
    }

    /// Returns under which names the state of some variables stands.
    pub(super) fn names<'a>(
        &self,
        variables: &'a [&'a Variable],
    ) -> impl Iterator<Item = (String, &'a Variable)> + use<'a> {
        let slots = self.rule.slots().iter();
        slots.flat_map(|slot| {
            let name = move |variable: &&'a Variable| (key(slot, variable), *variable);
            variables.iter().map(name)
        })
    }

    /// Changes each variable by one step along its gradient. The first `in_base` variables are the base's;
    /// `gradient` has one variable's after the other's.
    pub(super) fn step(
        &mut self,
        variables: &[&Variable],
        in_base: usize,
        gradient: &Tensor,
        rates: Rates,
    ) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        self.update(variables, in_base, gradient, rates)
            .map_err(Error::torch("updating the variables"))
    }

    fn update(
        &mut self,
        variables: &[&Variable],
        in_base: usize,
        gradient: &Tensor,
        rates: Rates,
    ) -> Result<(), TchError> {
        let mut flat = match self.flat.take() {
            Some(flat) if flat.is_of(variables) => flat,
            _ => self.flatten(variables, in_base)?,
        };
        self.steps += 1;
        let mut gradient = clip(gradient, self.options)?;
        let mut decay = match &flat.decay {
            Some(decay) => Some(flatten(&values(variables))?.f_mul_(decay)?),
            None => None,
        };
        if let Some(decay) = decay.take_if(|_| !self.rule.decouples_weight_decay()) {
            gradient = gradient.f_add(&decay)?;
        }
        let now = Now {
            learning_rate: rates.learning_rate,
            momentum: rates.momentum.unwrap_or(0.),
            step: i32::try_from(self.steps).unwrap_or(i32::MAX),
        };
        let mut change = self.rule.change(&gradient, &mut flat.slots, now)?;
        if let Some(mut decay) = decay {
            change = change.f_add_(&decay.f_mul_scalar_(rates.learning_rate)?)?;
        }
        if let Some(factors) = &flat.factors {
            change = change.f_mul_(factors)?;
        }
        let values: Vec<&Tensor> = variables.iter().map(|variable| variable.value()).collect();
        subtract(&values, &change)?;
        self.flat = Some(flat);
        Ok(())
    }

    /// Returns the state of these variables in flat tensors, of which `state` then holds parts. It begins
    /// anew, for all, where one has none: their steps are counted together.
    fn flatten(&mut self, variables: &[&Variable], in_base: usize) -> Result<Flat, TchError> {
        if !self
            .names(variables)
            .all(|(name, _)| self.state.contains_key(&name))
        {
            self.set_state(BTreeMap::new(), 0);
        }
        let mut slots = Vec::new();
        for slot in self.rule.slots() {
            let values = variables.iter().map(|variable| {
                let known = self.state.get(&key(slot, variable));
                known.map_or_else(
                    || variable.value().detach().f_zeros_like(),
                    |known| Ok(known.shallow_clone()),
                )
            });
            let flat = flatten(&values.collect::<Result<Vec<_>, _>>()?)?;
            for (variable, part) in variables.iter().zip(unflatten(&flat, variables)) {
                self.state.insert(key(slot, variable), part?);
            }
            slots.push(flat);
        }
        let factors = self.options.discriminative.filter(|_| in_base > 0);
        let factors =
            factors.map(|factor| fill(variables, &factors_of(variables, in_base, factor)));
        let decay = self.options.weight_decay;
        let decay = (decay > 0.).then(|| {
            let of = |variable: &&Variable| if variable.is_kernel() { decay } else { 0. };
            fill(variables, &variables.iter().map(of).collect::<Vec<_>>())
        });
        Ok(Flat {
            names: variables
                .iter()
                .map(|variable| variable.name().to_owned())
                .collect(),
            slots,
            factors: factors.transpose()?,
            decay: decay.transpose()?,
        })
    }
}

impl Flat {
    fn is_of(&self, variables: &[&Variable]) -> bool {
        let names = variables.iter().map(|variable| variable.name());
        self.names.iter().eq(names)
    }
}

fn key(slot: &str, variable: &Variable) -> String {
    format!("{slot}/{}", variable.name())
}

/// Returns the gradient within the limits.
fn clip(gradient: &Tensor, options: Options) -> Result<Tensor, TchError> {
    let mut gradient = gradient.shallow_clone();
    if let Some(limit) = options.clip_value {
        gradient = gradient.f_clamp(-limit, limit)?;
    }
    if let Some(limit) = options.clip_norm {
        // PyTorch's way of never dividing by 0. Read nowhere: a GPU would be waited for.
        let norm = gradient.f_norm()?.f_add_scalar_(1e-6)?;
        let factor = norm
            .f_reciprocal()?
            .f_mul_scalar_(limit)?
            .f_clamp_max_(1.)?;
        gradient = gradient.f_mul(&factor)?;
    }
    Ok(gradient)
}

/// Returns what each variable's learning rate is multiplied by: see
/// [`OptimizerOptions::discriminative`].
fn factors_of(variables: &[&Variable], in_base: usize, factor: f64) -> Vec<f64> {
    let layer = |variable: &&Variable| {
        let name = variable.name();
        name.rsplit_once('/')
            .map_or(name, |(layer, _)| layer)
            .to_owned()
    };
    let mut layers: Vec<String> = variables.iter().take(in_base).map(layer).collect();
    layers.dedup();
    let first_half = &layers[..layers.len() / 2];
    let of = |(at, variable)| match first_half.contains(&layer(variable)) {
        _ if at >= in_base => 1.,
        true => factor,
        false => factor.sqrt(),
    };
    variables.iter().enumerate().map(of).collect()
}

/// Returns a flat tensor with one value for all elements of a variable.
fn fill(variables: &[&Variable], values: &[f64]) -> Result<Tensor, TchError> {
    let parts = variables.iter().zip(values);
    let parts = parts.map(|(variable, &value)| variable.value().detach().f_full_like(value));
    flatten(&parts.collect::<Result<Vec<_>, _>>()?)
}

fn values(variables: &[&Variable]) -> Vec<Tensor> {
    let values = variables.iter().map(|variable| variable.value().detach());
    values.collect()
}

/// Returns all values, one tensor's after the other's.
pub(super) fn flatten(tensors: &[Tensor]) -> Result<Tensor, TchError> {
    let flat: Result<Vec<_>, _> = tensors.iter().map(|part| part.f_reshape([-1])).collect();
    Tensor::f_cat(&flat?, 0)
}

/// Returns the parts of a flat tensor, each in the shape of its variable.
fn unflatten<'a>(
    flat: &'a Tensor,
    variables: &'a [&Variable],
) -> impl Iterator<Item = Result<Tensor, TchError>> + 'a {
    let mut start = 0;
    variables.iter().map(move |variable| {
        let shape = variable.value().size();
        let length = shape.iter().product();
        let part = flat.f_narrow(0, start, length)?.f_view(&shape[..]);
        start += length;
        part
    })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;
    use tch::Kind;

    use super::*;

    /// What `tests/reference/optimizers.py` makes.
    #[derive(Deserialize)]
    struct Reference {
        before: Vec<f32>,
        gradients: Vec<Vec<f32>>,
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        by: String,
        name: String,
        options: CaseOptions,
        rates: Option<Vec<f64>>,
        momentums: Option<Vec<f64>>,
        /// Steps 1, 2 and the last one.
        after: [Vec<f32>; 3],
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct CaseOptions {
        rate: f64,
        momentum: Option<f64>,
        nesterov: Option<u8>,
        betas: Option<[f64; 2]>,
        epsilon: Option<f64>,
        weight_decay: Option<f64>,
        clip_norm: Option<f64>,
        clip_value: Option<f64>,
        discriminative: Option<f64>,
    }

    fn optimizer(name: &str, options: &CaseOptions) -> Optimizer {
        let rate = options.rate;
        let betas = options.betas.unwrap_or([0.9, 0.999]);
        let epsilon = options.epsilon.unwrap_or(1e-8);
        let adam = Adam::new(rate).betas(betas[0], betas[1]).epsilon(epsilon);
        let sgd = Sgd::new(rate).momentum(options.momentum.unwrap_or(0.));
        let mut optimizer: Optimizer = match name {
            "RMSprop" => RmsProp::new(rate).into(),
            "SGD" if options.nesterov.is_some() => sgd.nesterov().into(),
            "SGD" => sgd.into(),
            "Adam" => adam.into(),
            "AdamW" => AdamW::new(rate).epsilon(epsilon).into(),
            _ => panic!("{name}"),
        };
        if let Some(decay) = options.weight_decay {
            optimizer = optimizer.weight_decay(decay);
        }
        if let Some(norm) = options.clip_norm {
            optimizer = optimizer.clip_norm(norm);
        }
        if let Some(value) = options.clip_value {
            optimizer = optimizer.clip_value(value);
        }
        if let Some(factor) = options.discriminative {
            optimizer = optimizer.discriminative(factor);
        }
        optimizer
    }

    fn variable(name: &str, values: &[f32], shape: &[i64]) -> Variable {
        Variable::new(name.into(), Tensor::from_slice(values).view(shape))
    }

    fn all_values(variables: &[&Variable]) -> Vec<f32> {
        Vec::try_from(flatten(&values(variables)).unwrap()).unwrap()
    }

    #[test]
    fn twenty_steps_equal_those_of_pytorch_and_keras() {
        let text = include_str!("../../../tests/data/optimizers.json");
        let reference: Reference = serde_json::from_str(text).unwrap();
        assert_eq!(reference.cases.len(), 27);
        for case in &reference.cases {
            let what = format!("{}'s {} of {:?}", case.by, case.name, case.options);
            let mut optimizer = optimizer(&case.name, &case.options);
            optimizer.check().unwrap();
            let kernel = variable("block/kernel", &reference.before[..6], &[2, 3]);
            let bias = variable("dense/bias", &reference.before[6..], &[2]);
            let variables = [&kernel, &bias];
            let mut after = Vec::new();
            for (step, gradient) in reference.gradients.iter().enumerate() {
                let own = optimizer.rates();
                let rates = Rates {
                    learning_rate: case
                        .rates
                        .as_ref()
                        .map_or(own.learning_rate, |all| all[step]),
                    momentum: case
                        .momentums
                        .as_ref()
                        .map_or(own.momentum, |all| Some(all[step])),
                };
                let gradient = Tensor::from_slice(gradient);
                let kept = gradient.copy();
                optimizer.step(&variables, 1, &gradient, rates).unwrap();
                assert_eq!(gradient, kept, "{what}: the gradient is the caller's");
                if [0, 1, 19].contains(&step) {
                    after.push(all_values(&variables));
                }
            }
            for (after, expected) in after.iter().zip(&case.after) {
                for (after, expected) in after.iter().zip(expected) {
                    assert!(
                        (after - expected).abs() < 2e-6,
                        "{what}: {after} for {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_first_half_of_the_bases_layers_learns_slowest_and_the_head_fastest() {
        let names = [
            "a/gamma", "a/beta", "b/kernel", "c/kernel", "d/gamma", "d/beta", "e/kernel", "e/bias",
        ];
        let variables = names.map(|name| variable(name, &[0.], &[1]));
        let variables: Vec<&Variable> = variables.iter().collect();
        let of = |in_base| factors_of(&variables, in_base, 0.25);
        assert_eq!(of(6), [0.25, 0.25, 0.25, 0.5, 0.5, 0.5, 1., 1.]);
        assert_eq!(of(0), [1.; 8]);
        // Of three layers the first one.
        assert_eq!(of(4), [0.25, 0.25, 0.5, 0.5, 1., 1., 1., 1.]);
        // A plain step along ones shows them.
        let mut sgd = Sgd::new(1.).discriminative(0.25);
        let rates = sgd.rates();
        let ones = Tensor::ones([8], (Kind::Float, tch::Device::Cpu));
        sgd.step(&variables, 6, &ones, rates).unwrap();
        let moved = [-0.25, -0.25, -0.25, -0.5, -0.5, -0.5, -1., -1.];
        assert_eq!(all_values(&variables), moved);
    }

    #[test]
    fn the_state_begins_anew_when_a_variable_without_one_is_trained() {
        let [a, b] = ["a/kernel", "b/kernel"].map(|name| variable(name, &[1.], &[1]));
        let mut adam = Optimizer::from(Adam::new(0.5));
        let rates = adam.rates();
        let gradient = Tensor::from_slice(&[1_f32, 1.]);
        let one = gradient.narrow(0, 0, 1);
        for _ in 0..3 {
            adam.step(&[&a], 0, &one, rates).unwrap();
        }
        assert_eq!(adam.steps(), 3);
        let before = all_values(&[&a, &b]);
        adam.step(&[&a, &b], 0, &gradient, rates).unwrap();
        assert_eq!(adam.steps(), 1);
        // The first step of Adam is as long as the learning rate.
        for (before, after) in before.iter().zip(all_values(&[&a, &b])) {
            assert!((before - after - 0.5).abs() < 1e-6, "{before} {after}");
        }
        // Fewer go on with theirs.
        adam.step(&[&b], 0, &one, rates).unwrap();
        assert_eq!(adam.steps(), 2);
    }

    #[test]
    fn an_optimizer_is_described_by_keras_names_in_checkpoints() {
        let config = |optimizer: Optimizer| serde_json::to_value(optimizer.config()).unwrap();
        // The one that users have checkpoints of.
        assert_eq!(
            config(RmsProp::new(1e-4).into()),
            json!({"name": "RMSprop", "learning_rate": 1e-4, "rho": 0.9, "epsilon": 1e-7})
        );
        let sgd = Sgd::new(0.1).momentum(0.9).nesterov().weight_decay(0.01);
        assert_eq!(
            config(sgd.clip_norm(1.).clip_value(2.).discriminative(0.5)),
            json!({
                "name": "SGD", "learning_rate": 0.1, "momentum": 0.9, "nesterov": 1.,
                "weight_decay": 0.01, "global_clipnorm": 1., "clipvalue": 2., "discriminative": 0.5,
            })
        );
        let adam_w = json!({
            "name": "AdamW", "learning_rate": 0.1, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-8,
            "weight_decay": 0.01,
        });
        assert_eq!(config(AdamW::new(0.1).into()), adam_w);
        let read: OptimizerConfig = serde_json::from_value(adam_w).unwrap();
        assert_eq!(read, Optimizer::from(AdamW::new(0.1)).config());
    }

    #[test]
    fn a_hyper_parameter_out_of_bounds_is_refused_by_its_name() {
        let refused: [(Optimizer, &str); 10] = [
            (
                RmsProp::new(0.).into(),
                "RMSprop's learning rate to be a positive number",
            ),
            (
                Sgd::new(f64::NAN).into(),
                "SGD's learning rate to be a positive number",
            ),
            (Adam::new(f64::INFINITY).into(), "Adam's learning rate"),
            (
                Sgd::new(0.1).momentum(1.).into(),
                "SGD's momentum to be at least 0 and less than 1",
            ),
            (Adam::new(0.1).betas(0.9, -0.1).into(), "Adam's beta 2"),
            (AdamW::new(0.1).epsilon(0.).into(), "AdamW's epsilon"),
            (
                Adam::new(0.1).weight_decay(-1.),
                "Adam's weight decay to be 0 or more",
            ),
            (Adam::new(0.1).clip_norm(0.), "Adam's global clipnorm"),
            (Adam::new(0.1).clip_value(-1.), "Adam's clipvalue"),
            (
                Adam::new(0.1).discriminative(1.5),
                "more than 0 and at most 1, got 1.5",
            ),
        ];
        for (optimizer, expected) in refused {
            let error = optimizer.check().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
