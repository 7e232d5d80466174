//! Resizing that filters, as PIL does and torchvision's weights want it.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::Pixels;

/// What an antialiased resize weighs the pixels by that it makes one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// A triangle.
    Bilinear,
    /// Keys' cubic with `a = -0.5`, which overshoots at edges.
    Bicubic,
}

/// How an image is made into a square one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resize {
    /// As [`Pixels::resize`]: between half-pixel centres, without antialiasing, the aspect ratio not
    /// kept.
    Bilinear,
    /// As [`Pixels::resize_and_crop`]: antialiased, the aspect ratio kept, the middle cut out.
    CenterCrop {
        /// The pixels of the shorter side before the middle is cut out.
        shorter_side: u32,
        /// The filter.
        filter: Filter,
    },
}

impl Resize {
    /// Returns the image in `size` x `size` pixels.
    #[must_use]
    pub fn apply(self, pixels: Pixels, size: u32) -> Pixels {
        match self {
            Self::Bilinear => pixels.resize(size, size),
            Self::CenterCrop {
                shorter_side,
                filter,
            } => pixels.resize_and_crop(shorter_side, size, filter),
        }
    }
}

impl Filter {
    /// How far it reaches, in pixels of the smaller image.
    fn reach(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, distance: f64) -> f64 {
        let x = distance.abs();
        match self {
            Self::Bilinear => (1.0 - x).max(0.0),
            Self::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5,
            Self::Bicubic => 0.0,
        }
    }

    /// Returns what each of the outputs `kept`, of `to` in all, is made of: the first of `from` inputs,
    /// and the weights of it and those after it (`precompute_coeffs` in PIL's `Resample.c`).
    fn windows<W>(
        self,
        from: u32,
        to: u32,
        kept: Range<u32>,
        stored: impl Fn(f64) -> W,
    ) -> Vec<(usize, Vec<W>)> {
        let scale = f64::from(from) / f64::from(to);
        let wider = scale.max(1.0);
        let reach = self.reach() * wider;
        let window = |output| {
            let centre = (f64::from(output) + 0.5) * scale;
            let first = (centre - reach + 0.5).max(0.0) as u32;
            let end = ((centre + reach + 0.5) as u32).min(from);
            let weight = |input| self.weight((f64::from(input) - centre + 0.5) / wider);
            let weights: Vec<f64> = (first..end).map(weight).collect();
            let share = 1.0 / weights.iter().sum::<f64>();
            let weights = weights.into_iter().map(|weight| stored(weight * share));
            (first as usize, weights.collect())
        };
        kept.map(window).collect()
    }
}

/// How values are weighed and summed.
pub(super) trait Weigh: Copy + Default {
    type Weight: Copy + Default;

    fn weight(share: f64) -> Self::Weight;

    fn add(sum: Self::Weight, value: Self, weight: Self::Weight) -> Self::Weight;

    fn of_sum(sum: Self::Weight) -> Self;
}

/// As PIL does: in whole numbers, rounded and cut off to a byte.
impl Weigh for u8 {
    type Weight = i32;

    fn weight(share: f64) -> i32 {
        (share * f64::from(1 << FRACTION)).round() as i32
    }

    fn add(sum: i32, value: Self, weight: i32) -> i32 {
        sum + i32::from(value) * weight
    }

    fn of_sum(sum: i32) -> Self {
        ((sum + (1 << (FRACTION - 1))) >> FRACTION).clamp(0, 255) as Self
    }
}

/// The bits of a weight behind the point: 8 of the 30 others are for the value, 2 for overshoot.
const FRACTION: i32 = 22;

impl Weigh for f32 {
    type Weight = Self;

    fn weight(share: f64) -> Self {
        share as Self
    }

    fn add(sum: Self, value: Self, weight: Self) -> Self {
        sum + value * weight
    }

    fn of_sum(sum: Self) -> Self {
        sum
    }
}

/// The part of an image resized to `to` that is wanted.
pub(super) struct Wanted {
    pub(super) to: (u32, u32),
    pub(super) columns: Range<u32>,
    pub(super) rows: Range<u32>,
}

