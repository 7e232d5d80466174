//! An image as floats, and the arithmetic that prepares it for a network.
//!
//! Not for tensors: `batches` makes those from many `Pixels` of one size.

use image::RgbImage;

use super::resize::{Filter, Wanted, filtered};

/// An image of `height` x `width` x 3 floats, row by row, red green blue.
#[derive(Clone, Debug)]
pub struct Pixels {
    width: u32,
    height: u32,
    values: Values,
    /// What the samples 0 and 255, black and white, have become.
    range: [[f32; 3]; 2],
}

/// Most of a photo's values are never asked for: resizing reads a fraction of them. So the
/// samples of a decoded image stay bytes, and arithmetic happens to the 256 values they can
/// stand for.
#[derive(Clone, Debug)]
enum Values {
    Samples {
        samples: Vec<u8>,
        value_of: Box<[f32; 256]>,
    },
    Floats(Vec<f32>),
}

impl From<&RgbImage> for Pixels {
    /// Takes the samples as they are, 0 to 255.
    fn from(image: &RgbImage) -> Self {
        let (width, height) = image.dimensions();
        // `from_raw` takes more samples than the image has.
        let (samples, _) = image
            .as_raw()
            .split_at(width as usize * height as usize * 3);
        let values = Values::Samples {
            samples: samples.to_vec(),
            value_of: Box::new(std::array::from_fn(|sample| sample as f32)),
        };
        Self {
            width,
            height,
            values,
            range: [[0.0; 3], [255.0; 3]],
        }
    }
}

impl Pixels {
    /// Multiplies every value by `factor`.
    pub fn scale(self, factor: f32) -> Self {
        self.change(|value| *value *= factor)
    }

    /// Adds `summand` to every value.
    pub fn offset(self, summand: f32) -> Self {
        self.change(|value| *value += summand)
    }

    /// Subtracts from every value its channel's mean, and divides it by the channel's standard
    /// std, red green blue. Quicker after a photo has been resized than before.
    pub fn normalize(self, mean: [f32; 3], std: [f32; 3]) -> Self {
        let normalized = |rgb: [f32; 3]| std::array::from_fn(|c| (rgb[c] - mean[c]) / std[c]);
        let range = self.range.map(normalized);
        let pixels = self.change_all(|mut values| {
            for rgb in values.as_chunks_mut::<3>().0 {
                *rgb = normalized(*rgb);
            }
            values
        });
        Self { range, ..pixels }
    }

    fn change(mut self, mut change: impl FnMut(&mut f32)) -> Self {
        self.range.iter_mut().flatten().for_each(&mut change);
        let values = match &mut self.values {
            Values::Samples { value_of, .. } => value_of.as_mut_slice(),
            Values::Floats(values) => values,
        };
        values.iter_mut().for_each(change);
        self
    }

    /// Resizes to `width` x `height` as `tf.image.resize` does by default: bilinear between
    /// half-pixel centres, without antialiasing, the aspect ratio not kept.
    ///
    /// An image without pixels becomes `width` x `height` zeros.
    pub fn resize(self, width: u32, height: u32) -> Self {
        let (from, to) = ((self.width, self.height), (width, height));
        let values = match self.values {
            Values::Samples { samples, value_of } => {
                resized(&samples, |sample| value_of[usize::from(sample)], from, to)
            }
            Values::Floats(values) => resized(&values, |value| value, from, to),
        };
        Self {
            width,
            height,
            values: Values::Floats(values),
            range: self.range,
        }
    }

    /// Resizes to `width` x `height` with a filter against aliasing, as PIL's `Image.resize` and with it
    /// torchvision's `Resize((height, width))`; the aspect ratio is not kept. An image that has only been
    /// scaled and offset so far is rounded to whole samples on the way, and has exactly those of PIL
    /// up to version 12; version 13, which resizes some images first down and then along, differs by a
    /// grey level here and there.
    ///
    /// An image without pixels becomes `width` x `height` times what black has become.
    pub fn resize_antialiased(self, width: u32, height: u32, filter: Filter) -> Self {
        self.filtered(&Wanted::all(width, height), filter)
    }

    /// Resizes so that the shorter side has `shorter_side` pixels, as
    /// [`resize_antialiased`](Self::resize_antialiased) does, and cuts out the `size` x `size` pixels in
    /// the middle, as torchvision's `Resize(shorter_side)` and `CenterCrop(size)`. A `shorter_side` below
    /// `size` is taken for `size`.
    pub fn resize_and_crop(self, shorter_side: u32, size: u32, filter: Filter) -> Self {
        let wanted = Wanted::middle(self.dimensions(), shorter_side, size);
        self.filtered(&wanted, filter)
    }

