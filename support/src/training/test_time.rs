//! Test-time augmentation: what a model says of several variants of an image, averaged.

use image::RgbImage;
use tch::{Device, Kind, TchError, Tensor};

use super::frozen::Forward;
use super::{Compiled, Loss};
use crate::model::Sequential;
use crate::pipeline::{Augmentation, Batch, BatchIter, Batches, Pixels};
use crate::{Error, Result};

/// How a model answers from several variants of each image: the probabilities are averaged. It takes as much
/// longer as there are variants.
///
/// For [`evaluate_with`](Sequential::evaluate_with), [`predictions_with`](Sequential::predictions_with)
/// and [`Classifier::with_test_time_augmentation`](crate::classifier::Classifier::with_test_time_augmentation).
///
/// ```
/// use support::prelude::*;
///
/// let mirrored = TestTimeAugmentation::flip();
/// let as_in_training = Augmentation::new()
///     .random_resized_crop(0.35..=1.0, 0.75..=1.33)
///     .random_flip_horizontal();
/// let as_fastai = TestTimeAugmentation::new(as_in_training, 4);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct TestTimeAugmentation {
    /// What makes the variants; none for the mirror image.
    augmentation: Option<Augmentation>,
    /// How many variants there are, besides the image itself.
    passes: usize,
    /// The share of the image itself.
    beta: f64,
}

impl TestTimeAugmentation {
    /// Averages the image and its mirror image.
    #[must_use]
    pub fn flip() -> Self {
        Self {
            augmentation: None,
            passes: 1,
            beta: 0.5,
        }
    }

    /// Averages `passes` augmented variants and, with a share of 0.25, the image itself, as fastai's
    /// [`tta(n=passes)`](https://docs.fast.ai/learner.html#tta). The variants are those that the first
    /// epochs of training with this augmentation have.
    #[must_use]
    pub fn new(augmentation: Augmentation, passes: usize) -> Self {
        Self {
            augmentation: Some(augmentation),
            passes,
            beta: 0.25,
        }
    }

    /// Sets the share of the image itself, fastai's `beta`: 0 is the variants alone, 1 the image alone.
    #[must_use]
    pub fn beta(mut self, beta: f64) -> Self {
        self.beta = beta;
        self
    }

    /// Checks that there are variants of single images.
    pub(crate) fn check(&self) -> Result<()> {
        let refused = |name, expected: &str, got: String| {
            let expected = expected.to_owned();
            Err(Error::Argument {
                name,
                expected,
                got,
            })
        };
        if self.passes == 0 {
            return refused("TestTimeAugmentation, the passes", "1 or more", "0".into());
        }
        if !(0.0..=1.0).contains(&self.beta) {
            let got = self.beta.to_string();
            return refused("TestTimeAugmentation, beta", "a share, 0 to 1", got);
        }
        let Some(augmentation) = &self.augmentation else {
            return Ok(());
        };
        if augmentation.is_mixing() {
            return refused(
                "TestTimeAugmentation, the augmentation",
                "changes of single images",
                "mix_up or cut_mix".into(),
            );
        }
        augmentation.check()
    }

    /// Makes an image as it is, and the variants of it that are drawn; `format` makes the pixels of an
    /// image. They do not depend on where the image comes from.
    pub(crate) fn images(
        &self,
        image: &RgbImage,
        format: impl Fn(&RgbImage) -> Pixels,
    ) -> Result<Vec<Pixels>> {
        let drawn = self.augmentation.iter().flat_map(|augmentation| {
            let format = &format;
            (0..self.passes).map(move |pass| {
                let format = |image: RgbImage| Ok(format(&image));
                augmentation.apply(image.clone(), format, 0, "", pass)
            })
        });
        std::iter::once(Ok(format(image))).chain(drawn).collect()
    }