impl Wanted {
    /// All of an image resized to that width and height.
    pub(super) fn all(width: u32, height: u32) -> Self {
        Self {
            to: (width, height),
            columns: 0..width,
            rows: 0..height,
        }
    }

    /// The middle `size` x `size` pixels of an image of width and height `from`, resized so that its shorter
    /// side is `shorter_side`: the sizes of torchvision's `Resize`, the place of its `CenterCrop`.
    pub(super) fn middle((width, height): (u32, u32), shorter_side: u32, size: u32) -> Self {
        let shorter_side = shorter_side.max(size);
        let shorter = u64::from(width.min(height).max(1));
        let resized = |side: u32| match u64::from(side) == shorter {
            true => shorter_side,
            false => {
                let side = u64::from(shorter_side) * u64::from(side) / shorter;
                u32::try_from(side).unwrap_or(u32::MAX)
            }
        };
        let middle = |side: u32| {
            let margin = f64::from(side.saturating_sub(size)) / 2.0;
            let start = margin.round_ties_even() as u32;
            start..start + size
        };
        let to = (resized(width), resized(height));
        Self {
            to,
            columns: middle(to.0),
            rows: middle(to.1),
        }
    }

    pub(super) fn dimensions(&self) -> (u32, u32) {
        (
            self.columns.end - self.columns.start,
            self.rows.end - self.rows.start,
        )
    }
}

/// Resizes values, `height` x `width` x 3, first along the rows, then down, as PIL does up to version 12.
pub(super) fn filtered<T: Weigh>(
    values: &[T],
    (width, height): (u32, u32),
    wanted: &Wanted,
    filter: Filter,
) -> Vec<T> {
    let (columns, rows) = wanted.dimensions();
    let length = columns as usize * rows as usize * 3;
    if values.is_empty() || length == 0 {
        return vec![T::default(); length];
    }
    let columns = filter.windows(width, wanted.to.0, wanted.columns.clone(), T::weight);
    let rows = filter.windows(height, wanted.to.1, wanted.rows.clone(), T::weight);
    // Only the rows that are needed.
    let first = rows.first().map_or(0, |(first, _)| *first);
    let end = rows
        .last()
        .map_or(0, |(last, weights)| last + weights.len());
    let line = columns.len() * 3;
    let mut narrow = Vec::with_capacity((end - first) * line);
    let lines = values.chunks_exact(width as usize * 3);
    for values in lines.skip(first).take(end - first) {
        let pixels = values.as_chunks::<3>().0;
        for (first, weights) in &columns {
            let mut sums = [T::Weight::default(); 3];
            for (rgb, weight) in pixels[*first..].iter().zip(weights) {
                sums = std::array::from_fn(|c| T::add(sums[c], rgb[c], *weight));
            }
            narrow.extend(sums.map(T::of_sum));
        }
    }
    let mut resized = Vec::with_capacity(length);
    let mut sums = vec![T::Weight::default(); line];
    for (row, weights) in &rows {
        sums.fill(T::Weight::default());
        let lines = narrow.chunks_exact(line).skip(row - first);
        for (values, weight) in lines.zip(weights) {
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum = T::add(*sum, *value, *weight);
            }
        }
        resized.extend(sums.iter().map(|sum| T::of_sum(*sum)));
    }
    resized
}

#[cfg(test)]
mod tests {
    use image::RgbImage;
    use safetensors::SafeTensors;

    use super::super::pixels::tests::picture;
    use super::*;

    /// What `tests/reference/resize_antialiased.py` says of a name: width, height, the filter, and the
    /// numbers at its end.
    fn parsed(name: &str) -> (RgbImage, Filter, Vec<u32>) {
        let words: Vec<&str> = name.split(' ').collect();
        let (width, height) = words[0].split_once('x').unwrap();
        let filter = match words[1] {
            "bilinear" => Filter::Bilinear,
            _ => Filter::Bicubic,
        };
        let numbers = words[2..].iter().map(|number| number.parse().unwrap());
        let image = picture(width.parse().unwrap(), height.parse().unwrap());
        (image, filter, numbers.collect())
    }