    fn filtered(self, wanted: &Wanted, filter: Filter) -> Self {
        let from = self.dimensions();
        let values = match self.values {
            Values::Samples { samples, value_of } => Values::Samples {
                samples: filtered(&samples, from, wanted, filter),
                value_of,
            },
            Values::Floats(values) => Values::Floats(filtered(&values, from, wanted, filter)),
        };
        let (width, height) = wanted.dimensions();
        Self {
            width,
            height,
            values,
            range: self.range,
        }
    }

    /// Replaces the values, `height` x `width` x 3, by as many others.
    pub(super) fn change_all(self, change: impl FnOnce(Vec<f32>) -> Vec<f32>) -> Self {
        let Self {
            width,
            height,
            range,
            ..
        } = self;
        let values = Values::Floats(change(self.into_values()));
        Self {
            width,
            height,
            values,
            range,
        }
    }

    /// Returns the values, `height` x `width` x 3, row by row, to be changed.
    pub(super) fn values_mut(&mut self) -> &mut [f32] {
        if let Values::Samples { samples, value_of } = &self.values {
            let values = samples.iter().map(|&sample| value_of[usize::from(sample)]);
            self.values = Values::Floats(values.collect());
        }
        match &mut self.values {
            Values::Floats(values) => values,
            Values::Samples { .. } => &mut [],
        }
    }

    /// Returns what black and white, samples of 0 and 255, have become.
    pub(super) fn range(&self) -> [[f32; 3]; 2] {
        self.range
    }

    /// Returns the image to look at: black and white are again what they were before
    /// [`scale`](Self::scale) and [`offset`](Self::offset).
    pub fn to_image(&self) -> RgbImage {
        let [black, white] = self.range;
        let mut values = self.clone().into_values();
        for rgb in values.as_chunks_mut::<3>().0 {
            *rgb = std::array::from_fn(|c| 255.0 * (rgb[c] - black[c]) / (white[c] - black[c]));
        }
        let samples = values.into_iter().map(|value| value.round() as u8);
        RgbImage::from_raw(self.width, self.height, samples.collect()).unwrap_or_default()
    }

    /// Returns the width and height in pixels.
    pub fn dimensions(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    /// Returns the values, `height` x `width` x 3, row by row.
    pub fn into_values(self) -> Vec<f32> {
        match self.values {
            Values::Samples { samples, value_of } => {
                let values = samples.iter().map(|&sample| value_of[usize::from(sample)]);
                values.collect()
            }
            Values::Floats(values) => values,
        }
    }
}

/// Resizes `values`, each of which stands for what `value_of` makes of it.
fn resized<T: Copy>(
    values: &[T],
    value_of: impl Fn(T) -> f32 + Copy,
    (from_width, from_height): (u32, u32),
    (width, height): (u32, u32),
) -> Vec<f32> {
    let row = from_width as usize * 3;
    let mut resized = vec![0.0; width as usize * height as usize * 3];
    if values.is_empty() || resized.is_empty() {
        return resized;
    }
    let columns = taps(from_width, width);
    let out = width as usize * 3;
    // The two source rows an output row lies between, each resized along the row.
    let mut above = Row::new(out);
    let mut below = Row::new(out);
    for (tap, line) in taps(from_height, height)
        .iter()
        .zip(resized.chunks_exact_mut(out))
    {
        if below.source == Some(tap.low) {
            std::mem::swap(&mut above, &mut below);
        }
        above.fill(tap.low, &values[tap.low * row..][..row], value_of, &columns);
        below.fill(
            tap.high,
            &values[tap.high * row..][..row],
            value_of,
            &columns,
        );
        for ((value, a), b) in line.iter_mut().zip(&above.values).zip(&below.values) {
            *value = a + (b - a) * tap.weight;
        }
    }
    resized
}

/// Where an output sample takes its value: between two input samples.
struct Tap {
    low: usize,
    high: usize,
    weight: f32,
}

/// Returns a tap for each of `to` outputs over `from` inputs (`HalfPixelScaler` and
/// `compute_interpolation_weights` of TensorFlow's `resize_bilinear_op.cc`, in its precision).
fn taps(from: u32, to: u32) -> Vec<Tap> {
    let scale = from as f32 / to as f32;
    (0..to)
        .map(|i| {
            let position = (i as f32 + 0.5) * scale - 0.5;
            let floor = position.floor();
            Tap {
                low: floor.max(0.0) as usize,
                high: (position.ceil() as usize).min(from as usize - 1),
                weight: position - floor,
            }
        })
        .collect()
}

/// A source row, resized along the row.
struct Row {
    source: Option<usize>,
    values: Vec<f32>,
}

impl Row {
    fn new(length: usize) -> Self {
        Self {
            source: None,
            values: vec![0.0; length],
        }
    }