    /// Returns logits `[N, units]`, 32-bit floats on the CPU, that have the averaged probabilities of
    /// images `[N, 3, H, W]` and their variants; `drawn` are those that are made of each image by itself.
    pub(crate) fn logits(
        &self,
        loss: Loss,
        forward: impl Fn(&Tensor) -> Result<Tensor>,
        images: &Tensor,
        mut drawn: Vec<Tensor>,
    ) -> Result<Tensor> {
        if self.augmentation.is_none() {
            let mirrored = images.f_flip([3]);
            drawn.push(mirrored.map_err(Error::torch("mirror images"))?);
        }
        let probabilities = |images: &Tensor| {
            // In 64 bits, or the logits of a probability near 1 would lose their digits.
            let logits = forward(images)?;
            let logits = logits.f_to_device(Device::Cpu);
            let logits = logits.and_then(|logits| logits.f_to_kind(Kind::Double));
            loss.probabilities(&logits.map_err(Error::torch("logits"))?)
        };
        let of_image = probabilities(images)?;
        let of_variants: Result<Vec<Tensor>> = drawn.iter().map(probabilities).collect();
        let of_variants = of_variants?;
        let average = || {
            let variants = Tensor::f_stack(&of_variants, 0)?;
            let mean = variants.f_mean_dim([0_i64].as_slice(), false, Kind::Double)?;
            logits_of(loss, &mean.f_lerp(&of_image, self.beta)?)?.f_to_kind(Kind::Float)
        };
        average().map_err(Error::torch("average of the probabilities"))
    }
}

/// Returns logits that have these probabilities, `[N, classes]`.
fn logits_of(loss: Loss, probabilities: &Tensor) -> Result<Tensor, TchError> {
    let logarithms = || probabilities.f_clamp_min(f64::MIN_POSITIVE)?.f_log();
    match loss {
        Loss::BinaryCrossentropy => {
            let logarithms = logarithms()?;
            let [not, is] = [0, 1].map(|class| logarithms.f_narrow(1, class, 1));
            is?.f_sub(&not?)
        }
        Loss::SparseCategoricalCrossentropy => logarithms(),
        Loss::MultiLabelBinaryCrossentropy => {
            let not = probabilities.f_neg()?.f_add_scalar(1.)?;
            logarithms()?.f_sub(&not.f_clamp_min(f64::EPSILON)?.f_log()?)
        }
    }
}

/// What a model says of images, from themselves or from several variants of each.
pub(crate) struct Predictor {
    forward: Forward,
    loss: Loss,
    with: Option<TestTimeAugmentation>,
}

impl Predictor {
    pub(crate) fn new(
        model: &Sequential<Compiled>,
        with: Option<&TestTimeAugmentation>,
    ) -> Result<Self> {
        with.map_or(Ok(()), TestTimeAugmentation::check)?;
        Ok(Self {
            forward: Box::new(model.inference(0, model.last())?),
            loss: model.compiled.loss(),
            with: with.cloned(),
        })
    }

