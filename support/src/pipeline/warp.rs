//! Images mirrored, turned, zoomed and moved.

use std::f64::consts::TAU;

use super::Pixels;

pub(super) fn flip_horizontal(pixels: Pixels) -> Pixels {
    let row = pixels.dimensions().0 as usize;
    pixels.change_all(|mut values| {
        let pixels = values.as_chunks_mut::<3>().0;
        pixels.chunks_exact_mut(row.max(1)).for_each(<[_]>::reverse);
        values
    })
}

/// Rotates by `turns`, counterclockwise if positive, about the image's centre, as `RandomRotation` in
/// Keras 3.
pub(super) fn rotate(pixels: Pixels, turns: f64) -> Pixels {
    let (x, y) = centre(&pixels);
    // In 64 bits: C libraries differ in the last place, which rounding to 32 takes away.
    let (sin, cos) = (turns * TAU).sin_cos();
    let across = [cos, -sin, x - x * cos + y * sin];
    let down = [sin, cos, y - x * sin - y * cos];
    warp(pixels, across, down)
}

/// Makes what is `factor` times as high and wide as the image, about its centre, the image, as
/// `RandomZoom` in Keras 3.
pub(super) fn zoom(pixels: Pixels, factor: f64) -> Pixels {
    let (x, y) = centre(&pixels);
    let across = [factor, 0.0, x * (1.0 - factor)];
    let down = [0.0, factor, y * (1.0 - factor)];
    warp(pixels, across, down)
}

/// Moves down by a share of the height and to the right by a share of the width, as
/// `RandomTranslation` in Keras 3.
pub(super) fn translate(pixels: Pixels, down: f64, right: f64) -> Pixels {
    let (width, height) = pixels.dimensions();
    let across = [1.0, 0.0, -right * f64::from(width)];
    let down = [0.0, 1.0, -down * f64::from(height)];
    warp(pixels, across, down)
}

/// Returns the coordinates of an image's centre, those of the first pixel's being 0.
fn centre(pixels: &Pixels) -> (f64, f64) {
    let (width, height) = pixels.dimensions();
    let middle = |side: u32| f64::from(side.saturating_sub(1)) / 2.0;
    (middle(width), middle(height))
}

/// Makes the image whose pixel at (x, y) is that of `pixels` at `across · (x, y, 1)` and
/// `down · (x, y, 1)`, none further from the image than it is high and wide together: bilinear, beyond
/// the edges `d c b a | a b c d | d c b a`.
///
/// Coordinates and reflection are those of TensorFlow's `ImageProjectiveTransformV3`.
fn warp(pixels: Pixels, across: [f64; 3], down: [f64; 3]) -> Pixels {
    let (width, height) = pixels.dimensions();
    if width == 0 || height == 0 {
        return pixels;
    }
    let [xx, xy, x_shift] = across.map(|value| value as f32);
    let [yx, yy, y_shift] = down.map(|value| value as f32);
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
        let mut warped = vec![0.0; values.len()];
        // Three channels are read as four.
        values.push(0.0);
        let (mut starts, mut weights) = (vec![0; width], vec![[0.0; 2]; width]);
        for (row, line) in warped.chunks_exact_mut(width * 3).enumerate() {
            let y = row as f32;
            for (column, (start, weights)) in starts.iter_mut().zip(&mut weights).enumerate() {
                // From 64 bits there is no vector instruction.
                let x = column as i32 as f32;
                let (column, x_weight) = across.map(xx * x + xy * y + x_shift);
                let (row, y_weight) = down.map(yx * x + yy * y + y_shift);
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
        warped
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
