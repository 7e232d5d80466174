//! Random changes to training images, others in each epoch.
//!
//! What becomes of an image depends on the dataset's seed, the example's id and the epoch only:
//! never on threads, the order of the examples, or the machine. Of an example that is in the dataset
//! several times, every copy becomes another image.

use std::ops::RangeInclusive;

use image::{RgbImage, imageops};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Pixels;
use super::mixing::Mixing;
use super::random_box::{Area, crop_box, erased_box};
use super::warp::{flip_horizontal, rotate, translate, zoom};
use crate::{Error, Result};

/// How the images of a dataset change from epoch to epoch, for
/// [`Dataset::augment`](super::Dataset::augment).
///
/// ```
/// use support::pipeline::Augmentation;
///
/// let augmentation = Augmentation::new()
///     .random_resized_crop(0.35..=1.0, 0.75..=1.33)
///     .random_flip_horizontal()
///     .random_rotation(0.05)
///     .color_jitter(0.2, 0.2, 0.2)
///     .mix_up(0.2);
/// ```
///
/// | | as | works on |
/// |---|---|---|
/// | [`random_resized_crop`](Self::random_resized_crop) | torchvision's `RandomResizedCrop` | the image before `map` |
/// | [`random_flip_horizontal`](Self::random_flip_horizontal) | Keras' `RandomFlip("horizontal")` | what `map` has made of it |
/// | [`random_rotation`](Self::random_rotation) | Keras' `RandomRotation` | 〃 |
/// | [`random_zoom`](Self::random_zoom) | Keras' `RandomZoom` | 〃 |
/// | [`random_translation`](Self::random_translation) | Keras' `RandomTranslation` | 〃 |
/// | [`color_jitter`](Self::color_jitter) | torchvision's `ColorJitter` | 〃 |
/// | [`random_erasing`](Self::random_erasing) | torchvision's `RandomErasing` | 〃 |
/// | [`mix_up`](Self::mix_up) | torchvision's `MixUp` | a batch |
/// | [`cut_mix`](Self::cut_mix) | torchvision's `CutMix` | 〃 |
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Augmentation {
    operations: Vec<Operation>,
}

/// The names of the variants and their fields are those of the JSON in users' checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Operation {
    FlipHorizontal,
    /// At most how many turns either way.
    Rotation(f64),
    /// By how much an image shrinks or grows at most.
    Zoom(f64),
    /// By which share of the height and of the width an image moves at most.
    Translation([f64; 2]),
    /// How much brightness, contrast and saturation change at most.
    ColorJitter([f64; 3]),
    ResizedCrop(Area),
    Erasing {
        probability: f64,
        #[serde(flatten)]
        area: Area,
    },
    /// The alpha of both.
    MixUp(f64),
    CutMix(f64),
}

impl Augmentation {
    /// Returns an augmentation that changes nothing; what is added happens in the order of the
    /// calls, but for the crop, which comes first, and what mixes batches, which comes last.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Mirrors every other image, left to right, as Keras' `RandomFlip("horizontal")`.
    #[must_use]
    pub fn random_flip_horizontal(self) -> Self {
        self.and(Operation::FlipHorizontal)
    }

    /// Rotates by up to `factor` turns either way, as Keras' `RandomRotation(factor)`: about the
    /// image's centre, bilinear, beyond the edges the image reflected. 0.2 is up to 72 degrees.
    #[must_use]
    pub fn random_rotation(self, factor: f64) -> Self {
        self.and(Operation::Rotation(factor))
    }

    /// Shrinks or enlarges by up to `factor`, as Keras' `RandomZoom(factor)`: what was `1 - factor` to
    /// `1 + factor` times as high and wide as the image, about its centre, becomes the image, bilinear,
    /// beyond the edges the image reflected.
    #[must_use]
    pub fn random_zoom(self, factor: f64) -> Self {
        self.and(Operation::Zoom(factor))
    }

    /// Moves by up to `height_factor` of the height up or down, and by up to `width_factor` of the width
    /// to the left or right, as Keras' `RandomTranslation(height_factor, width_factor)`: bilinear, beyond
    /// the edges the image reflected.
    #[must_use]
    pub fn random_translation(self, height_factor: f64, width_factor: f64) -> Self {
        self.and(Operation::Translation([height_factor, width_factor]))
    }

