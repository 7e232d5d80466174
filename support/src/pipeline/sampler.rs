//! Examples drawn at random by weight, as PyTorch's
//! [`WeightedRandomSampler`](https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.WeightedRandomSampler)
//! does with replacement: some may be in an epoch several times, others not at all.

use std::collections::HashMap;
use std::sync::Arc;

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use super::{Dataset, Pixels};
use crate::assets::hash;
use crate::dataset::Strata;
use crate::{Error, Result};

/// How the examples of an epoch are drawn.
#[derive(Clone)]
pub(crate) struct Sampler {
    /// Each example's, in the dataset's order.
    weights: Arc<[f64]>,
    /// How many are drawn for an epoch.
    draws: usize,
}

impl Dataset<Pixels> {
    /// Returns a dataset whose batches are of `draws` examples in each epoch, drawn with replacement: one
    /// of twice the weight comes twice as often. For training; `evaluate`, `predictions` and `fit`'s
    /// validation take each example once.
    ///
    /// `weights` has one for each of [`examples`](Self::examples); they need not add up to 1. What is drawn
    /// depends on the dataset's seed and the epoch only, is in random order without
    /// [`shuffle`](Self::shuffle), and where an image is augmented, each time otherwise. `take` and `skip`
    /// leave the weights of the examples that they leave, and at most as many draws. Of several
    /// [shards](super::Batches::sharded) each draws its part from its own examples.
    ///
    /// # Errors
    /// `Argument` where there is another number of weights than of examples, one is negative or not finite,
    /// all are 0, or nothing is to be drawn.
    pub fn sample_weighted(&self, weights: &[f64], draws: usize) -> Result<Self> {
        let refused = |expected: String, got: String| {
            let name = "sample_weighted";
            Err(Error::Argument {
                name,
                expected,
                got,
            })
        };
        let (len, total) = (self.len(), weights.iter().sum::<f64>());
        if weights.len() != len {
            let expected = format!("a weight for each of {len} examples");
            return refused(expected, weights.len().to_string());
        }
        if let Some(weight) = weights
            .iter()
            .find(|weight| weight.is_nan() || **weight < 0.)
        {
            return refused("weights of 0 or more".into(), weight.to_string());
        }
        if !(total > 0. && total.is_finite()) {
            let expected = "weights whose sum is finite and above 0".into();
            return refused(expected, format!("a sum of {total}"));
        }
        if draws == 0 {
            return refused("one draw or more".into(), "0".into());
        }
        let weights = weights.into();
        Ok(self.sampled(Some(Sampler { weights, draws })))
    }

    /// Returns a dataset whose batches have every class equally often, up to chance: as many examples as
    /// there are, [drawn](Self::sample_weighted) with the inverse of their class' frequency as weight, which is
    /// scikit-learn's `compute_sample_weight("balanced")` up to a factor. Where there are several labels per
    /// image, one counts as its rarest class, and those of no class as one more class.
    ///
    /// # Errors
    /// `Argument` where there is no example, or a label without a class.
    pub fn sample_balanced(&self) -> Result<Self> {
        self.check_labels("sample_balanced")?;
        let strata = Strata::of(self.examples(), self.classes().len());
        let sizes = strata.count(self.examples());
        let weight = |stratum: usize| 1. / sizes[stratum] as f64;
        let examples = self.examples().iter();
        let weights = examples.map(|example| weight(strata.index(&example.label)));
        self.sample_weighted(&weights.collect::<Vec<_>>(), self.len())
    }
}

impl Sampler {
    /// Returns the same weights of some examples.
    pub(super) fn only(&self, indices: impl Iterator<Item = usize>) -> Self {
        let weights: Arc<[f64]> = indices.map(|index| self.weights[index]).collect();
        let draws = self.draws.min(weights.len());
        Self { weights, draws }
    }

    /// Returns how many examples are drawn for an epoch.
    pub(crate) fn draws(&self) -> usize {
        self.draws
    }

    /// Returns a digest of the weights.
    pub(crate) fn weights_digest(&self) -> String {
        let bytes = self.weights.iter().flat_map(|weight| weight.to_le_bytes());
        hash(&bytes.collect::<Vec<u8>>())
    }

