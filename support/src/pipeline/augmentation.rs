//! Random changes to training images, others in each epoch.
//!
//! What becomes of an image depends on the dataset's seed, the example's id and the epoch only:
//! never on threads, the order of the examples, or the machine. Of an example that is in the dataset
//! several times, every copy becomes another image.

use std::f64::consts::TAU;

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Pixels;
use crate::{Error, Result};

/// How the images of a dataset change from epoch to epoch, for
/// [`Dataset::augment`](super::Dataset::augment).
///
/// ```
/// use support::pipeline::Augmentation;
///
/// let augmentation = Augmentation::new()
///     .random_flip_horizontal()
///     .random_rotation(0.2)
///     .color_jitter(0.2, 0.2, 0.2);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Augmentation {
    operations: Vec<Operation>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Operation {
    FlipHorizontal,
    /// At most how many turns either way.
    Rotation(f64),
    /// How much brightness, contrast and saturation change at most.
    ColorJitter([f64; 3]),
}

impl Augmentation {
    /// Returns an augmentation that changes nothing; what is added happens in the order of the
    /// calls.
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

    /// Changes brightness, then contrast, then saturation, each by a factor between `1 - x`, but
    /// not below 0, and `1 + x`, as torchvision's `ColorJitter` (which draws the order as well).
    ///
    /// Black and white are what 0 and 255 have become by [`Pixels::scale`] and
    /// [`Pixels::offset`]; values stay between them.
    #[must_use]
    pub fn color_jitter(self, brightness: f64, contrast: f64, saturation: f64) -> Self {
        self.and(Operation::ColorJitter([brightness, contrast, saturation]))
    }

    fn and(mut self, operation: Operation) -> Self {
        self.operations.push(operation);
        self
    }

    pub(super) fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// Checks the arguments of all operations.
    pub(super) fn check(&self) -> Result<()> {
        self.operations
            .iter()
            .try_for_each(|operation| match *operation {
                Operation::FlipHorizontal => Ok(()),
                Operation::Rotation(factor) => {
                    check("random_rotation, the factor", factor, 1.0, "turns, 0 to 1")
                }
                Operation::ColorJitter([brightness, contrast, saturation]) => [
                    ("color_jitter, the brightness", brightness),
                    ("color_jitter, the contrast", contrast),
                    ("color_jitter, the saturation", saturation),
                ]
                .into_iter()
                .try_for_each(|(name, value)| check(name, value, f64::MAX, "a number, 0 or more")),
            })
    }

    /// Returns what the image of an example becomes in an epoch, the first one being 0, of a
    /// dataset of that seed.
    ///
    /// # Errors
    /// Those of [`Dataset::augment`](super::Dataset::augment).
    pub fn apply(&self, pixels: Pixels, seed: u64, id: &str, epoch: usize) -> Result<Pixels> {
        self.check()?;
        let key = Sha256::new()
            .chain_update(seed.to_le_bytes())
            .chain_update(id);
        let mut random = ChaCha8Rng::from_seed(key.finalize().into());
        random.set_stream(epoch as u64);
        Ok(self
            .operations
            .iter()
            .fold(pixels, |pixels, operation| match *operation {
                Operation::FlipHorizontal if random.random() => flip_horizontal(pixels),
                Operation::FlipHorizontal => pixels,
                Operation::Rotation(factor) => {
                    rotate(pixels, factor * (2.0 * random.random::<f64>() - 1.0))
                }
                Operation::ColorJitter(strengths) => adjust_colors(
                    pixels,
                    strengths.map(|strength| {
                        let least = (1.0 - strength).max(0.0);
                        (least + (1.0 + strength - least) * random.random::<f64>()) as f32
                    }),
                ),
            }))
    }
}

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

fn flip_horizontal(pixels: Pixels) -> Pixels {
    let row = pixels.dimensions().0 as usize;
    pixels.change_all(|mut values| {
        let pixels = values.as_chunks_mut::<3>().0;
        pixels.chunks_exact_mut(row.max(1)).for_each(<[_]>::reverse);
        values
    })
}