    /// Changes brightness, then contrast, then saturation, each by a factor between `1 - x`, but
    /// not below 0, and `1 + x`, as torchvision's `ColorJitter` (which draws the order as well).
    ///
    /// Black and white are what 0 and 255 have become by [`Pixels::scale`] and
    /// [`Pixels::offset`]; values stay between them.
    #[must_use]
    pub fn color_jitter(self, brightness: f64, contrast: f64, saturation: f64) -> Self {
        self.and(Operation::ColorJitter([brightness, contrast, saturation]))
    }

    /// Cuts out a part of the image with `scale` of its area, as torchvision's
    /// `RandomResizedCrop(size, scale, ratio)`, whose defaults are `0.08..=1.0` and `0.75..=1.3333`. `ratio`
    /// is that of the part's width to its height.
    ///
    /// The part is cut out of the image before the function given to [`Dataset::map`](super::Dataset::map)
    /// resizes it, so that it is as sharp as the image; a function that does not resize makes images of
    /// different sizes, of which there are no batches.
    #[must_use]
    pub fn random_resized_crop(
        self,
        scale: RangeInclusive<f64>,
        ratio: RangeInclusive<f64>,
    ) -> Self {
        self.and(Operation::ResizedCrop(Area::new(&scale, &ratio)))
    }

    /// Sets a rectangle with `scale` of the image's area to 0, which is the mean where values are
    /// normalized, as torchvision's `RandomErasing(probability, scale, ratio)`, whose defaults are 0.5,
    /// `0.02..=0.33` and `0.3..=3.3`. `ratio` is that of the rectangle's height to its width.
    #[must_use]
    pub fn random_erasing(
        self,
        probability: f64,
        scale: RangeInclusive<f64>,
        ratio: RangeInclusive<f64>,
    ) -> Self {
        let area = Area::new(&scale, &ratio);
        self.and(Operation::Erasing { probability, area })
    }

    /// Blends each image of a batch, and its label, with the one before it, as torchvision's
    /// `MixUp(alpha=alpha)` ([Zhang et al. 2018](https://arxiv.org/abs/1710.09412)): the image's own share
    /// is drawn from Beta(alpha, alpha), one for the batch. 0.2 mostly leaves one image little of the
    /// other, 1 makes all shares alike.
    ///
    /// The loss is that of both labels, by their shares; an image counts as right when the label with
    /// the larger share is predicted. Where several processes train together, each shard's part of a
    /// batch is mixed by itself. With [`cut_mix`](Self::cut_mix) beside it, one of the two is drawn for
    /// each batch.
    #[must_use]
    pub fn mix_up(self, alpha: f64) -> Self {
        self.and(Operation::MixUp(alpha))
    }

    /// Pastes a rectangle of the one before it into each image of a batch, as torchvision's
    /// `CutMix(alpha=alpha)` ([Yun et al. 2019](https://arxiv.org/abs/1905.04899)), at the same place in
    /// all of the batch; all else is as for [`mix_up`](Self::mix_up).
    #[must_use]
    pub fn cut_mix(self, alpha: f64) -> Self {
        self.and(Operation::CutMix(alpha))
    }

    fn and(mut self, operation: Operation) -> Self {
        self.operations.push(operation);
        self
    }

    pub(super) fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// Returns the ways in which batches are mixed.
    pub(super) fn mixings(&self) -> Vec<Mixing> {
        let mixing = |operation: &Operation| match *operation {
            Operation::MixUp(alpha) => Some(Mixing::MixUp(alpha)),
            Operation::CutMix(alpha) => Some(Mixing::CutMix(alpha)),
            _ => None,
        };
        self.operations.iter().filter_map(mixing).collect()
    }

    /// Returns whether there is something that mixes batches.
    pub(crate) fn is_mixing(&self) -> bool {
        !self.mixings().is_empty()
    }

    /// Checks the arguments of all operations.
    pub(crate) fn check(&self) -> Result<()> {
        self.operations.iter().try_for_each(Operation::check)
    }

    /// Returns what the image of an example becomes in an epoch, the first one being 0, of a
    /// dataset of that seed; `format` makes the pixels of the image or of a part of it. What mixes batches
    /// does not change a single image.
    ///
    /// # Errors
    /// Those of [`Dataset::augment`](super::Dataset::augment) and of `format`.
    pub fn apply(
        &self,
        image: RgbImage,
        format: impl FnOnce(RgbImage) -> Result<Pixels>,
        seed: u64,
        id: &str,
        epoch: usize,
    ) -> Result<Pixels> {
        self.check()?;
        let key = Sha256::new()
            .chain_update(seed.to_le_bytes())
            .chain_update(id);
        let mut random = ChaCha8Rng::from_seed(key.finalize().into());
        random.set_stream(epoch as u64);
        let operations = self.operations.iter();
        let crop = |image, operation: &Operation| operation.crop(image, &mut random);
        let pixels = format(operations.clone().fold(image, crop))?;
        let change = |pixels, operation: &Operation| operation.change(pixels, &mut random);
        Ok(operations.fold(pixels, change))
    }
}

