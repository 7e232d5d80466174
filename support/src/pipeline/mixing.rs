//! Images of a batch, each mixed with another one: MixUp and CutMix.
//!
//! As in torchvision, the other one is the image before it, of the first the last. What is drawn depends
//! on the dataset's seed, the epoch, the batch's number and the shard only.

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Beta, Distribution};
use sha2::{Digest, Sha256};
use tch::{TchError, Tensor};

use super::Pixels;
use super::random_box::{Part, pasted_box};
use crate::{Error, Result};

/// The other labels of a batch of mixed images: the label with the smaller share of each.
#[derive(Debug)]
pub struct Mixed {
    /// As [`Batch::labels`](super::Batch::labels).
    pub labels: Tensor,
    /// The shares of the labels in [`Batch::labels`](super::Batch::labels), `[batch]`, 32-bit floats from
    /// 0.5 to 1 on the CPU; those of [`labels`](Self::labels) are what is left of 1.
    pub shares: Tensor,
}

/// How a batch is mixed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Mixing {
    MixUp(f64),
    CutMix(f64),
}

/// What is done to each image of some, and the share that is left of it.
enum Mix {
    Blend(f32),
    Paste(Part),
}

impl Mixing {
    pub(super) fn check(name: &'static str, alpha: f64) -> Result<()> {
        if alpha.is_finite() && Beta::new(alpha, alpha).is_ok() {
            return Ok(());
        }
        Err(Error::Argument {
            name,
            expected: "a number above 0".to_owned(),
            got: alpha.to_string(),
        })
    }

    /// Draws what is done to images of that width and height, and the share that is left of each.
    fn draw(self, size: (u32, u32), random: &mut ChaCha8Rng) -> (Mix, f32) {
        let (Self::MixUp(alpha) | Self::CutMix(alpha)) = self;
        // It was checked that there is one.
        let share = Beta::new(alpha, alpha).map_or(1.0, |beta| beta.sample(random));
        match self {
            Self::MixUp(_) => (Mix::Blend(share as f32), share as f32),
            Self::CutMix(_) => {
                let (part, share) = pasted_box(size, share, || random.random());
                (Mix::Paste(part), share as f32)
            }
        }
    }
}

/// Returns what a shard's part of a batch is mixed by.
pub(super) fn random_of(seed: u64, epoch: usize, batch: usize, shard: usize) -> ChaCha8Rng {
    let place = [batch, shard].map(|number| (number as u64).to_le_bytes());
    let key = Sha256::new()
        .chain_update(seed.to_le_bytes())
        .chain_update("mixing")
        .chain_update(place.concat());
    let mut random = ChaCha8Rng::from_seed(key.finalize().into());
    random.set_stream(epoch as u64);
    random
}

/// Mixes each of some images of one size with the one before it in one of these ways; returns which
/// share is left of each.
pub(super) fn mix(images: &mut [&mut Pixels], ways: &[Mixing], random: &mut ChaCha8Rng) -> f32 {
    let (Some(last), [_, ..]) = (images.last_mut(), ways) else {
        return 1.0;
    };
    let (width, height) = last.dimensions();
    let last = last.values_mut().to_vec();
    let way = ways[random.random_range(0..ways.len())];
    let (mix, share) = way.draw((width, height), random);
    // From the last on, as each needs the one before it as it was.
    for at in (0..images.len()).rev() {
        let (before, image) = images.split_at_mut(at);
        let other = before
            .last_mut()
            .map_or(&last[..], |other| other.values_mut());
        let Some(image) = image.first_mut() else {
            continue;
        };
        mix.apply(image.values_mut(), other, width);
    }
    share
}

