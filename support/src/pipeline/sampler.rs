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
        if let Some(weight) = weights.iter().find(|weight| !(**weight >= 0.)) {
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