impl Operation {
    fn check(&self) -> Result<()> {
        match *self {
            Self::FlipHorizontal => Ok(()),
            Self::Rotation(factor) => {
                check("random_rotation, the factor", factor, 1.0, "turns, 0 to 1")
            }
            Self::Zoom(factor) => check("random_zoom, the factor", factor, 1.0, SHARE),
            Self::Translation([height, width]) => [
                ("random_translation, the height factor", height),
                ("random_translation, the width factor", width),
            ]
            .into_iter()
            .try_for_each(|(name, value)| check(name, value, 1.0, SHARE)),
            Self::ColorJitter([brightness, contrast, saturation]) => [
                ("color_jitter, the brightness", brightness),
                ("color_jitter, the contrast", contrast),
                ("color_jitter, the saturation", saturation),
            ]
            .into_iter()
            .try_for_each(|(name, value)| check(name, value, f64::MAX, "a number, 0 or more")),
            Self::ResizedCrop(area) => area.check([
                "random_resized_crop, the scale",
                "random_resized_crop, the ratio",
            ]),
            Self::Erasing { probability, area } => {
                check("random_erasing, the probability", probability, 1.0, SHARE)?;
                area.check(["random_erasing, the scale", "random_erasing, the ratio"])
            }
            Self::MixUp(alpha) => Mixing::check("mix_up, alpha", alpha),
            Self::CutMix(alpha) => Mixing::check("cut_mix, alpha", alpha),
        }
    }

    /// Makes another image of one that `map` has not yet been at.
    fn crop(&self, image: RgbImage, random: &mut ChaCha8Rng) -> RgbImage {
        match *self {
            Self::ResizedCrop(area) if !image.is_empty() => {
                let part = crop_box(image.dimensions(), area, || random.random());
                imageops::crop_imm(&image, part.x, part.y, part.width, part.height).to_image()
            }
            _ => image,
        }
    }

    /// Changes what `map` has made of an image.
    fn change(&self, pixels: Pixels, random: &mut ChaCha8Rng) -> Pixels {
        match *self {
            Self::FlipHorizontal if random.random() => flip_horizontal(pixels),
            Self::Rotation(most) => rotate(pixels, within(most, random)),
            Self::Zoom(most) => zoom(pixels, 1.0 + within(most, random)),
            Self::Translation(most) => {
                let [down, right] = most.map(|most| within(most, random));
                translate(pixels, down, right)
            }
            Self::ColorJitter(strengths) => adjust_colors(
                pixels,
                strengths.map(|strength| {
                    let least = (1.0 - strength).max(0.0);
                    (least + (1.0 + strength - least) * random.random::<f64>()) as f32
                }),
            ),
            Self::Erasing { probability, area } if random.random::<f64>() < probability => {
                erase(pixels, area, || random.random())
            }
            Self::FlipHorizontal
            | Self::ResizedCrop(_)
            | Self::Erasing { .. }
            | Self::MixUp(_)
            | Self::CutMix(_) => pixels,
        }
    }
}

/// Draws a number between `-most` and `most`.
fn within(most: f64, random: &mut ChaCha8Rng) -> f64 {
    most * (2.0 * random.random::<f64>() - 1.0)
}

const SHARE: &str = "a share, 0 to 1";

fn check(name: &'static str, value: f64, largest: f64, expected: &str) -> Result<()> {
    if (0.0..=largest).contains(&value) {
        return Ok(());
    }
    Err(Error::Argument {
        name,
        expected: expected.to_owned(),
        got: value.to_string(),
    })
}

fn erase(pixels: Pixels, area: Area, draw: impl FnMut() -> f64) -> Pixels {
    let (width, height) = pixels.dimensions();
    let Some(erased) = erased_box((width, height), area, draw) else {
        return pixels;
    };
    pixels.change_all(|mut values| {
        erased.rows(width).for_each(|row| values[row].fill(0.0));
        values
    })
}

