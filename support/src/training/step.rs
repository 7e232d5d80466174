//! One training step, and what has to hold before it.

use tch::{Device, Kind, TchError, Tensor};

use super::evaluation::Totals;
use super::frozen::PrefixBatch;
use super::metrics::Outputs;
use super::optimizer::{Rates, flatten};
use super::{Compiled, Evaluation};
use crate::cuda::{Recorder, to_device};
use crate::distributed::{ProcessGroup, Reducer};
use crate::model::{Sequential, TrainingStep};
use crate::pipeline::{Batches, Mixed};
use crate::{Error, Result};

/// A batch's loss, where it was computed.
pub(super) struct BatchLoss {
    /// The root of the backward pass.
    mean: Tensor,
    correct: Tensor,
    examples: i64,
    /// Where something else is to be measured.
    outputs: Option<Outputs>,
}

impl BatchLoss {
    pub(super) fn read(self) -> Result<Totals> {
        let sums = self.sums().map_err(Error::torch("loss"))?;
        Totals::read(&sums, self.outputs.into_iter().collect())
    }

    /// Returns the sum of the examples' losses, correct and examples in one tensor `[3]`.
    fn sums(&self) -> Result<Tensor, TchError> {
        let double = |value: &Tensor| value.f_detach()?.f_to_kind(Kind::Double);
        let loss = double(&self.mean)?.f_mul_scalar(self.examples)?;
        let examples = loss.f_full_like(self.examples)?;
        Tensor::f_stack(&[loss, double(&self.correct)?, examples], 0)
    }
}

/// Makes no number of the loss in some sums where the gradient is not finite. The loss alone does not tell: oneDNN's
/// ReLUs make 0 of what is no number.
fn mark_not_finite(sums: &Tensor, gradient: &Tensor) -> Result<(), TchError> {
    let zero = gradient.f_sum(gradient.kind())?.f_mul_scalar_(0)?;
    sums.f_get(0)?.f_add_(&zero).map(drop)
}

/// The tensors of a batch, on the model's device: input, labels, those that are mixed in with their shares, and the
/// random layers' factors.
pub(super) struct Inputs {
    tensors: Vec<Tensor>,
    is_mixed: bool,
}

/// Takes training steps on the output of layer `cut`, one after the other.
pub(super) struct Stepper {
    pub(super) cut: usize,
    /// Where there are other ranks.
    reducer: Option<Reducer>,
    recorder: Recorder,
}

/// What a step came to, which a GPU may not know yet.
pub(super) struct Step {
    sums: Tensor,
    outputs: Vec<Outputs>,
}

impl Step {
    /// Returns the sums over all ranks before the step, once they are known.
    pub(super) fn read(self) -> Result<Totals> {
        Totals::read(&self.sums, self.outputs)
    }
}

impl Sequential<Compiled> {
    /// Trains one step on images `[N, 3, H, W]` with class indices `[N]`, 64-bit integers, or, where an
    /// example [can be of several classes](super::Loss::is_multi_label), a 0 or 1 for each, `[N, classes]`;
    /// returns loss and accuracy before the step, no other metrics. The other processes of a group have no
    /// part in it.
    ///
    /// # Errors
    /// `Shape` when the images do not fit the model, or the labels the images; `Argument` when a label
    /// is of no class, no integer, or neither 0 nor 1, or nothing is trainable. Then nothing has been
    /// changed.
    pub fn train_on_batch(&mut self, images: &Tensor, labels: &Tensor) -> Result<Evaluation> {
        self.check_trainable("train_on_batch")?;
        self.check_labels(images, labels)?;
        let batch = PrefixBatch {
            input: images.shallow_clone(),
            labels: labels.shallow_clone(),
            mixed: None,
            parts: vec![(0, labels.size()[0])],
        };
        let rates = self.compiled.optimizer.rates();
        let mut alone = Stepper {
            cut: 0,
            reducer: None,
            recorder: Recorder::default(),
        };
        let inputs = self.inputs(alone.cut, Some(Ok(batch)))?;
        Ok(self.train_step(&mut alone, inputs, rates)?.read()?.mean())
    }

    /// Returns what takes steps on layer `cut`'s output, together with the other ranks of a group.
    pub(super) fn stepper(&self, cut: usize, group: &ProcessGroup) -> Result<Stepper> {
        let variables = self.trainable_variables();
        let values: Vec<&Tensor> = variables.iter().map(|variable| variable.value()).collect();
        Ok(Stepper {
            cut,
            reducer: group.reducer(&values, 3)?,
            recorder: Recorder::default(),
        })
    }

