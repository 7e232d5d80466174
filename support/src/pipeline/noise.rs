//! An image that shows what is made of images.

use image::RgbImage;

/// Returns 500 x 375 pixels of noise, always the same: neither cropping nor resizing of any kind leaves
/// it as it is.
pub(crate) fn noise() -> RgbImage {
    RgbImage::from_fn(500, 375, |x, y| {
        let hash = (x * 73 + y * 179 + 1).wrapping_mul(2_654_435_761);
        image::Rgb([24, 16, 8].map(|shift| (hash >> shift) as u8))
    })
}