/// Rotates by `turns`, counterclockwise if positive, about the image's centre: bilinear, beyond
/// the edges `d c b a | a b c d | d c b a`.
///
/// The matrix is that of `RandomRotation` in Keras 3; coordinates and reflection are those of
/// TensorFlow's `ImageProjectiveTransformV3`.
fn rotate(pixels: Pixels, turns: f64) -> Pixels {
    let (width, height) = pixels.dimensions();
    if width == 0 || height == 0 {
        return pixels;
    }
    // In 64 bits: C libraries differ in the last place, which rounding to 32 takes away.
    let (sin, cos) = (turns * TAU).sin_cos();
    let (x, y) = (f64::from(width - 1) / 2.0, f64::from(height - 1) / 2.0);
    let x_shift = (x - x * cos + y * sin) as f32;
    let y_shift = (y - x * sin - y * cos) as f32;
    let (sin, cos) = (sin as f32, cos as f32);

    // What is outside of the image lies closer to it than this.
    let reach = 2.0 * (width as f32 + height as f32);
    let (across, down) = (
        Reflection::new(width, reach),
        Reflection::new(height, reach),
    );
    let (width, height) = (width as usize, height as usize);
    let right = if width > 1 { 3 } else { 0 };
    let below = if height > 1 { width * 3 } else { 0 };
    pixels.change_all(|mut values| {
        let mut rotated = vec![0.0; values.len()];
        // Three channels are read as four.
        values.push(0.0);
        let (mut starts, mut weights) = (vec![0; width], vec![[0.0; 2]; width]);
        for (row, line) in rotated.chunks_exact_mut(width * 3).enumerate() {
            let y = row as f32;
            for (column, (start, weights)) in starts.iter_mut().zip(&mut weights).enumerate() {
                // From 64 bits there is no vector instruction.
                let x = column as i32 as f32;
                let (column, x_weight) = across.map(cos * x - sin * y + x_shift);
                let (row, y_weight) = down.map(sin * x + cos * y + y_shift);
                *start = (row * width as i32 + column) * 3;
                *weights = [x_weight, y_weight];
            }
            let pixels = line.as_chunks_mut::<3>().0.iter_mut();
            for ((rgb, &start), &[x_weight, y_weight]) in pixels.zip(&starts).zip(&weights) {
                let start = start as usize;
                let at = |start: usize| values[start..].first_chunk::<4>().copied();
                let corners = (
                    at(start),
                    at(start + right),
                    at(start + below),
                    at(start + below + right),
                );
                if let (Some(a), Some(b), Some(c), Some(d)) = corners {
                    let [red, green, blue, _]: [f32; 4] = std::array::from_fn(|i| {
                        let above = a[i] + (b[i] - a[i]) * x_weight;
                        let below = c[i] + (d[i] - c[i]) * x_weight;
                        above + (below - above) * y_weight
                    });
                    *rgb = [red, green, blue];
                }
            }
        }
        rotated
    })
}

/// Maps coordinates along an axis of an image that repeats in mirror images into the image.
struct Reflection {
    len: f32,
    period: f32,
    /// Periods that make every coordinate positive, so that cutting off rounds it down.
    periods: f32,
}

impl Reflection {
    fn new(len: u32, reach: f32) -> Self {
        let len = len as f32;
        Self {
            len,
            period: 2.0 * len,
            periods: (reach / (2.0 * len)).ceil(),
        }
    }

    /// Returns the last pixel before a coordinate that has one after it, and how far on towards
    /// that one the coordinate is.
    fn map(&self, coordinate: f32) -> (i32, f32) {
        let from_edge = coordinate + 0.5;
        let period = (from_edge / self.period + self.periods) as i32 as f32 - self.periods;
        let mirrored = self.len - (from_edge - period * self.period - self.len).abs();
        let inside = (mirrored - 0.5).max(0.0).min(self.len - 1.0);
        let before = inside.min((self.len - 2.0).max(0.0)) as i32;
        (before, inside - before as f32)
    }
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

    #[test]
    fn images_are_flipped_and_rotated_as_by_keras_and_adjusted_as_by_torchvision() {
        let file = include_bytes!("../../tests/data/augmentation.safetensors");
        let reference = SafeTensors::deserialize(file).unwrap();
        assert_eq!(reference.len(), 29);
        for (name, expected) in reference.tensors() {
            let &[height, width, 3] = expected.shape() else {
                panic!("{name}")
            };
            let pixels = pixels(width as u32, height as u32);
            let by: f64 = name.split(" by ").nth(1).unwrap_or("0").parse().unwrap();
            let changed = match name.split(' ').next().unwrap() {
                "flip" => flip_horizontal(pixels),
                "rotation" => rotate(pixels, by),
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
            .map(|epoch| {
                jitter
                    .apply(gray.clone(), 0, "", epoch)
                    .unwrap()
                    .into_values()[0]
                    / 100.0
            })
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
            .filter(|&epoch| {
                flip.apply(pixels(4, 1), 0, "", epoch)
                    .unwrap()
                    .into_values()
                    != values
            })
            .count();
        assert!((450..550).contains(&flipped), "{flipped}");

        // A step from black to white in the middle of the top, as seen from the centre, shows
        // that no angle is beyond a tenth of a turn.
        let halves =
            RgbImage::from_fn(41, 41, |x, _| image::Rgb([if x < 20 { 0 } else { 200 }; 3]));
        let rotation = Augmentation::new().random_rotation(0.1);
        let edges: Vec<usize> = (0..300)
            .map(|epoch| {
                let rotated = rotation.apply(Pixels::from(&halves), 0, "", epoch);
                let top = &rotated.unwrap().into_values()[..41 * 3];
                top.iter().step_by(3).filter(|&&red| red < 100.0).count()
            })
            .collect();
        let (least, most) = (edges.iter().min().unwrap(), edges.iter().max().unwrap());
        // 20 - 20 tan(36 degrees) is 5.5.
        assert!((5..=7).contains(least), "{least}");
        assert!((34..=36).contains(most), "{most}");
    }

    #[test]
    fn seed_example_and_epoch_decide_and_nothing_else() {
        let augmentation = Augmentation::new()
            .random_flip_horizontal()
            .random_rotation(0.2)
            .color_jitter(0.2, 0.2, 0.2);
        let values = |seed, id, epoch| {
            let changed = augmentation.apply(pixels(7, 5), seed, id, epoch);
            changed.unwrap().into_values()
        };
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
            .color_jitter(0.2, 0.2, 0.2);
        for (width, height) in [(0, 0), (0, 4), (4, 0)] {
            for epoch in 0..4 {
                let nothing = Pixels::from(&RgbImage::new(width, height));
                let changed = augmentation.apply(nothing, 0, "", epoch).unwrap();
                assert_eq!(changed.dimensions(), (width, height));
                assert!(changed.into_values().is_empty());
            }
        }
    }
}