    /// Returns batches in the order before any shuffling, not augmented, each with its logits `[N, units]`.
    pub(crate) fn logits(
        &self,
        batches: &Batches,
    ) -> Result<impl Iterator<Item = Result<(Batch, Tensor)>> + use<'_>> {
        let batches = batches.unaugmented().unshuffled();
        let mut passes: Vec<BatchIter> = Vec::new();
        if let Some(TestTimeAugmentation {
            augmentation: Some(augmentation),
            passes: count,
            ..
        }) = &self.with
        {
            let augmented = batches.augment(augmentation.clone())?;
            passes.extend((0..*count).map(|pass| augmented.epoch(pass)));
        }
        Ok(batches.epoch(0).map(move |batch| {
            let batch = batch?;
            let Some(with) = &self.with else {
                let logits = (self.forward)(&batch.images)?;
                return Ok((batch, logits));
            };
            let variants = passes.iter_mut().map(|pass| match pass.next() {
                Some(Ok(other)) if other.indices == batch.indices => Ok(other.images),
                Some(Err(error)) => Err(error),
                _ => Err(Error::Dataset {
                    name: "test-time augmentation".into(),
                    reason: "an image could be read at one time and not at another".into(),
                }),
            });
            let variants: Result<Vec<Tensor>> = variants.collect();
            let logits = with.logits(self.loss, &self.forward, &batch.images, variants?)?;
            Ok((batch, logits))
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Example;
    use crate::pipeline::Dataset;
    use crate::settings::BrokenImages;

    #[derive(serde::Deserialize)]
    struct Case {
        beta: f64,
        variants: Vec<Vec<Vec<f64>>>,
        image: Vec<Vec<f64>>,
        probabilities: Vec<Vec<f64>>,
    }

    fn rows(values: &[Vec<f64>]) -> Tensor {
        let rows: Vec<Tensor> = values.iter().map(|row| Tensor::from_slice(row)).collect();
        Tensor::stack(&rows, 0)
    }

    #[test]
    fn of_the_same_logits_the_probabilities_are_fastais() {
        let text = include_str!("../../tests/data/test_time_augmentation.json");
        let cases: Vec<Case> = serde_json::from_str(text).unwrap();
        assert_eq!(cases.len(), 4);
        for case in cases {
            let with = TestTimeAugmentation::new(Augmentation::new(), 4).beta(case.beta);
            // Each variant is its own number, of which the model knows the logits.
            let images: Vec<Tensor> = (0..5).map(Tensor::from).collect();
            let forward = |image: &Tensor| match image.int64_value(&[]) as usize {
                0 => Ok(rows(&case.image).to_kind(Kind::Float)),
                variant => Ok(rows(&case.variants[variant - 1]).to_kind(Kind::Float)),
            };
            let (loss, classes) = match case.image[0].len() {
                1 => (Loss::BinaryCrossentropy, vec![1]),
                _ => (Loss::SparseCategoricalCrossentropy, vec![0, 1, 2]),
            };
            let (image, drawn) = images.split_first().unwrap();
            let drawn = drawn.iter().map(Tensor::shallow_clone).collect();
            let logits = with.logits(loss, forward, image, drawn).unwrap();
            let probabilities = loss.probabilities(&logits.to_kind(Kind::Double)).unwrap();
            let found = probabilities.index_select(1, &Tensor::from_slice(&classes));
            let off = (found - rows(&case.probabilities))
                .abs()
                .max()
                .double_value(&[]);
            assert!(off < 1e-6, "{off}");
        }
    }

    #[test]
    fn a_probability_near_its_end_keeps_its_digits() {
        let of_one = || rows(&[vec![30.0], vec![-500.0]]);
        let of_two = rows(&[vec![0.0, 30.0], vec![900.0, 0.0]]);
        for (loss, logits, tolerance) in [
            (Loss::BinaryCrossentropy, of_one(), 1e-4),
            (Loss::SparseCategoricalCrossentropy, of_two, 1e-4),
            (Loss::MultiLabelBinaryCrossentropy, of_one(), 1e-2),
        ] {
            let forward = |_: &Tensor| Ok(logits.shallow_clone());
            let image = Tensor::zeros([2, 3, 1, 1], (Kind::Float, Device::Cpu));
            let found = TestTimeAugmentation::flip().logits(loss, forward, &image, Vec::new());
            let found = found.unwrap().to_kind(Kind::Double);
            let difference = |logits: &Tensor, row| match logits.size()[1] {
                1 => logits.double_value(&[row, 0]),
                _ => logits.double_value(&[row, 1]) - logits.double_value(&[row, 0]),
            };
            assert!((difference(&found, 0) - 30.0).abs() < tolerance, "{found}");
            // No more than a probability can tell: finite.
            assert!((-720.0..-490.0).contains(&difference(&found, 1)), "{found}");
        }
    }

    /// Three images, and a model of which the logit is the mean of the upper left pixel.
    fn images(folder: &std::path::Path) -> Batches {
        let example = |number: usize| {
            let path = folder.join(format!("{number}.png"));
            let image = RgbImage::from_fn(4, 4, |x, y| image::Rgb([(x + 3 * y) as u8 * 9; 3]));
            image.save(&path).unwrap();
            Example::at_path(format!("{number}.png"), number % 2, &path)
        };
        let classes = ["even", "odd"].map(str::to_owned).to_vec();
        let examples = (0..3).map(example).collect();
        let dataset = Dataset::new(examples, classes, 0, BrokenImages::Stop);
        let dataset = dataset.map(|image| Pixels::from(image).scale(1.0 / 255.0));
        dataset.shuffle(3).batch(2)
    }

    fn upper_left(images: &Tensor) -> Result<Tensor> {
        let mean = images.mean_dim([1_i64].as_slice(), false, Kind::Float);
        Ok(mean.select(1, 0).select(1, 0).unsqueeze(1))
    }

    fn probabilities_of(batches: &Batches, with: &TestTimeAugmentation) -> Vec<f64> {
        let predictor = Predictor {
            forward: Box::new(upper_left),
            loss: Loss::BinaryCrossentropy,
            with: Some(with.clone()),
        };
        let mut indices = Vec::new();
        let logits = predictor.logits(batches).unwrap().map(|found| {
            let (batch, logits) = found.unwrap();
            indices.extend(batch.indices);
            logits
        });
        let logits = Tensor::cat(&logits.collect::<Vec<_>>(), 0);
        assert_eq!(indices, [0, 1, 2]);
        Vec::try_from(logits.sigmoid().to_kind(Kind::Double).reshape([-1])).unwrap()
    }

    #[test]
    fn the_variants_are_the_mirror_image_or_those_of_the_first_epochs() {
        let folder = tempfile::tempdir().unwrap();
        let batches = images(folder.path());
        let sigmoid =
            |pixels: Pixels, at: usize| 1.0 / (1.0 + (-f64::from(pixels.into_values()[at])).exp());
        let image = || batches.load(0).unwrap().unwrap();
        let mirrored = (sigmoid(image(), 0) + sigmoid(image(), 9)) / 2.0;
        for found in probabilities_of(&batches, &TestTimeAugmentation::flip()) {
            assert!((found - mirrored).abs() < 1e-6, "{found} {mirrored}");
        }

        let augmentation = Augmentation::new()
            .random_resized_crop(0.5..=0.5, 1.0..=1.0)
            .random_translation(0.5, 0.5);
        let with = TestTimeAugmentation::new(augmentation.clone(), 3);
        let dataset = batches.dataset().augment(augmentation).unwrap();
        let found = probabilities_of(&batches, &with);
        for (example, found) in dataset.examples().iter().zip(&found) {
            let variants = (0..3).map(|epoch| {
                let pixels = dataset.load_drawn(example, 0, epoch).unwrap().unwrap();
                sigmoid(pixels, 0)
            });
            let expected = 0.75 * variants.sum::<f64>() / 3.0 + 0.25 * sigmoid(image(), 0);
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
        assert!(found[0] != found[1] && found[1] != found[2]);
    }

    #[test]
    fn a_single_image_has_the_same_variants_wherever_it_comes_from() {
        let image = RgbImage::from_fn(9, 9, |x, y| image::Rgb([(x + 9 * y) as u8; 3]));
        let augmentation = Augmentation::new().random_translation(0.5, 0.5);
        let format = |image: &RgbImage| Pixels::from(image);
        let variants = |with: &TestTimeAugmentation| -> Vec<Vec<f32>> {
            let images = with.images(&image, format).unwrap().into_iter();
            images.map(Pixels::into_values).collect()
        };
        let with = TestTimeAugmentation::new(augmentation, 2);
        let found = variants(&with);
        assert_eq!(found.len(), 3);
        assert_eq!(found[0], format(&image).into_values());
        assert!(found[0] != found[1] && found[1] != found[2]);
        assert_eq!(found, variants(&with));
        assert_eq!(variants(&TestTimeAugmentation::flip()).len(), 1);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let jitter = || Augmentation::new().color_jitter(0.1, 0.0, 0.0);
        for (with, expected) in [
            (
                TestTimeAugmentation::new(jitter(), 0),
                "TestTimeAugmentation, the passes: expected 1 or more, got 0",
            ),
            (
                TestTimeAugmentation::flip().beta(1.5),
                "TestTimeAugmentation, beta: expected a share, 0 to 1, got 1.5",
            ),
            (
                TestTimeAugmentation::new(jitter().mix_up(0.2), 4),
                "TestTimeAugmentation, the augmentation: expected changes of single images, got mix_up \
                 or cut_mix",
            ),
            (
                TestTimeAugmentation::new(Augmentation::new().random_zoom(-1.0), 4),
                "random_zoom, the factor: expected a share, 0 to 1, got -1",
            ),
        ] {
            assert_eq!(with.check().unwrap_err().to_string(), expected);
        }
    }
}