    fn reference() -> Vec<(String, Vec<usize>, Vec<u8>)> {
        let file = include_bytes!("../../tests/data/resize_antialiased.safetensors");
        let reference = SafeTensors::deserialize(file).unwrap();
        let tensors = reference.iter();
        let tensors: Vec<_> = tensors
            .map(|(name, view)| (name.to_owned(), view.shape().to_vec(), view.data().to_vec()))
            .collect();
        assert_eq!(tensors.len(), 20);
        tensors
    }

    fn resized(pixels: Pixels, filter: Filter, numbers: &[u32]) -> Pixels {
        match *numbers {
            [width, height] => pixels.resize_antialiased(width, height, filter),
            [0, shorter_side, size] => pixels.resize_and_crop(shorter_side, size, filter),
            _ => panic!("{numbers:?}"),
        }
    }

    #[test]
    fn antialiased_images_and_their_middles_are_torchvisions_of_pil_images() {
        for (name, shape, expected) in reference() {
            let (image, filter, numbers) = parsed(&name);
            let resized = resized(Pixels::from(&image), filter, &numbers);
            let (width, height) = resized.dimensions();
            assert_eq!(shape, [height as usize, width as usize, 3], "{name}");
            assert!(resized.to_image().into_raw() == expected, "{name}");
        }
    }

    #[test]
    fn of_numbers_in_the_place_of_samples_the_same_comes_but_for_rounding() {
        for (name, _, expected) in reference() {
            let (image, filter, numbers) = parsed(&name);
            let pixels = Pixels::from(&image).normalize([0.0; 3], [1.0; 3]);
            let values = resized(pixels, filter, &numbers).into_values();
            for (value, expected) in values.into_iter().zip(expected) {
                // Overshoot is cut off from samples only.
                let off = (value.clamp(0.0, 255.0) - f32::from(expected)).abs();
                let most = if filter == Filter::Bilinear {
                    1.01
                } else {
                    40.0
                };
                assert!(off <= most, "{name}: {value} for {expected}");
            }
        }
    }

    #[test]
    fn scaling_before_and_after_is_the_same() {
        let scaled = |pixels: Pixels| pixels.scale(1.0 / 127.5).offset(-1.0);
        let cropped = |pixels: Pixels| pixels.resize_and_crop(20, 16, Filter::Bicubic);
        let before = cropped(scaled(Pixels::from(&picture(50, 40)))).into_values();
        let after = scaled(cropped(Pixels::from(&picture(50, 40)))).into_values();
        assert_eq!(before, after);
    }

    #[test]
    fn a_long_or_empty_image_becomes_a_square_without_much_memory() {
        let cropped = |image: &RgbImage| {
            let (pixels, memory) = crate::properties::measured(|| {
                Pixels::from(image).resize_and_crop(256, 224, Filter::Bilinear)
            });
            assert_eq!(pixels.dimensions(), (224, 224));
            assert!(memory < 4 << 20, "{memory} bytes");
            pixels.into_values()
        };
        let gray = RgbImage::from_pixel(1, 60_000, image::Rgb([100; 3]));
        assert!(cropped(&gray).iter().all(|value| *value == 100.0));
        assert!(
            cropped(&RgbImage::new(0, 5))
                .iter()
                .all(|value| *value == 0.0)
        );
        let larger_crop = Pixels::from(&picture(9, 9)).resize_and_crop(3, 5, Filter::Bilinear);
        assert_eq!(larger_crop.dimensions(), (5, 5));
    }

    #[test]
    fn what_a_model_file_says_of_a_resize_is_this_json() {
        let crop = Resize::CenterCrop {
            shorter_side: 256,
            filter: Filter::Bicubic,
        };
        let expected = [
            (Resize::Bilinear, serde_json::json!("bilinear")),
            (
                crop,
                serde_json::json!({"center_crop": {"shorter_side": 256, "filter": "bicubic"}}),
            ),
        ];
        for (resize, json) in expected {
            assert_eq!(serde_json::to_value(resize).unwrap(), json);
            assert_eq!(serde_json::from_value::<Resize>(json).unwrap(), resize);
        }
    }
}