/// Multiplies brightness, contrast and saturation by factors, in this order, each as torchvision's
/// `adjust_brightness`, `adjust_contrast` and `adjust_saturation`.
fn adjust_colors(pixels: Pixels, [brightness, contrast, saturation]: [f32; 3]) -> Pixels {
    let [black, white] = pixels.range();
    let (width, height) = pixels.dimensions();
    let range: [f32; 3] = std::array::from_fn(|c| white[c] - black[c]);
    if range
        .iter()
        .any(|range| *range == 0.0 || !range.is_finite())
        || width == 0
    {
        return pixels;
    }
    // Brightness is a blend with black, contrast with the mean grey, saturation with a pixel's own
    // grey.
    let blend = |value: f32, with: f32, factor: f32| {
        (factor * value + (1.0 - factor) * with).clamp(0.0, 1.0)
    };
    let gray = |[red, green, blue]: [f32; 3]| 0.2989 * red + 0.587 * green + 0.114 * blue;
    pixels.change_all(|mut values| {
        let mut grays = 0.0;
        for line in values.chunks_exact_mut(width as usize * 3) {
            let mut grays_of_line = 0.0;
            for rgb in line.as_chunks_mut::<3>().0 {
                *rgb =
                    std::array::from_fn(|c| blend((rgb[c] - black[c]) / range[c], 0.0, brightness));
                grays_of_line += gray(*rgb);
            }
            grays += f64::from(grays_of_line);
        }
        let mean = (grays / (f64::from(width) * f64::from(height))) as f32;
        for rgb in values.as_chunks_mut::<3>().0 {
            let contrasted = rgb.map(|value| blend(value, mean, contrast));
            let own = gray(contrasted);
            *rgb = std::array::from_fn(|c| {
                blend(contrasted[c], own, saturation) * range[c] + black[c]
            });
        }
        values
    })
}

#[cfg(test)]
mod tests {
    use image::RgbImage;
    use safetensors::SafeTensors;

    use super::*;
    use crate::pipeline::pixels::tests::picture;

    /// As the tutorial formats images.
    fn pixels(width: u32, height: u32) -> Pixels {
        let picture = picture(width, height);
        Pixels::from(&picture).scale(1.0 / 127.5).offset(-1.0)
    }

    /// What an augmentation that crops nothing makes of pixels.
    fn apply(
        augmentation: &Augmentation,
        pixels: Pixels,
        seed: u64,
        id: &str,
        epoch: usize,
    ) -> Pixels {
        let changed = augmentation.apply(RgbImage::default(), |_| Ok(pixels), seed, id, epoch);
        changed.unwrap()
    }

    #[test]
    fn images_are_flipped_and_warped_as_by_keras_and_adjusted_as_by_torchvision() {
        let file = include_bytes!("../../tests/data/augmentation.safetensors");
        let reference = SafeTensors::deserialize(file).unwrap();
        assert_eq!(reference.len(), 40);
        for (name, expected) in reference.tensors() {
            let &[height, width, 3] = expected.shape() else {
                panic!("{name}")
            };
            let pixels = pixels(width as u32, height as u32);
            let by = name.split(" by ").nth(1).unwrap_or("0").split(" and ");
            let by: Vec<f64> = by.map(|number| number.parse().unwrap()).collect();
            let (by, second) = (by[0], by.get(1));
            let changed = match name.split(' ').next().unwrap() {
                "flip" => flip_horizontal(pixels),
                "rotation" => rotate(pixels, by),
                "zoom" => zoom(pixels, by),
                "translation" => translate(pixels, by, *second.unwrap()),
                "brightness" => adjust_colors(pixels, [by as f32, 1.0, 1.0]),
                "contrast" => adjust_colors(pixels, [1.0, by as f32, 1.0]),
                "saturation" => adjust_colors(pixels, [1.0, 1.0, by as f32]),
                _ => panic!("{name}"),
            };
            assert_eq!(changed.dimensions(), (width as u32, height as u32));
            let expected = expected.data().as_chunks::<4>().0.iter();
            let expected = expected.map(|bytes| f32::from_le_bytes(*bytes));
            let values = changed.into_values();
            assert_eq!(values.len(), expected.len(), "{name}");
            let largest = values
                .into_iter()
                .zip(expected)
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            println!("{name}: {largest:e}");
            assert!(largest <= 2e-5, "{name}: {largest}");
        }
    }