/// Parts the labels of images, of each of which it is known which other one was mixed into it and what
/// share is left of it, into those with the larger share and the others.
pub(super) fn labels(
    labels: &Tensor,
    mixed: &[(usize, f32)],
) -> Result<(Tensor, Option<Mixed>), TchError> {
    let (mut larger, mut smaller, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    for (own, &(other, share)) in mixed.iter().enumerate() {
        let (first, second, share) = match share {
            0.5.. => (own, other, share),
            _ => (other, own, 1.0 - share),
        };
        larger.push(first as i64);
        smaller.push(second as i64);
        shares.push(share);
    }
    let of = |places: &[i64]| labels.f_index_select(0, &Tensor::f_from_slice(places)?);
    let mixed = Mixed {
        labels: of(&smaller)?,
        shares: Tensor::f_from_slice(&shares)?,
    };
    Ok((of(&larger)?, Some(mixed)))
}

impl Mix {
    fn apply(&self, image: &mut [f32], other: &[f32], width: u32) {
        match *self {
            Self::Blend(share) => {
                for (value, other) in image.iter_mut().zip(other) {
                    *value = other * (1.0 - share) + *value * share;
                }
            }
            Self::Paste(part) => {
                for row in part.rows(width) {
                    image[row.clone()].copy_from_slice(&other[row]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use image::RgbImage;

    use super::super::random_box::tests::reference;
    use super::*;

    #[test]
    fn images_and_labels_are_blended_as_by_torchvisions_mix_up() {
        let reference = &reference()["mix_up"];
        let rows = |value: &serde_json::Value| -> Vec<Vec<f32>> {
            serde_json::from_value(value.clone()).unwrap()
        };
        let images = rows(&reference["images"]);
        for expected in reference["mixed"].as_array().unwrap() {
            let share = expected["share"].as_f64().unwrap() as f32;
            let mut mixed = images.clone();
            for (at, image) in mixed.iter_mut().enumerate() {
                Mix::Blend(share).apply(image, &images[(at + 2) % 3], 2);
            }
            let expected_images = rows(&expected["images"]);
            for (value, expected) in mixed.iter().flatten().zip(expected_images.iter().flatten()) {
                assert!((value - expected).abs() < 1e-6, "{value} {expected}");
            }
            let (own, others) = labels(
                &Tensor::from_slice(&[0_i64, 1, 2]),
                &[(2, share), (0, share), (1, share)],
            )
            .unwrap();
            let others = others.unwrap();
            for (at, expected) in rows(&expected["labels"]).iter().enumerate() {
                let at = [at as i64];
                let share = others.shares.double_value(&at);
                assert!(share >= 0.5);
                let [own, other] = [&own, &others.labels].map(|labels| labels.int64_value(&at));
                assert!((f64::from(expected[own as usize]) - share).abs() < 1e-6);
                assert!((f64::from(expected[other as usize]) - (1.0 - share)).abs() < 1e-6);
            }
        }
    }

    /// Four images of 6 x 4, of values 0 to 3.
    fn images() -> Vec<Pixels> {
        let image = |value| Pixels::from(&RgbImage::from_pixel(6, 4, image::Rgb([value; 3])));
        (0..4).map(image).collect()
    }

    fn mixed(ways: &[Mixing], number: usize) -> (Vec<Vec<f32>>, f32) {
        let mut images = images();
        let mut random = random_of(1, 2, number, 0);
        let mut all: Vec<_> = images.iter_mut().collect();
        let share = mix(&mut all, ways, &mut random);
        (images.into_iter().map(Pixels::into_values).collect(), share)
    }

    #[test]
    fn each_image_has_its_share_and_the_rest_is_the_one_before_it() {
        for number in 0..20 {
            let (images, share) = mixed(&[Mixing::MixUp(1.0)], number);
            let (pasted, left) = mixed(&[Mixing::CutMix(1.0)], number);
            for (at, (image, pasted)) in images.iter().zip(&pasted).enumerate() {
                let (own, before) = (at as f32, ((at + 3) % 4) as f32);
                let expected = own * share + before * (1.0 - share);
                assert!(image.iter().all(|value| (value - expected).abs() < 1e-6));
                let own_values = pasted.iter().filter(|value| **value == own).count();
                let others = pasted.iter().filter(|value| **value == before).count();
                assert_eq!(own_values + others, 72);
                assert!((own_values as f32 / 72.0 - left).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn shares_have_the_mean_and_variance_of_the_beta_distribution() {
        for alpha in [0.2, 1.0, 4.0] {
            let mut random = random_of(0, 0, 0, 0);
            let shares = (0..20_000).map(|_| Mixing::MixUp(alpha).draw((1, 1), &mut random).1);
            let shares: Vec<f64> = shares.map(f64::from).collect();
            let mean = shares.iter().sum::<f64>() / 20_000.0;
            let variance = shares
                .iter()
                .map(|share| (share - 0.5).powi(2))
                .sum::<f64>()
                / 20_000.0;
            assert!((mean - 0.5).abs() < 0.02, "{alpha}: {mean}");
            let expected = 0.25 / (2.0 * alpha + 1.0);
            assert!(
                (variance / expected - 1.0).abs() < 0.05,
                "{alpha}: {variance}"
            );
        }
    }

    #[test]
    fn of_two_ways_each_batch_has_one() {
        let ways = [Mixing::MixUp(1.0), Mixing::CutMix(1.0)];
        let is_blended = |number| {
            let (images, _) = mixed(&ways, number);
            images[1].iter().any(|value| value.fract() != 0.0)
        };
        let blended = (0..100).filter(|&number| is_blended(number)).count();
        assert!((30..70).contains(&blended), "{blended}");
    }
}