    /// Brings the next step's batch, if there is one, to the device.
    pub(super) fn inputs(
        &self,
        cut: usize,
        batch: Option<Result<PrefixBatch>>,
    ) -> Result<Option<Inputs>> {
        let Some(batch) = batch.transpose()? else {
            return Ok(None);
        };
        let step = TrainingStep {
            number: self.compiled.step,
            parts: &batch.parts,
        };
        let factors = self.factors(cut, step)?;
        let mixed = batch.mixed.as_ref();
        let mixed = mixed.map(|mixed| [&mixed.labels, &mixed.shares]);
        let tensors = [&batch.input, &batch.labels].into_iter();
        let tensors = tensors.chain(mixed.into_iter().flatten()).chain(&factors);
        let tensors = tensors.map(|tensor| to_device(tensor, self.base().device()));
        Ok(Some(Inputs {
            tensors: tensors
                .collect::<Result<_, _>>()
                .map_err(Error::torch("batch"))?,
            is_mixed: mixed.is_some(),
        }))
    }

    /// Trains one step on layer `cut`'s output for some images, together with the other ranks where there are
    /// any. Without examples on any rank, an epoch has ended: then the step has none.
    pub(super) fn train_step(
        &mut self,
        stepper: &mut Stepper,
        inputs: Option<Inputs>,
        rates: Rates,
    ) -> Result<Step> {
        if let Some(reducer) = &stepper.reducer {
            return self.train_step_together(stepper.cut, inputs, rates, reducer);
        }
        let Some(inputs) = inputs else {
            let none = Tensor::f_zeros([3], (Kind::Double, Device::Cpu));
            return Ok(Step {
                sums: none.map_err(Error::torch("loss"))?,
                outputs: Vec::new(),
            });
        };
        let Stepper { cut, recorder, .. } = stepper;
        let results = recorder.run(&inputs.tensors, |tensors| {
            let loss = self.loss_of(*cut, tensors, inputs.is_mixed)?;
            let gradient = self.gradient(&loss.mean)?;
            let sums = loss.sums().and_then(|sums| {
                mark_not_finite(&sums, &gradient)?;
                Ok(sums)
            });
            let sums = sums.map_err(Error::torch("loss"))?;
            let outputs = loss
                .outputs
                .into_iter()
                .flat_map(|(logits, labels)| [logits, labels]);
            Ok([gradient, sums].into_iter().chain(outputs).collect())
        })?;
        let mut results = results.into_iter();
        let mut next = || results.next().ok_or(TchError::Torch("no result".into()));
        let (gradient, sums) = next()
            .and_then(|gradient| Ok((gradient, next()?)))
            .map_err(Error::torch("training step"))?;
        self.update(&gradient, rates)?;
        let outputs = results.next().zip(results.next());
        Ok(Step {
            sums,
            outputs: outputs.into_iter().collect(),
        })
    }

    /// Trains one step on a batch of which this rank may have no part.
    fn train_step_together(
        &mut self,
        cut: usize,
        inputs: Option<Inputs>,
        rates: Rates,
        reducer: &Reducer,
    ) -> Result<Step> {
        let loss = inputs.map(|inputs| self.loss_of(cut, &inputs.tensors, inputs.is_mixed));
        let loss = loss.transpose()?;
        let (mut gradients, sums) = match &loss {
            Some(loss) => {
                let root = loss.mean.f_mul_scalar(loss.examples);
                let sums = loss.sums().and_then(|sums| sums.f_to_kind(Kind::Float));
                let root = root.map_err(Error::torch("loss"))?;
                reducer.backward(Some(&root), &sums.map_err(Error::torch("loss"))?)?
            }
            None => {
                let none = Tensor::f_zeros([3], (Kind::Float, self.base().device()));
                reducer.backward(None, &none.map_err(Error::torch("loss"))?)?
            }
        };
        if loss.is_none() && Totals::read(&sums, Vec::new())?.examples == 0 {
            return Ok(Step {
                sums,
                outputs: Vec::new(),
            });
        }
        let mean = sums
            .f_get(2)
            .and_then(|examples| gradients.f_div_(&examples));
        let mean = mean.map_err(Error::torch("mean of the gradients"))?;
        self.update(&mean, rates)?;
        mark_not_finite(&sums, &mean).map_err(Error::torch("gradient"))?;
        Ok(Step {
            sums,
            outputs: loss.and_then(|loss| loss.outputs).into_iter().collect(),
        })
    }