    #[test]
    fn colors_are_adjusted_alike_on_any_scale() {
        let factors = [1.3, 0.8, 1.5];
        let scaled = adjust_colors(pixels(7, 5), factors).into_values();
        let samples = adjust_colors(Pixels::from(&picture(7, 5)), factors);
        for (value, sample) in scaled.iter().zip(samples.into_values()) {
            assert!((value - (sample / 127.5 - 1.0)).abs() < 1e-5);
        }
        let nothing = Pixels::from(&picture(7, 5)).scale(0.0).offset(3.0);
        assert_eq!(adjust_colors(nothing, factors).into_values(), [3.0; 105]);
    }

    #[test]
    fn what_is_drawn_lies_in_the_range_asked_for_and_reaches_its_ends() {
        // An image of one grey, whose brightness shows the factor.
        let gray = Pixels::from(&RgbImage::from_pixel(1, 1, image::Rgb([100; 3])));
        let jitter = Augmentation::new().color_jitter(0.2, 0.0, 0.0);
        let factors: Vec<f32> = (0..1000)
            .map(|epoch| apply(&jitter, gray.clone(), 0, "", epoch).into_values()[0] / 100.0)
            .collect();
        let (least, most) = factors
            .iter()
            .fold((f32::MAX, f32::MIN), |(least, most), &factor| {
                (least.min(factor), most.max(factor))
            });
        assert!((0.8..0.81).contains(&least), "{least}");
        assert!((1.19..1.2001).contains(&most), "{most}");

        let flip = Augmentation::new().random_flip_horizontal();
        let values = pixels(4, 1).into_values();
        let flipped = (0..1000)
            .filter(|&epoch| apply(&flip, pixels(4, 1), 0, "", epoch).into_values() != values)
            .count();
        assert!((450..550).contains(&flipped), "{flipped}");

        // A step from black to white in the middle of the top, as seen from the centre, shows
        // that no angle is beyond a tenth of a turn.
        let halves =
            RgbImage::from_fn(41, 41, |x, _| image::Rgb([if x < 20 { 0 } else { 200 }; 3]));
        let rotation = Augmentation::new().random_rotation(0.1);
        let edges: Vec<usize> = (0..300)
            .map(|epoch| {
                let rotated = apply(&rotation, Pixels::from(&halves), 0, "", epoch);
                let top = &rotated.into_values()[..41 * 3];
                top.iter().step_by(3).filter(|&&red| red < 100.0).count()
            })
            .collect();
        let (least, most) = (edges.iter().min().unwrap(), edges.iter().max().unwrap());
        // 20 - 20 tan(36 degrees) is 5.5.
        assert!((5..=7).contains(least), "{least}");
        assert!((34..=36).contains(most), "{most}");
    }

    #[test]
    fn zooms_translations_and_erasing_are_drawn_within_what_was_asked_for() {
        // A white image on which nothing shows but what is erased.
        let white = Pixels::from(&RgbImage::from_pixel(20, 10, image::Rgb([255; 3])));
        let erasing = Augmentation::new().random_erasing(0.25, 0.1..=0.2, 1.0..=1.0);
        let erased: Vec<usize> = (0..400)
            .map(|epoch| {
                let values = apply(&erasing, white.clone(), 0, "", epoch).into_values();
                values.iter().filter(|value| **value == 0.0).count() / 3
            })
            .filter(|count| *count > 0)
            .collect();
        assert!((70..130).contains(&erased.len()), "{}", erased.len());
        // Squares of 20 to 40 of the 200 pixels.
        assert!(erased.iter().all(|count| [16, 25, 36].contains(count)));

        // A black left half, the size and place of which shows zoom and shift.
        let halves = RgbImage::from_fn(100, 10, |x, _| {
            image::Rgb([if x < 50 { 0 } else { 200 }; 3])
        });
        let black = |augmentation: &Augmentation, epoch| {
            let values = apply(augmentation, Pixels::from(&halves), 0, "", epoch).into_values();
            let row = values[..300].iter().step_by(3);
            row.filter(|&&red| red < 100.0).count() as i32 - 50
        };
        let translation = Augmentation::new().random_translation(1.0, 0.2);
        let moved: Vec<i32> = (0..300).map(|epoch| black(&translation, epoch)).collect();
        assert!(
            (-20..=-18).contains(moved.iter().min().unwrap()),
            "{moved:?}"
        );
        assert!((18..=20).contains(moved.iter().max().unwrap()), "{moved:?}");
        let quarter =
            RgbImage::from_fn(100, 1, |x, _| image::Rgb([if x < 25 { 0 } else { 200 }; 3]));
        let zoom = Augmentation::new().random_zoom(0.2);
        let zoomed: Vec<usize> = (0..300)
            .map(|epoch| {
                let values = apply(&zoom, Pixels::from(&quarter), 0, "", epoch).into_values();
                values.iter().step_by(3).filter(|&&red| red < 100.0).count()
            })
            .collect();
        // The edge lies 25 pixels before the centre: 25 / 0.8 to 25 / 1.2 of them.
        assert!(
            (18..=20).contains(zoomed.iter().min().unwrap()),
            "{zoomed:?}"
        );
        assert!(
            (28..=30).contains(zoomed.iter().max().unwrap()),
            "{zoomed:?}"
        );
    }

