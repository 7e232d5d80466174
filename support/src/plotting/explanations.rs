//! Explanation maps, laid over their images.

use image::{Pixel, RgbImage};

use super::Figure;
use super::colors::{VIRIDIS, color};
use super::grid::{MAX_IMAGES, Titled, grid};
use crate::Result;
use crate::analysis::Explanations;
use crate::classifier::Explained;

/// How much of a map's colour is mixed into the image's.
const OPACITY: f32 = 0.5;

impl Explanations {
    /// Draws the images, at most the first 25, as they were made for the model, each under what
    /// was predicted, as [`Predictions::show`](crate::analysis::Predictions::show) does, in gray. What
    /// speaks for the predicted class is yellow, what does not is violet.
    ///
    /// # Errors
    /// [`Error::Image`](crate::Error::Image) for an image that cannot be read any more.
    pub fn show(&self) -> Result<Figure> {
        let predictions = self.predictions();
        let mut titled = Vec::new();
        for (index, pixels) in predictions.pictures(MAX_IMAGES)? {
            let picture = overlay(pixels.to_image(), &self.map(index)?);
            let prediction = &predictions.examples()[index];
            titled.push(Titled::predicted(
                picture,
                prediction,
                predictions.classes(),
            ));
        }
        grid(&titled)
    }
}

impl Explained {
    /// Draws the map over the image as the network takes it, in gray: what speaks for the class is yellow, what does not
    /// is violet.
    #[must_use]
    pub fn overlay(&self) -> RgbImage {
        overlay(self.pixels().to_image(), self.map())
    }
}

/// Mixes a map's colours into an image of its size, which turns gray: all colour is the map's.
fn overlay(mut picture: RgbImage, map: &[f32]) -> RgbImage {
    for (pixel, &value) in picture.pixels_mut().zip(map) {
        let [gray] = pixel.to_luma().0;
        for (sample, of_map) in pixel.0.iter_mut().zip(color(&VIRIDIS, value.into()).0) {
            let [from, to] = [gray, of_map].map(f32::from);
            *sample = (from + OPACITY * (to - from)).round() as u8;
        }
    }
    picture
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    #[test]
    fn half_of_a_pixel_is_gray_and_half_is_the_maps_color() {
        let picture = RgbImage::from_fn(2, 1, |x, _| Rgb([x as u8 * 100; 3]));
        let mixed = overlay(picture, &[1., 0.]);
        // Halves of (253, 231, 37), and of (68, 1, 84) and 100.
        assert_eq!(mixed.get_pixel(0, 0).0, [127, 116, 19]);
        assert_eq!(mixed.get_pixel(1, 0).0, [84, 51, 92]);
    }
}