    fn fill<T: Copy>(
        &mut self,
        source: usize,
        samples: &[T],
        value_of: impl Fn(T) -> f32,
        columns: &[Tap],
    ) {
        if self.source == Some(source) {
            return;
        }
        self.source = Some(source);
        let (samples, values) = (
            samples.as_chunks::<3>().0,
            self.values.as_chunks_mut::<3>().0,
        );
        for (rgb, tap) in values.iter_mut().zip(columns) {
            let (low, high) = (
                samples[tap.low].map(&value_of),
                samples[tap.high].map(&value_of),
            );
            *rgb = std::array::from_fn(|c| low[c] + (high[c] - low[c]) * tap.weight);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use safetensors::SafeTensors;

    use super::*;

    /// The image that `tests/reference/resize.py` computes.
    pub(in crate::pipeline) fn picture(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| {
            let base = x * x * 7 + y * y * 13 + x * y * 3 + x * 31 + y * 17;
            image::Rgb([0, 1, 2].map(|c| ((base + c * 101) % 256) as u8))
        })
    }

    #[test]
    fn resize_equals_tensorflows() {
        let file = include_bytes!("../../tests/data/resize.safetensors");
        let reference = SafeTensors::deserialize(file).unwrap();
        assert_eq!(reference.len(), 9);
        for (name, expected) in reference.tensors() {
            let sizes: Vec<u32> = name
                .split(" to ")
                .flat_map(|size| size.split('x'))
                .map(|n| n.parse().unwrap())
                .collect();
            let &[width, height, new_width, new_height] = sizes.as_slice() else {
                panic!("{name}")
            };
            let resized = Pixels::from(&picture(width, height))
                .scale(1.0 / 127.5)
                .offset(-1.0)
                .resize(new_width, new_height);
            assert_eq!(resized.dimensions(), (new_width, new_height));
            let row = new_width as usize * 3;
            let stored_all = expected.shape() == [new_height as usize, new_width as usize, 3];
            let (rows, columns) = if stored_all { (1, 1) } else { (4, 3) };
            let values = resized.into_values();
            let sampled = values
                .chunks_exact(row)
                .step_by(rows)
                .flat_map(|line| line.chunks_exact(3).step_by(columns).flatten());
            let expected = expected
                .data()
                .as_chunks::<4>()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b));
            assert_eq!(sampled.clone().count(), expected.len(), "{name}");
            let largest = sampled
                .zip(expected)
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            println!("{name}: {largest:e}");
            assert!(largest <= 1e-5, "{name}: {largest}");
        }
    }

    #[test]
    fn scale_and_offset_map_samples_to_minus_one_to_one() {
        let ends = RgbImage::from_raw(1, 1, vec![0, 255, 51]).unwrap();
        let pixels = Pixels::from(&ends).scale(1.0 / 127.5).offset(-1.0);
        let values = pixels.into_values();
        assert_eq!(values[..2], [-1.0, 1.0]);
        assert!((values[2] + 0.6).abs() < 1e-6);
    }

    #[test]
    fn normalizing_takes_each_channel_by_itself_before_and_after_resizing() {
        let image = RgbImage::from_pixel(2, 2, image::Rgb([10, 20, 30]));
        let normalized = |pixels: Pixels| pixels.normalize([1.0, 2.0, 3.0], [9.0, 2.0, 1.0]);
        let before = normalized(Pixels::from(&image)).resize(1, 1);
        let after = normalized(Pixels::from(&image).resize(1, 1));
        assert_eq!(before.dimensions(), (1, 1));
        assert_eq!(before.into_values(), [1.0, 9.0, 27.0]);
        assert_eq!(after.into_values(), [1.0, 9.0, 27.0]);
    }

    #[test]
    fn an_image_of_pixels_is_the_one_they_came_from() {
        let picture = picture(7, 5);
        let pixels = Pixels::from(&picture).scale(1.0 / 127.5).offset(-1.0);
        assert_eq!(pixels.to_image(), picture);
        assert_eq!(pixels.resize(7, 5).to_image(), picture);
        assert_eq!(Pixels::from(&picture).scale(-2.0).to_image(), picture);
        let normalized = Pixels::from(&picture).normalize([120., 110., 100.], [60., 70., 50.]);
        assert_eq!(normalized.to_image(), picture);
    }

    #[test]
    fn samples_behind_a_images_last_are_not_its_own() {
        let longer = RgbImage::from_raw(2, 1, (0..100).collect()).unwrap();
        let pixels = Pixels::from(&longer);
        assert_eq!(pixels.clone().into_values(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(pixels.resize(1, 1).into_values(), [1.5, 2.5, 3.5]);
    }

    #[test]
    fn resize_from_or_to_nothing_does_not_panic() {
        let pixels = Pixels::from(&picture(4, 3));
        assert!(pixels.clone().resize(0, 7).into_values().is_empty());
        assert_eq!(pixels.resize(0, 0).resize(2, 2).into_values(), [0.0; 12]);
    }
}