    #[test]
    fn a_crop_is_cut_out_of_the_image_before_it_is_formatted() {
        let crop = Augmentation::new()
            .random_flip_horizontal()
            .random_resized_crop(0.25..=0.25, 1.0..=1.0);
        let image = picture(64, 64);
        let (mut parts, mut flipped) = (Vec::new(), 0);
        for epoch in 0..20 {
            let mut part = None;
            let format = |image: RgbImage| {
                let pixels = Pixels::from(&image);
                part = Some(image);
                Ok(pixels)
            };
            let pixels = crop.apply(image.clone(), format, 0, "a", epoch).unwrap();
            let part = part.unwrap();
            assert_eq!(part.dimensions(), (32, 32));
            let places = (0..=32).flat_map(|y| (0..=32).map(move |x| (x, y)));
            let mut places = places
                .filter(|&(x, y)| imageops::crop_imm(&image, x, y, 32, 32).to_image() == part);
            parts.push(places.next().unwrap());
            flipped += usize::from(pixels.to_image() != part);
        }
        parts.sort_unstable();
        parts.dedup();
        assert!(parts.len() > 15, "{parts:?}");
        assert!((5..15).contains(&flipped), "{flipped}");
    }

    #[test]
    fn what_a_checkpoint_says_of_an_augmentation_is_this_json() {
        let augmentation = Augmentation::new()
            .random_zoom(0.1)
            .random_translation(0.2, 0.3)
            .random_resized_crop(0.5..=1.0, 0.75..=1.25)
            .random_erasing(0.5, 0.02..=0.25, 0.5..=2.0)
            .mix_up(0.2)
            .cut_mix(1.0);
        let expected = serde_json::json!([
            {"zoom": 0.1},
            {"translation": [0.2, 0.3]},
            {"resized_crop": {"scale": [0.5, 1.0], "ratio": [0.75, 1.25]}},
            {"erasing": {"probability": 0.5, "scale": [0.02, 0.25], "ratio": [0.5, 2.0]}},
            {"mix_up": 0.2},
            {"cut_mix": 1.0},
        ]);
        assert_eq!(serde_json::to_value(&augmentation).unwrap(), expected);
        let read: Augmentation = serde_json::from_value(expected).unwrap();
        assert_eq!(read, augmentation);
    }

    #[test]
    fn seed_example_and_epoch_decide_and_nothing_else() {
        let augmentation = Augmentation::new()
            .random_flip_horizontal()
            .random_rotation(0.2)
            .color_jitter(0.2, 0.2, 0.2);
        let values =
            |seed, id, epoch| apply(&augmentation, pixels(7, 5), seed, id, epoch).into_values();
        let one = values(1, "a", 0);
        assert_eq!(one, values(1, "a", 0));
        for other in [values(2, "a", 0), values(1, "b", 0), values(1, "a", 1)] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn an_image_without_pixels_stays_one() {
        let augmentation = Augmentation::new()
            .random_flip_horizontal()
            .random_rotation(0.2)
            .random_zoom(0.2)
            .random_translation(0.2, 0.2)
            .random_resized_crop(0.5..=1.0, 0.75..=1.33)
            .random_erasing(1.0, 0.1..=0.5, 0.3..=3.3)
            .color_jitter(0.2, 0.2, 0.2);
        for (width, height) in [(0, 0), (0, 4), (4, 0)] {
            for epoch in 0..4 {
                let nothing = Pixels::from(&RgbImage::new(width, height));
                let changed = apply(&augmentation, nothing, 0, "", epoch);
                assert_eq!(changed.dimensions(), (width, height));
                assert!(changed.into_values().is_empty());
            }
        }
    }
}