    /// Returns the loss of a batch's [inputs](Inputs).
    fn loss_of(&self, cut: usize, tensors: &[Tensor], is_mixed: bool) -> Result<BatchLoss> {
        let [input, labels, others @ ..] = tensors else {
            return Err(Error::torch("batch")(TchError::Shape("no labels".into())));
        };
        let (mixed, factors) = others.split_at(if is_mixed { 2 } else { 0 });
        let mixed = match mixed {
            [labels, shares] => Some(Mixed {
                labels: labels.shallow_clone(),
                shares: shares.shallow_clone(),
            }),
            _ => None,
        };
        let logits = self.run(cut, input, self.last(), factors)?;
        self.batch_loss(&logits, labels, mixed.as_ref())
    }

    /// Returns the gradient of a loss, one trainable variable's after the other's.
    fn gradient(&self, loss: &Tensor) -> Result<Tensor> {
        let variables = self.trainable_variables();
        let values: Vec<&Tensor> = variables.iter().map(|variable| variable.value()).collect();
        Tensor::f_run_backward(&[loss], &values, false, false)
            .and_then(|gradients| flatten(&gradients))
            .map_err(Error::torch("backward pass"))
    }

    /// Changes the weights by one step along the loss' gradient.
    fn update(&mut self, gradient: &Tensor, rates: Rates) -> Result<()> {
        let in_base = self.base().variables();
        let in_base = in_base.filter(|variable| variable.is_trainable()).count();
        let (variables, compiled) = self.split_compiled();
        let optimizer = &mut compiled.optimizer;
        optimizer.step(&variables, in_base, gradient, rates)?;
        compiled.step += 1;
        Ok(())
    }

    /// Returns the mean loss of a batch, and how many of its examples are classified right; the loss of
    /// mixed images is that of both labels, by their shares.
    pub(super) fn batch_loss(
        &self,
        logits: &Tensor,
        labels: &Tensor,
        mixed: Option<&Mixed>,
    ) -> Result<BatchLoss> {
        let objective = &self.compiled.objective;
        objective.check_labels(logits, labels)?;
        let evaluate = || {
            let labels = labels.f_to_device(logits.device())?;
            let each = match mixed {
                None => objective.each(logits, &labels)?,
                Some(Mixed {
                    labels: others,
                    shares,
                }) => {
                    let others = others.f_to_device(logits.device())?;
                    let shares = shares.f_to_device(logits.device())?;
                    let own = objective.each(logits, &labels)?;
                    objective
                        .each(logits, &others)?
                        .f_lerp_tensor(&own, &shares)?
                }
            };
            Ok(BatchLoss {
                mean: each.f_mean(each.kind())?,
                correct: objective.loss().correct(logits, &labels)?,
                examples: logits.size()[0],
                outputs: match self.compiled.metrics[..] {
                    [] => None,
                    _ => Some((logits.f_detach()?, labels)),
                },
            })
        };
        evaluate().map_err(Error::torch("loss"))
    }

    /// Checks that there is something to train on the batches.
    pub(super) fn check_training(&self, batches: &Batches, name: &'static str) -> Result<()> {
        self.check(batches, name)?;
        self.check_trainable(name)
    }

    fn check_trainable(&self, name: &'static str) -> Result<()> {
        if !self.trainable_variables().is_empty() {
            return Ok(());
        }
        Err(Error::Argument {
            name,
            expected: "a model with at least one trainable variable".into(),
            got: "all layers frozen".into(),
        })
    }

    /// Checks that the batches can be evaluated.
    pub(crate) fn check(&self, batches: &Batches, name: &'static str) -> Result<()> {
        let expected_classes = self.compiled.loss().classes(&self.output_shape())?;
        let (classes, examples) = (batches.classes().len(), batches.examples());
        if classes != expected_classes || examples == 0 {
            return Err(Error::Argument {
                name,
                expected: format!("examples of {expected_classes} classes"),
                got: format!("{examples} examples of {classes} classes"),
            });
        }
        let loss = self.compiled.loss();
        let [expected, got] = [loss.is_multi_label(), batches.is_multi_label()];
        if expected != got {
            let each = |several| {
                if several {
                    "any number of classes"
                } else {
                    "one class"
                }
            };
            return Err(Error::Argument {
                name,
                expected: format!("examples of {} each for {loss:?}", each(expected)),
                got: format!("examples of {} each", each(got)),
            });
        }
        batches.check_labels(name)
    }