    /// Returns how many of an epoch's examples a shard draws: none where all its weights are 0.
    pub(super) fn draws_of(&self, shard: usize, shards: usize) -> usize {
        let mut weights = self.weights.iter().skip(shard).step_by(shards);
        match weights.any(|weight| *weight > 0.) {
            true => (self.draws + shards - 1 - shard) / shards,
            false => 0,
        }
    }

    /// Draws a shard's examples of an epoch.
    pub(super) fn draw(&self, shard: usize, shards: usize, seed: u64, stream: u64) -> Vec<usize> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(stream);
        let weights = self.weights.iter().skip(shard).step_by(shards);
        let mut total = 0.;
        let sum_up_to = weights.map(|weight| {
            total += weight;
            total
        });
        let sums: Vec<f64> = sum_up_to.collect();
        let draw = |_| {
            let drawn = random.random_range(0. ..total);
            shard + shards * sums.partition_point(|sum| *sum <= drawn)
        };
        (0..self.draws_of(shard, shards)).map(draw).collect()
    }
}

/// Returns of each draw how often its example was drawn before.
pub(super) fn repeats(drawn: &[usize]) -> Vec<usize> {
    let mut counts: HashMap<usize, usize> = HashMap::new();
    let count = |example: &usize| {
        let count = counts.entry(*example).or_default();
        *count += 1;
        *count - 1
    };
    drawn.iter().map(count).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use image::RgbImage;
    use serde::Deserialize;

    use super::*;
    use crate::dataset::{Example, Label};
    use crate::pipeline::Augmentation;
    use crate::settings::BrokenImages;

    /// The values of `tests/reference/sampler.py`.
    #[derive(Deserialize)]
    struct Reference {
        weights: Vec<f64>,
        draws: usize,
        counts: Vec<f64>,
        chi_squared: f64,
        labels: Vec<usize>,
        balanced: Vec<f64>,
    }

    fn reference() -> Reference {
        serde_json::from_str(include_str!("../../tests/data/sampler.json")).unwrap()
    }

    fn dataset<L: Into<Label>>(labels: impl IntoIterator<Item = L>) -> Dataset<Pixels> {
        let example = |(at, label)| Example::at_path(format!("{at}.png"), label, "x".as_ref());
        let examples = (0..).zip(labels).map(example).collect();
        let classes = ["a", "b", "c"].map(str::to_owned).to_vec();
        Dataset::new(examples, classes, 7, BrokenImages::Skip).map(|image| Pixels::from(image))
    }

    /// The examples of an epoch of all shards.
    fn drawn(dataset: &Dataset<Pixels>, shards: usize, epoch: usize) -> Vec<usize> {
        let order = dataset.batch(8).sharded(shards).order(epoch);
        order
            .into_iter()
            .flat_map(|(_, examples)| examples)
            .collect()
    }

    #[test]
    fn examples_are_drawn_as_often_as_pytorch_draws_them() {
        let Reference {
            weights,
            draws,
            counts,
            chi_squared,
            ..
        } = reference();
        let sampled = dataset(vec![0; weights.len()])
            .sample_weighted(&weights, draws)
            .unwrap();
        let first = drawn(&sampled, 1, 0);
        assert_eq!(first.len(), draws);
        let mut ours = vec![0.; weights.len()];
        first.iter().for_each(|&example| ours[example] += 1.);
        let pairs = ours.iter().zip(&counts).zip(&weights);
        let statistic: f64 = pairs
            .map(|((ours, theirs), weight)| match *weight {
                0. => ours + theirs,
                _ => (ours - theirs).powi(2) / (ours + theirs),
            })
            .sum();
        assert!(
            statistic < chi_squared,
            "{statistic}: {ours:?} for {counts:?}"
        );
        assert_eq!(first, drawn(&sampled, 1, 0));
        assert_ne!(first, drawn(&sampled, 1, 1));
    }

    #[test]
    fn balanced_weights_are_scikit_learns_and_go_by_the_rarest_of_several_classes() {
        let Reference {
            labels, balanced, ..
        } = reference();
        let weights = |dataset: &Dataset<Pixels>| {
            let sampled = dataset.sample_balanced().unwrap();
            let sampler = sampled.sampler().unwrap().clone();
            assert_eq!(sampler.draws, dataset.len());
            sampler.weights
        };
        let ours = weights(&dataset(labels));
        let factor = balanced[0] / ours[0];
        for (ours, theirs) in ours.iter().zip(balanced) {
            assert!((ours * factor - theirs).abs() < 1e-12);
        }
        // Three are of a, of which one is of b as well; two are of none.
        let several = [vec![0], vec![0, 1], vec![], vec![], vec![0]];
        let several = dataset(several.map(Label::from_iter));
        assert_eq!(weights(&several)[..], [0.5, 1., 0.5, 0.5, 0.5]);
        assert!(dataset([0, 3]).sample_balanced().is_err());
    }

    #[test]
    fn each_shard_draws_its_part_from_its_own_examples() {
        let sampled = dataset([0; 10]).sample_weighted(&[1.; 10], 31).unwrap();
        for (shard, examples) in sampled.batch(8).sharded(3).order(0) {
            assert_eq!(examples.len(), [11, 10, 10][shard]);
            assert!(examples.iter().all(|example| example % 3 == shard));
        }
        assert_eq!(sampled.batch(8).len(), 4);
        let mut only_even = [1.; 10];
        only_even
            .iter_mut()
            .skip(1)
            .step_by(2)
            .for_each(|weight| *weight = 0.);
        let even = dataset([0; 10]).sample_weighted(&only_even, 8).unwrap();
        assert_eq!(
            drawn(&even, 2, 0).len(),
            4,
            "the shard of odd ones has none to draw"
        );
    }

    #[test]
    fn an_image_that_is_drawn_again_is_augmented_otherwise() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.png");
        RgbImage::from_fn(8, 8, |x, y| image::Rgb([(x * 30) as u8, (y * 30) as u8, 9]))
            .save(&path)
            .unwrap();
        let examples = vec![Example::at_path("x.png".into(), 0, &path)];
        let sampled = Dataset::new(examples, vec!["a".into()], 7, BrokenImages::Stop)
            .map(|image| Pixels::from(image))
            .augment(Augmentation::new().color_jitter(0.5, 0.5, 0.5))
            .unwrap()
            .sample_weighted(&[1.], 5)
            .unwrap();
        let [batch] = sampled
            .batch(8)
            .epoch(0)
            .collect::<Vec<_>>()
            .try_into()
            .unwrap();
        let batch = batch.unwrap();
        assert_eq!(batch.indices, [0; 5]);
        let values = |at| Vec::<f32>::try_from(batch.images.get(at).reshape(-1)).unwrap();
        let images = (0..5).map(|at| values(at).into_iter().map(f32::to_bits).collect::<Vec<_>>());
        assert_eq!(images.collect::<BTreeSet<_>>().len(), 5);
    }

    #[test]
    fn what_is_evaluated_has_each_example_once() {
        let sampled = dataset([0; 6])
            .sample_weighted(&[9., 1., 1., 1., 1., 1.], 50)
            .unwrap();
        let batches = sampled.batch(4);
        assert_eq!(batches.len(), 13);
        for once in [batches.unaugmented(), batches.unshuffled()] {
            assert_eq!(
                (once.len(), once.order(0)),
                (2, vec![(0, (0..6).collect())])
            );
        }
    }

    #[test]
    fn what_is_left_of_a_dataset_keeps_its_weights() {
        let sampled = dataset([0; 6])
            .sample_weighted(&[0., 0., 1., 0., 1., 1.], 50)
            .unwrap();
        let left = sampled.skip(1).take(3);
        assert_eq!(drawn(&left, 1, 0), [1; 3], "the third example of six");
    }

    #[test]
    fn weights_that_make_no_sense_are_refused() {
        let dataset = dataset([0; 3]);
        for (weights, draws, got) in [
            (&[1., 1.][..], 3, "got 2"),
            (&[1., -1., 1.], 3, "got -1"),
            (&[1., f64::NAN, 1.], 3, "got NaN"),
            (&[0.; 3], 3, "got a sum of 0"),
            (&[f64::MAX; 3], 3, "got a sum of inf"),
            (&[1.; 3], 0, "got 0"),
        ] {
            let error = dataset
                .sample_weighted(weights, draws)
                .map(drop)
                .unwrap_err();
            assert!(error.to_string().ends_with(got), "{error}");
        }
    }
}