    /// Checks labels that come with images from anywhere.
    fn check_labels(&self, images: &Tensor, labels: &Tensor) -> Result<()> {
        let argument = |expected: String, got: String| {
            Err(Error::Argument {
                name: "train_on_batch, the labels",
                expected,
                got,
            })
        };
        let (count, got) = (images.size().first().copied().unwrap_or(0), labels.size());
        let classes = self.compiled.loss().classes(&self.output_shape())?;
        let is_multi_label = self.compiled.loss().is_multi_label();
        let (shape, expected) = match is_multi_label {
            true => (vec![count, classes as i64], format!("[N, {classes}]")),
            false => (vec![count], "[N]".into()),
        };
        if got != shape || count == 0 {
            return Err(Error::Shape {
                operation: "train_on_batch, the labels".into(),
                expected: format!(
                    "{expected} for images [N, 3, H, W], N = {count} being 1 or more"
                ),
                got,
            });
        }
        let kind = labels.kind();
        if !is_multi_label && kind != Kind::Int64 {
            return argument("class indices, 64-bit integers".into(), format!("{kind:?}"));
        }
        let labels = labels
            .f_to_device(Device::Cpu)
            .and_then(|labels| labels.f_to_kind(Kind::Double)?.f_reshape([-1]))
            .and_then(Vec::<f64>::try_from)
            .map_err(Error::torch("labels"))?;
        let highest = if is_multi_label { 1 } else { classes - 1 };
        let is_label = |label: f64| label.fract() == 0. && (0. ..=highest as f64).contains(&label);
        match labels.iter().find(|&&label| !is_label(label)) {
            None => Ok(()),
            Some(label) if is_multi_label => argument("0 or 1".into(), label.to_string()),
            Some(label) => argument(format!("indices of {classes} classes"), label.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Backbone, Dense, GlobalAveragePooling2d};
    use crate::training::{Loss, RmsProp};

    #[test]
    fn several_labels_per_image_are_learned_and_others_than_0_and_1_refused() {
        let mut base = Backbone::untrained([3, 32, 32], Device::Cpu).unwrap();
        base.set_trainable(false);
        let mut model = Sequential::new(base)
            .push(GlobalAveragePooling2d)
            .push(Dense::new(1280, 3).seed(1))
            .compile(RmsProp::new(0.1), Loss::MultiLabelBinaryCrossentropy)
            .unwrap();
        let images = Tensor::linspace(-1., 1., 2 * 3 * 32 * 32, (Kind::Float, Device::Cpu));
        let images = images.view([2, 3, 32, 32]);
        let labels = Tensor::from_slice2(&[[1_f32, 0., 1.]; 2]);
        let mut step = |labels: &Tensor| model.train_on_batch(&images, labels);
        let first = step(&labels).unwrap();
        let last = (0..20).map(|_| step(&labels).unwrap()).last().unwrap();
        assert!(last.loss < first.loss / 2., "{last} after {first}");
        assert_eq!(last.accuracy, 1.);
        for (labels, expected) in [
            (labels.shallow_clone() / 2, "expected 0 or 1, got 0.5"),
            (labels.argmax(1, false), "expected shape [N, 3]"),
        ] {
            let error = step(&labels).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn the_loss_of_mixed_images_is_that_of_soft_labels() {
        let shares = Tensor::from_slice(&[0.9_f32, 0.5, 1.0]);
        let labels = Tensor::from_slice(&[0_i64, 1, 0]);
        let mixed = Mixed {
            labels: Tensor::from_slice(&[1_i64, 0, 1]),
            shares: shares.shallow_clone(),
        };
        for (loss, units) in [
            (Loss::BinaryCrossentropy, 1),
            (Loss::SparseCategoricalCrossentropy, 2),
        ] {
            let base = Backbone::untrained([3, 32, 32], Device::Cpu).unwrap();
            let model = Sequential::new(base)
                .push(GlobalAveragePooling2d)
                .push(Dense::new(1280, units))
                .compile(RmsProp::new(1e-4), loss)
                .unwrap();
            let logits = Tensor::from_slice(&[2_f32, -1., 0.5, 3., -2., 1.]);
            let logits = logits.view([3, 2]).narrow(1, 0, units as i64);
            let found = model.batch_loss(&logits, &labels, Some(&mixed)).unwrap();
            // What PyTorch makes of labels that are probabilities.
            let of_second = Tensor::from_slice(&[0.1_f32, 0.5, 0.0]).view([3, 1]);
            let none = None::<&Tensor>;
            let expected = match loss {
                Loss::BinaryCrossentropy => logits.binary_cross_entropy_with_logits(
                    &of_second,
                    none,
                    none,
                    tch::Reduction::Mean,
                ),
                Loss::SparseCategoricalCrossentropy => {
                    let targets = Tensor::cat(&[1. - &of_second, of_second], 1);
                    logits.cross_entropy_loss(&targets, none, tch::Reduction::Mean, -100, 0.)
                }
                Loss::MultiLabelBinaryCrossentropy => unreachable!(),
            };
            let totals = found.read().unwrap();
            let off = totals.mean().loss - expected.double_value(&[]);
            assert!(off.abs() < 1e-6, "{loss:?}: {off}");
            // The label with the larger share counts.
            assert_eq!(totals.correct, 2.);
        }
    }
}
